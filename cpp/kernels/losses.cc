// The driver of the losses: fixed slabs of rows, a tree of blocks in each, and what a job asks of a
// chunk.
#include "kernels/losses.h"

#include "runtime/hwy_config.h"  // before any Highway header

#include <hwy/base.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <thread>

#include "kernels/sums.h"
#include "runtime/partition.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

namespace pullback {
namespace {

// Less than this of X, times the outputs, is summed before a parked worker would have woken.
constexpr size_t kParallelBytes = size_t{512} << 10;
constexpr size_t kStackBytes = size_t{8} << 10;

// Where a block's sums lie: that of the loss, and from kSumB those of the gradients.
constexpr size_t kSumLoss = 0, kSumB = 1;
// So many times a piece of a chunk is a leaf of the tree of sums: by its weights, which add
// nothing, its losses and its slopes.
constexpr size_t kSumsOfPiece = 3;

// to[i] = f(from[i]) for i < n, rounded to `dtype`.
template <class F>
void WriteEach(const double* from, size_t n, DType dtype, void* to, const F& f) {
  if (dtype == DType::kFloat64) {
    std::transform(from, from + n, static_cast<double*>(to), f);
  } else {
    std::transform(from, from + n, static_cast<float*>(to),
                   [&](double value) { return static_cast<float>(f(value)); });
  }
}

void KeepLowest(std::atomic<size_t>& lowest, size_t row) {
  size_t seen = lowest.load(std::memory_order_relaxed);
  while (row < seen && !lowest.compare_exchange_weak(seen, row, std::memory_order_relaxed)) {
  }
}

// Of the lowest bad rows of targets and weights, the lower.
std::optional<BadRow> LowestOf(size_t y, size_t weight) {
  if (y == kNoRow && weight == kNoRow) return std::nullopt;
  if (y <= weight) return BadRow{BadRow::Argument::kY, y};
  return BadRow{BadRow::Argument::kWeight, weight};
}

// Such as a sample's weight, for each of its outputs.
void RepeatEach(const double* values, size_t n, size_t times, double* repeated) {
  for (size_t i = 0; i < n; ++i) std::fill_n(repeated + i * times, times, values[i]);
}

// What a job does to each chunk.
struct Steps {
  bool score, curve, backward;
};

constexpr Steps StepsOf(Job job) {
  switch (job) {
    case Job::kValue:
    case Job::kCurvature:
      return {true, false, false};
    case Job::kGradient:
      return {true, false, true};
    case Job::kHvp:
      return {true, true, true};
    case Job::kPredict:
      return {false, false, false};
    case Job::kBackward:
      return {false, false, true};
  }
  return {};
}

constexpr Wanted WantedOf(Job job) {
  switch (job) {
    case Job::kValue:
      return Wanted::kLoss;
    case Job::kGradient:
      return Wanted::kSlope;
    default:
      return Wanted::kCurvature;
  }
}

// RowPartition, without its divisions where it says the same: they are 10 ns of a small call.
Partition SlabsOf(const Design& X, const LayoutKernels& layout, size_t row_bytes) {
  if (X.rows * row_bytes <= kMinSlabBytes) return {X.rows, X.rows, 1};
  const size_t fewest = layout.slab_rows == nullptr ? kMinSlabRows : layout.slab_rows(X);
  return RowPartition(X.rows, row_bytes, std::min(fewest, X.rows));
}

// A chunk of so many bytes takes a millisecond or more: the poll is looked at after each of them.
constexpr size_t kPolledBytes = size_t{4} << 20;

// Of a chunk's, at most; with many outputs its rows are few.
constexpr size_t kChunkPredictions = 8192;

// The fixed slabs of rows, and the doubles of scratch memory: the padded parameters, then for each
// slab its sums, its layout's state and its chunk.
struct Plan {
  Plan(Job job, const LinearProblem& p, const LayoutKernels& layout)
      : steps(StepsOf(job)),
        sums(p.outputs * p.directions),
        parameters(PadDoubles(p.X.cols * p.outputs)),
        gradient(PadDoubles(p.X.cols * sums)),
        sum_w(RoundUp(kSumB + sums, kDoublePadding)),
        width(steps.backward ? sum_w + gradient : sum_w),
        row_bytes(layout.row_bytes(p.X)),
        slabs(SlabsOf(p.X, layout, row_bytes)),
        block(layout.finish != nullptr ? std::max<size_t>(slabs(0).size(), 1)
                                       : std::max(kLossBlock, layout.chunk_rows(p.X, sums))),
        levels(RunningTree::Levels(CeilDiv(slabs(0).size(), block))),
        chunk_rows(std::min({layout.chunk_rows(p.X, sums), slabs(0).size(),
                             std::max<size_t>(kChunkPredictions / sums, 1)})),
        piece_rows(std::max(kLossBlock / p.outputs / kDoublePadding, size_t{1}) * kDoublePadding),
        heads(block > kLossBlock ? RunningTree::Levels(kSumsOfPiece * CeilDiv(block, chunk_rows) *
                                                       CeilDiv(chunk_rows, piece_rows))
                                 : 0),
        exact(layout.finish != nullptr && steps.backward
                  ? RoundUp(layout.sum_doubles(p.X, sums), kDoublePadding)
                  : 0),
        state(layout.state_doubles == nullptr ? 0
                                              : RoundUp(layout.state_doubles(p.X), kDoublePadding)),
        polled(chunk_rows * row_bytes * sums >= kPolledBytes),
        chunk(PadDoubles(chunk_rows * sums)),
        // Predictions or slopes; beside them an hvp's curvature, that of several directions or one
        // of these, and expanded weights.
        repeats(sums > 1 && !p.loss->coupled && p.weight != nullptr),
        chunks(size_t{1} + (job == Job::kHvp) + (p.directions > 1) + repeats),
        slab_doubles(levels * width + heads * sum_w + exact + state + chunks * chunk),
        transposed(p.gX == nullptr ? 0 : PadDoubles(p.X.cols) * p.outputs),
        widened(p.X.stored == Stored::kAsComputed ? 0
                                                  : PadDoubles(CeilDiv(chunk_rows * p.X.cols, 2))),
        blocks(widened == 0
                   ? 0
                   : std::min({slabs.tasks, kMaxSlabs, static_cast<size_t>(GetNumThreads())})),
        doubles(parameters + PadDoubles(p.outputs) +
                (p.vw == nullptr ? 0 : gradient + PadDoubles(sums)) + transposed +
                slabs.tasks * slab_doubles + blocks * widened) {}

  Steps steps;
  size_t sums;  // of slopes: for each output, or each of its directions
  size_t parameters, gradient, sum_w, width, row_bytes;
  Partition slabs;
  size_t block, levels, chunk_rows;
  // So many rows' losses and slopes are summed at once: whole vectors, since scores write such.
  size_t piece_rows;
  size_t heads;  // levels of the tree of these sums in a block of more rows, else 0
  size_t exact;  // of the layout's own sums of the gradient, or 0
  size_t state;
  bool polled;
  size_t chunk;
  bool repeats;  // a sample's weight, for each of its slopes
  size_t chunks, slab_doubles;
  size_t transposed;  // of the coefficients, for the gradient by X, or 0
  size_t widened;     // a chunk of X that is stored otherwise than computed, or 0
  size_t blocks;      // of these, one for each thread: there are at most kMaxSlabs
  size_t doubles;
};

// Sums over a block's rows but for the gradient by w. A block of more than kLossBlock rows has a
// tree of its own for them.
class Head {
 public:
  Head(double* block, const Plan& plan, double* storage)
      : block_(block), levels_(plan.heads), width_(plan.sum_w), tree_(storage, plan.sum_w) {}

  // `add` adds to a row of sums.
  template <class F>
  void Add(const F& add) {
    if (levels_ == 0) {
      add(block_);
      return;
    }
    tree_.Add([&](double* sums) {
      std::fill_n(sums, width_, 0.0);
      add(sums);
    });
  }

  void Finish() {
    if (levels_ == 0) return;
    tree_.Finish();
    std::copy_n(tree_.total(), width_, block_);
  }

 private:
  double* block_;
  size_t levels_, width_;
  RunningTree tree_;
};

class Sum {
 public:
  Sum(Job job, const LinearProblem& problem, const Plan& plan, const LayoutKernels& layout,
      double* scratch)
      : job_(job),
        p_(problem),
        plan_(plan),
        layout_(layout),
        stages_((plan.sums == 1 ? layout.one : layout.many)[static_cast<size_t>(p_.X.dtype)]),
        others_(KernelsOfChunks()),
        score_(p_.loss->score[static_cast<size_t>(WantedOf(job))]),
        slabs_(scratch) {}

  // Not inlined: the caller guards the floating-point environment.
  HWY_NOINLINE bool Run(LossResult& result, Poll* poll) {
    w_ = TakeParameters(p_.w, p_.w_dtype, p_.X.cols * p_.outputs);
    b_ = TakeParameters(p_.b, DType::kFloat64, p_.outputs);
    if (p_.vw != nullptr) {
      vw_ = TakeParameters(p_.vw, p_.vw_dtype, p_.X.cols * plan_.sums);
      vb_ = TakeParameters(p_.vb, DType::kFloat64, plan_.sums);
    }
    if (p_.gX != nullptr) Transpose();
    blocks_ = slabs_;
    slabs_ += plan_.blocks * plan_.widened;
    if (plan_.blocks != 0) free_ = ~uint64_t{0} >> (64 - plan_.blocks);
    poll_ = poll;
    const size_t tasks = plan_.slabs.tasks;
    if (p_.X.rows * plan_.row_bytes * plan_.sums < kParallelBytes) {
      for (size_t slab = 0; slab < tasks; ++slab) SumSlab(slab);
    } else if (!ParallelFor(
                   tasks, [&](size_t slab) { SumSlab(slab); }, poll)) {
      return false;
    }
    if (stopped_.load(std::memory_order_relaxed)) return false;
    result.bad = Bad();
    if (!result.bad && layout_.walked != nullptr &&
        walked_.load(std::memory_order_relaxed) != p_.X.listed()) {
      result.bad = BadRow{BadRow::Argument::kX, 0};
    }
    if (!result.bad) Finish(result);
    return true;
  }

 private:
  const double* TakeParameters(const void* from, DType dtype, size_t n) {
    double* const to = slabs_;
    if (dtype == DType::kFloat64) {
      std::copy_n(static_cast<const double*>(from), n, to);
    } else {
      std::copy_n(static_cast<const float*>(from), n, to);
    }
    std::fill(to + n, to + PadDoubles(n), 0.0);
    slabs_ += PadDoubles(n);
    return to;
  }

  void Transpose() {
    const size_t cols = p_.X.cols, row = PadDoubles(cols);
    std::fill_n(slabs_, plan_.transposed, 0.0);
    for (size_t j = 0; j < cols; ++j) {
      for (size_t k = 0; k < p_.outputs; ++k) slabs_[k * row + j] = w_[j * p_.outputs + k];
    }
    transposed_w_ = slabs_;
    slabs_ += plan_.transposed;
  }

  double* SumsOf(size_t slab) const { return slabs_ + slab * plan_.slab_doubles; }

  void SumSlab(size_t slab) {
    const Range rows = plan_.slabs(slab);
    // Behind a bad row nothing counts.
    if (rows.begin > bad_x_.load(std::memory_order_relaxed) ||
        rows.begin > bad_y_.load(std::memory_order_relaxed) ||
        rows.begin > bad_weight_.load(std::memory_order_relaxed)) {
      return;
    }
    if (plan_.widened == 0) {
      SumRows(slab, rows, p_.X);
      return;
    }
    const size_t block = TakeBlock();
    Design widened = p_.X;
    widened.data = blocks_ + block * plan_.widened;
    widened.stride =
        static_cast<ptrdiff_t>(p_.X.layout == Layout::kRows ? p_.X.cols : plan_.chunk_rows);
    widened.stored = Stored::kAsComputed;
    widened.near = true;
    SumRows(slab, rows, widened);
    free_.fetch_or(uint64_t{1} << block, std::memory_order_release);
  }

  // A block that no other thread has. There are enough, unless their number has grown since then.
  size_t TakeBlock() {
    for (;;) {
      uint64_t free = free_.load(std::memory_order_relaxed);
      if (free == 0) {
        std::this_thread::yield();
      } else if (free_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire)) {
        return static_cast<size_t>(std::countr_zero(free));
      }
    }
  }

  // A chunk into the block that X's data are; asks for the next one meanwhile.
  void Widen(Range rows, const Design& X) const {
    const auto widen = others_.widen[static_cast<size_t>(p_.X.stored)];
    const bool by_rows = X.layout == Layout::kRows;
    const auto* from = static_cast<const uint16_t*>(p_.X.data) +
                       static_cast<ptrdiff_t>(rows.begin) * (by_rows ? p_.X.stride : 1);
    auto* to = static_cast<float*>(const_cast<void*>(X.data));
    const bool at_once = by_rows && p_.X.stride == X.stride;
    const size_t n = rows.size(), lines = at_once ? 1 : by_rows ? n : X.cols;
    const size_t length = at_once ? n * X.cols : by_rows ? X.cols : n;
    const size_t ahead = at_once || !by_rows ? length : 0;
    for (size_t i = 0; i < lines; ++i, from += p_.X.stride, to += X.stride) {
      widen(from, length, ahead, to);
    }
  }

  void SumRows(size_t slab, Range rows, const Design& X) {
    double* const sums = SumsOf(slab);
    double* const heads = sums + plan_.levels * plan_.width;
    double* const exact = heads + plan_.heads * plan_.sum_w;
    void* const state = exact + plan_.exact;
    if (layout_.seek != nullptr && !layout_.seek(p_.X, rows.begin, state)) {
      KeepLowest(bad_x_, rows.begin);
      return;
    }
    std::fill_n(exact, plan_.exact, 0.0);
    RunningTree tree(sums, plan_.width);
    for (size_t row = rows.begin; row < rows.end; row += plan_.block) {
      tree.Add([&](double* block) {
        std::fill(block, block + plan_.width, 0.0);
        const size_t end = std::min(row + plan_.block, rows.end);
        Head head(block, plan_, heads);
        for (size_t first = row; first < end; first += plan_.chunk_rows) {
          if (plan_.polled && Stopped()) return;
          const Range chunk = {first, std::min(first + plan_.chunk_rows, end)};
          if (HWY_UNLIKELY(X.near)) Widen(chunk, X);
          SumChunk(chunk, X, state, head, plan_.exact == 0 ? block + plan_.sum_w : exact);
        }
        head.Finish();
        if (plan_.exact != 0) layout_.finish(p_.X, plan_.sums, exact, block + plan_.sum_w);
      });
    }
    tree.Finish();
    if (layout_.walked == nullptr) return;
    const std::optional<size_t> walked = layout_.walked(p_.X, state);
    if (!walked) KeepLowest(bad_x_, rows.begin);
    walked_.fetch_add(walked.value_or(0), std::memory_order_relaxed);
  }

  // Whether the poll, which the calling thread alone may look at, has asked to stop.
  bool Stopped() {
    if (std::this_thread::get_id() == caller_ && Interrupted(poll_)) {
      stopped_.store(true, std::memory_order_relaxed);
    }
    return stopped_.load(std::memory_order_relaxed);
  }

  // False where the rows cannot be found.
  bool Advance(Range rows, void* state) {
    if (layout_.advance == nullptr || layout_.advance(p_.X, rows, state)) return true;
    KeepLowest(bad_x_, rows.begin);
    return false;
  }

  void Predict(const Design& X, Range rows, double* z, void* state) const {
    stages_.forward(X, p_.outputs, RowsIn(X, rows), w_, b_, z, state);
    if (HWY_UNLIKELY(p_.offset != nullptr)) AddOffset(rows, z);
  }

  HWY_NOINLINE void AddOffset(Range rows, double* HWY_RESTRICT z) const {
    const size_t outputs = p_.outputs;
    const bool whole = p_.offset_by_output || outputs == 1;
    const double* HWY_RESTRICT offset = p_.offset + rows.begin * (whole ? outputs : 1);
    const size_t n = rows.size() * (whole ? outputs : 1);
    if (whole) {
      for (size_t i = 0; i < n; ++i) z[i] += offset[i];
      return;
    }
    for (size_t r = 0; r < n; ++r, z += outputs) {
      for (size_t k = 0; k < outputs; ++k) z[k] += offset[r];
    }
  }

  // Of a chunk that was widened, the first row is the first there.
  static Range RowsIn(const Design& X, Range rows) { return X.near ? Range{0, rows.size()} : rows; }

  void SumChunk(Range rows, const Design& X, void* state, Head& head, double* gw) {
    const size_t outputs = p_.outputs, slopes = plan_.sums;
    const size_t first = rows.begin * outputs;
    double* const z = static_cast<double*>(state) + plan_.state;
    if (job_ == Job::kPredict) {
      if (!Advance(rows, state)) return;
      Predict(X, rows, z, state);
      std::copy_n(z, rows.size() * outputs, p_.kept + first);
      return;
    }
    double* const own_curvature = z + plan_.chunk;
    double* const curvature = job_ == Job::kHvp    ? own_curvature
                              : p_.kept == nullptr ? nullptr
                                                   : p_.kept + first;
    const size_t y_first = p_.y_type == TargetType::kLabel ? rows.begin : first;
    ScoreChunk chunk{p_.parameter,
                     rows.size(),
                     outputs,
                     p_.y_type,
                     static_cast<const char*>(p_.y) + y_first * ItemSize(p_.y_type),
                     p_.weight == nullptr ? nullptr : p_.weight + rows.begin,
                     z,
                     nullptr,
                     z,
                     curvature,
                     0.0,
                     kNoRow};
    const double* const weight = chunk.weight;
    bool has_zero = false;  // among the weights
    if (weight != nullptr) {
      SumPieces(chunk.rows, head, [&](Range piece, double*) {
        const WeightCheck check = others_.check_weights(weight + piece.begin, piece.size());
        if (HWY_UNLIKELY(check.bad != kNoRow)) {
          KeepLowest(bad_weight_, rows.begin + piece.begin + check.bad);
        }
        has_zero |= check.has_zero;
      });
      if (plan_.repeats && outputs > 1) {
        double* const repeated = z + (plan_.chunks - 1) * plan_.chunk;
        RepeatEach(weight, chunk.rows, outputs, repeated);
        chunk.weight = repeated;
      }
    }

    if (!Advance(rows, state)) return;
    // A row of weight 0 may hold what is not finite: then nor is its prediction, along v either.
    bool x_is_finite = true;
    const auto look = [&](size_t of_row) {
      if (has_zero) x_is_finite = others_.all_finite(z, chunk.rows * of_row);
    };
    if (job_ != Job::kBackward || layout_.advance != nullptr) Predict(X, rows, z, state);
    if (job_ != Job::kBackward) {
      look(outputs);
    } else {
      std::copy_n(static_cast<const double*>(p_.y) + first, chunk.rows * outputs, z);
      x_is_finite = !has_zero;  // unknown
    }
    if (plan_.steps.score) {
      SumPieces(chunk.rows, head, [&](Range piece, double* sums) {
        ScoreChunk part = chunk;
        TakePart(part, piece, p_.loss->coupled);
        score_(part);
        sums[kSumLoss] += part.loss_sum;
        if (HWY_UNLIKELY(part.bad_row != kNoRow)) {
          KeepLowest(bad_y_, rows.begin + piece.begin + part.bad_row);
        }
      });
    }
    if (plan_.steps.curve) {
      stages_.forward(X, slopes, RowsIn(X, rows), vw_, vb_, z, state);
      look(slopes);
      if (p_.directions == 1) {
        p_.loss->curve(chunk, curvature, z);
      } else {
        CurveEach(chunk, weight, curvature + plan_.chunk);
      }
    }
    if (!plan_.steps.backward) return;
    double rest = 0;  // or NaN, if a sum is not finite
    SumPieces(chunk.rows, head, [&](Range piece, double* sums) {
      others_.sum_outputs[p_.loss->coupled](z + piece.begin * slopes, piece.size(), slopes,
                                            sums + kSumB);
      for (size_t k = 0; k < slopes; ++k) rest += sums[kSumB + k] - sums[kSumB + k];
    });
    const bool is_finite = x_is_finite && rest == 0;
    if (p_.gX != nullptr) {
      char* const gX =
          static_cast<char*>(p_.gX) + static_cast<ptrdiff_t>(rows.begin) * p_.gX_stride *
                                          static_cast<ptrdiff_t>(ItemSize(p_.gX_dtype));
      others_.write_gx[static_cast<size_t>(p_.gX_dtype)](z, chunk.rows, outputs, transposed_w_,
                                                         p_.X.cols, p_.scale, gX, p_.gX_stride);
      if (HWY_UNLIKELY(has_zero || !is_finite)) GuardGradientInX(z, rows, gX);
    }
    // The sums may overflow where the slopes do not.
    if (HWY_LIKELY(is_finite) || (x_is_finite && others_.all_finite(z, chunk.rows * slopes))) {
      stages_.backward(X, slopes, RowsIn(X, rows), z, gw, state);
    } else {
      const auto guarded = layout_.guarded[static_cast<size_t>(X.dtype)];
      guarded(X, slopes, RowsIn(X, rows), z, weight, gw, state);
    }
  }

  // Turns each direction's predictions into slopes: as those of more outputs, or of a coupled loss
  // one after the other, where they lie together.
  HWY_NOINLINE void CurveEach(const ScoreChunk& chunk, const double* weight, double* own) const {
    const size_t n = chunk.rows * chunk.outputs, step = p_.directions;
    ScoreChunk one = chunk;
    if (!p_.loss->coupled) {
      one.outputs = plan_.sums;
      RepeatEach(chunk.curvature, n, step, own);
      if (weight != nullptr) {
        RepeatEach(weight, chunk.rows, plan_.sums, own + plan_.chunk);
        one.weight = own + plan_.chunk;
      }
      p_.loss->curve(one, own, chunk.slope);
      return;
    }
    one.slope = own;
    for (size_t direction = 0; direction < step; ++direction) {
      double* const z = chunk.slope + direction;
      for (size_t i = 0; i < n; ++i) own[i] = z[i * step];
      p_.loss->curve(one, chunk.curvature, own);
      for (size_t i = 0; i < n; ++i) z[i * step] = own[i];
    }
  }

  // Writes the gradient by X once more for rows of weight 0, which is 0, and where slopes are not
  // finite, which a coefficient of 0 must not meet.
  HWY_NOINLINE void GuardGradientInX(const double* slopes, Range rows, void* gX) const {
    for (size_t r = 0; r < rows.size(); ++r, slopes += p_.outputs) {
      const bool counts = p_.weight == nullptr || p_.weight[rows.begin + r] != 0;
      if (counts && others_.all_finite(slopes, p_.outputs)) continue;
      for (size_t j = 0; j < p_.X.cols; ++j) {
        double sum = 0;
        for (size_t k = 0; counts && k < p_.outputs; ++k) {
          const double w = w_[j * p_.outputs + k];
          if (w != 0) sum += slopes[k] * w;
        }
        const double by_x = counts ? p_.scale * sum : 0.0;
        const ptrdiff_t at = static_cast<ptrdiff_t>(r) * p_.gX_stride + static_cast<ptrdiff_t>(j);
        if (p_.gX_dtype == DType::kFloat64) {
          static_cast<double*>(gX)[at] = by_x;
        } else {
          static_cast<float*>(gX)[at] = static_cast<float>(by_x);
        }
      }
    }
  }

  // Calls sum(piece, sums) for few rows of a chunk at a time, counted from its first.
  template <class F>
  void SumPieces(size_t rows, Head& head, const F& sum) {
    for (size_t begin = 0; begin < rows; begin += plan_.piece_rows) {
      const Range piece = {begin, std::min(begin + plan_.piece_rows, rows)};
      head.Add([&](double* sums) { sum(piece, sums); });
    }
  }

  static void TakePart(ScoreChunk& chunk, Range rows, bool coupled) {
    const size_t first = rows.begin * chunk.outputs;
    chunk.rows = rows.size();
    chunk.y = static_cast<const char*>(chunk.y) +
              (chunk.y_type == TargetType::kLabel ? rows.begin : first) * ItemSize(chunk.y_type);
    if (chunk.weight != nullptr) chunk.weight += coupled ? rows.begin : first;
    chunk.z += first;
    chunk.slope += first;
    if (chunk.curvature != nullptr) chunk.curvature += first;
  }

  std::optional<BadRow> Bad() const {
    const size_t x = bad_x_.load(std::memory_order_relaxed);
    if (x != kNoRow) return BadRow{BadRow::Argument::kX, x};
    return LowestOf(bad_y_.load(std::memory_order_relaxed),
                    bad_weight_.load(std::memory_order_relaxed));
  }

  void Finish(LossResult& result) const {
    MergeTree(plan_.slabs.tasks,
              [&](size_t to, size_t from) { AddTo(SumsOf(to), SumsOf(from), plan_.width); });
    const double* const total = SumsOf(0);
    const double divisor = result.divisor.value_or(1.0);
    result.loss = total[kSumLoss] / divisor;
    if (!plan_.steps.backward) return;
    const auto mean = [divisor](double sum) { return sum / divisor; };
    WriteEach(total + kSumB, plan_.sums, result.gb_dtype, result.gb, mean);
    WriteEach(total + plan_.sum_w, p_.X.cols * plan_.sums, result.gw_dtype, result.gw, mean);
  }

  const Job job_;
  const LinearProblem& p_;
  const Plan& plan_;
  const LayoutKernels& layout_;
  const Stages stages_;
  const ChunkKernels& others_;
  const Score score_;
  double* slabs_;
  const double* w_ = nullptr;
  const double* transposed_w_ = nullptr;
  const double* b_ = nullptr;
  const double* vw_ = nullptr;
  const double* vb_ = nullptr;
  std::atomic<size_t> bad_x_ = kNoRow, bad_y_ = kNoRow, bad_weight_ = kNoRow;
  std::atomic<size_t> walked_ = 0;  // entries of sparse X
  double* blocks_ = nullptr;
  std::atomic<uint64_t> free_ = 0;  // blocks, a bit each
  Poll* poll_ = nullptr;
  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<bool> stopped_ = false;
};

// Not inlined: the caller guards the floating-point environment.
HWY_NOINLINE bool MapTasks(size_t tasks, FunctionRef<void(size_t)> map, Poll* poll) {
  return ParallelFor(tasks, map, poll);
}

}  // namespace

Outcome SumLoss(Job job, const LinearProblem& problem, LossResult& result, Poll* poll) {
  const LayoutKernels& layout = KernelsOf(problem.X);
  const Plan plan(job, problem, layout);
  Scratch<kStackBytes> scratch(plan.doubles * sizeof(double));
  if (!scratch) return Outcome::kOutOfMemory;
  Sum sum(job, problem, plan, layout, scratch.Take<double>(plan.doubles));
  const KernelFpEnv fp_env(poll);
  return sum.Run(result, poll) ? Outcome::kDone : Outcome::kInterrupted;
}

Outcome MapLoss(Wanted wanted, const PointwiseProblem& p, void* out, Poll* poll) {
  const size_t chunk_rows = std::max<size_t>(kLossBlock / p.outputs, 1);
  const size_t buffer = PadDoubles(chunk_rows * p.outputs);
  const Partition tasks =
      PartitionBy(p.rows, RoundUp(std::max<size_t>(kParallelElements / p.outputs, 1), chunk_rows));
  const size_t doubles = 2 * buffer * tasks.tasks;
  Scratch<kStackBytes> scratch(doubles * sizeof(double));
  if (!scratch) return Outcome::kOutOfMemory;
  double* const buffers = scratch.Take<double>(doubles);
  const size_t z_item = ItemSize(p.dtype), y_item = ItemSize(p.y_type);
  const bool a_row = wanted == Wanted::kLoss && p.loss->coupled;
  const Score score = p.loss->score[static_cast<size_t>(wanted)];
  const auto map = [&](size_t task) {
    double* const z = buffers + 2 * buffer * task;
    double* const result = z + buffer;
    const Range rows = tasks(task);
    for (size_t row = rows.begin; row < rows.end; row += chunk_rows) {
      const size_t count = std::min(chunk_rows, rows.end - row);
      const size_t first = row * p.outputs, n = count * p.outputs;
      const char* const from = static_cast<const char*>(p.z) + first * z_item;
      if (p.dtype == DType::kFloat64) {
        std::memcpy(z, from, n * sizeof(double));
      } else {
        std::copy_n(reinterpret_cast<const float*>(from), n, z);
      }
      const size_t y_first = p.y_type == TargetType::kLabel ? row : first;
      ScoreChunk chunk{
          p.parameter, count, p.outputs, p.y_type, static_cast<const char*>(p.y) + y_first * y_item,
          nullptr,     z,     result,    result,   result,
          0.0,         kNoRow};
      if (wanted != Wanted::kLoss) chunk.loss = nullptr;
      score(chunk);
      WriteEach(result, a_row ? count : n, p.dtype,
                static_cast<char*>(out) + (a_row ? row : first) * z_item,
                [](double value) { return value; });
    }
  };
  const KernelFpEnv fp_env(poll);
  return MapTasks(tasks.tasks, map, poll) ? Outcome::kDone : Outcome::kInterrupted;
}

Outcome SumLine(Wanted wanted, const PointwiseProblem& p, const double* sample_weight, double step,
                LineSums& sums, Poll* poll) {
  enum { kLoss, kDerivative, kWidth };
  const size_t chunk_rows = std::max<size_t>(kLossBlock / p.outputs, 1);
  const size_t buffer = PadDoubles(chunk_rows * p.outputs + kDoublePadding);
  const Partition tasks =
      PartitionBy(p.rows, RoundUp(std::max<size_t>(kParallelElements / p.outputs, 1), chunk_rows));
  const size_t levels = RunningTree::Levels(CeilDiv(tasks(0).size(), chunk_rows));
  const size_t task_doubles = RoundUp(levels * kWidth, kDoublePadding) + 4 * buffer;
  const size_t doubles = tasks.tasks * task_doubles;
  Scratch<kStackBytes> scratch(doubles * sizeof(double));
  if (!scratch) return Outcome::kOutOfMemory;
  double* const all = scratch.Take<double>(doubles);
  const ChunkKernels& others = KernelsOfChunks();
  const Score score = p.loss->score[static_cast<size_t>(wanted)];
  const bool curves = wanted == Wanted::kCurvature;
  std::atomic<size_t> bad_y = kNoRow, bad_weight = kNoRow;
  const auto sum = [&](size_t task) {
    double* const totals = all + task * task_doubles;
    double* const z = totals + (task_doubles - 4 * buffer);
    double *const change = z + buffer, *const curvature = change + buffer;
    double* const repeated = curvature + buffer;
    const Range rows = tasks(task);
    RunningTree tree(totals, kWidth);
    for (size_t row = rows.begin; row < rows.end; row += chunk_rows) {
      const size_t count = std::min(chunk_rows, rows.end - row), n = count * p.outputs;
      const size_t y_first = p.y_type == TargetType::kLabel ? row : row * p.outputs;
      others.step_along(static_cast<const double*>(p.z) + 2 * row * p.outputs, count, p.outputs,
                        step, z, change);
      const double* weight = sample_weight == nullptr ? nullptr : sample_weight + row;
      if (weight != nullptr) {
        const size_t bad = others.check_weights(weight, count).bad;
        if (HWY_UNLIKELY(bad != kNoRow)) KeepLowest(bad_weight, row + bad);
        if (p.outputs > 1 && !p.loss->coupled) {
          RepeatEach(weight, count, p.outputs, repeated);
          weight = repeated;
        }
      }
      ScoreChunk chunk{p.parameter,
                       count,
                       p.outputs,
                       p.y_type,
                       static_cast<const char*>(p.y) + y_first * ItemSize(p.y_type),
                       weight,
                       z,
                       nullptr,
                       z,
                       curvature,
                       0.0,
                       kNoRow};
      score(chunk);
      if (HWY_UNLIKELY(chunk.bad_row != kNoRow)) KeepLowest(bad_y, row + chunk.bad_row);
      if (curves) p.loss->curve(chunk, curvature, change);
      tree.Add([&](double* to) {
        to[kLoss] = curves ? 0 : chunk.loss_sum;
        to[kDerivative] = others.sum_products(z, change, n);
      });
    }
    tree.Finish();
  };
  const KernelFpEnv fp_env(poll);
  if (!MapTasks(tasks.tasks, sum, poll)) return Outcome::kInterrupted;
  MergeTree(tasks.tasks, [&](size_t to, size_t from) {
    AddTo(all + to * task_doubles, all + from * task_doubles, kWidth);
  });
  sums = {all[kLoss], all[kDerivative], LowestOf(bad_y, bad_weight)};
  return Outcome::kDone;
}

namespace {

// sum * factor * (diag p - p p^T) of one row. 1 - p of each class is the sum of the others: the
// difference would lose its digits. Of few classes a plain sum keeps them.
template <size_t kClasses, typename T>
HWY_INLINE void WriteHessian(const T* p, double sum, double factor, T* to) {
  for (size_t i = 0; i < kClasses; ++i) {
    const double scaled = sum * double{p[i]};
    double others = -0.0;
    for (size_t k = 0; k < kClasses; ++k) {
      if (k != i) others += double{p[k]};
    }
    to[i * kClasses + i] = static_cast<T>(scaled * others * factor);
    for (size_t k = i + 1; k < kClasses; ++k) {
      to[i * kClasses + k] = to[k * kClasses + i] = static_cast<T>(-scaled * double{p[k]} * factor);
    }
  }
}

template <typename T>
void WriteAnyHessian(const T* p, size_t classes, double sum, double factor, long double* others,
                     T* to) {
  others[0] = 0;
  for (size_t k = 1; k < classes; ++k) {
    others[k] = k == 1 ? double{p[0]} : others[k - 1] + double{p[k - 1]};
  }
  long double behind = 0;
  for (size_t k = classes - 1; k-- > 0;) {
    behind = k + 2 == classes ? double{p[k + 1]} : behind + double{p[k + 1]};
    others[k] += behind;
  }
  for (size_t i = 0; i < classes; ++i) {
    const double scaled = -sum * double{p[i]};
    for (size_t k = 0; k < classes; ++k) {
      to[i * classes + k] = static_cast<T>(scaled * double{p[k]} * factor);
    }
    const double diagonal = sum * double{p[i]} * static_cast<double>(others[i]);
    to[i * classes + i] = static_cast<T>(diagonal * factor);
  }
}

// kClasses: 0 for any number.
template <size_t kClasses, typename T>
bool WriteHessians(const ClassHessians& h, long double* others, T* out, Poll* poll) {
  constexpr size_t kPolledElements = size_t{1} << 20;
  const size_t classes = kClasses == 0 ? h.classes : kClasses;
  const double divisor = h.divisor, factor = 1.0 / divisor;
  const double *const sums = h.sums, *const weight = h.weight;
  const auto* p = static_cast<const T*>(h.p);
  size_t written = 0;
  for (size_t row = 0; row < h.rows; ++row) {
    const double sum = sums == nullptr ? 1.0 : sums[row];
    const double by = weight == nullptr ? factor : weight[row] / divisor;
    if (weight != nullptr && weight[row] == 0) {
      std::fill_n(out, classes * classes, T{0});
    } else if constexpr (kClasses == 0) {
      WriteAnyHessian(p, classes, sum, by, others, out);
    } else {
      WriteHessian<kClasses>(p, sum, by, out);
    }
    p += classes;
    out += classes * classes;
    written += classes * classes;
    if (written < kPolledElements) continue;
    written = 0;
    if (Interrupted(poll)) return false;
  }
  return true;
}

template <typename T>
Outcome MapHessiansTo(const ClassHessians& h, T* out, Poll* poll) {
  constexpr decltype(&WriteHessians<0, T>) kFew[] = {WriteHessians<2, T>, WriteHessians<3, T>,
                                                     WriteHessians<4, T>};
  const bool few = h.classes >= 2 && h.classes <= 4;
  const std::unique_ptr<long double[]> others(few ? nullptr
                                                  : new (std::nothrow) long double[h.classes]);
  if (!few && !others) return Outcome::kOutOfMemory;
  const auto write = few ? kFew[h.classes - 2] : WriteHessians<0, T>;
  const KernelFpEnv fp_env(poll);
  return write(h, others.get(), out, poll) ? Outcome::kDone : Outcome::kInterrupted;
}

}  // namespace

Outcome MapHessians(const ClassHessians& problem, void* out, Poll* poll) {
  return problem.dtype == DType::kFloat32 ? MapHessiansTo(problem, static_cast<float*>(out), poll)
                                          : MapHessiansTo(problem, static_cast<double*>(out), poll);
}

}  // namespace pullback

// The one-pass loss kernels, compiled once per instruction set, and the fixed tree above them.
#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/losses.cc"
#include <hwy/foreach_target.h>
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>

#include "kernels/load-inl.h"
#include "kernels/losses.h"
#include "ops/losses-inl.h"
#include "runtime/fp_env.h"
#include "runtime/partition.h"
#include "runtime/threads.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D64 = hn::ScalableTag<double>;
using V64 = hn::Vec<D64>;
constexpr size_t kLanes = hn::MaxLanes(D64());

// Lane r of the result is the sum over the lanes of rows[r]: a transposed reduction, so that all
// rows together cost about as many additions as one.
template <class D, class V, size_t kRows>
HWY_INLINE V SumEachRow(D d, const std::array<V, kRows>& rows) {
  static_assert(kRows == hn::MaxLanes(D()));
#if HWY_TARGET == HWY_SCALAR
  (void)d;
  return rows[0];
#else
  // Per 128-bit block b: {sum of row i in b, sum of row j in b}.
  const auto pair = [d](V i, V j) HWY_ATTR {
    return hn::Add(hn::InterleaveLower(d, i, j), hn::InterleaveUpper(d, i, j));
  };
  if constexpr (kRows == 2) {
    return pair(rows[0], rows[1]);
  } else {
    const auto halve = [d](V low, V high) HWY_ATTR {
      return hn::Add(hn::ConcatLowerLower(d, high, low), hn::ConcatUpperUpper(d, high, low));
    };
    if constexpr (kRows == 4) {
      return halve(pair(rows[0], rows[1]), pair(rows[2], rows[3]));
    } else {
      static_assert(kRows == 8);
      const V a = halve(pair(rows[0], rows[1]), pair(rows[4], rows[5]));
      const V c = halve(pair(rows[2], rows[3]), pair(rows[6], rows[7]));
      return hn::Add(hn::OddEvenBlocks(hn::SwapAdjacentBlocks(c), a),
                     hn::OddEvenBlocks(c, hn::SwapAdjacentBlocks(a)));
    }
  }
#endif
}

// Elements of X become float64 as they are loaded: products and sums are float64 throughout.
template <class D, typename T>
struct Loader {
  using From = hn::Rebind<T, D>;
  using V = hn::Vec<D>;
  static HWY_INLINE V Whole(const T* p) {
    if constexpr (sizeof(T) == 8) {
      return hn::LoadU(D(), p);
    } else {
      return hn::PromoteTo(D(), hn::LoadU(From(), p));
    }
  }
  static HWY_INLINE V Part(const T* p, size_t count) {
    if constexpr (sizeof(T) == 8) {
      return LoadTail(D(), p, count);
    } else {
      return hn::PromoteTo(D(), LoadTail(From(), p, count));
    }
  }
};

// The targets of `count` rows, one a lane.
template <class D>
HWY_INLINE hn::Vec<D> LoadTargets(D d, const LinearModel& model, size_t row, size_t count) {
  const bool whole = count == hn::Lanes(d);
  if (model.y_dtype == DType::kFloat64) {
    const double* const y = static_cast<const double*>(model.y) + row;
    return whole ? Loader<D, double>::Whole(y) : Loader<D, double>::Part(y, count);
  }
  const float* const y = static_cast<const float*>(model.y) + row;
  return whole ? Loader<D, float>::Whole(y) : Loader<D, float>::Part(y, count);
}

// From the predictions of one group of rows to its share of the sums; dl/dz goes to `slopes`.
template <class Row, class D, class V>
HWY_INLINE void Score(D d, const LinearModel& model, size_t row, size_t count, V dot, V& loss_sum,
                      V& slope_sum, double* HWY_RESTRICT slopes) {
  const V z = hn::Add(dot, hn::Set(d, model.b));
  V loss, slope, curvature;
  Row::Eval(d, z, LoadTargets(d, model, row, count), loss, slope, curvature);
  if (HWY_UNLIKELY(count < hn::Lanes(d))) {
    const auto present = hn::FirstN(d, count);
    loss = hn::IfThenElseZero(present, loss);
    slope = hn::IfThenElseZero(present, slope);
  }
  loss_sum = hn::Add(loss_sum, loss);
  slope_sum = hn::Add(slope_sum, slope);
  hn::Store(slope, d, slopes);
}

// Up to this many columns the gradient stays in registers. Rows are cut into vectors of at most
// four lanes: of wider ones the last would be mostly empty (eight lanes: 1.1 x the time at 10
// columns).
constexpr size_t kShortVectors = 6;
using ShortTag = hn::CappedTag<double, 4>;
// With 32 registers, rows of up to this many vectors stay in them between the two passes.
constexpr size_t kKeptVectors = HWY_TARGET <= HWY_AVX3 ? 5 : 2;
constexpr size_t kShortLanes = hn::MaxLanes(ShortTag());

// Rows of at most kShortVectors vectors: kVectors, the last of which holds `tail` elements.
template <class Row, typename T, size_t kVectors>
class ShortRows {
 public:
  static void Sum(const LinearModel& model, const double* w, bool with_gradient, size_t begin,
                  size_t end, double* sums) {
    ShortRows rows(model, w);
    size_t row = begin;
    for (; row + kShortLanes <= end; row += kShortLanes) rows.Add<true>(row, kShortLanes, with_gradient);
    if (row < end) rows.Add<false>(row, end - row, with_gradient);
    rows.Store(with_gradient, sums);
  }

 private:
  using D = ShortTag;
  using V = hn::Vec<D>;

  // Rows of few vectors stay in registers between the passes: most of their loads straddle two
  // cache lines and would cost twice.
  static constexpr size_t kKept = kVectors <= kKeptVectors ? kVectors : 0;

  HWY_INLINE ShortRows(const LinearModel& model, const double* w)
      : model_(model), tail_(model.cols - (kVectors - 1) * kShortLanes) {
    const D d;
    for (size_t v = 0; v < kVectors; ++v) {
      weight_[v] = hn::LoadU(d, w + v * kShortLanes);
      gradient_[0][v] = gradient_[1][v] = hn::Zero(d);
    }
    loss_sum_ = slope_sum_ = hn::Zero(d);
  }

  HWY_INLINE const T* At(size_t row) const {
    return static_cast<const T*>(model_.X) + static_cast<ptrdiff_t>(row) * model_.x_stride;
  }

  HWY_INLINE V Part(const T* row, size_t v) const {
    const T* const p = row + v * kShortLanes;
    return v + 1 < kVectors ? Loader<D, T>::Whole(p) : Loader<D, T>::Part(p, tail_);
  }

  template <bool kFull>
  HWY_INLINE void Add(size_t row, size_t count, bool with_gradient) {
    const D d;
    V kept[kShortLanes][kKept + 1];
    std::array<V, kShortLanes> dots;
    for (size_t r = 0; r < kShortLanes; ++r) {
      dots[r] = hn::Zero(d);
      if (!kFull && r >= count) continue;
      const T* const x = At(row + r);
      for (size_t v = 0; v < kVectors; ++v) {
        const V part = Part(x, v);
        if (v < kKept) kept[r][v] = part;
        dots[r] = v == 0 ? hn::Mul(weight_[v], part) : hn::MulAdd(weight_[v], part, dots[r]);
      }
    }
    HWY_ALIGN double slopes[kShortLanes];
    Score<Row>(d, model_, row, kFull ? kShortLanes : count, SumEachRow(d, dots), loss_sum_, slope_sum_,
               slopes);
    if (!with_gradient) return;
    for (size_t r = 0; r < kShortLanes; ++r) {
      if (!kFull && r >= count) break;
      const T* const x = At(row + r);
      const V slope = hn::Set(d, slopes[r]);
      for (size_t v = 0; v < kVectors; ++v) {
        const V part = v < kKept ? kept[r][v] : Part(x, v);
        gradient_[r % 2][v] = hn::MulAdd(slope, part, gradient_[r % 2][v]);
      }
    }
  }

  HWY_INLINE void Store(bool with_gradient, double* sums) const {
    const D d;
    for (size_t v = 0; v < kVectors && with_gradient; ++v) {
      hn::StoreU(hn::Add(gradient_[0][v], gradient_[1][v]), d, sums + kSumW + v * kShortLanes);
    }
    sums[kSumB] = SumLanes(d, slope_sum_);
    sums[kSumLoss] = SumLanes(d, loss_sum_);
  }

  const LinearModel& model_;
  const size_t tail_;
  V weight_[kVectors];
  // Two chains of additions per vector: one alone would wait for its own latency.
  V gradient_[2][kVectors];
  V loss_sum_, slope_sum_;
};

// Longer rows: kLanes rows at a time pass twice through the cache, first for the predictions, then
// for the gradient. Each pass also fetches half of the next rows, so that the memory never idles
// while the other half of the work is done from cache.
template <class Row, typename T>
void LongRows(const LinearModel& model, const double* w, bool with_gradient, size_t begin,
              size_t end, double* sums) {
  const D64 d;
  const size_t whole = model.cols / kLanes * kLanes;
  const size_t tail = model.cols - whole;
  double* HWY_RESTRICT sum_w = sums + kSumW;
  if (with_gradient) std::fill(sum_w, sum_w + whole + kLanes, 0.0);
  V64 loss_sum = hn::Zero(d), slope_sum = hn::Zero(d);
  HWY_ALIGN double slopes[kLanes];
  constexpr size_t kHalf = kLanes / 2;

  const auto group = [&](size_t row, size_t count) HWY_ATTR {
    std::array<const T*, kLanes> x;
    for (size_t r = 0; r < kLanes; ++r) {
      x[r] = static_cast<const T*>(model.X) +
             static_cast<ptrdiff_t>(row + std::min(r, count - 1)) * model.x_stride;
    }
    // Past the last rows this asks for what is never read: a prefetch cannot fault.
    const ptrdiff_t ahead = static_cast<ptrdiff_t>(kLanes) * model.x_stride;

    std::array<V64, kLanes> dots;
    for (size_t r = 0; r < kLanes; ++r) dots[r] = hn::Zero(d);
    for (size_t j = 0; j < whole; j += kLanes) {
      const V64 weight = hn::LoadU(d, w + j);
      for (size_t r = 0; r < kLanes; ++r) {
        dots[r] = hn::MulAdd(weight, Loader<D64, T>::Whole(x[r] + j), dots[r]);
        if (r < kHalf) hwy::Prefetch(x[r] + j + ahead);
      }
    }
    if (tail != 0) {
      const V64 weight = hn::LoadU(d, w + whole);
      for (size_t r = 0; r < kLanes; ++r) {
        dots[r] = hn::MulAdd(weight, Loader<D64, T>::Part(x[r] + whole, tail), dots[r]);
      }
    }
    Score<Row>(d, model, row, count, SumEachRow(d, dots), loss_sum, slope_sum, slopes);
    if (!with_gradient) return;

    const auto accumulate = [&](size_t j, size_t present, auto load) HWY_ATTR {
      V64 gradient = hn::LoadU(d, sum_w + j);
      for (size_t r = 0; r < present; ++r) {
        gradient = hn::MulAdd(hn::Set(d, slopes[r]), load(x[r] + j), gradient);
      }
      hn::StoreU(gradient, d, sum_w + j);
    };
    const auto whole_vector = [](const T* p) HWY_ATTR { return Loader<D64, T>::Whole(p); };
    const auto part_vector = [tail](const T* p) HWY_ATTR { return Loader<D64, T>::Part(p, tail); };
    if (HWY_LIKELY(count == kLanes)) {
      for (size_t j = 0; j < whole; j += kLanes) {
        accumulate(j, kLanes, whole_vector);
        for (size_t r = kHalf; r < kLanes; ++r) hwy::Prefetch(x[r] + j + ahead);
      }
    } else {
      for (size_t j = 0; j < whole; j += kLanes) accumulate(j, count, whole_vector);
    }
    if (tail != 0) accumulate(whole, count, part_vector);
  };
  size_t row = begin;
  for (; row + kLanes <= end; row += kLanes) group(row, kLanes);
  if (row < end) group(row, end - row);

  sums[kSumB] = SumLanes(d, slope_sum);
  sums[kSumLoss] = SumLanes(d, loss_sum);
}

template <class Row, typename T>
void SumLoss(const LinearModel& model, const double* w, bool with_gradient, size_t begin,
             size_t end, double* sums) {
  static_assert(kShortVectors == 6);
  switch ((model.cols + kShortLanes - 1) / kShortLanes) {
    case 0:
    case 1:
      return ShortRows<Row, T, 1>::Sum(model, w, with_gradient, begin, end, sums);
    case 2:
      return ShortRows<Row, T, 2>::Sum(model, w, with_gradient, begin, end, sums);
    case 3:
      return ShortRows<Row, T, 3>::Sum(model, w, with_gradient, begin, end, sums);
    case 4:
      return ShortRows<Row, T, 4>::Sum(model, w, with_gradient, begin, end, sums);
    case 5:
      return ShortRows<Row, T, 5>::Sum(model, w, with_gradient, begin, end, sums);
    case 6:
      return ShortRows<Row, T, 6>::Sum(model, w, with_gradient, begin, end, sums);
    default:
      return LongRows<Row, T>(model, w, with_gradient, begin, end, sums);
  }
}

template <size_t... kRow>
constexpr std::array<LossKernels, sizeof...(kRow)> LossTableOf(std::index_sequence<kRow...>) {
  return {LossKernels{LossRow<kRow>::kName,
                      {SumLoss<LossRow<kRow>, float>, SumLoss<LossRow<kRow>, double>}}...};
}

std::span<const LossKernels> LossTable() {
  static constexpr auto kTable = LossTableOf(std::make_index_sequence<size_t{kLossRows}>());
  return kTable;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(LossTable);

std::span<const LossKernels> LossOps() { return HWY_DYNAMIC_DISPATCH(LossTable)(); }

namespace {

// Less X than this is summed before a parked worker would have woken.
constexpr size_t kParallelBytes = size_t{512} << 10;

void Accumulate(double* into, const double* from, size_t n) {
  for (size_t i = 0; i < n; ++i) into[i] += from[i];
}

// Sums of consecutive blocks, merged like the carries of a binary counter: rounding errors grow
// with the logarithm of the number of blocks, memory too.
class BlockTree {
 public:
  static size_t Levels(size_t blocks) { return static_cast<size_t>(std::bit_width(blocks)); }

  // `storage`: levels * width doubles. The total of all blocks ends in its first `width`.
  BlockTree(double* storage, size_t width) : storage_(storage), width_(width) {}

  // The kernel writes block number `count_` into the lowest free level and carries.
  template <class Write>
  void Add(const Write& write) {
    // A block that completes 2^k of them is the last carry: it lands on top of level k's slot.
    double* const fresh = storage_ + Occupied() * width_;
    write(fresh);
    double* top = fresh;
    for (size_t carries = count_; carries & 1; carries >>= 1) {
      double* const below = top - width_;
      Accumulate(below, top, width_);
      top = below;
    }
    ++count_;
  }

  void Finish() {
    for (size_t level = Occupied(); level > 1; --level) {
      Accumulate(storage_ + (level - 2) * width_, storage_ + (level - 1) * width_, width_);
    }
  }

 private:
  // Complete subtrees stand side by side, the largest first: one per set bit of the count.
  size_t Occupied() const { return static_cast<size_t>(std::popcount(count_)); }

  double* storage_;
  size_t width_;
  size_t count_ = 0;
};

}  // namespace

bool MeanLoss(LossKernel kernel, const LinearModel& model, double* loss, void* gw, double* gb,
              Poll* poll) {
  const ScopedDefaultFpEnv fp_env;
  const size_t padded = (model.cols / kLossPadding + 1) * kLossPadding;
  const size_t width = kSumW + padded;
  const size_t row_bytes = model.cols * ItemSize(model.x_dtype);
  const Partition slabs = RowPartition(model.rows, row_bytes);
  const size_t slab_rows = slabs(0).size();
  const size_t levels = BlockTree::Levels((slab_rows + kLossBlock - 1) / kLossBlock) + 1;
  const bool with_gradient = gw != nullptr;

  constexpr size_t kStackDoubles = 1024;
  alignas(kLossPadding * sizeof(double)) double stack[kStackDoubles];
  std::unique_ptr<double[]> heap;
  const size_t needed = padded + slabs.tasks * levels * width;
  void* scratch_start = stack;
  if (needed > kStackDoubles) {
    size_t bytes = (needed + kLossPadding) * sizeof(double);
    heap = std::make_unique_for_overwrite<double[]>(needed + kLossPadding);
    scratch_start = heap.get();
    std::align(kLossPadding * sizeof(double), needed * sizeof(double), scratch_start, bytes);
  }
  double* const w = static_cast<double*>(scratch_start);
  double* const scratch = w + padded;

  for (size_t j = 0; j < model.cols; ++j) {
    w[j] = model.w_dtype == DType::kFloat64 ? static_cast<const double*>(model.w)[j]
                                            : double{static_cast<const float*>(model.w)[j]};
  }
  std::fill(w + model.cols, w + padded, 0.0);

  const auto sum_slab = [&](size_t slab) {
    const auto [begin, end] = slabs(slab);
    BlockTree tree(scratch + slab * levels * width, width);
    for (size_t row = begin; row < end; row += kLossBlock) {
      const size_t stop = std::min(row + kLossBlock, end);
      tree.Add([&](double* sums) {
        if (!with_gradient) std::fill(sums, sums + width, 0.0);
        kernel(model, w, with_gradient, row, stop, sums);
      });
    }
    tree.Finish();
  };
  if (model.rows * row_bytes < kParallelBytes) {
    for (size_t slab = 0; slab < slabs.tasks; ++slab) sum_slab(slab);
  } else if (!ParallelFor(slabs.tasks, sum_slab, poll)) {
    return false;
  }

  for (size_t step = 1; step < slabs.tasks; step *= 2) {
    for (size_t slab = 0; slab + step < slabs.tasks; slab += 2 * step) {
      Accumulate(scratch + slab * levels * width, scratch + (slab + step) * levels * width, width);
    }
  }
  const auto n = static_cast<double>(model.rows);
  if (with_gradient) {
    for (size_t j = 0; j < model.cols; ++j) {
      const double mean = scratch[kSumW + j] / n;
      if (model.w_dtype == DType::kFloat64) {
        static_cast<double*>(gw)[j] = mean;
      } else {
        static_cast<float*>(gw)[j] = static_cast<float>(mean);
      }
    }
    *gb = scratch[kSumB] / n;
  }
  *loss = scratch[kSumLoss] / n;
  return true;
}

}  // namespace pullback
#endif  // HWY_ONCE

// Weighted Gram matrices: a slab of rows is packed into panels by the block, whose tiles on and
// above the diagonal are products of matmul's register blocks; rows of sparse X add their outer
// products.
#include "kernels/gram.h"

#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gram.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#include "kernels/gemm.h"
#include "kernels/load-inl.h"
#include "kernels/matmul-inl.h"
#include "kernels/sparse-inl.h"
#include "kernels/sums.h"
#include "runtime/partition.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

template <size_t kCount, typename T>
HWY_INLINE void CopyScaled(const T* HWY_RESTRICT from, double factor, double* HWY_RESTRICT to) {
  if constexpr (kCount > 0) {
    constexpr size_t kLanes =
        std::min(std::bit_floor(kCount), hn::MaxLanes(hn::ScalableTag<double>()));
    const hn::CappedTag<double, kLanes> d;
    const auto x = Loader<decltype(d), T>::Whole(from);
    hn::StoreU(hn::Mul(x, hn::Set(d, factor)), d, to);
    CopyScaled<kCount - kLanes>(from + kLanes, factor, to + kLanes);
  }
}

// As PackRows of matmul-inl.h.
template <size_t kWidth, typename T>
HWY_INLINE void PackScaled(const T* x, ptrdiff_t row, size_t cols, size_t depth, const double* c,
                           size_t c_step, double* to) {
  const hn::ScalableTag<double> d;
  const size_t lanes = hn::Lanes(d);
  constexpr size_t kStep = 8;
  const size_t panels = cols / kWidth, rest = cols % kWidth;
  for (size_t p = 0; p < depth; p += kStep) {
    const size_t stop = std::min(p + kStep, depth);
    for (size_t i = 0; i < panels; ++i) {
      for (size_t s = p; s < stop; ++s) {
        CopyScaled<kWidth>(x + static_cast<ptrdiff_t>(s) * row + i * kWidth,
                           c == nullptr ? 1.0 : c[s * c_step], to + (i * depth + s) * kWidth);
      }
    }
    for (size_t s = p; rest != 0 && s < stop; ++s) {
      const T* const from = x + static_cast<ptrdiff_t>(s) * row + panels * kWidth;
      double* const target = to + (panels * depth + s) * kWidth;
      const auto factor = hn::Set(d, c == nullptr ? 1.0 : c[s * c_step]);
      for (size_t j = 0; j < rest; j += lanes) {
        const auto part = LoadSome(d, from + j, std::min(lanes, rest - j));
        hn::StoreU(hn::Mul(part, factor), d, target + j);
      }
    }
  }
}

template <typename T>
void PackRowsOfX(size_t width, const void* x, ptrdiff_t row, size_t cols, size_t depth,
                 const double* c, size_t c_step, double* to) {
  const auto* const from = static_cast<const T*>(x);
  if (width == kRows) {
    PackScaled<kRows>(from, row, cols, depth, c, c_step, to);
  } else {
    PackScaled<PanelColumns<double>()>(from, row, cols, depth, c, c_step, to);
  }
}

// Panels of the register block's columns, without zeros behind the last.
void PackColumnsOfX(const double* x, ptrdiff_t row, ptrdiff_t col, size_t cols, size_t depth,
                    double* to) {
  constexpr size_t kWidth = PanelColumns<double>();
  for (size_t i = 0; i < cols; i += kWidth) {
    const size_t count = std::min(kWidth, cols - i);
    PackPanel(kWidth, x + static_cast<ptrdiff_t>(i) * col, col, row, count, count, depth,
              to + i * depth);
  }
}

// Whether n indices rise, so that the first of each pair is the lower one.
HWY_INLINE bool Rise(const uint32_t* at, size_t n) {
  const hn::ScalableTag<uint32_t> d;
  for (size_t i = 0; i + 1 < n; i += hn::Lanes(d)) {
    const auto rises = hn::Lt(hn::LoadU(d, at + i), hn::LoadU(d, at + i + 1));
    if (!hn::AllTrue(d, hn::Or(rises, hn::Not(hn::FirstN(d, n - 1 - i))))) return false;
  }
  return true;
}

// A row whose indices are in any order, or repeat, or that is not finite.
void AddAnyOuter(const uint32_t* at, const double* values, size_t n, double factor, size_t line,
                 double* sums) {
  for (size_t i = 0; i < n; ++i) {
    if (values[i] == 0) continue;
    const double left = factor * values[i];
    for (size_t j = i; j < n; ++j) {
      if (values[j] == 0) continue;
      const double term = left * values[j];
      sums[std::min(at[i], at[j]) * line + std::max(at[i], at[j])] +=
          i != j && at[i] == at[j] ? 2 * term : term;
    }
  }
}

void AddOuter(const SparseRows& X, const double* c, size_t c_step, bool intercept, bool guarded,
              size_t line, double* sums) {
  for (size_t r = 0; r < X.rows; ++r) {
    const double factor = c == nullptr ? 1.0 : c[r * c_step];
    if (factor == 0) continue;
    const size_t begin = X.bounds[r], n = X.bounds[r + 1] - begin;
    const uint32_t* HWY_RESTRICT const at = X.indices + begin;
    const double* HWY_RESTRICT const values = X.values + begin;
    if (intercept) {
      for (size_t i = 0; i < n; ++i) {
        if (values[i] != 0) sums[size_t{at[i]} * line + X.cols] += factor * values[i];
      }
      sums[X.cols * line + X.cols] += factor;
    }
    if (HWY_UNLIKELY(guarded || !Rise(at, n))) {
      AddAnyOuter(at, values, n, factor, line, sums);
      continue;
    }
    for (size_t i = 0; i < n; ++i) {
      const double left = factor * values[i];
      double* const row = sums + size_t{at[i]} * line;
      size_t j = i;
      for (; j + 2 <= n; j += 2) {
        row[at[j]] += left * values[j];
        row[at[j + 1]] += left * values[j + 1];
      }
      if (j < n) row[at[j]] += left * values[j];
    }
  }
}

const GramKernels* GramTable() {
  static constexpr GramKernels kTable = {{PackRowsOfX<float>, PackRowsOfX<double>},
                                         PackColumnsOfX,
                                         CopyBelow<int32_t>,
                                         CopyBelow<int64_t>,
                                         AddOuter};
  return &kTable;
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(GramTable);

namespace {

constexpr size_t kIndexRoom = 32;  // kIndexPadding
// Rows of packed panels that stay in L2 while they meet a panel of columns: a multiple of every
// register block's rows and columns.
constexpr size_t kTileRows = 240;
// A slab of fewer rows would cost more to merge than it computes; of more, its blocks would be too
// many to add up in a row.
constexpr size_t kLeastRows = 1024, kMostRows = 16384;
// Of wide X, whose sums leave the caches, so many blocks are packed before any of them is added.
constexpr size_t kWideColumns = 768;
constexpr size_t kWideBlocks = 4;
// Of thin X, so few rows are packed at once, which then stay in L1.
constexpr size_t kThinDepth = 64;
// Entries of sparse X that are read and checked at once.
constexpr size_t kChunkEntries = 32768;
constexpr size_t kMostChunkRows = 2048;

// Pieces of memory of one size, on loan to any thread; they are freed in the end.
class Pool {
 public:
  explicit Pool(size_t doubles) : doubles_(doubles) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    while (all_ != nullptr) std::free(std::exchange(all_, all_->previous));
  }

  // Null where there is no memory.
  double* Take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_ != nullptr) return Memory(std::exchange(free_, free_->next));
    if (doubles_ > SIZE_MAX / sizeof(double) / 2) return nullptr;
    void* const memory =
        std::aligned_alloc(Scratch<>::kAlignment, kHead + Scratch<>::Bytes<double>(doubles_));
    if (memory == nullptr) return nullptr;
    all_ = new (memory) Piece{all_, nullptr};
    return Memory(all_);
  }

  void Give(double* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto* const piece = reinterpret_cast<Piece*>(reinterpret_cast<char*>(memory) - kHead);
    piece->next = std::exchange(free_, piece);
  }

 private:
  struct Piece {
    Piece* previous;
    Piece* next;  // of those that are not on loan
  };
  static constexpr size_t kHead = Scratch<>::kAlignment;
  static double* Memory(Piece* piece) {
    return reinterpret_cast<double*>(reinterpret_cast<char*>(piece) + kHead);
  }

  const size_t doubles_;
  Piece* all_ = nullptr;
  Piece* free_ = nullptr;
  std::mutex mutex_;
};

// Sums of slabs, merged in pairs as soon as both are there, by whoever comes second: the tree is
// that of MergeTree, whatever their order, and few of them wait at a time.
class SlabSums {
 public:
  SlabSums(size_t slabs, size_t width) : slabs_(slabs), width_(width), pool_(width) {
    size_t nodes = 1;
    for (size_t n = slabs; n > 1; n = CeilDiv(n, 2)) nodes += n;
    waiting_.reset(new (std::nothrow) double*[nodes]());
  }

  explicit operator bool() const { return waiting_ != nullptr; }

  // Memory for one slab's sums, or null.
  double* Take() { return pool_.Take(); }

  // Takes them back, complete.
  void Add(size_t slab, double* sums) {
    double** level = waiting_.get();
    for (size_t n = slabs_; n > 1; level += n, n = CeilDiv(n, 2), slab /= 2) {
      const size_t sibling = slab ^ 1;
      if (sibling >= n) continue;
      double* other = nullptr;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        other = std::exchange(level[sibling], nullptr);
        if (other == nullptr) {
          level[slab] = sums;
          return;
        }
      }
      if (slab % 2 != 0) std::swap(sums, other);
      AddTo(sums, other, width_);
      pool_.Give(other);
    }
    total_ = sums;
  }

  const double* total() const { return total_; }

 private:
  const size_t slabs_, width_;
  Pool pool_;
  std::unique_ptr<double*[]> waiting_;  // of each level of the tree, the slabs' first
  double* total_ = nullptr;
  std::mutex mutex_;
};

// How many rows of dense X are packed at a time, and the doubles that this takes.
struct DensePlan {
  size_t depth, together, right, left, wide, straddling;

  size_t doubles() const {
    return together * (right + left) + wide + straddling + 6 * kDoublePadding;
  }
};

Partition SlabsOf(const GramProblem& p) {
  size_t least = kLeastRows;
  if (p.X.indptr != nullptr) {
    // Clearing, looking through and merging the sums is worth four times as many products.
    const double in_row = static_cast<double>(p.X.entries) / static_cast<double>(p.X.rows) + 1;
    const double size = static_cast<double>(p.size());
    least = static_cast<size_t>(
        std::clamp(4 * size * size / (in_row * in_row), static_cast<double>(least), 0x1p40));
  }
  const size_t block = std::clamp(CeilDiv(p.X.rows, kMaxSlabs), least, std::max(least, kMostRows));
  return PartitionBy(p.X.rows, block);
}

class Gram {
 public:
  Gram(const GramProblem& problem, Poll* poll)
      : p_(problem),
        X_(problem.X),
        size_(problem.size()),
        line_(RoundUp(size_, kDoublePadding) + kDoublePadding),
        slabs_(SlabsOf(problem)),
        products_(Contraction(DType::kFloat64, poll).kernels()),
        kernels_(*HWY_DYNAMIC_DISPATCH(GramTable)()),
        plan_(PlanOf(products_)),
        sums_(slabs_.tasks, problem.several * size_ * line_),
        panels_(plan_.doubles()),
        poll_(poll) {}

  // Not inlined: the caller guards the floating-point environment.
  HWY_NOINLINE Outcome Run(double* out, bool& found) {
    if (!sums_) return Outcome::kOutOfMemory;
    const auto slab = [this](size_t i) { Sum(i); };
    if (Work() < kParallelFlops) {
      for (size_t i = 0; i < slabs_.tasks; ++i) slab(i);
    } else if (!ParallelFor(slabs_.tasks, slab, poll_)) {
      return Outcome::kInterrupted;
    }
    if (stopped_) return Outcome::kInterrupted;
    if (no_memory_) return Outcome::kOutOfMemory;
    found = !outside_ && (X_.indptr == nullptr || walked_ == X_.listed());
    if (found) Write(out);
    return Outcome::kDone;
  }

 private:
  double Work() const {
    const auto rows = static_cast<double>(X_.rows), size = static_cast<double>(size_);
    const double in_row =
        X_.indptr == nullptr ? size : static_cast<double>(X_.entries) / (rows + 1);
    return rows * in_row * in_row * static_cast<double>(p_.several);
  }

  double* SumsOf(double* sums, size_t m) const { return sums + m * size_ * line_; }

  const double* FactorsOf(size_t row, size_t m) const {
    return p_.c == nullptr ? nullptr : p_.c + row * p_.several + m;
  }

  bool Stopped() {
    if (std::this_thread::get_id() == caller_ && Interrupted(poll_)) stopped_ = true;
    return stopped_.load(std::memory_order_relaxed) || no_memory_ || outside_;
  }

  void Sum(size_t slab) {
    if (Stopped()) return;
    double* const sums = sums_.Take();
    if (sums == nullptr) {
      no_memory_ = true;
      return;
    }
    const Range rows = slabs_(slab);
    const auto add = [&](bool guarded) {
      X_.indptr == nullptr ? SumDense(rows, guarded, sums) : SumSparse(rows, guarded, sums);
    };
    add(false);
    if (Stopped()) return;
    if (!IsFinite(sums)) add(true);
    if (!Stopped()) sums_.Add(slab, sums);
  }

  bool IsFinite(const double* sums) const {
    const auto all_finite = KernelsOfChunks().all_finite;
    for (size_t m = 0; m < p_.several; ++m) {
      for (size_t i = 0; i < size_; ++i) {
        if (!all_finite(SumsOf(const_cast<double*>(sums), m) + i * line_ + i, size_ - i))
          return false;
      }
    }
    return true;
  }

  // --- dense X ---

  DensePlan PlanOf(const MatmulKernels& products) const {
    const size_t width = products.columns, height = products.rows;
    const size_t slab = slabs_(0).size();
    const size_t blocks = CeilDiv(slab, size_ <= width ? kThinDepth : products.depth);
    const size_t depth = CeilDiv(slab, blocks);
    const size_t right = RoundUp(size_, width) * depth;
    return {depth,
            size_ < kWideColumns ? 1 : std::min(kWideBlocks, blocks),
            right,
            RoundUp(size_, height) * depth,
            p_.col != 1 && X_.dtype == DType::kFloat32 ? X_.cols * depth : 0,
            width % height == 0 ? 0 : right};
  }

  void SumDense(Range rows, bool guarded, double* sums) {
    double* const scratch = panels_.Take();
    if (scratch == nullptr) {
      no_memory_ = true;
      return;
    }
    SumDense(rows, guarded, scratch, sums);
    panels_.Give(scratch);
  }

  void SumDense(Range rows, bool guarded, double* scratch, double* sums) {
    const auto& [depth, most, right, left, wide, straddling] = plan_;
    // The guarded loops take one block at a time.
    const size_t together = guarded ? 1 : most;
    double* const b = scratch;
    double* const a = b + together * right + kDoublePadding;
    double* const columns = a + together * left + kDoublePadding;
    double* const whole_rows = columns + wide;
    const bool widened = wide != 0;
    if (guarded) std::fill_n(sums, p_.several * size_ * line_, 0.0);
    for (size_t row = rows.begin; row < rows.end; row += together * depth) {
      const Partition parts = PartitionBy(std::min(together * depth, rows.end - row), depth);
      for (size_t i = 0; i < parts.tasks; ++i) {
        const size_t n = parts(i).size();
        const void* from = At(row + i * depth);
        if (widened) {
          Widen(static_cast<const float*>(from), n, columns);
          from = columns;
        }
        PackRight(from, n, b + i * right);
      }
      for (size_t m = 0; m < p_.several; ++m) {
        for (size_t i = 0; i < parts.tasks; ++i) {
          PackLeft(b + i * right, parts(i).size(), FactorsOf(row + i * depth, m), whole_rows,
                   a + i * left);
        }
        double* const to = SumsOf(sums, m);
        if (guarded && !IsFiniteBlock(a, b, parts.n)) {
          AddGuarded(a, b, FactorsOf(row, m), parts.n, to);
        } else if (!Multiply(a, left, b, right, parts, guarded || row > rows.begin, to)) {
          return;
        }
      }
    }
  }

  const char* At(size_t row) const {
    return static_cast<const char*>(X_.data) + Bytes(static_cast<ptrdiff_t>(row) * p_.row);
  }

  ptrdiff_t Bytes(ptrdiff_t elements) const {
    return elements * static_cast<ptrdiff_t>(ItemSize(X_.dtype));
  }

  void Widen(const float* from, size_t n, double* to) const {
    for (size_t j = 0; j < X_.cols; ++j, to += n) {
      const float* const column = from + static_cast<ptrdiff_t>(j) * p_.col;
      if (p_.row == 1) {
        std::copy_n(column, n, to);
      } else {
        for (size_t r = 0; r < n; ++r) to[r] = column[static_cast<ptrdiff_t>(r) * p_.row];
      }
    }
  }

  // n rows of X, or of widened columns, into panels of the right operand.
  void PackRight(const void* from, size_t n, double* to) const {
    const size_t width = products_.columns;
    if (p_.col == 1) {
      Pack(X_.dtype, width, from, p_.row, X_.cols, n, nullptr, to);
    } else {
      const bool widened = X_.dtype == DType::kFloat32;
      kernels_.pack_columns(static_cast<const double*>(from), widened ? 1 : p_.row,
                            widened ? static_cast<ptrdiff_t>(n) : p_.col, X_.cols, n, to);
    }
    if (!p_.intercept) return;
    double* const ones = to + X_.cols / width * width * n + X_.cols % width;
    for (size_t r = 0; r < n; ++r) ones[r * width] = 1.0;
  }

  // The left operand, from the panels of the right one: each is a matrix of rows.
  void PackLeft(const double* right, size_t n, const double* c, double* rows, double* to) const {
    const size_t width = products_.columns, height = products_.rows;
    const auto line = static_cast<ptrdiff_t>(width);
    if (width % height == 0) {
      for (size_t j = 0; j < size_; j += width) {
        Pack(DType::kFloat64, height, right + j * n, line, std::min(width, size_ - j), n, c,
             to + j * n);
      }
      return;
    }
    // Panels that do not end together: by way of whole rows.
    const size_t whole = RoundUp(size_, width);
    for (size_t j = 0; j < whole; j += width) {
      for (size_t r = 0; r < n; ++r) {
        std::copy_n(right + j * n + r * width, width, rows + r * whole + j);
      }
    }
    Pack(DType::kFloat64, height, rows, static_cast<ptrdiff_t>(whole), size_, n, c, to);
  }

  void Pack(DType dtype, size_t width, const void* from, ptrdiff_t row, size_t cols, size_t n,
            const double* c, double* to) const {
    kernels_.pack[static_cast<size_t>(dtype)](width, from, row, cols, n, c, p_.several, to);
  }

  // C = or += the sum of A B of parts, which lie `left` and `right` apart, on and above the
  // diagonal; false when it stops on the way.
  bool Multiply(const double* a, size_t left, const double* b, size_t right, const Partition& parts,
                bool add, double* c) {
    const size_t width = products_.columns, height = products_.rows;
    const size_t most = kTileRows / std::min<size_t>(parts.tasks, 2);
    BlockProduct block = {};
    block.a_packed = true;
    block.c_row = static_cast<ptrdiff_t>(line_);
    block.c_col = 1;
    for (size_t top = 0; top < size_; top += most) {
      if (top > 0 && Stopped()) return false;
      const size_t bottom = std::min(top + most, size_);
      for (size_t j = top / width * width; j < size_; j += width) {
        const size_t n = std::min(width, size_ - j);
        const size_t whole = j >= bottom ? bottom : std::max(j / height * height, top);
        for (size_t part = 0; part < parts.tasks; ++part) {
          const size_t depth = parts(part).size();
          block.add = add || part > 0;
          const auto tile = [&](size_t i, size_t m, size_t skipped) {
            block.size = {m, n - skipped, depth};
            block.a = a + part * left + i * depth;
            block.b = b + part * right + j * depth + skipped;
            block.c = c + i * line_ + j + skipped;
            products_.multiply(block);
          };
          if (whole > top) tile(top, whole - top, 0);
          for (size_t i = whole; i < std::min(bottom, j + n); i += height) {
            const size_t skipped = i > j ? (i - j) / kDoublePadding * kDoublePadding : 0;
            tile(i, std::min(height, bottom - i), skipped);
          }
        }
      }
    }
    return true;
  }

  // Element (r, i) of panels.
  static size_t Place(size_t width, size_t depth, size_t r, size_t i) {
    return (i / width * depth + r) * width + i % width;
  }

  bool IsFiniteBlock(const double* a, const double* b, size_t depth) const {
    for (size_t i = 0; i < size_; ++i) {
      for (size_t r = 0; r < depth; ++r) {
        if (!std::isfinite(a[Place(products_.rows, depth, r, i)]) ||
            !std::isfinite(b[Place(products_.columns, depth, r, i)])) {
          return false;
        }
      }
    }
    return true;
  }

  void AddGuarded(const double* a, const double* b, const double* c, size_t depth,
                  double* sums) const {
    for (size_t r = 0; r < depth; ++r) {
      if (c != nullptr && c[r * p_.several] == 0) continue;
      for (size_t i = 0; i < size_; ++i) {
        if (b[Place(products_.columns, depth, r, i)] == 0) continue;
        const double left = a[Place(products_.rows, depth, r, i)];
        for (size_t j = i; j < size_; ++j) {
          const double right = b[Place(products_.columns, depth, r, j)];
          if (right != 0) sums[i * line_ + j] += left * right;
        }
      }
    }
  }

  // --- sparse X ---

  void SumSparse(Range rows, bool guarded, double* sums) {
    std::fill_n(sums, p_.several * size_ * line_, 0.0);
    const size_t listed = X_.wide ? SumSparseOf<int64_t>(rows, guarded, sums)
                                  : SumSparseOf<int32_t>(rows, guarded, sums);
    if (!guarded) walked_ += listed;
  }

  template <typename Index>
  bool CopyIndices(const Index* from, size_t n, uint32_t* to) const {
    if constexpr (sizeof(Index) == sizeof(int64_t)) {
      return kernels_.copy_wide(from, n, X_.cols, to);
    } else {
      return kernels_.copy_narrow(from, n, X_.cols, to);
    }
  }

  void AddRows(size_t row, const SparseRows& chunk, bool guarded, double* sums) const {
    for (size_t m = 0; m < p_.several; ++m) {
      kernels_.add_outer(chunk, FactorsOf(row, m), p_.several, p_.intercept, guarded, line_,
                         SumsOf(sums, m));
    }
  }

  void Values(size_t begin, size_t n, double* to) const {
    if (X_.dtype == DType::kFloat64) {
      std::copy_n(static_cast<const double*>(X_.data) + begin, n, to);
    } else {
      std::copy_n(static_cast<const float*>(X_.data) + begin, n, to);
    }
  }

  // Returns how many entries the rows have.
  template <typename Index>
  size_t SumSparseOf(Range rows, bool guarded, double* sums) {
    const auto* const indptr = static_cast<const Index*>(X_.indptr);
    const auto* const indices = static_cast<const Index*>(X_.indices);
    const size_t in_row = X_.entries / X_.rows + 1;
    const size_t step = std::clamp<size_t>(kChunkEntries / in_row, 1, kMostChunkRows);
    // Of CSC, where each column's entries go on, and where they end.
    const bool by_columns = X_.layout == Layout::kCsc;
    const std::unique_ptr<Range[]> columns(by_columns ? new (std::nothrow) Range[X_.cols]
                                                      : nullptr);
    const std::unique_ptr<size_t[]> ends(by_columns ? new (std::nothrow) size_t[X_.cols] : nullptr);
    if (by_columns) {
      if (!columns || !ends) {
        no_memory_ = true;
        return 0;
      }
      for (size_t j = 0; j < X_.cols; ++j) {
        const Index begin = Once(indptr + j), end = Once(indptr + j + 1);
        if (!IsSpan(begin, end)) return Outside();
        columns[j] = {
            FindRow(indices, {static_cast<size_t>(begin), static_cast<size_t>(end)}, rows.begin),
            static_cast<size_t>(end)};
      }
    }
    size_t bounds[kMostChunkRows + 1];
    size_t listed = 0;
    for (size_t row = rows.begin; row < rows.end; row += step) {
      if (Stopped()) return 0;
      const Range chunk = {row, std::min(row + step, rows.end)};
      const size_t n = by_columns ? CountColumns(indices, chunk, columns.get(), ends.get())
                                  : ReadBounds(indptr, chunk, bounds);
      if (n == SIZE_MAX) return Outside();
      Scratch<0, Heap::kOfThread> scratch((2 * n + kIndexRoom) * sizeof(uint32_t) +
                                          n * sizeof(double) + 4 * Scratch<>::kAlignment);
      if (!scratch) {
        no_memory_ = true;
        return 0;
      }
      auto* const own = scratch.Take<uint32_t>(n + kIndexRoom);
      auto* const values = scratch.Take<double>(n);
      if (by_columns) {
        if (!TransposeColumns(indices, chunk, columns.get(), ends.get(), scratch.Take<uint32_t>(n),
                              bounds, own, values)) {
          return Outside();
        }
      } else {
        const size_t first = bounds[0];
        if (!CopyIndices(indices + first, n, own)) return Outside();
        Values(first, n, values);
        for (size_t r = 0; r <= chunk.size(); ++r) bounds[r] -= first;
      }
      listed += n;
      AddRows(row, {chunk.size(), X_.cols, bounds, own, values}, guarded, sums);
    }
    return listed;
  }

  size_t Outside() {
    outside_ = true;
    return 0;
  }

  template <typename Index>
  static Index Once(const Index* p) {
    return *static_cast<const volatile Index*>(p);
  }

  template <typename Index>
  bool IsSpan(Index begin, Index end) const {
    return static_cast<size_t>(begin) <= static_cast<size_t>(end) &&
           static_cast<size_t>(end) <= X_.entries;
  }

  // Where rows of CSR begin and end; their entries, or SIZE_MAX.
  template <typename Index>
  size_t ReadBounds(const Index* indptr, Range rows, size_t* bounds) const {
    Index last = Once(indptr + rows.begin);
    bounds[0] = static_cast<size_t>(last);
    for (size_t r = 0; r < rows.size(); ++r) {
      const Index next = Once(indptr + rows.begin + r + 1);
      if (!IsSpan(last, next)) return SIZE_MAX;
      bounds[r + 1] = static_cast<size_t>(last = next);
    }
    return bounds[rows.size()] - bounds[0];
  }

  // The first entry of a column that is not above a row.
  template <typename Index>
  static size_t FindRow(const Index* indices, Range entries, size_t row) {
    while (entries.size() > 0) {
      const size_t middle = entries.begin + entries.size() / 2;
      if (static_cast<size_t>(Once(indices + middle)) < row) {
        entries.begin = middle + 1;
      } else {
        entries.end = middle;
      }
    }
    return entries.begin;
  }

  // Where a chunk's part of a column ends: it is most often short.
  template <typename Index>
  static size_t FindEnd(const Index* indices, Range column, size_t row) {
    size_t reach = 16;
    while (reach < column.size() &&
           static_cast<size_t>(Once(indices + column.begin + reach)) < row) {
      reach *= 2;
    }
    return FindRow(indices, {column.begin, column.begin + std::min(reach, column.size())}, row);
  }

  // Entries of a chunk of rows of CSC. If columns do not rise, some are missing, or out of range.
  template <typename Index>
  size_t CountColumns(const Index* indices, Range chunk, const Range* columns, size_t* ends) const {
    size_t n = 0;
    for (size_t j = 0; j < X_.cols; ++j) {
      ends[j] = FindEnd(indices, columns[j], chunk.end);
      n += ends[j] - columns[j].begin;
    }
    return n;
  }

  // Sorts the entries of a chunk by row, and moves on in the columns. Indices are read once, into
  // `rows`.
  template <typename Index>
  bool TransposeColumns(const Index* indices, Range chunk, Range* columns, const size_t* ends,
                        uint32_t* rows, size_t* bounds, uint32_t* to, double* values) const {
    std::fill_n(bounds, chunk.size() + 1, size_t{0});
    size_t n = 0;
    for (size_t j = 0; j < X_.cols; ++j) {
      for (size_t i = columns[j].begin; i < ends[j]; ++i, ++n) {
        const size_t row = static_cast<size_t>(Once(indices + i)) - chunk.begin;
        if (row >= chunk.size()) return false;
        rows[n] = static_cast<uint32_t>(row);
        ++bounds[row + 1];
      }
    }
    for (size_t r = 0; r < chunk.size(); ++r) bounds[r + 1] += bounds[r];
    // Each row's bound moves on as it is filled, up to the next row's.
    n = 0;
    for (size_t j = 0; j < X_.cols; ++j) {
      for (size_t i = columns[j].begin; i < ends[j]; ++i, ++n) {
        const size_t at = bounds[rows[n]]++;
        to[at] = static_cast<uint32_t>(j);
        values[at] = X_.dtype == DType::kFloat64 ? static_cast<const double*>(X_.data)[i]
                                                 : double{static_cast<const float*>(X_.data)[i]};
      }
      columns[j].begin = ends[j];
    }
    std::fill_n(to + n, kIndexRoom, 0U);
    for (size_t r = chunk.size(); r > 0; --r) bounds[r] = bounds[r - 1];
    bounds[0] = 0;
    return true;
  }

  // --- the result ---

  void Write(double* out) const {
    constexpr size_t kSide = 32;
    for (size_t m = 0; m < p_.several; ++m, out += size_ * size_) {
      const double* const sums = SumsOf(const_cast<double*>(sums_.total()), m);
      for (size_t top = 0; top < size_; top += kSide) {
        for (size_t left = top; left < size_; left += kSide) {
          const size_t bottom = std::min(top + kSide, size_), right = std::min(left + kSide, size_);
          for (size_t i = top; i < bottom; ++i) {
            for (size_t j = std::max(i, left); j < right; ++j) {
              out[i * size_ + j] = out[j * size_ + i] = sums[i * line_ + j];
            }
          }
        }
      }
    }
  }

  const GramProblem& p_;
  const Design& X_;
  const size_t size_, line_;
  const Partition slabs_;
  const MatmulKernels& products_;
  const GramKernels& kernels_;
  const DensePlan plan_;
  SlabSums sums_;
  Pool panels_;
  Poll* poll_;
  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<bool> stopped_ = false, no_memory_ = false, outside_ = false;
  std::atomic<size_t> walked_ = 0;  // entries of sparse X
};

}  // namespace

Outcome SumGram(const GramProblem& problem, double* out, bool& found, Poll* poll) {
  const KernelFpEnv fp_env(poll);
  Gram gram(problem, poll);
  return gram.Run(out, found);
}

}  // namespace pullback
#endif  // HWY_ONCE

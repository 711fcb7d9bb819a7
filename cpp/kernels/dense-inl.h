// The loops of the one-pass losses: rows of X in, sums of loss and gradient out.
//
// A row is needed twice, for its prediction and, scaled by the loss's slope, for the gradient. It
// is read from memory once and taken from registers or cache the second time; what that takes
// depends on how long the rows are.
#if defined(PULLBACK_CPP_KERNELS_LOSSES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_LOSSES_INL_H_
#undef PULLBACK_CPP_KERNELS_LOSSES_INL_H_
#else
#define PULLBACK_CPP_KERNELS_LOSSES_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstddef>

#include "kernels/load-inl.h"
#include "kernels/losses.h"
#include "runtime/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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

template <typename T>
HWY_INLINE const T* RowOf(const LinearModel& model, size_t row) {
  return static_cast<const T*>(model.X) + static_cast<ptrdiff_t>(row) * model.x_stride;
}

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

// Rows are cut into vectors of at most four lanes unless they are very long. Wider ones straddle
// cache lines at every load, since NumPy aligns to 16 bytes, and of short rows the last vector
// would be mostly empty: eight lanes took 1.4 x the time at 10 columns and 1.2 x at 100.
using Tag = hn::CappedTag<double, 4>;
using WideTag = hn::ScalableTag<double>;
using V = hn::Vec<Tag>;
constexpr size_t kLanes = hn::MaxLanes(Tag());

// --- rows of a few vectors -----------------------------------------------------------------------

// Up to this many vectors a row the gradient stays in registers.
constexpr size_t kShortVectors = 6;

template <class Row, typename T, size_t kVectors>
class ShortRows {
 public:
  static void Sum(const LinearModel& model, const double* w, bool with_gradient, size_t begin,
                  size_t end, double* sums) {
    ShortRows rows(model, w);
    // Backward lags a group behind forward, so that it never waits for the slopes (1.2 x faster).
    Group a, b;
    size_t row = begin;
    if (row + kLanes <= end) {
      rows.template Forward<true>(row, kLanes, a);
      for (row += kLanes; row + 2 * kLanes <= end; row += 2 * kLanes) {
        rows.template Forward<true>(row, kLanes, b);
        rows.template Backward<true>(row - kLanes, kLanes, a, with_gradient);
        rows.template Forward<true>(row + kLanes, kLanes, a);
        rows.template Backward<true>(row, kLanes, b, with_gradient);
      }
      rows.template Backward<true>(row - kLanes, kLanes, a, with_gradient);
    }
    for (; row < end; row += kLanes) {
      const size_t count = std::min(kLanes, end - row);
      rows.template Forward<false>(row, count, b);
      rows.template Backward<false>(row, count, b, with_gradient);
    }
    rows.Store(with_gradient, sums);
  }

 private:
  // With 32 registers, rows of so many vectors stay in them between the passes.
  static constexpr size_t kKept = HWY_TARGET <= HWY_AVX3 && kVectors <= 5 ? kVectors : 0;

  struct Group {
    V kept[kLanes][kKept + 1];
    HWY_ALIGN double slopes[kLanes];
  };

  HWY_INLINE ShortRows(const LinearModel& model, const double* w)
      : model_(model), tail_(model.cols - (kVectors - 1) * kLanes) {
    const Tag d;
    PB_UNROLL
    for (size_t v = 0; v < kVectors; ++v) {
      weight_[v] = hn::LoadU(d, w + v * kLanes);
      gradient_[0][v] = gradient_[1][v] = hn::Zero(d);
    }
    loss_sum_ = slope_sum_ = hn::Zero(d);
  }

  HWY_INLINE V Part(const T* row, size_t v) const {
    const T* const p = row + v * kLanes;
    return v + 1 < kVectors ? Loader<Tag, T>::Whole(p) : Loader<Tag, T>::Part(p, tail_);
  }

  template <bool kFull>
  HWY_INLINE void Forward(size_t row, size_t count, Group& group) {
    const Tag d;
    std::array<V, kLanes> dots;
    PB_UNROLL
    for (size_t r = 0; r < kLanes; ++r) {
      dots[r] = hn::Zero(d);
      if (!kFull && r >= count) continue;
      const T* const x = RowOf<T>(model_, row + r);
      PB_UNROLL
      for (size_t v = 0; v < kVectors; ++v) {
        const V part = Part(x, v);
        if (v < kKept) group.kept[r][v] = part;
        dots[r] = v == 0 ? hn::Mul(weight_[v], part) : hn::MulAdd(weight_[v], part, dots[r]);
      }
    }
    Score<Row>(d, model_, row, kFull ? kLanes : count, SumEachRow(d, dots), loss_sum_, slope_sum_,
               group.slopes);
  }

  template <bool kFull>
  HWY_INLINE void Backward(size_t row, size_t count, const Group& group, bool with_gradient) {
    if (!with_gradient) return;
    const Tag d;
    PB_UNROLL
    for (size_t r = 0; r < kLanes; ++r) {
      if (!kFull && r >= count) break;
      const T* const x = RowOf<T>(model_, row + r);
      const V slope = hn::Set(d, group.slopes[r]);
      PB_UNROLL
      for (size_t v = 0; v < kVectors; ++v) {
        const V part = v < kKept ? group.kept[r][v] : Part(x, v);
        gradient_[r % 2][v] = hn::MulAdd(slope, part, gradient_[r % 2][v]);
      }
    }
  }

  HWY_INLINE void Store(bool with_gradient, double* sums) const {
    const Tag d;
    PB_UNROLL
    for (size_t v = 0; v < kVectors && with_gradient; ++v) {
      hn::StoreU(hn::Add(gradient_[0][v], gradient_[1][v]), d, sums + kSumW + v * kLanes);
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

// --- longer rows ---------------------------------------------------------------------------------

// How the rows of a group are read for their predictions; side by side, the next group is fetched
// meanwhile, into the cache that is worth it.
enum class Order { kRowByRow, kSideBySideIntoL1, kSideBySideIntoL2 };

// A group of rows passes twice, the second time from cache.
template <class Row, typename T, class D, Order kOrder, size_t kGroup>
class Rows {
 public:
  static void Sum(const LinearModel& model, const double* w, bool with_gradient, size_t begin,
                  size_t end, double* sums) {
    Rows rows(model, w, sums + kSumW);
    if (with_gradient) std::fill(rows.sum_w_, rows.sum_w_ + rows.whole_ + kLanes, 0.0);
    size_t row = begin;
    for (; row + kGroup <= end; row += kGroup) rows.template Add<true>(row, kGroup, with_gradient);
    if (row < end) rows.template Add<false>(row, end - row, with_gradient);
    sums[kSumB] = SumLanes(D(), rows.slope_sum_);
    sums[kSumLoss] = SumLanes(D(), rows.loss_sum_);
  }

 private:
  using V = hn::Vec<D>;
  static constexpr size_t kLanes = hn::MaxLanes(D());
  static constexpr size_t kDots = std::max(kGroup, kLanes);

  // Rows read side by side are fetched a group ahead, half of them during each pass, so that memory
  // never idles: every second cache line passed, the next line of the next rows is asked for.
  class Fetch {
   public:
    HWY_INLINE void Pass(const T* const (&x)[kGroup], size_t j, ptrdiff_t ahead) {
      if (kOrder == Order::kRowByRow || j < due_) return;
      for (size_t r = 0; r < kGroup; ++r) {
        const T* const p = x[r] + fetched_ + ahead;
        kOrder == Order::kSideBySideIntoL1 ? hwy::Prefetch(p) : PrefetchIntoL2(p);
      }
      fetched_ += kLine;
      due_ += 2 * kLine;
    }
    HWY_INLINE void NextPass() { due_ = 0; }

   private:
    static constexpr size_t kLine = 64 / sizeof(T);
    size_t fetched_ = 0, due_ = 0;
  };

  HWY_INLINE Rows(const LinearModel& model, const double* w, double* sum_w)
      : model_(model),
        w_(w),
        sum_w_(sum_w),
        whole_(model.cols / kLanes * kLanes),
        tail_(model.cols - whole_),
        ahead_(static_cast<ptrdiff_t>(kGroup) * model.x_stride),
        loss_sum_(hn::Zero(D())),
        slope_sum_(hn::Zero(D())) {}

  template <bool kFull>
  HWY_INLINE void Add(size_t row, size_t count, bool with_gradient) {
    const D d;
    const T* x[kGroup];
    for (size_t r = 0; r < kGroup; ++r) {
      x[r] = RowOf<T>(model_, row + (kFull ? r : std::min(r, count - 1)));
    }
    Fetch fetch;
    const std::array<V, kDots> dots =
        kOrder == Order::kRowByRow ? DotsRowByRow(x) : DotsSideBySide(x, fetch);
    HWY_ALIGN double slopes[kDots] = {};
    for (size_t first = 0; first < kGroup && first < count; first += kLanes) {
      std::array<V, kLanes> some;
      std::copy_n(dots.begin() + first, kLanes, some.begin());
      Score<Row>(d, model_, row + first,
                 kFull ? std::min(kLanes, kGroup) : std::min(kLanes, count - first),
                 SumEachRow(d, some), loss_sum_, slope_sum_, slopes + first);
    }
    if (with_gradient) Backward<kFull>(x, count, slopes, fetch);
  }

  // For rows so long that w does not stay in L1: each part of it serves all rows.
  HWY_INLINE std::array<V, kDots> DotsSideBySide(const T* const (&x)[kGroup], Fetch& fetch) const {
    const D d;
    std::array<V, kDots> dots;
    for (V& dot : dots) dot = hn::Zero(d);
    for (size_t j = 0; j < whole_; j += kLanes) {
      fetch.Pass(x, j, ahead_);
      const V weight = hn::LoadU(d, w_ + j);
      PB_UNROLL
      for (size_t r = 0; r < kGroup; ++r) {
        dots[r] = hn::MulAdd(weight, Loader<D, T>::Whole(x[r] + j), dots[r]);
      }
    }
    if (tail_ != 0) {
      const V weight = hn::LoadU(d, w_ + whole_);
      PB_UNROLL
      for (size_t r = 0; r < kGroup; ++r) {
        dots[r] = hn::MulAdd(weight, Loader<D, T>::Part(x[r] + whole_, tail_), dots[r]);
      }
    }
    return dots;
  }

  // In the order of memory, which the hardware's prefetcher needs: of short rows read side by side
  // it sees nothing but beginnings (at 100 columns a third of the speed).
  HWY_INLINE std::array<V, kDots> DotsRowByRow(const T* const (&x)[kGroup]) const {
    const D d;
    const auto step = [&](const T* row, size_t j, V sum) HWY_ATTR {
      return hn::MulAdd(hn::LoadU(d, w_ + j), Loader<D, T>::Whole(row + j), sum);
    };
    std::array<V, kDots> dots;
    for (V& dot : dots) dot = hn::Zero(d);
    for (size_t r = 0; r < kGroup; ++r) {
      V s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
      size_t j = 0;
      for (; j + 4 * kLanes <= whole_; j += 4 * kLanes) {
        s0 = step(x[r], j, s0);
        s1 = step(x[r], j + kLanes, s1);
        s2 = step(x[r], j + 2 * kLanes, s2);
        s3 = step(x[r], j + 3 * kLanes, s3);
      }
      for (; j < whole_; j += kLanes) s0 = step(x[r], j, s0);
      if (tail_ != 0) {
        s1 = hn::MulAdd(hn::LoadU(d, w_ + j), Loader<D, T>::Part(x[r] + j, tail_), s1);
      }
      dots[r] = hn::Add(hn::Add(s0, s1), hn::Add(s2, s3));
    }
    return dots;
  }

  template <bool kFull>
  HWY_INLINE void Backward(const T* const (&x)[kGroup], size_t count, const double* slopes,
                           Fetch& fetch) {
    const D d;
    V slope[kGroup];
    for (size_t r = 0; r < kGroup; ++r) slope[r] = hn::Set(d, slopes[r]);
    fetch.NextPass();
    for (size_t j = 0; j < whole_; j += kLanes) {
      fetch.Pass(x, j, ahead_);
      V gradient = hn::LoadU(d, sum_w_ + j);
      PB_UNROLL
      for (size_t r = 0; r < kGroup; ++r) {
        if (!kFull && r >= count) break;
        gradient = hn::MulAdd(slope[r], Loader<D, T>::Whole(x[r] + j), gradient);
      }
      hn::StoreU(gradient, d, sum_w_ + j);
    }
    if (tail_ != 0) {
      V gradient = hn::LoadU(d, sum_w_ + whole_);
      for (size_t r = 0; r < kGroup; ++r) {
        if (!kFull && r >= count) break;
        gradient = hn::MulAdd(slope[r], Loader<D, T>::Part(x[r] + whole_, tail_), gradient);
      }
      hn::StoreU(gradient, d, sum_w_ + whole_);
    }
  }

  const LinearModel& model_;
  const double* HWY_RESTRICT w_;
  double* HWY_RESTRICT sum_w_;
  const size_t whole_, tail_;
  const ptrdiff_t ahead_;  // also past the last rows: a prefetch cannot fault
  V loss_sum_, slope_sum_;
};

// --- by length of the rows -----------------------------------------------------------------------

// X of at most so many bytes is taken to be in the last-level cache, where rows side by side cost
// nothing (at 10000 x 100: 0.75 x the time of row by row, and 3 x from memory).
constexpr size_t kCachedBytes = size_t{16} << 20;
// From memory, longer rows are read side by side; even longer ones one by one, or they would have
// left the cache before the second pass.
constexpr size_t kLongRowBytes = 4096;
constexpr size_t kHugeRowBytes = 65536;

template <class Row, typename T>
void SumLoss(const LinearModel& model, const double* w, bool with_gradient, size_t begin,
             size_t end, double* sums) {
  static_assert(kShortVectors == 6);
  switch ((model.cols + kLanes - 1) / kLanes) {
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
      const size_t row_bytes = model.cols * sizeof(T);
      const auto sum = [&](auto rows) { rows(model, w, with_gradient, begin, end, sums); };
      if (row_bytes > kHugeRowBytes) {
        return sum(Rows<Row, T, Tag, Order::kRowByRow, 1>::Sum);
      }
      if (model.rows * row_bytes <= kCachedBytes) {
        return sum(Rows<Row, T, Tag, Order::kSideBySideIntoL1, 8>::Sum);
      }
      if (row_bytes > kLongRowBytes) {
        return sum(Rows<Row, T, WideTag, Order::kSideBySideIntoL2, 8>::Sum);
      }
      return sum(Rows<Row, T, Tag, Order::kRowByRow, kLanes>::Sum);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

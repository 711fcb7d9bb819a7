// The loops of reductions, written once: a row of the table in, its kernels out.
#if defined(PULLBACK_CPP_KERNELS_REDUCTIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_REDUCTIONS_INL_H_
#undef PULLBACK_CPP_KERNELS_REDUCTIONS_INL_H_
#else
#define PULLBACK_CPP_KERNELS_REDUCTIONS_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/load-inl.h"
#include "kernels/reductions.h"
#include "ops/reductions-inl.h"
#include "runtime/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// --- lanes of x's type and of double -------------------------------------------------------------

template <typename T>
struct Lanes {
  using D = hn::ScalableTag<T>;
  using V = hn::Vec<D>;
  using Wide = hn::ScalableTag<double>;
  using W = hn::Vec<Wide>;
  static constexpr size_t kLanes = hn::MaxLanes(D());
  static constexpr size_t kWide = hn::MaxLanes(Wide());
  static constexpr size_t kParts = kLanes / kWide;
  using Parts = std::array<W, kParts>;

  static HWY_INLINE V Load(const T* p, size_t count) {
    return HWY_LIKELY(count == kLanes) ? hn::LoadU(D(), p) : LoadTail(D(), p, count);
  }
  static HWY_INLINE void Store(V v, T* p, size_t count) {
    if (HWY_LIKELY(count == kLanes)) {
      hn::StoreU(v, D(), p);
    } else {
      StoreTail(v, D(), p, count);
    }
  }

  static HWY_INLINE Parts Widen(V v) {
    if constexpr (std::is_same_v<T, double>) {
      return {v};
    } else {
#if HWY_TARGET == HWY_SCALAR
      return {hn::PromoteTo(Wide(), v)};
#else
      const hn::Half<D> half;
      return {hn::PromoteTo(Wide(), hn::LowerHalf(half, v)),
              hn::PromoteTo(Wide(), hn::UpperHalf(half, v))};
#endif
    }
  }
  static HWY_INLINE V Narrow(const Parts& parts) {
    if constexpr (std::is_same_v<T, double>) {
      return parts[0];
    } else {
#if HWY_TARGET == HWY_SCALAR
      // Highway's own makes the largest float of what overflows.
      return hn::Set(D(), static_cast<float>(hn::GetLane(parts[0])));
#else
      const hn::Half<D> half;
      return hn::Combine(D(), hn::DemoteTo(half, parts[1]), hn::DemoteTo(half, parts[0]));
#endif
    }
  }
  // Those of a part's lanes that are among the first `count` of all.
  static HWY_INLINE auto First(size_t part, size_t count) {
    const size_t before = part * kWide;
    return hn::FirstN(Wide(), count > before ? std::min(count - before, kWide) : 0);
  }
};

// --- pivots --------------------------------------------------------------------------------------

template <Pivot kKind>
struct Fold {
  template <typename T>
  static constexpr T kStart = kKind == Pivot::kSmallest ? std::numeric_limits<T>::infinity()
                              : kKind == Pivot::kMaxAbs || kKind == Pivot::kLargestAbs
                                  ? T{0}
                                  : -std::numeric_limits<T>::infinity();

  template <class D, class V>
  static HWY_INLINE V Add(D, V fold, V x) {
    if constexpr (kKind == Pivot::kMax) return hn::Max(fold, x);
    if constexpr (kKind == Pivot::kMaxAbs) return hn::Max(fold, hn::Abs(x));
    if constexpr (kKind == Pivot::kLargestAbs) x = hn::Abs(x);
    const auto further = kKind == Pivot::kSmallest ? hn::Lt(x, fold) : hn::Gt(x, fold);
    return hn::IfThenElse(hn::Or(further, hn::Not(hn::Eq(x, x))), x, fold);  // Ne is false of NaN
  }
};

// The fold of all lanes; a NaN among them is the result where the kind keeps it.
template <Pivot kKind, class D, class V>
HWY_INLINE hn::TFromD<D> FoldLanes(D d, V folds) {
  using T = hn::TFromD<D>;
  if constexpr (kKind == Pivot::kMax || kKind == Pivot::kMaxAbs) {
    return hn::GetLane(hn::MaxOfLanes(d, folds));
  } else {
    HWY_ALIGN T lanes[hn::MaxLanes(D())];
    hn::Store(folds, d, lanes);
    T fold = lanes[0];
    for (const T lane : lanes) {
      const bool further = kKind == Pivot::kSmallest ? lane < fold : lane > fold;
      if (further || lane != lane) fold = lane;
      if (fold != fold) break;
    }
    return fold;
  }
}

// Whether one state is suspect, whose fields lie `width` apart.
template <class Row>
HWY_INLINE bool IsSuspect(const double* state, size_t width, double parameter) {
  const hn::CappedTag<double, 1> d;
  const auto field = [=](size_t k) HWY_ATTR { return hn::Set(d, state[k * width]); };
  return Row::kCanSuffer && !hn::AllFalse(d, Row::Suspects(d, field, parameter));
}

// Behind the sums, where a row has that, what lies below the largest: see ops/reductions-inl.h.
// `d` has as many lanes as states are padded to.
template <class Row, class Loops, class D>
void AddRest(D d, const Segment& s, double* state) {
  const double* const pivot = state + kPivot * s.width;
  const double* const whole = state + kSums * s.width;
  double* const rest = state + Row::kRest * s.width;
  auto wanted = hn::FirstN(d, 0);
  for (size_t c = 0; c < s.columns; c += hn::Lanes(d)) {
    const auto own = hn::LoadU(d, whole + c);
    hn::StoreU(hn::Sub(own, hn::Set(d, 1)), d, rest + c);
    const auto near = hn::Lt(hn::Abs(hn::LoadU(d, pivot + c)), hn::Set(d, Row::kNear));
    wanted = hn::Or(wanted, hn::And(hn::Lt(own, hn::Set(d, Row::kSmallWhole)), near));
  }
  if (HWY_LIKELY(hn::AllFalse(d, wanted))) return;
  HWY_ALIGN double below[(kSums + 1) * kMaxColumns];
  Loops::Accumulate(s, 0, true, below, nullptr);
  for (size_t c = 0; c < s.columns; ++c) {
    if (whole[c] < Row::kSmallWhole) rest[c] = below[kSums * s.width + c];
  }
}

// --- along slices --------------------------------------------------------------------------------

// Elements that are summed in registers; each of four or more sums then has at most a quarter.
constexpr size_t kLeaf = 1024;

// What the sums of one segment fetch for what comes next, while they keep the core busy: the next
// segment of x and v, in which its pivot is then folded, and where this segment's slopes will go.
template <typename T, size_t kElements>
struct Fetcher {
  HWY_INLINE void operator()(const T* x, const T* v, const T* out) const {
    for (size_t i = 0; i < kElements; i += 64 / sizeof(T)) {
      PrefetchIntoL2(x + ahead + i);
      if (v != nullptr) PrefetchIntoL2(v + ahead + i);
      if (out != nullptr) PrefetchToWrite(out + i);
    }
  }
  size_t ahead;
};

template <class Row, typename T>
class Along {
  using L = Lanes<T>;
  using D = typename L::D;
  using V = typename L::V;
  using Wide = typename L::Wide;
  using W = typename L::W;
  using Parts = typename L::Parts;
  static constexpr size_t kLanes = L::kLanes, kParts = L::kParts;
  static constexpr size_t kSide = std::max<size_t>(4 / kParts, 1);  // vectors at once
  static constexpr size_t kChains = kSide * kParts;
  static constexpr Pivot kPivotKind = Row::template kPivotOf<T>;
  static constexpr bool kTwo = Row::kArrays == 2;
  static constexpr size_t kLeastAhead = 4096;  // bytes

 public:
  static bool Accumulate(const Segment& s, double parameter, bool value_only, double* state,
                         void* kept) {
    const T* const x = static_cast<const T*>(s.x);
    const T* const v = static_cast<const T*>(s.v);
    T* const keep = static_cast<T*>(kept);
    state[kCount] = static_cast<double>(s.length);
    state[kPivot] = 1;
    if constexpr (kPivotKind != Pivot::kNone) {
      state[kPivot] = Row::Settle(PivotOf(x, s.length), state[kCount]);
    }
    double* const sums = state + kSums;
    std::fill_n(sums, Row::kTerms, 0.0);
    if (Row::kPivotIsAll && value_only) return false;
    const T* const out = static_cast<const T*>(s.out);
    const Fetcher<T, kSide * kLanes> fetch{
        std::max(kPivotKind == Pivot::kNone ? 0 : s.length, kLeastAhead / sizeof(T))};
    for (size_t begin = 0; begin < s.length; begin += kLeaf) {
      const size_t n = std::min(kLeaf, s.length - begin);
      std::array<double, Row::kTerms> leaf;
      SumLeaf(x + begin, kTwo ? v + begin : nullptr, n, state[kPivot], parameter,
              keep == nullptr ? nullptr : keep + begin, out == nullptr ? nullptr : out + begin,
              fetch, leaf);
      for (size_t k = 0; k < Row::kTerms; ++k) {
        if (begin == 0) {
          sums[k] = leaf[k];
        } else if (Row::kProduct && k == 0) {
          sums[k] *= leaf[k];
        } else {
          sums[k] += leaf[k];
        }
      }
      if constexpr (Row::kProduct) Row::Close(state);
    }
    if constexpr (!Row::kProduct) Row::Close(state);
    if constexpr (Row::kHasRest)
      AddRest<Row, Along<RestRow, T>>(hn::CappedTag<double, 1>(), s, state);
    return IsSuspect<Row>(state, 1, parameter);
  }

  static void Slopes(const Segment& s, const double* coefs, const void* kept, void* const* out,
                     bool streamed) {
    const T* const x = static_cast<const T*>(s.x);
    const T* const v = static_cast<const T*>(s.v);
    const T* const keep = static_cast<const T*>(kept);
    using Results = std::array<V, Row::kOuts>;
    if constexpr (Row::kOneProduct && kParts > 1) {
      // One product of factors that fit is rounded to the same bits on narrow lanes.
      const T factor = static_cast<T>(coefs[0]);
      if (static_cast<double>(factor) == coefs[0]) {
        const std::array<V, 1> c = {hn::Set(D(), factor)};
        WriteSlopes(s.length, out, streamed, [=](size_t i, size_t count, Results& y) HWY_ATTR {
          const V own = L::Load(x + i, count);
          Row::Slope(D(), own, kTwo ? L::Load(v + i, count) : own, own, c, y);
        });
        return;
      }
    }
    const std::array<W, Row::kCoefs> c = Broadcast(coefs);
    const V pivot = hn::Set(D(), static_cast<T>(coefs[Row::kCoefs]));
    WriteSlopes(s.length, out, streamed, [=](size_t i, size_t count, Results& y) HWY_ATTR {
      Slope(x + i, kTwo ? v + i : nullptr, keep == nullptr ? nullptr : keep + i, count, pivot, c,
            y);
    });
  }

  static void Tangents(const Segment& s, const double* coefs, const void* const* t, double* sums) {
    const std::array<W, Row::kCoefs> c = Broadcast(coefs);
    const T* const x = static_cast<const T*>(s.x);
    const T* const v = static_cast<const T*>(s.v);
    const V pivot = hn::Set(D(), static_cast<T>(coefs[Row::kCoefs]));
    double total = 0;
    for (size_t begin = 0; begin < s.length; begin += kLeaf) {
      const size_t end = std::min(begin + kLeaf, s.length);
      std::array<W, kChains> sum;
      sum.fill(hn::Zero(Wide()));
      size_t chain = 0;
      for (size_t i = begin; i < end; i += kLanes) {
        const size_t count = std::min(kLanes, end - i);
        std::array<std::array<W, Row::kOuts>, kParts> slopes;
        WideSlopes(x + i, kTwo ? v + i : nullptr, nullptr, count, pivot, c, slopes);
        for (size_t o = 0; o < Row::kOuts; ++o) {
          if (t[o] == nullptr) continue;
          const Parts tangent = L::Widen(L::Load(static_cast<const T*>(t[o]) + i, count));
          PB_UNROLL
          for (size_t part = 0; part < kParts; ++part) {
            W term = hn::Mul(slopes[part][o], tangent[part]);
            if (HWY_UNLIKELY(count < kLanes)) {
              term = hn::IfThenElseZero(L::First(part, count), term);
            }
            sum[chain + part] = hn::Add(sum[chain + part], term);
          }
        }
        chain = (chain + kParts) % kChains;
      }
      total += Total(sum, false);
    }
    sums[0] = total;
  }

 private:
  // slope(i, count, y): the results from element i on.
  template <class F>
  static HWY_INLINE void WriteSlopes(size_t n, void* const* out, bool streamed, const F& slope) {
    T* to[Row::kOuts];
    for (size_t o = 0; o < Row::kOuts; ++o) to[o] = static_cast<T*>(out[o]);
    // All outputs lie alike, see the driver.
    const size_t beyond = reinterpret_cast<uintptr_t>(to[0]) % kStreamAlignment;
    const size_t ahead = beyond == 0 ? 0 : (kStreamAlignment - beyond) / sizeof(T);
    size_t i = 0;
    // One copy of what comes before the first line that is streamed, and behind the last vector.
    for (size_t end = streamed ? std::min(ahead, n) : 0;; end = n) {
      while (i < end) {
        const size_t count = std::min(kLanes, end - i);
        std::array<V, Row::kOuts> y;
        slope(i, count, y);
        PB_UNROLL
        for (size_t o = 0; o < Row::kOuts; ++o) L::Store(y[o], to[o] + i, count);
        i += count;
      }
      if (end == n) return;
      for (; i + kLanes <= n; i += kLanes) {
        std::array<V, Row::kOuts> y;
        slope(i, kLanes, y);
        PB_UNROLL
        for (size_t o = 0; o < Row::kOuts; ++o) {
          if (HWY_UNLIKELY(streamed)) {
            hn::Stream(y[o], D(), to[o] + i);
          } else {
            hn::StoreU(y[o], D(), to[o] + i);
          }
        }
      }
    }
  }

  static HWY_INLINE std::array<W, Row::kCoefs> Broadcast(const double* coefs) {
    std::array<W, Row::kCoefs> c;
    PB_UNROLL
    for (size_t k = 0; k < Row::kCoefs; ++k) c[k] = hn::Set(Wide(), coefs[k]);
    return c;
  }

  static double PivotOf(const T* x, size_t n) {
    if constexpr (kPivotKind == Pivot::kMean) {
      double total = 0;
      for (size_t begin = 0; begin < n; begin += kLeaf) {
        const size_t end = std::min(begin + kLeaf, n);
        std::array<W, kChains> sum;
        sum.fill(hn::Zero(Wide()));
        size_t i = begin;
        for (; i + kSide * kLanes <= end; i += kSide * kLanes) {
          PB_UNROLL
          for (size_t side = 0; side < kSide; ++side) {
            const Parts parts = L::Widen(hn::LoadU(D(), x + i + side * kLanes));
            PB_UNROLL
            for (size_t part = 0; part < kParts; ++part) {
              sum[side * kParts + part] = hn::Add(sum[side * kParts + part], parts[part]);
            }
          }
        }
        for (; i < end; i += kLanes) {  // zeros behind the last add nothing
          const Parts parts = L::Widen(L::Load(x + i, std::min(kLanes, end - i)));
          PB_UNROLL
          for (size_t part = 0; part < kParts; ++part) {
            sum[part] = hn::Add(sum[part], parts[part]);
          }
        }
        total += Total(sum, false);
      }
      return total;
    } else {
      using F = Fold<kPivotKind>;
      const D d;
      const V start = hn::Set(d, F::template kStart<T>);
      std::array<V, 4> fold;
      fold.fill(start);
      size_t i = 0;
      for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
        PB_UNROLL
        for (size_t side = 0; side < 4; ++side) {
          fold[side] = F::Add(d, fold[side], hn::LoadU(d, x + i + side * kLanes));
        }
      }
      for (; i + kLanes <= n; i += kLanes) fold[0] = F::Add(d, fold[0], hn::LoadU(d, x + i));
      if (i < n) {
        const V last = LoadTail(d, x + i, n - i);
        fold[0] = F::Add(d, fold[0], hn::IfThenElse(hn::FirstN(d, n - i), last, start));
      }
      const V folds = F::Add(d, F::Add(d, fold[0], fold[1]), F::Add(d, fold[2], fold[3]));
      return static_cast<double>(FoldLanes<kPivotKind>(d, folds));
    }
  }

  // In a fixed order.
  static HWY_INLINE double Total(const std::array<W, kChains>& sum, bool product) {
    const Wide d;
    W total = sum[0];
    if constexpr (kChains == 4) {
      if (product) {
        total = hn::Mul(hn::Mul(sum[0], sum[1]), hn::Mul(sum[2], sum[3]));
      } else {
        total = hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
      }
    }
    static_assert(kChains == 4);
    if (!product) return SumLanes(d, total);
    HWY_ALIGN double lanes[L::kWide];
    hn::Store(total, d, lanes);
    double result = lanes[0];
    for (size_t i = 1; i < L::kWide; ++i) result *= lanes[i];
    return result;
  }

  static void SumLeaf(const T* x, const T* v, size_t n, double pivot, double parameter, T* kept,
                      const T* out, const Fetcher<T, kSide * kLanes>& fetch,
                      std::array<double, Row::kTerms>& leaf) {
    const Wide wide;
    const W wide_pivot = hn::Set(wide, pivot);
    const V narrow_pivot = hn::Set(D(), static_cast<T>(pivot));
    std::array<std::array<W, kChains>, Row::kTerms> sums;
    PB_UNROLL
    for (size_t k = 0; k < Row::kTerms; ++k) {
      sums[k].fill(hn::Set(wide, Row::kProduct && k == 0 ? 1 : 0));
    }
    const auto add = [&](size_t i, size_t side, size_t count) HWY_ATTR {
      const V prepared = Row::Prepare(D(), L::Load(x + i, count), narrow_pivot);
      if (Row::kKeeps && kept != nullptr) L::Store(prepared, kept + i, count);
      const Parts e = L::Widen(prepared);
      Parts other = e;
      if constexpr (kTwo) other = L::Widen(L::Load(v + i, count));
      PB_UNROLL
      for (size_t part = 0; part < kParts; ++part) {
        Terms<Wide, Row::kTerms> terms;
        Row::Sum(wide, e[part], other[part], wide_pivot, parameter, terms);
        PB_UNROLL
        for (size_t k = 0; k < Row::kTerms; ++k) {
          W& sum = sums[k][side * kParts + part];
          const bool product = Row::kProduct && k == 0;
          if (HWY_UNLIKELY(count < kLanes)) {
            const auto present = L::First(part, count);
            terms[k] = hn::IfThenElse(present, terms[k], hn::Set(wide, product ? 1 : 0));
          }
          sum = product ? hn::Mul(sum, terms[k]) : hn::Add(sum, terms[k]);
        }
      }
    };
    size_t i = 0;
    for (; i + kSide * kLanes <= n; i += kSide * kLanes) {
      fetch(x + i, kTwo ? v + i : nullptr, out == nullptr ? nullptr : out + i);
      PB_UNROLL
      for (size_t side = 0; side < kSide; ++side) add(i + side * kLanes, side, kLanes);
    }
    for (; i < n; i += kLanes) add(i, 0, std::min(kLanes, n - i));
    for (size_t k = 0; k < Row::kTerms; ++k) leaf[k] = Total(sums[k], Row::kProduct && k == 0);
  }

  static HWY_INLINE void WideSlopes(const T* x, const T* v, const T* kept, size_t count, V pivot,
                                    const std::array<W, Row::kCoefs>& c,
                                    std::array<std::array<W, Row::kOuts>, kParts>& slopes) {
    const V own = L::Load(x, count);
    const Parts parts = L::Widen(own);
    const Parts e =
        L::Widen(kept != nullptr ? L::Load(kept, count) : Row::Prepare(D(), own, pivot));
    Parts other = parts;
    if constexpr (kTwo) other = L::Widen(L::Load(v, count));
    PB_UNROLL
    for (size_t part = 0; part < kParts; ++part) {
      Row::Slope(Wide(), parts[part], other[part], e[part], c, slopes[part]);
    }
  }

  static HWY_INLINE void Slope(const T* x, const T* v, const T* kept, size_t count, V pivot,
                               const std::array<W, Row::kCoefs>& c,
                               std::array<V, Row::kOuts>& out) {
    std::array<std::array<W, Row::kOuts>, kParts> slopes;
    WideSlopes(x, v, kept, count, pivot, c, slopes);
    PB_UNROLL
    for (size_t o = 0; o < Row::kOuts; ++o) {
      Parts parts;
      PB_UNROLL
      for (size_t part = 0; part < kParts; ++part) parts[part] = slopes[part][o];
      out[o] = L::Narrow(parts);
    }
  }
};

// --- across slices -------------------------------------------------------------------------------

template <class Row, typename T>
class Across {
  using L = Lanes<T>;
  using D = typename L::D;
  using V = typename L::V;
  using Wide = typename L::Wide;
  using W = typename L::W;
  using Parts = typename L::Parts;
  static constexpr size_t kLanes = L::kLanes, kParts = L::kParts, kWide = L::kWide;
  static constexpr Pivot kPivotKind = Row::template kPivotOf<T>;
  static constexpr bool kTwo = Row::kArrays == 2;

 public:
  static bool Accumulate(const Segment& s, double parameter, bool value_only, double* state,
                         void* kept) {
    const size_t width = s.width;
    const Wide wide;
    HWY_ALIGN T pivots[kMaxColumns];
    double* const pivot = state + kPivot * width;
    const double n = static_cast<double>(s.length);
    std::fill_n(state + kCount * width, width, n);
    std::fill_n(pivot, width, 1.0);
    if constexpr (kPivotKind != Pivot::kNone) {
      FoldPivots(s, pivots, pivot);
      for (size_t c = 0; c < s.columns; ++c) pivot[c] = Row::Settle(pivot[c], n);
    }
    for (size_t k = 0; k < Row::kTerms; ++k) {
      std::fill_n(state + (kSums + k) * width, width, Row::kProduct && k == 0 ? 1.0 : 0.0);
    }
    if (Row::kPivotIsAll && value_only) return false;
    for (size_t i = 0; i < s.length; ++i) {
      const ptrdiff_t row = static_cast<ptrdiff_t>(i) * s.stride;
      const T* const x = static_cast<const T*>(s.x) + row;
      const T* const v = kTwo ? static_cast<const T*>(s.v) + row : nullptr;
      for (size_t c = 0; c < s.columns; c += kLanes) {
        const size_t count = std::min(kLanes, s.columns - c);
        V own = L::Load(x + c, count);
        if constexpr (Row::kKeeps || kPivotKind == Pivot::kMax) {
          own = Row::Prepare(D(), own, hn::Load(D(), pivots + c));
          if (Row::kKeeps && kept != nullptr) {
            L::Store(own, static_cast<T*>(kept) + i * s.columns + c, count);
          }
        }
        const Parts e = L::Widen(own);
        Parts other = e;
        if constexpr (kTwo) other = L::Widen(L::Load(v + c, count));
        PB_UNROLL
        for (size_t part = 0; part < kParts; ++part) {
          const size_t at = c + part * kWide;
          Terms<Wide, Row::kTerms> terms;
          Row::Sum(wide, e[part], other[part], hn::LoadU(wide, pivot + at), parameter, terms);
          PB_UNROLL
          for (size_t k = 0; k < Row::kTerms; ++k) {
            double* const sum = state + (kSums + k) * width + at;
            const W before = hn::LoadU(wide, sum);
            const bool product = Row::kProduct && k == 0;
            hn::StoreU(product ? hn::Mul(before, terms[k]) : hn::Add(before, terms[k]), wide, sum);
          }
        }
      }
    }
    bool suspect = false;
    for (size_t c = 0; c < s.columns; ++c) {
      double own[kSums + Row::kTerms];
      for (size_t k = 0; k < kSums + Row::kTerms; ++k) own[k] = state[k * width + c];
      Row::Close(own);
      for (size_t k = 0; k < kSums + Row::kTerms; ++k) state[k * width + c] = own[k];
    }
    if constexpr (Row::kHasRest) AddRest<Row, Across<RestRow, T>>(wide, s, state);
    for (size_t c = 0; Row::kCanSuffer && c < s.columns; c += kWide) {
      const auto field = [=](size_t k) HWY_ATTR { return hn::LoadU(wide, state + k * width + c); };
      const auto suspects = Row::Suspects(wide, field, parameter);
      const auto present = hn::FirstN(wide, std::min(kWide, s.columns - c));
      suspect |= !hn::AllFalse(wide, hn::And(suspects, present));
    }
    return suspect;
  }

  static void Slopes(const Segment& s, const double* coefs, const void* kept, void* const* out,
                     bool) {
    HWY_ALIGN T pivots[kMaxColumns];
    TakePivots(s, coefs, pivots);
    for (size_t i = 0; i < s.length; ++i) {
      const ptrdiff_t row = static_cast<ptrdiff_t>(i) * s.stride;
      const T* const keep = kept == nullptr ? nullptr : static_cast<const T*>(kept) + i * s.columns;
      for (size_t c = 0; c < s.columns; c += kLanes) {
        const size_t count = std::min(kLanes, s.columns - c);
        std::array<std::array<W, Row::kOuts>, kParts> slopes;
        Slope(s, row, c, count, keep, coefs, pivots, slopes);
        PB_UNROLL
        for (size_t o = 0; o < Row::kOuts; ++o) {
          Parts parts;
          PB_UNROLL
          for (size_t part = 0; part < kParts; ++part) parts[part] = slopes[part][o];
          L::Store(L::Narrow(parts), static_cast<T*>(out[o]) + row + c, count);
        }
      }
    }
  }

  static void Tangents(const Segment& s, const double* coefs, const void* const* t, double* sums) {
    HWY_ALIGN T pivots[kMaxColumns];
    TakePivots(s, coefs, pivots);
    std::fill_n(sums, s.width, 0.0);
    const Wide wide;
    for (size_t i = 0; i < s.length; ++i) {
      const ptrdiff_t row = static_cast<ptrdiff_t>(i) * s.stride;
      for (size_t c = 0; c < s.columns; c += kLanes) {
        const size_t count = std::min(kLanes, s.columns - c);
        std::array<std::array<W, Row::kOuts>, kParts> slopes;
        Slope(s, row, c, count, nullptr, coefs, pivots, slopes);
        for (size_t o = 0; o < Row::kOuts; ++o) {
          if (t[o] == nullptr) continue;
          const Parts tangent = L::Widen(L::Load(static_cast<const T*>(t[o]) + row + c, count));
          PB_UNROLL
          for (size_t part = 0; part < kParts; ++part) {
            double* const sum = sums + c + part * kWide;
            const W term = hn::Mul(slopes[part][o], tangent[part]);
            hn::StoreU(hn::Add(hn::LoadU(wide, sum), term), wide, sum);
          }
        }
      }
    }
  }

 private:
  static void FoldPivots(const Segment& s, T* pivots, double* pivot) {
    if constexpr (kPivotKind == Pivot::kMean) {
      const Wide wide;
      std::fill_n(pivot, s.width, 0.0);
      for (size_t i = 0; i < s.length; ++i) {
        const T* const x = static_cast<const T*>(s.x) + static_cast<ptrdiff_t>(i) * s.stride;
        for (size_t c = 0; c < s.columns; c += kLanes) {
          const Parts parts = L::Widen(L::Load(x + c, std::min(kLanes, s.columns - c)));
          PB_UNROLL
          for (size_t part = 0; part < kParts; ++part) {
            double* const sum = pivot + c + part * kWide;
            hn::StoreU(hn::Add(hn::LoadU(wide, sum), parts[part]), wide, sum);
          }
        }
      }
    } else {
      using F = Fold<kPivotKind>;
      const D d;
      const V start = hn::Set(d, F::template kStart<T>);
      for (size_t c = 0; c < s.columns; c += kLanes) hn::Store(start, d, pivots + c);
      for (size_t i = 0; i < s.length; ++i) {
        const T* const x = static_cast<const T*>(s.x) + static_cast<ptrdiff_t>(i) * s.stride;
        for (size_t c = 0; c < s.columns; c += kLanes) {
          const V own = L::Load(x + c, std::min(kLanes, s.columns - c));
          hn::Store(F::Add(d, hn::Load(d, pivots + c), own), d, pivots + c);
        }
      }
      std::copy_n(pivots, s.columns, pivot);
    }
  }

  static void TakePivots(const Segment& s, const double* coefs, T* pivots) {
    if constexpr (kPivotKind == Pivot::kMax) {
      const size_t width = s.width;
      for (size_t c = 0; c < width; ++c) {
        pivots[c] = static_cast<T>(coefs[Row::kCoefs * width + c]);
      }
    }
  }

  static HWY_INLINE void Slope(const Segment& s, ptrdiff_t row, size_t c, size_t count,
                               const T* kept, const double* coefs, const T* pivots,
                               std::array<std::array<W, Row::kOuts>, kParts>& slopes) {
    const size_t width = s.width;
    const V own = L::Load(static_cast<const T*>(s.x) + row + c, count);
    const Parts parts = L::Widen(own);
    V prepared = own;
    if (kept != nullptr) {
      prepared = L::Load(kept + c, count);
    } else if constexpr (kPivotKind == Pivot::kMax) {
      prepared = Row::Prepare(D(), own, hn::Load(D(), pivots + c));
    }
    const Parts e = L::Widen(prepared);
    Parts other = parts;
    if constexpr (kTwo) other = L::Widen(L::Load(static_cast<const T*>(s.v) + row + c, count));
    PB_UNROLL
    for (size_t part = 0; part < kParts; ++part) {
      std::array<W, Row::kCoefs> own_coefs;
      PB_UNROLL
      for (size_t k = 0; k < Row::kCoefs; ++k) {
        own_coefs[k] = hn::LoadU(Wide(), coefs + k * width + c + part * kWide);
      }
      Row::Slope(Wide(), parts[part], other[part], e[part], own_coefs, slopes[part]);
    }
  }
};

// --- the table -----------------------------------------------------------------------------------

// Only rows that are no map of rows have tangents.
template <template <class, typename> class Loops, class Row, typename T>
constexpr ReductionLoops LoopsOf() {
  using Like = LikeRow<Row>;
  ReductionLoops loops{Loops<typename Like::Sums, T>::Accumulate,
                       Loops<typename Like::Slopes, T>::Slopes, nullptr};
  if constexpr (*Row::kMethod == 0) loops.tangents = Loops<typename Like::Slopes, T>::Tangents;
  return loops;
}

// The coefficients, and behind them the pivot, for what Prepare makes of an element.
template <class Row>
void CoefficientsOf(const double* state, double n, double parameter, double g, double* coefs) {
  Row::Coefs(state, n, parameter, g, coefs);
  coefs[Row::kCoefs] = Row::kStateless ? 1 : state[kPivot];
}

template <class Row>
bool SuspectOf(const double* state, size_t width, double parameter) {
  return IsSuspect<Row>(state, width, parameter);
}

template <class Row>
inline constexpr ReductionKernels kReduction = {
    Row::kName,
    Row::kMethod,
    Row::kArrays,
    Row::kOuts,
    kSums + Row::kTerms + Row::kHasRest,
    Row::kCoefs + 1,
    Row::kStateless,
    Row::kKeeps,
    Row::kDegree,
    Row::kParameterDegree,
    Row::kCentred,
    Row::Merge,
    Row::Finish,
    CoefficientsOf<Row>,
    Row::kCanSuffer ? SuspectOf<Row> : nullptr,
    {LoopsOf<Along, Row, float>(), LoopsOf<Along, Row, double>()},
    {LoopsOf<Across, Row, float>(), LoopsOf<Across, Row, double>()}};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

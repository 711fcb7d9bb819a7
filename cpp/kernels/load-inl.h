// Loads and stores of the last, partial vector, and sums over vectors' lanes.
#if defined(PULLBACK_CPP_KERNELS_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_LOAD_INL_H_
#undef PULLBACK_CPP_KERNELS_LOAD_INL_H_
#else
#define PULLBACK_CPP_KERNELS_LOAD_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstddef>
#include <cstring>

// g++ keeps arrays of vectors in registers only where it unrolls their loops early.
#undef PB_UNROLL
#define PB_UNROLL _Pragma("GCC unroll 8")

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Highway's flag speaks of all lane types; AVX2's own masked loads and stores of 32- and 64-bit
// lanes do not fault, only sanitizers see more than the masked lanes.
#undef PULLBACK_MASKED_MEMORY
#define PULLBACK_MASKED_MEMORY \
  (!HWY_MEM_OPS_MIGHT_FAULT || (HWY_TARGET == HWY_AVX2 && !HWY_IS_ASAN && !HWY_IS_MSAN))

// Loads the first `count` <= Lanes(d) elements, zeros behind them; never touches what follows.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> LoadTail(D d, const T* p, size_t count) {
#if !PULLBACK_MASKED_MEMORY
  HWY_ALIGN T lanes[hn::MaxLanes(D())] = {};
  std::memcpy(lanes, p, count * sizeof(T));
  return hn::Load(d, lanes);
#else
  return hn::MaskedLoad(hn::FirstN(d, count), d, p);
#endif
}

// Stores the first `count` <= Lanes(d) elements.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void StoreTail(hn::Vec<D> v, D d, T* p, size_t count) {
#if !PULLBACK_MASKED_MEMORY
  HWY_ALIGN T lanes[hn::MaxLanes(D())];
  hn::Store(v, d, lanes);
  std::memcpy(p, lanes, count * sizeof(T));
#else
  hn::BlendedStore(v, hn::FirstN(d, count), d, p);
#endif
}

// The same without a masked store, which some CPUs have in microcode only.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void StoreFirst(hn::Vec<D> v, D d, T* p, size_t count) {
  constexpr size_t kLanes = hn::MaxLanes(D());
  if (count == kLanes) {
    hn::StoreU(v, d, p);
    return;
  }
#if HWY_TARGET != HWY_SCALAR
  if constexpr (kLanes > 1) {
    const hn::Half<D> half;
    if (count >= kLanes / 2) {
      hn::StoreU(hn::LowerHalf(half, v), half, p);
      p += kLanes / 2;
      count -= kLanes / 2;
      if (count != 0) StoreFirst(hn::UpperHalf(half, v), half, p, count);
    } else if (count != 0) {
      StoreFirst(hn::LowerHalf(half, v), half, p, count);
    }
  }
#endif
}

// Lane i of vector j becomes lane j of vector i; at most four lanes.
template <class D, class V, size_t kLanes>
HWY_INLINE void Transpose([[maybe_unused]] D d, [[maybe_unused]] std::array<V, kLanes>& square) {
  static_assert(kLanes == hn::MaxLanes(D()) && kLanes <= 4);
#if HWY_TARGET != HWY_SCALAR
  if constexpr (kLanes >= 2) {
    const V even01 = hn::InterleaveLower(d, square[0], square[1]);
    const V odd01 = hn::InterleaveUpper(d, square[0], square[1]);
    if constexpr (kLanes == 2) {
      square = {even01, odd01};
    } else {
      const V even23 = hn::InterleaveLower(d, square[2], square[3]);
      const V odd23 = hn::InterleaveUpper(d, square[2], square[3]);
      square = {hn::ConcatLowerLower(d, even23, even01), hn::ConcatLowerLower(d, odd23, odd01),
                hn::ConcatUpperUpper(d, even23, even01), hn::ConcatUpperUpper(d, odd23, odd01)};
    }
  }
#endif
}

// Highway's ReduceSum is newer than the oldest release we build with.
template <class D>
HWY_INLINE hn::TFromD<D> SumLanes(D d, hn::Vec<D> v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

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

// `count` <= Lanes(d) elements as doubles.
template <class D, typename T>
HWY_INLINE hn::Vec<D> LoadSome(D d, const T* p, size_t count) {
  return HWY_LIKELY(count == hn::Lanes(d)) ? Loader<D, T>::Whole(p) : Loader<D, T>::Part(p, count);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

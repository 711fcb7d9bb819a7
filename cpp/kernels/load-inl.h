// Loads and stores of the last, partial vector, and the sum over a vector's lanes.
#if defined(PULLBACK_CPP_KERNELS_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_LOAD_INL_H_
#undef PULLBACK_CPP_KERNELS_LOAD_INL_H_
#else
#define PULLBACK_CPP_KERNELS_LOAD_INL_H_
#endif

#include <hwy/highway.h>

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

// Highway's ReduceSum is newer than the oldest release we build with.
template <class D>
HWY_INLINE hn::TFromD<D> SumLanes(D d, hn::Vec<D> v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

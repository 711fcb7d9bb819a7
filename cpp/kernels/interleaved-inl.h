// Rows of two to four outputs, as vectors whose lanes are rows.
#if defined(PULLBACK_CPP_KERNELS_INTERLEAVED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_INTERLEAVED_INL_H_
#undef PULLBACK_CPP_KERNELS_INTERLEAVED_INL_H_
#else
#define PULLBACK_CPP_KERNELS_INTERLEAVED_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstddef>

#include "kernels/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kFewOutputs = 4;

// Lanes(d) rows of (rows, kOutputs).
template <size_t kOutputs, class D, class V = hn::Vec<D>>
HWY_INLINE std::array<V, kOutputs> LoadRows(D d, const double* p) {
  std::array<V, kOutputs> v;
  if constexpr (kOutputs == 2) {
    hn::LoadInterleaved2(d, p, v[0], v[1]);
  } else if constexpr (kOutputs == 3) {
    hn::LoadInterleaved3(d, p, v[0], v[1], v[2]);
  } else {
    hn::LoadInterleaved4(d, p, v[0], v[1], v[2], v[3]);
  }
  return v;
}

template <size_t kOutputs, class D, class V = hn::Vec<D>>
HWY_INLINE void StoreRows(const std::array<V, kOutputs>& v, D d, double* p) {
  if constexpr (kOutputs == 2) {
    hn::StoreInterleaved2(v[0], v[1], d, p);
  } else if constexpr (kOutputs == 3) {
    hn::StoreInterleaved3(v[0], v[1], v[2], d, p);
  } else {
    hn::StoreInterleaved4(v[0], v[1], v[2], v[3], d, p);
  }
}

// So many of the n elements are in a vector that begins at the i-th.
template <class D>
HWY_INLINE size_t LanesAt(D d, size_t i, size_t n) {
  return std::min(hn::Lanes(d), n - std::min(i, n));
}

// n elements between memory and a buffer of whole vectors, of which the rest becomes zero.
template <class D>
HWY_NOINLINE void CopyIn(D d, const double* p, size_t n, double* whole, size_t size) {
  for (size_t i = 0; i < size; i += hn::Lanes(d)) {
    hn::Store(LoadTail(d, p + i, LanesAt(d, i, n)), d, whole + i);
  }
}

template <class D>
HWY_NOINLINE void CopyOut(D d, const double* whole, size_t n, double* p) {
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    StoreFirst(hn::Load(d, whole + i), d, p + i, LanesAt(d, i, n));
  }
}

// The first `count` rows, zeros behind them: a partial vector passes a buffer.
template <size_t kOutputs, class D, class V = hn::Vec<D>>
HWY_INLINE std::array<V, kOutputs> LoadSomeRows(D d, const double* p, size_t count) {
  constexpr size_t kLanes = hn::MaxLanes(D()), kWhole = kOutputs * kLanes;
  if (HWY_LIKELY(count == kLanes)) return LoadRows<kOutputs>(d, p);
  HWY_ALIGN double part[kWhole];
  CopyIn(d, p, count * kOutputs, part, kWhole);
  return LoadRows<kOutputs>(d, part);
}

template <size_t kOutputs, class D, class V = hn::Vec<D>>
HWY_INLINE void StoreSomeRows(const std::array<V, kOutputs>& v, D d, double* p, size_t count) {
  constexpr size_t kLanes = hn::MaxLanes(D()), kWhole = kOutputs * kLanes;
  if (HWY_LIKELY(count == kLanes)) return StoreRows(v, d, p);
  HWY_ALIGN double part[kWhole];
  StoreRows(v, d, part);
  CopyOut(d, part, count * kOutputs, p);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

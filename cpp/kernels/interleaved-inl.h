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

// The first `count` rows, zeros behind them: a partial vector passes a buffer.
template <size_t kOutputs, class D, class V = hn::Vec<D>>
HWY_INLINE std::array<V, kOutputs> LoadSomeRows(D d, const double* p, size_t count) {
  constexpr size_t kWhole = kOutputs * hn::MaxLanes(D());
  if (HWY_LIKELY(count * kOutputs == kWhole)) return LoadRows<kOutputs>(d, p);
  HWY_ALIGN double part[kWhole];
  std::fill(std::copy_n(p, count * kOutputs, part), part + kWhole, 0.0);
  return LoadRows<kOutputs>(d, part);
}

template <size_t kOutputs, class D, class V = hn::Vec<D>>
HWY_INLINE void StoreSomeRows(const std::array<V, kOutputs>& v, D d, double* p, size_t count) {
  constexpr size_t kWhole = kOutputs * hn::MaxLanes(D());
  if (HWY_LIKELY(count * kOutputs == kWhole)) return StoreRows(v, d, p);
  HWY_ALIGN double part[kWhole];
  StoreRows(v, d, part);
  std::copy_n(part, count * kOutputs, p);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

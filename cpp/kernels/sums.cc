#include "kernels/sums.h"

#include "kernels/tasks.h"

#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/sums.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <hwy/cache_control.h>

#include <cstddef>

#include "kernels/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename T>
void Add(const void* from, double* to, size_t n) {
  using D = hn::ScalableTag<double>;
  const D d;
  const size_t lanes = hn::Lanes(d);
  const auto* const x = static_cast<const T*>(from);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::Add(hn::LoadU(d, to + i), Loader<D, T>::Whole(x + i)), d, to + i);
  }
  for (; i < n; ++i) to[i] += static_cast<double>(x[i]);
}

// Four running sums hide the additions' latency; the few last elements go one by one. What adds
// nothing is -0.
template <typename T>
double Sum(const void* from, size_t n) {
  using D = hn::ScalableTag<double>;
  using V = hn::Vec<D>;
  const D d;
  const size_t lanes = hn::Lanes(d);
  const auto* const x = static_cast<const T*>(from);
  V s0 = hn::Set(d, -0.0), s1 = s0, s2 = s0, s3 = s0;
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    s0 = hn::Add(s0, Loader<D, T>::Whole(x + i));
    s1 = hn::Add(s1, Loader<D, T>::Whole(x + i + lanes));
    s2 = hn::Add(s2, Loader<D, T>::Whole(x + i + 2 * lanes));
    s3 = hn::Add(s3, Loader<D, T>::Whole(x + i + 3 * lanes));
  }
  for (; i + lanes <= n; i += lanes) s0 = hn::Add(s0, Loader<D, T>::Whole(x + i));
  double sum = SumLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
  for (; i < n; ++i) sum += static_cast<double>(x[i]);
  return sum;
}

const SumKernels* Table() {
  static constexpr SumKernels kTable = {{Add<float>, Add<double>}, {Sum<float>, Sum<double>}};
  return &kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(Table);
const SumKernels& Sums() { return *HWY_DYNAMIC_DISPATCH(Table)(); }
void FlushStreams() { hwy::FlushStream(); }
}  // namespace pullback
#endif

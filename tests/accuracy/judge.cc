#include "judge.h"

#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/accuracy/judge.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace pullback::accuracy {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class V>
HWY_INLINE V Errors(D d, V exact, V got) {
  const hn::RebindToUnsigned<D> du;
  const V infinity = hn::Inf(d);
  const V overflow = hn::Set(d, 0x1p128);
  const V one = hn::Set(d, 1.0);
  const V r = hn::Abs(exact);
  const V y = hn::Min(hn::Abs(got), overflow);
  const V significant = hn::Min(hn::Max(r, hn::Set(d, 0x1p-126)), hn::Set(d, 0x1p127));
  // 2^(23 - exponent)
  const auto exponent = hn::And(hn::BitCast(du, significant), hn::Set(du, uint64_t{0x7FF} << 52));
  const V scale = hn::BitCast(d, hn::Sub(hn::Set(du, uint64_t{2046 + 23} << 52), exponent));
  const V error = hn::Mul(hn::Abs(hn::Sub(y, hn::Min(r, overflow))), scale);
  const auto other_sign = hn::Ne(hn::CopySign(one, exact), hn::CopySign(one, got));
  const auto missed = hn::And(hn::Eq(r, infinity), hn::Lt(y, overflow));
  const V judged = hn::IfThenElse(hn::Or(other_sign, missed), infinity, error);
  const auto unordered = hn::Or(hn::Ne(exact, exact), hn::Ne(got, got));
  const auto both = hn::And(hn::Ne(exact, exact), hn::Ne(got, got));
  return hn::IfThenElse(unordered, hn::IfThenZeroElse(both, infinity), judged);
}

double Worst(const double* exact, const float* got, size_t n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> narrow;
  auto worst = hn::Zero(d);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto y = hn::PromoteTo(d, hn::LoadU(narrow, got + i));
    worst = hn::Max(worst, Errors(d, hn::LoadU(d, exact + i), y));
  }
  return hn::GetLane(hn::MaxOfLanes(d, worst));
}

double One(double exact, float got) {
  const hn::CappedTag<double, 1> d;
  return hn::GetLane(Errors(d, hn::Set(d, exact), hn::Set(d, static_cast<double>(got))));
}

WorstError Choose() { return Worst; }

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback::accuracy
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback::accuracy {
HWY_EXPORT(Choose);
HWY_EXPORT(One);
WorstError GetWorstError() { return HWY_DYNAMIC_DISPATCH(Choose)(); }
double ErrorOf(double exact, float got) { return HWY_DYNAMIC_DISPATCH(One)(exact, got); }
}  // namespace pullback::accuracy
#endif

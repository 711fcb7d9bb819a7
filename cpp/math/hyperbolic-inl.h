// sinh and cosh, full range.
#if defined(PULLBACK_CPP_MATH_HYPERBOLIC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_HYPERBOLIC_INL_H_
#undef PULLBACK_CPP_MATH_HYPERBOLIC_INL_H_
#else
#define PULLBACK_CPP_MATH_HYPERBOLIC_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"
#include "math/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// With |x| = k log(2) + r: 2 sinh(|x|) = 2^k (a cosh(r) + b sinh(r)), a = 1 - 4^-k, b = 1 + 4^-k,
// and 2 cosh(|x|) with a and b exchanged. No division, and near 0, where k = 0, all that is left
// of sinh is sinh(r).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void SinhCosh(D d, V x, V& sinh, V& cosh) {
  using C = ExpConstants<double>;
  const V one = hn::Set(d, 1);
  const V abs = AtMost(d, kForFloat32<D> ? 100 : C::kMax + 1, hn::Abs(x));
  V r_hi, minus_r_lo, k, even, odd;
  if constexpr (kForFloat32<D>) {
    const V rounder = hn::Set(d, FormatOf<D>::kRounder);
    k = hn::Sub(hn::MulAdd(abs, hn::Set(d, C::kLog2E), rounder), rounder);
    r_hi = hn::NegMulAdd(k, hn::Set(d, C::kLn2), abs);
    const V r2 = hn::Mul(r_hi, r_hi);
    even = hn::Mul(r2, EverySecond<0>(d, C::kShortTail, r2));
    odd = hn::Mul(hn::Mul(r_hi, r2), EverySecond<1>(d, C::kShortTail, r2));
  } else {
    ReduceByLn2(d, abs, hn::Zero(d), r_hi, minus_r_lo, k);
    const V r = hn::Sub(r_hi, minus_r_lo);
    const V r2 = hn::Mul(r, r);
    even = hn::Mul(r2, EverySecond<0>(d, C::kTail, r2));
    odd = hn::MulSub(hn::Mul(r, r2), EverySecond<1>(d, C::kTail, r2), minus_r_lo);
  }
  // 4^-k; beyond k = 30 it no longer counts.
  const V few = AtMost(d, 30, k);
  const V q = PowerOfTwo(d, hn::Neg(hn::Add(few, few)), hn::Zero(d));
  const V a = hn::Sub(one, q);
  const V b = hn::Add(one, q);
  const V q_r = hn::Mul(q, r_hi);  // exact
  if constexpr (kForFloat32<D>) {
    const V scale = PowerOfTwo(d, k, hn::Set(d, -1));
    sinh = hn::MulAdd(b, hn::Add(r_hi, odd), hn::MulAdd(a, even, a));
    cosh = hn::MulAdd(a, hn::Add(r_hi, odd), hn::MulAdd(b, even, b));
    sinh = hn::CopySign(hn::Mul(sinh, scale), x);
    cosh = hn::Mul(cosh, scale);
  } else {
    // Times 2^(k - 1) in two steps, neither of which can round a result: k - 1 may be 1024.
    const V most = AtMost(d, 1000, k);
    const V scale = PowerOfTwo(d, most, hn::Set(d, -1));
    const V more = PowerOfTwo(d, hn::Sub(k, most), hn::Zero(d));
    V lead, lead_rest, sum, rest;
    FastTwoSum(r_hi, q_r, lead, lead_rest);
    FastTwoSum(a, lead, sum, rest);
    rest = hn::Add(hn::Add(rest, lead_rest), hn::MulAdd(a, even, hn::Mul(b, odd)));
    sinh = hn::CopySign(hn::Mul(hn::Mul(hn::Add(sum, rest), scale), more), x);
    FastTwoSum(r_hi, hn::Neg(q_r), lead, lead_rest);
    FastTwoSum(b, lead, sum, rest);
    rest = hn::Add(hn::Add(rest, lead_rest), hn::MulAdd(b, even, hn::Mul(a, odd)));
    cosh = hn::Mul(hn::Mul(hn::Add(sum, rest), scale), more);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_HYPERBOLIC_INL_H_

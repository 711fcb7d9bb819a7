// arcsinh, arccosh and arctanh with derivatives, full range.
#if defined(PULLBACK_CPP_MATH_ARC_HYPERBOLIC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_ARC_HYPERBOLIC_INL_H_
#undef PULLBACK_CPP_MATH_ARC_HYPERBOLIC_INL_H_
#else
#define PULLBACK_CPP_MATH_ARC_HYPERBOLIC_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"
#include "math/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

struct ArcHyperbolicConstants {
  static constexpr double kBig = 0x1p100;  // above, sqrt(x^2 +- 1) is |x|
  // Below, the first two terms do.
  static constexpr double kSmall = 0x1p-20;
  static constexpr double kSmallForFloat32 = 0x1p-12;
  static constexpr double kLn2 = 0x1.62e42fefa39efp-1;
};

// log(a + sqrt(a^2 + kSign)), to some 2^-54 relative to a result near 0, too, and
// 1 / sqrt(a^2 + kSign), for a >= 0 (kSign = 1) or a >= 1 (kSign = -1).
template <int kSign, class D, class V = hn::Vec<D>>
HWY_INLINE void ArcHyperbolic(D d, V a, V& y, V& dy) {
  using C = ArcHyperbolicConstants;
  const V one = hn::Set(d, 1);
  const V zero = hn::Zero(d);
  const auto big = hn::Gt(a, hn::Set(d, C::kBig));
  V square, square_lo, sum, sum_lo;
  TwoProd(d, a, a, square, square_lo);
  if constexpr (kSign > 0) {
    TwoSum(square, one, sum, sum_lo);
  } else {
    FastTwoSum(square, hn::Set(d, -1), sum, sum_lo);
  }
  sum_lo = hn::Add(sum_lo, square_lo);
  const V root = hn::IfThenElse(big, a, hn::Sqrt(sum));
  const V r = hn::Div(one, root);
  V root_lo = hn::Mul(hn::Add(Residual(d, root, root, sum), sum_lo), hn::Mul(r, hn::Set(d, 0.5)));
  root_lo = hn::IfThenElseZero(hn::AndNot(big, hn::Gt(sum, zero)), root_lo);

  V v, v_lo, hi, lo;
  if constexpr (kSign > 0) {
    FastTwoSum(root, a, v, v_lo);
  } else {
    FastTwoSum(a, root, v, v_lo);
  }
  v = hn::IfThenElse(big, a, v);  // 2 a may overflow
  v_lo = hn::IfThenZeroElse(big, hn::Add(v_lo, root_lo));
  LogCore(d, v, v_lo, hi, lo);
  y = hn::Add(hi, hn::Add(lo, hn::IfThenElseZero(big, hn::Set(d, C::kLn2))));
  y = hn::IfThenElse(hn::Lt(a, Infinity(d)), y, a);
  // At a = 1, where the root is 0, the correction is NaN.
  const V corrected = hn::NegMulAdd(hn::Mul(r, r), root_lo, r);
  dy = hn::IfThenElse(hn::Eq(corrected, corrected), corrected, r);
}

// Value and derivative, full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Arcsinh(D d, V x, V& y, V& dy) {
  using C = ArcHyperbolicConstants;
  const V a = hn::Abs(x);
  if constexpr (kForFloat32<D>) {
    const V one = hn::Set(d, 1);
    const V square = hn::Mul(a, a);
    const V root = hn::Sqrt(hn::Add(square, one));
    dy = hn::Div(one, root);
    const V series = hn::NegMulAdd(hn::Mul(a, square), hn::Set(d, 1.0 / 6), a);
    y = hn::IfThenElse(hn::Lt(a, hn::Set(d, C::kSmallForFloat32)), series,
                       LogForFloat32(d, hn::Add(a, root)));
    y = hn::IfThenElse(hn::Lt(a, Infinity(d)), y, a);
  } else {
    ArcHyperbolic<1>(d, a, y, dy);
  }
  y = hn::CopySign(y, x);
}

// Value and derivative, full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Arccosh(D d, V x, V& y, V& dy) {
  const V one = hn::Set(d, 1);
  if constexpr (kForFloat32<D>) {
    const V root = hn::Sqrt(hn::Mul(hn::Sub(x, one), hn::Add(x, one)));
    dy = hn::Div(one, root);
    y = hn::IfThenElse(hn::Lt(x, Infinity(d)), LogForFloat32(d, hn::Add(x, root)), x);
  } else {
    ArcHyperbolic<-1>(d, x, y, dy);
  }
  const auto outside = hn::Lt(x, one);
  y = hn::IfThenElse(outside, hn::NaN(d), y);
  dy = hn::IfThenElse(outside, hn::NaN(d), dy);
}

// Value log((1 + x) / (1 - x)) / 2 and derivative 1 / (1 - x^2), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Arctanh(D d, V x, V& y, V& dy) {
  using C = ArcHyperbolicConstants;
  const V one = hn::Set(d, 1);
  const V a = hn::Abs(x);
  V log, small;
  if constexpr (kForFloat32<D>) {
    const V sum = hn::Add(one, a);
    dy = hn::Div(one, hn::Mul(sum, hn::Sub(one, a)));
    log = LogForFloat32(d, hn::Mul(hn::Mul(sum, sum), dy));
    small = hn::Set(d, C::kSmallForFloat32);
  } else {
    V square, square_lo, rest, rest_lo, hi, lo;
    TwoProd(d, a, a, square, square_lo);
    FastTwoSum(one, hn::Neg(square), rest, rest_lo);
    rest_lo = hn::Sub(rest_lo, square_lo);
    const V r = hn::Div(one, rest);
    const V corrected = hn::NegMulAdd(hn::Mul(r, r), rest_lo, r);
    dy = hn::IfThenElse(hn::Eq(corrected, corrected), corrected, r);  // NaN at a = 1
    // v + v_lo = (1 + a) / (1 - a), 1 / (1 - a) = (1 + a) r
    V sum, sum_lo, difference, difference_lo;
    FastTwoSum(one, a, sum, sum_lo);
    FastTwoSum(one, hn::Neg(a), difference, difference_lo);
    const V r_difference = hn::Mul(sum, r);
    const V v = hn::Mul(sum, r_difference);
    const V residual = hn::Add(Residual(d, v, difference, sum), sum_lo);
    const V v_lo = hn::Mul(r_difference, hn::NegMulAdd(v, difference_lo, residual));
    LogCore(d, v, v_lo, hi, lo);
    log = hn::Add(hi, lo);
    small = hn::Set(d, C::kSmall);
  }
  const V series = hn::MulAdd(hn::Mul(a, hn::Mul(a, a)), hn::Set(d, 1.0 / 3), a);
  y = hn::IfThenElse(hn::Lt(a, small), series, hn::Mul(log, hn::Set(d, 0.5)));
  const V at_end = hn::IfThenElse(hn::Eq(a, one), Infinity(d), hn::NaN(d));
  y = hn::CopySign(hn::IfThenElse(hn::Lt(a, one), y, at_end), x);
  dy = hn::IfThenElse(hn::Gt(a, one), hn::NaN(d), dy);
}

// -x / square^(3/2), given square = x^2 +- 1 and dy, one over its root; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ArcHyperbolicSecond(D d, V x, V square, V dy) {
  const V a = hn::Abs(x);
  const V unit = hn::Mul(AtMost(d, 0x1p1000, a), dy);  // times 0 it is 0
  const V curve = hn::IfThenElse(hn::Gt(a, hn::Set(d, ArcHyperbolicConstants::kBig)),
                                 hn::Mul(hn::Mul(dy, unit), dy), hn::Div(unit, square));
  return hn::CopySign(curve, hn::Neg(x));
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_ARC_HYPERBOLIC_INL_H_

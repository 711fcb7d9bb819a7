// arcsin, arccos, arctan and arctan2.
#if defined(PULLBACK_CPP_MATH_INVERSE_TRIG_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_INVERSE_TRIG_INL_H_
#undef PULLBACK_CPP_MATH_INVERSE_TRIG_INL_H_
#else
#define PULLBACK_CPP_MATH_INVERSE_TRIG_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"
#include "math/roots-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// From coefficients.sollya; ...ForFloat32 holds to 2^-34.
struct InverseTrigConstants {
  static constexpr double kHalfPi = 0x1.921fb54442d18p0;
  static constexpr double kHalfPiLo = 0x1.1a62633145c07p-54;
  static constexpr double kQuarterPi = 0x1.921fb54442d18p-1;
  static constexpr double kQuarterPiLo = 0x1.1a62633145c07p-55;
  static constexpr double kThreeQuartersPi = 0x1.2d97c7f3321d2p1;
  static constexpr double kThreeQuartersPiLo = 0x1.a79394c9e8a0ap-54;
  static constexpr double kPi = 0x1.921fb54442d18p1;
  static constexpr double kPiLo = 0x1.1a62633145c07p-53;
  // (atan(t) - t) / t^3 in t^2, t <= tan(pi/8)
  static constexpr double kAtan[] = {
      -0x1.555555555553cp-2, 0x1.9999999995667p-3, -0x1.24924922a166bp-3, 0x1.c71c70e1853b4p-4,
      -0x1.745cf85bf46a6p-4, 0x1.3b111042bde50p-4, -0x1.10eb54181fbb9p-4, 0x1.df099b18bae67p-5,
      -0x1.9cb917105805dp-5, 0x1.37945770bb312p-5, -0x1.24dae22b91713p-6};
  static constexpr double kAtanForFloat32[] = {
      -0x1.5555554eca9b0p-2, 0x1.999991e77954bp-3, -0x1.2490bfa3098cdp-3, 0x1.c6d16a6465764p-4,
      -0x1.707de36132394p-4, 0x1.1e45bae3d81b6p-4, -0x1.365b636ed91b4p-5};
  static constexpr double kTanPi8 = 0x1.a827999fcef32p-2;
  static constexpr double kTan3Pi8 = 0x1.3504f333f9de6p1;
  // (asin(t) - t) / t^3 in t^2, t <= 1/2
  static constexpr double kAsin[] = {
      0x1.5555555555390p-3, 0x1.333333336e80fp-4, 0x1.6db6db427a4f8p-5,  0x1.f1c72c38fb342p-6,
      0x1.6e89f440197a7p-6, 0x1.1c6be1a687738p-6, 0x1.c6fdc1aaa5332p-7,  0x1.8ec2fca60444ep-7,
      0x1.abcf5cd7c4303p-8, 0x1.3ff4a990b2acep-6, -0x1.09d32833a132cp-6, 0x1.056d6c813a1d3p-5};
  static constexpr double kAsinForFloat32[] = {
      0x1.55555605cd59fp-3, 0x1.3332aa05fb404p-4, 0x1.6ddabff6b2d01p-5, 0x1.ed5d167bc2c48p-6,
      0x1.931fa0e023e4fp-6, 0x1.ec24397eb53e6p-8, 0x1.1bd297910f320p-5};
  static constexpr double kHuge = 0x1p100;  // 1 + x^2 is x^2, x^2 still finite
};

// c[0] + c[1] z + ... as good as the result of `d` needs.
template <class D, size_t kLong, size_t kShort, class V = hn::Vec<D>>
HWY_INLINE V LongOrShort(D d, const double (&for_float64)[kLong],
                         const double (&for_float32)[kShort], V z) {
  if constexpr (kForFloat32<D>) {
    return Polynomial(d, for_float32, z, hn::Mul(z, z));
  } else {
    return Polynomial(d, for_float64, z, hn::Mul(z, z));
  }
}

// base + base_lo + atan(numerator / (denominator + denominator_lo)), for |base| above the
// arctangent or 0, and a quotient within tan(pi/8).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ArctanOfQuotient(D d, V numerator, V denominator, V denominator_lo, V base,
                              V base_lo) {
  using C = InverseTrigConstants;
  if constexpr (kForFloat32<D>) {
    const V t = hn::Div(numerator, denominator);
    const V z = hn::Mul(t, t);
    const V tail = LongOrShort(d, C::kAtan, C::kAtanForFloat32, z);
    return hn::Add(base, hn::MulAdd(hn::Mul(t, z), tail, t));
  } else {
    const V inverse = hn::Div(hn::Set(d, 1), denominator);
    const V t = hn::Mul(numerator, inverse);
    V residual = Residual(d, t, denominator, numerator);
#if !HWY_NATIVE_FMA
    // Without FMA the residual of a tiny product is rounding errors.
    residual = hn::IfThenElseZero(hn::Gt(hn::Abs(numerator), hn::Set(d, 0x1p-900)), residual);
#endif
    const V t_lo = hn::Mul(hn::NegMulAdd(t, denominator_lo, residual), inverse);
    const V z = hn::Mul(t, t);
    const V tail = hn::MulAdd(hn::Mul(t, z), LongOrShort(d, C::kAtan, C::kAtanForFloat32, z),
                              hn::Add(t_lo, base_lo));
    V sum, rest;
    FastTwoSum(base, t, sum, rest);
    return hn::Add(sum, hn::Add(rest, tail));
  }
}

// arctan(x) and 1 / (1 + x^2), full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Arctan(D d, V x, V& y, V& dy) {
  using C = InverseTrigConstants;
  const V one = hn::Set(d, 1);
  const V abs_x = hn::Abs(x);
  {
    const V a = AtMost(d, C::kHuge, abs_x);
    const auto middle = hn::Gt(a, hn::Set(d, C::kTanPi8));
    const auto far = hn::Gt(a, hn::Set(d, C::kTan3Pi8));
    const V sum = hn::Add(a, one);
    const V numerator =
        hn::IfThenElse(far, hn::Set(d, -1), hn::IfThenElse(middle, hn::Sub(a, one), a));
    const V denominator = hn::IfThenElse(far, a, hn::IfThenElse(middle, sum, one));
    const V denominator_lo =
        hn::IfThenZeroElse(far, hn::IfThenElseZero(middle, hn::Sub(a, hn::Sub(sum, one))));
    const V base = hn::IfThenElse(far, hn::Set(d, C::kHalfPi),
                                  hn::IfThenElseZero(middle, hn::Set(d, C::kQuarterPi)));
    const V base_lo = hn::IfThenElse(far, hn::Set(d, C::kHalfPiLo),
                                     hn::IfThenElseZero(middle, hn::Set(d, C::kQuarterPiLo)));
    y = hn::CopySign(ArctanOfQuotient(d, numerator, denominator, denominator_lo, base, base_lo), x);
  }
  if constexpr (kForFloat32<D>) {
    dy = hn::Div(one, hn::MulAdd(x, x, one));
  } else {
    const auto huge = hn::Gt(abs_x, hn::Set(d, C::kHuge));
    const V scale = hn::IfThenElse(huge, hn::Set(d, 0x1p-100), one);
    const V a = hn::Mul(AtMost(d, 0x1p560, abs_x), scale);
    V square, square_lo, sum, sum_lo;
    TwoProd(d, a, a, square, square_lo);
    TwoSum(hn::IfThenZeroElse(huge, one), square, sum, sum_lo);
    const V r = hn::Div(one, sum);
    const V rho = hn::NegMulAdd(r, hn::Add(sum_lo, square_lo), Residual(d, r, sum, one));
    dy = hn::Mul(hn::Mul(hn::MulAdd(r, rho, r), scale), scale);
  }
}

// -2 x / (1 + x^2)^2, given dy = 1 / (1 + x^2); double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ArctanSecond(D d, V x, V dy) {
  const V magnitude = AtMost(d, 0x1p600, hn::Abs(x));  // times 0 it is 0
  return hn::CopySign(hn::Mul(hn::Mul(hn::Add(magnitude, magnitude), dy), dy), hn::Neg(x));
}

// 1 / sqrt(1 - x^2), full range: NaN beyond 1.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ArcsinSlope(D d, V x) {
  const V one = hn::Set(d, 1);
  if constexpr (kForFloat32<D>) {
    // The square of a float is exact.
    return hn::Div(one, hn::Sqrt(hn::NegMulAdd(x, x, one)));
  } else {
    V square, square_lo, q, q_lo;
    TwoProd(d, x, x, square, square_lo);
    FastTwoSum(one, hn::Neg(square), q, q_lo);
    FastTwoSum(q, hn::Sub(q_lo, square_lo), q, q_lo);
    return ReciprocalRoot(d, q, q_lo);
  }
}

// arcsin(x) and its derivative; NaN beyond [-1, 1].
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Arcsin(D d, V x, V& y, V& dy) {
  using C = InverseTrigConstants;
  const V abs_x = hn::Abs(x);
  const V half = hn::Set(d, 0.5);
  // Above 1/2, pi/2 - 2 arcsin(sqrt((1 - |x|) / 2)).
  const auto large = hn::Gt(abs_x, half);
  const V z = hn::IfThenElse(large, hn::NegMulAdd(abs_x, half, half), hn::Mul(abs_x, abs_x));
  const V t = hn::IfThenElse(large, hn::Mul(hn::Set(d, -2), hn::Sqrt(z)), abs_x);
  const V tail = hn::MulAdd(hn::Mul(t, z), LongOrShort(d, C::kAsin, C::kAsinForFloat32, z),
                            hn::IfThenElseZero(large, hn::Set(d, C::kHalfPiLo)));
  V sum, rest;
  FastTwoSum(hn::IfThenElseZero(large, hn::Set(d, C::kHalfPi)), t, sum, rest);
  y = hn::CopySign(hn::Add(sum, hn::Add(rest, tail)), x);
  dy = ArcsinSlope(d, x);
}

// arccos(x) and its derivative; NaN beyond [-1, 1].
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Arccos(D d, V x, V& y, V& dy) {
  using C = InverseTrigConstants;
  const V abs_x = hn::Abs(x);
  const V half = hn::Set(d, 0.5);
  const V zero = hn::Zero(d);
  // pi/2 - arcsin(x); above 1/2, 2 arcsin(sqrt((1 - x) / 2)), below -1/2, its complement to pi.
  const auto large = hn::Gt(abs_x, half);
  const V z = hn::IfThenElse(large, hn::NegMulAdd(abs_x, half, half), hn::Mul(abs_x, abs_x));
  const V root = hn::Sqrt(z);
  const V t = hn::IfThenElse(large, hn::CopySign(hn::Add(root, root), x), hn::Neg(x));
  const V base = hn::IfThenElse(large, hn::IfNegativeThenElse(x, hn::Set(d, C::kPi), zero),
                                hn::Set(d, C::kHalfPi));
  const V base_lo = hn::IfThenElse(large, hn::IfNegativeThenElse(x, hn::Set(d, C::kPiLo), zero),
                                   hn::Set(d, C::kHalfPiLo));
  const V tail =
      hn::MulAdd(hn::Mul(t, z), LongOrShort(d, C::kAsin, C::kAsinForFloat32, z), base_lo);
  V sum, rest;
  FastTwoSum(base, t, sum, rest);
  y = hn::Add(sum, hn::Add(rest, tail));
  dy = hn::Neg(ArcsinSlope(d, x));
}

// arctan2(y, x), x / (x^2 + y^2) and -y / (x^2 + y^2), full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Arctan2(D d, V y, V x, V& angle, V& dy, V& dx) {
  using C = InverseTrigConstants;
  const V one = hn::Set(d, 1);
  const V zero = hn::Zero(d);
  const V inf = Infinity(d);
  const V abs_x = hn::Abs(x);
  const V abs_y = hn::Abs(y);
  const auto infinite_x = hn::Eq(abs_x, inf);
  const auto infinite_y = hn::Eq(abs_y, inf);
  const auto infinite = hn::Or(infinite_x, infinite_y);
  const V nan = hn::Add(abs_x, abs_y);  // if either is
  const auto ordered = hn::Eq(nan, nan);
  {
    V a = abs_x;
    V b = abs_y;
    if constexpr (!kForFloat32<D>) {
      // The larger of them at least 1 when large: what the smaller loses is too small then.
      const V scale = hn::IfThenElse(
          hn::Gt(hn::Max(a, b), hn::Set(d, 0x1p450)), hn::Set(d, 0x1p-450),
          hn::IfThenElse(hn::Lt(hn::Max(a, b), hn::Set(d, 0x1p-450)), hn::Set(d, 0x1p450), one));
      a = hn::Mul(a, scale);
      b = hn::Mul(b, scale);
    }
    a = hn::IfThenElse(infinite, hn::IfThenElseZero(infinite_x, one), a);
    b = hn::IfThenElse(infinite, hn::IfThenElseZero(infinite_y, one), b);
    const auto middle = hn::Gt(b, hn::Mul(a, hn::Set(d, C::kTanPi8)));
    const auto far = hn::Gt(b, hn::Mul(a, hn::Set(d, C::kTan3Pi8)));
    const V sum = hn::Add(a, b);
    const V sum_lo = hn::Sub(hn::Min(a, b), hn::Sub(sum, hn::Max(a, b)));
    V numerator = hn::IfThenElse(far, hn::Neg(a), hn::IfThenElse(middle, hn::Sub(b, a), b));
    V denominator = hn::IfThenElse(far, b, hn::IfThenElse(middle, sum, a));
    denominator = hn::IfThenElse(hn::Eq(denominator, zero), one, denominator);
    const V denominator_lo = hn::IfThenZeroElse(far, hn::IfThenElseZero(middle, sum_lo));
    // Left of the ordinate, the angle's complement to pi. -0 is left, but not negative everywhere.
    const V side = hn::CopySign(one, x);
    numerator = hn::Xor(numerator, hn::And(x, hn::SignBit(d)));
    const V near_base = hn::IfNegativeThenElse(side, hn::Set(d, C::kPi), zero);
    const V near_base_lo = hn::IfNegativeThenElse(side, hn::Set(d, C::kPiLo), zero);
    const V middle_base =
        hn::IfNegativeThenElse(side, hn::Set(d, C::kThreeQuartersPi), hn::Set(d, C::kQuarterPi));
    const V middle_base_lo = hn::IfNegativeThenElse(side, hn::Set(d, C::kThreeQuartersPiLo),
                                                    hn::Set(d, C::kQuarterPiLo));
    const V base =
        hn::IfThenElse(far, hn::Set(d, C::kHalfPi), hn::IfThenElse(middle, middle_base, near_base));
    const V base_lo = hn::IfThenElse(far, hn::Set(d, C::kHalfPiLo),
                                     hn::IfThenElse(middle, middle_base_lo, near_base_lo));
    angle =
        hn::CopySign(ArctanOfQuotient(d, numerator, denominator, denominator_lo, base, base_lo), y);
    angle = hn::IfThenElse(ordered, angle, nan);
  }
  const SquaredLength<V> length = MakeSquaredLength(d, x, y);
  const V r = hn::Div(one, length.hi);
  if constexpr (kForFloat32<D>) {
    dy = hn::Mul(x, r);
    dx = hn::Mul(hn::Neg(y), r);
  } else {
    const V rho = hn::NegMulAdd(r, length.lo, Residual(d, r, length.hi, one));
    const V dy_raw = hn::Mul(hn::Mul(x, length.before), r);
    const V dx_raw = hn::Mul(hn::Mul(y, length.before), r);
    dy = hn::Mul(hn::Mul(hn::MulAdd(dy_raw, rho, dy_raw), length.after), length.scale);
    dx = hn::Mul(hn::Mul(hn::MulAdd(dx_raw, rho, dx_raw), length.after), length.scale);
    // The sums turn a -0 into +0.
    dy = hn::CopySign(dy, x);
    dx = hn::CopySign(dx, hn::Neg(y));
  }
  dy = hn::IfThenElse(infinite, hn::CopySign(zero, x), dy);
  dx = hn::IfThenElse(infinite, hn::CopySign(zero, hn::Neg(y)), dx);
  dy = hn::IfThenElse(ordered, dy, nan);
  dx = hn::IfThenElse(ordered, dx, nan);
}

// -2 x y / r^4, (y^2 - x^2) / r^4 and 2 x y / r^4, r = hypot(y, x), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Arctan2Second(D d, V y, V x, V& dyy, V& dyx, V& dxx) {
  const V one = hn::Set(d, 1);
  const NearUnit<V> n = BringNearUnit(d, y, x);
  V y2, y2_lo, x2, x2_lo, square, square_lo, difference, difference_lo;
  TwoProd(d, n.u, n.u, y2, y2_lo);
  TwoProd(d, n.v, n.v, x2, x2_lo);
  TwoSum(y2, x2, square, square_lo);
  TwoDiff(y2, x2, difference, difference_lo);
  square_lo = hn::Add(square_lo, hn::Add(y2_lo, x2_lo));
  difference = hn::Add(difference, hn::Add(difference_lo, hn::Sub(y2_lo, x2_lo)));
  const V r = hn::Div(one, square);
  const V rho = hn::NegMulAdd(r, square_lo, Residual(d, r, square, one));
  const V twice_rho = hn::Add(rho, rho);
  const auto over_square = [&](V v) {  // v / square^2
    const V quotient = hn::Mul(hn::Mul(v, r), r);
    return hn::MulAdd(quotient, twice_rho, quotient);
  };
  const auto up = [&](V v) { return hn::Mul(hn::Mul(v, n.up), n.more); };
  const auto y_first = hn::Gt(hn::Abs(n.u), hn::Abs(n.v));
  const V larger = over_square(hn::IfThenElse(y_first, n.u, n.v));
  const V smaller = hn::IfThenElse(y_first, n.v, n.u);
  // What may be subnormal is raised before it rounds, anything else after, lest it overflow.
  const auto tiny = hn::Lt(hn::Abs(smaller), hn::Set(d, 0x1p-500));
  const V product =
      hn::Mul(hn::Add(larger, larger), hn::IfThenElse(tiny, up(up(smaller)), smaller));
  dxx = hn::CopySign(hn::IfThenElse(tiny, product, up(up(product))), hn::Xor(y, x));
  dyx = up(up(over_square(difference)));
  const V inf = Infinity(d);
  const V side = hn::IfThenElse(hn::Eq(hn::Abs(y), inf), one, hn::Neg(one));
  dxx = AtInfinity(d, y, x, hn::Xor(y, x), dxx);
  dyx = AtInfinity(d, y, x, side, dyx);
  dyy = hn::Neg(dxx);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_INVERSE_TRIG_INL_H_

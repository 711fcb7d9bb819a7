// exp, exp2, expm1 and the units made of it, full range.
#if defined(PULLBACK_CPP_MATH_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_EXP_INL_H_
#undef PULLBACK_CPP_MATH_EXP_INL_H_
#else
#define PULLBACK_CPP_MATH_EXP_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
struct ExpConstants;

// kTail: (exp(r) - 1 - r) / r^2, kSharpTail: (exp(r) - 1 - r - r^2/2) / r^3, both on
// |r| <= log(2)/2, from coefficients.sollya.
template <>
struct ExpConstants<float> {
  static constexpr float kLog2E = 0x1.715476p0f;
  static constexpr float kLn2Hi = 0x1.62e4p-1f;  // short: times an exponent it is exact
  static constexpr float kLn2Lo = 0x1.7f7d1cp-20f;
  static constexpr float kTail[] = {0x1.fffffcp-2f, 0x1.55549p-3f, 0x1.5558ap-5f, 0x1.123ac6p-7f,
                                    0x1.6a6034p-10f};
  static constexpr float kSharpTail[] = {0x1.555552p-3f, 0x1.5554e4p-5f, 0x1.1115b6p-7f,
                                         0x1.6d516p-10f, 0x1.9a94aep-13f};
  static constexpr float kMax = 89.0f;    // above, exp is infinite
  static constexpr float kMin = -104.5f;  // below, exp rounds to 0
  static constexpr float kMinusOne = 20;  // above, expm1 and exp agree
};

template <>
struct ExpConstants<double> {
  static constexpr double kLog2E = 0x1.71547652b82fep0;
  static constexpr double kLn2Hi = 0x1.62e42fefa38p-1;
  static constexpr double kLn2Lo = 0x1.ef35793c7673p-45;
  static constexpr double kTail[] = {
      0x1.000000000000ap-1,  0x1.55555555554fcp-3,  0x1.5555555550689p-5,  0x1.111111112725dp-7,
      0x1.6c16c18488a72p-10, 0x1.a01a012dcb966p-13, 0x1.a01999231b6efp-16, 0x1.71df1d1476f36p-19,
      0x1.28ae3c99e664bp-22, 0x1.ad8d55a3886e8p-26};
  static constexpr double kSharpTail[] = {
      0x1.555555555555cp-3,  0x1.5555555555543p-5,  0x1.111111110e9f8p-7,  0x1.6c16c16c1ec9fp-10,
      0x1.a01a01b447262p-13, 0x1.a01a017b3b131p-16, 0x1.71ddee690a193p-19, 0x1.27e537b8057c5p-22,
      0x1.af6e978eb2666p-26, 0x1.1ee734b5550dap-29};
  // The same to about 2^-40, and (2^r - 1) / r: what float32 needs of float64.
  static constexpr double kShortTail[] = {
      0x1.000000005e972p-1,  0x1.5555557e097c3p-3,  0x1.5555541caeacbp-5, 0x1.1110a1fc61bap-7,
      0x1.6c18d50a8a6cdp-10, 0x1.a1860293a76fap-13, 0x1.9e8883fc7cf1ep-16};
  static constexpr double kShortExp2[] = {
      0x1.62e42fef899f8p-1,  0x1.ebfbdff8ef6b5p-3,  0x1.c6b08dcf5f0f4p-5,  0x1.3b2ab5ebd9ba3p-7,
      0x1.5d874c5780704p-10, 0x1.430aaa1a4a2f7p-13, 0x1.00d8cb59e805dp-16, 0x1.61c470833f703p-20};
  static constexpr double kExp2Max = 1030.0;  // as kMax and kMin
  static constexpr double kExp2Min = -1080.0;
  static constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  static constexpr double kLn2Rest = 0x1.abc9e3b39803fp-56;
  static constexpr double kLn2Square = 0x1.ebfbdff82c58fp-2;
  static constexpr double kLn2SquareRest = -0x1.5e43a53e44da3p-56;
  static constexpr double kMax = 710.0;
  static constexpr double kMin = -746.0;
  static constexpr double kMinusOne = 50;
};

// exp(r_hi - minus_r_lo) = p_hi + p_lo for |r_hi - minus_r_lo| <= log(2)/2, to a relative 2^-55
// (float: 2^-26), kSharp 2^-57 (2^-28); near 0, p_hi + p_lo - 1 is as accurate in the relative
// sense.
template <bool kSharp, class D, class V = hn::Vec<D>>
HWY_INLINE void ExpOfReduced(D d, V r_hi, V minus_r_lo, V& p_hi, V& p_lo) {
  using C = ExpConstants<hn::TFromD<D>>;
  const V r = hn::Sub(r_hi, minus_r_lo);
  const V r2 = hn::Mul(r, r);
  V rest;
  FastTwoSum(hn::Set(d, 1), r_hi, p_hi, rest);
  if constexpr (kSharp) {
    // r^2/2 joins the leading part, and tail(r) gets its slope's share of what r dropped.
    V more;
    FastTwoSum(p_hi, hn::Mul(r2, hn::Set(d, 0.5)), p_hi, more);
    const V dropped = hn::Sub(hn::Sub(r_hi, r), minus_r_lo);
    const V tail = hn::MulSub(hn::Mul(r, r2), Polynomial(d, C::kSharpTail, r, r2), minus_r_lo);
    p_lo = hn::Add(hn::Add(rest, more), hn::MulAdd(dropped, r, tail));
  } else {
    const V tail = hn::MulSub(r2, Polynomial(d, C::kTail, r, r2), minus_r_lo);
    p_lo = hn::Add(rest, tail);
  }
}

// x + x_lo = k log(2) + r_hi - minus_r_lo, |r_hi - minus_r_lo| <= log(2)/2, for the range of
// ExpCore.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void ReduceByLn2(D d, V x, V x_lo, V& r_hi, V& minus_r_lo, V& k) {
  using C = ExpConstants<hn::TFromD<D>>;
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  k = hn::Sub(hn::MulAdd(x, hn::Set(d, C::kLog2E), rounder), rounder);
  r_hi = hn::NegMulAdd(k, hn::Set(d, C::kLn2Hi), x);  // exact
  minus_r_lo = hn::MulSub(k, hn::Set(d, C::kLn2Lo), x_lo);
}

// exp(x + x_lo) = (p_hi + p_lo) * 2^k with p in about [0.7, 1.42], to the accuracy of ExpOfReduced.
// For x in [-1e5, 1e5] (float: [-300, 300]) or NaN; |x_lo| <= a few ulp(x).
template <bool kSharp = false, class D, class V = hn::Vec<D>>
HWY_INLINE void ExpCore(D d, V x, V x_lo, V& p_hi, V& p_lo, V& k) {
  V r_hi, minus_r_lo;
  ReduceByLn2(d, x, x_lo, r_hi, minus_r_lo, k);
  ExpOfReduced<kSharp>(d, r_hi, minus_r_lo, p_hi, p_lo);
}

template <bool kSharp = false, class D, class V = hn::Vec<D>>
HWY_INLINE void ExpCore(D d, V x, V& p_hi, V& p_lo, V& k) {
  ExpCore<kSharp>(d, x, hn::Zero(d), p_hi, p_lo, k);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V ClampToExpRange(D d, V x) {
  using C = ExpConstants<hn::TFromD<D>>;
  return AtLeast(d, C::kMin, AtMost(d, C::kMax, x));
}

// float, double; full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp(D d, V x) {
  V p_hi, p_lo, k;
  ExpCore(d, ClampToExpRange(d, x), p_hi, p_lo, k);
  return Ldexp(d, hn::Add(p_hi, p_lo), k);
}

// exp(z - largest) within an ULP, also among the subnormals, for z <= largest; NaN for a difference
// of infinities.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpBelow(D d, V z, V largest) {
  using T = hn::TFromD<D>;
  using C = ExpConstants<T>;
  using Format = FormatOf<D>;
  V t, t_lo;
  TwoDiff(z, largest, t, t_lo);
  // Elsewhere t_lo may be NaN, and exp(t) is 0 or NaN.
  t_lo = hn::IfThenElseZero(hn::Gt(t, hn::Set(d, C::kMin)), t_lo);
  t = AtLeast(d, C::kMin, t);
  // The last bits of this are the exponent of 2^k, moved up so far that it is normal.
  const V rounder =
      hn::Set(d, Format::kRounder + static_cast<T>(Format::kExponentBias) + Format::kGap);
  const V rounded = hn::MulAdd(t, hn::Set(d, C::kLog2E), rounder);
  const hn::RebindToUnsigned<D> du;
  const V up = hn::BitCast(d, hn::ShiftLeft<Format::kMantissaBits>(hn::BitCast(du, rounded)));
  const V k = hn::Sub(rounded, rounder);
  const V r_hi = hn::NegMulAdd(k, hn::Set(d, C::kLn2Hi), t);  // exact
  const V minus_r_lo = hn::MulSub(k, hn::Set(d, C::kLn2Lo), t_lo);
  const V r = hn::Sub(r_hi, minus_r_lo);
  const V r2 = hn::Mul(r, r);
  const V tail = hn::MulSub(r2, Polynomial(d, C::kTail, r, r2), minus_r_lo);
  const V p = hn::Add(hn::Set(d, 1), hn::Add(r_hi, tail));
  return hn::Mul(hn::Mul(p, up), hn::Set(d, Format::kGapDown));
}

// expm1(x) = hi + lo, for x below ExpConstants::kMinusOne.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Expm1Core(D d, V p_hi, V p_lo, V k, V& hi, V& lo) {
  // Below this exponent only the -1 counts.
  const V scale = PowerOfTwo(d, hn::Max(k, hn::Set(d, -100)), hn::Zero(d));
  V sum, rest;
  TwoSum(hn::Mul(p_hi, scale), hn::Set(d, -1), sum, rest);
  FastTwoSum(sum, hn::MulAdd(p_lo, scale, rest), hi, lo);
}

// Value and derivative, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Expm1(D d, V x, V& y, V& dy) {
  using C = ExpConstants<hn::TFromD<D>>;
  V p_hi, p_lo, k, hi, lo;
  ExpCore<true>(d, ClampToExpRange(d, x), p_hi, p_lo, k);
  dy = Ldexp(d, hn::Add(p_hi, p_lo), k);
  const auto large = hn::Gt(x, hn::Set(d, C::kMinusOne));
  Expm1Core(d, p_hi, p_lo, hn::IfThenZeroElse(large, k), hi, lo);
  y = hn::CopySign(hn::IfThenElse(large, dy, hn::Add(hi, lo)), x);
}

// exp(x) - 1 for x <= 0, and exp(x), both to a relative 2^-38, kSharp to 2^-52 near 0; for
// |x| <= 700 or NaN.
template <bool kSharp = false, class D, class V = hn::Vec<D>>
HWY_INLINE void ShortExpm1(D d, V x, V& expm1, V& exp) {
  static_assert(kForFloat32<D>);
  using C = ExpConstants<double>;
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  const V k = hn::Sub(hn::MulAdd(x, hn::Set(d, C::kLog2E), rounder), rounder);
  const V r = hn::NegMulAdd(k, hn::Set(d, C::kLn2), x);
  const V r2 = hn::Mul(r, r);
  V tail;
  if constexpr (kSharp) {
    tail = Polynomial(d, C::kTail, r, r2);
  } else {
    tail = Polynomial(d, C::kShortTail, r, r2);
  }
  const V q = hn::MulAdd(r2, tail, r);
  const V scale = PowerOfTwo(d, k, hn::Zero(d));
  expm1 = hn::MulAdd(q, scale, hn::Sub(scale, hn::Set(d, 1)));
  exp = hn::MulAdd(q, scale, scale);
}

template <bool kSharp = false, class D, class V = hn::Vec<D>>
HWY_INLINE V ShortExp(D d, V x) {
  V expm1, exp;
  ShortExpm1<kSharp>(d, x, expm1, exp);
  return exp;
}

// 2^x = (p_hi + p_lo) * 2^k, full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Exp2Core(D d, V x, V& p_hi, V& p_lo, V& k) {
  using C = ExpConstants<double>;
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  x = AtLeast(d, C::kExp2Min, AtMost(d, C::kExp2Max, x));
  k = hn::Sub(hn::Add(x, rounder), rounder);
  const V r = hn::Sub(x, k);  // exact
  V r_hi, r_lo, p, rest;
  TwoProd(d, r, hn::Set(d, C::kLn2), r_hi, r_lo);
  const V minus_r_lo = hn::Neg(hn::MulAdd(r, hn::Set(d, C::kLn2Rest), r_lo));
  ExpOfReduced<false>(d, r_hi, minus_r_lo, p, rest);
  FastTwoSum(p, rest, p_hi, p_lo);
}

// 2^x and log(2) 2^x, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Exp2(D d, V x, V& y, V& dy) {
  using C = ExpConstants<double>;
  const V ln2 = hn::Set(d, C::kLn2);
  if constexpr (kForFloat32<D>) {
    const V rounder = hn::Set(d, FormatOf<D>::kRounder);
    x = AtLeast(d, C::kExp2Min, AtMost(d, C::kExp2Max, x));
    const V k = hn::Sub(hn::Add(x, rounder), rounder);
    const V r = hn::Sub(x, k);  // exact
    const V p = hn::MulAdd(r, Polynomial(d, C::kShortExp2, r, hn::Mul(r, r)), hn::Set(d, 1));
    y = Ldexp(d, p, k);
    dy = Ldexp(d, hn::Mul(p, ln2), k);
  } else {
    V p_hi, p_lo, k;
    Exp2Core(d, x, p_hi, p_lo, k);
    y = Ldexp(d, p_hi, k);
    const V rest = hn::MulAdd(p_lo, ln2, hn::Mul(p_hi, hn::Set(d, C::kLn2Rest)));
    dy = Ldexp(d, hn::MulAdd(p_hi, ln2, rest), k);
  }
}

// log(2)^2 2^x, full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2Second(D d, V x) {
  using C = ExpConstants<double>;
  V p_hi, p_lo, k;
  Exp2Core(d, x, p_hi, p_lo, k);
  const V factor = hn::Set(d, C::kLn2Square);
  const V rest = hn::MulAdd(p_lo, factor, hn::Mul(p_hi, hn::Set(d, C::kLn2SquareRest)));
  return Ldexp(d, hn::MulAdd(p_hi, factor, rest), k);
}

// scale * x on the right, scale * alpha * expm1(x) on the left and at 0, and its derivative.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Selu(D d, V x, V& y, V& dy) {
  using C = ExpConstants<double>;
  const V scale = hn::Set(d, 0x1.0cfabd6a91132p0);
  const V scale_alpha = hn::Set(d, 0x1.c212cc640f031p0);
  const V t = AtMost(d, 0, x);
  V left, slope;
  if constexpr (kForFloat32<D>) {
    V expm1, exp;
    ShortExpm1(d, AtLeast(d, -200, t), expm1, exp);
    left = hn::Mul(expm1, scale_alpha);
    slope = hn::Mul(exp, scale_alpha);
  } else {
    V p_hi, p_lo, k, hi, lo;
    ExpCore(d, AtLeast(d, C::kMin, t), p_hi, p_lo, k);
    Expm1Core(d, p_hi, p_lo, k, hi, lo);
    left = hn::MulAdd(hi, scale_alpha, hn::Mul(lo, scale_alpha));
    slope = Ldexp(d, hn::Mul(hn::Add(p_hi, p_lo), scale_alpha), k);
  }
  const auto positive = hn::Gt(x, hn::Zero(d));
  y = hn::CopySign(hn::IfThenElse(positive, hn::Mul(x, scale), left), x);
  dy = hn::IfThenElse(positive, scale, slope);
}

// v * exp(x) for exp(x) = p * 2^k, p = 0 or in about [0.7, 1.42], k in [-2200, 0]: where exp(x)
// alone underflows, too.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V TimesExp(D d, V v, V p, V k) {
  // |v| near 1 and k in two halves: neither product but the last can underflow, unless that is 0.
  const auto large = hn::Ge(hn::Abs(v), hn::Set(d, 1));
  const V shift = hn::IfThenElse(large, hn::Set(d, 512), hn::Set(d, -512));
  v = hn::Mul(v, hn::IfThenElse(large, hn::Set(d, 0x1p-512), hn::Set(d, 0x1p512)));
  k = AtLeast(d, -2040, hn::Add(k, shift));
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  const V half = hn::Sub(hn::MulAdd(k, hn::Set(d, 0.5), rounder), rounder);
  const V zero = hn::Zero(d);
  return hn::Mul(hn::Mul(hn::Mul(v, p), PowerOfTwo(d, half, zero)),
                 PowerOfTwo(d, hn::Sub(k, half), zero));
}

// v * exp(x), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V TimesExp(D d, V v, V x) {
  V p_hi, p_lo, k;
  ExpCore(d, AtLeast(d, -1500, AtMost(d, 1500, x)), hn::Zero(d), p_hi, p_lo, k);
  // Up to |k| = 1000 the one product that rounds is the last. Beyond, 2^(+-600) before and after it
  // keeps it in range unless the result is far out of it.
  const V zero = hn::Zero(d);
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  const V side = hn::Sub(hn::MulAdd(k, hn::Set(d, 1.0 / 2000), rounder), rounder);
  const V scale = PowerOfTwo(d, hn::Mul(side, hn::Set(d, 600)), zero);
  const V rest = PowerOfTwo(d, hn::NegMulAdd(side, hn::Set(d, 1200), k), zero);
  const V product = hn::Mul(hn::Mul(v, scale), hn::Mul(hn::Add(p_hi, p_lo), rest));
  return hn::Mul(product, scale);
}

// x on the right, alpha * expm1(x) on the left and at 0, and both derivatives, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Elu(D d, V x, V alpha, V& y, V& dx, V& dalpha) {
  const V t = AtMost(d, 0, x);
  const auto infinite = hn::Eq(x, hn::Neg(Infinity(d)));
  V expm1, slope;
  if constexpr (kForFloat32<D>) {
    V exp;
    ShortExpm1(d, AtLeast(d, -300, t), expm1, exp);
    slope = hn::Mul(alpha, hn::IfThenZeroElse(infinite, exp));
  } else {
    V p_hi, p_lo, k, hi, lo;
    ExpCore(d, AtLeast(d, -1500, t), p_hi, p_lo, k);
    Expm1Core(d, p_hi, p_lo, k, hi, lo);
    expm1 = hn::Add(hi, lo);
    slope = TimesExp(d, alpha, hn::IfThenZeroElse(infinite, hn::Add(p_hi, p_lo)), k);
  }
  expm1 = hn::CopySign(expm1, x);
  const auto positive = hn::Gt(x, hn::Zero(d));
  y = hn::IfThenElse(positive, x, hn::Mul(alpha, expm1));
  dx = hn::IfThenElse(positive, hn::Set(d, 1), slope);
  dalpha = hn::IfThenZeroElse(positive, expm1);
}

// exp(x) on the left and at 0, which is what Elu's mixed second derivative is; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V EluSlope(D d, V x) {
  V p_hi, p_lo, k;
  ExpCore(d, AtLeast(d, -1500, AtMost(d, 0, x)), p_hi, p_lo, k);
  const V p = hn::IfThenZeroElse(hn::Eq(x, hn::Neg(Infinity(d))), hn::Add(p_hi, p_lo));
  return hn::IfThenZeroElse(hn::Gt(x, hn::Zero(d)), TimesExp(d, hn::Set(d, 1), p, k));
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_EXP_INL_H_

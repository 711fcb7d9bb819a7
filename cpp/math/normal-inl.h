// The normal distribution: ndtr, its logarithm, and its inverse, which is erf's, too.
#if defined(PULLBACK_CPP_MATH_NORMAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_NORMAL_INL_H_
#undef PULLBACK_CPP_MATH_NORMAL_INL_H_
#else
#define PULLBACK_CPP_MATH_NORMAL_INL_H_
#endif

#include <hwy/highway.h>

#include "math/erf-inl.h"
#include "math/error_free-inl.h"
#include "math/exp-inl.h"
#include "math/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// phi, Phi and R as in GeluConstants. Polynomials are Chebyshev interpolants, from 60-digit
// arithmetic or more.
struct NormalConstants {
  // (1/R(t)) (1/R(t) - t) for Mills' ratio R, in u = (t - 4) / (t + 4) for t >= 0, to 2^-55.
  static constexpr double kCurvature[] = {
      0x1.e81a7f6af1728p-1,   0x1.248eea56922e8p-3,  -0x1.4a76f8884f493p-3,  0x1.1686edb8e7221p-4,
      0x1.80945ca684798p-6,   -0x1.46faf9454f8c8p-5, 0x1.08b538930471ep-7,   0x1.b489463207d61p-7,
      -0x1.0843556e7c819p-7,  -0x1.6a676a44559cep-9, 0x1.05a5f40243d63p-8,   0x1.698e547446250p-20,
      -0x1.8a402946fbb88p-10, 0x1.6499232d7bfcfp-12, 0x1.e74689bcf4f39p-12,  -0x1.b8ed82f833c4ap-13,
      -0x1.e7b073e4be327p-14, 0x1.795c217e6d4ebp-14, 0x1.578549b72611bp-16,  -0x1.075c1cd385731p-15,
      -0x1.e131a7716e4bap-22, 0x1.36ecd1fcc2069p-17, -0x1.89e0fece999d9p-20, -0x1.336b7aa968dbdp-19,
      0x1.68f2a76ef11f0p-21,  0x1.e390c5fb596dbp-22, -0x1.550036aa52939p-23, -0x1.0cb6dcd16a7fbp-24,
      0x1.2541d14be1abcp-26,  0x1.38e292a919ca0p-28};
  static constexpr double kHazard[] = {1, -2, 10, -74, 706, -8162};
  // Of p = Phi(-t): t / (1 - 2 p) in (1 - 2 p)^2 up to 1/4, and, for p below 1/4, t / s in
  // (s - 2) / (s + 2) with s^2 = -2 log(p), to 2^-22. ForFloat32 to 2^-32.
  static constexpr double kCentral[] = {
      0x1.40d931ff62706p+0, 0x1.4ffddeaa22dbfp-2,  0x1.71713082daefap-3, 0x1.f55d0d77c94b2p-4,
      0x1.78494b3b4d906p-4, 0x1.2ba8d0a990631p-4,  0x1.f047ff9590632p-5, 0x1.a65763690ff8ap-5,
      0x1.708f2d90c754cp-5, 0x1.38719b2273cc3p-5,  0x1.6619fd8104159p-5, -0x1.0ec2e41e1261dp-9,
      0x1.f9484b3326a10p-4, -0x1.174525598e229p-3, 0x1.5ba9fd020277ap-3};
  static constexpr double kCentralLo = -0x1.a6a0d6f814637p-54;
  static constexpr double kCentralForFloat32[] = {
      0x1.40d931ff66491p+0, 0x1.4ffdde833e9c6p-2,  0x1.717150b0f6fc8p-3,
      0x1.f552de0d0322ap-4, 0x1.791648c046435p-4,  0x1.22b6fae04efb7p-4,
      0x1.31aea8c37e0acp-4, 0x1.cb3f0703966e0p-11, 0x1.12ff23e807a5bp-3};
  static constexpr double kStart[] = {
      0x1.19fd319d0bb81p-1,  0x1.6335e3deab75ap+0, -0x1.03e2ccbc2e56ep+1, 0x1.275210c1dc055p+1,
      -0x1.401cb22474b45p+1, 0x1.4f2b7a85f69c2p+1, -0x1.4c7c4b8ee4d8cp+1, 0x1.204add4f284a1p+1,
      -0x1.8281cc469ba30p+0, 0x1.5150aaca867dbp-1, -0x1.177bcf3101c5cp-3};
  static constexpr double kStartForFloat32[] = {
      0x1.19fd30bbb2e93p-1,  0x1.6335eddd07d6cp+0, -0x1.03e23f1ad6022p+1, 0x1.2749b72afe6cbp+1,
      -0x1.4027a12231569p+1, 0x1.51eff74fdbb7dp+1, -0x1.607feadbbb69cp+1, 0x1.6a6640f3e4ed2p+1,
      -0x1.68c246a505aa4p+1, 0x1.48d863d83065cp+1, -0x1.f4f1164dabc67p+0, 0x1.1ab68e2f67425p+0,
      -0x1.928c57906aeecp-2, 0x1.058f4e494fc05p-4};
  static constexpr double kRootTwoPi = 0x1.40d931ff62706p1;
  static constexpr double kRootTwoPiLo = -0x1.a6a0d6f814637p-53;
  static constexpr double kHalfRootPi = 0x1.c5bf891b4ef6bp-1;
  static constexpr double kHalfRootPiLo = -0x1.618f13eb7ca89p-55;
  static constexpr double kRootHalf = 0x1.6a09e667f3bcdp-1;
  static constexpr double kRootHalfLo = -0x1.bdd3413b26456p-55;
  static constexpr double kFar = 1e10;  // beyond, t^2 is all that log(Phi(-t)) shows
};

// 1 / R(t) for t >= 0, given r = phi(0) R(t).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V MillsReciprocal(D d, V t, V r) {
  const V one = hn::Set(d, 1);
  // Beyond the range of the fit, t + (1 - 2 v + 10 v^2 - ...) / t with v = 1 / t^2.
  const auto far = hn::Gt(t, hn::Set(d, GeluConstants::kMax));
  const V quotient = hn::Div(hn::IfThenElse(far, one, hn::Set(d, GeluConstants::kPhiOfZero)),
                             hn::IfThenElse(far, t, r));
  const V v = hn::Mul(quotient, quotient);
  const V series = hn::Mul(quotient, Polynomial(d, NormalConstants::kHazard, v, hn::Mul(v, v)));
  return hn::IfThenElse(far, hn::Add(t, series), quotient);
}

// (1/R(t)) (1/R(t) - t) for t in [0, kFar].
template <class D, class V = hn::Vec<D>>
HWY_INLINE V MillsCurvature(D d, V t) {
  const V one = hn::Set(d, 1);
  const V u = hn::NegMulAdd(hn::Div(one, hn::Add(t, hn::Set(d, 4))), hn::Set(d, 8), one);
  return Polynomial(d, NormalConstants::kCurvature, u, hn::Mul(u, u));
}

// phi(0) R(t) for t >= 0, to 2^-34 up to kMaxForFloat32.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ShortMills(D d, V t) {
  const V one = hn::Set(d, 1);
  const V w = hn::Div(one, hn::Add(t, hn::Set(d, 4)));
  const V u = hn::NegMulAdd(w, hn::Set(d, 8), one);
  return hn::Mul(w, Polynomial(d, GeluConstants::kValueForFloat32, u, hn::Mul(u, u)));
}

// Phi(x) and phi(x), full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Ndtr(D d, V x, V& y, V& dy) {
  using G = GeluConstants;
  const V one = hn::Set(d, 1);
  if constexpr (kForFloat32<D>) {
    const V t = AtMost(d, G::kMaxForFloat32, hn::Abs(x));
    V tail, scale;
    ShortExp2(d, hn::Mul(t, t), hn::Set(d, -0.5 * ExpConstants<double>::kLog2E), tail, scale);
    const V e = hn::MulAdd(tail, scale, scale);
    const V left = hn::Mul(e, ShortMills(d, t));
    y = hn::IfNegativeThenElse(x, left, hn::Sub(one, left));
    dy = hn::Mul(e, hn::Set(d, G::kPhiOfZero));
  } else {
    const V t = AtMost(d, G::kMax, hn::Abs(x));
    const GaussianCore<V> c = MakeGaussianCore(d, t, -0.5);
    dy = hn::Mul(TimesGaussian(d, c, G::kPhiOfZero, G::kPhiOfZeroLo), c.down);
    V hi, lo;
    GaussianTail(d, t, c, G::kValue, G::kValueLo, G::kValueSlope, hi, lo);
    const V left = hn::Mul(hn::Add(hi, lo), c.down);
    const V right = hn::NegMulAdd(lo, c.down, hn::NegMulAdd(hi, c.down, one));
    y = hn::IfNegativeThenElse(x, left, right);
  }
}

// -x phi(x), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V NdtrSecond(D d, V x) {
  using G = GeluConstants;
  const V t = AtMost(d, G::kMax, hn::Abs(x));
  const GaussianCore<V> c = MakeGaussianCore(d, t, -0.5);
  const V raised = TimesGaussian(d, c, G::kPhiOfZero, G::kPhiOfZeroLo);
  return hn::CopySign(hn::Mul(hn::Mul(raised, t), c.down), hn::Neg(x));
}

// log(Phi(x)) and phi(x) / Phi(x), full range. With t = |x|, left of 0 they are log(phi(0) R(t)) -
// t^2/2 and 1 / R(t), right of it log(1 - q) and phi(x) / (1 - q) with q = phi(t) R(t).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogNdtr(D d, V x, V& y, V& dy) {
  using C = NormalConstants;
  using G = GeluConstants;
  const V one = hn::Set(d, 1);
  const V zero = hn::Zero(d);
  const V t = hn::Abs(x);
  const V half_t = hn::Mul(t, hn::Set(d, 0.5));
  const V ratio_at = AtMost(d, C::kFar, t);
  const auto near = hn::Gt(x, hn::Set(d, 0.55));  // q < 0.292
  if constexpr (kForFloat32<D>) {
    const V bounded = AtMost(d, G::kMaxForFloat32, t);
    V tail, scale, lo;
    ShortExp2(d, hn::Mul(bounded, bounded), hn::Set(d, -0.5 * ExpConstants<double>::kLog2E), tail,
              scale);
    const V e = hn::MulAdd(tail, scale, scale);
    const V w = hn::Div(one, hn::Add(ratio_at, hn::Set(d, 4)));
    const V u = hn::NegMulAdd(w, hn::Set(d, 8), one);
    const V r = hn::Mul(w, Polynomial(d, G::kValue, u, hn::Mul(u, u)));
    const V q = hn::Mul(e, r);
    const V rest = hn::Sub(one, q);
    const V hi = LogOrLog1m(d, near, q, zero, hn::IfNegativeThenElse(x, r, rest), zero, lo);
    y = hn::IfNegativeThenElse(x, hn::NegMulAdd(half_t, t, hi), hi);
    y = hn::IfThenElse(hn::Eq(x, x), y, x);
    dy = hn::IfNegativeThenElse(x, MillsReciprocal(d, t, r),
                                hn::Div(hn::Mul(e, hn::Set(d, G::kPhiOfZero)), rest));
  } else {
    const GaussianCore<V> c = MakeGaussianCore(d, AtMost(d, G::kMax, t), -0.5);
    V r_hi, r_lo, q, q_lo, rest, rest_lo, lo, square, square_lo;
    TailFactor(d, ratio_at, G::kValue, G::kValueLo, G::kValueSlope, r_hi, r_lo);
    FastTwoSum(r_hi, r_lo, r_hi, r_lo);
    TwoProd(d, c.p_hi, r_hi, q, q_lo);
    FastTwoSum(q, hn::Add(q_lo, hn::MulAdd(c.p_hi, r_lo, hn::Mul(c.p_lo, r_hi))), q, q_lo);
    q = hn::Mul(hn::Mul(q, c.up), c.down);
    q_lo = hn::Mul(hn::Mul(q_lo, c.up), c.down);
    FastTwoSum(one, hn::Neg(q), rest, rest_lo);
    rest_lo = hn::Sub(rest_lo, q_lo);
    const V hi = LogOrLog1m(d, near, q, q_lo, hn::IfNegativeThenElse(x, r_hi, rest),
                            hn::IfNegativeThenElse(x, r_lo, rest_lo), lo);
    TwoProd(d, half_t, t, square, square_lo);
    const V left = hn::Sub(hn::Add(hi, hn::Sub(lo, square_lo)), square);
    y = hn::IfNegativeThenElse(x, left, hn::Neg(hn::Abs(hn::Add(hi, lo))));  // no sum of +0 and -0
    y = hn::IfThenElse(hn::Lt(x, hn::Set(d, -C::kFar)), hn::Neg(square), y);
    V raised, raised_lo;
    TwoProd(d, c.p_hi, hn::Set(d, G::kPhiOfZero), raised, raised_lo);
    raised_lo = hn::MulAdd(c.p_hi, hn::Set(d, G::kPhiOfZeroLo), raised_lo);
    raised_lo = hn::MulAdd(c.p_lo, hn::Set(d, G::kPhiOfZero), raised_lo);
    const V slope = hn::Div(raised, rest);
    const V lost =
        hn::Add(Residual(d, slope, rest, raised), hn::NegMulAdd(slope, rest_lo, raised_lo));
    // 1 / rest, nearly
    const V inverse = hn::NegMulAdd(rest, hn::Set(d, 2), hn::Set(d, 2.9));
    const V right = hn::Mul(hn::Mul(hn::MulAdd(lost, inverse, slope), c.up), c.down);
    dy = hn::IfNegativeThenElse(x, MillsReciprocal(d, t, r_hi), right);
  }
}

// -dy (x + dy), full range; double. Left of 0, where that cancels, by MillsCurvature; far right,
// where dy may be subnormal, by phi(x).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogNdtrSecond(D d, V x, V dy) {
  const V t = hn::Abs(x);
  const V left = hn::Neg(MillsCurvature(d, AtMost(d, NormalConstants::kFar, t)));
  const V right = hn::Neg(hn::Mul(dy, hn::Add(x, dy)));
  const V curve = hn::IfThenElse(hn::Gt(x, hn::Set(d, 10)), NdtrSecond(d, x), right);
  return hn::IfNegativeThenElse(x, left, curve);
}

// Of p + p_lo = Phi(-t) in (0, 1/2] and x = 1 - 2 (p + p_lo), where p_lo = 0 beyond x = 1/2:
// t = t_hi + t_lo and
// (factor + factor_lo) / phi(t), where 1 / phi(t) = R(t) / p, and R(t) shows little of an error of
// t. Up to x = 1/2, t is x times a polynomial. Beyond, Halley's step on
// log(Phi(-t)) - log(p) improves a first guess, of which R(t) follows by Taylor's formula.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void InverseNormal(D d, V p, V p_lo, V x, double factor, double factor_lo, V& t_hi,
                              V& t_lo, V& slope) {
  using C = NormalConstants;
  using G = GeluConstants;
  const V two = hn::Set(d, 2);
  const V half = hn::Set(d, 0.5);
  const V z = hn::Mul(x, x);
  const V z2 = hn::Mul(z, z);
  const auto central = hn::Le(x, half);
  if constexpr (kForFloat32<D>) {
    const V s = hn::Sqrt(hn::Mul(hn::Set(d, -2), LogForFloat32(d, p)));
    const V u = hn::Div(hn::Sub(s, two), hn::Add(s, two));
    t_hi = hn::IfThenElse(central, hn::Mul(x, Polynomial(d, C::kCentralForFloat32, z, z2)),
                          hn::Mul(s, Polynomial(d, C::kStartForFloat32, u, hn::Mul(u, u))));
    t_lo = hn::Zero(d);
    slope = hn::Div(hn::Mul(ShortMills(d, t_hi), hn::Set(d, factor)), p);
  } else {
    V log_hi, log_lo, f, f_lo;
    LogCore(d, p, log_hi, log_lo);
    const V s = hn::Sqrt(hn::Mul(hn::Set(d, -2), hn::Add(log_hi, log_lo)));
    const V u = hn::Div(hn::Sub(s, two), hn::Add(s, two));
    const V first = hn::Mul(s, Polynomial(d, C::kStart, u, hn::Mul(u, u)));
    const V bent = hn::Mul(
        z, hn::MulAdd(EverySecond<2>(d, C::kCentral, z2), z, EverySecond<1>(d, C::kCentral, z2)));
    FastTwoSum(hn::Set(d, C::kCentral[0]), bent, f, f_lo);
    f_lo = hn::Add(f_lo, hn::Set(d, C::kCentralLo));
    V near, near_lo;
    TwoProd(d, x, f, near, near_lo);
#if !HWY_NATIVE_FMA
    // Without FMA the residual of a tiny product is rounding errors.
    near_lo = hn::IfThenElseZero(hn::Gt(x, hn::Set(d, 0x1p-900)), near_lo);
#endif
    near_lo = hn::MulAdd(x, f_lo, near_lo);
    const V t = hn::IfThenElse(central, near, first);

    V r_hi, r_lo, ratio_hi, ratio_lo, square, square_lo, sum, rest, excess, excess_lo;
    TailFactor(d, t, G::kValue, G::kValueLo, G::kValueSlope, r_hi, r_lo);
    FastTwoSum(r_hi, r_lo, r_hi, r_lo);
    LogCore(d, r_hi, r_lo, ratio_hi, ratio_lo);
    TwoProd(d, hn::Mul(t, half), t, square, square_lo);
    TwoSum(hn::Neg(log_hi), hn::Neg(square), sum, rest);
    TwoSum(sum, ratio_hi, excess, excess_lo);
    rest = hn::Add(hn::Sub(rest, square_lo), hn::Sub(ratio_lo, log_lo));
    excess = hn::Add(excess, hn::Add(excess_lo, rest));  // log(Phi(-t) / p)
    const V density = hn::Set(d, G::kPhiOfZero);
    const V hazard = hn::Div(density, r_hi);
    const V step = hn::Div(excess, hazard);
    const V bend = hn::Mul(hn::Sub(hazard, t), hn::Mul(step, half));
    const V shift = hn::NegMulAdd(step, bend, step);
    t_hi = t;
    t_lo = hn::IfThenElse(central, near_lo, shift);

    // phi(0) R'(t) and phi(0) R''(t)
    const V bent_1 = hn::MulSub(t, r_hi, density);
    const V bent_2 = hn::MulAdd(t, bent_1, r_hi);
    r_lo = hn::MulAdd(t_lo, hn::MulAdd(hn::Mul(t_lo, half), bent_2, bent_1), r_lo);
    V product, product_lo;
    TwoProd(d, r_hi, hn::Set(d, factor), product, product_lo);
    product_lo = hn::MulAdd(r_lo, hn::Set(d, factor), product_lo);
    product_lo = hn::MulAdd(r_hi, hn::Set(d, factor_lo), product_lo);
    FastTwoSum(product, product_lo, product, product_lo);
    slope = hn::Div(product, p);
    const V lost = hn::NegMulAdd(slope, p_lo, hn::Add(Residual(d, slope, p, product), product_lo));
    const V sharp = hn::Add(slope, hn::Div(lost, p));
    slope = hn::IfThenElse(hn::Gt(p, hn::Set(d, 0x1p-960)), sharp, slope);  // no overflow
  }
}

// The inverse of Phi and its derivative sqrt(2 pi) exp(y^2/2), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Ndtri(D d, V p, V& y, V& dy) {
  using C = NormalConstants;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, 1);
  const V tail = hn::Min(p, hn::Sub(one, p));  // exact where it is 1 - p
  const V x = hn::NegMulAdd(hn::Set(d, 2), tail, one);
  V t_lo;
  InverseNormal(d, tail, zero, x, C::kRootTwoPi, C::kRootTwoPiLo, y, t_lo, dy);
  y = hn::IfThenElse(hn::Eq(tail, zero), Infinity(d), hn::Add(y, t_lo));
  dy = hn::IfThenElse(hn::Eq(tail, zero), Infinity(d), dy);
  y = hn::CopySign(y, hn::Sub(p, hn::Set(d, 0.5)));
  const auto inside = hn::And(hn::Ge(p, zero), hn::Le(p, one));
  y = hn::IfThenElse(inside, y, hn::NaN(d));
  dy = hn::IfThenElse(inside, dy, hn::NaN(d));
}

// y dy^2, the second derivative of an inverse, or half of it; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V TimesSlopeSquare(D d, V y, V dy) {
  V product, product_lo, curve, curve_lo;
  TwoProd(d, y, dy, product, product_lo);
  TwoProd(d, product, dy, curve, curve_lo);
  const V sharp = hn::Add(curve, hn::MulAdd(product_lo, dy, curve_lo));
  const V size = hn::Abs(curve);
  const auto exact = hn::And(hn::Gt(size, hn::Set(d, 0x1p-900)), hn::Lt(size, hn::Set(d, 0x1p900)));
  return hn::IfThenElse(exact, sharp, curve);
}

// The inverse of erf and its derivative sqrt(pi)/2 exp(y^2), full range; double. It is that of
// Phi at (1 + x) / 2, over sqrt(2).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Erfinv(D d, V x, V& y, V& dy) {
  using C = NormalConstants;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, 1);
  const V size = hn::Abs(x);
  const V half = hn::Set(d, 0.5);
  const V rest = hn::Sub(one, size);
  const V tail = hn::Mul(rest, half);
  const V tail_lo = hn::Mul(hn::Sub(hn::Sub(one, rest), size), half);
  V t, t_lo;
  InverseNormal(d, tail, tail_lo, size, C::kHalfRootPi, C::kHalfRootPiLo, t, t_lo, dy);
  const V root_half = hn::Set(d, C::kRootHalf);
  if constexpr (kForFloat32<D>) {
    y = hn::Mul(t, root_half);
  } else {
    V lo;
    TwoProd(d, t, root_half, y, lo);
#if !HWY_NATIVE_FMA
    lo = hn::IfThenElseZero(hn::Gt(t, hn::Set(d, 0x1p-900)), lo);
#endif
    lo = hn::MulAdd(t_lo, root_half, hn::MulAdd(t, hn::Set(d, C::kRootHalfLo), lo));
    y = hn::Add(y, lo);
  }
  y = hn::IfThenElse(hn::Eq(tail, zero), Infinity(d), y);
  dy = hn::IfThenElse(hn::Eq(tail, zero), Infinity(d), dy);
  y = hn::CopySign(y, x);
  const auto inside = hn::Le(size, one);
  y = hn::IfThenElse(inside, y, hn::NaN(d));
  dy = hn::IfThenElse(inside, dy, hn::NaN(d));
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_NORMAL_INL_H_

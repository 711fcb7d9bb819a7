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
  // Of p = Phi(-t), x = 1 - 2 p and s^2 = -2 log(p), rational functions by reweighted least
  // squares: where x <= 0.8, t / x = kCentral + x^2 Top / Bottom in kCentralEnd - x^2, elsewhere t
  // = s - s Top / Bottom in s - kTailBegin. ForFloat32: t / x in x^2 up to 1/4, t / s in (s - 2) /
  // (s + 2), to 2^-32.
  static constexpr double kCentral = 0x1.40d931ff62706p0;
  static constexpr double kCentralLo = -0x1.a6a0d6f814637p-54;
  static constexpr double kCentralEnd = 0.640625;
  static constexpr double kCentralTop[] = {
      0x1.171d81f526c78p-1, 0x1.f5d9ff38f4cc3p+1, 0x1.4d9f1f20beec0p+3, 0x1.94b51a0e7ca4bp+3,
      0x1.be980e808ecb6p+2, 0x1.82c517b6076b5p+0, 0x1.538fdc4a33587p-4};
  static constexpr double kCentralBottom[] = {
      0x1.0000000000000p+0, 0x1.0da09602e17e1p+3, 0x1.b6e13f5945958p+4, 0x1.5c3aba3950fe3p+5,
      0x1.17dcec3f8ed63p+5, 0x1.ada9bd7cfcca1p+3, 0x1.08806fb5aa483p+1, 0x1.4a8874d668daep-4};
  static constexpr double kTailBegin = 2.125;
  static constexpr double kTailTop[] = {
      0x1.a2cfc6bb101fep-2,  0x1.16b6145a3e0e3p-1,  0x1.2df56d074ca33p-2,  0x1.5b15f1a01eb64p-4,
      0x1.ca6366c54b993p-7,  0x1.5bc197ec820ddp-10, 0x1.206a4f29c6b1fp-14, 0x1.df132a5ce9c31p-20,
      0x1.587e8c10b2ad5p-26, 0x1.3b3ce6b51bba9p-34, 0x1.047e271eb83edp-46, -0x1.5027b51c6cee2p-57};
  static constexpr double kTailBottom[] = {
      0x1.0000000000000p+0,  0x1.07d714636b3a3p+1,  0x1.cd2ee81e75496p+0,  0x1.bfca5273a3beep-1,
      0x1.09c3100aeef47p-2,  0x1.8f276d3063a51p-5,  0x1.7a36ba6b92455p-8,  0x1.b475aaf94316fp-12,
      0x1.1ee9e5ea8aa0fp-16, 0x1.84088272c7f59p-22, 0x1.c992746c7c8c2p-29, 0x1.4a2bead90e7eep-37};
  static constexpr double kCentralForFloat32[] = {
      0x1.40d931ff66491p+0, 0x1.4ffdde833e9c6p-2,  0x1.717150b0f6fc8p-3,
      0x1.f552de0d0322ap-4, 0x1.791648c046435p-4,  0x1.22b6fae04efb7p-4,
      0x1.31aea8c37e0acp-4, 0x1.cb3f0703966e0p-11, 0x1.12ff23e807a5bp-3};
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

// Of p + p_lo = Phi(-t) in (0, 1/2] and x = 1 - 2 (p + p_lo), where p_lo = 0 beyond x = 1/2: t +
// t_lo and (factor + factor_lo) / phi(t). 1 / phi(t) = R(t) / p, where R(t) shows little of an
// error of t, and what it shows is known by Newton's step, t + shift, on log(Phi(-t)) - log(p).
// Beyond x = 0.8 that is the sharper t.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void InverseNormal(D d, V p, V p_lo, V x, double factor, double factor_lo, V& t, V& t_lo,
                              V& slope, V& shift) {
  using C = NormalConstants;
  using G = GeluConstants;
  const V z = hn::Mul(x, x);
  if constexpr (kForFloat32<D>) {
    const V two = hn::Set(d, 2);
    const V s = hn::Sqrt(hn::Mul(hn::Set(d, -2), LogForFloat32(d, p)));
    const V u = hn::Div(hn::Sub(s, two), hn::Add(s, two));
    t = hn::IfThenElse(hn::Le(x, hn::Set(d, 0.5)),
                       hn::Mul(x, Polynomial(d, C::kCentralForFloat32, z, hn::Mul(z, z))),
                       hn::Mul(s, Polynomial(d, C::kStartForFloat32, u, hn::Mul(u, u))));
    t_lo = shift = hn::Zero(d);
    slope = hn::Div(hn::Mul(ShortMills(d, t), hn::Set(d, factor)), p);
  } else {
    V log_hi, log_lo;
    LogCore(d, p, log_hi, log_lo);
    FastTwoSum(log_hi, log_lo, log_hi, log_lo);
    const V square_of_s = hn::Mul(hn::Set(d, -2), log_hi);
    const V s = hn::Sqrt(square_of_s);
    const auto central = hn::Le(x, hn::Set(d, 0.8));
    const V v = hn::Sub(hn::Set(d, C::kCentralEnd), z);
    const V v2 = hn::Mul(v, v);
    const V u = hn::Sub(s, hn::Set(d, C::kTailBegin));
    const V u2 = hn::Mul(u, u);
    const V top = hn::IfThenElse(central, hn::Mul(z, Polynomial(d, C::kCentralTop, v, v2)),
                                 Polynomial(d, C::kTailTop, u, u2));
    const V bottom = hn::IfThenElse(central, Polynomial(d, C::kCentralBottom, v, v2),
                                    Polynomial(d, C::kTailBottom, u, u2));
    const V quotient = hn::Div(top, bottom);
    // Apart from what the quotient lost, t + t_lo is right to twice the precision.
    V f, f_lo, near, near_lo, less, less_lo, far, far_lo;
    FastTwoSum(hn::Set(d, C::kCentral), quotient, f, f_lo);
    TwoProd(d, x, f, near, near_lo);
#if !HWY_NATIVE_FMA
    // Without FMA the residual of a tiny product is rounding errors.
    near_lo = hn::IfThenElseZero(hn::Gt(x, hn::Set(d, 0x1p-900)), near_lo);
#endif
    near_lo = hn::MulAdd(x, hn::Add(f_lo, hn::Set(d, C::kCentralLo)), near_lo);
    TwoProd(d, s, quotient, less, less_lo);
    FastTwoSum(s, hn::Neg(less), far, far_lo);
    const V missing = hn::MulAdd(hn::Set(d, -2), log_lo, Residual(d, s, s, square_of_s));
    const V s_lo = hn::Div(missing, hn::Add(s, s));
    t = hn::IfThenElse(central, near, far);
    t_lo = hn::IfThenElse(central, near_lo, hn::Add(hn::Sub(far_lo, less_lo), s_lo));

    V r_hi, r_lo, ratio_hi, ratio_lo, square, square_lo, sum, rest, excess, excess_lo;
    TailFactor(d, t, G::kValue, G::kValueLo, G::kValueSlope, r_hi, r_lo);
    FastTwoSum(r_hi, r_lo, r_hi, r_lo);
    LogCore(d, r_hi, r_lo, ratio_hi, ratio_lo);
    TwoProd(d, hn::Mul(t, hn::Set(d, 0.5)), t, square, square_lo);
    TwoSum(hn::Neg(log_hi), hn::Neg(square), sum, rest);
    TwoSum(sum, ratio_hi, excess, excess_lo);
    rest = hn::Add(hn::Sub(rest, square_lo), hn::Sub(ratio_lo, log_lo));
    // p_lo / p, nearly: it counts where p is in [1/4, 1/2].
    const V of_p_lo = hn::Mul(p_lo, hn::NegMulAdd(p, hn::Set(d, 8.5), hn::Set(d, 6)));
    excess = hn::Add(excess, hn::Add(excess_lo, hn::Sub(rest, of_p_lo)));  // log(Phi(-t) / p)
    // phi(0) R'(t), and what t lacks.
    const V bent = hn::MulSub(t, r_hi, hn::Set(d, G::kPhiOfZero));
    shift = hn::Mul(excess, hn::Mul(r_hi, hn::Set(d, C::kRootTwoPi)));
    r_lo = hn::MulAdd(shift, bent, r_lo);
    shift = hn::IfThenElse(central, t_lo, shift);
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

// What InverseNormal makes of p in (0, 1) for Phi, and of x in (-1, 1) for erf.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void NdtriCore(D d, V p, V& tail, V& t, V& t_lo, V& slope, V& shift) {
  using C = NormalConstants;
  const V one = hn::Set(d, 1);
  tail = hn::Min(p, hn::Sub(one, p));  // exact where it is 1 - p
  const V x = hn::NegMulAdd(hn::Set(d, 2), tail, one);
  InverseNormal(d, tail, hn::Zero(d), x, C::kRootTwoPi, C::kRootTwoPiLo, t, t_lo, slope, shift);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void ErfinvCore(D d, V x, V& tail, V& t, V& t_lo, V& slope, V& shift) {
  using C = NormalConstants;
  const V one = hn::Set(d, 1);
  const V half = hn::Set(d, 0.5);
  const V size = hn::Abs(x);
  const V rest = hn::Sub(one, size);
  tail = hn::Mul(rest, half);
  const V tail_lo = hn::Mul(hn::Sub(hn::Sub(one, rest), size), half);
  InverseNormal(d, tail, tail_lo, size, C::kHalfRootPi, C::kHalfRootPiLo, t, t_lo, slope, shift);
}

// The inverse of Phi and its derivative sqrt(2 pi) exp(y^2/2), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Ndtri(D d, V p, V& y, V& dy) {
  const V zero = hn::Zero(d);
  V tail, t, t_lo, shift;
  NdtriCore(d, p, tail, t, t_lo, dy, shift);
  y = hn::IfThenElse(hn::Eq(tail, zero), Infinity(d), hn::Add(t, t_lo));
  dy = hn::IfThenElse(hn::Eq(tail, zero), Infinity(d), dy);
  y = hn::CopySign(y, hn::Sub(p, hn::Set(d, 0.5)));
  const auto inside = hn::And(hn::Ge(p, zero), hn::Le(p, hn::Set(d, 1)));
  y = hn::IfThenElse(inside, y, hn::NaN(d));
  dy = hn::IfThenElse(inside, dy, hn::NaN(d));
}

// The inverse of erf and its derivative sqrt(pi)/2 exp(y^2), full range; double. It is that of
// Phi at (1 + x) / 2, over sqrt(2).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Erfinv(D d, V x, V& y, V& dy) {
  using C = NormalConstants;
  const V zero = hn::Zero(d);
  const V root_half = hn::Set(d, C::kRootHalf);
  V tail, t, t_lo, shift;
  ErfinvCore(d, x, tail, t, t_lo, dy, shift);
  y = hn::MulAdd(t, root_half, hn::MulAdd(t_lo, root_half, hn::Mul(t, hn::Set(d, C::kRootHalfLo))));
  y = hn::IfThenElse(hn::Eq(tail, zero), Infinity(d), y);
  dy = hn::IfThenElse(hn::Eq(tail, zero), Infinity(d), dy);
  y = hn::CopySign(y, x);
  const auto inside = hn::Le(hn::Abs(x), hn::Set(d, 1));
  y = hn::IfThenElse(inside, y, hn::NaN(d));
  dy = hn::IfThenElse(inside, dy, hn::NaN(d));
}

// (y + y_lo) dy^2, y_lo having the sign that it has for y > 0; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V TimesSlopeSquare(D d, V y, V y_lo, V dy) {
  V product, product_lo, curve, curve_lo;
  TwoProd(d, y, dy, product, product_lo);
  TwoProd(d, product, dy, curve, curve_lo);
  product_lo = hn::MulAdd(hn::Xor(y_lo, hn::And(y, hn::SignBit(d))), dy, product_lo);
  const V sharp = hn::Add(curve, hn::MulAdd(product_lo, dy, curve_lo));
  // Where products are tiny, or without FMA close to overflow, what they lost is not found.
  const auto exact = hn::And(hn::Gt(hn::Abs(curve), hn::Set(d, 0x1p-900)), hn::IsFinite(sharp));
  return hn::IfThenElse(exact, sharp, curve);
}

// y dy^2 and 2 y dy^2, the second derivatives, full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V NdtriSecond(D d, V p, V y, V dy) {
  V tail, t, t_lo, slope, shift;
  NdtriCore(d, p, tail, t, t_lo, slope, shift);
  return TimesSlopeSquare(d, y, hn::Add(hn::Sub(t, hn::Abs(y)), shift), dy);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V ErfinvSecond(D d, V x, V y, V dy) {
  using C = NormalConstants;
  const V root_half = hn::Set(d, C::kRootHalf);
  V tail, t, t_lo, slope, shift;
  ErfinvCore(d, x, tail, t, t_lo, slope, shift);
  const V lost =
      hn::NegMulAdd(t, hn::Set(d, C::kRootHalfLo), Residual(d, t, root_half, hn::Abs(y)));
  const V curve = TimesSlopeSquare(d, y, hn::MulSub(shift, root_half, lost), dy);
  return hn::Add(curve, curve);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_NORMAL_INL_H_

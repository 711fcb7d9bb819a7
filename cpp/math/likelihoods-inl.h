// Negative log-likelihoods that need more than one exponential: Tweedie's, the negative binomial's,
// and the binomial's by probit and complementary log-log. All full range, of double.
#if defined(PULLBACK_CPP_MATH_LIKELIHOODS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_LIKELIHOODS_INL_H_
#undef PULLBACK_CPP_MATH_LIKELIHOODS_INL_H_
#else
#define PULLBACK_CPP_MATH_LIKELIHOODS_INL_H_
#endif

#include <hwy/highway.h>

#include "math/erf-inl.h"
#include "math/error_free-inl.h"
#include "math/exp-inl.h"
#include "math/log-inl.h"
#include "math/normal-inl.h"
#include "math/softplus-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Polynomials are Chebyshev interpolants, from 90-digit arithmetic.
struct LikelihoodConstants {
  // For m in [0, 1], in m^2, to 2^-54: (m/2 coth(m/2) - 1) / m^2, and
  // log(sinh(m/2) / (m/2)) / m^2.
  static constexpr double kCoth[] = {
      0x1.5555555555555p-4,  -0x1.6c16c16c16b8bp-10, 0x1.1566abbffa5b7p-15, -0x1.bbd7790541f23p-21,
      0x1.66a8dc0f2b92fp-26, -0x1.227a48152de8ap-31, 0x1.d50aa18375147p-37, -0x1.5932a2341acf8p-42};
  static constexpr double kSinh[] = {
      0x1.5555555555555p-5,  -0x1.6c16c16c16bf7p-12, 0x1.71de3a556222ap-18, -0x1.bbd7791ea468ep-24,
      0x1.1eed84d1d873ap-29, -0x1.83505d5724b8cp-35, 0x1.0c3f70900556cp-40, -0x1.5d0ea5a35bc1bp-46};
  // (exp(r) - 1 - r - ... - r^4/24) / r^5 on |r| <= log(2)/2, to 2^-55.
  static constexpr double kExp[] = {
      0x1.1111111111111p-7,  0x1.6c16c16c16c17p-10, 0x1.a01a01a019ddcp-13, 0x1.a01a01a019efbp-16,
      0x1.71de3a57c1e2cp-19, 0x1.27e4fb78b4a4ap-22, 0x1.ae643b4c8c2f3p-26, 0x1.1eed8166872ebp-29,
      0x1.61a5be6e1c8e2p-33, 0x1.9418a51b8e281p-37};
  static constexpr double kFar = 1500;  // beyond, exp over- or underflows whatever its factor
};

// (p_hi + p_lo) (r + r_lo) + constant + constant_lo in the place of p_hi + p_lo.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void SharpHornerStep(D d, V r, V r_lo, double constant, double constant_lo, V& p_hi,
                                V& p_lo) {
  V product, rest;
  TwoProd(d, r, p_hi, product, rest);
  rest = hn::Add(rest, hn::MulAdd(r, p_lo, hn::Mul(r_lo, p_hi)));
  FastTwoSum(hn::Set(d, constant), product, p_hi, p_lo);
  p_lo = hn::Add(p_lo, hn::Add(rest, hn::Set(d, constant_lo)));
}

// exp(x) = (p_hi + p_lo) 2^k as ExpCore's, to a relative 2^-64.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void SharpExpCore(D d, V x, V& p_hi, V& p_lo, V& k) {
  using C = LikelihoodConstants;
  V r, r_lo, minus_r_lo;
  ReduceByLn2(d, x, hn::Zero(d), r, minus_r_lo, k);
  FastTwoSum(r, hn::Neg(minus_r_lo), r, r_lo);
  p_hi = Polynomial(d, C::kExp, r, hn::Mul(r, r));
  p_lo = hn::Zero(d);
  SharpHornerStep(d, r, r_lo, 0x1.5555555555555p-5, 0x1.5555555555555p-59, p_hi, p_lo);
  SharpHornerStep(d, r, r_lo, 0x1.5555555555555p-3, 0x1.5555555555555p-57, p_hi, p_lo);
  SharpHornerStep(d, r, r_lo, 0.5, 0, p_hi, p_lo);
  SharpHornerStep(d, r, r_lo, 1, 0, p_hi, p_lo);
  SharpHornerStep(d, r, r_lo, 1, 0, p_hi, p_lo);
  FastTwoSum(p_hi, p_lo, p_hi, p_lo);
}

// v p 2^k for p as ExpCore's and |k| <= 2200, where v or p 2^k alone may be out of range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V TimesPower(D d, V v, V p, V k) {
  const auto large = hn::Ge(hn::Abs(v), hn::Set(d, 1));  // and infinite before k does not matter
  return TimesExp(d, v, p, hn::Min(k, hn::IfThenElse(large, hn::Set(d, 1500), hn::Set(d, 2500))));
}

// What tweedie's losses are made of, of exp(r z).
template <class V>
struct PowerTerm {
  V p, k;    // exp(r z) = p 2^k, k within 2200 of 0
  V exp;     // the same
  V hi, lo;  // expm1(r z) / r, which is z at r = 0; not where that is `large`
};

// `large` is where expm1(r z) and exp(r z) agree.
template <class D, class V = hn::Vec<D>>
HWY_INLINE PowerTerm<V> MakePowerTerm(D d, V z, V r, V by, V by_lo, hn::Mask<D>& large) {
  using C = LikelihoodConstants;
  PowerTerm<V> c;
  V x, x_lo, p_hi, p_lo, hi, lo;
  TwoProd(d, r, AtLeast(d, -1e100, AtMost(d, 1e100, z)), x, x_lo);  // no infinity times 0
  const V size = hn::Abs(x);
  x_lo = hn::IfThenElseZero(hn::Lt(size, hn::Set(d, C::kFar)), x_lo);
  x = AtLeast(d, -C::kFar, AtMost(d, C::kFar, x));
  ExpCore(d, x, x_lo, p_hi, p_lo, c.k);
  c.p = hn::Add(p_hi, p_lo);
  c.exp = Ldexp(d, c.p, hn::Max(hn::Min(c.k, hn::Set(d, 1050)), hn::Set(d, -1080)));
  large = hn::Gt(x, hn::Set(d, ExpConstants<double>::kMinusOne));
  Expm1Core(d, p_hi, p_lo, hn::IfThenZeroElse(large, c.k), hi, lo);
  TwoProd(d, hi, by, c.hi, c.lo);
  c.lo = hn::Add(c.lo, hn::MulAdd(lo, by, hn::Mul(hi, by_lo)));
  const auto tiny = hn::Lt(size, hn::Set(d, 0x1p-54));
  c.hi = hn::IfThenElse(tiny, z, c.hi);
  c.lo = hn::IfThenZeroElse(tiny, c.lo);
  return c;
}

// 1 / x = hi + lo
template <class D, class V = hn::Vec<D>>
HWY_INLINE void SharpReciprocal(D d, V x, V& hi, V& lo) {
  const V one = hn::Set(d, 1);
  hi = hn::Div(one, x);
  lo = hn::Mul(hi, Residual(d, hi, x, one));
}

// Of a power: a = 2 - power and b = 1 - power < 0, which are exact.
template <class V>
struct TweedieConstants {
  V a, b, by_a, by_a_lo, by_b, by_b_lo;
  V below_2;  // all bits, or 0
};

template <class D>
HWY_INLINE TweedieConstants<hn::Vec<D>> MakeTweedieConstants(D d, double power) {
  TweedieConstants<hn::Vec<D>> c;
  c.a = hn::Set(d, 2 - power);
  c.b = hn::Set(d, 1 - power);
  SharpReciprocal(d, c.a, c.by_a, c.by_a_lo);
  SharpReciprocal(d, c.b, c.by_b, c.by_b_lo);
  c.below_2 = hn::VecFromMask(d, hn::Gt(c.a, hn::Zero(d)));
  return c;
}

// expm1(a z) / a - t expm1(b z) / b, exp(a z) - t exp(b z) and a exp(a z) - t b exp(b z) for t >=
// 0, where a > 0 if t may be 0. Right to 2 and 3 ULP of the larger term. Where both terms overflow,
// the larger decides.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Tweedie(D d, V z, V t, const TweedieConstants<V>& c, V& y, V& dy, V& d2y) {
  hn::Mask<D> large_a, large_b;
  const PowerTerm<V> first = MakePowerTerm(d, z, c.a, c.by_a, c.by_a_lo, large_a);
  const PowerTerm<V> second = MakePowerTerm(d, z, c.b, c.by_b, c.by_b_lo, large_b);
  const V decay = TimesPower(d, t, second.p, second.k);
  const auto overflow = hn::Eq(decay, Infinity(d));
  const auto beyond = hn::Gt(first.k, hn::Set(d, 1000));
  const auto both = hn::And(overflow, beyond);
  dy = hn::IfThenElse(overflow, hn::Neg(decay), hn::Sub(first.exp, decay));

  const V bent = TimesPower(d, t, hn::Mul(second.p, hn::Neg(c.b)), second.k);
  d2y = hn::Add(bent, TimesPower(d, c.a, first.p, first.k));
  d2y = hn::IfThenElse(hn::Eq(bent, Infinity(d)), bent, d2y);

  const V head = hn::IfThenElse(large_a, hn::Mul(first.exp, c.by_a), first.hi);
  const V with_t = hn::IfThenElse(large_b, hn::NegMulAdd(decay, c.by_b, head),
                                  hn::NegMulAdd(t, second.hi, head));
  const V t_lo = hn::IfThenElse(large_b, hn::Mul(decay, c.by_b_lo), hn::Mul(t, second.lo));
  y = hn::Add(with_t, hn::Sub(hn::IfThenZeroElse(large_a, first.lo), t_lo));
  y = hn::IfThenElse(overflow, decay, y);

  // By the terms' ratio q: exp(a z) (u - q v).
  const auto by_ratio = [&](V u, V v) HWY_ATTR {
    const V q = TimesExp(d, t, hn::Neg(z));
    return TimesPower(d, hn::NegMulAdd(q, v, u), first.p, first.k);
  };
  if (HWY_UNLIKELY(!hn::AllFalse(d, both))) {
    y = hn::IfThenElse(both, by_ratio(c.by_a, c.by_b), y);
    dy = hn::IfThenElse(both, by_ratio(hn::Set(d, 1), hn::Set(d, 1)), dy);
  }
  const auto both_bent = hn::And(hn::Eq(bent, Infinity(d)), beyond);
  if (HWY_UNLIKELY(!hn::AllFalse(d, both_bent))) {
    d2y = hn::IfThenElse(both_bent, by_ratio(c.a, c.b), d2y);
  }
}

// t exp(-2 z) / 2 - exp(-z) and its derivatives, by q = t exp(-z): exp(-z) (q/2 - 1),
// exp(-z) (1 - q) and exp(-z) (2 q - 1).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void InverseGaussian(D d, V z, V t, V& y, V& dy, V& d2y) {
  using C = LikelihoodConstants;
  const V one = hn::Set(d, 1);
  V p_hi, p_lo, k;
  ExpCore(d, AtLeast(d, -C::kFar, AtMost(d, C::kFar, hn::Neg(z))), p_hi, p_lo, k);
  FastTwoSum(p_hi, p_lo, p_hi, p_lo);
  const V q = TimesPower(d, t, p_hi, k);
  k = hn::Max(hn::Min(k, hn::Set(d, 1050)), hn::Set(d, -1080));
  const V e = Ldexp(d, p_hi, k);
  const V half = hn::MulSub(q, hn::Set(d, 0.5), one);
  // What p_lo adds to each factor.
  y = hn::Mul(e, half);
  const V more = hn::MulAdd(Ldexp(d, p_lo, k), hn::Sub(q, one), y);
  y = hn::IfThenElse(hn::Lt(hn::Abs(y), Infinity(d)), more, y);
  dy = hn::Mul(e, hn::Sub(one, q));
  d2y = hn::Mul(e, hn::MulSub(q, hn::Set(d, 2), one));
}

// log(1 + e) = hi + lo for e = e_hi + e_lo in [-1/2, 1].
template <class D, class V = hn::Vec<D>>
HWY_INLINE void SharpLog1p(D d, V e_hi, V e_lo, V& hi, V& lo) {
  V divisor, divisor_lo;
  FastTwoSum(hn::Set(d, 2), e_hi, divisor, divisor_lo);
  const V s = hn::Div(e_hi, divisor);
  const V complement = hn::Sub(hn::Set(d, 1), s);
  const V residual =
      hn::MulAdd(e_lo, complement, hn::NegMulAdd(s, divisor_lo, Residual(d, s, divisor, e_hi)));
  const V z = hn::Mul(s, s);
  const V tail = Polynomial(d, SoftplusConstants<double>::kTail, z, hn::Mul(z, z));
  hi = hn::Add(s, s);
  lo = hn::MulAdd(residual, complement, hn::Mul(hn::Mul(s, z), tail));
}

template <class V>
struct NegativeBinomialConstants {
  V by, by_lo;      // 1 / alpha
  V log, log_rest;  // log(alpha)
};

template <class D>
HWY_INLINE NegativeBinomialConstants<hn::Vec<D>> MakeNegativeBinomialConstants(D d, double alpha) {
  NegativeBinomialConstants<hn::Vec<D>> c;
  hn::Vec<D> log_hi, log_lo;
  SharpReciprocal(d, hn::Set(d, alpha), c.by, c.by_lo);
  LogCore(d, hn::Set(d, alpha), log_hi, log_lo);
  FastTwoSum(log_hi, log_lo, c.log, c.log_rest);
  return c;
}

// With m = alpha exp(z): log(1 + m) / alpha + t (log(1 + m) - z), which keeps its digits where
// t log(1 + m) and t z cancel, (m / alpha - t) / (1 + m) and (1 / alpha + t) m / (1 + m)^2. All
// from e = exp(-|log(m)|).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void NegativeBinomial(D d, V z, V t, const NegativeBinomialConstants<V>& c, V& y, V& dy,
                                 V& d2y) {
  using C = LikelihoodConstants;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, 1);
  V x, x_lo, p_hi, p_lo, k;
  TwoSum(z, c.log, x, x_lo);
  const V size = hn::Abs(x);
  const auto near = hn::Lt(size, hn::Set(d, C::kFar));
  x_lo = hn::IfThenElseZero(near, hn::Add(x_lo, c.log_rest));
  const auto right = hn::Gt(x, zero);
  ExpCore(d, AtLeast(d, -C::kFar, hn::Neg(size)), hn::IfThenElse(right, hn::Neg(x_lo), x_lo), p_hi,
          p_lo, k);
  FastTwoSum(p_hi, p_lo, p_hi, p_lo);
  const V scale = PowerOfTwo(d, hn::Max(k, hn::Set(d, -1000)), zero);
  const V e = hn::Mul(p_hi, scale);
  const V sum = hn::Add(one, e);
  const V term = TimesExp(d, hn::IfThenElse(right, t, c.by), p_hi, k);
  dy = hn::Div(hn::Sub(hn::IfThenElse(right, c.by, term), hn::IfThenElse(right, term, t)), sum);
  V factor, factor_lo;
  TwoSum(c.by, t, factor, factor_lo);
  factor_lo = hn::Add(factor_lo, c.by_lo);
  const V lost = hn::Div(hn::MulAdd(factor_lo, p_hi, hn::Mul(factor, p_lo)), hn::Mul(factor, p_hi));
  d2y = TimesExp(d, factor, p_hi, k);
  d2y = hn::Div(hn::MulAdd(d2y, lost, d2y), hn::MulAdd(e, hn::Add(one, sum), one));

  V log1p, log1p_lo, first, first_lo, second, second_lo, product, product_lo;
  SharpLog1p(d, e, hn::Mul(p_lo, scale), log1p, log1p_lo);
  TwoSum(hn::IfThenElseZero(right, x), log1p, first, first_lo);
  first_lo = hn::Add(first_lo, hn::Add(log1p_lo, hn::IfThenElseZero(right, x_lo)));
  const auto tiny_right = hn::Gt(x, hn::Set(d, 40));
  log1p = hn::IfThenZeroElse(tiny_right, log1p);
  log1p_lo = hn::IfThenZeroElse(tiny_right, log1p_lo);
  TwoSum(hn::IfThenElse(right, c.log, hn::Neg(z)), log1p, second, second_lo);
  second_lo = hn::Add(second_lo, hn::Add(log1p_lo, hn::IfThenElseZero(right, c.log_rest)));
  TwoProd(d, first, c.by, product, product_lo);
  product_lo = hn::Add(product_lo, hn::MulAdd(first_lo, c.by, hn::Mul(first, c.by_lo)));
  // Where e is tiny, `term` is log(1 + e) / alpha on the left, t log(1 + e) on the right, with e in
  // range or not.
  const auto tiny = hn::Lt(x, hn::Set(d, -40));
  product = hn::IfThenElse(tiny, term, product);
  product_lo = hn::IfThenZeroElse(tiny, product_lo);
  second = hn::IfThenZeroElse(hn::Eq(t, zero), second);  // which may be infinite
  product_lo = hn::Add(product_lo, hn::IfThenElseZero(tiny_right, term));
  const V rest = hn::IfThenElseZero(near, hn::MulAdd(t, second_lo, product_lo));
  y = hn::Add(hn::MulAdd(t, second, product), rest);
}

// -t log(Phi(z)) - (1 - t) log(Phi(-z)) and its derivatives for t in [0, 1]. By the sign of z one
// share belongs to the tail Q = Phi(-|z|) = phi R, R being Mills' ratio, whose -log(Q) has the
// derivatives 1/R and kCurvature, and the other to -log(1 - Q) with -h and h (|z| + h), where
// h = phi / (1 - Q).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Probit(D d, V z, V t, V& y, V& dy, V& d2y) {
  using G = GeluConstants;
  constexpr double kDensity = G::kPhiOfZero, kDensityLo = G::kPhiOfZeroLo;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, 1);
  const V half = hn::Set(d, 0.5);
  const V size = hn::Abs(z);
  const V near = AtMost(d, G::kMax, size);
  const V ratio_at = AtMost(d, 1e10, size);  // whose logarithm no longer counts
  const GaussianCore<V> c = MakeGaussianCore(d, near, -0.5);
  V r_hi, r_lo, log_hi, log_lo;  // phi(0) R
  TailFactor(d, ratio_at, G::kValue, G::kValueLo, G::kValueSlope, r_hi, r_lo);
  FastTwoSum(r_hi, r_lo, r_hi, r_lo);
  const V rest = hn::MulAdd(c.p_hi, r_lo, hn::Mul(c.p_lo, r_hi));
  const V raised = hn::Mul(hn::MulAdd(c.p_hi, r_hi, rest), c.up);
  const V tail = hn::Mul(raised, c.down);

  const V other = hn::Sub(one, t);
  const V share = hn::IfNegativeThenElse(z, t, other);
  const V main = hn::IfNegativeThenElse(z, other, t);
  const auto none = hn::Eq(share, zero);  // times what may be infinite
  const V hazard = MillsReciprocal(d, size, r_hi);
  V density, density_lo, rest_of_1, rest_of_1_lo;
  TwoProd(d, c.p_hi, hn::Set(d, kDensity), density, density_lo);
  density_lo = hn::MulAdd(c.p_lo, hn::Set(d, kDensity),
                          hn::MulAdd(c.p_hi, hn::Set(d, kDensityLo), density_lo));
  FastTwoSum(density, density_lo, density, density_lo);
  FastTwoSum(one, hn::Neg(tail), rest_of_1, rest_of_1_lo);
  const V numerator = hn::Mul(density, c.up);
  const V raised_h = hn::Div(numerator, rest_of_1);
  const V slope = hn::NegMulAdd(hn::Mul(main, raised_h), c.down,
                                hn::IfThenZeroElse(none, hn::Mul(share, hazard)));
  dy = hn::IfNegativeThenElse(z, hn::Neg(slope), slope);

  const V curvature = MillsCurvature(d, ratio_at);
  const V h = hn::Mul(raised_h, c.down);
  // h counts twice; the rest of it, too.
  const V residual = hn::MulAdd(density_lo, c.up, Residual(d, raised_h, rest_of_1, numerator));
  const V h_lo = hn::Div(hn::NegMulAdd(raised_h, rest_of_1_lo, residual), rest_of_1);
  const V sum_h = hn::Add(near, h);
  const V bent = hn::MulAdd(raised_h, sum_h, hn::Mul(h_lo, hn::Add(sum_h, h)));
  d2y = hn::MulAdd(hn::Mul(main, bent), c.down, hn::Mul(share, curvature));

  LogCore(d, r_hi, r_lo, log_hi, log_lo);
  V log1p, log1p_lo;
  SharpLog1p(d, hn::Neg(tail), zero, log1p, log1p_lo);
  const V minus_log =
      hn::IfThenElse(hn::Lt(tail, hn::Set(d, 0x1p-60)), tail, hn::Neg(hn::Add(log1p, log1p_lo)));
  // Where z^2 overflows, its share may not.
  const V half_size = hn::Mul(size, half);
  const V minus_log_tail = hn::MulSub(half_size, size, hn::Add(log_hi, log_lo));
  const V both =
      hn::MulAdd(share, hn::IfThenZeroElse(none, minus_log_tail), hn::Mul(main, minus_log));
  y = hn::IfThenElse(hn::AndNot(none, hn::Gt(size, hn::Set(d, 1e100))),
                     hn::Mul(hn::Mul(share, half_size), size), both);
}

// -t log(1 - exp(-m)) + (1 - t) m and its derivatives by z for m = exp(z) and t in [0, 1]. With
// k = m / expm1(m) the first's derivatives are -k and k (m + k - 1). Up to m = 1 all are series in
// m^2: -log(1 - exp(-m)) = -z + m/2 - log(sinh(m/2) / (m/2)), k = m/2 coth(m/2) - m/2.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void CLogLog(D d, V z, V t, V& y, V& dy, V& d2y) {
  using C = LikelihoodConstants;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, 1);
  const V half = hn::Set(d, 0.5);
  const V down = hn::Set(d, 0x1p-512);
  V p_hi, p_lo, k;
  // Sharp, because exp(-m) shows m times the error.
  SharpExpCore(d, AtLeast(d, -C::kFar, AtMost(d, C::kFar, z)), p_hi, p_lo, k);
  const V m = Ldexp(d, p_hi, hn::Max(hn::Min(k, one), hn::Set(d, -1080)));  // where z <= 0

  // exp(-m), where m is above 1; it is 0 long before k = 11.
  const V scale = PowerOfTwo(d, hn::Min(hn::Max(k, zero), hn::Set(d, 11)), zero);
  const V far = hn::Mul(p_hi, scale);
  const V far_lo = hn::Mul(p_lo, scale);
  V q_hi, q_lo, q_k;
  ExpCore(d, hn::Neg(far), hn::Neg(far_lo), q_hi, q_lo, q_k);
  FastTwoSum(q_hi, q_lo, q_hi, q_lo);
  const V up = PowerOfTwo(d, hn::Max(q_k, hn::Set(d, -1500)), hn::Set(d, 512));
  const V raised = hn::Mul(q_hi, up);
  const V q = hn::Mul(raised, down);

  const auto left = hn::Le(z, zero);
  const V m2 = hn::Mul(m, m);
  const V m4 = hn::Mul(m2, m2);
  const V half_m = hn::Mul(m, half);
  const V bent = hn::Mul(m2, Polynomial(d, C::kCoth, m2, m4));
  V product, product_lo, rest, rest_lo;
  TwoProd(d, far, raised, product, product_lo);
  FastTwoSum(one, hn::Neg(q), rest, rest_lo);
  const V quotient = hn::Div(product, rest);
  const V ratio =
      hn::IfThenElse(left, hn::Add(hn::NegMulAdd(m, half, one), bent), hn::Mul(quotient, down));
  const V linear = TimesPower(d, hn::Sub(one, t), p_hi, k);
  dy = hn::NegMulAdd(t, ratio, linear);

  // The ratio counts twice on the right; what it lacks, too.
  product_lo = hn::MulAdd(far_lo, raised, hn::MulAdd(far, hn::Mul(q_lo, up), product_lo));
  const V residual = hn::Add(product_lo, Residual(d, quotient, rest, product));
  const V lost = hn::NegMulAdd(quotient, hn::NegMulAdd(q_lo, hn::Mul(up, down), rest_lo), residual);
  const V sum = hn::Add(hn::Sub(far, one), hn::Add(far_lo, ratio));
  const V right = hn::MulAdd(quotient, sum, hn::Mul(hn::Div(lost, rest), hn::Add(sum, ratio)));
  d2y = hn::IfThenElse(left, hn::Mul(ratio, hn::Add(half_m, bent)), hn::Mul(right, down));
  d2y = hn::MulAdd(t, d2y, linear);

  V log1p, log1p_lo;
  SharpLog1p(d, hn::Neg(q), hn::Neg(hn::Mul(hn::Mul(q_lo, up), down)), log1p, log1p_lo);
  const V right_log =
      hn::IfThenElse(hn::Lt(q, hn::Set(d, 0x1p-60)), q, hn::Neg(hn::Add(log1p, log1p_lo)));
  const V sinh = hn::Mul(m2, Polynomial(d, C::kSinh, m2, m4));
  const V minus_log = hn::IfThenElse(left, hn::Sub(hn::Sub(half_m, sinh), z), right_log);
  y = hn::MulAdd(t, hn::IfThenZeroElse(hn::Eq(t, zero), minus_log), linear);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_LIKELIHOODS_INL_H_

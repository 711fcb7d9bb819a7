// Powers of any base and exponent, full range.
#if defined(PULLBACK_CPP_MATH_POWER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_POWER_INL_H_
#undef PULLBACK_CPP_MATH_POWER_INL_H_
#else
#define PULLBACK_CPP_MATH_POWER_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"
#include "math/exp-inl.h"
#include "math/log-inl.h"
#include "math/roots-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

struct PowerConstants {
  // log((1 + s) / (1 - s)) = s (2 + z (2/3 + z tail(z))), z = s^2, from coefficients.sollya.
  static constexpr double kTwoThirds = 0x1.5555555555555p-1;
  static constexpr double kTwoThirdsLo = 0x1.5555555555555p-55;
  static constexpr double kTail[] = {
      0x1.999999999999ap-2, 0x1.24924924922ffp-2, 0x1.c71c71c74c24ap-3, 0x1.745d173d2e2a6p-3,
      0x1.3b13a9acf8932p-3, 0x1.11155791432fap-3, 0x1.e0181912bbd3p-4,  0x1.dab3551def166p-4};
  // (exp(r) - 1 - r) / r^2 for float32
  static constexpr double kShortTail[] = {0x1.0000003a6f7d8p-1,  0x1.55555441c8369p-3,
                                          0x1.55548d14f6e91p-5,  0x1.111271f3c3577p-7,
                                          0x1.6d8dac53aad2fp-10, 0x1.9f08136248cf5p-13};
  static constexpr double kLn2Hi = 0x1.62e42fefap-1;  // times an exponent up to 2^15 it is exact
  static constexpr double kLn2Lo = 0x1.cf79abc9e3b3ap-40;
  // exp(+-kMax), even times the largest factors of a derivative, over- or underflows.
  static constexpr double kMax = 3000;
  static constexpr double kShortMax = 700;
  // Above, b log(a) is 0 or beyond kMax; from kMin to kMaxExponent nothing in b c 2^k, c from 1/2
  // to 2, rounds before the result does.
  static constexpr double kMaxExponent = 0x1p66;
  static constexpr double kMinExponent = 0x1p-100;
};

// log(x) = hi + lo for finite x > 0, |lo| <= 2^-44 |hi|, relative error below 2^-65; x = m * 2^k;
// r_m is near 1 / m.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerLog(D d, V x, V& hi, V& lo, V& m, V& k, V& r_m) {
  using C = PowerConstants;
  const V two = hn::Set(d, 2);
  LogReduce(d, x, m, k);
  const V f = hn::Sub(m, hn::Set(d, 1));
  V sum, sum_lo;
  FastTwoSum(two, f, sum, sum_lo);
  // One division serves f / (2 + f) and 1 / m.
  const V r = hn::Div(hn::Set(d, 1), hn::Mul(sum, m));
  const V r_sum = hn::Mul(r, m);
  r_m = hn::Mul(r, sum);
  const V s = hn::Mul(f, r_sum);
  const V s_lo = hn::Mul(r_sum, hn::NegMulAdd(s, sum_lo, Residual(d, s, sum, f)));
  const V twice = hn::Add(s, s);

  V z, z_lo;
  TwoProd(d, s, s, z, z_lo);
  z_lo = hn::MulAdd(twice, s_lo, z_lo);
  const V tail = Polynomial(d, C::kTail, z, hn::Mul(z, z));
  V t, t_lo, p, p_lo, q, q_lo, rest;
  TwoProd(d, z, tail, t, t_lo);
  t_lo = hn::Add(t_lo, hn::MulAdd(z_lo, tail, hn::Set(d, C::kTwoThirdsLo)));
  FastTwoSum(hn::Set(d, C::kTwoThirds), t, t, rest);
  t_lo = hn::Add(t_lo, rest);
  TwoProd(d, z, t, p, p_lo);
  p_lo = hn::MulAdd(z, t_lo, hn::MulAdd(z_lo, t, p_lo));
  TwoProd(d, s, p, q, q_lo);
  q_lo = hn::MulAdd(s, p_lo, hn::MulAdd(s_lo, p, q_lo));
  V log_m, log_m_lo, rest_k;
  FastTwoSum(twice, q, log_m, rest);
  log_m_lo = hn::Add(rest, hn::MulAdd(two, s_lo, q_lo));
  FastTwoSum(hn::Mul(k, hn::Set(d, C::kLn2Hi)), log_m, hi, rest_k);
  lo = hn::Add(rest_k, hn::MulAdd(k, hn::Set(d, C::kLn2Lo), log_m_lo));
}

// exp(x + x_lo) = (p_hi + p_lo) * 2^k as ExpCore<true> has it, for a wider range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerExp(D d, V x, V x_lo, V& p_hi, V& p_lo, V& k) {
  using C = PowerConstants;
  using E = ExpConstants<double>;
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  k = hn::Sub(hn::MulAdd(x, hn::Set(d, E::kLog2E), rounder), rounder);
  const V r_hi = hn::NegMulAdd(k, hn::Set(d, C::kLn2Hi), x);  // exact
  const V r_lo = hn::NegMulAdd(k, hn::Set(d, C::kLn2Lo), x_lo);
  V r, dropped, rest, more;
  FastTwoSum(r_hi, r_lo, r, dropped);
  const V r2 = hn::Mul(r, r);
  FastTwoSum(hn::Set(d, 1), r, p_hi, rest);
  FastTwoSum(p_hi, hn::Mul(r2, hn::Set(d, 0.5)), p_hi, more);
  const V tail = hn::MulAdd(hn::Mul(r, r2), Polynomial(d, E::kSharpTail, r, r2),
                            hn::MulAdd(dropped, r, dropped));
  p_lo = hn::Add(hn::Add(rest, more), tail);
}

// 2^k as a product of two, for any v within 2^+-140 times the first is exact, unless v * 2^k is 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void TwoPowers(D d, V k, V& first, V& second) {
  constexpr double kLimit = 1220;
  k = hn::Max(hn::Min(k, hn::Set(d, kLimit)), hn::Set(d, -kLimit));
  const V offset = hn::CopySign(hn::Set(d, 200), hn::Neg(k));
  first = PowerOfTwo(d, k, offset);
  second = hn::IfNegativeThenElse(k, hn::Set(d, 0x1p-200), hn::Set(d, 0x1p200));
}

// a^b and its derivatives for finite a > 0 and kMinExponent <= |b| <= kMaxExponent; y and db for
// smaller |b|, too, and all three for any b in float32.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerOrdinary(D d, V a, V b, V& y, V& da, V& db) {
  using C = PowerConstants;
  using E = ExpConstants<double>;
  const V one = hn::Set(d, 1);
  if constexpr (kForFloat32<D>) {
    V m, k;
    LogReduce(d, a, m, k);
    const V sum = hn::Add(m, one);
    const V r = hn::Div(one, hn::Mul(sum, a));
    const V r_a = hn::Mul(r, sum);
    const V s = hn::Mul(hn::Sub(m, one), hn::Mul(r, a));
    const V z = hn::Mul(s, s);
    const V tail = Polynomial(d, LogConstants<double>::kShortTail, z, hn::Mul(z, z));
    const V log_m = hn::MulAdd(hn::Mul(s, z), tail, hn::Add(s, s));
    const V log = hn::MulAdd(k, hn::Set(d, C::kLn2Hi + C::kLn2Lo), log_m);
    const V x = AtLeast(d, -C::kShortMax, AtMost(d, C::kShortMax, hn::Mul(b, log)));
    const V rounder = hn::Set(d, FormatOf<D>::kRounder);
    const V n = hn::Sub(hn::MulAdd(x, hn::Set(d, E::kLog2E), rounder), rounder);
    const V t = hn::NegMulAdd(n, hn::Set(d, C::kLn2Hi + C::kLn2Lo), x);
    const V t2 = hn::Mul(t, t);
    const V exp = hn::MulAdd(t2, Polynomial(d, C::kShortTail, t, t2), hn::Add(one, t));
    y = hn::Mul(exp, PowerOfTwo(d, n, hn::Zero(d)));
    da = hn::Mul(hn::Mul(y, r_a), b);
    db = hn::Mul(y, log);
  } else {
    V log_hi, log_lo, m, k_a, r_m, x, x_lo, p_hi, p_lo, k, first, second;
    PowerLog(d, a, log_hi, log_lo, m, k_a, r_m);
    TwoProd(d, b, log_hi, x, x_lo);
    x_lo = hn::MulAdd(b, log_lo, x_lo);
    const V max = hn::Set(d, C::kMax);
    x_lo = hn::IfThenElseZero(hn::Lt(hn::Abs(x), max), x_lo);
    x = hn::Max(hn::Min(x, max), hn::Neg(max));
    PowerExp(d, x, x_lo, p_hi, p_lo, k);

    V p, rest;
    FastTwoSum(p_hi, p_lo, p, rest);
    TwoPowers(d, k, first, second);
    y = hn::Mul(hn::Mul(p, first), second);
    const V with_log = hn::MulAdd(p, log_hi, hn::MulAdd(p, log_lo, hn::Mul(rest, log_hi)));
    db = hn::Mul(hn::Mul(with_log, first), second);

    // a^b / a = (quotient + rest) * 2^(k - k_a)
    const V quotient = hn::Mul(p, r_m);
    rest = hn::Mul(r_m, hn::Add(Residual(d, quotient, m, p), rest));
    TwoPowers(d, hn::Sub(k, k_a), first, second);
    const V slope = hn::MulAdd(quotient, b, hn::Mul(rest, b));
    da = hn::Mul(hn::Mul(slope, first), second);
  }
}

// What Power has for ordinary lanes, mended for the others: zeros, infinities, NaN, negative bases
// and extreme exponents.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerSpecial(D d, V a, V b, V& y, V& da, V& db) {
  using C = PowerConstants;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, 1);
  const V inf = Infinity(d);
  const V nan = hn::NaN(d);
  const V abs_a = hn::Abs(a);
  const V abs_b = hn::Abs(b);
  const auto a_zero = hn::Eq(a, zero);
  const auto a_end = hn::Or(a_zero, hn::Eq(abs_a, inf));
  const auto b_zero = hn::Eq(b, zero);

  // Exponents that PowerOrdinary could not take as they are.
  if constexpr (!kForFloat32<D>) {
    da = hn::IfThenElse(hn::Lt(abs_b, hn::Set(d, C::kMinExponent)), hn::Div(b, abs_a), da);
  }
  da = hn::IfThenElse(hn::Eq(abs_a, one), b, da);

  // |a| = 0 and infinity, where a^b is 1, 0 or infinity.
  const V log = hn::IfThenElse(a_zero, hn::Neg(inf), abs_a);
  const V x = hn::Mul(b, log);
  const V x_slope = hn::Mul(hn::Sub(b, one), log);
  const V y_end = hn::IfThenElse(hn::Gt(x, zero), inf, hn::IfThenZeroElse(hn::Lt(x, zero), one));
  const V da_end = hn::IfThenElse(hn::Gt(x_slope, zero), hn::Mul(b, inf),
                                  hn::IfThenElse(hn::Lt(x_slope, zero), hn::CopySign(zero, b), b));
  const V db_end = hn::IfThenElse(hn::Lt(b, zero), hn::IfThenElseZero(a_zero, log),
                                  hn::IfThenZeroElse(a_zero, log));
  y = hn::IfThenElse(a_end, y_end, y);
  da = hn::IfThenElse(a_end, da_end, da);
  db = hn::IfThenElse(a_end, db_end, db);

  // Signs; a negative base has powers with integral exponents only.
  const auto integral = hn::Eq(hn::Round(b), b);
  const V half = hn::Mul(b, hn::Set(d, 0.5));
  const auto even = hn::And(integral, hn::Eq(hn::Round(half), half));
  const auto finite_b = hn::Lt(abs_b, inf);
  const V sign = hn::And(a, hn::SignBit(d));
  const auto negative = hn::Lt(a, zero);
  y = hn::Xor(y, hn::IfThenElseZero(integral, hn::IfThenZeroElse(even, sign)));
  da = hn::Xor(da, hn::IfThenElseZero(hn::And(even, finite_b), sign));
  const auto root = hn::AndNot(integral, negative);
  y = hn::IfThenElse(hn::AndNot(a_end, root), nan, y);
  da = hn::IfThenElse(hn::Or(root, hn::AndNot(finite_b, negative)), nan, da);
  db = hn::IfThenElse(negative, nan, db);

  // (0, 0), constants in one operand, and NaN.
  da = hn::IfThenZeroElse(hn::And(a_zero, b_zero), da);
  const V sum = hn::Add(abs_a, abs_b);
  const auto numbers = hn::Eq(sum, sum);
  y = hn::IfThenElse(numbers, y, nan);
  y = hn::IfThenElse(hn::Or(b_zero, hn::Eq(a, one)), one, y);
  da = hn::IfThenElse(numbers, da, nan);
  db = hn::IfThenElse(numbers, db, nan);
}

// a^b, b a^(b-1) and a^b log(a), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Power(D d, V a, V b, V& y, V& da, V& db) {
  using C = PowerConstants;
  const V abs_b = hn::Abs(b);
  const V max = hn::Set(d, C::kMaxExponent);
  PowerOrdinary(d, hn::Abs(a), hn::CopySign(hn::Min(abs_b, max), b), y, da, db);
  const auto ordinary_a = hn::And(hn::Gt(a, hn::Zero(d)), hn::Lt(a, Infinity(d)));
  const auto ordinary_b = hn::And(hn::Ge(abs_b, hn::Set(d, C::kMinExponent)), hn::Le(abs_b, max));
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::And(ordinary_a, ordinary_b)))) {
    PowerSpecial(d, a, b, y, da, db);  // leaves ordinary lanes as they are
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_POWER_INL_H_

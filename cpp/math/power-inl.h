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
  static constexpr double kMax = 760;  // above, exp is infinite or zero
  static constexpr double kMaxForFloat32 = 700;
  static constexpr double kMaxSlope = 3000;  // above, so are all its derivatives
  // From here on nothing in b c 2^k, c from 1/2 to 2, rounds before the result does.
  static constexpr double kMinExponent = 0x1p-100;
  static constexpr double kMaxExponent = 0x1p900;  // where there is no FMA, TwoProd takes no more
};

// Polynomial with a shorter chain, for one multiplication more.
template <size_t kI = 0, class D, class T, size_t kN, class V = hn::Vec<D>>
HWY_INLINE V EstrinPolynomial(D d, const T (&c)[kN], V x, V x2, V x4) {
  static_assert(kI + 1 < kN);
  const V low = hn::MulAdd(hn::Set(d, c[kI + 1]), x, hn::Set(d, c[kI]));
  if constexpr (kI + 3 < kN) {
    const V high = hn::MulAdd(hn::Set(d, c[kI + 3]), x, hn::Set(d, c[kI + 2]));
    const V four = hn::MulAdd(high, x2, low);
    if constexpr (kI + 4 < kN) {
      return hn::MulAdd(EstrinPolynomial<kI + 4>(d, c, x, x2, x4), x4, four);
    } else {
      return four;
    }
  } else {
    static_assert(kI + 2 == kN);
    return low;
  }
}

// log(m * 2^k) = hi + lo for m in [sqrt(1/2), sqrt(2)), |lo| <= 2^-38 |hi|, relative error below
// 2^-65; r_m is near 1 / m.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerLog(D d, V m, V k, V& hi, V& lo, V& r_m) {
  using C = PowerConstants;
  const V one = hn::Set(d, 1);
  const V f = hn::Sub(m, one);
  const V sum = hn::Add(m, one);
  const V sum_lo = hn::Sub(m, hn::Sub(sum, one));
  // One division serves f / (2 + f) and 1 / m.
  const V r = hn::Div(one, hn::Mul(sum, m));
  const V r_sum = hn::Mul(r, m);
  r_m = hn::Mul(r, sum);
  const V s = hn::Mul(r, hn::Mul(f, m));
  const V s_lo = hn::Mul(r_sum, hn::NegMulAdd(s, sum_lo, Residual(d, s, sum, f)));
  const V twice = hn::Add(s, s);

  V z, z_lo, cube, cube_lo;
  TwoProd(d, s, s, z, z_lo);
  z_lo = hn::MulAdd(twice, s_lo, z_lo);
  TwoProd(d, s, z, cube, cube_lo);
  cube_lo = hn::MulAdd(s, z_lo, hn::MulAdd(s_lo, z, cube_lo));
  // t = 2/3 + z tail(z), close enough to 2/3 that what it rounds off is exact
  const V z2 = hn::Mul(z, z);
  const V tail = EstrinPolynomial(d, C::kTail, z, z2, hn::Mul(z2, z2));
  const V two_thirds = hn::Set(d, C::kTwoThirds);
#if HWY_NATIVE_FMA
  const V t = hn::MulAdd(z, tail, two_thirds);
  V t_lo = hn::MulAdd(z, tail, hn::Sub(two_thirds, t));
#else
  V product, product_lo;
  TwoProd(d, z, tail, product, product_lo);
  const V t = hn::Add(two_thirds, product);
  V t_lo = hn::Add(hn::Add(hn::Sub(two_thirds, t), product), product_lo);
#endif
  t_lo = hn::Add(t_lo, hn::MulAdd(z_lo, tail, hn::Set(d, C::kTwoThirdsLo)));
  V q, q_lo, log_m, rest, rest_k;
  TwoProd(d, cube, t, q, q_lo);
  q_lo = hn::MulAdd(cube, t_lo, hn::MulAdd(cube_lo, t, q_lo));
  FastTwoSum(twice, q, log_m, rest);
  const V log_m_lo = hn::Add(rest, hn::MulAdd(hn::Set(d, 2), s_lo, q_lo));
  FastTwoSum(hn::Mul(k, hn::Set(d, C::kLn2Hi)), log_m, hi, rest_k);
  lo = hn::Add(rest_k, hn::MulAdd(k, hn::Set(d, C::kLn2Lo), log_m_lo));
}

// exp(x + x_lo) = (p + rest) * 2^k, p in about [0.7, 1.42], |rest| <= ulp(p) / 2, to a relative
// 2^-57, for |x| <= kMaxSlope and |x_lo| <= 2^-27.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerExp(D d, V x, V x_lo, V& p, V& rest, V& k) {
  using C = PowerConstants;
  using E = ExpConstants<double>;
  const V one = hn::Set(d, 1);
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  k = hn::Sub(hn::MulAdd(x, hn::Set(d, E::kLog2E), rounder), rounder);
  const V r = hn::NegMulAdd(k, hn::Set(d, C::kLn2Hi), x);  // exact
  const V r_lo = hn::NegMulAdd(k, hn::Set(d, C::kLn2Lo), x_lo);
  const V r2 = hn::Mul(r, r);
  const V r4 = hn::Mul(r2, r2);
  V hi, from_r, from_r2;
  FastTwoSum(one, r, hi, from_r);
  FastTwoSum(hi, hn::Mul(r2, hn::Set(d, 0.5)), hi, from_r2);
  // exp(r + r_lo) = exp(r) (1 + r_lo)
  const V cube = hn::Mul(hn::Mul(r, r2), hn::Add(one, r_lo));
  const V base = hn::MulAdd(hi, r_lo, hn::Add(from_r, from_r2));
  const V lo = hn::MulAdd(EstrinPolynomial(d, E::kSharpTail, r, r2, r4), cube, base);
  FastTwoSum(hi, lo, p, rest);
}

// 2^k as a product of two: for any v within 2^+-140 the first multiplies exactly, unless v * 2^k
// is 0. For |k| up to 1220.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void TwoPowers(D d, V k, V& first, V& second) {
  first = PowerOfTwo(d, k, hn::CopySign(hn::Set(d, 200), hn::Neg(k)));
  second = hn::IfNegativeThenElse(k, hn::Set(d, 0x1p-200), hn::Set(d, 0x1p200));
}

// a^b and its derivatives by a and by b, for ordinary operands: finite a = m * 2^k_a > 0,
// kMinExponent <= |b| <= kMaxExponent, |x| <= kMax, where x = b log(a).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerOrdinary(D d, V m, V k_a, V b, V& y, V& da, V& db, V& x, V& log) {
  V log_lo, r_m, x_lo, p, rest, k, first, second;
  PowerLog(d, m, k_a, log, log_lo, r_m);
  TwoProd(d, b, log, x, x_lo);
  x_lo = hn::MulAdd(b, log_lo, x_lo);
  PowerExp(d, x, x_lo, p, rest, k);

  TwoPowers(d, k, first, second);
  y = hn::Mul(hn::Mul(p, first), second);
  const V with_log = hn::MulAdd(p, log, hn::MulAdd(p, log_lo, hn::Mul(rest, log)));
  db = hn::Mul(hn::Mul(with_log, first), second);

  // a^b / a = (quotient + quotient_lo) * 2^(k - k_a)
  const V quotient = hn::Mul(p, r_m);
  const V quotient_lo = hn::Mul(r_m, hn::Add(Residual(d, quotient, m, p), rest));
  const V limit = hn::Set(d, 1220);
  const V k_slope = hn::Max(hn::Min(hn::Sub(k, k_a), limit), hn::Neg(limit));
  TwoPowers(d, k_slope, first, second);
  const V slope = hn::MulAdd(quotient, b, hn::Mul(quotient_lo, b));
  da = hn::Mul(hn::Mul(slope, first), second);
}

// The same for float32, with any finite b.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerForFloat32(D d, V a, V b, V& y, V& da, V& db, V& x, V& log) {
  using C = PowerConstants;
  const V one = hn::Set(d, 1);
  const V ln2 = hn::Set(d, C::kLn2Hi + C::kLn2Lo);
  V m, k;
  LogReduce(d, a, m, k);
  const V sum = hn::Add(m, one);
  const V r = hn::Div(one, hn::Mul(sum, a));  // for f / (2 + f) and 1 / a
  const V s = hn::Mul(r, hn::Mul(hn::Sub(m, one), a));
  const V z = hn::Mul(s, s);
  const V z2 = hn::Mul(z, z);
  const V log_tail = Polynomial(d, LogConstants<double>::kShortTail, z, z2);
  log = hn::MulAdd(k, ln2, hn::MulAdd(hn::Mul(s, z), log_tail, hn::Add(s, s)));

  x = hn::Mul(b, log);
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  const V n = hn::Sub(hn::MulAdd(x, hn::Set(d, ExpConstants<double>::kLog2E), rounder), rounder);
  const V t = hn::NegMulAdd(n, ln2, x);
  const V t2 = hn::Mul(t, t);
  const V exp = hn::MulAdd(t2, Polynomial(d, C::kShortTail, t, t2), hn::Add(one, t));
  y = hn::Mul(exp, PowerOfTwo(d, n, hn::Zero(d)));
  da = hn::Mul(hn::Mul(y, hn::Mul(r, sum)), b);
  db = hn::Mul(y, log);
}

// Mends the results where magnitudes are not ordinary: zeros, infinities, NaN, tiny exponents,
// results out of range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerEnds(D d, V a, V b, V x, V log, V& y, V& da, V& db) {
  using C = PowerConstants;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, 1);
  const V inf = Infinity(d);
  const V nan = hn::NaN(d);
  const V abs_a = hn::Abs(a);
  const V abs_b = hn::Abs(b);
  const V abs_x = hn::Abs(x);
  const auto a_zero = hn::Eq(a, zero);
  const auto a_end = hn::Or(a_zero, hn::Eq(abs_a, inf));
  const auto a_unit = hn::Eq(abs_a, one);

  // Out of range.
  const auto growing = hn::Gt(x, zero);
  const V scale = hn::IfThenElseZero(growing, inf);
  const V da_out = hn::IfThenElse(growing, hn::Mul(b, inf), hn::CopySign(zero, b));
  constexpr double kMax = kForFloat32<D> ? C::kMaxForFloat32 : C::kMax;
  constexpr double kMaxSlope = kForFloat32<D> ? C::kMaxForFloat32 : C::kMaxSlope;
  const auto out = hn::Gt(abs_x, hn::Set(d, kMax));
  y = hn::IfThenElse(out, scale, y);
  db = hn::IfThenElse(out, hn::Mul(log, scale), db);
  da = hn::IfThenElse(hn::Gt(abs_x, hn::Set(d, kMaxSlope)), da_out, da);
  if constexpr (!kForFloat32<D>) {
    da = hn::IfThenElse(hn::Lt(abs_b, hn::Set(d, C::kMinExponent)), hn::Div(b, abs_a), da);
  }
  // |a| = 1 with any b: x may have been 0 * inf.
  y = hn::IfThenElse(a_unit, one, y);
  da = hn::IfThenElse(a_unit, b, da);
  db = hn::IfThenZeroElse(a_unit, db);

  // |a| = 0 and infinity, where a^b is 1, 0 or infinity.
  const V log_end = hn::IfThenElse(a_zero, hn::Neg(inf), abs_a);
  const V x_end = hn::Mul(b, log_end);
  const V x_slope = hn::Mul(hn::Sub(b, one), log_end);
  const V y_end =
      hn::IfThenElse(hn::Gt(x_end, zero), inf, hn::IfThenZeroElse(hn::Lt(x_end, zero), one));
  const V da_end = hn::IfThenElse(hn::Gt(x_slope, zero), hn::Mul(b, inf),
                                  hn::IfThenElse(hn::Lt(x_slope, zero), hn::CopySign(zero, b), b));
  const V db_end = hn::IfThenElse(hn::Lt(b, zero), hn::IfThenElseZero(a_zero, log_end),
                                  hn::IfThenZeroElse(a_zero, log_end));
  y = hn::IfThenElse(a_end, y_end, y);
  da = hn::IfThenElse(a_end, da_end, da);
  da = hn::IfThenZeroElse(hn::Eq(hn::Add(abs_a, abs_b), zero), da);
  db = hn::IfThenElse(a_end, db_end, db);

  // NaN, unless the other operand makes a^b constant.
  const V sum = hn::Add(abs_a, abs_b);
  const auto numbers = hn::Eq(sum, sum);
  y = hn::IfThenElse(numbers, y, nan);
  y = hn::IfThenElse(hn::Or(hn::Eq(b, zero), hn::Eq(a, one)), one, y);
  da = hn::IfThenElse(numbers, da, nan);
  db = hn::IfThenElse(numbers, db, nan);
}

// Gives the results of |a| the signs of a's; a negative base has powers with integral exponents
// only.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerSigns(D d, V a, V b, V& y, V& da, V& db) {
  const V inf = Infinity(d);
  const V nan = hn::NaN(d);
  const V abs_a = hn::Abs(a);
  const V abs_b = hn::Abs(b);
  const auto integral = hn::Eq(hn::Round(b), b);
  const V half = hn::Mul(b, hn::Set(d, 0.5));
  const auto even = hn::And(integral, hn::Eq(hn::Round(half), half));
  const auto finite_b = hn::Lt(abs_b, inf);
  const auto negative = hn::Lt(a, hn::Zero(d));
  const V sign = hn::And(a, hn::SignBit(d));
  y = hn::Xor(y, hn::IfThenElseZero(integral, hn::IfThenZeroElse(even, sign)));
  // (0, 0) has a slope of +0 whatever its signs.
  const auto flip = hn::AndNot(hn::Eq(hn::Add(abs_a, abs_b), hn::Zero(d)), even);
  da = hn::Xor(da, hn::IfThenElseZero(hn::And(flip, finite_b), sign));
  const auto root = hn::AndNot(integral, negative);
  y = hn::IfThenElse(hn::And(root, hn::Lt(abs_a, inf)), nan, y);
  da = hn::IfThenElse(hn::Or(root, hn::AndNot(finite_b, negative)), nan, da);
  db = hn::IfThenElse(negative, nan, db);
}

// a^b, b a^(b-1) and a^b log(a), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Power(D d, V a, V b, V& y, V& da, V& db) {
  using C = PowerConstants;
  const V abs_a = hn::Abs(a);
  V x, log;
  // Rare lanes have paths of their own, which leave the other lanes as they are.
  auto ordinary = hn::And(hn::Gt(abs_a, hn::Zero(d)), hn::Lt(abs_a, Infinity(d)));
  if constexpr (kForFloat32<D>) {
    PowerForFloat32(d, abs_a, b, y, da, db, x, log);
    // Also false for NaN.
    ordinary = hn::And(ordinary, hn::Le(hn::Abs(x), hn::Set(d, C::kMaxForFloat32)));
  } else {
    V m, k;
    if (HWY_LIKELY(hn::AllTrue(d, hn::Ge(abs_a, hn::Set(d, FormatOf<D>::kMinNormal))))) {
      LogReduce<true>(d, abs_a, m, k);
    } else {
      LogReduce(d, abs_a, m, k);
    }
    PowerOrdinary(d, m, k, b, y, da, db, x, log);
    const V abs_b = hn::Abs(b);
    ordinary = hn::And(ordinary, hn::Le(hn::Abs(x), hn::Set(d, C::kMax)));
    ordinary = hn::And(ordinary, hn::And(hn::Ge(abs_b, hn::Set(d, C::kMinExponent)),
                                         hn::Le(abs_b, hn::Set(d, C::kMaxExponent))));
  }
  if (HWY_UNLIKELY(!hn::AllTrue(d, ordinary))) PowerEnds(d, a, b, x, log, y, da, db);
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Gt(a, hn::Zero(d))))) PowerSigns(d, a, b, y, da, db);
}

// b (b - 1) a^(b-2), a^(b-1) (1 + b log(a)) and a^b log(a)^2, full range; double. The sum keeps
// its digits to 2^-65 of its terms.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PowerSecond(D d, V a, V b, V& daa, V& dab, V& dbb) {
  using C = PowerConstants;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, 1);
  const V inf = Infinity(d);
  const V nan = hn::NaN(d);
  const V abs_a = hn::Abs(a);
  const V abs_b = hn::Abs(b);
  // Larger exponents have the same powers.
  const V most = hn::Set(d, 0x1p80);
  const V n = hn::CopySign(hn::Min(abs_b, most), b);
  V m, k_a, log, log_lo, r_m, x, x_lo, p, rest, k, total, total_lo;
  LogReduce(d, abs_a, m, k_a);
  PowerLog(d, m, k_a, log, log_lo, r_m);
  TwoProd(d, n, log, x, x_lo);
  x_lo = hn::MulAdd(n, log_lo, x_lo);
  const V limit = hn::Set(d, C::kMaxSlope);
  const auto far = hn::Gt(hn::Abs(x), limit);
  x = hn::IfThenElse(far, hn::CopySign(limit, x), x);
  x_lo = hn::IfThenZeroElse(far, x_lo);
  PowerExp(d, x, x_lo, p, rest, k);
  // p / m and p / m^2
  const V by_m = hn::Mul(p, r_m);
  const V by_m_lo = hn::Mul(r_m, hn::Add(Residual(d, by_m, m, p), rest));
  const V by_m2 = hn::Mul(by_m, r_m);
  const V by_m2_lo = hn::Mul(r_m, hn::Add(Residual(d, by_m2, m, by_m), by_m_lo));
  // A tiny exponent is not to be subnormal before it is divided.
  const auto tiny = hn::Lt(abs_b, hn::Set(d, 0x1p-500));
  const V less = hn::Sub(n, one);
  const V factor = hn::Mul(hn::IfThenElse(tiny, hn::Mul(n, hn::Set(d, 0x1p600)), n), less);
  const V k_far = hn::Set(d, 4000);
  const auto scaled = [&](V v, V exponent) {
    return ScaleFar(d, v, hn::Max(hn::Min(exponent, k_far), hn::Neg(k_far)));
  };
  const V k_slope = hn::Sub(k, k_a);
  daa = scaled(hn::MulAdd(by_m2, factor, hn::Mul(by_m2_lo, factor)),
               hn::Sub(hn::Sub(k_slope, k_a), hn::IfThenElseZero(tiny, hn::Set(d, 600))));
  TwoSum(one, x, total, total_lo);
  total = hn::Add(total, hn::Add(total_lo, x_lo));
  dab = scaled(hn::MulAdd(by_m, total, hn::Mul(by_m_lo, total)), k_slope);
  const V with_log = hn::MulAdd(p, log, hn::MulAdd(p, log_lo, hn::Mul(rest, log)));
  dbb = scaled(hn::MulAdd(with_log, log, hn::Mul(with_log, log_lo)), k);

  // |a| = 0 and infinity.
  const auto a_zero = hn::Eq(a, zero);
  const auto a_end = hn::Or(a_zero, hn::Eq(abs_a, inf));
  const auto b_zero = hn::Eq(b, zero);
  const V log_end = hn::IfThenElse(a_zero, hn::Neg(inf), abs_a);
  const V whole = hn::Mul(b, hn::Sub(b, one));
  const V total_end = hn::IfThenElse(b_zero, one, hn::Add(one, hn::Mul(b, log_end)));
  const auto power_of = [&](V exponent, V coefficient) {
    const V sign = hn::Mul(exponent, log_end);  // NaN where the exponent is 0
    return hn::IfThenElse(
        hn::Gt(sign, zero), hn::Mul(coefficient, inf),
        hn::IfThenElse(hn::Lt(sign, zero), hn::CopySign(zero, coefficient), coefficient));
  };
  const auto vanishes = hn::Xor(hn::VecFromMask(d, a_zero), hn::VecFromMask(d, hn::Lt(b, zero)));
  const V dbb_end = hn::IfThenZeroElse(hn::MaskFromVec(vanishes), inf);
  daa = hn::IfThenElse(a_end, power_of(hn::Sub(b, hn::Set(d, 2)), whole), daa);
  dab = hn::IfThenElse(a_end, power_of(hn::Sub(b, one), total_end), dab);
  dbb = hn::IfThenElse(a_end, dbb_end, dbb);
  dab = hn::IfThenZeroElse(hn::And(a_zero, b_zero), dab);
  // |a| = 1 with any b.
  const auto a_unit = hn::Eq(abs_a, one);
  daa = hn::IfThenElse(a_unit, whole, daa);
  dab = hn::IfThenElse(a_unit, hn::MulAdd(b, zero, one), dab);
  dbb = hn::IfThenZeroElse(a_unit, dbb);

  // A negative base has powers with integral exponents only.
  const auto integral = hn::Eq(hn::Round(n), n);
  const V half = hn::Mul(n, hn::Set(d, 0.5));
  const auto odd = hn::AndNot(hn::Eq(hn::Round(half), half), integral);
  daa = hn::Xor(daa, hn::IfThenElseZero(odd, hn::And(a, hn::SignBit(d))));
  daa = hn::IfThenZeroElse(hn::Or(b_zero, hn::Eq(b, one)), daa);
  const auto negative = hn::Lt(a, zero);
  const auto whole_b = hn::And(integral, hn::Lt(abs_b, inf));
  daa = hn::IfThenElse(hn::AndNot(whole_b, negative), nan, daa);
  const V sum = hn::Add(abs_a, abs_b);
  const auto numbers = hn::Eq(sum, sum);
  daa = hn::IfThenElse(numbers, daa, nan);
  dab = hn::IfThenElse(hn::AndNot(negative, numbers), dab, nan);
  dbb = hn::IfThenElse(hn::AndNot(negative, numbers), dbb, nan);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_POWER_INL_H_

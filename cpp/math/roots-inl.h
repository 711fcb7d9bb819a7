// Roots, reciprocals and the like: what one residual step rounds correctly, almost.
#if defined(PULLBACK_CPP_MATH_ROOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_ROOTS_INL_H_
#undef PULLBACK_CPP_MATH_ROOTS_INL_H_
#else
#define PULLBACK_CPP_MATH_ROOTS_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
struct RootConstants;

template <>
struct RootConstants<float> {
  static constexpr float kSmall = 0x1p-80f;  // below, the residual of the root may underflow
  static constexpr float kRaise = 0x1p64f;
  static constexpr float kRootOfRaise = 0x1p32f;
  static constexpr float kSafeMin = 0x1p-16f;  // between, nothing in -a / b^2 can underflow
  static constexpr float kSafeMax = 0x1p16f;
  static constexpr float kNormalise = 0x1p32f;
  static constexpr float kNormaliseExponent = 32;
  static constexpr float kExponentLimit = 155;
  static constexpr float kFar = 0x1p100f;  // 1 / kFar^2 is 0, 1 / kFar is normal
};

template <>
struct RootConstants<double> {
  static constexpr double kSmall = 0x1p-800;
  static constexpr double kRaise = 0x1p400;
  static constexpr double kRootOfRaise = 0x1p200;
  static constexpr double kSafeMin = 0x1p-200;
  static constexpr double kSafeMax = 0x1p200;
  static constexpr double kNormalise = 0x1p64;
  static constexpr double kNormaliseExponent = 64;
  static constexpr double kExponentLimit = 1084;
  static constexpr double kFar = 0x1p600;
};

// sqrt(x) and 1 / (2 sqrt(x)), full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Sqrt(D d, V x, V& y, V& dy) {
  using T = hn::TFromD<D>;
  using C = RootConstants<T>;
  const V one = hn::Set(d, 1);
  y = hn::Sqrt(x);

  const auto small = hn::Lt(x, hn::Set(d, C::kSmall));
  const V scaled = hn::IfThenElse(small, hn::Mul(x, hn::Set(d, C::kRaise)), x);
  const V root = hn::IfThenElse(small, hn::Mul(y, hn::Set(d, C::kRootOfRaise)), y);
  // `slope`, fl(1 / (2 root)), is off by what the division dropped and by what the root did:
  // (x/2 - root^2/2) 4 slope^2, halved because root^2 may overflow.
  const V half = hn::Set(d, T{0.5});
  const V twice = hn::Add(root, root);
  const V slope = hn::Div(one, twice);
  const V twice_slope = hn::Add(slope, slope);
  const V from_root = hn::Mul(Residual(d, root, hn::Mul(root, half), hn::Mul(scaled, half)),
                              hn::Mul(twice_slope, twice_slope));
  const V relative = hn::Sub(Residual(d, slope, twice, one), from_root);
  const V correction = hn::Mul(slope, relative);
  // At 0 and infinity the correction is NaN and the slope is right.
  const V finite = hn::IfThenElseZero(hn::Eq(correction, correction), correction);
  const V result = hn::Add(slope, finite);
  dy = hn::IfThenElse(small, hn::Mul(result, hn::Set(d, C::kRootOfRaise)), result);
  dy = hn::IfThenElse(hn::Eq(x, hn::Zero(d)), Infinity(d), dy);
}

// a / b^2 where nothing in it under- or overflows; exact scaling of a or b scales it exactly.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V OverSquare(D d, V a, V b) {
  const V one = hn::Set(d, 1);
  const V r = hn::Div(one, b);
  const V rho = Residual(d, r, b, one);
  V r2, r2_lo, hi, lo;
  TwoProd(d, r, r, r2, r2_lo);
  r2_lo = hn::MulAdd(hn::Add(rho, rho), r2, r2_lo);
  TwoProd(d, a, r2, hi, lo);
  return hn::Add(hi, hn::MulAdd(a, r2_lo, lo));
}

// v = mantissa * 2^exponent with |mantissa| in [1, 2), for finite v != 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Frexp(D d, V v, V& mantissa, V& exponent) {
  using T = hn::TFromD<D>;
  using Format = FormatOf<D>;
  using Bits = typename Format::Bits;
  using C = RootConstants<T>;
  constexpr int kShift = Format::kMantissaBits;
  const hn::RebindToUnsigned<D> du;
  constexpr T kTwoToShift = static_cast<T>(Bits{1} << kShift);
  constexpr T kOffset = kTwoToShift + static_cast<T>(Format::kExponentBias);
  V offset = hn::Set(d, kOffset);
  if constexpr (!kForFloat32<D>) {
    const auto subnormal = hn::Lt(hn::Abs(v), hn::Set(d, Format::kMinNormal));
    v = hn::IfThenElse(subnormal, hn::Mul(v, hn::Set(d, C::kNormalise)), v);
    offset = hn::IfThenElse(subnormal, hn::Set(d, kOffset + C::kNormaliseExponent), offset);
  }
  const auto exponent_mask =
      hn::Set(du, static_cast<Bits>(static_cast<Bits>(2 * Format::kExponentBias + 1) << kShift));
  const auto bits = hn::BitCast(du, v);
  mantissa =
      hn::BitCast(d, hn::Or(hn::AndNot(exponent_mask, bits), hn::BitCast(du, hn::Set(d, 1))));
  const V biased = hn::BitCast(d, hn::Or(hn::ShiftRight<kShift>(hn::And(bits, exponent_mask)),
                                         hn::BitCast(du, hn::Set(d, kTwoToShift))));
  exponent = hn::Sub(biased, offset);
}

struct CbrtConstants {
  // x^(-1/3) on [1, 2], from coefficients.sollya.
  static constexpr double kStart[] = {0x1.ab85904419654p0, -0x1.2c41e23e5eb7dp0,
                                      0x1.6416505a6e46ap-1, -0x1.c51861064401ep-3,
                                      0x1.d46f7d3355354p-6};
  // ((1 - e)^(-2/3) - 1) / e
  static constexpr double kStep[] = {0x1.5555555555555p-1, 0x1.1c71c71c71c72p-1,
                                     0x1.f9add3c0ca458p-2, 0x1.cf8a021b64151p-2};
  static constexpr double kShortStep[] = {0x1.5555555555555p-1, 0x1.1c71c71c71c72p-1};
  static constexpr double kThird = 0x1.5555555555555p-2;
  static constexpr double kThirdLo = 0x1.5555555555555p-56;
  static constexpr double kCbrt2 = 0x1.428a2f98d728bp0;
  static constexpr double kCbrtHalf = 0x1.965fea53d6e3dp-1;
};

// The real cube root and 1 / (3 x^(2/3)), full range; double. No division: w, near n^(-1/3), leaves
// e = 1 - n w^3, and n^(-2/3) is w^2 (1 - e)^(-2/3).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Cbrt(D d, V x, V& y, V& dy) {
  using C = CbrtConstants;
  const V one = hn::Set(d, 1);
  const V abs = hn::Abs(x);
  V m, k;
  Frexp(d, abs, m, k);
  // x = n * 2^(3q), n = m * 2^rest, rest one of -1, 0, 1
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  const V q = hn::Sub(hn::MulAdd(k, hn::Set(d, C::kThird), rounder), rounder);
  const V rest = hn::NegMulAdd(q, hn::Set(d, 3), k);
  const auto low = hn::Lt(rest, hn::Zero(d));
  const auto high = hn::Gt(rest, hn::Zero(d));
  const V n =
      hn::IfThenElse(low, hn::Mul(m, hn::Set(d, 0.5)), hn::IfThenElse(high, hn::Add(m, m), m));
  const V start = hn::IfThenElse(low, hn::Set(d, C::kCbrt2),
                                 hn::IfThenElse(high, hn::Set(d, C::kCbrtHalf), one));
  const V w = hn::Mul(start, Polynomial(d, C::kStart, m, hn::Mul(m, m)));

  V root, slope;
  if constexpr (kForFloat32<D>) {
    const V w2 = hn::Mul(w, w);
    const V e = hn::NegMulAdd(hn::Mul(n, w), w2, one);
    const V power = hn::MulAdd(w2, hn::Mul(e, Polynomial(d, C::kShortStep, e, e)), w2);
    root = hn::Mul(n, power);
    slope = hn::Mul(power, hn::Set(d, C::kThird));
  } else {
    V w2, w2_lo, nw, nw_lo;
    TwoProd(d, w, w, w2, w2_lo);
    TwoProd(d, n, w, nw, nw_lo);
    const V e = hn::Sub(Residual(d, nw, w2, one), hn::MulAdd(nw_lo, w2, hn::Mul(nw, w2_lo)));
    const V step = hn::Mul(e, Polynomial(d, C::kStep, e, hn::Mul(e, e)));
    const V correction = hn::MulAdd(w2, step, w2_lo);
    const V third = hn::Set(d, C::kThird);
    root = hn::MulAdd(n, w2, hn::Mul(n, correction));
    slope =
        hn::MulAdd(w2, third, hn::MulAdd(correction, third, hn::Mul(w2, hn::Set(d, C::kThirdLo))));
  }
  y = hn::Mul(root, PowerOfTwo(d, q, hn::Zero(d)));
  dy = hn::Mul(slope, PowerOfTwo(d, hn::Mul(q, hn::Set(d, -2)), hn::Zero(d)));

  const V inf = Infinity(d);
  const auto zero = hn::Eq(x, hn::Zero(d));
  const auto finite = hn::Lt(abs, inf);
  y = hn::CopySign(hn::IfThenElse(finite, hn::IfThenZeroElse(zero, y), abs), x);
  const V zero_or_nan = hn::IfThenZeroElse(hn::Eq(abs, inf), abs);
  dy = hn::IfThenElse(finite, hn::IfThenElse(zero, inf, dy), zero_or_nan);
}

// 1/b and -a/b^2, full range; zeros, infinities and NaN as in -(a/b)/b.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void DivideDerivatives(D d, V a, V b, V& da, V& db) {
  using C = RootConstants<hn::TFromD<D>>;
  const V zero = hn::Zero(d);
  const V minus_a = hn::Neg(a);
  da = hn::Div(hn::Set(d, 1), b);

  const V safe_min = hn::Set(d, C::kSafeMin);
  const V safe_max = hn::Set(d, C::kSafeMax);
  const V abs_a = hn::Abs(a);
  const V abs_b = hn::Abs(b);
  const auto safe_a =
      hn::Or(hn::Eq(a, zero), hn::And(hn::Ge(abs_a, safe_min), hn::Le(abs_a, safe_max)));
  const auto safe_b = hn::And(hn::Ge(abs_b, safe_min), hn::Le(abs_b, safe_max));
  if (HWY_LIKELY(hn::AllTrue(d, hn::And(safe_a, safe_b)))) {
    // Bitwise what the general path gives: nothing rounds on account of an exponent.
    db = hn::CopySign(OverSquare(d, a, b), minus_a);
    return;
  }
  V a_mantissa, a_exponent, b_mantissa, b_exponent;
  Frexp(d, a, a_mantissa, a_exponent);
  Frexp(d, b, b_mantissa, b_exponent);
  const V limit = hn::Set(d, C::kExponentLimit);
  const V exponent = hn::Sub(a_exponent, hn::Add(b_exponent, b_exponent));
  const V general = Ldexp(d, OverSquare(d, a_mantissa, b_mantissa),
                          hn::Max(hn::Min(exponent, limit), hn::Neg(limit)));
  const V inf = Infinity(d);
  const auto ordinary = hn::And(hn::And(hn::Gt(abs_a, zero), hn::Lt(abs_a, inf)),
                                hn::And(hn::Gt(abs_b, zero), hn::Lt(abs_b, inf)));
  const V special = hn::Div(hn::Div(minus_a, b), b);
  db = hn::IfThenElse(ordinary, hn::CopySign(general, minus_a), special);
}

// 2 a / b^3, full range; zeros, infinities and NaN as in 2 ((a/b)/b)/b.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V TwiceOverCube(D d, V a, V b) {
  V a_mantissa, a_exponent, b_mantissa, b_exponent;
  Frexp(d, a, a_mantissa, a_exponent);
  Frexp(d, b, b_mantissa, b_exponent);
  const V limit = hn::Set(d, RootConstants<hn::TFromD<D>>::kExponentLimit);
  const V exponent = hn::NegMulAdd(b_exponent, hn::Set(d, 3), a_exponent);
  const V part = hn::Div(OverSquare(d, a_mantissa, b_mantissa), b_mantissa);
  const V general =
      Ldexp(d, hn::Add(part, part), hn::Max(hn::Min(exponent, limit), hn::Neg(limit)));
  const V zero = hn::Zero(d);
  const V inf = Infinity(d);
  const V abs_a = hn::Abs(a);
  const V abs_b = hn::Abs(b);
  const auto ordinary = hn::And(hn::And(hn::Gt(abs_a, zero), hn::Lt(abs_a, inf)),
                                hn::And(hn::Gt(abs_b, zero), hn::Lt(abs_b, inf)));
  const V special = hn::Div(hn::Div(hn::Div(a, b), b), b);
  const V sign = hn::Xor(a, b);
  const V signed_general = hn::Or(hn::Abs(general), hn::And(sign, hn::SignBit(d)));
  return hn::IfThenElse(ordinary, signed_general, hn::Add(special, special));
}

// x / (1 + |x|) and 1 / (1 + |x|)^2, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Softsign(D d, V x, V& y, V& dy) {
  const V one = hn::Set(d, 1);
  const V magnitude = AtMost(d, RootConstants<hn::TFromD<D>>::kFar, hn::Abs(x));
  V sum, sum_lo;
  TwoSum(magnitude, one, sum, sum_lo);
  const V r = hn::Div(one, sum);
  // What is missing of r, relative to it.
  const V rho = hn::Sub(Residual(d, r, sum, one), hn::Mul(r, sum_lo));
  const V product = hn::Mul(magnitude, r);
  y = hn::CopySign(hn::MulAdd(product, rho, product), x);
  const V square = hn::Mul(r, r);
  dy = hn::MulAdd(hn::Add(square, square), rho, square);
}

// 1 / sqrt(v + v_lo), |v_lo| <= ulp(v), where nothing in it under- or overflows; infinity at 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ReciprocalRoot(D d, V v, V v_lo) {
  const V one = hn::Set(d, 1);
  const V root = hn::Sqrt(v);
  const V r = hn::Div(one, root);
  const V from_root = hn::Mul(hn::Mul(r, hn::Set(d, 0.5)), r);
  const V missing = hn::Add(Residual(d, root, root, v), v_lo);
  const V relative = hn::NegMulAdd(missing, from_root, Residual(d, r, root, one));
  const V correction = hn::Mul(r, relative);
  return hn::Add(r, hn::IfThenElseZero(hn::Eq(correction, correction), correction));
}

// (a^2 + b^2) scale^2 = hi + lo, where nothing in it under- or overflows. `scale` is a power of
// two: `before` loses nothing of a or b, then `after` makes up for the rest.
template <class V>
struct SquaredLength {
  V hi, lo;
  V scale, before, after;  // before * after = scale
};

template <class D, class V = hn::Vec<D>>
HWY_INLINE SquaredLength<V> MakeSquaredLength(D d, V a, V b) {
  SquaredLength<V> s;
  const V one = hn::Set(d, 1);
  s.scale = s.before = s.after = one;
  s.lo = hn::Zero(d);
  if constexpr (kForFloat32<D>) {
    s.hi = hn::MulAdd(a, a, hn::Mul(b, b));
  } else {
    const V longer = hn::Max(hn::Abs(a), hn::Abs(b));
    const V up = hn::Set(d, 0x1p600);
    const V down = hn::Set(d, 0x1p-600);
    const auto large = hn::Gt(longer, hn::Set(d, 0x1p450));
    const auto small = hn::Lt(longer, hn::Set(d, 0x1p-450));
    s.before = hn::IfThenElse(small, up, one);
    s.after = hn::IfThenElse(large, down, one);
    s.scale = hn::IfThenElse(large, down, s.before);
    const V scaled_a = hn::Mul(a, s.scale);
    const V scaled_b = hn::Mul(b, s.scale);
    V a2, a2_lo, b2, b2_lo, rest;
    TwoProd(d, scaled_a, scaled_a, a2, a2_lo);
    TwoProd(d, scaled_b, scaled_b, b2, b2_lo);
    TwoSum(a2, b2, s.hi, rest);
    s.lo = hn::Add(rest, hn::Add(a2_lo, b2_lo));
  }
  return s;
}

// sqrt(a^2 + b^2) and its derivatives, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Hypot(D d, V a, V b, V& y, V& da, V& db) {
  const V one = hn::Set(d, 1);
  const V zero = hn::Zero(d);
  const V inf = Infinity(d);
  const V abs_a = hn::Abs(a);
  const V abs_b = hn::Abs(b);
  const auto infinite_a = hn::Eq(abs_a, inf);
  const auto infinite_b = hn::Eq(abs_b, inf);
  const auto infinite = hn::Or(infinite_a, infinite_b);
  const auto both_infinite = hn::And(infinite_a, infinite_b);

  const SquaredLength<V> length = MakeSquaredLength(d, a, b);
  const auto origin = hn::Eq(length.hi, zero);
  const V root = hn::Sqrt(length.hi);
  const V r = hn::Div(one, root);
  if constexpr (kForFloat32<D>) {
    y = root;
    da = hn::Mul(a, r);
    db = hn::Mul(b, r);
  } else {
    const V missing = hn::Add(Residual(d, root, root, length.hi), length.lo);
    const V half_r = hn::Mul(r, hn::Set(d, 0.5));
    y = hn::IfThenZeroElse(origin, hn::MulAdd(missing, half_r, root));
    const auto small = hn::Gt(length.before, one);
    const V up = hn::Set(d, 0x1p600);
    y = hn::Mul(y, hn::IfThenElse(small, hn::Set(d, 0x1p-600),
                                  hn::IfThenElse(hn::Lt(length.after, one), up, one)));
    const V relative = hn::NegMulAdd(missing, hn::Mul(half_r, r), Residual(d, r, root, one));
    const V da_raw = hn::Mul(hn::Mul(a, length.before), r);
    const V db_raw = hn::Mul(hn::Mul(b, length.before), r);
    // The sum turns a -0 into +0.
    da = hn::CopySign(hn::Mul(hn::MulAdd(da_raw, relative, da_raw), length.after), a);
    db = hn::CopySign(hn::Mul(hn::MulAdd(db_raw, relative, db_raw), length.after), b);
  }
  da = hn::IfThenZeroElse(origin, da);
  db = hn::IfThenZeroElse(origin, db);
  // The longer one wins; of two infinite ones, and beside NaN, neither.
  y = hn::IfThenElse(infinite, inf, y);
  da = hn::IfThenElse(infinite, hn::CopySign(hn::IfThenElseZero(infinite_a, one), a), da);
  db = hn::IfThenElse(infinite, hn::CopySign(hn::IfThenElseZero(infinite_b, one), b), db);
  const V nan = hn::Add(abs_a, abs_b);
  // Not Ne, which some targets take to be false of NaN.
  const auto undefined = hn::Or(both_infinite, hn::Not(hn::Eq(nan, nan)));
  da = hn::IfThenElse(undefined, hn::NaN(d), da);
  db = hn::IfThenElse(undefined, hn::NaN(d), db);
}

// 0, 1 / y and -x / y^2, the second derivatives of x log(y), 0 at the origin, NaN for negative y.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void XlogySecond(D d, V x, V y, V& dxx, V& dxy, V& dyy) {
  const V zero = hn::Zero(d);
  const V size = hn::IfThenElse(hn::Lt(y, zero), hn::NaN(d), hn::Abs(y));
  const auto origin = hn::And(hn::Eq(x, zero), hn::Eq(y, zero));
  DivideDerivatives(d, x, size, dxy, dyy);
  dxx = ConstantUnlessNaN(d, 0, size);
  dxy = hn::IfThenZeroElse(origin, dxy);
  dyy = hn::IfThenZeroElse(origin, dyy);
}

// (a, b) = (u, v) times up * more, powers of two that bring the larger one to [1, 2). Zeros,
// infinities and NaN are not ordinary.
template <class V>
struct NearUnit {
  V u, v;
  V up, more;
};

template <class D, class V = hn::Vec<D>>
HWY_INLINE NearUnit<V> BringNearUnit(D d, V a, V b) {
  NearUnit<V> n;
  V mantissa, k;
  Frexp(d, hn::Max(hn::Abs(a), hn::Abs(b)), mantissa, k);
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  const V half = hn::Sub(hn::MulAdd(k, hn::Set(d, -0.5), rounder), rounder);
  n.up = PowerOfTwo(d, half, hn::Zero(d));
  n.more = PowerOfTwo(d, hn::Neg(hn::Add(k, half)), hn::Zero(d));
  n.u = hn::Mul(hn::Mul(a, n.up), n.more);
  n.v = hn::Mul(hn::Mul(b, n.up), n.more);
  return n;
}

// Signed zeros where an operand is infinite and none NaN; NaN where one is.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V AtInfinity(D d, V a, V b, V sign, V ordinary) {
  const V abs_a = hn::Abs(a);
  const V abs_b = hn::Abs(b);
  const V sum = hn::Add(abs_a, abs_b);
  const V zero = hn::And(sign, hn::SignBit(d));
  const V finite = hn::IfThenElse(hn::Eq(sum, sum), ordinary, sum);
  return hn::IfThenElse(hn::Eq(hn::Max(abs_a, abs_b), Infinity(d)),
                        hn::IfThenElse(hn::Eq(sum, sum), zero, sum), finite);
}

// b^2/r^3, -a b/r^3 and a^2/r^3, r = hypot(a, b), full range, 0 at the origin; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void HypotSecond(D d, V a, V b, V& daa, V& dab, V& dbb) {
  const V one = hn::Set(d, 1);
  const NearUnit<V> n = BringNearUnit(d, a, b);
  V u2, u2_lo, v2, v2_lo, square, square_lo;
  TwoProd(d, n.u, n.u, u2, u2_lo);
  TwoProd(d, n.v, n.v, v2, v2_lo);
  TwoSum(u2, v2, square, square_lo);
  square_lo = hn::Add(square_lo, hn::Add(u2_lo, v2_lo));
  const V root = hn::Sqrt(square);
  const V r = hn::Div(one, root);
  const V missing = hn::Add(Residual(d, root, root, square), square_lo);
  const V half_r = hn::Mul(r, hn::Set(d, 0.5));
  const V relative = hn::NegMulAdd(missing, hn::Mul(half_r, r), Residual(d, r, root, one));
  const V r2 = hn::Mul(r, r);
  const V cube = hn::MulAdd(r2, r, hn::Mul(r2, hn::Mul(hn::Set(d, 3), hn::Mul(r, relative))));
  const V u_up = hn::Mul(n.u, n.up);
  const V v_up = hn::Mul(n.v, n.up);
  const V u_more = hn::Mul(n.u, n.more);
  const V v_more = hn::Mul(n.v, n.more);
  const auto origin = hn::Eq(hn::Max(hn::Abs(a), hn::Abs(b)), hn::Zero(d));
  const V sign = hn::Neg(hn::Xor(a, b));
  daa = hn::IfThenZeroElse(origin, hn::Mul(hn::Mul(v_up, cube), v_more));
  dbb = hn::IfThenZeroElse(origin, hn::Mul(hn::Mul(u_up, cube), u_more));
  // The smaller one last: it may be subnormal.
  const auto u_first = hn::Gt(hn::Abs(n.u), hn::Abs(n.v));
  const V larger = hn::IfThenElse(u_first, u_up, v_up);
  const V smaller = hn::IfThenElse(u_first, v_more, u_more);
  dab = hn::IfThenZeroElse(origin, hn::Neg(hn::Mul(hn::Mul(larger, cube), smaller)));
  daa = AtInfinity(d, a, b, hn::Zero(d), daa);
  dab = AtInfinity(d, a, b, sign, dab);
  dbb = AtInfinity(d, a, b, hn::Zero(d), dbb);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_ROOTS_INL_H_

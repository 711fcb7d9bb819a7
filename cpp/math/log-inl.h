// log, log2, log10, log1p and logit, full range.
#if defined(PULLBACK_CPP_MATH_LOG_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_LOG_INL_H_
#undef PULLBACK_CPP_MATH_LOG_INL_H_
#else
#define PULLBACK_CPP_MATH_LOG_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
struct LogConstants;

// kTail: (log((1 + s) / (1 - s)) / s - 2) / s^2 in s^2, |s| <= (sqrt(2) - 1) / (sqrt(2) + 1), from
// coefficients.sollya; kShortTail: for float32.
template <>
struct LogConstants<float> {
  static constexpr float kLn2Hi = 0x1.62e4p-1f;
  static constexpr float kLn2Lo = 0x1.7f7d1cp-20f;
  static constexpr float kTail[] = {0x1.555556p-1f, 0x1.99986ep-2f, 0x1.24c134p-2f, 0x1.ce88c4p-3f};
  static constexpr float kRaise = 25;
  static constexpr float kRaiseFactor = 0x1p25f;
  static constexpr float kMinScale = -120;
  static constexpr uint32_t kSqrtHalf = 0x3F3504F3;
};

template <>
struct LogConstants<double> {
  static constexpr double kLn2Hi = 0x1.62e42fefa38p-1;
  static constexpr double kLn2Lo = 0x1.ef35793c7673p-45;
  static constexpr double kTail[] = {
      0x1.5555555555558p-1, 0x1.999999999529p-2,  0x1.2492492e01062p-2, 0x1.c71c62ceeb102p-3,
      0x1.7462bb5109128p-3, 0x1.39fd823a54082p-3, 0x1.2b62f3a82d563p-3};
  static constexpr double kShortTail[] = {0x1.555555556531ap-1, 0x1.999998c86c1ep-2,
                                          0x1.249325b40a155p-2, 0x1.c67a09722579fp-3,
                                          0x1.8c9ab1797ecep-3};
  static constexpr double kRaise = 54;
  static constexpr double kRaiseFactor = 0x1p54;
  static constexpr double kMinScale = -1000;
  static constexpr uint64_t kSqrtHalf = 0x3FE6A09E667F3BCD;
};

// x = m * 2^k, m in [sqrt(1/2), sqrt(2)), for finite x > 0; kNormal: no x is subnormal.
template <bool kNormal = false, class D, class V = hn::Vec<D>>
HWY_INLINE void LogReduce(D d, V x, V& m, V& k) {
  using T = hn::TFromD<D>;
  using Format = FormatOf<D>;
  using Bits = typename Format::Bits;
  using C = LogConstants<T>;
  constexpr int kShift = Format::kMantissaBits;
  const hn::RebindToUnsigned<D> du;
  const T kOffset = static_cast<T>(Bits{1} << kShift) + static_cast<T>(Format::kExponentBias);
  V offset = hn::Set(d, kOffset);
  if constexpr (!kNormal && !kForFloat32<D>) {
    const auto subnormal = hn::Lt(x, hn::Set(d, Format::kMinNormal));
    x = hn::IfThenElse(subnormal, hn::Mul(x, hn::Set(d, C::kRaiseFactor)), x);
    offset = hn::IfThenElse(subnormal, hn::Set(d, kOffset + C::kRaise), offset);
  }

  // The exponent field, counted from sqrt(1/2).
  constexpr Bits kBias = static_cast<Bits>(Format::kExponentBias) << kShift;
  const auto bits =
      hn::Add(hn::BitCast(du, x), hn::Set(du, static_cast<Bits>(kBias - C::kSqrtHalf)));
  constexpr Bits kMantissa = (Bits{1} << kShift) - 1;
  m = hn::BitCast(d, hn::Add(hn::And(bits, hn::Set(du, kMantissa)), hn::Set(du, C::kSqrtHalf)));
  // A biased exponent as the low bits of 2^kShift's mantissa converts it.
  constexpr T kTwoToShift = static_cast<T>(Bits{1} << kShift);
  const V biased = hn::BitCast(
      d, hn::Or(hn::ShiftRight<kShift>(bits), hn::BitCast(du, hn::Set(d, kTwoToShift))));
  k = hn::Sub(biased, offset);
}

// -(log(1 + f) - f) for 1 + f in [sqrt(1/2), sqrt(2)], up to a relative 2^-55 (float: 2^-26) of
// log(1 + f).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogDeficit(D d, V f) {
  using T = hn::TFromD<D>;
  using C = LogConstants<T>;
  // log(1 + f) = f - f^2/2 + s (f^2/2 + s^2 tail(s^2)) with s = f / (2 + f).
  const V s = hn::Div(f, hn::Add(hn::Set(d, 2), f));
  const V z = hn::Mul(s, s);
  const V half_square = hn::Mul(hn::Mul(f, hn::Set(d, T{0.5})), f);
  V tail;
  if constexpr (kForFloat32<D>) {
    tail = Polynomial(d, C::kShortTail, z, hn::Mul(z, z));
  } else {
    tail = Polynomial(d, C::kTail, z, hn::Mul(z, z));
  }
  return hn::NegMulAdd(s, hn::MulAdd(z, tail, half_square), half_square);
}

// log(1 + f) = hi + lo for 1 + f in [sqrt(1/2), sqrt(2)], |lo| <= |hi| / 16, relative error below
// 2^-57; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void SharpLog1p(D d, V f, V& hi, V& lo) {
  using C = LogConstants<hn::TFromD<D>>;
  const V s = hn::Div(f, hn::Add(hn::Set(d, 2), f));
  const V z = hn::Mul(s, s);
  V half_square, half_square_lo, rest;
  TwoProd(d, hn::Mul(f, hn::Set(d, 0.5)), f, half_square, half_square_lo);
  FastTwoSum(f, hn::Neg(half_square), hi, rest);
  const V tail = hn::MulAdd(z, Polynomial(d, C::kTail, z, hn::Mul(z, z)), half_square);
  lo = hn::MulAdd(s, tail, hn::Sub(rest, half_square_lo));
}

// log(x) = hi + lo, |lo| <= |hi| / 4, relative error below 2^-55 (float: 2^-26), for finite x > 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogCore(D d, V x, V& hi, V& lo) {
  using C = LogConstants<hn::TFromD<D>>;
  V m, k;
  LogReduce(d, x, m, k);
  const V f = hn::Sub(m, hn::Set(d, 1));
  const V deficit = LogDeficit(d, f);
  V sum, rest;
  FastTwoSum(hn::Mul(k, hn::Set(d, C::kLn2Hi)), f, sum, rest);  // the product is exact
  hi = sum;
  lo = hn::Add(rest, hn::MulSub(k, hn::Set(d, C::kLn2Lo), deficit));
}

// log(x) for finite x > 0 where kForFloat32 says so.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogForFloat32(D d, V x) {
  using C = LogConstants<double>;
  V m, k;
  LogReduce(d, x, m, k);
  const V f = hn::Sub(m, hn::Set(d, 1));
  return hn::MulAdd(k, hn::Set(d, C::kLn2Hi + C::kLn2Lo), hn::Sub(f, LogDeficit(d, f)));
}

// k log(2) + log(1 + f + f_lo) = hi + lo, for 1 + f in [sqrt(1/2), sqrt(2)].
template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogOfReduced(D d, V f, V f_lo, V k, V& hi, V& lo) {
  using C = LogConstants<hn::TFromD<D>>;
  const V deficit = LogDeficit(d, f);
  V sum, rest;
  FastTwoSum(hn::Mul(k, hn::Set(d, C::kLn2Hi)), f, sum, rest);
  hi = sum;
  const V slope_lo = hn::NegMulAdd(f, f_lo, f_lo);  // f_lo / (1 + f), nearly
  lo = hn::Add(rest, hn::MulAdd(k, hn::Set(d, C::kLn2Lo), hn::Sub(slope_lo, deficit)));
}

// log(v_hi + v_lo) = hi + lo, to the precision of LogCore also relative to a result near 0, for
// normal v_hi > 0 and |v_lo| <= ulp(v_hi).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogCore(D d, V v_hi, V v_lo, V& hi, V& lo) {
  using C = LogConstants<hn::TFromD<D>>;
  const V one = hn::Set(d, 1);
  V m, k;
  LogReduce<true>(d, v_hi, m, k);
  if constexpr (kForFloat32<D>) {
    const V f = hn::MulAdd(v_lo, PowerOfTwo(d, hn::Neg(k), hn::Zero(d)), hn::Sub(m, one));
    hi = hn::MulAdd(k, hn::Set(d, C::kLn2Hi + C::kLn2Lo), hn::Sub(f, LogDeficit(d, f)));
    lo = hn::Zero(d);
  } else {
    // Where 2^-k would be subnormal, v_lo no longer counts.
    const V scale = PowerOfTwo(d, hn::Max(hn::Neg(k), hn::Set(d, C::kMinScale)), hn::Zero(d));
    V f, f_lo;
    FastTwoSum(hn::Sub(m, one), hn::Mul(v_lo, scale), f, f_lo);
    LogOfReduced(d, f, f_lo, k, hi, lo);
  }
}

// v_hi + v_lo = (1 + f + f_lo) 2^k as LogReduce's, for v_hi > 0 that may be subnormal; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogReduce(D d, V v_hi, V v_lo, V& f, V& f_lo, V& k) {
  V m;
  LogReduce(d, v_hi, m, k);
  const V limit = hn::Set(d, LogConstants<hn::TFromD<D>>::kMinScale);
  const V exponent = hn::Min(hn::Max(hn::Neg(k), limit), hn::Neg(limit));
  const V scale = PowerOfTwo(d, exponent, hn::Zero(d));
  FastTwoSum(hn::Sub(m, hn::Set(d, 1)), hn::Mul(v_lo, scale), f, f_lo);
}

// log(v_hi + v_lo), or log(1 - e_hi - e_lo) where `near`, for finite v_hi > 0, |v_lo| <= ulp(v_hi)
// and e in [0, 0.29]: to the precision of LogCore, also relative to e; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogOrLog1m(D d, hn::Mask<D> near, V e_hi, V e_lo, V v_hi, V v_lo, V& lo) {
  using C = LogConstants<double>;
  V f, f_lo, k, hi;
  if constexpr (kForFloat32<D>) {
    LogReduce<true>(d, v_hi, f, k);
    f = hn::IfThenElse(near, hn::Neg(e_hi), hn::Sub(f, hn::Set(d, 1)));
    k = hn::IfThenZeroElse(near, k);
    lo = hn::Zero(d);
    return hn::MulAdd(k, hn::Set(d, C::kLn2Hi + C::kLn2Lo), hn::Sub(f, LogDeficit(d, f)));
  } else {
    LogReduce(d, v_hi, v_lo, f, f_lo, k);
    f = hn::IfThenElse(near, hn::Neg(e_hi), f);
    f_lo = hn::IfThenElse(near, hn::Neg(e_lo), f_lo);
    LogOfReduced(d, f, f_lo, hn::IfThenZeroElse(near, k), hi, lo);
    return hi;
  }
}

// The value of a logarithm at x, where `y` has it for finite x > 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogAtEnds(D d, V x, V y) {
  const V zero = hn::Zero(d);
  const V inf = Infinity(d);
  y = hn::IfThenElse(hn::Lt(x, inf), y, x);
  return hn::IfThenElse(hn::Gt(x, zero), y,
                        hn::IfThenElse(hn::Eq(x, zero), hn::Neg(inf), hn::NaN(d)));
}

// constant / x, the derivative of a logarithm.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogSlope(D d, hn::TFromD<D> constant, V x) {
  return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::NaN(d),
                        hn::Div(hn::Set(d, constant), hn::Abs(x)));
}

// Value and derivative 1/x, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Log(D d, V x, V& y, V& dy) {
  V hi, lo;
  LogCore(d, x, hi, lo);
  y = LogAtEnds(d, x, hn::Add(hi, lo));
  dy = LogSlope(d, 1, x);
}

// log(1 + x) and 1 / (1 + x), full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Log1p(D d, V x, V& y, V& dy) {
  const V one = hn::Set(d, 1);
  V u, u_lo, hi, lo;
  if constexpr (kForFloat32<D>) {
    u = hn::Add(one, x);
    u_lo = hn::Sub(x, hn::Sub(u, one));  // where it counts, |x| < 1
  } else {
    TwoSum(one, x, u, u_lo);
  }
  LogCore(d, u, u_lo, hi, lo);
  y = hn::CopySign(LogAtEnds(d, u, hn::Add(hi, lo)), x);
  dy = LogSlope(d, 1, u);
  if constexpr (!kForFloat32<D>) {
    // 1/u - u_lo/u^2; at x = -1 infinity, at infinity u_lo is NaN.
    const V corrected = hn::NegMulAdd(hn::Mul(dy, dy), u_lo, dy);
    dy = hn::IfThenElse(hn::Eq(corrected, corrected), corrected, dy);
  }
}

// log(x / (1 - x)) and 1 / (x (1 - x)), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Logit(D d, V x, V& y, V& dy) {
  const V one = hn::Set(d, 1);
  const V zero = hn::Zero(d);
  const V a = hn::Abs(x);
  const V rest = hn::Sub(one, a);
  dy = hn::Div(one, hn::Mul(a, rest));
  const V odds = hn::Div(a, rest);
  if constexpr (kForFloat32<D>) {
    y = LogForFloat32(d, odds);
  } else {
    // What the quotient lost, by 1 / (1 - x) = 1 + odds.
    const V rest_lo = hn::Sub(hn::Sub(one, rest), a);
    const V lost = hn::NegMulAdd(odds, rest_lo, Residual(d, odds, rest, a));
    V f, f_lo, k, hi, lo;
    LogReduce(d, odds, hn::MulAdd(lost, odds, lost), f, f_lo, k);
    LogOfReduced(d, f, f_lo, k, hi, lo);
    y = hn::Add(hi, lo);
  }
  y = hn::IfThenElse(hn::Eq(x, zero), hn::Neg(Infinity(d)), y);
  y = hn::IfThenElse(hn::Eq(x, one), Infinity(d), y);
  const auto inside = hn::And(hn::Ge(x, zero), hn::Le(x, one));
  y = hn::IfThenElse(inside, y, hn::NaN(d));
  dy = hn::IfThenElse(inside, dy, hn::NaN(d));
}

// (2 x - 1) / (x (1 - x))^2, full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogitSecond(D d, V x, V dy) {
  const V one = hn::Set(d, 1);
  const V a = hn::Abs(x);
  const V rest = hn::Sub(one, a);
  const V product = hn::Mul(a, rest);
  const V sum = hn::Sub(hn::Add(x, x), one);
  const V curve = hn::Div(hn::Div(sum, product), product);
  // What the product lost counts twice.
  const V rest_lo = hn::Sub(hn::Sub(one, rest), a);
  const V lost = hn::Mul(hn::MulSub(a, rest_lo, Residual(d, a, rest, product)), dy);
  const V sharp = hn::NegMulAdd(curve, hn::Add(lost, lost), curve);
  // At both zeros the product is +0, and outside dy is NaN.
  const V inside = hn::IfThenElse(hn::Lt(hn::Abs(curve), Infinity(d)), sharp, curve);
  return hn::IfThenElse(hn::Eq(dy, dy), inside, dy);
}

// What turns natural logarithms into those of another base: the factor, and log(2) in that base.
struct Base2 {
  static constexpr double kFactor = 0x1.71547652b82fep0;
  static constexpr double kFactorLo = 0x1.777d0ffda0d24p-56;
  static constexpr double kLog2Hi = 1;
  static constexpr double kLog2Lo = 0;
};

struct Base10 {
  static constexpr double kFactor = 0x1.bcb7b1526e50ep-2;
  static constexpr double kFactorLo = 0x1.95355baaafad3p-57;
  static constexpr double kLog2Hi = 0x1.34413509f78p-2;  // short: times an exponent it is exact
  static constexpr double kLog2Lo = 0x1.fef311f12b358p-46;
};

// The logarithm to base `Base` and its derivative, full range; double.
template <class Base, class D, class V = hn::Vec<D>>
HWY_INLINE void LogToBase(D d, V x, V& y, V& dy) {
  V m, k;
  LogReduce(d, x, m, k);
  const V f = hn::Sub(m, hn::Set(d, 1));
  const V factor = hn::Set(d, Base::kFactor);
  const V exponent = hn::Mul(k, hn::Set(d, Base::kLog2Hi));  // exact
  V value;
  if constexpr (kForFloat32<D>) {
    value = hn::MulAdd(hn::Sub(f, LogDeficit(d, f)), factor, exponent);
  } else {
    V hi, lo, product, product_lo, sum, rest;
    SharpLog1p(d, f, hi, lo);
    TwoProd(d, hi, factor, product, product_lo);
    FastTwoSum(exponent, product, sum, rest);
    product_lo = hn::MulAdd(hi, hn::Set(d, Base::kFactorLo), product_lo);
    product_lo = hn::MulAdd(k, hn::Set(d, Base::kLog2Lo), product_lo);
    value = hn::Add(sum, hn::Add(rest, hn::MulAdd(lo, factor, product_lo)));
  }
  y = LogAtEnds(d, x, value);
  dy = LogSlope(d, Base::kFactor, x);
}

// x log(y), 0 at x = 0, and its derivatives log(y) and x / y, full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Xlogy(D d, V x, V y, V& value, V& dx, V& dy) {
  const V zero = hn::Zero(d);
  V log;
  if constexpr (kForFloat32<D>) {
    log = LogAtEnds(d, y, LogForFloat32(d, y));
    value = hn::Mul(x, log);
  } else {
    V hi, lo, log_lo;
    LogCore(d, y, hi, lo);
    FastTwoSum(hi, lo, log, log_lo);
    log = LogAtEnds(d, y, log);
    value = hn::Mul(x, log);
    const V sharp = hn::MulAdd(x, log, hn::Mul(x, log_lo));
    const V magnitude = hn::Abs(value);
    const auto normal =
        hn::And(hn::Gt(magnitude, hn::Set(d, 0x1p-960)), hn::Lt(magnitude, Infinity(d)));
    value = hn::IfThenElse(normal, sharp, value);
  }
  const auto x_zero = hn::Eq(x, zero);
  value = hn::IfThenZeroElse(hn::And(x_zero, hn::Eq(y, y)), value);
  const auto origin = hn::And(x_zero, hn::Eq(y, zero));
  dx = hn::IfThenZeroElse(origin, log);
  dy = hn::IfThenElse(hn::Lt(y, zero), hn::NaN(d), hn::Div(x, hn::Abs(y)));
  dy = hn::IfThenZeroElse(origin, dy);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_LOG_INL_H_

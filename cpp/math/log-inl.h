// log, full range.
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
// coefficients.sollya.
template <>
struct LogConstants<float> {
  static constexpr float kLn2Hi = 0x1.62e4p-1f;
  static constexpr float kLn2Lo = 0x1.7f7d1cp-20f;
  static constexpr float kTail[] = {0x1.555556p-1f, 0x1.99986ep-2f, 0x1.24c134p-2f, 0x1.ce88c4p-3f};
  static constexpr float kRaise = 25;
  static constexpr float kRaiseFactor = 0x1p25f;
  static constexpr uint32_t kSqrtHalf = 0x3F3504F3;
};

template <>
struct LogConstants<double> {
  static constexpr double kLn2Hi = 0x1.62e42fefa38p-1;
  static constexpr double kLn2Lo = 0x1.ef35793c7673p-45;
  static constexpr double kTail[] = {
      0x1.5555555555558p-1, 0x1.999999999529p-2,  0x1.2492492e01062p-2, 0x1.c71c62ceeb102p-3,
      0x1.7462bb5109128p-3, 0x1.39fd823a54082p-3, 0x1.2b62f3a82d563p-3};
  static constexpr double kRaise = 54;
  static constexpr double kRaiseFactor = 0x1p54;
  static constexpr uint64_t kSqrtHalf = 0x3FE6A09E667F3BCD;
};

// log(x) = hi + lo, |lo| <= |hi| / 4, relative error below 2^-55 (float: 2^-26), for finite x > 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogCore(D d, V x, V& hi, V& lo) {
  using T = hn::TFromD<D>;
  using Format = FormatOf<D>;
  using Bits = typename Format::Bits;
  using C = LogConstants<T>;
  constexpr int kShift = Format::kMantissaBits;
  const hn::RebindToUnsigned<D> du;
  const V one = hn::Set(d, 1);

  const auto subnormal = hn::Lt(x, hn::Set(d, Format::kMinNormal));
  x = hn::IfThenElse(subnormal, hn::Mul(x, hn::Set(d, C::kRaiseFactor)), x);

  // x = m * 2^k, m in [sqrt(1/2), sqrt(2)): the exponent field, counted from sqrt(1/2).
  constexpr Bits kBias = static_cast<Bits>(Format::kExponentBias) << kShift;
  const auto bits =
      hn::Add(hn::BitCast(du, x), hn::Set(du, static_cast<Bits>(kBias - C::kSqrtHalf)));
  constexpr Bits kMantissa = (Bits{1} << kShift) - 1;
  const V m =
      hn::BitCast(d, hn::Add(hn::And(bits, hn::Set(du, kMantissa)), hn::Set(du, C::kSqrtHalf)));
  // A biased exponent as the low bits of 2^kShift's mantissa converts it.
  constexpr T kTwoToShift = static_cast<T>(Bits{1} << kShift);
  const V biased = hn::BitCast(
      d, hn::Or(hn::ShiftRight<kShift>(bits), hn::BitCast(du, hn::Set(d, kTwoToShift))));
  const T kOffset = kTwoToShift + static_cast<T>(Format::kExponentBias);
  const V k = hn::Sub(
      biased, hn::IfThenElse(subnormal, hn::Set(d, kOffset + C::kRaise), hn::Set(d, kOffset)));

  // log(1 + f) = f - f^2/2 + s (f^2/2 + s^2 tail(s^2)) with s = f / (2 + f).
  const V f = hn::Sub(m, one);
  const V s = hn::Div(f, hn::Add(hn::Set(d, 2), f));
  const V z = hn::Mul(s, s);
  const V half_square = hn::Mul(hn::Mul(f, hn::Set(d, T{0.5})), f);
  const V tail = hn::MulAdd(z, Polynomial(d, C::kTail, z, hn::Mul(z, z)), half_square);
  const V inner = hn::NegMulAdd(s, tail, half_square);
  V sum, rest;
  FastTwoSum(hn::Mul(k, hn::Set(d, C::kLn2Hi)), f, sum, rest);  // the product is exact
  hi = sum;
  lo = hn::Add(rest, hn::MulSub(k, hn::Set(d, C::kLn2Lo), inner));
}

// Value and derivative 1/x, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Log(D d, V x, V& y, V& dy) {
  const V zero = hn::Zero(d);
  const V inf = Infinity(d);
  V hi, lo;
  LogCore(d, x, hi, lo);
  y = hn::IfThenElse(hn::Lt(x, inf), hn::Add(hi, lo), x);
  y = hn::IfThenElse(hn::Gt(x, zero), y, hn::IfThenElse(hn::Eq(x, zero), hn::Neg(inf), hn::NaN(d)));
  dy = hn::IfThenElse(hn::Lt(x, zero), hn::NaN(d), hn::Div(hn::Set(d, 1), hn::Abs(x)));
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_LOG_INL_H_

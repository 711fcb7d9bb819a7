// Error-free transforms, scaling by powers of two and polynomials: what every function builds on.
#if defined(PULLBACK_CPP_MATH_ERROR_FREE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_ERROR_FREE_INL_H_
#undef PULLBACK_CPP_MATH_ERROR_FREE_INL_H_
#else
#define PULLBACK_CPP_MATH_ERROR_FREE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// What the code must know of a lane type beyond its arithmetic.
template <class T>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  using Bits = uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kExponentBias = 127;
  static constexpr float kSplitter = 4097.0f;  // 2^12 + 1, Veltkamp's
  static constexpr float kRounder = 12582912.0f;
  static constexpr float kMinNormal = 0x1p-126f;
  // Between two multiplications by powers of two; leaves room for every exponent of a result.
  static constexpr float kGap = 32;
  static constexpr float kGapUp = 0x1p32f;
  static constexpr float kGapDown = 0x1p-32f;
};

template <>
struct FloatFormat<double> {
  using Bits = uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kExponentBias = 1023;
  static constexpr double kSplitter = 134217729.0;        // 2^27 + 1
  static constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to integer
  static constexpr double kMinNormal = 0x1p-1022;
  static constexpr double kGap = 64;
  static constexpr double kGapUp = 0x1p64;
  static constexpr double kGapDown = 0x1p-64;
};

template <class D>
using FormatOf = FloatFormat<hn::TFromD<D>>;

// A tag of double lanes that hold floats and whose results will be rounded to float32: what is good
// to a relative 2^-34 is good enough.
template <class D>
struct ForFloat32 : D {};
template <class D>
inline constexpr bool kForFloat32 = false;
template <class D>
inline constexpr bool kForFloat32<ForFloat32<D>> = true;

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Infinity(D d) {
  using Bits = typename FormatOf<D>::Bits;
  constexpr int kMaxExponent = 2 * FormatOf<D>::kExponentBias + 1;
  return hn::BitCast(
      d, hn::Set(hn::RebindToUnsigned<D>(),
                 static_cast<Bits>(static_cast<Bits>(kMaxExponent) << FormatOf<D>::kMantissaBits)));
}

// The derivative of a linear piece.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ConstantUnlessNaN(D d, hn::TFromD<D> constant, V x) {
  return hn::IfThenElse(hn::Eq(x, x), hn::Set(d, constant), x);
}

// max(x, min) and min(x, max) that keep x = NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V AtLeast(D d, hn::TFromD<D> min, V x) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
  // The instruction returns its second operand if either is NaN; it runs beside multiplications
  // where a comparison would compete with them.
  return hn::Max(hn::Set(d, min), x);
#else
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, min)), hn::Set(d, min), x);
#endif
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V AtMost(D d, hn::TFromD<D> max, V x) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
  return hn::Min(hn::Set(d, max), x);
#else
  return hn::IfThenElse(hn::Gt(x, hn::Set(d, max)), hn::Set(d, max), x);
#endif
}

// hi + lo == a + b, hi = fl(a + b), for |a| >= |b| or a == 0.
template <class V>
HWY_INLINE void FastTwoSum(V a, V b, V& hi, V& lo) {
  const V sum = hn::Add(a, b);
  lo = hn::Add(hn::Sub(a, sum), b);
  hi = sum;
}

// hi + lo == a + b for any a, b whose sum is finite.
template <class V>
HWY_INLINE void TwoSum(V a, V b, V& hi, V& lo) {
  const V sum = hn::Add(a, b);
  const V b_part = hn::Sub(sum, a);
  const V a_part = hn::Sub(sum, b_part);
  lo = hn::Add(hn::Sub(a, a_part), hn::Sub(b, b_part));
  hi = sum;
}

// hi + lo == a - b for any a, b whose difference is finite.
template <class V>
HWY_INLINE void TwoDiff(V a, V b, V& hi, V& lo) {
  const V difference = hn::Sub(a, b);
  const V b_part = hn::Sub(difference, a);
  const V a_part = hn::Sub(difference, b_part);
  lo = hn::Sub(hn::Sub(a, a_part), hn::Add(b, b_part));
  hi = difference;
}

// a == hi + lo, both of half a's precision (Veltkamp); overflows near the largest finite values.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Split(D d, V a, V& hi, V& lo) {
  const V scaled = hn::Mul(a, hn::Set(d, FormatOf<D>::kSplitter));
  hi = hn::Sub(scaled, hn::Sub(scaled, a));
  lo = hn::Sub(a, hi);
}

// hi + lo == a * b, hi = fl(a * b), unless lo underflows.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void TwoProd([[maybe_unused]] D d, V a, V b, V& hi, V& lo) {
  const V product = hn::Mul(a, b);
#if HWY_NATIVE_FMA
  lo = hn::MulSub(a, b, product);
#else
  V a_hi, a_lo, b_hi, b_lo;
  Split(d, a, a_hi, a_lo);
  Split(d, b, b_hi, b_lo);
  V rest = hn::Sub(hn::Mul(a_hi, b_hi), product);
  rest = hn::Add(rest, hn::Mul(a_hi, b_lo));
  rest = hn::Add(rest, hn::Mul(a_lo, b_hi));
  lo = hn::Add(rest, hn::Mul(a_lo, b_lo));
#endif
  hi = product;
}

// c - a * b with one rounding, for c close to a * b.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Residual([[maybe_unused]] D d, V a, V b, V c) {
#if HWY_NATIVE_FMA
  return hn::NegMulAdd(a, b, c);
#else
  V hi, lo;
  TwoProd(d, a, b, hi, lo);
  return hn::Sub(hn::Sub(c, hi), lo);
#endif
}

// 2^(k + offset) for integral k, if that is a normal number.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V PowerOfTwo(D d, V k, V offset) {
  const hn::RebindToUnsigned<D> du;
  const V rounder = hn::Add(
      offset,
      hn::Set(d, FormatOf<D>::kRounder + static_cast<hn::TFromD<D>>(FormatOf<D>::kExponentBias)));
  return hn::BitCast(
      d, hn::ShiftLeft<FormatOf<D>::kMantissaBits>(hn::BitCast(du, hn::Add(k, rounder))));
}

// v * 2^k, rounded once, also into the subnormals and to infinity, for |v| in [1/4, 4] and integral
// k within emin - mantissa bits - 10 <= k <= emax + 30.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Ldexp(D d, V v, V k) {
  using Format = FormatOf<D>;
  const V gap = hn::Set(d, Format::kGap);
  const V offset = hn::CopySign(gap, hn::Neg(k));
  const V rest =
      hn::IfNegativeThenElse(k, hn::Set(d, Format::kGapDown), hn::Set(d, Format::kGapUp));
  return hn::Mul(hn::Mul(v, PowerOfTwo(d, k, offset)), rest);
}

// v * 2^k, rounded once, or again where it vanishes, for |v| within 2^+-700 and integral k within
// 4000.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ScaleFar(D d, V v, V k) {
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  const V quarter = hn::Sub(hn::MulAdd(k, hn::Set(d, 0.25), rounder), rounder);
  const V step = PowerOfTwo(d, quarter, hn::Zero(d));
  const V last = PowerOfTwo(d, hn::NegMulAdd(quarter, hn::Set(d, 3), k), hn::Zero(d));
  return hn::Mul(hn::Mul(hn::Mul(hn::Mul(v, step), step), step), last);
}

// c[kI] + c[kI + 2] x2 + c[kI + 4] x2^2 + ... By recursion, because -O2 does not unroll loops.
template <size_t kI, class D, class T, size_t kN, class V = hn::Vec<D>>
HWY_INLINE V EverySecond(D d, const T (&c)[kN], V x2) {
  const V first = hn::Set(d, c[kI]);
  if constexpr (kI + 2 < kN) {
    return hn::MulAdd(EverySecond<kI + 2>(d, c, x2), x2, first);
  } else {
    return first;
  }
}

// c[0] + c[1] x + ... + c[N-1] x^(N-1), even and odd powers apart: with x^2 at hand anyway this
// halves Horner's chain at no cost.
template <class D, class T, size_t kN, class V = hn::Vec<D>>
HWY_INLINE V Polynomial(D d, const T (&c)[kN], V x, V x2) {
  return hn::MulAdd(EverySecond<1>(d, c, x2), x, EverySecond<0>(d, c, x2));
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_ERROR_FREE_INL_H_

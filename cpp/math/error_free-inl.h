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
  const auto small = hn::Lt(k, hn::Zero(d));
  const V offset = hn::IfThenElse(small, hn::Set(d, Format::kGap), hn::Set(d, -Format::kGap));
  const V rest = hn::IfThenElse(small, hn::Set(d, Format::kGapDown), hn::Set(d, Format::kGapUp));
  return hn::Mul(hn::Mul(v, PowerOfTwo(d, k, offset)), rest);
}

// c[0] + c[1] x + ... + c[N-1] x^(N-1), even and odd powers apart: with x^2 at hand anyway this
// halves Horner's chain at the price of nothing; Estrin's x^4 and x^8 cost more multiplications
// than out-of-order execution across loop iterations gives back.
template <class D, class T, size_t kN, class V = hn::Vec<D>>
HWY_INLINE V Polynomial(D d, const T (&c)[kN], V x, V x2) {
  static_assert(kN >= 3);
  V same = hn::Set(d, c[kN - 1]);  // parity of the highest power
  V other = hn::Set(d, c[kN - 2]);
  for (size_t i = kN - 2; i > 0; --i) {
    V& sum = (kN - 2 - i) % 2 == 0 ? same : other;
    sum = hn::MulAdd(sum, x2, hn::Set(d, c[i - 1]));
  }
  // The one that took c[0] last is the even one.
  return kN % 2 == 1 ? hn::MulAdd(other, x, same) : hn::MulAdd(same, x, other);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_ERROR_FREE_INL_H_

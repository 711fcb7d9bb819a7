// sin, cos and tan of every finite argument: one reduction and two short polynomials.
#if defined(PULLBACK_CPP_MATH_TRIG_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_TRIG_INL_H_
#undef PULLBACK_CPP_MATH_TRIG_INL_H_
#else
#define PULLBACK_CPP_MATH_TRIG_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "math/error_free-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
struct TrigConstants;

// kSin: (sin(r) - r) / r^3 in r^2; kCos: (cos(r) - 1 + r^2/2) / r^4 in r^2; both on
// |r| <= pi/4 (1 + 2^-6), from coefficients.sollya. kLimit: up to it, multiples of pi/2 are
// subtracted piece by piece.
template <>
struct TrigConstants<float> {
  static constexpr float kTwoOverPi = 0x1.45f306p-1f;
  static constexpr float kLimit = 0x1p17f;
  static constexpr double kPiece1 = 0x1.921fb544p0;  // 33 bits
  static constexpr double kPiece2 = 0x1.0b4611a626331p-34;
  static constexpr float kSin[] = {-0x1.555544p-3f, 0x1.1106b8p-7f, -0x1.9914b2p-13f};
  static constexpr float kCos[] = {0x1.555548p-5f, -0x1.6c0b0ep-10f, 0x1.999d42p-16f};
};

template <>
struct TrigConstants<double> {
  static constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
  static constexpr double kLimit = 0x1p23;
  static constexpr double kPiece1 = 0x1.921fb54p0;  // 30 bits: times a quadrant count it is exact
#if HWY_NATIVE_FMA
  static constexpr double kPiece2 = 0x1.10b4611a62633p-30;
  static constexpr double kPiece3 = 0x1.45c06e0e68948p-86;
#else
  static constexpr double kPiece2 = 0x1.10b46118p-30;
  static constexpr double kPiece3 = 0x1.313198ap-61;
  static constexpr double kPiece4 = 0x1.701b839a25205p-92;
#endif
  static constexpr double kSin[] = {-0x1.5555555555546p-3,  0x1.111111110f3dep-7,
                                    -0x1.a01a019b7a39ap-13, 0x1.71de34f203f39p-19,
                                    -0x1.ae5dfc135093ap-26, 0x1.5d73e3885316ap-33};
  static constexpr double kCos[] = {0x1.5555555555548p-5,  -0x1.6c16c16c149dbp-10,
                                    0x1.a01a019bf7bfap-16, -0x1.27e4f78637e4fp-22,
                                    0x1.1ee993cdb2423p-29, -0x1.8f8199fed0cf3p-37};
};

// Payne and Hanek's reduction in integers: x = (4 j + quadrant) pi/2 + hi + lo, |hi| <= pi/4, for
// finite x >= 2^12; NaN for infinity.
HWY_INLINE void ReduceHuge(double x, double& hi, double& lo, uint64_t& quadrant) {
  // 2/pi in 64-bit words after the point; the leading zero word lets small exponents start there.
  static constexpr uint64_t kTwoOverPi[] = {0,
                                            0xa2f9836e4e441529u,
                                            0xfc2757d1f534ddc0u,
                                            0xdb6295993c439041u,
                                            0xfe5163abdebbc561u,
                                            0xb7246e3a424dd2e0u,
                                            0x06492eea09d1921cu,
                                            0xfe1deb1cb129a73eu,
                                            0xe88235f52ebb4484u,
                                            0xe99c7026b45f7e41u,
                                            0x3991d639835339f4u,
                                            0x9c845f8bbdf9283bu,
                                            0x1ff897ffde05980fu,
                                            0xef2f118b5a0a6d1fu,
                                            0x6d367ecf27cb09b7u,
                                            0x4f463f669e5fea2du,
                                            0x7527bac7ebe5f17bu,
                                            0x3d0739f78a5292eau,
                                            0x6bfb5fb11f8d5d08u,
                                            0x56033046fc7b6babu};
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint64_t biased = (bits >> 52) & 0x7FF;
  if (biased == 0x7FF) {
    hi = lo = x - x;
    quadrant = 0;
    return;
  }
  const uint64_t mantissa = (bits & 0xFFFFFFFFFFFFFu) | 0x10000000000000u;
  // x = mantissa * 2^e. Bits of 2/pi above weight 2^(1-e) only add multiples of 4: take the 192
  // below, and what is cut off is below 2^-137.
  const uint64_t first = biased - 1075 + 64 - 2;  // e - 1 as a 0-based position in the table
  const size_t word = static_cast<size_t>(first / 64);
  const unsigned shift = static_cast<unsigned>(first % 64);
  uint64_t window[3];
  for (size_t i = 0; i < 3; ++i) {
    window[i] = kTwoOverPi[word + i] << shift;
    // Twice, because a shift by 64 is undefined.
    window[i] |= (kTwoOverPi[word + i + 1] >> 1) >> (63 - shift);
  }
  // mantissa * window modulo 2^192, most significant word first: 2 bits of quadrant, then the
  // fraction of one.
  uint64_t carry_lo, carry_mid;
  const uint64_t low = hwy::Mul128(mantissa, window[2], &carry_lo);
  uint64_t mid = hwy::Mul128(mantissa, window[1], &carry_mid);
  mid += carry_lo;
  const uint64_t top = mantissa * window[0] + carry_mid + (mid < carry_lo ? 1 : 0);
  uint64_t f[3] = {(top << 2) | (mid >> 62), (mid << 2) | (low >> 62), low << 2};
  quadrant = top >> 62;
  // Nearest multiple instead of the one below: the fraction becomes -(1 - f).
  const bool negative = (f[0] >> 63) != 0;
  if (negative) {
    ++quadrant;
    f[2] = ~f[2] + 1;
    f[1] = ~f[1] + (f[2] == 0 ? 1 : 0);
    f[0] = ~f[0] + (f[2] == 0 && f[1] == 0 ? 1 : 0);
  }
  // |f| = 0.f0 f1 f2; no double comes closer than 2^-62 or so to a multiple of pi/2, so f[0] and
  // f[1] cannot both vanish. Left-justify, then take 52 + 52 bits.
  double scale = 0x1p-52;
  while ((f[0] >> 63) == 0) {
    f[0] = (f[0] << 1) | (f[1] >> 63);
    f[1] = (f[1] << 1) | (f[2] >> 63);
    f[2] <<= 1;
    scale *= 0.5;
  }
  const double f_hi = static_cast<double>(f[0] >> 12) * scale;
  const double f_lo =
      static_cast<double>(((f[0] & 0xFFF) << 40) | (f[1] >> 24)) * (scale * 0x1p-52);
  // times pi/2, in double-double.
  constexpr double kHalfPi = 0x1.921fb54442d18p0;
  constexpr double kHalfPiLo = 0x1.1a62633145c07p-54;
  constexpr double kHalfPiTop = 0x1.921fb5p0;     // 25 bits, as in f_top: exact products
  constexpr double kHalfPiRest = 0x1.110b46p-26;  // kHalfPi - kHalfPiTop
  static_assert(kHalfPiTop + kHalfPiRest == kHalfPi);
  const double scaled = f_hi * 134217729.0;
  const double f_top = scaled - (scaled - f_hi);
  const double f_rest = f_hi - f_top;
  const double product = f_hi * kHalfPi;
  double rest = f_top * kHalfPiTop - product;
  rest += f_top * kHalfPiRest;
  rest += f_rest * kHalfPiTop;
  rest += f_rest * kHalfPiRest;
  rest += f_hi * kHalfPiLo + f_lo * kHalfPi;
  hi = product + rest;
  lo = (product - hi) + rest;
  if (negative) {
    hi = -hi;
    lo = -lo;
  }
}

// Replaces the lanes beyond `limit`. Out of line: rare, and large.
inline HWY_NOINLINE void ReduceHugeLanes(const double* x, double limit, double* hi, double* lo,
                                         uint64_t* quadrant, size_t lanes) {
  for (size_t i = 0; i < lanes; ++i) {
    if (x[i] > limit) ReduceHuge(x[i], hi[i], lo[i], quadrant[i]);
  }
}

inline HWY_NOINLINE void ReduceHugeLanes(const float* x, float limit, float* hi, float* lo,
                                         uint32_t* quadrant, size_t lanes) {
  for (size_t i = 0; i < lanes; ++i) {
    if (x[i] > limit) {
      double wide_hi, wide_lo;
      uint64_t wide_quadrant;
      ReduceHuge(static_cast<double>(x[i]), wide_hi, wide_lo, wide_quadrant);
      hi[i] = static_cast<float>(wide_hi);
      lo[i] = static_cast<float>(wide_hi - static_cast<double>(hi[i]));
      quadrant[i] = static_cast<uint32_t>(wide_quadrant);
    }
  }
}

// x - k pi/2 = hi + lo for 0 <= x <= kLimit, good to 2^-110 absolutely.
template <class D, class V = hn::Vec<D>>
requires(sizeof(hn::TFromD<D>) == 8) HWY_INLINE
    void SubtractQuadrants(D d, V x, V k, V& hi, V& lo) {
  using C = TrigConstants<double>;
  const V top = hn::NegMulAdd(k, hn::Set(d, C::kPiece1), x);  // exact
  const V piece2 = hn::Set(d, C::kPiece2);
  const V product = hn::Mul(k, piece2);
  // `top` and, below, `sum` are multiples of the subtrahend's last place, so three operations
  // give the error even where the subtrahend is the larger.
  const V sum = hn::Sub(top, product);
  V rest = hn::Sub(hn::Sub(top, sum), product);
#if HWY_NATIVE_FMA
  rest = hn::Sub(rest, hn::MulSub(k, piece2, product));
  rest = hn::NegMulAdd(k, hn::Set(d, C::kPiece3), rest);
  FastTwoSum(sum, rest, hi, lo);
#else
  const V product3 = hn::Mul(k, hn::Set(d, C::kPiece3));
  const V sum3 = hn::Sub(sum, product3);
  rest = hn::Add(rest, hn::Sub(hn::Sub(sum, sum3), product3));
  rest = hn::Sub(rest, hn::Mul(k, hn::Set(d, C::kPiece4)));
  FastTwoSum(sum3, rest, hi, lo);
#endif
}

// The same in float64 lanes, of which there are as many as floats.
template <class DD, class VF, class VD = hn::Vec<DD>>
HWY_INLINE VD SubtractQuadrantsWide(DD dd, VF x, VF k) {
  using C = TrigConstants<float>;
  const VD wide_k = hn::PromoteTo(dd, k);
  const VD top = hn::NegMulAdd(wide_k, hn::Set(dd, C::kPiece1), hn::PromoteTo(dd, x));
  return hn::NegMulAdd(wide_k, hn::Set(dd, C::kPiece2), top);
}

template <class D, class V = hn::Vec<D>>
requires(sizeof(hn::TFromD<D>) == 4) HWY_INLINE
    void SubtractQuadrants(D d, V x, V k, V& hi, V& lo) {
#if HWY_TARGET == HWY_SCALAR
  const hn::Rebind<double, D> dd;
  const auto r = SubtractQuadrantsWide(dd, x, k);
  hi = hn::DemoteTo(d, r);
  lo = hn::DemoteTo(d, hn::Sub(r, hn::PromoteTo(dd, hi)));
#else
  const hn::Half<D> dh;
  const hn::Rebind<double, hn::Half<D>> dd;
  const auto r0 = SubtractQuadrantsWide(dd, hn::LowerHalf(dh, x), hn::LowerHalf(dh, k));
  const auto r1 = SubtractQuadrantsWide(dd, hn::UpperHalf(dh, x), hn::UpperHalf(dh, k));
  const auto hi0 = hn::DemoteTo(dh, r0);
  const auto hi1 = hn::DemoteTo(dh, r1);
  const auto lo0 = hn::DemoteTo(dh, hn::Sub(r0, hn::PromoteTo(dd, hi0)));
  const auto lo1 = hn::DemoteTo(dh, hn::Sub(r1, hn::PromoteTo(dd, hi1)));
  hi = hn::Combine(d, hi1, hi0);
  lo = hn::Combine(d, lo1, lo0);
#endif
}

// x = quadrant * pi/2 + hi + lo modulo 2 pi, |hi| <= pi/4 (1 + 2^-6), for x >= 0; NaN for infinity.
template <class D, class V = hn::Vec<D>, class VU = hn::Vec<hn::RebindToUnsigned<D>>>
HWY_INLINE void TrigReduce(D d, V x, V& hi, V& lo, VU& quadrant) {
  using T = hn::TFromD<D>;
  using C = TrigConstants<T>;
  const hn::RebindToUnsigned<D> du;
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  const V shifted = hn::MulAdd(x, hn::Set(d, C::kTwoOverPi), rounder);
  quadrant = hn::BitCast(du, shifted);
  SubtractQuadrants(d, x, hn::Sub(shifted, rounder), hi, lo);

  if (HWY_UNLIKELY(!hn::AllFalse(d, hn::Gt(x, hn::Set(d, C::kLimit))))) {
    constexpr size_t kLanes = hn::MaxLanes(D());
    HWY_ALIGN T x_lanes[kLanes];
    HWY_ALIGN T hi_lanes[kLanes];
    HWY_ALIGN T lo_lanes[kLanes];
    HWY_ALIGN typename FormatOf<D>::Bits quadrant_lanes[kLanes];
    hn::Store(x, d, x_lanes);
    hn::Store(hi, d, hi_lanes);
    hn::Store(lo, d, lo_lanes);
    hn::Store(quadrant, du, quadrant_lanes);
    ReduceHugeLanes(x_lanes, C::kLimit, hi_lanes, lo_lanes, quadrant_lanes, hn::Lanes(d));
    hi = hn::Load(d, hi_lanes);
    lo = hn::Load(d, lo_lanes);
    quadrant = hn::Load(du, quadrant_lanes);
  }
}

// The sine and cosine of quadrant * pi/2 + r + r_lo, the sine with the sign of x.
template <class D, class V = hn::Vec<D>, class VU = hn::Vec<hn::RebindToUnsigned<D>>>
HWY_INLINE void SinCosOfReduced(D d, V r, V r_lo, VU quadrant, V x, V& sin, V& cos) {
  using T = hn::TFromD<D>;
  using C = TrigConstants<T>;
  constexpr int kBits = static_cast<int>(sizeof(T) * 8);
  const hn::RebindToUnsigned<D> du;
  const V z = hn::Mul(r, r);
  const V z2 = hn::Mul(z, z);
  const V half_z = hn::Mul(z, hn::Set(d, T{0.5}));
  // sin(r + r_lo) = r + (r^3 S + r_lo (1 - r^2/2))
  const V sin_tail =
      hn::MulAdd(hn::Mul(r, z), Polynomial(d, C::kSin, z, z2), hn::NegMulAdd(r_lo, half_z, r_lo));
  const V sin_r = hn::Add(r, sin_tail);
  // cos(r + r_lo) = (1 - r^2/2) + (r^4 C - r r_lo)
  V cos_hi, cos_lo;
  FastTwoSum(hn::Set(d, 1), hn::Neg(half_z), cos_hi, cos_lo);
  const V cos_tail = hn::MulSub(z2, Polynomial(d, C::kCos, z, z2), hn::Mul(r, r_lo));
  const V cos_r = hn::Add(cos_hi, hn::Add(cos_lo, cos_tail));

  const VU one = hn::Set(du, 1);
  const auto odd = hn::RebindMask(d, hn::TestBit(quadrant, one));
  const V sin_magnitude = hn::IfThenElse(odd, cos_r, sin_r);
  const V cos_magnitude = hn::IfThenElse(odd, sin_r, cos_r);
  // Bit 1 of the quadrant, or of the next one for cos, moved to the sign.
  const V sign_bit = hn::SignBit(d);
  const V sin_flip = hn::BitCast(d, hn::ShiftLeft<kBits - 2>(quadrant));
  const V cos_flip = hn::BitCast(d, hn::ShiftLeft<kBits - 2>(hn::Add(quadrant, one)));
  sin = hn::Xor(sin_magnitude, hn::And(hn::Xor(sin_flip, x), sign_bit));
  cos = hn::Xor(cos_magnitude, hn::And(cos_flip, sign_bit));
}

// Full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void SinCos(D d, V x, V& sin, V& cos) {
  V r, r_lo;
  hn::Vec<hn::RebindToUnsigned<D>> quadrant;
  TrigReduce(d, hn::Abs(x), r, r_lo, quadrant);
  SinCosOfReduced(d, r, r_lo, quadrant, x, sin, cos);
}

// On |x| <= 1/2, in x^2: minus the derivative of sin(pi x) / (pi x) over x, and the second
// derivative. Chebyshev interpolants, from 60-digit arithmetic.
struct SincConstants {
  static constexpr double kPi = 0x1.921fb54442d18p1;
  static constexpr double kPiLo = 0x1.1a62633145c07p-53;
  static constexpr double kPiSquare = 0x1.3bd3cc9be45dep3;
  static constexpr double kSlope[] = {
      0x1.a51a6625307d3p+1,  -0x1.9f9cb402bc46cp+1,  0x1.24feab558a46fp+0,
      -0x1.ac6805cf329aap-3, 0x1.8061c54be76b2p-6,   -0x1.d2eaa5d612e42p-10,
      0x1.999f8a88e8e8fp-14, -0x1.0fab0c3bd7fc5p-18, 0x1.122ee54e139fap-23};
  static constexpr double kCurve[] = {
      -0x1.a51a6625307d3p+1,  0x1.37b587020d351p+3,  -0x1.6e3e562aecd21p+2,
      0x1.76db051548a37p+0,   -0x1.b06dfdf3712fep-3, 0x1.41015172fe814p-6,
      -0x1.4cd172b061edbp-10, 0x1.fd5198103639cp-15, -0x1.224fca9f799f1p-19};
};

// sin(pi x) / (pi x), 1 at 0, and its derivative, full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Sinc(D d, V x, V& y, V& dy) {
  using C = SincConstants;
  const hn::RebindToUnsigned<D> du;
  const V one = hn::Set(d, 1);
  const V half = hn::Set(d, 0.5);
  const V pi = hn::Set(d, C::kPi);
  const V a = hn::Abs(x);
  // Modulo 2; from 2^53 on all numbers are even.
  const V turns = hn::Floor(hn::Mul(a, half));
  const auto huge = hn::Ge(a, hn::Set(d, 0x1p53));
  const V turn = hn::IfThenZeroElse(huge, hn::Sub(a, hn::Add(turns, turns)));
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  const V shifted = hn::Add(hn::Add(turn, turn), rounder);
  const V r = hn::NegMulAdd(hn::Sub(shifted, rounder), half, turn);  // exact, within 1/4
  V t, t_lo, sin, cos;
  TwoProd(d, r, pi, t, t_lo);
  t_lo = hn::MulAdd(r, hn::Set(d, C::kPiLo), t_lo);
  SinCosOfReduced(d, t, t_lo, hn::BitCast(du, shifted), a, sin, cos);

  if constexpr (kForFloat32<D>) {
    y = hn::Div(sin, hn::Mul(a, pi));
  } else {
    V divisor, divisor_lo;
    TwoProd(d, a, pi, divisor, divisor_lo);
    divisor_lo = hn::MulAdd(a, hn::Set(d, C::kPiLo), divisor_lo);
    const V inverse = hn::Div(one, divisor);
    y = hn::Mul(sin, inverse);
    const V lost = hn::NegMulAdd(y, divisor_lo, Residual(d, y, divisor, sin));
    y = hn::MulAdd(lost, inverse, y);
  }
  y = hn::Add(hn::IfThenZeroElse(huge, y), hn::Zero(d));  // no -0
  y = hn::IfThenElse(hn::Lt(a, hn::Set(d, 0x1p-30)), one, y);
  const V z = hn::Mul(a, a);
  const V near = hn::Mul(hn::Neg(a), Polynomial(d, C::kSlope, z, hn::Mul(z, z)));
  const V far = hn::Div(hn::Sub(cos, y), a);
  dy = hn::IfThenElse(hn::Le(a, half), near, far);
  dy = hn::Xor(dy, hn::And(x, hn::SignBit(d)));
}

// -pi^2 y - 2 dy / x, full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SincSecond(D d, V x, V y, V dy) {
  using C = SincConstants;
  const V z = hn::Mul(x, x);
  const V near = Polynomial(d, C::kCurve, z, hn::Mul(z, z));
  const V far = hn::Neg(hn::MulAdd(y, hn::Set(d, C::kPiSquare), hn::Div(hn::Add(dy, dy), x)));
  return hn::IfThenElse(hn::Le(hn::Abs(x), hn::Set(d, 0.5)), near, far);
}

// tan(x) and 1 / cos(x)^2, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Tan(D d, V x, V& y, V& dy) {
  using C = TrigConstants<double>;
  const hn::RebindToUnsigned<D> du;
  using VU = hn::Vec<decltype(du)>;
  const V one = hn::Set(d, 1);
  V r, r_lo;
  VU quadrant;
  TrigReduce(d, hn::Abs(x), r, r_lo, quadrant);

  // As in SinCos, unrounded: next to a pole cos is all of r and r_lo.
  const V z = hn::Mul(r, r);
  const V z2 = hn::Mul(z, z);
  const V half_z = hn::Mul(z, hn::Set(d, 0.5));
  V sin, sin_lo, cos, cos_lo;
  const V sin_tail =
      hn::MulAdd(hn::Mul(r, z), Polynomial(d, C::kSin, z, z2), hn::NegMulAdd(r_lo, half_z, r_lo));
  FastTwoSum(r, sin_tail, sin, sin_lo);
  FastTwoSum(one, hn::Neg(half_z), cos, cos_lo);
  const V cos_tail = hn::MulSub(z2, Polynomial(d, C::kCos, z, z2), hn::Mul(r, r_lo));
  FastTwoSum(cos, hn::Add(cos_lo, cos_tail), cos, cos_lo);

  // Of r + pi/2 it is -cos(r) / sin(r), and the sine is the cosine.
  const auto odd = hn::RebindMask(d, hn::TestBit(quadrant, hn::Set(du, 1)));
  const V sign = hn::SignBit(d);
  const V numerator = hn::IfThenElse(odd, cos, sin);
  const V denominator = hn::IfThenElse(odd, sin, cos);
  const V inverse = hn::Div(one, denominator);
  const V flip = hn::Xor(hn::And(x, sign), hn::IfThenElseZero(odd, sign));
  if constexpr (kForFloat32<D>) {
    y = hn::Xor(hn::Mul(numerator, inverse), flip);
    dy = hn::Mul(inverse, inverse);
  } else {
    const V numerator_lo = hn::IfThenElse(odd, cos_lo, sin_lo);
    const V denominator_lo = hn::IfThenElse(odd, sin_lo, cos_lo);
    const V quotient = hn::Mul(numerator, inverse);
    const V missing = hn::Add(Residual(d, quotient, denominator, numerator),
                              hn::NegMulAdd(quotient, denominator_lo, numerator_lo));
    y = hn::Xor(hn::MulAdd(missing, inverse, quotient), flip);
    const V relative =
        hn::NegMulAdd(inverse, denominator_lo, Residual(d, inverse, denominator, one));
    const V square = hn::Mul(inverse, inverse);
    dy = hn::MulAdd(square, hn::Add(relative, relative), square);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_TRIG_INL_H_

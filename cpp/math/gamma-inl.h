// log |Gamma| and its derivatives: rational functions to the right of 0, reflected to its left.
#if defined(PULLBACK_CPP_MATH_GAMMA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_GAMMA_INL_H_
#undef PULLBACK_CPP_MATH_GAMMA_INL_H_
#else
#define PULLBACK_CPP_MATH_GAMMA_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"
#include "math/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// All from gamma_coefficients.py, which says what they make; ...Over: denominators. ...ForFloat32
// holds to 2^-34.
struct GammaConstants {
  // log Gamma(1 + v) = v (v - 1) (kNearTwo + (v - 1) Near(v)), 0 <= v <= 2
  static constexpr double kNear[] = {
      -0x1.3c467e37db0c8p-3,  -0x1.ede5e24db807fp-2,  -0x1.2ea91193d0913p-1,
      -0x1.7237d0d008517p-2,  -0x1.dbcfe43d2243bp-4,  -0x1.362fc7f4db899p-6,
      -0x1.6949c2e59d3e0p-10, -0x1.0ce0c411597d1p-15, -0x1.54ab26c82c966p-28};
  static constexpr double kNearOver[] = {1,
                                         0x1.db0c2733bb4b8p+1,
                                         0x1.65e363f8f1943p+2,
                                         0x1.19dd4e9c8091bp+2,
                                         0x1.f266f9b309757p+0,
                                         0x1.ee87374ddedd5p-2,
                                         0x1.044d6fd0239d0p-4,
                                         0x1.fbaa7fa83aab6p-9,
                                         0x1.471764dcde61fp-14};
  static constexpr double kNearForFloat32[] = {-0x1.3c467e37d2702p-3, -0x1.22b0dcde55dc5p-2,
                                               -0x1.5ab79cd700618p-3, -0x1.2cd3fbd6bd181p-5,
                                               -0x1.26c808aa635cap-9, -0x1.b264bc98dc4bcp-20};
  static constexpr double kNearOverForFloat32[] = {1,
                                                   0x1.36913bab14f9bp+1,
                                                   0x1.0d684b0e92ca9p+1,
                                                   0x1.934338f3b2592p-1,
                                                   0x1.ef9402474783cp-4,
                                                   0x1.72cd7212737d9p-8};
  static constexpr double kNearTwo = 0x1.b0ee6072093cep-2;  // 1 - Euler's constant
  static constexpr double kNearTwoLo = 0x1.6cb90701fbfabp-58;
  // log Gamma(x) = (x - 1/2) log(x) - x + log(2 pi)/2 + Binet(1/x^2) / x, x >= 3
  static constexpr double kBinet[] = {0x1.5555555555550p-4, 0x1.664f555ed51a4p-1,
                                      0x1.72929b2b2c48fp+0, 0x1.7af55fd790f57p-1,
                                      0x1.88cc6f03bcf02p-5};
  static constexpr double kBinetOver[] = {1, 0x1.0dcc911830b85p+3, 0x1.1a46167d842f4p+4,
                                          0x1.2cb238b14a0a2p+3, 0x1.8a9b77e989002p-1};
  static constexpr double kBinetForFloat32[] = {0x1.55555554be890p-4, 0x1.ff519c54e5344p-4,
                                                0x1.f8655d2c36387p-7};
  static constexpr double kBinetOverForFloat32[] = {1, 0x1.8805bcff6725ep+0, 0x1.cf56b9bbd7ac3p-3};
  static constexpr double kHalfLog2Pi = 0x1.acfe390c97d69p-2;  // less 1/2
  static constexpr double kHalfLog2PiLo = 0x1.3494bc9001442p-56;
  // psi(1 + v) = t (kSlope + t ByRoot(v)), t = 1 + v - kRoot, 0 <= v <= 1
  static constexpr double kByRoot[] = {-0x1.398dbb8a7277ap-1, -0x1.7ddb868a457eap-1,
                                       -0x1.2f9fde9264397p-2, -0x1.6b6afa745de72p-5,
                                       -0x1.0562d6895f369p-9, -0x1.1ae1d72c17972p-21};
  static constexpr double kByRootOver[] = {1,
                                           0x1.0994aa352888dp+1,
                                           0x1.750938be91e53p+0,
                                           0x1.bc64382e5a684p-2,
                                           0x1.b870b8b834ffdp-5,
                                           0x1.14b6bc47b753ap-9};
  static constexpr double kByRootForFloat32[] = {-0x1.398dbb88c9999p-1, -0x1.f75f1db0bb203p-2,
                                                 -0x1.4a5db2ff94990p-4, -0x1.456b41a75a015p-13};
  static constexpr double kByRootOverForFloat32[] = {1, 0x1.a8e21127f77dap+0, 0x1.7f726e8c908d9p-1,
                                                     0x1.6cd49a395d3fbp-4};
  static constexpr double kRoot = 0x1.762d86356be3fp0;
  static constexpr double kRootLo = 0x1.b86a722197829p-54;
  static constexpr double kSlope = 0x1.ef72bc8ee38acp-1;
  // psi(x) = log(x) - 1/(2x) - w Far(w), w = 1/x^2, x >= 2
  static constexpr double kFar[] = {
      0x1.5555555555550p-4, 0x1.86c9bdd669c8dp+0, 0x1.1f042cf95ed82p+3, 0x1.4a48fad8fabbap+4,
      0x1.222f285f9f63ap+4, 0x1.39b5cb03cf77ep+2, 0x1.7a803612bf563p-3};
  static constexpr double kFarOver[] = {1,
                                        0x1.26b0e7fa68daep+4,
                                        0x1.b5b386368bb13p+6,
                                        0x1.01d44be73d8cbp+8,
                                        0x1.de14a9e24c0c2p+7,
                                        0x1.29fcf397741d8p+6,
                                        0x1.391da45b506fap+2};
  static constexpr double kFarForFloat32[] = {0x1.5555555458796p-4, 0x1.5f214650fba72p-2,
                                              0x1.144cb1c806cedp-2, 0x1.87da434157e8bp-6};
  static constexpr double kFarOverForFloat32[] = {1, 0x1.0dbf5ad8e8083p+2, 0x1.ce4de4b664547p+1,
                                                  0x1.fd42c9a6a7559p-2};
  // psi'(x) = 1/x + w/2 + w Trigamma(w) / x, x >= 1
  static constexpr double kTrigamma[] = {
      0x1.555555555551ep-3, 0x1.3a55591c87dd9p+2,  0x1.adcea61d2510dp+5, 0x1.1ba7690097a3ap+8,
      0x1.89a5ab4ff6029p+9, 0x1.2562567a82ae8p+10, 0x1.cc91c38dbffcbp+9, 0x1.65cc41c7af14bp+8,
      0x1.e412730914e28p+5, 0x1.b0f5de389d87ep+1,  0x1.b066103c38571p-6};
  static constexpr double kTrigammaOver[] = {1,
                                             0x1.dab338ddfe6b0p+4,
                                             0x1.4825749c50f65p+8,
                                             0x1.b8e0ee4a6b6c7p+10,
                                             0x1.3ab11dfb59a97p+12,
                                             0x1.ea9f6e26770e8p+12,
                                             0x1.9db23c2d5dd94p+12,
                                             0x1.68f4f535b20c5p+11,
                                             0x1.29194d3a6097bp+9,
                                             0x1.7f719649c741cp+5,
                                             0x1.f01b610225584p-1};
  static constexpr double kTrigammaForFloat32[] = {0x1.5555554e97e2ep-3, 0x1.53bb78d1ee028p+0,
                                                   0x1.807de4640cb5bp+1, 0x1.1c1a179303d62p+1,
                                                   0x1.cbcee37530ccdp-2, 0x1.69260c4498be0p-7};
  static constexpr double kTrigammaOverForFloat32[] = {1,
                                                       0x1.0533006224e53p+3,
                                                       0x1.38340a3d28fb9p+4,
                                                       0x1.040dcf6077874p+4,
                                                       0x1.15d70ce782ffep+2,
                                                       0x1.0091abbd7afb3p-2};
  // -psi''(x) = w + w/x + w^2 Tetragamma(w), x >= 1
  static constexpr double kTetragamma[] = {
      0x1.fffffffffffc4p-2,  0x1.2d56e3811ca41p+4,  0x1.0da3aa5ca5a14p+8,  0x1.df230b500af1bp+10,
      0x1.cf7455d88cf75p+12, 0x1.f79d90dad6c0bp+13, 0x1.3261fae0fca60p+14, 0x1.93b9eabba7563p+13,
      0x1.0c6a2762d290dp+12, 0x1.3b02c9f318d94p+9,  0x1.ed4ba8ef9453bp+4,  0x1.b18d37c122551p-3};
  static constexpr double kTetragammaOver[] = {1,
                                               0x1.30018e2bc70dfp+5,
                                               0x1.13ce5d52e7e6ap+9,
                                               0x1.f49cc436ea85ap+11,
                                               0x1.f4162b9b54c3bp+13,
                                               0x1.1d31ca7bd9e95p+15,
                                               0x1.750b6db109a9cp+15,
                                               0x1.11dcad167c54ap+15,
                                               0x1.acf3f5d24ee3cp+13,
                                               0x1.45907795dad77p+11,
                                               0x1.8d7baeccfa5b9p+7,
                                               0x1.f363d1dff8fe2p+1};
  // sin(pi r) = pi r (1 + r^2 Sine(r^2)), r <= 1/2
  static constexpr double kSine[] = {
      -0x1.a51a6625307d3p+0,  0x1.9f9cb402bc46cp-1,  -0x1.86a8e4720db5bp-3,
      0x1.ac6805cf34106p-6,   -0x1.33816aa3bfab6p-9, 0x1.374719867986ep-13,
      -0x1.d4243615e629dp-18, 0x1.0fb11c8c637adp-22, -0x1.e8dfbd9fab477p-28};
  static constexpr double kSineForFloat32[] = {-0x1.a51a66252f997p+0, 0x1.9f9cb400bbb0fp-1,
                                               -0x1.86a8e2fc0c6a5p-3, 0x1.ac673e11ca98cp-6,
                                               -0x1.335123df18a86p-9, 0x1.2c7d80888c70fp-13};
  // pi cot(pi r) = (1 - r^2 Cotangent(r^2)) / r, r <= 1/4
  static constexpr double kCotangent[] = {
      0x1.a51a6625307d4p+1, 0x1.151322ac7d188p+1, 0x1.0470984cbccabp+1,
      0x1.010b363cae117p+1, 0x1.004152e499104p+1, 0x1.000990a73d3d3p+1,
      0x1.00b3862f057e3p+1, 0x1.eadeb92f8ab9ap+0, 0x1.55786cbe8cdd2p+1};
  static constexpr double kCotangentForFloat32[] = {0x1.a51a662509b62p+1, 0x1.1513235ad6871p+1,
                                                    0x1.047019bd32f96p+1, 0x1.012ca65038ba5p+1,
                                                    0x1.f8973d89ab655p+0, 0x1.3645343291b7bp+1};
  static constexpr double kPiSquare = 0x1.3bd3cc9be45dep3;
  static constexpr double kPiSquareLo = 0x1.692b71366cc04p-51;
  // Where corrections no longer count, and could overflow on their way.
  static constexpr double kHuge = 0x1p300;
};

template <class D, size_t kN, size_t kM, class V = hn::Vec<D>>
HWY_INLINE V Quotient(D d, const double (&numerator)[kN], const double (&denominator)[kM], V x) {
  const V x2 = hn::Mul(x, x);
  return hn::Div(Polynomial(d, numerator, x, x2), Polynomial(d, denominator, x, x2));
}

// The distance of a >= 0 to the nearest whole number, with the sign of a less that; 0 for infinity.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ToWhole(D d, V a) {
  return hn::IfThenElseZero(hn::Lt(a, hn::Set(d, 0x1p53)), hn::Sub(a, hn::Round(a)));
}

// log Gamma(a) for a >= 1, log Gamma(1 + a) below, as hi + lo, for a >= 0; log(a) = log + log_lo.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogGammaCore(D d, V a, V log, V log_lo, V& hi, V& lo) {
  using C = GammaConstants;
  const V one = hn::Set(d, 1);
  // The roots are factors.
  const V v = hn::IfThenElse(hn::Lt(a, one), a, hn::Sub(a, one));
  const V t = hn::Sub(v, one);
  const V b = hn::Sub(a, hn::Set(d, 0.5));
  const V z = hn::Div(one, a);
  const V w = hn::Mul(z, z);
  const V constant = hn::Set(d, C::kHalfLog2Pi);
  const auto near = hn::Lt(a, hn::Set(d, 3));
  if constexpr (kForFloat32<D>) {
    const V rational = Quotient(d, C::kNearForFloat32, C::kNearOverForFloat32, v);
    const V tail =
        hn::MulAdd(z, Quotient(d, C::kBinetForFloat32, C::kBinetOverForFloat32, w), constant);
    const V far = hn::MulAdd(b, hn::Sub(log, one), tail);
    hi = hn::IfThenElse(
        near, hn::Mul(hn::Mul(v, t), hn::MulAdd(t, rational, hn::Set(d, C::kNearTwo))), far);
    lo = hn::Zero(d);
  } else {
    V product, product_lo, factor, factor_lo, near_hi, near_lo;
    TwoProd(d, v, t, product, product_lo);
    FastTwoSum(hn::Set(d, C::kNearTwo), hn::Mul(t, Quotient(d, C::kNear, C::kNearOver, v)), factor,
               factor_lo);
    factor_lo = hn::Add(factor_lo, hn::Set(d, C::kNearTwoLo));
    TwoProd(d, product, factor, near_hi, near_lo);
    near_lo = hn::Add(near_lo, hn::MulAdd(product, factor_lo, hn::Mul(product_lo, factor)));

    // (a - 1/2) (log(a) - 1): no term is negative.
    const V tail =
        hn::MulAdd(z, Quotient(d, C::kBinet, C::kBinetOver, w), hn::Set(d, C::kHalfLog2PiLo));
    V less, less_lo, sum, sum_lo;
    FastTwoSum(log, hn::Set(d, -1), less, less_lo);
    less_lo = hn::Add(less_lo, log_lo);
    TwoProd(d, b, less, product, product_lo);
    TwoSum(product, constant, sum, sum_lo);
    product_lo = hn::Add(product_lo, hn::Add(sum_lo, tail));
    const V far_lo = hn::MulAdd(b, less_lo, product_lo);
    // There nothing but the product counts, and overflows where it does.
    const auto huge = hn::Gt(a, hn::Set(d, C::kHuge));
    const V far_hi = hn::IfThenElse(huge, hn::Mul(b, hn::Add(less, less_lo)), sum);
    hi = hn::IfThenElse(near, near_hi, far_hi);
    lo = hn::IfThenElse(near, near_lo, hn::IfThenZeroElse(huge, far_lo));
  }
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogOfPositive(D d, V x, V& hi, V& lo) {
  if constexpr (kForFloat32<D>) {
    hi = LogForFloat32(d, x);
    lo = hn::Zero(d);
  } else {
    LogCore(d, x, hi, lo);
  }
}

// log |Gamma(x)|, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogGamma(D d, V x) {
  using C = GammaConstants;
  const V one = hn::Set(d, 1);
  const V a = hn::Abs(x);
  const auto small = hn::Lt(a, one);
  V log, log_lo, hi, lo;
  LogOfPositive(d, a, log, log_lo);
  LogGammaCore(d, a, log, log_lo, hi, lo);
  // log Gamma(a) = log Gamma(1 + a) - log(a)
  const V up = hn::IfThenElse(small, hn::Neg(log), hi);
  V y = hn::Add(up, hn::IfThenElse(small, hn::Add(hi, hn::Sub(lo, log_lo)), lo));
  const auto negative = hn::Lt(x, hn::Zero(d));
  auto pole = hn::Eq(a, hn::Zero(d));
  if (HWY_UNLIKELY(!hn::AllFalse(d, negative))) {
    // -log(a |sin(pi a)| / pi) - log Gamma(a), without a as a factor where it is below 1
    const V r = hn::Abs(ToWhole(d, a));
    const V u = hn::Mul(r, r);
    V sine;
    if constexpr (kForFloat32<D>) {
      sine = Polynomial(d, C::kSineForFloat32, u, hn::Mul(u, u));
    } else {
      sine = Polynomial(d, C::kSine, u, hn::Mul(u, u));
    }
    const V product = hn::Mul(hn::MulAdd(hn::Mul(r, u), sine, r), hn::IfThenElse(small, one, a));
    LogOfPositive(d, product, log, log_lo);
    const V left = hn::Neg(hn::Add(hn::Add(log, hi), hn::Add(log_lo, lo)));
    y = hn::IfThenElse(negative, left, y);
    pole = hn::Or(pole, hn::And(negative, hn::Eq(r, hn::Zero(d))));
  }
  return hn::IfThenElse(pole, Infinity(d), y);
}

// pi cot(pi a) = hi + lo for a >= 0; infinite at poles.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void PiCotangent(D d, V a, V& hi, V& lo) {
  using C = GammaConstants;
  const V one = hn::Set(d, 1);
  const V half = hn::Set(d, 0.5);
  const V whole = ToWhole(d, a);
  const V r = hn::Abs(whole);
  // Beyond 1/4, pi tan(pi (1/2 - r)).
  const auto far = hn::Gt(r, hn::Set(d, 0.25));
  const V m = hn::IfThenElse(far, hn::Sub(half, r), r);
  const V u = hn::Mul(m, m);
  const V square = hn::Set(d, C::kPiSquare);
  if constexpr (kForFloat32<D>) {
    const V g = hn::NegMulAdd(u, Polynomial(d, C::kCotangentForFloat32, u, hn::Mul(u, u)), one);
    hi = hn::Div(hn::IfThenElse(far, hn::Mul(square, m), g), hn::IfThenElse(far, g, m));
    lo = hn::Zero(d);
  } else {
    V g, g_lo, over, over_lo;
    FastTwoSum(one, hn::Neg(hn::Mul(u, Polynomial(d, C::kCotangent, u, hn::Mul(u, u)))), g, g_lo);
    TwoProd(d, square, m, over, over_lo);
    over_lo = hn::MulAdd(m, hn::Set(d, C::kPiSquareLo), over_lo);
    const V zero = hn::Zero(d);
    const V numerator = hn::IfThenElse(far, over, g);
    const V denominator = hn::IfThenElse(far, g, m);
    const V numerator_lo = hn::IfThenElse(far, over_lo, g_lo);
    const V denominator_lo = hn::IfThenElse(far, g_lo, zero);
    const V inverse = hn::Div(one, denominator);
    hi = hn::Mul(numerator, inverse);
    const V missing = hn::Add(Residual(d, hi, denominator, numerator),
                              hn::NegMulAdd(hi, denominator_lo, numerator_lo));
    lo = hn::IfThenElseZero(hn::Lt(hi, hn::Set(d, C::kHuge)), hn::Mul(missing, inverse));
  }
  const V sign = hn::And(whole, hn::SignBit(d));
  hi = hn::Xor(hi, sign);
  lo = hn::Xor(lo, sign);
}

// psi(x), full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Digamma(D d, V x) {
  using C = GammaConstants;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, 1);
  const V a = hn::Abs(x);
  const auto small = hn::Lt(a, one);
  const auto near = hn::Lt(a, hn::Set(d, 2));
  const auto negative = hn::Lt(x, zero);
  const V z = hn::Div(one, a);
  const V w = hn::Mul(z, z);
  const V half = hn::CopySign(hn::Mul(z, hn::Set(d, 0.5)), x);
  const V v = hn::IfThenElse(small, a, hn::Sub(a, one));
  V log, log_lo, t, root, tail;
  LogOfPositive(d, a, log, log_lo);
  // The root is a factor. Below 1, psi(1 + a).
  t = hn::Sub(v, hn::Set(d, C::kRoot - 1));
  if constexpr (kForFloat32<D>) {
    root = Quotient(d, C::kByRootForFloat32, C::kByRootOverForFloat32, v);
    tail = Quotient(d, C::kFarForFloat32, C::kFarOverForFloat32, w);
  } else {
    t = hn::Sub(t, hn::Set(d, C::kRootLo));
    root = Quotient(d, C::kByRoot, C::kByRootOver, v);
    tail = Quotient(d, C::kFar, C::kFarOver, w);
  }
  V value = hn::Mul(t, hn::MulAdd(t, root, hn::Set(d, C::kSlope)));
  // psi(a) from psi(1 + a) on the right, psi(1 + a) from psi(a) on the left.
  V up = hn::IfThenElseZero(hn::Xor(small, negative), hn::CopySign(z, hn::Neg(x)));
  if constexpr (!kForFloat32<D>) {
    const V missing = hn::Mul(Residual(d, z, a, one), up);
    value = hn::Add(value, hn::IfThenElseZero(hn::Lt(z, hn::Set(d, C::kHuge)), missing));
  }
  value = hn::Add(up, value);
  const V far = hn::Add(log, hn::Sub(log_lo, hn::MulAdd(w, tail, half)));
  value = hn::IfThenElse(near, value, hn::IfThenElse(hn::Lt(a, Infinity(d)), far, a));
  if (HWY_UNLIKELY(!hn::AllFalse(d, negative))) {
    V cot, cot_lo;
    PiCotangent(d, a, cot, cot_lo);
    const V left = hn::Add(cot, hn::Add(value, cot_lo));
    // Of either sign beside a pole.
    const auto pole = hn::Eq(hn::Abs(cot), Infinity(d));
    const auto undefined = hn::And(pole, hn::Ge(a, one));
    value = hn::IfThenElse(negative, hn::IfThenElse(undefined, hn::NaN(d), left), value);
  }
  return hn::IfThenElse(hn::Eq(x, zero), hn::CopySign(Infinity(d), hn::Neg(x)), value);
}

// psi'(x), full range. Left of 0 it is pi^2 / sin(pi x)^2 - psi'(1 - x), of which the first is the
// larger by far.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Trigamma(D d, V x) {
  using C = GammaConstants;
  const V one = hn::Set(d, 1);
  const V a = hn::Abs(x);
  const V z = hn::Div(one, hn::IfThenElse(hn::Lt(x, one), hn::Add(one, a), a));
  const V w = hn::Mul(z, z);
  V tail;
  if constexpr (kForFloat32<D>) {
    tail = Quotient(d, C::kTrigammaForFloat32, C::kTrigammaOverForFloat32, w);
  } else {
    tail = Quotient(d, C::kTrigamma, C::kTrigammaOver, w);
  }
  const V value = hn::MulAdd(w, hn::MulAdd(z, tail, hn::Set(d, 0.5)), z);
  const V inverse = hn::Div(one, a);
  const V right = hn::IfThenElse(hn::Lt(a, one), hn::MulAdd(inverse, inverse, value), value);
  const auto negative = hn::Lt(x, hn::Zero(d));
  if (HWY_LIKELY(hn::AllFalse(d, negative))) return right;
  V cot, cot_lo;
  PiCotangent(d, a, cot, cot_lo);
  const V rest = hn::IfThenElseZero(hn::Lt(hn::Abs(cot), hn::Set(d, C::kHuge)),
                                    hn::Mul(hn::Add(cot, cot), cot_lo));
  const V left = hn::MulAdd(cot, cot, hn::Add(hn::Sub(hn::Set(d, C::kPiSquare), value), rest));
  return hn::IfThenElse(negative, left, right);
}

// psi''(x), full range; double. Left of 0 it is 2 c (pi^2 + c^2) + psi''(1 - x), c = pi cot(-pi x).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Tetragamma(D d, V x) {
  using C = GammaConstants;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, 1);
  const V two = hn::Set(d, 2);
  const V a = hn::Abs(x);
  const auto shifted = hn::Lt(x, one);
  V sum, sum_lo;
  TwoSum(one, a, sum, sum_lo);
  const V at = hn::IfThenElse(shifted, sum, a);
  const V z = hn::Div(one, at);
  const V w = hn::Mul(z, z);
  // What z lacks, where it counts.
  V missing = hn::NegMulAdd(z, hn::IfThenElseZero(shifted, sum_lo), Residual(d, z, at, one));
  missing = hn::IfThenElseZero(hn::Lt(a, hn::Set(d, C::kHuge)), missing);
  const V inner = hn::MulAdd(w, Quotient(d, C::kTetragamma, C::kTetragammaOver, w), z);
  const V slope = hn::MulAdd(inner, hn::Set(d, 3), two);
  const V value = hn::MulAdd(w, hn::MulAdd(slope, missing, inner), w);
  const V inverse = hn::Div(one, a);
  const V cube = hn::Mul(hn::Mul(inverse, inverse), hn::Add(inverse, inverse));
  V result = hn::Neg(hn::IfThenElse(hn::Lt(a, one), hn::Add(cube, value), value));
  const auto negative = hn::Lt(x, zero);
  if (HWY_UNLIKELY(!hn::AllFalse(d, negative))) {
    V cot, cot_lo;
    PiCotangent(d, a, cot, cot_lo);
    const V square = hn::MulAdd(cot, cot, hn::Set(d, C::kPiSquare));
    const V steep = hn::MulAdd(square, hn::Set(d, 6), hn::Set(d, -4 * C::kPiSquare));
    const V rest = hn::IfThenElseZero(hn::Lt(hn::Abs(cot), hn::Set(d, 0x1p200)),
                                      hn::MulSub(steep, cot_lo, value));
    const V left = hn::MulAdd(hn::Add(cot, cot), square, rest);
    const auto undefined = hn::And(hn::Eq(hn::Abs(cot), Infinity(d)), hn::Ge(a, one));
    result = hn::IfThenElse(negative, hn::IfThenElse(undefined, hn::NaN(d), left), result);
  }
  return hn::IfThenElse(hn::Eq(a, zero), hn::CopySign(Infinity(d), hn::Neg(x)), result);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_GAMMA_INL_H_

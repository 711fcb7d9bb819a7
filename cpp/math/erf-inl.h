// erf, erfc and the exact gelu: exp(-t^2) times functions as tame as Mills' ratio.
#if defined(PULLBACK_CPP_MATH_ERF_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_ERF_INL_H_
#undef PULLBACK_CPP_MATH_ERF_INL_H_
#else
#define PULLBACK_CPP_MATH_ERF_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"
#include "math/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// All from coefficients.sollya, in u = (t - 4) / (t + 4) unless said otherwise; ...ForFloat32 holds
// to 2^-34 on float32's shorter range.
struct ErfConstants {
  static constexpr double kTwoOverSqrtPi = 0x1.20dd750429b6dp0;
  static constexpr double kTwoOverSqrtPiLo = 0x1.1ae3a914fed80p-56;
  // erf(t) = t V - expm1(-t^2) (1 - t V): V = 2/sqrt(pi) - 4 v + v^2 kErf(v), v = t / (t + 4).
  // An error of V counts exp(-t^2) times. ForFloat32: V = 2/sqrt(pi) + v kErfForFloat32(v).
  static constexpr double kErf[] = {
      0x1.012746b037b8ep3,  -0x1.7db1729f9abb3p3,  0x1.a47132139154dp3,   -0x1.4ccac2ae8ed13p3,
      0x1.52d0ff84e3b97p2,  -0x1.fd7ba2b2d4d2cp-1, -0x1.58f0d134a0a0bp-1, 0x1.b80cf9b34efc8p-2,
      0x1.1da5a0193860fp-4, -0x1.cd1afb74b7ecep-4, -0x1.afad1501d3568p-6, 0x1.c7234e33976c3p-5,
      -0x1.14ce897187791p-6};
  static constexpr double kErfForFloat32[] = {
      -0x1.0000000225c7dp2, 0x1.0127472f86b51p3,   -0x1.7db186c1af0a2p3,
      0x1.a472bc9abbe9bp3,  -0x1.4cdb8972986eap3,  0x1.53a7ae98b52d8p2,
      -0x1.0b5b4d85d4183p0, -0x1.2580f1c11d29bp-1, 0x1.6b9fac62469f6p-2};
  static constexpr double kErfMax = 6;  // from here on, erf rounds to 1
  static constexpr double kErfMaxForFloat32 = 4;
  // exp(t^2) erfc(t) (t + 4)
  static constexpr double kErfc[] = {
      0x1.18932bf08e154p+0,   -0x1.f3fe31ecb49bfp-1,  0x1.8be202d26c707p-1,
      -0x1.14eacb1ad033cp-1,  0x1.52cac2371008ep-2,   -0x1.645fd8a4bc083p-3,
      0x1.38dbd2c8e8154p-4,   -0x1.b00c052c3b7b6p-6,  0x1.908f471e592aap-8,
      -0x1.269b521946a31p-12, -0x1.dd2841a7ea11bp-12, 0x1.72cda79eb38d6p-13,
      -0x1.e7f3e86d26853p-19, -0x1.3c6ee0452a5d4p-16, 0x1.3b1e876093f19p-18,
      0x1.7e5564ed7b2d7p-20,  -0x1.c7c46493a66ddp-21, -0x1.46728db9eead2p-24,
      0x1.12e2543f2a1d4p-23,  0x1.f4268a91d3aeep-30,  -0x1.3f3e9e8dfd827p-26,
      -0x1.ccb6e74b834dcp-31, 0x1.20334043bbbd0p-29,  0x1.c7b99d7eb8549p-32};
  static constexpr double kErfcLo[] = {0x1.079b30a1a61b6p-54, -0x1.e343ae933c99ep-56};
  static constexpr double kErfcForFloat32[] = {
      0x1.18932bf069608p+0, -0x1.f3fe31eea3464p-1,  0x1.8be2030f5cdc8p-1,   -0x1.14eaca908a106p-1,
      0x1.52cab2b341189p-2, -0x1.646015340b1eap-3,  0x1.38de7970cdcfap-4,   -0x1.aff3b44c26c41p-6,
      0x1.8ff0a40006bd5p-8, -0x1.4869bbd821b3ep-12, -0x1.e17039f1fbe91p-12, 0x1.f00d534c60d1ap-13,
      0x1.03aeabd8539b2p-14};
  // How a relative error of 1 / (t + 4) grows on its way through, roughly: kErfcSlope in it.
  static constexpr double kErfcSlope[] = {1, 2.2, 46};
  static constexpr double kErfcMax = 27.5;  // from here on, exp(-t^2) rounds to 0
  static constexpr double kErfcMaxForFloat32 = 10.3;
};

// phi and Phi are the normal density and distribution, R(t) = Phi(-t) / phi(t) is Mills' ratio.
struct GeluConstants {
  static constexpr double kPhiOfZero = 0x1.9884533d43651p-2;
  static constexpr double kPhiOfZeroLo = -0x1.cbc0d30ebfd15p-56;
  static constexpr double kRootHi = 0x1.80ead197f00b4p-1;  // R(root) = root
  static constexpr double kRootLo = -0x1.13e74c58cada8p-56;
  // phi(0) (R(t) - t) / (root - t); kDerivative in z = (t - kCentre) / (t + 4)
  static constexpr double kCentre = 1.8125;
  static constexpr double kDerivative[] = {
      0x1.05d324b1d677ep-1,  -0x1.cb777aff45130p-3,  0x1.88515597bc9b8p-3,   -0x1.dc944b75a8e3fp-4,
      0x1.664f2d1b24f77p-5,  -0x1.1dff6ba51220bp-8,  -0x1.16e590d19b785p-8,  0x1.569343bedcc40p-10,
      0x1.31486a2599c11p-11, -0x1.ee50a6febe256p-13, -0x1.061a5edf401a9p-13, 0x1.1e2db7aea3887p-15,
      0x1.12e1769d7bb9dp-15, -0x1.b8012cfad86c6p-21, -0x1.0b5f640b47616p-17, -0x1.3128d869725b3p-19,
      0x1.4867f7a0b8065p-20, 0x1.7fe1fafbc8c27p-20,  -0x1.68d104f33b573p-34, -0x1.7ca840d02e21ep-21,
      0x1.dfe154c0b46dep-23};
  static constexpr double kDerivativeForFloat32[] = {
      0x1.d94de7843ec4dp-2,   -0x1.a763001f0f408p-4, 0x1.ef4ff798f5df4p-5,
      -0x1.cc1e235ef8137p-6,  0x1.377571bcede62p-7,  -0x1.d4c9dc8d7e4fcp-10,
      -0x1.448b9980cba2ap-13, 0x1.85c13cee516afp-13, -0x1.1c28363920be7p-16,
      -0x1.2d9c24d921bc2p-16, 0x1.6248bb938f68fp-19, 0x1.dafde021448dfp-20};
  // phi(0) R(t) (t + 4)
  static constexpr double kValue[] = {
      0x1.82b4bb8c94dcep-1,   -0x1.373e3a893c28ap-1,  0x1.8c6dbf2cfc2b5p-2,
      -0x1.7dff2bff68398p-3,  0x1.eec4cc3e4d15fp-5,   -0x1.ee2761047f663p-8,
      -0x1.c81719d53272cp-9,  0x1.ab825fc10540bp-10,  0x1.17a4ae224c5efp-13,
      -0x1.e4a425710581cp-13, -0x1.001e3ca9b80e4p-19, 0x1.26d099b8bf680p-15,
      0x1.80b0b10d7749bp-21,  -0x1.8d4b27ffaf209p-18, -0x1.51e24810920f2p-21,
      0x1.12371f6816f73p-20,  0x1.2335e0da6173bp-22,  -0x1.4cf21958afc8fp-23,
      -0x1.6c0907545e529p-24, 0x1.ceb1c2e267347p-27,  0x1.4a1ee930cd777p-26,
      0x1.e0f18db10e5d7p-30,  -0x1.4ba9043602365p-29, -0x1.6fab13d3f6432p-31};
  static constexpr double kValueLo[] = {-0x1.ad0bfb480c7a4p-56, -0x1.eddf1020a7f9cp-57};
  static constexpr double kValueForFloat32[] = {
      0x1.82b4bb8ca9256p-1,  -0x1.373e3a8b0b7d8p-1,  0x1.8c6dbf15560e6p-2,   -0x1.7dff2a78ab71ep-3,
      0x1.eec4e0a837af1p-5,  -0x1.ee2a14da0e52fp-8,  -0x1.c825c6fee81f1p-9,  0x1.abbb478da4b53p-10,
      0x1.1cd2f2d2f8964p-13, -0x1.e77e6a5af83b5p-13, -0x1.1f579cfb27da9p-17, 0x1.16aa7e8cf671cp-15,
      0x1.ebc2e6263cfa8p-18};
  static constexpr double kValueSlope[] = {1, 4.2, 18.2};
  static constexpr double kMax = 39;  // from here on, phi(t) t^2 rounds to 0
  static constexpr double kMaxForFloat32 = 14.6;
};

// 2^(a b) = (1 + tail) * scale, |tail| < 1/2 and good to 2^-34, for |a b| <= 1000. For kForFloat32.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void ShortExp2(D d, V a, V b, V& tail, V& scale) {
  // (2^f - 1) / f on |f| <= 1/2
  static constexpr double kTail[] = {
      0x1.62e42ff0e68fdp-1,  0x1.ebfbe07904429p-3,  0x1.c6b08ab857124p-5, 0x1.3b29f2178ba59p-7,
      0x1.5d8a8b0dc08f8p-10, 0x1.445dd686c33cdp-13, 0x1.fde41af55aff6p-17};
  const V rounder = hn::Set(d, FormatOf<D>::kRounder);
  const V k = hn::Sub(hn::MulAdd(a, b, rounder), rounder);
  const V f = hn::MulSub(a, b, k);
  tail = hn::Mul(f, Polynomial(d, kTail, f, hn::Mul(f, f)));
  scale = PowerOfTwo(d, k, hn::Zero(d));
}

// exp(-s t^2) for s = 1 or 1/2, with minus_s = -s: (p_hi + p_lo) * up * down.
template <class V>
struct GaussianCore {
  V p_hi, p_lo, k;
  V up, down;  // powers of two; `down` may round a product into the subnormals
};

// For 0 <= t <= 39 or NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE GaussianCore<V> MakeGaussianCore(D d, V t, double minus_s) {
  GaussianCore<V> c;
  V h, l;
  TwoProd(d, t, hn::Mul(t, hn::Set(d, minus_s)), h, l);
  V p, rest;
  ExpCore(d, h, l, p, rest, c.k);
  FastTwoSum(p, rest, c.p_hi, c.p_lo);
  c.up = PowerOfTwo(d, c.k, hn::Set(d, 512));
  c.down = hn::Set(d, 0x1p-512);
  return c;
}

// factor / (t + 4) = hi + lo, for t >= 0. `factor` is a polynomial in (t - 4) / (t + 4) whose
// leading coefficients come with their low parts; `slope` says what becomes of an error of
// 1 / (t + 4).
template <class D, class V, size_t kN>
HWY_INLINE void TailFactor(D d, V t, const double (&factor)[kN], const double (&factor_lo)[2],
                           const double (&slope)[3], V& hi, V& lo) {
  const V one = hn::Set(d, 1);
  const V four = hn::Set(d, 4);
  const V s = hn::Add(t, four);
  const V s_lo = hn::Sub(t, hn::Sub(s, four));
  const V w = hn::Div(one, s);
  const V w_rest = hn::NegMulAdd(w, s_lo, Residual(d, w, s, one));  // relative
  const V u = hn::NegMulAdd(w, hn::Set(d, 8), one);
  const V u2 = hn::Mul(u, u);
  // The last two steps of Horner's scheme in twice the precision, the one before apart from the
  // rest: even and odd powers cancel each other.
  const V inner = hn::MulAdd(EverySecond<4>(d, factor, u2), u, EverySecond<3>(d, factor, u2));
  const V tail = hn::MulAdd(inner, u, hn::Set(d, factor[2]));
  V m_hi, m_lo, f_hi, f_lo, product, rest;
  TwoSum(hn::Set(d, factor[1]), hn::Mul(u, tail), m_hi, m_lo);
  m_lo = hn::Add(m_lo, hn::Set(d, factor_lo[1]));
  TwoProd(d, u, m_hi, product, rest);
  rest = hn::Add(hn::MulAdd(u, m_lo, rest), hn::Set(d, factor_lo[0]));
  TwoSum(hn::Set(d, factor[0]), product, f_hi, f_lo);
  f_lo = hn::Add(f_lo, rest);
  const V growth = hn::MulAdd(hn::MulAdd(hn::Set(d, slope[2]), w, hn::Set(d, slope[1])), w,
                              hn::Set(d, slope[0]));
  f_lo = hn::MulAdd(hn::Mul(f_hi, growth), w_rest, f_lo);
  TwoProd(d, w, f_hi, hi, lo);
  lo = hn::MulAdd(w, f_lo, lo);
}

// exp(-s t^2) factor / (t + 4) = (hi + lo) * c.down, as for TailFactor.
template <class D, class V, size_t kN>
HWY_INLINE void GaussianTail(D d, V t, const GaussianCore<V>& c, const double (&factor)[kN],
                             const double (&factor_lo)[2], const double (&slope)[3], V& hi, V& lo) {
  V r_hi, r_lo, product, rest;
  TailFactor(d, t, factor, factor_lo, slope, r_hi, r_lo);
  TwoProd(d, c.p_hi, r_hi, product, rest);
  rest = hn::Add(rest, hn::MulAdd(c.p_hi, r_lo, hn::Mul(c.p_lo, r_hi)));
  hi = hn::Mul(product, c.up);
  lo = hn::Mul(rest, c.up);
}

// (factor + factor_lo) exp(-s t^2), not yet times c.down.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V TimesGaussian(D d, const GaussianCore<V>& c, double factor, double factor_lo) {
  const V times = hn::Set(d, factor);
  const V rest = hn::MulAdd(c.p_lo, times, hn::Mul(c.p_hi, hn::Set(d, factor_lo)));
  return hn::Mul(hn::MulAdd(c.p_hi, times, rest), c.up);
}

// 2/sqrt(pi) exp(-t^2)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ErfSlope(D d, const GaussianCore<V>& c) {
  using C = ErfConstants;
  return hn::Mul(TimesGaussian(d, c, C::kTwoOverSqrtPi, C::kTwoOverSqrtPiLo), c.down);
}

// -4/sqrt(pi) x exp(-x^2), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ErfSecond(D d, V x) {
  using C = ErfConstants;
  const V t = AtMost(d, C::kErfcMax, hn::Abs(x));
  const GaussianCore<V> c = MakeGaussianCore(d, t, -1);
  const V raised = TimesGaussian(d, c, C::kTwoOverSqrtPi, C::kTwoOverSqrtPiLo);
  return hn::CopySign(hn::Mul(hn::Mul(raised, hn::Add(t, t)), c.down), hn::Neg(x));
}

// erf(x) and its derivative, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Erf(D d, V x, V& y, V& dy) {
  using C = ErfConstants;
  const V one = hn::Set(d, 1);
  const V four = hn::Set(d, 4);
  const V abs_x = hn::Abs(x);
  const V factor = hn::Set(d, C::kTwoOverSqrtPi);
  if constexpr (kForFloat32<D>) {
    const V t = AtMost(d, C::kErfcMaxForFloat32, abs_x);
    const V t2 = hn::Mul(t, t);
    V tail, scale;
    ShortExp2(d, t2, hn::Set(d, -ExpConstants<double>::kLog2E), tail, scale);
    const V minus_expm1 = hn::Sub(hn::Sub(one, scale), hn::Mul(tail, scale));
    const V short_t = AtMost(d, C::kErfMaxForFloat32, abs_x);
    const V v = hn::Div(short_t, hn::Add(short_t, four));
    const V tv =
        hn::Mul(short_t, hn::MulAdd(v, Polynomial(d, C::kErfForFloat32, v, hn::Mul(v, v)), factor));
    y = hn::CopySign(hn::MulAdd(minus_expm1, hn::Sub(one, tv), tv), x);
    dy = hn::Mul(hn::MulAdd(tail, scale, scale), factor);
  } else {
    const GaussianCore<V> c = MakeGaussianCore(d, AtMost(d, C::kErfcMax, abs_x), -1);
    dy = ErfSlope(d, c);

    V e_hi, e_lo;
    Expm1Core(d, c.p_hi, c.p_lo, c.k, e_hi, e_lo);
    const V t = AtMost(d, C::kErfMax, abs_x);
    const V s = hn::Add(t, four);
    const V s_lo = hn::Sub(t, hn::Sub(s, four));
    const V w = hn::Div(one, s);
    const V v = hn::Mul(t, w);
    const V v_rest = hn::Mul(hn::NegMulAdd(v, s_lo, Residual(d, v, s, t)), w);
    const V v2 = hn::Mul(v, v);
    V v_hi, v_lo;
    const V slope = hn::MulAdd(hn::MulAdd(hn::Set(d, -20), v, hn::Set(d, 14.5)), v,
                               hn::Set(d, -4));  // dV/dv, roughly
    const V tail =
        hn::MulAdd(slope, v_rest,
                   hn::MulAdd(v2, Polynomial(d, C::kErf, v, v2), hn::Set(d, C::kTwoOverSqrtPiLo)));
    FastTwoSum(factor, hn::Mul(hn::Set(d, -4), v), v_hi, v_lo);
    FastTwoSum(v_hi, hn::Add(v_lo, tail), v_hi, v_lo);
    V tv, tv_lo;
    TwoProd(d, t, v_hi, tv, tv_lo);
#if !HWY_NATIVE_FMA
    // Without FMA the residual of a tiny product is rounding errors.
    tv_lo = hn::IfThenElseZero(hn::Gt(t, hn::Set(d, 0x1p-900)), tv_lo);
#endif
    tv_lo = hn::MulAdd(t, v_lo, tv_lo);
    const V rest = hn::Sub(one, tv);
    const V small = hn::NegMulAdd(e_lo, rest, hn::MulAdd(tv_lo, e_hi, tv_lo));
    y = hn::CopySign(hn::Add(tv, hn::NegMulAdd(e_hi, rest, small)), x);
  }
}

// erfc(x) and its derivative, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Erfc(D d, V x, V& y, V& dy) {
  using C = ErfConstants;
  const V one = hn::Set(d, 1);
  const V two = hn::Set(d, 2);
  const V abs_x = hn::Abs(x);
  if constexpr (kForFloat32<D>) {
    const V t = AtMost(d, C::kErfcMaxForFloat32, abs_x);
    V tail, scale;
    ShortExp2(d, hn::Mul(t, t), hn::Set(d, -ExpConstants<double>::kLog2E), tail, scale);
    const V e = hn::MulAdd(tail, scale, scale);
    const V w = hn::Div(one, hn::Add(t, hn::Set(d, 4)));
    const V u = hn::NegMulAdd(w, hn::Set(d, 8), one);
    const V tail_x = hn::Mul(hn::Mul(e, w), Polynomial(d, C::kErfcForFloat32, u, hn::Mul(u, u)));
    y = hn::IfNegativeThenElse(x, hn::Sub(two, tail_x), tail_x);
    dy = hn::Mul(e, hn::Set(d, -C::kTwoOverSqrtPi));
  } else {
    const V t = AtMost(d, C::kErfcMax, abs_x);
    const GaussianCore<V> c = MakeGaussianCore(d, t, -1);
    dy = hn::Neg(ErfSlope(d, c));
    V hi, lo;
    GaussianTail(d, t, c, C::kErfc, C::kErfcLo, C::kErfcSlope, hi, lo);
    const V right = hn::Mul(hn::Add(hi, lo), c.down);
    const V left = hn::NegMulAdd(lo, c.down, hn::NegMulAdd(hi, c.down, two));
    y = hn::IfNegativeThenElse(x, left, right);
  }
}

// For gelu on float lanes, from coefficients.sollya.
struct GeluFloatConstants {
  static constexpr float kMax = static_cast<float>(GeluConstants::kMaxForFloat32);
  static constexpr float kRateHi = -0x1.715476p-1f;  // -log2(e) / 2
  static constexpr float kRateLo = -0x1.4ae0cp-27f;
  // 2^f = 1 + kLn2 f + kTail(f) f^2 on |f| <= 1/2
  static constexpr float kLn2 = 0x1.62e43p-1f;
  static constexpr float kTail[] = {0x1.ebfbd8p-3f, 0x1.c6af72p-5f, 0x1.3b309p-7f, 0x1.5f0e1p-10f,
                                    0x1.3fb5e6p-13f};
  static constexpr float kRoot = 0x1.80ead2p-1f;
  static constexpr float kRootRest = -0x1.6737dap-27f;  // what it lacks, times its factors there
  // 2 phi(t) (R(t) - t) = (root - t) (1 + q) exp(-t^2/2), q in t / (t + kShift) - kCentre
  static constexpr float kShift = 3.5f;
  static constexpr float kCentre = 0.453125f;
  static constexpr float kDerivative[] = {-0x1.42003ep-5f, -0x1.f730ap-2f,  0x1.0948a4p-1f,
                                          -0x1.851ef6p-2f, 0x1.28784ap-3f,  0x1.00678ep-5f,
                                          -0x1.c99a94p-5f, -0x1.8be5ep-10f, 0x1.33f4bap-6f};
  // t phi(t) R(t) = w (1 + q) exp(-t^2/2), w = t / (kValueScale t + kValueShift), q in
  // w - kValueCentre
  static constexpr float kValueScale = 1.703125f;
  static constexpr float kValueShift = 3.40625f;
  static constexpr float kValueCentre = 0.25f;
  static constexpr float kValue[] = {0x1.d6bd28p-3f, -0x1.f5486ap0f,  0x1.fd7644p-3f,
                                     0x1.332be8p1f,  0x1.bff014p-1f,  -0x1.dbaa36p1f,
                                     -0x1.8e5ce2p2f, -0x1.155ffcp-3f, 0x1.0d2fep4f,
                                     0x1.cb9bd2p4f,  -0x1.dbc98cp3f,  -0x1.3c02a8p6f};
  static constexpr float kValueLinear = 0x1p-40f;  // below, x Phi(x) rounds to x/2
};

// Gelu on float lanes with FMA. Left of 0 each result is a factor (root - t or w) times
// (1 + q) (1 + tail) and a power of two; q and tail are small, so that their errors count less.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void GeluFloat(D d, V x, V& y, V& dy) {
  using C = GeluFloatConstants;
  const hn::RebindToUnsigned<D> du;
  const V one = hn::Set(d, 1);
  const V abs_x = hn::Abs(x);
  const V t = AtMost(d, C::kMax, abs_x);

  // exp(-t^2/2) = (1 + tail) up / kGap; the last bits of k are up's exponent.
  constexpr float kGapExponent = 64;
  constexpr float kGap = 0x1p64f;
  const V rounder = hn::Set(d, FormatOf<D>::kRounder + FormatOf<D>::kExponentBias + kGapExponent);
  const V rate = hn::Set(d, C::kRateHi);
  V t2, t2_lo;
  TwoProd(d, t, t, t2, t2_lo);
  const V k = hn::MulAdd(t2, rate, rounder);
  const V up = hn::BitCast(d, hn::ShiftLeft<FormatOf<D>::kMantissaBits>(hn::BitCast(du, k)));
  const V f_lo = hn::MulAdd(t2, hn::Set(d, C::kRateLo), hn::Mul(t2_lo, rate));
  const V f = hn::Add(hn::MulSub(t2, rate, hn::Sub(k, rounder)), f_lo);
  const V f2 = hn::Mul(f, f);
  const V tail = hn::MulAdd(f, hn::Set(d, C::kLn2), hn::Mul(f2, Polynomial(d, C::kTail, f, f2)));
  const V one_tail = hn::Add(one, tail);

  const V z = hn::Sub(hn::Div(t, hn::Add(t, hn::Set(d, C::kShift))), hn::Set(d, C::kCentre));
  const V q = Polynomial(d, C::kDerivative, z, hn::Mul(z, z));
  const V from_root = hn::Sub(hn::Set(d, C::kRoot), t);
  V slope = hn::MulAdd(from_root, hn::MulAdd(q, one_tail, tail), hn::Set(d, C::kRootRest));
  slope = hn::Mul(hn::Add(from_root, slope), up);
  const V half_down = hn::Set(d, 0.5f / kGap);
  dy = hn::IfNegativeThenElse(x, hn::Mul(slope, half_down), hn::NegMulAdd(slope, half_down, one));

  const V shift = hn::Set(d, C::kValueShift);
  const V scale = hn::Set(d, C::kValueScale);
  const V s = hn::MulAdd(t, scale, shift);
  const V s_lo = hn::MulSub(t, scale, hn::Sub(s, shift));
  const V w = hn::Div(t, s);
  // What w lost: the remainder of t over s, where 1 / s = (1 - kValueScale w) / kValueShift, times
  // what becomes of such an error on its way through q, roughly 1 - kValueScale w.
  constexpr float kFactor = C::kValueScale * C::kValueScale / C::kValueShift;
  const V rest = hn::Sub(hn::Set(d, 1 / C::kValueScale), w);
  const V growth = hn::Mul(hn::Mul(rest, rest), hn::Set(d, kFactor));
  const V w_lo = hn::Mul(hn::NegMulAdd(w, s_lo, hn::NegMulAdd(w, s, t)), growth);
  const V r = hn::Sub(w, hn::Set(d, C::kValueCentre));
  V p = Polynomial(d, C::kValue, r, hn::Mul(r, r));
  p = hn::MulAdd(p, one_tail, tail);
  p = hn::Mul(hn::Add(w, hn::MulAdd(w, p, hn::MulAdd(w_lo, p, w_lo))), up);
  const V down = hn::Set(d, 1 / kGap);
  y = hn::IfNegativeThenElse(x, hn::Neg(hn::Mul(p, down)), hn::NegMulAdd(p, down, x));
  const auto linear = hn::Lt(abs_x, hn::Set(d, C::kValueLinear));
  y = hn::IfThenElse(linear, hn::Mul(x, hn::Set(d, 0.5f)), y);
}

// x Phi(x) and Phi(x) + x phi(x), full range. With t = |x|, left of 0 they are -t phi(t) R(t) and
// phi(t) (R(t) - t); right of it, x and 1 minus the one and the other.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Gelu(D d, V x, V& y, V& dy) {
  using C = GeluConstants;
  const V one = hn::Set(d, 1);
  const V abs_x = hn::Abs(x);
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(float)) {
    GeluFloat(d, x, y, dy);
  } else if constexpr (kForFloat32<D>) {
    const V t = AtMost(d, C::kMaxForFloat32, abs_x);
    V tail, scale;
    ShortExp2(d, hn::Mul(t, t), hn::Set(d, -0.5 * ExpConstants<double>::kLog2E), tail, scale);
    const V e = hn::MulAdd(tail, scale, scale);
    const V w = hn::Div(one, hn::Add(t, hn::Set(d, 4)));
    const V u = hn::NegMulAdd(w, hn::Set(d, 8), one);
    const V u2 = hn::Mul(u, u);
    const V slope = hn::Mul(hn::Mul(e, hn::Sub(hn::Set(d, C::kRootHi), t)),
                            Polynomial(d, C::kDerivativeForFloat32, u, u2));
    dy = hn::IfNegativeThenElse(x, slope, hn::Sub(one, slope));
    const V tail_x = hn::Mul(hn::Mul(e, hn::Mul(t, w)), Polynomial(d, C::kValueForFloat32, u, u2));
    y = hn::IfNegativeThenElse(x, hn::Neg(tail_x), hn::Sub(x, tail_x));
  } else {
    const V t = AtMost(d, C::kMax, abs_x);
    const GaussianCore<V> c = MakeGaussianCore(d, t, -0.5);

    const V w = hn::Div(one, hn::Add(t, hn::Set(d, 4)));
    const V z = hn::Mul(hn::Sub(t, hn::Set(d, C::kCentre)), w);
    V from_root, from_root_lo;
    TwoDiff(hn::Set(d, C::kRootHi), t, from_root, from_root_lo);
    from_root_lo = hn::Add(from_root_lo, hn::Set(d, C::kRootLo));
    const V z2 = hn::Mul(z, z);
    // The last steps of Horner's scheme one by one: even and odd powers cancel each other.
    const V tail =
        hn::MulAdd(EverySecond<2>(d, C::kDerivative, z2), z, EverySecond<1>(d, C::kDerivative, z2));
    V q, q_lo, factor, factor_lo;
    FastTwoSum(hn::Set(d, C::kDerivative[0]), hn::Mul(z, tail), q, q_lo);
    TwoProd(d, from_root, q, factor, factor_lo);
    factor_lo = hn::MulAdd(from_root_lo, q, hn::MulAdd(from_root, q_lo, factor_lo));
    const V slope_lo = hn::MulAdd(c.p_hi, factor_lo, hn::Mul(c.p_lo, factor));
    const V slope = hn::Mul(hn::Mul(hn::MulAdd(c.p_hi, factor, slope_lo), c.up), c.down);
    dy = hn::IfNegativeThenElse(x, slope, hn::Sub(one, slope));

    V hi, lo, t_hi, t_lo;
    GaussianTail(d, t, c, C::kValue, C::kValueLo, C::kValueSlope, hi, lo);
    TwoProd(d, t, hi, t_hi, t_lo);
    t_lo = hn::MulAdd(t, lo, t_lo);
    const V left = hn::Mul(hn::Neg(hn::Add(t_hi, t_lo)), c.down);
    const V right = hn::NegMulAdd(t_lo, c.down, hn::NegMulAdd(t_hi, c.down, x));
    y = hn::IfNegativeThenElse(x, left, right);
  }
}

// phi(x) (2 - x^2), full range; double. The residual keeps its digits next to the roots.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V GeluSecond(D d, V x) {
  const V t = AtMost(d, GeluConstants::kMax, hn::Abs(x));
  const GaussianCore<V> c = MakeGaussianCore(d, t, -0.5);
  const V factor = hn::Mul(Residual(d, t, t, hn::Set(d, 2)), hn::Set(d, GeluConstants::kPhiOfZero));
  return hn::Mul(hn::Mul(hn::Mul(c.p_hi, factor), c.up), c.down);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_ERF_INL_H_

// sigmoid and tanh with derivatives, both from e^-|x|.
#if defined(PULLBACK_CPP_MATH_SIGMOID_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_SIGMOID_INL_H_
#undef PULLBACK_CPP_MATH_SIGMOID_INL_H_
#else
#define PULLBACK_CPP_MATH_SIGMOID_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"
#include "math/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
struct SigmoidConstants;

template <>
struct SigmoidConstants<float> {
  static constexpr float kMin = -110.0f;  // exp(kMin) * 4 rounds to 0
  static constexpr float kGap = 64;
  static constexpr float kGapDown = 0x1p-64f;
  static constexpr float kFourGapDown = 0x1p-62f;
};

template <>
struct SigmoidConstants<double> {
  static constexpr double kMin = -760.0;
  static constexpr double kGap = 512;
  static constexpr double kGapUp = 0x1p512, kGapDown = 0x1p-512;
  static constexpr double kFourGapDown = 0x1p-510;
};

// e = exp(t) for t <= 0 is (p_hi + p_lo) * up * down, and 1 / (1 + e_hi) is r * (1 + rho).
template <class V>
struct LogisticCore {
  V p_hi, p_lo;  // |p_lo| <= ulp(p_hi) / 2
  V up, down;    // powers of two; `down` may round a product into the subnormals
  V raised;      // p_hi * up, exactly
  V e_hi;        // p_hi * up * down, exactly where it counts beside 1
  V d_hi, d_lo;  // 1 + e_hi, exactly
  V r, rho;
};

// Of exp(t + t_lo), |t_lo| <= a few ulp(t).
template <class D, class V = hn::Vec<D>>
HWY_INLINE LogisticCore<V> MakeLogisticCore(D d, V t, V t_lo) {
  using C = SigmoidConstants<hn::TFromD<D>>;
  const V one = hn::Set(d, 1);
  LogisticCore<V> c;
  V p, rest, k;
  ExpCore(d, AtLeast(d, C::kMin, t), t_lo, p, rest, k);
  FastTwoSum(p, rest, c.p_hi, c.p_lo);
  c.up = PowerOfTwo(d, k, hn::Set(d, C::kGap));
  c.down = hn::Set(d, C::kGapDown);
  c.raised = hn::Mul(c.p_hi, c.up);
  c.e_hi = hn::Mul(c.raised, c.down);
  FastTwoSum(one, c.e_hi, c.d_hi, c.d_lo);
  c.r = hn::Div(one, c.d_hi);
  c.rho = hn::NegMulAdd(c.r, c.d_lo, Residual(d, c.r, c.d_hi, one));
  return c;
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE LogisticCore<V> MakeLogisticCore(D d, V t) {
  return MakeLogisticCore(d, t, hn::Zero(d));
}

// e / (1 + e)^2, not yet times `down`.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogisticSlope([[maybe_unused]] D d, const LogisticCore<V>& c) {
  const V r2 = hn::Mul(c.r, c.r);
  V correction = hn::Mul(hn::Mul(c.raised, r2), hn::Add(c.rho, c.rho));
#if !HWY_NATIVE_FMA
  // With FMA the bound affords p_lo, half an ULP. Here the last product rounds, too.
  correction = hn::MulAdd(hn::Mul(c.p_lo, c.up), r2, correction);
#endif
  return hn::MulAdd(c.raised, r2, correction);
}

// (n_hi + n_lo) / (1 + e)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogisticQuotient([[maybe_unused]] D d, const LogisticCore<V>& c, V n_hi, V n_lo) {
#if HWY_NATIVE_FMA
  return hn::MulAdd(n_hi, c.r, hn::Mul(c.r, hn::MulAdd(n_hi, c.rho, n_lo)));
#else
  // rho would make it two exact products, of 17 operations each.
  const V quotient = hn::Mul(n_hi, c.r);
  const V residual =
      hn::Add(Residual(d, quotient, c.d_hi, n_hi), hn::NegMulAdd(quotient, c.d_lo, n_lo));
  return hn::MulAdd(residual, c.r, quotient);
#endif
}

// (a + a_lo) (f + f_lo) r^2 (1 + 2 rho)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V TimesSquare(D d, V a, V a_lo, V f, V f_lo, V r, V rho) {
  V product, product_lo, square, square_lo;
  TwoProd(d, a, f, product, product_lo);
  TwoProd(d, r, r, square, square_lo);
  product_lo = hn::Add(product_lo, hn::MulAdd(a_lo, f, hn::Mul(a, f_lo)));
  square_lo = hn::MulAdd(hn::Add(rho, rho), square, square_lo);
  const V rest = hn::MulAdd(product, square_lo, hn::Mul(product_lo, square));
  return hn::MulAdd(product, square, rest);
}

// e (n + n_lo) / (1 + e)^3, not yet times `down`; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogisticCurve(D d, const LogisticCore<V>& c, V n, V n_lo) {
  const V quotient = LogisticQuotient(d, c, n, n_lo);
  const V curve =
      TimesSquare(d, c.raised, hn::Mul(c.p_lo, c.up), quotient, hn::Zero(d), c.r, c.rho);
  return hn::CopySign(curve, quotient);  // no sum of -0 and +0
}

// 1 / (1 + exp(-x)), by the core of -|x|.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogisticValue(D d, const LogisticCore<V>& c, V x) {
  const V one = hn::Set(d, 1);
  // e / (1 + e) on the left, 1 / (1 + e) on the right
  const V n_hi = hn::IfNegativeThenElse(x, c.raised, one);
  const V n_lo = hn::IfNegativeThenElse(x, hn::Mul(c.p_lo, c.up), hn::Zero(d));
  const V scale = hn::IfNegativeThenElse(x, c.down, one);
  return hn::Mul(LogisticQuotient(d, c, n_hi, n_lo), scale);
}

// 1 / (1 + exp(-x)) and its derivative, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Sigmoid(D d, V x, V& y, V& dy) {
  const LogisticCore<V> c = MakeLogisticCore(d, hn::Neg(hn::Abs(x)));
  y = LogisticValue(d, c, x);
  dy = hn::Mul(LogisticSlope(d, c), c.down);
}

// 1 - e = n_hi + n_lo
template <class D, class V = hn::Vec<D>>
HWY_INLINE void OneMinus(D d, const LogisticCore<V>& c, V& n_hi, V& n_lo) {
  const V e_lo = hn::Mul(hn::Mul(c.p_lo, c.up), c.down);
  FastTwoSum(hn::Set(d, 1), hn::Neg(c.e_hi), n_hi, n_lo);
  FastTwoSum(n_hi, hn::Sub(n_lo, e_lo), n_hi, n_lo);  // e_lo leads near 0
}

// tanh(x) = (1 - e) / (1 + e), tanh'(x) = 4 e / (1 + e)^2 with e = exp(-2 |x|); full range. t_lo
// is what x lacks, as in e = exp(-2 |x| + t_lo). Returns the core of e, and 1 - e = n_hi + n_lo.
template <class D, class V = hn::Vec<D>>
HWY_INLINE LogisticCore<V> Tanh(D d, V x, V t_lo, V& n_hi, V& n_lo, V& y, V& dy) {
  using C = SigmoidConstants<hn::TFromD<D>>;
  const V minus_abs = hn::Neg(hn::Abs(x));
  const LogisticCore<V> c = MakeLogisticCore(d, hn::Add(minus_abs, minus_abs), t_lo);
  OneMinus(d, c, n_hi, n_lo);
  y = hn::CopySign(LogisticQuotient(d, c, n_hi, n_lo), x);
  dy = hn::Mul(LogisticSlope(d, c), hn::Set(d, C::kFourGapDown));
  return c;
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void Tanh(D d, V x, V& y, V& dy) {
  V n_hi, n_lo;
  Tanh(d, x, hn::Zero(d), n_hi, n_lo, y, dy);
}

// The second derivatives, -e (1 - e) / (1 + e)^3 and 8 times that, of x's other sign; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SigmoidSecond(D d, V x) {
  const LogisticCore<V> c = MakeLogisticCore(d, hn::Neg(hn::Abs(x)));
  V n_hi, n_lo;
  OneMinus(d, c, n_hi, n_lo);
  return hn::CopySign(hn::Mul(LogisticCurve(d, c, n_hi, n_lo), c.down), hn::Neg(x));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V TanhSecond(D d, V x) {
  V n_hi, n_lo, y, dy;
  const LogisticCore<V> c = Tanh(d, x, hn::Zero(d), n_hi, n_lo, y, dy);
  const V scale = hn::Set(d, 8 * SigmoidConstants<double>::kGapDown);
  return hn::CopySign(hn::Mul(LogisticCurve(d, c, n_hi, n_lo), scale), hn::Neg(x));
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_SIGMOID_INL_H_

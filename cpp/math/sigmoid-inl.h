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
};

template <>
struct SigmoidConstants<double> {
  static constexpr double kMin = -760.0;
  static constexpr double kGap = 128;
  static constexpr double kGapDown = 0x1p-128;
};

// e = exp(t) for t <= 0 as p * 2^k = (p_hi + p_lo) * up * down, and 1 / (1 + e) = r * (1 + rho).
template <class V>
struct LogisticCore {
  V p_hi, p_lo;  // |p_lo| <= ulp(p_hi) / 2
  V up, down;    // powers of two; `down` may round the product into the subnormals
  V e_hi, e_lo;  // of full accuracy where they matter beside 1
  V d_hi, d_lo;  // 1 + e
  V r, rho;
};

template <class D, class V = hn::Vec<D>>
HWY_INLINE LogisticCore<V> MakeLogisticCore(D d, V t) {
  using C = SigmoidConstants<hn::TFromD<D>>;
  const V one = hn::Set(d, 1);
  LogisticCore<V> c;
  V p, rest, k;
  ExpCore(d, AtLeast(d, C::kMin, t), p, rest, k);
  FastTwoSum(p, rest, c.p_hi, c.p_lo);
  c.up = PowerOfTwo(d, k, hn::Set(d, C::kGap));
  c.down = hn::Set(d, C::kGapDown);
  const V scale = hn::Mul(c.up, c.down);
  c.e_hi = hn::Mul(c.p_hi, scale);
  c.e_lo = hn::Mul(c.p_lo, scale);
  FastTwoSum(one, c.e_hi, c.d_hi, c.d_lo);
  c.d_lo = hn::Add(c.d_lo, c.e_lo);
  c.r = hn::Div(one, c.d_hi);
  c.rho = hn::NegMulAdd(c.r, c.d_lo, Residual(d, c.r, c.d_hi, one));
  return c;
}

// e / (1 + e)^2, before `up` and `down`.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogisticSlope([[maybe_unused]] D d, const LogisticCore<V>& c) {
  const V r2 = hn::Mul(c.r, c.r);
  const V slope = hn::Mul(c.p_hi, r2);
  const V correction = hn::MulAdd(c.p_lo, r2, hn::Mul(hn::Add(c.rho, c.rho), slope));
  return hn::MulAdd(c.p_hi, r2, correction);
}

// 1 / (1 + exp(-x)) and its derivative, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Sigmoid(D d, V x, V& y, V& dy) {
  const LogisticCore<V> c = MakeLogisticCore(d, hn::Neg(hn::Abs(x)));
  const V right = hn::MulAdd(c.r, c.rho, c.r);
  const V correction = hn::MulAdd(c.p_lo, c.r, hn::Mul(c.p_hi, hn::Mul(c.r, c.rho)));
  const V left = hn::Mul(hn::Mul(hn::MulAdd(c.p_hi, c.r, correction), c.up), c.down);
  y = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), left, right);
  dy = hn::Mul(hn::Mul(LogisticSlope(d, c), c.up), c.down);
}

// tanh(x) = (1 - e) / (1 + e), tanh'(x) = 4 e / (1 + e)^2 with e = exp(-2 |x|); full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Tanh(D d, V x, V& y, V& dy) {
  const V one = hn::Set(d, 1);
  const LogisticCore<V> c = MakeLogisticCore(d, hn::Mul(hn::Abs(x), hn::Set(d, -2)));
  V n_hi, n_lo;
  FastTwoSum(one, hn::Neg(c.e_hi), n_hi, n_lo);
  FastTwoSum(n_hi, hn::Sub(n_lo, c.e_lo), n_hi, n_lo);  // e_lo leads near 0
  const V quotient = hn::Mul(n_hi, c.r);
  const V residual =
      hn::Add(Residual(d, quotient, c.d_hi, n_hi), hn::NegMulAdd(quotient, c.d_lo, n_lo));
  y = hn::CopySign(hn::MulAdd(residual, c.r, quotient), x);
  const V slope = hn::Mul(LogisticSlope(d, c), hn::Set(d, 4));
  dy = hn::Mul(hn::Mul(slope, c.up), c.down);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_SIGMOID_INL_H_

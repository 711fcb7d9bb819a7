// softplus, log_sigmoid and logaddexp, all from log(1 + e) with e = exp(t), t <= 0, and log1mexp,
// from log(1 - e).
#if defined(PULLBACK_CPP_MATH_SOFTPLUS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_SOFTPLUS_INL_H_
#undef PULLBACK_CPP_MATH_SOFTPLUS_INL_H_
#else
#define PULLBACK_CPP_MATH_SOFTPLUS_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"
#include "math/exp-inl.h"
#include "math/log-inl.h"
#include "math/sigmoid-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
struct SoftplusConstants;

// kTail: (log((1 + s) / (1 - s)) / s - 2) / s^2 in s^2, |s| <= 1/3, from coefficients.sollya.
template <>
struct SoftplusConstants<float> {
  static constexpr float kTail[] = {0x1.555556p-1f, 0x1.999864p-2f, 0x1.24d7d2p-2f, 0x1.bb255cp-3f,
                                    0x1.e1588ap-3f};
  static constexpr float kLarge = 20;  // above, softplus rounds to x
};

template <>
struct SoftplusConstants<double> {
  static constexpr double kTail[] = {
      0x1.5555555555555p-1, 0x1.999999999a28ep-2, 0x1.24924923de233p-2, 0x1.c71c726d3ef53p-3,
      0x1.745cf1191f764p-3, 0x1.3b18ad75df93ap-3, 0x1.10ac87d73ec1ep-3, 0x1.eb9255bc926aep-4,
      0x1.68649519ec94dp-4, 0x1.4b2a57e256234p-3};
  // To 2^-36, for float32.
  static constexpr double kShortTail[] = {0x1.55555553d130cp-1, 0x1.9999a123b03e6p-2,
                                          0x1.248f40a6027edp-2, 0x1.c7ffd3c6d533bp-3,
                                          0x1.657cdc243275dp-3, 0x1.aa6cf8c0c42d2p-3};
  static constexpr double kLarge = 40;
};

// a + log(1 + e), e = e_hi + e_lo in [0, 1], for finite a, and for a = 0 down to subnormal e. Off
// by about 0.3 ULP of the largest of the three before the last rounding.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V AddLog1p(D d, V e_hi, V e_lo, V a) {
  using C = SoftplusConstants<hn::TFromD<D>>;
  const V two = hn::Set(d, 2);
  // log(1 + e) = 2 s + s^3 tail(s^2) with s = e / (2 + e), and 2 / (2 + e) = 1 - s gives what the
  // division dropped.
  V divisor, divisor_lo, sum, rest;
  FastTwoSum(two, e_hi, divisor, divisor_lo);
  const V s = hn::Div(e_hi, divisor);
  const V complement = hn::Sub(hn::Set(d, 1), s);
  const V residual =
      hn::MulAdd(e_lo, complement, hn::NegMulAdd(s, divisor_lo, Residual(d, s, divisor, e_hi)));
  const V z = hn::Mul(s, s);
  const V tail = hn::Mul(hn::Mul(s, z), Polynomial(d, C::kTail, z, hn::Mul(z, z)));
  TwoSum(a, hn::Add(s, s), sum, rest);
  return hn::Add(sum, hn::Add(rest, hn::MulAdd(residual, complement, tail)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V AddLog1p(D d, const LogisticCore<V>& c, V a) {
  return AddLog1p(d, c.e_hi, hn::Mul(hn::Mul(c.p_lo, c.up), c.down), a);
}

// log(1 + exp(x)) and its derivative, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Softplus(D d, V x, V& y, V& dy) {
  using C = SoftplusConstants<hn::TFromD<D>>;
  const LogisticCore<V> c = MakeLogisticCore(d, hn::Neg(hn::Abs(x)));
  // The sigmoid, one division and no corrections: the bound is 2.5 ULP.
  const V one = hn::Set(d, 1);
  const V numerator = hn::IfNegativeThenElse(x, c.raised, one);
  const V scale = hn::IfNegativeThenElse(x, c.down, one);
  dy = hn::Mul(hn::Div(numerator, hn::Add(one, c.e_hi)), scale);
  y = AddLog1p(d, c, AtLeast(d, 0, x));
  y = hn::IfThenElse(hn::Gt(x, hn::Set(d, C::kLarge)), x, y);
}

// log(1 + exp(x)) - t x for t in [0, 1], sigmoid(x) - t and sigmoid'(x), full range, double, in
// half of Softplus's time: a sum over many does not show it. All to about 2 ULP, the second
// of its larger term: near its root that is all that x tells. With e = exp(-|x|), where x >= 0,
//   (1 - t) x + log(1 + e),   ((1 - t) - t e) / (1 + e),
// and for x < 0 with t and 1 - t exchanged, and the other sign of the second.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogisticLoss(D d, V x, V t, V& y, V& dy, V& d2y) {
  using C = SigmoidConstants<double>;
  using E = ExpConstants<double>;
  const V one = hn::Set(d, 1);
  V r_hi, minus_r_lo, k;
  const V size = hn::Abs(x);
  ReduceByLn2(d, AtLeast(d, C::kMin, hn::Neg(size)), hn::Zero(d), r_hi, minus_r_lo, k);
  const V r = hn::Sub(r_hi, minus_r_lo);
  const V r2 = hn::Mul(r, r);
  const V tail = hn::MulSub(r2, Polynomial(d, E::kTail, r, r2), minus_r_lo);
  const V p = hn::Add(one, hn::Add(r_hi, tail));
  const V raised = hn::Mul(p, PowerOfTwo(d, k, hn::Set(d, C::kGap)));
  const V down = hn::Set(d, C::kGapDown);
  const V e = hn::Mul(raised, down);

  const V sum = hn::Add(one, e);
  const V rest = hn::Sub(one, t);
  const V by_e = hn::IfNegativeThenElse(x, rest, hn::Neg(t));
  const V by_one = hn::IfNegativeThenElse(x, hn::Neg(t), rest);
  const V numerator = hn::MulAdd(by_e, raised, hn::Mul(by_one, hn::Set(d, C::kGapUp)));
  dy = hn::Mul(hn::Div(numerator, sum), down);
  d2y = hn::Mul(hn::Div(hn::Div(raised, sum), sum), down);
  const V s = hn::Div(e, hn::Add(hn::Set(d, 2), e));
  const V z = hn::Mul(s, s);
  const V log_tail = Polynomial(d, SoftplusConstants<double>::kTail, z, hn::Mul(z, z));
  const V log1p = hn::MulAdd(hn::Mul(s, z), log_tail, hn::Add(s, s));
  const V share = hn::IfNegativeThenElse(x, t, rest);
  y = hn::Add(hn::IfThenZeroElse(hn::Eq(share, hn::Zero(d)), hn::Mul(share, size)), log1p);
}

// log(cosh(x - a)) and its first two derivatives, full range; double. What x - a rounds off is a
// relative error of the second in the tails, and 2 ULP of the value where |x - a| is about 1.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogCosh(D d, V x, V a, V& y, V& dy, V& d2y) {
  V hi, lo;
  TwoDiff(x, a, hi, lo);
  const V abs = hn::Abs(hi);
  lo = hn::IfThenElseZero(hn::Lt(abs, hn::Set(d, -SigmoidConstants<double>::kMin)), lo);
  V n_hi, n_lo;
  const V shift = hn::Mul(lo, hn::CopySign(hn::Set(d, 2), hn::Neg(hi)));
  const LogisticCore<V> c = Tanh(d, hi, shift, n_hi, n_lo, dy, d2y);
  // With e = exp(-2 |x|): near 0 half of log(1 + sinh^2), sinh^2 = (1 - e)^2 / (4 e), which loses
  // nothing there; |x| - log(2) + log(1 + e) loses nothing elsewhere.
  const V n_square = hn::MulAdd(n_hi, n_hi, hn::Mul(hn::Add(n_hi, n_hi), n_lo));
  const V four = hn::Set(d, 4);
  const V divisor = hn::Mul(four, c.e_hi);
  const V e_lo = hn::Mul(hn::Mul(c.p_lo, c.up), c.down);
  const V square = hn::Div(n_square, divisor);
  const V square_lo = hn::Div(
      hn::NegMulAdd(square, hn::Mul(four, e_lo), Residual(d, square, divisor, n_square)), divisor);
  const auto near = hn::Le(abs, hn::Set(d, 0.875));  // sinh^2 < 1
  const V distance = hn::Sub(abs, hn::Set(d, ExpConstants<double>::kLn2));
  const V log1p =
      AddLog1p(d, hn::IfThenElse(near, square, c.e_hi), hn::IfThenElse(near, square_lo, e_lo),
               hn::IfThenZeroElse(near, distance));
  y = hn::Mul(log1p, hn::IfThenElse(near, hn::Set(d, 0.5), hn::Set(d, 1)));
  // A fused correction of 0 may be -0.
  y = hn::IfThenElse(hn::Eq(abs, Infinity(d)), abs, hn::Abs(hn::MulAdd(dy, lo, y)));
}

// log(1 - exp(-x)) and 1 / expm1(x), full range; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Log1mexp(D d, V x, V& y, V& dy) {
  const V zero = hn::Zero(d);
  const auto near = hn::Gt(x, hn::Set(d, 1.3));  // exp(-x) < 0.29
  V e, e_lo, v, v_lo, lo;
  if constexpr (kForFloat32<D>) {
    V expm1;
    ShortExpm1<true>(d, AtLeast(d, -200, hn::Neg(x)), expm1, e);
    e_lo = v_lo = zero;
    v = hn::Neg(expm1);
    dy = hn::Div(e, v);
  } else {
    using C = ExpConstants<double>;
    V p, rest, p_hi, p_lo, k, minus_v, minus_v_lo;
    ExpCore<true>(d, AtLeast(d, C::kMin, hn::Neg(x)), p, rest, k);
    Expm1Core(d, p, rest, k, minus_v, minus_v_lo);
    FastTwoSum(p, rest, p_hi, p_lo);
    v = hn::Neg(minus_v);
    v_lo = hn::Neg(minus_v_lo);
    // Raised only where 1 / v is small.
    const V up = PowerOfTwo(d, k, hn::IfThenElseZero(near, hn::Set(d, 512)));
    const V down = hn::IfThenElse(near, hn::Set(d, 0x1p-512), hn::Set(d, 1));
    const V raised = hn::Mul(p_hi, up);
    e = hn::Mul(raised, down);
    e_lo = hn::Mul(hn::Mul(p_lo, up), down);
    const V inverse = hn::Div(hn::Set(d, 1), v);
    dy = hn::Mul(raised, inverse);
    const V lost = hn::MulAdd(p_lo, up, Residual(d, dy, v, raised));
    const V sharp = hn::MulAdd(hn::NegMulAdd(dy, v_lo, lost), inverse, dy);
    dy = hn::Mul(hn::IfThenElse(hn::Eq(sharp, sharp), sharp, dy), down);  // NaN next to 0
  }
  const V hi = LogOrLog1m(d, near, e, e_lo, v, v_lo, lo);
  y = hn::Neg(hn::Abs(hn::Add(hi, lo)));  // no sum of +0 and -0
  const auto none = hn::Eq(x, zero);
  y = hn::IfThenElse(none, hn::Neg(Infinity(d)), y);
  dy = hn::IfThenElse(none, Infinity(d), dy);
  const auto inside = hn::Ge(x, zero);
  y = hn::IfThenElse(inside, y, hn::NaN(d));
  dy = hn::IfThenElse(inside, dy, hn::NaN(d));
}

// log(exp(a) + exp(b)) and both derivatives, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void LogAddExp(D d, V a, V b, V& y, V& da, V& db) {
  using C = SoftplusConstants<double>;
  const V one = hn::Set(d, 1);
  const V larger = hn::IfThenElse(hn::Gt(a, b), a, b);
  const auto finite = hn::Lt(hn::Abs(larger), Infinity(d));
  V hi, lo;
  TwoDiff(a, b, hi, lo);
  hi = hn::IfThenZeroElse(hn::Eq(a, b), hi);  // of equal infinities, too
  const V abs = hn::Abs(hi);
  const V t = hn::Neg(abs);
  if constexpr (kForFloat32<D>) {
    const V e = ShortExp(d, AtLeast(d, -200, t));
    const V s = hn::Div(e, hn::Add(hn::Set(d, 2), e));
    const V z = hn::Mul(s, s);
    const V log1p =
        hn::Mul(s, hn::MulAdd(z, Polynomial(d, C::kShortTail, z, hn::Mul(z, z)), hn::Set(d, 2)));
    y = hn::Add(larger, log1p);
    const V r = hn::Div(one, hn::Add(one, e));
    const V e_r = hn::Mul(e, r);
    da = hn::IfNegativeThenElse(hi, e_r, r);
    db = hn::IfNegativeThenElse(hi, r, e_r);
  } else {
    // Elsewhere it may be NaN, or large, but exp(t) is 0 or 1.
    const auto counts =
        hn::And(hn::Gt(abs, hn::Zero(d)), hn::Lt(abs, hn::Set(d, -SigmoidConstants<double>::kMin)));
    lo = hn::IfThenElseZero(counts, lo);
    const LogisticCore<V> c = MakeLogisticCore(d, t, hn::IfNegativeThenElse(hi, lo, hn::Neg(lo)));
    y = hn::IfThenElse(finite, AddLog1p(d, c, larger), hn::Add(larger, c.e_hi));
    da = LogisticValue(d, c, hi);
    db = LogisticValue(d, c, hn::Neg(hi));
  }
  const auto both = hn::Eq(larger, hn::Neg(Infinity(d)));  // no limit there
  da = hn::IfThenElse(both, hn::NaN(d), da);
  db = hn::IfThenElse(both, hn::NaN(d), db);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_SOFTPLUS_INL_H_

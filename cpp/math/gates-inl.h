// silu, gelu_tanh and mish: x times a sigmoid, smooth, and with a derivative that changes sign.
#if defined(PULLBACK_CPP_MATH_GATES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_MATH_GATES_INL_H_
#undef PULLBACK_CPP_MATH_GATES_INL_H_
#else
#define PULLBACK_CPP_MATH_GATES_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"
#include "math/exp-inl.h"
#include "math/sigmoid-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The factor f of a derivative that changes sign: f(r + w) = w (kLead[0] + kLead[1] + kNear(w)) for
// |w| <= 1/8, the root r being kRoot + kRootRest. From coefficients.sollya; kLead are powers of
// two.
struct SiluConstants {
  static constexpr double kRoot = -0x1.474973c84120bp0;
  static constexpr double kRootRest = -0x1.f8d74bc9ac154p-54;
  static constexpr double kLead[] = {1, 0.25};
  static constexpr double kNear[] = {
      0x1.d25cf210482ep-6,   0x1.1d25cf2104828p-3, 0x1.7c3269815b4cep-5,
      0x1.7c3269816ef9bp-7,  0x1.3028546834871p-9, 0x1.958b19037864p-12,
      0x1.cf7a57c3578afp-15, 0x1.cfa8f0e883adp-18, 0x1.9c8740657653ep-21};
  static constexpr double kMax = 760;
};

struct GeluTanhConstants {
  static constexpr double kRoot = -0x1.81429f9e97e4dp-1;
  static constexpr double kRootRest = 0x1.4f523ed77dbdcp-55;
  static constexpr double kLead[] = {2, 0.5};
  static constexpr double kNear[] = {
      -0x1.424cbea76c26cp-5, -0x1.993cd34bf4f05p-4, 0x1.9a0ef5cdf30b6p-2, 0x1.3720c65c8ffe4p-4,
      0x1.f37b831fb3eep-6,   0x1.721f46e34d29bp-7,  0x1.e3b48317e71afp-9, 0x1.2e3bc9660a9cp-10,
      0x1.75d5286692b0dp-12, 0x1.b1ace1a514cb1p-14, 0x1.d7114dc97a83cp-16};
  static constexpr double kLinear = 0x1.9884533d43651p0;  // sqrt(8 / pi)
  static constexpr double kLinearRest = -0x1.cbc0d30ebfd15p-54;
  static constexpr double kCubic = 0x1.2444f2a4d8b4bp-4;  // sqrt(8 / pi) 0.044715
  static constexpr double kCubicRest = -0x1.6c843a29d1c7p-61;
  static constexpr double kMax = 22;
};

struct MishConstants {
  static constexpr double kRoot = -0x1.31432c0d12d84p0;
  static constexpr double kRootRest = -0x1.bf319154da21p-55;
  static constexpr double kLead[] = {4, 2};
  static constexpr double kNear[] = {
      0x1.a1c155f7b7d15p-2, 0x1.21b0c7fb83ba2p1,   0x1.49433e20bcaf2p0,  0x1.1d9a628ee9928p-1,
      0x1.ab14503f3664ep-3, 0x1.259c961fb480dp-4,  0x1.7cd9d633dfceap-6, 0x1.d3c364817d236p-8,
      0x1.0eed8626d843ep-9, 0x1.278f29d57c7b4p-11, 0x1.2e1f609fc3321p-13};
  static constexpr double kMax = 760;
};

// Near the root of f, f_hi + f_lo becomes its factored form. Float32 does without: no float is
// closer to a root than 2^-29.
template <class C, class D, class V = hn::Vec<D>>
HWY_INLINE void FactorRoot(D d, V x, V& f_hi, V& f_lo) {
  V w, w_lo, sum, rest;
  FastTwoSum(hn::Sub(x, hn::Set(d, C::kRoot)), hn::Set(d, -C::kRootRest), w, w_lo);
  const auto near = hn::Le(hn::Abs(w), hn::Set(d, 0.125));
  FastTwoSum(hn::Mul(w, hn::Set(d, C::kLead[0])), hn::Mul(w, hn::Set(d, C::kLead[1])), sum, rest);
  rest = hn::MulAdd(w_lo, hn::Set(d, C::kLead[0] + C::kLead[1]), rest);
  rest = hn::MulAdd(w, Polynomial(d, C::kNear, w, hn::Mul(w, w)), rest);
  f_hi = hn::IfThenElse(near, sum, f_hi);
  f_lo = hn::IfThenElse(near, rest, f_lo);
}

// x * sigmoid(t) and its derivative by x for t = t_hi + t_lo of x's sign, given h = x t'(x).
template <class C, class D, class V = hn::Vec<D>>
HWY_INLINE void Gate(D d, V x, V t_hi, V t_lo, V h_hi, V h_lo, V& y, V& dy) {
  const V one = hn::Set(d, 1);
  const V minus_abs = hn::Neg(hn::Abs(t_hi));
  // With e = exp(-|t|): 1 + e + h e over (1 + e)^2 on the right, e (1 + e + h) on the left.
  if constexpr (kForFloat32<D>) {
    const V e = ShortExp<true>(d, AtLeast(d, -200, minus_abs));
    const V sum = hn::Add(one, e);
    const V r = hn::Div(one, sum);
    const V lead = hn::IfNegativeThenElse(x, e, one);
    y = hn::Mul(hn::Mul(x, lead), r);
    const V f = hn::Add(sum, hn::IfNegativeThenElse(x, h_hi, hn::Mul(h_hi, e)));
    dy = hn::Mul(hn::Mul(lead, f), hn::Mul(r, r));
  } else {
    t_lo = hn::IfThenElseZero(hn::Gt(minus_abs, hn::Set(d, SigmoidConstants<double>::kMin)),
                              hn::IfNegativeThenElse(x, t_lo, hn::Neg(t_lo)));
    const LogisticCore<V> c = MakeLogisticCore(d, minus_abs, t_lo);
    const V scale = hn::IfNegativeThenElse(x, c.down, one);
    const V lead = hn::IfNegativeThenElse(x, c.raised, one);
    const V raised_lo = hn::Mul(c.p_lo, c.up);
    const V lead_lo = hn::IfNegativeThenElse(x, raised_lo, hn::Zero(d));
    y = hn::Mul(hn::Mul(x, LogisticQuotient(d, c, lead, lead_lo)), scale);

    const V e_lo = hn::Mul(raised_lo, c.down);
    const V addend = hn::IfNegativeThenElse(x, h_hi, hn::Mul(h_hi, c.e_hi));
    const V addend_lo =
        hn::IfNegativeThenElse(x, h_lo, hn::MulAdd(h_hi, e_lo, hn::Mul(h_lo, c.e_hi)));
    V f_hi, f_lo;
    TwoSum(c.d_hi, addend, f_hi, f_lo);
    f_lo = hn::Add(f_lo, hn::Add(hn::Add(c.d_lo, e_lo), addend_lo));
    FactorRoot<C>(d, x, f_hi, f_lo);
    dy = hn::Mul(TimesSquare(d, lead, lead_lo, f_hi, f_lo, c.r, c.rho), scale);
  }
}

// x / (1 + exp(-x)) and its derivative, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Silu(D d, V x, V& y, V& dy) {
  using C = SiluConstants;
  const V finite = AtLeast(d, -C::kMax, x);  // -inf * 0 would be NaN
  const V h = AtMost(d, C::kMax, finite);
  Gate<C>(d, finite, x, hn::Zero(d), h, hn::Zero(d), y, dy);
}

// sigmoid'(x) (2 - x tanh(x/2)), as e (2 (1 + e) - |x| (1 - e)) / (1 + e)^3; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SiluSecond(D d, V x) {
  const V abs = hn::Abs(x);
  const LogisticCore<V> c = MakeLogisticCore(d, hn::Neg(abs));
  const V rest = hn::Sub(hn::Set(d, 1), c.e_hi);
  const V n = hn::NegMulAdd(AtMost(d, SiluConstants::kMax, abs), rest, hn::Add(c.d_hi, c.d_hi));
  return hn::Mul(LogisticCurve(d, c, n, hn::Add(c.d_lo, c.d_lo)), c.down);
}

// sqrt(8/pi) (z + 0.044715 z^3) = t_hi + t_lo; over z it is slope + slope_lo, of which c is the
// part with z^2; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void GeluTanhArgument(D d, V z, V& t_hi, V& t_lo, V& c, V& slope, V& slope_lo) {
  using C = GeluTanhConstants;
  const V linear = hn::Set(d, C::kLinear);
  const V cubic = hn::Set(d, C::kCubic);
  V square, square_lo, c_lo;
  TwoProd(d, z, z, square, square_lo);
  TwoProd(d, cubic, square, c, c_lo);
  c_lo = hn::Add(c_lo, hn::MulAdd(cubic, square_lo, hn::Mul(hn::Set(d, C::kCubicRest), square)));
  TwoSum(linear, c, slope, slope_lo);
  slope_lo = hn::Add(slope_lo, hn::Add(c_lo, hn::Set(d, C::kLinearRest)));
  TwoProd(d, z, slope, t_hi, t_lo);
  t_lo = hn::MulAdd(z, slope_lo, t_lo);
}

// x / (1 + exp(-t)), t = sqrt(8/pi) (x + 0.044715 x^3), and its derivative, full range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void GeluTanh(D d, V x, V& y, V& dy) {
  using C = GeluTanhConstants;
  const V left = AtLeast(d, -C::kMax, x);
  const V z = AtMost(d, C::kMax, left);
  if constexpr (kForFloat32<D>) {
    const V linear = hn::Set(d, C::kLinear);
    const V cubic = hn::Set(d, C::kCubic);
    const V c = hn::Mul(cubic, hn::Mul(z, z));
    const V t = hn::Mul(z, hn::Add(linear, c));
    const V h = hn::MulAdd(hn::Add(c, c), z, t);
    Gate<C>(d, left, t, t, h, h, y, dy);
  } else {
    V t_hi, t_lo, c, slope, slope_lo;
    GeluTanhArgument(d, z, t_hi, t_lo, c, slope, slope_lo);
    // x t' = t + 2 c x
    V h_hi, h_lo;
    TwoSum(t_hi, hn::Mul(hn::Add(c, c), z), h_hi, h_lo);
    Gate<C>(d, left, t_hi, t_lo, h_hi, hn::Add(h_lo, t_lo), y, dy);
  }
}

// With t' = l + 3 c and x t'' = 6 c: e ((2 l + 12 c) (1 + e) - |x| t'^2 (1 - e)) / (1 + e)^3, where
// e = exp(-|t|); double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V GeluTanhSecond(D d, V x) {
  using C = GeluTanhConstants;
  const V z = AtMost(d, C::kMax, hn::Abs(x));
  V t_hi, t_lo, c, slope, slope_lo, rest;
  GeluTanhArgument(d, z, t_hi, t_lo, c, slope, slope_lo);
  const LogisticCore<V> core = MakeLogisticCore(d, hn::Neg(t_hi), hn::Neg(t_lo));
  const V lead = hn::MulAdd(c, hn::Set(d, 12), hn::Set(d, 2 * C::kLinear));
  TwoSum(slope, hn::Add(c, c), slope, rest);
  rest = hn::Add(rest, slope_lo);
  V times, times_lo;
  TwoProd(d, z, slope, times, times_lo);
  const V square_lo = hn::MulAdd(times_lo, slope, hn::Mul(hn::Add(times, times), rest));
  const V square = hn::MulAdd(times, slope, square_lo);
  const V n = hn::MulSub(lead, core.d_hi, hn::Mul(square, hn::Sub(hn::Set(d, 1), core.e_hi)));
  return hn::Mul(LogisticCurve(d, core, n, hn::Mul(lead, core.d_lo)), core.down);
}

// The core of e = exp(-|x|) with Mish's q in place of 1 + e; sum is that less its e^2; double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE LogisticCore<V> MakeMishCore(D d, V x, V& sum, V& sum_lo) {
  const V one = hn::Set(d, 1);
  const V two = hn::Set(d, 2);
  LogisticCore<V> c = MakeLogisticCore(d, hn::Neg(hn::Abs(x)));
  const V e = c.e_hi;
  const V e_lo = hn::Mul(hn::Mul(c.p_lo, c.up), c.down);
  // q = 2 (1 + e) + e^2 or 1 + e + e + 2 e^2
  const V d_lo = hn::Add(c.d_lo, e_lo);
  V square, square_lo;
  FastTwoSum(c.d_hi, hn::IfNegativeThenElse(x, c.d_hi, e), sum, sum_lo);
  sum_lo = hn::Add(sum_lo, hn::Add(d_lo, hn::IfNegativeThenElse(x, d_lo, e_lo)));
  TwoProd(d, e, e, square, square_lo);
  square_lo = hn::MulAdd(hn::Add(e, e), e_lo, square_lo);
  const V times = hn::IfNegativeThenElse(x, one, two);
  FastTwoSum(sum, hn::Mul(times, square), c.d_hi, c.d_lo);
  c.d_lo = hn::Add(c.d_lo, hn::MulAdd(times, square_lo, sum_lo));
  c.r = hn::Div(one, c.d_hi);
  c.rho = hn::NegMulAdd(c.r, c.d_lo, Residual(d, c.r, c.d_hi, one));
  return c;
}

// x tanh(log(1 + exp(x))) and its derivative, full range. With e = exp(-|x|), n and q stand for
//   on the left   n = e (2 + e),   q = 2 + 2 e + e^2,    and on the right   n = 1 + 2 e,
//   q = 1 + 2 e + 2 e^2:   the value is x n / q, the derivative e f / q^2 and f / q^2, where
// f = 4 (1 + x) + (6 + 4 x) e + 4 e^2 + e^3, and 1 + 4 e + (6 + 4 x) e^2 + 4 (1 + x) e^3.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Mish(D d, V x, V& y, V& dy) {
  using C = MishConstants;
  const V one = hn::Set(d, 1);
  const V two = hn::Set(d, 2);
  const V four = hn::Set(d, 4);
  const V left = AtLeast(d, -C::kMax, x);  // -inf * 0 would be NaN
  const V z = AtMost(d, C::kMax, left);
  const V linear = hn::MulAdd(four, z, four);
  const V slope = hn::MulAdd(four, z, hn::Set(d, 6));
  const V c0 = hn::IfNegativeThenElse(x, linear, one);
  const V c1 = hn::IfNegativeThenElse(x, slope, four);
  const V c2 = hn::IfNegativeThenElse(x, four, slope);
  const V c3 = hn::IfNegativeThenElse(x, one, linear);
  const V minus_abs = hn::Neg(hn::Abs(x));
  if constexpr (kForFloat32<D>) {
    const V e = ShortExp<true>(d, AtLeast(d, -200, minus_abs));
    const V lead = hn::IfNegativeThenElse(x, e, one);
    const V n =
        hn::Mul(lead, hn::Add(hn::IfNegativeThenElse(x, two, one),
                              hn::Sub(hn::Add(e, e), hn::IfNegativeThenElse(x, e, hn::Zero(d)))));
    const V q = hn::Add(n, hn::IfNegativeThenElse(x, two, hn::Mul(hn::Add(e, e), e)));
    const V r = hn::Div(one, q);
    y = hn::Mul(hn::Mul(left, n), r);
    const V f = hn::MulAdd(hn::MulAdd(hn::MulAdd(c3, e, c2), e, c1), e, c0);
    dy = hn::Mul(hn::Mul(lead, f), hn::Mul(r, r));
  } else {
    V sum, sum_lo;
    const LogisticCore<V> c = MakeMishCore(d, x, sum, sum_lo);
    const V e = c.e_hi;
    const V raised_lo = hn::Mul(c.p_lo, c.up);
    const V e_lo = hn::Mul(raised_lo, c.down);
    const V scale = hn::IfNegativeThenElse(x, c.down, one);

    V n_hi, n_lo;
    FastTwoSum(hn::Add(c.raised, c.raised), hn::Mul(c.raised, e), n_hi, n_lo);
    n_lo = hn::MulAdd(raised_lo, hn::MulAdd(two, e, two), n_lo);
    n_hi = hn::IfNegativeThenElse(x, n_hi, sum);
    n_lo = hn::IfNegativeThenElse(x, n_lo, sum_lo);
    y = hn::Mul(hn::Mul(left, LogisticQuotient(d, c, n_hi, n_lo)), scale);

    V f_hi, f_lo, product, product_lo;
    const V inner = hn::MulAdd(hn::MulAdd(c3, e, c2), e, c1);
    TwoProd(d, inner, e, product, product_lo);
    TwoSum(c0, product, f_hi, f_lo);
    f_lo = hn::Add(f_lo, product_lo);
    f_lo = hn::MulAdd(
        e_lo, hn::MulAdd(hn::MulAdd(hn::Mul(hn::Set(d, 3), c3), e, hn::Add(c2, c2)), e, c1), f_lo);
    FactorRoot<C>(d, x, f_hi, f_lo);
    const V lead = hn::IfNegativeThenElse(x, c.raised, one);
    const V lead_lo = hn::IfNegativeThenElse(x, raised_lo, hn::Zero(d));
    dy = hn::Mul(TimesSquare(d, lead, lead_lo, f_hi, f_lo, c.r, c.rho), scale);
  }
}

// With the same e and q: 4 e n / q^3 on the left, 4 e^2 n / q^3 on the right, where
//   n = 4 + 8 e + 6 e^2 + 2 e^3 + x (2 + 2 e - 3 e^2 - 2 e^3)   and
//   n = 2 + 6 e + 8 e^2 + 4 e^3 - x (2 + 3 e - 2 e^2 - 2 e^3); double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V MishSecond(D d, V x) {
  using C = MishConstants;
  const V z = AtMost(d, C::kMax, AtLeast(d, -C::kMax, x));
  V sum, sum_lo;
  const LogisticCore<V> c = MakeMishCore(d, x, sum, sum_lo);
  const V e = c.e_hi;
  const auto side = [&](double left, double right) {
    return hn::IfNegativeThenElse(x, hn::Set(d, left), hn::Set(d, right));
  };
  const V even =
      hn::MulAdd(hn::MulAdd(hn::MulAdd(side(2, 4), e, side(6, 8)), e, side(8, 6)), e, side(4, 2));
  const V odd = hn::MulAdd(hn::MulAdd(hn::MulAdd(side(-2, 2), e, side(-3, 2)), e, side(2, -3)), e,
                           side(2, -2));
  V product, product_lo, n, n_lo;
  TwoProd(d, z, odd, product, product_lo);
  TwoSum(even, product, n, n_lo);
  const V quotient = LogisticQuotient(d, c, n, hn::Add(n_lo, product_lo));
  const V raised_lo = hn::Mul(c.p_lo, c.up);
  const V lead = hn::IfNegativeThenElse(x, c.raised, e);
  // What e lacks, on the right of e^2.
  const V lead_lo =
      hn::IfNegativeThenElse(x, raised_lo, hn::Mul(hn::Add(raised_lo, raised_lo), c.down));
  const V scale = hn::Mul(hn::IfNegativeThenElse(x, c.down, e), hn::Set(d, 4));
  const V curve = TimesSquare(d, lead, lead_lo, quotient, hn::Zero(d), c.r, c.rho);
  return hn::CopySign(hn::Mul(curve, scale), quotient);  // no sum of -0 and +0
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_MATH_GATES_INL_H_

// THE table of unary elementwise ops: one row each, value and derivative together.
#if defined(PULLBACK_CPP_OPS_UNARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_OPS_UNARY_INL_H_
#undef PULLBACK_CPP_OPS_UNARY_INL_H_
#else
#define PULLBACK_CPP_OPS_UNARY_INL_H_
#endif

#include <hwy/highway.h>

#include "math/arc_hyperbolic-inl.h"
#include "math/erf-inl.h"
#include "math/exp-inl.h"
#include "math/gamma-inl.h"
#include "math/gates-inl.h"
#include "math/hyperbolic-inl.h"
#include "math/inverse_trig-inl.h"
#include "math/log-inl.h"
#include "math/normal-inl.h"
#include "math/roots-inl.h"
#include "math/sigmoid-inl.h"
#include "math/softplus-inl.h"
#include "math/trig-inl.h"
#include "ops/row.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

PB_UNARY_TABLE

PB_UNARY(identity) {
  y = x;
  dy = ConstantUnlessNaN(d, 1, x);
}
PB_UNARY_SECOND(identity) { d2y = ConstantUnlessNaN(d, 0, x); }

PB_UNARY(negative) {
  y = hn::Neg(x);
  dy = ConstantUnlessNaN(d, -1, x);
}
PB_UNARY_SECOND(negative) { d2y = ConstantUnlessNaN(d, 0, x); }

PB_UNARY(abs) {
  y = hn::Abs(x);
  const V sign = hn::CopySign(hn::Set(d, 1), x);
  dy = hn::IfThenElse(hn::Gt(y, hn::Zero(d)), sign, y);  // y is 0 or NaN otherwise
}
PB_UNARY_SECOND(abs) { d2y = ConstantUnlessNaN(d, 0, x); }

PB_UNARY_MASKED(sign) {
  const V magnitude = hn::Abs(x);
  const V one = hn::CopySign(hn::Set(d, 1), x);
  y = hn::IfThenElse(hn::Gt(magnitude, hn::Zero(d)), one, magnitude);  // 0 or NaN otherwise
  dy = ConstantUnlessNaN(d, 0, x);
}
PB_UNARY_SECOND(sign) { d2y = ConstantUnlessNaN(d, 0, x); }

PB_UNARY_MASKED(step) {
  y = hn::IfThenZeroElse(hn::Le(x, hn::Zero(d)), ConstantUnlessNaN(d, 1, x));
  dy = ConstantUnlessNaN(d, 0, x);
}
PB_UNARY_SECOND(step) { d2y = ConstantUnlessNaN(d, 0, x); }

PB_UNARY(reciprocal) { DivideDerivatives(d, hn::Set(d, 1), x, y, dy); }
PB_UNARY_SECOND(reciprocal) { d2y = hn::Div(hn::Neg(hn::Add(dy, dy)), x); }

PB_UNARY_MASKED(relu) {
  const auto inactive = hn::Le(x, hn::Zero(d));
  y = hn::IfThenZeroElse(inactive, x);
  dy = hn::IfThenZeroElse(inactive, ConstantUnlessNaN(d, 1, x));
}
PB_UNARY_SECOND(relu) { d2y = ConstantUnlessNaN(d, 0, x); }

PB_UNARY_MASKED(relu6) {
  const auto low = hn::Le(x, hn::Zero(d));
  const auto inactive = hn::Or(low, hn::Ge(x, hn::Set(d, 6)));
  y = hn::IfThenZeroElse(low, AtMost(d, 6, x));
  dy = hn::IfThenZeroElse(inactive, ConstantUnlessNaN(d, 1, x));
}
PB_UNARY_SECOND(relu6) { d2y = ConstantUnlessNaN(d, 0, x); }

PB_UNARY_MASKED(hard_tanh) {
  y = AtMost(d, 1, AtLeast(d, -1, x));
  dy = hn::IfThenZeroElse(hn::Ge(hn::Abs(x), hn::Set(d, 1)), ConstantUnlessNaN(d, 1, x));
}
PB_UNARY_SECOND(hard_tanh) { d2y = ConstantUnlessNaN(d, 0, x); }

PB_UNARY_MASKED(hard_sigmoid) {
  constexpr auto kSixth = static_cast<hn::TFromD<D>>(1.0 / 6);
  const V three = hn::Set(d, 3);
  const V sixth = hn::Set(d, kSixth);
  V sum, sum_lo;
  TwoSum(x, three, sum, sum_lo);
  const V quotient = hn::Mul(sum, sixth);
  const V rest = hn::Add(Residual(d, quotient, hn::Set(d, 6), sum), sum_lo);
  y = hn::MulAdd(rest, sixth, quotient);
  y = hn::IfThenElse(hn::Ge(x, three), hn::Set(d, 1), y);
  y = hn::IfThenZeroElse(hn::Le(x, hn::Neg(three)), y);
  dy = hn::IfThenZeroElse(hn::Ge(hn::Abs(x), three), ConstantUnlessNaN(d, kSixth, x));
}
PB_UNARY_SECOND(hard_sigmoid) { d2y = ConstantUnlessNaN(d, 0, x); }

PB_UNARY(softsign) { Softsign(d, x, y, dy); }
PB_UNARY_SECOND(softsign) {
  const V curve = hn::Div(hn::Add(dy, dy), hn::Add(hn::Abs(x), hn::Set(d, 1)));
  d2y = hn::IfThenZeroElse(hn::Eq(x, hn::Zero(d)), hn::CopySign(curve, hn::Neg(x)));
}

PB_UNARY(exp) { y = dy = Exp(d, x); }
PB_UNARY_SECOND(exp) { d2y = y; }

PB_UNARY_WIDE(exp2) { Exp2(d, x, y, dy); }
PB_UNARY_SECOND(exp2) { d2y = Exp2Second(d, x); }

PB_UNARY(expm1) { Expm1(d, x, y, dy); }
PB_UNARY_SECOND(expm1) { d2y = dy; }

PB_UNARY(log) { Log(d, x, y, dy); }
PB_UNARY_SECOND(log) { d2y = hn::Neg(hn::Div(dy, hn::Abs(x))); }

PB_UNARY_WIDE(log2) { LogToBase<Base2>(d, x, y, dy); }
PB_UNARY_SECOND(log2) { d2y = hn::Neg(hn::Div(dy, hn::Abs(x))); }

PB_UNARY_WIDE(log10) { LogToBase<Base10>(d, x, y, dy); }
PB_UNARY_SECOND(log10) { d2y = hn::Neg(hn::Div(dy, hn::Abs(x))); }

PB_UNARY_WIDE(log1p) { Log1p(d, x, y, dy); }
PB_UNARY_SECOND(log1p) { d2y = hn::Neg(hn::Mul(dy, dy)); }

PB_UNARY(sigmoid) { Sigmoid(d, x, y, dy); }
PB_UNARY_SECOND(sigmoid) { d2y = SigmoidSecond(d, x); }

PB_UNARY(softplus) { Softplus(d, x, y, dy); }
PB_UNARY_SECOND(softplus) {
  V s;
  Sigmoid(d, x, s, d2y);
}

PB_UNARY(log_sigmoid) {
  Softplus(d, hn::Neg(x), y, dy);
  y = hn::Neg(y);
}
PB_UNARY_SECOND(log_sigmoid) {
  V s;
  Sigmoid(d, x, s, d2y);
  d2y = hn::Neg(d2y);
}

PB_UNARY_WIDE(silu) { Silu(d, x, y, dy); }
PB_UNARY_SECOND(silu) { d2y = SiluSecond(d, x); }

PB_UNARY_WIDE(gelu_tanh) { GeluTanh(d, x, y, dy); }
PB_UNARY_SECOND(gelu_tanh) { d2y = GeluTanhSecond(d, x); }

PB_UNARY_WIDE(mish) { Mish(d, x, y, dy); }
PB_UNARY_SECOND(mish) { d2y = MishSecond(d, x); }

PB_UNARY_WIDE(selu) { Selu(d, x, y, dy); }
PB_UNARY_SECOND(selu) { d2y = hn::IfThenZeroElse(hn::Gt(x, hn::Zero(d)), dy); }

PB_UNARY_WIDE(sinh) { SinhCosh(d, x, y, dy); }
PB_UNARY_SECOND(sinh) { d2y = y; }

PB_UNARY_WIDE(cosh) { SinhCosh(d, x, dy, y); }
PB_UNARY_SECOND(cosh) { d2y = y; }

PB_UNARY(tanh) { Tanh(d, x, y, dy); }
PB_UNARY_SECOND(tanh) { d2y = TanhSecond(d, x); }

PB_UNARY_WIDE(arcsinh) { Arcsinh(d, x, y, dy); }
PB_UNARY_SECOND(arcsinh) { d2y = ArcHyperbolicSecond(d, x, hn::MulAdd(x, x, hn::Set(d, 1)), dy); }

PB_UNARY_WIDE(arccosh) { Arccosh(d, x, y, dy); }
PB_UNARY_SECOND(arccosh) {
  const V one = hn::Set(d, 1);
  d2y = ArcHyperbolicSecond(d, x, hn::Mul(hn::Sub(x, one), hn::Add(x, one)), dy);
}

PB_UNARY_WIDE(arctanh) { Arctanh(d, x, y, dy); }
PB_UNARY_SECOND(arctanh) {
  d2y = hn::Div(hn::Mul(hn::Add(x, x), dy), Residual(d, x, x, hn::Set(d, 1)));
}

PB_UNARY_WIDE(erf) { Erf(d, x, y, dy); }
PB_UNARY_SECOND(erf) { d2y = ErfSecond(d, x); }

PB_UNARY_WIDE(erfc) { Erfc(d, x, y, dy); }
PB_UNARY_SECOND(erfc) { d2y = hn::Neg(ErfSecond(d, x)); }

PB_UNARY_WIDE_WITHOUT_FMA(gelu) { Gelu(d, x, y, dy); }
PB_UNARY_SECOND(gelu) { d2y = GeluSecond(d, x); }

PB_UNARY(sin) { SinCos(d, x, y, dy); }
PB_UNARY_SECOND(sin) { d2y = hn::Neg(y); }

PB_UNARY(cos) {
  V sin;
  SinCos(d, x, sin, y);
  dy = hn::Neg(sin);
}
PB_UNARY_SECOND(cos) { d2y = hn::Neg(y); }

PB_UNARY_WIDE(tan) { Tan(d, x, y, dy); }
PB_UNARY_SECOND(tan) { d2y = hn::Mul(hn::Add(y, y), dy); }

PB_UNARY_WIDE(arcsin) { Arcsin(d, x, y, dy); }
PB_UNARY_SECOND(arcsin) { d2y = hn::Div(hn::Mul(x, dy), Residual(d, x, x, hn::Set(d, 1))); }

PB_UNARY_WIDE(arccos) { Arccos(d, x, y, dy); }
PB_UNARY_SECOND(arccos) { d2y = hn::Div(hn::Mul(x, dy), Residual(d, x, x, hn::Set(d, 1))); }

PB_UNARY_WIDE(arctan) { Arctan(d, x, y, dy); }
PB_UNARY_SECOND(arctan) { d2y = ArctanSecond(d, x, dy); }

PB_UNARY(square) {
  y = hn::Mul(x, x);
  dy = hn::Add(x, x);
}
PB_UNARY_SECOND(square) { d2y = ConstantUnlessNaN(d, 2, x); }

PB_UNARY(sqrt) { Sqrt(d, x, y, dy); }
PB_UNARY_SECOND(sqrt) { d2y = hn::Div(hn::Mul(dy, hn::Set(d, -0.5)), hn::Abs(x)); }

PB_UNARY_WIDE(cbrt) { Cbrt(d, x, y, dy); }
PB_UNARY_SECOND(cbrt) { d2y = hn::Div(hn::Mul(dy, hn::Set(d, -2.0 / 3)), x); }

PB_UNARY_WIDE(gammaln) {
  y = LogGamma(d, x);
  dy = Digamma(d, x);
}
PB_UNARY_SECOND(gammaln) { d2y = Trigamma(d, x); }

PB_UNARY_WIDE(digamma) {
  y = Digamma(d, x);
  dy = Trigamma(d, x);
}
PB_UNARY_SECOND(digamma) { d2y = Tetragamma(d, x); }

PB_UNARY_WIDE(logit) { Logit(d, x, y, dy); }
PB_UNARY_SECOND(logit) { d2y = LogitSecond(d, x, dy); }

PB_UNARY_WIDE(log1mexp) { Log1mexp(d, x, y, dy); }
PB_UNARY_SECOND(log1mexp) { d2y = hn::Neg(hn::MulAdd(dy, dy, dy)); }

PB_UNARY_WIDE(sinc) { Sinc(d, x, y, dy); }
PB_UNARY_SECOND(sinc) { d2y = SincSecond(d, x, y, dy); }

PB_UNARY_WIDE(ndtr) { Ndtr(d, x, y, dy); }
PB_UNARY_SECOND(ndtr) { d2y = NdtrSecond(d, x); }

PB_UNARY_WIDE(log_ndtr) { LogNdtr(d, x, y, dy); }
PB_UNARY_SECOND(log_ndtr) { d2y = LogNdtrSecond(d, x, dy); }

PB_UNARY_WIDE(ndtri) { Ndtri(d, x, y, dy); }
PB_UNARY_SECOND(ndtri) { d2y = NdtriSecond(d, x, y, dy); }

PB_UNARY_WIDE(erfinv) { Erfinv(d, x, y, dy); }
PB_UNARY_SECOND(erfinv) { d2y = ErfinvSecond(d, x, y, dy); }

PB_UNARY_TABLE_END

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_OPS_UNARY_INL_H_

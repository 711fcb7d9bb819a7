// THE table of unary elementwise ops: one row each, value and derivative together.
#if defined(PULLBACK_CPP_OPS_UNARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_OPS_UNARY_INL_H_
#undef PULLBACK_CPP_OPS_UNARY_INL_H_
#else
#define PULLBACK_CPP_OPS_UNARY_INL_H_
#endif

#include <hwy/highway.h>

#include "math/erf-inl.h"
#include "math/exp-inl.h"
#include "math/inverse_trig-inl.h"
#include "math/log-inl.h"
#include "math/roots-inl.h"
#include "math/sigmoid-inl.h"
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

PB_UNARY(negative) {
  y = hn::Neg(x);
  dy = ConstantUnlessNaN(d, -1, x);
}

PB_UNARY(abs) {
  y = hn::Abs(x);
  const V sign = hn::CopySign(hn::Set(d, 1), x);
  dy = hn::IfThenElse(hn::Gt(y, hn::Zero(d)), sign, y);  // y is 0 or NaN otherwise
}

PB_UNARY_MASKED(relu) {
  const auto inactive = hn::Le(x, hn::Zero(d));
  y = hn::IfThenZeroElse(inactive, x);
  dy = hn::IfThenZeroElse(inactive, ConstantUnlessNaN(d, 1, x));
}

PB_UNARY(exp) { y = dy = Exp(d, x); }

PB_UNARY(expm1) { Expm1(d, x, y, dy); }

PB_UNARY(log) { Log(d, x, y, dy); }

PB_UNARY(sigmoid) { Sigmoid(d, x, y, dy); }

PB_UNARY(tanh) { Tanh(d, x, y, dy); }

PB_UNARY_WIDE(erf) { Erf(d, x, y, dy); }

PB_UNARY_WIDE(erfc) { Erfc(d, x, y, dy); }

PB_UNARY_WIDE(gelu) { Gelu(d, x, y, dy); }

PB_UNARY(sin) { SinCos(d, x, y, dy); }

PB_UNARY(cos) {
  V sin;
  SinCos(d, x, sin, y);
  dy = hn::Neg(sin);
}

PB_UNARY_WIDE(tan) { Tan(d, x, y, dy); }

PB_UNARY_WIDE(arcsin) { Arcsin(d, x, y, dy); }

PB_UNARY_WIDE(arccos) { Arccos(d, x, y, dy); }

PB_UNARY_WIDE(arctan) { Arctan(d, x, y, dy); }

PB_UNARY(square) {
  y = hn::Mul(x, x);
  dy = hn::Add(x, x);
}

PB_UNARY(sqrt) { Sqrt(d, x, y, dy); }

PB_UNARY_TABLE_END

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_OPS_UNARY_INL_H_

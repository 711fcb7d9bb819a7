// THE table of binary elementwise ops: one row each, value and both partial derivatives together.
#if defined(PULLBACK_CPP_OPS_BINARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_OPS_BINARY_INL_H_
#undef PULLBACK_CPP_OPS_BINARY_INL_H_
#else
#define PULLBACK_CPP_OPS_BINARY_INL_H_
#endif

#include <hwy/highway.h>

#include "math/exp-inl.h"
#include "math/inverse_trig-inl.h"
#include "math/log-inl.h"
#include "math/power-inl.h"
#include "math/roots-inl.h"
#include "math/softplus-inl.h"
#include "ops/row.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

PB_BINARY_TABLE

PB_BINARY(add) {
  y = hn::Add(a, b);
  da = db = hn::Set(d, 1);
}
PB_BINARY_SECOND(add) { daa = dab = dbb = hn::Zero(d); }

PB_BINARY(subtract) {
  y = hn::Sub(a, b);
  da = hn::Set(d, 1);
  db = hn::Set(d, -1);
}
PB_BINARY_SECOND(subtract) { daa = dab = dbb = hn::Zero(d); }

PB_BINARY(multiply) {
  y = hn::Mul(a, b);
  da = b;
  db = a;
}
PB_BINARY_SECOND(multiply) {
  daa = dbb = hn::Zero(d);
  dab = hn::Set(d, 1);
}

PB_BINARY(divide) {
  y = hn::Div(a, b);
  DivideDerivatives(d, a, b, da, db);
}
PB_BINARY_SECOND(divide) {
  daa = hn::Zero(d);
  dab = hn::Neg(hn::Div(da, b));
  dbb = TwiceOverCube(d, a, b);
}

PB_BINARY(squared_difference) {
  const V difference = hn::Sub(a, b);
  const V opposite = hn::Sub(b, a);  // +0 at ties too
  y = hn::Mul(difference, difference);
  da = hn::Add(difference, difference);
  db = hn::Add(opposite, opposite);
}
PB_BINARY_SECOND(squared_difference) {
  daa = dbb = hn::Set(d, 2);
  dab = hn::Set(d, -2);
}

PB_BINARY_MASKED(leaky_relu) {
  const auto active = hn::Gt(a, hn::Zero(d));
  y = hn::IfThenElse(active, a, hn::Mul(a, b));
  da = hn::IfThenElse(active, hn::Set(d, 1), hn::IfThenElse(hn::Eq(a, a), b, a));
  db = hn::IfThenZeroElse(active, a);
}
PB_BINARY_SECOND(leaky_relu) {
  daa = dbb = ConstantUnlessNaN(d, 0, a);
  dab = hn::IfThenZeroElse(hn::Gt(a, hn::Zero(d)), ConstantUnlessNaN(d, 1, a));
}

PB_BINARY_WIDE(power) { Power(d, a, b, y, da, db); }
PB_BINARY_SECOND(power) { PowerSecond(d, a, b, daa, dab, dbb); }

PB_BINARY_WIDE(xlogy) { Xlogy(d, a, b, y, da, db); }
PB_BINARY_SECOND(xlogy) { XlogySecond(d, a, b, daa, dab, dbb); }

PB_BINARY_MASKED(greater) {
  y = hn::IfThenElseZero(hn::Gt(a, b), hn::Set(d, 1));
  da = db = hn::Zero(d);
}
PB_BINARY_SECOND(greater) { daa = dab = dbb = hn::Zero(d); }

PB_BINARY_MASKED(greater_equal) {
  y = hn::IfThenElseZero(hn::Ge(a, b), hn::Set(d, 1));
  da = db = hn::Zero(d);
}
PB_BINARY_SECOND(greater_equal) { daa = dab = dbb = hn::Zero(d); }

PB_BINARY_MASKED(less) {
  y = hn::IfThenElseZero(hn::Lt(a, b), hn::Set(d, 1));
  da = db = hn::Zero(d);
}
PB_BINARY_SECOND(less) { daa = dab = dbb = hn::Zero(d); }

PB_BINARY_MASKED(less_equal) {
  y = hn::IfThenElseZero(hn::Le(a, b), hn::Set(d, 1));
  da = db = hn::Zero(d);
}
PB_BINARY_SECOND(less_equal) { daa = dab = dbb = hn::Zero(d); }

PB_BINARY_MASKED(equal) {
  y = hn::IfThenElseZero(hn::Eq(a, b), hn::Set(d, 1));
  da = db = hn::Zero(d);
}
PB_BINARY_SECOND(equal) { daa = dab = dbb = hn::Zero(d); }

PB_BINARY_MASKED(not_equal) {
  y = hn::IfThenZeroElse(hn::Eq(a, b), hn::Set(d, 1));  // of NaN too
  da = db = hn::Zero(d);
}
PB_BINARY_SECOND(not_equal) { daa = dab = dbb = hn::Zero(d); }

PB_BINARY(maximum) {
  const V one = hn::Set(d, 1);
  const auto first = hn::Gt(a, b);
  const auto second = hn::Lt(a, b);
  const auto tie = hn::Eq(a, b);
  const V nan = hn::Add(a, b);  // what is left after >, < and ==
  // And: of +0 and -0 in either order, +0.
  const V equal = hn::IfThenElse(tie, hn::And(a, b), nan);
  y = hn::IfThenElse(first, a, hn::IfThenElse(second, b, equal));
  const V shared = hn::IfThenElse(tie, hn::Set(d, 0.5), nan);
  da = hn::IfThenElse(first, one, hn::IfThenZeroElse(second, shared));
  db = hn::IfThenElse(second, one, hn::IfThenZeroElse(first, shared));
}
PB_BINARY_SECOND(maximum) { daa = dab = dbb = ConstantUnlessNaN(d, 0, da); }

PB_BINARY(minimum) {
  const V one = hn::Set(d, 1);
  const auto first = hn::Lt(a, b);
  const auto second = hn::Gt(a, b);
  const auto tie = hn::Eq(a, b);
  const V nan = hn::Add(a, b);
  // Or: of +0 and -0 in either order, -0.
  const V equal = hn::IfThenElse(tie, hn::Or(a, b), nan);
  y = hn::IfThenElse(first, a, hn::IfThenElse(second, b, equal));
  const V shared = hn::IfThenElse(tie, hn::Set(d, 0.5), nan);
  da = hn::IfThenElse(first, one, hn::IfThenZeroElse(second, shared));
  db = hn::IfThenElse(second, one, hn::IfThenZeroElse(first, shared));
}
PB_BINARY_SECOND(minimum) { daa = dab = dbb = ConstantUnlessNaN(d, 0, da); }

PB_BINARY_WIDE(logaddexp) { LogAddExp(d, a, b, y, da, db); }
PB_BINARY_SECOND(logaddexp) {
  daa = dbb = hn::Mul(da, db);
  dab = hn::Neg(daa);
}

PB_BINARY_MASKED_WIDE(elu) { Elu(d, a, b, y, da, db); }
PB_BINARY_SECOND(elu) {
  daa = hn::IfThenZeroElse(hn::Gt(a, hn::Zero(d)), da);
  dab = EluSlope(d, a);
  dbb = ConstantUnlessNaN(d, 0, a);
}

PB_BINARY_WIDE(hypot) { Hypot(d, a, b, y, da, db); }
PB_BINARY_SECOND(hypot) { HypotSecond(d, a, b, daa, dab, dbb); }

PB_BINARY_WIDE(arctan2) { Arctan2(d, a, b, y, da, db); }
PB_BINARY_SECOND(arctan2) { Arctan2Second(d, a, b, daa, dab, dbb); }

PB_BINARY_TABLE_END

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_OPS_BINARY_INL_H_

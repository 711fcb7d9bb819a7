// THE table of binary elementwise ops: one row each, value and both partial derivatives together.
#if defined(PULLBACK_CPP_OPS_BINARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_OPS_BINARY_INL_H_
#undef PULLBACK_CPP_OPS_BINARY_INL_H_
#else
#define PULLBACK_CPP_OPS_BINARY_INL_H_
#endif

#include <hwy/highway.h>

#include "math/inverse_trig-inl.h"
#include "math/roots-inl.h"
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

PB_BINARY(subtract) {
  y = hn::Sub(a, b);
  da = hn::Set(d, 1);
  db = hn::Set(d, -1);
}

PB_BINARY(multiply) {
  y = hn::Mul(a, b);
  da = b;
  db = a;
}

PB_BINARY(divide) {
  y = hn::Div(a, b);
  DivideDerivatives(d, a, b, da, db);
}

PB_BINARY_MASKED(greater) {
  y = hn::IfThenElseZero(hn::Gt(a, b), hn::Set(d, 1));
  da = db = hn::Zero(d);
}

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

PB_BINARY_WIDE(hypot) { Hypot(d, a, b, y, da, db); }

PB_BINARY_WIDE(arctan2) { Arctan2(d, a, b, y, da, db); }

PB_BINARY_TABLE_END

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // PULLBACK_CPP_OPS_BINARY_INL_H_

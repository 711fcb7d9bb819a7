// The table of pointwise losses: one row per loss l(z, t) of a prediction z and a target t.
//
// A row yields the loss and its first two derivatives in z; loops take what they need.
#if defined(PULLBACK_CPP_OPS_LOSSES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_OPS_LOSSES_INL_H_
#undef PULLBACK_CPP_OPS_LOSSES_INL_H_
#else
#define PULLBACK_CPP_OPS_LOSSES_INL_H_
#endif

#include <hwy/highway.h>

#include "ops/row.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

PB_LOSS_TABLE

// (t - max(0, z))^2. Written on z <= 0 so that a NaN prediction comes through.
PB_LOSS(relu_mse) {
  const auto inactive = hn::Le(z, hn::Zero(d));
  const V residual = hn::Sub(hn::IfThenZeroElse(inactive, z), t);
  loss = hn::Mul(residual, residual);
  dloss = hn::IfThenZeroElse(inactive, hn::Add(residual, residual));
  d2loss = hn::IfThenZeroElse(inactive, hn::Set(d, hn::TFromD<D>(2)));
}

PB_LOSS_TABLE_END

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

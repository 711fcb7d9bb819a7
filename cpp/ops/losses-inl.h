// The table of pointwise losses: one row per loss l(z, t) of a prediction z and a target t.
//
// A row yields the loss and its first two derivatives in z; loops take what they need. NaN
// predictions come through, so that comparisons select the branch that a NaN must not take.
#if defined(PULLBACK_CPP_OPS_LOSSES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_OPS_LOSSES_INL_H_
#undef PULLBACK_CPP_OPS_LOSSES_INL_H_
#else
#define PULLBACK_CPP_OPS_LOSSES_INL_H_
#endif

#include <hwy/highway.h>

#include "math/error_free-inl.h"
#include "math/exp-inl.h"
#include "math/likelihoods-inl.h"
#include "math/sigmoid-inl.h"
#include "math/softplus-inl.h"
#include "ops/row.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class V = hn::Vec<D>>
HWY_INLINE auto IsFinite(D d, V t) {
  return hn::Lt(hn::Abs(t), Infinity(d));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE auto IsShare(D d, V t) {
  return hn::And(hn::Ge(t, hn::Zero(d)), hn::Le(t, hn::Set(d, 1)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE auto IsSign(D d, V t) {
  return hn::Eq(hn::Abs(t), hn::Set(d, 1));
}

// Finite, and positive or, where `too` has all bits set, 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE auto IsPositiveOrZeroIf(D d, V t, V too) {
  const V zero = hn::Zero(d);
  const auto is_zero = hn::And(hn::Eq(t, zero), hn::MaskFromVec(too));
  return hn::And(IsFinite(d, t), hn::Or(hn::Gt(t, zero), is_zero));
}

PB_LOSS_TABLE

PB_LOSS(squared_error, IsFinite(d, t)) {
  const V e = hn::Sub(z, t);
  loss = hn::Mul(e, e);
  dloss = hn::Add(e, e);
  d2loss = ConstantUnlessNaN(d, 2, z);
}

PB_LOSS(relu_mse, IsFinite(d, t)) {
  const auto inactive = hn::Le(z, hn::Zero(d));
  const V e = hn::Sub(hn::IfThenZeroElse(inactive, z), t);
  loss = hn::Mul(e, e);
  dloss = hn::IfThenZeroElse(inactive, hn::Add(e, e));
  d2loss = hn::IfThenZeroElse(inactive, ConstantUnlessNaN(d, 2, z));
}

PB_LOSS(logistic, IsShare(d, t)) { LogisticLoss(d, z, t, loss, dloss, d2loss); }

PB_LOSS(poisson, hn::And(IsFinite(d, t), hn::Ge(t, hn::Zero(d)))) {
  d2loss = Exp(d, z);
  dloss = hn::Sub(d2loss, t);
  // Where the exponential overflows, the linear term, 0 if t is, no longer counts.
  const V linear = hn::IfThenZeroElse(hn::Eq(t, hn::Zero(d)), hn::Mul(t, z));
  loss = hn::IfThenElse(hn::Eq(d2loss, Infinity(d)), d2loss, hn::Sub(d2loss, linear));
}

PB_LOSS(gamma, hn::And(IsFinite(d, t), hn::Gt(t, hn::Zero(d)))) {
  d2loss = TimesExp(d, t, hn::Neg(z));
  dloss = hn::Sub(hn::Set(d, 1), d2loss);
  loss = hn::IfThenElse(hn::Eq(d2loss, Infinity(d)), d2loss, hn::Add(z, d2loss));
}

PB_LOSS(huber, IsFinite(d, t)) {
  const V e = hn::Sub(z, t);
  const V size = hn::Abs(e);
  const V half = hn::Set(d, 0.5);
  const auto outer = hn::Gt(size, parameter);
  const V square = hn::Mul(hn::Mul(half, e), e);
  loss = hn::IfThenElse(outer, hn::Mul(parameter, hn::NegMulAdd(half, parameter, size)), square);
  // Not CopySign: clang 19 gets its blend with e wrong on AVX-512.
  const V slope = hn::IfThenElse(hn::Lt(e, hn::Zero(d)), hn::Neg(parameter), parameter);
  dloss = hn::IfThenElse(outer, slope, e);
  d2loss = hn::IfThenZeroElse(outer, ConstantUnlessNaN(d, 1, e));
}

PB_LOSS(quantile, IsFinite(d, t)) {
  const V e = hn::Sub(t, z);
  const V zero = hn::Zero(d);
  const V under = hn::IfThenElse(hn::Lt(e, zero), hn::Sub(parameter, hn::Set(d, 1)), parameter);
  loss = hn::Abs(hn::Mul(under, e));  // of a tie of zeros, too
  const V size = hn::Abs(e);          // 0 or NaN at no slope
  dloss = hn::IfThenElse(hn::Gt(size, zero), hn::Neg(under), size);
  d2loss = ConstantUnlessNaN(d, 0, z);
}

PB_LOSS(hinge, IsSign(d, t)) {
  const V margin = hn::Mul(t, z);
  const auto inactive = hn::Ge(margin, hn::Set(d, 1));
  loss = hn::IfThenZeroElse(inactive, hn::Sub(hn::Set(d, 1), margin));
  dloss = hn::IfThenZeroElse(inactive, hn::IfThenElse(hn::Eq(z, z), hn::Neg(t), z));
  d2loss = ConstantUnlessNaN(d, 0, z);
}

PB_LOSS(squared_hinge, IsSign(d, t)) {
  const V margin = hn::Mul(t, z);
  const auto inactive = hn::Ge(margin, hn::Set(d, 1));
  const V slack = hn::IfThenZeroElse(inactive, hn::Sub(hn::Set(d, 1), margin));
  loss = hn::Mul(slack, slack);
  dloss = hn::IfThenZeroElse(inactive, hn::Mul(hn::Mul(hn::Set(d, -2), t), slack));
  d2loss = hn::IfThenZeroElse(inactive, ConstantUnlessNaN(d, 2, z));
}

PB_LOSS(exponential, IsSign(d, t)) {
  loss = d2loss = Exp(d, hn::Neg(hn::Mul(t, z)));
  dloss = hn::Neg(hn::Mul(t, loss));
}

PB_LOSS(log_cosh, IsFinite(d, t)) { LogCosh(d, z, t, loss, dloss, d2loss); }

PB_LOSS_OF(tweedie, MakeTweedieConstants, IsPositiveOrZeroIf(d, t, parameter.below_2)) {
  Tweedie(d, z, t, parameter, loss, dloss, d2loss);
}

PB_LOSS(inverse_gaussian, hn::And(IsFinite(d, t), hn::Gt(t, hn::Zero(d)))) {
  InverseGaussian(d, z, t, loss, dloss, d2loss);
}

PB_LOSS_OF(negative_binomial, MakeNegativeBinomialConstants,
           hn::And(IsFinite(d, t), hn::Ge(t, hn::Zero(d)))) {
  NegativeBinomial(d, z, t, parameter, loss, dloss, d2loss);
}

PB_LOSS(probit, IsShare(d, t)) { Probit(d, z, t, loss, dloss, d2loss); }

PB_LOSS(cloglog, IsShare(d, t)) { CLogLog(d, z, t, loss, dloss, d2loss); }

PB_LOSS_TABLE_END

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

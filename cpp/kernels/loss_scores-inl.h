// Scores: from a chunk's predictions and targets to loss, slopes and curvature.
#if defined(PULLBACK_CPP_KERNELS_LOSS_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_LOSS_SCORES_INL_H_
#undef PULLBACK_CPP_KERNELS_LOSS_SCORES_INL_H_
#else
#define PULLBACK_CPP_KERNELS_LOSS_SCORES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/load-inl.h"
#include "kernels/losses.h"
#include "ops/losses-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// `count` elements from the i-th on: all but those of the driver's own, padded arrays.
template <class D>
HWY_INLINE hn::Vec<D> LoadSome(D d, const double* p, size_t i, size_t count) {
  return HWY_LIKELY(count == hn::Lanes(d)) ? hn::LoadU(d, p + i) : LoadTail(d, p + i, count);
}

template <class D>
HWY_INLINE void StoreSome(hn::Vec<D> v, D d, double* p, size_t i, size_t count) {
  if (HWY_LIKELY(count == hn::Lanes(d))) {
    hn::StoreU(v, d, p + i);
  } else {
    StoreTail(v, d, p + i, count);
  }
}

template <class D>
HWY_INLINE hn::Vec<D> LoadTargets(D d, const ScoreChunk& chunk, size_t i, size_t count) {
  if (chunk.y_type == TargetType::kFloat64) {
    return LoadSome(d, static_cast<const double*>(chunk.y), i, count);
  }
  const hn::Rebind<float, D> df;
  const float* const y = static_cast<const float*>(chunk.y) + i;
  return hn::PromoteTo(
      d, HWY_LIKELY(count == hn::Lanes(d)) ? hn::LoadU(df, y) : LoadTail(df, y, count));
}

template <class Row>
HWY_NOINLINE size_t FirstOutsideDomain(const ScoreChunk& chunk) {
  const hn::CappedTag<double, 1> d;
  for (size_t i = 0; i < chunk.rows * chunk.outputs; ++i) {
    if (!hn::AllTrue(d, Row::Domain(d, LoadTargets(d, chunk, i, 1)))) return i / chunk.outputs;
  }
  return kNoRow;
}

template <class Row, Wanted kWanted>
void ScorePointwise(ScoreChunk& chunk) {
  const hn::ScalableTag<double> d;
  using V = hn::Vec<decltype(d)>;
  const size_t n = chunk.rows * chunk.outputs;
  const V parameter = hn::Set(d, chunk.parameter);
  V loss_sum = hn::Zero(d);
  V within = hn::VecFromMask(d, hn::Eq(loss_sum, loss_sum));
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const size_t count = std::min(hn::Lanes(d), n - i);
    const V t = LoadTargets(d, chunk, i, count);
    V loss, dloss, d2loss;
    Row::Eval(d, hn::LoadU(d, chunk.z + i), t, parameter, loss, dloss, d2loss);
    auto domain = Row::Domain(d, t);
    loss = hn::IfThenElse(domain, loss, hn::NaN(d));
    dloss = hn::IfThenElse(domain, dloss, hn::NaN(d));
    d2loss = hn::IfThenElse(domain, d2loss, hn::NaN(d));
    if (HWY_UNLIKELY(count < hn::Lanes(d))) {
      const auto present = hn::FirstN(d, count);
      loss = hn::IfThenElseZero(present, loss);
      domain = hn::Or(domain, hn::Not(present));
    }
    within = hn::And(within, hn::VecFromMask(d, domain));
    if (kWanted == Wanted::kCurvature || kWanted == Wanted::kAll) {
      StoreSome(d2loss, d, chunk.curvature, i, count);
    }
    if (kWanted == Wanted::kCurvature) continue;
    if (chunk.loss != nullptr) hn::StoreU(loss, d, chunk.loss + i);
    if (chunk.weight != nullptr) {
      const V weight = LoadSome(d, chunk.weight, i, count);
      loss = hn::Mul(loss, weight);
      dloss = hn::Mul(dloss, weight);
    }
    loss_sum = hn::Add(loss_sum, loss);
    if (kWanted != Wanted::kLoss) hn::StoreU(dloss, d, chunk.slope + i);
  }
  chunk.loss_sum = SumLanes(d, loss_sum);
  chunk.bad_row =
      HWY_LIKELY(hn::AllTrue(d, hn::MaskFromVec(within))) ? kNoRow : FirstOutsideDomain<Row>(chunk);
}

inline void CurvePointwise(const ScoreChunk& chunk, const double* curvature,
                           const double* direction) {
  const hn::ScalableTag<double> d;
  const size_t n = chunk.rows * chunk.outputs;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const size_t count = std::min(hn::Lanes(d), n - i);
    auto slope = hn::Mul(LoadSome(d, curvature, i, count), hn::LoadU(d, direction + i));
    if (chunk.weight != nullptr) slope = hn::Mul(slope, LoadSome(d, chunk.weight, i, count));
    hn::StoreU(slope, d, chunk.slope + i);
  }
}

template <class Row>
inline constexpr LossKernels kPointwiseLoss = {
    Row::kName,
    false,
    {ScorePointwise<Row, Wanted::kLoss>, ScorePointwise<Row, Wanted::kSlope>,
     ScorePointwise<Row, Wanted::kCurvature>, ScorePointwise<Row, Wanted::kAll>},
    CurvePointwise};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

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

// `count` elements from the i-th on; those of the driver's own arrays are padded.
template <class D>
HWY_INLINE void StoreSome(hn::Vec<D> v, D d, double* p, size_t i, size_t count) {
  if (HWY_LIKELY(count == hn::Lanes(d))) {
    hn::StoreU(v, d, p + i);
  } else {
    StoreTail(v, d, p + i, count);
  }
}

// value * weight, 0 for a weight of 0, whatever the value.
template <class V>
HWY_INLINE V Weighted(V value, V weight) {
  return hn::IfThenZeroElse(hn::Eq(weight, hn::Zero(hn::DFromV<V>())), hn::Mul(value, weight));
}

template <class D>
HWY_INLINE hn::Vec<D> LoadTargets(D d, const ScoreChunk& chunk, size_t i, size_t count) {
  return chunk.y_type == TargetType::kFloat64
             ? LoadSome(d, static_cast<const double*>(chunk.y) + i, count)
             : LoadSome(d, static_cast<const float*>(chunk.y) + i, count);
}

template <class Row>
HWY_NOINLINE size_t FirstOutsideDomain(const ScoreChunk& chunk) {
  const hn::CappedTag<double, 1> d;
  const auto parameter = Row::Made(d, chunk.parameter);
  for (size_t i = 0; i < chunk.rows * chunk.outputs; ++i) {
    if (chunk.weight != nullptr && chunk.weight[i] == 0) continue;
    if (!hn::AllTrue(d, Row::Domain(d, LoadTargets(d, chunk, i, 1), parameter))) {
      return i / chunk.outputs;
    }
  }
  return kNoRow;
}

template <class Row, Wanted kWanted>
class PointwiseScore {
 public:
  static void Run(ScoreChunk& chunk) {
    const size_t n = chunk.rows * chunk.outputs;
    PointwiseScore score(chunk);
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) score.Add(i, kLanes);
    if (i < n) score.Add(i, n - i);
    const D d;
    chunk.loss_sum = SumLanes(d, score.loss_sum_);
    chunk.bad_row = HWY_LIKELY(hn::AllTrue(d, hn::MaskFromVec(score.within_)))
                        ? kNoRow
                        : FirstOutsideDomain<Row>(chunk);
  }

 private:
  using D = hn::ScalableTag<double>;
  using V = hn::Vec<D>;
  static constexpr size_t kLanes = hn::MaxLanes(D());
  static constexpr bool kLoss = kWanted != Wanted::kCurvature;
  static constexpr bool kSlope = kWanted == Wanted::kSlope;
  static constexpr bool kCurvature = kWanted == Wanted::kCurvature;

  HWY_INLINE explicit PointwiseScore(const ScoreChunk& chunk)
      : chunk_(chunk),
        parameter_(Row::Made(D(), chunk.parameter)),
        loss_sum_(hn::Zero(D())),
        within_(hn::VecFromMask(D(), hn::Eq(loss_sum_, loss_sum_))) {}

  HWY_INLINE void Add(size_t i, size_t count) {
    const D d;
    const V t = LoadTargets(d, chunk_, i, count);
    V loss, dloss, d2loss;
    Row::Eval(d, hn::LoadU(d, chunk_.z + i), t, parameter_, loss, dloss, d2loss);
    V domain = hn::VecFromMask(d, Row::Domain(d, t, parameter_));
    // All bits set in place of a number are a NaN.
    const V outside = hn::Not(domain);
    loss = hn::Or(loss, outside);
    dloss = hn::Or(dloss, outside);
    d2loss = hn::Or(d2loss, outside);
    if (HWY_UNLIKELY(count < kLanes)) {
      const auto present = hn::FirstN(d, count);
      loss = hn::IfThenElseZero(present, loss);
      domain = hn::Or(domain, hn::VecFromMask(d, hn::Not(present)));
    }
    within_ = hn::And(within_, domain);
    if (kCurvature) StoreSome(d2loss, d, chunk_.curvature, i, count);
    if (kLoss && chunk_.loss != nullptr) hn::StoreU(loss, d, chunk_.loss + i);
    if (kLoss && chunk_.weight != nullptr) {
      const V weight = LoadSome(d, chunk_.weight + i, count);
      loss = Weighted(loss, weight);
      dloss = Weighted(dloss, weight);
    }
    if (kLoss) loss_sum_ = hn::Add(loss_sum_, loss);
    if (kSlope) hn::StoreU(dloss, d, chunk_.slope + i);
  }

  const ScoreChunk& chunk_;
  const decltype(Row::Made(D(), 0.0)) parameter_;
  V loss_sum_, within_;
};

inline void CurvePointwise(const ScoreChunk& chunk, const double* curvature,
                           const double* direction) {
  const hn::ScalableTag<double> d;
  const size_t lanes = hn::Lanes(d), n = chunk.rows * chunk.outputs;
  const auto at = [&](size_t i, size_t count) HWY_ATTR {
    const auto second = LoadSome(d, curvature + i, count), change = hn::LoadU(d, direction + i);
    // Where the curvature overflowed, a prediction that does not change adds nothing.
    const auto none = hn::And(hn::Eq(change, hn::Zero(d)), hn::Eq(second, Infinity(d)));
    auto slope = hn::IfThenZeroElse(none, hn::Mul(second, change));
    if (chunk.weight != nullptr) slope = Weighted(slope, LoadSome(d, chunk.weight + i, count));
    hn::StoreU(slope, d, chunk.slope + i);
  };
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) at(i, lanes);
  if (i < n) at(i, n - i);
}

template <class Row>
inline constexpr LossKernels kPointwiseLoss = {
    Row::kName,
    false,
    {PointwiseScore<Row, Wanted::kLoss>::Run, PointwiseScore<Row, Wanted::kSlope>::Run,
     PointwiseScore<Row, Wanted::kCurvature>::Run},
    CurvePointwise};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

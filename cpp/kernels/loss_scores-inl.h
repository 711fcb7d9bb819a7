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

template <class D>
HWY_INLINE hn::Vec<D> LoadTargets(D d, const ScoreChunk& chunk, size_t i, size_t count) {
  return chunk.y_type == TargetType::kFloat64
             ? LoadSome(d, static_cast<const double*>(chunk.y) + i, count)
             : LoadSome(d, static_cast<const float*>(chunk.y) + i, count);
}

template <class Row>
HWY_NOINLINE size_t FirstOutsideDomain(const ScoreChunk& chunk) {
  const hn::CappedTag<double, 1> d;
  for (size_t i = 0; i < chunk.rows * chunk.outputs; ++i) {
    if (!hn::AllTrue(d, Row::Domain(d, LoadTargets(d, chunk, i, 1)))) return i / chunk.outputs;
  }
  return kNoRow;
}

// Whole vectors alone are scored, so that a row of the table is compiled once for each of its jobs:
// the last elements pass a block of their own.
template <class Row, Wanted kWanted>
class PointwiseScore {
 public:
  static void Run(ScoreChunk& chunk) {
    const D d;
    const size_t n = chunk.rows * chunk.outputs, whole = n / kLanes * kLanes, left = n - whole;
    V loss_sum = hn::Zero(d);
    V within = hn::VecFromMask(d, hn::Eq(loss_sum, loss_sum));
    Add(chunk, whole, within, loss_sum, within);
    if (left != 0) {
      HWY_ALIGN double y[kLanes], weight[kLanes], curvature[kLanes];
      const auto present = hn::FirstN(d, left);
      const V t = LoadTargets(d, chunk, whole, left);
      hn::Store(hn::IfThenElse(present, t, hn::Set(d, hn::GetLane(t))), d, y);
      ScoreChunk rest = chunk;
      rest.y = y;
      rest.y_type = TargetType::kFloat64;
      rest.z += whole;
      rest.slope += whole;
      if (rest.loss != nullptr) rest.loss += whole;
      if (rest.weight != nullptr) {
        hn::Store(LoadSome(d, chunk.weight + whole, left), d, weight);
        rest.weight = weight;
      }
      rest.curvature = curvature;
      Add(rest, kLanes, hn::VecFromMask(d, present), loss_sum, within);
      if (kCurvature) std::copy_n(curvature, left, chunk.curvature + whole);
    }
    chunk.loss_sum = SumLanes(d, loss_sum);
    chunk.bad_row = HWY_LIKELY(hn::AllTrue(d, hn::MaskFromVec(within)))
                        ? kNoRow
                        : FirstOutsideDomain<Row>(chunk);
  }

 private:
  using D = hn::ScalableTag<double>;
  using V = hn::Vec<D>;
  static constexpr size_t kLanes = hn::MaxLanes(D());
  static constexpr bool kLoss = kWanted != Wanted::kCurvature;
  static constexpr bool kSlope = kWanted == Wanted::kSlope || kWanted == Wanted::kAll;
  static constexpr bool kCurvature = kWanted == Wanted::kCurvature || kWanted == Wanted::kAll;

  // Scores whole vectors, of whose losses those that are `present` are added up.
  static HWY_NOINLINE void Add(const ScoreChunk& chunk, size_t n, const V& present, V& sum,
                               V& all_within) {
    const D d;
    const V parameter = hn::Set(d, chunk.parameter), counted = present;
    V loss_sum = sum, within = all_within;
    for (size_t i = 0; i < n; i += kLanes) {
      const V t = LoadTargets(d, chunk, i, kLanes);
      V loss, dloss, d2loss;
      Row::Eval(d, hn::LoadU(d, chunk.z + i), t, parameter, loss, dloss, d2loss);
      const V domain = hn::VecFromMask(d, Row::Domain(d, t));
      within = hn::And(within, domain);
      // All bits set in place of a number are a NaN.
      const V outside = hn::Not(domain);
      loss = hn::Or(loss, outside);
      dloss = hn::Or(dloss, outside);
      d2loss = hn::Or(d2loss, outside);
      if (kCurvature) hn::StoreU(d2loss, d, chunk.curvature + i);
      if (kLoss && chunk.loss != nullptr) hn::StoreU(loss, d, chunk.loss + i);
      if (kLoss && chunk.weight != nullptr) {
        const V weight = hn::LoadU(d, chunk.weight + i);
        loss = hn::Mul(loss, weight);
        dloss = hn::Mul(dloss, weight);
      }
      if (kLoss) loss_sum = hn::Add(loss_sum, hn::And(counted, loss));
      if (kSlope) hn::StoreU(dloss, d, chunk.slope + i);
    }
    sum = loss_sum;
    all_within = within;
  }
};

inline void CurvePointwise(const ScoreChunk& chunk, const double* curvature,
                           const double* direction) {
  const hn::ScalableTag<double> d;
  const size_t n = chunk.rows * chunk.outputs;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const size_t count = std::min(hn::Lanes(d), n - i);
    auto slope = hn::Mul(LoadSome(d, curvature + i, count), hn::LoadU(d, direction + i));
    if (chunk.weight != nullptr) slope = hn::Mul(slope, LoadSome(d, chunk.weight + i, count));
    hn::StoreU(slope, d, chunk.slope + i);
  }
}

template <class Row>
inline constexpr LossKernels kPointwiseLoss = {
    Row::kName,
    false,
    {PointwiseScore<Row, Wanted::kLoss>::Run, PointwiseScore<Row, Wanted::kSlope>::Run,
     PointwiseScore<Row, Wanted::kCurvature>::Run, PointwiseScore<Row, Wanted::kAll>::Run},
    CurvePointwise};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

// The score of softmax_cross_entropy, whose classes are the outputs of a row.
//
// Lanes are rows: a square of as many rows and classes is transposed on its way in and out, so that
// maxima and sums over the classes are plain operations on vectors. Nothing cancels: with m the
// largest prediction's class, e_k = exp(z_k - z_m) and rest = sum_{k != m} e_k,
//   log sum exp z - z_m = log1p(rest),
//   p_k - y_k = (e_k sum_{i != k} y_i - y_k sum_{i != k} e_i) / (1 + rest)   for sum y = 1,
// where a sum without its k-th term is at least half of the whole but for the largest term, and
// that one's is summed by itself.
#if defined(PULLBACK_CPP_KERNELS_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_SOFTMAX_INL_H_
#undef PULLBACK_CPP_KERNELS_SOFTMAX_INL_H_
#else
#define PULLBACK_CPP_KERNELS_SOFTMAX_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/dense-inl.h"
#include "kernels/load-inl.h"
#include "kernels/losses.h"
#include "math/exp-inl.h"
#include "math/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using SoftmaxTag = hn::CappedTag<double, 4>;
constexpr size_t kSoftmaxLanes = hn::MaxLanes(SoftmaxTag());

// One group of rows: as many as a vector has lanes, or the last ones. Arrays are (rows, classes).
class SoftmaxGroup {
 public:
  using D = SoftmaxTag;
  using V = hn::Vec<D>;
  using Square = std::array<V, kSoftmaxLanes>;  // by class; lanes are rows

  HWY_INLINE SoftmaxGroup(const ScoreChunk& chunk, size_t row)
      : row_(row), count_(std::min(kSoftmaxLanes, chunk.rows - row)), classes_(chunk.outputs) {}

  HWY_INLINE size_t Row() const { return row_; }
  HWY_INLINE size_t Count() const { return count_; }
  HWY_INLINE size_t Classes() const { return classes_; }

  // Of classes k, k + 1, ...
  template <typename T>
  HWY_INLINE Square Load(const T* p, size_t k) const {
    const size_t some = Some(k);
    Square square;
    PB_UNROLL
    for (size_t r = 0; r < kSoftmaxLanes; ++r) {
      const T* const from = p + (row_ + std::min(r, count_ - 1)) * classes_ + k;
      square[r] = HWY_LIKELY(some == kSoftmaxLanes) ? Loader<D, T>::Whole(from)
                                                    : Loader<D, T>::Part(from, some);
    }
    Transpose(D(), square);
    return square;
  }

  HWY_INLINE void Store(Square square, double* p, size_t k) const {
    Transpose(D(), square);
    PB_UNROLL
    for (size_t r = 0; r < kSoftmaxLanes; ++r) {
      if (r < count_) StoreFirst(square[r], D(), p + (row_ + r) * classes_ + k, Some(k));
    }
  }

  // Those of Load(k) that exist.
  HWY_INLINE size_t Some(size_t k) const { return std::min(kSoftmaxLanes, classes_ - k); }

  // Of an array that repeats each row's value `classes` times, or null for all 1.
  HWY_INLINE V Weights(const double* weight) const {
    const D d;
    if (weight == nullptr) return hn::Set(d, 1);
    HWY_ALIGN double lanes[kSoftmaxLanes];
    for (size_t r = 0; r < kSoftmaxLanes; ++r) {
      lanes[r] = weight[(row_ + std::min(r, count_ - 1)) * classes_];
    }
    return hn::Load(d, lanes);
  }

 private:
  const size_t row_, count_, classes_;
};

// The largest class of each row, the first of equal ones.
template <class V>
struct Largest {
  V value, at;
};

template <class D, class V = hn::Vec<D>>
HWY_INLINE void Update(D d, Largest<V>& largest, V value, size_t k) {
  const auto larger = hn::Gt(value, largest.value);
  largest.value = hn::IfThenElse(larger, value, largest.value);
  largest.at = hn::IfThenElse(larger, hn::Set(d, static_cast<double>(k)), largest.at);
}

// A group's targets: their sum, and what tells the sum of all but one.
template <typename T>
class SoftmaxTargets {
 public:
  using D = SoftmaxTag;
  using V = hn::Vec<D>;
  using Square = SoftmaxGroup::Square;
  static constexpr bool kLabels = std::is_same_v<T, int64_t>;

  HWY_INLINE SoftmaxTargets(const ScoreChunk& chunk, const SoftmaxGroup& group)
      : y_(static_cast<const T*>(chunk.y)), group_(group) {
    const D d;
    const V one = hn::Set(d, 1);
    if constexpr (kLabels) {
      HWY_ALIGN double label[kSoftmaxLanes];
      for (size_t r = 0; r < kSoftmaxLanes; ++r) {
        const int64_t y = y_[group.Row() + std::min(r, group.Count() - 1)];
        label[r] = static_cast<uint64_t>(y) < group.Classes() ? static_cast<double>(y) : -1.0;
      }
      largest_ = {one, hn::Load(d, label)};
      sum_ = one;
      others_ = hn::Zero(d);
      good_ = hn::IfThenElse(hn::Ge(largest_.at, others_), one, hn::NaN(d));
    } else {
      largest_ = {hn::Set(d, -1), hn::Zero(d)};
      V least = one;
      sum_ = hn::Zero(d);
      for (size_t k = 0; k < group.Classes(); k += kSoftmaxLanes) {
        const Square y = group.Load(y_, k);
        for (size_t i = 0; i < group.Some(k); ++i) {
          Update(d, largest_, y[i], k + i);
          least = hn::IfThenElse(hn::Ge(y[i], least), least, y[i]);  // NaN is not above anything
          sum_ = hn::Add(sum_, y[i]);
        }
      }
      others_ = hn::Zero(d);
      for (size_t k = 0; k < group.Classes(); k += kSoftmaxLanes) {
        const Square y = group.Load(y_, k);
        for (size_t i = 0; i < group.Some(k); ++i) {
          others_ = hn::Add(others_, hn::IfThenZeroElse(IsLargest(k + i), y[i]));
        }
      }
      const auto good = hn::And(hn::Ge(least, hn::Zero(d)),
                                hn::Le(hn::Abs(hn::Sub(sum_, one)), hn::Set(d, kTolerance)));
      good_ = hn::IfThenElse(good, one, hn::NaN(d));
    }
  }

  HWY_INLINE Square Load(size_t k) const {
    if constexpr (kLabels) {
      Square y;
      PB_UNROLL
      for (size_t i = 0; i < kSoftmaxLanes; ++i) {
        y[i] = hn::IfThenElseZero(IsLargest(k + i), largest_.value);
      }
      return y;
    } else {
      return group_.Load(y_, k);
    }
  }

  HWY_INLINE V Sum() const { return sum_; }
  // The sum of all but y, that of class k.
  HWY_INLINE V SumWithout(V y, size_t k) const {
    return hn::IfThenElse(IsLargest(k), others_, hn::Sub(sum_, y));
  }
  // 1, or NaN for a row outside the domain.
  HWY_INLINE V Good() const { return good_; }

  // The first bad one of the group's rows, which has one.
  HWY_INLINE size_t FirstBad() const {
    HWY_ALIGN double good[kSoftmaxLanes];
    hn::Store(good_, D(), good);
    size_t r = 0;
    while (r + 1 < group_.Count() && good[r] == 1) ++r;
    return group_.Row() + r;
  }

 private:
  static constexpr double kTolerance = 1e-5;

  HWY_INLINE auto IsLargest(size_t k) const {
    return hn::Eq(largest_.at, hn::Set(D(), static_cast<double>(k)));
  }

  const T* const y_;
  const SoftmaxGroup& group_;
  Largest<V> largest_;
  V sum_, others_, good_;
};

template <typename T, Wanted kWanted>
HWY_INLINE void ScoreSoftmax(ScoreChunk& chunk) {
  const SoftmaxTag d;
  using V = hn::Vec<SoftmaxTag>;
  const V zero = hn::Zero(d), one = hn::Set(d, 1);
  // The exponentials wait where the result will be.
  double* const exponentials = kWanted == Wanted::kCurvature ? chunk.curvature : chunk.slope;
  V loss_sum = zero;
  chunk.bad_row = kNoRow;
  for (size_t row = 0; row < chunk.rows; row += kSoftmaxLanes) {
    const SoftmaxGroup group(chunk, row);
    const SoftmaxTargets<T> targets(chunk, group);
    const V good = targets.Good();
    if (HWY_UNLIKELY(chunk.bad_row == kNoRow && !hn::AllTrue(d, hn::Eq(good, good)))) {
      chunk.bad_row = targets.FirstBad();
    }

    Largest<V> largest{hn::Neg(Infinity(d)), zero};
    for (size_t k = 0; k < chunk.outputs; k += kSoftmaxLanes) {
      const auto z = group.Load(chunk.z, k);
      for (size_t i = 0; i < group.Some(k); ++i) {
        Update(d, largest, z[i], k + i);
      }
    }

    V rest = zero, distance = zero;
    for (size_t k = 0; k < chunk.outputs; k += kSoftmaxLanes) {
      auto z = group.Load(chunk.z, k);
      const auto y = targets.Load(k);
      for (size_t i = 0; i < group.Some(k); ++i) {
        const auto is_largest = hn::Eq(largest.at, hn::Set(d, static_cast<double>(k + i)));
        if (kWanted != Wanted::kCurvature) {
          const auto none = hn::Or(is_largest, hn::Eq(y[i], zero));
          const V term = hn::Mul(y[i], hn::Sub(largest.value, z[i]));
          distance = hn::Add(distance, hn::IfThenZeroElse(none, term));
        }
        const V e = ExpBelow(d, z[i], largest.value);
        rest = hn::Add(rest, hn::IfThenZeroElse(is_largest, e));
        z[i] = hn::IfThenElse(is_largest, one, e);
      }
      if (kWanted != Wanted::kLoss) group.Store(z, exponentials, k);
    }
    const V sum = hn::Add(one, rest);
    const V weight = hn::Mul(group.Weights(chunk.weight), good);

    if (kWanted != Wanted::kCurvature) {
      V log1p, unused;
      Log1p(d, rest, log1p, unused);
      V loss = hn::MulAdd(targets.Sum(), log1p, distance);
      if (chunk.loss != nullptr) {
        StoreFirst(hn::Mul(loss, good), d, chunk.loss + row, group.Count());
      }
      loss = hn::Mul(loss, weight);
      if (HWY_UNLIKELY(group.Count() < kSoftmaxLanes)) {
        loss = hn::IfThenElseZero(hn::FirstN(d, group.Count()), loss);
      }
      loss_sum = hn::Add(loss_sum, loss);
    }
    if (kWanted == Wanted::kLoss) continue;

    for (size_t k = 0; k < chunk.outputs; k += kSoftmaxLanes) {
      auto e = group.Load(exponentials, k);
      const auto y = targets.Load(k);
      auto slope = e;
      for (size_t i = 0; i < group.Some(k); ++i) {
        const auto is_largest = hn::Eq(largest.at, hn::Set(d, static_cast<double>(k + i)));
        const V others = hn::IfThenElse(is_largest, rest, hn::Sub(sum, e[i]));
        const V product = hn::Mul(y[i], others);
        slope[i] = hn::Mul(hn::Div(hn::MulSub(e[i], targets.SumWithout(y[i], k + i), product), sum),
                           weight);
        e[i] = hn::Mul(hn::Div(e[i], sum), good);
      }
      if (kWanted != Wanted::kSlope) group.Store(e, chunk.curvature, k);
      if (kWanted != Wanted::kCurvature) group.Store(slope, chunk.slope, k);
    }
  }
  chunk.loss_sum = SumLanes(d, loss_sum);
}

// slope = weight * s * (p o v - p <p, v>) with s the sum of the targets, by v's distances from that
// of the most probable class: those lose nothing.
template <typename T>
HWY_INLINE void CurveSoftmax(const ScoreChunk& chunk, const double* p, const double* v) {
  const SoftmaxTag d;
  using V = hn::Vec<SoftmaxTag>;
  const V zero = hn::Zero(d);
  for (size_t row = 0; row < chunk.rows; row += kSoftmaxLanes) {
    const SoftmaxGroup group(chunk, row);
    const SoftmaxTargets<T> targets(chunk, group);
    Largest<V> largest{hn::Set(d, -1), zero};
    V center = zero;
    for (size_t k = 0; k < chunk.outputs; k += kSoftmaxLanes) {
      const auto probability = group.Load(p, k);
      const auto direction = group.Load(v, k);
      for (size_t i = 0; i < group.Some(k); ++i) {
        const auto larger = hn::Gt(probability[i], largest.value);
        center = hn::IfThenElse(larger, direction[i], center);
        Update(d, largest, probability[i], k + i);
      }
    }
    V mean = zero;
    for (size_t k = 0; k < chunk.outputs; k += kSoftmaxLanes) {
      const auto probability = group.Load(p, k);
      const auto direction = group.Load(v, k);
      for (size_t i = 0; i < group.Some(k); ++i) {
        mean = hn::MulAdd(probability[i], hn::Sub(direction[i], center), mean);
      }
    }
    const V factor = hn::Mul(hn::Mul(group.Weights(chunk.weight), targets.Sum()), targets.Good());
    for (size_t k = 0; k < chunk.outputs; k += kSoftmaxLanes) {
      const auto probability = group.Load(p, k);
      auto direction = group.Load(v, k);
      for (size_t i = 0; i < group.Some(k); ++i) {
        const V distance = hn::Sub(hn::Sub(direction[i], center), mean);
        direction[i] = hn::Mul(hn::Mul(probability[i], distance), factor);
      }
      group.Store(direction, chunk.slope, k);
    }
  }
}

template <Wanted kWanted>
void ScoreSoftmaxCrossEntropy(ScoreChunk& chunk) {
  switch (chunk.y_type) {
    case TargetType::kLabel:
      return ScoreSoftmax<int64_t, kWanted>(chunk);
    case TargetType::kFloat32:
      return ScoreSoftmax<float, kWanted>(chunk);
    case TargetType::kFloat64:
      return ScoreSoftmax<double, kWanted>(chunk);
  }
}

inline void CurveSoftmaxCrossEntropy(const ScoreChunk& chunk, const double* p, const double* v) {
  switch (chunk.y_type) {
    case TargetType::kLabel:
      return CurveSoftmax<int64_t>(chunk, p, v);
    case TargetType::kFloat32:
      return CurveSoftmax<float>(chunk, p, v);
    case TargetType::kFloat64:
      return CurveSoftmax<double>(chunk, p, v);
  }
}

inline constexpr LossKernels kSoftmaxCrossEntropy = {
    "softmax_cross_entropy",
    true,
    {ScoreSoftmaxCrossEntropy<Wanted::kLoss>, ScoreSoftmaxCrossEntropy<Wanted::kSlope>,
     ScoreSoftmaxCrossEntropy<Wanted::kCurvature>, ScoreSoftmaxCrossEntropy<Wanted::kAll>},
    CurveSoftmaxCrossEntropy};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

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

using SoftmaxTag = hn::CappedTag<double, 8>;
constexpr size_t kSoftmaxLanes = hn::MaxLanes(SoftmaxTag());
// Classes that are transposed at once, which stay in registers where there are no more. Losses are
// summed in as many lanes.
using SquareTag = hn::CappedTag<double, 4>;
constexpr size_t kSquareSide = hn::MaxLanes(SquareTag());
static_assert(kSoftmaxLanes == (HWY_CAP_GE512 ? 2 : 1) * kSquareSide);

// One group of rows: as many as a vector has lanes, or the last ones. Arrays are (rows, classes).
class SoftmaxGroup {
 public:
  using D = SoftmaxTag;
  using V = hn::Vec<D>;
  using Classes = std::array<V, kSquareSide>;  // lanes are rows

  HWY_INLINE SoftmaxGroup(const ScoreChunk& chunk, size_t row)
      : row_(row), count_(std::min(kSoftmaxLanes, chunk.rows - row)), classes_(chunk.outputs) {}

  HWY_INLINE size_t Row() const { return row_; }
  HWY_INLINE size_t Count() const { return count_; }
  HWY_INLINE size_t NumClasses() const { return classes_; }

  // Of classes k, k + 1, ...
  template <typename T>
  HWY_INLINE Classes Load(const T* p, size_t k) const {
#if HWY_CAP_GE512
    const Square low = LoadSquare(p, 0, k), high = LoadSquare(p, kSquareSide, k);
    Classes classes;
    PB_UNROLL
    for (size_t i = 0; i < kSquareSide; ++i) classes[i] = hn::Combine(D(), high[i], low[i]);
    return classes;
#else
    return LoadSquare(p, 0, k);
#endif
  }

  HWY_INLINE void Store(const Classes& classes, double* p, size_t k) const {
#if HWY_CAP_GE512
    Square low, high;
    PB_UNROLL
    for (size_t i = 0; i < kSquareSide; ++i) {
      low[i] = hn::LowerHalf(SquareTag(), classes[i]);
      high[i] = hn::UpperHalf(SquareTag(), classes[i]);
    }
    StoreSquare(low, p, 0, k);
    StoreSquare(high, p, kSquareSide, k);
#else
    StoreSquare(classes, p, 0, k);
#endif
  }

  // Those of Load(k) that exist.
  HWY_INLINE size_t Some(size_t k) const { return std::min(kSquareSide, classes_ - k); }

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
  using Square = std::array<hn::Vec<SquareTag>, kSquareSide>;

  template <typename T>
  HWY_INLINE Square LoadSquare(const T* p, size_t first, size_t k) const {
    const size_t some = Some(k);
    Square square;
    PB_UNROLL
    for (size_t r = 0; r < kSquareSide; ++r) {
      const T* const from = p + (row_ + std::min(first + r, count_ - 1)) * classes_ + k;
      square[r] = HWY_LIKELY(some == kSquareSide) ? Loader<SquareTag, T>::Whole(from)
                                                  : Loader<SquareTag, T>::Part(from, some);
    }
    Transpose(SquareTag(), square);
    return square;
  }

  HWY_INLINE void StoreSquare(Square square, double* p, size_t first, size_t k) const {
    Transpose(SquareTag(), square);
    PB_UNROLL
    for (size_t r = 0; r < kSquareSide; ++r) {
      if (first + r >= count_) return;
      StoreFirst(square[r], SquareTag(), p + (row_ + first + r) * classes_ + k, Some(k));
    }
  }

  const size_t row_, count_, classes_;
};

// A group's part of an array: read once where a square has all classes.
template <typename T, bool kFew>
class SoftmaxArray {
 public:
  HWY_INLINE SoftmaxArray(const T* p, const SoftmaxGroup& group) : p_(p), group_(group) {
    if constexpr (kFew) all_ = group.Load(p, 0);
  }

  HWY_INLINE SoftmaxGroup::Classes Load(size_t k) const {
    if constexpr (kFew) {
      return all_;
    } else {
      return group_.Load(p_, k);
    }
  }

 private:
  struct None {};
  const T* const p_;
  const SoftmaxGroup& group_;
  std::conditional_t<kFew, SoftmaxGroup::Classes, None> all_;
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

template <class D, class V = hn::Vec<D>>
HWY_INLINE auto IsClass(D d, V at, size_t k) {
  return hn::Eq(at, hn::Set(d, static_cast<double>(k)));
}

// Of each of a group's rows 1, or NaN for one outside the domain; the sum of its targets; and what
// sums over the classes need of them.
template <typename T, bool kFew>
class SoftmaxTargets {
 public:
  using D = SoftmaxTag;
  using V = hn::Vec<D>;
  using Classes = SoftmaxGroup::Classes;

  HWY_INLINE SoftmaxTargets(const ScoreChunk& chunk, const SoftmaxGroup& group)
      : y_(static_cast<const T*>(chunk.y), group) {
    const D d;
    const V one = hn::Set(d, 1), zero = hn::Zero(d);
    largest_ = {hn::Set(d, -1), zero};
    V least = one;
    sum_ = zero;
    for (size_t k = 0; k < group.NumClasses(); k += kSquareSide) {
      const Classes y = y_.Load(k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        Update(d, largest_, y[i], k + i);
        least = hn::IfThenElse(hn::Ge(y[i], least), least, y[i]);  // NaN is not above anything
        sum_ = hn::Add(sum_, y[i]);
      }
    }
    others_ = zero;
    for (size_t k = 0; k < group.NumClasses(); k += kSquareSide) {
      const Classes y = y_.Load(k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        others_ = hn::Add(others_, hn::IfThenZeroElse(IsClass(d, largest_.at, k + i), y[i]));
      }
    }
    const auto good =
        hn::And(hn::Ge(least, zero), hn::Le(hn::Abs(hn::Sub(sum_, one)), hn::Set(d, kTolerance)));
    good_ = hn::IfThenElse(good, one, hn::NaN(d));
  }

  HWY_INLINE V Good() const { return good_; }
  HWY_INLINE V Sum() const { return sum_; }

  HWY_INLINE Classes Load(size_t k) const { return y_.Load(k); }

  // y * gap, 0 for a gap from the largest to itself, or where y is 0.
  static HWY_INLINE V Term(V y, V gap, hn::Mask<D> is_largest) {
    const auto none = hn::Or(is_largest, hn::Eq(y, hn::Zero(D())));
    return hn::IfThenZeroElse(none, hn::Mul(y, gap));
  }

  // e times the sum of all targets but y, that of class k, less y times that of all other e.
  HWY_INLINE V Slope(V e, V others, V y, size_t k) const {
    const V without = hn::IfThenElse(IsClass(D(), largest_.at, k), others_, hn::Sub(sum_, y));
    return hn::MulSub(e, without, hn::Mul(y, others));
  }

 private:
  static constexpr double kTolerance = 1e-5;

  const SoftmaxArray<T, kFew> y_;
  Largest<V> largest_;
  V sum_, others_, good_;
};

// The target of one class is 1: nothing of it has to be summed.
template <bool kFew>
class SoftmaxTargets<int64_t, kFew> {
 public:
  using D = SoftmaxTag;
  using V = hn::Vec<D>;
  using IsTarget = hn::Mask<D>;

  HWY_INLINE SoftmaxTargets(const ScoreChunk& chunk, const SoftmaxGroup& group) {
    const D d;
    const hn::RebindToUnsigned<D> du;
    const auto label =
        LoadSome(du, static_cast<const uint64_t*>(chunk.y) + group.Row(), group.Count());
    const auto good = hn::RebindMask(d, hn::Lt(label, hn::Set(du, group.NumClasses())));
    // As the low bits of 2^52, a label is a number.
    const V shift = hn::Set(d, 0x1p52);
    const V number = hn::Sub(hn::BitCast(d, hn::Or(label, hn::BitCast(du, shift))), shift);
    at_ = hn::IfThenElse(good, number, hn::Set(d, -1));
    good_ = hn::IfThenElse(good, hn::Set(d, 1), hn::NaN(d));
  }

  HWY_INLINE V Good() const { return good_; }
  HWY_INLINE V Sum() const { return hn::Set(D(), 1); }

  HWY_INLINE std::array<IsTarget, kSquareSide> Load(size_t k) const {
    std::array<IsTarget, kSquareSide> is_target;
    PB_UNROLL
    for (size_t i = 0; i < kSquareSide; ++i) is_target[i] = IsClass(D(), at_, k + i);
    return is_target;
  }

  static HWY_INLINE V Term(IsTarget is_target, V gap, hn::Mask<D> is_largest) {
    return hn::IfThenElseZero(hn::AndNot(is_largest, is_target), gap);
  }

  static HWY_INLINE V Slope(V e, V others, IsTarget is_target, size_t) {
    return hn::IfThenElse(is_target, hn::Sub(hn::Zero(D()), others), e);
  }

 private:
  V at_, good_;
};

// The first bad one of a group's rows, which has one.
HWY_INLINE size_t FirstBad(const SoftmaxGroup& group, SoftmaxGroup::V good) {
  HWY_ALIGN double lanes[kSoftmaxLanes];
  hn::Store(good, SoftmaxTag(), lanes);
  size_t r = 0;
  while (r + 1 < group.Count() && lanes[r] == 1) ++r;
  return group.Row() + r;
}

// The lower half first.
HWY_INLINE void AddLosses(hn::Vec<SquareTag>& sum, hn::Vec<SoftmaxTag> losses) {
#if HWY_CAP_GE512
  const SquareTag d;
  sum = hn::Add(hn::Add(sum, hn::LowerHalf(d, losses)), hn::UpperHalf(d, losses));
#else
  sum = hn::Add(sum, losses);
#endif
}

// exp(z - z_m) of all classes, and the sum `rest` but for the largest, m. The largest is left out,
// the classes behind it move up, and back: of three classes, two exponentials are taken.
HWY_INLINE SoftmaxGroup::Classes ExponentialsOfFew(const SoftmaxGroup& group,
                                                   const SoftmaxGroup::Classes& z,
                                                   const Largest<SoftmaxGroup::V>& largest,
                                                   SoftmaxGroup::V& rest) {
  const SoftmaxTag d;
  SoftmaxGroup::Classes others = z, e;
  PB_UNROLL
  for (size_t i = 0; i + 1 < kSquareSide; ++i) {
    if (i + 1 == group.NumClasses()) break;
    const auto behind = hn::Le(largest.at, hn::Set(d, static_cast<double>(i)));
    others[i] = ExpBelow(d, hn::IfThenElse(behind, z[i + 1], z[i]), largest.value);
    rest = hn::Add(rest, others[i]);
  }
  PB_UNROLL
  for (size_t i = 0; i < kSquareSide; ++i) {
    const auto behind = hn::Lt(largest.at, hn::Set(d, static_cast<double>(i)));
    const auto moved = hn::IfThenElse(behind, others[i == 0 ? 0 : i - 1], others[i]);
    e[i] = hn::IfThenElse(IsClass(d, largest.at, i), hn::Set(d, 1), moved);
  }
  return e;
}

template <typename T, Wanted kWanted, bool kFew>
HWY_INLINE void ScoreSoftmax(ScoreChunk& chunk) {
  const SoftmaxTag d;
  using V = hn::Vec<SoftmaxTag>;
  const V zero = hn::Zero(d), one = hn::Set(d, 1);
  // The exponentials wait where the result will be.
  double* const exponentials = kWanted == Wanted::kCurvature ? chunk.curvature : chunk.slope;
  auto loss_sum = hn::Zero(SquareTag());
  chunk.bad_row = kNoRow;
  for (size_t row = 0; row < chunk.rows; row += kSoftmaxLanes) {
    const SoftmaxGroup group(chunk, row);
    const SoftmaxTargets<T, kFew> targets(chunk, group);
    const V good = targets.Good();
    if (HWY_UNLIKELY(chunk.bad_row == kNoRow && !hn::AllTrue(d, hn::Eq(good, good)))) {
      chunk.bad_row = FirstBad(group, good);
    }

    const SoftmaxArray<double, kFew> predictions(chunk.z, group);
    Largest<V> largest{hn::Neg(Infinity(d)), zero};
    for (size_t k = 0; k < chunk.outputs; k += kSquareSide) {
      const auto z = predictions.Load(k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        Update(d, largest, z[i], k + i);
      }
    }

    V rest = zero, distance = zero;
    SoftmaxGroup::Classes few;
    for (size_t k = 0; k < chunk.outputs; k += kSquareSide) {
      auto z = predictions.Load(k);
      const auto y = targets.Load(k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        const auto is_largest = IsClass(d, largest.at, k + i);
        if (kWanted != Wanted::kCurvature) {
          distance =
              hn::Add(distance, targets.Term(y[i], hn::Sub(largest.value, z[i]), is_largest));
        }
        if (kFew) continue;
        const V e = ExpBelow(d, z[i], largest.value);
        rest = hn::Add(rest, hn::IfThenZeroElse(is_largest, e));
        z[i] = hn::IfThenElse(is_largest, one, e);
      }
      if constexpr (kFew) {
        few = ExponentialsOfFew(group, z, largest, rest);
      } else if (kWanted != Wanted::kLoss) {
        group.Store(z, exponentials, k);
      }
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
      AddLosses(loss_sum, loss);
    }
    if (kWanted == Wanted::kLoss) continue;

    for (size_t k = 0; k < chunk.outputs; k += kSquareSide) {
      SoftmaxGroup::Classes e;
      if constexpr (kFew) {
        e = few;
      } else {
        e = group.Load(exponentials, k);
      }
      const auto y = targets.Load(k);
      auto slope = e;
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        const V others = hn::IfThenElse(IsClass(d, largest.at, k + i), rest, hn::Sub(sum, e[i]));
        slope[i] = hn::Mul(hn::Div(targets.Slope(e[i], others, y[i], k + i), sum), weight);
        e[i] = hn::Mul(hn::Div(e[i], sum), good);
      }
      if (kWanted != Wanted::kSlope) group.Store(e, chunk.curvature, k);
      if (kWanted != Wanted::kCurvature) group.Store(slope, chunk.slope, k);
    }
  }
  chunk.loss_sum = SumLanes(SquareTag(), loss_sum);
}

// slope = weight * s * (p o v - p <p, v>) with s the sum of the targets, by v's distances from that
// of the most probable class: those lose nothing.
template <typename T, bool kFew>
HWY_INLINE void CurveSoftmax(const ScoreChunk& chunk, const double* p, const double* v) {
  const SoftmaxTag d;
  using V = hn::Vec<SoftmaxTag>;
  const V zero = hn::Zero(d);
  for (size_t row = 0; row < chunk.rows; row += kSoftmaxLanes) {
    const SoftmaxGroup group(chunk, row);
    const SoftmaxTargets<T, kFew> targets(chunk, group);
    const SoftmaxArray<double, kFew> probabilities(p, group), directions(v, group);
    Largest<V> largest{hn::Set(d, -1), zero};
    V center = zero;
    for (size_t k = 0; k < chunk.outputs; k += kSquareSide) {
      const auto probability = probabilities.Load(k);
      const auto direction = directions.Load(k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        const auto larger = hn::Gt(probability[i], largest.value);
        center = hn::IfThenElse(larger, direction[i], center);
        Update(d, largest, probability[i], k + i);
      }
    }
    V mean = zero;
    for (size_t k = 0; k < chunk.outputs; k += kSquareSide) {
      const auto probability = probabilities.Load(k);
      const auto direction = directions.Load(k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        mean = hn::MulAdd(probability[i], hn::Sub(direction[i], center), mean);
      }
    }
    const V factor = hn::Mul(hn::Mul(group.Weights(chunk.weight), targets.Sum()), targets.Good());
    for (size_t k = 0; k < chunk.outputs; k += kSquareSide) {
      const auto probability = probabilities.Load(k);
      auto direction = directions.Load(k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        const V distance = hn::Sub(hn::Sub(direction[i], center), mean);
        direction[i] = hn::Mul(hn::Mul(probability[i], distance), factor);
      }
      group.Store(direction, chunk.slope, k);
    }
  }
}

template <typename T, Wanted kWanted>
HWY_INLINE void ScoreSoftmax(ScoreChunk& chunk) {
  return chunk.outputs <= kSquareSide ? ScoreSoftmax<T, kWanted, true>(chunk)
                                      : ScoreSoftmax<T, kWanted, false>(chunk);
}

template <typename T>
HWY_INLINE void CurveSoftmax(const ScoreChunk& chunk, const double* p, const double* v) {
  return chunk.outputs <= kSquareSide ? CurveSoftmax<T, true>(chunk, p, v)
                                      : CurveSoftmax<T, false>(chunk, p, v);
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

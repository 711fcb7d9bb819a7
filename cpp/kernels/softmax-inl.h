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

#include "kernels/interleaved-inl.h"
#include "kernels/load-inl.h"
#include "kernels/loss_scores-inl.h"
#include "kernels/losses.h"
#include "math/exp-inl.h"
#include "math/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using SoftmaxTag = hn::CappedTag<double, 8>;
constexpr size_t kSoftmaxLanes = hn::MaxLanes(SoftmaxTag());

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

// --- what the kernels leave to loops of their own
// --------------------------------------------------

// Rows that pass a score at once, at most: they have two classes or more.
constexpr size_t kSoftmaxRows = kLossBlock / 2;

// Of each row log sum_{k != m} e_k, and what its loss has besides; NaN outside the domain.
struct RowTerms {
  HWY_ALIGN double rest[kSoftmaxRows + kSoftmaxLanes];
  HWY_ALIGN double linear[kSoftmaxRows + kSoftmaxLanes];
  HWY_ALIGN double targets[kSoftmaxRows + kSoftmaxLanes];  // their sum, unless they are labels
};

// The losses, targets * log1p(rest) + linear. Those that are only to be summed need one logarithm a
// lane: log1p(a) + log1p(b) = log1p(a + b + a b), which cancels nothing. Of 512 / K rows of K
// classes, 1 + rest <= K each, the product is no larger than 2^272.
HWY_NOINLINE void SumLosses(ScoreChunk& chunk, const RowTerms& terms) {
  const SoftmaxTag d;
  using V = hn::Vec<SoftmaxTag>;
  const bool labels = chunk.y_type == TargetType::kLabel;
  const bool apart = !labels || chunk.weight != nullptr || chunk.loss != nullptr;
  V all = hn::Zero(d), sum = all;
  for (size_t row = 0; row < chunk.rows; row += kSoftmaxLanes) {
    const size_t count = std::min(kSoftmaxLanes, chunk.rows - row);
    V rest = hn::Load(d, terms.rest + row), loss = hn::Load(d, terms.linear + row);
    const auto present = hn::FirstN(d, count);
    if (apart) {
      V log1p, unused;
      Log1p(d, rest, log1p, unused);
      loss =
          labels ? hn::Add(log1p, loss) : hn::MulAdd(hn::Load(d, terms.targets + row), log1p, loss);
      if (chunk.loss != nullptr) StoreFirst(loss, d, chunk.loss + row, count);
      if (chunk.weight != nullptr) {
        const V weight = LoadSome(d, chunk.weight + row, count);
        loss = Weighted(loss, weight);
      }
    } else {
      rest = hn::IfThenElseZero(present, rest);
      all = hn::MulAdd(all, rest, hn::Add(all, rest));
    }
    sum = hn::Add(sum, hn::IfThenElseZero(present, loss));
  }
  if (!apart) {
    V log1p, unused;
    Log1p(d, all, log1p, unused);
    sum = hn::Add(sum, log1p);
  }
  chunk.loss_sum = SumLanes(d, sum);
}

// What a score is asked for.
struct Asked {
  explicit Asked(Wanted wanted)
      : loss(wanted != Wanted::kCurvature),
        slopes(wanted == Wanted::kSlope),
        curvature(wanted == Wanted::kCurvature) {}
  bool loss, slopes, curvature;
};

// Whether probabilities are targets, by the least and the sum of each row's.
HWY_INLINE hn::Mask<SoftmaxTag> IsTarget(hn::Vec<SoftmaxTag> least, hn::Vec<SoftmaxTag> sum) {
  constexpr double kTolerance = 1e-5;
  const SoftmaxTag d;
  return hn::And(hn::Ge(least, hn::Zero(d)),
                 hn::Le(hn::Abs(hn::Sub(sum, hn::Set(d, 1))), hn::Set(d, kTolerance)));
}

// Keeps the first bad one of a group's rows that has a weight, unless one was before.
HWY_NOINLINE void KeepBad(ScoreChunk& chunk, size_t row, size_t count, hn::Mask<SoftmaxTag> good) {
  const SoftmaxTag d;
  HWY_ALIGN double lanes[kSoftmaxLanes];
  hn::Store(hn::IfThenElseZero(good, hn::Set(d, 1)), d, lanes);
  for (size_t r = 0; r < count && chunk.bad_row == kNoRow; ++r) {
    const bool counts = chunk.weight == nullptr || chunk.weight[row + r] != 0;
    if (counts && lanes[r] == 0) chunk.bad_row = row + r;
  }
}

// --- two to four classes: in registers
// ------------------------------------------------------------

// The targets of a few classes; `Slopes` are the numerators of the slopes.
template <size_t kClasses, bool kLabels>
class FewTargets {
 public:
  using D = SoftmaxTag;
  using V = hn::Vec<D>;
  using M = hn::Mask<D>;
  using Classes = std::array<V, kClasses>;

  HWY_INLINE explicit FewTargets(const Classes& y) : y_(y) {
    const D d;
    V least = y_[0];
    largest_ = sum_ = y_[0];
    others_ = hn::Zero(d);
    PB_UNROLL
    for (size_t k = 1; k < kClasses; ++k) {
      const auto larger = hn::Gt(y_[k], largest_);
      others_ = hn::Add(others_, hn::IfThenElse(larger, largest_, y_[k]));
      largest_ = hn::IfThenElse(larger, y_[k], largest_);
      least = hn::IfThenElse(hn::Ge(y_[k], least), least, y_[k]);  // NaN is not above anything
      sum_ = hn::Add(sum_, y_[k]);
    }
    good_ = IsTarget(least, sum_);
  }

  HWY_INLINE M Good() const { return good_; }
  HWY_INLINE V Sum() const { return sum_; }

  // The sum of y times the distance to the largest, 0 from that to itself, or where y is 0.
  HWY_INLINE V Distance(const Classes& z, V largest) const {
    const D d;
    V distance = hn::Zero(d);
    PB_UNROLL
    for (size_t k = 0; k < kClasses; ++k) {
      const auto none = hn::Or(hn::Eq(z[k], largest), hn::Eq(y_[k], hn::Zero(d)));
      const V term = hn::Mul(y_[k], hn::Sub(largest, z[k]));
      distance = hn::Add(distance, hn::IfThenZeroElse(none, term));
    }
    return distance;
  }

  HWY_INLINE Classes Slopes(const Classes& z, V largest, const Classes& e, V rest, V sum) const {
    Classes slopes;
    PB_UNROLL
    for (size_t k = 0; k < kClasses; ++k) {
      const V others = hn::IfThenElse(hn::Eq(z[k], largest), rest, hn::Sub(sum, e[k]));
      const V without = hn::IfThenElse(hn::Eq(y_[k], largest_), others_, hn::Sub(sum_, y_[k]));
      slopes[k] = hn::MulSub(e[k], without, hn::Mul(y_[k], others));
    }
    return slopes;
  }

 private:
  const Classes y_;
  V largest_, others_, sum_;
  M good_;
};

// The target of one class is 1: nothing of it has to be summed.
template <size_t kClasses>
class FewTargets<kClasses, true> {
 public:
  using D = SoftmaxTag;
  using V = hn::Vec<D>;
  using M = hn::Mask<D>;
  using Classes = std::array<V, kClasses>;

  HWY_INLINE explicit FewTargets(hn::Vec<hn::RebindToUnsigned<D>> label) {
    const D d;
    const hn::RebindToUnsigned<D> du;
    PB_UNROLL
    for (size_t k = 0; k < kClasses; ++k) {
      is_[k] = hn::RebindMask(d, hn::Eq(label, hn::Set(du, k)));
    }
  }

  HWY_INLINE M Good() const {
    M good = is_[0];
    PB_UNROLL
    for (size_t k = 1; k < kClasses; ++k) good = hn::Or(good, is_[k]);
    return good;
  }

  HWY_INLINE V Distance(const Classes& z, V largest) const {
    const V at = Of(z);
    return hn::IfThenZeroElse(hn::Eq(at, largest), hn::Sub(largest, at));
  }

  HWY_INLINE Classes Slopes(const Classes& z, V largest, const Classes& e, V rest, V sum) const {
    const V others = hn::IfThenElse(hn::Eq(Of(z), largest), rest, hn::Sub(sum, Of(e)));
    const V slope = hn::Neg(others);
    Classes slopes;
    PB_UNROLL
    for (size_t k = 0; k < kClasses; ++k) slopes[k] = hn::IfThenElse(is_[k], slope, e[k]);
    return slopes;
  }

 private:
  HWY_INLINE V Of(const Classes& c) const {
    V of = c[0];
    PB_UNROLL
    for (size_t k = 1; k < kClasses; ++k) of = hn::IfThenElse(is_[k], c[k], of);
    return of;
  }

  std::array<M, kClasses> is_;
};

// exp(z - z_m) of all classes, and the sum `rest` but for the largest, m. The largest is left out,
// the classes behind it move up, and back: of three classes, two exponentials are taken.
template <size_t kClasses, class V = hn::Vec<SoftmaxTag>>
HWY_INLINE std::array<V, kClasses> ExponentialsOfFew(const std::array<V, kClasses>& z, V& largest,
                                                     V& rest) {
  const SoftmaxTag d;
  std::array<hn::Mask<SoftmaxTag>, kClasses> behind;  // whether the largest is behind class k
  largest = z[0];
  PB_UNROLL
  for (size_t k = 1; k < kClasses; ++k) {
    behind[k - 1] = hn::Gt(z[k], largest);
    largest = hn::IfThenElse(behind[k - 1], z[k], largest);
  }
  if constexpr (kClasses > 2) {
    PB_UNROLL
    for (size_t k = 2; k < kClasses; ++k) {
      behind[kClasses - k - 1] = hn::Or(behind[kClasses - k - 1], behind[kClasses - k]);
    }
  }
  std::array<V, kClasses> others, e;
  PB_UNROLL
  for (size_t k = 0; k + 1 < kClasses; ++k) {
    others[k] = ExpBelow(d, hn::IfThenElse(behind[k], z[k], z[k + 1]), largest);
    rest = k == 0 ? others[k] : hn::Add(rest, others[k]);
  }
  V moved = hn::Set(d, 1);
  PB_UNROLL
  for (size_t k = 0; k < kClasses; ++k) {
    if (k > 0) moved = hn::IfThenElse(behind[k - 1], hn::Set(d, 1), others[k - 1]);
    e[k] = k + 1 < kClasses ? hn::IfThenElse(behind[k], others[k], moved) : moved;
  }
  return e;
}

// Scores kGroups groups of `count` rows each, whose latencies overlap.
template <bool kLabels, size_t kClasses, size_t kGroups, class V = hn::Vec<SoftmaxTag>>
HWY_INLINE void ScoreGroups(ScoreChunk& chunk, const double* y, Asked asked, RowTerms& terms,
                            size_t begin, size_t count,
                            const std::array<std::array<V, kClasses>, kGroups>& z) {
  const SoftmaxTag d;
  const hn::RebindToUnsigned<SoftmaxTag> du;
  const V one = hn::Set(d, 1);
  std::array<std::array<V, kClasses>, kGroups> e;
  std::array<V, kGroups> largest, rest;
  PB_UNROLL
  for (size_t g = 0; g < kGroups; ++g) {
    e[g] = ExponentialsOfFew<kClasses>(z[g], largest[g], rest[g]);
  }
  PB_UNROLL
  for (size_t g = 0; g < kGroups; ++g) {
    const size_t row = begin + g * kSoftmaxLanes, first = row * kClasses;
    const auto targets = [&]() HWY_ATTR {
      if constexpr (kLabels) {
        const auto* const labels = static_cast<const uint64_t*>(chunk.y);
        return FewTargets<kClasses, true>(LoadSome(du, labels + row, count));
      } else {
        return FewTargets<kClasses, false>(LoadSomeRows<kClasses>(d, y + first, count));
      }
    }();
    const auto good = targets.Good();
    if (HWY_UNLIKELY(!hn::AllTrue(d, good))) KeepBad(chunk, row, count, good);
    if (asked.loss) {
      const V distance = targets.Distance(z[g], largest[g]);
      hn::StoreU(rest[g], d, terms.rest + row);
      hn::StoreU(hn::IfThenElse(good, distance, hn::NaN(d)), d, terms.linear + row);
      if constexpr (!kLabels) hn::StoreU(targets.Sum(), d, terms.targets + row);
    }
    const V sum = hn::IfThenElse(good, hn::Add(one, rest[g]), hn::NaN(d));
    if (asked.slopes) {
      auto slopes = targets.Slopes(z[g], largest[g], e[g], rest[g], sum);
      PB_UNROLL
      for (V& slope : slopes) slope = hn::Div(slope, sum);
      if (chunk.weight != nullptr) {
        const V weight = LoadSome(d, chunk.weight + row, count);
        PB_UNROLL
        for (V& slope : slopes) slope = Weighted(slope, weight);
      }
      StoreSomeRows(slopes, d, chunk.slope + first, count);
    }
    if (asked.curvature) {
      auto p = e[g];
      PB_UNROLL
      for (V& probability : p) probability = hn::Div(probability, sum);
      StoreSomeRows(p, d, chunk.curvature + first, count);
    }
  }
}

// The last rows of an array, as many as a vector has lanes, unless there are fewer: where these are
// no whole vector, some are in the one before, too, and get the same result again. They are read
// before that is written, perhaps to their place.
template <size_t kClasses>
struct LastRows {
  LastRows(const double* p, size_t rows)
      : count(std::min(kSoftmaxLanes, rows)),
        row(rows - count),
        values(LoadSomeRows<kClasses>(SoftmaxTag(), p + row * kClasses, count)) {}

  size_t count, row;
  std::array<hn::Vec<SoftmaxTag>, kClasses> values;
};

template <size_t kClasses, bool kLabels>
void ScoreFew(ScoreChunk& chunk, const double* y, Asked asked, RowTerms& terms) {
  const SoftmaxTag d;
  using Classes = std::array<hn::Vec<SoftmaxTag>, kClasses>;
  constexpr size_t kStep = 2 * kSoftmaxLanes;
  const LastRows<kClasses> last(chunk.z, chunk.rows);
  size_t row = 0;
  for (; row + kStep <= chunk.rows; row += kStep) {
    const double* const from = chunk.z + row * kClasses;
    const std::array<Classes, 2> z = {LoadRows<kClasses>(d, from),
                                      LoadRows<kClasses>(d, from + kSoftmaxLanes * kClasses)};
    ScoreGroups<kLabels>(chunk, y, asked, terms, row, kSoftmaxLanes, z);
  }
  for (; row < chunk.rows; row += kSoftmaxLanes) {
    const std::array<Classes, 1> z = {
        row < last.row ? LoadRows<kClasses>(d, chunk.z + row * kClasses) : last.values};
    ScoreGroups<kLabels>(chunk, y, asked, terms, std::min(row, last.row), last.count, z);
  }
}

// factor * (p o v - p <p, v>), by v's distances from that of the most probable class: those lose
// nothing.
template <size_t kClasses>
void CurveFew(const double* p, const double* v, const double* factors, size_t rows,
              double* slopes) {
  const SoftmaxTag d;
  using V = hn::Vec<SoftmaxTag>;
  const LastRows<kClasses> last(v, rows);
  for (size_t at = 0; at < rows; at += kSoftmaxLanes) {
    const size_t row = std::min(at, last.row), first = row * kClasses;
    const auto probability = LoadSomeRows<kClasses>(d, p + first, last.count);
    auto direction = at < last.row ? LoadRows<kClasses>(d, v + first) : last.values;
    V largest = probability[0], center = direction[0];
    PB_UNROLL
    for (size_t k = 1; k < kClasses; ++k) {
      const auto larger = hn::Gt(probability[k], largest);
      largest = hn::IfThenElse(larger, probability[k], largest);
      center = hn::IfThenElse(larger, direction[k], center);
    }
    V mean = hn::Zero(d);
    PB_UNROLL
    for (size_t k = 0; k < kClasses; ++k) {
      direction[k] = hn::Sub(direction[k], center);
      mean = hn::MulAdd(probability[k], direction[k], mean);
    }
    const V factor = hn::LoadU(d, factors + row);
    PB_UNROLL
    for (size_t k = 0; k < kClasses; ++k) {
      const V distance = hn::Sub(direction[k], mean);
      direction[k] = Weighted(hn::Mul(probability[k], distance), factor);
    }
    StoreSomeRows(direction, d, slopes + first, last.count);
  }
}

// --- any number of classes: squares of rows and classes, transposed
// ---------------------------------

// Classes that are transposed at once.
using SquareTag = hn::CappedTag<double, 4>;
constexpr size_t kSquareSide = hn::MaxLanes(SquareTag());
static_assert(kSoftmaxLanes == (HWY_CAP_GE512 ? 2 : 1) * kSquareSide);

// One group of rows: as many as a vector has lanes, or the last ones. Arrays are (rows, classes).
class SoftmaxGroup {
 public:
  using D = SoftmaxTag;
  using V = hn::Vec<D>;
  using Classes = std::array<V, kSquareSide>;  // lanes are rows

  HWY_INLINE SoftmaxGroup(size_t row, size_t rows, size_t classes)
      : row_(row), count_(std::min(kSoftmaxLanes, rows - row)), classes_(classes) {}

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

  HWY_INLINE V Weights(const double* weight) const {
    return weight == nullptr ? hn::Set(D(), 1) : LoadSome(D(), weight + row_, count_);
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

// The targets of a group's rows, and what sums over the classes need of them.
template <bool kLabels>
class SoftmaxTargets {
 public:
  using D = SoftmaxTag;
  using V = hn::Vec<D>;
  using M = hn::Mask<D>;
  using Classes = SoftmaxGroup::Classes;

  HWY_INLINE SoftmaxTargets(const ScoreChunk& chunk, const SoftmaxGroup& group)
      : y_(chunk.y), narrow_(chunk.y_type == TargetType::kFloat32), group_(group) {
    const D d;
    const V one = hn::Set(d, 1), zero = hn::Zero(d);
    largest_ = {hn::Set(d, -1), zero};
    V least = one;
    sum_ = zero;
    for (size_t k = 0; k < group.NumClasses(); k += kSquareSide) {
      const Classes y = Load(k);
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
      const Classes y = Load(k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        others_ = hn::Add(others_, hn::IfThenZeroElse(IsClass(d, largest_.at, k + i), y[i]));
      }
    }
    good_ = IsTarget(least, sum_);
  }

  HWY_INLINE M Good() const { return good_; }
  HWY_INLINE V Sum() const { return sum_; }

  HWY_INLINE Classes Load(size_t k) const {
    return narrow_ ? group_.Load(static_cast<const float*>(y_), k)
                   : group_.Load(static_cast<const double*>(y_), k);
  }

  // y * gap, 0 for a gap from the largest to itself, or where y is 0.
  static HWY_INLINE V Term(V y, V gap, M is_largest) {
    const auto none = hn::Or(is_largest, hn::Eq(y, hn::Zero(D())));
    return hn::IfThenZeroElse(none, hn::Mul(y, gap));
  }

  // e times the sum of all targets but y, that of class k, less y times that of all other e.
  HWY_INLINE V Slope(V e, V others, V y, size_t k) const {
    const V without = hn::IfThenElse(IsClass(D(), largest_.at, k), others_, hn::Sub(sum_, y));
    return hn::MulSub(e, without, hn::Mul(y, others));
  }

 private:
  const void* const y_;
  const bool narrow_;
  const SoftmaxGroup& group_;
  Largest<V> largest_;
  V sum_, others_;
  M good_;
};

template <>
class SoftmaxTargets<true> {
 public:
  using D = SoftmaxTag;
  using V = hn::Vec<D>;
  using M = hn::Mask<D>;

  HWY_INLINE SoftmaxTargets(const ScoreChunk& chunk, const SoftmaxGroup& group) {
    const D d;
    const hn::RebindToUnsigned<D> du;
    const auto label =
        LoadSome(du, static_cast<const uint64_t*>(chunk.y) + group.Row(), group.Count());
    good_ = hn::RebindMask(d, hn::Lt(label, hn::Set(du, group.NumClasses())));
    // As the low bits of 2^52, a label is a number.
    const V shift = hn::Set(d, 0x1p52);
    const V number = hn::Sub(hn::BitCast(d, hn::Or(label, hn::BitCast(du, shift))), shift);
    at_ = hn::IfThenElse(good_, number, hn::Set(d, -1));
  }

  HWY_INLINE M Good() const { return good_; }
  HWY_INLINE V Sum() const { return hn::Set(D(), 1); }

  HWY_INLINE std::array<M, kSquareSide> Load(size_t k) const {
    std::array<M, kSquareSide> is_target;
    PB_UNROLL
    for (size_t i = 0; i < kSquareSide; ++i) is_target[i] = IsClass(D(), at_, k + i);
    return is_target;
  }

  static HWY_INLINE V Term(M is_target, V gap, M is_largest) {
    return hn::IfThenElseZero(hn::AndNot(is_largest, is_target), gap);
  }

  static HWY_INLINE V Slope(V e, V others, M is_target, size_t) {
    return hn::IfThenElse(is_target, hn::Neg(others), e);
  }

 private:
  V at_;
  M good_;
};

template <bool kLabels>
void ScoreMany(ScoreChunk& chunk, Asked asked, RowTerms& terms) {
  const SoftmaxTag d;
  using V = hn::Vec<SoftmaxTag>;
  const V zero = hn::Zero(d), one = hn::Set(d, 1);
  // The exponentials wait where the result will be.
  double* const exponentials = asked.slopes ? chunk.slope : chunk.curvature;
  for (size_t row = 0; row < chunk.rows; row += kSoftmaxLanes) {
    const SoftmaxGroup group(row, chunk.rows, chunk.outputs);
    const SoftmaxTargets<kLabels> targets(chunk, group);
    const auto good = targets.Good();
    if (HWY_UNLIKELY(!hn::AllTrue(d, good))) KeepBad(chunk, row, group.Count(), good);

    Largest<V> largest{hn::Neg(Infinity(d)), zero};
    for (size_t k = 0; k < chunk.outputs; k += kSquareSide) {
      const auto z = group.Load(chunk.z, k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        Update(d, largest, z[i], k + i);
      }
    }

    V rest = zero, distance = zero;
    for (size_t k = 0; k < chunk.outputs; k += kSquareSide) {
      auto z = group.Load(chunk.z, k);
      const auto y = targets.Load(k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        const auto is_largest = IsClass(d, largest.at, k + i);
        if (asked.loss) {
          const V gap = hn::Sub(largest.value, z[i]);
          distance = hn::Add(distance, targets.Term(y[i], gap, is_largest));
        }
        const V e = ExpBelow(d, z[i], largest.value);
        rest = hn::Add(rest, hn::IfThenZeroElse(is_largest, e));
        z[i] = hn::IfThenElse(is_largest, one, e);
      }
      if (asked.slopes || asked.curvature) group.Store(z, exponentials, k);
    }
    const V nan = hn::NaN(d);
    if (asked.loss) {
      hn::Store(rest, d, terms.rest + row);
      hn::Store(hn::IfThenElse(good, distance, nan), d, terms.linear + row);
      if constexpr (!kLabels) hn::Store(targets.Sum(), d, terms.targets + row);
      if (!asked.slopes) continue;
    }

    const V sum = hn::IfThenElse(good, hn::Add(one, rest), nan);
    const V weight = group.Weights(chunk.weight);
    for (size_t k = 0; k < chunk.outputs; k += kSquareSide) {
      const auto e = group.Load(exponentials, k);
      if (asked.curvature) {
        auto p = e;
        PB_UNROLL
        for (V& probability : p) probability = hn::Div(probability, sum);
        group.Store(p, chunk.curvature, k);
      }
      if (!asked.slopes) continue;
      const auto y = targets.Load(k);
      auto slope = e;
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        const V others = hn::IfThenElse(IsClass(d, largest.at, k + i), rest, hn::Sub(sum, e[i]));
        slope[i] = Weighted(hn::Div(targets.Slope(e[i], others, y[i], k + i), sum), weight);
      }
      group.Store(slope, chunk.slope, k);
    }
  }
}

// As CurveFew.
inline void CurveMany(const double* p, const double* v, const double* factors, size_t rows,
                      size_t classes, double* slopes) {
  const SoftmaxTag d;
  using V = hn::Vec<SoftmaxTag>;
  const V zero = hn::Zero(d);
  for (size_t row = 0; row < rows; row += kSoftmaxLanes) {
    const SoftmaxGroup group(row, rows, classes);
    Largest<V> largest{hn::Set(d, -1), zero};
    V center = zero;
    for (size_t k = 0; k < classes; k += kSquareSide) {
      const auto probability = group.Load(p, k);
      const auto direction = group.Load(v, k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        const auto larger = hn::Gt(probability[i], largest.value);
        center = hn::IfThenElse(larger, direction[i], center);
        largest.value = hn::IfThenElse(larger, probability[i], largest.value);
      }
    }
    V mean = zero;
    for (size_t k = 0; k < classes; k += kSquareSide) {
      const auto probability = group.Load(p, k);
      const auto direction = group.Load(v, k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        mean = hn::MulAdd(probability[i], hn::Sub(direction[i], center), mean);
      }
    }
    const V factor = hn::Load(d, factors + row);
    for (size_t k = 0; k < classes; k += kSquareSide) {
      const auto probability = group.Load(p, k);
      auto direction = group.Load(v, k);
      PB_UNROLL
      for (size_t i = 0; i < kSquareSide; ++i) {
        if (i == group.Some(k)) break;
        const V distance = hn::Sub(hn::Sub(direction[i], center), mean);
        direction[i] = Weighted(hn::Mul(probability[i], distance), factor);
      }
      group.Store(direction, slopes, k);
    }
  }
}

// --- the row of the table
// -------------------------------------------------------------------------

template <bool kLabels>
HWY_INLINE void ScoreBy(ScoreChunk& chunk, const double* y, Asked asked, RowTerms& terms) {
  switch (chunk.outputs) {
    case 2:
      return ScoreFew<2, kLabels>(chunk, y, asked, terms);
    case 3:
      return ScoreFew<3, kLabels>(chunk, y, asked, terms);
    case 4:
      return ScoreFew<4, kLabels>(chunk, y, asked, terms);
    default:
      return ScoreMany<kLabels>(chunk, asked, terms);
  }
}

HWY_NOINLINE void ScoreSoftmax(ScoreChunk& chunk, Wanted wanted) {
  const Asked asked(wanted);
  RowTerms terms;
  chunk.bad_row = kNoRow;
  chunk.loss_sum = 0;
  if (chunk.y_type == TargetType::kLabel) {
    ScoreBy<true>(chunk, nullptr, asked, terms);
  } else {
    const auto* y = static_cast<const double*>(chunk.y);
    double wide[kLossBlock];
    if (chunk.y_type == TargetType::kFloat32 && chunk.outputs <= kFewOutputs) {
      std::copy_n(static_cast<const float*>(chunk.y), chunk.rows * chunk.outputs, wide);
      y = wide;
    }
    ScoreBy<false>(chunk, y, asked, terms);
  }
  if (asked.loss) SumLosses(chunk, terms);
}

template <Wanted kWanted>
void ScoreSoftmaxCrossEntropy(ScoreChunk& chunk) {
  ScoreSoftmax(chunk, kWanted);
}

// Weight times sum of the targets of each row, NaN outside the domain.
template <bool kLabels>
HWY_INLINE void RowFactors(const ScoreChunk& chunk, double* factors) {
  const SoftmaxTag d;
  for (size_t row = 0; row < chunk.rows; row += kSoftmaxLanes) {
    const SoftmaxGroup group(row, chunk.rows, chunk.outputs);
    const SoftmaxTargets<kLabels> targets(chunk, group);
    const auto sum = hn::IfThenElse(targets.Good(), targets.Sum(), hn::NaN(d));
    hn::Store(Weighted(sum, group.Weights(chunk.weight)), d, factors + row);
  }
}

// slope = weight * s * (p o v - p <p, v>) with s the sum of the targets.
inline void CurveSoftmaxCrossEntropy(const ScoreChunk& whole, const double* p, const double* v) {
  HWY_ALIGN double factors[kSoftmaxRows];
  ScoreChunk chunk = whole;
  for (size_t row = 0; row < whole.rows; row += kSoftmaxRows) {
    chunk.rows = std::min(kSoftmaxRows, whole.rows - row);
    if (chunk.y_type == TargetType::kLabel) {
      RowFactors<true>(chunk, factors);
    } else {
      RowFactors<false>(chunk, factors);
    }
    switch (chunk.outputs) {
      case 2:
        CurveFew<2>(p, v, factors, chunk.rows, chunk.slope);
        break;
      case 3:
        CurveFew<3>(p, v, factors, chunk.rows, chunk.slope);
        break;
      case 4:
        CurveFew<4>(p, v, factors, chunk.rows, chunk.slope);
        break;
      default:
        CurveMany(p, v, factors, chunk.rows, chunk.outputs, chunk.slope);
    }
    const size_t n = chunk.rows * chunk.outputs;
    p += n;
    v += n;
    chunk.slope += n;
    if (chunk.weight != nullptr) chunk.weight += chunk.rows;
    chunk.y = static_cast<const char*>(chunk.y) +
              (chunk.y_type == TargetType::kLabel ? chunk.rows : n) * ItemSize(chunk.y_type);
  }
}

inline constexpr LossKernels kSoftmaxCrossEntropy = {
    "softmax_cross_entropy",
    true,
    {ScoreSoftmaxCrossEntropy<Wanted::kLoss>, ScoreSoftmaxCrossEntropy<Wanted::kSlope>,
     ScoreSoftmaxCrossEntropy<Wanted::kCurvature>},
    CurveSoftmaxCrossEntropy};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

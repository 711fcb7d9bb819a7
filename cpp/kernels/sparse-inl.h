// Sparse X: the rows of CSR, the columns of CSC.
//
// Both formats list spans of entries: a chunk's rows, or the chunk's part of each column. Summing
// each span into its own row (gather) is CSR's product with w and CSC's with the slopes; adding
// each span's row to those its entries name (scatter) is the other one. So two loops serve both.
#if defined(PULLBACK_CPP_KERNELS_SPARSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_SPARSE_INL_H_
#undef PULLBACK_CPP_KERNELS_SPARSE_INL_H_
#else
#define PULLBACK_CPP_KERNELS_SPARSE_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <type_traits>
#include <utility>

#include "kernels/load-inl.h"
#include "kernels/losses.h"
#include "kernels/sums.h"
#include "math/error_free-inl.h"
#include "runtime/partition.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// --- indices, checked on their way ---------------------------------------------------------------

// What the caller's indices and indptr say may be wrong, and may change while it is read. So every
// element is read once, into memory of our own; it is checked there, and the walks see nothing
// else.

// Not read again, whatever the compiler thinks of it.
template <typename Index>
HWY_INLINE Index ReadOnce(const Index* p) {
  return *static_cast<const volatile Index*>(p);
}

// 0 <= begin <= end <= entries; as unsigned numbers the first follows.
template <typename Index>
HWY_INLINE bool IsSpan(Index begin, Index end, size_t entries) {
  return static_cast<size_t>(begin) <= static_cast<size_t>(end) &&
         static_cast<size_t>(end) <= entries;
}

// Whole vectors of them are read; behind those that are wanted are zeros, or others that fit.
inline constexpr size_t kIndexPadding = 32;

#if HWY_TARGET != HWY_SCALAR
// The lower halves of as many indices as D has lanes; adds to `bits` those of wide indices.
template <class D>
HWY_INLINE hn::Vec<D> LoadLow(D d, const int32_t* from, hn::Vec<hn::Repartition<uint64_t, D>>&) {
  return hn::LoadU(d, reinterpret_cast<const uint32_t*>(from));
}

template <class D>
HWY_INLINE hn::Vec<D> LoadLow(D d, const int64_t* from,
                              hn::Vec<hn::Repartition<uint64_t, D>>& bits) {
  const hn::Repartition<uint64_t, D> d_wide;
  const auto* const p = reinterpret_cast<const uint64_t*>(from);
  const auto low = hn::LoadU(d_wide, p), high = hn::LoadU(d_wide, p + hn::Lanes(d_wide));
  bits = hn::Or(bits, hn::Or(low, high));
  return hn::ConcatEven(d, hn::BitCast(d, high), hn::BitCast(d, low));
}
#endif

// Copies n indices; whether all of them are in [0, limit).
template <typename Index>
bool CopyBelow(const Index* from, size_t n, size_t limit, uint32_t* to) {
  const hn::ScalableTag<uint32_t> d;
  // Of all indices: the largest of their lower halves, and what bits are set in the upper ones.
  auto most = hn::Zero(d);
  uint64_t upper = 0;
  size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::Repartition<uint64_t, decltype(d)> d_wide;
  auto bits = hn::Zero(d_wide);
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
    hn::StoreU(LoadLow(d, from + i, bits), d, to + i);
    // The copy is judged: a compiler may read the original twice, once for each use (seen with g++
    // 12 and AVX-512).
    std::atomic_signal_fence(std::memory_order_seq_cst);
    most = hn::Max(most, hn::LoadU(d, to + i));
  }
  uint64_t lanes[hn::MaxLanes(decltype(d_wide)())];
  hn::StoreU(bits, d_wide, lanes);
  for (const uint64_t lane : lanes) upper |= lane;
#endif
  uint32_t largest = hn::GetLane(hn::MaxOfLanes(d, most));
  for (; i < n; ++i) {
    const Index index = ReadOnce(from + i);
    to[i] = static_cast<uint32_t>(index);
    largest = std::max(largest, to[i]);
    if constexpr (sizeof(Index) == sizeof(uint64_t)) upper |= static_cast<uint64_t>(index);
  }
  std::fill_n(to + n, kIndexPadding, 0U);
  return n == 0 || (upper >> 32 == 0 && largest < limit);
}

// Copies what n indices are above `first`. They have been found in [0, count); one that has changed
// since becomes any of these. As many as `readable` may be read. A few are copied without a loop,
// whose last branch would be mispredicted.
inline constexpr size_t kFewIndices = 32;

template <typename Index>
HWY_INLINE void CopyClamped(const Index* from, size_t n, [[maybe_unused]] size_t readable,
                            size_t first, size_t count, uint32_t* to) {
  const auto last = static_cast<uint32_t>(count - 1), zeroth = static_cast<uint32_t>(first);
  size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<uint32_t> d;
  auto bits = hn::Zero(hn::Repartition<uint64_t, decltype(d)>());  // wide ones lose them
  const auto copy = [&]() HWY_ATTR {
    const auto index = hn::Sub(LoadLow(d, from + i, bits), hn::Set(d, zeroth));
    hn::StoreU(hn::Min(index, hn::Set(d, last)), d, to + i);
  };
  if (HWY_LIKELY(n <= kFewIndices && kFewIndices <= readable)) {
    PB_UNROLL
    for (; i < kFewIndices; i += hn::Lanes(d)) copy();
    return;
  }
  for (; i + hn::Lanes(d) <= std::min(RoundUp(n, hn::Lanes(d)), readable); i += hn::Lanes(d)) {
    copy();
  }
#endif
  if (HWY_LIKELY(i >= n)) return;
  for (; i < n; ++i) to[i] = std::min(static_cast<uint32_t>(ReadOnce(from + i)) - zeroth, last);
  std::fill_n(to + n, kIndexPadding, 0U);
}

// --- the two loops -------------------------------------------------------------------------------

// Both take spans 0 ... count - 1 of entries, each in pieces:
//   size_t i = spans.Begin(s), stop;
//   do {
//     stop = spans.Check(s, i);  // spans.indices[i ... stop) are checked
//     ...
//     i = stop;
//   } while (spans.More(s, stop));
// A piece that is not a span's last is a multiple of kPieceMultiple long. Where spans are columns
// (kRows is false), each piece is summed by itself: it has at most kLossBlock entries.
inline constexpr size_t kPieceMultiple = 8;

// to[s * outputs + k] += sum over span s of data * from[index * outputs + k] for the `last` outputs
// of the panel's last vector and all of those before.
template <class D, size_t kVectors, class S>
HWY_INLINE void GatherPanel(S& spans, size_t outputs, const double* from, double* to, size_t last) {
  const D d;
  using V = hn::Vec<D>;
  constexpr size_t kLanes = hn::MaxLanes(D());
  // Chains of additions, so that none waits for its latency.
  constexpr size_t kChains = kVectors == 1 ? 4 : 2;
  for (size_t s = 0; s < spans.count; ++s) {
    std::array<std::array<V, kVectors>, kChains> sum;
    const auto add = [&](size_t i, std::array<V, kVectors>& chain) HWY_ATTR {
      const double* const row = from + size_t{spans.indices[i]} * outputs;
      const V x = hn::Set(d, double{spans.data[i]});
      PB_UNROLL
      for (size_t v = 0; v < kVectors; ++v) {
        chain[v] = hn::MulAdd(x, hn::LoadU(d, row + v * kLanes), chain[v]);
      }
    };
    double* const row = to + s * outputs;
    size_t i = spans.Begin(s), stop;
    do {
      PB_UNROLL
      for (size_t c = 0; c < kChains; ++c) {
        PB_UNROLL
        for (size_t v = 0; v < kVectors; ++v) sum[c][v] = hn::Zero(d);
      }
      do {
        stop = spans.Check(s, i);
        for (; i + kChains <= stop; i += kChains) {
          PB_UNROLL
          for (size_t c = 0; c < kChains; ++c) add(i + c, sum[c]);
        }
        for (; i < stop; ++i) add(i, sum[0]);
      } while (S::kRows && spans.More(s, stop));
      PB_UNROLL
      for (size_t v = 0; v < kVectors; ++v) {
        V total = hn::Add(sum[0][v], sum[1][v]);
        if constexpr (kChains == 4) total = hn::Add(total, hn::Add(sum[2][v], sum[3][v]));
        total = hn::Add(hn::LoadU(d, row + v * kLanes), total);
        if (v + 1 < kVectors) {
          hn::StoreU(total, d, row + v * kLanes);
        } else {
          StoreFirst(total, d, row + v * kLanes, last);
        }
      }
    } while (!S::kRows && spans.More(s, stop));
  }
}

// Lane l is from[indices[l]]: by as many loads, since an instruction that gathers is slower.
template <class D>
HWY_INLINE hn::Vec<D> LoadEach(D d, const double* from, const uint32_t* indices) {
  const auto at = [&](size_t l) { return from[indices[l]]; };
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(d, at(0));
#else
  const hn::CappedTag<double, 2> pair;
  const auto two = [&](size_t l) HWY_ATTR {
    return hn::InterleaveLower(pair, hn::Set(pair, at(l)), hn::Set(pair, at(l + 1)));
  };
  if constexpr (hn::MaxLanes(D()) == 2) {
    return two(0);
  } else {
    return hn::Combine(d, two(2), two(0));
  }
#endif
}

// The sum over checked entries [i, stop), a lane for every kLanes-th. There are few of them: the
// rest of the last vector is masked, as a loop over it would end in a misprediction.
template <class D, class S>
HWY_INLINE hn::Vec<D> GatherPiece(D d, const S& spans, size_t i, size_t stop, const double* from,
                                  hn::Vec<D> sum) {
  using Load = Loader<D, typename S::Data>;
  constexpr size_t kLanes = hn::MaxLanes(D());
  static_assert(kPieceMultiple % kLanes == 0);
  const auto* const data = spans.data;
  const uint32_t* const indices = spans.indices;
  const size_t entries = spans.entries;
  for (; i < stop; i += kLanes) {
    const size_t left = stop - i;
    const auto x =
        HWY_LIKELY(i + kLanes <= entries) ? Load::Whole(data + i) : Load::Part(data + i, left);
    const auto product = hn::Mul(x, LoadEach(d, from, indices + i));
    sum = hn::Add(sum, hn::IfThenElseZero(hn::FirstN(d, left), product));
  }
  return sum;
}

template <class D, class S>
HWY_INLINE hn::Vec<D> GatherPieces(D d, S& spans, size_t s, const double* from) {
  auto whole = hn::Zero(d);
  size_t i = spans.Begin(s), stop;
  do {
    stop = spans.Check(s, i);
    if constexpr (S::kRows) {
      whole = GatherPiece(d, spans, i, stop, from, whole);
    } else {
      whole = hn::Add(whole, GatherPiece(d, spans, i, stop, from, hn::Zero(d)));
    }
    i = stop;
  } while (spans.More(s, stop));
  return whole;
}

template <class D, class S>
HWY_NOINLINE hn::Vec<D> GatherUnchecked(D d, S& spans, size_t s, const double* from) {
  return GatherPieces(d, spans, s, from);
}

template <class D, class S>
HWY_INLINE hn::Vec<D> GatherSpan(D d, S& spans, size_t s, const double* from) {
  if constexpr (S::kRows) {
    const size_t end = spans.bounds[s + 1];
    if (HWY_UNLIKELY(!spans.IsChecked(end))) return GatherUnchecked(d, spans, s, from);
    return GatherPiece(d, spans, spans.bounds[s], end, from, hn::Zero(d));
  } else {
    return GatherPieces(d, spans, s, from);
  }
}

// GatherPanel for one output. The sums of spans are completed side by side.
template <class S>
HWY_INLINE void GatherOne(S& spans, const double* from, double* to) {
  const hn::CappedTag<double, 4> d;
  using V = hn::Vec<decltype(d)>;
  constexpr size_t kLanes = hn::MaxLanes(decltype(d)());
  std::array<V, kLanes> sums;
  for (size_t s = 0; s < spans.count; s += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) {
      sums[l] = s + l < spans.count ? GatherSpan(d, spans, s + l, from) : hn::Zero(d);
    }
    const V total = SumEachRow(d, sums);
    const size_t count = std::min(kLanes, spans.count - s);
    if (HWY_LIKELY(count == kLanes)) {
      hn::StoreU(hn::Add(hn::LoadU(d, to + s), total), d, to + s);
    } else {
      StoreTail(hn::Add(LoadTail(d, to + s, count), total), d, to + s, count);
    }
  }
}

// What entries are added to. Compensated sums are pairs of the sum and what it lost by rounding,
// which is found without an error (Knuth's TwoSum): they are right to the last digit, however many
// the entries, for the price of a second memory access to the same cache line and six additions.
enum class Sums { kPlain, kCompensated };

template <Sums kSums>
inline constexpr size_t kParts = kSums == Sums::kPlain ? 1 : 2;

template <Sums kSums>
HWY_INLINE void AddTo(double* sum, double term) {
  if constexpr (kSums == Sums::kPlain) {
    *sum += term;
  } else {
    const hn::CappedTag<double, 1> d;
    auto after = hn::Zero(d), lost = after;
    TwoSum(hn::LoadU(d, sum), hn::Set(d, term), after, lost);
    hn::StoreU(after, d, sum);
    hn::StoreU(hn::Add(hn::LoadU(d, sum + 1), lost), d, sum + 1);
  }
}

// Adds lane l to the sum of indices[l], one after the other: they may be equal.
template <Sums kSums, class D>
HWY_INLINE void AddEach([[maybe_unused]] D d, hn::Vec<D> terms, double* sums,
                        const uint32_t* indices) {
  const auto add = [&](size_t l, double term)
                       HWY_ATTR { AddTo<kSums>(sums + size_t{indices[l]} * kParts<kSums>, term); };
#if HWY_TARGET == HWY_SCALAR
  add(0, hn::GetLane(terms));
#else
  const hn::CappedTag<double, 2> pair;
  const auto two = [&](size_t l, hn::Vec<decltype(pair)> v) HWY_ATTR {
    add(l, hn::GetLane(v));
    add(l + 1, hn::GetLane(hn::InterleaveUpper(pair, v, v)));
  };
  if constexpr (hn::MaxLanes(D()) == 2) {
    two(0, terms);
  } else {
    two(0, hn::LowerHalf(pair, terms));
    two(2, hn::UpperHalf(pair, terms));
  }
#endif
}

// ScatterPanel for one output and rows that follow each other. Each row's factor is repeated for
// its entries, so that they are walked in whole vectors without a branch at the end of a row.
template <Sums kSums, class S>
HWY_INLINE void ScatterRows(S& spans, const double* from, double* to) {
  const hn::CappedTag<double, 4> d;
  using Load = Loader<decltype(d), typename S::Data>;
  constexpr size_t kLanes = hn::MaxLanes(decltype(d)());
  // Most rows end within as many entries as are always written; the next row overwrites the rest.
  constexpr size_t kBuffer = S::kWindow, kWritten = 16;
  double factors[kBuffer + kWritten];
  const size_t end = spans.bounds[spans.count];
  size_t s = 0;
  for (size_t begin = spans.bounds[0]; begin < end;) {
    const size_t limit = std::min(end, begin + kBuffer);
    for (size_t i = begin; i < limit;) {
      const size_t row_end = spans.bounds[s + 1], stop = std::min(row_end, limit);
      const auto factor = hn::Set(d, from[s]);
      double* const at = factors + (i - begin);
      PB_UNROLL
      for (size_t k = 0; k < kWritten; k += kLanes) hn::StoreU(factor, d, at + k);
      for (size_t k = kWritten; k < stop - i; k += kLanes) hn::StoreU(factor, d, at + k);
      i = stop;
      s += stop == row_end;
    }
    spans.CheckFrom(begin);
    size_t i = begin;
    for (; i + kLanes <= limit; i += kLanes) {
      AddEach<kSums>(d, hn::Mul(hn::LoadU(d, factors + (i - begin)), Load::Whole(spans.data + i)),
                     to, spans.indices + i);
    }
    for (; i < limit; ++i) {
      AddTo<kSums>(to + size_t{spans.indices[i]} * kParts<kSums>,
                   factors[i - begin] * double{spans.data[i]});
    }
    begin = limit;
  }
}

// to[index * outputs + k] += data * from[s * outputs + k] for the entries of each span s. Of
// compensated sums each index has a row of `outputs` sums, then one of what they lost.
template <Sums kSums, class D, size_t kVectors, class S>
HWY_INLINE void ScatterPanel(S& spans, size_t outputs, const double* from, double* to,
                             size_t last) {
  const D d;
  using V = hn::Vec<D>;
  constexpr size_t kLanes = hn::MaxLanes(D());
  std::array<V, kVectors> factor;
  const auto add = [&](size_t i, size_t index) HWY_ATTR {
    double* const row = to + index * outputs * kParts<kSums>;
    const V x = hn::Set(d, double{spans.data[i]});
    const auto store = [&](V v, double* at, bool is_last) HWY_ATTR {
      if (is_last) {
        StoreFirst(v, d, at, last);
      } else {
        hn::StoreU(v, d, at);
      }
    };
    PB_UNROLL
    for (size_t v = 0; v < kVectors; ++v) {
      double* const sum = row + v * kLanes;
      const bool is_last = v + 1 == kVectors;
      if constexpr (kSums == Sums::kPlain) {
        store(hn::MulAdd(x, factor[v], hn::LoadU(d, sum)), sum, is_last);
      } else {
        V after, lost;
        TwoSum(hn::LoadU(d, sum), hn::Mul(x, factor[v]), after, lost);
        const V rounded = hn::Add(hn::LoadU(d, sum + outputs), lost);
        store(after, sum, is_last);
        store(rounded, sum + outputs, is_last);
      }
    }
  };
  for (size_t s = 0; s < spans.count; ++s) {
    PB_UNROLL
    for (size_t v = 0; v < kVectors; ++v) {
      factor[v] = hn::LoadU(d, from + s * outputs + v * kLanes);
    }
    if constexpr (S::kRows) {
      size_t i = spans.Begin(s), stop;
      do {
        stop = spans.Check(s, i);
        for (; i < stop; ++i) add(i, spans.indices[i]);
      } while (spans.More(s, stop));
    } else {
      // Several rows of outputs at once are too many instructions.
      spans.template ForEach<kVectors * kLanes == 1 ? 4 : 1>(s, add);
    }
  }
}

enum class Walk { kGather, kScatter, kScatterCompensated };

template <Walk kWalk>
inline constexpr Sums kSumsOf =
    kWalk == Walk::kScatterCompensated ? Sums::kCompensated : Sums::kPlain;

template <Walk kWalk, class D, size_t kVectors, class S>
void WalkPanel(S& spans, size_t outputs, const double* from, double* to, size_t last) {
  if constexpr (kWalk == Walk::kGather) {
    GatherPanel<D, kVectors>(spans, outputs, from, to, last);
  } else {
    ScatterPanel<kSumsOf<kWalk>, D, kVectors>(spans, outputs, from, to, last);
  }
}

template <Walk kWalk, bool kOneOutput, class S>
void WalkSpans(S& spans, size_t outputs, const double* from, double* to) {
  if constexpr (kOneOutput) {
    if constexpr (kWalk == Walk::kGather) {
      GatherOne(spans, from, to);
    } else if constexpr (S::kRows) {
      ScatterRows<kSumsOf<kWalk>>(spans, from, to);
    } else {
      ScatterPanel<kSumsOf<kWalk>, hn::CappedTag<double, 1>, 1>(spans, 1, from, to, 1);
    }
    return;
  }
  using D = hn::ScalableTag<double>;
  constexpr size_t kLanes = hn::MaxLanes(D()), kMost = 4;
  size_t vectors = CeilDiv(outputs, kLanes), left = outputs;
  for (size_t panels = CeilDiv(vectors, kMost); panels > 0; --panels) {
    const size_t wide = CeilDiv(vectors, panels);
    const size_t width = std::min(wide * kLanes, left);
    const size_t last = width - (wide - 1) * kLanes;
    spans.Restart();
    static_assert(kMost == 4);
    switch (wide) {
      case 1:
        WalkPanel<kWalk, D, 1>(spans, outputs, from, to, last);
        break;
      case 2:
        WalkPanel<kWalk, D, 2>(spans, outputs, from, to, last);
        break;
      case 3:
        WalkPanel<kWalk, D, 3>(spans, outputs, from, to, last);
        break;
      default:
        WalkPanel<kWalk, D, 4>(spans, outputs, from, to, last);
    }
    vectors -= wide;
    left -= width;
    from += width;
    to += width;
  }
}

inline void FillRows(size_t rows, size_t outputs, const double* b, double* z) {
  if (outputs == 1) {
    std::fill_n(z, rows, *b);
  } else {
    for (size_t r = 0; r < rows; ++r) std::copy_n(b, outputs, z + r * outputs);
  }
}

inline size_t SparseRowBytes(const Design& X) {
  const size_t index = X.wide ? sizeof(int64_t) : sizeof(int32_t);
  return CeilDiv(X.entries * (ItemSize(X.dtype) + index), std::max(X.rows, size_t{1}));
}

// A slab's sums are as wide as a row: so many rows for each that has an entry in a column.
inline size_t SparseSlabRows(const Design& X) {
  constexpr size_t kRows = 8;
  return kRows * X.spread();
}

// --- CSR -----------------------------------------------------------------------------------------

// A quarter of L2: the second walk finds its entries there, beside the gradient.
constexpr size_t kCsrChunkBytes = size_t{128} << 10;

inline size_t CsrChunkRows(const Design& X, size_t) {
  return std::clamp(kCsrChunkBytes / std::max(SparseRowBytes(X), size_t{1}), size_t{8}, kLossBlock);
}

// The rows of a slab's current chunk, as they were read and checked.
struct RowsState {
  size_t listed;  // entries of the slab's chunks so far
  bool outside;   // the index of one of them is out of range
  size_t bounds[kLossBlock + 1];
};

inline size_t CsrStateDoubles(const Design& X) {
  const size_t rows = std::min(X.rows, kLossBlock);
  return CeilDiv(offsetof(RowsState, bounds), sizeof(double)) + rows + 1;
}

// The rows of a chunk. Doubles may be given as floats: these are widened as their indices are
// checked.
template <typename T>
class RowSpans {
 public:
  using Data = T;
  static constexpr bool kRows = true;
  // Indices that are checked at once: so many stay in L1.
  static constexpr size_t kWindow = 1024;
  static_assert(kWindow % kPieceMultiple == 0);

  RowSpans(const Design& X, size_t n_rows, RowsState& own)
      : data(static_cast<const T*>(X.data)),
        entries(X.entries),
        count(n_rows),
        bounds(own.bounds),
        given_(X.indices),
        wide_(X.wide),
        cols_(X.cols),
        narrow_(sizeof(T) == sizeof(double) && X.dtype == DType::kFloat32
                    ? static_cast<const float*>(X.data)
                    : nullptr),
        outside_(own.outside) {}

  HWY_INLINE size_t Begin(size_t row) const { return bounds[row]; }

  // Before a walk begins.
  void Restart() { held_ = {0, 0}; }

  // Whether the indices of entries up to this one are checked, from the current row on.
  HWY_INLINE bool IsChecked(size_t end) const { return end <= held_.end; }

  HWY_INLINE size_t Check(size_t row, size_t i) {
    const size_t end = bounds[row + 1];
    if (HWY_LIKELY(IsChecked(end))) return end;
    CheckFrom(i);
    return std::min(end, held_.end);
  }

  HWY_INLINE bool More(size_t row, size_t stop) const { return stop < bounds[row + 1]; }

  // Checks indices of the next kWindow entries.
  HWY_NOINLINE void CheckFrom(size_t begin) {
    held_ = {begin, std::min(bounds[count], begin + kWindow)};
    indices = window_ - begin;
    const size_t n = held_.size();
    if constexpr (sizeof(T) == sizeof(double)) {
      if (narrow_ != nullptr) {
        std::copy_n(narrow_ + begin, n, values_);
        data = values_ - begin;
      }
    }
    const bool below =
        wide_ ? CopyBelow(static_cast<const int64_t*>(given_) + begin, n, cols_, window_)
              : CopyBelow(static_cast<const int32_t*>(given_) + begin, n, cols_, window_);
    if (HWY_UNLIKELY(!below)) {
      outside_ = true;
      std::fill_n(window_, held_.size(), 0U);
    }
  }

  const T* data;
  const size_t entries, count;
  const size_t* const bounds;
  const uint32_t* indices = nullptr;

 private:
  const void* const given_;
  const bool wide_;
  const size_t cols_;
  const float* const narrow_;
  bool& outside_;
  Range held_ = {0, 0};
  alignas(64) uint32_t window_[kWindow + kIndexPadding];
  alignas(64) T values_[kWindow];
};

template <Walk kWalk, bool kOneOutput, typename T>
void WalkRows(const Design& X, size_t outputs, Range rows, const double* from, double* to,
              void* state) {
  RowSpans<T> spans(X, rows.size(), *static_cast<RowsState*>(state));
  WalkSpans<kWalk, kOneOutput>(spans, outputs, from, to);
}

template <typename T, bool kOneOutput>
void ForwardCsr(const Design& X, size_t outputs, Range rows, const double* w, const double* b,
                double* z, void* state) {
  FillRows(rows.size(), outputs, b, z);
  WalkRows<Walk::kGather, kOneOutput, T>(X, outputs, rows, w, z, state);
}

template <typename T, bool kOneOutput, Walk kScatter>
inline constexpr Stages kCsrStages = {ForwardCsr<T, kOneOutput>, WalkRows<kScatter, kOneOutput, T>};

// Thin rows: the gradient's compensated sums, (cols, 2, outputs).
inline size_t ThinSumDoubles(const Design& X, size_t outputs) {
  return PadDoubles(2 * X.cols * outputs);
}

inline void FinishThin(const Design& X, size_t outputs, const double* sums, double* gw) {
  for (size_t col = 0; col < X.cols; ++col, sums += 2 * outputs, gw += outputs) {
    for (size_t k = 0; k < outputs; ++k) {
      // What inf and NaN lost is a NaN.
      gw[k] += std::isfinite(sums[k]) ? sums[k] + sums[outputs + k] : sums[k];
    }
  }
}

inline bool SeekCsr(const Design&, size_t, void* state) {
  auto& rows = *static_cast<RowsState*>(state);
  rows.listed = 0;
  rows.outside = false;
  return true;
}

template <typename Index>
bool AdvanceRows(const Design& X, Range rows, RowsState& state) {
  std::copy_n(static_cast<const Index*>(X.indptr) + rows.begin, rows.size() + 1, state.bounds);
  // The top bit: of a negative bound, or of one below that before it.
  size_t falls = state.bounds[0];
  for (size_t r = 0; r < rows.size(); ++r) {
    falls |= state.bounds[r + 1] | (state.bounds[r + 1] - state.bounds[r]);
  }
  const size_t end = state.bounds[rows.size()], listed = end - state.bounds[0];
  state.listed += listed;
  return static_cast<ptrdiff_t>(falls) >= 0 && end <= X.entries && (X.cols > 0 || listed == 0);
}

inline bool AdvanceCsr(const Design& X, Range rows, void* state) {
  auto& own = *static_cast<RowsState*>(state);
  return X.wide ? AdvanceRows<int64_t>(X, rows, own) : AdvanceRows<int32_t>(X, rows, own);
}

inline std::optional<size_t> WalkedCsr(const Design&, const void* state) {
  const auto& rows = *static_cast<const RowsState*>(state);
  return rows.outside ? std::nullopt : std::optional(rows.listed);
}

// --- CSC -----------------------------------------------------------------------------------------

// Their predictions are a quarter of L2's.
constexpr size_t kCscChunkRows = 8192;

// A column's visit begins with a miss and ends with a misprediction: enough entries to pay for
// them.
inline size_t CscChunkRows(const Design& X, size_t) {
  constexpr size_t kVisit = 128;
  return std::clamp(kVisit * X.spread(), kLossBlock, kCscChunkRows);
}

// Each slab seeks its place in every column, which is a miss again: few slabs, of two chunks where
// that leaves several.
inline size_t CscSlabRows(const Design& X) {
  return std::max(std::min(X.rows / 4, 2 * kCscChunkRows), SparseSlabRows(X));
}

// A slab's walk. Of each column, the entries of the current chunk are between begin and end:
// forward finds where they end, and the next chunk begins there.
struct ColumnsState {
  size_t sought;  // the sum of where the slab begins
  size_t* begin;
  size_t* end;
};

// Each column's visit begins with a miss: so many columns ahead it is asked for. Behind the last
// column, the first entry is asked for.
inline constexpr size_t kColumnsAhead = 8;

inline size_t CscStateDoubles(const Design& X) {
  return CeilDiv(sizeof(ColumnsState), sizeof(double)) + 2 * (X.cols + kColumnsAhead);
}

// Each column's entries in a chunk's rows. They ascend, or they are not all found.
template <typename T>
class ColumnSpans {
 public:
  using Data = T;
  static constexpr bool kRows = false;
  static_assert(kLossBlock % kPieceMultiple == 0);

  ColumnSpans(const Design& X, Range rows, const ColumnsState& columns)
      : data(static_cast<const T*>(X.data)),
        entries(X.entries),
        count(X.cols),
        given_(X.indices),
        indptr_(X.indptr),
        wide_(X.wide),
        first_(rows.begin),
        rows_(rows.size()),
        columns_(columns) {}

  void Restart() {}

  // Forward: calls visit(entry, row of the chunk), and finds where the column's entries end; looks
  // at kAtOnce of them before it visits any.
  template <size_t kAtOnce, class F>
  HWY_INLINE void ForEach(size_t col, const F& visit) {
    if (wide_) {
      ForEachOf<kAtOnce, int64_t>(col, visit);
    } else {
      ForEachOf<kAtOnce, int32_t>(col, visit);
    }
  }

  HWY_INLINE size_t Begin(size_t col) {
    const size_t ahead = columns_.begin[col + kColumnsAhead];
    hwy::Prefetch(static_cast<const char*>(given_) +
                  ahead * (wide_ ? sizeof(int64_t) : sizeof(int32_t)));
    hwy::Prefetch(data + ahead);
    return columns_.begin[col];
  }

  HWY_INLINE size_t Check(size_t col, size_t i) {
    indices = block_ - i;
    const size_t size = std::min(columns_.end[col] - i, kLossBlock);
    if (wide_) {
      CopyClamped(static_cast<const int64_t*>(given_) + i, size, entries - i, first_, rows_,
                  block_);
    } else {
      CopyClamped(static_cast<const int32_t*>(given_) + i, size, entries - i, first_, rows_,
                  block_);
    }
    return i + size;
  }

  HWY_INLINE bool More(size_t col, size_t stop) const { return stop < columns_.end[col]; }

  const T* const data;
  const size_t entries, count;
  const uint32_t* indices = nullptr;

 private:
  template <size_t kAtOnce, typename Index, class F>
  HWY_INLINE void ForEachOf(size_t col, const F& visit) {
    using Unsigned = std::make_unsigned_t<Index>;
    const auto* const given = static_cast<const Index*>(given_);
    const auto row_of = [&](size_t i) -> size_t {
      return static_cast<Unsigned>(static_cast<Unsigned>(ReadOnce(given + i)) -
                                   static_cast<Unsigned>(first_));
    };
    size_t i = Begin(col);
    // Negative ones are beyond, too.
    const size_t stop = std::min(
        static_cast<size_t>(ReadOnce(static_cast<const Index*>(indptr_) + col + 1)), entries);
    for (; kAtOnce > 1 && i + kAtOnce <= stop; i += kAtOnce) {
      std::array<size_t, kAtOnce> rows;
      PB_UNROLL
      for (size_t k = 0; k < kAtOnce; ++k) rows[k] = row_of(i + k);
      if (*std::max_element(rows.begin(), rows.end()) >= rows_) break;
      PB_UNROLL
      for (size_t k = 0; k < kAtOnce; ++k) visit(i + k, rows[k]);
    }
    for (; i < stop; ++i) {
      const size_t row = row_of(i);
      if (row >= rows_) break;
      visit(i, row);
    }
    columns_.end[col] = i;
  }

  const void* const given_;
  const void* const indptr_;
  const bool wide_;
  const size_t first_, rows_;
  const ColumnsState& columns_;
  alignas(64) uint32_t block_[kLossBlock + kIndexPadding];
};

template <Walk kWalk, bool kOneOutput, typename T>
void WalkColumns(const Design& X, size_t outputs, Range rows, const double* from, double* to,
                 void* state) {
  ColumnSpans<T> spans(X, rows, *static_cast<const ColumnsState*>(state));
  WalkSpans<kWalk, kOneOutput>(spans, outputs, from, to);
}

template <typename T, bool kOneOutput>
void ForwardCsc(const Design& X, size_t outputs, Range rows, const double* w, const double* b,
                double* z, void* state) {
  FillRows(rows.size(), outputs, b, z);
  WalkColumns<Walk::kScatter, kOneOutput, T>(X, outputs, rows, w, z, state);
}

template <typename T, bool kOneOutput>
inline constexpr Stages kCscStages = {ForwardCsc<T, kOneOutput>,
                                      WalkColumns<Walk::kGather, kOneOutput, T>};

// The first of [begin, end) that is not below `row`, sought from where it would be if all of them
// were spread evenly over `rows`: a binary search would miss the cache at every step.
template <typename Index>
const Index* FirstFrom(const Index* begin, const Index* end, size_t row, size_t rows) {
  const auto below = [row](Index index) { return index < static_cast<Index>(row); };
  const auto share = static_cast<double>(row) / static_cast<double>(rows);
  const Index* at = begin + static_cast<ptrdiff_t>(share * static_cast<double>(end - begin));
  ptrdiff_t step = 8;
  if (at != end && below(*at)) {
    for (begin = at; end - at > step && below(at[step]); step *= 2) begin = at = at + step;
    if (end - at > step) end = at + step;
  } else {
    for (end = at; at - begin > step && !below(at[-step]); step *= 2) end = at = at - step;
    if (at - begin > step) begin = at - step;
  }
  return std::partition_point(begin, end, below);
}

template <typename Index>
bool SeekColumns(const Design& X, size_t row, ColumnsState& columns) {
  const auto* const indices = static_cast<const Index*>(X.indices);
  const auto* const indptr = static_cast<const Index*>(X.indptr);
  columns.sought = 0;
  Index begin = ReadOnce(indptr);
  for (size_t col = 0; col < X.cols; ++col) {
    const Index end = ReadOnce(indptr + col + 1);
    if (!IsSpan(begin, end, X.entries)) return false;
    const Index* const at =
        row == 0 ? indices + begin : FirstFrom(indices + begin, indices + end, row, X.rows);
    columns.end[col] = static_cast<size_t>(at - indices);
    columns.sought += columns.end[col];
    begin = end;
  }
  return true;
}

inline bool SeekCsc(const Design& X, size_t row, void* state) {
  auto& columns = *static_cast<ColumnsState*>(state);
  columns.begin = reinterpret_cast<size_t*>(&columns + 1);
  columns.end = columns.begin + X.cols + kColumnsAhead;
  std::fill_n(columns.begin + X.cols, kColumnsAhead, size_t{0});
  std::fill_n(columns.end + X.cols, kColumnsAhead, size_t{0});
  return X.wide ? SeekColumns<int64_t>(X, row, columns) : SeekColumns<int32_t>(X, row, columns);
}

inline bool AdvanceCsc(const Design&, Range, void* state) {
  auto& columns = *static_cast<ColumnsState*>(state);
  std::swap(columns.begin, columns.end);
  return true;
}

inline std::optional<size_t> WalkedCsc(const Design& X, const void* state) {
  const auto& columns = *static_cast<const ColumnsState*>(state);
  return std::accumulate(columns.end, columns.end + X.cols, size_t{0}) - columns.sought;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

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

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/blocks.h"
#include "kernels/load-inl.h"
#include "kernels/losses.h"
#include "math/error_free-inl.h"
#include "runtime/partition.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// --- the two loops -------------------------------------------------------------------------------

// Spans 0 ... count - 1 of entries; `first` is what the lowest index counts from.
template <typename T, typename Index, class Bounds>
struct Spans {
  const T* data;
  const Index* indices;
  Bounds bounds;  // span -> Range of entries
  size_t count, first;
  size_t known;  // entries before this one are of these spans, or of such whose indices fit too

  // Whether each span begins where the one before it ends, and is the entries of a row.
  static constexpr bool kRows = Bounds::kRows;
};

// Of columns at most kLossBlock entries are summed at once: a chunk may have more rows.

// to[s * outputs + k] += sum over span s of data * from[index * outputs + k] for the `last` outputs
// of the panel's last vector and all of those before.
template <class D, size_t kVectors, class S>
HWY_INLINE void GatherPanel(const S& spans, size_t outputs, const double* from, double* to,
                            size_t last) {
  const D d;
  using V = hn::Vec<D>;
  constexpr size_t kLanes = hn::MaxLanes(D());
  // Chains of additions, so that none waits for its latency.
  constexpr size_t kChains = kVectors == 1 ? 4 : 2;
  for (size_t s = 0; s < spans.count; ++s) {
    const Range entries = spans.bounds(s);
    std::array<std::array<V, kVectors>, kChains> sum;
    const auto add = [&](size_t i, std::array<V, kVectors>& chain) HWY_ATTR {
      const double* const row =
          from + (static_cast<size_t>(spans.indices[i]) - spans.first) * outputs;
      const V x = hn::Set(d, double{spans.data[i]});
      PB_UNROLL
      for (size_t v = 0; v < kVectors; ++v) {
        chain[v] = hn::MulAdd(x, hn::LoadU(d, row + v * kLanes), chain[v]);
      }
    };
    double* const row = to + s * outputs;
    size_t i = entries.begin;
    do {
      const size_t stop = S::kRows ? entries.end : std::min(entries.end, i + kLossBlock);
      PB_UNROLL
      for (size_t c = 0; c < kChains; ++c) {
        PB_UNROLL
        for (size_t v = 0; v < kVectors; ++v) sum[c][v] = hn::Zero(d);
      }
      for (; i + kChains <= stop; i += kChains) {
        PB_UNROLL
        for (size_t c = 0; c < kChains; ++c) add(i + c, sum[c]);
      }
      for (; i < stop; ++i) add(i, sum[0]);
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
    } while (i < entries.end);
  }
}

// Lane l is from[indices[l]]: by as many loads, since an instruction that gathers is slower.
template <class D, typename Index>
HWY_INLINE hn::Vec<D> LoadEach(D d, const double* from, const Index* indices) {
  const auto at = [&](size_t l) { return from[static_cast<size_t>(indices[l])]; };
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

// GatherPanel for one output. Spans are short: the rest of the last vector is masked, as a loop
// over it would end in a misprediction, and their sums are completed side by side.
template <class S>
HWY_INLINE void GatherOne(const S& spans, const double* from, double* to) {
  const hn::CappedTag<double, 4> d;
  using V = hn::Vec<decltype(d)>;
  using Data = std::remove_cv_t<std::remove_reference_t<decltype(*spans.data)>>;
  using Index = std::remove_cv_t<std::remove_reference_t<decltype(*spans.indices)>>;
  using Load = Loader<decltype(d), Data>;
  constexpr size_t kLanes = hn::MaxLanes(decltype(d)());
  const double* const base = from - static_cast<ptrdiff_t>(spans.first);
  const auto sum_of = [&](size_t s) HWY_ATTR {
    const Range entries = spans.bounds(s);
    V sum = hn::Zero(d), whole = sum;
    for (size_t i = entries.begin; i < entries.end; i += kLanes) {
      if constexpr (!S::kRows) {
        if (HWY_UNLIKELY(i != entries.begin && (i - entries.begin) % kLossBlock == 0)) {
          whole = hn::Add(whole, sum);
          sum = hn::Zero(d);
        }
      }
      const size_t left = entries.end - i;
      V product;
      if (HWY_LIKELY(left >= kLanes || i + kLanes <= spans.known)) {
        product = hn::Mul(Load::Whole(spans.data + i), LoadEach(d, base, spans.indices + i));
      } else {
        Index indices[kLanes];
        for (size_t l = 0; l < kLanes; ++l) indices[l] = spans.indices[i + std::min(l, left - 1)];
        product = hn::Mul(Load::Part(spans.data + i, left), LoadEach(d, base, indices));
      }
      sum = hn::Add(sum, hn::IfThenElseZero(hn::FirstN(d, left), product));
    }
    return S::kRows ? sum : hn::Add(whole, sum);
  };
  std::array<V, kLanes> sums;
  for (size_t s = 0; s < spans.count; s += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) sums[l] = s + l < spans.count ? sum_of(s + l) : hn::Zero(d);
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
template <Sums kSums, class D, typename Index>
HWY_INLINE void AddEach([[maybe_unused]] D d, hn::Vec<D> terms, double* sums,
                        const Index* indices) {
  const auto add = [&](size_t l, double term) HWY_ATTR {
    AddTo<kSums>(sums + static_cast<size_t>(indices[l]) * kParts<kSums>, term);
  };
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
HWY_INLINE void ScatterRows(const S& spans, const double* from, double* to) {
  const hn::CappedTag<double, 4> d;
  using Data = std::remove_cv_t<std::remove_reference_t<decltype(*spans.data)>>;
  using Load = Loader<decltype(d), Data>;
  constexpr size_t kLanes = hn::MaxLanes(decltype(d)());
  // Most rows end within as many entries as are always written; the next row overwrites the rest.
  constexpr size_t kBuffer = 2048, kWritten = 16;
  double factors[kBuffer + kWritten];
  const size_t end = spans.count == 0 ? 0 : spans.bounds(spans.count - 1).end;
  size_t s = 0;
  for (size_t begin = spans.count == 0 ? 0 : spans.bounds(0).begin; begin < end;) {
    const size_t limit = std::min(end, begin + kBuffer);
    for (size_t i = begin; i < limit;) {
      const size_t row_end = spans.bounds(s).end, stop = std::min(row_end, limit);
      const auto factor = hn::Set(d, from[s]);
      double* const at = factors + (i - begin);
      PB_UNROLL
      for (size_t k = 0; k < kWritten; k += kLanes) hn::StoreU(factor, d, at + k);
      for (size_t k = kWritten; k < stop - i; k += kLanes) hn::StoreU(factor, d, at + k);
      i = stop;
      s += stop == row_end;
    }
    size_t i = begin;
    for (; i + kLanes <= limit; i += kLanes) {
      AddEach<kSums>(d, hn::Mul(hn::LoadU(d, factors + (i - begin)), Load::Whole(spans.data + i)),
                     to, spans.indices + i);
    }
    for (; i < limit; ++i) {
      AddTo<kSums>(to + static_cast<size_t>(spans.indices[i]) * kParts<kSums>,
                   factors[i - begin] * double{spans.data[i]});
    }
    begin = limit;
  }
}

// to[index * outputs + k] += data * from[s * outputs + k] for the entries of each span s. Of
// compensated sums each index has a row of `outputs` sums, then one of what they lost.
template <Sums kSums, class D, size_t kVectors, class S>
HWY_INLINE void ScatterPanel(const S& spans, size_t outputs, const double* from, double* to,
                             size_t last) {
  const D d;
  using V = hn::Vec<D>;
  constexpr size_t kLanes = hn::MaxLanes(D());
  for (size_t s = 0; s < spans.count; ++s) {
    const Range entries = spans.bounds(s);
    std::array<V, kVectors> factor;
    PB_UNROLL
    for (size_t v = 0; v < kVectors; ++v) {
      factor[v] = hn::LoadU(d, from + s * outputs + v * kLanes);
    }
    for (size_t i = entries.begin; i < entries.end; ++i) {
      double* const row =
          to + (static_cast<size_t>(spans.indices[i]) - spans.first) * outputs * kParts<kSums>;
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
          const V rest = hn::Add(hn::LoadU(d, sum + outputs), lost);
          store(after, sum, is_last);
          store(rest, sum + outputs, is_last);
        }
      }
    }
  }
}

enum class Walk { kGather, kScatter, kScatterCompensated };

template <Walk kWalk>
inline constexpr Sums kSumsOf =
    kWalk == Walk::kScatterCompensated ? Sums::kCompensated : Sums::kPlain;

template <Walk kWalk, class D, size_t kVectors, class S>
void WalkPanel(const S& spans, size_t outputs, const double* from, double* to, size_t last) {
  if constexpr (kWalk == Walk::kGather) {
    GatherPanel<D, kVectors>(spans, outputs, from, to, last);
  } else {
    ScatterPanel<kSumsOf<kWalk>, D, kVectors>(spans, outputs, from, to, last);
  }
}

template <Walk kWalk, bool kOneOutput, class S>
void WalkSpans(const S& spans, size_t outputs, const double* from, double* to) {
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

// 0 <= begin <= end <= entries; as unsigned numbers the first follows.
template <typename Index>
HWY_INLINE bool IsSpan(Index begin, Index end, size_t entries) {
  return static_cast<size_t>(begin) <= static_cast<size_t>(end) &&
         static_cast<size_t>(end) <= entries;
}

// --- CSR -----------------------------------------------------------------------------------------

// A quarter of L2: the second walk finds its entries there, beside the gradient.
constexpr size_t kCsrChunkBytes = size_t{128} << 10;

inline size_t CsrChunkRows(const Design& X, size_t) {
  return std::clamp(kCsrChunkBytes / std::max(SparseRowBytes(X), size_t{1}), size_t{8}, kLossBlock);
}

template <typename Index>
struct RowBounds {
  static constexpr bool kRows = true;
  const Index* indptr;
  HWY_INLINE Range operator()(size_t row) const {
    return {static_cast<size_t>(indptr[row]), static_cast<size_t>(indptr[row + 1])};
  }
};

template <Walk kWalk, bool kOneOutput, typename T, typename Index>
void WalkRows(const Design& X, size_t outputs, Range rows, const double* from, double* to) {
  const RowBounds<Index> bounds{static_cast<const Index*>(X.indptr) + rows.begin};
  const Spans<T, Index, RowBounds<Index>> spans{static_cast<const T*>(X.data),
                                                static_cast<const Index*>(X.indices),
                                                bounds,
                                                rows.size(),
                                                0,
                                                static_cast<size_t>(bounds.indptr[rows.size()])};
  WalkSpans<kWalk, kOneOutput>(spans, outputs, from, to);
}

template <typename T, bool kOneOutput>
void ForwardCsr(const Design& X, size_t outputs, Range rows, const double* w, const double* b,
                double* z, void*) {
  FillRows(rows.size(), outputs, b, z);
  auto* const walk = X.wide ? WalkRows<Walk::kGather, kOneOutput, T, int64_t>
                            : WalkRows<Walk::kGather, kOneOutput, T, int32_t>;
  walk(X, outputs, rows, w, z);
}

template <Walk kWalk, typename T, bool kOneOutput>
void BackwardCsr(const Design& X, size_t outputs, Range rows, const double* slopes, double* gw) {
  auto* const walk =
      X.wide ? WalkRows<kWalk, kOneOutput, T, int64_t> : WalkRows<kWalk, kOneOutput, T, int32_t>;
  walk(X, outputs, rows, slopes, gw);
}

template <typename T, bool kOneOutput>
void BackwardFull(const Design& X, size_t outputs, Range rows, const double* slopes, double* gw,
                  void*) {
  BackwardCsr<Walk::kScatter, T, kOneOutput>(X, outputs, rows, slopes, gw);
}

template <typename T, bool kOneOutput>
void BackwardThin(const Design& X, size_t outputs, Range rows, const double* slopes, double*,
                  void* state) {
  BackwardCsr<Walk::kScatterCompensated, T, kOneOutput>(X, outputs, rows, slopes,
                                                        static_cast<double*>(state));
}

template <typename T, bool kOneOutput, bool kThin>
inline constexpr Stages kCsrStages = {
    ForwardCsr<T, kOneOutput>, kThin ? BackwardThin<T, kOneOutput> : BackwardFull<T, kOneOutput>};

// Thin rows: the gradient's compensated sums, (cols, 2, outputs).
inline size_t ThinStateDoubles(const Design& X, size_t outputs) {
  return PadDoubles(2 * X.cols * outputs);
}

inline void FinishThin(const Design& X, size_t outputs, const void* state, double* gw) {
  const auto* sums = static_cast<const double*>(state);
  for (size_t col = 0; col < X.cols; ++col, sums += 2 * outputs, gw += outputs) {
    for (size_t k = 0; k < outputs; ++k) {
      // What inf and NaN lost is a NaN.
      gw[k] += std::isfinite(sums[k]) ? sums[k] + sums[outputs + k] : sums[k];
    }
  }
}

// Whether indices[begin, end) are all below `limit`.
template <typename Index>
bool AllBelow(const Index* indices, size_t begin, size_t end, size_t limit) {
  const hn::ScalableTag<Index> d;
  using Unsigned = std::make_unsigned_t<Index>;
  constexpr auto kMost = static_cast<size_t>(hwy::LimitsMax<Index>());
  const auto last = static_cast<Index>(static_cast<ptrdiff_t>(std::min(limit, kMost)) - 1);
  // Negative where `i` or `last - i` is.
  auto outside = hn::Zero(d);
  const auto most = hn::Set(d, last);
  size_t i = begin;
  for (; i + hn::Lanes(d) <= end; i += hn::Lanes(d)) {
    const auto index = hn::LoadU(d, indices + i);
    outside = hn::Or(outside, hn::Or(index, hn::Sub(most, index)));
  }
  bool inside = hn::AllFalse(d, hn::Lt(outside, hn::Zero(d)));
  for (; i < end; ++i) {
    inside = inside && static_cast<Unsigned>(indices[i]) < static_cast<Unsigned>(limit);
  }
  return inside;
}

template <typename Index>
bool CsrInRange(const Design& X, Range rows) {
  const auto* const indptr = static_cast<const Index*>(X.indptr);
  for (size_t row = rows.begin; row < rows.end; ++row) {
    if (!IsSpan(indptr[row], indptr[row + 1], X.entries)) return false;
  }
  return AllBelow(static_cast<const Index*>(X.indices), static_cast<size_t>(indptr[rows.begin]),
                  static_cast<size_t>(indptr[rows.end]), X.cols);
}

// Checks the indices on their way into the cache.
inline bool AdvanceCsr(const Design& X, Range rows, void*) {
  return X.wide ? CsrInRange<int64_t>(X, rows) : CsrInRange<int32_t>(X, rows);
}

// --- CSC -----------------------------------------------------------------------------------------

// Where each column's entries of the current chunk lie.
struct ColumnBounds {
  static constexpr bool kRows = false;
  const Range* cursors;
  HWY_INLINE Range operator()(size_t col) const { return cursors[col]; }
};

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

inline size_t CscStateDoubles(const Design& X, size_t) {
  return X.cols * (sizeof(Range) / sizeof(double));
}

template <Walk kWalk, bool kOneOutput, typename T, typename Index>
void WalkColumns(const Design& X, size_t outputs, Range rows, const double* from, double* to,
                 const void* state) {
  const Spans<T, Index, ColumnBounds> spans{static_cast<const T*>(X.data),
                                            static_cast<const Index*>(X.indices),
                                            {static_cast<const Range*>(state)},
                                            X.cols,
                                            rows.begin,
                                            0};
  WalkSpans<kWalk, kOneOutput>(spans, outputs, from, to);
}

template <typename T, bool kOneOutput>
void ForwardCsc(const Design& X, size_t outputs, Range rows, const double* w, const double* b,
                double* z, void* state) {
  FillRows(rows.size(), outputs, b, z);
  auto* const walk = X.wide ? WalkColumns<Walk::kScatter, kOneOutput, T, int64_t>
                            : WalkColumns<Walk::kScatter, kOneOutput, T, int32_t>;
  walk(X, outputs, rows, w, z, state);
}

template <typename T, bool kOneOutput>
void BackwardCsc(const Design& X, size_t outputs, Range rows, const double* slopes, double* gw,
                 void* state) {
  auto* const walk = X.wide ? WalkColumns<Walk::kGather, kOneOutput, T, int64_t>
                            : WalkColumns<Walk::kGather, kOneOutput, T, int32_t>;
  walk(X, outputs, rows, slopes, gw, state);
}

template <typename T, bool kOneOutput>
inline constexpr Stages kCscStages = {ForwardCsc<T, kOneOutput>, BackwardCsc<T, kOneOutput>};

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
bool SeekColumns(const Design& X, size_t row, Range* cursors) {
  const auto* const indices = static_cast<const Index*>(X.indices);
  const auto* const indptr = static_cast<const Index*>(X.indptr);
  for (size_t col = 0; col < X.cols; ++col) {
    if (!IsSpan(indptr[col], indptr[col + 1], X.entries)) return false;
    const Index* const begin = indices + indptr[col];
    const Index* const end = indices + indptr[col + 1];
    // From the top, negative ones stay in sight of Advance.
    const Index* const at = row == 0 ? begin : FirstFrom(begin, end, row, X.rows);
    cursors[col].end = static_cast<size_t>(at - indices);
  }
  return true;
}

inline bool SeekCsc(const Design& X, size_t row, void* state) {
  auto* const cursors = static_cast<Range*>(state);
  return X.wide ? SeekColumns<int64_t>(X, row, cursors) : SeekColumns<int32_t>(X, row, cursors);
}

// Each column's entries up to the chunk's end. They ascend, so that only those of the first and the
// last chunk can be out of range.
template <typename Index>
bool AdvanceColumns(const Design& X, Range rows, Range* cursors) {
  const hn::ScalableTag<Index> d;
  const auto* const indices = static_cast<const Index*>(X.indices);
  const auto* const indptr = static_cast<const Index*>(X.indptr);
  const auto limit = static_cast<Index>(rows.end);
  const auto limits = hn::Set(d, limit);
  bool inside = true;
  for (size_t col = 0; col < X.cols; ++col) {
    const auto stop = static_cast<size_t>(indptr[col + 1]);
    const size_t begin = cursors[col].end;
    size_t i = begin;
    // Counted by whole vectors: the branch of a loop over so few entries would be mispredicted.
    size_t below = hn::Lanes(d);
    while (below == hn::Lanes(d) && i + hn::Lanes(d) <= stop) {
      below = hn::CountTrue(d, hn::Lt(hn::LoadU(d, indices + i), limits));
      i += below;
    }
    if (below == hn::Lanes(d)) {
      while (i < stop && indices[i] < limit) ++i;
    }
    if (rows.begin == 0 && begin < i) inside = inside && indices[begin] >= 0;
    if (rows.end == X.rows) inside = inside && i == stop;
    cursors[col] = {begin, i};
  }
  return inside;
}

inline bool AdvanceCsc(const Design& X, Range rows, void* state) {
  auto* const cursors = static_cast<Range*>(state);
  return X.wide ? AdvanceColumns<int64_t>(X, rows, cursors)
                : AdvanceColumns<int32_t>(X, rows, cursors);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

// Dense X, one output: rows in registers or side by side, columns several at a time.
//
// An element is needed twice, for its row's prediction and, scaled by the loss's slope, for the
// gradient. It is read from memory once and taken from cache the second time; so that memory does
// not idle then, what comes next is asked for meanwhile.
#if defined(PULLBACK_CPP_KERNELS_DENSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_DENSE_INL_H_
#undef PULLBACK_CPP_KERNELS_DENSE_INL_H_
#else
#define PULLBACK_CPP_KERNELS_DENSE_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>

#include "kernels/load-inl.h"
#include "kernels/losses.h"
#include "kernels/sums.h"
#include "runtime/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline size_t DenseRowBytes(const Design& X) { return X.cols * ItemSize(X.dtype); }

// A row of kRows, or a column of kColumns.
template <typename T>
HWY_INLINE const T* LineOf(const Design& X, size_t i) {
  return static_cast<const T*>(X.data) + static_cast<ptrdiff_t>(i) * X.stride;
}

// Rows are cut into vectors of at most four lanes unless they are very long. Wider ones straddle
// cache lines at every load, since NumPy aligns to 16 bytes, and of short rows the last vector
// would be mostly empty: eight lanes took 1.4 x the time at 10 columns and 1.2 x at 100.
using Tag = hn::CappedTag<double, 4>;
using WideTag = hn::ScalableTag<double>;

// X of at most so many bytes is taken to be in the last-level cache.
constexpr size_t kCachedBytes = size_t{16} << 20;
// Of more than this, short rows are fetched from there ahead: a tenth faster at 10000 x 100, and a
// tenth slower for smaller X or longer rows.
constexpr size_t kNearBytes = size_t{4} << 20;
// From memory, the shortest of longer rows are predicted one by one, in the order of memory, or the
// hardware would see nothing but beginnings of streams; others are read in wide vectors, and huge
// ones one by one again, or they would have left the cache before the second pass.
constexpr size_t kSerialRowBytes = 1536;
constexpr size_t kLongRowBytes = 4096;
constexpr size_t kHugeRowBytes = 65536;
constexpr size_t kRowsAtOnce = 8;

// Every second cache line passed of some rows or columns, their next line is asked for, `ahead`
// elements on: the first half by Forward, the second by Backward.
template <typename T, size_t kGroup>
class Fetch {
 public:
  HWY_INLINE Fetch(ptrdiff_t ahead, size_t begin) : ahead_(ahead), next_(begin) {}

  // A prefetch cannot fault: it may lie past the last rows.
  HWY_INLINE void Pass(const T* const (&x)[kGroup], size_t i) {
    if (ahead_ == 0 || i < due_) return;
    for (size_t g = 0; g < kGroup; ++g) PrefetchIntoL2(x[g] + next_ + ahead_);
    next_ += kLine;
    due_ += 2 * kLine;
  }

  static constexpr size_t Half(size_t n) { return n / kLine / 2 * kLine; }

 private:
  static constexpr size_t kLine = 64 / sizeof(T);
  ptrdiff_t ahead_;
  size_t next_, due_ = 0;
};

// --- rows of a few vectors -----------------------------------------------------------------------

// Up to this many vectors a row weights and gradient stay in registers.
constexpr size_t kShortVectors = 6;

template <typename T, size_t kVectors>
struct ShortRows {
  using V = hn::Vec<Tag>;
  static constexpr size_t kLanes = hn::MaxLanes(Tag());

  static HWY_INLINE V Part(const T* row, size_t v, size_t tail) {
    const T* const p = row + v * kLanes;
    return v + 1 < kVectors ? Loader<Tag, T>::Whole(p) : Loader<Tag, T>::Part(p, tail);
  }

  static void Forward(const Design& X, Range rows, const double* w, double b, double* z,
                      [[maybe_unused]] ptrdiff_t ahead) {
    const Tag d;
    const size_t tail = X.cols - (kVectors - 1) * kLanes;
    V weight[kVectors];
    PB_UNROLL
    for (size_t v = 0; v < kVectors; ++v) weight[v] = hn::LoadU(d, w + v * kLanes);
    const V bias = hn::Set(d, b);
    const auto dot = [&](size_t row) HWY_ATTR {
      const T* const x = LineOf<T>(X, row);
      V sum = hn::Mul(weight[0], Part(x, 0, tail));
      PB_UNROLL
      for (size_t v = 1; v < kVectors; ++v) sum = hn::MulAdd(weight[v], Part(x, v, tail), sum);
      return sum;
    };
    std::array<V, kLanes> dots;
    size_t row = rows.begin;
    for (; row + kLanes <= rows.end; row += kLanes) {
      PB_UNROLL
      for (size_t r = 0; r < kLanes; ++r) dots[r] = dot(row + r);
      hn::StoreU(hn::Add(SumEachRow(d, dots), bias), d, z + (row - rows.begin));
    }
    if (row == rows.end) return;
    for (size_t r = 0; r < kLanes; ++r) dots[r] = row + r < rows.end ? dot(row + r) : hn::Zero(d);
    hn::StoreU(hn::Add(SumEachRow(d, dots), bias), d, z + (row - rows.begin));
  }

  static void Backward(const Design& X, Range rows, const double* slopes, double* gw,
                       [[maybe_unused]] ptrdiff_t ahead) {
    const Tag d;
    const size_t tail = X.cols - (kVectors - 1) * kLanes;
    // Two chains of additions per vector: one alone would wait for its own latency.
    V even[kVectors], odd[kVectors];
    PB_UNROLL
    for (size_t v = 0; v < kVectors; ++v) {
      even[v] = hn::LoadU(d, gw + v * kLanes);
      odd[v] = hn::Zero(d);
    }
    const auto add = [&](size_t r, V(&gradient)[kVectors]) HWY_ATTR {
      const T* const x = LineOf<T>(X, rows.begin + r);
      const V slope = hn::Set(d, slopes[r]);
      PB_UNROLL
      for (size_t v = 0; v < kVectors; ++v) {
        gradient[v] = hn::MulAdd(slope, Part(x, v, tail), gradient[v]);
      }
    };
    size_t r = 0;
    for (; r + 2 <= rows.size(); r += 2) {
      add(r, even);
      add(r + 1, odd);
    }
    if (r < rows.size()) add(r, even);
    PB_UNROLL
    for (size_t v = 0; v < kVectors; ++v) {
      hn::StoreU(hn::Add(even[v], odd[v]), d, gw + v * kLanes);
    }
  }
};

// --- longer rows ---------------------------------------------------------------------------------

// Rows side by side: each part of the weights, and of the gradient, is loaded once for all.
template <typename T, class D, size_t kGroup>
struct LongRows {
  using V = hn::Vec<D>;
  static constexpr size_t kLanes = hn::MaxLanes(D());
  using Ahead = Fetch<T, kGroup>;

  static HWY_INLINE void Point(const Design& X, size_t row, size_t end, const T* (&x)[kGroup]) {
    for (size_t r = 0; r < kGroup; ++r) x[r] = LineOf<T>(X, std::min(row + r, end - 1));
  }

  static void Forward(const Design& X, Range rows, const double* w, double b, double* z,
                      ptrdiff_t ahead) {
    const D d;
    const size_t whole = X.cols / kLanes * kLanes, tail = X.cols - whole;
    for (size_t row = rows.begin; row < rows.end; row += kGroup) {
      const T* x[kGroup];
      Point(X, row, rows.end, x);
      Ahead fetch(ahead, 0);
      V dots[kGroup];
      PB_UNROLL
      for (V& dot : dots) dot = hn::Zero(d);
      for (size_t j = 0; j < whole; j += kLanes) {
        fetch.Pass(x, j);
        const V weight = hn::LoadU(d, w + j);
        PB_UNROLL
        for (size_t r = 0; r < kGroup; ++r) {
          dots[r] = hn::MulAdd(weight, Loader<D, T>::Whole(x[r] + j), dots[r]);
        }
      }
      if (tail != 0) {
        const V weight = hn::LoadU(d, w + whole);
        PB_UNROLL
        for (size_t r = 0; r < kGroup; ++r) {
          dots[r] = hn::MulAdd(weight, Loader<D, T>::Part(x[r] + whole, tail), dots[r]);
        }
      }
      double* const to = z + (row - rows.begin);
      if constexpr (kGroup % kLanes == 0) {
        PB_UNROLL
        for (size_t first = 0; first < kGroup; first += kLanes) {
          std::array<V, kLanes> some;
          PB_UNROLL
          for (size_t r = 0; r < kLanes; ++r) some[r] = dots[first + r];
          hn::StoreU(hn::Add(SumEachRow(d, some), hn::Set(d, b)), d, to + first);
        }
      } else {
        for (size_t r = 0; r < kGroup; ++r) to[r] = SumLanes(d, dots[r]) + b;
      }
    }
  }

  static void Backward(const Design& X, Range rows, const double* slopes, double* gw,
                       ptrdiff_t ahead) {
    size_t row = rows.begin;
    for (; row + kGroup <= rows.end; row += kGroup) {
      Add<kGroup>(X, row, kGroup, slopes + (row - rows.begin), gw, ahead);
    }
    if (row < rows.end) Add<0>(X, row, rows.end - row, slopes + (row - rows.begin), gw, ahead);
  }

 private:
  template <size_t kFull>
  static HWY_INLINE void Add(const Design& X, size_t row, size_t count, const double* slopes,
                             double* gw, ptrdiff_t ahead) {
    const D d;
    const size_t whole = X.cols / kLanes * kLanes, tail = X.cols - whole;
    const T* x[kGroup];
    Point(X, row, row + count, x);
    Ahead fetch(ahead, Ahead::Half(X.cols));
    V slope[kGroup];
    PB_UNROLL
    for (size_t r = 0; r < kGroup; ++r) {
      slope[r] = r < count ? hn::Set(d, slopes[r]) : hn::Zero(d);
    }
    for (size_t j = 0; j < whole; j += kLanes) {
      fetch.Pass(x, j);
      V gradient = hn::LoadU(d, gw + j);
      PB_UNROLL
      for (size_t r = 0; r < kGroup; ++r) {
        if (kFull == 0 && r >= count) break;
        gradient = hn::MulAdd(slope[r], Loader<D, T>::Whole(x[r] + j), gradient);
      }
      hn::StoreU(gradient, d, gw + j);
    }
    if (tail != 0) {
      V gradient = hn::LoadU(d, gw + whole);
      PB_UNROLL
      for (size_t r = 0; r < kGroup; ++r) {
        if (kFull == 0 && r >= count) break;
        gradient = hn::MulAdd(slope[r], Loader<D, T>::Part(x[r] + whole, tail), gradient);
      }
      hn::StoreU(gradient, d, gw + whole);
    }
  }
};

// Predictions of one row after the other.
template <typename T>
struct SerialRows {
  using V = hn::Vec<Tag>;
  static constexpr size_t kLanes = hn::MaxLanes(Tag());
  static constexpr size_t kChains = 4;  // they hide the latency of the additions
  static constexpr size_t kLine = 64 / sizeof(T);

  static void Forward(const Design& X, Range rows, const double* w, double b, double* z,
                      ptrdiff_t ahead) {
    const Tag d;
    const V bias = hn::Set(d, b);
    std::array<V, kLanes> dots;
    for (size_t row = rows.begin; row < rows.end; row += kLanes) {
      PB_UNROLL
      for (size_t r = 0; r < kLanes; ++r) {
        dots[r] = row + r < rows.end ? Dot(X.cols, LineOf<T>(X, row + r), w, ahead) : hn::Zero(d);
      }
      hn::StoreU(hn::Add(SumEachRow(d, dots), bias), d, z + (row - rows.begin));
    }
  }

 private:
  static HWY_INLINE V Dot(size_t cols, const T* x, const double* w, ptrdiff_t ahead) {
    const Tag d;
    if (ahead != 0) {
      for (size_t j = 0; j < cols; j += kLine) PrefetchIntoL2(x + j + ahead);
    }
    const size_t whole = cols / kLanes * kLanes, tail = cols - whole;
    V sums[kChains];
    PB_UNROLL
    for (V& sum : sums) sum = hn::Zero(d);
    size_t j = 0;
    for (; j + kChains * kLanes <= whole; j += kChains * kLanes) {
      PB_UNROLL
      for (size_t c = 0; c < kChains; ++c) {
        const size_t i = j + c * kLanes;
        sums[c] = hn::MulAdd(hn::LoadU(d, w + i), Loader<Tag, T>::Whole(x + i), sums[c]);
      }
    }
    for (; j < whole; j += kLanes) {
      sums[0] = hn::MulAdd(hn::LoadU(d, w + j), Loader<Tag, T>::Whole(x + j), sums[0]);
    }
    if (tail != 0) {
      sums[1] = hn::MulAdd(hn::LoadU(d, w + j), Loader<Tag, T>::Part(x + j, tail), sums[1]);
    }
    return hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]));
  }
};

// --- rows by their length ------------------------------------------------------------------------

// Half of L1: the other half is for what the stages write, and what is fetched.
constexpr size_t kChunkBytes = size_t{16} << 10;

// Of several outputs a quarter of L2: the sums of a column pay for so many rows only.
constexpr size_t kOutputsChunkBytes = size_t{128} << 10;

inline size_t ChunkOfRows(const Design& X, size_t outputs) {
  const size_t bytes = std::max<size_t>(DenseRowBytes(X), 1);
  if (X.rows * bytes <= kChunkBytes) return kLossBlock;
  const size_t chunk = outputs == 1 ? kChunkBytes : kOutputsChunkBytes;
  if (bytes > kHugeRowBytes && outputs == 1) return 1;
  return std::clamp(std::bit_floor(std::max<size_t>(chunk / bytes, 1)), kRowsAtOnce, kLossBlock);
}

// How far ahead of an element its successor in the next chunk lies; 0: nothing is to be fetched.
inline ptrdiff_t RowsAhead(const Design& X) {
  if (X.near) return 0;
  const size_t row_bytes = DenseRowBytes(X);
  if (X.rows * row_bytes <= (row_bytes <= kSerialRowBytes ? kNearBytes : kCachedBytes)) return 0;
  return static_cast<ptrdiff_t>(ChunkOfRows(X, 1)) * X.stride;
}

struct RowStages {
  void (*forward)(const Design& X, Range rows, const double* w, double b, double* z,
                  ptrdiff_t ahead);
  void (*backward)(const Design& X, Range rows, const double* slopes, double* gw, ptrdiff_t ahead);
};

template <class Rows>
inline constexpr RowStages kRowStages = {Rows::Forward, Rows::Backward};

template <typename T>
RowStages StagesByLength(const Design& X) {
  constexpr size_t kLanes = hn::MaxLanes(Tag());
  static_assert(kShortVectors == 6);
  switch ((X.cols + kLanes - 1) / kLanes) {
    case 0:
    case 1:
      return kRowStages<ShortRows<T, 1>>;
    case 2:
      return kRowStages<ShortRows<T, 2>>;
    case 3:
      return kRowStages<ShortRows<T, 3>>;
    case 4:
      return kRowStages<ShortRows<T, 4>>;
    case 5:
      return kRowStages<ShortRows<T, 5>>;
    case 6:
      return kRowStages<ShortRows<T, 6>>;
    default:
      const size_t row_bytes = DenseRowBytes(X);
      if (row_bytes <= kSerialRowBytes && X.rows * row_bytes > kCachedBytes) {
        return {SerialRows<T>::Forward, LongRows<T, Tag, kRowsAtOnce>::Backward};
      }
      if (row_bytes > kHugeRowBytes) return kRowStages<LongRows<T, WideTag, 1>>;
      if (row_bytes > kLongRowBytes) return kRowStages<LongRows<T, WideTag, kRowsAtOnce>>;
      return kRowStages<LongRows<T, Tag, kRowsAtOnce>>;
  }
}

template <typename T>
void ForwardRows(const Design& X, size_t, Range rows, const double* w, const double* b, double* z,
                 void*) {
  StagesByLength<T>(X).forward(X, rows, w, *b, z, RowsAhead(X));
}

template <typename T>
void BackwardRows(const Design& X, size_t, Range rows, const double* slopes, double* gw, void*) {
  StagesByLength<T>(X).backward(X, rows, slopes, gw, RowsAhead(X));
}

// --- columns -------------------------------------------------------------------------------------

constexpr size_t kColumnsAtOnce = 8;

// A chunk has at least a kilobyte of each column: memory is slow with shorter pieces. Of many
// columns it then outgrows L2.
constexpr size_t kColumnsChunkBytes = size_t{256} << 10;
constexpr size_t kColumnPieceBytes = 1024;

inline size_t ChunkOfColumns(const Design& X, size_t outputs) {
  (void)outputs;
  const size_t fitting = kColumnsChunkBytes / std::max<size_t>(DenseRowBytes(X), 1);
  const size_t least = kColumnPieceBytes / ItemSize(X.dtype);
  return std::clamp(std::bit_floor(std::max<size_t>(fitting, 1)), least, kLossBlock);
}

// At least a piece of each column, and where there are enough for eight threads, many: what is in
// cache at a slab's beginning is another's.
inline size_t SlabOfColumns(const Design& X) {
  return std::clamp(X.rows / 8, kColumnPieceBytes / ItemSize(X.dtype), size_t{1024});
}

// How many rows ahead of the second pass some of the next chunk is fetched; 0 if L2 has no room for
// it.
inline size_t ColumnsAhead(const Design& X) {
  if (X.near) return 0;
  const size_t chunk = ChunkOfColumns(X, 1), row_bytes = DenseRowBytes(X);
  if (X.rows * row_bytes <= kCachedBytes || chunk * row_bytes > kColumnsChunkBytes) return 0;
  return chunk;
}

// kGroup columns of some rows, one pass over the predictions or slopes. The next columns' lines are
// asked for meanwhile, as the hardware cannot guess where they begin.
template <typename T, size_t kGroup, int kWay = 1>
class Columns {
 public:
  static HWY_INLINE void Forward(const Design& X, size_t column, Range rows, const double* w,
                                 double* z) {
    const D d;
    const Columns columns(X, column, rows.begin);
    V weight[kGroup];
    PB_UNROLL
    for (size_t c = 0; c < kGroup; ++c) weight[c] = hn::Set(d, w[column + c]);
    columns.Walk(rows.size(), [&](size_t r, size_t, const auto& load) HWY_ATTR {
      V sum = hn::LoadU(d, z + r);
      PB_UNROLL
      for (size_t c = 0; c < kGroup; ++c) sum = hn::MulAdd(weight[c], load(c), sum);
      hn::StoreU(sum, d, z + r);
    });
  }

  static HWY_INLINE void Backward(const Design& X, size_t column, Range rows, const double* slopes,
                                  double* gw, size_t ahead) {
    const D d;
    const Columns columns(X, column, rows.begin, ahead);
    V dots[kGroup];
    PB_UNROLL
    for (V& dot : dots) dot = hn::Zero(d);
    columns.Walk(rows.size(), [&](size_t r, size_t count, const auto& load) HWY_ATTR {
      // Past the last row lies what no column may meet, not even times 0.
      const V slope = count == kLanes ? hn::LoadU(d, slopes + r) : LoadTail(d, slopes + r, count);
      PB_UNROLL
      for (size_t c = 0; c < kGroup; ++c) dots[c] = hn::MulAdd(slope, load(c), dots[c]);
    });
    double* const to = gw + column;
    if constexpr (kGroup % kLanes == 0) {
      PB_UNROLL
      for (size_t first = 0; first < kGroup; first += kLanes) {
        std::array<V, kLanes> some;
        PB_UNROLL
        for (size_t c = 0; c < kLanes; ++c) some[c] = dots[first + c];
        hn::StoreU(hn::Add(hn::LoadU(d, to + first), SumEachRow(d, some)), d, to + first);
      }
    } else {
      for (size_t c = 0; c < kGroup; ++c) to[c] += SumLanes(d, dots[c]);
    }
  }

 private:
  using D = WideTag;
  using V = hn::Vec<D>;
  static constexpr size_t kLanes = hn::MaxLanes(D());
  static constexpr size_t kLine = 64 / sizeof(T);

  HWY_INLINE Columns(const Design& X, size_t column, size_t row, size_t ahead = 0)
      : ahead_(ahead),
        next_((kWay > 0 ? column + 2 * kGroup <= X.cols : column >= kGroup)
                  ? kWay * static_cast<ptrdiff_t>(kGroup) * X.stride
                  : 0) {
    for (size_t c = 0; c < kGroup; ++c) x_[c] = LineOf<T>(X, column + c) + row;
  }

  // Calls step(r, count, load) for each vector of rows; load(c) is column c's part of it.
  template <class Step>
  HWY_INLINE void Walk(size_t rows, const Step& step) const {
    const auto at = [&](size_t r) HWY_ATTR {
      step(r, kLanes, [&](size_t c) HWY_ATTR { return Loader<D, T>::Whole(x_[c] + r); });
    };
    const size_t whole = rows / kLanes * kLanes, tail = rows - whole;
    size_t r = 0;
    for (; r + kLine <= whole; r += kLine) {
      if (next_ != 0) {
        for (size_t c = 0; c < kGroup; ++c) {
          hwy::Prefetch(x_[c] + static_cast<ptrdiff_t>(r) + next_);
        }
      }
      if (ahead_ != 0) {
        for (size_t c = 0; c < kGroup / 4; ++c) PrefetchIntoL2(x_[c] + r + ahead_);
      }
      for (size_t i = 0; i < kLine; i += kLanes) at(r + i);
    }
    for (; r < whole; r += kLanes) at(r);
    if (tail != 0) {
      step(r, tail, [&](size_t c) HWY_ATTR { return Loader<D, T>::Part(x_[c] + r, tail); });
    }
  }

  const T* x_[kGroup];
  size_t ahead_;    // rows to the next chunk's, of which a quarter is fetched
  ptrdiff_t next_;  // elements to the next columns, 0 if there are none
};

template <typename T>
void ForwardColumns(const Design& X, size_t, Range rows, const double* w, const double* b,
                    double* z, void*) {
  std::fill_n(z, PadDoubles(rows.size()), *b);
  size_t j = 0;
  for (; j + kColumnsAtOnce <= X.cols; j += kColumnsAtOnce) {
    Columns<T, kColumnsAtOnce>::Forward(X, j, rows, w, z);
  }
  for (; j < X.cols; ++j) Columns<T, 1>::Forward(X, j, rows, w, z);
}

template <typename T>
void BackwardColumns(const Design& X, size_t, Range rows, const double* slopes, double* gw, void*) {
  // The other way round: what Forward saw last is still near.
  const size_t ahead = ColumnsAhead(X);
  size_t j = X.cols;
  for (; j % kColumnsAtOnce != 0; --j) Columns<T, 1>::Backward(X, j - 1, rows, slopes, gw, 0);
  for (; j > 0; j -= kColumnsAtOnce) {
    Columns<T, kColumnsAtOnce, -1>::Backward(X, j - kColumnsAtOnce, rows, slopes, gw, ahead);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

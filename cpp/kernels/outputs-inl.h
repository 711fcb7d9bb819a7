// Several outputs at once, of dense X: products with a (columns x outputs) matrix and with the
// transpose.
//
// One register-blocked loop serves both directions, layouts and dtypes: its lanes are outputs and
// its broadcasts are elements of X, so that no sum goes across lanes, however short the rows. Rows
// of float64 are read where they are; all else passes through a tile in L1. (Rows of float64 in a
// tile, too, took 1.4 x the time.)
#if defined(PULLBACK_CPP_KERNELS_OUTPUTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_OUTPUTS_INL_H_
#undef PULLBACK_CPP_KERNELS_OUTPUTS_INL_H_
#else
#define PULLBACK_CPP_KERNELS_OUTPUTS_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "kernels/dense-inl.h"
#include "kernels/interleaved-inl.h"
#include "kernels/load-inl.h"
#include "kernels/losses.h"
#include "runtime/partition.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// --- the register-blocked loop -------------------------------------------------------------------

// Outputs go in panels of so many vectors.
constexpr size_t kPanelVectors = 3;

// Rows (forward) or columns (backward) of X in a register block. Fewer than eight sums would wait
// for each other.
template <size_t kVectors>
constexpr size_t kSide = kVectors == 1 ? 8 : 4;

// c[m * c_row + k] = from[m * from_row + k] + sum_i a[i * a_step + m * a_side] * b[i * b_row + k],
// i < depth, for each m of a register block and the outputs k of a panel. What follows these in b
// and `from` is read as well.
struct Block {
  size_t depth;
  const double* a;
  ptrdiff_t a_step, a_side;
  const double* b;
  size_t b_row;
  const double* from;
  size_t from_row;
  double* c;
  size_t c_row;
  size_t last;  // outputs in the panel's last vector
};

template <class D, size_t kM, size_t kVectors>
void MultiplyAdd(const Block& block) {
  const D d;
  using V = hn::Vec<D>;
  constexpr size_t kLanes = hn::MaxLanes(D());
  const size_t b_row = block.b_row, from_row = block.from_row, c_row = block.c_row;
  const ptrdiff_t a_step = block.a_step, a_side = block.a_side;
  std::array<std::array<V, kVectors>, kM> sum;
  PB_UNROLL
  for (size_t m = 0; m < kM; ++m) {
    PB_UNROLL
    for (size_t v = 0; v < kVectors; ++v) {
      sum[m][v] = hn::LoadU(d, block.from + m * from_row + v * kLanes);
    }
  }
  const double* HWY_RESTRICT a = block.a;
  const double* HWY_RESTRICT b = block.b;
  for (size_t i = block.depth; i != 0; --i) {
    std::array<V, kVectors> right;
    PB_UNROLL
    for (size_t v = 0; v < kVectors; ++v) right[v] = hn::LoadU(d, b + v * kLanes);
    PB_UNROLL
    for (size_t m = 0; m < kM; ++m) {
      const V left = hn::Set(d, a[static_cast<ptrdiff_t>(m) * a_side]);
      PB_UNROLL
      for (size_t v = 0; v < kVectors; ++v) sum[m][v] = hn::MulAdd(left, right[v], sum[m][v]);
    }
    a += a_step;
    b += b_row;
  }
  PB_UNROLL
  for (size_t m = 0; m < kM; ++m) {
    double* const c = block.c + m * c_row;
    PB_UNROLL
    for (size_t v = 0; v + 1 < kVectors; ++v) hn::StoreU(sum[m][v], d, c + v * kLanes);
    StoreFirst(sum[m][kVectors - 1], d, c + (kVectors - 1) * kLanes, block.last);
  }
}

template <class D, size_t kVectors, size_t... kM>
constexpr auto MultiplyAddBySide(std::index_sequence<kM...>) {
  return std::array{MultiplyAdd<D, kM + 1, kVectors>...};
}

template <class D, size_t kVectors>
void MultiplyAddPanel(Block block, size_t side) {
  constexpr size_t kWhole = kSide<kVectors>;
  static constexpr auto kKernels =
      MultiplyAddBySide<D, kVectors>(std::make_index_sequence<kWhole>());
  for (size_t m = 0; m < side; m += kWhole) {
    kKernels[std::min(kWhole, side - m) - 1](block);
    block.a += static_cast<ptrdiff_t>(kWhole) * block.a_side;
    block.from += kWhole * block.from_row;
    block.c += kWhole * block.c_row;
  }
}

template <class D>
void MultiplyAddPanels(Block block, size_t side, size_t outputs) {
  constexpr size_t kLanes = hn::MaxLanes(D());
  static_assert(kPanelVectors == 3);
  size_t vectors = CeilDiv(outputs, kLanes);
  for (size_t panels = CeilDiv(vectors, kPanelVectors); panels > 0; --panels) {
    const size_t wide = CeilDiv(vectors, panels);  // no narrow last one
    const size_t width = std::min(wide * kLanes, outputs);
    block.last = width - (wide - 1) * kLanes;
    switch (wide) {
      case 1:
        MultiplyAddPanel<D, 1>(block, side);
        break;
      case 2:
        MultiplyAddPanel<D, 2>(block, side);
        break;
      default:
        MultiplyAddPanel<D, 3>(block, side);
    }
    vectors -= wide;
    outputs -= width;
    block.b += width;
    block.from += width;
    block.c += width;
  }
}

inline void MultiplyAdd(const Block& block, size_t side, size_t outputs) {
  MultiplyAddPanels<hn::ScalableTag<double>>(block, side, outputs);
}

// --- two to four outputs -------------------------------------------------------------------------

// Vectors of so few are mostly empty, and the loop above waits for its broadcasts: here lanes are
// rows (forward) or columns (backward). Sums are the same, term by term.
using FewTag = hn::CappedTag<double, 4>;
constexpr size_t kFewLanes = hn::MaxLanes(FewTag());

// z[r * kOutputs + k] = (b ? b[k] : z[r * kOutputs + k]) + sum_j x[r * stride + j] w[j * kOutputs +
// k] for at least kFewLanes columns.
template <size_t kOutputs>
void ForwardFew(const double* x, ptrdiff_t stride, size_t rows, size_t cols, const double* w,
                const double* b, double* z) {
  const FewTag d;
  using V = hn::Vec<FewTag>;
  constexpr size_t kGroups = 2;
  for (size_t row = 0; row < rows; row += kGroups * kFewLanes) {
    const double* from[kGroups * kFewLanes];
    for (size_t r = 0; r < kGroups * kFewLanes; ++r) {
      from[r] = x + static_cast<ptrdiff_t>(std::min(row + r, rows - 1)) * stride;
    }
    const auto some = [&](size_t g) {
      return std::min(kFewLanes, rows - std::min(rows, row + g * kFewLanes));
    };
    std::array<V, kOutputs> sum[kGroups];
    PB_UNROLL
    for (size_t g = 0; g < kGroups; ++g) {
      if (b == nullptr) {
        sum[g] = LoadSomeRows<kOutputs>(d, z + (row + g * kFewLanes) * kOutputs, some(g));
        continue;
      }
      PB_UNROLL
      for (size_t k = 0; k < kOutputs; ++k) sum[g][k] = hn::Set(d, b[k]);
    }
    // Columns j to j + kFewLanes, of which the first `seen` have been added.
    const auto add = [&](size_t j, size_t seen) HWY_ATTR {
      std::array<V, kFewLanes> square[kGroups];
      PB_UNROLL
      for (size_t g = 0; g < kGroups; ++g) {
        PB_UNROLL
        for (size_t i = 0; i < kFewLanes; ++i) {
          square[g][i] = hn::LoadU(d, from[g * kFewLanes + i] + j);
        }
        Transpose(d, square[g]);
      }
      PB_UNROLL
      for (size_t i = 0; i < kFewLanes; ++i) {
        if (i < seen) continue;
        PB_UNROLL
        for (size_t k = 0; k < kOutputs; ++k) {
          const V weight = hn::Set(d, w[(j + i) * kOutputs + k]);
          PB_UNROLL
          for (size_t g = 0; g < kGroups; ++g) {
            sum[g][k] = hn::MulAdd(square[g][i], weight, sum[g][k]);
          }
        }
      }
    };
    size_t j = 0;
    for (; j + kFewLanes <= cols; j += kFewLanes) add(j, 0);
    if (j < cols) add(cols - kFewLanes, kFewLanes - (cols - j));
    PB_UNROLL
    for (size_t g = 0; g < kGroups; ++g) {
      StoreSomeRows(sum[g], d, z + (row + g * kFewLanes) * kOutputs, some(g));
    }
  }
}

// gw[j * kOutputs + k] += sum_r x[r * stride + j] slopes[r * kOutputs + k] for the columns of
// kVectors vectors, of which the last may overlap the one before.
template <size_t kOutputs, size_t kVectors>
void BackwardFew(const double* x, ptrdiff_t stride, size_t rows, size_t cols, const double* slopes,
                 double* gw) {
  const FewTag d;
  using V = hn::Vec<FewTag>;
  const size_t last = cols - kFewLanes;
  std::array<V, kOutputs> sum[kVectors];
  PB_UNROLL
  for (size_t v = 0; v < kVectors; ++v) {
    sum[v] = LoadRows<kOutputs>(d, gw + (v + 1 < kVectors ? v * kFewLanes : last) * kOutputs);
  }
  for (size_t r = 0; r < rows; ++r) {
    V part[kVectors];
    PB_UNROLL
    for (size_t v = 0; v < kVectors; ++v) {
      part[v] = hn::LoadU(d, x + (v + 1 < kVectors ? v * kFewLanes : last));
    }
    PB_UNROLL
    for (size_t k = 0; k < kOutputs; ++k) {
      const V slope = hn::Set(d, slopes[k]);
      PB_UNROLL
      for (size_t v = 0; v < kVectors; ++v) sum[v][k] = hn::MulAdd(part[v], slope, sum[v][k]);
    }
    x += stride;
    slopes += kOutputs;
  }
  PB_UNROLL
  for (size_t v = 0; v < kVectors; ++v) {
    StoreRows(sum[v], d, gw + (v + 1 < kVectors ? v * kFewLanes : last) * kOutputs);
  }
}

// Vectors go in panels of up to three, a last one that overlaps never alone.
template <size_t kOutputs>
void BackwardFew(const double* x, ptrdiff_t stride, size_t rows, size_t cols, const double* slopes,
                 double* gw) {
  size_t vectors = CeilDiv(cols, kFewLanes);
  for (size_t panels = CeilDiv(vectors, size_t{3}); panels > 0; --panels) {
    const size_t wide = CeilDiv(vectors, panels), width = std::min(wide * kFewLanes, cols);
    switch (wide) {
      case 1:
        BackwardFew<kOutputs, 1>(x, stride, rows, width, slopes, gw);
        break;
      case 2:
        BackwardFew<kOutputs, 2>(x, stride, rows, width, slopes, gw);
        break;
      default:
        BackwardFew<kOutputs, 3>(x, stride, rows, width, slopes, gw);
    }
    vectors -= wide;
    cols -= width;
    x += width;
    gw += width * kOutputs;
  }
}

struct FewStages {
  void (*forward)(const double* x, ptrdiff_t stride, size_t rows, size_t cols, const double* w,
                  const double* b, double* z);
  void (*backward)(const double* x, ptrdiff_t stride, size_t rows, size_t cols,
                   const double* slopes, double* gw);
};

// Null where the loop for any number of outputs is to be taken.
inline const FewStages* StagesOfFew(size_t outputs, size_t cols) {
  static constexpr FewStages kStages[] = {{ForwardFew<2>, BackwardFew<2>},
                                          {ForwardFew<3>, BackwardFew<3>},
                                          {ForwardFew<4>, BackwardFew<4>}};
  return outputs < 2 || outputs > kFewOutputs || cols < kFewLanes ? nullptr : &kStages[outputs - 2];
}

// --- blocks of X as rows of float64 --------------------------------------------------------------

constexpr size_t kTileDoubles = 2048;  // 16 KiB, half of L1
using TileTag = hn::CappedTag<double, 4>;
constexpr size_t kTileLanes = hn::MaxLanes(TileTag());

struct TileRows {
  const double* data;
  ptrdiff_t stride;
};

// `kCols`: of how many a tile holds as many rows as suit memory in the first walk over X.
template <typename T>
struct RowsOfX {
  static constexpr size_t kCols = 256;

  static HWY_INLINE const T* At(const Design& X, size_t row, size_t col) {
    return static_cast<const T*>(X.data) + static_cast<ptrdiff_t>(row) * X.stride + col;
  }

  // The rows behind them are asked for meanwhile: side by side, the hardware's prefetcher sees
  // their beginnings only (at 100 columns 1.2 x the time).
  static HWY_INLINE void Ahead(const Design& X, Range rows, Range cols) {
    constexpr size_t kLine = 64 / sizeof(T);
    if (X.near) return;
    for (size_t row = rows.end; row < std::min(rows.end + rows.size(), X.rows); ++row) {
      for (size_t j = cols.begin; j < cols.end; j += kLine) hwy::Prefetch(At(X, row, j));
    }
  }

  static HWY_INLINE TileRows Tile(const Design& X, Range rows, Range cols,
                                  [[maybe_unused]] double* tile,
                                  [[maybe_unused]] size_t tile_cols) {
    if constexpr (std::is_same_v<T, double>) {
      return {At(X, rows.begin, cols.begin), X.stride};
    } else {
      const TileTag d;
      if (X.stride == static_cast<ptrdiff_t>(cols.size())) {  // whole rows that follow each other
        using D = hn::ScalableTag<double>;
        const T* const from = At(X, rows.begin, cols.begin);
        const size_t n = rows.size() * cols.size();
        for (size_t i = 0; i < n; i += hn::Lanes(D())) {
          hn::StoreU(LoadSome(D(), from + i, std::min(hn::Lanes(D()), n - i)), D(), tile + i);
        }
        return {tile, X.stride};
      }
      for (size_t r = 0; r < rows.size(); ++r) {
        const T* const from = At(X, rows.begin + r, cols.begin);
        double* const to = tile + r * tile_cols;
        const size_t whole = cols.size() / kTileLanes * kTileLanes;
        for (size_t j = 0; j < whole; j += kTileLanes) {
          hn::Store(Loader<TileTag, T>::Whole(from + j), d, to + j);
        }
        if (whole < cols.size()) {
          hn::Store(Loader<TileTag, T>::Part(from + whole, cols.size() - whole), d, to + whole);
        }
      }
      return {tile, static_cast<ptrdiff_t>(tile_cols)};
    }
  }
};

template <typename T>
struct ColumnsOfX {
  static constexpr size_t kCols = 32;

  static HWY_INLINE void Ahead(const Design&, Range, Range) {}

  static HWY_INLINE TileRows Tile(const Design& X, Range rows, Range cols, double* tile,
                                  size_t tile_cols) {
    const TileTag d;
    for (size_t j = 0; j < cols.size(); j += kTileLanes) {
      const T* from[kTileLanes];
      for (size_t i = 0; i < kTileLanes; ++i) {
        const size_t col = std::min(cols.begin + j + i, cols.end - 1);
        from[i] =
            static_cast<const T*>(X.data) + static_cast<ptrdiff_t>(col) * X.stride + rows.begin;
      }
      for (size_t r = 0; r < rows.size(); r += kTileLanes) {
        const size_t count = std::min(kTileLanes, rows.size() - r);
        std::array<hn::Vec<TileTag>, kTileLanes> square;
        PB_UNROLL
        for (size_t i = 0; i < kTileLanes; ++i) {
          square[i] = HWY_LIKELY(count == kTileLanes)
                          ? Loader<TileTag, T>::Whole(from[i] + r)
                          : Loader<TileTag, T>::Part(from[i] + r, count);
        }
        Transpose(d, square);
        double* const to = tile + r * tile_cols + j;
        PB_UNROLL
        for (size_t i = 0; i < kTileLanes; ++i) hn::Store(square[i], d, to + i * tile_cols);
      }
    }
    return {tile, static_cast<ptrdiff_t>(tile_cols)};
  }
};

// --- the stages ----------------------------------------------------------------------------------

template <class Source>
void ForwardOutputs(const Design& X, size_t outputs, Range rows, const double* w, const double* b,
                    double* z, void*) {
  HWY_ALIGN double tile[kTileDoubles];
  // Of short rows a tile holds many: eight at a time took 2.3 x the time at 10 columns.
  const size_t tile_cols = RoundUp(std::clamp(X.cols, size_t{1}, Source::kCols), kTileLanes);
  const size_t tile_rows = kTileDoubles / tile_cols / kSide<1> * kSide<1>;
  for (size_t row = rows.begin; row < rows.end; row += tile_rows) {
    const Range some_rows{row, std::min(row + tile_rows, rows.end)};
    double* const to = z + (row - rows.begin) * outputs;
    size_t col = 0;
    do {
      const Range some_cols{col, std::min(col + Source::kCols, X.cols)};
      const TileRows x = Source::Tile(X, some_rows, some_cols, tile, tile_cols);
      Source::Ahead(X, some_rows, some_cols);
      const bool first = col == 0;
      if (const FewStages* const few = StagesOfFew(outputs, some_cols.size())) {
        few->forward(x.data, x.stride, some_rows.size(), some_cols.size(), w + col * outputs,
                     first ? b : nullptr, to);
      } else {
        MultiplyAdd({some_cols.size(), x.data, 1, x.stride, w + col * outputs, outputs,
                     first ? b : to, first ? 0 : outputs, to, outputs, 0},
                    some_rows.size(), outputs);
      }
      col += Source::kCols;
    } while (col < X.cols);
  }
}

// X comes from the cache: tiles of as many rows as pay for the sums of their columns.
template <class Source>
void BackwardOutputs(const Design& X, size_t outputs, Range rows, const double* slopes, double* gw,
                     void*) {
  constexpr size_t kRows = 128, kCols = kTileDoubles / kRows;
  HWY_ALIGN double tile[kTileDoubles];
  for (size_t row = rows.begin; row < rows.end; row += kRows) {
    const Range some_rows{row, std::min(row + kRows, rows.end)};
    for (size_t col = 0; col < X.cols; col += kCols) {
      const Range some_cols{col, std::min(col + kCols, X.cols)};
      const TileRows x = Source::Tile(X, some_rows, some_cols, tile, kCols);
      double* const to = gw + col * outputs;
      if (const FewStages* const few = StagesOfFew(outputs, some_cols.size())) {
        few->backward(x.data, x.stride, some_rows.size(), some_cols.size(),
                      slopes + (row - rows.begin) * outputs, to);
        continue;
      }
      MultiplyAdd({some_rows.size(), x.data, x.stride, 1, slopes + (row - rows.begin) * outputs,
                   outputs, to, outputs, to, outputs, 0},
                  some_cols.size(), outputs);
    }
  }
}

template <class Source>
inline constexpr Stages kOutputs = {ForwardOutputs<Source>, BackwardOutputs<Source>};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

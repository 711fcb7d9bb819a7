// Blocks of matrix products: the packing of operands and the register-blocked loop over them.
#if defined(PULLBACK_CPP_KERNELS_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_MATMUL_INL_H_
#undef PULLBACK_CPP_KERNELS_MATMUL_INL_H_
#else
#define PULLBACK_CPP_KERNELS_MATMUL_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <utility>

#include "kernels/load-inl.h"
#include "kernels/matmul.h"
#include "runtime/partition.h"
#include "runtime/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The register block: kRows x (kVectors vectors) sums, a row of the right operand and one broadcast
// element of the left one. Sixteen registers hold 6 x 2, thirty-two hold 8 x 3.
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
inline constexpr size_t kRows = 8;
inline constexpr size_t kVectors = 3;
inline constexpr size_t kDepth = 192;
#else
inline constexpr size_t kRows = 6;
inline constexpr size_t kVectors = 2;
inline constexpr size_t kDepth = 256;
#endif

template <typename T>
constexpr size_t PanelColumns() {
  return kVectors * hn::MaxLanes(hn::ScalableTag<T>());
}

// What one register block is computed from; strides in elements.
template <typename T>
struct MicroBlock {
  size_t k;
  const T* a;  // element (i, p) at i * a_row + p * a_col
  ptrdiff_t a_row, a_col;
  const T* b;  // rows b_row apart
  ptrdiff_t b_row;
  T* c;  // rows c_row apart
  ptrdiff_t c_row;
  size_t last;  // columns in the last vector
  bool add;
};

// C (kM rows, kN vectors of columns) = or += A B over a depth of k. Each sum is one chain of fused
// multiply-adds in the order of p, whatever the shape of the block. Packed operands are panels.
template <size_t kM, size_t kN, bool kPacked, class D, typename T>
void Micro(const MicroBlock<T>& block) {
  const D d;
  using V = hn::Vec<D>;
  const size_t lanes = hn::Lanes(d);
  T* const c = block.c;
  const ptrdiff_t c_row = block.c_row;
  if constexpr (kPacked) {
    // What is added to or written last is fetched first.
    PB_UNROLL
    for (size_t i = 0; i < kM; ++i) hwy::Prefetch(c + static_cast<ptrdiff_t>(i) * c_row);
  }
  std::array<std::array<V, kN>, kM> sum;
  PB_UNROLL
  for (size_t i = 0; i < kM; ++i) {
    PB_UNROLL
    for (size_t j = 0; j < kN; ++j) sum[i][j] = hn::Zero(d);
  }
  const ptrdiff_t a_row = kPacked ? 1 : block.a_row;
  const ptrdiff_t a_col = kPacked ? ptrdiff_t{kRows} : block.a_col;
  const ptrdiff_t b_row = kPacked ? static_cast<ptrdiff_t>(PanelColumns<T>()) : block.b_row;
  const T* HWY_RESTRICT a = block.a;
  const T* HWY_RESTRICT b = block.b;
  for (size_t p = block.k; p != 0; --p) {
    std::array<V, kN> right;
    PB_UNROLL
    for (size_t j = 0; j < kN; ++j) right[j] = hn::LoadU(d, b + j * lanes);
    PB_UNROLL
    for (size_t i = 0; i < kM; ++i) {
      const V left = hn::Set(d, a[static_cast<ptrdiff_t>(i) * a_row]);
      PB_UNROLL
      for (size_t j = 0; j < kN; ++j) sum[i][j] = hn::MulAdd(left, right[j], sum[i][j]);
    }
    a += a_col;
    b += b_row;
  }
  const size_t last = block.last;
  PB_UNROLL
  for (size_t i = 0; i < kM; ++i) {
    T* const row = c + static_cast<ptrdiff_t>(i) * c_row;
    PB_UNROLL
    for (size_t j = 0; j < kN; ++j) {
      T* const to = row + j * lanes;
      V result = sum[i][j];
      if (j + 1 < kN || HWY_LIKELY(last == lanes)) {
        if (block.add) result = hn::Add(hn::LoadU(d, to), result);
        hn::StoreU(result, d, to);
      } else {
        if (block.add) result = hn::Add(LoadTail(d, to, last), result);
        StoreTail(result, d, to, last);
      }
    }
  }
}

template <typename T>
using MicroKernel = void (*)(const MicroBlock<T>&);

// Half a vector, for narrow matrices; a whole one where there is no half.
#if HWY_TARGET == HWY_SCALAR
template <typename T>
using HalfTag = hn::ScalableTag<T>;
#else
template <typename T>
using HalfTag = hn::Half<hn::ScalableTag<T> >;
#endif

template <typename T>
class MicroKernels {
 public:
  // For `vectors` whole vectors a row; 0 means half a vector.
  static HWY_INLINE MicroKernel<T> Unpacked(size_t rows, size_t vectors) {
    return kUnpacked[rows - 1][vectors];
  }
  // Blocks of fewer than kRows rows are few: those take the strides of panels.
  static HWY_INLINE MicroKernel<T> Packed(size_t rows, size_t vectors) {
    return HWY_LIKELY(rows == kRows) ? kPacked[vectors] : Unpacked(rows, vectors);
  }

 private:
  using Row = std::array<MicroKernel<T>, kVectors + 1>;
  template <size_t kM, bool kOfPanels, size_t... kN>
  static constexpr Row RowOf(std::index_sequence<kN...>) {
    return {Micro<kM, 1, kOfPanels, HalfTag<T>, T>,
            Micro<kM, kN + 1, kOfPanels, hn::ScalableTag<T>, T>...};
  }
  template <size_t... kM>
  static constexpr std::array<Row, kRows> Table(std::index_sequence<kM...>) {
    return {RowOf<kM + 1, false>(std::make_index_sequence<kVectors>())...};
  }
  static constexpr std::array<Row, kRows> kUnpacked = Table(std::make_index_sequence<kRows>());
  static constexpr Row kPacked = RowOf<kRows, true>(std::make_index_sequence<kVectors>());
};

#if HWY_TARGET != HWY_SCALAR
// to[p * width + i] = from[i * across + p] for kRows rows i and as many p as registers of 128 bits
// have lanes.
template <size_t kStrip, typename T>
HWY_INLINE void TransposeBlock(const T* HWY_RESTRICT from, ptrdiff_t across, T* HWY_RESTRICT to,
                               size_t width) {
  constexpr size_t kSide = 16 / sizeof(T);
  const hn::FixedTag<T, kSide> d;
  const auto x0 = hn::LoadU(d, from);
  const auto x1 = hn::LoadU(d, from + across);
  if constexpr (kStrip == 4) {
    const auto x2 = hn::LoadU(d, from + 2 * across);
    const auto x3 = hn::LoadU(d, from + 3 * across);
    const auto l02 = hn::InterleaveLower(d, x0, x2), u02 = hn::InterleaveUpper(d, x0, x2);
    const auto l13 = hn::InterleaveLower(d, x1, x3), u13 = hn::InterleaveUpper(d, x1, x3);
    hn::StoreU(hn::InterleaveLower(d, l02, l13), d, to);
    hn::StoreU(hn::InterleaveUpper(d, l02, l13), d, to + width);
    hn::StoreU(hn::InterleaveLower(d, u02, u13), d, to + 2 * width);
    hn::StoreU(hn::InterleaveUpper(d, u02, u13), d, to + 3 * width);
  } else if constexpr (kSide == 4) {
    const hn::Half<decltype(d)> half;
    const auto lower = hn::InterleaveLower(d, x0, x1), upper = hn::InterleaveUpper(d, x0, x1);
    hn::StoreU(hn::LowerHalf(half, lower), half, to);
    hn::StoreU(hn::UpperHalf(half, lower), half, to + width);
    hn::StoreU(hn::LowerHalf(half, upper), half, to + 2 * width);
    hn::StoreU(hn::UpperHalf(half, upper), half, to + 3 * width);
  } else {
    hn::StoreU(hn::InterleaveLower(d, x0, x1), d, to);
    hn::StoreU(hn::InterleaveUpper(d, x0, x1), d, to + width);
  }
}

// All rows of a panel together: that many streams of memory are read at a time.
template <size_t kCount, typename T>
HWY_INLINE void TransposeRows(const T* HWY_RESTRICT from, ptrdiff_t across, size_t depth,
                              T* HWY_RESTRICT to, size_t width) {
  constexpr size_t kSide = 16 / sizeof(T);
  size_t p = 0;
  for (; p + kSide <= depth; p += kSide, to += kSide * width) {
    constexpr size_t kSquares = kCount / kSide * kSide;
    PB_UNROLL
    for (size_t i = 0; i < kSquares; i += kSide) {
      TransposeBlock<kSide>(from + static_cast<ptrdiff_t>(i) * across + p, across, to + i, width);
    }
    if constexpr (kCount % kSide != 0) {
      TransposeBlock<2>(from + static_cast<ptrdiff_t>(kSquares) * across + p, across, to + kSquares,
                        width);
    }
  }
  for (; p < depth; ++p, to += width) {
    for (size_t i = 0; i < kCount; ++i) {
      to[i] = from[static_cast<ptrdiff_t>(i) * across + static_cast<ptrdiff_t>(p)];
    }
  }
}
#endif

template <size_t kCount, typename T>
HWY_INLINE void Copy(const T* HWY_RESTRICT from, T* HWY_RESTRICT to) {
  if constexpr (kCount > 0) {
    constexpr size_t kLanes = std::min(std::bit_floor(kCount), hn::MaxLanes(hn::ScalableTag<T>()));
    const hn::CappedTag<T, kLanes> d;
    hn::StoreU(hn::LoadU(d, from), d, to);
    Copy<kCount - kLanes>(from + kLanes, to + kLanes);
  }
}

// Whole panels side by side, `width` contiguous elements `along` apart, a few of them a time: a
// panel's lines are written once while they are in L1, where panels displace each other, and rows
// are read in the order of memory.
template <size_t kWidth, typename T>
HWY_INLINE void PackRows(const T* from, ptrdiff_t along, size_t panels, size_t depth, T* to) {
  constexpr size_t kStep = 8;
  for (size_t p = 0; p < depth; p += kStep) {
    const size_t step = std::min(kStep, depth - p);
    const T* const rows = from + static_cast<ptrdiff_t>(p) * along;
    for (size_t i = 0; i < panels; ++i) {
      const T* row = rows + i * kWidth;
      T* target = to + (i * depth + p) * kWidth;
      for (size_t s = 0; s < step; ++s, row += along, target += kWidth) Copy<kWidth>(row, target);
    }
  }
}

// to[p * width + i] = from[i * across + p * along], zeros from `count` to `filled` <= `width`.
template <typename T>
HWY_INLINE void PackPanel(size_t width, const T* HWY_RESTRICT from, ptrdiff_t across,
                          ptrdiff_t along, size_t count, size_t filled, size_t depth,
                          T* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR
  size_t i = 0;
#else
  constexpr size_t kSide = 16 / sizeof(T);
  const hn::FixedTag<T, kSide> side;
  if (across == 1) {
    const hn::ScalableTag<T> d;
    const size_t lanes = hn::Lanes(d);
    for (size_t p = 0; p < depth; ++p) {
      size_t i = 0;
      for (; i + lanes <= count; i += lanes) hn::StoreU(hn::LoadU(d, from + i), d, to + i);
      for (; i + kSide <= count; i += kSide) hn::StoreU(hn::LoadU(side, from + i), side, to + i);
      for (; i < count; ++i) to[i] = from[i];
      for (; i < filled; ++i) to[i] = 0;
      from += along;
      to += width;
    }
    return;
  }
  size_t i = 0;
  if (along == 1) {
    if (count == kRows) {
      TransposeRows<kRows>(from, across, depth, to, width);
      i = kRows;
    } else if (count == PanelColumns<T>()) {
      TransposeRows<PanelColumns<T>()>(from, across, depth, to, width);
      i = count;
    }
    for (; i + kSide <= count; i += kSide) {
      TransposeRows<kSide>(from + static_cast<ptrdiff_t>(i) * across, across, depth, to + i, width);
    }
    if (kSide > 2 && i + 2 <= count) {
      TransposeRows<2>(from + static_cast<ptrdiff_t>(i) * across, across, depth, to + i, width);
      i += 2;
    }
  }
#endif
  for (; i < count; ++i) {
    const T* source = from + static_cast<ptrdiff_t>(i) * across;
    for (size_t p = 0; p < depth; ++p, source += along) to[p * width + i] = *source;
  }
  for (; i < filled; ++i) {
    for (size_t p = 0; p < depth; ++p) to[p * width + i] = 0;
  }
}

// Panels of `width` side by side, each `depth` deep.
template <typename T>
void Pack(size_t width, const void* from, ptrdiff_t across, ptrdiff_t along, size_t count,
          size_t depth, void* to) {
  const T* const source = static_cast<const T*>(from);
  T* const target = static_cast<T*>(to);
  size_t i = 0;
  if (across == 1) {
    const size_t panels = count / width;
    if (width == kRows) {
      PackRows<kRows>(source, along, panels, depth, target);
    } else {
      PackRows<PanelColumns<T>()>(source, along, panels, depth, target);
    }
    i = panels * width;
  }
  for (; i < count; i += width) {
    PackPanel(width, source + static_cast<ptrdiff_t>(i) * across, across, along,
              std::min(width, count - i), width, depth, target + i * depth);
  }
}

// How a panel of C is cut into vectors.
template <typename T>
struct Panel {
  HWY_INLINE Panel(size_t n, size_t j) : columns(std::min(PanelColumns<T>(), n - j)) {
    constexpr size_t kLanes = hn::MaxLanes(hn::ScalableTag<T>());
    constexpr size_t kHalf = hn::MaxLanes(HalfTag<T>());
    const bool narrow = columns <= kHalf;
    vectors = narrow ? 0 : (columns + kLanes - 1) / kLanes;
    lanes = narrow ? kHalf : kLanes;
    last = narrow ? columns : columns - (vectors - 1) * kLanes;
  }

  size_t columns;
  size_t vectors;  // 0: half a vector
  size_t lanes;
  size_t last;  // columns in the last vector
};

// C = or += A B for one panel of columns.
template <typename T>
HWY_INLINE void MultiplyPanel(MicroKernel<T> kernel, MicroBlock<T>& block, ptrdiff_t c_col,
                              size_t rows, const Panel<T>& panel) {
  if (HWY_LIKELY(c_col == 1)) {
    block.last = panel.last;
    kernel(block);
    return;
  }
  constexpr size_t kColumns = PanelColumns<T>();
  HWY_ALIGN T tile[kRows * kColumns];
  MicroBlock<T> whole = block;
  whole.c = tile;
  whole.c_row = kColumns;
  whole.last = panel.lanes;
  whole.add = false;
  kernel(whole);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t s = 0; s < panel.columns; ++s) {
      T& element =
          block.c[static_cast<ptrdiff_t>(r) * block.c_row + static_cast<ptrdiff_t>(s) * c_col];
      element = block.add ? element + tile[r * kColumns + s] : tile[r * kColumns + s];
    }
  }
}

// Both operands packed: a panel of B stays in L1, those of A come from L2. The next panel of B is
// fetched meanwhile.
template <typename T>
HWY_INLINE void MultiplyPacked(const BlockProduct& product) {
  constexpr size_t kColumns = PanelColumns<T>();
  constexpr size_t kLine = 64 / sizeof(T);
  const auto& [m, n, k] = product.size;
  const T* const a = static_cast<const T*>(product.a);
  const T* const b = static_cast<const T*>(product.b);
  T* const c = static_cast<T*>(product.c);
  if (m == 0) return;
  const size_t fetched = RoundUp(kColumns * k * kRows / m + 1, kLine);
  MicroBlock<T> block{};
  block.k = k;
  block.a_row = 1;
  block.a_col = kRows;
  block.b_row = kColumns;
  block.c_row = product.c_row;
  block.add = product.add;
  for (size_t j = 0; j < n; j += kColumns) {
    const Panel<T> panel(n, j);
    const T* next = b + (j + kColumns) * k;
    const T* const next_end = next + (j + kColumns < n ? kColumns * k : 0);
    block.b = b + j * k;
    for (size_t i = 0; i < m; i += kRows) {
      for (const T* const stop = std::min(next + fetched, next_end); next < stop; next += kLine) {
        PrefetchIntoL2(next);
      }
      const size_t rows = std::min(kRows, m - i);
      block.a = a + i * k;
      block.c =
          c + static_cast<ptrdiff_t>(i) * product.c_row + static_cast<ptrdiff_t>(j) * product.c_col;
      MultiplyPanel<T>(MicroKernels<T>::Packed(rows, panel.vectors), block, product.c_col, rows,
                       panel);
    }
  }
}

// A as it lies, read once, from memory it may be; rows of B are b_row apart, its panels b_panel.
// The few panels of B come from L1 or L2.
template <typename T>
HWY_INLINE void MultiplyUnpacked(const BlockSize& size, const T* a, ptrdiff_t a_row,
                                 ptrdiff_t a_col, const T* b, ptrdiff_t b_row, size_t b_panel, T* c,
                                 ptrdiff_t c_row, ptrdiff_t c_col, bool add) {
  constexpr size_t kColumns = PanelColumns<T>();
  const auto& [m, n, k] = size;
  if (n == 0) return;
  const size_t panels = (n + kColumns - 1) / kColumns;
  MicroBlock<T> block{k, a, a_row, a_col, b, b_row, c, c_row, 0, add};
  // Blocks differ by a row at most: one of two rows would wait for the latency of its few chains.
  const size_t blocks = (m + kRows - 1) / kRows;
  for (size_t i = 0, rows = 0, left = blocks; left != 0; i += rows, --left) {
    rows = (m - i + left - 1) / left;
    block.a = a + static_cast<ptrdiff_t>(i) * a_row;
    // The next rows are fetched meanwhile, some with each panel.
    const T* next = block.a + static_cast<ptrdiff_t>(rows) * a_row;
    const size_t next_rows = std::min(rows, m - i - rows);
    const size_t ahead = a_col == 1 ? (next_rows + panels - 1) / panels : 0;
    block.b = b;
    for (size_t j = 0; j < n; j += kColumns, block.b += b_panel) {
      for (size_t r = 0; r < ahead; ++r, next += a_row) {
        for (size_t p = 0; p < k; p += 64 / sizeof(T)) hwy::Prefetch(next + p);
      }
      const Panel<T> panel(n, j);
      block.c = c + static_cast<ptrdiff_t>(i) * c_row + static_cast<ptrdiff_t>(j) * c_col;
      MultiplyPanel<T>(MicroKernels<T>::Unpacked(rows, panel.vectors), block, c_col, rows, panel);
    }
  }
}

template <typename T>
void Multiply(const BlockProduct& product) {
  if (product.a_packed) {
    MultiplyPacked<T>(product);
  } else {
    constexpr size_t kColumns = PanelColumns<T>();
    MultiplyUnpacked<T>(product.size, static_cast<const T*>(product.a), product.a_row,
                        product.a_col, static_cast<const T*>(product.b),
                        static_cast<ptrdiff_t>(kColumns), kColumns * product.size.k,
                        static_cast<T*>(product.c), product.c_row, product.c_col, product.add);
  }
}

template <typename T>
void MultiplySmall(const SmallProducts& products) {
  constexpr size_t kColumns = PanelColumns<T>();
  constexpr size_t kLanes = hn::MaxLanes(hn::ScalableTag<T>());
  const auto& [m, n, k] = products.size;
  const T* a = static_cast<const T*>(products.a);
  const T* b = static_cast<const T*>(products.b);
  T* c = static_cast<T*>(products.c);
  // Whole vectors of B can be read where they lie.
  const bool in_place = products.b_col == 1 && (n % kLanes == 0 || 2 * n == kLanes);
  HWY_ALIGN T right[kSmallRight];
  const ptrdiff_t b_row = in_place ? products.b_row : static_cast<ptrdiff_t>(kColumns);
  const size_t b_panel = in_place ? kColumns : kColumns * k;
  // One block of registers needs no loops around it.
  const bool single = 0 < m && m <= kRows && 0 < n && n <= kColumns && products.c_col == 1;
  const Panel<T> panel(n, 0);
  const MicroKernel<T> kernel = MicroKernels<T>::Unpacked(single ? m : 1, panel.vectors);
  MicroBlock<T> block{k,     a, products.a_row, products.a_col, right,
                      b_row, c, products.c_row, panel.last,     products.add};
  for (size_t index = 0; index < products.count; ++index) {
    if (!in_place) {
      T* to = right;
      for (size_t j = 0; j < n; j += kColumns, to += kColumns * k) {
        const size_t columns = std::min(kColumns, n - j);
        PackPanel(kColumns, b + static_cast<ptrdiff_t>(j) * products.b_col, products.b_col,
                  products.b_row, columns, RoundUp(columns, kLanes), k, to);
      }
    }
    if (single) {
      block.a = a;
      block.b = in_place ? b : right;
      block.c = c;
      kernel(block);
    } else {
      MultiplyUnpacked<T>(products.size, a, products.a_row, products.a_col, in_place ? b : right,
                          b_row, b_panel, c, products.c_row, products.c_col, products.add);
    }
    a += products.a_next;
    b += products.b_next;
    c += products.c_next;
  }
}

template <typename T>
constexpr MatmulKernels KernelsOf() {
  return {kRows, PanelColumns<T>(), kDepth, Pack<T>, Multiply<T>, MultiplySmall<T>};
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

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
#include <cstddef>
#include <utility>

#include "kernels/load-inl.h"
#include "kernels/matmul.h"

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

// C (kM rows, kN vectors of columns, `last` elements in the last of them) = or += A B over a depth
// of k. Element (i, p) of A is a[i * a_row + p * a_col]; rows of B lie b_row apart, rows of C
// c_row. Each sum is one chain of fused multiply-adds in the order of p, whatever kM and kN.
template <size_t kM, size_t kN, bool kPacked, typename T>
void Micro(size_t k, const T* HWY_RESTRICT a, ptrdiff_t a_row, ptrdiff_t a_col,
           const T* HWY_RESTRICT b, T* HWY_RESTRICT c, ptrdiff_t c_row, size_t last, bool add) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  // What is added to or written last is fetched first.
  PB_UNROLL
  for (size_t i = 0; i < kM; ++i) hwy::Prefetch(c + static_cast<ptrdiff_t>(i) * c_row);
  std::array<std::array<V, kN>, kM> sum;
  PB_UNROLL
  for (size_t i = 0; i < kM; ++i) {
    PB_UNROLL
    for (size_t j = 0; j < kN; ++j) sum[i][j] = hn::Zero(d);
  }
  if constexpr (kPacked) {
    a_row = 1;
    a_col = kRows;
  }
  for (size_t p = 0; p < k; ++p) {
    std::array<V, kN> right;
    PB_UNROLL
    for (size_t j = 0; j < kN; ++j) right[j] = hn::Load(d, b + j * lanes);
    PB_UNROLL
    for (size_t i = 0; i < kM; ++i) {
      const V left = hn::Set(d, a[static_cast<ptrdiff_t>(i) * a_row]);
      PB_UNROLL
      for (size_t j = 0; j < kN; ++j) sum[i][j] = hn::MulAdd(left, right[j], sum[i][j]);
    }
    a += a_col;
    b += PanelColumns<T>();
  }
  PB_UNROLL
  for (size_t i = 0; i < kM; ++i) {
    T* const row = c + static_cast<ptrdiff_t>(i) * c_row;
    PB_UNROLL
    for (size_t j = 0; j < kN; ++j) {
      T* const to = row + j * lanes;
      V result = sum[i][j];
      if (j + 1 < kN || HWY_LIKELY(last == lanes)) {
        if (add) result = hn::Add(hn::LoadU(d, to), result);
        hn::StoreU(result, d, to);
      } else {
        if (add) result = hn::Add(LoadTail(d, to, last), result);
        StoreTail(result, d, to, last);
      }
    }
  }
}

template <typename T>
using MicroKernel = void (*)(size_t, const T*, ptrdiff_t, ptrdiff_t, const T*, T*, ptrdiff_t,
                             size_t, bool);

// kTable[rows - 1][vectors - 1]
template <typename T, bool kPacked>
struct MicroKernels {
  template <size_t kM, size_t... kN>
  static constexpr std::array<MicroKernel<T>, kVectors> Row(std::index_sequence<kN...>) {
    return {Micro<kM, kN + 1, kPacked, T>...};
  }
  template <size_t... kM>
  static constexpr std::array<std::array<MicroKernel<T>, kVectors>, kRows> Table(
      std::index_sequence<kM...>) {
    return {Row<kM + 1>(std::make_index_sequence<kVectors>())...};
  }
  static constexpr auto kTable = Table(std::make_index_sequence<kRows>());
};

#if HWY_TARGET != HWY_SCALAR
// to[p * width + i] = from[i * across + p] for kStrip rows i, in registers of 128 bits.
template <size_t kStrip, typename T>
HWY_INLINE void TransposeStrip(const T* HWY_RESTRICT from, ptrdiff_t across, size_t depth,
                               T* HWY_RESTRICT to, size_t width) {
  constexpr size_t kSide = 16 / sizeof(T);
  const hn::FixedTag<T, kSide> d;
  size_t p = 0;
  for (; p + kSide <= depth; p += kSide, to += kSide * width) {
    const auto x0 = hn::LoadU(d, from + p);
    const auto x1 = hn::LoadU(d, from + across + p);
    if constexpr (kStrip == 4) {
      const auto x2 = hn::LoadU(d, from + 2 * across + p);
      const auto x3 = hn::LoadU(d, from + 3 * across + p);
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
  for (; p < depth; ++p, to += width) {
    for (size_t s = 0; s < kStrip; ++s) {
      to[s] = from[static_cast<ptrdiff_t>(s) * across + static_cast<ptrdiff_t>(p)];
    }
  }
}
#endif

constexpr size_t RoundUpTo(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
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
    for (; i + kSide <= count; i += kSide) {
      TransposeStrip<kSide>(from + static_cast<ptrdiff_t>(i) * across, across, depth, to + i,
                            width);
    }
    if (kSide > 2 && i + 2 <= count) {
      TransposeStrip<2>(from + static_cast<ptrdiff_t>(i) * across, across, depth, to + i, width);
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
  const T* source = static_cast<const T*>(from);
  T* const target = static_cast<T*>(to);
  // Where panels are slices of long rows, memory is read row by row.
  const size_t step = across == 1 && count > width ? 1 : depth;
  for (size_t p = 0; p < depth; p += step, source += along) {
    for (size_t i = 0; i < count; i += width) {
      PackPanel(width, source + static_cast<ptrdiff_t>(i) * across, across, along,
                std::min(width, count - i), width, step, target + i * depth + p * width);
    }
  }
}

// The panel of C that `rows` rows of A and one panel of B give.
template <typename T>
HWY_INLINE void MultiplyPanel(const BlockProduct& product, MicroKernel<T> kernel, const T* left,
                              const T* right, size_t i, size_t j, size_t rows, size_t columns,
                              size_t last) {
  constexpr size_t kColumns = PanelColumns<T>();
  const size_t k = product.size.k;
  T* const to = static_cast<T*>(product.c) + static_cast<ptrdiff_t>(i) * product.c_row +
                static_cast<ptrdiff_t>(j) * product.c_col;
  if (HWY_LIKELY(product.c_col == 1)) {
    kernel(k, left, product.a_row, product.a_col, right, to, product.c_row, last, product.add);
    return;
  }
  HWY_ALIGN T tile[kRows * kColumns];
  kernel(k, left, product.a_row, product.a_col, right, tile, kColumns,
         hn::Lanes(hn::ScalableTag<T>()), false);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t s = 0; s < columns; ++s) {
      T& element =
          to[static_cast<ptrdiff_t>(r) * product.c_row + static_cast<ptrdiff_t>(s) * product.c_col];
      element = product.add ? element + tile[r * kColumns + s] : tile[r * kColumns + s];
    }
  }
}

// Columns of a panel of B that begins at `j`, the vectors that hold them, and the elements in the
// last of these.
template <typename T>
struct Panel {
  HWY_INLINE Panel(size_t n, size_t j)
      : columns(std::min(PanelColumns<T>(), n - j)),
        vectors((columns + kLanes - 1) / kLanes),
        last(columns - (vectors - 1) * kLanes) {}

  static constexpr size_t kLanes = hn::MaxLanes(hn::ScalableTag<T>());
  size_t columns, vectors, last;
};

// C = or += A B for one depth block; B packed, A packed or not.
template <typename T>
HWY_INLINE void MultiplyBlock(const BlockProduct& product) {
  constexpr size_t kColumns = PanelColumns<T>();
  const auto& [m, n, k] = product.size;
  const T* const a = static_cast<const T*>(product.a);
  const T* const b = static_cast<const T*>(product.b);
  if (product.a_packed) {
    // A panel of B stays in L1, those of A come from L2.
    for (size_t j = 0; j < n; j += kColumns) {
      const Panel<T> panel(n, j);
      for (size_t i = 0; i < m; i += kRows) {
        const size_t rows = std::min(kRows, m - i);
        MultiplyPanel<T>(product, MicroKernels<T, true>::kTable[rows - 1][panel.vectors - 1],
                         a + i * k, b + j * k, i, j, rows, panel.columns, panel.last);
      }
    }
    return;
  }
  // A is read once, from memory it may be; the few panels of B come from L2.
  const size_t panels = (n + kColumns - 1) / kColumns;
  for (size_t i = 0; i < m; i += kRows) {
    const size_t rows = std::min(kRows, m - i);
    const T* const left = a + static_cast<ptrdiff_t>(i) * product.a_row;
    // The next rows are fetched meanwhile, some with each panel.
    const T* next = left + static_cast<ptrdiff_t>(kRows) * product.a_row;
    const size_t next_rows = std::min(kRows, m - i - rows);
    const size_t ahead = product.a_col == 1 ? (next_rows + panels - 1) / panels : 0;
    for (size_t j = 0; j < n; j += kColumns) {
      for (size_t r = 0; r < ahead; ++r, next += product.a_row) {
        for (size_t p = 0; p < k; p += 64 / sizeof(T)) hwy::Prefetch(next + p);
      }
      const Panel<T> panel(n, j);
      MultiplyPanel<T>(product, MicroKernels<T, false>::kTable[rows - 1][panel.vectors - 1], left,
                       b + j * k, i, j, rows, panel.columns, panel.last);
    }
  }
}

template <typename T>
void Multiply(const BlockProduct& product) {
  MultiplyBlock<T>(product);
}

template <typename T>
void MultiplySmall(const SmallProducts& products) {
  constexpr size_t kColumns = PanelColumns<T>();
  constexpr size_t kLanes = hn::MaxLanes(hn::ScalableTag<T>());
  const auto& [m, n, k] = products.size;
  HWY_ALIGN T right[kSmallRight];
  BlockProduct block{products.size, products.a, products.a_row, products.a_col, false,
                     right,         products.c, products.c_row, products.c_col, products.add};
  const T* a = static_cast<const T*>(products.a);
  const T* b = static_cast<const T*>(products.b);
  T* c = static_cast<T*>(products.c);
  for (size_t index = 0; index < products.count; ++index) {
    T* to = right;
    for (size_t j = 0; j < n; j += kColumns, to += kColumns * k) {
      const size_t columns = std::min(kColumns, n - j);
      PackPanel(kColumns, b + static_cast<ptrdiff_t>(j) * products.b_col, products.b_col,
                products.b_row, columns, RoundUpTo(columns, kLanes), k, to);
    }
    block.a = a;
    block.c = c;
    MultiplyBlock<T>(block);
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

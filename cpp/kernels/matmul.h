// Matrix products of any shape, strides and batch, and several of them as one job.
#ifndef PULLBACK_CPP_KERNELS_MATMUL_H_
#define PULLBACK_CPP_KERNELS_MATMUL_H_

#include <array>
#include <cstddef>
#include <span>

#include "kernels/elementwise.h"  // DType
#include "kernels/outcome.h"

namespace pullback {

struct Poll;

// --- what is compiled per instruction set -------------------------------------------------------

struct BlockSize {
  size_t m, n, k;
};

inline constexpr size_t kSmallRight = 4096;

// C = A B, or C += A B with `add`, for one depth block; strides in elements.
struct BlockProduct {
  BlockSize size;
  const void* a;  // packed, or element (i, p) at i * a_row + p * a_col
  ptrdiff_t a_row, a_col;
  bool a_packed;
  const void* b;  // packed
  void* c;
  ptrdiff_t c_row, c_col;
  bool add;
};

// Products of one small shape, one after the other; strides in elements.
struct SmallProducts {
  BlockSize size;  // a right operand of at most kSmallRight elements when packed
  const void* a;
  ptrdiff_t a_row, a_col;
  const void* b;
  ptrdiff_t b_row, b_col;
  void* c;
  ptrdiff_t c_row, c_col;
  bool add;
  size_t count;
  ptrdiff_t a_next, b_next, c_next;
};

struct MatmulKernels {
  size_t rows, columns;  // of the register block, and so of packed panels
  // The contracted axis is summed in chains of this length. It decides over the bits, so it depends
  // on the instruction set and the dtype alone.
  size_t depth;
  // Panels of `width` side by side: to[p * width + i] = from[i * across + p * along]; zeros fill
  // the last one up.
  void (*pack)(size_t width, const void* from, ptrdiff_t across, ptrdiff_t along, size_t count,
               size_t depth, void* to);
  void (*multiply)(const BlockProduct& product);
  void (*multiply_small)(const SmallProducts& products);
};

// --- whole products -----------------------------------------------------------------------------

// Element (i, j) lies at data + i * row + j * col elements.
struct Matrix {
  void* data;
  ptrdiff_t row, col;
};

inline constexpr size_t kMaxBatchAxes = 62;  // an array of 64 axes has no more

struct BatchAxis {
  size_t n;
  ptrdiff_t a, b, c;  // element strides, 0 where an operand repeats
};

// C (m, n) = sum over f of A_f (m, k) B_f (k, n), for each index of the batch.
struct Product {
  size_t m = 0, n = 0, k = 0;
  Matrix a{}, b{}, c{};  // a and b are only read
  size_t fold_axes = 0, batch_axes = 0;
  std::array<BatchAxis, kMaxBatchAxes> folds;  // the first fold_axes of them, the innermost first
  std::array<BatchAxis, kMaxBatchAxes> batch;  // the first batch_axes of them
  bool add = false;                            // C += instead of C =
};

// Computes the products in order, on all threads; C must not overlap what is read, nor another
// product's C unless that one adds to it. Each element of C is a sum of chains of fused
// multiply-adds whose lengths depend on its product's shape, the dtype and the instruction set
// alone, never on the batch, the threads or the caches. Outputs are left half-written when it is
// interrupted.
Outcome Matmul(DType dtype, std::span<const Product> products, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_MATMUL_H_

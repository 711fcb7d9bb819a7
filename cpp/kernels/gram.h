// Weighted Gram matrices, X^T diag(c) X, in one pass over X.
#ifndef PULLBACK_CPP_KERNELS_GRAM_H_
#define PULLBACK_CPP_KERNELS_GRAM_H_

#include <cstddef>
#include <cstdint>

#include "kernels/losses.h"  // Design
#include "kernels/outcome.h"

namespace pullback {

struct Poll;

// --- what is compiled per instruction set --------------------------------------------------------

// Rows of sparse X, read and checked: row r has entries bounds[r] ... bounds[r + 1] - 1.
struct SparseRows {
  size_t rows, cols;
  const size_t* bounds;
  const uint32_t* indices;
  const double* values;
};

struct GramKernels {
  // n rows of X that lies in rows, into panels of `width` columns, the register block's rows or
  // columns, and of `depth` rows; each row times its factor, c[p * c_step], where c is not null. Up
  // to a vector behind the last panel is written.
  void (*pack[kDTypes])(size_t width, const void* x, ptrdiff_t row, size_t cols, size_t n,
                        size_t depth, const double* c, size_t c_step, double* to);
  // Panels of the register block's columns, of X of any strides; what is behind the last of them
  // stays.
  void (*pack_columns)(const double* x, ptrdiff_t row, ptrdiff_t col, size_t cols, size_t depth,
                       double* to);
  // Copies n indices, then kIndexPadding zeros; whether all are below the limit.
  bool (*copy_narrow)(const int32_t* from, size_t n, size_t limit, uint32_t* to);
  bool (*copy_wide)(const int64_t* from, size_t n, size_t limit, uint32_t* to);
  // sums[i * line + j] += c v_i v_j for all pairs i <= j of columns of each row's entries, and for
  // a last column of ones with `intercept`; `guarded`: entries that are 0 add nothing.
  void (*add_outer)(const SparseRows& X, const double* c, size_t c_step, bool intercept,
                    bool guarded, size_t line, double* sums);
};

// --- the whole -----------------------------------------------------------------------------------

struct GramProblem {
  Design X;  // dense: its layout and stride do not count, but these do, in elements
  ptrdiff_t row, col;
  const double* c;  // (X.rows, several), or null for ones
  size_t several;   // columns of c: so many matrices; 1 without c
  bool intercept;   // X has one more column, of ones

  size_t size() const { return X.cols + (intercept ? 1 : 0); }
};

// out: (several, size, size), both triangles. A row whose c is 0 adds nothing, nor does an element
// of X that is 0, whatever it meets. float64 sums over fixed slabs of rows, merged as a tree: the
// bits depend on the shape, the kind of X (dense, CSR or CSC) and the target alone. `found` tells
// whether all indices of a sparse X were in range; else, and unless it is done, out is untouched.
Outcome SumGram(const GramProblem& problem, double* out, bool& found, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_GRAM_H_

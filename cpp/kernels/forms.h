// Bilinear forms u^T X v: the value and the gradients by both vectors in one pass over X; and rows
// times numbers.
#ifndef PULLBACK_CPP_KERNELS_FORMS_H_
#define PULLBACK_CPP_KERNELS_FORMS_H_

#include <cstddef>

#include "kernels/elementwise.h"  // DType
#include "kernels/matmul.h"       // Matrix
#include "kernels/outcome.h"

namespace pullback {

struct Poll;

// Rows of X are contiguous and `stride` elements apart; the vectors are contiguous.
struct BilinearForm {
  DType dtype;
  size_t rows, cols;
  const void* X;
  ptrdiff_t stride;
  const void* u;  // (rows,)
  const void* v;  // (cols,)
};

// *value = u^T X v, Xv (rows,) and uX (cols,), of which null is not wanted; where both are one
// array, it gets their sum. Sums are float64 ones over fixed slabs of rows, merged as a tree, and
// are rounded once: the bits depend on the shape and the target alone.
Outcome BilinearGradients(const BilinearForm& form, void* value, void* Xv, void* uX, Poll* poll);

// to[s, i, j] = g[s, i] * from[i, j], for s < count; with a count of 1, `to` may be `from`.
struct RowScaling {
  DType dtype;
  size_t count, rows, cols;
  Matrix g, from, to;
  ptrdiff_t next;  // from to[s] to to[s + 1], in elements
};

Outcome ScaleRows(const RowScaling& scaling, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_FORMS_H_

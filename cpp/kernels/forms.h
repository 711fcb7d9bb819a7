// Bilinear forms u^T X v: the value and the gradients by both vectors in one pass over X.
#ifndef PULLBACK_CPP_KERNELS_FORMS_H_
#define PULLBACK_CPP_KERNELS_FORMS_H_

#include <cstddef>

#include "kernels/elementwise.h"  // DType
#include "kernels/outcome.h"

namespace pullback {

struct Poll;

// Rows of X are contiguous and `stride` elements apart.
struct BilinearForm {
  DType dtype;
  size_t rows, cols;
  const void* X;
  ptrdiff_t stride;
  const double* u;  // (rows,)
  const double* v;  // (cols,)
};

// *value = u^T X v, Xv (rows,) and uX (cols,) in float64 sums over fixed slabs of rows, merged as a
// tree: the bits depend on the shape and the target alone.
Outcome BilinearGradients(const BilinearForm& form, double* value, double* Xv, double* uX,
                          Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_FORMS_H_

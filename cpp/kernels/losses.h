// Losses of the linear-model family: loss and gradient in one pass over X.
#ifndef PULLBACK_CPP_KERNELS_LOSSES_H_
#define PULLBACK_CPP_KERNELS_LOSSES_H_

#include <cstddef>
#include <span>

#include "kernels/elementwise.h"  // DType

namespace pullback {

struct Poll;

// Rows of X: contiguous within a row, `x_stride` elements from one row to the next.
struct LinearModel {
  const void* X;
  DType x_dtype;
  size_t rows, cols;
  ptrdiff_t x_stride;
  const void* y;  // (rows,), contiguous
  DType y_dtype;
  const void* w;  // (cols,), contiguous
  DType w_dtype;
  double b;
};

// Sums over rows [begin, end), at most kLossBlock of them. sums: gradient in w (padded to whole
// vectors), then overwritten at [padded] by the gradient in b and at [padded + 1] by the loss.
// `w` is float64, zero-padded likewise. The gradient parts are left alone when !with_gradient.
using LossKernel = void (*)(const LinearModel& model, const double* w, bool with_gradient,
                            size_t begin, size_t end, double* sums);

struct LossKernels {
  const char* name;
  LossKernel kernel[kDTypes];  // by dtype of X
};

inline constexpr size_t kLossBlock = 512;

std::span<const LossKernels> LossOps();

// loss = 1/rows * sum of l(X_i w + b, y_i). Both gradients are means too: gw has cols elements
// of w's dtype (overwritten; null for the loss alone), gb one. Sums of float64 over fixed blocks of rows that
// are merged as a tree: the bits depend on the shape and the target, never on the thread count.
// False when `poll` asked to stop; the outputs are then untouched.
bool MeanLoss(LossKernel kernel, const LinearModel& model, double* loss, void* gw, double* gb,
              Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_LOSSES_H_

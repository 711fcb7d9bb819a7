// Losses of the linear-model family: loss and gradient in one pass over X.
#ifndef PULLBACK_CPP_KERNELS_LOSSES_H_
#define PULLBACK_CPP_KERNELS_LOSSES_H_

#include <cstddef>
#include <span>

#include "kernels/elementwise.h"  // DType
#include "kernels/outcome.h"

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

// Where a block's sums lie: the loss, its gradient in b, and from kSumW its gradient in w. w and
// the gradient in w are padded to at least one whole vector more than fits.
inline constexpr size_t kSumLoss = 0, kSumB = 1, kSumW = 8;

// Overwrites `sums` with those over rows [begin, end), at most kLossBlock of them. `w` is float64
// and zero-padded. The gradient in w is left alone when !with_gradient.
using LossKernel = void (*)(const LinearModel& model, const double* w, bool with_gradient,
                            size_t begin, size_t end, double* sums);

struct LossKernels {
  const char* name;
  LossKernel kernel[kDTypes];  // by dtype of X
};

inline constexpr size_t kLossBlock = 512;

std::span<const LossKernels> LossOps();

// A mean and its gradients; the gradients are overwritten, and left alone if gw is null.
struct MeanLossResult {
  double loss;
  void* gw;  // (cols,), of w's dtype
  void* gb;  // one element
  DType gb_dtype;
};

// loss = 1/rows * sum of l(X_i w + b, y_i), and both gradients. Sums of float64 over fixed blocks
// of rows that are merged as a tree: the bits depend on the shape and the target, never on the
// thread count. Outputs are untouched unless it is done.
Outcome MeanLoss(LossKernel kernel, const LinearModel& model, MeanLossResult& result, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_LOSSES_H_

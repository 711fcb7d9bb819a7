// A linear layer, act(X W + b), and its cotangents.
#ifndef PULLBACK_CPP_KERNELS_LINEAR_H_
#define PULLBACK_CPP_KERNELS_LINEAR_H_

#include <cstddef>

#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/outcome.h"

namespace pullback {

struct Poll;

struct LinearLayer {
  DType dtype;
  size_t rows, k, n;
  Matrix x, w;                  // (rows, k), (k, n)
  const void* bias;             // (n,), contiguous; null for none
  const OpKernels* activation;  // of one operand; null for none
};

// About as many as a layer takes for X W, its bias and its activation.
inline double Multiplications(const LinearLayer& layer) {
  return static_cast<double>(layer.rows) * static_cast<double>(layer.k + 8) *
         static_cast<double>(layer.n);
}

// Overwrites `out` (rows, n), whose rows are contiguous.
Outcome LinearValue(const LinearLayer& layer, const Matrix& out, Poll* poll);

struct LinearCotangents {
  Matrix g;       // (rows, n), its rows contiguous
  Matrix dx, dw;  // without data: not wanted
  void* dbias;    // (n,), contiguous; null: not wanted
};

// With H = act'(X W + b) g: overwrites dx = H W^T, dw = X^T H and dbias = the sum of H's rows,
// which is a float64 one. H exists block by block where dw is small, and is used while it is in the
// cache.
Outcome LinearVjp(const LinearLayer& layer, const LinearCotangents& cotangents, Poll* poll);

// `out` (rows, n), rows contiguous, holds a tangent of X W: adds that of the bias, (n,), unless it
// is null, and multiplies by act'(X W + b).
Outcome LinearTangent(const LinearLayer& layer, const void* tbias, const Matrix& out, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_LINEAR_H_

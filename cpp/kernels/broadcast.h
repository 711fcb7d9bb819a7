// Elementwise kernels over whole arrays: operands of any number type, layout and repetition in one
// pass, and results summed over the repetitions on the way.
#ifndef PULLBACK_CPP_KERNELS_BROADCAST_H_
#define PULLBACK_CPP_KERNELS_BROADCAST_H_

#include <cstddef>

#include "kernels/convert.h"
#include "kernels/elementwise.h"
#include "kernels/outcome.h"

namespace pullback {

inline constexpr int kMaxAxes = 64;

// The element at index i lies at data + sum of i[a] * stride[a] (in bytes; negative is fine).
struct ArrayOperand {
  char* data;       // null: an output that is computed and dropped, an input that is left out
  Storage storage;  // of an input; outputs are of the call's dtype
  ptrdiff_t stride[kMaxAxes];
};

// Inputs first, then outputs. An input of stride 0 is repeated along that axis. An output of stride
// 0 along an axis of more than one element is the sum over it, in float64; it must be C-contiguous
// otherwise. Outputs overlap neither each other nor an input, unless element for element, of the
// same storage, and not summed.
struct ArrayCall {
  ElementwiseKernel kernel;
  MethodShape shape;
  DType dtype;
  int axes;
  size_t extent[kMaxAxes];  // none is 0
  bool in_order = false;    // an output overwrites what an input has ahead of it
  ArrayOperand operand[kMaxOperands];
};

// The order of the sums depends on extents and strides alone, not on the number of threads.
Outcome RunArrays(const ArrayCall& call, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_BROADCAST_H_

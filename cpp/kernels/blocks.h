// What happens to a block of results on its way from L1 to where it belongs.
#ifndef PULLBACK_CPP_KERNELS_BLOCKS_H_
#define PULLBACK_CPP_KERNELS_BLOCKS_H_

#include <cstddef>

#include "kernels/elementwise.h"

namespace pullback {

// For `n` elements of float (float64 sums) or double. Bits depend on values, n and the target, not
// on where in memory a block lies.
struct BlockKernels {
  void (*add[kDTypes])(const void* from, double* to, size_t n);  // to[i] += from[i]
  double (*sum[kDTypes])(const void* from, size_t n);            // over i
};

const BlockKernels& Blocks();

// Orders streamed stores before whatever the other threads are told next.
void FlushStreams();

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_BLOCKS_H_

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

// What is read in whole vectors of doubles is padded by at least one: as many as in the longest.
inline constexpr size_t kDoublePadding = 8;
constexpr size_t PadDoubles(size_t n) { return (n / kDoublePadding + 1) * kDoublePadding; }

// to[i] = value, rounded to `dtype`.
inline void Write(double value, DType dtype, void* to, size_t i) {
  if (dtype == DType::kFloat64) {
    static_cast<double*>(to)[i] = value;
  } else {
    static_cast<float*>(to)[i] = static_cast<float>(value);
  }
}

// Orders streamed stores before whatever the other threads are told next.
void FlushStreams();

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_BLOCKS_H_

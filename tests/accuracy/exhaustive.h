// All of float32, against our own float64 kernel.
#ifndef PULLBACK_TESTS_ACCURACY_EXHAUSTIVE_H_
#define PULLBACK_TESTS_ACCURACY_EXHAUSTIVE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "judge.h"
#include "measure.h"

namespace pullback::accuracy {

// How much of it: every stride-th number (1: all of them); the last target, which is the slowest,
// sees every sparse-th block of those only.
struct Extent {
  uint64_t stride = 1, sparse = 1;
};

// `reference`: value_and_derivative in float64, on the best target.
void Exhaustive(const Op& op, const std::vector<Kernel>& kernels, ElementwiseKernel reference,
                WorstError worst_error, size_t threads, Extent extent, Result& result);

}  // namespace pullback::accuracy

#endif  // PULLBACK_TESTS_ACCURACY_EXHAUSTIVE_H_

// The errors of float32 results against float64 ones, at the speed an exhaustive sweep needs.
#ifndef PULLBACK_TESTS_ACCURACY_JUDGE_H_
#define PULLBACK_TESTS_ACCURACY_JUDGE_H_

#include <cstddef>

namespace pullback::accuracy {

// Element i's error in ULP of exact[i]; infinity where NaN, infinity or the sign is wrong.
double ErrorOf(double exact, float got);

// The largest of n, a multiple of 64.
using WorstError = double (*)(const double* exact, const float* got, size_t n);

// Compiled for the target that is active at the time of the call.
WorstError GetWorstError();

}  // namespace pullback::accuracy

#endif  // PULLBACK_TESTS_ACCURACY_JUDGE_H_

// Kernels at given points, and at random ones.
#ifndef PULLBACK_TESTS_ACCURACY_SAMPLED_H_
#define PULLBACK_TESTS_ACCURACY_SAMPLED_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "measure.h"
#include "points.h"
#include "rough.h"

namespace pullback::accuracy {

// What a task starts with: the maxima so far, nothing counted.
Result Snapshot(const Result& result, std::mutex& mutex);

// Judges the kernels at the points; `result` starts with the maxima that are to be beaten. Every
// `mpfr_every`-th point goes to MPFR, whatever long double says.
template <typename T>
void JudgePoints(const Op& op, const std::vector<Kernel>& kernels, Rough& rough,
                 const std::vector<Point<T>>& points, size_t mpfr_every, bool shuffle,
                 Result& result);

// At the sampler's edges and at `samples` random points, the same ones every time.
template <typename T>
void Sampled(const Op& op, const std::vector<Kernel>& kernels, const Sampler<T>& sampler,
             size_t threads, uint64_t samples, Result& result);

extern template void JudgePoints(const Op&, const std::vector<Kernel>&, Rough&,
                                 const std::vector<Point<double>>&, size_t, bool, Result&);
extern template void Sampled(const Op&, const std::vector<Kernel>&, const Sampler<float>&, size_t,
                             uint64_t, Result&);
extern template void Sampled(const Op&, const std::vector<Kernel>&, const Sampler<double>&, size_t,
                             uint64_t, Result&);

}  // namespace pullback::accuracy

#endif  // PULLBACK_TESTS_ACCURACY_SAMPLED_H_

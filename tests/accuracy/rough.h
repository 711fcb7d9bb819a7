// The table's formulas in long double, a block of points at a time, with a bound on their error:
// sorts the samples, so that MPFR sees only those that matter.
#ifndef PULLBACK_TESTS_ACCURACY_ROUGH_H_
#define PULLBACK_TESTS_ACCURACY_ROUGH_H_

#include <cstddef>
#include <vector>

#include "table.h"

namespace pullback::accuracy {

class Rough {
 public:
  static constexpr size_t kBlock = 256;

  explicit Rough(const Op& op);

  // At n <= kBlock finite points.
  void Evaluate(const double* a, const double* b, size_t n);

  // What it came to, and a bound on its relative error; infinity: no idea.
  const long double* Value(int node) const { return &value_[static_cast<size_t>(node) * kBlock]; }
  const double* Doubt(int node) const { return &doubt_[static_cast<size_t>(node) * kBlock]; }

 private:
  void Apply(const Node& node, long double* r, double* doubt, size_t n);

  const Op& op_;
  std::vector<long double> value_;
  std::vector<double> doubt_;
};

}  // namespace pullback::accuracy

#endif  // PULLBACK_TESTS_ACCURACY_ROUGH_H_

// Where the sweep looks: edges of the format, places where a kernel's output changes its nature,
// and random points in strata.
#ifndef PULLBACK_TESTS_ACCURACY_POINTS_H_
#define PULLBACK_TESTS_ACCURACY_POINTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/elementwise.h"
#include "table.h"

namespace pullback::accuracy {

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed) {}
  uint64_t operator()() {  // splitmix64
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  size_t Below(size_t n) { return static_cast<size_t>((*this)() % n); }
  double Uniform() { return static_cast<double>((*this)() >> 11) * 0x1p-53; }
  int Sign() { return (*this)() % 2 == 0 ? 1 : -1; }
};

template <typename T>
struct Point {
  T a, b;  // b == a for unary ops
};

template <typename T>
class Sampler {
 public:
  // `kernel`: value_and_derivative, whose output is searched. `known`: to be looked at as well.
  Sampler(const Op& op, ElementwiseKernel kernel, const std::vector<Point<double>>& known);

  // Always the same.
  const std::vector<Point<T>>& Edges() const { return edges_; }

  Point<T> Draw(Random& random) const;

 private:
  void FindPlaces(ElementwiseKernel kernel, int operand, T partner);
  void AddEdges(const std::vector<Point<double>>& known);
  T DrawOne(Random& random, const std::vector<T>& places) const;

  const Op& op_;
  std::vector<T> places_[2];     // by operand
  std::vector<Point<T>> pairs_;  // of binary ops: places that depend on the other operand
  std::vector<Point<T>> edges_;
};

extern template class Sampler<float>;
extern template class Sampler<double>;

}  // namespace pullback::accuracy

#endif  // PULLBACK_TESTS_ACCURACY_POINTS_H_

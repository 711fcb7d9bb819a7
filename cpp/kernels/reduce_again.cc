// Slices that the loops of reductions cannot do justice: again, from copies times powers of two.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>

#include "kernels/reductions.h"
#include "kernels/sums.h"
#include "runtime/scratch.h"

namespace pullback {
namespace {

// The elements of one slice, among those of others.
class Elements {
 public:
  Elements(const ReductionCall& call, size_t slice)
      : dtype_(call.dtype),
        first_(slice / call.inner * call.n * call.inner + slice % call.inner),
        stride_(call.inner),
        n_(call.n) {}

  double Get(const void* array, size_t i) const {
    const size_t at = first_ + i * stride_;
    return dtype_ == DType::kFloat64 ? static_cast<const double*>(array)[at]
                                     : static_cast<double>(static_cast<const float*>(array)[at]);
  }

  void Set(void* array, size_t i, double value) const {
    Write(value, dtype_, array, first_ + i * stride_);
  }

  bool AreEqual(const void* array) const {
    size_t i = 1;
    while (i < n_ && Get(array, i) == Get(array, 0)) ++i;
    return i >= n_;
  }

  // The least one above all magnitudes; 0 of zeros. Nothing where there is a NaN or infinity.
  std::optional<int> Exponent(const void* array) const {
    double largest = 0;
    for (size_t i = 0; i < n_; ++i) {
      const double size = std::abs(Get(array, i));
      if (!(size <= std::numeric_limits<double>::max())) return std::nullopt;
      largest = std::max(largest, size);
    }
    return largest == 0 ? 0 : std::ilogb(largest) + 1;
  }

 private:
  const DType dtype_;
  const size_t first_, stride_, n_;
};

// Where neither squares nor products with each other over- or underflow.
constexpr int kVanish = 10000;  // the exponent by which all doubles do
bool IsModerate(int exponent) { return exponent >= -100 && exponent <= 400; }

}  // namespace

Outcome ReduceAgain(const ReductionCall& call, size_t slice, Poll* poll) {
  const ReductionKernels& op = *call.op;
  if (op.is_suspect == nullptr) return Outcome::kDone;  // it has no degree
  const Elements elements(call, slice);
  const size_t n = call.n;
  const bool is_map = *op.method != 0;
  const void* const moved = call.tangents ? call.t[0] : is_map ? call.v : nullptr;

  // By which powers of two x and what results are linear in are divided.
  const std::optional<int> of_x = elements.Exponent(call.x);
  if (!of_x) return Outcome::kDone;
  int x = *of_x, linear = moved == nullptr ? 0 : elements.Exponent(moved).value_or(0);
  // Beside a parameter, of elements that do not vary nothing counts.
  bool vanishes = false;
  if (op.parameter_degree != 0 && call.parameter > 0) {
    const int least = std::ilogb(call.parameter) / op.parameter_degree + 1;
    vanishes = x > least && elements.AreEqual(call.x);
    x = vanishes ? least : std::max(x, least);
  }
  if (!vanishes && IsModerate(x) && IsModerate(linear)) return Outcome::kDone;

  Scratch<> scratch(3 * Scratch<>::Bytes<double>(n));
  if (!scratch) return Outcome::kOutOfMemory;
  const auto copy = [&](const void* array, int exponent) -> const double* {
    if (array == nullptr) return nullptr;
    double* const to = scratch.Take<double>(n);
    for (size_t i = 0; i < n; ++i) to[i] = std::ldexp(elements.Get(array, i), -exponent);
    return to;
  };
  ReductionCall again = {};
  again.op = &op;
  again.dtype = DType::kFloat64;
  again.parameter = std::ldexp(call.parameter, -op.parameter_degree * x);
  again.outer = again.inner = 1;
  again.n = n;
  again.x = copy(call.x, vanishes ? kVanish : x);
  (call.tangents ? again.t[0] : again.v) = copy(moved, linear);
  again.tangents = call.tangents;
  double g = 1, value;
  if (call.g != nullptr) {
    g = std::frexp(call.dtype == DType::kFloat64 ? static_cast<const double*>(call.g)[slice]
                                                 : static_cast<const float*>(call.g)[slice],
                   &linear);
  }
  again.g = &g;
  again.values = call.values == nullptr ? nullptr : &value;
  double* const slopes = call.out[0] == nullptr ? nullptr : scratch.Take<double>(n);
  again.out[0] = slopes;
  const Outcome outcome = Reduce(again, poll);
  if (outcome != Outcome::kDone) return outcome;

  const int by_slope = (is_map ? op.degree : op.degree - 1) * x + linear;
  if (call.values != nullptr) {
    const int by_value = call.tangents ? by_slope : op.degree * x;
    Write(std::ldexp(value, by_value), call.dtype, call.values, slice);
  }
  for (size_t i = 0; slopes != nullptr && i < n; ++i) {
    elements.Set(call.out[0], i, std::ldexp(slopes[i], by_slope));
  }
  return Outcome::kDone;
}

}  // namespace pullback

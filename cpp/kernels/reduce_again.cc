// Slices that the loops of reductions do no justice to: again, from copies times powers of two.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

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

  // Of no array there are none.
  template <class Test>
  bool Any(const void* array, const Test& test) const {
    bool any = false;
    for (size_t i = 0; array != nullptr && i < n_; ++i) any |= test(Get(array, i));
    return any;
  }
  bool AnyNaN(const void* array) const {
    return Any(array, [](double x) { return x != x; });
  }
  bool AllZero(const void* array) const {
    return !Any(array, [](double x) { return x != 0; });
  }
  bool AllFinite(const void* array) const {
    return !Any(array, [](double x) { return !std::isfinite(x); });
  }
  bool AllEqual(const void* array) const {
    return !Any(array, [first = Get(array, 0)](double x) { return x != first; });
  }

  // The least exponent above all magnitudes, which are finite; 0 of zeros.
  int Exponent(const void* array) const {
    double largest = 0;
    for (size_t i = 0; i < n_; ++i) largest = std::max(largest, std::abs(Get(array, i)));
    return largest == 0 ? 0 : std::ilogb(largest) + 1;
  }

 private:
  const DType dtype_;
  const size_t first_, stride_, n_;
};

// Where neither squares nor products with each other over- or underflow.
bool IsModerate(int exponent) { return exponent >= -100 && exponent <= 400; }

constexpr int kVanish = 10000;  // dividing by that power of two leaves nothing of a double

// By which powers of two x is divided, and what results are linear in: a map's v, or tangents.
struct Powers {
  int x = 0, linear = 0;
  bool vanishes = false;  // beside the parameter nothing of x counts, as it does not vary

  Powers(const ReductionCall& call, const Elements& elements, const void* moved) {
    const int by_parameter = call.op->parameter_degree;
    if ((call.op->degree == 0 && by_parameter == 0) || !elements.AllFinite(call.x)) return;
    x = elements.Exponent(call.x);
    if (moved != nullptr && elements.AllFinite(moved)) linear = elements.Exponent(moved);
    if (by_parameter != 0 && call.parameter > 0 && std::isfinite(call.parameter)) {
      const int least = std::ilogb(call.parameter) / by_parameter + 1;
      vanishes = call.op->centred && x > least && elements.AllEqual(call.x);
      x = vanishes ? least : std::max(x, least);
    }
  }

  bool Matter() const { return vanishes || !IsModerate(x) || !IsModerate(linear); }
};

// The sum of products of n doubles.
Outcome Dot(const double* x, const double* v, size_t n, Poll* poll, double& sum) {
  ReductionCall dot = {};
  dot.op = &ReductionOps()[FindReduction("dot").value()];
  dot.dtype = DType::kFloat64;
  dot.outer = dot.inner = 1;
  dot.n = n;
  dot.x = x;
  dot.v = v;
  dot.values = &sum;
  return Reduce(dot, poll);
}

}  // namespace

Outcome ReduceAgain(const ReductionCall& call, size_t slice, Poll* poll) {
  const ReductionKernels& op = *call.op;
  const Elements elements(call, slice);
  const size_t n = call.n;
  const bool is_map = *op.method != 0;
  double g = 1;
  if (call.g != nullptr) {
    g = call.dtype == DType::kFloat64 ? static_cast<const double*>(call.g)[slice]
                                      : static_cast<const float*>(call.g)[slice];
  }
  const bool is_nan = elements.AnyNaN(call.x) || (!is_map && elements.AnyNaN(call.v));
  // Of a zero nothing comes, even where it has met an infinity.
  if (is_map ? call.v != nullptr && elements.AllZero(call.v) : g == 0) {
    for (size_t o = 0; !is_nan && o < op.outs; ++o) {
      if (!elements.AnyNaN(call.out[o])) continue;
      for (size_t i = 0; i < n; ++i) {
        if (std::isnan(elements.Get(call.out[o], i))) elements.Set(call.out[o], i, 0);
      }
    }
    return Outcome::kDone;
  }
  const void* const moved = call.tangents ? call.t[0] : is_map ? call.v : nullptr;
  Powers powers(call, elements, moved);
  // Of tangents, what does not move adds nothing either.
  if (!powers.Matter() && (is_nan || !call.tangents)) return Outcome::kDone;

  const size_t arrays = 2 + 2 * op.outs;
  Scratch<> scratch(arrays * Scratch<>::Bytes<double>(n));
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
  again.parameter = std::ldexp(call.parameter, -op.parameter_degree * powers.x);
  again.outer = again.inner = 1;
  again.n = n;
  again.again = true;
  again.x = copy(call.x, powers.vanishes ? kVanish : powers.x);
  again.v = copy(call.v, is_map ? powers.linear : 0);
  double mantissa = g, value = 0;
  if (call.g != nullptr) mantissa = std::frexp(g, &powers.linear);
  again.g = &mantissa;
  again.values = call.tangents || call.values == nullptr ? nullptr : &value;
  double* slopes[kMaxOuts] = {};
  for (size_t o = 0; (call.tangents || call.out[0] != nullptr) && o < op.outs; ++o) {
    again.out[o] = slopes[o] = scratch.Take<double>(n);
  }
  Outcome outcome = Reduce(again, poll);
  for (size_t o = 0; call.tangents && outcome == Outcome::kDone && o < op.outs; ++o) {
    const double* const t = copy(call.t[o], powers.linear);
    if (t == nullptr) continue;
    for (size_t i = 0; i < n; ++i) slopes[o][i] = t[i] == 0 ? 0 : slopes[o][i];
    double sum;
    outcome = Dot(slopes[o], t, n, poll, sum);
    value += sum;
  }
  if (outcome != Outcome::kDone) return outcome;

  const int by_slope = (is_map ? op.degree : op.degree - 1) * powers.x + powers.linear;
  if (call.values != nullptr) {
    const int by_value = call.tangents ? by_slope : op.degree * powers.x;
    Write(std::ldexp(value, by_value), call.dtype, call.values, slice);
  }
  for (size_t o = 0; call.out[0] != nullptr && o < op.outs; ++o) {
    for (size_t i = 0; i < n; ++i) {
      elements.Set(call.out[o], i, std::ldexp(slopes[o][i], by_slope));
    }
  }
  return Outcome::kDone;
}

}  // namespace pullback

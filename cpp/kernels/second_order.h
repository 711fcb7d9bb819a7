// Second order of reductions and maps of rows: H(t), the derivative of their vjp along a tangent of
// x, where the first order takes one pass. Rows lie one behind the other and stay in the cache.
#ifndef PULLBACK_CPP_KERNELS_SECOND_ORDER_H_
#define PULLBACK_CPP_KERNELS_SECOND_ORDER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/outcome.h"

namespace pullback {

struct Poll;

enum class SecondRow : uint8_t {
  kSoftmax,
  kLogSoftmax,
  kLayerNorm,
  kLogSumExp,
  kNorm2,
  kVariance,
  kSquaredNorm2,
  kConstant,  // vjp does not depend on x
  kFlat,      // nor does this one, between kinks; NaN stays NaN
};

// Nothing for a row without a kernel. The norms of exponents 1, 2 and inf have rows of their own.
std::optional<SecondRow> FindSecond(std::string_view name);
constexpr bool IsMap(SecondRow row) { return row <= SecondRow::kLayerNorm; }

struct SecondCall {
  SecondRow row;
  double parameter;
  size_t rows, n;   // n > 0
  const double* x;  // (rows, n)
  const double* g;  // (rows, n) of a map, else (rows,)
  const double* t;  // (rows, n)
  double* out;      // (rows, n), apart from the others
  // (rows,): whether a row's result is not to be trusted, as it is not finite, or a square may have
  // over- or underflowed on the way.
  uint8_t* suspects;
};

// The bits depend on n and the target alone.
Outcome SecondOrder(const SecondCall& call, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_SECOND_ORDER_H_

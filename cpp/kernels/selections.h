// Selections: each element of a result is an element of an operand. Element by element these are
// elementwise kernels, for the drivers of those; along an axis they are here.
#ifndef PULLBACK_CPP_KERNELS_SELECTIONS_H_
#define PULLBACK_CPP_KERNELS_SELECTIONS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/elementwise.h"
#include "kernels/outcome.h"
#include "runtime/targets.h"

namespace pullback {

// --- element by element: where, clip -------------------------------------------------------------

inline constexpr int kChoiceOperands = 3;
inline constexpr size_t kChoiceMethods = 5;  // of Method, from the first
static_assert(static_cast<size_t>(Method::kJvp) + 1 == kChoiceMethods);

// The first operand of `where` is its condition, which is true where it is not 0; of `clip`, a
// bound may be left out, and in a jvp a tangent.
struct ChoiceKernels {
  const char* name;
  int constant;  // how many operands have no derivatives: the first ones
  ElementwiseKernel kernel[kChoiceMethods][kDTypes];

  int moved() const { return kChoiceOperands - constant; }

  // What a kernel takes and gives, as for an operation: with one derivative for each operand that
  // has any.
  MethodShape ShapeOf(Method method) const {
    switch (method) {
      case Method::kDerivative:
        return {kChoiceOperands, moved()};
      case Method::kValueAndDerivative:
        return {kChoiceOperands, 1 + moved()};
      case Method::kVjp:
        return {kChoiceOperands + 1, moved()};
      case Method::kJvp:
        return {kChoiceOperands + moved(), 1};
      default:
        return {kChoiceOperands, 1};
    }
  }
};

using ChoiceTable = std::span<const ChoiceKernels>;
const PerTarget<ChoiceTable>& ChoiceTables();

// --- along an axis: take -------------------------------------------------------------------------

// From or to an array (outer, n, inner) at places along its middle axis, C-contiguous like all that
// is here; the elements taken are (outer, places, inner). Places may change while this runs: each
// is read once where it is used, and checked.
struct TakeCall {
  DType dtype;
  const void* places;  // int32 or int64; negative ones count from the end
  bool wide_places;
  size_t count;  // of places
  size_t outer, n, inner;
};

// Whether all places are in range, at this moment.
bool PlacesAreInRange(const TakeCall& call);

// `wrong` is set where a place is out of range; what has been written is then of no use.
Outcome TakeElements(const TakeCall& call, const void* x, void* taken, bool* wrong, Poll* poll);

// Writes all of x: sums, in float64 and in the order of the places, of what was taken from each
// element.
Outcome PutElements(const TakeCall& call, const void* taken, void* x, bool* wrong, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_SELECTIONS_H_

#ifndef PULLBACK_CPP_BINDINGS_OBJECTIVE_H_
#define PULLBACK_CPP_BINDINGS_OBJECTIVE_H_

#include "bindings/numpy_api.h"

namespace pullback {

// A loss and all of its data as a function of one vector: (name, parameter, X, y, sample_weight,
// offset, rows, cols, l2, outputs, intercept, several, response, method, fallback). The data are
// examined anew in each call, as in a loss's methods; `l2` is a float, or an array with a number
// for each coefficient; `several` says whether outputs have an axis, and `response`, or None, is
// called as response(z). The method is `value`, `value_and_grad`, `grad`, `hvp`, `initial` (except
// for losses that are flat at 0), `predict` or `unpack`. It calls `fallback` for arguments that are
// no plain arrays or lists, for X that is not read in place, and for bad rows. New reference; null
// with an exception set.
PyObject* NewObjectiveMethod(PyObject* const* args);
inline constexpr size_t kObjectiveArguments = 15;

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_OBJECTIVE_H_

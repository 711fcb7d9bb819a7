#ifndef PULLBACK_CPP_BINDINGS_OBJECTIVE_H_
#define PULLBACK_CPP_BINDINGS_OBJECTIVE_H_

#include "bindings/numpy_api.h"

namespace pullback {

// A loss and all of its data as a function of one vector: (name, parameter, X, y, sample_weight,
// offset, rows, cols, l2, outputs, intercept, several, response, method, fallback). The data are
// looked at in each call, as a loss's methods look at theirs; `l2` is a float, or an array with one
// for each coefficient; `several` says whether outputs have an axis, and `response`, or None, is
// called as response(z). The method is `value`, `value_and_grad`, `grad`, `hvp`, `initial` off the
// flat side, `predict` or `unpack`, and calls `fallback` for what is no plain array or list, or no
// X that is read where it lies, and for bad rows. New reference; null with an exception set.
PyObject* NewObjectiveMethod(PyObject* const* args);
inline constexpr size_t kObjectiveArguments = 15;

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_OBJECTIVE_H_

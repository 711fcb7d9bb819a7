#ifndef PULLBACK_CPP_BINDINGS_OBJECTIVE_H_
#define PULLBACK_CPP_BINDINGS_OBJECTIVE_H_

#include "bindings/numpy_api.h"

namespace pullback {

// A loss and all of its data as a function of one vector, for as long as its methods live:
// (name, parameter, X, y, sample_weight, weight, l2, outputs, intercept, several, response), of
// which X, y and sample_weight are as the losses' engine takes them, `several` says whether outputs
// have an axis, and `response`, or None, is called as response(z). New reference; null with
// an exception set.
PyObject* NewObjective(PyObject* const* args);
inline constexpr size_t kObjectiveArguments = 11;

// `value`, `value_and_grad`, `grad`, `hvp`, `predict` or `unpack` of one, which calls `fallback`
// for vectors that are no plain arrays or lists, and for bad rows. New reference; null with an
// exception set.
PyObject* NewObjectiveMethod(PyObject* objective, const char* method, PyObject* fallback);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_OBJECTIVE_H_

#ifndef PULLBACK_CPP_BINDINGS_OBJECTIVE_H_
#define PULLBACK_CPP_BINDINGS_OBJECTIVE_H_

#include "bindings/numpy_api.h"

namespace pullback {

// A loss and all of its data as a function of one vector, for as long as its methods live:
// (name, parameter, X, y, sample_weight, weight, l2, outputs, intercept), of which X, y and
// sample_weight are as the losses' engine takes them. New reference; null with an exception set.
PyObject* NewObjective(PyObject* const* args);
inline constexpr size_t kObjectiveArguments = 9;

// `value`, `value_and_grad`, `grad` or `hvp` of one, which calls `fallback` for all but float64
// vectors, and for bad rows. New reference; null with an exception set.
PyObject* NewObjectiveMethod(PyObject* objective, const char* method, PyObject* fallback);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_OBJECTIVE_H_

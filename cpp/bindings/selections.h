#ifndef PULLBACK_CPP_BINDINGS_SELECTIONS_H_
#define PULLBACK_CPP_BINDINGS_SELECTIONS_H_

#include "bindings/numpy_api.h"

namespace pullback {

// A method of a selection ("where", "vjp") with the signature of `fallback`, which is called for
// what the kernels do not take. New reference; null with an exception set, KeyError where there is
// no such selection or method.
PyObject* NewSelectionMethod(const char* selection, const char* method, PyObject* fallback);

// The selections that have kernels: a list of names.
PyObject* SelectionOps();

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_SELECTIONS_H_

// Callables that enter a kernel straight from the vectorcall protocol.
//
// A Method tries its fast path; whatever the fast path does not recognise goes, arguments
// untouched, to a Python callable. That keeps all leniency (conversion, broadcasting, error
// messages) in Python, and a hot call at the cost of a few pointer comparisons.
#ifndef PULLBACK_CPP_BINDINGS_METHOD_H_
#define PULLBACK_CPP_BINDINGS_METHOD_H_

#include "bindings/numpy_api.h"

namespace pullback {

// Null without an exception set: not a call for the fast path.
using FastPath = PyObject* (*)(const void* context, PyObject* const* args, size_t nargs,
                               PyObject* kwnames);

// `context` must outlive the process; `fallback` is called with what the fast path leaves.
// __name__, __qualname__, __module__, __doc__ and the like are set on the result from Python; it
// pickles as module and qualified name, like a function.
PyObject* NewMethod(FastPath fast_path, const void* context, PyObject* fallback);

bool RegisterMethodType(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_METHOD_H_

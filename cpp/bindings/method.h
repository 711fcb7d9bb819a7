// Callables that enter a kernel straight from the vectorcall protocol.
//
// A Method tries its fast path; whatever the fast path does not recognise goes, arguments
// untouched, to a Python callable. That keeps all leniency (conversion, broadcasting, error
// messages) in Python, and a hot call at the cost of a few pointer comparisons.
#ifndef PULLBACK_CPP_BINDINGS_METHOD_H_
#define PULLBACK_CPP_BINDINGS_METHOD_H_

#include <memory>

#include "bindings/numpy_api.h"

namespace pullback {

// What a method knows of itself. Its Method or ufunc owns it, and it dies with that. Nothing in it
// changes, so calls read it without a lock: kernels are in it for every target.
struct MethodEntry {
  MethodEntry() = default;
  MethodEntry(const MethodEntry&) = delete;
  MethodEntry& operator=(const MethodEntry&) = delete;
  virtual ~MethodEntry() = default;
};

// Null without an exception set: not a call for the fast path.
using FastPath = PyObject* (*)(const MethodEntry& entry, PyObject* const* args, size_t nargs,
                               PyObject* kwnames);

// `fallback` is called with what the fast path leaves. New reference; null with an exception set.
// __name__, __qualname__, __module__, __doc__ and the like are set on the result from Python; it
// pickles as module and qualified name, like a function.
PyObject* NewMethod(FastPath fast_path, std::unique_ptr<const MethodEntry> entry,
                    PyObject* fallback);

// A capsule that owns the entry, for what is called otherwise.
Ref OwnerOf(std::unique_ptr<const MethodEntry> entry);

bool RegisterMethodType(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_METHOD_H_

// Chains of primitives as Python objects.
#ifndef PULLBACK_CPP_BINDINGS_CHAIN_H_
#define PULLBACK_CPP_BINDINGS_CHAIN_H_

#include "bindings/numpy_api.h"

namespace pullback {

// Adds ChainWalk(steps, x, other), which runs steps one after the other. pullback.chain_steps
// describes the steps as tuples, where the objects x and other are placeholders for the running
// value and for its tangent or cotangent. It calls the primitives' own methods, and runs
// elementwise steps of plain arrays together. Its methods need arguments that fit.
bool RegisterChains(PyObject* module);

// A method of a chain, by its name. It calls `fallback` if a tangent or a cotangent may not fit.
// New reference; null with an exception set.
PyObject* NewChainMethod(PyObject* walk, const char* method, PyObject* fallback);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_CHAIN_H_

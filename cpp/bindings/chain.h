// Chains of primitives as Python objects.
#ifndef PULLBACK_CPP_BINDINGS_CHAIN_H_
#define PULLBACK_CPP_BINDINGS_CHAIN_H_

#include "bindings/numpy_api.h"

namespace pullback {

// Adds ChainWalk(steps, x, other): steps one after the other, as pullback.chain_steps describes
// them in tuples, where two objects stand for the running value and for its tangent or the value's
// cotangent. It calls the primitives' own methods, and lets elementwise steps of plain arrays run
// together. Its methods take what fits.
bool RegisterChains(PyObject* module);

// A method of a chain, by its name, which calls `fallback` where a tangent or a cotangent may not
// fit. New reference; null with an exception set.
PyObject* NewChainMethod(PyObject* walk, const char* method, PyObject* fallback);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_CHAIN_H_

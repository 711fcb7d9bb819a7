// Runs of elementwise ops as Python objects.
#ifndef PULLBACK_CPP_BINDINGS_CHAIN_H_
#define PULLBACK_CPP_BINDINGS_CHAIN_H_

#include "bindings/numpy_api.h"

namespace pullback {

// ElementwiseRun(links), each link an op's name, the places of the running value among its
// operands, and the other operand or None. Its methods return NotImplemented for what is not
// plain.
bool RegisterRunType(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_CHAIN_H_

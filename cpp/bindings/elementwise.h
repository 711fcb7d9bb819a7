#ifndef PULLBACK_CPP_BINDINGS_ELEMENTWISE_H_
#define PULLBACK_CPP_BINDINGS_ELEMENTWISE_H_

#include "bindings/numpy_api.h"

namespace pullback {

// A ufunc for one method of one op ("tanh", "vjp") with float32 and float64 loops and the dtype
// rule as its promoter. Operands other than arrays and Python numbers first go through
// `door(operands, out, where)`, which returns the operands; None for no door. A call without the
// last operand gets `last`, unless that is None. New reference; null with an exception set.
PyObject* NewUfunc(const char* op, const char* method, const char* name, const char* doc,
                   PyObject* door, PyObject* last);

// A method of an op that calls `fallback` for arguments that no kernel takes. New reference; null
// with an exception set.
PyObject* NewElementwiseMethod(const char* op, const char* method, PyObject* fallback);

// The op whose value a unary ufunc of ours computes, or that has this name; null for anything else.
const OpKernels* UnaryOpOf(PyObject* object);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_ELEMENTWISE_H_

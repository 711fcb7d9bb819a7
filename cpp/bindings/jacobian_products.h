// Products of Jacobians in C++, where both are small and plain.
#ifndef PULLBACK_CPP_BINDINGS_JACOBIAN_PRODUCTS_H_
#define PULLBACK_CPP_BINDINGS_JACOBIAN_PRODUCTS_H_

#include "bindings/numpy_api.h"

namespace pullback {

// left @ right as pullback.jacobians.algebra has it, to the bit. New reference; null with an
// exception set. All of them are Python's until it has told its rules.
Ref JacobianProduct(PyObject* left, PyObject* right);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_JACOBIAN_PRODUCTS_H_

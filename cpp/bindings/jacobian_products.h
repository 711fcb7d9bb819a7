// Products of Jacobians in C++, where both are small and plain.
#ifndef PULLBACK_CPP_BINDINGS_JACOBIAN_PRODUCTS_H_
#define PULLBACK_CPP_BINDINGS_JACOBIAN_PRODUCTS_H_

#include "bindings/numpy_api.h"

namespace pullback {

// left @ right with the same bits as pullback.jacobians.algebra. New reference; null with an
// exception set. Until Python has passed its rules, Python computes all products.
Ref JacobianProduct(PyObject* left, PyObject* right);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_JACOBIAN_PRODUCTS_H_

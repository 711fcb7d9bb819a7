// Products of Jacobians in C++, where both are small and plain.
#ifndef PULLBACK_CPP_BINDINGS_JACOBIAN_PRODUCTS_H_
#define PULLBACK_CPP_BINDINGS_JACOBIAN_PRODUCTS_H_

#include "bindings/numpy_api.h"

namespace pullback {

// left @ right as pullback.jacobians.algebra has it, to the bit. New reference; null with an
// exception set.
Ref JacobianProduct(PyObject* left, PyObject* right);

// Adds jacobian_rules(Diagonal, Dense, Product, rules), by which Python says what there is: the
// rules that it has found for pairs of types, None for a pair that stays two factors. Until then
// all products are Python's.
bool RegisterJacobianRules(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_JACOBIAN_PRODUCTS_H_

// The Jacobians of primitives, made of results of kernels: objects of the classes in
// pullback.jacobians, whose slots are set here, like `_of` and `_between` do in Python.
#ifndef PULLBACK_CPP_BINDINGS_JACOBIANS_H_
#define PULLBACK_CPP_BINDINGS_JACOBIANS_H_

#include "bindings/numpy_api.h"

namespace pullback {

// The shape of an operand or of a result.
struct Extents {
  Extents(int axes, const npy_intp* extents) : ndim(axes), extent(extents) {}
  explicit Extents(PyArrayObject* array) : ndim(PyArray_NDIM(array)), extent(PyArray_DIMS(array)) {}

  bool operator==(const Extents& other) const;

  int ndim;
  const npy_intp* extent;
};

// All functions below take over their arguments. They return null with an exception set, or if an
// argument is null.
//
// The Jacobian of a map of elements, from its derivatives, with respect to an operand that was
// broadcast to their shape.
Ref JacobianOfElements(Ref slopes, Extents operand);

// Of a reduction along all axes; `row` (1, n) holds the derivatives.
Ref JacobianOfValue(Ref row, Extents operand, Extents result);

// Of a map of each row (outputs) of the operand to one number, whose derivatives are the rows.
Ref JacobianOfItems(Ref rows, Extents operand, Extents result);

// Of a reduction along axes, given in bits, from its derivatives.
Ref JacobianOfSums(Ref slopes, uint64_t axes, bool keepdims);

// Of a map of rows, which calls methods of the primitive.
Ref JacobianOfRows(PyObject* primitive, Ref x, Ref axis, Ref options);

// Of T -> L T R^T; a null factor stands for the identity of that size.
struct KroneckerFactor {
  Ref array;
  size_t identity = 0;
};
Ref JacobianOfProduct(KroneckerFactor left, KroneckerFactor right, Extents operand, Extents result);

// Of an operand that is broadcast to the result.
Ref JacobianOfBroadcast(Extents operand, Extents result, DType dtype);

// The product of the derivatives of an activation, on the left, and a Jacobian.
Ref JacobianBehind(PyObject* slopes, Ref jacobian);

// Adds jacobian_classes(classes, rules), by which Python passes the classes, and the pairs of them
// that have a rule for their product. Before that, and with other classes, all functions above
// return null without an exception set.
bool RegisterJacobians(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_JACOBIANS_H_

// Matrix products as fast callables.
#ifndef PULLBACK_CPP_BINDINGS_MATMUL_H_
#define PULLBACK_CPP_BINDINGS_MATMUL_H_

#include "bindings/numpy_api.h"

namespace pullback {

// The callable `name`, or null with a KeyError set. All take exact, aligned, native arrays of one
// dtype, float32 or float64, whose shapes fit; any other call goes to `fallback`.
//
//   "product"    (A, B, out=None)               -> A @ B
//   "cotangents" (A, B, G, out=None or a pair)  -> (dA, dB)
//   "product_into"    (A, B, out)          out may be None
//   "cotangents_into" (A, B, G, dA, dB)    None computes and returns None
//   "tangent_into"    (A, B, tA, tB, out)  out may be None
//
// To the latter three, given outputs must not overlap what is read, nor each other.
//
//   "linear"            (X, W, b, activation, out)                  -> out
//   "linear_cotangents" (X, W, b, G, activation, dX, dW, db)        -> None
//
// X (N, k), W (k, n), b (n,) or None, `activation` the name of a unary elementwise operation or
// None; rows of G and out, and all of b and db, are contiguous. Cotangents that are None are not
// computed.
//
//   "bilinear_form"     (u, X, v, Xv, uX)  -> u^T X v, a float
//
// X (m, n) with contiguous rows; the vectors are contiguous and float64, the last two overwritten.
//
//   "new_array"         (like, shape)      -> an uninitialised array of like's dtype, for results
PyObject* NewMatmulMethod(const char* name, PyObject* fallback);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_MATMUL_H_

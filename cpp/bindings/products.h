// Matrix products, layers and forms: as fast callables, and as the engine that Python calls.
#ifndef PULLBACK_CPP_BINDINGS_PRODUCTS_H_
#define PULLBACK_CPP_BINDINGS_PRODUCTS_H_

#include "bindings/numpy_api.h"

namespace pullback {

// A method of a product: "value", "vjp", "jvp" or "value_and_grad". `fallback` takes operands, then
// a cotangent or tangents, and by name activation=, wrt= and out=; null with a KeyError set if
// there is no such method.
PyObject* NewProductMethod(const char* product, const char* method, PyObject* fallback);

// The products there are, and their signatures: a dictionary.
PyObject* ProductOps();

// Adds product_results(product, method, arrays, activation, wrt, outs), which computes the same
// from arguments that Python has checked and converted. It returns a tuple of the results, each in
// its output unless that is None.
bool RegisterProductEngine(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_PRODUCTS_H_

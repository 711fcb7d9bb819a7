#ifndef PULLBACK_CPP_BINDINGS_REDUCTIONS_H_
#define PULLBACK_CPP_BINDINGS_REDUCTIONS_H_

#include "bindings/numpy_api.h"

namespace pullback {

// `method` of a reduction or a map of rows with the signature of `fallback`, which it calls for
// arguments that are not plain. `parameter` is the default, and valid(p) tells whether a given one
// is valid. New reference; null with an exception set.
PyObject* NewReductionMethod(const char* reduction, const char* method, const char* called,
                             double parameter, PyObject* valid, PyObject* fallback);

// Adds reduce_slices, reduce_tangents and transform_slices, the engine behind the Python layer.
bool RegisterReductionEngine(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_REDUCTIONS_H_

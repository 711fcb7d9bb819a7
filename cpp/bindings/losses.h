#ifndef PULLBACK_CPP_BINDINGS_LOSSES_H_
#define PULLBACK_CPP_BINDINGS_LOSSES_H_

#include "bindings/numpy_api.h"

namespace pullback {

// `value`, `value_and_grad`, `grad`, `hvp`, `curvature`, `partial`, `pointwise` or `pointwise.` and
// a method of its own, with the signature of `fallback`, which is called for all but plain arrays
// that the kernel can read where they lie or in a small copy, and for bad rows. `sums`: for
// `partial`, the class of its results and the loss's title. New reference; null with an exception
// set.
PyObject* NewLossMethod(const char* loss, double parameter, const char* method, PyObject* sums,
                        PyObject* fallback);

// Adds loss_sums, loss_pointwise, loss_line and softmax_hessians, the engine behind the losses'
// Python layer.
bool RegisterLossEngine(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_LOSSES_H_

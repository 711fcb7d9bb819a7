#ifndef PULLBACK_CPP_BINDINGS_LOSSES_H_
#define PULLBACK_CPP_BINDINGS_LOSSES_H_

#include "bindings/numpy_api.h"

namespace pullback {

// `value`, `value_and_grad`, `grad`, `hvp`, `curvature`, `partial`, `pointwise` or `pointwise.` and
// one of its methods, with the signature of `fallback`. The kernel takes plain arrays that it can
// read in place or in a small copy; `fallback` is called for all others, and for bad rows. `sums`:
// for `partial`, the class of its results and the loss's title. New reference; null with an
// exception set.
PyObject* NewLossMethod(const char* loss, double parameter, const char* method, PyObject* sums,
                        PyObject* fallback);

// Adds loss_sums, loss_pointwise, loss_line and softmax_hessians, the engine behind the losses'
// Python layer.
bool RegisterLossEngine(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_LOSSES_H_

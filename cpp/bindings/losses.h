#ifndef PULLBACK_CPP_BINDINGS_LOSSES_H_
#define PULLBACK_CPP_BINDINGS_LOSSES_H_

#include "bindings/numpy_api.h"

namespace pullback {

// `value` or `value_and_grad` of a loss, f(X, y, w, b), which calls `fallback` for all but plain
// arrays that the kernel can read where they lie. New reference; null with an exception set.
PyObject* NewLossMethod(const char* loss, const char* method, PyObject* fallback);

// After a change of target.
void RefreshLossKernels();

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_LOSSES_H_

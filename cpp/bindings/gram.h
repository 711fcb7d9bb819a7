#ifndef PULLBACK_CPP_BINDINGS_GRAM_H_
#define PULLBACK_CPP_BINDINGS_GRAM_H_

#include "bindings/numpy_api.h"

namespace pullback {

// `gram` with the signature of `fallback`. The kernel takes plain arrays and sparse matrices that
// it can read in place or in a small copy; `fallback` is called for all others. New reference; null
// with an exception set.
PyObject* NewGramMethod(PyObject* fallback);

// Adds gram_sums, the engine behind pullback.gram.
bool RegisterGramEngine(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_GRAM_H_

#ifndef PULLBACK_CPP_BINDINGS_GRAM_H_
#define PULLBACK_CPP_BINDINGS_GRAM_H_

#include "bindings/numpy_api.h"

namespace pullback {

// Adds gram_sums, the engine behind pullback.gram.
bool RegisterGramEngine(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_GRAM_H_

// The common part of all calls of kernels.
#ifndef PULLBACK_CPP_BINDINGS_CALL_H_
#define PULLBACK_CPP_BINDINGS_CALL_H_

#include "bindings/interrupt.h"
#include "kernels/outcome.h"

namespace pullback {

// Runs kernel(poll). If the work is long enough, the GIL is released and signal handlers run in
// between; otherwise the poll is null. Returns false, with an exception set, unless the work is
// done: a kernel is interrupted only by a handler that raises.
template <class Kernel>
bool RunKernel(bool long_enough, const Kernel& kernel) {
  Outcome outcome;
  if (long_enough) {
    const ScopedGilRelease unlocked(true);
    Poll poll = SignalPoll();
    outcome = kernel(&poll);
  } else {
    outcome = kernel(nullptr);
  }
  if (outcome == Outcome::kOutOfMemory) PyErr_NoMemory();
  return outcome == Outcome::kDone;
}

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_CALL_H_

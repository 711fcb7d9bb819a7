// What every call of a kernel has in common, whatever it computes.
#ifndef PULLBACK_CPP_BINDINGS_CALL_H_
#define PULLBACK_CPP_BINDINGS_CALL_H_

#include "bindings/interrupt.h"
#include "kernels/outcome.h"

namespace pullback {

// Runs kernel(poll). Where the work is long enough to be worth it the GIL is given up, and signal
// handlers run meanwhile; else the poll is null. False with an exception set unless it is done:
// what interrupts a kernel is a handler that raised.
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

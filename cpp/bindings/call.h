// What every call of a kernel has in common, whatever it computes.
#ifndef PULLBACK_CPP_BINDINGS_CALL_H_
#define PULLBACK_CPP_BINDINGS_CALL_H_

#include "bindings/interrupt.h"
#include "kernels/outcome.h"

namespace pullback {

// Runs kernel(poll), without the GIL where the work is long enough to be worth it. False with an
// exception set unless it is done: what interrupts a kernel is a signal handler that raised.
template <class Kernel>
bool RunKernel(bool long_enough, const Kernel& kernel) {
  Outcome outcome;
  {
    const ScopedGilRelease unlocked(long_enough);
    Poll poll = SignalPoll();
    outcome = kernel(&poll);
  }
  if (outcome == Outcome::kOutOfMemory) PyErr_NoMemory();
  return outcome == Outcome::kDone;
}

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_CALL_H_

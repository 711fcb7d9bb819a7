// Ctrl-C for kernels that run without the GIL.
#ifndef PULLBACK_CPP_BINDINGS_INTERRUPT_H_
#define PULLBACK_CPP_BINDINGS_INTERRUPT_H_

#include "bindings/finalizing.h"
#include "runtime/poll.h"

namespace pullback {

// The GIL for its scope, in a thread that may lack it.
class ScopedGil {
 public:
  ScopedGil() : state_(AwaitGil(PyGILState_Ensure)) {}
  ~ScopedGil() { PyGILState_Release(state_); }
  ScopedGil(const ScopedGil&) = delete;
  ScopedGil& operator=(const ScopedGil&) = delete;

 private:
  PyGILState_STATE state_;
};

// Runs pending signal handlers; a handler that raised (KeyboardInterrupt) leaves its exception set.
Poll SignalPoll();

// Gives the GIL up for its scope, but only where the work is long enough to be worth it. Declare it
// before what the work holds: that is to be let go before the GIL is asked for.
class ScopedGilRelease {
 public:
  explicit ScopedGilRelease(bool worth_it = true)
      : state_(worth_it ? PyEval_SaveThread() : nullptr) {}
  ~ScopedGilRelease() {
    if (state_ != nullptr) AwaitGil([this] { PyEval_RestoreThread(state_); });
  }
  ScopedGilRelease(const ScopedGilRelease&) = delete;
  ScopedGilRelease& operator=(const ScopedGilRelease&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_INTERRUPT_H_

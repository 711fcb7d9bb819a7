// Ctrl-C for kernels that run without the GIL.
#ifndef PULLBACK_CPP_BINDINGS_INTERRUPT_H_
#define PULLBACK_CPP_BINDINGS_INTERRUPT_H_

#include "bindings/numpy_api.h"
#include "runtime/poll.h"

namespace pullback {

// Runs pending signal handlers; a handler that raised (KeyboardInterrupt) leaves its exception set.
inline Poll SignalPoll() {
  return {[](void*) {
  // Asking a dying interpreter for the GIL would end this thread amid a job.
#if PY_VERSION_HEX >= 0x030D0000
            if (Py_IsFinalizing()) return false;
#else
            if (_Py_IsFinalizing()) return false;
#endif
            const PyGILState_STATE state = PyGILState_Ensure();
            const bool raised = PyErr_CheckSignals() != 0;
            PyGILState_Release(state);
            return raised;
          },
          nullptr};
}

// Gives the GIL up for its scope, but only where the work is long enough to be worth it.
class ScopedGilRelease {
 public:
  explicit ScopedGilRelease(bool worth_it) : state_(worth_it ? PyEval_SaveThread() : nullptr) {}
  // When the interpreter is gone, taking the GIL back ends the thread by unwinding its stack.
  ~ScopedGilRelease() noexcept(false) {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  ScopedGilRelease(const ScopedGilRelease&) = delete;
  ScopedGilRelease& operator=(const ScopedGilRelease&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_INTERRUPT_H_

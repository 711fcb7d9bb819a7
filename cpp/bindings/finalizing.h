// Threads that outlive the interpreter: daemon threads at exit.
//
// While it finalizes, Python ends every other thread that asks for the GIL. Up to 3.13 it unwinds
// the thread's stack, and so would drop the references that our frames hold, without the GIL.
// From 3.14 on the thread sleeps until the process ends; within our frames it does so with any
// Python.
#ifndef PULLBACK_CPP_BINDINGS_FINALIZING_H_
#define PULLBACK_CPP_BINDINGS_FINALIZING_H_

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <chrono>
#include <thread>
#include <type_traits>

namespace pullback {

inline bool IsFinalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Valid at any time, unlike PyGILState_Check(), which takes a deleted interpreter's GIL for held.
inline bool HoldsGil() {
#if PY_VERSION_HEX >= 0x030D0000
  PyThreadState* const current = PyThreadState_GetUnchecked();
#else
  PyThreadState* const current = _PyThreadState_UncheckedGet();
#endif
  return current != nullptr && current == PyGILState_GetThisThreadState();
}

[[noreturn]] inline void SleepForEver() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Calls what may have to wait for the GIL. It must not throw: whoever passes the guard is Python's
// unwinding. A destructor sees that in any C++ library; libc++ does not show it to catch (...).
template <class Function>
auto AwaitGil(const Function& function) {
  struct Guard {
    ~Guard() {
      if (unwound) SleepForEver();
    }
    bool unwound = true;
  } guard;
  if constexpr (std::is_void_v<decltype(function())>) {
    function();
    guard.unwound = false;
  } else {
    auto result = function();
    guard.unwound = false;
    return result;
  }
}

// Drops a reference, unless this thread is being unwound, which ends here.
inline void DropReference(PyObject* object) {
  if (IsFinalizing() && !HoldsGil()) SleepForEver();
  AwaitGil([=] { Py_DECREF(object); });  // it may run any code
}

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_FINALIZING_H_

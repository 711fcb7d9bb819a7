// Kernels run under the default floating-point environment (round to nearest, subnormals kept,
// exceptions masked), whatever the caller has set; the caller gets its own back, flags included.
#ifndef PULLBACK_CPP_RUNTIME_FP_ENV_H_
#define PULLBACK_CPP_RUNTIME_FP_ENV_H_

#if defined(__x86_64__) || defined(_M_X64)
#define PULLBACK_FP_ENV_MXCSR 1
#include <immintrin.h>
#else
#define PULLBACK_FP_ENV_MXCSR 0
#include <cfenv>
#include <cstdint>
#endif

namespace pullback {

// The guarded arithmetic must sit behind a call that is not inlined (a dispatched kernel is one):
// compilers move arithmetic across writes of the control register.
//
// Leave() ... Enter() lets foreign code (an interrupt check) run in the caller's environment, and
// keeps what it has set there.
class DefaultFpEnv {
 public:
#if PULLBACK_FP_ENV_MXCSR
  // Whether the thread has it, whatever flags are up; false where that costs more than to set it.
  static bool IsSet() { return (_mm_getcsr() & ~kStatusFlags) == kDefault; }
  void Enter() {
    saved_ = _mm_getcsr();
    if ((saved_ & ~kStatusFlags) != kDefault) _mm_setcsr(kDefault);
  }
  // Always written: reading first whether it changed costs 3 ns more than it saves.
  void Leave() { _mm_setcsr(saved_); }

 private:
  static constexpr unsigned kDefault = 0x1F80;
  static constexpr unsigned kStatusFlags = 0x3F;
  unsigned saved_;
#else
  static bool IsSet() {
#if defined(__aarch64__)
    uint64_t control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control == 0;
#else
    return false;
#endif
  }
  void Enter() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  void Leave() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif
};

class ScopedDefaultFpEnv {
 public:
  ScopedDefaultFpEnv() { env_.Enter(); }
  ~ScopedDefaultFpEnv() { env_.Leave(); }
  ScopedDefaultFpEnv(const ScopedDefaultFpEnv&) = delete;
  ScopedDefaultFpEnv& operator=(const ScopedDefaultFpEnv&) = delete;

 private:
  DefaultFpEnv env_;
};

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_FP_ENV_H_

#include "runtime/fp_env.h"

#include <cfenv>
#include <cstdint>
#include <limits>

#include "check.h"

namespace pullback {
namespace {

// volatile: the compiler must neither fold nor move this arithmetic.
bool ArithmeticIsDefault() {
  volatile double one = 1.0, small = 1e-30;
  volatile double least = std::numeric_limits<double>::min(), half = 0.5;
  return one + small == 1.0 && one - small == 1.0 && least * half > 0.0;
}

void RaiseInvalid() {
  volatile double zero = 0.0;
  volatile double nan = zero / zero;
  (void)nan;
}

void TestRounding() {
  for (const int mode : {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    std::fesetround(mode);
    CHECK(ArithmeticIsDefault() == (mode == FE_TONEAREST));
    {
      const ScopedDefaultFpEnv env;
      CHECK(ArithmeticIsDefault());
    }
    CHECK(std::fegetround() == mode);
    DefaultFpEnv env;
    for (int i = 0; i < 2; ++i) {
      env.Enter();
      CHECK(ArithmeticIsDefault());
      env.Leave();
      CHECK(std::fegetround() == mode);
    }
  }
  std::fesetround(FE_TONEAREST);
}

void TestFlags() {
  for (const int before : {0, FE_DIVBYZERO, FE_DIVBYZERO | FE_INEXACT, FE_ALL_EXCEPT}) {
    for (const int mode : {FE_TONEAREST, FE_UPWARD}) {
      std::fesetround(mode);
      std::feclearexcept(FE_ALL_EXCEPT);
      std::feraiseexcept(before);
      const int raised = std::fetestexcept(FE_ALL_EXCEPT);
      {
        const ScopedDefaultFpEnv env;
        RaiseInvalid();
      }
      CHECK(std::fetestexcept(FE_ALL_EXCEPT) == raised);
    }
  }
  std::fesetround(FE_TONEAREST);
  std::feclearexcept(FE_ALL_EXCEPT);
}

#if PULLBACK_FP_ENV_MXCSR
void TestFlushToZero() {
  constexpr unsigned kFlushAndZero = 0x8040;
  const unsigned original = _mm_getcsr();
  for (const unsigned flags : {0u, 0x3Fu}) {
    const unsigned mine = 0x1F80 | kFlushAndZero | flags;
    _mm_setcsr(mine);
    CHECK(!ArithmeticIsDefault());
    _mm_setcsr(mine);
    {
      const ScopedDefaultFpEnv env;
      CHECK(ArithmeticIsDefault());
      RaiseInvalid();
    }
    CHECK(_mm_getcsr() == mine);
  }
  // Unmasked exceptions would kill a process inside a kernel.
  _mm_setcsr(0);
  {
    const ScopedDefaultFpEnv env;
    RaiseInvalid();
  }
  CHECK(_mm_getcsr() == 0);
  _mm_setcsr(original);
}
#elif defined(__aarch64__) && defined(__GNUC__)
uint64_t ControlRegister() {
  uint64_t value;
  asm volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}

void SetControlRegister(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }

void TestFlushToZero() {
  constexpr uint64_t kFlush = uint64_t{1} << 24;
  const uint64_t original = ControlRegister();
  const uint64_t mine = original | kFlush;
  SetControlRegister(mine);
  CHECK(!ArithmeticIsDefault());
  {
    const ScopedDefaultFpEnv env;
    CHECK(ArithmeticIsDefault());
  }
  CHECK(ControlRegister() == mine);
  SetControlRegister(original);
}
#else
void TestFlushToZero() {}
#endif

}  // namespace
}  // namespace pullback

int main() {
  pullback::TestRounding();
  pullback::TestFlags();
  pullback::TestFlushToZero();
  return check::Report("fp_env_test");
}

// Hints that memory will be read or written soon.
#ifndef PULLBACK_CPP_RUNTIME_PREFETCH_H_
#define PULLBACK_CPP_RUNTIME_PREFETCH_H_

#include <hwy/base.h>
#include <hwy/cache_control.h>

namespace pullback {

// Past L1, which is too small for what is fetched far ahead. Any address will do. Always inlined:
// g++ takes a function that does nothing but prefetch for one without effect, and drops its calls.
HWY_INLINE void PrefetchIntoL2(const void* p) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  __builtin_prefetch(p, 0, 2);
#else
  hwy::Prefetch(static_cast<const char*>(p));
#endif
}

// The same for memory that will be written soon.
HWY_INLINE void PrefetchToWrite(const void* p) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  __builtin_prefetch(p, 1, 2);
#else
  hwy::Prefetch(static_cast<const char*>(p));
#endif
}

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_PREFETCH_H_

// The whole test framework: CHECK counts failures, Report() turns them into an exit code.
#ifndef PULLBACK_TESTS_CPP_CHECK_H_
#define PULLBACK_TESTS_CPP_CHECK_H_

#include <atomic>
#include <cstdio>

namespace check {

inline std::atomic<int> failures{0};

inline void Fail(const char* file, int line, const char* what) {
  if (failures++ < 20) std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
}

inline int Report(const char* name) {
  std::printf("%s: %s\n", name, failures == 0 ? "ok" : "FAILED");
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition) \
  ((condition) ? static_cast<void>(0) : check::Fail(__FILE__, __LINE__, #condition))

#endif  // PULLBACK_TESTS_CPP_CHECK_H_

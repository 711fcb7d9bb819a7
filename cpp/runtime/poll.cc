#include "runtime/poll.h"

#include <time.h>

#include <chrono>

namespace pullback {

namespace {

// A handler that forks on a timer would start children faster than a call gets on beside them, and
// the call would never end, if the clock alone decided.
constexpr int64_t kCpuNs = kPollNs / 2;

int64_t ThreadCpuNs() {
#ifdef CLOCK_THREAD_CPUTIME_ID
  timespec time;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0) {
    return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  }
#endif
  return NowNs();
}

}  // namespace

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

bool Interrupted(Poll* poll, bool waits) {
  if (poll == nullptr) return false;
  const int64_t now = NowNs();
  if (poll->last_ns == 0) poll->last_ns = now;
  if (now - poll->last_ns < kPollNs) return false;
  if (!waits && ThreadCpuNs() - poll->last_cpu_ns < kCpuNs) return false;
  DefaultFpEnv* const env = poll->kernel_env;
  if (env != nullptr) env->Leave();
  const bool stop = poll->fn(poll->ctx);
  if (env != nullptr) env->Enter();
  poll->last_ns = NowNs();
  poll->last_cpu_ns = ThreadCpuNs();
  return stop;
}

}  // namespace pullback

#include "runtime/poll.h"

#include <algorithm>
#include <chrono>

namespace pullback {

namespace {

// What runs in a poll gets a fraction of the call's time. A handler that forks on a timer would
// else start children faster than the call gets on beside them, and it would never end.
constexpr int64_t kPollShare = 8;

}  // namespace

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

bool Interrupted(Poll* poll) {
  if (poll == nullptr) return false;
  const int64_t now = NowNs();
  if (poll->last_ns == 0) poll->last_ns = now;
  if (now - poll->last_ns < std::max(kPollNs, kPollShare * poll->took_ns)) return false;
  DefaultFpEnv* const env = poll->kernel_env;
  if (env != nullptr) env->Leave();
  const bool stop = poll->fn(poll->ctx);
  if (env != nullptr) env->Enter();
  poll->last_ns = NowNs();
  poll->took_ns = poll->last_ns - now;
  return stop;
}

}  // namespace pullback

#include "runtime/poll.h"

#include <chrono>

namespace pullback {

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

bool Interrupted(Poll* poll) {
  if (poll == nullptr) return false;
  const int64_t now = NowNs();
  if (poll->last_ns == 0) poll->last_ns = now;
  if (now - poll->last_ns < kPollNs) return false;
  DefaultFpEnv* const env = poll->kernel_env;
  if (env != nullptr) env->Leave();
  const bool stop = poll->fn(poll->ctx);
  if (env != nullptr) env->Enter();
  poll->last_ns = NowNs();
  return stop;
}

}  // namespace pullback

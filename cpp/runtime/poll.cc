#include "runtime/poll.h"

#include <algorithm>
#include <chrono>

namespace pullback {
namespace {

// Before that time this thread runs no handlers: a handler that took long is followed by 32 times
// as long of computing, or by a second. So a timer whose handler takes longer than the timer's
// interval (a fork on a busy machine) does not keep a call from ending.
thread_local int64_t t_computes_until = 0;

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
  if (now - poll->last_ns < kPollNs || now < t_computes_until) return false;
  DefaultFpEnv* const env = poll->kernel_env;
  if (env != nullptr) env->Leave();
  const bool stop = poll->fn(poll->ctx);
  if (env != nullptr) env->Enter();
  poll->last_ns = NowNs();
  t_computes_until = poll->last_ns + std::min(32 * (poll->last_ns - now), int64_t{1'000'000'000});
  return stop;
}

}  // namespace pullback

// Foreign code in mid-call: a kernel asks from time to time whether it should stop.
#ifndef PULLBACK_CPP_RUNTIME_POLL_H_
#define PULLBACK_CPP_RUNTIME_POLL_H_

#include <cstdint>

#include "runtime/fp_env.h"

namespace pullback {

inline constexpr int64_t kPollNs = 50'000'000;

// How a long call learns that it should stop (Ctrl-C). `fn` runs on the calling thread only, in the
// caller's floating-point environment, which it may change, and it may fork: both processes go on.
// True means stop. Keep one Poll for a whole operation, so that many short ParallelFor in a row
// answer as fast as a long one.
struct Poll {
  bool (*fn)(void* ctx) = nullptr;
  void* ctx = nullptr;
  int64_t last_ns = 0;  // time of the last check; the first look at the clock only sets it
  DefaultFpEnv* kernel_env = nullptr;  // a KernelFpEnv sets it
};

// Calls poll if 50 ms passed since its last check: true = stop. For kernels' own serial loops.
bool Interrupted(Poll* poll);

int64_t NowNs();

// The default floating-point environment for a kernel and for all that it calls with its poll: what
// is nested in it does nothing, so that polling gives back what the caller of the outermost had.
class KernelFpEnv {
 public:
  explicit KernelFpEnv(Poll* poll)
      : poll_(poll), outermost_(poll == nullptr || poll->kernel_env == nullptr) {
    if (!outermost_) return;
    env_.Enter();
    if (poll_ != nullptr) poll_->kernel_env = &env_;
  }
  ~KernelFpEnv() {
    if (!outermost_) return;
    if (poll_ != nullptr) poll_->kernel_env = nullptr;
    env_.Leave();
  }
  KernelFpEnv(const KernelFpEnv&) = delete;
  KernelFpEnv& operator=(const KernelFpEnv&) = delete;

 private:
  Poll* poll_;
  bool outermost_;
  DefaultFpEnv env_;
};

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_POLL_H_

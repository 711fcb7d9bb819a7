// How a kernel call that allocates and can be interrupted ended.
#ifndef PULLBACK_CPP_KERNELS_OUTCOME_H_
#define PULLBACK_CPP_KERNELS_OUTCOME_H_

#include <cstdint>

namespace pullback {

enum class Outcome : uint8_t { kDone, kInterrupted, kOutOfMemory };

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_OUTCOME_H_

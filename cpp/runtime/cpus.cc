#include "runtime/cpus.h"

#include <algorithm>
#include <cmath>
#include <thread>

#ifdef __linux__
#include <sched.h>

#include <cerrno>
#endif

namespace pullback {
namespace {

int AffinityCpus() {
#ifdef __linux__
  // The kernel refuses a mask smaller than its own, so grow until it fits.
  for (size_t cpus = 1024; cpus <= (size_t{1} << 20); cpus *= 2) {
    cpu_set_t* set = CPU_ALLOC(cpus);
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(cpus);
    const bool ok = sched_getaffinity(0, bytes, set) == 0;
    const int count = ok ? CPU_COUNT_S(bytes, set) : 0;
    const bool too_small = !ok && errno == EINVAL;
    CPU_FREE(set);
    if (ok && count > 0) return count;
    if (!too_small) break;
  }
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

int AvailableCpus(double quota) {
  const int cpus = AffinityCpus();
  return std::ceil(quota) < cpus ? std::max(1, static_cast<int>(std::ceil(quota))) : cpus;
}

}  // namespace pullback

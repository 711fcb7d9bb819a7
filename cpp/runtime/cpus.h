// How many CPUs this process may use.
#ifndef PULLBACK_CPP_RUNTIME_CPUS_H_
#define PULLBACK_CPP_RUNTIME_CPUS_H_

#include "runtime/cgroup.h"

namespace pullback {

// The smaller of the calling thread's affinity mask and the CPU quota (rounded up); at least 1.
int AvailableCpus(double quota = CgroupCpuQuota());

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_CPUS_H_

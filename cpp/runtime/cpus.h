// How many CPUs this process may use.
#ifndef PULLBACK_CPP_RUNTIME_CPUS_H_
#define PULLBACK_CPP_RUNTIME_CPUS_H_

#include <string>

namespace pullback {

// The smaller of the affinity mask and the cgroup CPU quota (rounded up); at least 1. Read anew at
// every call: it opens a few files.
int AvailableCpus();

// The tightest CPU quota, in CPUs, of the process's cgroup and its ancestors, versions 1 and 2;
// +infinity without one. `root` is put before every path, so that tests can bring their own tree.
double CgroupCpuQuota(const std::string& root = "");

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_CPUS_H_

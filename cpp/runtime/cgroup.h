// The limits that control groups set, versions 1 and 2.
#ifndef PULLBACK_CPP_RUNTIME_CGROUP_H_
#define PULLBACK_CPP_RUNTIME_CGROUP_H_

#include <string>

namespace pullback {

// The tightest limit of the process's cgroup and its ancestors; +infinity without one. Each opens a
// few files. `root` is put before every path, so that tests can bring their own tree.
double CgroupCpuQuota(const std::string& root = "");  // in CPUs
double CgroupMemory(const std::string& root = "");    // in bytes

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_CGROUP_H_

#include "runtime/cgroup.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "check.h"
#include "runtime/kept_memory.h"

namespace pullback {
namespace {

namespace fs = std::filesystem;

class Tree {
 public:
  Tree() : root_(fs::temp_directory_path() / ("pullback_cgroup_test_" + std::to_string(Unique()))) {
    fs::remove_all(root_);
  }
  ~Tree() { fs::remove_all(root_); }

  Tree& Write(const std::string& path, const std::string& text) {
    const fs::path full = root_.string() + path;
    fs::create_directories(full.parent_path());
    std::ofstream(full) << text;
    return *this;
  }
  double Quota() const { return CgroupCpuQuota(root_.string()); }
  double Memory() const { return CgroupMemory(root_.string()); }
  size_t KeptLimit() const { return DefaultKeptLimit(root_.string()); }

 private:
  static size_t Unique() {
    static size_t trees = 0;
    return std::hash<std::thread::id>()(std::this_thread::get_id()) + trees++;
  }
  fs::path root_;
};

const char* const kV2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";

void TestVersion2() {
  Tree tree;
  CHECK(std::isinf(tree.Quota()));  // no files at all
  tree.Write("/proc/self/cgroup", "0::/a/b\n").Write("/proc/self/mountinfo", kV2);
  CHECK(std::isinf(tree.Quota()));
  tree.Write("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  CHECK(std::isinf(tree.Quota()));
  tree.Write("/sys/fs/cgroup/a/cpu.max", "250000 100000\n");
  CHECK(tree.Quota() == 2.5);  // an ancestor's
  tree.Write("/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
  CHECK(tree.Quota() == 0.5);  // the tightest
  tree.Write("/sys/fs/cgroup/a/b/cpu.max", "nonsense\n");
  CHECK(tree.Quota() == 2.5);
}

void TestContainers() {
  // A cgroup namespace shows the process at the root.
  Tree own;
  own.Write("/proc/self/cgroup", "0::/\n").Write("/proc/self/mountinfo", kV2);
  own.Write("/sys/fs/cgroup/cpu.max", "300000 100000\n");
  CHECK(own.Quota() == 3.0);
  // Without one, the path is the host's, which is not there, or a prefix of it is the mount's root.
  Tree host;
  host.Write("/proc/self/cgroup", "0::/machine/x\n").Write("/proc/self/mountinfo", kV2);
  host.Write("/sys/fs/cgroup/cpu.max", "100000 100000\n");
  CHECK(host.Quota() == 1.0);
  Tree below;
  below.Write("/proc/self/cgroup", "4:cpu,cpuacct:/docker/1/in:ner\n0::/\n");
  below.Write("/proc/self/mountinfo",
              "31 23 0:27 /docker/1 /cg\\040roup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n");
  below.Write("/cg roup/cpu/in:ner/cpu.cfs_quota_us", "150000\n");
  below.Write("/cg roup/cpu/in:ner/cpu.cfs_period_us", "100000\n");
  CHECK(below.Quota() == 1.5);
  // A namesake is not below.
  Tree beside;
  beside.Write("/proc/self/cgroup", "4:cpu,cpuacct:/docker/10\n");
  beside.Write("/proc/self/mountinfo", "31 23 0:27 /docker/1 /cpu rw - cgroup cgroup rw,cpu\n");
  beside.Write("/cpu/cpu.cfs_quota_us", "250000\n").Write("/cpu/cpu.cfs_period_us", "100000\n");
  CHECK(beside.Quota() == 2.5);
}

void TestVersion1() {
  Tree tree;
  tree.Write("/proc/self/cgroup", "5:cpuset:/other\n3:cpu,cpuacct:/job\n1:name=systemd:/job\n");
  tree.Write("/proc/self/mountinfo",
             "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
             "32 23 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n");
  const std::string job = "/sys/fs/cgroup/cpu,cpuacct/job";
  tree.Write(job + "/cpu.cfs_quota_us", "-1\n").Write(job + "/cpu.cfs_period_us", "100000\n");
  CHECK(std::isinf(tree.Quota()));
  tree.Write(job + "/cpu.cfs_quota_us", "400000\n");
  CHECK(tree.Quota() == 4.0);
}

void TestMemory() {
  constexpr double kMebi = 1 << 20;
  Tree tree;
  CHECK(std::isinf(tree.Memory()));  // no files at all
  tree.Write("/proc/self/cgroup", "0::/a/b\n").Write("/proc/self/mountinfo", kV2);
  CHECK(std::isinf(tree.Memory()));
  tree.Write("/sys/fs/cgroup/a/b/memory.max", "max\n");
  CHECK(std::isinf(tree.Memory()));
  tree.Write("/sys/fs/cgroup/a/memory.max", "268435456\n");
  CHECK(tree.Memory() == 256 * kMebi);  // an ancestor's
  tree.Write("/sys/fs/cgroup/a/b/memory.max", "67108864\n");
  CHECK(tree.Memory() == 64 * kMebi);  // the tightest
  CHECK(std::isinf(tree.Quota()));     // of another kind

  Tree first;
  first.Write("/proc/self/cgroup", "5:cpu:/other\n4:memory:/job\n0::/\n");
  first.Write("/proc/self/mountinfo",
              "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
              "32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
  const std::string none = "9223372036854771712\n";
  first.Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", none);
  first.Write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", none);
  CHECK(first.Memory() > 1e18);
  first.Write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "134217728\n");
  CHECK(first.Memory() == 128 * kMebi);
  first.Write("/sys/fs/cgroup/cpu/other/memory.limit_in_bytes", "4096\n");
  CHECK(first.Memory() == 128 * kMebi);

  // What a process may keep of its results follows.
  CHECK(first.KeptLimit() == static_cast<size_t>(2 * kMebi));
  CHECK(tree.KeptLimit() == static_cast<size_t>(kMebi));
  CHECK(Tree().KeptLimit() > static_cast<size_t>(2 * kMebi));
  first.Write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1099511627776\n");
  CHECK(first.KeptLimit() == Tree().KeptLimit());
}

void TestThisMachine() {
  CHECK(CgroupCpuQuota() > 0);
  CHECK(CgroupMemory() > 0);
}

}  // namespace
}  // namespace pullback

int main() {
  pullback::TestVersion2();
  pullback::TestContainers();
  pullback::TestVersion1();
  pullback::TestMemory();
  pullback::TestThisMachine();
  return check::Report("cgroup_test");
}

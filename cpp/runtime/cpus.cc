#include "runtime/cpus.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>

#include <cerrno>
#endif

namespace pullback {
namespace {

constexpr double kNoQuota = std::numeric_limits<double>::infinity();

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

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

bool Contains(const std::vector<std::string>& list, const std::string& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

// mountinfo writes blanks, tabs, newlines and backslashes of a path as \ooo.
std::string Unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto octal = [&](size_t k) { return text[k] >= '0' && text[k] <= '7'; };
    if (text[i] == '\\' && i + 3 < text.size() && octal(i + 1) && octal(i + 2) && octal(i + 3)) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                               (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

struct Mount {
  std::string root, point;
  bool v2;
};

// The mounts that hold the cpu controller.
std::vector<Mount> CgroupMounts(const std::string& root) {
  std::vector<Mount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const std::vector<std::string> left = Split(line.substr(0, dash), ' ');
    const std::vector<std::string> right = Split(line.substr(dash + 3), ' ');
    if (left.size() < 5 || right.empty()) continue;
    const bool v2 = right[0] == "cgroup2";
    const bool v1 = right[0] == "cgroup" && Contains(Split(right.back(), ','), "cpu");
    if (v1 || v2) mounts.push_back({Unescape(left[3]), Unescape(left[4]), v2});
  }
  return mounts;
}

double QuotaOf(const std::string& directory, bool v2) {
  double quota = 0, period = 0;
  if (v2) {
    std::ifstream(directory + "/cpu.max") >> quota >> period;  // "max 100000" parses as nothing
  } else {
    std::ifstream(directory + "/cpu.cfs_quota_us") >> quota;  // -1 means none
    std::ifstream(directory + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : kNoQuota;
}

}  // namespace

double CgroupCpuQuota(const std::string& root) {
  double quota = kNoQuota;
  const std::vector<Mount> mounts = CgroupMounts(root);
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    // hierarchy:controllers:path, and the path itself may hold colons.
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && !Contains(Split(controllers, ','), "cpu")) continue;
    for (const Mount& mount : mounts) {
      if (mount.v2 != v2) continue;
      // A container may see only a part of the tree: its mount's root is then a prefix of the path,
      // or unrelated to it, and the mount point itself holds the quota.
      std::string path = line.substr(second + 1);
      if (mount.root != "/") {
        const bool below = path.compare(0, mount.root.size(), mount.root) == 0;
        path = below ? path.substr(mount.root.size()) : "";
      }
      while (!path.empty() && path.back() == '/') path.pop_back();
      for (;;) {
        quota = std::min(quota, QuotaOf(root + mount.point + path, v2));
        const size_t slash = path.rfind('/');
        if (slash == std::string::npos) break;
        path.resize(slash);
      }
    }
  }
  return quota;
}

int AvailableCpus() {
  const int cpus = AffinityCpus();
  const double quota = std::ceil(CgroupCpuQuota());
  return quota < cpus ? std::max(1, static_cast<int>(quota)) : cpus;
}

}  // namespace pullback

// The limits that control groups set, versions 1 and 2.
#include "runtime/cgroup.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <vector>

namespace pullback {
namespace {

constexpr double kNone = std::numeric_limits<double>::infinity();

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

// The mounts that hold the controller.
std::vector<Mount> Mounts(const std::string& root, const std::string& controller) {
  std::vector<Mount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const std::vector<std::string> left = Split(line.substr(0, dash), ' ');
    const std::vector<std::string> right = Split(line.substr(dash + 3), ' ');
    if (left.size() < 5 || right.empty()) continue;
    const bool v2 = right[0] == "cgroup2";
    const bool v1 = right[0] == "cgroup" && Contains(Split(right.back(), ','), controller);
    if (v1 || v2) mounts.push_back({Unescape(left[3]), Unescape(left[4]), v2});
  }
  return mounts;
}

double CpuQuotaOf(const std::string& directory, bool v2) {
  double quota = 0, period = 0;
  if (v2) {
    std::ifstream(directory + "/cpu.max") >> quota >> period;  // "max 100000" parses as nothing
  } else {
    std::ifstream(directory + "/cpu.cfs_quota_us") >> quota;  // -1 means none
    std::ifstream(directory + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : kNone;
}

double MemoryOf(const std::string& directory, bool v2) {
  double bytes = 0;  // "max" parses as nothing; version 1 has a number beyond all memory for it
  std::ifstream(directory + (v2 ? "/memory.max" : "/memory.limit_in_bytes")) >> bytes;
  return bytes > 0 ? bytes : kNone;
}

// The tightest limit of the process's cgroup and its ancestors.
double Tightest(const std::string& root, const std::string& controller,
                double (*limit_of)(const std::string& directory, bool v2)) {
  double limit = kNone;
  const std::vector<Mount> mounts = Mounts(root, controller);
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    // hierarchy:controllers:path, and the path itself may hold colons.
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && !Contains(Split(controllers, ','), controller)) continue;
    for (const Mount& mount : mounts) {
      if (mount.v2 != v2) continue;
      // A container may see only a part of the tree: its mount's root is then a prefix of the path,
      // or unrelated to it, and the mount point itself holds the limit.
      std::string path = line.substr(second + 1);
      if (mount.root != "/") {
        const bool below = (path + '/').compare(0, mount.root.size() + 1, mount.root + '/') == 0;
        path = below ? path.substr(mount.root.size()) : "";
      }
      while (!path.empty() && path.back() == '/') path.pop_back();
      for (;;) {
        limit = std::min(limit, limit_of(root + mount.point + path, v2));
        const size_t slash = path.rfind('/');
        if (slash == std::string::npos) break;
        path.resize(slash);
      }
    }
  }
  return limit;
}

}  // namespace

double CgroupCpuQuota(const std::string& root) { return Tightest(root, "cpu", CpuQuotaOf); }
double CgroupMemory(const std::string& root) { return Tightest(root, "memory", MemoryOf); }

}  // namespace pullback

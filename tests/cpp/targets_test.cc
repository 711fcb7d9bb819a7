#include "runtime/targets.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "check.h"

namespace pullback {
namespace {

void TestChoice() {
  std::string error;
  const std::vector<std::string> names = SupportedTargetNames();
  CHECK(!names.empty());
  CHECK(ActiveTarget() == names.front());
  for (const std::string& name : names) {
    CHECK(SetTarget(name, &error) && error.empty());
    CHECK(ActiveTarget() == name);
    CHECK(SupportedTargetNames() == names);  // asking must not undo the choice
    CHECK(ActiveTarget() == name);
  }
  for (const char* best : {"", "auto"}) {
    CHECK(SetTarget(names.back(), &error));
    CHECK(SetTarget(best, &error) && error.empty());
    CHECK(ActiveTarget() == names.front());
  }
}

void TestErrors() {
  std::string error;
  const std::string before = SupportedTargetNames().back();
  CHECK(SetTarget(before, &error));
  for (const char* bad : {"AVX9", "avx2", " AVX2", "RVV"}) {
    CHECK(!SetTarget(bad, &error));
    CHECK(error.find("'" + std::string(bad) + "'") != std::string::npos);
    for (const std::string& name : SupportedTargetNames()) {
      CHECK(error.find(name) != std::string::npos);
    }
    CHECK(ActiveTarget() == before);
  }
  CHECK(SetTarget("auto", &error) && error.empty());
}

void TestOnlyTheseAreBuilt() {
#if defined(__x86_64__) || defined(__aarch64__)
#if defined(__x86_64__)
  const std::set<std::string> built = {"AVX3", "AVX2", "SSE4", "SSE2", "EMU128", "SCALAR"};
#else
  const std::set<std::string> built = {"NEON", "NEON_WITHOUT_AES"};
#endif
  const std::vector<std::string> names = SupportedTargetNames();
  CHECK(std::all_of(names.begin(), names.end(), [&](const auto& n) { return built.count(n); }));
#endif
}

}  // namespace
}  // namespace pullback

int main() {
  pullback::TestChoice();
  pullback::TestErrors();
  pullback::TestOnlyTheseAreBuilt();
  return check::Report("targets_test");
}

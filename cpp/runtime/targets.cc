#include "runtime/targets.h"

#include <cstdint>

#include "runtime/hwy_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/targets.cc"
#include "hwy/foreach_target.h"  // must precede highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {

const char* NameOfTarget() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
namespace {

HWY_EXPORT(NameOfTarget);

// hwy::SupportedTargets() undoes any earlier choice, so it is asked once, and the choice is always
// written after it.
int64_t Supported() {
  static const int64_t supported = [] {
    int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
    // Highway asks AES of a CPU for NEON, our kernels do not.
    if (targets == 0) targets = HWY_STATIC_TARGET;
    hwy::GetChosenTarget().Update(targets);
    return targets;
  }();
  return supported;
}

// Lower bits are better targets.
int64_t BestOf(int64_t targets) { return targets & -targets; }

}  // namespace

std::vector<std::string> SupportedTargetNames() {
  std::vector<std::string> names;
  for (int64_t rest = Supported(); rest != 0; rest &= rest - 1) {
    names.emplace_back(hwy::TargetName(BestOf(rest)));
  }
  return names;
}

std::string ActiveTarget() {
  Supported();
  return HWY_DYNAMIC_DISPATCH(NameOfTarget)();
}

bool SetTarget(const std::string& name, std::string* error) {
  error->clear();
  const int64_t supported = Supported();
  if (name.empty() || name == "auto") {
    hwy::GetChosenTarget().Update(supported);
    return true;
  }
  for (int64_t rest = supported; rest != 0; rest &= rest - 1) {
    if (name == hwy::TargetName(BestOf(rest))) {
      hwy::GetChosenTarget().Update(rest);
      return true;
    }
  }
  *error = "no target '" + name + "' on this machine; valid names: auto";
  for (const std::string& valid : SupportedTargetNames()) *error += ", " + valid;
  return false;
}

}  // namespace pullback
#endif  // HWY_ONCE

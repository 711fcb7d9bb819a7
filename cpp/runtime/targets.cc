#include "runtime/targets.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "runtime/hwy_config.h"

#include "hwy/targets.h"  // after it

namespace pullback {
namespace {

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

static_assert(std::popcount(static_cast<uint64_t>(HWY_TARGETS)) <= int{kMaxTargets});

// Lower bits are better targets.
int64_t BestOf(int64_t targets) { return targets & -targets; }

// Those from the index-th best on: what is chosen is the best of them.
int64_t SupportedFrom(size_t index) {
  int64_t rest = Supported();
  for (; index > 0; --index) rest &= rest - 1;
  return rest;
}

void Choose(size_t index) {
  hwy::GetChosenTarget().Update(SupportedFrom(index));
  internal::active_target.store(index);
}

}  // namespace

std::atomic<size_t> internal::active_target{0};

void internal::WithEachTarget(void (*visit)(void* ctx, size_t target), void* ctx) {
  const size_t active = active_target.load();
  for (size_t target = 0; SupportedFrom(target) != 0; ++target) {
    hwy::GetChosenTarget().Update(SupportedFrom(target));
    visit(ctx, target);
  }
  Choose(active);
}

std::vector<std::string> SupportedTargetNames() {
  std::vector<std::string> names;
  for (int64_t rest = Supported(); rest != 0; rest &= rest - 1) {
    names.emplace_back(hwy::TargetName(BestOf(rest)));
  }
  return names;
}

std::string ActiveTarget() {
  return hwy::TargetName(BestOf(SupportedFrom(internal::active_target.load())));
}

bool SetTarget(const std::string& name, std::string* error) {
  error->clear();
  const std::vector<std::string> names = SupportedTargetNames();
  const bool best = name.empty() || name == "auto";
  const auto found = best ? names.begin() : std::find(names.begin(), names.end(), name);
  if (found != names.end()) {
    Choose(static_cast<size_t>(found - names.begin()));
    return true;
  }
  *error = "no target '" + name + "' on this machine; valid names: auto";
  for (const std::string& valid : names) *error += ", " + valid;
  return false;
}

}  // namespace pullback

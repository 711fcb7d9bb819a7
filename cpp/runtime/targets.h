// Which ISA the kernels use: the CPU's best by default, or a named one for tests and comparisons.
#ifndef PULLBACK_CPP_RUNTIME_TARGETS_H_
#define PULLBACK_CPP_RUNTIME_TARGETS_H_

#include <string>
#include <vector>

namespace pullback {

// Kernels are exported per target and looked up at each call, so SetTarget takes effect at the next
// one (a pointer kept from before keeps its old target):
//
//   HWY_EXPORT(MyKernel);                              // in the .cc, under #if HWY_ONCE
//   void Run(double* x) { HWY_DYNAMIC_DISPATCH(MyKernel)(x); }
//   auto* kernel = HWY_DYNAMIC_DISPATCH(MyKernel);     // uncalled: the pointer, for one operation
//
// Do not call hwy::SupportedTargets() anywhere else: it silently re-arms every target.

// Compiled in and usable on this CPU, best first; Highway's names ("AVX3", "AVX2", "SSE4", ...).
std::vector<std::string> SupportedTargetNames();

// The one that the next dispatched call uses.
std::string ActiveTarget();

// "" or "auto": the best. False, with the valid names in *error, if `name` cannot be had here.
// Call once at start-up: the first dispatch picks the best target by itself and would race with a
// later choice made on another thread.
bool SetTarget(const std::string& name, std::string* error);

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_TARGETS_H_

// Which ISA the kernels use: the CPU's best by default, or a named one for tests and comparisons.
#ifndef PULLBACK_CPP_RUNTIME_TARGETS_H_
#define PULLBACK_CPP_RUNTIME_TARGETS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <span>
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
//
// What is kept for longer than an operation is kept for every target: see PerTarget.

// Compiled in and usable on this CPU, best first; Highway's names ("AVX3", "AVX2", "SSE4", ...).
std::vector<std::string> SupportedTargetNames();

// The one that the next dispatched call uses.
std::string ActiveTarget();

// "" or "auto": the best. False, with the valid names in *error, if `name` cannot be had here.
// Call once at start-up: the first dispatch picks the best target by itself and would race with a
// later choice made on another thread.
bool SetTarget(const std::string& name, std::string* error);

inline constexpr size_t kMaxTargets = 8;  // room; no machine has more

namespace internal {
extern std::atomic<size_t> active_target;
void WithEachTarget(void (*visit)(void* ctx, size_t target), void* ctx);
}  // namespace internal

// Something for each of SupportedTargetNames(), in their order. It never changes: SetTarget only
// moves an index, so that calls need no lock, whatever other threads are at.
template <class T>
struct PerTarget {
  std::array<T, kMaxTargets> of{};

  const T& Active() const { return of[internal::active_target.load(std::memory_order_relaxed)]; }

  // f of each.
  template <class F>
  auto Map(const F& f) const {
    PerTarget<decltype(f(of[0]))> mapped;
    for (size_t t = 0; t < kMaxTargets; ++t) mapped.of[t] = f(of[t]);
    return mapped;
  }
};

// The same row of each target's table.
template <class Row>
PerTarget<const Row*> RowOf(const PerTarget<std::span<const Row>>& tables, size_t row) {
  return tables.Map([row](const std::span<const Row>& table) -> const Row* {
    return table.empty() ? nullptr : &table[row];
  });
}

// get() with each target chosen in turn. At start-up only: dispatched calls of other threads would
// see the choices.
template <class F>
auto GetPerTarget(const F& get) {
  struct Job {
    const F& get;
    PerTarget<decltype(get())> all;
  } job{get, {}};
  internal::WithEachTarget(
      [](void* ctx, size_t target) {
        auto* const self = static_cast<Job*>(ctx);
        self->all.of[target] = self->get();
      },
      &job);
  return job.all;
}

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_TARGETS_H_

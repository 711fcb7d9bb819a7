// What the thread pool asks of the operating system.
#ifndef PULLBACK_CPP_RUNTIME_PLATFORM_H_
#define PULLBACK_CPP_RUNTIME_PLATFORM_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace pullback {

// Kernels keep blocks on the stack, 40 KiB in one frame at most, and musl gives a thread 128 KiB.
inline constexpr size_t kStackBytes = size_t{2} << 20;

// CPUs that a thread may run on.
class CpuSet {
 public:
  static constexpr int kMost = 1024;

  // Where the calling thread may run; empty where the system does not say, or has more CPUs.
  static CpuSet Own();

  bool Empty() const { return *this == CpuSet(); }
  CpuSet Without(int cpu) const;
  bool operator==(const CpuSet&) const = default;

  // From now on the calling thread runs here only. No effect where the set is empty or the system
  // does not take it.
  void Confine() const;

 private:
  friend class Thread;
  std::array<uint64_t, kMost / 64> words_{};
};

// The CPU that the calling thread runs on, or -1.
int CurrentCpu();

// A thread with a stack of kStackBytes. It receives no signals but its own faults: Python expects
// the others to interrupt its own threads. Copies are the same thread, which has to be joined once.
class Thread {
 public:
  // Throws std::system_error where the system grants no more threads.
  explicit Thread(std::function<void()> body);

  void Join();
  void Confine(const CpuSet& cpus);

 private:
  uintptr_t handle_;
};

// Has a fork call these, where there is such a thing. Returns a value so that it can be called
// while the library is loaded.
int AtFork(void (*before)(), void (*in_parent)(), void (*in_child)());

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_PLATFORM_H_

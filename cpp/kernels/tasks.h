// What drivers of kernels have in common: tasks, and results that are written past the caches.
#ifndef PULLBACK_CPP_KERNELS_TASKS_H_
#define PULLBACK_CPP_KERNELS_TASKS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "kernels/elementwise.h"
#include "kernels/outcome.h"
#include "runtime/poll.h"
#include "runtime/threads.h"

namespace pullback {

// Runs body(task) for each task, in order or on the thread pool. A body returns false where it runs
// out of memory.
template <class Body>
Outcome RunTasks(size_t tasks, bool parallel, Poll* poll, const Body& body) {
  std::atomic<bool> failed = false;
  const auto task = [&](size_t i) {
    if (!body(i)) failed.store(true, std::memory_order_relaxed);
  };
  if (parallel) {
    if (!ParallelFor(tasks, task, poll)) return Outcome::kInterrupted;
  } else {
    for (size_t i = 0; i < tasks; ++i) {
      if (i > 0 && Interrupted(poll)) return Outcome::kInterrupted;
      task(i);
    }
  }
  return failed ? Outcome::kOutOfMemory : Outcome::kDone;
}

// Results that leave the caches behind need not pass through them, unless they overlap an input:
// streamed, add(x, y, out=x) took 1.7 times as long, and sin(x[1:], out=x[:-1]), whose stores evict
// lines that are still to be read, 6 times.
inline constexpr size_t kStreamBytes = size_t{8} << 20;

// Bytes from p to where a kernel can stream.
inline size_t BytesToStream(const void* p) {
  return -reinterpret_cast<uintptr_t>(p) % kStreamAlignment;
}

// Orders streamed stores before whatever the other threads are told next.
void FlushStreams();

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_TASKS_H_

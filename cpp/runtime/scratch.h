// Memory that a call or a task works in.
#ifndef PULLBACK_CPP_RUNTIME_SCRATCH_H_
#define PULLBACK_CPP_RUNTIME_SCRATCH_H_

#include <array>
#include <cstddef>
#include <cstdlib>
#include <memory>

#include "runtime/partition.h"

namespace pullback {

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};

// What the stack does not hold comes fresh with each scratch, or is what the thread has kept from
// the last one: of these, one at a time.
enum class Heap : bool { kFresh, kOfThread };

// Uninitialised parts of one block of memory, each aligned to a cache line, which is as long as the
// longest vector. Up to kOnStack bytes of it lie where the scratch does.
template <size_t kOnStack = 0, Heap kHeap = Heap::kFresh>
class Scratch {
 public:
  static constexpr size_t kAlignment = 64;

  // How much of a scratch n elements take.
  template <typename T = char>
  static constexpr size_t Bytes(size_t n) {
    return RoundUp(n * sizeof(T), kAlignment);
  }

  // `bytes` is the sum over all parts.
  explicit Scratch(size_t bytes) {
    if (kOnStack > 0 && bytes <= kOnStack) {
      next_ = stack_.data();
    } else if constexpr (kHeap == Heap::kOfThread) {
      next_ = OfThread(bytes);
    } else {
      fresh_ = Allocate(bytes);
      next_ = fresh_.get();
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Whether there was that much memory.
  explicit operator bool() const { return next_ != nullptr; }

  // The next part.
  template <typename T = char>
  T* Take(size_t n) {
    char* const taken = next_;
    next_ += Bytes<T>(n);
    return reinterpret_cast<T*>(taken);
  }

 private:
  using Memory = std::unique_ptr<char, FreeMemory>;

  static Memory Allocate(size_t bytes) {
    return Memory(static_cast<char*>(std::aligned_alloc(kAlignment, Bytes(bytes + 1))));
  }

  static char* OfThread(size_t bytes) {
    thread_local Memory memory;
    thread_local size_t capacity = 0;
    if (bytes > capacity) {
      memory.reset();  // never both
      memory = Allocate(bytes);
      capacity = memory ? bytes : 0;
    }
    return memory.get();
  }

  alignas(kAlignment) std::array<char, kOnStack> stack_;
  Memory fresh_;
  char* next_ = nullptr;
};

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_SCRATCH_H_

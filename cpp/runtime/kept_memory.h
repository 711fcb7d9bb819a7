// Memory of large results, kept for the next ones. A page that is new to the process is cleared by
// the system when it is first written, which takes longer than most kernels need to fill it.
#ifndef PULLBACK_CPP_RUNTIME_KEPT_MEMORY_H_
#define PULLBACK_CPP_RUNTIME_KEPT_MEMORY_H_

#include <cstddef>
#include <string>

namespace pullback {

// Smaller blocks are the C library's, which keeps them, too.
inline constexpr size_t kLeastKept = size_t{1} << 18;

// Bytes from a page's start on, with anything in them; nullptr if there are none.
void* TakeMemory(size_t bytes);

// Gives back what TakeMemory returned. It is kept while the limit allows it, the newest first.
void GiveMemory(void* memory);

// How many bytes may be used of what TakeMemory returned; at least as many as were asked for.
size_t CapacityOf(const void* memory);

size_t KeptBytes();

// How many bytes are kept at most; DefaultKeptLimit() until set.
size_t KeptLimit();
// What is above goes back to the system at once.
void SetKeptLimit(size_t bytes);

// A 64th of the memory that the machine has or the cgroup allows, no more than 256 MiB. `root` as
// in runtime/cgroup.h.
size_t DefaultKeptLimit(const std::string& root = "");

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_KEPT_MEMORY_H_

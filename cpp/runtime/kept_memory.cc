#include "runtime/kept_memory.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "runtime/cgroup.h"
#include "runtime/partition.h"
#include "runtime/platform.h"

namespace pullback {
namespace {

constexpr size_t kPage = 4096;

// In the page before the memory.
struct Block {
  size_t capacity;
};

Block* BlockOf(const void* memory) {
  return reinterpret_cast<Block*>(reinterpret_cast<uintptr_t>(memory) - kPage);
}

#ifdef __linux__
constexpr size_t kHugePage = size_t{1} << 21;
// From here on huge pages are asked for, as NumPy does for its arrays.
constexpr size_t kLeastHuge = size_t{1} << 22;

void* MapPages(size_t bytes) {
  void* const pages =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return pages == MAP_FAILED ? nullptr : pages;
}

void* NewMemory(size_t capacity) {
  if (capacity < kLeastHuge) {
    char* const pages = static_cast<char*>(MapPages(kPage + capacity));
    return pages == nullptr ? nullptr : pages + kPage;
  }
  // Room to begin where a huge page does; what is too much goes back.
  const size_t room = kHugePage + capacity;
  char* const pages = static_cast<char*>(MapPages(room));
  if (pages == nullptr) return nullptr;
  const auto first = reinterpret_cast<uintptr_t>(pages) + kPage;
  const size_t before = RoundUp(first, kHugePage) - first;
  char* const memory = pages + before + kPage;
  if (before > 0) munmap(pages, before);
  const size_t after = room - before - kPage - capacity;
  if (after > 0) munmap(memory + capacity, after);
#ifdef MADV_HUGEPAGE
  madvise(memory, capacity, MADV_HUGEPAGE);
#endif
  return memory;
}

void DeleteMemory(void* memory) {
  Block* const block = BlockOf(memory);
  munmap(block, kPage + block->capacity);
}

// The system may take the pages of what is kept while it is short of memory. Below that size it
// would cost a tenth of what the next result takes, and the C library keeps such blocks, too.
constexpr size_t kLeastLent = size_t{1} << 25;

void Lend([[maybe_unused]] void* memory) {
#ifdef MADV_FREE
  if (CapacityOf(memory) >= kLeastLent) madvise(memory, CapacityOf(memory), MADV_FREE);
#endif
}

double MachineMemory() {
  return static_cast<double>(std::max(0L, sysconf(_SC_PHYS_PAGES))) *
         static_cast<double>(std::max(0L, sysconf(_SC_PAGESIZE)));
}
#else
void* NewMemory(size_t capacity) {
  void* const pages = operator new (kPage + capacity, std::align_val_t{kPage}, std::nothrow);
  return pages == nullptr ? nullptr : static_cast<char*>(pages) + kPage;
}

void DeleteMemory(void* memory) { operator delete (BlockOf(memory), std::align_val_t{kPage}); }

void Lend(void*) {}

double MachineMemory() { return 4.0 * (1 << 30); }  // a guess
#endif

class Keeper {
 public:
  void* Take(size_t bytes) {
    if (void* const kept = BestFit(bytes)) return kept;
    const size_t capacity = RoundUp(bytes, kPage);
    if (capacity < bytes) return nullptr;
    void* memory = NewMemory(capacity);
    if (memory == nullptr) {
      RemoveAbove(0);
      memory = NewMemory(capacity);
    }
    if (memory != nullptr) BlockOf(memory)->capacity = capacity;
    return memory;
  }

  void Give(void* memory) {
    Lend(memory);
    Surplus surplus;  // goes when the lock has gone
    const std::lock_guard lock(mutex_);
    if (count_ == kMost) surplus.Add(RemoveOldest());
    kept_[count_++] = {memory, CapacityOf(memory)};
    bytes_ += CapacityOf(memory);
    while (bytes_ > limit_) surplus.Add(RemoveOldest());
  }

  // A fork waits for whoever holds the lock, lest the child find it locked for ever.
  void BeforeFork() { mutex_.lock(); }
  void AfterFork() { mutex_.unlock(); }

  size_t Bytes() {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }
  size_t Limit() {
    const std::lock_guard lock(mutex_);
    return limit_;
  }
  void SetLimit(size_t limit) {
    {
      const std::lock_guard lock(mutex_);
      limit_ = limit;
    }
    RemoveAbove(limit);
  }

 private:
  static constexpr size_t kMost = 256;  // blocks

  struct Entry {
    void* memory;
    size_t capacity;
  };

  class Surplus {
   public:
    ~Surplus() {
      for (size_t i = 0; i < count_; ++i) DeleteMemory(blocks_[i]);
    }
    void Add(void* memory) { blocks_[count_++] = memory; }

   private:
    std::array<void*, kMost + 1> blocks_;
    size_t count_ = 0;
  };

  void* BestFit(size_t bytes) {
    const std::lock_guard lock(mutex_);
    size_t best = count_;
    for (size_t i = 0; i < count_; ++i) {
      const size_t capacity = kept_[i].capacity;
      if (capacity < bytes || capacity - bytes > bytes / 8) continue;
      // Of equals the newest, which may still be in the caches.
      if (best == count_ || capacity <= kept_[best].capacity) best = i;
    }
    return best == count_ ? nullptr : Remove(best);
  }

  void RemoveAbove(size_t limit) {
    Surplus surplus;
    const std::lock_guard lock(mutex_);
    while (bytes_ > limit) surplus.Add(RemoveOldest());
  }

  void* RemoveOldest() { return Remove(0); }

  void* Remove(size_t index) {
    const Entry entry = kept_[index];
    std::copy(kept_.begin() + index + 1, kept_.begin() + count_, kept_.begin() + index);
    --count_;
    bytes_ -= entry.capacity;
    return entry.memory;
  }

  std::mutex mutex_;
  std::array<Entry, kMost> kept_;  // the oldest first
  size_t count_ = 0;
  size_t bytes_ = 0;
  size_t limit_ = DefaultKeptLimit();
};

// Never destroyed: results may outlive everything. Made when the library is loaded: a lock around a
// first use could be frozen in the child of a fork.
Keeper& keeper = *new Keeper;

[[maybe_unused]] const int registered =
    AtFork([] { keeper.BeforeFork(); }, [] { keeper.AfterFork(); }, [] { keeper.AfterFork(); });

}  // namespace

void* TakeMemory(size_t bytes) { return keeper.Take(bytes); }
void GiveMemory(void* memory) { keeper.Give(memory); }
size_t CapacityOf(const void* memory) { return BlockOf(memory)->capacity; }
size_t KeptBytes() { return keeper.Bytes(); }
size_t KeptLimit() { return keeper.Limit(); }
void SetKeptLimit(size_t bytes) { keeper.SetLimit(bytes); }

size_t DefaultKeptLimit(const std::string& root) {
  const double memory = std::min(MachineMemory(), CgroupMemory(root));
  return std::min(static_cast<size_t>(memory / 64), size_t{256} << 20);
}

}  // namespace pullback

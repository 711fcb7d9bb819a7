#include "runtime/kept_memory.h"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "check.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#define PULLBACK_TEST_FORK 1
#else
#define PULLBACK_TEST_FORK 0
#endif

namespace pullback {
namespace {

constexpr size_t kMebi = size_t{1} << 20;

void TestReuse() {
  SetKeptLimit(64 * kMebi);
  for (const size_t bytes : {kLeastKept, kMebi + 1, 5 * kMebi + 4097, 40 * kMebi}) {
    void* const first = TakeMemory(bytes);
    CHECK(first != nullptr);
    CHECK(reinterpret_cast<uintptr_t>(first) % 4096 == 0);
    CHECK(CapacityOf(first) >= bytes);
    std::memset(first, 1, CapacityOf(first));
    GiveMemory(first);
    CHECK(KeptBytes() == CapacityOf(first));
    void* const second = TakeMemory(bytes);
    CHECK(second == first);
    CHECK(KeptBytes() == 0);
    std::memset(second, 2, CapacityOf(second));
    GiveMemory(second);
    SetKeptLimit(0);
    CHECK(KeptBytes() == 0);
    SetKeptLimit(64 * kMebi);
  }
}

void TestBestFit() {
  void* const large = TakeMemory(18 * kMebi);
  void* const fit = TakeMemory(17 * kMebi);
  void* const small = TakeMemory(15 * kMebi);
  for (void* memory : {small, fit, large}) GiveMemory(memory);
  CHECK(TakeMemory(16 * kMebi) == fit);
  CHECK(TakeMemory(16 * kMebi) == large);
  void* const none = TakeMemory(16 * kMebi);
  CHECK(none != small);
  for (void* memory : {fit, large, none}) GiveMemory(memory);
}

void TestLimit() {
  SetKeptLimit(0);
  SetKeptLimit(3 * kMebi);
  std::vector<void*> blocks;
  for (int i = 0; i < 5; ++i) blocks.push_back(TakeMemory(kMebi));
  for (void* memory : blocks) GiveMemory(memory);
  CHECK(KeptBytes() == 3 * kMebi);
  for (size_t i = 5; i-- > 2;) CHECK(TakeMemory(kMebi) == blocks[i]);  // the newest first
  CHECK(KeptBytes() == 0);
  for (size_t i = 2; i < 5; ++i) GiveMemory(blocks[i]);
  void* const beyond = TakeMemory(4 * kMebi);
  GiveMemory(beyond);
  CHECK(KeptBytes() <= 3 * kMebi);
}

void TestWhatThereIsNot() {
  for (const size_t bytes : {std::numeric_limits<size_t>::max(),
                             std::numeric_limits<size_t>::max() / 2, size_t{1} << 60}) {
    CHECK(TakeMemory(bytes) == nullptr);
  }
}

// Every thread writes its own pattern into what it holds, and finds it again.
void TestThreads() {
  SetKeptLimit(8 * kMebi);
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 8; ++seed) {
    threads.emplace_back([seed] {
      std::vector<uint32_t*> held;
      unsigned random = seed;
      for (int i = 0; i < 300; ++i) {
        random = random * 1664525u + 1013904223u;
        auto* const memory = static_cast<uint32_t*>(TakeMemory(kLeastKept + (random >> 24) * 4096));
        const size_t words = CapacityOf(memory) / sizeof(uint32_t);
        memory[0] = memory[words - 1] = seed;
        held.push_back(memory);
        if (held.size() < 4) continue;
        uint32_t* const oldest = held.front();
        held.erase(held.begin());
        CHECK(oldest[0] == seed && oldest[CapacityOf(oldest) / sizeof(uint32_t) - 1] == seed);
        GiveMemory(oldest);
        if (i % 50 == 0) SetKeptLimit((1 + random % 8) * kMebi);
      }
      for (uint32_t* memory : held) GiveMemory(memory);
    });
  }
  for (std::thread& thread : threads) thread.join();
  SetKeptLimit(0);
  CHECK(KeptBytes() == 0);
}

#if PULLBACK_TEST_FORK
// The child of a fork can allocate and free whatever the others were at.
void TestForkMeanwhile() {
  SetKeptLimit(64 * kMebi);
  std::atomic<bool> end{false};
  std::vector<std::thread> busy;
  for (int i = 0; i < 3; ++i) {
    busy.emplace_back([&] {
      while (!end) {
        void* const memory = TakeMemory(kLeastKept);
        KeptBytes();
        GiveMemory(memory);
      }
    });
  }
  for (int i = 0; i < 500; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      auto* const memory = static_cast<char*>(TakeMemory(kLeastKept));
      memory[0] = 1;
      GiveMemory(memory);
      SetKeptLimit(0);
      _exit(KeptBytes() == 0 ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    if (!WIFEXITED(status)) break;  // one that hangs takes long
  }
  end = true;
  for (std::thread& thread : busy) thread.join();
}
#else
void TestForkMeanwhile() {}
#endif

}  // namespace
}  // namespace pullback

int main() {
  CHECK(pullback::KeptLimit() > 0);
  pullback::TestReuse();
  pullback::TestBestFit();
  pullback::TestLimit();
  pullback::TestWhatThereIsNot();
  pullback::TestThreads();
  pullback::TestForkMeanwhile();
  return check::Report("kept_memory");
}

#include "runtime/threads.h"

#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "runtime/platform.h"

#ifdef __linux__
#include <sched.h>
#endif

// qemu hangs where a process with threads forks, whatever the program.
#if (defined(__unix__) || defined(__APPLE__)) && !defined(PULLBACK_EMULATED)
#include <sys/wait.h>
#include <unistd.h>
#define PULLBACK_TEST_FORK 1
#else
#define PULLBACK_TEST_FORK 0
#endif

// The sanitizers' own limits: a child of fork cannot start threads under TSan (it takes the C
// library's recycled thread ids for duplicates), nor allocate under ASan if another thread was
// allocating meanwhile (its allocator's locks are not fork-safe).
#if defined(__SANITIZE_THREAD__)
constexpr int kScale = 10;  // the sanitizer's slow-down
[[maybe_unused]] constexpr bool kChildMayStartThreads = false;
#else
constexpr int kScale = 1;
[[maybe_unused]] constexpr bool kChildMayStartThreads = true;
#endif
#if defined(__SANITIZE_ADDRESS__)
[[maybe_unused]] constexpr bool kMayAllocateDuringFork = false;
#else
[[maybe_unused]] constexpr bool kMayAllocateDuringFork = true;
#endif

namespace pullback {
namespace {

using std::chrono::milliseconds;

// Runs a job and checks that each task ran once, by plain (unsynchronised) writes: the sanitizer
// then also sees that the caller may read what the workers wrote.
void CheckOneJob(size_t tasks) {
  std::vector<int> runs(tasks, 0);
  CHECK(ParallelFor(tasks, [&](size_t task) { ++runs[task]; }));
  for (const int count : runs) CHECK(count == 1);
}

void TestEachTaskOnce() {
  for (int threads = 1; threads <= 8; ++threads) {
    SetNumThreads(threads);
    CHECK(GetNumThreads() == threads);
    for (const size_t tasks : std::initializer_list<size_t>{0, 1, 2, 3, 7, 8, 9, 64, 1000}) {
      for (int i = 0; i < 20; ++i) CheckOneJob(tasks);
    }
  }
}

void TestTinyJobs() {
  for (const int threads : {2, 4}) {
    SetNumThreads(threads);
    std::vector<int> runs(4, 0);
    const int jobs = 100'000 / kScale;
    for (int i = 0; i < jobs; ++i) ParallelFor(4, [&](size_t task) { ++runs[task]; });
    for (const int count : runs) CHECK(count == jobs);
  }
}

// Workers park between jobs: the wake-up must not be lost.
void TestParkedWorkers() {
  SetNumThreads(4);
  for (int i = 0; i < 50; ++i) {
    std::this_thread::sleep_for(milliseconds(1));
    std::atomic<int> started{0};
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    // Only ends early if four threads are in it at a time.
    ParallelFor(4, [&](size_t) {
      ++started;
      while (started < 4 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    });
    CHECK(std::chrono::steady_clock::now() < deadline);
  }
}

// musl would give a thread 128 KiB.
void TestStack() {
  SetNumThreads(4);
  std::atomic<int> started{0};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  ParallelFor(4, [&](size_t) {
    volatile char room[kStackBytes / 2];
    for (size_t i = 0; i < sizeof room; i += 1024) room[i] = 1;
    ++started;
    while (started < 4 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  });
  CHECK(std::chrono::steady_clock::now() < deadline);
}

void TestManyThreads() {
  SetNumThreads(0);
  CHECK(GetNumThreads() == 1);
  SetNumThreads(1'000'000);
  CHECK(GetNumThreads() == kMaxThreads);
  SetNumThreads(64);
  std::this_thread::sleep_for(milliseconds(5));
  for (int i = 0; i < 20; ++i) CheckOneJob(1000);
  std::atomic<int> started{0};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  ParallelFor(64, [&](size_t) {
    ++started;
    while (started < 64 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  });
  CHECK(std::chrono::steady_clock::now() < deadline);
  SetNumThreads(2);
}

void TestResizingMeanwhile() {
  std::atomic<bool> end{false};
  std::thread resizer([&] {
    for (int i = 0; !end; ++i) {
      SetNumThreads(1 + i % 8);
      if (i % 16 == 0) std::this_thread::sleep_for(milliseconds(1));
    }
  });
  for (int i = 0; i < 3000 / kScale; ++i) CheckOneJob(static_cast<size_t>(i % 40));
  end = true;
  resizer.join();
}

void TestConcurrentCallers() {
  SetNumThreads(4);
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([] {
      for (int i = 0; i < 5000 / kScale; ++i) CheckOneJob(static_cast<size_t>(i % 20));
    });
  }
  for (std::thread& caller : callers) caller.join();
}

// A second caller must not wait for the first one's job.
void TestBusyPoolNeverBlocks() {
  SetNumThreads(4);
  std::atomic<bool> inside{false}, end{false};
  std::thread first([&] {
    ParallelFor(2, [&](size_t) {
      inside = true;
      while (!end) std::this_thread::yield();
    });
  });
  while (!inside) std::this_thread::yield();
  const std::thread::id self = std::this_thread::get_id();
  ParallelFor(10, [&](size_t) { CHECK(std::this_thread::get_id() == self); });
  end = true;
  first.join();
}

void TestNested() {
  SetNumThreads(4);
  for (int i = 0; i < 100; ++i) {
    std::vector<int> runs(10 * 10 * 3, 0);
    ParallelFor(10, [&](size_t a) {
      const std::thread::id self = std::this_thread::get_id();
      ParallelFor(10, [&](size_t b) {
        CHECK(std::this_thread::get_id() == self);
        ParallelFor(3, [&](size_t c) { ++runs[(a * 10 + b) * 3 + c]; });
      });
    });
    for (const int count : runs) CHECK(count == 1);
  }
}

struct Counter {
  std::thread::id caller = std::this_thread::get_id();
  int calls = 0;
  int stop_at = 1;
  static bool Count(void* ctx) {
    auto* self = static_cast<Counter*>(ctx);
    CHECK(std::this_thread::get_id() == self->caller);
    return ++self->calls >= self->stop_at;
  }
};

void TestInterrupt() {
  for (const int threads : {1, 2, 4}) {
    SetNumThreads(threads);
    std::vector<int> runs(20'000, 0);
    Counter counter;
    Poll poll{Counter::Count, &counter};
    const auto start = std::chrono::steady_clock::now();
    const bool finished = ParallelFor(
        runs.size(),
        [&](size_t task) {
          ++runs[task];
          std::this_thread::sleep_for(milliseconds(1));
        },
        &poll);
    const auto elapsed = std::chrono::steady_clock::now() - start;
    CHECK(!finished);
    CHECK(counter.calls == 1);
    CHECK(elapsed >= milliseconds(50) && elapsed < milliseconds(2000));
    int total = 0;
    for (const int count : runs) {
      CHECK(count <= 1);
      total += count;
    }
    CHECK(total > 0 && total < 20'000);
    CheckOneJob(100);  // the pool is as good as new
  }
}

// The caller has no task left and sleeps, but still polls.
void TestInterruptWhileWaiting() {
  SetNumThreads(2);
  const std::thread::id self = std::this_thread::get_id();
  for (const int stop_at : {1, 1000}) {
    Counter counter;
    counter.stop_at = stop_at;
    Poll poll{Counter::Count, &counter};
    std::atomic<bool> worker_came{false};
    const bool finished = ParallelFor(
        2,
        [&](size_t) {
          if (std::this_thread::get_id() != self) {
            worker_came = true;
            std::this_thread::sleep_for(milliseconds(400));
          } else {
            while (!worker_came) std::this_thread::yield();
          }
        },
        &poll);
    CHECK(finished == (stop_at != 1));
    CHECK(stop_at == 1 ? counter.calls == 1 : counter.calls >= 3);
  }
}

// Short jobs in a row, one Poll: it must be asked across them.
void TestPollSpansJobs() {
  SetNumThreads(2);
  Counter counter;
  counter.stop_at = 2;
  Poll poll{Counter::Count, &counter};
  const auto start = std::chrono::steady_clock::now();
  int jobs = 0;
  while (ParallelFor(
      4, [](size_t) { std::this_thread::sleep_for(milliseconds(1)); }, &poll)) {
    if (++jobs > 5000) break;
  }
  CHECK(std::chrono::steady_clock::now() - start >= milliseconds(100));
  CHECK(counter.calls == 2);
  CHECK(jobs < 200);
}

// A body may hand its Poll on to a nested loop; only the calling thread may ask it.
void TestPollStaysOnCaller() {
  SetNumThreads(4);
  Counter counter;
  counter.stop_at = 1000;
  Poll poll{Counter::Count, &counter};
  ParallelFor(4, [&](size_t) {
    Poll own = poll;
    ParallelFor(
        3, [](size_t) { std::this_thread::sleep_for(milliseconds(60)); }, &own);
  });
}

#if PULLBACK_FP_ENV_MXCSR
unsigned ControlBits() { return _mm_getcsr() & ~0x3Fu; }

// A handler finds what the caller has set, or an earlier handler, and may set something else.
struct Mode {
  unsigned now, next;
  int polls = 0;
  static bool Change(void* ctx) {
    auto* const mode = static_cast<Mode*>(ctx);
    CHECK(_mm_getcsr() == mode->now);
    ++mode->polls;
    _mm_setcsr(mode->next);
    mode->now = mode->next;
    return false;
  }
};

void TestFpEnvironment() {
  constexpr unsigned kFlush = 0x8040, kUpward = 0x4000, kInexact = 0x20;
  const unsigned original = _mm_getcsr();
  const std::initializer_list<unsigned> modes = {0x1F80u, 0x1F80 | kFlush, 0x1F80 | kUpward,
                                                 0x1F80 | kFlush | kInexact};
  for (const unsigned mine : modes) {
    for (const unsigned handlers : modes) {
      for (const int threads : {1, 4}) {
        SetNumThreads(1);
        SetNumThreads(threads);  // fresh workers inherit whatever their creator has set
        _mm_setcsr(mine);
        Mode mode{mine, handlers};
        Poll poll{Mode::Change, &mode};
        {
          const KernelFpEnv kernel(&poll);  // as every kernel has around its loops
          ParallelFor(
              static_cast<size_t>(20 * threads),
              [&](size_t) {
                CHECK(ControlBits() == 0x1F80);
                volatile double zero = 0.0;
                volatile double nan = zero / zero;  // raises a flag
                (void)nan;
                std::this_thread::sleep_for(milliseconds(4));
                const KernelFpEnv nested(nullptr);
                CHECK(ControlBits() == 0x1F80);
              },
              &poll);
          CHECK(ControlBits() == 0x1F80);
        }
        CHECK(mode.polls > 0);
        CHECK(_mm_getcsr() == mode.now);
      }
    }
  }
  _mm_setcsr(original);
}
#else
void TestFpEnvironment() {
  SetNumThreads(4);
  std::fesetround(FE_UPWARD);
  ParallelFor(60, [&](size_t) { CHECK(std::fegetround() == FE_TONEAREST); });
  CHECK(std::fegetround() == FE_UPWARD);
  std::fesetround(FE_TONEAREST);
}
#endif

#if PULLBACK_TEST_FORK
// Runs `child` in a forked process, which a hang kills by alarm.
template <class Child>
void CheckInChild(Child child) {
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(static_cast<unsigned>(20 * kScale));
    check::failures = 0;
    child();
    _exit(check::failures == 0 ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void UsePool() {
  if (!kChildMayStartThreads) SetNumThreads(1);
  for (int i = 0; i < 5; ++i) CheckOneJob(50);
  if (!kChildMayStartThreads) return;
  SetNumThreads(2);
  CheckOneJob(50);
  SetNumThreads(4);
  CheckOneJob(50);
}

// Without memory of its own or threads.
void ComputeAlone() {
  SetNumThreads(1);
  static int runs[50];
  CHECK(ParallelFor(50, [&](size_t task) { ++runs[task]; }));
  for (const int count : runs) CHECK(count == 1);
}

void TestForkIdle() {
  SetNumThreads(4);
  CheckOneJob(100);
  if (!kMayAllocateDuringFork) std::this_thread::sleep_for(milliseconds(50));  // new threads do
  for (int i = 0; i < 5; ++i) {
    CheckInChild([] {
      UsePool();
      CheckInChild(UsePool);  // a child's child
    });
  }
  CheckOneJob(100);
}

void TestForkDuringJobs() {
  SetNumThreads(4);
  std::atomic<bool> end{false};
  std::thread busy([&] {
    while (!end) ParallelFor(16, [](size_t) { std::this_thread::sleep_for(milliseconds(1)); });
  });
  std::thread tiny([&] {
    while (!end) ParallelFor(4, [](size_t) {});
  });
  std::thread resizer([&] {
    for (int i = 0; !end && kMayAllocateDuringFork; ++i) {
      SetNumThreads(2 + i % 3);
      std::this_thread::sleep_for(milliseconds(1));
    }
  });
  // After a fork the jobs start workers anew, which takes memory.
  for (int i = 0; i < 40 / kScale; ++i) {
    CheckInChild(kMayAllocateDuringFork ? UsePool : ComputeAlone);
  }
  end = true;
  busy.join();
  tiny.join();
  resizer.join();
  CheckOneJob(100);
}

// A handler that took long is followed by a second of computing at most, in which none runs.
void AwaitPolls() { std::this_thread::sleep_for(std::chrono::seconds(1)); }

// Ctrl-C handlers are Python code and may fork. This one does so twice, where the job is long
// enough for the second time, and so do its children.
struct Forker {
  int forks = 2;
  std::vector<pid_t> children;
  bool is_child = false;
  static bool Fork(void* ctx) {
    auto* const self = static_cast<Forker*>(ctx);
    if (self->forks == 0) return false;
    --self->forks;
    const pid_t pid = fork();
    if (pid == 0) {
      alarm(static_cast<unsigned>(20 * kScale));
      check::failures = 0;
      self->children.clear();
      self->is_child = true;
    } else {
      self->children.push_back(pid);
    }
    return false;
  }
};

// The job of each process is done, and its threads are as good as before.
void CheckForked(Forker& forker, bool finished, const std::vector<int>& runs) {
  CHECK(forker.is_child || !forker.children.empty());
  CHECK(finished);
  for (const int count : runs) CHECK(count == 1);
  for (const pid_t child : forker.children) {
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  if (!forker.is_child) return CheckOneJob(100);
  UsePool();
  _exit(check::failures == 0 ? 0 : 1);
}

void TestForkInsidePoll() {
  for (const int threads : {1, 2, 4}) {
    AwaitPolls();
    SetNumThreads(threads);
    std::vector<int> runs(static_cast<size_t>(200 * threads), 0);
    Forker forker;
    Poll poll{Forker::Fork, &forker};
    const bool finished = ParallelFor(
        runs.size(),
        [&](size_t task) {
          std::this_thread::sleep_for(milliseconds(1));
          ++runs[task];
        },
        &poll);
    CheckForked(forker, finished, runs);
  }
}

// The caller has no task left, a worker is amid its own.
void TestForkWhileWaiting() {
  AwaitPolls();
  SetNumThreads(2);
  const std::thread::id self = std::this_thread::get_id();
  std::vector<int> runs(2, 0);
  Forker forker;
  forker.forks = 1;
  Poll poll{Forker::Fork, &forker};
  std::atomic<bool> worker_came{false};
  const bool finished = ParallelFor(
      2,
      [&](size_t task) {
        if (std::this_thread::get_id() != self) {
          worker_came = true;
          std::this_thread::sleep_for(milliseconds(300));
        } else {
          while (!worker_came) std::this_thread::yield();
        }
        ++runs[task];
      },
      &poll);
  CheckForked(forker, finished, runs);
}

// Long tasks poll on their way, if they are the caller's.
void TestForkInsideTask() {
  for (const int threads : {1, 2, 4}) {
    AwaitPolls();
    SetNumThreads(threads);
    const std::thread::id self = std::this_thread::get_id();
    std::vector<int> runs(static_cast<size_t>(6 * threads), 0);
    Forker forker;
    Poll poll{Forker::Fork, &forker};
    const bool finished = ParallelFor(
        runs.size(),
        [&](size_t task) {
          for (int part = 0; part < 30; ++part) {
            std::this_thread::sleep_for(milliseconds(1));
            if (std::this_thread::get_id() == self) CHECK(!Interrupted(&poll));
          }
          ++runs[task];
        },
        &poll);
    CheckForked(forker, finished, runs);
  }
}
#else
void TestForkIdle() {}
void TestForkDuringJobs() {}
void TestForkInsidePoll() {}
void TestForkWhileWaiting() {}
void TestForkInsideTask() {}
#endif

#ifdef __linux__
cpu_set_t OnlyCpu(size_t cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return set;
}

// Where the only worker of a job of two threads may run.
cpu_set_t WorkersMask() {
  const std::thread::id self = std::this_thread::get_id();
  cpu_set_t mask;
  std::atomic<bool> worker_came{false};
  ParallelFor(2, [&](size_t) {
    if (std::this_thread::get_id() != self) {
      CHECK(sched_getaffinity(0, sizeof mask, &mask) == 0);
      worker_came = true;
    }
    while (!worker_came) std::this_thread::yield();
  });
  return mask;
}

// Callers on CPUs of their own: the worker goes where its caller is, whoever called first.
void TestWorkersRunWhereTheirCallerMay() {
  cpu_set_t all;
  CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
  std::vector<cpu_set_t> single;
  for (size_t cpu = 0; cpu < CPU_SETSIZE && single.size() < 2; ++cpu) {
    if (CPU_ISSET(cpu, &all)) single.push_back(OnlyCpu(cpu));
  }
  SetNumThreads(1);
  SetNumThreads(2);
  for (int i = 0; i < 3; ++i) {
    for (const cpu_set_t& mine : single) {
      std::thread([&] {
        CHECK(sched_setaffinity(0, sizeof mine, &mine) == 0);
        const cpu_set_t workers = WorkersMask();
        CHECK(CPU_EQUAL(&workers, &mine));
      }).join();
    }
  }
  std::thread([&] {
    for (const cpu_set_t& mine : single) {
      CHECK(sched_setaffinity(0, sizeof mine, &mine) == 0);
      std::this_thread::sleep_for(milliseconds(100));  // a thread is not asked at every call
      const cpu_set_t workers = WorkersMask();
      CHECK(CPU_EQUAL(&workers, &mine));
    }
  }).join();
  const cpu_set_t workers = WorkersMask();
  CHECK(CPU_COUNT(&workers) >= CPU_COUNT(&all) - 1);  // perhaps not on the caller's CPU
  cpu_set_t both;
  CPU_OR(&both, &workers, &all);
  CHECK(CPU_EQUAL(&both, &all));
}
#else
void TestWorkersRunWhereTheirCallerMay() {}
#endif

#ifdef _WIN32
int setenv(const char* name, const char* value, int) { return _putenv_s(name, value); }
int unsetenv(const char* name) { return _putenv_s(name, ""); }
#endif

void TestEnvironment() {
  struct Case {
    const char *ours, *omp;
    int threads;  // 0: no wish
    bool error;
  };
  const Case cases[] = {
      {"", "", 0, false},        {"3", "", 3, false},       {" 3 ", "7", 3, false},
      {"1024", "", 1024, false}, {"1025", "", 0, true},     {"99999999999999999999", "", 0, true},
      {"abc", "2", 0, true},     {"0", "2", 0, true},       {"-1", "2", 0, true},
      {"4,2", "", 0, true},      {"2.5", "", 0, true},      {" ", "", 0, true},
      {"", "4", 4, false},       {"", "4,2", 4, false},     {"", " 4 , 2", 4, false},
      {"", "abc", 0, false},     {"", "0", 0, false},       {"", "-3", 0, false},
      {"", ",4", 0, false},      {"", "5000", 1024, false},
  };
  for (const Case& c : cases) {
    setenv("PULLBACK_NUM_THREADS", c.ours, 1);
    setenv("OMP_NUM_THREADS", c.omp, 1);
    std::string error = "stale";
    const std::optional<int> threads = ThreadsFromEnv(&error);
    CHECK(threads.value_or(0) == c.threads);
    CHECK(error.empty() != c.error);
    if (c.error) {
      CHECK(error.find("PULLBACK_NUM_THREADS") != std::string::npos);
      CHECK(error.find(c.ours) != std::string::npos);
      CHECK(error.find("1024") != std::string::npos);
    }
    CHECK(DefaultNumThreads() >= 1);
    if (c.threads != 0) CHECK(DefaultNumThreads() == c.threads);
  }
  unsetenv("PULLBACK_NUM_THREADS");
  unsetenv("OMP_NUM_THREADS");
  std::string error;
  CHECK(!ThreadsFromEnv(&error) && error.empty());
  CHECK(DefaultNumThreads() == AvailableCpus());
}

}  // namespace
}  // namespace pullback

int main() {
  pullback::TestEnvironment();
  pullback::TestEachTaskOnce();
  pullback::TestTinyJobs();
  pullback::TestParkedWorkers();
  pullback::TestStack();
  pullback::TestManyThreads();
  pullback::TestResizingMeanwhile();
  pullback::TestConcurrentCallers();
  pullback::TestBusyPoolNeverBlocks();
  pullback::TestNested();
  pullback::TestInterrupt();
  pullback::TestInterruptWhileWaiting();
  pullback::TestPollSpansJobs();
  pullback::TestPollStaysOnCaller();
  pullback::TestFpEnvironment();
  pullback::TestWorkersRunWhereTheirCallerMay();
  pullback::TestForkIdle();
  pullback::TestForkDuringJobs();
  pullback::TestForkInsidePoll();
  pullback::TestForkWhileWaiting();
  pullback::TestForkInsideTask();
  return check::Report("threads_test");
}

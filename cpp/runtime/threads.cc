#include "runtime/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

#include "runtime/platform.h"

namespace pullback {
namespace {

// Longer than the gap between the kernels of one Python expression, short enough not to be seen in
// a process's CPU time, and about what a wake-up costs: 5 us where the idle CPU polls, 26 us
// measured in a virtual machine whose idle CPUs halt, against 0.3 us for a worker that still spins.
// A bare futex saves 0.4 us over the condition variable, not worth its portability.
constexpr int64_t kSpinNs = 20'000;

using Body = FunctionRef<void(size_t)>;

void Pause() {
#if PULLBACK_FP_ENV_MXCSR
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("isb" ::: "memory");
#endif
}

// True as soon as done(), false after kSpinNs without it.
template <class Done>
bool SpinUntil(Done done) {
  const int64_t end = NowNs() + kSpinNs;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      Pause();
    }
  } while (NowNs() < end);
  return done();
}

thread_local bool t_is_worker = false;

// A number of its own for each thread that asks, never 0; the library's are soon used again.
uint64_t ThreadNumber() {
  static std::atomic<uint64_t> last{0};
  thread_local uint64_t own = 0;
  if (own == 0) own = last.fetch_add(1) + 1;
  return own;
}

std::atomic<int> g_threads{0};  // 0: not yet asked for

// state_ in one word: the job's number (high half), how many workers are in the job (low 16 bits),
// whether it takes no more of them, and whether its caller sleeps until the count is 0. A worker
// enters by raising the count of an open job, so one that wakes late never touches a later job's
// fields, and the caller need not wait for workers that never came.
constexpr uint64_t kCount = 0xFFFF;
constexpr uint64_t kClosed = uint64_t{1} << 16;
constexpr uint64_t kCallerParked = uint64_t{1} << 17;
constexpr int kJobShift = 32;

uint32_t JobOf(uint64_t state) { return static_cast<uint32_t>(state >> kJobShift); }

class Pool {
 public:
  Pool() {
    for (std::atomic<int>& cpu : parked_at_) cpu.store(-1);
  }

  bool TryAcquire() { return !busy_.exchange(true); }
  void Release() { busy_.store(false); }

  // The rest needs the pool acquired.
  void Resize(int threads);
  bool Run(size_t tasks, Body body, Poll* poll);

  // The caller of a job forks: what is handed out gets done and the workers leave. Then the parent
  // starts new ones, and the child's caller does alone what is left.
  void BeforeFork();
  void AfterForkInParent();
  void AfterForkInChild() { next_.store(left_); }

  // Any thread may ask.
  bool LargerThan(int threads) const { return sized_for_.load() > threads; }

  Pool* abandoned = nullptr;  // pools of ancestor processes, kept reachable for leak checkers

 private:
  void Work(int index, uint32_t seen);
  bool AwaitJob(int index, uint32_t seen);
  void Open(size_t first);
  bool AwaitLast(Poll* poll);
  void WakeOne();
  void FollowCaller(int64_t now);
  bool IsNews(int index, uint32_t seen) const {
    const uint64_t state = state_.load();
    return ((state & kClosed) == 0 && JobOf(state) != seen) || index >= limit_.load();
  }

  alignas(64) std::atomic<uint64_t> state_{kClosed};
  alignas(64) std::atomic<size_t> next_{0};  // the next task to hand out
  alignas(64) std::atomic<bool> busy_{false};
  size_t tasks_ = 0;
  const Body* body_ = nullptr;
  size_t left_ = 0;  // during a fork: the first of the tasks that are yet to be handed out

  std::atomic<int> limit_{0};      // workers numbered from here on leave
  std::atomic<int> sized_for_{1};  // the thread count Resize() last saw
  std::atomic<int> parked_{0};
  std::atomic<int> to_wake_{0};        // how many more workers those just woken should wake
  std::atomic<bool> may_spin_{false};  // there is a CPU for each thread
  std::atomic<int> caller_cpu_{-1};
  std::atomic<int> parked_at_[kMaxThreads];  // the CPU on which each worker fell asleep
  std::mutex mutex_;
  std::condition_variable wake_;  // workers wait here for a job
  std::condition_variable done_;  // the caller waits here for its last workers
  std::vector<Thread> workers_;
  double quota_ = 1;  // in CPUs, as of the last Resize()

  uint64_t caller_ = 0;      // the thread of the last job, or 0
  int64_t followed_ns_ = 0;  // when it was asked last where it may run
  CpuSet allowed_;           // there
};

// The pool in whose job this thread is, as its caller.
thread_local Pool* t_pool = nullptr;

std::atomic<Pool*> g_pool{nullptr};

// A poll runs signal handlers, which may fork in mid-call. Idle workers leave, too, and the next
// job starts new ones: a process that forks without other threads loses none in the child, and
// Python, which warns of those from 3.12 on, need not.
void BeforeFork() {
  if (t_pool != nullptr) return t_pool->BeforeFork();
  Pool* const pool = g_pool.load();
  if (pool == nullptr || !pool->TryAcquire()) return;
  pool->Resize(1);
  pool->Release();
}

void AfterForkInParent() {
  if (t_pool != nullptr) t_pool->AfterForkInParent();
}

// Only the forking thread lives on in the child. Whatever locks and counts others held of the pool
// are frozen: leave it alone and start afresh on next use.
void AfterForkInChild() {
  if (t_pool != nullptr) return t_pool->AfterForkInChild();
  Pool* old = g_pool.load();
  if (old == nullptr) return;
  static Pool* abandoned = nullptr;
  old->abandoned = abandoned;
  abandoned = old;
  g_pool.store(nullptr);
}

// When the library is loaded, so that nobody uses a pool before.
[[maybe_unused]] const int registered = AtFork(BeforeFork, AfterForkInParent, AfterForkInChild);

// No function-local static and no mutex here: another thread could hold their lock while this one
// forks, and the child would wait for ever.
Pool* GetPool() {
  Pool* pool = g_pool.load(std::memory_order_acquire);
  if (pool != nullptr) return pool;
  auto* fresh = new Pool;
  if (g_pool.compare_exchange_strong(pool, fresh)) return fresh;
  delete fresh;
  return pool;
}

void Pool::Resize(int threads) {
  if (threads == sized_for_.load()) return;
  const size_t wanted = static_cast<size_t>(threads - 1);
  limit_.store(threads - 1);
  // Joining keeps numbers unique: a worker told to leave cannot miss it and stay beside its
  // successor. It takes microseconds, since none of them is in a job.
  if (wanted < workers_.size()) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
    for (size_t i = wanted; i < workers_.size(); ++i) workers_[i].Join();
    workers_.erase(workers_.begin() + static_cast<ptrdiff_t>(wanted), workers_.end());
  }
  quota_ = CgroupCpuQuota();
  caller_ = 0;  // who calls next is asked where it may run: new workers are where we are
  const uint32_t seen = JobOf(state_.load());
  try {
    workers_.reserve(wanted);
    while (workers_.size() < wanted) {
      const int index = static_cast<int>(workers_.size());
      workers_.emplace_back([this, index, seen] { Work(index, seen); });
    }
  } catch (const std::system_error&) {
    // The system grants no more threads: go on with those there are.
  }
  sized_for_.store(threads);
}

// Workers act for their caller, so they run where it may, whichever thread had them started. Asking
// takes 0.4 us, a hundredth of the smallest job, so the same thread is asked every 50 ms only.
void Pool::FollowCaller(int64_t now) {
  const uint64_t caller = ThreadNumber();
  if (caller == caller_ && now - followed_ns_ < kPollNs) return;
  const bool resized = caller_ == 0;
  caller_ = caller;
  followed_ns_ = now;
  const CpuSet allowed = CpuSet::Own();
  if (!resized && allowed == allowed_) return;
  allowed_ = allowed;
  for (Thread& worker : workers_) worker.Confine(allowed_);
  const int cpus = AvailableCpus(quota_);
  may_spin_.store(cpus > 1 && sized_for_.load() <= cpus);
}

void Pool::WakeOne() {
  // Taking the lock orders this after the check of a worker that is about to sleep.
  { std::lock_guard<std::mutex> lock(mutex_); }
  wake_.notify_one();
}

// False when this worker is to leave.
bool Pool::AwaitJob(int index, uint32_t seen) {
  const auto news = [&] { return IsNews(index, seen); };
  if (!may_spin_.load() || !SpinUntil(news)) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      parked_.fetch_add(1);
      parked_at_[static_cast<size_t>(index)].store(CurrentCpu());
      wake_.wait(lock, news);
      parked_.fetch_sub(1);
    }
    // A wake-up costs its sender a system call, so a large team is woken as a tree.
    for (int i = 0; i < 2 && to_wake_.fetch_sub(1) > 0; ++i) WakeOne();
  }
  return index < limit_.load();
}

void Pool::Work(int index, uint32_t seen) {
  t_is_worker = true;
  while (AwaitJob(index, seen)) {
    uint64_t state = state_.load();
    while ((state & kClosed) == 0 && JobOf(state) != seen) {
      if (!state_.compare_exchange_weak(state, state + 1)) continue;
      seen = JobOf(state);
      const int cpu = CurrentCpu();
      if (may_spin_.load() && cpu >= 0 && cpu == caller_cpu_.load()) {
        allowed_.Without(cpu).Confine();
      }
      {
        const ScopedDefaultFpEnv env;
        const Body& body = *body_;
        const size_t tasks = tasks_;
        for (size_t t; (t = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(t);
      }
      const uint64_t before = state_.fetch_sub(1);
      if ((before & kCount) == 1 && (before & kCallerParked) != 0) {
        { std::lock_guard<std::mutex> lock(mutex_); }
        done_.notify_one();
      }
      break;
    }
  }
}

bool RunSerially(size_t tasks, Body body, Poll* poll) {
  const KernelFpEnv env(poll);
  for (size_t t = 0; t < tasks; ++t) {
    body(t);
    if (Interrupted(poll)) return false;
  }
  return true;
}

// Hands out the tasks from `first` on to whichever workers come.
void Pool::Open(size_t first) {
  const int workers = static_cast<int>(workers_.size());
  next_.store(first, std::memory_order_relaxed);
  state_.store(uint64_t{JobOf(state_.load()) + 1} << kJobShift);
  const int helpers = static_cast<int>(std::min(tasks_ - first, size_t{kMaxThreads}) - 1);
  const int awake = workers - parked_.load();
  const int sleepers_needed = std::min(helpers, workers) - awake;
  if (sleepers_needed > 0) {
    // A scheduler likes to wake a worker where its waker runs, finds it still there at the next
    // wake, and so keeps both on one CPU while another idles: a busy caller never lets go of it
    // (seen for seconds on end, twice the time per call). So a worker that shares its caller's CPU
    // is moved: here, as it would wake where it slept, or by itself.
    if (may_spin_.load()) {
      for (size_t i = 0; i < workers_.size(); ++i) {
        int cpu = caller_cpu_.load();
        if (parked_at_[i].compare_exchange_strong(cpu, -1)) {
          workers_[i].Confine(allowed_.Without(caller_cpu_.load()));
        }
      }
    }
    to_wake_.store(sleepers_needed - 1);
    WakeOne();
  }
}

// Closes the job and waits until no worker is in it. True: the poll, if any, asked to stop.
bool Pool::AwaitLast(Poll* poll) {
  const auto all_left = [&] { return (state_.load() & kCount) == 0; };
  state_.fetch_or(kClosed);
  if (all_left() || (may_spin_.load() && SpinUntil(all_left))) return false;
  // Asleep rather than spinning: the CPU may be the one that the last worker needs.
  state_.fetch_or(kCallerParked);
  bool stop = false;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (poll == nullptr) {
        done_.wait(lock, all_left);
        return stop;
      }
      if (done_.wait_for(lock, std::chrono::nanoseconds(kPollNs), all_left)) return stop;
    }
    if (Interrupted(poll)) {
      stop = true;
      poll = nullptr;
    }
  }
}

bool Pool::Run(size_t tasks, Body body, Poll* poll) {
  FollowCaller(poll != nullptr ? poll->last_ns : NowNs());
  caller_cpu_.store(CurrentCpu());
  const KernelFpEnv env(poll);
  tasks_ = tasks;
  body_ = &body;
  Open(0);
  Pool* const outer = std::exchange(t_pool, this);
  bool stop = false;
  for (size_t t; (t = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
    body(t);
    if (Interrupted(poll)) {
      stop = true;
      poll = nullptr;
      next_.store(tasks, std::memory_order_relaxed);
    }
  }
  if (AwaitLast(poll)) stop = true;
  t_pool = outer;
  return !stop;
}

void Pool::BeforeFork() {
  left_ = std::min(next_.exchange(tasks_), tasks_);
  limit_.store(0);  // who leaves the job leaves altogether, with no second wake-up
  AwaitLast(nullptr);
  Resize(1);
}

void Pool::AfterForkInParent() {
  Resize(GetNumThreads());
  next_.store(left_);
  if (left_ < tasks_) Open(left_);
}

// Lets workers above the wanted number go as soon as the pool is idle.
void ShrinkIfIdle(Pool* pool) {
  while (pool->LargerThan(GetNumThreads()) && pool->TryAcquire()) {
    pool->Resize(GetNumThreads());
    pool->Release();
  }
}

// "4" or "4,2" (the outermost level counts): digits only, blanks around them allowed.
std::optional<int> ParseThreads(const std::string& text) {
  const char* blanks = " \t";
  const size_t begin = text.find_first_not_of(blanks);
  if (begin == std::string::npos) return std::nullopt;
  const std::string digits = text.substr(begin, text.find_last_not_of(blanks) + 1 - begin);
  int value = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return std::nullopt;
    value = std::min(10 * value + (c - '0'), kMaxThreads + 1);
  }
  if (value == 0) return std::nullopt;
  return value;
}

}  // namespace

bool ParallelFor(size_t tasks, FunctionRef<void(size_t)> body, Poll* poll) {
  if (t_is_worker) poll = nullptr;
  if (poll != nullptr && poll->last_ns == 0) poll->last_ns = NowNs();
  const int threads = GetNumThreads();
  if (tasks <= 1 || threads == 1 || t_is_worker) return RunSerially(tasks, body, poll);
  Pool* pool = GetPool();
  if (!pool->TryAcquire()) return RunSerially(tasks, body, poll);
  pool->Resize(threads);
  const bool finished = pool->Run(tasks, body, poll);
  pool->Release();
  ShrinkIfIdle(pool);
  return finished;
}

int GetNumThreads() {
  const int threads = g_threads.load();
  if (threads != 0) return threads;
  int unset = 0;
  const int by_default = DefaultNumThreads();
  return g_threads.compare_exchange_strong(unset, by_default) ? by_default : unset;
}

void SetNumThreads(int n) {
  g_threads.store(std::clamp(n, 1, kMaxThreads));
  if (Pool* pool = g_pool.load(); pool != nullptr) ShrinkIfIdle(pool);
}

int DefaultNumThreads() {
  std::string error;
  const int threads = ThreadsFromEnv(&error).value_or(AvailableCpus());
  return std::clamp(threads, 1, kMaxThreads);
}

std::optional<int> ThreadsFromEnv(std::string* error) {
  error->clear();
  const char* ours = std::getenv("PULLBACK_NUM_THREADS");
  if (ours != nullptr && *ours != '\0') {
    const std::optional<int> threads = ParseThreads(ours);
    if (threads && *threads <= kMaxThreads) return threads;
    *error = std::string("PULLBACK_NUM_THREADS is '") + ours +
             "', but must be a whole number from 1 to " + std::to_string(kMaxThreads);
    return std::nullopt;
  }
  const char* omp = std::getenv("OMP_NUM_THREADS");
  if (omp == nullptr) return std::nullopt;
  const std::string text(omp);
  const std::optional<int> threads = ParseThreads(text.substr(0, text.find(',')));
  if (!threads) return std::nullopt;
  return std::min(*threads, kMaxThreads);
}

}  // namespace pullback

#include "runtime/platform.h"

#include <bit>
#include <cerrno>
#include <memory>
#include <system_error>
#include <utility>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <process.h>
#include <windows.h>
#else
#include <pthread.h>
#include <signal.h>
#endif

#ifdef __linux__
#include <sched.h>

#include <cstring>
#endif

namespace pullback {

CpuSet CpuSet::Without(int cpu) const {
  CpuSet others = *this;
  if (cpu >= 0 && cpu < kMost) {
    others.words_[static_cast<size_t>(cpu) / 64] &= ~(uint64_t{1} << (cpu % 64));
  }
  return others;
}

#ifdef __linux__
// Both are bits in words of the machine.
static_assert(sizeof(cpu_set_t) == CpuSet::kMost / 8);

CpuSet CpuSet::Own() {
  CpuSet own;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) std::memcpy(&own.words_, &set, sizeof set);
  return own;
}

void CpuSet::Confine() const {
  if (!Empty()) sched_setaffinity(0, sizeof words_, reinterpret_cast<const cpu_set_t*>(&words_));
}

void Thread::Confine(const CpuSet& cpus) {
  if (cpus.Empty()) return;
  pthread_setaffinity_np(std::bit_cast<pthread_t>(handle_), sizeof cpus.words_,
                         reinterpret_cast<const cpu_set_t*>(&cpus.words_));
}

int CurrentCpu() { return sched_getcpu(); }
#else
CpuSet CpuSet::Own() { return {}; }
void CpuSet::Confine() const {}
void Thread::Confine(const CpuSet&) {}
int CurrentCpu() { return -1; }
#endif

namespace {

using Body = std::function<void()>;

[[noreturn]] void ThrowNoThread(int error) {
  throw std::system_error(error, std::generic_category(), "pullback: no thread");
}

#ifdef _WIN32
unsigned __stdcall Enter(void* body) {
  (*std::unique_ptr<Body>(static_cast<Body*>(body)))();
  return 0;
}
#else
void* Enter(void* body) {
  (*std::unique_ptr<Body>(static_cast<Body*>(body)))();
  return nullptr;
}

// What a thread starts with is what its creator has.
class ScopedBlockSignals {
 public:
  ScopedBlockSignals() {
    sigset_t all;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) {
      sigdelset(&all, fault);
    }
    pthread_sigmask(SIG_SETMASK, &all, &saved_);
  }
  ~ScopedBlockSignals() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }

 private:
  sigset_t saved_;
};
#endif

}  // namespace

#ifdef _WIN32
Thread::Thread(Body body) {
  auto own = std::make_unique<Body>(std::move(body));
  handle_ = _beginthreadex(nullptr, kStackBytes, Enter, own.get(),
                           STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
  if (handle_ == 0) ThrowNoThread(errno);
  own.release();
}

void Thread::Join() {
  WaitForSingleObject(reinterpret_cast<HANDLE>(handle_), INFINITE);
  CloseHandle(reinterpret_cast<HANDLE>(handle_));
}

int AtFork(void (*)(), void (*)(), void (*)()) { return 0; }
#else
Thread::Thread(Body body) {
  auto own = std::make_unique<Body>(std::move(body));
  const ScopedBlockSignals block;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_t thread;
  const int error = pthread_create(&thread, &attributes, Enter, own.get());
  pthread_attr_destroy(&attributes);
  if (error != 0) ThrowNoThread(error);
  own.release();
  handle_ = std::bit_cast<uintptr_t>(thread);
}

void Thread::Join() { pthread_join(std::bit_cast<pthread_t>(handle_), nullptr); }

int AtFork(void (*before)(), void (*in_parent)(), void (*in_child)()) {
  return pthread_atfork(before, in_parent, in_child);
}
#endif

}  // namespace pullback

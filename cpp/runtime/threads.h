// A small fork-join pool on std::thread.
#ifndef PULLBACK_CPP_RUNTIME_THREADS_H_
#define PULLBACK_CPP_RUNTIME_THREADS_H_

#include <cstddef>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "runtime/cpus.h"
#include "runtime/poll.h"

namespace pullback {

// A non-owning reference to a callable: two words, no allocation. The callable must outlive it,
// which a lambda written as an argument does.
template <class Signature>
class FunctionRef;

template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>>>
  FunctionRef(F&& f)  // NOLINT: implicit, so that a lambda can be passed as it is
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}

  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

// Runs body(0) ... body(tasks - 1), each exactly once, on the caller and the workers, in no fixed
// order; returns when all are done. Bodies must not throw, and run under the default floating-point
// environment.
//
// With `poll`, the calling thread polls between tasks (at most every 50 ms); once it says stop, no
// further task is begun, running ones finish, and the result is false: some bodies have not run.
// Where poll forks, both processes go on: tasks that have begun finish first, and the child, which
// has no workers, does the rest on its own.
//
// Serial when there is one thread or task, inside a body, or while another thread uses the pool:
// nobody ever waits for somebody else's job.
bool ParallelFor(size_t tasks, FunctionRef<void(size_t)> body, Poll* poll = nullptr);

inline constexpr int kMaxThreads = 1024;

// The number of threads a job may use, the caller included; DefaultNumThreads() until set.
int GetNumThreads();

// Clamped to 1 ... kMaxThreads; may exceed the CPUs. A running job keeps its workers.
void SetNumThreads(int n);

// PULLBACK_NUM_THREADS, else OMP_NUM_THREADS, else AvailableCpus().
int DefaultNumThreads();

// The environment's wish. A malformed PULLBACK_NUM_THREADS fills *error and gives nothing; a
// malformed OMP_NUM_THREADS, which is not ours to judge, counts as absent.
std::optional<int> ThreadsFromEnv(std::string* error);

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_THREADS_H_

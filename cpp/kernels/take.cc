// take along an axis, and the sums of what was taken.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "kernels/selections.h"
#include "kernels/tasks.h"
#include "runtime/partition.h"
#include "runtime/poll.h"

namespace pullback {
namespace {

// Between two looks at the clock, where nothing is parallel.
constexpr size_t kPolledElements = size_t{1} << 18;
// Sums of one outer index are cut into so many columns where there are fewer tasks than that.
constexpr size_t kColumns = 512;
constexpr size_t kEnoughTasks = 16;

// The k-th place, counted from the first element; n or more where it is out of range.
template <typename Place>
size_t PlaceAt(const TakeCall& call, size_t k) {
  const Place place = static_cast<const volatile Place*>(call.places)[k];
  const auto at = static_cast<int64_t>(place);
  return static_cast<size_t>(at < 0 ? at + static_cast<int64_t>(call.n) : at);
}

// f(Place{}, T{}) of the types of places and elements.
template <class F>
auto OfTypes(const TakeCall& call, const F& f) {
  const bool narrow = call.dtype == DType::kFloat32;
  if (call.wide_places) return narrow ? f(int64_t{}, float{}) : f(int64_t{}, double{});
  return narrow ? f(int32_t{}, float{}) : f(int32_t{}, double{});
}

// Rows of taken elements: those of one place, for each outer index.
template <typename Place, typename T>
bool TakeRows(const TakeCall& call, const T* x, T* taken, Range rows) {
  for (size_t row = rows.begin; row < rows.end;) {
    const size_t outer = row / call.count, first = row % call.count;
    const size_t count = std::min(call.count - first, rows.end - row);
    const T* const from = x + outer * call.n * call.inner;
    T* const to = taken + row * call.inner;
    if (call.inner == 1) {
      for (size_t k = 0; k < count; ++k) {
        const size_t at = PlaceAt<Place>(call, first + k);
        if (at >= call.n) return false;
        to[k] = from[at];
      }
    } else {
      for (size_t k = 0; k < count; ++k) {
        const size_t at = PlaceAt<Place>(call, first + k);
        if (at >= call.n) return false;
        std::memcpy(to + k * call.inner, from + at * call.inner, call.inner * sizeof(T));
      }
    }
    row += count;
  }
  return true;
}

// Adds places [begin, end) of one outer index to sums (n, width), of columns from `first` on.
template <typename Place, typename T>
bool AddPlaces(const TakeCall& call, const T* taken, size_t first, size_t width, Range places,
               double* sums) {
  if (call.inner == 1) {
    for (size_t k = places.begin; k < places.end; ++k) {
      const size_t at = PlaceAt<Place>(call, k);
      if (at >= call.n) return false;
      sums[at] += static_cast<double>(taken[k]);
    }
    return true;
  }
  for (size_t k = places.begin; k < places.end; ++k) {
    const size_t at = PlaceAt<Place>(call, k);
    if (at >= call.n) return false;
    const T* const from = taken + k * call.inner + first;
    double* const to = sums + at * width;
    for (size_t i = 0; i < width; ++i) to[i] += static_cast<double>(from[i]);
  }
  return true;
}

}  // namespace

bool PlacesAreInRange(const TakeCall& call) {
  return OfTypes(call, [&](auto place, auto) {
    for (size_t k = 0; k < call.count; ++k) {
      if (PlaceAt<decltype(place)>(call, k) >= call.n) return false;
    }
    return true;
  });
}

Outcome TakeElements(const TakeCall& call, const void* x, void* taken, bool* wrong, Poll* poll) {
  const size_t rows = call.outer * call.count, elements = rows * call.inner;
  std::atomic<bool> failed = false;
  Outcome outcome = Outcome::kDone;
  if (elements > 0) {
    outcome = OfTypes(call, [&](auto place, auto element) {
      using T = decltype(element);
      const size_t bytes = 2 * sizeof(T) * call.inner + sizeof(place);
      const size_t block = std::max<size_t>(kElementChunkBytes / bytes, 1);
      const Partition parts = PartitionBy(rows, block);
      return RunTasks(parts.tasks, elements >= kParallelElements, poll, [&](size_t task) {
        if (!TakeRows<decltype(place)>(call, static_cast<const T*>(x), static_cast<T*>(taken),
                                       parts(task))) {
          failed.store(true, std::memory_order_relaxed);
        }
        return true;
      });
    });
  }
  *wrong = failed.load();
  return outcome;
}

Outcome PutElements(const TakeCall& call, const void* taken, void* x, bool* wrong, Poll* poll) {
  const KernelFpEnv fp_env(poll);
  const size_t terms = call.count * call.inner, size = call.n * call.inner;
  const size_t work = terms + size;
  if (call.outer * size == 0) return Outcome::kDone;
  // A task has the sums of some columns of some outer indices: nothing is added twice.
  const bool parallel = call.outer * work >= kParallelElements;
  const Partition rows = PartitionBy(call.outer, std::max<size_t>(kParallelElements / work, 1));
  const bool cut = parallel && rows.tasks < kEnoughTasks;
  const Partition columns = PartitionBy(call.inner, cut ? kColumns : call.inner);
  const size_t tasks = rows.tasks * columns.tasks;
  std::atomic<bool> failed = false;
  bool stopped = false;  // a single task, which looks at the clock itself
  const auto run = [&](auto place, auto element, size_t task) {
    using Place = decltype(place);
    using T = decltype(element);
    const Range outer = rows(task / columns.tasks), own = columns(task % columns.tasks);
    const size_t width = own.size();
    const bool in_place = sizeof(T) == sizeof(double) && width == call.inner;
    std::unique_ptr<double[]> aside;
    if (!in_place) {
      aside.reset(new (std::nothrow) double[call.n * width]);
      if (!aside) return false;
    }
    for (size_t row = outer.begin; row < outer.end; ++row) {
      const T* const from = static_cast<const T*>(taken) + row * terms;
      T* const to = static_cast<T*>(x) + row * size;
      double* const sums = in_place ? reinterpret_cast<double*>(to) : aside.get();
      std::fill_n(sums, call.n * width, 0.0);
      const size_t step = std::max<size_t>(kPolledElements / width, 1);
      for (size_t k = 0; k < call.count; k += step) {
        if (tasks == 1 && Interrupted(poll)) {
          stopped = true;
          return true;
        }
        const Range places{k, std::min(k + step, call.count)};
        if (!AddPlaces<Place>(call, from, own.begin, width, places, sums)) {
          failed.store(true, std::memory_order_relaxed);
          return true;
        }
      }
      for (size_t i = 0; !in_place && i < call.n; ++i) {
        T* const line = to + i * call.inner + own.begin;
        for (size_t j = 0; j < width; ++j) line[j] = static_cast<T>(sums[i * width + j]);
      }
    }
    return true;
  };
  const Outcome outcome = OfTypes(call, [&](auto place, auto element) {
    return RunTasks(tasks, parallel && tasks > 1, poll,
                    [&](size_t task) { return run(place, element, task); });
  });
  *wrong = failed.load();
  return stopped ? Outcome::kInterrupted : outcome;
}

}  // namespace pullback

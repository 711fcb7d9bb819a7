// The driver of the scans: tiles of slices, each slice in order.
#include <algorithm>
#include <cstddef>

#include "kernels/reductions.h"
#include "kernels/tasks.h"
#include "runtime/partition.h"

namespace pullback {
namespace {

// A task's elements.
constexpr size_t kTaskElements = 32768;

// Of so few slices each is a tile of its own: vectors of them would be mostly empty.
constexpr size_t kFewSlices = 3;

}  // namespace

Outcome Scan(const ReductionCall& call, Poll* poll) {
  const size_t item = ItemSize(call.dtype);
  const bool rows = call.inner == 1;
  const size_t groups = rows ? 1 : call.outer, columns = rows ? call.outer : call.inner;
  const size_t width = columns <= kFewSlices ? 1 : kScanColumns;
  const size_t tiles = CeilDiv(columns, width), units = groups * tiles;
  const Partition tasks = PartitionBy(units, std::max<size_t>(kTaskElements / (call.n * width), 1));
  const auto loop = call.op->scan[static_cast<size_t>(call.dtype)];
  const KernelFpEnv fp_env(poll);
  // Only the calling thread may poll, and only it runs what is not handed out.
  const bool parallel = units * call.n * width >= kParallelElements && tasks.tasks > 1;
  Outcome stopped = Outcome::kDone;
  const Outcome outcome = RunTasks(tasks.tasks, parallel, poll, [&](size_t task) {
    for (size_t unit = tasks(task).begin; unit < tasks(task).end; ++unit) {
      const size_t first = unit % tiles * width;
      const size_t at = ((unit / tiles) * call.n * call.inner + first * (rows ? call.n : 1)) * item;
      const ScanTile tile{static_cast<const char*>(call.x) + at,
                          call.v == nullptr ? nullptr : static_cast<const char*>(call.v) + at,
                          static_cast<char*>(call.out[0]) + at,
                          call.n,
                          std::min(width, columns - first),
                          static_cast<ptrdiff_t>(call.inner),
                          static_cast<ptrdiff_t>(rows ? call.n : 1),
                          call.parameter != 0};
      const Outcome own = loop(tile, parallel ? nullptr : poll);
      if (own == Outcome::kOutOfMemory) return false;
      if (own == Outcome::kInterrupted) stopped = own;  // here nothing runs in parallel
      if (own != Outcome::kDone) return true;
    }
    return true;
  });
  return outcome == Outcome::kDone ? stopped : outcome;
}

}  // namespace pullback

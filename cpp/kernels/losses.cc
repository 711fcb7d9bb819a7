// The one-pass loss kernels, compiled once per instruction set, and the fixed tree above them.
#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/losses.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <new>

#include "kernels/blocks.h"
#include "kernels/losses-inl.h"
#include "kernels/losses.h"
#include "ops/losses-inl.h"
#include "runtime/fp_env.h"
#include "runtime/partition.h"
#include "runtime/threads.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {

template <size_t... kRow>
constexpr std::array<LossKernels, sizeof...(kRow)> LossTableOf(std::index_sequence<kRow...>) {
  return {LossKernels{LossRow<kRow>::kName,
                      {SumLoss<LossRow<kRow>, float>, SumLoss<LossRow<kRow>, double>}}...};
}

std::span<const LossKernels> LossTable() {
  static constexpr auto kTable = LossTableOf(std::make_index_sequence<size_t{kLossRows}>());
  return kTable;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(LossTable);

std::span<const LossKernels> LossOps() { return HWY_DYNAMIC_DISPATCH(LossTable)(); }

namespace {

// Less X than this is summed before a parked worker would have woken.
constexpr size_t kParallelBytes = size_t{512} << 10;

void Accumulate(double* into, const double* from, size_t n) {
  for (size_t i = 0; i < n; ++i) into[i] += from[i];
}

// Sums of consecutive blocks, merged like the carries of a binary counter: rounding errors grow
// with the logarithm of the number of blocks, memory too.
class BlockTree {
 public:
  static size_t Levels(size_t blocks) { return static_cast<size_t>(std::bit_width(blocks)); }

  // `storage`: levels * width doubles. The total of all blocks ends in its first `width`.
  BlockTree(double* storage, size_t width) : storage_(storage), width_(width) {}

  // `write` fills a slot of `width` doubles with the next block.
  template <class Write>
  void Add(const Write& write) {
    double* const fresh = storage_ + Occupied() * width_;
    write(fresh);
    double* top = fresh;
    for (size_t carries = count_; carries & 1; carries >>= 1) {
      double* const below = top - width_;
      Accumulate(below, top, width_);
      top = below;
    }
    ++count_;
  }

  void Finish() {
    for (size_t level = Occupied(); level > 1; --level) {
      Accumulate(storage_ + (level - 2) * width_, storage_ + (level - 1) * width_, width_);
    }
  }

 private:
  // Complete subtrees stand side by side, the largest first: one per set bit of the count.
  size_t Occupied() const { return static_cast<size_t>(std::popcount(count_)); }

  double* storage_;
  size_t width_;
  size_t count_ = 0;
};

// What one call works with: the fixed slabs of rows and the scratch memory for their sums.
struct Plan {
  explicit Plan(const LinearModel& model)
      : padded(PadDoubles(model.cols)),
        width(kSumW + padded),
        row_bytes(model.cols * ItemSize(model.x_dtype)),
        slabs(RowPartition(model.rows, row_bytes)),
        levels(BlockTree::Levels(CeilDiv(slabs(0).size(), kLossBlock))) {}

  size_t Doubles() const { return padded + slabs.tasks * levels * width; }

  size_t padded, width, row_bytes;
  Partition slabs;
  size_t levels;
};

// Not inlined: the caller guards the floating-point environment.
HWY_NOINLINE bool SumSlabs(LossKernel kernel, const LinearModel& model, const Plan& plan,
                           double* scratch, MeanLossResult& result, Poll* poll) {
  const bool with_gradient = result.gw != nullptr;
  double* const w = scratch;
  for (size_t j = 0; j < model.cols; ++j) {
    w[j] = model.w_dtype == DType::kFloat64 ? static_cast<const double*>(model.w)[j]
                                            : double{static_cast<const float*>(model.w)[j]};
  }
  std::fill(w + model.cols, w + plan.padded, 0.0);

  const auto sums_of = [&](size_t slab) {
    return scratch + plan.padded + slab * plan.levels * plan.width;
  };
  const auto sum_slab = [&](size_t slab) {
    const auto [begin, end] = plan.slabs(slab);
    BlockTree tree(sums_of(slab), plan.width);
    for (size_t row = begin; row < end; row += kLossBlock) {
      tree.Add([&](double* sums) {
        std::fill(sums, sums + (with_gradient ? kSumW : plan.width), 0.0);
        kernel(model, w, with_gradient, row, std::min(row + kLossBlock, end), sums);
      });
    }
    tree.Finish();
  };
  const size_t tasks = plan.slabs.tasks;
  if (model.rows * plan.row_bytes < kParallelBytes) {
    for (size_t slab = 0; slab < tasks; ++slab) sum_slab(slab);
  } else if (!ParallelFor(tasks, sum_slab, poll)) {
    return false;
  }
  MergeTree(tasks,
            [&](size_t to, size_t from) { Accumulate(sums_of(to), sums_of(from), plan.width); });

  const double* const total = sums_of(0);
  const auto n = static_cast<double>(model.rows);
  result.loss = total[kSumLoss] / n;
  if (with_gradient) {
    for (size_t j = 0; j < model.cols; ++j) {
      Write(total[kSumW + j] / n, model.w_dtype, result.gw, j);
    }
    Write(total[kSumB] / n, result.gb_dtype, result.gb, 0);
  }
  return true;
}

}  // namespace

Outcome MeanLoss(LossKernel kernel, const LinearModel& model, MeanLossResult& result, Poll* poll) {
  const Plan plan(model);
  constexpr size_t kAlignment = kDoublePadding * sizeof(double);
  constexpr size_t kStackDoubles = 1024;
  alignas(kAlignment) double stack[kStackDoubles];
  std::unique_ptr<double[]> heap;
  void* scratch = stack;
  if (plan.Doubles() > kStackDoubles) {
    size_t bytes = plan.Doubles() * sizeof(double) + kAlignment;
    heap.reset(new (std::nothrow) double[bytes / sizeof(double)]);
    if (!heap) return Outcome::kOutOfMemory;
    scratch = heap.get();
    std::align(kAlignment, plan.Doubles() * sizeof(double), scratch, bytes);
  }
  const ScopedDefaultFpEnv fp_env;
  return SumSlabs(kernel, model, plan, static_cast<double*>(scratch), result, poll)
             ? Outcome::kDone
             : Outcome::kInterrupted;
}

}  // namespace pullback
#endif  // HWY_ONCE

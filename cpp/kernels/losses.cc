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

  // The kernel writes block number `count_` into the lowest free level and carries.
  template <class Write>
  void Add(const Write& write) {
    // A block that completes 2^k of them is the last carry: it lands on top of level k's slot.
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

}  // namespace

bool MeanLoss(LossKernel kernel, const LinearModel& model, double* loss, void* gw, double* gb,
              Poll* poll) {
  const ScopedDefaultFpEnv fp_env;
  const size_t padded = (model.cols / kLossPadding + 1) * kLossPadding;
  const size_t width = kSumW + padded;
  const size_t row_bytes = model.cols * ItemSize(model.x_dtype);
  const Partition slabs = RowPartition(model.rows, row_bytes);
  const size_t slab_rows = slabs(0).size();
  const size_t levels = BlockTree::Levels((slab_rows + kLossBlock - 1) / kLossBlock) + 1;
  const bool with_gradient = gw != nullptr;

  constexpr size_t kStackDoubles = 1024;
  alignas(kLossPadding * sizeof(double)) double stack[kStackDoubles];
  std::unique_ptr<double[]> heap;
  const size_t needed = padded + slabs.tasks * levels * width;
  void* scratch_start = stack;
  if (needed > kStackDoubles) {
    size_t bytes = (needed + kLossPadding) * sizeof(double);
    heap = std::make_unique_for_overwrite<double[]>(needed + kLossPadding);
    scratch_start = heap.get();
    std::align(kLossPadding * sizeof(double), needed * sizeof(double), scratch_start, bytes);
  }
  double* const w = static_cast<double*>(scratch_start);
  double* const scratch = w + padded;

  for (size_t j = 0; j < model.cols; ++j) {
    w[j] = model.w_dtype == DType::kFloat64 ? static_cast<const double*>(model.w)[j]
                                            : double{static_cast<const float*>(model.w)[j]};
  }
  std::fill(w + model.cols, w + padded, 0.0);

  const auto sum_slab = [&](size_t slab) {
    const auto [begin, end] = slabs(slab);
    BlockTree tree(scratch + slab * levels * width, width);
    for (size_t row = begin; row < end; row += kLossBlock) {
      const size_t stop = std::min(row + kLossBlock, end);
      tree.Add([&](double* sums) {
        if (!with_gradient) std::fill(sums, sums + width, 0.0);
        kernel(model, w, with_gradient, row, stop, sums);
      });
    }
    tree.Finish();
  };
  if (model.rows * row_bytes < kParallelBytes) {
    for (size_t slab = 0; slab < slabs.tasks; ++slab) sum_slab(slab);
  } else if (!ParallelFor(slabs.tasks, sum_slab, poll)) {
    return false;
  }

  for (size_t step = 1; step < slabs.tasks; step *= 2) {
    for (size_t slab = 0; slab + step < slabs.tasks; slab += 2 * step) {
      Accumulate(scratch + slab * levels * width, scratch + (slab + step) * levels * width, width);
    }
  }
  const auto n = static_cast<double>(model.rows);
  if (with_gradient) {
    for (size_t j = 0; j < model.cols; ++j) {
      const double mean = scratch[kSumW + j] / n;
      if (model.w_dtype == DType::kFloat64) {
        static_cast<double*>(gw)[j] = mean;
      } else {
        static_cast<float*>(gw)[j] = static_cast<float>(mean);
      }
    }
    *gb = scratch[kSumB] / n;
  }
  *loss = scratch[kSumLoss] / n;
  return true;
}

}  // namespace pullback
#endif  // HWY_ONCE

#include "kernels/broadcast.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "kernels/sums.h"
#include "kernels/tasks.h"
#include "runtime/partition.h"
#include "runtime/scratch.h"

namespace pullback {
namespace {

// Operands that the kernel cannot read or write where they lie pass through these many elements of
// L1 at a time.
constexpr size_t kBlock = 512;
// Rows shorter than this lie across in a block, so that its loops are long: 2.3 ns an element for a
// sum along 2 columns, 15 ns with a call for each row. At 16 columns either takes 2 ns.
constexpr size_t kShortRow = 12;

// A slab is what one task does; one that sums has sums of its own to be added to the others' later.
constexpr size_t kMaxSlabs = 64;
constexpr size_t kEnoughSlabs = 16;
// Longer slabs are done in rounds, so that Ctrl-C need not wait for their end.
constexpr size_t kRoundElements = size_t{1} << 22;
// Of a slab along an inner axis, so that memory is still read in long runs.
constexpr size_t kMinRun = 4096;
// All slabs' sums together against the number of terms.
constexpr size_t kTermsPerSum = 8;

constexpr size_t kStackBytes = size_t{2} << 10;

constexpr ptrdiff_t kSumSize = sizeof(double);
constexpr double kNothing = 0.0;  // sums begin here, as np.sum's do: those of -0 alone are +0

// The call after its axes have been sorted and merged, outermost first.
struct Plan {
  const ArrayCall& call;
  size_t item;
  int inputs, operands;
  int axes = 0;
  std::array<size_t, kMaxAxes> extent;
  // Of a summed output: the strides of its float64 sums.
  std::array<std::array<ptrdiff_t, kMaxAxes>, kMaxOperands> stride;
  std::array<bool, kMaxOperands> summed{};
  std::array<size_t, kMaxOperands> sums{};  // how many, of a summed output
  std::array<Load, kMaxOperands> load{};
  std::array<bool, kMaxOperands> native{};  // stored as the kernel reads it
  // Of an input that is one short run over and over: its length and its stride. Blocks read it from
  // a copy that is longer by a block, at any of its elements.
  std::array<size_t, kMaxOperands> run{};
  std::array<ptrdiff_t, kMaxOperands> run_stride;
  std::array<const char*, kMaxOperands> copy;
  size_t total = 1;
  std::array<bool, kMaxOperands> stream{};
  bool streams = false;  // any of them

  // Along which axis it is cut, and in what.
  int cut = 0;
  Partition slabs{};
  size_t rounds = 1;
  std::array<bool, kMaxOperands> shared{};  // several slabs add to the same sums

  explicit Plan(const ArrayCall& array_call)
      : call(array_call),
        item(ItemSize(array_call.dtype)),
        inputs(array_call.shape.nin),
        operands(array_call.shape.nin + array_call.shape.nout) {
    SortAxes();
    for (int k = 0; k < operands; ++k) {
      const auto at = static_cast<size_t>(k);
      if (k < inputs) {
        load[at] = LoadOf(call.operand[k].storage, call.dtype);
        native[at] = call.operand[k].storage == StorageOf(call.dtype);
      } else if (call.operand[k].data != nullptr) {
        FindSums(at);
      }
    }
    FindRuns();
    MergeAxes();
    Cut();
    Stream();
  }

  // Where the first and the last element in memory begin.
  std::pair<const char*, const char*> Ends(int k) const {
    std::pair<const char*, const char*> ends{call.operand[k].data, call.operand[k].data};
    for (int a = 0; a < call.axes; ++a) {
      const ptrdiff_t step = call.operand[k].stride[a];
      (step < 0 ? ends.first : ends.second) += static_cast<ptrdiff_t>(call.extent[a] - 1) * step;
    }
    return ends;
  }

  void Stream() {
    if (total * item * static_cast<size_t>(operands - inputs) < kStreamBytes) return;
    size_t written = 0;
    for (int k = inputs; k < operands; ++k) {
      const auto at = static_cast<size_t>(k);
      stream[at] = call.operand[k].data != nullptr && !summed[at];
      const auto [first, last] = Ends(k);
      for (int i = 0; i < inputs; ++i) {
        const auto [begin, end] = Ends(i);
        stream[at] = stream[at] && (last < begin || end < first);
      }
      if (stream[at]) written += total * item;
    }
    streams = written >= kStreamBytes;
    if (!streams) stream.fill(false);
  }

  void SortAxes() {
    std::array<int, kMaxAxes> order;
    for (int a = 0; a < call.axes; ++a) {
      if (call.extent[a] > 1) order[static_cast<size_t>(axes++)] = a;
    }
    const auto reach = [&](int axis) {
      size_t sum = 0;
      for (int k = 0; k < operands; ++k) {
        sum += static_cast<size_t>(std::abs(call.operand[k].stride[axis]));
      }
      return sum;
    };
    // std::stable_sort would allocate.
    std::sort(order.begin(), order.begin() + axes, [&](int a, int b) {
      const size_t reach_a = reach(a), reach_b = reach(b);
      return reach_a != reach_b ? reach_a > reach_b : a < b;
    });
    for (size_t a = 0; a < static_cast<size_t>(axes); ++a) {
      extent[a] = call.extent[order[a]];
      total *= extent[a];
      for (size_t k = 0; k < static_cast<size_t>(operands); ++k) {
        stride[k][a] = call.operand[k].stride[order[a]];
      }
    }
    if (axes > 0) return;
    axes = 1;
    extent[0] = 1;
    for (auto& steps : stride) steps[0] = 0;
  }

  void FindSums(size_t k) {
    size_t kept = 1;
    for (size_t a = 0; a < static_cast<size_t>(axes); ++a) {
      if (stride[k][a] != 0) {
        kept *= extent[a];
      } else if (extent[a] > 1) {
        summed[k] = true;
      }
    }
    if (!summed[k]) return;
    sums[k] = kept;
    for (size_t a = 0; a < static_cast<size_t>(axes); ++a) {
      stride[k][a] = stride[k][a] / static_cast<ptrdiff_t>(item) * kSumSize;
    }
  }

  // Where all else is one axis, short runs do not cut it up: (33333, 3) x (3,) took 95 us, now 12.
  void FindRuns() {
    if (axes == 1) return;
    std::array<size_t, kMaxOperands> found{};
    for (size_t k = 0; k < static_cast<size_t>(operands); ++k) {
      auto a = static_cast<size_t>(axes);
      const ptrdiff_t step = stride[k][a - 1];
      size_t length = 1;
      while (a > 0 && stride[k][a - 1] == step * static_cast<ptrdiff_t>(length)) {
        length *= extent[--a];
      }
      if (summed[k]) return;
      if (a == 0) continue;
      if (k >= static_cast<size_t>(inputs) || length > kBlock || step == 0) return;
      while (a > 0) {
        if (stride[k][--a] != 0) return;
      }
      found[k] = length;
    }
    const auto last = static_cast<size_t>(axes - 1);
    for (size_t k = 0; k < static_cast<size_t>(operands); ++k) {
      run_stride[k] = stride[k][0] = stride[k][last];
    }
    run = found;
    extent[0] = total;
    axes = 1;
  }

  // Two neighbouring axes are one where every operand steps alike.
  void MergeAxes() {
    int last = 0;
    for (int a = 1; a < axes; ++a) {
      const auto from = static_cast<size_t>(a);
      const auto to = static_cast<size_t>(last);
      bool alike = true;
      for (size_t k = 0; k < static_cast<size_t>(operands); ++k) {
        alike = alike && stride[k][to] == stride[k][from] * static_cast<ptrdiff_t>(extent[from]);
      }
      const size_t into = alike ? to : static_cast<size_t>(++last);
      extent[into] = alike ? extent[to] * extent[from] : extent[from];
      for (auto& steps : stride) steps[into] = steps[from];
    }
    axes = last + 1;
  }

  // The outermost axis, unless that makes too few slabs, or too many sums, and an inner axis that
  // all sums keep is long.
  void Cut() {
    const size_t bytes = item * static_cast<size_t>(operands);
    const size_t wanted = ElementPartition(total, bytes).tasks;
    const auto slabs_along = [&](int axis) {
      const auto a = static_cast<size_t>(axis);
      size_t copies = 0;
      for (size_t k = 0; k < static_cast<size_t>(operands); ++k) {
        if (summed[k] && stride[k][a] == 0) copies += sums[k];
      }
      size_t count = std::min(extent[a], wanted);
      if (copies != 0) {
        count = std::min({count, kMaxSlabs, std::max<size_t>(1, total / (copies * kTermsPerSum))});
      }
      return count;
    };
    size_t count = slabs_along(0);
    if (count < std::min(wanted, kEnoughSlabs)) {
      for (int axis = 1; axis < axes; ++axis) {
        const auto a = static_cast<size_t>(axis);
        size_t run = 1;  // elements of one slab that lie side by side
        for (size_t inner = a; inner < static_cast<size_t>(axes); ++inner) run *= extent[inner];
        const size_t more = std::min(slabs_along(axis), std::max<size_t>(1, run / kMinRun));
        if (more > count) {
          count = more;
          cut = axis;
        }
      }
    }
    const auto at = static_cast<size_t>(cut);
    slabs = PartitionBy(extent[at], CeilDiv(extent[at], count));
    rounds = std::clamp<size_t>(total / slabs.tasks / kRoundElements, 1, slabs.block);
    for (size_t k = 0; k < static_cast<size_t>(operands); ++k) {
      shared[k] = summed[k] && stride[k][at] == 0 && slabs.tasks > 1;
    }
  }
};

// A range of the cut axis: an odometer over the outer axes, blocks of the inner ones.
template <typename T>
class Slab {
 public:
  // `sums` are where the summed outputs of this slab begin, whole arrays.
  Slab(const Plan& plan, Range range, const std::array<double*, kMaxOperands>& sums)
      : plan_(plan),
        first_(range.begin),
        last_(static_cast<size_t>(plan.axes) - 1),
        extent_(plan.extent) {
    const auto cut = static_cast<size_t>(plan.cut);
    extent_[cut] = range.size();
    for (size_t k = 0; k < static_cast<size_t>(plan.operands); ++k) {
      char* const data =
          plan.summed[k] ? reinterpret_cast<char*>(sums[k]) : plan.call.operand[k].data;
      base_[k] = data == nullptr ? nullptr
                                 : data + static_cast<ptrdiff_t>(range.begin) * plan.stride[k][cut];
    }
    inner_[last_] = 1;
    for (size_t a = last_; a > 0; --a) inner_[a - 1] = inner_[a] * extent_[a];
    while (split_ < last_ && inner_[split_] > kBlock) ++split_;
    const auto inputs = static_cast<size_t>(plan.inputs);
    for (size_t k = 0; k < static_cast<size_t>(plan.operands); ++k) {
      left_out_[k] = k < inputs && base_[k] == nullptr;
      direct_[k] = left_out_[k] || ((k >= inputs || plan.native[k]) && !plan.summed[k] &&
                                    plan.run[k] == 0 && base_[k] != nullptr && Contiguous(k));
      constant_[k] = !direct_[k];
      for (size_t a = 0; a <= split_; ++a) {
        constant_[k] = constant_[k] && (plan.stride[k][a] == 0 || extent_[a] == 1);
      }
      all_direct_ = all_direct_ && direct_[k];
    }
    chunk_ = all_direct_ ? extent_[split_] : std::max<size_t>(1, kBlock / inner_[split_]);
    across_ = !all_direct_ && split_ < last_ && extent_[last_] < kShortRow &&
              std::min(chunk_, extent_[split_]) > extent_[last_];
    if (across_) direct_.fill(false);
  }

  void Run() {
    std::array<size_t, kMaxAxes> index{};
    for (;;) {
      for (size_t begin = 0; begin < extent_[split_]; begin += chunk_) {
        RunBlock(begin, std::min(chunk_, extent_[split_] - begin));
      }
      size_t a = split_;
      for (;;) {
        if (a == 0) return;
        --a;
        const bool carry = ++index[a] == extent_[a];
        const ptrdiff_t steps = carry ? 1 - static_cast<ptrdiff_t>(extent_[a]) : 1;
        for (size_t k = 0; k < static_cast<size_t>(plan_.operands); ++k) {
          if (base_[k] != nullptr) base_[k] += steps * plan_.stride[k][a];
        }
        if (!carry) break;
        index[a] = 0;
      }
    }
  }

 private:
  // Within a block.
  bool Contiguous(size_t k) const {
    auto step = static_cast<ptrdiff_t>(sizeof(T));
    for (size_t a = last_ + 1; a-- > split_;) {
      if (plan_.stride[k][a] != step) return false;
      step *= static_cast<ptrdiff_t>(extent_[a]);
    }
    return true;
  }

  char* At(size_t k, size_t begin) const {
    return base_[k] == nullptr ? nullptr
                               : base_[k] + static_cast<ptrdiff_t>(begin) * plan_.stride[k][split_];
  }

  // The axes of a block from the slowest to the fastest in the buffers: the slab's own order, or
  // the first one last.
  size_t AxisOf(size_t level) const {
    if (!across_) return split_ + level;
    return level == last_ - split_ ? split_ : split_ + level + 1;
  }

  void ShapeBlock(size_t count) {
    if (count == count_) return;
    count_ = count;
    filled_ = false;
    size_t behind = 1;
    for (size_t level = last_ - split_ + 1; level-- > 0;) {
      const size_t axis = AxisOf(level);
      level_[level] = {axis == split_ ? count : extent_[axis], behind};
      behind *= level_[level].extent;
    }
  }

  void RunBlock(size_t begin, size_t count) {
    ShapeBlock(count);
    const auto inputs = static_cast<size_t>(plan_.inputs);
    const auto operands = static_cast<size_t>(plan_.operands);
    const void* in[kMaxOperands];
    void* out[kMaxOperands];
    for (size_t k = 0; k < inputs; ++k) {
      if (left_out_[k]) {
        in[k] = nullptr;
        continue;
      }
      if (plan_.run[k] != 0) {
        in[k] = plan_.copy[k] + (first_ + begin) % plan_.run[k] * sizeof(T);
        continue;
      }
      in[k] = direct_[k] ? static_cast<const void*>(At(k, begin)) : buffer_[k];
      if (direct_[k] || (constant_[k] && filled_)) continue;
      Gather(k, 0, At(k, begin), buffer_[k]);
    }
    filled_ = true;
    for (size_t k = inputs; k < operands; ++k) {
      out[k - inputs] = direct_[k] ? static_cast<void*>(At(k, begin)) : buffer_[k];
    }
    RunKernel(in, out, count * inner_[split_]);
    for (size_t k = inputs; k < operands; ++k) {
      char* const to = At(k, begin);
      if (direct_[k] || to == nullptr) continue;
      if (plan_.summed[k]) {
        Accumulate(k, 0, buffer_[k], to);
      } else {
        Scatter(k, 0, buffer_[k], to);
      }
    }
  }

  // Streams what lies in step with the first output that can be streamed; the elements ahead of its
  // alignment go on their own. Not in blocks, where it never paid.
  void RunKernel(const void** in, void** out, size_t n) const {
    const auto inputs = static_cast<size_t>(plan_.inputs);
    const auto operands = static_cast<size_t>(plan_.operands);
    unsigned streamed = 0;
    size_t ahead = 0;
    for (size_t k = inputs; k < operands; ++k) {
      if (!all_direct_ || !plan_.stream[k]) continue;
      const size_t bytes = BytesToStream(out[k - inputs]);
      if (streamed == 0) ahead = bytes;
      if (bytes == ahead && bytes % sizeof(T) == 0) streamed |= 1u << (k - inputs);
    }
    const size_t head = ahead / sizeof(T);
    if (streamed == 0 || n <= head) {
      plan_.call.kernel(in, out, n, 0);
      return;
    }
    if (head > 0) {
      plan_.call.kernel(in, out, head, 0);
      for (size_t k = 0; k < inputs; ++k) {
        if (!left_out_[k]) in[k] = static_cast<const T*>(in[k]) + head;
      }
      for (size_t k = inputs; k < operands; ++k) {
        out[k - inputs] = static_cast<T*>(out[k - inputs]) + head;
      }
    }
    plan_.call.kernel(in, out, n - head, streamed);
  }

  void Gather(size_t k, size_t level, const char* from, T* to) const {
    const ptrdiff_t step = plan_.stride[k][AxisOf(level)];
    const auto [count, inner] = level_[level];
    if (level == last_ - split_) {
      plan_.load[k](from, step, to, count);
      return;
    }
    for (size_t i = 0; i < count; ++i, from += step) {
      if (i > 0 && step == 0) {
        std::memcpy(to + i * inner, to, inner * sizeof(T));
      } else {
        Gather(k, level + 1, from, to + i * inner);
      }
    }
  }

  void Scatter(size_t k, size_t level, const T* from, char* to) const {
    const ptrdiff_t step = plan_.stride[k][AxisOf(level)];
    const auto [count, inner] = level_[level];
    if (level == last_ - split_) {
#pragma GCC unroll 4
      for (size_t i = 0; i < count; ++i, to += step) std::memcpy(to, from + i, sizeof(T));
      return;
    }
    for (size_t i = 0; i < count; ++i, from += inner, to += step) Scatter(k, level + 1, from, to);
  }

  void Accumulate(size_t k, size_t level, const T* from, char* to) const {
    const ptrdiff_t step = plan_.stride[k][AxisOf(level)];
    const auto [count, inner] = level_[level];
    if (level < last_ - split_) {
      for (size_t i = 0; i < count; ++i, from += inner, to += step) {
        Accumulate(k, level + 1, from, to);
      }
      return;
    }
    auto* const sums = reinterpret_cast<double*>(to);
    if (step == 0) {
      *sums += sums_.sum[kType](from, count);
    } else if (step == kSumSize) {
      sums_.add[kType](from, sums, count);
    } else {
      for (size_t i = 0; i < count; ++i, to += step) {
        *reinterpret_cast<double*>(to) += static_cast<double>(from[i]);
      }
    }
  }

  static constexpr size_t kType = sizeof(T) == sizeof(float) ? 0 : 1;

  const Plan& plan_;
  const SumKernels& sums_ = Sums();
  const size_t first_;  // along the cut axis
  const size_t last_;
  std::array<size_t, kMaxAxes> extent_;
  std::array<size_t, kMaxAxes> inner_;  // elements behind an axis
  size_t split_ = 0;                    // blocks are parts of this axis and all of those behind it
  size_t chunk_;
  std::array<char*, kMaxOperands> base_;
  std::array<bool, kMaxOperands> direct_, constant_, left_out_;
  bool across_;
  struct Level {
    size_t extent, inner;  // inner: elements behind it
  };
  std::array<Level, kMaxAxes> level_;  // of the current block
  size_t count_ = 0;
  bool all_direct_ = true;
  bool filled_ = false;
  alignas(64) T buffer_[kMaxOperands][kBlock];
};

template <typename T>
void Deliver(const double* sums, size_t n, size_t copies, T* out) {
  for (size_t i = 0; i < n; ++i) {
    double sum = sums[i];
    for (size_t copy = 1; copy < copies; ++copy) sum += sums[copy * n + i];
    out[i] = static_cast<T>(sum);
  }
}

}  // namespace

Outcome RunArrays(const ArrayCall& call, Poll* poll) {
  const KernelFpEnv fp_env(poll);
  Plan plan(call);
  const auto operands = static_cast<size_t>(plan.operands);

  // Sums that are not their results' own memory.
  const auto aside = [&](size_t k) {
    return plan.summed[k] && (call.dtype == DType::kFloat32 || plan.shared[k]);
  };
  const auto copies = [&](size_t k) { return plan.shared[k] ? plan.slabs.tasks : 1; };
  using CallScratch = Scratch<kStackBytes>;
  const size_t block = std::min(kBlock, plan.total);
  const auto copied = [&](size_t k) { return (plan.run[k] + block) * plan.item; };
  size_t bytes = 0;
  for (size_t k = 0; k < operands; ++k) {
    if (aside(k)) bytes += CallScratch::Bytes<double>(plan.sums[k] * copies(k));
    if (plan.run[k] != 0) bytes += CallScratch::Bytes(copied(k));
  }
  CallScratch scratch(bytes);
  if (!scratch) return Outcome::kOutOfMemory;
  std::array<double*, kMaxOperands> sums{};
  for (size_t k = 0; k < operands; ++k) {
    if (plan.run[k] != 0) {
      char* const copy = scratch.Take(copied(k));
      plan.load[k](call.operand[k].data, plan.run_stride[k], copy, plan.run[k]);
      RepeatRun(copy, plan.run[k] * plan.item, copied(k));
      plan.copy[k] = copy;
    }
    if (!plan.summed[k]) continue;
    const size_t count = plan.sums[k] * copies(k);
    sums[k] =
        aside(k) ? scratch.Take<double>(count) : reinterpret_cast<double*>(call.operand[k].data);
    std::fill_n(sums[k], count, kNothing);
  }

  const auto run = [&](size_t task, size_t round) {
    std::array<double*, kMaxOperands> own = sums;
    for (size_t k = 0; k < operands; ++k) {
      if (plan.shared[k]) own[k] += task * plan.sums[k];
    }
    const Range slab = plan.slabs(task);
    const Partition parts = PartitionBy(slab.size(), CeilDiv(plan.slabs.block, plan.rounds));
    if (round >= parts.tasks) return true;
    const Range part = parts(round);
    const Range range{slab.begin + part.begin, slab.begin + part.end};
    if (call.dtype == DType::kFloat32) {
      Slab<float>(plan, range, own).Run();
    } else {
      Slab<double>(plan, range, own).Run();
    }
    if (plan.streams) FlushStreams();
    return true;
  };
  Outcome outcome = Outcome::kDone;
  if (plan.total < kParallelElements || call.in_order) {
    outcome = RunTasks(plan.slabs.tasks * plan.rounds, false, poll,
                       [&](size_t task) { return run(task / plan.rounds, task % plan.rounds); });
  } else {
    for (size_t round = 0; round < plan.rounds && outcome == Outcome::kDone; ++round) {
      outcome =
          RunTasks(plan.slabs.tasks, true, poll, [&](size_t task) { return run(task, round); });
    }
  }
  if (outcome != Outcome::kDone) return outcome;

  for (size_t k = 0; k < operands; ++k) {
    if (!aside(k)) continue;
    char* const out = call.operand[k].data;
    if (call.dtype == DType::kFloat32) {
      Deliver(sums[k], plan.sums[k], copies(k), reinterpret_cast<float*>(out));
    } else {
      Deliver(sums[k], plan.sums[k], copies(k), reinterpret_cast<double*>(out));
    }
  }
  return Outcome::kDone;
}

}  // namespace pullback

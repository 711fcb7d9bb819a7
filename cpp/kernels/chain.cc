#include "kernels/chain.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "kernels/convert.h"
#include "kernels/tasks.h"
#include "runtime/partition.h"
#include "runtime/scratch.h"

namespace pullback {
namespace {

// Everything that a block goes through lies in L1, beside what streams by.
constexpr size_t kScratchBytes = size_t{32} << 10;
constexpr size_t kStackBytes = size_t{8} << 10;
constexpr size_t kMinBlock = 512;
constexpr size_t kMaxBlock = 2048;
// A chunk of the fixed partition is worth handing out.
constexpr size_t kMinChunkBlocks = 4;

const OpKernels& Op(OpPlace place) { return Ops(place.shard)[place.row]; }

// A step's kernels for the active target, and how a block goes through it.
struct Stage {
  ElementwiseKernel value, both, vjp, jvp;
  int arity;
  Place place;
  // A masked op's vjp depends on its derivative's zeros, and where the value meets itself two terms
  // do: such a stage keeps its input and calls its vjp. Others keep their derivative, so that what
  // value and derivative share is computed once.
  bool keeps_input;
  BoundOperand bound;
  bool in_place;  // bound: read where it lies, whatever the block
};

struct Plan {
  const ChainCall& call;
  size_t item;
  size_t count;  // of stages
  std::array<Stage, kMaxChainSteps> stage;
  ElementwiseKernel multiply, add;
  size_t buffers;  // of `block` elements, for one task
  size_t stride;   // bytes from one to the next
  size_t block;
  Partition chunks;
  bool streams;
  using Copies = Scratch<size_t{2} << 10>;
  std::optional<Copies> repeated;  // bound operands of a short period, for a block and a period

  explicit Plan(const ChainCall& chain)
      : call(chain), item(ItemSize(chain.dtype)), count(chain.steps.size()) {
    const auto type = static_cast<size_t>(call.dtype);
    const auto kernel = [&](const OpKernels& op, Method method) {
      return op.kernel[static_cast<size_t>(method)][type];
    };
    static const OpPlace multiply_at = *PlaceOfOp("multiply"), add_at = *PlaceOfOp("add");
    multiply = kernel(Op(multiply_at), Method::kValue);
    add = kernel(Op(add_at), Method::kValue);
    for (size_t i = 0; i < count; ++i) {
      const ChainStep& step = call.steps[i];
      const OpKernels& op = Op(step.op);
      stage[i] = {kernel(op, Method::kValue),
                  kernel(op, Method::kValueAndDerivative),
                  kernel(op, Method::kVjp),
                  kernel(op, Method::kJvp),
                  op.arity,
                  step.place,
                  op.masked || step.place == Place::kBoth,
                  step.bound,
                  true};
    }
  }

  bool Backward() const { return call.cotangent != nullptr; }
  bool Forward() const { return call.tangent != nullptr; }

  // Whether blocks of the operand beside stage i may have to be put together.
  bool Gathers(size_t i) const {
    return stage[i].bound.period > 1 && stage[i].bound.period < call.n;
  }

  // False: out of memory.
  bool Prepare() {
    // The running value and its cotangent or tangent, what binary ops' kernels compute in vain,
    // what every stage keeps, and bound operands that are not read in place.
    buffers = 3 + (Backward() ? count : Forward() ? 1 : 0);
    for (size_t i = 0; i < count; ++i) buffers += Gathers(i);
    const size_t fitting = kScratchBytes / (item * buffers) / kElementBlock * kElementBlock;
    block = std::min(std::clamp(fitting, kMinBlock, kMaxBlock), RoundUp(call.n, kElementBlock));
    stride = block * item;
    const size_t arrays =
        1 + (Backward() || Forward()) + (call.value != nullptr) + (call.image != nullptr);
    const size_t chunk = ElementPartition(call.n, arrays * item * count).block;
    chunks = PartitionBy(call.n, RoundUp(std::max(chunk, kMinChunkBlocks * block), block));
    const size_t written = (call.value != nullptr) + (call.image != nullptr);
    streams = written * call.n * item >= kStreamBytes;

    size_t total = 0;
    const auto is_short = [&](const BoundOperand& bound) {
      return bound.period > 0 && bound.repeat == 1 && bound.period < block;
    };
    for (size_t i = 0; i < count; ++i) {
      const BoundOperand& bound = stage[i].bound;
      stage[i].in_place = is_short(bound) || bound.period >= call.n;
      if (is_short(bound)) total += Copies::Bytes(bound.period * item + stride);
    }
    if (total == 0) return true;
    repeated.emplace(total);
    if (!*repeated) return false;
    for (size_t i = 0; i < count; ++i) {
      BoundOperand& bound = stage[i].bound;
      if (!is_short(bound)) continue;
      const size_t run = bound.period * item, bytes = run + stride;
      char* const copy = repeated->Take(bytes);
      std::memcpy(copy, bound.data, run);
      RepeatRun(copy, run, bytes);
      bound.data = copy;
    }
    return true;
  }
};

// A chunk, block by block.
template <typename T>
class Walk {
 public:
  Walk(const Plan& plan, char* scratch) : plan_(plan), scratch_(scratch) {
    running_ = Buffer();
    moving_ = Buffer();
    dropped_ = Buffer();
    if (plan.Backward()) {
      for (size_t i = 0; i < plan.count; ++i) kept_[i] = Buffer();
    } else if (plan.Forward()) {
      kept_[0] = Buffer();
    }
    for (size_t i = 0; i < plan.count; ++i) {
      if (plan.Gathers(i)) gathered_[i] = Buffer();
    }
  }

  void Run(Range range) {
    size_t begin = range.begin;
    // A short first block, so that the others' results lie aligned.
    const void* const out = plan_.call.image != nullptr ? plan_.call.image : plan_.call.value;
    const size_t head = BytesToStream(static_cast<const T*>(out) + begin) / sizeof(T);
    if (plan_.streams && head > 0 && head < range.size()) {
      Block(begin, head);
      begin += head;
    }
    for (; begin < range.end; begin += plan_.block) {
      Block(begin, std::min(plan_.block, range.end - begin));
    }
  }

 private:
  T* Buffer() {
    T* const buffer = reinterpret_cast<T*>(scratch_);
    scratch_ += plan_.stride;
    return buffer;
  }

  // The bound operand's elements beside the running value's, from `begin` on.
  const T* Bound(size_t i, size_t begin, size_t n) {
    const Stage& stage = plan_.stage[i];
    const auto [data, period, repeat] = stage.bound;
    const T* const from = static_cast<const T*>(data);
    if (period == 0) return nullptr;
    if (stage.in_place) return from + begin % period;
    T* const to = gathered_[i];
    for (size_t done = 0; done < n;) {
      const size_t at = begin + done;
      const size_t element = at / repeat % period;
      if (repeat > 1) {
        const size_t run = std::min(n - done, repeat - at % repeat);
        Fill(to + done, run, from[element]);
        done += run;
      } else {
        const size_t run = std::min(n - done, period - element);
        if (run == n) return from + element;
        std::memcpy(to + done, from + element, run * sizeof(T));
        done += run;
      }
    }
    return to;
  }

  struct Inputs {
    const void* in[kMaxOperands];
    int count;
  };

  // The primals of stage i.
  Inputs Primals(size_t i, const T* v) const {
    const Stage& stage = plan_.stage[i];
    switch (stage.place) {
      case Place::kSecond:
        return {{bound_[i], v}, 2};
      case Place::kBoth:
        return {{v, v}, 2};
      case Place::kFirst:
        break;
    }
    return {{v, bound_[i]}, stage.arity};
  }

  // Where results go.
  struct Target {
    T* data;
    unsigned streamed = 0;  // 1: past the caches
  };

  Target TargetAt(void* out, size_t begin) const {
    if (out == nullptr) return {nullptr};
    T* const data = static_cast<T*>(out) + begin;
    return {data, plan_.streams && BytesToStream(data) == 0};
  }

  void Value(size_t i, const T* v, Target y) const {
    const Inputs inputs = Primals(i, v);
    void* const out[] = {y.data};
    plan_.stage[i].value(inputs.in, out, n_, y.streamed);
  }

  void Both(size_t i, const T* v, Target y, T* slope) const {
    const Inputs inputs = Primals(i, v);
    void* out[] = {y.data, slope, dropped_};
    if (plan_.stage[i].place == Place::kSecond) std::swap(out[1], out[2]);
    plan_.stage[i].both(inputs.in, out, n_, y.streamed);
  }

  // to = fl(g * derivative), or the sum of two such terms.
  void Vjp(size_t i, const T* v, const T* g, Target to) const {
    const Stage& stage = plan_.stage[i];
    Inputs inputs = Primals(i, v);
    inputs.in[inputs.count] = g;
    if (stage.place == Place::kBoth) {
      void* const out[] = {moving_, dropped_};
      stage.vjp(inputs.in, out, n_, 0);
      Combine(plan_.add, moving_, dropped_, to);
    } else if (stage.place == Place::kSecond) {
      void* const out[] = {dropped_, to.data};
      stage.vjp(inputs.in, out, n_, to.streamed << 1);
    } else {
      void* const out[] = {to.data, dropped_};
      stage.vjp(inputs.in, out, n_, to.streamed);
    }
  }

  void Jvp(size_t i, const T* v, const T* t, Target to) const {
    if (plan_.stage[i].place != Place::kBoth) {  // a diagonal Jacobian is its own transpose
      Vjp(i, v, t, to);
      return;
    }
    const void* const in[] = {v, v, t, t};
    void* const out[] = {to.data};
    plan_.stage[i].jvp(in, out, n_, to.streamed);
  }

  void Combine(ElementwiseKernel kernel, const T* a, const T* b, Target to) const {
    const void* const in[] = {a, b};
    void* const out[] = {to.data};
    kernel(in, out, n_, to.streamed);
  }

  void Block(size_t begin, size_t n) {
    n_ = n;
    const ChainCall& call = plan_.call;
    const T* const x = static_cast<const T*>(call.x) + begin;
    const Target value = TargetAt(call.value, begin), image = TargetAt(call.image, begin);
    for (size_t i = 0; i < plan_.count; ++i) bound_[i] = Bound(i, begin, n);
    if (plan_.Backward()) {
      Pull(x, static_cast<const T*>(call.cotangent) + begin, value, image);
    } else if (plan_.Forward()) {
      Push(x, static_cast<const T*>(call.tangent) + begin, value, image);
    } else {
      Values(x, value);
    }
  }

  void Values(const T* v, Target value) const {
    const size_t last = plan_.count - 1;
    for (size_t i = 0; i < last; ++i) {
      Value(i, v, {running_});
      v = running_;
    }
    Value(last, v, value);
  }

  void Pull(const T* v, const T* g, Target value, Target image) const {
    const size_t last = plan_.count - 1;
    std::array<const T*, kMaxChainSteps> input{};  // of stages that keep it
    for (size_t i = 0; i <= last; ++i) {
      input[i] = v;
      if (i == last && value.data == nullptr) break;
      // What the next stage keeps must outlast it.
      Target y = value;
      if (i < last) y = {plan_.stage[i + 1].keeps_input ? kept_[i + 1] : running_};
      if (plan_.stage[i].keeps_input) {
        Value(i, v, y);
      } else {
        Both(i, v, y, kept_[i]);
      }
      v = y.data;
    }
    for (size_t i = last + 1; i-- > 0;) {
      const Target to = i == 0 ? image : Target{moving_};
      // Where the value is not wanted, the last stage's derivative is needed just once.
      if (plan_.stage[i].keeps_input || (i == last && value.data == nullptr)) {
        Vjp(i, input[i], g, to);
      } else {
        Combine(plan_.multiply, g, kept_[i], to);
      }
      g = to.data;
    }
  }

  void Push(const T* v, const T* t, Target value, Target image) const {
    const size_t last = plan_.count - 1;
    for (size_t i = 0; i <= last; ++i) {
      const Target y = i == last ? value : Target{running_};
      const Target to = i == last ? image : Target{moving_};
      if (y.data == nullptr || plan_.stage[i].keeps_input) {
        Jvp(i, v, t, to);
        if (y.data != nullptr) Value(i, v, y);
      } else {
        Both(i, v, y, kept_[0]);
        Combine(plan_.multiply, t, kept_[0], to);
      }
      v = y.data;
      t = to.data;
    }
  }

  const Plan& plan_;
  char* scratch_;
  size_t n_ = 0;  // of the current block
  T *running_, *moving_, *dropped_;
  std::array<T*, kMaxChainSteps> kept_{}, gathered_{};
  std::array<const T*, kMaxChainSteps> bound_{};
};

}  // namespace

Outcome RunChain(const ChainCall& call, Poll* poll) {
  if (call.n == 0) return Outcome::kDone;
  const KernelFpEnv fp_env(poll);
  Plan plan(call);
  if (!plan.Prepare()) return Outcome::kOutOfMemory;
  const bool parallel = call.n * plan.count >= kParallelElements;
  return RunTasks(plan.chunks.tasks, parallel, poll, [&](size_t task) {
    Scratch<kStackBytes> scratch(plan.buffers * plan.stride);
    if (!scratch) return false;
    char* const buffers = scratch.Take(plan.buffers * plan.stride);
    if (call.dtype == DType::kFloat32) {
      Walk<float>(plan, buffers).Run(plan.chunks(task));
    } else {
      Walk<double>(plan, buffers).Run(plan.chunks(task));
    }
    if (plan.streams) FlushStreams();
    return true;
  });
}

}  // namespace pullback

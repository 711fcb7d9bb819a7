#include "kernels/chain.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>

#include "kernels/sums.h"
#include "runtime/partition.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

namespace pullback {
namespace {

// Everything that a block goes through lies in L1, beside what streams by.
constexpr size_t kScratchBytes = size_t{32} << 10;
constexpr size_t kStackBytes = size_t{8} << 10;
constexpr size_t kMinBlock = 512;
constexpr size_t kMaxBlock = 2048;
// A chunk of the fixed partition is worth handing out.
constexpr size_t kMinChunkBlocks = 4;
// As in kernels/broadcast.cc: what outgrows the caches need not pass through them.
constexpr size_t kStreamBytes = size_t{8} << 20;

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
  std::optional<Scratch<>> repeated;  // bound operands of a short period, for a block and a period

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
    return call.dtype == DType::kFloat32 ? Repeat<float>() : Repeat<double>();
  }

 private:
  template <typename T>
  bool Repeat() {
    size_t total = 0;
    const auto is_short = [&](const BoundOperand& bound) {
      return bound.period > 0 && bound.repeat == 1 && bound.period < block;
    };
    for (size_t i = 0; i < count; ++i) {
      const BoundOperand& bound = stage[i].bound;
      stage[i].in_place = is_short(bound) || bound.period >= call.n;
      if (is_short(bound)) total += Scratch<>::Bytes<T>(bound.period + block);
    }
    if (total == 0) return true;
    repeated.emplace(total);
    if (!*repeated) return false;
    for (size_t i = 0; i < count; ++i) {
      BoundOperand& bound = stage[i].bound;
      if (!is_short(bound)) continue;
      const size_t n = bound.period + block;
      T* const copy = repeated->Take<T>(n);
      std::memcpy(copy, bound.data, bound.period * sizeof(T));
      for (size_t k = bound.period; k < n; ++k) copy[k] = copy[k - bound.period];
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
    const size_t head = plan_.streams ? Ahead(begin) : 0;
    if (head > 0 && head < range.size()) {
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

  static size_t Beyond(const void* p) { return reinterpret_cast<uintptr_t>(p) % kStreamAlignment; }

  // Elements from `begin` to the first one where results can be streamed.
  size_t Ahead(size_t begin) const {
    const ChainCall& call = plan_.call;
    const void* const out = call.image != nullptr ? call.image : call.value;
    const size_t beyond = Beyond(static_cast<const T*>(out) + begin);
    return beyond == 0 ? 0 : (kStreamAlignment - beyond) / sizeof(T);
  }

  unsigned Streamed(const T* out) const { return plan_.streams && Beyond(out) == 0 ? 1 : 0; }

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
        std::fill_n(to + done, run, from[element]);
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

  void Value(size_t i, const T* v, T* y, size_t n, unsigned streamed) const {
    const Inputs inputs = Primals(i, v);
    void* const out[] = {y};
    plan_.stage[i].value(inputs.in, out, n, streamed);
  }

  void Both(size_t i, const T* v, T* y, T* slope, size_t n, unsigned streamed) const {
    const Inputs inputs = Primals(i, v);
    void* out[] = {y, slope, dropped_};
    if (plan_.stage[i].place == Place::kSecond) std::swap(out[1], out[2]);
    plan_.stage[i].both(inputs.in, out, n, streamed);
  }

  // to = fl(g * derivative), or the sum of two such terms.
  void Vjp(size_t i, const T* v, const T* g, T* to, size_t n, unsigned streamed) const {
    const Stage& stage = plan_.stage[i];
    Inputs inputs = Primals(i, v);
    inputs.in[inputs.count] = g;
    if (stage.place == Place::kBoth) {
      void* const out[] = {moving_, dropped_};
      stage.vjp(inputs.in, out, n, 0);
      Combine(plan_.add, moving_, dropped_, to, n, streamed);
      return;
    }
    void* out[] = {to, dropped_};
    if (stage.place == Place::kSecond) std::swap(out[0], out[1]);
    const unsigned bit = stage.place == Place::kSecond ? streamed << 1 : streamed;
    stage.vjp(inputs.in, out, n, bit);
  }

  void Jvp(size_t i, const T* v, const T* t, T* to, size_t n, unsigned streamed) const {
    if (plan_.stage[i].place != Place::kBoth) {  // a diagonal Jacobian is its own transpose
      Vjp(i, v, t, to, n, streamed);
      return;
    }
    const void* const in[] = {v, v, t, t};
    void* const out[] = {to};
    plan_.stage[i].jvp(in, out, n, streamed);
  }

  static void Combine(ElementwiseKernel kernel, const T* a, const T* b, T* to, size_t n,
                      unsigned streamed) {
    const void* const in[] = {a, b};
    void* const out[] = {to};
    kernel(in, out, n, streamed);
  }

  void Block(size_t begin, size_t n) {
    const ChainCall& call = plan_.call;
    const auto at = [&](const void* p) {
      return p == nullptr ? nullptr : static_cast<const T*>(p) + begin;
    };
    const auto to = [&](void* p) { return p == nullptr ? nullptr : static_cast<T*>(p) + begin; };
    for (size_t i = 0; i < plan_.count; ++i) bound_[i] = Bound(i, begin, n);
    if (plan_.Backward()) {
      Pull(at(call.x), at(call.cotangent), to(call.value), to(call.image), n);
    } else if (plan_.Forward()) {
      Push(at(call.x), at(call.tangent), to(call.value), to(call.image), n);
    } else {
      Values(at(call.x), to(call.value), n);
    }
  }

  void Values(const T* v, T* value, size_t n) const {
    const size_t last = plan_.count - 1;
    for (size_t i = 0; i < last; ++i) {
      Value(i, v, running_, n, 0);
      v = running_;
    }
    Value(last, v, value, n, Streamed(value));
  }

  void Pull(const T* v, const T* g, T* value, T* image, size_t n) const {
    const size_t last = plan_.count - 1;
    std::array<const T*, kMaxChainSteps> input{};  // of stages that keep it
    for (size_t i = 0; i <= last; ++i) {
      const bool keeps_input = plan_.stage[i].keeps_input;
      input[i] = v;
      if (i == last) {
        if (value == nullptr) break;
        if (keeps_input) {
          Value(i, v, value, n, Streamed(value));
        } else {
          Both(i, v, value, kept_[i], n, Streamed(value));
        }
        break;
      }
      // What the next stage keeps must outlast it.
      T* const y = plan_.stage[i + 1].keeps_input ? kept_[i + 1] : running_;
      if (keeps_input) {
        Value(i, v, y, n, 0);
      } else {
        Both(i, v, y, kept_[i], n, 0);
      }
      v = y;
    }
    for (size_t i = last + 1; i-- > 0;) {
      T* const to = i == 0 ? image : moving_;
      const unsigned streamed = i == 0 ? Streamed(image) : 0;
      // Where the value is not wanted, the last stage's derivative is needed just once.
      if (plan_.stage[i].keeps_input || (i == last && value == nullptr)) {
        Vjp(i, input[i], g, to, n, streamed);
      } else {
        Combine(plan_.multiply, g, kept_[i], to, n, streamed);
      }
      g = to;
    }
  }

  void Push(const T* v, const T* t, T* value, T* image, size_t n) const {
    const size_t last = plan_.count - 1;
    for (size_t i = 0; i <= last; ++i) {
      T* const y = i == last ? value : running_;
      T* const to = i == last ? image : moving_;
      const unsigned streamed = i == last ? Streamed(image) : 0;
      if (y == nullptr || plan_.stage[i].keeps_input) {
        Jvp(i, v, t, to, n, streamed);
        if (y != nullptr) Value(i, v, y, n, i == last ? Streamed(value) : 0);
      } else {
        Both(i, v, y, kept_[0], n, i == last ? Streamed(value) : 0);
        Combine(plan_.multiply, t, kept_[0], to, n, streamed);
      }
      v = y;
      t = to;
    }
  }

  const Plan& plan_;
  char* scratch_;
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
  std::atomic<bool> out_of_memory{false};
  const auto run = [&](size_t task) {
    Scratch<kStackBytes> scratch(plan.buffers * plan.stride);
    if (!scratch) {
      out_of_memory.store(true, std::memory_order_relaxed);
      return;
    }
    char* const buffers = scratch.Take(plan.buffers * plan.stride);
    if (call.dtype == DType::kFloat32) {
      Walk<float>(plan, buffers).Run(plan.chunks(task));
    } else {
      Walk<double>(plan, buffers).Run(plan.chunks(task));
    }
    if (plan.streams) FlushStreams();
  };
  if (call.n * plan.count < kParallelElements) {
    for (size_t task = 0; task < plan.chunks.tasks; ++task) run(task);
  } else if (!ParallelFor(plan.chunks.tasks, run, poll)) {
    return Outcome::kInterrupted;
  }
  return out_of_memory.load() ? Outcome::kOutOfMemory : Outcome::kDone;
}

}  // namespace pullback

// The table's rows, and the driver for ufunc loops: one axis, outputs that may overlap inputs.
#include "kernels/elementwise.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/broadcast.h"
#include "runtime/poll.h"

namespace pullback {
namespace {

struct Call {
  ElementwiseKernel kernel;
  MethodShape shape;
  size_t item;
  const Operands& operands;

  int Count() const { return shape.nin + shape.nout; }
  char* Data(int k) const { return static_cast<char*>(operands.data[k]); }
};

// How an output that shares memory with an input, other than element for element, binds the order.
enum class Order {
  kAny,
  kForward,   // the input lies ahead: what is overwritten has been read, if done in order
  kOneByOne,  // outputs feed back into inputs: reductions, accumulations
};

Order OrderOf(const Call& call, size_t n) {
  Order order = Order::kAny;
  if (n <= 1) return order;
  const auto item = static_cast<ptrdiff_t>(call.item);
  const auto steps = static_cast<ptrdiff_t>(n - 1);
  for (int o = call.shape.nin; o < call.Count(); ++o) {
    const ptrdiff_t out_stride = call.operands.stride[o];
    const char* const out = call.Data(o);
    if (out == nullptr) continue;
    if (out_stride == 0) return Order::kOneByOne;
    const char* const out_low = out + std::min<ptrdiff_t>(0, steps * out_stride);
    const char* const out_high = out + std::max<ptrdiff_t>(0, steps * out_stride) + item;
    for (int i = 0; i < call.shape.nin; ++i) {
      const ptrdiff_t in_stride = call.operands.stride[i];
      const char* const in = call.Data(i);
      if (in == out && in_stride == out_stride) continue;
      const char* const in_low = in + std::min<ptrdiff_t>(0, steps * in_stride);
      const char* const in_high = in + std::max<ptrdiff_t>(0, steps * in_stride) + item;
      if (in_low >= out_high || out_low >= in_high) continue;
      const bool ahead = in_stride == out_stride && (in > out) == (out_stride > 0);
      if (!ahead) return Order::kOneByOne;
      order = Order::kForward;
    }
  }
  return order;
}

bool Contiguous(const Call& call, size_t n) {
  for (int k = 0; k < call.Count(); ++k) {
    if (call.operands.data[k] == nullptr) return false;
    if (n > 1 && call.operands.stride[k] != static_cast<ptrdiff_t>(call.item)) return false;
  }
  return true;
}

void RunContiguous(const Call& call, size_t n) {
  call.kernel(call.operands.data, call.operands.data + call.shape.nin, n, 0);
}

// Between two looks at the clock.
constexpr size_t kPolledElements = size_t{1} << 16;

Outcome RunOneByOne(const Call& call, size_t n, Poll* poll) {
  const void* in[kMaxOperands];
  void* out[kMaxOperands];
  alignas(8) char dropped[8];
  for (size_t i = 0; i < n; ++i) {
    if (i % kPolledElements == 0 && Interrupted(poll)) return Outcome::kInterrupted;
    for (int k = 0; k < call.Count(); ++k) {
      char* const data = call.Data(k);
      if (k < call.shape.nin) {
        in[k] = data + static_cast<ptrdiff_t>(i) * call.operands.stride[k];
      } else if (data != nullptr) {
        out[k - call.shape.nin] = data + static_cast<ptrdiff_t>(i) * call.operands.stride[k];
      } else {
        out[k - call.shape.nin] = dropped;
      }
    }
    call.kernel(in, out, 1, 0);
  }
  return Outcome::kDone;
}

}  // namespace

const PerTarget<OpTable>& OpTables(size_t shard) {
  static const std::array<PerTarget<OpTable>, kOpShards> tables =
      []<size_t... kShard>(std::index_sequence<kShard...>) {
    return std::array{GetPerTarget(OpsOfShard<kShard>)...};
  }
  (std::make_index_sequence<kOpShards>());
  return tables[shard];
}

std::optional<OpPlace> PlaceOfOp(std::string_view name) {
  for (size_t shard = 0; shard < kOpShards; ++shard) {
    const std::span<const OpKernels> ops = Ops(shard);
    for (size_t row = 0; row < ops.size(); ++row) {
      if (ops[row].name == name) return OpPlace{shard, row};
    }
  }
  return std::nullopt;
}

const OpKernels* FindOp(std::string_view name) {
  const std::optional<OpPlace> place = PlaceOfOp(name);
  return place ? &Ops(place->shard)[place->row] : nullptr;
}

Outcome RunElementwise(ElementwiseKernel kernel, MethodShape shape, DType dtype,
                       const Operands& operands, size_t n, Poll* poll) {
  const Call call{kernel, shape, ItemSize(dtype), operands};
  if (n == 0) return Outcome::kDone;
  const KernelFpEnv fp_env(poll);
  const Order order = OrderOf(call, n);
  if (order == Order::kOneByOne) return RunOneByOne(call, n, poll);
  if (n < kParallelElements && Contiguous(call, n)) {
    RunContiguous(call, n);
    return Outcome::kDone;
  }
  ArrayCall array_call;
  array_call.kernel = kernel;
  array_call.shape = shape;
  array_call.dtype = dtype;
  array_call.axes = 1;
  array_call.extent[0] = n;
  array_call.in_order = order == Order::kForward;
  for (int k = 0; k < call.Count(); ++k) {
    array_call.operand[k].data = call.Data(k);
    array_call.operand[k].storage = StorageOf(dtype);
    array_call.operand[k].stride[0] = operands.stride[k];
  }
  return RunArrays(array_call, poll);
}

}  // namespace pullback

// The driver: from NumPy's strides to contiguous kernel calls, on one thread or many.
#include "kernels/elementwise.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/fp_env.h"
#include "runtime/partition.h"
#include "runtime/threads.h"

namespace pullback {
namespace {

// Strided operands pass through these many elements of L1 at a time.
constexpr size_t kBlock = 512;

// Below this a parked worker's wake (5-6 us) costs more than it saves.
constexpr size_t kParallelElements = size_t{1} << 15;

struct Call {
  ElementwiseKernel kernel;
  MethodShape shape;
  size_t item;
  Operands operands;

  int Count() const { return shape.nin + shape.nout; }
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
    const char* const out = call.operands.data[o];
    if (out == nullptr) continue;
    if (out_stride == 0) return Order::kOneByOne;
    const char* const out_low = out + std::min<ptrdiff_t>(0, steps * out_stride);
    const char* const out_high = out + std::max<ptrdiff_t>(0, steps * out_stride) + item;
    for (int i = 0; i < call.shape.nin; ++i) {
      const ptrdiff_t in_stride = call.operands.stride[i];
      const char* const in = call.operands.data[i];
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

bool Contiguous(const Call& call) {
  for (int k = 0; k < call.Count(); ++k) {
    if (call.operands.stride[k] != static_cast<ptrdiff_t>(call.item)) return false;
    if (call.operands.data[k] == nullptr) return false;
  }
  return true;
}

void RunContiguous(const Call& call, size_t begin, size_t end) {
  const void* in[kMaxOperands];
  void* out[kMaxOperands];
  const size_t offset = begin * call.item;
  for (int k = 0; k < call.shape.nin; ++k) in[k] = call.operands.data[k] + offset;
  for (int k = 0; k < call.shape.nout; ++k) {
    out[k] = call.operands.data[call.shape.nin + k] + offset;
  }
  call.kernel(in, out, end - begin);
}

void RunOneByOne(const Call& call, size_t n) {
  const void* in[kMaxOperands];
  void* out[kMaxOperands];
  alignas(8) char dropped[8];
  for (size_t i = 0; i < n; ++i) {
    for (int k = 0; k < call.Count(); ++k) {
      char* const data = call.operands.data[k];
      if (k < call.shape.nin) {
        in[k] = data + static_cast<ptrdiff_t>(i) * call.operands.stride[k];
      } else if (data != nullptr) {
        out[k - call.shape.nin] = data + static_cast<ptrdiff_t>(i) * call.operands.stride[k];
      } else {
        out[k - call.shape.nin] = dropped;
      }
    }
    call.kernel(in, out, 1);
  }
}

template <typename T>
void Gather(const char* from, ptrdiff_t stride, T* to, size_t n) {
  for (size_t i = 0; i < n; ++i, from += stride) std::memcpy(to + i, from, sizeof(T));
}

template <typename T>
void Scatter(const T* from, char* to, ptrdiff_t stride, size_t n) {
  for (size_t i = 0; i < n; ++i, to += stride) std::memcpy(to, from + i, sizeof(T));
}

template <typename T>
void RunBlocks(const Call& call, size_t begin, size_t end) {
  alignas(64) T buffer[kMaxOperands][kBlock];
  const void* in[kMaxOperands];
  void* out[kMaxOperands];
  for (size_t i = begin; i < end; i += kBlock) {
    const size_t count = std::min(kBlock, end - i);
    for (int k = 0; k < call.Count(); ++k) {
      const ptrdiff_t stride = call.operands.stride[k];
      char* const data = call.operands.data[k];
      char* const p = data == nullptr ? data : data + static_cast<ptrdiff_t>(i) * stride;
      const bool direct = data != nullptr && stride == static_cast<ptrdiff_t>(sizeof(T));
      if (k < call.shape.nin) {
        in[k] = direct ? static_cast<const void*>(p) : buffer[k];
        // A broadcast operand fills its buffer once.
        if (!direct && (stride != 0 || i == begin)) Gather(p, stride, buffer[k], count);
      } else {
        out[k - call.shape.nin] = direct ? static_cast<void*>(p) : buffer[k];
      }
    }
    call.kernel(in, out, count);
    for (int k = call.shape.nin; k < call.Count(); ++k) {
      char* const data = call.operands.data[k];
      const ptrdiff_t stride = call.operands.stride[k];
      if (data == nullptr || stride == static_cast<ptrdiff_t>(sizeof(T))) continue;
      Scatter(buffer[k], data + static_cast<ptrdiff_t>(i) * stride, stride, count);
    }
  }
}

}  // namespace

std::span<const OpKernels> Ops(size_t shard) {
  return [shard]<size_t... kShard>(std::index_sequence<kShard...>) {
    std::span<const OpKernels> ops;
    ((kShard == shard ? void(ops = OpsOfShard<kShard>()) : void()), ...);
    return ops;
  }(std::make_index_sequence<kOpShards>());
}

bool RunElementwise(ElementwiseKernel kernel, MethodShape shape, DType dtype,
                    const Operands& operands, size_t n, Poll* poll) {
  const Call call{kernel, shape, ItemSize(dtype), operands};
  if (n == 0) return true;
  const bool contiguous = Contiguous(call);
  const auto run = [&](size_t begin, size_t end) {
    if (contiguous) {
      RunContiguous(call, begin, end);
    } else if (dtype == DType::kFloat32) {
      RunBlocks<float>(call, begin, end);
    } else {
      RunBlocks<double>(call, begin, end);
    }
  };

  const ScopedDefaultFpEnv fp_env;
  const Order order = OrderOf(call, n);
  if (order == Order::kOneByOne) {
    RunOneByOne(call, n);
    return true;
  }
  if (n < kParallelElements || order == Order::kForward) {
    run(0, n);
    return true;
  }
  const Partition partition = ElementPartition(n, call.item * static_cast<size_t>(call.Count()));
  return ParallelFor(
      partition.tasks,
      [&](size_t task) {
        const auto [begin, end] = partition(task);
        run(begin, end);
      },
      poll);
}

}  // namespace pullback

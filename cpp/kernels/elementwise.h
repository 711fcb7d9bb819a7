// Elementwise kernels: what a row of the op table is compiled into, for the layers above.
#ifndef PULLBACK_CPP_KERNELS_ELEMENTWISE_H_
#define PULLBACK_CPP_KERNELS_ELEMENTWISE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "kernels/outcome.h"
#include "runtime/targets.h"

namespace pullback {

enum class DType : uint8_t { kFloat32, kFloat64 };
inline constexpr size_t kDTypes = 2;
constexpr size_t ItemSize(DType dtype) { return dtype == DType::kFloat32 ? 4 : 8; }

// What a kernel computes for f: R -> R or f: R^2 -> R, lane by lane.
enum class Method : uint8_t {
  kValue,
  kDerivative,
  kValueAndDerivative,
  kVjp,
  kJvp,
  kSecondDerivative,
  kVjpJvp,
  kVjpVjp,
  kAllDerivatives,  // first ones, then second; in no table, the last three are made of it
};
inline constexpr size_t kMethods = 8;

struct MethodShape {
  int nin, nout;
};

// By the pairs of operands (a, a), (a, b), (b, b).
constexpr int SecondDerivatives(int arity) { return arity * (arity + 1) / 2; }

// One output per partial derivative: the primals come first, then the cotangent or the tangents.
// Those of vjp, behind it: the tangents of the primals and of the cotangent, of which some may be
// left out; or cotangents of its results, for those of the primals and of the cotangent.
constexpr MethodShape ShapeOf(Method method, int arity) {
  switch (method) {
    case Method::kValue:
      return {arity, 1};
    case Method::kDerivative:
      return {arity, arity};
    case Method::kValueAndDerivative:
      return {arity, 1 + arity};
    case Method::kVjp:
      return {arity + 1, arity};
    case Method::kJvp:
      return {2 * arity, 1};
    case Method::kSecondDerivative:
      return {arity, SecondDerivatives(arity)};
    case Method::kVjpJvp:
      return {2 * arity + 2, arity};
    case Method::kVjpVjp:
      return {2 * arity + 1, arity + 1};
    case Method::kAllDerivatives:
      return {arity, arity + SecondDerivatives(arity)};
  }
  return {0, 0};
}
inline constexpr int kMaxOperands = 8;  // the widest: vjp's own products, of a binary op

// Reads n contiguous elements of each in[i], which is null where it is left out, writes n to each
// out[i]. An output may be an input, or overlap one that lies ahead of it: elements go in order,
// and each vector is read before it is written. Neither needs alignment, but for outputs whose bit
// is set in `streamed`: they are written past the caches, and lie at a multiple of
// kStreamAlignment. Never reads past the end.
using ElementwiseKernel = void (*)(const void* const* in, void* const* out, size_t n,
                                   unsigned streamed);
inline constexpr size_t kStreamAlignment = 64;  // as long as the longest vector, or a cache line

struct OpKernels {
  const char* name;
  int arity;
  bool masked;
  ElementwiseKernel kernel[kMethods][kDTypes];
};

// The table's rows are spread over shards; which row is where is the same for every target.
inline constexpr size_t kOpShards = 2;
using OpTable = std::span<const OpKernels>;
const PerTarget<OpTable>& OpTables(size_t shard);
template <size_t kShard>
OpTable OpsOfShard();  // by dispatch

// Those of the active target.
inline OpTable Ops(size_t shard) { return OpTables(shard).Active(); }

// Where the row of that name is.
struct OpPlace {
  size_t shard, row;
};
std::optional<OpPlace> PlaceOfOp(std::string_view name);

// The row of that name for the active target, or null.
const OpKernels* FindOp(std::string_view name);

// Where element i of an operand lies: data + i * stride (in bytes; 0 and negative are fine). An
// output without data is computed and dropped.
struct Operands {
  void* data[kMaxOperands];
  ptrdiff_t stride[kMaxOperands];
};

// Below this a parked worker's wake (5-6 us) costs more than it saves.
inline constexpr size_t kParallelElements = size_t{1} << 15;

struct Poll;

// Runs `kernel` over n elements of `dtype`, whatever the strides: inputs first, then outputs. Above
// a threshold on the thread pool in a partition fixed by n; on one thread if an output overlaps an
// input ahead of it, element by element if outputs feed back into inputs (ufunc.reduce,
// .accumulate). Never out of memory.
Outcome RunElementwise(ElementwiseKernel kernel, MethodShape shape, DType dtype,
                       const Operands& operands, size_t n, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_ELEMENTWISE_H_

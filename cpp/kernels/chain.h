// Runs of elementwise ops: one pass over blocks that stay in L1 from the first op to the last.
#ifndef PULLBACK_CPP_KERNELS_CHAIN_H_
#define PULLBACK_CPP_KERNELS_CHAIN_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/elementwise.h"
#include "kernels/outcome.h"

namespace pullback {

// What an op keeps of a block shares L1 with what the others keep.
inline constexpr size_t kMaxChainSteps = 16;

// Where the running value stands among an op's operands.
enum class Place : uint8_t { kFirst, kSecond, kBoth };

// An operand beside the running value: next to its element i stands data[i / repeat % period].
// None has a period of 0.
struct BoundOperand {
  const void* data = nullptr;
  size_t period = 0, repeat = 1;
};

struct ChainStep {
  OpPlace op;
  Place place = Place::kFirst;  // of a unary op, too
  BoundOperand bound;
};

// All arrays are contiguous and hold n elements of `dtype`; outputs overlap nothing.
struct ChainCall {
  std::span<const ChainStep> steps;  // 1 ... kMaxChainSteps
  DType dtype;
  size_t n;
  const void* x;
  const void* cotangent = nullptr;  // of the value, or null
  const void* tangent = nullptr;    // of x, or null; not both
  void* value = nullptr;            // or null: not wanted
  void* image = nullptr;  // the cotangent of x, or the tangent of the value; null where neither is
};

// Results are to the bit those of the ops' kernels called one after the other. On the thread pool
// above a threshold.
Outcome RunChain(const ChainCall& call, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_CHAIN_H_

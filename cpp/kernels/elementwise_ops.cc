// The rows of the op tables, compiled once per instruction set. The build compiles this file once
// per shard, every shard its share of the rows: compilers then work side by side.
#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/elementwise_ops.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/elementwise-inl.h"
#include "ops/binary-inl.h"
#include "ops/unary-inl.h"

static_assert(PULLBACK_SHARD < pullback::kOpShards, "CMakeLists.txt compiles a shard too many");

// Functions of equal name in the shards must not meet.
#undef PB_SHARD
#define PB_SHARD HWY_CONCAT(shard, PULLBACK_SHARD)

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace PB_SHARD {
namespace HWY_NAMESPACE {
namespace rows = pullback::HWY_NAMESPACE;

// Rows are dealt out in turn, unary ones first: neighbours resemble each other, in cost too.
template <size_t kIndex>
constexpr OpKernels KernelsOfRow() {
  constexpr size_t kUnary = static_cast<size_t>(rows::kUnaryRows);
  if constexpr (kIndex < kUnary) {
    return rows::KernelsOf<rows::UnaryRow<static_cast<int>(kIndex)>>();
  } else {
    return rows::KernelsOf<rows::BinaryRow<static_cast<int>(kIndex - kUnary)>>();
  }
}

template <size_t... kTurn>
constexpr std::array<OpKernels, sizeof...(kTurn)> TableOf(std::index_sequence<kTurn...>) {
  return {KernelsOfRow<PULLBACK_SHARD + kTurn * kOpShards>()...};
}

OpTable Table() {
  constexpr auto kRows = static_cast<size_t>(rows::kUnaryRows + rows::kBinaryRows);
  constexpr size_t kTurns = (kRows + kOpShards - 1 - PULLBACK_SHARD) / kOpShards;
  // Constant: nothing of it runs before the dispatcher has looked at the CPU.
  static constexpr auto kTable = TableOf(std::make_index_sequence<kTurns>());
  return kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace PB_SHARD
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
namespace PB_SHARD {
HWY_EXPORT(Table);
OpTable Ops() { return HWY_DYNAMIC_DISPATCH(Table)(); }
}  // namespace PB_SHARD
template <>
OpTable OpsOfShard<PULLBACK_SHARD>() {
  return PB_SHARD::Ops();
}
}  // namespace pullback
#endif

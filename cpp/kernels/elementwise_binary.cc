// The binary rows of the op table, compiled once per instruction set.
#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/elementwise_binary.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/elementwise-inl.h"
#include "ops/binary-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {

std::span<const OpKernels> BinaryTable() {
  static constexpr auto kTable =
      TableOf<BinaryRow>(std::make_index_sequence<static_cast<size_t>(kBinaryRows)>());
  return kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(BinaryTable);
std::span<const OpKernels> BinaryOps() { return HWY_DYNAMIC_DISPATCH(BinaryTable)(); }
}  // namespace pullback
#endif

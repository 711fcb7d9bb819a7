// The table of reductions, compiled once per instruction set.
#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/reduction_loops.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <array>
#include <cstddef>
#include <span>
#include <tuple>
#include <utility>

#include "kernels/reductions-inl.h"
#include "kernels/reductions.h"
#include "kernels/scans-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {

template <size_t... kRow, size_t... kScanRow>
constexpr auto ReductionTableOf(std::index_sequence<kRow...>, std::index_sequence<kScanRow...>) {
  return std::array{kReduction<std::tuple_element_t<kRow, ReductionRows>>...,
                    kScan<std::tuple_element_t<kScanRow, ScanRows>>...};
}

ReductionTable TableOfReductions() {
  static constexpr auto kTable =
      ReductionTableOf(std::make_index_sequence<std::tuple_size_v<ReductionRows>>(),
                       std::make_index_sequence<std::tuple_size_v<ScanRows>>());
  return kTable;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(TableOfReductions);

const PerTarget<ReductionTable>& ReductionTables() {
  static const auto tables = GetPerTarget([] { return HWY_DYNAMIC_DISPATCH(TableOfReductions)(); });
  return tables;
}

std::optional<size_t> FindReduction(std::string_view name, std::string_view method) {
  const ReductionTable rows = ReductionOps();
  for (size_t row = 0; row < rows.size(); ++row) {
    if (rows[row].name == name && rows[row].method == method) return row;
  }
  return std::nullopt;
}

}  // namespace pullback
#endif  // HWY_ONCE

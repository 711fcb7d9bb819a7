// The table of X's layouts, compiled once per instruction set.
#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/loss_stages.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/dense-inl.h"
#include "kernels/losses.h"
#include "kernels/outputs-inl.h"
#include "kernels/sparse-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {

// In the order of Layout, and rows of CSR that are thin.
const LayoutKernels* LayoutTable() {
  static constexpr LayoutKernels kTable[] = {
      {{{ForwardRows<float>, BackwardRows<float>}, {ForwardRows<double>, BackwardRows<double>}},
       {kOutputs<RowsOfX<float>>, kOutputs<RowsOfX<double>>},
       ChunkOfRows,
       nullptr,
       DenseRowBytes,
       nullptr,
       nullptr,
       nullptr,
       nullptr},
      {{{ForwardColumns<float>, BackwardColumns<float>},
        {ForwardColumns<double>, BackwardColumns<double>}},
       {kOutputs<ColumnsOfX<float>>, kOutputs<ColumnsOfX<double>>},
       ChunkOfColumns,
       SlabOfColumns,
       DenseRowBytes,
       nullptr,
       nullptr,
       nullptr,
       nullptr},
      {{kCsrStages<float, true, false>, kCsrStages<double, true, false>},
       {kCsrStages<float, false, false>, kCsrStages<double, false, false>},
       CsrChunkRows,
       SparseSlabRows,
       SparseRowBytes,
       nullptr,
       nullptr,
       AdvanceCsr,
       nullptr},
      {{kCscStages<float, true>, kCscStages<double, true>},
       {kCscStages<float, false>, kCscStages<double, false>},
       CscChunkRows,
       CscSlabRows,
       SparseRowBytes,
       CscStateDoubles,
       SeekCsc,
       AdvanceCsc,
       nullptr},
      {{kCsrStages<float, true, true>, kCsrStages<double, true, true>},
       {kCsrStages<float, false, true>, kCsrStages<double, false, true>},
       CsrChunkRows,
       SparseSlabRows,
       SparseRowBytes,
       ThinStateDoubles,
       SeekThin,
       AdvanceCsr,
       FinishThin},
  };
  return kTable;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(LayoutTable);

// Of rows with less than an entry to so many columns, merging a block of kLossBlock costs more than
// summing its entries to the last digit, which needs no blocks.
constexpr size_t kThinSpread = 1024;

const LayoutKernels& KernelsOf(const Design& X) {
  const LayoutKernels* const table = HWY_DYNAMIC_DISPATCH(LayoutTable)();
  const bool thin = X.layout == Layout::kCsr && X.spread() > kThinSpread;
  return table[thin ? kLayouts : static_cast<size_t>(X.layout)];
}

}  // namespace pullback
#endif  // HWY_ONCE

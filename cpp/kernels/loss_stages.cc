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

// In the order of Layout.
const LayoutKernels* LayoutTable() {
  static constexpr LayoutKernels kTable[] = {
      {{{ForwardRows<float>, BackwardRows<float>}, {ForwardRows<double>, BackwardRows<double>}},
       {kOutputs<RowsOfX<float>>, kOutputs<RowsOfX<double>>},
       ChunkOfRows,
       DenseRowBytes,
       nullptr,
       nullptr,
       nullptr},
      {{{ForwardColumns<float>, BackwardColumns<float>},
        {ForwardColumns<double>, BackwardColumns<double>}},
       {kOutputs<ColumnsOfX<float>>, kOutputs<ColumnsOfX<double>>},
       ChunkOfColumns,
       DenseRowBytes,
       nullptr,
       nullptr,
       nullptr},
      {{kCsrStages<float, true>, kCsrStages<double, true>},
       {kCsrStages<float, false>, kCsrStages<double, false>},
       CsrChunkRows,
       SparseRowBytes,
       nullptr,
       nullptr,
       AdvanceCsr},
      {{kCscStages<float, true>, kCscStages<double, true>},
       {kCscStages<float, false>, kCscStages<double, false>},
       CscChunkRows,
       SparseRowBytes,
       CscStateDoubles,
       SeekCsc,
       AdvanceCsc},
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

const LayoutKernels& KernelsOf(Layout layout) {
  return HWY_DYNAMIC_DISPATCH(LayoutTable)()[static_cast<size_t>(layout)];
}

}  // namespace pullback
#endif  // HWY_ONCE

// The table of X's layouts, compiled once per instruction set.
#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/loss_stages.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/dense-inl.h"
#include "kernels/guarded-inl.h"
#include "kernels/losses.h"
#include "kernels/outputs-inl.h"
#include "kernels/sparse-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {

// In the order of Layout, and rows of CSR that are thin.
const LayoutKernels* LayoutTable() {
  static constexpr LayoutKernels kTable[] = {
      {.one = {{ForwardRows<float>, BackwardRows<float>},
               {ForwardRows<double>, BackwardRows<double>}},
       .many = {kOutputs<RowsOfX<float>>, kOutputs<RowsOfX<double>>},
       .guarded = {GuardedRows<float>, GuardedRows<double>},
       .chunk_rows = ChunkOfRows,
       .row_bytes = DenseRowBytes},
      {.one = {{ForwardColumns<float>, BackwardColumns<float>},
               {ForwardColumns<double>, BackwardColumns<double>}},
       .many = {kOutputs<ColumnsOfX<float>>, kOutputs<ColumnsOfX<double>>},
       .guarded = {GuardedColumns<float>, GuardedColumns<double>},
       .chunk_rows = ChunkOfColumns,
       .slab_rows = SlabOfColumns,
       .row_bytes = DenseRowBytes},
      {.one = {kCsrStages<float, true, Walk::kScatter>, kCsrStages<double, true, Walk::kScatter>},
       .many = {kCsrStages<double, false, Walk::kScatter>,
                kCsrStages<double, false, Walk::kScatter>},
       .guarded = {GuardedCsr<Sums::kPlain>, GuardedCsr<Sums::kPlain>},
       .chunk_rows = CsrChunkRows,
       .slab_rows = SparseSlabRows,
       .row_bytes = SparseRowBytes,
       .state_doubles = CsrStateDoubles,
       .seek = SeekCsr,
       .advance = AdvanceCsr,
       .walked = WalkedCsr},
      {.one = {kCscStages<float, true>, kCscStages<double, true>},
       .many = {kCscStages<float, false>, kCscStages<double, false>},
       .guarded = {GuardedCsc<float>, GuardedCsc<double>},
       .chunk_rows = CscChunkRows,
       .slab_rows = CscSlabRows,
       .row_bytes = SparseRowBytes,
       .state_doubles = CscStateDoubles,
       .seek = SeekCsc,
       .advance = AdvanceCsc,
       .walked = WalkedCsc},
      {.one = {kCsrStages<float, true, Walk::kScatterCompensated>,
               kCsrStages<double, true, Walk::kScatterCompensated>},
       .many = {kCsrStages<double, false, Walk::kScatterCompensated>,
                kCsrStages<double, false, Walk::kScatterCompensated>},
       .guarded = {GuardedCsr<Sums::kCompensated>, GuardedCsr<Sums::kCompensated>},
       .chunk_rows = CsrChunkRows,
       .slab_rows = SparseSlabRows,
       .row_bytes = SparseRowBytes,
       .state_doubles = CsrStateDoubles,
       .seek = SeekCsr,
       .advance = AdvanceCsr,
       .walked = WalkedCsr,
       .sum_doubles = ThinSumDoubles,
       .finish = FinishThin},
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

// Reductions of the middle axis of (outer, n, inner) blocks: values, gradients, vjps and jvps.
//
// A slice is cut into segments that stay in cache. Each has a state; the states of a slice merge as
// a tree and finish; then slopes are written, from the cache where a slice is short. With inner = 1
// lanes run along the slice, else across slices, a tile of columns at a time; rows so short that
// they would not fill a vector are turned into columns on their way through the cache.
#ifndef PULLBACK_CPP_KERNELS_REDUCTIONS_H_
#define PULLBACK_CPP_KERNELS_REDUCTIONS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "kernels/elementwise.h"  // DType
#include "kernels/outcome.h"
#include "runtime/targets.h"

namespace pullback {

struct Poll;

// --- a row of the table, compiled ----------------------------------------------------------------

// A segment: `length` elements of each of `columns` slices; element i of slice c is
// x[i * stride + c]. Along slices there is one column, and the stride is 1. States, coefficients
// and sums are kept field by field: field k of column c is at [k * width + c].
struct Segment {
  const void* x;
  const void* v;  // a second operand, or null
  size_t length, columns;
  ptrdiff_t stride;
  size_t width;               // 1 along slices, else a multiple of kColumnPadding
  const void* out = nullptr;  // if not null: where slopes will be written soon, through the caches
};

inline constexpr size_t kColumnPadding = 16;
inline constexpr size_t kMaxColumns = 1024;
inline constexpr size_t kMaxSegment = 8192;  // along slices
inline constexpr size_t kMaxState = 8;       // fields of states, and of coefficients
inline constexpr size_t kMaxOuts = 2;

struct ReductionLoops {
  // Whether a slice's state is suspect. `kept`, if not null: room for a segment, in x's type, for
  // the slopes of the same segment.
  bool (*accumulate)(const Segment& segment, double parameter, bool value_only, double* state,
                     void* kept);
  // Element i of slice c goes to out[i * stride + c]. Streamed: past the caches.
  void (*slopes)(const Segment& segment, const double* coefs, const void* kept, void* const* out,
                 bool streamed);
  // The sums of slopes times tangents; null is a tangent of zeros. Of a map there is no such loop.
  void (*tangents)(const Segment& segment, const double* coefs, const void* const* t, double* sums);
};

// Slices of a scan, side by side: element i of slice c is x[i * step + c * across].
struct ScanTile {
  const void *x, *v;  // v may be null
  void* out;
  size_t n, columns;  // at most kScanColumns
  ptrdiff_t step, across;
  bool reversed;
};

inline constexpr size_t kScanColumns = 16;

struct ReductionKernels {
  const char* name;
  const char* method;  // of a map of rows; else empty
  size_t arrays, outs, state, coefs;
  bool stateless, keeps;
  int degree, parameter_degree;  // see ops/reductions-inl.h
  bool centred;
  // Of one slice.
  void (*merge)(double* into, const double* from, double parameter);
  double (*finish)(const double* state, double parameter);
  void (*coefficients)(const double* state, double n, double parameter, double g, double* coefs);
  bool (*is_suspect)(const double* state, size_t width, double parameter);  // or null
  ReductionLoops along[kDTypes], across[kDTypes];
  // Of a scan, which has none of these: all of a tile.
  Outcome (*scan[kDTypes])(const ScanTile& tile, Poll* poll) = {};
};

// The rows of the table, the same for every target.
using ReductionTable = std::span<const ReductionKernels>;
const PerTarget<ReductionTable>& ReductionTables();
inline ReductionTable ReductionOps() { return ReductionTables().Active(); }

// The place of a row; nothing where there is none.
std::optional<size_t> FindReduction(std::string_view name, std::string_view method = "");

// --- calls ---------------------------------------------------------------------------------------

// All arrays are C-contiguous and of one dtype.
struct ReductionCall {
  const ReductionKernels* op;
  DType dtype;
  double parameter;
  size_t outer, n, inner;  // n > 0
  const void* x;           // (outer, n, inner)
  const void* v;
  const void* g;  // (outer, inner), or null for ones
  void* values;   // (outer, inner), or null
  // (outer, n, inner), as many as the row has, or null.
  void* out[kMaxOuts];
  // Instead: values are the sums of slopes times these; a null is a tangent of zeros.
  bool tangents;
  const void* t[kMaxOuts];
  bool again = false;  // whether this is a slice that is reduced again
};

// Reduces one slice of outer * inner again, if need be, from copies times powers of two, so that no
// square over- or underflows that the results do not.
Outcome ReduceAgain(const ReductionCall& call, size_t slice, Poll* poll);

// The same for scans. The bits of a slice depend on its elements and the target alone.
Outcome Scan(const ReductionCall& call, Poll* poll);

// The bits depend on the shape and the target, never on the thread count.
Outcome Reduce(const ReductionCall& call, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_REDUCTIONS_H_

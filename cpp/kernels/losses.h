// Losses of linear models: sums of loss, gradient and Hessian-vector product in one pass over X.
//
// A slab of rows is walked in chunks that stay in cache, each through three stages: `forward` makes
// predictions z = X w + b, a loss's score turns them into slopes dl/dz, `backward` adds X^T slopes
// to the gradient. Layouts, losses and jobs know nothing of each other: a layout is a row of one
// table, a loss of another, and a job is a few lines of the driver.
#ifndef PULLBACK_CPP_KERNELS_LOSSES_H_
#define PULLBACK_CPP_KERNELS_LOSSES_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "kernels/elementwise.h"  // DType
#include "kernels/outcome.h"
#include "runtime/partition.h"  // Range
#include "runtime/targets.h"

namespace pullback {

struct Poll;

// --- X and the stages that read it ---------------------------------------------------------------

enum class Layout : uint8_t { kRows, kColumns, kCsr, kCsc };
inline constexpr size_t kLayouts = 4;

// How dense elements that are computed as float32 lie in memory.
enum class Stored : uint8_t { kAsComputed, kFloat16, kBfloat16 };

struct Design {
  Layout layout;
  DType dtype;
  bool wide;  // sparse: indices and indptr are int64_t, else int32_t
  size_t rows, cols;
  const void* data;
  ptrdiff_t stride;  // dense: elements from one row (kRows) or column (kColumns) to the next
  // sparse: as in scipy.sparse; within a column of kCsc they ascend. Nothing of this is relied on:
  // what is not so is found on the way, also if it changes meanwhile.
  const void* indices;
  const void* indptr;
  size_t entries = 0;  // sparse: so many in data and indices
  // Stages read what is stored as it is computed. The driver gives them chunks of all else, widened
  // into memory that is in cache: `near`, and of as many rows as X has, for the stages' choices.
  Stored stored = Stored::kAsComputed;
  bool near = false;

  // sparse: so many of the entries indptr lists.
  size_t listed() const {
    const size_t spans = layout == Layout::kCsr ? rows : cols;
    return wide ? static_cast<size_t>(static_cast<const int64_t*>(indptr)[spans])
                : static_cast<size_t>(static_cast<const int32_t*>(indptr)[spans]);
  }

  // So many rows have an entry in a column, on average.
  size_t spread() const { return entries == 0 ? 1 : std::max<size_t>(rows * cols / entries, 1); }
};

// Both take `outputs` predictions a row, k = 0 ... outputs - 1:
//   forward   z[r * outputs + k] = b[k] + sum_j X[rows.begin + r, j] w[j * outputs + k]
//   backward  gw[j * outputs + k] += sum_r X[rows.begin + r, j] slopes[r * outputs + k]
// w, b and gw are padded by PadDoubles, w and b with zeros, what gw's padding holds is never read;
// z and slopes are padded likewise. `state` is the layout's own.
using ForwardStage = void (*)(const Design& X, size_t outputs, Range rows, const double* w,
                              const double* b, double* z, void* state);
using BackwardStage = void (*)(const Design& X, size_t outputs, Range rows, const double* slopes,
                               double* gw, void* state);
// backward where a product may be 0 * inf, or NaN: an element of X that is 0 adds nothing, nor does
// a row whose weight is; `weight` may be null.
using GuardedStage = void (*)(const Design& X, size_t outputs, Range rows, const double* slopes,
                              const double* weight, double* gw, void* state);

struct Stages {
  ForwardStage forward;
  BackwardStage backward;
};

struct LayoutKernels {
  Stages one[kDTypes];   // by dtype of X, for one output
  Stages many[kDTypes];  // for any number of outputs
  GuardedStage guarded[kDTypes];

  // Rows that pass all stages while they are in cache.
  size_t (*chunk_rows)(const Design& X, size_t outputs);
  // The fewest rows that a thread takes, or null.
  size_t (*slab_rows)(const Design& X) = nullptr;
  // Bytes of X in a row, on average.
  size_t (*row_bytes)(const Design& X);

  // For a layout that has to find its rows, in what the caller says of them (else null): a slab's
  // walk owns `state_doubles` of `state`. `seek` is called before its first chunk, then `advance`
  // before each, in order; forward at least once for the chunk last advanced to. False: something
  // is out of range, and the chunk must not be walked. In the end `walked` tells how many entries
  // the slab has had, nothing if an index was out of range; all slabs together have Design::listed.
  size_t (*state_doubles)(const Design& X) = nullptr;
  bool (*seek)(const Design& X, size_t row, void* state) = nullptr;
  bool (*advance)(const Design& X, Range rows, void* state) = nullptr;
  std::optional<size_t> (*walked)(const Design& X, const void* state) = nullptr;

  // For a layout whose backward sums a slab's gradient to the last digit (else null): in so many
  // doubles, zeros at first, which `finish` adds to gw. A slab is then one block of the tree.
  size_t (*sum_doubles)(const Design& X, size_t outputs) = nullptr;
  void (*finish)(const Design& X, size_t outputs, const double* sums, double* gw) = nullptr;
};

inline constexpr size_t kLossBlock = 512;

const LayoutKernels& KernelsOf(const Design& X);

// --- losses --------------------------------------------------------------------------------------

enum class TargetType : uint8_t { kFloat32, kFloat64, kLabel };  // kLabel: int64_t
constexpr size_t ItemSize(TargetType type) { return type == TargetType::kFloat32 ? 4 : 8; }

// One chunk on its way through a score. A row of weight 0 has loss and slopes 0, whatever it
// holds, and no bad target. All arrays begin at the chunk's first row, and all but
// labels and where noted are (rows, outputs). Of a row-coupled loss rows * outputs are at most
// kLossBlock, unless there are no more rows than kDoublePadding.
struct ScoreChunk {
  double parameter;
  size_t rows, outputs;
  TargetType y_type;
  const void* y;         // labels: (rows,)
  const double* weight;  // each sample's, (rows,) for a row-coupled loss; null: all 1
  const double* z;
  double* loss;       // if not null: l, not weighted; a row-coupled loss's is (rows,)
  double* slope;      // dl/dz, weighted; may be z
  double* curvature;  // d2l/dz2, not weighted (softmax: the probabilities); may be z
  double loss_sum;    // out: over the chunk, weighted
  size_t bad_row;     // out: the first whose y is outside the domain, or kNoRow; NaN is its score
};

inline constexpr size_t kNoRow = ~size_t{0};

// What a score writes of ScoreChunk; kSlope includes the loss, kCurvature is it alone.
enum class Wanted : uint8_t { kLoss, kSlope, kCurvature };
inline constexpr size_t kWanted = 3;

using Score = void (*)(ScoreChunk& chunk);

// slope = weight * H(curvature) * direction of each row; slope may be the direction.
using Curve = void (*)(const ScoreChunk& chunk, const double* curvature, const double* direction);

struct LossKernels {
  const char* name;
  bool coupled;  // a row's outputs are one sample
  Score score[kWanted];
  Curve curve;
};

// The rows of the table, the same for every target.
using LossTable = std::span<const LossKernels>;
const PerTarget<LossTable>& LossTables();
inline LossTable LossOps() { return LossTables().Active(); }

// The place of a row; nothing where there is none.
std::optional<size_t> FindLoss(std::string_view name);

// --- what else happens to a chunk ----------------------------------------------------------------

struct WeightCheck {
  size_t bad;  // the first that is not finite or negative, or kNoRow
  bool has_zero;
};

struct ChunkKernels {
  WeightCheck (*check_weights)(const double* weight, size_t rows);
  bool (*all_finite)(const double* values, size_t n);
  // sums[k] += sum_r slopes[r * outputs + k], by whether the loss is coupled: of each output in
  // order, or of few in any.
  void (*sum_outputs[2])(const double* slopes, size_t rows, size_t outputs, double* sums);
  // Of rows of predictions, then of how they change: z + step * change, and the change; both of
  // (rows, outputs), with room for a whole vector more.
  void (*step_along)(const double* line, size_t rows, size_t outputs, double step, double* z,
                     double* change);
  // sum_i slopes[i] * change[i], where a slope of 0 adds nothing.
  double (*sum_products)(const double* slopes, const double* change, size_t n);
  // gX[r, j] = scale * sum_k slopes[r * outputs + k] w[k * PadDoubles(cols) + j], by dtype of gX.
  void (*write_gx[kDTypes])(const double* slopes, size_t rows, size_t outputs, const double* w,
                            size_t cols, double scale, void* gX, ptrdiff_t stride);
  // Widens n float16 or bfloat16, by Stored, to float32; asks for what lies `ahead` elements on
  // meanwhile, unless 0.
  void (*widen[3])(const uint16_t* from, size_t n, size_t ahead, float* to);
};

const ChunkKernels& KernelsOfChunks();

// --- jobs ----------------------------------------------------------------------------------------

// kCurvature writes `kept` alone. kPredict writes the predictions there, and takes neither y nor
// weight. kBackward takes the slopes, weighted, for a float64 y, and ends as kGradient does; of
// rows whose weight is 0 it does not count on X.
enum class Job : uint8_t { kValue, kGradient, kHvp, kCurvature, kPredict, kBackward };

struct LinearProblem {
  Design X;
  const LossKernels* loss;
  double parameter;
  size_t outputs;
  const void* y;
  TargetType y_type;
  const void* w;  // (cols, outputs), contiguous
  DType w_dtype;
  const double* b;        // (outputs,)
  const double* weight;   // (rows,), or null
  const double* offset;   // null, or what predictions begin with: (rows,), of each output,
  bool offset_by_output;  // or (rows, outputs)
  const void* vw;         // (cols, outputs, directions), for kHvp
  DType vw_dtype;
  const double* vb;       // (outputs, directions)
  size_t directions = 1;  // of all jobs but kHvp
  double* kept;           // (rows, outputs), for kCurvature and kPredict, else null
  // kGradient, if not null: (rows, cols), contiguous rows, scale * slopes w^T.
  void* gX;
  DType gX_dtype;
  ptrdiff_t gX_stride;
  double scale;
};

struct BadRow {
  enum class Argument : uint8_t { kX, kY, kWeight } argument;
  size_t row;  // of kX: in whose slab or chunk an index is out of range
};

// The gradients are overwritten, and left alone where the job has none.
struct LossResult {
  std::optional<double> divisor;  // of all sums; nothing: 1
  void* gw;                       // (cols, outputs), of several directions of each
  void* gb;                       // (outputs,), likewise
  DType gw_dtype, gb_dtype;
  double loss;
  std::optional<BadRow> bad;  // the lowest row: then nothing else counts
};

// Float64 sums over fixed blocks of rows that are merged as a tree: the bits depend on the shape,
// the layout and the target, never on the thread count. Results are untouched unless it is done,
// `kept` and gX are not.
Outcome SumLoss(Job job, const LinearProblem& problem, LossResult& result, Poll* poll);

// --- elementwise ---------------------------------------------------------------------------------

// The loss or a derivative at predictions z of (rows, outputs), C-contiguous like y and `out`; a
// coupled loss has an `out` of (rows,) for kLoss. Computed in float64, rounded once.
struct PointwiseProblem {
  const LossKernels* loss;
  double parameter;
  size_t rows, outputs;
  const void* z;
  DType dtype;  // of z and out
  const void* y;
  TargetType y_type;
};

Outcome MapLoss(Wanted wanted, const PointwiseProblem& problem, void* out, Poll* poll);

// A loss at predictions z + step * change that have been made before.
struct LineSums {
  double loss;                // of the losses, for kSlope
  double derivative;          // by the step; the second one for kCurvature
  std::optional<BadRow> bad;  // the lowest row: then nothing else counts
};

// Float64 sums, as SumLoss makes them. The problem's z are z and its change, (rows, 2, outputs) in
// float64; `weight` is (rows,), or null; `wanted` is kSlope or kCurvature.
Outcome SumLine(Wanted wanted, const PointwiseProblem& problem, const double* weight, double step,
                LineSums& sums, Poll* poll);

// Hessians by the predictions of a coupled loss, weight / divisor * sum * (diag p - p p^T) of each
// row's probabilities p, computed in float64 and rounded once: out is (rows, classes, classes).
struct ClassHessians {
  size_t rows, classes;
  const void* p;
  DType dtype;           // of p and out
  const double* sums;    // of each row's targets, or null for 1
  const double* weight;  // each row's, or null for 1
  double divisor;
};

Outcome MapHessians(const ClassHessians& problem, void* out, Poll* poll);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_LOSSES_H_

// Bilinear forms: one pass over X, compiled once per instruction set. And rows times numbers.
#include "kernels/forms.h"

#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/forms.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>

#include "kernels/load-inl.h"
#include "kernels/sums.h"
#include "runtime/partition.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// kRows rows of X: Xv of each, and u^T X added to uX, which is padded to whole vectors.
template <size_t kRows, typename T>
void Rows(const T* X, ptrdiff_t stride, size_t cols, const double* u, const double* v, double* Xv,
          double* uX) {
  const hn::ScalableTag<double> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  std::array<V, kRows> dot, weight;
  PB_UNROLL
  for (size_t r = 0; r < kRows; ++r) {
    dot[r] = hn::Zero(d);
    weight[r] = hn::Set(d, u[r]);
  }
  for (size_t j = 0; j < cols; j += lanes) {
    const size_t count = std::min(lanes, cols - j);
    const V right = LoadSome(d, v + j, count);
    V sum = hn::LoadU(d, uX + j);
    PB_UNROLL
    for (size_t r = 0; r < kRows; ++r) {
      const V x = LoadSome(d, X + static_cast<ptrdiff_t>(r) * stride + j, count);
      dot[r] = hn::MulAdd(x, right, dot[r]);
      sum = hn::MulAdd(weight[r], x, sum);
    }
    hn::StoreU(sum, d, uX + j);
  }
  PB_UNROLL
  for (size_t r = 0; r < kRows; ++r) Xv[r] = SumLanes(d, dot[r]);
}

template <typename T>
void Slab(const BilinearForm& form, const double* u, const double* v, size_t begin, size_t end,
          double* Xv, double* uX) {
  const T* X = static_cast<const T*>(form.X) + static_cast<ptrdiff_t>(begin) * form.stride;
  size_t row = begin;
  for (; row + 4 <= end; row += 4, X += 4 * form.stride) {
    Rows<4>(X, form.stride, form.cols, u + row, v, Xv + row, uX);
  }
  for (; row < end; ++row, X += form.stride) {
    Rows<1>(X, form.stride, form.cols, u + row, v, Xv + row, uX);
  }
}

void FormSlab(const BilinearForm& form, const double* u, const double* v, size_t begin, size_t end,
              double* Xv, double* uX) {
  if (form.dtype == DType::kFloat32) {
    Slab<float>(form, u, v, begin, end, Xv, uX);
  } else {
    Slab<double>(form, u, v, begin, end, Xv, uX);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(FormSlab);

namespace {

// Less of X is read before a parked worker would have woken.
constexpr size_t kParallelMatrix = size_t{1} << 17;

// A vector as doubles, in `room` unless it is one.
const double* Doubles(DType dtype, const void* vector, size_t n, double* room) {
  if (dtype == DType::kFloat64) return static_cast<const double*>(vector);
  std::copy_n(static_cast<const float*>(vector), n, room);
  return room;
}

// Memory: the slabs' sums, Xv, and the vectors where they are converted.
struct FormSums {
  double* slabs;
  size_t width;
  double *Xv, *u, *v;
};

// Not inlined: the caller guards the floating-point environment.
HWY_NOINLINE bool Run(const BilinearForm& form, const Partition& slabs, const FormSums& sums,
                      void* value, void* Xv, void* uX, Poll* poll) {
  auto* const kernel = HWY_DYNAMIC_DISPATCH(FormSlab);
  const double* const u = Doubles(form.dtype, form.u, form.rows, sums.u);
  const double* const v = Doubles(form.dtype, form.v, form.cols, sums.v);
  const auto sum_slab = [&](size_t slab) {
    const auto [begin, end] = slabs(slab);
    double* const sum = sums.slabs + slab * sums.width;
    std::fill(sum, sum + sums.width, 0.0);
    kernel(form, u, v, begin, end, sums.Xv, sum);
  };
  if (form.rows * form.cols < kParallelMatrix) {
    for (size_t slab = 0; slab < slabs.tasks; ++slab) sum_slab(slab);
  } else if (!ParallelFor(slabs.tasks, sum_slab, poll)) {
    return false;
  }
  MergeTree(slabs.tasks, [&](size_t to, size_t from) {
    AddTo(sums.slabs + to * sums.width, sums.slabs + from * sums.width, form.cols);
  });
  if (slabs.tasks == 0) std::fill_n(sums.slabs, form.cols, 0.0);
  double total = 0;
  for (size_t row = 0; row < form.rows; ++row) total += u[row] * sums.Xv[row];
  Write(total, form.dtype, value, 0);
  if (Xv == uX) AddTo(sums.Xv, sums.slabs, Xv == nullptr ? 0 : form.cols);
  for (size_t i = 0; Xv != nullptr && i < form.rows; ++i) Write(sums.Xv[i], form.dtype, Xv, i);
  for (size_t i = 0; uX != nullptr && uX != Xv && i < form.cols; ++i) {
    Write(sums.slabs[i], form.dtype, uX, i);
  }
  return true;
}

template <typename T>
void ScaleRow(const RowScaling& x, size_t s, size_t i) {
  const auto at = [](const Matrix& matrix, size_t row, size_t col) {
    return static_cast<T*>(matrix.data) + static_cast<ptrdiff_t>(row) * matrix.row +
           static_cast<ptrdiff_t>(col) * matrix.col;
  };
  const T g = *at(x.g, s, i);
  const T* from = at(x.from, i, 0);
  T* to = at(x.to, i, 0) + static_cast<ptrdiff_t>(s) * x.next;
  if (x.from.col == 1 && x.to.col == 1) {
    for (size_t j = 0; j < x.cols; ++j) to[j] = g * from[j];
    return;
  }
  for (size_t j = 0; j < x.cols; ++j, from += x.from.col, to += x.to.col) *to = g * *from;
}

HWY_NOINLINE bool Run(const RowScaling& x, Poll* poll) {
  const Partition blocks = RowPartition(x.count * x.rows, x.cols * ItemSize(x.dtype));
  const auto block = [&](size_t index) {
    const auto [begin, end] = blocks(index);
    for (size_t row = begin; row < end; ++row) {
      if (x.dtype == DType::kFloat32) {
        ScaleRow<float>(x, row / x.rows, row % x.rows);
      } else {
        ScaleRow<double>(x, row / x.rows, row % x.rows);
      }
    }
  };
  if (x.count * x.rows * x.cols >= kParallelMatrix) return ParallelFor(blocks.tasks, block, poll);
  for (size_t index = 0; index < blocks.tasks; ++index) block(index);
  return true;
}

}  // namespace

Outcome BilinearGradients(const BilinearForm& form, void* value, void* Xv, void* uX, Poll* poll) {
  const Partition slabs = RowPartition(form.rows, form.cols * ItemSize(form.dtype));
  const size_t width = PadDoubles(form.cols);
  const size_t slab_sums = std::max(slabs.tasks, size_t{1}) * width;
  const bool converted = form.dtype != DType::kFloat64;
  const size_t u = converted ? form.rows : 0, v = converted ? form.cols : 0;
  constexpr size_t kStackBytes = size_t{8} << 10;
  using FormScratch = Scratch<kStackBytes>;
  FormScratch scratch(FormScratch::Bytes<double>(slab_sums) +
                      FormScratch::Bytes<double>(form.rows) + FormScratch::Bytes<double>(u) +
                      FormScratch::Bytes<double>(v));
  if (!scratch) return Outcome::kOutOfMemory;
  double* const of_slabs = scratch.Take<double>(slab_sums);
  double* const of_rows = scratch.Take<double>(form.rows);
  double* const of_u = scratch.Take<double>(u);
  const FormSums sums{of_slabs, width, of_rows, of_u, scratch.Take<double>(v)};
  const KernelFpEnv fp_env(poll);
  return Run(form, slabs, sums, value, Xv, uX, poll) ? Outcome::kDone : Outcome::kInterrupted;
}

Outcome ScaleRows(const RowScaling& scaling, Poll* poll) {
  const KernelFpEnv fp_env(poll);
  return Run(scaling, poll) ? Outcome::kDone : Outcome::kInterrupted;
}

}  // namespace pullback
#endif  // HWY_ONCE

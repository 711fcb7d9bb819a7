// Bilinear forms: one pass over X, compiled once per instruction set.
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
void Slab(const BilinearForm& form, size_t begin, size_t end, double* Xv, double* uX) {
  const T* X = static_cast<const T*>(form.X) + static_cast<ptrdiff_t>(begin) * form.stride;
  size_t row = begin;
  for (; row + 4 <= end; row += 4, X += 4 * form.stride) {
    Rows<4>(X, form.stride, form.cols, form.u + row, form.v, Xv + row, uX);
  }
  for (; row < end; ++row, X += form.stride) {
    Rows<1>(X, form.stride, form.cols, form.u + row, form.v, Xv + row, uX);
  }
}

void FormSlab(const BilinearForm& form, size_t begin, size_t end, double* Xv, double* uX) {
  if (form.dtype == DType::kFloat32) {
    Slab<float>(form, begin, end, Xv, uX);
  } else {
    Slab<double>(form, begin, end, Xv, uX);
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

// Not inlined: the caller guards the floating-point environment.
HWY_NOINLINE bool Run(const BilinearForm& form, const Partition& slabs, size_t width, double* sums,
                      double* value, double* Xv, double* uX, Poll* poll) {
  auto* const kernel = HWY_DYNAMIC_DISPATCH(FormSlab);
  const auto sum_slab = [&](size_t slab) {
    const auto [begin, end] = slabs(slab);
    double* const sum = sums + slab * width;
    std::fill(sum, sum + width, 0.0);
    kernel(form, begin, end, Xv, sum);
  };
  if (form.rows * form.cols < kParallelMatrix) {
    for (size_t slab = 0; slab < slabs.tasks; ++slab) sum_slab(slab);
  } else if (!ParallelFor(slabs.tasks, sum_slab, poll)) {
    return false;
  }
  MergeTree(slabs.tasks, [&](size_t to, size_t from) {
    AddTo(sums + to * width, sums + from * width, form.cols);
  });
  if (slabs.tasks > 0) {
    std::copy(sums, sums + form.cols, uX);
  } else {
    std::fill(uX, uX + form.cols, 0.0);
  }
  *value = 0;
  for (size_t row = 0; row < form.rows; ++row) *value += form.u[row] * Xv[row];
  return true;
}

}  // namespace

Outcome BilinearGradients(const BilinearForm& form, double* value, double* Xv, double* uX,
                          Poll* poll) {
  const Partition slabs = RowPartition(form.rows, form.cols * ItemSize(form.dtype));
  const size_t width = PadDoubles(form.cols);
  constexpr size_t kStackBytes = size_t{8} << 10;
  Scratch<kStackBytes> scratch(slabs.tasks * width * sizeof(double));
  if (!scratch) return Outcome::kOutOfMemory;
  double* const sums = scratch.Take<double>(slabs.tasks * width);
  const KernelFpEnv fp_env(poll);
  return Run(form, slabs, width, sums, value, Xv, uX, poll) ? Outcome::kDone
                                                            : Outcome::kInterrupted;
}

}  // namespace pullback
#endif  // HWY_ONCE

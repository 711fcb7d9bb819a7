// Backward where slopes or X are not finite: in plain loops, one element of X at a time.
//
// As 0 * inf is NaN, an element that is 0 must not meet the slope of a row that overflowed, nor a
// row of weight 0 its own X.
#if defined(PULLBACK_CPP_KERNELS_GUARDED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_GUARDED_INL_H_
#undef PULLBACK_CPP_KERNELS_GUARDED_INL_H_
#else
#define PULLBACK_CPP_KERNELS_GUARDED_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>

#include "kernels/dense-inl.h"
#include "kernels/losses.h"
#include "kernels/sparse-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {

inline bool Counts(const double* weight, size_t row) {
  return weight == nullptr || weight[row] != 0;
}

template <typename T, bool kRows>
void GuardedDense(const Design& X, size_t outputs, Range rows, const double* slopes,
                  const double* weight, double* gw, void*) {
  for (size_t r = 0; r < rows.size(); ++r) {
    if (!Counts(weight, r)) continue;
    const size_t row = rows.begin + r;
    for (size_t j = 0; j < X.cols; ++j) {
      const double x = kRows ? LineOf<T>(X, row)[j] : LineOf<T>(X, j)[row];
      if (x == 0) continue;
      for (size_t k = 0; k < outputs; ++k) gw[j * outputs + k] += x * slopes[r * outputs + k];
    }
  }
}

// Of compensated sums each column has a row of `outputs` sums, then one of what they lost.
template <Sums kSums>
void GuardedCsr(const Design& X, size_t outputs, Range rows, const double* slopes,
                const double* weight, double* gw, void* state) {
  RowSpans<double> spans(X, rows.size(), *static_cast<RowsState*>(state));
  for (size_t r = 0; r < rows.size(); ++r) {
    if (!Counts(weight, r)) continue;
    size_t i = spans.Begin(r), stop;
    do {
      for (stop = spans.Check(r, i); i < stop; ++i) {
        const double x = spans.data[i];
        if (x == 0) continue;
        double* const to = gw + size_t{spans.indices[i]} * outputs * kParts<kSums>;
        for (size_t k = 0; k < outputs; ++k) {
          const double term = x * slopes[r * outputs + k], before = to[k];
          to[k] += term;
          if constexpr (kSums == Sums::kCompensated) {
            const double added = to[k] - before;
            to[outputs + k] += (before - (to[k] - added)) + (term - added);
          }
        }
      }
    } while (spans.More(r, stop));
  }
}

template <typename T>
void GuardedCsc(const Design& X, size_t outputs, Range rows, const double* slopes,
                const double* weight, double* gw, void* state) {
  ColumnSpans<T> spans(X, rows, *static_cast<const ColumnsState*>(state));
  for (size_t col = 0; col < X.cols; ++col) {
    size_t begin = spans.Begin(col), stop;
    do {
      stop = spans.Check(col, begin);
      for (size_t k = 0; k < outputs; ++k) {
        double sum = 0;
        for (size_t i = begin; i < stop; ++i) {
          const size_t row = spans.indices[i];
          const double x = spans.data[i];
          if (x != 0 && Counts(weight, row)) sum += x * slopes[row * outputs + k];
        }
        gw[col * outputs + k] += sum;
      }
      begin = stop;
    } while (spans.More(col, stop));
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

// Backward where slopes or X are not finite: in plain loops that look at every element of X.
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

#include <algorithm>
#include <cstddef>

#include "kernels/dense-inl.h"
#include "kernels/load-inl.h"
#include "kernels/losses.h"
#include "kernels/sparse-inl.h"
#include "kernels/sums.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline bool Counts(const double* weight, size_t row) {
  return weight == nullptr || weight[row] != 0;
}

// x * slope, 0 for an x of 0.
template <class V>
HWY_INLINE V GuardedProduct(V x, V slope) {
  return hn::IfThenZeroElse(hn::Eq(x, hn::Zero(hn::DFromV<V>())), hn::Mul(x, slope));
}

template <typename T>
void GuardedRows(const Design& X, size_t outputs, Range rows, const double* slopes,
                 const double* weight, double* gw, void*) {
  const hn::ScalableTag<double> d;
  for (size_t r = 0; r < rows.size(); ++r, slopes += outputs) {
    if (!Counts(weight, r)) continue;
    const T* const x = LineOf<T>(X, rows.begin + r);
    if (outputs == 1) {
      const auto slope = hn::Set(d, *slopes);
      for (size_t j = 0; j < X.cols; j += hn::Lanes(d)) {
        const auto some = LoadSome(d, x + j, std::min(hn::Lanes(d), X.cols - j));
        hn::StoreU(hn::Add(hn::LoadU(d, gw + j), GuardedProduct(some, slope)), d, gw + j);
      }
      continue;
    }
    for (size_t j = 0; j < X.cols; ++j) {
      if (x[j] == 0) continue;
      for (size_t k = 0; k < outputs; ++k) gw[j * outputs + k] += double{x[j]} * slopes[k];
    }
  }
}

template <typename T>
void GuardedColumns(const Design& X, size_t outputs, Range rows, const double* slopes,
                    const double* weight, double* gw, void*) {
  const hn::ScalableTag<double> d;
  for (size_t j = 0; j < X.cols; ++j, gw += outputs) {
    const T* const x = LineOf<T>(X, j) + rows.begin;
    if (outputs == 1) {
      auto sum = hn::Zero(d);
      for (size_t r = 0; r < rows.size(); r += hn::Lanes(d)) {
        const size_t count = std::min(hn::Lanes(d), rows.size() - r);
        auto term = GuardedProduct(LoadSome(d, x + r, count), LoadSome(d, slopes + r, count));
        if (weight != nullptr) {
          const auto zero = hn::Eq(LoadSome(d, weight + r, count), hn::Zero(d));
          term = hn::IfThenZeroElse(zero, term);
        }
        sum = hn::Add(sum, term);
      }
      *gw += SumLanes(d, sum);
      continue;
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      if (x[r] == 0 || !Counts(weight, r)) continue;
      for (size_t k = 0; k < outputs; ++k) gw[k] += double{x[r]} * slopes[r * outputs + k];
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

// The table of losses, and what the driver does to a chunk besides, once per instruction set.
#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/loss_scores.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <array>
#include <cstddef>
#include <utility>

#include "kernels/loss_scores-inl.h"
#include "kernels/losses.h"
#include "kernels/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {

// The row-coupled losses go behind the pointwise ones.
template <size_t... kRow>
constexpr auto LossTableOf(std::index_sequence<kRow...>) {
  return std::array{kPointwiseLoss<LossRow<kRow>>..., kSoftmaxCrossEntropy};
}

LossTable TableOfLosses() {
  static constexpr auto kTable = LossTableOf(std::make_index_sequence<size_t{kLossRows}>());
  return kTable;
}

// The four chains of additions hide their latency.
double SumWeights(const double* weight, size_t n, size_t* bad) {
  const hn::ScalableTag<double> d;
  using V = hn::Vec<decltype(d)>;
  V sum = hn::Zero(d);
  V within = hn::VecFromMask(d, hn::Eq(sum, sum));
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const V some = LoadSome(d, weight + i, std::min(hn::Lanes(d), n - i));
    const auto domain = hn::And(hn::Ge(some, hn::Zero(d)), hn::Lt(some, Infinity(d)));
    within = hn::And(within, hn::VecFromMask(d, domain));
    sum = hn::Add(sum, some);
  }
  *bad = kNoRow;
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::MaskFromVec(within)))) {
    *bad = 0;
    while (weight[*bad] >= 0 && weight[*bad] <= hwy::HighestValue<double>()) ++*bad;
  }
  return SumLanes(d, sum);
}

void SumOutputs(const double* slopes, size_t rows, size_t outputs, double* sums) {
  if (outputs > 1) {
    const hn::CappedTag<double, 4> d4;
    for (size_t k = 0; k < outputs; k += hn::Lanes(d4)) {
      const size_t some = std::min(hn::Lanes(d4), outputs - k);
      auto sum = LoadSome(d4, sums + k, some);
      for (size_t r = 0; r < rows; ++r) {
        sum = hn::Add(sum, LoadSome(d4, slopes + r * outputs + k, some));
      }
      StoreFirst(sum, d4, sums + k, some);
    }
    return;
  }
  const hn::ScalableTag<double> d;
  using V = hn::Vec<decltype(d)>;
  V s0 = hn::Zero(d), s1 = s0;
  size_t i = 0;
  for (; i + 2 * hn::Lanes(d) <= rows; i += 2 * hn::Lanes(d)) {
    s0 = hn::Add(s0, hn::LoadU(d, slopes + i));
    s1 = hn::Add(s1, hn::LoadU(d, slopes + i + hn::Lanes(d)));
  }
  for (; i < rows; i += hn::Lanes(d)) {
    s0 = hn::Add(s0, LoadSome(d, slopes + i, std::min(hn::Lanes(d), rows - i)));
  }
  *sums += SumLanes(d, hn::Add(s0, s1));
}

template <typename T>
void WriteGradientInX(const double* slopes, size_t rows, size_t outputs, const double* w,
                      size_t cols, double scale, void* gX, ptrdiff_t stride) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<T, decltype(d)> dt;
  for (size_t r = 0; r < rows; ++r) {
    const double* const slope = slopes + r * outputs;
    T* const row = static_cast<T*>(gX) + static_cast<ptrdiff_t>(r) * stride;
    if (outputs > 1) {
      for (size_t j = 0; j < cols; ++j) {
        double sum = 0;
        for (size_t k = 0; k < outputs; ++k) sum += slope[k] * w[j * outputs + k];
        row[j] = static_cast<T>(scale * sum);
      }
      continue;
    }
    const auto factor = hn::Set(d, scale * slope[0]);
    for (size_t j = 0; j < cols; j += hn::Lanes(d)) {
      const auto product = hn::Mul(factor, hn::LoadU(d, w + j));
      const size_t count = std::min(hn::Lanes(d), cols - j);
      if constexpr (sizeof(T) == 8) {
        StoreSome(product, d, row, j, count);
      } else {
        const auto rounded = hn::DemoteTo(dt, product);
        if (count == hn::Lanes(d)) {
          hn::StoreU(rounded, dt, row + j);
        } else {
          StoreTail(rounded, dt, row + j, count);
        }
      }
    }
  }
}

const ChunkKernels* ChunkTable() {
  static constexpr ChunkKernels kTable = {
      SumWeights, SumOutputs, {WriteGradientInX<float>, WriteGradientInX<double>}};
  return &kTable;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(TableOfLosses);
HWY_EXPORT(ChunkTable);

const PerTarget<LossTable>& LossTables() {
  static const auto tables = GetPerTarget([] { return HWY_DYNAMIC_DISPATCH(TableOfLosses)(); });
  return tables;
}

std::optional<size_t> FindLoss(std::string_view name) {
  const LossTable rows = LossOps();
  for (size_t row = 0; row < rows.size(); ++row) {
    if (rows[row].name == name) return row;
  }
  return std::nullopt;
}

const ChunkKernels& KernelsOfChunks() { return *HWY_DYNAMIC_DISPATCH(ChunkTable)(); }

}  // namespace pullback
#endif  // HWY_ONCE

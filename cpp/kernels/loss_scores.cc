// The table of losses, and what the driver does to a chunk besides, once per instruction set.
#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/loss_scores.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <utility>

#include "kernels/interleaved-inl.h"
#include "kernels/loss_scores-inl.h"
#include "kernels/losses.h"
#include "kernels/softmax-inl.h"
#include "kernels/sums.h"
#include "runtime/prefetch.h"

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

HWY_NOINLINE size_t FirstBadWeight(const double* weight, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    if (!(weight[i] >= 0 && weight[i] <= hwy::HighestValue<double>())) return i;
  }
  return kNoRow;  // their owner has changed them meanwhile
}

WeightCheck CheckWeights(const double* weight, size_t n) {
  const hn::ScalableTag<double> d;
  using V = hn::Vec<decltype(d)>;
  V sum = hn::Zero(d), least = hn::Set(d, 1), most = sum;
  size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
    const V some = hn::LoadU(d, weight + i);
    least = hn::Min(least, some);
    most = hn::Max(most, some);
    sum = hn::Add(sum, some);
  }
  if (i < n) {
    const V some = LoadSome(d, weight + i, n - i);
    least = hn::Min(least, hn::IfThenElse(hn::FirstN(d, n - i), some, least));
    most = hn::Max(most, some);
    sum = hn::Add(sum, some);
  }
  const double total = SumLanes(d, sum);
  const bool has_zero = !hn::AllTrue(d, hn::Gt(least, hn::Zero(d)));
  const auto within = hn::And(hn::Ge(least, hn::Zero(d)), hn::Lt(most, Infinity(d)));
  // A NaN may pass these, but not the sum.
  const bool good = HWY_LIKELY(hn::AllTrue(d, within) && total == total);
  return {good ? kNoRow : FirstBadWeight(weight, n), has_zero};
}

// x - x is a NaN of what is not finite.
bool AllFinite(const double* values, size_t n) {
  const hn::ScalableTag<double> d;
  auto rests = hn::Zero(d);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto some = LoadSome(d, values + i, std::min(hn::Lanes(d), n - i));
    rests = hn::Or(rests, hn::Sub(some, some));
  }
  return hn::AllTrue(d, hn::Eq(rests, rests));
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

// Of up to four outputs whole vectors, whose lanes belong to other outputs in each of as many.
template <size_t kOutputs>
void SumFewOutputs(const double* slopes, size_t rows, double* sums) {
  const hn::ScalableTag<double> d;
  constexpr size_t kLanes = hn::MaxLanes(decltype(d)()), kStep = kOutputs * kLanes;
  using V = hn::Vec<decltype(d)>;
  std::array<V, kOutputs> sum;
  sum.fill(hn::Zero(d));
  const size_t n = rows * kOutputs;
  size_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    PB_UNROLL
    for (size_t v = 0; v < kOutputs; ++v) {
      sum[v] = hn::Add(sum[v], hn::LoadU(d, slopes + i + v * kLanes));
    }
  }
  HWY_ALIGN double lanes[kStep];
  PB_UNROLL
  for (size_t v = 0; v < kOutputs; ++v) hn::Store(sum[v], d, lanes + v * kLanes);
  for (size_t k = 0; i < n; ++i, k = k + 1 == kStep ? 0 : k + 1) lanes[k] += slopes[i];
  for (size_t k = 0; k < kOutputs; ++k) {
    double total = 0;
    for (size_t lane = k; lane < kStep; lane += kOutputs) total += lanes[lane];
    sums[k] += total;
  }
}

void SumClasses(const double* slopes, size_t rows, size_t outputs, double* sums) {
  switch (outputs) {
    case 2:
      return SumFewOutputs<2>(slopes, rows, sums);
    case 3:
      return SumFewOutputs<3>(slopes, rows, sums);
    case 4:
      return SumFewOutputs<4>(slopes, rows, sums);
    default:
      return SumOutputs(slopes, rows, outputs, sums);
  }
}

void StepAlong(const double* line, size_t rows, size_t outputs, double step, double* z,
               double* change) {
  const hn::ScalableTag<double> d;
  const size_t lanes = hn::Lanes(d);
  const auto by = hn::Set(d, step);
  if (outputs == 1) {
    for (size_t r = 0; r < rows; r += lanes) {
      const auto both = LoadSomeRows<2>(d, line + 2 * r, std::min(lanes, rows - r));
      hn::StoreU(hn::MulAdd(by, both[1], both[0]), d, z + r);
      hn::StoreU(both[1], d, change + r);
    }
    return;
  }
  // What is written behind a row belongs to the next one, or to nobody.
  for (size_t r = 0; r < rows; ++r, line += 2 * outputs, z += outputs, change += outputs) {
    for (size_t k = 0; k < outputs; k += lanes) {
      const size_t some = std::min(lanes, outputs - k);
      const auto along = LoadSome(d, line + outputs + k, some);
      hn::StoreU(hn::MulAdd(by, along, LoadSome(d, line + k, some)), d, z + k);
      hn::StoreU(along, d, change + k);
    }
  }
}

double SumProducts(const double* slopes, const double* change, size_t n) {
  const hn::ScalableTag<double> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  V s0 = hn::Zero(d), s1 = s0;
  const auto add = [&](V& sum, V slope, V by) HWY_ATTR {
    sum = hn::MulAdd(slope, hn::IfThenZeroElse(hn::Eq(slope, hn::Zero(d)), by), sum);
  };
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    add(s0, hn::LoadU(d, slopes + i), hn::LoadU(d, change + i));
    add(s1, hn::LoadU(d, slopes + i + lanes), hn::LoadU(d, change + i + lanes));
  }
  for (; i < n; i += lanes) {
    const size_t some = std::min(lanes, n - i);
    add(s0, LoadSome(d, slopes + i, some), LoadSome(d, change + i, some));
  }
  return SumLanes(d, hn::Add(s0, s1));
}

// kOutputs: 0 for any number. The last vector overlaps the one before: masked stores take 20 cycles
// each on some CPUs.
template <typename T, size_t kOutputs>
void WriteRowsInX(const double* slopes, size_t rows, size_t outputs, const double* w, size_t cols,
                  double scale, T* gX, ptrdiff_t stride) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<T, decltype(d)> dt;
  const size_t lanes = hn::Lanes(d), some = std::min(lanes, cols), w_row = PadDoubles(cols);
  const size_t n = kOutputs == 0 ? outputs : kOutputs;
  for (size_t r = 0; r < rows; ++r, slopes += n, gX += stride) {
    const auto factor = hn::Set(d, n == 1 ? scale * slopes[0] : scale);
    for (size_t at = 0; at < cols; at += lanes) {
      const size_t j = std::min(at, cols - some);
      auto sum = n == 1 ? hn::LoadU(d, w + j) : hn::Zero(d);
      PB_UNROLL
      for (size_t k = 0; n > 1 && k < n; ++k) {
        sum = hn::Add(sum, hn::Mul(hn::Set(d, slopes[k]), hn::LoadU(d, w + k * w_row + j)));
      }
      const auto product = hn::Mul(factor, sum);
      if constexpr (sizeof(T) == 8) {
        StoreFirst(product, d, gX + j, some);
      } else {
        StoreFirst(hn::DemoteTo(dt, product), dt, gX + j, some);
      }
    }
  }
}

template <typename T>
void WriteGradientInX(const double* slopes, size_t rows, size_t outputs, const double* w,
                      size_t cols, double scale, void* gX, ptrdiff_t stride) {
  constexpr decltype(&WriteRowsInX<T, 0>) kFew[] = {WriteRowsInX<T, 1>, WriteRowsInX<T, 2>,
                                                    WriteRowsInX<T, 3>, WriteRowsInX<T, 4>};
  const auto write = outputs <= std::size(kFew) ? kFew[outputs - 1] : WriteRowsInX<T, 0>;
  write(slopes, rows, outputs, w, cols, scale, static_cast<T*>(gX), stride);
}

// Shifted into place a half's exponent is 112 too small, which one exact product mends, for its
// subnormals as well. Highway's own, where no instruction does it, knows no inf and NaN.
template <Stored kStored, class D>
HWY_INLINE hn::Vec<D> Widened(D d, const uint16_t* from) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> du16;
  const auto bits = hn::LoadU(du16, from);
  if constexpr (kStored == Stored::kBfloat16) {
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
  } else {
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86 && !defined(HWY_DISABLE_F16C)
    return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), bits));
#else
    const auto wide = hn::PromoteTo(du, bits);
    const auto magnitude = hn::ShiftLeft<13>(hn::And(wide, hn::Set(du, 0x7FFFu)));
    const auto sign = hn::ShiftLeft<16>(hn::And(wide, hn::Set(du, 0x8000u)));
    const auto scaled = hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112f));
    const auto special = hn::Or(magnitude, hn::Set(du, 0x7F800000u));
    const auto ordinary = hn::Lt(hn::BitCast(hn::RebindToSigned<D>(), magnitude),
                                 hn::Set(hn::RebindToSigned<D>(), 0x0F800000));
    const auto size = hn::IfThenElse(hn::RebindMask(d, ordinary), scaled, hn::BitCast(d, special));
    return hn::Or(size, hn::BitCast(d, sign));
#endif
  }
}

template <Stored kStored>
void Widen(const uint16_t* from, size_t n, size_t ahead, float* to) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  constexpr size_t kMost = hn::MaxLanes(hn::ScalableTag<float>()), kLine = 64 / sizeof(uint16_t);
  size_t i = 0;
  for (; i + kLine <= n; i += kLine) {
    if (ahead != 0) PrefetchIntoL2(from + i + ahead);
    for (size_t k = i; k < i + kLine; k += lanes) {
      hn::StoreU(Widened<kStored>(d, from + k), d, to + k);
    }
  }
  for (; i + lanes <= n; i += lanes) hn::StoreU(Widened<kStored>(d, from + i), d, to + i);
  if (i == n) return;
  HWY_ALIGN uint16_t some[kMost] = {};
  HWY_ALIGN float widened[kMost];
  std::memcpy(some, from + i, (n - i) * sizeof(uint16_t));
  hn::Store(Widened<kStored>(d, some), d, widened);
  std::memcpy(to + i, widened, (n - i) * sizeof(float));
}

const ChunkKernels* ChunkTable() {
  static constexpr ChunkKernels kTable = {
      CheckWeights,
      AllFinite,
      {SumOutputs, SumClasses},
      StepAlong,
      SumProducts,
      {WriteGradientInX<float>, WriteGradientInX<double>},
      {nullptr, Widen<Stored::kFloat16>, Widen<Stored::kBfloat16>}};
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

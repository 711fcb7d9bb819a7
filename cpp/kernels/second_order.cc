// Second order of rows, compiled once per instruction set. The formulas are those of
// pullback.second_order, where Python says what is done with the suspects.
#include "kernels/second_order.h"

#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/second_order.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/elementwise.h"
#include "kernels/load-inl.h"
#include "kernels/tasks.h"
#include "math/exp-inl.h"
#include "runtime/fp_env.h"
#include "runtime/partition.h"
#include "runtime/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using SecondTag = hn::ScalableTag<double>;
using SecondVec = hn::Vec<SecondTag>;

// Calls `visit(i, count)` for each vector of n elements.
template <class Visit>
HWY_INLINE void ForVectors(size_t begin, size_t end, const Visit& visit) {
  const size_t lanes = hn::Lanes(SecondTag());
  for (size_t i = begin; i < end; i += lanes) visit(i, std::min(lanes, end - i));
}

// Sums over a row: of runs, which are merged as a tree. `terms(i, count)` is an array of vectors,
// whatever lies behind `count` lanes.
template <size_t kSums, class TermsOf>
HWY_INLINE std::array<double, kSums> SumOver(size_t n, const TermsOf& terms) {
  const SecondTag d;
  constexpr size_t kRun = 1024, kLevels = 54;
  std::array<std::array<double, kSums>, kLevels> tree;
  size_t runs = 0;
  std::array<double, kSums> total;
  for (size_t begin = 0; begin < n; begin += kRun, ++runs) {
    std::array<SecondVec, kSums> sums;
    PB_UNROLL
    for (size_t k = 0; k < kSums; ++k) sums[k] = hn::Zero(d);
    ForVectors(begin, std::min(n, begin + kRun), [&](size_t i, size_t count) HWY_ATTR {
      const std::array<SecondVec, kSums> some = terms(i, count);
      const auto there = hn::FirstN(d, count);
      PB_UNROLL
      for (size_t k = 0; k < kSums; ++k) {
        sums[k] = hn::Add(sums[k], hn::IfThenElseZero(there, some[k]));
      }
    });
    for (size_t k = 0; k < kSums; ++k) total[k] = SumLanes(d, sums[k]);
    size_t level = 0;
    for (size_t carries = runs; (carries & 1) != 0; carries >>= 1, ++level) {
      for (size_t k = 0; k < kSums; ++k) total[k] += tree[level][k];
    }
    tree[level] = total;
  }
  // The last run's total holds all that were carried; what is left stands on higher levels.
  size_t carries = runs, level = 0;
  while ((carries & 1) == 0) carries >>= 1, ++level;
  total = tree[level];
  for (carries >>= 1, ++level; carries != 0; carries >>= 1, ++level) {
    if ((carries & 1) == 0) continue;
    for (size_t k = 0; k < kSums; ++k) total[k] += tree[level][k];
  }
  return total;
}

// Magnitudes of which no products over- or underflow.
constexpr double kSmall = 0x1p-300, kLarge = 0x1p300;
inline bool IsTame(double size) { return size == 0 || (size >= kSmall && size <= kLarge); }

// One row. `e` has room for n doubles and a vector.
class SecondOrderOfRow {
 public:
  SecondOrderOfRow(const SecondCall& call, size_t row, double* e)
      : n_(call.n),
        x_(call.x + row * call.n),
        t_(call.t + row * call.n),
        g_(call.g + (IsMap(call.row) ? row * call.n : row)),
        out_(call.out + row * call.n),
        e_(e) {}

  // Each returns whether the result can be trusted.

  bool Softmax() {
    Sums();
    const double g_mean = Mean(g_);
    const SecondTag d;
    const SecondVec mt = hn::Set(d, t_mean_), mg = hn::Set(d, g_mean);
    // What the means have lost.
    const auto [dt, dg, c] = SumOver<3>(n_, [&](size_t i, size_t count) HWY_ATTR {
      const SecondVec e = LoadSome(d, e_ + i, count);
      const SecondVec T = hn::Sub(LoadSome(d, t_ + i, count), mt);
      const SecondVec G = hn::Sub(LoadSome(d, g_ + i, count), mg);
      const SecondVec eT = hn::Mul(e, T);
      return std::array{eT, hn::Mul(e, G), hn::Mul(eT, G)};
    });
    const double t_rest = dt * share_, g_rest = dg * share_;
    const SecondVec mean = hn::Set(d, c * share_ - t_rest * g_rest);
    const SecondVec rt = hn::Set(d, t_rest), rg = hn::Set(d, g_rest), share = hn::Set(d, share_);
    return Write([&](size_t i, size_t count) HWY_ATTR {
      const SecondVec T = hn::Sub(hn::Sub(LoadSome(d, t_ + i, count), mt), rt);
      const SecondVec G = hn::Sub(hn::Sub(LoadSome(d, g_ + i, count), mg), rg);
      const SecondVec p = hn::Mul(LoadSome(d, e_ + i, count), share);
      return hn::Mul(p, hn::MulSub(T, G, mean));
    });
  }

  bool LogSoftmax() {
    Sums();
    const SecondTag d;
    const auto [sum] = SumOver<1>(n_, [&](size_t i, size_t count) HWY_ATTR {
      return std::array{LoadSome(d, g_ + i, count)};
    });
    return Centred(-sum);
  }

  bool LogSumExp() {
    Sums();
    return Centred(g_[0]);
  }

  bool Norm2() {
    const SecondTag d;
    const auto [squares, products, size_of_t] =
        SumOver<3>(n_, [&](size_t i, size_t count) HWY_ATTR {
          const SecondVec x = LoadSome(d, x_ + i, count), t = LoadSome(d, t_ + i, count);
          return std::array{hn::Mul(x, x), hn::Mul(x, t), hn::Abs(t)};
        });
    if (squares == 0 || !IsTame(squares) || !IsTame(size_of_t) || !IsTame(std::abs(g_[0]))) {
      return false;
    }
    const double size = std::sqrt(squares);
    const SecondVec along = hn::Set(d, products / squares), factor = hn::Set(d, g_[0] / size);
    return Write([&](size_t i, size_t count) HWY_ATTR {
      const SecondVec x = LoadSome(d, x_ + i, count), t = LoadSome(d, t_ + i, count);
      return hn::Mul(factor, hn::NegMulAdd(x, along, t));
    });
  }

  bool SquaredNorm2() {
    const SecondTag d;
    const SecondVec g = hn::Set(d, g_[0]);
    return Write([&](size_t i, size_t count) HWY_ATTR {
      const SecondVec product = hn::Mul(g, LoadSome(d, t_ + i, count));
      return hn::Add(product, product);
    });
  }

  bool Constant() {
    std::fill_n(out_, n_, 0.0);
    return true;
  }

  bool Flat() {
    const SecondTag d;
    return Write([&](size_t i, size_t count) HWY_ATTR {
      const SecondVec x = LoadSome(d, x_ + i, count);
      return hn::Sub(x, x);
    });
  }

  bool Variance(double ddof) {
    const double n = static_cast<double>(n_), divisor = n - ddof;
    if (!(divisor > 0)) return false;
    const SecondTag d;
    const auto [sum] = SumOver<1>(n_, [&](size_t i, size_t count) HWY_ATTR {
      return std::array{LoadSome(d, t_ + i, count)};
    });
    const SecondVec mean = hn::Set(d, sum / n);
    const auto [lost] = SumOver<1>(n_, [&](size_t i, size_t count) HWY_ATTR {
      return std::array{hn::Sub(LoadSome(d, t_ + i, count), mean)};
    });
    const SecondVec rest = hn::Set(d, lost / n), factor = hn::Set(d, 2 * g_[0] / divisor);
    return Write([&](size_t i, size_t count) HWY_ATTR {
      return hn::Mul(factor, hn::Sub(hn::Sub(LoadSome(d, t_ + i, count), mean), rest));
    });
  }

  bool LayerNorm(double eps) {
    const SecondTag d;
    const double n = static_cast<double>(n_);
    const auto [sx, st, sg, at, ag] = SumOver<5>(n_, [&](size_t i, size_t count) HWY_ATTR {
      const SecondVec t = LoadSome(d, t_ + i, count), g = LoadSome(d, g_ + i, count);
      return std::array{LoadSome(d, x_ + i, count), t, g, hn::Abs(t), hn::Abs(g)};
    });
    const double x_mean = sx / n;
    const SecondVec mx = hn::Set(d, x_mean), mt = hn::Set(d, st / n), mg = hn::Set(d, sg / n);
    const auto [dx, dt, dg, xx, xt, xg] = SumOver<6>(n_, [&](size_t i, size_t count) HWY_ATTR {
      const SecondVec X = hn::Sub(LoadSome(d, x_ + i, count), mx);
      const SecondVec T = hn::Sub(LoadSome(d, t_ + i, count), mt);
      const SecondVec G = hn::Sub(LoadSome(d, g_ + i, count), mg);
      return std::array{X, T, G, hn::Mul(X, X), hn::Mul(X, T), hn::Mul(X, G)};
    });
    const double x_rest = dx / n, t_rest = dt / n, g_rest = dg / n;
    const double variance = xx / n - x_rest * x_rest, whole = variance + eps;
    constexpr double kNoise = 0x1p-80;  // of a mean's rounding errors, squared
    if (!IsTame(whole) || !IsTame(xx) || !IsTame(at) || !IsTame(ag) ||
        !(whole > kNoise * x_mean * x_mean)) {
      return false;
    }
    const double rate = 1 / std::sqrt(whole);
    const double along_t = rate * (xt / n - x_rest * t_rest);
    const double along_g = rate * (xg / n - x_rest * g_rest);
    const SecondVec rx = hn::Set(d, x_rest), rt = hn::Set(d, t_rest), rg = hn::Set(d, g_rest);
    const SecondVec r = hn::Set(d, rate), b = hn::Set(d, along_t), a = hn::Set(d, along_g);
    struct Parts {
      SecondVec y, T, G;
    };
    const auto parts = [&](size_t i, size_t count) HWY_ATTR {
      const SecondVec y = hn::Mul(r, hn::Sub(hn::Sub(LoadSome(d, x_ + i, count), mx), rx));
      const SecondVec T = hn::Sub(hn::Sub(LoadSome(d, t_ + i, count), mt), rt);
      const SecondVec G = hn::Sub(hn::Sub(LoadSome(d, g_ + i, count), mg), rg);
      return Parts{y, hn::NegMulAdd(b, y, T), hn::NegMulAdd(a, y, G)};
    };
    const auto [sum] = SumOver<1>(n_, [&](size_t i, size_t count) HWY_ATTR {
      const Parts p = parts(i, count);
      return std::array{hn::Mul(p.T, p.G)};
    });
    const SecondVec c = hn::Set(d, sum / n + along_g * along_t * (eps * rate * rate));
    const SecondVec factor = hn::Set(d, -rate * rate);
    return Write([&](size_t i, size_t count) HWY_ATTR {
      const Parts p = parts(i, count);
      return hn::Mul(factor, hn::MulAdd(b, p.G, hn::MulAdd(a, p.T, hn::Mul(p.y, c))));
    });
  }

 private:
  // Exponentials of the distances from the largest element, and the mean of t with these weights.
  HWY_INLINE void Sums() {
    const SecondTag d;
    SecondVec most = hn::Set(d, -std::numeric_limits<double>::infinity());
    ForVectors(0, n_, [&](size_t i, size_t count) HWY_ATTR {
      const SecondVec x = LoadSome(d, x_ + i, count);
      most = hn::Max(most, hn::IfThenElse(hn::FirstN(d, count), x, most));
    });
    const double largest = hn::GetLane(hn::MaxOfLanes(d, most));
    const SecondVec pivot = hn::Set(d, largest);
    const auto [sum, moved] = SumOver<2>(n_, [&](size_t i, size_t count) HWY_ATTR {
      const SecondVec e = ExpBelow(d, LoadSome(d, x_ + i, count), pivot);
      hn::StoreU(e, d, e_ + i);
      return std::array{e, hn::Mul(e, LoadSome(d, t_ + i, count))};
    });
    share_ = 1 / sum;
    t_mean_ = moved * share_;
  }

  HWY_INLINE double Mean(const double* v) const {
    const SecondTag d;
    const auto [moved] = SumOver<1>(n_, [&](size_t i, size_t count) HWY_ATTR {
      return std::array{hn::Mul(LoadSome(d, e_ + i, count), LoadSome(d, v + i, count))};
    });
    return moved * share_;
  }

  // factor * p (t - <p, t>)
  HWY_INLINE bool Centred(double factor) const {
    const SecondTag d;
    const SecondVec mean = hn::Set(d, t_mean_), share = hn::Set(d, share_);
    const SecondVec by = hn::Set(d, factor);
    return Write([&](size_t i, size_t count) HWY_ATTR {
      const SecondVec p = hn::Mul(LoadSome(d, e_ + i, count), share);
      return hn::Mul(hn::Mul(p, hn::Sub(LoadSome(d, t_ + i, count), mean)), by);
    });
  }

  // Writes the result, and returns whether it is finite.
  template <class F>
  HWY_INLINE bool Write(const F& f) const {
    const SecondTag d;
    SecondVec nothing = hn::Zero(d);
    ForVectors(0, n_, [&](size_t i, size_t count) HWY_ATTR {
      const SecondVec result = f(i, count);
      const SecondVec none = hn::Sub(result, result);
      nothing = hn::Add(nothing, hn::IfThenElseZero(hn::FirstN(d, count), none));
      StoreFirst(result, d, out_ + i, count);
    });
    return SumLanes(d, nothing) == 0;
  }

  const size_t n_;
  const double *const x_, *const t_, *const g_;
  double* const out_;
  double* const e_;
  double share_ = 0, t_mean_ = 0;
};

void SecondRows(const SecondCall& call, size_t begin, size_t end, double* room) {
  for (size_t i = begin; i < end; ++i) {
    SecondOrderOfRow row(call, i, room);
    bool good = false;
    switch (call.row) {
      case SecondRow::kSoftmax:
        good = row.Softmax();
        break;
      case SecondRow::kLogSoftmax:
        good = row.LogSoftmax();
        break;
      case SecondRow::kLayerNorm:
        good = row.LayerNorm(call.parameter);
        break;
      case SecondRow::kLogSumExp:
        good = row.LogSumExp();
        break;
      case SecondRow::kNorm2:
        good = row.Norm2();
        break;
      case SecondRow::kVariance:
        good = row.Variance(call.parameter);
        break;
      case SecondRow::kSquaredNorm2:
        good = row.SquaredNorm2();
        break;
      case SecondRow::kConstant:
        good = row.Constant();
        break;
      case SecondRow::kFlat:
        good = row.Flat();
        break;
    }
    call.suspects[i] = good ? 0 : 1;
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(SecondRows);

std::optional<SecondRow> FindSecond(std::string_view name) {
  struct Named {
    std::string_view name;
    SecondRow row;
  };
  constexpr Named kRows[] = {
      {"softmax", SecondRow::kSoftmax},
      {"log_softmax", SecondRow::kLogSoftmax},
      {"layer_norm", SecondRow::kLayerNorm},
      {"logsumexp", SecondRow::kLogSumExp},
      {"norm2", SecondRow::kNorm2},
      {"variance", SecondRow::kVariance},
      {"squared_norm2", SecondRow::kSquaredNorm2},
      {"sum", SecondRow::kConstant},
      {"mean", SecondRow::kConstant},
      {"norm1", SecondRow::kFlat},
      {"norm_inf", SecondRow::kFlat},
      {"max", SecondRow::kFlat},
      {"min", SecondRow::kFlat},
  };
  for (const Named& known : kRows) {
    if (known.name == name) return known.row;
  }
  return std::nullopt;
}

Outcome SecondOrder(const SecondCall& call, Poll* poll) {
  constexpr size_t kTaskElements = 16384, kStackBytes = size_t{16} << 10, kLongestVector = 8;
  const Partition tasks = PartitionBy(call.rows, std::max<size_t>(kTaskElements / call.n, 1));
  const KernelFpEnv fp_env(poll);
  auto* const kernel = HWY_DYNAMIC_DISPATCH(SecondRows);
  return RunTasks(tasks.tasks, call.rows * call.n >= kParallelElements, poll, [&](size_t task) {
    using TaskScratch = Scratch<kStackBytes>;
    TaskScratch scratch(TaskScratch::Bytes<double>(call.n + kLongestVector));
    if (!scratch) return false;
    const Range range = tasks(task);
    kernel(call, range.begin, range.end, scratch.Take<double>(call.n + kLongestVector));
    return true;
  });
}

}  // namespace pullback
#endif  // HWY_ONCE

#include "sampled.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace pullback::accuracy {
namespace {

template <typename T>
using Outputs = std::array<std::vector<T>, kMaxOutputs>;

template <typename T>
Outputs<T> Run(const Op& op, ElementwiseKernel kernel, const std::vector<T>& a,
               const std::vector<T>& b) {
  Outputs<T> y;
  void* out[kMaxOutputs] = {};
  for (size_t o = 0; o < static_cast<size_t>(op.Outputs()); ++o) {
    y[o].resize(a.size());
    out[o] = y[o].data();
  }
  const void* in[2] = {a.data(), b.data()};
  kernel(in, out, a.size(), 0);
  return y;
}

// How many lanes give other bits among other neighbours.
template <typename T>
uint64_t Impurities(const Op& op, ElementwiseKernel kernel, const std::vector<T>& a,
                    const std::vector<T>& b, const Outputs<T>& y) {
  const size_t n = a.size();
  std::vector<size_t> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = i;
  Random random(n);
  for (size_t i = n; i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
  std::vector<T> shuffled_a(n), shuffled_b(n);
  for (size_t i = 0; i < n; ++i) {
    shuffled_a[i] = a[order[i]];
    shuffled_b[i] = b[order[i]];
  }
  const Outputs<T> shuffled = Run(op, kernel, shuffled_a, shuffled_b);
  uint64_t impure = 0;
  for (size_t o = 0; o < static_cast<size_t>(op.Outputs()); ++o) {
    for (size_t i = 0; i < n; ++i) impure += ToBits(shuffled[o][i]) != ToBits(y[o][order[i]]);
  }
  return impure;
}

}  // namespace

Result Snapshot(const Result& result, std::mutex& mutex) {
  const std::lock_guard<std::mutex> lock(mutex);
  Result snapshot(result.columns.size());
  for (size_t t = 0; t < result.columns.size(); ++t) {
    for (size_t o = 0; o < kMaxOutputs; ++o) {
      snapshot.columns[t][o].max = result.columns[t][o].max;
      snapshot.columns[t][o].at[0] = result.columns[t][o].at[0];
      snapshot.columns[t][o].at[1] = result.columns[t][o].at[1];
    }
  }
  return snapshot;
}

template <typename T>
void JudgePoints(const Op& op, const std::vector<Kernel>& kernels, Rough& rough,
                 const std::vector<Point<T>>& points, size_t mpfr_every, bool shuffle,
                 Result& result) {
  const size_t n = points.size(), outputs = static_cast<size_t>(op.Outputs());
  std::vector<T> a(n), b(n);
  for (size_t i = 0; i < n; ++i) {
    a[i] = points[i].a;
    b[i] = points[i].b;
  }
  std::vector<Outputs<T>> y;
  // By output: targets whose bits differ from all before them, each with those that agree.
  std::vector<std::vector<size_t>> groups[kMaxOutputs];
  for (size_t t = 0; t < kernels.size(); ++t) {
    y.push_back(Run(op, kernels[t].template Get<T>(), a, b));
    if (shuffle) result.impure += Impurities(op, kernels[t].template Get<T>(), a, b, y[t]);
    for (size_t o = 0; o < outputs; ++o) {
      const auto same = std::find_if(groups[o].begin(), groups[o].end(), [&](const auto& group) {
        return std::memcmp(y[group[0]][o].data(), y[t][o].data(), n * sizeof(T)) == 0;
      });
      if (same == groups[o].end()) {
        groups[o].push_back({t});
      } else {
        same->push_back(t);
      }
    }
  }
  // A group's maximum is to be beaten for the sake of its least member.
  std::vector<Column> columns[kMaxOutputs];
  for (size_t o = 0; o < outputs; ++o) {
    for (const std::vector<size_t>& group : groups[o]) {
      Column column;
      column.max = kWrong;
      for (const size_t t : group) column.max = std::min(column.max, result.columns[t][o].max);
      columns[o].push_back(column);
    }
  }

  double wide_a[Rough::kBlock], wide_b[Rough::kBlock];
  std::array<Verdict, Rough::kBlock> verdicts;
  for (size_t begin = 0; begin < n; begin += Rough::kBlock) {
    const size_t count = std::min(Rough::kBlock, n - begin);
    for (size_t i = 0; i < count; ++i) {
      verdicts[i] = Classify(op, a[begin + i], b[begin + i]);
      const bool ordinary = verdicts[i].rule == Rule::kFormula;
      wide_a[i] = ordinary ? static_cast<double>(a[begin + i]) : 1;
      wide_b[i] = ordinary ? static_cast<double>(b[begin + i]) : 1;
    }
    rough.Evaluate(wide_a, wide_b, count);
    for (size_t i = 0; i < count; ++i) {
      const size_t j = begin + i;
      Verdict& verdict = verdicts[i];
      if (verdict.rule == Rule::kSkip) {
        ++result.skipped;
        continue;
      }
      const double at[2] = {static_cast<double>(a[j]), static_cast<double>(b[j])};
      for (const int kink : op.kinks) {
        if (verdict.rule == Rule::kFormula && rough.Value(kink)[i] == 0) verdict.kink = true;
      }
      Truth truth(op, verdict, at[0], at[1], result.mpfr);
      for (size_t o = 0; o < outputs; ++o) {
        if (verdict.kink && op.IsDerivative(o)) continue;
        const long double r = rough.Value(op.root[o])[i];
        const double doubt = rough.Doubt(op.root[o])[i];
        const double slack = std::ldexp(doubt, Format<T>::kDigits + 1);
        const bool always = verdict.rule == Rule::kFormula && j % mpfr_every == 0;
        const bool lost = !(slack < 0x1p20) || verdict.outside;
        if (always && !lost && truth(o) != nullptr && mpfr_number_p(truth(o)) &&
            !mpfr_zero_p(truth(o)) && std::isfinite(r) && r != 0) {
          Big difference(64), admitted(64);
          mpfr_set_ld(difference.v, r, MPFR_RNDN);
          mpfr_sub(difference.v, difference.v, truth(o), MPFR_RNDN);
          mpfr_mul_d(admitted.v, truth(o), doubt, MPFR_RNDN);
          if (mpfr_cmpabs(difference.v, admitted.v) > 0) ++result.unsound;
        }
        const double largest =
            op.scale[o] < 0 ? 0 : static_cast<double>(rough.Value(op.scale[o])[i]);
        const int scale = ScaleOf(op, o, at[0], at[1], largest);
        for (size_t g = 0; g < groups[o].size(); ++g) {
          const T got = y[groups[o][g][0]][o][j];
          Column& column = columns[o][g];
          double error = 0;
          if (verdict.rule == Rule::kSpecial) {
            error = SameBits(got, static_cast<T>(verdict.special->image[o])) ? 0 : kWrong;
          } else if (verdict.rule == Rule::kNaN) {
            error = got != got ? 0 : kWrong;
          } else {
            error = lost ? kUnknown : RoughError(r, got, scale);
            const bool leads = slack < 0x1p-8 ? error > column.max : error + slack > column.max;
            if (error < 0 || leads || error + slack > op.bound[o] || always) {
              if (always || error != 0 || slack != 0) error = truth.Error(o, got);
              if (error < 0) {
                ++result.skipped;
                continue;
              }
            }
          }
          ++column.samples;
          if (error > op.bound[o]) {
            Complain(op, kernels[groups[o][g][0]].target, o, at[0], at[1], static_cast<double>(got),
                     error, column);
          }
          // What long double is not sure of, only MPFR makes a record.
          column.Raise(error, at[0], at[1]);
        }
      }
    }
  }
  for (size_t o = 0; o < outputs; ++o) {
    for (size_t g = 0; g < groups[o].size(); ++g) {
      for (const size_t t : groups[o][g]) result.columns[t][o].Merge(columns[o][g]);
    }
  }
}

template <typename T>
void Sampled(const Op& op, const std::vector<Kernel>& kernels, const Sampler<T>& sampler,
             size_t threads, uint64_t samples, Result& result) {
  constexpr size_t kChunk = 4096;
  const std::vector<Point<T>>& edges = sampler.Edges();
  const size_t edge_chunks = (edges.size() + kChunk - 1) / kChunk;
  const size_t chunks = edge_chunks + static_cast<size_t>((samples + kChunk - 1) / kChunk);
  std::mutex mutex;
  InParallel(
      threads, chunks, [&] { return Rough(op); },
      [&](Rough& rough, size_t chunk) {
        std::vector<Point<T>> points;
        if (chunk < edge_chunks) {
          const size_t begin = chunk * kChunk;
          points.assign(
              edges.begin() + static_cast<ptrdiff_t>(begin),
              edges.begin() + static_cast<ptrdiff_t>(std::min(begin + kChunk, edges.size())));
        } else {
          Random random((chunk - edge_chunks) * 1000003 + 17);
          for (size_t i = 0; i < kChunk; ++i) points.push_back(sampler.Draw(random));
        }
        Result part = Snapshot(result, mutex);
        JudgePoints(op, kernels, rough, points, 101, chunk % 16 == 0, part);
        const std::lock_guard<std::mutex> lock(mutex);
        result.Merge(part);
      });
}

template void JudgePoints(const Op&, const std::vector<Kernel>&, Rough&,
                          const std::vector<Point<double>>&, size_t, bool, Result&);
template void Sampled(const Op&, const std::vector<Kernel>&, const Sampler<float>&, size_t,
                      uint64_t, Result&);
template void Sampled(const Op&, const std::vector<Kernel>&, const Sampler<double>&, size_t,
                      uint64_t, Result&);

}  // namespace pullback::accuracy

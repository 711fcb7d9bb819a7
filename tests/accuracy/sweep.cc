// Accuracy of the shipped elementwise kernels, value and derivatives, on every ISA target.
//
//   accuracy_sweep [quick|full] [options]     see kUsage
//
// What is right, and how right it has to be, comes from the Python table (table.py); MPFR evaluates
// the table's formulas (exact.h), long double sorts out the samples that matter (rough.h).
//
// quick: per op and dtype edges of the format, special points, places where a kernel's output
//   changes its nature, and random points; compared with the ledger of the errors ever measured.
//   Every block again in another order, to see that a lane's bits do not depend on its neighbours.
// full: float32 unary ops over all 2^32 bit patterns, our own float64 kernel of the best target,
//   itself held to MPFR at a million float32 points, being the reference; everything else at
//   10 million points, among them those of quick. --ledger writes what it measured.
//
// Exit status 1: a bound is exceeded, a special point is wrong, an error has grown beyond the
// ledger's, a column drew no samples, or tables disagree.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "exact.h"
#include "judge.h"
#include "kernels/elementwise.h"
#include "ledger.h"
#include "points.h"
#include "rough.h"
#include "runtime/targets.h"
#include "table.h"
#include "ulp.h"

namespace pullback::accuracy {
namespace {

constexpr char kUsage[] =
    "usage: accuracy_sweep [quick|full] [options]\n"
    "  --op NAME        this one; may be repeated\n"
    "  --target NAME    this one only\n"
    "  --dtype NAME     float32 or float64\n"
    "  --samples N      random points per op and dtype (quick: 60 thousand, full: 10 million)\n"
    "  --spots N        float32 points where the float64 reference is held to MPFR (1 million)\n"
    "  --stride N       full: every N-th float32 only, which no ledger accepts\n"
    "  --threads N      default: one per CPU\n"
    "  --table FILE     by table.py; default: the one made with this program\n"
    "  --ledger FILE    quick: compares with it; full: writes what it measured into it\n"
    "  --json           one line of JSON per result\n";

struct Options {
  bool full = false, json = false;
  std::vector<std::string> ops;
  std::string target, dtype;
  uint64_t stride = 1, samples = 0, spots = 1000000;
  size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::string table = PULLBACK_ACCURACY_TABLE, ledger;
};

// --- what is measured ----------------------------------------------------------------------------

// An op's value_and_derivative on one target.
struct Kernel {
  std::string target;
  ElementwiseKernel f32, f64;
  template <typename T>
  ElementwiseKernel Get() const {
    return sizeof(T) == 4 ? f32 : f64;
  }
};

struct Column {
  double max = 0;
  double at[2] = {0, 0};
  uint64_t samples = 0, wrong = 0;

  void Raise(double error, double a, double b) {
    if (!(error > max)) return;
    max = error;
    at[0] = a;
    at[1] = b;
  }
  void Merge(const Column& other) {
    samples += other.samples;
    wrong += other.wrong;
    Raise(other.max, other.at[0], other.at[1]);
  }
};

// One op in one dtype.
struct Result {
  std::vector<std::array<Column, kMaxOutputs>> columns;  // by target
  uint64_t skipped = 0;  // the table does not say what is right there
  uint64_t impure = 0;   // lanes that depend on their neighbours
  uint64_t unsound = 0;  // long double erred by more than it admits
  uint64_t mpfr = 0;     // evaluations
  bool exhaustive = false;

  explicit Result(size_t targets) : columns(targets) {}
  void Merge(const Result& other) {
    for (size_t t = 0; t < columns.size(); ++t) {
      for (size_t o = 0; o < kMaxOutputs; ++o) columns[t][o].Merge(other.columns[t][o]);
    }
    skipped += other.skipped;
    impure += other.impure;
    unsound += other.unsound;
    mpfr += other.mpfr;
  }
};

std::mutex output_mutex;

void Complain(const Op& op, const std::string& target, size_t output, double a, double b,
              double got, double error, Column& column) {
  if (++column.wrong > 3) return;
  const std::lock_guard<std::mutex> lock(output_mutex);
  std::fprintf(stderr, "%s %s, output %zu of (%a, %a): got %a (%.9g), ", op.name.c_str(),
               target.c_str(), output, a, b, got, got);
  if (std::isinf(error)) {
    std::fprintf(stderr, "which is no such number\n");
  } else {
    std::fprintf(stderr, "%.4f ULP\n", error);
  }
}

// --- what is right -------------------------------------------------------------------------------

enum class Rule : uint8_t { kFormula, kSpecial, kNaN, kSkip };

struct Verdict {
  Rule rule = Rule::kFormula;
  bool kink = false;      // no derivative
  bool any_zero = false;  // an operand
  bool outside = false;   // the domain of a binary op: right is what the formula says of its value
  const SpecialPoint* special = nullptr;
};

bool Inside(const std::vector<Interval>& domain, double x) {
  return std::any_of(domain.begin(), domain.end(), [x](const Interval& interval) {
    return interval.closed ? x >= interval.lower && x <= interval.upper
                           : x > interval.lower && x < interval.upper;
  });
}

template <typename T>
Verdict Classify(const Op& op, T a, T b) {
  const double at[2] = {static_cast<double>(a), static_cast<double>(b)};
  Verdict verdict;
  for (const SpecialPoint& point : op.special) {
    bool here = true;
    for (int k = 0; k < op.arity; ++k) here = here && SameBits(at[k], point.at[k]);
    if (!here) continue;
    verdict.rule = Rule::kSpecial;
    verdict.special = &point;
    return verdict;
  }
  for (int k = 0; k < op.arity; ++k) {
    verdict.any_zero = verdict.any_zero || at[k] == 0;
    if (std::isfinite(at[k]) && Inside(op.domain[k], at[k])) continue;
    if (!std::isfinite(at[k])) {
      verdict.rule = Rule::kSkip;
    } else if (op.arity == 1) {
      verdict.rule = Rule::kNaN;
    } else {
      verdict.outside = true;
    }
  }
  if (verdict.outside && verdict.any_zero) verdict.rule = Rule::kSkip;
  return verdict;
}

int ScaleOf(const Op& op, size_t output, double a, double b) {
  if (!op.ulp_of_operands || output > 0) return kNoScale;
  const double largest = std::max(std::fabs(a), std::fabs(b));
  return largest == 0 ? kNoScale : std::ilogb(largest);
}

// The truth at one point, computed when first asked for.
class Truth {
 public:
  Truth(const Op& op, const Verdict& verdict, double a, double b, uint64_t& evaluations)
      : op_(op), verdict_(verdict), a_(a), b_(b), evaluations_(evaluations) {}

  // Null where even MPFR cannot tell.
  mpfr_srcptr operator()(size_t output) {
    thread_local Big values[kMaxOutputs];
    Big& r = values[output];
    if (!done_[output]) {
      done_[output] = true;
      ++evaluations_;
      known_[output] = Evaluate(op_, op_.root[output], a_, b_, r);
      if (verdict_.outside && output > 0) {
        mpfr_srcptr value = (*this)(0);
        known_[output] = known_[output] && value != nullptr;
        if (known_[output] && mpfr_nan_p(value)) mpfr_set_nan(r.v);
      }
    }
    return known_[output] ? r.v : nullptr;
  }

  // Of a result; kUnknown where even MPFR cannot tell.
  template <typename T>
  double Error(size_t output, T got) {
    mpfr_srcptr r = (*this)(output);
    if (r == nullptr) return kUnknown;
    return ExactError(r, got, verdict_.any_zero, ScaleOf(op_, output, a_, b_));
  }

 private:
  const Op& op_;
  const Verdict& verdict_;
  double a_, b_;
  uint64_t& evaluations_;
  bool done_[kMaxOutputs] = {}, known_[kMaxOutputs] = {};
};

// --- sampled sweeps ------------------------------------------------------------------------------

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
  kernel(in, out, a.size());
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

// Judges the kernels at the points; `result` starts with the maxima that are to be beaten. Every
// `mpfr_every`-th point goes to MPFR, whatever long double says.
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
        if (verdict.kink && o > 0) continue;
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
        const int scale = ScaleOf(op, o, at[0], at[1]);
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

// --- many threads, and progress ------------------------------------------------------------------

class Progress {
 public:
  void Start(const std::string& what) {
    what_ = what;
    shown_ = -1;
  }
  void Show(double fraction) {
    const int percent = static_cast<int>(100 * fraction);
    if (!terminal_ || percent == shown_) return;
    shown_ = percent;
    std::fprintf(stderr, "\r%-40s %3d %%", what_.c_str(), percent);
  }
  void Clear() const {
    if (terminal_ && shown_ >= 0) std::fprintf(stderr, "\r%-50s\r", "");
  }

 private:
  std::string what_;
  int shown_ = -1;
  bool terminal_ = isatty(STDERR_FILENO) != 0;
};

Progress progress;

// `task(thread's own state, i)` for all i < tasks.
template <typename MakeState, typename Task>
void InParallel(size_t threads, size_t tasks, MakeState&& make_state, Task&& task) {
  std::atomic<size_t> next{0};
  const auto work = [&](bool first) {
    auto state = make_state();
    for (size_t i; (i = next++) < tasks;) {
      task(state, i);
      if (first) progress.Show(static_cast<double>(i + 1) / static_cast<double>(tasks));
    }
    FreeCaches();
  };
  std::vector<std::thread> others;
  for (size_t t = 1; t < std::min(threads, tasks); ++t) others.emplace_back(work, false);
  work(true);
  for (std::thread& other : others) other.join();
}

// What a thread starts a task with: the maxima so far, nothing counted.
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
void Sampled(const Op& op, const std::vector<Kernel>& kernels, const Sampler<T>& sampler,
             const Options& options, uint64_t samples, Result& result) {
  constexpr size_t kChunk = 4096;
  const std::vector<Point<T>>& edges = sampler.Edges();
  const size_t edge_chunks = (edges.size() + kChunk - 1) / kChunk;
  const size_t chunks = edge_chunks + static_cast<size_t>((samples + kChunk - 1) / kChunk);
  std::mutex mutex;
  InParallel(
      options.threads, chunks, [&] { return Rough(op); },
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

// --- exhaustive sweeps ---------------------------------------------------------------------------

// Every stride-th float32, against the float64 kernel of the best target.
void Exhaustive(const Op& op, const std::vector<Kernel>& kernels, ElementwiseKernel judge,
                WorstError worst_error, const Options& options, Result& result) {
  constexpr size_t kBlock = 2048, kChunk = size_t{1} << 16;
  constexpr size_t kOutputs = 2;
  const uint64_t chunks = ((uint64_t{1} << 32) / options.stride + kChunk - 1) / kChunk;
  const size_t targets = kernels.size();
  // The largest errors against the float64 kernel, which MPFR has confirmed since.
  std::vector<std::array<std::atomic<double>, kOutputs>> leading(targets);
  for (auto& outputs : leading) {
    for (auto& error : outputs) error = 0;
  }
  std::mutex mutex;

  // One that leads, or breaks the bound.
  const auto confirm = [&](size_t t, size_t o, float x, float got, double error) {
    const std::lock_guard<std::mutex> lock(mutex);
    const bool leads = error > leading[t][o];
    Column& column = result.columns[t][o];
    if (!leads && column.wrong > 1000) return;
    if (leads) leading[t][o] = error;
    const double at = static_cast<double>(x);
    const Verdict verdict = Classify(op, x, x);
    double exact = error;
    if (verdict.rule == Rule::kSpecial) {
      exact = SameBits(got, static_cast<float>(verdict.special->image[o])) ? 0 : kWrong;
    } else if (verdict.rule == Rule::kFormula) {
      Truth truth(op, verdict, at, at, result.mpfr);
      exact = truth.Error(o, got);
      if (exact < 0) exact = error;
    }
    if (exact > op.bound[o]) {
      Complain(op, kernels[t].target, o, at, at, static_cast<double>(got), exact, column);
    }
    column.Raise(exact, at, at);
  };

  struct Buffers {
    std::vector<float> x = std::vector<float>(kBlock);
    std::vector<double> wide = std::vector<double>(kBlock);
    std::vector<double> r[kOutputs] = {std::vector<double>(kBlock), std::vector<double>(kBlock)};
    std::vector<std::array<std::vector<float>, kOutputs>> y;
  };
  const auto make_buffers = [&] {
    Buffers buffers;
    buffers.y.resize(targets);
    for (auto& outputs : buffers.y) {
      for (auto& y : outputs) y.resize(kBlock);
    }
    return buffers;
  };
  InParallel(options.threads, static_cast<size_t>(chunks), make_buffers,
             [&](Buffers& buffer, size_t chunk) {
               for (size_t begin = 0; begin < kChunk; begin += kBlock) {
                 for (size_t i = 0; i < kBlock; ++i) {
                   // Every chunk spans the whole range: an early one finds nearly the maximum. A
                   // stride leaves room for the low bits to vary.
                   const uint64_t index = ((begin + i) * chunks + chunk) * options.stride;
                   const uint64_t jitter =
                       options.stride == 1 ? 0
                                           : (index * 0x9E3779B97F4A7C15u >> 40) % options.stride;
                   buffer.x[i] = FromBits<float>(static_cast<uint32_t>(index + jitter));
                   buffer.wide[i] = static_cast<double>(buffer.x[i]);
                 }
                 const void* wide_in[1] = {buffer.wide.data()};
                 void* wide_out[kOutputs] = {buffer.r[0].data(), buffer.r[1].data()};
                 judge(wide_in, wide_out, kBlock);
                 const void* in[1] = {buffer.x.data()};
                 for (size_t t = 0; t < targets; ++t) {
                   void* out[kOutputs] = {buffer.y[t][0].data(), buffer.y[t][1].data()};
                   kernels[t].f32(in, out, kBlock);
                 }
                 for (size_t o = 0; o < kOutputs; ++o) {
                   const double* const r = buffer.r[o].data();
                   std::vector<double> errors(targets);
                   for (size_t t = 0; t < targets; ++t) {
                     const float* const y = buffer.y[t][o].data();
                     size_t like = 0;
                     while (std::memcmp(buffer.y[like][o].data(), y, kBlock * sizeof(float)) != 0)
                       ++like;
                     errors[t] = like < t ? errors[like] : worst_error(r, y, kBlock);
                     // The reference itself is off by some 1e-9 of these ULP.
                     if (errors[t] <= leading[t][o] && errors[t] <= op.bound[o] + 1e-6) continue;
                     for (size_t i = 0; i < kBlock; ++i) {
                       const double error = ErrorOf(r[i], y[i]);
                       if (error > leading[t][o] || error > op.bound[o] + 1e-6) {
                         confirm(t, o, buffer.x[i], y[i], error);
                       }
                     }
                   }
                 }
               }
             });
  for (size_t t = 0; t < targets; ++t) {
    for (size_t o = 0; o < kOutputs; ++o) result.columns[t][o].samples += chunks * kChunk;
  }
  result.exhaustive = options.stride == 1;
}

// --- the sweep -----------------------------------------------------------------------------------

std::string OutputName(const Op& op, size_t output) {
  if (output == 0) return "value";
  return op.arity == 1 ? "derivative" : "derivative" + std::to_string(output - 1);
}

double RoundedUp(double error) { return std::ceil(error * 1e4 - 1e-6) / 1e4; }

class Sweep {
 public:
  explicit Sweep(const Options& options)
      : options_(options), ops_(ReadTable(options.table)), ledger_(Ledger::Read(options.ledger)) {
    std::string error;
    for (const std::string& target : SupportedTargetNames()) {
      if (!SetTarget(target, &error)) throw std::runtime_error(error);
      for (const auto& kernels : {UnaryOps(), BinaryOps()}) {
        for (const OpKernels& op : kernels) {
          const auto& both = op.kernel[static_cast<size_t>(Method::kValueAndDerivative)];
          kernels_[op.name].push_back({target, both[0], both[1]});
        }
      }
    }
    SetTarget("auto", &error);
    worst_error_ = GetWorstError();
  }

  bool Run() {
    for (const auto& [name, kernels] : kernels_) {
      const bool known =
          std::any_of(ops_.begin(), ops_.end(), [&](const Op& op) { return op.name == name; });
      if (!known) Fail(name + ": a kernel without a row in the table");
    }
    for (const std::string& name : options_.ops) {
      const bool known =
          std::any_of(ops_.begin(), ops_.end(), [&](const Op& op) { return op.name == name; });
      if (!known) Fail(name + ": no such op");
    }
    if (!options_.json) {
      std::printf("%-18s %-7s %-6s %11s  %s\n", "op", "dtype", "target", "samples",
                  "largest error of value and of derivatives in ULP, and where");
    }
    for (const Op& op : ops_) {
      if (!Chosen(op.name)) continue;
      if (options_.dtype != "float64") Measure<float>(op);
      if (options_.dtype != "float32") Measure<double>(op);
    }
    if (reported_ == 0) Fail("nothing was measured");
    if (!options_.json) std::printf("%s\n", good_ ? "ok" : "FAILED");
    return good_;
  }

 private:
  bool Chosen(const std::string& name) const {
    return options_.ops.empty() ||
           std::find(options_.ops.begin(), options_.ops.end(), name) != options_.ops.end();
  }

  void Fail(const std::string& what) {
    good_ = false;
    progress.Clear();
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  }

  template <typename T>
  void Measure(const Op& op) {
    const std::string dtype = sizeof(T) == 4 ? "float32" : "float64";
    const std::vector<Kernel>& all = kernels_[op.name];
    std::vector<Kernel> kernels;
    for (const Kernel& kernel : all) {
      if (options_.target.empty() || kernel.target == options_.target) kernels.push_back(kernel);
    }
    if (kernels.empty()) return Fail(op.name + ": no kernel");
    progress.Start(op.name + ' ' + dtype);

    std::vector<Point<double>> known;
    for (const Entry& entry : ledger_.entries()) {
      if (entry.op != op.name || entry.dtype != dtype || entry.at.empty()) continue;
      known.push_back({entry.at.front(), entry.at.back()});
    }
    const Sampler<T> sampler(op, all[0].template Get<T>(), known);
    const bool exhaustive = options_.full && sizeof(T) == 4 && op.arity == 1;
    const uint64_t samples = options_.samples > 0           ? options_.samples
                             : options_.full && !exhaustive ? 10000000
                                                            : 60000;
    Result result(kernels.size());
    Sampled(op, kernels, sampler, options_, samples, result);
    if constexpr (sizeof(T) == 4) {
      if (exhaustive) {
        CheckReference(op, all[0], sampler, result);
        Result sweep = result;
        for (auto& outputs : sweep.columns) {
          for (Column& column : outputs) column.samples = 0;
        }
        Exhaustive(op, kernels, all[0].f64, worst_error_, options_, sweep);
        result = sweep;
      }
    }
    progress.Clear();
    Report(op, dtype, kernels, result);
  }

  // The float64 kernel at float32 points: random ones, and those that lead so far.
  void CheckReference(const Op& op, const Kernel& best, const Sampler<float>& sampler,
                      const Result& leaders) {
    constexpr size_t kChunk = 4096;
    Result result(1);
    std::mutex mutex;
    InParallel(
        options_.threads, static_cast<size_t>((options_.spots + kChunk - 1) / kChunk),
        [&] { return Rough(op); },
        [&](Rough& rough, size_t chunk) {
          std::vector<Point<double>> points;
          if (chunk == 0) {
            for (const auto& outputs : leaders.columns) {
              for (const Column& column : outputs) points.push_back({column.at[0], column.at[1]});
            }
          }
          Random random(chunk * 7919 + 5);
          while (points.size() < kChunk) {
            const float x = random() % 4 == 0 ? FromBits<float>(static_cast<uint32_t>(random()))
                                              : sampler.Draw(random).a;
            points.push_back({static_cast<double>(x), static_cast<double>(x)});
          }
          Result part = Snapshot(result, mutex);
          JudgePoints(op, {best}, rough, points, 1, false, part);
          const std::lock_guard<std::mutex> lock(mutex);
          result.Merge(part);
        });
    for (size_t o = 0; o < static_cast<size_t>(op.Outputs()); ++o) {
      const Column& column = result.columns[0][o];
      if (column.samples > 0 && column.wrong == 0 && column.max <= op.bound[o]) continue;
      Fail(op.name + ": the float64 kernel is no reference for float32: " +
           std::to_string(column.max) + " ULP at " + std::to_string(column.at[0]));
    }
    if (result.unsound > 0) Fail(op.name + ": long double is less accurate than it admits");
  }

  void Report(const Op& op, const std::string& dtype, const std::vector<Kernel>& kernels,
              const Result& result) {
    if (result.impure > 0) {
      Fail(op.name + ' ' + dtype +
           ": lanes that depend on their neighbours: " + std::to_string(result.impure));
    }
    if (result.unsound > 0) {
      Fail(op.name + ' ' + dtype +
           ": long double is less accurate than it admits: " + std::to_string(result.unsound));
    }
    for (size_t t = 0; t < kernels.size(); ++t) {
      const std::string& target = kernels[t].target;
      std::string line;
      for (size_t o = 0; o < static_cast<size_t>(op.Outputs()); ++o) {
        const Column& column = result.columns[t][o];
        const std::string name = OutputName(op, o);
        const std::string title = op.name + ' ' + dtype + ' ' + target + ' ' + name;
        Entry entry;
        entry.op = op.name;
        entry.dtype = dtype;
        entry.target = target;
        entry.output = name;
        entry.ulp = RoundedUp(column.max);
        if (column.max > 0) entry.at.assign(column.at, column.at + op.arity);
        entry.samples = column.samples;
        entry.exhaustive = result.exhaustive;
        const bool held = column.samples > 0 && column.wrong == 0 && column.max <= op.bound[o];
        if (column.samples == 0) Fail(title + ": no samples");
        if (column.samples > 0 && !held) {
          Fail(title + ": " + std::to_string(column.max) + " ULP, the table's bound is " +
               std::to_string(op.bound[o]));
        }
        if (options_.full) {
          if (held && options_.stride == 1) ledger_.Put(entry);
        } else {
          Compare(title, entry);
        }
        if (options_.json) std::printf("%s\n", ToJson(entry).c_str());
        char text[120];
        std::snprintf(text, sizeof(text), "  %.4f%s", column.max, held ? "" : "!");
        line += text;
        for (size_t k = 0; k < entry.at.size(); ++k) {
          std::snprintf(text, sizeof(text), "%s%.9g", k == 0 ? " at " : ", ", entry.at[k]);
          line += text;
        }
      }
      ++reported_;
      if (!options_.json) {
        std::printf("%-18s %-7s %-6s %11llu%s\n", op.name.c_str(), dtype.c_str(), target.c_str(),
                    static_cast<unsigned long long>(result.columns[t][0].samples), line.c_str());
      }
    }
    std::fflush(stdout);
    if (options_.full && !options_.ledger.empty() && options_.stride == 1) {
      std::vector<std::string> names;
      for (const Op& known : ops_) names.push_back(known.name);
      ledger_.Write(options_.ledger, names);
    }
  }

  // Of the quick sweep with what was measured before.
  void Compare(const std::string& title, const Entry& now) {
    if (options_.ledger.empty()) return;
    const Entry* const before = ledger_.Find(now.op, now.dtype, now.target, now.output);
    if (before == nullptr) {
      // A target nobody has measured yet is held to the table's bounds alone.
      if (ledger_.HasTarget(now.target)) {
        Fail(title + ": not in the ledger; accuracy_sweep full --op " + now.op + " --ledger " +
             options_.ledger);
      }
      return;
    }
    // What was sampled may be beaten by a little, where the known points are as they were.
    const double slack = before->exhaustive ? 0 : 0.05 * before->ulp;
    if (now.ulp > before->ulp + slack + 1e-9) {
      Fail(title + ": " + std::to_string(now.ulp) + " ULP, the ledger has " +
           std::to_string(before->ulp));
    } else if (now.ulp > before->ulp + 1e-9) {
      progress.Clear();
      std::fprintf(stderr, "%s: %.4f ULP, the ledger has %.4f: re-measure\n", title.c_str(),
                   now.ulp, before->ulp);
    }
  }

  const Options& options_;
  std::vector<Op> ops_;
  Ledger ledger_;
  std::map<std::string, std::vector<Kernel>> kernels_;  // by op, best target first
  WorstError worst_error_ = nullptr;
  bool good_ = true;
  int reported_ = 0;
};

int Main(int argc, char** argv) {
  Options options;
  bool ledger_given = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "quick" || word == "full") {
      options.full = word == "full";
      continue;
    }
    if (word == "--json") {
      options.json = true;
      continue;
    }
    if (i + 1 == argc) {
      std::fputs(kUsage, stderr);
      return 2;
    }
    const std::string value = argv[++i];
    if (word == "--op") {
      options.ops.push_back(value);
    } else if (word == "--target") {
      options.target = value;
    } else if (word == "--dtype" && (value == "float32" || value == "float64")) {
      options.dtype = value;
    } else if (word == "--samples") {
      options.samples = std::strtoull(value.c_str(), nullptr, 10);
    } else if (word == "--spots") {
      options.spots = std::strtoull(value.c_str(), nullptr, 10);
    } else if (word == "--stride") {
      options.stride = std::max<uint64_t>(1, std::strtoull(value.c_str(), nullptr, 10));
    } else if (word == "--threads") {
      options.threads = std::max<size_t>(1, std::strtoull(value.c_str(), nullptr, 10));
    } else if (word == "--table") {
      options.table = value;
    } else if (word == "--ledger") {
      options.ledger = value;
      ledger_given = true;
    } else {
      std::fputs(kUsage, stderr);
      return 2;
    }
  }
  if (!ledger_given && !options.full) options.ledger = PULLBACK_ACCURACY_LEDGER;
  return Sweep(options).Run() ? 0 : 1;
}

}  // namespace
}  // namespace pullback::accuracy

int main(int argc, char** argv) {
  try {
    return pullback::accuracy::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "FAILED: %s\n", error.what());
    return 1;
  }
}

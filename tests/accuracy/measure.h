// What a sweep measures, what it measures by, and how it shares the work among threads.
#ifndef PULLBACK_TESTS_ACCURACY_MEASURE_H_
#define PULLBACK_TESTS_ACCURACY_MEASURE_H_

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "exact.h"
#include "kernels/elementwise.h"
#include "table.h"
#include "ulp.h"

namespace pullback::accuracy {

// --- what is measured ----------------------------------------------------------------------------

// An op's value_and_derivative, or its second derivatives, on one target.
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
  bool exhaustive = false;

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

// Counts a result that is wrong, and shows the first few.
void Complain(const Op& op, const std::string& target, size_t output, double a, double b,
              double got, double error, Column& column);

// --- what is right -------------------------------------------------------------------------------

enum class Rule : uint8_t { kFormula, kSpecial, kNaN, kSkip };

struct Verdict {
  Rule rule = Rule::kFormula;
  bool kink = false;      // no derivative
  bool any_zero = false;  // an operand
  bool outside = false;   // the domain of a binary op: right is what the formula says of its value
  const SpecialPoint* special = nullptr;
};

// What the table says of a point, its kinks apart.
template <typename T>
Verdict Classify(const Op& op, T a, T b);
extern template Verdict Classify(const Op& op, float a, float b);
extern template Verdict Classify(const Op& op, double a, double b);

// The exponent that the ULP of an output is at least of; `largest` is the value of its scale, if it
// has one.
int ScaleOf(const Op& op, size_t output, double a, double b, double largest);
// With the scale evaluated by MPFR.
int ScaleOf(const Op& op, size_t output, double a, double b);

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
      if (verdict_.outside && op_.IsDerivative(output)) {
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

// --- many threads, and progress ------------------------------------------------------------------

// A percentage on a terminal.
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

inline Progress progress;

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

}  // namespace pullback::accuracy

#endif  // PULLBACK_TESTS_ACCURACY_MEASURE_H_

// Accuracy of every elementwise row, value and derivatives, against MPFR on every ISA target.
//
// From the root of the repository:
//   g++ -std=c++20 -O2 -ffp-contract=off -pthread -Icpp -I. tests/accuracy/sweep.cc
//       -o sweep -lhwy -lmpfr -lgmp
//
//   sweep [quick|full] [--op NAME] [--target NAME] [--dtype f32|f64] [--stride N] [--samples N]
//
// quick: per op and dtype some 3e5 samples: random bit patterns, ranges of interest, neighbours of
//   branch boundaries, special values. In random order again, to see that a lane's bits do not
//   depend on its neighbours.
// full: float32 unary ops over every `stride`-th bit pattern (stride 1: all 2^32), their float64
//   kernel of the best target, which quick holds to MPFR, being the reference; everything else
//   with `samples` samples (10 million).
//
// Error is in ULP of the real-valued result r, 2^(max(floor(log2 |r|), emin) - p + 1), infinity
// counting as 2^(emax + 1). NaN, infinities and zeros, their signs included, must match exactly.
// A long double (or float64) reference sorts the samples; what leads its column, what is near the
// bound and every 64th sample of quick is computed by MPFR. Exit status 1: a bound is exceeded, a
// special value is wrong, or a column drew no samples.
#include "runtime/hwy_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/accuracy/sweep.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <cstddef>
#include <utility>

#include "ops/binary-inl.h"
#include "ops/unary-inl.h"

#ifndef PULLBACK_TESTS_ACCURACY_SWEEP_CC_
#define PULLBACK_TESTS_ACCURACY_SWEEP_CC_
namespace pullback {

// n is a multiple of kBlock; unary kernels ignore b and dy1.
constexpr size_t kBlock = 64;
template <typename T>
using Kernel = void (*)(const T* a, const T* b, T* y, T* dy0, T* dy1, size_t n);

struct Entry {
  const char* name = nullptr;
  int arity = 0;
  Kernel<float> f32 = nullptr;
  Kernel<double> f64 = nullptr;
};

}  // namespace pullback
#endif  // PULLBACK_TESTS_ACCURACY_SWEEP_CC_

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Row, typename T>
void RunRow(const T* a, const T* b, T* y, T* dy0, T* dy1, size_t n) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    V value, slope0, slope1 = hn::Zero(d);
    if constexpr (Row::kArity == 1) {
      Row::Eval(d, hn::LoadU(d, a + i), value, slope0);
    } else {
      Row::Eval(d, hn::LoadU(d, a + i), hn::LoadU(d, b + i), value, slope0, slope1);
    }
    hn::StoreU(value, d, y + i);
    hn::StoreU(slope0, d, dy0 + i);
    hn::StoreU(slope1, d, dy1 + i);
  }
}

template <class Row>
Entry EntryOf() {
  return {Row::kName, Row::kArity, RunRow<Row, float>, RunRow<Row, double>};
}

template <size_t... kUnary, size_t... kBinary>
Entry Pick(size_t i, std::index_sequence<kUnary...>, std::index_sequence<kBinary...>) {
  const Entry entries[] = {EntryOf<UnaryRow<static_cast<int>(kUnary)>>()...,
                           EntryOf<BinaryRow<static_cast<int>(kBinary)>>()...};
  return i < sizeof(entries) / sizeof(entries[0]) ? entries[i] : Entry{};
}

Entry GetEntry(size_t i) {
  return Pick(i, std::make_index_sequence<static_cast<size_t>(kUnaryRows)>(),
              std::make_index_sequence<static_cast<size_t>(kBinaryRows)>());
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <mpfr.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace pullback {
HWY_EXPORT(GetEntry);

namespace {

constexpr mpfr_prec_t kPrecision = 320;

struct Big {
  mpfr_t v;
  Big() { mpfr_init2(v, kPrecision); }
  ~Big() { mpfr_clear(v); }
  Big(const Big&) = delete;
  Big& operator=(const Big&) = delete;
};

struct Arguments {
  long double a, b;
};

// Which of an op's results: its value, or its derivative by operand 0 or 1.
enum Output { kValue, kSlope0, kSlope1 };

// The truth: what MPFR says, and what it says of special values after DESIGN section 3.
using Exact = std::function<void(Output, mpfr_t r, mpfr_srcptr a, mpfr_srcptr b)>;
// The same to about 1e-18, fast.
using Quick = long double (*)(Output, long double a, long double b);

struct Reference {
  Exact exact;
  Quick quick;
  double value_bound, slope_bound;
  double lo, hi;                   // the interesting range
  std::vector<double> boundaries;  // of branches
};

long double Logistic(long double e) { return e / ((1 + e) * (1 + e)); }

void Constant(mpfr_t r, double constant, mpfr_srcptr a) {
  if (mpfr_nan_p(a)) {
    mpfr_set_nan(r);
  } else {
    mpfr_set_d(r, constant, MPFR_RNDN);
  }
}

// e / (1 + e)^2 with e = exp(-scale |a|)
void ExactLogistic(mpfr_t r, mpfr_srcptr a, double scale) {
  Big d;
  mpfr_abs(r, a, MPFR_RNDN);
  mpfr_mul_d(r, r, -scale, MPFR_RNDN);
  mpfr_exp(r, r, MPFR_RNDN);
  mpfr_add_ui(d.v, r, 1, MPFR_RNDN);
  mpfr_div(r, r, d.v, MPFR_RNDN);
  mpfr_div(r, r, d.v, MPFR_RNDN);
}

#define PB_EXACT [=](Output o, mpfr_t r, mpfr_srcptr a, [[maybe_unused]] mpfr_srcptr b)
#define PB_QUICK [](Output o, long double a, [[maybe_unused]] long double b) -> long double

constexpr long double kNaN = std::numeric_limits<long double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

std::map<std::string, Reference> References() {
  std::map<std::string, Reference> m;
  m["identity"] = {PB_EXACT{if (o == kValue) mpfr_set(r, a, MPFR_RNDN);
  else Constant(r, 1, a);
}
, PB_QUICK { return o == kValue ? a : a != a ? a : 1; }
, 0, 0, -10, 10, {}
};  // namespace
m["negative"] = {PB_EXACT{if (o == kValue) mpfr_neg(r, a, MPFR_RNDN);
else Constant(r, -1, a);
}  // namespace pullback
, PB_QUICK { return o == kValue ? -a : a != a ? a : -1; }
, 0, 0, -10, 10, {}
}
;
m["abs"] = {PB_EXACT{if (o == kValue) mpfr_abs(r, a, MPFR_RNDN);
else Constant(r, mpfr_zero_p(a) ? 0 : mpfr_signbit(a) ? -1 : 1, a);
}
, PB_QUICK { return o == kValue ? fabsl(a) : a > 0 ? 1 : a < 0 ? -1 : a == 0 ? 0 : a; }
, 0, 0, -10, 10, { 0 }
}
;
m["relu"] = {PB_EXACT{const bool active = mpfr_cmp_ui(a, 0) > 0 && !mpfr_nan_p(a);
if (o == kValue && active)
  mpfr_set(r, a, MPFR_RNDN);
else
  Constant(r, active ? 1 : 0, a);
}
, PB_QUICK { return o == kValue ? (a > 0 ? a : a <= 0 ? 0 : a) : (a > 0 ? 1 : a <= 0 ? 0 : a); }
, 0, 0, -10, 10, { 0 }
}
;
m["exp"] = {PB_EXACT{(void)o;
mpfr_exp(r, a, MPFR_RNDN);
}
, PB_QUICK {
  (void)o;
  return expl(a);
}
, 1, 1, -750, 715, { -746, -745.2, -708.4, 0, 709.8, 710, -104.5, -103.9, -87.3, 88.7, 89 }
}
;
m["expm1"] = {PB_EXACT{if (o == kValue) mpfr_expm1(r, a, MPFR_RNDN);
else mpfr_exp(r, a, MPFR_RNDN);
}
, PB_QUICK { return o == kValue ? expm1l(a) : expl(a); }
, 1, 1.5, -60, 60, { -746, 0, 20, 50, 709.8, 710, -104.5, 88.7, 89 }
}
;
m["log"] = {PB_EXACT{if (o == kValue){mpfr_log(r, a, MPFR_RNDN);
}
else if (mpfr_cmp_ui(a, 0) < 0) {
  mpfr_set_nan(r);
}
else {
  mpfr_abs(r, a, MPFR_RNDN);
  mpfr_ui_div(r, 1, r, MPFR_RNDN);
}
}
, PB_QUICK { return o == kValue ? logl(a) : a < 0 ? kNaN : 1 / fabsl(a); }
, 1, 1, 0, 3, { 0, 0.5, 0.70710678118654752, 1, 1.4142135623730951, 2, 0x1p-1022, 0x1p-126 }
}
;
m["sigmoid"] = {PB_EXACT{if (o == kValue){mpfr_neg(r, a, MPFR_RNDN);
mpfr_exp(r, r, MPFR_RNDN);
mpfr_add_ui(r, r, 1, MPFR_RNDN);
mpfr_ui_div(r, 1, r, MPFR_RNDN);
}
else {
  ExactLogistic(r, a, 1);
}
}
, PB_QUICK {
  const long double e = expl(-fabsl(a));
  return o == kSlope0 ? Logistic(e) : a < 0 ? e / (1 + e) : 1 / (1 + e);
}
, 1.5, 2.5, -50, 50, { 0, -760, -745.2, -708.4, 745.2, -110, -103.9, -87.3, 36.7, 17 }
}
;
m["tanh"] = {PB_EXACT{if (o == kValue){mpfr_tanh(r, a, MPFR_RNDN);
}
else {
  ExactLogistic(r, a, 2);
  mpfr_mul_ui(r, r, 4, MPFR_RNDN);
}
}
, PB_QUICK { return o == kValue ? tanhl(a) : 4 * Logistic(expl(-2 * fabsl(a))); }
, 1.5, 2.5, -30, 30, { 0, 0.1733, 0.3466, 0.55, 19.06, 9.01, 372.6, 380, 354.2, 51.9, 55, 43.7 }
}
;
m["sin"] = {PB_EXACT{if (o == kValue) mpfr_sin(r, a, MPFR_RNDN);
else mpfr_cos(r, a, MPFR_RNDN);
}
, PB_QUICK { return o == kValue ? sinl(a) : cosl(a); }
, 1, 1, -100, 100, { 0, 0.7853981633974483, 0x1p17, 0x1p23 }
}
;
m["cos"] = {PB_EXACT{if (o == kValue){mpfr_cos(r, a, MPFR_RNDN);
}
else {
  mpfr_sin(r, a, MPFR_RNDN);
  mpfr_neg(r, r, MPFR_RNDN);
}
}
, PB_QUICK { return o == kValue ? cosl(a) : -sinl(a); }
, 1, 1, -100, 100, { 0, 0.7853981633974483, 0x1p17, 0x1p23 }
}
;
m["square"] = {PB_EXACT{if (o == kValue) mpfr_sqr(r, a, MPFR_RNDN);
else mpfr_mul_ui(r, a, 2, MPFR_RNDN);
}
, PB_QUICK { return o == kValue ? a * a : 2 * a; }
, 0.5, 0, -10, 10, { 0 }
}
;
m["sqrt"] = {PB_EXACT{mpfr_sqrt(r, a, MPFR_RNDN);
if (o == kValue) return;
if (mpfr_zero_p(r)) {
  mpfr_set_inf(r, 1);
} else {
  mpfr_mul_ui(r, r, 2, MPFR_RNDN);
  mpfr_ui_div(r, 1, r, MPFR_RNDN);
}
}
, PB_QUICK { return o == kValue ? sqrtl(a) : 1 / (2 * fabsl(sqrtl(a))); }
, 0.5, 1, 0, 4, { 0, 1, 2, 4, 0x1p-800, 0x1p-80, 0x1p-1022, 0x1p-126 }
}
;
m["add"] = {PB_EXACT{if (o == kValue) mpfr_add(r, a, b, MPFR_RNDN);
else mpfr_set_ui(r, 1, MPFR_RNDN);
}
, PB_QUICK { return o == kValue ? a + b : 1; }
, 0.5, 0, -10, 10, {}
}
;
m["subtract"] = {PB_EXACT{if (o == kValue) mpfr_sub(r, a, b, MPFR_RNDN);
else mpfr_set_si(r, o == kSlope0 ? 1 : -1, MPFR_RNDN);
}
, PB_QUICK { return o == kValue ? a - b : o == kSlope0 ? 1 : -1; }
, 0.5, 0, -10, 10, {}
}
;
m["multiply"] = {PB_EXACT{if (o == kValue) mpfr_mul(r, a, b, MPFR_RNDN);
else mpfr_set(r, o == kSlope0 ? b : a, MPFR_RNDN);
}
, PB_QUICK { return o == kValue ? a * b : o == kSlope0 ? b : a; }
, 0.5, 0, -10, 10, {}
}
;
m["divide"] = {PB_EXACT{if (o == kSlope0){mpfr_ui_div(r, 1, b, MPFR_RNDN);
return;
}
mpfr_div(r, a, b, MPFR_RNDN);
if (o == kValue) return;
mpfr_div(r, r, b, MPFR_RNDN);
mpfr_neg(r, r, MPFR_RNDN);
}
, PB_QUICK { return o == kSlope0 ? 1 / b : o == kValue ? a / b : -((a / b) / b); }
, 0.5, 1, -10, 10, {
  0, 1, 0x1p200, 0x1p-200, 0x1p16, 0x1p-16, 0x1p-1022, 0x1p-126, 0x1p512, 0x1p64
}
}
;
m["greater"] = {PB_EXACT{mpfr_set_ui(r, o == kValue && mpfr_greater_p(a, b) ? 1 : 0, MPFR_RNDN);
}
, PB_QUICK { return o == kValue && a > b ? 1 : 0; }
, 0, 0, -10, 10, { 0 }
}
;
m["maximum"] = {PB_EXACT{if (mpfr_nan_p(a) || mpfr_nan_p(b)){mpfr_set_nan(r);
}
else if (o == kValue) {
  const bool zeros = mpfr_zero_p(a) && mpfr_zero_p(b);
  mpfr_set(r, zeros ? (mpfr_signbit(a) ? b : a) : mpfr_greater_p(a, b) ? a : b, MPFR_RNDN);
}
else if (mpfr_equal_p(a, b)) {
  mpfr_set_d(r, 0.5, MPFR_RNDN);
}
else {
  mpfr_set_ui(r, mpfr_greater_p(a, b) == (o == kSlope0) ? 1 : 0, MPFR_RNDN);
}
}
, PB_QUICK {
  if (a != a || b != b) return kNaN;
  if (o == kValue) return a > b ? a : b > a ? b : a == 0 && !std::signbit(a) ? a : b;
  if (a == b) return 0.5L;
  return (a > b) == (o == kSlope0) ? 1 : 0;
}
, 0, 0, -10, 10, { 0 }
}
;
return m;
}

template <typename T>
struct Format {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static constexpr int kDigits = std::numeric_limits<T>::digits;
  static constexpr int kMin = std::numeric_limits<T>::min_exponent - 1;
  static constexpr int kMax = std::numeric_limits<T>::max_exponent - 1;
};

template <typename T>
T FromBits(typename Format<T>::Bits bits) {
  T x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

template <typename T>
typename Format<T>::Bits ToBits(T x) {
  typename Format<T>::Bits bits;
  std::memcpy(&bits, &x, sizeof(x));
  return bits;
}

constexpr double kWrong = kInf;  // a special value, or a sign, that does not match

// By MPFR; r is overwritten.
template <typename T>
double ExactError(const Reference& reference, Output o, T a, T b, T got) {
  thread_local Big big_a, big_b, r, y;
  mpfr_set_d(big_a.v, static_cast<double>(a), MPFR_RNDN);
  mpfr_set_d(big_b.v, static_cast<double>(b), MPFR_RNDN);
  reference.exact(o, r.v, big_a.v, big_b.v);
  if (mpfr_nan_p(r.v) || got != got) return mpfr_nan_p(r.v) && got != got ? 0 : kWrong;
  if ((mpfr_signbit(r.v) != 0) != std::signbit(got)) return kWrong;
  if (mpfr_inf_p(r.v)) return std::isinf(got) ? 0 : kWrong;
  if (mpfr_zero_p(r.v)) return got == 0 ? 0 : kWrong;
  const int exponent = static_cast<int>(mpfr_get_exp(r.v)) - 1;
  if (std::isinf(got)) {
    if (exponent > Format<T>::kMax) return 0;
    mpfr_set_ui_2exp(y.v, 1, Format<T>::kMax + 1, MPFR_RNDN);
    if (got < 0) mpfr_neg(y.v, y.v, MPFR_RNDN);
  } else {
    mpfr_set_d(y.v, static_cast<double>(got), MPFR_RNDN);
  }
  mpfr_sub(y.v, y.v, r.v, MPFR_RNDN);
  const int ulp = std::clamp(exponent, Format<T>::kMin, Format<T>::kMax) - Format<T>::kDigits + 1;
  mpfr_mul_2si(y.v, y.v, -ulp, MPFR_RNDN);
  return std::fabs(mpfr_get_d(y.v, MPFR_RNDN));
}

// Against a reference of a wider type; negative: let MPFR look.
template <typename T, typename W>
double RoughError(W r, T got) {
  const W y = static_cast<W>(got);
  if (!(std::fabs(r) < std::numeric_limits<W>::infinity()) || std::isinf(got) || got != got) {
    if (r != r && got != got) return 0;
    const W limit = std::ldexp(W{1}, Format<T>::kMax + 1);
    return std::isinf(got) && (got > 0 ? r >= limit : r <= -limit) ? 0 : -1;
  }
  if (r == 0 && got == 0) return std::signbit(r) == std::signbit(got) ? 0 : -1;
  if (r == 0 || std::signbit(r) != std::signbit(got)) return -1;
  const int exponent = std::clamp(std::ilogb(r), Format<T>::kMin, Format<T>::kMax);
  return static_cast<double>(std::fabs(std::ldexp(y - r, Format<T>::kDigits - 1 - exponent)));
}

// The hot one, of the exhaustive sweeps; the quick sweep checks the special values.
double RoughError(double r, float got) {
  const uint64_t bits = ToBits(r);
  const uint64_t exponent = (bits >> 52) & 0x7FF;
  const bool same_sign = (bits >> 63) == (ToBits(got) >> 31);
  if (exponent < 1023 + 127 && same_sign && bits << 1 != 0) {
    const uint64_t e = std::max<uint64_t>(exponent, 1023 - 126);
    return std::fabs(static_cast<double>(got) - r) * FromBits<double>((2046 + 23 - e) << 52);
  }
  if (r != r) return got != got ? 0 : -1;
  if (same_sign && static_cast<double>(got) == r) return 0;
  if (same_sign && exponent >= 1023 + 128 && std::isinf(got)) return 0;
  return RoughError<float, double>(r, got);
}

struct Column {
  double max = 0;
  double a = 0, b = 0;
  uint64_t samples = 0, wrong = 0;
  void Merge(const Column& other) {
    samples += other.samples;
    wrong += other.wrong;
    if (other.max > max) {
      max = other.max;
      a = other.a;
      b = other.b;
    }
  }
};

struct Columns {
  Column output[3];
  uint64_t impure = 0;
};

template <typename T>
void Judge(const Reference& reference, Output o, T a, T b, T got, double rough, bool always,
           Column& column) {
  ++column.samples;
  const double bound = o == kValue ? reference.value_bound : reference.slope_bound;
  if (!always && rough >= 0 && rough <= column.max && rough <= bound) return;
  if (!always && rough == 0) return;
  const double error = ExactError(reference, o, a, b, got);
  if (error == kWrong || error > bound) {
    if (++column.wrong <= 3) {
      std::fprintf(stderr, "output %d of (%a, %a): got %a, %.3f ULP\n", o, static_cast<double>(a),
                   static_cast<double>(b), static_cast<double>(got), error);
    }
  }
  if (error > column.max) {
    column.max = error;
    column.a = static_cast<double>(a);
    column.b = static_cast<double>(b);
  }
}

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed) {}
  uint64_t operator()() {  // splitmix64
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  double Uniform() { return static_cast<double>((*this)() >> 11) * 0x1p-53; }
};

template <typename T>
T RandomBits(Random& random) {
  return FromBits<T>(static_cast<typename Format<T>::Bits>(random()));
}

// x moved by `steps` bit patterns.
template <typename T>
T Step(T x, int64_t steps) {
  return FromBits<T>(static_cast<typename Format<T>::Bits>(
      ToBits(x) + static_cast<typename Format<T>::Bits>(steps)));
}

template <typename T>
std::vector<T> Specials() {
  using L = std::numeric_limits<T>;
  std::vector<T> positive = {T{0},
                             L::denorm_min(),
                             Step(L::min(), -1),
                             L::min(),
                             Step(L::min(), 1),
                             T{0.5},
                             Step(T{1}, -1),
                             T{1},
                             Step(T{1}, 1),
                             T{2},
                             T{1e10},
                             L::max(),
                             L::infinity(),
                             L::quiet_NaN(),
                             Step(L::infinity(), 1),
                             FromBits<T>(ToBits(L::quiet_NaN()) + 12345)};
  std::vector<T> all;
  for (const T x : positive) {
    all.push_back(x);
    all.push_back(std::copysign(x, T{-1}));
  }
  return all;
}

template <typename T>
std::vector<T> EdgeCases(const std::string& op, const Reference& reference) {
  std::vector<T> all = Specials<T>();
  const auto around = [&all](long double x, int64_t steps) {
    for (int64_t i = -steps; i <= steps; ++i) {
      all.push_back(Step(static_cast<T>(x), i));
      all.push_back(-all.back());
    }
  };
  for (const double boundary : reference.boundaries) around(boundary, 300);
  if (op == "exp" || op == "expm1" || op == "sigmoid" || op == "tanh") {
    for (int k = -1100; k <= 1100; ++k) {
      around((k + 0.5L) * 0.693147180559945309417L / (op == "tanh" ? 2 : 1), 4);
      around(k * 0.693147180559945309417L / (op == "tanh" ? 2 : 1), 1);
    }
  } else if (op == "sin" || op == "cos") {
    const long double half_pi = 1.57079632679489661923132L;
    for (int k = 1; k <= 3000; ++k) around(k * half_pi / 2, 2);
    for (int e = 12; e < 63; ++e) {
      for (int k = -3; k <= 3; ++k) around((std::ldexp(1.0L, e) + k) * half_pi, 2);
    }
    // Among the closest float64 and float32 ever get to a multiple of pi/2.
    around(6381956970095103.0L * 0x1p797L, 2);
    around(16367173.0L * 0x1p72L, 2);
    around(0x1.6ac5b262ca1ffp849L, 2);
    around(0x1.921fb54442d18p0L, 20);
  } else if (op == "log" || op == "sqrt" || op == "square") {
    for (int e = Format<T>::kMin - Format<T>::kDigits + 1; e <= Format<T>::kMax; ++e) {
      around(std::ldexp(1.0L, e), 2);
      around(std::ldexp(std::sqrt(2.0L), e), 2);
    }
  }
  return all;
}

// Sample i of the stratified ones.
template <typename T>
T Draw(Random& random, const Reference& reference) {
  switch (random() % 8) {
    case 0:
    case 1:
    case 2:
      return RandomBits<T>(random);
    case 3: {  // log-uniform around 1
      const int exponent = static_cast<int>(random() % 64) - 40;
      const T x = static_cast<T>(std::ldexp(1 + random.Uniform(), exponent));
      return random() % 2 ? x : -x;
    }
    case 4: {
      if (reference.boundaries.empty()) return RandomBits<T>(random);
      const T edge = static_cast<T>(reference.boundaries[random() % reference.boundaries.size()]);
      const T x = Step(edge, static_cast<int64_t>(random() % 20001) - 10000);
      return random() % 2 ? x : -x;
    }
    case 5: {
      const T x = static_cast<T>(random.Uniform() * 2);
      return random() % 2 ? x : -x;
    }
    default:
      return static_cast<T>(reference.lo + (reference.hi - reference.lo) * random.Uniform());
  }
}

template <typename T>
Kernel<T> KernelOf(const Entry& entry) {
  if constexpr (sizeof(T) == 4) {
    return entry.f32;
  } else {
    return entry.f64;
  }
}

template <typename T>
void JudgeSamples(const Entry& entry, const Reference& reference, const std::vector<T>& a,
                  const std::vector<T>& b, size_t mpfr_every, Columns& columns) {
  const size_t n = a.size();
  std::vector<T> y[3];
  for (auto& out : y) out.resize(n);
  KernelOf<T>(entry)(a.data(), b.data(), y[0].data(), y[1].data(), y[2].data(), n);

  // In another order: other neighbours, other lanes.
  std::vector<size_t> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = (i * 40503 + 7) % n;
  std::vector<T> a2(n), b2(n), y2[3];
  for (auto& out : y2) out.resize(n);
  for (size_t i = 0; i < n; ++i) {
    a2[i] = a[order[i]];
    b2[i] = b[order[i]];
  }
  KernelOf<T>(entry)(a2.data(), b2.data(), y2[0].data(), y2[1].data(), y2[2].data(), n);
  for (int o = 0; o <= entry.arity; ++o) {
    for (size_t i = 0; i < n; ++i) {
      columns.impure += ToBits(y2[o][i]) != ToBits(y[o][order[i]]);
    }
  }

  for (int o = 0; o <= entry.arity; ++o) {
    const Output output = static_cast<Output>(o);
    for (size_t i = 0; i < n; ++i) {
      const long double r =
          reference.quick(output, static_cast<long double>(a[i]), static_cast<long double>(b[i]));
      Judge(reference, output, a[i], b[i], y[o][i], RoughError<T, long double>(r, y[o][i]),
            i % mpfr_every == 0, columns.output[o]);
    }
  }
}

template <typename T>
void Pad(std::vector<T>& v) {
  while (v.size() % kBlock != 0) v.push_back(T{1});
}

void InParallel(size_t tasks, const std::function<void(size_t)>& task) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i; (i = next++) < tasks;) task(i);
  };
  std::thread other(work);
  work();
  other.join();
}

template <typename T>
Columns Sampled(const std::string& op, const Entry& entry, const Reference& reference,
                uint64_t samples, size_t mpfr_every) {
  Columns columns;
  const bool binary = entry.arity == 2;
  std::vector<T> edges = EdgeCases<T>(op, reference);
  std::vector<T> a, b;
  if (binary) {
    std::vector<T> all = Specials<T>();
    for (const double x : reference.boundaries) all.push_back(static_cast<T>(x));
    for (const T x : all) {
      for (const T w : all) {
        a.push_back(x);
        b.push_back(w);
      }
    }
    Random random(5);
    for (const T x : edges) {
      a.push_back(x);
      b.push_back(Draw<T>(random, reference));
      a.push_back(Draw<T>(random, reference));
      b.push_back(x);
    }
  } else {
    a = edges;
    b = edges;
  }
  Pad(a);
  Pad(b);
  JudgeSamples<T>(entry, reference, a, b, 1, columns);

  constexpr size_t kChunk = 8192;
  std::mutex mutex;
  InParallel(samples / kChunk + 1, [&](size_t chunk) {
    Random random(chunk * 1000003 + 17);
    std::vector<T> x(kChunk), w(kChunk);
    for (size_t i = 0; i < kChunk; ++i) {
      x[i] = Draw<T>(random, reference);
      w[i] = x[i];
      if (!binary) continue;
      w[i] = Draw<T>(random, reference);
      // Ties and near ties, which random draws miss.
      if (i % 16 == 0) w[i] = Step(x[i], static_cast<int64_t>(random() % 5) - 2);
    }
    Columns part;
    JudgeSamples<T>(entry, reference, x, w, mpfr_every, part);
    const std::lock_guard<std::mutex> lock(mutex);
    for (int o = 0; o < 3; ++o) columns.output[o].Merge(part.output[o]);
    columns.impure += part.impure;
  });
  return columns;
}

// Every stride-th float32, against the float64 kernel of the best target.
Columns Exhaustive(const Entry& entry, const Entry& judge, const Reference& reference,
                   uint64_t stride) {
  Columns columns;
  constexpr size_t kChunk = 1 << 16;
  const uint64_t chunks = ((uint64_t{1} << 32) / stride + kChunk - 1) / kChunk;
  std::mutex mutex;
  InParallel(chunks, [&](size_t chunk) {
    thread_local std::vector<float> x(kChunk), y[3];
    thread_local std::vector<double> wide(kChunk), r[3];
    for (auto& out : y) out.resize(kChunk);
    for (auto& out : r) out.resize(kChunk);
    for (size_t i = 0; i < kChunk; ++i) {
      // Every chunk spans the whole range: an early one finds nearly the maximum, and MPFR has
      // little to do from there on. A stride leaves room for the low bits to vary.
      const uint64_t index = (i * chunks + chunk) * stride;
      const uint64_t jitter = stride == 1 ? 0 : (index * 0x9E3779B97F4A7C15u >> 40) % stride;
      x[i] = FromBits<float>(static_cast<uint32_t>(index + jitter));
      wide[i] = static_cast<double>(x[i]);
    }
    entry.f32(x.data(), x.data(), y[0].data(), y[1].data(), y[2].data(), kChunk);
    judge.f64(wide.data(), wide.data(), r[0].data(), r[1].data(), r[2].data(), kChunk);
    Columns part;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      part = columns;  // so that MPFR is asked only for what leads
    }
    for (auto& column : part.output) column.samples = column.wrong = 0;
    for (int o = 0; o < 2; ++o) {
      for (size_t i = 0; i < kChunk; ++i) {
        Judge(reference, static_cast<Output>(o), x[i], x[i], y[o][i], RoughError(r[o][i], y[o][i]),
              false, part.output[o]);
      }
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (int o = 0; o < 2; ++o) columns.output[o].Merge(part.output[o]);
  });
  return columns;
}

// SupportedTargets() re-arms all targets, so a choice must come after each call.
Entry EntryFor(int64_t target, size_t i) {
  hwy::GetChosenTarget().Update(target);
  return HWY_DYNAMIC_DISPATCH(GetEntry)(i);
}

struct Options {
  bool full = false;
  std::string op, target, dtype;
  uint64_t stride = 1, samples = 0;
};

bool Report(const std::string& op, const char* dtype, const char* target, const Entry& entry,
            const Reference& reference, const Columns& columns) {
  bool good = columns.impure == 0;
  std::printf("%-9s %s %-6s %11llu ", op.c_str(), dtype, target,
              static_cast<unsigned long long>(columns.output[0].samples));
  for (int o = 0; o <= entry.arity; ++o) {
    const Column& column = columns.output[o];
    const double bound = o == kValue ? reference.value_bound : reference.slope_bound;
    const bool held = column.samples > 0 && column.wrong == 0 && column.max <= bound;
    good = good && held;
    std::printf(" %.4f%s", column.max, held ? "" : "!");
    if (entry.arity == 1) std::printf(" at %-22.16g", column.a);
    if (entry.arity == 2) std::printf(" at (%.16g, %.16g)", column.a, column.b);
  }
  if (columns.impure > 0) {
    std::printf("  lanes that depend on neighbours: %llu!",
                static_cast<unsigned long long>(columns.impure));
  }
  std::printf("\n");
  std::fflush(stdout);
  return good;
}

int Main(const Options& options) {
  const std::map<std::string, Reference> references = References();
  int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  const int64_t best = targets & -targets;
  const uint64_t samples =
      options.samples > 0 ? options.samples : (options.full ? 10000000 : 200000);
  bool good = true;
  int columns_reported = 0;
  std::printf("op     dtype target     samples  max ULP of value, of derivative(s), and where\n");
  for (; targets != 0; targets &= targets - 1) {
    const int64_t target = targets & -targets;
    const char* name = hwy::TargetName(target);
    if (!options.target.empty() && options.target != name) continue;
    for (size_t i = 0;; ++i) {
      const Entry judge = EntryFor(best, i);
      const Entry entry = EntryFor(target, i);
      if (entry.name == nullptr) break;
      const std::string op = entry.name;
      if (!options.op.empty() && options.op != op) continue;
      const auto found = references.find(op);
      if (found == references.end()) {
        std::printf("%s: no reference\n", op.c_str());
        return 1;
      }
      const Reference& reference = found->second;
      const size_t mpfr_every = options.full ? 8192 : 64;
      if (options.dtype != "f64") {
        const bool exhaustive = options.full && entry.arity == 1;
        const Columns columns = exhaustive
                                    ? Exhaustive(entry, judge, reference, options.stride)
                                    : Sampled<float>(op, entry, reference, samples, mpfr_every);
        good = Report(op, "f32", name, entry, reference, columns) && good;
        ++columns_reported;
      }
      if (options.dtype != "f32") {
        const Columns columns = Sampled<double>(op, entry, reference, samples, mpfr_every);
        good = Report(op, "f64", name, entry, reference, columns) && good;
        ++columns_reported;
      }
    }
  }
  if (columns_reported == 0) std::printf("nothing was selected\n");
  return good && columns_reported > 0 ? 0 : 1;
}

}  // namespace
}  // namespace pullback

int main(int argc, char** argv) {
  pullback::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (argument == "quick" || argument == "full") {
      options.full = argument == "full";
      continue;
    }
    if (argument == "--op") {
      options.op = value;
    } else if (argument == "--target") {
      options.target = value;
    } else if (argument == "--dtype") {
      options.dtype = value;
    } else if (argument == "--stride") {
      options.stride = std::max<uint64_t>(1, std::strtoull(value.c_str(), nullptr, 10));
    } else if (argument == "--samples") {
      options.samples = std::strtoull(value.c_str(), nullptr, 10);
    } else {
      std::fprintf(stderr, "unknown argument %s; see the head of sweep.cc\n", argv[i]);
      return 2;
    }
    ++i;
  }
  return pullback::Main(options);
}
#endif  // HWY_ONCE

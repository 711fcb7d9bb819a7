// THE table of reductions: what each accumulates, how states merge and finish, and an element's
// derivative.
//
// A state is { count, pivot, sums... } in float64. Of a block of elements that lies in cache the
// pivot is folded first (a maximum, a mean), then Terms are summed given the pivot. Merge joins the
// states of two blocks, Finish gives the value, Coefs what Slope needs to give each element's
// derivative times the cotangent g. `p` is the parameter, n the number of elements of the slice.
//
// Prepare runs on lanes of x's own type, and is what may be kept of an element from the sums to the
// slopes; everything else runs on double lanes. A second array `v`, where there is one, is another
// operand, or what a map of rows multiplies its Jacobian with.
#if defined(PULLBACK_CPP_OPS_REDUCTIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_OPS_REDUCTIONS_INL_H_
#undef PULLBACK_CPP_OPS_REDUCTIONS_INL_H_
#else
#define PULLBACK_CPP_OPS_REDUCTIONS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <tuple>

#include "math/error_free-inl.h"
#include "math/exp-inl.h"
#include "math/log-inl.h"
#include "math/power-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// kMax and kMaxAbs may lose a NaN, which Terms then find; the others keep it.
enum class Pivot : uint8_t { kNone, kMax, kMaxAbs, kMean, kLargest, kSmallest, kLargestAbs };

// Where a state holds what.
constexpr size_t kCount = 0, kPivot = 1, kSums = 2;

inline double NaNOf(double nan_or_not) { return nan_or_not == nan_or_not ? 0.0 : nan_or_not; }

// What most rows have in common.
template <size_t kSumsOfRow, size_t kCoefsOfRow>
struct Reduction {
  static constexpr const char* kMethod = "";  // of a map of rows
  static constexpr size_t kArrays = 1, kOuts = 1;
  static constexpr size_t kTerms = kSumsOfRow, kCoefs = kCoefsOfRow;
  static constexpr bool kStateless = false;   // slopes do not depend on the state
  static constexpr bool kKeeps = false;       // Prepare is worth keeping
  static constexpr bool kPivotIsAll = false;  // the value needs no sums
  static constexpr bool kHasRest = false;     // behind the sums: see Exponentials
  static constexpr bool kProduct = false;     // the first sum is a product
  static constexpr bool kOneProduct = false;  // slopes are elements, or less, times coefficient 0
  // Of x times c, values, or a map's results, are c^kDegree times as large; slopes are of a degree
  // less. Of c^kParameterDegree times the parameter, that is.
  static constexpr int kDegree = 0, kParameterDegree = 0;
  static constexpr bool kCentred = false;  // x and x plus a number have the same results
  template <typename T>
  static constexpr Pivot kPivotOf = Pivot::kNone;

  template <class D, class V>
  static HWY_INLINE V Prepare(D, V x, V) {
    return x;
  }
  static double Settle(double pivot, double) { return pivot; }
  static void Close(double*) {}
  static void Merge(double* into, const double* from, double) {
    into[kCount] += from[kCount];
    for (size_t k = 0; k < kTerms; ++k) into[kSums + k] += from[kSums + k];
  }
  static double Finish(const double*, double) { return 0; }
  // Which states may have suffered: squares or products have over- or underflowed, infinities have
  // met. The slice is then looked at, and if need be reduced again: see ReduceAgain. `field(k)` is
  // field k of several states.
  static constexpr bool kCanSuffer = false;
  template <class D, class F>
  static HWY_INLINE hn::Mask<D> Suspects(D d, const F&, double) {
    return hn::FirstN(d, 0);
  }
};

// Whether numbers lie within bounds; NaN does not.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Mask<D> IsWithin(D d, V x, double low, double high) {
  return hn::And(hn::Ge(x, hn::Set(d, low)), hn::Le(x, hn::Set(d, high)));
}
// Of a sum, none of whose terms that count is lost.
constexpr double kLowest = 0x1p-900, kHighest = 0x1p1000;

template <class D, size_t kTerms>
using Terms = std::array<hn::Vec<D>, kTerms>;

// --- sums ----------------------------------------------------------------------------------------

struct SumRow : Reduction<1, 1> {
  static constexpr const char* kName = "sum";
  static constexpr bool kStateless = true;
  static constexpr bool kOneProduct = true;
  template <class D, class V>
  static HWY_INLINE void Sum(D, V x, V, V, double, Terms<D, 1>& t) {
    t[0] = x;
  }
  static double Finish(const double* s, double) { return s[kSums]; }
  static void Coefs(const double*, double, double, double g, double* c) { c[0] = g; }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V, V, V, const std::array<V, 1>& c, std::array<V, 1>& out) {
    out[0] = c[0];
  }
};

struct MeanRow : SumRow {
  static constexpr const char* kName = "mean";
  static double Finish(const double* s, double) { return s[kSums] / s[kCount]; }
  static void Coefs(const double*, double n, double, double g, double* c) { c[0] = g / n; }
};

struct DotRow : Reduction<1, 1> {
  static constexpr const char* kName = "dot";
  static constexpr size_t kArrays = 2, kOuts = 2;
  static constexpr bool kStateless = true;
  static constexpr bool kOneProduct = true;
  template <class D, class V>
  static HWY_INLINE void Sum(D, V x, V v, V, double, Terms<D, 1>& t) {
    t[0] = hn::Mul(x, v);
  }
  static double Finish(const double* s, double) { return s[kSums]; }
  static void Coefs(const double*, double, double, double g, double* c) { c[0] = g; }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V x, V v, V, const std::array<V, 1>& c, std::array<V, 2>& out) {
    out[0] = hn::Mul(v, c[0]);
    out[1] = hn::Mul(x, c[0]);
  }
};

// --- norms ---------------------------------------------------------------------------------------

// 1 with x's sign, 0 at zeros.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SignOf(D d, V x) {
  const V size = hn::Abs(x);
  return hn::IfThenElse(hn::Gt(size, hn::Zero(d)), hn::CopySign(hn::Set(d, 1), x), size);
}

struct Norm1Row : Reduction<1, 1> {
  static constexpr const char* kName = "norm1";
  static constexpr bool kStateless = true;
  static constexpr bool kOneProduct = true;
  template <class D, class V>
  static HWY_INLINE void Sum(D, V x, V, V, double, Terms<D, 1>& t) {
    t[0] = hn::Abs(x);
  }
  static double Finish(const double* s, double) { return s[kSums]; }
  static void Coefs(const double*, double, double, double g, double* c) { c[0] = g; }
  template <class D, class V>
  static HWY_INLINE void Slope(D d, V x, V, V, const std::array<V, 1>& c, std::array<V, 1>& out) {
    out[0] = hn::Mul(SignOf(d, x), c[0]);
  }
};

struct SquaredNorm2Row : Reduction<1, 1> {
  static constexpr const char* kName = "squared_norm2";
  static constexpr bool kStateless = true;
  static constexpr bool kOneProduct = true;
  static constexpr int kDegree = 2;
  static constexpr bool kCanSuffer = true;
  template <class D, class F>
  static HWY_INLINE hn::Mask<D> Suspects(D d, const F& field, double) {
    return hn::Lt(field(kSums), hn::Set(d, kLowest));
  }
  template <class D, class V>
  static HWY_INLINE void Sum(D, V x, V, V, double, Terms<D, 1>& t) {
    t[0] = hn::Mul(x, x);
  }
  static double Finish(const double* s, double) { return s[kSums]; }
  static void Coefs(const double*, double, double, double g, double* c) { c[0] = 2 * g; }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V x, V, V, const std::array<V, 1>& c, std::array<V, 1>& out) {
    out[0] = hn::Mul(x, c[0]);
  }
};

// Squares of x times a power of two, the pivot, by which they neither over- nor underflow; of
// float32 the squares fit anyway.
struct Norm2Row : Reduction<1, 2> {
  static constexpr const char* kName = "norm2";
  template <typename T>
  static constexpr Pivot kPivotOf = sizeof(T) == 8 ? Pivot::kMaxAbs : Pivot::kNone;
  static double Settle(double largest, double) {
    constexpr int kFar = 1000;
    if (!(largest > 0)) return largest == 0 ? std::ldexp(1.0, kFar) : 1.0;
    if (largest > std::numeric_limits<double>::max()) return std::ldexp(1.0, -kFar);
    int exponent;
    std::frexp(largest, &exponent);
    return std::ldexp(1.0, std::clamp(-exponent, -kFar, kFar));
  }
  template <class D, class V>
  static HWY_INLINE void Sum(D, V x, V, V pivot, double, Terms<D, 1>& t) {
    const V scaled = hn::Mul(x, pivot);
    t[0] = hn::Mul(scaled, scaled);
  }
  static void Merge(double* into, const double* from, double) {
    const double scale = std::min(into[kPivot], from[kPivot]);
    const double mine = scale / into[kPivot], theirs = scale / from[kPivot];
    into[kCount] += from[kCount];
    into[kSums] = into[kSums] * mine * mine + from[kSums] * theirs * theirs;
    into[kPivot] = scale;
  }
  static double Finish(const double* s, double) { return std::sqrt(s[kSums]) / s[kPivot]; }
  static void Coefs(const double* s, double, double, double g, double* c) {
    c[0] = s[kPivot];
    c[1] = s[kSums] == 0 ? 0 * g : g / std::sqrt(s[kSums]);
  }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V x, V, V, const std::array<V, 2>& c, std::array<V, 1>& out) {
    out[0] = hn::Mul(hn::Mul(x, c[0]), c[1]);
  }
};

// Powers of |x| by its largest, the pivot.
struct NormRow : Reduction<1, 6> {
  static constexpr const char* kName = "norm";
  template <typename T>
  static constexpr Pivot kPivotOf = Pivot::kMaxAbs;
  static double Settle(double largest, double) {
    return largest == 0 ? std::numeric_limits<double>::denorm_min() : largest;
  }
  template <class D, class V>
  static HWY_NOINLINE V PowerOf(D d, V base, V exponent) {
    V y, da, db;
    Power(d, base, exponent, y, da, db);
    return y;
  }
  template <class D, class V>
  static HWY_INLINE void Sum(D d, V x, V, V pivot, double p, Terms<D, 1>& t) {
    const V size = hn::Abs(x);
    const V share =
        hn::IfThenElse(hn::Eq(size, pivot), hn::Set(d, 1), hn::Div(size, pivot));  // inf / inf
    t[0] = PowerOf(d, share, hn::Set(d, p));
  }
  static void Merge(double* into, const double* from, double p) {
    const double largest = std::max(into[kPivot], from[kPivot]);
    const auto share = [&](const double* s) {
      return s[kPivot] == largest ? s[kSums] : s[kSums] * std::pow(s[kPivot] / largest, p);
    };
    into[kCount] += from[kCount];
    into[kSums] = share(into) + share(from);
    into[kPivot] = largest;
  }
  static double Finish(const double* s, double p) { return s[kPivot] * std::pow(s[kSums], 1 / p); }
  static void Coefs(const double* s, double, double p, double g, double* c) {
    c[0] = s[kPivot];
    c[1] = s[kSums] == 0 ? 1 : std::pow(s[kSums], 1 / p);
    c[2] = p - 1;
    c[3] = g;
    c[4] = c[0] * c[1] * kDown;
    c[5] = std::exp2(kLogDown * c[2]);
  }
  static constexpr double kLogDown = -800, kDown = 0x1p-800, kFar = 0x1p-900;
  template <class D, class V>
  static HWY_INLINE void Slope(D d, V x, V, V, const std::array<V, 6>& c, std::array<V, 1>& out) {
    const V size = hn::Abs(x);
    const V share = hn::Div(hn::Div(size, c[0]), c[1]);
    V power = PowerOf(d, share, c[2]);
    // A share of next to nothing may underflow, and its small power may be much.
    const auto far = hn::And(hn::Lt(share, hn::Set(d, kFar)), hn::Lt(c[2], hn::Set(d, 1.5)));
    if (HWY_UNLIKELY(!hn::AllFalse(d, far))) {
      const V raised = hn::Div(hn::Mul(size, hn::Set(d, 1 / kDown)), c[4]);
      const V whole = hn::Mul(hn::Mul(PowerOf(d, raised, c[2]), c[5]), c[5]);
      power = hn::IfThenElse(hn::And(far, hn::Gt(size, hn::Zero(d))), whole, power);
    }
    out[0] = hn::Mul(hn::Mul(SignOf(d, x), power), c[3]);
  }
};

// --- extrema -------------------------------------------------------------------------------------

template <Pivot kExtremum>
struct Extremum : Reduction<1, 3> {
  static constexpr bool kPivotIsAll = true;
  template <typename T>
  static constexpr Pivot kPivotOf = kExtremum;
  template <class D, class V>
  static HWY_INLINE V Measure(D, V x) {
    return kExtremum == Pivot::kLargestAbs ? hn::Abs(x) : x;
  }
  template <class D, class V>
  static HWY_INLINE void Sum(D d, V x, V, V pivot, double, Terms<D, 1>& t) {
    t[0] = hn::IfThenElseZero(hn::Eq(Measure(d, x), pivot), hn::Set(d, 1));
  }
  static void Merge(double* into, const double* from, double) {
    const double a = into[kPivot], b = from[kPivot];
    const bool other = b != b || (kExtremum == Pivot::kSmallest ? b < a : b > a);
    into[kCount] += from[kCount];
    if (a == b) {
      into[kSums] += from[kSums];
    } else if (a == a && other) {
      into[kPivot] = b;
      into[kSums] = from[kSums];
    }
  }
  static double Finish(const double* s, double) { return s[kPivot]; }
  static void Coefs(const double* s, double, double, double g, double* c) {
    c[0] = s[kPivot];
    c[1] = g * (1 / s[kSums]);
    c[2] = g * NaNOf(s[kPivot]);
  }
  template <class D, class V>
  static HWY_INLINE void Slope(D d, V x, V, V, const std::array<V, 3>& c, std::array<V, 1>& out) {
    out[0] = hn::IfThenElse(hn::Eq(Measure(d, x), c[0]), c[1], c[2]);
    if (kExtremum == Pivot::kLargestAbs) out[0] = hn::Mul(out[0], SignOf(d, x));
  }
};

struct MaxRow : Extremum<Pivot::kLargest> {
  static constexpr const char* kName = "max";
};

struct MinRow : Extremum<Pivot::kSmallest> {
  static constexpr const char* kName = "min";
};

struct NormInfRow : Extremum<Pivot::kLargestAbs> {
  static constexpr const char* kName = "norm_inf";
};

// --- exponentials --------------------------------------------------------------------------------

// exp(x - m), m the largest.
template <size_t kSumsOfRow, size_t kCoefsOfRow>
struct Exponentials : Reduction<kSumsOfRow, kCoefsOfRow> {
  static constexpr bool kKeeps = true;
  template <typename T>
  static constexpr Pivot kPivotOf = Pivot::kMax;
  template <class D, class V>
  static HWY_INLINE V Prepare(D d, V x, V pivot) {
    // Infinities that are equal, too.
    return hn::IfThenElse(hn::Eq(x, pivot), hn::Set(d, 1), ExpBelow(d, x, pivot));
  }
  static void Merge(double* into, const double* from, double) {
    MergeFirst(into, from, kSumsOfRow);
  }
  // Of a map's products: what is infinite.
  template <class D, class F>
  static HWY_INLINE hn::Mask<D> Suspects(D d, const F& field, double) {
    auto size = hn::Abs(field(kPivot));
    for (size_t k = 0; k < kSumsOfRow; ++k) size = hn::Add(size, hn::Abs(field(kSums + k)));
    return hn::Not(hn::Lt(size, Infinity(d)));
  }
  static void MergeFirst(double* into, const double* from, size_t exponentials) {
    const double largest = std::max(into[kPivot], from[kPivot]);
    const auto factor = [&](const double* s) {
      return s[kPivot] == largest ? 1.0 : std::exp(s[kPivot] - largest);
    };
    const double mine = factor(into), theirs = factor(from);
    into[kCount] += from[kCount];
    for (size_t k = 0; k < exponentials; ++k) {
      into[kSums + k] = into[kSums + k] * mine + from[kSums + k] * theirs;
    }
    into[kPivot] = largest;
  }
  // The rest, all below the largest, is summed apart where log1p of it has digits that the
  // logarithm of the whole has lost: by a second sum, as a third one in the first took 1.1 to 1.2
  // times as long. Else it is the whole less 1.
  static constexpr size_t kRest = kSums + kSumsOfRow;
  static constexpr double kSmallWhole = 1.0625;
  static void MergeWithRest(double* into, const double* from) {
    const double mine = into[kPivot], theirs = from[kPivot];
    const double below = mine < theirs   ? into[kSums] * std::exp(mine - theirs) + from[kRest]
                         : theirs < mine ? into[kRest] + from[kSums] * std::exp(theirs - mine)
                                         : into[kRest] + from[kRest] + 1;
    MergeFirst(into, from, 1);
    into[kRest] = below;
  }
  static double LogOfSum(const double* s, double near) {
    const bool by_rest = s[kSums] < kSmallWhole && std::abs(s[kPivot]) < near;
    return by_rest ? std::log1p(s[kRest]) : std::log(s[kSums]);
  }
  // 1 / sum, NaN where all elements are -inf.
  static double Share(const double* s) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    return s[kPivot] == -kInfinity ? std::numeric_limits<double>::quiet_NaN() : 1 / s[kSums];
  }
};

// Those below the largest.
struct RestRow : Exponentials<1, 1> {
  template <class D, class V>
  static HWY_INLINE void Sum(D d, V e, V, V, double, Terms<D, 1>& t) {
    t[0] = hn::IfThenZeroElse(hn::Eq(e, hn::Set(d, 1)), e);
  }
};

// Also softmax, whose value is its gradient.
struct LogSumExpRow : Exponentials<1, 1> {
  static constexpr const char* kName = "logsumexp";
  static constexpr bool kHasRest = true;
  template <class D, class V>
  static HWY_INLINE void Sum(D, V e, V, V, double, Terms<D, 1>& t) {
    t[0] = e;
  }
  static constexpr double kNear = 0.5;  // a pivot that does not drown the logarithm
  static void Merge(double* into, const double* from, double) { MergeWithRest(into, from); }
  static double Finish(const double* s, double) { return s[kPivot] + LogOfSum(s, kNear); }
  static void Coefs(const double* s, double, double, double g, double* c) { c[0] = g * Share(s); }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V, V, V e, const std::array<V, 1>& c, std::array<V, 1>& out) {
    out[0] = hn::Mul(e, c[0]);
  }
};

struct SoftmaxProductRow : Exponentials<2, 2> {
  static constexpr const char* kName = "softmax";
  static constexpr const char* kMethod = "vjp";
  static constexpr size_t kArrays = 2;
  static constexpr bool kCanSuffer = true;
  template <class D, class V>
  static HWY_INLINE void Sum(D, V e, V v, V, double, Terms<D, 2>& t) {
    t[0] = e;
    t[1] = hn::Mul(e, v);
  }
  static void Coefs(const double* s, double, double, double, double* c) {
    c[0] = Share(s);
    c[1] = s[kSums + 1] / s[kSums];
  }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V, V v, V e, const std::array<V, 2>& c, std::array<V, 1>& out) {
    out[0] = hn::Mul(hn::Mul(e, c[0]), hn::Sub(v, c[1]));
  }
};

struct LogSoftmaxRow : Exponentials<1, 2> {
  static constexpr const char* kName = "log_softmax";
  static constexpr const char* kMethod = "value";
  static constexpr bool kKeeps = false;
  static constexpr bool kHasRest = true;
  template <class D, class V>
  static HWY_INLINE void Sum(D, V e, V, V, double, Terms<D, 1>& t) {
    t[0] = e;
  }
  static constexpr double kNear = std::numeric_limits<double>::infinity();
  static void Merge(double* into, const double* from, double) { MergeWithRest(into, from); }
  static void Coefs(const double* s, double, double, double, double* c) {
    c[0] = s[kPivot];
    c[1] = LogOfSum(s, kNear) + NaNOf(Share(s));
  }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V x, V, V, const std::array<V, 2>& c, std::array<V, 1>& out) {
    const V distance = hn::IfThenZeroElse(hn::Eq(x, c[0]), hn::Sub(x, c[0]));
    out[0] = hn::Sub(distance, c[1]);
  }
};

struct LogSoftmaxVjpRow : Exponentials<2, 1> {
  static constexpr const char* kName = "log_softmax";
  static constexpr const char* kMethod = "vjp";
  static constexpr size_t kArrays = 2;
  static constexpr bool kCanSuffer = true;
  template <class D, class V>
  static HWY_INLINE void Sum(D, V e, V v, V, double, Terms<D, 2>& t) {
    t[0] = e;
    t[1] = v;
  }
  static void Merge(double* into, const double* from, double) {
    MergeFirst(into, from, 1);
    into[kSums + 1] += from[kSums + 1];
  }
  static void Coefs(const double* s, double, double, double, double* c) {
    c[0] = s[kSums + 1] * Share(s);
  }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V, V v, V e, const std::array<V, 1>& c, std::array<V, 1>& out) {
    out[0] = hn::Sub(v, hn::Mul(e, c[0]));
  }
};

struct LogSoftmaxJvpRow : SoftmaxProductRow {
  static constexpr const char* kName = "log_softmax";
  static constexpr const char* kMethod = "jvp";
  static constexpr bool kKeeps = false;
  static void Coefs(const double* s, double, double, double, double* c) {
    c[0] = 0;
    c[1] = s[kSums + 1] * Share(s);
  }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V, V v, V, const std::array<V, 2>& c, std::array<V, 1>& out) {
    out[0] = hn::Sub(v, c[1]);
  }
};

// --- moments -------------------------------------------------------------------------------------

// Sums of (x - m)^2 and x - m for m close to the mean, the pivot; closed, of squares about m + lo.
constexpr size_t kSquares = kSums, kMeanLo = kSums + 1, kSumV = kSums + 2, kSumXV = kSums + 3;

template <size_t kSumsOfRow, size_t kCoefsOfRow>
struct Moments : Reduction<kSumsOfRow, kCoefsOfRow> {
  template <typename T>
  static constexpr Pivot kPivotOf = Pivot::kMean;
  static constexpr bool kCanSuffer = true, kCentred = true;
  static double Settle(double sum, double count) { return sum / count; }
  static void Close(double* s) {
    const double rest = s[kMeanLo];
    s[kMeanLo] = rest / s[kCount];
    s[kSquares] -= rest * s[kMeanLo];
    if constexpr (kSumsOfRow > 2) s[kSumXV] -= s[kMeanLo] * s[kSumV];
  }
  static void Merge(double* into, const double* from, double) {
    const double n = into[kCount] + from[kCount];
    const double share = from[kCount] / n;
    const double apart = (from[kPivot] - into[kPivot]) + (from[kMeanLo] - into[kMeanLo]);
    const double step = apart * share;  // of the mean
    into[kSquares] += from[kSquares] + apart * step * into[kCount];
    if constexpr (kSumsOfRow > 2) {
      into[kSumXV] += from[kSumXV] - step * into[kSumV] + (apart - step) * from[kSumV];
      into[kSumV] += from[kSumV];
    }
    const double lo = into[kMeanLo] + step;
    const double mean = into[kPivot] + lo;
    into[kMeanLo] = lo - (mean - into[kPivot]);
    into[kPivot] = mean;
    into[kCount] = n;
  }
  template <class V>
  static HWY_INLINE V Centred(V x, const std::array<V, kCoefsOfRow>& c) {
    return hn::Sub(hn::Sub(x, c[0]), c[1]);
  }
  static double Rate(const double* s, double eps) {
    return 1 / std::sqrt(s[kSquares] / s[kCount] + eps);
  }
};

struct VarianceRow : Moments<2, 3> {
  static constexpr const char* kName = "variance";
  static constexpr int kDegree = 2;
  template <class D, class F>
  static HWY_INLINE hn::Mask<D> Suspects(D d, const F& field, double) {
    // Elements that are not small differ by what has a square.
    const auto equal = hn::And(hn::Eq(field(kSquares), hn::Zero(d)),
                               hn::Gt(hn::Abs(field(kPivot)), hn::Set(d, 0x1p-400)));
    return hn::Not(hn::Or(equal, IsWithin(d, field(kSquares), kLowest, kHighest)));
  }
  template <class D, class V>
  static HWY_INLINE void Sum(D, V x, V, V pivot, double, Terms<D, 2>& t) {
    t[1] = hn::Sub(x, pivot);
    t[0] = hn::Mul(t[1], t[1]);
  }
  static double Finish(const double* s, double ddof) {
    return s[kSquares] / std::max(s[kCount] - ddof, 0.0);
  }
  static void Coefs(const double* s, double n, double ddof, double g, double* c) {
    c[0] = s[kPivot];
    c[1] = s[kMeanLo];
    c[2] = g / (0.5 * std::max(n - ddof, 0.0));  // of which 2 * g may overflow
  }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V x, V, V, const std::array<V, 3>& c, std::array<V, 1>& out) {
    out[0] = hn::Mul(Centred(x, c), c[2]);
  }
};

struct LayerNormRow : VarianceRow {
  static constexpr const char* kName = "layer_norm";
  static constexpr const char* kMethod = "value";
  static constexpr int kDegree = 0, kParameterDegree = 2;
  template <class D, class F>
  static HWY_INLINE hn::Mask<D> Suspects(D d, const F& field, double eps) {
    const auto squares = hn::Add(field(kSquares), hn::Mul(field(kCount), hn::Set(d, eps)));
    return hn::Not(IsWithin(d, squares, kLowest, kHighest));
  }
  static void Coefs(const double* s, double, double eps, double, double* c) {
    c[0] = s[kPivot];
    c[1] = s[kMeanLo];
    c[2] = Rate(s, eps);
  }
};

struct LayerNormProductRow : Moments<4, 5> {
  static constexpr const char* kName = "layer_norm";
  static constexpr const char* kMethod = "vjp";
  static constexpr size_t kArrays = 2;
  static constexpr int kDegree = -1, kParameterDegree = 2;
  // Also where products with v have, of which small sums tell nothing.
  template <class D, class F>
  static HWY_INLINE hn::Mask<D> Suspects(D d, const F& field, double eps) {
    const auto squares = hn::Add(field(kSquares), hn::Mul(field(kCount), hn::Set(d, eps)));
    // Of v's size, by the least rate.
    const auto size =
        hn::Add(hn::Abs(field(kSumV)), hn::Mul(hn::Abs(field(kSumXV)), hn::Set(d, 0x1p-450)));
    return hn::Not(
        hn::And(IsWithin(d, squares, 0x1p-200, 0x1p900), IsWithin(d, size, kLowest, kHighest)));
  }
  template <class D, class V>
  static HWY_INLINE void Sum(D, V x, V v, V pivot, double, Terms<D, 4>& t) {
    t[1] = hn::Sub(x, pivot);
    t[0] = hn::Mul(t[1], t[1]);
    t[2] = v;
    t[3] = hn::Mul(t[1], v);
  }
  static void Coefs(const double* s, double n, double eps, double, double* c) {
    c[0] = s[kPivot];
    c[1] = s[kMeanLo];
    c[2] = Rate(s, eps);
    c[3] = s[kSumV] / n;
    c[4] = s[kSumXV] / n * c[2] * c[2];
  }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V x, V v, V, const std::array<V, 5>& c, std::array<V, 1>& out) {
    const V rest = hn::Mul(Centred(x, c), c[4]);
    out[0] = hn::Mul(c[2], hn::Sub(hn::Sub(v, c[3]), rest));
  }
};

// Of squares about 0.
struct RmsNormRow : Reduction<1, 1> {
  static constexpr const char* kName = "rms_norm";
  static constexpr const char* kMethod = "value";
  static constexpr int kParameterDegree = 2;
  static constexpr bool kCanSuffer = true;
  template <class D, class F>
  static HWY_INLINE hn::Mask<D> Suspects(D d, const F& field, double eps) {
    const auto squares = hn::Add(field(kSums), hn::Mul(field(kCount), hn::Set(d, eps)));
    return hn::Not(IsWithin(d, squares, kLowest, kHighest));
  }
  template <class D, class V>
  static HWY_INLINE void Sum(D, V x, V, V, double, Terms<D, 1>& t) {
    t[0] = hn::Mul(x, x);
  }
  static void Coefs(const double* s, double n, double eps, double, double* c) {
    c[0] = 1 / std::sqrt(s[kSums] / n + eps);
  }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V x, V, V, const std::array<V, 1>& c, std::array<V, 1>& out) {
    out[0] = hn::Mul(x, c[0]);
  }
};

struct RmsNormProductRow : Reduction<2, 2> {
  static constexpr const char* kName = "rms_norm";
  static constexpr const char* kMethod = "vjp";
  static constexpr size_t kArrays = 2;
  static constexpr int kDegree = -1, kParameterDegree = 2;
  static constexpr bool kCanSuffer = true;
  // Also where products with v have, as in layer_norm.
  template <class D, class F>
  static HWY_INLINE hn::Mask<D> Suspects(D d, const F& field, double eps) {
    const auto squares = hn::Add(field(kSums), hn::Mul(field(kCount), hn::Set(d, eps)));
    const auto size = hn::Mul(hn::Abs(field(kSums + 1)), hn::Set(d, 0x1p-450));
    return hn::Not(
        hn::And(IsWithin(d, squares, 0x1p-200, 0x1p900), IsWithin(d, size, kLowest, kHighest)));
  }
  template <class D, class V>
  static HWY_INLINE void Sum(D, V x, V v, V, double, Terms<D, 2>& t) {
    t[0] = hn::Mul(x, x);
    t[1] = hn::Mul(x, v);
  }
  static void Coefs(const double* s, double n, double eps, double, double* c) {
    c[0] = 1 / std::sqrt(s[kSums] / n + eps);
    c[1] = s[kSums + 1] / n * c[0] * c[0];
  }
  template <class D, class V>
  static HWY_INLINE void Slope(D, V x, V v, V, const std::array<V, 2>& c, std::array<V, 1>& out) {
    out[0] = hn::Mul(c[0], hn::NegMulAdd(x, c[1], v));
  }
};

// --- products ------------------------------------------------------------------------------------

// A product of mantissas, their exponents, and how many factors have none: zeros, infinities, NaNs.
struct ProdRow : Reduction<5, 6> {
  static constexpr const char* kName = "prod";
  static constexpr bool kProduct = true;
  static constexpr size_t kExponent = kSums + 1, kZeros = kSums + 2, kInfs = kSums + 3,
                          kNaNs = kSums + 4;

  // x = m * 2^k with |m| in [sqrt(1/2), sqrt(2)), or its sign.
  template <class D, class V>
  static HWY_INLINE auto Factor(D d, V x, V& m, V& k) {
    const V size = hn::Abs(x);
    const auto plain = hn::And(hn::Gt(size, hn::Zero(d)), hn::Lt(size, Infinity(d)));
    LogReduce(d, hn::IfThenElse(plain, size, hn::Set(d, 1)), m, k);
    m = hn::CopySign(m, x);
    return plain;
  }
  template <class D, class V>
  static HWY_INLINE V One(D d, V x, V value) {
    return hn::IfThenElseZero(hn::Eq(x, value), hn::Set(d, 1));
  }
  template <class D, class V>
  static HWY_INLINE void Sum(D d, V x, V, V, double, Terms<D, 5>& t) {
    Factor(d, x, t[0], t[1]);
    t[2] = One(d, x, hn::Zero(d));
    t[3] = One(d, hn::Abs(x), Infinity(d));
    t[4] = hn::IfThenZeroElse(hn::Eq(x, x), hn::Set(d, 1));
  }
  // Keeps the mantissa in [1/2, 1).
  static void Close(double* s) {
    int exponent;
    s[kSums] = std::frexp(s[kSums], &exponent);
    s[kExponent] += exponent;
  }
  static void Merge(double* into, const double* from, double) {
    into[kCount] += from[kCount];
    into[kSums] *= from[kSums];
    for (size_t k = kExponent; k <= kNaNs; ++k) into[k] += from[k];
    Close(into);
  }
  static double Finish(const double* s, double) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    if (s[kNaNs] > 0 || (s[kZeros] > 0 && s[kInfs] > 0)) {
      return std::numeric_limits<double>::quiet_NaN();
    }
    if (s[kZeros] > 0) return std::copysign(0.0, s[kSums]);
    if (s[kInfs] > 0) return std::copysign(kInfinity, s[kSums]);
    return std::ldexp(s[kSums], static_cast<int>(std::clamp(s[kExponent], -4000.0, 4000.0)));
  }
  static void Coefs(const double* s, double, double, double g, double* c) {
    for (size_t k = 0; k < kTerms; ++k) c[k] = s[kSums + k];
    c[kTerms] = g;
  }
  // The product of the others.
  template <class D, class V>
  static HWY_INLINE void Slope(D d, V x, V, V, const std::array<V, 6>& c, std::array<V, 1>& out) {
    Terms<D, 5> own;
    Sum(d, x, x, x, 0, own);
    const V zero = hn::Zero(d);
    const V mantissa = hn::Div(c[0], own[0]);
    const V exponent = AtLeast(d, -1084, AtMost(d, 1050, hn::Sub(c[1], own[1])));
    const auto zeros = hn::Gt(hn::Sub(c[2], own[2]), zero);
    const auto infs = hn::Gt(hn::Sub(c[3], own[3]), zero);
    const auto nans = hn::Gt(hn::Sub(c[4], own[4]), zero);
    V product = Ldexp(d, mantissa, exponent);
    product = hn::IfThenElse(infs, hn::CopySign(Infinity(d), mantissa), product);
    product = hn::IfThenElse(zeros, hn::CopySign(zero, mantissa), product);
    product = hn::IfThenElse(hn::Or(nans, hn::And(zeros, infs)), hn::NaN(d), product);
    out[0] = hn::Mul(product, c[5]);
  }
};

// Rows that sum alike, or slope alike, share the loops of one of them. log_softmax wants the rest
// where logsumexp does not.
template <class Row>
struct LikeRow {
  using Sums = Row;
  using Slopes = Row;
};
template <>
struct LikeRow<MeanRow> : LikeRow<SumRow> {};
template <>
struct LikeRow<LayerNormRow> : LikeRow<VarianceRow> {};
template <>
struct LikeRow<LogSoftmaxJvpRow> {
  using Sums = SoftmaxProductRow;
  using Slopes = LogSoftmaxJvpRow;
};

using ReductionRows =
    std::tuple<SumRow, MeanRow, ProdRow, DotRow, Norm1Row, Norm2Row, SquaredNorm2Row, NormRow,
               NormInfRow, MaxRow, MinRow, LogSumExpRow, VarianceRow, SoftmaxProductRow,
               LogSoftmaxRow, LogSoftmaxVjpRow, LogSoftmaxJvpRow, LayerNormRow, LayerNormProductRow,
               RmsNormRow, RmsNormProductRow>;

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

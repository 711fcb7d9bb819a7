// THE table of scans: what is done to each element of a chunk, and what is carried from one to the
// next.
//
// Forward goes through a chunk in order and leaves the result, of a row that Returns only what
// Backward needs, which then goes through it from its end. Row 0 of a buffer has another one before
// it, which holds what is carried into the chunk: see kBefore.
#if defined(PULLBACK_CPP_OPS_SCANS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_OPS_SCANS_INL_H_
#undef PULLBACK_CPP_OPS_SCANS_INL_H_
#else
#define PULLBACK_CPP_OPS_SCANS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <tuple>

#include "math/error_free-inl.h"
#include "math/exp-inl.h"
#include "math/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The longest vectors, of which a tile's width is a multiple unless it is 1.
constexpr size_t kScanLanes = 8;
using ScanTag = hn::CappedTag<double, kScanLanes>;

// How many elements of a slice are a chunk. Fixed: products are brought back into range at its
// start.
constexpr size_t kScanRows = 128;

// The first buffers of all rows.
constexpr size_t kX = 0, kV = 1, kOut = 2;

struct ScanChunk {
  size_t count, width;
  double* const* buffers;

  double* operator[](size_t k) const { return buffers[k]; }

  // f(d, i) for all elements, a vector at a time.
  template <class F>
  HWY_INLINE void Each(const F& f) const {
    const ScanTag d;
    for (size_t i = 0; i < count * width; i += hn::Lanes(d)) f(d, i);
  }

  // f(d, s, i) for the elements of each slice in order, or from the last one, with what is carried
  // from one to the next in s.
  template <size_t kN, class F>
  HWY_INLINE void Chain(double* carried, bool backward, const F& f) const {
    if (width == 1) {
      ChainOf<kN>(hn::CappedTag<double, 1>(), carried, backward, f);
    } else {
      ChainOf<kN>(ScanTag(), carried, backward, f);
    }
  }

  // Puts what is carried into the row before the first.
  HWY_INLINE void SetBefore(size_t k, const double* carried) const {
    std::copy_n(carried, width, buffers[k] - width);
  }

 private:
  template <size_t kN, class D, class F>
  HWY_INLINE void ChainOf(D d, double* carried, bool backward, const F& f) const {
    for (size_t c = 0; c < width; c += hn::Lanes(d)) {
      std::array<hn::Vec<D>, kN> s;
      for (size_t k = 0; k < kN; ++k) s[k] = hn::LoadU(d, carried + k * width + c);
      if (backward) {
        for (size_t row = count; row-- > 0;) f(d, s, row * width + c);
      } else {
        for (size_t row = 0; row < count; ++row) f(d, s, row * width + c);
      }
      for (size_t k = 0; k < kN; ++k) hn::StoreU(s[k], d, carried + k * width + c);
    }
  }
};

// What most rows have in common.
template <size_t kBuffersOfRow, size_t kCarriedOfRow>
struct ScanRow {
  static constexpr size_t kBuffers = kBuffersOfRow, kCarried = kCarriedOfRow;
  static constexpr bool kReadsX = true, kReadsV = true;
  static constexpr bool kFlips = false;  // goes from the last element to the first
  static constexpr bool kReturns = false;
  static constexpr size_t kReturned = 0;
};

// --- sums ----------------------------------------------------------------------------------------

// And with them the sums of what additions round off.
template <size_t kFrom>
struct Sums2 : ScanRow<5, 2> {
  static constexpr const char* kName = "cumsum";
  static constexpr bool kReadsX = kFrom == kX, kReadsV = kFrom == kV;
  static constexpr double kStart[] = {-0.0, 0};  // to which x adds up to x, -0 too

  static void Forward(const ScanChunk& chunk, double* carried) {
    const double* const x = chunk[kFrom];
    double *const out = chunk[kOut], *const sums = chunk[3], *const rests = chunk[4];
    chunk.Chain<2>(carried, false, [=](auto d, auto& s, size_t i) HWY_ATTR {
      auto rest = s[1];
      TwoSum(s[0], hn::LoadU(d, x + i), s[0], rest);
      s[1] = hn::Add(s[1], rest);
      hn::StoreU(s[0], d, sums + i);
      hn::StoreU(s[1], d, rests + i);
    });
    chunk.Each([=](auto d, size_t i) HWY_ATTR {
      const auto sum = hn::LoadU(d, sums + i), rest = hn::LoadU(d, rests + i);
      // Of infinities the rest is NaN; of -0, 0 would make 0.
      const auto size = hn::Abs(rest);
      const auto counts = hn::And(hn::Gt(size, hn::Zero(d)), hn::Lt(size, Infinity(d)));
      hn::StoreU(hn::IfThenElse(counts, hn::Add(sum, rest), sum), d, out + i);
    });
  }
};

struct CumsumRow : Sums2<kX> {
  static constexpr const char* kMethod = "value";
};
struct CumsumJvpRow : Sums2<kV> {
  static constexpr const char* kMethod = "jvp";
};
struct CumsumVjpRow : Sums2<kV> {
  static constexpr const char* kMethod = "vjp";
  static constexpr bool kFlips = true;
};

// --- exponentials --------------------------------------------------------------------------------

// The largest element so far, m; e = exp(-|x - m|) with m from before x; and the sum of exp(x - m)
// over the elements so far, less 1. Where x is the new largest, what has been summed shrinks by e.
template <size_t kMore, size_t kMoreCarried>
struct RunningExponentials : ScanRow<6 + kMore, 3 + kMoreCarried> {
  static constexpr const char* kName = "logcumsumexp";
  static constexpr size_t kLargest = 3, kE = 4, kRest = 5, kOwn = 6;
  static constexpr double kLowest = -std::numeric_limits<double>::infinity();

  static HWY_INLINE void Sum(const ScanChunk& chunk, double* carried) {
    const double* const x = chunk[kX];
    double *const largest = chunk[kLargest], *const es = chunk[kE], *const rests = chunk[kRest];
    const size_t width = chunk.width;
    chunk.SetBefore(kLargest, carried);
    // A NaN may be lost here; it stays in the sum.
    chunk.Chain<1>(carried, false, [=](auto d, auto& s, size_t i) HWY_ATTR {
      s[0] = hn::Max(hn::LoadU(d, x + i), s[0]);
      hn::StoreU(s[0], d, largest + i);
    });
    chunk.Each([=](auto d, size_t i) HWY_ATTR {
      const auto own = hn::LoadU(d, x + i), before = hn::LoadU(d, largest + i - width);
      const auto is_new = hn::Gt(own, before);
      const auto low = hn::IfThenElse(is_new, before, own);
      const auto high = hn::IfThenElse(is_new, own, before);
      const auto e = ExpBelow(d, low, high);
      hn::StoreU(hn::IfThenElse(hn::Eq(low, high), hn::Set(d, 1), e), d, es + i);
    });
    chunk.Chain<2>(carried + width, false, [=](auto d, auto& s, size_t i) HWY_ATTR {
      Add(d, Decay(d, x, largest, es, width, i), hn::LoadU(d, es + i), s[0], s[1]);
      hn::StoreU(hn::Add(s[0], s[1]), d, rests + i);
    });
  }

  // sum = decay * sum + own, and in `rest` the sum of what that rounds off.
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE void Add(D d, V decay, V own, V& sum, V& rest) {
    V shrunk, of_product, added, of_sum;
    TwoProd(d, decay, sum, shrunk, of_product);
    TwoSum(shrunk, own, added, of_sum);
    sum = hn::MulAdd(decay, sum, own);  // sooner than `added`, of which it is at most a bit off
    rest = hn::MulAdd(decay, rest, hn::Add(hn::Sub(added, sum), hn::Add(of_product, of_sum)));
  }
  // Of infinities the rest is NaN.
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Total(D d, V sum, V rest) {
    return hn::IfThenElse(hn::Lt(hn::Abs(rest), Infinity(d)), hn::Add(sum, rest), sum);
  }

  template <class D>
  static HWY_INLINE hn::Mask<D> IsNew(D d, const double* x, const double* largest, size_t width,
                                      size_t i) {
    return hn::Gt(hn::LoadU(d, x + i), hn::LoadU(d, largest + i - width));
  }
  // By what the elements before shrink, and the share of x itself in exp(m).
  template <class D>
  static HWY_INLINE hn::Vec<D> Decay(D d, const double* x, const double* largest, const double* es,
                                     size_t width, size_t i) {
    return hn::IfThenElse(IsNew(d, x, largest, width, i), hn::LoadU(d, es + i), hn::Set(d, 1));
  }
  template <class D>
  static HWY_INLINE hn::Vec<D> Share(D d, const double* x, const double* largest, const double* es,
                                     size_t width, size_t i) {
    return hn::IfThenElse(IsNew(d, x, largest, width, i), hn::Set(d, 1), hn::LoadU(d, es + i));
  }
};

struct LogcumsumexpRow : RunningExponentials<0, 0> {
  static constexpr const char* kMethod = "value";
  static constexpr bool kReadsV = false;
  static constexpr double kStart[] = {kLowest, 0, 0};

  static void Forward(const ScanChunk& chunk, double* carried) {
    Sum(chunk, carried);
    const double *const largest = chunk[kLargest], *const rests = chunk[kRest];
    double* const out = chunk[kOut];
    chunk.Each([=](auto d, size_t i) HWY_ATTR {
      auto log = hn::Zero(d), slope = log;
      Log1p(d, hn::LoadU(d, rests + i), log, slope);
      hn::StoreU(hn::Add(hn::LoadU(d, largest + i), log), d, out + i);
    });
  }
};

struct LogcumsumexpJvpRow : RunningExponentials<1, 2> {
  static constexpr const char* kMethod = "jvp";
  static constexpr double kStart[] = {kLowest, 0, 0, 0, 0};

  static void Forward(const ScanChunk& chunk, double* carried) {
    Sum(chunk, carried);
    const double *const x = chunk[kX], *const t = chunk[kV], *const largest = chunk[kLargest],
                        *const es = chunk[kE], *const rests = chunk[kRest];
    double *const sums = chunk[kOwn], *const out = chunk[kOut];
    const size_t width = chunk.width;
    chunk.Chain<2>(carried + 3 * width, false, [=](auto d, auto& s, size_t i) HWY_ATTR {
      const auto own = hn::Mul(Share(d, x, largest, es, width, i), hn::LoadU(d, t + i));
      Add(d, Decay(d, x, largest, es, width, i), own, s[0], s[1]);
      hn::StoreU(Total(d, s[0], s[1]), d, sums + i);
    });
    chunk.Each([=](auto d, size_t i) HWY_ATTR {
      const auto sum = hn::LoadU(d, sums + i);
      const auto mean = hn::Div(sum, hn::Add(hn::LoadU(d, rests + i), hn::Set(d, 1)));
      const auto undefined = hn::AndNot(hn::Eq(sum, hn::Zero(d)),
                                        hn::Eq(hn::LoadU(d, largest + i), hn::Set(d, kLowest)));
      hn::StoreU(hn::IfThenElse(undefined, hn::NaN(d), mean), d, out + i);
    });
  }
};

struct LogcumsumexpVjpRow : RunningExponentials<1, 0> {
  static constexpr const char* kMethod = "vjp";
  static constexpr double kStart[] = {kLowest, 0, 0};
  static constexpr bool kReturns = true;
  static constexpr size_t kReturned = 3;
  static constexpr double kEnd[] = {0, 0, 0};

  static void Forward(const ScanChunk& chunk, double* carried) { Sum(chunk, carried); }
  static void Backward(const ScanChunk& chunk, double* returned) {
    const double *const x = chunk[kX], *const g = chunk[kV], *const largest = chunk[kLargest],
                        *const es = chunk[kE], *const rests = chunk[kRest];
    double *const weights = chunk[kOwn], *const out = chunk[kOut];
    const size_t width = chunk.width;
    // Of g = 0 nothing comes, even where all elements are -inf.
    chunk.Each([=](auto d, size_t i) HWY_ATTR {
      const auto own = hn::LoadU(d, g + i);
      auto weight = hn::Div(own, hn::Add(hn::LoadU(d, rests + i), hn::Set(d, 1)));
      const auto undefined = hn::Eq(hn::LoadU(d, largest + i), hn::Set(d, kLowest));
      weight = hn::IfThenElse(undefined, hn::NaN(d), weight);
      hn::StoreU(hn::IfThenZeroElse(hn::Eq(own, hn::Zero(d)), weight), d, weights + i);
    });
    chunk.Chain<3>(returned, true, [=](auto d, auto& s, size_t i) HWY_ATTR {
      Add(d, s[2], hn::LoadU(d, weights + i), s[0], s[1]);
      s[2] = Decay(d, x, largest, es, width, i);
      const auto share = Share(d, x, largest, es, width, i);
      hn::StoreU(hn::Mul(Total(d, s[0], s[1]), share), d, out + i);
    });
  }
};

// --- products ------------------------------------------------------------------------------------

// x = m 2^k; the products up to each element, M 2^K, where M has a range of its own. Infinities,
// zeros and NaNs are mantissas of themselves.
template <size_t kMore, size_t kMoreCarried>
struct RunningProducts : ScanRow<7 + kMore, 2 + kMoreCarried> {
  static constexpr const char* kName = "cumprod";
  static constexpr size_t kFactor = 3, kStep = 4, kProduct = 5, kExponent = 6, kOwn = 7;
  static constexpr double kNone = -0x1p40;  // the exponent of no term

  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE void Reduced(D d, V x, V& m, V& k) {
    const V size = hn::Abs(x);
    const auto plain = hn::And(hn::Gt(size, hn::Zero(d)), hn::Lt(size, Infinity(d)));
    LogReduce(d, hn::IfThenElse(plain, size, hn::Set(d, 1)), m, k);
    m = hn::IfThenElse(plain, hn::CopySign(m, x), x);
  }

  static HWY_INLINE void Multiply(const ScanChunk& chunk, double* carried) {
    const double* const x = chunk[kX];
    double *const factors = chunk[kFactor], *const steps = chunk[kStep],
                  *const products = chunk[kProduct], *const exponents = chunk[kExponent];
    const size_t width = chunk.width;
    chunk.SetBefore(kProduct, carried);
    chunk.SetBefore(kExponent, carried + width);
    chunk.Each([=](auto d, size_t i) HWY_ATTR {
      auto m = hn::Zero(d), k = m;
      Reduced(d, hn::LoadU(d, x + i), m, k);
      hn::StoreU(m, d, factors + i);
      hn::StoreU(k, d, steps + i);
    });
    // The product so far comes back into range with the first factor.
    for (size_t c = 0; c < width; ++c) {
      const hn::CappedTag<double, 1> d;
      auto m = hn::Zero(d), k = m;
      Reduced(d, hn::LoadU(d, carried + c), m, k);
      const auto scale = PowerOfTwo(d, hn::Neg(k), hn::Zero(d));
      hn::StoreU(hn::Mul(hn::LoadU(d, factors + c), scale), d, factors + c);
      hn::StoreU(hn::Add(hn::LoadU(d, steps + c), k), d, steps + c);
    }
    chunk.Chain<2>(carried, false, [=](auto d, auto& s, size_t i) HWY_ATTR {
      s[0] = hn::Mul(s[0], hn::LoadU(d, factors + i));
      s[1] = hn::Add(s[1], hn::LoadU(d, steps + i));
      hn::StoreU(s[0], d, products + i);
      hn::StoreU(s[1], d, exponents + i);
    });
  }

  // m 2^k, whatever k.
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Raised(D d, V m, V k) {
    return ScaleFar(d, m, AtLeast(d, -4000, AtMost(d, 4000, k)));
  }
  // 2^k for k <= 0, next to nothing for a k that is far away.
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Lowered(D d, V k) {
    return PowerOfTwo(d, AtLeast(d, -1000, k), hn::Zero(d));
  }
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE hn::Mask<D> IsNone(D d, V k) {
    return hn::Lt(k, hn::Set(d, 0.5 * kNone));
  }

  // Mantissas of terms v, with their exponents, to which `by`(d, i) is added; 0 is no term, nor is
  // what `counts`(d, i) says.
  template <class By, class Counts>
  static HWY_INLINE void Terms(const ScanChunk& chunk, double* mantissas, double* exponents,
                               const By& by, const Counts& counts) {
    const double* const v = chunk[kV];
    chunk.Each([=](auto d, size_t i) HWY_ATTR {
      auto m = hn::Zero(d), k = m;
      const auto own = hn::LoadU(d, v + i);
      Reduced(d, own, m, k);
      const auto is_term = hn::AndNot(hn::Eq(own, hn::Zero(d)), counts(d, i));
      hn::StoreU(hn::IfThenElseZero(is_term, m), d, mantissas + i);
      hn::StoreU(hn::IfThenElse(is_term, hn::Add(k, by(d, i)), hn::Set(d, kNone)), d,
                 exponents + i);
    });
  }
};

struct CumprodRow : RunningProducts<0, 0> {
  static constexpr const char* kMethod = "value";
  static constexpr bool kReadsV = false;
  static constexpr double kStart[] = {1, 0};

  static void Forward(const ScanChunk& chunk, double* carried) {
    Multiply(chunk, carried);
    const double *const products = chunk[kProduct], *const exponents = chunk[kExponent];
    double* const out = chunk[kOut];
    chunk.Each([=](auto d, size_t i) HWY_ATTR {
      const auto product = hn::LoadU(d, products + i);
      hn::StoreU(Raised(d, product, hn::LoadU(d, exponents + i)), d, out + i);
    });
  }
};

// y[i] = x[i] y[i - 1] + t[i] P[i - 1] with P the products, and y in units of them and of the
// largest term so far, since the last factor 0.
struct CumprodJvpRow : RunningProducts<4, 2> {
  static constexpr const char* kMethod = "jvp";
  static constexpr double kStart[] = {1, 0, kNone, 0};

  static void Forward(const ScanChunk& chunk, double* carried) {
    Multiply(chunk, carried);
    const double *const factors = chunk[kFactor], *const steps = chunk[kStep],
                        *const products = chunk[kProduct], *const exponents = chunk[kExponent];
    double *const terms = chunk[kOwn], *const powers = chunk[kOwn + 1],
                  *const units = chunk[kOwn + 2], *const scales = chunk[kOwn + 3],
                  *const out = chunk[kOut];
    const size_t width = chunk.width;
    Terms(
        chunk, terms, powers,
        [=](auto d, size_t i) HWY_ATTR { return hn::Neg(hn::LoadU(d, steps + i)); },
        [=](auto d, size_t i) HWY_ATTR {
          const auto product = hn::LoadU(d, products + i - width);
          return hn::Not(hn::Eq(product, hn::Zero(d)));
        });
    chunk.SetBefore(kOwn + 2, carried + 2 * width);
    chunk.Chain<1>(carried + 2 * width, false, [=](auto d, auto& s, size_t i) HWY_ATTR {
      const auto none = hn::Set(d, kNone);
      const auto is_zero = hn::Eq(hn::LoadU(d, factors + i), hn::Zero(d));
      const auto before = hn::IfThenElse(is_zero, none, s[0]);
      s[0] = hn::Max(before, hn::LoadU(d, powers + i));
      hn::StoreU(s[0], d, units + i);
      hn::StoreU(hn::Sub(before, s[0]), d, scales + i);
    });
    chunk.Chain<1>(carried + 3 * width, false, [=](auto d, auto& s, size_t i) HWY_ATTR {
      const auto unit = hn::LoadU(d, units + i);
      const auto to_unit = Lowered(d, hn::Sub(hn::LoadU(d, powers + i), unit));
      const auto product = hn::LoadU(d, products + i - width);
      const auto mantissa = hn::LoadU(d, terms + i);
      const auto term = hn::IfThenZeroElse(hn::Eq(mantissa, hn::Zero(d)),
                                           hn::Mul(hn::Mul(mantissa, to_unit), product));
      const auto scale = Lowered(d, hn::LoadU(d, scales + i));
      const auto decay = hn::Mul(hn::LoadU(d, factors + i), scale);
      const auto is_first = IsNone(d, hn::LoadU(d, units + i - width));
      s[0] = hn::IfThenElse(is_first, term, hn::MulAdd(decay, s[0], term));
      const auto power = hn::Add(hn::LoadU(d, exponents + i), unit);
      hn::StoreU(hn::IfThenZeroElse(IsNone(d, unit), Raised(d, s[0], power)), d, out + i);
    });
  }
};

// With h[i] = g[i] 2^K[i] it is M[j - 1] 2^-k[j] sum(h[i] m[j + 1] ... m[i] over i >= j), in units
// of the largest h from the last one to the next factor 0.
struct CumprodVjpRow : RunningProducts<2, 0> {
  static constexpr const char* kMethod = "vjp";
  static constexpr double kStart[] = {1, 0};
  static constexpr bool kReturns = true;
  static constexpr size_t kReturned = 2;
  static constexpr double kEnd[] = {kNone, 0};

  static void Forward(const ScanChunk& chunk, double* carried) { Multiply(chunk, carried); }
  static void Backward(const ScanChunk& chunk, double* returned) {
    const double *const factors = chunk[kFactor], *const steps = chunk[kStep],
                        *const products = chunk[kProduct], *const exponents = chunk[kExponent];
    double *const terms = chunk[kOwn], *const powers = chunk[kOwn + 1], *const out = chunk[kOut];
    const size_t width = chunk.width;
    Terms(
        chunk, terms, powers,
        [=](auto d, size_t i) HWY_ATTR { return hn::LoadU(d, exponents + i); },
        [=](auto d, size_t) HWY_ATTR { return hn::Not(hn::FirstN(d, 0)); });
    chunk.Chain<2>(returned, true, [=](auto d, auto& s, size_t i) HWY_ATTR {
      const auto none = hn::Set(d, kNone);
      const auto factor = hn::LoadU(d, factors + i), power = hn::LoadU(d, powers + i);
      const auto unit = hn::Max(s[0], power);
      const auto term = hn::Mul(hn::LoadU(d, terms + i), Lowered(d, hn::Sub(power, unit)));
      // Behind a factor 0 there is no term, but there may be a NaN.
      const auto scale =
          hn::IfThenElse(IsNone(d, s[0]), hn::Set(d, 1), Lowered(d, hn::Sub(s[0], unit)));
      const auto sum = hn::MulAdd(s[1], scale, term);
      const auto is_none = IsNone(d, unit);
      s[0] = hn::IfThenElse(hn::Eq(factor, hn::Zero(d)), none, unit);
      s[1] = hn::IfThenElse(is_none, sum, hn::Mul(sum, factor));
      const auto product = hn::Mul(hn::LoadU(d, products + i - width), sum);
      const auto result = Raised(d, product, hn::Sub(unit, hn::LoadU(d, steps + i)));
      hn::StoreU(hn::IfThenZeroElse(is_none, result), d, out + i);
    });
  }
};

using ScanRows = std::tuple<CumsumRow, CumsumJvpRow, CumsumVjpRow, CumprodRow, CumprodJvpRow,
                            CumprodVjpRow, LogcumsumexpRow, LogcumsumexpJvpRow, LogcumsumexpVjpRow>;

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

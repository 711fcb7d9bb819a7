// The loops of the elementwise family, written once: a row's Eval in, its kernels out.
#if defined(PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_
#undef PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_
#else
#define PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "kernels/elementwise.h"
#include "kernels/load-inl.h"
#include "math/error_free-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// fl(g * derivative), so 0 * inf is NaN; a masked op has +0 wherever its derivative is 0.
template <bool kMasked, class V>
HWY_INLINE V Pull(V derivative, V g) {
  const V product = hn::Mul(g, derivative);
  if constexpr (kMasked) {
    const hn::DFromV<V> d;
    return hn::IfThenZeroElse(hn::Eq(derivative, hn::Zero(d)), product);
  } else {
    return product;
  }
}

// out = value, then derivatives, of one vector of each operand.
template <class Row, class D, class V>
HWY_INLINE void Eval(D d, const std::array<V, 1>& in, std::array<V, 2>& out) {
  Row::Eval(d, in[0], out[0], out[1]);
}

template <class Row, class D, class V>
HWY_INLINE void Eval(D d, const std::array<V, 2>& in, std::array<V, 3>& out) {
  Row::Eval(d, in[0], in[1], out[0], out[1], out[2]);
}

// Doubles as floats.
template <class D, class W, class V = hn::Vec<D>>
HWY_INLINE V Narrow(D d, W wide) {
#if HWY_TARGET == HWY_SCALAR
  // Highway's own makes the largest float of what overflows.
  return hn::Set(d, static_cast<float>(hn::GetLane(wide)));
#else
  return hn::DemoteTo(d, wide);
#endif
}

// The same for float lanes, on double lanes.
template <class Row, class D, class V, size_t kIn, size_t kOut>
HWY_INLINE void EvalWide(D d, const std::array<V, kIn>& in, std::array<V, kOut>& out) {
  const ForFloat32<hn::Rebind<double, D>> wide;
  using W = hn::Vec<decltype(wide)>;
  std::array<W, kIn> x;
  std::array<W, kOut> y;
  PB_UNROLL
  for (size_t k = 0; k < kIn; ++k) x[k] = hn::PromoteTo(wide, in[k]);
  Eval<Row>(wide, x, y);
  PB_UNROLL
  for (size_t k = 0; k < kOut; ++k) out[k] = Narrow(d, y[k]);
}

template <class Row, typename T>
inline constexpr bool kOnDoubleLanes = Row::kWide&& std::is_same_v<T, float>;

// What a loop takes at once: a vector, of floats on double lanes as many as there are of those.
template <class Row, typename T>
using LoopTag = std::conditional_t<kOnDoubleLanes<Row, T>, hn::Rebind<T, hn::ScalableTag<double>>,
                                   hn::ScalableTag<T>>;

// in -> out for one vector of each operand, by method; `Row` is a row of the op table.
template <class Row, Method kMethod, class D, class V, size_t kIn, size_t kOut>
HWY_INLINE void Apply(D d, const std::array<V, kIn>& in, std::array<V, kOut>& out) {
  constexpr size_t kArity = Row::kArity;
  std::array<V, kArity> primals;
  std::array<V, kArity + 1> y;  // value, then derivatives
  PB_UNROLL
  for (size_t k = 0; k < kArity; ++k) primals[k] = in[k];
  if constexpr (kOnDoubleLanes<Row, hn::TFromD<D>>) {
    EvalWide<Row>(d, primals, y);
  } else {
    Eval<Row>(d, primals, y);
  }
  if constexpr (kMethod == Method::kValue) {
    out[0] = y[0];
  } else if constexpr (kMethod == Method::kValueAndDerivative) {
    out = y;
  } else if constexpr (kMethod == Method::kDerivative) {
    PB_UNROLL
    for (size_t k = 0; k < kArity; ++k) out[k] = y[1 + k];
  } else if constexpr (kMethod == Method::kVjp) {
    PB_UNROLL
    for (size_t k = 0; k < kArity; ++k) out[k] = Pull<Row::kMasked>(y[1 + k], in[kArity]);
  } else if constexpr (kMethod == Method::kAllDerivatives) {
    PB_UNROLL
    for (size_t k = 0; k < kArity; ++k) out[k] = y[1 + k];
    if constexpr (kArity == 1) {
      Row::Second::Eval(d, in[0], y[0], y[1], out[1]);
    } else {
      Row::Second::Eval(d, in[0], in[1], y[1], y[2], out[2], out[3], out[4]);
    }
  } else {
    static_assert(kMethod == Method::kJvp && kArity == 2);  // of a unary op it is the vjp
    out[0] = hn::Add(Pull<Row::kMasked>(y[1], in[2]), Pull<Row::kMasked>(y[2], in[3]));
  }
}

template <class Row, Method kMethod, typename T>
void Loop(const void* const* in, void* const* out, size_t n, unsigned streamed) {
  constexpr MethodShape kShape = ShapeOf(kMethod, Row::kArity);
  constexpr size_t kIn = static_cast<size_t>(kShape.nin);
  constexpr size_t kOut = static_cast<size_t>(kShape.nout);
  using D = LoopTag<Row, T>;
  using V = hn::Vec<D>;
  const D d;
  const size_t lanes = hn::Lanes(d);

  std::array<const T*, kIn> from;
  std::array<T*, kOut> to;
  for (size_t k = 0; k < kIn; ++k) from[k] = static_cast<const T*>(in[k]);
  for (size_t k = 0; k < kOut; ++k) to[k] = static_cast<T*>(out[k]);

  // One copy of Apply for whole vectors and for the last one, since it may be long: a partial
  // vector goes through memory that has room for all of it.
  constexpr size_t kMaxLanes = hn::MaxLanes(D());
  HWY_ALIGN T last_in[kIn * kMaxLanes];
  HWY_ALIGN T last_out[kOut * kMaxLanes];
  size_t end = n & ~(lanes - 1);
  for (bool last = false;; last = true) {
    for (size_t i = 0; i < end; i += lanes) {
      std::array<V, kIn> x;
      std::array<V, kOut> y;
      PB_UNROLL
      for (size_t k = 0; k < kIn; ++k) x[k] = hn::LoadU(d, from[k] + i);
      Apply<Row, kMethod>(d, x, y);
      PB_UNROLL
      for (size_t k = 0; k < kOut; ++k) {
        // Less than 128 bits cannot be streamed.
        if (kMaxLanes * sizeof(T) >= 16 && HWY_UNLIKELY((streamed >> k & 1) != 0)) {
          hn::Stream(y[k], d, to[k] + i);
        } else {
          hn::StoreU(y[k], d, to[k] + i);
        }
      }
    }
    const size_t rest = n & (lanes - 1);
    if (rest == 0) return;
    const size_t begin = n - rest;
    if (last) {
      for (size_t k = 0; k < kOut; ++k) {
        StoreTail(hn::Load(d, last_out + k * kMaxLanes), d, static_cast<T*>(out[k]) + begin, rest);
      }
      return;
    }
    for (size_t k = 0; k < kIn; ++k) {
      hn::Store(LoadTail(d, from[k] + begin, rest), d, last_in + k * kMaxLanes);
      from[k] = last_in + k * kMaxLanes;
    }
    for (size_t k = 0; k < kOut; ++k) to[k] = last_out + k * kMaxLanes;
    end = lanes;
    streamed = 0;
  }
}

// --- second order
// --------------------------------------------------------------------------------- A row has one
// kernel for it, of its first and second derivatives in double. What becomes of them is the same
// for all rows: it is done on blocks in L1, which saves three kernels of five.

constexpr size_t kSecondOrderBlock = 256;

// A term is fl(fl(g * t) * second derivative), and left out where that derivative is 0: that of a
// product by the same operand twice does not make NaN of an infinite g. Factors left out are null.
struct SecondOrderBlock {
  const double* slopes[5];
  const double* factors[4];  // g, tangents or cotangents by operand, the tangent of g
  double* results[3];
  size_t n;
  bool masked;  // terms of the first order, too, are left out where the derivative is 0
};

template <int kArity, bool kOfTangents>
HWY_NOINLINE void CombineBlock(const SecondOrderBlock& b) {
  const hn::ScalableTag<double> d;
  using V = hn::Vec<decltype(d)>;
  const auto masked = hn::Eq(hn::Set(d, b.masked ? 0.0 : 1.0), hn::Zero(d));
  const auto always = hn::Eq(hn::Zero(d), hn::Zero(d));
  const size_t lanes = hn::Lanes(d);
  for (size_t i = 0; i < b.n; i += lanes) {
    const size_t rest = b.n - i;
    const auto load = [&](const double* from) {
      return rest >= lanes ? hn::LoadU(d, from + i) : LoadTail(d, from + i, rest);
    };
    const auto store = [&](V v, double* to) {
      if (rest >= lanes) {
        hn::StoreU(v, d, to + i);
      } else {
        StoreTail(v, d, to + i, rest);
      }
    };
    const auto add = [&](V factor, const double* slope, auto selects, bool& empty, V& sum) {
      const V at = load(slope);
      V term = hn::Mul(factor, at);
      term = hn::IfThenZeroElse(hn::And(selects, hn::Eq(at, hn::Zero(d))), term);
      sum = empty ? term : hn::Add(sum, term);
      empty = false;
    };
    const V g = load(b.factors[0]);
    V of_cotangent = hn::Zero(d);
    bool none = true;
    V results[2];
    for (int k = 0; k < kArity; ++k) {
      bool empty = true;
      V sum = hn::Zero(d);
      if (kOfTangents && b.factors[1 + kArity] != nullptr) {
        add(load(b.factors[1 + kArity]), b.slopes[k], masked, empty, sum);
      }
      for (int j = 0; j < kArity; ++j) {
        if (b.factors[1 + j] == nullptr) continue;
        add(hn::Mul(g, load(b.factors[1 + j])), b.slopes[kArity + k + j], always, empty, sum);
      }
      if (!kOfTangents && b.factors[1 + k] != nullptr) {
        add(load(b.factors[1 + k]), b.slopes[k], masked, none, of_cotangent);
      }
      results[k] = sum;
    }
    for (int k = 0; k < kArity; ++k) store(results[k], b.results[k]);
    if (!kOfTangents) store(of_cotangent, b.results[kArity]);
  }
}

// n floats as doubles, and back. Memory has room for whole vectors of doubles.
HWY_NOINLINE inline void WidenBlock(const float* from, double* to, size_t n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> narrow;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const size_t rest = n - i;
    const auto v =
        rest >= hn::Lanes(d) ? hn::LoadU(narrow, from + i) : LoadTail(narrow, from + i, rest);
    hn::Store(hn::PromoteTo(d, v), d, to + i);
  }
}

HWY_NOINLINE inline void NarrowBlock(const double* from, float* to, size_t n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> narrow;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const size_t rest = n - i;
    const auto v = Narrow(narrow, hn::Load(d, from + i));
    if (rest >= hn::Lanes(d)) {
      hn::StoreU(v, narrow, to + i);
    } else {
      StoreTail(v, narrow, to + i, rest);
    }
  }
}

// All derivatives in float64, in whole vectors, for which memory has room: compilers take less time
// for it than for Loop.
template <class Row>
void AllDerivatives(const void* const* in, void* const* out, size_t n, unsigned /*streamed*/) {
  constexpr size_t kIn = static_cast<size_t>(Row::kArity);
  constexpr size_t kOut = static_cast<size_t>(ShapeOf(Method::kAllDerivatives, Row::kArity).nout);
  const hn::ScalableTag<double> d;
  using V = hn::Vec<decltype(d)>;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    std::array<V, kIn> x;
    std::array<V, kOut> y;
    PB_UNROLL
    for (size_t k = 0; k < kIn; ++k) x[k] = hn::LoadU(d, static_cast<const double*>(in[k]) + i);
    Apply<Row, Method::kAllDerivatives>(d, x, y);
    PB_UNROLL
    for (size_t k = 0; k < kOut; ++k) hn::StoreU(y[k], d, static_cast<double*>(out[k]) + i);
  }
}

// The methods of second order of an op whose derivatives `kernel` computes.
template <int kArity, Method kMethod, typename T>
HWY_NOINLINE void RunSecondOrder(ElementwiseKernel kernel, bool masked, const void* const* in,
                                 void* const* out, size_t n) {
  constexpr bool kIsWide = sizeof(T) == sizeof(double);
  constexpr bool kCombines = kMethod != Method::kSecondDerivative;
  constexpr MethodShape kShape = ShapeOf(kMethod, kArity);
  constexpr size_t kIn = static_cast<size_t>(kShape.nin);
  constexpr size_t kOut = static_cast<size_t>(kShape.nout);
  constexpr size_t kSlopes = static_cast<size_t>(ShapeOf(Method::kAllDerivatives, kArity).nout);
  HWY_ALIGN double slopes[kSlopes][kSecondOrderBlock];
  HWY_ALIGN double own_in[kIn][kSecondOrderBlock];
  HWY_ALIGN double own_out[kOut][kSecondOrderBlock];
  for (size_t begin = 0; begin < n; begin += kSecondOrderBlock) {
    const size_t count = HWY_MIN(n - begin, kSecondOrderBlock);
    // The kernel may use them where they lie.
    const bool is_whole = kIsWide && count % hn::Lanes(hn::ScalableTag<double>()) == 0;
    const void* x[kIn];
    void* y[kOut];
    for (size_t k = 0; k < kIn; ++k) {
      const T* const from = in[k] == nullptr ? nullptr : static_cast<const T*>(in[k]) + begin;
      x[k] = from;
      if (from == nullptr || is_whole || (kIsWide && k >= kArity)) continue;
      if constexpr (kIsWide) {
        std::copy_n(from, count, own_in[k]);
      } else {
        WidenBlock(from, own_in[k], count);
      }
      x[k] = own_in[k];
    }
    const bool is_direct = kIsWide && (is_whole || kCombines);
    for (size_t k = 0; k < kOut; ++k) {
      y[k] = is_direct ? static_cast<void*>(static_cast<T*>(out[k]) + begin) : own_out[k];
    }
    void* all[kSlopes];
    for (size_t k = 0; k < kSlopes; ++k) {
      all[k] = kCombines || k < kArity ? slopes[k] : y[k - kArity];
    }
    kernel(x, all, count, 0);
    if constexpr (kCombines) {
      SecondOrderBlock block{};
      for (size_t k = 0; k < kSlopes; ++k) block.slopes[k] = slopes[k];
      for (size_t k = kArity; k < kIn; ++k) {
        block.factors[k - kArity] = static_cast<const double*>(x[k]);
      }
      for (size_t k = 0; k < kOut; ++k) block.results[k] = static_cast<double*>(y[k]);
      block.n = count;
      block.masked = masked;
      CombineBlock<kArity, kMethod == Method::kVjpJvp>(block);
    }
    for (size_t k = 0; k < kOut && !is_direct; ++k) {
      T* const to = static_cast<T*>(out[k]) + begin;
      if constexpr (kIsWide) {
        std::copy_n(own_out[k], count, to);
      } else {
        NarrowBlock(own_out[k], to, count);
      }
    }
  }
}

template <class Row, Method kMethod, typename T>
void SecondOrder(const void* const* in, void* const* out, size_t n, unsigned /*streamed*/) {
  RunSecondOrder<Row::kArity, kMethod, T>(AllDerivatives<Row>, Row::kMasked, in, out, n);
}

template <class Row, Method kMethod, typename T>
constexpr ElementwiseKernel KernelOf() {
  if constexpr (kMethod >= Method::kSecondDerivative) {
    return SecondOrder<Row, kMethod, T>;
  } else {
    return Loop<Row, kMethod, T>;
  }
}

template <class Row, Method kMethod>
constexpr void SetKernels(OpKernels& op) {
  // A diagonal Jacobian is its own transpose.
  constexpr Method kSame = kMethod == Method::kJvp && Row::kArity == 1 ? Method::kVjp : kMethod;
  op.kernel[static_cast<size_t>(kMethod)][0] = KernelOf<Row, kSame, float>();
  op.kernel[static_cast<size_t>(kMethod)][1] = KernelOf<Row, kSame, double>();
}

template <class Row, size_t... kMethodIndex>
constexpr OpKernels KernelsOf(std::index_sequence<kMethodIndex...>) {
  OpKernels op{Row::kName, Row::kArity, Row::kMasked, {}};
  (SetKernels<Row, static_cast<Method>(kMethodIndex)>(op), ...);
  return op;
}

template <class Row>
constexpr OpKernels KernelsOf() {
  return KernelsOf<Row>(std::make_index_sequence<kMethods>());
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

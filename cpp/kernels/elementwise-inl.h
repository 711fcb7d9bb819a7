// The loops of the elementwise family, written once: a row's Eval in, its kernels out.
#if defined(PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_
#undef PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_
#else
#define PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

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
  for (size_t k = 0; k < kOut; ++k) {
#if HWY_TARGET == HWY_SCALAR
    // Highway's own makes the largest float of what overflows.
    out[k] = hn::Set(d, static_cast<float>(hn::GetLane(y[k])));
#else
    out[k] = hn::DemoteTo(d, y[k]);
#endif
  }
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

template <class Row, Method kMethod>
constexpr void SetKernels(OpKernels& op) {
  // A diagonal Jacobian is its own transpose.
  constexpr Method kSame = kMethod == Method::kJvp && Row::kArity == 1 ? Method::kVjp : kMethod;
  op.kernel[static_cast<size_t>(kMethod)][0] = Loop<Row, kSame, float>;
  op.kernel[static_cast<size_t>(kMethod)][1] = Loop<Row, kSame, double>;
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

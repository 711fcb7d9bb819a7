// The loops of the elementwise family, written once: a row's Eval in, nine kernels out.
#if defined(PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_
#undef PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_
#else
#define PULLBACK_CPP_KERNELS_ELEMENTWISE_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstddef>
#include <utility>

#include "kernels/elementwise.h"
#include "kernels/load-inl.h"

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

// in -> out for one vector of each operand, by method; `Row` is a row of the op table.
template <class Row, Method kMethod, class D, class V, size_t kIn, size_t kOut>
HWY_INLINE void Apply(D d, const std::array<V, kIn>& in, std::array<V, kOut>& out) {
  if constexpr (Row::kArity == 1) {
    V y, dy;
    Row::Eval(d, in[0], y, dy);
    if constexpr (kMethod == Method::kValue) {
      out[0] = y;
    } else if constexpr (kMethod == Method::kDerivative) {
      out[0] = dy;
    } else if constexpr (kMethod == Method::kValueAndDerivative) {
      out[0] = y;
      out[1] = dy;
    } else {
      out[0] = Pull<Row::kMasked>(dy, in[1]);
    }
  } else {
    V y, dw, dx;
    Row::Eval(d, in[0], in[1], y, dw, dx);
    if constexpr (kMethod == Method::kValue) {
      out[0] = y;
    } else if constexpr (kMethod == Method::kDerivative) {
      out[0] = dw;
      out[1] = dx;
    } else if constexpr (kMethod == Method::kDerivative0) {
      out[0] = dw;
    } else if constexpr (kMethod == Method::kDerivative1) {
      out[0] = dx;
    } else if constexpr (kMethod == Method::kValueAndDerivative) {
      out[0] = y;
      out[1] = dw;
      out[2] = dx;
    } else if constexpr (kMethod == Method::kVjp) {
      out[0] = Pull<Row::kMasked>(dw, in[2]);
      out[1] = Pull<Row::kMasked>(dx, in[2]);
    } else if constexpr (kMethod == Method::kVjp0) {
      out[0] = Pull<Row::kMasked>(dw, in[2]);
    } else if constexpr (kMethod == Method::kVjp1) {
      out[0] = Pull<Row::kMasked>(dx, in[2]);
    } else {
      out[0] = hn::Add(Pull<Row::kMasked>(dw, in[2]), Pull<Row::kMasked>(dx, in[3]));
    }
  }
}

template <class Row, Method kMethod, typename T>
void Loop(const void* const* in, void* const* out, size_t n) {
  constexpr MethodShape kShape = ShapeOf(kMethod, Row::kArity);
  constexpr size_t kIn = static_cast<size_t>(kShape.nin);
  constexpr size_t kOut = static_cast<size_t>(kShape.nout);
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);

  std::array<const T*, kIn> from;
  std::array<T*, kOut> to;
  for (size_t k = 0; k < kIn; ++k) from[k] = static_cast<const T*>(in[k]);
  for (size_t k = 0; k < kOut; ++k) to[k] = static_cast<T*>(out[k]);

  std::array<V, kIn> x;
  std::array<V, kOut> y;
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (size_t k = 0; k < kIn; ++k) x[k] = hn::LoadU(d, from[k] + i);
    Apply<Row, kMethod>(d, x, y);
    for (size_t k = 0; k < kOut; ++k) hn::StoreU(y[k], d, to[k] + i);
  }
  if (i < n) {
    for (size_t k = 0; k < kIn; ++k) x[k] = LoadTail(d, from[k] + i, n - i);
    Apply<Row, kMethod>(d, x, y);
    for (size_t k = 0; k < kOut; ++k) StoreTail(y[k], d, to[k] + i, n - i);
  }
}

template <class Row, Method kMethod>
constexpr void SetKernels(OpKernels& op) {
  if constexpr (ShapeOf(kMethod, Row::kArity).nout > 0) {
    op.kernel[static_cast<size_t>(kMethod)][0] = Loop<Row, kMethod, float>;
    op.kernel[static_cast<size_t>(kMethod)][1] = Loop<Row, kMethod, double>;
  }
}

template <class Row, size_t... kMethodIndex>
constexpr OpKernels KernelsOf(std::index_sequence<kMethodIndex...>) {
  OpKernels op{Row::kName, Row::kArity, {}};
  (SetKernels<Row, static_cast<Method>(kMethodIndex)>(op), ...);
  return op;
}

// A constant table: nothing of it runs before the dispatcher has looked at the CPU.
template <template <int> class Row, size_t... kRow>
constexpr std::array<OpKernels, sizeof...(kRow)> TableOf(std::index_sequence<kRow...>) {
  return {KernelsOf<Row<static_cast<int>(kRow)>>(std::make_index_sequence<kMethods>())...};
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

// The kernels of where and clip, compiled once per instruction set.
#include "kernels/selections.h"

#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/choices.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <hwy/cache_control.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <utility>

#include "kernels/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Where the result comes from, for a vector of each operand: one mask is true in each lane. Where
// `undefined` is true, derivatives are NaN.
template <class D, size_t kMoved>
struct Choice {
  std::array<hn::Mask<D>, kMoved> from;
  hn::Mask<D> undefined;
};

struct WhereRow {
  static constexpr const char* kName = "where";
  static constexpr int kConstant = 1;
  static constexpr bool kHasUndefined = false;
  static constexpr std::array kMissing = {0.0, 0.0, 0.0};

  template <class D, class V>
  static HWY_INLINE V Value(D d, const std::array<V, 3>& in) {
    return hn::IfThenElse(hn::Eq(in[0], hn::Zero(d)), in[2], in[1]);
  }

  template <class D, class V, class M>
  static HWY_INLINE void Choose(D d, const std::array<V, 3>& in, const std::array<M, 3>& /*lacks*/,
                                Choice<D, 2>& choice) {
    choice.from[1] = hn::Eq(in[0], hn::Zero(d));
    choice.from[0] = hn::Not(choice.from[1]);
    choice.undefined = choice.from[1];  // which nobody asks for
  }
};

// min(max(x, lo), hi). A bound wins against what is equal to it.
struct ClipRow {
  static constexpr const char* kName = "clip";
  static constexpr int kConstant = 0;
  static constexpr bool kHasUndefined = true;
  // What a missing bound is read as: it gives the same values, if not the same derivatives.
  static constexpr std::array kMissing = {0.0, -std::numeric_limits<double>::infinity(),
                                          std::numeric_limits<double>::infinity()};

  // In half the time that the masks take.
  template <class D, class V>
  static HWY_INLINE V Value(D /*d*/, const std::array<V, 3>& in) {
    const V larger = hn::IfThenElse(hn::Le(in[0], in[1]), in[1], in[0]);
    const V value = hn::IfThenElse(hn::Ge(larger, in[2]), in[2], larger);
    const auto numbers = hn::And(hn::Eq(in[1], in[1]), hn::Eq(in[2], in[2]));
    return hn::IfThenElse(numbers, value, hn::Add(in[1], in[2]));
  }

  template <class D, class V, class M>
  static HWY_INLINE void Choose(D /*d*/, const std::array<V, 3>& in, const std::array<M, 3>& lacks,
                                Choice<D, 3>& choice) {
    // Ne is false of NaN.
    const auto is_nan = [](V v) { return hn::Not(hn::Eq(v, v)); };
    const V x = in[0];
    const M no_number = is_nan(x);
    const M raised = hn::Or(hn::Or(hn::Gt(x, in[1]), no_number), lacks[1]);
    const V larger = hn::IfThenElse(raised, x, in[1]);
    const M kept = hn::Or(hn::Or(hn::Lt(larger, in[2]), is_nan(larger)), lacks[2]);
    choice.from[0] = hn::And(raised, kept);
    choice.from[1] = hn::AndNot(raised, kept);
    choice.from[2] = hn::Not(kept);
    choice.undefined = hn::Or(no_number, hn::Or(is_nan(in[1]), is_nan(in[2])));
  }
};

template <class Row, Method kMethod, typename T>
struct Loop {
  static constexpr size_t kOperands = kChoiceOperands;
  static constexpr size_t kConstant = Row::kConstant;
  static constexpr size_t kMoved = kOperands - kConstant;
  static constexpr bool kHasValue =
      kMethod == Method::kValue || kMethod == Method::kValueAndDerivative;
  static constexpr bool kHasTangent = kMethod == Method::kJvp;
  static constexpr bool kHasSlopes = !kHasTangent && kMethod != Method::kValue;
  static constexpr size_t kIn =
      kOperands + (kMethod == Method::kVjp ? 1 : 0) + (kHasTangent ? kMoved : 0);
  using D = hn::ScalableTag<T>;
  using V = hn::Vec<D>;
  using M = hn::Mask<D>;

  // One vector: load(k) and store(v, k).
  template <class Load, class Store>
  static HWY_INLINE void Apply(const std::array<M, kOperands>& lacks, const Load& load,
                               const Store& store) {
    const D d;
    std::array<V, kIn> x;
    PB_UNROLL
    for (size_t k = 0; k < kIn; ++k) x[k] = load(k);
    const std::array<V, kOperands> operands = {x[0], x[1], x[2]};
    if constexpr (kMethod == Method::kValue) {
      store(Row::Value(d, operands), 0);
      return;
    }
    Choice<D, kMoved> choice;
    Row::Choose(d, operands, lacks, choice);
    const auto selected = [&](size_t first) HWY_ATTR {
      V result = x[first + kMoved - 1];
      PB_UNROLL
      for (size_t k = 0; k + 1 < kMoved; ++k) {
        result = hn::IfThenElse(choice.from[k], x[first + k], result);
      }
      return result;
    };
    const auto defined = [&](V v) HWY_ATTR {
      const V nan = hn::Set(d, std::numeric_limits<T>::quiet_NaN());
      return Row::kHasUndefined ? hn::IfThenElse(choice.undefined, nan, v) : v;
    };
    if constexpr (kHasTangent) store(defined(selected(kOperands)), 0);
    if constexpr (kHasValue) store(selected(kConstant), 0);
    if constexpr (kHasSlopes) {
      const V factor = kMethod == Method::kVjp ? x[kIn - 1] : hn::Set(d, T{1});
      PB_UNROLL
      for (size_t k = 0; k < kMoved; ++k) {
        store(defined(hn::IfThenElseZero(choice.from[k], factor)), kHasValue + k);
      }
    }
  }

  static void Run(const void* const* in, void* const* out, size_t n, unsigned streamed) {
    const D d;
    const size_t lanes = hn::Lanes(d);
    // What is left out is read over and over from the same vector; tangents are zeros.
    HWY_ALIGN T missing[kIn][hn::MaxLanes(D())];
    std::array<const T*, kIn> from;
    std::array<size_t, kIn> steps;
    for (size_t k = 0; k < kIn; ++k) {
      from[k] = in[k] == nullptr ? missing[k] : static_cast<const T*>(in[k]);
      steps[k] = in[k] == nullptr ? 0 : ~size_t{0};
      if (in[k] != nullptr) continue;
      const double number = k < kOperands ? Row::kMissing[k] : 0.0;
      std::fill_n(missing[k], hn::MaxLanes(D()), static_cast<T>(number));
    }
    std::array<M, kOperands> lacks;
    for (size_t k = 0; k < kOperands; ++k) {
      lacks[k] = hn::Eq(hn::Set(d, in[k] == nullptr ? T{0} : T{1}), hn::Zero(d));
    }
    const size_t whole = n & ~(lanes - 1);
    for (size_t i = 0; i < whole; i += lanes) {
      Apply(
          lacks, [&](size_t k) HWY_ATTR { return hn::LoadU(d, from[k] + (i & steps[k])); },
          [&](V v, size_t k) HWY_ATTR {
            T* const to = static_cast<T*>(out[k]) + i;
            // Less than 128 bits cannot be streamed.
            if (hn::MaxLanes(D()) * sizeof(T) >= 16 && HWY_UNLIKELY((streamed >> k & 1) != 0)) {
              hn::Stream(v, d, to);
            } else {
              hn::StoreU(v, d, to);
            }
          });
    }
    if (whole == n) return;
    Apply(
        lacks,
        [&](size_t k) HWY_ATTR { return LoadTail(d, from[k] + (whole & steps[k]), n - whole); },
        [&](V v, size_t k)
            HWY_ATTR { StoreTail(v, d, static_cast<T*>(out[k]) + whole, n - whole); });
  }
};

template <class Row, size_t... kMethod>
constexpr ChoiceKernels KernelsOf(std::index_sequence<kMethod...>) {
  return {Row::kName,
          Row::kConstant,
          {{Loop<Row, static_cast<Method>(kMethod), float>::Run,
            Loop<Row, static_cast<Method>(kMethod), double>::Run}...}};
}

ChoiceTable ChoicesOfTarget() {
  static constexpr std::array kTable = {
      KernelsOf<WhereRow>(std::make_index_sequence<kChoiceMethods>()),
      KernelsOf<ClipRow>(std::make_index_sequence<kChoiceMethods>())};
  return kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
namespace {
HWY_EXPORT(ChoicesOfTarget);
ChoiceTable ActiveTable() { return HWY_DYNAMIC_DISPATCH(ChoicesOfTarget)(); }
}  // namespace
const PerTarget<ChoiceTable>& ChoiceTables() {
  static const PerTarget<ChoiceTable> tables = GetPerTarget(ActiveTable);
  return tables;
}
}  // namespace pullback
#endif

// A call of a product: arguments that fit its signature, and room for results.
#ifndef PULLBACK_CPP_BINDINGS_PRODUCT_CALL_H_
#define PULLBACK_CPP_BINDINGS_PRODUCT_CALL_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/elementwise.h"
#include "bindings/matrices.h"
#include "bindings/method.h"
#include "bindings/operands.h"
#include "bindings/outputs.h"
#include "runtime/partition.h"

namespace pullback {

// The axes of an operand or a result, such as "(..., m?, k)": each is the place of its letter in
// the signature's alphabet. An axis with a question mark is optional, and a batch may come first.
struct Axes {
  bool batch = false;
  size_t count = 0, required = 0;
  std::array<uint8_t, 2> letter{};
  std::array<bool, 2> may_lack{};
};

inline constexpr size_t kMostLetters = 4;

inline constexpr size_t kMostOperands = 3;

// The groups of "(..., k), (k, n), (n) -> (..., n)"; the last one is the result.
struct ShapeRule {
  std::array<Axes, kMostOperands + 1> groups;
  size_t operands = 0;

  explicit ShapeRule(std::string_view text) {
    size_t count = 0;
    std::string alphabet;
    for (const char c : text) {
      if (c == '(') ++count;
      Axes& group = groups[std::max(count, size_t{1}) - 1];
      if (c == '.') group.batch = true;
      if (c == '?') {
        group.may_lack[group.count - 1] = true;
        --group.required;
      }
      if (c < 'a' || c > 'z') continue;
      if (alphabet.find(c) == alphabet.npos) alphabet += c;
      group.letter[group.count++] = static_cast<uint8_t>(alphabet.find(c));
      ++group.required;
    }
    operands = count - 1;
  }

  const Axes& result() const { return groups[operands]; }
};

enum class Way : uint8_t { kValue, kVjp, kJvp, kValueAndGrad };
inline constexpr std::string_view kWays[] = {"value", "vjp", "jvp", "value_and_grad"};

class Call;

struct ProductRow {
  std::string_view name, signature;
  size_t may_lack;                 // the operand that may be None; none if it is out of range
  void (*compute[4])(Call& call);  // by way; writes the outputs; null if there is none
  // Makes the Jacobians of a call for the value, at least those that are wanted. False, perhaps
  // with an exception set, if Python has to make them.
  bool (*jacobians)(Call& call, PyObject* activation, Ref* jacobians);
};

// Arguments that fit each other, and the outputs.
class Call {
 public:
  // `checked`: Python has checked the arguments, so outputs do not overlap, and a single vector may
  // be a batch of one.
  Call(const ProductRow& row, const ShapeRule& rule, Way way, const Wrt& wrt, bool checked)
      : row_(row), rule_(rule), way_(way), wrt_(wrt), checked_(checked) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // How many arrays the method takes.
  static size_t Arrays(size_t operands, Way way) {
    return operands + (way == Way::kVjp ? 1 : way == Way::kJvp ? operands : 0);
  }

  // False, perhaps with an exception set, for arguments that Python has to handle.
  [[gnu::hot]] bool Take(PyObject* const* given, PyObject* activation) {
    const size_t operands = rule_.operands;
    activation_ = activation == nullptr ? nullptr : UnaryOpOf(activation);
    if (activation != nullptr && activation_ == nullptr) return false;
    if (!x_.Take(given, Arrays(operands, way_), Strides::kAny)) return false;
    for (size_t i = 0; i < x_.count(); ++i) {
      if (x_[i] != nullptr && !HasWholeStrides(AsStrided(x_[i]))) return false;
    }
    if (!BindOperands()) return false;
    bool any = way_ != Way::kJvp;
    if (way_ == Way::kVjp && (x_[operands] == nullptr || !BindCotangent(given[operands]))) {
      return false;
    }
    for (size_t i = operands; way_ == Way::kJvp && i < x_.count(); ++i) {
      if (x_[i] == nullptr) continue;
      any = true;
      const Strided primal = AsStrided(x_[i - operands]);
      if (!primal) return false;
      if (IsWeak(given[i]) && primal.ndim > 0 && !Fill(i, primal.ndim, primal.shape)) return false;
      if (!AsStrided(x_[i]).HasShape(primal.ndim, primal.shape)) return false;
    }
    const bool is_one = checked_ ? std::all_of(shape_.data(), shape_.data() + ndim_,
                                               [](npy_intp n) { return n == 1; })
                                 : ndim_ == 0;
    return any && (way_ != Way::kValueAndGrad || is_one);
  }

  // Adds arrays for the results; null and None mean new ones. False, perhaps with an exception set,
  // if Python has to handle a given one.
  [[gnu::hot]] bool Place(PyObject* const* given) {
    if (way_ != Way::kVjp && !PlaceResult(given[0])) return false;
    if (way_ == Way::kValue || way_ == Way::kJvp) return true;
    bool any = false;
    for (size_t i = 0; i < wrt_.count; ++i) {
      const size_t k = wrt_.operands[i];
      PyObject* const out = given[way_ == Way::kVjp ? i : i + 1];
      const Strided operand = AsStrided(x_[k]);
      if (!operand) {
        if (out != nullptr && out != Py_None) return false;
        continue;
      }
      any = true;
      std::array<npy_intp, NPY_MAXDIMS> stacked;
      const npy_intp* shape = operand.shape;
      const size_t ndim = batch_.stack + operand.ndim;
      if (ndim > NPY_MAXDIMS) return false;
      if (batch_.stack > 0) {
        std::copy_n(batch_.extent.begin(), batch_.stack, stacked.begin());
        std::copy_n(operand.shape, operand.ndim, stacked.data() + batch_.stack);
        shape = stacked.data();
      }
      if (!PlaceOne(k, ndim, shape, out)) return false;
    }
    return any;
  }

  // Throws Raised.
  void Compute() {
    row_.compute[static_cast<size_t>(way_)](*this);
    for (const auto& [from, to] : std::span(copies_.data(), copy_count_)) {
      if (PyArray_CopyInto(to, from) != 0) throw Raised();
    }
  }

  // The value or the tangent; a new one without axes is a scalar. Call it once.
  PyObject* Result() {
    if (outs_[kResult]) return outs_[kResult].release();
    return NewScalar(number_, dtype());
  }

  // Call it once.
  PyObject* Cotangents() { return wrt_.Pack(outs_.data()); }

  // Whether the result for that operand is asked for.
  bool Wants(size_t i) const { return wrt_.Has(i); }

  // --- what the functions in `compute` use ---

  DType dtype() const { return x_.dtype(); }
  const Batch& batch() const { return batch_; }
  const OpKernels* activation() const { return activation_; }
  Strided operand(size_t i) const { return AsStrided(x_[i]); }
  Strided tangent(size_t i) const { return AsStrided(x_[rule_.operands + i]); }
  Strided cotangent() const { return AsStrided(x_[rule_.operands]); }
  Strided result() const { return outs_[kResult] ? out(kResult) : scalar_; }
  Strided out(size_t i) const { return AsStrided(AsArray(outs_[i].get())); }  // if it is wanted

  // Whether vectors repeat along the batch.
  bool Repeats(const Strided& vectors) const {
    const size_t axes = batch_.axes - batch_.stack;
    return vectors.ndim != axes + 1 ||
           !std::equal(vectors.shape, vectors.shape + axes, batch_.extent.data() + batch_.stack);
  }

  // The stack of cotangents as one axis.
  Batch FlatStack() const {
    Batch flat;
    if (batch_.stack > 0) {
      npy_intp size = 1;
      for (size_t i = 0; i < batch_.stack; ++i) size *= batch_.extent[i];
      flat.Stack(&size, 1);
    }
    return flat;
  }

  // An array for an intermediate result, in C order: the stack's axes if it is `stacked`, the batch
  // of vectors, and a last axis.
  Strided New(const Strided& vectors, npy_intp last, bool stacked = false) {
    const size_t stack = stacked ? batch_.stack : 0, ndim = stack + vectors.ndim;
    auto* const shape = static_cast<npy_intp*>(Take(2 * ndim * sizeof(npy_intp)));
    npy_intp* const stride = shape + ndim;
    std::copy_n(batch_.extent.begin(), stack, shape);
    std::copy_n(vectors.shape, vectors.ndim - 1, shape + stack);
    shape[ndim - 1] = last;
    npy_intp bytes = vectors.item;
    for (size_t axis = ndim; axis-- > 0;) {
      stride[axis] = bytes;
      if (__builtin_mul_overflow(bytes, shape[axis], &bytes)) throw std::bad_alloc();
    }
    return {static_cast<char*>(Take(static_cast<size_t>(bytes))),
            ndim,
            shape,
            stride,
            vectors.item,
            nullptr};
  }

  // An array as a stack of matrices whose rows are its last axis. It is copied if its strides, or
  // the need for `plain` rows, do not allow a view.
  Matrices From(const Strided& array, bool plain = false, unsigned ends = kInColumns,
                size_t stack = 0) {
    Matrices flat;
    if (!Flatten(array, ends, stack, flat) || (plain && !flat.HasPlainRows())) {
      Flatten(Keep(PyArray_NewCopy(array.array, NPY_CORDER)), ends, stack, flat);
    }
    if (plain) flat.col = 1;
    return flat;
  }

  // The same for an output. If it needs a copy, it is written after everything is computed.
  Matrices To(const Strided& array, bool plain = false, unsigned ends = kInColumns,
              size_t stack = 0) {
    Matrices flat;
    if (!Flatten(array, ends, stack, flat) || (plain && !flat.HasPlainRows())) {
      const Strided copy = Keep(NewArray(static_cast<int>(array.ndim), array.shape, dtype()));
      copies_[copy_count_++] = {copy.array, array.array};
      Flatten(copy, ends, stack, flat);
    }
    if (plain) flat.col = 1;
    return flat;
  }

 private:
  static constexpr size_t kResult = kMostOperands, kAlignment = 64;

  // Aligned arrays have strides of whole elements if doubles are aligned to their size.
  static bool HasWholeStrides(const Strided& array) {
    struct Aligned {
      char before;
      double number;
    };
    if (offsetof(Aligned, number) == sizeof(double)) return true;
    for (size_t axis = 0; axis < array.ndim; ++axis) {
      if (array.shape[axis] > 1 && (array.stride[axis] & (array.item - 1)) != 0) return false;
    }
    return true;
  }

  bool Fill(size_t i, size_t ndim, const npy_intp* shape) {
    return x_.Fill(i, static_cast<int>(ndim), shape);
  }

  // Checks the operands' shapes against the rule, and finds the result's shape.
  PULLBACK_INLINE bool BindOperands() {
    constexpr npy_intp kUnknown = -1;
    std::array<npy_intp, kMostLetters> extents = {kUnknown, kUnknown, kUnknown, kUnknown};
    for (size_t i = 0; i < rule_.operands; ++i) {
      const Strided array = AsStrided(x_[i]);
      if (!array) {
        if (i != row_.may_lack) return false;
        continue;
      }
      const Axes& axes = rule_.groups[i];
      const bool lacks = array.ndim < axes.count;
      const size_t count = lacks ? axes.required : axes.count;
      if (array.ndim < count || ((lacks || !axes.batch) && array.ndim != count)) return false;
      const size_t before = array.ndim - count;
      const npy_intp* dim = array.shape + before;
      for (size_t k = 0; k < axes.count; ++k) {
        if (lacks && axes.may_lack[k]) continue;
        npy_intp& extent = extents[axes.letter[k]];
        if (extent != kUnknown && extent != *dim) return false;
        extent = *dim++;
      }
      if (!batch_.Broadcast(array.shape, before)) return false;
    }
    const Axes& axes = rule_.result();
    ndim_ = batch_.axes;
    std::copy_n(batch_.extent.begin(), ndim_, shape_.begin());
    for (size_t k = 0; k < axes.count; ++k) {
      const npy_intp extent = extents[axes.letter[k]];
      if (extent != kUnknown) shape_[ndim_++] = extent;
    }
    return true;
  }

  bool BindCotangent(PyObject* given) {
    const size_t i = rule_.operands;
    if (IsWeak(given) && ndim_ > 0 && !Fill(i, ndim_, shape_.data())) return false;
    const Strided g = AsStrided(x_[i]);
    if (g.ndim < ndim_) return false;
    const size_t stack = g.ndim - ndim_;
    return std::equal(shape_.data(), shape_.data() + ndim_, g.shape + stack) &&
           batch_.Stack(g.shape, stack);
  }

  bool PlaceResult(PyObject* given) {
    if (ndim_ == 0 && (given == nullptr || given == Py_None)) {
      scalar_ = {number_, 0, nullptr, nullptr, static_cast<npy_intp>(ItemSize(dtype())), nullptr};
      return true;
    }
    return PlaceOne(kResult, ndim_, shape_.data(), given);
  }

  PULLBACK_INLINE bool PlaceOne(size_t i, size_t ndim, const npy_intp* shape, PyObject* given) {
    if (given == nullptr || given == Py_None) {
      outs_[i] = Ref(NewArray(static_cast<int>(ndim), shape, dtype()));
      return static_cast<bool>(outs_[i]);
    }
    if (KernelArray(given) != dtype()) return false;
    PyArrayObject* const array = AsArray(given);
    const Strided out = AsStrided(array);
    if (!out.HasShape(ndim, shape) || !PyArray_ISWRITEABLE(array) || !HasWholeStrides(out)) {
      return false;
    }
    if (!checked_ && !LiesApart(array)) return false;
    outs_[i] = Ref(Py_NewRef(given));
    given_[i] = true;
    return true;
  }

  // Whether an output overlaps neither itself, nor an operand, nor another output.
  bool LiesApart(PyArrayObject* out) const {
    for (size_t k = 0; k < x_.count(); ++k) {
      if (x_[k] != nullptr && Overlap(out, x_[k])) return false;
    }
    for (size_t k = 0; k <= kResult; ++k) {
      if (given_[k] && Overlap(out, AsArray(outs_[k].get()))) return false;
    }
    return ElementsApart(out);
  }

  Strided Keep(PyObject* array) {
    if (array == nullptr) throw Raised();
    return AsStrided(x_.Keep(Ref(array)));
  }

  // Uninitialised memory for intermediate results: a fixed part, and more if that is not enough.
  void* Take(size_t bytes) {
    bytes = RoundUp(bytes, kAlignment);
    if (used_ + bytes <= at_hand_.size()) {
      return at_hand_.data() + std::exchange(used_, used_ + bytes);
    }
    const auto count = static_cast<npy_intp>(bytes / sizeof(double));
    return Keep(NewArray(1, &count, DType::kFloat64)).data;
  }

  const ProductRow& row_;
  const ShapeRule& rule_;
  Way way_;
  const Wrt& wrt_;
  bool checked_;
  const OpKernels* activation_ = nullptr;
  PlainOperands x_;
  Batch batch_;
  size_t ndim_ = 0;
  std::array<npy_intp, NPY_MAXDIMS + 2> shape_;
  std::array<Ref, kMostOperands + 1> outs_;
  std::array<bool, kMostOperands + 1> given_{};
  alignas(double) char number_[sizeof(double)];  // a new result without axes
  Strided scalar_;
  alignas(kAlignment) std::array<char, 1024> at_hand_;
  size_t used_ = 0;
  std::array<std::pair<PyArrayObject*, PyArrayObject*>, kMostOperands + 1> copies_;
  size_t copy_count_ = 0;
};

// The table.
std::span<const ProductRow> ProductRows();

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_PRODUCT_CALL_H_

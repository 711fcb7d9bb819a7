// Losses as fast callables, loss.value_and_grad(X, y, w, b), and the engine of all other methods.
#include "bindings/losses.h"

#include <structmember.h>
#include <algorithm>

#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <string_view>

#include "bindings/call.h"
#include "bindings/design_matrix.h"
#include "bindings/jacobians.h"
#include "bindings/method.h"
#include "bindings/operands.h"
#include "bindings/outputs.h"
#include "kernels/losses.h"

namespace pullback {
namespace {

// More predictions than this are scored without the GIL.
constexpr size_t kReleaseGil = 16384;

// The class of partial sums, and the title of the loss that they are of.
struct PartialSums {
  static constexpr const char* kSlots[] = {"loss",      "gw",     "gb",   "weight",
                                           "n_samples", "source", "kinds"};

  // False, perhaps with an exception set, for other than (class, title).
  bool Read(PyObject* of) {
    PyObject *class_of_sums, *title;
    if (!PyTuple_Check(of) || !PyArg_ParseTuple(of, "O!U", &PyType_Type, &class_of_sums, &title)) {
      return false;
    }
    type = Ref(Py_NewRef(class_of_sums));
    source = Ref(Py_NewRef(title));
    for (size_t i = 0; i < offsets.size(); ++i) {
      const Ref slot(PyObject_GetAttrString(class_of_sums, kSlots[i]));
      if (!slot || !Py_IS_TYPE(slot.get(), &PyMemberDescr_Type)) return false;
      const auto* const member = reinterpret_cast<PyMemberDescrObject*>(slot.get())->d_member;
      if (member->type != T_OBJECT_EX) return false;
      offsets[i] = member->offset;
    }
    return true;
  }

  // The values are in the order of the slots; null, perhaps with an exception set, if one is.
  PyObject* Make(const std::array<PyObject*, std::size(kSlots)>& values) const {
    if (std::find(values.begin(), values.end(), nullptr) != values.end()) return nullptr;
    auto* const of = reinterpret_cast<PyTypeObject*>(type.get());
    PyObject* const sums = of->tp_alloc(of, 0);
    for (size_t i = 0; sums != nullptr && i < values.size(); ++i) {
      char* const at = reinterpret_cast<char*>(sums) + offsets[i];
      *reinterpret_cast<PyObject**>(at) = Py_NewRef(values[i]);
    }
    return sums;
  }

  Ref type, source;
  std::array<Py_ssize_t, std::size(kSlots)> offsets;
};

// Where a method's arguments stand in its signature.
struct LossEntry : MethodEntry {
  double parameter;
  PerTarget<const LossKernels*> kernels;
  std::optional<size_t> sample_weight_at, offset_at, out_at, reduction_at, wrt_at, v_at;
  PartialSums sums;
  bool takes_tangent = false;  // of the predictions' shape, and no cotangent
};

// --- the fast way in -----------------------------------------------------------------------------

enum Argument : size_t { kX, kY, kW, kB };

// Calls with more outputs take the long way.
constexpr size_t kMaxOutputs = 64;

// Whether a reduction is the mean; nothing if it is unknown.
std::optional<bool> IsMean(PyObject* reduction) {
  if (reduction == nullptr) return true;
  if (!PyUnicode_CheckExact(reduction)) return std::nullopt;
  if (PyUnicode_CompareWithASCIIString(reduction, "mean") == 0) return true;
  if (PyUnicode_CompareWithASCIIString(reduction, "sum") == 0) return false;
  return std::nullopt;
}

// The sum of each row's probabilities, as NumPy adds them up; null, perhaps with an exception set,
// where one is not finite, or where the rows are others by now.
Ref RowSums(PyArrayObject* y, size_t rows) {
  const bool finite =
      OfType(PyArray_TYPE(y) == NPY_FLOAT ? DType::kFloat32 : DType::kFloat64, [&](auto type) {
        const auto* const from = static_cast<const decltype(type)*>(PyArray_DATA(y));
        return std::all_of(from, from + PyArray_SIZE(y), [](auto p) { return std::isfinite(p); });
      });
  if (!finite) return Ref();
  const Ref sums(PyArray_Sum(y, PyArray_NDIM(y) - 1, NPY_DOUBLE, nullptr));
  Ref block(sums ? PyArray_FROM_OTF(sums.get(), NPY_DOUBLE, NPY_ARRAY_CARRAY_RO) : nullptr);
  return block && IsBlock(block.get(), NPY_DOUBLE, rows) ? std::move(block) : Ref();
}

// Null, perhaps with an exception set, where Python has to look at targets that are probabilities.
PyObject* HessiansOf(ClassHessians problem, PyObject* probabilities, int ndim,
                     const npy_intp* shape) {
  Ref sums;
  if (probabilities != nullptr) {
    sums = RowSums(AsArray(probabilities), problem.rows);
    if (!sums) return nullptr;
    problem.sums = static_cast<const double*>(DataOf(sums.get()));
  }
  Ref out(NewArray(ndim, shape, problem.dtype));
  const bool large = problem.rows * problem.classes * problem.classes > kReleaseGil;
  const bool done = out && RunKernel(large, [&](Poll* poll) {
                      return MapHessians(problem, DataOf(out.get()), poll);
                    });
  return done ? out.release() : nullptr;
}

// Whether an array that a caller gave is as the result will be.
bool IsOutput(PyObject* out, int ndim, const npy_intp* shape, DType dtype) {
  return KernelArray(out) == dtype && IsOfShape(AsArray(out), ndim, shape) &&
         PyArray_ISWRITEABLE(AsArray(out));
}

// The intercepts' values, and their gradient in their own kind: None, an array with one for each
// output, or for a single output a Python number or a NumPy scalar.
class Intercepts {
 public:
  // False, perhaps with an exception set, for any other kind.
  bool Take(PyObject* b, size_t outputs) {
    b_ = b;
    outputs_ = outputs;
    if (b == Py_None) {
      std::fill_n(values_.begin(), outputs, 0.0);
      return true;
    }
    if (PyFloat_CheckExact(b)) {
      values_[0] = PyFloat_AS_DOUBLE(b);
      return outputs == 1;
    }
    if (!PyArray_Check(b)) {
      const std::optional<double> number = outputs == 1 ? AsNumber(b) : std::nullopt;
      values_[0] = number.value_or(0);
      if (PyArray_IsScalar(b, Float) || PyArray_IsScalar(b, Half)) dtype_ = DType::kFloat32;
      return number.has_value();
    }
    const std::optional<DType> dtype = GradientType(b);
    PyArrayObject* const array = AsArray(b);
    axes_ = PyArray_NDIM(array);
    if (!dtype || axes_ > 1 || static_cast<size_t>(PyArray_SIZE(array)) != outputs) return false;
    dtype_ = *dtype;
    LoadOf(StorageOfArray(array).value(), DType::kFloat64)(
        PyArray_BYTES(array), axes_ == 0 ? 0 : PyArray_STRIDE(array, 0), values_.data(), outputs);
    return true;
  }

  // A direction by the intercepts, which None and a number fill.
  bool TakeDirection(PyObject* v, const Intercepts& along) {
    const bool fixed = along.b_ == Py_None;
    if (v == Py_None || fixed || !IsWeak(v)) {
      return Take(v, along.outputs_) && (v == Py_None || (!fixed && axes_ == along.axes_));
    }
    const std::optional<double> number = AsNumber(v);
    std::fill_n(values_.begin(), along.outputs_, number.value_or(0));
    return number.has_value();
  }

  const double* values() const { return values_.data(); }
  DType dtype() const { return dtype_; }
  void* gradient() { return gradient_.data(); }  // room for one of dtype() for each output

  // Whether an array can be given for the gradient.
  bool Fits(PyObject* out) const {
    return PyArray_CheckExact(b_) && IsOutput(out, axes_, PyArray_DIMS(AsArray(b_)), dtype_);
  }

  PyObject* Gradient() const {
    if (b_ == Py_None) return Py_NewRef(Py_None);
    if (IsWeak(b_)) return PyFloat_FromDouble(gradient_[0]);
    auto size = static_cast<npy_intp>(outputs_);
    PyObject* const result = PyArray_SimpleNew(axes_, &size, TypeNumber(dtype_));
    if (result == nullptr) return nullptr;
    std::memcpy(DataOf(result), gradient_.data(), outputs_ * ItemSize(dtype_));
    return PyArray_CheckExact(b_) ? result : PyArray_Return(AsArray(result));
  }

 private:
  PyObject* b_ = nullptr;
  int axes_ = 0;
  size_t outputs_ = 1;
  DType dtype_ = DType::kFloat64;
  std::array<double, kMaxOutputs> values_, gradient_;
};

// A direction by the coefficients, of which None is zero and a number fills their shape; null,
// perhaps with an exception set, for what Python has to look at.
Ref DirectionOf(PyObject* vw, PyArrayObject* w) {
  if (vw == Py_None || IsWeak(vw)) {
    const std::optional<double> number = vw == Py_None ? 0.0 : AsNumber(vw);
    Ref filled(number ? NewArray(PyArray_NDIM(w), PyArray_DIMS(w), DType::kFloat64) : nullptr);
    if (filled) std::fill_n(static_cast<double*>(DataOf(filled.get())), PyArray_SIZE(w), *number);
    return filled;
  }
  const std::optional<DType> dtype = GradientType(vw);
  return dtype && SameShape(AsArray(vw), w) ? AsBlock(vw, TypeNumber(*dtype)) : Ref();
}

// A call's samples and parameters as kernels take them, alive for as long as these run. What the
// methods return is null, perhaps with an exception set, where Python has to look at the call.
class LossCall {
 public:
  LossCall(const LossEntry& entry, const Arguments& args)
      : entry_(entry), kernels_(*entry.kernels.Active()), args_(args) {}

  [[gnu::hot]] bool Take() {
    bias_ = args_[kB] == nullptr ? Py_None : args_[kB];
    if (!design_.TakeAsStored(args_[kX], problem_.X)) return false;
    const std::optional<DType> w_dtype = GradientType(args_[kW]);
    if (problem_.X.rows == 0 || !w_dtype) return false;
    rows_ = static_cast<npy_intp>(problem_.X.rows);
    if (PyArray_NDIM(AsArray(args_[kW])) == 2) axis_ = PyArray_DIM(AsArray(args_[kW]), 1);
    outputs_ = axis_.value_or(1);
    const auto outputs = static_cast<size_t>(outputs_);
    if (!HasShape(args_[kW], static_cast<npy_intp>(problem_.X.cols), axis_) ||
        outputs < (kernels_.coupled ? 2U : 1U) || outputs > kMaxOutputs) {
      return false;
    }
    w_ = AsBlock(args_[kW], TypeNumber(*w_dtype));
    problem_.loss = &kernels_;
    PyObject* const weight = ArgumentAt(args_, entry_.sample_weight_at);
    if (!w_ || !targets_.Take(args_[kY], weight, axis_, problem_) ||
        !offset_.Take(ArgumentAt(args_, entry_.offset_at), axis_, problem_)) {
      return false;
    }
    const std::optional<bool> mean = IsMean(ArgumentAt(args_, entry_.reduction_at));
    if (!b_.Take(bias_, outputs) || !mean) return false;
    mean_ = *mean;
    problem_.vw = nullptr;
    problem_.vb = nullptr;
    problem_.kept = nullptr;
    problem_.gX = nullptr;
    problem_.parameter = entry_.parameter;
    problem_.outputs = outputs;
    problem_.w = DataOf(w_.get());
    problem_.w_dtype = problem_.vw_dtype = *w_dtype;
    problem_.b = b_.values();
    return true;
  }

  PyObject* Value() {
    LossResult result = {};
    return Run(Job::kValue, result) ? PyFloat_FromDouble(result.loss) : nullptr;
  }

  PyObject* Grad() { return Gradients(nullptr); }

  PyObject* ValueAndGrad() {
    double loss;
    Ref gradients(Gradients(&loss));
    Ref value(gradients ? PyFloat_FromDouble(loss) : nullptr);
    return Pair(std::move(value), std::move(gradients));
  }

  PyObject* Hvp() {
    PyObject* const v = Given(args_, entry_.v_at);
    if (v == nullptr || !PyTuple_CheckExact(v) || PyTuple_GET_SIZE(v) != 2) return nullptr;
    const Ref vw = DirectionOf(PyTuple_GET_ITEM(v, 0), AsArray(w_.get()));
    Intercepts vb;
    if (!vw || !vb.TakeDirection(PyTuple_GET_ITEM(v, 1), b_)) return nullptr;
    problem_.vw = DataOf(vw.get());
    problem_.vw_dtype = *KernelArray(vw.get());
    problem_.vb = vb.values();
    LossResult result = {};
    Ref hw = Gradient(Job::kHvp, result);
    Ref hb(hw ? b_.Gradient() : nullptr);
    return Pair(std::move(hw), std::move(hb));
  }

  PyObject* Curvature() {
    const std::optional<double> by = Divisor();
    if (!by) return nullptr;
    const npy_intp shape[] = {rows_, outputs_, outputs_};
    Ref kept(NewArray(1 + axis_.has_value(), shape, DType::kFloat64));
    if (!kept) return nullptr;
    auto* const c = static_cast<double*>(DataOf(kept.get()));
    problem_.kept = c;
    LossResult result = {};
    if (!Run(Job::kCurvature, result)) return nullptr;
    if (!kernels_.coupled) {
      for (size_t row = 0; row < problem_.X.rows; ++row) {
        const double weight = problem_.weight == nullptr ? 1.0 : problem_.weight[row];
        for (size_t k = 0; k < problem_.outputs; ++k) {
          double& second = c[row * problem_.outputs + k];
          second = weight == 0 ? 0 : second * (weight / *by);
        }
      }
      return kept.release();
    }
    return HessiansOf(
        {problem_.X.rows, problem_.outputs, c, DType::kFloat64, nullptr, problem_.weight, *by},
        problem_.y_type == TargetType::kLabel ? nullptr : targets_.y(), 3, shape);
  }

  PyObject* Partial() {
    const std::optional<double> total = Weight();
    if (!total) return nullptr;
    const npy_intp shape[] = {static_cast<npy_intp>(problem_.X.cols), outputs_};
    const Ref gw(NewArray(2, shape, DType::kFloat64)), gb(NewArray(1, shape + 1, DType::kFloat64));
    if (!gw || !gb) return nullptr;
    mean_ = false;
    LossResult result = {};
    result.gw = DataOf(gw.get());
    result.gb = DataOf(gb.get());
    result.gw_dtype = result.gb_dtype = DType::kFloat64;
    if (!Run(Job::kGradient, result)) return nullptr;
    std::memset(b_.gradient(), 0, problem_.outputs * sizeof(double));
    const Ref like_w(PyTuple_New(1 + axis_.has_value())), like_b(b_.Gradient());
    for (Py_ssize_t i = 0; like_w && i < PyTuple_GET_SIZE(like_w.get()); ++i) {
      PyTuple_SET_ITEM(like_w.get(), i, PyLong_FromSsize_t(shape[i]));
    }
    PyArray_Descr* const dtype = PyArray_DESCR(AsArray(w_.get()));
    const Ref kinds(like_w && like_b ? PyTuple_Pack(3, like_w.get(), dtype, like_b.get())
                                     : nullptr);
    const Ref loss(PyFloat_FromDouble(result.loss)), weight(PyFloat_FromDouble(*total));
    const Ref n_samples(PyLong_FromSsize_t(rows_));
    return entry_.sums.Make({loss.get(), gw.get(), gb.get(), weight.get(), n_samples.get(),
                             entry_.sums.source.get(), kinds.get()});
  }

 private:
  // False, perhaps with an exception set, unless it is done and there is what it can return.
  bool Run(Job job, LossResult& result) {
    // Weights are added up before the pass, in the order of the fallback: the bits are the same.
    if (!result.divisor) result.divisor = Divisor();
    if (!result.divisor) return false;
    const bool done = RunKernel(IsLarge(problem_.X, problem_.outputs),
                                [&](Poll* poll) { return SumLoss(job, problem_, result, poll); });
    return done && !result.bad;
  }

  // The gradients that are asked for, computed before any of them is written to what is given.
  [[gnu::hot]] PyObject* Gradients(double* loss) {
    Wrt wrt = {{kW, kB}, 2, false};
    if (PyObject* const given = ArgumentAt(args_, entry_.wrt_at)) {
      const std::optional<Wrt> asked = entry_.signature.ReadWrt(given, kB + 1);
      if (!asked || asked->Has(kY)) return nullptr;
      wrt = *asked;
    }
    const npy_intp X_shape[] = {rows_, static_cast<npy_intp>(problem_.X.cols)};
    const DType X_dtype = GradientType(args_[kX]).value_or(problem_.X.dtype);
    PyArrayObject* const w = AsArray(w_.get());
    std::array<PyObject*, kB + 1> outs = {};
    PyObject* const given = Given(args_, entry_.out_at);
    if (given != nullptr && !FlatOuts(given, wrt.count, wrt.single, outs.data(), false)) {
      return nullptr;
    }
    for (size_t i = 0; i < wrt.count; ++i) {
      PyObject* const out = outs[i];
      const size_t by = wrt.operands[i];
      if (out == nullptr) continue;
      if (by == kX   ? !IsOutput(out, 2, X_shape, X_dtype)
          : by == kW ? !IsOutput(out, PyArray_NDIM(w), PyArray_DIMS(w), problem_.w_dtype)
                     : !b_.Fits(out)) {
        return nullptr;
      }
      for (size_t k = 0; k < i; ++k) {
        if (outs[k] != nullptr && Overlap(AsArray(out), AsArray(outs[k]))) return nullptr;
      }
    }
    LossResult result = {};
    Ref gX;
    if (wrt.Has(kX)) {
      // What each row's gradient is divided by has to be known before the pass.
      const std::optional<double> by = Divisor();
      if (by) gX = Ref(NewArray(2, X_shape, X_dtype));
      if (!gX) return nullptr;
      problem_.gX = DataOf(gX.get());
      problem_.gX_dtype = X_dtype;
      problem_.gX_stride = X_shape[1];
      problem_.scale = 1.0 / *by;
      result.divisor = *by;
    }
    Ref gw = Gradient(Job::kGradient, result);
    Ref gb(gw ? b_.Gradient() : nullptr);
    if (!gb) return nullptr;
    Ref all[] = {std::move(gX), Ref(), std::move(gw), std::move(gb)};
    for (size_t i = 0; i < wrt.count; ++i) {
      if (outs[i] == nullptr) continue;
      Ref& computed = all[wrt.operands[i]];
      if (PyArray_CopyInto(AsArray(outs[i]), AsArray(computed.get())) != 0) return nullptr;
      computed = Ref(Py_NewRef(outs[i]));
    }
    if (loss != nullptr) *loss = result.loss;
    return wrt.Pack(all);
  }

  // The gradient by w, or a product; that by b is in b_.
  Ref Gradient(Job job, LossResult& result) {
    PyArrayObject* const w = AsArray(w_.get());
    Ref gw(NewArray(PyArray_NDIM(w), PyArray_DIMS(w), problem_.w_dtype));
    if (!gw) return gw;
    result.gw = DataOf(gw.get());
    result.gw_dtype = problem_.w_dtype;
    result.gb = b_.gradient();
    result.gb_dtype = b_.dtype();
    return Run(job, result) ? std::move(gw) : Ref();
  }

  // The sum of the samples' weights before a pass, as NumPy adds them up; nothing where it is not
  // finite and positive.
  std::optional<double> Weight() const {
    const double sum = SumOfWeights(problem_);
    return sum > 0 && std::isfinite(sum) ? std::optional(sum) : std::nullopt;
  }

  std::optional<double> Divisor() const {
    if (!mean_) return 1.0;
    const std::optional<double> weight = Weight();
    return weight && IsOrdinary(*weight) ? weight : std::nullopt;
  }

  const LossEntry& entry_;
  const LossKernels& kernels_;
  const Arguments& args_;
  PyObject* bias_ = nullptr;
  UserDesign design_;
  UserTargets targets_;
  UserOffset offset_;
  Ref w_;
  Intercepts b_;
  npy_intp rows_ = 0, outputs_ = 1;
  std::optional<npy_intp> axis_;  // of the outputs, where they have one
  bool mean_ = true;
  LinearProblem problem_;
};

// --- losses of single predictions ----------------------------------------------------------------

template <typename T>
void Pull(const T* slopes, const T* g, size_t stack, size_t rows, size_t outputs, T* out) {
  for (size_t i = 0; i < stack * rows; ++i) {
    const T* const of_row = slopes + i % rows * outputs;
    for (size_t k = 0; k < outputs; ++k) out[i * outputs + k] = g[i] * of_row[k];
  }
}

// Sums over the classes in float64.
template <typename T>
void Push(const T* slopes, const T* t, size_t rows, size_t outputs, T* out) {
  for (size_t i = 0; i < rows; ++i, slopes += outputs, t += outputs) {
    double sum = double{slopes[0]} * t[0];
    for (size_t k = 1; k < outputs; ++k) sum += double{slopes[k]} * t[k];
    out[i] = static_cast<T>(sum);
  }
}

// Predictions, targets and a tangent or cotangent, alike in shape; what the methods return is as in
// LossCall.
class PointwiseCall {
 public:
  PointwiseCall(const LossEntry& entry, const Arguments& args)
      : entry_(entry), kernels_(*entry.kernels.Active()), given_{args[0], args[1], args[2]} {}

  [[gnu::hot]] bool Take() {
    const bool coupled = kernels_.coupled, moves = given_[2] != nullptr;
    std::array<PyObject*, 3> given = given_;
    const bool label = coupled && PyLong_CheckExact(given[1]);
    if (label || !IsWeak(given[1])) {
      y_ = label ? Ref(PyArray_FROM_O(given[1])) : AsPlainArray(given[1]);
      if (!y_) {
        LeaveToPython();
        return false;
      }
    }
    const bool fills[] = {IsWeak(given[0]), IsWeak(given[1]), moves && IsWeak(given[2])};
    // Integer targets have no say in the dtype.
    const bool integers = y_ && HasIntegers(y_.get());
    if (y_) given[1] = integers ? nullptr : y_.get();
    if (!x_.Take(given.data(), given.size()) || x_[0] == nullptr || (moves && !x_[2])) return false;
    if (integers) {
      y_ = AsBlock(y_.get(), coupled ? NPY_INT64 : TypeNumber(x_.dtype()));
    } else {
      y_ = Ref(Py_XNewRef(reinterpret_cast<PyObject*>(x_[1])));
    }
    if (!y_) return false;
    z_ = Ref(Py_NewRef(reinterpret_cast<PyObject*>(x_[0])));
    PyArrayObject* const shaped = AsArray((fills[0] && !coupled ? y_ : z_).get());
    z_ndim_ = ndim_ = PyArray_NDIM(shaped);
    std::copy_n(PyArray_DIMS(shaped), ndim_, shape_.begin());
    if (coupled) {
      if (ndim_ == 0 || (fills[1] && !integers)) return false;
      problem_.outputs = static_cast<size_t>(shape_[static_cast<size_t>(--ndim_)]);
      if (problem_.outputs < 2) return false;
    } else {
      problem_.outputs = 1;
      if (!Fill(z_, fills[0], ndim_)) return false;
    }
    if (!Fill(y_, fills[1], coupled && integers ? ndim_ : z_ndim_)) return false;
    problem_.loss = &kernels_;
    problem_.parameter = entry_.parameter;
    problem_.rows = static_cast<size_t>(PyArray_MultiplyList(shape_.data(), ndim_));
    problem_.z = DataOf(z_.get());
    problem_.dtype = x_.dtype();
    problem_.y = DataOf(y_.get());
    problem_.y_type = coupled && integers ? TargetType::kLabel : TargetOf(x_.dtype());
    if (!moves) return true;
    const int own = entry_.takes_tangent ? z_ndim_ : ndim_;
    g_ = Ref(Py_NewRef(reinterpret_cast<PyObject*>(x_[2])));
    if (fills[2] && !Fill(g_, true, own)) return false;
    PyArrayObject* const g = AsArray(g_.get());
    stack_ = PyArray_NDIM(g) - own;
    if (stack_ < 0 || stack_ + z_ndim_ > NPY_MAXDIMS || (entry_.takes_tangent && stack_ > 0) ||
        !std::equal(shape_.begin(), shape_.begin() + own, PyArray_DIMS(g) + stack_)) {
      return false;
    }
    std::copy_n(PyArray_DIMS(g), stack_, out_shape_.begin());
    std::copy_n(shape_.begin(), z_ndim_, out_shape_.begin() + stack_);
    return true;
  }

  PyObject* Value() { return Give(Map(Wanted::kLoss)); }
  PyObject* Derivative() { return Give(Map(Wanted::kSlope)); }

  PyObject* ValueAndDerivative() {
    Ref value(Value()), derivative(value ? Derivative() : nullptr);
    return Pair(std::move(value), std::move(derivative));
  }

  PyObject* SecondDerivative() {
    if (!kernels_.coupled) return Give(Map(Wanted::kCurvature));
    const Ref p = z_ndim_ < NPY_MAXDIMS ? Map(Wanted::kCurvature) : Ref();
    if (!p) return nullptr;
    auto shape = shape_;
    shape[static_cast<size_t>(z_ndim_)] = static_cast<npy_intp>(problem_.outputs);
    return HessiansOf(
        {problem_.rows, problem_.outputs, DataOf(p.get()), problem_.dtype, nullptr, nullptr, 1.0},
        problem_.y_type == TargetType::kLabel ? nullptr : y_.get(), z_ndim_ + 1, shape.data());
  }

  PyObject* Vjp() {
    const auto stack = static_cast<size_t>(PyArray_MultiplyList(out_shape_.data(), stack_));
    return Move(NewArray(stack_ + z_ndim_, out_shape_.data(), problem_.dtype),
                [&](auto slopes, auto g, auto out) {
                  Pull(slopes, g, stack, problem_.rows, problem_.outputs, out);
                });
  }

  PyObject* Jvp() {
    return Move(NewArray(ndim_, shape_.data(), problem_.dtype), [&](auto slopes, auto t, auto out) {
      Push(slopes, t, problem_.rows, problem_.outputs, out);
    });
  }

  PyObject* Jacobian() {
    const Extents operand(z_ndim_, shape_.data()), result(ndim_, shape_.data());
    Ref slopes = Map(Wanted::kSlope);
    return (kernels_.coupled ? JacobianOfItems(std::move(slopes), operand, result)
                             : JacobianOfElements(std::move(slopes), operand))
        .release();
  }

  Ref Map(Wanted wanted) const {
    Ref out(NewArray(wanted == Wanted::kLoss ? ndim_ : z_ndim_, shape_.data(), problem_.dtype));
    const bool done =
        out && RunKernel(problem_.rows * problem_.outputs > kReleaseGil,
                         [&](Poll* p) { return MapLoss(wanted, problem_, DataOf(out.get()), p); });
    return done ? std::move(out) : Ref();
  }

 private:
  // Gives a number that fills the first axes of the shape. False, perhaps with an exception set,
  // for an array of another shape.
  bool Fill(Ref& array, bool number, int ndim) const {
    PyArrayObject* const given = AsArray(array.get());
    if (!number || ndim == 0) {
      return IsOfShape(given, ndim, shape_.data());
    }
    auto shape = shape_;  // which NumPy does not promise to leave alone
    Ref filled(PyArray_SimpleNew(ndim, shape.data(), PyArray_TYPE(given)));
    if (!filled || PyArray_CopyInto(AsArray(filled.get()), given) != 0) return false;
    array = std::move(filled);
    return true;
  }

  // By `move`, of derivatives and what was given.
  template <class F>
  PyObject* Move(PyObject* array, F&& move) const {
    Ref out(array);
    const Ref slopes = out ? Map(Wanted::kSlope) : Ref();
    if (!slopes) return nullptr;
    const bool large = problem_.rows * problem_.outputs > kReleaseGil ||
                       static_cast<size_t>(PyArray_SIZE(AsArray(array))) > kReleaseGil;
    const bool done = RunKernel(large, [&](Poll* poll) {
      const KernelFpEnv fp_env(poll);
      OfType(problem_.dtype, [&](auto type) {
        using T = decltype(type);
        move(static_cast<const T*>(DataOf(slopes.get())), static_cast<const T*>(DataOf(g_.get())),
             static_cast<T*>(DataOf(array)));
      });
      return Outcome::kDone;
    });
    return done ? Give(std::move(out)) : nullptr;
  }

  static PyObject* Give(Ref array) {
    return array ? PyArray_Return(AsArray(array.release())) : nullptr;
  }

  const LossEntry& entry_;
  const LossKernels& kernels_;
  std::array<PyObject*, 3> given_;  // predictions, targets, and a tangent, a cotangent or null
  PlainOperands x_;
  Ref z_, y_, g_;
  // Copies: while a kernel runs without the GIL, an array may get another shape.
  std::array<npy_intp, NPY_MAXDIMS> shape_, out_shape_;  // of z, and of its cotangents
  int ndim_ = 0, z_ndim_ = 0, stack_ = 0;                // of the values, of z, in front in g
  PointwiseProblem problem_ = {};
};

// --- all methods ---------------------------------------------------------------------------------

template <class Call, PyObject* (Call::*kMethod)()>
[[gnu::hot]] PyObject* Enter(const MethodEntry& own, const Arguments& args) {
  Call call(static_cast<const LossEntry&>(own), args);
  return call.Take() ? (call.*kMethod)() : nullptr;
}

struct LossMethod {
  std::string_view name;
  FastPath path;
  size_t relied_on = 3;  // arguments
};

constexpr LossMethod kLossMethods[] = {
    {"value", Enter<LossCall, &LossCall::Value>},
    {"value_and_grad", Enter<LossCall, &LossCall::ValueAndGrad>},
    {"grad", Enter<LossCall, &LossCall::Grad>},
    {"hvp", Enter<LossCall, &LossCall::Hvp>},
    {"curvature", Enter<LossCall, &LossCall::Curvature>},
    {"partial", Enter<LossCall, &LossCall::Partial>},
    {"pointwise", Enter<PointwiseCall, &PointwiseCall::Value>, 2},
    {"pointwise.derivative", Enter<PointwiseCall, &PointwiseCall::Derivative>, 2},
    {"pointwise.value_and_derivative", Enter<PointwiseCall, &PointwiseCall::ValueAndDerivative>, 2},
    {"pointwise.second_derivative", Enter<PointwiseCall, &PointwiseCall::SecondDerivative>, 2},
    {"pointwise.vjp", Enter<PointwiseCall, &PointwiseCall::Vjp>},
    {"pointwise.jvp", Enter<PointwiseCall, &PointwiseCall::Jvp>},
    {"pointwise.jacobian", Enter<PointwiseCall, &PointwiseCall::Jacobian>, 2},
};

// --- the engine ----------------------------------------------------------------------------------

// What a job takes and makes.
struct EngineJob {
  std::string_view name;
  Job job;
  bool has_samples, has_v, has_gradient, has_kept;
};
constexpr EngineJob kJobs[] = {
    {"value", Job::kValue, true, false, false, false},
    {"gradient", Job::kGradient, true, false, true, false},
    {"hvp", Job::kHvp, true, true, true, false},
    {"curvature", Job::kCurvature, true, false, false, true},
    {"predict", Job::kPredict, false, false, false, true},
    {"backward", Job::kBackward, true, false, true, false},
};

// The place of a loss by a Python string; nothing, with an exception set, where there is none.
std::optional<size_t> LossNamed(PyObject* name) {
  const char* const text = PyUnicode_AsUTF8(name);
  const std::optional<size_t> row = text == nullptr ? std::nullopt : FindLoss(text);
  if (!row && text != nullptr) PyErr_Format(PyExc_KeyError, "no native loss '%s'", text);
  return row;
}

const double* DoublesOf(PyObject* array) { return static_cast<const double*>(DataOf(array)); }

// For the Python layer, which tells people.
PyObject* RaiseBad(const BadRow& bad) {
  constexpr const char* kArguments[] = {"X", "y", "sample_weight"};
  const Ref error(Py_BuildValue("(sn)", kArguments[static_cast<size_t>(bad.argument)],
                                static_cast<Py_ssize_t>(bad.row)));
  if (error) PyErr_SetObject(PyExc_ValueError, error.get());
  return nullptr;
}

PyObject* LossSums(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  constexpr const char* kName = "loss_sums";
  enum {
    kLoss,
    kParameter,
    kDesign,
    kTargets,
    kWeights,
    kBias,
    kSampleWeight,
    kOffset,
    kJob,
    kV,
    kKept,
    kGX,
    kScale,
    kCount
  };
  if (nargs != kCount) return PyErr_Format(PyExc_TypeError, "%s takes %d arguments", kName, kCount);

  LinearProblem problem = {};
  const std::optional<size_t> row = LossNamed(args[kLoss]);
  if (!row || !ReadDouble(args[kParameter], &problem.parameter) ||
      !ReadDouble(args[kScale], &problem.scale)) {
    return nullptr;
  }
  problem.loss = &LossOps()[*row];
  const char* const job_name = PyUnicode_AsUTF8(args[kJob]);
  if (job_name == nullptr) return nullptr;
  const auto* const job = std::find_if(std::begin(kJobs), std::end(kJobs),
                                       [&](const EngineJob& j) { return j.name == job_name; });
  if (job == std::end(kJobs)) return Refuse(kName, "job");
  if (!PyArray_CheckExact(args[kBias])) return Refuse(kName, "b");
  const size_t outputs = problem.outputs = static_cast<size_t>(PyArray_SIZE(AsArray(args[kBias])));
  if (outputs == 0 || !IsBlock(args[kBias], NPY_DOUBLE, outputs)) return Refuse(kName, "b");
  problem.b = DoublesOf(args[kBias]);
  const char* const bad =
      ReadSamples(args[kDesign], job->has_samples ? args[kTargets] : nullptr,
                  job->has_samples ? args[kSampleWeight] : Py_None, args[kOffset], problem);
  if (bad != nullptr) return Refuse(kName, bad);
  if (job->job == Job::kBackward && problem.y_type != TargetType::kFloat64) {
    return Refuse(kName, "y");
  }
  const Design& X = problem.X;
  if (!IsBlock(args[kWeights], NPY_DOUBLE, X.cols * outputs)) return Refuse(kName, "w");
  problem.w = DataOf(args[kWeights]);
  problem.w_dtype = problem.vw_dtype = DType::kFloat64;
  if (job->has_v) {
    PyObject *vw, *vb;
    const bool is_pair = PyTuple_Check(args[kV]) && PyArg_ParseTuple(args[kV], "OO", &vw, &vb);
    PyErr_Clear();
    if (!is_pair || !PyArray_CheckExact(vw) || !PyArray_CheckExact(vb)) return Refuse(kName, "v");
    const auto size = static_cast<size_t>(PyArray_SIZE(AsArray(vw)));
    const size_t directions = static_cast<size_t>(PyArray_SIZE(AsArray(vb))) / outputs;
    if (directions == 0 || size % directions != 0 || size / directions != X.cols * outputs ||
        !IsBlock(vw, NPY_DOUBLE, size) || !IsBlock(vb, NPY_DOUBLE, outputs * directions)) {
      return Refuse(kName, "v");
    }
    problem.directions = directions;
    problem.vw = DoublesOf(vw);
    problem.vb = DoublesOf(vb);
  }
  if (job->has_kept) {
    if (!IsBlock(args[kKept], NPY_DOUBLE, X.rows * outputs) ||
        !PyArray_ISWRITEABLE(AsArray(args[kKept]))) {
      return Refuse(kName, "kept");
    }
    problem.kept = static_cast<double*>(DataOf(args[kKept]));
  }
  if (job->job == Job::kGradient && args[kGX] != Py_None) {
    Design gX;
    if (!DenseDesign(args[kGX], gX) || gX.layout != Layout::kRows || gX.rows != X.rows ||
        gX.cols != X.cols || !PyArray_ISWRITEABLE(AsArray(args[kGX]))) {
      return Refuse(kName, "gX");
    }
    problem.gX = DataOf(args[kGX]);
    problem.gX_dtype = gX.dtype;
    problem.gX_stride = gX.stride;
  }

  const size_t sums = outputs * problem.directions;
  npy_intp shape[] = {static_cast<npy_intp>(X.cols), static_cast<npy_intp>(sums)};
  const auto zeros = [&](int ndim, npy_intp* of) {
    return job->has_gradient ? PyArray_ZEROS(ndim, of, NPY_DOUBLE, 0) : Py_NewRef(Py_None);
  };
  const Ref gw(zeros(2, shape)), gb(zeros(1, shape + 1));
  if (!gw || !gb) return nullptr;
  LossResult result = {};
  result.divisor = 1.0;
  result.gw_dtype = result.gb_dtype = DType::kFloat64;
  if (job->has_gradient) {
    result.gw = DataOf(gw.get());
    result.gb = DataOf(gb.get());
  }
  if (X.rows > 0) {
    const bool done = RunKernel(
        IsLarge(X, sums), [&](Poll* poll) { return SumLoss(job->job, problem, result, poll); });
    if (!done) return nullptr;
  }
  if (result.bad) return RaiseBad(*result.bad);
  return Py_BuildValue("(dOO)", result.loss, gb.get(), gw.get());
}

PyObject* LossPointwise(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  constexpr const char* kName = "loss_pointwise";
  enum { kLoss, kParameter, kZ, kTargets, kOrder, kCount };
  if (nargs != kCount) return PyErr_Format(PyExc_TypeError, "%s takes %d arguments", kName, kCount);
  LossEntry entry;
  const std::optional<size_t> row = LossNamed(args[kLoss]);
  if (!row || !ReadDouble(args[kParameter], &entry.parameter)) return nullptr;
  entry.kernels = RowOf(LossTables(), *row);
  const long order = PyLong_AsLong(args[kOrder]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  constexpr Wanted kOrders[] = {Wanted::kLoss, Wanted::kSlope, Wanted::kCurvature};
  if (order < 0 || order > 2) return Refuse(kName, "order");
  if (!KernelArray(args[kZ]) || !PyArray_CheckExact(args[kTargets])) return Refuse(kName, "z or y");
  PointwiseCall call(entry, {args[kZ], args[kTargets]});
  if (call.Take()) return call.Map(kOrders[order]).release();
  return PyErr_Occurred() != nullptr ? nullptr : Refuse(kName, "z or y");
}

PyObject* LossLine(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  constexpr const char* kName = "loss_line";
  enum { kLoss, kParameter, kLine, kTargets, kSampleWeight, kStep, kOrder, kCount };
  if (nargs != kCount) return PyErr_Format(PyExc_TypeError, "%s takes %d arguments", kName, kCount);
  LinearProblem samples = {};
  double step;
  const std::optional<size_t> row = LossNamed(args[kLoss]);
  if (!row || !ReadDouble(args[kParameter], &samples.parameter) ||
      !ReadDouble(args[kStep], &step)) {
    return nullptr;
  }
  samples.loss = &LossOps()[*row];
  const long order = PyLong_AsLong(args[kOrder]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (order < 1 || order > 2) return Refuse(kName, "order");
  PyArrayObject* const line = AsArray(args[kLine]);
  if (!PyArray_CheckExact(args[kLine]) || PyArray_NDIM(line) != 2 ||
      PyArray_DIM(line, 1) % 2 != 0 ||
      !IsBlock(args[kLine], NPY_DOUBLE, static_cast<size_t>(PyArray_SIZE(line)))) {
    return Refuse(kName, "line");
  }
  const auto rows = static_cast<size_t>(PyArray_DIM(line, 0));
  samples.outputs = static_cast<size_t>(PyArray_DIM(line, 1)) / 2;
  if (samples.outputs < (samples.loss->coupled ? 2U : 1U)) return Refuse(kName, "line");
  const char* const bad =
      ReadSamples(args[kLine], args[kTargets], args[kSampleWeight], Py_None, samples);
  if (bad != nullptr) return Refuse(kName, bad);
  const PointwiseProblem problem = {samples.loss,    samples.parameter,  rows,
                                    samples.outputs, PyArray_DATA(line), DType::kFloat64,
                                    samples.y,       samples.y_type};
  LineSums sums = {};
  if (rows > 0) {
    const Wanted wanted = order == 1 ? Wanted::kSlope : Wanted::kCurvature;
    const bool done = RunKernel(rows * samples.outputs > kReleaseGil, [&](Poll* poll) {
      return SumLine(wanted, problem, samples.weight, step, sums, poll);
    });
    if (!done) return nullptr;
  }
  return sums.bad ? RaiseBad(*sums.bad) : Py_BuildValue("(dd)", sums.loss, sums.derivative);
}

PyObject* SoftmaxHessians(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  constexpr const char* kName = "softmax_hessians";
  enum { kProbabilities, kSums, kCount };
  if (nargs != kCount) return PyErr_Format(PyExc_TypeError, "%s takes %d arguments", kName, kCount);
  const std::optional<DType> dtype = KernelArray(args[kProbabilities]);
  PyArrayObject* const p = AsArray(args[kProbabilities]);
  if (!dtype || PyArray_NDIM(p) != 2 || PyArray_DIM(p, 1) == 0 || !PyArray_IS_C_CONTIGUOUS(p)) {
    return Refuse(kName, "p");
  }
  const npy_intp shape[] = {PyArray_DIM(p, 0), PyArray_DIM(p, 1), PyArray_DIM(p, 1)};
  const auto rows = static_cast<size_t>(shape[0]);
  if (!IsBlock(args[kSums], NPY_DOUBLE, rows)) return Refuse(kName, "sums");
  return HessiansOf({rows, static_cast<size_t>(shape[1]), PyArray_DATA(p), *dtype,
                     DoublesOf(args[kSums]), nullptr, 1.0},
                    nullptr, 3, shape);
}

PyMethodDef kEngine[] = {
    {"loss_sums", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(LossSums)), METH_FASTCALL,
     "loss_sums(name, parameter, X, y, w, b, sample_weight, offset, job, v, kept, gX, scale, "
     "/)\n--\n\n"},
    {"loss_pointwise", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(LossPointwise)),
     METH_FASTCALL, "loss_pointwise(name, parameter, z, y, order, /)\n--\n\n"},
    {"loss_line", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(LossLine)), METH_FASTCALL,
     "loss_line(name, parameter, line, y, sample_weight, step, order, /)\n--\n\n"},
    {"softmax_hessians", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(SoftmaxHessians)),
     METH_FASTCALL, "softmax_hessians(p, sums, /)\n--\n\n"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyObject* NewLossMethod(const char* loss, double parameter, const char* method, PyObject* sums,
                        PyObject* fallback) {
  const std::optional<size_t> row = FindLoss(loss);
  const auto* const found = std::find_if(std::begin(kLossMethods), std::end(kLossMethods),
                                         [&](const LossMethod& m) { return m.name == method; });
  if (!row || found == std::end(kLossMethods)) {
    return PyErr_Format(PyExc_KeyError, "no native method '%s' of a loss '%s'", method, loss);
  }
  auto entry = std::make_unique<LossEntry>();
  const Signature& signature = entry->signature;
  if (!entry->signature.Read(fallback, found->relied_on)) return nullptr;
  entry->parameter = parameter;
  entry->kernels = RowOf(LossTables(), *row);
  entry->sample_weight_at = signature.Find("sample_weight");
  entry->offset_at = signature.Find("offset");
  entry->out_at = signature.Find("out");
  entry->reduction_at = signature.Find("reduction");
  entry->wrt_at = signature.Find("wrt");
  entry->v_at = signature.Find("v");
  entry->takes_tangent = found->name == "pointwise.jvp";
  if (found->name == "partial" && !entry->sums.Read(sums)) return Refuse("loss_method", "sums");
  return NewMethod(found->path, std::move(entry), fallback);
}

bool RegisterLossEngine(PyObject* module) { return PyModule_AddFunctions(module, kEngine) == 0; }

}  // namespace pullback

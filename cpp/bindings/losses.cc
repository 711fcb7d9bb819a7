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
#include "bindings/method.h"
#include "bindings/operands.h"
#include "bindings/results.h"
#include "kernels/losses.h"

namespace pullback {
namespace {

// More predictions than this are scored without the GIL.
constexpr size_t kReleaseGil = 16384;

enum class Kind : uint8_t { kValue, kValueAndGrad, kGrad, kHvp, kCurvature, kPartial };

// The class of partial sums, and the title of the loss that they are of.
struct PartialSums {
  static constexpr size_t kSlots = 7;

  // False, perhaps with an exception set, for other than (class, title).
  bool Read(PyObject* of) {
    constexpr const char* kNames[kSlots] = {"loss",      "gw",     "gb",   "weight",
                                            "n_samples", "source", "kinds"};
    PyObject *class_of_sums, *title;
    if (!PyTuple_Check(of) || !PyArg_ParseTuple(of, "O!U", &PyType_Type, &class_of_sums, &title)) {
      return false;
    }
    type = Ref(Py_NewRef(class_of_sums));
    source = Ref(Py_NewRef(title));
    for (size_t i = 0; i < kSlots; ++i) {
      slots[i] = Ref(PyObject_GetAttrString(class_of_sums, kNames[i]));
      if (!slots[i] || !Py_IS_TYPE(slots[i].get(), &PyMemberDescr_Type)) return false;
    }
    return true;
  }

  // The values are in the order of the slots; null, perhaps with an exception set, if one is.
  PyObject* Make(const std::array<PyObject*, kSlots>& values) const {
    auto* const of = reinterpret_cast<PyTypeObject*>(type.get());
    Ref sums(of->tp_alloc(of, 0));
    for (size_t i = 0; sums && i < kSlots; ++i) {
      auto* const slot = reinterpret_cast<PyMemberDescrObject*>(slots[i].get());
      auto* const at = reinterpret_cast<char*>(sums.get());
      if (values[i] == nullptr || PyMember_SetOne(at, slot->d_member, values[i]) != 0)
        return nullptr;
    }
    return sums.release();
  }

  Ref type, source;
  std::array<Ref, kSlots> slots;  // the class's descriptors
};

// A method that adds up the samples, and where its arguments stand in the signature.
struct LossEntry : MethodEntry {
  double parameter;
  Kind kind;
  PerTarget<const LossKernels*> kernels;
  std::optional<size_t> sample_weight_at, out_at, reduction_at, wrt_at, v_at;
  PartialSums sums;

  bool has_gradients() const { return kind == Kind::kValueAndGrad || kind == Kind::kGrad; }
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

// A number of Python's own, which fills a shape.
bool IsNumber(PyObject* object) { return PyFloat_CheckExact(object) || PyLong_CheckExact(object); }

// Whether an array is (rows,), or (rows, outputs) where the outputs have an axis.
bool HasShape(PyObject* object, npy_intp rows, std::optional<npy_intp> outputs) {
  PyArrayObject* const array = AsArray(object);
  return PyArray_NDIM(array) == 1 + outputs.has_value() && PyArray_DIM(array, 0) == rows &&
         (!outputs || PyArray_DIM(array, 1) == *outputs);
}

bool HasIntegers(PyObject* array) {
  const int type = PyArray_TYPE(AsArray(array));
  return PyTypeNum_ISINTEGER(type) || PyTypeNum_ISBOOL(type);
}

constexpr TargetType TargetOf(DType dtype) {
  return dtype == DType::kFloat32 ? TargetType::kFloat32 : TargetType::kFloat64;
}

// Targets as they are given, or a copy in the type that kernels read.
struct Targets {
  Ref block;
  TargetType type;

  // Nothing, perhaps with an exception set, for others.
  static std::optional<Targets> From(PyObject* y, npy_intp rows, std::optional<npy_intp> outputs,
                                     bool coupled) {
    if (!PyArray_CheckExact(y)) return std::nullopt;
    const bool labels = coupled && PyArray_NDIM(AsArray(y)) == 1;
    const std::optional<Storage> storage = StorageOfArray(AsArray(y));
    if (!storage || !HasShape(y, rows, labels ? std::nullopt : outputs) ||
        (labels && !HasIntegers(y))) {
      return std::nullopt;
    }
    const DType dtype = ComputeType(storage->element);
    Ref block = AsBlock(y, labels ? NPY_INT64 : TypeNumber(dtype));
    if (!block) return std::nullopt;
    return Targets{std::move(block), labels ? TargetType::kLabel : TargetOf(dtype)};
  }
};

// The sum of each row's probabilities, as NumPy adds them up; null, perhaps with an exception set,
// where one is not finite, or where the rows are others by now.
Ref RowSums(PyArrayObject* y, size_t rows) {
  const auto finite = [&](const auto* from) {
    return std::all_of(from, from + PyArray_SIZE(y), [](auto p) { return std::isfinite(p); });
  };
  if (!(PyArray_TYPE(y) == NPY_FLOAT ? finite(static_cast<const float*>(PyArray_DATA(y)))
                                     : finite(static_cast<const double*>(PyArray_DATA(y))))) {
    return Ref();
  }
  const Ref sums(PyArray_Sum(y, PyArray_NDIM(y) - 1, NPY_DOUBLE, nullptr));
  Ref block(sums ? PyArray_FROM_OTF(sums.get(), NPY_DOUBLE, NPY_ARRAY_CARRAY_RO) : nullptr);
  return block && IsBlock(block.get(), NPY_DOUBLE, rows) ? std::move(block) : Ref();
}

PyObject* HessiansOf(const ClassHessians& problem, int ndim, const npy_intp* shape) {
  Ref out(NewArray(ndim, shape, problem.dtype));
  const bool large = problem.rows * problem.classes * problem.classes > kReleaseGil;
  const bool done = out && RunKernel(large, [&](Poll* poll) {
                      return MapHessians(problem, DataOf(out.get()), poll);
                    });
  return done ? out.release() : nullptr;
}

// The intercepts' values, and their gradient in their own kind: None, an array with one for each
// output, or for a single output a Python number or a NumPy scalar.
class Intercepts {
 public:
  // False, perhaps with an exception set, for any other kind.
  bool Take(PyObject* b, size_t outputs) {
    b_ = b;
    axes_ = Axes(b);
    outputs_ = outputs;
    if (b == Py_None) {
      std::fill_n(values_.begin(), outputs, 0.0);
      return true;
    }
    if (!PyArray_Check(b)) {
      const std::optional<double> number = outputs == 1 ? AsNumber(b) : std::nullopt;
      if (!number) return false;
      values_[0] = *number;
      const bool small = PyArray_IsScalar(b, Float) || PyArray_IsScalar(b, Half);
      dtype_ = small ? DType::kFloat32 : DType::kFloat64;
      return true;
    }
    const std::optional<DType> dtype = GradientType(b);
    if (!dtype || PyArray_NDIM(AsArray(b)) > 1 ||
        static_cast<size_t>(PyArray_SIZE(AsArray(b))) != outputs) {
      return false;
    }
    dtype_ = *dtype;
    const Ref block = AsBlock(b, TypeNumber(dtype_));
    if (!block) return false;
    if (dtype_ == DType::kFloat32) {
      std::copy_n(static_cast<const float*>(DataOf(block.get())), outputs, values_.begin());
    } else {
      std::copy_n(static_cast<const double*>(DataOf(block.get())), outputs, values_.begin());
    }
    return true;
  }

  // A direction, which None and a number fill.
  bool TakeDirection(PyObject* vb, PyObject* like, size_t outputs) {
    if (vb != Py_None && like == Py_None) return false;
    if (like != Py_None && IsNumber(vb)) {
      const std::optional<double> number = AsNumber(vb);
      std::fill_n(values_.begin(), outputs, number.value_or(0));
      return number.has_value();
    }
    return (vb == Py_None || Axes(vb) == Axes(like)) && Take(vb, outputs);
  }

  const double* values() const { return values_.data(); }
  DType dtype() const { return dtype_; }
  void* gradient() { return gradient_.data(); }  // room for one of dtype() for each output

  PyObject* Gradient() const {
    if (b_ == Py_None) return Py_NewRef(Py_None);
    if (IsNumber(b_)) return PyFloat_FromDouble(gradient_[0]);
    const bool is_array = PyArray_CheckExact(b_);
    auto size = static_cast<npy_intp>(outputs_);
    PyObject* const result = PyArray_SimpleNew(axes_, &size, TypeNumber(dtype_));
    if (result == nullptr) return nullptr;
    std::memcpy(DataOf(result), gradient_.data(), outputs_ * ItemSize(dtype_));
    return is_array ? result : PyArray_Return(AsArray(result));
  }

 private:
  static int Axes(PyObject* object) {
    return PyArray_Check(object) ? PyArray_NDIM(AsArray(object)) : 0;
  }

  PyObject* b_ = nullptr;
  int axes_ = 0;
  size_t outputs_ = 1;
  DType dtype_ = DType::kFloat64;
  std::array<double, kMaxOutputs> values_, gradient_;
};

// A direction by the coefficients, of which None is zero and a number fills their shape; null,
// perhaps with an exception set, for what Python has to look at.
Ref DirectionOf(PyObject* vw, PyArrayObject* w) {
  if (vw == Py_None || IsNumber(vw)) {
    const std::optional<double> number = vw == Py_None ? 0.0 : AsNumber(vw);
    Ref filled(number ? NewArray(PyArray_NDIM(w), PyArray_DIMS(w), DType::kFloat64) : nullptr);
    if (filled) std::fill_n(static_cast<double*>(DataOf(filled.get())), PyArray_SIZE(w), *number);
    return filled;
  }
  const std::optional<DType> dtype = GradientType(vw);
  return dtype && SameShape(AsArray(vw), w) ? AsBlock(vw, TypeNumber(*dtype)) : Ref();
}

// What is asked for, and where it goes.
struct Gradients {
  Wrt wrt;
  std::array<PyObject*, kB + 1> outs = {};  // by place in the signature; null for a new array

  // False for what Python has to look at.
  bool Ask(const LossEntry& entry, const Arguments& args) {
    PyObject* const given = entry.wrt_at ? args[*entry.wrt_at] : nullptr;
    if (given == nullptr) {
      wrt.operands = {kW, kB};
      wrt.count = 2;
    } else {
      const std::optional<Wrt> asked = entry.signature.ReadWrt(given, kB + 1);
      if (!asked || asked->Has(kY)) return false;
      wrt = *asked;
    }
    PyObject* const out = Given(args, entry.out_at);
    if (out == nullptr) return true;
    if (wrt.single) {
      outs[wrt.operands[0]] = out;
      return true;
    }
    if (!PyTuple_CheckExact(out) || static_cast<size_t>(PyTuple_GET_SIZE(out)) != wrt.count) {
      return false;
    }
    for (size_t i = 0; i < wrt.count; ++i) {
      PyObject* const item = PyTuple_GET_ITEM(out, static_cast<Py_ssize_t>(i));
      outs[wrt.operands[i]] = item == Py_None ? nullptr : item;
    }
    return true;
  }

  // Whether a given output is as the result will be.
  static bool Fits(PyObject* out, int ndim, const npy_intp* shape, DType dtype) {
    return KernelArray(out) == dtype && PyArray_NDIM(AsArray(out)) == ndim &&
           std::equal(shape, shape + ndim, PyArray_DIMS(AsArray(out))) &&
           PyArray_ISWRITEABLE(AsArray(out));
  }

  // Whether no two of them meet.
  bool Apart() const {
    for (size_t i = 0; i < outs.size(); ++i) {
      for (size_t k = 0; k < i; ++k) {
        if (outs[i] && outs[k] && Overlap(AsArray(outs[i]), AsArray(outs[k]))) return false;
      }
    }
    return true;
  }
};

// A call's samples and parameters as kernels take them, alive for as long as these run. What the
// methods return is null, perhaps with an exception set, where Python has to look at the call.
class LossCall {
 public:
  LossCall(const LossEntry& entry, const Arguments& args)
      : entry_(entry), kernels_(*entry.kernels.Active()), args_(args) {}

  bool Take() {
    bias_ = args_[kB] == nullptr ? Py_None : args_[kB];
    const std::optional<Design> X = design_.From(args_[kX]);
    const std::optional<DType> w_dtype = GradientType(args_[kW]);
    if (!X || X->rows == 0 || !w_dtype) return false;
    rows_ = static_cast<npy_intp>(X->rows);
    if (PyArray_NDIM(AsArray(args_[kW])) == 2) axis_ = PyArray_DIM(AsArray(args_[kW]), 1);
    outputs_ = axis_.value_or(1);
    const auto outputs = static_cast<size_t>(outputs_);
    if (!HasShape(args_[kW], static_cast<npy_intp>(X->cols), axis_) ||
        outputs < (kernels_.coupled ? 2U : 1U) || outputs > kMaxOutputs) {
      return false;
    }
    w_ = AsBlock(args_[kW], TypeNumber(*w_dtype));
    y_ = w_ ? Targets::From(args_[kY], rows_, axis_, kernels_.coupled) : std::nullopt;
    if (!y_) return false;
    if (PyObject* const given = Given(args_, entry_.sample_weight_at)) {
      if (!PyArray_CheckExact(given) || !HasShape(given, rows_, std::nullopt)) return false;
      weight_ = AsBlock(given, NPY_DOUBLE);
      if (!weight_) return false;
    }
    const std::optional<bool> mean =
        IsMean(entry_.reduction_at ? args_[*entry_.reduction_at] : nullptr);
    if (!b_.Take(bias_, outputs) || !mean) return false;
    mean_ = *mean;
    problem_.X = *X;
    problem_.loss = &kernels_;
    problem_.parameter = entry_.parameter;
    problem_.outputs = outputs;
    problem_.y = DataOf(y_->block.get());
    problem_.y_type = y_->type;
    problem_.w = DataOf(w_.get());
    problem_.w_dtype = *w_dtype;
    problem_.b = b_.values();
    problem_.weight = weight_ ? static_cast<const double*>(DataOf(weight_.get())) : nullptr;
    return true;
  }

  PyObject* Value() {
    LossResult result = {};
    return Run(Job::kValue, result) ? PyFloat_FromDouble(result.loss) : nullptr;
  }

  PyObject* Grad(const Gradients& asked) {
    const npy_intp gX_shape[] = {rows_, static_cast<npy_intp>(problem_.X.cols)};
    const DType gX_dtype = GradientType(args_[kX]).value_or(problem_.X.dtype);
    PyArrayObject* const w = AsArray(w_.get());
    const auto& outs = asked.outs;
    if ((outs[kX] && !Gradients::Fits(outs[kX], 2, gX_shape, gX_dtype)) ||
        (outs[kW] &&
         !Gradients::Fits(outs[kW], PyArray_NDIM(w), PyArray_DIMS(w), problem_.w_dtype)) ||
        (outs[kB] && !(PyArray_CheckExact(bias_) &&
                       Gradients::Fits(outs[kB], PyArray_NDIM(AsArray(bias_)),
                                       PyArray_DIMS(AsArray(bias_)), b_.dtype()))) ||
        !asked.Apart()) {
      return nullptr;
    }
    LossResult result = {};
    Ref gX;
    if (asked.wrt.Has(kX)) {
      // What each row's gradient is divided by has to be known before the pass.
      const std::optional<double> by = Divisor();
      if (by) gX = Ref(NewArray(2, gX_shape, gX_dtype));
      if (!gX) return nullptr;
      problem_.gX = DataOf(gX.get());
      problem_.gX_dtype = gX_dtype;
      problem_.gX_stride = gX_shape[1];
      problem_.scale = 1.0 / *by;
      result.divisor = *by;
    }
    const Ref gw = Gradient(Job::kGradient, result);
    const Ref gb(gw ? b_.Gradient() : nullptr);
    if (!gb) return nullptr;
    std::array<PyObject*, kMaxArguments> all = {};
    all[kX] = gX.get();
    all[kW] = gw.get();
    all[kB] = gb.get();
    for (size_t k = 0; k < outs.size(); ++k) {
      if (outs[k] == nullptr) continue;
      if (PyArray_CopyInto(AsArray(outs[k]), AsArray(all[k])) != 0) return nullptr;
      all[k] = outs[k];
    }
    Ref gradients(asked.wrt.Pack(all.data()));
    if (entry_.kind != Kind::kValueAndGrad || !gradients) return gradients.release();
    const Ref loss(PyFloat_FromDouble(result.loss));
    return loss ? PyTuple_Pack(2, loss.get(), gradients.get()) : nullptr;
  }

  PyObject* Hvp() {
    PyObject* const v = Given(args_, entry_.v_at);
    if (v == nullptr || !PyTuple_CheckExact(v) || PyTuple_GET_SIZE(v) != 2) return nullptr;
    const Ref vw = DirectionOf(PyTuple_GET_ITEM(v, 0), AsArray(w_.get()));
    Intercepts vb;
    if (!vw || !vb.TakeDirection(PyTuple_GET_ITEM(v, 1), bias_, problem_.outputs)) return nullptr;
    problem_.vw = DataOf(vw.get());
    problem_.vw_dtype = *KernelArray(vw.get());
    problem_.vb = vb.values();
    LossResult result = {};
    const Ref hw = Gradient(Job::kHvp, result);
    const Ref hb(hw ? b_.Gradient() : nullptr);
    return hb ? PyTuple_Pack(2, hw.get(), hb.get()) : nullptr;
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
        const double factor = (problem_.weight == nullptr ? 1.0 : problem_.weight[row]) / *by;
        for (size_t k = 0; k < problem_.outputs; ++k) c[row * problem_.outputs + k] *= factor;
      }
      return kept.release();
    }
    ClassHessians hessians = {problem_.X.rows, problem_.outputs, c,  DType::kFloat64,
                              nullptr,         problem_.weight,  *by};
    Ref sums;
    if (y_->type != TargetType::kLabel) {
      sums = RowSums(AsArray(y_->block.get()), problem_.X.rows);
      if (!sums) return nullptr;
      hessians.sums = static_cast<const double*>(DataOf(sums.get()));
    }
    return HessiansOf(hessians, 3, shape);
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
    if (!mean_) result.divisor = 1.0;
    const bool done = RunKernel(IsLarge(problem_.X, problem_.outputs),
                                [&](Poll* poll) { return SumLoss(job, problem_, result, poll); });
    return done && !result.bad && !(mean_ && result.weight == 0);
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

  // The sum of the samples' weights before a pass, as NumPy adds them up; nothing, perhaps with an
  // exception set, where it is not finite and positive.
  std::optional<double> Weight() const {
    if (!weight_) return static_cast<double>(rows_);
    size_t bad;
    const double sum = KernelsOfChunks().sum_weights(problem_.weight, problem_.X.rows, &bad);
    if (bad != kNoRow || !(sum > 0) || !std::isfinite(sum)) return std::nullopt;
    // In half the time of PyArray_Sum.
    static PyObject* const kReduce = [] {
      const Ref numpy(PyImport_ImportModule("numpy"));
      const Ref add(numpy ? PyObject_GetAttrString(numpy.get(), "add") : nullptr);
      return add ? PyObject_GetAttrString(add.get(), "reduce") : nullptr;
    }();
    const Ref total(kReduce == nullptr ? nullptr : PyObject_CallOneArg(kReduce, weight_.get()));
    double value;
    if (!total || !ReadDouble(total.get(), &value)) return std::nullopt;
    return value;
  }

  std::optional<double> Divisor() const { return mean_ ? Weight() : 1.0; }

  const LossEntry& entry_;
  const LossKernels& kernels_;
  const Arguments& args_;
  PyObject* bias_ = nullptr;
  UserDesign design_;
  Ref w_, weight_;
  std::optional<Targets> y_;
  Intercepts b_;
  npy_intp rows_ = 0, outputs_ = 1;
  std::optional<npy_intp> axis_;  // of the outputs, where they have one
  bool mean_ = true;
  LinearProblem problem_ = {};
};

PyObject* CallLoss(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const LossEntry&>(own);
  Gradients gradients;
  if (entry.has_gradients() && !gradients.Ask(entry, args)) return nullptr;
  LossCall call(entry, args);
  if (!call.Take()) return nullptr;
  switch (entry.kind) {
    case Kind::kValue:
      return call.Value();
    case Kind::kValueAndGrad:
    case Kind::kGrad:
      return call.Grad(gradients);
    case Kind::kHvp:
      return call.Hvp();
    case Kind::kCurvature:
      return call.Curvature();
    case Kind::kPartial:
      return call.Partial();
  }
  return nullptr;
}

// --- losses of single predictions ----------------------------------------------------------------

struct PointwiseEntry : MethodEntry {
  double parameter;
  enum class Kind : uint8_t { kValue, kDerivative, kValueAndDerivative, kSecondDerivative, kVjp };
  Kind kind;
  PerTarget<const LossKernels*> kernels;
};

template <typename T>
void Pull(const T* slopes, const T* g, size_t stack, size_t rows, size_t outputs, T* out) {
  for (size_t i = 0; i < stack * rows; ++i) {
    const T* const of_row = slopes + i % rows * outputs;
    for (size_t k = 0; k < outputs; ++k) out[i * outputs + k] = g[i] * of_row[k];
  }
}

// Predictions, targets and a cotangent, alike in shape; what the methods return is as in LossCall.
class PointwiseCall {
 public:
  explicit PointwiseCall(const PointwiseEntry& entry)
      : entry_(entry), kernels_(*entry.kernels.Active()) {}

  bool Take(const Arguments& args) {
    const bool coupled = kernels_.coupled, pulls = entry_.kind == PointwiseEntry::Kind::kVjp;
    std::array<PyObject*, 3> given = {args[0], args[1], pulls ? args[2] : nullptr};
    // A list's own code may run now, before anything is looked at.
    if (PyList_CheckExact(given[1]) || PyTuple_CheckExact(given[1]) || PyBool_Check(given[1]) ||
        PyArray_IsScalar(given[1], Generic) || (coupled && PyLong_CheckExact(given[1]))) {
      y_ = Ref(PyArray_FROM_O(given[1]));
      if (!y_) {
        LeaveToPython();
        return false;
      }
    } else if (PyArray_CheckExact(given[1])) {
      y_ = Ref(Py_NewRef(given[1]));
    }
    const bool fills[] = {IsNumber(given[0]), IsNumber(given[1]), pulls && IsNumber(given[2])};
    // Integer targets have no say in the dtype.
    const bool integers = y_ && HasIntegers(y_.get());
    if (y_) given[1] = integers ? nullptr : y_.get();
    if (!x_.Take(given.data(), given.size()) || x_[0] == nullptr || (pulls && !x_[2])) return false;
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
    if (!pulls) return true;
    g_ = Ref(Py_NewRef(reinterpret_cast<PyObject*>(x_[2])));
    if (fills[2] && !Fill(g_, true, ndim_)) return false;
    PyArrayObject* const g = AsArray(g_.get());
    stack_ = PyArray_NDIM(g) - ndim_;
    if (stack_ < 0 || stack_ + z_ndim_ > NPY_MAXDIMS ||
        !std::equal(shape_.begin(), shape_.begin() + ndim_, PyArray_DIMS(g) + stack_)) {
      return false;
    }
    std::copy_n(PyArray_DIMS(g), stack_, out_shape_.begin());
    std::copy_n(shape_.begin(), z_ndim_, out_shape_.begin() + stack_);
    return true;
  }

  PyObject* Call() {
    using Kind = PointwiseEntry::Kind;
    switch (entry_.kind) {
      case Kind::kValue:
        return Give(Map(Wanted::kLoss));
      case Kind::kDerivative:
        return Give(Map(Wanted::kSlope));
      case Kind::kValueAndDerivative: {
        const Ref value(Give(Map(Wanted::kLoss)));
        const Ref derivative(value ? Give(Map(Wanted::kSlope)) : nullptr);
        return derivative ? PyTuple_Pack(2, value.get(), derivative.get()) : nullptr;
      }
      case Kind::kSecondDerivative:
        return kernels_.coupled ? Hessians() : Give(Map(Wanted::kCurvature));
      case Kind::kVjp:
        return Vjp();
    }
    return nullptr;
  }

 private:
  // Gives a number that fills the first axes of the shape. False, perhaps with an exception set,
  // for an array of another shape.
  bool Fill(Ref& array, bool number, int ndim) const {
    PyArrayObject* const given = AsArray(array.get());
    if (!number || ndim == 0) {
      return PyArray_NDIM(given) == ndim &&
             std::equal(shape_.begin(), shape_.begin() + ndim, PyArray_DIMS(given));
    }
    auto shape = shape_;  // which NumPy does not promise to leave alone
    Ref filled(PyArray_SimpleNew(ndim, shape.data(), PyArray_TYPE(given)));
    if (!filled || PyArray_CopyInto(AsArray(filled.get()), given) != 0) return false;
    array = std::move(filled);
    return true;
  }

  Ref Map(Wanted wanted) const {
    Ref out(NewArray(wanted == Wanted::kLoss ? ndim_ : z_ndim_, shape_.data(), problem_.dtype));
    const bool done =
        out && RunKernel(problem_.rows * problem_.outputs > kReleaseGil,
                         [&](Poll* p) { return MapLoss(wanted, problem_, DataOf(out.get()), p); });
    return done ? std::move(out) : Ref();
  }

  static PyObject* Give(Ref array) {
    return array ? PyArray_Return(AsArray(array.release())) : nullptr;
  }

  PyObject* Hessians() const {
    if (z_ndim_ == NPY_MAXDIMS) return nullptr;
    const Ref p = Map(Wanted::kCurvature);
    if (!p) return nullptr;
    ClassHessians hessians = {
        problem_.rows, problem_.outputs, DataOf(p.get()), problem_.dtype, nullptr, nullptr, 1.0};
    Ref sums;
    if (problem_.y_type != TargetType::kLabel) {
      sums = RowSums(AsArray(y_.get()), problem_.rows);
      if (!sums) return nullptr;
      hessians.sums = static_cast<const double*>(DataOf(sums.get()));
    }
    auto shape = shape_;
    shape[static_cast<size_t>(z_ndim_)] = static_cast<npy_intp>(problem_.outputs);
    return HessiansOf(hessians, z_ndim_ + 1, shape.data());
  }

  PyObject* Vjp() const {
    const Ref slopes = Map(Wanted::kSlope);
    Ref out(slopes ? NewArray(stack_ + z_ndim_, out_shape_.data(), problem_.dtype) : nullptr);
    if (!out) return nullptr;
    const auto stack = static_cast<size_t>(PyArray_MultiplyList(out_shape_.data(), stack_));
    const auto pull = [&](auto type) {
      using T = decltype(type);
      Pull(static_cast<const T*>(DataOf(slopes.get())), static_cast<const T*>(DataOf(g_.get())),
           stack, problem_.rows, problem_.outputs, static_cast<T*>(DataOf(out.get())));
    };
    const bool large = static_cast<size_t>(PyArray_SIZE(AsArray(out.get()))) > kReleaseGil;
    const bool done = RunKernel(large, [&](Poll* poll) {
      const KernelFpEnv fp_env(poll);
      if (problem_.dtype == DType::kFloat32) {
        pull(float{});
      } else {
        pull(double{});
      }
      return Outcome::kDone;
    });
    return done ? Give(std::move(out)) : nullptr;
  }

  const PointwiseEntry& entry_;
  const LossKernels& kernels_;
  PlainOperands x_;
  Ref z_, y_, g_;
  // Copies: while a kernel runs without the GIL, an array may get another shape.
  std::array<npy_intp, NPY_MAXDIMS> shape_, out_shape_;  // of z, and of its cotangents
  int ndim_ = 0, z_ndim_ = 0, stack_ = 0;                // of the values, of z, in front in g
  PointwiseProblem problem_ = {};
};

PyObject* CallPointwise(const MethodEntry& own, const Arguments& args) {
  PointwiseCall call(static_cast<const PointwiseEntry&>(own));
  return call.Take(args) ? call.Call() : nullptr;
}

// --- the engine ----------------------------------------------------------------------------------

// All checks guard memory: the Python layer has told the caller what is wrong before.
PyObject* Refuse(const char* function, const char* argument) {
  return PyErr_Format(PyExc_TypeError, "%s: %s is not what the engine takes", function, argument);
}

struct NamedJob {
  std::string_view name;
  Job job;
};
constexpr NamedJob kJobs[] = {{"value", Job::kValue},   {"gradient", Job::kGradient},
                              {"hvp", Job::kHvp},       {"curvature", Job::kCurvature},
                              {"curved", Job::kCurved}, {"predict", Job::kPredict}};

// The row of the table by a Python string; null with an exception set.
const LossKernels* LossNamed(PyObject* name) {
  const char* const text = PyUnicode_AsUTF8(name);
  if (text == nullptr) return nullptr;
  const std::optional<size_t> row = FindLoss(text);
  if (row) return &LossOps()[*row];
  PyErr_Format(PyExc_KeyError, "no native loss '%s'", text);
  return nullptr;
}

const double* DoublesOf(PyObject* array) { return static_cast<const double*>(DataOf(array)); }

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
    kJob,
    kV,
    kKept,
    kGX,
    kScale,
    kCount
  };
  if (nargs != kCount) return PyErr_Format(PyExc_TypeError, "%s takes %d arguments", kName, kCount);

  LinearProblem problem = {};
  problem.loss = LossNamed(args[kLoss]);
  if (problem.loss == nullptr) return nullptr;
  if (!ReadDouble(args[kParameter], &problem.parameter) ||
      !ReadDouble(args[kScale], &problem.scale)) {
    return nullptr;
  }
  const char* const job_name = PyUnicode_AsUTF8(args[kJob]);
  if (job_name == nullptr) return nullptr;
  const auto* const job = std::find_if(std::begin(kJobs), std::end(kJobs),
                                       [&](const NamedJob& j) { return j.name == job_name; });
  if (job == std::end(kJobs)) return Refuse(kName, "job");

  const std::optional<Design> X = EngineDesign(args[kDesign]);
  if (!X) return Refuse(kName, "X");
  problem.X = *X;
  if (!PyArray_CheckExact(args[kBias])) return Refuse(kName, "b");
  const auto outputs = static_cast<size_t>(PyArray_SIZE(AsArray(args[kBias])));
  if (outputs == 0 || !IsBlock(args[kBias], NPY_DOUBLE, outputs)) return Refuse(kName, "b");
  problem.outputs = outputs;
  problem.b = DoublesOf(args[kBias]);
  if (!IsBlock(args[kWeights], NPY_DOUBLE, X->cols * outputs)) return Refuse(kName, "w");
  problem.w = DataOf(args[kWeights]);
  problem.w_dtype = DType::kFloat64;
  const bool predicts = job->job == Job::kPredict;
  if (!predicts) {
    const std::optional<TargetType> y_type =
        TargetsOf(args[kTargets], X->rows, outputs, problem.loss->coupled);
    if (!y_type) return Refuse(kName, "y");
    problem.y = DataOf(args[kTargets]);
    problem.y_type = *y_type;
  }
  if (!predicts && args[kSampleWeight] != Py_None) {
    if (!IsBlock(args[kSampleWeight], NPY_DOUBLE, X->rows)) return Refuse(kName, "sample_weight");
    problem.weight = DoublesOf(args[kSampleWeight]);
  }
  const bool needs_v = job->job == Job::kHvp || job->job == Job::kCurved;
  if (needs_v) {
    PyObject *vw, *vb;
    if (!PyTuple_Check(args[kV]) || !PyArg_ParseTuple(args[kV], "OO", &vw, &vb) ||
        !IsBlock(vw, NPY_DOUBLE, X->cols * outputs) || !IsBlock(vb, NPY_DOUBLE, outputs)) {
      PyErr_Clear();
      return Refuse(kName, "v");
    }
    problem.vw = DoublesOf(vw);
    problem.vw_dtype = DType::kFloat64;
    problem.vb = DoublesOf(vb);
  }
  const bool writes_kept = job->job != Job::kCurved;
  const bool needs_kept = job->job == Job::kCurvature || job->job == Job::kCurved || predicts;
  if (needs_kept || (job->job == Job::kGradient && args[kKept] != Py_None)) {
    if (!(writes_kept ? IsWritableBlock : IsBlock)(args[kKept], NPY_DOUBLE, X->rows * outputs)) {
      return Refuse(kName, "kept");
    }
    problem.kept = static_cast<double*>(DataOf(args[kKept]));
  }
  if (job->job == Job::kGradient && args[kGX] != Py_None) {
    const std::optional<Design> gX = DenseDesign(args[kGX]);
    if (!gX || gX->layout != Layout::kRows || gX->rows != X->rows || gX->cols != X->cols ||
        !PyArray_ISWRITEABLE(AsArray(args[kGX]))) {
      return Refuse(kName, "gX");
    }
    problem.gX = DataOf(args[kGX]);
    problem.gX_dtype = gX->dtype;
    problem.gX_stride = gX->stride;
  }

  const bool with_gradient =
      job->job == Job::kGradient || job->job == Job::kHvp || job->job == Job::kCurved;
  npy_intp shape[] = {static_cast<npy_intp>(X->cols), static_cast<npy_intp>(outputs)};
  const Ref gw(with_gradient ? PyArray_ZEROS(2, shape, NPY_DOUBLE, 0) : Py_NewRef(Py_None));
  const Ref gb(with_gradient ? PyArray_ZEROS(1, shape + 1, NPY_DOUBLE, 0) : Py_NewRef(Py_None));
  if (!gw || !gb) return nullptr;
  LossResult result = {};
  result.divisor = 1.0;
  result.gw_dtype = result.gb_dtype = DType::kFloat64;
  if (with_gradient) {
    result.gw = DataOf(gw.get());
    result.gb = DataOf(gb.get());
  }
  if (X->rows > 0) {
    const bool done = RunKernel(
        IsLarge(*X, outputs), [&](Poll* poll) { return SumLoss(job->job, problem, result, poll); });
    if (!done) return nullptr;
  }
  if (result.bad) {
    constexpr const char* kArguments[] = {"X", "y", "sample_weight"};
    const Ref error(Py_BuildValue("(sn)", kArguments[static_cast<size_t>(result.bad->argument)],
                                  static_cast<Py_ssize_t>(result.bad->row)));
    if (error) PyErr_SetObject(PyExc_ValueError, error.get());
    return nullptr;
  }
  return Py_BuildValue("(dOO)", result.loss, gb.get(), gw.get());
}

PyObject* LossPointwise(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  constexpr const char* kName = "loss_pointwise";
  enum { kLoss, kParameter, kZ, kTargets, kOrder, kCount };
  if (nargs != kCount) return PyErr_Format(PyExc_TypeError, "%s takes %d arguments", kName, kCount);
  PointwiseProblem problem = {};
  problem.loss = LossNamed(args[kLoss]);
  if (problem.loss == nullptr) return nullptr;
  if (!ReadDouble(args[kParameter], &problem.parameter)) return nullptr;
  const long order = PyLong_AsLong(args[kOrder]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  constexpr Wanted kOrders[] = {Wanted::kLoss, Wanted::kSlope, Wanted::kCurvature};
  if (order < 0 || order > 2) return Refuse(kName, "order");
  const std::optional<DType> dtype = KernelArray(args[kZ]);
  if (!dtype || !PyArray_IS_C_CONTIGUOUS(AsArray(args[kZ]))) return Refuse(kName, "z");
  PyArrayObject* const z = AsArray(args[kZ]);
  const bool coupled = problem.loss->coupled;
  if (coupled && (PyArray_NDIM(z) != 2 || PyArray_DIM(z, 1) == 0)) return Refuse(kName, "z");
  problem.outputs = coupled ? static_cast<size_t>(PyArray_DIM(z, 1)) : 1;
  problem.rows = static_cast<size_t>(PyArray_SIZE(z)) / problem.outputs;
  const std::optional<TargetType> y_type =
      TargetsOf(args[kTargets], problem.rows, problem.outputs, coupled);
  if (!y_type) return Refuse(kName, "y");
  problem.z = PyArray_DATA(z);
  problem.dtype = *dtype;
  problem.y = DataOf(args[kTargets]);
  problem.y_type = *y_type;
  Ref out(NewArray(coupled && order == 0 ? 1 : PyArray_NDIM(z), PyArray_DIMS(z), *dtype));
  if (!out) return nullptr;
  const bool done = RunKernel(static_cast<size_t>(PyArray_SIZE(z)) > kReleaseGil, [&](Poll* poll) {
    return MapLoss(kOrders[order], problem, DataOf(out.get()), poll);
  });
  return done ? out.release() : nullptr;
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
                    3, shape);
}

PyMethodDef kEngine[] = {
    {"loss_sums", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(LossSums)), METH_FASTCALL,
     "loss_sums(name, parameter, X, y, w, b, sample_weight, job, v, kept, gX, scale, /)\n--\n\n"},
    {"loss_pointwise", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(LossPointwise)),
     METH_FASTCALL, "loss_pointwise(name, parameter, z, y, order, /)\n--\n\n"},
    {"softmax_hessians", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(SoftmaxHessians)),
     METH_FASTCALL, "softmax_hessians(p, sums, /)\n--\n\n"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyObject* NewLossMethod(const char* loss, double parameter, const char* method, PyObject* sums,
                        PyObject* fallback) {
  const std::optional<size_t> row = FindLoss(loss);
  const auto make = [&](auto entry, auto kind, FastPath path, size_t relied_on) -> PyObject* {
    if (!entry->signature.Read(fallback, relied_on)) return nullptr;
    entry->parameter = parameter;
    entry->kind = kind;
    entry->kernels = RowOf(LossTables(), *row);
    return NewMethod(path, std::move(entry), fallback);
  };
  constexpr std::string_view kKinds[] = {"value", "value_and_grad", "grad",
                                         "hvp",   "curvature",      "partial"};
  const auto* const kind = std::find(std::begin(kKinds), std::end(kKinds), method);
  if (row && kind != std::end(kKinds)) {
    auto entry = std::make_unique<LossEntry>();
    Signature signature;
    if (!signature.Read(fallback, kW + 1)) return nullptr;
    entry->sample_weight_at = signature.Find("sample_weight");
    entry->out_at = signature.Find("out");
    entry->reduction_at = signature.Find("reduction");
    entry->wrt_at = signature.Find("wrt");
    entry->v_at = signature.Find("v");
    const auto of = static_cast<Kind>(kind - kKinds);
    if (of == Kind::kPartial && !entry->sums.Read(sums)) return Refuse("loss_method", "sums");
    return make(std::move(entry), of, CallLoss, kW + 1);
  }
  constexpr std::string_view kPointwise[] = {"pointwise", "pointwise.derivative",
                                             "pointwise.value_and_derivative",
                                             "pointwise.second_derivative", "pointwise.vjp"};
  const auto* const single = std::find(std::begin(kPointwise), std::end(kPointwise), method);
  if (row && single != std::end(kPointwise)) {
    const auto of = static_cast<PointwiseEntry::Kind>(single - kPointwise);
    return make(std::make_unique<PointwiseEntry>(), of, CallPointwise,
                of == PointwiseEntry::Kind::kVjp ? 3 : 2);
  }
  PyErr_Format(PyExc_KeyError, "no native method '%s' of a loss '%s'", method, loss);
  return nullptr;
}

bool RegisterLossEngine(PyObject* module) { return PyModule_AddFunctions(module, kEngine) == 0; }

}  // namespace pullback

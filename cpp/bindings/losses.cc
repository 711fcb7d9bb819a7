// Losses as fast callables, loss.value_and_grad(X, y, w, b), and the engine of all other methods.
#include "bindings/losses.h"

#include <algorithm>
#include <array>
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

enum class Kind : uint8_t { kValue, kValueAndGrad, kGrad, kHvp };

struct LossEntry : MethodEntry {
  double parameter;
  Kind kind;
  PerTarget<const LossKernels*> kernels;
  // Where arguments stand in the signature.
  std::optional<size_t> sample_weight_at, out_at, reduction_at, wrt_at, v_at;
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

// Targets as they are given, or a copy of integers in the type that kernels read.
struct Targets {
  Ref block;
  TargetType type;

  // Nothing, perhaps with an exception set, for others.
  static std::optional<Targets> From(PyObject* y, npy_intp rows, std::optional<npy_intp> outputs,
                                     bool coupled) {
    if (!PyArray_CheckExact(y)) return std::nullopt;
    const bool labels = coupled && PyArray_NDIM(AsArray(y)) == 1;
    if (!HasShape(y, rows, labels ? std::nullopt : outputs)) return std::nullopt;
    const std::optional<DType> dtype = KernelArray(y);
    if (dtype && !labels && PyArray_IS_C_CONTIGUOUS(AsArray(y))) {
      return Targets{Ref(Py_NewRef(y)), TargetOf(*dtype)};
    }
    // The largest of uint64 are no int64.
    if (!HasIntegers(y) || (labels && PyTypeNum_ISUNSIGNED(PyArray_TYPE(AsArray(y))))) {
      return std::nullopt;
    }
    Ref block(PyArray_FROM_OTF(y, labels ? NPY_INT64 : NPY_DOUBLE, NPY_ARRAY_CARRAY_RO));
    if (!block) return std::nullopt;
    return Targets{std::move(block), labels ? TargetType::kLabel : TargetType::kFloat64};
  }
};

// The intercepts' values, and their gradient in their own kind: None, an array with one for each
// output, or for a single output a Python number or a NumPy scalar.
class Intercepts {
 public:
  // False for any other kind.
  bool Take(PyObject* b, size_t outputs) {
    b_ = b;
    outputs_ = outputs;
    if (b == Py_None) {
      std::fill_n(values_.begin(), outputs, 0.0);
      return true;
    }
    if (outputs == 1 && (PyFloat_CheckExact(b) || PyArray_IsScalar(b, Double))) {
      values_[0] = PyFloat_AS_DOUBLE(b);
      return true;
    }
    if (outputs == 1 && PyLong_CheckExact(b)) {
      values_[0] = PyLong_AsDouble(b);
      const bool fits = PyErr_Occurred() == nullptr;
      PyErr_Clear();
      return fits;
    }
    if (outputs == 1 && PyArray_IsScalar(b, Float)) {
      dtype_ = DType::kFloat32;
      values_[0] = double{PyArrayScalar_VAL(b, Float)};
      return true;
    }
    const std::optional<DType> dtype = KernelArray(b);
    if (!dtype || PyArray_NDIM(AsArray(b)) > 1 || !PyArray_IS_C_CONTIGUOUS(AsArray(b)) ||
        static_cast<size_t>(PyArray_SIZE(AsArray(b))) != outputs) {
      return false;
    }
    dtype_ = *dtype;
    if (dtype_ == DType::kFloat32) {
      std::copy_n(static_cast<const float*>(DataOf(b)), outputs, values_.begin());
    } else {
      std::copy_n(static_cast<const double*>(DataOf(b)), outputs, values_.begin());
    }
    return true;
  }

  const double* values() const { return values_.data(); }
  DType dtype() const { return dtype_; }
  void* gradient() { return gradient_.data(); }  // room for one of dtype() for each output

  PyObject* Gradient() const {
    if (b_ == Py_None) return Py_NewRef(Py_None);
    if (PyFloat_CheckExact(b_) || PyLong_CheckExact(b_)) return PyFloat_FromDouble(gradient_[0]);
    const bool is_array = PyArray_CheckExact(b_);
    auto size = static_cast<npy_intp>(outputs_);
    PyObject* const result =
        PyArray_SimpleNew(is_array ? PyArray_NDIM(AsArray(b_)) : 0, &size, TypeNumber(dtype_));
    if (result == nullptr) return nullptr;
    std::memcpy(DataOf(result), gradient_.data(), outputs_ * ItemSize(dtype_));
    return is_array ? result : PyArray_Return(AsArray(result));
  }

 private:
  PyObject* b_ = nullptr;
  size_t outputs_ = 1;
  DType dtype_ = DType::kFloat64;
  std::array<double, kMaxOutputs> values_, gradient_;
};

// A direction in the shapes of w and b, as float64.
struct Direction {
  Ref w;
  Intercepts b;

  // False, perhaps with an exception set, for what Python has to look at.
  bool Take(PyObject* v, PyObject* like_w, PyObject* like_b, size_t outputs) {
    if (v == nullptr || !PyTuple_CheckExact(v) || PyTuple_GET_SIZE(v) != 2) return false;
    PyObject* const given = PyTuple_GET_ITEM(v, 0);
    PyObject* const intercepts = PyTuple_GET_ITEM(v, 1);
    if (!KernelArray(given) || !SameShape(AsArray(given), AsArray(like_w)) ||
        (like_b == Py_None) != (intercepts == Py_None) || Axes(intercepts) != Axes(like_b) ||
        !b.Take(intercepts, outputs)) {
      return false;
    }
    w = Ref(PyArray_FROM_OTF(given, NPY_DOUBLE, NPY_ARRAY_CARRAY_RO));
    return static_cast<bool>(w);
  }

 private:
  static int Axes(PyObject* object) {
    return PyArray_CheckExact(object) ? PyArray_NDIM(AsArray(object)) : 0;
  }
};

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

PyObject* LossCall(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const LossEntry&>(own);
  const LossKernels& kernels = *entry.kernels.Active();
  const bool coupled = kernels.coupled;
  PyObject* const bias = args[kB] == nullptr ? Py_None : args[kB];
  const bool has_gradient = entry.kind != Kind::kValue;
  Gradients gradients;
  if (has_gradient && !gradients.Ask(entry, args)) return nullptr;
  SparseMatrix sparse;
  std::optional<Design> X = DenseDesign(args[kX]);
  const bool dense = X.has_value();
  if (!X) X = sparse.From(args[kX]);
  const std::optional<DType> w = KernelArray(args[kW]);
  if (!X || X->rows == 0 || !w || !PyArray_IS_C_CONTIGUOUS(AsArray(args[kW]))) return nullptr;
  const auto rows = static_cast<npy_intp>(X->rows), cols = static_cast<npy_intp>(X->cols);
  std::optional<npy_intp> axis;
  if (PyArray_NDIM(AsArray(args[kW])) == 2) axis = PyArray_DIM(AsArray(args[kW]), 1);
  const auto outputs = static_cast<size_t>(axis.value_or(1));
  if (!HasShape(args[kW], cols, axis) || outputs < (coupled ? 2U : 1U) || outputs > kMaxOutputs) {
    return nullptr;
  }
  const std::optional<Targets> y = Targets::From(args[kY], rows, axis, coupled);
  if (!y) return nullptr;
  Ref weight;
  if (PyObject* const given = Given(args, entry.sample_weight_at)) {
    if (!PyArray_CheckExact(given) || !HasShape(given, rows, std::nullopt) ||
        (!KernelArray(given) && !HasIntegers(given))) {
      return nullptr;
    }
    weight = Ref(PyArray_FROM_OTF(given, NPY_DOUBLE, NPY_ARRAY_CARRAY_RO));
    if (!weight) return nullptr;
  }
  Intercepts b;
  if (!b.Take(bias, outputs)) return nullptr;
  PyObject* const reduction = entry.reduction_at ? args[*entry.reduction_at] : nullptr;
  const std::optional<bool> mean = IsMean(reduction);
  if (!mean) return nullptr;
  Direction v;
  if (entry.kind == Kind::kHvp && !v.Take(Given(args, entry.v_at), args[kW], bias, outputs)) {
    return nullptr;
  }

  const npy_intp gw_shape[] = {cols, static_cast<npy_intp>(outputs)};
  const npy_intp gX_shape[] = {rows, cols};
  const int gw_ndim = 1 + axis.has_value();
  const auto& outs = gradients.outs;
  if ((outs[kX] && !(dense && Gradients::Fits(outs[kX], 2, gX_shape, X->dtype))) ||
      (outs[kW] && !Gradients::Fits(outs[kW], gw_ndim, gw_shape, *w)) ||
      (outs[kB] &&
       !(PyArray_CheckExact(bias) && Gradients::Fits(outs[kB], PyArray_NDIM(AsArray(bias)),
                                                     PyArray_DIMS(AsArray(bias)), b.dtype()))) ||
      !gradients.Apart()) {
    return nullptr;
  }
  const bool wants_gX = has_gradient && gradients.wrt.Has(kX);
  // What each row's gradient is divided by has to be known before the pass.
  if (wants_gX && (!dense || weight)) return nullptr;
  Ref gw(has_gradient ? NewArray(gw_ndim, gw_shape, *w) : nullptr);
  Ref gX(wants_gX ? NewArray(2, gX_shape, X->dtype) : nullptr);
  if ((has_gradient && !gw) || (wants_gX && !gX)) return nullptr;

  LinearProblem problem = {};
  problem.X = *X;
  problem.loss = &kernels;
  problem.parameter = entry.parameter;
  problem.outputs = outputs;
  problem.y = DataOf(y->block.get());
  problem.y_type = y->type;
  problem.w = DataOf(args[kW]);
  problem.w_dtype = *w;
  problem.b = b.values();
  problem.weight = weight ? static_cast<const double*>(DataOf(weight.get())) : nullptr;
  if (entry.kind == Kind::kHvp) {
    problem.vw = static_cast<const double*>(DataOf(v.w.get()));
    problem.vb = v.b.values();
  }
  if (gX) {
    problem.gX = DataOf(gX.get());
    problem.gX_dtype = X->dtype;
    problem.gX_stride = cols;
    problem.scale = 1.0 / (*mean ? static_cast<double>(rows) : 1.0);
  }
  LossResult result = {};
  result.mean = *mean;
  result.gw = gw ? DataOf(gw.get()) : nullptr;
  result.gb = b.gradient();
  result.gb_dtype = b.dtype();
  const Job job = entry.kind == Kind::kValue ? Job::kValue
                  : entry.kind == Kind::kHvp ? Job::kHvp
                                             : Job::kGradient;
  const bool done = RunKernel(IsLarge(*X, outputs),
                              [&](Poll* poll) { return SumLoss(job, problem, result, poll); });
  if (!done || result.bad || (result.mean && result.weight == 0)) return nullptr;
  if (entry.kind == Kind::kValue) return PyFloat_FromDouble(result.loss);
  const Ref gb(b.Gradient());
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
  Ref asked(gradients.wrt.Pack(all.data()));
  if (entry.kind != Kind::kValueAndGrad || !asked) return asked.release();
  const Ref loss(PyFloat_FromDouble(result.loss));
  return loss ? PyTuple_Pack(2, loss.get(), asked.get()) : nullptr;
}

// --- losses of single predictions
// ------------------------------------------------------------------

struct PointwiseEntry : MethodEntry {
  double parameter;
  enum class Kind : uint8_t { kValue, kDerivative, kValueAndDerivative, kSecondDerivative, kVjp };
  Kind kind;
  PerTarget<const LossKernels*> kernels;
};

// Predictions and targets of one shape and dtype; of other arguments, and of classes, nothing.
PyObject* PointwiseCall(const MethodEntry& own, const Arguments& args) {
  using Kind = PointwiseEntry::Kind;
  const auto& entry = static_cast<const PointwiseEntry&>(own);
  const LossKernels& kernels = *entry.kernels.Active();
  const bool pulls = entry.kind == Kind::kVjp;
  PlainOperands x;
  if (kernels.coupled || !x.Take(args.data(), pulls ? 3 : 2)) return nullptr;
  for (size_t i = 0; i < x.count(); ++i) {
    if (x[i] == nullptr || !SameShape(x[0], x[i])) return nullptr;
  }
  // Integer targets have no say in the dtype.
  if (!KernelArray(args[kY]) && x.dtype() != KernelArray(args[kX])) return nullptr;
  PointwiseProblem problem = {};
  problem.loss = &kernels;
  problem.parameter = entry.parameter;
  problem.outputs = 1;
  problem.rows = static_cast<size_t>(PyArray_SIZE(x[0]));
  problem.z = x.data(0);
  problem.dtype = x.dtype();
  problem.y = x.data(1);
  problem.y_type = TargetOf(x.dtype());
  const auto map = [&](Wanted wanted) {
    Ref out(NewArray(PyArray_NDIM(x[0]), PyArray_DIMS(x[0]), x.dtype()));
    const bool done = out && RunKernel(problem.rows > kReleaseGil, [&](Poll* poll) {
                        return MapLoss(wanted, problem, DataOf(out.get()), poll);
                      });
    return done ? std::move(out) : Ref();
  };
  const auto give = [](Ref array) {
    return array ? PyArray_Return(AsArray(array.release())) : nullptr;
  };
  if (entry.kind == Kind::kValue) return give(map(Wanted::kLoss));
  if (entry.kind == Kind::kSecondDerivative) return give(map(Wanted::kCurvature));
  if (entry.kind == Kind::kValueAndDerivative) {
    const Ref value(give(map(Wanted::kLoss)));
    const Ref derivative(value ? give(map(Wanted::kSlope)) : nullptr);
    return derivative ? PyTuple_Pack(2, value.get(), derivative.get()) : nullptr;
  }
  Ref derivative = map(Wanted::kSlope);
  if (!derivative) return nullptr;
  if (pulls) {
    const auto scale = [&](auto* slopes, const auto* g) {
      for (size_t i = 0; i < problem.rows; ++i) slopes[i] *= g[i];
    };
    if (x.dtype() == DType::kFloat32) {
      scale(static_cast<float*>(DataOf(derivative.get())), static_cast<const float*>(x.data(2)));
    } else {
      scale(static_cast<double*>(DataOf(derivative.get())), static_cast<const double*>(x.data(2)));
    }
  }
  return give(std::move(derivative));
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
constexpr NamedJob kJobs[] = {{"value", Job::kValue},
                              {"gradient", Job::kGradient},
                              {"hvp", Job::kHvp},
                              {"curvature", Job::kCurvature},
                              {"curved", Job::kCurved}};

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
  const std::optional<TargetType> y_type =
      TargetsOf(args[kTargets], X->rows, outputs, problem.loss->coupled);
  if (!y_type) return Refuse(kName, "y");
  problem.y = DataOf(args[kTargets]);
  problem.y_type = *y_type;
  if (args[kSampleWeight] != Py_None) {
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
    problem.vb = DoublesOf(vb);
  }
  const bool writes_kept = job->job == Job::kCurvature || job->job == Job::kGradient;
  const bool needs_kept = job->job == Job::kCurvature || job->job == Job::kCurved;
  if (needs_kept || (writes_kept && args[kKept] != Py_None)) {
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

  const bool with_gradient = job->job != Job::kValue && job->job != Job::kCurvature;
  npy_intp shape[] = {static_cast<npy_intp>(X->cols), static_cast<npy_intp>(outputs)};
  const Ref gw(with_gradient ? PyArray_ZEROS(2, shape, NPY_DOUBLE, 0) : Py_NewRef(Py_None));
  const Ref gb(with_gradient ? PyArray_ZEROS(1, shape + 1, NPY_DOUBLE, 0) : Py_NewRef(Py_None));
  if (!gw || !gb) return nullptr;
  LossResult result = {};
  result.gb_dtype = DType::kFloat64;
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

PyMethodDef kEngine[] = {
    {"loss_sums", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(LossSums)), METH_FASTCALL,
     "loss_sums(name, parameter, X, y, w, b, sample_weight, job, v, kept, gX, scale, /)\n--\n\n"},
    {"loss_pointwise", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(LossPointwise)),
     METH_FASTCALL, "loss_pointwise(name, parameter, z, y, order, /)\n--\n\n"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyObject* NewLossMethod(const char* loss, double parameter, const char* method,
                        PyObject* fallback) {
  const std::optional<size_t> row = FindLoss(loss);
  const auto make = [&](auto entry, auto kind, FastPath path, size_t relied_on) -> PyObject* {
    if (!entry->signature.Read(fallback, relied_on)) return nullptr;
    entry->parameter = parameter;
    entry->kind = kind;
    entry->kernels = RowOf(LossTables(), *row);
    return NewMethod(path, std::move(entry), fallback);
  };
  constexpr std::string_view kKinds[] = {"value", "value_and_grad", "grad", "hvp"};
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
    return make(std::move(entry), static_cast<Kind>(kind - kKinds), LossCall, kW + 1);
  }
  constexpr std::string_view kPointwise[] = {"pointwise", "pointwise.derivative",
                                             "pointwise.value_and_derivative",
                                             "pointwise.second_derivative", "pointwise.vjp"};
  const auto* const single = std::find(std::begin(kPointwise), std::end(kPointwise), method);
  if (row && single != std::end(kPointwise)) {
    const auto of = static_cast<PointwiseEntry::Kind>(single - kPointwise);
    return make(std::make_unique<PointwiseEntry>(), of, PointwiseCall,
                of == PointwiseEntry::Kind::kVjp ? 3 : 2);
  }
  PyErr_Format(PyExc_KeyError, "no native method '%s' of a loss '%s'", method, loss);
  return nullptr;
}

bool RegisterLossEngine(PyObject* module) { return PyModule_AddFunctions(module, kEngine) == 0; }

}  // namespace pullback

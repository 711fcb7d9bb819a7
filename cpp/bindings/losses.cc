// Losses as fast callables, loss.value_and_grad(X, y, w, b), and the engine of all other methods.
#include "bindings/losses.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string_view>

#include "bindings/call.h"
#include "bindings/method.h"
#include "bindings/results.h"
#include "kernels/losses.h"

namespace pullback {
namespace {

// X of more elements than this, times the outputs, is read without the GIL.
constexpr size_t kReleaseGil = 16384;

bool IsLarge(const Design& X, size_t outputs) {
  const bool dense = X.indptr == nullptr;
  return (dense ? X.rows * X.cols : X.entries + X.rows + X.cols) * outputs > kReleaseGil;
}

struct LossEntry : MethodEntry {
  double parameter;
  bool with_gradient;
  PerTarget<const LossKernels*> kernels;
};

// --- X -------------------------------------------------------------------------------------------

// `object` as dense X, if it is an array of rows or columns that kernels can read where it lies.
std::optional<Design> DenseDesign(PyObject* object) {
  const std::optional<DType> dtype = KernelArray(object);
  if (!dtype || PyArray_NDIM(AsArray(object)) != 2) return std::nullopt;
  PyArrayObject* const X = AsArray(object);
  const npy_intp rows = PyArray_DIM(X, 0), cols = PyArray_DIM(X, 1);
  const auto item = static_cast<npy_intp>(ItemSize(*dtype));
  // The stride of an axis of length 1 means nothing, and may be anything.
  const npy_intp down = rows > 1 ? PyArray_STRIDE(X, 0) : item;
  const npy_intp across = cols > 1 ? PyArray_STRIDE(X, 1) : item;
  const bool by_rows = across == item;
  const npy_intp stride = by_rows ? down : across;
  if ((!by_rows && down != item) || stride % item != 0) return std::nullopt;
  return Design{by_rows ? Layout::kRows : Layout::kColumns,
                *dtype,
                false,
                static_cast<size_t>(rows),
                static_cast<size_t>(cols),
                PyArray_DATA(X),
                stride / item,
                nullptr,
                nullptr};
}

// C-contiguous, of `type`, that many elements.
bool IsBlock(PyObject* object, int type, size_t size) {
  if (!PyArray_CheckExact(object)) return false;
  PyArrayObject* const array = AsArray(object);
  return PyArray_TYPE(array) == type && PyArray_ISCARRAY_RO(array) &&
         static_cast<size_t>(PyArray_SIZE(array)) == size;
}

bool IsVector(PyObject* object, int type, size_t size) {
  return IsBlock(object, type, size) && PyArray_NDIM(AsArray(object)) == 1;
}

// A matrix in compressed rows or columns, as in scipy.sparse, of vectors that kernels can read
// where they lie. The kernels check indices and indptr on their way, but for where indptr begins.
std::optional<Design> SparseDesign(std::string_view format, PyObject* data, PyObject* indices,
                                   PyObject* indptr, Py_ssize_t rows, Py_ssize_t cols) {
  const bool by_rows = format == "csr";
  const std::optional<DType> dtype = KernelArray(data);
  constexpr Py_ssize_t kMostCols = Py_ssize_t{1} << 32;  // kernels hold an index in 32 bits
  if ((!by_rows && format != "csc") || !dtype || !PyArray_CheckExact(indices) || rows < 0 ||
      cols < 0 || cols > kMostCols) {
    return std::nullopt;
  }
  const bool wide = PyArray_ITEMSIZE(AsArray(indices)) == 8;
  const int index = wide ? NPY_INT64 : NPY_INT32;
  const auto entries = static_cast<size_t>(PyArray_SIZE(AsArray(data)));
  if (!IsVector(data, TypeNumber(*dtype), entries) || !IsVector(indices, index, entries) ||
      !IsVector(indptr, index, static_cast<size_t>(by_rows ? rows : cols) + 1)) {
    return std::nullopt;
  }
  return Design{by_rows ? Layout::kCsr : Layout::kCsc,
                *dtype,
                wide,
                static_cast<size_t>(rows),
                static_cast<size_t>(cols),
                DataOf(data),
                0,
                DataOf(indices),
                DataOf(indptr),
                entries};
}

// The arrays of a user's sparse matrix, alive for as long as its kernels run.
class SparseMatrix {
 public:
  // Nothing, perhaps with an exception set, unless kernels can read `object` where it lies. Each
  // attribute may be a property, which may change what the others have returned: all of them come
  // before the first look into an array.
  std::optional<Design> From(PyObject* object) {
    if (PyArray_Check(object)) return std::nullopt;
    static PyObject* const kFormat = PyUnicode_InternFromString("format");
    static PyObject* const kShape = PyUnicode_InternFromString("shape");
    static PyObject* const kSorted = PyUnicode_InternFromString("has_sorted_indices");
    static PyObject* const kParts[] = {PyUnicode_InternFromString("data"),
                                       PyUnicode_InternFromString("indices"),
                                       PyUnicode_InternFromString("indptr")};
    const Ref format = Attribute(object, kFormat);
    if (!format || !PyUnicode_CheckExact(format.get())) return std::nullopt;
    const char* const name = PyUnicode_AsUTF8(format.get());
    if (name == nullptr) return std::nullopt;
    const Ref shape = Attribute(object, kShape);
    Py_ssize_t rows, cols;
    if (!shape || !PyTuple_CheckExact(shape.get()) ||
        !PyArg_ParseTuple(shape.get(), "nn", &rows, &cols)) {
      PyErr_Clear();
      return std::nullopt;
    }
    if (std::string_view(name) == "csc") {
      const Ref sorted = Attribute(object, kSorted);
      if (!sorted || sorted.get() != Py_True) return std::nullopt;
    }
    for (size_t i = 0; i < parts_.size(); ++i) {
      parts_[i] = Attribute(object, kParts[i]);
      if (!parts_[i]) return std::nullopt;
    }
    const std::optional<Design> X =
        SparseDesign(name, parts_[0].get(), parts_[1].get(), parts_[2].get(), rows, cols);
    if (!X) return std::nullopt;
    const bool at_zero = X->wide ? *static_cast<const int64_t*>(X->indptr) == 0
                                 : *static_cast<const int32_t*>(X->indptr) == 0;
    return at_zero ? X : std::nullopt;
  }

 private:
  static Ref Attribute(PyObject* object, PyObject* name) {
    Ref value(PyObject_GetAttr(object, name));
    if (!value && PyErr_ExceptionMatches(PyExc_AttributeError)) PyErr_Clear();
    return value;
  }

  std::array<Ref, 3> parts_;
};

// --- the fast way in -----------------------------------------------------------------------------

enum Argument { kX, kY, kW, kB, kWeight, kPositional, kReduction = kPositional, kArguments };

// Positional and keyword arguments in the order above, b and sample_weight None and the reduction
// null where they are missing; false for any other call.
bool Bind(PyObject* const* args, size_t nargs, PyObject* kwnames,
          std::array<PyObject*, kArguments>& bound) {
  static const std::array<PyObject*, kArguments> kNames = {
      PyUnicode_InternFromString("X"),
      PyUnicode_InternFromString("y"),
      PyUnicode_InternFromString("w"),
      PyUnicode_InternFromString("b"),
      PyUnicode_InternFromString("sample_weight"),
      PyUnicode_InternFromString("reduction")};
  const auto nkw = kwnames == nullptr ? size_t{0} : static_cast<size_t>(PyTuple_GET_SIZE(kwnames));
  if (nargs > kPositional) return false;
  bound = {nullptr, nullptr, nullptr, Py_None, Py_None, nullptr};
  std::copy_n(args, nargs, bound.begin());
  std::array<bool, kArguments> given = {};
  for (size_t i = 0; i < nkw; ++i) {
    PyObject* const name = PyTuple_GET_ITEM(kwnames, static_cast<Py_ssize_t>(i));
    size_t k = nargs;
    while (k < kArguments && kNames[k] != name) ++k;
    if (k == kArguments || given[k]) return false;
    given[k] = true;
    bound[k] = args[nargs + i];
  }
  return bound[kX] != nullptr && bound[kY] != nullptr && bound[kW] != nullptr;
}

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

PyObject* LossCall(const MethodEntry& own, PyObject* const* args, size_t nargs, PyObject* kwnames) {
  const auto& entry = static_cast<const LossEntry&>(own);
  const LossKernels& kernels = *entry.kernels.Active();
  const bool coupled = kernels.coupled;
  std::array<PyObject*, kArguments> bound;
  if (!Bind(args, nargs, kwnames, bound)) return nullptr;
  SparseMatrix sparse;
  std::optional<Design> X = DenseDesign(bound[kX]);
  if (!X) X = sparse.From(bound[kX]);
  const std::optional<DType> w = KernelArray(bound[kW]);
  if (!X || X->rows == 0 || !w || !PyArray_IS_C_CONTIGUOUS(AsArray(bound[kW]))) return nullptr;
  const auto rows = static_cast<npy_intp>(X->rows), cols = static_cast<npy_intp>(X->cols);
  std::optional<npy_intp> axis;
  if (PyArray_NDIM(AsArray(bound[kW])) == 2) axis = PyArray_DIM(AsArray(bound[kW]), 1);
  const auto outputs = static_cast<size_t>(axis.value_or(1));
  if (!HasShape(bound[kW], cols, axis) || outputs < (coupled ? 2U : 1U) || outputs > kMaxOutputs) {
    return nullptr;
  }
  const std::optional<Targets> y = Targets::From(bound[kY], rows, axis, coupled);
  if (!y) return nullptr;
  Ref weight;
  if (PyObject* const given = bound[kWeight]; given != Py_None) {
    if (!PyArray_CheckExact(given) || !HasShape(given, rows, std::nullopt) ||
        (!KernelArray(given) && !HasIntegers(given))) {
      return nullptr;
    }
    weight = Ref(PyArray_FROM_OTF(given, NPY_DOUBLE, NPY_ARRAY_CARRAY_RO));
    if (!weight) return nullptr;
  }
  Intercepts b;
  if (!b.Take(bound[kB], outputs)) return nullptr;

  const npy_intp gw_shape[] = {cols, static_cast<npy_intp>(outputs)};
  Ref gw(entry.with_gradient ? NewArray(1 + axis.has_value(), gw_shape, *w) : nullptr);
  if (entry.with_gradient && !gw) return nullptr;
  LinearProblem problem = {};
  problem.X = *X;
  problem.loss = &kernels;
  problem.parameter = entry.parameter;
  problem.outputs = outputs;
  problem.y = DataOf(y->block.get());
  problem.y_type = y->type;
  problem.w = DataOf(bound[kW]);
  problem.w_dtype = *w;
  problem.b = b.values();
  problem.weight = weight ? static_cast<const double*>(DataOf(weight.get())) : nullptr;
  LossResult result = {};
  const std::optional<bool> mean = IsMean(bound[kReduction]);
  if (!mean) return nullptr;
  result.mean = *mean;
  result.gw = gw ? DataOf(gw.get()) : nullptr;
  result.gb = b.gradient();
  result.gb_dtype = b.dtype();
  const bool done = RunKernel(IsLarge(*X, outputs), [&](Poll* poll) {
    return SumLoss(entry.with_gradient ? Job::kGradient : Job::kValue, problem, result, poll);
  });
  if (!done || result.bad || (result.mean && result.weight == 0)) return nullptr;
  Ref loss(PyFloat_FromDouble(result.loss));
  if (!entry.with_gradient || !loss) return loss.release();
  const Ref intercepts(b.Gradient());
  if (!intercepts) return nullptr;
  const Ref gradients(PyTuple_Pack(2, gw.get(), intercepts.get()));
  return gradients ? PyTuple_Pack(2, loss.get(), gradients.get()) : nullptr;
}

// --- the engine ----------------------------------------------------------------------------------

// All checks guard memory: the Python layer has told the caller what is wrong before.
PyObject* Refuse(const char* function, const char* argument) {
  return PyErr_Format(PyExc_TypeError, "%s: %s is not what the engine takes", function, argument);
}

bool IsWritableBlock(PyObject* object, int type, size_t size) {
  return IsBlock(object, type, size) && PyArray_ISWRITEABLE(AsArray(object));
}

std::optional<TargetType> TargetsOf(PyObject* y, size_t rows, size_t outputs, bool coupled) {
  if (coupled && IsBlock(y, NPY_INT64, rows)) return TargetType::kLabel;
  if (IsBlock(y, NPY_FLOAT, rows * outputs)) return TargetType::kFloat32;
  if (IsBlock(y, NPY_DOUBLE, rows * outputs)) return TargetType::kFloat64;
  return std::nullopt;
}

// (format, data, indices, indptr, shape).
std::optional<Design> EngineSparse(PyObject* object) {
  const char* format;
  PyObject *data, *indices, *indptr;
  Py_ssize_t rows, cols;
  if (!PyTuple_CheckExact(object) ||
      !PyArg_ParseTuple(object, "sOOO(nn)", &format, &data, &indices, &indptr, &rows, &cols)) {
    PyErr_Clear();
    return std::nullopt;
  }
  return SparseDesign(format, data, indices, indptr, rows, cols);
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

  const std::optional<Design> X =
      PyTuple_Check(args[kDesign]) ? EngineSparse(args[kDesign]) : DenseDesign(args[kDesign]);
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
  const bool with_gradient = std::string_view(method) == "value_and_grad";
  const std::optional<size_t> row = FindLoss(loss);
  if (!row || (!with_gradient && std::string_view(method) != "value")) {
    PyErr_Format(PyExc_KeyError, "no native method '%s' of a loss '%s'", method, loss);
    return nullptr;
  }
  auto entry = std::make_unique<LossEntry>();
  entry->parameter = parameter;
  entry->with_gradient = with_gradient;
  entry->kernels = RowOf(LossTables(), *row);
  return NewMethod(LossCall, std::move(entry), fallback);
}

bool RegisterLossEngine(PyObject* module) { return PyModule_AddFunctions(module, kEngine) == 0; }

}  // namespace pullback

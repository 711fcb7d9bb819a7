#include "bindings/design_matrix.h"

#include <algorithm>
#include <atomic>
#include <string_view>

#include "bindings/interrupt.h"
#include "bindings/operands.h"
#include "runtime/poll.h"

namespace pullback {
namespace {

// X of more elements than this, times the outputs, is read without the GIL.
constexpr size_t kReleaseGil = 16384;

// So much of X is converted at once: half a block of layouts.py, which is never more than one
// there.
constexpr size_t kConvertedBytes = size_t{1} << 17;

bool IsVector(PyObject* object, int type, size_t size) {
  return IsBlock(object, type, size) && PyArray_NDIM(AsArray(object)) == 1;
}

// A matrix in compressed rows or columns, as in scipy.sparse, of vectors that kernels can read
// where they lie. The kernels check indices and indptr on their way, but for where indptr begins.
bool SparseDesign(std::string_view format, PyObject* data, PyObject* indices, PyObject* indptr,
                  Py_ssize_t rows, Py_ssize_t cols, Design& X) {
  const bool by_rows = format == "csr";
  const std::optional<DType> dtype = KernelArray(data);
  constexpr Py_ssize_t kMostCols = Py_ssize_t{1} << 32;  // kernels hold an index in 32 bits
  if ((!by_rows && format != "csc") || !dtype || !PyArray_CheckExact(indices) || rows < 0 ||
      cols < 0 || cols > kMostCols) {
    return false;
  }
  const bool wide = PyArray_ITEMSIZE(AsArray(indices)) == 8;
  const int index = wide ? NPY_INT64 : NPY_INT32;
  const auto entries = static_cast<size_t>(PyArray_SIZE(AsArray(data)));
  if (!IsVector(data, TypeNumber(*dtype), entries) || !IsVector(indices, index, entries) ||
      !IsVector(indptr, index, static_cast<size_t>(by_rows ? rows : cols) + 1)) {
    return false;
  }
  X = {by_rows ? Layout::kCsr : Layout::kCsc,
       *dtype,
       wide,
       static_cast<size_t>(rows),
       static_cast<size_t>(cols),
       DataOf(data),
       0,
       DataOf(indices),
       DataOf(indptr),
       entries};
  return true;
}

// NumPy's sum: pairs of halves, of which the smallest have eight sums.
double PairwiseSum(const double* from, size_t n) {
  constexpr size_t kSums = 8, kMost = 128;
  if (n > kMost) {
    const size_t half = n / 2 / kSums * kSums;
    return PairwiseSum(from, half) + PairwiseSum(from + half, n - half);
  }
  double rest = 0;
  size_t i = 0;
  if (n >= kSums) {
    std::array<double, kSums> sums;
    std::copy_n(from, kSums, sums.begin());
    for (i = kSums; i + kSums <= n; i += kSums) {
      for (size_t k = 0; k < kSums; ++k) sums[k] += from[i + k];
    }
    rest =
        ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }
  for (; i < n; ++i) rest += from[i];
  return rest;
}

Ref Attribute(PyObject* object, PyObject* name) {
  Ref value(PyObject_GetAttr(object, name));
  if (!value && PyErr_ExceptionMatches(PyExc_AttributeError)) PyErr_Clear();
  return value;
}

}  // namespace

bool EngineSparse(PyObject* object, Design& X) {
  const char* format;
  PyObject *data, *indices, *indptr;
  Py_ssize_t rows, cols;
  if (!PyTuple_CheckExact(object) ||
      !PyArg_ParseTuple(object, "sOOO(nn)", &format, &data, &indices, &indptr, &rows, &cols)) {
    PyErr_Clear();
    return false;
  }
  return SparseDesign(format, data, indices, indptr, rows, cols, X);
}

bool IsLarge(const Design& X, size_t outputs) {
  const bool dense = X.indptr == nullptr;
  return (dense ? X.rows * X.cols : X.entries + X.rows + X.cols) * outputs > kReleaseGil;
}

bool IsBlock(PyObject* object, int type, size_t size) {
  if (!PyArray_CheckExact(object)) return false;
  PyArrayObject* const array = AsArray(object);
  return PyArray_TYPE(array) == type && PyArray_ISCARRAY_RO(array) &&
         static_cast<size_t>(PyArray_SIZE(array)) == size;
}

Ref ConvertedBlock(PyObject* object, int type) {
  if (!PyArray_CheckExact(object) || !StorageOfArray(AsArray(object))) return Ref();
  return Ref(PyArray_FROM_OTF(object, type, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST));
}

std::optional<DType> OtherGradientType(PyObject* object) {
  if (!PyArray_CheckExact(object)) return std::nullopt;
  const std::optional<Storage> storage = StorageOfArray(AsArray(object));
  if (!storage) return std::nullopt;
  return PyTypeNum_ISFLOAT(PyArray_TYPE(AsArray(object))) ? ComputeType(storage->element)
                                                          : DType::kFloat64;
}

namespace {

// Of an array of `dtype`, or of what is stored otherwise.
[[gnu::always_inline]] inline bool DenseOf(PyArrayObject* array, DType dtype, Stored stored,
                                           npy_intp item, Design& X) {
  if (PyArray_NDIM(array) != 2) return false;
  const npy_intp rows = PyArray_DIM(array, 0), cols = PyArray_DIM(array, 1);
  // The stride of an axis of length 1 means nothing, and may be anything.
  const npy_intp down = rows > 1 ? PyArray_STRIDE(array, 0) : item;
  const npy_intp across = cols > 1 ? PyArray_STRIDE(array, 1) : item;
  const bool by_rows = across == item;
  const npy_intp stride = by_rows ? down : across;
  if ((!by_rows && down != item) || stride % item != 0) return false;
  X = {by_rows ? Layout::kRows : Layout::kColumns,
       dtype,
       false,
       static_cast<size_t>(rows),
       static_cast<size_t>(cols),
       PyArray_DATA(array),
       stride / item,
       nullptr,
       nullptr,
       0,
       stored};
  return true;
}

// ml_dtypes registers it with NumPy as a dtype of its own, under a number that is the process's.
// The first look at one may run Python code.
bool IsBfloat16(PyArrayObject* array) {
  static std::atomic<int> known = NPY_NOTYPE;
  const int type = PyArray_TYPE(array);
  if (type < NPY_USERDEF || type == known.load(std::memory_order_relaxed)) {
    return type >= NPY_USERDEF;
  }
  static PyObject* const kNames[] = {PyUnicode_InternFromString("__name__"),
                                     PyUnicode_InternFromString("__module__")};
  constexpr const char* kWanted[] = {"bfloat16", "ml_dtypes"};
  const Ref scalar(Py_NewRef(reinterpret_cast<PyObject*>(PyArray_DESCR(array)->typeobj)));
  for (size_t i = 0; i < std::size(kNames); ++i) {
    const Ref name = Attribute(scalar.get(), kNames[i]);
    if (!name || !PyUnicode_CheckExact(name.get()) ||
        PyUnicode_CompareWithASCIIString(name.get(), kWanted[i]) != 0) {
      return false;
    }
  }
  known.store(type, std::memory_order_relaxed);
  return true;
}

}  // namespace

bool DenseDesign(PyObject* object, Design& X) {
  const std::optional<DType> dtype = KernelArray(object);
  return dtype && DenseOf(AsArray(object), *dtype, Stored::kAsComputed,
                          static_cast<npy_intp>(ItemSize(*dtype)), X);
}

bool NarrowDesign(PyObject* object, Design& X) {
  if (!PyArray_CheckExact(object)) return false;
  PyArrayObject* const array = AsArray(object);
  const int type = PyArray_TYPE(array);
  if (type != NPY_HALF && !IsBfloat16(array)) return false;
  if (PyArray_TYPE(array) != type || !PyArray_ISALIGNED(array) || !PyArray_ISNOTSWAPPED(array) ||
      PyArray_ITEMSIZE(array) != sizeof(uint16_t)) {
    return false;
  }
  return DenseOf(array, DType::kFloat32, type == NPY_HALF ? Stored::kFloat16 : Stored::kBfloat16,
                 sizeof(uint16_t), X);
}

const char* ReadSamples(PyObject* X, PyObject* y, PyObject* weight, PyObject* offset,
                        LinearProblem& problem) {
  if (!(PyTuple_Check(X) ? EngineSparse(X, problem.X)
                         : DenseDesign(X, problem.X) || NarrowDesign(X, problem.X))) {
    return "X";
  }
  const size_t rows = problem.X.rows;
  if (y != nullptr) {
    if (problem.loss->coupled && IsBlock(y, NPY_INT64, rows)) {
      problem.y_type = TargetType::kLabel;
    } else if (IsBlock(y, NPY_FLOAT, rows * problem.outputs)) {
      problem.y_type = TargetType::kFloat32;
    } else if (IsBlock(y, NPY_DOUBLE, rows * problem.outputs)) {
      problem.y_type = TargetType::kFloat64;
    } else {
      return "y";
    }
    problem.y = DataOf(y);
  }
  if (weight != Py_None) {
    if (!IsBlock(weight, NPY_DOUBLE, rows)) return "sample_weight";
    problem.weight = static_cast<const double*>(DataOf(weight));
  }
  if (offset != Py_None) {
    problem.offset_by_output = IsBlock(offset, NPY_DOUBLE, rows * problem.outputs);
    if (!problem.offset_by_output && !IsBlock(offset, NPY_DOUBLE, rows)) return "offset";
    problem.offset = static_cast<const double*>(DataOf(offset));
  }
  return nullptr;
}

bool UserDesign::TakeOther(PyObject* object, Design& X) {
  if (!PyArray_Check(object)) return TakeSparse(object, X);
  if (!PyArray_CheckExact(object) || PyArray_NDIM(AsArray(object)) != 2) return false;
  const std::optional<Storage> storage = StorageOfArray(AsArray(object));
  if (!storage) return false;
  const DType dtype = ComputeType(storage->element);
  if (static_cast<size_t>(PyArray_SIZE(AsArray(object))) * ItemSize(dtype) > kConvertedBytes) {
    return false;
  }
  parts_[0] = AsBlock(object, TypeNumber(dtype));
  return parts_[0] && DenseDesign(parts_[0].get(), X);
}

bool UserDesign::TakeSparse(PyObject* object, Design& X) {
  static PyObject* const kFormat = PyUnicode_InternFromString("format");
  static PyObject* const kShape = PyUnicode_InternFromString("shape");
  static PyObject* const kSorted = PyUnicode_InternFromString("has_sorted_indices");
  static PyObject* const kParts[] = {PyUnicode_InternFromString("data"),
                                     PyUnicode_InternFromString("indices"),
                                     PyUnicode_InternFromString("indptr")};
  const Ref format = Attribute(object, kFormat);
  if (!format || !PyUnicode_CheckExact(format.get())) return false;
  const char* const name = PyUnicode_AsUTF8(format.get());
  if (name == nullptr) return false;
  const Ref shape = Attribute(object, kShape);
  Py_ssize_t rows, cols;
  if (!shape || !PyTuple_CheckExact(shape.get()) ||
      !PyArg_ParseTuple(shape.get(), "nn", &rows, &cols)) {
    PyErr_Clear();
    return false;
  }
  if (std::string_view(name) == "csc") {
    const Ref sorted = Attribute(object, kSorted);
    if (!sorted || sorted.get() != Py_True) return false;
  }
  for (size_t i = 0; i < parts_.size(); ++i) {
    parts_[i] = Attribute(object, kParts[i]);
    if (!parts_[i]) return false;
  }
  return SparseDesign(name, parts_[0].get(), parts_[1].get(), parts_[2].get(), rows, cols, X) &&
         (X.wide ? *static_cast<const int64_t*>(X.indptr) == 0
                 : *static_cast<const int32_t*>(X.indptr) == 0);
}

bool UserTargets::Take(PyObject* y, PyObject* weight, std::optional<npy_intp> outputs,
                       LinearProblem& problem) {
  if (!PyArray_CheckExact(y)) return false;
  const auto rows = static_cast<npy_intp>(problem.X.rows);
  const bool labels = problem.loss->coupled && PyArray_NDIM(AsArray(y)) == 1;
  std::optional<DType> dtype = KernelArray(y);
  if (!dtype) {
    const std::optional<Storage> storage = StorageOfArray(AsArray(y));
    if (storage) dtype = ComputeType(storage->element);
  }
  if (!dtype || !HasShape(y, rows, labels ? std::nullopt : outputs) ||
      (labels && !HasIntegers(y))) {
    return false;
  }
  y_ = AsBlock(y, labels ? NPY_INT64 : TypeNumber(*dtype));
  if (!y_) return false;
  problem.y = DataOf(y_.get());
  problem.y_type = labels ? TargetType::kLabel : TargetOf(*dtype);
  problem.weight = nullptr;
  if (weight == nullptr || weight == Py_None) return true;
  if (!PyArray_CheckExact(weight) || !HasShape(weight, rows, std::nullopt)) return false;
  weight_ = AsBlock(weight, NPY_DOUBLE);
  if (!weight_) return false;
  problem.weight = static_cast<const double*>(DataOf(weight_.get()));
  return true;
}

bool UserOffset::Take(PyObject* offset, std::optional<npy_intp> outputs, LinearProblem& problem) {
  problem.offset = nullptr;
  if (offset == nullptr || offset == Py_None) return true;
  if (!PyArray_CheckExact(offset)) return false;
  const auto rows = static_cast<npy_intp>(problem.X.rows);
  problem.offset_by_output = HasShape(offset, rows, outputs);
  if (!problem.offset_by_output && !HasShape(offset, rows, std::nullopt)) return false;
  offset_ = AsBlock(offset, NPY_DOUBLE);
  if (!offset_) return false;
  problem.offset = static_cast<const double*>(DataOf(offset_.get()));
  return true;
}

double SumOfWeights(const LinearProblem& problem) {
  if (problem.weight == nullptr) return static_cast<double>(problem.X.rows);
  const ScopedGilRelease unlocked(problem.X.rows > kReleaseGil);
  const KernelFpEnv fp_env(nullptr);
  return PairwiseSum(problem.weight, problem.X.rows);
}

}  // namespace pullback

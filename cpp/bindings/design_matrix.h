// The data of linear models and their targets, as kernels take them.
#ifndef PULLBACK_CPP_BINDINGS_DESIGN_MATRIX_H_
#define PULLBACK_CPP_BINDINGS_DESIGN_MATRIX_H_

#include <array>
#include <optional>

#include "bindings/numpy_api.h"
#include "kernels/losses.h"

namespace pullback {

// What an engine does not take: null, with a TypeError. Its checks guard memory, the Python layer
// has told the caller what is wrong before.
inline PyObject* Refuse(const char* function, const char* argument) {
  return PyErr_Format(PyExc_TypeError, "%s: %s is not what the engine takes", function, argument);
}

// Whether a pass over X is long enough to go without the GIL.
bool IsLarge(const Design& X, size_t outputs);

// C-contiguous, of `type`, that many elements.
bool IsBlock(PyObject* object, int type, size_t size);

// An exact array of numbers as a C-contiguous one of `type`: itself, or a copy. Null, perhaps with
// an exception set, for others.
Ref ConvertedBlock(PyObject* object, int type);
inline Ref AsBlock(PyObject* object, int type) {
  if (!PyArray_CheckExact(object) || PyArray_TYPE(AsArray(object)) != type ||
      !PyArray_ISCARRAY_RO(AsArray(object))) {
    return ConvertedBlock(object, type);
  }
  return Ref(Py_NewRef(object));
}

// The dtype of the gradient by an exact array of numbers: float32 by float16 and float32, else
// float64, since an integer is no storage format. Nothing for others.
std::optional<DType> OtherGradientType(PyObject* object);
inline std::optional<DType> GradientType(PyObject* object) {
  const std::optional<DType> own = KernelArray(object);
  return own ? own : OtherGradientType(object);
}

// Whether an array is (rows,), or (rows, outputs) where the outputs have an axis.
inline bool HasShape(PyObject* object, npy_intp rows, std::optional<npy_intp> outputs) {
  PyArrayObject* const array = AsArray(object);
  return PyArray_NDIM(array) == 1 + outputs.has_value() && PyArray_DIM(array, 0) == rows &&
         (!outputs || PyArray_DIM(array, 1) == *outputs);
}

inline bool HasIntegers(PyObject* array) {
  const int type = PyArray_TYPE(AsArray(array));
  return PyTypeNum_ISINTEGER(type) || PyTypeNum_ISBOOL(type);
}

constexpr TargetType TargetOf(DType dtype) {
  return dtype == DType::kFloat32 ? TargetType::kFloat32 : TargetType::kFloat64;
}

// `object` as dense X; false unless it is an array of rows or columns that kernels can read where
// it lies.
bool DenseDesign(PyObject* object, Design& X);

// The same for float16 and ml_dtypes' bfloat16, which the driver of the losses widens.
bool NarrowDesign(PyObject* object, Design& X);

// X as engines take a sparse one: (format, data, indices, indptr, shape).
bool EngineSparse(PyObject* object, Design& X);

// What engines take, into a problem that knows its loss and outputs: X, which is an array or
// (format, data, indices, indptr, shape), targets unless null, weights and an offset unless None.
// Returns the argument that is something else, or null.
const char* ReadSamples(PyObject* X, PyObject* y, PyObject* weight, PyObject* offset,
                        LinearProblem& problem);

// A user's X, alive for as long as its kernels run.
class UserDesign {
 public:
  // False, perhaps with an exception set, unless kernels can read `object` where it lies, or in a
  // copy of all of it. This may run Python code: it comes before the first look at other arguments.
  bool Take(PyObject* object, Design& X) { return DenseDesign(object, X) || TakeOther(object, X); }

  // The same, for kernels that read what is stored otherwise than computed too.
  bool TakeAsStored(PyObject* object, Design& X) {
    return DenseDesign(object, X) || NarrowDesign(object, X) || TakeOther(object, X);
  }

 private:
  // Each attribute may be a property, which may change what the others have returned: all of them
  // come before the first look into an array.
  bool TakeSparse(PyObject* object, Design& X);
  bool TakeOther(PyObject* object, Design& X);

  std::array<Ref, 3> parts_;
};

// A user's targets and weights, alive for as long as its kernels run.
class UserTargets {
 public:
  // Into a problem that has its loss and X. False, perhaps with an exception set, unless they are
  // arrays, which are copied where kernels cannot read them: targets of (rows,), or (rows, outputs)
  // where the outputs have an axis, or labels, and weights of (rows,) unless null or None.
  bool Take(PyObject* y, PyObject* weight, std::optional<npy_intp> outputs, LinearProblem& problem);

  PyObject* y() const { return y_.get(); }

 private:
  Ref y_, weight_;
};

// A user's offset of the predictions, alive for as long as its kernels run.
class UserOffset {
 public:
  // Into a problem that has its X. False, perhaps with an exception set, unless it is null, None or
  // an array, which is copied where kernels cannot read it: (rows,), or (rows, outputs) where the
  // outputs have an axis.
  bool Take(PyObject* offset, std::optional<npy_intp> outputs, LinearProblem& problem);

 private:
  Ref offset_;
};

// The sum of a problem's weights, or its rows, with the bits of NumPy's sum. The GIL is held.
double SumOfWeights(const LinearProblem& problem);

// Whether a mean may be divided by such a sum; of others, Python brings the weights near 1.
constexpr bool IsOrdinary(double sum) { return 0x1p-500 < sum && sum < 0x1p500; }

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_DESIGN_MATRIX_H_

// The data and targets of linear models, in the form that kernels take.
#ifndef PULLBACK_CPP_BINDINGS_DESIGN_MATRIX_H_
#define PULLBACK_CPP_BINDINGS_DESIGN_MATRIX_H_

#include <array>
#include <optional>

#include "bindings/numpy_api.h"
#include "kernels/losses.h"

namespace pullback {

// Sets a TypeError about an argument that an engine does not take, and returns null. An engine's
// checks protect memory; the Python layer has checked arguments, with full messages, before.
inline PyObject* Refuse(const char* function, const char* argument) {
  return PyErr_Format(PyExc_TypeError, "%s: %s is not what the engine takes", function, argument);
}

// Whether a pass over X is long enough to release the GIL.
bool IsLarge(const Design& X, size_t outputs);

// Whether it is C-contiguous, of `type`, with that many elements.
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

// The dtype of the gradient for an exact array of numbers: float32 for float16 and float32, and
// float64 otherwise. Nothing for other arrays.
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

// Reads `object` as dense X; false unless it is an array of rows or columns that kernels can read
// in place.
bool DenseDesign(PyObject* object, Design& X);

// The storage of an exact array of float16 or ml_dtypes' bfloat16 that kernels can read. Nothing
// for others. The first test for a bfloat16 may run Python code.
std::optional<Stored> NarrowArray(PyObject* object);

// The same as DenseDesign for such an array, which the driver of the losses widens.
bool NarrowDesign(PyObject* object, Design& X);

// A sparse X in the form that engines take: (format, data, indices, indptr, shape).
bool EngineSparse(PyObject* object, Design& X);

// Reads an engine's arguments into a problem that knows its loss and outputs: X, which is an array
// or (format, data, indices, indptr, shape), targets unless null, weights and an offset unless
// None. Returns the name of an argument that is something else, or null.
const char* ReadSamples(PyObject* X, PyObject* y, PyObject* weight, PyObject* offset,
                        LinearProblem& problem);

// A user's X, alive for as long as its kernels run.
class UserDesign {
 public:
  // False, perhaps with an exception set, unless kernels can read `object` in place, or in a copy
  // of all of it. This may run Python code, so it comes before other arguments are examined.
  bool Take(PyObject* object, Design& X) { return DenseDesign(object, X) || TakeOther(object, X); }

  // The same, for kernels that can also read elements stored in another dtype than they compute in.
  bool TakeAsStored(PyObject* object, Design& X) {
    return DenseDesign(object, X) || NarrowDesign(object, X) || TakeOther(object, X);
  }

 private:
  // An attribute may be a property that changes arrays which others have returned, so all are read
  // before the first array is examined.
  bool TakeSparse(PyObject* object, Design& X);
  bool TakeOther(PyObject* object, Design& X);

  std::array<Ref, 3> parts_;
};

// A user's targets and weights, alive for as long as its kernels run.
class UserTargets {
 public:
  // Reads them into a problem that has its loss and X. They are copied if kernels cannot read them.
  // False, perhaps with an exception set, unless targets are an array of (rows,), of (rows,
  // outputs) if the outputs have an axis, or labels, and weights of (rows,), null or None.
  bool Take(PyObject* y, PyObject* weight, std::optional<npy_intp> outputs, LinearProblem& problem);

  PyObject* y() const { return y_.get(); }

 private:
  Ref y_, weight_;
};

// A user's offset of the predictions, alive for as long as its kernels run.
class UserOffset {
 public:
  // Reads it into a problem that has its X; it is copied if kernels cannot read it. False, perhaps
  // with an exception set, unless it is null, None or an array of (rows,), or of (rows, outputs) if
  // the outputs have an axis.
  bool Take(PyObject* offset, std::optional<npy_intp> outputs, LinearProblem& problem);

 private:
  Ref offset_;
};

// The sum of a problem's weights, or the number of its rows, with the bits of NumPy's sum. The GIL
// is held.
double SumOfWeights(const LinearProblem& problem);

// Whether a mean may be divided by this sum; otherwise Python scales the weights to near 1.
constexpr bool IsOrdinary(double sum) { return 0x1p-500 < sum && sum < 0x1p500; }

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_DESIGN_MATRIX_H_

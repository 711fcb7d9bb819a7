// The one place that includes the NumPy C API.
#ifndef PULLBACK_CPP_BINDINGS_NUMPY_API_H_
#define PULLBACK_CPP_BINDINGS_NUMPY_API_H_

#define PY_SSIZE_T_CLEAN
#include <Python.h>

// NumPy >= 2.2 at run time; the C API is the one that 2.1 introduced.
#define NPY_NO_DEPRECATED_API NPY_2_1_API_VERSION
#define NPY_TARGET_VERSION NPY_2_1_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL pullback_ARRAY_API
#define PY_UFUNC_UNIQUE_SYMBOL pullback_UFUNC_API
#ifndef PULLBACK_IMPORT_NUMPY
#define NO_IMPORT_ARRAY
#define NO_IMPORT_UFUNC
#endif

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wold-style-cast"
#include <numpy/arrayobject.h>
#include <numpy/arrayscalars.h>
#include <numpy/ufuncobject.h>
// After the two above: its macros need their tables.
#include <numpy/dtype_api.h>
#pragma GCC diagnostic pop

#include <optional>
#include <utility>

#include "bindings/finalizing.h"
#include "kernels/elementwise.h"

namespace pullback {

// Owns one reference.
class Ref {
 public:
  explicit Ref(PyObject* object = nullptr) : object_(object) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_ != nullptr) DropReference(object_);
  }
  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_;
};

// A tuple of both; null where one of them is.
inline PyObject* Pair(Ref first, Ref second) {
  PyObject* const pair = first && second ? PyTuple_New(2) : nullptr;
  if (pair == nullptr) return nullptr;
  PyTuple_SET_ITEM(pair, 0, first.release());
  PyTuple_SET_ITEM(pair, 1, second.release());
  return pair;
}

inline PyArrayObject* AsArray(PyObject* object) { return reinterpret_cast<PyArrayObject*>(object); }
inline void* DataOf(PyObject* array) { return PyArray_DATA(AsArray(array)); }

// The dtype of an array that kernels can read where it lies: an exact ndarray (no subclass, whose
// meaning we would lose), float32 or float64, aligned, in native byte order. Else nothing.
// Inline, for it is what a small call does most.
[[gnu::always_inline]] inline std::optional<DType> KernelArray(PyObject* object) {
  if (!PyArray_CheckExact(object)) return std::nullopt;
  PyArrayObject* const array = AsArray(object);
  const int type = PyArray_TYPE(array);
  if (type != NPY_FLOAT && type != NPY_DOUBLE) return std::nullopt;
  if (!PyArray_ISALIGNED(array) || !PyArray_ISNOTSWAPPED(array)) return std::nullopt;
  return type == NPY_FLOAT ? DType::kFloat32 : DType::kFloat64;
}

// NumPy's own are calls.
inline npy_intp SizeOf(PyArrayObject* array) {
  npy_intp size = 1;
  for (int a = 0; a < PyArray_NDIM(array); ++a) size *= PyArray_DIM(array, a);
  return size;
}

// Whether the last axes, of which there are enough, have such extents.
inline bool EndsIn(PyArrayObject* array, int ndim, const npy_intp* shape) {
  const npy_intp* const last = PyArray_DIMS(array) + (PyArray_NDIM(array) - ndim);
  for (int a = 0; a < ndim; ++a) {
    if (last[a] != shape[a]) return false;
  }
  return true;
}

inline bool IsOfShape(PyArrayObject* array, int ndim, const npy_intp* shape) {
  return PyArray_NDIM(array) == ndim && EndsIn(array, ndim, shape);
}

inline bool SameShape(PyArrayObject* a, PyArrayObject* b) {
  return IsOfShape(a, PyArray_NDIM(b), PyArray_DIMS(b));
}

// False with an exception set, under which nothing else may be asked of Python.
inline bool ReadDouble(PyObject* object, double* value) {
  *value = PyFloat_AsDouble(object);
  return *value != -1.0 || PyErr_Occurred() == nullptr;
}

// f(float{}) or f(double{}).
template <class F>
auto OfType(DType dtype, const F& f) {
  return dtype == DType::kFloat32 ? f(float{}) : f(double{});
}

inline int TypeNumber(DType dtype) { return dtype == DType::kFloat32 ? NPY_FLOAT : NPY_DOUBLE; }

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_NUMPY_API_H_

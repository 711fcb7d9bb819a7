// Conversion of a caller's numbers and arrays to arrays that kernels can read in place.
#ifndef PULLBACK_CPP_BINDINGS_OPERANDS_H_
#define PULLBACK_CPP_BINDINGS_OPERANDS_H_

#include <array>
#include <new>
#include <optional>
#include <span>

#include "bindings/method.h"
#include "bindings/numpy_api.h"
#include "kernels/convert.h"

namespace pullback {

// The element type of a dtype, from NumPy's number for it; nothing if no kernel reads it.
std::optional<Element> ElementOf(int type_number);

// How an array's elements lie in memory; nothing if no kernel reads them.
std::optional<Storage> StorageOfArray(PyArrayObject* array);

// Clears an exception after a failure, because Python will meet the same error and name the
// argument. A BaseException such as KeyboardInterrupt would not be raised again, and is kept.
void LeaveToPython();

// An argument as an array, if it is an array, a list of numbers, a NumPy number or a bool; none of
// the caller's code runs. Null if Python has to convert it.
Ref AsPlainArray(PyObject* object);

// Whether it is a Python int or float, which takes the others' dtype.
inline bool IsWeak(PyObject* object) {
  return PyFloat_CheckExact(object) || PyLong_CheckExact(object);
}

// The layout that a call's arrays need: contiguous, any strides if nothing is converted, or any
// layout and number type.
enum class Strides : uint8_t { kContiguous, kAny, kAsStored };

// Arrays of the dtype that the operands compute in together: bool, 8- and 16-bit integers and
// float16 compute in float32, wider integers in float64, Python's int and float take the others'
// dtype. Borrowed where nothing has to be converted.
class PlainOperands {
 public:
  PlainOperands() {}  // members stay uninitialised: clearing them takes as long as a small call
  PlainOperands(const PlainOperands&) = delete;
  PlainOperands& operator=(const PlainOperands&) = delete;
  ~PlainOperands() {
    for (PyObject* const array : std::span(kept_.data(), kept_count_)) DropReference(array);
  }

  // Takes `count` arguments; null and None stay null. False, perhaps with an exception set, if only
  // Python can convert an argument: a subclass, an odd layout, or an object with its own methods.
  bool Take(PyObject* const* given, size_t count, Strides strides = Strides::kContiguous) {
    count_ = count;
    std::optional<DType> common;
    for (size_t i = 0; i < count; ++i) {
      arrays_[i] = nullptr;
      if (given[i] == nullptr || given[i] == Py_None) continue;
      const std::optional<DType> dtype = KernelArray(given[i]);
      if (!dtype || (common && dtype != common)) return Convert(given, strides);
      if (!HasStrides(given[i], strides)) return false;
      common = dtype;
      arrays_[i] = AsArray(given[i]);
    }
    dtype_ = common.value_or(DType::kFloat64);
    return true;
  }

  DType dtype() const { return dtype_; }
  size_t count() const { return count_; }
  // Null if there is none.
  PyArrayObject* operator[](size_t i) const { return arrays_[i]; }
  void* data(size_t i) const { return arrays_[i] == nullptr ? nullptr : PyArray_DATA(arrays_[i]); }

  // Replaces a Python number by an array of that shape. False with an exception set.
  bool Fill(size_t i, int ndim, const npy_intp* shape);

  // Owns an array for the duration of the call.
  PyArrayObject* Keep(Ref array) {
    if (kept_count_ == kept_.size()) throw std::bad_alloc();
    return AsArray(kept_[kept_count_++] = array.release());
  }

 private:
  static bool HasStrides(PyObject* array, Strides strides) {
    return strides != Strides::kContiguous || PyArray_IS_C_CONTIGUOUS(AsArray(array));
  }

  bool Convert(PyObject* const* given, Strides strides);

  DType dtype_ = DType::kFloat64;
  size_t count_ = 0;
  std::array<PyArrayObject*, kMaxArguments> arrays_;
  std::array<PyObject*, 4 * kMaxArguments> kept_;  // up to three for each operand, and others
  size_t kept_count_ = 0;
};

// A parameter that is a Python or NumPy number. Nothing, with no exception set, for another.
std::optional<double> AsNumber(PyObject* object);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_OPERANDS_H_

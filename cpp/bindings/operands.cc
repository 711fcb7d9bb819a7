#include "bindings/operands.h"

#include <algorithm>

#include "bindings/results.h"

namespace pullback {
namespace {

bool IsWeak(PyObject* object) { return PyFloat_CheckExact(object) || PyLong_CheckExact(object); }

// The argument as an array; null, with no exception set, where Python has to look at it.
Ref AsPlainArray(PyObject* object) {
  if (PyArray_CheckExact(object)) return Ref(Py_NewRef(object));
  const bool simple = PyList_CheckExact(object) || PyTuple_CheckExact(object) ||
                      PyBool_Check(object) || PyArray_IsScalar(object, Generic);
  if (!simple) return Ref();
  Ref array(PyArray_FROM_O(object));
  if (!array) LeaveToPython();
  return array;
}

// A C-contiguous copy in the dtype of the call.
Ref Converted(PyArrayObject* array, Storage storage, DType dtype) {
  Ref copy(NewArray(PyArray_NDIM(array), PyArray_DIMS(array), dtype));
  if (copy) {
    LoadOf(storage, dtype)(PyArray_BYTES(array), PyArray_ITEMSIZE(array), DataOf(copy.get()),
                           static_cast<size_t>(PyArray_SIZE(array)));
  }
  return copy;
}

// A number as an array without axes; null, with no exception set, of an integer beyond float64.
Ref WeakNumber(PyObject* number, DType dtype) {
  double value;
  if (!ReadDouble(number, &value)) {
    PyErr_Clear();
    return Ref();
  }
  Ref array(NewArray(0, nullptr, dtype));
  if (!array) return array;
  if (dtype == DType::kFloat32) {
    *static_cast<float*>(DataOf(array.get())) = static_cast<float>(value);
  } else {
    *static_cast<double*>(DataOf(array.get())) = value;
  }
  return array;
}

}  // namespace

void LeaveToPython() {
  if (PyErr_ExceptionMatches(PyExc_Exception)) PyErr_Clear();
}

std::optional<Storage> StorageOfArray(PyArrayObject* array) {
  const bool swapped = !PyArray_ISNOTSWAPPED(array);
  switch (PyArray_TYPE(array)) {
    case NPY_BOOL:
      return Storage{Element::kBool, swapped};
    case NPY_BYTE:
      return Storage{Element::kInt8, swapped};
    case NPY_UBYTE:
      return Storage{Element::kUint8, swapped};
    case NPY_SHORT:
      return Storage{Element::kInt16, swapped};
    case NPY_USHORT:
      return Storage{Element::kUint16, swapped};
    case NPY_HALF:
      return Storage{Element::kFloat16, swapped};
    case NPY_FLOAT:
      return Storage{Element::kFloat32, swapped};
    case NPY_DOUBLE:
      return Storage{Element::kFloat64, swapped};
    case NPY_INT:
    case NPY_LONG:
    case NPY_LONGLONG:
      return Storage{PyArray_ITEMSIZE(array) == 4 ? Element::kInt32 : Element::kInt64, swapped};
    case NPY_UINT:
    case NPY_ULONG:
    case NPY_ULONGLONG:
      return Storage{PyArray_ITEMSIZE(array) == 4 ? Element::kUint32 : Element::kUint64, swapped};
    default:
      return std::nullopt;
  }
}

bool PlainOperands::Take(PyObject* const* given, size_t count, Strides strides) {
  count_ = count;
  std::optional<DType> common;
  for (size_t i = 0; i < count; ++i) {
    arrays_[i] = nullptr;
    if (given[i] == nullptr || given[i] == Py_None) continue;
    const std::optional<DType> dtype = KernelArray(given[i]);
    if (!dtype || (common && dtype != common)) return Convert(given);
    if (strides == Strides::kContiguous && !PyArray_IS_C_CONTIGUOUS(AsArray(given[i]))) {
      return false;
    }
    common = dtype;
    arrays_[i] = AsArray(given[i]);
  }
  dtype_ = common.value_or(DType::kFloat64);
  return true;
}

bool PlainOperands::Convert(PyObject* const* given) {
  std::array<Storage, kMaxArguments> storage;
  bool any = false, wide = false;
  for (size_t i = 0; i < count_; ++i) {
    arrays_[i] = nullptr;
    if (given[i] == nullptr || given[i] == Py_None || IsWeak(given[i])) continue;
    owned_[i] = AsPlainArray(given[i]);
    if (!owned_[i] || !PyArray_CheckExact(owned_[i].get())) return false;
    arrays_[i] = AsArray(owned_[i].get());
    const std::optional<Storage> known = StorageOfArray(arrays_[i]);
    if (!known || !PyArray_IS_C_CONTIGUOUS(arrays_[i])) return false;
    storage[i] = *known;
    any = true;
    wide = wide || ComputeType(known->element) == DType::kFloat64;
  }
  dtype_ = any && !wide ? DType::kFloat32 : DType::kFloat64;
  for (size_t i = 0; i < count_; ++i) {
    if (given[i] == nullptr || given[i] == Py_None) continue;
    if (arrays_[i] == nullptr) {
      owned_[i] = WeakNumber(given[i], dtype_);
    } else if (KernelArray(owned_[i].get()) != dtype_) {
      owned_[i] = Converted(arrays_[i], storage[i], dtype_);
    }
    if (!owned_[i]) return false;
    arrays_[i] = AsArray(owned_[i].get());
  }
  return true;
}

bool SameShape(PyArrayObject* a, PyArrayObject* b) {
  return PyArray_NDIM(a) == PyArray_NDIM(b) &&
         std::equal(PyArray_DIMS(a), PyArray_DIMS(a) + PyArray_NDIM(a), PyArray_DIMS(b));
}

std::optional<double> AsNumber(PyObject* object) {
  const bool known = IsWeak(object) || PyArray_IsScalar(object, Integer) ||
                     (PyArray_IsScalar(object, Floating) && !PyArray_IsScalar(object, LongDouble));
  if (!known) return std::nullopt;
  double value;
  if (ReadDouble(object, &value)) return value;
  PyErr_Clear();
  return std::nullopt;
}

}  // namespace pullback

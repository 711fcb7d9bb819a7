#include "bindings/operands.h"

#include <algorithm>
#include <cstring>

#include "bindings/outputs.h"

namespace pullback {
namespace {

// A list, or a tuple, of nothing but Python's floats, and ints that int64 holds, or of such lists
// of one shape. NumPy takes five times as long over them. No code of the caller's runs here.
class NumberList {
 public:
  // The list as an array of float64 or int64; null, with no exception set, for what NumPy has to
  // look at.
  static Ref Read(PyObject* list) {
    NumberList numbers;
    for (PyObject* part = list; IsSequence(part);) {
      if (numbers.ndim_ == kMost) return Ref();
      const Py_ssize_t length = PySequence_Fast_GET_SIZE(part);
      numbers.shape_[numbers.ndim_++] = length;
      if (length == 0) return Ref();
      part = PySequence_Fast_GET_ITEM(part, 0);
    }
    const npy_intp size = PyArray_OverflowMultiplyList(numbers.shape_, numbers.ndim_);
    if (size < 0) return Ref();
    if (!numbers.Walk(list, 0)) return Ref();
    Ref array(PyArray_SimpleNew(numbers.ndim_, numbers.shape_,
                                numbers.any_float_ ? NPY_DOUBLE : NPY_INT64));
    if (!array) return array;
    numbers.to_ = DataOf(array.get());
    numbers.Walk(list, 0);
    return array;
  }

 private:
  static constexpr int kMost = 4;  // axes

  static bool IsSequence(PyObject* object) {
    return PyList_CheckExact(object) || PyTuple_CheckExact(object);
  }

  // Checks the elements, or stores them if there is room for them.
  bool Walk(PyObject* list, int axis) {
    const Py_ssize_t length = PySequence_Fast_GET_SIZE(list);
    if (length != shape_[axis]) return false;
    for (Py_ssize_t i = 0; i < length; ++i) {
      PyObject* const item = PySequence_Fast_GET_ITEM(list, i);
      if (axis + 1 < ndim_ ? !IsSequence(item) || !Walk(item, axis + 1) : !Number(item)) {
        return false;
      }
    }
    return true;
  }

  bool Number(PyObject* item) {
    const bool is_float = PyFloat_CheckExact(item);
    if (!is_float && !PyLong_CheckExact(item)) return false;
    int overflow = 0;
    const long long whole = is_float ? 0 : PyLong_AsLongLongAndOverflow(item, &overflow);
    if (overflow != 0) return false;
    any_float_ = any_float_ || is_float;
    if (to_ == nullptr) return true;
    if (any_float_) {
      static_cast<double*>(to_)[at_++] =
          is_float ? PyFloat_AS_DOUBLE(item) : static_cast<double>(whole);
    } else {
      static_cast<npy_int64*>(to_)[at_++] = whole;
    }
    return true;
  }

  int ndim_ = 0;
  npy_intp shape_[kMost];
  bool any_float_ = false;
  void* to_ = nullptr;
  size_t at_ = 0;
};

// A number of that dtype as an array without axes.
Ref AsArrayOf(const void* number, DType dtype) {
  Ref array(NewArray(0, nullptr, dtype));
  if (array) std::memcpy(DataOf(array.get()), number, ItemSize(dtype));
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
  const auto single = static_cast<float>(value);
  return dtype == DType::kFloat32 ? AsArrayOf(&single, dtype) : AsArrayOf(&value, dtype);
}

}  // namespace

Ref AsPlainArray(PyObject* object) {
  if (PyArray_CheckExact(object)) return Ref(Py_NewRef(object));
  // These two are what sums return: NumPy takes ten times as long over them.
  if (Py_IS_TYPE(object, &PyDoubleArrType_Type)) {
    return AsArrayOf(&PyArrayScalar_VAL(object, Double), DType::kFloat64);
  }
  if (Py_IS_TYPE(object, &PyFloatArrType_Type)) {
    return AsArrayOf(&PyArrayScalar_VAL(object, Float), DType::kFloat32);
  }
  const bool is_list = PyList_CheckExact(object) || PyTuple_CheckExact(object);
  if (!is_list && !PyBool_Check(object) && !PyArray_IsScalar(object, Generic)) return Ref();
  // What else a list holds, such as masked arrays, is for Python.
  Ref array(is_list ? NumberList::Read(object) : Ref(PyArray_FROM_O(object)));
  if (!array) LeaveToPython();
  return array;
}

void LeaveToPython() {
  if (PyErr_ExceptionMatches(PyExc_Exception)) PyErr_Clear();
}

std::optional<Element> ElementOf(int type_number) {
  constexpr bool kLongIs32 = sizeof(long) == 4;
  switch (type_number) {
    case NPY_BOOL:
      return Element::kBool;
    case NPY_BYTE:
      return Element::kInt8;
    case NPY_UBYTE:
      return Element::kUint8;
    case NPY_SHORT:
      return Element::kInt16;
    case NPY_USHORT:
      return Element::kUint16;
    case NPY_INT:
      return Element::kInt32;
    case NPY_UINT:
      return Element::kUint32;
    case NPY_LONG:
      return kLongIs32 ? Element::kInt32 : Element::kInt64;
    case NPY_ULONG:
      return kLongIs32 ? Element::kUint32 : Element::kUint64;
    case NPY_LONGLONG:
      return Element::kInt64;
    case NPY_ULONGLONG:
      return Element::kUint64;
    case NPY_HALF:
      return Element::kFloat16;
    case NPY_FLOAT:
      return Element::kFloat32;
    case NPY_DOUBLE:
      return Element::kFloat64;
    default:
      return std::nullopt;
  }
}

std::optional<Storage> StorageOfArray(PyArrayObject* array) {
  const std::optional<Element> element = ElementOf(PyArray_TYPE(array));
  if (!element) return std::nullopt;
  return Storage{*element, !PyArray_ISNOTSWAPPED(array)};
}

bool PlainOperands::Convert(PyObject* const* given, Strides strides) {
  const bool as_stored = strides == Strides::kAsStored;
  // First all that may run code of the caller's, which may change arrays that were looked at.
  for (size_t i = 0; i < count_; ++i) {
    arrays_[i] = nullptr;
    if (given[i] == nullptr || given[i] == Py_None || IsWeak(given[i])) continue;
    Ref array = AsPlainArray(given[i]);
    if (!array || !PyArray_CheckExact(array.get())) return false;
    arrays_[i] = Keep(std::move(array));
  }
  std::array<Storage, kMaxArguments> storage;
  bool any = false, wide = false;
  for (size_t i = 0; i < count_; ++i) {
    if (arrays_[i] == nullptr) continue;
    const std::optional<Storage> known = StorageOfArray(arrays_[i]);
    if (!known || (!as_stored && !PyArray_IS_C_CONTIGUOUS(arrays_[i]))) return false;
    storage[i] = *known;
    any = true;
    wide = wide || ComputeType(known->element) == DType::kFloat64;
  }
  dtype_ = any && !wide ? DType::kFloat32 : DType::kFloat64;
  for (size_t i = 0; i < count_; ++i) {
    if (given[i] == nullptr || given[i] == Py_None) continue;
    PyArrayObject* const array = arrays_[i];
    if (array != nullptr &&
        (as_stored || KernelArray(reinterpret_cast<PyObject*>(array)) == dtype_)) {
      continue;
    }
    Ref made =
        array == nullptr ? WeakNumber(given[i], dtype_) : Converted(array, storage[i], dtype_);
    if (!made) return false;
    arrays_[i] = Keep(std::move(made));
  }
  return true;
}

bool PlainOperands::Fill(size_t i, int ndim, const npy_intp* shape) {
  Ref filled(NewArray(ndim, shape, dtype_));
  if (!filled) return false;
  OfType(dtype_, [&](auto type) {
    auto* const to = static_cast<decltype(type)*>(DataOf(filled.get()));
    std::fill_n(to, PyArray_SIZE(AsArray(filled.get())), *static_cast<decltype(to)>(data(i)));
  });
  arrays_[i] = Keep(std::move(filled));
  return true;
}

std::optional<double> AsNumber(PyObject* object) {
  if (PyFloat_CheckExact(object)) return PyFloat_AS_DOUBLE(object);
  const bool known = PyLong_CheckExact(object) || PyBool_Check(object) ||
                     PyArray_IsScalar(object, Integer) ||
                     (PyArray_IsScalar(object, Floating) && !PyArray_IsScalar(object, LongDouble));
  if (!known) return std::nullopt;
  double value;
  if (ReadDouble(object, &value)) return value;
  PyErr_Clear();
  return std::nullopt;
}

}  // namespace pullback

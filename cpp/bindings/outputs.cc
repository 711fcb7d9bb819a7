#include "bindings/outputs.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace pullback {
namespace {

void* Malloc(void*, size_t bytes) { return TakeMemory(bytes); }

void* Calloc(void*, size_t count, size_t size) {
  if (size != 0 && count > SIZE_MAX / size) return nullptr;
  void* const memory = TakeMemory(count * size);
  return memory == nullptr ? nullptr : std::memset(memory, 0, count * size);
}

void* Realloc(void*, void* memory, size_t bytes) {
  if (memory != nullptr && bytes <= CapacityOf(memory)) return memory;
  void* const larger = TakeMemory(bytes);
  if (larger == nullptr || memory == nullptr) return larger;
  std::memcpy(larger, memory, CapacityOf(memory));
  GiveMemory(memory);
  return larger;
}

void Free(void*, void* memory, size_t) {
  if (memory != nullptr) GiveMemory(memory);
}

PyDataMem_Handler handler = {"pullback_kept", 1, {nullptr, Malloc, Calloc, Realloc, Free}};
PyObject* kept_memory = nullptr;  // the handler as NumPy wants it
std::array<PyArray_Descr*, kDTypes> descrs;

// Returns the one before, or nullptr without an exception: then the one before is still in force.
PyObject* SetHandler(PyObject* next) {
  PyObject* const before = PyDataMem_SetHandler(next);
  if (before == nullptr) PyErr_Clear();
  return before;
}

}  // namespace

void KeptMemoryScope::Enter() {
  before_ = SetHandler(kept_memory);
  if (before_ == nullptr || before_ == PyDataMem_DefaultHandler) return;
  const Ref theirs(std::exchange(before_, nullptr));
  const Ref ours(SetHandler(theirs.get()));
}

void KeptMemoryScope::Leave() {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  const Ref ours(SetHandler(before_));
  Py_DECREF(before_);
  PyErr_Restore(type, value, traceback);
}

PyObject* NewArray(int ndim, const npy_intp* shape, DType dtype) {
  npy_intp dims[NPY_MAXDIMS], elements = 1;
  bool too_many = false;  // which NumPy says
  for (int a = 0; a < ndim; ++a) {
    dims[a] = shape[a];
    too_many = __builtin_mul_overflow(elements, dims[a], &elements) || too_many;
  }
  const KeptMemoryScope scope(too_many ? 0 : elements, dtype);
  // PyArray_SimpleNew looks for the descriptor first, and takes a fifth longer.
  PyArray_Descr* const descr = descrs[static_cast<size_t>(dtype)];
  Py_INCREF(descr);
  return PyArray_NewFromDescr(&PyArray_Type, descr, ndim, dims, nullptr, nullptr, 0, nullptr);
}

PyObject* NewScalar(const void* number, DType dtype) {
  PyObject* const scalar =
      dtype == DType::kFloat32 ? PyArrayScalar_New(Float) : PyArrayScalar_New(Double);
  if (scalar == nullptr) return nullptr;
  if (dtype == DType::kFloat32) {
    PyArrayScalar_ASSIGN(scalar, Float, *static_cast<const float*>(number));
  } else {
    PyArrayScalar_ASSIGN(scalar, Double, *static_cast<const double*>(number));
  }
  return scalar;
}

bool FlatOuts(PyObject* out, size_t count, bool bare, PyObject** flat, bool nested) {
  std::fill_n(flat, count, nullptr);
  if (out == nullptr || out == Py_None) return true;
  if (bare) {
    flat[0] = out;
    return true;
  }
  const auto spread = [](PyObject* tuple, size_t size, PyObject** to) {
    if (!PyTuple_CheckExact(tuple) || static_cast<size_t>(PyTuple_GET_SIZE(tuple)) != size) {
      return false;
    }
    for (size_t i = 0; i < size; ++i) {
      PyObject* const item = PyTuple_GET_ITEM(tuple, static_cast<Py_ssize_t>(i));
      to[i] = item == Py_None ? nullptr : item;
    }
    return true;
  };
  PyObject* pair[2];
  if (!nested || count != 3 || !spread(out, 2, pair)) return spread(out, count, flat);
  flat[0] = pair[0];
  return pair[1] == nullptr || spread(pair[1], 2, flat + 1);
}

bool Overlap(PyArrayObject* a, PyArrayObject* b) {
  const auto reach = [](PyArrayObject* array) {
    char* low = PyArray_BYTES(array);
    char* high = low + PyArray_ITEMSIZE(array);
    for (int a = 0; a < PyArray_NDIM(array); ++a) {
      const npy_intp steps = (PyArray_DIM(array, a) - 1) * PyArray_STRIDE(array, a);
      (steps < 0 ? low : high) += steps;
    }
    return std::pair(low, high);
  };
  const auto [a_low, a_high] = reach(a);
  const auto [b_low, b_high] = reach(b);
  return a_low < b_high && b_low < a_high;
}

bool ElementsApart(PyArrayObject* array) {
  if (PyArray_IS_C_CONTIGUOUS(array) || PyArray_IS_F_CONTIGUOUS(array)) return true;
  std::array<std::pair<npy_intp, npy_intp>, NPY_MAXDIMS> axes;  // stride, extent
  size_t count = 0;
  for (int a = 0; a < PyArray_NDIM(array); ++a) {
    if (PyArray_DIM(array, a) == 1) continue;
    axes[count++] = {std::abs(PyArray_STRIDE(array, a)), PyArray_DIM(array, a)};
  }
  std::sort(axes.begin(), axes.begin() + count);
  npy_intp reach = PyArray_ITEMSIZE(array);
  for (size_t a = 0; a < count; ++a) {
    const auto [stride, extent] = axes[a];
    if (stride < reach) return false;
    reach += (extent - 1) * stride;
  }
  return true;
}

namespace {

// Whether two arrays are the same elements, in the same places.
bool Alike(PyArrayObject* a, PyArrayObject* b) {
  return PyArray_BYTES(a) == PyArray_BYTES(b) && PyArray_TYPE(a) == PyArray_TYPE(b) &&
         PyArray_ISNOTSWAPPED(b) && SameShape(a, b) &&
         std::equal(PyArray_STRIDES(a), PyArray_STRIDES(a) + PyArray_NDIM(a), PyArray_STRIDES(b));
}

// In the memory order that NumPy would choose for these operands, which broadcast to that shape.
Ref NewLike(const PlainOperands& operands, int ndim, const npy_intp* shape, DType dtype) {
  bool in_c_order = true;
  for (size_t k = 0; k < operands.count(); ++k) {
    in_c_order = in_c_order && (operands[k] == nullptr || PyArray_IS_C_CONTIGUOUS(operands[k]));
  }
  if (in_c_order) return Ref(NewArray(ndim, shape, dtype));  // an iterator takes 0.1 us
  const KeptMemoryScope scope(PyArray_MultiplyList(shape, ndim), dtype);
  std::array<PyArrayObject*, kMaxArguments + 1> arrays{};
  std::array<npy_uint32, kMaxArguments + 1> flags{};
  std::array<PyArray_Descr*, kMaxArguments + 1> descrs{};
  int count = 0;
  for (size_t k = 0; k < operands.count(); ++k) {
    if (operands[k] == nullptr) continue;
    arrays[static_cast<size_t>(count)] = operands[k];
    flags[static_cast<size_t>(count++)] = NPY_ITER_READONLY;
  }
  const auto last = static_cast<size_t>(count);
  const Ref descr(reinterpret_cast<PyObject*>(PyArray_DescrFromType(TypeNumber(dtype))));
  flags[last] = NPY_ITER_WRITEONLY | NPY_ITER_ALLOCATE;
  descrs[last] = reinterpret_cast<PyArray_Descr*>(descr.get());
  NpyIter* const iterator =
      NpyIter_MultiNew(count + 1, arrays.data(), NPY_ITER_ZEROSIZE_OK, NPY_KEEPORDER,
                       NPY_NO_CASTING, flags.data(), descrs.data());
  if (iterator == nullptr) return Ref();
  Ref array(Py_NewRef(reinterpret_cast<PyObject*>(NpyIter_GetOperandArray(iterator)[last])));
  NpyIter_Deallocate(iterator);
  return array;
}

}  // namespace

bool Outputs::AddOther(PyObject* given, int ndim, const npy_intp* shape, DType dtype,
                       const PlainOperands& operands, Order order) {
  given_[count_] = given != nullptr;
  if (given == nullptr) {
    return static_cast<bool>(arrays_[count_++] = NewLike(operands, ndim, shape, dtype));
  }
  if (KernelArray(given) != dtype) return false;
  const bool in_c_order = order == Order::kC;
  PyArrayObject* const array = AsArray(given);
  if (!(in_c_order ? PyArray_IS_C_CONTIGUOUS(array) != 0 : ElementsApart(array)) ||
      !PyArray_ISWRITEABLE(array) || !IsOfShape(array, ndim, shape)) {
    return false;
  }
  for (size_t i = 0; i < operands.count(); ++i) {
    if (operands[i] != nullptr && Overlap(array, operands[i]) &&
        (in_c_order || !Alike(array, operands[i]))) {
      return false;
    }
  }
  for (size_t i = 0; i < count_; ++i) {
    if (given_[i] && Overlap(array, AsArray(arrays_[i].get()))) return false;
  }
  arrays_[count_++] = Ref(Py_NewRef(given));
  return true;
}

PyObject* Outputs::Release(size_t i) {
  if (!arrays_[i]) return NewScalar(&numbers_[i], dtype_);
  PyObject* const array = arrays_[i].release();
  return given_[i] ? array : PyArray_Return(AsArray(array));
}

bool RegisterOutputs() {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    descrs[static_cast<size_t>(dtype)] = PyArray_DescrFromType(TypeNumber(dtype));
  }
  kept_memory = PyCapsule_New(&handler, "mem_handler", nullptr);
  return kept_memory != nullptr;
}

}  // namespace pullback

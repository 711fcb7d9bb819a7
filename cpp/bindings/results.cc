#include "bindings/results.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "runtime/kept_memory.h"

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

// Returns the one before, or nullptr without an exception: then the one before is still in force.
PyObject* SetHandler(PyObject* next) {
  PyObject* const before = PyDataMem_SetHandler(next);
  if (before == nullptr) PyErr_Clear();
  return before;
}

}  // namespace

KeptMemoryScope::KeptMemoryScope(npy_intp elements, DType dtype) {
  if (elements < static_cast<npy_intp>(kLeastKept / ItemSize(dtype))) return;
  before_ = SetHandler(kept_memory);
  if (before_ == nullptr || before_ == PyDataMem_DefaultHandler) return;
  const Ref theirs(std::exchange(before_, nullptr));
  const Ref ours(SetHandler(theirs.get()));
}

KeptMemoryScope::~KeptMemoryScope() {
  if (before_ == nullptr) return;
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  const Ref ours(SetHandler(before_));
  Py_DECREF(before_);
  PyErr_Restore(type, value, traceback);
}

PyObject* NewArray(int ndim, const npy_intp* shape, DType dtype) {
  npy_intp dims[NPY_MAXDIMS];
  std::copy_n(shape, ndim, dims);
  // -1 where there are too many, which NumPy says.
  const KeptMemoryScope scope(PyArray_OverflowMultiplyList(dims, ndim), dtype);
  return PyArray_SimpleNew(ndim, dims, TypeNumber(dtype));
}

bool OnlyOut(PyObject* kwnames, PyObject* const* keywords, PyObject** out) {
  *out = nullptr;
  if (kwnames == nullptr || PyTuple_GET_SIZE(kwnames) == 0) return true;
  if (PyTuple_GET_SIZE(kwnames) != 1 ||
      PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "out") != 0) {
    return false;
  }
  if (keywords[0] != Py_None) *out = keywords[0];
  return true;
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

bool Outputs::Add(PyObject* given, int ndim, const npy_intp* shape, DType dtype,
                  const PlainOperands& operands) {
  const bool none = given == nullptr || given == Py_None;
  if (!none) {
    if (KernelArray(given) != dtype) return false;
    PyArrayObject* const array = AsArray(given);
    if (!PyArray_IS_C_CONTIGUOUS(array) || !PyArray_ISWRITEABLE(array) ||
        PyArray_NDIM(array) != ndim || !std::equal(shape, shape + ndim, PyArray_DIMS(array))) {
      return false;
    }
    for (size_t i = 0; i < operands.count(); ++i) {
      if (operands[i] != nullptr && Overlap(array, operands[i])) return false;
    }
    for (size_t i = 0; i < count_; ++i) {
      if (wanted_[i].given && Overlap(array, AsArray(arrays_[i].get()))) return false;
    }
    arrays_[count_] = Ref(Py_NewRef(given));
  }
  wanted_[count_++] = {ndim, shape, dtype, !none};
  return true;
}

bool Outputs::Make() {
  for (size_t i = 0; i < count_; ++i) {
    const Wanted& wanted = wanted_[i];
    if (wanted.given) continue;
    arrays_[i] = Ref(NewArray(wanted.ndim, wanted.shape, wanted.dtype));
    if (!arrays_[i]) return false;
  }
  return true;
}

PyObject* Outputs::Release(size_t i, bool scalar) {
  PyObject* const array = arrays_[i].release();
  return scalar && !wanted_[i].given ? PyArray_Return(AsArray(array)) : array;
}

bool RegisterResults() {
  kept_memory = PyCapsule_New(&handler, "mem_handler", nullptr);
  return kept_memory != nullptr;
}

}  // namespace pullback

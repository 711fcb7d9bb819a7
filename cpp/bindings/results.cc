#include "bindings/results.h"

#include <algorithm>
#include <cstring>

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

bool RegisterResults() {
  kept_memory = PyCapsule_New(&handler, "mem_handler", nullptr);
  return kept_memory != nullptr;
}

}  // namespace pullback

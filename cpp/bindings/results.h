// Arrays for results: new ones, of which large ones lie in memory kept from earlier ones, and given
// ones.
#ifndef PULLBACK_CPP_BINDINGS_RESULTS_H_
#define PULLBACK_CPP_BINDINGS_RESULTS_H_

#include "bindings/numpy_api.h"

namespace pullback {

// For its scope, NumPy takes the memory of new arrays from what is kept (runtime/kept_memory.h), if
// that many elements are large enough. An allocator of the user's own is left in place.
class KeptMemoryScope {
 public:
  KeptMemoryScope(npy_intp elements, DType dtype);
  ~KeptMemoryScope();
  KeptMemoryScope(const KeptMemoryScope&) = delete;
  KeptMemoryScope& operator=(const KeptMemoryScope&) = delete;

 private:
  PyObject* before_ = nullptr;
};

// An uninitialised array in C order; nullptr with an exception set.
PyObject* NewArray(int ndim, const npy_intp* shape, DType dtype);

// out=array, or out=(array, array): what was given, else nothing; false for any other keyword.
bool OnlyOut(PyObject* kwnames, PyObject* const* keywords, PyObject** out);

// Whether the memory from the first to the last element of one meets the other's.
bool Overlap(PyArrayObject* a, PyArrayObject* b);

// Whether no two elements lie in the same memory. False also where axes merely interlock.
bool ElementsApart(PyArrayObject* array);

bool RegisterResults();

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_RESULTS_H_

// Arrays that broadcast, and where their elements are for the kernels of whole arrays.
#ifndef PULLBACK_CPP_BINDINGS_SHAPES_H_
#define PULLBACK_CPP_BINDINGS_SHAPES_H_

#include <algorithm>
#include <array>

#include "bindings/numpy_api.h"
#include "kernels/broadcast.h"

namespace pullback {

struct Shape {
  int ndim = 0;
  std::array<npy_intp, kMaxAxes> extent;

  Shape() {}  // extents as they are
  Shape(const Shape& other) { *this = other; }
  Shape& operator=(const Shape& other) {  // all of them take as long as a small call
    ndim = other.ndim;
    std::copy_n(other.extent.begin(), ndim, extent.begin());
    return *this;
  }

  // False where the two do not broadcast.
  bool Broadcast(PyArrayObject* array) {
    const int more = PyArray_NDIM(array) - ndim;
    if (more > 0) {
      std::copy_backward(extent.begin(), extent.begin() + ndim, extent.begin() + ndim + more);
      std::fill_n(extent.begin(), more, npy_intp{1});
      ndim += more;
    }
    npy_intp* const last = extent.data() + (ndim - PyArray_NDIM(array));
    for (int a = 0; a < PyArray_NDIM(array); ++a) {
      const npy_intp dim = PyArray_DIM(array, a);
      if (last[a] == 1) last[a] = dim;
      if (dim != 1 && dim != last[a]) return false;
    }
    return true;
  }

  size_t Size() const {
    size_t size = 1;
    for (int a = 0; a < ndim; ++a) size *= static_cast<size_t>(extent[static_cast<size_t>(a)]);
    return size;
  }

  bool Is(PyArrayObject* array) const {
    return PyArray_NDIM(array) == ndim &&
           std::equal(extent.begin(), extent.begin() + ndim, PyArray_DIMS(array));
  }

  bool operator==(const Shape& other) const {
    return ndim == other.ndim &&
           std::equal(extent.begin(), extent.begin() + ndim, other.extent.begin());
  }
};

// An array against the axes of a call, its first `batch` axes to the left, the others to the right;
// 0 steps where it is repeated. An output also has 0 where it is summed.
inline void SetOperand(ArrayCall& call, size_t k, PyArrayObject* array, Storage storage,
                       int batch = 0) {
  ArrayOperand& operand = call.operand[k];
  operand.data = PyArray_BYTES(array);
  operand.storage = storage;
  const int missing = call.axes - PyArray_NDIM(array);
  for (int a = 0; a < call.axes; ++a) {
    const int axis = a < batch ? a : a - missing;
    operand.stride[a] = axis < 0 || (a >= batch && axis < batch) || PyArray_DIM(array, axis) == 1
                            ? 0
                            : PyArray_STRIDE(array, axis);
  }
}

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_SHAPES_H_

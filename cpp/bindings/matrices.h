// NumPy's arrays as matrices in a batch, and products of them.
#ifndef PULLBACK_CPP_BINDINGS_MATRICES_H_
#define PULLBACK_CPP_BINDINGS_MATRICES_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <new>
#include <span>
#include <utility>

#include "bindings/call.h"
#include "bindings/numpy_api.h"
#include "kernels/matmul.h"

namespace pullback {

// More multiplications than this are done without the GIL.
inline constexpr double kReleaseGil = 1e5;

// Thrown with an exception of Python's set.
struct Raised {};

// kernel(poll), which is so many multiplications.
template <class Kernel>
void RunOrRaise(double work, const Kernel& kernel) {
  if (!RunKernel(work > kReleaseGil, kernel)) throw Raised();
}

// A stride that is whole elements; by shifts, since divisions take longer.
inline ptrdiff_t InElements(npy_intp bytes, npy_intp item) {
  return item == sizeof(double) ? bytes / ptrdiff_t{sizeof(double)}
                                : bytes / ptrdiff_t{sizeof(float)};
}

// An array, or memory in the form of one; strides in bytes. False if there is none.
struct Strided {
  char* data = nullptr;
  size_t ndim = 0;
  const npy_intp* shape = nullptr;
  const npy_intp* stride = nullptr;
  npy_intp item = 0;
  PyArrayObject* array = nullptr;

  explicit operator bool() const { return item != 0; }
  npy_intp last() const { return shape[ndim - 1]; }
  bool HasShape(size_t axes, const npy_intp* extents) const {
    return ndim == axes && std::equal(extents, extents + axes, shape);
  }
  ptrdiff_t Step(size_t axis) const { return InElements(stride[axis], item); }
};

inline Strided AsStrided(PyArrayObject* array) {
  if (array == nullptr) return {};
  return {PyArray_BYTES(array),    static_cast<size_t>(PyArray_NDIM(array)),
          PyArray_DIMS(array),     PyArray_STRIDES(array),
          PyArray_ITEMSIZE(array), array};
}

// The axes of a matrix with which an array ends.
enum Ends : unsigned { kInNone = 0, kInColumns = 1, kInRows = 2, kInBoth = 3 };

// An array as matrices in a batch; strides in elements.
struct Matrices {
  char* data = nullptr;
  size_t rows = 1, cols = 1;
  ptrdiff_t row = 0, col = 0;
  size_t axes = 0;   // of the batch
  size_t stack = 0;  // of which so many, or none, are the stack's
  // Their extents, and strides in bytes of such an item; null for one at most, as follows.
  const npy_intp* extents = nullptr;
  const npy_intp* strides = nullptr;
  npy_intp item = 0;
  npy_intp extent = 1;
  ptrdiff_t stride = 0;

  npy_intp Extent(size_t axis) const { return extents == nullptr ? extent : extents[axis]; }
  ptrdiff_t Stride(size_t axis) const {
    return extents == nullptr ? stride : InElements(strides[axis], item);
  }

  Matrices Transposed() const {
    Matrices t = *this;
    std::swap(t.rows, t.cols);
    std::swap(t.row, t.col);
    return t;
  }

  bool HasPlainRows() const { return rows == 0 || cols <= 1 || col == 1; }

  // One of a stack that is a single axis.
  size_t StackSize() const { return axes == 0 ? 1 : static_cast<size_t>(extent); }
  Matrix OfStack(size_t index) const {
    return {data + static_cast<ptrdiff_t>(index) * stride * item, row, col};
  }
};

// Here and below: the data of a small product stay in registers if everything is inline.
#define PULLBACK_INLINE [[gnu::always_inline]] inline

// Sets all but the axes; returns how many there are.
PULLBACK_INLINE size_t SeeAs(const Strided& array, unsigned ends, Matrices& x) {
  size_t axis = array.ndim;
  // The stride of an axis of length 1 means nothing, and may be anything.
  if ((ends & kInColumns) != 0) {
    x.cols = static_cast<size_t>(array.shape[--axis]);
    x.col = x.cols > 1 ? array.Step(axis) : 0;
  }
  if ((ends & kInRows) != 0) {
    x.rows = static_cast<size_t>(array.shape[--axis]);
    x.row = x.rows > 1 ? array.Step(axis) : 0;
  }
  x.data = array.data;
  x.item = array.item;
  return axis;
}

PULLBACK_INLINE Matrices Seen(const Strided& array, unsigned ends, size_t stack = 0) {
  Matrices x;
  x.axes = SeeAs(array, ends, x);
  x.stack = stack;
  x.extents = array.shape;
  x.strides = array.stride;
  return x;
}

// Merges axes into one; false if their strides do not allow that.
inline bool Merge(const Strided& array, size_t begin, size_t end, npy_intp& n, ptrdiff_t& stride) {
  n = 1;
  stride = 0;
  for (size_t axis = end; axis-- > begin;) {
    const npy_intp more = array.shape[axis];
    if (more == 0) {
      n = 0;
      return true;
    }
    if (more == 1) continue;
    if (n > 1 && array.Step(axis) != n * stride) return false;
    if (n == 1) stride = array.Step(axis);
    n *= more;
  }
  return true;
}

// The array as a stack of matrices: its stack as one axis, and all but its last axis, or all, as
// rows. False where their strides do not allow that.
inline bool Flatten(const Strided& array, unsigned ends, size_t stack, Matrices& flat) {
  if (array.ndim <= 2 && stack == 0 && ends == kInColumns) {
    SeeAs(array, array.ndim == 2 ? kInBoth : kInColumns, flat);
    return true;
  }
  const size_t end = array.ndim - (ends == kInColumns ? 1 : 0);
  npy_intp rows, cols;
  if (!Merge(array, stack, end, rows, flat.row) || !Merge(array, end, array.ndim, cols, flat.col) ||
      !Merge(array, 0, stack, flat.extent, flat.stride)) {
    return false;
  }
  flat.data = array.data;
  flat.item = array.item;
  flat.rows = static_cast<size_t>(rows);
  flat.cols = static_cast<size_t>(cols);
  flat.axes = flat.stack = stack > 0 ? 1 : 0;
  return true;
}

// Axes in front of matrices: those of a stack of cotangents, then the batch that operands broadcast
// to.
struct Batch {
  size_t axes = 0, stack = 0;
  std::array<npy_intp, kMaxBatchAxes> extent;

  Batch() {}  // extents as they are

  bool Broadcast(const npy_intp* with, size_t count) {
    if (count > kMaxBatchAxes) return false;
    if (count > axes) {
      std::copy_backward(extent.data(), extent.data() + axes, extent.data() + count);
      std::fill_n(extent.begin(), count - axes, 1);
      axes = count;
    }
    npy_intp* const own = extent.data() + (axes - count);
    for (size_t i = 0; i < count; ++i) {
      if (own[i] != with[i] && own[i] != 1 && with[i] != 1) return false;
      if (own[i] == 1) own[i] = with[i];
    }
    return true;
  }

  bool Stack(const npy_intp* in_front, size_t count) {
    if (axes + count > kMaxBatchAxes) return false;
    std::copy_backward(extent.data(), extent.data() + axes, extent.data() + axes + count);
    std::copy_n(in_front, count, extent.begin());
    axes += count;
    stack = count;
    return true;
  }
};

// A job: products of matrices in a batch.
class Products {
 public:
  Products(DType dtype, const Batch& batch) : dtype_(dtype), batch_(batch) {}

  // c = or += a b; the batch axes that c has as 1, or lacks, are summed.
  PULLBACK_INLINE void Append(const Matrices& a, const Matrices& b, const Matrices& c,
                              bool add = false) {
    Product& product = *new (memory_ + sizeof(Product) * count_++) Product;
    product.m = a.rows;
    product.n = b.cols;
    product.k = a.cols;
    product.a = {a.data, a.row, a.col};
    product.b = {b.data, b.row, b.col};
    product.c = {c.data, c.row, c.col};
    product.add = add;
    const double work = static_cast<double>(a.rows) *
                        static_cast<double>(std::max(a.cols, size_t{1})) *
                        static_cast<double>(b.cols);
    work_ += batch_.axes == 0 ? work : work * AppendBatch(product, a, b, c);
  }

  void Run() {
    const auto* const first = std::launder(reinterpret_cast<const Product*>(memory_));
    const std::span<const Product> products(first, count_);
    RunOrRaise(work_, [&](Poll* poll) { return Matmul(dtype_, products, poll); });
    count_ = 0;
    work_ = 0;
  }

 private:
  // How many there are in the batch. By value: what is passed by address has to be in memory.
  [[gnu::noinline]] double AppendBatch(Product& product, Matrices a, Matrices b, Matrices c) const {
    double work = 1;
    for (size_t axis = batch_.axes; axis-- > 0;) {
      BatchAxis x{static_cast<size_t>(batch_.extent[axis]), StrideOf(a, axis), StrideOf(b, axis),
                  StrideOf(c, axis)};
      if (x.n == 1) continue;
      work *= static_cast<double>(x.n);
      if (ExtentOf(c, axis) == 1) {
        Sum(product, x);
      } else if (size_t& axes = product.batch_axes;
                 axes > 0 && Continues(x, product.batch[axes - 1])) {
        product.batch[axes - 1].n *= x.n;
      } else {
        product.batch[axes++] = x;
      }
    }
    // Built from the innermost axis outwards.
    std::reverse(product.batch.begin(),
                 product.batch.begin() + static_cast<ptrdiff_t>(product.batch_axes));
    return work;
  }

  // Which of its axes is one of the batch; as many as it has where it repeats along that.
  size_t AxisOf(const Matrices& x, size_t axis) const {
    if (axis < batch_.stack) return x.stack > 0 ? axis : x.axes;
    const size_t from_behind = batch_.axes - axis;
    return from_behind > x.axes - x.stack ? x.axes : x.axes - from_behind;
  }

  npy_intp ExtentOf(const Matrices& x, size_t axis) const {
    const size_t own = AxisOf(x, axis);
    return own == x.axes ? 1 : x.Extent(own);
  }

  ptrdiff_t StrideOf(const Matrices& x, size_t axis) const {
    const size_t own = AxisOf(x, axis);
    return own == x.axes || x.Extent(own) == 1 ? 0 : x.Stride(own);
  }

  static bool Continues(const BatchAxis& outer, const BatchAxis& inner) {
    const auto n = static_cast<ptrdiff_t>(inner.n);
    return outer.a == n * inner.a && outer.b == n * inner.b && outer.c == n * inner.c;
  }

  // Merges a summed axis into the contracted one, or into the last one summed, if it can.
  static void Sum(Product& product, const BatchAxis& x) {
    size_t& sums = product.fold_axes;
    const auto k = static_cast<ptrdiff_t>(product.k);
    if (sums == 0 && (k == 1 || (x.a == k * product.a.col && x.b == k * product.b.row))) {
      if (k == 1) {
        product.a.col = x.a;
        product.b.row = x.b;
      }
      product.k *= x.n;
    } else if (sums > 0 && Continues(x, product.folds[sums - 1])) {
      product.folds[sums - 1].n *= x.n;
    } else {
      product.folds[sums++] = x;
    }
  }

  DType dtype_;
  const Batch& batch_;
  double work_ = 0;
  // Four products, made when they are needed: each is a page.
  alignas(Product) std::byte memory_[4 * sizeof(Product)];
  size_t count_ = 0;
};

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_MATRICES_H_

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>

#include "bindings/jacobian_slots.h"
#include "bindings/matrices.h"
#include "bindings/outputs.h"
#include "kernels/reductions.h"
#include "runtime/poll.h"

namespace pullback::jacobian {
namespace {

// For as long as the process lives: axis, vjp, jvp, interned.
std::array<PyObject*, 3> row_names;

// Up to so many operations Python's own time is felt: more are left to it, as is all that is not
// plain. One by one, few factors take fewer operations than the plan of an order is worth.
constexpr size_t kMostWork = size_t{1} << 15;
// Larger products of matrices are NumPy's, as in arguments.py.
constexpr size_t kFew = size_t{1} << 12;
constexpr Py_ssize_t kMostFactors = 8;
constexpr Py_ssize_t kMostOptions = 4;  // of a map of rows

// A shape that Python holds, with room for an axis more.
struct Shape {
  size_t size = 1;
  int ndim = 0;
  std::array<npy_intp, NPY_MAXDIMS> extent;

  Shape() {}  // extents as they are

  // False for what is none, or of more elements than are moved here, or of none.
  bool Read(PyObject* tuple) {
    if (tuple == nullptr || !PyTuple_CheckExact(tuple) || PyTuple_GET_SIZE(tuple) >= NPY_MAXDIMS) {
      return false;
    }
    for (; ndim < PyTuple_GET_SIZE(tuple); ++ndim) {
      PyObject* const n = PyTuple_GET_ITEM(tuple, ndim);
      int overflow = 1;
      const long long own = PyLong_CheckExact(n) ? PyLong_AsLongLongAndOverflow(n, &overflow) : 0;
      if (overflow != 0 || own < 1 || own > static_cast<long long>(kMostWork / size)) return false;
      extent[static_cast<size_t>(ndim)] = static_cast<npy_intp>(own);
      size *= static_cast<size_t>(own);
    }
    return true;
  }

  bool operator==(const Shape& other) const {
    return ndim == other.ndim &&
           std::equal(extent.begin(), extent.begin() + ndim, other.extent.begin());
  }

  // Of `axes` axes, of which the shape has the last ones.
  npy_intp Extent(int axis, int axes) const {
    const int own = axis - (axes - ndim);
    return own < 0 ? 1 : extent[static_cast<size_t>(own)];
  }
};

bool IsNoBatches(PyObject* batches) {
  if (batches == no_batches || batches == nullptr) return batches != nullptr;
  return PyTuple_CheckExact(batches) && PyTuple_GET_SIZE(batches) == 2 &&
         PyTuple_GET_ITEM(batches, 0) == PyTuple_GET_ITEM(no_batches, 0) &&
         PyTuple_GET_ITEM(batches, 1) == PyTuple_GET_ITEM(no_batches, 0);
}

// A factor of a Kronecker product; null data for an identity.
struct Side {
  Matrices matrix;
  bool is_identity;

  bool Read(PyObject* held, DType dtype, bool transposed) {
    if (held == nullptr) return false;
    is_identity = PyLong_CheckExact(held);
    if (is_identity) {
      int overflow;
      const long long n = PyLong_AsLongLongAndOverflow(held, &overflow);
      if (overflow != 0 || n < 1 || n > static_cast<long long>(kMostWork)) return false;
      matrix.rows = matrix.cols = static_cast<size_t>(n);
      return true;
    }
    if (KernelArray(held) != dtype || PyArray_NDIM(AsArray(held)) != 2) return false;
    matrix = Seen(AsStrided(AsArray(held)), kInBoth);
    if (std::max(matrix.rows, matrix.cols) > kMostWork) return false;  // their products are numbers
    if (transposed) matrix = matrix.Transposed();
    return true;
  }

  template <class T>
  T At(size_t i, size_t j) const {
    return static_cast<const T*>(
        static_cast<const void*>(matrix.data))[static_cast<ptrdiff_t>(i) * matrix.row +
                                               static_cast<ptrdiff_t>(j) * matrix.col];
  }
};

using Memory = std::unique_ptr<std::byte[]>;

// A Jacobian of a class of ours, or its transpose: what its slots held when they were read.
class Factor {
 public:
  // False for what is left to Python.
  bool Read(PyObject* jacobian, DType dtype, bool transposed) {
    kind = KindOf(jacobian);
    dtype_ = dtype;
    item_ = ItemSize(dtype);
    transposed_ = transposed;
    if (kind == kKinds || kind == kProduct || !in.Read(Held(jacobian, kind, transposed ? 2 : 1)) ||
        !out.Read(Held(jacobian, kind, transposed ? 1 : 2))) {
      return false;
    }
    const bool is_square = in.size == out.size;
    PyObject* const first = kSlots[kind].own[0] == nullptr ? nullptr : Held(jacobian, kind, kOwn);
    const auto held = [&](size_t i) { return Held(jacobian, kind, kOwn + i); };
    switch (kind) {
      case kIdentity:
      case kReshape:
        return is_square;
      case kBroadcast:
      case kSumTo:
        return Folds();
      case kDiagonal:
      case kRowWise:
        array_ = Ref(Py_XNewRef(kind == kDiagonal ? first : held(1)));
        if (!array_ || KernelArray(array_.get()) != dtype || !is_square ||
            static_cast<size_t>(SizeOf(AsArray(array_.get()))) != in.size) {
          return false;
        }
        if (!PyArray_IS_C_CONTIGUOUS(AsArray(array_.get()))) {
          if (kind == kRowWise) return false;
          array_ = Ref(PyArray_NewCopy(AsArray(array_.get()), NPY_CORDER));
        }
        return array_ && (kind == kDiagonal || ReadRows(first, held(2), held(3), held(4)));
      case kDense:
        array_ = Ref(Py_XNewRef(first));
        left.matrix.rows = left.matrix.cols = 1;
        left.is_identity = true;
        return right.Read(first, dtype, transposed) && !right.is_identity && Fits();
      case kKronecker:
        array_ = Ref(Py_XNewRef(first));
        other_ = Ref(Py_XNewRef(held(1)));
        return IsNoBatches(held(2)) && left.Read(first, dtype, transposed) &&
               right.Read(held(1), dtype, transposed) && Fits();
      default:
        return false;
    }
  }

  // Additions and multiplications, as `flops` in Python.
  size_t Flops(size_t k) const {
    const auto& [p, q] = std::pair(left.matrix.rows, left.matrix.cols);
    const auto& [r, s] = std::pair(right.matrix.rows, right.matrix.cols);
    switch (kind) {
      case kDiagonal:
        return k * in.size;
      case kRowWise:
        return 4 * k * in.size;
      case kSumTo:
      case kBroadcast:
        return k * (std::max(in.size, out.size) - std::min(in.size, out.size));
      case kDense:
      case kKronecker:
        if (left.is_identity) return 2 * k * p * r * s;
        if (right.is_identity) return 2 * k * p * q * r;
        return 2 * k * (LeftFirst() ? p * s * (q + r) : q * r * (s + p));
      default:
        return 0;
    }
  }

  bool IsIdentity() const { return kind == kIdentity || kind == kReshape; }

  // From rows (k, in) to rows (k, out), both in C order. False, perhaps with an exception set, for
  // what is left to Python.
  bool Apply(size_t k, const void* from, void* to) const {
    switch (kind) {
      case kDiagonal:
        Scale(k, from, to, in.size);
        return true;
      case kBroadcast:
      case kSumTo:
        if ((kind == kSumTo) != transposed_) return Sum(k, from, to);
        OfType(dtype_, [&](auto zero) {
          using T = decltype(zero);
          auto* next = static_cast<T*>(to);
          for (size_t i = 0; i < k; ++i)
            next = Repeat(0, static_cast<const T*>(from) + i * in.size, next);
        });
        return true;
      case kDense:
      case kKronecker:
        return Multiply(k, from, to);
      case kRowWise:
        return MoveRows(k, from, to);
      default:
        return Copy(k, from, to);
    }
  }

  // Each row of (k, n) times the elements of a diagonal.
  void Scale(size_t k, const void* from, void* to, size_t n) const {
    const KernelFpEnv fp_env(nullptr);
    const ElementwiseKernel multiply =
        FindOp("multiply")
            ->kernel[static_cast<size_t>(Method::kValue)][static_cast<size_t>(dtype_)];
    for (size_t i = 0; i < k; ++i) {
      const size_t at = i * n * item_;
      const void* const read[] = {DataOf(array_.get()), static_cast<const char*>(from) + at};
      void* const written[] = {static_cast<char*>(to) + at};
      multiply(read, written, n, 0);
    }
  }

  // The transposed matrix (in, out).
  bool Columns(void* to) const {
    return OfType(dtype_, [&](auto zero) {
      using T = decltype(zero);
      auto* const columns = static_cast<T*>(to);
      const size_t p = left.matrix.rows, q = left.matrix.cols;
      const size_t r = right.matrix.rows, s = right.matrix.cols;
      switch (kind) {
        case kDiagonal:
          SetUnits(columns, static_cast<const T*>(DataOf(array_.get())));
          return true;
        case kDense:
        case kKronecker: {
          const KernelFpEnv fp_env(nullptr);
          // Zeros are structure: they hide even an infinity.
          std::fill_n(columns, in.size * out.size, T{0});
          for (size_t a = 0; a < q; ++a) {
            for (size_t b = 0; b < s; ++b) {
              T* const column = columns + (a * s + b) * out.size;
              for (size_t i = left.is_identity ? a : 0; i < (left.is_identity ? a + 1 : p); ++i) {
                for (size_t j = right.is_identity ? b : 0; j < (right.is_identity ? b + 1 : r);
                     ++j) {
                  column[i * r + j] = Element<T>(i, a, j, b);
                }
              }
            }
          }
          return true;
        }
        default: {
          if (kind == kRowWise && PyArray_NDIM(AsArray(array_.get())) != 1) return false;
          if (kind == kRowWise) return MoveRows(in.size, nullptr, columns);
          const auto units = std::make_unique_for_overwrite<T[]>(in.size * in.size);
          SetUnits(units.get());
          return Apply(in.size, units.get(), columns);
        }
      }
    });
  }

  // The first elements of the diagonal, as many as there are.
  bool Diagonal(void* to) const {
    return OfType(dtype_, [&](auto zero) {
      using T = decltype(zero);
      auto* const elements = static_cast<T*>(to);
      const size_t n = std::min(in.size, out.size);
      const size_t p = left.matrix.rows, r = right.matrix.rows;
      switch (kind) {
        case kDiagonal:  // Python gives a view
          return false;
        case kDense:
          for (size_t i = 0; i < n; ++i) elements[i] = right.At<T>(i, i);
          return true;
        case kKronecker: {
          if (p != left.matrix.cols || r != right.matrix.cols) return false;
          const KernelFpEnv fp_env(nullptr);
          for (size_t i = 0; i < p; ++i) {
            for (size_t j = 0; j < r; ++j) elements[i * r + j] = Element<T>(i, i, j, j);
          }
          return true;
        }
        case kRowWise: {
          if (n * n > kMostWork) return false;
          const auto columns = std::make_unique_for_overwrite<T[]>(n * n);
          if (!Columns(columns.get())) return false;
          for (size_t i = 0; i < n; ++i) elements[i] = columns[i * (n + 1)];
          return true;
        }
        default: {
          // An element is its own source up to where the first repetition ends.
          const Shape& few = in.size < out.size ? in : out;
          const Shape& many = in.size < out.size ? out : in;
          size_t behind = 1, own = n;
          for (int a = many.ndim; !IsIdentity() && a-- > 0;) {
            behind *= static_cast<size_t>(few.Extent(a, many.ndim));
            if (few.Extent(a, many.ndim) == many.Extent(a, many.ndim)) continue;
            own = behind;
            break;
          }
          std::fill_n(elements, n, T{0});
          std::fill_n(elements, own, T{1});
          return true;
        }
      }
    });
  }

  Kind kind = kKinds;
  Shape in, out;

 private:
  // Whether one of the shapes broadcasts to the other.
  bool Folds() const {
    const bool sums = (kind == kSumTo) != transposed_;
    const Shape &few = sums ? out : in, &many = sums ? in : out;
    bool fits = few.ndim <= many.ndim;
    for (int a = 0; fits && a < many.ndim; ++a) {
      const npy_intp own = few.Extent(a, many.ndim);
      fits = own == 1 || own == many.Extent(a, many.ndim);
    }
    return fits;
  }

  bool Fits() const {
    return left.matrix.cols * right.matrix.cols == in.size &&
           left.matrix.rows * right.matrix.rows == out.size;
  }

  bool ReadRows(PyObject* primitive, PyObject* axis, PyObject* options, PyObject* is_transposed) {
    if (primitive == nullptr || axis == nullptr || !PyLong_CheckExact(axis) || options == nullptr ||
        !PyDict_CheckExact(options) || PyDict_GET_SIZE(options) > kMostOptions ||
        is_transposed == nullptr || !PyBool_Check(is_transposed) ||
        PyArray_NDIM(AsArray(array_.get())) == NPY_MAXDIMS) {
      return false;
    }
    is_vjp_ = (is_transposed == Py_True) != transposed_;
    other_ = Ref(Py_NewRef(primitive));
    options_ = Ref(PyDict_Copy(options));
    int overflow;
    axis_ = PyLong_AsLongAndOverflow(axis, &overflow);
    PyObject *name, *value;
    for (Py_ssize_t place = 0;
         options_ && PyDict_Next(options_.get(), &place, &name, &value) != 0;) {
      if (!PyUnicode_CheckExact(name)) return false;
    }
    return options_ && overflow == 0 && std::abs(axis_) <= NPY_MAXDIMS;
  }

  // A matrix of zeros but for its diagonal, of ones or what is given.
  template <class T>
  void SetUnits(T* to, const T* diagonal = nullptr) const {
    std::fill_n(to, in.size * in.size, T{0});
    for (size_t i = 0; i < in.size; ++i) to[i * (in.size + 1)] = diagonal ? diagonal[i] : T{1};
  }

  template <class T>
  T Element(size_t i, size_t a, size_t j, size_t b) const {
    if (left.is_identity) return right.is_identity ? T{1} : right.At<T>(j, b);
    return right.is_identity ? left.At<T>(i, a) : left.At<T>(i, a) * right.At<T>(j, b);
  }

  template <class T>
  T* Repeat(int axis, const T* from, T* to) const {
    if (axis == out.ndim) {
      *to = *from;
      return to + 1;
    }
    const npy_intp own = in.Extent(axis, out.ndim);
    size_t behind = 1;
    for (int a = axis + 1; a < out.ndim; ++a) behind *= static_cast<size_t>(in.Extent(a, out.ndim));
    for (npy_intp i = 0; i < out.extent[static_cast<size_t>(axis)]; ++i) {
      to = Repeat(axis + 1, own == 1 ? from : from + static_cast<size_t>(i) * behind, to);
    }
    return to;
  }

  // To `out` from `in`, in whose axes the summed ones have to lie together.
  bool Sum(size_t k, const void* from, void* to) const {
    if (in.size == out.size) return Copy(k, from, to);
    ReductionCall call = {};
    static const size_t row = FindReduction("sum").value();
    call.op = &ReductionOps()[row];
    call.dtype = dtype_;
    call.outer = k;
    call.n = call.inner = 1;
    bool behind = false;
    for (int a = 0; a < in.ndim; ++a) {
      const npy_intp extent = in.Extent(a, in.ndim);
      if (extent == 1) continue;
      const bool reduced = out.Extent(a, in.ndim) != extent;
      if (reduced && behind) return false;
      behind = behind || (!reduced && call.n > 1);
      size_t& part = reduced ? call.n : behind ? call.inner : call.outer;
      part *= static_cast<size_t>(extent);
    }
    call.x = from;
    call.values = to;
    return RunKernel(false, [&](Poll* poll) { return Reduce(call, poll); });
  }

  // Of L T R^T, the cheaper product.
  bool LeftFirst() const {
    const size_t p = left.matrix.rows, q = left.matrix.cols;
    const size_t r = right.matrix.rows, s = right.matrix.cols;
    return p * s * (q + r) <= q * r * (s + p);
  }

  bool Multiply(size_t k, const void* from, void* to) const {
    const size_t p = left.matrix.rows, q = left.matrix.cols;
    const size_t r = right.matrix.rows, s = right.matrix.cols;
    if (left.is_identity) return right.is_identity ? Copy(k, from, to) : OnRight(k, p, from, to);
    if (right.is_identity) return OnLeft(k, r, from, to);
    const Memory between(new std::byte[k * std::max(p * s, q * r) * item_]);
    if (LeftFirst()) return OnLeft(k, s, from, between.get()) && OnRight(k, p, between.get(), to);
    return OnRight(k, q, from, between.get()) && OnLeft(k, r, between.get(), to);
  }

  bool Copy(size_t k, const void* from, void* to) const {
    std::memcpy(to, from, k * in.size * item_);
    return true;
  }

  // L T of each of k arrays T of n columns.
  bool OnLeft(size_t k, size_t n, const void* from, void* to) const {
    const Matrices& L = left.matrix;
    Product product;
    product.m = L.rows;
    product.n = n;
    product.k = L.cols;
    product.a = L.OfStack(0);
    product.b = {const_cast<void*>(from), static_cast<ptrdiff_t>(n), 1};
    product.c = {to, static_cast<ptrdiff_t>(n), 1};
    product.batch_axes = 1;
    product.batch[0] = {k, 0, static_cast<ptrdiff_t>(L.cols * n),
                        static_cast<ptrdiff_t>(L.rows * n)};
    return Run(product, k);
  }

  // T R^T of each of k arrays T of n rows.
  bool OnRight(size_t k, size_t n, const void* from, void* to) const {
    const Matrices R = right.matrix.Transposed();
    Product product;
    product.m = k * n;
    product.n = R.cols;
    product.k = R.rows;
    product.a = {const_cast<void*>(from), static_cast<ptrdiff_t>(R.rows), 1};
    product.b = R.OfStack(0);
    product.c = {to, static_cast<ptrdiff_t>(R.cols), 1};
    return Run(product, 1);
  }

  bool Run(const Product& product, size_t count) const {
    if (count * product.m * product.n * product.k > kFew) return false;
    return RunKernel(false, [&](Poll* poll) { return Matmul(dtype_, {&product, 1}, poll); });
  }

  // By the primitive's own method; from null, of unit vectors.
  bool MoveRows(size_t k, const void* from, void* to) const {
    PyArrayObject* const x = AsArray(array_.get());
    Shape stack;
    if (k > 1) stack.extent[static_cast<size_t>(stack.ndim++)] = static_cast<npy_intp>(k);
    std::copy_n(PyArray_DIMS(x), PyArray_NDIM(x), stack.extent.begin() + stack.ndim);
    stack.ndim += PyArray_NDIM(x);
    const Ref vectors(NewArray(stack.ndim, stack.extent.data(), dtype_));
    const Ref primals(k > 1 ? NewArray(stack.ndim, stack.extent.data(), dtype_)
                            : Py_NewRef(array_.get()));
    const Ref axis(PyLong_FromLong(k > 1 && axis_ >= 0 ? axis_ + 1 : axis_));
    if (!vectors || !primals || !axis) return false;
    const size_t bytes = in.size * item_;
    if (from == nullptr) {
      OfType(dtype_, [&](auto zero) {
        SetUnits<decltype(zero)>(static_cast<decltype(zero)*>(DataOf(vectors.get())));
      });
    } else {
      std::memcpy(DataOf(vectors.get()), from, k * bytes);
    }
    for (size_t i = 0; k > 1 && i < k; ++i) {
      std::memcpy(static_cast<char*>(DataOf(primals.get())) + i * bytes, PyArray_DATA(x), bytes);
    }
    std::array<PyObject*, 4 + kMostOptions> given = {other_.get(), primals.get(), vectors.get(),
                                                     axis.get()};
    const Ref names(PyTuple_New(1 + PyDict_GET_SIZE(options_.get())));
    if (!names) return false;
    PyTuple_SET_ITEM(names.get(), 0, Py_NewRef(row_names[0]));
    PyObject *name, *value;
    for (Py_ssize_t i = 0, place = 0; PyDict_Next(options_.get(), &place, &name, &value) != 0;) {
      given[static_cast<size_t>(4 + i)] = value;
      PyTuple_SET_ITEM(names.get(), ++i, Py_NewRef(name));
    }
    // Python, which may do anything to what was read.
    const Ref moved(
        PyObject_VectorcallMethod(row_names[is_vjp_ ? 1 : 2], given.data(), 3, names.get()));
    if (!moved || KernelArray(moved.get()) != dtype_ ||
        !PyArray_IS_C_CONTIGUOUS(AsArray(moved.get())) ||
        static_cast<size_t>(SizeOf(AsArray(moved.get()))) != k * in.size) {
      return false;
    }
    std::memcpy(to, DataOf(moved.get()), k * bytes);
    return true;
  }

  DType dtype_;
  size_t item_;
  bool transposed_, is_vjp_;
  Ref array_, other_, options_;  // what it holds
  long axis_;
  Side left, right;
};

// A Jacobian as factors in the order in which they are applied.
class Factors {
 public:
  // False for what is left to Python.
  bool Read(PyObject* jacobian, bool transposed) {
    const Kind kind = KindOf(jacobian);
    PyObject* const descr = kind == kKinds ? nullptr : Held(jacobian, kind, 0);
    if (descr == nullptr || !PyArray_DescrCheck(descr)) return false;
    const int type = reinterpret_cast<PyArray_Descr*>(descr)->type_num;
    if (type != NPY_FLOAT && type != NPY_DOUBLE) return false;
    dtype = type == NPY_FLOAT ? DType::kFloat32 : DType::kFloat64;
    if (kind != kProduct) return Add(jacobian, transposed);
    const Ref entries(Py_XNewRef(Held(jacobian, kind, kOwn)));
    if (Held(jacobian, kind, kOwn + 3) != Py_True || !entries ||
        !PyTuple_CheckExact(entries.get()) || PyTuple_GET_SIZE(entries.get()) > kMostFactors) {
      return false;
    }
    const Py_ssize_t n = PyTuple_GET_SIZE(entries.get());
    for (Py_ssize_t i = 0; i < n; ++i) {
      if (!Add(PyTuple_GET_ITEM(entries.get(), transposed ? i : n - 1 - i), transposed))
        return false;
    }
    // A primitive's method is Python, which may do anything to what the others hold.
    return n > 0 && std::none_of(factors_.begin(), factors_.begin() + n,
                                 [](const Factor& factor) { return factor.kind == kRowWise; });
  }

  // From rows (k, in) to rows (k, out); from null, the transposed matrix, of as many rows.
  bool Apply(size_t k, const void* from, void* to) const {
    size_t work = k * (first().in.size + last().out.size);
    for (size_t i = 0; i < count_; ++i) work += factors_[i].Flops(k);
    if (work > kMostWork) return false;
    Memory memory, before;
    bool begun = false;
    for (size_t i = 0; i < count_; ++i) {
      const Factor& factor = factors_[i];
      if (factor.IsIdentity() && from != nullptr && (begun || i + 1 < count_)) continue;
      bool is_last = true;
      for (size_t j = i + 1; j < count_; ++j) is_last = is_last && factors_[j].IsIdentity();
      void* target = to;
      if (!is_last) {
        before = std::move(memory);
        memory.reset(new std::byte[k * factor.out.size * ItemSize(dtype)]);
        target = memory.get();
      }
      if (!(from == nullptr && !begun ? factor.Columns(target) : factor.Apply(k, from, target))) {
        return false;
      }
      begun = true;
      from = target;
      if (is_last) break;
    }
    return true;
  }

  // Diagonal factors on either side scale the elements of what stands between them.
  bool Diagonal(void* to) const {
    std::array<const Factor*, kMostFactors> kept;
    size_t n = 0;
    for (size_t i = count_; i-- > 0;) {
      if (!factors_[i].IsIdentity()) kept[n++] = &factors_[i];
    }
    if (n == 0) kept[n++] = &last();
    size_t begin = 0, end = n;
    while (begin + 1 < end && kept[begin]->kind == kDiagonal) ++begin;
    while (begin + 1 < end && kept[end - 1]->kind == kDiagonal) --end;
    const size_t elements = std::min(kept[begin]->in.size, kept[begin]->out.size);
    if (begin + 1 < end || elements != std::min(first().in.size, last().out.size) ||
        !kept[begin]->Diagonal(to)) {
      return false;
    }
    for (size_t i = end; i < n; ++i) kept[i]->Scale(1, to, to, elements);
    for (size_t i = begin; i-- > 0;) kept[i]->Scale(1, to, to, elements);
    return true;
  }

  const Factor& first() const { return factors_[0]; }
  const Factor& last() const { return factors_[count_ - 1]; }

  DType dtype;

 private:
  bool Add(PyObject* jacobian, bool transposed) {
    Factor& factor = factors_[count_];
    if (!factor.Read(jacobian, dtype, transposed)) return false;
    if (count_++ > 0 && !(factors_[count_ - 2].out == factor.in)) return false;
    return true;
  }

  size_t count_ = 0;
  std::array<Factor, kMostFactors> factors_;
};

// What a function below returns for what is left to Python.
PyObject* LeftToPython() {
  if (PyErr_Occurred() != nullptr) return nullptr;
  Py_RETURN_NONE;
}

// jacobian_product(J, vectors, transposed, stacked): J @ t, g @ J, or of stacks.
PyObject* MoveVectors(PyObject*, PyObject* const* args, Py_ssize_t nargs) try {
  if (nargs != 4) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 4", nargs);
  if (!DefaultFpEnv::IsSet()) return LeftToPython();  // whose side is guarded
  const bool transposed = args[2] == Py_True, stacked = args[3] == Py_True;
  const std::optional<DType> dtype = KernelArray(args[1]);
  Factors factors;
  if (!dtype || !factors.Read(args[0], transposed) || factors.dtype != dtype) return LeftToPython();
  const Shape &given = factors.first().in, &wanted = factors.last().out;
  PyArrayObject* const vectors = AsArray(args[1]);
  const int ndim = PyArray_NDIM(vectors), more = ndim - given.ndim;
  Shape result;
  size_t k = 1;
  bool columns = false;
  if (more >= 0 && (more == 0 || stacked) && EndsIn(vectors, given.ndim, given.extent.data())) {
    if (more + wanted.ndim > NPY_MAXDIMS) return LeftToPython();
    std::copy_n(PyArray_DIMS(vectors), more, result.extent.begin());
    std::copy_n(wanted.extent.begin(), wanted.ndim, result.extent.begin() + more);
    result.ndim = more + wanted.ndim;
    k = static_cast<size_t>(SizeOf(vectors)) / given.size;
  } else if (!stacked && (ndim == 1 || ndim == 2)) {
    columns = ndim == 2 && !transposed;
    const int axis = columns ? 0 : ndim - 1;
    if (static_cast<size_t>(PyArray_DIM(vectors, axis)) != given.size) return LeftToPython();
    k = ndim == 1 ? 1 : static_cast<size_t>(PyArray_DIM(vectors, 1 - axis));
    if (ndim == 2) result.extent[0] = static_cast<npy_intp>(k);
    result.extent[static_cast<size_t>(ndim - 1)] = static_cast<npy_intp>(wanted.size);
    result.ndim = ndim;
  } else {
    return LeftToPython();
  }
  if (k == 0 || k > kMostWork) return LeftToPython();
  const Ref turned(columns ? PyArray_Transpose(vectors, nullptr) : Py_NewRef(args[1]));
  if (!turned) return nullptr;
  const Ref rows(PyArray_IS_C_CONTIGUOUS(AsArray(turned.get()))
                     ? Py_NewRef(turned.get())
                     : PyArray_NewCopy(AsArray(turned.get()), NPY_CORDER));
  Ref moved(rows ? NewArray(result.ndim, result.extent.data(), *dtype) : nullptr);
  if (!moved) return nullptr;
  if (!factors.Apply(k, DataOf(rows.get()), DataOf(moved.get()))) return LeftToPython();
  if (columns) return PyArray_Transpose(AsArray(moved.get()), nullptr);
  return PyArray_Return(AsArray(moved.release()));
} catch (const std::bad_alloc&) {
  return PyErr_NoMemory();
}

// jacobian_elements(J, whole): the matrix, or its diagonal.
PyObject* FindElements(PyObject*, PyObject* const* args, Py_ssize_t nargs) try {
  if (nargs != 2) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 2", nargs);
  const bool whole = args[1] == Py_True;
  Factors factors;
  if (!factors.Read(args[0], false)) return LeftToPython();
  const size_t rows = factors.last().out.size, columns = factors.first().in.size;
  if (whole && rows * columns > kMostWork) return LeftToPython();
  const npy_intp shape[] = {static_cast<npy_intp>(whole ? columns : std::min(rows, columns)),
                            static_cast<npy_intp>(rows)};
  Ref elements(NewArray(whole ? 2 : 1, shape, factors.dtype));
  if (!elements) return nullptr;
  void* const to = DataOf(elements.get());
  if (!(whole ? factors.Apply(columns, nullptr, to) : factors.Diagonal(to))) return LeftToPython();
  return whole ? PyArray_Transpose(AsArray(elements.get()), nullptr) : elements.release();
} catch (const std::bad_alloc&) {
  return PyErr_NoMemory();
}

}  // namespace

bool RegisterVectors(PyObject* module) {
  constexpr const char* kRowNames[] = {"axis", "vjp", "jvp"};
  for (size_t i = 0; i < row_names.size(); ++i) {
    row_names[i] = PyUnicode_InternFromString(kRowNames[i]);
    if (row_names[i] == nullptr) return false;
  }
  static PyMethodDef kFunctions[] = {
      {"jacobian_product", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(MoveVectors)),
       METH_FASTCALL, "jacobian_product(J, vectors, transposed, stacked, /)\n--\n\n"},
      {"jacobian_elements", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(FindElements)),
       METH_FASTCALL, "jacobian_elements(J, whole, /)\n--\n\n"},
      {nullptr, nullptr, 0, nullptr},
  };
  return PyModule_AddFunctions(module, kFunctions) == 0;
}

}  // namespace pullback::jacobian

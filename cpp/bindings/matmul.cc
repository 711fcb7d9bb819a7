// Matrix products as fast callables: from NumPy's shapes and strides to products of strided views.
#include "bindings/matmul.h"

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

#include "bindings/call.h"
#include "bindings/elementwise.h"
#include "bindings/method.h"
#include "bindings/operands.h"
#include "bindings/results.h"
#include "kernels/forms.h"
#include "kernels/linear.h"
#include "kernels/matmul.h"

namespace pullback {
namespace {

// More multiplications than this are done without the GIL.
constexpr double kReleaseGil = 1e5;

// An operand or a result as matrices in a batch; strides in elements.
struct Matrices {
  char* data = nullptr;
  size_t rows = 0, cols = 0;
  ptrdiff_t row = 0, col = 0;
  size_t axes = 0;  // of the batch
  const npy_intp* extent = nullptr;
  const npy_intp* byte_stride = nullptr;

  Matrices Transposed() const {
    Matrices t = *this;
    std::swap(t.rows, t.cols);
    std::swap(t.row, t.col);
    return t;
  }
};

enum class Vector : bool { kRow, kColumn };

// The array's matrices, a one-dimensional one being a row or a column; false where its strides are
// not whole elements.
bool View(PyObject* object, Vector vector, npy_intp item, Matrices& view) {
  auto* const array = reinterpret_cast<PyArrayObject*>(object);
  const int ndim = PyArray_NDIM(array);
  if (ndim == 0) return false;
  const npy_intp* const extent = PyArray_DIMS(array);
  const npy_intp* const stride = PyArray_STRIDES(array);
  for (int axis = 0; axis < ndim; ++axis) {
    if (extent[axis] > 1 && stride[axis] % item != 0) return false;
  }
  // The stride of an axis of length 1 means nothing, and may be anything.
  const auto elements = [&](int axis) { return extent[axis] > 1 ? stride[axis] / item : 0; };
  const auto size = [&](int axis) { return static_cast<size_t>(extent[axis]); };
  view.data = PyArray_BYTES(array);
  view.extent = extent;
  view.byte_stride = stride;
  if (ndim > 1) {
    view.rows = size(ndim - 2);
    view.cols = size(ndim - 1);
    view.row = elements(ndim - 2);
    view.col = elements(ndim - 1);
    view.axes = static_cast<size_t>(ndim - 2);
    return view.axes <= kMaxBatchAxes;
  }
  view.axes = 0;
  if (vector == Vector::kRow) {
    view.rows = 1;
    view.cols = size(0);
    view.row = 0;
    view.col = elements(0);
  } else {
    view.rows = size(0);
    view.cols = 1;
    view.row = elements(0);
    view.col = 0;
  }
  return true;
}

// The broadcast batch of two operands.
struct Batch {
  size_t axes = 0;
  std::array<npy_intp, kMaxBatchAxes> extent;
};

bool Broadcast(const Matrices& a, const Matrices& b, Batch& batch) {
  batch.axes = std::max(a.axes, b.axes);
  const auto extent_of = [&](const Matrices& x, size_t axis) {
    const size_t missing = batch.axes - x.axes;
    return axis < missing ? npy_intp{1} : x.extent[axis - missing];
  };
  for (size_t axis = 0; axis < batch.axes; ++axis) {
    const npy_intp p = extent_of(a, axis), q = extent_of(b, axis);
    if (p != q && p != 1 && q != 1) return false;
    batch.extent[axis] = p == 1 ? q : p;
  }
  return true;
}

// A job under construction: one or two products.
class Job {
 public:
  Job(const Batch& batch, DType dtype)
      : batch_(batch), dtype_(dtype), item_(static_cast<npy_intp>(ItemSize(dtype))) {}

  // c = or += a b; the batch axes that c has as 1 are summed.
  void Append(const Matrices& a, const Matrices& b, const Matrices& c, bool add) {
    Product& product = products_[count_++];
    product.m = a.rows;
    product.n = b.cols;
    product.k = a.cols;
    product.a = {a.data, a.row, a.col};
    product.b = {b.data, b.row, b.col};
    product.c = {c.data, c.row, c.col};
    product.add = add;
    double work = static_cast<double>(a.rows) * static_cast<double>(std::max(a.cols, size_t{1})) *
                  static_cast<double>(b.cols);
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
    work_ += work;
    // Built from the innermost axis outwards.
    std::reverse(product.batch.begin(),
                 product.batch.begin() + static_cast<ptrdiff_t>(product.batch_axes));
  }

  // False with an exception set unless it is done.
  bool Run() {
    const std::span<const Product> products(products_.data(), count_);
    return RunKernel(work_ > kReleaseGil,
                     [&](Poll* poll) { return Matmul(dtype_, products, poll); });
  }

 private:
  npy_intp ExtentOf(const Matrices& x, size_t axis) const {
    const size_t missing = batch_.axes - x.axes;
    return axis < missing ? 1 : x.extent[axis - missing];
  }

  ptrdiff_t StrideOf(const Matrices& x, size_t axis) const {
    if (ExtentOf(x, axis) == 1) return 0;
    return x.byte_stride[axis - (batch_.axes - x.axes)] / item_;
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

  const Batch& batch_;
  DType dtype_;
  npy_intp item_;
  double work_ = 0;
  std::array<Product, 2> products_;
  size_t count_ = 0;
};

// `given`, if it fits, or a new array of that shape.
Ref Output(PyObject* given, int ndim, const npy_intp* shape, DType dtype) {
  if (given == nullptr || given == Py_None) {
    return Ref(NewArray(ndim, shape, dtype));
  }
  return Ref(Py_NewRef(given));
}

bool HasShape(PyObject* array, int ndim, const npy_intp* shape) {
  auto* const x = reinterpret_cast<PyArrayObject*>(array);
  return PyArray_NDIM(x) == ndim && std::equal(shape, shape + ndim, PyArray_DIMS(x));
}

bool IsOutput(PyObject* given, int ndim, const npy_intp* shape, DType dtype) {
  return given == Py_None || (KernelArray(given) == dtype && HasShape(given, ndim, shape) &&
                              PyArray_ISWRITEABLE(reinterpret_cast<PyArrayObject*>(given)));
}

int Ndim(PyObject* array) { return PyArray_NDIM(reinterpret_cast<PyArrayObject*>(array)); }

const npy_intp* Shape(PyObject* array) {
  return PyArray_DIMS(reinterpret_cast<PyArrayObject*>(array));
}

// What every call begins with: two operands whose shapes fit, and the shape of their product.
struct Call {
  DType dtype;
  npy_intp item;
  Matrices a, b;
  Batch batch;
  int ndim = 0;
  std::array<npy_intp, kMaxBatchAxes + 2> shape;

  bool Parse(PyObject* A, PyObject* B) {
    const std::optional<DType> found = KernelArray(A);
    if (!found || KernelArray(B) != found) return false;
    dtype = *found;
    item = static_cast<npy_intp>(ItemSize(dtype));
    if (!View(A, Vector::kRow, item, a) || !View(B, Vector::kColumn, item, b)) return false;
    if (a.cols != b.rows || !Broadcast(a, b, batch)) return false;
    std::copy_n(batch.extent.begin(), batch.axes, shape.begin());
    ndim = static_cast<int>(batch.axes);
    if (Ndim(A) > 1) shape[static_cast<size_t>(ndim++)] = static_cast<npy_intp>(a.rows);
    if (Ndim(B) > 1) shape[static_cast<size_t>(ndim++)] = static_cast<npy_intp>(b.cols);
    return true;
  }

  // The matrices of an array of the product's shape.
  bool ViewProduct(PyObject* array, PyObject* A, PyObject* B, Matrices& view) const {
    auto* const x = reinterpret_cast<PyArrayObject*>(array);
    view.data = PyArray_BYTES(x);
    view.rows = a.rows;
    view.cols = b.cols;
    view.axes = batch.axes;
    view.extent = PyArray_DIMS(x);
    view.byte_stride = PyArray_STRIDES(x);
    auto axis = static_cast<int>(batch.axes);
    const auto next = [&](npy_intp& stride) {
      stride = PyArray_DIM(x, axis) > 1 ? PyArray_STRIDE(x, axis) : 0;
      ++axis;
      return stride % item == 0;
    };
    npy_intp row = 0, col = 0;
    if ((Ndim(A) > 1 && !next(row)) || (Ndim(B) > 1 && !next(col))) return false;
    for (size_t k = 0; k < batch.axes; ++k) {
      if (view.extent[k] > 1 && view.byte_stride[k] % item != 0) return false;
    }
    view.row = row / item;
    view.col = col / item;
    return true;
  }
};

PyObject* ProductCall(PyObject* A, PyObject* B, PyObject* out) {
  Call call;
  if (!call.Parse(A, B)) return nullptr;
  if (out != nullptr && !IsOutput(out, call.ndim, call.shape.data(), call.dtype)) return nullptr;
  Ref result = Output(out, call.ndim, call.shape.data(), call.dtype);
  Matrices c;
  if (!result || !call.ViewProduct(result.get(), A, B, c)) return nullptr;
  Job job(call.batch, call.dtype);
  job.Append(call.a, call.b, c, false);
  if (!job.Run()) return nullptr;
  if (call.ndim > 0 || out != nullptr) return result.release();
  return PyArray_Return(reinterpret_cast<PyArrayObject*>(result.release()));
}

// Both cotangents, in given outputs or, for None, in new arrays; None for one that is not wanted.
PyObject* CotangentsCall(PyObject* A, PyObject* B, PyObject* G, PyObject* const* outs, bool want_a,
                         bool want_b) {
  Call call;
  Matrices g;
  if (!call.Parse(A, B) || KernelArray(G) != call.dtype ||
      !HasShape(G, call.ndim, call.shape.data()) || !call.ViewProduct(G, A, B, g)) {
    return nullptr;
  }
  if (!IsOutput(outs[0], Ndim(A), Shape(A), call.dtype) ||
      !IsOutput(outs[1], Ndim(B), Shape(B), call.dtype)) {
    return nullptr;
  }
  Job job(call.batch, call.dtype);
  Ref to_a, to_b;
  Matrices view;
  if (want_a) {
    to_a = Output(outs[0], Ndim(A), Shape(A), call.dtype);
    if (!to_a || !View(to_a.get(), Vector::kRow, call.item, view)) return nullptr;
    job.Append(g, call.b.Transposed(), view, false);
  }
  if (want_b) {
    to_b = Output(outs[1], Ndim(B), Shape(B), call.dtype);
    if (!to_b || !View(to_b.get(), Vector::kColumn, call.item, view)) return nullptr;
    job.Append(call.a.Transposed(), g, view, false);
  }
  if (!job.Run()) return nullptr;
  return PyTuple_Pack(2, to_a ? to_a.get() : Py_None, to_b ? to_b.get() : Py_None);
}

// Either of the tangents may be null, which is one of zeros.
PyObject* TangentCall(PyObject* A, PyObject* B, PyObject* tA, PyObject* tB, PyObject* out) {
  Call call;
  Matrices ta, tb, c;
  if (!call.Parse(A, B)) return nullptr;
  const auto fits = [&](PyObject* t, PyObject* primal, Vector vector, Matrices& view) {
    return t == nullptr ||
           (KernelArray(t) == call.dtype && HasShape(t, Ndim(primal), Shape(primal)) &&
            View(t, vector, call.item, view));
  };
  if (!fits(tA, A, Vector::kRow, ta) || !fits(tB, B, Vector::kColumn, tb) ||
      !IsOutput(out, call.ndim, call.shape.data(), call.dtype)) {
    return nullptr;
  }
  Ref result = Output(out, call.ndim, call.shape.data(), call.dtype);
  if (!result || !call.ViewProduct(result.get(), A, B, c)) return nullptr;
  Job job(call.batch, call.dtype);
  if (tA != nullptr) job.Append(ta, call.b, c, false);
  if (tB != nullptr) job.Append(call.a, tb, c, tA != nullptr);
  return job.Run() ? result.release() : nullptr;
}

// --- the linear layer ---------------------------------------------------------------------------

// A matrix of that shape; false for anything else.
bool ViewMatrix(PyObject* object, DType dtype, size_t rows, size_t cols, Matrix& matrix) {
  Matrices view;
  if (KernelArray(object) != dtype || Ndim(object) != 2 ||
      !View(object, Vector::kRow, static_cast<npy_intp>(ItemSize(dtype)), view) ||
      view.rows != rows || view.cols != cols) {
    return false;
  }
  matrix = {view.data, view.row, view.col};
  return true;
}

// The same with contiguous rows. The strides of an empty array mean nothing.
bool ViewRows(PyObject* object, DType dtype, size_t rows, size_t cols, Matrix& matrix) {
  if (!ViewMatrix(object, dtype, rows, cols, matrix)) return false;
  if (rows > 0 && cols > 1 && matrix.col != 1) return false;
  matrix.col = 1;
  return true;
}

bool IsVector(PyObject* object, DType dtype, size_t n) {
  auto* const array = reinterpret_cast<PyArrayObject*>(object);
  return KernelArray(object) == dtype && PyArray_NDIM(array) == 1 &&
         static_cast<size_t>(PyArray_DIM(array, 0)) == n && PyArray_IS_C_CONTIGUOUS(array);
}

bool IsWriteable(PyObject* object) {
  return PyArray_ISWRITEABLE(reinterpret_cast<PyArrayObject*>(object));
}

void* Data(PyObject* array) { return PyArray_DATA(reinterpret_cast<PyArrayObject*>(array)); }

// Everything but the activation.
bool ParseLayer(PyObject* X, PyObject* W, PyObject* b, LinearLayer& layer) {
  const std::optional<DType> dtype = KernelArray(X);
  if (!dtype || KernelArray(W) != dtype || Ndim(X) != 2 || Ndim(W) != 2) return false;
  layer.dtype = *dtype;
  layer.rows = static_cast<size_t>(Shape(X)[0]);
  layer.k = static_cast<size_t>(Shape(X)[1]);
  layer.n = static_cast<size_t>(Shape(W)[1]);
  if (!ViewMatrix(X, *dtype, layer.rows, layer.k, layer.x) ||
      !ViewMatrix(W, *dtype, layer.k, layer.n, layer.w) ||
      (b != Py_None && !IsVector(b, *dtype, layer.n))) {
    return false;
  }
  layer.bias = b == Py_None ? nullptr : Data(b);
  return true;
}

bool ParseLayer(const PlainOperands& x, LinearLayer& layer) {
  const auto object = [](PyArrayObject* array) {
    return array == nullptr ? Py_None : reinterpret_cast<PyObject*>(array);
  };
  return ParseLayer(object(x[0]), object(x[1]), object(x[2]), layer);
}

bool ParseLayer(PyObject* X, PyObject* W, PyObject* b, PyObject* activation, LinearLayer& layer) {
  if (!ParseLayer(X, W, b, layer)) return false;
  layer.activation = nullptr;
  if (activation == Py_None) return true;
  Py_ssize_t length = 0;
  const char* const name =
      PyUnicode_Check(activation) ? PyUnicode_AsUTF8AndSize(activation, &length) : nullptr;
  if (name == nullptr) return false;
  layer.activation = FindOp({name, static_cast<size_t>(length)});
  return layer.activation != nullptr && layer.activation->arity == 1;
}

PyObject* LinearCall(PyObject* const* args) {
  LinearLayer layer;
  Matrix out;
  if (!ParseLayer(args[0], args[1], args[2], args[3], layer) ||
      !ViewRows(args[4], layer.dtype, layer.rows, layer.n, out) || !IsWriteable(args[4])) {
    return nullptr;
  }
  const bool done = RunKernel(Multiplications(layer) > kReleaseGil,
                              [&](Poll* poll) { return LinearValue(layer, out, poll); });
  return done ? Py_NewRef(args[4]) : nullptr;
}

PyObject* LinearCotangentsCall(PyObject* const* args) {
  LinearLayer layer;
  LinearCotangents cotangents{};
  if (!ParseLayer(args[0], args[1], args[2], args[4], layer) ||
      !ViewRows(args[3], layer.dtype, layer.rows, layer.n, cotangents.g)) {
    return nullptr;
  }
  PyObject* const dX = args[5];
  PyObject* const dW = args[6];
  PyObject* const db = args[7];
  for (PyObject* const out : {dX, dW, db}) {
    if (out != Py_None && !(PyArray_CheckExact(out) && IsWriteable(out))) return nullptr;
  }
  if ((dX != Py_None && !ViewMatrix(dX, layer.dtype, layer.rows, layer.k, cotangents.dx)) ||
      (dW != Py_None && !ViewMatrix(dW, layer.dtype, layer.k, layer.n, cotangents.dw)) ||
      (db != Py_None && !IsVector(db, layer.dtype, layer.n))) {
    return nullptr;
  }
  if (db != Py_None) cotangents.dbias = Data(db);
  const bool done = RunKernel(Multiplications(layer) > kReleaseGil,
                              [&](Poll* poll) { return LinearVjp(layer, cotangents, poll); });
  return done ? Py_NewRef(Py_None) : nullptr;
}

// --- bilinear forms -----------------------------------------------------------------------------

PyObject* FormCall(PyObject* const* args) {
  const std::optional<DType> dtype = KernelArray(args[1]);
  if (!dtype || Ndim(args[1]) != 2) return nullptr;
  const auto rows = static_cast<size_t>(Shape(args[1])[0]);
  const auto cols = static_cast<size_t>(Shape(args[1])[1]);
  Matrix X;
  if (!ViewRows(args[1], *dtype, rows, cols, X)) return nullptr;
  const auto is_vector = [](PyObject* array, size_t n) {
    return IsVector(array, DType::kFloat64, n);
  };
  if (!is_vector(args[0], rows) || !is_vector(args[2], cols) || !is_vector(args[3], rows) ||
      !is_vector(args[4], cols) || !IsWriteable(args[3]) || !IsWriteable(args[4])) {
    return nullptr;
  }
  const auto doubles = [](PyObject* array) { return static_cast<double*>(Data(array)); };
  const BilinearForm form{*dtype, rows, cols, X.data, X.row, doubles(args[0]), doubles(args[2])};
  double value = 0;
  const bool done = RunKernel(
      static_cast<double>(rows) * static_cast<double>(cols) > kReleaseGil, [&](Poll* poll) {
        return BilinearGradients(form, &value, doubles(args[3]), doubles(args[4]), poll);
      });
  return done ? PyFloat_FromDouble(value) : nullptr;
}

PyObject* NewArrayCall(PyObject* like, PyObject* shape) {
  const std::optional<DType> dtype = KernelArray(like);
  if (!dtype || !PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) > NPY_MAXDIMS) return nullptr;
  const auto ndim = static_cast<int>(PyTuple_GET_SIZE(shape));
  npy_intp dims[NPY_MAXDIMS];
  for (int i = 0; i < ndim; ++i) {
    dims[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i));
    if (dims[i] < 0) return nullptr;
  }
  return NewArray(ndim, dims, *dtype);
}

// --- calls as a user makes them ------------------------------------------------------------------

struct UsersEntry : MethodEntry {
  PyObject* (*call)(const UsersEntry& entry, const Arguments& args);
  std::optional<size_t> out_at, wrt_at, activation_at;
};

// The converted arguments, for what takes objects.
struct Taken : PlainOperands {
  PyObject* object(size_t i) const { return reinterpret_cast<PyObject*>((*this)[i]); }
  bool All() const {
    for (size_t i = 0; i < count(); ++i) {
      if ((*this)[i] == nullptr) return false;
    }
    return true;
  }
  // Whether an output that nobody has looked at may be written while these are read.
  bool Frees(PyObject* given) const {
    if (!PyArray_CheckExact(given) || !ElementsApart(AsArray(given))) return false;
    for (size_t i = 0; i < count(); ++i) {
      if ((*this)[i] != nullptr && Overlap(AsArray(given), (*this)[i])) return false;
    }
    return true;
  }
};

PyObject* UsersProduct(const UsersEntry& entry, const Arguments& args) {
  Taken x;
  PyObject* const out = Given(args, entry.out_at);
  if (!x.Take(args.data(), 2, Strides::kAny) || !x.All() || (out != nullptr && !x.Frees(out))) {
    return nullptr;
  }
  return ProductCall(x.object(0), x.object(1), out);
}

// The outputs of a call by operand: None for what is not asked for or not given. False where Python
// has to look at them.
bool SpreadOuts(PyObject* out, const Wrt& wrt, const Taken& x, PyObject** of_operands) {
  if (out == nullptr) return true;
  if (!wrt.single &&
      (!PyTuple_CheckExact(out) || static_cast<size_t>(PyTuple_GET_SIZE(out)) != wrt.count)) {
    return false;
  }
  for (size_t i = 0; i < wrt.count; ++i) {
    PyObject* const given = wrt.single ? out : PyTuple_GET_ITEM(out, static_cast<Py_ssize_t>(i));
    if (given == Py_None) continue;
    if (!x.Frees(given)) return false;
    for (size_t k = 0; k < i; ++k) {
      PyObject* const other = of_operands[wrt.operands[k]];
      if (other != Py_None && Overlap(AsArray(given), AsArray(other))) return false;
    }
    of_operands[wrt.operands[i]] = given;
  }
  return true;
}

PyObject* UsersCotangents(const UsersEntry& entry, const Arguments& args) {
  const std::optional<Wrt> wrt =
      entry.signature.ReadWrt(entry.wrt_at ? args[*entry.wrt_at] : nullptr, 2);
  Taken x;
  if (!wrt || !x.Take(args.data(), 3, Strides::kAny) || !x.All()) return nullptr;
  PyObject* outs[] = {Py_None, Py_None};
  if (!SpreadOuts(Given(args, entry.out_at), *wrt, x, outs)) return nullptr;
  const Ref both(
      CotangentsCall(x.object(0), x.object(1), x.object(2), outs, wrt->Has(0), wrt->Has(1)));
  return both ? wrt->Pack(&PyTuple_GET_ITEM(both.get(), 0)) : nullptr;
}

PyObject* UsersTangent(const UsersEntry& entry, const Arguments& args) {
  Taken x;
  PyObject* const out = Given(args, entry.out_at);
  if (!x.Take(args.data(), 4, Strides::kAny) || x[0] == nullptr || x[1] == nullptr ||
      (x[2] == nullptr && x[3] == nullptr) || (out != nullptr && !x.Frees(out))) {
    return nullptr;
  }
  Ref tangent(TangentCall(x.object(0), x.object(1), x.object(2), x.object(3),
                          out == nullptr ? Py_None : out));
  if (!tangent || out != nullptr) return tangent.release();
  return PyArray_Return(AsArray(tangent.release()));
}

// Whether there is an activation that kernels know, or none; false for what Python has to look at.
bool ReadActivation(PyObject* given, const OpKernels** activation) {
  *activation = given == nullptr ? nullptr : UnaryOpOf(given);
  return given == nullptr || *activation != nullptr;
}

PyObject* UsersLinear(const UsersEntry& entry, const Arguments& args) {
  Taken x;
  LinearLayer layer;
  if (!x.Take(args.data(), 3, Strides::kAny) || x[0] == nullptr || x[1] == nullptr ||
      !ReadActivation(Given(args, entry.activation_at), &layer.activation) ||
      !ParseLayer(x, layer)) {
    return nullptr;
  }
  PyObject* const out = Given(args, entry.out_at);
  const npy_intp shape[] = {static_cast<npy_intp>(layer.rows), static_cast<npy_intp>(layer.n)};
  if (out != nullptr && (!IsOutput(out, 2, shape, layer.dtype) || !x.Frees(out))) return nullptr;
  Ref result = Output(out, 2, shape, layer.dtype);
  Matrix to;
  if (!result || !ViewRows(result.get(), layer.dtype, layer.rows, layer.n, to)) return nullptr;
  const bool done = RunKernel(Multiplications(layer) > kReleaseGil,
                              [&](Poll* poll) { return LinearValue(layer, to, poll); });
  return done ? result.release() : nullptr;
}

PyObject* UsersLinearCotangents(const UsersEntry& entry, const Arguments& args) {
  const std::optional<Wrt> wrt =
      entry.signature.ReadWrt(entry.wrt_at ? args[*entry.wrt_at] : nullptr, 3);
  Taken x;
  LinearLayer layer;
  LinearCotangents cotangents{};
  if (!wrt || !x.Take(args.data(), 4, Strides::kAny) || x[0] == nullptr || x[1] == nullptr ||
      x[3] == nullptr || !ReadActivation(Given(args, entry.activation_at), &layer.activation) ||
      !ParseLayer(x, layer) ||
      !ViewRows(x.object(3), layer.dtype, layer.rows, layer.n, cotangents.g) ||
      (wrt->count == 1 && wrt->Has(2) && x[2] == nullptr)) {
    return nullptr;
  }
  std::array<PyObject*, 3> outs = {Py_None, Py_None, Py_None};
  if (!SpreadOuts(Given(args, entry.out_at), *wrt, x, outs.data())) return nullptr;
  if (x[2] == nullptr && outs[2] != Py_None) return nullptr;
  std::array<Ref, 3> results;
  std::array<PyObject*, 3> of_operands = {Py_None, Py_None, Py_None};
  for (size_t i = 0; i < 3; ++i) {
    if (!wrt->Has(i) || x[i] == nullptr) continue;
    if (!IsOutput(outs[i], PyArray_NDIM(x[i]), PyArray_DIMS(x[i]), layer.dtype)) return nullptr;
    results[i] = Output(outs[i], PyArray_NDIM(x[i]), PyArray_DIMS(x[i]), layer.dtype);
    if (!results[i]) return nullptr;
    of_operands[i] = results[i].get();
  }
  if ((results[0] &&
       !ViewMatrix(results[0].get(), layer.dtype, layer.rows, layer.k, cotangents.dx)) ||
      (results[1] && !ViewMatrix(results[1].get(), layer.dtype, layer.k, layer.n, cotangents.dw)) ||
      (results[2] && !IsVector(results[2].get(), layer.dtype, layer.n))) {
    return nullptr;
  }
  if (results[2]) cotangents.dbias = DataOf(results[2].get());
  const bool done = RunKernel(Multiplications(layer) > kReleaseGil,
                              [&](Poll* poll) { return LinearVjp(layer, cotangents, poll); });
  return done ? wrt->Pack(of_operands.data()) : nullptr;
}

struct UsersRow {
  const char* name;
  size_t relied_on;  // arguments that are there in each call
  PyObject* (*call)(const UsersEntry& entry, const Arguments& args);
};

constexpr UsersRow kUsersRows[] = {{"product", 2, UsersProduct},
                                   {"cotangents", 3, UsersCotangents},
                                   {"tangent", 4, UsersTangent},
                                   {"layer", 2, UsersLinear},
                                   {"layer_cotangents", 4, UsersLinearCotangents}};

PyObject* UsersCall(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const UsersEntry&>(own);
  return entry.call(entry, args);
}

// --- the engine ----------------------------------------------------------------------------------

struct Row {
  const char* name;
  size_t nargs;
  PyObject* (*call)(PyObject* const* args);
};

struct StrictEntry : MethodEntry {
  PyObject* (*call)(PyObject* const* args);
};

constexpr Row kRows[] = {
    {"product_into", 3, [](PyObject* const* x) { return ProductCall(x[0], x[1], x[2]); }},
    {"cotangents_into", 5,
     [](PyObject* const* x) {
       return CotangentsCall(x[0], x[1], x[2], x + 3, x[3] != Py_None, x[4] != Py_None);
     }},
    {"tangent_into", 5,
     [](PyObject* const* x) { return TangentCall(x[0], x[1], x[2], x[3], x[4]); }},
    {"bilinear_form", 5, FormCall},
    {"linear", 5, LinearCall},
    {"linear_cotangents", 8, LinearCotangentsCall},
    {"new_array", 2, [](PyObject* const* x) { return NewArrayCall(x[0], x[1]); }},
};

PyObject* StrictCall(const MethodEntry& own, const Arguments& args) {
  return static_cast<const StrictEntry&>(own).call(args.data());
}

}  // namespace

PyObject* NewMatmulMethod(const char* name, PyObject* fallback) {
  for (const UsersRow& row : kUsersRows) {
    if (std::string_view(row.name) != name) continue;
    auto entry = std::make_unique<UsersEntry>();
    if (!entry->signature.Read(fallback, row.relied_on)) return nullptr;
    entry->call = row.call;
    entry->out_at = entry->signature.Find("out");
    entry->wrt_at = entry->signature.Find("wrt");
    entry->activation_at = entry->signature.Find("activation");
    return NewMethod(UsersCall, std::move(entry), fallback);
  }
  for (const Row& row : kRows) {
    if (std::string_view(row.name) != name) continue;
    auto entry = std::make_unique<StrictEntry>();
    entry->signature = Signature::Positional(row.nargs);
    entry->call = row.call;
    return NewMethod(StrictCall, std::move(entry), fallback);
  }
  PyErr_Format(PyExc_KeyError, "no native method '%s' of the matrix product", name);
  return nullptr;
}

}  // namespace pullback

// What each product computes, from kernels: values, cotangents and tangents.
#include <cstring>

#include "bindings/jacobians.h"
#include "bindings/product_call.h"
#include "kernels/forms.h"
#include "kernels/linear.h"
#include "kernels/matmul.h"

namespace pullback {
namespace {

// --- matmul --------------------------------------------------------------------------------------

// One-dimensional operands are a row on the left and a column on the right.
PULLBACK_INLINE Matrices Left(const Call& call, const Strided& array, size_t stack = 0) {
  return Seen(array, call.operand(0).ndim > 1 ? kInBoth : kInColumns, stack);
}

PULLBACK_INLINE Matrices Right(const Call& call, const Strided& array, size_t stack = 0) {
  return Seen(array, call.operand(1).ndim > 1 ? kInBoth : kInRows, stack);
}

PULLBACK_INLINE Matrices OfProduct(const Call& call, const Strided& array, size_t stack = 0) {
  const unsigned rows = call.operand(0).ndim > 1 ? kInRows : kInNone;
  const unsigned columns = call.operand(1).ndim > 1 ? kInColumns : kInNone;
  return Seen(array, rows | columns, stack);
}

void MatmulValue(Call& call) {
  Products products(call.dtype(), call.batch());
  products.Append(Left(call, call.operand(0)), Right(call, call.operand(1)),
                  OfProduct(call, call.result()));
  products.Run();
}

void MatmulVjp(Call& call) {
  const size_t stack = call.batch().stack;
  const Matrices g = OfProduct(call, call.cotangent(), stack);
  Products products(call.dtype(), call.batch());
  if (const Strided out = call.out(0)) {
    products.Append(g, Right(call, call.operand(1)).Transposed(), Left(call, out, stack));
  }
  if (const Strided out = call.out(1)) {
    products.Append(Left(call, call.operand(0)).Transposed(), g, Right(call, out, stack));
  }
  products.Run();
}

void MatmulJvp(Call& call) {
  const Matrices out = OfProduct(call, call.result());
  const Strided tA = call.tangent(0);
  const Strided tB = call.tangent(1);
  Products products(call.dtype(), call.batch());
  if (tA) products.Append(Left(call, tA), Right(call, call.operand(1)), out);
  if (tB) {
    products.Append(Left(call, call.operand(0)), Right(call, tB), out, static_cast<bool>(tA));
  }
  products.Run();
}

// --- the linear layer ----------------------------------------------------------------------------

Matrix AsMatrix(const Matrices& x) { return {x.data, x.row, x.col}; }

// All that is not a cotangent or a tangent.
LinearLayer Layer(Call& call, const Matrices& X, const Matrices& W) {
  const bool biased = static_cast<bool>(call.operand(2));
  return {call.dtype(),
          X.rows,
          X.cols,
          W.cols,
          AsMatrix(X),
          AsMatrix(W),
          biased ? call.From(call.operand(2), true).data : nullptr,
          call.activation()};
}

LinearLayer Layer(Call& call) {
  return Layer(call, call.From(call.operand(0)), call.From(call.operand(1)));
}

void LinearValueOf(Call& call) {
  const LinearLayer layer = Layer(call);
  const Matrix out = AsMatrix(call.To(call.result(), true));
  RunOrRaise(Multiplications(layer), [&](Poll* poll) { return LinearValue(layer, out, poll); });
}

void LinearVjpOf(Call& call) {
  const LinearLayer layer = Layer(call);
  const size_t stack = call.batch().stack;
  const Matrices g = call.From(call.cotangent(), true, kInColumns, stack);
  std::array<Matrices, 3> outs;
  for (size_t i = 0; i < 3; ++i) {
    if (call.out(i)) outs[i] = call.To(call.out(i), i == 2, kInColumns, stack);
  }
  // With X W + b anew for each cotangent: what is there for one is gone from the cache.
  for (size_t s = 0; s < g.StackSize(); ++s) {
    std::array<Matrix, 3> to{};
    for (size_t i = 0; i < 3; ++i) {
      if (outs[i].data != nullptr) to[i] = outs[i].OfStack(s);
    }
    const LinearCotangents cotangents{g.OfStack(s), to[0], to[1], to[2].data};
    RunOrRaise(Multiplications(layer),
               [&](Poll* poll) { return LinearVjp(layer, cotangents, poll); });
  }
}

void LinearJvpOf(Call& call) {
  const Matrices out = call.To(call.result(), true);
  Matrices X = call.From(call.operand(0)), W = call.From(call.operand(1));
  const LinearLayer layer = Layer(call, X, W);
  const Strided tX = call.tangent(0);
  const Strided tW = call.tangent(1);
  const Batch none;
  Products products(call.dtype(), none);
  if (tX) products.Append(call.From(tX), W, out);
  if (tW) products.Append(X, call.From(tW), out, static_cast<bool>(tX));
  if (!tX && !tW) {  // sums of no terms
    X.cols = W.rows = 0;
    products.Append(X, W, out);
  }
  products.Run();
  const void* const tb = call.tangent(2) ? call.From(call.tangent(2), true).data : nullptr;
  if (tb == nullptr && layer.activation == nullptr) return;
  RunOrRaise(Multiplications(layer),
             [&](Poll* poll) { return LinearTangent(layer, tb, AsMatrix(out), poll); });
}

// --- forms ---------------------------------------------------------------------------------------

// to[s, i] = g[s, i] * from[i], for rows.
void Scale(Call& call, const Matrices& g, const Matrices& from, const Matrices& to) {
  // The cotangents of a stack are rows of numbers.
  const RowScaling scaling{
      call.dtype(),   g.StackSize(), from.rows, from.cols, {g.data, g.stride, g.row},
      AsMatrix(from), AsMatrix(to),  to.stride};
  RunOrRaise(static_cast<double>(scaling.count * scaling.rows) * static_cast<double>(scaling.cols),
             [&](Poll* poll) { return ScaleRows(scaling, poll); });
}

// The value and, where wanted, the gradients by both vectors, or their sum as one: in one pass over
// the matrix.
void OnePass(Call& call, Strided u, const Strided& X, Strided v, Strided by_u, Strided by_v) {
  Matrices matrix = Seen(X, kInBoth);
  if (!matrix.HasPlainRows() && matrix.Transposed().HasPlainRows()) {
    matrix = matrix.Transposed();
    std::swap(u, v);
    std::swap(by_u, by_v);
  } else {
    matrix = call.From(X, true);
  }
  const auto place = [&](const Strided& out) { return out ? call.To(out, true).data : nullptr; };
  void* const to_u = place(by_u);
  void* const to_v = by_v.array == by_u.array ? to_u : place(by_v);
  const BilinearForm form{call.dtype(),
                          matrix.rows,
                          matrix.cols,
                          matrix.data,
                          matrix.row,
                          call.From(u, true).data,
                          call.From(v, true).data};
  RunOrRaise(static_cast<double>(form.rows) * static_cast<double>(form.cols), [&](Poll* poll) {
    return BilinearGradients(form, call.result().data, to_u, to_v, poll);
  });
}

// out = u v^T, for vectors.
void Outer(Call& call, const Strided& u, const Strided& v, const Strided& out) {
  if (!out) return;
  Products products(call.dtype(), call.batch());
  products.Append(Seen(u, kInRows), Seen(v, kInColumns), Seen(out, kInBoth));
  products.Run();
}

// Sums of forms u^T X v into the result: first vectors times matrices, then scalar products.
class Forms {
 public:
  explicit Forms(Call& call)
      : call_(call), products_(call.dtype(), none_), dots_(call.dtype(), call.batch()) {}

  // u^T X v, where X meets the fewer vectors.
  void Append(const Strided& u, const Strided& X, const Strided& v) {
    const auto count = [](const Strided& x) {
      return PyArray_MultiplyList(x.shape, static_cast<int>(x.ndim) - 1);
    };
    const Matrices matrix = Seen(X, kInBoth);
    if (count(u) < count(v)) {
      Append(u, matrix, v);
    } else {
      Append(v, matrix.Transposed(), u);
    }
  }

  // t^T (A + A^T) x.
  void AppendBothWays(const Strided& x, const Strided& A, const Strided& t) {
    const Strided moved = call_.New(x, x.last());
    BothWays(call_.From(x), Seen(A, kInBoth), call_.From(moved), products_);
    AppendDots(moved, t);
  }

  // to = x A^T + x A.
  static void BothWays(const Matrices& x, const Matrices& A, const Matrices& to,
                       Products& products) {
    products.Append(x, A.Transposed(), to);
    products.Append(x, A, to, true);
  }

  void Run() {
    products_.Run();
    dots_.Run();
  }

 private:
  void Append(const Strided& vectors, const Matrices& matrix, const Strided& others) {
    const Strided moved = call_.New(vectors, static_cast<npy_intp>(matrix.cols));
    products_.Append(call_.From(vectors), matrix, call_.From(moved));
    AppendDots(moved, others);
  }

  void AppendDots(const Strided& left, const Strided& right) {
    dots_.Append(Seen(left, kInColumns), Seen(right, kInRows), Seen(call_.result(), kInNone), add_);
    add_ = true;
  }

  Call& call_;
  Batch none_;
  Products products_, dots_;
  bool add_ = false;
};

// --- quadratic forms ---

void QuadraticValue(Call& call) {
  Forms forms(call);
  forms.Append(call.operand(0), call.operand(1), call.operand(0));
  forms.Run();
}

void QuadraticVjp(Call& call) {
  const size_t stack = call.batch().stack;
  const Strided vectors = call.operand(0);
  const Matrices x = call.From(vectors), A = Seen(call.operand(1), kInBoth);
  const Matrices g = call.From(call.cotangent(), false, kInNone, stack);
  if (call.out(0)) {
    const Matrices gx = call.To(call.out(0), false, kInColumns, stack);
    const Matrices both = stack == 0 ? gx : call.From(call.New(vectors, vectors.last()));
    const Batch none;
    Products moved(call.dtype(), none);
    Forms::BothWays(x, A, both, moved);
    moved.Run();
    Scale(call, g, both, gx);
  }
  if (call.out(1)) {
    const Strided weighted = call.New(vectors, vectors.last(), true);
    const Matrices gx = call.From(weighted, false, kInColumns, stack);
    Scale(call, g, x, gx);
    const Batch batch = call.FlatStack();
    Products products(call.dtype(), batch);
    products.Append(gx.Transposed(), x, call.To(call.out(1), false, kInColumns, stack));
    products.Run();
  }
}

void QuadraticJvp(Call& call) {
  const Strided x = call.operand(0);
  Forms forms(call);
  if (call.tangent(1)) forms.Append(x, call.tangent(1), x);
  if (call.tangent(0)) forms.AppendBothWays(x, call.operand(1), call.tangent(0));
  forms.Run();
}

void QuadraticValueAndGrad(Call& call) {
  const Strided x = call.operand(0);
  OnePass(call, x, call.operand(1), x, call.out(0), call.out(0));
  Outer(call, x, x, call.out(1));
}

// --- bilinear forms ---

void BilinearValue(Call& call) {
  Forms forms(call);
  forms.Append(call.operand(0), call.operand(1), call.operand(2));
  forms.Run();
}

void BilinearVjp(Call& call) {
  const Strided u = call.operand(0);
  const Strided v = call.operand(2);
  const Matrices X = Seen(call.operand(1), kInBoth);
  const size_t stack = call.batch().stack;
  // The cotangents on the vectors of one side, summed to the batch of those of the other.
  Products weights(call.dtype(), call.batch());
  const auto weighted = [&](const Strided& vectors, const Strided& others) {
    const Strided sums = call.New(others, vectors.last(), true);
    if (!call.Repeats(vectors) && !call.Repeats(others)) {
      const Matrices flat = call.From(sums, false, kInColumns, stack);
      Scale(call, call.From(call.cotangent(), false, kInNone, stack), call.From(vectors), flat);
      return flat;
    }
    weights.Append(Seen(call.cotangent(), kInNone, stack), Seen(vectors, kInColumns),
                   Seen(sums, kInColumns, stack));
    return call.From(sums, false, kInColumns, stack);
  };
  const auto to = [&](size_t i) { return call.To(call.out(i), false, kInColumns, stack); };
  const Batch batch = call.FlatStack();
  Products products(call.dtype(), batch);
  if (call.out(0) || call.out(1)) {
    const Matrices gv = weighted(v, u);
    if (call.out(0)) products.Append(gv, X.Transposed(), to(0));
    if (call.out(1)) products.Append(call.From(u).Transposed(), gv, to(1));
  }
  if (call.out(2)) products.Append(weighted(u, v), X, to(2));
  weights.Run();
  products.Run();
}

void BilinearJvp(Call& call) {
  Forms forms(call);
  for (size_t i = 0; i < 3; ++i) {
    if (!call.tangent(i)) continue;
    std::array<Strided, 3> at{call.operand(0), call.operand(1), call.operand(2)};
    at[i] = call.tangent(i);
    forms.Append(at[0], at[1], at[2]);
  }
  forms.Run();
}

void BilinearValueAndGrad(Call& call) {
  const Strided u = call.operand(0);
  const Strided v = call.operand(2);
  OnePass(call, u, call.operand(1), v, call.out(0), call.out(2));
  Outer(call, u, v, call.out(1));
}

// --- Jacobians -----------------------------------------------------------------------------------

// A copy as a matrix of that many rows and columns, which take all elements in C order; in Fortran
// order where it is `transposed`.
Ref Copied(PyArrayObject* array, npy_intp rows, npy_intp columns, bool transposed = false) {
  npy_intp shape[] = {rows, columns};
  if (transposed) std::swap(shape[0], shape[1]);
  const DType dtype = PyArray_TYPE(array) == NPY_FLOAT ? DType::kFloat32 : DType::kFloat64;
  Ref copy(transposed ? PyArray_EMPTY(2, shape, TypeNumber(dtype), 1) : NewArray(2, shape, dtype));
  if (!copy) return copy;
  if (PyArray_IS_C_CONTIGUOUS(array)) {
    std::memcpy(DataOf(copy.get()), PyArray_DATA(array),
                static_cast<size_t>(PyArray_NBYTES(array)));
    return copy;
  }
  const Ref view(transposed ? PyArray_Transpose(array, nullptr)
                            : Py_NewRef(reinterpret_cast<PyObject*>(array)));
  return view && PyArray_CopyAnyInto(AsArray(copy.get()), AsArray(view.get())) == 0
             ? std::move(copy)
             : Ref();
}

// A copy of a matrix in its own order, on which the bits of products may depend.
Ref Copied(PyArrayObject* matrix, bool transposed) {
  if (PyArray_IS_C_CONTIGUOUS(matrix)) {
    return Copied(matrix, PyArray_DIM(matrix, 0), PyArray_DIM(matrix, 1), transposed);
  }
  const Ref view(transposed ? PyArray_Transpose(matrix, nullptr)
                            : Py_NewRef(reinterpret_cast<PyObject*>(matrix)));
  return view ? Ref(PyArray_NewCopy(AsArray(view.get()), NPY_KEEPORDER)) : Ref();
}

Ref CopiedRow(PyArrayObject* vector) { return Copied(vector, 1, PyArray_DIM(vector, 0)); }

constexpr npy_intp kNoExtents[] = {0};

size_t ExtentOf(const Strided& array, size_t axis) {
  return static_cast<size_t>(array.shape[axis]);
}

bool MatmulJacobians(Call& call, PyObject*, Ref* jacobians) {
  const Strided A = call.operand(0), B = call.operand(1);
  const bool rows = A.ndim == 2, columns = B.ndim == 2;
  if ((!rows && A.ndim != 1) || (!columns && B.ndim != 1)) return false;
  const npy_intp shape[] = {rows ? A.shape[0] : 1, columns ? B.shape[1] : 1};
  const Extents result(rows + columns, shape + !rows);
  if (call.Wants(0)) {
    jacobians[0] = JacobianOfProduct({Ref(), static_cast<size_t>(shape[0])},
                                     {columns ? Copied(B.array, true) : CopiedRow(B.array)},
                                     Extents(A.array), result);
  }
  if (call.Wants(1)) {
    jacobians[1] =
        JacobianOfProduct({rows ? Copied(A.array, false) : CopiedRow(A.array)},
                          {Ref(), static_cast<size_t>(shape[1])}, Extents(B.array), result);
  }
  return true;
}

bool LinearJacobians(Call& call, PyObject* activation, Ref* jacobians) {
  const Strided X = call.operand(0), W = call.operand(1), b = call.operand(2);
  if (X.ndim == 0 || W.ndim != 2) return false;
  std::array<npy_intp, NPY_MAXDIMS> shape;
  std::copy_n(X.shape, X.ndim - 1, shape.begin());
  shape[X.ndim - 1] = W.shape[1];
  const Extents result(static_cast<int>(X.ndim), shape.data());
  const npy_intp count = PyArray_MultiplyList(X.shape, static_cast<int>(X.ndim) - 1);
  if (call.Wants(0)) {
    jacobians[0] = JacobianOfProduct({Ref(), static_cast<size_t>(count)}, {Copied(W.array, true)},
                                     Extents(X.array), result);
  }
  if (call.Wants(1)) {
    Ref rows = X.ndim == 2 ? Copied(X.array, false) : Copied(X.array, count, X.last());
    jacobians[1] =
        JacobianOfProduct({std::move(rows)}, {Ref(), ExtentOf(W, 1)}, Extents(W.array), result);
  }
  if (call.Wants(2) && b) {
    jacobians[2] = JacobianOfBroadcast(Extents(b.array), result, call.dtype());
  }
  if (PyErr_Occurred() != nullptr) return false;
  if (activation != nullptr) {  // last: it runs Python, which may do anything to the operands
    static PyObject* const kName = PyUnicode_InternFromString("derivative");
    const Ref derivative(kName == nullptr ? nullptr : PyObject_GetAttr(activation, kName));
    std::array<PyObject*, kMostOperands + 1> none{};
    if (!derivative || !call.Place(none.data())) return false;
    call.Compute();
    const Ref value(call.Result());
    const Ref slopes(value ? PyObject_CallOneArg(derivative.get(), value.get()) : nullptr);
    if (!slopes || KernelArray(slopes.get()) != call.dtype() ||
        !(Extents(AsArray(slopes.get())) == result)) {
      return false;
    }
    for (Ref& jacobian : std::span(jacobians, kMostOperands)) {
      if (jacobian) jacobian = JacobianBehind(slopes.get(), std::move(jacobian));
    }
  }
  return true;
}

// Of one number by a vector, of which the gradient is a row.
Ref ByVector(Ref row, const Strided& vector) {
  return JacobianOfProduct({Ref(), 1}, {std::move(row)}, Extents(vector.array),
                           Extents(0, kNoExtents));
}

// Of u^T X v by X.
Ref ByMatrix(const Strided& u, const Strided& v) {
  const npy_intp shape[] = {u.last(), v.last()};
  return JacobianOfProduct({CopiedRow(u.array)}, {CopiedRow(v.array)}, Extents(2, shape),
                           Extents(0, kNoExtents));
}

Ref NewRow(const Call& call, const Strided& vector) {
  const npy_intp shape[] = {1, vector.last()};
  Ref row(NewArray(2, shape, call.dtype()));
  if (!row) throw Raised();
  return row;
}

Matrices AsMatrices(const Ref& row) { return Seen(AsStrided(AsArray(row.get())), kInBoth); }

bool QuadraticJacobians(Call& call, PyObject*, Ref* jacobians) {
  const Strided x = call.operand(0);
  if (x.ndim != 1) return false;
  if (call.Wants(0)) {
    Ref row = NewRow(call, x);
    const Batch none;
    Products products(call.dtype(), none);
    Forms::BothWays(call.From(x), Seen(call.operand(1), kInBoth), AsMatrices(row), products);
    products.Run();
    jacobians[0] = ByVector(std::move(row), x);
  }
  if (call.Wants(1)) jacobians[1] = ByMatrix(x, x);
  return true;
}

bool BilinearJacobians(Call& call, PyObject*, Ref* jacobians) {
  const Strided u = call.operand(0), v = call.operand(2);
  if (u.ndim != 1 || v.ndim != 1) return false;
  Ref by_u, by_v;
  const Matrices X = Seen(call.operand(1), kInBoth);
  const Batch none;
  Products products(call.dtype(), none);
  if (call.Wants(0)) {
    by_u = NewRow(call, u);
    products.Append(call.From(v), X.Transposed(), AsMatrices(by_u));
  }
  if (call.Wants(2)) {
    by_v = NewRow(call, v);
    products.Append(call.From(u), X, AsMatrices(by_v));
  }
  products.Run();
  if (by_u) jacobians[0] = ByVector(std::move(by_u), u);
  if (call.Wants(1)) jacobians[1] = ByMatrix(u, v);
  if (by_v) jacobians[2] = ByVector(std::move(by_v), v);
  return true;
}

// --- the table -----------------------------------------------------------------------------------

constexpr ProductRow kRows[] = {
    {"matmul",
     "(..., m?, k), (..., k, n?) -> (..., m?, n?)",
     kMostOperands,
     {MatmulValue, MatmulVjp, MatmulJvp, nullptr},
     MatmulJacobians},
    {"linear",
     "(..., k), (k, n), (n) -> (..., n)",
     2,
     {LinearValueOf, LinearVjpOf, LinearJvpOf, nullptr},
     LinearJacobians},
    {"quadratic_form",
     "(..., n), (n, n) -> (...)",
     kMostOperands,
     {QuadraticValue, QuadraticVjp, QuadraticJvp, QuadraticValueAndGrad},
     QuadraticJacobians},
    {"bilinear_form",
     "(..., m), (m, n), (..., n) -> (...)",
     kMostOperands,
     {BilinearValue, BilinearVjp, BilinearJvp, BilinearValueAndGrad},
     BilinearJacobians},
};

}  // namespace

std::span<const ProductRow> ProductRows() { return kRows; }

}  // namespace pullback

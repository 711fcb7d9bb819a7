// What each product computes, from kernels: values, cotangents and tangents.
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

// --- the table -----------------------------------------------------------------------------------

constexpr ProductRow kRows[] = {
    {"matmul",
     "(..., m?, k), (..., k, n?) -> (..., m?, n?)",
     kMostOperands,
     {MatmulValue, MatmulVjp, MatmulJvp, nullptr}},
    {"linear",
     "(..., k), (k, n), (n) -> (..., n)",
     2,
     {LinearValueOf, LinearVjpOf, LinearJvpOf, nullptr}},
    {"quadratic_form",
     "(..., n), (n, n) -> (...)",
     kMostOperands,
     {QuadraticValue, QuadraticVjp, QuadraticJvp, QuadraticValueAndGrad}},
    {"bilinear_form",
     "(..., m), (m, n), (..., n) -> (...)",
     kMostOperands,
     {BilinearValue, BilinearVjp, BilinearJvp, BilinearValueAndGrad}},
};

}  // namespace

std::span<const ProductRow> ProductRows() { return kRows; }

}  // namespace pullback

"""The calculus, row by row, as docs/calculus.md works it: against complex steps and dense formulas.

Each row is judged at random shapes in both dtypes: the value, the pushforward of a tangent, the
pullback of a cotangent and the Jacobian.
"""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pullback as pb
import pytest
from oracles import DTYPES
from pullback.jacobians import Diagonal, Identity, Kronecker

PAGE = Path(__file__).parents[1] / "docs" / "calculus.md"
ROWS = 19
Array = Any


class Case:
    """Shapes and numbers of one run of a row."""

    def __init__(self, dtype: Any, seed: int) -> None:
        self.dtype = np.dtype(dtype)
        self.rng = np.random.default_rng(seed)
        self.k, self.m, self.n, self.p = map(int, self.rng.permutation([2, 3, 4, 5]))
        if seed == 0:
            self.k, self.n = 1, 1

    def __call__(self, *shape: int) -> Array:
        """Return numbers of either sign, away from kinks and poles."""
        size = self.rng.uniform(0.25, 1.75, shape) * self.rng.choice([-1, 1], shape)
        return size.astype(self.dtype)

    def near(self, actual: Any, exact: Any, terms: int = 1) -> None:
        """Fail unless `actual` has the shape of `exact`, our dtype, and errs by a few roundings."""
        actual, exact = np.asarray(actual), np.asarray(exact)
        assert actual.shape == exact.shape
        assert actual.dtype == self.dtype
        unit = 24 * np.finfo(self.dtype).eps
        np.testing.assert_allclose(
            actual, exact, rtol=unit, atol=unit * np.abs(exact).max(initial=1)
        )

    def judge(self, f: Any, x: Array, oracle: Callable[[Array], Array], J: Any = None) -> Array:
        """Hold a differentiable function at x to complex steps of `oracle`; return the Jacobian."""
        y, D = np.asarray(oracle(x.astype(complex)).real), complex_step(oracle, x)
        g, t = self(*y.shape), self(*x.shape)
        self.near(f(x), y)
        self.near(f.jvp(x, t), (D @ t.ravel()).reshape(y.shape))
        self.near(f.vjp(x, g), (g.ravel() @ D).reshape(x.shape))
        self.judge_jacobian(f.jacobian(x) if J is None else J, D, y.shape, x.shape)
        return D

    def judge_jacobian(self, J: Any, D: Array, output: Any, operand: Any) -> None:
        """Hold a structured Jacobian to the dense one, in both layouts."""
        assert J.shape == D.shape
        assert J.output_shape == output
        assert J.input_shape == operand
        g, t = self(*output), self(*operand)
        self.near(J.todense(), D)
        self.near(J.T.todense(), D.T)
        self.near(J.tensor(), D.reshape(output + operand))
        self.near(J.tensor(layout="denominator"), D.T.reshape(operand + output))
        self.near(J @ t, (D @ t.ravel()).reshape(output))
        self.near(g @ J, (g.ravel() @ D).reshape(operand))
        self.near(J.T @ g, (g.ravel() @ D).reshape(operand))


@pytest.fixture(params=[(dtype, seed) for dtype in DTYPES for seed in range(3)], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def complex_step(f: Callable[[Array], Array], x: Array) -> Array:
    """Return the dense Jacobian of an analytic f, exact to a few roundings in float64."""
    step = 1e-30
    columns = []
    for i in range(x.size):
        z = np.array(x, complex)
        z.reshape(-1)[i] += 1j * step
        columns.append(np.ravel(f(z).imag) / step)
    return np.stack(columns, axis=1)


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def wide(*arrays: Array) -> Iterator[Array]:
    return (array.astype(np.float64) for array in arrays)


# --- rows -----------------------------------------------------------------------------------------


def test_row_01_gradients_are_rows_and_column_functions_columns(case: Case) -> None:
    x, w, A = case(case.n), case(case.m), case(case.m, case.n)
    scalar = pb.chain(pb.sin, pb.square, pb.sum)
    D = case.judge(scalar, x, lambda x: np.sum(np.sin(x) ** 2))
    assert D.shape == (1, case.n)
    value, gradient = scalar.value_and_grad(x)
    case.near(value, np.sum(np.sin(x) ** 2))
    case.near(gradient, D[0])
    column = pb.chain((pb.multiply, w, pb.arg), pb.sin)
    assert case.judge(column, case(), lambda s: np.sin(w * s)).shape == (case.m, 1)
    general = pb.chain((pb.matmul, A, pb.arg), pb.tanh)
    assert case.judge(general, x, lambda x: np.tanh(A @ x)).shape == (case.m, case.n)


def test_row_02_layouts_are_transposes_and_gradients_have_the_variables_shape(case: Case) -> None:
    X, a, A = case(case.m, case.n), case(case.n), case(case.m, case.n)
    J = pb.chain((pb.matmul, A, pb.arg), pb.exp).jacobian(a)
    D = np.exp(A @ a)[:, np.newaxis] * A
    case.near(J.todense(), D)  # rows are gradients
    case.near(J.T.todense(), D.T)
    case.near(J.tensor(layout="denominator"), D.T)
    f = pb.chain((pb.matmul, pb.arg, a), pb.squared_norm2)
    gradient = f.value_and_grad(X)[1]
    case.near(gradient, 2 * np.outer(X @ a, a))
    assert gradient.shape == X.shape
    case.near(f.jacobian(X).todense(), gradient.reshape(1, -1))


def test_row_03_a_jacobian_of_two_by_two(case: Case) -> None:
    e = np.eye(2, dtype=case.dtype)
    exponents = np.array([[2, 1], [1, 8]], case.dtype)
    first = pb.chain((pb.power, pb.arg, exponents[0]), pb.prod, (pb.multiply, 3 * e[0], pb.arg))
    weights = np.array([2, 1], case.dtype)
    second = pb.chain(
        (pb.power, pb.arg, exponents[1]), (pb.dot, weights, pb.arg), (pb.multiply, e[1], pb.arg)
    )
    z = case(2)
    x, y = z.tolist()
    D = np.array([[6 * y * x, 3 * x**2], [2, 8 * y**7]])
    case.near(first(z) + second(z), [3 * x**2 * y, 2 * x + y**8])
    case.judge_jacobian(first.jacobian(z) + second.jacobian(z), D, (2,), (2,))
    g, t = case(2), case(2)
    case.near(first.jvp(z, t) + second.jvp(z, t), D @ t)
    case.near(first.vjp(z, g) + second.vjp(z, g), g @ D)


def test_row_04_identity(case: Case) -> None:
    x = case(case.m, case.n)
    for J in (pb.identity.jacobian(x), Identity(x.shape, case.dtype)):
        np.testing.assert_array_equal(case.judge(pb.identity, x, np.copy, J), np.eye(x.size))
        np.testing.assert_array_equal(J.todense(), np.eye(x.size))
    assert Identity((10**6,)).nbytes == 0


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide", "greater", "equal"])
def test_row_05_elementwise_binary_operations_are_diagonal(case: Case, name: str) -> None:
    op = getattr(pb, name)
    w, x, tw, tx, g = (case(case.m, case.n) for _ in range(5))
    one, zero = np.ones_like(x), np.zeros_like(x)
    value, *slopes = {
        "add": (w + x, one, one),
        "subtract": (w - x, one, -one),
        "multiply": (w * x, x, w),
        "divide": (w / x, 1 / x, -w / x**2),
        "greater": (1.0 * (w > x), zero, zero),
        "equal": (1.0 * (w == x), zero, zero),
    }[name]
    case.near(op(w, x), value)
    case.near(op.jvp(w, x, tw, tx), slopes[0] * tw + slopes[1] * tx)
    jacobians = op.jacobian(w, x)
    for J, slope, pulled in zip(jacobians, slopes, op.vjp(w, x, g), strict=True):
        assert isinstance(J, Diagonal)
        case.near(pulled, slope * g)
        case.judge_jacobian(J, np.diag(slope.ravel()), x.shape, x.shape)
    # y = sin(w) o exp(x): each side times the derivative of what stands there.
    inner = pb.sin.jacobian(w), pb.exp.jacobian(x)
    outer = op.jacobian(np.sin(w), np.exp(x))
    for J, D in zip(
        (outer[0] @ inner[0], outer[1] @ inner[1]),
        (outer[0].diagonal() * np.cos(w).ravel(), outer[1].diagonal() * np.exp(x).ravel()),
        strict=True,
    ):
        assert isinstance(J, Diagonal)
        case.near(J.diagonal(), D)


def test_row_06_sums(case: Case) -> None:
    x, z = case(case.m, case.n), case()
    case.judge(pb.sum, x, np.sum)
    np.testing.assert_array_equal(pb.sum.jacobian(x).todense(), np.ones((1, x.size)))
    f = pb.chain((pb.multiply, pb.arg, z), pb.sum)
    case.judge(f, x, lambda x: np.sum(x * z))
    by_x, by_z = f.vjp(x, case.dtype.type(1), wrt="all")
    case.near(by_x, np.full_like(x, z))
    case.near(by_z, np.sum(x))
    case.judge(pb.chain((pb.multiply, x, pb.arg), pb.sum), z, lambda z: np.sum(x * z))


def test_row_07_vector_chain_rule(case: Case) -> None:
    x, A, B = case(case.n), case(case.m, case.n), case(case.k, case.m)
    h = pb.chain((pb.matmul, A, pb.arg), pb.sin)
    g = pb.chain((pb.matmul, B, pb.arg), pb.exp)
    inner = case.judge(h, x, lambda x: np.sin(A @ x))
    outer = case.judge(g, h(x), lambda y: np.exp(B @ y))
    assert (outer.shape, inner.shape) == ((case.k, case.m), (case.m, case.n))
    D = case.judge(pb.chain(h, g), x, lambda x: np.exp(B @ np.sin(A @ x)))
    case.near((outer @ inner).astype(case.dtype), D)
    case.judge_jacobian(g.jacobian(h(x)) @ h.jacobian(x), D, (case.k,), (case.n,))
    diagonal = pb.chain(pb.square, pb.log, pb.tanh)
    assert isinstance(diagonal.jacobian(x), Diagonal)
    case.judge(diagonal, x, lambda x: np.tanh(np.log(x**2)))
    s, e = case(), np.eye(2, dtype=case.dtype)
    both = (
        pb.chain(pb.square, pb.log, (pb.multiply, e[0], pb.arg)),
        pb.chain((pb.multiply, 3, pb.arg), pb.sin, (pb.multiply, e[1], pb.arg)),
    )
    J = both[0].jacobian(s) + both[1].jacobian(s)
    case.near(both[0](s) + both[1](s), [np.log(s**2), np.sin(3 * s)])
    case.judge_jacobian(J, np.array([[2 / s], [3 * np.cos(3 * s)]], float), (2,), ())


def test_row_08_squared_error_of_a_rectified_linear_model(case: Case) -> None:
    N = 4 * case.m
    X, y, w, b = case(N, case.n), case(N), case(case.n), case()
    X[0] = 0
    b = b if case.k == 1 else np.zeros_like(b)  # a sample right on the kink, which is inactive
    loss, (by_w, by_b) = pb.relu_mse.value_and_grad(X, y, w, b)
    cost, slope_w, slope_b = 0.0, np.zeros(case.n), 0.0
    for X_i, y_i in zip(*wide(X, y), strict=True):
        z = float(w.astype(float) @ X_i + float(b))
        e = float(y_i) - max(0.0, z)
        cost += e**2 / N
        if z > 0:
            slope_w -= 2 / N * e * X_i
            slope_b -= 2 / N * e
    assert loss == pytest.approx(cost, rel=4e-7)
    case.near(by_w, slope_w)
    case.near(by_b, slope_b)
    # The same, step by step, in one chain of the primitives.
    model = pb.chain(
        (pb.matmul, X, pb.arg),
        (pb.add, pb.arg, b),
        pb.relu,
        (pb.squared_difference, y, pb.arg),
        pb.mean,
    )
    case.near(model(w), cost)
    case.near(model.vjp(w, case.dtype.type(1)), slope_w)
    case.near(model.value_and_grad(w)[1], slope_w)


def test_row_09_norms(case: Case) -> None:
    x = case(case.m, case.n)
    s = np.sign(x)
    case.judge(pb.norm1, x, lambda x: np.sum(s * x))
    np.testing.assert_array_equal(pb.norm1.grad(x), s)
    case.judge(pb.squared_norm2, x, lambda x: np.sum(x * x))
    np.testing.assert_array_equal(pb.squared_norm2.grad(x), 2 * x)
    for p in (1.5, 2.0, 3.0, 7.0):
        f = pb.chain((pb.norm, pb.arg, p))
        case.judge(f, x, lambda x, p=p: np.sum((s * x) ** p) ** (1 / p))
        norm = np.sum(np.abs(x) ** p) ** (1 / p)
        case.near(pb.norm.grad(x, p), s * np.abs(x) ** (p - 1) / norm ** (p - 1))


def test_row_10_a_linear_map(case: Case) -> None:
    x, A = case(case.m), case(case.m, case.n)
    f = pb.chain((pb.matmul, A.T, pb.arg))
    case.judge(f, x, lambda x: A.T @ x)
    J = f.jacobian(x)
    np.testing.assert_array_equal(J.todense(), A.T)
    np.testing.assert_array_equal(J.tensor(layout="denominator"), A)
    case.judge(pb.chain((pb.matmul, pb.arg, A)), x, lambda x: x @ A)


def test_row_11_squared_norm_of_a_linear_map(case: Case) -> None:
    x, A = case(case.m), case(case.m, case.n)
    of_x = pb.chain((pb.matmul, pb.arg, A), pb.squared_norm2)
    of_A = pb.chain((pb.matmul, x, pb.arg), pb.squared_norm2)
    case.judge(of_x, x, lambda x: np.sum((A.T @ x) ** 2))
    case.judge(of_A, A, lambda A: np.sum((A.T @ x) ** 2))
    x_, A_ = wide(x, A)
    for gradients in (
        (of_x.value_and_grad(x)[1], of_A.value_and_grad(A)[1]),
        of_x.vjp(x, case.dtype.type(1), wrt="all"),
    ):
        case.near(gradients[0], 2 * A_ @ A_.T @ x_)
        case.near(gradients[1], 2 * np.outer(x_, x_) @ A_)


def test_row_12_one_layer(case: Case) -> None:
    x, A, B = case(case.n), case(case.n, case.m), case(case.m, case.k)
    f = pb.chain((pb.matmul, pb.arg, A), pb.sigmoid, (pb.matmul, pb.arg, B))
    D = case.judge(f, x, lambda x: B.T @ sigmoid(A.T @ x))
    slope = sigmoid(A.T @ x) * (1 - sigmoid(A.T @ x))
    case.near((B.T @ np.diag(slope) @ A.T).astype(case.dtype), D)
    # The layer as one operation, over a batch.
    X = case(case.p, case.n)
    f = pb.chain((pb.linear, pb.arg, A, {"activation": pb.sigmoid}), (pb.matmul, pb.arg, B))
    case.judge(f, X, lambda X: sigmoid(X @ A) @ B)


def test_row_13_jacobians_of_rank_three(case: Case) -> None:
    X, a = case(case.m, case.n), case(case.n)
    f = pb.chain((pb.matmul, pb.arg, a), pb.tanh)
    D = case.judge(f, X, lambda X: np.tanh(X @ a))
    J, g, V = f.jacobian(X), case(case.m), case(case.m, case.n)
    T = J.tensor()
    assert T.shape == (case.m, case.m, case.n)
    for k in range(case.m):  # d f_k / d X_ij, by hand
        by_hand = np.zeros((case.m, case.n))
        by_hand[k] = a / np.cosh(X[k] @ a) ** 2
        case.near(T[k], by_hand)
    case.near(g @ J, np.tensordot(g, T, 1))
    case.near(J @ V, np.tensordot(T, V, 2))
    # Flatten, multiply, reshape.
    case.near(g @ J, (g @ D).reshape(X.shape))
    case.near(J @ V, D @ V.ravel())
    case.near(J @ V.ravel(), D @ V.ravel())


def test_row_14_gradient_of_a_layers_squared_error(case: Case) -> None:
    x, A, B, c = case(case.n), case(case.n, case.m), case(case.m, case.k), case(case.k)
    f = pb.chain(
        (pb.matmul, x, pb.arg),
        pb.sigmoid,
        (pb.matmul, pb.arg, B),
        (pb.subtract, pb.arg, c),
        pb.squared_norm2,
    )
    case.judge(f, A, lambda A: np.sum((B.T @ sigmoid(A.T @ x) - c) ** 2))
    x_, A_, B_, c_ = wide(x, A, B, c)
    s = sigmoid(A_.T @ x_)
    by_hand = np.outer(x_, s * (1 - s) * (2 * B_ @ (B_.T @ s - c_)))
    case.near(f.value_and_grad(A)[1], by_hand)
    by_x = f.vjp(A, case.dtype.type(1), wrt="all")[1]
    case.near(by_x, A_ @ (s * (1 - s) * (2 * B_ @ (B_.T @ s - c_))))


def test_row_15_directional_derivatives(case: Case) -> None:
    x, v, w, A = case(case.n), case(case.n), case(case.n), case(case.m, case.n)
    f = pb.chain(pb.square, (pb.matmul, A, pb.arg), pb.sin)
    D = case.judge(f, x, lambda x: np.sin(A @ x**2))
    J = f.jacobian(x)
    case.near(f.jvp(x, v), D @ v)
    for i, e in enumerate(np.eye(case.n, dtype=case.dtype)):
        case.near(f.jvp(x, e), D[:, i])
        case.near(J @ e, D[:, i])
    case.near(f.jvp(x, 2 * v - 3 * w), 2 * f.jvp(x, v) - 3 * f.jvp(x, w))
    # All directions at once, as rows of a stack.
    case.near(J.jvp(np.stack([v, w])), np.stack([D @ v, D @ w]))
    case.near(J.vjp(np.eye(case.m, dtype=case.dtype)), D)


def test_row_16_linear_functions_are_their_own_derivatives(case: Case) -> None:
    u, x, v = case(case.m), case(case.m), case(case.m)
    f = pb.chain((pb.dot, u, pb.arg))
    case.judge(f, x, lambda x: u @ x)
    np.testing.assert_array_equal(f.jvp(x, v), f(v))
    A = case(case.m, case.n)
    f = pb.chain((pb.matmul, pb.arg, A))
    case.judge(f, x, lambda x: x @ A)
    np.testing.assert_array_equal(f.jvp(x, v), pb.matmul(v, A))
    A, X, C, V = (
        case(case.k, case.m),
        case(case.m, case.n),
        case(case.n, case.p),
        case(case.m, case.n),
    )
    f = pb.chain((pb.matmul, A, pb.arg), (pb.matmul, pb.arg, C))
    D = case.judge(f, X, lambda X: A @ X @ C)
    case.near(f.jvp(X, V), A @ V @ C)
    assert isinstance(f.jacobian(X), Kronecker)
    case.near(np.kron(A, C.T), D)
    u, v = case(case.m), case(case.n)
    value, gradient = pb.bilinear_form.value_and_grad(u, X, v, wrt=1)
    case.near(value, u @ X @ v)
    case.near(gradient, np.outer(u, v))
    case.near(pb.bilinear_form.jvp(u, X, v, None, V, None), u @ V @ v)
    case.judge(pb.chain((pb.bilinear_form, u, pb.arg, v)), X, lambda X: u @ X @ v)


def test_row_17_chain_rule_forward_and_backward(case: Case) -> None:
    x, v, A, w = case(case.n), case(case.n), case(case.m, case.n), case(case.m)
    h = pb.chain((pb.matmul, A, pb.arg), pb.tanh)
    g = pb.chain((pb.multiply, pb.arg, w), pb.logsumexp)
    D = complex_step(lambda x: np.log(np.sum(np.exp(w * np.tanh(A @ x)))), x)
    forward = g.jvp(h(x), h.jvp(x, v))
    backward = h.vjp(x, g.value_and_grad(h(x))[1])
    case.near(forward, (D @ v)[0])
    case.near(backward, D[0])
    case.near(np.dot(v, backward), (D @ v)[0])
    case.near((h.jacobian(x) @ v) @ g.value_and_grad(h(x))[1], (D @ v)[0])
    f = pb.chain(h, g)
    np.testing.assert_array_equal(f.jvp(x, v), forward)
    np.testing.assert_array_equal(f.value_and_grad(x)[1], backward)


def test_row_18_bilinear_functions_and_product_rules(case: Case) -> None:
    def directional(f: Callable[[Array], Array], x: Array, v: Array) -> Array:
        return f(x.astype(complex) + 1e-30j * v).imag / 1e-30

    x, v, A = case(case.n), case(case.n), case(case.n, case.n)
    a, Da = pb.sin(x), pb.sin.jvp(x, v)
    c, Dc = pb.exp(x), pb.exp.jvp(x, v)
    case.near(pb.dot.jvp(a, c, Da, Dc), directional(lambda x: np.sin(x) @ np.exp(x), x, v))
    # A matrix and a vector; two matrices; all functions of X.
    X, V = case(case.m, case.m), case(case.m, case.m)
    b, Db = pb.sum(X, axis=0), pb.sum.jvp(X, V, axis=0)
    S, DS = pb.sin(X), pb.sin.jvp(X, V)
    E, DE = pb.exp(X), pb.exp.jvp(X, V)
    case.near(pb.matmul.jvp(S, b, DS, Db), directional(lambda X: np.sin(X) @ X.sum(axis=0), X, V))
    case.near(pb.matmul.jvp(S, E, DS, DE), directional(lambda X: np.sin(X) @ np.exp(X), X, V))
    case.near(pb.matmul.jvp(S, E, DS, DE), DS @ E + S @ DE)
    by_S, by_E = pb.matmul.jacobian(S, E)
    J = by_S @ pb.sin.jacobian(X) + by_E @ pb.exp.jacobian(X)
    D = complex_step(lambda X: np.sin(X) @ np.exp(X), X)
    case.judge_jacobian(J, D, (case.m, case.m), (case.m, case.m))
    # The quadratic form, as one operation and as a product of x with itself.
    x_, v_, A_ = wide(x, v, A)
    case.near(pb.quadratic_form.jvp(x, A, v, None), v_ @ A_ @ x_ + x_ @ A_ @ v_)
    case.judge(pb.chain((pb.quadratic_form, pb.arg, A)), x, lambda x: x @ A @ x)
    case.judge(pb.chain((pb.bilinear_form, pb.arg, A, pb.arg)), x, lambda x: x @ A @ x)


def test_row_19_kinks_have_no_derivative_and_a_checker_tells() -> None:
    def cubic(z: Array) -> Any:
        x, y = z
        return y**3 / (x**2 + y**2) if z.any() else 0.0 * y

    # Partial derivatives at 0 are 0 and 1; along (1, 1), the derivative is 1/2 and not 0 + 1.
    report = pb.check_grad(cubic, np.array([0.0, 1.0]), np.zeros(2))
    assert not report
    assert not report.ok
    assert not report.is_linear
    away = np.array([0.5, -2.0])
    exact = complex_step(cubic, away)[0]
    assert pb.check_grad(cubic, exact, away).is_linear
    assert pb.check_grad(cubic, exact, away).ok

    x = np.array([1.5, 0.0, -2.0])
    for at_kink in (-1.0, 0.0, 0.25, 1.0):  # any subgradient will do
        report = pb.check_grad(pb.norm1, np.array([1.0, at_kink, -1.0]), x)
        assert report.ok
        ((index, interval, given),) = [(k.index, k.interval, k.given) for k in report.kinks]
        assert index == (1,)
        np.testing.assert_allclose(interval, (-1, 1), atol=1e-6)
        assert given == at_kink
    for wrong in ([1.0, 1.01, -1.0], [1.0, 0.0, -1.001], [1.001, 0.0, -1.0]):
        assert not pb.check_grad(pb.norm1, np.array(wrong), x).ok

    for dtype in DTYPES:
        case = Case(dtype, 1)
        z, w = case(case.m, case.n), case(case.n)
        f = pb.chain(pb.tanh, (pb.multiply, pb.arg, w), pb.logsumexp)
        gradient = f.value_and_grad(z)[1]
        assert pb.check_grad(f, gradient, z).ok
        wrong = gradient.copy()
        wrong[1, 0] *= 1.02
        report = pb.check_grad(f, wrong, z)
        assert not report.ok
        assert report.is_linear
        f = pb.chain((pb.multiply, pb.arg, w), pb.sin)
        assert pb.check_grad(f, None, z, vjp=f.vjp, jvp=f.jvp).ok
        assert not pb.check_grad(f, None, z, vjp=lambda x, g, f=f: 1.02 * f.vjp(x, g)).ok
        assert not pb.check_grad(f, None, z, jvp=lambda x, t, f=f: f.jvp(x, t) + 0.05).ok


# --- the page -------------------------------------------------------------------------------------


def test_the_page_runs() -> None:
    # Fences become blank lines, which end what is expected of an example.
    source = re.sub(r"^```.*$", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    runner.run(parser.get_doctest(source, {}, PAGE.name, str(PAGE), 0), out=report.append)
    assert runner.tries > 3 * ROWS
    assert runner.failures == 0, "".join(report)


def test_the_page_and_the_tests_have_every_row() -> None:
    headings = re.findall(r"^## (\d+)\. ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [*map(int, headings)] == [*range(1, ROWS + 1)]
    tests = [int(name[9:11]) for name in globals() if name.startswith("test_row_")]
    assert tests == [*range(1, ROWS + 1)]

"""Diagonal: products, composition, SciPy's protocol, immutability."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pullback as pb
import pytest
from hypothesis import given, settings
from oracles import DTYPES, assert_same_bits
from pullback import jacobians
from pullback.jacobians import Diagonal, Sum

RNG = np.random.default_rng(0)


def diagonal(*shape: int, dtype: Any = float) -> Any:
    return RNG.integers(-9, 10, shape).astype(dtype)


@given(shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_product_is_the_dense_one(shape: tuple[int, ...], dtype: np.dtype) -> None:
    d, t = diagonal(*shape, dtype=dtype), diagonal(*shape, dtype=dtype)
    J = Diagonal(d)
    n = d.size
    dense = J.todense()
    assert J.shape == dense.shape == (n, n)
    assert J.input_shape == J.output_shape == shape
    assert J.dtype == dense.dtype == dtype
    assert J.nbytes == d.nbytes
    assert J.ndim == 2
    assert_same_bits(J.diagonal(), dense.diagonal())
    assert_same_bits(J.diagonal(), d.ravel())

    def equal(actual: Any, expected: Any, shape: tuple[int, ...]) -> None:
        assert actual.shape == shape
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, expected.reshape(shape))

    equal(J @ t, dense @ t.ravel(), shape)
    equal(t @ J, t.ravel() @ dense, shape)
    flat, columns = t.ravel(), diagonal(n, 3, dtype=dtype)
    equal(J @ flat, dense @ flat, (n,))
    equal(flat @ J, flat @ dense, (n,))
    if shape != (n, 3):
        equal(J @ columns, dense @ columns, (n, 3))
    if shape != (3, n):
        equal(columns.T @ J, columns.T @ dense, (3, n))
    equal(J.matvec(flat), dense @ flat, (n,))
    equal(J.rmatvec(flat[:, None]), dense.T @ flat, (n, 1))
    equal(J.matmat(columns), dense @ columns, (n, 3))
    equal(J.rmatmat(columns), dense.T @ columns, (n, 3))
    equal((J @ Diagonal(t)).todense(), dense @ Diagonal(t).todense(), (n, n))
    equal((J @ t) * t, (J.T @ t) * t, shape)


def test_own_shape_wins_over_columns() -> None:
    d = diagonal(4, 1)
    np.testing.assert_array_equal(Diagonal(d) @ d, d * d)
    row = diagonal(1, 4)
    np.testing.assert_array_equal(row @ Diagonal(row), row * row)


def test_products_promote_and_stay_silent() -> None:
    J = Diagonal(np.array([np.inf, 1e30], np.float32))
    with np.errstate(all="raise"):
        assert (J @ np.zeros(2)).dtype == np.float64
        assert (np.zeros(2, np.int8) @ J).dtype == np.float32
        assert (J @ J @ J).diagonal().tolist() == [np.inf, np.inf]
        assert np.isnan((J @ Diagonal([0.0, 0.0])).diagonal()[0])
        assert J.matvec(np.zeros(2, np.float32)).dtype == np.float32
    assert type(Diagonal(2.0) @ 3.0) is np.float64
    assert Diagonal([1, 2]).dtype == np.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda J: J @ np.ones(5),
            r"J @ t: t has shape \(5,\), J needs \(2, 3\), \(6,\) or \(6, k",
        ),
        (lambda J: J @ np.ones((3, 2)), r"t has shape \(3, 2\)"),
        (lambda J: J @ 2.0, r"t has shape \(\)"),
        (lambda J: J @ np.ones((6, 1, 1)), r"t has shape \(6, 1, 1\)"),
        (
            lambda J: np.ones(5) @ J,
            r"g @ J: g has shape \(5,\), J needs \(2, 3\), \(6,\) or \(k, 6",
        ),
        (lambda J: np.ones((6, 2)) @ J, r"g has shape \(6, 2\)"),
        (lambda J: J @ Diagonal(np.ones(6)), r"shape \(2, 3\) and result shape \(6,\) differ"),
        (lambda J: J.matvec(np.ones((2, 3))), r"matvec: v has shape \(2, 3\)"),
        (lambda J: J.rmatvec(np.ones((6, 2))), r"rmatvec: .* not \(6,\) or \(6, 1\)"),
        (lambda J: J.matmat(np.ones(6)), r"matmat: .* not \(6, k\)"),
    ],
)
def test_shape_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Diagonal(np.ones((2, 3))))


def test_type_errors() -> None:
    with pytest.raises(TypeError, match="argument diagonal has dtype complex128"):
        Diagonal([1j])
    with pytest.raises(TypeError, match="argument t has dtype complex128"):
        Diagonal([1.0]) @ [1j]


def test_dense_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    J = Diagonal(np.ones(100_000))
    with pytest.raises(MemoryError, match=r"100000 x 100000 float64 .* 80 GB.*force=True"):
        J.todense()
    monkeypatch.setattr(jacobians, "DENSE_LIMIT_BYTES", 31)
    small = Diagonal([1.0, 2.0])
    with pytest.raises(MemoryError, match="2 x 2"):
        small.todense()
    assert small.todense(force=True).tolist() == [[1, 0], [0, 2]]
    monkeypatch.setattr(jacobians, "DENSE_LIMIT_BYTES", 32)
    dense = small.todense()
    dense[0, 0] = 5
    assert small.diagonal().tolist() == [1, 2]


def test_immutable() -> None:
    d = np.ones(3)
    J = Diagonal(d)
    d[0] = 7
    assert J.diagonal().tolist() == [1, 1, 1]
    for array in (J.diagonal(), pickle.loads(pickle.dumps(J)).diagonal()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2
    with pytest.raises(AttributeError):
        J.shape = (2, 2)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        J.extra = 1  # type: ignore[attr-defined]
    own = Diagonal(d, copy=False)
    assert np.shares_memory(own.diagonal(), d)
    assert d.flags.writeable
    assert J.T is J
    for other in (pb.tanh.jacobian(d), Sum(pb.tanh.jacobian(d)), Sum(J).T):
        with pytest.raises(ValueError, match="read-only"):
            other.diagonal()[0] = 2


def test_copies_and_repr() -> None:
    J = Diagonal(np.ones((2, 3), np.float32))
    assert repr(J) == "<Diagonal 6x6 float32, operand shape (2, 3)>"
    for other in (pickle.loads(pickle.dumps(J)), copy.deepcopy(J), copy.copy(J)):
        assert isinstance(other, Diagonal)
        assert other.input_shape == (2, 3)
        assert_same_bits(other.diagonal(), J.diagonal())


def test_scipy_linear_operator() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    d = np.arange(1.0, 7.0).reshape(2, 3)
    J = Diagonal(d)
    operator = linalg.aslinearoperator(J)
    assert operator.shape == (6, 6)
    assert operator.dtype == float
    b = diagonal(6)
    np.testing.assert_array_equal(operator @ b, d.ravel() * b)
    np.testing.assert_array_equal(operator.T @ b, d.ravel() * b)
    np.testing.assert_array_equal(operator @ np.eye(6), J.todense())
    np.testing.assert_array_equal(operator.H @ np.eye(6), J.todense())
    solution, info = linalg.cg(operator, b, rtol=1e-12)
    assert info == 0
    np.testing.assert_allclose(J @ solution, b, atol=1e-9)
    np.testing.assert_array_equal((operator @ operator) @ b, d.ravel() ** 2 * b)


def test_other_operators_multiply_us_and_arrays_do_not() -> None:
    class Operator:
        def __rmatmul__(self, other: Any) -> str:
            return f"{other} @ operator"

    assert Diagonal([1.0]) @ Operator() == "<Diagonal 1x1 float64, operand shape (1,)> @ operator"
    pandas = pytest.importorskip("pandas")
    assert type(Diagonal([2.0, 3.0]) @ pandas.Series([1.0, 2.0])) is np.ndarray


def test_scipy_is_not_imported() -> None:
    code = "import sys, pullback.jacobians; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

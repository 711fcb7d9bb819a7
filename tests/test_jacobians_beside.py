"""Jacobians beside NumPy and SciPy: arrays, sparse arrays, operators."""

from __future__ import annotations

import operator
import re
import sys
import tracemalloc
from typing import Any

import numpy as np
import pullback as pb
import pytest
from protocol import dtypes
from pullback import jacobians
from pullback.jacobians import (
    BlockDiagonal,
    Broadcast,
    Dense,
    Diagonal,
    Identity,
    Jacobian,
    Kronecker,
    Outer,
    Product,
    Sum,
    SumTo,
)
from scipy import sparse
from scipy.sparse import linalg
from structured import KINDS, everything

kinds = pytest.mark.parametrize("kind", KINDS)
primitives = pytest.mark.parametrize("of", [pb, pb.reference], ids=["pullback", "reference"])


# --- arrays ---------------------------------------------------------------------------------------


@dtypes
@kinds
def test_is_its_matrix_to_numpy(kind: str, dtype: np.dtype) -> None:
    for J, dense in everything(kind, dtype):
        A = np.ones_like(dense)
        for array, expected in (
            (np.asarray(J), dense),
            (J.toarray(), dense),
            (np.array(J, np.float32), dense.astype(np.float32)),
            (np.atleast_2d(J), dense),
            (np.multiply(J, A), dense),
            (np.dot(J, dense.T), dense @ dense.T),
            (J + A, dense + A),
            (A + J, A + dense),
            (J - A, dense - A),
            (A - J, A - dense),
            (J + dense.tolist(), dense + dense),
        ):
            assert type(array) is np.ndarray
            assert array.shape == expected.shape
            np.testing.assert_array_equal(array, expected)
        assert np.asarray(J).dtype == (J + A).dtype == (A - J).dtype == dtype
        assert (J + A.astype(np.float64)).dtype == np.float64
        np.asarray(J)[...] = 9  # belongs to the caller
        np.testing.assert_array_equal(J.todense(), dense)
        with pytest.raises(ValueError, match=f"a {kind} cannot become an array without a copy"):
            np.asarray(J, copy=False)
        assert not hasattr(J, "__dict__")


@dtypes
@kinds
def test_numbers(kind: str, dtype: np.dtype) -> None:
    for J, dense in everything(kind, dtype):
        for number in (2, 0.25, dtype.type(4), np.array(-2.0, dtype), True):
            for found, expected in (
                (J * number, dense * dtype.type(number)),
                (number * J, dense * dtype.type(number)),
                (J / number, dense / dtype.type(number)),
                (-J, -dense),
                (+J, dense),
            ):
                assert isinstance(found, Jacobian)
                assert found.dtype == dtype
                np.testing.assert_array_equal(found.todense(), expected)
        assert (J / np.float64(2)).dtype == np.float64


def test_quotients_are_rounded_once() -> None:
    x = np.array([[1.0, 5e-324, 1e308], [7.0, 1e-310, -3.0]])
    for c in (3.0, 1e-310, 1e308, 5e-324, 1.7e308, 0.0):
        with np.errstate(all="ignore"):
            expected = x / np.float64(c)
        for J in (Dense(x), Kronecker(1, x), Kronecker(x, 1), BlockDiagonal(x[np.newaxis])):
            np.testing.assert_array_equal((J / c).todense(), expected)
        np.testing.assert_array_equal((Diagonal(x) / c).diagonal(), expected.reshape(-1))


def test_in_place_forms() -> None:
    d = np.arange(1.0, 4.0)
    J = K = Diagonal(d)
    J *= 4
    J /= 2
    J += Identity((3,))
    J @= J
    assert type(J) is Diagonal
    assert J.diagonal().tolist() == ((2 * d + 1) ** 2).tolist()
    assert K.diagonal().tolist() == d.tolist()  # what is immutable is not changed
    A: Any = np.eye(3)
    A += K
    assert A.tolist() == (np.eye(3) + np.diag(d)).tolist()
    A @= K
    assert A.tolist() == ((np.eye(3) + np.diag(d)) @ np.diag(d)).tolist()


OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "divmod": divmod,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


# What the error of an operator says, with J on the left and on the right.
ADDED = r"A has shape .*, J \(2, 2\); J\.todense\(\) is an array"
SCALED = r"(c \* J|J / c): c is .*, not a number; J @ A .*J\.todense\(\)"


def refused(name: str, other: Any, *, mirrored: bool) -> tuple[Any, str] | None:
    """Return the error of an operator beside something, and its text; None where it works."""
    if name in "+-":
        return ValueError, ADDED
    if name == "*" or (name == "/" and not mirrored):
        return None if np.ndim(other) == 0 else (TypeError, SCALED)
    own = MIRRORED.get(name, name) if mirrored else name
    return (
        TypeError,
        rf"^{re.escape(own.replace('!=', '=='))} of Diagonal and \w+: .*J\.todense\(\)",
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_what_no_operator_does_is_told(name: str) -> None:
    J = Diagonal([1.0, 2.0])
    others: list[Any] = [np.ones(2), np.ones((2, 3)), [1.0, 2.0], np.float64(3), 3, 0.5]
    for other in others + [np.eye(2)] * (name not in "+-"):
        for mirrored in (False, True):
            expected = refused(name, other, mirrored=mirrored)
            if expected is not None:
                with pytest.raises(expected[0], match=expected[1]):
                    OPERATORS[name](*((other, J) if mirrored else (J, other)))


@pytest.mark.parametrize("name", [name for name in OPERATORS if "=" not in name])
def test_what_makes_no_numbers_is_told(name: str) -> None:
    J = Diagonal([1.0, 2.0])
    for other in (None, "a", object()):
        for pair in ((J, other), (other, J)):
            if name != "%" or pair[0] != "a":  # which formats
                with pytest.raises(TypeError, match=r"todense|must be numbers"):
                    OPERATORS[name](*pair)


def test_sums_with_sparse_arrays_say_what_to_give() -> None:
    J, csr = Diagonal([1.0, 2.0]), sparse.csr_array(np.eye(2))
    for operate in (operator.add, operator.sub):
        for pair in ((J, csr), (csr, J)):
            with pytest.raises(TypeError, match=r"argument A is sparse.* give A\.toarray\(\)"):
                operate(*pair)


def test_equal_is_what_is_one() -> None:
    J, K = Diagonal([1.0, 2.0]), Diagonal([1.0, 2.0])
    same = J
    assert same == J
    assert J != K
    assert len({J, K, same}) == 2
    for pair in ((J, np.eye(2)), (np.eye(2), J), (J, sparse.eye_array(2)), (J, [1.0])):
        with pytest.raises(TypeError, match=r"== of Diagonal and .* J\.todense\(\)"):
            operator.eq(*pair)
    for other in (None, "a", object()):
        assert operator.eq(J, other) is operator.eq(other, J) is False


# --- sparse arrays --------------------------------------------------------------------------------


def check_sparse(J: Any, dense: Any) -> Any:
    """Fail unless the sparse array is the matrix; return it."""
    found = J.tosparse()
    assert type(found) is sparse.csr_array
    assert found.dtype == J.dtype
    assert found.shape == J.shape
    assert found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), dense)
    found.data[...] = 9  # belongs to the caller
    np.testing.assert_array_equal(J.tosparse().toarray(), dense)
    return found


@dtypes
@kinds
def test_sparse_is_the_matrix(kind: str, dtype: np.dtype) -> None:
    for J, dense in everything(kind, dtype):
        check_sparse(J, dense)
        check_sparse(J.T, dense.T)
        check_sparse(Sum(J, J), 2 * dense)
        check_sparse(Product(J.T, J), dense.T @ dense)
        for other in (sparse.eye_array(J.shape[1]), sparse.csr_matrix(np.eye(J.shape[1]))):
            np.testing.assert_array_equal(J @ other, dense)
            np.testing.assert_array_equal(other @ J.T, dense.T)


@primitives
def test_what_is_stored_of_primitives(of: Any) -> None:
    rng = np.random.default_rng(0)
    X, W, b = rng.normal(size=(5, 4)), rng.normal(size=(4, 3)), np.zeros(3)
    T = np.arange(24.0).reshape(2, 4, 3)
    by_X, by_W, by_b = of.linear.jacobian(X, W, b, activation=of.tanh)
    batch = of.matmul.jacobian(np.ones((6, 2, 3)), np.ones((6, 3, 4)))
    for J, stored in (
        (of.tanh.jacobian(X), 20),
        (of.multiply.jacobian(X, X[0])[1], 20),
        (of.sum.jacobian(X, axis=0), 20),
        (of.softmax.jacobian(X, axis=1), 5 * 4 * 4),
        (of.softmax.jacobian(T, axis=(0, 2)), 4 * 6 * 6),
        (of.softmax.jacobian(T, axis=0).T, 12 * 2 * 2),
        (by_X, 5 * 4 * 3),
        (by_W, 5 * 4 * 3),
        (by_b, 5 * 3),
        (batch[0], 6 * 2 * 3 * 4),
        (batch[1], 6 * 2 * 3 * 4),
        (pb.chain(of.tanh, (of.linear, pb.arg, W), of.softmax).jacobian(X), 5 * 4 * 3),
    ):
        found = J.tosparse()
        assert found.nnz == (2 * J).tosparse().nnz == J.T.tosparse().nnz == stored
        np.testing.assert_allclose(found.toarray(), J.todense(), rtol=1e-13, atol=1e-16)


def test_zeros_by_structure_hide_infinities_in_sparse_arrays_too() -> None:
    bad = np.array([[np.inf, np.nan], [0.0, -0.0]])
    for J, stored in (
        (Diagonal(bad), 2),
        (Kronecker(3, bad), 6),
        (Kronecker(bad, 3), 6),
        (BlockDiagonal(bad[:, np.newaxis]), 2),
        (SumTo((2, 2), (2,)) @ Diagonal(bad), 2),
        (Kronecker(bad[np.newaxis], 2, input_batch=(2,), output_batch=(2,)), 8),
    ):
        found = J.tosparse()
        assert found.nnz == stored
        np.testing.assert_array_equal(found.toarray(), J.todense())
    assert Dense(np.eye(3)).tosparse().nnz == 3


def test_nothing_dense_is_made_of_structure() -> None:
    n = 10**5
    x, rows = np.ones(n), np.ones((1000, 100))
    for J in (
        Diagonal(x) @ Diagonal(x),
        pb.multiply.jacobian(rows, rows[0])[1],
        pb.sum.jacobian(rows, axis=1),
        pb.softmax.jacobian(np.ones((n // 2, 2))),
        BlockDiagonal(np.ones((n // 4, 2, 4))),
        Identity((n,)) - 2 * Diagonal(x),
        Kronecker(n // 4, np.ones((2, 4))),
    ):
        tracemalloc.start()
        found = J.tosparse()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert n in J.shape
        assert found.nnz <= 4 * n
        assert peak <= 250 * n, (J, peak)


def test_sparse_arrays_have_a_limit() -> None:
    n = 10**5
    ones = Broadcast((1,), (n,)) @ SumTo((n,), (1,))
    for J, message in (
        (2.0 * ones, r"Product\.tosparse: 10000000000 elements take 40 GB.* force=True"),
        (ones + Identity((n,)), r"Sum\.tosparse: 10000000000 elements"),
        (Kronecker(n, np.ones((100, 100))), r"Kronecker\.tosparse: 1000000000 elements take 8 GB"),
        (Outer(np.ones(n), np.ones(n)), r"100000 x 100000 .* takes 80 GB"),
        (Identity((n,)) - Outer(np.ones(n), np.ones(n)), r"100000 x 100000 .* takes 80 GB"),
    ):
        with pytest.raises(MemoryError, match=message):
            J.tosparse()


def test_sparse_arrays_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jacobians, "DENSE_LIMIT_BYTES", 31)
    for J in (Diagonal(np.ones(4)), Dense(np.ones((2, 2))), Identity((4,)) @ Broadcast((1,), (4,))):
        with pytest.raises(MemoryError, match="force=True"):
            J.tosparse()
        assert J.tosparse(force=True).nnz == 4


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"Identity\.tosparse needs SciPy, which cannot be imp"):
        Identity((2,)).tosparse()


# --- linear operators -----------------------------------------------------------------------------


@kinds
def test_scipy_linear_operator(kind: str) -> None:
    for J, dense in everything(kind, np.dtype(float)):
        op = linalg.aslinearoperator(J)
        assert op.shape == dense.shape
        assert op.dtype == J.dtype
        rows, columns = dense.shape
        np.testing.assert_array_equal(op @ np.eye(columns), dense)
        np.testing.assert_array_equal(op.H @ np.eye(rows), dense.T)
        np.testing.assert_array_equal(J @ linalg.aslinearoperator(np.eye(columns)), dense)
        np.testing.assert_array_equal(linalg.aslinearoperator(np.eye(rows)) @ J, dense)

"""Kronecker: against np.kron and unit vectors, batches, products, SciPy, immutability."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pullback as pb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import integers
from oracles import DTYPES, assert_same_bits
from protocol import dtypes
from pullback import jacobians
from pullback.jacobians import Diagonal, Kronecker, Product
from structured import check
from test_reference_matmul import SHAPES, operands


def matrix(*shape: int, dtype: Any = float, seed: int = 0) -> Any:
    return integers(np.random.default_rng([seed, *shape]), shape, dtype)


# --- against the dense matrix ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    sizes=st.tuples(*[st.integers(0, 4)] * 4),
    identities=st.sampled_from([(False, False), (True, False), (False, True), (True, True)]),
)
@settings(deadline=None, max_examples=60)
def test_is_the_kronecker_product(sizes: Any, identities: Any, dtype: np.dtype) -> None:
    p, q, r, s = sizes
    L, R = matrix(p, q, dtype=dtype), matrix(r, s, dtype=dtype, seed=1)
    left, right = L, R
    if identities[0]:
        left, L = p, np.eye(p, dtype=dtype)
    if identities[1]:
        right, R = r, np.eye(r, dtype=dtype)
    J = Kronecker(left, right)
    assert J.dtype == (np.float64 if all(identities) else dtype)
    assert J.input_shape == (L.shape[1], R.shape[1])
    assert J.output_shape == (L.shape[0], R.shape[0])
    assert J.nbytes == sum(0 if isinstance(f, int) else f.nbytes for f in (left, right))
    check(J, np.kron(L, R).astype(J.dtype))
    T = integers(np.random.default_rng(2), J.input_shape, dtype)
    np.testing.assert_array_equal(J @ T, L @ T @ R.T)


@dtypes
@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_jacobians_of_matmul(a: tuple[int, ...], b: tuple[int, ...], dtype: np.dtype) -> None:
    A, B, G = (x.astype(dtype) for x in operands(a, b))
    jacobians_, cotangents = pb.matmul.jacobian(A, B), pb.matmul.vjp(A, B, G)
    tangents = (A + 1, B - 2)
    for i, (J, operand) in enumerate(zip(jacobians_, (A, B), strict=True)):
        assert isinstance(J, Kronecker)
        assert J.input_shape == operand.shape
        assert J.output_shape == G.shape
        assert J.dtype == dtype
        assert J.nbytes <= max(A.nbytes, B.nbytes)
        np.testing.assert_array_equal(G @ J, cotangents[i])
        np.testing.assert_array_equal(J.T @ G, cotangents[i])
        given = [t if i == j else None for j, t in enumerate(tangents)]
        np.testing.assert_array_equal(J @ tangents[i], pb.matmul.jvp(A, B, *given))
        columns = np.zeros((G.size, operand.size), dtype)  # by the product's own linearity
        for j in range(operand.size):
            unit = np.zeros(operand.size, dtype)
            unit[j] = 1
            moved = (unit.reshape(a), B) if i == 0 else (A, unit.reshape(b))
            columns[:, j] = np.matmul(*moved).reshape(-1)
        check(J, columns)


@dtypes
@pytest.mark.parametrize(
    ("left", "right", "operand", "result"),
    [
        ((5,), (), (5,), (5,)),
        ((5,), (5,), (), (5,)),
        ((5,), (), (), ()),  # summed over a batch that only a factor has
        ((), (), (4,), (4,)),
        ((), (), (4,), ()),
        ((), (), (), (4,)),
        ((2, 1), (3,), (1, 3), (2, 1)),
        ((2, 1), (3,), (), (2, 3)),
        ((1,), (3,), (1,), (3,)),
        ((0,), (), (), ()),
        ((), (0,), (0,), (1,)),
        (None, (3,), (3,), ()),
        ((3,), None, (), (3,)),
        (None, None, (3,), ()),
        (None, None, (), (3,)),
        (None, None, (2, 1), (1, 3)),
    ],
    ids=str,
)
def test_batches(left: Any, right: Any, operand: Any, result: Any, dtype: np.dtype) -> None:
    """The dense matrix is a sum over the items of what all batches broadcast to."""
    L = np.eye(2, dtype=dtype) if left is None else matrix(*left, 2, 3, dtype=dtype)
    R = np.eye(2, dtype=dtype) if right is None else matrix(*right, 4, 2, dtype=dtype)
    J = Kronecker(
        2 if left is None else L,
        2 if right is None else R,
        input_batch=operand,
        output_batch=result,
    )
    batch = np.broadcast_shapes(L.shape[:-2], R.shape[:-2], operand, result)
    rows, columns = L.shape[-2] * R.shape[-2], L.shape[-1] * R.shape[-1]
    n_out, n_in = int(np.prod(result, dtype=int)), int(np.prod(operand, dtype=int))
    dense = np.zeros((n_out, rows, n_in, columns), J.dtype)
    to_out = np.broadcast_to(np.arange(n_out).reshape(result), batch)
    to_in = np.broadcast_to(np.arange(n_in).reshape(operand), batch)
    L = np.broadcast_to(L, (*batch, *L.shape[-2:]))
    R = np.broadcast_to(R, (*batch, *R.shape[-2:]))
    for item in np.ndindex(batch):
        dense[to_out[item], :, to_in[item]] += np.kron(L[item], R[item])
    check(J, dense.reshape(n_out * rows, n_in * columns))


def test_own_shape_wins_over_columns_and_rows() -> None:
    J = Kronecker(3, matrix(1, 1), input_shape=(3, 1), output_shape=(1, 3))
    t = matrix(3, 1)
    assert (J @ t).shape == (1, 3)
    assert (t.T @ J).shape == (3, 1)
    row = Kronecker(1, matrix(1, 4), input_shape=(4,), output_shape=())
    assert type(row @ np.ones(4)) is np.float64
    assert (2.0 @ row).shape == (4,)
    assert (np.float64(2) @ row).shape == (4,)
    assert (np.ones((3, 1)) @ row).shape == (3, 4)


def test_zeros_of_an_identity_hide_infinities() -> None:
    R = np.array([[np.inf, 1.0], [np.nan, 2.0]])
    with np.errstate(all="raise"):
        for J in (Kronecker(2, R), Kronecker(R, 2)):
            dense = J.todense()
            assert np.count_nonzero(~np.isfinite(dense)) == 4
            assert np.count_nonzero(dense == 0) == 8
            assert np.isnan(J @ np.zeros(4)).all()
    assert np.isnan(Kronecker(2, R) @ np.array([[0.0, 0.0], [1.0, 1.0]])).tolist() == [
        [True, True],
        [False, True],
    ]


def test_promotes_as_everywhere() -> None:
    J = Kronecker(2, np.ones((2, 2), np.float32))
    assert J.dtype == np.float32
    assert (J @ np.ones(4)).dtype == np.float64
    assert (np.ones(4, np.int8) @ J).dtype == np.float32
    assert (J @ np.ones(4, ">f4")).dtype == np.float32
    assert Kronecker(np.ones((1, 1), np.float32), np.ones((1, 1))).dtype == np.float64
    assert Kronecker([[1, 2]], [[True]]).dtype == np.float64
    assert Kronecker(2, 3).dtype == np.float64
    t = np.ones((2, 3))
    assert not np.shares_memory(Kronecker(2, 3) @ t, t)


# --- products of Jacobians ------------------------------------------------------------------------


def test_products_stay_kronecker() -> None:
    factors = (matrix(2, 3), 3, matrix(3, 4)), (2, matrix(2, 5), matrix(5, 1))
    for left in (Kronecker(factors[0][0], factors[1][0]), Kronecker(3, matrix(4, 2))):
        for right in (Kronecker(3, 2), Kronecker(factors[0][2], 2), Kronecker(3, factors[1][1])):
            J = left @ right
            assert isinstance(J, Kronecker)
            assert J.input_shape == right.input_shape
            assert J.output_shape == left.output_shape
            np.testing.assert_array_equal(J.todense(), left.todense() @ right.todense())
    A, B, C = matrix(2, 3), matrix(3, 4), matrix(4, 5)
    outer, inner = pb.matmul.jacobian(A @ B, C)[0], pb.matmul.jacobian(A, B)[0]
    np.testing.assert_array_equal(
        (outer @ inner).tensor(), pb.matmul.jacobian(A, B @ C)[0].tensor()
    )


def test_products_that_are_none() -> None:
    J = Kronecker(2, matrix(3, 3))
    with pytest.raises(ValueError, match=r"operand shape \(2, 3\) and result shape \(3, 2\)"):
        J @ Kronecker(3, 2)
    summed = Kronecker(matrix(4, 2, 2), 3, input_batch=(4,), output_batch=())
    flat = Kronecker(1, matrix(6, 6), output_shape=(2, 3))
    diagonal = Diagonal(np.ones((2, 3)))
    for left, right in ((summed, summed.T), (J, flat), (J, diagonal), (diagonal, J)):
        lazy = left @ right
        assert isinstance(lazy, Product)
        assert lazy.factors == (left, right)
        check(lazy, left.todense() @ right.todense())


def test_products_of_one_batch_stay_kronecker() -> None:
    X, V, W = matrix(5, 2, 3), matrix(3, 4), matrix(4, 2)
    J = pb.matmul.jacobian(X @ V, W)[0] @ pb.matmul.jacobian(X, V)[0]
    assert isinstance(J, Kronecker)
    check(J, pb.matmul.jacobian(X, V @ W)[0].todense())
    batched = Kronecker(matrix(4, 2, 2), 3)
    square = batched @ batched
    assert isinstance(square, Kronecker)
    check(square, batched.todense() @ batched.todense())


def test_products_do_not_outgrow_their_factors() -> None:
    n = 3000  # a scalar product and its multiple: rank one, not n x n
    J = Kronecker(1, np.ones((n, 1))) @ Kronecker(1, np.ones((1, n)))
    assert isinstance(J, Product)
    assert J.nbytes == 2 * n * 8
    assert (J @ np.ones((1, n))).tolist() == [[n] * n]


# --- errors ---------------------------------------------------------------------------------------


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
            lambda J: np.ones(6) @ J,
            r"g @ J: g has shape \(6,\), J needs \(2, 4\), \(8,\) or \(k, 8",
        ),
        (lambda J: np.ones((8, 2)) @ J, r"g has shape \(8, 2\)"),
        (lambda J: J.matvec(np.ones(8)), r"Kronecker.matvec: .* \(8,\), not \(6,\) or \(6, 1\)"),
        (lambda J: J.rmatvec(np.ones(6)), r"rmatvec: .* not \(8,\) or \(8, 1\)"),
        (lambda J: J.matmat(np.ones(6)), r"matmat: .* not \(6, k\)"),
        (lambda J: J.rmatmat(np.ones((6, 2))), r"rmatmat: .* not \(8, k\)"),
    ],
)
def test_shape_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Kronecker(2, np.ones((4, 3))))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones(3), 2), {}, r"left has shape \(3,\), needs two axes, or an int"),
        ((2, 1.5), {}, r"right has shape \(\), needs two axes, or an int"),
        ((-1, 2), {}, "left is an identity of size -1"),
        ((np.ones((2, 1, 1)), np.ones((3, 1, 1))), {}, r"\(2,\), \(3,\) .* do not broadcast"),
        ((2, 2), {"input_batch": (2,), "output_batch": (3,)}, "do not broadcast"),
        ((2, 3), {"input_shape": (5,)}, r"input_shape \(5,\) has not as many elements as \(2, 3\)"),
        ((2, 3), {"output_shape": (2,)}, "output_shape"),
    ],
)
def test_what_cannot_be_built(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Kronecker(*arguments, **options)


def test_type_errors() -> None:
    with pytest.raises(TypeError, match="argument left has dtype complex128"):
        Kronecker([[1j]], 1)
    with pytest.raises(TypeError, match="argument t has dtype complex128"):
        Kronecker(1, [[1.0]]) @ [1j]


# --- elements, memory -----------------------------------------------------------------------------


def test_diagonals() -> None:
    for J in (
        Kronecker(3, 2),
        Kronecker(3, matrix(2, 2)),
        Kronecker(matrix(2, 2), 3),
        Kronecker(matrix(2, 2), matrix(3, 3)),
        Kronecker(matrix(2, 1), matrix(1, 2)),
        Kronecker(matrix(2, 3), matrix(4, 2)),
        Kronecker(matrix(2, 3, 3), 1),
    ):
        assert_same_bits(J.diagonal(), J.todense().diagonal())


def test_dense_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    J = Kronecker(1000, np.ones((1000, 1000)))
    for dense in (J.todense, J.tensor):
        with pytest.raises(
            MemoryError, match=r"1000000 x 1000000 float64 .* 8e\+03 GB.*force=True"
        ):
            dense()
    monkeypatch.setattr(jacobians, "DENSE_LIMIT_BYTES", 31)
    small = Kronecker(1, np.array([[1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(MemoryError, match="the Kronecker 3.2e-08 GB"):
        small.todense()
    assert small.todense(force=True).tolist() == [[1, 2], [3, 4]]
    assert small.tensor(force=True).shape == (1, 2, 1, 2)
    with pytest.raises(MemoryError, match="2 x 2"):
        Diagonal([1.0, 2.0]).tensor()
    assert Diagonal(np.ones((2, 1))).tensor(force=True).tolist() == [[[[1], [0]]], [[[0], [1]]]]


def test_memory_stays_that_of_the_operands() -> None:
    n = 1000
    A, B = np.ones((n, n), np.float32), np.ones((n, n), np.float32)
    tracemalloc.start()
    try:
        jacobians_ = pb.matmul.jacobian(A, B)
        for J in jacobians_:
            assert (J @ A)[0, 0] == n
            assert (A @ J)[0, 0] == n
            assert J.T.nbytes == J.nbytes == A.nbytes
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * A.nbytes


# --- immutability, copies, SciPy ------------------------------------------------------------------


def test_immutable() -> None:
    L, R = matrix(2, 3), matrix(4, 3)
    J = Kronecker(L, R)
    before = J.todense()
    L[:], R[:] = 7, 7
    np.testing.assert_array_equal(J.todense(), before)
    for J_ in (J, J.T, pickle.loads(pickle.dumps(J)), *pb.matmul.jacobian(L, L.T)):
        for factor in (J_.left, J_.right):
            if isinstance(factor, int):
                continue
            with pytest.raises(ValueError, match="read-only"):
                factor[0, 0] = 2
    for name in ("shape", "left", "right", "dtype", "T", "extra"):
        with pytest.raises(AttributeError):
            setattr(J, name, None)
    assert np.shares_memory(Kronecker(L, 1, copy=False).left, L)
    assert L.flags.writeable
    assert np.shares_memory(J.T.left, J.left)
    result = J @ np.ones((3, 3))
    result[:] = 0  # belongs to the caller
    A, B = matrix(2, 3), matrix(3, 4)
    of_A, of_B = pb.matmul.jacobian(A, B)
    kept = of_A.todense(), of_B.todense()
    A[:], B[:] = 0, 0
    np.testing.assert_array_equal(of_A.todense(), kept[0])
    np.testing.assert_array_equal(of_B.todense(), kept[1])


def test_copies_and_repr() -> None:
    J = Kronecker(2, np.ones((4, 3), np.float32))
    assert repr(J) == (
        "<Kronecker 8x6 float32, identity 2 by 4x3, operand shape (2, 3), result shape (2, 4)>"
    )
    assert "5x3 (batch (7,)) by identity 2" in repr(Kronecker(np.ones((7, 5, 3)), 2))
    for original in (J, J.T, *pb.matmul.jacobian(matrix(2, 2, 3), matrix(3, 4))):
        for other in (
            pickle.loads(pickle.dumps(original)),
            copy.deepcopy(original),
            copy.copy(original),
        ):
            assert isinstance(other, Kronecker)
            assert repr(other) == repr(original)
            assert_same_bits(other.todense(), original.todense())
    assert pb.Kronecker is Kronecker


def test_scipy_linear_operator() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    J = Kronecker(matrix(2, 3), matrix(4, 2))
    dense = J.todense()
    operator = linalg.aslinearoperator(J)
    assert operator.shape == dense.shape
    assert operator.dtype == float
    b, g = matrix(6), matrix(8)
    np.testing.assert_array_equal(operator @ b, dense @ b)
    np.testing.assert_array_equal(operator.T @ g, dense.T @ g)
    np.testing.assert_array_equal(operator @ np.eye(6), dense)
    np.testing.assert_array_equal(operator.H @ np.eye(8), dense.T)
    square = Kronecker(np.array([[4.0, 1.0], [1.0, 3.0]]), np.array([[2.0, 0.5], [0.5, 1.0]]))
    solution, info = linalg.cg(linalg.aslinearoperator(square), np.ones(4), rtol=1e-12)
    assert info == 0
    # The residual is what conjugate gradients promise.
    assert np.linalg.norm(square @ solution - 1) <= 1e-11 * 2


def test_other_operators_multiply_us() -> None:
    class Operator:
        def __rmatmul__(self, other: Any) -> str:
            return f"{other.shape} @ operator"

    assert Kronecker(2, 3) @ Operator() == "(6, 6) @ operator"

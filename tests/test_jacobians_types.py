"""Every kind of Jacobian by itself: its matrix, shapes, memory, copies, what it refuses."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from collections.abc import Callable
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
    Kronecker,
    Outer,
    Permutation,
    Product,
    Reshape,
    Sum,
    SumTo,
    Zero,
)
from structured import KINDS, check, everything, matrix_of

kinds = pytest.mark.parametrize("kind", KINDS)


@dtypes
@kinds
def test_is_its_matrix(kind: str, dtype: np.dtype) -> None:
    for J, dense in everything(kind, dtype):
        assert type(J) is getattr(jacobians, kind)
        assert J.dtype == dtype
        check(J, dense)
        # A Kronecker product itself tells its diagonal only where that is one of factors.
        for diagonal in [Sum(J).diagonal(), *([J.diagonal()] if kind != "Kronecker" else [])]:
            np.testing.assert_array_equal(diagonal, dense.diagonal())
            assert diagonal.dtype == dtype


@dtypes
def test_three_axes_and_empty_ones(dtype: np.dtype) -> None:
    shape = (2, 3, 4)
    for axes in ((2, 0, 1), (1, 2, 0), (0, 2, 1), (-1, -3, -2)):
        J = Permutation(shape, axes, dtype)
        check(J, matrix_of(lambda x, axes=axes: x.transpose(axes), shape).astype(dtype))
        assert isinstance(J.T @ J, Identity)
    check(
        Broadcast((3, 1), (2, 3, 3, 4), dtype),
        matrix_of(lambda x: np.broadcast_to(x, (2, 3, 3, 4)), (3, 1)).astype(dtype),
    )
    blocks = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).astype(dtype)
    check(
        BlockDiagonal(blocks, (12,), (3, 4)),
        matrix_of(lambda x: np.einsum("abij,abj->abi", blocks, x), (2, 3, 2)).astype(dtype),
    )
    for J in (
        Identity((0, 2), dtype),
        Zero((0,), (3,), dtype),
        Zero((3,), (0,), dtype),
        Dense(np.ones((0, 2), dtype)),
        Dense(np.ones((2, 0), dtype)),
        Outer(np.ones(0, dtype), np.ones(2, dtype)),
        BlockDiagonal(np.ones((0, 2, 2), dtype)),
        BlockDiagonal(np.ones((2, 0, 3), dtype)),
        Permutation((0, 2), (1, 0), dtype),
        Broadcast((1,), (0,), dtype),
        SumTo((0,), (), dtype),
        Product(Dense(np.ones((2, 0), dtype)), Dense(np.ones((0, 3), dtype))),
        Sum(Zero((2,), (0,), dtype), Zero((2,), (0,), dtype)),
        pb.softmax.jacobian(np.ones((0, 3), dtype)),
        pb.softmax.jacobian(np.ones((2, 0), dtype)),
        Kronecker(np.ones((0, 2, 2), dtype), 3, input_batch=(0,), output_batch=()),
    ):
        check(J, np.zeros(J.shape, dtype))
        check(J + J, np.zeros(J.shape, dtype))


def test_moves_take_on_a_dtype() -> None:
    for J in (Permutation((2, 3), (1, 0)), Reshape((2, 3), (6,)), Broadcast((3,), (2, 3))):
        t = np.ones(J.input_shape)
        assert J.dtype == np.float32
        assert (J @ t).dtype == np.float64
        assert (J @ t.astype(np.float32)).dtype == np.float32
        assert (Diagonal(np.ones(J.output_shape)) @ J).dtype == np.float64
    assert SumTo((3,), (), np.float64).T.dtype == np.float64
    assert Identity((2,)).dtype == Zero((2,), (2,)).dtype == np.float64


def test_sums_accumulate_in_float64() -> None:
    x = np.array([2.0**24, 1, 1, 1, 1, -(2.0**24)], np.float32)
    assert SumTo((6,), ()) @ x == 4


def test_zeros_that_are_structure_hide_infinities() -> None:
    bad = np.array([np.inf, np.nan, -np.inf, 0.0])
    with np.errstate(all="raise"):
        assert (Zero((2,), (4,)) @ bad).tolist() == [0, 0]
        assert (Zero((4,), (4,)) @ Diagonal(bad)).todense().tolist() == np.zeros((4, 4)).tolist()
        np.testing.assert_array_equal(Diagonal(bad).todense(), np.diag(bad))
        np.testing.assert_array_equal(Permutation((2, 2), (1, 0)) @ bad, bad[[0, 2, 1, 3]])
        np.testing.assert_array_equal((Identity((4,)) + Diagonal(bad)).diagonal(), bad + 1)
        dense = BlockDiagonal(bad.reshape(2, 1, 2)).todense()
        assert np.count_nonzero(dense == 0) == 5
        assert np.isnan((Outer(bad, bad) @ np.zeros(4))[:3]).all()


# --- memory ---------------------------------------------------------------------------------------


def test_many_elements_take_order_n() -> None:
    n = 500**2
    x, rows = np.ones(n), np.ones((500, 500))
    s = Diagonal(rows)
    W, b = np.ones((500, 8)), np.ones(8)
    for J, arrays in (
        (pb.tanh.jacobian(x) @ pb.exp.jacobian(x), 1),
        (pb.multiply.jacobian(rows, rows[0])[1], 1),
        (pb.multiply.jacobian(rows, rows[:1])[1].T, 1),
        (Identity((n,)) - Outer(x, x), 2),
        (s - s @ Broadcast((500, 1), (500, 500)) @ SumTo((500, 500), (500, 1)) @ s, 3),
        (BlockDiagonal(np.ones((n // 2, 2, 2))) @ Permutation((2, n // 2), (1, 0)), 2),
        (pb.linear.jacobian(rows, W, b, activation=pb.tanh)[0], 1),
        (Outer(x, x) @ Diagonal(x), 2),
    ):
        assert n in J.shape
        assert J.nbytes <= arrays * 8 * n
        tangent, cotangent = np.ones(J.input_shape), np.ones(J.output_shape)
        tracemalloc.start()
        try:
            for K in (J, -J, J + J, 2.0 * J):
                assert (K @ tangent).shape == J.output_shape
                assert (cotangent @ K).shape == J.input_shape
                assert (K.T @ cotangent).shape == J.input_shape
                assert K.jvp(tangent[np.newaxis]).shape == (1, *J.output_shape)
            assert (J @ J.T @ cotangent).shape == J.output_shape
            repr(J)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak <= 12 * 8 * n, (J, peak)
        for call in (J.toarray, J.tensor, lambda J=J: J.tensor("denominator"), J.__array__):
            with pytest.raises(
                MemoryError, match=rf"{n} .* takes .* GB, the \w+ (0\.|\S+e-)\d+ GB; todense"
            ):
                call()


def test_views_share_memory_and_constructors_copy() -> None:
    u, v, M, blocks = np.ones(2), np.ones(3), np.ones((2, 3)), np.ones((4, 2, 3))
    for kind, arrays, names in (
        (Outer, (u, v), ("u", "v")),
        (Dense, (M,), ("matrix",)),
        (BlockDiagonal, (blocks,), ("blocks",)),
    ):
        J, own = kind(*arrays), kind(*arrays, copy=False)
        for name, array in zip(names, arrays, strict=True):
            assert not np.shares_memory(getattr(J, name), array)
            assert np.shares_memory(getattr(own, name), array)
            assert array.flags.writeable
            for K in (J, own, pickle.loads(pickle.dumps(J)), copy.deepcopy(J), copy.copy(J)):
                with pytest.raises(ValueError, match="read-only"):
                    getattr(K, name)[...] = 5
                with pytest.raises(AttributeError):
                    setattr(K, name, None)
        assert J.T.nbytes == J.nbytes == sum(array.nbytes for array in arrays)
        before = J.todense()
        before[...] = 9  # belongs to the caller
        assert (J.todense() == 1).any()
    for J in (Identity((2,)), Zero((2,), (3,)), Permutation((2, 3), (1, 0)), Sum(Identity((2,)))):
        assert J.nbytes == 0
        for name in ("shape", "dtype", "T", "input_shape", "extra"):
            with pytest.raises(AttributeError):
                setattr(J, name, None)


# --- protocols ------------------------------------------------------------------------------------


def test_reprs() -> None:
    half = Diagonal(np.ones((2, 3), np.float32))
    assert repr(Identity((2,))) == "<Identity 2x2 float64, operand shape (2,)>"
    assert repr(Zero((3,), ())) == "<Zero 3x1 float64, operand shape (), result shape (3,)>"
    assert repr(Dense(np.ones((2, 6)), (3, 2))) == (
        "<Dense 2x6 float64, operand shape (3, 2), result shape (2,)>"
    )
    assert repr(Outer([1.0, 2.0], [3.0])) == (
        "<Outer 2x1 float64, operand shape (1,), result shape (2,)>"
    )
    assert repr(BlockDiagonal(np.ones((5, 4, 2, 3)))) == (
        "<BlockDiagonal 40x60 float64, 20 blocks 2x3, operand shape (5, 4, 3), "
        "result shape (5, 4, 2)>"
    )
    nested = half - half @ Broadcast((3,), (2, 3)) @ SumTo((2, 3), (3,))
    assert repr(nested).splitlines() == [
        "<Sum 6x6 float32, operand shape (2, 3):",
        "  <Diagonal 6x6 float32, operand shape (2, 3)>",
        "  <Product 6x6 float32, operand shape (2, 3):",
        "    <Diagonal 6x6 float32, operand shape (2, 3)>",
        "    <Broadcast 6x3 float32, operand shape (3,), result shape (2, 3)>",
        "    <SumTo 3x6 float32, operand shape (2, 3), result shape (3,)>>>",
    ]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Dense(np.ones(3)), r"Dense: matrix has shape \(3,\), needs two axes"),
        (lambda: Dense(np.ones((2, 3)), (4,)), r"input_shape \(4,\) .* elements as \(3,\)"),
        (lambda: Dense(np.ones((2, 3)), (3,), (3,)), r"output_shape \(3,\) .* as \(2,\)"),
        (lambda: BlockDiagonal(np.ones(3)), r"blocks have shape \(3,\), need two axes"),
        (lambda: BlockDiagonal(np.ones((2, 1, 3)), (5,)), r"input_shape \(5,\) .* as \(2, 3\)"),
        (lambda: Permutation((2, 3), (0, 0)), r"axes \(0, 0\) .* of shape \(2, 3\)"),
        (lambda: Permutation((2, 3), (0, 2)), r"axes \(0, 2\) are not a permutation"),
        (lambda: Permutation((2, 3), (0,)), r"axes \(0,\) are not a permutation"),
        (lambda: Reshape((2, 3), (5,)), r"\(2, 3\) has 6 elements, output_shape \(5,\) has 5"),
        (lambda: Broadcast((2,), (3,)), r"input_shape \(2,\) does not .* output_shape \(3,\)"),
        (lambda: Broadcast((2, 1), (2,)), r"\(2, 1\) does not broadcast to .* \(2,\)"),
        (lambda: SumTo((3,), (2,)), r"output_shape \(2,\) does not .* input_shape \(3,\)"),
        (lambda: Identity((2, -1)), r"shape \(2, -1\) has a negative extent"),
        (lambda: Sum(), "Sum: needs at least one"),
        (lambda: Product(), "Product: needs at least one"),
        (lambda: Product(Identity((2,)), Identity((3,))), r"shape \(2,\) and result shape \(3,\)"),
        (lambda: Sum(Zero((2,), (3,)), Zero((2,), (4,))), r"operand shapes \(3,\) and \(4,\)"),
        (lambda: Sum(Zero((2,), (3,)), Zero((1,), (3,))), r"result shapes \(2,\) and \(1,\)"),
        (lambda: Identity((2,)).jvp(np.ones((2, 3))), r"Identity.jvp: t has shape \(2, 3\), .*2,"),
        (lambda: Zero((3,), (2,)).vjp(1.0), r"vjp: g has shape \(\), which must end in \(3,\)"),
        (lambda: Identity((2,)).tensor("row"), "layout is 'row', neither 'numerator'"),
        (lambda: Identity((2,)) @ Identity((2, 1)), r"\(2,\) and result shape \(2, 1\) differ"),
        (lambda: Dense(np.ones((2, 3))) + Dense(np.ones((2, 2))), r"shapes \(3,\) and \(2,\) diff"),
    ],
)
def test_value_errors_name_the_shapes(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Dense([[1j]]), "Dense: argument matrix has dtype complex128"),
        (lambda: Outer([1.0], [1j]), "Outer: argument v has dtype complex128"),
        (lambda: BlockDiagonal([[1j]]), "argument blocks has dtype complex128"),
        (lambda: Identity((2,), complex), "Identity: argument dtype has dtype complex128"),
        (lambda: Sum(Identity((2,)), 1.0), "Sum: takes Jacobians, not float"),
        (lambda: Product(np.ones((2, 2))), "Product: takes Jacobians, not ndarray"),
        (lambda: 1j * Identity((2,)), "argument c has dtype complex128"),
    ],
)
def test_type_errors(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_kinds_have_one_home() -> None:
    assert pickle.dumps(Identity((2,))).count(b"pullback.jacobians") == 1
    for name in KINDS:
        kind = getattr(jacobians, name)
        assert kind.__module__ == "pullback.jacobians"
        assert name in jacobians.__all__
    assert isinstance(Kronecker(2, 2), pb.jacobians.Jacobian)


@pytest.mark.parametrize(
    ("few", "many"),
    [
        ((), (3,)),
        ((4,), (4, 4)),
        ((4, 1), (4, 4)),
        ((1, 3, 1, 2), (2, 3, 4, 2)),
        ((3, 1, 2), (2, 3, 5, 2)),
        ((2, 3), (2, 3)),
        ((1, 3), (0, 3)),
    ],
)
def test_diagonals_of_repetitions_are_those_of_the_matrix(few: Any, many: Any) -> None:
    repeated = Broadcast(few, many)
    for J in (repeated, repeated.T, Product(Reshape(many, (*many, 1)), repeated)):
        np.testing.assert_array_equal(J.diagonal(), J.todense().diagonal())
        assert J.diagonal().dtype == J.dtype


def test_products_of_views_return_arrays_of_their_own() -> None:
    moved = Product(Reshape((3, 2), (6,)), Permutation((2, 3), (1, 0)))
    alike = Product(Reshape((1, 2, 3), (6,)), Permutation((2, 1, 3), (1, 0, 2)))
    for J in (moved, alike):
        t, g = np.ones(J.input_shape), np.ones(J.output_shape)
        for vector, result in ((t, J @ t), (t, J.jvp(t)), (g, g @ J), (g, J.vjp(g))):
            assert result.flags.writeable
            assert not np.may_share_memory(vector, result)

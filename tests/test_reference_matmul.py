"""matmul's twin against complex steps, einsum and the adjoint identity, for every shape."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import DTYPES, assert_same_bits
from pullback.oracle.products import product_results
from pullback.reference import matmul
from pullback.tables.products import PRODUCTS

SHAPES = [
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((1, 1), (1, 1)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((5, 1, 2, 3), (6, 3, 4)),
    ((5, 6, 2, 3), (1, 6, 3, 4)),
    ((1, 6, 2, 3), (5, 1, 3, 4)),
    ((7, 1, 6, 2, 3), (5, 1, 3, 4)),
    ((1, 2, 3), (1, 3, 4)),
    ((2, 0), (0, 4)),
    ((0, 3), (3, 4)),
    ((2, 3), (3, 0)),
    ((0, 2, 3), (3, 4)),
    ((1, 2, 3), (0, 3, 4)),
    ((0,), (0,)),
]
shapes = pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)


def operands(a: tuple[int, ...], b: tuple[int, ...], seed: int = 0) -> tuple[Any, Any, Any]:
    """Return A, B and a cotangent, of small integers so that every sum is exact."""
    rng = np.random.default_rng(seed)
    A, B = (rng.integers(-9, 10, shape).astype(float) for shape in (a, b))
    return A, B, rng.integers(-9, 10, np.matmul(A, B).shape).astype(float)


def naive_vjp(A: Any, B: Any, G: Any) -> tuple[Any, Any]:
    """Return (dA, dB) one basis tangent at a time: the product is linear in each operand."""
    gradients = []
    for operand, product in ((A, lambda t: np.matmul(t, B)), (B, lambda t: np.matmul(A, t))):
        gradient = np.zeros(operand.shape)
        for index in np.ndindex(operand.shape):
            tangent = np.zeros(operand.shape)
            tangent[index] = 1
            gradient[index] = np.sum(product(tangent) * G)
        gradients.append(gradient)
    return gradients[0], gradients[1]


@shapes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_derivatives(a: tuple[int, ...], b: tuple[int, ...], dtype: np.dtype) -> None:
    A, B, G = (x.astype(dtype) for x in operands(a, b))
    tA, tB = A + 1, B - 2
    assert_same_bits(abs(matmul(A, B)), abs(np.matmul(A, B)))
    for actual, expected in zip(matmul.vjp(A, B, G), naive_vjp(A, B, G), strict=True):
        assert actual.dtype == dtype
        assert actual.shape == expected.shape
        np.testing.assert_array_equal(actual, expected)
    tangent = matmul.jvp(A, B, tA, tB)
    assert tangent.dtype == dtype
    np.testing.assert_array_equal(tangent, np.matmul(tA, B) + np.matmul(A, tB))


@shapes
def test_complex_step(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    A, tA = rng.normal(size=(2, *a))
    B, tB = rng.normal(size=(2, *b))
    step = 1e-30
    expected = np.matmul(A + 1j * step * tA, B + 1j * step * tB).imag / step
    np.testing.assert_allclose(matmul.jvp(A, B, tA, tB), expected, rtol=1e-13, atol=1e-14)


@given(
    shapes=hnp.mutually_broadcastable_shapes(
        signature="(m?,k),(k,n?)->(m?,n?)", max_dims=3, min_side=0, max_side=3
    ),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=150)
def test_adjoint_identity(shapes: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = shapes.input_shapes
    A, B, G = operands(a, b, seed)
    assert G.shape == shapes.result_shape
    tA, tB = (rng.integers(-9, 10, shape).astype(float) for shape in (a, b))
    dA, dB = matmul.vjp(A, B, G)
    assert dA.shape == a
    assert dB.shape == b
    assert np.sum(G * matmul.jvp(A, B, tA, tB)) == np.sum(dA * tA) + np.sum(dB * tB)


class Recorded(np.ndarray):
    """An array that notes down which shapes are multiplied."""

    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __matmul__(self, other: Any) -> Any:
        self.seen.append((self.shape, other.shape))
        return super().__matmul__(other)

    def __rmatmul__(self, other: Any) -> Any:
        return other.view(Recorded) @ self


def recorded(
    name: str, method: str, arrays: Any, wrt: tuple[int, ...] = (0,), activation: Any = None
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the shapes of the matrices that the oracle multiplies."""
    Recorded.seen.clear()
    given = tuple(None if a is None else a.view(Recorded) for a in arrays)
    count = len(wrt) if method == "vjp" else 1 + len(wrt) * (method == "value_and_grad")
    product_results(PRODUCTS[name], method, given, activation, wrt, (None,) * count)
    return [*Recorded.seen]


def test_folded_sums_do_not_expand() -> None:
    for shapes, seen in (
        (((5, 2, 3), (3, 4)), [((5, 2, 4), (4, 3)), ((3, 10), (10, 4))]),
        (((1, 6, 2, 3), (5, 1, 3, 4)), [((6, 2, 20), (1, 20, 3)), ((1, 3, 12), (5, 12, 4))]),
    ):
        assert recorded("matmul", "vjp", operands(*shapes), (0, 1)) == seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_and_inputs_unwritten(dtype: np.dtype) -> None:
    A, B, G = (x.astype(dtype) for x in operands((5, 2, 3), (3, 4)))
    expected = matmul.vjp(A, B, G)
    for layout in (
        np.asfortranarray,
        lambda x: x[..., ::-1].copy()[..., ::-1],
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    ):
        arrays = tuple(layout(x) for x in (A, B, G))
        for array in arrays:
            array.flags.writeable = False
        for actual, desired in zip(matmul.vjp(*arrays), expected, strict=True):
            assert_same_bits(actual, desired)
            assert actual.flags.writeable


def test_dtypes() -> None:
    for left, right in itertools.product((bool, np.int8, np.float16, np.float32), repeat=2):
        assert matmul(np.ones((2, 2), left), np.ones((2, 2), right)).dtype == np.float32
    assert matmul(np.ones((2, 2), np.float32), [[1], [2]]).dtype == np.float64
    dA, dB = matmul.vjp(np.ones(2, np.float32), np.ones(2, np.float32), 1.0)
    assert dA.dtype == dB.dtype == np.float32
    assert type(matmul(np.ones(2), np.ones(2))) is np.float64
    assert type(matmul.jvp(*[np.ones(2, np.float32)] * 4)) is np.float32
    for bad in (1j, None, "a", np.longdouble(1)):
        with pytest.raises(TypeError, match=r"matmul: argument B has dtype"):
            matmul(np.ones((1, 1)), np.full((1, 1), bad))
        with pytest.raises(TypeError, match=r"matmul.vjp: argument G has dtype"):
            matmul.vjp(np.ones((1, 1)), np.ones((1, 1)), np.full((1, 1), bad))
        with pytest.raises(TypeError, match=r"matmul.jvp: argument tA has dtype"):
            matmul.jvp([1.0], [1.0], [bad], [1.0])


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ((2, 3), (4, 5), "k is 3 in A, and 4 in B"),
        ((3,), (4,), "k is 3 in A, and 4 in B"),
        ((3,), (3, 4, 5), "k is 3 in A, and 4 in B"),
        ((2, 2, 3), (3, 3, 4), "the batches do not broadcast"),
        ((), (3,), r"A needs \(\.\.\., m\?, k\)"),
        ((3,), (), r"B needs \(\.\.\., k, n\?\)"),
    ],
)
def test_shape_errors(a: tuple[int, ...], b: tuple[int, ...], why: str) -> None:
    A, B = np.ones(a), np.ones(b)
    for call in (
        lambda: matmul(A, B),
        lambda: matmul.vjp(A, B, 1.0),
        lambda: matmul.jvp(A, B, A, B),
    ):
        with pytest.raises(ValueError, match=why) as caught:
            call()
        assert f"A has shape {a}, B has shape {b}" in str(caught.value)
        with pytest.raises(ValueError):  # noqa: PT011
            np.matmul(A, B)


def test_cotangents_and_tangents_are_not_broadcast() -> None:
    A, B = np.ones((2, 3)), np.ones((3, 4))
    with pytest.raises(ValueError, match=r"G has shape \(4,\), the result \(2, 4\)"):
        matmul.vjp(A, B, np.ones(4))
    with pytest.raises(ValueError, match=r"tB has shape \(4,\), B has \(3, 4\)"):
        matmul.jvp(A, B, A, np.ones(4))


def test_never_warns() -> None:
    values = oracles.special_values(np.dtype(float))
    A = np.resize(values, (20, 20))
    with np.errstate(all="raise"):
        assert np.isnan(matmul(A, A)).any()
        matmul.vjp(A, A, A)
        matmul.jvp(A, A, A, A)


def test_pickle_and_repr() -> None:
    assert pickle.loads(pickle.dumps(matmul)) is matmul
    assert repr(matmul) == "<product matmul, NumPy twin>"
    assert matmul.__name__ == "matmul"

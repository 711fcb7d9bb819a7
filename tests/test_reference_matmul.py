"""matmul's twin against basis tangents and complex steps, for every shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from oracles import DTYPES, assert_same_bits
from protocol import twin_on
from pullback.calculus import Matmul as Kernels
from pullback.products import Matmul
from pullback.reference import matmul

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


def test_folded_sums_do_not_expand() -> None:
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def product(A: Any, B: Any, out: Any) -> Any:
        seen.append((A.shape, B.shape))
        return np.matmul(A, B, out=out)

    recorder = twin_on(Matmul, Kernels(product))
    A, B, G = operands((5, 2, 3), (3, 4))
    recorder.vjp(A, B, G)
    assert seen == [((5, 2, 4), (4, 3)), ((3, 10), (10, 4))]
    seen.clear()
    recorder.vjp(*operands((1, 6, 2, 3), (5, 1, 3, 4)))
    assert seen == [((6, 2, 20), (1, 20, 3)), ((1, 3, 12), (5, 12, 4))]


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ((2, 3), (4, 5), "lengths 3 and 4"),
        ((3,), (4,), "lengths 3 and 4"),
        ((3,), (3, 4, 5), "lengths 3 and 4"),
        ((2, 2, 3), (3, 3, 4), "batches do not broadcast"),
        ((), (3,), "A needs at least one axis"),
        ((3,), (), "B needs at least one axis"),
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

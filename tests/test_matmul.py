"""The public matmul: one object, and the results of its twin."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from pullback import reference
from pullback.matmul import matmul
from test_reference_matmul import SHAPES, operands


@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_agrees_with_the_twin(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    A, B, G = operands(a, b)
    np.testing.assert_array_equal(matmul(A, B), reference.matmul(A, B))
    for mine, twin in zip(matmul.vjp(A, B, G), reference.matmul.vjp(A, B, G), strict=True):
        assert mine.shape == twin.shape
        np.testing.assert_array_equal(mine, twin)
    np.testing.assert_array_equal(
        matmul.jvp(A, B, A + 1, B - 1), reference.matmul.jvp(A, B, A + 1, B - 1)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_componentwise_error(dtype: type) -> None:
    rng = np.random.default_rng(0)
    A, B = (rng.normal(size=shape).astype(dtype) for shape in ((30, 50), (50, 20)))
    G = rng.normal(size=(30, 20)).astype(dtype)
    dA, dB = matmul.vjp(A, B, G)
    cases: list[tuple[Any, Any, Any]] = [(matmul(A, B), A, B), (dA, G, B.T), (dB, A.T, G)]
    for actual, left, right in cases:
        left, right = left.astype(np.longdouble), right.astype(np.longdouble)
        bound = (left.shape[1] + 2) * np.finfo(dtype).eps / 2 * (abs(left) @ abs(right))
        assert (abs(actual - left @ right) <= bound).all()


def test_identity_of_the_object() -> None:
    assert matmul.__name__ == "matmul"
    assert pickle.loads(pickle.dumps(matmul)) is matmul
    assert copy.deepcopy(matmul) is matmul
    for method in (matmul, matmul.__call__, matmul.vjp, matmul.jvp):
        assert "Raises" in (inspect.getdoc(method) or "")

"""relu_mse's twin by hand, at special values, in odd layouts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from oracles import assert_same_bits
from pullback.design_matrix import as_data
from pullback.reference import relu_mse


def problem(n: int = 40, d: int = 5, dtype: Any = np.float64) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(n + d)
    X = rng.normal(size=(n, d)).astype(dtype)
    return X, rng.normal(size=n).astype(dtype), rng.normal(size=d).astype(dtype), 0.25


def test_by_hand() -> None:
    # z = (1, -1, 0): the second sample is inactive, the third sits on the kink.
    X, y = np.array([[1.0, 0.0], [-1.0, 3.0], [0.0, 5.0]]), np.array([3.0, 2.0, 4.0])
    loss, (gw, gb) = relu_mse.value_and_grad(X, y, np.array([1.0, 0.0]), 0.0)
    assert loss == (4 + 4 + 16) / 3
    np.testing.assert_allclose(gw, [-4 / 3, 0.0])
    assert gb == -4 / 3


def test_float64_accumulation() -> None:
    n = 300_000
    X, y = np.full((n, 1), 0.1, np.float32), np.zeros(n, np.float32)
    loss, (gw, _) = relu_mse.value_and_grad(X, y, np.ones(1, np.float32), None)
    x = float(np.float32(0.1))
    assert loss == pytest.approx(x * x, rel=1e-13)
    assert gw[0] == np.float32(2 * x * x)


def test_nothing_is_copied_that_need_not_be() -> None:
    X, _, _, _ = problem(dtype=np.float32)
    for in_place in (X, np.asfortranarray(X), X[::-1], X[:, 1:]):
        ((rows, block),) = as_data("loss", in_place).blocks()
        assert rows == slice(0, len(X))
        assert block is in_place
    for converted in (
        X.astype(">f4"),
        X.astype(np.int8),
        np.repeat(X, 4).reshape(80, 10)[::2, ::2],
    ):
        ((_, block),) = as_data("loss", converted).blocks()
        assert block.dtype == np.float32
        assert block.dtype.isnative
        np.testing.assert_array_equal(block, converted)


def test_special_values_propagate_silently_and_inputs_stay() -> None:
    X, y, w, b = problem()
    with np.errstate(all="raise"):
        for name, array in (("X", X), ("y", y), ("w", w)):
            for bad in (1e300,) if name == "y" else (math.nan, math.inf, -math.inf, 1e300):
                changed = array.copy()
                changed.flat[1] = bad
                changed.flags.writeable = False
                before = changed.copy()
                arguments = dict(zip("Xywb", (X, y, w, b), strict=True)) | {name: changed}
                loss, (gw, gb) = relu_mse.value_and_grad(**arguments)
                assert_same_bits(changed, before)
                if math.isnan(bad):
                    assert math.isnan(loss)
                    assert np.isnan(gw).all()
                    assert math.isnan(gb)
        loss, (gw, gb) = relu_mse.value_and_grad(X, y, w, math.nan)
    assert math.isnan(loss)
    assert np.isnan(gw).all()
    assert math.isnan(gb)


def test_inactive_samples_hide_their_target() -> None:
    loss, (gw, gb) = relu_mse.value_and_grad([[-1.0], [1.0]], [7.0, 3.0], [1.0], 0.0)
    assert loss == (49 + 4) / 2
    assert gw.tolist() == [-2.0]
    assert gb == -2.0


def test_layouts() -> None:
    X, y, w, b = problem()
    loss, (gw, gb) = relu_mse.value_and_grad(X, y, w, b)
    for layout in (np.asfortranarray, lambda a: a[::-1].copy()[::-1], lambda a: a.astype(">f8")):
        other, (hw, hb) = relu_mse.value_and_grad(layout(X), layout(y), layout(w), b)
        assert other == pytest.approx(loss, rel=1e-14)
        np.testing.assert_allclose(hw, gw, rtol=1e-13)
        assert hb == pytest.approx(gb, rel=1e-13)

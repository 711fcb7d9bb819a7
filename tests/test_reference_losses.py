"""relu_mse's twin against complex steps and mpmath, and the argument checks."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import oracles
import pytest
from mpmath import mp, mpf
from oracles import assert_same_bits
from pullback.layouts import as_data
from pullback.reference import relu_mse


def problem(n: int = 40, d: int = 5, dtype: Any = np.float64) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(n + d)
    X = rng.normal(size=(n, d)).astype(dtype)
    return X, rng.normal(size=n).astype(dtype), rng.normal(size=d).astype(dtype), 0.25


def complex_loss(X: Any, y: Any, w: Any, b: Any) -> Any:
    z = X @ w + b
    return np.mean((y - np.where(z.real > 0, z, 0)) ** 2)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 3), (100, 10), (33, 0)])
def test_complex_step(n: int, d: int) -> None:
    X, y, w, b = problem(n, d)
    step = 1e-30
    loss, (gw, gb) = relu_mse.value_and_grad(X, y, w, b)
    assert loss == relu_mse.value(X, y, w, b)
    assert loss == pytest.approx(complex_loss(X, y, w, b), rel=1e-14)
    for j in range(d):
        unit = 1j * step * (np.arange(d) == j)
        assert gw[j] == pytest.approx(complex_loss(X, y, w + unit, b).imag / step, rel=1e-12)
    assert gb == pytest.approx(complex_loss(X, y, w, b + 1j * step).imag / step, rel=1e-12)


def exact(X: Any, y: Any, w: Any, b: float) -> tuple[Any, list[Any], Any]:
    """Return loss and gradients in exact arithmetic."""
    n, d = X.shape
    rows = [[mpf(float(v)) for v in row] for row in X]
    z = [mp.fsum(x * mpf(float(v)) for x, v in zip(row, w, strict=True)) + mpf(b) for row in rows]
    error = [mpf(float(t)) - max(v, mpf(0)) for t, v in zip(y, z, strict=True)]
    r = [-2 * e / n if v > 0 else mpf(0) for e, v in zip(error, z, strict=True)]
    gradient = [mp.fsum(r[i] * rows[i][j] for i in range(n)) for j in range(d)]
    return mp.fsum(e * e for e in error) / n, gradient, mp.fsum(r)


@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
def test_accuracy(dtype: np.dtype) -> None:
    X, y, w, b = problem(200, 6, dtype)
    with mp.workprec(oracles.PRECISION):
        loss, gradient, slope = exact(X, y, w, b)
    value, (gw, gb) = relu_mse.value_and_grad(X, y, w, b)
    assert value == pytest.approx(float(loss), rel=1e-14)
    assert gb == pytest.approx(float(slope), rel=1e-12)
    assert gw.dtype == dtype
    # Accumulated in float64, so that float32 sees little more than its own last rounding.
    rtol = np.finfo(np.float32).eps / 1.9 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(gw, [float(g) for g in gradient], rtol=rtol)


def test_a_gradient_wrong_by_a_thousandth_is_rejected() -> None:
    X, y, w, b = problem()
    _, (gw, _) = relu_mse.value_and_grad(X, y, w, b)
    numeric = complex_loss(X, y, w + 1e-30j * (np.arange(5) == 0), b).imag / 1e-30
    assert gw[0] * 1.001 != pytest.approx(numeric, rel=1e-12)


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


@pytest.mark.parametrize(
    ("b", "kind", "dtype", "shape"),
    [
        (0.5, float, None, None),
        (1, float, None, None),
        (True, float, None, None),
        (np.float32(0.5), np.float32, np.float32, ()),
        (np.float64(0.5), np.float64, np.float64, ()),
        (np.float16(0.5), np.float32, np.float32, ()),
        (np.int8(1), np.float64, np.float64, ()),
        (np.array(0.5, np.float32), np.ndarray, np.float32, ()),
        (np.array([0.5], np.float32), np.ndarray, np.float32, (1,)),
        (np.array([1]), np.ndarray, np.float64, (1,)),
        ([0.5], np.ndarray, np.float64, (1,)),
    ],
    ids=repr,
)
def test_kind_of_the_intercept(b: Any, kind: type, dtype: Any, shape: Any) -> None:
    X, y, w, _ = problem()
    loss, (_, gb) = relu_mse.value_and_grad(X, y, w, b)
    assert type(loss) is float
    assert type(gb) is kind
    expected = relu_mse.value_and_grad(X, y, w, float(np.ravel(b)[0]))[1][1]
    if dtype is None:
        assert gb == expected
    else:
        assert gb.dtype == dtype
        assert gb.shape == shape
        assert_same_bits(gb, np.full(shape, expected, dtype))


def test_no_intercept() -> None:
    X, y, w, _ = problem()
    loss, (gw, gb) = relu_mse.value_and_grad(X, y, w, None)
    assert gb is None
    assert loss == relu_mse.value(X, y, w, None) == relu_mse.value(X, y, w, 0.0)
    assert_same_bits(gw, relu_mse.value_and_grad(X, y, w, 0.0)[1][0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [np.float32, np.float64, np.int64, np.int8])
def test_dtype_of_the_weights(dtype: type, parameters: type) -> None:
    X, y, w, b = problem(dtype=dtype)
    w = (w * 3).astype(parameters)
    _, (gw, _) = relu_mse.value_and_grad(X, y, w, b)
    assert gw.shape == w.shape
    assert gw.dtype == (np.float32 if parameters is np.float32 else np.float64)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.ones(9)}, r"w has shape \(9,\), X of shape \(100, 10\) needs \(10,\)"),
        (
            {"w": np.ones((10, 1))},
            r"y has shape \(100,\).* needs \(100, 1\) for w",
        ),
        ({"y": np.ones(10)}, r"y has shape \(10,\), X of shape \(100, 10\) needs \(100,\)"),
        ({"y": np.ones((100, 1))}, r"y has shape \(100, 1\)"),
        ({"X": np.ones(10)}, r"X has shape \(10,\), needs two axes"),
        ({"X": np.ones((0, 10)), "y": np.ones(0)}, r"X has shape \(0, 10\).*no samples"),
        ({"b": np.ones(2)}, r"b has shape \(2,\), w of shape \(10,\) needs \(\) or \(1,\)"),
        ({"b": np.ones((1, 1))}, r"b has shape \(1, 1\)"),
    ],
)
def test_shape_errors(change: dict[str, Any], message: str) -> None:
    arguments = {"X": np.ones((100, 10)), "y": np.ones(100), "w": np.ones(10), "b": 0.0} | change
    for method in (relu_mse.value, relu_mse.value_and_grad):
        with pytest.raises(ValueError, match=f"relu_mse.{method.__name__}: " + message):
            method(**arguments)


@pytest.mark.parametrize("name", ["X", "y", "w", "b"])
@pytest.mark.parametrize("dtype", [complex, object, np.longdouble, str])
def test_type_errors(name: str, dtype: type) -> None:
    arguments: dict[str, Any] = dict(zip("Xywb", problem(), strict=True))
    arguments[name] = np.asarray(arguments[name]).astype(dtype)
    with pytest.raises(TypeError, match=f"relu_mse.value: argument {name} has dtype"):
        relu_mse.value(**arguments)


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


def test_identity_of_the_object() -> None:
    assert relu_mse.__name__ == "relu_mse"
    assert repr(relu_mse) == "<loss 'relu_mse', NumPy twin>"
    assert pickle.loads(pickle.dumps(relu_mse)) is relu_mse
    assert relu_mse.__doc__

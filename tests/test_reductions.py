"""Reductions against mathematics: every method, dtype, axis, layout and length; outputs, bits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pullback as pb
import pytest
from exact_reductions import (
    REDUCTIONS,
    ROW_WISE,
    Reduction,
    check,
    data,
    differences,
    from_rows,
    to_rows,
)
from matrices import LAYOUTS, OUT_LAYOUTS, GuardedOut
from oracles import DTYPES, assert_same_bits
from protocol import dtypes, native, on_any_target

reductions = pytest.mark.parametrize("row", REDUCTIONS, ids=lambda row: row.label)

AXES: list[Any] = [None, 0, -1, 1, (0, 2), (-1, 0), (2, 1), (0, 1, 2), ()]
# Every remainder of vectors and blocks, then a few blocks.
LENGTHS = (*range(1, 20), 31, 32, 33, 63, 65, 127, 257, 1023, 4099)

# --- values and derivatives -----------------------------------------------------------------------


@reductions
def test_the_oracle_is_the_formula_and_its_derivative(row: Reduction) -> None:
    for n in (2, 3, 7):
        x = data(row, (n,), np.float64)
        X = to_rows(x, None)
        for ours, exact in (
            (row.value(X), [row.exact([*map(float, x)])]),
            (row.gradient(X)[0], differences(row.exact, x.tolist())),
        ):
            desired = np.array([np.longdouble(str(t)) for t in exact])
            np.testing.assert_allclose(ours, desired, rtol=1e-14, atol=1e-17)


@dtypes
@reductions
def test_every_method_axis_and_layout(row: Reduction, dtype: np.dtype) -> None:
    base = data(row, (2, 5, 3), dtype)
    with np.errstate(all="raise"):
        for i, (layout, axis) in enumerate(itertools.product(LAYOUTS, AXES)):
            if row.options.get("ddof") and axis == ():
                continue
            if layout == "C" or i % 5 == 0:  # each axis with two other layouts, and those with two
                x = LAYOUTS[layout](base)
                kept = x.copy()
                check(row, x, axis, i % 2 == 0, dtype)
                assert_same_bits(x.astype(dtype), kept.astype(dtype))


@dtypes
@reductions
@on_any_target
def test_every_length(row: Reduction, dtype: np.dtype) -> None:
    least = 1 + row.options.get("ddof", 0)
    for n in LENGTHS:
        if n >= least:
            check(row, data(row, (3, n), dtype), -1, False, dtype, "one pass")
        # Columns, of every width.
        shape, axis = [((4, n), 0), ((2, 3, n), (0, 1)), ((2, 3, n), 1)][n % 3]
        check(row, data(row, shape, dtype), axis, n % 2 == 0, dtype, "one pass")
    check(row, data(row, (20_001,), dtype), None, False, dtype, "one pass")
    check(row, data(row, (4099, 5), dtype), 0, False, dtype, "one pass")


@dtypes
def test_dot(dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    x, y, tx, ty = (rng.integers(-9, 10, (2, 5, 3)).astype(dtype) for _ in range(4))
    for layout, axis, keepdims in itertools.product(LAYOUTS, AXES, (False, True)):
        a, b = LAYOUTS[layout](x), LAYOUTS["C" if axis is None else layout](y)
        options = {"axis": axis, "keepdims": keepdims}
        sums = {"axis": axis, "keepdims": keepdims, "dtype": dtype}
        value = np.sum(a.astype(dtype) * b, **sums)
        g = rng.integers(-9, 10, value.shape).astype(dtype)
        wide = g if axis is None or keepdims else np.expand_dims(g, tuple(axis_tuple(axis)))
        expected = {
            "value": value,
            "grad": (b, a),
            "value_and_grad": (value, (b, a)),
            "vjp": (wide * b, wide * a),
        }
        for method, desired in expected.items():
            arguments = (a, b, g) if method == "vjp" else (a, b)
            assert_equal(getattr(pb.dot, method)(*arguments, **options), desired, dtype)
        parts = [np.sum(tx * b, **sums), np.sum(ty * a, **sums)]
        assert_equal(pb.dot.jvp(a, b, tx, ty, **options), parts[0] + parts[1], dtype)
        assert_equal(pb.dot.jvp(a, b, tx, None, **options), parts[0], dtype)
        assert_equal(pb.dot.jvp(a, b, None, ty, **options), parts[1], dtype)
        for J, t, part, back in zip(
            pb.dot.jacobian(a, b, **options), (tx, ty), parts, expected["vjp"], strict=True
        ):
            assert_equal(J @ t, part, dtype)
            assert_equal(g @ J, back, dtype)
            assert J.output_shape == value.shape


def axis_tuple(axis: Any) -> Any:
    return axis if isinstance(axis, tuple) else (axis,)


def assert_equal(actual: Any, desired: Any, dtype: Any) -> None:
    """Fail unless results, arrays or nested tuples, are equal numbers of this dtype."""
    if isinstance(desired, tuple):
        assert isinstance(actual, tuple)
        for one, other in zip(actual, desired, strict=True):
            assert_equal(one, other, dtype)
        return
    assert np.asarray(actual).dtype == dtype
    assert np.shape(actual) == np.shape(desired)
    np.testing.assert_array_equal(actual, desired)


def test_sums_of_millions_keep_their_digits() -> None:
    n = 2**20 + 7
    x = np.full(n, 0.1)
    assert abs(pb.sum(x) - 0.1 * n) <= 1e-14 * n
    assert pb.mean(x.astype(np.float32)) == np.float32(0.1)
    assert pb.sum(x.astype(np.float32)) == np.float32(float(np.float32(0.1)) * n)
    assert pb.norm2(np.full(2**20, np.float32(0.1))) == np.float32(float(np.float32(0.1)) * 2**10)
    # Cancellation that float32 sums would not survive.
    big = np.array([1e8, 1, -1e8, 2**-20] * 1000, np.float32)
    assert pb.sum(big) == np.float32(1000 * (1 + 2**-20))
    assert pb.variance(np.array([4096, 4097, 4098] * 999, np.float32)) == np.float32(2 / 3)
    np.testing.assert_allclose(pb.variance(1e8 + np.arange(5.0)), 2, rtol=1e-14)


@dtypes
@pytest.mark.parametrize("name", ROW_WISE)
@on_any_target
def test_row_wise_maps(name: str, dtype: np.dtype) -> None:
    op = getattr(pb, name)
    u = np.finfo(dtype).eps
    with np.errstate(all="raise"):
        for n, layout, axis in itertools.product((1, 2, 5, 17, 70), LAYOUTS, (-1, 0, 1)):
            rng = np.random.default_rng(n)
            shape = [2, 3, 2]
            shape[axis] = n
            x = LAYOUTS[layout](
                ((1 if name == "cumprod" else 3) * rng.normal(size=shape)).astype(dtype)
            )
            g, t = (rng.normal(size=shape).astype(dtype) for _ in range(2))
            X, G, T = (to_rows(a, axis) for a in (x, g, t))
            y, J = row_wise(name, X)
            near = 1 + np.abs(X).max() / (np.sqrt(1e-5) if name.endswith("_norm") else 1)
            results = [
                (op(x, axis=axis), y, 1),
                (op.vjp(x, g, axis=axis), np.einsum("rij,ri->rj", J, G), np.abs(G).max()),
                (op.jvp(x, t, axis=axis), np.einsum("rij,rj->ri", J, T), np.abs(T).max()),
            ]
            for actual, exact, size in results:
                assert actual.dtype == dtype
                tolerance = 4 * u * near * size * (1 + np.abs(J).max()) * (1 + np.log2(n))
                difference = np.abs(actual - from_rows(exact, x.shape, axis)).max()
                assert difference <= tolerance, (name, n, layout, axis)
            jacobian = op.jacobian(x, axis=axis)
            assert jacobian.input_shape == jacobian.output_shape == x.shape
            assert jacobian.nbytes <= 20 * x.nbytes + 512
            for actual, (reference, _, size) in (
                (g @ jacobian, results[1]),
                (jacobian @ t, results[2]),
            ):
                assert actual.shape == x.shape
                tolerance = 8 * u * near * size * (1 + np.abs(J).max()) * (1 + np.log2(n))
                assert np.abs(actual - reference).max() <= tolerance, (name, n, layout, axis)


def _running(X: Any) -> tuple[Any, Any]:
    y = np.log(np.exp(X).cumsum(axis=1))
    return y, np.exp(X[:, None] - y[:, :, None])


# Values, and derivatives of each of these by each element up to its own.
SCANS: dict[str, Any] = {
    "cumsum": lambda X: (X.cumsum(axis=1), np.ones((len(X), X.shape[1], X.shape[1]))),
    "cumprod": lambda X: ((y := X.cumprod(axis=1)), y[:, :, None] / X[:, None]),
    "logcumsumexp": _running,
}


def row_wise(name: str, X: Any) -> tuple[Any, Any]:
    """Return a map of the rows of X and its Jacobians, from the textbook's formulas."""
    n = X.shape[1]
    eye = np.eye(n, dtype=X.dtype)
    if name == "layer_norm":
        centred = X - X.mean(axis=1, keepdims=True)
        sigma = np.sqrt((centred**2).mean(axis=1) + np.longdouble(1e-5))
        y = centred / sigma[:, np.newaxis]
        J = eye - 1 / np.longdouble(n) - y[:, :, None] * y[:, None] / n
        return y, J / sigma[:, None, None]
    if name == "rms_norm":
        size = np.sqrt((X**2).mean(axis=1) + np.longdouble(1e-5))
        y = X / size[:, np.newaxis]
        return y, (eye - y[:, :, None] * y[:, None] / n) / size[:, None, None]
    if name in SCANS:
        y, of_element = SCANS[name](X)
        return y, np.tri(n, dtype=X.dtype) * of_element
    e = np.exp(X - X.max(axis=1, keepdims=True))
    total = e.sum(axis=1, keepdims=True)
    p = e / total
    if name == "softmax":
        return p, p[:, :, None] * (eye - p[:, None])
    return X - X.max(axis=1, keepdims=True) - np.log(total), eye - p[:, None]


def test_tails_of_the_row_wise_maps() -> None:
    x = np.array([0.0, -700.0, -40.0])
    total = 1 + np.exp(-40.0)
    np.testing.assert_allclose(pb.softmax(x), np.exp(x) / total, rtol=1e-12)
    np.testing.assert_allclose(pb.log_softmax(x), x - np.exp(-40.0), rtol=1e-15, atol=1e-16)
    unit = np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(pb.softmax.vjp(x, unit)[2], -np.exp(-40.0), rtol=1e-12)


# --- outputs, bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", OUT_LAYOUTS)
def test_out(layout: str) -> None:
    x = np.random.default_rng(0).normal(size=(4, 5, 3))
    for row in REDUCTIONS:
        op = getattr(pb, row.name)
        for axis in (0, 1, -1):
            expected = op(x, *row.arguments, axis=axis, **row.options)
            out = GuardedOut(expected.shape, float, layout)
            assert op(x, *row.arguments, axis=axis, out=out.array, **row.options) is out.array
            out.check(expected)
    for name in ROW_WISE:
        op = getattr(pb, name)
        out = GuardedOut(x.shape, float, layout)
        assert op(x, out=out.array) is out.array
        out.check(op(x))
        inplace = x.copy()
        assert_same_bits(op(inplace, out=inplace), op(x))


def test_outputs_over_operands_and_each_other() -> None:
    """As if the operands were copied; two outputs that share memory are refused."""
    memory = np.random.default_rng(1).normal(size=41)
    for row in REDUCTIONS:
        op, options = getattr(pb, row.name), row.options
        n = len(op.row.operands)
        wanted = op.grad(*[memory[:-1].copy()] * n, *row.arguments, **options)
        x = memory.copy()
        given = [x[:-1], *[memory[:-1]] * (n - 1)]
        out = (x[1:], np.empty(40)) if n > 1 else x[1:]
        op.grad(*given, *row.arguments, out=out, **options)
        assert_same_bits(x[1:], wanted[0] if n > 1 else wanted)
    x, out = memory[:4], np.empty(6)
    with pytest.raises(ValueError, match=r"dot\.grad: out\[0\] and out\[1\] overlap"):
        pb.dot.grad(x, x, out=(out[:4], out[2:]))


@pytest.mark.native
def test_bits_depend_on_neither_threads_nor_place() -> None:
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        raw = rng.normal(size=300_001).astype(dtype)
        for row in REDUCTIONS:
            op, arguments, options = getattr(pb, row.name), row.arguments, row.options
            for x, axis in (
                (raw[1:], None),
                (raw[1:].reshape(300, 1000), 1),
                (raw[1:].reshape(300, 1000), 0),
            ):
                with pb.threads(1):
                    one = op.value_and_grad(x, *arguments, axis=axis, **options)
                with pb.threads(3):
                    many = op.value_and_grad(x.copy(), *arguments, axis=axis, **options)
                for a, b in zip(one, many, strict=True):
                    assert_same_bits(a, b)


@pytest.mark.native
def test_the_twin_is_as_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native is not None
    for row in REDUCTIONS:
        monkeypatch.setattr(pb, row.name, getattr(pb.reference, row.name))
        for dtype in DTYPES:
            for shape, axis in (((2, 5, 3), None), ((2, 5, 3), (0, -1)), ((7, 1000), 1)):
                check(row, data(row, shape, dtype), axis, False, dtype)

"""Reductions against mathematics: every method, dtype, axis and layout; special values; errors."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pullback as pb
import pytest
from matrices import LAYOUTS, OUT_LAYOUTS, GuardedOut
from oracles import DTYPES, assert_same_bits
from protocol import native
from exact_reductions import (
    REDUCTIONS,
    Near,
    Reduction,
    assert_near,
    data,
    differences,
    from_rows,
    reduced,
    to_rows,
)

INF, NAN = np.inf, np.nan
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
reductions = pytest.mark.parametrize("row", REDUCTIONS, ids=lambda row: row.label)
NAMES = [*dict.fromkeys(row.name for row in REDUCTIONS), "dot"]
ROW_WISE = ("softmax", "log_softmax", "layer_norm")

AXES: list[Any] = [None, 0, -1, 1, (0, 2), (-1, 0), (2, 1), (0, 1, 2), ()]
# Every remainder of vectors and blocks, then a few blocks.
LENGTHS = (*range(1, 35), 63, 64, 65, 127, 129, 255, 257, 1023, 4099)


def near_vjp(near: Near, g: Any) -> Near:
    """Return what a cotangent makes of a gradient: one more rounding."""
    g = g.astype(np.longdouble).reshape(-1, 1)
    return Near(g * near.exact, near.count + 0.5, abs(g) * near.scale, abs(g) * near.terms)


def near_jvp(near: Near, t: Any) -> Near:
    """Return the sum of a gradient's products with a tangent; products may be rounded."""
    size = (abs(near.exact * t)).sum(axis=-1)
    scale, terms = ((abs(t) * s).sum(axis=-1) for s in (near.scale, near.terms))
    return Near(
        (near.exact * t).sum(axis=-1), near.count + 1, np.maximum(scale, size), terms + size
    )


def like(near: Near, shape: tuple[int, ...], axis: Any) -> Near:
    """Return a gradient of rows in the operand's shape."""
    exact, scale, terms = (
        from_rows(np.broadcast_to(part, near.exact.shape), shape, axis)
        for part in (near.exact, near.scale, near.terms)
    )
    return Near(exact, near.count, scale, terms)


def check(
    row: Reduction, x: Any, axis: Any, keepdims: bool, dtype: Any, methods: str = "all"
) -> None:
    """Fail unless all methods at x are near enough to the exact results."""
    op, arguments = getattr(pb, row.name), (x, *row.arguments)
    options = {"axis": axis, "keepdims": keepdims, **row.options}
    X = to_rows(x, axis)
    n, shape = X.shape[1], reduced(x.shape, axis, keepdims)
    value, rows = row.near_value(X), row.near_gradient(X)
    gradient = like(rows, x.shape, axis)

    one, slope = op.value_and_grad(*arguments, **options)
    assert_near(one, value, n, shape, dtype)
    assert_near(slope, gradient, n, x.shape, dtype)
    if methods != "all":
        return
    for result in (op(*arguments, **options), op.value(*arguments, **options)):
        assert_same_bits(result, one)
    assert_same_bits(op.grad(*arguments, **options), slope)

    rng = np.random.default_rng(x.size)
    g, t = rng.normal(size=shape).astype(dtype), rng.normal(size=x.shape).astype(dtype)
    pulled = op.vjp(*arguments, g, **options)
    assert_near(pulled, like(near_vjp(rows, g), x.shape, axis), n, x.shape, dtype)
    pushed = near_jvp(rows, to_rows(t, axis))
    assert_near(op.jvp(*arguments, t, **options), pushed, n, shape, dtype)

    J = op.jacobian(*arguments, **options)
    assert J.input_shape == x.shape
    assert J.output_shape == shape
    assert J.dtype == dtype
    assert J.nbytes <= 2 * x.size * dtype.itemsize + 64
    where = to_rows(np.arange(x.size).reshape(x.shape), axis).astype(int)
    dense = np.zeros((len(X), x.size), np.longdouble)
    np.put_along_axis(dense, where, rows.exact, axis=1)
    scale, terms = np.zeros_like(dense), np.zeros_like(dense)
    np.put_along_axis(scale, where, np.broadcast_to(rows.scale, where.shape), axis=1)
    np.put_along_axis(terms, where, np.broadcast_to(rows.terms, where.shape), axis=1)
    assert_near(J.todense(), Near(dense, rows.count, scale, terms), n, dense.shape, dtype)
    back = like(near_vjp(rows, g), x.shape, axis)
    assert_near(g @ J, back._replace(count=back.count + 1), n, x.shape, dtype)
    assert_near(J @ t, pushed, n, shape, dtype)


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
def test_every_length(row: Reduction, dtype: np.dtype, any_target: str) -> None:
    least = 1 + row.options.get("ddof", 0)
    for n in LENGTHS:
        if n >= least:
            check(row, data(row, (3, n), dtype), -1, False, dtype, "one pass")
        # Columns, of every width.
        shape, axis = [((4, n), 0), ((2, 3, n), (0, 1)), ((2, 3, n), 1)][n % 3]
        check(row, data(row, shape, dtype), axis, n % 2 == 0, dtype, "one pass")
    check(row, data(row, (70_001,), dtype), None, False, dtype, "one pass")
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
def test_row_wise_maps(name: str, dtype: np.dtype, any_target: str) -> None:
    op = getattr(pb, name)
    u = np.finfo(dtype).eps
    with np.errstate(all="raise"):
        for n, layout, axis in itertools.product((1, 2, 5, 17, 70), LAYOUTS, (-1, 0, 1)):
            rng = np.random.default_rng(n)
            shape = [2, 3, 2]
            shape[axis] = n
            x = LAYOUTS[layout]((3 * rng.normal(size=shape)).astype(dtype))
            g, t = (rng.normal(size=shape).astype(dtype) for _ in range(2))
            X, G, T = (to_rows(a, axis) for a in (x, g, t))
            y, J = row_wise(name, X)
            near = 1 + np.abs(X).max() / (np.sqrt(1e-5) if name == "layer_norm" else 1)
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


# --- special values -------------------------------------------------------------------------------

ANY = object()  # not defined

# Operation with its options, x, value, gradient. NaN stands for itself.
SPECIAL: list[tuple[Any, list[float], Any, Any]] = [
    ("sum", [], 0, []),
    ("sum", [INF, 1], INF, [1, 1]),
    ("sum", [INF, -INF], NAN, [1, 1]),
    ("sum", [NAN, 1], NAN, [1, 1]),
    ("mean", [], NAN, []),
    ("mean", [INF, 1], INF, [0.5, 0.5]),
    ("mean", [3], 3, [1]),
    ("prod", [], 1, []),
    ("prod", [3], 3, [1]),
    ("prod", [0, 2, 3], 0, [6, 0, 0]),
    ("prod", [2, 0, -3], -0.0, [-0.0, -6, 0]),
    ("prod", [-0.0, 2], -0.0, [2, -0.0]),
    ("prod", [0, 0, 5], 0, [0, 0, 0]),
    ("prod", [0, -0.0, 5], -0.0, [-0.0, 0, -0.0]),
    ("prod", [INF, 2], INF, [2, INF]),
    ("prod", [INF, 0], NAN, [0, INF]),
    ("prod", [INF, 0, 2], NAN, [0, INF, NAN]),
    ("prod", [NAN, 2], NAN, [2, NAN]),
    ("prod", [NAN, 0], NAN, [0, NAN]),
    ("norm1", [], 0, []),
    ("norm1", [0, 2, -3], 5, [0, 1, -1]),
    ("norm1", [INF, -1], INF, [1, -1]),
    ("norm1", [NAN, -1], NAN, [NAN, -1]),
    ("norm2", [], 0, []),
    ("norm2", [0, 0], 0, [0, 0]),
    ("norm2", [0, -2], 2, [0, -1]),
    ("norm2", [3, 4], 5, [0.6, 0.8]),
    ("norm2", [INF, 1], INF, [ANY, 0]),
    ("norm2", [INF, -INF], INF, [NAN, NAN]),
    ("norm2", [NAN, 1], NAN, [NAN, NAN]),
    ("squared_norm2", [], 0, []),
    ("squared_norm2", [0, -2], 4, [0, -4]),
    ("squared_norm2", [INF, 1], INF, [INF, 2]),
    ("squared_norm2", [NAN, 1], NAN, [NAN, 2]),
    (("norm", 3.0), [], 0, []),
    (("norm", 3.0), [0, 0], 0, [0, 0]),
    (("norm", 3.0), [0, -2], 2, [0, -1]),
    (("norm", 3.0), [INF, 1], INF, [ANY, 0]),
    (("norm", 3.0), [NAN, 1], NAN, [NAN, NAN]),
    (("norm", 1.0), [0, 2, -3], 5, [0, 1, -1]),
    (("norm", 2.0), [3, 4], 5, [0.6, 0.8]),
    (("norm", INF), [], 0, []),
    (("norm", INF), [0, 0], 0, [0, 0]),
    (("norm", INF), [1, -3, 3], 3, [0, -0.5, 0.5]),
    (("norm", INF), [INF, 1], INF, [1, 0]),
    (("norm", INF), [NAN, 1], NAN, [NAN, NAN]),
    ("max", [1, 3, 3], 3, [0, 0.5, 0.5]),
    ("max", [2, 2, 2, 2], 2, [0.25] * 4),
    ("max", [-0.0, 0], ANY, [0.5, 0.5]),
    ("max", [-INF, -INF], -INF, [0.5, 0.5]),
    ("max", [INF, 1], INF, [1, 0]),
    ("max", [NAN, 1], NAN, [NAN, NAN]),
    ("max", [1, INF, NAN], NAN, [NAN] * 3),
    ("min", [1, 1, 3], 1, [0.5, 0.5, 0]),
    ("min", [INF, INF], INF, [0.5, 0.5]),
    ("min", [-INF, 1], -INF, [1, 0]),
    ("min", [1, NAN], NAN, [NAN, NAN]),
    ("logsumexp", [], -INF, []),
    ("logsumexp", [7], 7, [1]),
    ("logsumexp", [-INF, 1], 1, [0, 1]),
    ("logsumexp", [INF, 1], INF, [1, 0]),
    ("logsumexp", [INF, -INF], INF, [1, 0]),
    ("logsumexp", [INF, INF], INF, [0.5, 0.5]),
    ("logsumexp", [-INF, -INF], -INF, [NAN, NAN]),
    ("logsumexp", [NAN, 1], NAN, [NAN, NAN]),
    ("logsumexp", [NAN, INF], NAN, [NAN, NAN]),
    ("logsumexp", [1e4, 0], 1e4, [1, 0]),
    ("variance", [], NAN, []),
    ("variance", [5], 0, [0]),
    ("variance", [3, 3, 3], 0, [0, 0, 0]),
    ("variance", [1, 3], 1, [-1, 1]),
    (("variance", {"ddof": 1}), [1, 3], 2, [-2, 2]),
    (("variance", {"ddof": 1}), [1], NAN, ANY),
    ("variance", [NAN, 1], NAN, [NAN, NAN]),
    ("variance", [INF, 1], NAN, [NAN, NAN]),
]

# What float64 alone can hold.
EXTREME: list[tuple[Any, list[float], Any, Any]] = [
    ("sum", [1e308, 1e308], INF, [1, 1]),
    ("prod", [1e200, 1e200], INF, [1e200, 1e200]),
    ("prod", [1e-200, -1e-200], -0.0, [-1e-200, 1e-200]),
    ("prod", [2.0**900, 2.0**900, 2.0**-900, 2.0**-900], 1, [2.0**-900] * 2 + [2.0**900] * 2),
    ("prod", [2.0**-900, 2.0**-900, 2.0**900, 4.0], 2.0**-898, [4, 4, 0, 2.0**-900]),
    ("prod", [5e-324, 2], 1e-323, [2, 5e-324]),
    ("prod", [5e-324, 0], 0, [0, 5e-324]),
    ("norm1", [1e-320, -1e-320], 2e-320, [1, -1]),
    ("norm2", [3 * 2.0**700, 4 * 2.0**700], 5 * 2.0**700, [0.6, 0.8]),
    ("norm2", [3 * 2.0**-700, -4 * 2.0**-700], 5 * 2.0**-700, [0.6, -0.8]),
    ("norm2", [3 * 5e-324, 4 * 5e-324], 5 * 5e-324, [0.6, 0.8]),
    ("norm2", [1e200, 1e-200], 1e200, [1, 0]),
    ("norm2", [1.5e308, 1.5e308], INF, [0.5**0.5] * 2),
    ("squared_norm2", [1e200, 1e-200], INF, [2e200, 2e-200]),
    (("norm", 3.0), [1e200, 0], 1e200, [1, 0]),
    (("norm", 3.0), [0, -1e-200], 1e-200, [0, -1]),
    (("norm", 1.5), [0, -5e-324], 5e-324, [0, -1]),
    (("norm", INF), [1e308, 5e-324], 1e308, [1, 0]),
    ("max", [5e-324, 0], 5e-324, [1, 0]),
    ("logsumexp", [1e308, 1e308], 1e308, [0.5, 0.5]),
    ("logsumexp", [-1e308, -1e308], -1e308, [0.5, 0.5]),
    ("logsumexp", [0, -700], 0, [1, np.exp(-700.0)]),
    ("variance", [1e200, -1e200], INF, [1e200, -1e200]),
    ("variance", [1e-200, -1e-200], 0, [1e-200, -1e-200]),
]
# What float32 alone would lose, and sums in float64 keep.
SINGLE: list[tuple[Any, list[float], Any, Any]] = [
    ("sum", [3e38, 3e38, -3e38], 3e38, [1, 1, 1]),
    ("mean", [3e38, 3e38], 3e38, [0.5, 0.5]),
    ("prod", [1e30, 1e30, 1e-30, 1e-30], 1, [1e-30, 1e-30, 1e30, 1e30]),
    ("prod", [1e30, 1e30], INF, [1e30, 1e30]),
    ("norm2", [3 * 2.0**100, 4 * 2.0**100], 5 * 2.0**100, [0.6, 0.8]),
    ("norm2", [3 * 2.0**-149, 4 * 2.0**-149], 5 * 2.0**-149, [0.6, 0.8]),
    ("squared_norm2", [1e30, 1], INF, [2e30, 2]),
    (("norm", 3.0), [1e30, 0], 1e30, [1, 0]),
    (("norm", 3.0), [0, -1e-40], 1e-40, [0, -1]),
    ("variance", [1e30, -1e30], INF, [1e30, -1e30]),
]
TABLE = [(case, dtype) for case in SPECIAL for dtype in DTYPES]
TABLE += [(case, DTYPES[1]) for case in EXTREME] + [(case, DTYPES[0]) for case in SINGLE]


def agree(actual: Any, desired: Any, dtype: Any) -> bool:
    """Tell whether numbers agree: zeros and powers of two exactly, others to 1.5 ULP."""
    actual = np.asarray(actual)
    wanted = [] if desired is ANY else np.ravel(np.asarray(desired, object)).tolist()
    for a, d in zip(
        actual.ravel(), wanted if desired is not ANY else [ANY] * actual.size, strict=True
    ):
        if d is ANY:
            continue
        d = dtype.type(d)
        if np.isnan(d) or np.isinf(d) or d == 0 or np.frexp(abs(d))[0] == 0.5:
            if not (np.isnan(d) and np.isnan(a)) and (a != d or np.signbit(a) != np.signbit(d)):
                return False
        else:
            with np.errstate(under="ignore"):
                if not abs(a.astype(np.longdouble) - d) <= 1.5 * abs(np.spacing(d)):
                    return False
    return True


@pytest.mark.parametrize("state", ["raise", "warn"])
def test_special_values(state: Any, any_target: str) -> None:
    wrong = []
    for (call, given, value, gradient), dtype in TABLE:
        name, *rest = call if isinstance(call, tuple) else (call,)
        arguments = [r for r in rest if not isinstance(r, dict)]
        options = next((r for r in rest if isinstance(r, dict)), {})
        op, x = getattr(pb, name), np.array(given, dtype)
        with np.errstate(all=state):
            for rows, columns in ((1, 1), (1, 9), (6, 1)):  # among others, none of their business
                filler = np.ones((rows, x.size, columns), dtype)
                filler[-1, :, -1] = x
                results = op.value_and_grad(filler, *arguments, axis=1, **options)
                pulled = op.vjp(
                    filler, *arguments, np.ones((rows, columns), dtype), axis=1, **options
                )
                one, slope = results[0][-1, -1], results[1][-1, :, -1]
                if not (agree(one, value, dtype) and agree(slope, gradient, dtype)):
                    wrong.append((call, given, dtype.name, (rows, columns), one, slope))
                # Masked products may keep 0 where the derivative is 0; with ones both agree.
                if not agree(pulled[-1, :, -1], gradient, dtype):
                    wrong.append((call, given, dtype.name, "vjp", pulled[-1, :, -1]))
            whole = op.value_and_grad(x, *arguments, **options)
            if not (agree(whole[0], value, dtype) and agree(whole[1], gradient, dtype)):
                wrong.append((call, given, dtype.name, "whole", *whole))
    assert not wrong, "\n".join(map(str, wrong))


@dtypes
def test_special_values_of_row_wise_maps(dtype: np.dtype, any_target: str) -> None:
    cases = [
        ("softmax", [-INF, 0], [0, 1]),
        ("softmax", [INF, 0], [1, 0]),
        ("softmax", [INF, INF], [0.5, 0.5]),
        ("softmax", [-INF, -INF], [NAN, NAN]),
        ("softmax", [NAN, 0], [NAN, NAN]),
        ("softmax", [1e4, 0, 1e4], [0.5, 0, 0.5]),
        ("softmax", [], []),
        ("log_softmax", [-INF, 0], [-INF, 0]),
        ("log_softmax", [NAN, 0], [NAN, NAN]),
        ("log_softmax", [1e4, 0], [0, -1e4]),
        ("log_softmax", [], []),
        ("layer_norm", [3, 3, 3], [0, 0, 0]),
        ("layer_norm", [NAN, 3], [NAN, NAN]),
        ("layer_norm", [], []),
    ]
    with np.errstate(all="raise"):
        for name, given, desired in cases:
            row = np.array(given, dtype)
            assert agree(np.abs(getattr(pb, name)(row)), np.abs(desired), dtype), (name, given)
            both = np.stack([row, np.ones_like(row)])
            assert agree(np.abs(getattr(pb, name)(both)[0]), np.abs(desired), dtype), (name, given)


@dtypes
def test_empty_and_zero_dimensional(dtype: np.dtype) -> None:
    for row in REDUCTIONS:
        op = getattr(pb, row.name)
        x = np.array(1.5, dtype)
        if not row.options.get("ddof"):
            check(row, x, None, False, dtype)
            assert isinstance(op(x, *row.arguments, **row.options), np.floating)
        # No elements, and so no results.
        empty = np.zeros((3, 0), dtype)
        value, slope = op.value_and_grad(empty, *row.arguments, axis=0, **row.options)
        assert value.shape == (0,)
        assert slope.shape == (3, 0)
        if row.name in ("max", "min"):
            for axis in (1, None):
                with pytest.raises(ValueError, match=rf"{row.name}: .*ax[ie]s"):
                    op(empty, axis=axis)
            continue
        if row.arguments != (INF,) and not row.options.get("ddof"):
            desired = {"prod": 1, "mean": NAN, "variance": NAN, "logsumexp": -INF}.get(row.name, 0)
            results = op(empty, *row.arguments, axis=1, **row.options)
            np.testing.assert_array_equal(results, np.full(3, desired, dtype))
            assert op.vjp(empty, *row.arguments, np.ones(3, dtype), axis=1).shape == (3, 0)


def test_dtypes() -> None:
    for kind in ("?", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "i8", "u8"):
        dtype = np.dtype(np.float64 if kind in ("i4", "u4", "i8", "u8") else np.float32)
        for row in REDUCTIONS:
            x = np.array([[1, 0, 1], [1, 1, 0]] if kind == "?" else [[1, 2, 5], [3, 2, 0]], kind)
            exact = x.astype(dtype)
            op, arguments = getattr(pb, row.name), row.arguments
            actual = op.value_and_grad(x, *arguments, axis=1, **row.options)
            desired = op.value_and_grad(exact, *arguments, axis=1, **row.options)
            for one, other in zip(actual, desired, strict=True):
                assert_same_bits(one, other)
                assert one.dtype == dtype
    assert type(pb.sum([1, 2])) is np.float64
    # A wider cotangent or tangent widens the result, as everywhere.
    assert pb.sum.vjp(np.ones(3, np.float32), np.float64(2)).dtype == np.float64


# --- outputs, bits, errors ------------------------------------------------------------------------


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


def test_bits_depend_on_neither_threads_nor_place() -> None:
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        raw = rng.normal(size=600_001).astype(dtype)
        for row in REDUCTIONS:
            op, arguments, options = getattr(pb, row.name), row.arguments, row.options
            for x, axis in (
                (raw[1:], None),
                (raw[1:].reshape(600, 1000), 1),
                (raw[1:].reshape(600, 1000), 0),
            ):
                with pb.threads(1):
                    one = op.value_and_grad(x, *arguments, axis=axis, **options)
                with pb.threads(3):
                    many = op.value_and_grad(x.copy(), *arguments, axis=axis, **options)
                for a, b in zip(one, many, strict=True):
                    assert_same_bits(a, b)


@pytest.mark.parametrize("name", [*NAMES, *ROW_WISE])
def test_errors(name: str) -> None:
    op, x = getattr(pb, name), np.ones((2, 3))
    more = {"norm": (3.0,), "dot": (x,)}.get(name, ())
    methods = ["value", "jacobian"]
    if name not in ROW_WISE:
        methods += ["grad", "value_and_grad"]
    for method in methods:
        f = getattr(op, method)
        with pytest.raises(np.exceptions.AxisError, match="axis 2 .* dimension"):
            f(x, *more, axis=2)
        with pytest.raises(np.exceptions.AxisError, match="axis -3 .* dimension"):
            f(x, *more, axis=-3)
        with pytest.raises(TypeError, match=f"{name}.* axis"):
            f(x, *more, axis=1.5)
        with pytest.raises(TypeError, match=rf"{name}.*argument x has dtype complex128"):
            f(x + 1j, *more)
        with pytest.raises(TypeError, match=rf"{name}.*argument x has dtype object"):
            f(x.astype(object), *more)
    if name not in ROW_WISE:
        with pytest.raises(ValueError, match="duplicate|twice|repeat"):
            op(x, *more, axis=(0, -2))
        for g in (np.ones(2), np.ones((5, 3)), np.ones((1, 3)), 1.0):
            with pytest.raises(
                ValueError,
                match=rf"{name}\.vjp: g has shape .*{np.shape(g)!r}".replace("(", r"\(").replace(
                    ")", r"\)"
                ),
            ):
                op.vjp(x, *more, g, axis=0)
    else:
        with pytest.raises(ValueError, match=rf"{name}\.vjp: g has shape \(4, 2, 3\).*\(2, 3\)"):
            op.vjp(x, np.ones((4, 2, 3)))
    t = (np.ones(3), None) if name == "dot" else (np.ones(3),)
    with pytest.raises(ValueError, match=rf"{name}\.jvp: tx? has shape \(3,\).*\(2, 3\)"):
        op.jvp(x, *more, *t)
    with pytest.raises(ValueError, match=rf"{name}.*\(7,\)"):
        op(x, *more, axis=-1, out=np.ones(7))
    with pytest.raises(TypeError, match=rf"{name}.*float32"):
        op(x, *more, out=np.ones((2, 3) if name in ROW_WISE else (), np.float32))


def test_errors_of_single_operations() -> None:
    x = np.ones((2, 3))
    for p in (0.5, 0, -1.0, -INF, NAN):
        with pytest.raises(ValueError, match=f"norm: p .*{p}"):
            pb.norm(x, p)
    for p in ("2", None, [2.0], 1j):
        with pytest.raises(TypeError, match="norm: .*p "):
            pb.norm(x, p)
    for method, rest in (("value", ()), ("grad", ()), ("vjp", (1.0,))):
        with pytest.raises(ValueError, match=r"dot.*\(2, 3\).*\(3,\)"):
            getattr(pb.dot, method)(x, np.ones(3), *rest)
    with pytest.raises(ValueError, match=r"dot\.jvp: tx, ty are all None"):
        pb.dot.jvp(x, x, None, None)
    with pytest.raises(TypeError, match=r"dot.*argument y has dtype complex128"):
        pb.dot(x, x * 1j)


@pytest.mark.parametrize("name", [*NAMES, *ROW_WISE])
def test_objects(name: str) -> None:
    op = getattr(pb, name)
    assert pb.primitives[name] is op
    assert pickle.loads(pickle.dumps(op)) is op
    assert copy.deepcopy(op) is op
    assert name in repr(op)
    assert op.__name__ == name
    assert op.__doc__
    assert hasattr(pb.reference, name)


@pytest.mark.native
def test_the_twin_is_as_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native is not None
    for row in REDUCTIONS:
        monkeypatch.setattr(pb, row.name, getattr(pb.reference, row.name))
        for dtype in DTYPES:
            for shape, axis in (((2, 5, 3), None), ((2, 5, 3), (0, -1)), ((7, 1000), 1)):
                check(row, data(row, shape, dtype), axis, False, dtype)

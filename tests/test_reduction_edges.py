"""Reductions at their edges: special values, nothing to reduce, dtypes, errors."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from functools import partial
from typing import Any

import numpy as np
import pullback as pb
import pytest
from exact_reductions import NAMES, REDUCTIONS, ROW_WISE, check
from oracles import DTYPES, assert_same_bits
from protocol import dtypes, on_any_target
from reduction_oracles import leading

INF, NAN = np.inf, np.nan

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
    (("variance", {"ddof": 3}), [1, 3], INF, [-INF, INF]),
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
    ("logsumexp", [0, -700], np.exp(-700.0), [1, np.exp(-700.0)]),
    ("logsumexp", [0, -50], 1.9287498479639178e-22, [1, 1.9287498479639178e-22]),
    ("logsumexp", [-50, 0, -50], 3.8574996959278356e-22, [1.9287498479639178e-22, 1, ANY]),
    ("variance", [1e200, -1e200], INF, [1e200, -1e200]),
    ("variance", [1e-200, -1e-200], 0, [1e-200, -1e-200]),
    ("variance", [1.5e308, 1.5e308], 0, [0, 0]),
    (("variance", {"ddof": -6}), [2e154, -2e154], 1e308, [5e153, -5e153]),
    ("squared_norm2", [3e-162] * 8, 7.2e-323, [6e-162] * 8),
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
@on_any_target
def test_special_values(state: Any) -> None:
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


@pytest.mark.parametrize(
    ("call", "most", "last", "value"),
    [
        (("norm2",), 1e-200, 1e200, 1e200),
        (("norm2",), 1e200, 1e-200, 1e200 * 299_999**0.5),
        (("norm", 3.0), 1e-200, 1e200, 1e200),
        (("max",), 1, NAN, NAN),
        (("min",), 1, NAN, NAN),
        (("logsumexp",), -1e4, 0, 0),
        (("logsumexp",), -60, 0, 299_999 * np.exp(-60.0)),
    ],
)
def test_the_blocks_of_a_long_slice_meet(call: Any, most: float, last: float, value: float) -> None:
    name, *parameter = call
    x = np.full((300_000, 2), float(most))
    x[-1] = last
    for operand in (x[:, 0].copy(), x):
        result = getattr(pb, name)(operand, *parameter, axis=0)
        np.testing.assert_allclose(result, np.full(operand.shape[1:], value), 1e-14)


@dtypes
@on_any_target
def test_slices_far_below_zero(dtype: np.dtype) -> None:
    """What fills up the last vector lies above all elements."""
    for n in range(1, 20):
        x, t = np.full(n, np.finfo(dtype).min / 2, dtype), np.ones(n, dtype)
        for operand, tangent, axis in ((x, t, 0), (np.stack([x] * 3), np.stack([t] * 3), 1)):
            np.testing.assert_allclose(pb.logsumexp.jvp(operand, tangent, axis=axis), 1, 1e-6)
            np.testing.assert_array_equal(pb.max(operand, axis=axis), x[0])


@dtypes
@on_any_target
def test_special_values_of_row_wise_maps(dtype: np.dtype) -> None:
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
        ("log_softmax", [7, -43], [-1.9287498479639178e-22, -50]),
        ("log_softmax", [INF, 0], [0, -INF]),
        ("log_softmax", [], []),
        ("layer_norm", [3, 3, 3], [0, 0, 0]),
        ("layer_norm", [NAN, 3], [NAN, NAN]),
        ("layer_norm", [], []),
        ("rms_norm", [0, 0, 0], [0, 0, 0]),
        ("rms_norm", [NAN, 3], [NAN, NAN]),
        ("rms_norm", [INF, 3], [NAN, 0]),
        ("rms_norm", [3e30, -4e30], [3 / math.sqrt(12.5), 4 / math.sqrt(12.5)]),
        ("rms_norm", [], []),
    ]
    with np.errstate(all="raise"):
        for name, given, desired in cases:
            row = np.array(given, dtype)
            assert agree(np.abs(getattr(pb, name)(row)), np.abs(desired), dtype), (name, given)
            both = np.stack([row, np.ones_like(row)])
            assert agree(np.abs(getattr(pb, name)(both)[0]), np.abs(desired), dtype), (name, given)


@pytest.mark.parametrize(("shape", "axis"), [((40,), 0), ((9, 5), 1), ((30, 7), 0), ((70_001,), 0)])
@on_any_target
def test_magnitudes_do_not_matter(shape: tuple[int, ...], axis: int) -> None:
    """All is homogeneous, but for what keeps the divisor from zero."""
    x, g = np.random.default_rng(7).normal(size=(2, *shape))
    for k, m in ((660, 0), (-660, 0), (1015, 0), (-970, 0), (480, 700), (-90, -960), (0, 1020)):
        maps = {name: {"eps": 0.0} for name in ("layer_norm", "rms_norm")}
        for name, options in (*maps.items(), ("variance", {})):
            op, degree = getattr(pb, name), 0 if name in maps else 2
            given = {"value": (), "jvp": (g,), "vjp": (g if degree == 0 else g.max(axis) / 4,)}
            for method, linear in given.items():
                f = partial(getattr(op, method), axis=axis, **options)
                with np.errstate(all="raise"):
                    one = f(x, *linear)
                    other = f(np.ldexp(x, k), *(np.ldexp(v, m) for v in linear))
                power = (degree - len(linear)) * k + len(linear) * m
                with np.errstate(over="ignore", under="ignore"):
                    wanted = np.ldexp(one, power)
                    np.testing.assert_allclose(other, wanted, rtol=1e-9, atol=5e-323)


FAR = ([-INF, -INF], [INF, -INF], [INF, INF], [INF, 1], [1, INF], [0, INF])


@dtypes
@pytest.mark.parametrize("name", [*NAMES, *ROW_WISE])
@on_any_target
def test_nothing_comes_of_a_zero(name: str, dtype: np.dtype) -> None:
    """A cotangent or tangent of zeros gives zeros, but where an operand is NaN."""
    op = getattr(pb, name)
    for given, (rows, columns) in itertools.product(FAR, ((1, 1), (3, 1), (1, 20), (1, 1200))):
        x = np.ones((rows, 2, columns), dtype)
        x[-1, :, -1] = given
        operands = leading(name, x, x)
        g = np.ones_like(x) if name in ROW_WISE else np.ones((rows, columns), dtype)
        t = np.ones_like(x)
        g[-1, ..., -1] = t[-1, :, -1] = 0
        with np.errstate(all="raise"):
            pulled = op.vjp(*operands, g, axis=1)
            pushed = op.jvp(*operands, *(t,) * len(op.row.operands), axis=1)
        for gradient in pulled if isinstance(pulled, tuple) else (pulled,):
            assert (gradient[-1, :, -1] == 0).all(), (given, rows, columns)
            assert np.isfinite(gradient).all()
        assert (pushed[-1, ..., -1] == 0).all(), (given, rows, columns)
        assert np.isfinite(pushed).all()
    x = np.full(20, NAN, dtype)
    g = np.zeros_like(x) if name in ROW_WISE else dtype.type(0)
    if name in {"norm2", "logsumexp", "max", "variance", *ROW_WISE} - {"cumsum", "cumprod"}:
        assert np.isnan(op.vjp(x, g)).all()


def test_nothing_comes_of_what_does_not_move() -> None:
    for name, x, t, wanted in (
        ("squared_norm2", [INF, 1], [0, 1], 2),
        ("norm2", [INF, 1], [0, 1], 0),
        ("prod", [INF, 0, 2], [1, 0, 0], 0),
        ("variance", [1e200, -1e200], [1e200, 1e200], 0),
    ):
        assert getattr(pb, name).jvp(x, t) == wanted
    assert pb.dot.jvp([INF, 1], [1, INF], [1, 0], [0, 1]) == 2


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


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *ROW_WISE])
def test_errors(name: str) -> None:
    op, x = getattr(pb, name), np.ones((2, 3))
    more = leading(name, x, x)[1:]
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
        for g in (np.ones(2), np.ones((3, 5)), np.ones((1, 1)), np.float64(1)):
            with pytest.raises(
                ValueError,
                match=rf"{name}\.vjp: g has shape .*{np.shape(g)!r}".replace("(", r"\(").replace(
                    ")", r"\)"
                ),
            ):
                op.vjp(x, *more, g, axis=0)
    else:
        with pytest.raises(ValueError, match=rf"{name}\.vjp: g has shape \(2, 3, 4\).*\(2, 3\)"):
            op.vjp(x, np.ones((2, 3, 4)))
    t = (np.ones(3), None) if name == "dot" else (np.ones(3),)
    with pytest.raises(ValueError, match=rf"{name}\.jvp: tx? has shape \(3,\).*\(2, 3\)"):
        op.jvp(x, *more, *t)
    with pytest.raises(ValueError, match=rf"{name}.*\(7,\)"):
        op(x, *more, axis=-1, out=np.ones(7))
    with pytest.raises(TypeError, match=rf"{name}.*int64"):
        op(x, *more, out=np.ones((2, 3) if name in ROW_WISE else (), int))


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), 1])
@pytest.mark.parametrize("name", [*NAMES, *ROW_WISE])
def test_stacks_and_numbers_are_one_cotangent_after_the_other(name: str, axis: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0.5, 1.5, (2, 2, 3, 4))
    op, (_, *more) = getattr(pb, name), leading(name, x, y)
    shape = np.shape(op(x, *more, axis=axis))
    forms = (np.asarray, np.asfortranarray, lambda a: a.astype(np.float32), lambda a: a.tolist())
    for stack, form in itertools.product([(5,), (2, 1), (0,)], forms):
        at, g = form(x), rng.normal(size=stack + shape)
        together = leaves(op.vjp(at, *more, g, axis=axis))
        outs = [np.full(stack + x.shape, np.nan) for _ in together]
        returned = op.vjp(at, *more, g, axis=axis, out=outs[0] if len(outs) == 1 else tuple(outs))
        for k, (whole, given) in enumerate(zip(together, leaves(returned), strict=True)):
            assert given is outs[k]
            assert_same_bits(given, whole)
            assert whole.shape == stack + x.shape
            for i in np.ndindex(*stack):
                assert_same_bits(whole[i], leaves(op.vjp(at, *more, g[i], axis=axis))[k])
    for number in (2, 0.5):
        for one, other in zip(
            leaves(op.vjp(x, *more, number, axis=axis)),
            leaves(op.vjp(x, *more, np.full(shape, float(number)), axis=axis)),
            strict=True,
        ):
            assert_same_bits(one, other)
    rest = (None,) * (len(op.row.operands) - 1)
    assert_same_bits(
        np.asarray(op.jvp(x, *more, 2, *rest, axis=axis)),
        np.asarray(op.jvp(x, *more, np.full_like(x, 2), *rest, axis=axis)),
    )


def leaves(tree: Any) -> list[Any]:
    return list(tree) if isinstance(tree, tuple) else [tree]


@pytest.mark.parametrize("axis", [None, 0, (0, 2)])
def test_wrt_of_dot(axis: Any) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 2, 3, 4))
    both = gx, gy = pb.dot.grad(x, y, axis=axis)
    g = np.ones((5, *np.shape(pb.dot(x, y, axis=axis))))
    for wrt, wanted in (
        ("x", gx),
        (1, gy),
        (("y", "x"), (gy, gx)),
        ((0,), (gx,)),
        ("all", both),
    ):
        value, with_value = pb.dot.value_and_grad(x, y, axis=axis, wrt=wrt)
        assert_same_bits(np.asarray(value), np.asarray(pb.dot(x, y, axis=axis)))
        for result, stack in (
            (pb.dot.grad(x, y, axis=axis, wrt=wrt), ()),
            (with_value, ()),
            (pb.dot.vjp(x, y, 1, axis=axis, wrt=wrt), ()),
            (pb.dot.vjp(x, y, g, axis=axis, wrt=wrt), (5,)),
        ):
            assert isinstance(result, tuple) == isinstance(wanted, tuple)
            for one, other in zip(leaves(result), leaves(wanted), strict=True):
                assert_same_bits(one, np.broadcast_to(other, (*stack, *x.shape)))
        outs = tuple(np.full(x.shape, np.nan) for _ in leaves(wanted))
        out: Any = outs if isinstance(wanted, tuple) else outs[0]
        values = np.empty_like(np.asarray(value))
        pb.dot.value_and_grad(x, y, axis=axis, wrt=wrt, out=(values, out))
        assert_same_bits(values, np.asarray(value))
        for one, other in zip(outs, leaves(wanted), strict=True):
            assert_same_bits(one, other)
    for bad in ("z", 2, (0, "x"), ()):
        with pytest.raises(ValueError, match="dot.grad: wrt must be"):
            pb.dot.grad(x, y, wrt=bad)


@pytest.mark.parametrize("name", [*NAMES, *ROW_WISE])
def test_tangents_that_are_none(name: str) -> None:
    x = np.ones((2, 3))
    more = leading(name, x, x)[1:]
    op = getattr(pb, name)
    for axis in (0, -1):
        value = op(x, *more, axis=axis)
        nothing = op.jvp(x, *more, *(None,) * (1 + (name == "dot")), axis=axis)
        assert nothing.tobytes() == np.zeros_like(value).tobytes()
        assert nothing.shape == value.shape


@pytest.mark.parametrize("name", [*NAMES, *ROW_WISE])
def test_outputs_of_another_dtype(name: str) -> None:
    """As in NumPy, results are cast if the kind is the same."""
    x = np.ones((2, 3)) / 3
    more = leading(name, x, np.ones((2, 3)))[1:]
    op = getattr(pb, name)
    value = op(x, *more, axis=-1)
    for dtype in (np.float32, np.float16, ">f8", complex):
        out = np.full(value.shape, 7, dtype)
        assert op(x, *more, axis=-1, out=out) is out
        np.testing.assert_array_equal(out, value.astype(dtype))
        assert op(x, *more, axis=-1, out=(out,)) is out


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

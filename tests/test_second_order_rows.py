"""vjp.jvp and vjp.vjp of reductions, maps of rows and products, against mathematics."""

from __future__ import annotations

import inspect
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pullback as pb
import pytest
import reduction_oracles as ro
from mpmath import mp, mpf
from oracles import assert_same_bits, ulp
from protocol import TWINS, dtypes, each, native, on_every_target
from pullback.tables.products import PRODUCTS
from pullback.tables.reductions import REDUCTIONS, sum_error
from reduction_oracles import Sample, Vector

Array = Any
INF, NAN = math.inf, math.nan
primitives = each("P", TWINS, label=lambda P: P.__name__)
rows = each("name", REDUCTIONS)
products = each("name", PRODUCTS)


def leaves(tree: Any) -> list[Any]:
    return list(tree) if isinstance(tree, tuple) else [tree]


# --- against mathematics: rows --------------------------------------------------------------------


def few_samples(name: str) -> Iterator[Sample]:
    """Yield samples away from kinks, of few elements."""
    for sample in ro.samples(name, float):
        x, y = sample.x[:6], sample.y[:6]
        if name == "variance" and x.size <= sample.parameter:
            continue
        if name == "layer_norm" and not sample.parameter and not np.ptp(x):
            continue
        if name == "rms_norm" and not sample.parameter and not x.any():
            continue
        kinks = name in ("norm", "norm1", "norm2", "max", "min") and sample.parameter != 2
        if kinks and (not x.all() or len(set(np.abs(x))) < x.size):
            continue
        if name == "norm2" and not x.any():
            continue
        if sample.row.ordered and sample.parameter:  # another direction
            continue
        yield sample._replace(x=x, y=y)


def first_order(sample: Sample, x: Vector, y: Vector, g: Any) -> list[list[Any]]:
    """Return the exact cotangents."""
    row = sample.row
    names: dict[str, Any] = {"x": x, "y": y, "n": len(x)}
    if row.parameter is not None:
        names[row.parameter.name] = mpf(sample.parameter)
    if not row.is_map:
        return [[g * slope for slope in by] for by in ro.slopes(sample, names)]
    e = ro._exp(x - max(x))
    names |= {"g": g, "p": e / mpmath.fsum(e)}
    names |= {"y": ro.results(sample, names)}
    return [ro.mapped(sample, "vjp", names)]


def exact_second(sample: Sample, g: Any, t: list[Vector]) -> list[list[Any]]:
    """Return H(t), by central differences of exact cotangents far below their digits."""
    x, y = Vector(ro._exact(sample.x)), Vector(ro._exact(sample.y))
    sizes = [abs(v) for v in x if v] or [mpf(1)]
    step = mp.ldexp(min(*sizes, mpf(1)), -560)
    ends = [
        first_order(sample, x + t[0] * s, y + t[-1] * s if len(t) > 1 else y, g)
        for s in (step, -step)
    ]
    return [
        [(one - other) / (2 * step) for one, other in zip(*pair, strict=True)]
        for pair in zip(*ends, strict=True)
    ]


def bits_for(x: Array) -> int:
    """Return a precision in which numbers of these magnitudes can differ in their last digits."""
    sizes = np.abs(x[x != 0])
    spread = np.log2(max(sizes.max(), 1.0)) - np.log2(min(sizes.min(), 1.0)) if sizes.size else 0
    return 1300 + int(max(spread, 0)) * 2


def judge_second(op: Any, sample: Sample, exact: Any, g: Any, t: Any) -> None:
    row, dtype = sample.row, np.dtype(float)
    of_g = g if row.is_map else g[0]
    results = leaves(op.vjp.jvp(*sample.operands, of_g, *t, None, **sample.options))
    where = f"{row.name} of {sample.x!r}, {sample.parameter}"
    names = {"x": Vector(ro._exact(sample.x)), "n": sample.x.size, "t": ro._exact(t[0])}
    if row.parameter is not None:
        names[row.parameter.name] = mpf(sample.parameter)
    with mp.workprec(200):
        if row.is_map:
            names |= {"g": ro._exact(g)}
        e = ro._exp(names["x"] - max(names["x"]))
        names.setdefault("p", e / mpmath.fsum(e))
        if row.is_map:
            names |= {"y": ro.results(sample, names)}
            deviation = mpmath.sqrt(ro._var(names["x"]) + names.get("eps", 0)) or mpf(1)
            names |= {"r": 1 / deviation}
        else:
            names |= {"value": ro.value(sample, names | {"y": Vector(ro._exact(sample.y))})}
        size = 1 if row.is_map else abs(mpf(float(of_g)))
        for result, numbers in zip(results, exact, strict=True):
            for i, number in enumerate(numbers):
                by = size * ro.exact(row.second_terms, names | {"i": i})
                bound = row.second_ulp * ulp(max(abs(number), by), dtype)
                bound += sum_error(sample.x.size) * by
                if bound < float(np.finfo(dtype).max):
                    ro._judge(f"{i} of {where}", result[i], number, bound, dtype)


@rows
def test_accuracy_of_rows(name: str) -> None:
    """H(t) is right to the table's bounds: of the twin, and of each target."""
    judged = 0
    for k, sample in enumerate(few_samples(name)):
        rng = np.random.default_rng(k)
        row = sample.row
        g, *t = rng.normal(size=(1 + len(row.operands), sample.x.size))
        with mp.workprec(bits_for(sample.x)):
            of_g = Vector(ro._exact(g)) if row.is_map else mpf(float(g[0]))
            exact = exact_second(sample, of_g, [Vector(ro._exact(v)) for v in t])
        judge_second(getattr(pb.reference, name), sample, exact, g, t)
        if native is not None:
            on_every_target(partial(judge_second, getattr(pb, name), sample, exact, g, t))()
        judged += 1
    assert judged > 5


def given_rows(name: str, shape: Any, axis: Any, stack: Any, p: float, seed: int = 3) -> Any:
    """Return operands with their parameter, a cotangent, tangents, tg and hs."""
    rng = np.random.default_rng(seed)
    row = REDUCTIONS[name]
    operands = [rng.normal(size=shape) for _ in row.operands]
    leading = ro.leading(name, *operands, p=p)
    whole = shape if row.is_map else np.shape(np.sum(operands[0], axis=axis))
    g, tg = rng.normal(size=(2, *stack, *whole))
    t = [rng.normal(size=shape) for _ in operands]
    hs = [rng.normal(size=(*stack, *shape)) for _ in operands]
    return leading, g, t, tg, hs


def moved(leading: Any, t: Any, s: float) -> Any:
    n = len(t)
    return (*(a + s * b for a, b in zip(leading[:n], t, strict=True)), *leading[n:])


@primitives
@rows
def test_products_of_second_order(name: str, P: Any) -> None:
    """They are derivatives of vjp, each other's adjoint, symmetric; None is zero."""
    f = getattr(P, name)
    exponents = (1.0, 2.0, 3.0, INF) if name == "norm" else (3.0,)
    cases = itertools.product((0, -1, (0, 2), None), ((), (2,), (2, 1)), exponents)
    for axis, stack, p in cases:
        leading, g, t, tg, hs = given_rows(name, (2, 3, 4), axis, stack, p)
        n = len(t)
        ends = [leaves(f.vjp(*moved(leading, t, s), g + s * tg, axis=axis)) for s in (1e-5, -1e-5)]
        whole = leaves(f.vjp.jvp(*leading, g, *t, tg, axis=axis))
        for result, one, other in zip(whole, *ends, strict=True):
            assert result.shape == one.shape
            np.testing.assert_allclose(result, (one - other) / 2e-5, rtol=1e-5, atol=1e-6)
        # Each tangent alone, and all of them.
        total: Any = 0
        for k in range(n + 1):
            some = [v if i == k else None for i, v in enumerate((*t, tg))]
            total = np.add(total, np.stack(leaves(f.vjp.jvp(*leading, g, *some, axis=axis))))
        np.testing.assert_allclose(total, np.stack(whole), rtol=1e-12, atol=1e-12)
        pulled = f.vjp.vjp(*leading, g, *hs, axis=axis)
        assert [a.shape for a in pulled] == [*(a.shape for a in t), g.shape]
        along = sum(np.vdot(h, m) for h, m in zip(hs, whole, strict=True))
        against = sum(np.vdot(a, b) for a, b in zip([*t, tg], pulled, strict=True))
        assert np.isclose(along, against, rtol=1e-10, atol=1e-10)
        nothing = f.vjp.jvp(*leading, g, *(None,) * n, None, axis=axis)
        assert not any(a.any() for a in leaves(nothing))
        if stack == ():  # H is symmetric, and both are it
            other_t = given_rows(name, (2, 3, 4), axis, stack, p, seed=4)[2]
            one = leaves(f.vjp.jvp(*leading, g, *t, None, axis=axis))
            other = leaves(f.vjp.jvp(*leading, g, *other_t, None, axis=axis))
            along = sum(np.vdot(a, b) for a, b in zip(one, other_t, strict=True))
            against = sum(np.vdot(a, b) for a, b in zip(other, t, strict=True))
            assert np.isclose(along, against, rtol=1e-13, atol=1e-13)
            for a, b in zip(one, f.vjp.vjp(*leading, g, *t, axis=axis)[:-1], strict=True):
                assert_same_bits(a, b)


@primitives
@rows
@dtypes
def test_each_slice_by_itself(name: str, P: Any, dtype: Any) -> None:
    """Axes, layouts and stacks do not matter, nor does float32, but for a rounding."""
    f = getattr(P, name)
    leading, g, t, tg, hs = given_rows(name, (3, 5), 0, (2,), 3.0)
    n = len(t)
    leading = tuple(a.astype(dtype) if np.ndim(a) else a for a in leading)
    g, tg, *rest = (a.astype(dtype) for a in (g, tg, *t, *hs))
    t, hs = rest[:n], rest[n:]
    whole = leaves(f.vjp.jvp(*leading, g, *t, tg, axis=0))
    pulled = f.vjp.vjp(*leading, g, *hs, axis=0)
    turned = [np.asfortranarray(a) if np.ndim(a) else a for a in (*leading, g, *t, tg)]
    for one, other in zip(leaves(f.vjp.jvp(*turned, axis=0)), whole, strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=1e-6 if dtype == np.float32 else 1e-14)
    for j, s in itertools.product(range(5), range(2)):
        alone = tuple(a[:, j] if np.ndim(a) else a for a in leading)
        args = (*alone, g[s][..., j], *(a[:, j] for a in t), tg[s][..., j])
        for one, other in zip(leaves(f.vjp.jvp(*args)), whole, strict=True):
            near = {"rtol": 1e-6 if dtype == np.float32 else 1e-13, "atol": 1e-14}
            np.testing.assert_allclose(one, other[s][:, j], **near)
    sums = [
        f.vjp.vjp(*leading, g[s], *(h[s] for h in hs), axis=0)[k] for k in range(n) for s in (0, 1)
    ]
    for k in range(n):
        np.testing.assert_allclose(
            pulled[k], sums[2 * k] + sums[2 * k + 1], rtol=1e-5, atol=1e-6 * (dtype == np.float32)
        )
    wide = [a.astype(float) if np.ndim(a) else a for a in (*leading, g, *t, tg)]
    for one, other in zip(whole, leaves(f.vjp.jvp(*wide, axis=0)), strict=True):
        if dtype == np.float32:
            assert_same_bits(one, other.astype(np.float32))


@primitives
@rows
def test_elements_that_do_not_count(name: str, P: Any) -> None:
    """`where` and masked arrays give what a smaller array gives, whatever is left out."""
    f = getattr(P, name)
    leading, _, t, _, _ = given_rows(name, (7,), None, (), 3.0)
    keep = np.array([True, False, True, True, False, True, True])
    g = given_rows(name, (7,), None, (), 3.0)[1]
    few_g = g[keep] if f.row.is_map else g
    few = [a[keep] if np.ndim(a) else a for a in leading]
    wanted = leaves(f.vjp.jvp(*few, few_g, *(v[keep] for v in t), few_g))
    pulled = f.vjp.vjp(*few, few_g, *(v[keep] for v in t))
    spoilt = [np.where(keep, a, NAN) if np.ndim(a) else a for a in leading]
    tangents = [np.where(keep, v, INF) for v in t]
    masked = (np.ma.masked_array(spoilt[0], ~keep), *spoilt[1:])
    for given, where in ((spoilt, keep), (masked, True)):
        results = leaves(f.vjp.jvp(*given, g, *tangents, g, where=where))
        for one, other in zip(results, wanted, strict=True):
            np.testing.assert_array_equal(one[keep], other)
            assert not one[~keep].any()
        backs = f.vjp.vjp(*given, g, *tangents, where=where)
        for one, other in zip(backs, pulled, strict=True):
            np.testing.assert_array_equal(one[keep] if one.ndim else one, other)


@primitives
def test_weights(P: Any) -> None:
    """With weights, too, it is the derivative of vjp; a weight of 0 is as good as no element."""
    rng = np.random.default_rng(0)
    x, t, g = rng.normal(size=(3, 6))
    b = np.array([0.5, 2.0, -0.1, 0.0, 1.0, 3.0])
    vjp = P.logsumexp.vjp
    ends = [vjp(x + s * t, 2.0, b=b) for s in (1e-5, -1e-5)]
    second = vjp.jvp(x, 2.0, t, None, b=b)
    np.testing.assert_allclose(second, (ends[0] - ends[1]) / 2e-5, rtol=1e-8, atol=1e-9)
    assert second[3] == 0
    along = np.vdot(second, g)
    assert np.isclose(along, np.vdot(vjp.jvp(x, 2.0, g, None, b=b), t), rtol=1e-12)
    of_x, of_g = vjp.vjp(x, 2.0, t, b=b)
    assert_same_bits(of_x, second)
    assert_same_bits(of_g, P.logsumexp.jvp(x, t, b=b))
    few = np.delete(np.arange(6), 3)
    np.testing.assert_allclose(
        vjp.jvp(x, 2.0, t, None, b=b)[few],
        vjp.jvp(x[few], 2.0, t[few], None, b=b[few]),
        rtol=1e-14,
    )
    with pytest.raises(ValueError, match=r"logsumexp.vjp.jvp: b has shape \(2, 6\)"):
        vjp.jvp(x, 2.0, t, None, b=np.ones((2, 6)))


# Reductions and maps: (name, x, parameter or None, g, t, H(t)).
SPECIAL: list[tuple[str, Any, Any, Any, Any, Any]] = [
    ("prod", [0, 2, 3], None, 1, [1, 1, 1], [5, 3, 2]),
    ("prod", [0, 0, 3], None, 2, [1, 5, 7], [30, 6, 0]),
    ("prod", [0, 0, 0], None, 2, [1, 5, 7], [0, 0, 0]),
    ("prod", [4], None, 2, [1], [0]),
    ("prod", [4, 0], None, 2, [3, 5], [10, 6]),
    ("prod", [1e300, 1e300, 1e-300, 1e-300], None, 1, [0, 0, 1e300, 0], [1e300, 1e300, 0, INF]),
    ("prod", [1e-300, 1e300], None, 1, [1e10, 3], [3, 1e10]),
    ("prod", [1e-300, 1, 1], None, 1, [1, 1, 1], [2, 1, 1]),
    ("prod", [INF, 1, 2], None, 1, [1, 1, 1], [NAN] * 3),
    ("prod", [INF, 1, 2], None, 1, [0, 0, 0], [0] * 3),
    ("norm1", [0, -2, 3], None, 1, [1, 1, 1], [0, 0, 0]),
    ("norm2", [0, 0], None, 1, [1, 2], [0, 0]),
    ("norm2", [3e200, 4e200], None, 1e200, [1, 0], [0.128, -0.096]),
    ("norm2", [3e-200, 4e-200], None, 1e-200, [1, 0], [0.128, -0.096]),
    ("norm2", [INF, 1], None, 1, [1, 1], [NAN, 0]),
    ("norm", [0, 0], 3.0, 1, [1, 2], [0, 0]),
    ("norm", [0, 0], 1.5, 1, [1, 2], [0, 0]),
    ("norm", [0, 2], 3.0, 1, [1, 2], [0, 0]),
    ("norm", [0, 2], 1.5, 1, [1, 2], [INF, 0]),
    ("norm", [0, 2], 1.5, 1, [0, 2], [0, 0]),
    ("norm", [0, 2, -3], INF, 1, [1, 1, 1], [0, 0, 0]),
    ("norm", [0, 2, -3], 1.0, 1, [1, 1, 1], [0, 0, 0]),
    ("norm", [INF, 1], 3.0, 1, [1, 1], [NAN, 0]),
    ("max", [1, 1, 0], None, 3, [1, 2, 3], [0, 0, 0]),
    ("min", [1, 1, 0], None, 3, [1, 2, 3], [0, 0, 0]),
    ("max", [1, NAN], None, 3, [1, 2], [NAN, NAN]),
    ("squared_norm2", [INF, 1e200], None, 3, [1, 2], [6, 12]),
    ("squared_norm2", [0, 0], None, 1, [1e-300, 1e300], [2e-300, 2e300]),
    ("sum", [INF, NAN], None, 1, [1, 2], [0, 0]),
    ("variance", [1e300, 2], 0, 1, [1e308, -1e308], [1e308, -1e308]),
    ("logsumexp", [INF, INF, 0], None, 1, [1, 3, 5], [-0.5, 0.5, 0]),
    ("logsumexp", [-INF, 0], None, 1, [1, 1], [0, 0]),
    ("logsumexp", [1e4, 0], None, 1, [1, 2], [0, 0]),
    ("softmax", [INF, INF, 0], None, [1, 0, 5], [1, 3, 5], [0, 0, 0]),
    ("softmax", [-INF, 0, 0], None, [3, 1, 0], [3, 1, 0], [0, 0, 0]),
    ("softmax", [-INF, -INF], None, [1, 0], [1, 0], [NAN, NAN]),
    ("softmax", [-INF, -INF], None, [0, 0], [1, 0], [0, 0]),
    ("log_softmax", [INF, INF, 0], None, [1, 0, 5], [1, 3, 5], [3, -3, 0]),
    ("log_softmax", [0, 0], None, [1, -1], [1, 3], [0, 0]),
    ("layer_norm", [3, 3], 1e-4, [1, 0], [1, 0], [0, 0]),
    ("layer_norm", [1e200, 3e200], 0.0, [1, 0], [1, 0], [0, 0]),
    ("layer_norm", [NAN, 1], 1e-4, [1, 0], [1, 0], [NAN, NAN]),
    ("rms_norm", [0, 0], 1e-4, [1, 0], [1, 0], [0, 0]),
    ("rms_norm", [1e200, 3e200], 0.0, [1, 0], [1, 0], [0, 0]),
    ("cumsum", [1, INF], None, [1, 2], [1, 2], [0, 0]),
    ("cumprod", [2, 0, 3], None, [0, 0, 1], [1, 1, 1], [3, 5, 2]),
    ("cumprod", [0, 0, 3], None, [0, 0, 1], [1, 1, 1], [3, 3, 0]),
    ("logcumsumexp", [-INF, 0, 0], None, [0, 0, 4], [0, 1, 3], [0, -2, 2]),
]


@primitives
def test_special_points(P: Any) -> None:
    for name, x, p, g, t, wanted in SPECIAL:
        f = getattr(P, name)
        about = f.row.parameter
        rest = [p] if p is not None and about.default is None else []
        options = {} if p is None or rest else {about.name: p}
        given = [np.array(a, float) for a in (x, g, t)]
        with np.errstate(all="raise"):
            result = f.vjp.jvp(given[0], *rest, *given[1:], None, **options)
        np.testing.assert_allclose(
            result, np.array(wanted, float), rtol=1e-14, atol=1e-15, err_msg=f"{name} of {x}"
        )


@primitives
def test_no_cancellation(P: Any) -> None:
    """Tangents and cotangents far from zero, which a map does not see, cost no digits."""
    x, g, t = np.random.default_rng(2).normal(size=(3, 50))
    for name in ("softmax", "layer_norm"):
        f = getattr(P, name)
        near, far = f.vjp.jvp(x, g, t, None), f.vjp.jvp(x, g + 2.0**20, t + 2.0**20, None)
        exact = f.vjp.jvp(x, (g + 2.0**20) - 2.0**20, (t + 2.0**20) - 2.0**20, None)
        np.testing.assert_allclose(far, exact, rtol=0, atol=1e-13 * np.abs(near).max())
    far = P.variance.vjp.jvp(x, 1.0, t + 2.0**30, None)
    exact = P.variance.vjp.jvp(x, 1.0, (t + 2.0**30) - 2.0**30, None)
    np.testing.assert_allclose(far, exact, rtol=0, atol=1e-15)


@primitives
@rows
def test_no_elements(name: str, P: Any) -> None:
    f = getattr(P, name)
    if f.row.empty is None and not f.row.is_map:
        message = rf"{name}\.vjp\.jvp: x has shape \(2, 0\), no elements"
        with pytest.raises(ValueError, match=message):
            f.vjp.jvp(np.ones((2, 0)), np.ones(2), np.ones((2, 0)), None, axis=1)
        return
    x = np.ones((2, 0))
    operands = ro.leading(name, x, x)
    g = x if f.row.is_map else np.ones(2)
    more = [x] * len(f.row.operands)
    for result in leaves(f.vjp.jvp(*operands, g, *more, g, axis=1)):
        assert result.shape == (2, 0)
    *_, of_g = f.vjp.vjp(*operands, g, *more, axis=1)
    np.testing.assert_array_equal(of_g, np.zeros(g.shape))


# --- against mathematics: products ----------------------------------------------------------------


def tanh_vjp(Z: Array, G: Array) -> Array:
    return G * (1 - np.tanh(Z) ** 2)


def of_linear(X: Array, W: Array, b: Array, G: Array, activation: Any = None) -> Any:
    H = tanh_vjp(X @ W + b, G) if activation else G
    X, rows = X.reshape(-1, X.shape[-1]), H.reshape(-1, H.shape[-1])
    return H @ W.T, X.T @ rows, rows.sum(axis=0)


def outer(g: Array, u: Array, v: Array) -> Array:
    u = (np.asarray(g)[..., None] * u).reshape(-1, u.shape[-1])
    return u.T @ v.reshape(-1, v.shape[-1])


# vjp by hand, for complex steps, of operands without and with a batch.
FORMULAS: dict[str, Callable[..., Any]] = {
    "matmul": lambda A, B, G: (G @ np.swapaxes(B, -1, -2), np.swapaxes(A, -1, -2) @ G),
    "linear": of_linear,
    "quadratic_form": lambda x, A, g: (
        np.asarray(g)[..., None] * (x @ A.T + x @ A),
        outer(g, x, x),
    ),
    "bilinear_form": lambda u, X, v, g: (
        np.einsum("...,ij,...j->...i", g, X, v),
        outer(g, u, v),
        np.einsum("...,ij,...i->...j", g, X, u),
    ),
}
SHAPES: dict[str, list[tuple[Any, ...]]] = {
    "matmul": [((2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4))],
    "linear": [((2, 3), (3, 4), (4,)), ((5, 2, 3), (3, 4), (4,)), ((3,), (3, 4), (4,))],
    "quadratic_form": [((3,), (3, 3)), ((2, 5, 3), (3, 3))],
    "bilinear_form": [((3,), (3, 4), (4,)), ((5, 3), (3, 4), (5, 4))],
}


@primitives
@products
@dtypes
def test_products_against_complex_steps(name: str, P: Any, dtype: Any) -> None:
    f, rng = getattr(P, name), np.random.default_rng(1)
    judged = 0
    activations: list[dict[str, Any]] = [{}, {"activation": "tanh"}] if name == "linear" else [{}]
    for shapes, options in itertools.product(SHAPES[name], activations):
        operands, t = ([rng.normal(size=s).astype(dtype) for s in shapes] for _ in range(2))
        g, tg = (rng.normal(size=np.shape(f(*operands))).astype(dtype) for _ in range(2))
        for left_out in range(1 << (len(t) + 1)):
            some = [None if left_out >> k & 1 else v for k, v in enumerate((*t, tg))]
            step = 1e-30
            ends = [
                a.astype(complex) if v is None else a + 1j * step * v.astype(float)
                for a, v in zip((*operands, g), some, strict=True)
            ]
            exact = [e.imag / step for e in FORMULAS[name](*ends, **options)]
            results = f.vjp.jvp(*operands, g, *some, **options)
            unit = 64 * np.finfo(dtype).eps
            for k, (result, wanted) in enumerate(zip(results, exact, strict=True)):
                assert result.dtype == dtype
                scale = np.abs(wanted).max(initial=1)
                np.testing.assert_allclose(result, wanted, rtol=unit, atol=unit * scale)
                assert_same_bits(f.vjp.jvp(*operands, g, *some, wrt=k, **options), result)
                judged += 1
    assert judged > 0


@primitives
@products
def test_adjoint_products(name: str, P: Any) -> None:
    """Batches that broadcast, vectors, stacks, operands that are None."""
    rng = np.random.default_rng(0)
    more: dict[str, list[Any]] = {
        "matmul": [((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 1, 2, 3), (6, 3, 4))],
        "linear": [((2, 3), (3, 4), None)],
        "bilinear_form": [((5, 1, 3), (3, 4), (6, 4)), ((5, 3), (3, 4), (4,))],
    }
    activations: list[dict[str, Any]] = [{}, {"activation": P.tanh}] if name == "linear" else [{}]
    f = getattr(P, name)
    for shapes, stack, options in itertools.product(
        SHAPES[name] + more.get(name, []), ((), (2,), (2, 1)), activations
    ):
        operands, t, other = (
            [None if s is None else rng.normal(size=s) for s in shapes] for _ in range(3)
        )
        g, tg = rng.normal(size=(2, *stack, *np.shape(f(*operands))))
        hs = [None if s is None else rng.normal(size=(*stack, *s)) for s in shapes]
        whole = f.vjp.jvp(*operands, g, *t, tg, **options)
        pulled = f.vjp.vjp(*operands, g, *hs, **options)
        pairs = [(h, m) for h, m in zip(hs, whole, strict=True) if h is not None]
        along = sum(np.vdot(h, m) for h, m in pairs)
        assert all(h.shape == m.shape for h, m in pairs)
        pairs = [(a, b) for a, b in zip([*t, tg], pulled, strict=True) if a is not None]
        assert all(np.shape(a) == np.shape(b) for a, b in pairs)
        assert np.isclose(along, sum(np.vdot(a, b) for a, b in pairs), rtol=1e-12, atol=1e-12)
        if not stack:
            one = f.vjp.jvp(*operands, g, *t, None, **options)
            two = f.vjp.jvp(*operands, g, *other, None, **options)
            along, against = (
                sum(np.vdot(a, b) for a, b in zip(x, y, strict=True) if a is not None)
                for x, y in ((one, other), (two, t))
            )
            assert np.isclose(along, against, rtol=1e-13, atol=1e-13)
            for a, b in zip(one, f.vjp.vjp(*operands, g, *t, **options)[:-1], strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)
        nothing = f.vjp.vjp(*operands, g, *(None,) * len(hs), **options)
        assert not any(a.any() for a in nothing if a is not None)


# --- arguments ------------------------------------------------------------------------------------


@primitives
def test_options(P: Any) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4))
    g = np.ones((3, 1))
    jvp, vjp = P.dot.vjp.jvp, P.dot.vjp.vjp
    kept: dict[str, Any] = {"axis": 1, "keepdims": True}
    whole = jvp(x, y, g, x, None, None, **kept)
    assert_same_bits(whole[1], x)
    assert not whole[0].any()
    assert_same_bits(jvp(x, y, g, x, None, None, wrt="y", **kept), whole[1])
    assert len(jvp(x, y, g, x, None, None, wrt=(1,), **kept)) == 1
    out = np.empty((3, 4), np.float32)
    assert jvp(x, y, g, x, None, None, out=(None, out), **kept)[1] is out
    np.testing.assert_array_equal(out, x.astype(np.float32))
    of_x, of_y, of_g = vjp(x, y, g, None, x, **kept)
    assert_same_bits(of_x, x)
    assert not of_y.any()
    assert of_g.shape == (3, 1)
    assert_same_bits(vjp(x, y, g, None, x, wrt=("g", "x"), **kept)[0], of_g)
    # In place, and numbers that fill.
    t = x.copy()
    wanted = P.softmax.vjp.jvp(x, y, t, 2)
    assert P.softmax.vjp.jvp(x, y, t, np.full_like(x, 2.0), out=t) is t
    assert_same_bits(t, wanted)
    one = P.norm2.vjp.jvp([3.0, 4.0], 1, 1, None)
    assert_same_bits(one, P.norm2.vjp.jvp([3.0, 4.0], 1.0, [1.0, 1.0], None))
    A, B = np.ones((2, 3)), np.ones((3, 4))
    out = np.empty((2, 3))
    both = P.matmul.vjp.jvp(A, B, 1, 2, 3, None, out=(out, None))
    assert both[0] is out
    np.testing.assert_array_equal(out, np.full((2, 3), 12.0))
    assert P.linear.vjp.vjp(A, B, None, 1, A, None, None)[2] is None
    assert P.dot.vjp.jvp(A, A, 1.0, A.astype(np.float32), A, None)[0].dtype == np.float64
    single = P.sum.vjp.vjp(np.float32(2), np.float32(1), np.float32(3))
    assert [type(a) for a in single] == [np.float32] * 2


@primitives
def test_errors(P: Any) -> None:
    x, g = np.ones((2, 3)), np.ones((4, 2, 3))
    A, B = np.ones((2, 3)), np.ones((3, 4))
    for call, message in (
        (
            lambda: P.softmax.vjp.jvp(x, g, np.ones(3), None),
            r"softmax.vjp.jvp: t has shape \(3,\), x has \(2, 3\)",
        ),
        (lambda: P.softmax.vjp.jvp(x, g, x, x), r"tg has shape \(2, 3\), g has \(4, 2, 3\)"),
        (lambda: P.softmax.vjp.vjp(x, g, x), r"h has shape \(2, 3\), the cotangent of x has"),
        (lambda: P.softmax.vjp.vjp(x, x, x, wrt="y"), r"softmax.vjp.vjp: wrt must be 'x', 'g'"),
        (lambda: P.softmax.vjp.vjp(x, x, x, out=(x,)), "there are 2 results"),
        (
            lambda: P.sum.vjp.jvp(x, np.ones(2), x, None, axis=0),
            r"sum.vjp.jvp: g has shape \(2,\), which must end in \(3,\), the value's shape for x",
        ),
        (lambda: P.norm.vjp.jvp(x, 0.5, 1.0, x, None), "norm.vjp.jvp: p is 0.5, needs a number"),
        (lambda: P.dot.vjp.jvp(x, x[0], 1.0, x, x, None), r"dot.vjp.jvp: x has shape .* y has"),
        (lambda: P.dot.vjp.vjp(x, x, 1.0, x, x[0]), r"hy has shape \(3,\), the cotangent of y has"),
        (
            lambda: P.matmul.vjp.jvp(A, B, np.ones((2, 4)), A, B[0], None),
            r"matmul.vjp.jvp: tB has shape \(4,\), B has \(3, 4\)",
        ),
        (
            lambda: P.matmul.vjp.jvp(A, B, np.ones(4), A, B, None),
            r"matmul.vjp.jvp: G has shape \(4,\), which must end in \(2, 4\)",
        ),
        (lambda: P.matmul.vjp.jvp(A, A, 1, A, A, None), "matmul.vjp.jvp: A has shape .* k is 3"),
        (lambda: P.linear.vjp.jvp(A, B, None, 1, A, B, B[0], None), "tb is given, but b is None"),
        (
            lambda: P.linear.vjp.vjp(A, B, None, 1, A, B, None, wrt="b"),
            "linear.vjp.vjp: wrt is 'b', but b is None",
        ),
        (lambda: P.matmul.vjp.vjp(A, B, 1, A, None, wrt="C"), "wrt must be 'A', 'B', 'G'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for call, message in (
        (lambda: P.softmax.vjp.jvp(x, None, x, None), "softmax.vjp.jvp: g is None"),
        (lambda: P.matmul.vjp.vjp(A, B, None, A, B), "matmul.vjp.vjp: G is None"),
        (lambda: P.softmax.vjp.jvp(x, x, x), r"softmax\.vjp\.jvp\(\) missing 1 required"),
        (lambda: P.sum.vjp.jvp(x, 1.0, 1j * x, None), "argument t has dtype complex128"),
        (lambda: P.matmul.vjp.jvp(A, None, 1.0, A, None, None), "argument B"),
        (lambda: P.sum.vjp.jvp(x, 1.0, x, None, b=x), r"unexpected keyword argument 'b'"),
        (
            lambda: P.linear.vjp.jvp(A, B, None, 1, A, B, None, None, activation="no"),
            "linear.vjp.jvp: activation must be",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(np.exceptions.AxisError, match="axis 2"):
        P.softmax.vjp.jvp(x, x, x, None, axis=2)


@primitives
@each("name", [*REDUCTIONS, *PRODUCTS])
def test_how_they_are_found(name: str, P: Any) -> None:
    f = getattr(P, name)
    assert {"jvp", "vjp"} <= set(dir(f.vjp))
    for method in ("jvp", "vjp"):
        bound = getattr(f.vjp, method)
        assert pickle.loads(pickle.dumps(bound)) == bound
        assert f"vjp.{method}(" in (f.__doc__ or "")
        doc = inspect.getdoc(bound) or ""
        assert "H(" in doc
        assert all(len(line) <= 100 for line in doc.splitlines())
        wanted = [*inspect.signature(f.vjp).parameters]
        assert set(wanted) <= {*inspect.signature(bound).parameters, "wrt"}
    assert pickle.loads(pickle.dumps(f.vjp)).jvp == f.vjp.jvp

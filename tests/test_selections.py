"""where, clip and take: against their definitions, element by element, and against each other."""

from __future__ import annotations

import math
import pickle
import threading
import time
from collections.abc import Iterator
from functools import cache
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import oracles
import pullback as pb
import pytest
from oracles import assert_same_bits
from protocol import TWINS, assert_same_leaves, dtypes, each, leaves, on_any_target
from pullback.tables.selections import SELECTIONS

primitives = each("P", TWINS, label=lambda P: P.__name__)
CHOICES = [name for name, row in SELECTIONS.items() if row.is_elementwise]
choices = each("name", CHOICES)
INF, NAN = math.inf, math.nan


# --- definitions, of one element ------------------------------------------------------------------


def chosen(name: str, a: Any, b: Any, c: Any) -> tuple[int | None, Any]:
    """Return which operand is chosen, or None where derivatives are NaN, and the value."""
    if name == "where":
        return (1, b) if a else (2, c)
    x, lo, hi = a, b, c
    if any(one is not None and math.isnan(one) for one in (x, lo, hi)):
        return None, NAN
    k, value = 0, x
    if lo is not None and not value > lo:
        k, value = 1, lo
    if hi is not None and not value < hi:
        k, value = 2, hi
    return k, value


def expected(name: str, method: str, operands: tuple[Any, ...], more: tuple[Any, ...]) -> Any:
    """Return a flat tuple of what a method gives for one element; None for a missing operand."""
    k, value = chosen(name, *operands)
    moved = SELECTIONS[name].moved
    slopes = tuple(
        None if operands[i] is None else NAN if k is None else float(i == k) for i in moved
    )
    if method == "jvp":
        tangent = dict(zip(moved, more, strict=True)).get(k, NAN)
        return (0.0 if tangent is None else tangent,)
    if method == "vjp":
        pulled = {0.0: 0.0, 1.0: more[0]}
        return tuple(None if s is None else pulled.get(s, NAN) for s in slopes)
    curves = tuple(
        None if a is None or b is None else NAN if k is None else 0.0
        for a, b in combinations_with_replacement(slopes, 2)
    )
    both = {"value": (value,), "derivative": slopes, "value_and_derivative": (value, *slopes)}
    return {**both, "second_derivative": curves}[method]


NUMBERS = (-INF, -2.0, -1.0, -0.0, 0.0, 1e-320, 1.0, 2.0, INF, NAN)


def points(name: str, dtype: Any) -> list[np.ndarray[Any, Any]]:
    """Return operands, and as many numbers behind them, with all combinations of special ones."""
    first = (False, True) if name == "where" else NUMBERS
    few = (-INF, -1.0, -0.0, 0.0, 1.0, INF, NAN)
    columns = zip(*product(first, few, few), strict=True)
    operands = [np.array(column) for column in columns]
    rng = np.random.default_rng(0)
    tangents = [rng.choice(NUMBERS, operands[0].size) for _ in range(3)]
    return [a if a.dtype == bool else a.astype(dtype) for a in (*operands, *tangents)]


METHODS = {
    **dict.fromkeys(("value", "derivative", "value_and_derivative", "second_derivative"), 0),
    "vjp": 1,
    "jvp": 3,
}


def bound(P: Any, name: str, method: str) -> Any:
    primitive = getattr(P, name)
    return primitive if method == "value" else getattr(primitive, method)


@cache
def wanted_of(name: str, method: str, given: tuple[Any, ...]) -> list[Any]:
    """Return what a method gives for each element of arguments, arrays as bytes and dtype."""
    arrays = [a if a is None else np.frombuffer(*a) for a in given]
    n = max(a.size for a in arrays if a is not None)
    elements = [[None] * n if a is None else a.tolist() for a in arrays]
    return [expected(name, method, at[:3], at[3:]) for at in zip(*elements, strict=True)]


def judge(P: Any, name: str, method: str, given: list[Any]) -> None:
    """Compare a method with the definition; an argument may be None."""
    n = max(np.size(a) for a in given if a is not None)
    wanted = wanted_of(
        name, method, tuple(a if a is None else (a.tobytes(), a.dtype) for a in given)
    )
    results = list(leaves(bound(P, name, method)(*given)))
    dtype = next(a.dtype for a in given if a is not None and a.dtype != bool)
    for result, column in zip(results, zip(*wanted, strict=True), strict=True):
        if column[0] is None:
            assert result is None
        else:
            assert_same_bits(np.broadcast_to(result, n), np.array(column, dtype))


@choices
@dtypes
@primitives
@on_any_target
def test_every_element_is_what_the_definition_says(name: str, dtype: Any, P: Any) -> None:
    whole = points(name, dtype)
    for method, count in METHODS.items():
        count = min(count, len(SELECTIONS[name].moved))
        given = whole[: 3 + count]
        for n in (1, 3, 8, 15, 17, given[0].size):
            judge(P, name, method, [a[:n] for a in given])
        judge(P, name, method, [a[::-2] for a in given])
        if method == "jvp":
            judge(P, name, method, [*given[:-1], None])


@dtypes
@primitives
@on_any_target
def test_a_bound_may_be_left_out(dtype: Any, P: Any) -> None:
    whole = points("clip", dtype)
    for method, count in METHODS.items():
        for lacking in ((1,), (2,), (1, 2)):
            given = [None if k in lacking or k - 3 in lacking else a for k, a in enumerate(whole)]
            judge(P, "clip", method, given[: 3 + count])
    x = whole[0]
    assert_same_bits(P.clip(x, None, None), x)
    gx, glo, ghi = P.clip.vjp([0.5], None, 1.0, [3.0])
    assert (gx.tolist(), glo, float(ghi)) == ([3.0], None, 0.0)
    for call in (
        lambda: P.clip.vjp(x, None, 1.0, x, wrt="lo"),
        lambda: P.clip.jacobian(x, 0.0, None, wrt=(2,)),
        lambda: P.clip.jvp(x, None, 1.0, x, 1.0, None),
        lambda: P.clip.vjp.vjp(x, None, 1.0, x, None, 1.0, None),
    ):
        with pytest.raises(ValueError, match=r"clip\.\S+: .*is None"):
            call()


@primitives
def test_values_are_numpys(P: Any) -> None:
    """At the places where NumPy says what is right."""
    x, lo, hi = points("clip", np.float64)[:3]
    assert_same_bits(P.clip(x, lo, hi), np.clip(x, lo, hi))
    for c in (
        [0, 2, -1],
        [0.0, NAN, 1e-300],
        [False, True, True],
        np.array([0, 5, 1], "u1"),
        1,
        0.0,
    ):
        for w, other in ((np.arange(3.0), 5.0), (1.0, [[1], [2]]), (2, 3)):
            assert_same_bits(P.where(c, w, other), np.asarray(np.where(c, w, other), float)[()])


# --- broadcasting, sums, options ------------------------------------------------------------------


def laid_out(array: np.ndarray[Any, Any]) -> Iterator[Any]:
    yield array
    yield np.asfortranarray(array)
    yield array[::-1].copy()[::-1]
    yield np.repeat(array, 2, axis=-1)[..., ::2]
    if array.dtype != bool:
        yield array.astype(array.dtype.newbyteorder())


@choices
@dtypes
@primitives
def test_cotangents_are_summed_over_repetitions(name: str, dtype: Any, P: Any) -> None:
    rng = np.random.default_rng(1)
    f, row = getattr(P, name), SELECTIONS[name]
    for shapes in product([(), (4,), (3, 1), (2, 3, 4)], repeat=3):
        operands = [rng.integers(-3, 4, shape).astype(dtype) for shape in shapes]
        if name == "where":
            operands[0] = operands[0] > 0
        whole = np.broadcast_arrays(*operands)
        shape = whole[0].shape
        for stack in ((), (2,) if () in shapes else (0,)):
            g = rng.integers(-9, 10, stack + shape).astype(dtype)
            terms = [slope * g for slope in f.derivative(*whole)]
            cotangents = f.vjp(*operands, g)
            for k, got, term in zip(row.moved, cotangents, terms, strict=True):
                own = operands[k].shape
                axes = tuple(
                    len(stack) + a
                    for a, n in enumerate(shape)
                    if a < len(shape) - len(own) or own[a - len(shape)] != n
                )
                exact = term.sum(axis=axes, dtype=float, keepdims=True)
                assert_same_bits(got, exact.astype(dtype).reshape(stack + own)[()] + dtype.type(0))
                if not stack:
                    assert_same_bits(f.vjp(*operands, g, wrt=k), got)


@dtypes
@primitives
def test_sums_of_many_terms_are_accurate(dtype: Any, P: Any) -> None:
    rng = np.random.default_rng(2)
    c, g = rng.random((300, 211)) < 0.5, rng.normal(0, 1, (300, 211)).astype(dtype)
    gw, gx = P.where.vjp(c, np.zeros(211, dtype), dtype.type(0), g)
    for got, terms in [(gx, g[~c]), *zip(gw, (g[:, j][c[:, j]] for j in range(211)), strict=True)]:
        exact, size = math.fsum(terms.tolist()), math.fsum(np.abs(terms).tolist())
        assert abs(float(got) - exact) <= np.finfo(dtype).eps * abs(exact) + 600 * 2.0**-53 * size


@pytest.mark.native
@choices
@dtypes
def test_bits_depend_neither_on_threads_nor_on_the_way_in(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    f, row = getattr(pb, name), SELECTIONS[name]
    for shapes in (
        ((70_001,),) * 3,
        ((500, 90), (90,), (500, 1)),
        ((), (40_000,), ()),
        ((2, 3),) * 3,
    ):
        arrays = [rng.normal(0, 2, shape).astype(dtype) for shape in shapes]
        if name == "where":
            arrays[0] = np.asarray(arrays[0] > 0)
        shape = np.broadcast_shapes(*shapes)
        g = rng.normal(0, 1, shape).astype(dtype)
        tangents = [rng.normal(0, 1, arrays[k].shape).astype(dtype) for k in row.moved]
        more: dict[str, list[Any]] = {"vjp": [g], "jvp": tangents}
        for method in ("value", "derivative", "value_and_derivative", "vjp", "jvp"):
            call = f.__call__ if method == "value" else getattr(f, method)
            given = [*arrays, *more.get(method, ())]
            first = call(*given)
            with pb.threads(3):
                assert_same_leaves(call(*given), first)
            assert_same_leaves(call.__wrapped__(*given), first)
            if method != "vjp" or all(s == shape for s in shapes):  # no sums, whose order may vary
                twin = getattr(pb.reference, name)
                twin = twin if method == "value" else getattr(twin, method)
                assert_same_leaves(twin(*given), first)


@choices
@dtypes
@primitives
def test_layouts_number_types_and_outputs(name: str, dtype: Any, P: Any) -> None:
    rng = np.random.default_rng(4)
    f, row = getattr(P, name), SELECTIONS[name]
    arrays = [rng.integers(-2, 3, (3, 4)).astype(dtype) for _ in range(4)]
    if name == "where":
        arrays[0] = arrays[0] > 0
    *operands, g = arrays
    tangents = [arrays[k] for k in row.moved]
    value, slopes = f(*operands), f.derivative(*operands)
    pulled, pushed = f.vjp(*operands, g), f.jvp(*operands, *tangents)
    assert_same_leaves(f.value_and_derivative(*operands), (value, slopes))
    for others in zip(*map(laid_out, operands), strict=False):
        assert_same_bits(f(*others), value)
        assert_same_leaves(f.vjp(*others, g), pulled)
    wide = [a.astype(np.int8) if a.dtype != bool else a for a in operands]
    assert_same_bits(f(*wide), value.astype(np.float32))
    assert f(*[a.astype(int) for a in operands]).dtype == np.float64
    assert_same_bits(f(*[a.tolist() for a in operands]), value.astype(np.float64))
    # Outputs: given ones, some of them, arguments themselves, of a wider dtype.
    out = np.full((3, 4), 7, dtype)
    assert f(*operands, out=out) is out
    assert_same_bits(out, value)
    own = [a.copy() for a in operands]
    assert_same_bits(f(*own, out=own[1]), value)
    own, target = [a.copy() for a in operands], np.empty((3, 4))
    assert f.jvp(*own, *tangents, out=target) is target
    assert_same_bits(target, pushed.astype(float))
    outs = (np.empty((3, 4), dtype), *[None] * (len(slopes) - 1))
    for method, more, wanted in (("derivative", (), slopes), ("vjp", (g,), pulled)):
        results = getattr(f, method)(*own, *more, out=outs)
        assert results[0] is outs[0]
        assert_same_leaves(results, wanted)
    for nested in ((out, None), (out, outs), (out, (None, *outs[1:]))):
        y, slopes_too = f.value_and_derivative(*own, out=nested)
        assert y is out
        assert_same_leaves((y, slopes_too), (value, slopes))
    shifted = np.empty(13, dtype)
    shifted[:12] = operands[1].ravel()
    given = [own[0].ravel(), shifted[:12], own[2].ravel()]
    assert_same_bits(f(*given, out=shifted[1:]), value.ravel())
    for bad in (np.empty((4, 3), dtype), np.empty((3, 4), int), [1.0]):
        with pytest.raises((TypeError, ValueError), match=rf"{name}: out"):
            f(*operands, out=bad)
    frozen = np.zeros((3, 4), dtype)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=rf"{name}\.vjp: out\[0\] is read-only"):
        f.vjp(*operands, g, out=(frozen, *[None] * (len(row.moved) - 1)))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(own, operands, strict=True))


@primitives
def test_an_output_may_be_memory_of_the_condition(P: Any) -> None:
    memory = np.zeros(4)
    c = memory.view(bool)[:4]
    c[:] = [True, False, True, False]
    assert P.where(c, 1.0, 2.0, out=memory).tolist() == [1.0, 2.0, 1.0, 2.0]


@primitives
def test_empty_arrays_and_numbers(P: Any) -> None:
    empty = np.zeros((0, 3))
    assert P.where(empty > 0, empty, 1.0).shape == (0, 3)
    gw, gx = P.where.vjp(empty > 0, np.ones(3), 1.0, empty)
    assert (gw.tolist(), float(gx)) == ([0.0, 0.0, 0.0], 0.0)
    for result in leaves(P.clip.value_and_derivative(0.5, 0, 1)):
        assert type(result) is np.float64
    assert type(P.where(True, np.float32(1), 2)) is np.float32
    assert P.take([1.0, 2.0], -1) == 2.0
    assert type(P.take([1.0, 2.0], 0)) is np.float64
    assert P.take(np.ones((2, 0)), [1, 0], axis=0).shape == (2, 0)
    assert P.take.vjp(np.ones((0, 2)), [], np.ones((0, 2)), axis=0).shape == (0, 2)


# --- second order ---------------------------------------------------------------------------------


@choices
@dtypes
@primitives
def test_second_order_of_choices(name: str, dtype: Any, P: Any) -> None:
    """The derivatives of derivatives are 0: what is left is linear in g."""
    rng = np.random.default_rng(5)
    f, row = getattr(P, name), SELECTIONS[name]
    shapes = [(2, 3), (3,), ()]
    operands = [rng.normal(0, 1, shape).astype(dtype) for shape in shapes]
    if name == "where":
        operands[0] = operands[0] > 0
    moved = [operands[k] for k in row.moved]
    for stack in ((), (4,)):
        g, tg = (rng.integers(-9, 9, (*stack, 2, 3)).astype(dtype) for _ in range(2))
        ts = [np.ones_like(a) for a in moved]
        zeros = [np.zeros(stack + a.shape, dtype)[()] for a in moved]
        assert_same_leaves(f.vjp.jvp(*operands, g, *ts, tg), f.vjp(*operands, tg))
        assert_same_leaves(f.vjp.jvp(*operands, g, *ts, None), tuple(zeros))
        assert_same_leaves(f.vjp.jvp(*operands, g, *[None] * len(ts), None), tuple(zeros))
        assert_same_bits(
            f.vjp.jvp(*operands, g, *ts, tg, wrt=row.moved[-1]), f.vjp(*operands, tg)[-1]
        )
        hs = [rng.integers(-9, 9, stack + a.shape).astype(dtype) for a in moved]
        *pulled, of_g = f.vjp.vjp(*operands, g, *hs)
        assert_same_leaves(tuple(pulled), tuple(np.zeros(a.shape, dtype)[()] for a in moved))
        rows = [f.jvp(*operands, *(h[i] for h in hs)) for i in range(*stack)] if stack else None
        assert_same_bits(of_g, f.jvp(*operands, *hs) if rows is None else np.stack(rows))
        inner = sum(np.vdot(h, c) for h, c in zip(hs, f.vjp(*operands, tg), strict=True))
        assert inner == np.vdot(of_g, tg)
        assert_same_bits(f.vjp.vjp(*operands, g, *hs, wrt="g"), of_g)
        out = np.empty_like(of_g)
        assert f.vjp.vjp(*operands, g, *hs, wrt="g", out=out) is out
        nothing = f.vjp.vjp(*operands, g, *[None] * len(hs))
        assert not any(np.any(part) for part in nothing)
    for wrong in (lambda: f.vjp.jvp(*operands, g[0], *ts, np.ones(3, dtype)),):
        with pytest.raises(ValueError, match=rf"{name}\.vjp\.jvp: tg has shape \(3,\)"):
            wrong()
    with pytest.raises(ValueError, match=rf"{name}\.vjp\.vjp: h{list(row.operands)[-1]} has shape"):
        f.vjp.vjp(*operands, g[0], *[None] * (len(hs) - 1), np.ones(7, dtype))


def test_nan_has_no_derivatives_of_any_order() -> None:
    for P in TWINS:
        assert np.isnan(P.clip.second_derivative(NAN, 0.0, 1.0)).all()
        assert np.isnan(P.clip.vjp.jvp(NAN, 0.0, 1.0, 1.0, 1.0, None, None, None)).all()
        assert np.isnan(P.clip.vjp.vjp(NAN, 0.0, 1.0, 1.0, 1.0, None, None)).all()
        assert np.isnan(P.clip.jvp([NAN, 0.5], 0.0, 1.0, None, 1.0, None)).tolist() == [True, False]
        assert P.where.vjp(True, NAN, NAN, INF) == (INF, 0.0)


# --- take -----------------------------------------------------------------------------------------

TAKEN: list[tuple[tuple[int, ...], Any, Any]] = [
    ((5,), [4, 0, -5, 0], None),
    ((5,), 2, 0),
    ((5,), [[1, 1], [-1, 3], [0, 0]], -1),
    ((2, 3), [5, 0, 5, -6], None),
    ((2, 3), [2, 0, 2], 1),
    ((4, 3), [[3, 3, -4]], 0),
    ((2, 3, 4), [[0, 2], [-1, 1]], 1),
    ((2, 3, 4), -1, -2),
    ((2, 3, 4), [], 2),
    ((3, 1), [0, 0, 0], -1),
    ((3,), [2, 2, 0], None),
]
taken = each("case", TAKEN)


def put_by_hand(
    shape: tuple[int, ...], at: Any, axis: Any, g: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the sums of cotangents one by one, in float64 and in the order of the indices."""
    whole = np.arange(math.prod(shape)).reshape(shape)
    places = np.take(whole, np.array(at, int), axis)
    sums = [0.0] * whole.size
    for place, term in zip(places.ravel().tolist(), g.ravel().tolist(), strict=True):
        sums[place] += term
    return np.array(sums).astype(g.dtype).reshape(shape)


@taken
@dtypes
@primitives
def test_take(case: Any, dtype: Any, P: Any) -> None:
    shape, at, axis = case
    rng = np.random.default_rng(6)
    x = rng.normal(0, 1, shape).astype(dtype)
    x.flat[0] = INF
    places = np.array(at, int)
    value = np.take(x, places, axis)
    for given in (at, places, places.astype(np.int32), places.astype(np.int8), places[...]):
        assert_same_bits(P.take(x, given, axis), value)
    for other in laid_out(x):
        assert_same_bits(P.take(other, places, axis), value)
    assert_same_bits(P.take.jvp(x, places, 2 * x, axis), np.take(2 * x, places, axis))
    assert not np.any(P.take.jvp(x, places, None, axis))
    g = (10.0 ** rng.integers(-9, 9, value.shape) * rng.normal(0, 1, value.shape)).astype(dtype)
    pulled = put_by_hand(shape, at, axis, g)
    for given in (at, places, places.astype(np.int32)):
        assert_same_bits(P.take.vjp(x, given, g, axis), pulled)
    assert_same_bits(P.take.vjp(x, places, 1.0, axis), P.take.vjp(x, places, np.ones_like(g), axis))
    stack = np.stack([g, -g, 2 * g])
    stacked = P.take.vjp(x, places, stack, axis)
    assert_same_bits(stacked, np.stack([pulled, put_by_hand(shape, at, axis, -g), 2 * pulled]))
    out = np.empty_like(pulled)
    assert P.take.vjp(x, places, g, axis, out=out) is out
    assert_same_bits(out, pulled)
    out = np.empty_like(value)
    assert P.take(x, places, axis, out=out) is out
    assert_same_bits(out, value)
    if x.size and value.size:  # nothing is written where an index is wrong
        out = np.full_like(pulled, 7)
        wrong = places.copy()
        wrong.flat[-1] = 99
        with pytest.raises(IndexError, match=r"take\.vjp: index 99"):
            P.take.vjp(x, wrong, g, axis, out=out)
        assert (out == 7).all()
    if shape == value.shape:
        own = x.copy()
        assert P.take(own, places, axis, out=own) is own
        assert_same_bits(own, value)
    # Second order.
    assert_same_bits(P.take.vjp.jvp(x, places, g, x, stack[2], axis), 2 * pulled)
    assert not np.any(P.take.vjp.jvp(x, places, g, x, None, axis))
    gx, gg = P.take.vjp.vjp(x, places, stack, stacked, axis)
    assert gx.shape == shape
    assert not np.any(gx)
    assert_same_bits(gg, np.stack([np.take(h, places, axis) for h in stacked]))
    assert_same_bits(P.take.vjp.vjp(x, places, g, pulled, axis, wrt="g"), gg[0])
    # The Jacobian.
    J = P.take.jacobian(x, at, axis)
    assert (J.input_shape, J.output_shape) == (shape, np.shape(value))
    whole = np.arange(float(math.prod(shape))).reshape(shape)
    assert_same_bits(J.jvp(whole.astype(dtype)), np.take(whole, places, axis).astype(dtype))
    np.testing.assert_array_equal(J.todense() @ whole.ravel(), np.take(whole, places, axis).ravel())


@primitives
@dtypes
def test_take_of_much(P: Any, dtype: Any) -> None:
    """More than one thread takes, whose number does not matter."""
    rng = np.random.default_rng(7)
    for shape, count, axis in (((20_000,), 40_000, 0), ((3, 20, 900), 30, 1), ((1500, 20), 31, 1)):
        x = rng.normal(0, 1, shape).astype(dtype)
        places = rng.integers(-shape[axis], shape[axis], count)
        value = np.take(x, places, axis)
        g = rng.normal(0, 1, value.shape).astype(dtype)
        pulled = put_by_hand(shape, places, axis, g)
        for n in (1, 3) if P.where._engine.is_native else (1,):
            with pb.threads(n):
                assert_same_bits(P.take(x, places, axis), value)
                assert_same_bits(P.take.vjp(x, places, g, axis), pulled)


@primitives
def test_indices_out_of_range(P: Any) -> None:
    x = np.arange(12.0).reshape(3, 4)
    for at, index, axis, extent in (
        (np.array([0, 3, 9]), 3, 0, 3),
        ([1, -5], -5, 1, 4),
        (np.array([12], np.uint64), 12, None, 12),
        (2**40, 2**40, 1, 4),
        (np.array([-(2**63)]), -(2**63), None, 12),
        (np.array([2**64 - 1], np.uint64), 2**64 - 1, 0, 3),
    ):
        g = np.ones(np.shape(np.take(x, np.zeros_like(at), axis)))
        text = f": index {index} is out of range for axis {axis}, which has extent {extent}$"
        for op, call in (
            ("take", lambda at=at, axis=axis: P.take(x, at, axis)),
            ("take.jvp", lambda at=at, axis=axis: P.take.jvp(x, at, x, axis)),
            ("take.vjp", lambda at=at, axis=axis, g=g: P.take.vjp(x, at, g, axis)),
            ("take.jacobian", lambda at=at, axis=axis: P.take.jacobian(x, at, axis)),
            ("take.vjp.jvp", lambda at=at, axis=axis, g=g: P.take.vjp.jvp(x, at, g, x, g, axis)),
            ("take.vjp.vjp", lambda at=at, axis=axis, g=g: P.take.vjp.vjp(x, at, g, x, axis)),
        ):
            with pytest.raises(IndexError, match=f"^{op}{text}"):
                call()
    with pytest.raises(IndexError, match="extent 0"):
        P.take(np.ones((3, 0)), [0], axis=1)


@pytest.mark.native
def test_indices_that_change_meanwhile() -> None:
    """Another thread makes them wrong and right again: a result or an IndexError, never a crash."""
    x, places = np.ones((1000, 2)), np.zeros(20_000, np.int64)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            places[::7] = 2**60
            places[::7] = 0

    thread = threading.Thread(target=change)
    thread.start()
    outcomes = set()
    try:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            for call in (
                lambda: pb.take(x, places, axis=0),
                lambda: pb.take.vjp(x, places, np.ones((20_000, 2)), axis=0),
            ):
                try:
                    assert call().shape in ((20_000, 2), (1000, 2))
                    outcomes.add("result")
                except IndexError:
                    outcomes.add("error")
    finally:
        stop.set()
        thread.join()
    assert outcomes


# --- wrong arguments ------------------------------------------------------------------------------


@primitives
def test_wrong_arguments(P: Any) -> None:
    x = np.ones((2, 3))
    wrong: list[tuple[Any, type[Exception], str]] = [
        (lambda: P.where(None, 1.0, 2.0), TypeError, r"^where: argument c must be numbers"),
        (lambda: P.where(["a"], 1.0, 2.0), TypeError, r"^where: argument c has dtype"),
        (lambda: P.where([True], None, 2.0), TypeError, r"^where: argument w"),
        (lambda: P.where(x > 0, 1j, 2.0), TypeError, r"^where: argument w has dtype complex128"),
        (
            lambda: P.where([True] * 2, x, 1.0),
            ValueError,
            r"^where: c has shape \(2,\), w .* broad",
        ),
        (lambda: P.where.vjp(x > 0, x, x, None), TypeError, r"^where\.vjp: argument g"),
        (
            lambda: P.where.vjp(x > 0, x, x, x[0]),
            ValueError,
            r"^where\.vjp: g has shape \(3,\), wh",
        ),
        (lambda: P.where.vjp(x > 0, x, x, x, wrt="c"), ValueError, r"^where\.vjp: wrt must be 'w'"),
        (lambda: P.where.vjp(x > 0, x, x, x, wrt=0), ValueError, r"^where\.vjp: wrt must be 'w'"),
        (lambda: P.where.vjp(x > 0, x, x, x, wrt=()), ValueError, r"^where\.vjp: wrt must be 'w'"),
        (lambda: P.where.jvp(x > 0, x, 1.0, x[0], 1.0), ValueError, r"^where\.jvp: tw has shape"),
        (lambda: P.where(x > 0, np.ma.masked_less(x, 2), x), TypeError, r"^where: w is a masked"),
        (lambda: P.where(np.ma.masked_less(x, 2), x, x), TypeError, r"^where: c is a masked"),
        (lambda: P.where(x > 0, x), TypeError, r"where\(\) missing 1 required"),
        (lambda: P.clip(None, 0, 1), TypeError, r"^clip: argument x"),
        (lambda: P.clip(x, 10**400, 1), TypeError, r"^clip: argument lo is an integer too large"),
        (lambda: P.clip(x, [0, 1], 1), ValueError, r"^clip: x has shape \(2, 3\), lo has shape"),
        (lambda: P.clip(x, "0", 1), TypeError, r"^clip: argument lo must be numbers"),
        (lambda: P.clip.vjp(x, 0, 1, x, wrt="y"), ValueError, r"^clip\.vjp: wrt must be 'x', 'lo'"),
        (lambda: P.take(x, [0.5]), TypeError, r"^take: indices must be integers, not of dtype f"),
        (lambda: P.take(x, [True]), TypeError, r"^take: indices must be integers, not of dtype bo"),
        (lambda: P.take(x, None), TypeError, r"^take: argument indices"),
        (lambda: P.take(x, [0], axis=2), IndexError, r"^take: axis 2 is out of bounds"),
        (lambda: P.take(x, [0], axis=-(10**30)), ValueError, r"^take: axis -\d+ is out of bounds"),
        (lambda: P.take(x, [0], axis="0"), TypeError, r"^take: axis must be an integer or None"),
        (lambda: P.take(x, [0], axis=(0,)), TypeError, r"^take: axis must be an integer or None"),
        (
            lambda: P.take.vjp(x, [0], x, axis=0),
            ValueError,
            r"^take\.vjp: g has shape \(2, 3\), wh",
        ),
        (lambda: P.take.jvp(x, [0], x[0]), ValueError, r"^take\.jvp: t has shape \(3,\), x has"),
        (lambda: P.take.vjp.vjp(x, [0], 1.0, x[0]), ValueError, r"^take\.vjp\.vjp: h has shape"),
        (
            lambda: P.take.vjp.vjp(x, [0], 1.0, x, wrt="indices"),
            ValueError,
            r"wrt must be 'x', 'g'",
        ),
    ]
    for call, error, text in wrong:
        with pytest.raises(error, match=text):
            call()


# --- with the rest --------------------------------------------------------------------------------


@choices
@primitives
def test_jacobians_are_the_derivatives(name: str, P: Any) -> None:
    rng = np.random.default_rng(8)
    f, row = getattr(P, name), SELECTIONS[name]
    operands = [rng.normal(0, 1, shape) for shape in ((2, 3), (3,), ())]
    if name == "where":
        operands[0] = operands[0] > 0
    g = rng.integers(-9, 9, (2, 3)).astype(float)
    for J, pulled, k in zip(f.jacobian(*operands), f.vjp(*operands, g), row.moved, strict=True):
        assert J.input_shape == operands[k].shape
        np.testing.assert_array_equal(J.vjp(g), pulled)
        one = f.jacobian(*operands, wrt=k)
        np.testing.assert_array_equal(one.todense(), J.todense())


@primitives
def test_in_chains(P: Any) -> None:
    x, c = np.array([[-2.0, 0.5, 3.0], [4.0, -1.0, 0.0]]), np.array([True, False, True])
    lo, out = np.array([[-1.0], [0.0]]), np.array([5.0, 6.0, 7.0])
    f = pb.chain(
        (P.where, c, pb.arg, out),
        (P.clip, pb.arg, lo, 3.5),
        P.square,
        (P.take, pb.arg, [2, 0, 2], {"axis": 1}),
        (P.sum, pb.arg),
    )

    def by_hand(x: Any, lo: Any, out: Any) -> Any:
        clipped = np.clip(np.where(c, x, out), lo, 3.5)
        return np.sum(np.square(clipped)[:, [2, 0, 2]])

    assert f(x) == by_hand(x, lo, out)
    gx, gout, glo, ghi = f.vjp(x, 1.0, wrt="all")
    assert gx.tolist() == [[0.0, 0.0, 12.0], [0.0, 0.0, 0.0]]
    assert gout.tolist() == [0.0, 0.0, 0.0]
    assert glo.tolist() == [[-2.0], [0.0]]
    assert ghi == 7.0
    assert_same_bits(f.grad(x), gx)
    assert f.jvp(x, np.ones_like(x)) == 12.0
    np.testing.assert_array_equal(f.jacobian(x).todense(), gx.reshape(1, -1))
    assert pickle.loads(pickle.dumps(f))(x) == f(x)
    both = pb.chain((P.where, c, pb.arg, pb.arg))
    assert_same_bits(both.vjp(x, x), x)
    half = pb.chain((P.clip, pb.arg, None, 1.0))
    assert_same_leaves(
        half.vjp(x, x, wrt="all"), (np.where(x < 1, x, 0.0), np.where(x < 1, 0.0, x).sum())
    )
    for step in ((P.where, pb.arg, x, x), (P.take, x, pb.arg)):
        with pytest.raises(ValueError, match="has no derivative by operand"):
            pb.chain(step)
    with pytest.raises(ValueError, match="where takes 3 operands, not 2"):
        pb.chain((P.where, c, pb.arg))


@primitives
@each("name", SELECTIONS)
def test_methods_pickle(P: Any, name: str) -> None:
    f = getattr(P, name)
    for thing in (f.vjp.jvp, f.vjp.vjp):
        restored = pickle.loads(pickle.dumps(thing))
        assert restored == thing
        assert thing.__doc__


@primitives
def test_special_values_survive_where_they_are_not_chosen(P: Any) -> None:
    """What one writes where for: a formula that fails on one side."""
    x = np.array([-1.0, 0.0, 4.0])
    with np.errstate(all="ignore"):
        f = pb.chain((P.where, x > 0, pb.arg, 1.0), P.log)
    assert_same_bits(f.vjp(x, np.ones(3)), np.array([0.0, 0.0, 0.25]))
    special = oracles.special_values(np.dtype(float))
    assert_same_bits(P.where.vjp(False, special, 0.0, special, wrt="w"), np.zeros(special.size))

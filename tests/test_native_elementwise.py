"""Native elementwise kernels on every target: against the twins, layouts, memory, accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracles
import pullback as pb
import pytest
from guarded import Guarded
from oracles import assert_same_bits
from protocol import (
    CALLS,
    Call,
    arguments,
    assert_close_in_ulp,
    assert_same_leaves,
    by_name,
    dtypes,
    each,
    leaves,
    of_every,
    on_every_target,
    out_argument,
)
from pullback.tables.elementwise import OPS, REFERENCE_MAX_ULP, OpRow

LANES = 16  # of the widest vector
SIZES = (*range(2 * LANES + 2), 63, 64, 65)
LONG_SIZES = (127, 129, 511, 512, 513, 1023, 1025)  # around unrolled bodies and strided blocks

rows = pytest.mark.parametrize("row", OPS.values(), ids=OPS.keys())
calls = of_every(CALLS, by="op")

# --- against the twins ----------------------------------------------------------------------------


def crossed(call: Call, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """Return all combinations of special values, and as many ordinary points."""
    special = oracles.special_values(dtype)
    if call.nin <= 3:
        grid = [a.ravel() for a in np.meshgrid(*[special] * call.nin)]
    else:
        rng = np.random.default_rng(5)
        grid = [rng.choice(special, 10_000) for _ in range(call.nin)]
    plain = arguments(call, dtype, 4000)
    return tuple(np.concatenate(pair) for pair in zip(grid, plain, strict=True))


def slopes(row: OpRow, *at: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the native derivatives, one per operand."""
    result = getattr(pb, row.name).derivative(*at)
    return result if isinstance(result, tuple) else (result,)


def scaled(row: OpRow, slope: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return what the product of a derivative with a (co)tangent is, to the bit."""
    with np.errstate(all="ignore"):
        product = factor * slope
    return np.where(slope == 0, slope.dtype.type(0), product) if row.masked else product


@calls
@on_every_target
@dtypes
def test_agrees_with_the_twin(call: Call, dtype: np.dtype) -> None:
    """Values and derivatives to within both bounds; products are derivatives times factors."""
    at = crossed(call, dtype)
    result = list(leaves(call.native()(*at)))
    assert all(leaf.dtype == dtype for leaf in result)
    row = call.row
    operands, factors = at[: row.nin], at[row.nin :]
    if call.method == "vjp":
        for leaf, slope in zip(result, slopes(row, *operands), strict=True):
            assert_same_bits(leaf, scaled(row, slope, factors[0]))
    elif call.method == "jvp":
        terms = list(map(scaled, [row] * row.nin, slopes(row, *operands), factors))
        with np.errstate(all="ignore"):
            assert_same_bits(result[0], sum(terms[1:], terms[0]))
    else:
        with np.errstate(all="ignore"):
            twins = list(leaves(call.twin()(*at)))
        bounds = {
            "value": row.max_ulp[:1],
            "derivative": row.max_ulp[1:2] * row.nin,
            "value_and_derivative": row.max_ulp[:1] + row.max_ulp[1:2] * row.nin,
            "second_derivative": row.max_ulp[2:] * call.nout,
        }[call.method]
        scales = [0] * len(bounds)
        if row.ulp_of_operands and call.method in ("value", "value_and_derivative"):
            scales[0] = np.max(np.abs(operands), axis=0)
        judged = list(zip(result, twins, bounds, scales, strict=True))
        if row.largest_term:  # near a root all may differ
            first = {"derivative": 1, "second_derivative": 1 + row.nin}.get(call.method, 0)
            judged = [
                one for one, t in zip(judged, row.largest_term[first:], strict=False) if not t
            ]
        for leaf, twin, bound, scale in judged:
            assert_close_in_ulp(leaf, twin, bound + REFERENCE_MAX_ULP, at, scale)


@rows
@on_every_target
@dtypes
def test_value_and_derivative_are_the_same_bits_together(row: OpRow, dtype: np.dtype) -> None:
    f = getattr(pb, row.name)
    at = crossed(Call(row.name, "value", row.nin, 1), dtype)
    y, dy = f.value_and_derivative(*at)
    assert_same_leaves(y, f(*at))
    assert_same_leaves(dy, f.derivative(*at))
    jacobians = f.jacobian(*at)
    for J, slope in zip(leaves(jacobians), leaves(dy), strict=True):
        assert_same_bits(J.diagonal(), slope)


# --- against mathematics --------------------------------------------------------------------------


@rows
@on_every_target
@dtypes
def test_golden_points(row: OpRow, dtype: np.dtype) -> None:
    f = getattr(pb, row.name)
    for point, shape in itertools.product(row.special, ((), (1,), (3,), (37,))):
        at = [np.full(shape, x, dtype) for x in point.at]
        expected = (point.value, *point.derivative)
        for leaf, value in zip(leaves(f.value_and_derivative(*at)), expected, strict=True):
            assert_same_bits(leaf, np.full(shape, value, dtype))
        assert_same_bits(f(*at), np.full(shape, point.value, dtype))


@rows
@on_every_target
@dtypes
def test_masked_products_ignore_the_factor(row: OpRow, dtype: np.dtype) -> None:
    """A masked product is +0 where the derivative is; any other is the plain product."""
    f = getattr(pb, row.name)
    bad = np.array([np.nan, np.inf, -np.inf, -1, -0.0], dtype)
    for point in row.special:
        at = [np.full(bad.shape, x, dtype) for x in point.at]
        for gradient, d in zip(leaves(f.vjp(*at, bad)), point.derivative, strict=True):
            assert_same_bits(gradient, scaled(row, np.full(bad.shape, d, dtype), bad))


# --- every layout gives the bits of the contiguous one --------------------------------------------


def layouts(itemsize: int) -> dict[str, Any]:
    """Return functions that give a view of n elements into fresh memory, and that memory."""

    def offset(elements: int, excess_bytes: int = 0, stride: int = 1) -> Any:
        def build(n: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
            span = (n - 1) * abs(stride) + 1 if n else 0
            memory = np.full((elements + span + 3) * itemsize + excess_bytes, 0xEE, np.uint8)
            start = elements * itemsize + excess_bytes
            view = memory[start : start + span * itemsize].view(dtype)[::stride]
            assert view.shape == (n,)
            return view, memory

        return build

    return {
        "contiguous": offset(0),
        "offset 1": offset(1),
        "offset 5": offset(5),
        "offset 15": offset(15),
        "stride 2": offset(1, stride=2),
        "stride 3": offset(0, stride=3),
        "stride -1": offset(2, stride=-1),
        "stride -2": offset(0, stride=-2),
        "misaligned": offset(1, excess_bytes=1),
        "misaligned, stride 2": offset(0, excess_bytes=itemsize // 2, stride=2),
    }


def filled(build: Any, values: np.ndarray) -> np.ndarray:
    view, _ = build(values.size, values.dtype)
    view[...] = values
    return view


@calls
@dtypes
def test_layouts(call: Call, dtype: np.dtype) -> None:
    """Neither size, offset, stride nor misalignment changes bits; only `out` is written."""
    check_layouts(call, dtype)


# Strided loops are one template: a few will do for every target.
@on_every_target
@each("call", [call for call in CALLS if call.op in ("tanh", "relu", "power")], by_name)
@dtypes
def test_layouts_on_every_target(call: Call, dtype: np.dtype) -> None:
    check_layouts(call, dtype)


def check_layouts(call: Call, dtype: np.dtype) -> None:
    pool = arguments(call, dtype, SIZES[-1] + 5)
    f = call.native()
    expected = list(leaves(f(*pool)))
    builders = list(layouts(dtype.itemsize).values())
    turn = itertools.cycle(range(len(builders)))
    background = np.frombuffer(b"\xee" * dtype.itemsize, dtype)[0]
    for n, layout in itertools.product(SIZES, range(len(builders))):
        start = n % 5
        part = slice(start, start + n)
        # All operands alike, but one of them that takes another turn each time.
        chosen = [layout] * (call.nin + call.nout)
        chosen[(n + layout) % len(chosen)] = next(turn)
        given = [filled(builders[c], x[part]) for c, x in zip(chosen, pool, strict=False)]
        outs, memories = zip(*(builders[c](n, dtype) for c in chosen[call.nin :]), strict=True)
        returned = f(*given, out=out_argument(list(outs)))
        for out, leaf, wanted in zip(outs, leaves(returned), expected, strict=True):
            assert leaf is out
            assert_same_bits(out, wanted[part])
        for x, wanted in zip(given, pool, strict=True):
            assert_same_bits(x, wanted[part])
        for out, memory in zip(outs, memories, strict=True):
            out[...] = background  # and so all of it is, unless the call wrote beside `out`
            assert memory.tobytes() == b"\xee" * memory.size


@calls
@dtypes
def test_strided_outputs_touch_no_gap(call: Call, dtype: np.dtype) -> None:
    pool = arguments(call, dtype, 1100)
    f = call.native()
    expected = list(leaves(f(*pool)))
    sentinel = dtype.type(-77)
    for n, stride in itertools.product((1, 7, 33, 513, 1100), (2, 3, -2)):
        memories = [np.full(n * abs(stride) + 2, sentinel) for _ in range(call.nout)]
        outs = [m[1:-1][::stride] for m in memories]
        f(*(x[:n] for x in pool), out=out_argument(outs))
        for memory, out, wanted in zip(memories, outs, expected, strict=True):
            assert_same_bits(np.ascontiguousarray(out), wanted[:n])
            out[...] = sentinel
            assert (memory == sentinel).all()


@calls
@dtypes
def test_without_out(call: Call, dtype: np.dtype) -> None:
    """Results that the call allocates, by whatever path, hold the same bits."""
    pool = arguments(call, dtype, LONG_SIZES[-1] + 3)
    f = call.native()
    expected = list(leaves(f(*pool)))
    for n in (*SIZES, *LONG_SIZES):
        for part in (slice(3, 3 + n), slice(2, 2 + n)):
            for leaf, wanted in zip(leaves(f(*(x[part] for x in pool))), expected, strict=True):
                assert_same_bits(leaf, wanted[part])
                assert leaf.flags.c_contiguous
                assert leaf.flags.writeable
        part = slice(3 + n, 2, -1)
        for leaf, wanted in zip(leaves(f(*(x[part] for x in pool))), expected, strict=True):
            assert_same_bits(leaf, wanted[part])


@calls
@on_every_target
@dtypes
def test_scalars_are_lanes(call: Call, dtype: np.dtype) -> None:
    """A NumPy scalar, a 0-d array and one element of a long array are computed alike."""
    pool = arguments(call, dtype, 60, seed=1)
    f = call.native()
    expected = list(leaves(f(*pool)))
    for i in range(60):
        for at in ([x[i] for x in pool], [x[i : i + 1].reshape(()) for x in pool]):
            for leaf, wanted in zip(leaves(f(*at)), expected, strict=True):
                assert type(leaf) is dtype.type
                assert_same_bits(np.asarray(leaf), wanted[i].reshape(()))


@calls
@dtypes
def test_broadcast_operands(call: Call, dtype: np.dtype) -> None:
    """An operand of stride zero gives the bits of its repetition."""
    f = call.native()
    for n in (*SIZES, *LONG_SIZES):
        pool = arguments(call, dtype, n + 1, seed=2)
        for k in range(call.nin):
            given = [x[1:] for x in pool]
            given[k] = np.broadcast_to(pool[k][0], n)
            expected = f(*map(np.ascontiguousarray, given))
            assert_same_leaves(f(*given), expected)
            outs = [np.full(n, np.nan, dtype) for _ in range(call.nout)]
            f(*given, out=out_argument(outs))
            for out, wanted in zip(outs, leaves(expected), strict=True):
                assert_same_bits(out, wanted)


@calls
@dtypes
def test_out_may_be_an_operand(call: Call, dtype: np.dtype) -> None:
    f = call.native()
    for n in (*SIZES, *LONG_SIZES):
        pool = arguments(call, dtype, n)
        expected = list(leaves(f(*pool)))
        for order in itertools.permutations(range(call.nin), min(call.nin, call.nout)):
            given = [x.copy() for x in pool]
            outs = [given[k] for k in order]
            outs += [np.full(n, np.nan, dtype) for _ in range(call.nout - len(outs))]
            f(*given, out=out_argument(outs))
            for out, wanted in zip(outs, expected, strict=True):
                assert_same_bits(out, wanted)


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guards() -> Iterator[list[Guarded]]:
    """Give memory between pages that may not be touched, one block for each operand."""
    blocks = [Guarded() for _ in range(5)]
    yield blocks
    for block in blocks:
        block.close()


@calls
@on_every_target
@dtypes
def test_stays_between_guard_pages(call: Call, dtype: np.dtype, guards: list[Guarded]) -> None:
    """Neither reads nor writes past either end, contiguous or strided."""
    pool = arguments(call, dtype, SIZES[-1])
    f = call.native()
    expected = list(leaves(f(*pool)))
    for n, at_end, stride in itertools.product(SIZES, (True, False), (1, 2, -1)):
        arrays = [block.array(n, dtype, at_end=at_end, stride=stride) for block in guards]
        given, outs = arrays[: call.nin], arrays[call.nin : call.nin + call.nout]
        for x, values in zip(given, pool, strict=True):
            x[...] = values[:n]
        for out in outs:
            out[...] = np.nan
        f(*given, out=out_argument(outs))
        for out, wanted in zip(outs, expected, strict=True):
            assert_same_bits(np.ascontiguousarray(out), wanted[:n])
        if stride == 1:
            for leaf, wanted in zip(leaves(f(*given)), expected, strict=True):
                assert_same_bits(leaf, wanted[:n])

"""Whole arrays of any number type, layout and repetition, and cotangents summed on the way.

Exact references: integers small enough that no operation rounds, or long doubles. Most arrays are
just long enough for what short ones do not reach: kernels that read any layout themselves, blocks
and slabs, several threads, streamed stores. Tests without the marker `native` hold for the NumPy
backend as well.
"""

from __future__ import annotations

import gc
import itertools
import signal
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pullback as pb
import pytest
from guarded import Guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from oracles import assert_same_bits
from protocol import (
    CALLS,
    Call,
    arguments,
    assert_same_leaves,
    by_name,
    each,
    leaves,
    on_any_target,
    ordinary,
    out_argument,
)
from pullback.tables.elementwise import OPS

native = pytest.mark.native
# What kernels are handed does not depend on the operation: these stand for all.
SOME = [call for call in CALLS if call.op in ("tanh", "relu", "multiply", "maximum")]
calls = pytest.mark.parametrize("call", SOME, ids=by_name)

THRESHOLD = 32_768  # elements from which kernels read any layout themselves
N = THRESHOLD + 257

KINDS = [
    np.dtype(code)
    for code in ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]
]
SINGLE = frozenset(["?", "i1", "u1", "i2", "u2", "f2", "f4"])  # what float32 holds
BINARY = [name for name, row in OPS.items() if row.nin == 2]


def code(kind: np.dtype) -> str:
    """Return a dtype's name without its byte order."""
    return "?" if kind.kind == "b" else kind.str[1:]


def computed_in(*kinds: np.dtype) -> np.dtype:
    """Return the dtype of results."""
    return np.dtype(np.float32 if all(code(kind) in SINGLE for kind in kinds) else np.float64)


# --- layouts --------------------------------------------------------------------------------------


def misaligned(x: np.ndarray) -> np.ndarray:
    """Return a copy that begins at an odd address."""
    memory = np.empty(x.nbytes + 17, np.uint8)
    start = 1 if memory.ctypes.data % 2 == 0 else 2
    copy = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def swapped(x: np.ndarray) -> np.ndarray:
    """Return a copy in the other byte order."""
    return x.astype(x.dtype.newbyteorder())


def sliced(x: np.ndarray) -> np.ndarray:
    """Return a copy with gaps along every axis."""
    wide = np.zeros([2 * n + 1 for n in x.shape], x.dtype)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
    view[...] = x
    return view


def backwards(x: np.ndarray) -> np.ndarray:
    """Return a copy with negative strides."""
    back = (slice(None, None, -1),) * x.ndim
    return x[back].copy()[back]


def rolled(x: np.ndarray) -> np.ndarray:
    """Return a copy with the last axis outermost in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1) if x.ndim else x.copy()


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda x: x.copy(order="C"),
    "F": lambda x: x.copy(order="F"),
    "rolled": rolled,
    "backwards": backwards,
    "sliced": sliced,
    "swapped": swapped,
    "misaligned": misaligned,
    "misaligned and swapped": lambda x: misaligned(swapped(x)),
    "sliced rows": lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 3)])[..., : x.shape[-1]],
    "half backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def assert_agree(actual: Any, desired: Any) -> None:
    """Fail unless results for two layouts have the same bits, or nearly, from NumPy's own loops."""
    if pb.backend() == "native":
        assert_same_leaves(actual, desired)
        return
    for one, other in zip(leaves(actual), leaves(desired), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=8 * np.finfo(one.dtype).eps)


def frozen(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Make arrays read-only."""
    for array in arrays:
        array.flags.writeable = False
    return arrays


# --- number types ---------------------------------------------------------------------------------


def every_kind_of(kind: np.dtype, n: int = N) -> np.ndarray:
    """Return random bit patterns, the ends of the range, and what lies between two float64."""
    rng = np.random.default_rng(7)
    if kind.kind == "b":
        return rng.integers(0, 2, n).astype(bool)
    if kind == np.float16:
        return np.resize(np.arange(2**16, dtype=np.uint16), max(n, 2**16)).view(np.float16)
    bits = rng.integers(0, 256, n * kind.itemsize, np.uint8).view(kind)
    if kind.kind in "iu":
        info = np.iinfo(kind)
        ends = np.array([info.min, info.max, info.max - 1, info.min + 1, 0], kind)
        bits[: ends.size] = ends
        if kind.itemsize == 8:
            halves = np.uint64(2**62) + np.arange(-3000, 3000, dtype=np.int64).astype(np.uint64)
            bits[5 : 5 + halves.size] = halves.astype(kind)
            if kind == np.uint64:
                high = np.uint64(2**64 - 1) - np.arange(6000, dtype=np.uint64)
                bits[6005 : 6005 + high.size] = high
    return bits


@layouts
@each("kind", KINDS, label=code)
def test_every_number_is_read_as_it_is(kind: np.dtype, layout: Any) -> None:
    """Rounded to nearest where float64 does not hold it; subnormals, infinities and NaN kept."""
    values = every_kind_of(kind)
    with np.errstate(all="ignore"):
        wanted = values.astype(computed_in(kind))
    (x,) = frozen(layout(values))
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(pb.identity(x), wanted)
        assert_same_bits(pb.identity.vjp(np.float32(0), x[: x.size]), wanted)
        gw, gx = pb.add.vjp(np.zeros((), np.float32), np.zeros(x.size, np.float32), x)
    assert_same_bits(gx, wanted)
    assert gw.dtype == wanted.dtype
    assert x.tobytes() == layout(values).tobytes()


def test_uint64_is_rounded_once() -> None:
    """Ties of float64 just above 2^63 go to even, and one more goes up."""
    base, ulp = 2**63, 2**11
    numbers = [base + k * ulp + d for k in range(8) for d in (ulp // 2 - 1, ulp // 2, ulp // 2 + 1)]
    x = np.resize(np.array(numbers, np.uint64), N)
    assert_same_bits(pb.identity(x), np.resize(np.array(list(map(float, numbers))), N))


@each("kinds", itertools.product(KINDS, repeat=2))
def test_mixed_number_types(kinds: tuple[np.dtype, np.dtype]) -> None:
    """One product of the operands, each converted to the common dtype."""
    rng = np.random.default_rng(3)
    w, x = (rng.integers(0, 2 if k.kind == "b" else 100, N).astype(k) for k in kinds)
    other = swapped(w)[::-1]
    wanted = (w[::-1].astype(float) * x).astype(computed_in(*kinds))
    assert_same_bits(pb.multiply(other, x), wanted)
    (out,) = [np.full(N, np.nan, wanted.dtype)]
    assert pb.multiply(other, x, out=out) is out
    assert_same_bits(out, wanted)


@pytest.mark.parametrize("number", [2, 0.1, -3.5, True])
def test_python_scalars_are_weak(number: Any) -> None:
    x = ordinary(CALLS[0], np.float32, N)[0]
    for result in (pb.multiply(x, number), pb.multiply(number, x)):
        assert_same_bits(result, x * np.float32(number))
    halves = x.astype(np.float16)
    assert pb.multiply(halves, number).dtype == np.float32
    gw, gx = pb.multiply.vjp(number, x, x)
    assert gw.dtype == gx.dtype == np.float32
    assert_same_bits(gx, x * np.float32(number))
    assert type(gw) is np.float32


# --- layouts of all calls -------------------------------------------------------------------------

SHAPES = [(N,), (181, 183), (3, 11000), (11000, 3), (4, 3, 7, 2, 200), (2,) * 8 + (131,)]


@calls
def test_layouts_do_not_matter(call: Call) -> None:
    """Operands of different layouts together give the bits of C-contiguous ones."""
    builders = itertools.cycle(LAYOUTS.values())
    for i, shape in enumerate(SHAPES):
        dtype = (np.float64, np.float32)[i % 2]
        at = ordinary(call, dtype, shape)
        wanted = call.native()(*at)
        for _ in range(3):
            views = frozen(*(next(builders)(x) for x in at))
            assert_agree(call.native()(*views), wanted)
        next(builders)


def repeated(x: np.ndarray, axes: int) -> np.ndarray:
    """Return one element along every axis whose bit is set."""
    return x[tuple(slice(0, 1) if axes >> a & 1 else slice(None) for a in range(x.ndim))]


@native
def test_sixty_four_axes() -> None:
    shape = (2,) * 15 + (1,) * 49
    x = np.arange(2.0**15).reshape(shape)
    y = repeated(x, 0b10101)
    assert_same_bits(pb.subtract(x, y), x - y)
    assert_same_bits(pb.subtract(x.T, y.T), x.T - y.T)
    assert pb.subtract(x.T, y.T).strides == (x.T - y.T).strides
    gw, gx = pb.multiply.vjp(x, y, x)
    assert_same_bits(gw, x * y)
    assert_same_bits(gx, np.sum(x * x, axis=(0, 2, 4), keepdims=True))


def sums(call: Call) -> bool:
    """Tell whether a call sums over repetitions."""
    return call.method == "vjp" and call.row.nin == 2


@pytest.mark.parametrize("call", [c for c in SOME if c.nin > 1 and not sums(c)], ids=by_name)
def test_repetition_does_not_matter(call: Call) -> None:
    """An operand with axes of one element, or of stride zero, acts as its repetition."""
    for shape, masks in (
        ((180, 190), (0b01, 0b10, 0, 0b11)),
        ((2, 3, 40, 150), (0b1010, 0b0101, 0b0011, 0b1100)),
        ((17000, 2), (0b01, 0b10, 0b00, 0b01)),
    ):
        full = ordinary(call, np.float64, shape)
        for turn in range(2):
            at = call.fitting([repeated(x, masks[(k + turn) % 4]) for k, x in enumerate(full)])
            whole = [np.ascontiguousarray(np.broadcast_to(x, shape)) for x in at]
            wanted = call.native()(*whole)
            if np.broadcast_shapes(*(x.shape for x in at)) == shape:
                assert_agree(call.native()(*at), wanted)
            assert_agree(call.native()(*(np.broadcast_to(x, shape) for x in at)), wanted)


@pytest.mark.parametrize("length", [2, 7, 100, 511, 512, 513])
def test_rows_beside_arrays(length: int) -> None:
    """A row is repeated, whatever it consists of; blocks and tasks begin anywhere in it."""
    rows = 4 * THRESHOLD // length + 3
    for single, layout in itertools.product((True, False), LAYOUTS.values()):
        x = np.arange(rows * length).reshape(rows, length).astype("f4" if single else "f8")
        for kind in ("f4", "f2", "u1") if single else ("f8", "f4", "i8"):
            w = layout((np.arange(length) % 7 + 1).astype(kind))
            y, (dw, dx) = pb.multiply.value_and_derivative(w, x)
            for actual, desired in ((y, x * w.astype(x.dtype)), (dw, x), (dx, x * 0 + w)):
                assert_same_bits(actual, desired.astype(x.dtype))


@native
@pytest.mark.parametrize("shape", [(N,), (180, 190), (33, 7, 150), (3, 5, 7, 11, 31)], ids=str)
def test_results_lie_in_memory_as_numpys_do(shape: tuple[int, ...]) -> None:
    builders = [*LAYOUTS.values(), lambda x: repeated(x, 1), lambda x: x.T.copy().T]
    x = np.ones(shape)
    for left, right in itertools.product(builders, repeat=2):
        views = left(x), right(x)
        if np.broadcast_shapes(*(view.shape for view in views)) != shape:
            continue
        strides = np.add(*views).strides
        assert pb.add(*views).strides == strides
        for leaf in leaves(pb.add.value_and_derivative(*views)):
            assert leaf.strides == strides
        assert pb.exp(views[0]).strides == np.exp(views[0]).strides
        same = [view for view in views if view.shape == shape]
        if len(same) == 2:
            for leaf in pb.add.vjp(*views, views[0]):
                assert leaf.strides == strides


# --- sums -----------------------------------------------------------------------------------------


def cotangents(
    w: np.ndarray, x: np.ndarray, g: np.ndarray, dtype: Any = np.int64
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cotangents of a product, computed in `dtype` by NumPy alone."""
    value = np.broadcast_shapes(w.shape, x.shape)
    batch = g.shape[: g.ndim - len(value)]
    results = []
    for operand, factor in ((w, x), (x, w)):
        terms = g.astype(dtype) * factor.astype(dtype)
        own = (1,) * (len(value) - operand.ndim) + operand.shape
        axes = tuple(len(batch) + a for a, n in enumerate(own) if n == 1 and value[a] != 1)
        results.append(np.sum(terms, axis=axes).reshape(batch + operand.shape))
    return results[0], results[1]


def check_exactly(w: np.ndarray, x: np.ndarray, g: np.ndarray) -> None:
    """Compare with integer arithmetic: small integers in, so that nothing rounds."""
    dtype = computed_in(w.dtype, x.dtype, g.dtype)
    wanted = cotangents(w, x, g)
    frozen(w, x, g)
    for actual, exact in zip(pb.multiply.vjp(w, x, g), wanted, strict=True):
        assert actual.dtype == dtype
        assert actual.shape == exact.shape
        np.testing.assert_array_equal(actual, exact)
    outs = tuple(np.full(exact.shape, np.nan, dtype) for exact in wanted)
    returned = pb.multiply.vjp(w, x, g, out=outs)
    for actual, out, exact in zip(returned, outs, wanted, strict=True):
        assert actual is out
        np.testing.assert_array_equal(out, exact)


def integers(shape: tuple[int, ...], kind: Any, seed: int) -> np.ndarray:
    """Return digits."""
    low = 0 if np.dtype(kind).kind in "?u" else -4
    return np.random.default_rng(seed).integers(low, 5, shape).astype(kind)


REPETITIONS = [
    # w, x, batch
    ((), (N,), ()),
    ((1,), (N,), ()),
    ((N,), (1, 1), ()),
    ((), (), (N,)),
    ((), (3,), (N,)),
    ((512, 1), (1, 513), ()),
    ((511, 1), (1, 511), ()),
    ((513,), (70, 1), ()),
    ((700, 100), (100,), ()),
    ((700, 100), (700, 1), ()),
    ((700, 100), (1,), ()),
    ((3, 40000), (40000,), ()),
    ((40000, 3), (3,), ()),
    ((40000, 1), (1, 3), ()),
    ((3, 1), (1, 40000), ()),
    ((2, 1, 3), (30000, 1), ()),
    ((2, 20000, 1), (2, 1, 3), ()),
    ((20000, 1), (20000, 1), (3,)),
    ((30, 1, 40), (50, 1), (2,)),
    ((30, 1, 40), (1, 50, 1), (3, 2)),
    ((5, 1, 7, 1, 9), (1, 6, 1, 8, 1), ()),
    ((5, 1, 7, 1, 9), (6, 7, 8, 9), (2,)),
    ((2, 1, 3, 1, 2, 1, 3, 1, 2), (1, 5, 3, 4, 1, 3, 3, 2, 1), ()),
    ((1, 511, 1), (64, 1, 2), ()),
    ((64, 1, 2), (1, 512, 1), ()),
    ((128, 2, 1), (1, 2, 513), ()),
    ((1, 1), (300, 300), (1,)),
]


@pytest.mark.parametrize("kinds", [("f8", "f8", "f8"), ("f4", "f4", "f4"), ("i2", "f2", ">f4")])
@each("w, x, batch", REPETITIONS)
def test_sums_are_exact_on_integers(w: Any, x: Any, batch: Any, kinds: Any) -> None:
    shape = (*batch, *np.broadcast_shapes(w, x))
    for i, layout in enumerate((LAYOUTS["C"], LAYOUTS["F"], backwards, rolled)):
        g = layout(integers(shape, kinds[2], i))
        check_exactly(integers(w, kinds[0], 8 + i), integers(x, kinds[1], 9 + i), g)
    check_exactly(
        integers(w, kinds[0], 5).copy(order="F"),
        integers(x, kinds[1], 6),
        np.broadcast_to(integers((1,), kinds[2], 7), shape),
    )


@pytest.mark.parametrize("kind", ["f4", "f8"])
@on_any_target
def test_sums_are_exact_on_every_target(kind: str) -> None:
    for rows, columns in itertools.product((1, 2, 3, 63, 64, 65), (1, 5, 15, 16, 17, 31, 33, 515)):
        w, x = integers((rows, 1), kind, 1), integers((columns,), kind, 2)
        g = integers((rows, columns), kind, 3)
        for actual, exact in zip(pb.multiply.vjp(w, x, g), cotangents(w, x, g), strict=True):
            np.testing.assert_array_equal(actual, exact)


@st.composite
def repetitions(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    """Draw operands and a cotangent of any layout and number type, of up to 200_000 elements."""
    value: list[int] = []
    for _ in range(draw(st.integers(0, 5))):
        side = draw(st.sampled_from([1, 2, 3, 7, 16, 63, 129, 511, 512, 513, 5000]))
        value.append(side if np.prod(value) * side <= 2e5 else 2)
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    shapes = []
    for _ in range(2):
        drop = draw(st.integers(0, len(value)))
        shapes.append(tuple(draw(st.sampled_from([1, n])) for n in value[drop:]))
    g = (*batch, *np.broadcast_shapes(*shapes))
    arrays = []
    for seed, shape in enumerate((*shapes, g)):
        kind = draw(st.sampled_from(KINDS))
        digits = integers(shape, kind, seed)
        layout = draw(st.sampled_from([*LAYOUTS.values(), swapped])) if shape else np.copy
        arrays.append(layout(digits))
    return tuple(arrays)


@given(arrays=repetitions())
@settings(deadline=None, max_examples=120)
def test_any_sums_are_exact_on_integers(arrays: tuple[np.ndarray, ...]) -> None:
    check_exactly(*arrays)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
@pytest.mark.parametrize(
    ("w", "x", "batch"),
    [((), (N,), ()), ((500, 1), (1, 300), ()), ((300, 200), (200,), ()), ((1, 700), (2, 1), (41,))],
    ids=str,
)
def test_sums_are_accurate(dtype: Any, w: Any, x: Any, batch: Any) -> None:
    """Terms rounded once, sums in float64, results rounded once."""
    rng = np.random.default_rng(11)
    shape = (*batch, *np.broadcast_shapes(w, x))
    at = [(rng.normal(0, 1, s) * 2.0 ** rng.integers(-20, 20, s)).astype(dtype) for s in (w, x)]
    g = (rng.normal(0, 1, shape) * 2.0 ** rng.integers(-20, 20, shape)).astype(dtype)
    results = pb.multiply.vjp(*at, g)
    exact = cotangents(*at, g, np.longdouble)
    size = cotangents(*map(np.abs, at), np.abs(g), np.longdouble)
    u = np.finfo(dtype).eps / 2
    for actual, total, terms in zip(results, exact, size, strict=True):
        adding = g.size // terms.size * np.finfo(float).eps / 2
        error = np.abs(actual - total)
        assert (error <= u * np.abs(total) + (u + adding) * 1.01 * terms).all()


def test_sums_that_are_zero_have_numpys_sign() -> None:
    """Of negative zeros alone as well; what is not summed keeps its own."""
    for shape in ((700,), (64, 1), (), (1, 1), (64, 700)):
        w, x, g = np.ones(shape), np.ones((64, 700)), np.full((64, 700), -0.0)
        for actual, operand in zip(pb.multiply.vjp(w, x, g), (w, x), strict=True):
            if operand.shape == g.shape:
                assert np.signbit(actual).all()
            else:
                wanted = np.signbit(np.sum(np.full(2, -0.0)))
                assert (np.signbit(actual) == wanted).all()
                assert (actual == 0).all()


def test_nan_and_infinity_go_through_sums() -> None:
    rng = np.random.default_rng(1)
    g = rng.normal(0, 1, (300, 301)).astype(np.float32)
    g[7, 0], g[9, 1], g[9, 2], g[11, 2], g[0, 2] = np.nan, np.inf, np.inf, -np.inf, -np.inf
    with np.errstate(all="raise"):
        gw, gx = pb.add.vjp(np.ones((300, 1), np.float32), np.ones(301, np.float32), g)
    assert np.flatnonzero(~np.isfinite(gw)).tolist() == [0, 7, 9, 11]
    assert np.isnan(gw[7])
    assert (gw[[0, 9, 11], 0] == [-np.inf, np.inf, -np.inf]).all()
    assert np.isnan(gx[[0, 2]]).all()
    assert gx[1] == np.inf
    assert np.isfinite(gx[3:]).all()
    # Beyond the range of float32, though not of the sum.
    big = np.full((300, 301), np.finfo(np.float32).max)
    with np.errstate(all="raise"):
        gw, gx = pb.multiply.vjp(np.float32(0.5), np.ones((300, 301), np.float32), big)
    assert gw == np.inf
    big[::2] *= -1
    assert pb.multiply.vjp(np.float32(1), np.ones((300, 301), np.float32), big)[0] == 0


@pytest.mark.parametrize("op", [name for name in BINARY if OPS[name].masked])
def test_masked_terms_are_left_out_of_sums(op: str) -> None:
    """Where a derivative is 0 nothing is added, not even NaN."""
    f = getattr(pb, op)
    w, x = np.linspace(-1, 1, 300)[:, None], np.linspace(-1, 1, 400)[1:-1]
    dw, dx = f.derivative(w, x)
    for slope, which in ((dw, 0), (dx, 1)):
        g = np.where(slope == 0, np.nan, 3.0)
        gradient = f.vjp(w, x, g)[which]
        wanted = np.sum(np.where(slope == 0, 0, 3 * slope), axis=1 - which)
        np.testing.assert_allclose(gradient.ravel(), wanted, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("op", BINARY)
def test_every_operation_sums_its_own_terms(op: str) -> None:
    f = getattr(pb, op)
    at = ordinary(Call(op, "value", 2, 1), float, (3, 150, 160))
    w, x = at[0][0, :, :1], at[1][0, :1]
    g = at[0]
    for gradient, slope, axis in zip(f.vjp(w, x, g), f.derivative(w, x), (2, 1), strict=True):
        wanted = np.sum(g * slope, axis=axis, keepdims=True)
        assert gradient.shape == wanted.shape
        np.testing.assert_allclose(gradient, wanted, rtol=1e-12)


def test_empty_axes() -> None:
    for w, x, batch in (
        ((0,), (), ()),
        ((1,), (0,), ()),
        ((3, 1), (1, 0), ()),
        ((3, 1), (4,), (0,)),
        ((50000, 1), (1, 0), ()),
        ((2, 0, 1), (1, 40000), ()),
        ((), (), (0, 40000)),
    ):
        shape = (*batch, *np.broadcast_shapes(w, x))
        at = np.ones(w, np.float32), np.ones(x, np.float32)
        outs = tuple(np.full((*batch, *s), 7, np.float32) for s in (w, x))
        for out in (None, outs):
            for leaf, operand in zip(
                pb.multiply.vjp(*at, np.ones(shape, np.float32), out=out), at, strict=True
            ):
                assert leaf.shape == (*batch, *operand.shape)
                assert leaf.dtype == np.float32
                assert not np.any(leaf)
                assert not np.any(np.signbit(leaf))
        value = pb.multiply(*at)
        assert value.shape == np.broadcast_shapes(w, x)


def test_sums_without_axes_are_scalars() -> None:
    g = np.ones(N, np.float32)
    gw, gx = pb.multiply.vjp(np.array(2, np.float32), g, g)
    assert type(gw) is np.float32
    assert gw == N
    assert (gx == 2).all()
    gw, gx = pb.multiply.vjp(np.array(2), np.array(3), np.array(4))
    assert (type(gw), type(gx)) == (np.float64, np.float64)
    assert (gw, gx) == (12, 8)


# --- the same bits --------------------------------------------------------------------------------


def rough(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return numbers whose sums depend on the order."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, shape) * 2.0 ** rng.integers(-30, 30, shape)


ROUGH = [
    lambda: (rough((), 1), rough((200_000,), 2), rough((200_000,), 3)),
    lambda: (rough((400, 1), 1), rough((500,), 2), rough((400, 500), 3)),
    lambda: (rough((70, 1, 3), 1), rough((900, 1), 2), rough((70, 900, 3), 3)),
    lambda: (rough((90_000, 1), 1), rough((3,), 2), rough((3, 90_000), 3).T),
    lambda: (rough((3, 1), 1).astype("f4"), rough((90_000,), 2), rough((3, 90_000), 3)),
    lambda: (rough((16,), 1), rough((16,), 2), rough((9000, 16), 3)),
]


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads afterwards."""
    before = pb.get_num_threads()
    yield
    pb.set_num_threads(before)


@native
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("make", ROUGH)
def test_sums_have_the_same_bits_for_any_number_of_threads(make: Any) -> None:
    at = make()
    pb.set_num_threads(1)
    wanted = pb.multiply.vjp(*at)
    for n in range(1, 9):
        pb.set_num_threads(n)
        for _ in range(4):
            assert_same_leaves(pb.multiply.vjp(*at), wanted)
    outs = tuple(np.full(leaf.shape, np.nan, leaf.dtype) for leaf in map(np.asarray, wanted))
    assert_same_leaves(pb.multiply.vjp(*at, out=outs), tuple(map(np.asarray, wanted)))


@native
@pytest.mark.parametrize("make", ROUGH)
def test_sums_have_the_same_bits_wherever_they_lie(make: Any) -> None:
    """At any offset in memory, aligned or not."""
    at = make()
    wanted = pb.multiply.vjp(*at)
    for offset in (1, 3, 8, 40):
        moved = []
        for k, x in enumerate(at):
            memory = np.zeros(x.nbytes + 8 * offset + 64, np.uint8)
            start = offset * (x.itemsize if k != 1 else 1)
            axes = np.argsort([-s for s in x.strides], kind="stable") if x.ndim else []
            inverse = np.argsort(axes) if x.ndim else []
            view = memory[start : start + x.nbytes].view(x.dtype)
            view = view.reshape(x.transpose(axes).shape).transpose(inverse) if x.ndim else view[0]
            if x.ndim:
                view[...] = x
                assert view.strides == x.strides
            else:
                view = x
            moved.append(view)
        assert_same_leaves(pb.multiply.vjp(*moved), wanted)


# --- out= -----------------------------------------------------------------------------------------


@calls
def test_out(call: Call) -> None:
    """Outputs of any layout, the arguments themselves included."""
    shape = (180, 190)
    at = ordinary(call, float, shape)
    wanted = list(leaves(call.native()(*at)))
    for layout in LAYOUTS.values():
        outs = [layout(np.full(shape, np.nan)) for _ in range(call.nout)]
        returned = call.native()(*at, out=out_argument(outs))
        for leaf, out, exact in zip(leaves(returned), outs, wanted, strict=True):
            assert leaf is out
            assert_agree(out.astype(float), exact)
    for layout in (LAYOUTS["C"], LAYOUTS["F"], sliced):
        given = [layout(x) for x in at]
        outs = given[: call.nout]
        outs += [np.full(shape, np.nan) for _ in range(call.nout - len(outs))]
        call.native()(*given, out=out_argument(outs))
        for out, exact in zip(outs, wanted, strict=True):
            assert_agree(np.ascontiguousarray(out), exact)
        for x, exact in zip(given[call.nout :], at[call.nout :], strict=True):
            assert_same_bits(np.ascontiguousarray(x), exact)


@calls
def test_overlapping_out_is_as_if_copied(call: Call) -> None:
    n, dtype = 40_000, np.float64
    for shift, stride in itertools.product((1, 300, -1, -700), (1, 2, -1)):
        at = list(ordinary(call, dtype, n))
        wanted = list(leaves(call.native()(*at)))
        memory = np.empty(2 * n + 2 * abs(shift) + 2)
        start = abs(shift) if stride > 0 else abs(shift) + n
        x = memory[start : start + stride * n : stride]
        out = memory[start + shift : start + shift + stride * n : stride]
        x[...] = at[0]
        at[0] = x
        outs = [out, *(np.empty(n) for _ in range(call.nout - 1))]
        call.native()(*at, out=out_argument(outs))
        for one, exact in zip(outs, wanted, strict=True):
            assert_agree(np.ascontiguousarray(one), exact)
    at = list(ordinary(call, dtype, (200, 200)))
    wanted = list(leaves(call.native()(*at)))
    outs = [at[0].T, *(np.empty((200, 200)) for _ in range(call.nout - 1))]
    call.native()(*at, out=out_argument(outs))
    for one, exact in zip(outs, wanted, strict=True):
        assert_agree(np.ascontiguousarray(one), exact)


@pytest.mark.parametrize("op", ["multiply", "maximum"])
def test_summed_out_may_overlap_anything(op: str) -> None:
    f = getattr(pb, op)
    w, x, g = rough((300, 1), 1), rough((1, 200), 2), rough((300, 200), 3)
    gw, gx = f.vjp(w, x, g)
    for where in range(3):
        at = [w.copy(), x.copy(), g.copy()]
        outs = (
            at[where].reshape(-1)[-300:].reshape(300, 1) if at[where].size >= 300 else gw.copy(),
            at[where].reshape(-1)[:200].reshape(1, 200),
        )
        f.vjp(*at, out=outs)
        if where == 2:
            assert_same_leaves(outs, (gw, gx))
    # Each other, element for element: the second one is written last.
    both = np.empty((200, 200))
    a, b = rough((200, 200), 4), rough((200, 200), 5)
    wanted = f.vjp(a, b, a)
    f.vjp(a, b, a, out=(both, both))
    assert_agree(both, wanted[1])


def test_out_whose_elements_share_memory() -> None:
    """As NumPy has it, whatever that is; no sums where none were asked for."""
    x = np.arange(2.0 * N).reshape(N, 2)
    for shape, strides in (((N, 2), (0, 8)), ((N, 2), (8, 8)), ((N, 2), (16, 0))):
        memories = [np.zeros(2 * N + 8) for _ in range(2)]
        for function, memory in zip((np.add, pb.add), memories, strict=True):
            function(x, x, out=as_strided(memory, shape, strides))
        assert_same_bits(*memories)
        outs = [as_strided(np.zeros(2 * N + 8), shape, strides) for _ in range(2)]
        gw, _ = pb.multiply.vjp(x, x, x, out=tuple(outs))
        assert set(np.unique(gw)) <= set(np.ravel(x * x))


@calls
def test_bad_out(call: Call) -> None:
    """The error says what is wrong, and nothing is written."""
    n = 40_000
    at = [x.reshape(200, 200) for x in ordinary(call, float, n)]
    good = [np.full((200, 200), 7.0) for _ in range(call.nout - 1)]
    locked = np.full((200, 200), 7.0)
    frozen(locked)
    for bad, error, words in (
        (np.full(n, 7.0), ValueError, "40000"),
        (np.full((200, 1), 7.0), ValueError, r"200, ?1\b"),
        (np.full((200, 200), 7), TypeError, "int64"),
        (locked, ValueError, "read-only"),
        ([7.0], TypeError, "array|ArrayType"),
    ):
        for place in {0, call.nout - 1}:
            outs: list[Any] = list(good)
            outs.insert(place, bad)
            with pytest.raises(error, match=words):
                call.native()(*at, out=out_argument(outs))
            for out in outs:
                assert np.all(np.asarray(out) == 7)
    bad_cotangents = (np.full((200, 1), 7.0), np.full((1, 200), 7.0))
    if sums(call):
        with pytest.raises(ValueError, match=r"200"):
            call.native()(at[0][:, :1], at[1], at[2], out=bad_cotangents)
        assert all((out == 7).all() for out in bad_cotangents)
        with pytest.raises(TypeError, match="out|nonsense"):
            call.native()(*at, nonsense=1)


# --- what NumPy's own machinery still does --------------------------------------------------------


@native
@pytest.mark.parametrize("call", [c for c in SOME if c.is_single], ids=by_name)
def test_keyword_arguments(call: Call) -> None:
    f = call.native()
    at = ordinary(call, np.float32, N)
    wanted = f(*at)
    mask = np.arange(N) % 3 == 0
    out = np.full(N, -7, np.float32)
    assert f(*at, out=out, where=mask) is out
    assert_same_bits(out, np.where(mask, wanted, np.float32(-7)))
    assert_same_bits(f(*at, dtype=float), f(*(x.astype(float) for x in at)))
    assert_same_bits(f(*at, casting="no"), wanted)
    with pytest.raises(TypeError, match="[Cc]ast"):
        f(*(x.astype(np.int64) for x in at), casting="no")
    assert f(*(x.reshape(5, -1) for x in at), order="F").flags.f_contiguous
    positional = np.empty(N, np.float32)
    assert f(*at, positional) is positional
    assert_same_bits(positional, wanted)
    assert_same_bits(f(*at, out=(None,)), wanted)
    assert_same_bits(f(*at, out=None), wanted)
    with pytest.raises(TypeError):
        f(*at, nonsense=1)
    with pytest.raises(ValueError, match="broadcast|has shape"):
        f(*at[:-1], at[-1][:-1]) if call.nin > 1 else f(*at, out=out[:-1])
    wide = np.empty((2, N), np.float32)
    if call.is_ufunc:  # NumPy repeats inputs for a larger output
        f(*at, out=wide)
        assert_same_bits(wide[1], wanted)
    else:
        with pytest.raises(ValueError, match="out has shape"):
            f(*at, out=wide)


class Recorder(np.ndarray):
    """Notes each ufunc call, and lets NumPy do it."""

    seen: list[str]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        self.seen.append(ufunc.__name__)
        plain = [x.view(np.ndarray) if isinstance(x, Recorder) else x for x in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(
                x.view(np.ndarray) if isinstance(x, Recorder) else x for x in kwargs["out"]
            )
        return getattr(ufunc, method)(*plain, **kwargs)


@native
@calls
def test_array_ufunc_is_asked(call: Call) -> None:
    at = ordinary(call, float, N)
    wanted = call.native()(*at)
    for k in range(call.nin):
        views = list(at)
        views[k] = at[k].view(Recorder)
        views[k].seen = []
        assert_same_leaves(call.native()(*views), wanted)
        assert views[k].seen
        assert all(call.op in name for name in views[k].seen)


class Tagged(np.ndarray):
    """A subclass that says so."""


@native
@calls
def test_subclasses_are_kept(call: Call) -> None:
    at = ordinary(call, float, N)
    wanted = list(leaves(call.native()(*at)))
    for kind in (lambda x: x.view(Tagged), np.ma.masked_array):
        result = list(leaves(call.native()(*map(kind, at))))
        for leaf, exact in zip(result, wanted, strict=True):
            assert type(leaf) is type(kind(at[0]))
            assert_same_bits(np.asarray(leaf), exact)


@native
@pytest.mark.parametrize("call", [c for c in SOME if not c.is_single], ids=by_name)
def test_parts_return_flat_tuples(call: Call) -> None:
    """The ufuncs behind methods of several outputs are ordinary ones."""
    ufunc = getattr(getattr(pb, call.op), f"_{call.method}", None)
    at = ordinary(call, float, 3)
    assert_same_leaves(ufunc(*at), tuple(leaves(call.native()(*at))))


@native
@calls
def test_no_reference_is_lost_or_kept(call: Call) -> None:
    at = ordinary(call, np.float32, (180, 190))
    integer = [np.ones((180, 190), np.int16) for _ in at]
    rows = list(at)
    outs = [np.empty((180, 190), np.float32) for _ in range(call.nout)]
    bad = np.ones((180, 190), complex)
    if call.row.nin == 2:
        rows = call.fitting([at[0][:1], *at[1:]])
    f = call.native()
    things = [*at, *integer, *rows, *outs, bad]
    before = [sys.getrefcount(thing) for thing in things]
    for _ in range(3):
        f(*at)
        f(*at, out=out_argument(outs))
        f(*integer)
        f(*rows)
        with pytest.raises(TypeError):
            f(*at[:-1], bad)
        with pytest.raises((TypeError, ValueError)):
            f(*at, out=out_argument([*outs[:-1], bad[0]]))
    assert [sys.getrefcount(thing) for thing in things] == before


# --- memory and floating-point state --------------------------------------------------------------


def peak(function: Callable[[], Any]) -> int:
    """Return the bytes that a call allocates at most, NumPy's arrays included."""
    function()
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@native
def test_no_temporaries() -> None:
    side = 600
    g = np.ones((side, side))
    row, column = np.ones(side), np.ones((side, 1))
    few = 20_000
    out = np.empty_like(g)
    sums = (np.empty((side, 1)), np.empty(side))
    assert peak(lambda: pb.multiply.vjp(g, row, g, out=(out, sums[1]))) < few
    assert peak(lambda: pb.multiply.vjp(column, row, g, out=sums)) < few
    assert peak(lambda: pb.multiply.vjp(column, row, g)) < few
    assert peak(lambda: pb.multiply.vjp(column, row, g.astype(">f4").T.T)) < 5 * g.nbytes
    for array in (g.T, g[::-1], swapped(g), misaligned(g), g.astype(np.int32), g[:, ::2]):
        target = out[:, : array.shape[1]]
        assert peak(lambda a=array, t=target: pb.exp(a, out=t)) < few
        assert peak(lambda a=array, t=target: pb.multiply(a, row[: a.shape[1]], out=t)) < few


@calls
def test_no_warnings(call: Call) -> None:
    """Whatever the values, and whatever is cast or summed."""
    at = arguments(call, np.dtype(np.float32), N)
    views = [swapped(x) for x in at]
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        call.native()(*at)
        call.native()(*views)
        call.native()(*(x.astype(np.float64)[::-1] for x in at))
        if call.row.nin == 2:
            f = call.native()
            f(*call.fitting([at[0][:1], *at[1:]]))
            f(*(x.reshape(5, -1) for x in at[:1]), *(x.reshape(5, -1) for x in at[1:]))


@native
def test_stays_between_guard_pages() -> None:
    """Neither converted, gathered, repeated nor streamed elements lie beyond the array."""
    n = 33_003
    block, target = Guarded(8 * n), Guarded(8 * n)
    for kind, at_end, stride in itertools.product(
        (*KINDS, np.dtype(">f8")), (True, False), (1, -1)
    ):
        x = block.array(n, kind, at_end=at_end, stride=stride)
        x[...] = np.arange(n) % 5
        out = target.array(n, computed_in(kind), at_end=at_end)
        pb.add(x, x[:1], out=out)
        np.testing.assert_array_equal(out, x.astype(float) + x[:1].astype(float))
        rows, row = x.reshape(-1, 3), x[-3:]
        pb.add(rows, row, out=out.reshape(-1, 3))
        np.testing.assert_array_equal(out.reshape(-1, 3), rows.astype(float) + row.astype(float))
        gw, _ = pb.multiply.vjp(x[:1], x, x, out=(np.empty(1, out.dtype), out))
        assert gw[0] == np.sum(x.astype(float) ** 2)
    gc.collect()
    block.close()
    target.close()


@pytest.mark.usefixtures("target")
def test_long_outputs_touch_nothing_beside_themselves() -> None:
    """Those that bypass the caches, at every alignment and in rows."""
    n = 2**21 + 2**12
    x = np.random.default_rng(0).normal(0, 1, n)
    memory = np.empty(n + 16)
    for dtype in (np.float64, np.float32):
        values = x.astype(dtype)
        room = memory.view(dtype)
        size = n if dtype is np.float64 else 2 * n
        values = np.resize(values, size)
        wanted = values * values
        for offset in (0, 3):
            room[...] = -7
            out = room[offset : offset + size]
            pb.multiply(values, values, out=out)
            assert_same_bits(out, wanted)
            assert (room[:offset] == -7).all()
            assert (room[offset + size :] == -7).all()
        pb.multiply(values, values, out=values)
        assert_same_bits(values, wanted)


@native
def test_interrupt() -> None:
    """A sum of terms that take no memory, but long."""
    w, x = np.ones((100_000, 1)), np.ones(100_000)
    g = np.broadcast_to(1.0, (100_000, 100_000))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        begin = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            pb.divide.vjp(w, x, g)
        assert time.perf_counter() - begin < 1.5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""What NumPy promises of a ufunc, for every primitive; and pandas and Dask on top of it.

Tests without the marker `native` hold for the NumPy backend as well.
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from fractions import Fraction
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import oracles
import pullback as pb
import pytest
from fp_env import FloatEnvironment
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_same_bits
from protocol import (
    CALLS,
    MULTIPLE_CALLS,
    Call,
    arguments,
    assert_same_leaves,
    calls,
    dtypes,
    leaves,
    of_every,
    ordinary,
    out_argument,
    rows,
    single_calls,
)
from pullback.tables.elementwise import OPS, OpRow

native = pytest.mark.native

NARROW = (np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.float16, np.float32)
WIDE = (np.int32, np.uint32, np.int64, np.uint64, np.longlong, np.ulonglong, np.float64)
ANY_DTYPE = NARROW + WIDE


def expected_dtype(*kinds: Any) -> Any:
    """Return what these dtypes compute in; `float` and `int` stand for weak scalars."""
    strong = [kind for kind in kinds if kind not in (float, int)]
    if not strong or any(kind in WIDE for kind in strong):
        return np.float64
    return np.float32


def assert_agree(actual: Any, desired: Any) -> None:
    """Fail unless results for two layouts are the same: to the bit, but for NumPy's own loops."""
    if pb.backend() == "native":
        assert_same_leaves(actual, desired)
        return
    for one, other in zip(leaves(actual), leaves(desired), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=4 * np.finfo(one.dtype).eps)


# --- dtypes ---------------------------------------------------------------------------------------


@calls
def test_dtype_of_one_kind(call: Call) -> None:
    """The promotion rule, and the value is that of the converted argument."""
    f = call.native()
    for kind in ANY_DTYPE:
        at = tuple(np.array([1, 1, 0, 1], kind) for _ in range(call.nin))
        converted = tuple(x.astype(expected_dtype(kind)) for x in at)
        result = f(*at)
        for leaf in leaves(result):
            assert leaf.dtype == expected_dtype(kind)
        assert_same_leaves(result, f(*converted))
        scalars = f(*(x[0] for x in at))
        for leaf, scalar in zip(leaves(result), leaves(scalars), strict=True):
            assert type(scalar) is leaf.dtype.type
            assert_same_bits(scalar, leaf[0])


@calls
def test_dtype_of_mixed_kinds(call: Call) -> None:
    """float64 wins, and so does an integer that float32 cannot hold; Python numbers adapt."""
    pairs = list(itertools.product((*ANY_DTYPE, float, int), repeat=2))
    for pair in pairs if call.nin > 1 else [(kind,) for kind in (*ANY_DTYPE, float, int)]:
        kinds = pair + (np.float32,) * (call.nin - 2)
        at = [kind(1) if kind in (float, int) else np.ones((2, 3), kind) for kind in kinds]
        for leaf in leaves(call.native()(*call.fitting(at))):
            assert leaf.dtype == expected_dtype(*kinds), kinds
            assert (leaf == np.ravel(leaf)[0]).all()


@calls
def test_python_scalars_are_weak(call: Call) -> None:
    f = call.native()
    for number in (0.5, 1, True):
        kind = np.float32 if number is True else np.float64
        for leaf in leaves(f(*[number] * call.nin)):
            assert type(leaf) is kind
    if call.nin == 1:
        return
    x = np.full(3, 0.5, np.float32)
    for k in range(call.nin):
        at: list[Any] = [x] * call.nin
        for number in (2, 2.0, 0.1):
            at[k] = number
            result = f(*call.fitting(at))
            # In the arrays' dtype: 0.1 is rounded to float32 before it is used.
            at[k] = np.full((), number, np.float32)
            assert_same_leaves(result, f(*call.fitting(at)))
            assert all(leaf.dtype == np.float32 for leaf in leaves(result))


@rows
def test_a_weak_scalar_that_overflows_is_infinite(row: OpRow) -> None:
    f = getattr(pb, row.name)
    x = np.ones(3, np.float32)
    inf = np.full(3, np.inf, np.float32)
    with np.errstate(all="raise", over="ignore"):
        if row.nin == 2:
            assert_same_bits(f(x, 1e300), f(x, inf))
        assert_same_leaves(
            f.vjp(*[x] * row.nin, 1e300) if row.nin == 1 else f.jvp(x, x, x, 1e300),
            f.vjp(*[x] * row.nin, inf) if row.nin == 1 else f.jvp(x, x, x, inf),
        )


UNSUPPORTED = [
    np.ones(2, np.complex64),
    np.ones(2, np.complex128),
    np.ones(2, np.longdouble),
    np.array([1, Fraction(1, 2)], object),
    np.array(["a", "b"]),
    np.array([b"a", b"b"]),
    np.array(["2020-01-01", "2020-01-02"], "M8[D]"),
    np.array([1, 2], "m8[s]"),
    np.zeros(2, [("a", float)]),
    1j,
    "text",
    None,
    np.longdouble(1),
    np.complex64(1),
]


@calls
def test_other_dtypes_are_type_errors_that_name_the_operation(call: Call) -> None:
    for bad in UNSUPPORTED:
        good = np.ones(2, np.float32) if np.ndim(bad) else np.float32(1)
        for k in range(call.nin):
            if bad is None and call.method == "jvp" and k >= call.row.nin:
                continue  # a tangent of zeros
            at = [good] * call.nin
            at[k] = bad
            with pytest.raises(TypeError) as caught:
                call.native()(*at)
            assert call.name in str(caught.value), bad


@native
@single_calls
def test_dtype_argument(call: Call) -> None:
    f = call.native()
    single, double = ordinary(call, np.float32, 5), ordinary(call, np.float64, 5)
    assert_same_bits(f(*single, dtype=np.float64), f(*(x.astype(float) for x in single)))
    assert_same_bits(
        f(*double, dtype=np.float32, casting="same_kind"),
        f(*(x.astype(np.float32) for x in double)),
    )
    for bad in (np.longdouble, complex, np.int64, object, np.float16):
        with pytest.raises(TypeError):
            f(*single, dtype=bad)


@native
@single_calls
def test_casting_argument(call: Call) -> None:
    f = call.native()
    single = ordinary(call, np.float32, 5)
    assert_same_bits(f(*single, casting="no"), f(*single))
    with pytest.raises(TypeError, match="[Cc]ast"):
        f(*single, dtype=np.float64, casting="no")
    integers = [np.ones(3, np.int64)] * call.nin
    with pytest.raises(TypeError, match="[Cc]ast"):
        f(*integers, casting="no")
    assert_same_bits(f(*integers, casting="safe"), f(*(x.astype(float) for x in integers)))


# --- layouts and shapes ---------------------------------------------------------------------------


def swapped(x: np.ndarray) -> np.ndarray:
    return x.astype(x.dtype.newbyteorder())


def misaligned(x: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)


def strided(x: np.ndarray) -> np.ndarray:
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1] + 1), x.dtype)
    wide[..., 1::2] = x
    return wide[..., 1::2]


LAYOUTS = {
    "byte-swapped": swapped,
    "misaligned": misaligned,
    "misaligned and byte-swapped": lambda x: misaligned(swapped(x)),
    "strided": strided,
    "Fortran": np.asfortranarray,
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
}


@calls
@dtypes
def test_layouts(call: Call, dtype: np.dtype) -> None:
    """Any layout is read, read-only ones included, and the result is in native order."""
    at = ordinary(call, dtype, (6, 9))
    wanted = list(leaves(call.native()(*at)))
    several = (range(call.nin), [0], [call.nin - 1])
    for layout, changed in itertools.product(LAYOUTS.values(), several):
        views = [layout(x) if k in changed else x for k, x in enumerate(at)]
        for view in views:
            view.flags.writeable = False
        copies = [x.copy() for x in views]
        for leaf, exact in zip(leaves(call.native()(*views)), wanted, strict=True):
            assert leaf.dtype == dtype
            assert leaf.dtype.isnative
            assert_agree(leaf, exact)
        for view, copied in zip(views, copies, strict=True):
            assert (view == copied).all()


@calls
@dtypes
def test_large_odd_layouts(call: Call, dtype: np.dtype) -> None:
    """The same above the length of NumPy's buffers and of the threads' threshold."""
    n = 40_001
    at = ordinary(call, dtype, n)
    wanted = call.native()(*at)
    for layout in (swapped, misaligned, lambda x: x[::-1].copy()[::-1]):
        assert_agree(call.native()(*map(layout, at)), wanted)


@calls
@dtypes
def test_empty_and_tiny(call: Call, dtype: np.dtype) -> None:
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 2), (1,), (1, 1), ()):
        for leaf in leaves(call.native()(*[np.ones(shape, dtype)] * call.nin)):
            assert leaf.shape == shape
            assert leaf.dtype == dtype


@native
@calls
def test_results_keep_the_order(call: Call) -> None:
    for order in "CF":
        at = [np.asarray(x, order=order) for x in ordinary(call, float, (3, 4, 5))]
        for leaf in leaves(call.native()(*at)):
            if not (call.method == "vjp" and call.row.nin == 2):  # shaped anew
                assert leaf.strides == at[0].strides
    if call.is_single:
        assert call.native()(*at, order="C").flags.c_contiguous


@of_every([c for c in CALLS if c.nin > 1])
def test_operands_broadcast(call: Call) -> None:
    """A broadcast operand acts as its repetition does."""
    shapes = [(4, 1, 5), (3, 1), (1, 3, 5), (4, 3, 5)][: call.nin]
    at = [ordinary(call, float, shape, i)[0] for i, shape in enumerate(shapes)]
    shape = np.broadcast_shapes(*shapes)
    f = call.native()
    if call.method == "vjp" and call.row.nin == 2:
        w, x, _ = at
        g = ordinary(call, float, (2, 4, 3, 5), 8)[0]
        slopes = getattr(pb, call.op).derivative(w, x)
        for gradient, slope, operand, axes in zip(
            f(w, x, g), slopes, (w, x), (2, (1, 3)), strict=True
        ):
            assert gradient.shape == (2, *operand.shape)
            wanted = np.sum(g * slope, axis=axes).reshape(gradient.shape)
            np.testing.assert_allclose(gradient, wanted, rtol=1e-13)
        return
    at = call.fitting(at)
    shape = np.broadcast_shapes(*map(np.shape, at))
    repeated = [np.ascontiguousarray(np.broadcast_to(x, shape)) for x in at]
    result = f(*at)
    assert all(leaf.shape == shape for leaf in leaves(result))
    assert_agree(result, f(*repeated))
    bad = [np.ones((2, 3)), *[np.ones(4)] * (call.nin - 1)]
    with pytest.raises(ValueError, match=r"\(2, ?3\).*\(4,\)|\(4,\).*\(2, 3\)"):
        f(*bad)


@calls
def test_number_of_arguments(call: Call) -> None:
    f = call.native()
    x = np.ones(3)
    for count in (0,) if call.row.default is not None else (0, call.nin - 1):
        with pytest.raises(TypeError):
            f(*[x] * count)
    with pytest.raises(TypeError):
        f(*[x] * call.nin, nonsense=1)
    with pytest.raises((TypeError, ValueError)):
        f(*[x] * (call.nin + call.nout + 1))


SHAPES = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=4, min_side=0)


@given(
    shapes=SHAPES,
    batch=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=2),
    name=st.sampled_from([name for name, row in OPS.items() if row.nin == 2]),
    seed=st.integers(0, 99),
    kinds=st.tuples(*[st.sampled_from([np.float32, np.float64, np.int16])] * 3),
    layout=st.sampled_from([np.asarray, strided, np.asfortranarray, swapped]),
)
@settings(deadline=None, max_examples=400)
def test_binary_vjp_sums_what_was_broadcast(
    shapes: Any, batch: Any, name: str, seed: int, kinds: Any, layout: Any
) -> None:
    f = getattr(pb, name)
    rng = np.random.default_rng(seed)
    # Small powers of two keep most operations' products and sums exact.
    w, x = (
        np.exp2(rng.integers(0, 3, shape)).astype(kind)
        for shape, kind in zip(shapes.input_shapes, kinds, strict=False)
    )
    g = rng.integers(-8, 8, batch + shapes.result_shape).astype(kinds[2])
    at = [layout(a) if a.ndim else a for a in (w, x, g)]
    slopes = f.derivative(*(a.astype(expected_dtype(*kinds)) for a in (w, x)))
    for gradient, slope, operand in zip(f.vjp(*at), slopes, (w, x), strict=True):
        assert gradient.dtype == expected_dtype(*kinds)
        assert gradient.shape == batch + operand.shape
        expected = np.zeros(batch + operand.shape)
        terms = g.astype(float) * slope
        for index in np.ndindex(terms.shape):
            lead, core = index[: len(batch)], index[len(batch) :]
            core = core[len(core) - operand.ndim :]
            own = tuple(0 if n == 1 else i for i, n in zip(core, operand.shape, strict=True))
            expected[lead + own] += terms[index]
        atol = np.finfo(gradient.dtype).eps * np.sum(np.abs(terms))
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=atol)


@given(shapes=SHAPES, name=st.sampled_from(list(OPS)), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=200)
def test_adjoint_identity(shapes: Any, name: str, seed: int) -> None:
    """<J t, g> = <t, J^T g>."""
    f = getattr(pb, name)
    rng = np.random.default_rng(seed)
    at = shapes.input_shapes[: f.nin] if f.nin == 2 else [shapes.result_shape]
    ranges = [domain.ordinary for domain in OPS[name].domain]
    operands = [rng.uniform(*ends, shape) for ends, shape in zip(ranges, at, strict=True)]
    tangents = [rng.uniform(-1, 1, shape) for shape in at]
    g = rng.uniform(-1, 1, shapes.result_shape)
    gradients = f.vjp(*operands, g)
    gradients = gradients if f.nin == 2 else (gradients,)
    right = sum(np.sum(t * v) for t, v in zip(tangents, gradients, strict=True))
    left = np.sum(g * f.jvp(*operands, *tangents))
    assert left == pytest.approx(right, rel=1e-12, abs=1e-12)


def test_sums_accumulate_in_float64() -> None:
    n = 100_001
    g = np.full(n, 0.1, np.float32)
    gw, gx = pb.multiply.vjp(np.float32(1), np.ones(n, np.float32), g)
    assert_same_bits(gw, np.float32(math.fsum(g.tolist())))
    assert gx.shape == (n,)


def test_shape_errors_name_the_shapes() -> None:
    a, b = np.ones((2, 3)), np.ones(4)
    for call in (
        lambda: pb.add.vjp(a, b, b),
        lambda: pb.add.jacobian(a, b),
        lambda: pb.add.derivative(a, b),
        lambda: pb.exp.vjp(b, a),
    ):
        with pytest.raises(ValueError, match=r"\(2, ?3\).*\(4,\)"):
            call()
    for shape in ((3, 2), (), (3,), (2, 3, 1), (1, 3)):
        with pytest.raises(ValueError, match=r"add.vjp: g has shape .* must end in \(2, 3\)"):
            pb.add.vjp(a, np.ones(3), np.ones(shape))


@calls
def test_no_reference_is_lost_or_kept(call: Call) -> None:
    f = call.native()
    at = ordinary(call, float, 5)
    outs = [np.empty(5) for _ in range(call.nout)]
    things = [*at, *outs]
    counts = [sys.getrefcount(thing) for thing in things]
    for _ in range(20):
        f(*at)
        f(*at, out=out_argument(outs))
        f(*(x[::-1] for x in at))
        with pytest.raises((TypeError, ValueError)):
            f(*at[:-1], np.empty(5, complex))
    assert [sys.getrefcount(thing) for thing in things] == counts


# --- out= -----------------------------------------------------------------------------------------


@calls
@dtypes
def test_out(call: Call, dtype: np.dtype) -> None:
    f = call.native()
    at = ordinary(call, dtype, (3, 5))
    wanted = list(leaves(f(*at)))
    layouts = (np.asarray, strided, np.asfortranarray, lambda x: x[::-1, ::-1])
    for layout in layouts:
        outs = [layout(np.empty((3, 5), dtype)) for _ in range(call.nout)]
        for out in outs:
            out[...] = np.nan
        for leaf, out, exact in zip(
            leaves(f(*at, out=out_argument(outs))), outs, wanted, strict=True
        ):
            assert leaf is out
            assert_agree(out, exact)
    # Wider, byte-swapped and misaligned ones.
    for other in (np.dtype(float), dtype.newbyteorder()):
        outs = [np.empty((3, 5), other) for _ in range(call.nout)]
        f(*at, out=out_argument(outs))
        for out, exact in zip(outs, wanted, strict=True):
            assert_same_bits(out.astype(float), exact.astype(float))


@calls
def test_bad_out(call: Call) -> None:
    f = call.native()
    at = ordinary(call, float, 3)
    good = [np.full(3, 7.0) for _ in range(call.nout - 1)]
    readonly = np.broadcast_to(7.0, 3)
    for bad, error in (
        (np.empty(4), ValueError),
        (np.empty((3, 1)), ValueError),
        (np.empty(3, np.int64), TypeError),
        ([0.0, 0.0, 0.0], TypeError),
        (readonly, ValueError),
    ):
        with pytest.raises(error):
            f(*at, out=out_argument([*good, bad]))
        assert all((array == 7).all() for array in good)  # nothing is written on failure
    with pytest.raises((TypeError, ValueError)):
        f(*at, out=tuple(np.empty(3) for _ in range(call.nout + 1)))
    assert (readonly == 7).all()


@native
@calls
def test_narrower_out_is_cast(call: Call) -> None:
    """float64 results go into float32 arrays, as with any ufunc: casting of the same kind."""
    f = call.native()
    at = ordinary(call, float, 5)
    outs = [np.empty(5, np.float32) for _ in range(call.nout)]
    f(*at, out=out_argument(outs))
    for out, exact in zip(outs, leaves(f(*at)), strict=True):
        assert_same_bits(out, exact.astype(np.float32))


@calls
def test_partial_overlap_is_as_if_copied(call: Call) -> None:
    f = call.native()
    for n, shift, stride in itertools.product((5, 40, 700), (1, 2, 7, 64, -1, -3), (1, 2, -1)):
        at = [*ordinary(call, float, n)]
        wanted = list(leaves(f(*at)))
        memory = np.empty(2 * n + 2 * abs(shift) + 2)
        start = abs(shift) if stride > 0 else abs(shift) + n
        stop = start + stride * n
        x = memory[start:stop:stride]
        out = memory[start + shift : stop + shift : stride]
        assert x.shape == out.shape == (n,)
        x[...] = at[0]
        at[0] = x
        outs = [out, *(np.empty(n) for _ in range(call.nout - 1))]
        f(*at, out=out_argument(outs))
        for one, exact in zip(outs, wanted, strict=True):
            assert_agree(one, exact)


@calls
def test_transposed_overlap_is_as_if_copied(call: Call) -> None:
    f = call.native()
    at = list(ordinary(call, float, (20, 20)))
    wanted = list(leaves(f(*at)))
    outs = [at[0].T, *(np.empty((20, 20)) for _ in range(call.nout - 1))]
    f(*at, out=out_argument(outs))
    for one, exact in zip(outs, wanted, strict=True):
        assert_agree(one, exact)


# --- where=, subok, subclasses --------------------------------------------------------------------


@native
@single_calls
@dtypes
def test_where(call: Call, dtype: np.dtype) -> None:
    f = call.native()
    for n in (1, 17, 300):
        at = ordinary(call, dtype, n)
        wanted = f(*at)
        rng = np.random.default_rng(n)
        for mask in (*(rng.random(n) < part for part in (0.5, 0.05, 0)), np.ones(n, bool)):
            out = np.full(n, -7, dtype)
            assert f(*at, out=out, where=mask) is out
            assert_same_bits(out, np.where(mask, wanted, dtype.type(-7)))


@native
@of_every(MULTIPLE_CALLS)
def test_where_of_several_outputs(call: Call) -> None:
    at = ordinary(call, float, 30)
    mask = np.arange(30) % 3 == 0
    outs = [np.full(30, -7.0) for _ in range(call.nout)]
    call.native()(*at, out=out_argument(outs), where=mask)
    for out, exact in zip(outs, leaves(call.native()(*at)), strict=True):
        assert_same_bits(out, np.where(mask, exact, -7.0))


class Tagged(np.ndarray):
    """A subclass that says so."""


@native
@calls
def test_subclasses(call: Call) -> None:
    at = ordinary(call, float, (2, 3))
    tagged = [x.view(Tagged) for x in at]
    wanted = call.native()(*at)
    result = call.native()(*tagged)
    assert_same_leaves(result, wanted)
    assert all(type(leaf) is Tagged for leaf in leaves(result))
    if call.is_single:
        assert type(call.native()(*tagged, subok=False)) is np.ndarray


@native
@calls
def test_masked_arrays(call: Call) -> None:
    at = ordinary(call, float, 6)
    masked = [np.ma.masked_array(x, mask=np.arange(6) == 2) for x in at]
    for leaf, wanted in zip(
        leaves(call.native()(*masked)), leaves(call.native()(*at)), strict=True
    ):
        assert isinstance(leaf, np.ma.MaskedArray)
        assert_same_bits(np.delete(leaf.data, 2), np.delete(wanted, 2))


class Refuses:
    """Takes no ufunc."""

    __array_ufunc__ = None


class Answers:
    """Takes every ufunc over."""

    shape = (3,)
    ndim = 1
    size = 3

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise AssertionError("was converted")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return ufunc.__name__, method


@native
@single_calls
def test_array_ufunc_protocol(call: Call) -> None:
    f = call.native()
    x = np.ones(3)
    for k in range(call.nin):
        at: list[Any] = [x] * call.nin
        at[k] = Refuses()
        with pytest.raises(TypeError, match="__array_ufunc__"):
            f(*at)
        at[k] = Answers()
        name, method = f(*at)
        assert method == "__call__"
        assert call.op in name


# --- ufunc methods --------------------------------------------------------------------------------


@native
@dtypes
@pytest.mark.parametrize(("ours", "numpys"), [(pb.add, np.add), (pb.maximum, np.maximum)], ids=str)
@pytest.mark.parametrize("shape", [(1,), (2,), (9,), (1000,), (7, 11), (40, 30)])
def test_reductions(dtype: np.dtype, ours: Any, numpys: Any, shape: tuple[int, ...]) -> None:
    """Along every axis, as NumPy's own; integers keep the sums exact."""
    x = np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)
    for axis, array in itertools.product(range(len(shape)), (x, x[::-1], np.asfortranarray(x))):
        for options in ({}, {"keepdims": True}, {"initial": dtype.type(3)}, {"dtype": float}):
            assert_same_bits(
                ours.reduce(array, axis=axis, **options),
                numpys.reduce(array, axis=axis, **options),
            )
        assert_same_bits(ours.accumulate(array, axis=axis), numpys.accumulate(array, axis=axis))
        indices = [0, shape[axis] // 2, 0]
        assert_same_bits(ours.reduceat(array, indices, axis), numpys.reduceat(array, indices, axis))
        out = np.empty_like(numpys.reduce(array, axis=axis))
        if out.ndim:
            assert ours.reduce(array, axis=axis, out=out) is out
            assert_same_bits(out, numpys.reduce(array, axis=axis))
    in_place = x.copy()
    ours.accumulate(in_place, out=in_place)
    assert_same_bits(in_place, numpys.accumulate(x))
    assert_same_bits(ours.outer(x, x[:2]), numpys.outer(x, x[:2]))


@native
@dtypes
def test_at(dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    for ours, numpys in ((pb.add, np.add), (pb.maximum, np.maximum), (pb.subtract, np.subtract)):
        a, b = np.ones((2, 50), dtype)
        index = rng.integers(0, 50, 400)
        values = rng.integers(-5, 5, 400).astype(dtype)
        ours.at(a, index, values)
        numpys.at(b, index, values)
        assert_same_bits(a, b)
    x = np.array([1, 2, 3], dtype)
    pb.negative.at(x, [0, 2, 0])
    assert x.tolist() == [1, 2, -3]


@native
@rows
def test_reduce_is_the_left_fold(row: OpRow) -> None:
    """Whatever the operation: NumPy feeds the loop its own output, element after element."""
    f = getattr(pb, row.name)
    if row.nin == 1:
        with pytest.raises(ValueError, match="binary"):
            f.reduce(np.ones(3))
        return
    x = np.random.default_rng(2).uniform(0.5, 1.5, 50)
    fold, folds = x[0], [x[0]]
    for element in x[1:]:
        fold = f(fold, element)
        folds.append(fold)
    assert_same_bits(f.reduce(x), fold)
    for n in (2, 3, 50):  # of three, input and output share a single element
        assert_same_bits(f.accumulate(x[:n]), np.array(folds[:n]))


# --- floating-point environment -------------------------------------------------------------------


@calls
@dtypes
def test_never_warns(call: Call, dtype: np.dtype) -> None:
    grid = np.meshgrid(*[oracles.special_values(dtype)] * min(call.nin, 3))
    at = [a.ravel() for a in grid] + [grid[0].ravel()] * (call.nin - len(grid))
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        call.native()(*at)
        call.native()(*(x[::2] for x in at))
        for i in range(0, at[0].size, 97):
            call.native()(*(x[i] for x in at))
            call.native()(*(x[i : i + 3] for x in at))
        outs = [np.empty(at[0].size, dtype) for _ in range(call.nout)]
        call.native()(*at, out=out_argument(outs))


@native
@calls
@dtypes
def test_status_flags_are_left_alone(call: Call, dtype: np.dtype, fenv: FloatEnvironment) -> None:
    f = call.native()
    for n in (1, 40, 1000):
        at = arguments(call, dtype, n)
        outs = [np.empty(n, dtype) for _ in range(call.nout)]
        out = out_argument(outs)
        for up in (0, fenv.FLAGS, fenv.INVALID, fenv.INEXACT | fenv.UNDERFLOW):
            fenv.set_flags(up)
            f(*at, out=out)
            found = fenv.flags()
            fenv.set_flags(0)
            assert found == up
            fenv.set_flags(up)
            f(*at)
            found = fenv.flags()
            fenv.set_flags(0)
            assert found == up


@native
@calls
@dtypes
def test_rounding_mode_and_flushing_do_not_matter(
    call: Call, dtype: np.dtype, fenv: FloatEnvironment
) -> None:
    """Kernels compute under the default environment, on every thread, and restore the caller's."""
    f = call.native()
    for n in (37, 70_000):
        at = arguments(call, dtype, n)
        wanted = f(*at)
        for name, mode in fenv.MODES.items():
            fenv.set_mode(mode)
            result = f(*at)
            found = fenv.mode()
            fenv.set_mode(0)
            assert found == mode, name
            assert_same_leaves(result, wanted)


# --- pandas and Dask ------------------------------------------------------------------------------


@native
@calls
def test_series_give_series(call: Call) -> None:
    pd = pytest.importorskip("pandas")
    at = ordinary(call, float, 4)
    index = pd.Index(["a", "b", "c", "d"])
    series = [pd.Series(x, index, name="data") for x in at]
    wanted = list(leaves(call.native()(*at)))
    for kinds in (series, [series[0], *at[1:]], [*at[:-1], series[-1]]):
        for leaf, exact in zip(leaves(call.native()(*kinds)), wanted, strict=True):
            if kinds is series or call.is_single:
                assert isinstance(leaf, pd.Series)
                assert leaf.index.equals(index)
            assert_same_bits(np.asarray(leaf), exact)


@native
@calls
def test_data_frames_give_data_frames(call: Call) -> None:
    pd = pytest.importorskip("pandas")
    at = ordinary(call, np.float32, (4, 2))
    frames = [pd.DataFrame(x, columns=["p", "q"]) for x in at]
    wanted = list(leaves(call.native()(*at)))
    for leaf, exact in zip(leaves(call.native()(*frames)), wanted, strict=True):
        assert isinstance(leaf, pd.DataFrame)
        assert_same_bits(np.asarray(leaf), exact)


@native
@pytest.mark.parametrize("op", ["greater", "maximum", "add"])
def test_series_that_are_misaligned_are_aligned_first(op: str) -> None:
    pd = pytest.importorskip("pandas")
    f = getattr(pb, op)
    w = pd.Series([1.0, 2.0], ["a", "b"])
    x = pd.Series([5.0, 1.0], ["b", "a"])
    assert f(w, x).dtype == np.float64
    assert f(w, x).to_dict() == {"a": f(1.0, 1.0), "b": f(2.0, 5.0)}


@native
@calls
def test_dask_arrays_stay_lazy(call: Call) -> None:
    da = pytest.importorskip("dask.array")
    at = ordinary(call, float, (6, 8))
    lazy = [da.from_array(x, chunks=(4, 5)) for x in at]
    wanted = list(leaves(call.native()(*at)))
    for kinds in (lazy, [lazy[0], *at[1:]])[: len(at)]:
        for leaf, exact in zip(leaves(call.native()(*kinds)), wanted, strict=True):
            assert isinstance(leaf, da.Array)
            assert leaf.dtype == np.float64
            assert_same_bits(leaf.compute(scheduler="synchronous"), exact)


@native
@pytest.mark.parametrize("op", [name for name, row in OPS.items() if row.nin == 2])
def test_dask_vjp_sums_what_was_broadcast(op: str) -> None:
    da = pytest.importorskip("dask.array")
    f = getattr(pb, op)
    w, x, g = np.full((1, 8), 1.5), np.full((6, 1), 0.75), np.arange(48.0).reshape(6, 8)
    lazy = [da.from_array(a, chunks=3) for a in (w, x, g)]
    for leaf, exact in zip(f.vjp(*lazy), f.vjp(w, x, g), strict=True):
        assert isinstance(leaf, da.Array)
        assert leaf.shape == exact.shape
        np.testing.assert_allclose(leaf.compute(scheduler="synchronous"), exact, rtol=1e-14)


@native
def test_jacobian_of_a_series() -> None:
    pd = pytest.importorskip("pandas")
    x = pd.Series([0.5, 1.0])
    J = pb.tanh.jacobian(x)
    assert_same_bits(J.diagonal(), pb.tanh.derivative(x.to_numpy()))

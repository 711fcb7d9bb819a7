"""Native reductions: the table's bounds, and the same bits wherever a slice lies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pullback as pb
import pytest
from guarded import Guarded
from oracles import assert_same_bits
from protocol import TARGETS, dtypes, native
from pullback.tables.reductions import REDUCTIONS
from reduction_oracles import check_map, check_reduction, leading, samples

names = pytest.mark.parametrize("name", REDUCTIONS)

# Around a vector, a row that is turned into columns, a leaf, a segment; and beyond a task.
LENGTHS = (1, 2, 15, 16, 17, 33, 1023, 1025, 8192, 8195, 70_001)
LAYOUTS = (
    ((5, 3), 1),
    ((400, 16), 1),
    ((9, 17), 1),
    ((3, 1500), 0),
    ((300, 41), 0),
    ((9000, 9), 0),
    ((2, 700, 33), 1),
    ((2, 70_001), 1),
)


def results(primitives: Any, name: str, x: Any, y: Any, axis: Any) -> Iterator[tuple[str, Any]]:
    """Yield the arrays that the methods give, and the vjp's for a cotangent that varies."""
    primitive, given = getattr(primitives, name), leading(name, x, y, p=3.5)
    if REDUCTIONS[name].is_map:
        yield "value", primitive(x, axis=axis)
        yield "vjp", primitive.vjp(x, y, axis=axis)
        yield "jvp", primitive.jvp(x, y, axis=axis)
        return
    value, gradient = primitive.value_and_grad(*given, axis=axis)
    # The middle one of three is the only one of one.
    g = np.linspace(1, 2, value.size + 2, dtype=value.dtype)[1:-1].reshape(value.shape)
    cotangents = primitive.vjp(*given, g, axis=axis)
    yield "value", value
    yield "bare value", primitive(*given, axis=axis)
    # A positive tangent where slopes may have either sign would cancel.
    tangents = tuple(np.abs(a) for a in (gradient if name == "dot" else (gradient,)))
    yield "jvp", primitive.jvp(*given, *tangents, axis=axis)
    for method, arrays in (("grad", gradient), ("vjp", cotangents)):
        for array in arrays if name == "dot" else (arrays,):
            yield method, array


def close(what: str, actual: Any, expected: Any, factors: int = 0) -> None:
    """Fail unless two results are the same to rounding, that of so many factors included."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    eps = np.finfo(expected.dtype).eps
    scale = float(np.abs(expected).max(initial=0.0))
    tolerance = 16 * eps + factors * 2.0**-53
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


@dtypes
@names
def test_against_mathematics(name: str, dtype: Any) -> None:
    for sample in samples(name, dtype):
        (check_map if sample.row.is_map else check_reduction)(getattr(pb, name), sample)


@pytest.fixture
def every_target() -> Iterator[list[str]]:
    """Restore the instruction set that a test leaves."""
    before = native.active_target()
    yield TARGETS
    native.set_target(before)


@dtypes
@names
def test_every_layout_against_the_twin(every_target: list[str], name: str, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    # Their products cancel; judged above.
    cancels = name in ("variance", "layer_norm", "rms_norm", "softmax", "log_softmax")
    for shape, axis in (*(((n,), None) for n in LENGTHS), *LAYOUTS):
        x, y = rng.uniform(0.5, 1.5, (2, *shape)).astype(dtype)
        if name == "prod":  # of many factors, within the range
            x = np.exp2((x - 1) * dtype.type(0.02))
        if name in ("max", "min"):
            x = np.round(16 * x)
        wanted = list(results(pb.reference, name, x, y, axis))
        for target in every_target:
            native.set_target(target)
            for (method, ours), (_, twins) in zip(
                results(pb, name, x, y, axis), wanted, strict=True
            ):
                if not cancels or method not in ("vjp", "jvp"):
                    close(method, ours, twins, x.size if name == "prod" else 0)


@dtypes
@names
def test_bits_do_not_depend_on_threads(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    for shape, axis in (((150_003,), None), ((300, 333), 1), ((1003, 130), 0), ((20_000, 5), 1)):
        x, y = rng.normal(size=(2, *shape)).astype(dtype)
        with pb.threads(1):
            wanted = list(results(pb, name, x, y, axis))
        for threads in range(2, 9):
            with pb.threads(threads):
                for (_, one), (_, other) in zip(results(pb, name, x, y, axis), wanted, strict=True):
                    assert_same_bits(one, other)


@dtypes
@names
def test_bits_do_not_depend_on_where_a_slice_lies(target: str, name: str, dtype: Any) -> None:
    del target
    rng = np.random.default_rng(6)
    for n in (17, 1030, 9000):
        x, y = rng.normal(size=(2, n)).astype(dtype)
        wanted = list(results(pb, name, x, y, None))
        strided = np.repeat(x, 2)[::2], np.repeat(y, 3)[::3]
        room = np.empty((2, n + 3), dtype)
        room[:, 3:] = x, y
        for one, other in (strided, tuple(room[:, 3:])):
            for (_, actual), (_, expected) in zip(
                results(pb, name, one, other, None), wanted, strict=True
            ):
                assert_same_bits(actual, expected)
        # A row among others, and a tuple of axes, which enters through Python.
        rows = np.stack([y, x, y]), np.stack([x, y, x])
        for (_, actual), (_, expected) in zip(results(pb, name, *rows, 1), wanted, strict=True):
            assert_same_bits(np.asarray(actual)[1], np.asarray(expected))
        for (_, actual), (_, expected) in zip(results(pb, name, x, y, (0,)), wanted, strict=True):
            assert_same_bits(actual, expected)


@dtypes
@names
def test_nothing_beyond_the_ends_is_touched(target: str, name: str, dtype: Any) -> None:
    del target
    row = REDUCTIONS[name]
    ours, theirs, out = Guarded(), Guarded(), Guarded()
    blocks = [(1, n, 1) for n in range(1, 36)] + [(7, n, 1) for n in (3, 16, 17)]
    blocks += [(1, 3, n) for n in range(1, 20)]
    for shape in blocks:
        size = int(np.prod(shape))
        for at_end in (True, False):
            x, y, slopes = (
                memory.array(size, dtype, at_end=at_end).reshape(shape)
                for memory in (ours, theirs, out)
            )
            x[...], y[...] = 1, 2
            if dtype == np.float64 and shape[2] == 1:
                g = y[..., 0] if row.is_map else y[:, :1, 0].copy()
                native.second_rows(name, 1e-5, x[..., 0], g, y[..., 0], slopes[..., 0])
            if row.is_map:
                native.transform_slices(name, 1e-5, "vjp", x, y, slopes)
                continue
            given = (x, y) if name == "dot" else (x,)
            values = np.empty((shape[0], shape[2]), dtype)
            native.reduce_tangents(name, 3.5, given, (y,) * len(given), values)
            other = np.empty_like(slopes)
            native.reduce_slices(name, 3.5, given, None, values, (slopes, other)[: len(given)])
    for memory in (ours, theirs, out):
        memory.close()


@dtypes
def test_infinities_and_nan_reach_the_results(target: str, dtype: Any) -> None:
    del target
    for n in (3, 20, 1100):
        for position in (0, n // 2, n - 1):
            x = np.ones(n, dtype)
            x[position] = np.nan
            for name in ("max", "min", "norm2", "logsumexp", "variance"):
                value, gradient = getattr(pb, name).value_and_grad(x)
                assert np.isnan(value), name
                assert np.isnan(gradient).all(), name
            assert np.isnan(pb.norm(x, np.inf))
            x[position] = np.inf
            one = np.arange(n) == position
            for name in ("max", "logsumexp"):
                value, gradient = getattr(pb, name).value_and_grad(x)
                assert value == np.inf
                np.testing.assert_array_equal(gradient, np.where(one, 1, 0))
            value, gradient = pb.norm2.value_and_grad(x)
            assert value == np.inf
            np.testing.assert_array_equal(gradient, np.where(one, np.nan, 0))


def test_the_engine_refuses_what_would_lie_outside() -> None:
    x = np.ones((2, 3, 4))
    values = np.empty((2, 4))
    good = ("sum", 0.0, (x,), None, values, (np.empty_like(x),))
    native.reduce_slices(*good)
    read_only = np.empty_like(x)
    read_only.flags.writeable = False
    for position, bad in (
        (2, x),
        (2, (x, x)),
        (2, (x[0],)),
        (2, (x[:, :, ::2],)),
        (2, (x[:, :0],)),
        (2, (x.astype(int),)),
        (3, np.ones((2, 3))),
        (3, values.astype(np.float32)),
        (4, np.empty((4, 2))),
        (5, ()),
        (5, (x[:1],)),
        (5, (None,)),
        (5, (read_only,)),
    ):
        arguments = [*good]
        arguments[position] = bad
        with pytest.raises(TypeError, match="is not what the engine takes"):
            native.reduce_slices(*arguments)
    with pytest.raises(TypeError):
        native.reduce_tangents("sum", 0.0, (x,), (x,), None)
    with pytest.raises(TypeError):
        native.transform_slices("softmax", 0.0, "vjp", x, None, np.empty_like(x))
    with pytest.raises(KeyError):
        native.transform_slices("sum", 0.0, "vjp", x, x, np.empty_like(x))
    with pytest.raises(KeyError):
        native.reduce_slices("nonsense", *good[1:])
    x = np.ones((2, 3))
    of_rows = np.ones((2, 1))
    for name, g in (("softmax", x), ("norm2", of_rows)):
        good = (name, 0.0, x, g, x, np.empty_like(x))
        assert native.second_rows(*good) == b""
        other = of_rows if g is x else x
        for position, bad in ((2, x[0]), (3, other), (4, of_rows), (4, g[:1]), (5, read_only[0])):
            arguments = [*good]
            arguments[position] = bad
            with pytest.raises(TypeError, match="what the engine takes"):
                native.second_rows(*arguments)
    assert native.second_rows("prod", 0.0, None, None, None, None) is None

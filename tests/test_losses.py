"""relu_mse on every target: error bounds, shapes, layouts, determinism, arguments.

The oracle computes in long double (64 bits of significand or more), and every result must lie
within the rounding error that float64 sums over blocks of `BLOCK` rows can have.
"""

from __future__ import annotations

import itertools
import math
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pullback as pb
import pytest
from conftest import FloatEnvironment
from guarded import Guarded
from oracles import assert_same_bits
from protocol import DTYPES, assert_same_leaves, leaves

BLOCK = 512
U = 2.0**-53
METHODS = ("value", "value_and_grad")

loss = pb.relu_mse
on_any_target = pytest.mark.usefixtures("any_target")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# --- the oracle -----------------------------------------------------------------------------------


class Bounded(NamedTuple):
    """An exact number or array, and how far from it a result may be."""

    exact: Any
    error: Any


def oracle(X: Any, y: Any, w: Any, b: Any) -> tuple[Bounded, Bounded, Bounded]:
    """Return loss, gradient in w and gradient in b.

    A sum of float64 terms over blocks merged as a tree errs by at most (rows in a block + levels of
    the tree + a few) u times the sum of the terms' magnitudes. Each term inherits the error of its
    row's dot product, (D + 2) u (|X||w| + |b|), which must not reach the kink.
    """
    X, y, w = (np.asarray(a).astype(np.longdouble) for a in (X, y, w))
    n, d = X.shape
    b = np.longdouble(0 if b is None else np.ravel(b)[0])
    terms = X * w
    z = terms.sum(axis=1) + b
    dz = (d + 2) * U * (np.abs(terms).sum(axis=1) + abs(b))
    assert (np.abs(z) > dz).all(), "a sample lies too near the kink to be judged"
    active = z > 0
    e = y - np.where(active, z, 0)
    de = np.where(active, dz, 0) + U * np.abs(e)
    factor = (min(n, BLOCK) + math.ceil(math.log2(max(1, n / BLOCK))) + 8) * U

    def summed(terms: Any, own_errors: Any) -> Bounded:
        error = factor * np.abs(terms).sum(axis=0) + own_errors.sum(axis=0)
        return Bounded(terms.sum(axis=0) / n, error / n)

    r, dr = np.where(active, -2 * e, 0), np.where(active, 2 * de, 0)
    return (
        summed(e * e, 2 * np.abs(e) * de + de * de),
        summed(r[:, None] * X, dr[:, None] * np.abs(X)),
        summed(r, dr),
    )


def assert_within(actual: Any, bounded: Bounded) -> None:
    """Fail if a float64 result is beyond its bound, or a float32 one beyond that and a rounding."""
    actual = np.asarray(actual)
    assert actual.shape == np.shape(bounded.exact)
    error = bounded.error
    if actual.dtype == np.float32:
        error = error + 2.0**-24 * (np.abs(bounded.exact) + error) + 2.0**-150
    wrong = ~(np.abs(actual.astype(np.longdouble) - bounded.exact) <= error)
    if wrong.any():
        i = np.unravel_index(np.argmax(wrong), wrong.shape)
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} beyond their bound, first at {i}: {actual[i]!r} "
            f"instead of {np.asarray(bounded.exact)[i]!r}, bound {np.asarray(error)[i]!r}"
        )


def judge(X: Any, y: Any, w: Any, b: Any, judged_by: Any = None) -> Any:
    """Call value_and_grad and check every number it returns; return the result."""
    exact = judged_by or oracle(X, y, w, b)
    result = loss.value_and_grad(X, y, w, b)
    value, (gw, gb) = result
    assert type(value) is float
    assert type(gw) is np.ndarray
    assert gw.dtype == (np.float32 if np.asarray(w).dtype == np.float32 else np.float64)
    assert_within(value, exact[0])
    assert_within(gw, exact[1])
    if b is not None:
        assert_within(np.asarray(gb).reshape(()), exact[2])
    only = loss.value(X, y, w, b)
    assert type(only) is float
    assert only == value or pb.backend() == "numpy"
    return result


@cache
def problem(n: int, d: int, dtype: Any, seed: int = 0) -> tuple[Any, Any, Any, float]:
    """Return data with active and inactive samples, none on the kink; read-only."""
    rng = np.random.default_rng([n, d, seed])
    X = rng.uniform(-1, 1, (n, d)).astype(dtype)
    y = rng.normal(1, 1, n).astype(dtype)
    w = rng.normal(0, 1, d).astype(dtype)
    for array in (X, y, w):
        array.flags.writeable = False
    return X, y, w, 0.1875 + 1 / (1 + d)


@cache
def exact_problem(n: int, d: int, dtype: Any) -> Any:
    """Return the oracle's answer, for several targets."""
    return oracle(*problem(n, d, dtype))


# --- right ----------------------------------------------------------------------------------------


@on_any_target
@dtypes
@pytest.mark.parametrize("n", range(41))
def test_every_small_shape(n: int, dtype: np.dtype) -> None:
    if n == 0:
        for d in (0, 1, 40):
            with pytest.raises(ValueError, match=rf"\(0, {d}\)"):
                loss.value_and_grad(*problem(0, d, dtype))
        return
    for d in range(41):
        judge(*problem(n, d, dtype), exact_problem(n, d, dtype))


SHAPES = [
    *itertools.product((63, 64, 65, 511, 512, 513, 1023, 1025), (1, 2, 3, 7, 10, 17, 31, 100)),
    *itertools.product((1, 3, 513), (63, 64, 65, 127, 129, 511, 512, 513, 1025, 5000)),
    (4097, 20),
    (100_003, 3),
    (20_011, 64),
]


@on_any_target
@dtypes
def test_larger_shapes(dtype: np.dtype) -> None:
    for n, d in SHAPES:
        judge(*problem(n, d, dtype), exact_problem(n, d, dtype))


@on_any_target
@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("y_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("w_dtype", DTYPES, ids=str)
def test_mixed_dtypes(x_dtype: np.dtype, y_dtype: np.dtype, w_dtype: np.dtype) -> None:
    """Everything is computed from what is stored, in float64; gradients have w's and b's dtype."""
    for n, d in ((1, 1), (7, 3), (40, 33), (600, 10)):
        X, y, w, b = problem(n, d, np.float64)
        X, y, w = X.astype(x_dtype), y.astype(y_dtype), w.astype(w_dtype)
        for bias in (b, np.float32(b), np.float64(b), np.array(b, np.float32), None):
            judge(X, y, w, bias)


@on_any_target
@dtypes
@pytest.mark.parametrize("n", [1, 2, 16, 64, 512, 1024, 32_768])
def test_integers_are_exact(n: int, dtype: np.dtype) -> None:
    """With integers, and a power of two of samples, no operation rounds: no error at all."""
    for d in (0, 1, 2, 5, 8, 31):
        rng = np.random.default_rng([n, d])
        X = rng.integers(-4, 5, (n, d))
        y, w = rng.integers(-9, 10, n), rng.integers(-3, 4, d)
        b = int(rng.integers(-2, 3))
        z = X @ w + b
        e = y - np.maximum(z, 0)
        r = np.where(z > 0, -2 * e, 0)
        value, (gw, gb) = loss.value_and_grad(
            X.astype(dtype), y.astype(dtype), w.astype(dtype), float(b)
        )
        assert value == int(np.sum(e * e)) / n
        assert_same_bits(gw + dtype.type(0), ((r @ X) / n).astype(dtype) + dtype.type(0))
        assert gb == int(r.sum()) / n


@on_any_target
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 3), (100, 10), (600, 17), (33, 0)])
def test_complex_step(n: int, d: int) -> None:
    """The gradient is the derivative of the value, by an oracle that knows no derivative rule."""
    X, y, w, b = problem(n, d, np.float64)

    def value(w: Any, b: Any) -> Any:
        z = X @ w + b
        return np.mean((y - np.where(z.real > 0, z, 0)) ** 2)

    step = 1e-30
    computed, (gw, gb) = loss.value_and_grad(X, y, w, b)
    assert computed == pytest.approx(value(w, b), rel=1e-13)
    for j in range(d):
        numeric = value(w + 1j * step * (np.arange(d) == j), b).imag / step
        assert gw[j] == pytest.approx(numeric, rel=1e-11, abs=1e-14)
    assert gb == pytest.approx(value(w, b + 1j * step).imag / step, rel=1e-11, abs=1e-14)


@dtypes
def test_results_wrong_by_a_thousandth_are_rejected(dtype: np.dtype) -> None:
    arguments = problem(40, 5, dtype)
    value, (gw, gb) = loss.value_and_grad(*arguments)
    exact = oracle(*arguments)
    for wrong, bounded in zip((value * 1.001, gw * 1.001, gb * 1.001), exact, strict=True):
        with pytest.raises(AssertionError, match="beyond"):
            assert_within(wrong, bounded)
    if dtype == np.float64:  # nor may float64 results be those of float32 sums
        with pytest.raises(AssertionError, match="beyond"):
            assert_within(gw.astype(np.float32).astype(float), exact[1])


@on_any_target
@dtypes
def test_the_kink_is_inactive(dtype: np.dtype) -> None:
    """At z = 0, of either sign, the rectifier's derivative is 0."""
    for n in (1, 3, 8, 33):
        for zero in (0.0, -0.0):
            X, y, w = np.full((n, 2), zero, dtype), np.full(n, 3, dtype), np.ones(2, dtype)
            for b in (zero, None):
                value, (gw, gb) = loss.value_and_grad(X, y, w, b)
                assert value == 9
                assert (gw == 0).all()
                assert gb is None if b is None else gb == 0


# --- layouts --------------------------------------------------------------------------------------


def widened(X: np.ndarray, extra: int = 3) -> np.ndarray:
    """Return X as the first columns of a wider array of NaN."""
    wide = np.full((X.shape[0], X.shape[1] + extra), np.nan, X.dtype)
    wide[:, : X.shape[1]] = X
    return wide[:, : X.shape[1]]


def spread(X: np.ndarray) -> np.ndarray:
    """Return X as every other row of an array of NaN."""
    tall = np.full((2 * X.shape[0], *X.shape[1:]), np.nan, X.dtype)
    tall[::2] = X
    return tall[::2]


def misaligned(X: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(X.dtype).reshape(X.shape)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first columns": widened,
    "last columns": lambda X: widened(X[:, ::-1])[:, ::-1],
    "inner columns": lambda X: widened(np.concatenate([X[:, :1] * np.nan, X], axis=1))[:, 1:],
    "every other row": spread,
    "every other row, first columns": lambda X: spread(widened(X)),
    "rows reversed": lambda X: X[::-1].copy()[::-1],
    "columns reversed": lambda X: X[:, ::-1].copy()[:, ::-1],
    "every other column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "Fortran": np.asfortranarray,
    "Fortran, every other row": lambda X: np.asfortranarray(np.repeat(X, 2, axis=0))[::2],
    "middle of three axes": lambda X: np.stack([X, X * np.nan], axis=1)[:, 0],
}

# Copied as they are: nothing but the bytes' place or order changes.
SAME_BITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "misaligned": misaligned,
    "byte-swapped": lambda X: X.astype(X.dtype.newbyteorder()),
    "list": lambda X: X if X.dtype == np.float32 else X.tolist(),
    "subclass": lambda X: X.view(type("Sub", (np.ndarray,), {})),
    "own": lambda X: X.copy(),
}


@on_any_target
@dtypes
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_of_the_data(layout: Callable[..., Any], dtype: np.dtype) -> None:
    for n, d in ((1, 1), (2, 5), (9, 4), (40, 17), (513, 9), (70, 130)):
        X, y, w, b = problem(n, d, dtype)
        view = layout(X)
        assert (view == X).all()
        judge(view, y, w, b, exact_problem(n, d, dtype))


@on_any_target
@dtypes
@pytest.mark.parametrize("layout", SAME_BITS.values(), ids=SAME_BITS.keys())
def test_where_the_bytes_lie_does_not_matter(layout: Callable[..., Any], dtype: np.dtype) -> None:
    for n, d in ((1, 1), (9, 4), (40, 17), (513, 9)):
        X, y, w, b = problem(n, d, dtype)
        wanted = loss.value_and_grad(X, y, w, b)
        for chosen in itertools.product((False, True), repeat=3):
            arguments = [layout(a) if c else a for a, c in zip((X, y, w), chosen, strict=True)]
            assert_same_leaves(loss.value_and_grad(*arguments, b), wanted)


@on_any_target
@dtypes
def test_layouts_of_the_vectors(dtype: np.dtype) -> None:
    X, y, w, b = problem(40, 17, dtype)
    wanted = judge(X, y, w, b)
    for layout in (spread, lambda v: v[::-1].copy()[::-1], misaligned):
        results = judge(X, layout(y), w, b), judge(X, y, layout(w), b)
        if pb.backend() == "native":  # which copies them
            for result in results:
                assert_same_leaves(result, wanted)
    same = np.broadcast_to(y[:1], 40)
    assert_same_leaves(
        loss.value_and_grad(X, same, w, b), loss.value_and_grad(X, same.copy(), w, b)
    )


@on_any_target
@dtypes
def test_repeated_rows_and_columns(dtype: np.dtype) -> None:
    """Strides of zero."""
    X, y, w, b = problem(40, 17, dtype)
    for view in (np.broadcast_to(X[3], X.shape), np.broadcast_to(X[:, :1], X.shape)):
        judge(view, y, w, b)


@dtypes
def test_more_than_2_31_elements(dtype: np.dtype) -> None:
    """One row, repeated by a stride of zero so that it takes no memory."""
    if pb.backend() == "numpy":
        n, d = 64, 1 << 16  # the twin would copy it
    else:
        n, d = 1 << 15, (1 << 16) + 8
    X = np.broadcast_to(np.ones(d, dtype), (n, d))
    w = np.zeros(d, dtype)
    w[-1] = w[0] = 1
    y = np.full(n, 5, dtype)
    value, (gw, gb) = loss.value_and_grad(X, y, w, 1.0)
    assert value == 4
    assert gb == -4
    assert (gw == -4).all()


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guards() -> Iterator[list[Guarded]]:
    """Give memory between pages that may not be touched, for X, y and w."""
    blocks = [Guarded(1 << 20) for _ in range(3)]
    yield blocks
    for block in blocks:
        block.close()


@pytest.mark.parametrize("index", [4, 5])
def test_guard_pages_guard(run_python: Callable[..., Any], index: int) -> None:
    """One element past the end kills the process; the last one does not."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np; from guarded import Guarded\n"
        "block = Guarded()\n"
        "a = block.array(5, float)\n"
        "b = np.lib.stride_tricks.as_strided(a, (6,))\n"
        "print(b[int(sys.argv[2])], flush=True)\n"
    )
    past = index == 5
    done = run_python(script, str(Path(__file__).parent), str(index), check=False)
    assert (done.returncode == -signal.SIGSEGV) == past
    assert (done.stdout == "0.0\n") != past


@on_any_target
@dtypes
def test_stays_between_guard_pages(dtype: np.dtype, guards: list[Guarded]) -> None:
    for n, d, at_end in itertools.product((1, 2, 3, 5, 8, 33), range(1, 41), (True, False)):
        X, y, w, b = problem(n, d, dtype)
        wanted = loss.value_and_grad(X, y, w, b)
        flat, *vectors = (
            block.array(a.size, dtype, at_end=at_end)
            for block, a in zip(guards, (X, y, w), strict=True)
        )
        flat[...] = X.ravel()
        for vector, a in zip(vectors, (y, w), strict=True):
            vector[...] = a
        assert_same_leaves(loss.value_and_grad(flat.reshape(n, d), *vectors, b), wanted)
        if n > 1 and d > 1:  # the last row's end is the array's, though rows lie further apart
            view = np.lib.stride_tricks.as_strided(
                flat[1:], (n - 1, d - 1), flat.reshape(n, d).strides
            )
            exact_copy = np.ascontiguousarray(view)
            for one, other in zip(
                leaves(loss.value_and_grad(view, y[1:], w[1:], b)),
                leaves(loss.value_and_grad(exact_copy, y[1:], w[1:], b)),
                strict=True,
            ):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_arguments_are_not_written_and_results_are_new() -> None:
    for dtype in DTYPES:
        X, y, w, b = problem(40, 17, dtype)  # read-only
        before = [a.copy() for a in (X, y, w)]
        bias = np.array([b], dtype)
        _, (gw, gb) = loss.value_and_grad(X, y, w, bias)
        for a, copied in zip((X, y, w), before, strict=True):
            assert_same_bits(a, copied)
        assert gw.flags.writeable
        assert gw.flags.owndata
        assert gb.flags.writeable
        assert not np.shares_memory(gb, bias)
        assert bias[0] == dtype.type(b)


def test_no_reference_is_lost_or_kept() -> None:
    X, y, w, _ = problem(40, 17, np.float64)
    b = np.array([0.5])
    things = [X, y, w, b]
    counts = [sys.getrefcount(thing) for thing in things]
    for _ in range(50):
        loss.value_and_grad(X, y, w, b)
        loss.value(X=X, y=y, w=w, b=b)
        loss.value_and_grad(X[:, ::-1], y, w, b)
        with pytest.raises(ValueError, match="shape"):
            loss.value_and_grad(X, y, w[1:], b)
    assert [sys.getrefcount(thing) for thing in things] == counts


# --- the same bits --------------------------------------------------------------------------------


@pytest.mark.native
@dtypes
@pytest.mark.parametrize(("n", "d"), [(513, 100), (5000, 33), (100_003, 10), (3000, 1000)])
def test_same_bits_for_any_number_of_threads(n: int, d: int, dtype: np.dtype, target: str) -> None:
    del target
    X, y, w, b = problem(n, d, dtype)
    with pb.threads(1):
        wanted = loss.value_and_grad(X, y, w, b)
        assert loss.value(X, y, w, b) == wanted[0]
    for threads in range(2, 9):
        with pb.threads(threads):
            for _ in range(2):
                assert_same_leaves(loss.value_and_grad(X, y, w, b), wanted)
            assert loss.value(X, y, w, b) == wanted[0]


@pytest.mark.native
@dtypes
def test_same_bits_a_hundred_times(dtype: np.dtype) -> None:
    X, y, w, b = problem(20_011, 64, dtype)
    wanted = loss.value_and_grad(X, y, w, b)
    for threads in (2, 5):
        with pb.threads(threads):
            for _ in range(50):
                assert_same_leaves(loss.value_and_grad(X, y, w, b), wanted)


@pytest.mark.native
@dtypes
def test_same_bits_at_any_offset(dtype: np.dtype, target: str) -> None:
    del target
    for n, d in ((5, 3), (33, 17), (513, 40), (1000, 130)):
        X, y, w, b = problem(n, d, dtype)
        wanted = loss.value_and_grad(X, y, w, b)
        for offset in range(17):
            shifted = []
            for a, shift in zip((X, y, w), (offset, 3 * offset % 17, 5 * offset % 17), strict=True):
                memory = np.full(a.size + 40, np.nan, dtype)
                skip = -memory.ctypes.data // dtype.itemsize % 16 + shift  # from a cache line
                memory[skip : skip + a.size] = a.ravel()
                shifted.append(memory[skip : skip + a.size].reshape(a.shape))
            assert_same_leaves(loss.value_and_grad(*shifted, b), wanted)


@pytest.mark.native
@dtypes
def test_same_bits_from_several_threads_at_once(dtype: np.dtype) -> None:
    problems = [problem(n, d, dtype) for n, d in ((5000, 33), (513, 100), (100, 10), (20_011, 64))]
    wanted = [loss.value_and_grad(*p) for p in problems]

    def work(first: int) -> None:
        for i in range(40):
            k = (first + i) % len(problems)
            assert_same_leaves(loss.value_and_grad(*problems[k]), wanted[k])

    for threads in (1, 2, 4):
        with pb.threads(threads), ThreadPoolExecutor(8) as executor:
            list(executor.map(work, range(8)))


@pytest.mark.native
def test_floating_point_environment(fenv: FloatEnvironment, target: str) -> None:
    """Flags are left as found; rounding mode and flushing change nothing and are restored."""
    del target
    for n, d in ((9, 3), (5000, 33)):
        arguments = problem(n, d, np.float64)
        wanted = loss.value_and_grad(*arguments)
        for name, mode in fenv.MODES.items():
            fenv.set_mode(mode)
            result = loss.value_and_grad(*arguments)
            found = fenv.mode()
            fenv.set_mode(0)
            assert found == mode, name
            assert_same_leaves(result, wanted)
        for up in (0, fenv.FLAGS, fenv.INVALID):
            fenv.set_flags(up)
            loss.value_and_grad(*arguments)
            found = fenv.flags()
            fenv.set_flags(0)
            assert found == up


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_forms_of_a_call(method: str) -> None:
    X, y, w, b = problem(40, 5, np.float64)
    f = getattr(loss, method)
    wanted = f(X, y, w, b)
    for form in (
        lambda: f(X, y, w, b=b),
        lambda: f(X, y, b=b, w=w),
        lambda: f(X=X, y=y, w=w, b=b),
        lambda: f(b=b, w=w, y=y, X=X),
        lambda: f(X, b=b, y=y, w=w),
        lambda: f(*(X, y), **{"".join(["w"]): w, "".join(["b"]): b}),
    ):
        assert_same_leaves(form(), wanted)
    without = f(X, y, w, None)
    for form in (
        lambda: f(X, y, w),
        lambda: f(X, y, w=w),
        lambda: f(w=w, y=y, X=X),
        lambda: f(X, y, w=w, b=None),
    ):
        for one, other in zip(leaves(form()), leaves(without), strict=True):
            assert one is other is None or assert_same_bits(one, other) is None


@pytest.mark.parametrize("method", METHODS)
def test_wrong_calls(method: str) -> None:
    X, y, w, b = problem(40, 5, np.float64)
    f = getattr(loss, method)
    for call in (
        lambda: f(),
        lambda: f(X),
        lambda: f(X, y),
        lambda: f(X, y, b=b),
        lambda: f(y=y, w=w, b=b),
        lambda: f(X, y, w, b, None, None, b),
        lambda: f(X, y, w, b, b=b),
        lambda: f(X, y, w, X=X),
        lambda: f(X, y, w, c=b),
        lambda: f(X, y, w, B=b),
        lambda: f(X=X, Y=y, w=w, b=b),
        lambda: f(X, y, w, b, v=None),
        lambda: f(X, y, w, **{"": b}),
    ):
        with pytest.raises(TypeError, match=r"argument"):
            call()


class Level(float):
    """A Python float by inheritance."""


BIASES = [
    (0.5, float, None),
    (1, float, None),
    (True, float, None),
    (Level(0.5), float, None),
    (np.float32(0.5), np.float32, ()),
    (np.float64(0.5), np.float64, ()),
    (np.float16(0.5), np.float32, ()),
    (np.int8(1), np.float64, ()),
    (np.array(0.5, np.float32), np.ndarray, ()),
    (np.array(0.5), np.ndarray, ()),
    (np.array([0.5], np.float32), np.ndarray, (1,)),
    (np.array([0.5]), np.ndarray, (1,)),
    (np.array([0.5, 7.0])[::2], np.ndarray, (1,)),
    (np.array([0.5], ">f4"), np.ndarray, (1,)),
    (np.array([1]), np.ndarray, (1,)),
    ([0.5], np.ndarray, (1,)),
]


@on_any_target
@pytest.mark.parametrize(("b", "kind", "shape"), BIASES, ids=lambda value: repr(value)[:40])
def test_intercept_comes_back_in_kind(b: Any, kind: type, shape: tuple[int, ...] | None) -> None:
    for dtype in DTYPES:
        X, y, w, _ = problem(40, 5, dtype)
        value, (gw, gb) = loss.value_and_grad(X, y, w, b)
        plain_value, (plain_gw, plain_gb) = loss.value_and_grad(X, y, w, float(np.ravel(b)[0]))
        assert value == plain_value == loss.value(X, y, w, b)
        assert_same_bits(gw, plain_gw)
        assert type(gb) is kind
        if shape is None:
            assert gb == plain_gb
        else:
            double = np.asarray(b).dtype.kind in "iu" or np.asarray(b).dtype.itemsize == 8
            wanted = np.full(shape, plain_gb, np.float64 if double else np.float32)
            assert_same_bits(gb, wanted)


def test_no_intercept() -> None:
    X, y, w, _ = problem(40, 5, np.float64)
    value, (gw, gb) = loss.value_and_grad(X, y, w, None)
    assert gb is None
    zero_value, (zero_gw, zero_gb) = loss.value_and_grad(X, y, w, 0.0)
    assert value == zero_value == loss.value(X, y, w)
    assert_same_bits(gw, zero_gw)
    assert type(zero_gb) is float


@on_any_target
def test_other_dtypes_of_the_data() -> None:
    """Integers and half precision are converted by the rule, then computed as their equals."""
    rng = np.random.default_rng(0)
    X, y, w = rng.integers(0, 5, (30, 4)), rng.integers(0, 9, 30), rng.integers(1, 3, 4)
    for kind in (bool, np.int8, np.uint16, np.int32, np.int64, np.uint64, np.float16):
        small = np.dtype(kind).char in "?bBhHe"
        stored = np.float32 if small else np.float64
        given = [a.astype(kind) for a in (X, y, w)]
        # An integer parameter is a number, not storage: its gradient has float64.
        parameter = np.float32 if kind is np.float16 else np.float64
        if kind is bool:
            given[2] = w.astype(np.int8)
        plain = [a.astype(d) for a, d in zip(given, (stored, stored, parameter), strict=True)]
        assert_same_leaves(loss.value_and_grad(*given, 0.5), loss.value_and_grad(*plain, 0.5))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.ones(9)}, r"w has shape \(9,\), X of shape \(100, 10\)"),
        (
            {"w": np.ones((10, 1))},
            r"y has shape \(100,\).* needs \(100, 1\) for w",
        ),
        ({"w": np.ones((10, 0))}, r"w has shape \(10, 0\)"),
        ({"w": np.ones((10, 1, 1))}, r"w has shape \(10, 1, 1\)"),
        ({"w": 1.0}, r"w has shape \(\)"),
        ({"y": np.ones(10)}, r"y has shape \(10,\), X of shape \(100, 10\)"),
        ({"y": np.ones((100, 1))}, r"y has shape \(100, 1\)"),
        ({"y": 1.0}, r"y has shape \(\)"),
        ({"X": np.ones(10)}, r"X has shape \(10,\)"),
        ({"X": np.ones((2, 100, 10))}, r"X has shape \(2, 100, 10\)"),
        ({"X": np.ones((10, 100))}, r"\(10, 100\)"),
        ({"X": np.ones((0, 10)), "y": np.ones(0)}, r"X has shape \(0, 10\)"),
        ({"b": np.ones(2)}, r"b has shape \(2,\)"),
        ({"b": np.ones(0)}, r"b has shape \(0,\)"),
        ({"b": np.ones((1, 1))}, r"b has shape \(1, 1\)"),
    ],
)
def test_shape_errors_name_argument_and_shapes(
    method: str, change: dict[str, Any], message: str
) -> None:
    arguments = {"X": np.ones((100, 10)), "y": np.ones(100), "w": np.ones(10), "b": 0.0} | change
    for form in (lambda f: f(**arguments), lambda f: f(*arguments.values())):
        with pytest.raises(ValueError, match=rf"relu_mse.{method}: .*{message}"):
            form(getattr(loss, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["X", "y", "w", "b"])
def test_type_errors_name_the_argument(method: str, name: str) -> None:
    for dtype in (complex, np.complex64, object, np.longdouble, str, "M8[D]"):
        arguments: dict[str, Any] = dict(zip("Xywb", problem(12, 3, np.float64), strict=True))
        shape = np.shape(arguments[name])
        arguments[name] = np.zeros(shape, np.int64).astype(dtype)
        with pytest.raises(TypeError, match=f"relu_mse.{method}: argument {name} has dtype"):
            getattr(loss, method)(**arguments)


# --- special values -------------------------------------------------------------------------------


@on_any_target
@dtypes
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_special_values_propagate_as_in_the_twin(bad: float, dtype: np.dtype) -> None:
    """Wherever a value that is not finite stands, the result is the twin's, and nothing warns."""
    for n, d in ((1, 1), (3, 2), (9, 5), (20, 17), (515, 3)):
        X, y, w, b = problem(n, d, dtype)
        for name, index in itertools.product("Xwb", (0, 1, -1)):
            arguments: dict[str, Any] = {"X": X, "y": y, "w": w, "b": b}
            if name == "b":
                arguments["b"] = bad
            else:
                changed = arguments[name].copy()
                changed.flat[index % changed.size] = bad
                arguments[name] = changed
            with np.errstate(all="raise"):
                result = loss.value_and_grad(**arguments)
                assert_same_bits(loss.value(**arguments), result[0])
            twin = pb.reference.relu_mse.value_and_grad(**arguments)
            for one, other in zip(leaves(result), leaves(twin), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9)


@on_any_target
@dtypes
def test_inactive_samples_hide_their_data(dtype: np.dtype) -> None:
    """The gradient sums over the active samples: y and finite X of the others do not count."""
    for n, target in itertools.product((2, 9, 40, 600), (5, 500)):
        X, y, w = np.full((n, 3), 1.0, dtype), np.full(n, 5, dtype), np.ones(3, dtype)
        wanted = loss.value_and_grad(X[: n - 1], y[: n - 1], w, 0.0)[1]
        X[1], y[1] = -1, target
        value, (gw, gb) = loss.value_and_grad(X, y, w, 0.0)
        assert value == ((n - 1) * (5 - 3) ** 2 + target**2) / n
        np.testing.assert_allclose(gw, wanted[0] * (n - 1) / n, rtol=1e-6)
        assert gb == pytest.approx(wanted[1] * (n - 1) / n)


@on_any_target
@dtypes
def test_huge_and_tiny_data(dtype: np.dtype) -> None:
    """float32's whole range fits float64's accumulators; what overflows there is infinite."""
    info = np.finfo(dtype)
    X = np.full((3, 2), info.max, dtype)
    value, (gw, gb) = loss.value_and_grad(X, np.ones(3, dtype), np.ones(2, dtype), 0.0)
    if dtype == np.float32:
        assert value == pytest.approx((2 * float(info.max)) ** 2)
        assert gb == pytest.approx(4 * float(info.max))
    else:
        assert value == math.inf
    assert (gw == np.inf).all()
    tiny = np.full((3, 2), info.smallest_subnormal, dtype)
    value, (gw, _) = loss.value_and_grad(tiny, np.ones(3, dtype), np.ones(2, dtype), 0.0)
    assert value == 1
    # The twin divides before it sums, and so rounds three times.
    atol = 0 if pb.backend() == "native" else float(info.smallest_subnormal)
    np.testing.assert_allclose(gw, -2 * float(info.smallest_subnormal), rtol=0, atol=atol)

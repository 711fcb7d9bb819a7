"""The public matmul against exact products: shapes, layouts, batches, outputs, bits, threads."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pullback as pb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import (
    DTYPES,
    LAYOUTS,
    OUT_LAYOUTS,
    GuardedOut,
    assert_cotangents,
    assert_product,
    integers,
    normal,
    wide,
)
from oracles import assert_same_bits
from protocol import dtypes, each
from pullback import reference
from pullback.products import matmul
from test_reference_matmul import SHAPES, operands

# Around the widths of vectors and of blocks of registers; then every length up to a few vectors,
# and those around blocks of cache.
FEW = (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17)
MANY = (*range(34), 63, 64, 65, 127, 129, 257)


def check_all(A: Any, B: Any, G: Any) -> None:
    """Fail unless value, cotangents and tangent are right up to rounding."""
    assert_product(matmul(A, B), A, B)
    dA, dB = matmul.vjp(A, B, G)
    assert_product(dA, G, B.mT)
    assert_product(dB, A.mT, G)


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_agrees_with_the_twin(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    A, B, G = operands(a, b)
    np.testing.assert_array_equal(matmul(A, B), reference.matmul(A, B))
    for mine, twin in zip(matmul.vjp(A, B, G), reference.matmul.vjp(A, B, G), strict=True):
        assert mine.shape == twin.shape
        np.testing.assert_array_equal(mine, twin)
    np.testing.assert_array_equal(
        matmul.jvp(A, B, A + 1, B - 1), reference.matmul.jvp(A, B, A + 1, B - 1)
    )


@dtypes
@pytest.mark.parametrize("m", FEW)
def test_all_triples_of_a_few_lengths(m: int, dtype: np.dtype) -> None:
    rng = np.random.default_rng(m)
    for k, n in itertools.product(FEW, repeat=2):
        check_all(*(normal(rng, shape, dtype) for shape in ((m, k), (k, n), (m, n))))


@dtypes
@pytest.mark.parametrize("place", range(3))
def test_every_length_in_every_place(place: int, dtype: np.dtype) -> None:
    rng = np.random.default_rng(place)
    for length in MANY:
        for _ in range(2):
            m, k, n = (length if i == place else int(rng.choice(MANY[:-2])) for i in range(3))
            check_all(*(normal(rng, shape, dtype) for shape in ((m, k), (k, n), (m, n))))


@dtypes
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(257, 129, 257), (20_000, 16, 8), (8, 16, 20_000), (5, 3000, 3), (300, 2, 301), (1, 700, 513)],
)
def test_large_and_slender(m: int, k: int, n: int, dtype: np.dtype) -> None:
    """Integers make sums exact, so that each of millions of terms counts."""
    rng = np.random.default_rng(0)
    A, B, G = (integers(rng, shape, dtype, 5) for shape in ((m, k), (k, n), (m, n)))
    exact = [x.astype(np.int64) for x in (A, B, G)]
    assert np.array_equal(matmul(A, B), exact[0] @ exact[1])
    dA, dB = matmul.vjp(A, B, G)
    assert np.array_equal(dA, exact[2] @ exact[1].T)
    assert np.array_equal(dB, exact[0].T @ exact[2])
    rows = slice(None, None, max(1, m * n // 5000))  # whose long doubles do not take for ever
    assert_product(matmul(A / 7, B / 3)[rows], (A / 7)[rows], B / 3)


@pytest.mark.native
@dtypes
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(2, 300, 300), (8, 256, 400), (7, 1100, 70), (63, 257, 300), (64, 600, 259), (65, 400, 300)],
)
def test_few_rows_against_a_transposed_matrix(m: int, k: int, n: int, dtype: np.dtype) -> None:
    """The same bits as with the matrix in C order, into outputs of any layout."""
    rng = np.random.default_rng(0)
    A, tA = (normal(rng, (m, k), dtype) for _ in range(2))
    B, tB = (normal(rng, (n, k), dtype).T for _ in range(2))
    in_order = B.copy(order="C"), tB.copy(order="C")
    product = matmul(A, B)
    assert_product(product, A, B)
    back = matmul(product.T, A)
    calls = (
        lambda B, tB, out: matmul(A, B, out=out),
        lambda B, tB, out: matmul.jvp(A, B, tA, tB, out=out),
    )
    wanted = [call(*in_order, None) for call in calls]
    for layout in OUT_LAYOUTS:
        for call, exact in zip(calls, wanted, strict=True):
            guarded = GuardedOut((m, n), dtype, layout)
            call(B, tB, guarded.array)
            guarded.check(exact)
        guards = GuardedOut((m, n), dtype, layout), GuardedOut((n, k), dtype, layout)
        matmul.vjp(product, B.T, A, out=tuple(guard.array for guard in guards))
        for guard, alone in zip(guards, (product, back), strict=True):
            guard.check(alone)


@dtypes
def test_vectors(dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    for k, n in itertools.product((0, 1, 3, 16, 33, 129), repeat=2):
        u, v, M = (normal(rng, shape, dtype) for shape in ((k,), (n,), (k, n)))
        assert_product(matmul(u, M), u, M)
        assert_product(matmul(M, v), M, v)
        assert_product(matmul(u, u), u, u)
        gu, gM = matmul.vjp(u, M, v)
        assert_product(gu, M, v)
        assert_product(gM, u[:, None], v[None, :])
        gM, gv = matmul.vjp(M, v, u)
        assert_product(gM, u[:, None], v[None, :])
        assert_product(gv, u, M)
        for left, right in zip(matmul.vjp(u, u, dtype.type(3)), (3 * u, 3 * u), strict=True):
            np.testing.assert_array_equal(left, right)


# --- batches --------------------------------------------------------------------------------------

BATCHES = [
    ((5, 1), (3,)),
    ((1,), (7,)),
    ((7,), (1,)),
    ((), (4,)),
    ((4,), ()),
    ((6,), (6,)),
    ((2, 1, 3), (4, 1)),
    ((1, 1), (2, 3)),
    ((2, 3), (1, 3)),
    ((0,), ()),
    ((), (0,)),
    ((1,), (0,)),
    ((0, 1), (3,)),
    ((2, 0), (1, 1)),
    ((33,), ()),
]


@dtypes
@pytest.mark.parametrize(("a", "b"), BATCHES, ids=str)
def test_batches(a: tuple[int, ...], b: tuple[int, ...], dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    batch = np.broadcast_shapes(a, b)
    for m, k, n in ((1, 1, 1), (2, 3, 4), (9, 5, 17), (3, 0, 2), (0, 3, 2), (16, 8, 4)):
        A, B, G = (normal(rng, shape, dtype) for shape in ((*a, m, k), (*b, k, n), (*batch, m, n)))
        assert_product(matmul(A, B), A, B)
        assert_cotangents(matmul.vjp(A, B, G), A, B, G)
        # Batches that stand there by a stride of 0.
        A, B = np.broadcast_to(A, (*batch, m, k)), np.broadcast_to(B, (*batch, k, n))
        assert_product(matmul(A, B), A, B)
        assert_cotangents(matmul.vjp(A, B, G), A, B, G)
    u, v = normal(rng, 3, dtype), normal(rng, 4, dtype)
    A, B = normal(rng, (*b, 3, 4), dtype), normal(rng, (*a, 3, 4), dtype)
    g = normal(rng, (*b, 4), dtype)
    assert_cotangents(matmul.vjp(u, A, g), u, A, g)
    g = normal(rng, (*a, 3), dtype)
    assert_cotangents(matmul.vjp(B, v, g), B, v, g)


@dtypes
def test_many_small_products_and_a_shared_operand(dtype: np.dtype) -> None:
    """Sums over 10000 items are exact: no term of integers may get lost."""
    rng = np.random.default_rng(0)
    A, G = (integers(rng, (10_000, 4, 4), dtype) for _ in range(2))
    B = integers(rng, (4, 4), dtype)
    assert np.array_equal(matmul(A, B), A @ B)
    dA, dB = matmul.vjp(A, B, G)
    assert np.array_equal(dA, G @ B.T)
    assert np.array_equal(dB, A.reshape(-1, 4).T @ G.reshape(-1, 4))
    dB, dA = matmul.vjp(B, A, G)
    assert np.array_equal(dA, B.T @ G)
    assert np.array_equal(dB, np.einsum("bij,bkj->ik", G, A))


@dtypes
@pytest.mark.parametrize(
    ("count", "m", "k", "n"), [(3, 4, 4, 4), (50, 8, 8, 8), (7, 33, 17, 9), (2, 70, 150, 40)]
)
def test_an_item_ignores_its_batch(count: int, m: int, k: int, n: int, dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    A, B, G = (normal(rng, (count, *s), dtype) for s in ((m, k), (k, n), (m, n)))
    whole, shared = matmul(A, B), matmul(A, B[0])
    dA, dB = matmul.vjp(A, B, G)
    for i in range(count):
        assert_same_bits(whole[i], matmul(A[i], B[i]))
        assert_same_bits(shared[i], matmul(A[i], B[0]))
        for mine, of_batch in zip(matmul.vjp(A[i], B[i], G[i]), (dA, dB), strict=True):
            assert_same_bits(of_batch[i], mine)


# --- layouts --------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("left", LAYOUTS)
def test_layouts(left: str, dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    names = [*LAYOUTS]
    for i, right in enumerate(names):
        third = names[(i + 5) % len(names)]
        for m, k, n in ((33, 17, 29), (4, 4, 4), (1, 40, 3), (66, 5, 130), (0, 2, 3)):
            A, B, G = (normal(rng, s, dtype) for s in ((m, k), (k, n), (m, n)))
            A, B, G = LAYOUTS[left](A), LAYOUTS[right](B), LAYOUTS[third](G)
            before = [x.tobytes() for x in (A, B, G)]
            check_all(A, B, G)
            assert [x.tobytes() for x in (A, B, G)] == before
        A, B, G = (normal(rng, s, dtype) for s in ((3, 1, 5, 6), (2, 6, 7), (3, 2, 5, 7)))
        A, B, G = LAYOUTS[left](A), LAYOUTS[right](B), LAYOUTS[third](G)
        assert_product(matmul(A, B), A, B)
        assert_cotangents(matmul.vjp(A, B, G), A, B, G)


@dtypes
def test_transposed_operands_of_one_array(dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 5, 16, 33, 70):
        A = normal(rng, (n, n), dtype)
        for left, right, G in itertools.product((A, A.T), repeat=3):
            check_all(left, right, G)


@dtypes
def test_the_place_in_memory_does_not_matter(dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    for m, k, n in ((5, 7, 3), (33, 40, 37), (100, 64, 70)):
        arrays = [normal(rng, s, dtype) for s in ((m, k), (k, n), (m, n))]
        expected = (matmul(*arrays[:2]), *matmul.vjp(*arrays))
        for offset in (1, 2, 3, 5, 8, 13):
            A, B, G = (
                np.empty(x.size + 16, dtype)[offset : offset + x.size].reshape(x.shape)
                for x in arrays
            )
            for mine, x in zip((A, B, G), arrays, strict=True):
                mine[...] = x
            for actual, bits in zip((matmul(A, B), *matmul.vjp(A, B, G)), expected, strict=True):
                assert_same_bits(actual, bits)


def test_nan_and_infinity_come_through() -> None:
    """As in three nested loops: where, and of which sign."""
    rng = np.random.default_rng(0)
    for m, k, n in ((1, 1, 1), (5, 7, 3), (17, 33, 9), (40, 20, 70), (3, 200, 5), (8, 16, 24)):
        for _ in range(4):
            for dtype in DTYPES:
                A, B, G = (normal(rng, s, dtype) for s in ((m, k), (k, n), (m, n)))
                for array in (A, B, G):
                    for value in (np.nan, np.inf, -np.inf, 0.0, -0.0):
                        spots = rng.integers(0, array.size, max(1, array.size // 50))
                        array.reshape(-1)[spots] = value
                dA, dB = matmul.vjp(A, B, G)
                cases: list[tuple[Any, Any, Any]]
                cases = [(matmul(A, B), A, B), (dA, G, B.T), (dB, A.T, G)]
                for actual, left, right in cases:
                    with np.errstate(all="ignore"):
                        exact = np.matmul(*wide(left, right))
                    odd = ~np.isfinite(exact)
                    np.testing.assert_array_equal(np.isfinite(actual), ~odd)
                    np.testing.assert_array_equal(actual[odd], exact[odd].astype(dtype))


def test_huge_and_tiny_numbers_keep_quiet() -> None:
    for dtype in DTYPES:
        info = np.finfo(dtype)
        with np.errstate(all="raise"):
            A = np.full((9, 9), info.max)
            assert (matmul(A, A) == np.inf).all()
            assert (matmul.vjp(A, -A, A)[0] == -np.inf).all()
            A = np.full((9, 9), info.smallest_subnormal)
            assert (matmul(A, A) == 0).all()
            np.testing.assert_array_equal(matmul(A, np.ones((9, 9), dtype)), 9 * A)
            assert matmul.jvp(A, A, A, A).dtype == dtype


# --- wrt and out ----------------------------------------------------------------------------------

WRT = [0, 1, (0,), (1,), (0, 1), (1, 0), np.int64(1)]


def chosen(results: tuple[Any, ...], wrt: Any) -> tuple[Any, ...]:
    """Return those of all cotangents that `wrt` names."""
    return tuple(results[i] for i in (wrt if isinstance(wrt, tuple) else (wrt,)))


@pytest.mark.parametrize("wrt", WRT, ids=repr)
def test_wrt(wrt: Any) -> None:
    for a, b in SHAPES:
        A, B, G = operands(a, b)
        result = matmul.vjp(A, B, G, wrt=wrt)
        assert isinstance(result, tuple) == isinstance(wrt, tuple)
        given = result if isinstance(wrt, tuple) else (result,)
        for actual, expected in zip(given, chosen(matmul.vjp(A, B, G), wrt), strict=True):
            assert_same_bits(actual, expected)


@pytest.mark.parametrize(
    ("wrt", "error"),
    [
        (2, ValueError),
        (-1, ValueError),
        ((), ValueError),
        ((0, 0), ValueError),
        ((0, 2), ValueError),
        ((1, -1), ValueError),
        (None, TypeError),
        ("C", ValueError),
        (("A", 0), ValueError),
        (("A", "all"), ValueError),
        (True, TypeError),
        (0.0, TypeError),
        ([0, 1], TypeError),
        ((0, None), TypeError),
        ((False, 1), TypeError),
    ],
    ids=repr,
)
def test_what_wrt_cannot_be(wrt: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"matmul\.vjp: wrt must be .*, not ") as caught:
        matmul.vjp(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)), wrt=wrt)
    assert str(caught.value).endswith(repr(wrt))


@dtypes
@pytest.mark.parametrize("layout", OUT_LAYOUTS)
@each("a, b", [*SHAPES, ((33, 17), (17, 70)), ((3, 9, 8), (8, 5))])
def test_out(a: tuple[int, ...], b: tuple[int, ...], layout: str, dtype: np.dtype) -> None:
    if a == b == (3,) or a == b == (0,):
        layout = "C"  # a scalar has no layout
    A, B, G = (x.astype(dtype) for x in operands(a, b))
    value = np.matmul(A, B)
    out = GuardedOut(value.shape, dtype, layout)
    assert matmul(A, B, out=out.array) is out.array
    out.check(value)
    out = GuardedOut(value.shape, dtype, layout)
    assert matmul.jvp(A, B, A, B, out=out.array) is out.array
    out.check(2 * value)
    exact = [matmul.vjp(A, B, G)[i] for i in (0, 1)]
    for wrt in ((0, 1), (1, 0), (0,), (1,)):
        outs = [GuardedOut((a, b)[i], dtype, layout) for i in wrt]
        arrays = tuple(o.array for o in outs)
        results = matmul.vjp(A, B, G, wrt=wrt, out=arrays)
        for i, o, result in zip(wrt, outs, results, strict=True):
            assert result is o.array
            o.check(exact[i])
        one, *others = (GuardedOut((a, b)[i], dtype, layout) for i in wrt)
        first, *rest = matmul.vjp(A, B, G, wrt=wrt, out=(one.array, *(None for _ in others)))
        assert first is one.array
        one.check(exact[wrt[0]])
        for i, result in zip(wrt[1:], rest, strict=True):
            assert_same_bits(result, exact[i])
    single = GuardedOut(b, dtype, layout)
    assert matmul.vjp(A, B, G, wrt=1, out=single.array) is single.array
    single.check(exact[1])


@dtypes
def test_outputs_over_inputs(dtype: np.dtype) -> None:
    """The result is as if it had been computed first, wherever it goes."""
    rng = np.random.default_rng(0)
    for n in (1, 4, 17, 70):
        block = integers(rng, (3 * n + 3, n), dtype)
        starts = (0, 1, n // 2, n, n + 2, 2 * n, 2 * n + 3)
        A, B, G = block[:n].copy(), block[n : 2 * n].copy(), block[2 * n : 3 * n].copy()
        expected = (A @ B, G @ B.T, A.T @ G, 2 * (A @ B))
        for start in starts:
            calls = (
                lambda A, B, G, out: matmul(A, B, out=out),
                lambda A, B, G, out: matmul.vjp(A, B, G, wrt=0, out=out),
                lambda A, B, G, out: matmul.vjp(A, B, G, wrt=1, out=out),
                lambda A, B, G, out: matmul.jvp(A, B, A, B, out=out),
            )
            for call, wanted in zip(calls, expected, strict=True):
                fresh = block.copy()
                out = fresh[start : start + n]
                call(fresh[:n], fresh[n : 2 * n], fresh[2 * n : 3 * n], out)
                assert np.array_equal(out, wanted)
        for i, j in itertools.permutations((0, n, 2 * n), 2):
            fresh = block.copy()
            outs = fresh[i : i + n], fresh[j : j + n].T
            matmul.vjp(fresh[:n], fresh[n : 2 * n], fresh[2 * n : 3 * n], out=outs)
            assert np.array_equal(outs[0], expected[1])
            assert np.array_equal(outs[1], expected[2])


def out_errors() -> Iterator[tuple[str, Any, type[Exception], str]]:
    """Yield outputs that no (2, 3) float64 result takes, and what is said about them."""
    read_only = np.zeros((2, 3))
    read_only.flags.writeable = False
    yield "shape", np.zeros((3, 2)), ValueError, r"has shape \(3, 2\), the result \(2, 3\)"
    yield "more axes", np.zeros((1, 2, 3)), ValueError, r"has shape \(1, 2, 3\)"
    yield "integers", np.zeros((2, 3), int), TypeError, "has dtype int64, the result float64"
    yield "read-only", read_only, ValueError, "is read-only"
    yield "repeated", np.broadcast_to(np.zeros(3), (2, 3)), ValueError, "is read-only"
    yield "list", [[0.0] * 3] * 2, TypeError, "must be an array, not list"
    yield "number", 1.0, TypeError, "must be an array, not float"


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [(bad, error, message) for _, bad, error, message in out_errors()],
    ids=[name for name, *_ in out_errors()],
)
def test_what_out_cannot_be(bad: Any, error: type[Exception], message: str) -> None:
    A, B, C = np.ones((2, 4)), np.ones((4, 3)), np.ones((2, 3))
    for call, name in (
        (lambda: matmul(A, B, out=bad), "matmul: out"),
        (lambda: matmul.jvp(A, B, A, B, out=bad), "matmul.jvp: out"),
        (lambda: matmul.vjp(C, B.T, A, wrt=0, out=bad), "matmul.vjp: out"),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert str(caught.value).startswith(f"{name} ")
    untouched = np.full((3, 4), 7.0)
    for wrt, outs in (((0, 1), (bad, untouched)), ((1, 0), (untouched, bad))):
        with pytest.raises(error, match=message) as caught:
            matmul.vjp(C, B.T, A, wrt=wrt, out=outs)
        assert str(caught.value).startswith(f"matmul.vjp: out[{wrt[0]}] ")
    assert (untouched == 7).all()


def test_tuples_that_out_cannot_be() -> None:
    A = np.ones((2, 2))
    for bad in (np.ones((2, 2, 2)), [A, A], A):
        with pytest.raises(TypeError, match=r"matmul\.vjp: out must be a tuple of 2 arrays"):
            matmul.vjp(A, A, A, out=bad)
    for outs in ((), (A,), (A, A, A)):
        with pytest.raises(ValueError, match=rf"matmul\.vjp: out holds {len(outs)} arrays"):
            matmul.vjp(A, A, A, out=outs)
    with pytest.raises(TypeError, match=r"matmul\.vjp: out must be an array, not tuple"):
        matmul.vjp(A, A, A, wrt=0, out=(A, A))
    with pytest.raises(TypeError, match=r"matmul: out must be an array, not tuple"):
        matmul(A, A, out=())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ">f8", complex])
def test_outputs_of_another_dtype(dtype: Any) -> None:
    """As in NumPy, results are cast if the kind is the same, and a tuple of one is one."""
    A, B, G = np.ones((2, 4)) / 3, np.ones((4, 3)) / 7, np.ones((2, 3))
    out = np.full((2, 3), 7, dtype)
    assert matmul(A, B, out=out) is matmul(A, B, out=(out,)) is out
    np.testing.assert_array_equal(out, matmul(A, B).astype(dtype))
    dB = np.full((4, 3), 7, dtype)
    dA, same = matmul.vjp(A, B, G, out=(None, dB))
    assert same is dB
    np.testing.assert_array_equal(dB, matmul.vjp(A, B, G)[1].astype(dtype))
    assert dA.dtype == float


@pytest.mark.parametrize("f", [matmul, reference.matmul], ids=str)
def test_wrt_by_name_or_position(f: Any) -> None:
    A, B, G = np.ones((2, 4)) / 3, np.ones((4, 3)) / 7, np.ones((2, 3))
    dA, dB = f.vjp(A, B, G)
    for wrt, wanted in (
        ("A", dA),
        (1, dB),
        (("B",), (dB,)),
        (("B", 0), (dB, dA)),
        ("all", (dA, dB)),
    ):
        found = f.vjp(A, B, G, wrt=wrt)
        assert type(found) is type(wanted)
        np.testing.assert_array_equal(
            np.hstack([np.ravel(a) for a in found]), np.hstack([np.ravel(a) for a in wanted])
        )


def test_outputs_that_overlap() -> None:
    A = np.ones((4, 4))
    base = np.zeros((4, 8))
    for outs in ((base[:, :4],) * 2, (base[:, :4], base[:, 3:7]), (base[:, ::2], base[:, 1:5])):
        with pytest.raises(ValueError, match=r"matmul\.vjp: out\[0\] and out\[1\] overlap"):
            matmul.vjp(A, A, A, out=outs)
    assert (base == 0).all()
    interleaved = base[:, ::2], base[:, 1::2]
    matmul.vjp(A, 2 * A, A, out=interleaved)
    assert (interleaved[0] == 8).all()
    assert (interleaved[1] == 4).all()


def test_subclasses_of_arrays() -> None:
    A, out = np.ones((2, 2)).view(np.matrix), np.zeros((2, 2)).view(np.matrix)
    assert type(matmul(A, A)) is np.ndarray
    assert matmul(A, A, out=out) is out
    assert out.tolist() == [[2, 2], [2, 2]]


# --- tangents -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_tangents_that_are_none(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    A, B, _ = operands(a, b)
    tA, tB = A - 3, B + 2
    np.testing.assert_array_equal(matmul.jvp(A, B, tA, None), np.matmul(tA, B))
    np.testing.assert_array_equal(matmul.jvp(A, B, None, tB), np.matmul(A, tB))
    nothing = matmul.jvp(A, B, None, None)
    np.testing.assert_array_equal(nothing, np.zeros(np.shape(np.matmul(A, B))))


def test_a_tangent_of_none_costs_no_product() -> None:
    A, B = np.full((2, 2), np.nan), np.ones((2, 2))
    assert (matmul.jvp(A, B, B, None) == 2).all()
    assert (matmul.jvp(B, A, None, B) == 2).all()
    assert matmul.jvp(A.astype(np.float32), B.astype(np.float32), None, B).dtype == np.float64


def test_an_output_whose_elements_share_memory() -> None:
    """As if the whole product were copied into it."""
    rng = np.random.default_rng(0)
    A, B = integers(rng, (3, 900), np.float64, 3), integers(rng, (900, 4), np.float64, 3)
    results = []
    for _ in range(2):
        memory = np.zeros(6)
        results.append((memory, np.lib.stride_tricks.as_strided(memory, (3, 4), (8, 8))))
    results[0][1][...] = A @ B
    matmul(A, B, out=results[1][1])
    np.testing.assert_array_equal(results[1][0], results[0][0])


@dtypes
def test_tangents_are_accurate(dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    for m, k, n in ((3, 5, 4), (33, 64, 17)):
        A, tA = normal(rng, (2, m, k), dtype)
        B, tB = normal(rng, (2, k, n), dtype)
        both = np.concatenate([tA, A], axis=1), np.concatenate([B, tB], axis=0)
        assert_product(matmul.jvp(A, B, tA, tB), *both)
    # Both terms in slabs of a long sum, exact.
    A, tA = integers(rng, (2, 3, 5000), dtype, 3)
    B, tB = integers(rng, (2, 5000, 4), dtype, 3)
    np.testing.assert_array_equal(matmul.jvp(A, B, tA, tB), tA @ B + A @ tB)


@given(
    lengths=st.tuples(*[st.integers(0, 40)] * 3),
    batches=st.sampled_from(BATCHES),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=80)
def test_adjoint_identity(lengths: Any, batches: Any, dtype: Any, seed: int) -> None:
    """<G, J t> = <J^T G, t>, to the last bit where all numbers are integers."""
    rng = np.random.default_rng(seed)
    (m, k, n), (a, b) = lengths, batches
    A, tA = integers(rng, (2, *a, m, k), dtype, 3)
    B, tB = integers(rng, (2, *b, k, n), dtype, 3)
    G = integers(rng, (*np.broadcast_shapes(a, b), m, n), dtype, 3)
    dA, dB = matmul.vjp(A, B, G)
    assert dA.dtype == dB.dtype == dtype
    left = np.sum(wide(G)[0] * matmul.jvp(A, B, tA, tB))
    assert left == np.sum(wide(dA)[0] * tA) + np.sum(wide(dB)[0] * tB)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [(3,), (2, 1), (1, 3), (3, 2), (2, 3, 1), (), (0,), (6,)])
def test_cotangents_of_another_shape(bad: tuple[int, ...]) -> None:
    message = r"G has shape .*, the result \(2, 3\); A has shape \(2, 4\), B has shape \(4, 3\)"
    with pytest.raises(ValueError, match=message) as caught:
        matmul.vjp(np.ones((2, 4)), np.ones((4, 3)), np.ones(bad))
    assert f"G has shape {bad}," in str(caught.value)


@pytest.mark.parametrize("bad", [1j, None, "a", np.longdouble(1), np.datetime64("2020-01-01")])
def test_dtypes_without_a_kernel(bad: Any) -> None:
    A, wrong = np.ones((1, 1)), np.full((1, 1), bad)
    for call, name in (
        (lambda: matmul(wrong, A), "matmul: argument A"),
        (lambda: matmul(A, wrong), "matmul: argument B"),
        (lambda: matmul.vjp(A, A, wrong), "matmul.vjp: argument G"),
        (lambda: matmul.jvp(A, A, A, wrong), "matmul.jvp: argument tB"),
        (lambda: matmul.jacobian(wrong, A), "matmul.jacobian: argument A"),
    ):
        with pytest.raises(TypeError, match="for which there is no kernel") as caught:
            call()
        assert str(caught.value).startswith(f"{name} has dtype")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((np.int8, np.float32), np.float32),
        ((bool, np.float16), np.float32),
        ((np.int32, np.float32), np.float64),
        ((np.int64, np.int64), np.float64),
        ((np.float32, np.float64), np.float64),
    ],
)
def test_dtypes_of_results(arguments: tuple[Any, Any], expected: Any) -> None:
    A, B = (np.ones((2, 2), dtype) for dtype in arguments)
    assert matmul(A, B).dtype == expected
    assert matmul.jvp(A, B, A, None).dtype == expected
    assert {d.dtype for d in matmul.vjp(A, B, np.ones((2, 2), np.float32))} == {np.dtype(expected)}
    assert matmul.vjp(A, B, np.ones((2, 2)), wrt=0).dtype == np.float64


def test_wrong_calls() -> None:
    A = np.ones((2, 2))
    for call in (
        lambda: matmul(A),  # type: ignore[call-arg]
        lambda: matmul(A=A, B=A),  # type: ignore[call-arg]
        lambda: matmul.vjp(A, A),  # type: ignore[call-arg]
        lambda: matmul.vjp(A, A, A, 0),  # type: ignore[misc]
        lambda: matmul.vjp(A, A, A, nonsense=1),  # type: ignore[call-arg]
        lambda: matmul.jvp(A, A, A),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError):
            call()


# --- threads --------------------------------------------------------------------------------------

LARGE = [
    ((300, 310), (310, 290)),
    ((3000, 64), (64, 32)),
    ((500, 16, 8), (8, 16)),
    ((9, 2000), (2000, 9)),
]


@dtypes
@pytest.mark.parametrize(("a", "b"), LARGE, ids=str)
def test_same_bits_for_any_number_of_threads(
    a: tuple[int, ...], b: tuple[int, ...], dtype: np.dtype
) -> None:
    rng = np.random.default_rng(0)
    A, B = normal(rng, a, dtype), normal(rng, b, dtype)
    with pb.threads(1):
        value = matmul(A, B)
        G = normal(rng, value.shape, dtype)
        expected = (value, *matmul.vjp(A, B, G), matmul.jvp(A, B, A, B))
    for threads in range(2, 9):
        with pb.threads(threads):
            results = (matmul(A, B), *matmul.vjp(A, B, G), matmul.jvp(A, B, A, B))
        for actual, bits in zip(results, expected, strict=True):
            assert actual.tobytes() == bits.tobytes()


def test_concurrent_calls() -> None:
    """Nobody gets somebody else's result, or packs into somebody else's buffer."""
    rng = np.random.default_rng(0)
    data = []
    for shape in ((4, 4, 4), (33, 17, 40), (150, 150, 150), (2000, 16, 8)):
        m, k, n = shape
        A, B, G = (normal(rng, s, np.float64) for s in ((m, k), (k, n), (m, n)))
        data.append(((A, B, G), (matmul(A, B), *matmul.vjp(A, B, G))))
    barrier = threading.Barrier(8)

    def work(first: int) -> int:
        barrier.wait()
        for i in range(12):
            (A, B, G), expected = data[(first + i) % len(data)]
            for actual, bits in zip((matmul(A, B), *matmul.vjp(A, B, G)), expected, strict=True):
                assert actual.tobytes() == bits.tobytes()
        return first

    for threads in (1, 3):
        with pb.threads(threads), ThreadPoolExecutor(8) as executor:
            assert list(executor.map(work, range(8))) == [*range(8)]


@pytest.mark.parametrize("place", ["first", "later"])
def test_two_cotangents_have_the_bits_of_each_alone(place: str) -> None:
    """Also where one of them is cut into slabs, and for any number of threads."""
    rng = np.random.default_rng(0)
    A, B, G = (normal(rng, shape, np.float32) for shape in ((4096, 4), (4, 4096), (4096, 4096)))
    if place == "later":
        A, B, G = (np.broadcast_to(x, (5, *x.shape)) for x in (A, B, G))
    expected = [matmul.vjp(A, B, G, wrt=i).tobytes() for i in (0, 1)]
    for threads in (1, 2):
        with pb.threads(threads):
            assert [x.tobytes() for x in matmul.vjp(A, B, G)] == expected


def test_sums_over_axes_that_are_no_single_one() -> None:
    rng = np.random.default_rng(0)
    A = normal(rng, (4, 5), np.float32)
    B = normal(rng, (3, 2, 5, 2, 6), np.float32).transpose(1, 3, 0, 2, 4)
    G = normal(rng, (2, 2, 3, 4, 6), np.float32)
    assert_cotangents(matmul.vjp(A, B, G), A, B, G)
    # One of them empty, of arrays that are not.
    B, G = np.ones((4, 6, 5, 3))[:0, :3], np.ones((4, 3, 4, 3))[:0]
    assert not matmul.vjp(np.ones((1, 1, 4, 5)), B, G, wrt=0).any()


@pytest.mark.native
def test_an_interrupt_amid_a_batch_of_long_sums() -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    x = np.ones(1, np.float32)
    A, B = np.broadcast_to(x, (500, 32, 65536)), np.broadcast_to(x, (500, 65536, 32))
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        with pytest.raises(KeyboardInterrupt):
            matmul(A, B)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# --- the object -----------------------------------------------------------------------------------


def test_identity_of_the_object() -> None:
    assert matmul is pb.matmul
    assert matmul.__name__ == "matmul"
    assert pickle.loads(pickle.dumps(matmul)) is matmul
    assert copy.deepcopy(matmul) is matmul
    assert pickle.loads(pickle.dumps(matmul.vjp)) == matmul.vjp
    for method in (matmul, matmul.__call__, matmul.vjp, matmul.jvp, matmul.jacobian):
        assert "Raises" in (inspect.getdoc(method) or "")

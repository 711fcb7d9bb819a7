"""`pullback.gram` against exact integers, an error bound, and what its conventions say."""

from __future__ import annotations

import functools
import re
from fractions import Fraction

import ml_dtypes
import numpy as np
import pullback as pb
import pytest
from pullback import config, reference
from pullback.design_matrix import as_data
from pullback.engine import BACKEND
from pullback.grams import gram_matrices
from pullback.oracle.engine import ORACLE
from scipy import sparse

TWINS = (pb.gram, reference.gram)


def with_index(X, dtype):
    X.indices, X.indptr = X.indices.astype(dtype), X.indptr.astype(dtype)
    return X


def shuffled(X):
    """Each row's entries the other way round, and each of them in two halves."""
    X = sparse.csr_array(X)
    rows = [slice(*X.indptr[i : i + 2]) for i in range(X.shape[0])]
    indices = np.concatenate([X.indices[:0], *(np.repeat(X.indices[r][::-1], 2) for r in rows)])
    data = np.concatenate([X.data[:0], *(np.repeat(X.data[r][::-1] / 2, 2) for r in rows)])
    made = sparse.csr_array((data, indices.astype(np.int32), 2 * X.indptr), shape=X.shape)
    assert len(made.data) == 2 * X.nnz
    return made


# What holds the elements of a matrix of small integers, halves of which are exact, too.
LAYOUTS = {
    "rows": lambda X: X,
    "columns": np.asfortranarray,
    "float32 rows": lambda X: X.astype(np.float32),
    "float32 columns": lambda X: np.asfortranarray(X, np.float32),
    "every other": lambda X: np.repeat(np.repeat(X, 2, 0), 2, 1)[::2, ::2],
    "float32 every other": lambda X: np.repeat(np.repeat(X, 2, 0), 2, 1).astype("f4")[::2, ::2],
    "backwards": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "float16 rows": lambda X: X.astype(np.float16),
    "float16 columns": lambda X: np.asfortranarray(X, np.float16),
    "float16 every other": lambda X: np.repeat(np.repeat(X, 2, 0), 2, 1).astype("f2")[::2, ::2],
    "bfloat16 rows": lambda X: X.astype(ml_dtypes.bfloat16),
    "bfloat16 columns": lambda X: np.asfortranarray(X.astype(ml_dtypes.bfloat16)),
    "swapped float16": lambda X: X.astype(np.dtype(np.float16).newbyteorder()),
    "integers": lambda X: X.astype(np.int8),
    "swapped": lambda X: X.astype(X.dtype.newbyteorder()),
    "one row everywhere": lambda X: X,
    "csr": sparse.csr_array,
    "csc": sparse.csc_array,
    "csr float32": lambda X: sparse.csr_array(X.astype(np.float32)),
    "csc float32": lambda X: sparse.csc_array(X.astype(np.float32)),
    "csr int64": lambda X: with_index(sparse.csr_array(X), np.int64),
    "csc int64": lambda X: with_index(sparse.csc_array(X), np.int64),
    "csr integers": lambda X: sparse.csr_array(X.astype(np.int8)),
    "csr in any order": shuffled,
    "csr matrix": sparse.csr_matrix,
}
SIZES = [
    (0, 3), (1, 1), (1, 7), (5, 0), (3, 2), (64, 8), (65, 9), (193, 10), (400, 23), (70, 24),
    (50, 25), (40, 49), (20, 245), (20, 250), (2100, 3), (3073, 6), (17000, 2),
]  # fmt: skip


@functools.cache
def integers(n, d, one_row):
    """Return X, and factors with the matrices that they make."""
    rng = np.random.default_rng((n, d))
    X = rng.integers(-3, 4, (n, d)).astype(float)
    X[rng.random((n, d)) < 0.5] = 0
    if one_row and n:
        X = np.broadcast_to(X[0], (n, d))
    cases = [(None, X.T @ X)]
    for m in (0, 1, 3):
        c = rng.integers(-2, 3, (n, m)).astype(float)
        cases.append((c, np.array([X.T @ (f[:, None] * X) for f in c.T]).reshape(m, d, d)))
    return X, cases


@pytest.mark.parametrize("layout", LAYOUTS)
def test_integers_are_exact(layout):
    for n, d in SIZES:
        X, cases = integers(n, d, layout == "one row everywhere")
        held = LAYOUTS[layout](X)
        for c, want in cases:
            for gram in TWINS if n * d < 1000 else TWINS[:1]:
                got = gram(held, c)
                assert got.dtype == np.float64
                assert got.shape == want.shape
                assert (got == want).all(), f"{n} x {d}"
            if c is not None and c.shape[1] == 1:
                assert (pb.gram(held, c[:, 0]) == want[0]).all()
                assert (pb.gram(held, c[:, 0].astype(int).tolist()) == want[0]).all()


@pytest.mark.parametrize("layout", ["rows", "columns", "float32 columns", "float16 rows"])
def test_wide_integers_are_exact(layout):
    X = np.random.default_rng(0).integers(-3, 4, (400, 771)).astype(float)
    np.testing.assert_array_equal(pb.gram(LAYOUTS[layout](X)), X.T @ X)


@pytest.mark.parametrize("engine", [BACKEND, ORACLE])
@pytest.mark.parametrize(
    "layout", ["rows", "float32 columns", "float16 rows", "csr", "csc", "csr in any order"]
)
def test_an_intercept_adds_a_border(layout, engine):
    rng = np.random.default_rng(1)
    for n, d in ((0, 2), (3, 0), (50, 7), (50, 8), (30, 24), (2100, 3)):
        X = rng.integers(-3, 4, (n, d)).astype(float)
        c = rng.integers(-2, 3, (n, 2)).astype(float)
        ones = np.column_stack([X, np.ones(n)])
        data = as_data("gram", LAYOUTS[layout](X))
        got = gram_matrices(engine, "gram", data, c, intercept=True)
        want = np.stack([ones.T @ (f[:, None] * ones) for f in c.T])
        np.testing.assert_array_equal(got, want)
        got = gram_matrices(engine, "gram", data, None, intercept=True)
        np.testing.assert_array_equal(got, [ones.T @ ones])


@pytest.mark.parametrize("layout", ["rows", "columns", "csr", "csc"])
def test_sums_are_within_their_bound(layout):
    # Chains of at most 256 products, fewer than 128 of them in a row, then pairs.
    rng = np.random.default_rng(2)
    for n, d in ((300, 4), (3000, 2)):
        X = rng.standard_normal((n, d)) * 2.0 ** rng.integers(-20, 20, (n, 1))
        c = rng.standard_normal(n)
        got = pb.gram(LAYOUTS[layout](X), c)
        bound = (256 + 128 + 20) * 2.0**-53 * (np.abs(X).T @ (np.abs(c)[:, None] * np.abs(X)))
        rows = [[Fraction(x) for x in row] for row in X.tolist()]
        for i in range(d):
            for j in range(d):
                terms = (
                    Fraction(f) * row[i] * row[j] for f, row in zip(c.tolist(), rows, strict=True)
                )
                assert abs(Fraction(got[i, j]) - sum(terms)) <= Fraction(bound[i, j])


@pytest.mark.native
@pytest.mark.parametrize(
    "layout", ["rows", "columns", "float32 rows", "float16 columns", "bfloat16 rows", "csr", "csc"]
)
def test_bits_depend_on_neither_threads_nor_place(layout):
    rng = np.random.default_rng(3)
    for n, d in ((9000, 7), (3000, 60), (70000, 3)):
        X, c = rng.standard_normal((n, d)), rng.standard_normal((n, 2))
        X[rng.random((n, d)) < 0.3] = 0
        held = LAYOUTS[layout](X)
        want = pb.gram(held, c)
        assert np.array_equal(want, want.swapaxes(1, 2))
        for threads in range(1, 9):
            with pb.threads(threads):
                for _ in range(2):
                    assert pb.gram(held, c).tobytes() == want.tobytes()
        if isinstance(held, np.ndarray):
            for at in range(1, 4):
                room = np.zeros(
                    (n, d + 9), held.dtype, order="C" if held.flags.c_contiguous else "F"
                )
                moved = room[:, at : at + d]
                moved[...] = held
                assert pb.gram(moved, c).tobytes() == want.tobytes()


@pytest.mark.native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fast_path_and_its_fallback_give_the_same_bits(layout):
    rng = np.random.default_rng(6)
    X = LAYOUTS[layout](rng.integers(-3, 4, (70, 9)) / 3)
    c = rng.standard_normal((70, 2))
    for given in (None, c, c[:, 0], c[::-1], c.astype(np.float32), c[:, 0].tolist()):
        want = pb.gram.__wrapped__(X, given)
        assert pb.gram(X, given).tobytes() == want.tobytes()
        assert pb.gram(X=X, c=given).tobytes() == want.tobytes()


def guarded_gram(X, c):
    """Sum what adds: neither a factor nor an element of 0."""
    terms = (c[:, None] * X)[:, :, None] * X[:, None]
    adds = (c[:, None, None] != 0) & (X[:, :, None] != 0) & (X[:, None] != 0)
    upper = np.triu(np.where(adds, terms, 0).sum(axis=0))
    return upper + np.triu(upper, 1).T


@pytest.mark.parametrize("layout", ["rows", "columns", "float32 rows", "csr", "csc"])
@pytest.mark.parametrize("gram", TWINS)
def test_zeros_add_nothing(gram, layout):
    rng = np.random.default_rng(4)
    for n, d in ((4, 3), (500, 30), (2500, 2)):
        for case in range(4):
            X = rng.integers(-3, 4, (n, d)).astype(float)
            X[rng.random((n, d)) < 0.5] = 0
            c = rng.integers(1, 4, n).astype(float)
            at = rng.integers(n)
            if case == 0:
                c[at], X[at] = 0, np.nan
            elif case == 1:
                c[at], X[at, 0] = np.inf, 0
            elif case == 2:
                X[at] = 0
                X[at, -1] = np.inf
            else:
                c[at], X[at, 0], X[at, -1] = 2.0, 2.0**100 if layout == "float32 rows" else 1e300, 0
            with np.errstate(all="ignore"):
                held = LAYOUTS[layout](X)
                want = guarded_gram(X, c)
            np.testing.assert_array_equal(gram(held, c), want, f"{case}")


HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("gram", TWINS)
def test_narrow_data_have_the_bits_of_float32(gram, dtype):
    patterns = np.random.default_rng(5).permutation(1 << 16).astype(np.uint16)
    rng = np.random.default_rng(5)
    for n, d in ((1, 1), (5, 0), (77, 3), (8, 49), (1100, 13), (9, 245)):
        if n * d > 1000 and (gram is reference.gram or config.native is None):
            continue  # the twin is slow
        room = rng.standard_normal((2 * n, d + 3)).astype(dtype)
        for case in ("ordinary", "subnormal", "inf", "nan", "all"):
            X = room.copy()
            if case == "all":
                X = np.resize(patterns, X.shape).view(dtype)
            elif case == "subnormal":
                X[::3] = np.finfo(np.float16).smallest_subnormal if dtype.kind == "f" else 2.0**-130
                X[1::3] *= -0.0
            elif case != "ordinary":
                X[n // 2] = dtype.type(case)
                X[n // 2, ::2] = 0
            c = np.where(rng.random((n, 2)) < 0.1, 0, rng.standard_normal((n, 2)))
            columns = np.asfortranarray(X)
            for held in (
                X[:n, :d].copy(), X[:n, 3:], X[::2, :d], X[:n, ::-1][:, 3:], X[:n:-1, :d][: n - 1],
                columns[:n, 1 : d + 1], columns[::2, :d], columns[n:, ::-1][:, 3:],
            ):  # fmt: skip
                with np.errstate(all="ignore"):
                    wide = held.astype(np.float32)
                for given in (None, c[: len(held)]):
                    want = gram(wide, given)
                    assert gram(held, given).tobytes() == want.tobytes(), f"{n} x {d}, {case}"


X23 = np.ones((2, 3))
REFUSED = [
    ((X23, [1.0]), ValueError, r"c has shape \(1,\), X of shape \(2, 3\) needs \(2,\) or \(2, M\)"),
    ((X23, 1.0), ValueError, r"gram: c has shape \(\)"),
    ((X23, np.ones((2, 1, 1))), ValueError, r"gram: c has shape \(2, 1, 1\)"),
    ((X23, [1j, 2j]), TypeError, r"gram: argument c has dtype complex128"),
    ((X23 * 1j,), TypeError, r"gram: argument X has dtype complex128"),
    ((np.ones(3),), ValueError, r"gram: X has shape \(3,\), needs two axes"),
    ((sparse.coo_array(X23),), TypeError, r"gram: X is in the sparse format 'coo'"),
]  # fmt: skip


@pytest.mark.parametrize("gram", TWINS)
@pytest.mark.parametrize(("arguments", "error", "text"), REFUSED)
def test_errors_name_the_argument(gram, arguments, error, text):
    with pytest.raises(error, match=text):
        gram(*arguments)


@pytest.mark.parametrize("gram", TWINS)
@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_array])
@pytest.mark.parametrize("index", [-1, 40, 2**31 - 1])
def test_indices_out_of_range_are_found(gram, form, index):
    X = form(np.ones((40, 40)))
    X.indices[77] = index
    X.has_sorted_indices = True
    with pytest.raises(ValueError, match=re.escape(f"X.indices[77] is {index}")):
        gram(X, np.ones(40))


@pytest.mark.native
def test_columns_that_do_not_rise_are_found():
    X = sparse.csc_array(np.ones((3000, 3)))
    X.indices[:3000] = X.indices[:3000][::-1].copy()
    X.has_sorted_indices = True
    with pytest.raises(ValueError, match="is less than the index before it"):
        pb.gram(X)


@pytest.mark.native
def test_the_engine_trusts_nothing():
    gram_sums = config.native.gram_sums
    X, c = np.ones((4, 3)), np.ones((4, 2))
    good = ("csr", np.ones(3), np.arange(3, dtype="i4"), np.array([0, 1, 2, 3, 3], "i4"), (4, 3))
    assert gram_sums(good, c, False).shape == (2, 3, 3)
    for bad_X, bad_c in [
        (X.tolist(), None), (X[0], None), (X.astype(">f2"), None), (X, c[:3].copy()), (X, c[:, 0]),
        (X, c.astype("f4")), (X, np.asfortranarray(c)), (X, "c"), (good[:4], None), (None, None),
    ]:  # fmt: skip
        with pytest.raises(TypeError, match="gram_sums: (X|c) is not what the engine takes"):
            gram_sums(bad_X, bad_c, False)
    for pointers in ([0, 9, 2, 3, 3], [0, 3, 2, 3, 3], [-5, 1, 2, 3, 3], [0, 1, 2, 3, 9]):
        for layout in ("csr", "csc"):
            shape = (4, 3) if layout == "csr" else (3, 4)
            X = (layout, good[1], good[2], np.array(pointers, "i4"), shape)
            with pytest.raises(ValueError, match="X"):
                gram_sums(X, None, False)

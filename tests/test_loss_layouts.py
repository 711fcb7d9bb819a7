"""Data in every layout, dense and sparse: right, within memory, and the same bits each time."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pullback as pb
import pytest
import scipy.sparse
from guarded import Guarded
from linear_models import (
    CASES,
    SOFTMAX,
    Bounded,
    Case,
    Model,
    assert_within,
    by_id,
    divided,
    exact,
    judge,
    model,
)
from oracles import assert_same_bits
from protocol import (
    assert_same_leaves,
    backends,
    dtypes,
    each,
    leaves,
    on_any_target,
    on_every_target,
)
from pullback.design_matrix import spans

cases = pytest.mark.parametrize("case", CASES, ids=by_id)
RECTIFIED, LOGISTIC, POISSON = map(Case, ("relu_mse", "logistic", "poisson"))
FEW = [LOGISTIC, RECTIFIED, SOFTMAX[0]]
few = pytest.mark.parametrize("case", FEW, ids=by_id)


# --- dense ----------------------------------------------------------------------------------------


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


def rows_apart(X: np.ndarray) -> np.ndarray:
    """Return X with rows further apart by one byte more than a whole number of elements."""
    n, d = X.shape
    pitch = d * X.itemsize + X.itemsize + 1
    raw = np.zeros(n * pitch + 8, np.uint8)
    view = np.lib.stride_tricks.as_strided(raw[:8].view(X.dtype), (n, d), (pitch, X.itemsize))
    view[...] = X
    return view


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
    "Fortran, first rows": lambda X: np.asfortranarray(np.concatenate([X, X * np.nan]))[: len(X)],
    "Fortran, columns reversed": lambda X: np.asfortranarray(X[:, ::-1])[:, ::-1],
    "Fortran, rows reversed": lambda X: np.asfortranarray(X[::-1])[::-1],
    "middle of three axes": lambda X: np.stack([X, X * np.nan], axis=1)[:, 0],
    "rows apart by an odd number of bytes": rows_apart,
    "big-endian": lambda X: X.astype(">" + X.dtype.str[1:]),
    "big-endian, Fortran": lambda X: np.asfortranarray(X.astype(">" + X.dtype.str[1:])),
}

# Copied as they are: nothing but the bytes' place or order changes.
SAME_BITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "misaligned": misaligned,
    "byte-swapped": lambda X: X.astype(X.dtype.newbyteorder()),
    "list": lambda X: X if X.dtype == np.float32 else X.tolist(),
    "subclass": lambda X: X.view(type("Sub", (np.ndarray,), {})),
    "own": lambda X: X.copy(),
}


@dtypes
@few
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_of_the_data(layout: Callable[..., Any], case: Case, dtype: np.dtype) -> None:
    for n, d in ((1, 1), (2, 5), (9, 4), (40, 17), (513, 9), (70, 130)):
        m = model(case, n, d, dtype)
        view = layout(m.X)
        assert (view == m.X).all()
        before = view.copy()
        judge(case, view, m.y, m.w, m.b, m.sample_weight, dense=m.X)
        assert_same_bits(view, before)


@pytest.mark.native
@dtypes
@few
@each("d", [*range(41), 63, 64, 65, 130])
@on_any_target
def test_every_width_of_columns(d: int, case: Case, dtype: np.dtype) -> None:
    """Fortran order, at every number of columns and around every number of lanes of rows."""
    for n in ((1, 7, 16), (2, 8, 33), (3, 9, (511, 512, 513, 1031)[d % 4]))[d % 3]:
        m = model(case, n, d, dtype)
        judge(case, np.asfortranarray(m.X), *m.operands[1:], hessian=n % 2 == 1)


@dtypes
@cases
@on_any_target
def test_every_loss_in_fortran_order(case: Case, dtype: np.dtype) -> None:
    for n, d, k in ((40, 7, None), (600, 5, None), (33, 9, 3)):
        m = model(case, n, d, dtype, k)
        X = np.asfortranarray(m.X)
        judge(case, X, *m.operands[1:], m.sample_weight)
        gX = case.of().grad(X, *m.operands[1:], wrt="X")
        wanted = case.of().grad(*m.operands, wrt="X")
        np.testing.assert_allclose(gX, wanted, rtol=1e-5, atol=1e-7 if dtype == "f4" else 1e-15)


@dtypes
@few
@pytest.mark.parametrize("layout", SAME_BITS.values(), ids=SAME_BITS.keys())
@on_any_target
def test_where_the_bytes_lie_does_not_matter(
    layout: Callable[..., Any], case: Case, dtype: np.dtype
) -> None:
    for n, d in ((1, 1), (9, 4), (40, 17), (513, 9)):
        m = model(case, n, d, dtype)
        wanted = case.of().value_and_grad(*m.operands)
        for chosen in itertools.product((False, True), repeat=3):
            arguments = [layout(a) if c else a for a, c in zip(m[:3], chosen, strict=True)]
            assert_same_leaves(case.of().value_and_grad(*arguments, m.b), wanted)


@dtypes
@few
@each("k", [None, 3])
def test_layouts_of_the_vectors(case: Case, k: int | None, dtype: np.dtype) -> None:
    m = model(case, 40, 17, dtype, k)
    wanted = judge(case, *m.operands)
    layouts: list[Callable[..., Any]] = [spread, lambda v: v[::-1].copy()[::-1], misaligned]
    layouts += [np.asfortranarray] if k else []
    for layout in layouts:
        if layout is spread and m.y.dtype == np.int64:
            continue  # NaN between labels
        for result in (
            case.of().value_and_grad(m.X, layout(m.y), m.w, m.b),
            case.of().value_and_grad(m.X, m.y, layout(m.w), m.b),
        ):
            assert_same_leaves(result, wanted)
    same = np.broadcast_to(m.y[:1], m.y.shape)
    assert_same_leaves(
        case.of().value_and_grad(m.X, same, m.w, m.b),
        case.of().value_and_grad(m.X, same.copy(), m.w, m.b),
    )


@dtypes
@few
def test_repeated_rows_and_columns(case: Case, dtype: np.dtype) -> None:
    """Strides of zero."""
    for n, d in ((40, 17), (700, 5)):
        m = model(case, n, d, dtype)
        for view in (
            np.broadcast_to(m.X[3], m.X.shape),
            np.broadcast_to(m.X[:, :1], m.X.shape),
            np.broadcast_to(m.X[2, 1], m.X.shape),
        ):
            judge(case, view, *m.operands[1:])


@few
@pytest.mark.parametrize(
    "kind", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", ">i4", ">f2"]
)
def test_other_dtypes_of_the_data(case: Case, kind: str) -> None:
    """What no kernel reads is converted, block by block, and computed as its equal."""
    rng = np.random.default_rng(0)
    for n, d in ((30, 4), (3000, 40)):
        m = model(case, n, d, np.float64)
        X = rng.integers(0, 2 if kind == "?" else 5, (n, d)).astype(kind)
        for layout in (
            np.ascontiguousarray,
            np.asfortranarray,
            lambda a: np.repeat(a, 2, 1)[:, ::2],
        ):
            judge(case, layout(X), *m.operands[1:], m.sample_weight, dense=X.astype(float))
    gX = case.of().grad(X, *m.operands[1:], wrt="X")
    wanted = case.of().grad(X.astype(float), *m.operands[1:], wrt="X")
    assert gX.dtype == (np.float32 if "f" in kind else np.float64)  # integers are numbers
    np.testing.assert_allclose(gX, wanted, rtol=1e-6 if gX.dtype == "f4" else 1e-15)


NARROW = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
narrow = each("kind", NARROW, label=str)
NARROW_LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "every second row": lambda a: a.repeat(2, 0)[::2],
    "rows backwards": lambda a: a[::-1].copy()[::-1],
    "columns of more rows": lambda a: np.asfortranarray(np.vstack([a, a[:3]]))[: len(a)],
    "strided": lambda a: a.repeat(2, 1)[:, ::2],
}


def everything_of(case: Case, X: Any, m: Model) -> list[Any]:
    """Return what all methods say of X, which stands for the model's."""
    weights = np.rint(8 * m.sample_weight) / 8  # whose sum is exact in any order
    loss, options = case.of(), {"sample_weight": weights, "offset": m.sample_weight}
    results = [
        loss.value(X, *m.operands[1:], **options),
        loss.value_and_grad(X, *m.operands[1:], **options, wrt=("X", "w", "b")),
        loss.hvp(X, *m.operands[1:], m.v, **options),
        loss.curvature(X, *m.operands[1:], **options),
        loss.partial(X, *m.operands[1:], **options).finish(),
    ]
    objective = pb.LinearObjective(X, m.y, loss, n_outputs=None if m.w.ndim == 1 else m.w.shape[1])
    theta = np.concatenate([m.w.ravel(), np.ravel(m.b)])
    results += [objective.value_and_grad(theta), objective.predict(X, theta)]
    return [*map(np.asarray, leaves(tuple(results)))]


@pytest.mark.native
@narrow
@each("layout", NARROW_LAYOUTS)
@on_any_target
def test_16_bits_have_the_bits_of_float32(kind: np.dtype, layout: str) -> None:
    """Whatever the size, the loss, the outputs and the threads; a converted block has them too."""
    shapes = [(1, 1), (9, 0), (40, 24), (31, 25), (513, 17), (1100, 3), (70, 300), (3, 9000)]
    shapes += [(9000, 60), (2000, 6)]
    for i, (n, d) in enumerate(shapes):
        for k in (None, 3):
            case = CASES[(3 * i + bool(k)) % len(CASES)]
            if (k is None and case.coupled) or n * d * (k or 1) > 600_000:
                continue
            m = model(case, n, d, np.float32, k)
            X = m.X.astype(kind)
            given, wide = NARROW_LAYOUTS[layout](X), NARROW_LAYOUTS[layout](X.astype("f4"))
            with pb.threads(1 + i % 2):
                found = everything_of(case, given, m)
            with pb.threads(1):
                wanted = everything_of(case, wide, m)
            for one, other in zip(found, wanted, strict=True):
                assert_same_bits(one, other)


@backends
@narrow
@cases
def test_data_of_16_bits(case: Case, kind: np.dtype, primitives: Any) -> None:
    for n, d, k in ((30, 7, None), (530, 3, None), (20, 40, 3)):
        m = model(case, n, d, np.float32, k)
        X = m.X.astype(kind)
        for layout in ("rows", "columns", "strided"):
            given = NARROW_LAYOUTS[layout](X)
            judge(
                case,
                given,
                *m.operands[1:],
                m.sample_weight,
                m.v,
                dense=X.astype(float),
                primitives=primitives,
            )
        gX = case.of(primitives).grad(X, *m.operands[1:], wrt="X")
        wide = case.of(primitives).grad(X.astype("f4"), *m.operands[1:], wrt="X")
        assert gX.dtype == np.float32
        np.testing.assert_allclose(gX, wide, rtol=1e-6, atol=1e-30)
        found = case.of(primitives).hessian(X, *m.operands[1:])
        wide = case.of(primitives).hessian(X.astype("f4"), *m.operands[1:])
        np.testing.assert_allclose(found, wide, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(primitives.gram(X), X.astype(float).T @ X.astype(float), 1e-9)


@narrow
@backends
@on_any_target
def test_all_numbers_of_16_bits(kind: np.dtype, primitives: Any) -> None:
    """Subnormal, infinite and NaN ones too, in whole vectors and in the last."""
    every = np.arange(2**16, dtype=np.uint16).view(kind)
    loss = primitives.squared_error
    objective = pb.LinearObjective(np.eye(3), np.ones(3), loss, fit_intercept=False)
    for X in (every.reshape(-1, 1), every[::-1].copy().reshape(-1, 1), every.repeat(3)[:, None]):
        with np.errstate(all="ignore"):
            wanted = X.astype(float)[:, 0]
        data = np.hstack([X, np.zeros_like(X), np.zeros_like(X)])
        for given in (data, np.asfortranarray(data)):
            found = objective.predict(given, np.array([1.0, 0.0, 0.0]))
            number = ~np.isnan(wanted)
            np.testing.assert_array_equal(np.isnan(found), ~number)
            np.testing.assert_array_equal(found[number], wanted[number])


@backends
@narrow
def test_rows_of_16_bits_that_are_not_finite(kind: np.dtype, primitives: Any) -> None:
    """Count nothing where their weight is 0, and are NaN in their own columns where it is not."""
    m = model(CASES[0], 530, 5, np.float32)
    X, weights = m.X.astype(kind), m.sample_weight.copy()
    X[::7, 2], weights[::7] = np.nan, 0
    clean = np.where(weights[:, None] == 0, 0, X.astype(float))
    for given in (X, np.asfortranarray(X)):
        value, (gw, gb) = primitives.squared_error.value_and_grad(given, *m.operands[1:], weights)
        wanted = primitives.squared_error.value_and_grad(clean, *m.operands[1:], weights)
        np.testing.assert_allclose(value, wanted[0], rtol=1e-12)
        np.testing.assert_allclose([*gw, gb], [*wanted[1][0], wanted[1][1]], rtol=1e-6)


def test_other_dtypes_of_extensions_are_refused() -> None:
    m = model(CASES[0], 9, 3, np.float32)
    for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.int4):
        with pytest.raises(TypeError, match="argument X has dtype"):
            pb.squared_error.value(np.ones((9, 3), kind), *m.operands[1:])
    with pytest.raises(TypeError, match="argument w has dtype bfloat16"):
        pb.squared_error.value(m.X, m.y, m.w.astype(ml_dtypes.bfloat16))


@cases
def test_blocks_of_converted_rows_are_one_whole(case: Case) -> None:
    """Rows enough for several blocks: weights, targets and curvature stay with their rows."""
    n, d = 20_011, 33
    m = model(case, n, d, np.float32)
    X = m.X.astype(">f2")
    plain = X.astype(np.float64)
    options: dict[str, Any] = {"sample_weight": m.sample_weight}
    loss = case.of()
    for call in (
        lambda X: loss.value_and_grad(X, *m.operands[1:], **options),
        lambda X: loss.hvp(X, *m.operands[1:], m.v, **options),
        lambda X: loss.partial(X, *m.operands[1:], **options).finish("sum"),
        lambda X: loss.partial(X, *m.operands[1:], **options).finish(),
        lambda X: loss.curvature(X, *m.operands[1:], **options),
        lambda X: loss.grad(X, *m.operands[1:], **options, wrt="X"),
    ):
        for one, other in zip(leaves(call(X)), leaves(call(plain)), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-9)


def test_spans_hold_no_more_entries_than_asked_for() -> None:
    indptr = np.array([0, 3, 5, 5, 12, 13, 14, 15])
    assert [*spans(indptr, 5)] == [(0, 3), (3, 4), (4, 7)]


def test_converting_does_not_copy_the_whole() -> None:
    """The memory of a call with integers is that of a few blocks."""
    import tracemalloc

    n, d = 200_000, 40
    X = np.ones((n, d), np.int8)
    m = model(LOGISTIC, 10, d, np.float64)
    y = np.zeros(n)
    pb.logistic.value_and_grad(X[:100], y[:100], m.w, 0.0)
    tracemalloc.start()
    try:
        for data in (X, np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2]):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            pb.logistic.value_and_grad(data, y, m.w, 0.0)
            peak = tracemalloc.get_traced_memory()[1] - before
            # The twin holds predictions and slopes of all samples.
            assert peak < 8e6 + (0 if pb.backend() == "native" else 12 * y.nbytes), peak
    finally:
        tracemalloc.stop()


@pytest.mark.native
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray], ids=["C", "F"])
def test_float32_data_with_float64_parameters_is_not_copied(layout: Callable[..., Any]) -> None:
    import tracemalloc

    X = layout(np.ones((50_000, 40), np.float32))
    y, w = np.zeros(50_000), np.ones(40)
    frozen = X.view()
    frozen.flags.writeable = False
    for data in (X, frozen, X[::-1], X[:, ::-1] if X.flags.f_contiguous else X[:, 3:][:, :-1]):
        weights = w[: data.shape[1]]
        pb.logistic.value_and_grad(data[:9], y[:9], weights, 0.0)
        tracemalloc.start()
        try:
            pb.logistic.value_and_grad(data, y, weights, 0.0)
            pb.logistic.hvp(data, y, weights, 0.0, (weights, 1.0))
            assert tracemalloc.get_traced_memory()[1] < X.nbytes / 4
        finally:
            tracemalloc.stop()


@few
def test_memory_maps_and_frames(case: Case, tmp_path: Path) -> None:
    m = model(case, 700, 9, np.float64)
    wanted = case.of().value_and_grad(*m.operands)
    for order in "CF":
        file = tmp_path / f"{order}.npy"
        np.save(file, np.asarray(m.X, order=order))
        mapped = np.load(file, mmap_mode="r")
        assert isinstance(mapped, np.memmap)
        judge(case, mapped, *m.operands[1:], dense=m.X)
        if order == "C":
            assert_same_leaves(case.of().value_and_grad(mapped, *m.operands[1:]), wanted)

    class Frame:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return m.X if dtype is None else m.X.astype(dtype)

    assert_same_leaves(case.of().value_and_grad(Frame(), *m.operands[1:]), wanted)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(m.X)
    series = pandas.Series(m.y) if m.y.ndim == 1 else pandas.DataFrame(m.y)
    judge(case, frame, series, *m.operands[2:], dense=m.X)


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
    value, (gw, gb) = pb.relu_mse.value_and_grad(X, y, w, 1.0)
    assert value == 4
    assert gb == -4
    assert (gw == -4).all()


# --- sparse ---------------------------------------------------------------------------------------


class Sparse(NamedTuple):
    """A sparse array by its parts alone, as other packages than SciPy make them."""

    format: str
    data: Any
    indices: Any
    indptr: Any
    shape: tuple[int, int]


def sparse(dense: np.ndarray, form: str, index: Any = np.int32) -> Any:
    array = {"csr": scipy.sparse.csr_array, "csc": scipy.sparse.csc_array}[form](dense)
    array.indices, array.indptr = array.indices.astype(index), array.indptr.astype(index)
    return array


def thinned(X: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Return X with most entries 0, some rows and columns wholly; multiples of 1/8."""
    rng = np.random.default_rng(len(X))
    thin = np.where(rng.uniform(size=X.shape) < share, np.rint(8 * X) / 8, 0).astype(X.dtype)
    thin[::7] = 0
    thin[:, 3::5] = 0
    return thin


forms = each("form", ["csr", "csc"])


@dtypes
@forms
@each("index", [np.int32, np.int64])
@few
@on_any_target
def test_sparse(case: Case, form: str, index: Any, dtype: np.dtype) -> None:
    for n, d, k in (
        (1, 1, None),
        (7, 0, None),
        (9, 5, None),
        (40, 33, None),
        (40, 17, 3),
        (600, 12, None),
        (1025, 4, 2),
        (3, 5000, None),
    ):
        m = model(case, n, d, dtype, k)
        for X in (thinned(m.X), m.X, 0 * m.X):
            given = sparse(X, form, index)
            before = [a.copy() for a in (given.data, given.indices, given.indptr)]
            judge(case, given, *m.operands[1:], m.sample_weight, dense=X)
            for a, copied in zip((given.data, given.indices, given.indptr), before, strict=True):
                assert_same_bits(a, copied)


@dtypes
@forms
@cases
@on_any_target
def test_every_loss_on_sparse_data(case: Case, form: str, dtype: np.dtype) -> None:
    for n, d, k in ((40, 7, None), (600, 5, None), (33, 9, 3)):
        m = model(case, n, d, dtype, k)
        X = thinned(m.X, 0.4)
        judge(case, sparse(X, form), *m.operands[1:], m.sample_weight, dense=X, reduction="sum")
        partial = case.of().partial(sparse(X, form), *m.operands[1:])
        assert_same_leaves(
            partial.finish(), case.of().value_and_grad(sparse(X, form), *m.operands[1:])
        )


@dtypes
@forms
@cases
@on_any_target
def test_gradient_in_sparse_data(case: Case, form: str, dtype: np.dtype) -> None:
    """Is dense: every entry of X has a derivative, stored or not."""
    for n, d, k in ((40, 7, None), (600, 5, 3)):
        m = model(case, n, d, dtype, k)
        X = thinned(m.X)
        options = {"sample_weight": m.sample_weight, "reduction": "mean"}
        gX = case.of().grad(sparse(X, form), *m.operands[1:], wrt="X", **options)
        right = divided(
            exact(case, X, *m.operands[1:], m.sample_weight), n, m.sample_weight, "mean"
        )
        assert gX.shape == (n, d)
        assert gX.dtype == dtype
        assert_within(gX, right.gX)


@dtypes
@forms
@few
@backends
def test_unsorted_and_duplicate_entries(
    case: Case, form: str, dtype: np.dtype, primitives: Any
) -> None:
    """Duplicates add up, also to zero, and the order within a row or column does not matter."""
    rng = np.random.default_rng(4)
    for n, d in ((9, 5), (600, 12)):
        m = model(case, n, d, dtype)
        half = thinned(m.X, 0.6)
        major = half.shape[0 if form == "csr" else 1]
        indices, data, indptr = [], [], [0]
        for i in range(major):
            line = half[i] if form == "csr" else half[:, i]
            at = np.flatnonzero(line)
            twice = np.concatenate([at, at[::2], at[:1], at[:1]])
            extra = np.concatenate([line[at], line[at[::2]] * 2, -line[at[:1]], line[at[:1]] * 3])
            order = rng.permutation(twice.size)
            indices.append(twice[order])
            data.append(extra[order])
            indptr.append(indptr[-1] + twice.size)
        build = scipy.sparse.csr_array if form == "csr" else scipy.sparse.csc_array
        parts = (
            np.concatenate(data).astype(dtype),
            np.concatenate(indices).astype(np.int32),
            np.array(indptr, np.int32),
        )
        given = build(parts, shape=half.shape)
        dense = given.toarray()
        assert not given.has_sorted_indices
        before = [a.copy() for a in (given.data, given.indices, given.indptr)]
        for X in (given, Sparse(form, *parts, half.shape)):
            judge(case, X, *m.operands[1:], dense=dense, terms=4 * d + 4, primitives=primitives)
        for a, copied in zip((given.data, given.indices, given.indptr), before, strict=True):
            assert_same_bits(a, copied)


@forms
@backends
def test_sparse_parts_in_any_layout(form: str, primitives: Any) -> None:
    """Strided, read-only, mixed or narrow parts, and stored numbers that are not floats."""
    m = model(LOGISTIC, 60, 9, np.float64)
    X = thinned(m.X)
    given = sparse(X, form)
    parts = given.data, given.indices, given.indptr
    wanted = primitives.logistic.value_and_grad(given, *m.operands[1:])

    def frozen(a: Any) -> Any:
        a = a.copy()
        a.flags.writeable = False
        return a

    for change in (
        frozen,
        lambda a: np.repeat(a, 2)[::2],
        lambda a: a[::-1].copy()[::-1],
        lambda a: a.astype(a.dtype.newbyteorder()),
        lambda a: a.astype(np.int64) if a.dtype.kind == "i" else a,
        misaligned,
    ):
        for chosen in itertools.product((False, True), repeat=3):
            arrays = [change(a) if c else a for a, c in zip(parts, chosen, strict=True)]
            result = primitives.logistic.value_and_grad(
                Sparse(form, *arrays, X.shape), *m.operands[1:]
            )
            assert_same_leaves(result, wanted)
    for dtype in (np.int64, np.int8, bool):
        whole = np.rint(X).astype(dtype)
        judge(
            LOGISTIC,
            sparse(whole, form),
            *m.operands[1:],
            dense=whole.astype(float),
            primitives=primitives,
        )
    matrix = (scipy.sparse.csr_matrix if form == "csr" else scipy.sparse.csc_matrix)(X)
    assert_same_leaves(primitives.logistic.value_and_grad(matrix, *m.operands[1:]), wanted)


@forms
def test_stored_zeros_and_special_values(form: str) -> None:
    """An entry that is stored counts as it is; one that is not is 0, whatever its weight."""
    X = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.5], [3.0, 0.0, 0.0]])
    y = np.array([1.0, 0.0, 1.0])
    w = np.array([0.5, np.inf, -0.25])
    value, (gw, _) = pb.logistic.value_and_grad(sparse(X, form), y, w, 0.0)
    assert np.isfinite(value)
    assert np.isfinite(gw).all()
    stored = sparse(X, form)
    stored.data[0] = np.nan
    value, (gw, _) = pb.logistic.value_and_grad(stored, y, np.ones(3), 0.0)
    assert np.isnan(value)
    assert np.isnan(gw[0])
    stored.data[0] = 0.0
    dense = stored.toarray()
    judge(LOGISTIC, stored, y, np.ones(3), 0.5, dense=dense)


@dtypes
@forms
@on_any_target
def test_thin_rows(form: str, dtype: np.dtype) -> None:
    """Of less than an entry to a thousand columns."""
    for case, n, d, k in ((LOGISTIC, 150, 2500, None), (SOFTMAX[0], 90, 1300, 3)):
        m = model(case, n, d, dtype, k)
        X = thinned(m.X, 1 / 1400)
        X[5, :2] = 1
        given = sparse(X, form)
        assert 0 < 1024 * given.nnz < n * d
        judge(case, given, *m.operands[1:], m.sample_weight, dense=X)


@forms
@backends
def test_special_values_in_thin_rows(form: str, primitives: Any) -> None:
    """What a sum lost by rounding is NaN where the sum is inf, and must not count."""
    columns = ([np.inf, 1], [np.inf, -np.inf], [np.nan, 1], [1.7e308] * 3, [-np.inf, 2], [3, 4])
    X = np.zeros((40, 3000))
    for j, entries in enumerate(columns):
        X[5 * j : 5 * j + len(entries), j] = entries
    given = sparse(X, form)
    assert given.nnz * 1024 < X.size
    # Slopes are 1/2 above the target, -1/2 below.
    y, w = np.full(40, -0.5), np.ones(3000)
    _, (gw, gb) = primitives.quantile.value_and_grad(given, y, w, 1.0, reduction="sum")
    wanted = np.zeros(3000)
    wanted[: len(columns)] = np.inf, np.inf, np.nan, np.inf, np.inf, 3.5
    np.testing.assert_array_equal(gw, wanted)
    assert np.isnan(gb)


@pytest.mark.native
def test_thin_rows_lose_nothing() -> None:
    """Each number below half of the sum's last place counts."""
    X = np.zeros((40, 3000))
    X[:5, 7] = 2.0**54, 2, 2, 2, 2
    y, w = np.full(40, -0.5), np.ones(3000)
    gw, _ = pb.quantile.grad(sparse(X, "csr"), y, w, 1.0, reduction="sum")
    assert gw[7] == 2.0**53 + 4


@pytest.mark.parametrize("order", ["C", "F"])
@backends
def test_nothing_behind_the_last_row_counts(order: Any, primitives: Any) -> None:
    """There, predictions are the intercept, whose exponential is infinite."""
    for n, d in itertools.product((*range(1, 18), 600), (1, 9)):
        X = np.full((n, d), -1e3 / d, order=order)
        loss, (gw, gb) = primitives.poisson.value_and_grad(X, np.ones(n), np.ones(d), 1e3)
        np.testing.assert_allclose([loss, *gw, gb], [1, *[0] * d, 0], rtol=1e-9, atol=1e-9)


# --- blocks of rows -------------------------------------------------------------------------------


def counting(form: str, rows: int, columns: int, dtype: np.dtype) -> Any:
    """Return X whose first column is 1 and whose others are 0, of sparse forms one stored a row."""
    if form in ("C", "F"):
        X = np.zeros((rows, columns), dtype, order=form)  # type: ignore[call-overload]
        X[:, 0] = 1
        return X
    others = np.random.default_rng(6).integers(1, columns, rows)
    indices = np.stack([np.zeros(rows, int), others], axis=1).ravel().astype(np.int32)
    data = np.tile(np.array([1, 0], dtype), rows)
    pointers = np.arange(0, 2 * rows + 1, 2, dtype=np.int32)
    return scipy.sparse.csr_array((data, indices, pointers), (rows, columns)).asformat(form)


@backends
@dtypes
@pytest.mark.parametrize("outputs", [None, 2])
@pytest.mark.parametrize(
    ("form", "columns"),
    [
        *[("C", n) for n in (1, 3, 20, 40)],
        *[("F", n) for n in (2, 9)],
        *[("csr", n) for n in (20, 400, 3000)],
        *[("csc", n) for n in (20, 400, 3000)],
    ],
)
def test_few_rows_are_summed_in_order(
    form: str, columns: int, outputs: int | None, dtype: np.dtype, primitives: Any
) -> None:
    """The first weight is 1, and each other one just too small to change a sum of 1.

    Summed row by row all of them are lost, in blocks of R rows those of the first block. With w = 0
    and y = -1/2 every slope is the weight, and so are the direction's: all sums are the weights'.
    """
    rows, block, u = 20_000, 512, 2.0**-53
    weights = np.full(rows, u * (1 - 2.0**-10))
    weights[0] = 1
    wanted = math.fsum(weights)
    bound = (block + math.ceil(math.log2(rows / block)) + 8) * u * wanted
    X, shape = counting(form, rows, columns, dtype), () if outputs is None else (outputs,)
    y, w, b = np.full((rows, *shape), -0.5), np.zeros((columns, *shape)), np.zeros(shape or 1)
    options = {"sample_weight": weights, "reduction": "sum"}
    loss = primitives.squared_error
    value, (gw, gb) = loss.value_and_grad(X, y, w, b, **options)
    half = np.zeros_like(w), np.full_like(b, 0.5)
    hw, hb = loss.hvp(X, y, w, b, half, **options)
    one = 1 if outputs is None else outputs
    sums = {
        "value": np.asarray(value) * 4 / one,
        "gw": gw[0],
        "gb": gb,
        "hw": hw[0],
        "hb": hb,
    }
    for name, found in sums.items():
        assert np.size(found) == (1 if name == "value" else one), name
        assert np.all(np.abs(found - wanted) <= bound), (name, (found - wanted) / (u * wanted))
    assert not gw[1:].any()


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guards() -> Iterator[list[Guarded]]:
    """Give memory between pages that may not be touched, for X, y, w and what else there is."""
    blocks = [Guarded(1 << 20) for _ in range(5)]
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


def guarded(block: Guarded, array: np.ndarray, order: str = "C", **where: bool) -> np.ndarray:
    """Return a copy of an array whose end, or beginning, borders on a forbidden page."""
    flat = block.array(array.size, array.dtype, **where)
    flat[...] = array.ravel(order)
    return flat.reshape(array.shape, order=order)


@dtypes
@pytest.mark.parametrize("order", ["C", "F"])
@on_any_target
def test_stays_between_guard_pages(dtype: np.dtype, order: str, guards: list[Guarded]) -> None:
    for n, d, at_end in itertools.product((1, 2, 3, 5, 8, 33), range(1, 41), (True, False)):
        case = CASES[(n + d) % len(CASES)]
        loss = case.of()
        m = model(case, n, d, dtype)
        v = m.v[0], np.ones(np.shape(m.b)) if np.ndim(m.b) else 1.0
        given = np.asarray(m.X, order=order)
        wanted = loss.value_and_grad(given, *m.operands[1:], m.sample_weight)
        bent = loss.hvp(given, *m.operands[1:], v)
        X = guarded(guards[0], m.X, order, at_end=at_end)
        y, w, weights = (
            guarded(block, a, at_end=at_end)
            for block, a in zip(guards[1:4], (m.y, m.w, m.sample_weight), strict=True)
        )
        assert_same_leaves(loss.value_and_grad(X, y, w, m.b, weights), wanted)
        assert_same_leaves(loss.hvp(X, y, w, m.b, v), bent)
        if n > 1 and d > 1:  # the last line's end is the array's, though lines lie further apart
            part = X[1:, 1:]
            exact_copy = np.array(part, order=order)
            for one, other in zip(
                leaves(loss.value_and_grad(part, y[1:], w[1:], m.b)),
                leaves(loss.value_and_grad(exact_copy, y[1:], w[1:], m.b)),
                strict=True,
            ):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        if dtype == np.float32 and n > 3:
            half = guarded(guards[0], m.X.astype(np.float16), order, at_end=at_end)
            wanted = loss.value_and_grad(half.astype(dtype, order="K"), y, w, m.b, weights)
            assert_same_leaves(loss.value_and_grad(half, y, w, m.b, weights), wanted)


@dtypes
@forms
@on_any_target
def test_sparse_stays_between_guard_pages(
    form: str, dtype: np.dtype, guards: list[Guarded]
) -> None:
    for n, d, at_end in itertools.product((1, 3, 8, 33), (1, 2, 5, 17), (True, False)):
        case = CASES[(n + d) % len(CASES)]
        m = model(case, n, d, dtype)
        parts = sparse(thinned(m.X, 0.5), form)
        wanted = case.of().value_and_grad(parts, *m.operands[1:])
        arrays = [
            guarded(block, a, at_end=at_end)
            for block, a in zip(guards, (parts.data, parts.indices, parts.indptr), strict=False)
        ]
        y, w = (
            guarded(block, a, at_end=at_end)
            for block, a in zip(guards[3:], (m.y, m.w), strict=True)
        )
        X = Sparse(form, *arrays, (n, d))
        assert_same_leaves(case.of().value_and_grad(X, y, w, m.b), wanted)


# --- the same bits --------------------------------------------------------------------------------

FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "csr": lambda X: sparse(thinned(X), "csr"),
    "csc": lambda X: sparse(thinned(X), "csc"),
    "strided": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
}
every_form = each("form", FORMS)


def everything(case: Case, X: Any, m: Any) -> Any:
    """Return what the methods compute, one after the other."""
    loss = case.of()
    return (
        loss.value_and_grad(X, *m.operands[1:]),
        loss.value_and_grad(X, *m.operands[1:], m.sample_weight),
        loss.hvp(X, *m.operands[1:], (m.v[0], m.v[1] if np.ndim(m.b) else 0.5)),
        loss.curvature(X, *m.operands[1:]),
    )


@dtypes
@every_form
@each(
    "n, d, k",
    [(513, 100, None), (5000, 33, None), (30_003, 10, None), (3000, 400, None), (6000, 20, 3)],
)
@on_every_target
def test_same_bits_for_any_number_of_threads(
    n: int, d: int, k: int | None, form: str, dtype: np.dtype
) -> None:
    for case in (LOGISTIC, SOFTMAX[0]) if k else (RECTIFIED,):
        m = model(case, n, d, dtype, k)
        X = FORMS[form](m.X)
        with pb.threads(1):
            wanted = everything(case, X, m)
            assert case.of().value(X, *m.operands[1:]) == wanted[0][0]
        for threads in range(2, 9):
            with pb.threads(threads):
                assert_same_leaves(everything(case, X, m), wanted)


@pytest.mark.native
@cases
def test_every_loss_has_the_same_bits_for_any_number_of_threads(case: Case) -> None:
    m = model(case, 40_011, 12, np.float64)
    with pb.threads(1):
        wanted = everything(case, m.X, m)
        gX = case.of().grad(*m.operands, wrt="X")
    for threads in (2, 3, 5, 8):
        with pb.threads(threads):
            assert_same_leaves(everything(case, m.X, m), wanted)
            assert_same_bits(case.of().grad(*m.operands, wrt="X"), gX)


@pytest.mark.native
@dtypes
@every_form
def test_same_bits_a_hundred_times(dtype: np.dtype, form: str) -> None:
    m = model(LOGISTIC, 20_011, 64, dtype)
    X = FORMS[form](m.X)
    wanted = pb.logistic.value_and_grad(X, *m.operands[1:])
    for threads in (2, 5):
        with pb.threads(threads):
            for _ in range(50 if form != "strided" else 5):
                assert_same_leaves(pb.logistic.value_and_grad(X, *m.operands[1:]), wanted)


@dtypes
@pytest.mark.parametrize("order", ["C", "F"])
@few
@on_every_target
def test_same_bits_at_any_offset(case: Case, order: str, dtype: np.dtype) -> None:
    for n, d in ((5, 3), (33, 17), (513, 40), (1000, 130)):
        m = model(case, n, d, dtype)
        given = np.asarray(m.X, order=order)
        wanted = case.of().value_and_grad(given, *m.operands[1:])
        bent = case.of().hvp(given, m.y, m.w, None, (m.v[0], None))
        for offset in range(17):
            shifted = []
            shifts = (offset, 3 * offset % 17, 5 * offset % 17)
            for a, shift in zip((given, m.y, m.w), shifts, strict=True):
                memory = np.zeros(a.size + 40, a.dtype)
                skip = -memory.ctypes.data // a.itemsize % 16 + shift  # from a cache line
                memory[skip : skip + a.size] = a.ravel(order)
                shifted.append(memory[skip : skip + a.size].reshape(a.shape, order=order))
            assert_same_leaves(case.of().value_and_grad(*shifted, m.b), wanted)
            assert_same_leaves(case.of().hvp(*shifted, None, (m.v[0], None)), bent)


@pytest.mark.native
@dtypes
@every_form
def test_same_bits_from_several_threads_at_once(dtype: np.dtype, form: str) -> None:
    shapes = ((5000, 33), (513, 100), (100, 10), (10_011, 64))
    models = [model(case, *shape, dtype) for case, shape in zip(CASES, shapes, strict=False)]
    given = [FORMS[form](m.X) for m in models]

    def call(i: int) -> Any:
        return CASES[i].of().value_and_grad(given[i], *models[i].operands[1:])

    wanted = [call(i) for i in range(len(models))]

    def work(first: int) -> None:
        for i in range(12):
            k = (first + i) % len(models)
            assert_same_leaves(call(k), wanted[k])

    for threads in (1, 2, 4):
        with pb.threads(threads), ThreadPoolExecutor(8) as executor:
            list(executor.map(work, range(8)))


@pytest.mark.native
@dtypes
def test_any_slice_of_rows_has_its_own_bits(dtype: np.dtype) -> None:
    """What a sample contributes depends on its place among the rows given, not in memory."""
    m = model(LOGISTIC, 3000, 21, dtype)
    for order in "CF":
        X = np.asarray(m.X, order=order)
        for i, j in ((0, 2), (1, 4), (3, 40), (7, 519), (511, 1100), (17, 3000)):
            part = X[i:j]
            copied = np.array(part, order=order)
            assert_same_leaves(
                pb.logistic.value_and_grad(part, m.y[i:j], m.w, m.b),
                pb.logistic.value_and_grad(copied, m.y[i:j].copy(), m.w, m.b),
            )


@few
@on_any_target
def test_kernels_agree_between_layouts(case: Case) -> None:
    """All layouts of the same data lie within one bound of one another."""
    m = model(case, 1030, 12, np.float64)
    X = thinned(m.X, 0.5)
    sums = exact(case, X, *m.operands[1:], m.sample_weight, m.v)
    for given in (X, np.asfortranarray(X), sparse(X, "csr"), sparse(X, "csc"), misaligned(X)):
        judge(case, given, *m.operands[1:], m.sample_weight, m.v, dense=X, sums=sums)


# --- what must not become NaN ---------------------------------------------------------------------

GUARDED: dict[str, Callable[[np.ndarray], Any]] = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "every other row": spread,
    "every other column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "csr": lambda X: sparse(X, "csr"),
    "csc": lambda X: sparse(X, "csc", np.int64),
    "stored zeros, csr": lambda X: zeros_stored(X, "csr"),
    "stored zeros, csc": lambda X: zeros_stored(X, "csc"),
    "thin": lambda X: sparse(np.concatenate([X, np.zeros((len(X), 4096), X.dtype)], 1), "csr"),
}


def zeros_stored(X: np.ndarray, form: str) -> Any:
    filled = sparse(np.where(X == 0, 7, X), form)
    filled.data[filled.data == 7] = 0
    return filled


def fitted(given: Any, m: Model) -> tuple[Any, tuple[Any, Any]]:
    """Return coefficients and a direction for all columns, some of which a layout has added."""
    more = np.zeros((given.shape[1] - len(m.w), *m.w.shape[1:]))
    return np.concatenate([m.w, more]), (np.concatenate([m.v[0], more]), m.v[1])


def judge_rows_of_weight_0(case: Case, dtype: np.dtype, primitives: Any) -> None:
    """Rows of weight 0 hold what is not finite, or outside the domain: the sums are the others'."""
    loss = case.of(primitives)
    for n, d, k in ((9, 3, None), (530, 5, None), (21, 9, 3)):
        m = model(case, n, d, dtype, k)
        zero = np.arange(1, n, 3)
        weights, clean, y = m.sample_weight.copy(), thinned(m.X, 0.7), m.y.copy()
        weights[zero] = 0
        X = clean.copy()
        for i, bad in zip(zero, itertools.cycle([math.nan, math.inf, -math.inf, 1e30])):
            X[i, i % d] = bad
            y[i] = -1 if case.coupled and case.labels else bad
        sums = exact(case, clean, *m.operands[1:], weights, m.v)
        options = {"sample_weight": weights, "reduction": "sum"}
        for name, layout in GUARDED.items():
            if name == "thin" and n > 9:
                continue
            given = layout(X)
            w, v = fitted(given, m)
            value, (gX, gw, gb) = loss.value_and_grad(
                given, y, w, m.b, **options, wrt=("X", "w", "b")
            )
            hw, hb = loss.hvp(given, y, w, m.b, v, **options)
            c = loss.curvature(given, y, w, m.b, **options)
            results = value, gw[:d], gb, gX[:, :d], c, hw[:d], hb
            for field, actual in zip(sums._fields, results, strict=True):
                assert_within(actual, getattr(sums, field), f"{field}, {name}")
            assert_within(loss.value(given, y, w, m.b, **options), sums.value)
            assert not gw[d:].any()
            partial = loss.partial(given, y, w, m.b, sample_weight=weights)
            assert_within(partial.loss, sums.value)
            assert_within(partial.gw[:d], sums.gw)


@backends
@dtypes
@cases
def test_rows_of_weight_0(case: Case, dtype: np.dtype, primitives: Any) -> None:
    judge_rows_of_weight_0(case, dtype, primitives)


def judge_columns(case: Case, dtype: np.dtype, primitives: Any) -> None:
    """Some rows are not finite in one column and 0 in the others: these are the other rows'."""
    loss = case.of(primitives)
    for n, d, k in ((9, 3, None), (530, 5, None), (21, 9, 2), (21, 9, 5)):
        m = model(case, n, d, dtype, k)
        bad = [0, n // 2, n - 1]
        good = np.setdiff1d(np.arange(n), bad)
        X, w = thinned(m.X, 0.7), m.w.copy()
        X[good, 0] = X[bad] = w[1] = 0
        X[bad, 0] = math.nan, math.inf, -math.inf
        m = m._replace(w=w)
        sums = exact(case, X[good], m.y[good], w, m.b, None, m.v)
        for name, layout in GUARDED.items():
            if name == "thin" and n > 9:
                continue
            given = layout(X)
            w, v = fitted(given, m)
            gX, gw = loss.grad(given, m.y, w, m.b, reduction="sum", wrt=("X", "w"))
            hw, _ = loss.hvp(given, m.y, w, m.b, v, reduction="sum")
            assert np.isnan(gw[0]).all()
            assert_within(gw[1:d], Bounded(*(a[1:] for a in sums.gw)), name)
            assert_within(hw[1:d], Bounded(*(a[1:] for a in sums.hw)), name)
            assert_within(gX[good, :d], sums.gX, name)
            assert not gX[bad, 1].any()


@backends
@dtypes
@cases
def test_what_is_not_finite_stays_in_its_columns(
    case: Case, dtype: np.dtype, primitives: Any
) -> None:
    judge_columns(case, dtype, primitives)


@pytest.mark.native
@few
@on_any_target
def test_what_is_not_finite_on_every_target(case: Case) -> None:
    judge_rows_of_weight_0(case, np.dtype(np.float64), pb)
    judge_columns(case, np.dtype(np.float64), pb)


@backends
@pytest.mark.parametrize("layout", GUARDED.values(), ids=GUARDED.keys())
@on_any_target
def test_overflow_in_one_row(layout: Callable[..., Any], primitives: Any) -> None:
    """Where X is 0 it adds nothing, nor to a Hessian product if its prediction does not change."""
    loss = primitives.poisson
    X = layout(np.eye(2))
    w, y = np.array([1000.0, 0.0, *np.zeros(X.shape[1] - 2)]), [1, 2]
    ones = np.ones(X.shape[1])
    np.testing.assert_array_equal(loss.grad(X, y, w)[0][:2], [math.inf, -0.5])
    for v, wanted in ((ones, [math.inf, 0.5]), (ones - (w > 0), [0, 0.5])):
        np.testing.assert_array_equal(loss.hvp(X, y, w, None, (v, None))[0][:2], wanted)
    value, (gw, _) = loss.value_and_grad(X, y, w, None, [0, 1])
    assert value == 1
    np.testing.assert_array_equal(gw[:2], [0, -1])

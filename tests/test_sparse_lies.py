"""Sparse matrices that are not what they say, or do not stay so: results or errors, no crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pullback as pb
import pytest
import scipy.sparse
from protocol import backends, native

forms = pytest.mark.parametrize("form", ["csr", "csc"])
indexes = pytest.mark.parametrize("index", [np.int32, np.int64])

# Of one slab, of several, and of several chunks in each.
SHAPES = ((40, 7), (3000, 20), (40000, 3))


def problem(shape: tuple[int, int], form: str, index: Any, outputs: int) -> Any:
    rng = np.random.default_rng(0)
    X = scipy.sparse.random(*shape, density=0.2, format=form, random_state=0)
    X.sort_indices()
    X.indices, X.indptr = X.indices.astype(index), X.indptr.astype(index)
    axis = () if outputs == 1 else (outputs,)
    y = rng.standard_normal((shape[0], *axis))
    w, v = rng.standard_normal((2, shape[1], *axis))
    return X, y, w, v


def shuffle_columns(X: Any, rows: int) -> None:
    """Permute entries of columns in place, no further than so many rows apart."""
    rng = np.random.default_rng(1)
    for begin, end in zip(X.indptr[:-1], X.indptr[1:], strict=True):
        order = begin + np.lexsort((rng.random(end - begin), X.indices[begin:end] // rows))
        X.indices[begin:end], X.data[begin:end] = X.indices[order], X.data[order]


@backends
@indexes
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("reach", [16, 700, 1 << 20])
def test_stale_sorted_flag(
    shape: tuple[int, int], index: Any, outputs: int, reach: int, primitives: Any
) -> None:
    """Entries permuted after SciPy has looked: each is counted once, or the error says why."""
    loss = primitives.squared_error
    X, y, w, v = problem(shape, "csc", index, outputs)
    b = vb = np.zeros(outputs) if outputs > 1 else 0.0
    want = loss.value_and_grad(X.toarray(), y, w, b)
    want_hvp = loss.hvp(X.toarray(), y, w, b, (v, vb))
    assert X.has_sorted_indices
    shuffle_columns(X, reach)
    assert X.has_sorted_indices  # which is no longer so
    calls: dict[str, tuple[Callable[[], Any], Any]] = {
        "value": (lambda: loss.value(X, y, w, b), want[0]),
        "value_and_grad": (lambda: loss.value_and_grad(X, y, w, b), want),
        "hvp": (lambda: loss.hvp(X, y, w, b, (v, vb)), want_hvp),
    }
    for method, (call, right) in calls.items():
        try:
            got = call()
        except ValueError as raised:
            error = str(raised)
            got = None
        if got is None:
            assert f"squared_error.{method}: " in error
            assert "X.has_sorted_indices is True" in error
            assert (native is not None, primitives is pb) == (True, True)
            assert reach > 16  # within a chunk the order does not matter
            continue
        for ours, theirs in zip(flat(got), flat(right), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def flat(result: Any) -> list[Any]:
    return [a for part in result for a in flat(part)] if isinstance(result, tuple) else [result]


@pytest.mark.native
def test_stale_flag_is_found() -> None:
    """Where rows far apart have changed places, kernels notice, and the error says what to do."""
    X, y, w, _ = problem((40000, 3), "csc", np.int32, 1)
    assert X.has_sorted_indices
    shuffle_columns(X, 1 << 20)
    objective = pb.LinearObjective(X, y, loss=pb.squared_error)
    theta = objective.initial()
    for call in (
        lambda: pb.squared_error.value(X, y, w),
        lambda: pb.squared_error.grad(X, y, w, wrt="w"),
        lambda: objective.value_and_grad(theta),
    ):
        with pytest.raises(ValueError, match=r"set it to False, then X\.sort_indices\(\) sorts"):
            call()
    X.has_sorted_indices = False
    X.sort_indices()
    np.testing.assert_allclose(
        pb.squared_error.value(X, y, w), pb.squared_error.value(X.toarray(), y, w), rtol=1e-12
    )


@pytest.mark.native
@forms
@indexes
def test_an_entry_is_lost_or_listed_twice(form: str, index: Any) -> None:
    """Pointers that overlap or leave a gap, behind the checks of the Python layer."""
    X, y, w, _ = problem((3000, 20), form, index, 1)
    b, data, indices = np.zeros(1), X.data, X.indices

    def loss(indptr: Any) -> Any:
        design = (form, data, indices, indptr, X.shape)
        given = ("squared_error", 0.0, design, y, w, b, None, None)
        return native.loss_sums(*given, "gradient", None, None, None, 1.0)

    assert np.isfinite(loss(X.indptr)[0])
    for at, to in ((3, -5), (3, len(data) + 9), (5, 0), (0, 2), (0, -1), (-1, len(data) + 1)):
        indptr = X.indptr.copy()
        indptr[at] = to
        with pytest.raises(ValueError, match="X"):
            loss(indptr)
    # Up, round the end of the integers and on upwards: no step falls.
    indptr = X.indptr.copy()
    largest = np.iinfo(index).max
    indptr[3:5] = largest, -2
    with pytest.raises(ValueError, match="X"):
        loss(indptr)


# A thread changes a part of X while kernels read it: the process has to survive.
CHANGED = """
import itertools, os, threading, time
import numpy as np, scipy.sparse
import pullback as pb

made = scipy.sparse.random(60000, 300, density=0.02, format={form!r}, random_state=0)
made.sort_indices()
refused = calls = 0
for (index, outputs), name in itertools.product(
    (("i4", 1), ("i8", 1), ("i4", 3)), ("indices", "indptr")
):
    print("changed:", index, outputs, name, flush=True)
    X = made.copy()
    X.indices, X.indptr = X.indices.astype(index), X.indptr.astype(index)
    assert X.has_sorted_indices
    part = getattr(X, name)
    axis = () if outputs == 1 else (outputs,)
    y, w = np.zeros((60000, *axis)), np.zeros((300, *axis))
    b = 0.0 if outputs == 1 else np.zeros(outputs)
    over = threading.Event()

    def change():
        huge, good = np.iinfo(part.dtype).max, part.copy()
        while not over.is_set():
            for wrong in (huge, -huge, 300):
                part[::7] = wrong
                part[::7] = good[::7]

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    end = time.monotonic() + 0.2
    before = calls
    while calls < before + 4 or time.monotonic() < end:
        calls += 1
        try:
            pb.squared_error.value_and_grad(X, y, w, b)
        except ValueError:
            refused += 1
    over.set()
    thread.join()
print("calls", calls, "refused", refused, flush=True)
assert 0 < refused
"""


@pytest.mark.native
@forms
def test_changed_by_a_thread(form: str, run_python: Callable[..., Any]) -> None:
    assert "calls " in run_python(CHANGED.format(form=form)).stdout


# A property that shrinks the arrays that others have returned, in every order of asking.
SHRINKING = """
import numpy as np, scipy.sparse
import pullback as pb
good = scipy.sparse.random(20000, 200, density=0.05, format={form!r}, random_state=0)
good.sort_indices()

class Shrinking:
    def __init__(self, shrinks):
        self.shrinks = shrinks
        self.parts = {{name: getattr(good, name).copy() for name in ("data", "indices", "indptr")}}
        self.parts |= {{"format": {form!r}, "shape": good.shape, "has_sorted_indices": True}}

    def __getattr__(self, name):
        if name not in self.parts:
            raise AttributeError(name)
        if name == self.shrinks:
            for part in ("data", "indices", "indptr"):
                self.parts[part].resize(1, refcheck=False)
        return self.parts[name]

y, w = np.zeros(20000), np.ones(200)
for name in ("format", "shape", "has_sorted_indices", "data", "indices", "indptr"):
    for call in (pb.squared_error.value, pb.squared_error.value_and_grad, pb.squared_error.grad):
        print(name, call, flush=True)
        try:
            call(Shrinking(name), y, w)
        except (TypeError, ValueError) as error:
            assert "squared_error" in str(error), error
print("alive")
"""


@forms
def test_a_property_shrinks_the_arrays(form: str, run_python: Callable[..., Any]) -> None:
    assert run_python(SHRINKING.format(form=form)).stdout.endswith("alive\n")


@backends
def test_too_many_columns(primitives: Any) -> None:
    """Kernels hold a column in 32 bits; what would need more is refused before anything is made."""

    class Wide:
        format, shape, has_sorted_indices = "csr", (1, 1 << 33), True
        data, indices, indptr = np.ones(1), np.zeros(1, np.int64), np.array([0, 1])

    with pytest.raises(ValueError, match=r"squared_error.value: X has shape .*, needs at most"):
        primitives.squared_error.value(Wide(), np.zeros(1), np.zeros(5))

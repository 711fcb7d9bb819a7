"""What losses refuse: the error's type, and that it names method, argument, what was given and row.

A refused call writes nothing and computes right afterwards.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pullback as pb
import pytest
import scipy.sparse
from linear_models import CASES, POINTWISE, Case, by_id, model
from oracles import assert_same_bits
from protocol import assert_same_leaves, backends, each

cases = pytest.mark.parametrize("case", CASES, ids=by_id)
pointwise = pytest.mark.parametrize("case", POINTWISE, ids=by_id)

METHODS = ("value", "grad", "value_and_grad", "hvp", "curvature", "partial")
methods = each("method", METHODS)
LOGISTIC = Case("logistic")


def call(loss: Any, method: str, given: dict[str, Any]) -> Any:
    """Call a method with arguments by name; a Hessian product gets a tangent that fits.

    Names are interned, as those in source text are: others would not enter by the fast path.
    """
    given = {sys.intern(name): value for name, value in given.items()}
    if method == "hvp":
        b = given.get("b")
        tangent = np.ones(np.shape(given["w"])), None if b is None else np.ones(np.shape(b))
        given = {"v": tangent} | given
    return getattr(loss, method)(**given)


def given(case: Case, n: int = 30, d: int = 4, k: int | None = None) -> dict[str, Any]:
    m = model(case, n, d, np.float64, k)
    return dict(zip("Xywb", m.operands, strict=True))


# --- shapes ---------------------------------------------------------------------------------------

LINEAR = {"X": np.ones((100, 10)), "y": np.ones(100), "w": np.ones(10), "b": 0.0}
SEVERAL = {"X": np.ones((100, 10)), "y": np.ones((100, 3)), "w": np.ones((10, 3)), "b": np.ones(3)}


@backends
@methods
@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (LINEAR, {"w": np.ones(9)}, r"w has shape \(9,\).*\(100, 10\)"),
        (LINEAR, {"w": 1.0}, r"w has shape \(\)"),
        (LINEAR, {"w": np.ones((10, 2, 1))}, r"w has shape \(10, 2, 1\)"),
        (LINEAR, {"w": np.ones((10, 0)), "y": np.ones((100, 0))}, r"w has shape \(10, 0\)"),
        (LINEAR, {"y": np.ones(10)}, r"y has shape \(10,\).*\(100, 10\)"),
        (LINEAR, {"y": np.ones((100, 1))}, r"y has shape \(100, 1\)"),
        (LINEAR, {"y": np.ones((1, 100))}, r"y has shape \(1, 100\)"),
        (LINEAR, {"y": 1.0}, r"y has shape \(\)"),
        (LINEAR, {"X": np.ones(10)}, r"X has shape \(10,\)"),
        (LINEAR, {"X": np.ones((2, 100, 10))}, r"X has shape \(2, 100, 10\)"),
        (LINEAR, {"X": np.ones((10, 100))}, r"\(10, 100\)"),
        (LINEAR, {"X": np.ones((0, 10)), "y": np.ones(0)}, r"X has shape \(0, 10\)"),
        (LINEAR, {"b": np.ones(2)}, r"b has shape \(2,\)"),
        (LINEAR, {"b": np.ones(0)}, r"b has shape \(0,\)"),
        (LINEAR, {"b": np.ones((1, 1))}, r"b has shape \(1, 1\)"),
        (LINEAR, {"sample_weight": np.ones(99)}, r"sample_weight has shape \(99,\)"),
        (LINEAR, {"sample_weight": np.ones((100, 1))}, r"sample_weight has shape \(100, 1\)"),
        (LINEAR, {"sample_weight": 1.0}, r"sample_weight has shape \(\)"),
        (LINEAR, {"offset": np.ones(99)}, r"offset has shape \(99,\).*\(100, 10\) needs \(100,\)"),
        (LINEAR, {"offset": np.ones((100, 1))}, r"offset has shape \(100, 1\).*needs \(100,\) for"),
        (LINEAR, {"offset": np.ones((10, 100))}, r"offset has shape \(10, 100\)"),
        (LINEAR, {"offset": 1.0}, r"offset has shape \(\)"),
        (SEVERAL, {"w": np.ones((9, 3))}, r"w has shape \(9, 3\).*\(100, 10\)"),
        (SEVERAL, {"y": np.ones((100, 2))}, r"y has shape \(100, 2\)"),
        (SEVERAL, {"y": np.ones(100)}, r"y has shape \(100,\)"),
        (SEVERAL, {"b": np.ones(2)}, r"b has shape \(2,\)"),
        (SEVERAL, {"b": np.ones((1, 3))}, r"b has shape \(1, 3\)"),
        (SEVERAL, {"offset": np.ones(3)}, r"offset has shape \(3,\)"),
        (SEVERAL, {"offset": np.ones((100, 2))}, r"offset has.*needs \(100,\) or \(100, 3\) for"),
        (SEVERAL, {"offset": np.ones((100, 3, 1))}, r"offset has shape \(100, 3, 1\)"),
    ],
)
def test_shapes(
    base: dict[str, Any], change: dict[str, Any], message: str, method: str, primitives: Any
) -> None:
    if method == "partial" and len(change.get("X", "X")) == 0:
        return  # it adds nothing
    for name in ("squared_error", "logistic"):
        with pytest.raises(ValueError, match=rf"^{name}\.{method}: .*{message}"):
            call(getattr(primitives, name), method, base | change)


@backends
@methods
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.ones(4)}, r"w has shape \(4,\)"),
        ({"w": np.ones((4, 1))}, r"w has shape \(4, 1\)"),
        ({"w": np.ones((4, 1)), "b": None, "y": np.zeros(30, int)}, r"w has shape \(4, 1\)"),
        ({"w": np.ones((5, 3))}, r"w has shape \(5, 3\)"),
        ({"y": np.zeros(29, int)}, r"y has shape \(29,\)"),
        ({"y": np.full((30, 2), 0.5)}, r"y has shape \(30, 2\)"),
        ({"y": np.ones((30, 1))}, r"y has shape \(30, 1\)"),
        ({"b": np.ones(2)}, r"b has shape \(2,\)"),
    ],
)
def test_shapes_of_softmax(
    change: dict[str, Any], message: str, method: str, primitives: Any
) -> None:
    arguments = given(Case("softmax_cross_entropy", None, labels=True)) | change
    with pytest.raises(ValueError, match=rf"softmax_cross_entropy\.{method}: .*{message}"):
        call(primitives.softmax_cross_entropy, method, arguments)


@backends
@cases
@pytest.mark.parametrize(
    ("v", "message"),
    [
        ((np.ones(5), 1.0), r"\(5,\)"),
        ((np.ones((4, 2)), 1.0), r"\(4, 2\)"),
        ((np.ones(4), np.ones(2)), r"\(2,\)"),
    ],
)
def test_tangents(case: Case, v: Any, message: str, primitives: Any) -> None:
    arguments = given(case, k=None if not case.coupled else 3)
    if case.coupled:
        v = (np.ones((5, 3)), *v[1:])
        message = r"\(5, 3\)|v"
    with pytest.raises(ValueError, match=rf"^{case.name}\.hvp: .*{message}"):
        case.of(primitives).hvp(**arguments, v=v)
    without = arguments | {"b": None}
    with pytest.raises(ValueError, match=rf"^{case.name}\.hvp: .*v"):
        case.of(primitives).hvp(**without, v=(np.ones(np.shape(arguments["w"])), np.ones(1)))


@backends
def test_a_tangent_is_needed(primitives: Any) -> None:
    arguments = given(LOGISTIC)
    for bad in (None, np.ones(400), 1.0, (np.ones(400),), (np.ones(400), 1.0, 1.0)):
        with pytest.raises((TypeError, ValueError), match=r"logistic.hvp: .*\bv\b") as caught:
            primitives.logistic.hvp(**arguments, v=bad)
        assert len(str(caught.value)) < 120, "arrays do not belong into a message"
    with pytest.raises(TypeError, match=r"hvp.*\bv\b"):
        primitives.logistic.hvp(**arguments)


# --- types ----------------------------------------------------------------------------------------


@backends
@methods
@pytest.mark.parametrize("name", ["X", "y", "w", "b", "sample_weight", "offset"])
def test_types(method: str, name: str, primitives: Any) -> None:
    for case in (Case("relu_mse"), LOGISTIC, Case("softmax_cross_entropy")):
        arguments = given(case, 12, 3) | {"sample_weight": np.ones(12), "offset": np.ones(12)}
        for dtype in (complex, np.complex64, object, np.longdouble, str, "M8[D]"):
            wrong = np.zeros(np.shape(arguments[name]), np.int64).astype(dtype)
            with pytest.raises(
                TypeError, match=f"^{case.name}.{method}: argument {name} has dtype"
            ):
                call(case.of(primitives), method, arguments | {name: wrong})


@backends
@methods
def test_labels_of_softmax_are_integers(method: str, primitives: Any) -> None:
    arguments = given(Case("softmax_cross_entropy", None, labels=True))
    for wrong in (arguments["y"] * 1.0, arguments["y"] % 2 == 0):
        if wrong.dtype == bool:
            continue
        with pytest.raises((TypeError, ValueError), match=rf"softmax_cross_entropy.{method}: .*y"):
            call(primitives.softmax_cross_entropy, method, arguments | {"y": wrong})


@pytest.mark.parametrize("method", ["value", "value_and_grad", "grad", "curvature", "partial"])
def test_wrong_calls(method: str) -> None:
    X, y, w, b = model(LOGISTIC, 40, 5).operands
    f = getattr(pb.logistic, method)
    wrong: list[Callable[[], Any]] = [
        lambda: f(),
        lambda: f(X),
        lambda: f(X, y),
        lambda: f(X, y, b=b),
        lambda: f(y=y, w=w, b=b),
        lambda: f(X, y, w, b, b=b),
        lambda: f(X, y, w, X=X),
        lambda: f(X, y, w, c=b),
        lambda: f(X, y, w, B=b),
        lambda: f(X=X, Y=y, w=w, b=b),
        lambda: f(X, y, w, b, None, None, "mean", "w"),
        lambda: f(X, y, w, b, v=None),
        lambda: f(X, y, w, **{"": b}),
    ]
    if method == "value":
        wrong.append(lambda: f(X, y, w, b, wrt="w"))
    for attempt in wrong:
        with pytest.raises(TypeError, match=r"argument"):
            attempt()


@backends
@methods
@pytest.mark.parametrize("bad", ["median", "none", "", None, 1, b"mean", ["mean"]], ids=repr)
def test_reductions(method: str, bad: Any, primitives: Any) -> None:
    if method == "partial":
        with pytest.raises((ValueError, TypeError), match=r"reduction"):
            primitives.logistic.partial(**given(LOGISTIC)).finish(bad)
        return
    with pytest.raises((ValueError, TypeError), match=rf"logistic.{method}: .*reduction"):
        call(primitives.logistic, method, given(LOGISTIC) | {"reduction": bad})


@backends
def test_wrt_by_name_or_position(primitives: Any) -> None:
    f, arguments = primitives.logistic.grad, given(LOGISTIC)
    gX, gw, gb = f(**arguments, wrt=("X", "w", "b"))
    for wrt, wanted in (
        ("all", (gX, gw, gb)),
        (0, gX),
        ("w", gw),
        (2, gw),
        (("b", 2), (gb, gw)),
        ((3, 0), (gb, gX)),
    ):
        found = f(**arguments, wrt=wrt)
        assert type(found) is type(wanted)
        for one, other in zip(
            found if isinstance(found, tuple) else (found,),
            wanted if isinstance(wanted, tuple) else (wanted,),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)


@backends
def test_directions_that_are_none_or_numbers(primitives: Any) -> None:
    f, arguments = primitives.logistic.hvp, given(LOGISTIC)
    vw, vb = np.linspace(-1, 1, 4), 0.5
    for v, filled in (
        ((2, None), (np.full(4, 2.0), 0.0)),
        ((-0.25, 3), (np.full(4, -0.25), 3.0)),
        ((vw, None), (vw, 0.0)),
        ((None, vb), (0 * vw, vb)),
        ((None, None), (0 * vw, 0.0)),
    ):
        for one, other in zip(f(**arguments, v=v), f(**arguments, v=filled), strict=True):
            np.testing.assert_array_equal(one, other)
    classes = given(Case("softmax_cross_entropy"))
    f, shapes = primitives.softmax_cross_entropy.hvp, [np.shape(classes[name]) for name in "wb"]
    wanted = f(**classes, v=(np.full(shapes[0], 0.5), np.full(shapes[1], 2.0)))
    for one, other in zip(f(**classes, v=(0.5, 2)), wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    for bad in ((np.float64(2), vb), (np.ones(()), None), (None, np.ones(1)), (10**400, None)):
        with pytest.raises((ValueError, TypeError), match=r"^logistic\.hvp: .*\bv[wb]\b"):
            primitives.logistic.hvp(**arguments, v=bad)


@backends
def test_outputs_of_another_dtype(primitives: Any) -> None:
    """As in NumPy, results are cast if the kind is the same."""
    arguments = given(LOGISTIC)
    gw, out = primitives.logistic.grad(**arguments, wrt="w"), np.full(4, 7, np.float32)
    assert primitives.logistic.grad(**arguments, wrt="w", out=out) is out
    np.testing.assert_array_equal(out, gw.astype(np.float32))


@backends
@pytest.mark.parametrize("method", ["grad", "value_and_grad"])
@pytest.mark.parametrize(
    "bad",
    ["y", "W", "", "wb", (), ("w", "w"), ("w", "c"), None, 1, ("w", 1), ("w", 2), [["w"]]],
    ids=repr,
)
def test_wrt(method: str, bad: Any, primitives: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"logistic.{method}: .*wrt"):
        getattr(primitives.logistic, method)(**given(LOGISTIC), wrt=bad)


# --- bad rows -------------------------------------------------------------------------------------

BAD_TARGETS = [math.nan, math.inf, -math.inf, -1.0, 0.5, 2.0, 0.0]


@backends
@methods
@pointwise
def test_bad_targets(case: Case, method: str, primitives: Any) -> None:
    """A target outside the domain is named with its row; the first of several."""
    arguments = given(case)
    tried = 0
    for bad in BAD_TARGETS:
        if math.isfinite(bad) and case.formula.domain(np.float64(bad)):
            continue
        tried += 1
        for dtype in (np.float64, np.float32):
            y = np.array(arguments["y"], dtype)
            y[[17, 21, 29]] = bad
            text = rf"^{case.name}\.{method}: y\[17\] is {bad}\b"
            with pytest.raises(ValueError, match=text):
                call(case.of(primitives), method, arguments | {"y": y})
    assert tried >= 3
    several = given(case, k=3)
    y = several["y"].copy()
    y[11, 2] = y[12, 0] = math.nan
    with pytest.raises(ValueError, match=rf"^{case.name}\.{method}: y\[11.*nan"):
        call(case.of(primitives), method, several | {"y": y})


@backends
@methods
@pytest.mark.parametrize(
    ("name", "bad", "needs"),
    [
        ("logistic", 2.0, r"needs to be in \[0, 1\]; encode other labels.* first: y == positive"),
        ("hinge", 0.0, r"needs -1 or 1; encode other labels.* np.where\(y == positive, 1, -1\)"),
        ("poisson", -1.0, r"needs.*(not|negative|>=|0)"),
        ("gamma", 0.0, r"needs.*(positive|> 0)"),
        ("huber", math.nan, r"needs.*finite"),
    ],
)
def test_a_bad_target_is_told_what_is_needed(
    name: str, bad: float, needs: str, method: str, primitives: Any
) -> None:
    arguments = given(Case(name))
    y = arguments["y"].copy()
    y[3] = bad
    with pytest.raises(ValueError, match=rf"{name}\.{method}: y\[3\] is {bad}.*{needs}"):
        call(getattr(primitives, name), method, arguments | {"y": y})


LABELS: dict[str, Callable[[Any], Any]] = {
    "list": lambda y: y,
    "str": np.array,
    "bytes": lambda y: np.array(y, "S"),
    "object": lambda y: np.array(y, object),
    "pandas": pd.Series,
    "categories": lambda y: pd.Series(y, dtype="category"),
}


@backends
@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("logistic", r"y == positive makes 0 and 1 of them"),
        ("hinge", r"np\.where\(y == positive, 1, -1\)"),
        ("softmax_cross_entropy", r"np\.unique\(y, return_inverse=True\)\[1\]"),
    ],
)
def test_labels_that_are_no_numbers(
    name: str, advice: str, label: Callable[[Any], Any], primitives: Any
) -> None:
    """The message says that they have to be encoded first, and how."""
    loss, y = getattr(primitives, name), label(["no", "yes", "no"])
    w = np.ones((3, 3)) if name == "softmax_cross_entropy" else np.ones(3)
    asked = rf"y has dtype .*, needs .*encode other labels, such as strings, first: {advice}"
    with pytest.raises(TypeError, match=rf"^{name}.value: argument {asked}"):
        loss.value(np.eye(3), y, w)
    with pytest.raises(TypeError, match=rf"^{name}.pointwise: argument {asked}"):
        loss.pointwise(w, y)
    with pytest.raises(TypeError, match=rf"^LinearObjective: argument {asked}"):
        pb.LinearObjective(np.eye(3), y, loss=loss)


def test_encoded_labels_are_targets() -> None:
    """What the messages advise."""
    y, positive, X = np.array(["no", "yes", "no"]), "yes", np.eye(3)
    assert pb.logistic.value(X, y == positive, np.zeros(3)) == pytest.approx(math.log(2))
    assert pb.hinge.value(X, np.where(y == positive, 1, -1), np.zeros(3)) == 1
    labels = np.unique(y, return_inverse=True)[1]
    wanted = pytest.approx(math.log(2))
    assert pb.softmax_cross_entropy.value(X, labels, np.zeros((3, 2))) == wanted


@backends
@methods
def test_bad_targets_of_softmax(method: str, primitives: Any) -> None:
    loss = primitives.softmax_cross_entropy
    labels = given(Case("softmax_cross_entropy", None, labels=True))
    for bad in (-1, 3, 2**31 + 1, -(2**40)):
        y = labels["y"].copy()
        y[[13, 20]] = bad
        with pytest.raises(
            ValueError, match=rf"softmax_cross_entropy\.{method}: y\[13\] is {bad}\b"
        ):
            call(loss, method, labels | {"y": y})
    probabilities = given(Case("softmax_cross_entropy"))
    for row in ([-0.25, 0.75, 0.5], [0.3, 0.3, 0.3], [math.nan, 0.5, 0.5], [math.inf, 0, 0]):
        y = probabilities["y"].copy()
        y[[13, 20]] = row
        with pytest.raises(ValueError, match=rf"softmax_cross_entropy\.{method}: y\[13"):
            call(loss, method, probabilities | {"y": y})
    y = probabilities["y"].copy()
    y[3, 1] += 9e-6
    call(loss, method, probabilities | {"y": y})
    y[3, 1] += 4e-6
    with pytest.raises(ValueError, match=r"y\[3"):
        call(loss, method, probabilities | {"y": y})


@backends
@methods
@cases
def test_bad_weights(case: Case, method: str, primitives: Any) -> None:
    arguments = given(case)
    for bad in (-1.0, math.nan, math.inf, -math.inf, -1e-300):
        weights = np.ones(30)
        weights[[8, 9]] = bad
        text = rf"^{case.name}\.{method}: sample_weight\[8\] is {bad}.*finite and not negative"
        with pytest.raises(ValueError, match=text):
            call(case.of(primitives), method, arguments | {"sample_weight": weights})
    if method != "partial":
        with pytest.raises(ValueError, match=rf"^{case.name}\.{method}: .*sample_weight"):
            call(case.of(primitives), method, arguments | {"sample_weight": np.zeros(30)})
    options = {"sample_weight": np.zeros(30)} | (
        {} if method == "partial" else {"reduction": "sum"}
    )
    call(case.of(primitives), method, arguments | options)


@backends
@methods
def test_a_bad_target_is_told_before_its_bad_weight(method: str, primitives: Any) -> None:
    arguments = given(LOGISTIC)
    y, weights = np.zeros(30), np.ones(30)
    y[8], weights[8] = 1.5, -1
    with pytest.raises(ValueError, match=r"y\[8\]"):
        call(primitives.logistic, method, arguments | {"y": y, "sample_weight": weights})


@backends
@methods
def test_the_row_of_converted_sparse_and_late_samples(method: str, primitives: Any) -> None:
    """The row is counted from the first of all samples, in every layout and at any size."""
    n, d = 20_011, 33
    m = model(LOGISTIC, n, d, np.float32)
    for row in (0, 511, 512, 10_007, n - 1):
        y, weights = m.y.copy(), np.ones(n)
        y[row:] = np.nan
        weights[row:] = np.nan
        for X in (
            m.X,
            np.asfortranarray(m.X),
            m.X.astype(">f2"),
            np.repeat(m.X, 2, axis=1)[:, ::2],
            scipy.sparse.csr_array(np.where(m.X > 0.9, m.X, 0)),
            scipy.sparse.csc_array(np.where(m.X > 0.9, m.X, 0)),
        ):
            arguments = {"X": X, "y": m.y, "w": m.w, "b": m.b}
            with pytest.raises(ValueError, match=rf"logistic.{method}: y\[{row}\] is nan"):
                call(primitives.logistic, method, arguments | {"y": y})
            with pytest.raises(ValueError, match=rf"{method}: sample_weight\[{row}\] is nan"):
                call(primitives.logistic, method, arguments | {"sample_weight": weights})
            below = np.where(np.arange(n) == row, -1.0, 1.0)  # of which the sum tells nothing
            with pytest.raises(ValueError, match=rf"{method}: sample_weight\[{row}\] is -1"):
                call(primitives.logistic, method, arguments | {"sample_weight": below})


@pytest.mark.native
@pytest.mark.parametrize("method", ["value", "value_and_grad"])
def test_the_first_bad_row_for_any_number_of_threads(method: str, target: str) -> None:
    del target
    n = 60_001
    m = model(LOGISTIC, n, 10, np.float64)
    rng = np.random.default_rng(0)
    for first in (0, 3, 511, 512, 29_999, n - 1):
        y = m.y.copy()
        y[first] = 2
        y[rng.integers(first, n, 50)] = 0.5
        y[first] = 2
        for threads in (1, 2, 3, 8):
            with pb.threads(threads):
                for _ in range(5):
                    with pytest.raises(ValueError, match=rf"{method}: y\[{first}\] is 2.0"):
                        getattr(pb.logistic, method)(m.X, y, m.w, m.b)


# --- sparse ---------------------------------------------------------------------------------------


class Parts(NamedTuple):
    format: str
    data: Any
    indices: Any
    indptr: Any
    shape: Any


@backends
@methods
@pytest.mark.parametrize("form", ["coo", "lil", "dok", "dia", "bsr"])
def test_other_sparse_formats(form: str, method: str, primitives: Any) -> None:
    X = scipy.sparse.coo_array(np.eye(30, 4)).asformat(form)
    with pytest.raises(TypeError, match=rf"logistic.{method}: .*X.*{form}.*\.tocsr\(\)"):
        call(primitives.logistic, method, given(LOGISTIC) | {"X": X})


@backends
@pytest.mark.parametrize("method", ["value", "value_and_grad", "hvp"])
@each("form", ["csr", "csc"])
@each("index", [np.int32, np.int64])
@each("part", ["data", "indices", "indptr"])
def test_sparse_arrays_are_vectors(
    form: str, method: str, index: Any, part: str, primitives: Any
) -> None:
    arguments = given(LOGISTIC)
    X = scipy.sparse.csr_array(arguments["X"]).asformat(form)
    good = Parts(form, X.data, X.indices.astype(index), X.indptr.astype(index), X.shape)
    n = len(getattr(good, part))
    for shape in ((1, n), (n, 1), (1, n, 1), ()):
        wrong = np.resize(getattr(good, part), shape)
        with pytest.raises(
            ValueError, match=rf"logistic.{method}: X.{part} has shape {re.escape(str(shape))}"
        ):
            call(primitives.logistic, method, arguments | {"X": good._replace(**{part: wrong})})


@backends
@pytest.mark.parametrize("method", ["value", "value_and_grad", "hvp"])
@each("form", ["csr", "csc"])
@each("index", [np.int32, np.int64])
def test_broken_sparse_arrays(form: str, method: str, index: Any, primitives: Any) -> None:
    """Indices out of range and pointers that do not fit are refused before memory is touched."""
    arguments = given(LOGISTIC)
    dense = np.where(arguments["X"] > 0, arguments["X"], 0)
    good = scipy.sparse.csr_array(dense) if form == "csr" else scipy.sparse.csc_array(dense)
    data, indices, indptr = good.data, good.indices.astype(index), good.indptr.astype(index)
    minor = dense.shape[1 if form == "csr" else 0]

    def changed(a: Any, at: int, to: int) -> Any:
        a = a.copy()
        a[at] = to
        return a

    for parts in (
        (data, changed(indices, 3, minor), indptr),
        (data, changed(indices, -1, -1), indptr),
        (data, changed(indices, 0, 2**31 - 1), indptr),
        (data, indices, changed(indptr, -1, len(data) + 1)),
        (data, indices, changed(indptr, 0, 1)),
        (data, indices, changed(indptr, 0, -1)),
        (data, indices, changed(indptr, 1, len(data) + 5)),
        (data, indices, changed(indptr, 2, -3)),
        (data, indices, indptr[:-1]),
        (data, indices, indptr[:0]),
        (data[:-1], indices, indptr),
        (data, indices[:-1], indptr),
        *([(data, changed(indices, 0, 2**32), indptr)] if index is np.int64 else []),
    ):
        X = Parts(form, *parts, dense.shape)
        with pytest.raises(ValueError, match=rf"logistic.{method}: .*X"):
            call(primitives.logistic, method, arguments | {"X": X})
    for parts in ((data, indices * 1.0, indptr), (data, indices, indptr * 1.0)):
        with pytest.raises(TypeError, match=rf"logistic.{method}: .*X"):
            call(primitives.logistic, method, arguments | {"X": Parts(form, *parts, dense.shape)})
    for dtype in (complex, object, np.longdouble):
        X = Parts(form, data.astype(dtype), indices, indptr, dense.shape)
        with pytest.raises(TypeError, match=rf"logistic.{method}: .*X"):
            call(primitives.logistic, method, arguments | {"X": X})


# --- out ------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("method", ["grad", "value_and_grad"])
def test_wrong_outputs(method: str, primitives: Any) -> None:
    arguments = given(LOGISTIC) | {"b": np.ones(1)}
    f = getattr(primitives.logistic, method)
    gw, gb = np.full(4, 7.0), np.full(1, 7.0)
    frozen = gw.copy()
    frozen.flags.writeable = False
    for out, error in (
        ((np.full(5, 7.0), gb), ValueError),
        ((np.full((4, 1), 7.0), gb), ValueError),
        ((gw, np.full((), 7.0)), ValueError),
        ((gw, np.full((1, 1), 7.0)), ValueError),
        ((gw.astype(int), gb), TypeError),
        ((frozen, gb), ValueError),
        ((gw, gw[:1]), ValueError),
        ((gw,), ValueError),
        ((gw, gb, gb), ValueError),
        (gw, TypeError),
        ([gw, gb], TypeError),
        (([1.0] * 4, gb), TypeError),
    ):
        with pytest.raises(error, match=rf"logistic.{method}: .*out"):
            f(**arguments, out=out)
        assert (gw == 7).all()
        assert (gb == 7).all()
    scalar = arguments | {"b": 0.5}
    with pytest.raises((TypeError, ValueError), match=rf"logistic.{method}: .*out"):
        f(**scalar, out=(gw, gb))  # a float cannot be written to
    without = arguments | {"b": None}
    with pytest.raises(ValueError, match=rf"logistic.{method}: .*out"):
        f(**without, out=(gw, gb))
    assert (gw == 7).all()
    f(**scalar, out=(gw, None))
    assert (gw != 7).all()


@backends
@cases
def test_nothing_is_written_on_failure(case: Case, primitives: Any) -> None:
    for n, d in ((30, 4), (3000, 40)):
        arguments = given(case, n, d)
        b = np.ones(np.shape(arguments["w"])[1:] or (1,))
        outs = (
            np.full((n, d), 7.0),
            np.full(np.shape(arguments["w"]), 7.0),
            np.full(b.shape, 7.0),
        )
        options = {"out": outs, "wrt": ("X", "w", "b")}
        weights, y = np.ones(n), arguments["y"].copy()
        weights[n - 1], y[n - 1] = -1, 9 if case.labels else math.nan
        changes = [{"sample_weight": weights}, {"sample_weight": np.zeros(n)}, {"y": y}]
        for layout in (np.ascontiguousarray, np.asfortranarray, lambda X: X.astype(np.int64)):
            for change in changes:
                refused = arguments | {"b": b, "X": layout(arguments["X"])} | change
                with pytest.raises(ValueError, match=r"y\[|sample_weight"):
                    case.of(primitives).value_and_grad(**refused, **options)
                for out in outs:
                    assert (out == 7).all()


@cases
def test_a_refused_call_changes_no_later_one(case: Case) -> None:
    arguments = given(case, 3000, 7)
    loss = case.of()
    wanted = loss.value_and_grad(**arguments)
    before = {name: np.copy(a) for name, a in arguments.items()}
    weights = np.ones(3000)
    weights[2500] = -1
    for _ in range(5):
        with pytest.raises(ValueError, match="sample_weight"):
            loss.value_and_grad(**arguments, sample_weight=weights)
        assert_same_leaves(loss.value_and_grad(**arguments), wanted)
    for name, a in arguments.items():
        assert_same_bits(np.asarray(a), before[name])

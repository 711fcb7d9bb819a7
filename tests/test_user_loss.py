"""pointwise_loss: what the table's losses do, from functions of the caller's own."""

from __future__ import annotations

import copy
import functools
import pickle
import re
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pullback as pb
import pytest
import scipy.sparse
from linear_models import POINTWISE, Case, by_id, judge, model
from oracles import assert_same_bits
from protocol import assert_same_leaves, dtypes, each, leaves, native
from pullback import native_rows

LOGISTIC, HUBER = Case("logistic"), Case("huber")
FEW = pytest.mark.parametrize("case", [LOGISTIC, HUBER], ids=by_id)


def own(case: Case, **options: Any) -> Any:
    """Return a loss of the table as one of the caller's own."""
    f = case.of().pointwise
    targets = case.of().row.targets.test
    return pb.pointwise_loss(
        f, f.derivative, f.second_derivative, name=case.name, targets=targets, **options
    )


def judge_own(case: Case, *arguments: Any, **options: Any) -> Any:
    loss = own(case)
    made = lambda *_: loss  # noqa: E731  of a parameter
    primitives = SimpleNamespace(**{case.name: loss if case.parameter is None else made})
    return judge(case, *arguments, primitives=primitives, **options)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make several blocks of few rows."""
    monkeypatch.setattr(native_rows, "_BLOCK_BYTES", 1024)


@pytest.mark.parametrize("case", POINTWISE, ids=by_id)
@each("k", [None, 3])
def test_right(case: Case, k: int | None) -> None:
    """Every method lies within the bounds that hold for the table's own."""
    m = model(case, 50, 4, np.float64, k)
    judge_own(case, *m.operands, None, m.v)
    judge_own(case, *m.operands, m.sample_weight, m.v, reduction="sum")


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "neither": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "CSR": scipy.sparse.csr_array,
    "CSC": scipy.sparse.csc_array,
    "CSR of 64 bits": lambda X: scipy.sparse.csr_matrix(X),
}


@pytest.mark.usefixtures("small_blocks")
@FEW
@dtypes
@each("k", [None, 1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(case: Case, dtype: Any, k: int | None, layout: str) -> None:
    m = model(case, 700, 5, dtype, k)
    dense = np.where(np.abs(m.X) < 0.5, 0, m.X)
    X = LAYOUTS[layout](dense)
    for weight in (None, m.sample_weight):
        judge_own(case, X, *m.operands[1:], weight, m.v, dense=dense)
    offset = np.linspace(-1, 1, m.y.size).reshape(m.y.shape)
    for call in (
        lambda loss: loss.value_and_grad(X, *m.operands[1:], offset=offset),
        lambda loss: loss.hvp(X, *m.operands[1:], m.v, offset=offset),
        lambda loss: loss.curvature(X, *m.operands[1:], offset=offset),
    ):
        for ours, theirs in zip(leaves(call(own(case))), leaves(call(case.of())), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5 if dtype == "f4" else 1e-11)


@pytest.mark.usefixtures("small_blocks")
@FEW
@pytest.mark.parametrize("layout", ["rows", "columns", "CSR", "CSC"])
def test_rows_of_weight_0_hold_anything(case: Case, layout: str) -> None:
    """As without them: NaN and infinities in X, in a target, and in what functions make of it."""
    m = model(case, 300, 4, np.float64, 2)
    weight = np.where(np.arange(300) % 3 == 1, 0.0, m.sample_weight)
    X, y = m.X.copy(), m.y.copy()
    X[weight == 0, 1], y[weight == 0] = np.nan, -77.0
    X[1::9, 0] = np.inf
    kept = weight != 0
    loss = own(case)
    for wrt in ("w", "b"):
        got = loss.grad(LAYOUTS[layout](X), y, m.w, m.b, weight, wrt=wrt)
        wanted = loss.grad(m.X[kept], m.y[kept], m.w, m.b, weight[kept], wrt=wrt)
        np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-16)
    gX = loss.grad(X, y, m.w, m.b, weight, wrt="X")
    assert (gX[~kept] == 0).all()
    hw, hb = loss.hvp(LAYOUTS[layout](X), y, m.w, m.b, m.v, sample_weight=weight)
    wanted = loss.hvp(m.X[kept], m.y[kept], m.w, m.b, m.v, sample_weight=weight[kept])
    np.testing.assert_allclose(hw, wanted[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(hb, wanted[1], rtol=1e-12, atol=1e-15)
    assert (loss.curvature(X, y, m.w, m.b, sample_weight=weight)[~kept] == 0).all()


@pytest.mark.parametrize("layout", ["rows", "columns", "CSR", "CSC"])
def test_slopes_that_overflow_meet_no_zero(layout: str) -> None:
    """An element of X that is 0 adds nothing, whatever the slope."""
    X = LAYOUTS[layout](np.array([[1.0, 0.0], [2.0, 3.0]]))
    loss = pb.pointwise_loss(lambda z, y: z, lambda z, y: np.where(y > 0, np.inf, 1.0))
    gw = loss.grad(X, np.array([1.0, 0.0]), np.ones(2), reduction="sum", wrt="w")
    assert gw.tolist() == [np.inf, 3.0]


@pytest.mark.usefixtures("small_blocks")
def test_pointwise_partial_objective() -> None:
    case, loss = LOGISTIC, own(LOGISTIC, response=pb.sigmoid)
    m = model(case, 333, 4)
    z = m.X @ m.w
    assert_same_bits(loss.pointwise(z, m.y), pb.logistic.pointwise(z, m.y))
    for name in ("derivative", "second_derivative"):
        of_ours, of_theirs = (getattr(f.pointwise, name) for f in (loss, pb.logistic))
        assert_same_bits(of_ours(z, m.y), of_theirs(z, m.y))
        assert of_ours(z.astype("f4"), m.y.astype("f4")).dtype == np.float32
    assert loss.pointwise(0.5, 1.0) == pb.logistic.pointwise(0.5, 1.0)
    parts = [loss.partial(m.X[i : i + 100], m.y[i : i + 100], m.w, 0.5) for i in (0, 100, 200, 300)]
    wanted = pb.logistic.value_and_grad(m.X, m.y, m.w, 0.5)
    np.testing.assert_allclose(sum(parts).finish()[0], wanted[0], rtol=1e-14)

    chunks = [(m.X[i : i + 64], m.y[i : i + 64]) for i in range(0, 333, 64)]
    theta = np.arange(5.0) / 4
    for data in ((m.X, m.y), (chunks,), (scipy.sparse.csr_array(m.X), m.y)):
        ours, theirs = (
            pb.LinearObjective(*data, loss=f, l2=0.25, fit_intercept=True)
            for f in (loss, pb.logistic)
        )
        assert ours.initial().tolist() == [0] * 5
        for call in (
            lambda f: f.value(theta),
            lambda f: f.grad(theta),
            lambda f: f.value_and_grad(theta)[1],
            lambda f: f.hvp(theta, theta[::-1]),
            lambda f: f.hvp(theta, np.eye(5)),
            lambda f: f.predict(m.X, theta),
            lambda f: f.line(theta, theta[::-1])(0.5),
            lambda f: f.hessian(theta),
            lambda f: f.hessian_operator(theta) @ theta,
            lambda f: f.covariance(theta, kind="robust"),
            lambda f: f._loss.sample_grads(m.X, m.y, theta[:4]).sum()[0],
            lambda f: f._loss.sample_grads(m.X, m.y, theta[:4]).clip(0.5).norms(),
        ):
            wanted = call(theirs)
            atol = 1e-15 * np.abs(wanted).max()  # of sums whose terms cancel
            np.testing.assert_allclose(call(ours), wanted, rtol=1e-13, atol=atol)


@pytest.mark.usefixtures("small_blocks")
def test_out_wrt_and_shared_intercept() -> None:
    loss, m = own(HUBER), model(HUBER, 100, 3, np.float32, 2)
    out = np.full_like(m.w, np.nan), None
    _, (gw, gb) = loss.value_and_grad(*m.operands[:3], 0.5, out=out)
    assert gw is out[0]
    wanted = pb.huber.value_and_grad(*m.operands[:3], 0.5)[1]
    np.testing.assert_allclose(gw, wanted[0], rtol=1e-6)
    assert type(gb) is float
    np.testing.assert_allclose(gb, wanted[1], rtol=1e-13)
    gX = loss.grad(*m.operands, wrt="X")
    np.testing.assert_allclose(gX, pb.huber.grad(*m.operands, wrt="X"), rtol=1e-6)


def test_checked() -> None:
    """What is documented: check_grad tells a wrong derivative."""
    rng = np.random.default_rng(1)
    X, y, w = rng.normal(size=(9, 3)), rng.normal(size=9), rng.normal(size=3)
    for factor, ok in ((1, True), (1.01, False)):
        loss = pb.pointwise_loss(
            lambda z, y: np.log1p((z - y) ** 2),
            lambda z, y, factor=factor: factor * 2 * (z - y) / (1 + (z - y) ** 2),
        )
        value = functools.partial(loss.value, X, y)
        report = pb.check_grad(value, loss.grad(X, y, w, wrt="w"), w)
        assert report.ok == ok


# --- how functions are called ---------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("w", "tail"), [(np.ones(3), ()), (np.ones((3, 1)), ()), (np.ones((3, 2)), (2,))]
)
def test_functions_get_blocks_in_the_calling_thread(w: Any, tail: tuple[int, ...]) -> None:
    rows = {"value": 0, "derivative": 0, "second_derivative": 0}

    def seen(what: str, z: Any, y: Any) -> Any:
        assert threading.current_thread() is threading.main_thread()
        for a in (z, y):
            assert type(a) is np.ndarray
            assert a.dtype == np.float64
            assert a.shape == (len(a), *tail)
            assert not a.flags.writeable
            assert a.flags.aligned
        rows[what] += len(z)
        return np.exp(1e4 * z) * 0 + 1  # of which NumPy does not warn

    loss = pb.pointwise_loss(*(functools.partial(seen, what) for what in rows))
    X, y = np.ones((500, 3), np.float32), np.ones((500, *w.shape[1:]), np.float32)
    loss.value_and_grad(X, y, w)
    assert rows == {"value": 500, "derivative": 500, "second_derivative": 0}
    loss.hvp(X, y, w, None, (w, None))
    assert rows["second_derivative"] == 500
    rows = dict.fromkeys(rows, 0)
    loss.sample_grads(X, y, w)
    loss.pointwise.derivative(y, y)
    loss.pointwise(np.ones((2, *y.shape), np.float32)[:, 0], 1.0) if tail else None
    assert rows["derivative"] == 1000
    theta = np.ones(w.size)
    line = pb.LinearObjective(X, y, loss, fit_intercept=False).line(theta, theta)
    rows = dict.fromkeys(rows, 0)
    line(0.5)
    assert rows == {"value": 500, "derivative": 500, "second_derivative": 0}


def test_a_number_is_for_all() -> None:
    X, y, w = np.arange(6.0).reshape(3, 2), np.zeros(3), np.ones(2)
    loss = pb.pointwise_loss(lambda z, y: z - y, lambda z, y: 1, lambda z, y: 0.5)
    assert loss.grad(X, y, w, reduction="sum", wrt="w").tolist() == [6, 9]
    assert loss.curvature(X, y, w, reduction="sum").tolist() == [0.5] * 3


@pytest.mark.native
@pytest.mark.parametrize("layout", ["rows", "columns", "CSR", "CSC"])
def test_bits_are_those_of_any_number_of_threads(layout: str) -> None:
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(40_000, 20)), rng.integers(0, 2, 40_000) * 1.0
    X = LAYOUTS[layout](np.where(X > 0, X, 0))
    loss = own(LOGISTIC)
    results = []
    for n in (1, 2, 5):
        with pb.threads(n):
            results.append(loss.value_and_grad(X, y, np.full(20, 0.1), 0.0))
    for other in results[1:]:
        assert_same_leaves(other, results[0])


# --- errors ---------------------------------------------------------------------------------------

X, Y, W = np.arange(12.0).reshape(6, 2), np.zeros(6), np.ones(2)
f = lambda z, y: z - y  # noqa: E731


@pytest.mark.parametrize(
    ("functions", "error", "message"),
    [
        ((f, lambda z, y: z[:3]), ValueError, "mine: derivative returned shape (3,), takes (6,)"),
        ((lambda z, y: z.sum(), f), ValueError, "mine: value returned shape (), takes (6,)"),
        ((f, f, lambda z, y: z[:, None]), ValueError, "second_derivative returned shape (6, 1)"),
        ((lambda z, y: None, f), TypeError, "mine: value returned None, needs an array"),
        ((f, lambda z, y: z.tolist()), TypeError, "mine: derivative returned ["),
        ((f, lambda z, y: np.ma.array(z)), TypeError, "mine: derivative returned "),
        ((f, lambda z, y: z * 1j), TypeError, "derivative returned dtype complex128, needs real"),
        ((f, lambda z, y: z.astype(object)), TypeError, "derivative returned dtype object, needs"),
        ((f, f), TypeError, "mine: needs a second_derivative, which pointwise_loss was not given"),
    ],
)
def test_what_functions_return_is_looked_at(functions: Any, error: Any, message: str) -> None:
    loss = pb.pointwise_loss(*functions, name="mine")
    objective = pb.LinearObjective(X, Y, loss)
    first = len(functions) == 2 and functions != (f, f)  # of the two that a gradient needs
    out = np.full(2, 7.0)
    for call in (
        lambda: loss.grad(X, Y, W, out=(out, None)) if first else loss.curvature(X, Y, W),
        lambda: objective.grad(np.ones(3)) if first else objective.hvp(np.ones(3), np.ones(3)),
    ):
        with pytest.raises(error, match=re.escape(message)):
            call()
    assert out.tolist() == [7, 7]


def test_errors_of_functions_pass_with_a_note() -> None:
    class OwnError(Exception): ...

    def fails(z: Any, y: Any) -> Any:
        raise OwnError("of its own")

    for functions, what in (((fails, f), "value"), ((f, fails), "derivative")):
        out = np.full(2, 7.0)
        with pytest.raises(OwnError, match="of its own") as caught:
            pb.pointwise_loss(*functions, name="mine").grad(X, Y, W, out=(out, None))
        (note,) = caught.value.__notes__
        assert note == f"in {what} of the loss 'mine', of predictions of shape (6,)"
        assert out.tolist() == [7, 7]

    def like_an_engine(z: Any, y: Any) -> Any:
        raise ValueError("y", 3)

    with pytest.raises(ValueError, match=re.escape("('y', 3)")):
        pb.pointwise_loss(like_an_engine, f).value(X, Y, W)
    with pytest.raises(ValueError, match="read-only"):
        pb.pointwise_loss(lambda z, y: np.exp(z, out=z), f).value(X, Y, W)


@each("part", ["X", "data", "indices", "indptr", "y", "sample_weight", "offset"])
def test_functions_cannot_resize_what_is_read(part: str) -> None:
    """NumPy resizes arrays that have views, if it is told not to check."""
    sparse = scipy.sparse.csr_array(np.ones((500, 2)))
    arrays = {name: np.ones(500) for name in ("y", "sample_weight", "offset")}
    arrays |= {"X": np.ones((500, 2))}
    for name in ("data", "indices", "indptr"):
        arrays[name] = getattr(sparse, name).copy()
        setattr(sparse, name, arrays[name])
    X, *rest = arrays["X"] if part == "X" else sparse, arrays["y"], np.ones(2), None
    options = {name: arrays[name] for name in ("sample_weight", "offset")}
    loss = pb.pointwise_loss(lambda z, y: arrays[part].resize(1, refcheck=False), f)
    calls = [lambda: loss.value_and_grad(X, *rest, **options)]
    calls += [lambda: loss.pointwise(arrays[part], 1.0)] * (part == "y")
    for call in calls:
        with pytest.raises(ValueError, match="cannot resize an array that references or is"):
            call()
    assert len(arrays[part]) >= 500
    arrays[part].resize(1, refcheck=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": None}, "pointwise_loss: value must be a function, not None"),
        ({"derivative": 3}, "pointwise_loss: derivative must be a function, not 3"),
        ({"second_derivative": 3}, "pointwise_loss: second_derivative must be a function, not 3"),
        ({"response": "exp"}, "pointwise_loss: response must be a function, not 'exp'"),
        ({"targets": [1]}, "pointwise_loss: targets must be a function, not"),
        ({"name": 1}, "pointwise_loss: name must be a string, not 1"),
    ],
)
def test_what_is_no_function(options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        pb.pointwise_loss(**({"value": f, "derivative": f} | options))


@pytest.mark.usefixtures("small_blocks")
def test_targets() -> None:
    """Finite unless told otherwise; the first bad row is named, and one of weight 0 is not."""
    X, y = np.ones((500, 2)), np.zeros(500)
    y[[333, 444]] = np.nan, -1
    for options, text in (
        ({}, "y[333] is nan, needs to be finite"),
        ({"targets": lambda y: y >= 0}, "y[333] is nan, needs targets(y) to be true"),
        ({"targets": lambda y: y != -1}, "y[444] is -1.0, needs targets(y) to be true"),
    ):
        loss = pb.pointwise_loss(f, f, name="mine", **options)
        with pytest.raises(ValueError, match=re.escape(f"mine.value: {text}")):
            loss.value(X, y, W)
        weight = np.ones(500)
        weight[[333, 444]] = 0
        assert loss.value(X, y, W, None, weight) == 2
    for test in (lambda y: y[0] > 1, lambda y: True):
        loss = pb.pointwise_loss(f, f, targets=test, name="mine")
        with pytest.raises(ValueError, match=re.escape("mine: targets returned shape (), takes (")):
            loss.value(X, y, W)


def test_other_errors_are_those_of_losses() -> None:
    loss = pb.pointwise_loss(f, f, name="mine")
    with pytest.raises(ValueError, match=r"mine.value: w has shape \(3,\)"):
        loss.value(X, Y, np.ones(3))
    bad = scipy.sparse.csr_array(X)
    bad.indices[3] = 9
    with pytest.raises(ValueError, match=r"mine.grad: X.indices\[3\] is 9"):
        loss.grad(bad, Y, W)


# --- as an object ---------------------------------------------------------------------------------


def value_of(z: Any, y: Any) -> Any:
    return (z - y) ** 2


def slope_of(z: Any, y: Any) -> Any:
    return 2 * (z - y)


def test_as_an_object() -> None:
    loss = pb.pointwise_loss(value_of, slope_of, response=np.exp, targets=np.isfinite)
    assert loss.__name__ == "value_of"
    assert repr(loss).startswith("<loss 'value_of'")
    assert pb.pointwise_loss(f, f).__name__ == "pointwise_loss"
    assert isinstance(loss, pb.losses.Loss)
    for twin in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss), copy.copy(loss)):
        assert twin == loss
        assert hash(twin) == hash(loss)
        assert_same_leaves(twin.grad(X, Y, W), loss.grad(X, Y, W))
    assert loss != pb.pointwise_loss(value_of, slope_of)
    objective = pickle.loads(pickle.dumps(pb.LinearObjective(X, Y, loss)))
    np.testing.assert_array_equal(objective.predict(X, [1, 1, 0]), np.exp(X @ W))
    with pytest.raises(TypeError, match=r"value_of.value\(\) missing"):
        loss.value(X)


# --- the kernel behind it -------------------------------------------------------------------------


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("layout", ["rows", "columns", "CSR", "CSC"])
def test_backward(layout: str) -> None:
    """X^T slopes and their sums, of whole numbers: without an error."""
    rng = np.random.default_rng(2)
    dense, slopes = rng.integers(-3, 4, (1500, 7)) * 1.0, rng.integers(-9, 9, (1500, 2)) * 1.0
    X = LAYOUTS[layout](dense)
    if scipy.sparse.issparse(X):
        X = (X.format, X.data, X.indices, X.indptr, X.shape)
    given = ("squared_error", 0.0, X, slopes, np.zeros((7, 2)), np.zeros(2))
    rest = (None, "backward", None, None, None, 1.0)
    loss, gb, gw = native.loss_sums(*given, None, *rest)
    assert loss == 0
    np.testing.assert_array_equal(gb, slopes.sum(0))
    np.testing.assert_array_equal(gw, dense.T @ slopes)
    with pytest.raises(TypeError, match="loss_sums: y is not what the engine takes"):
        native.loss_sums(*given[:3], slopes.astype("f4"), *given[4:], None, *rest)

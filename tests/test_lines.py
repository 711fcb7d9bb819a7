"""LinearObjective.line: the objective at each step, from predictions that are kept."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pullback as pb
import pytest
import scipy.sparse
from linear_models import CASES, Case, by_id, divided, exact, model
from protocol import backends, each
from test_objective import Counted, matrix_of, penalties, theta_of

STEPS = (0.0, -0.75, 3.5)
LOGISTIC = Case("logistic")
cases = pytest.mark.parametrize("case", CASES, ids=by_id)


def judge(
    objective: Any,
    case: Case,
    m: Any,
    k: int | None,
    weights: Any = None,
    l2: Any = 0.0,
    offset: Any = None,
) -> None:
    """Check value, slope and second derivative at some steps against long double sums."""
    size, theta = m.w.size, theta_of(m.w, m.b)[: objective.n_parameters]
    d = np.random.default_rng(4).normal(size=theta.size)
    phi = objective.line(theta, d)
    P, wide = matrix_of(l2, len(m.w), k), d.astype(np.longdouble)
    vw = wide[:size].reshape(m.w.shape)
    vb: Any = 0 * m.b if d.size == size else wide[size:] if k else wide[size]

    def along(by_w: Any, by_b: Any) -> Any:
        return np.vdot(vw, by_w.exact) + np.vdot(vb, by_b.exact)

    for t in STEPS:
        w, b = m.w + t * vw, (0 if d.size == size else m.b) + t * vb
        sums = exact(case, m.X, m.y, w, b, weights, (vw, vb), offset=offset)
        right = divided(sums, len(m.X), weights, "mean")
        value, slope = phi(t)
        for got, mean, penalty in (
            (value, right.value.exact, w.ravel() @ P @ w.ravel() / 2),
            (slope, along(right.gw, right.gb), vw.ravel() @ P @ w.ravel()),
            (phi.second(t), along(right.hw, right.hb), vw.ravel() @ P @ vw.ravel()),
        ):
            assert type(got) is float
            assert got == pytest.approx(float(mean + penalty), rel=1e-12, abs=1e-13)


@backends
@pytest.mark.parametrize(
    ("case", "k"),
    [(case, k) for case in CASES for k in (None, 3) if k == 3 or not case.coupled],
    ids=lambda value: value.id if isinstance(value, Case) else str(value),
)
def test_value_slope_and_second_derivative(case: Case, k: int | None, primitives: Any) -> None:
    loss = case.of(primitives)
    for n, d, dtype in ((30, 4, "f8"), (550, 3, "f4"), (5, 0, "f8")):
        m = model(case, n, d, dtype, k)
        for weights, intercept in ((None, True), (m.sample_weight, False)):
            rows = np.arange(n) / n
            offset = (
                None if intercept else rows if dtype == "f8" else np.outer(rows, np.arange(k or 1))
            )
            offset = offset if offset is None or k else offset.ravel()
            objective = pb.LinearObjective(m.X, m.y, loss, 0.5, weights, intercept, offset=offset)
            judge(objective, case, m, k, weights, 0.5, offset)


@backends
@each("name", [*penalties(5, 3)])
def test_penalties(name: str, primitives: Any) -> None:
    for k in (None, 3):
        if name in penalties(5, k):
            l2 = penalties(5, k)[name]
            m = model(LOGISTIC, 30, 5, np.float64, k)
            judge(pb.LinearObjective(m.X, m.y, primitives.logistic, l2), LOGISTIC, m, k, l2=l2)


@backends
def test_infinite_coefficients_without_a_penalty(primitives: Any) -> None:
    X, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.0, 1.0])
    for l2 in (0.0, [0.0, 1.0]):
        objective = pb.LinearObjective(X, y, primitives.logistic, l2, fit_intercept=False)
        theta, d = np.array([math.inf, 1.0]), np.array([0.0, 1.0])
        value, slope = objective.line(theta, d)(0.5)
        assert value == objective.value(theta + 0.5 * d) == math.inf
        assert slope == (theta + 0.5 * d)[1] * np.max(l2) + 0.5 * 2  # the first row's slope is 1


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "columns": np.asfortranarray,
    "reversed": lambda X: X[:, ::-1].copy()[:, ::-1],
    "CSR": scipy.sparse.csr_array,
    "CSC": scipy.sparse.csc_array,
    "list": lambda X: X.tolist(),
}


@backends
@each("layout", LAYOUTS)
def test_layouts(layout: str, primitives: Any) -> None:
    for case, k in ((LOGISTIC, None), (Case("softmax_cross_entropy", None, labels=True), 3)):
        m = model(case, 300, 4, np.float64, k)
        for wide in (m, m._replace(X=np.tile(m.X, (1, 5)), w=np.tile(m.w, (5, 1)[: m.w.ndim]))):
            given = LAYOUTS[layout](wide.X)
            objective = pb.LinearObjective(given, m.y, case.of(primitives), 0.25)
            judge(objective, case, wide, k, l2=0.25)


@backends
def test_chunks_in_one_pass(primitives: Any) -> None:
    """Whose memory may be the next one's."""
    m = model(LOGISTIC, 90, 4)
    weights = m.sample_weight
    room: list[Any] = [np.empty((50, 4)), np.empty(50), np.empty(50)]

    def chunks() -> Iterator[Any]:
        for rows in (slice(0, 40), slice(40, 90), slice(90, 90)):
            chunk = [a[: rows.stop - rows.start] for a in room]
            for to, given in zip(chunk, (m.X, m.y, weights), strict=True):
                to[...] = given[rows]
            yield tuple(chunk)

    judge(pb.LinearObjective(chunks, loss=primitives.logistic), LOGISTIC, m, None, weights)
    source = Counted([(m.X[:20], m.y[:20]), (m.X[20:], m.y[20:])])
    objective = pb.LinearObjective(source, loss=primitives.logistic)
    before = source.passes
    phi = objective.line(np.ones(5), np.ones(5))
    phi(0.5)
    phi.second(0.5)
    assert source.passes == before + 1


@backends
def test_the_data_may_change_meanwhile(primitives: Any) -> None:
    m = model(LOGISTIC, 40, 3)
    X, y, weights, l2 = m.X.copy(), m.y.copy(), m.sample_weight.copy(), np.ones(3)
    theta, d = theta_of(m.w, m.b), np.ones(4)
    phi = pb.LinearObjective(X, y, primitives.logistic, l2, weights).line(theta, d)
    before = phi(0.5), phi.second(0.5)
    for a in (X, y, weights, l2, theta, d):
        a[...] = 0
    assert (phi(0.5), phi.second(0.5)) == before
    other = pickle.loads(pickle.dumps(phi))
    assert (other(0.5), other.second(0.5)) == before
    assert repr(other) == repr(phi) == f"<Line of {primitives.logistic!r}, N=40>"


@backends
@cases
def test_samples_of_weight_0(case: Case, primitives: Any) -> None:
    m = model(case, 30, 4)
    weights = m.sample_weight.copy()
    weights[::4] = 0
    X, y = m.X.copy(), m.y.copy()
    X[::4, 1], X[8] = math.nan, math.inf
    y[weights == 0] = -1 if case.labels else math.nan
    k = 3 if case.coupled else None
    objective = pb.LinearObjective(X, y, case.of(primitives), sample_weight=weights, n_outputs=k)
    judge(objective, case, m, k, weights)


@pytest.mark.native
@pytest.mark.parametrize("k", [None, 3])
def test_same_bits_for_any_threads(k: int | None) -> None:
    for case in (LOGISTIC, Case("softmax_cross_entropy")):
        k = 3 if case.coupled else k
        m = model(case, 100_000, 2, np.float32, k)
        objective = pb.LinearObjective(m.X, m.y, case.of(), 0.5, m.sample_weight)
        theta = theta_of(m.w, m.b)
        seen = set()
        for threads in (1, 2, 5):
            with pb.threads(threads):
                phi = objective.line(theta, theta[::-1])
                seen.add((*phi(0.7), phi.second(0.7)))
        assert len(seen) == 1
        assert phi(0.7)[0] == pytest.approx(objective.value(theta + 0.7 * theta[::-1]), rel=1e-13)


@backends
def test_errors(primitives: Any) -> None:
    X, y = np.ones((4, 2)), np.array([0.0, 1, 1, 0])
    objective = pb.LinearObjective(X, y, primitives.logistic)
    good = np.ones(3)
    for call, error, message in (
        (
            lambda: objective.line(good, np.ones(2)),
            ValueError,
            "LinearObjective.line: direction has",
        ),
        (lambda: objective.line(np.ones(2), good), ValueError, "LinearObjective.line: theta has"),
        (lambda: objective.line(good, good)("1"), TypeError, "Line: t must be a number"),
        (lambda: objective.line(good, good).second(good), TypeError, "Line.second: t must be a n"),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            call()
    y[2] = 2
    phi = objective.line(good, good)
    for step in (phi, phi.second):
        with pytest.raises(ValueError, match=r"LinearObjective.line: y\[2\] is 2.0, needs"):
            step(1.0)
    chunks = [(X, y[[0, 1, 1, 0]]), (X, y)]
    phi = pb.LinearObjective(chunks, loss=primitives.logistic).line(good, good)
    with pytest.raises(ValueError, match=r"LinearObjective.line: chunk 1: y\[2\] is 2.0"):
        phi(1.0)

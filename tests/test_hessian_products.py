"""Products of an objective's Hessian with several directions at once, and as SciPy's operator."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pullback as pb
import pytest
import scipy.optimize
from linear_models import CASES, Case, assert_within, by_id, divided, exact, model
from oracles import assert_same_bits
from protocol import backends, each
from pullback import objective as module
from test_lines import LAYOUTS
from test_objective import Counted, matrix_of, penalties, theta_of

LOGISTIC, LABELS = Case("logistic"), Case("softmax_cross_entropy", None, labels=True)
U = 2.0**-53


def judge(
    objective: Any,
    case: Case,
    m: Any,
    k: int | None,
    columns: int,
    weights: Any = None,
    l2: Any = 0.0,
) -> None:
    """Check each column against long double sums, and their bounds."""
    theta = theta_of(m.w, m.b)[: objective.n_parameters]
    size = m.w.size
    V = np.random.default_rng(columns).normal(size=(theta.size, columns))
    kept = V.copy()
    product = objective.hvp(theta, V)
    assert product.shape == V.shape
    assert product.dtype == np.float64
    assert_same_bits(V, kept)
    intercept = theta.size > size
    P = matrix_of(l2, len(m.w), k)
    for i, v in enumerate(V.T):
        vb = (v[size:] if k else v[size]) if intercept else None
        b = m.b if intercept else None
        sums = exact(case, m.X, m.y, m.w, b, weights, (v[:size].reshape(m.w.shape), vb))
        right = divided(sums, len(m.X), weights, "mean")
        pull, most = P @ v[:size], np.abs(P) @ np.abs(v[:size])
        mean, error = (part.ravel() for part in right.hw)
        error = error + U * ((size + 4) * most + 4 * np.abs(mean))
        by_w = right.hw._replace(exact=mean + pull, error=error)
        assert_within(product[:size, i], by_w, "w")
        if intercept:
            assert_within(product[size:, i], right.hb, "b")


@backends
@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_several_directions(case: Case, primitives: Any) -> None:
    loss = case.of(primitives)
    for k in (3,) if case.coupled else (None, 2):
        for n, d, columns in ((30, 4, 2), (600, 3, 5), (5, 0, 3), (7, 9, 1), (7, 2, 0)):
            m = model(case, n, d, np.float64, k)
            for weights, intercept in ((None, True), (m.sample_weight, False)):
                objective = pb.LinearObjective(m.X, m.y, loss, 0.5, weights, intercept)
                judge(objective, case, m, k, columns, weights, 0.5)


@backends
@each("layout", LAYOUTS)
def test_layouts(layout: str, primitives: Any) -> None:
    for case, k in ((LOGISTIC, None), (LABELS, 3)):
        m = model(case, 300, 6, np.float64, k)
        objective = pb.LinearObjective(LAYOUTS[layout](m.X), m.y, case.of(primitives))
        judge(objective, case, m, k, 4)


@backends
def test_groups_of_directions(primitives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUP", 30)
    for case, k in ((LOGISTIC, None), (LABELS, 3)):
        m = model(case, 90, 5, np.float64, k)
        for l2 in penalties(5, k).values():
            source = Counted([(m.X[:20], m.y[:20]), (m.X[20:], m.y[20:])])
            objective = pb.LinearObjective(source, None, case.of(primitives), l2, n_outputs=k)
            before = source.passes
            judge(objective, case, m, k, 7, l2=l2)
            assert source.passes == before + 1


@backends
def test_samples_of_weight_0_and_offsets(primitives: Any) -> None:
    for case, k in ((LOGISTIC, None), (LOGISTIC, 2), (LABELS, 3)):
        m = model(case, 40, 4, np.float64, k)
        weights = m.sample_weight.copy()
        weights[::4] = 0
        X = m.X.copy()
        X[::4, 1], X[8] = math.nan, math.inf
        loss = case.of(primitives)
        judge(pb.LinearObjective(X, m.y, loss, 0.0, weights, n_outputs=k), case, m, k, 3, weights)
        objective = pb.LinearObjective(m.X, m.y, loss, offset=np.ones(40), n_outputs=k)
        moved = m._replace(b=m.b + 1)
        shifted = pb.LinearObjective(m.X, m.y, loss, n_outputs=k)
        V = np.random.default_rng(0).normal(size=(objective.n_parameters, 3))
        np.testing.assert_allclose(
            objective.hvp(theta_of(m.w, m.b), V),
            shifted.hvp(theta_of(moved.w, moved.b), V),
            rtol=1e-12,
            atol=1e-14,
        )


@pytest.mark.native
def test_same_bits_for_any_threads() -> None:
    for case, k in ((LOGISTIC, None), (LABELS, 3)):
        m = model(case, 60_000, 4, np.float32, k)
        objective = pb.LinearObjective(m.X, m.y, case.of(), 0.5, m.sample_weight, n_outputs=k)
        theta = theta_of(m.w, m.b)
        V = np.random.default_rng(0).normal(size=(theta.size, 4))
        products = []
        for threads in (1, 2, 5):
            with pb.threads(threads):
                products.append(objective.hvp(theta, V))
        for other in products[1:]:
            assert_same_bits(products[0], other)


@backends
def test_an_operator_for_scipy(primitives: Any) -> None:
    m = model(LABELS, 60, 4, np.float64, 3)
    objective = pb.LinearObjective(m.X, m.y, primitives.softmax_cross_entropy, 0.5)
    theta = theta_of(m.w, m.b)
    H = objective.hessian_operator(theta)
    assert H.shape == (15, 15)
    assert H.dtype == np.float64
    dense = H @ np.eye(15)
    assert_same_bits(dense, objective.hvp(theta, np.eye(15)))
    np.testing.assert_allclose(dense, dense.T, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(H.T @ theta, dense @ theta, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(theta @ H, dense @ theta, rtol=1e-12, atol=1e-15)
    theta[:] = 0
    assert_same_bits(H @ np.eye(15), dense)
    found = scipy.optimize.minimize(
        objective.value_and_grad,
        objective.initial(),
        jac=True,
        hess=objective.hessian_operator,
        method="trust-constr",
        options={"gtol": 1e-8},
    )
    assert np.abs(objective.grad(found.x)).max() < 1e-8


def test_scipy_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    objective = pb.LinearObjective(np.eye(3), np.ones(3), pb.squared_error)
    with pytest.raises(ImportError, match=r"LinearObjective.hessian_operator: .*needs SciPy"):
        objective.hessian_operator(np.ones(4))


@backends
def test_errors(primitives: Any) -> None:
    objective = pb.LinearObjective(np.ones((4, 2)), np.ones(4), primitives.squared_error)
    for v in (np.ones((2, 3)), np.ones((3, 1, 1)), 1.0, np.ones(2)):
        with pytest.raises(ValueError, match=r"hvp: v has shape \(.*\), needs \(3,\) or \(3, m\)"):
            objective.hvp(np.ones(3), v)
    with pytest.raises(ValueError, match=r"hvp: theta has shape \(3, 1\), needs \(3,\)$"):
        objective.hvp(np.ones((3, 1)), np.ones(3))

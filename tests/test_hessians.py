"""Hessians of losses and objectives, column by column against Hessian-vector products."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pullback as pb
import pytest
from linear_models import loss_of
from pullback.tables.losses import LOSSES
from scipy import optimize, sparse

LAYOUTS = {
    "rows": lambda X: X,
    "columns": np.asfortranarray,
    "float32": lambda X: X.astype(np.float32),
    "float16": lambda X: X.astype(np.float16),
    "bfloat16 columns": lambda X: np.asfortranarray(X.astype(ml_dtypes.bfloat16)),
    "csr": sparse.csr_array,
    "csc": sparse.csc_array,
}
MODULES = (pb, pb.reference)


def problem(loss, k=None, n=60, d=4, seed=0):
    """Data of small multiples of 1/8, so that bfloat16 holds them, targets and parameters."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-8, 9, (n, d)) / 8
    X[rng.random((n, d)) < 0.3] = 0
    row = LOSSES[loss]
    if row.of_classes:
        y = rng.dirichlet(np.ones(k or 3), n)
    else:
        y = rng.integers(0, 2, (n, k) if k else n).astype(float)
        signs = "hinge" in loss or loss == "exponential"
        y = 2 * y - 1 if signs else y + (not row.targets.test(np.zeros(1)).all())
    shape = (d, k) if k else (d,)
    return X, y, rng.standard_normal(shape), rng.standard_normal(k) if k else 0.25


def by_columns(loss, X, y, w, b, **options):
    """Return the Hessian as products with the unit vectors."""
    size = np.size(w) + (0 if b is None else np.size(b))
    columns = []
    for unit in np.eye(size):
        vw, vb = unit[: np.size(w)].reshape(np.shape(w)), unit[np.size(w) :]
        vb = None if b is None else vb.reshape(np.shape(b))
        hw, hb = loss.hvp(X, y, w, b, (vw, vb), **options)
        columns.append(np.concatenate([hw.ravel(), [] if b is None else np.ravel(hb)]))
    return np.array(columns).reshape(size, size).T


def close(got, want):
    assert got.shape == want.shape
    assert got.dtype == np.float64
    assert np.array_equal(got, got.T, equal_nan=True)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.abs(want).max(initial=1.0))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name, module):
    loss = loss_of(module, name)
    for k in (3,) if LOSSES[name].of_classes else (None, 1, 3):
        X, y, w, b = problem(name, k)
        weight = np.arange(len(X)) % 5.0
        for intercept in (None, b, *([0.5, np.array([0.5])] if k else [])):
            close(loss.hessian(X, y, w, intercept), by_columns(loss, X, y, w, intercept))
        options = {"sample_weight": weight, "offset": weight / 4, "reduction": "sum"}
        close(loss.hessian(X, y, w, b, **options), by_columns(loss, X, y, w, b, **options))


@pytest.mark.parametrize("module", MODULES)
def test_intercepts_alone(module):
    for name, k in (("logistic", None), ("poisson", 3), ("softmax_cross_entropy", 3)):
        loss = loss_of(module, name)
        X, y, w, b = problem(name, k, d=0)
        for intercept in (None, b, 0.5):
            close(loss.hessian(X, y, w, intercept), by_columns(loss, X, y, w, intercept))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout):
    for name, k in (("logistic", None), ("poisson", 2), ("softmax_cross_entropy", 4)):
        loss = getattr(pb, name)
        X, y, w, b = problem(name, k, n=3000)
        held = LAYOUTS[layout](X)
        close(loss.hessian(held, y, w, b), by_columns(loss, X, y, w, b))
        close(loss.hessian(held, y, w), by_columns(loss, X, y, w, None))


@pytest.mark.parametrize("module", MODULES)
def test_samples_of_weight_zero_add_nothing(module):
    for name, k in (("logistic", None), ("softmax_cross_entropy", 3)):
        loss = loss_of(module, name)
        X, y, w, b = problem(name, k)
        weight = np.ones(len(X))
        weight[7] = 0
        want = loss.hessian(np.delete(X, 7, 0), np.delete(y, 7, 0), w, b)
        X[7, 0], X[7, 1] = np.nan, np.inf
        close(loss.hessian(X, y, w, b, sample_weight=weight), want)


def test_labels_are_probabilities_of_one():
    X, y, w, b = problem("softmax_cross_entropy", 3)
    labels = y.argmax(axis=1)
    got = pb.softmax_cross_entropy.hessian(X, labels, w, b)
    close(got, pb.softmax_cross_entropy.hessian(X, np.eye(3)[labels], w, b))


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_objectives(fit_intercept):
    for name, k in (("logistic", None), ("huber", 2), ("softmax_cross_entropy", 3)):
        X, y, _, _ = problem(name, k)
        loss, weight = getattr(pb, name), np.arange(len(X)) % 3.0
        whole = pb.LinearObjective(X, y, loss, 0.25, weight, fit_intercept)
        parts = [(X[i : i + 25], y[i : i + 25], weight[i : i + 25]) for i in range(0, 75, 25)]
        chunks = pb.LinearObjective(parts, None, loss, 0.25, None, fit_intercept)
        theta = np.random.default_rng(5).standard_normal(whole.n_parameters)
        want = np.array([whole.hvp(theta, unit) for unit in np.eye(len(theta))])
        close(whole.hessian(theta), want)
        close(chunks.hessian(theta), want)
    with pytest.raises(ValueError, match=r"LinearObjective.hessian: theta has shape \(2,\)"):
        whole.hessian([1.0, 2.0])


@pytest.mark.parametrize("method", ["dogleg", "trust-exact", "newton-cg", "trust-ncg"])
def test_minimizers_take_hessians(method):
    for name, k in (("logistic", None), ("poisson", None), ("softmax_cross_entropy", 3)):
        X, y, _, _ = problem(name, k)
        objective = pb.LinearObjective(X, y, getattr(pb, name), 0.1)
        if name.startswith("softmax") and method == "dogleg":
            continue  # the intercepts have a common direction without curvature
        found = optimize.minimize(
            objective.value_and_grad, objective.initial(), jac=True, hess=objective.hessian,
            method=method, tol=1e-9,
        )  # fmt: skip
        assert np.abs(objective.grad(found.x)).max() < 1e-6, found.message


def test_errors_are_those_of_the_loss():
    X, y, w, _ = problem("logistic")
    y[3] = 7
    with pytest.raises(ValueError, match=r"logistic.hessian: y\[3\] is 7"):
        pb.logistic.hessian(X, y, w)
    with pytest.raises(ValueError, match=r"logistic.hessian: w has shape \(2,\)"):
        pb.logistic.hessian(X, y, w[:2])
    with pytest.raises(ValueError, match="logistic.hessian: reduction must be"):
        pb.logistic.hessian(X, y, w, reduction="median")

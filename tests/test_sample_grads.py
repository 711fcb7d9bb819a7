"""Per-sample gradients, as structure, and covariances of an objective's parameters."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pullback as pb
import pytest
import scipy.sparse
from linear_models import CASES, Bounded, Case, assert_within, by_id, exact, model
from protocol import backends, each
from test_lines import LAYOUTS
from test_objective import theta_of

LOGISTIC, LABELS = Case("logistic"), Case("softmax_cross_entropy", None, labels=True)
U = 2.0**-53


class Gradients(NamedTuple):
    """All gradients (N, n) in long double, by [w.ravel(), b]; their bounds, and sums of sizes."""

    exact: Any
    error: Any
    size: Any


def right(case: Case, m: Any, b: Any, weights: Any = None) -> Gradients:
    """Return the gradients of a model."""
    rows, sizes = [], []
    for i in range(len(m.X)):
        weight = None if weights is None else weights[i : i + 1]
        sums = exact(case, m.X[i : i + 1], m.y[i : i + 1], m.w, b, weight)
        shared = b is not None and np.size(b) < np.size(sums.gb.exact)
        by_b = [part.sum(keepdims=True) if shared else part for part in sums.gb]
        if b is None:
            by_b = [part[:0] for part in by_b]
        rows.append([np.concatenate([w.ravel(), b]) for w, b in zip(sums.gw, by_b, strict=True)])
        sizes.append(np.abs(rows[-1][0]))
        if shared:
            sizes[-1][-1] = np.abs(sums.gb.exact).sum()
    values, errors = np.array(rows).swapaxes(0, 1)
    return Gradients(values, errors + 4 * U * np.array(sizes), np.array(sizes))


def judge(gradients: Any, wanted: Gradients) -> None:
    """Check all that there is to ask of gradients."""
    n, size = wanted.exact.shape
    assert gradients.shape == (n, size)
    assert len(gradients) == n
    values, errors, magnitudes = wanted
    assert_within(gradients.todense(), Bounded(values, errors), "todense")
    squares, bounds = (values**2).sum(axis=1), (2 * np.abs(values) * errors).sum(axis=1)
    norms = np.sqrt(squares)
    slack = (size + 8) * U * norms + bounds / np.where(norms > 0, norms, 1)
    assert_within(gradients.norms(), Bounded(norms, slack), "norms")
    assert_within(
        gradients.gram(),
        Bounded(
            values.T @ values,
            magnitudes.T @ errors
            + errors.T @ (magnitudes + errors)
            + (n + 8) * U * magnitudes.T @ magnitudes,
        ),
        "gram",
    )
    gw, gb = gradients.sum()
    total = np.append(gw.ravel(), [] if gb is None else np.ravel(gb))
    summed = Bounded(values.sum(axis=0), errors.sum(axis=0) + (n + 8) * U * magnitudes.sum(axis=0))
    assert_within(total, summed, "sum")
    c = float(np.median(norms))
    clipped = gradients.clip(c)
    assert (clipped.norms() <= c).all()
    factors = np.minimum(1, c / np.where(norms > 0, norms, 1))[:, None]
    np.testing.assert_allclose(clipped.todense(), (factors * values).astype(float), 1e-11, 1e-13)
    np.testing.assert_array_equal(gradients.clip(math.inf).slopes, gradients.slopes)
    assert not gradients.clip(0).norms().any()


@backends
@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_gradients_of_each_sample(case: Case, primitives: Any) -> None:
    loss = case.of(primitives)
    for k in (3,) if case.coupled else (None, 2):
        m = model(case, 12, 3, np.float64, k)
        for b in (m.b, None, 0.25):
            for weights in (None, m.sample_weight):
                gradients = loss.sample_grads(m.X, m.y, m.w, b, sample_weight=weights)
                judge(gradients, right(case, m, b, weights))


KINDS: dict[str, Callable[[Any], Any]] = {
    **LAYOUTS,
    "strided": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "float16": lambda X: X.astype(np.float16),
    "CSC, unsorted": lambda X: backwards(scipy.sparse.csc_array(X)),
    "CSR, unsorted": lambda X: backwards(scipy.sparse.csr_array(X)),
    "CSR of int64 indices": lambda X: wide(scipy.sparse.csr_array(X)),
    "CSR, twice": lambda X: twice(scipy.sparse.csr_array(X)),
    "CSC, twice": lambda X: twice(scipy.sparse.csc_array(X)),
}


def backwards(X: Any) -> Any:
    """Return a matrix with the entries of each row or column in the other order."""
    for at, end in itertools.pairwise(X.indptr):
        X.indices[at:end], X.data[at:end] = (
            X.indices[at:end][::-1].copy(),
            X.data[at:end][::-1].copy(),
        )
    X.has_sorted_indices = False
    return X


def wide(X: Any) -> Any:
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    return X


def twice(X: Any) -> Any:
    """Return a matrix of which each element is the sum of two entries."""
    parts = X.data.repeat(2) * np.tile([0.75, 0.25], len(X.data))
    indices = X.indices.repeat(2)
    if X.format == "csr":  # not beside each other
        for at, end in itertools.pairwise(X.indptr):
            row, data = X.indices[at:end], X.data[at:end]
            indices[2 * at : 2 * end] = np.concatenate([row, row[::-1]])
            parts[2 * at : 2 * end] = np.concatenate([0.75 * data, 0.25 * data[::-1]])
    made = type(X)((parts, indices, 2 * X.indptr), shape=X.shape)
    made.has_sorted_indices = X.format == "csc"
    return made


@backends
@each("kind", KINDS)
def test_layouts(kind: str, primitives: Any) -> None:
    for case, k in ((LOGISTIC, None), (LABELS, 3)):
        m = model(case, 20, 5, np.float64, k)
        X = np.rint(4 * m.X)
        X[::3, 1:4] = 0
        m = m._replace(X=X)
        gradients = case.of(primitives).sample_grads(KINDS[kind](X), m.y, m.w, m.b)
        judge(gradients, right(case, m, m.b))


@backends
def test_other_arguments(primitives: Any) -> None:
    m = model(LOGISTIC, 20, 3)
    loss = primitives.logistic
    offset = loss.sample_grads(m.X, m.y, m.w, m.b, offset=np.full(20, 0.5)).todense()
    np.testing.assert_allclose(
        offset, loss.sample_grads(m.X, m.y, m.w, m.b + 0.5).todense(), 1e-12, 1e-15
    )
    narrow = loss.sample_grads(m.X.astype("f4"), m.y, m.w.astype("f4"), np.float32(m.b))
    gw, gb = narrow.sum()
    assert gw.dtype == np.float32
    assert type(gb) is np.float32
    assert narrow.todense().dtype == narrow.norms().dtype == np.float64
    none = loss.sample_grads(m.X[:0], m.y[:0], m.w, m.b)
    assert none.norms().shape == (0,)
    assert none.todense().shape == (0, 4)
    assert not none.gram().any()
    assert not none.sum()[0].any()
    gradients = loss.sample_grads(m.X, m.y, m.w, m.b)
    assert repr(gradients) == f"<SampleGradients of {loss!r}: N=20, 4 parameters>"
    other = pickle.loads(pickle.dumps(gradients))
    np.testing.assert_array_equal(other.todense(), gradients.todense())


@backends
@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_samples_of_weight_0(case: Case, primitives: Any) -> None:
    m = model(case, 12, 3)
    weights = m.sample_weight.copy()
    weights[::4] = 0
    X, y = m.X.copy(), m.y.copy()
    X[::4, 1], X[8] = math.nan, math.inf
    y[weights == 0] = -1 if case.labels else math.nan
    gradients = case.of(primitives).sample_grads(X, y, m.w, m.b, sample_weight=weights)
    judge(gradients, right(case, m, m.b, weights))


@backends
@each("scale", [1e-200, 1e200])
def test_norms_out_of_the_range_of_squares(scale: float, primitives: Any) -> None:
    X = np.array([[3.0, 4.0], [0.0, 0.0], [5.0, 12.0]]) * scale
    for given in (X, np.asfortranarray(X), scipy.sparse.csr_array(X), scipy.sparse.csc_array(X)):
        gradients = primitives.squared_error.sample_grads(given, [-1.0, 1, 1], np.zeros(2))
        np.testing.assert_allclose(gradients.norms(), [10 * scale, 0, 26 * scale], rtol=1e-15)


def test_a_loss_of_the_callers_own() -> None:
    def twice(z: Any, _: Any) -> Any:
        return np.full_like(z, 2)

    mine = pb.pointwise_loss(lambda z, y: (z - y) ** 2, lambda z, y: 2 * (z - y), twice)
    for k in (None, 2):
        m = model(Case("squared_error"), 12, 3, np.float64, k)
        judge(mine.sample_grads(m.X, m.y, m.w, m.b), right(Case("squared_error"), m, m.b))
        one, other = (pb.LinearObjective(m.X, m.y, loss, 0.5) for loss in (mine, pb.squared_error))
        theta = theta_of(m.w, m.b)
        V = np.outer(theta, [1.0, 2.0, -0.5])
        np.testing.assert_allclose(one.hvp(theta, V), other.hvp(theta, V), 1e-12)
        phi, psi = (objective.line(theta, V[:, 1]) for objective in (one, other))
        assert phi(0.5) == pytest.approx(psi(0.5), rel=1e-12)
        assert phi.second(0.5) == pytest.approx(psi.second(0.5), rel=1e-12)
        for kind in ("hessian", "robust"):
            wanted = other.covariance(theta, kind)
            np.testing.assert_allclose(one.covariance(theta, kind), wanted, 1e-9, 1e-15)


@backends
def test_slopes_whose_sum_overflows(primitives: Any) -> None:
    """Of an intercept that all outputs share; NumPy does not warn."""
    gradients = primitives.squared_error.sample_grads(
        np.zeros((1, 1)), np.full((1, 2), -8e307), np.zeros((1, 2)), 0.0
    )
    assert gradients.shape == (1, 3)
    assert gradients.norms().tolist() == [math.inf]
    assert gradients.todense().tolist() == [[0, 0, math.inf]]
    assert gradients.sum()[1] == math.inf


@backends
def test_errors(primitives: Any) -> None:
    X, y, w = np.ones((3, 2)), np.array([0.0, 1, 2]), np.ones(2)
    with pytest.raises(ValueError, match=r"logistic.sample_grads: y\[2\] is 2.0, needs"):
        primitives.logistic.sample_grads(X, y, w)
    with pytest.raises(ValueError, match=r"sample_grads: sample_weight\[1\] is -1.0"):
        primitives.poisson.sample_grads(X, y, w, sample_weight=[1.0, -1, 1])
    gradients = primitives.poisson.sample_grads(X, y, w)
    for c in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"SampleGradients.clip: c is"):
            gradients.clip(c)
    with pytest.raises(TypeError, match=r"SampleGradients.clip: c must be a number"):
        gradients.clip("1")
    S = scipy.sparse.csr_array(np.eye(3))
    gradients = primitives.poisson.sample_grads(S, y, np.ones(3))
    S.indices[1] = 7
    for method in ("norms", "sum", "gram", "todense"):
        with pytest.raises(ValueError, match=rf"SampleGradients.{method}: X.indices\[1\] is 7"):
            getattr(gradients, method)()


# --- covariances ----------------------------------------------------------------------------------


def inverse(A: Any) -> Any:
    """Return an inverse by a step of Newton's method in long double."""
    B = np.linalg.inv(A.astype(float)).astype(np.longdouble)
    return B @ (2 * np.eye(len(A)) - A @ B)


@backends
@each("name", ["squared_error", "logistic", "poisson"])
def test_covariances(name: str, primitives: Any) -> None:
    case = Case(name)
    for k, intercept in ((None, True), (2, False)):
        m = model(case, 40, 3, np.float64, k)
        b = m.b if intercept else None
        theta = theta_of(m.w, b)
        d = len(theta)
        P = np.zeros((d, d))
        P[: m.w.size, : m.w.size] = 0.25 * np.eye(m.w.size)
        weights = m.sample_weight
        A = weights.sum() * P.astype(np.longdouble)
        for i, v in enumerate(np.eye(d)):
            vb = (v[m.w.size :] if k else v[-1]) if intercept else None
            sums = exact(case, m.X, m.y, m.w, b, weights, (v[: m.w.size].reshape(m.w.shape), vb))
            A[i] += theta_of(sums.hw.exact, sums.hb.exact if intercept else None)
        gradients = right(case, m, b, weights).exact
        wanted = {"hessian": inverse(A)}
        wanted["robust"] = wanted["hessian"] @ (gradients.T @ gradients) @ wanted["hessian"]
        chunks = [(m.X[rows], m.y[rows], weights[rows]) for rows in (slice(0, 9), slice(9, 40))]
        for objective in (
            pb.LinearObjective(m.X, m.y, case.of(primitives), 0.25, weights, intercept),
            pb.LinearObjective(chunks, None, case.of(primitives), 0.25, fit_intercept=intercept),
        ):
            for kind, covariance in wanted.items():
                got = objective.covariance(theta, kind)
                np.testing.assert_allclose(got, covariance.astype(float), 1e-10, 1e-13)
                np.testing.assert_array_equal(got, got.T)
        np.testing.assert_array_equal(
            objective.covariance(theta), objective.covariance(theta, "hessian")
        )


@backends
def test_singular_hessians(primitives: Any) -> None:
    X = np.random.default_rng(0).normal(size=(30, 3))
    y = np.arange(30) % 3
    of_sums, of_ones = np.c_[X, X @ [1, 2, 3]], np.c_[X, np.ones(30)]
    softmax, squared = primitives.softmax_cross_entropy, primitives.squared_error
    for singular in (
        pb.LinearObjective(of_sums, y, squared),
        pb.LinearObjective(of_ones, y, squared),
        pb.LinearObjective(np.c_[X, np.zeros(30)], y, squared),
        pb.LinearObjective(X, y, softmax, 0.5),
    ):
        with pytest.raises(np.linalg.LinAlgError, match=r"^LinearObjective.covariance: .*l2="):
            singular.covariance(singular.initial())
    for regular in (
        pb.LinearObjective(of_sums, y, squared, 1e-3),
        pb.LinearObjective(of_ones, y, squared, fit_intercept=False),
        pb.LinearObjective(of_ones, y, softmax, 0.5, fit_intercept=False),
    ):
        H = regular.hvp(regular.initial(), np.eye(regular.n_parameters))
        covariance = regular.covariance(regular.initial())
        np.testing.assert_allclose(30 * covariance @ H, np.eye(len(H)), atol=1e-9)
    for kind in ("Hessian", None, ["robust"]):
        with pytest.raises(ValueError, match=r"covariance: kind must be 'hessian' or 'robust'"):
            regular.covariance(regular.initial(), kind)


@backends
@each("factor", [2.0**-900, 2.0**900])
def test_covariances_of_weights_out_of_range(factor: float, primitives: Any) -> None:
    X = np.random.default_rng(0).normal(size=(9, 2))
    y, weights = X[:, 0] ** 2, np.arange(9.0)
    one, other = (
        pb.LinearObjective(X, y, primitives.poisson, 0.5, scale * weights) for scale in (1, factor)
    )
    rows = [slice(0, 1), slice(1, 3), slice(3, 9)]  # the first has no weight
    chunks = [(X[part], y[part], factor * weights[part]) for part in rows]
    in_chunks = pb.LinearObjective(chunks, None, primitives.poisson, 0.5)
    theta = one.initial()
    wanted, robust = one.covariance(theta), one.covariance(theta, "robust")
    for objective in (other, in_chunks):
        np.testing.assert_allclose(objective.covariance(theta) * factor, wanted, rtol=1e-13)
        np.testing.assert_allclose(objective.covariance(theta, "robust"), robust, rtol=1e-12)


@backends
def test_covariances_do_not_depend_on_units(primitives: Any) -> None:
    X = np.random.default_rng(0).normal(size=(30, 3))
    units = np.array([1e-9, 1.0, 1e9])
    for kind in ("hessian", "robust"):
        one, other = (
            pb.LinearObjective(A, X[:, 0] + X[:, 1] ** 2, primitives.squared_error)
            for A in (X, X / units)
        )
        scale = np.append(units, 1)
        theta = np.array([1.0, 0.5, 0.25, 1.0])
        np.testing.assert_allclose(
            other.covariance(theta * scale, kind) / np.outer(scale, scale),
            one.covariance(theta, kind),
            rtol=1e-9,
        )

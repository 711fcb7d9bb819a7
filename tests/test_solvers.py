"""Solvers: where they end is a minimum, and they say so only there."""

import numpy as np
import pullback as pb
import pytest
from pullback.solvers import lbfgs, newton, newton_cg
from pullback.tables.losses import LOSSES

SOLVERS = [newton, newton_cg, lbfgs]
NATIVE = pb.show_config("dict")["backend"] == "native"
SMOOTH = [name for name in LOSSES if name not in ("hinge", "quantile", "relu_mse")]


def problem(name, n=400, d=5, l2=1e-3, **options):
    X, y, _, _ = LOSSES[name].example(0, n, d, np.float64)
    return pb.LinearObjective(X + 0.5, y, getattr(pb.losses, name), l2, **options)


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("name", SMOOTH if NATIVE else SMOOTH[:3])
def test_minimum(name, solve):
    objective = problem(name)
    told = []
    solution = solve(objective, tol=1e-9, callback=lambda *about: told.append(about))
    assert solution.converged, solution.message
    gradient = objective.grad(solution.theta)
    assert np.abs(gradient).max() == solution.gradient_norm
    assert solution.gradient_norm <= 1e-9 * np.abs(objective.grad(objective.initial())).max()
    assert solution.value == objective.value(solution.theta)
    assert [about[0] for about in told] == [*range(1, solution.n_iter + 1)]
    assert told[-1][1:] == (solution.value, solution.gradient_norm)
    curved = objective.hvp(solution.theta, np.eye(objective.n_parameters))
    assert np.linalg.eigvalsh(curved).min() > -1e-12


@pytest.mark.parametrize("solve", [newton, newton_cg])
@pytest.mark.parametrize(
    "name", ["poisson", "gamma", "exponential", "logistic"][: None if NATIVE else 1]
)
@pytest.mark.parametrize("far", [30.0, -30.0])
def test_from_far(name, solve, far):
    """There, losses overflow or are as flat as can be."""
    objective = problem(name)
    start = np.full(objective.n_parameters, far)
    best = newton(objective, tol=1e-12).value
    solution = solve(objective, start, tol=1e-9, reference=1.0, max_iter=5000)
    assert solution.converged, solution.message
    assert solution.value == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("solve", SOLVERS)
def test_an_aim_below_rounding(solve):
    """It is not reached, and what is reached is told from less."""
    objective = problem("poisson")
    solution = solve(objective, tol=1e-30)
    assert solution.converged
    assert "rounding" in solution.message
    assert solution.gradient_norm < 1e-14
    early = solve(objective, tol=1e-30, max_iter=2)
    assert not early.converged
    assert "max_iter=2" in early.message


@pytest.mark.parametrize("solve", SOLVERS)
def test_what_is_no_number(solve):
    X = np.ones((4, 2))
    X[2, 1] = np.nan
    solution = solve(pb.LinearObjective(X, np.ones(4), pb.poisson))
    assert not solution.converged
    assert "not finite" in solution.message
    assert solution.n_iter == 0


@pytest.mark.parametrize("solve", SOLVERS)
def test_slopes_that_overflow(solve):
    """Without a warning."""
    X = 1e160 * np.random.default_rng(0).normal(size=(20, 3))
    assert not solve(pb.LinearObjective(X, np.arange(20.0), pb.poisson)).converged


@pytest.mark.parametrize("name", ["squared_error", "poisson", "softmax_cross_entropy"])
def test_a_singular_hessian(name):
    X, y, _, _ = LOSSES[name].example(0, 400, 3, np.float64)
    twice = pb.LinearObjective(np.hstack([X, X, 0 * X]), y, getattr(pb, name))
    once = newton(pb.LinearObjective(X, y, getattr(pb, name)), tol=1e-10)
    solution = newton(twice, tol=1e-10)
    assert solution.converged
    assert "regularised" in solution.message
    assert "regularised" not in once.message  # what classes leave open is no defect
    assert solution.value == pytest.approx(once.value, abs=1e-12)


@pytest.mark.parametrize("solve", [newton_cg, lbfgs])
@pytest.mark.parametrize("name", ["poisson", "softmax_cross_entropy"][: None if NATIVE else 1])
def test_a_given_hessian(name, solve):
    """With one, scales of the features do not matter; that of one output does for each."""
    X, y, _, _ = LOSSES[name].example(0, 2000, 8, np.float64)
    X = X * np.geomspace(1, 1e-5, 8)
    objective = pb.LinearObjective(X, y, getattr(pb, name), 1e-12)
    of_one = pb.LinearObjective(X, np.zeros(2000), pb.squared_error, 1e-12)
    for hessian in (
        objective.hvp(objective.initial(), np.eye(objective.n_parameters)),
        of_one.hvp(of_one.initial(), np.eye(9)),
    ):
        solution = solve(objective, tol=1e-9, hessian=hessian)
        assert solution.converged
        assert solution.n_iter < 25
    assert not lbfgs(objective, tol=1e-9, max_iter=100).converged
    with pytest.raises(ValueError, match=r"one of the shapes .*, not \(2, 2\)"):
        solve(objective, hessian=np.eye(2))


@pytest.mark.parametrize("solve", [newton_cg, lbfgs])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("name", ["poisson", "softmax_cross_entropy"][: None if NATIVE else 1])
def test_given_moments(name, fit_intercept, solve):
    """They lead to the same as a transformation of the features."""
    X, y, _, _ = LOSSES[name].example(0, 500, 4, np.float64)
    X = (X + 3) * np.geomspace(1e-3, 1e3, 4)
    mean, scale = X.mean(axis=0), X.std(axis=0)
    objective = pb.LinearObjective(X, y, getattr(pb, name), fit_intercept=fit_intercept)
    Z = (X - mean * fit_intercept) / scale
    scaled = pb.LinearObjective(Z, y, getattr(pb, name), fit_intercept=fit_intercept)
    solution, other = solve(objective, tol=1e-10, moments=(mean, scale)), newton(scaled)
    assert solution.converged
    assert solution.value == pytest.approx(other.value, abs=1e-10)
    assert solution.n_iter < 30
    for wrong in ((mean[:3], scale), (mean, scale * np.nan), (mean, 0 * scale)):
        with pytest.raises(ValueError, match=r"moments"):
            solve(objective, moments=wrong)


def test_no_second_derivative():
    loss = pb.pointwise_loss(lambda z, y: (z - y) ** 4, lambda z, y: 4 * (z - y) ** 3)
    X = np.random.default_rng(0).normal(size=(100, 3))
    y = X @ [1.0, 2.0, 3.0]
    solution = lbfgs(pb.LinearObjective(X, y, loss), tol=1e-9, max_iter=1000)
    assert solution.converged, solution.message
    np.testing.assert_allclose(solution.theta, [1, 2, 3, 0], atol=0.02)

"""Losses with more than one exponential where parameters and predictions are extreme."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import pullback as pb
import pytest
from linear_models import SINGLE, ULP, Case, loss_of, number
from mpmath import mp, mpf
from oracles import PRECISION, Exact, assert_same_bits, worst_error
from protocol import backends, on_any_target

METHODS = ("__call__", "derivative", "second_derivative")
TAILS = [s * z for s in (1, -1) for z in (1e-300, 1e-9, 0.7, 5, 30, 39.5, 200, 745, 1e4, 1e300)]
SHARES = [0.0, 5e-324, 1e-300, 1e-20, 0.3, 0.5, 1 - 2.0**-20, 1 - 2.0**-53, 1.0]
COUNTS = [5e-324, 1e-300, 1e-9, 0.25, 1.0, 3.0, 1e9, 1e150, 1e300]
CASES = [
    *(Case("tweedie", p) for p in (1 + 2.0**-40, 1.01, 1.75, 2 - 2.0**-40)),
    *(Case("tweedie", p) for p in (2.0, 2 + 2.0**-40, 3.0, 8.0)),
    *(Case("negative_binomial", alpha) for alpha in (1e-100, 1e-9, 0.3, 40.0, 1e100)),
    *(Case(name) for name in ("inverse_gaussian", "probit", "cloglog")),
]


@cache
def points(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return tails, targets at both ends and far from any mean, and where terms cancel."""
    domain = case.of().row.targets.test
    targets = SHARES if case.name in ("probit", "cloglog") else [0.0, *COUNTS]
    pairs = [*itertools.product([0.0, *TAILS], targets)]
    if targets is not SHARES:
        pairs += [(z, math.exp(z)) for z in TAILS if abs(z) < 700]
    z, y = np.array(pairs).T
    return z[domain(y)], y[domain(y)]


@cache
def judged_points(case: Case, order: int) -> tuple[np.ndarray, np.ndarray, Exact, np.ndarray]:
    """Return points, exact numbers there, and the sizes of what these are sums of."""
    z, y = points(case)
    numbers, sizes = [], []
    terms = case.formula.terms[order]
    with mp.workprec(PRECISION):
        for at in zip(z.tolist(), y.tolist(), strict=True):
            numbers.append(number(case, order, *at))
            size = 0 if terms is None else terms(SINGLE, *map(mpf, at), mpf(case.p))
            sizes.append(max(size, abs(numbers[-1])))
    # Of terms that overflow where their difference may not, nothing is promised.
    judged = np.array([size < mpf(2) ** 1022 for size in sizes])
    exact = Exact(itertools.compress(numbers, judged))
    return z[judged], y[judged], exact, np.array(sizes)[judged].astype(float)


@backends
@pytest.mark.parametrize("order", range(3), ids=METHODS.__getitem__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@on_any_target
def test_tails(case: Case, order: int, primitives: Any) -> None:
    z, y, exact, sizes = judged_points(case, order)
    assert z.size > 60
    actual = getattr(case.of(primitives).pointwise, METHODS[order])(z, y)
    worst = worst_error(actual, exact, z.dtype, sizes)
    assert worst.error <= ULP[order], (worst, z[worst.index], y[worst.index])


SUBNORMAL = {np.float64: (5e-324, 3e-320, 1e-310), np.float32: (1e-45, 1e-40)}


@backends
@pytest.mark.parametrize("dtype", SUBNORMAL)
@pytest.mark.parametrize("order", range(3), ids=METHODS.__getitem__)
@on_any_target
def test_gamma_of_subnormal_targets(order: int, dtype: Any, primitives: Any) -> None:
    case = Case("gamma")
    at = (-1450, -1400, -1399, -800, -745, -700, -100, -20, -5, -0.7, 0.7, 40, 700)
    z, y = np.array([*itertools.product(at, SUBNORMAL[dtype])], dtype).T
    numbers = [number(case, order, *of) for of in zip(z.tolist(), y.tolist(), strict=True)]
    actual = getattr(case.of(primitives).pointwise, METHODS[order])(z, y)
    worst = worst_error(actual, Exact(numbers), dtype)
    assert worst.error <= ULP[order], (worst, z[worst.index], y[worst.index])


@backends
@pytest.mark.parametrize("order", range(3), ids=METHODS.__getitem__)
@on_any_target
def test_larger_of_two_terms_that_overflow_decides(order: int, primitives: Any) -> None:
    signs = set()
    for power, z, y in itertools.product((2.5, 7.0, 30.0), (-690.0, -740.0), (5e-324, 1e-300, 1.0)):
        case = Case("tweedie", power)
        exact = number(case, order, z, y)
        actual = getattr(case.of(primitives).pointwise, METHODS[order])(
            np.array([z]), np.array([y])
        )
        if abs(exact) < mpf(2) ** 1030:
            continue
        assert actual[0] == math.copysign(math.inf, exact), (power, z, y)
        signs.add(actual[0])
    assert len(signs) == 2


@backends
def test_powers_tell_which_targets_there_are(primitives: Any) -> None:
    tweedie = loss_of(primitives, "tweedie")
    X, w = np.ones((2, 1)), np.ones(1)
    for power, has_zero in ((1.5, True), (2.0, False), (2.5, False)):
        loss = tweedie(1.25)(power)
        assert np.isnan(loss.pointwise(np.ones(2), np.array([1.0, 0.0]))).tolist() == [
            False,
            not has_zero,
        ]
        assert ("positive" in (loss.__doc__ or "").partition("Targets: ")[2][:40]) != has_zero
        objective = pb.LinearObjective(X, [1.0, 0.5], loss)
        assert np.isfinite(objective.value_and_grad(objective.initial())[0])
        if has_zero:
            assert np.isfinite(loss.value(X, [1.0, 0.0], w))
            continue
        for call in (loss.value, loss.grad, loss.curvature):
            with pytest.raises(
                ValueError, match=r"y\[1\] is 0\.0, needs to be finite and positive"
            ):
                call(X, [1.0, 0.0], w)


@backends
def test_powers_between_losses(primitives: Any) -> None:
    """Power 2 is the gamma loss, 3 the inverse Gaussian, alpha = 0 Poisson, up to a constant."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=50), rng.gamma(2, 1, 50)
    tweedie = loss_of(primitives, "tweedie")
    for loss, other in (
        (tweedie(2.0), primitives.gamma),
        (tweedie(3.0), loss_of(primitives, "inverse_gaussian")),
        (tweedie(1 + 2.0**-50), primitives.poisson),
        (loss_of(primitives, "negative_binomial")(1e-60), primitives.poisson),
    ):
        one, two = loss.pointwise, other.pointwise
        np.testing.assert_allclose(
            one.derivative(z, y), two.derivative(z, y), rtol=1e-13, atol=1e-13
        )
        np.testing.assert_allclose(
            one.second_derivative(z, y), two.second_derivative(z, y), rtol=1e-13, atol=1e-13
        )
        shift = one(np.zeros(50), y) - two(np.zeros(50), y)
        np.testing.assert_allclose(one(z, y) - shift, two(z, y), rtol=1e-12, atol=1e-13)
    assert_same_bits(tweedie.pointwise(np.zeros(50), y), np.zeros(50))


@backends
@pytest.mark.parametrize("name", ["logistic", "probit", "cloglog"])
def test_shares_are_weighted_bits(name: str, primitives: Any) -> None:
    """A target of y counts as y ones and 1 - y zeros."""
    loss = loss_of(primitives, name).pointwise
    z, y = np.linspace(-9, 9, 40), np.linspace(0, 1, 40)
    for method in METHODS:
        f = getattr(loss, method)
        wanted = y * f(z, np.ones(40)) + (1 - y) * f(z, np.zeros(40))
        np.testing.assert_allclose(f(z, y), wanted, rtol=1e-13, atol=1e-15)

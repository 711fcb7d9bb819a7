"""Every row of the table of losses at single numbers: accuracy, domain, kinks, limits, shapes.

The judge is mpmath with the formulas of `linear_models`; the rows come from the registry, so that a
new one is tested as soon as it is there.
"""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pullback as pb
import pytest
from fp_env import FloatEnvironment
from linear_models import (
    CASES,
    COUPLED,
    DEFAULTS,
    FORMULAS,
    OTHERS,
    POINTWISE,
    SINGLE,
    SOFTMAX,
    ULP,
    Case,
    by_id,
    loss_of,
    number,
)
from mpmath import mp, mpf
from oracles import PRECISION, Exact, assert_same_bits, special_values, worst_error
from protocol import backends, dtypes, each, on_any_target, on_every_target
from pullback.losses import losses
from pullback.tables.losses import IN_LOSSES_ALONE, LOSSES

cases = pytest.mark.parametrize("case", CASES, ids=by_id)
pointwise = pytest.mark.parametrize("case", POINTWISE, ids=by_id)
softmax = pytest.mark.parametrize("case", SOFTMAX, ids=by_id)
METHODS = ("__call__", "derivative", "second_derivative")  # of a loss's `pointwise`

# --- where to look --------------------------------------------------------------------------------


@cache
def points(case: Case, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions from all binades and targets of the domain, near each other too."""
    rng = np.random.default_rng([7, len(case.name)])
    info = np.finfo(dtype)
    n = 220
    signs = rng.choice([-1.0, 1.0], n)
    binades = signs * np.ldexp(
        rng.uniform(1, 2, n), rng.integers(info.minexp - info.nmant, info.maxexp - 1, n)
    )
    reach = 1.05 * math.log(2) * np.array([info.minexp - info.nmant, info.maxexp])
    edges = special_values(dtype)
    edges = edges[np.isfinite(edges) & (np.abs(edges) < info.max)].astype(float)
    z = np.concatenate(
        [
            binades,
            rng.uniform(-20, 20, 2 * n),
            rng.uniform(*reach, n),
            rng.uniform(*-reach[::-1], n),
            rng.uniform(*reach / 2, n),
            rng.normal(0, 1, n),
            edges,
        ]
    ).astype(dtype)
    y = case.formula.targets(rng, z.size).astype(dtype)
    if case.formula.domain(np.array([0.6, 1.5, 40.0])).all():  # a range, not a few labels
        wide = np.ldexp(
            rng.uniform(1, 2, z.size), rng.integers(info.minexp, info.maxexp - 1, z.size)
        )
        near = z + rng.integers(-3, 4, z.size) * np.spacing(z)
        like = z * rng.uniform(0.5, 2, z.size)
        with np.errstate(over="ignore"):
            root = np.exp(z.astype(float)) * (1 + rng.integers(-3, 4, z.size) * float(info.eps))
        margin = z + case.p * (1 + rng.integers(-2, 3, z.size) * float(info.eps))
        with np.errstate(over="ignore"):
            choices = np.array([y, wide, -wide, near, like, root, margin, 0 * z], dtype)
        y = choices[rng.integers(0, len(choices), z.size), np.arange(z.size)]
        # A difference of the two may not overflow: its half would then be lost.
        with np.errstate(invalid="ignore"):
            keep = case.formula.domain(y) & (np.abs(y) < info.max / 4) & (np.abs(z) < info.max / 4)
        z, y = z[keep], y[keep]
    assert z.size > 400
    for array in (z, y):
        array.flags.writeable = False
    return z, y


class Judged(NamedTuple):
    """Exact numbers at some of the `points`, and the sizes of the terms that cancel there."""

    exact: Exact
    sizes: Any
    at: np.ndarray


@lru_cache(2)
def exact_points(case: Case, dtype: np.dtype) -> list[Judged]:
    """Return exact values and derivatives at those of the `points` where they may be judged."""
    z, y = points(case, dtype)
    numbers: list[list[Any]] = [[], [], []]
    terms: list[list[Any]] = [[], [], []]
    for a, t in zip(z.tolist(), y.tolist(), strict=True):  # whose orders have much in common
        for order, size in enumerate(case.formula.terms):
            numbers[order].append(number(case, order, a, t))
            if size is not None:
                with mp.workprec(PRECISION):
                    terms[order].append(size(SINGLE, mpf(a), mpf(t), mpf(case.p)))
    # Which piece a point lies on is decided by a rounded difference.
    edge = case.formula.edges(*(a.astype(np.longdouble) for a in (z, y)), case.p)
    near = np.abs(edge) <= 2.0**-52 * (np.abs(z) + np.abs(y) + case.p)
    limit = float(np.finfo(dtype).max)
    found = []
    for order, (exact, sizes) in enumerate(zip(numbers, terms, strict=True)):
        judged, kept = ~near | (order < 2), None
        if sizes:
            # A term overflows where the difference just does not: nothing is promised there.
            judged = np.array(
                [s < limit / 4 or abs(x) > limit for s, x in zip(sizes, exact, strict=True)]
            )
            kept = np.array([min(float(s), limit) for s in sizes])[judged]
        found.append(Judged(Exact(itertools.compress(exact, judged)), kept, judged))
    return found


# --- accuracy -------------------------------------------------------------------------------------


# In one test, since exact numbers take longer than all that they judge.
@dtypes
@pointwise
@each("order", range(3), label=METHODS.__getitem__)
@backends
@on_any_target
def test_accuracy(case: Case, order: int, dtype: np.dtype, primitives: Any) -> None:
    """Of each target, and of the twin."""
    exact, sizes, judged = exact_points(case, dtype)[order]
    z, y = (a[judged] for a in points(case, dtype))
    actual = getattr(case.of(primitives).pointwise, METHODS[order])(z, y)
    worst = worst_error(actual, exact, dtype, sizes)
    i = worst.index
    assert worst.error <= ULP[order], (
        f"{case.id}.{METHODS[order]} {dtype}: {worst.error:.4g} ULP at z={z[i]!r}, y={y[i]!r}: "
        f"{actual[i]!r} instead of {mpmath.nstr(exact[i], 20)}"
    )


@each("order", [0, 1])
@pointwise
def test_formulas_are_each_others_derivatives(case: Case, order: int) -> None:
    """The judge itself: by numerical differentiation with 400 bits."""
    rng = np.random.default_rng(0)
    f, derivative = case.formula.orders[order : order + 2]
    p = mpf(case.p)
    for z, y in zip(rng.normal(0, 2, 20), case.formula.targets(rng, 20), strict=True):
        with mp.workprec(400):
            numeric = mp.diff(lambda t, y=y: f(SINGLE, t, mpf(y), p), mpf(z))
            assert abs(numeric - derivative(SINGLE, mpf(z), mpf(y), p)) < 1e-20


def test_every_loss_has_a_formula_and_every_formula_a_loss() -> None:
    assert {*pb.losses.losses} == {*FORMULAS, COUPLED}
    own = {
        name for name in pb.reference.__all__ if hasattr(getattr(pb.reference, name), "curvature")
    }
    assert own == {*pb.losses.losses} - IN_LOSSES_ALONE


# --- kinks, domains, limits -----------------------------------------------------------------------

# At the kink: z, y, value, derivative, second derivative.
KINKS = {
    "relu_mse": [(0.0, 3.0, 9.0, 0.0, 0.0), (-0.0, -1.0, 1.0, 0.0, 0.0)],
    "huber": [(3.0, 2.0, 0.5, 1.0, 1.0), (1.0, 2.0, 0.5, -1.0, 1.0), (2.0, 2.0, 0.0, 0.0, 1.0)],
    "quantile": [(2.0, 2.0, 0.0, 0.0, 0.0), (0.0, -0.0, 0.0, 0.0, 0.0)],
    "hinge": [(1.0, 1.0, 0.0, 0.0, 0.0), (-1.0, -1.0, 0.0, 0.0, 0.0)],
    "squared_hinge": [(1.0, 1.0, 0.0, 0.0, 0.0), (-1.0, -1.0, 0.0, 0.0, 0.0)],
}


@backends
@dtypes
@pytest.mark.parametrize("name", KINKS)
@on_any_target
def test_kinks(name: str, dtype: np.dtype, primitives: Any) -> None:
    """On either side the formula's value, on the kink the convention's, in every lane."""
    loss = getattr(primitives, name).pointwise
    case = Case(name)
    for z0, y0, *wanted in KINKS[name]:
        for n in (1, 3, 19):
            z, y = np.full(n, z0, dtype), np.full(n, y0, dtype)
            for method, number_there in zip(METHODS, wanted, strict=True):
                assert_same_bits(getattr(loss, method)(z, y), np.full(n, number_there, dtype))
            for side in (-0.125, 0.125):
                beside = z + dtype.type(side)
                for order, method in enumerate(METHODS):
                    exact = float(number(case, order, float(beside[0]), y0))  # of few bits
                    np.testing.assert_array_equal(
                        getattr(loss, method)(beside, y), np.full(n, exact, dtype)
                    )


# Soft labels where terms nearly cancel, or are far from each other, and in both tails.
SOFT = [1e-300, 1e-20, 0.25, 0.3, 0.5, 0.75, 1 - 2.0**-20, 1 - 2.0**-53]


@backends
@on_any_target
def test_soft_labels(primitives: Any) -> None:
    """Value and second derivative are right to their last digits, the first to its terms'."""
    loss, case = primitives.logistic, Case("logistic")
    assert loss.value([[1.0]], [0.3], [1.0]) == pytest.approx(1.0132616875182228, rel=4e-16)
    roots = [math.log(y) - math.log1p(-y) for y in SOFT]
    far = [s * z for s in (1, -1) for z in (1e-300, 1e-9, 1, 30, 50, 700, 745, 800, 1e5, 1e300)]
    z, y = (a.ravel() for a in np.meshgrid([0.0, *far, *roots], SOFT))
    at = [(mpf(a), mpf(t)) for a, t in zip(z.tolist(), y.tolist(), strict=True)]
    with mp.workprec(PRECISION):
        terms = [max(case.formula.terms[1](SINGLE, *point, 0), 0) for point in at]
    for order, method in enumerate(METHODS):
        exact = Exact(number(case, order, *point) for point in at)
        sizes = np.array(terms, float) if order == 1 else None
        worst = worst_error(getattr(loss.pointwise, method)(z, y), exact, z.dtype, sizes)
        assert worst.error <= ULP[order], (method, worst, z[worst.index], y[worst.index])


@backends
@dtypes
@on_any_target
def test_labels_of_logistic_are_each_others_mirror(dtype: np.dtype, primitives: Any) -> None:
    """To the last bit: soft labels have not made 0 and 1 special."""
    loss = primitives.logistic.pointwise
    z, y = points(Case("logistic"), dtype)
    for method, sign in zip(METHODS, (1, -1, 1), strict=True):
        for one, zero in ((np.ones_like(y), np.zeros_like(y)), (1 - y, 1 - (1 - y))):
            mirrored = getattr(loss, method)(-z, zero)
            assert_same_bits(getattr(loss, method)(z, one), sign * mirrored)


OUTSIDE = [math.nan, math.inf, -math.inf, -1.0, 0.5, 0.0, -0.0, 1.0, 2.0, -5e-324, 5e-324, 1e300]


@backends
@dtypes
@pointwise
@on_any_target
def test_targets_outside_the_domain_give_nan(case: Case, dtype: np.dtype, primitives: Any) -> None:
    loss = case.of(primitives).pointwise
    with np.errstate(all="ignore"):
        y = np.array(OUTSIDE, dtype)
    outside = ~(np.isfinite(y) & case.formula.domain(y))
    assert 3 <= outside.sum() < y.size
    for z0 in (0.75, -2.0, 0.0, 1.0, 30.0):
        for repeats in (1, 3):
            z = np.full(y.size * repeats, z0, dtype)
            with np.errstate(all="raise"):
                for method in METHODS:
                    actual = getattr(loss, method)(z, np.tile(y, repeats))
                    assert_same_bits(np.isnan(actual), np.tile(outside, repeats))
                for actual in loss.value_and_derivative(z, np.tile(y, repeats)):
                    assert_same_bits(np.isnan(actual), np.tile(outside, repeats))


@backends
@dtypes
@pointwise
@on_any_target
def test_infinite_predictions_give_the_limit(case: Case, dtype: np.dtype, primitives: Any) -> None:
    loss = case.of(primitives).pointwise
    y = np.unique(case.formula.targets(np.random.default_rng(3), 40).astype(dtype))
    if case.name == "poisson":
        assert 0 in y
    for side, z0 in enumerate((-np.inf, np.inf)):
        z = np.full(y.size, z0, dtype)
        for order, method in enumerate(METHODS):
            wanted = [case.formula.limits(t, case.p)[side][order] for t in y]
            with np.errstate(all="raise"):
                actual = getattr(loss, method)(z, y)
            assert actual.dtype == dtype
            np.testing.assert_allclose(
                actual, wanted, rtol=float(np.finfo(dtype).eps), err_msg=f"{method} at {z0}"
            )


@backends
@dtypes
@pointwise
@on_any_target
def test_nan_predictions_come_through(case: Case, dtype: np.dtype, primitives: Any) -> None:
    loss = case.of(primitives).pointwise
    y = case.formula.targets(np.random.default_rng(0), 19).astype(dtype)
    z = np.ones(19, dtype)
    z[::3] = np.nan
    with np.errstate(all="raise"):
        for f in (loss, loss.derivative):
            assert_same_bits(np.isnan(f(z, y)), np.isnan(z))


@backends
@dtypes
@pointwise
@on_any_target
def test_zeros_of_losses_are_positive(case: Case, dtype: np.dtype, primitives: Any) -> None:
    """No loss that cannot be negative returns -0; no inactive sample has a slope of -0."""
    z, y = points(case, dtype)
    loss = case.of(primitives).pointwise
    if case.formula.terms[0] is None:
        assert not np.signbit(loss(z, y)).any()
    inactive = {
        "relu_mse": z <= 0,
        "hinge": np.sign(y) * z >= 1,
        "squared_hinge": np.sign(y) * z >= 1,
        "quantile": z == y,
    }.get(case.name)
    if case.formula.terms[2] is None:
        assert not np.signbit(loss.second_derivative(z, y)).any()
    if inactive is not None:
        assert inactive.any()
        slopes = loss.derivative(z, y)[inactive]
        assert_same_bits(slopes, np.zeros_like(slopes))


# --- softmax --------------------------------------------------------------------------------------


def softmax_points(case: Case, k: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([k, case.labels])
    n = 60
    scale = (
        np.exp(rng.uniform(-12, 7, (n, 1)))
        if dtype == np.float64
        else np.exp(rng.uniform(-8, 4.6, (n, 1)))
    )
    z = (scale * rng.normal(size=(n, k)) + rng.choice([0, 0, 1e3, -1e5], (n, 1))).astype(dtype)
    z[:4, 1] = z[:4, 0]  # ties
    z[4] = 0
    if case.labels:
        return z, rng.integers(0, k, n)
    y = rng.dirichlet(np.full(k, 0.5), n)
    y[:k] = np.eye(k)
    near = slice(k, 2 * k)  # in predictions and targets, one class has nearly all
    y[near] = np.eye(k) + 1e-9 * y[near]
    z[near] = 40 * np.eye(k) + rng.normal(size=(k, k))
    return z, y.astype(dtype)


def softmax_exact(z: Any, y: Any) -> tuple[Any, list[Any], list[Any], list[Any]]:
    """Return loss, derivatives, probabilities and the derivatives' terms; `y` are probabilities."""
    e = [mpmath.exp(v - max(z)) for v in z]
    total, weight = mp.fsum(e), mp.fsum(y)
    lse = max(z) + mpmath.log(total)
    p = [v / total for v in e]
    value = mp.fsum(t * (lse - v) for t, v in zip(y, z, strict=True))
    slopes = [weight * a - t for a, t in zip(p, y, strict=True)]
    # What p_k (sum y - y_k) - y_k (1 - p_k) is the difference of.
    terms = [a * (weight - t) + t * (1 - a) for a, t in zip(p, y, strict=True)]
    return value, slopes, p, terms


@softmax
@dtypes
@pytest.mark.parametrize("k", [2, 3, 10])
def test_softmax_accuracy(case: Case, k: int, dtype: np.dtype) -> None:
    """With labels to the ULP of each number; with probabilities to that of the terms' sizes."""
    z, y = softmax_points(case, k, dtype)
    given = np.eye(k)[y] if case.labels else y
    with mp.workprec(2200):  # so that what is left of p - 1 has all digits of the least subnormal
        rows = [
            softmax_exact([*map(mpf, a)], [*map(mpf, t)])
            for a, t in zip(z.tolist(), given.tolist(), strict=True)
        ]
        values = Exact(row[0] for row in rows)
        slopes = Exact(v for row in rows for v in row[1])
        probabilities = Exact(v for row in rows for v in row[2])
        scales = None if case.labels else np.array([float(v) for row in rows for v in row[3]])
    loss_terms = None if case.labels else np.array([float(v) for v in values])

    @backends
    @on_any_target
    def judge(primitives: Any) -> None:
        loss = primitives.softmax_cross_entropy.pointwise
        worst = worst_error(loss(z, y), values, dtype, loss_terms)
        assert worst.error <= ULP[0], (z[worst.index], y[worst.index], worst)
        worst = worst_error(loss.derivative(z, y).ravel(), slopes, dtype, scales)
        assert worst.error <= ULP[1], (z[worst.index // k], y[worst.index // k], worst)
        p = loss.second_derivative(z, y)
        if p.shape == z.shape:
            worst = worst_error(p.ravel(), probabilities, dtype)
            assert worst.error <= ULP[2], (z[worst.index // k], worst)

    judge()


@backends
@dtypes
@on_any_target
def test_softmax_at_infinity(dtype: np.dtype, primitives: Any) -> None:
    """+inf once: the limit where it is unique, else NaN; -inf is a class that cannot be."""
    inf, nan = math.inf, math.nan
    loss = primitives.softmax_cross_entropy.pointwise
    for z, y, value, slope in (
        ([inf, 0.0, 1.0], 0, 0.0, [0, 0, 0]),
        ([inf, 0.0, 1.0], 1, inf, [1, -1, 0]),
        ([0.0, 0.0, -inf], 0, math.log(2), [-0.5, 0.5, 0]),
        ([0.0, 0.0, -inf], 2, inf, [0.5, 0.5, -1]),
        ([-inf, 0.0, -inf], 1, 0.0, [0, 0, 0]),
        ([inf, inf, 0.0], 0, nan, [nan, nan, None]),
        ([nan, 1.0, 0.0], 1, nan, [nan, nan, nan]),
        ([-inf, -inf, -inf], 1, nan, [nan, nan, nan]),
    ):
        row = np.array([z, [0.0, 1.0, 2.0]], dtype)
        with np.errstate(all="raise"):
            values = loss(row, np.array([y, 0]))
            slopes = loss.derivative(row, np.array([y, 0]))
            of_probabilities = loss(row, np.eye(3, dtype=dtype)[[y, 0]])
        np.testing.assert_allclose(values[0], value, rtol=1e-6, err_msg=f"{z} {y}")
        np.testing.assert_allclose(of_probabilities[0], value, rtol=1e-6, err_msg=f"{z} {y}")
        assert np.isfinite(values[1])
        assert np.isfinite(slopes[1]).all()
        for actual, wanted in zip(slopes[0], slope, strict=True):
            if wanted is not None:
                np.testing.assert_allclose(actual, wanted, rtol=1e-6, err_msg=f"{z} {y}")


@backends
@dtypes
@pytest.mark.parametrize("k", [3, 6])
def test_softmax_targets_outside_the_domain(k: int, dtype: np.dtype, primitives: Any) -> None:
    loss = primitives.softmax_cross_entropy.pointwise
    z = np.arange(4 * k, dtype=dtype).reshape(4, k) / 8
    for y in ([0, -1, k, k - 1], np.array([0, -1, k, k - 1], np.int8)):
        assert np.isnan(loss(z, y)).tolist() == [False, True, True, False]
        assert np.isnan(loss.derivative(z, y)).all(axis=1).tolist() == [False, True, True, False]
    others = [0.0] * (k - 3)
    good = [0.25, 0.25, 0.5, *others]
    for bad in ([-0.25, 0.75, 0.5], [0.3, 0.3, 0.3], [math.nan, 0.5, 0.5], [math.inf, 0, 0]):
        y = np.array([good, [*bad, *others]] * 2, dtype)
        assert np.isnan(loss(z, y)).tolist() == [False, True] * 2
        assert np.isnan(loss.derivative(z, y)).all(axis=1).tolist() == [False, True] * 2
    almost = np.array([[0.25, 0.25, 0.5 + 9e-6, *others]] * 4, dtype)
    assert np.isfinite(loss(z, almost)).all()
    assert np.isnan(loss(z, almost + dtype.type(1e-5))).all()


@backends
@dtypes
@pytest.mark.parametrize("k", [2, 3, 8, 9, 20, 65])
def test_softmax_where_a_class_is_impossible(k: int, dtype: np.dtype, primitives: Any) -> None:
    """A prediction of -inf adds nothing where its target is 0."""
    z = np.full((5, k), -np.inf, dtype)
    z[:, :2] = 0, math.log(3)
    slope = np.array([-0.5, 0.5, *[0.0] * (k - 2)], dtype)
    y = np.zeros((5, k), dtype)
    y[:, :2] = 0.75, 0.25
    close = partial(np.testing.assert_allclose, rtol=4 * np.finfo(dtype).eps)
    loss = primitives.softmax_cross_entropy.pointwise
    close(loss(z, y), math.log(4) - math.log(3) / 4)
    close(loss.derivative(z, y), np.tile(slope, (5, 1)))


@backends
@softmax
def test_softmax_over_leading_axes(case: Case, primitives: Any) -> None:
    """The last axis holds the classes, whatever lies before it."""
    loss = primitives.softmax_cross_entropy.pointwise
    z, y = softmax_points(case, 3, np.dtype(np.float64))
    value, slope = loss.value_and_derivative(z, y)
    g = np.linspace(-1, 2, 60)
    pulled = loss.vjp(z, y, g)
    np.testing.assert_allclose(pulled, g[:, None] * slope, rtol=1e-15)
    for shape in ((60,), (5, 12), (2, 3, 10)):
        zs, ys = z.reshape(*shape, 3), y.reshape(*shape, *y.shape[1:])
        assert_same_bits(loss(zs, ys), value.reshape(shape))
        assert_same_bits(loss.derivative(zs, ys), slope.reshape(*shape, 3))
        assert_same_bits(loss.vjp(zs, ys, g.reshape(shape)), pulled.reshape(zs.shape))
        J, t = loss.jacobian(zs, ys), np.cos(zs)
        assert_same_bits(J.jvp(t), J @ t)
        assert (J.input_shape, J.output_shape) == (zs.shape, shape)
        np.testing.assert_array_equal(np.diag(np.ones(60)) @ J, J.todense())
        pushed, scale = loss.jvp(zs, ys, t), np.abs(slope).max(1).reshape(shape)
        for wanted in (J @ t, (slope * t.reshape(60, 3)).sum(1).reshape(shape)):
            assert (np.abs(pushed - wanted) <= 1e-15 * scale).all()
        assert_same_bits(loss.jvp(zs, ys, None), np.zeros(shape))
        assert J.tosparse().nnz <= 180
    assert loss(z[0], y[0]).shape == ()
    assert loss.jvp(z[0], y[0], z[0]).shape == ()
    assert loss.derivative(z[0], y[0]).shape == (3,)


# --- methods at single numbers --------------------------------------------------------------------


@backends
@dtypes
@pointwise
def test_methods_agree(case: Case, dtype: np.dtype, primitives: Any) -> None:
    z, y = points(case, dtype)
    loss = case.of(primitives).pointwise
    value, slope = loss.value_and_derivative(z, y)
    assert_same_bits(value, loss(z, y))
    assert_same_bits(slope, loss.derivative(z, y))
    g = np.random.default_rng(0).normal(size=z.size).astype(dtype)
    with np.errstate(all="ignore"):
        assert_same_bits(np.abs(loss.vjp(z, y, g)), np.abs(g * slope))
        assert_same_bits(np.abs(loss.jvp(z, y, g)), np.abs(g * slope))
    assert_same_bits(loss.jacobian(z, y).diagonal(), slope)
    assert_same_bits(loss.jvp(z, y, None), np.zeros_like(value))
    with np.errstate(all="ignore"):
        assert_same_bits(loss.jvp(z, y, 2), 2 * slope)
    for t in (g[1:], np.stack([g, g]), g[:, np.newaxis], g[0]):
        with pytest.raises(ValueError, match=rf"pointwise\.jvp: t has shape .*, z \({z.size},\)"):
            loss.jvp(z, y, t)


@backends
@pointwise
def test_dtypes(case: Case, primitives: Any) -> None:
    """z and a floating y decide; labels that are integers do not widen."""
    loss = case.of(primitives).pointwise
    z, y = np.array([0.25, -0.5, 0.75]), np.array([1, 1, 1])
    for z_dtype, y_dtype, result in (
        ("f4", "f4", "f4"),
        ("f4", "i8", "f4"),
        ("f4", "i1", "f4"),
        ("f4", "?", "f4"),
        ("f4", "f8", "f8"),
        ("f8", "f4", "f8"),
        ("f8", "i8", "f8"),
        ("i8", "i8", "f8"),
        (">f4", ">f4", "f4"),
        ("f2", "f2", "f4"),
    ):
        wanted = loss(z.astype(z_dtype).astype(float), y.astype(float)).astype(result)
        for method in METHODS:
            actual = getattr(loss, method)(z.astype(z_dtype), y.astype(y_dtype))
            assert actual.dtype == result, (method, z_dtype, y_dtype)
        np.testing.assert_allclose(loss(z.astype(z_dtype), y.astype(y_dtype)), wanted, rtol=1e-6)
        pulled = loss.vjp(z.astype(z_dtype), y.astype(y_dtype), np.ones(3, result))
        assert pulled.dtype == result
    for bad in (complex, object, np.longdouble, str):
        for method in METHODS:
            for arguments in ((z.astype(bad), y), (z, y.astype(bad))):
                with pytest.raises(TypeError, match=f"{case.name}"):
                    getattr(loss, method)(*arguments)


N = None  # a Python number

SHAPES = [  # of z, of y, of the values
    ((4, 5), (4, 5), (4, 5)),
    ((), (), ()),
    ((0, 3), (0, 3), (0, 3)),
    ((4, 5), N, (4, 5)),
    (N, (4, 5), (4, 5)),
    (N, (), ()),
    (N, N, ()),
]


def filled(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, value) if np.ndim(value) == 0 else value


@backends
@pointwise
def test_shapes(case: Case, primitives: Any) -> None:
    """A number fills; g has the values' shape, axes in front are a stack."""
    loss = case.of(primitives).pointwise
    rng = np.random.default_rng(1)
    for z_shape, y_shape, shape in SHAPES:
        z = 0.625 if z_shape is N else rng.normal(size=z_shape)
        y = case.formula.targets(rng, () if y_shape is N else y_shape)
        y = float(y) if y_shape is N else y
        whole = filled(z, shape), filled(y, shape)
        for method in ("__call__", "derivative", "second_derivative"):
            actual = getattr(loss, method)(z, y)
            assert_same_bits(np.asarray(actual), np.asarray(getattr(loss, method)(*whole)))
            assert isinstance(actual, np.ndarray) == (shape != ())
        slope = np.asarray(loss.derivative(z, y))
        for g in (0.5, 2, rng.normal(size=shape), rng.normal(size=(3, 2, *shape))):
            assert_same_bits(np.asarray(loss.vjp(z, y, g)), np.asarray(g * slope))


WRONG = [  # what does not fit: z, y, g
    ((3, 1), (3,), ()),
    ((3,), (3, 1), ()),
    ((3,), (4,), ()),
    ((3,), (1,), ()),
    ((3,), (), ()),
    ((), (3,), ()),
    ((3, 1), (3, 1), (3,)),
    ((3, 1), (3, 1), (3, 3)),
    ((3,), (3,), ()),
    ((3,), (3,), (3, 1)),
    ((3,), (3,), (2, 4)),
]


@backends
@pointwise
def test_shapes_that_do_not_fit(case: Case, primitives: Any) -> None:
    """The error names both shapes; a NumPy scalar has a shape, and fills nothing."""
    loss = case.of(primitives).pointwise
    for z_shape, y_shape, g_shape in WRONG:
        z, y, g = np.zeros(z_shape), np.ones(y_shape), np.ones(g_shape)
        names, one, other = (
            ("y", y_shape, z_shape) if y_shape != z_shape else ("g", g_shape, z_shape)
        )
        match = rf"^{case.name}\.pointwise.*: {names} has shape {one}.*{other}"
        match = match.replace("(", r"\(").replace(")", r"\)")
        methods = [loss, loss.derivative, loss.value_and_derivative, loss.second_derivative]
        for method in methods if names == "y" else []:
            with pytest.raises(ValueError, match=match):
                method(z, y)
        for cotangent in (g, g[()]):
            with pytest.raises(ValueError, match=match):
                loss.vjp(z, y, cotangent)


@backends
@softmax
def test_shapes_of_softmax(case: Case, primitives: Any) -> None:
    loss = primitives.softmax_cross_entropy.pointwise
    z, y = softmax_points(case, 3, np.dtype(np.float64))
    z, y = z[:12].reshape(4, 3, 3), y[:12].reshape(4, 3, *y.shape[1:])
    slope = loss.derivative(z, y)
    for g in (2.5, 2, np.ones((4, 3)), np.arange(24.0).reshape(2, 4, 3)):
        wanted = np.broadcast_to(np.asarray(g)[..., None], (*np.shape(g), 1)) * slope
        assert_same_bits(loss.vjp(z, y, g), wanted)
    same = np.full((4, 3), 1)
    for method in ("__call__", "derivative", "second_derivative"):
        assert_same_bits(getattr(loss, method)(z, 1), getattr(loss, method)(z, same))
    for bad in (y[0], y[..., None], y[:, :1], 0.5, np.float64(0.5), np.int64(1)):
        with pytest.raises(
            ValueError, match=r"^softmax_cross_entropy\.pointwise: y has shape .*z has"
        ):
            loss(z, bad)
    for bad in (0.5, 1, np.zeros(()), np.zeros((4, 1))):
        with pytest.raises(ValueError, match=r"z has shape .*two classes"):
            loss(bad, y)
    for bad in (np.ones(3), np.ones(()), np.ones((4, 3, 1)), np.ones((4, 3, 3, 2))):
        with pytest.raises(ValueError, match=r"pointwise\.vjp: g has shape"):
            loss.vjp(z, y, bad)


@backends
@pointwise
def test_layouts_of_single_numbers(case: Case, primitives: Any) -> None:
    loss = case.of(primitives).pointwise
    rng = np.random.default_rng(2)
    z, y = rng.normal(size=(6, 7)), case.formula.targets(rng, (6, 7))
    wanted = loss.value_and_derivative(z, y)
    for layout in (
        np.asfortranarray,
        lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a.astype(">f8"),
        lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(float).reshape(a.shape),
        np.ndarray.tolist,
    ):
        for arguments in ((layout(z), y), (z, layout(y)), (layout(z), layout(y))):
            for one, other in zip(loss.value_and_derivative(*arguments), wanted, strict=True):
                assert_same_bits(np.ascontiguousarray(one), other)


@pointwise
@dtypes
@on_any_target
def test_same_bits_at_any_length_and_offset(case: Case, dtype: np.dtype) -> None:
    loss = case.of().pointwise
    z, y = points(case, dtype)
    for method in METHODS:
        f = getattr(loss, method)
        wanted = f(z, y)
        for n in (*range(20), 33, 65):
            for offset in (0, 1, 5, 300):
                part = slice(offset, offset + n)
                assert_same_bits(f(z[part], y[part]), wanted[part])


@pointwise
@on_every_target
def test_floating_point_environment(case: Case, fenv: FloatEnvironment) -> None:
    loss = case.of().pointwise
    z, y = points(case, np.dtype(np.float64))
    for method in METHODS:
        f = getattr(loss, method)
        wanted = f(z, y)
        for mode in fenv.MODES.values():
            fenv.set_mode(mode)
            result = f(z, y)
            found = fenv.mode()
            fenv.set_mode(0)
            assert found == mode
            assert_same_bits(result, wanted)
        for up in (0, fenv.FLAGS, fenv.INVALID):
            fenv.set_flags(up)
            f(z, y)
            found = fenv.flags()
            fenv.set_flags(0)
            assert found == up


# --- parameters -----------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("name", DEFAULTS)
def test_parameters(name: str, primitives: Any) -> None:
    """A loss with another parameter is another loss of the same name."""
    loss = loss_of(primitives, name)
    p = next(filter(loss.row.parameter.test, (0.75, 1.75)))
    other, same, default = loss(p), loss(p), loss(DEFAULTS[name])
    assert other.__name__ == name
    assert f"{p}" in repr(other)
    assert name in repr(other)
    assert other == same
    assert hash(other) == hash(same)
    assert other != loss
    assert default == loss
    assert hash(default) == hash(loss)
    assert len({loss, other, same, default}) == 2
    assert other != name
    for copied in (pickle.loads(pickle.dumps(other)), copy.copy(other), copy.deepcopy(other)):
        assert copied == other
        assert repr(copied) == repr(other)
        assert copied.pointwise(3.0, 1.0) == other.pointwise(3.0, 1.0)
    assert loss(np.float32(p)) == other
    wanted = float(number(Case(name, p), 0, 3.0, 1.0))
    assert other.pointwise(3.0, 1.0) == pytest.approx(wanted, rel=4e-16)
    assert loss.pointwise(3.0, 1.0) != wanted
    # The one made from it takes parameters too, not the other's.
    assert loss(OTHERS[name])(p) == other


@backends
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("huber", bad) for bad in (0.0, -1.0, math.nan, math.inf)),
        *(("quantile", bad) for bad in (0.0, 1.0, -0.5, 1.5, math.nan, math.inf)),
        *(("tweedie", bad) for bad in (1.0, 0.0, -1.5, math.nan, math.inf)),
        *(("negative_binomial", bad) for bad in (0.0, -1.0, 5e-324, math.nan, math.inf)),
    ],
)
def test_parameters_out_of_range(name: str, bad: float, primitives: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{bad}"):
        loss_of(primitives, name)(bad)


@backends
@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("bad", ["1", None, 1j, [0.5], np.ones(2)], ids=repr)
def test_parameters_of_another_type(name: str, bad: Any, primitives: Any) -> None:
    with pytest.raises(TypeError, match=name):
        loss_of(primitives, name)(bad)


@cases
def test_only_losses_with_a_parameter_can_be_called(case: Case) -> None:
    assert callable(case.of()) == (case.name in DEFAULTS)


@pytest.mark.parametrize("name", LOSSES)
def test_the_link_inverts_the_response(name):
    row, response = LOSSES[name], losses[name]._response
    mean = np.array([1e-9, 0.25, 0.5, 0.875])
    mean /= mean.sum() if row.of_classes else 1
    z = row.link(mean)
    if response is not None:
        shape = (1, -1) if row.of_classes else (-1, 1)
        np.testing.assert_allclose(response(z.reshape(shape)).ravel(), mean, rtol=1e-12)
    elif row.targets.test(np.array(2.0)):
        np.testing.assert_array_equal(z, mean)
    else:
        assert not z.any()

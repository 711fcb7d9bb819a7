"""Every loss of a linear model: each method within its error bound, whatever the arguments' kinds.

The oracle of `linear_models` computes in long double (64 bits of significand or more), and every
result must lie within the rounding error that float64 sums over blocks of rows can have. How X may
lie in memory is tested in test_loss_layouts.py, what is refused in test_loss_errors.py.
"""

from __future__ import annotations

import itertools
import math
import pickle
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pullback as pb
import pytest
import scipy.sparse
from fp_env import FloatEnvironment
from linear_models import (
    CASES,
    POINTWISE,
    SINGLE,
    SOFTMAX,
    Case,
    Exact,
    assert_within,
    by_id,
    divided,
    exact,
    judge,
    model,
)
from mpmath import mp, mpf
from oracles import PRECISION, assert_same_bits
from protocol import (
    DTYPES,
    assert_same_leaves,
    backends,
    dtypes,
    each,
    leaves,
    on_any_target,
    on_every_target,
)

cases = pytest.mark.parametrize("case", CASES, ids=by_id)
pointwise = pytest.mark.parametrize("case", POINTWISE, ids=by_id)

RECTIFIED = Case("relu_mse")
LOGISTIC = Case("logistic")


@cache
def exact_sums(
    case: Case, n: int, d: int, dtype: Any, k: int | None = None, *, weighted: bool = False
) -> Exact:
    """Return the oracle's answer to a model, for several targets."""
    m = model(case, n, d, dtype, k)
    return exact(case, *m.operands, m.sample_weight if weighted else None, m.v)


def judge_model(
    case: Case,
    n: int,
    d: int,
    dtype: Any,
    k: int | None = None,
    *,
    weighted: bool = False,
    **options: Any,
) -> Any:
    m = model(case, n, d, dtype, k)
    sums = exact_sums(case, n, d, dtype, k, weighted=weighted)
    weights = m.sample_weight if weighted else None
    return judge(case, *m.operands, weights, m.v, sums=sums, **options)


# --- right ----------------------------------------------------------------------------------------


@pytest.mark.native
@dtypes
@each("n", range(1, 41))
@on_any_target
def test_every_small_shape(n: int, dtype: np.dtype) -> None:
    """Two losses at every n and every d: what a loss adds to the walk over X is the same at all.

    Five is prime to the lengths of vectors, so that all their remainders meet.
    """
    for d in range(n % 5, 41, 5):
        judge_model((RECTIFIED, LOGISTIC)[(n + d) % 2], n, d, dtype, hessian=(n + d) % 3 == 0)


@dtypes
@cases
@on_any_target
def test_small_shapes(case: Case, dtype: np.dtype) -> None:
    """Each loss at every third n up to 40, weighted and not, d running up to 40 meanwhile."""
    for n in range(1, 41, 3):
        judge_model(case, n, (7 * n + 3) % 41, dtype, weighted=n % 2 == 0)


@dtypes
@cases
@on_any_target
def test_around_the_size_of_a_block(case: Case, dtype: np.dtype) -> None:
    shapes = ((511, 3), (512, 17), (513, 8), (1023, 1), (1024, 4), (1025, 10), (1100, 40))
    for i, (n, d) in enumerate(shapes):
        judge_model(case, n, d, dtype, weighted=i % 2 == 1, reduction=("mean", "sum")[i % 3 == 1])


@dtypes
@cases
@each("k", (1, 2, 3, 10))
@on_any_target
def test_several_outputs(case: Case, k: int, dtype: np.dtype) -> None:
    if k == 1 and case.coupled:
        return
    for i, (n, d) in enumerate(((1, 1), (2, 0), (7, 5), (33, 16), (40, 40), (515, 9))):
        judge_model(case, n, d, dtype, k, weighted=i % 2 == 1)


@pytest.mark.native
@dtypes
@each("k", range(2, 19))
@on_any_target
def test_every_number_of_outputs(k: int, dtype: np.dtype) -> None:
    for n, d in ((3, 1), (9, 7), (20, 18)):
        judge_model(LOGISTIC, n, d, dtype, k)
        judge_model(SOFTMAX[0], n, d, dtype, k)


SHAPES = [
    *itertools.product((63, 65, 511, 513, 1025), (1, 3, 10, 31, 100)),
    *itertools.product((1, 3, 513), (63, 65, 127, 512, 1025)),
    (3, 5000),
    (4097, 20),
    (40_003, 3),
    (6007, 64),
]


@dtypes
@on_any_target
def test_larger_shapes(dtype: np.dtype) -> None:
    for i, (n, d) in enumerate(SHAPES):
        case = CASES[i % len(CASES)]
        judge_model(case, n, d, dtype, weighted=i % 2 == 0, hessian=n * d < 200_000)


@pytest.mark.native
@cases
def test_twin(case: Case) -> None:
    """The NumPy engine, held to the same bounds."""
    for n, d, k in ((1, 1, None), (7, 0, None), (40, 17, 3), (600, 5, None), (1025, 3, 2)):
        for dtype in DTYPES:
            judge_model(case, n, d, dtype, k, weighted=n % 2 == 0, primitives=pb.reference)


@cases
@on_any_target
def test_mixed_dtypes(case: Case) -> None:
    """Everything is computed from what is stored, in float64; gradients have w's and b's dtype."""
    for n, d in ((7, 3), (40, 33)):
        m = model(case, n, d, np.float64)
        for x_dtype, y_dtype, w_dtype in itertools.product("fd", repeat=3):
            y = m.y if m.y.dtype == np.int64 else m.y.astype(y_dtype)
            X, w = m.X.astype(x_dtype), m.w.astype(w_dtype)
            weights = m.sample_weight.astype(y_dtype)
            b = np.float32(m.b) if x_dtype == "f" else m.b
            judge(case, X, y, w, b, weights, hessian=x_dtype == w_dtype)
            judge(case, X, y, w, None, hessian=x_dtype == w_dtype)


@dtypes
@pytest.mark.parametrize("case", [c for c in POINTWISE if c.formula.exact and c.parameter is None])
@each("n", [1, 2, 16, 64, 512, 1024, 32_768])
@on_any_target
def test_integers_are_exact(case: Case, n: int, dtype: np.dtype) -> None:
    """With integers, and a power of two of samples, no operation rounds: no error at all."""
    for d in (0, 1, 2, 5, 8, 31) if n < 1024 else (3,):
        rng = np.random.default_rng([n, d])
        X, w = rng.integers(-4, 5, (n, d)), rng.integers(-3, 4, d)
        y = np.rint(case.formula.targets(rng, n))
        weights = 2.0 ** rng.integers(0, 3, n)
        b = 2
        v = (rng.integers(-2, 3, d).astype(float), 1.0)
        sums = exact(case, X, y, w, b, weights, v)
        options: dict[str, Any] = {"sample_weight": weights, "reduction": "sum"}
        arguments = (X.astype(dtype), y.astype(dtype), w.astype(dtype), float(b))
        value, (gw, gb) = case.of().value_and_grad(*arguments, **options)
        hw, hb = case.of().hvp(*arguments, v, **options)
        assert value == sums.value.exact
        assert gb == sums.gb.exact[0]
        assert hb == sums.hb.exact[0]
        np.testing.assert_array_equal(gw, sums.gw.exact[:, 0].astype(dtype))
        np.testing.assert_array_equal(hw, sums.hw.exact[:, 0].astype(dtype))
        mean, (mw, mb) = case.of().value_and_grad(*arguments)
        plain = exact(case, X, y, w, b)
        assert mean == plain.value.exact / n
        assert mb == plain.gb.exact[0] / n
        np.testing.assert_array_equal(mw, (plain.gw.exact[:, 0] / n).astype(dtype))


@backends
@pointwise
def test_gradients_by_differentiation_with_all_digits(case: Case, primitives: Any) -> None:
    """Loss, gradient and Hessian product from the loss's formula alone: no derivative rule."""
    n, d = 6, 3
    m = model(case, n, d, np.float64, seed=5)
    loss = case.of(primitives)
    f, p = case.formula.value, mpf(case.p)
    with mp.workprec(4 * PRECISION):
        X = [[mpf(x) for x in row] for row in m.X.tolist()]
        y, weights = [mpf(t) for t in m.y.tolist()], [mpf(s) for s in m.sample_weight.tolist()]
        at = [*map(mpf, m.w.tolist()), mpf(m.b)]
        tangent = [*map(mpf, m.v[0].tolist()), mpf(m.v[1])]

        def total(theta: Any) -> Any:
            z = [mp.fdot(row, theta[:d]) + theta[d] for row in X]
            return mp.fsum(
                s * f(SINGLE, a, t, p) for s, a, t in zip(weights, z, y, strict=True)
            ) / mp.fsum(weights)

        def slope(theta: Any, j: int) -> Any:
            h = mpf(2) ** -100
            ahead, behind = ([t + s * h * (i == j) for i, t in enumerate(theta)] for s in (1, -1))
            return (total(ahead) - total(behind)) / (2 * h)

        def bend(j: int) -> Any:
            h = mpf(2) ** -100
            ahead, behind = (
                [a + s * h * t for a, t in zip(at, tangent, strict=True)] for s in (1, -1)
            )
            return (slope(ahead, j) - slope(behind, j)) / (2 * h)

        wanted = float(total(at))
        gradient = [float(slope(at, j)) for j in range(d + 1)]
        product = [float(bend(j)) for j in range(d + 1)]
    value, (gw, gb) = loss.value_and_grad(*m.operands, sample_weight=m.sample_weight)
    hw, hb = loss.hvp(*m.operands, m.v, sample_weight=m.sample_weight)
    assert value == pytest.approx(wanted, rel=1e-14)
    np.testing.assert_allclose([*gw, gb], gradient, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose([*hw, hb], product, rtol=1e-13, atol=1e-15)


@backends
@pytest.mark.parametrize("case", SOFTMAX, ids=by_id)
def test_softmax_by_complex_step(case: Case, primitives: Any) -> None:
    n, d, k = 9, 4, 3
    m = model(case, n, d, np.float64, k)
    given = np.eye(k)[m.y] if case.labels else m.y

    def value(w: Any, b: Any) -> Any:
        z = m.X @ w + b
        e = np.exp(z - z.real.max(axis=1, keepdims=True))
        lse = np.log(e.sum(axis=1)) + z.real.max(axis=1)
        return np.mean(np.sum(given * (lse[:, None] - z), axis=1))

    computed, (gw, gb) = primitives.softmax_cross_entropy.value_and_grad(*m.operands)
    assert computed == pytest.approx(value(m.w, m.b), rel=1e-13)
    for j, i in itertools.product(range(d), range(k)):
        step = np.zeros((d, k), complex)
        step[j, i] = 1e-30j
        assert gw[j, i] == pytest.approx(value(m.w + step, m.b).imag / 1e-30, rel=1e-12, abs=1e-15)
    for i in range(k):
        step = 1e-30j * (np.arange(k) == i)
        assert gb[i] == pytest.approx(value(m.w, m.b + step).imag / 1e-30, rel=1e-12, abs=1e-15)
    # The Hessian product, by differences of gradients that are exact up to rounding.
    h = 2.0**-14
    ahead, behind = (
        primitives.softmax_cross_entropy.grad(m.X, m.y, m.w + s * h * m.v[0], m.b + s * h * m.v[1])
        for s in (1, -1)
    )
    products = primitives.softmax_cross_entropy.hvp(*m.operands, m.v)
    for product, one, other in zip(products, ahead, behind, strict=True):
        np.testing.assert_allclose(product, (one - other) / (2 * h), rtol=1e-6, atol=1e-8)


@dtypes
@cases
def test_results_wrong_by_a_thousandth_are_rejected(case: Case, dtype: np.dtype) -> None:
    m = model(case, 40, 5, dtype)
    right = divided(exact_sums(case, 40, 5, dtype), 40, None, "mean")
    value, (gw, gb) = case.of().value_and_grad(*m.operands)
    for wrong, bounded in (
        (value * 1.001, right.value),
        (gw * 1.001, right.gw),
        (np.asarray(gb) * 1.001, right.gb),
    ):
        with pytest.raises(AssertionError, match="beyond"):
            assert_within(wrong, bounded)
    if dtype == np.float64:  # nor may float64 results be those of float32 sums
        with pytest.raises(AssertionError, match="beyond"):
            assert_within(gw.astype(np.float32).astype(float), right.gw)


@on_any_target
def test_ill_scaled_float32() -> None:
    """Columns of 1e-4 to 1e4 and an offset: a float32 product loses what float64 sums keep."""
    rng = np.random.default_rng(0)
    n, d = 4001, 20
    scales = 10.0 ** rng.uniform(-4, 4, d)
    X = (scales * (rng.normal(size=(n, d)) + 100)).astype(np.float32)
    w = (rng.normal(size=d) / scales).astype(np.float32)
    b = -float(np.mean(X.astype(float) @ w))
    y = (rng.uniform(size=n) < 0.5).astype(np.float32)
    m = exact(LOGISTIC, X, y, w, b)
    wanted = (m.gw.exact[:, 0] / n).astype(float)
    z = X @ w + np.float32(b)
    product = X.T @ (1 / (1 + np.exp(-z)) - y) / np.float32(n)
    assert (np.abs(product / wanted - 1) > 1e-5).any()
    for layout in (np.ascontiguousarray, np.asfortranarray):
        value, (gw, gb) = pb.logistic.value_and_grad(layout(X), y, w, b)
        np.testing.assert_allclose(gw, wanted, rtol=1e-6)
        assert value == pytest.approx(float(m.value.exact / n), rel=1e-6)
        assert gb == pytest.approx(float(m.gb.exact[0] / n), rel=1e-6)


@on_any_target
def test_tails_keep_their_digits() -> None:
    """Predictions right with certainty: losses and gradients far below 1's rounding error."""
    X = np.array([[40.0], [-50.0], [600.0]])
    y = np.array([1.0, 0.0, 1.0])
    wanted = np.exp([-40.0, -50.0, -600.0])
    for i in range(3):
        value, (gw, gb) = pb.logistic.value_and_grad(X[i : i + 1], y[i : i + 1], np.ones(1), 0.0)
        assert value == pytest.approx(wanted[i], rel=1e-12, abs=0)
        assert gb == pytest.approx((1 - 2 * y[i]) * wanted[i], rel=1e-12, abs=0)
        assert gw[0] == pytest.approx((1 - 2 * y[i]) * wanted[i] * X[i, 0], rel=1e-12, abs=0)
    W = np.array([[1.0, 0.0]])
    value, (gw, gb) = pb.softmax_cross_entropy.value_and_grad(X[:1], [0], W, np.zeros(2))
    assert value == pytest.approx(wanted[0], rel=1e-12, abs=0)
    np.testing.assert_allclose(gb, [-wanted[0], wanted[0]], rtol=1e-12)
    np.testing.assert_allclose(gw, [[-40 * wanted[0], 40 * wanted[0]]], rtol=1e-12)
    c = pb.softmax_cross_entropy.curvature(X[:1], [0], W, np.zeros(2))
    np.testing.assert_allclose(c[0], wanted[0] * np.array([[1, -1], [-1, 1]]), rtol=1e-12)


# --- weights and reductions -----------------------------------------------------------------------


@cases
@on_any_target
def test_weights_count_samples(case: Case) -> None:
    """A sample of weight 3 is three samples; one of weight 0 is none, whatever it holds."""
    m = model(case, 30, 4, np.float64)
    weights = np.arange(30) % 4 * 1.0
    repeats = np.arange(30) % 4
    repeated = np.repeat(m.X, repeats, axis=0), np.repeat(m.y, repeats, axis=0)
    for method in ("value", "value_and_grad", "grad"):
        for reduction in ("mean", "sum"):
            one = getattr(case.of(), method)(
                *m.operands, sample_weight=weights, reduction=reduction
            )
            other = getattr(case.of(), method)(*repeated, m.w, m.b, reduction=reduction)
            for a, c in zip(leaves(one), leaves(other), strict=True):
                np.testing.assert_allclose(a, c, rtol=1e-12, atol=1e-14)


@backends
@cases
def test_weights_of_any_scale(case: Case, primitives: Any) -> None:
    """A common factor does not change a mean, even where sums or products leave the range."""
    loss = case.of(primitives)
    X, y, w, b, _, v = model(case, 30, 4, np.float64)
    weights = np.arange(30) % 4 * 1.0

    def results(weights: np.ndarray) -> list[Any]:
        options = {"sample_weight": weights}
        gradients = loss.value_and_grad(X, y, w, b, **options, wrt=("X", "w", "b"))
        value, c = loss.value(X, y, w, b, **options), loss.curvature(X, y, w, b, **options)
        return [value, gradients, loss.hvp(X, y, w, b, v, **options), c]

    wanted = results(weights)
    for exponent in (-1074, -1000, -600, 600, 1000, 1022):
        for one, other in zip(results(weights * 2.0**exponent), wanted, strict=True):
            assert_same_leaves(one, other)
    huge = [1e308, 1e308]
    value, (gw, _) = primitives.squared_error.value_and_grad(
        [[2.0], [1]], [0, 1], [1.0], None, huge
    )
    assert value == 2
    assert gw == [4]


@cases
@on_any_target
def test_kinds_of_weights(case: Case) -> None:
    m = model(case, 40, 5, np.float64)
    loss = case.of()
    whole = np.arange(40) % 5
    wanted = loss.value_and_grad(*m.operands, sample_weight=whole.astype(float))
    for weights in (
        whole,
        whole.tolist(),
        whole.astype(np.int8),
        whole.astype(np.float32),
        whole.astype(">f4"),
        np.repeat(whole, 2)[::2].astype(float),
        whole[::-1].copy()[::-1] * 1.0,
    ):
        assert_same_leaves(loss.value_and_grad(*m.operands, sample_weight=weights), wanted)
    assert_same_leaves(loss.value_and_grad(*m.operands, whole * 1.0), wanted)
    assert loss.value(*m.operands, whole * 1.0) == pytest.approx(wanted[0], rel=1e-14)
    unweighted = loss.value_and_grad(*m.operands)
    for weights in (np.ones(40), np.full(40, 0.25), np.broadcast_to(2.0, 40)):
        result = loss.value_and_grad(*m.operands, sample_weight=weights)
        for one, other in zip(leaves(result), leaves(unweighted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-15)
    assert_same_leaves(loss.value_and_grad(*m.operands, None), unweighted)


# --- offsets --------------------------------------------------------------------------------------


@backends
@cases
def test_offsets(case: Case, primitives: Any) -> None:
    """For each row, or each row and output, of any kind; the same number everywhere is b."""
    for n, d, k, dtype in (
        (9, 3, None, "f4"),
        (530, 5, None, "f8"),
        (41, 0, 1, "f8"),
        (30, 9, 3, "f4"),
    ):
        if case.coupled and k == 1:
            continue
        m = model(case, n, d, np.dtype(dtype), k)
        rng = np.random.default_rng([n, d])
        by_row, by_output = rng.normal(size=n), rng.normal(size=(n, *m.w.shape[1:]))
        for i, offset in enumerate(
            (
                by_row,
                by_output,
                by_row.astype("f4"),
                np.repeat(by_output.astype("f4"), 2, axis=0)[::2],
                np.asfortranarray(by_output),
                np.rint(by_row).astype(np.int8).tolist(),
                np.rint(by_output).astype(">i2"),
            )
        ):
            weights = m.sample_weight if i % 2 else None
            reduction = ("mean", "sum")[i % 3 == 1]
            b = m.b if i % 3 else None
            v = m.v[0], None if b is None else m.v[1]
            sums = exact(case, m.X, m.y, m.w, b, weights, v, offset=offset)
            options = {"sample_weight": weights, "offset": offset, "reduction": reduction}
            judge(case, *m[:3], b, v=v, sums=sums, primitives=primitives, **options)
            gX = case.of(primitives).grad(m.X, m.y, m.w, b, **options, wrt="X")
            assert_within(gX, divided(sums, n, weights, reduction).gX)
            del options["reduction"]
            parts = case.of(primitives).partial(m.X, m.y, m.w, b, **options)
            assert_within(parts.loss, sums.value)
            assert_within(parts.gw, sums.gw)


@backends
@cases
def test_offsets_of_weight_0(case: Case, primitives: Any) -> None:
    """Count nothing, whatever they are; of others the row is what its prediction makes it."""
    for n, k in ((9, None), (530, None), (21, 3)):
        m = model(case, n, 4, np.float64, k)
        offset, weights = np.random.default_rng(n).normal(size=(n, *m.w.shape[1:])), m.sample_weight
        sums = exact(case, *m.operands, weights, m.v, offset=offset)
        offset[weights == 0] = math.nan
        options = {"sample_weight": weights, "offset": offset, "reduction": "sum"}
        loss = case.of(primitives)
        value, (gX, gw, gb) = loss.value_and_grad(*m.operands, **options, wrt=("X", "w", "b"))
        hw, hb = loss.hvp(*m.operands, m.v, **options)
        c = loss.curvature(*m.operands, **options)
        for field, actual in zip(sums._fields, (value, gw, gb, gX, c, hw, hb), strict=True):
            assert_within(actual, getattr(sums, field), field)
        for sample_weight in (None, np.ones(n)):
            given = {**options, "sample_weight": sample_weight}
            assert math.isnan(loss.value(*m.operands, **given)) == (weights == 0).any()


# --- wrt ------------------------------------------------------------------------------------------


@dtypes
@cases
@on_any_target
def test_gradient_in_the_data(case: Case, dtype: np.dtype) -> None:
    for n, d, k in ((1, 1, None), (7, 3, None), (40, 17, 3), (520, 6, None), (9, 0, None)):
        m = model(case, n, d, dtype, k)
        for weighted, reduction in ((False, "mean"), (True, "sum"), (True, "mean")):
            weights = m.sample_weight if weighted else None
            sums = exact_sums(case, n, d, dtype, k, weighted=weighted)
            right = divided(sums, n, weights, reduction)
            gX = case.of().grad(*m.operands, sample_weight=weights, reduction=reduction, wrt="X")
            assert type(gX) is np.ndarray
            assert gX.dtype == dtype
            assert gX.shape == (n, d)
            assert_within(gX, right.gX, f"X {n} {d} {k} {weighted} {reduction}")
            twin = case.of(pb.reference).grad(
                *m.operands, sample_weight=weights, reduction=reduction, wrt="X"
            )
            np.testing.assert_allclose(twin, gX, 1e-4 if dtype == "f4" else 1e-9, 1e-9)


@cases
@on_any_target
def test_wrt_chooses_and_orders(case: Case) -> None:
    m = model(case, 40, 5, np.float64)
    loss = case.of()
    value, gradients = loss.value_and_grad(*m.operands, wrt=("X", "w", "b"))
    by_name = dict(zip("Xwb", gradients, strict=True))
    both = loss.value_and_grad(*m.operands)
    assert_same_leaves((value, gradients[1:]), both)
    for count in (1, 2, 3):
        for wrt in itertools.permutations("Xwb", count):
            wanted = tuple(by_name[name] for name in wrt)
            result = loss.value_and_grad(*m.operands, wrt=wrt)
            assert type(result[1]) is tuple
            assert_same_leaves(result, (value, wanted))
            assert_same_leaves(loss.grad(*m.operands, wrt=wrt), wanted)
    for name, wanted in by_name.items():
        assert_same_leaves(loss.grad(*m.operands, wrt=name), wanted)
        assert_same_leaves(loss.value_and_grad(*m.operands, wrt=name), (value, wanted))
    without = loss.grad(m.X, m.y, m.w, wrt=("b", "w"))
    assert without[0] is None
    assert loss.grad(m.X, m.y, m.w, wrt="b") is None


# --- out ------------------------------------------------------------------------------------------


@cases
@on_any_target
def test_out(case: Case) -> None:
    """Results lie where they are wanted; an entry of None makes a new array."""
    for dtype, k in ((np.float64, None), (np.float32, None), (np.float64, 3)):
        m = model(case, 40, 5, dtype, k)
        loss = case.of()
        b = np.full(m.w.shape[1:], 0.25, dtype)
        arguments = (m.X, m.y, m.w, b)
        wrt = ("X", "w", "b")
        value, gradients = loss.value_and_grad(*arguments, wrt=wrt)
        for given in itertools.product((False, True), repeat=3):
            out = tuple(
                np.full_like(g, np.nan) if use else None
                for g, use in zip(gradients, given, strict=True)
            )
            result = loss.value_and_grad(*arguments, out=out, wrt=wrt)
            assert_same_leaves(result, (value, gradients))
            for one, o in zip(result[1], out, strict=True):
                assert o is None or one is o
            assert_same_leaves(loss.grad(*arguments, out=out, wrt=wrt), gradients)
        gw, gb = np.empty_like(m.w), np.empty_like(b)
        by_position = loss.value_and_grad(*arguments, None, (gw, gb))
        assert by_position[1][0] is gw
        assert by_position[1][1] is gb
        assert_same_leaves(by_position, (value, gradients[1:]))
        single = np.empty_like(m.w)
        assert loss.grad(*arguments, wrt="w", out=single) is single
        assert_same_bits(single, gradients[1])
        # Strided outputs, and ones that overlap an input: as if written after everything was read.
        wide = np.full((*m.w.shape, 2), np.nan, dtype)
        loss.grad(*arguments, wrt="w", out=wide[..., 0])
        assert_same_bits(wide[..., 0].copy(), gradients[1])
        assert np.isnan(wide[..., 1]).all()
        overwritten = m.w.copy()
        loss.grad(m.X, m.y, overwritten, b, out=(overwritten, None))
        assert_same_bits(overwritten, gradients[1])
        data = m.X.copy()
        loss.grad(data, m.y, m.w, b, out=data, wrt="X")
        assert_same_bits(data, gradients[0])


# --- partial sums ---------------------------------------------------------------------------------


@dtypes
@cases
@on_any_target
def test_partial_sums(case: Case, dtype: np.dtype) -> None:
    """The sums of any pieces, in any grouping, finish as the whole does."""
    for n, d, k, weighted in ((40, 5, None, False), (1100, 7, 3, True), (9, 0, None, True)):
        m = model(case, n, d, dtype, k)
        weights = m.sample_weight if weighted else None
        sums = exact_sums(case, n, d, dtype, k, weighted=weighted)
        ends = [0, n // 3, n // 3 + 1, 2 * n // 3, n]
        pieces = [
            case.of().partial(
                m.X[i:j], m.y[i:j], m.w, m.b, sample_weight=weights[i:j] if weighted else None
            )
            for i, j in itertools.pairwise(ends)
        ]
        whole = case.of().partial(*m.operands, sample_weight=weights)
        assert whole.n_samples == n
        for total in (
            whole,
            sum(pieces),
            pieces[0] + (pieces[1] + pieces[2]) + pieces[3],
            sum(pickle.loads(pickle.dumps(pieces))),
        ):
            assert total.n_samples == n
            for reduction in ("mean", "sum"):
                right = divided(sums, n, weights, reduction)
                value, (gw, gb) = total.finish(reduction)
                like, (like_w, like_b) = case.of().value_and_grad(
                    *m.operands, sample_weight=weights, reduction=reduction
                )
                assert type(value) is float
                assert gw.dtype == like_w.dtype
                assert gw.shape == like_w.shape
                assert type(gb) is type(like_b)
                assert np.shape(gb) == np.shape(like_b)
                assert_within(value, right.value)
                assert_within(gw, right.gw)
                assert_within(gb, right.gb)
                assert value == pytest.approx(like, rel=1e-13)
        assert_same_leaves(whole.finish(), whole.finish("mean"))
        # Adding makes a new object.
        before = pieces[0].finish()
        pieces[0] + pieces[1]
        assert_same_leaves(pieces[0].finish(), before)


def test_partial_sums_are_small_and_fit_only_their_like() -> None:
    m = model(LOGISTIC, 1000, 20, np.float64)
    whole = pb.logistic.partial(*m.operands)
    assert len(pickle.dumps(whole)) < 8 * 2 * 20 + 1000
    other = model(LOGISTIC, 50, 19, np.float64)
    with pytest.raises(ValueError, match=r"\(20,|\(19,"):
        whole + pb.logistic.partial(*other.operands)
    for wrong in (1.5, "x", None, np.ones(3)):
        with pytest.raises(TypeError):
            whole + wrong
    with pytest.raises(ValueError, match="reduction"):
        whole.finish("median")
    without = pb.logistic.partial(m.X, m.y, m.w)
    value, (gw, gb) = without.finish()
    assert gb is None
    assert_same_bits(gw, pb.logistic.grad(m.X, m.y, m.w, wrt="w"))
    assert value == pb.logistic.value(m.X, m.y, m.w)
    nothing = pb.logistic.partial(*m.operands, sample_weight=np.zeros(1000))
    with pytest.raises(ValueError, match="sample_weight"):
        nothing.finish()
    assert nothing.finish("sum")[0] == 0
    assert (nothing + whole).finish("sum")[0] == whole.finish("sum")[0]


# --- kinds of arguments ---------------------------------------------------------------------------


@cases
def test_methods_agree(case: Case) -> None:
    for n, d in ((40, 5), (700, 33)):
        m = model(case, n, d, np.float64)
        for options in ({}, {"sample_weight": m.sample_weight}, {"reduction": "sum"}):
            value, gradients = case.of().value_and_grad(*m.operands, **options)
            assert case.of().value(*m.operands, **options) == value
            assert_same_leaves(case.of().grad(*m.operands, **options), gradients)


@cases
def test_hvp_is_linear_and_symmetric(case: Case) -> None:
    m = model(case, 60, 7, np.float64, 3)
    loss = case.of()
    rng = np.random.default_rng(8)
    u = rng.normal(size=(7, 3)), rng.normal(size=3)
    hu, hv = loss.hvp(*m.operands, u), loss.hvp(*m.operands, m.v)
    left = sum(np.sum(a * c) for a, c in zip(u, hv, strict=True))
    right = sum(np.sum(a * c) for a, c in zip(m.v, hu, strict=True))
    assert left == pytest.approx(right, rel=1e-11, abs=1e-13)
    both = loss.hvp(*m.operands, v=tuple(2 * a - c for a, c in zip(u, m.v, strict=True)))
    for a, c, e in zip(both, hu, hv, strict=True):
        np.testing.assert_allclose(a, 2 * c - e, rtol=1e-11, atol=1e-12)
    hw, hb = loss.hvp(m.X, m.y, m.w, None, (u[0], None))
    assert hb is None
    zero = loss.hvp(m.X, m.y, m.w, np.zeros(3), (u[0], np.zeros(3)))
    np.testing.assert_allclose(hw, zero[0], rtol=1e-13, atol=1e-15)


@cases
def test_hvp_from_curvature(case: Case) -> None:
    """X^T diag(c) X is the Hessian in w."""
    m = model(case, 60, 7, np.float64, 3)
    for options in (
        {},
        {"reduction": "sum"},
        {"sample_weight": m.sample_weight},
        {"sample_weight": m.sample_weight, "reduction": "sum"},
    ):
        c = case.of().curvature(*m.operands, **options)
        if not case.coupled:
            c = c[:, :, None] * np.eye(3)
        product = np.einsum("ni,nkl,nj,jl->ik", m.X, c, m.X, m.v[0])
        hw, _ = case.of().hvp(*m.operands, (m.v[0], np.zeros(3)), **options)
        np.testing.assert_allclose(hw, product, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", ["value", "grad", "value_and_grad", "curvature", "partial"])
def test_forms_of_a_call(method: str) -> None:
    X, y, w, b, *_ = model(RECTIFIED, 40, 5)
    f = getattr(pb.relu_mse, method)

    def numbers(result: Any) -> Any:
        return result.finish() if method == "partial" else result

    wanted = numbers(f(X, y, w, b))
    for form in (
        lambda: f(X, y, w, b=b),
        lambda: f(X, y, b=b, w=w),
        lambda: f(X=X, y=y, w=w, b=b),
        lambda: f(b=b, w=w, y=y, X=X),
        lambda: f(X, b=b, y=y, w=w),
        lambda: f(X, y, w, b, sample_weight=None),
        lambda: f(*(X, y), **{"".join(["w"]): w, "".join(["b"]): b}),
    ):
        assert_same_leaves(numbers(form()), wanted)
    without = numbers(f(X, y, w, None))
    for form in (
        lambda: f(X, y, w),
        lambda: f(X, y, w=w),
        lambda: f(w=w, y=y, X=X),
        lambda: f(X, y, w=w, b=None),
    ):
        for one, other in zip(leaves(numbers(form())), leaves(without), strict=True):
            assert one is other is None or assert_same_bits(one, other) is None


WHOLE = ("i8", "i4", "i1", ">i2", "f4")


@each("k", [None, 1, 2, 65])
@cases
def test_short_and_long_ways_have_the_same_bits(case: Case, k: int | None) -> None:
    """With `wrt` a call takes the long way, whatever it asks for."""
    k = max(k or 1, 2) if case.coupled else k
    m = model(case, 60, 7, np.float64, k)
    kinds = ("uint8", "int32", "uint64") if case.labels else ("f4",) if case.coupled else WHOLE
    whole = m.y if case.coupled else np.ceil(m.y)
    targets = [m.y, *(whole.astype(kind) for kind in kinds)]
    eighths = np.rint(8 * m.sample_weight) / 8  # whose sum is exact in any order
    weights = [None, eighths, eighths.astype("f4"), np.arange(60, dtype=np.uint8)]
    biases = [None, m.b, np.ones(k or 1, "f4"), np.array([0.25]), 1, 0.5]
    X = [m.X, np.asfortranarray(m.X).astype("f4"), scipy.sparse.csr_array(m.X)]
    X += [scipy.sparse.csc_array(m.X)]
    rng = np.random.default_rng(8)
    for _ in range(25):
        given = [int(rng.integers(len(some))) for some in (X, targets, weights, biases)]
        arguments = X[given[0]], targets[given[1]], m.w.astype(("f4", "f8")[given[0] % 2])
        options = {
            "b": biases[given[3]],
            "sample_weight": weights[given[2]],
            "reduction": ("mean", "sum")[rng.integers(2)],
        }
        short = case.of().value_and_grad(*arguments, **options)
        value, grads = long = case.of().value_and_grad(*arguments, **options, wrt=("w", "b"))
        if options["b"] is None:
            assert short[1][1] is grads[1] is None
            short, long = (short[0], short[1][0]), (value, grads[0])
        assert list(map(type, leaves(short))) == list(map(type, leaves(long)))
        assert_same_leaves(short, long)
        assert_same_bits(case.of().value(*arguments, **options), value)


class Level(float):
    """A Python float by inheritance."""


BIASES = [
    (0.5, float, None),
    (1, float, None),
    (True, float, None),
    (Level(0.5), float, None),
    (np.float32(0.5), np.float32, ()),
    (np.float64(0.5), np.float64, ()),
    (np.float16(0.5), np.float32, ()),
    (np.int8(1), np.float64, ()),
    (np.array(0.5, np.float32), np.ndarray, ()),
    (np.array(0.5), np.ndarray, ()),
    (np.array([0.5], np.float32), np.ndarray, (1,)),
    (np.array([0.5]), np.ndarray, (1,)),
    (np.array([0.5, 7.0])[::2], np.ndarray, (1,)),
    (np.array([0.5], ">f4"), np.ndarray, (1,)),
    (np.array([1]), np.ndarray, (1,)),
    ([0.5], np.ndarray, (1,)),
]


@pytest.mark.parametrize("name", ["relu_mse", "logistic"])
@each("b, kind, shape", BIASES)
@on_any_target
def test_intercept_comes_back_in_kind(
    b: Any, kind: type, shape: tuple[int, ...] | None, name: str
) -> None:
    loss = getattr(pb, name)
    for dtype in DTYPES:
        X, y, w, *_ = model(Case(name), 40, 5, dtype)
        value, (gw, gb) = loss.value_and_grad(X, y, w, b)
        plain_value, (plain_gw, plain_gb) = loss.value_and_grad(X, y, w, float(np.ravel(b)[0]))
        assert value == plain_value == loss.value(X, y, w, b)
        assert_same_bits(gw, plain_gw)
        vb = None if b is None else np.ones(np.shape(b))
        _, hb = loss.hvp(X, y, w, b, (np.ones(5), vb))
        for bent in (gb, hb, loss.grad(X, y, w, b)[1], loss.partial(X, y, w, b).finish()[1][1]):
            assert type(bent) is kind
        if shape is None:
            assert gb == plain_gb
        else:
            double = np.asarray(b).dtype.kind in "iu" or np.asarray(b).dtype.itemsize == 8
            wanted = np.full(shape, plain_gb, np.float64 if double else np.float32)
            assert_same_bits(gb, wanted)
            assert hb.dtype == wanted.dtype
            assert hb.shape == shape


@cases
@on_any_target
def test_intercepts_of_several_outputs(case: Case) -> None:
    for dtype in DTYPES:
        X, y, w, *_ = model(case, 40, 5, dtype, 3)
        for b in (
            np.array([0.5, -1.0, 0.25]),
            np.array([0.5, -1.0, 0.25], np.float32),
            np.array([0.5, 9, -1.0, 9, 0.25, 9])[::2],
            np.array([0.5, -1.0, 0.25], ">f8"),
            [0.5, -1.0, 0.25],
            np.array([1, 2, 3]),
            None,
        ):
            _, (_, gb) = judge(case, X, y, w, b)
            assert b is None or gb.dtype == (
                np.float32 if np.asarray(b).dtype.itemsize == 4 else np.float64
            )


@cases
@on_any_target
def test_one_intercept_for_all_outputs(case: Case) -> None:
    """A number, or an array of one: its gradient sums over the outputs."""
    X, y, w, *_ = model(case, 40, 5, np.float64, 3)
    for b in (0.5, np.float32(0.5), np.array(0.5), np.array([0.5]), [0.5]):
        judge(case, X, y, w, b)


def test_no_intercept() -> None:
    X, y, w, *_ = model(RECTIFIED, 40, 5)
    value, (gw, gb) = pb.relu_mse.value_and_grad(X, y, w, None)
    assert gb is None
    zero_value, (zero_gw, zero_gb) = pb.relu_mse.value_and_grad(X, y, w, 0.0)
    assert value == zero_value == pb.relu_mse.value(X, y, w)
    assert_same_bits(gw, zero_gw)
    assert type(zero_gb) is float


@cases
@on_any_target
def test_integer_parameters_and_targets(case: Case) -> None:
    """An integer parameter is a number, not storage: its gradient has float64."""
    m = model(case, 30, 4, np.float64)
    y, w = np.asarray(m.y), np.rint(2 * m.w)
    whole = case.labels or not case.coupled
    if whole:
        y = np.ceil(y)  # inside every domain if y is
    loss = case.of()
    wanted = loss.value_and_grad(m.X, y.astype(int) if case.labels else y, w, m.b)
    for w_dtype in (np.int8, np.int64):
        result = loss.value_and_grad(
            m.X, y.astype(int) if case.labels else y, w.astype(w_dtype), m.b
        )
        assert_same_leaves(result, wanted)
    half = loss.grad(m.X, y.astype(int) if case.labels else y, w.astype(np.float16), m.b, wrt="w")
    assert_same_bits(half, wanted[1][0].astype(np.float32))
    kinds = [np.int8, np.int32, np.int64, ">i4"] if whole else []
    kinds += [] if case.labels else [">f8"]
    kinds += [bool] if case.name == "logistic" else []
    for y_dtype in kinds:
        assert_same_leaves(loss.value_and_grad(m.X, y.astype(y_dtype), w, m.b), wanted)


# --- special values -------------------------------------------------------------------------------


@lru_cache(1)
def spoiled(case: Case, bad: float, dtype: np.dtype) -> list[tuple[str, dict[str, Any], Any]]:
    """Return arguments that hold a bad value, its place, and what the twin makes of them."""
    found = []
    for n, d, k in ((1, 1, None), (9, 5, None), (515, 3, 3)):
        m = model(case, n, d, dtype, k)
        for name, index in itertools.product("Xwb", (0, 1, -1)):
            arguments: dict[str, Any] = {"X": m.X, "y": m.y, "w": m.w, "b": m.b}
            changed = np.array(arguments[name], dtype, ndmin=1)
            changed.flat[index % changed.size] = bad
            arguments[name] = changed
            found.append((name, arguments, case.of(pb.reference).value_and_grad(**arguments)))
    return found


@dtypes
@cases
@each("bad", [math.nan, math.inf, -math.inf])
@on_any_target
def test_special_values_propagate_as_in_the_twin(case: Case, bad: float, dtype: np.dtype) -> None:
    """Wherever a value that is not finite stands, the result is the twin's, and nothing warns."""
    for name, arguments, twin in spoiled(case, bad, dtype):
        with np.errstate(all="raise"):
            result = case.of().value_and_grad(**arguments)
            only = case.of().value(**arguments)
        assert_same_bits(only, result[0])
        if math.isnan(bad):
            assert math.isnan(result[0])
        for one, other in zip(leaves(result), leaves(twin), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)


@dtypes
@on_any_target
def test_inactive_samples_hide_their_targets(dtype: np.dtype) -> None:
    """The gradient sums over the active samples: y and finite X of the others do not count."""
    for n in (2, 9, 40, 600):
        X, y, w = np.full((n, 3), 1.0, dtype), np.full(n, 5, dtype), np.ones(3, dtype)
        wanted = pb.relu_mse.grad(X[: n - 1], y[: n - 1], w, 0.0)
        X[1], y[1] = -1, 5e4
        value, (gw, gb) = pb.relu_mse.value_and_grad(X, y, w, 0.0)
        assert value > 25e8 / n
        np.testing.assert_allclose(gw, wanted[0] * (n - 1) / n, rtol=1e-6)
        assert gb == pytest.approx(wanted[1] * (n - 1) / n)


@dtypes
@on_any_target
def test_huge_and_tiny_data(dtype: np.dtype) -> None:
    """float32's whole range fits float64's accumulators; what overflows there is infinite."""
    info = np.finfo(dtype)
    X = np.full((3, 2), info.max, dtype)
    ones = np.ones(3, dtype)
    value, (gw, gb) = pb.relu_mse.value_and_grad(X, ones, ones[:2], 0.0)
    if dtype == np.float32:
        assert value == pytest.approx((2 * float(info.max)) ** 2)
        assert gb == pytest.approx(4 * float(info.max))
    else:
        assert value == math.inf
    assert (gw == np.inf).all()
    tiny = np.full((3, 2), info.smallest_subnormal, dtype)
    value, (gw, _) = pb.relu_mse.value_and_grad(tiny, ones, ones[:2], 0.0)
    assert value == 1
    # Dividing before summing would round three times.
    atol = 0 if pb.backend() == "native" else float(info.smallest_subnormal)
    np.testing.assert_allclose(gw, -2 * float(info.smallest_subnormal), rtol=0, atol=atol)


# --- what must not happen -------------------------------------------------------------------------


@backends
@cases
def test_arguments_are_not_written_and_results_are_new(case: Case, primitives: Any) -> None:
    loss = case.of(primitives)
    for dtype, k in itertools.product(DTYPES, (None, 2)):
        m = model(case, 40, 17, dtype, k)  # read-only
        b = np.full((1,) if m.w.ndim == 1 else m.w.shape[1:], 0.5, dtype)
        v = m.v[0], np.ones(b.shape)
        given = [m.X, m.y, m.w, b, m.sample_weight, *v]
        before = [a.copy() for a in given]
        first = loss.value_and_grad(m.X, m.y, m.w, b, m.sample_weight, wrt=("X", "w", "b"))
        again = loss.value_and_grad(m.X, m.y, m.w, b, m.sample_weight, wrt=("X", "w", "b"))
        some = {"sample_weight": m.sample_weight, "offset": m.sample_weight}
        products = loss.hvp(m.X, m.y, m.w, b, v, **some)
        c = loss.curvature(m.X, m.y, m.w, b)
        sums = loss.partial(m.X, m.y, m.w, b).finish()[1]
        for a, copied in zip(given, before, strict=True):
            assert_same_bits(a, copied)
        results = [*first[1], *again[1], *products, c, *sums]
        for i, result in enumerate(results):
            assert result.flags.writeable
            assert not any(np.shares_memory(result, a) for a in given)
            assert not any(np.shares_memory(result, other) for other in results[:i])


@cases
def test_no_reference_is_lost_or_kept(case: Case) -> None:
    loss = case.of()
    m = model(case, 40, 17, np.float64)
    b = np.full((1,) if m.w.ndim == 1 else m.w.shape[1:], 0.5)
    weights = m.sample_weight
    v = m.v[0], np.ones(b.shape)
    things = [m.X, m.y, m.w, b, weights, *v]

    def calls() -> None:
        loss.value_and_grad(m.X, m.y, m.w, b)
        loss.value(X=m.X, y=m.y, w=m.w, b=b, sample_weight=weights)
        loss.value_and_grad(m.X[:, ::-1], m.y, m.w, b, weights)
        loss.value_and_grad(m.X, m.y, m.w, b, offset=weights)
        loss.value_and_grad(m.X, m.y, m.w, b, offset=weights[::-1])
        loss.grad(m.X, m.y, m.w, b, wrt="X")
        loss.hvp(m.X, m.y, m.w, b, v)
        loss.curvature(m.X, m.y, m.w, b)
        with pytest.raises(ValueError, match="shape"):
            loss.value_and_grad(m.X, m.y, m.w[1:], b)
        with pytest.raises(ValueError, match="sample_weight"):
            loss.value_and_grad(m.X, m.y, m.w, b, -1 - weights)
        with pytest.raises(ValueError, match="offset"):
            loss.value_and_grad(m.X, m.y, m.w, b, offset=weights[1:])

    calls()
    counts = [sys.getrefcount(thing) for thing in things]
    for _ in range(30):
        calls()
    assert [sys.getrefcount(thing) for thing in things] == counts


@cases
@on_every_target
def test_floating_point_environment(case: Case, fenv: FloatEnvironment) -> None:
    """Flags are left as found; rounding mode and flushing are restored and reach no kernel.

    What NumPy divides by N is rounded in the caller's mode.
    """
    loss = case.of()
    for n, d, k in ((9, 3, None), (1500, 17, 3)):
        m = model(case, n, d, np.float64, k)
        calls: list[Callable[[], Any]] = [
            lambda m=m: loss.value_and_grad(*m.operands),
            lambda m=m: loss.hvp(*m.operands, m.v),
            lambda m=m: loss.grad(*m.operands, wrt="X"),
        ]
        for call in calls:
            wanted = call()
            for name, mode in fenv.MODES.items():
                fenv.set_mode(mode)
                result = call()
                found = fenv.mode()
                fenv.set_mode(0)
                assert found == mode, name
                for one, other in zip(leaves(result), leaves(wanted), strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-15, atol=1e-300)
    if case.coupled:  # NumPy divides, and so raises a flag
        return
    m = model(case, 9, 3, np.float64)
    for up in (0, fenv.FLAGS, fenv.INVALID):
        fenv.set_flags(up)
        loss.value_and_grad(*m.operands)
        found = fenv.flags()
        fenv.set_flags(0)
        assert found == up

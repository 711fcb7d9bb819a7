"""LinearObjective: right sums, a penalty, data read anew in each call, SciPy's optimizers."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pullback as pb
import pytest
import scipy.optimize
import scipy.sparse
from linear_models import (
    ARRAY,
    CASES,
    POINTWISE,
    SINGLE,
    Case,
    Exact,
    assert_within,
    by_id,
    divided,
    exact,
    model,
)
from mpmath import mp, mpf
from oracles import PRECISION, assert_same_bits
from protocol import TWINS, assert_same_leaves, backends, each
from pullback.tables.losses import LOSSES

cases = pytest.mark.parametrize("case", CASES, ids=by_id)
pointwise = pytest.mark.parametrize("case", POINTWISE, ids=by_id)
RECTIFIED, LOGISTIC = Case("relu_mse"), Case("logistic")
LABELS = Case("softmax_cross_entropy", None, labels=True)
U = 2.0**-53


def at_zero(*arguments: Any, **options: Any) -> float:
    """Return an objective's value at its initial parameters."""
    objective = pb.LinearObjective(*arguments, **options)
    return float(objective.value(objective.initial()))


def theta_of(w: Any, b: Any) -> Any:
    return np.concatenate([np.ravel(w), np.ravel(b) if b is not None else []]).astype(float)


def matrix_of(l2: Any, d: int, k: int | None) -> Any:
    """Return a penalty's matrix by w.ravel(), in long double."""
    n = d * (k or 1)
    given = np.asarray(l2, np.longdouble)
    if given.shape in {(d, d), (n, n)}:
        return np.kron(given, np.eye(n // len(given) if len(given) else 1))
    by_row = given if given.ndim in (0, 2) else given[:, None]
    return np.diag(np.broadcast_to(by_row, (d, k or 1)).ravel())


def judge(
    objective: Any, case: Case, X: Any, y: Any, theta: Any, k: int | None, **given: Any
) -> None:
    """Check value, gradient and Hessian product against long double sums plus the penalty."""
    n, d = X.shape
    l2, weights, offset = given.get("l2", 0.0), given.get("sample_weight"), given.get("offset")
    intercept = given.get("fit_intercept", True)
    size = d * (k or 1)
    w = theta[:size].reshape((d,) if k is None else (d, k))
    b = (theta[size:] if k else theta[size]) if intercept else None
    t = np.random.default_rng(5).normal(size=theta.size)
    vw = t[:size].reshape(w.shape)
    vb = (t[size:] if k else t[size]) if intercept else None
    sums = exact(case, X, y, w, b, weights, (vw, vb), offset=offset)
    right: Exact = divided(sums, n, weights, "mean")
    P = matrix_of(l2, d, k)
    wide = theta[:size].astype(np.longdouble)
    penalty, most = wide @ P @ wide / 2, np.abs(wide) @ np.abs(P) @ np.abs(wide) / 2
    value, gradient = objective.value_and_grad(theta)
    assert type(value) is float
    for number in (value, objective.value(theta)):
        assert_within(
            number,
            right.value._replace(
                exact=right.value.exact + penalty,
                error=right.value.error + (size + 8) * U * most + 4 * U * abs(right.value.exact),
            ),
            "value",
        )
    product = objective.hvp(theta, t)
    for actual, (dw, db), direction in (
        (gradient, (right.gw, right.gb), theta),
        (objective.grad(theta), (right.gw, right.gb), theta),
        (product, (right.hw, right.hb), t),
    ):
        assert type(actual) is np.ndarray
        assert actual.dtype == np.float64
        assert actual.shape == theta.shape == (objective.n_parameters,)
        assert actual.flags.c_contiguous
        assert actual.flags.writeable
        along = direction[:size].astype(np.longdouble)
        pull, most = P @ along, np.abs(P) @ np.abs(along)
        terms = 4 if np.count_nonzero(P - np.diag(np.diag(P))) == 0 else size + 4
        assert_within(
            actual[:size],
            dw._replace(
                exact=dw.exact.ravel() + pull,
                error=dw.error.ravel() + U * (terms * most + 4 * np.abs(dw.exact.ravel())),
            ),
            "w",
        )
        if intercept:
            assert_within(actual[size:], db, "b")
        else:
            assert actual.size == size


# --- right ----------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("k", [None, 3])
def test_value_gradient_and_hessian_product(case: Case, k: int | None) -> None:
    k = 3 if case.coupled else k
    for n, d, dtype in ((30, 4, "f8"), (700, 9, "f4"), (5, 0, "f8")):
        m = model(case, n, d, dtype, k)
        for l2, weighted, intercept in itertools.product((0.0, 0.75), (False, True), (True, False)):
            options: dict[str, Any] = {
                "l2": l2,
                "sample_weight": m.sample_weight if weighted else None,
                "fit_intercept": intercept,
                "offset": m.sample_weight if weighted == intercept else None,
            }
            objective = pb.LinearObjective(m.X, m.y, loss=case.of(), **options)
            theta = theta_of(m.w, m.b if intercept else None)
            assert objective.n_parameters == theta.size
            judge(objective, case, m.X, m.y, theta, k, **options)


def penalties(d: int, k: int | None) -> dict[str, Any]:
    """Return penalties of every form, singular ones too."""
    rng = np.random.default_rng([d, k or 0])
    numbers = rng.uniform(0, 2, (d, k or 1))
    numbers[0] = 0
    differences = np.diff(np.eye(d), 2, axis=0)
    A = rng.normal(size=(2, d * (k or 1)))
    forms: dict[str, Any] = {
        "a number": 0.75,
        "of each feature": numbers[:, 0],
        "a list": numbers[:, 0].tolist(),
        "float32": numbers[:, 0].astype("f4"),
        "a matrix": differences.T @ differences,
        "a matrix of integers": np.rint(differences.T @ differences).astype(int),
        "a float32 matrix": (A[:, :d].T @ A[:, :d]).astype("f4"),
        "of zeros": np.zeros((d, d)),
    }
    if k is not None:
        forms |= {"of each coefficient": numbers, "by columns": np.asfortranarray(numbers)}
        forms["of the whole"] = A.T @ A
    return forms


@backends
@each("name", [*penalties(5, 3)])
def test_penalties_of_any_form(name: str, primitives: Any) -> None:
    of_classes = Case("softmax_cross_entropy")
    for case, k in ((LOGISTIC, None), (LOGISTIC, 1), (LOGISTIC, 3), (of_classes, 3)):
        l2 = penalties(5, k).get(name)
        if l2 is None:
            continue
        m = model(case, 30, 5, np.float64, k)
        theta = theta_of(m.w, m.b)
        for data in ((m.X, m.y), ([(m.X[:9], m.y[:9]), (m.X[9:], m.y[9:])], None)):
            objective = pb.LinearObjective(*data, case.of(primitives), l2)
            judge(objective, case, m.X, m.y, theta, k, l2=l2)
        copied = pickle.loads(pickle.dumps(objective))
        assert_same_answers(answers(copied), answers(objective))
        P = matrix_of(l2, 5, k)
        hessian = np.zeros((objective.n_parameters,) * 2)
        objective._penalty.add_to(hessian)
        np.testing.assert_allclose(hessian[: len(P), : len(P)], P.astype(float), atol=1e-6)
        assert not hessian[len(P) :].any()
        assert not hessian[:, len(P) :].any()
        if np.ndim(l2) > 0:
            assert f"l2 of shape {np.shape(l2)}" in repr(objective)


@backends
def test_penalties_are_copies(primitives: Any) -> None:
    m = model(LOGISTIC, 30, 5, np.float64)
    for l2 in penalties(5, None).values():
        if not isinstance(l2, np.ndarray):
            continue
        objective = pb.LinearObjective(m.X, m.y, primitives.logistic, l2)
        before = answers(objective)
        l2[...] = 7
        assert_same_answers(answers(objective), before)


@backends
def test_coefficients_without_a_penalty_may_be_infinite(primitives: Any) -> None:
    X, y = np.zeros((4, 2)), np.array([0.0, 1, 1, 0])
    X[:, 0] = [1, 2, 3, 4]
    for l2, w in ((0.0, [1.0, 1e300]), ([0.5, 0.0], [1.0, 1e300])):
        objective = pb.LinearObjective(X, y, primitives.logistic, l2)
        plain = pb.LinearObjective(X[:, :1], y, primitives.logistic, np.max(l2))
        theta = np.array([*w, 0.0])
        assert objective.value(theta) == plain.value(theta[::2])
        assert objective.grad(theta)[1] == 0


@pointwise
def test_derivatives_by_differentiation_with_all_digits(case: Case) -> None:
    """The penalty and the intercept's freedom of it, from formulas of values alone."""
    n, d, l2 = 6, 3, 0.375
    m = model(case, n, d, np.float64, seed=6)
    f, p = case.formula.value, mpf(case.p)
    theta = theta_of(m.w, m.b)
    t = np.array([0.5, -1.0, 2.0, 0.75])
    h = mpf(2) ** -100
    with mp.workprec(4 * PRECISION):
        X = [[mpf(x) for x in row] for row in m.X.tolist()]

        def total(at: Any) -> Any:
            z = [mp.fdot(row, at[:d]) + at[d] for row in X]
            terms = (f(SINGLE, a, mpf(y), p) for a, y in zip(z, m.y.tolist(), strict=True))
            return mp.fsum(terms) / n + mpf(l2) / 2 * mp.fsum(c * c for c in at[:d])

        def slope(at: Any, j: int) -> Any:
            ahead, behind = ([c + s * h * (i == j) for i, c in enumerate(at)] for s in (1, -1))
            return (total(ahead) - total(behind)) / (2 * h)

        at = [*map(mpf, theta.tolist())]
        wanted = float(total(at)), [float(slope(at, j)) for j in range(d + 1)]
        ahead, behind = (
            [c + s * h * mpf(e) for c, e in zip(at, t.tolist(), strict=True)] for s in (1, -1)
        )
        bent = [float((slope(ahead, j) - slope(behind, j)) / (2 * h)) for j in range(d + 1)]
    objective = pb.LinearObjective(m.X, m.y, loss=case.of(), l2=l2)
    assert objective.value(theta) == pytest.approx(wanted[0], rel=1e-14)
    np.testing.assert_allclose(objective.grad(theta), wanted[1], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(objective.hvp(theta, t), bent, rtol=1e-13, atol=1e-15)


def test_against_sklearn() -> None:
    linear_loss = pytest.importorskip("sklearn.linear_model._linear_loss")
    losses = pytest.importorskip("sklearn._loss.loss")
    l2 = 0.25
    for case, base, k in (
        (LOGISTIC, losses.HalfBinomialLoss(), None),
        (LABELS, losses.HalfMultinomialLoss(n_classes=3), 3),
        (Case("poisson"), losses.HalfPoissonLoss(), None),
        (Case("gamma"), losses.HalfGammaLoss(), None),
    ):
        m = model(case, 200, 6, np.float64, k)
        theirs = linear_loss.LinearModelLoss(base, fit_intercept=True)
        objective = pb.LinearObjective(m.X, m.y, case.of(), l2, m.sample_weight)
        theta = theta_of(m.w, m.b)
        # Theirs holds the coefficients of a class together, each with its intercept last.
        at = theta if k is None else np.concatenate([m.w.T, m.b[:, None]], axis=1)
        data = m.X, m.y.astype(float), m.sample_weight.copy()
        value, gradient = theirs.loss_gradient(at, *data, l2_reg_strength=l2)
        # Terms of y alone are left out by either side.
        constant = theirs.loss_gradient(0 * at, *data, l2_reg_strength=l2)[0]
        if k is not None:
            gradient = gradient.reshape(k, -1)
            gradient = np.concatenate([gradient[:, :-1].T.ravel(), gradient[:, -1]])
        ours, ours_gradient = objective.value_and_grad(theta)
        assert ours - objective.value(0 * theta) == pytest.approx(value - constant, rel=1e-10)
        np.testing.assert_allclose(ours_gradient, gradient, rtol=1e-8, atol=1e-12)


# --- optimizers -----------------------------------------------------------------------------------

METHODS = ("L-BFGS-B", "trust-ncg", "Newton-CG", "TNC")


def problem(case: Case, k: int | None, n: int = 400, d: int = 5) -> Any:
    """Return data that no plane separates, and the objective of it."""
    rng = np.random.default_rng([n, d, len(case.name)])
    X = rng.normal(size=(n, d))
    if case.coupled:
        y = rng.integers(0, k, n)
    else:
        y = case.formula.targets(rng, n if k is None else (n, k))
    return X, y


@pytest.mark.parametrize(
    ("case", "k"),
    [(c, None) for c in POINTWISE if c.name not in {"quantile", "hinge", "relu_mse"}]
    + [(LABELS, 3), (LOGISTIC, 2)],
    ids=lambda value: value.id if isinstance(value, Case) else str(value),
)
def test_optimizers_agree(case: Case, k: int | None) -> None:
    X, y = problem(case, k)
    objective = pb.LinearObjective(X, y, loss=case.of(), l2=0.01)
    optima = []
    for method in METHODS:
        options: dict[str, Any] = {
            "L-BFGS-B": {"gtol": 1e-10, "ftol": 1e-16, "maxiter": 2000},
            "trust-ncg": {"gtol": 1e-9},
            "Newton-CG": {"xtol": 1e-12},
            "TNC": {"gtol": 1e-9, "ftol": 1e-16, "xtol": 1e-16, "maxfun": 5000},
        }[method]
        second = {"hessp": objective.hvp} if method in {"trust-ncg", "Newton-CG"} else {}
        found = scipy.optimize.minimize(
            objective.value_and_grad,
            objective.initial(),
            jac=True,
            method=method,
            options=options,
            **second,
        )
        assert np.abs(objective.grad(found.x)).max() < 1e-5, (method, found)
        optima.append(found)
    for other in optima[1:]:
        assert other.fun == pytest.approx(optima[0].fun, rel=1e-8)
        np.testing.assert_allclose(other.x, optima[0].x, atol=2e-4)
    assert optima[0].fun < objective.value(objective.initial())


def test_separate_functions_for_scipy() -> None:
    X, y = problem(LOGISTIC, None)
    objective = pb.LinearObjective(X, y, pb.logistic, 0.01)
    joint = scipy.optimize.minimize(
        objective.value_and_grad,
        objective.initial(),
        jac=True,
        hessp=objective.hvp,
        method="trust-ncg",
        options={"gtol": 1e-9},
    )
    apart = scipy.optimize.minimize(
        objective.value,
        objective.initial(),
        jac=objective.grad,
        hessp=objective.hvp,
        method="Newton-CG",
        options={"xtol": 1e-12},
    )
    np.testing.assert_allclose(joint.x, apart.x, atol=1e-6)
    assert scipy.optimize.check_grad(objective.value, objective.grad, joint.x + 0.5) < 1e-6


# --- theta ----------------------------------------------------------------------------------------


@cases
def test_theta_is_neither_kept_nor_changed(case: Case) -> None:
    """The caller may overwrite theta in place between calls, and what was returned too."""
    m = model(case, 60, 5, np.float64, 3 if case.coupled else None)
    rng = np.random.default_rng(0)
    first, second, t = (
        theta_of(m.w, m.b) + rng.normal(size=m.w.size + np.size(m.b)) for _ in "abc"
    )

    def fresh(theta: Any) -> Any:
        objective = pb.LinearObjective(m.X, m.y, case.of(), 0.5)
        return (*objective.value_and_grad(theta), objective.hvp(theta, t))

    wanted = fresh(first.copy()), fresh(second.copy())
    objective = pb.LinearObjective(m.X, m.y, case.of(), 0.5)
    theta = first.copy()
    for i in (0, 1, 0, 1, 1, 0):
        theta[:] = (first, second)[i]
        before = theta.copy()
        product = objective.hvp(theta, t)
        value, gradient = objective.value_and_grad(theta)
        assert value == wanted[i][0]
        assert_same_bits(gradient, wanted[i][1])
        np.testing.assert_allclose(product, wanted[i][2], rtol=1e-13, atol=1e-15)
        again = objective.hvp(theta, t)
        np.testing.assert_allclose(again, wanted[i][2], rtol=1e-13, atol=1e-15)
        assert_same_bits(theta, before)
        results = [product, gradient, again, objective.grad(theta), objective.initial()]
        for one, other in itertools.combinations([*results, theta], 2):
            assert not np.shares_memory(one, other)
        for result in results:
            result[:] = np.nan
        if i:
            theta[:] = np.nan
    # Overwritten between the gradient and the Hessian product.
    theta[:] = first
    objective.value_and_grad(theta)
    theta[:] = second
    np.testing.assert_allclose(objective.hvp(theta, t), wanted[1][2], rtol=1e-13, atol=1e-15)
    assert objective.value(second) == wanted[1][0]


def test_kinds_of_theta() -> None:
    m = model(LOGISTIC, 60, 5, np.float64)
    objective = pb.LinearObjective(m.X, m.y, pb.logistic, 0.5)
    theta = np.rint(4 * theta_of(m.w, m.b))
    wanted = objective.value_and_grad(theta)
    for given in (
        theta.tolist(),
        theta.astype(np.int64),
        theta.astype(np.float32),
        theta.astype(">f8"),
        np.repeat(theta, 2)[::2],
        theta[::-1].copy()[::-1],
    ):
        value, gradient = objective.value_and_grad(given)
        assert value == wanted[0]
        assert_same_bits(gradient, wanted[1])
        assert gradient.dtype == np.float64
        assert_same_bits(objective.hvp(given, given), objective.hvp(theta, theta))
    frozen = theta.copy()
    frozen.flags.writeable = False
    assert_same_bits(objective.grad(frozen), wanted[1])


class Counted:
    """Chunks that count how often they are read."""

    def __init__(self, chunks: list[Any]) -> None:
        self.chunks, self.passes = chunks, 0

    def __call__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.chunks)


@cases
def test_each_call_is_one_pass(case: Case) -> None:
    m = model(case, 90, 5, np.float64, 3 if case.coupled else None)
    source = Counted([(m.X[i : i + 30], m.y[i : i + 30]) for i in (0, 30, 60)])
    objective = pb.LinearObjective(source, loss=case.of(), n_outputs=3 if case.coupled else None)
    theta = theta_of(m.w, m.b)
    for method in (objective.value, objective.grad, objective.value_and_grad, objective.hvp):
        before = source.passes
        method(*[theta] * (1 + (method == objective.hvp)))
        assert source.passes == before + 1


# --- data that change in place --------------------------------------------------------------------

ARRAYS: dict[str, Callable[[Any], Any]] = {
    "float64": lambda a: a.astype(float),
    "float32": lambda a: a.astype(np.float32),
    "float16": lambda a: a.astype(np.float16),
    "int64": lambda a: a.astype(np.int64),
    "int8": lambda a: a.astype(np.int8),
    "bool": lambda a: a.astype(bool),
    "swapped": lambda a: a.astype(">f8"),
    "strided": lambda a: np.repeat(a.astype(float), 2, axis=-1)[..., ::2],
}
MATRICES: dict[str, Callable[[Any], Any]] = {
    **ARRAYS,
    "columns": lambda a: np.asfortranarray(a.astype(float)),
    "blocks": lambda a: np.tile(a.astype(np.int64), 90),  # which are not converted as a whole
    "CSR": lambda a: scipy.sparse.csr_array(a.astype(float)),
    "CSR of integers": lambda a: scipy.sparse.csr_array(a.astype(np.int16)),
    "CSC": lambda a: scipy.sparse.csc_array(a.astype(float)),
    "CSC of integers": lambda a: scipy.sparse.csc_array(a.astype(np.int16)),
    "CSC, unsorted": lambda a: unsorted(scipy.sparse.csc_array(a.astype(float))),
}


def unsorted(matrix: Any) -> Any:
    for at, end in itertools.pairwise(matrix.indptr):
        matrix.indices[at:end] = matrix.indices[at:end][::-1].copy()
    matrix.has_sorted_indices = False
    return matrix


def changes(given: Any) -> Iterator[None]:
    """Change an array of zeros and ones, or a sparse matrix, in place, in several ways."""
    if isinstance(given, np.ndarray):
        for at in (np.s_[:], np.s_[: len(given) // 2]):
            given[at] = given[at][::-1].copy()
            yield
        return
    given.data *= 3
    yield
    with warnings.catch_warnings(action="ignore", category=scipy.sparse.SparseEfficiencyWarning):
        given[1, 2] = given[2, 0] = 5  # which may be new entries
    yield
    given.data[::2] = 0
    given.eliminate_zeros()
    yield
    given.sort_indices()
    given.data[:] = 1
    yield


def answers(objective: Any) -> list[Any]:
    theta, v = np.random.default_rng(3).normal(size=(2, objective.n_parameters)) / 4
    called = [objective.value(theta), *objective.value_and_grad(theta), objective.grad(theta)]
    return [*called, objective.hvp(theta, v), objective.initial(), objective.hvp(theta, v)]


def assert_same_answers(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one, other, strict=True):
        assert_same_bits(np.asarray(a), np.asarray(b))


def zeros_and_ones(loss: str, argument: str, kind: str) -> dict[str, Any]:
    """Return data of which one argument is of a kind, and which every loss takes."""
    rng = np.random.default_rng(7)
    data = {"X": rng.integers(0, 2, (60, 4)), "y": rng.integers(0, 2, 60)}
    data["sample_weight"], data["offset"] = rng.integers(0, 2, (2, 60))
    if loss == "softmax_cross_entropy":  # which what all classes have in common does not change
        data["offset"] = rng.integers(0, 2, (60, 2))
    else:
        data["y"] = data["y"].astype(float)
    return {**data, argument: MATRICES[kind](data[argument])}


LIVE = [
    (loss, argument, kind)
    for loss in ("relu_mse", "softmax_cross_entropy")
    for argument, kinds in (
        ("X", MATRICES),
        ("y", ARRAYS),
        ("sample_weight", ARRAYS),
        ("offset", ARRAYS),
    )
    for kind in kinds
    if argument != "y" or loss != "softmax_cross_entropy" or kind in {"int64", "int8", "bool"}
]


@backends
@each("loss,argument,kind", LIVE, label="-".join)
def test_each_call_reads_the_data_as_they_are(
    loss: str, argument: str, kind: str, primitives: Any
) -> None:
    f = getattr(primitives, loss)
    data = zeros_and_ones(loss, argument, kind)
    objective = pb.LinearObjective(loss=f, **data)
    w, b = objective.unpack(np.linspace(-1, 1, objective.n_parameters))
    seen = [answers(objective)]
    for _ in changes(data[argument]):
        now = copy.deepcopy(data)
        seen.append(answers(objective))
        assert_same_answers(seen[-1], answers(pb.LinearObjective(loss=f, **now)))
        assert_same_leaves(f.value_and_grad(**data, w=w, b=b), f.value_and_grad(**now, w=w, b=b))
        assert seen[-1][0] != seen[-2][0]
    assert len(seen) > 2


@backends
def test_chunks_are_read_as_they_are(primitives: Any) -> None:
    data = zeros_and_ones("logistic", "X", "int64")
    chunks = [(data["X"][i : i + 30], data["y"][i : i + 30].tolist()) for i in (0, 30)]
    objective = pb.LinearObjective(chunks, loss=primitives.logistic)
    before = answers(objective)
    data["X"] *= 2
    chunks[0][1][3] = 1 - chunks[0][1][3]
    now = answers(objective)
    assert now[0] != before[0]
    assert_same_answers(now, answers(pb.LinearObjective(chunks, loss=primitives.logistic)))


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda objective: pickle.loads(pickle.dumps(objective)),
}


@backends
@each("how", COPIES)
def test_copies_answer_for_themselves(how: str, primitives: Any) -> None:
    """What is listed is copied once; deep copies have data of their own."""
    for argument, kind in (
        ("X", "float64"),
        ("X", "CSR"),
        ("y", "int8"),
        ("sample_weight", "bool"),
        ("offset", "float64"),
    ):
        data = zeros_and_ones("relu_mse", argument, kind)
        objective = pb.LinearObjective(loss=primitives.relu_mse, **data)
        other = COPIES[how](objective)
        before = answers(objective)
        assert_same_answers(answers(other), before)
        other.hvp(np.ones(5), np.ones(5))
        assert_same_answers(answers(objective), before)
        next(changes(data[argument]))
        now = answers(objective)
        assert now[0] != before[0]
        assert_same_answers(answers(other), now if how == "copy" else before)
    labels = np.array([0, 1, 2, 1])
    objective = pb.LinearObjective(np.eye(4), labels, primitives.softmax_cross_entropy)
    labels[labels == 2] = 0
    assert_same_answers(answers(COPIES[how](objective)), answers(objective))
    listed = {name: given.tolist() for name, given in zeros_and_ones("hinge", "y", "int8").items()}
    listed["y"] = [2 * label - 1 for label in listed["y"]]
    objective = pb.LinearObjective(loss=primitives.hinge, **listed)
    before = answers(objective)
    for given in listed.values():
        given[:] = given[::-1]
    listed["X"][0][0] = 9
    assert_same_answers(answers(objective), before)
    assert_same_answers(answers(COPIES[how](objective)), before)


@backends
def test_threads_share_an_objective(primitives: Any) -> None:
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(4000, 6)), rng.integers(0, 2, 4000)
    thetas = rng.normal(size=(8, 7))
    for data in ((X, y), ([(X[:9], y[:9]), (X[9:], y[9:])], None)):
        objective = pb.LinearObjective(*data, primitives.logistic)

        def ask(theta: Any, of: Any = objective) -> Any:
            return of.value(theta), of.grad(theta), of.hvp(theta, theta)

        wanted = [*map(ask, thetas)]
        with ThreadPoolExecutor(4) as pool:
            for got in (pool.map(ask, thetas) for _ in range(3)):
                for one, other in zip(got, wanted, strict=True):
                    assert_same_leaves(one, other)


@backends
@cases
def test_samples_of_weight_0(case: Case, primitives: Any) -> None:
    """Add nothing, in one array or in chunks; a chunk may be of such samples alone."""
    m = model(case, 30, 4, np.float64)
    weights = m.sample_weight.copy()
    weights[::4] = weights[5:10] = 0
    X, y = m.X.copy(), m.y.copy()
    X[::4, 1], X[7] = math.nan, math.inf
    y[weights == 0] = -1 if case.labels else math.nan
    parts = [slice(0, 5), slice(5, 10), slice(10, 30)]
    chunks = [(X[rows], y[rows], weights[rows]) for rows in parts]
    theta = theta_of(m.w, m.b)
    loss, k = case.of(primitives), 3 if case.coupled else None
    right = exact(case, m.X, m.y, m.w, m.b, weights, m.v)
    right = divided(right, 30, weights, "mean")
    for objective in (
        pb.LinearObjective(X, y, loss, sample_weight=weights, n_outputs=k),
        pb.LinearObjective(chunks, loss=loss, n_outputs=k),
    ):
        value, gradient = objective.value_and_grad(theta)
        product = objective.hvp(theta, theta_of(*m.v))
        assert_within(value, right.value)
        assert_within(objective.value(theta), right.value)
        for actual, gw, gb in (
            (gradient, right.gw, right.gb),
            (objective.grad(theta), right.gw, right.gb),
            (product, right.hw, right.hb),
        ):
            assert_within(actual[: m.w.size], gw)
            assert_within(actual[m.w.size :], gb)
        assert np.isfinite(objective.initial()).all()


@backends
@each("exponent", [-1074, -600, 600, 1022])
def test_weights_of_any_scale(exponent: int, primitives: Any) -> None:
    """A common factor does not change a mean, even where sums or products leave the range."""
    m = model(LOGISTIC, 30, 4, np.float64)
    theta, weights = theta_of(m.w, m.b), np.arange(30) % 4 * 1.0

    def results(weights: np.ndarray) -> tuple[Any, ...]:
        objective = pb.LinearObjective(m.X, m.y, primitives.logistic, 0.5, weights)
        return (*objective.value_and_grad(theta), objective.hvp(theta, theta))

    assert_same_leaves(results(weights * 2.0**exponent), results(weights))


def test_weights_and_targets_that_are_no_longer_valid() -> None:
    data = zeros_and_ones("logistic", "y", "float64")
    for primitives in TWINS:
        data["sample_weight"] = np.ones(60)
        objective = pb.LinearObjective(loss=primitives.logistic, **data)
        theta = np.ones(5)
        for argument, value, message in (
            ("sample_weight", -1.0, r"sample_weight\[7\] is -1\.0"),
            ("sample_weight", math.nan, r"sample_weight\[7\] is nan"),
            ("y", 2.0, r"y\[7\] is 2\.0"),
        ):
            kept, data[argument][7] = data[argument][7], value
            for call in (objective.value, objective.grad, lambda t, o=objective: o.hvp(t, t)):
                with pytest.raises(ValueError, match=rf"^LinearObjective\.\w+: {message}"):
                    call(theta)
            data[argument][7] = kept
        data["sample_weight"][:] = 0
        with pytest.raises(ValueError, match="sample_weight sums to 0"):
            objective.value(theta)


@pytest.mark.native
@each("n", [1, 7, 8, 9, 100, 128, 129, 1000, 4097, 20_001])
def test_weights_add_up_as_numpys(n: int) -> None:
    rng = np.random.default_rng(n)
    X, y, weights = rng.normal(size=(n, 1)), rng.normal(size=n), rng.uniform(0, 3, n)
    loss, w = pb.squared_error, np.ones(1)
    sums = loss.partial(X, y, w, sample_weight=weights)
    assert sums.weight == weights.sum()
    curvature = loss.curvature(X, y, w, sample_weight=weights)
    assert_same_bits(curvature, 2 * (weights / weights.sum()))
    objective = pb.LinearObjective(X, y, loss, sample_weight=weights, fit_intercept=False)
    assert objective.value(w) == sums.loss / weights.sum()


@pytest.mark.parametrize("bad", [np.ones(5), np.ones(7), np.ones((6, 1, 1)), 1.0, []], ids=np.shape)
def test_theta_of_another_shape(bad: Any) -> None:
    m = model(LOGISTIC, 30, 5, np.float64)
    objective = pb.LinearObjective(m.X, m.y, pb.logistic)
    good = np.ones(6)
    for method, call in (
        ("value", lambda: objective.value(bad)),
        ("grad", lambda: objective.grad(bad)),
        ("value_and_grad", lambda: objective.value_and_grad(bad)),
        ("hvp", lambda: objective.hvp(bad, good)),
        ("hvp", lambda: objective.hvp(good, bad)),
        ("unpack", lambda: objective.unpack(bad)),
        ("predict", lambda: objective.predict(m.X, bad)),
    ):
        with pytest.raises(ValueError, match=rf"LinearObjective\.{method}: .*(theta|v).*\(6,\)"):
            call()
    with pytest.raises(TypeError, match="theta"):
        objective.value(good * 1j)


# --- parameters -----------------------------------------------------------------------------------


def test_unpack_and_initial() -> None:
    m = model(LOGISTIC, 30, 5, np.float64)
    for intercept in (True, False):
        objective = pb.LinearObjective(m.X, m.y, pb.logistic, fit_intercept=intercept)
        assert objective.n_parameters == 5 + intercept
        assert_same_bits(objective.initial(), np.zeros(5 + intercept))
        theta = np.arange(5.0 + intercept)
        w, b = objective.unpack(theta)
        assert_same_bits(np.asarray(w), theta[:5])
        assert (b is None) == (not intercept)
        if intercept:
            assert float(b) == 5
            pb.logistic.value(m.X, m.y, w, b)
    several = model(LABELS, 30, 5, np.float64, 4)
    objective = pb.LinearObjective(several.X, several.y, pb.softmax_cross_entropy, n_outputs=4)
    theta = np.arange(24.0)
    w, b = objective.unpack(theta)
    assert_same_bits(np.asarray(w), theta[:20].reshape(5, 4))
    assert_same_bits(np.asarray(b), theta[20:])


def test_a_set_that_lacks_the_last_classes() -> None:
    """Its labels tell of fewer outputs than the parameters of another set have."""
    X, y = np.eye(4), np.array([0, 1, 2, 3])
    theta = pb.LinearObjective(X, y, pb.softmax_cross_entropy).initial()
    for primitives in TWINS:
        for few in ((X[:3], y[:3]), ([(X[:3], y[:3])], None)):
            validation = pb.LinearObjective(*few, primitives.softmax_cross_entropy)
            message = r"theta has shape \(20,\), needs \(15,\); .* 3 classes, give n_outputs="
            for call in (validation.value, validation.grad, validation.unpack):
                with pytest.raises(ValueError, match=message):
                    call(theta)
            with pytest.raises(ValueError, match=r"\(20,\), needs \(15,\); .*n_outputs"):
                validation.predict(X, theta)
            given = pb.LinearObjective(*few, primitives.softmax_cross_entropy, n_outputs=4)
            assert given.value(theta) == pytest.approx(math.log(4))
            with pytest.raises(ValueError, match=r"needs \(20,\)$"):
                given.value(theta[1:])


def test_number_of_outputs() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    labels = rng.integers(0, 4, 40)
    labels[7] = 4
    softmax = pb.softmax_cross_entropy
    for y, n_outputs, loss, size in (
        (labels, None, softmax, 20),  # the largest label and one more
        (labels, 9, softmax, 36),
        (rng.dirichlet(np.ones(6), 40), None, softmax, 24),
        (rng.normal(size=(40, 2)), None, pb.squared_error, 8),
        (rng.normal(size=(40, 1)), None, pb.squared_error, 4),
        (rng.normal(size=40), None, pb.squared_error, 4),
    ):
        objective = pb.LinearObjective(X, y, loss, n_outputs=n_outputs)
        assert objective.n_parameters == size
        assert np.isfinite(objective.value(objective.initial()))
    for y, n_outputs, loss in (
        (labels, 4, softmax),
        (labels, 0, softmax),
        (rng.normal(size=(40, 2)), 3, pb.squared_error),
        (np.zeros(40, int), 1, softmax),
    ):
        with pytest.raises(ValueError, match="n_outputs|y|label|K"):
            at_zero(X, y, loss, n_outputs=n_outputs)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, -math.inf])
def test_penalties_out_of_range(bad: float) -> None:
    m = model(LOGISTIC, 30, 5, np.float64)
    with pytest.raises(ValueError, match=r"LinearObjective: l2"):
        pb.LinearObjective(m.X, m.y, pb.logistic, bad)


D, K = 3, 2
NOT_PENALTIES: dict[str, tuple[Any, type[Exception], str]] = {
    "a negative number": ([1, 0, -2.0], ValueError, r"l2\[2\] is -2.0, needs to be finite and not"),
    "NaN": ([[1, 2], [0, 1], [math.nan, 1]], ValueError, r"l2\[2, 0\] is nan"),
    "another shape": ([1.0, 2], ValueError, r"l2 has shape \(2,\), needs \(\), \(3,\), \(3, 2\), "),
    "three axes": (np.ones((1, 1, 1)), ValueError, r"l2 has shape \(1, 1, 1\), needs"),
    "no symmetry": (
        np.eye(D) + np.eye(D, k=2),
        ValueError,
        r"l2\[0, 2\] is 1.0 and l2\[2, 0\] is 0.0; a matrix needs to be symmetric",
    ),
    "an eigenvalue": (np.eye(D) - 0.5, ValueError, r"l2 has the eigenvalue -0.5; a matrix needs"),
    "a small one": (np.eye(D) - 0.34, ValueError, r"l2 has the eigenvalue -0.02; a matrix needs"),
    "a large one": (1e300 * (np.eye(D * K) - 0.5), ValueError, r"the eigenvalue -2e\+300"),
    "inf": (np.diag([1, np.inf, 1]), ValueError, r"l2\[1, 1\] is inf, needs to be finite$"),
    "complex": (np.ones(D) * 1j, TypeError, r"l2"),
    "a string": ("1", TypeError, r"l2 must be a number, not '1'"),
}


@backends
@each("name", NOT_PENALTIES)
def test_what_is_no_penalty(name: str, primitives: Any) -> None:
    l2, error, message = NOT_PENALTIES[name]
    m = model(LOGISTIC, 30, D, np.float64, K)
    with pytest.raises(error, match=f"^LinearObjective: .*{message}"):
        pb.LinearObjective(m.X, m.y, primitives.logistic, l2)


def test_a_penalty_that_may_be_two_things() -> None:
    m = model(LOGISTIC, 30, 3, np.float64, 3)
    with pytest.raises(ValueError, match=r"l2 has shape \(3, 3\), .* ambiguous.* \(9, 9\)"):
        pb.LinearObjective(m.X, m.y, pb.logistic, np.eye(3))
    pb.LinearObjective(m.X, m.y, pb.logistic, np.eye(9))


def test_arguments_are_checked_at_once() -> None:
    m = model(LOGISTIC, 30, 5, np.float64)
    for arguments, error, message in (
        ((m.X, m.y[:-1], pb.logistic), ValueError, r"y has shape \(29,\)"),
        ((m.X[:, 0], m.y, pb.logistic), ValueError, r"X has shape \(30,\)"),
        ((m.X * 1j, m.y, pb.logistic), TypeError, r"X"),
        ((m.X, m.y, "logit"), ValueError, r"loss"),
        ((m.X, m.y, None), TypeError, r"loss"),
        ((m.X, m.y, pb.logistic, "1"), TypeError, r"l2"),
        ((m.X, m.y, pb.logistic, 0.0, np.ones(29)), ValueError, r"sample_weight"),
        ((m.X, None, pb.logistic), (TypeError, ValueError), r"y"),
    ):
        with pytest.raises(error, match=message):
            at_zero(*arguments)
    for offset in (np.ones(29), m.X, 1.0):
        with pytest.raises(ValueError, match=r"LinearObjective: offset has shape"):
            pb.LinearObjective(m.X, m.y, pb.logistic, offset=offset)


def test_there_is_no_default_loss() -> None:
    m = model(RECTIFIED, 30, 5, np.float64)
    with pytest.raises(TypeError, match=r"loss is missing; .*pb\.squared_error, pb\.relu_mse"):
        pb.LinearObjective(m.X, m.y)
    with pytest.raises(TypeError, match="loss is missing"):
        pb.LinearObjective([(m.X, m.y)])


def test_a_loss_by_name() -> None:
    X, theta = np.array([[0.5, -1.0], [1.0, 0.25], [0.0, 2.0]]), np.array([0.25, -0.5, 0.125])
    for name, row in LOSSES.items():
        y = row.draw(np.random.default_rng(0), np.zeros((3, 3) if row.of_classes else 3))
        shape = {"n_outputs": 3} if row.of_classes else {}
        at = np.resize(theta, 9) if row.of_classes else theta
        by_name, by_loss = (
            pb.LinearObjective(X, y, loss, **shape) for loss in (name, getattr(pb.losses, name))
        )
        assert repr(by_name) == repr(by_loss)
        assert_same_leaves(by_name.value_and_grad(at), by_loss.value_and_grad(at))
        assert repr(pickle.loads(pickle.dumps(by_name))) == repr(by_loss)
        assert repr(pb.LinearObjective([(X, y)], loss=name, **shape)).startswith("<LinearObjective")


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("poison", ValueError, r"is 'poison'; there are squared_.*; did you mean pb\.poisson\?$"),
        ("twedie", ValueError, r"is 'twedie'; .*; did you mean pb\.losses\.tweedie\?$"),
        ("mse", ValueError, r"is 'mse'; there are .*; use pb\.squared_error$"),
        ("zzzzz", ValueError, "is 'zzzzz'; there are .*, softmax_cross_entropy$"),
        (pb.tanh, TypeError, "must be a name or a loss, not .*tanh.*; there are squared_error"),
        (2, TypeError, "must be a name or a loss, not 2; there are"),
    ],
)
def test_what_is_no_loss(loss: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^LinearObjective: loss {message}"):
        pb.LinearObjective(np.ones((2, 2)), np.ones(2), loss)


@backends
def test_what_is_no_number_propagates(primitives: Any) -> None:
    X, y = np.array([[1.0, 2.0], [np.nan, 1.0]]), np.array([0.0, 1.0])
    theta = np.array([0.5, -0.5, 0.25])
    objective = pb.LinearObjective(X, y, primitives.logistic)
    assert np.isnan(objective.value(theta))
    assert np.isnan(objective.grad(theta)).all()
    without = pb.LinearObjective(X, y, primitives.logistic, sample_weight=[1.0, 0.0])
    alone = pb.LinearObjective(X[:1], y[:1], primitives.logistic)
    assert without.value(theta) == alone.value(theta)


def test_flat_at_zero_is_what_the_rows_say() -> None:
    for row in LOSSES.values():
        if row.of_classes:
            assert not row.flat_at_zero
            continue
        z = np.zeros(50)
        y = row.draw(np.random.default_rng(0), z)
        parameter = 0.0 if row.parameter is None else row.parameter.default
        assert row.flat_at_zero == (not row.derivative(z, y, parameter).any())


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0, 1e3])
@pytest.mark.parametrize("seed", range(5))
def test_a_rectified_model_starts_off_its_flat_side(
    seed: int, shift: float, fit_intercept: bool
) -> None:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((200, 4)) * [1.0, 10.0, 0.1, 1.0]
    y = np.maximum(X @ rng.standard_normal(4) + shift, 0) + 0.1 * rng.standard_normal(200)
    chunks = [(X[:90], y[:90]), (X[90:], y[90:])]
    for loss in (pb.relu_mse, pb.reference.relu_mse):
        objective = pb.LinearObjective(X, y, loss, fit_intercept=fit_intercept)
        start = objective.initial()
        zeros = np.zeros_like(start)
        assert not objective.grad(zeros).any()
        assert objective.grad(start).any()
        assert objective.value(start) < objective.value(zeros)
        again = objective.initial()
        assert again is not start
        assert_same_bits(again, start)
        parts = pb.LinearObjective(chunks, None, loss, fit_intercept=fit_intercept)
        np.testing.assert_allclose(parts.initial(), start, rtol=1e-10)


def test_a_rectified_model_without_positive_targets_starts_at_zeros() -> None:
    objective = pb.LinearObjective(np.ones((3, 2)), [-1.0, 0.0, -2.0], pb.relu_mse)
    assert_same_bits(objective.initial(), np.zeros(3))


def test_repr_says_what_it_is_of() -> None:
    X, y = np.ones((4, 2)), np.zeros(4)
    told = repr(pb.LinearObjective(X, y, pb.huber(2.0), l2=0.5))
    for text in ("'huber', delta=2.0", "float64 rows", "N=4", "D=2", "l2=0.5", "3 parameters"):
        assert text in told
    assert "float32 columns" in repr(pb.LinearObjective(np.asfortranarray(X, "f4"), y, pb.logistic))
    assert "in chunks (N=not yet known, D=2)" in repr(
        pb.LinearObjective([(X, y)], None, pb.logistic, fit_intercept=False)
    )


@cases
def test_data_is_neither_copied_nor_written(case: Case) -> None:
    m = model(case, 30, 5, np.float64, 3 if case.coupled else None)
    data = m.X.copy(), m.y.copy(), m.sample_weight.copy()
    objective = pb.LinearObjective(data[0], data[1], case.of(), 0.1, data[2])
    theta = theta_of(m.w, m.b)
    objective.value_and_grad(theta)
    objective.hvp(theta, theta)
    objective.predict(data[0], theta)
    for given, before in zip(data, (m.X, m.y, m.sample_weight), strict=True):
        assert_same_bits(given, before)


# --- predictions ----------------------------------------------------------------------------------


@cases
def test_predict(case: Case) -> None:
    """The mean response: max(0, z), sigmoid, exp, softmax; z itself for the rest."""
    for k in (None, 3):
        k = 3 if case.coupled else k
        m = model(case, 40, 5, np.float64, k)
        objective = pb.LinearObjective(m.X, m.y, case.of())
        new = np.random.default_rng(3).normal(size=(700, 5))
        theta = theta_of(m.w, m.b)
        z = new.astype(np.longdouble) @ m.w.astype(np.longdouble) + np.asarray(m.b)
        if case.coupled:
            e = np.exp(z - z.max(axis=1, keepdims=True))
            wanted = e / e.sum(axis=1, keepdims=True)
        else:
            wanted = case.formula.mean(ARRAY, z)
        for X in (
            new,
            np.asfortranarray(new),
            new[::-1].copy()[::-1],
            scipy.sparse.csr_array(new),
            scipy.sparse.csc_array(new),
            new.tolist(),
        ):
            actual = objective.predict(X, theta)
            assert actual.shape == ((700,) if k is None else (700, 3))
            assert actual.dtype == np.float64
            np.testing.assert_allclose(actual, wanted.astype(float), rtol=1e-13, atol=1e-14)
        by_row = objective.predict(new, theta - theta_of(m.w, 0 * m.b), np.full(700, 0.5))
        np.testing.assert_allclose(by_row, objective.predict(0 * new, theta + 0.5), rtol=1e-13)
        by_output = objective.predict(0 * new, 0 * theta, z.astype(float))
        np.testing.assert_allclose(by_output, wanted.astype(float), rtol=1e-13, atol=1e-14)
        for wrong in (new, new[1:, 0], 1.0):
            with pytest.raises(ValueError, match=r"LinearObjective\.predict: offset has shape"):
                objective.predict(new, theta, wrong)
        assert objective.predict(new[:0], theta).shape == ((0,) if k is None else (0, 3))
        with pytest.raises(ValueError, match=r"LinearObjective\.predict: X has shape \(9, 4\)"):
            objective.predict(np.ones((9, 4)), theta)
        if k is None:
            without = pb.LinearObjective(m.X, m.y, case.of(), fit_intercept=False)
            shifted = np.zeros((2, 5))
            response = case.formula.mean(ARRAY, np.zeros(2, np.longdouble))
            response = response.astype(float)
            np.testing.assert_allclose(without.predict(shifted, theta[:5]), response, rtol=2**-52)


def test_predictions_in_the_tails() -> None:
    X = np.array([[-800.0], [-40.0], [0.0], [40.0], [800.0]])
    y = np.array([0.0, 1, 0, 1, 0])
    objective = pb.LinearObjective(X, y, pb.logistic, fit_intercept=False)
    with np.errstate(all="raise"):
        p = objective.predict(X, np.ones(1))
    np.testing.assert_allclose(p, [0, math.exp(-40), 0.5, 1, 1], rtol=1e-14)


# --- layouts and chunks ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", [LOGISTIC, RECTIFIED, LABELS], ids=by_id)
def test_layouts(case: Case) -> None:
    k = 3 if case.coupled else None
    m = model(case, 600, 9, np.float64, k)
    thin = np.where(np.abs(m.X) > 0.6, m.X, 0)
    theta = theta_of(m.w, m.b)
    for X, dense in (
        (np.asfortranarray(m.X), m.X),
        (m.X[::-1].copy()[::-1], m.X),
        (m.X.astype(np.float32), m.X.astype(np.float32)),
        (m.X.astype(">f8"), m.X),
        (scipy.sparse.csr_array(thin), thin),
        (scipy.sparse.csc_array(thin), thin),
        ((8 * m.X).astype(np.int8), (8 * m.X).astype(np.int8)),
        (m.X.tolist(), m.X),
    ):
        objective = pb.LinearObjective(X, m.y, case.of(), 0.25, m.sample_weight)
        judge(objective, case, dense, m.y, theta, k, l2=0.25, sample_weight=m.sample_weight)


SPLITS: dict[str, list[int]] = {
    "one": [0, 600],
    "equal": [0, 200, 400, 600],
    "ragged": [0, 1, 2, 40, 511, 513, 600],
}


@cases
@each("weighted", [False, True])
@each("split", SPLITS)
def test_chunks_equal_the_whole(case: Case, split: str, weighted: bool) -> None:
    k = 3 if case.coupled else None
    m = model(case, 600, 7, np.float64, k)
    weights = m.sample_weight if weighted else None
    columns = (m.X, m.y, weights) if weighted else (m.X, m.y)
    chunks = [tuple(a[i:j] for a in columns) for i, j in itertools.pairwise(SPLITS[split])]
    offset = None
    if split == "ragged":
        offset, ends = (
            m.X[:, 0] if weighted else np.resize(m.X, m.y.shape),
            itertools.pairwise(SPLITS[split]),
        )
        chunks = [
            (*(*chunk, None)[:3], offset[i:j]) for chunk, (i, j) in zip(chunks, ends, strict=True)
        ]
    theta = theta_of(m.w, m.b)
    for source in (chunks, tuple(chunks), lambda: iter(chunks), lambda: (c for c in chunks)):
        objective = pb.LinearObjective(source, loss=case.of(), l2=0.5, n_outputs=k)
        options = {"l2": 0.5, "sample_weight": weights, "offset": offset}
        judge(objective, case, m.X, m.y, theta, k, **options)
        judge(objective, case, m.X, m.y, theta + 0.125, k, **options)


def test_chunks_of_different_layouts() -> None:
    m = model(LOGISTIC, 600, 7, np.float64)
    kinds: list[Callable[[Any], Any]] = [
        np.asarray,
        np.asfortranarray,
        scipy.sparse.csr_array,
        scipy.sparse.csc_array,
    ]
    chunks = [
        (kinds[i % 4](m.X[i * 75 : i * 75 + 75]), m.y[i * 75 : i * 75 + 75]) for i in range(8)
    ]
    objective = pb.LinearObjective(chunks, loss=pb.logistic)
    judge(objective, LOGISTIC, m.X, m.y, theta_of(m.w, m.b), None)


def test_outputs_from_chunks_of_labels() -> None:
    """Without n_outputs, the largest label of all chunks counts, wherever it is."""
    m = model(LABELS, 90, 4, np.float64, 3)
    y = np.sort(m.y)
    assert y[29] < 2
    chunks = [(m.X[i : i + 30], y[i : i + 30]) for i in (0, 30, 60)]
    objective = pb.LinearObjective(chunks, loss=pb.softmax_cross_entropy)
    assert objective.n_parameters == 15
    judge(objective, LABELS, m.X, y, theta_of(m.w, m.b), 3)


@pytest.mark.parametrize("method", METHODS)
def test_optimizing_over_chunks(method: str) -> None:
    X, y = problem(LOGISTIC, None)
    chunks = [(X[i : i + 90], y[i : i + 90]) for i in range(0, 400, 90)]
    found = []
    for objective in (
        pb.LinearObjective(X, y, pb.logistic, 0.01),
        pb.LinearObjective(lambda: iter(chunks), None, pb.logistic, 0.01),
    ):
        second = {"hessp": objective.hvp} if method in {"trust-ncg", "Newton-CG"} else {}
        found.append(
            scipy.optimize.minimize(
                objective.value_and_grad, objective.initial(), jac=True, method=method, **second
            ).x
        )
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_one_shot_iterators_are_refused() -> None:
    m = model(LOGISTIC, 30, 5, np.float64)
    chunks = [(m.X, m.y)]
    for source in (
        iter(chunks),
        (c for c in chunks),
        map(tuple, chunks),
        zip([m.X], [m.y], strict=True),
    ):
        with pytest.raises((TypeError, ValueError), match=r"LinearObjective: .*(iterator|once)"):
            pb.LinearObjective(source, loss=pb.logistic)


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_pass_gives_as_many_samples_as_the_first(chunks: int) -> None:
    m, count = model(LOGISTIC, 30, 5, np.float64), 2
    objective = pb.LinearObjective(lambda: iter([(m.X, m.y)] * count), loss=pb.logistic)
    objective.value(objective.initial())
    count = chunks
    with pytest.raises(ValueError, match=rf"gave {30 * chunks} samples, an earlier one 60"):
        objective.value(objective.initial())


def test_wrong_chunks() -> None:
    m = model(LOGISTIC, 30, 5, np.float64)
    good = m.X, m.y
    bad_y = m.y.copy()
    bad_y[4] = 2
    for source, error, message in (
        ([], ValueError, r"no|empty|chunk"),
        ([good, (m.X[:, :4], m.y)], ValueError, r"\(30, 4\)"),
        ([good, (m.X, m.y[:-1])], ValueError, r"y has shape \(29,\)"),
        ([good, (m.X, m.y, -1 - m.sample_weight)], ValueError, r"sample_weight\[0\]"),
        ([good, (m.X, bad_y)], ValueError, r"y\[4\] is 2"),
        ([(m.X,)], (TypeError, ValueError), r"chunk|\(X, y"),
        ([(m.X, m.y, None, None, None)], (TypeError, ValueError), r"chunk|\(X, y"),
        ([good, (m.X, m.y, None, m.y[1:])], ValueError, r"chunk 1: offset has shape \(29,\)"),
        ([good, (m.X, m.y, None, m.X)], ValueError, r"chunk 1: offset has shape \(30, 5\)"),
        ([3.5], (TypeError, ValueError), r"chunk|\(X, y"),
    ):
        with pytest.raises(error, match=message):
            at_zero(source, loss=pb.logistic)
    with pytest.raises((TypeError, ValueError), match=r"sample_weight"):
        pb.LinearObjective([good], None, pb.logistic, 0.0, np.ones(30))
    with pytest.raises(TypeError, match=r"offset of chunks is part of them"):
        pb.LinearObjective([good], None, pb.logistic, offset=np.ones(30))
    with pytest.raises((TypeError, ValueError), match=r"LinearObjective: .*\b[Xy]\b"):
        pb.LinearObjective(lambda: iter([good]), m.y, pb.logistic)


def test_progress(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    m = model(LOGISTIC, 600, 5, np.float64)
    chunks = [(m.X[i : i + 60], m.y[i : i + 60]) for i in range(0, 600, 60)]
    theta = theta_of(m.w, m.b)
    wanted = pb.LinearObjective(chunks, loss=pb.logistic).value_and_grad(theta)
    assert capfd.readouterr().err == ""
    shown = pb.LinearObjective(chunks, loss=pb.logistic, progress=True)
    capfd.readouterr()
    value, gradient = shown.value_and_grad(theta)
    bar = capfd.readouterr()
    assert bar.out == ""
    assert "logistic, pass 1: 600 samples" in bar.err  # whose total is not known yet
    assert value == wanted[0]
    assert_same_bits(gradient, wanted[1])
    for k in range(2, 20):
        (shown.value if k % 2 else shown.grad)(theta)
    shown.hvp(theta, theta)
    bar = capfd.readouterr()
    for text in ("pass 2:   0%", "pass 19: 100%", "pass 20:   0%", "pass 20: 100%", " 600/600 "):
        assert text in bar.err
    assert re.search(rf"pass 20: .*\[\d+:\d+<\d+:\d+, .* samples/s, loss={value:.6g}\]", bar.err)
    assert bar.err.count("\n") == 0  # all on one line
    pb.LinearObjective(m.X, m.y, pb.logistic, progress=True).value(theta)
    assert "pass 1: 100%" in capfd.readouterr().err


def test_progress_without_tqdm(run_python: Callable[..., Any]) -> None:
    """tqdm is optional: it is imported only where it is asked for, and its lack says what to do."""
    script = (
        "import sys; sys.modules['tqdm'] = None; sys.modules['tqdm.auto'] = None\n"
        "import numpy as np, pullback as pb\n"
        "chunks = [(np.ones((3, 2)), np.ones(3))]\n"
        "pb.LinearObjective(chunks, loss=pb.logistic).value(np.zeros(3))\n"
        "try:\n"
        "    pb.LinearObjective(chunks, loss=pb.logistic, progress=True).value(np.zeros(3))\n"
        "except ImportError as error:\n"
        "    print('progress' in str(error), 'tqdm' in str(error))\n"
    )
    assert run_python(script).stdout.split() == ["True", "True"]


@pytest.mark.native
def test_same_bits_for_any_number_of_threads() -> None:
    m = model(LABELS, 30_003, 12, np.float64, 3)
    theta = theta_of(m.w, m.b)
    results = []
    for threads in (1, 2, 3, 8):
        with pb.threads(threads):
            objective = pb.LinearObjective(m.X, m.y, pb.softmax_cross_entropy, 0.5, m.sample_weight)
            value, gradient = objective.value_and_grad(theta)
            results.append([value, gradient, objective.hvp(theta, theta)])
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert_same_bits(np.asarray(one), np.asarray(other))

"""SciPy's optimisers and solvers take objectives and Jacobians, as docs/scipy.md tells."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pullback as pb
import pytest
from pullback.jacobians import Identity
from scipy import integrate, optimize, sparse
from scipy.optimize import _minimize, minimize
from scipy.sparse import linalg

# SciPy's trust-krylov multiplies what it has not set yet by 0.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value.* multiply:RuntimeWarning")

primitives = pytest.mark.parametrize("of", [pb, pb.reference], ids=["pullback", "reference"])


# --- the page -------------------------------------------------------------------------------------


@cache
def page() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the names that the page makes, and what each of its calls returns, by its text."""
    text = (Path(__file__).parents[1] / "docs" / "scipy.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    calls: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for statement in ast.parse(block).body:
            source = ast.unparse(statement)
            if isinstance(statement, ast.Expr):
                calls[source] = eval(source, names)
            else:
                exec(source, names)
    return names, calls


def calls_of(*functions: str) -> Iterator[tuple[str, Any]]:
    """Yield the page's calls of some functions, and what they returned; at least one."""
    found = [(s, r) for s, r in page()[1].items() if s.partition("(")[0] in functions]
    assert found
    yield from found


def test_minimize_finds_the_minimum() -> None:
    """Beside Newton's method in plain NumPy, and the conditions of Karush, Kuhn and Tucker."""
    names, _ = page()
    X, y, objective = np.column_stack([names["X"], np.ones(400)]), names["y"], names["objective"]
    penalty = 0.01 * np.diag([1.0, 1, 1, 1, 0])
    theta = np.zeros(5)
    for _ in range(10):
        mean = 1 / (1 + np.exp(-X @ theta))
        gradient = X.T @ (mean - y) / 400 + penalty @ theta
        hessian = (X.T * (mean * (1 - mean))) @ X / 400 + penalty
        theta = theta - np.linalg.solve(hessian, gradient)
    for source, found in calls_of("minimize"):
        assert found.success, source
        gradient = objective.grad(found.x)
        if "bounds" not in source:
            np.testing.assert_allclose(found.x, theta, atol=1e-5, err_msg=source)
            continue
        inside = found.x > 1e-4
        if "constraints" in source:
            assert found.x[:4].sum() == pytest.approx(1, abs=1e-9)
            gradient[:4] -= gradient[:4][inside[:4]].mean()  # less the multiplier's
        assert (found.x[:4] > -1e-9).all()
        np.testing.assert_allclose(gradient[inside | (np.arange(5) == 4)], 0, atol=1e-4)
        assert (gradient[~inside] > -1e-5).all()
        assert 0 < inside[:4].sum() < 4


def test_every_method_that_takes_a_gradient_is_on_the_page() -> None:
    without = {"nelder-mead", "powell", "cobyla", "cobyqa"}
    named = {re.findall(r"method='(.*?)'", source)[0].lower() for source, _ in calls_of("minimize")}
    assert named == set(_minimize.MINIMIZE_METHODS) - without


def test_residuals_vanish() -> None:
    for source, found in calls_of("least_squares", "root", "fsolve"):
        x = found if source.startswith("fsolve") else found.x
        np.testing.assert_allclose(x, [0.1, 0.2, 0.3], rtol=1e-6, err_msg=source)


def test_linear_systems_are_solved() -> None:
    names, _ = page()
    J, S = names["J"].todense(), names["S"].todense()
    least = np.linalg.lstsq(J, names["b"])[0]
    for source, found in calls_of("lsmr", "lsqr"):
        np.testing.assert_allclose(found[0], least, rtol=1e-10, err_msg=source)
    for source, (x, info) in calls_of("cg", "minres", "gmres"):
        assert info == 0, source
        np.testing.assert_allclose(x, np.linalg.solve(S, names["c"]), rtol=1e-10, err_msg=source)


# --- minimize, of other objectives ----------------------------------------------------------------

RNG = np.random.default_rng(1)
X = RNG.normal(size=(300, 3))
COUNTS, LABELS = RNG.poisson(np.exp(X[:, 0] / 2)), RNG.integers(0, 3, 300)
OBJECTIVES: dict[str, Callable[[], Any]] = {
    "CSR, weights": lambda: pb.LinearObjective(
        sparse.csr_array(np.where(X > 0, X, 0)), COUNTS, pb.poisson, 0.01, LABELS
    ),
    "chunks, offset": lambda: pb.LinearObjective(
        [(X[i::2], COUNTS[i::2], None, X[i::2, 0] / 2) for i in (0, 1)], loss=pb.poisson, l2=0.1
    ),
    "several outputs": lambda: pb.LinearObjective(
        X, LABELS, pb.softmax_cross_entropy, 0.1, fit_intercept=False
    ),
    "of the caller's own": lambda: pb.LinearObjective(
        X,
        X[:, 1] + RNG.normal(size=300),
        pb.pointwise_loss(
            lambda z, y: np.sqrt(1 + (z - y) ** 2),
            lambda z, y: (z - y) / np.sqrt(1 + (z - y) ** 2),
            lambda z, y: (1 + (z - y) ** 2) ** -1.5,
        ),
    ),
}


def methods() -> Iterator[tuple[str, Callable[[Any], dict[str, Any]]]]:
    """Yield each method on the page, and the options that it is called with there."""
    for source, _ in calls_of("minimize"):
        if "bounds" not in source:
            call = ast.parse(source, mode="eval").body
            assert isinstance(call, ast.Call)
            given = {k.arg: ast.unparse(k.value) for k in call.keywords}
            yield (
                given["method"],
                lambda objective, given=given: {
                    str(name): eval(text, {**page()[0], "objective": objective})
                    for name, text in given.items()
                },
            )


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_methods_agree(kind: str) -> None:
    objective = OBJECTIVES[kind]()
    start = objective.initial()
    for method, options in methods():
        found = minimize(objective.value_and_grad, start, **options(objective))
        assert np.abs(objective.grad(found.x)).max() < 1e-5, (method, found)
        assert found.fun < objective.value(start)


# --- Jacobians ------------------------------------------------------------------------------------


@primitives
@pytest.mark.parametrize("given", [lambda J: J, linalg.aslinearoperator])
def test_solvers_take_it(given: Callable[[Any], Any], of: Any) -> None:
    A = np.array([[2.0, 1, 0], [0, 3, 1], [1, 0, 4]])
    x, b = np.array([0.3, -0.2, 0.5]), np.array([1.0, -2.0, 0.5])
    J = pb.chain((of.matmul, A, pb.arg), of.tanh).jacobian(x)
    S = of.softmax.jacobian(x) + 2 * Identity((3,))  # symmetric, positive
    D = of.tanh.jacobian(np.linspace(1, 2, 6))
    solution = np.linalg.solve(J.todense(), b)
    np.testing.assert_allclose(linalg.lsmr(given(J), b, atol=1e-14, btol=1e-14)[0], solution)
    np.testing.assert_allclose(linalg.lsqr(given(J), b, atol=1e-14, btol=1e-14)[0], solution)
    np.testing.assert_allclose(linalg.gmres(given(J), b, rtol=1e-12)[0], solution)
    found, info = linalg.cg(given(S), b, rtol=1e-14)
    assert info == 0
    np.testing.assert_allclose(found, np.linalg.solve(S.todense(), b))
    sizes = sorted(D.diagonal())[-2:]
    np.testing.assert_allclose(linalg.svds(given(D), k=2)[1], sizes)
    np.testing.assert_allclose(linalg.eigsh(given(D), k=2)[0], sizes)


A = np.array([[2.0, 1, 0], [0, 3, 1], [1, 0, 4], [1, 1, 1]])
X0 = np.array([0.3, -0.2, 0.5])


def residuals(of: Any, rows: int) -> Any:
    """Return a chain of `rows` residuals, 0 at (0.1, 0.2, 0.3)."""
    M, root = A[:rows], np.array([0.1, 0.2, 0.3])
    return pb.chain((of.matmul, M, pb.arg), of.tanh, (of.subtract, pb.arg, np.tanh(M @ root)))


SOLVERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "trf": lambda f, g, J: optimize.least_squares(f, X0, jac=J).x,
    "bounds": lambda f, g, J: optimize.least_squares(f, X0, jac=J, bounds=(-1, 1)).x,
    "lsmr": lambda f, g, J: optimize.least_squares(f, X0, jac=J, tr_solver="lsmr").x,
    "dogbox": lambda f, g, J: optimize.least_squares(f, X0, jac=J, method="dogbox").x,
    "lm": lambda f, g, J: optimize.least_squares(f, X0, jac=J, method="lm").x,
    "sparse": lambda f, g, J: optimize.least_squares(f, X0, jac=lambda x: J(x).tosparse()).x,
    "operator": lambda f, g, J: (
        optimize.least_squares(f, X0, jac=lambda x: linalg.aslinearoperator(J(x))).x
    ),
    "leastsq": lambda f, g, J: optimize.leastsq(f, X0, Dfun=J)[0],
    "root": lambda f, g, J: optimize.root(g, X0, jac=lambda x: g.jacobian(x)).x,
    "root lm": lambda f, g, J: optimize.root(f, X0, jac=J, method="lm").x,
    "fsolve": lambda f, g, J: optimize.fsolve(g, X0, fprime=g.jacobian),
    "columns": lambda f, g, J: optimize.fsolve(
        g, X0, fprime=lambda x: g.jacobian(x).T, col_deriv=True
    ),
    **{
        name: lambda f, g, J, name=name: (
            optimize.minimize(
                lambda x: np.sum((x - 1) ** 2),
                X0,
                jac=lambda x: 2 * (x - 1),
                method=name,
                constraints=[
                    optimize.NonlinearConstraint(g, 0, 0, jac=g.jacobian, hess=optimize.BFGS())
                ],
            ).x
        )
        for name in ("trust-constr", "SLSQP")
    },
}


@primitives
@pytest.mark.parametrize("name", SOLVERS)
def test_optimizers_take_jacobian(name: str, of: Any) -> None:
    f, g = residuals(of, 4), residuals(of, 3)
    found = SOLVERS[name](f, g, f.jacobian)
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3], rtol=1e-5)


@primitives
def test_optimizers_take_a_primitive(of: Any) -> None:
    for jac in (of.tanh.jacobian, lambda x: of.tanh.jacobian(x)):
        result = optimize.least_squares(of.tanh, X0, jac=jac)
        assert result.success
        np.testing.assert_allclose(result.x, 0, atol=1e-8)


@primitives
def test_integrators_take_jacobian(of: Any) -> None:
    f = residuals(of, 3)
    ours, plain = (
        integrate.solve_ivp(lambda t, y: f(y), (0, 1), X0, method="BDF", jac=jac).y[:, -1]
        for jac in (lambda t, y: f.jacobian(y), lambda t, y: f.jacobian(y).todense())
    )
    np.testing.assert_array_equal(ours, plain)

"""Whole fits of linear models: tables, and who fits them, to one gradient norm."""

from __future__ import annotations

import ctypes
import gc
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pullback as pb
from pullback.bench.peers import Contender, optional

RELATIVE_GRADIENT = 1e-8  # of what it is with all parameters 0
CATEGORIES = (2, 5, 10, 25, 80, 200)  # of the columns that one-hot tables encode


class Table(NamedTuple):
    """What is fitted."""

    loss: str
    X: Any
    y: Any
    alpha: float

    @property
    def nbytes(self) -> int:
        """Bytes of X."""
        X = self.X
        parts = (X,) if isinstance(X, np.ndarray) else (X.data, X.indices, X.indptr)
        return sum(part.nbytes for part in parts)

    @property
    def objective(self) -> pb.LinearObjective:
        """What all of them minimise."""
        return pb.LinearObjective(self.X, self.y, getattr(pb, self.loss), self.alpha)

    @property
    def gtol(self) -> float:
        """The largest entry of the gradient to end at."""
        objective = self.objective
        start = objective.grad(np.zeros(objective.n_parameters))
        return float(RELATIVE_GRADIENT * np.abs(start).max())


def make(loss: str, kind: str, n_rows: int) -> Table:
    """Return a table of a kind."""
    rng = np.random.default_rng(0)
    alpha, n_classes = 1e-4, 10
    if kind == "one-hot":
        X = _one_hot(rng, n_rows)
    else:
        X = rng.normal(size=(n_rows, 50))
        if kind == "ill-conditioned":  # 1e8, of X^T X, and not along the axes
            X = X @ (
                np.geomspace(1, 1e-4, 50)[:, None] * np.linalg.qr(rng.normal(size=(50, 50)))[0]
            )
            alpha = 1e-10
    outputs = (n_classes,) if loss == "softmax_cross_entropy" else ()
    w = rng.normal(size=(X.shape[1], *outputs)) / 3
    z = X @ w
    z -= z.mean(axis=0)
    z *= 1 / z.std()
    return Table(loss, X, getattr(pb, loss).row.draw(rng, z - 0.5), alpha)


def _one_hot(rng: np.random.Generator, n_rows: int) -> Any:
    from scipy import sparse

    starts = np.cumsum((0, *CATEGORIES))
    drawn = [np.minimum(rng.geometric(min(0.5, 3 / n), n_rows) - 1, n - 1) for n in CATEGORIES]
    indices = (np.stack(drawn, axis=1) + starts[:-1]).astype(np.int32).ravel()
    indptr = np.arange(0, len(indices) + 1, len(CATEGORIES), dtype=np.int32)
    return sparse.csr_array((np.ones(len(indices)), indices, indptr), (n_rows, int(starts[-1])))


def fits(table: Table) -> Iterator[Contender]:
    """Yield who fits a table; a result is the estimator."""
    from pullback.interop.sklearn import LinearClassifier, LinearRegressor

    loss, X, y, alpha = table
    gtol, n = table.gtol, len(table.y)

    def fitted(estimator: Any) -> Callable[[], Any]:
        def call() -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of gradients that floating point ends above gtol
                return estimator.fit(X, y)

        return call

    def contender(library: str, way: str, estimator: Any) -> Contender:
        return Contender(library, way, fitted(estimator), lambda model: (value(table, model),))

    ours = LinearRegressor if loss == "poisson" else LinearClassifier
    # Its tolerance is relative to a model without features, whose gradient is less than that at 0.
    null = np.zeros(table.objective.n_parameters)
    if loss == "poisson":
        null[-1] = np.log(np.mean(y))
    elif loss == "logistic":
        null[-1] = np.log(np.mean(y) / (1 - np.mean(y)))
    else:
        null[-10:] = np.log(np.bincount(y))
    tol = gtol / np.abs(table.objective.grad(null)).max()
    yield contender("pullback", "", ours(loss, alpha=alpha, tol=tol))
    if optional("sklearn"):
        from sklearn.linear_model import LogisticRegression, PoissonRegressor

        for solver in ("lbfgs", "newton-cholesky", "newton-cg"):
            options = {"solver": solver, "tol": gtol, "max_iter": 1000}
            if loss != "poisson":
                yield contender(
                    "scikit-learn", solver, LogisticRegression(C=1 / alpha / n, **options)
                )
            elif solver != "newton-cg":
                yield contender("scikit-learn", solver, PoissonRegressor(alpha=alpha, **options))
    family = {"poisson": "poisson", "logistic": "binomial"}.get(loss)
    if family and optional("glum"):
        from glum import GeneralizedLinearRegressor

        for solver in ("irls-ls", "lbfgs"):
            options = {"alpha": alpha, "l1_ratio": 0, "gradient_tol": gtol, "max_iter": 1000}
            model = GeneralizedLinearRegressor(family=family, solver=solver, **options)
            yield contender("glum", solver, model)


def parameters(table: Table, model: Any) -> Any:
    """Return an estimator's parameters as an objective's."""
    w = np.atleast_2d(model.coef_).T
    return np.concatenate([w.ravel(), np.atleast_1d(model.intercept_)])


def value(table: Table, model: Any) -> Any:
    """Return the objective at an estimator's parameters."""
    return np.array([table.objective.value(parameters(table, model))])


def gradient(table: Table, model: Any) -> float:
    """Return the largest entry of the gradient, as a share of what is asked for."""
    return float(np.abs(table.objective.grad(parameters(table, model))).max() / table.gtol)


def peak_memory(call: Callable[[], Any]) -> tuple[int | None, Any]:
    """Return by how many bytes a call raises this process's memory at most, and its result."""
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None, call()
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5", encoding="ascii")
    before = _status("VmRSS")
    result = call()
    return _status("VmHWM") - before, result


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer, as soon as it comes back to Python."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again and again: some code drops errors
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

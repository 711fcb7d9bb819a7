"""Three likelihoods made of pullback's primitives, fitted by Newton's method.

- Cox's partial likelihood of survival times. The sum over who is still at risk is a logcumsumexp
  from the end.
- An ordinal logit: ratings with cut points between them. No difference of probabilities cancels.
- The marginal likelihood of a Gaussian process. It ends in a primitive of this file, which shows
  what a primitive of one's own needs for second order.

Each is a `pullback.chain`. The gradient and the Hessian-vector product are compared with
differences by `pullback.check_grad`. Then the parameters are fitted with the exact Hessian. The
output shows the estimates with standard errors; the exit code is 1 if a check fails.

Run it with ``python examples/likelihoods.py``.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pullback as pb
from numpy.typing import NDArray

Array = NDArray[np.float64]

RNG = np.random.default_rng(0)


# --- Cox's partial likelihood ---------------------------------------------------------------------


def cox(X: Array, events: Array) -> Any:
    """Return the negative log partial likelihood of the coefficients.

    The rows of X are in the order of their times, and the events are 1 for those whose time is that
    of an event, and 0 for those who left before.
    """
    score = pb.chain((pb.matmul, X, pb.arg))
    at_risk = pb.chain(score, (pb.logcumsumexp, pb.arg, {"reverse": True}))
    return pb.chain(at_risk - score, (pb.dot, pb.arg, events))


def cox_data(n: int = 400) -> tuple[Any, Array, Array]:
    """Return the likelihood of simulated survival times, a start, and the true coefficients."""
    truth = np.array([0.8, -0.5, 0.0])
    X = RNG.standard_normal((n, len(truth)))
    times = RNG.exponential(np.exp(-X @ truth))
    censored = RNG.exponential(2.0, n)
    order = np.argsort(np.minimum(times, censored))
    events = (times <= censored).astype(float)
    return cox(X[order], events[order]), np.zeros(3), truth


# --- an ordinal logit -----------------------------------------------------------------------------


def ordinal_logit(X: Array, y: NDArray[np.int64], n_classes: int) -> Any:
    """Return the negative log likelihood of slopes and cut points.

    A rating is at most k with probability sigmoid(cut[k] - score). That of exactly k is a
    difference, whose logarithm is log_sigmoid(b) + log_sigmoid(-a) + log(1 - exp(a - b)), where b
    and a are the arguments at its upper and its lower cut.
    """
    score = pb.chain((pb.matmul, X, pb.arg[0]))
    last = n_classes - 1

    def argument(which: NDArray[np.int64], inside: Any, beyond: float) -> Any:
        cut = pb.chain((pb.take, pb.arg[1], np.clip(which, 0, last - 1)))
        return pb.chain((pb.where, inside, cut - score, beyond))

    b = argument(y, y < last, np.inf)
    a = argument(y - 1, y > 0, -np.inf)
    log_likelihood = (
        pb.chain(b, pb.log_sigmoid)
        + pb.chain(a, pb.negative, pb.log_sigmoid)
        + pb.chain(b - a, pb.log1mexp)
    )
    return pb.chain(log_likelihood, pb.sum, pb.negative)


def ordinal_data(n: int = 500) -> tuple[Any, Array, Array]:
    """Return the likelihood of simulated ratings from 0 to 3, a start, and the true parameters."""
    slopes, cuts = np.array([1.0, -0.7]), np.array([-1.0, 0.2, 1.5])
    X = RNG.standard_normal((n, 2))
    y = np.sum((X @ slopes + RNG.logistic(size=n))[:, None] > cuts, axis=1)
    f = ordinal_logit(X, y, 4)
    return f, np.array([0.0, 0.0, -1.0, 0.0, 1.0]), np.concatenate([slopes, cuts])


# --- a Gaussian process ---------------------------------------------------------------------------


class GaussianLikelihood:
    """The negative log likelihood of values y with mean 0 and covariance K, as a primitive.

    With A the inverse of K and a = A y, its gradient is (A - a a^T) / 2.
    """

    def __init__(self, y: Array) -> None:
        self.y = y
        self.vjp = _Slope(self)

    def __call__(self, K: Array) -> float:
        """Return the value, by Cholesky; inf where K is no covariance."""
        try:
            L = np.linalg.cholesky(K)
        except np.linalg.LinAlgError:
            return np.inf
        z = np.linalg.solve(L, self.y)
        return float(0.5 * z @ z + np.log(np.diag(L)).sum() + 0.5 * len(z) * np.log(2 * np.pi))

    def jvp(self, K: Array, T: Array) -> float:
        """Return the derivative along T."""
        return float(np.sum(self.vjp(K, 1.0) * T))


class _Slope:
    """The vjp of `GaussianLikelihood`; with its own jvp, chains have second order."""

    def __init__(self, of: GaussianLikelihood) -> None:
        self._of = of

    def __call__(self, K: Array, g: float) -> Array:
        """Return g times the gradient."""
        A = np.linalg.inv(K)
        a = A @ self._of.y
        return g / 2 * (A - np.outer(a, a))

    def jvp(self, K: Array, g: float, T: Array, tg: float | None) -> Array:
        """Return the derivative along T and tg: A changes by -A T A, and a by -A T a."""
        A = np.linalg.inv(K)
        a = A @ self._of.y
        b = A @ (T @ a)
        change = g / 2 * (np.outer(a, b) + np.outer(b, a) - A @ T @ A)
        return change if tg is None else change + self(K, tg)


def gaussian_process(x: Array, y: Array) -> Any:
    """Return the negative log marginal likelihood of log scale, log amplitude and log noise."""
    squares = (x[:, None] - x) ** 2
    kernel = pb.chain(
        (pb.multiply, pb.arg[0], -2.0),
        pb.exp,
        (pb.multiply, pb.arg, -squares / 2),
        (pb.add, pb.arg, pb.chain((pb.multiply, pb.arg[1], 2.0))),
        pb.exp,
    )
    noise = pb.chain((pb.multiply, pb.arg[2], 2.0), pb.exp, (pb.multiply, pb.arg, np.eye(len(x))))
    return pb.chain(kernel + noise, GaussianLikelihood(y))


def process_data(n: int = 60) -> tuple[Any, Array, Array]:
    """Return the likelihood of a noisy wave, a start, and what it was made with, if anything."""
    x = np.sort(RNG.uniform(0, 10, n))
    y = np.sin(x) + 0.1 * RNG.standard_normal(n)
    made_with = np.array([np.nan, np.nan, np.log(0.1)])
    return gaussian_process(x, y), np.array([0.0, 0.0, -1.0]), made_with


# --- what is common to them -----------------------------------------------------------------------


def split(theta: Array, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    """Return the inputs of a likelihood: vectors, or numbers for sizes of 0."""
    inputs, start = [], 0
    for size in sizes:
        inputs.append(theta[start : start + size] if size else theta[start])
        start += max(size, 1)
    return tuple(inputs)


class Problem:
    """A likelihood of several inputs, as functions of one vector."""

    def __init__(self, f: Any, sizes: tuple[int, ...]) -> None:
        self._f, self._sizes = f, sizes
        self._wrt = tuple(range(len(sizes)))

    def value(self, theta: Array) -> float:
        """Return the negative log likelihood."""
        return float(self._f(*split(theta, self._sizes)))

    def gradient(self, theta: Array) -> Array:
        """Return the gradient."""
        return np.hstack(self._f.vjp(*split(theta, self._sizes), 1.0, wrt=self._wrt))

    def hvp(self, theta: Array, v: Array) -> Array:
        """Return the product of the Hessian with a vector."""
        inputs, along = split(theta, self._sizes), split(v, self._sizes)
        return np.hstack(self._f.hvp(*inputs, *along, wrt=self._wrt))

    def hessian(self, theta: Array) -> Array:
        """Return the Hessian."""
        return np.array([self.hvp(theta, e) for e in np.eye(len(theta))])


def newton(problem: Problem, theta: Array) -> tuple[Array, int]:
    """Minimise by Newton's method with steps halved until the value falls."""
    for steps in range(50):
        gradient, H = problem.gradient(theta), problem.hessian(theta)
        if np.abs(gradient).max() < 1e-8 * len(theta):
            return theta, steps
        values, vectors = np.linalg.eigh(H)
        direction = -vectors @ (vectors.T @ gradient / np.maximum(np.abs(values), 1e-8))
        t, before, slope = 1.0, problem.value(theta), 1e-4 * gradient @ direction
        while t > 1e-6 and problem.value(theta + t * direction) > before + t * slope:
            t /= 2
        theta = theta + t * direction
    raise RuntimeError("Newton's method did not end")


def main() -> bool:
    """Check, fit and print all three; return whether all is well."""
    well = True
    problems = {
        "Cox's partial likelihood": (cox_data(), (3,)),
        "Ordinal logit": (ordinal_data(), (2, 3)),
        "Gaussian process": (process_data(), (0, 0, 0)),
    }
    for name, ((f, start, truth), sizes) in problems.items():
        problem = Problem(f, sizes)
        v = np.linspace(-1, 1, len(start))
        first = pb.check_grad(problem.value, problem.gradient, start + 0.1)
        second = pb.check_grad(
            lambda t, p=problem, v=v: float(p.gradient(t) @ v),
            lambda t, p=problem, v=v: p.hvp(t, v),
            start + 0.1,
        )
        theta, steps = newton(problem, start)
        errors = np.sqrt(np.linalg.inv(problem.hessian(theta)).diagonal())
        well = well and bool(first.ok and second.ok)
        print(f"{name}: gradient {first.ok}, HVP {second.ok}, {steps} Newton steps")
        for estimate, error, true in zip(theta, errors, truth, strict=True):
            made = "" if np.isnan(true) else f", made with {true:6.2f}"
            print(f"  {estimate:8.4f} +- {error:.4f}{made}")
            well = well and (np.isnan(true) or abs(estimate - true) < 4 * error)
        print()
    print("All is well." if well else "A check failed.")
    return bool(well)


if __name__ == "__main__":
    sys.exit(not main())

"""Programs of HIPS autograd: the time of a gradient without pullback and with it.

Run it as ``python bench/door_autograd.py``. Both take turns on one thread of each library.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import autograd.numpy as anp
import autograd.scipy.special as sp
import numpy as np
import pullback as pb
import pullback.interop.autograd as pa
from autograd import grad
from autograd.misc.flatten import flatten
from threadpoolctl import threadpool_limits

Program = tuple[Callable[[Any], Any], Any]
RNG = np.random.default_rng(0)


def mlp() -> Program:
    """Return the loss of a network of two hidden layers, and its parameters."""
    X, y = RNG.standard_normal((1000, 50)), RNG.standard_normal((1000, 1))
    sizes = [(50, 100), (100,), (100, 100), (100,), (100, 1), (1,)]
    parameters = [RNG.standard_normal(size) / 10 for size in sizes]

    def loss(p: Any) -> Any:
        a = anp.tanh(anp.dot(X, p[0]) + p[1])
        a = anp.tanh(anp.dot(a, p[2]) + p[3])
        penalty = sum(anp.sum(q**2) for q in p)
        return anp.mean((anp.dot(a, p[4]) + p[5] - y) ** 2) + 1e-3 * penalty

    return loss, parameters


def bayesian_logistic_regression() -> Program:
    """Return a log posterior, and weights."""
    X, y = RNG.standard_normal((1000, 20)), RNG.choice([-1.0, 1.0], 1000)

    def log_posterior(w: Any) -> Any:
        return -anp.sum(anp.logaddexp(0.0, -y * anp.dot(X, w))) - 0.5 * anp.sum(w**2)

    return log_posterior, RNG.standard_normal(20) / 4


def mixture_of_gaussians() -> Program:
    """Return a log likelihood of 8 components in the plane, and their parameters."""
    X = RNG.standard_normal((2000, 2))

    def log_likelihood(p: Any) -> Any:
        weights, means, scales = p
        z = (X[:, None, :] - means) / anp.exp(scales)
        component = -0.5 * anp.sum(z**2, axis=2) - anp.sum(scales, axis=1)
        return anp.sum(sp.logsumexp(component + weights - sp.logsumexp(weights), axis=1))

    parameters = RNG.standard_normal(8), RNG.standard_normal((8, 2)), RNG.standard_normal((8, 2))
    return log_likelihood, parameters


def weibull_survival() -> Program:
    """Return the loss of an accelerated failure time model, and its parameters."""
    X, T = RNG.standard_normal((500, 5)), RNG.exponential(size=500) + 0.1
    seen = RNG.choice([0.0, 1.0], 500, p=[0.3, 0.7])

    def loss(p: Any) -> Any:
        rate, shape = anp.dot(X, p[:-1]), anp.exp(p[-1])
        lag = anp.log(T) - rate
        terms = seen * (anp.log(shape) - rate + (shape - 1) * lag) - anp.exp(shape * lag)
        return -anp.mean(terms) + 0.01 * anp.sum(p**2)

    return loss, RNG.standard_normal(6) / 4


def small_logistic() -> Program:
    """Return a likelihood as beginners write it, and weights."""
    X, y = RNG.standard_normal((100, 5)), RNG.choice([0.0, 1.0], 100)

    def loss(w: Any) -> Any:
        p = 1 / (1 + anp.exp(-anp.dot(X, w)))
        return -anp.sum(y * anp.log(p) + (1 - y) * anp.log(1 - p))

    return loss, np.zeros(5)


def small_rosenbrock() -> Program:
    """Return a function of three variables, and a point."""

    def f(x: Any) -> Any:
        return anp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    return f, np.array([1.2, 0.7, -0.3])


def small_tanh() -> Program:
    """Return the example of autograd's own readme, and a number."""
    return lambda x: (1.0 - anp.exp(-2 * x)) / (1.0 + anp.exp(-2 * x)), 0.7


PROGRAMS = (
    mlp,
    bayesian_logistic_regression,
    mixture_of_gaussians,
    weibull_survival,
    small_logistic,
    small_rosenbrock,
    small_tanh,
)
ROUNDS, SECONDS = 15, 0.03


def _seconds(call: Callable[[Any], Any], at: Any) -> float:
    call(at)
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        call(at)
        n += 1
    return (time.perf_counter() - start) / n


@threadpool_limits.wrap(limits=1)
@pb.threads(1)
def main() -> None:
    """Print a line for each program."""
    print(f"{'program':<30}{'autograd':>12}{'with pullback':>15}{'ratio':>8}")
    for make in PROGRAMS:
        function, at = make()
        gradient = grad(function)
        expected = flatten(gradient(at))[0]
        with pa.accelerate():
            np.testing.assert_allclose(flatten(gradient(at))[0], expected, rtol=1e-9, atol=1e-12)
        without, with_it = list[float](), list[float]()
        for _ in range(ROUNDS):
            without.append(_seconds(gradient, at))
            with pa.accelerate():
                with_it.append(_seconds(gradient, at))
        ratio = median(a / b for a, b in zip(without, with_it, strict=True))
        theirs, ours = median(without) * 1e6, median(with_it) * 1e6
        name = make.__name__.replace("_", " ")
        print(f"{name:<30}{theirs:>9.1f} us{ours:>12.1f} us{ratio:>7.2f}x", flush=True)


if __name__ == "__main__":
    main()

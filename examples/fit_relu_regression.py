"""Fit a rectified linear model to real data, with pullback's gradient and with NumPy's.

The data are scikit-learn's bundled diabetes table: ten baseline measurements of 442 patients, and a
measure of the disease's progression a year later. The target is the progression beyond that of the
median patient, and 0 for the other half. The model y ~ max(0, X w + b) therefore has to find the
samples on its flat side. SciPy's L-BFGS-B calls for the loss and its gradient at a sequence of
theta = (w, b), and `pullback.LinearObjective` returns both from one pass over X.

The output shows the final losses (if they differ, the exit code is 1), the parameters side by side,
and the times of a fit and of one evaluation. A PNG file shows the losses during the fit.

Run it with ``pip install pullback[examples]`` and ``python examples/fit_relu_regression.py``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # draws files, needs no screen

import matplotlib.pyplot as plt
import numpy as np
import pullback as pb
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes

Array = NDArray[np.float64]
Objective = Callable[[Array], tuple[float, Array]]


@dataclass
class Fit:
    """Where a minimisation ended, the losses on its way, and the seconds it took."""

    theta: Array
    loss: float
    evaluations: int
    path: list[float] = field(default_factory=list)
    seconds: float = 0.0


def load() -> tuple[Array, Array, list[str]]:
    """Return standardised features, the progression beyond the median, the features' names."""
    data = load_diabetes()
    X = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    y = np.maximum(data.target - np.median(data.target), 0)
    return np.ascontiguousarray(X), y, list(data.feature_names)


def numpy_objective(X: Array, y: Array) -> Objective:
    """Return loss and gradient in plain NumPy, which reads X twice: for z and for the gradient."""

    def value_and_grad(theta: Array) -> tuple[float, Array]:
        z = X @ theta[:-1] + theta[-1]
        error = np.maximum(z, 0) - y
        slope = np.where(z > 0, 2 / len(y) * error, 0)
        return float(np.mean(error**2)), np.append(slope @ X, slope.sum())

    return value_and_grad


def fit(objective: Objective, theta0: Array) -> Fit:
    """Minimise an objective that yields value and gradient together."""
    path: list[float] = [objective(theta0)[0]]
    result = minimize(
        objective,
        theta0,
        jac=True,
        method="L-BFGS-B",
        callback=lambda intermediate_result: path.append(intermediate_result.fun),
        options={"maxiter": 500, "ftol": 1e-14, "gtol": 1e-6},
    )
    return Fit(theta=result.x, loss=float(result.fun), evaluations=result.nfev, path=path)


def race(objectives: dict[str, Objective], theta0: Array, repeats: int) -> dict[str, Fit]:
    """Fit every objective, taking turns, and keep the median time of each."""
    fits = {name: fit(objective, theta0) for name, objective in objectives.items()}
    seconds: dict[str, list[float]] = {name: [] for name in objectives}
    for _ in range(repeats):
        for name, objective in objectives.items():
            start = time.perf_counter()
            fit(objective, theta0)
            seconds[name].append(time.perf_counter() - start)
    for name, fitted in fits.items():
        fitted.seconds = median(seconds[name])
    return fits


def per_call(objective: Objective, theta: Array, repeats: int = 200) -> float:
    """Return the median time of one evaluation of loss and gradient."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        objective(theta)
        times.append(time.perf_counter() - start)
    return median(times)


def draw(fits: dict[str, Fit], path: Path) -> None:
    """Write the loss curves, as the distance from the best loss found."""
    best = min(fitted.loss for fitted in fits.values())
    floor = 1e-12 * best  # below is rounding
    styles: Sequence[dict[str, Any]] = (
        {"color": "#1f5fa8", "linewidth": 5, "alpha": 0.35},
        {"color": "#c8501e", "linewidth": 1.6, "marker": "o", "markersize": 3.5},
    )
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (name, fitted), style in zip(fits.items(), styles, strict=True):
        excess = np.maximum(np.array(fitted.path) - best, floor)
        label = f"{name}: {fitted.evaluations} evaluations, {fitted.seconds * 1e3:.1f} ms"
        axes.semilogy(excess, label=label, **style)
    axes.set(
        title="ReLU regression on the diabetes table, L-BFGS-B",
        xlabel="iteration",
        ylabel=f"mean squared error above {best:.1f}",
    )
    axes.grid(visible=True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, Fit]:
    """Fit, compare, print and draw; return the fits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("relu_regression.png"),
        help="the loss curve, a PNG file",
    )
    parser.add_argument("--repeats", type=int, default=15, help="fits to time (default: 15)")
    options = parser.parse_args(arguments)

    X, y, names = load()
    objective = pb.LinearObjective(X, y, loss=pb.relu_mse)
    theta0 = objective.initial()
    objectives = {"NumPy": numpy_objective(X, y), "pullback": objective.value_and_grad}
    fits = race(objectives, theta0, options.repeats)
    ours, theirs = fits["pullback"], fits["NumPy"]

    print(
        f"y ~ max(0, X w + b): {X.shape[0]} samples, {X.shape[1]} features, {pb.backend()} backend"
    )
    print(f"\n{'':10}{'loss':>16}{'evaluations':>14}{'fit':>12}{'loss + gradient':>18}")
    for name, fitted in fits.items():
        call = per_call(objectives[name], fitted.theta)
        print(
            f"{name:10}{fitted.loss:16.9f}{fitted.evaluations:14d}"
            f"{fitted.seconds * 1e3:9.2f} ms{call * 1e6:15.2f} us"
        )
    print(f"\n{'feature':10}{'pullback':>14}{'NumPy':>14}{'difference':>14}")
    for name, a, b in zip([*names, "(bias)"], ours.theta, theirs.theta, strict=True):
        print(f"{name:10}{a:14.6f}{b:14.6f}{a - b:14.1e}")

    baseline = float(np.var(y))
    active = np.mean(objective.predict(X, ours.theta) > 0)
    print(
        f"\nR^2 {1 - ours.loss / baseline:.4f} (a constant: 0); {active:.0%} of the samples on the "
        f"active side.\nLoss curve: {options.output}"
    )
    draw(fits, options.output)
    if not np.isclose(ours.loss, theirs.loss, rtol=1e-10, atol=0):
        sys.exit(f"The two fits end at different losses: {ours.loss!r} and {theirs.loss!r}.")
    return fits


if __name__ == "__main__":
    main()

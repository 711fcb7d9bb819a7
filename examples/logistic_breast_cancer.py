"""Fit a penalised logistic regression with Newton's method, and compare it with scikit-learn's.

The data are scikit-learn's bundled breast cancer table: thirty measurements of the cell nuclei of
569 tumours, and whether each tumour was benign. SciPy's trust-ncg gets the loss and its gradient
from `pullback.LinearObjective.value_and_grad`, and products with the Hessian from its `hvp`. Each
call takes one pass over X.

The output shows the coefficients of both side by side. They agree to 1e-6; otherwise the exit code
is 1. It also shows the numbers of evaluations and products, and the share of held-out tumours that
are classified correctly.

Run it with ``pip install pullback[examples]`` and ``python examples/logistic_breast_cancer.py``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pullback as pb
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

Array = NDArray[np.float64]

TOLERANCE = 1e-6


def load() -> tuple[Array, Array, Array, Array, list[str]]:
    """Return standardised features and labels to train on and to test on, and the names."""
    data = load_breast_cancer()
    X, X_test, y, y_test = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    scaler = StandardScaler().fit(X)
    return scaler.transform(X), scaler.transform(X_test), y, y_test, list(data.feature_names)


def fit(objective: pb.LinearObjective) -> Any:
    """Minimise by a trust-region Newton method; the Hessian is never formed."""
    return minimize(
        objective.value_and_grad,
        objective.initial(),
        jac=True,
        hessp=objective.hvp,
        method="trust-ncg",
        options={"gtol": 1e-10},
    )


def main(arguments: Sequence[str] | None = None) -> float:
    """Fit with both, compare, print; return the largest difference of coefficients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--C", type=float, default=1.0, help="as scikit-learn's (default: 1)")
    options = parser.parse_args(arguments)

    X, X_test, y, y_test, names = load()
    # scikit-learn weighs the sum of the losses by C; here their mean stands beside l2/2 ||w||^2.
    objective = pb.LinearObjective(X, y, loss=pb.logistic, l2=1 / (options.C * len(y)))
    start = time.perf_counter()
    result = fit(objective)
    ours = time.perf_counter() - start
    estimator = LogisticRegression(C=options.C, solver="newton-cholesky", tol=1e-10)
    start = time.perf_counter()
    estimator.fit(X, y)
    theirs = time.perf_counter() - start

    expected = np.append(estimator.coef_, estimator.intercept_)
    print(f"{X.shape[0]} tumours, {X.shape[1]} measurements, {pb.backend()} backend\n")
    print(f"{'measurement':26}{'pullback':>14}{'scikit-learn':>14}{'difference':>14}")
    for name, a, b in zip([*names, "(intercept)"], result.x, expected, strict=True):
        print(f"{name:26}{a:14.8f}{b:14.8f}{a - b:14.1e}")
    difference = float(np.abs(result.x - expected).max())

    right = np.mean((objective.predict(X_test, result.x) > 0.5) == y_test)
    print(
        f"\nLargest difference {difference:.1e}; {right:.1%} of {len(y_test)} held-out tumours are "
        f"classified correctly.\n{result.nit} Newton steps, {result.nfev} values and gradients, "
        f"{result.nhev} products with the Hessian: {ours * 1e3:.2f} ms; "
        f"scikit-learn, {estimator.n_iter_[0]} steps of newton-cholesky: {theirs * 1e3:.2f} ms."
    )
    if not difference <= TOLERANCE:
        sys.exit(f"The coefficients differ by {difference:.1e}, more than {TOLERANCE:g}.")
    return difference


if __name__ == "__main__":
    main()

"""Draw the documents' figures: benchmarks, the times of fits, and the deviance along a penalty.

    python docs/figures.py

It needs the extra `examples`. ``bench/compare.py fits --json docs/fits.json`` measures the fits,
``pullback bench --report DIR`` the benchmarks, whose ``report.json`` is ``docs/benchmarks.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")
import matplotlib.pyplot as plt
from pullback.bench import figures
from pullback.interop.sklearn import LinearClassifier
from pullback.losses import losses
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold

DOCS = Path(__file__).parent
mpl.rcParams.update(figures.SETTINGS)


def fits() -> Any:
    """Bars of the seconds of each fit."""
    return figures.fits(json.loads((DOCS / "fits.json").read_text(encoding="utf-8"))["records"])


def penalty() -> Any:
    """Mean deviance of rows fitted and of rows held out, along the penalty."""
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    alphas = np.geomspace(1e-6, 10, 22)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    deviance = np.empty((2, len(alphas), len(folds)))
    for i, alpha in enumerate(alphas):
        for k, parts in enumerate(folds):
            model = LinearClassifier(alpha=alpha, tol=1e-8).fit(X[parts[0]], y[parts[0]])
            for j, rows in enumerate(parts):
                w, b = model.coef_.ravel(), float(model.intercept_[0])
                deviance[j, i, k] = 2 * losses["logistic"].value(X[rows], y[rows], w, b)
    figure, axes = plt.subplots(figsize=(8, 4))
    for values, name, colour in zip(
        deviance, ("fitted", "held out"), ("#9a8c98", "#1f6f8b"), strict=True
    ):
        mean, spread = values.mean(-1), values.std(-1, ddof=1) / np.sqrt(len(folds))
        axes.plot(alphas, mean, "o-", color=colour, label=f"rows {name}", markersize=3)
        axes.fill_between(alphas, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
    best = int(np.argmin(deviance[1].mean(-1)))
    axes.axvline(alphas[best], color="0.6", lw=0.8, ls="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("alpha, the weight of the penalty")
    axes.set_ylabel("mean deviance")
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Write every figure."""
    folder = DOCS / "figures"
    folder.mkdir(exist_ok=True)
    for draw in (fits, penalty):
        figure = draw()
        figures.save_svg(figure, folder / f"{draw.__name__}.svg")
        plt.close(figure)
    report = json.loads((DOCS / "benchmarks.json").read_text(encoding="utf-8"))
    figures.save(report, folder / "benchmarks", png=False)


if __name__ == "__main__":
    main()

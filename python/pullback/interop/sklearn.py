"""Estimators for scikit-learn: linear models with any smooth loss, fitted without a copy of X.

``LinearRegressor`` and ``LinearClassifier`` minimise the weighted mean of the loss plus
``alpha/2 ||w||^2``; intercepts are not penalised. These estimators fit the same model, with N the
sum of the weights:

===================================  ==========================  ===================
peer                                 loss                        alpha
===================================  ==========================  ===================
Ridge(alpha=a)                       "squared_error"             2 a / N
LogisticRegression(C=c)              "logistic"                  1 / (c N)
PoissonRegressor(alpha=a)            "poisson"                   a
GammaRegressor(alpha=a)              "gamma"                     a
TweedieRegressor(power=p, alpha=a)   pb.losses.tweedie(p)        a
HuberRegressor(epsilon=e, alpha=a)   pb.huber(e s)               a s / N
glum, family "normal", alpha=a       "squared_error"             2 a
glum, another family, alpha=a        its name here               a
===================================  ==========================  ===================

Here s is HuberRegressor's estimate, its ``scale_``, and glum has ``l1_ratio=0``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from threading import Lock
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import accuracy_score
    from sklearn.utils import check_array, check_consistent_length, column_or_1d
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.sparsefuncs import mean_variance_axis
    from sklearn.utils.validation import check_is_fitted, validate_data
    from threadpoolctl import ThreadpoolController
except ImportError as error:
    raise ImportError(
        "pullback.interop.sklearn needs scikit-learn 1.6 or newer: pip install 'pullback[sklearn]'"
    ) from error

from pullback import solvers
from pullback.design_matrix import BLOCK_ENTRIES, KernelData, as_data, as_matrix
from pullback.foreign import check_unmasked, is_tabular, kernel_dtype
from pullback.losses import Loss, as_loss, losses
from pullback.objective import LinearObjective, progress_bar
from pullback.partial import Kinds
from pullback.protocol import as_array
from pullback.samples import Model, Samples
from pullback.tables.losses import LOSSES, ClassTargets, Targets

__all__ = ["LinearClassifier", "LinearRegressor"]

Array: TypeAlias = npt.NDArray[Any]

SOLVERS: Final = {
    "newton-cholesky": solvers.newton,
    "newton-cg": solvers.newton_cg,
    "lbfgs": solvers.lbfgs,
}
# Their gradients jump, so no solver here can tell that it has converged.
SMOOTHER: Final = {"hinge": "squared_hinge", "quantile": "huber", "relu_mse": "poisson"}


@dataclass(frozen=True, eq=False)
class _Problem:
    """The data, loss and penalty of a fit."""

    loss: Loss
    X: Any
    y: Array
    weights: Array | None
    offset: Array | None
    l2: float | Array

    @property
    def n_outputs(self) -> int | None:
        """The number of classes, since some of the samples may not have all labels."""
        return int(self.y.max()) + 1 if self.loss.row.of_classes else None

    def objective(self, fit_intercept: bool, n_outputs: int | None = None) -> LinearObjective:
        """Return the objective to minimise."""
        return LinearObjective(
            self.X,
            self.y,
            self.loss,
            self.l2,
            self.weights,
            fit_intercept,
            offset=self.offset,
            n_outputs=n_outputs or self.n_outputs,
        )

    def rows(self, rows: Array) -> _Problem:
        """Return the problem of some of the samples."""
        X, y = self.X[rows], self.y[rows]
        weights, offset = (a if a is None else a[rows] for a in (self.weights, self.offset))
        return _Problem(self.loss, X, y, weights, offset, self.l2)

    def standardized(self) -> tuple[_Problem, tuple[Array, Array]]:
        """Return the problem whose penalty is that of the coefficients of scaled features.

        Features divided by s have coefficients v = s w, so ||v||^2 is sum s^2 w^2. Centring changes
        the intercept only, which is not penalised. The second result is the features' means and s.
        """
        mean, variances = _moments(self.X, self.weights)
        variances = np.where(variances > 0, variances, 1.0)
        return replace(self, l2=self.l2 * variances), (mean, np.sqrt(variances))


class _LinearModel(BaseEstimator):  # type: ignore[misc]
    """The base of both estimators: data, fit and predictions."""

    loss: str | Loss
    alpha: float
    fit_intercept: bool
    standardize: bool
    solver: str
    tol: float
    max_iter: int
    warm_start: bool
    verbose: int | bool

    # --- the loss ---

    @staticmethod
    def _suits(targets: Targets) -> bool:
        """Tell whether targets are this estimator's: numbers, shares included."""
        return not isinstance(targets, ClassTargets) and bool(targets.test(np.array(0.5)))

    def _given_loss(self) -> Loss:
        """Return the loss that was asked for, if it can be fitted."""
        name = type(self).__name__
        own = [key for key, row in LOSSES.items() if self._suits(row.targets)]
        suitable = [key for key in own if key not in SMOOTHER]
        loss = as_loss(name, self.loss, suitable)
        smoother = SMOOTHER.get(loss.__name__)
        if smoother is not None:
            raise ValueError(
                f"{name}: the gradient of {loss.__name__} jumps, where no solver converges; "
                f"loss={smoother!r} is its smooth alternative"
            )
        if not self._suits(loss.row.targets):
            there = f"there are {', '.join(suitable)}"
            raise ValueError(f"{name}: loss {loss.__name__} is not one of its own; {there}")
        return loss

    # --- data ---

    def _checked_data(self, X: Any, *, reset: bool) -> Any:
        """Return X for the kernels, without a copy if possible, and store its feature names."""
        name = type(self).__name__
        check_unmasked(name, "X", X)
        try:
            matrix = as_matrix(name, X)
            taken = all(as_data(name, matrix).shape)
        except (TypeError, ValueError):
            taken = False
        if not taken:
            about = {"accept_sparse": ["csr", "csc"], "ensure_all_finite": False}
            matrix = self._converted("X", X, dtype="numeric", **about)
        validate_data(self, X, skip_check_array=True, reset=reset)
        return matrix

    def _converted(self, label: str, given: Any, **about: Any) -> Any:
        """Return what check_array makes of an argument, or raise its error.

        Of a frame or a column that has no numbers, the error is that of the rest of the package,
        which names the columns.
        """
        name = type(self).__name__
        check_unmasked(name, label, given)
        try:
            array = check_array(given, estimator=self, input_name=label, **about)
            kernel_dtype(name, label, array.dtype)
        except (TypeError, ValueError):
            if is_tabular(given):
                as_array(name, label, given)
            raise
        return array

    def _vector(self, label: str, given: Any, X: Any, n_outputs: int = 1) -> Array | None:
        """Return weights, or offsets, as float64."""
        if given is None:
            return None
        vector = self._converted(label, given, ensure_2d=False, dtype=np.float64, order="C")
        shapes: list[tuple[int, ...]] = [(X.shape[0],)]
        if label == "offset" and n_outputs > 1:
            shapes.append((X.shape[0], n_outputs))
        if vector.shape not in shapes:
            raise ValueError(
                f"{type(self).__name__}: {label} has shape {vector.shape}, X of shape {X.shape} "
                f"needs {' or '.join(map(str, shapes))}"
            )
        return np.asarray(vector)

    def _weights(self, sample_weight: Any, X: Any) -> Array | None:
        weights = self._vector("sample_weight", sample_weight, X)
        if weights is not None and not weights.any():
            raise ValueError(f"{type(self).__name__}: sample_weight is zero for all samples")
        return weights

    def _check_finite(self, method: str, X: Any, weights: Array | None = None) -> None:
        """Raise ValueError for the first entry of X that is not finite and has a weight."""
        found = _first_not_finite(as_data(method, X).blocks(), weights)
        if found is None:
            return
        i, j, value = found
        names = getattr(self, "feature_names_in_", None)
        raise ValueError(
            f"Input X contains {'NaN' if np.isnan(value) else 'infinity'}: "
            f"{type(self).__name__}.{method}: X[{i}, {j}]"
            f"{'' if names is None else f' (feature {names[j]!r})'} is {value}; impute it, or give "
            "the row a sample_weight of 0"
        )

    # --- the fit ---

    def _fit(self, problem: _Problem) -> tuple[Array, Array]:
        """Fit, and return coefficients (D, K) and intercepts (K,)."""
        name = type(self).__name__
        tol, max_iter = self._check_parameters()
        moments = None
        if self.standardize:
            problem, moments = problem.standardized()
        objective = problem.objective(self.fit_intercept)
        null = _null_model(objective, problem)
        last = self._last_fit(objective)
        theta = null if last is None else last
        about: dict[str, Any] = {"tol": tol, "max_iter": max_iter}
        solver = self.solver
        small = objective.n_parameters <= MOST_FACTORED
        with _ONE_BLAS_THREAD if small else nullcontext(), ExitStack() as until:
            if solver == "auto":
                solver = _fastest(problem, objective)
                if solver == "lbfgs" and problem.loss.has_second_derivative:
                    theta, about["hessian"] = _pilot(
                        problem, self.fit_intercept, theta, fitted=last is not None
                    )
            if solver != "newton-cholesky" and about.get("hessian") is None:
                about["moments"] = moments
            if theta is not null:
                about["reference"] = float(np.abs(objective.grad(null)).max())
            if self.verbose:
                about["callback"] = until.enter_context(closing(_Progress(name, max_iter)))
            solution = SOLVERS[solver](objective, theta, **about)
        if not (np.isfinite(solution.value) and np.isfinite(solution.gradient_norm)):
            self._check_finite("fit", problem.X, problem.weights)
        self.n_iter_ = solution.n_iter
        if not solution.converged:
            warnings.warn(
                f"{name}: no convergence after {solution.n_iter} iterations: {solution.message}. "
                f"The gradient's largest entry is {solution.gradient_norm:.3g}. "
                f"{self._advice(solution)}",
                ConvergenceWarning,
                stacklevel=3,
            )
        w, b = objective.unpack(solution.theta)
        w = w.reshape(len(w), -1)
        return w, np.zeros(w.shape[1]) if b is None else np.atleast_1d(b)

    def _last_fit(self, objective: LinearObjective) -> Array | None:
        """Return the parameters of the last fit, if a new fit can start from them."""
        if not self.warm_start or not hasattr(self, "coef_"):
            return None
        w, b = np.atleast_2d(self.coef_).T, np.atleast_1d(self.intercept_)
        theta = np.concatenate([w.ravel(), b if self.fit_intercept else b[:0]])
        same = len(w) == self.n_features_in_ and len(theta) == objective.n_parameters
        return theta if same else None

    def _advice(self, solution: solvers.Solution) -> str:
        if "max_iter" in solution.message:
            return "Increase max_iter, or alpha; features of one scale need fewer iterations."
        if "not finite" in solution.message:
            return "Scale the features, such as by StandardScaler, or increase alpha."
        return "Increase tol, or alpha, or scale the features, such as by StandardScaler."

    def _check_parameters(self) -> tuple[float, int]:
        name = type(self).__name__
        if self.solver not in ("auto", *SOLVERS):
            known = ", ".join(map(repr, ["auto", *SOLVERS]))
            raise ValueError(f"{name}: solver is {self.solver!r}, needs to be one of {known}")
        if not (isinstance(self.alpha, Real) and 0 <= self.alpha < np.inf):
            raise ValueError(f"{name}: alpha is {self.alpha!r}, needs to be finite, not negative")
        if not (isinstance(self.tol, Real) and self.tol > 0):
            raise ValueError(f"{name}: tol is {self.tol!r}, needs to be positive")
        if not (isinstance(self.max_iter, int | np.integer) and self.max_iter > 0):
            raise ValueError(f"{name}: max_iter is {self.max_iter!r}, needs a positive integer")
        return float(self.tol), int(self.max_iter)

    # --- predictions ---

    def _predictions(self, X: Any, offset: Any) -> Array:
        """Return z = X w + b + offset, shape (N, K)."""
        check_is_fitted(self)
        X = self._checked_data(X, reset=False)
        data = as_data(type(self).__name__, X)
        w = np.ascontiguousarray(np.atleast_2d(self.coef_).T, np.float64)
        b = np.atleast_1d(np.asarray(self.intercept_, np.float64))
        z = np.empty((data.shape[0], len(b)))
        offset = self._vector("offset", offset, X, len(b))
        samples = Samples(data, None, None, None, float(len(z)), offset)
        model = Model(w, b, Kinds(w.shape, w.dtype, b))
        losses["squared_error"]._sums("predict", samples, model, "predict", kept=z)
        if not np.isfinite(z).all():
            self._check_finite("predict", X)
        return z

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class LinearRegressor(RegressorMixin, _LinearModel):  # type: ignore[misc]
    """A linear regression with any smooth loss: least squares, GLMs, robust regression.

    It minimises the weighted mean of the loss plus ``alpha/2 ||w||^2``. X is read in place, dense
    or sparse, float32 or float64, and sums are float64.

    Parameters
    ----------
    loss : str or Loss
        A loss such as "squared_error", "poisson", "gamma" or ``pb.huber(1.35)``. A loss with
        targets in [0, 1], such as "logistic", takes proportions; with the numbers of trials in
        `sample_weight`, the model is binomial.
    alpha : float
        Weight of the penalty.
    fit_intercept : bool
        Whether the model has an intercept, which is not penalised.
    standardize : bool
        Whether the penalty is that for features scaled to a standard deviation of 1. The solvers
        "newton-cg" and "lbfgs" then iterate on such features, centred if there is an intercept.
        The coefficients still belong to X, which is not copied. Constant features are not scaled.
    solver : {"auto", "newton-cholesky", "newton-cg", "lbfgs"}
        See `pullback.solvers`. "auto" chooses by the shape of X. Before "lbfgs" it fits some of the
        samples, which gives a start, and the scales and correlations of the features.
    tol : float
        The fit ends when the gradient's largest entry is at most `tol` times that of the model
        without features.
    max_iter : int
        The largest number of iterations.
    warm_start : bool
        Whether to start from the last fit.
    verbose : bool or int
        Whether to show the progress, which needs tqdm.

    Attributes
    ----------
    coef_ : ndarray, shape (n_features,)
        Coefficients.
    intercept_ : float
        Intercept.
    n_iter_ : int
        Number of iterations.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray
        Their names, if X has names that are strings.

    Examples
    --------
    >>> import numpy as np
    >>> from pullback.interop.sklearn import LinearRegressor
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([1, 1, 2, 4])
    >>> model = LinearRegressor("poisson", alpha=0).fit(X, y)
    >>> model.coef_.round(3).tolist(), round(model.score(X, y), 3)
    ([0.491], 0.959)
    """

    def __init__(
        self,
        loss: str | Loss = "squared_error",
        *,
        alpha: float = 1e-4,
        fit_intercept: bool = True,
        standardize: bool = False,
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int = 1000,
        warm_start: bool = False,
        verbose: bool | int = False,
    ) -> None:
        self.loss = loss
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : array_like, frame or sparse matrix, shape (n_samples, n_features)
            Features.
        y : array_like, shape (n_samples,)
            Targets, in the loss's domain.
        sample_weight : array_like, shape (n_samples,), optional
            Weights, finite and not negative; a sample of weight 0 counts as if it were not there,
            but has to have a target and an offset that are numbers, as scikit-learn wants.
        offset : array_like, shape (n_samples,), optional
            Added to the linear predictions, such as the logarithm of an exposure.

        Returns
        -------
        LinearRegressor
            Itself.
        """
        loss = self._given_loss()
        X = self._checked_data(X, reset=True)
        y = self._targets(y, X)
        weights, offset = self._weights(sample_weight, X), self._vector("offset", offset, X)
        w, b = self._fit(_Problem(loss, X, y, weights, offset, self.alpha))
        self.coef_, self.intercept_ = w[:, 0], float(b[0])
        return self

    def predict(self, X: Any, offset: Any = None) -> Array:
        """Return the mean response at each sample.

        Parameters
        ----------
        X, offset
            As for `fit`.

        Returns
        -------
        ndarray, shape (n_samples,), float64
        """
        z = self._predictions(X, offset)[:, 0]
        response = self._given_loss()._response
        return z if response is None else np.asarray(response(z))

    def score(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None) -> float:
        """Return D^2, the share of the deviance that the model explains: R^2 for squared errors.

        Parameters
        ----------
        X, y, sample_weight, offset
            As for `fit`.

        Returns
        -------
        float
            ``1 - deviance(model) / deviance(null)``, where the null model is the best intercept
            without features.
        """
        loss = self._given_loss()
        z = self._predictions(X, offset)[:, 0]
        matrix = self._checked_data(X, reset=False)
        y = self._targets(y, matrix)
        weights, offset = (
            self._weights(sample_weight, matrix),
            self._vector("offset", offset, matrix),
        )
        null = np.zeros_like(z) if offset is None else offset.copy()
        null += _best_intercept(loss, y, weights, offset)
        best = _saturated(loss, y)
        of_model, of_null = (
            float(np.average(loss.pointwise(at, y) - best, weights=weights)) for at in (z, null)
        )
        return 1 - of_model / of_null if of_null else float(of_model <= 0)

    def _targets(self, y: Any, X: Any) -> Array:
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        y = column_or_1d(self._converted("y", y, ensure_2d=False, dtype=np.float64), warn=True)
        check_consistent_length(X, y)
        return np.asarray(y)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        loss = losses.get(self.loss) if isinstance(self.loss, str) else self.loss
        if isinstance(loss, Loss):
            tags.target_tags.positive_only = not loss.row.targets.test(np.array(-1.0))
        return tags


def _is_probabilistic(model: LinearClassifier) -> bool:
    return model._given_loss()._response is not None


class LinearClassifier(ClassifierMixin, _LinearModel):  # type: ignore[misc]
    """A linear classifier with any smooth loss: logistic, multinomial, squared hinge.

    It minimises the weighted mean of the loss plus ``alpha/2 ||w||^2``. X is read in place, dense
    or sparse, float32 or float64, and sums are float64.

    Parameters
    ----------
    loss : str or Loss
        A loss such as "logistic" or "squared_hinge". For more than two classes, "logistic" means
        "softmax_cross_entropy", and any other loss makes a model of each class against the rest,
        all in one fit. For two classes, "softmax_cross_entropy" means "logistic" with half of
        alpha, which gives the same probabilities.
    class_weight : dict or "balanced", optional
        Weights of the classes, which multiply the weights of the samples.
    alpha, fit_intercept, standardize, solver, tol, max_iter, warm_start, verbose
        As for `LinearRegressor`.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        Labels of the samples whose weight is not 0.
    coef_ : ndarray, shape (1, n_features), or (n_classes, n_features)
        Coefficients.
    intercept_ : ndarray, shape (1,), or (n_classes,)
        Intercepts.
    n_iter_, n_features_in_, feature_names_in_
        As for `LinearRegressor`.

    Examples
    --------
    >>> import numpy as np
    >>> from pullback.interop.sklearn import LinearClassifier
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), ["no", "yes", "no", "yes"]
    >>> LinearClassifier(alpha=0.1).fit(X, y).predict_proba(X)[:, 1].round(2).tolist()
    [0.27, 0.42, 0.58, 0.73]
    """

    def __init__(
        self,
        loss: str | Loss = "logistic",
        *,
        alpha: float = 1e-4,
        fit_intercept: bool = True,
        class_weight: Any = None,
        standardize: bool = False,
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int = 1000,
        warm_start: bool = False,
        verbose: bool | int = False,
    ) -> None:
        self.loss = loss
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.standardize = standardize
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.verbose = verbose

    @staticmethod
    def _suits(targets: Targets) -> bool:
        return isinstance(targets, ClassTargets) or not targets.test(np.array(2.0))

    def fit(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : array_like, frame or sparse matrix, shape (n_samples, n_features)
            Features.
        y : array_like, shape (n_samples,)
            Labels: numbers, strings, anything that sorts.
        sample_weight : array_like, shape (n_samples,), optional
            Weights, finite and not negative; a sample of weight 0 counts as if it were not there,
            but has to have a target and an offset that are numbers, as scikit-learn wants.
        offset : array_like, shape (n_samples,), or (n_samples, n_classes) for more than two
            Added to the linear predictions.

        Returns
        -------
        LinearClassifier
            Itself.
        """
        name = type(self).__name__
        loss, alpha = self._given_loss(), self.alpha
        X = self._checked_data(X, reset=True)
        if y is None:
            raise ValueError(f"{name} requires y to be passed, but the target y is None")
        check_unmasked(name, "y", y)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        check_consistent_length(X, y)
        weights = self._weights(sample_weight, X)
        self.classes_ = np.unique(y if weights is None else y[weights > 0])
        n_classes = len(self.classes_)
        if n_classes < 2:
            raise ValueError(
                f"{name} needs samples of two classes or more, got one class: {self.classes_}"
            )
        offset = self._vector("offset", offset, X, n_classes if n_classes > 2 else 1)
        labels = np.searchsorted(self.classes_, y).clip(max=n_classes - 1)
        weights = self._with_class_weights(labels, weights)
        if n_classes > 2 and loss.__name__ == "logistic":
            loss = loss._sibling("softmax_cross_entropy")
        elif n_classes == 2 and loss.row.of_classes:
            loss, alpha = loss._sibling("logistic"), alpha / 2
        self._fitted_loss = loss
        if not loss.row.of_classes:
            least = 0.0 if loss.row.targets.test(np.array(0.0)) else -1.0
            own = labels == 1 if n_classes == 2 else labels[:, None] == np.arange(n_classes)
            labels = np.where(own, 1.0, least)
        w, b = self._fit(_Problem(loss, X, labels, weights, offset, alpha))
        self.coef_, self.intercept_ = np.ascontiguousarray(w.T), np.array(b)
        return self

    def _with_class_weights(self, labels: Array, weights: Array | None) -> Array | None:
        if self.class_weight is None:
            return weights
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            counts = np.bincount(labels, weights)
            by_class = counts.sum() / (len(counts) * counts)
        else:
            present = self.classes_[labels]
            by_class = compute_class_weight(self.class_weight, classes=self.classes_, y=present)
        by_sample: Array = by_class[labels]
        return by_sample if weights is None else by_sample * weights

    def decision_function(self, X: Any, offset: Any = None) -> Array:
        """Return predictions: their sign, or for several classes the largest, tells the class.

        Parameters
        ----------
        X, offset
            As for `fit`.

        Returns
        -------
        ndarray, shape (n_samples,), or (n_samples, n_classes) for more than two, float64
            Predictions minus the one at which both classes are equally likely, which is 0 except
            for ``cloglog``.
        """
        z = self._predictions(X, offset)
        return z[:, 0] - float(_at_response(self._fitted_loss, 0.5)) if z.shape[1] == 1 else z

    def predict(self, X: Any, offset: Any = None) -> Array:
        """Return the class of each sample.

        Parameters
        ----------
        X, offset
            As for `fit`.

        Returns
        -------
        ndarray, shape (n_samples,)
        """
        z = self.decision_function(X, offset)
        labels: Array = self.classes_[(z > 0).astype(int) if z.ndim == 1 else z.argmax(axis=1)]
        return labels

    @available_if(_is_probabilistic)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any, offset: Any = None) -> Array:
        """Return the probabilities of the classes, if the loss defines them.

        Parameters
        ----------
        X, offset
            As for `fit`.

        Returns
        -------
        ndarray, shape (n_samples, n_classes), float64
            In the order of `classes_`. If each class has a model of its own, their probabilities
            are divided by their sum.
        """
        z = self._predictions(X, offset)
        response: Any = self._fitted_loss._response
        p = np.asarray(response(z))
        return np.hstack([1 - p, p]) if p.shape[1] == 1 else p / p.sum(axis=1, keepdims=True)

    def score(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None) -> float:
        """Return the accuracy.

        Parameters
        ----------
        X, y, sample_weight, offset
            As for `fit`.

        Returns
        -------
        float
        """
        predicted = self.predict(X, offset)
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))


def _first_not_finite(
    blocks: Iterable[tuple[slice, KernelData]], weights: Array | None
) -> tuple[int, int, float] | None:
    """Return row, column and value of the first entry that is not finite, where it counts."""
    for rows, X in blocks:
        counts = np.ones(rows.stop - rows.start, bool) if weights is None else weights[rows] != 0
        if isinstance(X, np.ndarray):
            step = max(1, BLOCK_ENTRIES // X.shape[1])
            parts = (slice(k, k + step) for k in range(0, len(X), step))
            found: Iterator[Any] = (
                (part.start + i, j, X[part.start + i, j])
                for part in parts
                for i, j in np.argwhere(~np.isfinite(X[part]) & counts[part, None])
            )
        else:
            layout, data, indices, indptr, _ = X
            at = np.flatnonzero(~np.isfinite(data[: indptr[-1]]))
            major, minor = np.searchsorted(indptr, at, "right") - 1, indices[at]
            i, j = (major, minor) if layout == "csr" else (minor, major)
            found = iter(sorted(zip(i[counts[i]], j[counts[i]], data[at[counts[i]]], strict=True)))
        first = next(found, None)
        if first is not None:
            return rows.start + int(first[0]), int(first[1]), float(first[2])
    return None


# --- which way to go ------------------------------------------------------------------------------

# The measurements are in docs/decisions.md, "A fit starts from a fit of some samples".
SAMPLE: Final = 100  # samples of a pilot, for each parameter of an output
SAMPLE_OF_ALL: Final = 20  # and for each of all outputs, where that takes no longer than it saves
EVENTS: Final = 5  # for each parameter of an output, from which on a sample is fitted
FEW: Final = 10  # samples that show a feature, which tell little of it
MOST_FACTORED: Final = 2000  # features, of which a matrix is factored
SMALL: Final = 1e8  # multiplications that a Hessian takes, in some milliseconds


class _OneBlasThread:
    """Holds BLAS to one thread while fits go on, of whatever threads.

    Its matrices are small beside X, and BLAS's own threads, which spin while they wait for the
    next one, would take turns with those of the kernels.
    """

    def __init__(self) -> None:
        self._lock, self._fits = Lock(), 0
        self._before: list[int] = []

    @cached_property
    def _libraries(self) -> Any:
        return ThreadpoolController().select(user_api="blas").lib_controllers

    def _set(self, numbers: list[int]) -> None:
        for library, number in zip(self._libraries, numbers, strict=True):
            library.set_num_threads(number)

    def _restore(self) -> None:
        try:
            self._set(self._before)
        except BaseException:  # an interrupt, which must not leave some of them at one thread
            self._set(self._before)
            raise

    def __enter__(self) -> None:
        with self._lock:
            if not self._fits:
                self._before = [library.num_threads for library in self._libraries]
                try:
                    self._set([1] * len(self._before))
                except BaseException:
                    self._restore()
                    raise
            self._fits += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._fits -= 1
            if not self._fits:
                self._restore()


_ONE_BLAS_THREAD: Final = _OneBlasThread()


def _fastest(problem: _Problem, objective: LinearObjective) -> str:
    """Return the solver for data of such a shape."""
    n_samples, n_features = problem.X.shape
    if not problem.loss.has_second_derivative:
        return "lbfgs"
    if n_samples * objective.n_parameters**2 <= SMALL:
        return "newton-cholesky"
    return "lbfgs" if n_features <= MOST_FACTORED else "newton-cg"


def _pilot(
    problem: _Problem, fit_intercept: bool, theta: Array, *, fitted: bool
) -> tuple[Array, Array | None]:
    """Return a start, and each output's approximate Hessian, from some of the samples.

    The fit then takes about ten passes over all data, for any scales of the features. The model is
    fitted to the samples if they have enough events and theta is not fitted already.
    """
    n_samples, n_features = problem.X.shape
    counting = np.arange(n_samples) if problem.weights is None else np.flatnonzero(problem.weights)
    size = SAMPLE * (n_features + 1)
    if len(theta) ** 2 <= 3 * len(counting):
        size = max(size, SAMPLE_OF_ALL * len(theta))
    size = min(size, len(counting))
    if size < len(counting):
        rows = np.random.default_rng(0).choice(counting, size, replace=False, shuffle=False)
        problem = problem.rows(np.sort(rows))
    n_outputs = len(theta) // (n_features + fit_intercept)
    objective = problem.objective(fit_intercept, n_outputs if n_outputs > 1 else None)
    start, events = theta, _events(problem, theta, n_outputs, fit_intercept)
    tells = events >= EVENTS * (n_features + 1) and size < len(counting) / 4
    max_iter = 20 if tells and not fitted else 0
    if n_outputs == 1:
        theta = solvers.newton(objective, theta, tol=1e-3, max_iter=max_iter).theta
        hessian = objective.hessian(theta)
    else:
        # That of one output, but for the factors that the curvature of the loss would be.
        squared = replace(
            problem,
            loss=problem.loss._sibling("squared_error"),
            y=np.zeros(size),
            offset=None,
            l2=2 * n_outputs * problem.l2,
        ).objective(fit_intercept)
        hessian = squared.hessian(squared.initial())
        if max_iter and np.isfinite(hessian).all():
            about: dict[str, Any] = {"tol": 1e-3, "max_iter": max_iter, "hessian": hessian}
            theta = solvers.lbfgs(objective, theta, **about).theta
        if max_iter and objective.n_parameters <= MOST_FACTORED / 2:
            hessian = objective.hessian(theta)  # it saves a third of the passes
    if not (np.isfinite(theta).all() and np.isfinite(hessian).all()):
        return start, None
    # Of a feature that the sample hardly shows, its Hessian says too little.
    X = problem.X
    shown = np.count_nonzero(X, axis=0) if isinstance(X, np.ndarray) else X.count_nonzero(axis=0)
    shown = np.repeat(shown, len(hessian) // (n_features + fit_intercept))
    diagonal = np.diagonal(hessian)[: len(shown)]
    least = np.maximum(diagonal, np.median(diagonal) / size)
    hessian[range(len(shown)), range(len(shown))] += np.where(shown < FEW, least, 0)
    return theta, hessian


def _events(problem: _Problem, theta: Array, n_outputs: int, fit_intercept: bool) -> float:
    """Return the number of informative samples for the output that has the fewest.

    For classes, it is the size of the smallest class. For other losses, it is the sum of second
    derivatives without features.
    """
    loss, y = problem.loss, problem.y
    if loss.row.of_classes:
        return float(np.bincount(y, minlength=n_outputs).min())
    z = np.zeros(y.shape) + (theta[-n_outputs:] if fit_intercept else 0.0)
    if problem.offset is not None:
        z += problem.offset if z.ndim == problem.offset.ndim else problem.offset[:, None]
    return float(np.min(loss.pointwise.second_derivative(z, y).sum(axis=0)))


@np.errstate(all="ignore")
def _moments(X: Any, weights: Array | None) -> tuple[Array, Array]:
    """Return the columns' means and variances over samples with weight; 0 if unknown.

    That is for a rounding error, and for what overflows.
    """
    if not isinstance(X, np.ndarray):
        X = X if X.dtype.kind == "f" else X.astype(np.float64)
        return _without_noise(X.shape[0], *mean_variance_axis(X, 0, weights))
    total, mean, squares = 0.0, np.zeros(X.shape[1]), np.zeros(X.shape[1])
    step = max(1, BLOCK_ENTRIES // X.shape[1])
    for k in range(0, len(X), step):
        rows = X[k : k + step].astype(np.float64)
        w = np.ones(len(rows)) if weights is None else weights[k : k + step]
        rows, w = rows[w > 0], w[w > 0]
        if not len(w):
            continue
        weight = float(w.sum())
        own = w @ rows / weight
        change = own - mean
        squares += w @ np.square(rows - own) + change**2 * (total * weight / (total + weight))
        total += weight
        mean += change * (weight / total)
    return _without_noise(len(X), mean, squares / total)


def _without_noise(n_samples: int, mean: Array, variances: Array) -> tuple[Array, Array]:
    noise = np.square(n_samples * np.finfo(np.float64).eps * mean)
    known = (variances > noise) & np.isfinite(variances)
    return np.where(np.isfinite(mean), mean, 0.0), np.where(known, variances, 0.0)


# --- models without features ----------------------------------------------------------------------


def _at_response(loss: Loss, mean: npt.ArrayLike) -> Array:
    """Return the predictions that have these mean responses, or 0 if there are none."""
    with np.errstate(all="ignore"):
        return loss.row.link(np.asarray(mean, np.float64))


def _null_model(objective: LinearObjective, problem: _Problem) -> Array:
    """Return parameters to start from: zeros, with an intercept that gives the targets' mean."""
    loss, y, weights, offset = problem.loss, problem.y, problem.weights, problem.offset
    theta = objective.initial()
    if objective._kinds.b is None:
        return theta
    if loss.row.of_classes:
        with np.errstate(divide="ignore"):
            start = np.log(np.bincount(y, weights, objective._n_outputs))
        start -= start[np.isfinite(start)].mean()
    else:
        with np.errstate(all="ignore"):
            mean = np.average(y, axis=0, weights=weights)
        start = np.atleast_1d(_at_response(loss, mean))
    start = start - (0.0 if offset is None else np.average(offset, axis=0, weights=weights))
    start[~np.isfinite(start)] = 0.0
    theta[objective._n_coefficients :] = start
    return theta


def _best_intercept(loss: Loss, y: Array, weights: Array | None, offset: Array | None) -> float:
    """Return the intercept of the best model without features."""
    nothing = np.broadcast_to(0.0, (len(y), 1))
    problem = _Problem(loss, nothing, y, weights, offset, 1.0)
    objective = problem.objective(fit_intercept=True)
    solve = solvers.newton if loss.has_second_derivative else solvers.lbfgs
    return float(solve(objective, _null_model(objective, problem), tol=1e-12).theta[-1])


def _saturated(loss: Loss, y: Array) -> Array:
    """Return the least loss that any prediction has, for each target."""
    # A mean at the end of its range has an infinite prediction, and 0 times infinity is NaN.
    return np.asarray(loss.pointwise(_at_response(loss, y).clip(-1e6, 1e6), y))


class _Progress:
    """A bar of iterations, with the objective and the gradient."""

    def __init__(self, title: str, max_iter: int) -> None:
        self._bar = progress_bar(title, "verbose=True", desc=title, total=max_iter, unit=" it")

    def __call__(self, n_iter: int, value: float, gradient_norm: float) -> None:
        self._bar.set_postfix(loss=f"{value:.6g}", gradient=f"{gradient_norm:.2g}", refresh=False)
        self._bar.update(n_iter - self._bar.n)

    def close(self) -> None:
        self._bar.close()

"""A loss of a linear model and its data as a function of one vector, for optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.config import guarded_class
from pullback.design_matrix import Dense, as_data
from pullback.engine import enter
from pullback.foreign import check_computed, door_of
from pullback.hessians import hessian_sums
from pullback.line import Line, LinePart
from pullback.losses import Loss, as_loss
from pullback.partial import Kinds, PartialSums, divisor, tree_sum
from pullback.penalty import Penalty
from pullback.protocol import as_array, check_labels, kernel_dtype, shown
from pullback.registry import Hinted
from pullback.samples import (
    Job,
    Model,
    Samples,
    as_given,
    as_offset,
    check_offset,
    check_outputs,
    check_samples,
    converted_samples,
    far_exponent,
    over_power,
    weighing,
)
from pullback.tables.losses import LOSSES, LossRow

__all__ = ["LinearObjective"]

Array: TypeAlias = npt.NDArray[Any]
# Called with the operation at the start of each pass; yields each part's name for messages.
Source: TypeAlias = Callable[[str], Iterator[tuple[str, Samples]]]

_OP: Final = "LinearObjective"

# The most coefficients, over all directions, that one pass over an array takes: a kernel holds sums
# of them for each of its slabs of rows.
_GROUP: Final = 1 << 14
# Two of one output take as long together as three one by one.
_FEW: Final = 2


@guarded_class
class LinearObjective(Hinted):
    """The loss of a linear model and its data as a function of one vector of parameters.

    The parameters are ``theta = [w.ravel(), b]``. The objective is the mean loss plus the penalty
    ``l2/2 ||w||^2`` or ``1/2 w^T P w``; intercepts are not penalised. Each method makes one pass
    over the data, except for `hessian` and `covariance`. Arrays are read in place.

    Parameters
    ----------
    X : array_like or sparse matrix, shape (N, D), or chunks
        Data, in any layout that the loss takes. Without `y`, chunks ``(X, y)``, ``(X, y,
        sample_weight)`` or ``(X, y, sample_weight, offset)``, whose last two entries may be None:
        a list of chunks, another iterable that can be iterated repeatedly, or a function without
        arguments that returns a new iterator each time.
    y : array_like, shape (N,) or (N, K), optional
        Targets.
    loss : str or Loss
        A loss such as "logistic", ``pb.logistic`` or ``pb.huber(1.35)``. It is required. A name
        means the loss in ``pb.losses``, with its default parameter.
    l2 : float or array_like
        The penalty: one number; a number for each coefficient, in shape (D,) or that of w; or P, a
        symmetric positive semidefinite matrix, of shape (D, D) for each output or (D K, D K) in the
        order of ``w.ravel()``. Numbers are finite and not negative. An array is copied.
    sample_weight : array_like, shape (N,), optional
        Weights. With chunks, they are part of the chunks.
    fit_intercept : bool
        Whether the model has intercepts.
    offset : array_like, shape (N,) or (N, K), optional
        Added to the predictions, as for the loss. With chunks, they are part of the chunks.
    n_outputs : int, optional
        Number of outputs, K, if `y` does not determine it. For labels the default is the largest
        label plus one, but at least 2.
    progress : bool
        Whether to show a progress bar of tqdm, with the number of the pass, the samples read, the
        time left and the last loss. The total of chunks is known after the first pass.

    Raises
    ------
    TypeError
        If an argument has the wrong type, such as chunks that can be iterated only once.
    ValueError
        If no loss has the name, shapes do not fit, a target or weight is outside its domain, or
        `l2` is no penalty.
    ImportError
        If `progress` is true and tqdm is not installed.

    Notes
    -----
    Each call reads the current values of the data. A change in place takes effect in the next call,
    and nothing computed from the values is kept. Data that NumPy cannot view, such as a list or a
    frame of several dtypes, are copied once, when the objective is made. Data that NumPy can view
    but kernels cannot read, such as integers in `y`, are converted in each call. Chunks are read
    anew in every pass. The number of samples must not change.

    Results are new float64 arrays. Copies share the data with the original; deep copies and pickles
    have their own. Threads may share an objective without a progress bar. A chunk without rows adds
    nothing.

    NaN or inf in the data makes results NaN or inf without an error, as in NumPy, unless the sample
    has weight 0.

    Examples
    --------
    >>> import numpy as np
    >>> import pullback as pb
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> objective = pb.LinearObjective(X, [0, 0, 1, 1], pb.logistic, l2=0.1)
    >>> value, gradient = objective.value_and_grad(objective.initial())
    >>> round(value, 4), gradient.tolist()
    (0.6931, [-0.5, 0.0])

    ``pullback.solvers.newton(objective)`` minimises it. With SciPy,
    ``minimize(objective.value_and_grad, objective.initial(), jac=True, hessp=objective.hvp,
    method="trust-ncg")``.
    """

    def __init__(
        self,
        X: Any,
        y: npt.ArrayLike | None = None,
        loss: str | Loss | None = None,
        l2: npt.ArrayLike = 0.0,
        sample_weight: npt.ArrayLike | None = None,
        fit_intercept: bool = True,
        *,
        offset: npt.ArrayLike | None = None,
        n_outputs: int | None = None,
        progress: bool = False,
    ) -> None:
        if loss is None:
            raise TypeError(
                f"{_OP}: loss is missing; there are "
                + ", ".join(f"pb.{row.path}" for row in LOSSES.values())
            )
        self._loss = loss = as_loss(_OP, loss)
        self._n_samples: int | None = None  # in a whole pass
        self._w_shape: tuple[int, ...] | None = None  # before the number of outputs is known
        self._bar = None
        if progress:
            self._bar = progress_bar(_OP, "progress=True", unit=" samples", unit_scale=True)
        self._passes = 0
        self._counted = ""  # what to say of parameters that do not fit
        data = None if y is None else as_given(_OP, loss.row, X, y, sample_weight, offset)
        if data is not None:
            X, y, sample_weight, offset = data
            self._source: Source = partial(_array_source, loss.row, data)
        elif sample_weight is None and offset is None:
            self._source = _chunk_source(loss.row, X)
        else:
            name = "offset" if sample_weight is None else "sample_weight"
            raise TypeError(f"{_OP}: y is missing; the {name} of chunks is part of them")
        where, first = next((part for part in self._source(_OP) if part[1].n_samples), (_OP, None))
        if first is None:
            raise ValueError(f"{_OP}: X has no chunks with samples")
        if data is not None:
            self._n_samples = first.n_samples
        self._n_features = first.n_features
        shape = self._check_first(first, n_outputs)
        self._n_outputs = shape[0] if shape else 1
        # To make it again with the same number of outputs, even if the labels have changed.
        self._penalty = Penalty(_OP, l2, (self._n_features, *shape), loss._engine)
        options = {"offset": offset, "n_outputs": self._n_outputs, "progress": progress}
        arguments = X, y, loss, self._penalty.given, sample_weight, fit_intercept
        self._made = (type(self), arguments, options)
        self._loss._check_rows(where, first, self._n_outputs)
        self._n_coefficients = self._n_features * self._n_outputs
        self._w_shape = w_shape = (self._n_features, *shape)
        check_offset(where, first, w_shape)
        like = (np.zeros(shape) if shape else 0.0) if fit_intercept else None
        self._kinds = Kinds(w_shape, np.dtype(np.float64), like)
        self._layout = "in chunks" if data is None else first.data.layout
        if data is not None and self._bar is None:
            self._enter_directly(data, first.data.shape)

    def _enter_directly(self, data: tuple[Any, ...], shape: tuple[int, int]) -> None:
        """Let calls enter the kernels directly, with all of the data at once."""
        about = shape, self._penalty.diagonal, self._kinds, self._n_outputs
        make = self._loss._objective_methods(data, *about)
        if make is None:
            return
        names = ["predict", "unpack"]
        if not self._penalty.has_matrix:
            names += ["value", "grad", "value_and_grad", "hvp"]
            names += ["initial"] * self._loss.row.flat_at_zero
        for name in names:
            setattr(self, name, enter(partial(make, name), self, name, _OP, __name__))

    def __reduce__(self) -> Any:
        """Pickle and copy the arguments that it was made of."""
        return _make, self._made

    def __repr__(self) -> str:
        n = "not yet known" if self._n_samples is None else self._n_samples
        outputs = f", K={self._n_outputs}" if self._n_outputs > 1 else ""
        intercept = "" if self._kinds.b is not None else ", no intercept"
        return (
            f"<LinearObjective: {self._loss!r}, X {self._layout} (N={n}, D={self._n_features})"
            f"{outputs}, {self._penalty}{intercept}, {self.n_parameters} parameters>"
        )

    @property
    def n_parameters(self) -> int:
        """Length of `theta`: D or D K coefficients, and the intercepts, one for each output."""
        return self._n_coefficients + (0 if self._kinds.b is None else self._n_outputs)

    def initial(self) -> Array:
        """Return parameters to start from, shape (n_parameters,).

        They are zeros for every loss except ``relu_mse``, whose gradient is 0 at zeros. For
        ``relu_mse`` they are the end of one steepest-descent step from zeros, of optimal length,
        for least squares on the targets' positive parts. Without an offset, some prediction is then
        positive where its target is. This takes two passes over the data.
        """
        zeros = np.zeros(self.n_parameters)
        if not self._loss.row.flat_at_zero:
            return zeros
        op, model = f"{_OP}.initial", self._model(zeros)
        linear = self._loss._sibling("squared_error")

        def summed(job: Job, v: tuple[Array, Array] | None = None) -> PartialSums:
            return tree_sum(
                linear._sums(where, replace(samples, y=np.maximum(samples.y, 0)), model, job, v=v)
                for where, samples in self._chunks(op)
            )

        gradient = self._gradient(op, summed("gradient"), model)
        along = self._model(gradient)
        curved = self._gradient(op, summed("hvp", (along.w, along.b)), along)
        with np.errstate(all="ignore"):
            step = np.vdot(gradient, gradient) / np.vdot(gradient, curved)
            start: Array = -step * gradient
        return start if np.isfinite(start).all() else zeros

    def unpack(self, theta: npt.ArrayLike) -> tuple[Array, Any]:
        """Return the model's parameters, in the form that losses take.

        Parameters
        ----------
        theta : array_like, shape (n_parameters,)
            All parameters in one vector.

        Returns
        -------
        w : ndarray, shape (D,), or (D, K) for several outputs
        b : float, or ndarray of shape (K,) for several outputs, or None without intercepts

        Raises
        ------
        ValueError
            If `theta` has another shape.
        """
        model = self._model(self._vector(f"{_OP}.unpack", theta))
        return self._kinds.deliver(model.w, model.b)

    def value(self, theta: npt.ArrayLike) -> float:
        """Return the objective.

        Parameters
        ----------
        theta : array_like, shape (n_parameters,)
            All parameters in one vector.

        Raises
        ------
        ValueError
            If `theta` has another shape, or a chunk holds data that the loss refuses.
        """
        if (door := door_of(theta)) is not None:
            return door.objective_value(self, theta)  # type: ignore[no-any-return]
        op = f"{_OP}.value"
        model = self._model(self._vector(op, theta))
        sums = self._summed(op, model, "value")
        return self._finished(op, sums, model)

    def grad(self, theta: npt.ArrayLike) -> Array:
        """Return the gradient alone; see `value_and_grad`.

        Parameters
        ----------
        theta : array_like, shape (n_parameters,)
            All parameters in one vector.
        """
        return self._value_and_grad(f"{_OP}.grad", theta)[1]

    def value_and_grad(self, theta: npt.ArrayLike) -> tuple[float, Array]:
        """Return the objective and its gradient, in one pass over the data.

        Parameters
        ----------
        theta : array_like, shape (n_parameters,)
            All parameters in one vector.

        Returns
        -------
        value : float
        gradient : ndarray, shape (n_parameters,), float64

        Raises
        ------
        ValueError
            If `theta` has another shape, or a chunk holds data that the loss refuses.
        """
        return self._value_and_grad(f"{_OP}.value_and_grad", theta)

    def hvp(self, theta: npt.ArrayLike, v: npt.ArrayLike) -> Array:
        """Return the product of the objective's Hessian at `theta` with directions.

        Three directions or more, or two of several outputs, share a pass over the data: all of
        them over chunks, and over an array as many as have 16384 coefficients together.

        Parameters
        ----------
        theta : array_like, shape (n_parameters,)
            All parameters in one vector.
        v : array_like, shape (n_parameters,), or (n_parameters, m)
            A direction, or m of them as columns.

        Returns
        -------
        ndarray, shape of `v`, float64

        Raises
        ------
        ValueError
            If `theta` or `v` has another shape, or a chunk holds data that the loss refuses.
        """
        op = f"{_OP}.hvp"
        model = self._model(self._vector(op, theta))
        along = self._vector(op, v, "v", columns=True)
        columns = along if along.ndim == 2 else along[:, None]
        step = max(1, _GROUP // max(1, self._n_coefficients))
        if self._n_outputs == 1 and columns.shape[1] <= _FEW:
            step = 1
        groups = [columns[:, i : i + step] for i in range(0, columns.shape[1], step)]
        directions = [self._model(np.ascontiguousarray(group)) for group in groups]

        def curved(where: str, samples: Samples) -> Array:
            products = (
                self._loss._sums(where, samples, model, "hvp", v=(to.w, to.b)) for to in directions
            )
            return np.fromiter(products, object, len(directions))

        totals = tree_sum(curved(*chunk) for chunk in self._chunks(op))
        for group, total, direction in zip(groups, totals, directions, strict=True):
            group[...] = self._gradient(op, total, direction).reshape(group.shape)
        return along

    def hessian(self, theta: npt.ArrayLike) -> Array:
        """Return the objective's Hessian at `theta`, as `Loss.hessian` does of the loss.

        Parameters
        ----------
        theta : array_like, shape (n_parameters,)
            All parameters in one vector.

        Returns
        -------
        ndarray, shape (n_parameters, n_parameters), float64

        Raises
        ------
        ValueError
            If `theta` has another shape, or a chunk holds data that the loss refuses.

        Notes
        -----
        It takes two passes over `X`, or K + 1 for a loss of K classes, chunk by chunk. With SciPy,
        ``minimize(objective.value_and_grad, objective.initial(), jac=True,
        hess=objective.hessian, method="trust-exact")``.
        """
        return self._hessian(f"{_OP}.hessian", theta)[0]

    def hessian_operator(self, theta: npt.ArrayLike) -> Any:
        """Return the objective's Hessian at `theta` as SciPy's linear operator, by `hvp`.

        Parameters
        ----------
        theta : array_like, shape (n_parameters,)
            All parameters in one vector; a copy is kept.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator, shape (n_parameters, n_parameters), float64
            Symmetric. Each product is a pass over the data with their current values.

        Raises
        ------
        ImportError
            If SciPy is not installed.
        ValueError
            If `theta` has another shape.

        Examples
        --------
        A step of Newton's method by conjugate gradients:

        >>> import numpy as np
        >>> import pullback as pb
        >>> from scipy.sparse.linalg import cg
        >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> objective = pb.LinearObjective(X, [0, 0, 1, 1], pb.logistic, l2=0.1)
        >>> theta = objective.initial()
        >>> H = objective.hessian_operator(theta)
        >>> step, failed = cg(H, -objective.grad(theta))
        >>> step.round(4), failed
        (array([ 1.2121, -1.8182]), 0)
        """
        op = f"{_OP}.hessian_operator"
        try:
            linear = import_module("scipy.sparse.linalg")  # an optional dependency
        except ImportError as error:
            raise ImportError(f"{op}: a LinearOperator needs SciPy: pip install scipy") from error
        by = partial(self.hvp, self._vector(op, theta))
        size = self.n_parameters
        return linear.LinearOperator((size, size), by, by, by, np.float64, by)

    def covariance(self, theta: npt.ArrayLike, kind: str = "hessian") -> Array:
        """Return the covariance of the estimated parameters at the optimum `theta`.

        Parameters
        ----------
        theta : array_like, shape (n_parameters,)
            All parameters in one vector, at the minimum of the objective.
        kind : {"hessian", "robust"}
            "hessian" is the inverse of A. Here A is the Hessian of the sum of losses and penalty,
            which is the sum of the weights times the objective's Hessian. "robust" is the sandwich
            ``A^-1 B A^-1``, where B is the sum of the outer products of the samples' gradients. It
            is valid even if the data's variance is not the one that the loss assumes.

        Returns
        -------
        ndarray, shape (n_parameters, n_parameters), float64

        Raises
        ------
        numpy.linalg.LinAlgError
            If the Hessian is singular, or not positive definite.
        ValueError
            If `theta` has another shape, the kind is unknown, or a chunk holds data that the loss
            refuses.

        Notes
        -----
        The loss has to be a negative log-likelihood. A constant factor does not change the "robust"
        kind, but it scales "hessian": ``squared_error`` is twice the negative log-likelihood of
        variance 1, so its "hessian" kind must be multiplied by twice the variance of the residuals.
        A weight counts as repetitions of its sample for "hessian", and as the weight of one
        independent sample for "robust".

        Examples
        --------
        Standard errors. The two groups have means 4 and 8, and the model predicts the logarithms of
        the means.

        >>> import numpy as np
        >>> import pullback as pb
        >>> X = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        >>> y, theta = np.array([3.0, 5.0, 7.0, 9.0]), np.log([4.0, 2.0])
        >>> objective = pb.LinearObjective(X, y, pb.poisson, fit_intercept=False)
        >>> covariance = objective.covariance(theta)
        >>> np.sqrt(np.diag(covariance)).round(4)
        array([0.3536, 0.433 ])
        >>> np.sqrt(np.diag(objective.covariance(theta, "robust"))).round(4)
        array([0.1768, 0.1976])

        Laplace's approximation of the log-evidence, without the constants of loss and prior:

        >>> log_determinant = np.linalg.slogdet(covariance)[1]
        >>> evidence = -len(y) * objective.value(theta) + log_determinant / 2 + np.log(2 * np.pi)
        >>> round(float(log_determinant), 4), round(float(evidence), 4)
        (-4.852, 19.7733)
        """
        op = f"{_OP}.covariance"
        if not isinstance(kind, str) or kind not in ("hessian", "robust"):
            raise ValueError(f"{op}: kind must be 'hessian' or 'robust', not {shown(kind)}")
        hessian, weight, exponent, grams = self._hessian(op, theta, robust=kind == "robust")
        inverse = _inverse(op, hessian) / weight
        if kind == "hessian":
            with np.errstate(all="ignore"):
                return np.ldexp(inverse, -exponent)
        sandwich: Array = inverse @ grams[0] @ inverse
        return (sandwich + sandwich.T) / 2

    def line(self, theta: npt.ArrayLike, direction: npt.ArrayLike) -> Line:
        """Return ``phi``, the objective at ``theta + t * direction``: ``phi(t)`` is (value, slope).

        It takes one pass over the data. Each step then takes O(N K) operations, so a whole line
        search costs hardly more than the pass.

        Parameters
        ----------
        theta, direction : array_like, shape (n_parameters,)
            All parameters, and a direction, in one vector each.

        Returns
        -------
        Line
            It keeps 2 N K predictions, and copies of the targets and weights.

        Raises
        ------
        ValueError
            If `theta` or `direction` has another shape, or a chunk holds data that the loss
            refuses.
        """
        op = f"{_OP}.line"
        start = self._model(self._vector(op, theta))
        change = self._model(self._vector(op, direction, "direction"))
        w, b = (np.concatenate(pair, axis=-1) for pair in zip(start[:2], change[:2], strict=True))
        both = Model(w, b, self._kinds)
        parts = []
        for where, samples in self._chunks(op):
            line = np.empty((samples.n_samples, len(b)))
            plain = Samples(samples.data, None, None, None, float(len(line)))
            self._loss._sums(where, plain, both, "predict", kept=line)
            if samples.offset is not None:
                with np.errstate(all="ignore"):
                    line[:, : self._n_outputs] += samples.offset.reshape(len(line), -1)
            parts.append(LinePart(where, _without_data(samples, Dense(where, line)), line))
        weight = divisor(op, "mean", tree_sum(part.samples.weight for part in parts))
        both_w = () if self._penalty.is_zero else (start.w, change.w)
        coefficients = [*map(self._penalty.penalised, both_w)]
        with np.errstate(all="ignore"):
            pulls = [*map(self._penalty.times, coefficients)]
        return Line(self._loss, parts, weight, [*coefficients, *pulls])

    def predict(self, X: Any, theta: npt.ArrayLike, offset: npt.ArrayLike | None = None) -> Array:
        """Return the mean response: the inverse link of the predictions, or the predictions.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (N, D)
            Data, in any layout that the loss takes.
        theta : array_like, shape (n_parameters,)
            All parameters in one vector.
        offset : array_like, shape (N,) or (N, K), optional
            Added to these samples' predictions.

        Returns
        -------
        ndarray, shape (N,), or (N, K) for several outputs, float64
            max(0, z) for ``relu_mse``, the probability of 1 for ``logistic``, the classes'
            probabilities for ``softmax_cross_entropy``, exp(z) for a log link, and z for the other
            losses.

        Raises
        ------
        ValueError
            If a shape does not fit.
        """
        op = f"{_OP}.predict"
        model = self._model(self._vector(op, theta))
        check_labels(op, ("X", "offset"), (X, offset))
        data = as_data(op, X)
        if data.shape[1] != self._n_features:
            raise ValueError(f"{op}: X has shape {data.shape}, needs (N, {self._n_features})")
        z = np.empty((data.shape[0], self._n_outputs))
        check_computed(op, "offset", offset)
        given = None if offset is None else as_array(op, "offset", offset)
        given = as_offset(op, given, data.shape)
        samples = Samples(data, None, None, None, float(len(z)), given)
        check_offset(op, samples, self._kinds.w_shape)
        if len(z) > 0:
            self._loss._sums(op, samples, model, "predict", kept=z)
        response = self._loss._response
        z = z if response is None else response(z)
        return z.reshape(len(z), *self._kinds.w_shape[1:])

    # --- one pass ---

    def _hessian(
        self, op: str, theta: npt.ArrayLike, *, robust: bool = False
    ) -> tuple[Array, float, int, list[Array]]:
        """Return the Hessian, the sum of weights over 2^k, k, and the sum of g g^T of gradients."""
        model = self._model(self._vector(op, theta))
        weights: list[float] = []
        exponent = 0

        def terms() -> Iterator[Array]:
            nonlocal exponent
            for where, given in self._chunks(op):
                if not any(weights):  # all chunks' have the factor of the first that has any
                    exponent = given.exponent or far_exponent(given)
                samples = given if given.exponent else over_power(given, exponent)
                weights.append(samples.weight)
                sums = hessian_sums(self._loss, where, samples, model)[None]
                if robust:
                    grams = self._loss._sample_grads(where, samples, model).gram()
                    sums = np.concatenate([sums, grams[None]])
                yield sums

        with np.errstate(all="ignore"):
            hessian, *grams = tree_sum(terms())
            weight = divisor(op, "mean", tree_sum(weights))
            hessian /= weight
            self._penalty.add_to(hessian)
        return hessian, weight, exponent, grams

    def _summed(
        self, op: str, model: Model, job: Job, v: tuple[Array, Array] | None = None
    ) -> PartialSums:
        return tree_sum(
            self._loss._sums(where, samples, model, job, v=v) for where, samples in self._chunks(op)
        )

    def _value_and_grad(self, op: str, theta: npt.ArrayLike) -> tuple[float, Array]:
        model = self._model(self._vector(op, theta))
        sums = self._summed(op, model, "gradient")
        return self._finished(op, sums, model), self._gradient(op, sums, model)

    def _finished(self, op: str, sums: PartialSums, model: Model) -> float:
        by = divisor(op, "mean", sums.weight)
        with np.errstate(all="ignore"):
            value = float(np.float64(sums.loss) / by) + self._penalty.value(model.w)
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{value:.6g}")
        return value

    def _gradient(self, op: str, sums: PartialSums, at: Model) -> Array:
        """Return the mean gradient, plus the penalty's, as one vector."""
        by = divisor(op, "mean", sums.weight)
        with np.errstate(all="ignore"):
            gw, gb = sums.gw / by, sums.gb / by
            if not self._penalty.is_zero:
                gw += self._penalty.times(at.w)
        return np.concatenate([gw.ravel(), gb if self._kinds.b is not None else gb[:0]])

    def _vector(
        self, op: str, theta: npt.ArrayLike, name: str = "theta", *, columns: bool = False
    ) -> Array:
        """Return a copy of all parameters, of a direction, or of several directions as columns."""
        given = as_array(op, name, theta)
        kernel_dtype(op, name, given.dtype)
        n = self.n_parameters
        if given.shape != (n,) and not (columns and given.ndim == 2 and len(given) == n):
            needed = f"({n},) or ({n}, m)" if columns else f"({n},)"
            raise ValueError(f"{op}: {name} has shape {given.shape}, needs {needed}{self._counted}")
        return np.array(given, np.float64, order="C")

    def _model(self, theta: Array) -> Model:
        """Return the parts w and b of a vector, or of columns, which are then outputs of one w."""
        width = self._n_outputs * math.prod(theta.shape[1:])
        w, b = theta[: self._n_coefficients], theta[self._n_coefficients :]
        b = b.ravel() if self._kinds.b is not None else np.zeros(width)
        return Model(w.reshape(self._n_features, width), b, self._kinds)

    # --- the data ---

    def _chunks(self, op: str) -> Iterator[tuple[str, Samples]]:
        """Yield each part of the data in one pass: its name for messages, and its samples."""
        n_samples = 0
        if self._bar is not None:
            self._passes += 1
            about = f"{self._loss.__name__}, pass {self._passes}"
            self._bar.set_description_str(about, refresh=False)
            self._bar.reset(self._n_samples)
        for where, samples in self._source(op):
            if samples.n_features != self._n_features:
                raise ValueError(
                    f"{where}: X has shape {samples.data.shape}, needs (N, {self._n_features})"
                )
            if samples.n_samples == 0:
                continue  # it adds nothing
            if self._w_shape is not None:
                check_outputs(where, self._loss.row, samples, self._w_shape)
            n_samples += samples.n_samples
            yield where, samples
            if self._bar is not None:
                self._bar.update(samples.n_samples)
        if self._bar is not None:
            self._bar.refresh()
        if self._n_samples not in (None, n_samples):
            raise ValueError(
                f"{op}: this pass over X gave {n_samples} samples, an earlier one "
                f"{self._n_samples}; every pass must yield the same chunks"
            )
        self._n_samples = n_samples

    def _check_first(self, first: Samples, n_outputs: int | None) -> tuple[int, ...]:
        """Return the shape of a prediction, () or (K,), from the first samples' targets."""
        valid = n_outputs is None or (
            isinstance(n_outputs, int | np.integer)
            and not isinstance(n_outputs, bool)
            and n_outputs > 0
        )
        if not valid:
            raise ValueError(f"{_OP}: n_outputs must be a positive integer, not {shown(n_outputs)}")
        shape: tuple[int, ...] = first.y.shape[1:]
        if self._loss.row.of_classes and not shape:
            if n_outputs is None:
                largest = max(int(samples.y.max()) for _, samples in self._chunks(_OP))
                n_outputs = max(2, largest + 1)
                self._counted = f"; y has {n_outputs} classes, give n_outputs= if there are more"
            shape = (int(n_outputs),)
            n_outputs = None
        if n_outputs is not None and n_outputs != (shape[0] if shape else 1):
            raise ValueError(f"{_OP}: n_outputs is {shown(n_outputs)}, y has shape {first.y.shape}")
        least = 1 + self._loss.row.of_classes
        if shape and shape[0] < least:
            raise ValueError(f"{_OP}: {self._loss.__name__} needs {least} outputs, not {shape[0]}")
        return shape


def _make(kind: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return kind(*arguments, **options)


def _inverse(op: str, hessian: Array) -> Array:
    """Return the inverse of a positive definite matrix, scaled to a diagonal of ones meanwhile.

    Raises
    ------
    numpy.linalg.LinAlgError
        If it is singular, or not positive definite.
    """
    with np.errstate(all="ignore"):
        scale = 1 / np.sqrt(hessian.diagonal())
        scaled = scale[:, None] * hessian * scale
    least = -np.inf
    if np.isfinite(scaled).all():
        values, vectors = np.linalg.eigh(scaled)
        least = values.min(initial=1)
    if not least > len(scaled) * np.finfo(float).eps:
        raise np.linalg.LinAlgError(
            f"{op}: the Hessian is singular or not positive definite. A column of X that is a "
            "linear combination of others, or constant beside an intercept, has to be left out or "
            "needs l2=. Intercepts of all classes are not unique: use a column of ones in X, "
            "fit_intercept=False and l2= instead"
        )
    half = scale[:, None] * vectors / np.sqrt(values)
    inverse: Array = half @ half.T
    return inverse


def _array_source(row: LossRow, data: tuple[Any, ...], op: str) -> Iterator[tuple[str, Samples]]:
    samples, _ = weighing(op, "mean", converted_samples(op, row, *data))
    yield op, samples


def _without_data(samples: Samples, line: Dense) -> Samples:
    """Return copies of targets and weights, with predictions in the place of X."""
    y, weights = (None if a is None else a.copy() for a in (samples.y, samples.sample_weight))
    return replace(samples, data=line, y=y, given_y=y, sample_weight=weights, offset=None)


def _chunk_source(row: LossRow, chunks: Any) -> Source:
    """Return a source of chunks. They are checked in each pass: they may come from a file."""
    if hasattr(chunks, "shape") or not (isinstance(chunks, Iterable) or callable(chunks)):
        raise TypeError(
            f"{_OP}: y is missing; without it, X must be chunks (X, y), not {type(chunks).__name__}"
        )
    if isinstance(chunks, Iterable) and iter(chunks) is chunks:
        raise TypeError(
            f"{_OP}: X is an iterator, which one pass exhausts; give a list of chunks, or a "
            "function that returns a new iterator each time"
        )
    if callable(chunks) and chunks() is chunks():
        raise TypeError(f"{_OP}: X() returned the same iterator twice; it must return a new one")

    def source(op: str) -> Iterator[tuple[str, Samples]]:
        for i, chunk in enumerate(chunks() if callable(chunks) else chunks):
            where = f"{op}: chunk {i}"
            if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3, 4):
                forms = "(X, y), (X, y, sample_weight) or (X, y, sample_weight, offset)"
                raise TypeError(f"{where} must be {forms}")
            given = (*chunk, None, None)[:4]
            yield where, check_samples(where, row, *given, may_lack=True)

    return source


def progress_bar(op: str, asked: str, **options: Any) -> Any:
    """Return a progress bar of tqdm, an optional dependency."""
    try:
        from tqdm import tqdm  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"{op}: {asked} needs tqdm: pip install 'pullback[progress]'") from error
    return tqdm(**options)

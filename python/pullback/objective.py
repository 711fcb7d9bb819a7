"""A loss of a linear model and its data as a function of one vector, for optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.config import guarded_class
from pullback.design_matrix import as_data
from pullback.engine import enter
from pullback.hessians import hessian_sums
from pullback.losses import Loss
from pullback.partial import Kinds, PartialSums, divisor, tree_sum
from pullback.protocol import as_array, as_number, kernel_dtype, shown
from pullback.registry import Hinted
from pullback.samples import (
    Job,
    Model,
    Samples,
    as_given,
    check_outputs,
    check_samples,
    weighing,
)
from pullback.tables.losses import LOSSES, LossRow

__all__ = ["LinearObjective"]

Array: TypeAlias = npt.NDArray[Any]
# Called at the start of each pass with the operation; yields what to call each part in messages.
Source: TypeAlias = Callable[[str], Iterator[tuple[str, Samples]]]

_OP: Final = "LinearObjective"


@guarded_class
class LinearObjective(Hinted):
    """The loss of a linear model as a function of its parameters, one vector.

    The parameters are ``theta = [w.ravel(), b]``, and the objective is the mean loss plus
    ``l2/2 ||w||^2``; intercepts are not penalised. Every method but `hessian` makes one pass over
    the data, which stay where they are.

    Parameters
    ----------
    X : array_like or sparse matrix, shape (N, D), or chunks
        Data, in any layout that the loss takes. Without `y`, chunks ``(X, y)`` or
        ``(X, y, sample_weight)``: a list of them, another iterable that can be gone through again
        and again, or a function without arguments that returns a new iterator each time.
    y : array_like, shape (N,) or (N, K), optional
        Targets.
    loss : Loss
        Such as ``pb.logistic`` or ``pb.huber(1.35)``. Required; there is no default.
    l2 : float
        Weight of the penalty, finite and not negative.
    sample_weight : array_like, shape (N,), optional
        Weights; those of chunks are part of the chunks.
    fit_intercept : bool
        Whether the model has intercepts.
    n_outputs : int, optional
        Number of outputs, K, where `y` does not tell: of labels, it is otherwise the largest and
        one.
    progress : bool
        Whether to show, by tqdm, which pass this is, how many samples of it were read and when it
        will end, and the last loss. Until the first pass over chunks has ended, their total is not
        known.

    Raises
    ------
    TypeError
        If an argument has the wrong kind, such as chunks that can be gone through only once.
    ValueError
        If shapes do not fit, or a target or weight is outside its domain.
    ImportError
        If progress is to be shown and tqdm is not installed.

    Notes
    -----
    Each call reads `X`, `y` and `sample_weight` as they are then: a change in place counts from the
    next call on, and nothing that was computed from their values is kept. What NumPy cannot view,
    such as a list or a frame of several dtypes, is copied once, when the objective is made; what
    it can but kernels cannot read, such as integers in `y`, is converted in each call. Chunks come
    anew in every pass, whatever they are. The number of samples stays as it is.

    Results are new float64 arrays. Copies share data with the original, deep copies and pickles
    have their own. Threads may share an objective that shows no progress. A chunk of no rows adds
    nothing.

    Examples
    --------
    >>> import numpy as np
    >>> import pullback as pb
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> objective = pb.LinearObjective(X, [0, 0, 1, 1], pb.logistic, l2=0.1)
    >>> value, gradient = objective.value_and_grad(objective.initial())
    >>> round(value, 4), gradient.tolist()
    (0.6931, [-0.5, 0.0])

    With SciPy, ``minimize(objective.value_and_grad, objective.initial(), jac=True,
    hessp=objective.hvp, method="trust-ncg")``.
    """

    def __init__(
        self,
        X: Any,
        y: npt.ArrayLike | None = None,
        loss: Loss | None = None,
        l2: float = 0.0,
        sample_weight: npt.ArrayLike | None = None,
        fit_intercept: bool = True,
        *,
        n_outputs: int | None = None,
        progress: bool = False,
    ) -> None:
        if loss is None:
            raise TypeError(
                f"{_OP}: loss is missing; there are {', '.join(f'pb.{name}' for name in LOSSES)}"
            )
        if not isinstance(loss, Loss):
            raise TypeError(f"{_OP}: loss must be a loss such as pb.logistic, not {shown(loss)}")
        self._loss = loss
        self._l2 = _check_l2(l2)
        self._n_samples: int | None = None  # of a whole pass
        self._w_shape: tuple[int, ...] | None = None  # before the number of outputs is known
        self._bar = _progress_bar() if progress else None
        self._passes = 0
        self._counted = ""  # what to say of parameters that do not fit
        data = None if y is None else as_given(_OP, loss.row, X, y, sample_weight)
        if data is not None:
            X, y, sample_weight = data
            self._source: Source = partial(_array_source, loss.row, data)
        elif sample_weight is None:
            self._source = _chunk_source(loss.row, X)
        else:
            raise TypeError(f"{_OP}: y is missing; the sample_weight of chunks is part of them")
        where, first = next((part for part in self._source(_OP) if part[1].n_samples), (_OP, None))
        if first is None:
            raise ValueError(f"{_OP}: X holds no chunks that hold samples")
        if data is not None:
            self._n_samples = first.n_samples
        self._n_features = first.n_features
        shape = self._check_first(first, n_outputs)
        self._n_outputs = shape[0] if shape else 1
        # What it is made of again, with as many outputs, whatever its labels have become.
        self._made = partial(type(self), n_outputs=self._n_outputs, progress=progress)
        self._arguments = (X, y, loss, l2, sample_weight, fit_intercept)
        self._loss._check_rows(where, first, self._n_outputs)
        self._n_coefficients = self._n_features * self._n_outputs
        self._w_shape = w_shape = (self._n_features, *shape)
        like = (np.zeros(shape) if shape else 0.0) if fit_intercept else None
        self._kinds = Kinds(w_shape, np.dtype(np.float64), like)
        self._layout = "in chunks" if data is None else first.data.layout
        if data is not None and self._bar is None:
            self._enter_directly(data, first.data.shape)

    def _enter_directly(self, data: tuple[Any, ...], shape: tuple[int, int]) -> None:
        """Let calls enter the kernels, with all of the data at once."""
        about = shape, self._l2, self._kinds, self._n_outputs
        make = self._loss._objective_methods(data, *about)
        if make is None:
            return
        names = ["value", "grad", "value_and_grad", "hvp", "predict", "unpack"]
        for name in names + ["initial"] * self._loss.row.flat_at_zero:
            setattr(self, name, enter(partial(make, name), self, name, _OP, __name__))

    def __reduce__(self) -> Any:
        """Return what pickles and copies: what it is made of."""
        return self._made, self._arguments

    def __repr__(self) -> str:
        n = "not yet known" if self._n_samples is None else self._n_samples
        outputs = f", K={self._n_outputs}" if self._n_outputs > 1 else ""
        intercept = "" if self._kinds.b is not None else ", no intercept"
        return (
            f"<LinearObjective: {self._loss!r}, X {self._layout} (N={n}, D={self._n_features})"
            f"{outputs}, l2={self._l2:g}{intercept}, {self.n_parameters} parameters>"
        )

    @property
    def n_parameters(self) -> int:
        """Length of `theta`: D, or D K coefficients, and an intercept for each output."""
        return self._n_coefficients + (0 if self._kinds.b is None else self._n_outputs)

    def initial(self) -> Array:
        """Return parameters to start from, shape (n_parameters,).

        Zeros, for every loss but ``relu_mse``, whose gradient is 0 there. It starts at the step of
        steepest descent from zeros, of the best length, that least squares to the targets' positive
        parts would take: some prediction is then positive where its target is. That takes two
        passes over the data.
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
            If `theta` has another shape, or a chunk holds what the loss does not take.
        """
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
            If `theta` has another shape, or a chunk holds what the loss does not take.
        """
        return self._value_and_grad(f"{_OP}.value_and_grad", theta)

    def hvp(self, theta: npt.ArrayLike, v: npt.ArrayLike) -> Array:
        """Return the product of the objective's Hessian at `theta` with a direction.

        Parameters
        ----------
        theta, v : array_like, shape (n_parameters,)
            All parameters, and a direction, in one vector each.

        Returns
        -------
        ndarray, shape (n_parameters,), float64

        Raises
        ------
        ValueError
            If `theta` or `v` has another shape, or a chunk holds what the loss does not take.
        """
        op = f"{_OP}.hvp"
        model = self._model(self._vector(op, theta))
        direction = self._model(self._vector(op, v, "v"))
        sums = self._summed(op, model, "hvp", (direction.w, direction.b))
        return self._gradient(op, sums, direction)

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
            If `theta` has another shape, or a chunk holds what the loss does not take.

        Notes
        -----
        Two passes over `X`, and for a loss of K classes K + 1, chunk by chunk. With SciPy,
        ``minimize(objective.value_and_grad, objective.initial(), jac=True,
        hess=objective.hessian, method="trust-exact")``.
        """
        op = f"{_OP}.hessian"
        model = self._model(self._vector(op, theta))
        weights: list[float] = []

        def terms() -> Iterator[Array]:
            for where, samples in self._chunks(op):
                weights.append(samples.weight)
                yield hessian_sums(self._loss, where, samples, model)

        with np.errstate(all="ignore"):
            total = tree_sum(terms())
            total /= divisor(op, "mean", tree_sum(weights))
            self._add_penalty(total)
        return total

    def predict(self, X: Any, theta: npt.ArrayLike) -> Array:
        """Return the mean response: the inverse link of the predictions where there is one.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (N, D)
            Data, in any layout that the loss takes.
        theta : array_like, shape (n_parameters,)
            All parameters in one vector.

        Returns
        -------
        ndarray, shape (N,), or (N, K) for several outputs, float64
            max(0, z) for ``relu_mse``, the probability for ``logistic``, those of the classes for
            ``softmax_cross_entropy``, exp(z) for a log link, z itself for the others.

        Raises
        ------
        ValueError
            If a shape does not fit.
        """
        op = f"{_OP}.predict"
        model = self._model(self._vector(op, theta))
        data = as_data(op, X)
        if data.shape[1] != self._n_features:
            raise ValueError(f"{op}: X has shape {data.shape}, needs (N, {self._n_features})")
        z = np.empty((data.shape[0], self._n_outputs))
        samples = Samples(data, None, None, None, float(len(z)))
        if len(z) > 0:
            self._loss._sums(op, samples, model, "predict", kept=z)
        response = self._loss._response
        z = z if response is None else response(z)
        return z.reshape(len(z), *self._kinds.w_shape[1:])

    # --- one pass ---

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
            value = float(np.float64(sums.loss) / by) + self._penalty(model.w)
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{value:.6g}")
        return value

    def _gradient(self, op: str, sums: PartialSums, at: Model) -> Array:
        """Return the mean, and the penalty's part in it, as one vector."""
        by = divisor(op, "mean", sums.weight)
        with np.errstate(all="ignore"):
            gw, gb = sums.gw / by, sums.gb / by
            if self._l2 > 0:
                gw += self._l2 * at.w
        return np.concatenate([gw.ravel(), gb if self._kinds.b is not None else gb[:0]])

    def _penalty(self, w: Array) -> float:
        # Times an infinite parameter, 0 would be NaN.
        return 0.5 * self._l2 * float(np.vdot(w, w)) if self._l2 > 0 else 0.0

    def _add_penalty(self, hessian: Array) -> None:
        """Add the penalty's second derivatives."""
        own = np.arange(self._n_coefficients)
        hessian[own, own] += self._l2

    def _vector(self, op: str, theta: npt.ArrayLike, name: str = "theta") -> Array:
        """Return a private copy of all parameters, or of a direction."""
        given = as_array(op, name, theta)
        kernel_dtype(op, name, given.dtype)
        if given.shape != (self.n_parameters,):
            raise ValueError(
                f"{op}: {name} has shape {given.shape}, needs ({self.n_parameters},){self._counted}"
            )
        return np.array(given, np.float64, order="C")

    def _model(self, theta: Array) -> Model:
        w = theta[: self._n_coefficients].reshape(-1, self._n_outputs)
        b = theta[self._n_coefficients :]
        return Model(w, b if len(b) else np.zeros(self._n_outputs), self._kinds)

    # --- the data ---

    def _chunks(self, op: str) -> Iterator[tuple[str, Samples]]:
        """Yield the data in one pass: what to call each part in messages, and its samples."""
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
                f"{self._n_samples}; chunks must come anew in every pass"
            )
        self._n_samples = n_samples

    def _check_first(self, first: Samples, n_outputs: int | None) -> tuple[int, ...]:
        """Return the shape of a prediction, () or (K,), by the first samples' targets."""
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
                self._counted = f"; y has labels of {n_outputs} classes, n_outputs= tells of more"
            shape = (int(n_outputs),)
            n_outputs = None
        if n_outputs is not None and n_outputs != (shape[0] if shape else 1):
            raise ValueError(f"{_OP}: n_outputs is {shown(n_outputs)}, y has shape {first.y.shape}")
        least = 1 + self._loss.row.of_classes
        if shape and shape[0] < least:
            raise ValueError(f"{_OP}: {self._loss.__name__} needs {least} outputs, not {shape[0]}")
        return shape


def _array_source(row: LossRow, data: tuple[Any, ...], op: str) -> Iterator[tuple[str, Samples]]:
    samples, _ = weighing(op, "mean", check_samples(op, row, *data))
    yield op, samples


def _chunk_source(row: LossRow, chunks: Any) -> Source:
    """Return a source of chunks, which are checked in each pass since they may come from a file."""
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
            if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3):
                raise TypeError(f"{where} must be (X, y) or (X, y, sample_weight)")
            X, y, sample_weight = (*chunk, None)[:3]
            yield where, check_samples(where, row, X, y, sample_weight, may_lack=True)

    return source


def _check_l2(l2: Any) -> float:
    value = as_number(_OP, "l2", l2)
    if not 0 <= value < np.inf:
        raise ValueError(f"{_OP}: l2 is {value}, needs to be finite and not negative")
    return value


def _progress_bar() -> Any:
    try:
        from tqdm import tqdm  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        raise ImportError(
            f"{_OP}: progress=True needs tqdm: pip install 'pullback[progress]'"
        ) from error
    return tqdm(unit=" samples", unit_scale=True)

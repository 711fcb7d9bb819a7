"""Losses of linear models: value, gradient and Hessian products in one pass over the data."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.config import guarded_class
from pullback.design_matrix import KernelData, Rows, Sparse, blocks_of_rows
from pullback.elementwise import METHODS as POINTWISE_METHODS
from pullback.elementwise import make_elementwise
from pullback.engine import BACKEND, Engine, enter
from pullback.foreign import door_of
from pullback.hessians import hessian_sums
from pullback.loss_vjp import LossVjp, Wanted, likes_of
from pullback.native_rows import native_blocks
from pullback.partial import Kinds, PartialSums, Reduction, tree_sum
from pullback.pointwise import Pointwise, PointwiseVjp
from pullback.protocol import (
    as_number,
    check_outs,
    check_wrt,
    methods_and_example,
    named_after,
    shown,
)
from pullback.reductions import make_reductions
from pullback.registry import Hinted, Registry, attributes
from pullback.sample_grads import SampleGradients
from pullback.samples import (
    OPERANDS,
    Job,
    Model,
    Samples,
    check_direction,
    check_model,
    check_rows,
    check_samples,
    raising_as,
    sums_of_targets,
    weighing,
    weight_complaint,
)
from pullback.tables.elementwise import OPS
from pullback.tables.losses import LOSSES, LossRow

__all__ = ["Loss", "ParametricLoss", "as_loss", "losses", "make_losses"]

Array: TypeAlias = npt.NDArray[Any]


METHODS: Final = ("value", "grad", "value_and_grad", "hvp", "curvature", "partial")


class Loss(Hinted):
    """A loss of a linear model: the weighted mean of a pointwise loss over the samples.

    With predictions z = X w + b + offset, the loss is ``1/N sum_i l(z_i, y_i)``. Its gradients are
    ``1/N X^T r`` for w and ``1/N sum_i r_i`` for b, where r_i is the derivative of l at z_i. The
    Hessian in w is ``X^T diag(c) X``, where c holds the second derivatives of l over N. Loss,
    gradients and Hessian products take one pass over X. X is read in place if it is an array of
    float32, float64, float16 or ml_dtypes' bfloat16, in rows or columns, or CSR or CSC; anything
    else is converted in small blocks of rows. All sums accumulate in float64.

    Parameters
    ----------
    row : LossRow
        Its row in the table.
    engine : Engine
        The functions that it calls.
    parameter : float, optional
        The loss's parameter; the table's default when omitted.
    """

    def __init__(self, row: LossRow, engine: Engine, parameter: float | None = None) -> None:
        self._engine = engine
        if parameter is None and row.parameter is not None:
            parameter = row.parameter.default
        self.row = row = row.at(parameter or 0.0)
        self._parameter = parameter
        self.__name__ = self.__qualname__ = row.name
        self.__module__ = engine.module("losses")
        self.__doc__ = self._about()
        if row.parameter is not None:
            taken = inspect.Parameter(row.parameter.name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            self.__signature__ = inspect.Signature([taken])
        self.pointwise = _pointwise_of(row.name)(self, row, engine, _pointwise_vjp_of(row.name))
        self.vjp = _vjp_of(row.name)(self)
        if not engine.is_native:
            return
        for method in METHODS:
            sums = (PartialSums, self._title) if method == "partial" else None
            make = partial(engine.kernels.loss_method, *self._row_and_parameter, method, sums)
            setattr(self, method, enter(make, self, method, row.name, self.__module__))

    def __repr__(self) -> str:
        return f"<loss {self._title}{self._engine.remark}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loss) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __reduce__(self) -> Any:
        named = make_losses(self._engine)[self.__name__]
        return self.__qualname__ if named == self else (named, (self._parameter,))

    def _about(self) -> str:
        kind: Any = type(self)
        return _docstring(self.row, kind)

    @property
    def has_second_derivative(self) -> bool:
        """Whether `hvp` and `curvature` work; a user's own loss may lack a second derivative."""
        return True

    @property
    def _by_rows(self) -> bool:
        """Whether pointwise functions take all outputs of a row together, on the last axis."""
        return self.row.of_classes

    @property
    def _row_and_parameter(self) -> tuple[Any, float]:
        """The engine's arguments for the loss: its row's name, and its parameter or 0."""
        return self.__name__, self._parameter or 0.0

    @property
    def _identity(self) -> tuple[Any, ...]:
        return self.__module__, self.__qualname__, self._parameter

    # --- one pass over the data ---

    @raising_as("`value_and_grad`")
    def value(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
        *,
        offset: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
    ) -> float:
        """Return the loss.

        Parameters
        ----------
        X, y, w, b, sample_weight, offset, reduction
            As for `value_and_grad`; X has shape (N, D), y (N,), w (D,).

        Returns
        -------
        float
            Computed in float64, whatever the dtypes.
        """
        if (door := door_of(X, w, b)) is not None:
            options = {"sample_weight": sample_weight, "offset": offset, "reduction": reduction}
            return door.loss_value(self, X, y, w, b, options)  # type: ignore[no-any-return]
        op = f"{self.__name__}.value"
        samples, model = self._arguments(op, X, y, w, b, sample_weight, offset)
        samples, by = weighing(op, reduction, samples)
        return _divided(self._sums(op, samples, model, "value").loss, by)

    @raising_as("`value_and_grad`")
    def grad(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
        out: Any = None,
        *,
        offset: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
        wrt: Wanted = ("w", "b"),
    ) -> Any:
        """Return the gradients alone.

        Parameters
        ----------
        X, y, w, b, sample_weight, out, offset, reduction, wrt
            As for `value_and_grad`.

        Returns
        -------
        tuple or ndarray
            The gradients that `value_and_grad` returns, in their variables' shapes.
        """
        op = f"{self.__name__}.grad"
        return self._gradients(op, X, y, w, b, sample_weight, out, offset, reduction, wrt)[1]

    def value_and_grad(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
        out: Any = None,
        *,
        offset: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
        wrt: Wanted = ("w", "b"),
    ) -> Any:
        """Return the loss and its gradients, those for `w` and `b` unless `wrt` asks for others.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (N, D), N > 0
            Data, one sample per row: an array_like, or a CSR or CSC matrix.
        y : array_like, shape (N,), or (N, K) for several outputs
            Targets, in the loss's domain. For a loss of classes, labels of shape (N,) or
            probabilities of shape (N, K).
        w : array_like, shape (D,), or (D, K) for several outputs
            Coefficients.
        b : array_like, shape (), (1,) or (K,), or None
            Intercepts; None for a model without them. All outputs share a single one.
        sample_weight : array_like, shape (N,), optional
            Weights, finite and not negative. A sample of weight 0 adds nothing, even with NaN or
            inf in its row of `X` or its offset, an overflow in its prediction, or a target outside
            the domain.
        out : tuple of (ndarray or None), or an ndarray for a bare `wrt`
            Arrays for the gradients, in their shapes; written only on success.
        offset : array_like, shape (N,), or (N, K) for several outputs, optional
            Added to the predictions X w + b, such as the logarithm of an exposure. An offset of
            shape (N,) is added to every output.
        reduction : {"mean", "sum"}
            "mean" divides the sums by the sum of the weights, or by N without weights.
        wrt : str, int, a tuple of them, or "all"
            The variables of the gradients, "X", "w" and "b", by name or position.

        Returns
        -------
        loss : float
            Computed in float64, whatever the dtypes.
        gradients : tuple, or a single gradient if `wrt` is a single name or position
            In the order of `wrt`. Each has the shape and dtype of its variable; the dtype is
            float64 for integers and float32 for floats of 16 bits. The gradient for `b` also has
            the kind of `b`: float, NumPy scalar, array or None. For a sparse `X` it is dense.

        Raises
        ------
        TypeError
            If a dtype or a sparse format has no kernel (complex, object, COO, ...).
        ValueError
            If a shape does not fit, N = 0, a mean's weights sum to 0, or a target or weight is
            outside its domain; the message names the first such row.

        Notes
        -----
        Where an entry of `X` is 0, its sample adds nothing to that coefficient's gradient, even if
        the sample's derivative overflows.
        """
        op = f"{self.__name__}.value_and_grad"
        return self._gradients(op, X, y, w, b, sample_weight, out, offset, reduction, wrt)

    @raising_as("`value_and_grad`")
    def hvp(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
        v: tuple[npt.ArrayLike, npt.ArrayLike | None] | None = None,
        *,
        sample_weight: npt.ArrayLike | None = None,
        offset: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
    ) -> tuple[Array, Any]:
        """Return the product of the Hessian in (w, b) with a direction, in one pass over `X`.

        Parameters
        ----------
        X, y, w, b, sample_weight, offset, reduction
            As for `value_and_grad`.
        v : (vw, vb)
            The direction, in the shapes of `w` and `b`. None is zero, and a number fills a shape.
            It is required.

        Returns
        -------
        (hw, hb) : tuple
            In the shapes, dtypes and kinds of the gradients for `w` and `b`.

        Notes
        -----
        At a kink the second derivative is that of the piece from which the first derivative comes.
        """
        op = f"{self.__name__}.hvp"
        if v is None:
            raise TypeError(f"{op}: missing argument v, the direction (vw, vb)")
        samples, model = self._arguments(op, X, y, w, b, sample_weight, offset)
        samples, by = weighing(op, reduction, samples)
        direction = check_direction(op, v, model)
        sums = self._sums(op, samples, model, "hvp", v=direction)
        with np.errstate(all="ignore"):
            return model.kinds.deliver(sums.gw / by, sums.gb / by)

    @raising_as("`value_and_grad`")
    def curvature(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
        *,
        sample_weight: npt.ArrayLike | None = None,
        offset: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
    ) -> Array:
        """Return the losses' second derivatives c: the Hessian in w is X^T diag(c) X.

        Parameters
        ----------
        X, y, w, b, sample_weight, offset, reduction
            As for `value_and_grad`.

        Returns
        -------
        ndarray, shape (N,), or (N, K) for several outputs, float64
            The samples' weights and the mean's divisor are included. For a loss of classes the
            shape is (N, K, K), a matrix for each sample.

        Examples
        --------
        Standard errors at the optimum of a loss that is a negative log-likelihood. The two groups
        have means 4 and 8, and the model predicts the logarithms of the means.

        >>> import numpy as np
        >>> import pullback as pb
        >>> X = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        >>> y, w = np.array([3.0, 5.0, 7.0, 9.0]), np.log([4.0, 2.0])
        >>> c = pb.poisson.curvature(X, y, w, reduction="sum")
        >>> np.sqrt(np.diag(np.linalg.inv(X.T @ (c[:, None] * X)))).round(4)
        array([0.3536, 0.433 ])
        """
        op = f"{self.__name__}.curvature"
        samples, model = self._arguments(op, X, y, w, b, sample_weight, offset)
        samples, by = weighing(op, reduction, samples)
        kept = np.empty((samples.n_samples, model.w.shape[1]))
        self._sums(op, samples, model, "curvature", kept=kept)
        weight = (
            np.ones(samples.n_samples) if samples.sample_weight is None else samples.sample_weight
        )
        with np.errstate(all="ignore"):
            if self.row.of_classes:
                kept = self._engine.kernels.softmax_hessians(kept, sums_of_targets(samples.y))
            np.multiply(kept.T, weight / by, out=kept.T)
        kept[weight == 0] = 0
        shape = kept.shape[1:] if self.row.of_classes else model.kinds.w_shape[1:]
        return kept.reshape(samples.n_samples, *shape)

    @raising_as("`value_and_grad`")
    def hessian(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
        *,
        sample_weight: npt.ArrayLike | None = None,
        offset: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
    ) -> Array:
        """Return the Hessian in all parameters, in the order of ``[w.ravel(), b]``.

        Parameters
        ----------
        X, y, w, b, sample_weight, offset, reduction
            As for `value_and_grad`.

        Returns
        -------
        ndarray, shape (n, n), float64
            Symmetric; n counts the elements of `w`, and of `b` unless it is None.

        Notes
        -----
        It takes two passes over `X`, one for `curvature` and one for `pullback.gram`; for a loss of
        K classes it takes K + 1. At a kink the second derivative is that of the piece from which
        the first derivative comes.

        Examples
        --------
        One step of Newton's method solves a least-squares problem.

        >>> import numpy as np
        >>> import pullback as pb
        >>> X, y = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), np.array([1.0, 3.0, 5.0])
        >>> w = np.zeros(2)
        >>> (g, _), H = pb.squared_error.grad(X, y, w), pb.squared_error.hessian(X, y, w)
        >>> np.linalg.solve(H, -g).round(10)
        array([1., 2.])
        """
        op = f"{self.__name__}.hessian"
        samples, model = self._arguments(op, X, y, w, b, sample_weight, offset)
        samples, by = weighing(op, reduction, samples)
        return hessian_sums(self, op, samples, model, 1 / by)

    @raising_as("`value_and_grad`")
    def partial(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
        *,
        sample_weight: npt.ArrayLike | None = None,
        offset: npt.ArrayLike | None = None,
    ) -> PartialSums:
        """Return sums of the loss and its gradient over these samples, which add to other sums.

        Parameters
        ----------
        X, y, w, b, sample_weight, offset
            As for `value_and_grad`. Parts of one sum have the same shapes except for the first
            axis. A part without samples adds nothing.

        Returns
        -------
        PartialSums
            ``sum(parts).finish()`` is what `value_and_grad` returns for all samples.
        """
        op = f"{self.__name__}.partial"
        samples, model = self._arguments(op, X, y, w, b, sample_weight, offset, may_lack=True)
        return self._sums(op, samples, model, "gradient")

    @raising_as("`value_and_grad`")
    def sample_grads(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
        *,
        sample_weight: npt.ArrayLike | None = None,
        offset: npt.ArrayLike | None = None,
    ) -> SampleGradients:
        """Return the gradient of each sample's weighted loss, in one pass over `X`.

        Parameters
        ----------
        X, y, w, b, sample_weight, offset
            As for `value_and_grad`; there may be no samples.

        Returns
        -------
        SampleGradients
            The gradients, shape (N, n) for n parameters. It gives their norms, sums and outer
            products, and never stores them in an array.
        """
        op = f"{self.__name__}.sample_grads"
        samples, model = self._arguments(op, X, y, w, b, sample_weight, offset, may_lack=True)
        return self._sample_grads(op, samples, model)

    # --- what they share ---

    @property
    def _title(self) -> str:
        about = self.row.parameter
        return f"'{self.__name__}'" + (f", {about.name}={self._parameter!r}" if about else "")

    def _arguments(
        self,
        op: str,
        X: Any,
        y: Any,
        w: Any,
        b: Any,
        sample_weight: Any,
        offset: Any,
        *,
        may_lack: bool = False,
    ) -> tuple[Samples, Model]:
        samples = check_samples(op, self.row, X, y, sample_weight, offset, may_lack=may_lack)
        return samples, check_model(op, self.row, samples, w, b)

    def _gradients(
        self,
        op: str,
        X: Any,
        y: Any,
        w: Any,
        b: Any,
        sample_weight: Any,
        out: Any,
        offset: Any,
        reduction: str = "mean",
        wrt: Any = ("w", "b"),
    ) -> tuple[float, Any]:
        asked = check_wrt(op, wrt, OPERANDS, without=("y",))
        names = [OPERANDS[k] for k in asked.operands]
        samples, model = self._arguments(op, X, y, w, b, sample_weight, offset)
        samples, by = weighing(op, reduction, samples)
        likes = likes_of(samples, model)
        shapes, dtypes = zip(*(likes[name] for name in names), strict=True)
        outs: Sequence[Any] = [None] * len(names)
        if out is not None:
            outs = check_outs(op, out, shapes, dtypes, single=asked.single)
        gX = np.empty(*likes["X"]) if "X" in names else None
        sums = self._sums(op, samples, model, "gradient", gX=gX, scale=1 / by)
        with np.errstate(all="ignore"):
            gw, gb = model.kinds.deliver(sums.gw / by, sums.gb / by)
        computed = {"X": gX, "w": gw, "b": gb}
        gradients = []
        for name, target in zip(names, outs, strict=True):
            if target is not None:
                with np.errstate(all="ignore"):
                    np.copyto(target, computed[name], casting="same_kind")
            gradients.append(computed[name] if target is None else target)
        return _divided(sums.loss, by), asked.result(gradients)

    def _sums(
        self,
        op: str,
        samples: Samples,
        model: Model,
        job: Job,
        *,
        v: tuple[Array, Array] | None = None,
        kept: Array | None = None,
        gX: Array | None = None,
        scale: float = 1.0,
    ) -> PartialSums:
        """Sum over all samples with the engine, in blocks as large as it can read in place."""
        none = np.empty(0)  # for a gradient that was not computed
        title, kinds = self._title, tuple(model.kinds)
        if samples.n_samples == 0:
            zeros = np.zeros_like(model.w), np.zeros_like(model.b)
            return PartialSums(0.0, *zeros, 0.0, 0, title, kinds)

        def part(rows: slice, X: Any) -> PartialSums:
            of_rows = (samples.y, samples.sample_weight, samples.offset, kept, gX)
            y, weights, *others = (None if a is None else a[rows] for a in of_rows)
            offset, kept_rows, gX_rows = others
            try:
                terms = (X, y, model.w, model.b, weights, offset, job, v, kept_rows, gX_rows, scale)
                loss, gb, gw = self._engine.kernels.loss_sums(*self._row_and_parameter, *terms)
            except ValueError as error:
                self._explain(op, error, rows.start, samples, model.w.shape[1])
            n_rows = rows.stop - rows.start
            whole = n_rows == samples.n_samples
            weight = samples.weight if whole else n_rows if weights is None else np.sum(weights)
            gw, gb = (none if gradient is None else gradient for gradient in (gw, gb))
            return PartialSums(loss, gw, gb, float(weight), n_rows, title, kinds)

        return tree_sum(part(rows, X) for rows, X in samples.data.blocks())

    def _sample_grads(self, op: str, samples: Samples, model: Model) -> SampleGradients:
        z = np.empty((samples.n_samples, model.w.shape[1]))
        if len(z) == 0:
            return SampleGradients(self, samples.data, z, model.kinds)
        plain = replace(samples, y=None, given_y=None, sample_weight=None)
        self._sums(op, plain, model, "predict", kept=z)
        self._check_rows(op, samples, z.shape[1])
        slopes, weights = self._pointwise_of(z, samples.y, 1), samples.sample_weight
        if weights is not None:
            with np.errstate(all="ignore"):
                slopes *= weights[:, None]
            slopes[weights == 0] = 0
        return SampleGradients(self, samples.data, slopes, model.kinds)

    def _pointwise_of(self, z: Array, y: Array, order: int) -> Array:
        """Return derivatives at predictions (N, K), which are of classes as engines return them."""
        y = y if y.dtype.kind == "i" else y.astype(np.float64, copy=False)
        operands = (z, y) if self._by_rows else (z.ravel(), y.ravel())
        made = self._engine.kernels.loss_pointwise(*self._row_and_parameter, *operands, order)
        return made.reshape(z.shape)  # type: ignore[no-any-return]

    def _blocks(self, X: KernelData, n_outputs: int) -> Iterable[tuple[slice, Rows]]:
        """Return all rows in order, in blocks that stay in cache, with their products."""
        return native_blocks(X, n_outputs) if self._engine.is_native else blocks_of_rows(X)

    def _along(
        self, op: str, samples: Samples, line: Array, t: float, order: int
    ) -> tuple[float, float]:
        """Return the sums of the losses along a line, and of their derivative of this order."""
        terms = line, samples.y, samples.sample_weight, t, order
        try:
            sums = self._engine.kernels.loss_line(*self._row_and_parameter, *terms)
        except ValueError as error:
            self._explain(op, error, 0, samples, line.shape[1] // 2)
        return sums  # type: ignore[no-any-return]

    @property
    def _response(self) -> Callable[..., Any] | None:
        """The inverse link, which turns a prediction into the mean response."""
        name = self.row.response
        if name is None:
            return None
        if callable(name):
            return self._response_of_values
        if self.row.of_classes:
            return self._probabilities
        made: Any = make_elementwise if name in OPS else make_reductions
        return made(self._engine)[name]  # type: ignore[no-any-return]

    def _probabilities(self, z: Array) -> Array:
        """Return the softmax of predictions (N, K); it takes half the time of `softmax`."""
        labels = np.zeros(len(z), np.int64)
        values: Array = self._engine.kernels.loss_pointwise(*self._row_and_parameter, z, labels, 2)
        return values

    def _response_of_values(self, z: Array) -> Array:
        """Return the mean response at predictions (N, K), from the losses of targets of 0."""
        assert callable(self.row.response)
        arguments = *self._row_and_parameter, z.ravel(), np.zeros(z.size), 0
        values: Array = self._engine.kernels.loss_pointwise(*arguments)
        return self.row.response(values).reshape(z.shape)

    def _sibling(self, name: str) -> Loss:
        """Return another loss on the same engine."""
        return make_losses(self._engine)[name]  # type: ignore[no-any-return]

    def _objective_methods(
        self, data: tuple[Any, ...], shape: tuple[int, int], l2: Any, kinds: Kinds, n_outputs: int
    ) -> Callable[..., Any] | None:
        """Return ``make(name, fallback)``, native methods of an objective on data of a shape."""
        if not self._engine.is_native:
            return None
        outputs = (n_outputs, kinds.b is not None, len(kinds.w_shape) > 1, self._response)
        make = self._engine.kernels.objective_method
        return partial(make, *self._row_and_parameter, *data, *shape, l2, *outputs)

    def _check_rows(self, op: str, samples: Samples, n_outputs: int) -> None:
        """Raise the errors that a pass over these samples would raise for their values."""
        try:
            check_rows(self.row, samples.y, samples.sample_weight, n_outputs)
        except ValueError as error:
            self._explain(op, error, 0, samples, n_outputs)

    def _explain(
        self, op: str, error: ValueError, first: int, samples: Samples, n_outputs: int
    ) -> NoReturn:
        """Raise an engine's terse error about a block of rows again, with a full message."""
        if getattr(error, "__notes__", None):  # from a user's own function
            raise error
        match error.args:
            case ("y", int(row)):
                text = self.row.targets.complaint(samples.given_y, first + row, n_outputs)
            case ("sample_weight", int(row)) if samples.sample_weight is not None:
                text = weight_complaint(samples.sample_weight, first + row)
            case ("X", int()) if isinstance(samples.data, Sparse):
                text = samples.data.complaint()
            case _:
                raise error
        raise ValueError(f"{op}: {text}") from None


class ParametricLoss(Loss):
    """A loss with a parameter. A call returns the same loss with another value of it."""

    def __call__(self, *arguments: Any, **keywords: Any) -> ParametricLoss:
        """Return this loss with another value of its parameter.

        Raises
        ------
        TypeError
            If it is not a real number.
        ValueError
            If it is outside its domain.
        """
        about = self.row.parameter
        assert about is not None
        try:
            (given,) = self.__signature__.bind(*arguments, **keywords).args
        except TypeError as error:
            raise TypeError(f"{self.__name__}: {error}; it takes {about.name} alone") from None
        parameter = as_number(self.__name__, about.name, given)
        if not about.test(parameter):
            raise ValueError(f"{self.__name__}: {about.name} is {parameter}, needs {about.text}")
        return type(self)(self.row, self._engine, parameter)


@cache
def _pointwise_of(name: str) -> type[Pointwise]:
    return named_after(Pointwise, f"{name}.pointwise")


@cache
def _pointwise_vjp_of(name: str) -> type[PointwiseVjp]:
    return guarded_class(named_after(PointwiseVjp, f"{name}.pointwise.vjp"))


@cache
def _vjp_of(name: str) -> type[LossVjp]:
    return guarded_class(named_after(LossVjp, f"{name}.vjp"))


def _divided(total: float, by: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.float64(total) / by)


@cache
def _docstring(row: LossRow, kind: type[Loss]) -> str:
    """Return the docstring of a loss, from its row."""
    lines = [f"{row.summary}.", ""]
    for text in (
        f"``l(z, y) = {row.formula}``",
        "",
        f"Derivative with respect to z: ``{row.derivative_formula}``.",
        f"Second derivative: ``{row.second_derivative_formula}``.",
    ):
        lines += textwrap.wrap(text, 96, break_on_hyphens=False) or [""]
    lines += [
        f"Mean response at a prediction z: ``{row.response_formula}``.",
        f"Targets: {row.targets.domain}.",
    ]
    if row.parameter is not None:
        about = row.parameter
        lines += [
            f"Parameter: {about.name}, which needs {about.text}; the default is {about.default:g}.",
            f"``{row.name}({about.name})`` is the loss with another value.",
        ]
    lines += textwrap.wrap(row.note, 96)
    lines += [f"Source: {row.source}.", "", (inspect.getdoc(Loss) or "").split("\n\n")[1]]
    lines.append("")
    methods = [getattr(kind, name) for name in (*METHODS, "hessian", "sample_grads")]
    methods += [getattr(_vjp_of(row.name), name) for name in ("__call__", "jvp", "vjp")]
    pointwise = _pointwise_of(row.name)
    methods += [getattr(pointwise, name) for name in POINTWISE_METHODS if name != "vjp"]
    methods += [getattr(_pointwise_vjp_of(row.name), name) for name in ("__call__", "jvp", "vjp")]
    lines += methods_and_example(row.name, methods).splitlines()
    return "\n".join(line.rstrip() for line in lines)


@cache
def make_losses(engine: Engine) -> Registry:
    """Return the table's losses on an engine, by name."""

    def make(name: str) -> Loss:
        row = LOSSES[name]
        kind = named_after(Loss if row.parameter is None else ParametricLoss, name)
        return guarded_class(kind)(row, engine)

    return Registry(LOSSES, make)


losses: Final = make_losses(BACKEND)


def as_loss(op: str, given: Any, known: Sequence[str] = tuple(LOSSES)) -> Loss:
    """Return a loss that is given as such, or by its name; `known` are for the error message.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If no loss has that name.
    """
    if isinstance(given, Loss):
        return given
    there = f"there are {', '.join(known)}"
    if not isinstance(given, str):
        raise TypeError(f"{op}: loss must be a name or a loss, not {shown(given)}; {there}")
    if given not in losses:
        from pullback.hints import about_name  # noqa: PLC0415  only of what is not there

        raise ValueError(f"{op}: loss is {given!r}; {there}{about_name(given, known)}")
    return losses[given]  # type: ignore[no-any-return]


if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

else:
    __getattr__ = attributes(globals(), losses)

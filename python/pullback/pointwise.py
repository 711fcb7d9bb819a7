"""Losses of single predictions, with their derivatives, as objects that broadcast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.partial import sum_of_others
from pullback.protocol import (
    as_array,
    broadcast_shape,
    check_cotangent,
    converted,
    kernel_dtype,
    result_dtype,
    sum_repeated,
)
from pullback.samples import sums_of_targets
from pullback.shapes import check_axes, with_room
from pullback.tables.losses import LossRow

__all__ = ["Pointwise", "softmax_hessian"]

Array: TypeAlias = npt.NDArray[Any]


class _Operands(NamedTuple):
    """Predictions and targets as an engine takes them, and the shapes of what it returns."""

    op: str
    z: Array
    y: Array
    shape: tuple[int, ...]  # of the values
    z_shape: tuple[int, ...]  # of the derivatives


class Pointwise:
    """A loss of single predictions and targets, and its derivatives by the prediction.

    Calling it gives the values, element by element; predictions and targets broadcast. For a loss
    of classes the last axis of z is the classes', and so is that of y unless it holds labels, which
    are integers. float32 predictions and targets give float32, computed in float64 and rounded
    once; integer targets adapt. Where a target is outside its domain, the result is NaN.

    Parameters
    ----------
    loss : object
        The loss whose attribute ``pointwise`` it is.
    row : LossRow
        What the table says.
    score : callable
        ``score(z, y, order)`` computes it or a derivative: `loss_pointwise` of an engine, see
        `pullback.oracle.losses`.
    """

    def __init__(self, loss: object, row: LossRow, score: Callable[..., Array]) -> None:
        self._loss = loss
        self._row = row
        self._score = score
        self._call: Callable[..., Any] = self._value

    def _enter_directly(self, method: Callable[..., Any], parameter: float) -> None:
        """Let calls with plain arrays enter the kernels; `method` as of the losses' engine."""
        self._call = method(self._row.name, parameter, "pointwise", self._value)
        for own in ("derivative", "value_and_derivative", "second_derivative", "vjp"):
            fallback = getattr(self, own)
            name = f"pointwise.{own}"
            call = method(self._row.name, parameter, name, fallback)
            call.__name__ = own
            call.__qualname__ = f"{self._row.name}.{name}"
            call.__module__ = type(self).__module__
            call.__doc__ = fallback.__doc__
            call.__reduce__ = partial(_reduced, self, own)
            setattr(self, own, call)

    def __repr__(self) -> str:
        return f"<pointwise of {self._loss!r}>"

    def __reduce__(self) -> Any:
        return getattr, (self._loss, "pointwise")

    def __call__(self, z: npt.ArrayLike, y: npt.ArrayLike) -> Any:
        """Return the loss of each prediction.

        Parameters
        ----------
        z : array_like, any shape, or (..., K) for a loss of classes
            Predictions.
        y : array_like, a shape that broadcasts with z's
            Targets; for a loss of classes, integer labels that broadcast with z's shape less its
            last axis, or probabilities of shape (..., K).

        Returns
        -------
        ndarray or scalar
            float32 or float64, the broadcast shape; for a loss of classes less the last axis.

        Raises
        ------
        TypeError
            If a dtype has no kernel.
        ValueError
            If the shapes do not broadcast.
        """
        return self._call(z, y)

    def _value(self, z: npt.ArrayLike, y: npt.ArrayLike) -> Any:
        return self._evaluate(self._operands("", z, y), 0)[()]

    def derivative(self, z: npt.ArrayLike, y: npt.ArrayLike) -> Any:
        """Return the derivative by z.

        Parameters
        ----------
        z, y : array_like
            As for the call.

        Returns
        -------
        ndarray or scalar
            The broadcast shape; for a loss of classes the gradient, classes on the last axis.

        Raises
        ------
        TypeError, ValueError
            As the call does.
        """
        return self._evaluate(self._operands(".derivative", z, y), 1)[()]

    def value_and_derivative(self, z: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Any, Any]:
        """Return the loss of each prediction, and the derivative by z.

        Parameters
        ----------
        z, y : array_like
            As for the call.

        Returns
        -------
        value, derivative : ndarray or scalar
            As the call and `derivative` return them, in the broadcast shape.

        Raises
        ------
        TypeError, ValueError
            As the call does.
        """
        operands = self._operands(".value_and_derivative", z, y)
        return self._evaluate(operands, 0)[()], self._evaluate(operands, 1)[()]

    def second_derivative(self, z: npt.ArrayLike, y: npt.ArrayLike) -> Any:
        """Return the second derivative by z.

        Parameters
        ----------
        z, y : array_like
            As for the call.

        Returns
        -------
        ndarray or scalar
            The broadcast shape; for a loss of classes the Hessian, shape (..., K, K).

        Raises
        ------
        TypeError, ValueError
            As the call does.
        """
        operands = self._operands(".second_derivative", z, y)
        second = self._evaluate(operands, 2)
        if not self._row.of_classes:
            return second[()]
        check_axes(operands.op, (*second.shape, second.shape[-1]))
        p = second.astype(np.float64, copy=False)
        sums = sums_of_targets(operands.y).reshape(operands.shape)
        return softmax_hessian(p, sums).astype(second.dtype, copy=False)

    def vjp(self, z: npt.ArrayLike, y: npt.ArrayLike, g: npt.ArrayLike) -> Any:
        """Return the cotangent of z: g times the derivative.

        Parameters
        ----------
        z, y : array_like
            As for the call.
        g : array_like, the shape of the call's result, or with batch axes in front
            Cotangent of the values.

        Returns
        -------
        ndarray or scalar
            The shape of z, behind the batch axes; summed over the axes along which z was broadcast.

        Raises
        ------
        TypeError, ValueError
            As the call does, and if g's shape does not fit.
        """
        op = f"{self._row.name}.pointwise.vjp"
        g = g if isinstance(g, int | float) else as_array(op, "g", g)
        operands = self._operands(".vjp", z, y, g)
        derivative = self._evaluate(operands, 1)
        g = converted(op, "g", g, derivative.dtype)
        batch = check_cotangent(op, g.shape, operands.shape, z=np.shape(z), y=np.shape(y))
        if self._row.of_classes:
            check_axes(op, (*g.shape, 1))
            g = g[..., np.newaxis]
        with np.errstate(all="ignore"):
            terms = g * derivative
        return sum_repeated(terms, batch, np.shape(z))[()]

    def _operands(self, method: str, z: Any, y: Any, g: Any = None) -> _Operands:
        """Broadcast predictions and targets, in the dtype that they and `g` compute in."""
        row = self._row
        op = f"{row.name}.pointwise{method}"
        z = z if isinstance(z, int | float) else as_array(op, "z", z)
        y = y if isinstance(y, float) else as_array(op, "y", y)
        integers = isinstance(y, np.ndarray) and y.dtype.kind in "biu"
        given = {"z": z} | ({} if integers else {"y": y}) | ({} if g is None else {"g": g})
        dtype = result_dtype(op, *given.values(), names=tuple(given))
        kernel_dtype(op, "y", np.asarray(y).dtype)
        with np.errstate(all="ignore"):
            z = converted(op, "z", z, dtype)
            y = np.asarray(y, np.int64 if integers and row.of_classes else dtype)
        if not row.of_classes:
            shape = broadcast_shape(op, z=z.shape, y=y.shape)
            z, y = (_plain(np.broadcast_to(a, shape)).reshape(-1) for a in (z, y))
            return _Operands(op, z, y, shape, shape)
        if z.ndim == 0 or z.shape[-1] < 2:
            raise ValueError(f"{op}: z has shape {z.shape}, needs two classes or more, last")
        n_classes = z.shape[-1]
        if integers:
            shape = broadcast_shape(op, z=z.shape[:-1], y=y.shape)
            y = np.broadcast_to(y, shape).reshape(-1)
        else:
            if y.ndim == 0 or y.shape[-1] != n_classes:
                raise ValueError(
                    f"{op}: y has shape {y.shape}, z of shape {z.shape} needs integer labels or "
                    f"(..., {n_classes})"
                )
            shape = broadcast_shape(op, z=z.shape, y=y.shape)[:-1]
            y = np.broadcast_to(y, (*shape, n_classes)).reshape(-1, n_classes)
        own, whole = with_room(1, z.shape[:-1], shape)
        z = np.broadcast_to(z.reshape(*own, n_classes), (*whole, n_classes))
        z = _plain(z.reshape(-1, n_classes))
        return _Operands(op, z, _plain(y), shape, (*shape, n_classes))

    def _evaluate(self, operands: _Operands, order: int) -> Array:
        shape = operands.shape if order == 0 else operands.z_shape
        check_axes(operands.op, shape)
        return self._score(operands.z, operands.y, order).reshape(shape)


def _reduced(pointwise: Pointwise, method: str) -> Any:
    return getattr, (pointwise, method)


def _plain(array: Array) -> Array:
    """Return an array as engines take it."""
    return np.require(array, requirements=["C", "A", "E"])


def softmax_hessian(p: Array, s: Array) -> Array:
    """Return s (diag p - p p^T), shape (..., K, K), for probabilities p and sums s of targets."""
    hessian = -s[..., None, None] * p[..., :, None] * p[..., None, :]
    diagonal = np.arange(p.shape[-1])
    hessian[..., diagonal, diagonal] = s[..., None] * p * sum_of_others(p)
    return hessian

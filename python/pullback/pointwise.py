"""Losses of single predictions, with their derivatives."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.elementwise import METHODS
from pullback.engine import Engine, attribute_of, enter
from pullback.foreign import check_computed
from pullback.jacobians import BlockDiagonal, Diagonal, Jacobian
from pullback.protocol import (
    as_array,
    check_cotangent,
    check_labels,
    converted,
    is_weak,
    result_dtype,
)
from pullback.registry import Hinted
from pullback.samples import as_targets, raising_as, sums_of_targets
from pullback.shapes import check_axes
from pullback.tables.losses import LossRow

__all__ = ["Pointwise"]

Array: TypeAlias = npt.NDArray[Any]


class _Operands(NamedTuple):
    """Predictions and targets for an engine, and the shapes of its results."""

    op: str
    z: Array
    y: Array
    shape: tuple[int, ...]  # of the values
    z_shape: tuple[int, ...]  # of the derivatives


class Pointwise(Hinted):
    """A loss of single predictions and targets, and its derivatives with respect to the prediction.

    A call returns the loss of each element. Targets have the predictions' shape; a Python number
    for one fills the shape of the other. For a loss of classes, the last axis of z is that of the
    classes; targets are either integer labels, without that axis, or probabilities, with it.
    float32 predictions and targets give float32, computed in float64 and rounded once; integer
    targets take the predictions' dtype. Where a target is outside its domain, the result is NaN.

    Parameters
    ----------
    loss : Loss
        The loss whose attribute ``pointwise`` it is.
    row : LossRow
        Its row in the table.
    engine : Engine
        The functions that it calls.
    """

    def __init__(self, loss: Any, row: LossRow, engine: Engine) -> None:
        self._loss = loss
        self._row = row
        self._kernels = engine.kernels
        self.__name__ = f"{row.name}.pointwise"
        self._call: Any = self._value
        if not engine.is_native:
            return
        made = partial(engine.kernels.loss_method, *loss._row_and_parameter)
        self._call = made("pointwise", None, self._value)
        for own in METHODS:
            make = partial(made, f"pointwise.{own}", None)
            setattr(self, own, enter(make, self, own, f"{row.name}.pointwise", __name__))

    def __repr__(self) -> str:
        return f"<pointwise of {self._loss!r}>"

    def __reduce__(self) -> Any:
        return attribute_of(self._loss, "pointwise")

    def __call__(self, z: npt.ArrayLike, y: npt.ArrayLike) -> Any:
        """Return the loss of each prediction.

        Parameters
        ----------
        z : array_like, any shape, or (..., K) for a loss of classes
            Predictions.
        y : array_like, shape of z
            Targets. For a loss of classes, integer labels in z's shape without its last axis, or
            probabilities of shape (..., K). A Python number fills that shape.

        Returns
        -------
        ndarray or scalar
            float32 or float64, in the shape of z; for a loss of classes without the last axis.

        Raises
        ------
        TypeError
            If a dtype has no kernel.
        ValueError
            If y's shape does not fit z's.
        """
        return self._call(z, y)

    def _value(self, z: npt.ArrayLike, y: npt.ArrayLike) -> Any:
        return self._evaluate(self._operands("", z, y), 0)[()]

    @raising_as("the call")
    def derivative(self, z: npt.ArrayLike, y: npt.ArrayLike) -> Any:
        """Return the derivative with respect to z.

        Parameters
        ----------
        z, y : array_like
            As for the call.

        Returns
        -------
        ndarray or scalar
            The shape of z; for a loss of classes the gradient, classes on the last axis.
        """
        return self._evaluate(self._operands(".derivative", z, y), 1)[()]

    @raising_as("the call")
    def value_and_derivative(self, z: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Any, Any]:
        """Return the loss of each prediction, and the derivative with respect to z.

        Parameters
        ----------
        z, y : array_like
            As for the call.

        Returns
        -------
        value, derivative : ndarray or scalar
            As the call and `derivative` return them, in the shape of z.
        """
        operands = self._operands(".value_and_derivative", z, y)
        return self._evaluate(operands, 0)[()], self._evaluate(operands, 1)[()]

    @raising_as("the call")
    def second_derivative(self, z: npt.ArrayLike, y: npt.ArrayLike) -> Any:
        """Return the second derivative with respect to z.

        Parameters
        ----------
        z, y : array_like
            As for the call.

        Returns
        -------
        ndarray or scalar
            The shape of z; for a loss of classes the Hessian, shape (..., K, K).
        """
        operands = self._operands(".second_derivative", z, y)
        second = self._evaluate(operands, 2)
        if not self._row.of_classes:
            return second[()]
        shape = (*operands.z_shape, operands.z_shape[-1])
        check_axes(operands.op, shape)
        with np.errstate(all="ignore"):
            sums = sums_of_targets(operands.y)
            hessians = self._kernels.softmax_hessians(second.reshape(operands.z.shape), sums)
        return hessians.reshape(shape)

    def vjp(self, z: npt.ArrayLike, y: npt.ArrayLike, g: npt.ArrayLike) -> Any:
        """Return the cotangent of z: g times the derivative.

        Parameters
        ----------
        z, y : array_like
            As for the call.
        g : array_like, shape of the call's result, which leading axes of a stack may precede
            Cotangent of the values. A Python number fills their shape.

        Returns
        -------
        ndarray or scalar
            The shape of z, after the axes of the stack.

        Raises
        ------
        ValueError
            If g's shape does not fit.
        """
        op = f"{self._row.name}.pointwise.vjp"
        number = is_weak(g)
        operands = self._operands(".vjp", z, y, g=g)
        g = g if number else as_array(op, "g", g)
        derivative = self._evaluate(operands, 1)
        with np.errstate(all="ignore"):
            g = converted(op, "g", g, derivative.dtype)
            g = np.full(operands.shape, g) if number else g
            check_cotangent(op, g.shape, operands.shape, z=np.shape(z), y=np.shape(y))
            if self._row.of_classes:
                check_axes(op, (*g.shape, 1))
                g = g[..., np.newaxis]
            return (g * derivative)[()]

    def jvp(self, z: npt.ArrayLike, y: npt.ArrayLike, t: npt.ArrayLike | None) -> Any:
        """Return the tangent of the values: the derivative times t, summed over classes.

        Parameters
        ----------
        z, y : array_like
            As for the call.
        t : array_like, shape of z, a Python number, which fills it, or None
            Tangent of z; None is zero. Targets have no tangent.

        Returns
        -------
        ndarray or scalar
            The shape of the call's result.

        Raises
        ------
        ValueError
            If t's shape is not z's.
        """
        op = f"{self._row.name}.pointwise.jvp"
        if t is None:
            return np.zeros_like(self._value(z, y))[()]
        number = is_weak(t)
        operands = self._operands(".jvp", z, y, t=t)
        t = t if number else as_array(op, "t", t)
        derivative = self._evaluate(operands, 1)
        with np.errstate(all="ignore"):
            t = converted(op, "t", t, derivative.dtype)
            if t.shape != operands.z_shape and not number:
                raise ValueError(f"{op}: t has shape {t.shape}, z {operands.z_shape}")
            if not self._row.of_classes:
                return (derivative * t)[()]
            products = np.multiply(derivative, t, dtype=np.float64)
            return np.cumsum(products, -1)[..., -1].astype(derivative.dtype)[()]

    @raising_as("the call")
    def jacobian(self, z: npt.ArrayLike, y: npt.ArrayLike) -> Jacobian:
        """Return the Jacobian with respect to z.

        Parameters
        ----------
        z, y : array_like
            As for the call.

        Returns
        -------
        pullback.jacobians.Jacobian, from the shape of z to that of the call's result
            A `Diagonal`; for a loss of classes a `BlockDiagonal`.
        """
        operands = self._operands(".jacobian", z, y)
        derivative = self._evaluate(operands, 1)
        if not self._row.of_classes:
            return Diagonal._of(derivative)
        blocks = derivative.reshape(math.prod(operands.shape), 1, operands.z_shape[-1])
        return BlockDiagonal._of(blocks, operands.z_shape, operands.shape)

    def _operands(self, method: str, z: Any, y: Any, **moved: Any) -> _Operands:
        """Return predictions and targets of one shape, in their and `moved`'s common dtype."""
        of_classes = self._row.of_classes
        op = f"{self._row.name}.pointwise{method}"
        check_labels(op, ("z", "y", *moved), (z, y, *moved.values()))
        for name, operand in (("z", z), ("y", y), *moved.items()):
            check_computed(op, name, operand, "give the method to dask.array.map_blocks")
        z_fills, y_fills = is_weak(z), is_weak(y)
        z = z if z_fills else as_array(op, "z", z)
        y = y if y_fills else as_targets(op, self._row, y)
        integers = isinstance(y, int) if y_fills else y.dtype.kind in "biu"
        given = {"z": z} | ({} if integers else {"y": y}) | moved
        dtype = result_dtype(op, *given.values(), names=tuple(given))
        labels = of_classes and integers
        with np.errstate(all="ignore"):
            z = converted(op, "z", z, dtype)
            y = converted(op, "y", y, np.dtype(np.int64) if labels else dtype)
        shape = y.shape if z_fills else z.shape
        if of_classes and (z_fills or z.ndim == 0 or z.shape[-1] < 2):
            raise ValueError(
                f"{op}: z has shape {z.shape}, needs two classes or more, on its last axis"
            )
        z, z_shape = np.full(shape, z) if z_fills else z, shape
        shape = shape[:-1] if of_classes else shape
        y_shape = shape if labels else z_shape
        if y_fills and (labels or not of_classes):
            y = np.full(y_shape, y)
        if y.shape != y_shape:
            needs = f": needs integer labels of shape {shape}, or {z_shape}" * of_classes
            raise ValueError(f"{op}: y has shape {y.shape}, z has {z_shape}{needs}")
        by_rows = of_classes or (self._loss._by_rows and len(z_shape) > 1)
        rows = (math.prod(z_shape[:-1]), z_shape[-1]) if by_rows else (-1,)
        z, y = _plain(z).reshape(rows), _plain(y).reshape((-1,) if labels else rows)
        return _Operands(op, z, y, shape, z_shape)

    def _evaluate(self, operands: _Operands, order: int) -> Array:
        values: Array = self._kernels.loss_pointwise(
            *self._loss._row_and_parameter, operands.z, operands.y, order
        )
        return values.reshape(operands.shape if order == 0 else operands.z_shape)


def _plain(array: Array) -> Array:
    """Return an array as engines take it."""
    return np.require(array, requirements=["C", "A", "E"])

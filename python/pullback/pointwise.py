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
    check_wrt,
    converted,
    deliver,
    is_weak,
    result_dtype,
)
from pullback.registry import Hinted
from pullback.samples import (
    as_targets,
    change_of_slopes,
    raising_as,
    softmax_hessian_product,
    sums_of_targets,
)
from pullback.shapes import check_axes
from pullback.tables.losses import LossRow

__all__ = ["Pointwise", "PointwiseVjp"]

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
    vjp_class : type
        The class of its ``vjp``.
    """

    def __init__(
        self, loss: Any, row: LossRow, engine: Engine, vjp_class: type[PointwiseVjp]
    ) -> None:
        self._loss = loss
        self._row = row
        self._kernels = engine.kernels
        self.__name__ = f"{row.name}.pointwise"
        self.vjp = vjp = vjp_class(self, row)
        self._call: Any = self._value
        if not engine.is_native:
            return
        self.vjp = vjp.__call__  # type: ignore[assignment]  # what a native method falls back to
        made = partial(engine.kernels.loss_method, *loss._row_and_parameter)
        self._call = made("pointwise", None, self._value)
        for own in METHODS:
            make = partial(made, f"pointwise.{own}", None)
            setattr(self, own, enter(make, self, own, f"{row.name}.pointwise", __name__))
        self.vjp.jvp, self.vjp.vjp = vjp.jvp, vjp.vjp  # type: ignore[method-assign]

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


class PointwiseVjp(Hinted):
    """Cotangents of a pointwise loss's predictions. It is a primitive itself, of z and g.

    Parameters
    ----------
    pointwise : Pointwise
        The object whose attribute ``vjp`` it is.
    row : LossRow
        The loss's row in the table.
    """

    def __init__(self, pointwise: Pointwise, row: LossRow) -> None:
        self._pointwise, self._row = pointwise, row
        self.__name__ = f"{row.name}.pointwise.vjp"
        self.__doc__ = type(self).__call__.__doc__

    def __repr__(self) -> str:
        return f"<vjp of {self._pointwise!r}>"

    def __reduce__(self) -> Any:
        return attribute_of(self._pointwise, "vjp")

    def __call__(self, z: npt.ArrayLike, y: npt.ArrayLike, g: npt.ArrayLike) -> Any:
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
        operands, g, _ = self._arguments("", z, y, g)
        derivative = self._pointwise._evaluate(operands, 1)
        with np.errstate(all="ignore"):
            return (self._by_row(g) * derivative)[()]

    def jvp(
        self,
        z: npt.ArrayLike,
        y: npt.ArrayLike,
        g: npt.ArrayLike,
        t: npt.ArrayLike | None,
        tg: npt.ArrayLike | None,
        out: Any = None,
    ) -> Any:
        """Return the tangent of vjp's result: g times the second derivative times t, and vjp of tg.

        Parameters
        ----------
        z, y, g : array_like
            As for `vjp`.
        t : array_like, shape of z, a Python number, which fills it, or None
            Tangent of z; None is zero. Targets have no tangent.
        tg : array_like, shape of g, a Python number, which fills it, or None
            Tangent of g.
        out : ndarray, optional
            Overwritten with the result.

        Returns
        -------
        ndarray or scalar
            The shape of vjp's result.

        Raises
        ------
        ValueError
            If a shape does not fit.
        """
        operands, g, (t, tg) = self._arguments(".jvp", z, y, g, t=t, tg=tg)
        shape = (*g.shape[: g.ndim - len(operands.shape)], *operands.z_shape)
        with np.errstate(all="ignore"):
            result = np.zeros(shape, operands.z.dtype)
            if tg is not None:
                result += self._by_row(tg) * self._pointwise._evaluate(operands, 1)
            if t is not None:
                result += self._curved(operands, self._by_row(g) * t)
        return deliver(self._op(".jvp"), result, out)

    def vjp(
        self,
        z: npt.ArrayLike,
        y: npt.ArrayLike,
        g: npt.ArrayLike,
        h: npt.ArrayLike | None,
        out: Any = None,
        *,
        wrt: str | int | tuple[str | int, ...] = "all",
    ) -> Any:
        """Return the cotangents of z and of g: g times the second derivative times h, and jvp of h.

        Parameters
        ----------
        z, y, g : array_like
            As for `vjp`.
        h : array_like, shape of vjp's result, a Python number, which fills it, or None
            Cotangent of vjp's result; None is zero.
        out : tuple of (ndarray or None), or an ndarray for a bare `wrt`
            Overwritten with the results.
        wrt : str, int, a tuple of them, or "all"
            The operands whose cotangents to return, "z" and "g", by name or position: 2 is g. A
            single operand gives its cotangent, a tuple gives a tuple.

        Returns
        -------
        tuple or ndarray or scalar
            The shape of z, summed over the stack; and the shape of g.

        Raises
        ------
        ValueError
            If a shape does not fit.
        """
        op = self._op(".vjp")
        asked = check_wrt(op, wrt, ("z", "y", "g"), without=("y",))
        operands, g, (h,) = self._arguments(".vjp", z, y, g, h=h)
        dtype, stack = operands.z.dtype, tuple(range(g.ndim - len(operands.shape)))
        of_z, of_g = np.zeros(operands.z_shape, dtype), np.zeros(g.shape, dtype)
        if h is not None:
            with np.errstate(all="ignore"):
                if 0 in asked.operands:
                    products = self._by_row(g) * h
                    of_z += self._curved(operands, products.sum(axis=stack) if stack else products)
                if 2 in asked.operands:
                    of_g += self._summed(h * self._pointwise._evaluate(operands, 1))
        return deliver(op, asked.result([(of_z, h, of_g)[k] for k in asked.operands]), out)

    # --- what they share ---

    def _op(self, method: str) -> str:
        return f"{self.__name__}{method}"

    def _arguments(
        self, method: str, z: Any, y: Any, g: Any, **moved: Any
    ) -> tuple[_Operands, Array, list[Array | None]]:
        """Return operands, g, and tangents or cotangents of z and g, of one dtype; None stays."""
        op = self._op(method)
        if g is None:
            raise TypeError(f"{op}: g is None, which is no cotangent")
        there = {name: given for name, given in moved.items() if given is not None}
        operands = self._pointwise._operands(f".vjp{method}", z, y, g=g, **there)
        number = is_weak(g)
        g = self._converted(op, "g", g, operands)
        g = np.full(operands.shape, g) if number else g
        stack = check_cotangent(op, g.shape, operands.shape, z=np.shape(z), y=np.shape(y))
        whole = (*stack, *operands.z_shape)
        check_axes(op, whole)
        right = {
            "t": ("z", operands.z_shape),
            "tg": ("g", g.shape),
            "h": ("the cotangent of z", whole),
        }
        arrays: list[Array | None] = []
        for name, given in moved.items():
            whose, shape = right[name]
            array = None if given is None else self._converted(op, name, given, operands)
            if array is not None and is_weak(given):
                array = np.full(shape, array)
            if array is not None and array.shape != shape:
                raise ValueError(f"{op}: {name} has shape {array.shape}, {whose} has {shape}")
            arrays.append(array)
        return operands, g, arrays

    def _converted(self, op: str, name: str, given: Any, operands: _Operands) -> Array:
        given = given if is_weak(given) else as_array(op, name, given)
        with np.errstate(all="ignore"):
            return np.asarray(converted(op, name, given, operands.z.dtype))

    def _by_row(self, g: Array) -> Array:
        """Return g with an axis for the classes."""
        return g[..., np.newaxis] if self._row.of_classes else g

    def _summed(self, products: Array) -> Array:
        """Return products, summed over the classes in float64."""
        if not self._row.of_classes:
            return products
        return np.cumsum(products, -1, dtype=np.float64)[..., -1].astype(products.dtype)

    def _curved(self, operands: _Operands, u: Array) -> Array:
        """Return the second derivative times u, shape (..., the shape of z)."""
        second = self._pointwise._evaluate(operands, 2)
        if not self._row.of_classes:
            return change_of_slopes(self._row, second, operands.y, u)  # type: ignore[no-any-return]
        p = np.broadcast_to(second.astype(np.float64), u.shape)
        sums = np.broadcast_to(sums_of_targets(operands.y).reshape(operands.shape), u.shape[:-1])
        return softmax_hessian_product(p, sums, u.astype(np.float64)).astype(u.dtype)  # type: ignore[no-any-return]


def _plain(array: Array) -> Array:
    """Return an array as engines take it."""
    return np.require(array, requirements=["C", "A", "E"])

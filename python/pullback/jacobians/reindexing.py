"""Jacobians of maps that move, repeat or sum elements: all their elements are zeros and ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pullback.jacobians.arguments import Array, as_shape, sum_along
from pullback.jacobians.base import Jacobian, Unstored
from pullback.protocol import as_ints, shown
from pullback.shapes import with_room

__all__ = ["Broadcast", "Permutation", "Reshape", "SumTo"]


class _Move(Unstored):
    """The base of Jacobians that move elements."""

    __slots__ = ()

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(input_shape, output_shape, dtype)
        self._check()

    def _check(self) -> None:
        """Raise ValueError if the shapes do not fit."""

    def _arguments(self) -> tuple[Any, ...]:
        return self._input_shape, self._output_shape

    def _coordinates(self) -> tuple[Any, Any, Any]:
        # Where each element of the result comes from; whole numbers below 2**53.
        rows, columns = (np.arange(n) for n in self.shape)
        (sources,) = self._times(columns[np.newaxis].astype(np.float64))
        return 1, rows, sources.astype(np.intp)


class Permutation(_Move):
    """The Jacobian of ``numpy.transpose``.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of the operand.
    axes : sequence of int
        The operand's axes in the order in which the result has them.
    dtype : dtype, default float32
        float32 or float64. Zeros and ones are exact in both. With the default, a product or sum
        gets the dtype of the other Jacobian or array.

    Raises
    ------
    ValueError
        If `axes` is not a permutation of the operand's axes.

    Examples
    --------
    >>> import numpy as np
    >>> J = Permutation((2, 3), (1, 0))
    >>> J
    <Permutation 6x6 float32, axes (1, 0), operand shape (2, 3), result shape (3, 2)>
    >>> J @ np.arange(6.0).reshape(2, 3)
    array([[0., 3.],
           [1., 4.],
           [2., 5.]])
    """

    __slots__ = ("_axes",)

    def __init__(
        self,
        input_shape: tuple[int, ...],
        axes: Sequence[int],
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        shape = as_shape("Permutation", "input_shape", input_shape)
        ndim, axes = len(shape), as_ints("Permutation", "axes", axes)
        if sorted(axis % ndim if -ndim <= axis < ndim else -1 for axis in axes) != [*range(ndim)]:
            raise ValueError(
                f"Permutation: axes {shown(axes)} are not a permutation of those of shape {shape}"
            )
        self._axes = tuple(axis % ndim for axis in axes)
        super().__init__(shape, tuple(shape[axis] for axis in self._axes), dtype)

    @property
    def axes(self) -> tuple[int, ...]:
        """The operand's axes in the order in which the result has them."""
        return self._axes

    @property
    def T(self) -> Permutation:
        """The transposed Jacobian, that of the inverse permutation."""
        inverse = tuple(int(i) for i in np.argsort(self._axes))
        return Permutation(self._output_shape, inverse, self._dtype)

    def _structure(self) -> str:
        return f", axes {self._axes}"

    def _arguments(self) -> tuple[Any, ...]:
        return self._input_shape, self._axes

    def _times(self, tangents: Array) -> Array:
        shape = self._input_shape
        # Axes of extent 1 move nothing, and one more may be too many.
        long = [axis for axis, n in enumerate(shape) if n != 1]
        place = {axis: 1 + i for i, axis in enumerate(long)}
        stack = tangents.reshape(len(tangents), *(shape[axis] for axis in long))
        moved = stack.transpose(0, *(place[axis] for axis in self._axes if axis in place))
        return moved.reshape(len(tangents), self.shape[0])

    def _diagonal_elements(self) -> Array:
        _, rows, columns = self._coordinates()
        own: Array = rows == columns
        return own.astype(self._dtype)


class Reshape(_Move):
    """The Jacobian of ``numpy.reshape``, in row-major order.

    Parameters
    ----------
    input_shape, output_shape : tuple of int
        Shapes of the operand and of the result, with the same number of elements.
    dtype : dtype, default float32
        As for `Permutation`.

    Raises
    ------
    ValueError
        If the shapes hold different numbers of elements.
    """

    __slots__ = ()

    def _check(self) -> None:
        rows, columns = self.shape
        if rows != columns:
            raise ValueError(
                f"Reshape: input_shape {self._input_shape} has {columns} elements, "
                f"output_shape {self._output_shape} has {rows}"
            )

    @property
    def T(self) -> Reshape:
        """The transposed Jacobian, that of the inverse reshape."""
        return Reshape._between(self._output_shape, self._input_shape, self._dtype)

    def _times(self, tangents: Array) -> Array:
        return tangents

    _pull = _times

    def _diagonal_elements(self) -> Array:
        return np.ones(self.shape[0], self._dtype)


class Broadcast(_Move):
    """The Jacobian of ``numpy.broadcast_to``.

    Parameters
    ----------
    input_shape, output_shape : tuple of int
        Shapes of the operand and of the result, to which the former broadcasts.
    dtype : dtype, default float32
        As for `Permutation`.

    Raises
    ------
    ValueError
        If `input_shape` does not broadcast to `output_shape`.

    Examples
    --------
    >>> import numpy as np
    >>> J = Broadcast((2, 1), (2, 3))
    >>> J @ np.array([[1.0], [2.0]])
    array([[1., 1., 1.],
           [2., 2., 2.]])
    >>> J.T
    <SumTo 2x6 float32, operand shape (2, 3), result shape (2, 1)>
    """

    __slots__ = ()

    def _check(self) -> None:
        _check_broadcast(self, "input", "output")

    @property
    def T(self) -> SumTo:
        """The transposed Jacobian, a sum over the repetitions."""
        return SumTo._between(self._output_shape, self._input_shape, self._dtype)

    def _times(self, tangents: Array) -> Array:
        return _repeated(tangents, self._input_shape, self._output_shape)

    def _pull(self, cotangents: Array) -> Array:
        return _summed(cotangents, self._output_shape, self._input_shape)

    def _diagonal_elements(self) -> Array:
        # An element is its own source up to where the first repetition ends.
        own, _, n, axes = _folded(self._input_shape, self._output_shape)
        elements = np.zeros(min(math.prod(own), n), self._dtype)
        elements[: math.prod(own[axes[-1] :]) if axes else n] = 1
        return elements


class SumTo(_Move):
    """The Jacobian of the sum to a shape that broadcasts to the operand's.

    Parameters
    ----------
    input_shape, output_shape : tuple of int
        Shapes of the operand and of the result, which broadcasts to the former. Sums run in
        float64 over the axes that the result lacks or that have extent 1 there.
    dtype : dtype, default float32
        As for `Permutation`.

    Raises
    ------
    ValueError
        If `output_shape` does not broadcast to `input_shape`.
    """

    __slots__ = ()

    def _check(self) -> None:
        _check_broadcast(self, "output", "input")

    @property
    def T(self) -> Broadcast:
        """The transposed Jacobian, which repeats what was summed."""
        return Broadcast._between(self._output_shape, self._input_shape, self._dtype)

    def flops(self, k: int = 1) -> int:
        """Return k (n - m) additions."""
        rows, columns = self.shape
        return k * max(columns - rows, 0)

    def _times(self, tangents: Array) -> Array:
        return _summed(tangents, self._input_shape, self._output_shape)

    def _pull(self, cotangents: Array) -> Array:
        return _repeated(cotangents, self._output_shape, self._input_shape)

    def _diagonal_elements(self) -> Array:
        return self.T._diagonal_elements()

    def _coordinates(self) -> tuple[Any, Any, Any]:
        one, columns, rows = self.T._coordinates()
        return one, rows, columns


@lru_cache(1024)
def _folded(
    own: tuple[int, ...], whole: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]:
    """Return both shapes with equally many axes and room for a stack, and how they differ.

    The difference is the larger one's number of elements, and its axes after the stack's along
    which the other is repeated.
    """
    own, whole = with_room(1, own, whole)
    own = (1,) * (len(whole) - len(own)) + own
    axes = tuple(1 + i for i, n in enumerate(whole) if own[i] != n)
    return own, whole, math.prod(whole), axes


def _repeated(rows: Array, few: tuple[int, ...], many: tuple[int, ...]) -> Array:
    """Return rows (k, n) of arrays of the shape `few`, repeated to the shape `many`."""
    k = len(rows)
    own, whole, n, _ = _folded(few, many)
    repeated = np.empty((k, *whole), rows.dtype)
    repeated[...] = rows.reshape(k, *own)
    return repeated.reshape(k, n)


def _summed(rows: Array, many: tuple[int, ...], few: tuple[int, ...]) -> Array:
    """Return rows (k, n) of arrays of the shape `many`, summed to the shape `few`; a copy."""
    k = len(rows)
    own, whole, _, axes = _folded(few, many)
    if not axes:
        return rows.copy()
    # In which order is summed depends on the layout.
    stack = np.ascontiguousarray(rows).reshape(k, *whole)
    return sum_along(stack, axes).reshape(k, math.prod(own))


def _check_broadcast(J: Jacobian, few: str, many: str) -> None:
    shape, whole = getattr(J, f"_{few}_shape"), getattr(J, f"_{many}_shape")
    lacking = len(whole) - len(shape)
    if lacking < 0 or any(n not in (1, m) for n, m in zip(shape, whole[lacking:], strict=True)):
        op = type(J).__name__
        raise ValueError(f"{op}: {few}_shape {shape} does not broadcast to {many}_shape {whole}")

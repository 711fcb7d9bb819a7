"""Jacobians of maps of rows, such as softmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pullback.jacobians.arguments import Array, Scaling
from pullback.jacobians.base import UNITS, Shaped
from pullback.shapes import MOST_AXES
from pullback.slices import Axis, Slices

__all__ = ["RowWise"]


class RowWise(Shaped):
    """The Jacobian of a primitive that maps each slice of an array separately.

    It keeps the operand. Products are the primitive's own jvp and vjp, of one pass each. The
    elements that would couple two slices are zeros of the structure: their products are 0, even
    with an infinity.

    Parameters
    ----------
    primitive : object
        An object with ``jvp(x, t, axis=, ...)`` and ``vjp(x, g, axis=, ...)``.
    x : ndarray
        The operand, float32 or float64. It is kept, and must not be written to.
    axis : int, tuple of int, or None
        The axes of a slice.
    options : dict, optional
        The primitive's other keywords.

    Examples
    --------
    >>> import numpy as np
    >>> import pullback as pb
    >>> J = pb.softmax.jacobian(np.zeros((2, 2)))
    >>> J
    <RowWise 4x4 float64, of softmax along axis -1, operand shape (2, 2)>
    >>> J @ np.array([[1.0, 0.0], [0.0, 2.0]])
    array([[ 0.25, -0.25],
           [-0.5 ,  0.5 ]])
    """

    __slots__ = ("_axis", "_is_transposed", "_options", "_primitive", "_x")

    def __init__(
        self,
        primitive: Any,
        x: Array,
        axis: Axis = -1,
        options: dict[str, Any] | None = None,
        is_transposed: bool = False,
    ) -> None:
        self._primitive, self._x, self._axis = primitive, x, axis
        self._options = options or {}
        self._is_transposed = is_transposed
        self._input_shape = self._output_shape = x.shape
        self._dtype = x.dtype

    @property
    def nbytes(self) -> int:
        """Bytes stored: those of the operand."""
        return self._x.nbytes

    @property
    def T(self) -> RowWise:
        """The transposed Jacobian, in which jvp and vjp change places."""
        return self._like(self._x, not self._is_transposed)

    def flops(self, k: int = 1) -> int:
        """Return k (4 n): a sum of products, and a multiple of it that is subtracted."""
        return 4 * k * self._x.size

    def _structure(self) -> str:
        name = self._primitive.__name__
        return f", of {name} along axis {self._axis}{', transposed' * self._is_transposed}"

    def __reduce__(self) -> tuple[Any, ...]:
        rest = self._axis, self._options, self._is_transposed
        return RowWise, (self._primitive, self._x, *rest)

    def _like(self, x: Array, is_transposed: bool) -> RowWise:
        return RowWise(self._primitive, x, self._axis, self._options, is_transposed)

    def _times(self, tangents: Array) -> Array:
        return self._moved(tangents, self._is_transposed)

    def _pull(self, cotangents: Array) -> Array:
        return self._moved(cotangents, not self._is_transposed)

    def _moved(self, vectors: Array, back: bool) -> Array:
        x, axis = self._x, self._axis
        method = self._primitive.vjp if back else self._primitive.jvp
        k = len(vectors)
        if k == 1:
            moved = method(x, vectors.reshape(x.shape), axis=axis, **self._options)
            return moved.reshape(1, -1)  # type: ignore[no-any-return]
        if x.ndim == MOST_AXES or k == 0:  # no room for a stack's axis
            rows = (self._moved(vectors[i : i + 1], back) for i in range(k))
            return np.concatenate([np.empty((0, x.size), vectors.dtype), *rows])
        stack = np.empty((k, *x.shape), self._dtype)
        stack[...] = x
        if axis is None:
            axis = tuple(range(-x.ndim, 0))
        elif type(axis) is tuple:
            axis = tuple(a % x.ndim + 1 for a in axis)
        elif axis >= 0:  # type: ignore[operator]
            axis += 1  # type: ignore[operator]
        vectors = np.ascontiguousarray(vectors).reshape(stack.shape)
        return method(stack, vectors, axis=axis, **self._options).reshape(k, -1)  # type: ignore[no-any-return]

    def _scaled(self, c: Any, by: Scaling) -> RowWise | None:
        del by
        return (
            self._like(self._x.astype(c.dtype, copy=False), self._is_transposed) if c == 1 else None
        )

    @property
    def _is_small(self) -> bool:
        """Whether there is one slice only, and the matrix is small enough for one product."""
        x = self._x
        return (x.ndim == 1 or self._axis is None) and x.size**2 <= UNITS

    def _columns(self) -> Iterator[tuple[Array, Array, Array]]:
        """Yield columns of the matrix: positions of some elements, of all elements, and columns.

        Positions have the shape of slices (outer, n, inner). One product gives the columns of the
        i-th elements of all slices together, because these have no nonzero rows in common.
        """
        size = self._x.size
        slices = Slices.of("jacobian", self._x, self._axis)
        places = slices.take(np.arange(size).reshape(self._x.shape))
        step = max(1, UNITS // max(1, size))
        for start in range(0, slices.n, step):
            at = places[:, start : start + step]
            units = np.zeros((at.shape[1], size), self._dtype)
            units[_numbers(at), at] = 1
            yield at, places, self._times(units)

    def _diagonal_elements(self) -> Array:
        if self._is_small:
            return self._dense().diagonal().copy()
        elements = np.empty(self._x.size, self._dtype)
        for at, _, columns in self._columns():
            elements[at] = columns[_numbers(at), at]
        return elements

    def _dense(self) -> Array:
        if self._is_small:
            return super()._dense()
        dense = np.zeros(self.shape, self._dtype)
        for elements, rows, columns in self._pieces():
            dense[rows, columns] = elements
        return dense

    def _pieces(self) -> Iterator[tuple[Array, Array, Array]]:
        """Yield elements, their rows and their columns, which broadcast: all but zeros."""
        for at, places, columns in self._columns():
            elements = columns[:, places].swapaxes(0, 1)
            yield elements, places[:, np.newaxis], at[:, :, np.newaxis]

    def _coordinates(self) -> tuple[Any, Any, Any] | None:
        if Slices.of("jacobian", self._x, self._axis).n == self._x.size:
            return None
        pieces = [map(np.ravel, np.broadcast_arrays(*piece)) for piece in self._pieces()]
        elements, rows, columns = (np.concatenate(each) for each in zip(*pieces, strict=True))
        return elements, rows, columns


def _numbers(at: Array) -> Array:
    """Return numbers along the middle axis."""
    return np.arange(at.shape[1])[:, np.newaxis]

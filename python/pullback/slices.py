"""The slices that reductions reduce: their axes, order in memory and results' shapes."""

from __future__ import annotations

import math
import sys
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.protocol import Outputs, as_ints, shown

__all__ = ["AXES", "Axis", "Slices"]

Array: TypeAlias = npt.NDArray[Any]
Axis: TypeAlias = int | tuple[int, ...] | None

AXES: Final = "an integer, a tuple of them or None"  # what an axis has to be


class Slices(NamedTuple):
    """An array viewed as (outer, n, inner), where the middle axis is reduced.

    Parameters
    ----------
    shape : tuple of int
        The array's.
    axes : tuple of int
        Those that are reduced.
    order : tuple of int
        All axes, in the order of the blocks.
    blocks : (int, int, int)
        The shape of the blocks.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    order: tuple[int, ...]
    blocks: tuple[int, int, int]

    @classmethod
    def of(cls, op: str, x: Array, axis: Axis, *, ordered: bool = False) -> Slices:
        """Return the slices of an operation's array along an axis, several, or all.

        The order of axes is that of memory if the elements then need not be moved. Where `ordered`,
        the elements of a slice are in C order.

        Raises
        ------
        TypeError
            If an axis is no integer.
        numpy.exceptions.AxisError
            If there is no such axis.
        ValueError
            If an axis is named twice.
        """
        everything = range(x.ndim)
        axes = tuple(everything) if axis is None else _axes(op, axis, x.ndim)
        order = tuple(sorted(everything, key=lambda a: (-abs(x.strides[a]), a)))
        long = [a for a in order if x.shape[a] != 1]
        reduced = [i for i, a in enumerate(long) if a in axes]
        together = not reduced or reduced[-1] - reduced[0] + 1 == len(reduced)
        if ordered:
            together &= sorted(own := [long[i] for i in reduced]) == own
        if not together or not x.transpose(order).flags.c_contiguous:
            order = tuple(a for a in everything if a not in axes) + tuple(sorted(axes))
            long = [a for a in order if x.shape[a] != 1]
            reduced = [i for i, a in enumerate(long) if a in axes]
        begin, end = (reduced[0], reduced[-1] + 1) if reduced else (len(long), len(long))
        parts = long[:begin], long[begin:end], long[end:]
        outer, n, inner = (math.prod(x.shape[a] for a in part) for part in parts)
        return cls(x.shape, axes, order, (outer, n, inner))

    @property
    def n(self) -> int:
        """How many elements are reduced to one."""
        return self.blocks[1]

    def result_shape(self, keepdims: bool) -> tuple[int, ...]:
        """Return the shape of the results."""
        if keepdims:
            return tuple(1 if a in self.axes else n for a, n in enumerate(self.shape))
        return tuple(n for a, n in enumerate(self.shape) if a not in self.axes)

    # --- there ---

    def take(self, x: Array) -> Array:
        """Return an array of the operand's shape as blocks, copied only where needed."""
        return np.ascontiguousarray(x.transpose(self.order)).reshape(self.blocks)

    def take_results(self, g: Array) -> Array:
        """Return an array of a result's shape as (outer, inner)."""
        g = g.reshape([1 if a in self.axes else n for a, n in enumerate(self.shape)])
        outer, _, inner = self.blocks
        return np.ascontiguousarray(g.transpose(self.order)).reshape(outer, inner)

    # --- and back ---

    def give(self, blocks: Array) -> Array:
        """Return blocks in the operand's shape."""
        return self._ordered(blocks, self.shape)

    def give_results(self, values: Array, keepdims: bool) -> Array:
        """Return (outer, inner) in the results' shape."""
        kept = tuple(1 if a in self.axes else n for a, n in enumerate(self.shape))
        return self._ordered(values, kept).reshape(self.result_shape(keepdims))

    def _ordered(self, array: Array, shape: tuple[int, ...]) -> Array:
        moved = array.reshape([shape[a] for a in self.order])
        return moved.transpose(np.argsort(self.order))

    def targets(self, outputs: Outputs, *blocks: tuple[int, ...]) -> tuple[Array | None, ...]:
        """Return where results may be written at once, in the shapes of the engine's arrays."""
        if self.order != tuple(range(len(self.shape))):
            return (None,) * len(blocks)
        return outputs.targets(*blocks, contiguous=True)


def _axes(op: str, axis: Any, ndim: int) -> tuple[int, ...]:
    """Return the axes that an argument names, counted from the first."""
    axes = []
    for a in as_ints(op, "axis", axis, AXES):
        if not -ndim <= a < ndim:
            raise np.exceptions.AxisError(min(max(a, -sys.maxsize), sys.maxsize), ndim, op)
        axes.append(a % ndim)
    if len(set(axes)) < len(axes):
        raise ValueError(f"{op}: axis {shown(axis)} names an axis twice")
    return tuple(axes)

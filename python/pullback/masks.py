"""Reductions with a mask or with weights, for any engine.

`Packed` offers an engine's functions on blocks (outer, n, inner), but passes them only the elements
that the mask keeps. Slices that keep the same number of elements are packed into one array and
reduced together. Each result is therefore the reduction of an array without the other elements. All
that `Packed` needs to know of a reduction is its value for no elements.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.tables.reductions import ReductionRow

__all__ = ["Packed", "Weighted", "unmasked"]

Array: TypeAlias = npt.NDArray[Any]
Blocks: TypeAlias = tuple[Array, ...]


def unmasked(given: Sequence[Any], where: Any) -> tuple[tuple[Any, ...], Any]:
    """Return operands as plain arrays, and `where` without the elements that their masks hide."""
    masked = sys.modules.get("numpy.ma")  # before its import there are no masked arrays
    if masked is None or not any(isinstance(x, masked.MaskedArray) for x in given):
        return tuple(given), where
    for x in given:
        if isinstance(x, masked.MaskedArray):
            where = np.logical_and(where, ~masked.getmaskarray(x))
    return tuple(np.asarray(x) if isinstance(x, masked.MaskedArray) else x for x in given), where


def _rows(blocks: Array) -> Array:
    return blocks.swapaxes(1, 2).reshape(-1, blocks.shape[1])


class Packed:
    """An engine's kernels on the elements that a mask keeps.

    Parameters
    ----------
    kernels : module or namespace
        An engine's.
    row : ReductionRow
        The reduction, or map of rows.
    keep : ndarray of bool, shape (outer, n, inner)
        Which elements count.
    """

    def __init__(self, kernels: Any, row: ReductionRow, keep: Array) -> None:
        self._kernels, self._row = kernels, row
        rows = _rows(keep)
        counts = np.count_nonzero(rows, axis=1)
        self._order = np.argsort(counts, kind="stable")
        self._keep = rows[self._order]
        self._counts, self._slices = np.unique(counts, return_counts=True)

    def _groups(self) -> Iterator[tuple[slice, slice, tuple[int, int, int]]]:
        """Yield groups of slices that keep equally many elements: both positions, and the shape."""
        slices = elements = 0
        for count, k in zip(self._counts.tolist(), self._slices.tolist(), strict=True):
            behind = slices + k, elements + k * count
            if count:
                yield slice(slices, behind[0]), slice(elements, behind[1]), (k, count, 1)
            slices, elements = behind

    def _pack(self, blocks: Array) -> Array:
        packed: Array = _rows(blocks)[self._order][self._keep]
        return packed

    def _unpack(self, packed: Array, out: Array, otherwise: float = 0.0) -> None:
        outer, n, inner = out.shape
        kept = np.full(self._keep.shape, otherwise, out.dtype)
        kept[self._keep] = packed
        rows = np.empty_like(kept)
        rows[self._order] = kept
        out[...] = rows.reshape(outer, inner, n).swapaxes(1, 2)

    def _unsort(self, values: Array, out: Array) -> None:
        unsorted = np.empty_like(values)
        unsorted[self._order] = values
        out[...] = unsorted.reshape(out.shape)

    def reduce_slices(
        self, name: str, p: float, x: Blocks, g: Any, values: Any, slopes: Blocks | None
    ) -> None:
        """Reduce to values, and to derivatives times cotangents, 0 at elements not kept."""
        packed = tuple(map(self._pack, x))
        sorted_g = None if g is None else g.reshape(-1)[self._order]
        found = None
        if values is not None:
            found = np.full(self._order.shape, self._row.empty, values.dtype)
        moved = None if slopes is None else [np.empty_like(packed[0]) for _ in slopes]
        for slices, elements, shape in self._groups():
            self._kernels.reduce_slices(
                name,
                p,
                tuple(array[elements].reshape(shape) for array in packed),
                None if sorted_g is None else sorted_g[slices].reshape(-1, 1),
                None if found is None else found[slices].reshape(-1, 1),
                moved and tuple(array[elements].reshape(shape) for array in moved),
            )
        if found is not None:
            self._unsort(found, values)
        for array, out in zip(moved or (), slopes or (), strict=True):
            self._unpack(array, out)

    def reduce_tangents(
        self, name: str, p: float, x: Blocks, t: tuple[Array | None, ...], out: Array
    ) -> None:
        """Write the sums of derivatives times tangents."""
        packed = tuple(map(self._pack, x))
        tangents = [None if a is None else self._pack(a) for a in t]
        sums = np.zeros(self._order.shape, out.dtype)
        for slices, elements, shape in self._groups():
            self._kernels.reduce_tangents(
                name,
                p,
                tuple(array[elements].reshape(shape) for array in packed),
                tuple(None if a is None else a[elements].reshape(shape) for a in tangents),
                sums[slices].reshape(-1, 1),
            )
        self._unsort(sums, out)

    def second_slices(
        self, name: str, p: float, x: Blocks, g: Array, t: tuple[Array | None, ...], out: Blocks
    ) -> None:
        """Write H(t) of a reduction or a map, 0 at elements not kept."""
        packed = tuple(map(self._pack, x))
        sorted_g = self._pack(g) if self._row.is_map else g.reshape(-1)[self._order]
        tangents = [None if a is None else self._pack(a) for a in t]
        moved = [np.empty_like(packed[0]) for _ in out]
        for slices, elements, shape in self._groups():
            self._kernels.second_slices(
                name,
                p,
                tuple(array[elements].reshape(shape) for array in packed),
                sorted_g[elements].reshape(shape)
                if self._row.is_map
                else sorted_g[slices].reshape(-1, 1),
                tuple(None if a is None else a[elements].reshape(shape) for a in tangents),
                tuple(array[elements].reshape(shape) for array in moved),
            )
        for array, target in zip(moved, out, strict=True):
            self._unpack(array, target)

    def transform_slices(
        self, name: str, p: float, method: str, x: Array, v: Array | None, out: Array
    ) -> None:
        """Write a map's value, or its vjp or jvp with `v`."""
        packed = self._pack(x)
        vector = None if v is None else self._pack(v)
        result = np.empty_like(packed)
        for _, elements, shape in self._groups():
            self._kernels.transform_slices(
                name,
                p,
                method,
                packed[elements].reshape(shape),
                None if vector is None else vector[elements].reshape(shape),
                result[elements].reshape(shape),
            )
        self._unpack(result, out, 0.0 if method else self._row.hidden)


class Weighted:
    """Kernels of log(sum(b*exp(x))), from those of L = log(sum(exp(x))).

    With p the derivative of L, the value is L + log(<p, b>), and its derivative is p b / <p, b>.

    Parameters
    ----------
    kernels : module or namespace
        An engine's, or a `Packed`.
    b : ndarray, shape (outer, n, inner)
        The weights, float64; 0 at elements not kept.
    """

    def __init__(self, kernels: Any, b: Array) -> None:
        self._kernels, self._b = kernels, b

    def _mean(self, name: str, p: float, x: Array, b: Array) -> Array:
        """Return <p, b> of each slice."""
        mean = np.empty((x.shape[0], x.shape[2]))
        self._kernels.reduce_tangents(name, p, (x,), (b,), mean)
        return mean

    def reduce_slices(
        self, name: str, p: float, x: Blocks, g: Any, values: Any, slopes: Blocks | None
    ) -> None:
        """As the engine's."""
        wide = x[0].astype(np.float64)
        mean = self._mean(name, p, wide, self._b)
        with np.errstate(all="ignore"):
            if values is not None:
                whole = np.empty(values.shape)
                self._kernels.reduce_slices(name, p, (wide,), None, whole, None)
                less = self._mean(name, p, wide, np.where(self._b == 0, 0, self._b - 1))
                share = np.where(less > -0.5, np.log1p(less), np.log(mean))
                values[...] = np.where(whole == -np.inf, whole, whole + share)
            if slopes is not None:
                of_one = np.empty(wide.shape)
                by = (1 if g is None else g.astype(np.float64)) / mean
                self._kernels.reduce_slices(name, p, (wide,), by, None, (of_one,))
                slopes[0][...] = of_one * self._b

    def reduce_tangents(
        self, name: str, p: float, x: Blocks, t: tuple[Array | None, ...], out: Array
    ) -> None:
        """As the engine's."""
        (tangent,), wide = t, x[0].astype(np.float64)
        assert tangent is not None
        with np.errstate(all="ignore"):
            moved = self._mean(name, p, wide, self._b * np.where(self._b == 0, 0, tangent))
            mean = self._mean(name, p, wide, self._b)
            out[...] = np.where(moved == 0, 0, moved / mean)

    def second_slices(
        self, name: str, p: float, x: Blocks, g: Array, t: tuple[Array | None, ...], out: Blocks
    ) -> None:
        """Write H(t): q (t - <q, t>) times the cotangent, where q is the derivative."""
        (tangent,), q = t, np.empty(x[0].shape)
        assert tangent is not None
        tangent = np.where(self._b == 0, 0, tangent)
        mean = np.empty((x[0].shape[0], x[0].shape[2]))
        self.reduce_slices(name, p, x, None, None, (q,))
        self.reduce_tangents(name, p, x, (tangent,), mean)
        with np.errstate(all="ignore"):
            moved = q * (tangent - mean[:, np.newaxis]) * g[:, np.newaxis]
            moves = g[:, np.newaxis] * np.any(tangent != 0, axis=1, keepdims=True) != 0
            out[0][...] = np.where(moves & (self._b != 0), moved, 0)

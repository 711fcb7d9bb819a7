"""Runs of elementwise operations in plain NumPy, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.protocol import kernel_dtype
from pullback.tables.elementwise import OPS, OpRow

__all__ = ["BLOCK_ELEMENTS", "BlockRun", "Link"]

Array: TypeAlias = npt.NDArray[Any]

# What a step makes of a block stays in cache until the next one reads it.
BLOCK_ELEMENTS: Final = 4096


class Link(NamedTuple):
    """One operation of a run, as engines take it."""

    op: str
    places: tuple[int, ...]  # of the running value among the operands
    bound: Any  # the other operand, None where there is none


class _Block(NamedTuple):
    """A part of the running value: where it lies, and what stands beside it."""

    x: Array
    where: slice
    operands: list[Any]


class BlockRun:
    """Consecutive elementwise operations, in blocks of their running value.

    Every method returns NotImplemented unless the arguments are arrays of one dtype that lie in C
    order, beside which the bound operands broadcast without enlarging the result. The bits are
    those of one operation after the other.

    Parameters
    ----------
    links : sequence of Link
        The operations, in order.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = [(OPS[link.op], link.places, link.bound) for link in links]

    def value(self, x: Any) -> Any:
        """Return the value at `x`."""
        return self._run(x, None, (True, False), self._value)

    def vjp(self, x: Any, g: Any) -> Any:
        """Return the cotangent of `x`."""
        return self._run(x, g, (False, True), self._pull)

    def value_and_vjp(self, x: Any, g: Any) -> Any:
        """Return the value at `x` and its cotangent."""
        return self._run(x, g, (True, True), self._pull)

    def jvp(self, x: Any, t: Any) -> Any:
        """Return the tangent of the value."""
        return self._run(x, t, (False, True), self._push)

    def _run(self, x: Any, other: Any, wanted: tuple[bool, bool], method: Any) -> Any:
        if not _is_plain(x) or (other is not None and not _is_plain(other, x)):
            return NotImplemented
        operands = [_beside(bound, x) for _, _, bound in self._links]
        if any(operand is NotImplemented for operand in operands):
            return NotImplemented
        outputs = tuple(np.empty_like(x) if want else None for want in wanted)
        rows = (other, *outputs)
        flat = all(b is None or b.ndim == 0 or b.shape == x.shape for b in operands)
        if flat:  # else whole rows, in their own shape: operands broadcast as they would outside
            x, *operands = (_flat(a) for a in (x, *operands))
            rows = tuple(_flat(a) for a in rows)
        with np.errstate(all="ignore"):
            for block in _blocks(x, operands):
                method(block, *(None if a is None else a[block.where] for a in rows))
        results = [output for output in outputs if output is not None]
        return results[0] if len(results) == 1 else tuple(results)

    def _operands(self, v: Array, places: tuple[int, ...], bound: Any) -> tuple[Array, ...]:
        if bound is None:
            return (v,) * len(places)
        beside = np.broadcast_to(bound, v.shape)
        return (v, beside) if places == (0,) else (beside, v)

    def _value(self, block: _Block, _: None, value: Array, __: None) -> None:
        v = block.x
        for (row, places, _bound), bound in zip(self._links, block.operands, strict=True):
            v = row.value(*self._operands(v, places, bound))
        value[...] = v

    def _pull(self, block: _Block, g: Array, value: Array | None, cotangent: Array) -> None:
        v, kept = block.x, []
        last = len(self._links) - 1
        for i, ((row, places, _bound), bound) in enumerate(
            zip(self._links, block.operands, strict=True)
        ):
            operands = self._operands(v, places, bound)
            kept.append(_slopes(row, places, operands))
            if i < last or value is not None:
                v = row.value(*operands)
        if value is not None:
            value[...] = v
        for (row, _places, _bound), slopes in zip(self._links[::-1], kept[::-1], strict=True):
            terms = [_product(row, g, slope) for slope in slopes]
            g = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        cotangent[...] = g

    def _push(self, block: _Block, t: Array, _: None, tangent: Array) -> None:
        v = block.x
        last = len(self._links) - 1
        for i, ((row, places, _bound), bound) in enumerate(
            zip(self._links, block.operands, strict=True)
        ):
            operands = self._operands(v, places, bound)
            terms = [_product(row, t, slope) for slope in _slopes(row, places, operands)]
            t = terms[0] if len(terms) == 1 else terms[0] + terms[1]
            if i < last:
                v = row.value(*operands)
        tangent[...] = t


def _slopes(row: OpRow, places: tuple[int, ...], operands: tuple[Array, ...]) -> list[Array]:
    slopes = row.derivative(*operands)
    return [slopes] if row.nin == 1 else [slopes[k] for k in places]


def _product(row: OpRow, g: Array, slope: Array) -> Array:
    product: Array = g * slope
    return np.where(slope == 0, product.dtype.type(0), product) if row.masked else product


def _is_plain(x: Any, like: Any = None) -> bool:
    """Tell whether blocks of `x` can be read in place; like `like`, where that is given."""
    if type(x) is not np.ndarray or x.dtype.char not in "fd" or not x.dtype.isnative:
        return False
    if x.ndim == 0 or not x.flags.c_contiguous or not x.flags.aligned:
        return False
    return like is None or (x.shape == like.shape and x.dtype == like.dtype)


def _beside(bound: Any, x: Array) -> Any:
    """Return a bound operand as an array that computes beside `x`, or NotImplemented."""
    if bound is None:
        return None
    if isinstance(bound, int | float) and not isinstance(bound, bool | np.generic):
        try:
            with np.errstate(all="ignore"):
                return np.asarray(bound, x.dtype)
        except OverflowError:  # an integer beyond float64, which the operation refuses
            return NotImplemented
    if type(bound) is not np.ndarray and not isinstance(bound, np.generic):
        return NotImplemented
    array = np.asarray(bound)
    if array.dtype.char not in "fd" or kernel_dtype("chain", "x", array.dtype) != x.dtype:
        return NotImplemented
    trailing = x.shape[x.ndim - array.ndim :] if array.ndim else ()
    fits = array.ndim <= x.ndim and all(
        n in (1, extent) for n, extent in zip(array.shape, trailing, strict=True)
    )
    return array if fits else NotImplemented


def _flat(array: Array | None) -> Array | None:
    return array if array is None or array.ndim == 0 else array.reshape(-1)


def _blocks(x: Array, operands: list[Any]) -> Iterator[_Block]:
    """Yield parts of `x` along its first axis, with those of the operands that have it too."""
    step = max(1, BLOCK_ELEMENTS // max(1, math.prod(x.shape[1:])))
    for begin in range(0, len(x), step):
        where = slice(begin, begin + step)
        yield _Block(
            x[where],
            where,
            [
                b[where] if b is not None and b.ndim == x.ndim and len(b) > 1 else b
                for b in operands
            ],
        )

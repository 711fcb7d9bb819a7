"""Selections: each element of the result is an element of an operand. NumPy functions on arrays.

A choice tells, for plain arrays that broadcast, where the result comes from: a mask for each
operand that has a derivative, None for one that is None. One mask is true at each place. The last
mask tells where a derivative is NaN; it is None where none is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["clip", "derivative", "pulled", "pushed", "put", "take", "value", "where"]

Array: TypeAlias = npt.NDArray[Any]
Choice: TypeAlias = tuple[tuple[Any, ...], Any]


def where(c: Array, w: Array, x: Array) -> Choice:
    """Return where w is chosen and where x is: at a true c, and elsewhere."""
    del w, x
    return (c, ~c), None


def clip(x: Array, lo: Any, hi: Any) -> Choice:
    """Return where min(max(x, lo), hi) is x, lo and hi: the bound, where it is equal to both."""
    raised = np.isnan(x) | (x > lo) if lo is not None else np.True_
    larger = x if lo is None else np.where(raised, x, lo)
    kept = np.isnan(larger) | (larger < hi) if hi is not None else np.True_
    masks = (
        raised & kept,
        None if lo is None else ~raised & kept,
        None if hi is None else ~kept,
    )
    return masks, reduce(np.logical_or, (np.isnan(a) for a in (x, lo, hi) if a is not None))


Pick: TypeAlias = Callable[..., Choice]


def value(
    pick: Pick,
    operands: Sequence[Any],
    moved: Sequence[int],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Array:
    """Return what is chosen among the operands that have derivatives, which `moved` names."""
    masks, _ = pick(*operands)
    return _selected(masks, [operands[k] for k in moved], shape, dtype)


def derivative(
    pick: Pick,
    operands: Sequence[Any],
    moved: Sequence[int],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> tuple[Any, ...]:
    """Return 1 where an operand is chosen and 0 elsewhere, by operand; None for None."""
    del moved
    return pulled(pick, operands, np.broadcast_to(dtype.type(1), shape))


def pulled(pick: Pick, operands: Sequence[Any], g: Array) -> tuple[Any, ...]:
    """Return g where an operand is chosen and +0 elsewhere, by operand; None for None."""
    masks, undefined = pick(*operands)
    zero, nan = g.dtype.type(0), g.dtype.type(np.nan)
    terms = (None if mask is None else np.where(mask, g, zero) for mask in masks)
    if undefined is None:
        return tuple(terms)
    return tuple(None if term is None else np.where(undefined, nan, term) for term in terms)


def pushed(pick: Pick, operands: Sequence[Any], tangents: Sequence[Any]) -> Array:
    """Return the tangent of what is chosen, of arrays of one shape; at least one is not None."""
    masks, undefined = pick(*operands)
    like = next(t for t in tangents if t is not None)
    tangent = _selected(masks, tangents, like.shape, like.dtype)
    return tangent if undefined is None else np.where(undefined, like.dtype.type(np.nan), tangent)


def _selected(
    masks: tuple[Any, ...], given: Sequence[Any], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """Return the element of the array whose mask is true, or +0 for None."""
    result = np.zeros(shape, dtype)
    for mask, array in zip(masks, given, strict=True):
        if mask is not None and array is not None:
            np.copyto(result, array, where=mask)
    return result


def take(x: Array, at: Array) -> Array:
    """Return the elements of an array (outer, n, inner) at places along its middle axis."""
    return np.take(x, at, 1)


def put(g: Array, at: Array, n: int) -> Array:
    """Return zeros (outer, n, inner), to which what was taken is added at its places.

    Sums are in float64 and in the order of the places.
    """
    outer, _, inner = g.shape
    starts = n * np.arange(outer)[:, np.newaxis] + at
    flat = (starts[..., np.newaxis] * inner + np.arange(inner)).reshape(-1)
    sums = np.bincount(flat, g.reshape(-1), outer * n * inner)  # adds in order, in float64
    return sums.astype(g.dtype).reshape(outer, n, inner)

"""Selections: each element of the result is an element of an operand. NumPy functions on arrays.

A choice tells, for plain arrays that broadcast, where the result comes from: a mask for each
operand that has a derivative, None for one that is None. One mask is true at each place. The last
mask tells where a derivative is NaN; it is None where none is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["clip", "put", "selected", "take", "where"]

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


def selected(masks: tuple[Any, ...], given: Sequence[Any], dtype: np.dtype[Any]) -> Array:
    """Return at each place the element of the array whose mask is true there, or +0 for None."""
    result = np.zeros((), dtype)
    for mask, array in zip(masks, given, strict=True):
        if mask is not None:
            result = np.where(mask, np.zeros((), dtype) if array is None else array, result)
    return result


def take(x: Array, at: Array, axis: int) -> Array:
    """Return the elements of `x` at places along an axis, none of them negative or too large."""
    return np.take(x, at, axis)


def put(g: Array, at: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Return zeros (..., *shape), to which those of g (..., *taken) are added, at their places.

    Sums are in float64 and in the order of the places.
    """
    outer, n, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    stack = g.shape[: g.ndim - (len(shape) - 1 + at.ndim)]
    outer *= math.prod(stack)
    starts = n * np.arange(outer)[:, np.newaxis] + at.reshape(1, -1)
    flat = (starts[..., np.newaxis] * inner + np.arange(inner)).reshape(-1)
    sums = np.bincount(flat, g.reshape(-1), outer * n * inner)  # adds in order, in float64
    return sums.astype(g.dtype).reshape(stack + shape)

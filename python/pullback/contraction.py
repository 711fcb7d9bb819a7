"""Products of stacks of matrices, summed over batch axes that were broadcast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.shapes import broadcast_shapes

__all__ = ["summed_product"]

Array: TypeAlias = npt.NDArray[Any]


def summed_product(left: Array, right: Array, shape: tuple[int, ...]) -> Array:
    """Return left @ right, summed over the batch axes that `shape` lacks or has as 1.

    The sum of products is one product in which the summed axes are merged into the contracted one.
    Nothing is expanded.

    Parameters
    ----------
    left : ndarray, shape (..., m, k)
    right : ndarray, shape (..., k, n)
    shape : tuple of int
        The result's shape, (..., m, n); its batch broadcasts to that of the factors.

    Returns
    -------
    ndarray, shape `shape`
    """
    batch = broadcast_shapes(left.shape[:-2], right.shape[:-2])
    missing = len(batch) - len(shape[:-2])
    own = (1,) * missing + shape[:-2]
    summed = [i for i, full in enumerate(batch) if i < missing or own[i] != full]
    if not summed:
        return np.asarray(left @ right)
    left, right = _to_ndim(left, len(batch) + 2), _to_ndim(right, len(batch) + 2)
    for i in summed:
        left, right = _match(left, right, i), _match(right, left, i)
    left, right = _fold(left, summed, contracted=-1), _fold(right, summed, contracted=-2)
    return np.asarray(left @ right).reshape(shape)


def _to_ndim(array: Array, ndim: int) -> Array:
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def _match(array: Array, other: Array, axis: int) -> Array:
    """Return `array` with the extent along a batch axis that folding needs.

    If `other` lacks the axis, `array` is summed over it at once. A sum of no terms is zero,
    whatever the other factor holds.
    """
    n, n_other = array.shape[axis], other.shape[axis]
    if n_other == 0:
        return np.take(array, [], axis=axis)
    if n > 1 == n_other:
        return np.sum(array, axis=axis, keepdims=True)  # type: ignore[no-any-return]
    return array


def _fold(array: Array, axes: Sequence[int], contracted: int) -> Array:
    """Merge batch `axes` into the `contracted` one of the last two axes, in front of it."""
    target = array.ndim + contracted
    array = np.moveaxis(array, axes, range(target - len(axes), target))
    lead = array.shape[: target - len(axes)]
    merged = math.prod(array.shape[target - len(axes) : target + 1])
    return array.reshape(*lead, merged, *array.shape[target + 1 :])

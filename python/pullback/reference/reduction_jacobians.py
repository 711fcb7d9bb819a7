"""The structure of the Jacobians of reductions and maps of rows: as many elements as there are."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.jacobians import Broadcast, Dense, Diagonal, Identity, Jacobian, Reshape
from pullback.oracle import reductions as rf
from pullback.reference.slices import Slices

__all__ = ["of_map", "of_reduction"]

Array: TypeAlias = npt.NDArray[Any]


def of_reduction(slopes: Array, slices: Slices, keepdims: bool) -> Any:
    """Return the Jacobian of a reduction from its derivatives, in the operand's shape."""
    shape = slices.result_shape(keepdims)
    if len(slices.axes) == slopes.ndim:
        return Dense(
            slopes.reshape(1, -1), input_shape=slopes.shape, output_shape=shape, copy=False
        )
    kept = slices.result_shape(keepdims=True)
    total = Broadcast(kept, slopes.shape).T @ Diagonal(slopes, copy=False)
    return total if keepdims else Reshape(kept, shape) @ total


def of_map(name: str, x: Array, slices: Slices, parameter: float) -> Any:
    """Return the Jacobian of a map of rows."""
    spread = Broadcast(slices.result_shape(keepdims=True), x.shape)

    def diagonal(rows: Array) -> Diagonal:
        outer, n, inner = slices.blocks
        blocks = np.broadcast_to(rows, (outer * inner, n)).reshape(outer, inner, n).swapaxes(1, 2)
        return Diagonal(slices.give(blocks.astype(x.dtype)), copy=False)

    def mixed(weights: Jacobian) -> Any:
        """Spread the weighted sum of each slice over it."""
        return spread @ (spread.T @ weights)

    n = slices.n
    rows = np.ascontiguousarray(slices.take(x).swapaxes(1, 2), np.float64).reshape(-1, n)
    if rows.size == 0:
        return Identity(x.shape, x.dtype)
    with np.errstate(all="ignore"):
        if name == "layer_norm":
            y, rate = rf.layer_norm(rows, parameter), rf.column(rf.layer_norm_rate(rows, parameter))
            D = diagonal(y)
            return (
                diagonal(rate)
                - diagonal(rate / n) @ mixed(Identity(x.shape, x.dtype))
                - diagonal(rate / n * y) @ mixed(D)
            )
        p = diagonal(rf.softmax(rows))
    if name == "log_softmax":
        return Identity(x.shape, x.dtype) - mixed(p)
    return p - p @ mixed(p)

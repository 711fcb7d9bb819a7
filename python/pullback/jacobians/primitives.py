"""The Jacobians of primitives, made of computed arrays without checks and copies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from pullback.jacobians.arguments import Array
from pullback.jacobians.base import Jacobian
from pullback.jacobians.dense import Dense
from pullback.jacobians.diagonal import Diagonal, Identity
from pullback.jacobians.kronecker import Kronecker
from pullback.jacobians.lazy import Product
from pullback.jacobians.reindexing import Broadcast, Reshape, SumTo
from pullback.protocol import as_matrix

__all__ = [
    "of_layer",
    "of_matrix",
    "of_operand",
    "of_product",
    "of_reduction",
    "of_vector",
]

Shape = tuple[int, ...]

_CACHED: Final = 1024  # shapes


def of_operand(slopes: Any, operand: Any) -> Jacobian:
    """Return the Jacobian with respect to an operand that was broadcast to the slopes' shape."""
    diagonal = Diagonal._of(slopes)
    try:
        shape = operand.shape
    except AttributeError:
        shape = () if isinstance(operand, int | float) else np.shape(operand)
    whole = diagonal._input_shape
    if shape == whole:
        return diagonal
    return Product._of(diagonal, Broadcast._between(shape, whole, diagonal._dtype))


def of_reduction(slopes: Any, axis: Any, keepdims: bool) -> Jacobian:
    """Return the Jacobian of a reduction from its derivatives, in the operand's shape."""
    shape = slopes.shape
    moves = None if axis is None else _reducing(shape, axis, keepdims, slopes.dtype)
    if moves is None:
        return Dense._of(slopes.reshape(1, -1), shape, (1,) * len(shape) if keepdims else ())
    return Product._of(*moves, Diagonal._of(slopes)) if moves else Diagonal._of(slopes)


@lru_cache(_CACHED)
def _reducing(
    shape: Shape, axis: Any, keepdims: bool, dtype: np.dtype[Any]
) -> tuple[Jacobian, ...] | None:
    """Return the Jacobian that reduces a shape along axes, or None if they are all axes."""
    ndim = len(shape)
    axes = {a % ndim for a in (axis if isinstance(axis, tuple) else (axis,))}
    if len(axes) == ndim:
        return None
    kept = tuple(1 if a in axes else n for a, n in enumerate(shape))
    moves: list[Jacobian] = [] if kept == shape else [SumTo._between(shape, kept, dtype)]
    if not keepdims and axes:
        result = tuple(n for a, n in enumerate(shape) if a not in axes)
        moves.insert(0, Reshape._between(kept, result, dtype))
    return tuple(moves)


def of_product(A: Array, B: Array, k: int) -> Jacobian:
    """Return the Jacobian of the product of two matrices with respect to the k-th."""
    m, n = A.shape[0], B.shape[1]
    left, right = (np.array(A), n) if k else (m, np.array(B.T))
    return Kronecker._of(left, right, ((), ()), (A, B)[k].shape, (m, n), A.dtype)


def of_vector(gradient: Array, shape: Shape) -> Jacobian:
    """Return the Jacobian of one number with respect to a vector."""
    row = gradient.reshape(1, -1)
    return Kronecker._of(1, row, ((), ()), shape, (), row.dtype)


def of_matrix(u: Array, v: Array) -> Jacobian:
    """Return the Jacobian of u^T X v with respect to X."""
    left, right = np.array(u.reshape(1, -1)), np.array(v.reshape(1, -1))
    return Kronecker._of(left, right, ((), ()), (u.size, v.size), (), u.dtype)


def of_layer(operands: Sequence[Array], slopes: Any, shape: Shape, k: int) -> Jacobian:
    """Return the Jacobian of a layer for its k-th operand of X, W and b.

    X has one axis or more, the result has `shape`; `slopes` are the activation's, or None.
    """
    X, W, b = operands
    dtype, none, rows = X.dtype, ((), ()), as_matrix(X)
    J: Jacobian
    if k == 0:
        J = Kronecker._of(len(rows), np.array(W.T), none, X.shape, shape, dtype)
    elif k == 1:
        J = Kronecker._of(np.array(rows), W.shape[1], none, W.shape, shape, dtype)
    else:
        J = (Identity if b.shape == shape else Broadcast)._between(b.shape, shape, dtype)
    if slopes is None:
        return J
    diagonal = Diagonal._of(slopes)
    return diagonal if type(J) is Identity else Product._of(diagonal, J)

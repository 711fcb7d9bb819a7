"""Products of matrices and layers and forms made of them: values, cotangents and tangents.

Operands are plain arrays of one dtype whose shapes fit. They have the axes of their signature: an
optional axis that is missing has length 1, and the batch is one axis if only one operand can have
a batch.

A value's cotangent may have the axes of a stack in front. ``vjp`` returns a function for each
operand, which computes its cotangent with these axes in front; only those that are wanted are
called. A tangent that is None is zero, and at least one is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.contraction import summed_product

if TYPE_CHECKING:
    from pullback.tables.products import ProductRow

Array: TypeAlias = npt.NDArray[Any]
Pulls: TypeAlias = tuple[Callable[[], Array], ...]


def total(terms: Iterable[Array]) -> Array:
    """Return the sum of one array or more."""
    first, *more = terms
    return sum(more, start=first)


def dots(left: Array, right: Array) -> Array:
    """Return the scalar products of vectors (..., n), whose batches broadcast."""
    return (left[..., np.newaxis, :] @ right[..., :, np.newaxis])[..., 0, 0]


# --- matmul: A (..., m, k), B (..., k, n) ---------------------------------------------------------


def matmul(A: Array, B: Array) -> Array:
    """Return A B."""
    product: Array = A @ B
    return product


def matmul_vjp(G: Array, A: Array, B: Array) -> Pulls:
    """Return G B^T and A^T G, each summed to the batch of its operand."""
    ndim = max(A.ndim, B.ndim)
    stack = G.shape[: G.ndim - ndim]

    def summed(left: Array, right: Array, operand: Array) -> Array:
        lacking = (1,) * (ndim - operand.ndim)
        shape = (*stack, *operand.shape)
        return summed_product(left, right, (*stack, *lacking, *operand.shape)).reshape(shape)

    return lambda: summed(G, B.mT, A), lambda: summed(A.mT, G, B)


def matmul_jvp(A: Array, B: Array, tA: Array | None, tB: Array | None) -> Array:
    """Return tA B + A tB."""
    pairs = ((tA, B), (A, tB))
    return total(left @ right for left, right in pairs if left is not None and right is not None)


# --- linear: X (N, k), W (k, n), b (n,) or None, f an elementwise primitive or None ---------------


def affine(X: Array, W: Array, b: Array | None) -> Array:
    """Return X W + b."""
    Z: Array = X @ W
    return Z if b is None else Z + b


def linear(X: Array, W: Array, b: Array | None, f: Any) -> Array:
    """Return f(X W + b)."""
    Z = affine(X, W, b)
    value: Array = Z if f is None else f(Z)
    return value


def linear_vjp(G: Array, X: Array, W: Array, b: Array | None, f: Any) -> Pulls:
    """Return H W^T, X^T H and the sum of H's rows, where H = f'(X W + b) * G."""
    H = G if f is None else f.vjp(affine(X, W, b), G)
    return (
        lambda: H @ W.T,
        lambda: X.T @ H,
        lambda: np.sum(H, axis=-2, dtype=np.float64).astype(H.dtype),
    )


def linear_jvp(
    X: Array,
    W: Array,
    b: Array | None,
    tX: Array | None,
    tW: Array | None,
    tb: Array | None,
    f: Any,
) -> Array:
    """Return f'(X W + b) * (tX W + X tW + tb)."""
    if tX is None and tW is None:
        tZ = np.zeros((len(X), W.shape[1]), X.dtype)
    else:
        tZ = matmul_jvp(X, W, tX, tW)
    if tb is not None:
        tZ += tb
    tangent: Array = tZ if f is None else f.jvp(affine(X, W, b), tZ)
    return tangent


# --- quadratic forms: x (N, n), A (n, n) ----------------------------------------------------------


def quadratic_form(x: Array, A: Array) -> Array:
    """Return x^T A x."""
    return dots(x @ A.T, x)


def quadratic_form_vjp(g: Array, x: Array, A: Array) -> Pulls:
    """Return g (A + A^T) x, and the sum of g x x^T."""
    g = g[..., np.newaxis]
    return lambda: g * (x @ A.T + x @ A), lambda: (g * x).mT @ x


def quadratic_form_jvp(x: Array, A: Array, tx: Array | None, tA: Array | None) -> Array:
    """Return x^T tA x + tx^T (A + A^T) x."""
    pairs = (
        (None if tA is None else x @ tA.T, x),
        (None if tx is None else x @ A.T + x @ A, tx),
    )
    return total(
        dots(left, right) for left, right in pairs if left is not None and right is not None
    )


# --- bilinear forms: u (..., m), X (m, n), v (..., n) ---------------------------------------------


def as_rows(vectors: Array) -> Array:
    """Return vectors (..., n) as a matrix of rows."""
    return vectors.reshape(math.prod(vectors.shape[:-1]), vectors.shape[-1])


def times(rows: Array, M: Array) -> Array:
    """Return rows (..., m) times M (m, n), as one product of matrices."""
    return (as_rows(rows) @ M).reshape(*rows.shape[:-1], M.shape[1])


def bilinear_form(u: Array, X: Array, v: Array) -> Array:
    """Return u^T X v."""
    if u.size * len(X.T) < v.size * len(X):  # X meets the fewer vectors
        return dots(times(u, X), v)
    return dots(times(v, X.T), u)


def bilinear_form_vjp(g: Array, u: Array, X: Array, v: Array) -> Pulls:
    """Return g X v, the sum of g u v^T, and g X^T u, summed to the batches of their operands."""
    ndim = max(u.ndim, v.ndim) - 1
    stack, batch = g.shape[: g.ndim - ndim], g.shape[g.ndim - ndim :]

    def weighted(vectors: Array, operand: Array) -> Array:
        """Return g times vectors, summed to the batch of the operand on the other side."""
        own, n = operand.shape[:-1], vectors.shape[-1]
        if own == batch:
            plain: Array = g[..., np.newaxis] * vectors
            return plain
        shape = (*stack, *(1,) * (ndim - len(own)), *own, 1, n)
        rows = vectors[..., np.newaxis, :]
        total = summed_product(g[..., np.newaxis, np.newaxis], rows, shape)
        return total.reshape(*stack, *own, n)

    gv = cache(lambda: weighted(v, u))
    return (
        lambda: times(gv(), X.T),
        lambda: as_rows(u).T @ gv().reshape(*stack, math.prod(u.shape[:-1]), len(X.T)),
        lambda: times(weighted(u, v), X),
    )


def bilinear_form_jvp(
    u: Array, X: Array, v: Array, tu: Array | None, tX: Array | None, tv: Array | None
) -> Array:
    """Return tu^T X v + u^T tX v + u^T X tv."""
    terms = ((tu, X, v), (u, tX, v), (u, X, tv))
    return total(bilinear_form(*term) for term in terms if all(x is not None for x in term))


# --- any of them ----------------------------------------------------------------------------------


def product_results(
    row: ProductRow,
    method: str,
    arrays: tuple[Any, ...],
    activation: Any,
    wrt: tuple[int, ...],
    outs: tuple[Array | None, ...],
) -> tuple[Any, ...]:
    """Return a method's results: the value, the tangent, or cotangents of the operands in `wrt`.

    Parameters
    ----------
    row : ProductRow
        The product.
    method : {"value", "vjp", "jvp", "value_and_grad"}
        Which of them.
    arrays : tuple of ndarray or None
        The operands, then a cotangent, or tangents.
    activation : callable or None
        For a product that takes one.
    wrt : tuple of int
        Operands by position.
    outs : tuple of ndarray or None
        Arrays for the results.
    """
    operands, others = arrays[: len(row.operands)], arrays[len(row.operands) :]
    options = (activation,) if row.options else ()
    results: list[Any] = []
    if method == "jvp":
        results.append(row.jvp(*operands, *others, *options))
    elif method != "vjp":
        results.append(row.value(*operands, *options))
    if method in ("vjp", "value_and_grad"):
        g = others[0] if others else np.ones_like(results[0])
        pulls = row.vjp(g, *operands, *options)
        results += [None if operands[i] is None else pulls[i]() for i in wrt]
    for result, out in zip(results, outs, strict=True):
        if out is not None:
            out[...] = result
    return tuple(results)

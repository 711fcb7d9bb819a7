"""What products and their derivatives are made of: products of matrices, on any engine.

The arrays are plain, aligned and of one dtype, and fit each other. A cotangent has the result's
shape, the broadcast one of the batches; `wrt` are distinct operands by position, and `out` has an
entry for each result: where that is given, the result goes there. It is aligned, of any strides,
and overlaps no input.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.contraction import Product, summed_product
from pullback.protocol import as_matrix

__all__ = ["BilinearForm", "Kernels", "Linear", "Matmul", "QuadraticForm"]

Array: TypeAlias = npt.NDArray[Any]


class Kernels:
    """What a product primitive runs on.

    Parameters
    ----------
    product : callable
        What multiplies: see `pullback.contraction.Product`.
    """

    def __init__(self, product: Product) -> None:
        self._product = product


class Matmul(Kernels):
    """Products of matrices (..., m, k) and (..., k, n), whose batches broadcast."""

    def value(self, A: Array, B: Array, out: Array | None) -> Array:
        """Return A @ B."""
        return self._product(A, B, out)

    def cotangents(
        self,
        A: Array,
        B: Array,
        G: Array,
        wrt: tuple[int, ...],
        out: tuple[Array | None, ...],
    ) -> tuple[Array, ...]:
        """Return the cotangents of the operands in `wrt`, in their order."""
        factors = ((G, B.mT, A.shape), (A.mT, G, B.shape))
        return tuple(
            summed_product(self._product, *factors[i], target)
            for i, target in zip(wrt, out, strict=True)
        )

    def tangent(
        self, A: Array, B: Array, tA: Array | None, tB: Array | None, out: Array | None
    ) -> Array:
        """Return tA @ B + A @ tB, in `out` where that is given; not both tangents are None."""
        if tB is None:
            assert tA is not None
            return self._product(tA, B, out)
        if tA is None:
            return self._product(A, tB, out)
        tangent = self._product(tA, B, out)
        tangent += self._product(A, tB, None)
        return tangent


class Linear(Kernels):
    """Linear layers of samples (N, k), weights (k, n) and a bias (n,) or None."""

    def value(self, X: Array, W: Array, b: Array | None, activation: Any, out: Any) -> Array:
        """Return activation(X @ W + b), in `out` where that is given, with X (N, k)."""
        Z = self._product(X, W, out)
        if b is not None:
            Z += b
        if activation is not None:
            activation(Z, out=Z)
        return Z

    def cotangents(
        self,
        X: Array,
        W: Array,
        b: Array | None,
        G: Array,
        activation: Any,
        wrt: tuple[int, ...],
        out: tuple[Array | None, ...],
    ) -> tuple[Array | None, ...]:
        """Return the cotangents of the arguments in `wrt`, in their order."""
        if activation is not None:
            Z = self.value(X, W, b, None, None)
            G = activation.vjp(Z, G, out=Z)

        def cotangent(i: int, target: Array | None) -> Array | None:
            if i == 0:
                return self._product(G, W.mT, target)
            if i == 1:
                return self._product(X.mT, G, target)
            if b is None:
                return None
            db = np.sum(G, axis=0, dtype=np.float64)
            if target is None:
                return db.astype(G.dtype)
            np.copyto(target, db, casting="same_kind")
            return target

        return tuple(cotangent(i, target) for i, target in zip(wrt, out, strict=True))

    def tangent(
        self,
        X: Array,
        W: Array,
        b: Array | None,
        tX: Array | None,
        tW: Array | None,
        tb: Array | None,
        activation: Any,
        out: Array | None,
    ) -> Array:
        """Return the tangent of the result, in `out` where that is given, with X and tX (N, k)."""
        if tX is not None:
            tangent = self._product(tX, W, out)
            if tW is not None:
                tangent += self._product(X, tW, None)
        elif tW is not None:
            tangent = self._product(X, tW, out)
        else:
            tangent = np.empty((len(X), W.shape[1]), X.dtype) if out is None else out
            tangent[...] = 0
        if tb is not None:
            tangent += tb
        if activation is not None:
            activation.jvp(self.value(X, W, b, None, None), tangent, out=tangent)
        return tangent


class QuadraticForm(Kernels):
    """Quadratic forms of vectors (N, n) and a matrix (n, n)."""

    def value(self, x: Array, A: Array, out: Array | None) -> Array:
        """Return x_i^T A x_i, in `out` (N,) where that is given, with x (N, n)."""
        return _dots(self._product, self._product(x, A.mT, None), x, out)

    def cotangents(
        self, x: Array, A: Array, g: Array, wrt: tuple[int, ...], out: tuple[Array | None, ...]
    ) -> tuple[Array, ...]:
        """Return the cotangents of the operands in `wrt`, in their order."""

        def cotangent(i: int, target: Array | None) -> Array:
            if i == 1:
                return self._product((g[:, np.newaxis] * x).mT, x, target)
            gx = self._product(x, A.mT, target)
            gx += self._product(x, A, None)
            gx *= g[:, np.newaxis]
            return gx

        return tuple(cotangent(i, target) for i, target in zip(wrt, out, strict=True))

    def tangent(
        self, x: Array, A: Array, tx: Array | None, tA: Array | None, out: Array | None
    ) -> Array:
        """Return the tangents of x_i^T A x_i, in `out` (N,) where that is given."""
        if tA is None:
            moved = self._product(x, A.mT, None)
            moved += self._product(x, A, None)
            return _dots(self._product, moved, tx, out)
        tangent = _dots(self._product, self._product(x, tA.mT, None), x, out)
        if tx is not None:
            tangent += self.tangent(x, A, tx, None, None)
        return tangent

    def value_and_grad(
        self, x: Array, A: Array, wrt: tuple[int, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return the form of one vector x (n,) and its gradients by the operands in `wrt`."""
        row = x[np.newaxis]
        Ax = self._product(row, A.mT, None)
        value = _dots(self._product, Ax, row, None)
        gradients = tuple(
            self._product(row.mT, row, None)
            if i == 1
            else (Ax + self._product(row, A, None)).reshape(x.shape)
            for i in wrt
        )
        return value, gradients


class BilinearForm(Kernels):
    """Bilinear forms of vectors (..., m) and (..., n) and a matrix (m, n)."""

    def value(self, u: Array, X: Array, v: Array, out: Array | None) -> Array:
        """Return u^T X v, in `out` of the batches' broadcast shape where that is given."""
        if math.prod(u.shape[:-1]) < math.prod(v.shape[:-1]):  # X meets the fewer vectors
            return _dots(self._product, self.rows(u, X), v, out)
        return _dots(self._product, self.rows(v, X.mT), u, out)

    def cotangents(
        self,
        u: Array,
        X: Array,
        v: Array,
        g: Array,
        wrt: tuple[int, ...],
        out: tuple[Array | None, ...],
    ) -> tuple[Array, ...]:
        """Return the cotangents of the operands in `wrt`, in their order."""
        # With the cotangent on v, summed to u's batch, gu = X (g v) and gX = u (g v)^T.
        gv = self._weighted(g, v, u.shape[:-1]) if {0, 1} & set(wrt) else None

        def cotangent(i: int, target: Array | None) -> Array:
            if i == 2:
                return self.rows(self._weighted(g, u, v.shape[:-1]), X, target)
            assert gv is not None
            if i == 0:
                return self.rows(gv, X.mT, target)
            return self._product(as_matrix(u).mT, as_matrix(gv), target)

        return tuple(cotangent(i, target) for i, target in zip(wrt, out, strict=True))

    def tangent(
        self,
        u: Array,
        X: Array,
        v: Array,
        tu: Array | None,
        tX: Array | None,
        tv: Array | None,
        out: Array | None,
    ) -> Array:
        """Return the tangent of u^T X v, in `out` where that is given."""
        terms = [
            (a, M, c)
            for a, M, c in ((tu, X, v), (u, tX, v), (u, X, tv))
            if a is not None and M is not None and c is not None
        ]
        tangent = BilinearForm.value(self, *terms[0], out)
        for term in terms[1:]:
            tangent += BilinearForm.value(self, *term, None)
        return tangent

    def value_and_grad(
        self, u: Array, X: Array, v: Array, wrt: tuple[int, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return the form of two vectors (m,) and (n,) and its gradients by those in `wrt`."""
        Xv = self.rows(v, X.mT)
        value = _dots(self._product, Xv, u, None)

        def gradient(i: int) -> Array:
            if i == 0:
                return Xv
            if i == 1:
                return self._product(u[:, np.newaxis], v[np.newaxis], None)
            return self.rows(u, X)

        return value, tuple(map(gradient, wrt))

    def rows(self, rows: Array, M: Array, out: Array | None = None) -> Array:
        """Return rows @ M for rows (..., p) and M (p, q), as one product of matrices."""
        if out is not None and out.ndim != 2:
            out[...] = self.rows(rows, M)
            return out
        product = self._product(as_matrix(rows), M, out)
        return product.reshape(*rows.shape[:-1], M.shape[1])

    def _weighted(self, g: Array, vectors: Array, batch: tuple[int, ...]) -> Array:
        """Return g * vectors, summed to the shape (*batch, n)."""
        if batch == g.shape:
            weighted: Array = g[..., np.newaxis] * vectors
            return weighted
        shape = (*batch, 1, vectors.shape[-1])
        weights, rows = g[..., np.newaxis, np.newaxis], vectors[..., np.newaxis, :]
        return summed_product(self._product, weights, rows, shape).reshape(*batch, shape[-1])


def _dots(product: Any, left: Array, right: Any, out: Array | None) -> Array:
    """Return the scalar products of rows (..., n), whose batches broadcast."""
    target = None if out is None else out[..., np.newaxis, np.newaxis]
    dots = product(left[..., np.newaxis, :], right[..., :, np.newaxis], target)
    return dots[..., 0, 0] if out is None else out

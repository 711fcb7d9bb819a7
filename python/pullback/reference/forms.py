"""Quadratic and bilinear forms and their derivatives."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.contraction import numpy_product, summed_product
from pullback.jacobians import Kronecker
from pullback.reference.arguments import (
    Outputs,
    Primitive,
    aligned,
    as_matrix,
    check_tangents,
    check_wrt,
    tangents_of,
)
from pullback.shapes import MOST_AXES, broadcast_shapes, with_room

__all__ = ["BilinearForm", "QuadraticForm", "bilinear_form", "quadratic_form"]

Array: TypeAlias = npt.NDArray[Any]


class QuadraticForm(Primitive):
    """The quadratic form x^T A x; see `__call__` and the methods."""

    _name = "quadratic_form"

    def __call__(self, x: npt.ArrayLike, A: npt.ArrayLike, /, out: Array | None = None) -> Any:
        """Return the quadratic form x^T A x.

        Parameters
        ----------
        x : array_like, shape (..., n)
            Vectors; axes in front of the last are their batch.
        A : array_like, shape (n, n)
            Need not be symmetric.
        out : ndarray, optional
            Overwritten with the result, of exactly its shape and dtype; may overlap the arguments.

        Returns
        -------
        ndarray or scalar, shape (...)
            `out` where that is given.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        op = "quadratic_form"
        x, A = aligned(op, x, A, names=("x", "A"))
        shape = _check_quadratic(op, x, A)
        outputs = Outputs(op, out, [shape], x.dtype, (x, A), single=True)
        x2 = as_matrix(x)
        (target,) = outputs.targets((len(x2),))
        with np.errstate(all="ignore"):
            (result,) = outputs.deliver([self._value(x2, A, target)])
        return result[()] if out is None else result

    def vjp(
        self,
        x: npt.ArrayLike,
        A: npt.ArrayLike,
        g: npt.ArrayLike,
        /,
        *,
        wrt: int | tuple[int, ...] = (0, 1),
        out: Any = None,
    ) -> Any:
        """Return the cotangents (gx, gA).

        Parameters
        ----------
        x : array_like, shape (..., n)
            Vectors.
        A : array_like, shape (n, n)
            Matrix.
        g : array_like, shape (...)
            Cotangent of the form.
        wrt : int or tuple of int, default (0, 1)
            The operands whose cotangents to compute; an int for one array, not a tuple.
        out : ndarray, or tuple of ndarray or None, optional
            Overwritten with the results, of exactly their shapes and dtype: one array where `wrt`
            is an int, else one entry for each. They may overlap the arguments, not each other.

        Returns
        -------
        gx, gA : ndarray, shapes of `x` and `A`
            g (A + A^T) x, and the sum of g x x^T over the batch.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        op = "quadratic_form.vjp"
        asked = check_wrt(op, wrt, 2)
        x, A, g = aligned(op, x, A, g, names=("x", "A", "g"))
        shape = _check_quadratic(op, x, A)
        if g.shape != shape:
            raise ValueError(
                f"{op}: g has shape {g.shape}, the form of x {x.shape} and A {A.shape} has {shape}"
            )
        shapes = [(x.shape, A.shape)[i] for i in asked.operands]
        outputs = Outputs(op, out, shapes, x.dtype, (x, A, g), single=asked.single)
        x2 = as_matrix(x)
        targets = outputs.targets(*((x2.shape, A.shape)[i] for i in asked.operands))
        with np.errstate(all="ignore"):
            cotangents = self._cotangents(x2, A, g.reshape(len(x2)), asked.operands, targets)
            return asked.result(outputs.deliver(cotangents))

    def jvp(
        self,
        x: npt.ArrayLike,
        A: npt.ArrayLike,
        tx: npt.ArrayLike | None,
        tA: npt.ArrayLike | None,
        /,
        out: Array | None = None,
    ) -> Any:
        """Return the tangent of the form, tx^T (A + A^T) x + x^T tA x.

        Parameters
        ----------
        x : array_like, shape (..., n)
            Vectors.
        A : array_like, shape (n, n)
            Matrix.
        tx, tA : array_like, shapes of `x` and `A`, or None
            Tangents; None is zero, and saves its products.
        out : ndarray, optional
            Overwritten with the result, of exactly its shape and dtype; may overlap the arguments.

        Returns
        -------
        ndarray or scalar, shape (...)

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit, or both tangents are None.
        """
        op, names = "quadratic_form.jvp", ("x", "A")
        primals, tangents = tangents_of(op, (x, A), (tx, tA), names)
        shape = _check_quadratic(op, *primals)
        check_tangents(op, primals, tangents, names)
        inputs = (*primals, *tangents)
        outputs = Outputs(op, out, [shape], primals[0].dtype, inputs, single=True)
        x2 = as_matrix(primals[0])
        (target,) = outputs.targets((len(x2),))
        tx2 = None if tangents[0] is None else as_matrix(tangents[0])
        with np.errstate(all="ignore"):
            tangent = self._tangent(x2, primals[1], tx2, tangents[1], target)
            (result,) = outputs.deliver([tangent])
        return result[()] if out is None else result

    def value_and_grad(
        self, x: npt.ArrayLike, A: npt.ArrayLike, /, *, wrt: int | tuple[int, ...] = 0
    ) -> tuple[Any, Any]:
        """Return the form and its gradient, for which `A` is read once.

        Parameters
        ----------
        x : array_like, shape (n,)
            One vector.
        A : array_like, shape (n, n)
            Matrix.
        wrt : int or tuple of int, default 0
            The operands by which to take the gradient; an int for one array, not a tuple.

        Returns
        -------
        value : scalar
        gradient : ndarray, or tuple of ndarray
            (A + A^T) x for `x`, x x^T for `A`.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        op = "quadratic_form.value_and_grad"
        asked = check_wrt(op, wrt, 2)
        x, A = aligned(op, x, A, names=("x", "A"))
        _check_quadratic(op, x, A)
        _check_vectors(op, x=x, A=A)
        with np.errstate(all="ignore"):
            value, gradients = self._value_and_grad(x, A, asked.operands)
        return value.reshape(())[()], asked.result(gradients)

    def jacobian(self, x: npt.ArrayLike, A: npt.ArrayLike, /) -> tuple[Kronecker, Kronecker]:
        """Return the Jacobians with respect to `x` and to `A`: one row for each vector.

        Parameters
        ----------
        x : array_like, shape (..., n)
            Vectors.
        A : array_like, shape (n, n)
            Matrix.

        Returns
        -------
        tuple of two Kronecker
            The rows ((A + A^T) x)^T, and x^T (x) x^T.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        op = "quadratic_form.jacobian"
        x, A = aligned(op, x, A, names=("x", "A"))
        batch = _check_quadratic(op, x, A)
        rows = as_matrix(x)
        with np.errstate(all="ignore"):
            (gx,) = self._cotangents(rows, A, np.ones(len(rows), x.dtype), (0,), (None,))
        (few,) = with_room(2, batch)
        row_shape = (*few, 1, x.shape[-1])
        gx, row = gx.reshape(row_shape), x.reshape(row_shape)
        by_x = Kronecker(1, gx, input_shape=x.shape, output_shape=batch, copy=False)
        return by_x, Kronecker(row, row, input_batch=(), output_batch=few, output_shape=batch)

    # --- what kernels may replace ---

    def _value(self, x: Array, A: Array, out: Array | None) -> Array:
        """Return x_i^T A x_i, in `out` (N,) where that is given, with x (N, n)."""
        return _dots(self._product, self._product(x, A.mT, None), x, out)

    def _cotangents(
        self, x: Array, A: Array, g: Array, wrt: tuple[int, ...], out: tuple[Array | None, ...]
    ) -> tuple[Array, ...]:
        """Return the cotangents of the operands in `wrt`, in their order.

        Parameters
        ----------
        x : ndarray, shape (N, n)
        A : ndarray, shape (n, n)
        g : ndarray, shape (N,)
        wrt : tuple of distinct int, 0 or 1
        out : tuple of ndarray or None
            For each of `wrt`, where to write: in the operand's shape, of any strides, aligned,
            overlapping no input. What is not None has to be used.

        Returns
        -------
        tuple of ndarray, shapes (N, n) and (n, n)
        """

        def cotangent(i: int, target: Array | None) -> Array:
            if i == 1:
                return self._product((g[:, np.newaxis] * x).mT, x, target)
            gx = self._product(x, A.mT, target)
            gx += self._product(x, A, None)
            gx *= g[:, np.newaxis]
            return gx

        return tuple(cotangent(i, target) for i, target in zip(wrt, out, strict=True))

    def _tangent(
        self, x: Array, A: Array, tx: Array | None, tA: Array | None, out: Array | None
    ) -> Array:
        """Return the tangents of x_i^T A x_i, in `out` (N,) where that is given."""
        if tA is None:
            moved = self._product(x, A.mT, None)
            moved += self._product(x, A, None)
            return _dots(self._product, moved, tx, out)
        tangent = _dots(self._product, self._product(x, tA.mT, None), x, out)
        if tx is not None:
            tangent += self._tangent(x, A, tx, None, None)
        return tangent

    def _value_and_grad(
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


class BilinearForm(Primitive):
    """The bilinear form u^T X v; see `__call__` and the methods."""

    _name = "bilinear_form"

    def __call__(
        self,
        u: npt.ArrayLike,
        X: npt.ArrayLike,
        v: npt.ArrayLike,
        /,
        out: Array | None = None,
    ) -> Any:
        """Return the bilinear form u^T X v.

        Parameters
        ----------
        u : array_like, shape (..., m)
        X : array_like, shape (m, n)
        v : array_like, shape (..., n)
            Axes of `u` and `v` in front of the last are batches, which broadcast.
        out : ndarray, optional
            Overwritten with the result, of exactly its shape and dtype; may overlap the arguments.

        Returns
        -------
        ndarray or scalar, the broadcast shape of the batches
            `out` where that is given.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        op = "bilinear_form"
        u, X, v = aligned(op, u, X, v, names=("u", "X", "v"))
        shape = _check_bilinear(op, u, X, v)
        outputs = Outputs(op, out, [shape], u.dtype, (u, X, v), single=True)
        u, v, shape = _with_room(u, v, shape)
        (target,) = outputs.targets(shape)
        with np.errstate(all="ignore"):
            (result,) = outputs.deliver([self._value(u, X, v, target)])
        return result[()] if out is None else result

    def vjp(
        self,
        u: npt.ArrayLike,
        X: npt.ArrayLike,
        v: npt.ArrayLike,
        g: npt.ArrayLike,
        /,
        *,
        wrt: int | tuple[int, ...] = (0, 1, 2),
        out: Any = None,
    ) -> Any:
        """Return the cotangents (gu, gX, gv).

        Parameters
        ----------
        u : array_like, shape (..., m)
        X : array_like, shape (m, n)
        v : array_like, shape (..., n)
        g : array_like, the broadcast shape of the batches
            Cotangent of the form.
        wrt : int or tuple of int, default (0, 1, 2)
            The operands whose cotangents to compute; an int for one array, not a tuple.
        out : ndarray, or tuple of ndarray or None, optional
            Overwritten with the results, of exactly their shapes and dtype: one array where `wrt`
            is an int, else one entry for each. They may overlap the arguments, not each other.

        Returns
        -------
        gu, gX, gv : ndarray, shapes of `u`, `X` and `v`
            g X v, g u v^T and g X^T u, summed where an operand was repeated.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        op = "bilinear_form.vjp"
        asked = check_wrt(op, wrt, 3)
        u, X, v, g = aligned(op, u, X, v, g, names=("u", "X", "v", "g"))
        shape = _check_bilinear(op, u, X, v)
        if g.shape != shape:
            raise ValueError(
                f"{op}: g has shape {g.shape}, "
                f"the form of u {u.shape}, X {X.shape} and v {v.shape} has {shape}"
            )
        shapes = [(u.shape, X.shape, v.shape)[i] for i in asked.operands]
        outputs = Outputs(op, out, shapes, u.dtype, (u, X, v, g), single=asked.single)
        u, v, shape = _with_room(u, v, shape)
        targets = outputs.targets(*((u.shape, X.shape, v.shape)[i] for i in asked.operands))
        with np.errstate(all="ignore"):
            g = g.reshape(shape)
            cotangents = self._cotangents(u, X, v, g, asked.operands, targets)
            return asked.result(outputs.deliver(cotangents))

    def jvp(
        self,
        u: npt.ArrayLike,
        X: npt.ArrayLike,
        v: npt.ArrayLike,
        tu: npt.ArrayLike | None,
        tX: npt.ArrayLike | None,
        tv: npt.ArrayLike | None,
        /,
        out: Array | None = None,
    ) -> Any:
        """Return the tangent of the form, tu^T X v + u^T tX v + u^T X tv.

        Parameters
        ----------
        u : array_like, shape (..., m)
        X : array_like, shape (m, n)
        v : array_like, shape (..., n)
        tu, tX, tv : array_like, shapes of `u`, `X` and `v`, or None
            Tangents; None is zero, and saves its products.
        out : ndarray, optional
            Overwritten with the result, of exactly its shape and dtype; may overlap the arguments.

        Returns
        -------
        ndarray or scalar, the broadcast shape of the batches

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit, or all tangents are None.
        """
        op, names = "bilinear_form.jvp", ("u", "X", "v")
        primals, tangents = tangents_of(op, (u, X, v), (tu, tX, tv), names)
        shape = _check_bilinear(op, *primals)
        check_tangents(op, primals, tangents, names)
        inputs = (*primals, *tangents)
        outputs = Outputs(op, out, [shape], primals[0].dtype, inputs, single=True)
        u, v, shape = _with_room(primals[0], primals[2], shape)
        (target,) = outputs.targets(shape)
        operands = (u, primals[1], v)
        moved = (
            None if t is None else t.reshape(operand.shape)
            for t, operand in zip(tangents, operands, strict=True)
        )
        with np.errstate(all="ignore"):
            tangent = self._tangent(*operands, *moved, target)  # type: ignore[call-arg]
            (result,) = outputs.deliver([tangent])
        return result[()] if out is None else result

    def value_and_grad(
        self,
        u: npt.ArrayLike,
        X: npt.ArrayLike,
        v: npt.ArrayLike,
        /,
        *,
        wrt: int | tuple[int, ...] = (0, 1, 2),
    ) -> tuple[Any, Any]:
        """Return the form and its gradients, for which `X` is read once.

        Parameters
        ----------
        u : array_like, shape (m,)
        X : array_like, shape (m, n)
        v : array_like, shape (n,)
        wrt : int or tuple of int, default (0, 1, 2)
            The operands by which to take the gradient; an int for one array, not a tuple.

        Returns
        -------
        value : scalar
        gradients : ndarray, or tuple of ndarray
            X v for `u`, u v^T for `X`, X^T u for `v`.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        op = "bilinear_form.value_and_grad"
        asked = check_wrt(op, wrt, 3)
        u, X, v = aligned(op, u, X, v, names=("u", "X", "v"))
        _check_bilinear(op, u, X, v)
        _check_vectors(op, u=u, X=X, v=v)
        with np.errstate(all="ignore"):
            value, gradients = self._value_and_grad(u, X, v, asked.operands)
        return value.reshape(())[()], asked.result(gradients)

    def jacobian(
        self, u: npt.ArrayLike, X: npt.ArrayLike, v: npt.ArrayLike, /
    ) -> tuple[Kronecker, Kronecker, Kronecker]:
        """Return the Jacobians with respect to `u`, `X` and `v`: one row for each pair of vectors.

        Parameters
        ----------
        u : array_like, shape (..., m)
        X : array_like, shape (m, n)
        v : array_like, shape (..., n)

        Returns
        -------
        tuple of three Kronecker
            The rows (X v)^T, u^T (x) v^T and (X^T u)^T.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        op = "bilinear_form.jacobian"
        u, X, v = aligned(op, u, X, v, names=("u", "X", "v"))
        shape, shapes = _check_bilinear(op, u, X, v), (u.shape, v.shape)
        u, v, batch = _with_room(u, v, shape)
        with np.errstate(all="ignore"):
            Xv, uX = self._rows(v, X.mT), self._rows(u, X)

        def by_vector(operand: Array, gradient: Array, input_shape: tuple[int, ...]) -> Kronecker:
            return Kronecker(
                1,
                gradient[..., np.newaxis, :],
                input_batch=operand.shape[:-1],
                output_batch=batch,
                input_shape=input_shape,
                output_shape=shape,
                copy=False,
            )

        rows = u[..., np.newaxis, :], v[..., np.newaxis, :]
        by_X = Kronecker(*rows, input_batch=(), output_batch=batch, output_shape=shape)
        return by_vector(u, Xv, shapes[0]), by_X, by_vector(v, uX, shapes[1])

    # --- what kernels may replace ---

    def _value(self, u: Array, X: Array, v: Array, out: Array | None) -> Array:
        """Return u^T X v, in `out` of the batches' broadcast shape where that is given."""
        if math.prod(u.shape[:-1]) < math.prod(v.shape[:-1]):  # X meets the fewer vectors
            return _dots(self._product, self._rows(u, X), v, out)
        return _dots(self._product, self._rows(v, X.mT), u, out)

    def _cotangents(
        self,
        u: Array,
        X: Array,
        v: Array,
        g: Array,
        wrt: tuple[int, ...],
        out: tuple[Array | None, ...],
    ) -> tuple[Array, ...]:
        """Return the cotangents of the operands in `wrt`, in their order.

        Parameters
        ----------
        u : ndarray, shape (..., m)
        X : ndarray, shape (m, n)
        v : ndarray, shape (..., n)
        g : ndarray, shape (...), what the batches of u and v broadcast to
        wrt : tuple of distinct int, 0 to 2
        out : tuple of ndarray or None
            For each of `wrt`, where to write: in the operand's shape, of any strides, aligned,
            overlapping no input. What is not None has to be used.

        Returns
        -------
        tuple of ndarray, in the operands' shapes
        """
        # With the cotangent on v, summed to u's batch, gu = X (g v) and gX = u (g v)^T.
        gv = self._weighted(g, v, u.shape[:-1]) if {0, 1} & set(wrt) else None

        def cotangent(i: int, target: Array | None) -> Array:
            if i == 2:
                return self._rows(self._weighted(g, u, v.shape[:-1]), X, target)
            assert gv is not None
            if i == 0:
                return self._rows(gv, X.mT, target)
            return self._product(as_matrix(u).mT, as_matrix(gv), target)

        return tuple(cotangent(i, target) for i, target in zip(wrt, out, strict=True))

    def _tangent(
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
        tangent = BilinearForm._value(self, *terms[0], out)
        for term in terms[1:]:
            tangent += BilinearForm._value(self, *term, None)
        return tangent

    def _value_and_grad(
        self, u: Array, X: Array, v: Array, wrt: tuple[int, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return the form of two vectors (m,) and (n,) and its gradients by those in `wrt`."""
        Xv = self._rows(v, X.mT)
        value = _dots(self._product, Xv, u, None)

        def gradient(i: int) -> Array:
            if i == 0:
                return Xv
            if i == 1:
                return self._product(u[:, np.newaxis], v[np.newaxis], None)
            return self._rows(u, X)

        return value, tuple(map(gradient, wrt))

    def _rows(self, rows: Array, M: Array, out: Array | None = None) -> Array:
        """Return rows @ M for rows (..., p) and M (p, q), as one product of matrices."""
        if out is not None and out.ndim != 2:
            out[...] = self._rows(rows, M)
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


def _check_quadratic(op: str, x: Array, A: Array) -> tuple[int, ...]:
    """Return the form's shape, or raise a ValueError that names both shapes."""
    if x.ndim == 0 or A.shape != (x.shape[-1],) * 2:
        raise ValueError(
            f"{op}: x has shape {x.shape}, A has shape {A.shape}: they need (..., n) and (n, n)"
        )
    return x.shape[:-1]


def _check_bilinear(op: str, u: Array, X: Array, v: Array) -> tuple[int, ...]:
    """Return the form's shape, or raise a ValueError that names all shapes."""
    shapes = f"{op}: u has shape {u.shape}, X has shape {X.shape}, v has shape {v.shape}"
    if u.ndim == 0 or v.ndim == 0 or X.shape != (u.shape[-1], v.shape[-1]):
        raise ValueError(f"{shapes}: they need (..., m), (m, n) and (..., n)")
    try:
        return broadcast_shapes(u.shape[:-1], v.shape[:-1])
    except ValueError:
        raise ValueError(f"{shapes}: the batches do not broadcast") from None


def _with_room(u: Array, v: Array, shape: tuple[int, ...]) -> tuple[Array, Array, tuple[int, ...]]:
    """Return rows (..., m), (..., n) and the form's shape, with room for one more axis."""
    if max(u.ndim, v.ndim) < MOST_AXES:
        return u, v, shape
    few = with_room(2, u.shape[:-1], v.shape[:-1])
    rows = u.reshape(*few[0], u.shape[-1]), v.reshape(*few[1], v.shape[-1])
    return *rows, broadcast_shapes(*few)


def _check_vectors(op: str, **operands: Array) -> None:
    if any(operand.ndim > (2 if name.isupper() else 1) for name, operand in operands.items()):
        listed = ", ".join(f"{name} has shape {a.shape}" for name, a in operands.items())
        raise ValueError(f"{op}: {listed}: only vectors without a batch are supported")


quadratic_form = QuadraticForm(numpy_product, "pullback.reference")
bilinear_form = BilinearForm(numpy_product, "pullback.reference")

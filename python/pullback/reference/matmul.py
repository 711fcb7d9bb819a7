"""Matrix product and its derivatives, for every shape that `numpy.matmul` accepts."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.contraction import numpy_product, summed_product
from pullback.jacobians import Kronecker
from pullback.reference.arguments import (
    Outputs,
    Primitive,
    aligned,
    check_tangents,
    check_wrt,
    tangents_of,
)
from pullback.shapes import broadcast_shapes

__all__ = ["Matmul", "matmul"]

Array: TypeAlias = npt.NDArray[Any]


class Matmul(Primitive):
    """Matrix product; see `__call__`, `vjp`, `jvp` and `jacobian`.

    One-dimensional operands are a row on the left and a column on the right, and axes in front of
    the last two are batches, which broadcast.
    """

    _name = "matmul"

    def __call__(self, A: npt.ArrayLike, B: npt.ArrayLike, /, out: Array | None = None) -> Any:
        """Return the matrix product A @ B.

        Parameters
        ----------
        A : array_like, shape (k,) or (..., m, k)
        B : array_like, shape (k,) or (..., k, n)
        out : ndarray, optional
            Overwritten with the result, of exactly its shape and dtype; may overlap the operands.

        Returns
        -------
        ndarray, shape (..., m, n) less the axes that one-dimensional operands lack, or scalar
            `out` where that is given.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        A, B = aligned("matmul", A, B, names=("A", "B"))
        shape = _result_shape("matmul", A, B)
        outputs = Outputs("matmul", out, [shape], A.dtype, (A, B), single=True)
        rows, columns = _as_rows(A), _as_columns(B)
        (target,) = outputs.targets(_product_shape(rows, columns))
        with np.errstate(all="ignore"):
            (result,) = outputs.deliver([self._product(rows, columns, target)])
        return result[()] if out is None else result

    def vjp(
        self,
        A: npt.ArrayLike,
        B: npt.ArrayLike,
        G: npt.ArrayLike,
        /,
        *,
        wrt: int | tuple[int, ...] = (0, 1),
        out: Any = None,
    ) -> Any:
        """Return the cotangents (dA, dB) of the operands.

        Parameters
        ----------
        A : array_like, shape (k,) or (..., m, k)
        B : array_like, shape (k,) or (..., k, n)
        G : array_like, shape of ``A @ B``
            Cotangent of the product.
        wrt : int or tuple of int, default (0, 1)
            The operands whose cotangents to compute; an int for one array, not a tuple.
        out : ndarray, or tuple of ndarray or None, optional
            Overwritten with the results, of exactly their shapes and dtype: one array where `wrt`
            is an int, else one entry for each. They may overlap the arguments, not each other.

        Returns
        -------
        dA, dB : ndarray, shapes of `A` and `B`
            G @ B^T and A^T @ G; where an operand's batch was broadcast, summed over the
            repetitions by stacking them along the contracted axis.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.

        Notes
        -----
        From <G, dA B + A dB> = <G B^T, dA> + <A^T G, dB>.
        """
        op = "matmul.vjp"
        asked = check_wrt(op, wrt, 2)
        A, B, G = aligned(op, A, B, G, names=("A", "B", "G"))
        shape = _result_shape(op, A, B)
        if G.shape != shape:
            raise ValueError(
                f"{op}: G has shape {G.shape}, "
                f"the product of A {A.shape} and B {B.shape} has {shape}"
            )
        shapes = [(A.shape, B.shape)[i] for i in asked.operands]
        outputs = Outputs(op, out, shapes, A.dtype, (A, B, G), single=asked.single)
        rows, columns = _as_rows(A), _as_columns(B)
        targets = outputs.targets(*((rows.shape, columns.shape)[i] for i in asked.operands))
        G = G.reshape(_product_shape(rows, columns))
        with np.errstate(all="ignore"):
            cotangents = self._cotangents(rows, columns, G, asked.operands, targets)
            return asked.result(outputs.deliver(cotangents))

    def jvp(
        self,
        A: npt.ArrayLike,
        B: npt.ArrayLike,
        tA: npt.ArrayLike | None,
        tB: npt.ArrayLike | None,
        /,
        out: Array | None = None,
    ) -> Any:
        """Return the tangent of the product, tA @ B + A @ tB.

        Parameters
        ----------
        A : array_like, shape (k,) or (..., m, k)
        B : array_like, shape (k,) or (..., k, n)
        tA, tB : array_like, shapes of `A` and `B`, or None
            Tangents; None is zero, and saves its product.
        out : ndarray, optional
            Overwritten with the result, of exactly its shape and dtype; may overlap the arguments.

        Returns
        -------
        ndarray or scalar, shape of ``A @ B``

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit, or both tangents are None.
        """
        op, names = "matmul.jvp", ("A", "B")
        primals, tangents = tangents_of(op, (A, B), (tA, tB), names)
        shape = _result_shape(op, *primals)
        check_tangents(op, primals, tangents, names)
        rows, columns = _as_rows(primals[0]), _as_columns(primals[1])
        inputs = (*primals, *tangents)
        outputs = Outputs(op, out, [shape], rows.dtype, inputs, single=True)
        (target,) = outputs.targets(_product_shape(rows, columns))
        t_rows = None if tangents[0] is None else _as_rows(tangents[0])
        t_columns = None if tangents[1] is None else _as_columns(tangents[1])
        with np.errstate(all="ignore"):
            tangent = self._tangent(rows, columns, t_rows, t_columns, target)
            (result,) = outputs.deliver([tangent])
        return result[()] if out is None else result

    def jacobian(self, A: npt.ArrayLike, B: npt.ArrayLike, /) -> tuple[Kronecker, Kronecker]:
        """Return the Jacobians with respect to `A` and to `B`, each a `Kronecker`.

        Parameters
        ----------
        A : array_like, shape (k,) or (..., m, k)
        B : array_like, shape (k,) or (..., k, n)

        Returns
        -------
        tuple of two Kronecker
            I_m (x) B^T and A (x) I_n, of the flattened operands; they hold copies of `B` and `A`.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        A, B = aligned("matmul.jacobian", A, B, names=("A", "B"))
        shape = _result_shape("matmul.jacobian", A, B)
        rows, columns = _as_rows(A), _as_columns(B)
        *batch, m, n = _product_shape(rows, columns)
        return (
            Kronecker(
                m,
                columns.mT,
                input_batch=rows.shape[:-2],
                output_batch=tuple(batch),
                input_shape=A.shape,
                output_shape=shape,
            ),
            Kronecker(
                rows,
                n,
                input_batch=columns.shape[:-2],
                output_batch=tuple(batch),
                input_shape=B.shape,
                output_shape=shape,
            ),
        )

    # --- what kernels may replace ---

    def _cotangents(
        self,
        A: Array,
        B: Array,
        G: Array,
        wrt: tuple[int, ...],
        out: tuple[Array | None, ...],
    ) -> tuple[Array, ...]:
        """Return the cotangents of the operands in `wrt`, in their order.

        Parameters
        ----------
        A : ndarray, shape (..., m, k)
        B : ndarray, shape (..., k, n)
        G : ndarray, shape (..., m, n), the batch being what those of A and B broadcast to
        wrt : tuple of distinct int, 0 or 1
        out : tuple of ndarray or None
            For each of `wrt`, where to write: in the operand's shape, of any strides, aligned,
            overlapping no input. What is not None has to be used.

        Returns
        -------
        tuple of ndarray, in the operands' shapes
        """
        factors = ((G, B.mT, A.shape), (A.mT, G, B.shape))
        return tuple(
            summed_product(self._product, *factors[i], target)
            for i, target in zip(wrt, out, strict=True)
        )

    def _tangent(
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


def _as_rows(A: Array) -> Array:
    return A[np.newaxis, :] if A.ndim == 1 else A


def _as_columns(B: Array) -> Array:
    return B[:, np.newaxis] if B.ndim == 1 else B


def _product_shape(rows: Array, columns: Array) -> tuple[int, ...]:
    batch = broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    return (*batch, rows.shape[-2], columns.shape[-1])


def _result_shape(op: str, A: Array, B: Array) -> tuple[int, ...]:
    """Return the shape of A @ B, or raise a ValueError that names both shapes."""
    shapes = f"{op}: A has shape {A.shape}, B has shape {B.shape}"
    for name, operand in (("A", A), ("B", B)):
        if operand.ndim == 0:
            raise ValueError(f"{shapes}: {name} needs at least one axis")
    k, k_B = A.shape[-1], B.shape[-2:][0]
    if k != k_B:
        raise ValueError(f"{shapes}: the contracted axes have lengths {k} and {k_B}")
    try:
        batch = broadcast_shapes(A.shape[:-2], B.shape[:-2])
    except ValueError:
        raise ValueError(f"{shapes}: the batches do not broadcast") from None
    return (*batch, *A.shape[-2:-1], *(B.shape[-1:] if B.ndim > 1 else ()))


matmul = Matmul(numpy_product, "pullback.reference")

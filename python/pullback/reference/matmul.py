"""Matrix product and its derivatives, for every shape that `numpy.matmul` accepts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.ops import as_arrays

__all__ = ["Matmul", "matmul"]

Array: TypeAlias = npt.NDArray[Any]


class Matmul:
    """Matrix product; see `__call__`, `vjp` and `jvp`.

    Arguments compute in float32 or float64 by `pullback.ops.result_dtype` and are never written;
    results are new arrays. One-dimensional operands are a row on the left and a column on the
    right, and axes in front of the last two are batches, which broadcast.

    Parameters
    ----------
    product : callable
        The kernel: ``product(A, B)`` for A (..., m, k) and B (..., k, n), both float32 or both
        float64, batches broadcasting, any strides; returns a new array (..., m, n). Every product
        here and in the derivatives goes through it.
    module : str
        The module that holds the object under its name, for pickle.
    """

    def __init__(self, product: Callable[[Array, Array], Array], module: str) -> None:
        self._product = product
        self.__name__ = self.__qualname__ = "matmul"
        self.__doc__ = self.__call__.__doc__
        self.__module__ = module

    def __repr__(self) -> str:
        return f"<matmul of {self.__module__}>"

    def __reduce__(self) -> str:
        return self.__name__

    def __call__(self, A: npt.ArrayLike, B: npt.ArrayLike, /) -> Any:
        """Return the matrix product A @ B.

        Parameters
        ----------
        A : array_like, shape (k,) or (..., m, k)
        B : array_like, shape (k,) or (..., k, n)

        Returns
        -------
        ndarray, shape (..., m, n) less the axes that one-dimensional operands lack, or scalar

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        A, B = as_arrays("matmul", A, B, names=("A", "B"))
        shape = _result_shape("matmul", A, B)
        with np.errstate(all="ignore"):
            return self._product(_as_rows(A), _as_columns(B)).reshape(shape)[()]

    def vjp(self, A: npt.ArrayLike, B: npt.ArrayLike, G: npt.ArrayLike, /) -> tuple[Any, Any]:
        """Return the cotangents (dA, dB) of the operands.

        Parameters
        ----------
        A : array_like, shape (k,) or (..., m, k)
        B : array_like, shape (k,) or (..., k, n)
        G : array_like, shape of ``A @ B``
            Cotangent of the product.

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
        A, B, G = as_arrays("matmul.vjp", A, B, G, names=("A", "B", "G"))
        shape = _result_shape("matmul.vjp", A, B)
        if G.shape != shape:
            raise ValueError(
                f"matmul.vjp: G has shape {G.shape}, "
                f"the product of A {A.shape} and B {B.shape} has {shape}"
            )
        rows, columns = _as_rows(A), _as_columns(B)
        batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
        G = G.reshape(*batch, rows.shape[-2], columns.shape[-1])
        with np.errstate(all="ignore"):
            dA = self._cotangent(G, columns.mT, rows.shape)
            dB = self._cotangent(rows.mT, G, columns.shape)
            return dA.reshape(A.shape), dB.reshape(B.shape)

    def jvp(
        self, A: npt.ArrayLike, B: npt.ArrayLike, tA: npt.ArrayLike, tB: npt.ArrayLike, /
    ) -> Any:
        """Return the tangent of the product, tA @ B + A @ tB.

        Parameters
        ----------
        A : array_like, shape (k,) or (..., m, k)
        B : array_like, shape (k,) or (..., k, n)
        tA, tB : array_like, shapes of `A` and `B`
            Tangents.

        Returns
        -------
        ndarray or scalar, shape of ``A @ B``

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64.
        ValueError
            If the shapes do not fit.
        """
        A, B, tA, tB = as_arrays("matmul.jvp", A, B, tA, tB, names=("A", "B", "tA", "tB"))
        shape = _result_shape("matmul.jvp", A, B)
        for name, primal, tangent in (("A", A, tA), ("B", B, tB)):
            if tangent.shape != primal.shape:
                raise ValueError(
                    f"matmul.jvp: t{name} has shape {tangent.shape}, {name} has {primal.shape}"
                )
        rows, columns = _as_rows(A), _as_columns(B)
        with np.errstate(all="ignore"):
            tangent = self._product(_as_rows(tA), columns) + self._product(rows, _as_columns(tB))
            return tangent.reshape(shape)[()]

    def _cotangent(self, left: Array, right: Array, shape: tuple[int, ...]) -> Array:
        """Return left @ right, summed over the batch axes that `shape` lacks or has as 1.

        Such a sum of products is one product: the summed axes join the contracted one. Nothing is
        expanded, since along an axis that `shape` lacks both factors have the full extent.
        """
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        own = (1,) * (len(batch) - len(shape[:-2])) + shape[:-2]
        summed = [i for i, (n, full) in enumerate(zip(own, batch, strict=True)) if n != full]
        if summed:
            left = _fold(left, summed, len(batch), contracted=-1)
            right = _fold(right, summed, len(batch), contracted=-2)
        return self._product(left, right)


def _fold(array: Array, axes: list[int], batch_ndim: int, contracted: int) -> Array:
    """Merge batch `axes` into the `contracted` one of the last two axes, in front of it."""
    array = array.reshape((1,) * (batch_ndim + 2 - array.ndim) + array.shape)
    target = array.ndim + contracted
    array = np.moveaxis(array, axes, range(target - len(axes), target))
    lead = array.shape[: target - len(axes)]
    merged = math.prod(array.shape[target - len(axes) : target + 1])
    return array.reshape(*lead, merged, *array.shape[target + 1 :])


def _as_rows(A: Array) -> Array:
    return A[np.newaxis, :] if A.ndim == 1 else A


def _as_columns(B: Array) -> Array:
    return B[:, np.newaxis] if B.ndim == 1 else B


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
        batch = np.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    except ValueError:
        raise ValueError(f"{shapes}: the batches do not broadcast") from None
    return (*batch, *A.shape[-2:-1], *(B.shape[-1:] if B.ndim > 1 else ()))


matmul = Matmul(np.matmul, "pullback.reference")

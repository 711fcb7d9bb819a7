"""Reductions with a signature of their own, maps of rows, and all of them in plain NumPy."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy.typing as npt

from pullback.oracle import reductions as oracle
from pullback.protocol import by_row, named_after
from pullback.reference.reduction import Engine, Primitive, Reduction
from pullback.reference.row_maps import LayerNorm, RowMap
from pullback.reference.slices import Axis
from pullback.tables.reductions import REDUCTIONS

__all__ = ["Dot", "Norm", "Variance", "make_reductions", "reductions"]

Array: TypeAlias = npt.NDArray[Any]


def _documented(methods: dict[str, Any], listed: str) -> None:
    """Give methods the docstrings of `Reduction`, which then list one more parameter."""
    for method in methods.values():
        if inspect.isfunction(method) and method.__doc__ is None:
            doc = getattr(Reduction, method.__name__).__doc__
            method.__doc__ = doc.replace("x, axis, keepdims", listed, 1)


class Dot(Reduction):
    """The inner product: a reduction of two operands of one shape, which do not broadcast.

    Its gradients have the operands' shape. Sums accumulate in float64 over a fixed tree of blocks,
    so the bits are the same for any number of threads. float32 results are rounded once.

    Parameters
    ----------
    row, engine
        As for `Primitive`.
    """

    def value(  # type: ignore[override]
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Return the sum of x * y over each slice.

        Parameters
        ----------
        x, y : array_like, of one shape
            They compute in float32 if both do (see `pullback.sum`), else in float64.
        axis, keepdims, out
            As for `pullback.sum.value`.

        Returns
        -------
        ndarray or scalar
            In the operands' shape without the reduced axes.

        Raises
        ------
        TypeError
            If a dtype has no kernel (complex, object, ...).
        ValueError
            If the shapes differ, or `out` does not fit.
        """
        return self._value("", (x, y), None, axis, keepdims, out)

    def grad(  # type: ignore[override]
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Any = None,
    ) -> Any:
        """Return the gradients by x and y, which are y and x.

        Parameters
        ----------
        x, y, axis, keepdims
            As for `value`.
        out : tuple of (ndarray or None), optional
            Where the gradients go.

        Returns
        -------
        gx, gy : tuple of ndarray
            In the operands' shape.

        Raises
        ------
        TypeError, ValueError
            As `value` does.
        """
        return self._gradients("grad", (x, y), None, axis, keepdims, out, with_value=False)

    def value_and_grad(  # type: ignore[override]
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Any = None,
    ) -> Any:
        """Return the value and the gradients by x and y, reading the operands once.

        Parameters
        ----------
        x, y, axis, keepdims
            As for `value`.
        out : tuple of (ndarray or None) and a tuple of two such, optional
            Where the value and the gradients go.

        Returns
        -------
        value, (gx, gy) : tuple
            What `value` and `grad` return, of the shapes that these have.

        Raises
        ------
        TypeError, ValueError
            As `value` does.
        """
        return self._gradients("value_and_grad", (x, y), None, axis, keepdims, out, with_value=True)

    def vjp(  # type: ignore[override]
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        g: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Any = None,
    ) -> Any:
        """Return the gradients times a cotangent of each slice.

        Parameters
        ----------
        x, y, axis, keepdims, out
            As for `grad`.
        g : array_like
            In the result's shape.

        Returns
        -------
        gx, gy : tuple of ndarray
            In the operands' shape.

        Raises
        ------
        TypeError, ValueError
            As `value` does, and if the shape of `g` is another one.
        """
        return self._pull("vjp", (x, y), None, g, axis, keepdims, out)

    def jvp(  # type: ignore[override]
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        tx: npt.ArrayLike | None,
        ty: npt.ArrayLike | None,
        axis: Axis = None,
        keepdims: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Return the derivative along tangents, for each slice.

        Parameters
        ----------
        x, y, axis, keepdims, out
            As for `value`.
        tx, ty : array_like or None
            In the operands' shape; None, of one of them, for zeros.

        Returns
        -------
        ndarray or scalar
            In the result's shape.

        Raises
        ------
        TypeError, ValueError
            As `value` does, and if the shape of a tangent is another one, or both are None.
        """
        return self._push("jvp", (x, y), None, (tx, ty), axis, keepdims, out)

    def jacobian(  # type: ignore[override]
        self, x: npt.ArrayLike, y: npt.ArrayLike, axis: Axis = None, keepdims: bool = False
    ) -> Any:
        """Return the Jacobians by x and y.

        Parameters
        ----------
        x, y, axis, keepdims
            As for `value`.

        Returns
        -------
        Jx, Jy : tuple of Jacobian
            Of as many elements as `x`, whatever its shape.

        Raises
        ------
        TypeError, ValueError
            As `value` does.
        """
        return self._jacobians((x, y), None, axis, keepdims)


class Norm(Reduction):
    """The p-norm, whose exponent is an operand without a derivative.

    Its gradient has the operand's shape. Sums accumulate in float64 over a fixed tree of blocks,
    so the bits are the same for any number of threads. float32 results are rounded once.

    Parameters
    ----------
    row, engine
        As for `Primitive`.
    """

    def value(  # type: ignore[override]
        self,
        x: npt.ArrayLike,
        p: float,
        axis: Axis = None,
        keepdims: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Return the p-norm of each slice.

        Parameters
        ----------
        x, axis, keepdims, out
            As for `pullback.sum.value`; any shape.
        p : float
            The exponent, at least 1; inf for the largest magnitude.

        Returns
        -------
        ndarray or scalar
            In the shape of `x` without the reduced axes.

        Raises
        ------
        TypeError
            If a dtype has no kernel (complex, object, ...), or `p` is no number.
        ValueError
            If `p` is below 1, or `out` does not fit.
        """
        return self._value("", (x,), p, axis, keepdims, out)

    def grad(  # type: ignore[override]  # noqa: D102
        self, x: npt.ArrayLike, p: float, axis: Axis = None, keepdims: bool = False, out: Any = None
    ) -> Any:
        return self._gradients("grad", (x,), p, axis, keepdims, out, with_value=False)

    def value_and_grad(  # type: ignore[override]  # noqa: D102
        self, x: npt.ArrayLike, p: float, axis: Axis = None, keepdims: bool = False, out: Any = None
    ) -> Any:
        return self._gradients("value_and_grad", (x,), p, axis, keepdims, out, with_value=True)

    def vjp(  # type: ignore[override]  # noqa: D102
        self,
        x: npt.ArrayLike,
        p: float,
        g: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Any = None,
    ) -> Any:
        return self._pull("vjp", (x,), p, g, axis, keepdims, out)

    def jvp(  # type: ignore[override]  # noqa: D102
        self,
        x: npt.ArrayLike,
        p: float,
        t: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Array | None = None,
    ) -> Any:
        return self._push("jvp", (x,), p, (t,), axis, keepdims, out)

    def jacobian(  # type: ignore[override]  # noqa: D102
        self, x: npt.ArrayLike, p: float, axis: Axis = None, keepdims: bool = False
    ) -> Any:
        return self._jacobians((x,), p, axis, keepdims)[0]

    _documented(locals(), "x, p, axis, keepdims")


class Variance(Reduction):
    """The variance, whose divisor is n less `ddof`.

    Its gradient has the operand's shape. Sums accumulate in float64 over a fixed tree of blocks,
    so the bits are the same for any number of threads. float32 results are rounded once.

    Parameters
    ----------
    row, engine
        As for `Primitive`.
    """

    def value(
        self,
        x: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Array | None = None,
        *,
        ddof: float = 0,
    ) -> Any:
        """Return the variance of each slice.

        Parameters
        ----------
        x, axis, keepdims, out
            As for `pullback.sum.value`; any shape.
        ddof : float
            What the number of elements is reduced by in the divisor.

        Returns
        -------
        ndarray or scalar
            In the shape of `x` without the reduced axes.

        Raises
        ------
        TypeError
            If a dtype has no kernel (complex, object, ...), or `ddof` is no number.
        ValueError
            If `ddof` is not finite, or `out` does not fit.
        """
        return self._value("", (x,), ddof, axis, keepdims, out)

    def grad(  # noqa: D102
        self,
        x: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Any = None,
        *,
        ddof: float = 0,
    ) -> Any:
        return self._gradients("grad", (x,), ddof, axis, keepdims, out, with_value=False)

    def value_and_grad(  # noqa: D102
        self,
        x: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Any = None,
        *,
        ddof: float = 0,
    ) -> Any:
        return self._gradients("value_and_grad", (x,), ddof, axis, keepdims, out, with_value=True)

    def vjp(  # noqa: D102
        self,
        x: npt.ArrayLike,
        g: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Any = None,
        *,
        ddof: float = 0,
    ) -> Any:
        return self._pull("vjp", (x,), ddof, g, axis, keepdims, out)

    def jvp(  # noqa: D102
        self,
        x: npt.ArrayLike,
        t: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Array | None = None,
        *,
        ddof: float = 0,
    ) -> Any:
        return self._push("jvp", (x,), ddof, (t,), axis, keepdims, out)

    def jacobian(  # noqa: D102
        self, x: npt.ArrayLike, axis: Axis = None, keepdims: bool = False, *, ddof: float = 0
    ) -> Any:
        return self._jacobians((x,), ddof, axis, keepdims)[0]

    _documented(locals(), "x, axis, keepdims, ddof")


# --- all of them ----------------------------------------------------------------------------------

_KINDS: Final[Mapping[str, type[Primitive]]] = {
    "dot": Dot,
    "norm": Norm,
    "variance": Variance,
    "softmax": RowMap,
    "log_softmax": RowMap,
    "layer_norm": LayerNorm,
}


def make_reductions(engine: Engine) -> Mapping[str, Any]:
    """Return the table's reductions and maps of rows on an engine, by name."""
    return MappingProxyType(
        {
            name: named_after(_KINDS.get(name, Reduction), name)(row, engine)
            for name, row in REDUCTIONS.items()
        }
    )


reductions: Final = make_reductions(
    Engine(
        "pullback.reference",
        "",
        ", NumPy twin",
        by_row(REDUCTIONS, oracle.reduce_slices),
        by_row(REDUCTIONS, oracle.reduce_tangents),
        by_row(REDUCTIONS, oracle.transform_slices),
    )
)

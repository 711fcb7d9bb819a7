"""Maps of rows: softmax, its logarithm and layer normalisation, on any engine."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.reference import reduction_jacobians as structure
from pullback.reference.arguments import Outputs, aligned
from pullback.reference.reduction import Primitive
from pullback.reference.slices import Axis, Slices

__all__ = ["LayerNorm", "RowMap"]

Array: TypeAlias = npt.NDArray[Any]


class RowMap(Primitive):
    """A map of rows: each element of the result depends on the elements of its slice.

    Results have the operand's shape. Sums accumulate in float64 over a fixed tree of blocks, so
    the bits are the same for any number of threads.

    Parameters
    ----------
    row, engine
        As for `pullback.reference.reduction.Primitive`.
    """

    def value(self, x: npt.ArrayLike, axis: Axis = -1, out: Array | None = None) -> Any:
        """Return the value, in the shape of x.

        Parameters
        ----------
        x : array_like, any shape
            bool, 8- and 16-bit integers and float16 compute in float32, wider integers in float64.
        axis : int, tuple of int, or None
            Along which elements belong together; None for all of them.
        out : ndarray, optional
            Where the result goes, of its shape and dtype; may be `x`.

        Returns
        -------
        ndarray
            In the shape of `x`.

        Raises
        ------
        TypeError
            If a dtype has no kernel (complex, object, ...).
        numpy.exceptions.AxisError
            If there is no such axis.
        ValueError
            If `out` does not fit.
        """
        return self._transform("", x, None, None, axis, out)

    def vjp(
        self, x: npt.ArrayLike, g: npt.ArrayLike, axis: Axis = -1, out: Array | None = None
    ) -> Any:
        """Return the cotangent of x for one of the result.

        Parameters
        ----------
        x, axis, out
            As for `value`.
        g : array_like
            In the shape of `x`.

        Returns
        -------
        ndarray
            In the shape of `x`.

        Raises
        ------
        TypeError, ValueError
            As `value` does, and if the shape of `g` is another one.
        """
        return self._transform("vjp", x, g, None, axis, out)

    def jvp(
        self, x: npt.ArrayLike, t: npt.ArrayLike, axis: Axis = -1, out: Array | None = None
    ) -> Any:
        """Return the derivative along a tangent.

        Parameters
        ----------
        x, axis, out
            As for `value`.
        t : array_like
            In the shape of `x`.

        Returns
        -------
        ndarray
            In the shape of `x`.

        Raises
        ------
        TypeError, ValueError
            As `value` does, and if the shape of `t` is another one.
        """
        return self._transform("jvp", x, t, None, axis, out)

    def jacobian(self, x: npt.ArrayLike, axis: Axis = -1) -> Any:
        """Return the Jacobian, diagonals and sums that store as many elements as x.

        Parameters
        ----------
        x, axis
            As for `value`.

        Returns
        -------
        Jacobian
            Of the map between arrays of the shape of `x`.

        Raises
        ------
        TypeError, ValueError
            As `value` does.
        """
        return self._jacobian(x, None, axis)

    def _transform(self, method: str, x: Any, v: Any, p: Any, axis: Axis, out: Any) -> Any:
        op = self._op(method)
        parameter = self._parameter(op, p)
        if method:
            name = "g" if method == "vjp" else "t"
            x, v = aligned(op, x, v, names=("x", name))
            if v.shape != x.shape:
                raise ValueError(f"{op}: {name} has shape {v.shape}, x has {x.shape}")
        else:
            (x,) = aligned(op, x, names=("x",))
        slices = Slices.of(op, x, axis)
        outputs = Outputs(op, out, (x.shape,), x.dtype, (x, v), single=True)
        (target,) = slices.targets(outputs, slices.blocks)
        result = np.empty(slices.blocks, x.dtype) if target is None else target
        if result.size > 0:
            blocks = slices.take(x), None if v is None else slices.take(v)
            self._engine.transform_slices(self.row.name, parameter, method, *blocks, result)
        (delivered,) = outputs.deliver((slices.give(result),))
        return delivered

    def _jacobian(self, x: Any, p: Any, axis: Axis) -> Any:
        op = self._op("jacobian")
        parameter = self._parameter(op, p)
        (x,) = aligned(op, x, names=("x",))
        slices = Slices.of(op, x, axis)
        return structure.of_map(self.row.name, x, slices, parameter)


class LayerNorm(RowMap):
    """Layer normalisation: a map of rows with a number that keeps its divisor from zero.

    Results have the operand's shape. Sums accumulate in float64 over a fixed tree of blocks, so
    the bits are the same for any number of threads.

    Parameters
    ----------
    row, engine
        As for `pullback.reference.reduction.Primitive`.
    """

    def value(  # type: ignore[override]
        self,
        x: npt.ArrayLike,
        axis: Axis = -1,
        eps: float = 1e-5,
        out: Array | None = None,
    ) -> Any:
        """Return (x - mean) / sqrt(variance + eps), in the shape of x.

        Parameters
        ----------
        x, axis, out
            As for `pullback.softmax.value`.
        eps : float
            Finite and not negative.

        Returns
        -------
        ndarray
            In the shape of `x`.

        Raises
        ------
        TypeError
            If a dtype has no kernel (complex, object, ...), or `eps` is no number.
        ValueError
            If `eps` is negative, or `out` does not fit.
        """
        return self._transform("", x, None, eps, axis, out)

    def vjp(  # type: ignore[override]  # noqa: D102
        self,
        x: npt.ArrayLike,
        g: npt.ArrayLike,
        axis: Axis = -1,
        eps: float = 1e-5,
        out: Array | None = None,
    ) -> Any:
        return self._transform("vjp", x, g, eps, axis, out)

    def jvp(  # type: ignore[override]  # noqa: D102
        self,
        x: npt.ArrayLike,
        t: npt.ArrayLike,
        axis: Axis = -1,
        eps: float = 1e-5,
        out: Array | None = None,
    ) -> Any:
        return self._transform("jvp", x, t, eps, axis, out)

    def jacobian(self, x: npt.ArrayLike, axis: Axis = -1, eps: float = 1e-5) -> Any:  # noqa: D102
        return self._jacobian(x, eps, axis)

    for _name in ("vjp", "jvp", "jacobian"):
        locals()[_name].__doc__ = getattr(RowMap, _name).__doc__.replace(
            "x, axis", "x, axis, eps", 1
        )
    del _name

"""The class of a reduction, on any engine."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.protocol import as_flag, as_number, shown
from pullback.reference import reduction_jacobians as structure
from pullback.reference.arguments import Outputs, aligned, check_tangents, tangents_of
from pullback.reference.slices import Axis, Slices
from pullback.tables.reductions import ReductionRow

__all__ = ["Engine", "Primitive", "Reduction"]

Array: TypeAlias = npt.NDArray[Any]


class Engine(NamedTuple):
    """The kernels that reductions run on.

    Parameters
    ----------
    module : str
        The module whose attributes the reductions are, for pickle.
    path : str
        What stands before their names there.
    remark : str
        What sets them apart in their repr.
    reduce_slices, reduce_tangents, transform_slices : callable
        See `pullback.oracle.reductions`; they take the reduction's name for its row.
    method : callable, optional
        ``method(name, method, parameter, fallback)`` returns a callable that enters the kernels
        directly where the arguments are plain, and calls `fallback` with all others.
    """

    module: str
    path: str
    remark: str
    reduce_slices: Callable[..., None]
    reduce_tangents: Callable[..., None]
    transform_slices: Callable[..., None]
    method: Callable[..., Any] | None = None


class Primitive:
    """What reductions and maps of rows share: a row of the table, on an engine.

    Parameters
    ----------
    row : ReductionRow
        What the table says.
    engine : Engine
        What computes.
    """

    def __init__(self, row: ReductionRow, engine: Engine) -> None:
        self.row = row
        self._engine = engine
        self.__name__ = row.name
        self.__qualname__ = engine.path + row.name
        self.__module__ = engine.module
        self.__doc__ = _docstring(row, type(self))
        if engine.method is None or not self._is_direct(row, engine):
            return
        default = 0.0 if row.parameter is None else row.parameter.default
        for name in ("value", "grad", "value_and_grad", "vjp", "jvp"):
            fallback = getattr(self, name, None)
            if fallback is None:  # a map has no gradient
                continue
            call = engine.method(row.name, name, default, fallback)
            call.__name__ = name
            call.__qualname__ = f"{self.__qualname__}.{name}"
            call.__module__ = self.__module__
            call.__doc__ = fallback.__doc__
            setattr(self, name, call)
            if name == "value":  # which Python looks up on the class, one of its own
                type(self).__call__ = call  # type: ignore[method-assign]

    @staticmethod
    def _is_direct(row: ReductionRow, engine: Engine) -> bool:
        """Tell whether calls enter the kernels directly; an operand more goes through here."""
        has_operand = row.parameter is not None and row.parameter.default is None
        return engine.method is not None and not has_operand

    def __call__(self, *operands: Any, **keywords: Any) -> Any:
        """Return the value, as `value` does."""
        return self.value(*operands, **keywords)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        kind = "map" if self.row.is_map else "reduction"
        return f"<{kind} {self.__name__}{self._engine.remark}>"

    def __reduce__(self) -> str:
        return self.__qualname__

    def _op(self, method: str) -> str:
        return f"{self.__name__}.{method}" if method else self.__name__

    def _parameter(self, op: str, given: Any) -> float:
        """Return the parameter as a float, checked."""
        about = self.row.parameter
        if about is None:
            return 0.0
        if not about.test(parameter := as_number(op, about.name, given)):
            raise ValueError(f"{op}: {about.name} is {parameter}, needs {about.text}")
        return parameter


class Reduction(Primitive):
    """A reduction: what the elements along an axis, several, or all of them give together.

    Its gradient has the operand's shape and holds the derivative of each result by the elements
    of its own slice. Sums accumulate in float64 over a fixed tree of blocks, so the bits are the
    same for any number of threads. float32 results are rounded once.

    Parameters
    ----------
    row, engine
        As for `Primitive`.
    """

    # --- one operand, no parameter ---

    def value(
        self, x: npt.ArrayLike, axis: Axis = None, keepdims: bool = False, out: Array | None = None
    ) -> Any:
        """Return the value of each slice.

        Parameters
        ----------
        x : array_like, any shape
            bool, 8- and 16-bit integers and float16 compute in float32, wider integers in float64.
        axis : int, tuple of int, or None
            What is reduced; None for all axes.
        keepdims : bool
            Whether the reduced axes stay, of length 1.
        out : ndarray, optional
            Where the result goes, of its shape and dtype.

        Returns
        -------
        ndarray or scalar
            In the shape of `x` without the reduced axes.

        Raises
        ------
        TypeError
            If a dtype has no kernel (complex, object, ...).
        numpy.exceptions.AxisError
            If there is no such axis.
        ValueError
            If `out` does not fit, or no elements have no value.
        """
        return self._value("", (x,), None, axis, keepdims, out)

    def grad(
        self, x: npt.ArrayLike, axis: Axis = None, keepdims: bool = False, out: Any = None
    ) -> Any:
        """Return the gradient of each value by its own slice, as `vjp` with ones.

        Parameters
        ----------
        x, axis, keepdims
            As for `value`.
        out : ndarray, optional
            Where the gradient goes, in the shape of `x`.

        Returns
        -------
        ndarray
            In the shape of `x`.

        Raises
        ------
        TypeError, ValueError
            As `value` does.
        """
        return self._gradients("grad", (x,), None, axis, keepdims, out, with_value=False)

    def value_and_grad(
        self, x: npt.ArrayLike, axis: Axis = None, keepdims: bool = False, out: Any = None
    ) -> Any:
        """Return value and gradient, reading `x` once where the two can be had that way.

        Parameters
        ----------
        x, axis, keepdims
            As for `value`.
        out : tuple of (ndarray or None), optional
            Where the value and the gradient go.

        Returns
        -------
        value, gradient : tuple
            What `value` and `grad` return, of the shapes that these have.

        Raises
        ------
        TypeError, ValueError
            As `value` does.
        """
        return self._gradients("value_and_grad", (x,), None, axis, keepdims, out, with_value=True)

    def vjp(
        self,
        x: npt.ArrayLike,
        g: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Any = None,
    ) -> Any:
        """Return the gradient times a cotangent of each slice.

        Parameters
        ----------
        x, axis, keepdims, out
            As for `grad`.
        g : array_like
            In the result's shape.

        Returns
        -------
        ndarray
            In the shape of `x`.

        Raises
        ------
        TypeError, ValueError
            As `value` does, and if the shape of `g` is another one.
        """
        return self._pull("vjp", (x,), None, g, axis, keepdims, out)

    def jvp(
        self,
        x: npt.ArrayLike,
        t: npt.ArrayLike,
        axis: Axis = None,
        keepdims: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Return the derivative along a tangent, for each slice.

        Parameters
        ----------
        x, axis, keepdims, out
            As for `value`.
        t : array_like
            In the shape of `x`.

        Returns
        -------
        ndarray or scalar
            In the result's shape.

        Raises
        ------
        TypeError, ValueError
            As `value` does, and if the shape of `t` is another one.
        """
        return self._push("jvp", (x,), None, (t,), axis, keepdims, out)

    def jacobian(self, x: npt.ArrayLike, axis: Axis = None, keepdims: bool = False) -> Any:
        """Return the Jacobian: dense if all is reduced to one value, else a sum of a diagonal.

        Parameters
        ----------
        x, axis, keepdims
            As for `value`.

        Returns
        -------
        Jacobian
            Of as many elements as `x`, whatever its shape.

        Raises
        ------
        TypeError, ValueError
            As `value` does.
        """
        return self._jacobians((x,), None, axis, keepdims)[0]

    # --- any operands and parameter ---

    def _arrays(self, op: str, operands: tuple[Any, ...]) -> tuple[Array, ...]:
        return aligned(op, *operands, names=self.row.operands)

    def _slices(self, op: str, arrays: tuple[Array, ...], axis: Axis, keepdims: bool) -> Slices:
        as_flag(op, "keepdims", keepdims)
        shape = arrays[0].shape
        for array, name in zip(arrays, self.row.operands, strict=True):
            if array.shape != shape:
                raise ValueError(f"{op}: x has shape {shape}, {name} has {array.shape}")
        slices = Slices.of(op, arrays[0], axis)
        if slices.n == 0 and self.row.empty is None:
            axes = "all axes" if axis is None else f"axis {axis}"
            raise ValueError(f"{op}: x has shape {shape}, no elements along {axes}")
        return slices

    def _reduce(
        self, slices: Slices, arrays: Any, p: float, g: Any, values: Any, slopes: Any
    ) -> None:
        """Fill `values` (outer, inner) and `slopes` (outer, n, inner), either of them or both."""
        if slices.n > 0:
            blocks = tuple(map(slices.take, arrays))
            self._engine.reduce_slices(self.row.name, p, blocks, g, values, slopes)
        elif values is not None:
            values.fill(self.row.empty)

    def _value(
        self, method: str, operands: tuple[Any, ...], p: Any, axis: Axis, keepdims: bool, out: Any
    ) -> Any:
        op = self._op(method)
        parameter = self._parameter(op, p)
        arrays = self._arrays(op, operands)
        slices = self._slices(op, arrays, axis, keepdims)
        outer, _, inner = slices.blocks
        dtype = arrays[0].dtype
        shape = slices.result_shape(keepdims)
        outputs = Outputs(op, out, (shape,), dtype, arrays, single=True)
        (target,) = slices.targets(outputs, (outer, inner))
        values = np.empty((outer, inner), dtype) if target is None else target
        self._reduce(slices, arrays, parameter, None, values, None)
        (value,) = outputs.deliver((slices.give_results(values, keepdims),))
        return value if out is not None else value[()]

    def _gradients(
        self,
        method: str,
        operands: tuple[Any, ...],
        p: Any,
        axis: Axis,
        keepdims: bool,
        out: Any,
        *,
        with_value: bool,
        g: Any = None,
    ) -> Any:
        """Return the gradients, the value before them where it is wanted."""
        op = self._op(method)
        parameter = self._parameter(op, p)
        names = self.row.operands
        if g is None:
            arrays = self._arrays(op, operands)
        else:
            *arrays_, g = aligned(op, *operands, g, names=(*names, "g"))
            arrays = tuple(arrays_)
        slices = self._slices(op, arrays, axis, keepdims)
        outer, n, inner = slices.blocks
        dtype, shape = arrays[0].dtype, slices.result_shape(keepdims)
        cotangents = None
        if g is not None:
            if g.shape != shape:
                raise ValueError(f"{op}: g has shape {g.shape}, the result {shape}")
            cotangents = slices.take_results(g)
        single = len(arrays) == 1
        shapes = (*[shape] * with_value, *[slices.shape] * len(arrays))
        views = (*[(outer, inner)] * with_value, *[(outer, n, inner)] * len(arrays))
        if with_value and not single and out is not None:
            out = _flat_outs(op, out, self.row.operands)
        outputs = Outputs(op, out, shapes, dtype, (*arrays, g), single=len(shapes) == 1)
        results = [
            np.empty(view, dtype) if target is None else target
            for target, view in zip(slices.targets(outputs, *views), views, strict=True)
        ]
        values = results[0] if with_value else None
        slopes = tuple(results[1:] if with_value else results)
        self._reduce(slices, arrays, parameter, cotangents, values, slopes)
        delivered = outputs.deliver(
            (
                *[slices.give_results(v, keepdims) for v in results[:with_value]],
                *map(slices.give, slopes),
            )
        )
        gradients = delivered[-1] if single else delivered[-len(arrays) :]
        if not with_value:
            return gradients
        value = delivered[0]
        return (value[()] if out is None or out[0] is None else value), gradients

    def _pull(
        self,
        method: str,
        operands: tuple[Any, ...],
        p: Any,
        g: Any,
        axis: Axis,
        keepdims: bool,
        out: Any,
    ) -> Any:
        if g is None:
            raise TypeError(f"{self._op(method)}: g is None, which is no cotangent")
        return self._gradients(method, operands, p, axis, keepdims, out, with_value=False, g=g)

    def _push(
        self,
        method: str,
        operands: tuple[Any, ...],
        p: Any,
        tangents: tuple[Any, ...],
        axis: Axis,
        keepdims: bool,
        out: Any,
    ) -> Any:
        op = self._op(method)
        parameter = self._parameter(op, p)
        names = self.row.operands
        if len(names) == 1:
            x, t = aligned(op, *operands, *tangents, names=(*names, "t"))
            arrays, given = (x,), (t,)
            if t.shape != x.shape:
                raise ValueError(f"{op}: t has shape {t.shape}, x has {x.shape}")
        else:
            arrays, given = tangents_of(op, operands, tangents, names)
            check_tangents(op, arrays, given, names)
        slices = self._slices(op, arrays, axis, keepdims)
        outer, n, inner = slices.blocks
        dtype, shape = arrays[0].dtype, slices.result_shape(keepdims)
        outputs = Outputs(op, out, (shape,), dtype, (*arrays, *given), single=True)
        (target,) = slices.targets(outputs, (outer, inner))
        values = np.empty((outer, inner), dtype) if target is None else target
        if n > 0:
            blocks = tuple(map(slices.take, arrays))
            moved = tuple(None if t is None else slices.take(t) for t in given)
            self._engine.reduce_tangents(self.row.name, parameter, blocks, moved, values)
        else:
            values.fill(0.0)
        (value,) = outputs.deliver((slices.give_results(values, keepdims),))
        return value if out is not None else value[()]

    def _jacobians(
        self, operands: tuple[Any, ...], p: Any, axis: Axis, keepdims: bool
    ) -> tuple[Any, ...]:
        op = self._op("jacobian")
        arrays = self._arrays(op, operands)
        slices = self._slices(op, arrays, axis, keepdims)
        slopes = self._gradients("jacobian", arrays, p, axis, keepdims, None, with_value=False)
        return tuple(
            structure.of_reduction(slope, slices, keepdims)
            for slope in (slopes if len(arrays) > 1 else (slopes,))
        )


def _flat_outs(op: str, out: Any, operands: tuple[str, ...]) -> tuple[Any, ...]:
    """Return ``(value, (gx, gy))``, of which either may be None, as one tuple."""
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[1], tuple | None):
        listed = ", ".join(f"g{name}" for name in operands)
        raise TypeError(f"{op}: out must be (value, ({listed})), not {shown(out)}")
    value, gradients = out
    return (value, *(gradients or (None,) * len(operands)))


def _docstring(row: ReductionRow, kind: type) -> str:
    """Return what there is to say about a reduction, from its row."""
    about = row.parameter
    slopes = zip(row.operands, row.derivative_formula, strict=True)
    lines = [
        f"{row.summary}.",
        "",
        f"``{row.formula}``",
        "",
        *(f"Derivative by {name}[{'j' if row.is_map else 'i'}]: ``{df}``." for name, df in slopes),
        *textwrap.wrap(f"At the edges: {row.conventions}.", 100),
    ]
    if about is not None:
        default = "" if about.default is None else f"; {about.default:g} when omitted"
        lines.append(f"Parameter: {about.name}, which needs to be {about.text}{default}.")
    lines += [f"Source: {row.source}.", "", *(inspect.getdoc(kind) or "").splitlines()[2:-4]]
    return "\n".join(line.rstrip() for line in lines).rstrip()

"""Elementwise primitives: NumPy ufuncs that know their derivatives, or their NumPy twins.

A native primitive is a genuine `numpy.ufunc`; its single-output methods are ufuncs too, and its
methods with several outputs are callables that enter the kernel directly for plain arrays and come
here for everything else. Names are dotted (``elementwise.tanh.vjp``) so that every one of them
pickles by name, and so that pandas does not mistake ``greater`` for the operator.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.engine import BACKEND, ORACLE, Engine
from pullback.jacobians import Diagonal, Jacobian
from pullback.jacobians.primitives import of_operand
from pullback.protocol import (
    as_array,
    as_arrays,
    broadcast_shape,
    check_cotangent,
    deliver,
    leaves,
    named_after,
    shape_of,
    sum_repeated,
)
from pullback.tables.elementwise import OPS, REFERENCE_MAX_ULP, OpRow, SpecialPoint

__all__ = ["is_primitive", "make_elementwise", "primitives"]

Array: TypeAlias = npt.NDArray[Any]


# --- the twins ------------------------------------------------------------------------------------


class Elementwise:
    """The NumPy twin of one elementwise operation; see `Unary` and `Binary`.

    Every method computes in the `pullback.protocol.result_dtype` of its arguments, leaves them
    unwritten, silences NumPy's floating-point warnings, and returns new arrays, or NumPy scalars
    where the result has no axes. ``out=`` takes arrays of exactly the result's shape and writes to
    them only once everything has succeeded, so they may be the arguments themselves.

    Parameters
    ----------
    row : OpRow
        The operation.
    """

    row: OpRow
    __name__: str

    def __init__(self, row: OpRow) -> None:
        self.row = row
        self.nin = row.nin
        self.__name__ = self.__qualname__ = row.name
        self.__doc__ = docstring(row)
        self.__module__ = "pullback.reference"  # where pickle finds it, by name

    def __repr__(self) -> str:
        return f"<elementwise '{self.__name__}', NumPy twin>"

    def __reduce__(self) -> str:
        return self.__name__

    def _product(self, cotangent: Array, slope: Array) -> Array:
        """Return fl(cotangent * slope); a masked operation selects +0 where the slope is 0."""
        product: Array = cotangent * slope
        if self.row.masked:
            return np.where(slope == 0, product.dtype.type(0), product)
        return product


class Unary(Elementwise):
    """The NumPy twin of an operation on one operand."""

    def __call__(self, x: npt.ArrayLike, /, out: Any = None) -> Any:
        """Return the value at each element of `x`, in the shape of `x`."""
        (x,) = as_arrays(self.__name__, x)
        with np.errstate(all="ignore"):
            return deliver(self.__name__, self.row.value(x), out)

    def derivative(self, x: npt.ArrayLike, /, out: Any = None) -> Any:
        """Return the derivative at each element of `x`, in the shape of `x`."""
        op = f"{self.__name__}.derivative"
        (x,) = as_arrays(op, x)
        with np.errstate(all="ignore"):
            return deliver(op, self.row.derivative(x), out)

    def value_and_derivative(self, x: npt.ArrayLike, /, out: Any = None) -> Any:
        """Return the pair of value and derivative; `out` is a pair of arrays."""
        op = f"{self.__name__}.value_and_derivative"
        (x,) = as_arrays(op, x)
        with np.errstate(all="ignore"):
            return deliver(op, (self.row.value(x), self.row.derivative(x)), out)

    def vjp(self, x: npt.ArrayLike, g: npt.ArrayLike, /, out: Any = None) -> Any:
        """Return the cotangent of `x`, fl(g * derivative(x)).

        Parameters
        ----------
        x : array_like
            Primal.
        g : array_like
            Cotangent of the value; broadcasts with `x`.
        out : ndarray, optional
            Overwritten with the result.

        Returns
        -------
        ndarray or scalar, the broadcast shape of `x` and `g`
            A masked operation gives +0 where its derivative is 0, whatever `g` is there.
        """
        op = f"{self.__name__}.vjp"
        x, g = as_arrays(op, x, g, names=("x", "g"))
        broadcast_shape(op, x=x.shape, g=g.shape)
        with np.errstate(all="ignore"):
            return deliver(op, self._product(g, self.row.derivative(x)), out)

    def jvp(self, x: npt.ArrayLike, t: npt.ArrayLike, /, out: Any = None) -> Any:
        """Return the tangent of the value; a diagonal Jacobian is its own transpose (see `vjp`)."""
        op = f"{self.__name__}.jvp"
        x, t = as_arrays(op, x, t, names=("x", "t"))
        broadcast_shape(op, x=x.shape, t=t.shape)
        with np.errstate(all="ignore"):
            return deliver(op, self._product(t, self.row.derivative(x)), out)

    def jacobian(self, x: npt.ArrayLike, /) -> Diagonal:
        """Return the Jacobian at `x` as a `Diagonal`."""
        return Diagonal._of(self.derivative(x))


class Binary(Elementwise):
    """The NumPy twin of an operation on two operands, which broadcast."""

    def __call__(self, w: npt.ArrayLike, x: npt.ArrayLike, /, out: Any = None) -> Any:
        """Return the value, in the broadcast shape of `w` and `x`."""
        w, x = self._operands(self.__name__, w, x)
        with np.errstate(all="ignore"):
            return deliver(self.__name__, self.row.value(w, x), out)

    def derivative(self, w: npt.ArrayLike, x: npt.ArrayLike, /, out: Any = None) -> Any:
        """Return both partial derivatives (dw, dx), each in the broadcast shape."""
        op = f"{self.__name__}.derivative"
        w, x = self._operands(op, w, x)
        with np.errstate(all="ignore"):
            return deliver(op, self.row.derivative(w, x), out)

    def value_and_derivative(self, w: npt.ArrayLike, x: npt.ArrayLike, /, out: Any = None) -> Any:
        """Return (value, (dw, dx)); `out` is nested alike, or a flat tuple of three arrays."""
        op = f"{self.__name__}.value_and_derivative"
        w, x = self._operands(op, w, x)
        with np.errstate(all="ignore"):
            return deliver(op, (self.row.value(w, x), self.row.derivative(w, x)), out)

    def vjp(self, w: npt.ArrayLike, x: npt.ArrayLike, g: npt.ArrayLike, /, out: Any = None) -> Any:
        """Return the cotangents (gw, gx) of the operands.

        Parameters
        ----------
        w, x : array_like
            Primals.
        g : array_like
            Cotangent of the value. Its shape ends in the broadcast shape of `w` and `x`; axes in
            front of that are a batch, which both results keep.
        out : tuple of two ndarray, optional
            Overwritten with the results.

        Returns
        -------
        tuple of two ndarray or scalars, shapes ``batch + w.shape`` and ``batch + x.shape``
            fl(g * derivative); where an operand was broadcast, the sum of these over the
            repetitions, accumulated in float64.

        Raises
        ------
        ValueError
            If `g` does not end in the broadcast shape.
        """
        op = f"{self.__name__}.vjp"
        w, x, g = as_arrays(op, w, x, g, names=("w", "x", "g"))
        shape = broadcast_shape(op, w=w.shape, x=x.shape)
        batch = check_cotangent(op, g.shape, shape, w=w.shape, x=x.shape)
        with np.errstate(all="ignore"):
            slopes = self.row.derivative(np.broadcast_to(w, shape), np.broadcast_to(x, shape))
            gradients = tuple(
                sum_repeated(self._product(g, slope), batch, operand.shape)
                for slope, operand in zip(slopes, (w, x), strict=True)
            )
            return deliver(op, gradients, out)

    def jvp(
        self,
        w: npt.ArrayLike,
        x: npt.ArrayLike,
        tw: npt.ArrayLike,
        tx: npt.ArrayLike,
        /,
        out: Any = None,
    ) -> Any:
        """Return the tangent of the value, fl(fl(dw * tw) + fl(dx * tx)).

        Parameters
        ----------
        w, x : array_like
            Primals.
        tw, tx : array_like
            Their tangents; all four broadcast.
        out : ndarray, optional
            Overwritten with the result.

        Returns
        -------
        ndarray or scalar, the broadcast shape of all arguments
        """
        op = f"{self.__name__}.jvp"
        w, x, tw, tx = as_arrays(op, w, x, tw, tx, names=("w", "x", "tw", "tx"))
        broadcast_shape(op, w=w.shape, x=x.shape, tw=tw.shape, tx=tx.shape)
        shape = broadcast_shape(op, w=w.shape, x=x.shape)
        with np.errstate(all="ignore"):
            dw, dx = self.row.derivative(np.broadcast_to(w, shape), np.broadcast_to(x, shape))
            return deliver(op, self._product(tw, dw) + self._product(tx, dx), out)

    def jacobian(self, w: npt.ArrayLike, x: npt.ArrayLike, /) -> tuple[Jacobian, Jacobian]:
        """Return the Jacobians with respect to `w` and to `x`.

        Each is a `Diagonal`, or where the operand is broadcast, a `Diagonal` after a `Broadcast`.
        """
        op = f"{self.__name__}.jacobian"
        operands = self._operands(op, w, x)
        with np.errstate(all="ignore"):
            dw, dx = self.row.derivative(*operands)
        # Copies: a slope may be an operand.
        return of_operand(np.array(dw), w), of_operand(np.array(dx), x)

    def _operands(self, op: str, w: npt.ArrayLike, x: npt.ArrayLike) -> tuple[Array, Array]:
        w, x = as_arrays(op, w, x)
        shape = broadcast_shape(op, w=w.shape, x=x.shape)
        return np.broadcast_to(w, shape), np.broadcast_to(x, shape)


# --- NumPy's ufuncs -------------------------------------------------------------------------------


def _overrides(*operands: object) -> bool:
    """Tell whether an operand takes ufunc calls over (Dask, pandas, ...)."""
    return any(
        getattr(type(operand), "__array_ufunc__", np.ndarray.__array_ufunc__)
        is not np.ndarray.__array_ufunc__
        for operand in operands
    )


def _own_rules(*operands: object) -> bool:
    """Tell whether an operand overrides ufuncs, or is a subclass that results may have to be."""
    return _overrides(*operands) or any(
        isinstance(operand, np.ndarray) and type(operand) not in (np.ndarray, np.memmap)
        for operand in operands
    )


def _jacobians(op: str, derivative: Callable[..., Any], w: Any, x: Any) -> tuple[Any, Any]:
    if type(w) is list or type(x) is list:  # whose shapes it takes as long to find out
        w, x = (as_array(op, *a) if type(a[1]) is list else a[1] for a in (("w", w), ("x", x)))
    try:
        dw, dx = derivative(w, x)
    except ValueError:  # again, for what the message calls it
        broadcast_shape(op, w=shape_of(op, "w", w), x=shape_of(op, "x", x))
        raise
    return of_operand(dw, w), of_operand(dx, x)


def _pair(op: str, out: Any) -> Any:
    """Return `out` as the pair of outputs it has to be."""
    if out is None:
        return None, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"{op}: out must be a tuple of two arrays, not {type(out).__name__}")
    return out


def _unary(ufunc: Callable[..., Any], primitive: Any) -> dict[str, Callable[..., Any]]:
    """Return the methods of a unary op that are not ufuncs."""
    both = ufunc("value_and_derivative")
    op = f"{primitive.__name__.rpartition('.')[2]}.value_and_derivative"

    def value_and_derivative(x: Any, /, out: Any = None, **kwargs: Any) -> Any:
        y, dy = _pair(op, out)
        if _overrides(x, y, dy):
            return primitive(x, out=y, **kwargs), primitive.derivative(x, out=dy, **kwargs)
        return both(x, out=(y, dy), **kwargs)

    def jacobian(x: Any, /) -> Diagonal:
        return Diagonal._of(primitive.derivative(x))

    return {"value_and_derivative": value_and_derivative, "jacobian": jacobian}


def _binary(
    ufunc: Callable[..., Any], primitive: Any, vjp_of_arrays: Callable[..., Any]
) -> dict[str, Callable[..., Any]]:
    """Return the methods of a binary op that are not ufuncs."""
    all_of = {method: ufunc(method) for method in ("derivative", "value_and_derivative")}
    # One output at a time, for operands that bring their own __array_ufunc__.
    one_of = {
        method: (ufunc(f"{method}0"), ufunc(f"{method}1")) for method in ("derivative", "vjp")
    }
    name = primitive.__name__.rpartition(".")[2]

    def derivative(w: Any, x: Any, /, out: Any = None, **kwargs: Any) -> Any:
        outs = _pair(f"{name}.derivative", out)
        if not _overrides(w, x, *outs):
            return all_of["derivative"](w, x, out=outs, **kwargs)
        return tuple(
            partial(w, x, out=o, **kwargs)
            for partial, o in zip(one_of["derivative"], outs, strict=True)
        )

    def value_and_derivative(w: Any, x: Any, /, out: Any = None, **kwargs: Any) -> Any:
        y, *slopes = (None, None, None) if out is None else leaves(out)
        if _overrides(w, x, y, *slopes):
            return primitive(w, x, out=y, **kwargs), derivative(w, x, out=tuple(slopes), **kwargs)
        y, *slopes = all_of["value_and_derivative"](w, x, out=(y, *slopes), **kwargs)
        return y, tuple(slopes)

    def vjp(w: Any, x: Any, g: Any, /, out: Any = None) -> Any:
        op = f"{name}.vjp"
        own_rules = _own_rules(w, x, g)
        if not own_rules:
            w, x, g = as_arrays(op, w, x, g, names=("w", "x", "g"))
        shapes = {"w": shape_of(op, "w", w), "x": shape_of(op, "x", x)}
        batch = check_cotangent(op, shape_of(op, "g", g), broadcast_shape(op, **shapes), **shapes)
        if own_rules:
            terms = tuple(partial(w, x, g) for partial in one_of["vjp"])
            gradients = tuple(map(sum_repeated, terms, (batch, batch), shapes.values()))
        else:
            gradients = vjp_of_arrays(w, x, g)
        return gradients if out is None else deliver(op, gradients, out)

    def jacobian(w: Any, x: Any, /) -> tuple[Jacobian, Jacobian]:
        return _jacobians(f"{name}.jacobian", primitive.derivative, w, x)

    return {
        "derivative": derivative,
        "value_and_derivative": value_and_derivative,
        "vjp": vjp,
        "jacobian": jacobian,
    }


def _refuse(w: Any, x: Any, g: Any, /, out: Any = None) -> Any:
    del out
    shapes = ", ".join(str(np.shape(array)) for array in (w, x, g))
    raise ValueError(f"no kernel takes arrays of shapes {shapes}")


def _native_primitive(kernels: ModuleType, row: OpRow) -> Any:
    """Return the ufunc of a row, with everything that it knows set on it."""

    def named(function: Any, name: str) -> Any:
        function.__module__ = "pullback"  # where pickle looks the dotted name up
        function.__qualname__ = name
        return function

    def ufunc(method: str, path: str, doc: str) -> Any:
        name = f"elementwise.{row.name}{path}"
        return named(kernels.elementwise_ufunc(row.name, method, name, doc), name)

    def part(method: str) -> Any:
        """Return a ufunc that others call, and that travels under a private name."""
        function = ufunc(method, f"._{method}", f"Part of {row.name}.")
        setattr(primitive, f"_{method}", function)
        return function

    primitive = ufunc("value", "", docstring(row))
    for method in ("derivative", "vjp", "jvp") if row.nin == 1 else ("jvp",):
        setattr(primitive, method, ufunc(method, f".{method}", method_docstring(row, method)))
    if row.nin == 1:
        methods = _unary(part, primitive)
    else:
        methods = _binary(part, primitive, kernels.elementwise_method(row.name, "vjp", _refuse))
    for method, function in methods.items():
        function.__qualname__ = f"{row.name}.{method}"  # for Python's own messages
        call = function
        if method != "jacobian":  # which is structure, not a kernel
            call = kernels.elementwise_method(row.name, method, function)
        call.__name__ = method
        call.__doc__ = method_docstring(row, method)
        setattr(primitive, method, named(call, f"elementwise.{row.name}.{method}"))
    return primitive


# --- docstrings -----------------------------------------------------------------------------------


def docstring(row: OpRow) -> str:
    """Return the numpydoc docstring of an operation, from its row."""
    operands = ", ".join(row.operands)
    lines = [
        f"{row.name}({operands}, /, out=None)",
        "",
        _paragraph(f"{row.summary}, element by element: ``{row.formula}``."),
        "",
        "Parameters",
        "----------",
        f"{operands} : array_like" + ("" if row.nin == 1 else ", shapes that broadcast"),
        _paragraph(
            f"Domain: {row.domain_text}. Outside it the special points below hold, else NaN.",
            "    ",
        ),
        "    bool, 8- and 16-bit integers and float16 compute in float32, wider integers in",
        "    float64; Python numbers adapt to the other operands.",
        "out : ndarray, optional",
        "    Overwritten with the result; may be an operand.",
        "",
        "Returns",
        "-------",
        f"ndarray or scalar, float32 or float64, the {'broadcast ' * (row.nin > 1)}shape of "
        f"{' and '.join(row.operands)}",
        "",
        *_notes(row),
        "",
        "Special points:",
        "",
        *map(_describe, row.special),
        "",
        f"Source: {row.source}.",
        "",
    ]
    return "\n".join(lines)


def method_docstring(row: OpRow, method: str) -> str:
    """Return the numpydoc docstring of an operation's method: its twin's, and the row's facts."""
    function = getattr(Unary if row.nin == 1 else Binary, method)
    _, *parameters = inspect.signature(function).parameters
    out = "out=None" if "out" in parameters else ""
    signature = ", ".join([*(p for p in parameters if p != "out"), "/", *filter(None, [out])])
    lines = [
        f"{row.name}.{method}({signature})",
        "",
        inspect.getdoc(function) or "",
        "",
        *_notes(row),
        "",
    ]
    return "\n".join(lines)


def _notes(row: OpRow) -> list[str]:
    value_ulp, derivative_ulp = row.max_ulp
    derivatives = ", ".join(
        f"``{formula}`` with respect to {operand}"
        for formula, operand in zip(row.derivative_formula, row.operands, strict=True)
    )
    lines = [
        "Notes",
        "-----",
        _paragraph(f"Derivative: {derivatives}."),
        "",
        f"Max error over all inputs: value {value_ulp:g} ULP, derivative {derivative_ulp:g} ULP "
        f"(NumPy twin: {REFERENCE_MAX_ULP:g} ULP).",
    ]
    if row.ulp_of_operands:
        lines += ["The value's error is in ULP of the largest of the value and the operands."]
    if row.kinks:
        zeros = " and ".join(f"``{kink} = 0``" for kink in row.kinks)
        lines += ["", f"No derivative exists at {zeros}; the special points give the convention."]
    if row.masked:
        lines += ["", "Masked: vjp and jvp give +0 where the derivative is 0, whatever they scale."]
    return lines


def _paragraph(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        100,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _describe(point: SpecialPoint) -> str:
    at, derivative = (
        ", ".join(f"{number:g}" for number in numbers) for numbers in (point.at, point.derivative)
    )
    return f"- at {at}: value {point.value:g}, derivative {derivative}"


# --- all of them ----------------------------------------------------------------------------------


@cache
def make_elementwise(engine: Engine) -> Mapping[str, Any]:
    """Return the table's operations on an engine, by name: ufuncs, or their twins."""
    if engine.is_native:
        made = {name: _native_primitive(engine.kernels, row) for name, row in OPS.items()}
    else:
        made = {
            name: named_after(Unary if row.nin == 1 else Binary, name)(row)
            for name, row in OPS.items()
        }
    return MappingProxyType(made)


def is_primitive(given: Any, name: str) -> bool:
    """Tell whether an object is the operation of that name, on any engine."""
    of_ours = isinstance(given, np.ufunc) and given.__module__ == "pullback"
    return given is make_elementwise(ORACLE)[name] or (
        of_ours and given.__name__ == f"elementwise.{name}"
    )


primitives: Final[Mapping[str, Any]] = make_elementwise(BACKEND)
globals().update(primitives)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

"""Elementwise operations in plain NumPy, built from the rows of the table."""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.jacobians import Diagonal, Jacobian
from pullback.jacobians.moves import broadcasting
from pullback.protocol import as_arrays, named_after
from pullback.shapes import broadcast_shapes
from pullback.tables.elementwise import OPS, REFERENCE_MAX_ULP, OpRow, SpecialPoint

__all__ = [
    "Binary",
    "Elementwise",
    "Unary",
    "broadcast_shape",
    "check_cotangent",
    "deliver",
    "docstring",
    "elementwise",
    "leaves",
    "method_docstring",
    "partial_jacobian",
    "sum_repeated",
]

Array: TypeAlias = npt.NDArray[Any]


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
        return Diagonal(self.derivative(x), copy=False)


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
        return partial_jacobian(dw, np.shape(w)), partial_jacobian(dx, np.shape(x))

    def _operands(self, op: str, w: npt.ArrayLike, x: npt.ArrayLike) -> tuple[Array, Array]:
        w, x = as_arrays(op, w, x)
        shape = broadcast_shape(op, w=w.shape, x=x.shape)
        return np.broadcast_to(w, shape), np.broadcast_to(x, shape)


def broadcast_shape(op: str, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return what the named shapes broadcast to, or raise a ValueError that names them."""
    try:
        return broadcast_shapes(*shapes.values())
    except ValueError:
        listed = ", ".join(f"{name} has shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"{op}: {listed}: they do not broadcast") from None


def check_cotangent(
    op: str, g: tuple[int, ...], shape: tuple[int, ...], **operands: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the batch axes that a cotangent of shape `g` has in front of the value's `shape`."""
    n_batch = len(g) - len(shape)
    if n_batch < 0 or g[n_batch:] != shape:
        listed = " and ".join(f"{name} {operand}" for name, operand in operands.items())
        raise ValueError(
            f"{op}: g has shape {g}, which must end in {shape}, the broadcast shape of {listed}"
        )
    return g[:n_batch]


def partial_jacobian(slopes: Any, shape: tuple[int, ...]) -> Jacobian:
    """Return the Jacobian by an operand of a `shape` that was broadcast to that of `slopes`."""
    diagonal = Diagonal(slopes, copy=False)
    jacobian: Jacobian = diagonal @ broadcasting(shape, diagonal.output_shape, diagonal.dtype)
    return jacobian


def sum_repeated(terms: Any, batch: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Sum `terms`, shaped ``batch + broadcast``, over the axes along which `shape` was repeated.

    The sum accumulates in float64; where nothing was repeated, `terms` keep their bits.
    """
    if terms.shape == batch + shape:  # also of what has no reshape, such as a pandas Series
        return terms
    if terms.size == math.prod(batch + shape):
        return terms.reshape(batch + shape)
    new_axes = terms.ndim - len(shape)
    axes = (
        *range(len(batch), new_axes),
        *(new_axes + i for i, n in enumerate(shape) if terms.shape[new_axes + i] != n),
    )
    with np.errstate(all="ignore"):
        total = np.sum(terms, axis=axes, dtype=np.float64)
        return total.astype(terms.dtype).reshape(batch + shape)


# --- out= -----------------------------------------------------------------------------------------


def leaves(tree: Any) -> Iterator[Any]:
    """Yield what a nested tuple holds, from left to right."""
    if isinstance(tree, tuple):
        for branch in tree:
            yield from leaves(branch)
    else:
        yield tree


def _rebuild(tree: Any, leaves: Iterator[Any]) -> Any:
    """Return a nested tuple shaped like `tree` that holds `leaves`."""
    if isinstance(tree, tuple):
        return tuple(_rebuild(branch, leaves) for branch in tree)
    return next(leaves)


def deliver(op: str, results: Any, out: Any) -> Any:
    """Return `results`, an array or nested tuple, in `out` where that is given.

    All of `out` is checked before any of it is written.
    """
    arrays = [np.asarray(result) for result in leaves(results)]
    outs = [None] * len(arrays) if out is None else list(leaves(out))
    if len(outs) != len(arrays):
        raise ValueError(f"{op}: out holds {len(outs)} arrays, there are {len(arrays)} results")
    for array, target in zip(arrays, outs, strict=True):
        if target is not None:
            _check_out(op, array, target)
    for array, target in zip(arrays, outs, strict=True):
        if target is not None:
            np.copyto(target, array, casting="same_kind")
    delivered = (
        array[()] if target is None else target for array, target in zip(arrays, outs, strict=True)
    )
    return _rebuild(results, delivered)


def _check_out(op: str, array: Array, target: Any) -> None:
    if not isinstance(target, np.ndarray):
        raise TypeError(f"{op}: out must hold arrays, not {type(target).__name__}")
    if target.shape != array.shape:
        raise ValueError(f"{op}: out has shape {target.shape}, the result {array.shape}")
    if not np.can_cast(array.dtype, target.dtype, "same_kind"):
        raise TypeError(f"{op}: out has dtype {target.dtype}, the result {array.dtype}")
    if not target.flags.writeable:
        raise ValueError(f"{op}: out is read-only")


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


# --- the twins ------------------------------------------------------------------------------------


def _build(row: OpRow) -> Elementwise:
    return named_after(Unary if row.nin == 1 else Binary, row.name)(row)


elementwise: Final[Mapping[str, Elementwise]] = MappingProxyType(
    {name: _build(row) for name, row in OPS.items()}
)

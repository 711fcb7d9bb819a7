"""Elementwise primitives: NumPy ufuncs that know their derivatives, or their NumPy twins.

A native primitive is a genuine `numpy.ufunc`; its single-output methods are ufuncs too, and its
methods with several outputs are callables that enter the kernel directly for plain arrays and come
here for everything else. Names are dotted (``elementwise.tanh.vjp``) so that every one of them
pickles by name, and so that pandas does not mistake ``greater`` for the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pullback import reference
from pullback.config import native
from pullback.jacobians import Diagonal, Jacobian
from pullback.protocol import as_arrays, shape_of
from pullback.reference.elementwise import (
    broadcast_shape,
    check_cotangent,
    deliver,
    docstring,
    leaves,
    method_docstring,
    partial_jacobian,
    sum_repeated,
)
from pullback.tables.elementwise import OPS, OpRow

__all__ = ["primitives"]


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
        return Diagonal(primitive.derivative(x), copy=False)

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
        op = f"{name}.jacobian"
        shapes = {"w": shape_of(op, "w", w), "x": shape_of(op, "x", x)}
        broadcast_shape(op, **shapes)
        slopes = primitive.derivative(w, x)
        of_w, of_x = map(partial_jacobian, slopes, shapes.values())
        return of_w, of_x

    return {
        "derivative": derivative,
        "value_and_derivative": value_and_derivative,
        "vjp": vjp,
        "jacobian": jacobian,
    }


def _refuse(*arrays: Any) -> Any:
    shapes = ", ".join(str(array.shape) for array in arrays)
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


primitives: Final[Mapping[str, Any]] = MappingProxyType(
    {
        name: getattr(reference, name) if native is None else _native_primitive(native, row)
        for name, row in OPS.items()
    }
)
globals().update(primitives)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

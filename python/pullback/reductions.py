"""Reductions and maps of rows: value, gradient and products with the Jacobian in few passes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial, reduce
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.elementwise import make_elementwise
from pullback.engine import BACKEND, OF_VJP, Engine, enter, private, with_methods
from pullback.foreign import door_of
from pullback.jacobians.primitives import of_reduction
from pullback.jacobians.rows import RowWise
from pullback.masks import Packed, Weighted, unmasked
from pullback.protocol import (
    WRT,
    Outputs,
    aligned,
    arrays_of_vjp,
    as_array,
    as_flag,
    as_ints,
    as_number,
    broadcast_shape,
    check_cotangent,
    check_labels,
    check_where,
    check_wrt,
    flat_outs,
    is_weak,
    kernel_dtype,
    method,
    methods_and_example,
    result_dtype,
    tangents_of,
)
from pullback.registry import Hinted, Registry, attributes
from pullback.second_order import SecondOrder
from pullback.shapes import check_axes
from pullback.slices import AXES, Axis, Slices
from pullback.tables.reductions import REDUCTIONS, Parameter, ReductionRow

__all__ = ["Reduction", "RowMap", "make_reductions", "reductions"]

Array: TypeAlias = npt.NDArray[Any]

_ONES: Final = object()  # the cotangent of a gradient


class _Rows(Hinted):
    """The base of reductions and maps of rows: a row of the table, on an engine.

    Parameters
    ----------
    row : ReductionRow
        Its row in the table.
    engine : Engine
        The functions that it calls.
    """

    ABOUT: str

    def __init__(self, row: ReductionRow, engine: Engine) -> None:
        self.row = row
        self._engine = engine
        self.__name__ = self.__qualname__ = row.name
        self.__module__ = engine.module("reductions")
        methods = _methods(row)
        self.__doc__ = _docstring(row, self.ABOUT, methods)
        own: Any = type(type(self).__name__, (type(self),), methods)
        self.__class__ = own  # whose methods have the row's signature
        if not engine.is_native:
            self.vjp = with_methods(self.vjp, self, engine)  # type: ignore[has-type]
            return
        about = row.parameter
        called, default, valid = "", 0.0, None
        if about is not None:
            called, default, valid = about.name, about.default or 0.0, about.test

        def make(name: str, fallback: Any) -> Any:
            maker = engine.kernels.reduction_method
            return maker(row.name, name, called, default, valid, fallback)

        for name in _METHODS:
            if not hasattr(self, name):  # a map has no gradient
                continue
            call = enter(partial(make, name), self, name, row.name, self.__module__)
            setattr(self, name, call)
            if name == "vjp":
                with_methods(call, self, engine, make)
            if name == "value":  # which Python looks up on the class, one of its own
                own.__call__ = call

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

    def _trace(self, door: Any, operands: tuple[Any, ...], p: Any, **options: Any) -> Any:
        """Return the value as a node of autograd's graph."""
        about = self.row.parameter
        options |= {} if about is None else {about.name: p}
        if options.get("b") is None:
            options.pop("b", None)
        return door.traced(self)(*operands, **options)

    def _kernels(
        self, op: str, slices: Slices, axis: Axis, where: Any, b: Any = None, kernels: Any = None
    ) -> Any:
        """Return the engine's functions, for the elements that are kept and with their weights."""
        kernels, row = self._engine.kernels if kernels is None else kernels, self.row
        keep = check_where(op, where, slices.shape, "x")
        if b is not None:
            weights = np.broadcast_to(b, slices.shape)
            keep = np.logical_and(keep, weights != 0)
        keep = np.broadcast_to(as_array(op, "where", keep), slices.shape)
        if not keep.all():
            blocks = slices.take(keep)
            if row.empty is None and not row.is_map and not blocks.any(axis=1).all():
                along = "all axes" if axis is None else f"axis {axis}"
                raise ValueError(f"{op}: where leaves no elements along {along}")
            kernels = Packed(kernels, row, blocks)
        if b is not None:
            kernels = Weighted(kernels, slices.take(np.where(keep, weights, 0).astype(np.float64)))
        return kernels

    def _slices(self, op: str, arrays: tuple[Array, ...], axis: Axis, keepdims: bool) -> Slices:
        del keepdims
        return Slices.of(op, arrays[0], axis, ordered=self.row.ordered)

    def _of_vjp(
        self,
        name: str,
        operands: tuple[Any, ...],
        p: Any,
        given: tuple[Any, ...],
        axis: Axis,
        keepdims: bool,
        where: Any,
        b: Any,
        wrt: Any,
        out: Any,
    ) -> Any:
        """Return the tangents of vjp's results, or the cotangents of its arguments."""
        op, row = self._op(name), self.row
        names, of_tangents = row.operands, name == "vjp.jvp"
        parameter = self._parameter(op, p)
        asked = check_wrt(op, wrt, names if of_tangents else (*names, "g"))
        operands, where = unmasked(operands, where)
        called = _given(row, name)
        check_labels(op, (*names, *called), (*operands, *given))
        if b is not None:  # an operand without a tangent
            b = as_array(op, "b", b)

        def shapes(*arrays: Array) -> tuple[Slices, tuple[int, ...]]:
            if b is not None:
                _check_weights(op, arrays[0], b)
            slices = self._slices(op, arrays, axis, keepdims)
            return slices, slices.shape if row.is_map else slices.result_shape(keepdims)

        primals, (g, *factors), slices, stack = arrays_of_vjp(
            op, names, operands, given, called, shapes, of_tangents=of_tangents
        )
        dtype = primals[0].dtype if b is None else result_dtype(op, primals[0], b, names=("x", "b"))
        kernels = SecondOrder(self._engine.kernels, self._power, REDUCTIONS)
        kernels = self._kernels(op, slices, axis, where, b, kernels)
        check_axes(op, stack + slices.shape)
        front = stack if of_tangents else ()
        shapes_of = [front + slices.shape if k < len(names) else g.shape for k in asked.operands]
        outputs = Outputs(
            op,
            flat_outs(op, out, asked.result(range(len(shapes_of)))),
            shapes_of,
            dtype,
            (*primals, g, *factors),
            single=asked.single,
        )
        results: list[Any] = [None] * len(shapes_of)
        if primals[0].size > 0:
            run = _SecondOrderCall(kernels, row, parameter, slices, primals, asked.operands)
            for index in np.ndindex(*stack):
                own = [a if a is None or of_tangents else a[index] for a in factors[: len(names)]]
                tg = factors[-1][index] if of_tangents and factors[-1] is not None else None
                for i, part in enumerate(run(g[index], own, tg)):
                    if part is None or not stack:
                        results[i] = part
                        continue
                    if results[i] is None:
                        results[i] = np.zeros(shapes_of[i])
                    whole = of_tangents or asked.operands[i] == len(names)
                    results[i][index if whole else ...] += part
        with np.errstate(all="ignore"):
            narrow = [
                np.zeros(shape, dtype) if result is None else result.astype(dtype, copy=False)
                for result, shape in zip(results, shapes_of, strict=True)
            ]
        delivered = outputs.deliver(narrow)
        return asked.result([a if out is not None else a[()] for a in delivered])

    @property
    def _power(self) -> Any:
        return make_elementwise(self._engine)["power"]


class _SecondOrderCall:
    """A call of a method of vjp's, for one cotangent of a stack after the other."""

    def __init__(
        self,
        kernels: Any,
        row: ReductionRow,
        parameter: float,
        slices: Slices,
        primals: Sequence[Array],
        wrt: tuple[int, ...],
    ) -> None:
        self._kernels, self._row, self._p, self._slices = kernels, row, parameter, slices
        self._x = tuple(map(self._blocks, primals))
        self._wrt = wrt

    def _blocks(self, array: Array) -> Array:
        return self._slices.take(array).astype(np.float64, copy=False)

    def _of_values(self, g: Array) -> Array:
        """Return an array of the value's shape as the kernels take it."""
        if self._row.is_map:
            return self._blocks(g)
        return self._slices.take_results(g).astype(np.float64, copy=False)

    def _first(self, method: str, v: Any, outs: Sequence[Array]) -> None:
        """Write first-order products with a cotangent, or with tangents."""
        kernels, name, p = self._kernels, self._row.name, self._p
        if self._row.is_map:
            v = v[0] if method == "jvp" else v
            kernels.transform_slices(name, p, method, self._x[0], v, outs[0])
        elif method == "vjp":
            kernels.reduce_slices(name, p, self._x, v, None, tuple(outs))
        else:
            kernels.reduce_tangents(name, p, self._x, v, outs[0])

    def __call__(
        self, g: Array, given: Sequence[Array | None], tg: Array | None
    ) -> Iterator[Array | None]:
        """Yield what is asked for, for one cotangent: H and vjp for operands, jvp for `g`."""
        slices = self._slices
        t = tuple(None if a is None else self._blocks(a) for a in given)
        moves = any(a is not None for a in t)
        parts: list[list[Array]] = []
        if moves and any(k < len(t) for k in self._wrt):
            parts.append([np.empty(slices.blocks) for _ in t])
            args = self._x, self._of_values(g), t, tuple(parts[-1])
            self._kernels.second_slices(self._row.name, self._p, *args)
        if tg is not None:
            parts.append([np.empty(slices.blocks) for _ in t])
            self._first("vjp", self._of_values(tg), parts[-1])
        for k in self._wrt:
            if k < len(t):
                terms = [slices.give(part[k]) for part in parts]
                with np.errstate(all="ignore"):  # of infinities
                    total = reduce(np.add, terms) if terms else None  # `sum` is a primitive here
                yield total
            elif moves:
                outer, _, inner = slices.blocks
                room = np.empty(slices.blocks if self._row.is_map else (outer, inner))
                self._first("jvp", t, [room])
                yield (
                    slices.give(room)
                    if self._row.is_map
                    else slices.give_results(room, False).reshape(g.shape)
                )
            else:
                yield None


class Reduction(_Rows):
    """A reduction of the elements along one axis, several axes, or all.

    Parameters
    ----------
    row, engine
        Its row in the table, and the functions that it calls.
    """

    ABOUT = (
        "The gradient has the operand's shape: each element is the derivative of its slice's "
        "result with respect to it. Sums accumulate in float64 over a fixed tree of blocks, so "
        "the bits are the same for any number of threads. float32 results are rounded once."
    )

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

    def _with_weights(
        self, op: str, given: tuple[Any, ...], names: tuple[str, ...], b: Any
    ) -> tuple[tuple[Array, ...], Any]:
        """Return arrays and weights, all of their common dtype."""
        if b is None:
            return aligned(op, *given, names=names), None
        *arrays, weights = aligned(op, *given, b, names=(*names, "b"))
        _check_weights(op, arrays[0], weights)
        return tuple(arrays), weights

    def _reduce(
        self, kernels: Any, slices: Slices, arrays: Any, p: float, g: Any, values: Any, slopes: Any
    ) -> None:
        """Fill `values` (outer, inner) and `slopes` (outer, n, inner), either of them or both."""
        if slices.n > 0:
            blocks = tuple(map(slices.take, arrays))
            kernels.reduce_slices(self.row.name, p, blocks, g, values, slopes)
        elif values is not None:
            values.fill(self.row.empty)

    def _value(
        self,
        method: str,
        operands: tuple[Any, ...],
        p: Any,
        axis: Axis,
        keepdims: bool,
        out: Any,
        where: Any,
        b: Any = None,
    ) -> Any:
        if (door := door_of(*operands)) is not None:
            return self._trace(door, operands, p, axis=axis, keepdims=keepdims, where=where, b=b)
        op = self._op(method)
        parameter = self._parameter(op, p)
        operands, where = unmasked(operands, where)
        check_labels(op, self.row.operands, operands)
        arrays, b = self._with_weights(op, operands, self.row.operands, b)
        slices = self._slices(op, arrays, axis, keepdims)
        kernels = self._kernels(op, slices, axis, where, b)
        outer, _, inner = slices.blocks
        dtype = arrays[0].dtype
        shape = slices.result_shape(keepdims)
        outputs = Outputs(op, out, (shape,), dtype, arrays, single=True)
        (target,) = slices.targets(outputs, (outer, inner))
        values = np.empty((outer, inner), dtype) if target is None else target
        self._reduce(kernels, slices, arrays, parameter, None, values, None)
        (value,) = outputs.deliver((slices.give_results(values, keepdims),))
        return value if out is not None else value[()]

    def _gradients(
        self,
        method: str,
        operands: tuple[Any, ...],
        p: Any,
        axis: Axis,
        keepdims: bool,
        where: Any,
        b: Any = None,
        wrt: Any = 0,
        out: Any = None,
        g: Any = _ONES,
    ) -> Any:
        """Return the gradients that `wrt` asks for, after the value if that is wanted."""
        op = self._op(method)
        parameter = self._parameter(op, p)
        names = self.row.operands
        asked = check_wrt(op, wrt, names)
        operands, where = unmasked(operands, where)
        given = operands if g is _ONES else (*operands, g)
        if g is None:
            raise TypeError(f"{op}: g is None, which is no cotangent")
        check_labels(op, names, operands)
        everything, b = self._with_weights(op, given, (*names, "g")[: len(given)], b)
        arrays = everything[: len(names)]
        slices = self._slices(op, arrays, axis, keepdims)
        kernels = self._kernels(op, slices, axis, where, b)
        outer, n, inner = slices.blocks
        dtype, shape = arrays[0].dtype, slices.result_shape(keepdims)
        stack: tuple[int, ...] = ()
        cotangents = None
        if g is not _ONES:
            cotangents = np.broadcast_to(everything[-1], shape) if is_weak(g) else everything[-1]
            stack = check_cotangent(op, cotangents.shape, shape, x=slices.shape)
            check_axes(op, stack + slices.shape)
        value = [shape] * (method == "value_and_grad")
        shapes = (*value, *[stack + slices.shape] * len(asked.operands))
        like = asked.result(range(len(asked.operands)))
        flat = flat_outs(op, out, (0, like) if value else like)
        single = not value and asked.single
        outputs = Outputs(op, flat, shapes, dtype, everything, single=single)

        views = (*[(outer, inner) for _ in value], *[(outer, n, inner)] * len(asked.operands))
        targets = slices.targets(outputs, *views) if not stack else (None,) * len(views)
        rooms = [
            np.empty(view, dtype) if target is None else target
            for target, view in zip(targets, views, strict=True)
        ]
        values, of_asked = rooms[0] if value else None, rooms[len(value) :]
        asked_rooms = dict(zip(asked.operands, of_asked, strict=True))
        slopes = [  # the engine computes those that are not asked for, too
            asked_rooms[k] if k in asked_rooms else np.empty((outer, n, inner), dtype)
            for k in range(len(names))
        ]
        results: list[Any] = [np.empty(stack + slices.shape, dtype) for _ in of_asked if stack]
        for index in np.ndindex(*stack):
            of_slices = None if cotangents is None else slices.take_results(cotangents[index])
            self._reduce(kernels, slices, arrays, parameter, of_slices, values, tuple(slopes))
            for result, room in zip(results, of_asked, strict=False):
                result[index] = slices.give(room)
        if not stack:
            results = [slices.give(room) for room in of_asked]
        if values is not None:
            results.insert(0, slices.give_results(values, keepdims))
        delivered = outputs.deliver(results)
        gradients = asked.result(delivered[len(value) :])
        if not value:
            return gradients
        return (delivered[0][()] if flat is None or flat[0] is None else delivered[0]), gradients

    def _push(
        self,
        method: str,
        operands: tuple[Any, ...],
        p: Any,
        tangents: tuple[Any, ...],
        axis: Axis,
        keepdims: bool,
        out: Any,
        where: Any,
        b: Any = None,
    ) -> Any:
        op = self._op(method)
        parameter = self._parameter(op, p)
        names, t_names = self.row.operands, _tangents(self.row)
        operands, where = unmasked(operands, where)
        check_labels(op, (*names, *t_names), (*operands, *tangents))
        arrays, given = tangents_of(op, operands, tangents, names, t_names)
        if b is not None:
            arrays, b = self._with_weights(op, arrays, names, b)
            given = tuple(t if t is None else t.astype(arrays[0].dtype) for t in given)
        slices = self._slices(op, arrays, axis, keepdims)
        kernels = self._kernels(op, slices, axis, where, b)
        outer, n, inner = slices.blocks
        dtype, shape = arrays[0].dtype, slices.result_shape(keepdims)
        outputs = Outputs(op, out, (shape,), dtype, (*arrays, *given), single=True)
        (target,) = slices.targets(outputs, (outer, inner))
        values = np.empty((outer, inner), dtype) if target is None else target
        if n > 0 and any(t is not None for t in given):
            blocks = tuple(map(slices.take, arrays))
            moved = tuple(None if t is None else slices.take(t) for t in given)
            kernels.reduce_tangents(self.row.name, parameter, blocks, moved, values)
        else:
            values.fill(0.0)
        (value,) = outputs.deliver((slices.give_results(values, keepdims),))
        return value if out is not None else value[()]

    def _jacobians(
        self,
        operands: tuple[Any, ...],
        p: Any,
        axis: Axis,
        keepdims: bool,
        where: Any,
        b: Any = None,
        wrt: Any = 0,
    ) -> Any:
        if type(keepdims) is not bool:
            keepdims = as_flag(self._op("jacobian"), "keepdims", keepdims)
        axis = _hashable(self._op("jacobian"), axis)
        given, options = operands, dict[str, Any]()
        if self.row.parameter is not None:
            given, options = _with_parameter(self.row.parameter, operands, p)
        options |= {"where": where} | ({} if b is None else {"b": b})
        options |= {"wrt": wrt} if len(operands) > 1 else {}
        try:
            slopes = self.grad(*given, axis=axis, **options)  # type: ignore[attr-defined]
            if type(slopes) is tuple:
                return tuple(of_reduction(each, axis, keepdims) for each in slopes)
            return of_reduction(slopes, axis, keepdims)
        except (TypeError, ValueError):  # again, for the name in the message
            self._gradients("jacobian", operands, p, axis, keepdims, where, b, wrt)
            raise


class RowMap(_Rows):
    """A map of rows: each element of the result depends on the elements of its slice.

    Parameters
    ----------
    row, engine
        Its row in the table, and the functions that it calls.
    """

    ABOUT = (
        "Results have the operand's shape. Sums accumulate in float64 over a fixed tree of "
        "blocks, so the bits are the same for any number of threads."
    )

    def _transform(
        self, method: str, x: Any, v: Any, p: Any, axis: Axis, out: Any, where: Any
    ) -> Any:
        if not method and (door := door_of(x)) is not None:
            return self._trace(door, (x,), p, axis=axis, where=where)
        op = self._op(method)
        parameter = self._parameter(op, p)
        (x,), where = unmasked((x,), where)
        stack: tuple[int, ...] = ()
        check_labels(op, ("x", "t" if method == "jvp" else "g"), (x, v))
        if method == "jvp":
            (x,), (v,) = tangents_of(op, (x,), (v,), ("x",), ("t",))
        elif method:
            given = v
            x, v = aligned(op, x, v, names=("x", "g"))
            v = np.broadcast_to(v, x.shape) if is_weak(given) else v
            stack = check_cotangent(op, v.shape, x.shape, x=x.shape)
        else:
            (x,) = aligned(op, x, names=("x",))
        slices = self._slices(op, (x,), axis, False)
        kernels = self._kernels(op, slices, axis, where)
        outputs = Outputs(op, out, (stack + x.shape,), x.dtype, (x, v), single=True)
        (target,) = slices.targets(outputs, slices.blocks) if not stack else (None,)
        room = np.empty(slices.blocks, x.dtype) if target is None else target
        result = np.empty(stack + x.shape, x.dtype) if stack else None
        for index in np.ndindex(*stack):
            if method and v is None:
                room.fill(0)
            elif room.size > 0:
                blocks = slices.take(x), None if v is None else slices.take(v[index])
                kernels.transform_slices(self.row.name, parameter, method, *blocks, room)
            if result is not None:
                result[index] = slices.give(room)
        (delivered,) = outputs.deliver((slices.give(room) if result is None else result,))
        return delivered

    def _jacobian(self, x: Any, p: Any, axis: Axis, where: Any) -> Any:
        op, options = self._op("jacobian"), dict[str, Any]()
        (x,), where = unmasked((x,), where)
        array = as_array(op, "x", x)
        x = np.array(array, kernel_dtype(op, "x", array.dtype))
        axis = _hashable(op, axis)
        if type(axis) is not int or not -x.ndim <= axis < x.ndim:
            Slices.of(op, x, axis)  # for what it raises
        if (about := self.row.parameter) is not None:
            p = p if type(p) is float and about.test(p) else self._parameter(op, p)
            options = {about.name: p}
        if where is not True:
            options["where"] = np.array(check_where(op, where, x.shape, "x"))
        return RowWise(self, x, axis, options)


def _check_weights(op: str, x: Array, b: Array) -> None:
    if broadcast_shape(op, x=x.shape, b=b.shape) != x.shape:
        raise ValueError(f"{op}: b has shape {b.shape}, x has {x.shape}")


def _hashable(op: str, axis: Any) -> Any:
    """Return axes that Jacobians can hold and compare: a tuple for a list or an array."""
    return axis if axis is None or type(axis) is int else as_ints(op, "axis", axis, AXES)


def _with_parameter(
    about: Parameter, operands: tuple[Any, ...], p: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return operands and a parameter as a method's positional and keyword arguments."""
    return ((*operands, p), {}) if about.default is None else (operands, {about.name: p})


# --- methods, from a row --------------------------------------------------------------------------


def _methods(row: ReductionRow) -> dict[str, Any]:
    """Return the methods of a reduction or a map of rows, from its row."""
    names = ("value", "vjp", "jvp", "jacobian")
    made = {name: _method(row, name) for name in (names if row.is_map else _METHODS)}
    made["__call__"] = _method(row, "value")
    return made | {private(name): _method(row, name) for name in OF_VJP}


_METHODS: Final = ("value", "grad", "value_and_grad", "vjp", "jvp", "jacobian")


def _method(row: ReductionRow, name: str) -> Any:
    """Return a method, which takes the parameter where the table wants it."""
    about = row.parameter
    p = "None" if about is None else about.name
    option, keywords = "", list[str]()
    if about is not None and about.default is not None:
        given_later = f"{p}={about.default!r}"
        if about.keyword_only:
            keywords.append(given_later)
        else:
            option = f", {given_later}"
    operands = ", ".join(row.operands)
    tangents = ", ".join(_tangents(row))
    behind = ", ".join(_given(row, name))
    extra = {"vjp": "g, ", "jvp": f"{tangents}, "}.get(name, f"{behind}, " if behind else "")
    several = len(row.operands) > 1 and name not in ("value", "jvp")
    several |= name == "vjp.vjp"
    wrt = "wrt" if several else "0"
    axis = f"axis=-1{option}" if row.is_map else f"axis=None{option}, keepdims=False"
    out = "" if name == "jacobian" else ", out=None"
    keywords += ["wrt='all'"] * several + ["b=None"] * row.weighs + ["where=True"]
    parameters = f"self, {', '.join(row.leading)}, {extra}{axis}{out}, *, {', '.join(keywords)}"
    given = f"({operands},), {p}"
    some = "where, b" if row.weighs else "where"
    rest = f"axis, keepdims, where, {'b' if row.weighs else None}, {wrt}, out"
    call = {
        "value": f"self._value('', {given}, axis, keepdims, out, {some})",
        "grad": f"self._gradients('grad', {given}, {rest})",
        "value_and_grad": f"self._gradients('value_and_grad', {given}, {rest})",
        "vjp": f"self._gradients('vjp', {given}, {rest}, g)",
        "jvp": f"self._push('jvp', {given}, ({tangents},), axis, keepdims, out, {some})",
        "jacobian": f"self._jacobians({given}, {rest.removesuffix(', out')})",
    }
    if row.is_map:
        call = {
            "value": f"self._transform('', x, None, {p}, axis, out, where)",
            "vjp": f"self._transform('vjp', x, g, {p}, axis, out, where)",
            "jvp": f"self._transform('jvp', x, t, {p}, axis, out, where)",
            "jacobian": f"self._jacobian(x, {p}, axis, where)",
        }
    if name in OF_VJP:
        kept = "False" if row.is_map else "keepdims"
        weights = "b" if row.weighs else "None"
        arrays = f"({behind},), axis, {kept}, where, {weights}"
        body = f"self._of_vjp({name!r}, {given}, {arrays}, {wrt}, out)"
        owner, _, last = name.partition(".")
        doc = _docstring_of_vjp(row, name)
        function = method(f"{row.name}.{owner}", last, parameters, body, doc)
        function.__name__ = private(name)  # by which pickle finds it
        return function
    return method(row.name, name, parameters, call[name], _method_docstring(row, name))


def _tangents(row: ReductionRow) -> tuple[str, ...]:
    return ("t",) if len(row.operands) == 1 else tuple(f"t{name}" for name in row.operands)


def _shown(default: float) -> str:
    """Return a parameter's default as text."""
    return str(default) if type(default) is bool else f"{default:g}"


def _given(row: ReductionRow, name: str) -> tuple[str, ...]:
    """Return the names of the arrays behind the operands that a method of vjp's takes."""
    if name not in OF_VJP:
        return ()
    tangents = _tangents(row)
    if name == "vjp.jvp":
        return ("g", *tangents, "tg")
    return ("g", *(t.replace("t", "h") for t in tangents))


def _method_docstring(row: ReductionRow, name: str) -> str:
    """Return the numpydoc docstring of a method, from its row."""
    several = len(row.operands) > 1
    shape = f"the shape of `{row.operands[0]}`"
    reduced = shape if row.is_map else f"{shape} without the reduced axes"
    gradients = ", ".join(f"g{n}" for n in row.operands) if several else "gradient"
    each = f"{gradients} : {'tuple of ' * several}ndarray, in {shape}"
    whole = f"ndarray or scalar, in {reduced}"
    summary, result, target = {
        "value": (row.summary + ("" if row.is_map else " of each slice"), whole, "ndarray"),
        "grad": (
            "Return the gradient of each value with respect to its slice: `vjp` with ones",
            each,
            "tuple of (ndarray or None)" if several else "ndarray",
        ),
        "value_and_grad": (
            "Return value and gradient, in one pass over the operand where possible",
            f"value, {f'({gradients})' if several else gradients} : tuple, in the shapes of "
            "`value` and `grad`",
            "tuple of (ndarray or None)" + " and a tuple of two such" * several,
        ),
        "vjp": (
            "Return the product of a cotangent with the Jacobian",
            each if not row.is_map else f"ndarray, in {shape}",
            "tuple of (ndarray or None)" if several else "ndarray",
        ),
        "jvp": ("Return the tangent of the result", whole, "ndarray"),
        "jacobian": (
            "Return the Jacobian as diagonals and sums, which store as many elements as x"
            if row.is_map
            else "Return the Jacobian: dense for a single value, else a sum of a diagonal",
            f"{'Jacobian or tuple of ' * several}Jacobian, which stores as many elements as `x` "
            "has",
            "",
        ),
    }[name]
    lines = [f"{summary}.", "", "Parameters", "----------", *_primals(row)]
    if name == "vjp":
        lines += ["g : array_like", f"    Cotangent, in {reduced}."]
    if name == "jvp":
        lines += [f"{', '.join(_tangents(row))} : array_like", f"    In {shape}; None is zero."]
    lines += _options(row)
    hidden = f"the result there is {row.hidden:g}" if row.is_map and name == "value" else ""
    hidden = hidden or "their derivative is 0"
    lines += [
        "where : array_like of bool",
        "    Which elements count; broadcasts to the shape of `x`. The others have no influence,",
        f"    and {hidden}. Elements that a masked array hides do not count, either.",
    ]
    if several and name not in ("value", "jvp"):
        lines += [*WRT]
    if target:
        lines += [f"out : {target}, optional", "    Where the result goes."]
    lines += ["", "Returns", "-------", result, "", "Raises", "------", "TypeError"]
    lines += ["    If a dtype has no kernel (complex, object, ...)."]
    lines += ["numpy.exceptions.AxisError", "    If there is no such axis.", "ValueError"]
    fits = "    If a shape or `out` does not fit" if target else "    If a shape does not fit"
    empty = ", or a slice is empty" if row.empty is None and not row.is_map else ""
    return "\n".join([*lines, f"{fits}{empty}."])


def _primals(row: ReductionRow) -> list[str]:
    """Return what docstrings say of the operands and the parameter."""
    about, several = row.parameter, len(row.operands) > 1
    one = ", of one shape, which do not broadcast" if several else ", any shape"
    lines = [
        f"{', '.join(row.operands)} : array_like{one}",
        "    bool, 8- and 16-bit integers and float16 compute in float32, wider integers in",
        "    float64.",
    ]
    if about is not None:
        kind = "bool" if type(about.default) is bool else "float"
        default = "" if about.default is None else f", default {_shown(about.default)}"
        lines += [f"{about.name} : {kind}{default}"]
        lines += [f"    {about.role}. It needs to be {about.text}."]
    return lines


def _options(row: ReductionRow) -> list[str]:
    """Return what docstrings say of the axes and the weights."""
    lines = ["axis : int, tuple of int, or None"]
    if row.is_map:
        lines += ["    The axes of a slice, whose elements belong together; None for all axes."]
        lines += ["    Of several axes they are in C order."] * row.ordered
    else:
        lines += [
            "    The axes to reduce; None for all.",
            "keepdims : bool",
            "    Whether to keep the reduced axes, with length 1.",
        ]
    if row.weighs:
        lines += [
            "b : array_like, optional",
            "    Weights of the exponentials, of any sign; they broadcast to the shape of `x`.",
            "    They have no derivative. An element with weight 0 does not count.",
        ]
    return lines


def _docstring_of_vjp(row: ReductionRow, name: str) -> str:
    """Return the numpydoc docstring of a method of vjp's, from its row."""
    operands, several = row.operands, len(row.operands) > 1
    given = ", ".join(_given(row, name)[1:])
    gradients = ", ".join(f"g{n}" for n in operands)
    named = ", ".join(f"`{n}`" for n in operands)
    of_tangents = name == "vjp.jvp"
    if of_tangents:
        summary = f"Return the tangent{'s' * several} of what vjp returns"
        about = f"{given} : array_like or None, the shapes of {named} and `g`"
        more = "Tangents; None is zero, and a Python number fills its argument's shape."
        result = f"the tangent{'s' * several} of {gradients} : ndarray, shape of vjp's"
        what = "H(t) + vjp(tg)"
    else:
        summary = "Return the cotangents of what vjp takes"
        about = f"{given} : array_like or None, the shape{'s' * several} of what vjp returns"
        more = "Cotangents; None is zero, and a Python number fills the shape."
        result = f"the cotangents of {', '.join((*operands, 'g'))} : ndarray, their shapes"
        what = "H(h) and jvp(h)"
    formulas = " and ".join(f"g*({formula})" for formula in row.second_formula)
    if row.is_map:
        formulas = row.second_formula[0]
    reduced = "the shape of `x`" if row.is_map else "the shape of the value"
    lines = [f"{summary}.", "", "Parameters", "----------", *_primals(row)]
    lines += ["g : array_like", f"    Cotangent, in {reduced}; the axes of a stack may precede it."]
    lines += [about, f"    {more}", *_options(row)]
    lines += [
        "where : array_like of bool",
        "    Which elements count; broadcasts to the shape of `x`. The others have no influence,",
        "    and their derivative is 0.",
    ]
    lines += [*WRT] if several or not of_tangents else []
    kind = "ndarray" if of_tangents and not several else "tuple of (ndarray or None)"
    lines += [f"out : {kind}, optional", "    Where the result goes."]
    lines += ["", "Returns", "-------", result, f"    {what}. The i-th element of H(t) is"]
    lines += textwrap.wrap(f"``{formulas}``.", 92, initial_indent="    ", subsequent_indent="    ")
    lines += ["", "Raises", "------", "TypeError"]
    lines += ["    If a dtype has no kernel (complex, object, ...)."]
    lines += ["ValueError", "    If a shape or `out` does not fit."]
    return "\n".join(lines)


def _docstring(row: ReductionRow, kind: str, methods: Mapping[str, Any]) -> str:
    """Return the docstring of a reduction, from its row."""
    about = row.parameter
    slopes = zip(row.operands, row.derivative_formula, strict=True)
    lines = [
        f"{row.summary}.",
        "",
        f"``{row.formula}``",
        "",
        *(
            f"Derivative with respect to {name}[{'j' if row.is_map else 'i'}]: ``{df}``."
            for name, df in slopes
        ),
        *textwrap.wrap(f"Conventions: {row.conventions}.", 100),
    ]
    if about is not None:
        default = "" if about.default is None else f"; {_shown(about.default)} when omitted"
        lines.append(f"Parameter: {about.name}, which needs to be {about.text}{default}.")
    named = (function for name, function in methods.items() if name != "__call__")
    end = methods_and_example(row.name, named)
    return "\n".join([*lines, f"Source: {row.source}.", "", *textwrap.wrap(kind, 100), "", end])


# --- all of them ----------------------------------------------------------------------------------


@cache
def make_reductions(engine: Engine) -> Registry:
    """Return the table's reductions and maps of rows on an engine, by name."""

    def make(name: str) -> Any:
        row = REDUCTIONS[name]
        return (RowMap if row.is_map else Reduction)(row, engine)

    return Registry(REDUCTIONS, make)


reductions: Final = make_reductions(BACKEND)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

else:
    __getattr__ = attributes(globals(), reductions)

"""Selections: operations whose results consist of elements of their operands, on any engine.

`where` and `clip` choose element by element, `take` along an axis. They are linear in what they
choose from, so that tangents are chosen as values are, and a cotangent goes to what was chosen.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence
from functools import cache, partial
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.engine import BACKEND, Engine, enter
from pullback.jacobians import Jacobian, Kronecker, Permutation
from pullback.jacobians.primitives import of_operand
from pullback.oracle import selections as oracle
from pullback.protocol import (
    WRT,
    Outputs,
    WithMethods,
    Wrt,
    as_array,
    as_arrays,
    as_ints,
    broadcast_shape,
    check_cotangent,
    check_labels,
    check_wrt,
    flat_outs,
    is_weak,
    kernel_dtype,
    method,
    methods_and_example,
    shown,
    sum_repeated,
)
from pullback.registry import Hinted, Registry, attributes
from pullback.shapes import check_axes
from pullback.tables.selections import SELECTIONS, SelectionRow

__all__ = ["Selection", "make_selections", "selections"]

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

ELEMENTWISE: Final = (
    *("__call__", "derivative", "value_and_derivative", "second_derivative"),
    *("vjp", "jvp", "jacobian"),
)
ALONG_AN_AXIS: Final = ("__call__", "vjp", "jvp", "jacobian")
OF_VJP: Final = ("vjp.jvp", "vjp.vjp")
KERNELS: Final = ("value", "derivative", "value_and_derivative", "vjp", "jvp", "vjp.jvp")


# --- methods, from a row --------------------------------------------------------------------------


def _arguments(row: SelectionRow, name: str) -> tuple[str, ...]:
    """Return the names of a method's arrays."""
    operands = tuple(row.operands)
    moved = [operands[k] for k in row.moved]
    tangents = [f"t{n}" for n in moved] if row.is_elementwise else ["t"]
    more = {
        "vjp": ["g"],
        "jvp": tangents,
        "vjp.jvp": ["g", *tangents, "tg"],
        "vjp.vjp": ["g", *(f"h{t[1:]}" for t in tangents)],
    }
    return (*operands, *more.get(name, ()))


def _attribute(name: str) -> str:
    return f"_{name.replace('.', '_')}" if name in OF_VJP else name


def _method(row: SelectionRow, name: str) -> Any:
    """Return a method of a selection."""
    names = _arguments(row, name)
    operands, more = ", ".join(row.operands), ", ".join(names[len(row.operands) :])
    axis = "" if row.is_elementwise else ", axis=None"
    out = "" if name == "jacobian" else ", out=None"
    wrt = ", *, wrt='all'" * _takes_wrt(row, name)
    parameters = f"self, {', '.join(names)}, /{axis}{out}{wrt}"
    label = {"__call__": "value"}.get(name, name.replace(".", "_"))
    given = [f"({operands},)", *[f"({more},)"] * bool(more)]
    given += ["axis"] * (not row.is_elementwise) + ["wrt"] * bool(wrt) + ["out"] * bool(out)
    owner, _, last = name.rpartition(".")
    op = f"{row.name}.{owner}" if owner else row.name
    call = f"self._{label}({', '.join(given)})"
    if name in OF_VJP:
        call = call.replace("self._vjp_", "self._of_vjp_")
    function = method(op, last, parameters, call, _docstring_of(row, name))
    if name in OF_VJP:
        function.__name__ = _attribute(name)  # by which pickle finds it
    return function


def _takes_wrt(row: SelectionRow, name: str) -> bool:
    several = row.is_elementwise and name in ("vjp", "jacobian", "vjp.jvp")
    return several or name == "vjp.vjp"


def _methods(row: SelectionRow) -> tuple[str, ...]:
    return ELEMENTWISE if row.is_elementwise else ALONG_AN_AXIS


# --- docstrings -----------------------------------------------------------------------------------


def _docstring(row: SelectionRow) -> str:
    """Return the numpydoc docstring of a selection, from its row."""
    listed = (*_methods(row)[1:], *OF_VJP)
    lines = [
        f"{row.summary}: ``{row.formula}``.",
        "",
        *_parameters(row),
        "out : ndarray, optional",
        "    Overwritten with the result; may be an operand.",
        "",
        "Returns",
        "-------",
        _result(row),
        "",
        *_raises(row),
        "",
        "Notes",
        "-----",
        *_wrapped(f"Derivative: {', '.join(f'``{f}``' for f in row.derivative_formula)}."),
        *_wrapped(f"Conventions: {row.conventions}.".replace("`", "``")),
        "",
        f"Source: {row.source}.",
        "",
        methods_and_example(row.name, (_method(row, name) for name in listed)),
    ]
    return "\n".join(lines)


def _parameters(row: SelectionRow) -> list[str]:
    shapes = ", shapes that broadcast" if row.is_elementwise else ""
    lines = ["Parameters", "----------"]
    lines += [f"{name} : {about}{shapes}" for name, about in row.operands.items()]
    if not row.is_elementwise:
        lines += [
            "axis : int or None",
            "    Along which to take; None is for all elements in a row.",
        ]
    return lines


def _result(row: SelectionRow) -> str:
    if row.is_elementwise:
        return "ndarray or scalar, float32 or float64, the broadcast shape of the operands"
    return "ndarray or scalar, float32 or float64, the shape of x with that of indices for the axis"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 96, break_long_words=False, break_on_hyphens=False)


def _raises(row: SelectionRow) -> list[str]:
    lines = ["Raises", "------", "TypeError"]
    lines += ["    For a dtype other than bool, integers, float16, float32 and float64."]
    lines += ["ValueError", "    If a shape does not fit."]
    if not row.is_elementwise:
        lines += ["IndexError", "    If an index is out of range."]
    return lines


def _docstring_of(row: SelectionRow, name: str) -> str:
    """Return the numpydoc docstring of a selection's method, from its row."""
    operands = tuple(row.operands)
    moved = [operands[k] for k in row.moved]
    given = ", ".join(_arguments(row, name)[len(operands) :])
    cotangents = ", ".join(f"g{n}" for n in moved)
    slopes = ", ".join(f"d{n}" for n in moved)
    shape = "the result's shape" if row.is_elementwise else "the shape of x with that of indices"
    several = len(moved) > 1
    tangents = "array_like or None, the shapes of their operands"
    cotangent = "g : array_like\n    Cotangent of the value, as vjp takes it.\n"
    summary, more, result, out = {
        "__call__": (f"Return {row.formula}", "", _result(row), "ndarray"),
        "derivative": (
            "Return the partial derivatives",
            "",
            f"{slopes} : ndarray or scalar, the result's shape, or None for an operand of None",
            "tuple of (ndarray or None)",
        ),
        "value_and_derivative": (
            f"Return (value, ({slopes}))",
            "",
            "tuple of ndarray or scalars, the result's shape, or None for an operand of None",
            "tuple of (ndarray or None), nested alike or flat",
        ),
        "second_derivative": (
            f"Return the second derivatives by each pair of {', '.join(moved)}, which are 0",
            "",
            "tuple of ndarray or scalars, the result's shape, or None for an operand of None",
            "tuple of (ndarray or None)",
        ),
        "vjp": (
            f"Return the cotangent{'s' * several} of {', '.join(moved)}",
            f"g : array_like, {shape}, or a number that fills it\n"
            "    Cotangent of the value. Leading axes in front of its shape are a stack, which "
            "the\n    results keep.\n",
            f"{cotangents} : ndarray or scalar, stack + the operand's shape\n"
            "    g where the operand was chosen, summed in float64 over its repetitions.",
            "ndarray, or tuple of ndarray or None",
        ),
        "jvp": (
            "Return the tangent of the value",
            f"{given} : {tangents}\n"
            "    Tangents; None is zero, and a Python number fills its operand's shape.\n",
            _result(row),
            "ndarray",
        ),
        "vjp.jvp": (
            f"Return the tangent{'s' * several} of what vjp returns",
            f"{cotangent}{given.partition(', ')[2]} : {tangents} and of g\n"
            "    Tangents; None is zero, and a Python number fills its argument's shape.\n",
            f"the tangents of {cotangents} : ndarray or scalar, vjp's shapes",
            "ndarray, or tuple of ndarray or None",
        ),
        "vjp.vjp": (
            "Return the cotangents of what vjp takes",
            f"{cotangent}{given.partition(', ')[2]} : array_like or None, the shapes of what vjp "
            "returns\n"
            "    Cotangents; None is zero, and a Python number fills the shape.\n",
            f"the cotangents of {', '.join((*moved, 'g'))} : ndarray or scalar, their shapes",
            "ndarray, or tuple of ndarray or None",
        ),
        "jacobian": (
            f"Return the Jacobian{'s' * several} with respect to {', '.join(moved)}",
            "",
            "Jacobian or tuple of Jacobian\n"
            "    A `Diagonal`, after a `Broadcast` where the operand was broadcast."
            if several
            else "Jacobian\n    A `Kronecker`, or a product of them.",
            "",
        ),
    }[name]
    lines = [f"{summary}.", "", *_parameters(row), *more.splitlines()]
    if _takes_wrt(row, name):
        lines += [*WRT]
    if out:
        lines += [f"out : {out}, optional", "    Overwritten with the results."]
    lines += ["", "Returns", "-------", *result.splitlines(), "", *_raises(row)]
    return "\n".join([*lines, ""])


# --- the column -----------------------------------------------------------------------------------


class Selection(Hinted):
    """The base of selections: a row of the table, on an engine.

    Parameters
    ----------
    row : SelectionRow
        Its row in the table.
    engine : Engine
        The functions that it calls.
    """

    def __init__(self, row: SelectionRow, engine: Engine) -> None:
        self.row = row
        self._engine = engine
        self.__name__ = self.__qualname__ = row.name
        self.__module__ = engine.module("selections")
        self.__doc__ = _docstring(row)
        self._names = tuple(row.operands)
        self._calls: dict[str, Any] = {}  # of kernels alone
        methods = {_attribute(name): _method(row, name) for name in (*_methods(row), *OF_VJP)}
        own: Any = type(type(self).__name__, (type(self),), methods)
        self.__class__ = own  # whose methods have the row's signature
        for name in KERNELS if engine.is_native else ():
            kind = "__call__" if name == "value" else _attribute(name)
            if kind in methods and (row.is_elementwise or name not in OF_VJP):
                make = partial(engine.kernels.selection_method, row.name, name)
                # On the class, where calls look.
                setattr(own, kind, enter(make, self, kind, row.name, self.__module__))
        of_vjp = {name[4:]: getattr(self, _attribute(name)) for name in OF_VJP}
        pull: Any = getattr(self, "vjp")  # noqa: B009  of the class just made
        if engine.is_native:
            vars(pull).update(of_vjp)
        else:
            self.vjp = WithMethods(pull, **of_vjp)

    def __repr__(self) -> str:
        return f"<selection '{self.__name__}'{self._engine.remark}>"

    def __reduce__(self) -> str:
        return self.__name__

    def _op(self, method: str) -> str:
        return f"{self.__name__}.{method}" if method else self.__name__

    def _arrays(self, op: str, method: str, given: Sequence[Any]) -> list[Any]:
        """Convert a method's arguments to arrays of one dtype; the constant operand stays as it is.

        Operands that may be None, and tangents, which may be zero, stay None.
        """
        names = _arguments(self.row, method)
        check_labels(op, names, given)
        n = len(self._names)
        may_lack = {*self.row.optional, *names[n + (method != "jvp") :]}
        left = {k for k, name in enumerate(names) if name == self.row.constant}
        left |= {k for k, name in enumerate(names) if given[k] is None and name in may_lack}
        there = [k for k in range(len(names)) if k not in left]
        arrays = iter(as_arrays(op, *(given[k] for k in there), names=[names[k] for k in there]))
        return [given[k] if k in left else next(arrays) for k in range(len(names))]

    def _kernel(self, method: str, *arrays: Any, **options: Any) -> Any:
        """Return what a kernel gives for arrays that it takes."""
        if method not in self._calls:
            make = self._engine.kernels.selection_method
            self._calls[method] = make(self.row.name, method, _REFUSALS[len(arrays)])
        return self._calls[method](*arrays, **options)

    def _check_shapes(
        self, op: str, names: Sequence[str], given: Sequence[Any], arrays: Any, wanted: Any
    ) -> None:
        """Check the shapes of tangents, or of cotangents of vjp's results, against those wanted.

        `wanted` has a text and a shape for each, where None is that of an operand that is None.
        """
        for name, one, array, (of, shape) in zip(names, given, arrays, wanted, strict=True):
            if array is None:
                continue
            if shape is None:
                raise ValueError(f"{op}: {name} is given, but {of} is None")
            if not is_weak(one) and array.shape != shape:
                raise ValueError(f"{op}: {name} has shape {array.shape}, {of} has {shape}")


def _refuse(*arrays: Any) -> NoReturn:
    shapes = ", ".join(str(np.shape(array)) for array in arrays if array is not None)
    raise ValueError(f"no kernel takes arrays of shapes {shapes}")


# What kernels leave their calls to, by how many arrays they take.
_REFUSALS: Final = {
    2: lambda x, indices, axis: _refuse(x, indices),
    3: lambda a, b, c, axis=None: _refuse(a, b, c),
    4: lambda a, b, c, g, wrt="all": _refuse(a, b, c, g),
    5: lambda a, b, c, t, u: _refuse(a, b, c, t, u),  # noqa: PLW0108  it is counted
    6: lambda a, b, c, t, u, v: _refuse(a, b, c, t, u, v),  # noqa: PLW0108
}


def _given(results: Sequence[Any], out: Any) -> list[Any]:
    """Return results without axes as scalars where no output was given."""
    outs = out if isinstance(out, tuple) else (out,) * len(results)
    return [
        r if r is None or r.ndim or target is not None else r[()]
        for r, target in zip(results, outs, strict=True)
    ]


class Choice(Selection):
    """A selection element by element: `where`, `clip`."""

    def _value(self, given: tuple[Any, ...], out: Any) -> Any:
        op = self._op("")
        operands, shape, dtype = self._operands(op, "__call__", given)
        outputs = Outputs(op, out, [shape], dtype, operands, single=True)
        value = self._computed("value", operands, shape, dtype)
        return _given(outputs.deliver([value]), out)[0]

    def _derivative(self, given: tuple[Any, ...], out: Any) -> Any:
        return self._slopes("derivative", given, out)

    def _value_and_derivative(self, given: tuple[Any, ...], out: Any) -> Any:
        value, *slopes = self._slopes("value_and_derivative", given, out)
        return value, tuple(slopes)

    def _slopes(self, method: str, given: tuple[Any, ...], out: Any) -> tuple[Any, ...]:
        op = self._op(method)
        operands, shape, dtype = self._operands(op, method, given)
        moved = [operands[k] for k in self.row.moved]
        shapes = [None if a is None else shape for a in moved]
        has_value = method != "derivative"
        outs = flat_outs(op, out, (None, tuple(moved)) if has_value else tuple(moved))
        shapes[:0] = [shape] * has_value
        outputs = Outputs(op, outs, shapes, dtype, operands, single=False)
        slopes = self._computed("derivative", operands, shape, dtype)
        value = [self._computed("value", operands, shape, dtype)] * has_value
        return tuple(_given(outputs.deliver([*value, *slopes]), outs))

    def _second_derivative(self, given: tuple[Any, ...], out: Any) -> Any:
        op = self._op("second_derivative")
        operands, shape, dtype = self._operands(op, "second_derivative", given)
        pairs = combinations_with_replacement([operands[k] for k in self.row.moved], 2)
        lacks = [a is None or b is None for a, b in pairs]
        shapes = [None if lack else shape for lack in lacks]
        outputs = Outputs(op, out, shapes, dtype, operands, single=False)
        # 0, or NaN where the derivatives are that; one of which there always is.
        slopes = self._computed("derivative", operands, shape, dtype)
        slope = next(slope for slope in slopes if slope is not None)
        results = [None if lack else slope * dtype.type(0) for lack in lacks]
        return tuple(_given(outputs.deliver(results), out))

    def _vjp(self, given: tuple[Any, ...], more: tuple[Any], wrt: Any, out: Any) -> Any:
        op = self._op("vjp")
        asked = self._asked(op, wrt, given)
        operands, shape, dtype, g = self._operands(op, "vjp", (*given, *more))
        g = np.full(shape, g) if is_weak(more[0]) else g
        stack = self._stack(op, g, operands, shape)
        check_axes(op, stack + shape)
        own = [operands[k] for k in asked.operands]
        shapes = [None if a is None else stack + a.shape for a in own]
        outputs = Outputs(op, out, shapes, dtype, (*operands, g), single=asked.single)
        # As they are stored, on which the order of sums depends.
        stored = [
            a if a is None or is_weak(a) else as_array(op, name, a)
            for a, name in zip((*given, *more), _arguments(self.row, "vjp"), strict=True)
        ]
        stored[: self.row.moved[0]] = operands[: self.row.moved[0]]
        results = outputs.deliver(self._pulled(operands, g, shape, asked.operands, stored))
        return asked.result(_given(results, out))

    def _jvp(self, given: tuple[Any, ...], tangents: tuple[Any, ...], out: Any) -> Any:
        op = self._op("jvp")
        operands, shape, dtype, *moved = self._operands(op, "jvp", (*given, *tangents))
        names = _arguments(self.row, "jvp")[len(operands) :]
        self._check_shapes(op, names, tangents, moved, self._wanted(operands))
        outputs = Outputs(op, out, [shape], dtype, (*operands, *moved), single=True)
        return _given(outputs.deliver([self._pushed(operands, moved, shape, dtype)]), out)[0]

    def _jacobian(self, given: tuple[Any, ...], wrt: Any) -> Any:
        op = self._op("jacobian")
        asked = self._asked(op, wrt, given)
        operands, shape, dtype = self._operands(op, "jacobian", given)
        every = self._computed("derivative", operands, shape, dtype)
        by = dict(zip(self.row.moved, every, strict=True))
        slopes = [by[k] for k in asked.operands]
        return asked.result(
            [
                None if slope is None else of_operand(slope, operands[k])
                for slope, k in zip(slopes, asked.operands, strict=True)
            ]
        )

    def _of_vjp_jvp(self, given: tuple[Any, ...], more: tuple[Any, ...], wrt: Any, out: Any) -> Any:
        op = self._op("vjp.jvp")
        asked = self._asked(op, wrt, given)
        operands, shape, dtype, g, *moved, tg = self._operands(op, "vjp.jvp", (*given, *more))
        stack = () if is_weak(more[0]) else self._stack(op, g, operands, shape)
        whole = stack + shape
        names = _arguments(self.row, "vjp.jvp")[len(operands) + 1 :]
        wanted = [*self._wanted(operands), ("g", whole)]
        self._check_shapes(op, names, more[1:], [*moved, tg], wanted)
        own = [operands[k] for k in asked.operands]
        shapes = [None if a is None else stack + a.shape for a in own]
        inputs = (*operands, g, *moved, tg)
        outputs = Outputs(op, out, shapes, dtype, inputs, single=asked.single)
        results: Any = [None if s is None else np.zeros(s, dtype) for s in shapes]
        if any(t is not None for t in (*moved, tg)):  # the derivatives of derivatives are 0 or NaN
            tg = np.broadcast_to(dtype.type(0) if tg is None else tg, whole)
            results = self._pulled(operands, tg, shape, asked.operands)
        return asked.result(_given(outputs.deliver(results), out))

    def _of_vjp_vjp(self, given: tuple[Any, ...], more: tuple[Any, ...], wrt: Any, out: Any) -> Any:
        op, n = self._op("vjp.vjp"), len(self._names)
        asked = self._asked(op, wrt, given, "g")
        operands, shape, dtype, g, *moved = self._operands(op, "vjp.vjp", (*given, *more))
        stack = () if is_weak(more[0]) else self._stack(op, g, operands, shape)
        whole = stack + shape
        names = _arguments(self.row, "vjp.vjp")[n + 1 :]
        wanted = [
            (f"the cotangent of {of}", None if own is None else stack + own)
            for of, own in self._wanted(operands)
        ]
        self._check_shapes(op, names, more[1:], moved, wanted)
        shapes = [whole if k == n else getattr(operands[k], "shape", None) for k in asked.operands]
        inputs = (*operands, g, *moved)
        outputs = Outputs(op, out, shapes, dtype, inputs, single=asked.single)
        results: Any = [None if s is None else np.zeros(s, dtype) for s in shapes]
        if any(h is not None for h in moved):
            of_operands = tuple(k for k in asked.operands if k < n)
            pulled = iter(self._pulled(operands, np.zeros(shape, dtype), shape, of_operands))
            spread = [None if h is None else _spread(h, len(stack), len(whole)) for h in moved]
            results = [
                next(pulled) if k < n else self._pushed(operands, spread, whole, dtype)
                for k in asked.operands
            ]
        return asked.result(_given(outputs.deliver(results), out))

    # --- what they share ---

    @property
    def _pick(self) -> Any:
        return self.row.choice

    def _asked(self, op: str, wrt: Any, given: Sequence[Any], *more: str) -> Wrt:
        """Return what `wrt` asks for, of which an operand that is None is not all."""
        without = () if self.row.constant is None else (self.row.constant,)
        asked = check_wrt(op, wrt, (*self._names, *more), without)
        optional = [k for k in asked.operands if k < len(given) and given[k] is None]
        if len(optional) == len(asked.operands):
            name = self._names[optional[0]]
            raise ValueError(f"{op}: wrt is {shown(wrt)}, but {name} is None")
        return asked

    def _operands(self, op: str, method: str, given: Sequence[Any]) -> tuple[Any, ...]:
        """Return the operands, the shape and the dtype of the value, and the other arrays."""
        n = len(self._names)
        arrays = self._arrays(op, method, given)
        operands, others = arrays[:n], arrays[n:]
        if self.row.constant is not None:
            operands[0] = _mask(op, self._names[0], operands[0])
        shape = broadcast_shape(op, **self._shapes(operands))
        return (tuple(operands), shape, arrays[self.row.moved[0]].dtype, *others)

    def _shapes(self, operands: Sequence[Any]) -> dict[str, Shape]:
        named = zip(self._names, operands, strict=True)
        return {name: a.shape for name, a in named if a is not None}

    def _stack(self, op: str, g: Array, operands: Sequence[Any], shape: Shape) -> Shape:
        return check_cotangent(op, g.shape, shape, **self._shapes(operands))

    def _wanted(self, operands: Sequence[Any]) -> list[tuple[str, Any]]:
        """Return the operands that have tangents, by name and shape."""
        moved = ((self._names[k], operands[k]) for k in self.row.moved)
        return [(name, None if a is None else a.shape) for name, a in moved]

    def _computed(
        self, method: str, operands: Sequence[Any], shape: Shape, dtype: np.dtype[Any]
    ) -> Any:
        """Return the value, or a tuple of derivatives, as arrays of a shape."""
        if self._engine.is_native:
            results = self._kernel(method, *operands)
            return tuple(results) if method == "derivative" else np.asarray(results)
        return getattr(oracle, method)(self._pick, operands, self.row.moved, shape, dtype)

    def _pulled(
        self,
        operands: Sequence[Any],
        g: Array,
        shape: Shape,
        wrt: tuple[int, ...],
        stored: Sequence[Any] = (),
    ) -> list[Any]:
        """Return the cotangents of operands, which are None where those are.

        The native engine takes the arguments as they are `stored`.
        """
        there = tuple(k for k in wrt if operands[k] is not None)
        if self._engine.is_native:
            given = stored or (*operands, g)
            pulled = iter(self._kernel("vjp", *given, wrt=there) if there else ())
        else:
            stack = g.shape[: g.ndim - len(shape)]
            terms = oracle.pulled(self._pick, operands, g)
            by = dict(zip(self.row.moved, terms, strict=True))
            pulled = (sum_repeated(by[k], stack, operands[k].shape) for k in there)
        return [None if operands[k] is None else next(pulled) for k in wrt]

    def _pushed(
        self, operands: Sequence[Any], tangents: Sequence[Any], shape: Shape, dtype: np.dtype[Any]
    ) -> Array:
        """Return the tangent of the value."""
        if all(t is None for t in tangents):
            return np.zeros(shape, dtype)
        whole = [
            a if a is None or a.shape == shape else np.broadcast_to(a, shape)
            for a in (*operands, *tangents)
        ]
        if self._engine.is_native:
            return np.asarray(self._kernel("jvp", *whole))
        n = len(operands)
        return oracle.pushed(self._pick, whole[:n], whole[n:])


def _mask(op: str, name: str, given: Any) -> Array:
    """Return a condition as an array of bool."""
    array = as_array(op, name, given)
    kernel_dtype(op, name, array.dtype)
    return np.asarray(array, bool)


def _spread(array: Array, front: int, ndim: int) -> Array:
    """Return an array with so many axes, its first ones in front and the others behind."""
    if array.ndim < front:  # a number
        return array
    between = (1,) * (ndim - array.ndim)
    return array.reshape(array.shape[:front] + between + array.shape[front:])


class Take(Selection):
    """A selection along an axis: `take`."""

    def _value(self, given: tuple[Any, ...], axis: Any, out: Any) -> Any:
        op = self._op("")
        x, indices = self._arrays(op, "__call__", given)
        return self._taken(op, x, x, _Places(op, x.shape, indices, axis), out)

    def _jvp(self, given: tuple[Any, ...], tangents: tuple[Any], axis: Any, out: Any) -> Any:
        op = self._op("jvp")
        x, indices, t = self._arrays(op, "jvp", (*given, *tangents))
        self._check_shapes(op, ("t",), tangents, (t,), (("x", x.shape),))
        places = _Places(op, x.shape, indices, axis)
        return self._taken(op, x, t, places, out)

    def _vjp(self, given: tuple[Any, ...], more: tuple[Any], axis: Any, out: Any) -> Any:
        op = self._op("vjp")
        x, indices, g = self._arrays(op, "vjp", (*given, *more))
        places = _Places(op, x.shape, indices, axis)
        stack = places.stack(op, g, more[0])
        outputs = Outputs(op, out, [stack + x.shape], x.dtype, (x, g), single=True)
        result = self._put(places, np.broadcast_to(g, stack + places.result))
        return _given(outputs.deliver([result]), out)[0]

    def _jacobian(self, given: tuple[Any, ...], axis: Any) -> Any:
        op = self._op("jacobian")
        x, indices = self._arrays(op, "jacobian", given)
        return _Places(op, x.shape, indices, axis).jacobian(x.dtype)

    def _of_vjp_jvp(
        self, given: tuple[Any, ...], more: tuple[Any, ...], axis: Any, out: Any
    ) -> Any:
        op = self._op("vjp.jvp")
        x, indices, g, t, tg = self._arrays(op, "vjp.jvp", (*given, *more))
        places = _Places(op, x.shape, indices, axis)
        stack = places.stack(op, g, more[0])
        whole = stack + places.result
        self._check_shapes(op, ("t", "tg"), more[1:], (t, tg), (("x", x.shape), ("g", whole)))
        outputs = Outputs(op, out, [stack + x.shape], x.dtype, (x, g, t, tg), single=True)
        result = np.zeros(stack + x.shape, x.dtype)
        if tg is not None:
            result = self._put(places, np.broadcast_to(tg, whole))
        return _given(outputs.deliver([result]), out)[0]

    def _of_vjp_vjp(
        self, given: tuple[Any, ...], more: tuple[Any, ...], axis: Any, wrt: Any, out: Any
    ) -> Any:
        op = self._op("vjp.vjp")
        asked = check_wrt(op, wrt, (*self._names, "g"), self._names[1:])
        x, indices, g, h = self._arrays(op, "vjp.vjp", (*given, *more))
        places = _Places(op, x.shape, indices, axis)
        stack = places.stack(op, g, more[0])
        wanted = (("the cotangent of x", stack + x.shape),)
        self._check_shapes(op, ("h",), more[1:], (h,), wanted)
        shapes = [x.shape, stack + places.result]
        shapes = [shapes[k > 0] for k in asked.operands]
        outputs = Outputs(op, out, shapes, x.dtype, (x, g, h), single=asked.single)
        results = [np.zeros(shape, x.dtype) for shape in shapes]
        if h is not None and 2 in asked.operands:
            h = np.broadcast_to(h, stack + x.shape)
            results[asked.operands.index(2)] = self._take(places, h)
        return asked.result(_given(outputs.deliver(results), out))

    def _taken(self, op: str, x: Array, given: Any, places: _Places, out: Any) -> Any:
        outputs = Outputs(op, out, [places.result], x.dtype, (x, given), single=True)
        result = np.zeros(places.result, x.dtype)
        if given is not None:
            result = self._take(places, np.broadcast_to(given, x.shape))
        return _given(outputs.deliver([result]), out)[0]

    def _take(self, places: _Places, x: Array) -> Array:
        """Return the elements of an array, which may have the axes of a stack in front."""
        blocks, shape = places.blocks(x)
        if not math.prod(shape):
            taken = np.empty(shape, x.dtype)
        elif self._engine.is_native:
            taken = self._kernel("value", blocks, places.at, axis=1)
        else:
            taken = oracle.take(blocks, places.at)
        return taken.reshape(shape)

    def _put(self, places: _Places, g: Array) -> Array:
        """Return a cotangent's sums at the places that it was taken from."""
        blocks, like, shape = places.blocks_of_taken(g)
        if not g.size:
            put = np.zeros(shape, g.dtype)
        elif self._engine.is_native:
            put = self._kernel("vjp", like, places.at, blocks, axis=1)
        else:
            put = oracle.put(blocks, places.at, like.shape[1])
        return put.reshape(shape)


class _Places:
    """Where `take` finds its elements: indices along an axis, checked, as an array of their own.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    shape : tuple of int
        The operand's shape.
    indices, axis : object
        As the caller gave them.
    """

    def __init__(self, op: str, shape: Shape, indices: Any, axis: Any) -> None:
        self._given, self._shape, self._axis = shape, shape, 0
        if axis is None:
            self._shape = (math.prod(shape),)
        else:
            axes = as_ints(op, "axis", axis, "an integer or None")
            if len(axes) != 1 or isinstance(axis, tuple | list):
                raise TypeError(f"{op}: axis must be an integer or None, not {shown(axis)}")
            (self._axis,) = axes
            if not -len(shape) <= self._axis < len(shape):
                far = min(max(self._axis, -sys.maxsize), sys.maxsize)
                raise np.exceptions.AxisError(far, len(shape), op)
            self._axis %= len(shape)
        array = as_array(op, "indices", indices)
        if array.size == 0 and isinstance(indices, list | tuple):
            array = array.astype(np.intp)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{op}: indices must be integers, not of dtype {array.dtype}")
        n = self._shape[self._axis]
        own = np.array(array)  # another thread may change those that were given
        wrong = (own < -n) | (own >= n) if own.dtype.kind == "i" else own >= n
        if wrong.any():
            raise IndexError(
                f"{op}: index {own[wrong][0]} is out of range for axis {axis}, which has extent {n}"
            )
        at = own.astype(np.int64)
        at += n * (at < 0)
        self.at, self._of_indices = at.reshape(-1), at.shape
        before, behind = self._shape[: self._axis], self._shape[self._axis + 1 :]
        self.result = before + at.shape + behind
        check_axes(op, self.result)

    def stack(self, op: str, g: Array, given: Any) -> Shape:
        """Return the axes that a cotangent has in front; a number has none."""
        if is_weak(given):
            return ()
        stack = check_cotangent(op, g.shape, self.result, x=self._given, indices=self._of_indices)
        check_axes(op, stack + self._given)
        return stack

    def blocks(self, x: Array) -> tuple[Array, Shape]:
        """Return an array, behind a stack, as (outer, n, inner), and the shape of what is taken."""
        stack = x.shape[: x.ndim - len(self._given)]
        n, inner = self._shape[self._axis], math.prod(self._shape[self._axis + 1 :])
        outer = math.prod((*stack, *self._shape[: self._axis]))
        return np.ascontiguousarray(x).reshape(outer, n, inner), stack + self.result

    def blocks_of_taken(self, g: Array) -> tuple[Array, Array, Shape]:
        """Return what was taken as such, something like `blocks`, and the shape of all."""
        stack = g.shape[: g.ndim - len(self.result)]
        n, inner = self._shape[self._axis], math.prod(self._shape[self._axis + 1 :])
        outer = math.prod((*stack, *self._shape[: self._axis]))
        like = np.broadcast_to(np.zeros((), g.dtype), (outer, n, inner))
        blocks = np.ascontiguousarray(g).reshape(outer, self.at.size, inner)
        return blocks, like, stack + self._given

    def jacobian(self, dtype: np.dtype[Any]) -> Jacobian:
        """Return the Jacobian."""
        n, axis, ndim = self.at.size, self._axis, len(self._shape)
        chosen = np.zeros((n, self._shape[axis]), dtype)
        chosen[np.arange(n), self.at] = 1
        outer, inner = math.prod(self._shape[:axis]), math.prod(self._shape[axis + 1 :])
        if outer == 1 or inner == 1:
            factors = (chosen, inner) if outer == 1 else (outer, chosen)
            shapes = {"input_shape": self._given, "output_shape": self.result}
            return Kronecker(*factors, copy=False, **shapes)
        others = [a for a in range(ndim) if a != axis]
        last = Permutation(self._shape, (*others, axis), dtype)
        behind = (*(self._shape[a] for a in others), *self._of_indices)
        J = Kronecker(
            outer * inner,
            chosen,
            input_shape=last.output_shape,
            output_shape=behind,
            copy=False,
        )
        moved = range(ndim - 1, len(behind))
        back = Permutation(behind, (*range(axis), *moved, *range(axis, ndim - 1)), dtype)
        moving: Jacobian = back @ J @ last
        return moving


# --- all of them ----------------------------------------------------------------------------------


@cache
def make_selections(engine: Engine) -> Registry:
    """Return the table's selections on an engine, by name."""

    def make(name: str) -> Selection:
        row = SELECTIONS[name]
        return (Choice if row.is_elementwise else Take)(row, engine)

    return Registry(SELECTIONS, make)


selections: Final = make_selections(BACKEND)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

else:
    __getattr__ = attributes(globals(), selections)

"""Elementwise primitives, each with its derivatives, on any engine.

A native primitive is a genuine `numpy.ufunc`. So is the `derivative` of a unary one. All other
native methods call the kernels directly; arguments that the kernels do not take go to the Python
methods in this module. The NumPy twins use these Python methods for every call. Native names are
dotted (``elementwise.tanh.vjp``), so that each pickles by its name, and pandas does not mistake
``greater`` for the operator.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.config import guarded
from pullback.engine import BACKEND, OF_VJP, Engine, attribute_of, private, with_methods
from pullback.foreign import admitted, check_labels, is_plain, overriding
from pullback.protocol import (
    WRT,
    as_array,
    as_arrays,
    broadcast_shape,
    check_cotangent,
    check_given,
    check_outs,
    check_shape,
    check_unmasked,
    check_where,
    check_wrt,
    deliver,
    flat_outs,
    is_weak,
    kernel_dtype,
    method,
    methods_and_example,
    result_dtype,
    shape_of,
    sum_repeated,
)
from pullback.registry import Hinted, Registry, attributes
from pullback.shapes import broadcast_shapes
from pullback.tables.elementwise import OPS, REFERENCE_MAX_ULP, OpRow, SpecialPoint

__all__ = ["Elementwise", "make_elementwise", "primitives"]

Array: TypeAlias = npt.NDArray[Any]

METHODS: Final = (
    "derivative",
    "value_and_derivative",
    "second_derivative",
    "vjp",
    "jvp",
    "jacobian",
)
_UFUNCS: Final = ("derivative", "second_derivative")  # of one operand


# --- ufuncs, and what stands for them -------------------------------------------------------------


class _OracleUfunc:
    """A method of a NumPy twin with one result or several, called like a ufunc.

    It computes in the `pullback.protocol.result_dtype` of its arguments, silences NumPy's
    floating-point warnings, and returns new arrays, or NumPy scalars where the result has no axes.
    ``out=`` takes arrays of exactly the result's shape and writes to them only once everything has
    succeeded, so they may be the arguments themselves.
    """

    def __init__(self, row: OpRow, name: str) -> None:
        self._row, self._name = row, name
        self._method, self._part = name.rstrip("012"), name[-1:]
        self._op = _label(row, self._method)
        self._names = _arguments(row, self._method)
        # What overriding types ask of a ufunc; pandas reads the name, see above.
        self.__name__ = f"reference.{row.name}.{name}"
        self.nin, self.signature = len(self._names), None
        several = {
            "derivative": row.nin,
            "value_and_derivative": 1 + row.nin,
            "second_derivative": len(row.second_derivative_formula),
        }
        self.nout = several.get(name, 1)
        self.types = [f"{t * self.nin}->{t * self.nout}" for t in "fd"]

    def __repr__(self) -> str:
        return f"<ufunc {self.__name__!r}>"

    def __reduce__(self) -> Any:
        return _of_oracle, (self._row.name, self._name)

    def __call__(
        self, *given: Any, out: Any = None, where: Any = True, dtype: Any = None, **options: Any
    ) -> Any:
        for option in options:
            raise TypeError(f"{self._op}() got an unexpected keyword argument {option!r}")
        given = admitted(self._op, self._names, given, out, where)
        outs = out if isinstance(out, tuple) else (out,)
        out = None if all(target is None for target in outs) else out
        if overriding(*given, *outs):
            keywords = {} if out is None else {"out": outs}
            keywords |= {} if where is True else {"where": where}
            keywords |= {} if dtype is None else {"dtype": dtype}
            return _overridden(self, given, outs, keywords)
        plain = (np.asarray(g) if isinstance(g, np.ndarray) else g for g in given)
        arrays = as_arrays(self._op, *plain, names=self._names)
        if dtype is not None:
            to = kernel_dtype(self._op, "dtype", dtype)
            arrays = tuple(a.astype(to, copy=False) for a in arrays)
        shapes = {name: a.shape for name, a in zip(self._names, arrays, strict=True)}
        where = check_where(self._op, where, broadcast_shape(self._op, **shapes))
        with np.errstate(all="ignore"):
            results = self.of(*arrays)
            subclasses = [g for g in given if not is_plain(g)]
            if not subclasses or out is not None:
                return deliver(self._op, results, out, where)
            first = max(subclasses, key=lambda g: g.__array_priority__)
            wrapped = tuple(
                first.__array_wrap__(np.asarray(result), (self, given, k), False)
                for k, result in enumerate(results if isinstance(results, tuple) else (results,))
            )
            return wrapped if isinstance(results, tuple) else wrapped[0]

    def of(self, *arrays: Array) -> Any:
        """Return an array or a flat tuple of them."""
        row, nin = self._row, self._row.nin
        operands, factors = _together(*arrays[:nin]), arrays[nin:]
        if self._name == "value":
            return row.value(*operands)
        if self._method == "second_derivative":
            curves = row.second_derivative(*operands)
            return curves if self._name == self._method else curves[int(self._part)]
        slopes = row.derivative(*operands)
        if self._method == "derivative":
            return slopes if self._name == self._method else slopes[int(self._part)]
        slopes = slopes if nin > 1 else (slopes,)
        if self._name == "value_and_derivative":
            return (row.value(*operands), *slopes)
        if self._name == "jvp":
            first, *more = map(self._product, factors, slopes)
            return first + more[0] if more else first
        return self._product(factors[0], slopes[self._name == "vjp1"])

    def _product(self, factor: Array, slope: Array) -> Array:
        """Return fl(factor * slope); a masked operation selects +0 where the slope is 0."""
        return _product(factor, slope, self._row.masked)


def _product(factor: Array, slope: Array, masked: bool) -> Array:
    product: Array = factor * slope
    return np.where(slope == 0, product.dtype.type(0), product) if masked else product


def _of_oracle(op: str, name: str) -> _OracleUfunc:
    """Return a twin's method, for pickle."""
    twin = getattr(import_module("pullback.reference"), op)
    return twin._ufunc(name)  # type: ignore[no-any-return]


def _overridden(ufunc: Any, given: Any, outs: Any, keywords: Any) -> Any:
    """Return what the ``__array_ufunc__`` of operands or outputs returns for a call; see NEP 13."""
    asked: list[Any] = []
    for operand in filter(overriding, (*given, *outs)):
        if not any(type(operand) is type(other) for other in asked):
            later = (k for k, other in enumerate(asked) if isinstance(operand, type(other)))
            asked.insert(next(later, len(asked)), operand)
    for operand in asked:
        take_over = type(operand).__array_ufunc__
        if take_over is None:
            name = type(operand).__name__
            raise TypeError(f"operand {name!r} does not support ufuncs (__array_ufunc__=None)")
        result = take_over(operand, ufunc, "__call__", *given, **keywords)
        if result is not NotImplemented:
            return result
    kinds = ", ".join(type(operand).__name__ for operand in asked)
    raise TypeError(f"{ufunc.__name__}: __array_ufunc__ of {kinds} returned NotImplemented")


def _together(*operands: Array) -> tuple[Array, ...]:
    """Return operands in the shape that they broadcast to."""
    if len(operands) == 1:
        return operands
    shape = broadcast_shapes(*(a.shape for a in operands))
    return tuple(np.broadcast_to(a, shape) for a in operands)


def _native_ufunc(kernels: Any, row: OpRow, name: str, *, public: bool) -> Any:
    """Return a ufunc; one that is not public gets a private name."""
    path = "" if name == "value" else f".{'_' * (not public)}{name}"
    op, names = _label(row, name.rstrip("012")), _arguments(row, name.rstrip("012"))
    doc = f"Part of {row.name}."
    if public:
        doc = method_docstring(row, name) if path else docstring(row)
    full_name = f"elementwise.{row.name}{path}"
    door = partial(admitted, op, names)
    default = row.default if name == "value" else None
    ufunc = kernels.elementwise_ufunc(row.name, name, full_name, doc, door, default)
    return _named(ufunc, full_name)


def _named(function: Any, name: str) -> Any:
    function.__module__ = "pullback"  # where pickle looks the dotted name up
    function.__qualname__ = name
    return function


# --- the column -----------------------------------------------------------------------------------


class Elementwise(Hinted):
    """An elementwise operation: a row of the table, on an engine.

    Parameters
    ----------
    row : OpRow
        Its row in the table.
    engine : Engine
        The functions that it calls.
    """

    def __init__(self, row: OpRow, engine: Engine) -> None:
        self.row = row
        self.nin = row.nin
        self._engine = engine
        self.__name__ = self.__qualname__ = row.name
        self.__doc__ = docstring(row)
        self.__module__ = engine.module("elementwise")
        self._ufuncs: dict[str, Any] = {}
        # The single results of which each method returns several.
        slopes = ("derivative",) if self.nin == 1 else ("derivative0", "derivative1")
        count = len(row.second_derivative_formula)
        curves = [f"second_derivative{'' if count == 1 else k}" for k in range(count)]
        self._parts = {
            "derivative": slopes,
            "value_and_derivative": ("value", *slopes),
            "second_derivative": tuple(curves),
        }
        self._terms = ("vjp",) if self.nin == 1 else ("vjp0", "vjp1")
        methods = {name: _method(row, name) for name in ("__call__", *METHODS)}
        methods |= {private(name): _method(row, name) for name in OF_VJP}
        own: Any = type(type(self).__name__, (type(self),), methods)
        self.__class__ = own  # whose methods have the row's signature
        self._slopes: Callable[..., Any] = self.derivative  # type: ignore[attr-defined]
        self._primitive: Any = self
        if not engine.is_native:
            self.vjp = with_methods(self.vjp, self, engine)  # type: ignore[has-type]

    def __repr__(self) -> str:
        return f"<elementwise '{self.__name__}'{self._engine.remark}>"

    def __reduce__(self) -> str:
        return self.__name__

    def _ufunc(self, name: str) -> Any:
        """Return a method as a ufunc or its stand-in; "vjp1" is one result of a method."""
        if name not in self._ufuncs:
            public = name == "value" or (name in _UFUNCS and self.nin == 1)
            self._ufuncs[name] = (
                _native_ufunc(self._engine.kernels, self.row, name, public=public)
                if self._engine.is_native
                else _OracleUfunc(self.row, name)
            )
        return self._ufuncs[name]

    def _run(self, name: str, *given: Any, **keywords: Any) -> Any:
        """Call a method as a ufunc, without the warnings of NumPy's casts."""
        with np.errstate(all="ignore"):
            return self._ufunc(name)(*given, **keywords)

    def _on_ufunc(self) -> Any:
        """Return the native primitive: a ufunc with the methods as its attributes."""
        primitive, nin = self._ufunc("value"), self.nin
        primitive.row = self.row
        parts = {part for several in self._parts.values() for part in several} - {"value"}
        for name in {*self._terms, *parts, "vjp", "jvp", *self._parts}:
            function = self._ufunc(name)
            setattr(primitive, function.__qualname__.rpartition(".")[2], function)
        for name in (*METHODS, *OF_VJP):
            if name in _UFUNCS and nin == 1:
                continue
            fallback = getattr(self, private(name))
            call = self._engine.kernels.elementwise_method(self.row.name, name, fallback)
            owner, _, call.__name__ = name.rpartition(".")
            call.__doc__ = fallback.__doc__
            owner = getattr(primitive, owner) if owner else primitive
            setattr(owner, call.__name__, _named(call, f"elementwise.{self.row.name}.{name}"))
        for name in ("reduce", "accumulate", "reduceat", "outer", "at"):
            call = guarded(getattr(primitive, name))  # NumPy casts in it
            call.__reduce__ = partial(attribute_of, primitive, name)
            setattr(primitive, name, call)
        self._slopes = primitive.derivative
        self._primitive = primitive
        return primitive

    # --- what the methods do ---

    def _several(self, name: str, operands: Any, out: Any, keywords: Any) -> Any:
        """Return a method's results: together, or one by one for operands that override ufuncs."""
        parts, op = self._parts[name], _label(self.row, name)
        where = keywords.pop("where")
        if len(parts) == 1:
            return self._ufunc(name)(*operands, out=out, where=where, **keywords)
        like = (parts[0], parts[1:]) if name == "value_and_derivative" and self.nin > 1 else parts
        outs = flat_outs(op, out, like) or (None,) * len(parts)
        shape: tuple[int, ...] = ()
        if where is not True or out is not None:
            shape = broadcast_shape(op, **self._shapes(op, operands))
            where = check_where(op, where, shape)
        operands, dtype = self._plain(op, self.row.operands, operands, keywords)
        if out is not None:
            _check_outs(op, outs, shape, dtype)
        # Where there is no output, nothing is masked.
        together = where is True or not any(target is None for target in outs)
        if together and not overriding(*operands, *outs):
            return self._run(name, *operands, out=outs, where=where, **keywords)
        return tuple(
            self._run(part, *operands, out=target, where=_masking(target, where), **keywords)
            for part, target in zip(parts, outs, strict=True)
        )

    def _value(self, operands: tuple[Any, ...], out: Any, keywords: Any) -> Any:
        return self._ufunc("value")(*operands, out=out, **keywords)

    def _derivative(self, operands: tuple[Any, ...], out: Any, keywords: Any) -> Any:
        return self._several("derivative", operands, out, keywords)

    def _value_and_derivative(self, operands: tuple[Any, ...], out: Any, keywords: Any) -> Any:
        y, *slopes = self._several("value_and_derivative", operands, out, keywords)
        return y, slopes[0] if self.nin == 1 else tuple(slopes)

    def _second_derivative(self, operands: tuple[Any, ...], out: Any, keywords: Any) -> Any:
        return self._several("second_derivative", operands, out, keywords)

    def _vjp(
        self, operands: tuple[Any, ...], g: Any, wrt: Any, out: Any, where: Any, options: Any
    ) -> Any:
        op, names = _label(self.row, "vjp"), self.row.operands
        asked = check_wrt(op, wrt, names)
        if g is None:
            raise TypeError(f"{op}: g is None, which is no cotangent")
        shapes = self._shapes(op, operands)
        shape = broadcast_shape(op, **shapes)
        stack = () if _fills(g) else check_cotangent(op, shape_of(op, "g", g), shape, **shapes)
        whole = stack + shape
        where = check_where(op, where, whole)
        own = [stack + shapes[names[k]] for k in asked.operands]
        given = (*operands, g)
        arrays, dtype = self._plain(op, (*names, "g"), given, options)
        operands, g = arrays[:-1], arrays[-1]
        if asked.single and own[0] == whole:
            _check_outs(op, (out,), whole, dtype)
            term = self._terms[asked.operands[0]]
            return self._run(term, *operands, g, out=out, where=_masking(out, where), **options)
        if where is True and dtype is not None:
            if self._engine.is_native:
                named = zip((*names, "g"), given, strict=True)
                arrays = tuple(a if is_weak(a) else as_array(op, n, a) for n, a in named)
            sums = self._sums(arrays, whole, asked.operands)
        else:
            terms = [self._run(self._terms[k], *operands, g, **options) for k in asked.operands]
            if where is not True:  # what is no sum is masked where it is written
                pairs = zip(terms, own, strict=True)
                terms = [t if s == whole else _where(op, where, t) for t, s in pairs]
            sums = tuple(
                sum_repeated(t, stack, s[len(stack) :]) for t, s in zip(terms, own, strict=True)
            )
        cotangents = asked.result(sums)
        masks = tuple(where if s == whole else True for s in own)
        return cotangents if out is None else deliver(op, cotangents, out, masks)

    def _sums(self, given: tuple[Any, ...], whole: tuple[int, ...], wrt: tuple[int, ...]) -> Any:
        """Return cotangents of plain arrays, summed in the engine's order.

        The native engine's order depends on how the arrays are stored.
        """
        if self._engine.is_native:
            sums = self._engine.kernels.elementwise_method(self.row.name, "vjp", _refuse)
            return sums(*given, wrt)
        *arrays, g = given
        g = np.broadcast_to(g, whole)
        stack = whole[: len(whole) - len(broadcast_shapes(*(a.shape for a in arrays)))]
        with np.errstate(all="ignore"):
            terms = [self._ufunc(self._terms[k]).of(*arrays, g) for k in wrt]
        return tuple(
            sum_repeated(t, stack, arrays[k].shape)[()] for t, k in zip(terms, wrt, strict=True)
        )

    def _jvp(
        self, operands: tuple[Any, ...], tangents: Any, out: Any, where: Any, options: Any
    ) -> Any:
        op, names, t_names = _label(self.row, "jvp"), self.row.operands, _tangents(self.row)
        shapes = self._shapes(op, operands)
        shape = broadcast_shape(op, **shapes)
        for k, (name, tangent) in enumerate(zip(names, tangents, strict=True)):
            if tangent is None or _fills(tangent) or _hides_shape(operands[k]):
                continue
            if (own := shape_of(op, t_names[k], tangent)) != shapes[name]:
                raise ValueError(f"{op}: {t_names[k]} has shape {own}, {name} has {shapes[name]}")
        where = _masking(out, check_where(op, where, shape))
        moved = [k for k, tangent in enumerate(tangents) if tangent is not None]
        called = (*names, *(t_names[k] for k in moved))
        given, dtype = self._plain(op, called, (*operands, *(tangents[k] for k in moved)), options)
        _check_outs(op, (out,), shape, dtype)
        if moved:  # one term of two is computed like a cotangent
            term = "jvp" if len(moved) == self.nin else self._terms[moved[0]]
            return self._run(term, *given, out=out, where=where, **options)
        zeros = np.zeros_like(self._run("value", *given, **options))
        return zeros[()] if out is None else deliver(op, zeros, out, where)

    def _of_vjp(
        self, name: str, operands: tuple[Any, ...], g: Any, given: Any, wrt: Any, out: Any
    ) -> Any:
        """Return the tangents of vjp's results, or the cotangents of its arguments."""
        op, names = _label(self.row, name), self.row.operands
        of_tangents = name == "vjp.jvp"
        asked = check_wrt(op, wrt, names if of_tangents else (*names, "g"))
        if g is None:
            raise TypeError(f"{op}: g is None, which is no cotangent")
        shapes = self._shapes(op, operands)
        shape = broadcast_shape(op, **shapes)
        stack = () if is_weak(g) else check_cotangent(op, shape_of(op, "g", g), shape, **shapes)
        whole, own = stack + shape, [shapes[n] for n in names]
        stacked = [stack + s for s in own]
        wanted = [*own, whole] if of_tangents else stacked
        results = stacked if of_tangents else [*own, whole]
        called = _arguments(self.row, name)
        whose = [*names, "g"] if of_tangents else [f"the cotangent of {n}" for n in names]
        check_given(op, given, called[self.nin + 1 :], wanted, whose)
        arguments = [
            a if a is None or is_weak(a) else as_array(op, n, a)
            for n, a in zip(called, (*operands, g, *given), strict=True)
        ]
        if all(factor is None for factor in given):
            dtype = result_dtype(op, *arguments[: self.nin + 1], names=called[: self.nin + 1])
            terms = tuple(np.zeros(results[k], dtype)[()] for k in asked.operands)
        elif self._engine.is_native:
            fallback = _refusal(self.row, name)
            method = self._engine.kernels.elementwise_method(self.row.name, name, fallback)
            alone = self.nin == 1 and of_tangents
            terms = (method(*arguments),) if alone else method(*arguments, wrt=asked.operands)
        else:
            present = [(a, n) for a, n in zip(arguments, called, strict=True) if a is not None]
            named = [n for _, n in present]
            arrays = iter(as_arrays(op, *(a for a, _ in present), names=named))
            arguments = [None if a is None else next(arrays) for a in arguments]
            front = 0 if of_tangents else len(stack)
            factors = [
                None if a is None else _spread(a, front if k else 0, whole)
                for k, a in enumerate(arguments[self.nin :])
            ]
            every = self._terms_of_vjp(arguments[: self.nin], whole, factors, of_tangents)
            terms = tuple(
                sum_repeated(every[k], stack if of_tangents or k == self.nin else (), own_k)[()]
                for k in asked.operands
                for own_k in [own[k] if k < self.nin else shape]
            )
        cotangents = asked.result(terms)
        return cotangents if out is None else deliver(op, cotangents, out)

    def _terms_of_vjp(
        self, operands: Any, whole: tuple[int, ...], factors: Any, of_tangents: bool
    ) -> list[Array]:
        """Return the terms of the oracle's tangents or cotangents, which have one shape."""
        row, n = self.row, self.nin
        operands = tuple(np.broadcast_to(a, whole) for a in operands)
        g, given, tg = factors[0], factors[1 : n + 1], factors[n + 1] if of_tangents else None
        with np.errstate(all="ignore"):
            slopes, curves = row.derivative(*operands), row.second_derivative(*operands)
            slopes, curves = (slopes, curves) if n > 1 else ((slopes,), (curves,))
            terms = []
            for k in range(n):
                parts = [] if tg is None else [_product(tg, slopes[k], row.masked)]
                parts += [
                    _product(g * t, curves[k + j], True)
                    for j, t in enumerate(given)
                    if t is not None
                ]
                terms.append(sum(parts[1:], parts[0]))
            if not of_tangents:
                pairs = zip(given, slopes, strict=True)
                parts = [_product(h, slope, row.masked) for h, slope in pairs if h is not None]
                terms.append(sum(parts[1:], parts[0]))
        return terms

    def _with_default(self, name: str, given: tuple[Any, ...], out: Any, keywords: Any) -> Any:
        """Return a method's results with respect to the first operand, with the last's default."""
        call, (w, *rest), default = getattr(self._primitive, name), given, self.row.default
        if keywords.get("wrt") == "all":
            keywords |= {"wrt": 0}
        if name == "vjp":
            return call(w, default, *rest, out, **keywords)
        if name == "jvp":
            return call(w, default, *rest, None, out, **keywords)
        if name == "jacobian":
            return call(w, default, **keywords)
        if name == "second_derivative":
            outs = None if out is None else (out, None, None)
            return call(w, default, outs, **keywords)[0]
        both = name == "value_and_derivative"
        like = ("value", "derivative") if both else ("derivative",)
        outs = flat_outs(_label(self.row, name), out if both or out is None else (out,), like)
        results = call(w, default, None if outs is None else (*outs, None), **keywords)
        return (results[0], results[1][0]) if both else results[0]

    def _jacobian(self, operands: tuple[Any, ...], wrt: Any) -> Any:
        op = _label(self.row, "jacobian")
        asked = check_wrt(op, wrt, self.row.operands)
        operands = as_arrays(op, *operands, names=self.row.operands)
        if self.nin == 1:
            return _jacobians().Diagonal._of(self._slopes(*operands))
        broadcast_shape(op, **self._shapes(op, operands))
        parts = self._parts["derivative"]
        slopes = (
            [self._run(parts[asked.operands[0]], *operands)]
            if len(asked.operands) == 1
            else map(self._slopes(*operands).__getitem__, asked.operands)
        )
        if not self._engine.is_native:  # a slope of the oracle's may be an operand
            slopes = map(np.array, slopes)
        moved = [operands[k] for k in asked.operands]
        return asked.result([*map(_jacobians().of_operand, slopes, moved)])

    def _shapes(self, op: str, operands: tuple[Any, ...]) -> dict[str, tuple[int, ...]]:
        named = zip(self.row.operands, operands, strict=True)
        return {name: shape_of(op, name, operand) for name, operand in named}

    def _plain(
        self, op: str, names: tuple[str, ...], given: tuple[Any, ...], options: Any
    ) -> tuple[tuple[Any, ...], Any]:
        """Return arguments as arrays and their dtype, or as ufuncs take them and None."""
        if options or not all(map(is_plain, given)):
            check_labels(op, names, given)
            return admitted(op, names, given, None, True), None
        arrays = as_arrays(op, *given, names=names)
        return arrays, arrays[0].dtype


@cache
def _jacobians() -> Any:
    """Return the module that makes Jacobians; until it is there, native methods come here, too."""
    return import_module("pullback.jacobians.primitives")


def _spread(array: Array, front: int, whole: tuple[int, ...]) -> Array:
    """Return an array in a shape, its first axes in front of all and the others behind."""
    if array.ndim >= front:
        between = (1,) * (len(whole) - array.ndim)
        array = array.reshape(array.shape[:front] + between + array.shape[front:])
    return np.broadcast_to(array, whole)


def _hides_shape(given: Any) -> bool:
    """Tell whether an argument overrides ufuncs without telling its shape."""
    return overriding(given) and not hasattr(given, "shape")


def _fills(given: Any) -> bool:
    """Tell whether an argument takes the shape that it has to have."""
    return is_weak(given) or _hides_shape(given)


def _masking(out: Any, where: Any) -> Any:
    """Return the mask, or True without outputs, where NumPy would leave elements undefined."""
    outs = out if isinstance(out, tuple) else (out,)
    return where if any(target is not None for target in outs) else True


def _check_outs(op: str, outs: tuple[Any, ...], shape: tuple[int, ...], dtype: Any) -> None:
    """Refuse outputs that do not fit a shape: NumPy would repeat results, or name no argument."""
    if dtype is None or overriding(*outs):
        for target in outs:
            check_shape(op, target, shape)
    else:
        n, single = len(outs), len(outs) == 1
        check_outs(
            op, outs[0] if single else outs, [shape] * n, [dtype] * n, single=single, apart=False
        )


def _where(op: str, where: Any, term: Any) -> Any:
    check_unmasked(op, "a term", term)  # whose own mask NumPy forgets
    return np.where(where, term, 0)


def _refuse(w: Any, x: Any, g: Any, wrt: Any) -> Any:
    del wrt
    _no_kernel(w, x, g)


def _no_kernel(*arrays: Any) -> NoReturn:
    shapes = ", ".join(str(np.shape(array)) for array in arrays if array is not None)
    raise ValueError(f"no kernel takes arrays of shapes {shapes}")


@cache
def _refusal(row: OpRow, name: str) -> Any:
    """Return what a kernel of second order leaves calls to: it takes what that takes."""
    names = ", ".join(_arguments(row, name))
    wrt = ", wrt=0" if (row.nin, name) != (1, "vjp.jvp") else ""
    scope: dict[str, Any] = {"refuse": _no_kernel}
    exec(f"def refused({names}{wrt}): refuse({names})", scope)
    return scope["refused"]


# --- methods, from a row --------------------------------------------------------------------------


def _label(row: OpRow, name: str) -> str:
    return row.name if name in ("value", "__call__") else f"{row.name}.{name}"


def _tangents(row: OpRow) -> tuple[str, ...]:
    return ("t",) if row.nin == 1 else tuple(f"t{name}" for name in row.operands)


def _arguments(row: OpRow, name: str) -> tuple[str, ...]:
    """Return the names of a method's arrays."""
    more = {
        "vjp": ("g",),
        "jvp": _tangents(row),
        "vjp.jvp": ("g", *_tangents(row), "tg"),
        "vjp.vjp": ("g", *(t.replace("t", "h") for t in _tangents(row))),
    }
    return row.operands + more.get(name, ())


def _left_out(row: OpRow, name: str) -> int:
    """Return the number of arrays without the last operand, and without its tangent."""
    return row.nin - 1 + (name in ("vjp", "jvp"))


def _parameters(row: OpRow, name: str) -> str:
    """Return the parameters of a method."""
    names = list(_arguments(row, name))
    if row.default is not None and name not in OF_VJP:
        k = _left_out(row, name)
        names[k] += f"={row.default}" if name == "__call__" else "=LEFT_OUT"
        names[k + 1 :] = [f"{tangent}=None" for tangent in names[k + 1 :]]
    arrays = ", ".join(names)
    if name == "jacobian":
        return f"{arrays}, /" + ", *, wrt='all'" * (row.nin > 1)
    if name in OF_VJP:
        wrt = ", *, wrt='all'" if row.nin > 1 or name == "vjp.vjp" else ""
        return f"{', '.join(_arguments(row, name))}, /, out=None{wrt}"
    wrt = "wrt='all', " if name == "vjp" and row.nin > 1 else ""
    return f"{arrays}, /, out=None, *, {wrt}where=True, **options"


@cache
def _method(row: OpRow, name: str) -> Any:
    """Return a method of an operation."""
    given = f"({', '.join(row.operands)},)"
    keywords = "{'where': where, **options}"
    behind = ", ".join(_arguments(row, name)[row.nin + 1 :])
    wrt = "0" if (row.nin, name) == (1, "vjp.jvp") else "wrt"
    of_vjp = f"self._of_vjp({name!r}, {given}, g, ({behind},), {wrt}, out)"
    call = {
        "__call__": f"self._value({given}, out, {keywords})",
        "derivative": f"self._derivative({given}, out, {keywords})",
        "value_and_derivative": f"self._value_and_derivative({given}, out, {keywords})",
        "vjp": f"self._vjp({given}, g, {'wrt' if row.nin > 1 else '0'}, out, where, options)",
        "jvp": f"self._jvp({given}, ({', '.join(_tangents(row))},), out, where, options)",
        "second_derivative": f"self._second_derivative({given}, out, {keywords})",
        "vjp.jvp": of_vjp,
        "vjp.vjp": of_vjp,
        "jacobian": f"self._jacobian({given}, {'wrt' if row.nin > 1 else '0'})",
    }[name]
    if row.default is not None and name not in ("__call__", *OF_VJP):
        k, names = _left_out(row, name), _arguments(row, name)
        more = {
            "jacobian": "None, {'wrt': wrt}",
            "vjp": "out, {'wrt': wrt, 'where': where, **options}",
        }
        given = f"({', '.join(names[:k])},), {more.get(name, f'out, {keywords}')}"
        call += f" if {names[k]} is not LEFT_OUT else self._with_default({name!r}, {given})"
    write = {"__call__": lambda row, _: docstring(row)} | dict.fromkeys(OF_VJP, _docstring_of_vjp)
    doc = write.get(name, method_docstring)(row, name)
    result = _RESULTS.get((name, row.nin), "Any") if row.default is None else "Any"
    owner, _, last = name.rpartition(".")
    op = f"{row.name}.{owner}" if owner else row.name
    function = method(op, last, f"self, {_parameters(row, name)}", call, doc, result)
    if name in OF_VJP:
        function.__name__ = private(name)  # by which pickle finds it
    return function


# By method and number of operands, where that is not Any.
_RESULTS: Final[Mapping[tuple[str, int], str]] = {
    ("derivative", 2): "tuple[Any, Any]",
    ("value_and_derivative", 1): "tuple[Any, Any]",
    ("value_and_derivative", 2): "tuple[Any, tuple[Any, Any]]",
    ("second_derivative", 2): "tuple[Any, Any, Any]",
    ("jacobian", 1): "Diagonal",
}


# --- docstrings -----------------------------------------------------------------------------------


@cache
def docstring(row: OpRow) -> str:
    """Return the numpydoc docstring of an operation, from its row."""
    operands = ", ".join(row.operands)
    lines = [
        f"{row.name}({_parameters(row, '__call__')})".replace(", *, where=True, **options", ""),
        "",
        _paragraph(f"{row.summary}, element by element: ``{row.formula}``."),
        "",
        "Parameters",
        "----------",
        f"{operands} : array_like" + ("" if row.nin == 1 else ", shapes that broadcast"),
        _paragraph(
            f"Domain: {row.domain_text}. Outside, the result is NaN, but for special points below.",
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
        methods_and_example(row.name, (_method(row, n) for n in (*METHODS, *OF_VJP))),
    ]
    return "\n".join(lines)


def method_docstring(row: OpRow, name: str) -> str:
    """Return the numpydoc docstring of an operation's method."""
    operands = ", ".join(row.operands)
    several = row.nin > 1
    tangents = ", ".join(_tangents(row))
    whole = f"{'broadcast ' * several}shape of {' and '.join(f'`{n}`' for n in row.operands)}"
    slopes = "dw, dx" if several else "dx"
    nested = f"({slopes})" if several else slopes
    each = ", ".join(f"g{n}" for n in row.operands)
    more: list[str] = []
    if name == "derivative":
        summary = "Return both partial derivatives" if several else "Return the derivative"
        result, out = f"{slopes} : ndarray or scalar, {whole}", "tuple of (ndarray or None)"
    elif name == "value_and_derivative":
        summary = f"Return (value, {nested}), in one pass"
        result = f"value, {nested} : tuple of ndarray or scalars, {whole}"
        out = "tuple of (ndarray or None), nested alike or flat"
    elif name == "second_derivative":
        summary = "Return the second derivative" + several * "s by w twice, by w and x, by x twice"
        result = f"{'dww, dwx, dxx' if several else 'd2x'} : ndarray or scalar, {whole}"
        out = "tuple of (ndarray or None)" if several else "ndarray"
    elif name == "vjp":
        summary = f"Return the cotangent{'s' * several} of the operand{'s' * several}"
        more = [
            "g : array_like",
            f"    Cotangent of the value. A Python number fills the {whole}.",
            "    Leading axes in front of that shape are a stack. The result keeps them.",
        ]
        result = f"{each} : ndarray or scalar, stack + the shape of {'each ' * several}operand"
        out = "ndarray, or tuple of ndarray or None"
        result += "\n    fl(g * derivative)" + (
            ". Where an operand was broadcast, the products are summed over the\n"
            "    repetitions in float64."
            if several
            else "."
        )
    elif name == "jvp":
        summary = "Return the tangent of the value"
        shapes = "shapes of the operands" if several else "shape of `x`"
        more = [f"{tangents} : array_like, {shapes}, or None"]
        more += ["    Tangents; None is zero, and a Python number fills its operand's shape."]
        terms = " + ".join(
            f"fl(d{n} * {t})" for n, t in zip(row.operands, _tangents(row), strict=True)
        )
        result = f"ndarray or scalar, {whole}\n    {f'fl({terms})' if several else terms}."
        out = "ndarray"
    else:
        summary = "Return the Jacobian" + ("s with respect to the operands" if several else "")
        result = (
            "Jacobian or tuple of Jacobian\n    Each is a `Diagonal`, after a `Broadcast` where "
            "the operand was broadcast."
            if several
            else "Diagonal"
        )
        out = ""
    if several and name in ("vjp", "jacobian"):
        more += [*WRT]
    lines = [f"{row.name}.{name}({_parameters(row, name)})", "", f"{summary}.", ""]
    primals = f"{operands} : array_like" + ", shapes that broadcast" * several
    lines += ["Parameters", "----------", primals, "    Primals.", *more]
    if out:
        lines += [f"out : {out}, optional", "    Overwritten with the results; may be arguments."]
        lines += ["where : array_like of bool, optional"]
        lines += ["    Which elements of `out` are written; in a sum, which terms are added."]
    lines += ["", "Returns", "-------", result, "", "Raises", "------", "ValueError"]
    lines += ["    If a shape does not fit.", "", *_notes(row), ""]
    return "\n".join(lines)


def _docstring_of_vjp(row: OpRow, name: str) -> str:
    """Return the numpydoc docstring of a method of vjp's."""
    operands, several = row.operands, row.nin > 1
    given = ", ".join(_arguments(row, name)[row.nin + 1 :])
    cotangents = ", ".join(f"g{n}" for n in operands)
    choice = ["wrt : str, int, a tuple of them, or 'all'"]
    if name == "vjp.jvp":
        summary = f"Return the tangent{'s' * several} of what vjp returns"
        what = f"{given} : array_like or None, the shapes of {', '.join(operands)} and g"
        more = "Tangents; None is zero, and a Python number fills its argument's shape."
        result = f"the tangent{'s' * several} of {cotangents} : ndarray or scalar, vjp's shapes"
        choice += ["    The operands, by name or position, whose cotangents' tangents to return."]
        choice = choice if several else []
    else:
        summary = "Return the cotangents of what vjp takes"
        what = f"{given} : array_like or None, the shape{'s' * several} of what vjp returns"
        more = "Cotangents; None is zero, and a Python number fills the shape."
        result = (
            f"the cotangents of {', '.join((*operands, 'g'))} : ndarray or scalar, their shapes"
        )
        choice += ["    Whose cotangents to return, by name or position."]
    lines = [f"{row.name}.{name}({_parameters(row, name)})", "", f"{summary}.", ""]
    lines += ["Parameters", "----------"]
    lines += [
        f"{', '.join(operands)} : array_like" + ", shapes that broadcast" * several,
        "    Primals.",
    ]
    lines += ["g : array_like", "    Cotangent of the value, as vjp takes it.", what, f"    {more}"]
    lines += [
        "out : ndarray, or tuple of ndarray or None, optional",
        "    Overwritten with the results.",
    ]
    lines += [*choice, "", "Returns", "-------", result]
    lines += [
        "    Of terms fl(fl(g * t) * second derivative), which are left out where that is 0, and"
    ]
    lines += ["    of vjp's own; where an operand was broadcast, sums of them in float64."]
    lines += [
        "",
        "Raises",
        "------",
        "ValueError",
        "    If a shape does not fit.",
        "",
        *_notes(row, False),
        "",
    ]
    return "\n".join(lines)


@cache
def _notes(row: OpRow, may_leave_out: bool = True) -> list[str]:
    value_ulp, derivative_ulp, second_ulp = row.max_ulp
    derivatives = ", ".join(
        f"``{formula}`` with respect to {operand}"
        for formula, operand in zip(row.derivative_formula, row.operands, strict=True)
    )
    pairs = ["two"] if row.nin == 1 else ["w twice", "w and x", "x twice"]
    seconds = ", ".join(
        f"``{formula}``" + (f" with respect to {pair}" if row.nin > 1 else "")
        for formula, pair in zip(row.second_derivative_formula, pairs, strict=True)
    )
    lines = [
        "Notes",
        "-----",
        _paragraph(f"Derivative: {derivatives}."),
        _paragraph(f"Second derivative: {seconds}."),
        "",
        _paragraph(
            f"Max error over all inputs: value {value_ulp:g} ULP, "
            f"derivative {derivative_ulp:g} ULP, second derivative {second_ulp:g} ULP "
            f"(NumPy twin: {REFERENCE_MAX_ULP:g} ULP)."
        ),
    ]
    if row.ulp_of_operands:
        lines += ["The value's error is in ULP of the largest among the value and the operands."]
    for result, term in row.terms:
        which = f"{'the' if result == 'value' else 'a'} {result}"
        text = f"Near roots of {which}, its error is in ULP of its largest term, ``{term}``."
        lines += ["", _paragraph(text)]
    if row.default is not None and may_leave_out:
        lines += [
            "",
            f"If `{row.operands[-1]}` is omitted, it is {row.default}. The arguments after it move",
            f"up by one, and the results are those for `{row.operands[0]}` alone, not in tuples.",
        ]
    if row.kinks:
        zeros = " and ".join(f"``{kink} = 0``" for kink in row.kinks)
        lines += ["", f"No derivative exists at {zeros}; the special points give the convention."]
    if row.masked:
        text = "Masked: where the derivative is 0, vjp and jvp give +0, even for inf and NaN."
        lines += ["", text]
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
    at, derivative, second = (
        ", ".join(f"{number:g}" for number in numbers)
        for numbers in (point.at, point.derivative, point.second)
    )
    text = f"- at {at}: value {point.value:g}, derivative {derivative}, second derivative {second}"
    return textwrap.fill(text, 100, subsequent_indent="  ")


# --- all of them ----------------------------------------------------------------------------------


@cache
def make_elementwise(engine: Engine) -> Registry:
    """Return the table's operations on an engine, by name."""

    def make(name: str) -> Any:
        column = Elementwise(OPS[name], engine)
        return column._on_ufunc() if engine.is_native else column

    return Registry(OPS, make)


primitives: Final = make_elementwise(BACKEND)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

else:
    __getattr__ = attributes(globals(), primitives)

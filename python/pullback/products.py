"""Matrix products, layers, and quadratic and bilinear forms.

The rules for shapes are here; the computations are in `pullback.oracle.products`.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback import elementwise
from pullback.engine import BACKEND, OF_VJP, Engine, enter, private, with_methods
from pullback.foreign import door_of
from pullback.jacobians import Jacobian, Kronecker
from pullback.jacobians.primitives import of_layer, of_matrix, of_product, of_vector
from pullback.protocol import (
    WRT,
    Outputs,
    Wrt,
    aligned,
    arrays_of_vjp,
    as_matrix,
    check_wrt,
    is_weak,
    method,
    methods_and_example,
    shown,
    tangents_of,
)
from pullback.registry import Hinted, Registry, attributes
from pullback.shapes import broadcast_shapes, check_axes, with_room
from pullback.tables.elementwise import OPS, OpRow
from pullback.tables.products import PRODUCTS, ProductRow

__all__ = ["Product", "make_products", "products"]

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]


# --- methods, from a row --------------------------------------------------------------------------


def _method(row: ProductRow, name: str) -> Any:
    """Return a method of a product."""
    operands, options = ", ".join(row.operands), ", ".join(row.options)
    optional = ", ".join(f"{n}=None" if n == row.optional else n for n in row.operands)
    tangents = ", ".join(f"t{n}" for n in row.operands)
    keywords = "".join(f", {option}=None" for option in row.options)
    by_keyword = f", *{keywords}" if keywords else ""
    given, taken = f"({operands},)", f"({options},)" if options else "()"
    arguments = row.arguments(name) if name in OF_VJP else ()
    behind = f"({', '.join(arguments[len(row.operands) :])},)"
    of_vjp = (
        f"{', '.join(arguments)}, /, *{keywords}, wrt='all', out=None",
        f"self._of_vjp({name!r}, {given}, {behind}, {taken}, wrt, out)",
    )
    positional, call = {
        "__call__": (
            f"{optional}, /{by_keyword}, out=None",
            f"self._value({given}, {taken}, out)",
        ),
        "vjp": (
            f"{operands}, {row.cotangent}, /, *{keywords}, wrt='all', out=None",
            f"self._vjp({given}, {row.cotangent}, {taken}, wrt, out)",
        ),
        "jvp": (
            f"{operands}, {tangents}, /{by_keyword}, out=None",
            f"self._jvp({given}, ({tangents},), {taken}, out)",
        ),
        "value_and_grad": (
            f"{operands}, /, *, wrt={row.wrt!r}",
            f"self._value_and_grad({given}, wrt)",
        ),
        "jacobian": (
            f"{optional}, /, *{keywords}, wrt='all'",
            f"self._jacobian({given}, {taken}, wrt)",
        ),
        "vjp.jvp": of_vjp,
        "vjp.vjp": of_vjp,
    }[name]
    owner, _, last = name.rpartition(".")
    op = f"{row.name}.{owner}" if owner else row.name
    function = method(op, last, f"self, {positional}", call, _docstring(row, name))
    function.__name__ = private(name)  # by which pickle finds it
    return function


def _docstring(row: ProductRow, name: str) -> str:
    """Return the numpydoc docstring of a product's method, from its row."""
    prefix = "d" if row.cotangent.isupper() else "g"
    cotangents = ", ".join(f"{prefix}{n}" for n in row.operands)
    tangents = ", ".join(f"t{n}" for n in row.operands)
    names = ", ".join(f"`{n}`" for n in row.operands)
    g = row.cotangent
    behind = ", ".join(row.arguments(name)[len(row.operands) + 1 :])
    of_vjp = {"vjp.jvp": f"H(t) + vjp(t{g})", "vjp.vjp": "H(h) and jvp(h)"}
    second = f"{of_vjp.get(name)}, where H(t) is {row.second_formula}"
    if row.options:
        second += " without an activation"
    what = second if name in of_vjp else row.methods.get(name, f"``{row.formula}``")
    what = what.replace("`", "``")
    summary, more, result = {
        "__call__": (f"{row.summary}: {what}", "", f"ndarray or scalar, {row.result}"),
        "vjp": (
            "Return the cotangents of the operands",
            f"{row.cotangent} : array_like, of the result's shape, or a number that fills it\n"
            "    Cotangent of the result. Leading axes in front of its shape are a stack, which\n"
            "    the results keep.\n",
            f"{cotangents} : ndarray, shapes of {names}",
        ),
        "jvp": (
            "Return the tangent of the result",
            f"{tangents} : array_like, shapes of {names}, or None\n    Tangents. None is zero, "
            "and its product is not computed.\n",
            f"ndarray or scalar, {row.result}",
        ),
        "value_and_grad": (
            "Return the value and its gradients in one pass over the matrix, without a batch",
            "",
            "value, gradients : scalar, and ndarray or tuple of ndarray, shapes of operands",
        ),
        "jacobian": (
            "Return the Jacobians with respect to the operands",
            "",
            f"Jacobian or tuple of Jacobian, whose input shapes are those of {names}",
        ),
        "vjp.jvp": (
            "Return the tangents of what vjp returns",
            f"{g} : array_like\n    Cotangent of the result, as vjp takes it.\n"
            f"{behind} : array_like or None, shapes of {names} and `{g}`\n    Tangents. None "
            "is zero, and its product is not computed.\n",
            f"tangents of {cotangents} : ndarray, shapes of vjp's",
        ),
        "vjp.vjp": (
            "Return the cotangents of what vjp takes",
            f"{g} : array_like\n    Cotangent of the result, as vjp takes it.\n"
            f"{behind} : array_like or None, shapes of what vjp returns\n    Cotangents. None is "
            "zero, and its product is not computed.\n",
            f"cotangents of {names} and `{g}` : ndarray, their shapes",
        ),
    }[name]
    lines = [f"{summary}.", "", "Parameters", "----------"]
    lines += [f"{n} : {about}" for n, about in row.operands.items()]
    lines += more.splitlines()
    lines += [f"{option} : {about}, optional" for option, about in row.options.items()]
    if name not in ("__call__", "jvp"):
        lines += [*WRT, "    The others are not computed."]
    if name in ("__call__", "jvp"):
        lines += [
            "out : ndarray, optional",
            "    The array to write the result to; it may overlap the arguments.",
        ]
    if name == "vjp" or name in OF_VJP:
        lines += [
            "out : ndarray, or tuple of ndarray or None, optional",
            "    The arrays to write to, one for each result; an array for a single operand in",
            "    `wrt`. They may overlap the arguments, but not each other.",
        ]
    lines += ["", "Returns", "-------", result]
    if name != "__call__":
        lines += textwrap.wrap(f"{what}.", 92, initial_indent="    ", subsequent_indent="    ")
    lines += [
        "",
        "Raises",
        "------",
        "TypeError",
        "    For a dtype other than bool, integers, float16, float32 and float64"
        + (", or a wrong activation." if row.options else "."),
        "ValueError",
        "    If the shapes do not fit.",
        "",
        "Notes",
        "-----",
        f"Source: {row.source}.",
    ]
    return "\n".join(lines)


# --- shapes, from a signature ---------------------------------------------------------------------


class Axes(NamedTuple):
    """The axes of an operand or a result, such as "(..., m?, k)" in a signature."""

    text: str
    has_batch: bool
    letters: str
    may_lack: str  # the letters with a question mark

    def there(self, ndim: int) -> str:
        """Return the letters of an array of so many axes."""
        lacks = ndim < len(self.letters)
        return "".join(c for c in self.letters if not (lacks and c in self.may_lack))


@cache
def _groups(signature: str) -> tuple[Axes, ...]:
    """Return the operands' axes, then the result's."""
    return tuple(
        Axes(
            text, "..." in text, *("".join(re.findall(p, text)) for p in ("[a-z]", r"[a-z](?=\?)"))
        )
        for text in re.findall(r"\(.*?\)", signature)
    )


class Fit(NamedTuple):
    """The shapes of operands and result, once they fit.

    In the shapes that kernels see, a missing optional axis has extent 1, and the batch axes are
    merged into one if only one operand can have a batch.
    """

    result: Shape
    seen: tuple[Shape, ...]
    seen_result: Shape


class _MisfitError(Exception):
    """Shapes that do not fit, and why."""


def _fit(op: str, row: ProductRow, operands: Sequence[Any]) -> Fit:
    """Fit operands together, or raise a ValueError that names their shapes."""
    shapes = tuple(None if operand is None else operand.shape for operand in operands)
    try:
        fit = _fitted(row.signature, tuple(row.operands), shapes)
    except _MisfitError as error:
        raise ValueError(f"{op}: {_listed(row, operands)}: {error}") from None
    check_axes(op, fit.result)
    return fit


@lru_cache(1024)
def _fitted(signature: str, names: tuple[str, ...], shapes: tuple[Shape | None, ...]) -> Fit:
    *groups, of_result = _groups(signature)
    extents: dict[str, tuple[str, int]] = {}
    batches: list[Shape] = []
    for name, given, axes in zip(names, shapes, groups, strict=True):
        shape = given or ()
        letters = "" if given is None else axes.there(len(shape))
        before = len(shape) - len(letters)
        if before < 0 or (before > 0 and not (axes.has_batch and letters == axes.letters)):
            raise _MisfitError(f"{name} needs {axes.text}")
        batches.append(shape[:before])
        for letter, n in zip(letters, shape[before:], strict=True):
            first, known = extents.setdefault(letter, (name, n))
            if n != known:
                raise _MisfitError(f"{letter} is {known} in {first}, and {n} in {name}")
    try:
        batch = broadcast_shapes(*batches)
    except ValueError:
        raise _MisfitError("the batches do not broadcast") from None
    result = *batch, *(extents[c][1] for c in of_result.letters if c in extents)
    own = [i for i, axes in enumerate(groups) if axes.has_batch]
    if len(own) == 1:
        batches[own[0]] = (math.prod(batch),)
    else:  # with room for axes of matrices and of a stack
        for i, few in zip(own, with_room(3, *(batches[i] for i in own)), strict=True):
            batches[i] = few

    def core(axes: Axes) -> Shape:
        return tuple(extents.get(c, ("", 1))[1] for c in axes.letters)

    seen = tuple(own + core(axes) for own, axes in zip(batches, groups, strict=True))
    return Fit(result, seen, broadcast_shapes(*batches) + core(of_result))


def _listed(row: ProductRow, operands: Sequence[Any]) -> str:
    named = zip(row.operands, operands, strict=True)
    return ", ".join(f"{name} has shape {a.shape}" for name, a in named if a is not None)


def _row_of(primitive: Any) -> OpRow | None:
    """Return the row of an elementwise primitive, on any engine, or None for all else."""
    row = getattr(primitive, "row", None)
    return row if isinstance(row, OpRow) and row is OPS.get(row.name) else None


def _sum(terms: Sequence[Any]) -> Any:
    """Return the sum of arrays, None for none; of more than two in float64."""
    if len(terms) < 3:
        return terms[0] + terms[1] if len(terms) == 2 else terms[0] if terms else None
    return np.sum(terms, axis=0, dtype=np.float64)


def _whole(array: Any) -> bool:
    """Tell whether strides are whole elements, which those of aligned arrays may not be."""
    return all(stride % array.itemsize == 0 for stride in array.strides)


# --- the primitives -------------------------------------------------------------------------------


class Product(Hinted):
    """A primitive made of matrix products: a row of the table, on an engine.

    Arguments compute in `pullback.protocol.result_dtype` and are never written.

    Parameters
    ----------
    row : ProductRow
        Its row in the table.
    engine : Engine
        The functions that it calls.
    activations : mapping
        The elementwise primitives of the same engine, by name.
    """

    def __init__(self, row: ProductRow, engine: Engine, activations: Mapping[str, Any]) -> None:
        self.row = row
        self._engine = engine
        self._names = tuple(row.operands)
        self._activations = activations
        self.__name__ = self.__qualname__ = row.name
        self.__module__ = engine.module("products")
        methods = {name: _method(row, name) for name in ("__call__", *row.methods)}
        of_vjp = {private(name): _method(row, name) for name in OF_VJP}
        named = (*(methods[name] for name in row.methods), *of_vjp.values())
        end = methods_and_example(row.name, named)
        self.__doc__ = f"{methods['__call__'].__doc__}\n\n{end}"
        own: Any = type(type(self).__name__, (type(self),), methods | of_vjp)
        self.__class__ = own  # whose methods have the row's signature
        for name in methods if engine.is_native else ():
            kind = "value" if name == "__call__" else name
            make = partial(engine.kernels.product_method, row.name, kind)
            # On the class, where calls look.
            setattr(own, name, enter(make, self, name, row.name, self.__module__))
        own.vjp = with_methods(self.vjp, self, engine)

    if TYPE_CHECKING:  # methods, from the row
        __call__: Any
        vjp: Any
        jvp: Any

    def __repr__(self) -> str:
        return f"<product {self.__name__}{self._engine.remark}>"

    def __reduce__(self) -> str:
        return self.__name__

    # --- the methods ---

    def _value(self, given: tuple[Any, ...], options: tuple[Any, ...], out: Any) -> Any:
        if (door := door_of(*given)) is not None:
            return door.traced(self)(*given, **dict(zip(self.row.options, options, strict=True)))
        op = self.row.name
        activation = self._activation(op, options)
        operands = self._arrays(op, given)
        fit = _fit(op, self.row, operands)
        return self._single(op, "value", fit, operands, activation, out)

    def _jvp(
        self, given: tuple[Any, ...], tangents: tuple[Any, ...], options: tuple[Any, ...], out: Any
    ) -> Any:
        op = f"{self.row.name}.jvp"
        activation = self._activation(op, options)
        operands, tangents = tangents_of(
            op, given, tangents, self._names, optional=self.row.optional
        )
        fit = _fit(op, self.row, operands)
        return self._single(op, "jvp", fit, operands + tangents, activation, out)

    def _single(
        self, op: str, method: str, fit: Fit, arrays: Any, activation: Any, out: Any
    ) -> Any:
        dtype = arrays[0].dtype
        outputs = Outputs(op, out, [fit.result], dtype, arrays, single=True)
        others = arrays[len(self._names) :]
        if others and all(t is None for t in others):
            (result,) = outputs.deliver([np.zeros(fit.result, dtype)])
        else:
            shapes = (*fit.seen, *fit.seen)[: len(arrays)]
            (result,) = outputs.deliver(
                self._results(
                    method, arrays, shapes, activation, (0,), outputs.targets(fit.seen_result)
                )
            )
        return result if out is not None or result.ndim else result[()]

    def _vjp(
        self, given: tuple[Any, ...], g: Any, options: tuple[Any, ...], wrt: Any, out: Any
    ) -> Any:
        op = f"{self.row.name}.vjp"
        asked = self._asked(op, wrt, given)
        activation = self._activation(op, options)
        is_number = is_weak(g)
        *operands, g = self._arrays(op, (*given, g))
        fit = _fit(op, self.row, operands)
        if is_number:
            g = np.full(fit.result, g)
        n_stack = g.ndim - len(fit.result)
        stack = g.shape[:n_stack]
        if n_stack < 0 or g.shape[n_stack:] != fit.result:
            raise ValueError(
                f"{op}: {self.row.cotangent} has shape {g.shape}, the result {fit.result}; "
                f"{_listed(self.row, operands)}"
            )
        shapes = [
            None if operands[i] is None else stack + operands[i].shape for i in asked.operands
        ]
        for shape in shapes:
            check_axes(op, shape or ())
        inputs = (*operands, g)
        outputs = Outputs(op, out, shapes, operands[0].dtype, inputs, single=asked.single)
        front = (math.prod(stack),) if stack else ()
        targets = outputs.targets(
            *(None if operands[i] is None else front + fit.seen[i] for i in asked.operands)
        )
        seen = (*fit.seen, front + fit.seen_result)
        cotangents = self._results("vjp", inputs, seen, activation, asked.operands, targets)
        return asked.result(outputs.deliver(cotangents))

    def _of_vjp(
        self,
        name: str,
        given: tuple[Any, ...],
        behind: tuple[Any, ...],
        options: tuple[Any, ...],
        wrt: Any,
        out: Any,
    ) -> Any:
        """Return the tangents of vjp's results, or the cotangents of its arguments."""
        op, row, of_tangents = f"{self.row.name}.{name}", self.row, name == "vjp.jvp"
        names = self._names if of_tangents else (*self._names, row.cotangent)
        asked = self._asked(op, wrt, given if of_tangents else (*given, behind[0]), names)
        activation = self._activation(op, options)

        def shapes(*operands: Any) -> tuple[Fit, Shape]:
            fit = _fit(op, row, operands)
            return fit, fit.result

        called = row.arguments(name)[len(self._names) :]
        operands, (g, *factors), fit, stack = arrays_of_vjp(
            op,
            self._names,
            given,
            behind,
            called,
            shapes,
            of_tangents=of_tangents,
            optional=row.optional,
        )
        front = stack if of_tangents else ()
        shaped = [None if a is None else front + a.shape for a in operands]
        if not of_tangents:
            shaped.append(stack + fit.result)
        wanted = [shaped[k] for k in asked.operands]
        for shape in (stack + fit.result, *wanted):
            check_axes(op, shape or ())
        dtype = g.dtype
        inputs = (*operands, g, *factors)
        outputs = Outputs(op, out, wanted, dtype, inputs, single=asked.single)
        keywords = {"activation": activation} if row.options else {}
        few = tuple(k for k in asked.operands if k < len(operands) and operands[k] is not None)
        with np.errstate(all="ignore"):
            if of_tangents:
                *t, tg = factors
                found = self._tangents_of_vjp(operands, g, t, tg, activation, few)
            else:
                sums: dict[int, list[Any]] = {k: [] for k in few}
                for index in np.ndindex(*stack):
                    t = [None if h is None else h[index] for h in factors]
                    part = self._tangents_of_vjp(operands, g[index], t, None, activation, few)
                    for k in few:
                        sums[k] += [] if part[k] is None else [part[k]]
                found = {k: _sum(terms) for k, terms in sums.items()}
                if len(operands) in asked.operands and any(h is not None for h in factors):
                    pushed = np.empty(stack + fit.result, dtype)
                    for index in np.ndindex(*stack):
                        t = [None if h is None else h[index] for h in factors]
                        pushed[index] = self.jvp(*operands, *t, **keywords)
                    found[len(operands)] = pushed
        results = []
        for k, shape in zip(asked.operands, wanted, strict=True):
            result = found.get(k)
            missing = None if shape is None else np.zeros(shape, dtype)
            results.append(missing if result is None else np.asarray(result, dtype))
        delivered = outputs.deliver(results)
        return asked.result([a if a is None or out is not None else a[()] for a in delivered])

    def _tangents_of_vjp(
        self, operands: Any, g: Any, t: Any, tg: Any, activation: Any, wrt: tuple[int, ...]
    ) -> dict[int, Any]:
        """Return the tangents of the cotangents in `wrt`, None for zero.

        Behind an activation f there is the cotangent f'(Z) g; it moves with Z and with g.
        """
        moves = any(a is not None for a in t)
        if activation is not None:
            Z = self(*operands)
            tZ = self.jvp(*operands, *t) if moves else None
            if moves or tg is not None:
                tg = activation.vjp.jvp(Z, g, tZ, tg)
            g = activation.vjp(Z, g) if moves else g
        by = self.row.second(make_products(self._engine), operands, t, g)
        found = {}
        for k in wrt:
            terms = [by[k]() if moves else None]
            terms += [None if tg is None else self.vjp(*operands, tg, wrt=k)]
            found[k] = _sum([term for term in terms if term is not None])
        return found

    def _value_and_grad(self, given: tuple[Any, ...], wrt: Any) -> tuple[Any, Any]:
        op = f"{self.row.name}.value_and_grad"
        asked = check_wrt(op, wrt, self._names)
        operands = self._arrays(op, given)
        fit = _fit(op, self.row, operands)
        if fit.result:
            listed = _listed(self.row, operands)
            raise ValueError(f"{op}: {listed}: only vectors without a batch are supported")
        outs = (None,) * (1 + len(asked.operands))
        value, *gradients = self._results(
            "value_and_grad", operands, fit.seen, None, asked.operands, outs
        )
        shapes = (operands[i].shape for i in asked.operands)
        shaped = [g.reshape(shape) for g, shape in zip(gradients, shapes, strict=True)]
        return value.reshape(())[()], asked.result(shaped)

    def _jacobian(self, given: tuple[Any, ...], options: tuple[Any, ...], wrt: Any) -> Any:
        op = f"{self.row.name}.jacobian"
        asked = self._asked(op, wrt, given)
        activation = self._activation(op, options)
        named = zip(given, self._names, strict=True)
        lacks = any(a is None and name != self.row.optional for a, name in named)
        plain = None if lacks else self._engine.kernels.plain_arrays(*given)
        operands = self._arrays(op, given) if plain is None else plain
        fit = _fit(op, self.row, operands)
        by = _JACOBIANS[self.row.name](self, fit, operands, activation)
        return asked.result([None if operands[k] is None else by(k) for k in asked.operands])

    # --- what they share ---

    def _asked(self, op: str, wrt: Any, given: tuple[Any, ...], names: tuple[str, ...] = ()) -> Wrt:
        """Return what `wrt` asks for, of which an optional operand that is None is not all."""
        names = names or self._names
        asked = check_wrt(op, wrt, names)
        name = names[asked.operands[0]]
        if all(given[i] is None for i in asked.operands):
            raise ValueError(f"{op}: wrt is {shown(wrt)}, but {name} is None")
        return asked

    def _arrays(self, op: str, given: Sequence[Any]) -> tuple[Any, ...]:
        """Convert operands, where an optional one may be None, and a cotangent."""
        names = (*self._names, self.row.cotangent)
        there = [
            (a, name)
            for a, name in zip(given, names, strict=False)
            if a is not None or name != self.row.optional
        ]
        arrays = iter(aligned(op, *(a for a, _ in there), names=[name for _, name in there]))
        found = {name for _, name in there}
        return tuple(next(arrays) if name in found else None for name in names[: len(given)])

    def _activation(self, op: str, options: tuple[Any, ...]) -> Any:
        """Return the activation as this engine's primitive, or None for none."""
        (activation,) = options or (None,)
        if activation is None:
            return None
        row = OPS.get(activation) if isinstance(activation, str) else _row_of(activation)
        if row is not None and row.nin == 1:
            return self._activations[row.name]
        from pullback.hints import about_function  # noqa: PLC0415  only of what is wrong

        raise TypeError(
            f"{op}: activation must be None or a unary elementwise primitive of pullback, or its "
            f"name, not {shown(activation)}{about_function(activation, unary=True)}"
        )

    def _results(
        self,
        method: str,
        arrays: Sequence[Any],
        shapes: Sequence[Shape],
        activation: Any = None,
        wrt: tuple[int, ...] = (0,),
        targets: tuple[Any, ...] = (None,),
    ) -> Any:
        """Return the engine's results for arrays in these shapes."""
        seen = tuple(
            None if a is None else (a if _whole(a) else a.copy()).reshape(shape)
            for a, shape in zip(arrays, shapes, strict=True)
        )
        outs = tuple(t if t is not None and _whole(t) else None for t in targets)
        with np.errstate(all="ignore"):
            results = self._engine.kernels.product_results(
                self.row.name, method, seen, activation, wrt, outs
            )
        for result, out, target in zip(results, outs, targets, strict=True):
            if out is None and target is not None:
                target[...] = result
        return results


# --- Jacobians ------------------------------------------------------------------------------------


def _of_matmul(_f: Product, fit: Fit, operands: Any, _: None) -> ByOperand:
    if operands[0].ndim == operands[1].ndim == 2:
        return partial(of_product, *operands)
    A, B = (a.reshape(shape) for a, shape in zip(operands, fit.seen, strict=True))
    *batch, m, n = fit.seen_result

    def by(k: int) -> Kronecker:
        return Kronecker(
            *((A, n) if k else (m, B.mT)),
            input_batch=(A, B)[k].shape[:-2],
            output_batch=tuple(batch),
            input_shape=operands[k].shape,
            output_shape=fit.result,
        )

    return by


def _of_linear(f: Any, fit: Fit, operands: Any, activation: Any) -> ByOperand:
    slopes = None if activation is None else activation.derivative(f(*operands))
    return partial(of_layer, operands, slopes, fit.result)


def _of_quadratic_form(f: Any, fit: Fit, operands: Any, _: None) -> ByOperand:
    x, A = operands

    def by(k: int) -> Jacobian:
        row = x if k else f.vjp(x, A, 1.0, wrt=0)
        if x.ndim == 1:
            return of_matrix(row, row) if k else of_vector(row, x.shape)
        (few,) = with_room(2, fit.result)
        rows = row.reshape(*few, 1, x.shape[-1])
        if k:
            return Kronecker(rows, rows, input_batch=(), output_batch=few, output_shape=fit.result)
        return Kronecker(1, rows, input_shape=x.shape, output_shape=fit.result, copy=False)

    return by


def _of_bilinear_form(f: Product, fit: Fit, operands: Any, _: None) -> ByOperand:
    product = make_products(f._engine)["matmul"]
    u, X, v = (a.reshape(shape) for a, shape in zip(operands, fit.seen, strict=True))
    vectors = operands[0].ndim == operands[2].ndim == 1

    def by(k: int) -> Jacobian:
        if k == 1 and vectors:
            return of_matrix(*operands[::2])
        if k == 1:
            rows = u[..., np.newaxis, :], v[..., np.newaxis, :]
            return Kronecker(
                *rows, input_batch=(), output_batch=fit.seen_result, output_shape=fit.result
            )
        others, M = (u, X) if k else (v, X.mT)
        if vectors:
            return of_vector(product(operands[2 - k], M), operands[k].shape)
        gradients = product(as_matrix(others), M).reshape(*others.shape[:-1], 1, M.shape[1])
        return Kronecker(
            1,
            gradients,
            input_batch=(v if k else u).shape[:-1],
            output_batch=fit.seen_result,
            input_shape=operands[k].shape,
            output_shape=fit.result,
            copy=False,
        )

    return by


ByOperand: TypeAlias = Callable[[int], Jacobian]  # one operand's Jacobian, by its position

_JACOBIANS: Final[Mapping[str, Callable[..., ByOperand]]] = {
    "matmul": _of_matmul,
    "linear": _of_linear,
    "quadratic_form": _of_quadratic_form,
    "bilinear_form": _of_bilinear_form,
}

# --- all of them ----------------------------------------------------------------------------------


@cache
def make_products(engine: Engine) -> Registry:
    """Return the table's products on an engine, by name."""
    activations = elementwise.make_elementwise(engine)
    return Registry(PRODUCTS, lambda name: Product(PRODUCTS[name], engine, activations))


products: Final = make_products(BACKEND)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

else:
    __getattr__ = attributes(globals(), products)

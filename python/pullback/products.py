"""Matrix products and what is made of them: layers, quadratic and bilinear forms.

What a product does to shapes stands here; what it computes, in `pullback.calculus`.
"""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback import elementwise
from pullback.engine import BACKEND, Engine
from pullback.jacobians import Kronecker
from pullback.jacobians.arguments import silent
from pullback.jacobians.primitives import are_plain, of_layer, of_matrix, of_product, of_vector
from pullback.protocol import (
    Outputs,
    aligned,
    as_matrix,
    check_wrt,
    method,
    shown,
    tangents_of,
)
from pullback.shapes import MOST_AXES, broadcast_shapes, with_room
from pullback.tables.elementwise import OPS
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
        "jacobian": (f"{optional}, /{by_keyword}", f"self._jacobian({given}, {taken})"),
    }[name]
    return method(row.name, name, f"self, {positional}", call, _docstring(row, name))


def _docstring(row: ProductRow, name: str) -> str:
    """Return the numpydoc docstring of a product's method, from its row."""
    prefix = "d" if row.cotangent.isupper() else "g"
    cotangents = ", ".join(f"{prefix}{n}" for n in row.operands)
    tangents = ", ".join(f"t{n}" for n in row.operands)
    names = ", ".join(f"`{n}`" for n in row.operands)
    what = row.methods.get(name, f"``{row.formula}``").replace("`", "``")
    summary, more, result = {
        "__call__": (f"{row.summary}: {what}", "", f"ndarray or scalar, {row.result}"),
        "vjp": (
            "Return the cotangents of the operands",
            f"{row.cotangent} : array_like, of the result's shape\n    Cotangent of the result.\n",
            f"{cotangents} : ndarray, shapes of {names}",
        ),
        "jvp": (
            "Return the tangent of the result",
            f"{tangents} : array_like, shapes of {names}, or None\n    Tangents; None is zero, "
            "and saves its product.\n",
            f"ndarray or scalar, {row.result}",
        ),
        "value_and_grad": (
            "Return the value and its gradients, reading the matrix once, without a batch",
            "",
            "value, gradients : scalar, and ndarray or tuple of ndarray, shapes of operands",
        ),
        "jacobian": (
            "Return the Jacobians by each operand",
            "",
            f"tuple of {len(row.operands)} Jacobian, whose input shapes are those of {names}",
        ),
    }[name]
    lines = [f"{summary}.", "", "Parameters", "----------"]
    lines += [f"{n} : {about}" for n, about in row.operands.items()]
    lines += more.splitlines()
    lines += [f"{option} : {about}, optional" for option, about in row.options.items()]
    if name in ("vjp", "value_and_grad"):
        lines += [
            "wrt : str, int, a tuple of them, or 'all'",
            "    The operands, by name or position, whose cotangents to compute; what is not asked",
            "    for is not computed. A bare one gives a bare array, not a tuple.",
        ]
    if name in ("__call__", "jvp"):
        lines += [
            "out : ndarray, optional",
            "    Where it goes; may overlap the arguments.",
        ]
    if name == "vjp":
        lines += [
            "out : ndarray, or tuple of ndarray or None, optional",
            "    Where the results go, an entry for each; an array for a bare `wrt`. They may",
            "    overlap the arguments, not each other.",
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


# --- the primitives -------------------------------------------------------------------------------


class Product(ABC):
    """A primitive made of matrix products.

    Arguments compute in `pullback.protocol.result_dtype` and are never written. A subclass says
    what the operands' shapes have to be, and how kernels see them.

    Parameters
    ----------
    engine : Engine
        What computes.
    activations : mapping
        The elementwise primitives of the same engine, by name.
    """

    row: ClassVar[ProductRow]

    def __init__(self, engine: Engine, activations: Mapping[str, Any] = OPS) -> None:
        self._kernels: Any = engine.products[self.row.name]
        self._remark = engine.remark
        self._names = tuple(self.row.operands)
        self._activations = activations
        self.__name__ = self.__qualname__ = self.row.name
        self.__module__ = engine.module("products")
        methods = {name: _method(self.row, name) for name in ("__call__", *self.row.methods)}
        self.__doc__ = methods["__call__"].__doc__
        own: Any = type(type(self).__name__, (type(self),), methods)
        self.__class__ = own  # whose methods have the row's signature
        for name in methods:
            fallback = getattr(self, name)
            call = engine.direct_product(self.row.name, name, fallback)
            if call is fallback:
                continue
            call.__name__ = name
            call.__qualname__ = f"{self.row.name}.{name}"
            call.__module__ = self.__module__
            call.__doc__ = fallback.__doc__
            setattr(own, name, call)  # where calls look

    def __repr__(self) -> str:
        return f"<product {self.__name__}{self._remark}>"

    def __reduce__(self) -> str:
        return self.__name__

    # --- shapes ---

    @abstractmethod
    def _shape(self, op: str, *operands: Any) -> Shape:
        """Return the result's shape, or raise a ValueError that names the operands'."""

    @abstractmethod
    def _seen(self, *operands: Any) -> tuple[tuple[Any, ...], Shape]:
        """Return operands as kernels see them, and the result's shape there."""

    @abstractmethod
    def _jacobians(self, operands: Any, shape: Shape, options: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the Jacobians by each operand."""

    def _options(self, op: str, options: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return options as kernels take them."""
        del op
        return options

    # --- any shapes ---

    def _op(self, method: str) -> str:
        return f"{self.row.name}.{method}" if method else self.row.name

    def _value(self, given: tuple[Any, ...], options: tuple[Any, ...], out: Any) -> Any:
        op = self._op("")
        options = self._options(op, options)
        operands = self._arrays(op, given)
        shape = self._shape(op, *operands)
        outputs = Outputs(op, out, [shape], operands[0].dtype, operands, single=True)
        seen, seen_shape = self._seen(*operands)
        (target,) = outputs.targets(seen_shape)
        with np.errstate(all="ignore"):
            (result,) = outputs.deliver([self._kernels.value(*seen, *options, target)])
        return result if out is not None or result.ndim else result[()]

    def _vjp(
        self, given: tuple[Any, ...], g: Any, options: tuple[Any, ...], wrt: Any, out: Any
    ) -> Any:
        op = self._op("vjp")
        asked = check_wrt(op, wrt, self._names)
        options = self._options(op, options)
        if all(given[i] is None for i in asked.operands):
            name = self._names[asked.operands[0]]
            raise ValueError(f"{op}: wrt is {shown(wrt)}, but {name} is None")
        *operands, g = self._arrays(op, (*given, g))
        shape = self._shape(op, *operands)
        if g.shape != shape:
            name = self.row.cotangent
            given_shapes = self._listed(*operands)
            raise ValueError(
                f"{op}: {name} has shape {g.shape}, the result {shape}; {given_shapes}"
            )
        shapes = [None if operands[i] is None else operands[i].shape for i in asked.operands]
        dtype = operands[0].dtype
        outputs = Outputs(op, out, shapes, dtype, (*operands, g), single=asked.single)
        seen, seen_shape = self._seen(*operands)
        views = [None if seen[i] is None else seen[i].shape for i in asked.operands]
        targets = outputs.targets(*views)
        with np.errstate(all="ignore"):
            cotangents = self._kernels.cotangents(
                *seen, g.reshape(seen_shape), *options, asked.operands, targets
            )
            return asked.result(outputs.deliver(cotangents))

    def _jvp(
        self, given: tuple[Any, ...], tangents: tuple[Any, ...], options: tuple[Any, ...], out: Any
    ) -> Any:
        op, names = self._op("jvp"), self._names
        options = self._options(op, options)
        operands, tangents = tangents_of(op, given, tangents, names)
        shape = self._shape(op, *operands)
        inputs = (*operands, *tangents)
        outputs = Outputs(op, out, [shape], operands[0].dtype, inputs, single=True)
        seen, seen_shape = self._seen(*operands)
        moved = (
            None if t is None else t.reshape(view.shape)
            for t, view in zip(tangents, seen, strict=True)
        )
        nothing = all(t is None for t in tangents)
        (target,) = outputs.targets(seen_shape if not nothing else None)
        with np.errstate(all="ignore"):
            if nothing:
                tangent = np.zeros(seen_shape, operands[0].dtype)
            else:
                tangent = self._kernels.tangent(*seen, *moved, *options, target)
            (result,) = outputs.deliver([tangent])
        return result if out is not None or result.ndim else result[()]

    def _value_and_grad(self, given: tuple[Any, ...], wrt: Any) -> tuple[Any, Any]:
        op = self._op("value_and_grad")
        asked = check_wrt(op, wrt, self._names)
        operands = self._arrays(op, given)
        if self._shape(op, *operands):
            raise self._misfit(op, operands, "only vectors without a batch are supported")
        with np.errstate(all="ignore"):
            value, gradients = self._kernels.value_and_grad(*operands, asked.operands)
        return value.reshape(())[()], asked.result(gradients)

    def _jacobian(self, given: tuple[Any, ...], options: tuple[Any, ...]) -> tuple[Any, ...]:
        op = self._op("jacobian")
        options = self._options(op, options)
        operands = given if are_plain(given) else self._arrays(op, given)
        return self._jacobians(operands, self._shape(op, *operands), options)

    def _arrays(self, op: str, given: Sequence[Any]) -> tuple[Any, ...]:
        """Convert operands, of which an optional one may be None, and a cotangent."""
        names = (*self._names, self.row.cotangent)[: len(given)]
        optional = self.row.optional
        if optional is None or given[k := names.index(optional)] is not None:
            return aligned(op, *given, names=names)
        there, there_names = [*given], [*names]
        del there[k], there_names[k]
        arrays: list[Any] = [*aligned(op, *there, names=there_names)]
        arrays.insert(k, None)
        return tuple(arrays)

    def _listed(self, *operands: Any) -> str:
        named = zip(self.row.operands, operands, strict=True)
        return ", ".join(f"{name} has shape {a.shape}" for name, a in named if a is not None)

    def _misfit(self, op: str, operands: tuple[Any, ...], why: str) -> ValueError:
        return ValueError(f"{op}: {self._listed(*operands)}: {why}")


class Matmul(Product):
    """The matrix product, for every shape that `numpy.matmul` accepts.

    One-dimensional operands are a row on the left and a column on the right, and axes in front of
    the last two are batches, which broadcast.
    """

    row = PRODUCTS["matmul"]

    def _shape(self, op: str, A: Array, B: Array) -> Shape:
        for name, operand in (("A", A), ("B", B)):
            if operand.ndim == 0:
                raise self._misfit(op, (A, B), f"{name} needs at least one axis")
        k, k_B = A.shape[-1], B.shape[-2:][0]
        if k != k_B:
            raise self._misfit(op, (A, B), f"the contracted axes have lengths {k} and {k_B}")
        try:
            batch = broadcast_shapes(A.shape[:-2], B.shape[:-2])
        except ValueError:
            raise self._misfit(op, (A, B), "the batches do not broadcast") from None
        return (*batch, *A.shape[-2:-1], *(B.shape[-1:] if B.ndim > 1 else ()))

    def _seen(self, A: Array, B: Array) -> tuple[tuple[Any, ...], Shape]:
        rows = A[np.newaxis, :] if A.ndim == 1 else A
        columns = B[:, np.newaxis] if B.ndim == 1 else B
        batch = broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
        return (rows, columns), (*batch, rows.shape[-2], columns.shape[-1])

    def _jacobians(self, operands: Any, shape: Shape, options: tuple[Any, ...]) -> tuple[Any, ...]:
        del options
        if operands[0].ndim == operands[1].ndim == 2:
            return of_product(*operands)
        (rows, columns), (*batch, m, n) = self._seen(*operands)
        return tuple(
            Kronecker(
                left,
                right,
                input_batch=seen.shape[:-2],
                output_batch=tuple(batch),
                input_shape=operand.shape,
                output_shape=shape,
            )
            for left, right, seen, operand in (
                (m, columns.mT, rows, operands[0]),
                (rows, n, columns, operands[1]),
            )
        )

    def _jacobian(self, given: tuple[Any, ...], options: tuple[Any, ...]) -> tuple[Any, ...]:
        if are_plain(given):
            A, B = given
            if A.ndim == B.ndim == 2 and A.shape[1] == B.shape[0]:
                return of_product(A, B)
        return super()._jacobian(given, options)


class Linear(Product):
    """A linear layer: a matrix product, a bias, an activation."""

    row = PRODUCTS["linear"]

    def _shape(self, op: str, X: Array, W: Array, b: Array | None) -> Shape:
        if X.ndim == 0:
            raise self._misfit(op, (X, W, b), "X needs at least one axis")
        if W.ndim != 2:
            raise self._misfit(op, (X, W, b), "W needs two axes")
        k, n = W.shape
        if X.shape[-1] != k:
            raise self._misfit(
                op, (X, W, b), f"the contracted axes have lengths {X.shape[-1]} and {k}"
            )
        if b is not None and b.shape != (n,):
            raise self._misfit(op, (X, W, b), f"b needs ({n},)")
        return (*X.shape[:-1], n)

    def _seen(self, X: Array, W: Array, b: Array | None) -> tuple[tuple[Any, ...], Shape]:
        rows = as_matrix(X)
        return (rows, W, b), (len(rows), W.shape[1])

    def _jacobians(self, operands: Any, shape: Shape, options: tuple[Any, ...]) -> tuple[Any, ...]:
        (f,) = options
        slopes = None if f is None else f.derivative(self(*operands))  # type: ignore[operator]
        X, W, b = operands
        return of_layer(X, W, b, slopes, shape)

    def _options(self, op: str, options: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the activation as this engine's primitive, or None for None."""
        (activation,) = options
        if activation is None:
            return options
        name = str(getattr(activation, "__name__", "")).rpartition(".")[2]
        known = name in OPS and OPS[name].nin == 1
        if known and (
            activation is self._activations[name] or elementwise.is_primitive(activation, name)
        ):
            return (self._activations[name],)
        raise TypeError(
            f"{op}: activation must be None or a unary elementwise primitive of pullback, "
            f"not {shown(activation)}"
        )


class QuadraticForm(Product):
    """The quadratic form of each vector of a batch."""

    row = PRODUCTS["quadratic_form"]

    def _shape(self, op: str, x: Array, A: Array) -> Shape:
        if x.ndim == 0 or A.shape != (x.shape[-1],) * 2:
            raise self._misfit(op, (x, A), "they need (..., n) and (n, n)")
        return x.shape[:-1]

    def _seen(self, x: Array, A: Array) -> tuple[tuple[Any, ...], Shape]:
        rows = as_matrix(x)
        return (rows, A), (len(rows),)

    def _jacobians(self, operands: Any, shape: Shape, options: tuple[Any, ...]) -> tuple[Any, ...]:
        del options
        x, A = operands
        gx = self.vjp(x, A, np.ones(shape, x.dtype), wrt=0)  # type: ignore[attr-defined]
        if x.ndim == 1:
            return of_vector(gx, x.shape), of_matrix(x, x)
        (few,) = with_room(2, shape)
        row_shape = (*few, 1, x.shape[-1])
        gx, row = gx.reshape(row_shape), x.reshape(row_shape)
        by_x = Kronecker(1, gx, input_shape=x.shape, output_shape=shape, copy=False)
        return by_x, Kronecker(row, row, input_batch=(), output_batch=few, output_shape=shape)


class BilinearForm(Product):
    """The bilinear form of each pair of vectors of a batch."""

    row = PRODUCTS["bilinear_form"]

    def _shape(self, op: str, u: Array, X: Array, v: Array) -> Shape:
        if u.ndim == 0 or v.ndim == 0 or X.shape != (u.shape[-1], v.shape[-1]):
            raise self._misfit(op, (u, X, v), "they need (..., m), (m, n) and (..., n)")
        try:
            return broadcast_shapes(u.shape[:-1], v.shape[:-1])
        except ValueError:
            raise self._misfit(op, (u, X, v), "the batches do not broadcast") from None

    def _seen(self, u: Array, X: Array, v: Array) -> tuple[tuple[Any, ...], Shape]:
        """Return vectors with room for one more axis."""
        if max(u.ndim, v.ndim) >= MOST_AXES:
            few = with_room(2, u.shape[:-1], v.shape[:-1])
            u, v = u.reshape(*few[0], u.shape[-1]), v.reshape(*few[1], v.shape[-1])
        return (u, X, v), broadcast_shapes(u.shape[:-1], v.shape[:-1])

    def _jacobians(self, operands: Any, shape: Shape, options: tuple[Any, ...]) -> tuple[Any, ...]:
        del options
        (u, X, v), batch = self._seen(*operands)

        def by_vector(k: int, seen: Array, gradient: Array) -> Kronecker:
            return Kronecker(
                1,
                gradient[..., np.newaxis, :],
                input_batch=seen.shape[:-1],
                output_batch=batch,
                input_shape=operands[k].shape,
                output_shape=shape,
                copy=False,
            )

        rows = u[..., np.newaxis, :], v[..., np.newaxis, :]
        by_X = Kronecker(*rows, input_batch=(), output_batch=batch, output_shape=shape)
        Xv, uX = _rows(self._kernels, v, X.mT), _rows(self._kernels, u, X)
        if u.ndim == v.ndim == 1:
            return of_vector(Xv, u.shape), of_matrix(u, v), of_vector(uX, v.shape)
        return by_vector(0, u, Xv), by_X, by_vector(2, v, uX)


@silent
def _rows(kernels: Any, rows: Array, M: Array) -> Array:
    return kernels.rows(rows, M)  # type: ignore[no-any-return]


# --- all of them ----------------------------------------------------------------------------------

_KINDS: Final[tuple[type[Product], ...]] = (Matmul, Linear, QuadraticForm, BilinearForm)


@cache
def make_products(engine: Engine) -> Mapping[str, Any]:
    """Return the table's products on an engine, by name."""
    activations = elementwise.make_elementwise(engine)
    return MappingProxyType({kind.row.name: kind(engine, activations) for kind in _KINDS})


products: Final = make_products(BACKEND)
globals().update(products)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

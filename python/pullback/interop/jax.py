"""Primitives and losses for JAX, on the CPU.

``import pullback.interop.jax as pj``, and every primitive is there under its name: `pj.gelu`,
`pj.softmax`, `pj.linear`, `pj.logistic`, ``pj.logistic.pointwise``. They take and return JAX
arrays of float32 or float64, inside `jax.jit`, `jax.grad`, `jax.vmap` and the rest, and have the
bits of the NumPy door.

Everything is made from the registry. One JAX primitive stands for every method of every primitive.
XLA calls it through its foreign function interface: a kernel without the GIL for elementwise
operations, the method of the NumPy door for the rest.
"""

from __future__ import annotations

import builtins  # of which primitives have the names
import inspect
import json
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir
    from jax.sharding import NamedSharding, PartitionSpec
except ImportError as error:
    raise ImportError("pullback.interop.jax needs JAX: pip install 'pullback[jax]'") from error

try:
    from pullback import _jax
except ImportError as error:
    raise ImportError(
        "pullback.interop.jax needs handlers that this installation was built without; with a "
        "compiler, PULLBACK_JAX=1 pip install --no-binary pullback 'pullback[jax]' builds them"
    ) from error

from pullback import catalogue
from pullback.engine import BACKEND
from pullback.losses import Loss
from pullback.objective import LinearObjective
from pullback.products import _fit, _groups
from pullback.protocol import broadcast_shape, shown
from pullback.registry import Registry, attributes
from pullback.tables.elementwise import OpRow
from pullback.tables.products import ProductRow
from pullback.tables.reductions import ReductionRow
from pullback.tables.selections import SelectionRow

__all__ = ["Function", "function_of", "primitives"]

Shape: TypeAlias = tuple[int, ...]
Arrays: TypeAlias = Sequence[Any]

_FLOATS: Final = (np.dtype(np.float32), np.dtype(np.float64))
_KERNELS: Final = ("value", "", "", "vjp", "jvp", "", "vjp.jvp", "vjp.vjp")  # as in the C++ tables
_SYMMETRIC: Final = ("softmax", "layer_norm", "rms_norm")  # maps that have such Jacobians


# --- calls ----------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A call of a method, the parameter of the JAX primitive.

    The arguments are the arrays that are there; of methods of vjp, g; and then tangents, or
    cotangents h, of the arrays `moved`. Positions are those in ``of.arrays``, and behind them is g.
    """

    of: Function
    method: str
    there: tuple[int, ...]
    moved: tuple[int, ...] = ()
    wrt: tuple[int, ...] = ()  # whose results there are
    options: tuple[tuple[str, Any], ...] = ()

    def bind(self, *arguments: Any) -> Any:
        """Bind the primitive; return a list."""
        return _call.bind(*_varying_alike(arguments), call=self)

    def other(self, method: str, moved: Iterable[int] = (), wrt: Iterable[int] = ()) -> Call:
        """Return a call of another method, of the same arrays."""
        return self._replace(method=method, moved=tuple(moved), wrt=tuple(wrt))

    @property
    def positions(self) -> tuple[int, ...]:
        """The array to which each argument belongs."""
        return (*self.there, *([self.of.g] if self.method in _OF_G else []), *self.moved)

    def split(self, arguments: Arrays) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
        """Return the arrays, g in a tuple or nothing, and the rest."""
        n = len(self.there)
        k = n + (self.method in _OF_G)
        return tuple(arguments[:n]), tuple(arguments[n:k]), tuple(arguments[k:])

    def text(self) -> str:
        """Return what XLA keeps of it: in its cache, it means the same in another process."""
        return json.dumps([self.of.key, *self[1:]])

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Return the results' shapes."""
        arrays, *_ = self.split(shapes)
        at = dict(zip(self.there, arrays, strict=True))
        at[self.of.g] = result = self.of.shape(self, at)
        has_value = [result] if self.method in ("value", "value_and_vjp", "jvp") else []
        return has_value + [at[k] for k in self.wrt]


_OF_G: Final = frozenset(("vjp", "vjp.jvp", "vjp.vjp"))


def _varying(array: Any) -> frozenset[str]:
    """Return the axes of a mesh over which an array varies, inside `jax.shard_map`."""
    kind = jax.typeof(array) if hasattr(jax, "typeof") else None  # from 0.6 on
    kind = getattr(kind, "mat", kind)
    axes: frozenset[str] = getattr(kind, "varying", getattr(kind, "vma", frozenset()))
    return axes


def _varying_alike(arrays: Arrays) -> Arrays:
    """Return arrays that vary over the same axes."""
    own = [_varying(a) for a in arrays]
    every: frozenset[str] = frozenset().union(*own)
    if all(axes == every for axes in own):
        return arrays
    return [
        jax.lax.pcast(a, tuple(every - axes), to="varying") if every - axes else a
        for a, axes in zip(arrays, own, strict=True)
    ]


# --- functions ------------------------------------------------------------------------------------


class Function:
    """A primitive of pullback as a function of JAX arrays, with the NumPy door's parameters.

    Parameters
    ----------
    name : str
        Its name.
    f : object
        The primitive.
    key : str, optional
        Where `_named` finds it; by its name when omitted.
    """

    EXTRA: ClassVar[tuple[str, ...]] = ()  # parameters that are arrays, beside the operands

    def __init__(self, name: str, f: Any, key: str = "") -> None:
        self.f, self.key = f, key or name
        self.row: Any = getattr(f, "row", None)
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__
        summary = getattr(self.row, "summary", "Value")
        self.__doc__ = f"{summary}.\n\nParameters are those of ``pullback.{name}``, without `out`."
        parameters = {p.name: p.replace(annotation=p.empty) for p in self.parameters()}
        self.__signature__ = inspect.Signature([*parameters.values()])
        operands = self.operands()
        self.count = len(operands)  # of the arrays that methods take by position
        extra = (n for n in parameters if n in self.EXTRA and n not in operands)
        self.arrays = (*operands, *extra)
        self.options = tuple(n for n in parameters if n not in self.arrays)
        self.required = [
            n for n in self.options if parameters[n].default is inspect.Parameter.empty
        ]
        self.optional = [n for n in self.arrays if parameters[n].default is None]
        self.g = len(self.arrays)
        self.moved = self.has_derivatives()

    def __repr__(self) -> str:
        return f"<{self.__name__} of pullback, of JAX arrays>"

    def __reduce__(self) -> Any:
        return _named, (self.key,)

    def __call__(self, *arrays: Any, **options: Any) -> Any:
        """Return the value."""
        try:
            bound = self.__signature__.bind(*arrays, **options)
        except TypeError as error:
            raise TypeError(f"{self.__name__}: {error}") from None
        bound.apply_defaults()
        taken = {name: a for name in self.arrays if (a := bound.arguments[name]) is not None}
        for name in self.arrays:
            if name not in taken and name not in self.optional:
                raise TypeError(f"{self.__name__}: {name} is None")
        there = tuple(k for k, name in enumerate(self.arrays) if name in taken)
        chosen = {name: _plain(self.__name__, name, bound.arguments[name]) for name in self.options}
        given, chosen = self.checked(self.converted(taken), chosen)
        return Call(self, "value", there, options=tuple(chosen.items())).bind(*given.values())[0]

    # --- what kinds of primitives differ in ---

    def parameters(self) -> list[inspect.Parameter]:
        """Return the parameters: the NumPy door's, but `out`."""
        found: Any = inspect.signature(type(self.f).__call__).parameters.values()
        found = [p for p in found if p.name not in ("self", "out")]
        return [p.replace(default=None) if p.name == "where" else p for p in found]

    def operands(self) -> tuple[str, ...]:
        """Return the names of the operands."""
        return tuple(self.row.operands)

    def has_derivatives(self) -> tuple[int, ...]:
        """Return the positions of the arrays by which there are derivatives."""
        return tuple(range(self.count))

    def converted(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return arrays of one dtype, float32 or float64."""
        where = {} if (mask := given.pop("where", None)) is None else {"where": mask}
        dtype = _dtype(self.__name__, given)
        arrays = {name: jnp.asarray(a, dtype) for name, a in given.items()}
        return arrays | {name: jnp.asarray(a, bool) for name, a in where.items()}

    def checked(
        self, arrays: dict[str, Any], options: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return arrays and options, once they fit."""
        return arrays, options

    def at(self, options: dict[str, Any]) -> Any:
        """Return the primitive; takes its parameter, where it has one, from `options`."""
        return self.f

    def shape(self, call: Call, at: dict[int, Shape]) -> Shape:
        """Return the value's shape, by those of the arrays."""
        raise NotImplementedError

    def dtype(self, call: Call, dtypes: Sequence[Any]) -> Any:
        """Return the value's dtype."""
        return dtypes[0]

    def kernel(self, call: Call, shapes: Sequence[Shape]) -> dict[str, Any] | None:
        """Return what the handler of kernels has to know, None for one of the other handler."""
        return None

    def second(self, call: Call, arrays: Arrays, t: dict[int, Any], u: dict[int, Any]) -> Any:
        """Return the second derivative of the value along two tangents.

        Here by rows of the Hessian tensor, one call for each element of the value.
        """
        (shape,) = call.shapes([a.shape for a in (*arrays, *t.values())])
        n = builtins.max(1, int(np.prod(shape)))
        basis = jnp.eye(n, dtype=arrays[0].dtype).reshape(n, *shape)
        rows = call.other("vjp.jvp", u, t)

        def element(one: Any) -> Any:
            changes = rows.bind(*arrays, one, *u.values())
            return builtins.sum(jnp.sum(a * b) for a, b in zip(t.values(), changes, strict=True))

        return jax.lax.map(element, basis).reshape(shape)

    def batched(
        self, call: Call, size: int, arguments: Arrays, of: Sequence[bool], shapes: Sequence[Shape]
    ) -> Any:
        """Return the results of a batch in one call, None where that cannot be.

        Arguments have the batch's axis in front, if they have it; `shapes` are without it.
        """
        return None

    def numpy(self, call: Call) -> Callable[[Any, Any], None]:
        """Return a function of arrays and outputs that calls the method of the NumPy door."""
        options = {sys.intern(name): given for name, given in call.options}  # for fast paths
        function = self.at(options)
        for part in call.method.split(".") if call.method != "value" else ():
            function = getattr(function, part)
        takes = inspect.signature(function).parameters
        others = {"jvp": self.moved, "vjp.vjp": self.moved, "vjp.jvp": (*self.moved, self.g)}
        names = (*self.arrays, getattr(self.row, "cotangent", "g"))
        has_wrt, has_out = "wrt" in takes, "out" in takes
        # Where each positional argument is among the arrays, None, and the required options.
        n, behind = len(call.positions), len(call.positions) - len(call.moved)
        at = dict(zip(call.there, range(n), strict=False))
        along = dict(zip(call.moved, range(behind, n), strict=True))
        where = [at.get(k, n) for k in range(self.count)]
        where += range(n + 1, n + 1 + len(self.required))
        where += range(len(call.there), behind)
        where += [along.get(k, n) for k in others.get(call.method, ())]
        fixed = (None, *(options.pop(name) for name in self.required))
        extra = {sys.intern(self.arrays[k]): at[k] for k in call.there if k >= self.count}
        if has_wrt:
            options["wrt"] = tuple(names[k] for k in call.wrt)

        def run(arrays: Any, outs: Any) -> None:
            every = arrays + fixed
            keywords = {name: every[k] for name, k in extra.items()} if extra else {}
            given = [every[k] for k in where]
            if has_out:
                out = outs if has_wrt else outs[0]
                function(*given, out=out, **keywords, **options)
            else:
                np.copyto(outs[0], function(*given, **keywords, **options))

        return run


class _Elementwise(Function):
    def parameters(self) -> list[inspect.Parameter]:
        row = self.row
        of_last = inspect.Parameter.empty if row.default is None else row.default
        defaults = [inspect.Parameter.empty] * (row.nin - 1) + [of_last]
        kind = inspect.Parameter.POSITIONAL_ONLY
        pairs = zip(row.operands, defaults, strict=True)
        return [inspect.Parameter(name, kind, default=default) for name, default in pairs]

    def shape(self, call: Call, at: dict[int, Shape]) -> Shape:
        return broadcast_shape(self.__name__, **dict(zip(self.arrays, at.values(), strict=True)))

    def kernel(self, call: Call, shapes: Sequence[Shape]) -> dict[str, Any] | None:
        """Return the kernel, if it takes the arguments as they lie in memory, of one size or 1."""
        arrays, *_ = call.split(shapes)
        whole = self.shape(call, dict(enumerate(arrays)))
        if not BACKEND.is_native:
            return None
        for k, shape in zip(call.positions, shapes, strict=True):
            if shape != whole and (any(n != 1 for n in shape) or k in call.wrt):
                return None
        behind = self.g + (call.method in _OF_G)
        given = [*range(behind), *(behind + k for k in call.moved)]
        return {
            "op": self.__name__,
            "method": np.int64(_KERNELS.index(call.method)),
            "given": np.int64(builtins.sum(1 << k for k in given)),
            "wanted": np.int64(builtins.sum(1 << k for k in call.wrt) or 1),
        }

    def second(self, call: Call, arrays: Arrays, t: dict[int, Any], u: dict[int, Any]) -> Any:
        (shape,) = call.shapes([a.shape for a in (*arrays, *t.values())])
        arrays, along = _broadcast(shape, arrays), _broadcast(shape, u.values())
        ones = jnp.ones(shape, arrays[0].dtype)
        changes = call.other("vjp.jvp", u, t).bind(*arrays, ones, *along)
        return builtins.sum(a * b for a, b in zip(t.values(), changes, strict=True))

    def batched(
        self, call: Call, size: int, arguments: Arrays, of: Sequence[bool], shapes: Sequence[Shape]
    ) -> Any:
        return _elementwise_batch(call, size, arguments, of, shapes)


class _Rows(Function):
    """A reduction or a map of rows."""

    EXTRA = ("where", "b")

    def checked(
        self, arrays: dict[str, Any], options: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make all arrays have one shape, and of the axes a tuple of positions."""
        x = arrays["x"]
        axis = options.pop("axis")
        axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        for k in axes:
            if not -x.ndim <= k < x.ndim:
                raise np.exceptions.AxisError(k, x.ndim, self.__name__)
        about = self.row.parameter
        if about is not None:
            options[about.name] = self.f._parameter(self.__name__, options[about.name])
        for name, a in arrays.items():
            if name in self.EXTRA and np.broadcast_shapes(a.shape, x.shape) == x.shape:
                arrays[name] = jnp.broadcast_to(a, x.shape)
            elif a.shape != x.shape:
                raise ValueError(f"{self.__name__}: x has shape {x.shape}, {name} has {a.shape}")
        return arrays, {"axis": tuple(sorted({k % x.ndim for k in axes})), **options}

    def shape(self, call: Call, at: dict[int, Shape]) -> Shape:
        if self.row.is_map:
            return at[0]
        options = dict(call.options)
        axes, kept = options["axis"], options["keepdims"]
        return tuple(1 if k in axes else n for k, n in enumerate(at[0]) if kept or k not in axes)

    def second(self, call: Call, arrays: Arrays, t: dict[int, Any], u: dict[int, Any]) -> Any:
        change = call.other("vjp.jvp", u, t)
        options = dict(call.options)
        if not self.row.is_map:
            (shape,) = call.shapes([a.shape for a in (*arrays, *t.values())])
            ones = jnp.ones(shape, arrays[0].dtype)
            changes = change.bind(*arrays, ones, *u.values())
            total = builtins.sum(a * b for a, b in zip(t.values(), changes, strict=True))
            return jnp.sum(total, options["axis"], keepdims=options["keepdims"])
        if self.__name__ in _SYMMETRIC and self.count == 1:
            return change.bind(*arrays, t[0], u[0])[0]
        if self.__name__ == "log_softmax":
            normaliser: Any = primitives["logsumexp"]
            # Its arrays may include b, before `where`.
            there = tuple(normaliser.arrays.index(self.arrays[k]) for k in call.there)
            options = {"axis": options["axis"], "keepdims": True}
            moved = Call(normaliser, "jvp", there, (0,), options=tuple(options.items()))
            return jnp.zeros_like(t[0]) - normaliser.second(moved, arrays, t, u)
        return super().second(call, arrays, t, u)

    def batched(
        self, call: Call, size: int, arguments: Arrays, of: Sequence[bool], shapes: Sequence[Shape]
    ) -> Any:
        whole = _in_batch(size, arguments, of)
        options = dict(call.options)
        options["axis"] = tuple(k + 1 for k in options["axis"])
        return call._replace(options=tuple(options.items())).bind(*whole)


class _Product(Function):
    def checked(
        self, arrays: dict[str, Any], options: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Check the activation."""
        if "activation" in options:
            activation = self.f._activation(self.__name__, (options["activation"],))
            options["activation"] = None if activation is None else activation.row.name
        return arrays, options

    def shape(self, call: Call, at: dict[int, Shape]) -> Shape:
        every = [
            jax.ShapeDtypeStruct(at[k], np.float32) if k in at else None for k in range(self.count)
        ]
        return _fit(self.__name__, self.row, every).result

    def second(self, call: Call, arrays: Arrays, t: dict[int, Any], u: dict[int, Any]) -> Any:
        if self.__name__ == "matmul":  # whose tangent is linear in the operands, too
            moved = (t.get(k, jnp.zeros_like(a)) for k, a in enumerate(arrays))
            return call.other("jvp", u).bind(*moved, *u.values())[0]
        formula = _FORMULAS.get(self.__name__)
        if formula is None:
            return super().second(call, arrays, t, u)

        def along(given: dict[int, Any], f: Any) -> Any:
            pairs = zip(call.there, arrays, strict=True)
            tangents = tuple(given.get(k, jnp.zeros_like(a)) for k, a in pairs)
            return lambda *at: jax.jvp(f, at, tangents)[1]

        activation = dict(call.options).get("activation")

        def f(*operands: Any) -> Any:
            z = formula(*operands)
            return z if activation is None else primitives[activation](z)

        return along(u, along(t, f))(*arrays)

    def batched(
        self, call: Call, size: int, arguments: Arrays, of: Sequence[bool], shapes: Sequence[Shape]
    ) -> Any:
        own = _of_batch(call, of)
        *groups, of_result = _groups(self.row.signature)
        arrays, *_ = call.split(shapes)
        at = dict(zip(call.there, arrays, strict=True))
        cores = {k: groups[k].there(len(shape)) for k, shape in at.items()}
        if any(not groups[k].has_batch or cores[k] != groups[k].letters for k in own):
            return None
        result, letters = self.shape(call, at), "".join(cores.values())
        cores[self.g] = "".join(c for c in of_result.letters if c in letters)
        rank = len(result) - len(cores[self.g])
        whole = []
        for k, a, b, s in zip(call.positions, arguments, of, shapes, strict=True):
            if k not in own and k != self.g:
                whole.append(a)
                continue
            a = a if b else jnp.broadcast_to(a, (size, *s))
            whole.append(a.reshape(size, *(1,) * (rank + len(cores[k]) - len(s)), *s))
        return call.bind(*whole)


_FORMULAS: Final[dict[str, Callable[..., Any]]] = {
    "linear": lambda X, W, b=0: primitives["matmul"](X, W) + b,
    "quadratic_form": lambda x, A: jnp.sum(x * primitives["matmul"](x, A), -1),
    "bilinear_form": lambda u, X, v: jnp.sum(primitives["matmul"](u, X) * v, -1),
}


class _Selection(Function):
    def parameters(self) -> list[inspect.Parameter]:
        found = super().parameters()
        return [p.replace(default=None) if p.name in self.row.optional else p for p in found]

    def has_derivatives(self) -> tuple[int, ...]:
        moved: tuple[int, ...] = self.row.moved
        return moved

    def converted(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keep indices, and make conditions bools."""
        name, constant = self.row.constant, given.pop(self.row.constant, None)
        arrays = super().converted(given)
        if name is None:
            return arrays
        kept = jnp.asarray(constant)
        if self.row.is_elementwise:
            kept = kept.astype(bool)
        elif not jnp.issubdtype(kept.dtype, jnp.integer):
            raise TypeError(f"{self.__name__}: {name} must be integers, not {kept.dtype}")
        arrays[name] = kept
        return {name: arrays[name] for name in self.arrays if name in arrays}

    def checked(
        self, arrays: dict[str, Any], options: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make an axis a position."""
        axis = options.get("axis")
        if axis is not None:
            n = arrays["x"].ndim
            if not -n <= axis < n:
                raise np.exceptions.AxisError(axis, n, self.__name__)
            options["axis"] = axis % n
        return arrays, options

    def shape(self, call: Call, at: dict[int, Shape]) -> Shape:
        if self.row.is_elementwise:
            there = {self.arrays[k]: at[k] for k in call.there}
            return broadcast_shape(self.__name__, **there)
        axis = dict(call.options)["axis"]
        return at[1] if axis is None else (*at[0][:axis], *at[1], *at[0][axis + 1 :])

    def dtype(self, call: Call, dtypes: Sequence[Any]) -> Any:
        return dtypes[call.there.index(self.moved[0])]

    def second(self, call: Call, arrays: Arrays, t: dict[int, Any], u: dict[int, Any]) -> Any:
        (shape,) = call.shapes([a.shape for a in (*arrays, *t.values())])
        return jnp.zeros(shape, self.dtype(call, [a.dtype for a in arrays]))

    def batched(
        self, call: Call, size: int, arguments: Arrays, of: Sequence[bool], shapes: Sequence[Shape]
    ) -> Any:
        if self.row.is_elementwise:
            return _elementwise_batch(call, size, arguments, of, shapes)
        axis = dict(call.options)["axis"]
        if axis is None or of[1]:
            return None
        x, indices, *others = arguments
        whole = _in_batch(size, [x, *others], [of[0], *of[2:]])
        return call._replace(options=(("axis", axis + 1),)).bind(whole[0], indices, *whole[1:])


class _OfLoss(Function):
    """What losses of predictions and losses of models share: targets, and a parameter."""

    def function(self, loss: Any) -> Any:
        """Return what the value is a call of."""
        raise NotImplementedError

    def parameters(self) -> list[inspect.Parameter]:
        found = [*inspect.signature(self.function(self.f)).parameters.values()]
        about = self.row.parameter
        if about is not None and self.f is catalogue.primitives.get(self.row.name):
            kind = inspect.Parameter.KEYWORD_ONLY
            found.append(inspect.Parameter(about.name, kind, default=about.default))
        return found

    def checked(
        self, arrays: dict[str, Any], options: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Check the parameter."""
        self.at(dict(options))
        if options.get("reduction", "mean") not in ("mean", "sum"):
            given = shown(options["reduction"])
            raise ValueError(f"{self.__name__}: reduction is {given}, needs 'mean' or 'sum'")
        return arrays, options

    def at(self, options: dict[str, Any]) -> Any:
        about = self.row.parameter
        own = about is not None and about.name in options
        return self.function(self.f(options.pop(about.name)) if own else self.f)


class _Pointwise(_OfLoss):
    def function(self, loss: Any) -> Any:
        return loss.pointwise

    def operands(self) -> tuple[str, ...]:
        return "z", "y"

    def has_derivatives(self) -> tuple[int, ...]:
        return (0,)

    def converted(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keep labels, and let a number fill the other's shape."""
        z, y = given["z"], given["y"]
        if self.row.of_classes and not jnp.issubdtype(jnp.result_type(y), jnp.inexact):
            return {"z": jnp.asarray(z, _dtype(self.__name__, {"z": z})), "y": jnp.asarray(y)}
        arrays = super().converted(given)
        if isinstance(y, int | float):
            arrays["y"] = jnp.broadcast_to(arrays["y"], arrays["z"].shape)
        return arrays

    def checked(
        self, arrays: dict[str, Any], options: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Check the shapes, too."""
        z, y = (a.shape for a in arrays.values())
        labels = self.row.of_classes and arrays["y"].dtype != arrays["z"].dtype
        if y != (z[:-1] if labels else z) or (self.row.of_classes and not z):
            raise ValueError(f"{self.__name__}: y has shape {y}, z has {z}")
        return super().checked(arrays, options)

    def shape(self, call: Call, at: dict[int, Shape]) -> Shape:
        return at[0][:-1] if self.row.of_classes else at[0]

    def second(self, call: Call, arrays: Arrays, t: dict[int, Any], u: dict[int, Any]) -> Any:
        (shape,) = call.shapes([a.shape for a in (*arrays, *t.values())])
        ones = jnp.ones(shape, arrays[0].dtype)
        products = t[0] * call.other("vjp.jvp", u, t).bind(*arrays, ones, *u.values())[0]
        return jnp.sum(products, -1) if self.row.of_classes else products

    def batched(
        self, call: Call, size: int, arguments: Arrays, of: Sequence[bool], shapes: Sequence[Shape]
    ) -> Any:
        return call.bind(*_in_batch(size, arguments, of))


class _OfModel(_OfLoss):
    """A loss of a linear model: its value, and with it the gradients, in one pass over X."""

    EXTRA = ("sample_weight", "offset")

    def __init__(self, name: str, f: Any, key: str = "") -> None:
        super().__init__(name, f, key)
        self.pointwise = _Pointwise(f"{name}.pointwise", f, f"{self.key}.pointwise")

    def function(self, loss: Any) -> Any:
        return loss.value

    def operands(self) -> tuple[str, ...]:
        return "X", "y", "w", "b"

    def has_derivatives(self) -> tuple[int, ...]:
        return 0, 2, 3, self.arrays.index("offset")

    def converted(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return arrays of the dtypes that they have; integers become floats, but not labels."""
        arrays = {}
        for name, a in given.items():
            labels = name == "y" and self.row.of_classes
            is_label = labels and not jnp.issubdtype(jnp.result_type(a), jnp.inexact)
            dtype = None if is_label else _dtype(self.__name__, {name: a})
            arrays[name] = jnp.asarray(a, dtype)
        X, w = arrays["X"].shape, arrays["w"].shape
        if len(X) != 2 or w[:1] != X[1:]:
            raise ValueError(f"{self.__name__}: X has shape {X}, w has {w}")
        return arrays

    def shape(self, call: Call, at: dict[int, Shape]) -> Shape:
        return ()

    def dtype(self, call: Call, dtypes: Sequence[Any]) -> Any:
        pairs = zip(call.there, dtypes, strict=False)
        return np.result_type(*(dtype for k, dtype in pairs if self.arrays[k] in ("X", "w", "b")))

    def numpy(self, call: Call) -> Callable[[Any, Any], None]:
        options = dict(call.options)
        about = self.row.parameter
        own = about is not None and about.name in options
        loss = self.f(options.pop(about.name)) if own else self.f
        wrt = tuple(self.arrays[k] for k in call.wrt)
        places = [self.arrays.index(n) for n in ("X", "y", "w", "b", "sample_weight", "offset")]

        def run(arrays: Any, outs: Any) -> None:
            given, _, rest = call.split(arrays)
            at = dict(zip(call.there, given, strict=True))
            X, y, w, b, weight, offset = map(at.get, places)
            keywords = {"offset": offset, **options}
            along = dict(zip(call.moved, rest, strict=True))
            tangents = [along.get(k) for k in self.moved]
            results: Any
            if call.method == "value":
                results = [loss.value(X, y, w, b, weight, **keywords)]
            elif call.method == "value_and_vjp" and "offset" not in wrt:
                value, gradients = loss.value_and_grad(X, y, w, b, weight, wrt=wrt, **keywords)
                results = [value, *gradients]
            elif call.method == "value_and_vjp":
                value = loss.value(X, y, w, b, weight, **keywords)
                results = [value, *loss.vjp(X, y, w, b, 1.0, weight, wrt=wrt, **keywords)]
            elif call.method == "vjp.jvp":
                first, last = [*tangents[:3], None], {"toffset": tangents[3]}
                args = X, y, w, b, 1.0, *first, weight
                results = loss.vjp.jvp(*args, wrt=wrt, **last, **keywords)
            else:
                args = X, y, w, b, 1.0, *tangents[:3], weight
                results = loss.vjp.vjp(*args, wrt=wrt, hoffset=tangents[3], **keywords)
            for out, result in zip(outs, results, strict=True):
                np.copyto(out, result, casting="same_kind")

        return run


class _Objective(Function):
    """A LinearObjective as a function of its parameters."""

    def parameters(self) -> list[inspect.Parameter]:
        return [inspect.Parameter("theta", inspect.Parameter.POSITIONAL_ONLY)]

    def operands(self) -> tuple[str, ...]:
        return ("theta",)

    def shape(self, call: Call, at: dict[int, Shape]) -> Shape:
        if at[0] != (self.f.n_parameters,):
            needs = f"needs ({self.f.n_parameters},)"
            raise ValueError(f"{self.__name__}: theta has shape {at[0]}, {needs}")
        return ()

    def numpy(self, call: Call) -> Callable[[Any, Any], None]:
        def run(arrays: Any, outs: Any) -> None:
            theta, *rest = arrays
            if call.method == "value":
                results = [self.f.value(theta)]
            elif call.method == "value_and_vjp":
                results = self.f.value_and_grad(theta)
            else:  # the Hessian is symmetric
                results = [self.f.hvp(theta, rest[-1])]
            for out, result in zip(outs, results, strict=True):
                np.copyto(out, result, casting="same_kind")

        return run


# --- helpers --------------------------------------------------------------------------------------


def _dtype(op: str, given: dict[str, Any]) -> Any:
    """Return the common dtype of arrays, of which there have to be kernels."""
    numbers = bool | int | float | complex | np.ndarray | np.generic | jax.Array
    try:
        dtype = jnp.result_type(
            *(a if isinstance(a, numbers) else np.asarray(a) for a in given.values())
        )
    except TypeError as error:
        raise TypeError(f"{op}: {' and '.join(given)}: {error}") from None
    if jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_):
        dtype = jnp.result_type(float)
    if dtype not in _FLOATS:
        names = " and ".join(given)
        raise TypeError(f"{op}: {names}: there are kernels for float32 and float64, not {dtype}")
    return dtype


def _plain(op: str, name: str, given: Any) -> Any:
    """Return an option of Python's own types."""
    if isinstance(given, jax.core.Tracer):
        raise TypeError(f"{op}: {name} must be known when JAX traces, such as by static_argnames")
    if isinstance(given, list | tuple):
        return tuple(_plain(op, name, each) for each in given)
    return given.item() if isinstance(given, np.generic | np.ndarray | jax.Array) else given


def _broadcast(shape: Shape, arrays: Iterable[Any]) -> list[Any]:
    return [jnp.broadcast_to(a, shape) for a in arrays]


def _in_batch(size: int, arguments: Arrays, of: Sequence[bool]) -> list[Any]:
    """Return arguments which all have a batch's axis."""
    pairs = zip(arguments, of, strict=True)
    return [a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in pairs]


def _of_batch(call: Call, of: Sequence[bool]) -> set[int]:
    """Return the arrays that have to have a batch's axis, all of them rather than none."""
    found = {k for k, b in zip(call.positions, of, strict=True) if b} | set(call.wrt)
    return (found - {call.of.g}) or set(call.there)


def _elementwise_batch(
    call: Call, size: int, arguments: Arrays, of: Sequence[bool], shapes: Sequence[Shape]
) -> Any:
    """Return the results of a batch of arrays that broadcast."""
    rank = builtins.max(map(len, shapes))
    own = _of_batch(call, of)
    whole = []
    for k, a, b, s in zip(call.positions, arguments, of, shapes, strict=True):
        if k not in own and k != call.of.g and all(n == 1 for n in s):
            whole.append(a)
            continue
        a = a if b else jnp.broadcast_to(a, (size, *s))
        whole.append(a.reshape(size, *(1,) * (rank - len(s)), *s))
    return call.bind(*whole)


# --- what XLA calls -------------------------------------------------------------------------------


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class _Runs(dict[str, Callable[[Any, Any], None]]):
    """Calls of the NumPy door, by their texts."""

    def __missing__(self, text: str) -> Callable[[Any, Any], None]:
        key, *rest = _tuples(json.loads(text))
        call = Call(_named(key), *rest)
        return self.setdefault(text, call.of.numpy(call))


def _abstract(*arguments: Any, call: Call) -> list[Any]:
    shapes = call.shapes([a.shape for a in arguments])
    arrays, *_ = call.split([a.dtype for a in arguments])
    of = dict(zip(call.there, arrays, strict=True))
    of[call.of.g] = call.of.dtype(call, arrays)
    dtypes = [of[call.of.g]] * (len(shapes) - len(call.wrt)) + [of[k] for k in call.wrt]
    like, results = arguments[0], []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        whole = NamedSharding(like.sharding.mesh, PartitionSpec(*(None for _ in shape)))
        results.append(like.update(shape=shape, dtype=dtype, weak_type=False, sharding=whole))
    return results


def _lower(ctx: Any, *arguments: Any, call: Call) -> Any:
    kernel = call.of.kernel(call, [a.shape for a in ctx.avals_in])
    target = "pullback_python" if kernel is None else "pullback_elementwise"
    attributes = kernel or {"call": call.text()}
    return jax.ffi.ffi_lowering(target)(ctx, *arguments, **attributes)


@cache
def _jitted(call: Call) -> Any:
    return jax.jit(call.bind)


# --- derivatives ----------------------------------------------------------------------------------

_THIRD: Final = "{}: there are no derivatives of third order"


def _there(tangents: Iterable[Any]) -> list[int]:
    return [k for k, t in enumerate(tangents) if type(t) is not ad.Zero]


def _jvp(arguments: Any, tangents: Any, *, call: Call) -> tuple[Any, Any]:
    of, method = call.of, call.method
    arrays, g, rest = call.split(arguments)
    by_arrays, by_g, by_rest = call.split(tangents)
    along = {call.there[k]: by_arrays[k] for k in _there(by_arrays)}
    for k in along:
        if k not in of.moved:
            name = of.arrays[k]
            raise TypeError(
                f"{of.__name__}: there is no derivative by {name}; jax.lax.stop_gradient({name}) "
                "makes a constant of it"
            )
    if method in ("value", "value_and_vjp") and isinstance(of, _OfModel | _Objective):
        return _jvp_of_scalar(call, arrays, along)
    results = call.bind(*arguments)
    terms: list[list[Any]] = []
    if method in ("value", "vjp"):
        along |= {call.positions[len(arrays) + k]: by_g[k] for k in _there(by_g)}
        if along:
            change = call.other("jvp" if method == "value" else "vjp.jvp", along, call.wrt)
            terms.append(change.bind(*arrays, *g, *along.values()))
    else:
        if kept := _there(by_rest):  # in which the method is linear
            linear = call._replace(moved=tuple(call.moved[k] for k in kept))
            terms.append(linear.bind(*arrays, *g, *(by_rest[k] for k in kept)))
        if along or _there(by_g):
            if method != "jvp":
                raise NotImplementedError(_THIRD.format(of.__name__))
            t = dict(zip(call.moved, rest, strict=True))
            terms.append([of.second(call, arrays, t, along)])
    if not terms:
        return results, [ad.Zero.from_primal_value(r) for r in results]
    return results, [builtins.sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def _jvp_of_scalar(call: Call, arrays: Any, along: dict[int, Any]) -> tuple[Any, Any]:
    """Return results and tangents of a scalar value and gradients, which come with it."""
    every = dict.fromkeys((*call.wrt, *along))
    value, *found = call.other("value_and_vjp", wrt=every).bind(*arrays)
    gradients = dict(zip(every, found, strict=True))
    results = [value, *(gradients[k] for k in call.wrt)]
    if not along:
        return results, [ad.Zero.from_primal_value(r) for r in results]
    total = builtins.sum(jnp.sum(gradients[k] * t) for k, t in along.items())
    changes = call.other("vjp.jvp", along, call.wrt) if call.wrt else None
    ones = jnp.ones((), value.dtype)
    moved = [] if changes is None else changes.bind(*arrays, ones, *along.values())
    return results, [total.astype(value.dtype), *moved]


def _transpose(cotangents: Any, *arguments: Any, call: Call) -> list[Any]:
    """Return the cotangents of the arguments in which a method is linear: g, or what moves."""
    linear = [k for k, a in enumerate(arguments) if ad.is_undefined_primal(a)]
    results: list[Any] = [None] * len(arguments)
    there = _there(cotangents)
    if not there:
        for k in linear:
            results[k] = ad.Zero(arguments[k].aval)
        return results
    arrays, g, _ = call.split(arguments)
    given = [cotangents[k] for k in there]
    asked, moved = [call.positions[k] for k in linear], [call.wrt[k] for k in there if call.wrt]
    if call.method == "jvp":
        found = call.other("vjp", wrt=asked).bind(*arrays, *given)
    elif call.method == "vjp" and asked == [call.of.g]:
        found = call.other("jvp", moved).bind(*arrays, *given)
    elif call.method == "vjp.jvp" and linear[0] >= len(arrays) + len(g):
        found = call.other("vjp.vjp", moved, asked).bind(*arrays, *g, *given)
    else:
        raise NotImplementedError(_THIRD.format(call.of.__name__))
    for k, cotangent in zip(linear, found, strict=True):
        results[k] = cotangent
    return results


def _batch(arguments: Any, dims: Any, *, call: Call) -> tuple[Any, Any]:
    """Return results of a batch, whose axis is in front."""
    of = [d is not None for d in dims]
    fronts = [
        a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(arguments, dims, strict=True)
    ]
    shapes = [a.shape[b:] for a, b in zip(fronts, of, strict=True)]
    size = fronts[of.index(True)].shape[0]
    results = call.of.batched(call, size, fronts, of, shapes)
    if results is None:

        def one(own: Any) -> Any:
            parts = iter(own)
            pairs = zip(fronts, of, strict=True)
            return call.bind(*(next(parts) if b else a for a, b in pairs))

        results = jax.lax.map(one, [a for a, b in zip(fronts, of, strict=True) if b])
    pairs = zip(results, call.shapes(shapes), strict=True)
    return [r.reshape(size, *s) for r, s in pairs], [0] * len(results)


# --- the primitive --------------------------------------------------------------------------------

_call: Final = Primitive("pullback")
_call.multiple_results = True
_call.def_impl(lambda *arguments, call: _jitted(call)(*arguments))
_call.def_abstract_eval(_abstract)
mlir.register_lowering(_call, _lower, platform="cpu")
ad.primitive_jvps[_call] = _jvp
ad.primitive_transposes[_call] = _transpose
batching.primitive_batchers[_call] = _batch
_jax.calls(_Runs())
for _target in ("elementwise", "python"):
    jax.ffi.register_ffi_target(f"pullback_{_target}", getattr(_jax, _target), platform="cpu")


# --- all of them ----------------------------------------------------------------------------------

_own: Final[dict[str, Function]] = {}  # by what texts of calls say; XLA may keep these for ever


def function_of(f: LinearObjective | Loss) -> Function:
    """Return an objective, or a loss of one's own, as a function of JAX arrays.

    Parameters
    ----------
    f : LinearObjective or Loss
        An objective is a function of its parameters, a vector. Its data stay where they are. A loss
        is a function as those of this module are, with its `pointwise`.

    Returns
    -------
    Function
        JAX keeps it, and `f`, until the process ends.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import pullback as pb
    >>> import pullback.interop.jax as pj  # doctest: +SKIP
    >>> objective = pb.LinearObjective([[0.0], [1.0]], [0, 1], pb.logistic)
    >>> f = pj.function_of(objective)  # doctest: +SKIP
    >>> round(float(f(jnp.zeros(2))), 4)  # doctest: +SKIP
    0.6931
    """
    if not isinstance(f, LinearObjective | Loss):
        raise TypeError(f"function_of: f must be a LinearObjective or a loss, not {shown(f)}")
    for known in _own.values():
        if known.f is f:
            return known
    key = f"own:{uuid.uuid4()}"
    if isinstance(f, Loss):
        return _own.setdefault(key, _OfModel(f.__name__, f, key))
    return _own.setdefault(key, _Objective("LinearObjective", f, key))


def _make(name: str) -> Function:
    f = catalogue.primitives[name]
    if isinstance(f, Loss):
        return _OfModel(name, f)
    if isinstance(f.row, OpRow):
        return _Elementwise(name, f)
    kinds = {ProductRow: _Product, ReductionRow: _Rows, SelectionRow: _Selection}
    return kinds[type(f.row)](name, f)


def _named(path: str) -> Any:
    """Return a function by its name, for pickle and for the texts of calls."""
    name, *parts = path.split(".")
    function = _own.get(name) or primitives[name]
    return getattr(function, parts[0]) if parts else function


primitives: Final[Registry] = Registry(catalogue.primitives, _make)
__getattr__ = attributes(globals(), primitives)

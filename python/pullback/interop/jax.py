"""pullback's primitives in JAX, on the CPU.

``pullback.interop.jax.gelu(x)`` is `pullback.gelu` inside `jax.jit`, `jax.grad`, `jax.vmap` and
the rest: values and derivatives come from the same kernels and have the same bits. There is a
function for every elementwise operation, reduction, map of rows and product; a new primitive of
pullback has one without a further line.

One JAX primitive stands for every method of all of them. XLA calls it through its foreign function
interface: a kernel without the GIL for elementwise operations, the NumPy door for the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Final, NamedTuple

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir
except ImportError as error:
    raise ImportError('pullback.interop.jax needs JAX: pip install "pullback[jax]"') from error

try:
    from pullback import _jax  # type: ignore[attr-defined]
    from pullback import _native  # type: ignore[attr-defined]
except ImportError as error:
    raise ImportError(
        "pullback.interop.jax needs the handlers for XLA, which this installation lacks: with jaxlib "
        'and a compiler, PULLBACK_JAX=1 pip install --no-binary pullback "pullback[jax]" builds them'
    ) from error

from pullback.elementwise import primitives as elementwise
from pullback.products import _fit as fit_product
from pullback.products import products
from pullback.protocol import broadcast_shape
from pullback.reductions import reductions
from pullback.registry import Registry
from pullback.tables.elementwise import OpRow
from pullback.tables.products import ProductRow

__all__ = ["primitives"]

_METHODS: Final = (  # in the order of the kernels' tables
    "value",
    "derivative",
    "value_and_derivative",
    "vjp",
    "jvp",
    "second_derivative",
    "vjp.jvp",
    "vjp.vjp",
)
_SYMMETRIC: Final = frozenset(("softmax", "layer_norm", "rms_norm"))  # their Jacobians are

_PRIMITIVES: Final = Registry.joined(elementwise, reductions, products)


class Call(NamedTuple):
    """A call of a method: the parameters of the JAX primitive.

    The arguments are the operands; for vjp and its own methods g; then those of the tangents, or of
    the cotangents h, that `moved` names. A method of vjp counts g as the operand behind the others.
    """

    name: str
    method: str
    moved: tuple[int, ...] = ()
    wrt: tuple[int, ...] = ()  # whose results there are
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def f(self) -> Any:
        return _PRIMITIVES[self.name]

    @property
    def n(self) -> int:
        """The number of operands."""
        row = self.f.row
        return row.nin if isinstance(row, OpRow) else len(row.operands)

    def split(self, arguments: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Return the operands, g in a tuple or nothing, and the rest."""
        n = self.n
        k = n + self.method.startswith("vjp")
        return tuple(arguments[:n]), tuple(arguments[n:k]), tuple(arguments[k:])

    def bind(self, *arguments: Any) -> list[Any]:
        """Bind the primitive."""
        return _call.bind(*arguments, call=self)

    def other(self, method: str, moved: Any = (), wrt: Any = ()) -> Call:
        """Return a call of another method of the same primitive."""
        return self._replace(method=method, moved=tuple(moved), wrt=tuple(wrt))


# --- shapes ---------------------------------------------------------------------------------------


def _result_shape(call: Call, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of the value."""
    row = call.f.row
    if isinstance(row, OpRow):
        return broadcast_shape(call.name, **dict(zip(row.operands, shapes, strict=True)))
    if isinstance(row, ProductRow):
        of = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
        return fit_product(call.name, row, of).result
    if row.is_map:
        return shapes[0]
    options = dict(call.options)
    axes, keepdims = options["axis"], options.get("keepdims", False)
    return tuple(
        1 if k in axes else n for k, n in enumerate(shapes[0]) if keepdims or k not in axes
    )


def _shapes(call: Call, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the shapes of the results."""
    result = _result_shape(call, shapes[: call.n])
    if call.method in ("value", "jvp"):
        return [result]
    return [(*shapes[: call.n], result)[k] for k in call.wrt]


def _abstract(*arguments: Any, call: Call) -> list[Any]:
    dtype = arguments[0].dtype
    shapes = _shapes(call, [a.shape for a in arguments])
    return [jax.core.ShapedArray(shape, dtype) for shape in shapes]


# --- what XLA calls -------------------------------------------------------------------------------


def _of_numpy(call: Call) -> Callable[[Any, Any], None]:
    """Return a function of arrays and outputs that calls the NumPy door."""
    method = call.f
    for name in call.method.split(".") if call.method != "value" else ():
        method = getattr(method, name)
    row, options = call.f.row, dict(call.options)
    required = tuple(
        options.pop(name) for name in getattr(row, "leading", ())[call.n :]
    )  # such as the p of norm
    if call.method in ("vjp.vjp",) or (call.method.startswith("vjp") and call.n > 1):
        options["wrt"] = call.wrt
    n_others = {"value": 0, "vjp": 0, "jvp": call.n, "vjp.jvp": call.n + 1, "vjp.vjp": call.n}

    def run(arrays: Any, outs: Any) -> None:
        operands, g, rest = call.split(arrays)
        others: list[Any] = [None] * n_others[call.method]
        for k, other in zip(call.moved, rest, strict=True):
            others[k] = other
        out = outs if "wrt" in options else outs[0]
        method(*operands, *required, *g, *others, out=out, **options)

    return run


@cache
def _number(call: Call) -> int:
    """Return the number of a call of the NumPy door among the handler's."""
    return int(_jax.add(_of_numpy(call)))


def _is_flat(call: Call, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Tell whether an elementwise kernel takes the arguments as they lie in memory."""
    if not isinstance(call.f.row, OpRow):
        return False
    whole = _result_shape(call, shapes[: call.n])
    summed = call.method.startswith("vjp")
    return all(
        shape == whole or (not (summed and k in call.wrt) and all(n == 1 for n in shape))
        for k, shape in enumerate(shapes)
    )


def _lower(ctx: Any, *arguments: Any, call: Call) -> Any:
    """Lower to a call of a handler."""
    if _is_flat(call, [a.shape for a in ctx.avals_in]):
        n, given = call.n, 0
        for k in range(n + call.method.startswith("vjp")):
            given |= 1 << k
        for k in call.moved:
            given |= 1 << (k + n + call.method.startswith("vjp"))
        wanted = sum(1 << k for k in call.wrt) if call.wrt else 1
        kernel = _native.kernel_number(call.name, _METHODS.index(call.method))
        attributes = {"kernel": kernel, "given": given, "wanted": wanted}
        target = "pullback_elementwise"
    else:
        attributes, target = {"call": _number(call)}, "pullback_python"
    attributes = {name: np.int64(value) for name, value in attributes.items()}
    return jax.ffi.ffi_lowering(target)(ctx, *arguments, **attributes)


@cache
def _jitted(call: Call) -> Any:
    return jax.jit(call.bind)


# --- derivatives ----------------------------------------------------------------------------------


def _there(tangents: Sequence[Any]) -> list[int]:
    return [k for k, t in enumerate(tangents) if type(t) is not ad.Zero]


def _jvp(arguments: Any, tangents: Any, *, call: Call) -> tuple[Any, Any]:
    results = call.bind(*arguments)
    operands, g, rest = call.split(arguments)
    t_operands, t_g, t_rest = call.split(tangents)
    moved = _there((*t_operands, *t_g))
    terms: list[list[Any]] = []
    if call.method in ("value", "vjp"):
        if moved:
            along = [(*t_operands, *t_g)[k] for k in moved]
            method = "jvp" if call.method == "value" else "vjp.jvp"
            terms.append(call.other(method, moved, call.wrt).bind(*operands, *g, *along))
    else:
        if _there(t_rest):  # in which the method is linear
            kept = _there(t_rest)
            along = [t_rest[k] for k in kept]
            linear = call._replace(moved=tuple(call.moved[k] for k in kept))
            terms.append(linear.bind(*operands, *g, *along))
        if _there(t_g) and call.method == "vjp.jvp":
            inner = [k for k in range(len(call.moved)) if call.moved[k] < call.n]
            if inner:
                linear = call._replace(moved=tuple(call.moved[k] for k in inner))
                terms.append(linear.bind(*operands, *t_g, *(rest[k] for k in inner)))
        if _there(t_operands) and call.method == "jvp":
            terms.append([_second(call, operands, rest, t_operands)])
        elif _there(t_operands) or (_there(t_g) and call.method == "vjp.vjp"):
            raise NotImplementedError(f"{call.name}: no derivative of third order")
    if not terms:
        return results, [ad.Zero.from_primal_value(r) for r in results]
    total = terms[0]
    for more in terms[1:]:
        total = [a + b for a, b in zip(total, more, strict=True)]
    return results, total


def _second(call: Call, operands: Any, tangents: Any, along: Any) -> Any:
    """Return the second derivative of the value along two tangents."""
    row, n = call.f.row, call.n
    u = {k: along[k] for k in _there(along)}
    t = dict(zip(call.moved, tangents, strict=True))
    if isinstance(row, ProductRow):
        return _second_of_product(call, operands, t, u)
    shape = _result_shape(call, [o.shape for o in operands])
    if not isinstance(row, OpRow) and row.is_map:
        if call.name not in _SYMMETRIC:
            raise NotImplementedError(f"{call.name}: no second derivative, forward over forward")
        return call.other("vjp.jvp", (0,), (0,)).bind(*operands, t[0], u[0])[0]
    wrt = tuple(t)
    if isinstance(row, OpRow):
        operands, t, u = (
            [jnp.broadcast_to(a, shape) for a in operands],
            {k: jnp.broadcast_to(a, shape) for k, a in t.items()},
            {k: jnp.broadcast_to(a, shape) for k, a in u.items()},
        )
    ones = jnp.ones(shape, operands[0].dtype)
    changes = call.other("vjp.jvp", u, wrt).bind(*operands, ones, *u.values())
    total = sum(t[k] * change for k, change in zip(wrt, changes, strict=True))
    if isinstance(row, OpRow):
        return total
    options = dict(call.options)
    del n
    return jnp.sum(total, options["axis"], keepdims=options.get("keepdims", False))


def _second_of_product(call: Call, operands: Any, t: Any, u: Any) -> Any:
    """Return the second derivative of a product along two tangents."""

    def plain(X: Any, W: Any, b: Any = None) -> Any:
        (product,) = Call("matmul", "value").bind(X, W)
        return product if b is None else product + b

    def filled(given: Any) -> list[Any]:
        return [given.get(k, jnp.zeros_like(o)) for k, o in enumerate(operands)]

    if call.name == "matmul":  # whose jvp is linear in the operands, too
        return call.other("jvp", u).bind(*filled(t), *u.values())[0]
    formulas = {
        "quadratic_form": lambda x, A: jnp.sum(x * plain(x, A), -1),
        "bilinear_form": lambda u, X, v: jnp.sum(plain(u, X) * v, -1),
        "linear": lambda X, W, b=None: _activated(call, plain(X, W, b)),
    }
    formula = formulas[call.name]
    inner = lambda *o: jax.jvp(formula, o, tuple(filled(t)))[1]  # noqa: E731
    return jax.jvp(inner, tuple(operands), tuple(filled(u)))[1]


def _activated(call: Call, z: Any) -> Any:
    name = dict(call.options).get("activation")
    return z if name is None else Call(name, "value").bind(z)[0]


def _transpose(cotangents: Any, *arguments: Any, call: Call) -> list[Any]:
    operands, g, rest = call.split(arguments)
    there = _there(cotangents)
    given = [cotangents[k] for k in there]
    linear = [k for k, a in enumerate(arguments) if ad.is_undefined_primal(a)]
    results: list[Any] = [None] * len(arguments)
    first = len(operands) + len(g)
    if any(k < len(operands) for k in linear) or not there:
        if not there:
            return [ad.Zero(arguments[k].aval) if k in linear else None for k in range(len(results))]
        raise NotImplementedError(f"{call.name}: {call.method} is not linear in its operands")
    if call.method == "jvp":
        asked = [call.moved[k - first] for k in linear]
        found = call.other("vjp", wrt=asked).bind(*operands, *given)
    elif call.method == "vjp":
        found = call.other("jvp", [call.wrt[k] for k in there]).bind(*operands, *given)
    elif call.method == "vjp.jvp" and linear[0] >= first:
        asked = [call.moved[k - first] for k in linear]
        moved = [call.wrt[k] for k in there]
        found = call.other("vjp.vjp", moved, asked).bind(*operands, *g, *given)
    else:
        raise NotImplementedError(f"{call.name}: no derivative of third order")
    for k, cotangent in zip(linear, found, strict=True):
        results[k] = cotangent
    return results


# --- batches --------------------------------------------------------------------------------------


def _batch(arguments: Any, dims: Any, *, call: Call) -> tuple[Any, Any]:
    """Return results with the batch axis in front."""
    row = call.f.row
    size = next(a.shape[d] for a, d in zip(arguments, dims, strict=True) if d is not None)
    fronts = [
        a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(arguments, dims, strict=True)
    ]
    is_batched = [d is not None for d in dims]
    if isinstance(row, ProductRow):
        if call.method == "value" and is_batched[0] and not any(is_batched[1:]):
            return call.bind(*fronts), [0]

        def one(own: Any) -> Any:
            own = iter(own)
            return call.bind(*(next(own) if b else a for a, b in zip(fronts, is_batched, strict=True)))

        results = jax.lax.map(one, [a for a, b in zip(fronts, is_batched, strict=True) if b])
        return results, [0] * len(results)
    shapes = [a.shape[1:] if b else a.shape for a, b in zip(fronts, is_batched, strict=True)]
    results_shapes = _shapes(call, shapes)
    rank = max(map(len, shapes))
    whole = [
        jnp.broadcast_to(a, (size, *s)) if not b else a
        for a, s, b in zip(fronts, shapes, is_batched, strict=True)
    ]
    if isinstance(row, OpRow):
        whole = [
            a.reshape(size, *(1,) * (rank - len(s)), *s) for a, s in zip(whole, shapes, strict=True)
        ]
    else:
        axes = dict(call.options)["axis"]
        shifted = tuple(k + 1 for k in axes)
        call = call._replace(options=(("axis", shifted), *_without_axis(call.options)))
    results = call.bind(*whole)
    results = [r.reshape(size, *s) for r, s in zip(results, results_shapes, strict=True)]
    return results, [0] * len(results)


def _without_axis(options: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in options if name != "axis"]


# --- the primitive --------------------------------------------------------------------------------

_call: Final = Primitive("pullback")
_call.multiple_results = True
_call.def_impl(lambda *arguments, call: _jitted(call)(*arguments))
_call.def_abstract_eval(_abstract)
mlir.register_lowering(_call, _lower, platform="cpu")
ad.primitive_jvps[_call] = _jvp
ad.primitive_transposes[_call] = _transpose
batching.primitive_batchers[_call] = _batch
for _target in ("elementwise", "python"):
    jax.ffi.register_ffi_target(f"pullback_{_target}", getattr(_jax, _target), platform="cpu")


# --- functions ------------------------------------------------------------------------------------


def _operands(name: str, given: Sequence[Any]) -> list[Any]:
    """Return arrays of one dtype, float32 or float64."""
    arrays = [a if a is None else jnp.asarray(a) for a in given]
    dtype = jnp.result_type(*(g for g in given if g is not None))
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(dtype, float)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: there are kernels for float32 and float64, not for {dtype}")
    return [a if a is None else jax.lax.convert_element_type(a, dtype) for a in arrays]


def _function(name: str) -> Callable[..., Any]:
    """Return the function of JAX arrays."""
    f = _PRIMITIVES[name]
    row = f.row

    def function(*given: Any, **options: Any) -> Any:
        if isinstance(row, OpRow):
            if len(given) == row.nin - 1 and row.default is not None:
                given = (*given, row.default)
            call = Call(name, "value")
        elif isinstance(row, ProductRow):
            activation = options.pop("activation", None)
            if activation is not None:
                activation = getattr(activation, "__name__", activation)
                options["activation"] = activation.removeprefix("elementwise.")
            if row.optional and len(given) == len(row.operands) - 1:
                given = (*given, None)
            if given[-1] is None:
                *given, last = given
                W = jnp.asarray(given[-1])
                given = (*given, jnp.zeros(W.shape[-1], W.dtype))
            call = Call(name, "value", options=tuple(sorted(options.items())))
        else:
            given, options = _split(row, given, options)
            call = Call(name, "value", options=tuple(options.items()))
        arrays = _operands(name, given)
        (result,) = call.bind(*arrays)
        return result

    function.__name__ = function.__qualname__ = name
    function.__module__ = __name__
    function.__doc__ = f"Return `pullback.{name}` of JAX arrays.\n\n{row.summary}."
    return function


def _split(row: Any, given: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the operands of a reduction, and its options with its axes as a tuple of positions."""
    n = len(row.operands)
    names = [*row.leading[n:], "axis"]
    own = row.parameter
    if own is not None and own.default is not None and not own.keyword_only:
        names.append(own.name)
    if not row.is_map:
        names.append("keepdims")
    options = {**dict(zip(names, given[n:], strict=False)), **options}
    ndim = jnp.ndim(given[0])
    axis = options.pop("axis", -1 if row.is_map else None)
    axes = range(ndim) if axis is None else (axis if isinstance(axis, tuple | list) else (axis,))
    for k in axes:
        if not -ndim <= k < ndim:
            raise ValueError(f"{row.name}: there is no axis {k} of {ndim}")
    for name in options:
        if name not in (*names, *(() if own is None else (own.name,))):
            raise TypeError(f"{row.name}: no option {name!r} in JAX")
    return given[:n], {"axis": tuple(sorted(k % ndim for k in axes)), **options}


primitives: Final = Registry(_PRIMITIVES, _function)


def __getattr__(name: str) -> Any:
    if name in primitives:
        return primitives[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *primitives]

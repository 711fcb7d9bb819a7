"""Primitives and losses for PyTorch, on CPU tensors without a copy.

``import pullback.interop.torch as pt``, and every primitive is there under its name: `pt.gelu`,
`pt.softmax`, `pt.linear`, `pt.logistic`, ``pt.logistic.pointwise``. They take and return tensors of
float32 or float64, and autograd differentiates through them: reverse and forward, twice, under
`torch.func` and `torch.compile`.

Everything is made from the registry. A primitive is a node of PyTorch's graph whose derivatives
are the primitive's own methods; those that are called in a trace are operators in
``torch.ops.pullback``.
"""

from __future__ import annotations

import builtins  # of which primitives have the names
import inspect
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

try:
    import torch
    from torch.autograd import forward_ad
except ImportError as error:
    raise ImportError(
        "pullback.interop.torch needs PyTorch 2.13 or newer: pip install 'pullback[torch]'"
    ) from error

from pullback import catalogue
from pullback.losses import Loss as LinearLoss
from pullback.losses import as_loss
from pullback.products import _groups
from pullback.protocol import WithMethods, shown
from pullback.protocol import method as made_method
from pullback.registry import Registry, attributes
from pullback.tables.elementwise import OpRow
from pullback.tables.losses import LossRow
from pullback.tables.products import ProductRow
from pullback.tables.reductions import ReductionRow

__all__ = ["LayerNorm", "Linear", "Loss", "Primitive", "primitives"]

Tensor: TypeAlias = Any

FLOATS: Final = {torch.float32, torch.float64}
HALVES: Final = {torch.float16, torch.bfloat16}
MASKS: Final = ("b", "where")  # options that are tensors, without a derivative
# The types of options in an operator's schema, by name, else by the default's type.
SCHEMA: Final = {"axis": "int[]?", "activation": "str?"}

_library: Final = torch.library.Library("pullback", "DEF")
_defining: Final = RLock()  # an operator, which can be done once
MOST_CALLS: Final = 4096  # that a primitive keeps


# --- primitives -----------------------------------------------------------------------------------


class Primitive:
    """A primitive on tensors.

    Parameters
    ----------
    name : str
        Its name; operators have it, too.
    function : callable
        A primitive of the library: its call, `vjp`, `jvp`, and where there are such, `vjp.vjp` and
        `vjp.jvp`.
    row : object
        Its row in the table.
    operands : tuple of str, optional
        The tensors that it takes, where the row does not say that.
    moved : tuple of int, optional
        The positions of the operands that have derivatives; all when omitted.
    optional : mapping, optional
        The operands that may be omitted, with what they are then.
    at : callable, optional
        The function at a parameter, which is an option then.
    """

    def __init__(
        self,
        name: str,
        function: Any,
        row: Any,
        operands: tuple[str, ...] = (),
        moved: tuple[int, ...] | None = None,
        optional: dict[str, Any] | None = None,
        at: Callable[[float], Any] | None = None,
    ) -> None:
        self.row = row
        self.at = at
        self.function = function
        self.operands = operands or tuple(row.operands)
        everything = tuple(range(len(self.operands)))
        self.moved: tuple[int, ...]
        self.moved = getattr(row, "moved", everything) if moved is None else moved
        self.optional = _optional(row) if optional is None else optional
        taken = inspect.signature(function.vjp).parameters
        options = {} if any(p.kind is p.VAR_KEYWORD for p in taken.values()) else dict(taken)
        for other in (*self.operands, getattr(row, "cotangent", "g"), "wrt", "out"):
            options.pop(other, None)
        self.masks = tuple(option for option in MASKS if options.pop(option, None))
        if at is not None:
            about = row.parameter
            options[about.name] = inspect.Parameter(
                about.name, inspect.Parameter.KEYWORD_ONLY, default=about.default
            )
        self.defaults = {option: p.default for option, p in options.items()}
        # A parameter without a default comes after the operands.
        self.leading = [o for o, default in self.defaults.items() if default is inspect._empty]
        self._calls: dict[Any, _Call] = {}
        self._known: dict[Any, _Call] = {}  # of values, by their options as they were given
        self.__name__ = self.__qualname__ = name
        self.__doc__ = f"``{name}`` of pullback, on tensors.\n\n{function.__doc__}"
        call = made_method(
            name,
            "__call__",
            f"self, {_parameters(self, options)}",
            f"self._call(({', '.join(self.operands)},), ({', '.join((*self.masks, ''))}), "
            f"({', '.join((*self.defaults, ''))}))",
            self.__doc__,
        )
        self._operators: dict[str, Any] = {}
        self._value = self.operator("")  # before a trace, which cannot define it
        self.__class__ = type("Primitive", (Primitive,), {"__call__": call})

    def __repr__(self) -> str:
        return f"<{self.__name__} of pullback, on tensors>"

    def __reduce__(self) -> Any:
        return _named, (self.__name__,)

    def _call(self, operands: Any, masks: Any, options: Any) -> Any:
        for x in operands:
            if not isinstance(x, torch.Tensor):
                operands = self._tensors(operands)
                break
        if torch.compiler.is_compiling():
            return self._value(*operands, *masks, **self.named(tuple(map(_plain, options))))
        try:
            call = self._known[options]
        except (KeyError, TypeError):  # a list cannot be looked up
            call = self.call("", tuple(map(_plain, options)))
            if call.options == options:
                self._known[options] = call
        return call(*operands, *masks)

    def _tensors(self, operands: Any) -> Any:
        """Return operands with tensors for numbers."""
        operands = [*operands]
        like = next((x.dtype for x in operands if isinstance(x, torch.Tensor)), None)
        for k, operand in enumerate(operands):
            if isinstance(operand, torch.Tensor):
                continue
            name = self.operands[k]
            if isinstance(operand, int | float) and like is not None and k in self.moved:
                operands[k] = torch.tensor(operand, dtype=like)
            elif operand is not None or name not in self.optional:
                hint = "; give torch.from_numpy" if isinstance(operand, np.ndarray) else ""
                raise TypeError(
                    f"{self.__name__}: {name} must be a tensor, not {shown(operand)}{hint}"
                )
        return operands

    def call(self, method: str, options: tuple[Any, ...], wrt: tuple[int, ...] = ()) -> _Call:
        """Return a method with its options, one for all calls that have these."""
        key = method, options, wrt
        known = self._calls.get(key)
        if known is None:
            if len(self._calls) >= MOST_CALLS:
                self._calls.clear()
                self._known.clear()
            known = self._calls[key] = _Call(self, method, options, wrt)
        return known

    def method(self, name: str, keywords: dict[str, Any]) -> Any:
        """Return a method by its dotted name, or None; takes the parameter from `keywords`."""
        found = self.function
        if self.at is not None:
            found = self.at(keywords.pop(self.row.parameter.name))
        for part in name.split(".") if name else ():
            found = getattr(found, part, None)
        return found

    def operator(self, method: str) -> Any:
        """Return the operator in ``torch.ops.pullback`` that a trace calls."""
        if method not in self._operators:
            with _defining:
                if method not in self._operators:
                    self._operators[method] = _Operator(self, method).made
        return self._operators[method]

    def named(self, options: tuple[Any, ...]) -> dict[str, Any]:
        """Return options as operators take them."""
        return {
            option: [given] if option == "axis" and isinstance(given, int) else given
            for option, given in zip(self.defaults, options, strict=True)
        }

    def arguments(self, method: str) -> tuple[str, ...]:
        """Return the names of the tensors that a method takes, without masks."""
        names = self.operands
        tangents, cotangents = (tuple(f"{c}{names[k]}" for k in self.moved) for c in "th")
        more = {
            "vjp": ("g",),
            "jvp": tangents,
            "vjp.vjp": ("g", *cotangents),
            "vjp.jvp": ("g", *tangents, "tg"),
        }
        return names + more.get(method, ())

    # --- what the kinds of rows differ in ---

    def shape(self, options: tuple[Any, ...], shapes: Sequence[Any]) -> tuple[Any, ...]:
        """Return the shape of a result, for operands of shapes of ints or symbols."""
        row = self.row
        if isinstance(self.function, _OfModel):
            return ()
        if isinstance(row, LossRow):
            return tuple(shapes[0][:-1] if row.of_classes else shapes[0])
        if isinstance(row, ProductRow):
            return _shape_of_product(row, shapes)
        if isinstance(row, ReductionRow) and not row.is_map:
            given = dict(zip(self.defaults, options, strict=True))
            reduced, kept = _axes(given["axis"], len(shapes[0])), given["keepdims"]
            return tuple(
                1 if k in reduced else s
                for k, s in enumerate(shapes[0])
                if kept or k not in reduced
            )
        if isinstance(row, OpRow | ReductionRow) or getattr(row, "is_elementwise", False):
            return tuple(torch.broadcast_shapes(*(s for s in shapes if s is not None)))
        # A kind that nothing is known of: by a call, and only for these sizes.
        kinds = [float if k in self.moved else int for k in range(len(shapes))]
        arrays = [
            s if s is None else np.zeros([*map(int, s)], kind)
            for s, kind in zip(shapes, kinds, strict=True)
        ]
        named = dict(zip(self.defaults, options, strict=True))
        return np.shape(self.function(*arrays, *map(named.pop, self.leading), **named))

    def batched(self, options: tuple[Any, ...], ndims: Sequence[int | None]) -> Any:
        """Return the options and the operands' numbers of axes in a call for a batch of operands.

        The batch is one more axis in front. None where one call cannot do that.
        """
        row = self.row
        n = builtins.max(m for m in ndims if m is not None)
        if isinstance(row, OpRow) or getattr(row, "is_elementwise", False):
            return options, [n] * len(ndims)
        if isinstance(row, ReductionRow):
            given = dict(zip(self.defaults, options, strict=True))
            axes = tuple(axis + 1 for axis in _axes(given["axis"], n))
            given["axis"] = axes if len(axes) != 1 else axes[0]
            return tuple(given.values()), ndims
        if isinstance(row, ProductRow):
            own = [
                axes.has_batch and len(axes.letters) <= (m or 0)
                for axes, m in zip(_groups(row.signature)[:-1], ndims, strict=True)
            ]
            return (options, [n] * len(ndims)) if all(own) else None
        if isinstance(row, LossRow) and not isinstance(self.function, _OfModel):
            return options, ndims
        return None


def _axes(axis: Any, n: int) -> tuple[int, ...]:
    """Return axes of so many, counted from the first."""
    return tuple(range(n)) if axis is None else tuple(normalize_axis_tuple(axis, n))


def _optional(row: Any) -> dict[str, Any]:
    """Return the operands that may be omitted."""
    if isinstance(row, OpRow) and row.default is not None:
        return {row.operands[-1]: row.default}
    names = getattr(row, "optional", None) or ()
    return dict.fromkeys((names,) if isinstance(names, str) else names)


def _parameters(of: Primitive, options: dict[str, inspect.Parameter]) -> str:
    """Return the parameters of a primitive's call."""
    operands = [
        f"{name}={of.optional[name]!r}" if name in of.optional else name for name in of.operands
    ]
    texts = {
        name: name if name in of.leading else f"{name}={p.default!r}" for name, p in options.items()
    }
    alone = [name for name, p in options.items() if p.kind is p.KEYWORD_ONLY]
    first = [texts[name] for name in texts if name not in alone]
    last = [texts[name] for name in alone] + [f"{mask}=None" for mask in of.masks]
    return ", ".join([*operands, *first, *(["*", *last] if last else [])])


def _plain(option: Any) -> Any:
    """Return an option as operators' schemas have it, but hashable."""
    if option is None or isinstance(option, int | float | str | tuple):
        return option
    if isinstance(option, list):
        return tuple(option)
    row = getattr(option, "row", None)  # of an activation
    return option if row is None else row.name


def _shape_of_product(row: ProductRow, shapes: Sequence[Any]) -> tuple[Any, ...]:
    """Return the shape of a product's result, from its signature."""
    *groups, of_result = _groups(row.signature)
    extents: dict[str, Any] = {}
    batches = []
    for shape, axes in zip(shapes, groups, strict=True):
        if shape is not None:
            letters = axes.there(len(shape))
            before = len(shape) - len(letters)
            batches.append(tuple(shape[:before]))
            extents |= dict(zip(letters, shape[before:], strict=True))
    batch = torch.broadcast_shapes(*batches)
    return *batch, *(extents[c] for c in of_result.letters if c in extents)


# --- calls ----------------------------------------------------------------------------------------


class _Call:
    """A method of a primitive, with its options: what a node of PyTorch's graph computes.

    It takes the operands, then what the method takes, then the masks; an absent one is None.
    Methods of vjp return a tuple, with a result for each operand in `wrt`.
    """

    def __init__(
        self, of: Primitive, method: str, options: tuple[Any, ...], wrt: tuple[int, ...]
    ) -> None:
        self.of, self.method, self.options, self.wrt = of, method, options, wrt
        self.op = f"{of.__name__}.{method}".rstrip(".")
        self.names = (*of.arguments(method), *of.masks)
        self.count, self.masks = len(of.operands), len(of.masks)
        self._leading = options[: len(of.leading)]
        named = dict(zip(of.defaults, options, strict=True))
        self.function = of.method(method, named)
        self._keywords = {
            option: given
            for option, given in named.items()
            if option not in of.leading and given is not of.defaults[option]
        }
        # Whether its gradients are computed beside its value.
        self.has_gradients = not method and isinstance(of.function, _OfModel)
        self._repeats = method.startswith("vjp") and not isinstance(of.row, OpRow)
        self._cotangents: dict[Any, Any] = {}  # by which tensors need them
        # Which results of all that there are; None for a method that has one.
        self.places: list[int] | None = None
        if "vjp" in method and self.function is not None:
            every = of.moved if method != "vjp.vjp" else (*of.moved, self.count)
            self.places = [every.index(k) for k in wrt]
            self._takes_wrt = "wrt" in inspect.signature(self.function).parameters
            if self._takes_wrt:
                self._keywords["wrt"] = wrt

    def __call__(self, *tensors: Any) -> Any:
        """Return the result for tensors, recorded for autograd where that is needed."""
        if torch._C._len_torch_dispatch_stack():
            return self.operate(*tensors)
        if torch._C._are_functorch_transforms_active():
            return _Transformed.apply(self, *tensors)
        wants = False
        for x in tensors:
            if x is not None:
                if type(x) is not torch.Tensor and type(x) is not torch.nn.Parameter:
                    return self.operate(*tensors)
                wants = wants or x.requires_grad
        if (wants and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
            return _apply(self, *tensors)
        return self.run(*tensors)

    def operate(self, *tensors: Any) -> Any:
        """Return what the operator returns, which traces record."""
        operator, options = self.of.operator(self.method), self.of.named(self.options)
        if self.places is None:
            return operator(*tensors, **options)
        results = operator(*tensors, list(self.wrt), **options)
        every = results if isinstance(results, tuple) else (results,)
        return tuple(every[k] for k in self.places)

    def run(self, *tensors: Any) -> Any:
        """Return the result for plain tensors."""
        arrays: list[Any] = []
        for k, x in enumerate(tensors):
            if x is None:
                arrays.append(None)
                continue
            if not x.is_cpu or x.dtype not in FLOATS:
                self._check(k, x)
            try:
                arrays.append(x.numpy(force=True))
            except (RuntimeError, TypeError):
                self._check(k, x)
                # Without memory of its own, as cotangents of is_grads_batched=True.
                return self.operate(*tensors)
        n, keywords = self.count, self._keywords
        if self._repeats and 0 in arrays[n].strides:  # behind a sum; kernels take it stored
            arrays[n] = arrays[n].copy()
        if self.masks:
            masks = zip(self.of.masks, arrays[-self.masks :], strict=True)
            keywords = keywords | {name: mask for name, mask in masks if mask is not None}
            arrays = arrays[: -self.masks]
        if self._leading:
            arrays[n:n] = self._leading
        result = self.function(*arrays, **keywords)
        if self.places is None:
            return _tensor(result)
        results = result if isinstance(result, tuple) else (result,)
        if not self._takes_wrt:
            results = tuple(results[k] for k in self.places)
        return tuple(map(_tensor, results))

    def _check(self, k: int, x: Tensor) -> None:
        """Raise TypeError for a tensor that kernels do not take."""
        if not x.is_cpu or x.layout is not torch.strided:
            where = x.layout if x.is_cpu else x.device
            advice = "to_dense()" if x.is_cpu else "no values" if x.is_meta else "cpu()"
            raise TypeError(
                f"{self.op}: {self.names[k]} is on {where}, and kernels take dense tensors on the "
                f"CPU: {advice}"
            )
        if x.dtype not in FLOATS and (k in self.of.moved or x.dtype in HALVES):
            raise TypeError(
                f"{self.op}: {self.names[k]} has dtype {x.dtype}; it needs float32 or float64"
            )

    def fake(self, *tensors: Any) -> Any:
        """Return empty results, in their shapes and dtypes."""
        shapes: list[Any] = [None if x is None else x.shape for x in tensors]
        made = next(x for x in tensors if x is not None and x.dtype in FLOATS)
        of_model = isinstance(self.of.function, _OfModel)
        is_double = any(
            x is not None and x.dtype == torch.float64
            for k, x in enumerate(tensors)
            if not of_model or k >= self.count or k in self.of.moved
        )
        dtype = torch.float64 if is_double else torch.float32
        shape = self.of.shape(self.options, shapes[: self.count])
        if self.places is None:
            return made.new_empty(shape, dtype=dtype)
        g = shapes[self.count]
        stack = tuple(g[: len(g) - len(shape)])
        front = () if self.method == "vjp.vjp" else stack
        return tuple(
            made.new_empty(
                (*front, *shapes[k]) if k < self.count else tuple(g), dtype=tensors[k].dtype
            )
            for k in self.wrt
        )

    # --- derivatives ---

    def to(self, method: str, wrt: tuple[int, ...] = ()) -> _Call:
        """Return another method with the same options, or say that there is none."""
        call = self.of.call(method, self.options, wrt)
        if call.function is None:
            raise RuntimeError(
                f"{self.op}: trying to differentiate twice a function that can be differentiated "
                f"once; {self.of.__name__} has no {method}"
            )
        return call

    def split(self, tensors: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Return the operands, what the method takes, and the masks."""
        end = len(tensors) - self.masks
        return tensors[: self.count], tensors[self.count : end], tensors[end:]

    def backward(self, needs: Sequence[bool], tensors: Sequence[Any], g: Sequence[Any]) -> Any:
        """Return the cotangents of the tensors that need them."""
        if not self.method and g[0] is not None:
            return self._pulled(tuple(needs), tensors, g[0])
        operands, given, masks = self.split(tensors)
        n, moved = self.count, self.of.moved
        found: list[Any] = [None] * len(tensors)
        wanted = [k for k, needed in enumerate(needs) if needed]
        if all(each is None for each in g) or not wanted:
            return found
        if self.method == "vjp":
            by = dict(zip(self.wrt, g, strict=True))
            call = self.to("vjp.vjp", tuple(wanted))
            results = call(*operands, *given, *(by.get(k) for k in moved), *masks)
        elif self.method == "jvp":
            of_operands = tuple(k for k in wanted if k < n)
            of_tangents = [k for k in wanted if k >= n]
            results = []
            if of_operands:
                call = self.to("vjp.jvp", of_operands)
                results += call(*operands, *g, *given, None, *masks)
            if of_tangents:
                call = self.to("vjp", tuple(moved[k - n] for k in of_tangents))
                results += call(*operands, *g, *masks)
        else:
            raise RuntimeError(_THIRD.format(self.op))
        for k, result in zip(wanted, results, strict=True):
            found[k] = result
        return found

    def _pulled(self, needs: tuple[bool, ...], tensors: Any, g: Any) -> list[Any]:
        """Return cotangents of operands."""
        known = self._cotangents.get(needs)
        if known is None:
            wanted = tuple(k for k, needed in enumerate(needs) if needed)
            known = self._cotangents[needs] = self.to("vjp", wanted), wanted
        call, wanted = known
        n = self.count
        found: list[Any] = [None] * len(tensors)
        for k, result in zip(wanted, call(*tensors[:n], g, *tensors[n:]), strict=True):
            found[k] = result
        return found

    def jvp(self, tensors: Sequence[Any], tangents: Sequence[Any]) -> Any:
        """Return the tangents of the results."""
        operands, given, masks = self.split(tensors)
        own = [tangents[k] for k in self.of.moved]
        if all(tangent is None for tangent in tangents):
            return None if self.places is None else (None,) * len(self.wrt)
        if self.method == "vjp":
            call = self.to("vjp.jvp", self.wrt)
            return call(*operands, *given, *own, tangents[self.count], *masks)
        if self.method:
            raise RuntimeError(_THIRD.format(self.op))
        return self.to("jvp")(*operands, *own, *masks)

    # --- batches ---

    def vmap(
        self, size: int, dims: Sequence[int | None], tensors: Sequence[Any], apply: Any
    ) -> Any:
        """Return results for a batch, which is their first axis, of calls by `apply`."""
        n = self.count
        first = [x if d is None else x.movedim(d, 0) for x, d in zip(tensors, dims, strict=True)]
        only_g = all((d is None) is (k != n) for k, d in enumerate(dims))
        if self.method == "vjp" and only_g:
            return apply(self, *first)  # cotangents in a stack
        shapes: list[Any] = [
            None if x is None else x.shape[d is not None :]
            for x, d in zip(first, dims, strict=True)
        ]
        rule = self.of.batched(self.options, [None if s is None else len(s) for s in shapes[:n]])
        if rule is not None and self.method not in ("", "jvp"):  # a stack inside the batch
            g, shape = shapes[n], self.of.shape(self.options, shapes[:n])
            rule = rule if len(g) == len(shape) else None
        if rule is None:
            found = [
                apply(self, *(x if d is None else x[i] for x, d in zip(first, dims, strict=True)))
                for i in range(size)
            ]
            if isinstance(found[0], tuple):
                return tuple(map(torch.stack, zip(*found, strict=True)))
            return torch.stack(found)
        options, ndims = rule
        own: dict[str, Any] = dict(zip(self.of.operands, ndims, strict=True))
        axes = {f"{c}{name}": k for name, k in own.items() for c in ("", "t", "h")}
        axes |= dict.fromkeys(self.of.masks, ndims[0])
        given = []
        for name, x, d, shape in zip(self.names, first, dims, shapes, strict=True):
            if x is not None:
                padding = (1,) * (axes.get(name, 0) - len(shape))
                x = x.expand(size, *shape) if d is None else x
                x = x.reshape(size, *padding, *shape)
            given.append(x)
        results = apply(self.of.call(self.method, options, self.wrt), *given)
        if isinstance(results, tuple):
            return tuple(
                r.reshape(size, *shapes[k]) for r, k in zip(results, self.wrt, strict=True)
            )
        return results


_THIRD: Final = "{}: there are no derivatives of third order, and none forward over forward"


def _tensor(result: Any) -> Tensor:
    """Return a result as a tensor, without a copy unless it is a scalar or not to be written."""
    if type(result) is np.ndarray and result.flags.writeable:
        return torch.from_numpy(result)
    return torch.from_numpy(np.array(result))


# --- nodes and operators --------------------------------------------------------------------------


class _Node(torch.autograd.Function):  # type: ignore[misc]
    """A call in PyTorch's graph."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Any) -> Any:
        _keep(ctx, call, tensors)
        if not call.has_gradients:
            return call.run(*tensors)
        # They cost no other pass over the data.
        wrt = tuple(k for k, needed in enumerate(ctx.needs_input_grad[1:]) if needed)
        if not wrt:
            return call.run(*tensors)
        value, *gradients = call.of.call("value_and_vjp", call.options, wrt).run(*tensors)
        ctx.gradients = dict(zip(wrt, gradients, strict=True))
        return value

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        call, tensors = ctx.call, ctx.saved_tensors  # which checks their versions
        gradients = getattr(ctx, "gradients", None) if call.has_gradients else None
        if gradients is None or g[0] is None or torch.is_grad_enabled():
            return None, *call.backward(ctx.needs_input_grad[1:], tensors, g)
        own = map(gradients.get, range(len(tensors)))
        return None, *(None if gradient is None else g[0] * gradient for gradient in own)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> Any:
        return ctx.call.jvp(ctx.saved_tensors, tangents)


# Function's own looks for transforms of torch.func first, which a call has done.
_apply: Final = super(torch.autograd.Function, _Node).apply


class _Transformed(_Node):
    """The same for transforms of torch.func, which want the context apart from the computation."""

    @staticmethod
    def forward(call: _Call, *tensors: Any) -> Any:  # type: ignore[override]
        return call(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del output
        _keep(ctx, inputs[0], inputs[1:])

    @staticmethod
    def vmap(info: Any, dims: Any, call: _Call, *tensors: Any) -> Any:
        results = call.vmap(info.batch_size, dims[1:], tensors, _Call.__call__)
        return results, (0,) * len(results) if isinstance(results, tuple) else 0


class _Operation(_Node):
    """A call of an operator in PyTorch's graph."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Any) -> Any:
        _keep(ctx, call, tensors)
        with torch._C._AutoDispatchBelowAutograd():
            return call.operate(*tensors)


def _keep(ctx: Any, call: _Call, tensors: Sequence[Any]) -> None:
    ctx.call = call
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)


class _Operator:
    """An operator in ``torch.ops.pullback``.

    A method of vjp returns a tensor for every operand, an empty one where `wrt` does not ask for
    it: batches of cotangents need returns of a fixed number.

    Parameters
    ----------
    of : Primitive
        The primitive.
    method : str
        The method's dotted name.
    """

    def __init__(self, of: Primitive, method: str) -> None:
        self.of, self.method = of, method
        self.names = (*of.arguments(method), *of.masks)
        self.count = len(of.moved) + (method == "vjp.vjp") if "vjp" in method else 0
        name = f"{of.__name__}.{method}".rstrip(".").replace(".", "_")
        _library.define(f"{name}{self.schema()}")
        _library.impl(name, self.run, "CPU")
        _library.impl(name, self.record, "Autograd")
        torch.library.register_fake(f"pullback::{name}", self.fake, lib=_library)
        torch.library.register_vmap(f"pullback::{name}", self.vmap, lib=_library)
        self.made = getattr(torch.ops.pullback, name).default

    def schema(self) -> str:
        """Return the arguments and returns: tensors, `wrt`, and options by keyword."""
        of, n = self.of, len(self.of.operands)
        optional = {*of.masks, *of.optional, *self.names[n:]} - {"g"}
        parts = [f"Tensor{'?' * (name in optional)} {name}" for name in self.names]
        parts += ["int[] wrt"] * (self.count > 0)
        options = [
            f"{SCHEMA.get(option) or _SCALARS.get(type(default), 'float')} {option}"
            for option, default in of.defaults.items()
        ]
        parts += ["*", *options] if options else []
        returns = f"({', '.join(['Tensor'] * self.count)})" if self.count > 1 else "Tensor"
        return f"({', '.join(parts)}) -> {returns}"

    def call(self, given: Any, options: dict[str, Any]) -> tuple[_Call, Any]:
        """Return the call and its tensors."""
        n, axis = len(self.names), options.get("axis")
        if axis is not None:
            options["axis"] = axis[0] if len(axis) == 1 else tuple(axis)
        wrt = tuple(given[n]) if self.count else ()
        made = self.of.call(self.method, tuple(options[o] for o in self.of.defaults), wrt)
        return made, given[:n]

    def every(self, call: _Call, results: Any) -> Any:
        """Return results as the schema has them."""
        if not self.count:
            return results
        there = dict(zip(call.places or (), results, strict=True))
        found = tuple(there.get(k, results[0].new_empty(0)) for k in range(self.count))
        return found if self.count > 1 else found[0]

    def run(self, *given: Any, **options: Any) -> Any:
        """Compute, into the dtypes and the order in memory that `fake` says."""
        call, tensors = self.call(given, options)
        results = call.run(*tensors)
        if not self.count:
            return results.contiguous()
        pairs = zip(results, call.wrt, strict=True)
        results = [r.to(tensors[k].dtype).contiguous() for r, k in pairs]
        return self.every(call, results)

    def fake(self, *given: Any, **options: Any) -> Any:
        """Return empty results."""
        call, tensors = self.call(given, options)
        results = call.fake(*tensors)
        return self.every(call, results)

    def record(self, *given: Any, **options: Any) -> Any:
        """Compute as a node of PyTorch's graph."""
        call, tensors = self.call(given, options)
        # Under a transform of torch.func this is one level already, and apply looks for levels.
        apply = super(torch.autograd.Function, _Operation).apply  # type: ignore[misc]
        with torch._functorch.autograd_function.enable_single_level_autograd_function():
            results = apply(call, *tensors)
        return self.every(call, results)

    def vmap(self, info: Any, dims: Any, *given: Any, **options: Any) -> Any:
        """Compute for a batch."""
        call, tensors = self.call(given, options)
        dims = dims[: len(self.names)]
        results = call.vmap(info.batch_size, dims, tensors, _Call.operate)
        found = self.every(call, results)
        places = call.places or ()
        return found, tuple(
            0 if k in places else None for k in range(self.count)
        ) if self.count > 1 else 0


_SCALARS: Final = {bool: "bool", int: "int", float: "float", str: "str"}


# --- losses ---------------------------------------------------------------------------------------


class _OfModel:
    """A loss of a linear model as a function of arrays, with the methods of a primitive."""

    OPERANDS: Final = ("X", "y", "w", "b", "sample_weight", "offset")
    MOVED: Final = (0, 2, 3, 5)

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self.__doc__ = loss.__doc__
        self.vjp: Any = WithMethods(self._vjp, jvp=self._vjp_jvp, vjp=self._vjp_vjp)

    def __call__(self, *arrays: Any, reduction: Any = "mean") -> Any:
        """Return the loss, in the common dtype of X, w and b."""
        value = self.loss.value(*arrays[:5], offset=arrays[5], reduction=reduction)
        return self._rounded(arrays, value)

    def value_and_vjp(self, *arrays: Any, wrt: tuple[int, ...], reduction: Any = "mean") -> Any:
        """Return the loss and its gradients."""
        options = {"offset": arrays[5], "reduction": reduction, "wrt": self._names(wrt)}
        if 5 in wrt:
            return self(*arrays, reduction=reduction), *self._pulled(arrays, 1.0, options)
        value, gradients = self.loss.value_and_grad(*arrays[:5], **options)
        return self._rounded(arrays, value), *gradients

    @staticmethod
    def _rounded(arrays: Any, value: Any) -> Any:
        X, _, w, b, *_ = arrays
        return np.asarray(value, np.result_type(*(a for a in (X, w, b) if a is not None)))

    def _names(self, wrt: tuple[int, ...]) -> tuple[str, ...]:
        return tuple((*self.OPERANDS, "g")[k] for k in wrt)

    def _pulled(self, arrays: Any, g: Any, options: dict[str, Any]) -> Any:
        return self.loss.vjp(*arrays[:4], g, arrays[4], **options)

    def _vjp(
        self,
        X: Any,
        y: Any,
        w: Any,
        b: Any,
        sample_weight: Any,
        offset: Any,
        g: Any,
        *,
        reduction: Any = "mean",
        wrt: tuple[int, ...] = MOVED,
    ) -> Any:
        """Return the cotangents of X, w, b and offset."""
        arrays = X, y, w, b, sample_weight, offset
        options = {"offset": offset, "reduction": reduction, "wrt": self._names(wrt)}
        if np.ndim(g) == 0:
            return self._pulled(arrays, g, options)
        gradients = self._pulled(arrays, 1.0, options)
        return tuple(
            np.multiply.outer(g, gradient).astype(gradient.dtype) for gradient in gradients
        )

    def jvp(self, *given: Any, reduction: Any = "mean") -> Any:
        """Return the tangent of the loss."""
        arrays, tangents = given[:6], dict(zip(self.MOVED, given[6:], strict=True))
        wrt = tuple(k for k, tangent in tangents.items() if tangent is not None)
        value, *gradients = self.value_and_vjp(*arrays, wrt=wrt, reduction=reduction)
        pairs = zip(wrt, gradients, strict=True)
        total = builtins.sum(np.vdot(gradient, tangents[k]) for k, gradient in pairs)
        return np.asarray(total, value.dtype)

    def _vjp_jvp(self, *given: Any, wrt: tuple[int, ...], reduction: Any = "mean") -> Any:
        """Return the tangents of `vjp`'s results."""
        (X, y, w, b, weight, offset, g), (tX, tw, tb, toffset, tg) = given[:7], given[7:]
        if np.ndim(g):
            stack = [
                self._vjp_jvp(*given[:6], each, *given[7:11], t, wrt=wrt, reduction=reduction)
                for each, t in zip(g, [None] * len(g) if tg is None else tg, strict=True)
            ]
            return tuple(map(np.stack, zip(*stack, strict=True)))
        tangents = tX, tw, tb, tg
        options = {"offset": offset, "toffset": toffset, "reduction": reduction}
        return self.loss.vjp.jvp(X, y, w, b, g, *tangents, weight, **options, wrt=self._names(wrt))

    def _vjp_vjp(self, *given: Any, wrt: tuple[int, ...], reduction: Any = "mean") -> Any:
        """Return the cotangents of `vjp`'s operands."""
        (X, y, w, b, weight, offset, g), h = given[:7], given[7:]
        if np.ndim(g):
            stack = [
                self._vjp_vjp(
                    *given[:6],
                    each,
                    *(None if own is None else own[i] for own in h),
                    wrt=wrt,
                    reduction=reduction,
                )
                for i, each in enumerate(g)
            ]
            results = zip(wrt, map(np.stack, zip(*stack, strict=True)), strict=True)
            return tuple(result if k == 6 else result.sum(0) for k, result in results)
        *cotangents, hoffset = h
        options = {"offset": offset, "hoffset": hoffset, "reduction": reduction}
        return self.loss.vjp.vjp(
            X, y, w, b, g, *cotangents, weight, **options, wrt=self._names(wrt)
        )


def _of_loss(name: str, loss: Any, row: LossRow) -> Primitive:
    """Return a loss of a linear model, whose `pointwise` is the loss of single predictions."""
    has_parameter = row.parameter is not None
    of_model: Any = Primitive(
        name,
        _OfModel(loss),
        row,
        _OfModel.OPERANDS,
        _OfModel.MOVED,
        dict.fromkeys(_OfModel.OPERANDS[3:]),
        (lambda p: _OfModel(loss(p))) if has_parameter else None,
    )
    of_model.pointwise = Primitive(
        f"{name}.pointwise",
        loss.pointwise,
        row,
        ("z", "y"),
        (0,),
        {},
        (lambda p: loss(p).pointwise) if has_parameter else None,
    )
    return of_model  # type: ignore[no-any-return]


# --- modules --------------------------------------------------------------------------------------


class Linear(torch.nn.Linear):  # type: ignore[misc]
    """PyTorch's linear layer with an activation, computed together.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As for `torch.nn.Linear`, whose parameters and state it has.
    activation : str or primitive, optional
        A unary elementwise primitive, or its name.
    """

    def __init__(self, *args: Any, activation: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = activation

    def forward(self, input: Any) -> Any:  # noqa: A002  PyTorch's name
        """Return ``activation(input @ weight.T + bias)``."""
        return primitives["linear"](input, self.weight.T, self.bias, activation=self.activation)

    def extra_repr(self) -> str:
        """Return what the layer's representation says."""
        return f"{super().extra_repr()}, activation={_plain(self.activation)!r}"


class LayerNorm(torch.nn.LayerNorm):  # type: ignore[misc]
    """PyTorch's layer normalisation, with its parameters and state."""

    def forward(self, input: Any) -> Any:  # noqa: A002  PyTorch's name
        """Return the elements minus their mean, divided by their deviation, scaled and shifted."""
        axes = tuple(range(-len(self.normalized_shape), 0))
        result = primitives["layer_norm"](input, axes, self.eps)
        if self.weight is not None:
            result = result * self.weight
        return result if self.bias is None else result + self.bias


class Loss(torch.nn.Module):  # type: ignore[misc]
    """A loss of predictions and targets.

    Parameters
    ----------
    name : str
        A loss, such as "softmax_cross_entropy".
    reduction : {"mean", "sum", "none"}
        What becomes of the losses of single predictions.
    **parameter : float
        The loss's parameter, if it has one.
    """

    def __init__(self, name: str, reduction: str = "mean", **parameter: float) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"Loss: reduction is {reduction!r}, needs mean, sum or none")
        as_loss("Loss", name)
        self.name, self.reduction, self.parameter = name, reduction, parameter

    def forward(self, input: Any, target: Any) -> Any:  # noqa: A002
        """Return the loss of predictions; for classes they are on the last axis."""
        values = primitives[self.name].pointwise(input, target, **self.parameter)
        return values if self.reduction == "none" else getattr(values, self.reduction)()


# --- all of them ----------------------------------------------------------------------------------


_made: Final[dict[str, Any]] = {}


def _make(name: str) -> Any:
    with _defining:  # of two threads, one makes it
        if name not in _made:
            function = catalogue.primitives[name]
            make = _of_loss if isinstance(function, LinearLoss) else Primitive
            _made[name] = make(name, function, function.row)
        return _made[name]


def _named(path: str) -> Any:
    """Return a primitive by its name, for pickle."""
    name, *parts = path.split(".")
    return getattr(primitives[name], parts[0]) if parts else primitives[name]


primitives: Final = Registry(catalogue.primitives, _make)
__getattr__ = attributes(globals(), primitives)

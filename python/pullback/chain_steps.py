"""What chains are made of: operations with their operands, and sequences of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import groupby, pairwise
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from pullback import elementwise
from pullback.config import native
from pullback.elementwise import Elementwise, make_elementwise
from pullback.engine import ORACLE
from pullback.jacobians import Diagonal
from pullback.products import Product
from pullback.protocol import shown
from pullback.reductions import Reduction, RowMap
from pullback.tables.elementwise import OpRow
from pullback.tables.products import ProductRow
from pullback.tables.reductions import ReductionRow

__all__ = [
    "Cotangents",
    "Part",
    "arg",
    "in_sequence",
    "make_step",
    "one_like",
    "pull_through",
    "single",
]

_ndarray: Final = np.ndarray
Cotangents: TypeAlias = tuple[Any, ...]  # of the running value, of the bound operands

# What a run keeps of every step shares L1 with the other steps'.
_LONGEST_RUN: Final = 16


class Link(NamedTuple):
    """One operation of a run, as `ElementwiseRun` takes it."""

    op: str
    places: tuple[int, ...]  # of the running value among the operands
    bound: Any  # the other operand, None where there is none


class _Argument:
    """Where the running value stands among a step's operands."""

    def __repr__(self) -> str:
        return "arg"

    def __reduce__(self) -> str:
        return "arg"


arg: Final = _Argument()


# --- what a chain is made of ----------------------------------------------------------------------


class Part(ABC):
    """A differentiable function of the running value.

    A tangent has the shape of the running value, a cotangent that of the value: the chain has seen
    to it.
    """

    n_bound = 0  # operands that are held, and have cotangents
    value: Callable[[Any], Any]
    jvp: Callable[[Any, Any], Any]  # of the running value and its tangent
    vjp: Callable[[Any, Any], Any]  # of the running value and the value's cotangent

    @abstractmethod
    def jacobian(self, x: Any) -> Any:
        """Return the Jacobian."""

    @abstractmethod
    def pull(self, x: Any, g: Any) -> Cotangents:
        """Return the cotangents of the running value and of the bound operands."""

    @abstractmethod
    def fits(self, x: Any, g: Any) -> bool:
        """Tell, for little, whether a cotangent has the value's shape; False where that is open."""

    def value_and_vjp(self, x: Any, g: Any) -> tuple[Any, Any]:
        """Return the value, and the cotangent of the running value."""
        return self.value(x), self.vjp(x, g)

    def value_and_grad(self, x: Any) -> tuple[Any, Any]:
        """Return the value, of one element, and the cotangent of the running value for one."""
        value = single(self.value(x))
        return value, self.vjp(x, one_like(value))


class _Step(Part):
    """An operation, its operands and options."""

    def __init__(self, op: Any, operands: tuple[Any, ...], options: dict[str, Any]) -> None:
        # Behind the operands stands a parameter, such as a norm's p: it has no derivative.
        n = len(op.row.operands) if isinstance(op, Reduction) else len(operands)
        if isinstance(op, Product) and op.row.optional and n == len(op.row.operands) - 1:
            operands, n = (*operands, None), n + 1  # its derivatives want that operand, or None
        self.op: Any = op
        self.operands = operands
        self.options = options
        self.places = tuple(k for k, operand in enumerate(operands) if operand is arg)
        if self.places and self.places[-1] >= n:
            raise ValueError(f"{op.__name__} has no derivative by operand {self.places[-1] + 1}")
        self.bound = tuple(k for k, o in enumerate(operands[:n]) if o is not arg and o is not None)
        self.n_bound = len(self.bound)
        self.add: Callable[..., Any] = elementwise.primitives["add"]
        self.checks = isinstance(op, Reduction | RowMap | Product)
        self._ndims: dict[int, int] = {}  # of the value, by those of the running value
        self.value = _call(op, operands, options)
        tangents = (_other if operand is arg else None for operand in operands[:n])
        self.jvp = _call(op.jvp, (*operands, *tangents), options)
        both = getattr(op, "value_and_grad", None) if n == 1 else None  # a reduction's, in one pass
        self._both = None if both is None else _call(both, operands, options)
        row = getattr(op, "row", None)
        self.takes_wrt = n > 1 and isinstance(row, OpRow | ProductRow | ReductionRow)
        self._set_vjp(n)
        jacobian = getattr(op, "jacobian", None)
        self._jacobians = None if jacobian is None else _call(jacobian, operands, options)

    def _set_vjp(self, n: int) -> None:
        """Set what returns cotangents: of the running value, and of everything."""
        op, operands = self.op, (*self.operands, _other)
        wanted = (*self.places, *self.bound)
        k, *more = self.places
        if self.takes_wrt:  # computes no others than those that it is asked for
            every = _call(op.vjp, operands, self.options | {"wrt": wanted})
            alone = _call(op.vjp, operands, self.options | {"wrt": k})
        else:
            every = alone = _call(op.vjp, operands, self.options)
            if n > 1:
                alone = _one_of(every, k)
                if wanted != tuple(range(n)):
                    every = _some_of(every, wanted)
        self._every = (lambda x, g: (alone(x, g),)) if n == 1 else every
        self.vjp = (lambda x, g: self.pull(x, g)[0]) if more else alone
        if not more:
            self.pull = self._every  # type: ignore[method-assign]

    def __repr__(self) -> str:
        shown = [_shown(operand) for operand in self.operands]
        shown += [f"{key}={_shown(value)}" for key, value in self.options.items()]
        return _name(self.op) if shown == ["arg"] else f"{_name(self.op)}({', '.join(shown)})"

    def pull(self, x: Any, g: Any) -> Cotangents:
        total, *cotangents = self._every(x, g)
        # Those that meet in the running value add up.
        for _ in self.places[1:]:
            total = self.add(total, cotangents.pop(0))
        return (total, *cotangents)

    def fits(self, x: Any, g: Any) -> bool:
        # One of as many axes is no stack, and left to the operation, if that checks it.
        try:
            return bool(self._ndims[x.ndim] == g.ndim)
        except AttributeError:
            return False
        except KeyError:
            if self.checks:
                self._ndims[x.ndim] = np.ndim(self.value(x))
            return self.checks and self.fits(x, g)

    def value_and_grad(self, x: Any) -> tuple[Any, Any]:
        if self._both is None:
            return super().value_and_grad(x)
        value, gradient = self._both(x)
        return single(value), gradient

    def jacobian(self, x: Any) -> Any:
        jacobians = self.op.jacobian if self._jacobians is None else self._jacobians(x)
        if not isinstance(jacobians, tuple):
            return jacobians
        first, *more = (jacobians[k] for k in self.places)
        for jacobian in more:
            first = first + jacobian
        return first


class _ElementwiseStep(_Step):
    """An elementwise operation, which may be one of a run."""

    def __init__(self, op: Any, row: OpRow, operands: tuple[Any, ...]) -> None:
        super().__init__(op, operands, {})
        self.is_twin = isinstance(op, Elementwise)
        held = tuple(operands[k] for k in self.bound)
        self.link = Link(row.name, self.places, *(held or (None,)))
        self.held = tuple(o for o in held if not isinstance(o, int | float | np.number))
        if self.is_twin:
            self.add = make_elementwise(ORACLE)["add"]

    def fits(self, x: Any, g: Any) -> bool:
        return _alike(x, g, self.held)


class _Sequence(Part):
    """Parts that are applied one after the other.

    Parameters
    ----------
    parts : iterable of Part
        The first is applied first.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = tuple(parts)
        self.last = self.parts[-1]
        self.fits_last = self.last.fits
        self.n_bound = sum(part.n_bound for part in self.parts)
        self.inner = tuple(part.value for part in self.parts[:-1])
        # From the last one on: what returns cotangents, and whether bound operands' as well.
        self.pulls = tuple(
            (part.n_bound > 0, part.pull if part.n_bound else part.vjp) for part in self.parts[::-1]
        )
        self.vjps = tuple(part.vjp for part in self.parts[::-1])
        self.pushes = tuple((part.jvp, part.value) for part in self.parts[:-1])
        if len(self.parts) == 1:
            self.pull = self.last.pull  # type: ignore[method-assign]

    def value(self, x: Any) -> Any:
        for part in self.parts:
            x = part.value(x)
        return x

    def jvp(self, x: Any, t: Any) -> Any:
        for jvp, value in self.pushes:
            t = jvp(x, t)
            x = value(x)
        return self.last.jvp(x, t)

    def inputs(self, x: Any) -> list[Any]:
        """Return what each part is applied to."""
        inputs = [x]
        for value in self.inner:
            x = value(x)
            inputs.append(x)
        return inputs

    def vjp(self, x: Any, g: Any) -> Any:
        inputs = self.inputs(x)
        for vjp in self.vjps:
            g = vjp(inputs.pop(), g)
        return g

    def pull(self, x: Any, g: Any) -> Cotangents:
        return pull_through(self.inputs(x), g, self.pulls)

    def fits(self, x: Any, g: Any) -> bool:
        return self.last.fits(self.inputs(x)[-1], g)

    def jacobian(self, x: Any) -> Any:
        jacobian = self.parts[0].jacobian(x)
        for before, part in pairwise(self.parts):
            x = before.value(x)
            jacobian = part.jacobian(x) @ jacobian
        return jacobian


class _Run(_Sequence):
    """Elementwise operations in one pass over blocks, where the arguments allow that."""

    def __init__(self, steps: list[_ElementwiseStep], engine: Callable[..., Any]) -> None:
        super().__init__(steps)
        self.engine = engine([step.link for step in steps])
        self.held = tuple(operand for step in steps for operand in step.held)

    def fits(self, x: Any, g: Any) -> bool:
        return _alike(x, g, self.held)

    def value(self, x: Any) -> Any:
        value = self.engine.value(x)
        return super().value(x) if value is NotImplemented else value

    def jvp(self, x: Any, t: Any) -> Any:
        tangent = self.engine.jvp(x, t)
        return super().jvp(x, t) if tangent is NotImplemented else tangent

    def vjp(self, x: Any, g: Any) -> Any:
        cotangent = self.engine.vjp(x, g)
        return super().vjp(x, g) if cotangent is NotImplemented else cotangent

    def value_and_vjp(self, x: Any, g: Any) -> tuple[Any, Any]:
        both: Any = self.engine.value_and_vjp(x, g)
        return super().value_and_vjp(x, g) if both is NotImplemented else both

    def jacobian(self, x: Any) -> Any:
        if type(x) is np.ndarray and x.ndim:
            ones = np.empty(x.shape, x.dtype)
            ones.fill(1)
            slopes = self.engine.vjp(x, ones)
            if slopes is not NotImplemented:
                return Diagonal._of(slopes)
        return super().jacobian(x)


def pull_through(inputs: list[Any], g: Any, pulls: Iterable[tuple[bool, Any]]) -> Cotangents:
    """Return all cotangents, from that of the value; the list of inputs is used up."""
    bound: tuple[Any, ...] = ()
    for is_of_all, pull in pulls:
        g = pull(inputs.pop(), g)
        if is_of_all:
            bound = (*g[1:], *bound)
            g = g[0]
    return (g, *bound)


# --- calls ---


_other: Final = object()  # where a tangent or a cotangent stands among a call's arguments


def _call(function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Callable[..., Any]:
    """Return a function of the running value, and of what else is marked among the arguments."""
    names = {id(arg): "x", id(_other): "other"}
    pattern = tuple(names.get(id(given), f"held{k}") for k, given in enumerate(arguments))
    if pattern in (("x",), ("x", "other")) and not options:
        return function  # type: ignore[no-any-return]
    held = [given for name, given in zip(pattern, arguments, strict=True) if name[0] == "h"]
    return _caller(pattern, tuple(options))(function, *held, *options.values())  # type: ignore[no-any-return]


@cache
def _caller(pattern: tuple[str, ...], keys: tuple[str, ...]) -> Any:
    """Return what makes the functions that `_call` returns; unpacking takes a third of a call."""
    held = [name for name in pattern if name[0] == "h"]
    values = [f"value{k}" for k in range(len(keys))]
    given = [*pattern, *(f"{key}={value}" for key, value in zip(keys, values, strict=True))]
    own = ", ".join(["function", *held, *values])
    return eval(f"lambda {own}: lambda x, other=None: function({', '.join(given)})")


def _one_of(function: Callable[..., Any], k: int) -> Callable[..., Any]:
    return lambda x, g: function(x, g)[k]


def _some_of(function: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
    def some(x: Any, g: Any) -> tuple[Any, ...]:
        every = function(x, g)
        return tuple(every[k] for k in places)

    return some


def _alike(x: Any, g: Any, held: tuple[Any, ...]) -> bool:
    """Tell whether g has the shape of x, which no operand that is held enlarges."""
    if type(x) is type(g) is _ndarray and not held:
        return bool(x.shape == g.shape)
    shape = getattr(g, "shape", None)
    if shape is None or getattr(x, "shape", None) != shape:
        return False
    for operand in held:
        own: Any = getattr(operand, "shape", None)
        if own == shape:
            continue
        lacking = -1 if own is None else len(shape) - len(own)
        if lacking < 0 or any(n not in (1, m) for n, m in zip(own, shape[lacking:], strict=True)):
            return False
    return True


# --- from what was given ---


def make_step(where: str, op: Any, operands: tuple[Any, ...], options: dict[str, Any]) -> Part:
    """Return an operation with its operands and options; `where` is for the error messages.

    Raises
    ------
    TypeError
        If it is no primitive, or an elementwise one with options.
    ValueError
        If `arg` is not among its operands, or there are too many or too few.
    """
    missing = [name for name in ("vjp", "jvp") if not callable(getattr(op, name, None))]
    if not callable(op) or missing:
        from pullback.hints import about_function  # noqa: PLC0415  only of what is wrong

        raise TypeError(
            f"{where} is {_shown(op)}, which has no {' and no '.join(missing) or 'value'}"
            f"{about_function(op)}"
        )
    if not any(operand is arg for operand in operands):
        raise ValueError(f"{where}, {_name(op)}, has no pb.arg among its operands")
    row = getattr(op, "row", None)
    if isinstance(op, Reduction):
        taken = len(op.row.leading)
        if len(operands) != taken:
            raise ValueError(f"{where}: {op.__name__} takes {taken} operands, not {len(operands)}")
    if not isinstance(row, OpRow):
        return _Step(op, operands, options)
    if len(operands) != row.nin:
        raise ValueError(f"{where}: {row.name} takes {row.nin} operands, not {len(operands)}")
    if options:
        raise TypeError(f"{where}: {row.name} takes no {', '.join(options)} in a chain")
    return _ElementwiseStep(op, row, operands)


def in_sequence(steps: Iterable[Part], *, apart: bool = False) -> _Sequence:
    """Return steps one after the other as one, those that hold operands `apart` or in runs."""
    return _Sequence(_fused(steps, apart))


def _fused(steps: Iterable[Part], apart: bool) -> Iterator[Part]:
    """Yield steps, and runs of elementwise ones that one engine computes."""
    groups = enumerate(steps)
    for (engine, _), group in groupby(
        groups, lambda step: (_engine(step[1]), step[0] if apart and step[1].n_bound else -1)
    ):
        run: list[Any] = [step for _, step in group]
        if engine is None:
            yield from run
            continue
        for begin in range(0, len(run), _LONGEST_RUN):
            piece = run[begin : begin + _LONGEST_RUN]
            yield _Run(piece, engine) if len(piece) > 1 or piece[0].n_bound else piece[0]


def _engine(step: Part) -> Callable[..., Any] | None:
    """Return what computes a step together with its neighbours, if anything does."""
    if native is None or not isinstance(step, _ElementwiseStep) or step.is_twin:
        return None
    return native.ElementwiseRun  # type: ignore[no-any-return]


def _name(op: Any) -> str:
    name: str = getattr(op, "__name__", type(op).__name__)
    return name.rpartition(".")[2]


def _shown(operand: Any) -> str:
    if callable(operand):
        return _name(operand)
    if hasattr(operand, "shape") and np.shape(operand):
        return f"<{operand.dtype} {operand.shape}>"
    return shown(operand)


def single(value: Any) -> Any:
    """Return a value of one element, or raise ValueError."""
    if not isinstance(value, np.floating) and np.size(value) != 1:
        raise ValueError(
            f"chain.value_and_grad: the value has shape {np.shape(value)}, a gradient needs one "
            "element; give value_and_vjp a cotangent"
        )
    return value


_ONES: Final = {type(one): one for one in (np.float32(1), np.float64(1))}


def one_like(value: Any) -> Any:
    """Return the cotangent of one of a value of one element."""
    one = _ONES.get(type(value))
    return np.ones_like(value)[()] if one is None else one

"""What chains are made of: operations with their operands, and sequences of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback import elementwise
from pullback.config import native
from pullback.elementwise import Elementwise, make_elementwise
from pullback.engine import ORACLE
from pullback.jacobians import Diagonal
from pullback.products import Linear
from pullback.protocol import shown
from pullback.reductions import Reduction
from pullback.tables.elementwise import OpRow
from pullback.tables.products import ProductRow
from pullback.tables.reductions import ReductionRow

__all__ = ["Cotangents", "Part", "arg", "in_sequence", "make_step"]

Array: TypeAlias = npt.NDArray[Any]
Cotangents: TypeAlias = tuple[Any, list[Any]]  # of the running value, of the bound operands

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

    Cotangents of bound operands are returned if `everything` is wanted, and are none otherwise.
    """

    bound: tuple[int, ...] = ()  # places of the operands that are held

    @abstractmethod
    def value(self, x: Any) -> Any:
        """Return the value."""

    @abstractmethod
    def jvp(self, x: Any, t: Any) -> Any:
        """Return the value's tangent."""

    @abstractmethod
    def pull(self, x: Any, g: Any, everything: bool) -> Cotangents:
        """Return the cotangents."""

    def value_and_pull(self, x: Any, g: Any, everything: bool) -> tuple[Any, Cotangents]:
        """Return the value and the cotangents."""
        return self.value(x), self.pull(x, g, everything)

    def value_and_grad(self, x: Any, everything: bool) -> tuple[Any, Cotangents]:
        """Return the value, of one element, and the cotangents for one."""
        value = self.value(x)
        _check_single(value)
        return value, self.pull(x, np.ones_like(value)[()], everything)

    @abstractmethod
    def jacobian(self, x: Any) -> Any:
        """Return the Jacobian."""


class _Step(Part):
    """An operation, its operands and options."""

    def __init__(self, op: Any, operands: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.op: Any = op
        self.operands = operands
        self.options = options
        # Behind the operands stands a parameter, such as a norm's p: it has no derivative.
        n = len(op.row.operands) if isinstance(op, Reduction) else len(operands)
        if isinstance(op, Linear) and n == 2:
            self.operands += (None,)  # its derivatives want a bias, or None
            n += 1
        self.differentiable = n
        self.places = tuple(k for k, operand in enumerate(operands) if operand is arg)
        if self.places and self.places[-1] >= n:
            raise ValueError(f"{op.__name__} has no derivative by operand {self.places[-1] + 1}")
        self.bound = tuple(k for k, o in enumerate(operands[:n]) if o is not arg and o is not None)
        self.everything = tuple(sorted((*self.places, *self.bound)))
        row = getattr(op, "row", None)
        self.takes_wrt = n > 1 and isinstance(row, OpRow | ProductRow | ReductionRow)
        self.add: Callable[..., Any] = elementwise.primitives["add"]

    def __repr__(self) -> str:
        shown = [_shown(operand) for operand in self.operands]
        shown += [f"{key}={_shown(value)}" for key, value in self.options.items()]
        return _name(self.op) if shown == ["arg"] else f"{_name(self.op)}({', '.join(shown)})"

    def at(self, x: Any) -> tuple[Any, ...]:
        """Return the operands, the running value among them."""
        return tuple(x if operand is arg else operand for operand in self.operands)

    def value(self, x: Any) -> Any:
        return self.op(*self.at(x), **self.options)

    def jvp(self, x: Any, t: Any) -> Any:
        operands = self.operands[: self.differentiable]
        tangents = (t if operand is arg else None for operand in operands)
        return self.op.jvp(*self.at(x), *tangents, **self.options)

    def pull(self, x: Any, g: Any, everything: bool) -> Cotangents:
        if self.differentiable == 1:
            return self.op.vjp(*self.at(x), g, **self.options), []
        wanted = self.everything if everything else self.places
        if self.takes_wrt:  # computes no others
            asked: Any = "all" if len(wanted) == self.differentiable else wanted
            cotangents = self.op.vjp(*self.at(x), g, wrt=asked, **self.options)
        else:
            every = self.op.vjp(*self.at(x), g, **self.options)
            cotangents = tuple(every[k] for k in wanted)
        return self._sorted(dict(zip(wanted, cotangents, strict=True)))

    def value_and_grad(self, x: Any, everything: bool) -> tuple[Any, Cotangents]:
        function = getattr(self.op, "value_and_grad", None)
        if function is None or self.differentiable > 1:
            return super().value_and_grad(x, everything)
        value, gradient = function(*self.at(x), **self.options)  # a reduction's, in one pass
        _check_single(value)
        return value, (gradient, [])

    def jacobian(self, x: Any) -> Any:
        jacobians = self.op.jacobian(*self.at(x), **self.options)
        if self.differentiable == 1:
            return jacobians
        first, *more = (jacobians[k] for k in self.places)
        for jacobian in more:
            first = first + jacobian
        return first

    def _sorted(self, cotangents: dict[int, Any]) -> Cotangents:
        """Add up those that meet in the running value; append the bound operands'."""
        total, *more = (cotangents[k] for k in self.places)
        for term in more:
            total = self.add(total, term)
        return total, [cotangents[k] for k in self.bound if k in cotangents]


class _ElementwiseStep(_Step):
    """An elementwise operation, which may be one of a run."""

    def __init__(self, op: Any, row: OpRow, operands: tuple[Any, ...]) -> None:
        super().__init__(op, operands, {})
        self.is_twin = isinstance(op, Elementwise)
        self.link = Link(row.name, self.places, next((operands[k] for k in self.bound), None))
        if self.is_twin:
            self.add = make_elementwise(ORACLE)["add"]


class _Sequential(Part):
    """Parts that are applied one after the other."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def value(self, x: Any) -> Any:
        for part in self.parts:
            x = part.value(x)
        return x

    def jvp(self, x: Any, t: Any) -> Any:
        for part in self.parts[:-1]:
            t = part.jvp(x, t)
            x = part.value(x)
        return self.parts[-1].jvp(x, t)

    def pull(self, x: Any, g: Any, everything: bool) -> Cotangents:
        inputs = self._inputs(x)
        cotangents = self.parts[-1].pull(inputs[-1], g, everything)
        return self._pull_inner(inputs, cotangents, everything)

    def value_and_pull(self, x: Any, g: Any, everything: bool) -> tuple[Any, Cotangents]:
        inputs = self._inputs(x)
        value, cotangents = self.parts[-1].value_and_pull(inputs[-1], g, everything)
        return value, self._pull_inner(inputs, cotangents, everything)

    def value_and_grad(self, x: Any, everything: bool) -> tuple[Any, Cotangents]:
        inputs = self._inputs(x)
        value, cotangents = self.parts[-1].value_and_grad(inputs[-1], everything)
        return value, self._pull_inner(inputs, cotangents, everything)

    def jacobian(self, x: Any) -> Any:
        inputs = self._inputs(x)
        jacobian = self.parts[0].jacobian(x)
        for part, at in zip(self.parts[1:], inputs[1:], strict=True):
            jacobian = part.jacobian(at) @ jacobian
        return jacobian

    def _inputs(self, x: Any) -> list[Any]:
        """Return what each part is applied to."""
        inputs = [x]
        for part in self.parts[:-1]:
            inputs.append(part.value(inputs[-1]))
        return inputs

    def _pull_inner(
        self, inputs: list[Any], cotangents: Cotangents, everything: bool
    ) -> Cotangents:
        g, bound = cotangents
        for part, at in zip(self.parts[-2::-1], inputs[-2::-1], strict=True):
            g, more = part.pull(at, g, everything)
            bound = more + bound
        return g, bound


class _Run(_Sequential):
    """Elementwise operations in one pass over blocks, where the arguments allow that."""

    def __init__(self, parts: Sequence[_ElementwiseStep], engine: Callable[..., Any]) -> None:
        super().__init__(parts)
        self.has_bound = any(step.bound for step in parts)
        self.engine = engine([step.link for step in parts])

    def value(self, x: Any) -> Any:
        value = self.engine.value(x)
        return super().value(x) if value is NotImplemented else value

    def jvp(self, x: Any, t: Any) -> Any:
        tangent = self.engine.jvp(x, t)
        return super().jvp(x, t) if tangent is NotImplemented else tangent

    def pull(self, x: Any, g: Any, everything: bool) -> Cotangents:
        # Bound operands' cotangents are sums, each in an order of its own.
        if not (everything and self.has_bound):
            cotangent = self.engine.vjp(x, g)
            if cotangent is not NotImplemented:
                return cotangent, []
        return super().pull(x, g, everything)

    def value_and_pull(self, x: Any, g: Any, everything: bool) -> tuple[Any, Cotangents]:
        if not (everything and self.has_bound):
            both = self.engine.value_and_vjp(x, g)
            if both is not NotImplemented:
                return both[0], (both[1], [])
        return super().value_and_pull(x, g, everything)

    def jacobian(self, x: Any) -> Any:
        if isinstance(x, np.ndarray):
            slopes = self.engine.vjp(x, np.ones_like(x))
            if slopes is not NotImplemented:
                return Diagonal(slopes, copy=False)
        return super().jacobian(x)


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
        raise TypeError(
            f"{where} is {_shown(op)}, which has no {' and no '.join(missing) or 'value'}"
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


def in_sequence(steps: Iterable[Part]) -> Part:
    """Return steps one after the other as one."""
    parts = list(_fused(steps))
    return _Sequential(parts) if len(parts) > 1 else parts[0]


def _fused(steps: Iterable[Part]) -> Iterator[Part]:
    """Yield steps, and runs of elementwise ones that one engine computes."""
    for engine, group in groupby(steps, _engine):
        run: list[Any] = list(group)
        if engine is None:
            yield from run
            continue
        for begin in range(0, len(run), _LONGEST_RUN):
            piece = run[begin : begin + _LONGEST_RUN]
            yield _Run(piece, engine) if len(piece) > 1 else piece[0]


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


def _check_single(value: Any) -> None:
    if np.size(value) != 1:
        raise ValueError(
            f"chain.value_and_grad: the value has shape {np.shape(value)}, a gradient needs one "
            "element; give value_and_vjp a cotangent"
        )

"""The steps of chains: operations with their operands, and calls of their methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from pullback import elementwise
from pullback.config import native
from pullback.elementwise import Elementwise, make_elementwise
from pullback.pointwise import Pointwise
from pullback.products import Product
from pullback.protocol import shown
from pullback.reductions import Reduction, RowMap
from pullback.selections import Selection
from pullback.tables.elementwise import OpRow
from pullback.tables.products import ProductRow
from pullback.tables.reductions import ReductionRow
from pullback.tables.selections import SelectionRow

__all__ = ["Call", "Cotangents", "Link", "Step", "Walk", "arg", "make_step", "new_walk"]

Cotangents: TypeAlias = tuple[Any, ...]  # of the running value, of the bound operands


class _Mark:
    """A placeholder for an argument."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name


arg: Final = _Mark("arg")  # the running value
other: Final = _Mark("other")  # the running value's tangent, or the step's cotangent


class Call(NamedTuple):
    """A function and its arguments, which may be placeholders."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self, x: Any, moved: Any = None) -> Any:
        """Call with the running value, and with its tangent or the value's cotangent."""
        given = (x if a is arg else moved if a is other else a for a in self.arguments)
        return self.function(*given, **self.options)


class Link(NamedTuple):
    """An elementwise operation that can run together with its neighbours."""

    op: str
    places: tuple[int, ...]  # of the running value among the operands
    bound: Any = None  # the other operand, if there is one


class Step(NamedTuple):
    """An operation, its operands and options, as `Walk` takes it."""

    value: Call
    jvp: Call
    vjp: Call  # the cotangent of the running value
    pull: Call | None  # cotangents, if operands are bound
    both: Call | None  # value and gradient, where that is one call
    jacobian: Call  # or several Jacobians, by the operands
    places: tuple[int, ...]  # of the running value among the operands
    n_bound: int  # the number of bound operands that have cotangents
    checks: bool  # whether it checks the shape of a cotangent with as many axes as the value
    link: Link | None
    text: str  # as it is written


class Walk:
    """Runs steps one after the other, like `native.ChainWalk`.

    The chain has already checked that a tangent has the shape of the running value, and a cotangent
    the shape of the value.

    Parameters
    ----------
    steps : tuple of Step
        The first is applied first.
    """

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self._steps = steps

    def value(self, x: Any) -> Any:
        """Return the value."""
        for step in self._steps:
            x = step.value(x)
        return x

    def jvp(self, x: Any, t: Any) -> Any:
        """Return the tangent of the value."""
        for step, at in zip(self._steps, self._inputs(x), strict=True):
            t = step.jvp(at, t)
        return t

    def vjp(self, x: Any, g: Any, every: bool) -> Any:
        """Return the cotangent of x, or those of x and of all bound operands."""
        inputs, bound = self._inputs(x), Cotangents()
        for step in self._steps[::-1]:
            if every and step.pull is not None:
                g, *own = step.pull(inputs.pop(), g)
                bound = (*own, *bound)
            else:
                g = step.vjp(inputs.pop(), g)
        return (g, *bound) if every else g

    def jacobian(self, x: Any) -> Any:
        """Return the product of the Jacobians."""
        first, *more = map(_jacobian, self._steps, self._inputs(x))
        for jacobian in more:
            first = jacobian @ first
        return first

    def _inputs(self, x: Any) -> list[Any]:
        """Return each step's input."""
        inputs = [x]
        for step in self._steps[:-1]:
            inputs.append(step.value(inputs[-1]))
        return inputs


def _jacobian(step: Step, x: Any) -> Any:
    jacobians = step.jacobian(x)
    if not isinstance(jacobians, tuple):
        return jacobians
    first, *more = (jacobians[k] for k in step.places)
    for jacobian in more:
        first = first + jacobian
    return first


def new_walk(steps: tuple[Step, ...]) -> Any:
    """Return a walk over steps."""
    return Walk(steps) if native is None else native.ChainWalk(steps, arg, other)


# Of primitives whose vjp and jacobian take wrt, if they have several operands.
_TAKE_WRT: Final = OpRow | ProductRow | ReductionRow | SelectionRow


# --- from what was given --------------------------------------------------------------------------


def make_step(where: str, op: Any, operands: tuple[Any, ...], options: dict[str, Any]) -> Step:
    """Return an operation with its operands and options; `where` is for the error messages.

    Raises
    ------
    TypeError
        If it is not a primitive, is an elementwise one with options, or an operand is a function.
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
    row = getattr(op, "row", None)
    if isinstance(row, OpRow) and row.default is not None and len(operands) == row.nin - 1:
        operands = (*operands, row.default)
    _check_operands(where, op, operands)
    if options and isinstance(row, OpRow):
        raise TypeError(f"{where}: {row.name} takes no {', '.join(options)} in a chain")
    # The last operands may have no derivative: a parameter, such as a norm's p, or targets.
    n = len(op.row.operands) if isinstance(op, Reduction) else len(operands)
    n = 1 if isinstance(op, Pointwise) else n
    if isinstance(op, Product) and op.row.optional and n == len(op.row.operands) - 1:
        operands, n = (*operands, None), n + 1  # its derivatives want that operand, or None
    # So may another one, such as a condition.
    moved = op.row.moved if isinstance(op, Selection) else tuple(range(n))
    places = tuple(k for k, operand in enumerate(operands) if operand is arg)
    for k in set(places) - {*moved}:
        raise ValueError(f"{where}: {_name(op)} has no derivative by operand {k + 1}")
    bound = tuple(k for k in moved if operands[k] is not arg and operands[k] is not None)
    options = {**options}
    jacobian = getattr(op, "jacobian", None) or (lambda *_, **__: op.jacobian)  # which raises
    takes_wrt = isinstance(row, _TAKE_WRT) and len(moved) > 1
    alone = {"wrt": places[0]} if takes_wrt and len(places) == 1 else {}
    one_pass = getattr(op, "value_and_grad", None) if n == 1 else None
    vjp, pull = _pulls(op, operands, options, places, bound, moved)
    tangents = (other if operands[k] is arg else None for k in moved)
    runs = isinstance(row, OpRow) and len(places) + len(bound) == n and not _is_twin(op)
    checks = isinstance(op, Reduction | RowMap | Product | Selection | Pointwise)
    return Step(
        value=Call(op.__call__ if checks else op, operands, options),  # past the type's slot
        jvp=Call(op.jvp, (*operands, *tangents), options),
        vjp=vjp,
        pull=pull,
        both=None if one_pass is None else Call(one_pass, operands, options),
        jacobian=Call(jacobian, operands, options | alone),
        places=places,
        n_bound=len(bound),
        checks=checks,
        link=Link(op.row.name, places, *(operands[k] for k in bound)) if runs else None,
        text=_text(op, operands, options),
    )


def _check_operands(where: str, op: Any, operands: tuple[Any, ...]) -> None:
    """Raise if `arg` is not among operands, there are too many or too few, or one is a function."""
    if not any(operand is arg for operand in operands):
        raise ValueError(f"{where}, {_name(op)}, has no pb.arg among its operands")
    row = getattr(op, "row", None)
    for number, operand in enumerate(operands, 1):
        if callable(operand) and (row is not None or hasattr(operand, "vjp")):
            raise TypeError(
                f"{where}: operand {number} of {_name(op)} is {_shown(operand)}, a function; bound "
                "operands are arrays or numbers, and a function is a step of its own"
            )
    taken = _taken(op)
    if taken and len(operands) not in taken:
        numbers = " or ".join(map(str, taken))
        raise ValueError(f"{where}: {_name(op)} takes {numbers} operands, not {len(operands)}")


def _taken(op: Any) -> tuple[int, ...]:
    """Return the numbers of operands that an operation takes, or nothing for a user's own."""
    row = getattr(op, "row", None)
    if isinstance(row, OpRow):
        return (row.nin,)
    if isinstance(op, Reduction | RowMap):
        return (len(op.row.leading),)
    if isinstance(op, Product):
        n = len(op.row.operands)
        return (n - 1, n) if op.row.optional else (n,)
    if isinstance(op, Selection):
        return (len(op.row.operands),)
    return (2,) if isinstance(op, Pointwise) else ()


def _pulls(
    op: Any,
    operands: tuple[Any, ...],
    options: dict[str, Any],
    places: tuple[int, ...],
    bound: tuple[int, ...],
    moved: tuple[int, ...],
) -> tuple[Call, Call | None]:
    """Return the calls for the cotangent of the running value, and for all, if others are bound."""
    given, wanted = (*operands, other), (*places, *bound)
    if len(moved) == 1:
        return Call(op.vjp, given, options), None
    if isinstance(getattr(op, "row", None), _TAKE_WRT):
        asked = "all" if wanted == moved else wanted
        every = Call(op.vjp, given, options | {"wrt": asked})
        alone = Call(op.vjp, given, options | {"wrt": places if len(places) > 1 else places[0]})
    else:
        whole = Call(op.vjp, given, options)
        every = _call(lambda x, g: tuple(map(whole(x, g).__getitem__, wanted)))
        alone = _call(lambda x, g: whole(x, g)[places[0]]) if len(places) == 1 else every
    if len(places) > 1:
        primitives = make_elementwise(op._engine) if _is_twin(op) else elementwise.primitives
        add = primitives["add"]
        parted = alone

        def summed(cotangents: Cotangents) -> Cotangents:
            """Add up the cotangents of all places of the running value."""
            total, *rest = cotangents
            for _ in places[1:]:
                total = add(total, rest.pop(0))
            return (total, *rest)

        alone, several = _call(lambda x, g: summed(parted(x, g))[0]), every
        every = _call(lambda x, g: summed(several(x, g)))
    return alone, every if bound else None


def _call(function: Callable[[Any, Any], Any]) -> Call:
    return Call(function, (arg, other), {})


def _is_twin(op: Any) -> bool:
    return isinstance(op, Elementwise)


# --- in words -------------------------------------------------------------------------------------


def _text(op: Any, operands: tuple[Any, ...], options: dict[str, Any]) -> str:
    given = [_shown(operand) for operand in operands]
    given += [f"{key}={_shown(value)}" for key, value in options.items()]
    return _name(op) if given == ["arg"] else f"{_name(op)}({', '.join(given)})"


def _name(op: Any) -> str:
    name: str = getattr(op, "__name__", type(op).__name__)
    return name.removeprefix("elementwise.")


def _shown(operand: Any) -> str:
    if callable(operand):
        return _name(operand)
    if hasattr(operand, "shape") and np.shape(operand):
        return f"<{operand.dtype} {operand.shape}>"
    return shown(operand)

"""The steps of chains: operations with their operands, and calls of their methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from pullback.chain_graph import Bound, Input, Moving, Node, Operand, name_of, shown
from pullback.engine import BACKEND
from pullback.pointwise import Pointwise
from pullback.products import Product
from pullback.protocol import as_index
from pullback.reductions import Reduction, RowMap
from pullback.selections import Selection
from pullback.tables.elementwise import OpRow
from pullback.tables.products import ProductRow
from pullback.tables.reductions import ReductionRow
from pullback.tables.selections import SelectionRow

__all__ = [
    "Call",
    "Cotangents",
    "Line",
    "Link",
    "Step",
    "arg",
    "make_node",
    "make_step",
    "new_walk",
]

MOST_INPUTS: Final = 256

Cotangents: TypeAlias = tuple[Any, ...]  # of the running value, of the bound operands


class _Mark:
    """A placeholder for an argument."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name


class _Running(_Mark):
    """The running value; by a position, an input."""

    def __getitem__(self, position: Any) -> Input:
        k = as_index("arg", "the position of an input", position)
        if not 0 <= k < MOST_INPUTS:
            raise ValueError(
                f"arg: the position of an input must be at least 0 and less than {MOST_INPUTS}, "
                f"not {k}"
            )
        return Input(k)

    __iter__ = None  # which Python would make of positions


arg: Final = _Running("arg")
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


class Line:
    """A graph in which each node is applied to the one before, on the native kernels.

    Parameters
    ----------
    nodes : list of Node
        The first is applied first.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.walk = new_walk(nodes)
        self.value = self.walk.value

    def jvp(self, xs: Sequence[Any], tangents: Sequence[Any]) -> Any:
        """Return the tangent of the value."""
        return self.walk.jvp(*xs, *tangents)

    def pulling(self, wanted: tuple[int, ...], xs: Sequence[Any]) -> Any:
        """Return the value, and a function from its cotangent to those of leaves."""
        (x,) = xs

        def back(g: Any) -> Any:
            if wanted == (0,):
                return (self.walk.vjp(x, g, False),)
            cotangents = self.walk.vjp(x, g, True)
            return [cotangents[k] for k in wanted]

        return self.value(x), back


def new_walk(nodes: list[Node]) -> Any:
    """Return what runs nodes one after the other."""
    return BACKEND.kernels.ChainWalk(tuple(map(step_of, nodes)), arg, other)


# Of primitives whose vjp and jacobian take wrt, if they have several operands.
_TAKE_WRT: Final = OpRow | ProductRow | ReductionRow | SelectionRow


# --- from what was given --------------------------------------------------------------------------


def make_node(where: str, op: Any, operands: tuple[Any, ...], options: dict[str, Any]) -> Node:
    """Return an operation with its operands and options; `where` is for the error messages.

    Operands are inputs, nodes, bound ones, or anything else, which is bound here.

    Raises
    ------
    TypeError
        If it is not a primitive, is an elementwise one with options, or an operand is a function.
    ValueError
        If all operands are bound, or there are too many or too few.
    """
    missing = [name for name in ("vjp", "jvp") if not callable(getattr(op, name, None))]
    if not callable(op) or missing:
        from pullback.hints import about_function  # noqa: PLC0415  only of what is wrong

        raise TypeError(
            f"{where} is {shown(op)}, which has no {' and no '.join(missing) or 'value'}"
            f"{about_function(op)}"
        )
    row: Any = getattr(op, "row", None)
    is_elementwise = isinstance(row, OpRow)
    if is_elementwise and row.default is not None and len(operands) == row.nin - 1:
        operands = (*operands, row.default)
    _check_operands(where, op, operands)
    if options and is_elementwise:
        raise TypeError(f"{where}: {row.name} takes no {', '.join(options)} in a chain")
    # The last operands may have no derivative: a parameter, such as a norm's p, or targets.
    n = len(op.row.operands) if isinstance(op, Reduction) else len(operands)
    n = 1 if isinstance(op, Pointwise) else n
    if isinstance(op, Product) and op.row.optional and n == len(op.row.operands) - 1:
        operands, n = (*operands, None), n + 1  # its derivatives want that operand, or None
    # So may another one, such as a condition.
    moved = op.row.moved if isinstance(op, Selection) else tuple(range(n))
    held = list(operands)
    for k, operand in enumerate(operands):
        if isinstance(operand, Operand):
            if k not in moved:
                raise ValueError(f"{where}: {name_of(op)} has no derivative by operand {k + 1}")
        elif k in moved and operand is not None:
            held[k] = Bound(operand)
    takes_wrt = isinstance(row, _TAKE_WRT) and len(moved) > 1
    kinds = Reduction | RowMap | Product | Selection | Pointwise
    checks = not is_elementwise and isinstance(op, kinds)
    return Node(op, tuple(held), {**options}, moved, takes_wrt, checks, is_elementwise)


def _check_operands(where: str, op: Any, operands: tuple[Any, ...]) -> None:
    """Raise if all operands are bound, there are too many or too few, or one is a function."""
    row, moves = getattr(op, "row", None), False
    for number, operand in enumerate(operands, 1):
        if isinstance(operand, Operand):
            moves |= isinstance(operand, Moving)
        elif callable(operand) and (row is not None or hasattr(operand, "vjp")):
            raise TypeError(
                f"{where}: operand {number} of {name_of(op)} is {shown(operand)}, a function; "
                "operands are chains, arrays or numbers, and a primitive is a step of its own"
            )
    if not moves:
        raise ValueError(f"{where}, {name_of(op)}, has no pb.arg among its operands")
    taken = _taken(op)
    if taken and len(operands) not in taken:
        numbers = " or ".join(map(str, taken))
        raise ValueError(f"{where}: {name_of(op)} takes {numbers} operands, not {len(operands)}")


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


# --- as the native kernels take them --------------------------------------------------------------


def make_step(where: str, op: Any, operands: tuple[Any, ...], options: dict[str, Any]) -> Step:
    """Return the step of an operation, as `make_node` takes it, applied to `arg`."""
    placed = tuple(Input(0) if operand is arg else operand for operand in operands)
    return step_of(make_node(where, op, placed, options))


def step_of(node: Node) -> Step:
    """Return a node that is applied to the one before it."""
    op, options = node.op, node.options
    held = [o.value if isinstance(o, Bound) else o for o in node.operands]
    operands = tuple([arg if isinstance(o, Moving) else o for o in held])
    places = tuple([k for k, operand in enumerate(operands) if operand is arg])
    bound = tuple([k for k, o in enumerate(node.operands) if isinstance(o, Bound)])
    jacobian = getattr(op, "jacobian", None) or (lambda *_, **__: op.jacobian)  # which raises
    alone = {"wrt": places[0]} if node.takes_wrt and len(places) == 1 else {}
    one_pass = getattr(op, "value_and_grad", None) if len(node.moved) == 1 else None
    vjp, pull = _pulls(node, operands, places, bound)
    tangents = [other if operands[k] is arg else None for k in node.moved]
    return Step(
        value=Call(op.__call__ if node.checks else op, operands, options),  # past the type's slot
        jvp=Call(op.jvp, (*operands, *tangents), options),
        vjp=vjp,
        pull=pull,
        both=None if one_pass is None else Call(one_pass, operands, options),
        jacobian=Call(jacobian, operands, options | alone),
        places=places,
        n_bound=len(bound),
        checks=node.checks,
        link=Link(op.row.name, places, *(operands[k] for k in bound)) if node.runs else None,
        text=node.text(lambda _: "arg"),
    )


def _pulls(
    node: Node, operands: tuple[Any, ...], places: tuple[int, ...], bound: tuple[int, ...]
) -> tuple[Call, Call | None]:
    """Return the calls for the cotangent of the running value, and for all, if others are bound."""
    op, options, moved = node.op, node.options, node.moved
    given, wanted = (*operands, other), (*places, *bound)
    if len(moved) == 1:
        return Call(op.vjp, given, options), None
    if node.takes_wrt:
        asked = "all" if wanted == moved else wanted
        every = Call(op.vjp, given, options | {"wrt": asked})
        alone = Call(op.vjp, given, options | {"wrt": places if len(places) > 1 else places[0]})
    else:
        whole = Call(op.vjp, given, options)
        every = _call(lambda x, g: tuple(map(whole(x, g).__getitem__, wanted)))
        alone = _call(lambda x, g: whole(x, g)[places[0]]) if len(places) == 1 else every
    if len(places) > 1:
        parted, add = alone, node.primitive("add")

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

"""Functions as graphs of primitives, and the code that runs them.

A graph has slots: its inputs, its bound operands, and the results of its nodes in the order of
evaluation. Inputs and bound operands are its leaves. Each method is compiled to a Python function
of one line for each call of a primitive, once for each choice of leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.elementwise import Elementwise, make_elementwise, primitives
from pullback.protocol import result_dtype, shape_of
from pullback.protocol import shown as as_shown

__all__ = [
    "Bound",
    "Graph",
    "Input",
    "Moving",
    "Node",
    "Operand",
    "in_order",
    "name_of",
    "put_together",
    "shown",
    "zeros",
]

Array: TypeAlias = npt.NDArray[Any]
Slots: TypeAlias = tuple[int, ...]

LINEAR_ENDS: Final = ("sum", "mean")  # steps behind which a Hessian is still diagonal


class Operand:
    """An operand that has a slot."""

    __slots__ = ()


class Moving(Operand):
    """An operand that depends on the inputs."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Input(Moving):
    """The place of an input."""

    index: int

    def __repr__(self) -> str:
        return f"arg[{self.index}]"


@dataclass(eq=False, slots=True)
class Bound(Operand):
    """An operand that is bound, and has a cotangent."""

    value: Any


@dataclass(eq=False, slots=True)
class Node(Moving):
    """A primitive with its operands, which are inputs, bound ones, nodes or constants.

    Nodes are told apart by their identity: one that is an operand in several places is computed
    once.
    """

    op: Any
    operands: tuple[Any, ...]
    options: dict[str, Any]
    moved: tuple[int, ...]  # the places of the operands that have derivatives
    takes_wrt: bool  # whether its vjp computes the cotangents that are asked for, and no others
    checks: bool  # whether it checks the shape of a cotangent with as many axes as the value
    elementwise: bool

    @property
    def runs(self) -> bool:
        """Whether native kernels can run it together with its neighbours."""
        is_native = self.elementwise and not isinstance(self.op, Elementwise)
        return is_native and all(o is not None for o in self.operands)

    def primitive(self, name: str) -> Any:
        """Return an elementwise primitive, a NumPy twin beside a twin."""
        twin = isinstance(self.op, Elementwise)
        return (make_elementwise(self.op._engine) if twin else primitives)[name]

    def text(self, write: Callable[[Any], str] | None = None) -> str:
        """Return it as it is written, with `write` for its operands that are computed."""
        write = write or (lambda operand: "arg" if isinstance(operand, Node) else repr(operand))
        given = [write(o) if isinstance(o, Moving) else shown(o) for o in self.operands]
        given += [f"{key}={shown(value)}" for key, value in self.options.items()]
        return name_of(self.op) if given == ["arg"] else f"{name_of(self.op)}({', '.join(given)})"


def name_of(op: Any) -> str:
    """Return what a primitive is called in texts."""
    name: str = getattr(op, "__name__", type(op).__name__)
    return name.removeprefix("elementwise.")


def shown(operand: Any) -> str:
    """Return an operand or an option as it is shown in texts."""
    operand = operand.value if isinstance(operand, Bound) else operand
    if callable(operand):
        return name_of(operand)
    if hasattr(operand, "shape") and np.shape(operand):
        return f"<{operand.dtype} {operand.shape}>"
    return as_shown(operand)


def in_order(root: Node) -> list[Node]:
    """Return the nodes that a node needs, each after its operands, and itself."""
    order: list[Node] = []
    seen: set[int] = set()
    waiting: list[tuple[Node, bool]] = [(root, False)]
    while waiting:
        node, ready = waiting.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append((node, True))
            waiting += [(o, False) for o in node.operands[::-1] if isinstance(o, Node)]
    return order


def put_together(root: Node, given: Sequence[Any]) -> Node:
    """Return a node's function of what its inputs are: nodes, inputs or bound operands.

    It is a copy, whose bound operands have cotangents of their own.
    """
    made: dict[int, Any] = {}

    def placed(operand: Any) -> Any:
        if isinstance(operand, Input):
            return given[operand.index]
        if isinstance(operand, Bound):
            return made.setdefault(id(operand), Bound(operand.value))
        return made[id(operand)] if isinstance(operand, Node) else operand

    for node in in_order(root):
        made[id(node)] = replace(node, operands=tuple(map(placed, node.operands)))
    return made[id(root)]  # type: ignore[no-any-return]


def zeros(like: Any) -> Any:
    """Return zeros of the shape of a primal, in the dtype that it computes in."""
    dtype = result_dtype("chain", like, names=("x",))
    return np.zeros(shape_of("chain", "x", like), dtype)[()]


class _Unit(NamedTuple):
    """A node, or a run of them, as code."""

    out: int  # the slot of its result
    operands: tuple[str, ...]
    slots: tuple[int | None, ...]  # of the operands that have derivatives
    key: str  # the end of its functions' names
    asked: tuple[int, ...]  # the places of those, if its vjp takes wrt
    options: str

    def call(self, method: str, *more: str) -> str:
        """Return the call of a method."""
        given = ", ".join((*self.operands, *more))
        return f"{method}{self.key}({given}{self.options if method != 'w' else ', False'})"


class Graph:
    """Runs the nodes of a function.

    Parameters
    ----------
    n_inputs : int
        The number of inputs.
    nodes : list of Node
        In the order of evaluation; the last one gives the value.
    new_run : callable, optional
        ``new_run(nodes)``, which runs elementwise nodes together, as `native.ChainWalk`.
    """

    def __init__(
        self, n_inputs: int, nodes: list[Node], new_run: Callable[[list[Node]], Any] | None
    ) -> None:
        self.n_inputs, self.nodes, self._new_run = n_inputs, nodes, new_run
        leaves = [o for node in nodes for o in node.operands if isinstance(o, Bound)]
        self.bound = list(dict.fromkeys(leaves))
        self._counts_twice = len(leaves) > len(self.bound)
        self.n_leaves = n_inputs + len(self.bound)
        self._slots = {id(leaf): n_inputs + k for k, leaf in enumerate(self.bound)}
        self._slots |= {id(node): self.n_leaves + k for k, node in enumerate(nodes)}
        self._made: dict[Any, Callable[..., Any]] = {}
        self._scope: dict[str, Any] = {}

    # --- what it is made of -----------------------------------------------------------------------

    def slot(self, operand: Any) -> int | None:
        """Return the slot of an operand; a constant has none."""
        return operand.index if isinstance(operand, Input) else self._slots.get(id(operand))

    def is_line(self) -> bool:
        """Tell whether each node is applied to the one before, and the first to the one input."""
        before: Any = Input(0)
        for node in self.nodes:
            for o in node.operands:
                if isinstance(o, Moving) and o is not before and o != before:
                    return False
            before = node
        return self.n_inputs == 1 and not self._counts_twice

    def of_leaves(self, leaves: Iterable[int]) -> set[int]:
        """Return the slots that depend on some leaves, and these."""
        reached = set(leaves)
        for node in self.nodes:
            if any(self.slot(node.operands[k]) in reached for k in node.moved):
                reached.add(self._slots[id(node)])
        return reached

    def _units(self, wanted: Iterable[int] | None) -> list[_Unit]:
        """Return the nodes, with runs of those beside which no wanted operands are bound.

        None is for second order, which has no runs.
        """
        if self._new_run is None or wanted is None:
            return [*map(self._unit, self.nodes)]
        asked = frozenset(wanted)
        uses: dict[int, int] = {}
        for node in self.nodes:
            for o in {id(o): o for o in node.operands}.values():
                uses[id(o)] = uses.get(id(o), 0) + 1
        runs: list[list[Node]] = []
        for node in self.nodes:
            before = runs[-1][-1] if runs else node
            joins = (
                self._links(node, asked)
                and self._links(before, asked)
                and uses.get(id(before)) == 1
            )
            if joins and any(o is before for o in node.operands):
                runs[-1].append(node)
            else:
                runs.append([node])
        return [self._run(run) if len(run) > 1 else self._unit(run[0]) for run in runs]

    def _links(self, node: Node, wanted: frozenset[int]) -> bool:
        """Tell whether a node can be part of a run."""
        moving = {id(o): o for o in node.operands if isinstance(o, Moving)}
        if not node.runs or len(moving) != 1:
            return False
        beside = [o for o in node.operands if isinstance(o, Bound)]
        if any(self.slot(o) in wanted for o in beside):
            return False
        # An array beside an input may enlarge it, which nodes in one pass do not.
        of_input = isinstance(next(iter(moving.values())), Input)
        return not (of_input and any(np.ndim(o.value) for o in beside))

    def _unit(self, node: Node) -> _Unit:
        out = self._slots[id(node)]
        key, names = str(out), []
        for place, operand in enumerate(node.operands):
            slot = self.slot(operand)
            names.append(f"k{key}_{place}" if slot is None else f"v{slot}")
            if slot is None or isinstance(operand, Bound):
                self._scope[names[-1]] = operand.value if isinstance(operand, Bound) else operand
        value = node.op.__call__ if node.checks else node.op  # past the type's slot
        own = {
            "f": value,
            "d": node.op.vjp,
            "j": node.op.jvp,
            "o": node.options,
            "a": node.primitive("add"),
        }
        self._scope |= {name + key: item for name, item in own.items()}
        slots = tuple(self.slot(node.operands[k]) for k in node.moved)
        options = f", **o{key}" if node.options else ""
        asked = node.moved if node.takes_wrt else ()
        return _Unit(out, tuple(names), slots, key, asked, options)

    def _run(self, nodes: list[Node]) -> _Unit:
        first, last = nodes[0], self._slots[id(nodes[-1])]
        (start,) = {self.slot(o) for o in first.operands if isinstance(o, Moving)}
        key = f"{self._slots[id(first)]}_{last}"
        assert self._new_run is not None
        run = self._new_run(nodes)
        own = {"f": run.value, "w": run.vjp, "j": run.jvp, "a": first.primitive("add")}
        self._scope |= {name + key: item for name, item in own.items()}
        return _Unit(last, (f"v{start}",), (start,), key, (), "")

    # --- code -------------------------------------------------------------------------------------

    def _compiled(self, key: Any, write: Callable[[], Iterable[str]]) -> Callable[..., Any]:
        made = self._made.get(key)
        if made is None:
            self._scope["zeros"] = zeros
            own: dict[str, Any] = {}
            exec(_code("\n".join(write())), self._scope, own)
            made = self._made[key] = own["made"]
        return made

    def _inputs(self, letter: str = "v") -> list[str]:
        return [f"{letter}{k}" for k in range(self.n_inputs)]

    def value(self, *xs: Any) -> Any:
        """Return the value."""
        return self._compiled("value", self._write_value)(*xs)

    def _write_value(self) -> Iterator[str]:
        units = self._units(())
        yield f"def made({', '.join(self._inputs())}):"
        last = f"v{units[-1].out}"
        lines = [(f"v{u.out}", u.call("f"), u.operands) for u in units]
        yield from _forgetting(lines, last)
        yield f"  return {last}"

    def jvp(self, xs: Sequence[Any], tangents: Sequence[Any]) -> Any:
        """Return the tangent of the value; tangents of inputs may be None."""
        moved = tuple(k for k, t in enumerate(tangents) if t is not None)
        made = self._compiled(("jvp", moved), lambda: self._write_jvp(moved))
        return made(*xs, *(tangents[k] for k in moved))

    def _write_jvp(self, moved: Slots) -> Iterator[str]:
        units, active = self._units(()), self.of_leaves(moved)
        yield f"def made({', '.join((*self._inputs(), *(f't{k}' for k in moved)))}):"
        lines = []
        for unit in units:
            ts = [f"t{s}" if s in active else "None" for s in unit.slots]
            if unit.out in active:
                used = (*unit.operands, *(t for t in ts if t != "None"))
                lines.append((f"t{unit.out}", unit.call("j", *ts), used))
            if unit is not units[-1] or unit.out not in active:
                lines.append((f"v{unit.out}", unit.call("f"), unit.operands))
        last = f"{'t' if units[-1].out in active else 'v'}{units[-1].out}"
        yield from _forgetting(lines, last)
        yield f"  return {last if last[0] == 't' else f'zeros({last})'}"

    def pulling(
        self, wanted: Slots, xs: Sequence[Any], tangents: tuple[Slots, bool] | None = None
    ) -> tuple[Any, Callable[[Any], Any]]:
        """Return the value, and a function from its cotangent to those of leaves.

        With `tangents`, which are the inputs that have one and whether the cotangent does, that
        function returns a second one beside them: from the tangents to those of the cotangents, and
        that of the value, which is None where none of the inputs reaches it.
        """
        write = self._write_pulling
        made = self._compiled((wanted, tangents), lambda: write(wanted, tangents))
        return made(*xs)  # type: ignore[no-any-return]

    def _write_pulling(self, wanted: Slots, tangents: tuple[Slots, bool] | None) -> Iterator[str]:
        units = self._units(wanted if tangents is None else None)
        reached, last = self.of_leaves(wanted), units[-1].out
        pulled = [unit for unit in units[::-1] if unit.out in reached]
        yield f"def made({', '.join(self._inputs())}):"
        for unit in units:
            yield f"  v{unit.out} = {unit.call('f')}"
        yield f"  def back(g{last}):"
        got: set[str] = set()
        for unit in pulled:
            method = "w" if "_" in unit.key else "d"
            places = self._places(unit, reached)
            call = unit.call(method, f"g{unit.out}", *_asking(unit, places))
            yield from _received("   ", "g", unit, places, call, got)
            if tangents is None:
                yield f"   del g{unit.out}"
        results = [f"g{k}" if f"g{k}" in got or k == last else f"zeros(v{k})" for k in wanted]
        if tangents is None:
            yield f"   return {_tuple(results)}"
        else:
            yield from self._write_along(units, pulled, wanted, tangents)
            yield f"   return {_tuple(results)}, along"
        yield f"  return v{last}, back"

    def _write_along(
        self, units: list[_Unit], pulled: list[_Unit], wanted: Slots, tangents: tuple[Slots, bool]
    ) -> Iterator[str]:
        """Write the function of the tangents; h are those of cotangents g."""
        moved, of_cotangent = tangents
        active, reached, last = self.of_leaves(moved), self.of_leaves(wanted), units[-1].out
        names = [f"t{k}" for k in moved] + [f"h{last}"] * of_cotangent
        yield f"   def along({', '.join(names)}):"

        def given(unit: _Unit) -> list[str]:
            return [f"t{s}" if s in active else "None" for s in unit.slots]

        for unit in units:
            if unit.out in active:
                yield f"    t{unit.out} = {unit.call('j', *given(unit))}"
        got = {f"h{last}"} if of_cotangent else set()
        for unit in pulled:
            ts, h, places = given(unit), f"h{unit.out}", self._places(unit, reached)
            h = h if h in got else "None"
            if {h, *ts} != {"None"}:
                self._scope[f"s{unit.key}"] = self._second(unit)
                call = unit.call("s", f"g{unit.out}", *ts, h, *_asking(unit, places))
                yield from _received("    ", "h", unit, places, call, got)
        results = [f"h{k}" if f"h{k}" in got else f"zeros(v{k})" for k in wanted]
        yield f"    return {_tuple(results)}, {f't{last}' if last in active else 'None'}"

    def _second(self, unit: _Unit) -> Any:
        number = unit.out - self.n_leaves
        node = self.nodes[number]
        method = getattr(node.op.vjp, "jvp", None)
        if method is None:
            raise TypeError(
                f"chain: step {number + 1}, {node.text()}, has no derivative of second order: "
                "its vjp has no jvp"
            )
        return method

    def _places(self, unit: _Unit, reached: set[int]) -> Slots:
        """Return the operands whose cotangents are wanted, bound ones last."""
        places = [p for p, s in enumerate(unit.slots) if s is not None and s in reached]
        return tuple(sorted(places, key=lambda p: self._is_bound(unit.slots[p])))

    def _is_bound(self, slot: int | None) -> bool:
        return slot is not None and self.n_inputs <= slot < self.n_leaves

    # --- without code -----------------------------------------------------------------------------

    def values(self, xs: Sequence[Any]) -> list[Any]:
        """Return what is in each slot."""
        found = [*xs, *(leaf.value for leaf in self.bound)]
        for node in self.nodes:
            found.append(node.op(*self._operands(node, found), **node.options))
        return found

    def _operands(self, node: Node, values: Sequence[Any]) -> tuple[Any, ...]:
        slots = map(self.slot, node.operands)
        pairs = zip(node.operands, slots, strict=True)
        return tuple(o if slot is None else values[slot] for o, slot in pairs)

    def jacobians(self, wanted: Slots, xs: Sequence[Any]) -> list[Any]:
        """Return the Jacobians with respect to leaves."""
        values, reached = self.values(xs), self.of_leaves(wanted)
        of: dict[int, dict[int, Any]] = {leaf: {leaf: None} for leaf in wanted}
        for node in self.nodes:
            out = self._slots[id(node)]
            if out not in reached:
                continue
            total: dict[int, Any] = {}
            for slot, own in self._own_jacobians(node, values, reached):
                for leaf, before in of[slot].items():
                    one = own if before is None else own @ before
                    total[leaf] = total[leaf] + one if leaf in total else one
            of[out] = total
        found = of.get(self.n_leaves + len(self.nodes) - 1, {})
        return [found[leaf] if leaf in found else _zero(values, leaf) for leaf in wanted]

    def _own_jacobians(
        self, node: Node, values: Sequence[Any], reached: set[int]
    ) -> Iterator[tuple[int, Any]]:
        """Yield a node's Jacobians by slot, summed over the places of each."""
        slots = [self.slot(node.operands[k]) for k in node.moved]
        places = [p for p, slot in enumerate(slots) if slot in reached]
        # Without a Jacobian, the attribute's error says so.
        jacobian = getattr(node.op, "jacobian", None) or (lambda *_, **__: node.op.jacobian)
        alone = node.takes_wrt and len(places) == 1
        wrt = {"wrt": node.moved[places[0]]} if alone else {}
        found = jacobian(*self._operands(node, values), **node.options, **wrt)
        several = isinstance(found, tuple) and not alone
        total: dict[int, Any] = {}
        for place in places:
            own, slot = found[place] if several else found, slots[place]
            assert slot is not None
            total[slot] = total[slot] + own if slot in total else own
        yield from total.items()

    def is_separate(self, leaves: Slots, xs: Sequence[Any]) -> bool:
        """Tell whether each element of the leaves acts on its own element, sums at the end apart.

        Then all blocks of the Hessian are diagonal.
        """
        reached, nodes = self.of_leaves(leaves), list(self.nodes)
        while len(nodes) > 1 and getattr(nodes[-1].op, "__name__", "") in LINEAR_ENDS:
            if not nodes[-1].checks or nodes[-1].operands[0] is not nodes[-2]:
                break
            nodes.pop()
        moved = [node for node in nodes if self._slots[id(node)] in reached]
        if not all(node.elementwise for node in moved):
            return False
        values = self.values(xs)
        shapes = {np.shape(values[k]) for k in leaves}
        shapes |= {np.shape(values[self._slots[id(node)]]) for node in moved}
        return len(shapes) == 1


@lru_cache(maxsize=1024)
def _code(text: str) -> CodeType:
    """Return code, which graphs of one form share."""
    return compile(text, "<chain>", "exec")


def _zero(values: Sequence[Any], leaf: int) -> Any:
    from pullback.jacobians import Zero  # noqa: PLC0415  of what is not used

    like = zeros(values[leaf])
    return Zero(np.shape(values[-1]), np.shape(like), np.asarray(like).dtype)


def _tuple(names: Sequence[str]) -> str:
    return f"({''.join(f'{name}, ' for name in names)})"


def _asking(unit: _Unit, places: Slots) -> list[str]:
    """Return the argument that asks for the cotangents of operands in some places."""
    if not unit.asked:
        return []
    if places == tuple(range(len(unit.slots))):
        return ["wrt='all'"]
    asked = tuple(unit.asked[p] for p in places)
    return [f"wrt={asked[0] if len(asked) == 1 else asked}"]


def _received(
    indent: str, letter: str, unit: _Unit, places: Slots, call: str, got: set[str]
) -> Iterator[str]:
    """Write a call that returns cotangents, and their sums with those that there are."""
    by_slot: dict[str, list[str]] = {}
    for place in places:
        by_slot.setdefault(f"{letter}{unit.slots[place]}", []).append(f"c{place}")
    direct = len(by_slot) == 1 == len(places) and not by_slot.keys() & got
    names = [*by_slot] if direct else [f"c{place}" for place in places]
    if len(unit.slots) == 1 or unit.asked:
        yield f"{indent}{', '.join(names)} = {call}"
    else:
        yield f"{indent}c = {call}"
        yield from (f"{indent}{n} = c[{p}]" for n, p in zip(names, places, strict=True))
    for name, parts in () if direct else by_slot.items():
        first, *more = parts
        for part in more:
            first = f"a{unit.key}({first}, {part})"
        yield f"{indent}{name} = {f'a{unit.key}({name}, {first})' if name in got else first}"
    got.update(by_slot)


def _forgetting(lines: Sequence[tuple[str, str, Sequence[str]]], kept: str) -> Iterator[str]:
    """Write assignments, of (name, expression, names used), that let go of what has been used."""
    last: dict[str, int] = {}
    for k, (name, _, used) in enumerate(lines):
        last |= dict.fromkeys((name, *used), k)
    made = {name for name, *_ in lines} - {kept}
    for k, (name, expression, used) in enumerate(lines):
        yield f"  {name} = {expression}"
        done = [one for one in dict.fromkeys((name, *used)) if one in made and last[one] == k]
        if done:
            yield f"  del {', '.join(done)}"

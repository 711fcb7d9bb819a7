"""The generated pieces of the site's pages, from the tables and the docstrings, as Markdown.

A page has a line ``<!-- generated: NAME -->`` for each piece; ``conf.py`` replaces it when it
builds the site. The pieces are not committed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from numpydoc.docscrape_sphinx import SphinxDocString
from pullback import reference
from pullback.loss_vjp import LossVjp
from pullback.pointwise import Pointwise, PointwiseVjp
from pullback.protocol import WithMethods
from pullback.tables.elementwise import OPS, OpRow, SpecialPoint
from pullback.tables.examples import EXAMPLES
from pullback.tables.losses import LOSSES, LossRow
from pullback.tables.products import PRODUCTS, ProductRow
from pullback.tables.reductions import REDUCTIONS, ReductionRow
from pullback.tables.selections import SELECTIONS, SelectionRow

__all__ = ["PIECES"]

Fields = Iterable[tuple[str, str]]

# --- one entry, of a primitive or a method --------------------------------------------------------


def _signature(function: Callable[..., Any]) -> str:
    """Return the parameters and their defaults, without types."""
    given = inspect.signature(function)
    bare = inspect.Parameter.empty
    parameters = [part.replace(annotation=bare) for part in given.parameters.values()]
    return str(given.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def _entry(path: str, signature: str, body: str, *, options: str = "") -> str:
    kind = "function" if signature else "data"
    return f"`````{{py:{kind}}} {path}{signature}\n{options}\n{body}\n`````\n"


def _primitive(path: str, signature: str, summary: str, fields: Fields, rest: str = "") -> str:
    """Return the entry of a primitive: what it is, its facts, an example."""
    name = path.rpartition(".")[2]
    facts = "\n".join(f":{label}: {text}" for label, text in fields if text)
    example = f"```pycon\n{EXAMPLES[name]}\n```\n"
    body = f"{summary}\n\n````{{container}} facts\n\n{facts}\n````\n\n{rest}{example}"
    return _entry(f"pullback.{path}", signature, body)


# What is read first; the others follow by name.
_FIRST: Final = ("derivative", "value_and_derivative", "value_and_grad", "grad", "vjp", "jvp")


def _methods(primitive: Any, shown_as: str) -> Iterator[str]:
    """Yield the entries of a primitive's methods, in which its family is like it."""
    order = [*_FIRST, *dir(primitive)]
    for name in sorted(dir(primitive), key=order.index):
        member = getattr(primitive, name)
        if name[0] == "_" or not callable(member):
            continue
        if not isinstance(member, Pointwise):
            yield _method(member, f"{shown_as}.{name}")
        if isinstance(member, Pointwise | PointwiseVjp | LossVjp | WithMethods):
            yield from _methods(member, f"{shown_as}.{name}")


def _method(function: Callable[..., Any], path: str) -> str:
    doc = SphinxDocString(inspect.getdoc(function) or "")
    doc["Signature"], doc["Notes"] = "", []  # the one below; what holds of this primitive alone
    if not doc["Summary"]:
        raise ValueError(f"{path} has no docstring")
    body = f"````{{eval-rst}}\n{doc}\n````"
    return _entry(path, _signature(function), body, options=":no-index:\n")


def _code(formulas: Iterable[str]) -> str:
    return ", ".join(f"`{formula}`" for formula in formulas)


# --- elementwise ----------------------------------------------------------------------------------


def _operations(nin: int) -> Iterator[str]:
    for name, row in OPS.items():
        if row.nin == nin:
            function = getattr(reference, name)
            summary = f"{row.summary}, element by element: `{row.formula}`."
            yield _primitive(name, _signature(function), summary, _of_op(row), _points(row))


def _of_op(row: OpRow) -> Fields:
    value, slope, second = (f"{bound:g} ULP" if bound else "exact" for bound in row.max_ulp)
    several = row.nin > 1
    operands = f", by {', '.join(row.operands)}" if several else ""
    yield f"derivative{operands}", _code(row.derivative_formula)
    pairs = ", by w twice, w and x, x twice" if several else ""
    yield f"second derivative{pairs}", _code(row.second_derivative_formula)
    yield "domain", row.domain_text
    yield "no derivative where", _code(f"{kink} = 0" for kink in row.kinks)
    yield "largest error", f"value {value}, derivative {slope}, second derivative {second}"
    for result in ("value", "derivative", "second derivative"):
        terms = _code(term for of, term in row.terms if of == result)
        yield f"{result}'s error near its roots", terms and f"in ULP of {terms}"
    masked = "where the derivative is 0, `vjp` gives +0, even if `g` is infinite or NaN"
    yield "masked", masked * row.masked
    yield "source", row.source


def _points(row: OpRow) -> str:
    if not row.special:
        return ""
    header = "| at | value | derivative | second derivative |\n| --- | --- | --- | --- |\n"
    return header + "".join(f"| {' | '.join(_point(point))} |\n" for point in row.special) + "\n"


def _point(point: SpecialPoint) -> tuple[str, ...]:
    cells = point.at, (point.value,), point.derivative, point.second
    return tuple(", ".join(f"{number:g}" for number in numbers) for numbers in cells)


# --- reductions and maps of rows ------------------------------------------------------------------


def _reductions(*, maps: bool) -> Iterator[str]:
    for name, row in REDUCTIONS.items():
        if row.is_map == maps:
            function = getattr(reference, name)
            yield _primitive(name, _signature(function), f"{row.summary}.", _of_reduction(row))


def _of_reduction(row: ReductionRow) -> Fields:
    about = row.parameter
    yield "formula", f"`{row.formula}`"
    yield "derivative", _code(row.derivative_formula)
    yield "conventions", row.conventions
    if not row.is_map:
        yield "of no elements", "an error" if row.empty is None else f"{row.empty:g}"
    if about is not None:
        default = "" if about.default is None else f"; the default is {about.default:g}"
        yield "parameter", f"`{about.name}`. {about.role}. It needs to be {about.text}{default}."
    yield "source", row.source


# --- selections -----------------------------------------------------------------------------------


def _selections() -> Iterator[str]:
    for name, row in SELECTIONS.items():
        selection = getattr(reference, name)
        summary = f"{row.summary}: `{row.formula}`."
        yield _primitive(name, _signature(selection), summary, _of_selection(row))
        yield from _methods(selection, name)


def _of_selection(row: SelectionRow) -> Fields:
    for operand, text in row.operands.items():
        yield f"`{operand}`", text
    yield "derivative", _code(row.derivative_formula)
    yield "conventions", row.conventions
    yield "source", row.source


# --- products -------------------------------------------------------------------------------------


def _products() -> Iterator[str]:
    for name, row in PRODUCTS.items():
        product = getattr(reference, name)
        yield _primitive(name, _signature(product), f"{row.summary}.", _of_product(row))
        yield from _methods(product, name)


def _of_product(row: ProductRow) -> Fields:
    yield "formula", f"`{row.formula}`"
    yield "shapes", f"`{row.signature}`"
    for operand, text in {**row.operands, **row.options}.items():
        yield f"`{operand}`", text
    yield "result", row.result
    yield "source", f"`{row.source}`" if row.source[0] == "<" else row.source


# --- losses ---------------------------------------------------------------------------------------


def _losses() -> Iterator[str]:
    for row in LOSSES.values():
        yield _primitive(row.path, "", f"{row.summary}.", _of_loss(row))


def _of_loss(row: LossRow) -> Fields:
    about = row.parameter
    yield "`l(z, y)`", f"`{row.formula}`"
    yield "derivative", f"`{row.derivative_formula}`"
    yield "second derivative", f"`{row.second_derivative_formula}`"
    yield "mean of `y` at `z`", f"`{row.response_formula}`"
    yield "targets", row.targets.domain
    yield "kinks", _code(f"{kink} = 0" for kink in row.kinks)
    if about is not None:
        yield (
            "parameter",
            f"`{about.name}` needs {about.text}, and the default is {about.default:g}; "
            f"`pb.{row.path}({about.name})` is the loss with another value",
        )
    yield "source", row.source


# --- conventions ----------------------------------------------------------------------------------


def _kinks() -> Iterator[str]:
    yield "| operation | no derivative where | derivatives given there |\n| --- | --- | --- |"
    for row in OPS.values():
        if row.kinks:
            there = "; ".join(
                f"at {at}: {slope}"
                for at, _, slope, _ in (
                    _point(point) for point in row.special if _on_kink(row, point)
                )
            )
            kinks = _code(f"{kink} = 0" for kink in row.kinks)
            yield f"| `{row.name}` | {kinks} | {there or 'the formula'} |"


def _on_kink(row: OpRow, point: SpecialPoint) -> bool:
    """Return whether an expression of a kink vanishes there; of zeros the positive ones will do."""
    where = dict(zip(row.operands, point.at, strict=True))
    plain = all(math.isfinite(x) and str(x) != "-0.0" for x in point.at)
    return plain and any(eval(kink, {"abs": abs}, where) == 0 for kink in row.kinks)


def _edges() -> Iterator[str]:
    yield "| reduction | conventions | of no elements |\n| --- | --- | --- |"
    for row in REDUCTIONS.values():
        empty = "" if row.is_map else "an error" if row.empty is None else f"{row.empty:g}"
        yield f"| `{row.name}` | {row.conventions} | {empty} |"


def _loss_kinks() -> Iterator[str]:
    yield "| loss | kinks | targets |\n| --- | --- | --- |"
    for row in LOSSES.values():
        kinks = _code(f"{kink} = 0" for kink in row.kinks) or "none"
        yield f"| `{row.path}` | {kinks} | {row.targets.domain} |"


# --- the pieces -----------------------------------------------------------------------------------

PIECES: Final[Mapping[str, Callable[[], Iterable[str]]]] = MappingProxyType(
    {
        "unary methods": lambda: _methods(reference.tanh, "f"),
        "unary": lambda: _operations(1),
        "binary methods": lambda: _methods(reference.multiply, "f"),
        "binary": lambda: _operations(2),
        "reduction methods": lambda: _methods(reference.sum, "f"),
        "reductions": lambda: _reductions(maps=False),
        "map methods": lambda: _methods(reference.softmax, "f"),
        "maps": lambda: _reductions(maps=True),
        "selections": _selections,
        "products": _products,
        "loss methods": lambda: _methods(reference.logistic, "L"),
        "losses": _losses,
        "kinks": _kinks,
        "edges": _edges,
        "loss kinks": _loss_kinks,
    }
)

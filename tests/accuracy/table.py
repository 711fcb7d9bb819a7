"""Write the table of operations as the accuracy sweep reads it.

One line per fact, words separated by blanks, floats in hexadecimal::

    op tanh 1 2                         a row: name, numbers of operands and of outputs
    bound 1.5 2.5                       ULP of each output
    domain 0 -inf inf open              an interval of an operand's domain
    special 0x0p+0 0x0p+0 0x1p+0        point, outputs
    formula 1 x0 sech #2 pow            of an output, by number; postfix
    scale 0 x0 exp                      errors of an output also count in ULP of this
    kink x0                             vanishes where there is no derivative

A row's value and derivatives are one entry, its second derivatives another: ``second tanh 1 1``.

Operands are ``x0`` and ``x1``, literals exact rationals ``#44715/1000000``.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import sys
import types
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# --- formulas -------------------------------------------------------------------------------------

CONSTANTS = {"pi", "e", "inf", "nan"}

# mpmath's name: what the sweep calls it, number of arguments.
FUNCTIONS = {
    "exp": ("exp", 1),
    "expm1": ("expm1", 1),
    "log": ("log", 1),
    "ln": ("log", 1),
    "log10": ("log10", 1),
    "log1p": ("log1p", 1),
    "sqrt": ("sqrt", 1),
    "cbrt": ("cbrt", 1),
    "sin": ("sin", 1),
    "cos": ("cos", 1),
    "tan": ("tan", 1),
    "sec": ("sec", 1),
    "sinpi": ("sinpi", 1),
    "cospi": ("cospi", 1),
    "asin": ("asin", 1),
    "acos": ("acos", 1),
    "atan": ("atan", 1),
    "atan2": ("atan2", 2),
    "sinh": ("sinh", 1),
    "cosh": ("cosh", 1),
    "tanh": ("tanh", 1),
    "sech": ("sech", 1),
    "asinh": ("asinh", 1),
    "acosh": ("acosh", 1),
    "atanh": ("atanh", 1),
    "erf": ("erf", 1),
    "erfc": ("erfc", 1),
    "erfinv": ("erfinv", 1),
    "erfcinv": ("erfcinv", 1),
    "ncdf": ("ncdf", 1),
    "npdf": ("npdf", 1),
    "hypot": ("hypot", 2),
    "power": ("pow", 2),
    "abs": ("abs", 1),
    "fabs": ("abs", 1),
    "sign": ("sign", 1),
    "psi": ("psi", 2),
}

OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.Pow: "pow",
    ast.USub: "neg",
    ast.Not: "not",
    ast.And: "and",
    ast.Or: "or",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Eq: "eq",
    ast.NotEq: "ne",
}


class Postfix(ast.NodeVisitor):
    """Compile an expression in mpmath's vocabulary to the words of its postfix form."""

    def __init__(self, expression: str, operands: tuple[str, ...]) -> None:
        self.expression = expression
        self.operands = operands

    def words(self) -> list[str]:
        """Return the whole expression's."""
        return self.visit(ast.parse(self.expression, mode="eval").body)

    def generic_visit(self, node: ast.AST) -> list[str]:
        known = ", ".join([*FUNCTIONS, *sorted(CONSTANTS)])
        raise ValueError(
            f"{ast.unparse(node)!r} of {self.expression!r} is not in the sweep's vocabulary: "
            f"{known}, mpf, arithmetic, comparisons, conditional expressions"
        )

    def visit_Constant(self, node: ast.Constant) -> list[str]:
        text = ast.get_source_segment(self.expression, node) or ""
        if not isinstance(node.value, int | float) or Fraction(text) != Fraction(node.value):
            raise ValueError(f"{text} is not exact, write mpf('{text}'): {self.expression}")
        return [f"#{Fraction(node.value)}"]

    def visit_Name(self, node: ast.Name) -> list[str]:
        if node.id in self.operands:
            return [f"x{self.operands.index(node.id)}"]
        return [node.id] if node.id in CONSTANTS else self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> list[str]:
        if isinstance(node.op, ast.UAdd):
            return self.visit(node.operand)
        return [*self.visit(node.operand), self.operator(node.op)]

    def visit_BinOp(self, node: ast.BinOp) -> list[str]:
        return [*self.visit(node.left), *self.visit(node.right), self.operator(node.op)]

    def visit_BoolOp(self, node: ast.BoolOp) -> list[str]:
        return chain(map(self.visit, node.values), self.operator(node.op))

    def visit_Compare(self, node: ast.Compare) -> list[str]:
        operands = [node.left, *node.comparators]
        pairs = zip(operands, node.comparators, node.ops, strict=False)
        compared = ([*self.visit(p), *self.visit(q), self.operator(op)] for p, q, op in pairs)
        return chain(compared, "and")

    def visit_IfExp(self, node: ast.IfExp) -> list[str]:
        parts = map(self.visit, (node.test, node.body, node.orelse))
        return [*itertools.chain.from_iterable(parts), "select"]

    def visit_Call(self, node: ast.Call) -> list[str]:
        match node:
            case ast.Call(func=ast.Name(id="mpf"), args=[ast.Constant(value=number)]):
                return [f"#{Fraction(number)}"]
            case ast.Call(
                func=ast.Name(id="re"),
                args=[ast.Call(func=ast.Name(id="loggamma"), args=[x])],
            ):
                return [*self.visit(x), "lgamma"]
            case ast.Call(func=ast.Name(id="min" | "max" as name), args=args):
                return chain(map(self.visit, args), name)
            case ast.Call(func=ast.Name(id="log"), args=[x, base]):
                return [*self.visit(x), "log", *self.visit(base), "log", "div"]
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if (
                name in FUNCTIONS and len(args) == FUNCTIONS[name][1]
            ):
                arguments = map(self.visit, args)
                return [*itertools.chain.from_iterable(arguments), FUNCTIONS[name][0]]
        return self.generic_visit(node)

    def operator(self, op: ast.AST) -> str:
        """Return the word for an operator."""
        if type(op) not in OPERATORS:
            self.generic_visit(op)
        return OPERATORS[type(op)]


def chain(parts: Iterable[list[str]], word: str) -> list[str]:
    """Join operands by an operator of two, from left to right."""
    first, *rest = parts
    return [*first, *itertools.chain.from_iterable([*part, word] for part in rest)]


# --- rows -----------------------------------------------------------------------------------------


def lines(row: Any) -> Iterator[str]:
    """Yield what the sweep has to know of an operation."""
    value, derivative, second = row.max_ulp
    first = (row.formula, *row.derivative_formula)
    yield f"op {row.name} {row.nin} {len(first)}"
    yield " ".join(["bound", str(value), *[str(derivative)] * row.nin])
    if row.ulp_of_operands:
        yield "ulp_of_operands"
    yield from entry(row, first, [(point.value, *point.derivative) for point in row.special])
    yield from scales(row, row.largest_term[: len(first)])
    formulas = row.second_derivative_formula
    yield f"second {row.name} {row.nin} {len(formulas)}"
    yield " ".join(["bound", *[str(second)] * len(formulas)])
    yield from entry(row, formulas, [point.second for point in row.special])
    yield from scales(row, row.largest_term[len(first) :])


def scales(row: Any, terms: tuple[str, ...]) -> Iterator[str]:
    """Yield what the errors of outputs also count in ULP of."""
    for which, term in enumerate(terms):
        if term:
            yield " ".join(["scale", str(which), *Postfix(term, row.operands).words()])


def entry(row: Any, formulas: tuple[str, ...], images: list[Any]) -> Iterator[str]:
    """Yield what both entries of a row have."""
    for operand, domain in enumerate(row.domain):
        for lower, upper, closed in domain.intervals:
            kind = "closed" if closed else "open"
            yield f"domain {operand} {float(lower).hex()} {float(upper).hex()} {kind}"
    for point, image in zip(row.special, images, strict=True):
        numbers = (*point.at, *image)
        yield " ".join(["special", *(float(number).hex() for number in numbers)])
    for which, formula in enumerate(formulas):
        yield " ".join(["formula", str(which), *Postfix(formula, row.operands).words()])
    for kink in row.kinks:
        yield " ".join(["kink", *Postfix(kink, row.operands).words()])


def load(package: Path) -> Any:
    """Import the table without the package around it, which wants to be installed."""
    shell = types.ModuleType("pullback")
    shell.__path__ = [str(package)]
    sys.modules["pullback"] = shell
    return importlib.import_module("pullback.tables.elementwise").OPS


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description="Write the table as the accuracy sweep reads it.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--package", type=Path, default=ROOT / "python" / "pullback")
    arguments = parser.parse_args()
    text = "\n".join(line for row in load(arguments.package).values() for line in lines(row))
    arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Write the table of operations as the accuracy sweep reads it.

One line per fact, words separated by blanks, floats in hexadecimal::

    op tanh 1                           a row: name, number of operands
    bound 1.5 2.5                       ULP of the value, of each derivative
    domain 0 -inf inf open              an interval of an operand's domain
    special 0x0p+0 0x0p+0 0x1p+0        point, value, derivatives
    formula 1 x0 sech #2 pow            0: the value, 1, 2: derivatives; postfix
    kink x0                             vanishes where there is no derivative

Operands are ``x0`` and ``x1``, literals exact rationals ``#44715/1000000``.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
import types
from collections.abc import Iterator
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
    "ncdf": ("ncdf", 1),
    "npdf": ("npdf", 1),
    "hypot": ("hypot", 2),
    "power": ("pow", 2),
    "abs": ("abs", 1),
    "fabs": ("abs", 1),
    "sign": ("sign", 1),
    "min": ("min", 2),
    "max": ("max", 2),
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


def postfix(expression: str, operands: tuple[str, ...]) -> list[str]:
    """Compile an expression in mpmath's vocabulary; its literals mean what they say in decimal."""

    def visit(node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Constant(value=int() | float() as number):
                if Fraction(ast.get_source_segment(expression, node) or "") != Fraction(number):
                    raise ValueError(f"{number} is not exact, write mpf('{number}'): {expression}")
                yield f"#{Fraction(number)}"
            case ast.Call(func=ast.Name(id="mpf"), args=[ast.Constant(value=number)], keywords=[]):
                yield f"#{Fraction(number)}"
            case ast.Name(id=name) if name in operands:
                yield f"x{operands.index(name)}"
            case ast.Name(id=name) if name in CONSTANTS:
                yield name
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                yield from visit(operand)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                yield from visit(operand)
                yield OPERATORS[type(op)]
            case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATORS:
                yield from visit(left)
                yield from visit(right)
                yield OPERATORS[type(op)]
            case ast.BoolOp(op=op, values=values):
                yield from chain((visit(value) for value in values), OPERATORS[type(op)])
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                pairs = zip([left, *comparators], ops, comparators, strict=False)
                yield from chain((compare(*pair) for pair in pairs), "and")
            case ast.IfExp(test=test, body=body, orelse=orelse):
                for part in (test, body, orelse):
                    yield from visit(part)
                yield "select"
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
                word, arity = FUNCTIONS[name]
                if name in {"min", "max"}:
                    yield from chain((visit(argument) for argument in args), word)
                    return
                if len(args) != arity:
                    if name != "log" or len(args) != 2:
                        raise ValueError(f"{name} takes {arity} arguments: {expression}")
                    yield from (*visit(args[0]), "log", *visit(args[1]), "log", "div")
                    return
                for argument in args:
                    yield from visit(argument)
                yield word
            case _:
                known = ", ".join([*FUNCTIONS, *sorted(CONSTANTS)])
                raise ValueError(
                    f"{ast.unparse(node)!r} of {expression!r} is not in the sweep's vocabulary: "
                    f"{known}, arithmetic, comparisons, conditional expressions"
                )

    def compare(left: ast.AST, op: ast.AST, right: ast.AST) -> Iterator[str]:
        yield from visit(left)
        yield from visit(right)
        yield OPERATORS[type(op)]

    def chain(parts: Iterator[Iterator[str]], word: str) -> Iterator[str]:
        for i, part in enumerate(parts):
            yield from part
            if i > 0:
                yield word

    return list(visit(ast.parse(expression, mode="eval").body))


# --- rows -----------------------------------------------------------------------------------------


def lines(row: Any) -> Iterator[str]:
    """Yield what the sweep has to know of an operation."""
    yield f"op {row.name} {row.nin}"
    yield f"bound {row.max_ulp[0]} {row.max_ulp[1]}"
    if getattr(row, "ulp_of_operands", False):
        yield "ulp_of_operands"
    for operand, domain in enumerate(row.domain):
        for lower, upper, closed in domain.intervals:
            kind = "closed" if closed else "open"
            yield f"domain {operand} {float(lower).hex()} {float(upper).hex()} {kind}"
    for point in row.special:
        numbers = (*point.at, point.value, *point.derivative)
        yield " ".join(["special", *(float(number).hex() for number in numbers)])
    for which, formula in enumerate((row.formula, *row.derivative_formula)):
        yield " ".join(["formula", str(which), *postfix(formula, row.operands)])
    for kink in row.kinks:
        yield " ".join(["kink", *postfix(kink, row.operands)])


def load(package: Path) -> Any:
    """Import the table without the package around it, which wants to be installed."""
    shell = types.ModuleType("pullback")
    shell.__path__ = [str(package)]
    sys.modules["pullback"] = shell
    return importlib.import_module("pullback.ops").OPS


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

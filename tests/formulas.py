"""The formulas that the tables state, as functions over a vocabulary: of numbers, or of arrays."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any


class _Rewriter(ast.NodeTransformer):
    """Takes functions from a vocabulary `m`, choices too, and x[i] for all of x."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func) != "abs":
            node.func = self.named(ast.unparse(node.func))
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        branches = [whole(self.visit(branch)) for branch in (node.body, node.orelse)]
        return ast.Call(self.named("pick"), [self.visit(node.test), *branches], [])

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return node.value

    def named(self, function: str) -> ast.expr:
        return ast.parse(f"m.{function}", mode="eval").body


def whole(node: Any) -> Any:
    """Return an expression that has the shape of z, where there is one, even if it is a number."""
    names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    zero = ast.parse("0 * z", mode="eval").body
    return node if names & {"x", "z"} else ast.BinOp(node, ast.Add(), zero)


def python(text: str) -> str:
    """Return a formula with Python's sign of equality."""
    return re.sub(r"(?<![=<>!])=(?!=)", "==", text)


def written(text: str, *names: str) -> Callable[..., Any]:
    """Return a formula as a function of (m, *names), of which z is the one that gives the shape."""
    tree = _Rewriter().visit(ast.parse(python(text), mode="eval").body)
    source = ast.unparse(ast.fix_missing_locations(whole(tree)))
    return eval(f"lambda m, {', '.join(names)}: {source}")  # type: ignore[no-any-return]


def terms(text: str) -> str | None:
    """Return the sizes of the terms that a sum or a difference has, as text."""
    top = ast.parse(text, mode="eval").body
    if not isinstance(top, ast.BinOp) or not isinstance(top.op, ast.Add | ast.Sub):
        return None
    return f"abs({ast.unparse(top.left)}) + abs({ast.unparse(top.right)})"

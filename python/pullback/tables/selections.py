"""The table of selections: operations whose results consist of elements of their operands.

One row says which operands a selection has, which of them has no derivative, and where the result
comes from. The primitives, the tests, the stubs and the catalogue read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from pullback.oracle import selections

__all__ = ["SELECTIONS", "SelectionRow"]


@dataclass(frozen=True, eq=False, kw_only=True)
class SelectionRow:
    """Everything there is to say about one selection."""

    name: str
    summary: str
    formula: str
    operands: Mapping[str, str]  # name -> what it has to be
    constant: str | None = None  # the operand that has no derivative
    optional: tuple[str, ...] = ()  # operands that may be None
    derivative_formula: tuple[str, ...]  # one per operand that has a derivative
    conventions: str
    source: str
    example: str  # a call, behind the selection's name
    # Element by element, by which masks: see `pullback.oracle.selections`. None: along an axis.
    choice: Callable[..., Any] | None = None

    @property
    def is_elementwise(self) -> bool:
        """Whether the operands broadcast; otherwise it takes an axis."""
        return self.choice is not None

    @property
    def moved(self) -> tuple[int, ...]:
        """The positions of the operands that have derivatives."""
        return tuple(k for k, name in enumerate(self.operands) if name != self.constant)


# fmt: off
_ROWS: Final = (
    SelectionRow(name="where", summary="Choice between two operands, element by element",
        formula="w if c else x",
        operands={
            "c": "array_like of bool, or of numbers, of which 0 is false",
            "w": "array_like",
            "x": "array_like",
        },
        constant="c",
        derivative_formula=("1 if c else 0", "0 if c else 1"),
        conventions="the operand that is not chosen contributes nothing, and its cotangent is +0, "
                    "even for infinities and NaN; second derivatives are 0",
        source="a selection is linear in what it selects from",
        example=".vjp([True, False], [1.0, 2.0], 0.0, [3.0, 4.0])",
        choice=selections.where),

    SelectionRow(name="clip", summary="Limitation to an interval, element by element",
        formula="min(max(x, lo), hi)",
        operands={
            "x": "array_like",
            "lo": "array_like, or None for no lower bound",
            "hi": "array_like, or None for no upper bound",
        },
        optional=("lo", "hi"),
        derivative_formula=(
            "1 if lo < x < hi else 0", "1 if x <= lo < hi else 0", "1 if max(x, lo) >= hi else 0",
        ),
        conventions="x at a bound gives the bound, with derivative 0 by x and 1 by the bound; "
                    "where lo >= hi, the result is hi; NaN in an operand gives NaN, and "
                    "derivatives of NaN; second derivatives are 0; cotangents are +0 where the "
                    "derivative is 0, even for infinities and NaN",
        source="a selection is linear in what it selects from",
        example=".vjp([-1.0, 0.5, 2.0], 0.0, 1.0, [3.0, 4.0, 5.0])",
        choice=selections.clip),

    SelectionRow(name="take", summary="Elements at given places along an axis",
        formula="x[..., indices, ...]",
        operands={
            "x": "array_like",
            "indices": "array_like of integers, of any shape; negative ones count from the end",
        },
        constant="indices",
        derivative_formula=("1 if j == indices[i] else 0",),
        conventions="`axis=None` takes from the elements in row-major order; cotangents of an "
                    "element that is taken several times are added in float64 in the order of the "
                    "indices; that of an element that is not taken is +0",
        source="a selection is linear in what it selects from",
        example=".vjp([1.0, 2.0, 3.0], [2, 0, 2], [1.0, 10.0, 100.0])"),
)
# fmt: on

SELECTIONS: Final[Mapping[str, SelectionRow]] = MappingProxyType({row.name: row for row in _ROWS})

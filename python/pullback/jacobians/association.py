"""In which order a chain of structured matrices is multiplied with the fewest operations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from pullback.contraction import numpy_product
from pullback.jacobians.arguments import Array
from pullback.jacobians.base import Jacobian

__all__ = ["Plan", "evaluate", "plan"]


class Plan(NamedTuple):
    """How to multiply a chain: as two, at which operand the second one begins, and how these."""

    flops: int
    split: int = 0
    parts: tuple[Plan, ...] = ()


def plan(factors: Sequence[Jacobian], k: int | None = None) -> Plan:
    """Return the cheapest way to multiply factors, and k columns on their right, into an array.

    Parameters
    ----------
    factors : sequence of Jacobian
        Each applied to the next one's result.
    k : int, optional
        Number of columns; without it there is nothing on the right.

    Returns
    -------
    Plan
        By dynamic programming over all parenthesisations, of which that from the right wins ties.
        A factor costs its `Jacobian.flops` for as many columns, or rows, as it meets; what has
        been multiplied out is dense. An array between two factors is made only where that saves
        operations, so that its size stays below theirs.
    """
    count = len(factors)
    extents = [factor.shape[0] for factor in factors] + [factors[-1].shape[1]]
    if k is not None:
        extents.append(k)

    @cache
    def cost(i: int, from_right: bool, width: int) -> int:
        return (factors[i] if not from_right else factors[i].T).flops(width)

    def product(i: int, split: int, j: int) -> int:
        """Return the cost of (i, ..., split - 1) times (split, ..., j - 1), both evaluated."""
        rows, inner, columns = extents[i], extents[split], extents[j]
        costs = []
        if split - i == 1:  # a factor, which the columns of the rest meet
            costs.append(cost(i, False, columns))
        if j - split == 1 and split < count:
            costs.append(cost(split, True, rows))
        return min(costs) if costs else 2 * rows * inner * columns

    operands = len(extents) - 1
    best = {(i, i + 1): Plan(0) for i in range(operands)}
    for length in range(2, operands + 1):
        for i in range(operands - length + 1):
            j = i + length
            flops, split = min(
                (best[i, s].flops + best[s, j].flops + product(i, s, j), s) for s in range(i + 1, j)
            )
            best[i, j] = Plan(flops, split, (best[i, split], best[split, j]))
    return best[0, operands]


def evaluate(plan: Plan, factors: Sequence[Jacobian], columns: Array | None = None) -> Array:
    """Return the product that a plan is for, shape (rows, columns)."""

    def value(plan: Plan, i: int) -> Array:
        """Return the product of operands from `i` on."""
        if not plan.parts:
            if i == len(factors):
                assert columns is not None
                return columns
            return factors[i]._dense()
        split = plan.split
        left, right = plan.parts
        structured_left = not left.parts
        structured_right = not right.parts and split < len(factors)
        if structured_left and structured_right:
            # One of them becomes an array, whichever way is cheaper.
            one, other = factors[i], factors[split]
            structured_left = one.flops(other.shape[1]) <= other.T.flops(one.shape[0])
        if structured_left:
            return factors[i]._times(value(right, split).T).T
        if structured_right:
            return factors[split].T._times(value(left, i))
        return numpy_product(value(left, i), value(right, split), None)

    return value(plan, 0)

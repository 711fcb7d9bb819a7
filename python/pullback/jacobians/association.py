"""The order in which to multiply a chain of structured matrices with few operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from pullback.jacobians.arguments import Array
from pullback.jacobians.arguments import product as multiplied
from pullback.jacobians.base import Jacobian
from pullback.jacobians.recursion import Steps

__all__ = ["Plan", "evaluate", "plan"]

# Up to so many operands every parenthesisation is considered, which takes their cube.
_EXACT: Final = 32
# Of a longer chain, products of so many neighbours.
_WINDOW: Final = 4


class Plan(NamedTuple):
    """How to multiply a chain: where to split it in two, and the plans of both parts."""

    flops: int
    split: int = 0
    parts: tuple[Plan, ...] = ()


def plan(factors: Sequence[Jacobian], k: int | None, known: dict[Any, int]) -> Steps[Plan]:
    """Return a cheap way to multiply factors, and k columns on their right, into an array.

    Parameters
    ----------
    factors : sequence of Jacobian
        Each applied to the next one's result.
    k : int or None
        Number of columns; None if there is nothing on the right.
    known : dict
        The costs of lazy factors; new ones are filled in.

    Returns
    -------
    Plan
        The cheapest order, found by dynamic programming: of all parenthesisations of up to 32
        operands, and of those that `_spans` describes for longer chains, in linear time. At a tie,
        multiplication from the right wins. A factor costs its `Jacobian.flops` for the number of
        columns, or rows, that it is applied to; intermediate products are dense. Two factors are
        multiplied into an array only if that saves operations, so its size stays below theirs.
    """
    count = len(factors)
    extents = [factor.shape[0] for factor in factors] + [factors[-1].shape[1]]
    if k is not None:
        extents.append(k)
    costs: dict[tuple[int, bool, int], int] = {}
    best = {(i, i + 1): Plan(0) for i in range(len(extents) - 1)}
    for i, j, splits in _spans(extents):
        cheapest: tuple[int, int] | None = None
        for split in splits:
            # (i, ..., split - 1) times (split, ..., j - 1), both evaluated.
            own = []
            if split - i == 1:  # a factor, which the columns of the rest meet
                key = i, False, extents[j]
                if key not in costs:
                    costs[key] = yield factors[i]._flops_steps(extents[j], known)
                own.append(costs[key])
            if j - split == 1 and split < count:
                key = split, True, extents[i]
                if key not in costs:
                    costs[key] = yield factors[split].T._flops_steps(extents[i], known)
                own.append(costs[key])
            product = min(own) if own else 2 * extents[i] * extents[split] * extents[j]
            flops = best[i, split].flops + best[split, j].flops + product
            if cheapest is None or flops < cheapest[0]:
                cheapest = flops, split
        assert cheapest is not None
        split = cheapest[1]
        best[i, j] = Plan(*cheapest, (best[i, split], best[split, j]))
    return best[0, len(extents) - 1]


def _spans(extents: Sequence[int]) -> Iterator[tuple[int, int, Iterable[int]]]:
    """Yield ranges of operands as begin, end and possible splits, each after its parts.

    A short chain yields all ranges. A long chain is multiplied outwards from its narrowest place,
    so that every factor is applied to the fewest rows or columns. Up to `_WINDOW` neighbours may be
    multiplied with each other first.
    """
    operands = len(extents) - 1
    longest = operands if operands <= _EXACT else _WINDOW
    for length in range(2, longest + 1):
        for i in range(operands - length + 1):
            yield i, i + length, range(i + 1, i + length)
    if longest == operands:
        return
    # An end needs no product of both sides; of two, the right one.
    narrowest = min(
        range(operands, -1, -1), key=lambda place: (extents[place], 0 < place < operands)
    )
    for i in range(narrowest - longest - 1, -1, -1):
        yield i, narrowest, range(i + 1, i + longest + 1)
    for j in range(narrowest + longest + 1, operands + 1):
        yield narrowest, j, range(j - longest, j)
    if 0 < narrowest < operands:
        yield 0, operands, (narrowest,)


def evaluate(
    plan: Plan, factors: Sequence[Jacobian], columns: Array | None, known: dict[Any, int]
) -> Steps[Array]:
    """Return the product that a plan is for, shape (rows, columns)."""

    def value(plan: Plan, i: int) -> Steps[Array]:
        """Return the product of a plan's operands, which begin at `i`."""
        if not plan.parts and i == len(factors):
            assert columns is not None
            return columns
        product: Array
        if not plan.parts:
            product = yield factors[i]._dense_steps(known)
            return product
        split = plan.split
        left, right = plan.parts
        structured_left = not left.parts
        structured_right = not right.parts and split < len(factors)
        if structured_left and structured_right:
            # One of them becomes an array, whichever way is cheaper.
            one, other = factors[i], factors[split]
            from_right = yield one._flops_steps(other.shape[1], known)
            from_left = yield other.T._flops_steps(one.shape[0], known)
            structured_left = from_right <= from_left
        if structured_left:
            below = yield value(right, split)
            product = yield factors[i]._times_steps(below.T, known)
            return product.T
        above = yield value(left, i)
        if structured_right:
            product = yield factors[split].T._times_steps(above, known)
            return product
        below = yield value(right, split)
        return multiplied(above, below)

    return value(plan, 0)

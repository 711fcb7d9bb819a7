"""Rules that simplify sums and products of structured Jacobians.

One table for products and one for sums give a rule for a pair of types. The first entry that fits
both types is used. A rule returns None if there is no structure to keep. Then, or if there is no
rule, the pair stays two parts of a lazy `Product` or `Sum`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np

from pullback.jacobians.arguments import Array, Scaling, add, multiply
from pullback.jacobians.arguments import product as multiplied
from pullback.jacobians.base import Jacobian
from pullback.jacobians.blocks import BlockDiagonal, Blocks
from pullback.jacobians.dense import Dense, Outer
from pullback.jacobians.diagonal import Diagonal, Identity, Zero
from pullback.jacobians.kronecker import Kronecker, extents
from pullback.jacobians.lazy import Product, Sum, check_product, check_sum
from pullback.jacobians.recursion import Steps, run
from pullback.jacobians.reindexing import Broadcast, Permutation, Reshape, SumTo
from pullback.jacobians.terms import Terms

__all__ = ["PRODUCTS", "SUMS", "Rules", "product", "scaled", "scaling", "total"]

Rule: TypeAlias = Callable[[Any, Any], Jacobian | None]

# How much larger than its factors a product may be that is formed at once. There is a bound because
# the product of a tall and a wide matrix, of low rank, would be a large dense matrix.
_GROWTH: Final = 2

# Terms are added one by one to those on their left. Where there are more than this on the right,
# and fewer on the left, these are added to those: in another order where several are alike.
_SHORT: Final = 32


class Rules:
    """A table of pairs of types and their rules, in the order in which they are tried.

    Parameters
    ----------
    table : mapping of (type, type) to callable
        A rule takes two Jacobians whose shapes fit, and returns one, or None.
    """

    def __init__(self, table: Mapping[tuple[type, type], Rule]) -> None:
        self.table = MappingProxyType({**table})
        self.found: dict[tuple[type, type], Rule | None] = {}

    def apply(self, left: Jacobian, right: Jacobian) -> Jacobian | None:
        """Return the result of the first rule that fits two Jacobians, or None."""
        pair = type(left), type(right)
        if pair not in self.found:
            fitting = (r for p, r in self.table.items() if all(map(issubclass, pair, p)))
            self.found[pair] = next(fitting, None)
        rule = self.found[pair]
        return None if rule is None else rule(left, right)


def product(*factors: Jacobian) -> Jacobian:
    """Return the product of Jacobians, with neighbours merged where `PRODUCTS` has a rule."""
    merged: Jacobian | None = None
    if len(factors) == 2 and factors[0]._is_leaf and factors[1]._is_leaf:
        check_product(*factors)
        merged = PRODUCTS.apply(*factors)
        return Product._merged(*factors) if merged is None else merged
    for factor in factors:
        parts: tuple[Jacobian, ...] = (factor,)
        if type(factor) is Product and not factor._is_merged:
            parts = factor.factors
        for part in parts:
            merged = part if merged is None else _joined(merged, part)
    assert merged is not None
    return merged


def _joined(left: Jacobian, right: Jacobian) -> Jacobian:
    """Return the product of two merged products; rules can fit only where they meet."""
    check_product(left, right)
    before, after = _Peeled(left, -1), _Peeled(right, 0)
    joined: Jacobian | None = PRODUCTS.apply(before.outermost(), after.outermost())
    if joined is None:
        return Product._merged(left, right)
    before.pop()
    after.pop()
    while True:
        # With what stands on the left as far as that goes, then with the next on the right.
        if before and (more := PRODUCTS.apply(before.outermost(), joined)) is not None:
            before.pop()
        elif after and (more := PRODUCTS.apply(joined, after.outermost())) is not None:
            after.pop()
        else:
            break
        joined = more
    parts = [*before.rest(), joined, *after.rest()]
    return joined if len(parts) == 1 else Product._merged(*parts)


class _Peeled:
    """A Jacobian whose factors are removed at one end, the first (0) or the last (-1)."""

    def __init__(self, J: Jacobian, end: int) -> None:
        self.end = end
        self.factors = [J]  # the outermost last; some may be products

    def __bool__(self) -> bool:
        return bool(self.factors)

    def outermost(self) -> Jacobian:
        while type(J := self.factors[-1]) is Product:  # isinstance of an abstract base is slow
            self.factors.pop()
            opened = J._opened()
            self.factors += opened if self.end else reversed(opened)
        return J

    def pop(self) -> None:
        self.factors.pop()

    def rest(self) -> list[Jacobian]:
        """Return the remaining factors as a list of at most one Jacobian, with shallow nesting."""
        rest = self.factors if self.end else self.factors[::-1]
        while len(rest) > 1:
            pairs = [Product._merged(*pair) for pair in zip(rest[::2], rest[1::2], strict=False)]
            rest = pairs + rest[2 * len(pairs) :]
        return rest


def total(*terms: Jacobian) -> Jacobian:
    """Return the sum of Jacobians, with like terms merged where `SUMS` has a rule."""
    for term in terms[1:]:
        check_sum(terms[0], term)
    if len(terms) == 2 and not any(isinstance(term, Sum) for term in terms):
        like = _added(*terms)
        if like is not None:  # two alone need no table of kinds
            return like
    merged = Terms(_added, _likeness)
    for term in terms:
        own = term._merged_terms if isinstance(term, Sum) else None
        if own is not None and (not merged.count or own.count > max(merged.count, _SHORT)):
            front, merged = merged, own.copy()
            merged.prepend(front)
        else:
            for part in term.terms if isinstance(term, Sum) else (term,):
                merged.append(part)
    return next(iter(merged)) if merged.count == 1 else Sum._merged(merged, terms[0])


def _added(left: Jacobian, right: Jacobian) -> Jacobian | None:
    merged = SUMS.apply(left, right)
    return SUMS.apply(right, left) if merged is None else merged  # addition commutes


def _likeness(J: Jacobian) -> Hashable:
    """Return the key of the rules of `SUMS`: Jacobians with equal keys merge with the same ones."""
    if isinstance(J, BlockDiagonal):
        return type(J), J.blocks.shape
    if isinstance(J, Kronecker):
        identities = (factor if isinstance(factor, int) else None for factor in (J.left, J.right))
        return type(J), *identities, frozenset(J.batches())
    return type(J)


def scaled(c: Any, J: Jacobian, by: Scaling = multiply) -> Jacobian:
    """Return c J or J / c, for a NumPy scalar of J's dtype or a wider one."""
    return run(scaling(c, J, by))


def scaling(c: Any, J: Jacobian, by: Scaling) -> Steps[Jacobian]:
    """Return what `scaled` does."""
    if c == 1 and c.dtype == J.dtype:
        return J
    own: Jacobian | None = yield J._scaled_steps(c, by)
    if own is not None:
        return own
    # A kind that cannot hold a factor gets a diagonal, on the side with the fewer elements.
    factors = J.factors if isinstance(J, Product) else (J,)
    shapes = [*(factor.output_shape for factor in factors), J.input_shape]
    i = min(range(len(shapes)), key=lambda i: prod(shapes[i]))
    return product(
        *factors[:i], Diagonal._of(np.full(shapes[i], by(c.dtype.type(1), c))), *factors[i:]
    )


def _promoted(J: Jacobian, other: Jacobian) -> Any:
    """Return J in the dtype that both have together."""
    return scaled(np.result_type(J.dtype, other.dtype).type(1), J)


# --- products -------------------------------------------------------------------------------------


def _zero(left: Jacobian, right: Jacobian) -> Zero:
    return Zero(left.output_shape, right.input_shape, np.result_type(left.dtype, right.dtype))


def _diagonals_multiplied(left: Diagonal, right: Diagonal) -> Diagonal:
    return Diagonal._of(multiply(left._diagonal, right._diagonal))


def _outer_first(left: Outer, right: Jacobian) -> Outer:
    # u v^T J = u (J^T v)^T
    return Outer(left.u, _applied(right.T, left.v), copy=False)


def _outer_last(left: Jacobian, right: Outer) -> Outer:
    return Outer(_applied(left, right.u), right.v, copy=False)


def _applied(J: Jacobian, vector: Array) -> Array:
    dtype = np.result_type(J.dtype, vector)
    return J._applied(vector.reshape(1, -1).astype(dtype)).reshape(J.output_shape)


def _rows_scaled(left: Diagonal, right: Blocks) -> Blocks:
    rows = left.diagonal().reshape(*right._blocks.shape[:-1], 1)
    return right._of(multiply(rows, right._blocks), right._input_shape, right._output_shape)


def _columns_scaled(left: Blocks, right: Diagonal) -> Blocks:
    *batch, _, q = left._blocks.shape
    columns = right._diagonal.reshape(*batch, 1, q)
    return left._of(multiply(left._blocks, columns), left._input_shape, left._output_shape)


def _blocks_multiplied(left: BlockDiagonal, right: BlockDiagonal) -> BlockDiagonal | None:
    (*batch, p, q), (*other, r, s) = left.blocks.shape, right.blocks.shape
    if batch != other or q != r or p * s > _GROWTH * (p * q + r * s):
        return None
    blocks = multiplied(left.blocks, right.blocks)
    return BlockDiagonal._of(blocks, right.input_shape, left.output_shape)


def _kronecker(left: Kronecker, right: Kronecker) -> Kronecker | None:
    batches = left.batches() | right.batches()
    pairs = [(left.left, right.left), (left.right, right.right)]
    if len(batches) > 1 or not all(_fit(*pair) for pair in pairs):
        return None
    (batch,) = batches
    return Kronecker(
        *(_multiplied(*pair) for pair in pairs),
        input_batch=batch,
        output_batch=batch,
        input_shape=right.input_shape,
        output_shape=left.output_shape,
        copy=False,
    )


def _fit(left: Array | int, right: Array | int) -> bool:
    """Tell whether factors of Kronecker products have a product, and no large one."""
    (p, q), (r, s) = extents(left), extents(right)
    identity = isinstance(left, int) or isinstance(right, int)
    return q == r and (identity or p * s <= _GROWTH * (p * q + r * s))


def _multiplied(left: Array | int, right: Array | int) -> Array | int:
    if isinstance(left, int):
        return right
    if isinstance(right, int):
        return left
    return multiplied(left, right)


def _permuted(left: Permutation, right: Permutation) -> Jacobian:
    axes = tuple(right.axes[axis] for axis in left.axes)
    dtype = np.result_type(left.dtype, right.dtype)
    if axes == tuple(range(len(axes))):
        return Identity(right.input_shape, dtype)
    return Permutation(right.input_shape, axes, dtype)


def _reshaped(left: Reshape, right: Reshape) -> Jacobian:
    dtype = np.result_type(left.dtype, right.dtype)
    if left.output_shape == right.input_shape:
        return Identity(right.input_shape, dtype)
    return Reshape(right.input_shape, left.output_shape, dtype)


def _broadcast(left: Broadcast, right: Broadcast) -> Jacobian:
    dtype = np.result_type(left.dtype, right.dtype)
    return Broadcast(right.input_shape, left.output_shape, dtype)


def _summed(left: SumTo, right: SumTo) -> Jacobian:
    dtype = np.result_type(left.dtype, right.dtype)
    return SumTo(right.input_shape, left.output_shape, dtype)


def _result_presented(left: Reshape, right: Any) -> Any:
    return _promoted(right, left)._presented(right.input_shape, left.output_shape)


def _operand_presented(left: Any, right: Reshape) -> Any:
    return _promoted(left, right)._presented(right.input_shape, left.output_shape)


PRODUCTS: Final = Rules(
    {
        (Zero, Jacobian): _zero,
        (Jacobian, Zero): _zero,
        (Identity, Jacobian): lambda left, right: _promoted(right, left),
        (Jacobian, Identity): _promoted,
        (Outer, Jacobian): _outer_first,
        (Jacobian, Outer): _outer_last,
        (Diagonal, Diagonal): _diagonals_multiplied,
        (Diagonal, Blocks): _rows_scaled,
        (Blocks, Diagonal): _columns_scaled,
        (BlockDiagonal, BlockDiagonal): _blocks_multiplied,
        (Kronecker, Kronecker): _kronecker,
        (Permutation, Permutation): _permuted,
        (Reshape, Reshape): _reshaped,
        (Broadcast, Broadcast): _broadcast,
        (SumTo, SumTo): _summed,
        **{(Reshape, kind): _result_presented for kind in (Blocks, Kronecker)},
        **{(kind, Reshape): _operand_presented for kind in (Blocks, Kronecker)},
    }
)


# --- sums: both orders of a pair are tried --------------------------------------------------------


def _diagonal_in_blocks(left: Blocks, right: Jacobian) -> Blocks | None:
    *batch, p, q = left._blocks.shape
    if p != q:
        return None
    blocks = left._blocks.astype(np.result_type(left.dtype, right.dtype))
    own = np.einsum("...ii->...i", blocks)
    add(own, right.diagonal().reshape(*batch, p), out=own)
    return left._of(blocks, left.input_shape, left.output_shape)


def _blocks_added(left: Any, right: Any) -> Any:
    if left._blocks.shape != right._blocks.shape:
        return None
    return left._of(add(left._blocks, right._blocks), left.input_shape, left.output_shape)


def _outer_added(left: Dense, right: Outer) -> Dense:
    return Dense._of(add(left.matrix, right._dense()), left.input_shape, left.output_shape)


def _kronecker_added(left: Kronecker, right: Kronecker) -> Kronecker | None:
    """Return I (x) B + I (x) C = I (x) (B + C), and the like with the identity on the right."""
    if len(left.batches() | right.batches()) > 1:
        return None
    pairs = [(left.left, right.left), (left.right, right.right)]
    same = [isinstance(a, int) and isinstance(b, int) and a == b for a, b in pairs]
    both = [not isinstance(a, int) and not isinstance(b, int) for a, b in pairs]
    if same[0] and both[1]:
        return left._with(left.left, add(left.right, right.right))
    if same[1] and both[0]:
        return left._with(add(left.left, right.left), left.right)
    return None


def _diagonals_added(left: Jacobian, right: Jacobian) -> Diagonal:
    elements = add(left.diagonal(), right.diagonal())
    return Diagonal._of(elements.reshape(left.input_shape))


SUMS: Final = Rules(
    {
        (Zero, Jacobian): lambda left, right: _promoted(right, left),
        (Identity, Identity): _diagonals_added,
        (Diagonal, Identity): _diagonals_added,
        (Diagonal, Diagonal): _diagonals_added,
        (Dense, Dense): _blocks_added,
        (Dense, Outer): _outer_added,
        (BlockDiagonal, BlockDiagonal): _blocks_added,
        (Blocks, Diagonal): _diagonal_in_blocks,
        (Blocks, Identity): _diagonal_in_blocks,
        (Kronecker, Kronecker): _kronecker_added,
    }
)

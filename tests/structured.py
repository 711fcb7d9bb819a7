"""What tests of structured Jacobians judge by: the dense matrix, made without them.

Numbers are small integers, so that every sum of products is exact and equality is asked for.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from matrices import integers
from pullback import jacobians
from pullback.jacobians import Jacobian


def by_unit_vectors(J: Jacobian) -> Any:
    """Return the matrix, a column at a time, through tangents in the operand's shape."""
    rows, columns = J.shape
    dense = np.empty((rows, columns), J.dtype)
    for i in range(columns):
        unit = np.zeros(columns, J.dtype)
        unit[i] = 1
        dense[:, i] = np.reshape(J @ unit.reshape(J.input_shape), -1)
    return dense


def check(J: Any, dense: Any) -> None:
    """Fail unless J is `dense` in every way that it can be asked; all numbers are integers."""
    dtype, (rows, columns) = J.dtype, dense.shape
    rng = np.random.default_rng(0)
    assert J.shape == (rows, columns)
    assert J.ndim == 2

    def equal(actual: Any, expected: Any, shape: tuple[int, ...]) -> None:
        assert np.shape(actual) == shape
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, expected.reshape(shape))

    for found in (J.todense(), J.tosparse().toarray(), by_unit_vectors(J)):
        equal(found, dense, (rows, columns))
    equal(J.tensor(), dense, J.output_shape + J.input_shape)
    equal(J.tensor("denominator"), dense.T, J.input_shape + J.output_shape)
    assert not np.shares_memory(J.todense(), J.todense())
    for j, d in ((J, dense), (J.T, dense.T)):
        t, g = integers(rng, j.input_shape, dtype), integers(rng, j.output_shape, dtype)
        equal(j @ t, d @ t.reshape(-1), j.output_shape)
        equal(g @ j, g.reshape(-1) @ d, j.input_shape)
        for stack in ((), (0,), (1,), (2, 3)):
            ts = integers(rng, (*stack, *j.input_shape), dtype)
            gs = integers(rng, (*stack, *j.output_shape), dtype)
            kept = ts.copy(), gs.copy()
            moved, pulled = j.jvp(ts), j.vjp(gs)
            count = int(np.prod(stack, dtype=int))
            equal(moved, ts.reshape(count, d.shape[1]) @ d.T, stack + j.output_shape)
            equal(pulled, gs.reshape(count, len(d)) @ d, stack + j.input_shape)
            for result in (moved, pulled):
                if result.ndim:
                    result[...] = 7  # belongs to the caller
            assert (ts == kept[0]).all()
            assert (gs == kept[1]).all()
        flat = integers(rng, (d.shape[1],), dtype)
        if flat.shape != j.input_shape:
            equal(j @ flat, d @ flat, (len(d),))
        for count in (0, 1, 3):
            many = integers(rng, (d.shape[1], count), dtype)
            if many.shape != j.input_shape:
                equal(j @ many, d @ many, (len(d), count))
            equal(j.matmat(many), d @ many, (len(d), count))
            many = integers(rng, (count, len(d)), dtype)
            if many.shape != j.output_shape:
                equal(many @ j, many @ d, (count, d.shape[1]))
            equal(j.rmatmat(many.T), d.T @ many.T, (d.shape[1], count))
        equal(j.matvec(flat), d @ flat, (len(d),))
        equal(j.matvec(flat[:, None]), d @ flat, (len(d), 1))
        back = integers(rng, (len(d),), dtype)
        equal(j.rmatvec(back), back @ d, (d.shape[1],))
        if back.shape != j.output_shape:
            equal(back @ j, back @ d, (d.shape[1],))
    assert J.T.T.todense().tolist() == dense.tolist()
    restored = pickle.loads(pickle.dumps(J))
    assert type(restored) is type(J)
    assert repr(restored) == repr(J)
    equal(restored.todense(), dense, dense.shape)


# --- one of each kind, between given shapes -------------------------------------------------------


def matrix_of(function: Callable[[Any], Any], shape: tuple[int, ...]) -> Any:
    """Return the matrix of a linear function of arrays of a shape."""
    n = int(np.prod(shape, dtype=int))
    return np.stack([function(unit.reshape(shape)).reshape(-1) for unit in np.eye(n)], axis=1)


class Made(NamedTuple):
    """A Jacobian and its matrix."""

    J: Any
    dense: Any


def _identity(out: Any, into: Any, fill: Any) -> Made | None:
    if out != into:
        return None
    n = int(np.prod(into, dtype=int))
    return Made(jacobians.Identity(into, fill(()).dtype), np.eye(n))


def _zero(out: Any, into: Any, fill: Any) -> Made | None:
    J = jacobians.Zero(out, into, fill(()).dtype)
    return Made(J, np.zeros([int(np.prod(shape, dtype=int)) for shape in (out, into)]))


def _diagonal(out: Any, into: Any, fill: Any) -> Made | None:
    if out != into:
        return None
    d = fill(into)
    return Made(jacobians.Diagonal(d), np.diag(d.reshape(-1)))


def _dense(out: Any, into: Any, fill: Any) -> Made | None:
    M = fill([int(np.prod(shape, dtype=int)) for shape in (out, into)])
    return Made(jacobians.Dense(M, into, out), M)


def _outer(out: Any, into: Any, fill: Any) -> Made | None:
    u, v = fill(out), fill(into)
    return Made(jacobians.Outer(u, v), np.outer(u, v))


def _blocks(out: Any, into: Any, fill: Any) -> Made | None:
    if len(out) != 2 or len(into) != 2 or out[0] != into[0]:
        return None
    blocks = fill((out[0], out[1], into[1]))
    dense = np.zeros((*out, *into))
    for i, block in enumerate(blocks):
        dense[i, :, i] = block
    return Made(jacobians.BlockDiagonal(blocks), dense.reshape(out[0] * out[1], -1))


def _kronecker(out: Any, into: Any, fill: Any) -> Made | None:
    if len(out) != 2 or len(into) != 2:
        return None
    L, R = fill((out[0], into[0])), fill((out[1], into[1]))
    return Made(jacobians.Kronecker(L, R), np.kron(L, R))


class Spread:
    """A map of rows whose slices have the Jacobian I + x 1^T."""

    __name__ = "spread"

    def jvp(self, x: Any, t: Any, axis: Any) -> Any:
        return t + x * np.sum(t, axis=axis, keepdims=True)

    def vjp(self, x: Any, g: Any, axis: Any) -> Any:
        return g + np.sum(x * g, axis=axis, keepdims=True)


def _row_wise(out: Any, into: Any, fill: Any) -> Made | None:
    if out != into:
        return None
    x, axis = fill(into), -1 if into else None
    dense = matrix_of(lambda t: Spread().jvp(x, t, axis), into)
    return Made(jacobians.RowWise(Spread(), x, axis), dense)


def _permutation(out: Any, into: Any, fill: Any) -> Made | None:
    if len(into) < 2 or out != into[::-1]:
        return None
    axes = tuple(reversed(range(len(into))))
    return Made(jacobians.Permutation(into, axes, fill(()).dtype), matrix_of(np.transpose, into))


def _reshape(out: Any, into: Any, fill: Any) -> Made | None:
    n = int(np.prod(into, dtype=int))
    if n != np.prod(out, dtype=int):
        return None
    return Made(jacobians.Reshape(into, out, fill(()).dtype), np.eye(n))


def _broadcast(out: Any, into: Any, fill: Any) -> Made | None:
    try:
        dense = matrix_of(lambda x: np.broadcast_to(x, out), into)
    except ValueError:
        return None
    return Made(jacobians.Broadcast(into, out, fill(()).dtype), dense)


def _sum_to(out: Any, into: Any, fill: Any) -> Made | None:
    repeated = _broadcast(into, out, fill)
    if repeated is None:
        return None
    return Made(jacobians.SumTo(into, out, fill(()).dtype), repeated.dense.T)


def _sum(out: Any, into: Any, fill: Any) -> Made | None:
    terms = [_outer(out, into, fill), _dense(out, into, fill), _outer(out, into, fill)]
    return Made(
        jacobians.Sum(*(term.J for term in terms if term)),
        sum(term.dense for term in terms if term),
    )


def _product(out: Any, into: Any, fill: Any) -> Made | None:
    first, second = _dense(out, (2, 2), fill), _kronecker((2, 2), (1, 2), fill)
    third = _dense((1, 2), into, fill)
    assert first
    assert second
    assert third
    return Made(
        jacobians.Product(first.J, second.J, third.J), first.dense @ second.dense @ third.dense
    )


KINDS: dict[str, Callable[[Any, Any, Any], Made | None]] = {
    "Identity": _identity,
    "Zero": _zero,
    "Diagonal": _diagonal,
    "Dense": _dense,
    "Outer": _outer,
    "BlockDiagonal": _blocks,
    "Kronecker": _kronecker,
    "RowWise": _row_wise,
    "Permutation": _permutation,
    "Reshape": _reshape,
    "Broadcast": _broadcast,
    "SumTo": _sum_to,
    "Sum": _sum,
    "Product": _product,
}
OPERANDS = ((2, 3), (3, 2), (2, 1), (6,), ())


def make(kind: str, out: Any, into: Any, dtype: Any, seed: Any = 0) -> Made | None:
    """Return a Jacobian of a kind between two shapes, None where the kind has none."""
    rng = np.random.default_rng(seed)
    made = KINDS[kind](out, into, lambda shape: integers(rng, tuple(shape), dtype, 3))
    return None if made is None else Made(made.J, made.dense.astype(dtype))


def everything(kind: str, dtype: Any, seed: int = 0) -> Iterator[Made]:
    """Yield a Jacobian of a kind between any two of `OPERANDS`."""
    for i, (out, into) in enumerate(product(OPERANDS, repeat=2)):
        made = make(kind, out, into, dtype, [seed, i])
        if made is not None:
            yield made

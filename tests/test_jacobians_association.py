"""Products are multiplied in the order that takes the fewest operations, and those are counted."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pullback.jacobians import (
    Broadcast,
    Dense,
    Diagonal,
    Jacobian,
    Kronecker,
    Permutation,
    Product,
    Sum,
    SumTo,
    association,
    base,
    dense,
    lazy,
)
from structured import KINDS, everything


def count(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Return the list that every product of matrices adds its extents to."""
    calls: list[tuple[int, int, int]] = []

    def product(A: Any, B: Any) -> Any:
        calls.append((*A.shape, B.shape[1]))
        return np.matmul(A, B)

    monkeypatch.setattr(dense, "product", product)
    monkeypatch.setattr(association, "multiplied", product)
    for native in ("moved", "elements"):  # which multiplies what is small by itself
        monkeypatch.setattr(base, native, lambda *_: None)
    monkeypatch.setattr(lazy, "_PLANNED", 0)  # of few operations, too, the order is asked for
    return calls


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    return count(monkeypatch)


def flops(calls: list[tuple[int, int, int]]) -> int:
    return sum(2 * m * n * k for m, n, k in calls)


def fewest(extents: tuple[int, ...]) -> int:
    """Return the fewest operations of a chain of dense matrices, over all parenthesisations."""

    @cache
    def best(i: int, j: int) -> int:
        return min(
            (
                best(i, s) + best(s, j) + 2 * extents[i] * extents[s] * extents[j]
                for s in range(i + 1, j)
            ),
            default=0,
        )

    return best(0, len(extents) - 1)


def chain(extents: tuple[int, ...]) -> Product:
    rng = np.random.default_rng(extents)
    return Product(
        *(
            Dense(rng.integers(-2, 3, pair).astype(float))
            for pair in zip(extents, extents[1:], strict=False)
        )
    )


@given(extents=st.lists(st.integers(1, 30), min_size=3, max_size=6), k=st.integers(2, 40))
@example(extents=[1, 2, 1, 1], k=2)
@settings(deadline=None, max_examples=60)
def test_dense_chains_take_the_fewest_operations(extents: list[int], k: int) -> None:
    J = chain(tuple(extents))
    assert J.flops(k) == fewest((*extents, k))
    assert J.T.flops(k) == fewest((k, *extents))
    with pytest.MonkeyPatch.context() as patch:
        calls = count(patch)
        J.matmat(np.ones((extents[-1], k)))
        assert flops(calls) == J.flops(k)
        calls.clear()
        J.todense()
        assert flops(calls) == fewest(tuple(extents))


@pytest.mark.parametrize("seed", range(4))
def test_up_to_32_operands_take_the_fewest_operations(seed: int) -> None:
    extents = tuple(np.random.default_rng(seed).integers(1, 60, 33).tolist())
    J = chain(extents[:-1])
    assert J.flops(extents[-1]) == fewest(extents)
    assert J.T.flops(extents[0]) == fewest((extents[0], *reversed(extents[:-1])))


@pytest.mark.parametrize("low", [1, 20, 50])
@pytest.mark.parametrize("count", [33, 50, 70])
def test_more_operands_take_hardly_more(counted: Any, low: int, count: int) -> None:
    """A search in linear time: 3 % above the fewest operations at most, and these are done."""
    extents = tuple(np.random.default_rng(count).integers(low, 60, count + 1).tolist())
    for wide in (extents, extents[::-1], (*extents[:40], 1, *extents[41:])):
        J = chain(wide)
        for k in (2, 70):
            assert fewest((*wide, k)) <= J.flops(k) <= 1.03 * fewest((*wide, k))
            counted.clear()
            J.matmat(np.ones((wide[-1], k)))
            assert flops(counted) == J.flops(k)
        counted.clear()
        J.todense()
        assert fewest(wide) <= flops(counted) <= 1.03 * fewest(wide)


def test_long_chains_are_multiplied_from_their_narrowest_place(counted: Any) -> None:
    for place in (0, 20, 40):
        extents = [30] * 41
        extents[place] = 3
        J = chain(tuple(extents))
        counted.clear()
        J.todense()
        assert sum(3 not in call for call in counted) == 0
    square = chain((30,) * 41)
    counted.clear()
    square.todense()
    assert counted == [(30, 30, 30)] * 39
    counted.clear()
    square.matmat(np.ones((30, 2)))
    assert counted == [(2, 30, 30)] * 40


def test_one_vector_meets_the_factors_from_its_side(counted: Any) -> None:
    J = chain((7, 5, 11, 3))
    J @ np.ones(3)
    assert counted == [(1, 3, 11), (1, 11, 5), (1, 5, 7)]
    counted.clear()
    np.ones(7) @ J
    assert counted == [(1, 7, 5), (1, 5, 11), (1, 11, 3)]
    assert J.flops(1) == J.T.flops(1) == 2 * (3 * 11 + 11 * 5 + 5 * 7)
    assert J.flops(0) == 0


def test_many_columns_have_narrow_factors_multiplied_first(counted: Any) -> None:
    J = chain((3, 500, 4))
    columns = np.ones((4, 100))
    J.matmat(columns)
    assert counted == [(4, 500, 3), (3, 4, 100)]  # the first one transposed
    assert J.flops(100) == 2 * (3 * 500 * 4 + 3 * 4 * 100)
    counted.clear()
    chain((30, 50, 40)).matmat(np.ones((40, 2)))  # columns of which there are too few
    assert counted == [(2, 40, 50), (2, 50, 30)]


class Counting(Jacobian):
    """Another Jacobian, and the number of vectors that it or its transposed one has met."""

    def __init__(self, J: Any, met: list[tuple[Any, int]]) -> None:
        self._J, self._met = J, met

    input_shape = property(lambda self: self._J.input_shape)
    output_shape = property(lambda self: self._J.output_shape)
    dtype = property(lambda self: self._J.dtype)
    nbytes = property(lambda self: self._J.nbytes)
    T = property(lambda self: Counting(self._J.T, self._met))

    def flops(self, k: int = 1) -> int:
        return self._J.flops(k)

    def _times(self, tangents: Any) -> Any:
        self._met.append((self._J, len(tangents)))
        return self._J._times(tangents)

    def _dense(self) -> Any:
        return self._J._dense()

    def _scaled(self, c: Any) -> Any:
        return None


def test_structured_factors_are_counted_as_they_are(counted: Any) -> None:
    """What is done is what was promised, and a structured factor is not multiplied out for it."""
    n, k = 60, 50
    met: list[tuple[Any, int]] = []
    factors = [
        Dense(np.ones((4, n)), (10, 6)),
        Diagonal(np.arange(1.0, n + 1).reshape(10, 6)),
        Permutation((6, 10), (1, 0)),
        Kronecker(np.ones((6, 6)), 10),
    ]
    J = Product(*(Counting(factor, met) for factor in factors))
    result = J.matmat(np.ones((n, k)))
    inside = [(4, 6 * 10, k)]  # only the four rows meet the columns
    assert counted[-1] == inside[0]
    assert [count for _, count in met] == [4] * 3
    assert J.flops(k) == sum(F.flops(c) for F, c in met) + flops(inside)
    expected = factors[0].todense()
    for factor in factors[1:]:
        expected = expected @ factor.todense()
    np.testing.assert_array_equal(result, expected @ np.ones((n, k)))
    met.clear()
    J @ np.ones((6, 10))
    assert [type(F) for F, _ in met] == [Kronecker, Permutation, Diagonal, Dense]
    assert sum(F.flops(c) for F, c in met) == J.flops()


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_of_one_pass_over_what_is_stored(kind: str) -> None:
    for J, _ in everything(kind, np.dtype(float)):
        size = J.nbytes // J.dtype.itemsize
        assert J.flops(0) == 0
        assert J.flops(3) <= 3 * J.flops()
        if kind in ("Identity", "Zero", "Permutation", "Reshape", "Broadcast"):
            assert J.flops() == 0
        if kind in ("Dense", "BlockDiagonal"):
            assert J.flops(5) == 2 * 5 * size


def test_counts() -> None:
    assert Diagonal(np.ones((2, 3))).flops(4) == 24
    assert SumTo((2, 3), (3,)).flops(4) == 4 * 3
    assert Broadcast((3,), (2, 3)).flops() == 0
    # T -> L T with L (4, 3) and T (3, 5), and -> L T R^T, whichever product is the cheaper first.
    assert Kronecker(np.ones((4, 3)), 5).flops() == 2 * 4 * 3 * 5
    assert Kronecker(5, np.ones((4, 3))).flops(2) == 2 * 2 * 5 * 4 * 3
    both = Kronecker(np.ones((4, 3)), np.ones((2, 5)))
    assert both.flops() == 2 * min(4 * 3 * 5 + 4 * 5 * 2, 3 * 5 * 2 + 4 * 3 * 2)
    batched = Kronecker(2, np.ones((7, 4, 3)), input_batch=(7,), output_batch=())
    assert batched.flops() == 2 * 7 * 2 * 4 * 3
    d = Diagonal(np.ones(6))
    assert Sum(d, d, d).flops(2) == 2 * (3 * 6 + 2 * 6)

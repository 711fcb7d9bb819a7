"""Sums and products of structured Jacobians: the dense ones, with what structure there is kept."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import DTYPES, integers
from protocol import each
from pullback import jacobians
from pullback.jacobians import (
    BlockDiagonal,
    Broadcast,
    Dense,
    Diagonal,
    Identity,
    Kronecker,
    Outer,
    Permutation,
    Product,
    Reshape,
    Sum,
    SumTo,
)
from structured import KINDS, OPERANDS, Made, check, make

# What products and sums are of, for every pair of which neither is Zero, the first is no Identity
# (nor, of a product, the second), and none is an Outer in a product. Where there are two, shapes
# decide. Every other pair stays a lazy one.
PRODUCTS = {
    ("Diagonal", "Diagonal"): {"Diagonal"},
    ("Diagonal", "Dense"): {"Dense"},
    ("Dense", "Diagonal"): {"Dense"},
    ("Diagonal", "BlockDiagonal"): {"BlockDiagonal"},
    ("BlockDiagonal", "Diagonal"): {"BlockDiagonal"},
    ("BlockDiagonal", "BlockDiagonal"): {"BlockDiagonal", "Product"},
    ("Kronecker", "Kronecker"): {"Kronecker", "Product"},
    ("Permutation", "Permutation"): {"Identity", "Permutation"},
    ("Reshape", "Reshape"): {"Identity", "Reshape"},
    ("Broadcast", "Broadcast"): {"Broadcast"},
    ("SumTo", "SumTo"): {"SumTo"},
    **{
        pair: {kind}
        for kind in ("Dense", "BlockDiagonal", "Kronecker")
        for pair in ((kind, "Reshape"), ("Reshape", kind))
    },
}
SUMS = {
    ("Identity", "Identity"): "Diagonal",
    ("Identity", "Diagonal"): "Diagonal",
    ("Diagonal", "Diagonal"): "Diagonal",
    ("Dense", "Dense"): "Dense",
    ("Dense", "Outer"): "Dense",
    ("Dense", "Diagonal"): "Dense",
    ("Dense", "Identity"): "Dense",
    ("Dense", "Sum"): "Sum",
    ("BlockDiagonal", "BlockDiagonal"): "BlockDiagonal",
    ("BlockDiagonal", "Identity"): "BlockDiagonal",
    ("BlockDiagonal", "Diagonal"): "BlockDiagonal",
}
LAZY = {"Product", "Sum"}


def agree(J: Any, dense: Any, dtype: np.dtype) -> None:
    """Fail unless J is `dense`: as a matrix, and from both sides."""
    assert J.shape == dense.shape
    assert J.dtype == dtype
    rng = np.random.default_rng(0)
    t, g = integers(rng, J.input_shape, dtype), integers(rng, J.output_shape, dtype)
    np.testing.assert_array_equal(J.todense(), dense)
    np.testing.assert_array_equal(np.reshape(J @ t, -1), dense @ t.reshape(-1))
    np.testing.assert_array_equal(np.reshape(g @ J, -1), g.reshape(-1) @ dense)
    V = integers(rng, (J.shape[1], 4), dtype)
    np.testing.assert_array_equal(J.matmat(V), dense @ V)
    np.testing.assert_array_equal(J.T.todense(), dense.T)


def product_kinds(left: str, right: str) -> set[str]:
    if "Zero" in (left, right):
        return {"Zero"}
    if "Identity" in (left, right):
        return {right if left == "Identity" else left}
    if "Outer" in (left, right):
        return {"Outer"}
    return PRODUCTS.get((left, right), {"Product"})


@pytest.mark.parametrize("left", KINDS)
@each("right", KINDS)
def test_products_of_every_pair(left: str, right: str) -> None:
    found: set[str] = set()
    shapes = [*product(OPERANDS, repeat=3)]
    np.random.default_rng(0).shuffle(shapes)
    count = 0
    for i, (out, middle, into) in enumerate(map(tuple, shapes)):
        first, second = DTYPES[i % 2], DTYPES[i // 2 % 2]
        one, other = make(left, out, middle, first, i), make(right, middle, into, second, -i % 97)
        if one is None or other is None:
            continue
        count += 1
        if count > 12:
            break
        J = one.J @ other.J
        # What is lazy already merges at the seam.
        if not LAZY & {left, right}:
            assert type(J).__name__ in product_kinds(left, right)
        assert J.input_shape == into
        assert J.output_shape == out
        agree(J, one.dense @ other.dense, np.result_type(first, second))
        if isinstance(J, Product) and first == second:
            assert J.nbytes <= one.J.nbytes + other.J.nbytes
        found.add(type(J).__name__)
    if not LAZY & {left, right}:
        assert found <= product_kinds(left, right)
        assert found


def test_rules_that_shapes_decide() -> None:
    rng = np.random.default_rng(0)
    cases: list[tuple[Any, Any]] = [
        (Permutation((3, 4, 2), (1, 0, 2)), Permutation((2, 3, 4), (1, 2, 0))),
        (Permutation((4, 2, 3), (1, 2, 0)), Permutation((2, 3, 4), (2, 0, 1))),
    ]
    for left, right in cases:
        agree(left @ right, left.todense() @ right.todense(), left.dtype)
    # Identities of two sizes have no common factor.
    R, S = integers(rng, (3, 3), np.float64), integers(rng, (2, 2), np.float64)
    one = Kronecker(2, R, input_shape=(6,), output_shape=(6,))
    other = Kronecker(3, S, input_shape=(6,), output_shape=(6,))
    agree(one + other, one.todense() + other.todense(), np.dtype(np.float64))
    for n in (1, 2, 3):
        J = Product(*[Diagonal([2.0, 3.0])] * n)
        np.testing.assert_array_equal(J.diagonal(), [2.0**n, 3.0**n])


def sum_kind(left: str, right: str) -> str:
    if "Zero" in (left, right):
        return right if left == "Zero" else left
    return SUMS.get((left, right)) or SUMS.get((right, left)) or "Sum"


@pytest.mark.parametrize("left", KINDS)
@each("right", KINDS)
def test_sums_of_every_pair(left: str, right: str) -> None:
    for i, (out, into) in enumerate(product(OPERANDS, repeat=2)):
        first, second = DTYPES[i % 2], DTYPES[i // 2 % 2]
        one, other = make(left, out, into, first, i), make(right, out, into, second, i + 1)
        if one is None or other is None:
            continue
        dtype = np.result_type(first, second)
        J = one.J + other.J
        agree(J, one.dense + other.dense, dtype)
        if not (left == right == "BlockDiagonal" or LAZY & {left, right}):
            assert type(J).__name__ == sum_kind(left, right) or J.shape[0] != J.shape[1]
        agree(one.J - other.J, one.dense - other.dense, dtype)
        agree(-one.J, -one.dense, first)


@pytest.mark.parametrize("kind", KINDS)
def test_multiples(kind: str) -> None:
    scaled = {"Identity": "Diagonal"} | dict.fromkeys(
        ("RowWise", "Permutation", "Reshape", "Broadcast", "SumTo"), "Product"
    )
    for dtype in DTYPES:
        for out, into in product(OPERANDS, repeat=2):
            made = make(kind, out, into, dtype, 3)
            if made is None:
                continue
            J, dense = made
            for c, wanted in ((3, dtype), (-2.0, dtype), (np.float32(2), dtype), (True, dtype)):
                agree(c * J, c * dense, wanted)
                agree(J * c, c * dense, wanted)
            agree(np.float64(2) * J, 2 * dense, np.dtype(float))
            agree(np.array(2, np.int8) * J, 2 * dense, dtype)
            assert type(2 * J).__name__ == scaled.get(kind, kind)
            assert 1 * J is J
            assert type(np.float64(1) * J) is type(J)
            assert (2 * J).nbytes <= J.nbytes + dtype.itemsize * min(dense.shape)


def test_infinities_in_multiples_and_products_warn_of_nothing() -> None:
    huge = np.array([1e30, np.inf], np.float32)
    with np.errstate(all="raise"):
        for J in (Diagonal(huge), Dense(np.outer([1, 2], huge)), Outer(huge, huge)):
            assert not np.isfinite((1e30 * (J @ J)).todense()).all()
            assert not np.isfinite((J - J).todense()).all()
        (Dense(np.diag(huge)) @ Dense(np.diag(huge))).matmat(np.ones((2, 3), np.float32))


# --- structure ------------------------------------------------------------------------------------


def test_chains_merge_at_the_seam() -> None:
    d = Diagonal(np.arange(1.0, 7).reshape(2, 3))
    up, down = Broadcast((3,), (2, 3)), SumTo((2, 3), (3,))
    chain = (d @ up) @ (down @ d @ d) @ d
    assert isinstance(chain, Product)
    assert [type(factor) for factor in chain.factors] == [Diagonal, Broadcast, SumTo, Diagonal]
    grouped = d @ (up @ down) @ (d @ (d @ d))
    assert repr(grouped) == repr(chain)
    turn = Permutation((2, 3), (1, 0))
    assert type(turn.T @ turn @ d) is Diagonal
    assert type((d @ turn.T) @ (turn @ d)) is Diagonal
    assert type(Reshape((6,), (2, 3)) @ (Reshape((2, 3), (6,)) @ d)) is Diagonal
    M = Dense(np.ones((4, 6)), (2, 3), (2, 2))
    assert type(Reshape((2, 2), (4,)) @ M @ d) is Dense
    u = Outer(np.ones(4), np.ones(5))
    reduced = (Dense(np.ones((3, 2))) @ Dense(np.ones((2, 4)))) @ u
    assert type(reduced) is Outer
    assert reduced.output_shape == (3,)


def test_like_terms_merge_wherever_they_stand() -> None:
    n = 4
    d, one, u = Diagonal(np.arange(4.0)), Identity((n,)), Outer(np.ones(n), np.arange(4.0))
    total = d + u + one - 2 * d + u
    assert isinstance(total, Sum)
    assert sorted(type(term).__name__ for term in total.terms) == ["Diagonal", "Outer", "Outer"]
    np.testing.assert_array_equal(
        total.todense(), np.diag(1 - np.arange(4.0)) + 2 * np.outer(np.ones(n), np.arange(4.0))
    )
    assert type((u + d) + (Dense(np.ones((n, n))) + one)) is Dense
    left = Kronecker(2, np.ones((3, 4))) + 2.0 * Kronecker(2, np.ones((3, 4)))
    right = Kronecker(np.ones((3, 4)), 2) - Kronecker(np.eye(3, 4), 2)
    both = Kronecker(2, np.ones((2, 3))) + Kronecker(np.ones((2, 2)), np.ones((2, 3)))
    assert [type(J) for J in (left, right, both)] == [Kronecker, Kronecker, Sum]
    check(left, np.kron(np.eye(2), np.full((3, 4), 3.0)))
    check(right, np.kron(np.ones((3, 4)) - np.eye(3, 4), np.eye(2)))
    check(both, np.kron(np.eye(2) + 1, np.ones((2, 3))))


def test_products_that_would_outgrow_their_factors_stay_lazy() -> None:
    column, row = np.ones((5, 100, 1)), np.ones((5, 1, 100))
    assert type(BlockDiagonal(column) @ BlockDiagonal(row)) is Product
    assert type(BlockDiagonal(row) @ BlockDiagonal(column)) is BlockDiagonal
    column, row = np.ones((100, 1)), np.ones((1, 100))
    assert type(Kronecker(column, 2) @ Kronecker(row, 2)) is Product
    assert type(Kronecker(row, 2) @ Kronecker(column, 2)) is Kronecker
    assert type(Dense(column) @ Dense(row)) is type(Dense(row) @ Dense(column)) is Product


class Reversal(jacobians.Jacobian):
    """A Jacobian from elsewhere: no rule knows it."""

    input_shape = output_shape = (3,)
    dtype = np.dtype(np.float32)
    nbytes = 0

    @property
    def T(self) -> Reversal:
        return self

    def flops(self, k: int = 1) -> int:
        return 0 * k

    def _times(self, tangents: Any) -> Any:
        return tangents[:, ::-1]

    def _scaled(self, c: Any) -> None:
        return None


def test_a_kind_of_ones_own() -> None:
    J, flip = Reversal(), np.eye(3, dtype=np.float32)[::-1]
    d = np.arange(1.0, 4)
    assert type(J @ J) is Product
    assert type(J + J) is Sum
    assert type(J @ Outer(d, d)) is Outer
    for K, dense in (
        (J, flip),
        (J @ Diagonal(d), flip @ np.diag(d)),
        (3 * J, 3 * flip),
        (J - Identity((3,)), flip - np.eye(3)),
        (J @ Outer(d, d), np.outer(d[::-1], d)),
    ):
        agree(K, dense, K.dtype)
        np.testing.assert_array_equal(K.diagonal(), dense.diagonal())
    t = np.ones(3, np.float32)
    assert not np.shares_memory(J @ t, t)


# --- random compositions --------------------------------------------------------------------------


CHOICES = {
    out: [(kind, into) for kind in KINDS for into in OPERANDS if make(kind, out, into, float)]
    for out in OPERANDS
}


@st.composite
def compositions(draw: Any) -> Made:
    """Draw a random composition of depth 1 to 5 and its matrix."""
    shape = draw(st.sampled_from(OPERANDS))
    made: Made | None = None
    for _ in range(draw(st.integers(1, 5))):
        kind, into = draw(st.sampled_from(CHOICES[shape]))
        new = make(kind, shape, into, float, draw(st.integers(0, 9)))
        assert new is not None
        if draw(st.booleans()):
            more = make(draw(st.sampled_from(["Outer", "Zero", "Dense"])), shape, into, float, 7)
            assert more is not None
            new = Made(new.J - 2 * more.J, new.dense - 2 * more.dense)
        made = new if made is None else Made(made.J @ new.J, made.dense @ new.dense)
        shape = into
    assert made is not None
    return made


@given(made=compositions(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=100)
def test_compositions_are_the_dense_ones_and_their_transposes(made: Made, seed: int) -> None:
    J, dense = made
    rng = np.random.default_rng(seed)
    v, w = integers(rng, J.input_shape, float), integers(rng, J.output_shape, float)
    Jv, JTw = J @ v, w @ J
    assert np.vdot(Jv, w) == np.vdot(v, JTw)
    agree(J, dense, np.dtype(float))
    np.testing.assert_array_equal(Sum(J).diagonal(), dense.diagonal())

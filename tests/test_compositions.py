"""Random compositions, one to five deep: structured Jacobians and chains against dense products."""

from __future__ import annotations

import math
import operator
import tracemalloc
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import pullback as pb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import DTYPES
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
    Zero,
)
from test_calculus import complex_step, sigmoid

Array = Any
seeds = st.integers(0, 2**32 - 1)
LARGEST = 8  # elements of an operand, so that float32 holds every sum of a product of five


# --- structured Jacobians -------------------------------------------------------------------------


class Drawn:
    """Draws Jacobians of small integers, of which all products are exact, with their matrices."""

    def __init__(self, seed: int, dtype: Any) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype

    def integers(self, *shape: int) -> Array:
        return self.rng.integers(-2, 3, shape).astype(self.dtype)

    def shape(self, size: int | None = None) -> tuple[int, ...]:
        """Return a shape of up to three axes, of this size where one is given."""
        while True:
            shape = tuple(self.rng.integers(1, 5, self.rng.integers(0, 4)).tolist())
            if size is None and math.prod(shape) <= LARGEST:
                return shape
            if size is not None and self.rng.random() < 0.2:
                return (size,)
            if math.prod(shape) == size:
                return shape

    def factor(self, shape: tuple[int, ...], deep: bool = True) -> tuple[Any, Array]:
        """Return a Jacobian whose operand has this shape, and its matrix."""
        n, eye = math.prod(shape), np.eye(math.prod(shape))
        kinds = [self.identity, self.diagonal, self.dense, self.outer, self.moved, self.reshaped]
        kinds += [self.broadcast, self.summed, self.blocks, self.kronecker, self.zero]
        if deep:
            kinds += [self.added, self.transposed]
        return kinds[self.rng.integers(len(kinds))](shape, n, eye)

    def identity(self, shape: Any, n: int, eye: Array) -> Any:
        return Identity(shape, self.dtype), eye

    def diagonal(self, shape: Any, n: int, eye: Array) -> Any:
        d = self.integers(*shape)
        return Diagonal(d), eye * d.ravel()

    def dense(self, shape: Any, n: int, eye: Array) -> Any:
        output = self.shape()
        matrix = self.integers(math.prod(output), n)
        return Dense(matrix, input_shape=shape, output_shape=output), matrix

    def outer(self, shape: Any, n: int, eye: Array) -> Any:
        u, v = self.integers(*self.shape()), self.integers(*shape)
        return Outer(u, v), np.outer(u, v)

    def moved(self, shape: Any, n: int, eye: Array) -> Any:
        axes = tuple(self.rng.permutation(len(shape)).tolist())
        return Permutation(shape, axes), eye[np.arange(n).reshape(shape).transpose(axes).ravel()]

    def reshaped(self, shape: Any, n: int, eye: Array) -> Any:
        return Reshape(shape, self.shape(n)), eye

    def broadcast(self, shape: Any, n: int, eye: Array) -> Any:
        wide = tuple(3 if m == 1 and self.rng.random() < 0.5 else m for m in shape)
        wide = (2, *wide) if self.rng.random() < 0.5 else wide
        wide = wide if math.prod(wide) <= LARGEST else shape
        return Broadcast(shape, wide), eye[
            np.broadcast_to(np.arange(n).reshape(shape), wide).ravel()
        ]

    def summed(self, shape: Any, n: int, eye: Array) -> Any:
        small = tuple(1 if self.rng.random() < 0.5 else m for m in shape)
        small = small[1:] if shape and self.rng.random() < 0.5 else small
        where = np.broadcast_to(np.arange(math.prod(small)).reshape(small), shape).ravel()
        return Broadcast(small, shape).T, np.eye(math.prod(small))[:, where]

    def blocks(self, shape: Any, n: int, eye: Array) -> Any:
        *batch, q = shape or (1,)
        p = int(self.rng.integers(1, 3))
        blocks = self.integers(*batch, p, q)
        count = math.prod(batch)
        matrix = np.zeros((count, p, count, q))
        for i, block in enumerate(blocks.reshape(count, p, q)):
            matrix[i, :, i] = block
        return BlockDiagonal(blocks, input_shape=shape), matrix.reshape(count * p, count * q)

    def kronecker(self, shape: Any, n: int, eye: Array) -> Any:
        q, s = (math.prod(shape[:1]), math.prod(shape[1:]))
        left, right = (self.integers(self.rng.integers(1, 3), m) for m in (q, s))
        return Kronecker(left, right, input_shape=shape), np.kron(left, right)

    def zero(self, shape: Any, n: int, eye: Array) -> Any:
        output = self.shape()
        return Zero(output, shape, self.dtype), np.zeros((math.prod(output), n))

    def added(self, shape: Any, n: int, eye: Array) -> Any:
        (a, A), (b, B) = self.factor(shape, deep=False), self.factor(shape, deep=False)
        if a.output_shape != b.output_shape:
            b = Dense(B := self.integers(len(A), n), input_shape=shape, output_shape=a.output_shape)
        return [(a + b, A + B), (a - b, A - B), (2 * a + -b, 2 * A - B), (Sum(a, b), A + B)][
            self.rng.integers(4)
        ]

    def transposed(self, shape: Any, n: int, eye: Array) -> Any:
        J, matrix = self.factor(shape, deep=False)
        return J.T @ J, matrix.T @ matrix


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=seeds, depth=st.integers(1, 5))
@settings(deadline=None, max_examples=120, derandomize=True)
def test_products_of_structured_jacobians(seed: int, depth: int, dtype: np.dtype) -> None:
    drawn = Drawn(seed, dtype)
    shape = operand = drawn.shape()
    factors, dense = [], np.eye(math.prod(shape))
    for _ in range(depth):
        J, matrix = drawn.factor(shape)
        factors.insert(0, J)
        dense = matrix @ dense
        shape = J.output_shape
    if np.abs(dense).max(initial=0) > 2**20:
        return
    way = drawn.rng.integers(3)
    if way == 0:
        J = reduce(operator.matmul, factors)
    elif way == 1:
        J = reduce(lambda right, left: left @ right, factors[::-1])
    else:
        J = Product(*factors)
    assert J.shape == dense.shape
    assert (J.output_shape, J.input_shape) == (shape, operand)

    def equal(actual: Any, desired: Array, shape: tuple[int, ...]) -> None:
        assert np.shape(actual) == shape
        np.testing.assert_array_equal(actual, desired.reshape(shape))

    v, w = drawn.integers(*operand), drawn.integers(*shape)
    equal(J.todense(), dense, dense.shape)
    equal(J.tensor(), dense, shape + operand)
    equal(J.tensor(layout="denominator"), dense.T, operand + shape)
    equal(J @ v, dense @ v.ravel(), shape)
    assert np.asarray(J @ v).dtype == dtype
    equal(w @ J, w.ravel() @ dense, operand)
    equal(J.T @ w, w.ravel() @ dense, operand)
    # <J v, w> = <v, J^T w>, in integers.
    assert np.sum(np.float64(J @ v) * w) == np.sum(np.float64(v) * (w @ J))
    many, back = drawn.integers(2, 3, *operand), drawn.integers(2, 3, *shape)
    equal(J.jvp(many), many.reshape(6, -1) @ dense.T, (2, 3, *shape))
    equal(J.vjp(back), back.reshape(6, -1) @ dense, (2, 3, *operand))
    if dense.shape[0] == dense.shape[1]:
        equal(J.diagonal(), dense.diagonal(), (len(dense),))


def test_algebra_keeps_structure() -> None:
    d, e = Diagonal(np.arange(1.0, 7)), Diagonal(np.full(6, 2.0))
    m, u = Dense(np.ones((4, 6))), Outer(np.ones(4), np.arange(6.0))
    k = Kronecker(np.ones((2, 2)), np.ones((3, 3)), input_shape=(6,), output_shape=(6,))
    i = Identity((6,))
    for J, kind in (
        (d @ e, Diagonal),
        (d + e, Diagonal),
        (d - e, Diagonal),
        (-d, Diagonal),
        (3 * d, Diagonal),
        (d @ i, Diagonal),
        (i @ d, Diagonal),
        (d + i, Diagonal),
        (i @ i, Identity),
        (m @ d, Dense),
        (m @ i, Dense),
        (u @ d, Outer),
        (u @ k, Outer),
        (m @ u.T, Dense | Outer),
        (u @ m.T, Outer),
        (m.T @ u, Outer),
        (2 * u, Outer),
        (k @ k, Kronecker),
        (k @ i, Kronecker),
        (Zero((4,), (6,)) @ d, Zero),
        (m + Zero((4,), (6,)), Dense),
    ):
        assert isinstance(J, kind), (J, kind)


# --- chains ---------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A step of a chain, and what it computes of the running value and of its bound operand."""

    given: Any
    oracle: Callable[[Array, Array], Array]
    bound: Array | None = None


def log_sum(x: Array, axis: Any) -> Array:
    return np.log(np.sum(np.exp(x), axis=axis))


def normalised(x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 0.5)


def soft(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


UNARY = [
    Step(pb.sin, lambda x, _: np.sin(x)),
    Step(pb.tanh, lambda x, _: np.tanh(x)),
    Step(pb.sigmoid, lambda x, _: sigmoid(x)),
    Step(pb.square, lambda x, _: x * x),
    Step(pb.chain(pb.cos, pb.negative), lambda x, _: -np.cos(x)),
]
OF_ARRAYS = [
    Step(pb.softmax, lambda x, _: soft(x)),
    Step(pb.log_softmax, lambda x, _: np.log(soft(x))),
    Step((pb.layer_norm, pb.arg, {"eps": 0.5}), lambda x, _: normalised(x)),
    Step((pb.sum, pb.arg, {"axis": 0}), lambda x, _: x.sum(axis=0)),
    Step((pb.mean, pb.arg, {"axis": -1, "keepdims": True}), lambda x, _: x.mean(-1, keepdims=True)),
    Step((pb.logsumexp, pb.arg, {"axis": -1}), lambda x, _: log_sum(x, -1)),
    Step(pb.squared_norm2, lambda x, _: np.sum(x * x)),
    Step((pb.variance, pb.arg, {"axis": 0}), lambda x, _: np.mean((x - x.mean(0)) ** 2, 0)),
    Step((pb.prod, pb.arg, {"axis": -1}), lambda x, _: x.prod(axis=-1)),
]


def draw_step(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Step:
    """Return a step that takes this shape."""

    def c(*size: int) -> Array:
        return rng.uniform(0.5, 1.5, size).astype(dtype)

    kinds = [*UNARY]
    for bound in (c(), c(*shape), c(*shape[-1:])):
        kinds += [
            Step((pb.multiply, pb.arg, bound), lambda x, c: x * c, bound),
            Step((pb.subtract, bound, pb.arg), lambda x, c: c - x, bound),
            Step((pb.divide, pb.arg, bound), lambda x, c: x / c, bound),
        ]
    if shape:
        right, left = c(shape[-1], 2), c(3, shape[0])
        kinds += [*OF_ARRAYS, Step((pb.matmul, pb.arg, right), lambda x, c: x @ c, right)]
        kinds += [Step((pb.dot, pb.arg, whole := c(*shape)), lambda x, c: np.sum(x * c), whole)]
        if len(shape) < 3:
            kinds += [Step((pb.matmul, left, pb.arg), lambda x, c: c @ x, left)] * 2
        if len(shape) == 1:
            square = c(shape[0], shape[0])
            kinds += [Step((pb.quadratic_form, pb.arg, square), lambda x, c: x @ c @ x, square)]
    return kinds[rng.integers(len(kinds))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=seeds, depth=st.integers(1, 5))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_chains_are_products_of_their_steps(seed: int, depth: int, dtype: np.dtype) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 4, rng.integers(0, 4)).tolist())
    x = rng.uniform(0.25, 1.25, shape).astype(dtype)
    y, dense, steps, by_bound = x.astype(float), np.eye(x.size), [], []
    size = 1.0
    for _ in range(depth):
        step = draw_step(rng, np.shape(y), dtype)
        at, bound = y, None if step.bound is None else step.bound.astype(float)
        J = complex_step(lambda x, s=step, c=bound: s.oracle(x, c), at)
        y = np.asarray(step.oracle(at, bound))
        dense = J @ dense
        by_bound = [J @ D for D in by_bound]
        if bound is not None:
            by_bound.append(complex_step(lambda c, s=step, x=at: s.oracle(x, c), bound))
        size = max(1.0, np.abs(J).max()) * max(size, np.abs(y).max(), np.abs(dense).max(), 1.0)
        steps.append(step)
    if size > 1e4:  # ill-conditioned compositions judge nothing
        return
    f = pb.chain(*(step.given for step in steps))
    tolerance = 60 * depth * size * np.finfo(dtype).eps

    def near(actual: Any, desired: Array, shape: tuple[int, ...]) -> None:
        assert np.shape(actual) == shape
        assert np.asarray(actual).dtype == dtype
        np.testing.assert_allclose(actual, desired.reshape(shape), rtol=tolerance, atol=tolerance)

    t, g = rng.normal(size=x.shape).astype(dtype), rng.normal(size=y.shape).astype(dtype)
    near(f(x), y, y.shape)
    near(f.jvp(x, t), dense @ t.ravel(), y.shape)
    near(f.vjp(x, g), g.ravel() @ dense, x.shape)
    value, pulled = f.value_and_vjp(x, g)
    near(value, y, y.shape)
    near(pulled, g.ravel() @ dense, x.shape)
    first, *others = f.vjp(x, g, wrt="all")
    near(first, g.ravel() @ dense, x.shape)
    bounds = [step.bound for step in steps if step.bound is not None]
    for cotangent, bound, D in zip(others, bounds, by_bound, strict=True):
        near(cotangent, g.ravel() @ D, bound.shape)
    J = f.jacobian(x)
    near(J.todense(), dense, dense.shape)
    near(J @ t, dense @ t.ravel(), y.shape)
    near(g @ J, g.ravel() @ dense, x.shape)
    # <J v, w> = <v, J^T w>.
    pushed, back = np.float64(J @ t), np.float64(g @ J)
    near(dtype.type(np.sum(pushed * g)), np.sum(back * t), ())


# --- memory ---------------------------------------------------------------------------------------


def test_jacobians_of_a_million_take_memory_for_a_few_vectors() -> None:
    n = 1_000_000
    x, w = np.linspace(0.5, 1.5, n), np.linspace(-1, 1, n)
    square = x.reshape(1000, 1000)
    chains = [
        (pb.chain(pb.square, (pb.multiply, pb.arg, w), pb.tanh), x),
        (pb.chain(pb.exp, pb.softmax, pb.log), x),
        (pb.chain(pb.sin, pb.logsumexp), x),
        (pb.chain(pb.log_softmax, (pb.variance, pb.arg, {"axis": 0})), square),
        (pb.chain((pb.layer_norm, pb.arg, {"axis": (0, 1)}), pb.relu), square),
        (pb.chain((pb.multiply, pb.arg, w), (pb.sum, pb.arg, {"keepdims": True})), x),
        (pb.chain((pb.matmul, pb.arg, square)), square),
    ]
    for f, at in chains:
        tracemalloc.start()
        J = f.jacobian(at)
        J @ at
        np.ones(J.output_shape) @ J
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert J.shape[1] == n
        assert J.nbytes <= 10 * 8 * n, f
        assert peak <= 30 * 8 * n, f
        if J.shape[0] == n:
            with pytest.raises(MemoryError, match="force=True"):
                J.todense()

"""Long expressions of Jacobians: work and memory grow with their length, and no method recurses."""

from __future__ import annotations

import copy
import gc
import inspect
import operator
import pickle
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import pullback as pb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pullback.jacobians import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Identity,
    Jacobian,
    Kronecker,
    Outer,
    Permutation,
    Product,
    Reshape,
    Sum,
    Zero,
    algebra,
)
from test_jacobians_algebra import Reversal, agree

N = 6
RNG = np.random.default_rng(0)
V = RNG.standard_normal((N, 3))


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape) / 3


LEAVES: dict[str, Callable[[], Jacobian]] = {
    "Diagonal": lambda: Diagonal(normal(N)),
    "Dense": lambda: Dense(normal(N, N)),
    "Outer": lambda: Outer(normal(N), normal(N)),
    "BlockDiagonal": lambda: BlockDiagonal(normal(2, 3, 3), (N,), (N,)),
    "Kronecker": lambda: Kronecker(normal(2, 2), normal(3, 3), input_shape=(N,), output_shape=(N,)),
    "Product": lambda: Product(Dense(normal(N, 2)), Dense(normal(2, N))),
}


def of(kind: str, n: int) -> list[Jacobian]:
    """Return so many of a kind, or of all kinds in turn."""
    kinds = list(LEAVES) if kind == "all kinds" else [kind]
    return [LEAVES[kinds[i % len(kinds)]]() for i in range(n)]


def from_left(op: Any, parts: Sequence[Any]) -> Any:
    return reduce(op, parts)


def from_right(op: Any, parts: Sequence[Any]) -> Any:
    return reduce(lambda J, part: op(part, J), reversed(parts))


def in_pairs(op: Any, parts: Sequence[Any]) -> Any:
    while len(parts) > 1:
        pairs = [op(*parts[i : i + 2]) for i in range(0, len(parts) - 1, 2)]
        parts = [*pairs, *parts[2 * len(pairs) :]]
    return parts[0]


FOLDS = {"left": from_left, "right": from_right, "pairs": in_pairs}


def recurrence(n: int) -> Any:
    """Return the n-th of J_t = A_t J_(t-1) + B_t, each nested in the next one."""
    A, B = of("Dense", n), of("Outer", n)
    return reduce(lambda J, t: A[t] @ J + B[t], range(n), LEAVES["Diagonal"]())


def mixed_product(n: int) -> Any:
    kinds = ("Diagonal", "Dense", "Kronecker")
    return from_left(operator.matmul, [LEAVES[kinds[i % 3]]() for i in range(n)])


def grown_at_both_ends(n: int) -> Any:
    return reduce(lambda J, part: part @ J @ part, of("Dense", n // 2), LEAVES["Dense"]())


def merged_at_both_ends(n: int) -> Any:
    inner = from_left(operator.matmul, of("Dense", n // 2))
    return reduce(lambda J, part: part @ J @ part, of("Diagonal", n // 2), inner)


def transposed_at_each_step(n: int) -> Any:
    return reduce(lambda J, part: (part @ J).T, of("Dense", n), LEAVES["Dense"]())


def sum_of_softmax(n: int) -> Any:
    return from_left(operator.add, [pb.softmax.jacobian(normal(N)) for _ in range(n)])


def elementwise_chain(n: int) -> Any:
    steps = [pb.tanh, (pb.multiply, pb.arg, normal(N))] * n
    return pb.chain(*steps).jacobian(normal(N))


def mixed_chain(n: int) -> Any:
    steps = [(pb.matmul, pb.arg, normal(N, N)), pb.tanh, pb.layer_norm] * (n // 3)
    return pb.chain(*steps).jacobian(normal(N))


FOLDED = (
    ("sum", operator.add, "Outer", "left"),
    ("sum", operator.add, "Outer", "right"),
    ("sum", operator.add, "Kronecker", "left"),
    ("sum", operator.add, "all kinds", "left"),
    ("sum", operator.add, "all kinds", "right"),
    ("sum", operator.add, "all kinds", "pairs"),
    ("difference", operator.sub, "all kinds", "left"),
    ("product", operator.matmul, "Dense", "left"),
    ("product", operator.matmul, "Dense", "right"),
    ("product", operator.matmul, "Dense", "pairs"),
    ("product", operator.matmul, "BlockDiagonal", "right"),
)
EXPRESSIONS: dict[str, Callable[[int], Any]] = {
    **{
        f"{name} of {kind}, {fold}": lambda n, op=op, kind=kind, fold=fold: FOLDS[fold](
            op, of(kind, n)
        )
        for name, op, kind, fold in FOLDED
    },
    "dense after many": lambda n: from_left(operator.add, of("Outer", n)) + LEAVES["Dense"](),
    "outer after many": lambda n: from_right(operator.matmul, of("Dense", n)) @ LEAVES["Outer"](),
    "outer before many": lambda n: LEAVES["Outer"]() @ from_left(operator.matmul, of("Dense", n)),
    "made as a sum": lambda n: Sum(*of("Outer", n)),
    "made as a product": lambda n: Product(*of("Diagonal", n)),
    "made as sums of sums": lambda n: from_left(Sum, of("Outer", n)),
    "made as products of products": lambda n: from_left(Product, of("Dense", n)),
    **{
        make.__name__: make
        for make in (
            recurrence,
            mixed_product,
            grown_at_both_ends,
            merged_at_both_ends,
            transposed_at_each_step,
            sum_of_softmax,
            elementwise_chain,
            mixed_chain,
        )
    },
}
METHODS: dict[str, Callable[[Any], Any]] = {
    "J @ v": lambda J: J @ V[:, 0],
    "v @ J": lambda J: V[:, 0] @ J,
    "matmat": lambda J: J.matmat(V),
    "rmatmat": lambda J: J.rmatmat(V),
    "jvp": lambda J: J.jvp(V.T),
    "vjp": lambda J: J.vjp(V.T),
    "todense": lambda J: J.todense(),
    "tensor": lambda J: J.tensor("denominator"),
    "T.todense": lambda J: J.T.todense(),
    "tosparse": lambda J: J.tosparse(),
    "diagonal": lambda J: J.diagonal(),
    "flops": lambda J: (J.flops(), J.flops(7), J.T.flops(7)),
    "description": lambda J: (J.nbytes, J.dtype, J.shape, J.T.nbytes),
    "repr": repr,
    "pickle": lambda J: pickle.loads(pickle.dumps(J)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "multiple": lambda J: 0.5 * J,
    "negative": operator.neg,
    "+": lambda J: J + Dense(np.eye(N)),
    "@": lambda J: Diagonal(np.ones(N)) @ J @ Diagonal(np.ones(N)),
    "T.T": lambda J: J.T.T,
}


def calls(function: Callable[[], Any]) -> tuple[int, Any]:
    """Return how many functions are called, in Python and by it, and what is returned."""
    count = 0

    def on_event(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # its callbacks would count
    sys.setprofile(on_event)
    try:
        result = function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count, result


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_work_grows_with_the_length(name: str) -> None:
    """Calls, for four times the length, at most five times; a cube would be 64 times."""
    short, long = (calls(lambda n=n: EXPRESSIONS[name](n)) for n in (60, 240))
    assert long[0] < 5 * short[0], "the expression itself"
    for method, function in METHODS.items():
        few, many = (calls(lambda f=function, J=J: f(J))[0] for _, J in (short, long))
        assert many < 5 * few + 100, method


def test_an_operation_takes_the_same_for_any_length() -> None:
    part, outer = LEAVES["Dense"](), LEAVES["Outer"]()
    operations: list[Callable[[Any, Any, Any], Any]] = [
        lambda P, Q, S: P @ part,
        lambda P, Q, S: part @ Q,
        lambda P, Q, S: (P @ part) @ (part @ Q),
        lambda P, Q, S: (P.T, Q.T, S.T),
        lambda P, Q, S: S + outer,
        lambda P, Q, S: outer + S,
        lambda P, Q, S: [(J.dtype, J.nbytes, J.shape) for J in (P, Q, S)],
    ]
    counts = []
    for n in (100, 1000):
        P = from_left(operator.matmul, of("Dense", n))
        Q = from_right(operator.matmul, of("Dense", n))
        S = from_left(operator.add, of("Outer", n))
        counts.append([calls(lambda f=f, J=(P, Q, S): f(*J))[0] for f in operations])
    assert np.subtract(*counts).max() < 20
    assert np.subtract(*counts).min() > -20


@pytest.mark.parametrize("name", [name for name in EXPRESSIONS if "pairs" not in name])
def test_nothing_recurses(name: str) -> None:
    before, depth = sys.getrecursionlimit(), len(inspect.stack(0))
    n = 2500 if name == "product of Dense, left" else 300
    J = EXPRESSIONS[name](n)
    sys.setrecursionlimit(depth + 250)
    try:
        for function in METHODS.values():
            function(J)
    finally:
        sys.setrecursionlimit(before)


def test_a_long_expression_is_shown_in_part() -> None:
    S = Sum(*[Identity((2,))] * 3000)
    lines = repr(S).splitlines()
    assert lines[0] == "<Sum 2x2 float64, operand shape (2,):"
    assert lines[1] == "  <Identity 2x2 float64, operand shape (2,)>"
    assert len(lines) == 1001
    assert lines[-1] == "  ...>"
    assert len(repr(recurrence(2000))) < 10**6
    nested = repr(Sum(Product(S.terms[0], S.terms[0]), S.terms[0]))
    one = "<Identity 2x2 float64, operand shape (2,)>"
    assert nested.splitlines()[1:] == [
        "  <Product 2x2 float64, operand shape (2,):",
        f"    {one}",
        f"    {one}>",
        f"  {one}>",
    ]


@pytest.mark.parametrize(
    "steps",
    [
        lambda J, part: J @ part,
        lambda J, part: part @ J,
        lambda J, part: J + part,
        lambda J, part: part + J,
        lambda J, part: part @ J + part,
    ],
)
def test_memory_of_all_of_them_grows_with_the_length(steps: Any) -> None:
    """All Jacobians of a recurrence are kept, some are asked for products: no copies of parts."""
    part = Product(Dense(np.ones((N, 2))), Dense(np.ones((2, N))))
    peaks = []
    for n in (50, 200):
        gc.collect()
        tracemalloc.start()
        kept = list(accumulate([part] * n, steps))
        for J in kept[:: n // 8]:
            J @ np.zeros(N)
            np.zeros((2, N)) @ J
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0]


def test_shared_parts_are_kept_once() -> None:
    """A Jacobian that contains the previous one twice: 2^200 parts, if they were told apart."""
    J: Any = LEAVES["Dense"]()
    for _ in range(200):
        J = Product(LEAVES["Dense"](), Sum(J, J.T)) + LEAVES["Outer"]()
    assert J.nbytes > 2**200
    assert J.flops() > 2**200
    assert len(pickle.dumps(J)) < 10**6
    assert repr(pickle.loads(pickle.dumps(J))) == repr(J)


# --- the numbers ----------------------------------------------------------------------------------


class Expression(NamedTuple):
    """A Jacobian, its matrix, and a bound of sums of magnitudes, on the way to it as well."""

    J: Any
    dense: Any
    bound: float


SHAPES = ((4,), (2, 2))


def signed(rng: Any, n: int) -> Any:
    """Return a permutation matrix with signs: products of such have no larger elements."""
    return np.eye(n)[rng.permutation(n)] * rng.choice([-1.0, 1.0], n)


def random_leaf(rng: Any, out: Any, into: Any) -> Expression:
    eye, two, other, four = np.eye(4), signed(rng, 2), signed(rng, 2), signed(rng, 4)
    u, v = rng.integers(-1, 2, (2, 4)).astype(float)
    d = rng.choice([-1.0, 1.0], 4)
    shapes = {"input_shape": into, "output_shape": out}
    made: list[tuple[Any, Any]] = [
        (Dense(four, into, out), four),
        (Outer(u.reshape(out), v.reshape(into)), np.outer(u, v)),
        (Kronecker(two, other, **shapes), np.kron(two, other)),
        (Kronecker(2, two, **shapes), np.kron(np.eye(2), two)),
        (Kronecker(two, 2, **shapes), np.kron(two, np.eye(2))),
        (BlockDiagonal(np.stack([two, two]), into, out), np.kron(np.eye(2), two)),
        (BlockDiagonal(four[np.newaxis], into, out), four),
        (Reshape(into, out, float), eye),
        (Product(Dense(four, (4,), out), Dense(four.T, into, (4,))), eye),
    ]
    if out == into:
        made += [(Diagonal(d.reshape(into)), np.diag(d))] * 2
        made += [(Identity(into), eye), (Zero(out, into), 0 * eye)]
    if out == into == (2, 2):
        made.append((Permutation(into, (1, 0), float), eye[[0, 2, 1, 3]]))
    return Expression(*made[rng.integers(len(made))], 4)


def random_expression(rng: Any, n: int, out: Any, into: Any) -> Expression:
    """Return sums, differences and products of n leaves, transposed and scaled here and there."""
    if n == 1:
        return random_leaf(rng, out, into)
    many = int(rng.choice([n - 1, n - 1, n // 2]))
    sizes = (many, n - many) if rng.random() < 0.5 else (n - many, many)
    middle = SHAPES[rng.integers(2)]
    left = random_expression(rng, sizes[0], out, middle)
    right = random_expression(rng, sizes[1], middle, into)
    if rng.random() < 0.1:
        left = Expression(left.J.T.T, left.dense, left.bound)
    if rng.random() < 0.5 and left.bound * right.bound < 2**40:
        made = left.J @ right.J, left.dense @ right.dense, left.bound * right.bound
    else:
        left_J = left.J @ Reshape(into, middle, float)
        right_J = Reshape(middle, out, float) @ right.J
        sign = int(rng.choice([-1, 1]))
        made = (
            left_J + right_J if sign > 0 else left_J - right_J,
            left.dense + sign * right.dense,
            left.bound + right.bound,
        )
    return Expression(*made)


@given(seed=st.integers(0, 2**32), n=st.integers(1, 200))
@settings(deadline=None, max_examples=20)
def test_random_expressions_are_the_dense_ones(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    J, dense, _ = random_expression(rng, n, *(SHAPES[i] for i in rng.integers(2, size=2)))
    agree(J, dense, np.dtype(float))
    agree(J.T, dense.T, np.dtype(float))
    agree(2.0 * J, 2 * dense, np.dtype(float))
    for one in (J, J.T):
        np.testing.assert_array_equal(one.diagonal(), dense.diagonal())
    restored = pickle.loads(pickle.dumps(J))
    assert repr(restored) == repr(J)
    np.testing.assert_array_equal(restored.todense(), dense)


# --- as if every pair were tried ------------------------------------------------------------------


def parts_of(J: Any, kind: Any) -> list[Any]:
    return list(J._parts) if isinstance(J, kind) else [J]


def sum_by_trying(terms: Sequence[Any]) -> list[Any]:
    """Return a sum's terms: each new one is merged with the first that it can be, and again."""
    merged: list[Any] = []
    for term in chain.from_iterable(parts_of(J, Sum) for J in terms):
        while True:
            for i, other in enumerate(merged):
                joined = algebra.SUMS.apply(other, term)
                if joined is None:
                    joined = algebra.SUMS.apply(term, other)
                if joined is not None:
                    del merged[i]
                    term = joined
                    break
            else:
                break
        merged.append(term)
    return merged


def product_by_trying(factors: Sequence[Any]) -> list[Any]:
    """Return a product's factors: each new one is merged with the last, as far as that goes."""
    merged: list[Any] = []
    for factor in chain.from_iterable(parts_of(J, Product) for J in factors):
        merged.append(factor)
        while len(merged) > 1:
            joined = algebra.PRODUCTS.apply(*merged[-2:])
            if joined is None:
                break
            merged[-2:] = [joined]
    return merged


def random_normal_leaf(rng: Any) -> Any:
    """Return a leaf with numbers of which sums depend on their order."""
    kinds = [
        lambda: Diagonal(rng.standard_normal(4)),
        lambda: Outer(rng.standard_normal(4), rng.standard_normal(4)),
        lambda: BlockDiagonal(rng.standard_normal((2, 2, 2)), (4,), (4,)),
        lambda: BlockDiagonal(rng.standard_normal((1, 4, 4)), (4,), (4,)),
        lambda: Product(*map(Dense, rng.standard_normal((2, 4, 4)))),
        lambda: Identity((4,), rng.choice([np.float32, np.float64])),
        lambda: Dense(rng.standard_normal((4, 4))),
        lambda: Outer(rng.standard_normal(4), rng.standard_normal(4).astype(np.float32)),
        *(
            lambda own=own: Kronecker(*own, input_shape=(4,), output_shape=(4,))
            for two in [rng.standard_normal((2, 2))]
            for own in ((two, two), (2, two), (two, 2))
        ),
    ]
    # A Dense swallows most others, and is seldom for that.
    return kinds[rng.integers(6) if rng.random() < 0.8 else rng.integers(len(kinds))]()


@given(seed=st.integers(0, 2**32), n=st.integers(1, 60), kind=st.sampled_from([Sum, Product]))
@settings(deadline=None, max_examples=150)
def test_order_and_bits_are_those_of_trying_every_pair(seed: int, n: int, kind: Any) -> None:
    """From the left for any length; from the right, and in any other way, for up to 32."""
    rng = np.random.default_rng(seed)
    op, trying = {
        Sum: (operator.add, sum_by_trying),
        Product: (operator.matmul, product_by_trying),
    }[kind]

    def check(J: Any, expected: list[Any]) -> None:
        parts = parts_of(J, kind)
        assert [*map(type, parts)] == [*map(type, expected)]
        for one, other in zip(parts, expected, strict=True):
            assert one.todense().tobytes() == other.todense().tobytes()
        assert J.dtype == np.result_type(*{part.dtype for part in expected})
        assert J.nbytes == sum(part.nbytes for part in expected)

    leaves = [random_normal_leaf(rng) for _ in range(n)]
    merged = trying(leaves[:1])
    for part in leaves[1:]:
        merged = trying([*merged, part])
    J = from_left(op, leaves)
    check(J, merged)
    merged = trying(leaves[-1:])
    for part in reversed(leaves[:32]):
        merged = trying([part, *merged])
    check(from_right(op, [*leaves[:32], leaves[-1]]), merged)
    check(kind(*leaves), [part for leaf in leaves for part in parts_of(leaf, kind)])


def test_a_kind_of_ones_own_in_long_expressions() -> None:
    J, flip = Reversal(), np.eye(3, dtype=np.float32)[::-1]
    agree(from_right(operator.add, [J] * 100), 100 * flip, np.dtype(np.float32))
    agree(from_left(operator.matmul, [J] * 101), flip, np.dtype(np.float32))

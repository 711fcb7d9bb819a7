"""What all products have in common, on both backends: stacks of cotangents, numbers, messages."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pullback as pb
import pytest
from matrices import OUT_LAYOUTS, GuardedOut, integers, normal
from oracles import assert_same_bits
from protocol import backends, dtypes, each
from pullback.tables.products import PRODUCTS

# Shapes of operands, by product: vectors, batches, batches that broadcast or are empty.
SHAPES: list[tuple[str, tuple[Any, ...]]] = [
    ("matmul", ((3,), (3,))),
    ("matmul", ((3,), (3, 4))),
    ("matmul", ((2, 3), (3,))),
    ("matmul", ((2, 3), (3, 4))),
    ("matmul", ((5, 2, 3), (3, 4))),
    ("matmul", ((2, 3), (5, 3, 4))),
    ("matmul", ((6, 1, 2, 3), (5, 3, 4))),
    ("matmul", ((0, 2, 3), (3, 4))),
    ("matmul", ((70, 33), (33, 40))),
    ("linear", ((3,), (3, 4), (4,))),
    ("linear", ((5, 3), (3, 4), (4,))),
    ("linear", ((2, 5, 3), (3, 4), None)),
    ("linear", ((2, 0, 3), (3, 4), (4,))),
    ("linear", ((70, 33), (33, 40), (40,))),
    ("quadratic_form", ((4,), (4, 4))),
    ("quadratic_form", ((3, 4), (4, 4))),
    ("quadratic_form", ((2, 3, 4), (4, 4))),
    ("quadratic_form", ((0, 4), (4, 4))),
    ("quadratic_form", ((9, 65), (65, 65))),
    ("bilinear_form", ((3,), (3, 4), (4,))),
    ("bilinear_form", ((5, 3), (3, 4), (5, 4))),
    ("bilinear_form", ((3,), (3, 4), (5, 4))),
    ("bilinear_form", ((6, 1, 3), (3, 4), (5, 4))),
    ("bilinear_form", ((0, 3), (3, 4), (4,))),
    ("bilinear_form", ((9, 65), (65, 33), (9, 33))),
]
cases = each("name, shapes", SHAPES, by=lambda case: case[0])
STACKS = [(1,), (3,), (2, 3), (0,)]


def drawn(shapes: Any, dtype: Any, make: Any = integers, seed: int = 0) -> list[Any]:
    """Return arrays of these shapes; of small integers, so that sums are exact."""
    rng = np.random.default_rng(seed)
    return [None if shape is None else make(rng, shape, dtype) for shape in shapes]


def activations(primitives: Any, name: str) -> list[dict[str, Any]]:
    if name != "linear":
        return [{}]
    return [{}, {"activation": primitives.relu}]


# --- stacks of cotangents -------------------------------------------------------------------------


@backends
@dtypes
@cases
def test_stacks_of_cotangents(name: str, shapes: Any, dtype: Any, primitives: Any) -> None:
    """Each has the bits that it has alone; twins' only where sums are exact."""
    f = getattr(primitives, name)
    make = normal if primitives is pb and pb.backend() == "native" else integers
    operands = drawn(shapes, dtype, make)
    for options, stack in itertools.product(activations(primitives, name), STACKS):
        shape = np.shape(f(*operands, **options))
        (g,) = drawn([(*stack, *shape)], dtype, make, seed=1)
        cotangents = f.vjp(*operands, g, **options)
        for cotangent, operand in zip(cotangents, operands, strict=True):
            if operand is not None:
                assert cotangent.shape == stack + operand.shape
                assert cotangent.dtype == dtype
        for index in np.ndindex(stack):
            for one, all_of_them in zip(
                f.vjp(*operands, g[index], **options), cotangents, strict=True
            ):
                if one is not None:
                    assert_same_bits(all_of_them[index] + 0, one + 0)


@backends
@dtypes
@cases
@each("layout", OUT_LAYOUTS)
def test_stacks_with_wrt_and_out(
    name: str, shapes: Any, layout: str, dtype: Any, primitives: Any
) -> None:
    f = getattr(primitives, name)
    operands = drawn(shapes, dtype)
    (g,) = drawn([(2, 3, *np.shape(f(*operands)))], dtype, seed=1)
    before = g.tobytes()
    exact = f.vjp(*operands, g)
    names = tuple(PRODUCTS[name].operands)
    for wrt in ((0, 1), (names[1],), (names[1], 0)):
        places = [i if isinstance(i, int) else names.index(i) for i in wrt]
        outs = [GuardedOut((2, 3, *shapes[i]), dtype, layout) for i in places]
        results = f.vjp(*operands, g, wrt=wrt, out=tuple(o.array for o in outs))
        for i, o, result in zip(places, outs, results, strict=True):
            assert result is o.array
            o.check(exact[i])
    alone = np.full((2, 3, *shapes[1]), 7, dtype)
    assert f.vjp(*operands, g, wrt=1, out=alone) is alone
    np.testing.assert_array_equal(alone, exact[1])
    odd = g.transpose(1, 0, *range(2, g.ndim)).copy().transpose(1, 0, *range(2, g.ndim))
    for one, other in zip(f.vjp(*operands, odd), exact, strict=True):
        np.testing.assert_array_equal(one, other)
    assert g.tobytes() == before


# --- numbers --------------------------------------------------------------------------------------


@backends
@dtypes
@cases
@each("number", [3, 0.5, -2.0])
def test_numbers_fill(name: str, shapes: Any, dtype: Any, number: Any, primitives: Any) -> None:
    f = getattr(primitives, name)
    operands = drawn(shapes, dtype)
    for options in activations(primitives, name):
        filled = np.full(np.shape(f(*operands)), number, dtype)
        pairs = zip(
            f.vjp(*operands, number, **options), f.vjp(*operands, filled, **options), strict=True
        )
        for one, other in pairs:
            assert (one is None) == (other is None)
            if one is not None:
                assert one.dtype == dtype
                np.testing.assert_array_equal(one, other)
        for k, shape in enumerate(shapes):
            if shape is None:
                continue
            few: list[Any] = [None] * len(shapes)
            few[k] = number
            moved = f.jvp(*operands, *few, **options)
            few[k] = np.full(shape, number, dtype)
            np.testing.assert_array_equal(moved, f.jvp(*operands, *few, **options))
            assert moved.dtype == dtype


# --- messages -------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize(
    ("name", "shapes", "why"),
    [
        ("matmul", ((2, 3), (4, 5)), "k is 3 in A, and 4 in B"),
        ("matmul", ((2, 3), (1, 5)), "k is 3 in A, and 1 in B"),
        ("matmul", ((), (3,)), "A needs (..., m?, k)"),
        ("matmul", ((3,), ()), "B needs (..., k, n?)"),
        ("matmul", ((2, 2, 3), (3, 3, 4)), "the batches do not broadcast"),
        ("linear", ((2, 3), (1, 3, 4), (4,)), "W needs (k, n)"),
        ("linear", ((2, 3), (3, 4), (5,)), "n is 4 in W, and 5 in b"),
        ("quadratic_form", ((3,), (3, 4)), "n is 3 in x, and 4 in A"),
        ("quadratic_form", ((), (1, 1)), "x needs (..., n)"),
        ("bilinear_form", ((2, 3), (3, 4), (3, 4)), "the batches do not broadcast"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(name: str, shapes: Any, why: str, primitives: Any) -> None:
    f, operands = getattr(primitives, name), [np.ones(shape) for shape in shapes]
    listed = ", ".join(
        f"{operand} has shape {shape}"
        for operand, shape in zip(PRODUCTS[name].operands, shapes, strict=True)
    )
    for method, more in (("", ()), (".vjp", (1.0,)), (".jvp", operands), (".jacobian", ())):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  judged below, for its parentheses
            (getattr(f, method[1:]) if method else f)(*operands, *more)
        assert str(caught.value) == f"{name}{method}: {listed}: {why}"


@backends
@cases
def test_cotangents_and_tangents_that_do_not_fit(name: str, shapes: Any, primitives: Any) -> None:
    """Nothing is broadcast; NumPy's scalars and arrays without axes are no Python numbers."""
    f, row = getattr(primitives, name), PRODUCTS[name]
    operands = drawn(shapes, float)
    shape = np.shape(f(*operands))
    wrong: list[Any] = [(*shape, 1), (*shape[:-1], 7)] if shape else []
    if len(shape) > 1:
        wrong += [shape[1:]] if shape[0] != 1 else []
    given = [np.ones(s) for s in wrong] + ([np.ones(()), np.float64(1)] if shape else [])
    for g in given:
        with pytest.raises(ValueError, match=f"^{name}.vjp: {row.cotangent} has shape") as caught:
            f.vjp(*operands, g)
        assert f"has shape {np.shape(g)}, the result {shape};" in str(caught.value)
    for k, (operand, own) in enumerate(zip(row.operands, shapes, strict=True)):
        if own is None:
            continue
        for bad in ((*own, 1), own[1:], (1, *own)):
            tangents: list[Any] = [None] * len(shapes)
            tangents[k] = np.ones(bad)
            with pytest.raises(ValueError, match=f"^{name}.jvp: t{operand} has shape") as caught:
                f.jvp(*operands, *tangents)
            assert f"has shape {bad}, {operand} has {own}" in str(caught.value)


@backends
@cases
def test_operands_that_are_none(name: str, shapes: Any, primitives: Any) -> None:
    """Only one that may be left away may be."""
    f, row = getattr(primitives, name), PRODUCTS[name]
    for k, operand in enumerate(row.operands):
        operands = drawn(shapes, float)
        operands = (*operands[:k], None, *operands[k + 1 :])
        nothing = [None] * len(shapes)
        if operand == row.optional:
            assert not f.jvp(*operands, *nothing).any()
            continue
        for tangents in (nothing, [None if shape is None else 0.5 for shape in shapes]):
            with pytest.raises(TypeError, match=f"^{name}.jvp: argument {operand} must be numbers"):
                f.jvp(*operands, *tangents)

"""The public quadratic and bilinear forms: values, derivatives, batches, outputs, errors."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pullback as pb
import pytest
from matrices import (
    LAYOUTS,
    OUT_LAYOUTS,
    GuardedOut,
    assert_within,
    integers,
    normal,
    wide,
)
from oracles import assert_same_bits
from protocol import dtypes
from pullback import bilinear_form, quadratic_form
from pullback.jacobians import Kronecker

LENGTHS = (0, 1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 64, 65, 129)
LEADS: list[tuple[int, ...]] = [(), (1,), (5,), (2, 3), (0,), (3, 0), (33,)]
PAIRS = [  # batches of u and of v
    ((), ()),
    ((5,), (5,)),
    ((5,), ()),
    ((), (5,)),
    ((5, 1), (3,)),
    ((3,), (5, 1)),
    ((1,), (4,)),
    ((2, 3), (3,)),
    ((2, 1, 3), (4, 1)),
    ((0,), ()),
    ((1,), (0,)),
    ((0, 1), (2,)),
    ((1, 1), ()),
]
pairs = pytest.mark.parametrize(("a", "b"), PAIRS, ids=str)


def of_x(shape: tuple[int, ...], dtype: Any, make: Any = integers, seed: int = 0) -> Any:
    """Return x, A and a cotangent, of small integers by default, so that sums are exact."""
    rng = np.random.default_rng(seed)
    n = shape[-1]
    return tuple(make(rng, s, dtype) for s in (shape, (n, n), shape[:-1]))


def of_uv(
    a: tuple[int, ...],
    b: tuple[int, ...],
    m: int,
    n: int,
    dtype: Any,
    make: Any = integers,
    seed: int = 0,
) -> Any:
    """Return u, X, v and a cotangent."""
    rng = np.random.default_rng(seed)
    batch = np.broadcast_shapes(a, b)
    return tuple(make(rng, s, dtype) for s in ((*a, m), (m, n), (*b, n), batch))


def quadratic(x: Any, A: Any, g: Any) -> list[Any]:
    """Return the form and the cotangents, term by term; of magnitudes where all are positive."""
    return [
        np.einsum("...i,ij,...j", x, A, x),
        g[..., None] * (np.einsum("ij,...j", A, x) + np.einsum("ji,...j", A, x)),
        np.einsum("b,bi,bj->ij", g.reshape(-1), *(x.reshape(g.size, x.shape[-1]),) * 2),
    ]


def bilinear(u: Any, X: Any, v: Any, g: Any) -> list[Any]:
    """Return the form and the cotangents, expanded and then summed."""
    u_, v_ = (np.broadcast_to(x, (*g.shape, x.shape[-1])) for x in (u, v))
    full = (
        np.einsum("...,ij,...j->...i", g, X, v_),
        np.einsum(
            "b,bi,bj->ij", g.reshape(-1), *(a.reshape(g.size, a.shape[-1]) for a in (u_, v_))
        ),
        np.einsum("...,ij,...i->...j", g, X, u_),
    )

    def summed(terms: Any, shape: tuple[int, ...]) -> Any:
        lacking = terms.ndim - len(shape)
        one = tuple(i + lacking for i, n in enumerate(shape) if n != terms.shape[i + lacking])
        return terms.sum(axis=(*range(lacking), *one)).reshape(shape)

    value = np.einsum("...i,ij,...j", u_, X, v_)
    return [value, summed(full[0], u.shape), full[1], summed(full[2], v.shape)]


def assert_all(actual: Any, oracle: Any, arguments: Any, terms: Any) -> None:
    """Fail unless the form and its cotangents err by no more than sums of `terms` products may."""
    exact, magnitudes = oracle(*wide(*arguments)), oracle(*map(np.abs, wide(*arguments)))
    for result, value, magnitude, count in zip(actual, exact, magnitudes, terms, strict=True):
        assert_within(result, value, magnitude, count)


# --- values and derivatives -----------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("lead", LEADS, ids=str)
def test_quadratic_form(lead: tuple[int, ...], dtype: np.dtype) -> None:
    count = int(np.prod(lead, dtype=int))
    for n in LENGTHS:
        x, A, g = of_x((*lead, n), dtype, normal)
        value = quadratic_form(x, A)
        assert value.dtype == dtype
        actual = (value, *quadratic_form.vjp(x, A, g))
        # Two sums in a row; two sums, their sum and a factor; a factor and a sum.
        assert_all(actual, quadratic, (x, A, g), (2 * n, n + 2, count + 1))


@dtypes
@pairs
def test_bilinear_form(a: tuple[int, ...], b: tuple[int, ...], dtype: np.dtype) -> None:
    count = int(np.prod(np.broadcast_shapes(a, b), dtype=int))
    for m, n in (*zip(LENGTHS, LENGTHS[::-1], strict=True), (5, 4), (40, 33)):
        arguments = u, X, v, g = of_uv(a, b, m, n, dtype, normal)
        value = bilinear_form(u, X, v)
        assert value.dtype == dtype
        actual = (value, *bilinear_form.vjp(u, X, v, g))
        # Sums over the repetitions may come before or after the products.
        terms = (m + n, n + count + 1, 2 * count + 1, m + count + 1)
        assert_all(actual, bilinear, arguments, terms)


@dtypes
def test_integers_are_exact(dtype: np.dtype) -> None:
    for lead, n in itertools.product(LEADS, (1, 4, 9, 33)):
        x, A, g = of_x((*lead, n), dtype)
        exact = quadratic(x, A, g)
        for one, other in zip(
            (quadratic_form(x, A), *quadratic_form.vjp(x, A, g)), exact, strict=True
        ):
            np.testing.assert_array_equal(one, other)
        tx, tA, _ = of_x((*lead, n), dtype, seed=1)
        tangent = quadratic(x, tA, g)[0] + np.sum(tx * (x @ (A + A.T)), axis=-1)
        np.testing.assert_array_equal(quadratic_form.jvp(x, A, tx, tA), tangent)
    for (a, b), (m, n) in itertools.product(PAIRS, ((1, 1), (4, 9), (33, 5))):
        u, X, v, g = of_uv(a, b, m, n, dtype)
        exact = bilinear(u, X, v, g)
        results = (bilinear_form(u, X, v), *bilinear_form.vjp(u, X, v, g))
        for one, other in zip(results, exact, strict=True):
            np.testing.assert_array_equal(one, other)
        tu, tX, tv, _ = of_uv(a, b, m, n, dtype, seed=1)
        terms = ((tu, X, v), (u, tX, v), (u, X, tv))
        tangent = sum(bilinear(*term, g)[0] for term in terms)
        np.testing.assert_array_equal(bilinear_form.jvp(u, X, v, tu, tX, tv), tangent)


@dtypes
def test_value_and_grad(dtype: np.dtype) -> None:
    for n in LENGTHS:
        x, A, _ = of_x((n,), dtype, normal)
        value, gx = quadratic_form.value_and_grad(x, A)
        assert type(value) is dtype.type
        assert gx.shape == (n,)
        value_too, (gA, gx_too) = quadratic_form.value_and_grad(x, A, wrt=(1, 0))
        assert value_too == value
        assert_same_bits(gx_too, gx)
        one = np.ones((), dtype)
        assert_all((value, gx, gA), quadratic, (x, A, one), (2 * n, n + 2, 2))
        m = LENGTHS[::-1][LENGTHS.index(n)]
        arguments = u, X, v, _ = (*of_uv((), (), m, n, dtype, normal)[:3], one)
        value, gradients = bilinear_form.value_and_grad(u, X, v)
        assert type(value) is dtype.type
        assert_all((value, *gradients), bilinear, arguments, (m + n, n + 2, 3, m + 2))
        for wrt in (0, 1, 2):
            alone = bilinear_form.value_and_grad(u, X, v, wrt=wrt)
            assert alone[0] == value
            assert_same_bits(alone[1], gradients[wrt])


@dtypes
def test_jacobians(dtype: np.dtype) -> None:
    x, A, _ = of_x((4,), dtype)
    by_x, by_A = quadratic_form.jacobian(x, A)
    for J, gradient, operand in zip(
        (by_x, by_A), quadratic_form.vjp(x, A, dtype.type(1)), (x, A), strict=True
    ):
        assert isinstance(J, Kronecker)
        assert J.dtype == dtype
        assert J.output_shape == ()
        assert J.input_shape == operand.shape
        assert J.shape == (1, operand.size)
        np.testing.assert_array_equal(J.todense(), gradient.reshape(1, -1))
        np.testing.assert_array_equal(J.tensor(), gradient)
        np.testing.assert_array_equal(3.0 @ J, 3 * gradient)
        assert J @ operand == np.sum(gradient * operand)
    u, X, v, _ = of_uv((), (), 3, 5, dtype)
    jacobians = bilinear_form.jacobian(u, X, v)
    gradients = bilinear_form.vjp(u, X, v, dtype.type(1))
    for J, gradient in zip(jacobians, gradients, strict=True):
        np.testing.assert_array_equal(J.tensor(), gradient)
        assert J.nbytes <= 8 * dtype.itemsize
    before = jacobians[1].todense()
    u[:] = v[:] = 0
    np.testing.assert_array_equal(jacobians[1].todense(), before)


@dtypes
@pytest.mark.parametrize(("bu", "bv"), [((2, 3), (2, 3)), ((2, 1), (3,)), ((), (4,)), ((0,), ())])
def test_jacobians_of_batches(bu: Any, bv: Any, dtype: np.dtype) -> None:
    """Every row of a batch's Jacobian is a cotangent."""
    u, X, v, g = of_uv(bu, bv, 3, 5, dtype)
    x, A, gx = of_x((*bu, 4), dtype)
    for jacobians, cotangents, at in (
        (bilinear_form.jacobian(u, X, v), bilinear_form.vjp, (u, X, v)),
        (quadratic_form.jacobian(x, A), quadratic_form.vjp, (x, A)),
    ):
        shape = g.shape if len(at) == 3 else gx.shape
        for unit in np.eye(g.size if len(at) == 3 else gx.size, dtype=dtype):
            G = unit.reshape(shape)
            for J, cotangent, operand in zip(jacobians, cotangents(*at, G), at, strict=True):
                assert isinstance(J, Kronecker)
                assert J.dtype == dtype
                assert J.input_shape == operand.shape
                np.testing.assert_array_equal(G @ J, cotangent)
        for J, operand in zip(jacobians, at, strict=True):
            assert (J @ operand).shape == shape
            assert J.nbytes <= 2 * 8 * max(1, np.prod(shape, dtype=int)) * dtype.itemsize


def test_nan_comes_through_and_nothing_warns() -> None:
    x, A = np.array([[1.0, 2.0], [np.nan, 0.0], [np.inf, 1.0]]), np.array([[1.0, -1.0], [0.0, 1.0]])
    with np.errstate(all="raise"):
        value = quadratic_form(x, A)
        gx, gA = quadratic_form.vjp(x, A, np.ones(3))
        bilinear_form.vjp(x, A, x, np.ones(3))
        quadratic_form.jvp(x, A, x, A)
        assert quadratic_form.value_and_grad(np.full(2, 1e300), A)[0] == np.inf
    assert value[0] == 3
    assert np.isnan(value[1])
    assert np.isfinite(gx[0]).all()
    assert np.isnan(gx[1]).all()
    assert np.isnan(gA).any()


# --- bits, layouts, outputs -----------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: np.dtype) -> None:
    x, A, g = of_x((6, 9), dtype)
    x, A = LAYOUTS[layout](x), LAYOUTS[layout](A)
    before = [a.tobytes() for a in (x, A, g)]
    for one, other in zip(
        (quadratic_form(x, A), *quadratic_form.vjp(x, A, g)), quadratic(x, A, g), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert [a.tobytes() for a in (x, A, g)] == before
    u, X, v, h = of_uv((5, 1), (3,), 8, 7, dtype)
    u, X, v = (LAYOUTS[layout](a) for a in (u, X, v))
    results = (bilinear_form(u, X, v), *bilinear_form.vjp(u, X, v, h))
    for one, other in zip(results, bilinear(u, X, v, h), strict=True):
        np.testing.assert_array_equal(one, other)


@dtypes
@pytest.mark.parametrize("layout", OUT_LAYOUTS)
def test_out(layout: str, dtype: np.dtype) -> None:
    cases: list[tuple[Any, Any, Any]]
    cases = [(quadratic_form, quadratic, of_x((*lead, 5), dtype)) for lead in LEADS]
    cases += [(bilinear_form, bilinear, of_uv(a, b, 5, 4, dtype)) for a, b in PAIRS]
    for form, oracle, (*operands, g) in cases:
        exact = oracle(*operands, g)
        own = layout if exact[0].ndim else "C"  # a scalar has no layout
        out = GuardedOut(exact[0].shape, dtype, own)
        assert form(*operands, out=out.array) is out.array
        out.check(exact[0])
        out = GuardedOut(exact[0].shape, dtype, own)
        assert form.jvp(*operands, *operands, out=out.array) is out.array
        out.check(len(exact[1:]) * exact[0] if form is bilinear_form else 3 * exact[0])
        for wrt in (tuple(range(len(operands))), (1, 0), (1,)):
            outs = [GuardedOut(operands[i].shape, dtype, layout) for i in wrt]
            results = form.vjp(*operands, g, wrt=wrt, out=tuple(o.array for o in outs))
            for i, o, result in zip(wrt, outs, results, strict=True):
                assert result is o.array
                o.check(exact[1 + i])
            assert_same_bits(form.vjp(*operands, g, wrt=wrt[0]), results[0])


def test_outputs_over_inputs() -> None:
    x, A, g = of_x((6, 6), float)
    _, gx, gA = quadratic(x, A, g)
    for order in ((0, 1), (1, 0)):
        fresh = [x.copy(), A.copy()]
        quadratic_form.vjp(*fresh, g, out=(fresh[order[0]], fresh[order[1]].T))
        np.testing.assert_array_equal(fresh[order[0]], gx)
        np.testing.assert_array_equal(fresh[order[1]].T, gA)
    x = x.copy()
    np.testing.assert_array_equal(
        quadratic_form(x, A, out=x[0]), quadratic(*of_x((6, 6), float))[0]
    )
    u, X, v, h = of_uv((6,), (6,), 6, 6, float)
    exact = bilinear(u, X, v, h)
    bilinear_form.vjp(u, X, v, h, out=(v, u, X))
    for actual, wanted in zip((v, u, X), exact[1:], strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("form", [quadratic_form, bilinear_form], ids=lambda f: f.__name__)
def test_tangents_that_are_none(form: Any) -> None:
    *operands, _ = of_x((3, 4), float) if form is quadratic_form else of_uv((3,), (), 4, 5, float)
    tangents = [x + 1 for x in operands]
    for mask in itertools.product((True, False), repeat=len(operands)):
        given = [t if use else None for t, use in zip(tangents, mask, strict=True)]
        filled = [t if use else 0 * t for t, use in zip(tangents, mask, strict=True)]
        np.testing.assert_array_equal(form.jvp(*operands, *given), form.jvp(*operands, *filled))


# --- errors and identity --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes",
    [((3,), (3, 4)), ((3,), (4, 4)), ((), (1, 1)), ((3,), (3,)), ((3,), (2, 3, 3))],
    ids=str,
)
def test_shape_errors_of_the_quadratic_form(shapes: Any) -> None:
    x, A = map(np.ones, shapes)
    message = rf"x has shape {shapes[0]}, A has shape {shapes[1]}"
    for call in (
        lambda: quadratic_form(x, A),
        lambda: quadratic_form.vjp(x, A, 1.0),
        lambda: quadratic_form.jvp(x, A, x, A),
        lambda: quadratic_form.value_and_grad(x, A),
        lambda: quadratic_form.jacobian(x, A),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  judged below, for its parentheses
            call()
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        (((3,), (4, 5), (5,)), "m is 3 in u, and 4 in X"),
        (((4,), (4, 5), (4,)), "n is 5 in X, and 4 in v"),
        (((), (1, 1), (1,)), "u needs (..., m)"),
        (((4,), (1, 4, 5), (5,)), "X needs (m, n)"),
        (((2, 4), (4, 5), (3, 5)), "the batches do not broadcast"),
    ],
    ids=str,
)
def test_shape_errors_of_the_bilinear_form(shapes: Any, why: str) -> None:
    u, X, v = map(np.ones, shapes)
    for call in (
        lambda: bilinear_form(u, X, v),
        lambda: bilinear_form.vjp(u, X, v, 1.0),
        lambda: bilinear_form.jvp(u, X, v, u, X, v),
        lambda: bilinear_form.value_and_grad(u, X, v),
        lambda: bilinear_form.jacobian(u, X, v),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  judged below, for its parentheses
            call()
        assert f"u has shape {shapes[0]}, X has shape {shapes[1]}" in str(caught.value)
        assert why in str(caught.value)


def test_other_errors() -> None:
    x, A, g = of_x((5, 3), float)
    for call, message in (
        (lambda: quadratic_form.value_and_grad(x, A), "only vectors without a batch"),
        (lambda: bilinear_form.value_and_grad(x[0], A, x), "only vectors without a batch"),
        (
            lambda: quadratic_form.vjp(x, A, g[:4]),
            r"g has shape \(4,\), the result \(5,\); x has",
        ),
        (
            lambda: quadratic_form.vjp(x, A, np.ones(())),
            r"g has shape \(\), the result \(5,\);.* A has",
        ),
        (
            lambda: bilinear_form.vjp(x, A, x, g[:4]),
            r"g has shape \(4,\), the result \(5,\); u has",
        ),
        (lambda: quadratic_form.jvp(x, A, x[0], A), r"tx has shape \(3,\), x has \(5, 3\)"),
        (lambda: quadratic_form.vjp(x, A, g, wrt=2), "wrt must be 'x', 'A', the position"),
        (lambda: bilinear_form.vjp(x, A, x, g, wrt=3), "wrt must be 'u', 'X', 'v', the position"),
        (lambda: quadratic_form(x, A, out=np.zeros(4)), r"out has shape \(4,\), the result \(5,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"^bilinear_form\.vjp: argument v has dtype complex128"):
        bilinear_form.vjp(x, A, x * 1j, g)
    with pytest.raises(TypeError, match=r"^quadratic_form\.vjp: out must be a tuple of 2 arrays"):
        quadratic_form.vjp(x, A, g, out=x)


@dtypes
def test_same_bits_for_any_number_of_threads(dtype: np.dtype) -> None:
    x, A, g = of_x((40, 500), dtype, normal)
    with pb.threads(1):
        expected = (
            quadratic_form(x, A),
            *quadratic_form.vjp(x, A, g),
            *quadratic_form.value_and_grad(x[0], A),
            *bilinear_form.value_and_grad(x[0], A, x[1], wrt=(0, 2))[1],
        )
    for threads in (2, 3, 8):
        with pb.threads(threads):
            results = (
                quadratic_form(x, A),
                *quadratic_form.vjp(x, A, g),
                *quadratic_form.value_and_grad(x[0], A),
                *bilinear_form.value_and_grad(x[0], A, x[1], wrt=(0, 2))[1],
            )
        for actual, bits in zip(results, expected, strict=True):
            assert actual.tobytes() == bits.tobytes()


@pytest.mark.parametrize("form", [quadratic_form, bilinear_form], ids=lambda f: f.__name__)
def test_identity_of_the_object(form: Any) -> None:
    assert form is pb.primitives[form.__name__]
    assert pickle.loads(pickle.dumps(form)) is form
    assert copy.deepcopy(form) is form

"""Arrays of more than 32 axes, where some of NumPy's own functions end, and of up to 64.

Axes of length 1 change no result: every case is computed with and without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pullback as pb
import pytest
from oracles import DTYPES, assert_same_bits
from protocol import Call, backends, calls, dtypes, each, leaves, ordinary
from pullback.jacobians import Broadcast, Permutation, SumTo
from pullback.shapes import broadcast_shapes, with_room
from pullback.tables.reductions import REDUCTIONS
from reduction_oracles import leading

many = each("ndim", [33, 64])

# Takes an array to one of many axes, or leaves it alone.
Enlarge = Callable[[Any], Any]


def identity(array: Any) -> Any:
    return array


def enlarged(ndim: int) -> Enlarge:
    """Return what inserts axes of length 1 behind the first one, up to `ndim`."""

    def enlarge(array: Any) -> Any:
        array = np.asarray(array)
        first, *rest = array.shape
        return array.reshape(first, *(1,) * (ndim - array.ndim), *rest)

    return enlarge


def assert_same(case: Callable[[Enlarge], Any], ndim: int, *, ulp: int = 0) -> None:
    """Fail unless a case gives the same with many axes as with few: in bits, or to so many ULP."""
    large, small = list(leaves(case(enlarged(ndim)))), list(leaves(case(identity)))
    assert len(large) == len(small)
    for one, other in zip(map(np.squeeze, large), map(np.squeeze, small), strict=True):
        if ulp == 0:
            assert_same_bits(one, other)
        else:
            assert one.dtype == other.dtype
            np.testing.assert_array_max_ulp(one, other, ulp)


def draw(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).uniform(0.2, 0.8, shape).astype(dtype)


# --- elementwise ----------------------------------------------------------------------------------


@backends
@many
@calls
def test_elementwise(call: Call, ndim: int, primitives: Any) -> None:
    for dtype in DTYPES:
        given = ordinary(call, dtype, (2, 3, 4))
        f = call.of(primitives)

        def case(enlarge: Enlarge, f: Any = f, given: Any = given) -> Any:
            return f(*map(enlarge, given))

        assert_same(case, ndim)
        large = next(leaves(case(enlarged(ndim))))
        assert large.shape == (2, *(1,) * (ndim - 3), 3, 4)


@backends
@many
@dtypes
@pytest.mark.parametrize("op", ["multiply", "less", "power"])
def test_broadcasting(op: str, dtype: Any, ndim: int, primitives: Any) -> None:
    f = getattr(primitives, op)
    whole = draw((5, 2, 3, 4), dtype)
    for w, x in (
        (draw((2, 3, 4), dtype), draw((4,), dtype, 1)),
        (draw((3, 1), dtype), draw((2, 3, 4), dtype, 1)),
        (draw((2, 1, 1), dtype), draw((2, 1, 4), dtype, 1)),
        (np.asarray(0.5, dtype), draw((2, 3, 4), dtype, 1)),
    ):
        shape = np.broadcast_shapes(w.shape, x.shape)
        g = whole[0, :, : shape[-2], :]

        def case(enlarge: Enlarge, w: Any = w, x: Any = x, g: Any = g) -> Any:
            w, x = (a if a.ndim < 3 else enlarge(a) for a in (w, x))
            shape = np.shape(np.add(w, x))
            cotangent = g.reshape(shape)
            return (
                f(w, x),
                f.derivative(w, x),
                f.value_and_derivative(w, x),
                f.vjp(w, x, cotangent),
                f.jvp(w, x, w, x),
                tuple(J @ a for J, a in zip(f.jacobian(w, x), (w, x), strict=True)),
                tuple(J.vjp(cotangent) for J in f.jacobian(w, x)),
                tuple(J.todense() for J in f.jacobian(w, x)),
                tuple(J.diagonal() for J in f.jacobian(w, x)),
            )

        assert_same(case, ndim)


@backends
@many
def test_stacks_of_cotangents(ndim: int, primitives: Any) -> None:
    w, x, g = draw((3, 1), np.float64), draw((4,), np.float64), draw((5, 3, 4), np.float64)

    def case(enlarge: Enlarge) -> Any:
        return primitives.multiply.vjp(w, x, enlarge(g))

    assert_same(case, ndim)
    for one, of in zip(case(enlarged(ndim)), (w, x), strict=True):
        assert one.shape == (5, *(1,) * (ndim - 3), *of.shape)


# --- reductions -----------------------------------------------------------------------------------


@backends
@many
@dtypes
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, dtype: Any, ndim: int, primitives: Any) -> None:
    f, x = getattr(primitives, name), draw((2, 3, 4), dtype)
    for axis in (None, 0, -1, (0, -1), (-2, -1), (-1, 0)):

        def case(enlarge: Enlarge, axis: Any = axis) -> Any:
            given = leading(name, enlarge(x), enlarge(x))
            tangents = (enlarge(x),) * len(REDUCTIONS[name].operands)
            value = f(*given, axis=axis)
            jacobians = f.jacobian(*given, axis=axis)
            jacobians = jacobians if isinstance(jacobians, tuple) else (jacobians,)
            methods: tuple[Any, ...] = ()
            if not REDUCTIONS[name].is_map:
                methods = (
                    f.grad(*given, axis=axis),
                    f.value_and_grad(*given, axis=axis),
                    f(*given, axis=axis, keepdims=True),
                )
            return (
                value,
                *methods,
                f.vjp(*given, value, axis=axis),
                f.jvp(*given, *tangents, axis=axis),
                tuple(J @ enlarge(x) for J in jacobians),
                tuple(J.vjp(value) for J in jacobians),
                tuple(J.todense() for J in jacobians),
            )

        assert_same(case, ndim)


@backends
@many
def test_every_axis_by_itself(ndim: int, primitives: Any) -> None:
    x = enlarged(ndim)(draw((2, 3, 4), np.float64))
    for axis in range(ndim):
        desired = np.sum(x, axis=axis)
        actual = primitives.sum(x, axis=axis)
        assert actual.shape == desired.shape
        np.testing.assert_allclose(actual, desired, rtol=1e-15)
    reverse = x.transpose(range(ndim)[::-1])
    np.testing.assert_allclose(primitives.sum(reverse, axis=0), np.sum(reverse, axis=0), rtol=1e-15)


# --- products -------------------------------------------------------------------------------------


ULP = 16  # sums of a few positive terms, whose order depends on the shapes


def used(jacobians: tuple[Any, ...], tangents: tuple[Any, ...], g: Any) -> Any:
    """Return all that there is to compute with Jacobians."""
    return tuple(
        (J @ t, J.vjp(g), J.T @ g, J.todense(), J.diagonal(), J.flops(3))
        for J, t in zip(jacobians, tangents, strict=True)
    )


@backends
@many
@dtypes
@pytest.mark.parametrize("batches", [((2,), ()), ((), (2,)), ((2,), (2,)), ((2, 1), (3,))], ids=str)
def test_matmul(
    batches: tuple[tuple[int, ...], tuple[int, ...]], dtype: Any, ndim: int, primitives: Any
) -> None:
    f = primitives.matmul
    A, B = draw((*batches[0], 3, 4), dtype), draw((*batches[1], 4, 5), dtype, 1)
    G = draw((*np.broadcast_shapes(*batches), 3, 5), dtype, 2)

    def case(enlarge: Enlarge) -> Any:
        a, b = (x if x.ndim == 2 else enlarge(x) for x in (A, B))
        if batches == ((2, 1), (3,)):  # one operand keeps few axes
            b = B
        g = G.reshape(np.matmul(a, b).shape)
        return (
            f(a, b),
            f.vjp(a, b, g),
            f.vjp(a, b, g, wrt=1),
            f.jvp(a, b, a, b),
            f.jvp(a, b, None, b),
            used(f.jacobian(a, b), (a, b), g),
        )

    assert_same(case, ndim, ulp=ULP)


@backends
@many
@dtypes
def test_matmul_of_vectors(dtype: Any, ndim: int, primitives: Any) -> None:
    f, v, M = primitives.matmul, draw((4,), dtype), draw((2, 4, 4), dtype, 1)
    for left in (True, False):

        def case(enlarge: Enlarge, left: bool = left) -> Any:
            operands = (v, enlarge(M)) if left else (enlarge(M), v)
            value = f(*operands)
            return (
                value,
                f.vjp(*operands, value),
                f.jvp(*operands, *operands),
                used(f.jacobian(*operands), operands, value),
            )

        assert_same(case, ndim, ulp=ULP)


@backends
@many
@dtypes
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_linear(activation: str | None, dtype: Any, ndim: int, primitives: Any) -> None:
    f, X, W, b = primitives.linear, draw((2, 3, 4), dtype), draw((4, 5), dtype), draw((5,), dtype)
    option = {"activation": activation and getattr(primitives, activation)}

    def case(enlarge: Enlarge) -> Any:
        x = enlarge(X)
        value = f(x, W, b, **option)
        jacobians = f.jacobian(x, W, b, **option)
        return (
            value,
            f.vjp(x, W, b, value, **option),
            f.jvp(x, W, b, x, W, b, **option),
            used(jacobians, (x, W, b), value),
        )

    assert_same(case, ndim, ulp=ULP)


@backends
@pytest.mark.parametrize("ndim", [33, 62, 63, 64])
@dtypes
def test_forms(dtype: Any, ndim: int, primitives: Any) -> None:
    quadratic, bilinear = primitives.quadratic_form, primitives.bilinear_form
    A, X = draw((4, 4), dtype), draw((4, 5), dtype)
    x, u, v = draw((2, 3, 4), dtype), draw((2, 3, 4), dtype, 1), draw((2, 1, 5), dtype, 2)

    def of_vectors(enlarge: Enlarge) -> Any:
        operands = enlarge(x), A
        value = quadratic(*operands)
        return (
            value,
            quadratic.vjp(*operands, value),
            quadratic.jvp(*operands, *operands),
            used(quadratic.jacobian(*operands), operands, value),
        )

    assert_same(of_vectors, ndim, ulp=ULP)
    for few_u, few_v in ((False, False), (True, False), (False, True)):

        def of_pairs(enlarge: Enlarge, few_u: bool = few_u, few_v: bool = few_v) -> Any:
            one = u[0] if few_u else enlarge(u)
            other = v[0] if few_v else enlarge(v)
            operands = one, X, other
            value = bilinear(*operands)
            out = np.empty_like(value)
            assert bilinear(*operands, out=out) is out
            return (
                value,
                out,
                bilinear.vjp(*operands, value),
                bilinear.jvp(*operands, *operands),
                bilinear.jvp(*operands, None, X, None),
                used(bilinear.jacobian(*operands), operands, value),
            )

        assert_same(of_pairs, ndim, ulp=ULP)


@backends
@many
def test_outputs(ndim: int, primitives: Any) -> None:
    P, enlarge = primitives, enlarged(ndim)
    x, B = enlarge(draw((2, 3, 4), np.float64)), draw((4, 4), np.float64)
    for f in (
        lambda out: P.tanh(x, out=out),
        lambda out: P.tanh.vjp(x, x, out=out),
        lambda out: P.multiply(x, B[0], out=out),
        lambda out: P.softmax(x, out=out),
        lambda out: P.norm2.grad(x, axis=0, out=out),
        lambda out: P.matmul(x, B, out=out),
        lambda out: P.matmul.vjp(x, B, x, wrt=0, out=out),
        lambda out: P.linear(x, B, out=out),
    ):
        desired = f(None)
        out = np.full_like(desired, np.nan)
        for target in (out, np.full((*x.shape, 2), np.nan)[..., 0] if ndim < 64 else out[:, ::-1]):
            assert f(target) is target
            assert_same_bits(target, desired)


# --- losses, chains, jacobians, the checker -------------------------------------------------------


@backends
@many
@dtypes
def test_pointwise_losses(dtype: Any, ndim: int, primitives: Any) -> None:
    z, y = draw((2, 3, 4), dtype), draw((2, 3, 4), dtype, 1)
    labels = np.array([[1, 2, 0], [0, 3, 1]])
    f, of_classes = primitives.huber.pointwise, primitives.softmax_cross_entropy.pointwise

    def case(enlarge: Enlarge) -> Any:
        at = enlarge(z), enlarge(y)
        value = f(*at)
        return (
            value,
            f.value_and_derivative(*at),
            f.second_derivative(*at),
            f.vjp(*at, value),
            f.vjp(z[0, 0], y[0, 0], enlarge(z)),
        )

    def case_of_classes(enlarge: Enlarge) -> Any:
        at = enlarge(z), labels.reshape(enlarge(z).shape[:-1])
        value = of_classes(*at)
        return value, of_classes.value_and_derivative(*at), of_classes.vjp(*at, value)

    assert_same(case, ndim)
    assert_same(case_of_classes, ndim)


@backends
@many
def test_chains(ndim: int, primitives: Any) -> None:
    P, x = primitives, draw((2, 3, 4), np.float64)
    w, B = draw((3, 1), np.float64), draw((4, 5), np.float64)
    for f in (
        pb.chain(P.square, (P.multiply, pb.arg, -0.5), P.exp),
        pb.chain(P.square, (P.multiply, pb.arg, w), P.exp),
        pb.chain(P.square, P.exp, (P.sum, pb.arg, {"axis": -1})),
        pb.chain(P.tanh, P.softmax),
        pb.chain(P.tanh, (P.matmul, pb.arg, B)),
    ):
        for order in (1, -1):  # contiguous, and not

            def case(enlarge: Enlarge, f: Any = f, order: int = order) -> Any:
                at = enlarge(x)[::order]
                value = f(at)
                return (
                    value,
                    f.vjp(at, value, wrt="all"),
                    f.value_and_vjp(at, value),
                    f.jvp(at, at),
                    f.jacobian(at) @ at,
                )

            assert_same(case, ndim)


@many
def test_moves(ndim: int) -> None:
    """Their tangents have one more axis, for a stack of them."""
    shape = (2, *(1,) * (ndim - 3), 3, 4)
    small, large = Broadcast((3, 1), (2, 3, 4)), Broadcast((3, 1), shape)
    t = draw((5, 3, 1), np.float64)
    assert_same_bits(large.jvp(t[0]).ravel(), small.jvp(t[0]).ravel())
    assert_same_bits(large.todense(), small.todense())
    assert_same_bits(large.T.todense(), SumTo((2, 3, 4), (3, 1)).todense())
    axes = (ndim - 1, *range(1, ndim - 1), 0)
    turned, turn = Permutation(shape, axes), Permutation((2, 3, 4), (2, 1, 0))
    x = draw((2, 3, 4), np.float64)
    assert_same_bits((turned @ x.reshape(shape)).ravel(), (turn @ x).ravel())
    assert_same_bits(turned.todense(), turn.todense())
    assert_same_bits(turned.T.todense(), turn.T.todense())


@many
def test_the_checker(ndim: int) -> None:
    x = enlarged(ndim)(np.array([[-0.5, 0.0], [0.25, 2.0]]))
    f = pb.chain(pb.abs, pb.sum)
    report = pb.check_grad(f, np.sign(x), x, vjp=f.vjp, jvp=f.jvp)
    assert report.ok
    assert [kink.index for kink in report.kinks] == [(*(0,) * (ndim - 1), 1)]
    assert not pb.check_grad(f, 1.1 * np.sign(x), x).ok


# --- as many as there can be, and more ------------------------------------------------------------


@backends
def test_nothing_of_many_axes(primitives: Any) -> None:
    """Of no elements there can be more axes of other lengths than 1 than of any other array."""
    P, shape, row = primitives, (0, *(2,) * 40, *(1,) * 22, 2), np.ones(2)
    empty = np.zeros(shape)
    assert P.tanh(empty).shape == P.tanh.vjp(empty, empty).shape == shape
    gw, gx = P.multiply.vjp(row, empty, empty)
    assert gw.tolist() == [0, 0]
    assert gx.shape == shape
    J, _ = P.multiply.jacobian(row, empty)
    assert (J @ row).shape == shape
    assert J.vjp(empty).tolist() == [0, 0]
    assert P.sum(empty, axis=(1, -1)).shape == (0, *shape[2:-1])
    assert P.sum(empty).tolist() == 0
    assert P.softmax(empty).shape == shape
    assert P.matmul(empty, np.eye(2)).shape == shape
    assert P.quadratic_form(empty, np.eye(2)).shape == shape[:-1]
    assert P.bilinear_form(empty, np.eye(2), row).shape == shape[:-1]
    assert P.bilinear_form.vjp(empty, np.eye(2), row, empty[..., 0])[2].tolist() == [0, 0]


@backends
def test_results_of_more_than_64_axes(primitives: Any) -> None:
    pointwise = primitives.softmax_cross_entropy.pointwise
    z = draw((2,), np.float64).reshape((1,) * 63 + (2,))
    stack = np.zeros((1,) * 64)
    row = draw((2,), np.float64)
    J = Broadcast((2,), (1,) * 40 + (2,))
    for op, call in (
        (
            "softmax_cross_entropy.pointwise.second_derivative",
            lambda: pointwise.second_derivative(z, 0),
        ),
        ("softmax_cross_entropy.pointwise.vjp", lambda: pointwise.vjp(row, 0, stack)),
        ("sum.vjp", lambda: primitives.sum.vjp(z, stack)),
        ("norm2.vjp", lambda: primitives.norm2.vjp(z[..., :1], stack, axis=-1)),
        ("Broadcast.jvp", lambda: J.jvp(row.reshape((1,) * 40 + (2,)))),
        ("tensor", lambda: primitives.tanh.jacobian(z).tensor()),
    ):
        with pytest.raises(ValueError, match=rf"^{op}: the result has \d+ axes.* 64"):
            call()


def test_shapes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        whole = tuple(rng.integers(0, 4, rng.integers(0, 5)).tolist())
        shapes = [
            tuple(1 if rng.random() < 0.4 else n for n in whole[rng.integers(0, len(whole) + 1) :])
            for _ in range(rng.integers(1, 4))
        ]
        assert broadcast_shapes(*shapes) == np.broadcast_shapes(*shapes)
        assert with_room(2, *shapes) == tuple(shapes)
        few = with_room(64, *shapes)
        arrays = [rng.standard_normal(shape) for shape in shapes]
        merged = [a.reshape(shape) for a, shape in zip(arrays, few, strict=True)]
        assert sum(map(np.asarray, merged)).size == sum(map(np.asarray, arrays)).size
        assert_same_bits(np.ravel(sum(merged)), np.ravel(sum(arrays)))
    for wrong in ([(2,), (3,)], [(0,), (2,)], [(1, 2), (3, 1), (3, 4)]):
        with pytest.raises(ValueError, match="do not broadcast"):
            broadcast_shapes(*wrong)

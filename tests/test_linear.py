"""The public linear layer: value and derivatives with every activation, shapes, outputs, errors."""

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
    assert_product,
    assert_within,
    integers,
    normal,
    wide,
)
from oracles import assert_same_bits
from protocol import backends, dtypes
from pullback import linear
from pullback.tables.elementwise import OPS

UNARY = [name for name, row in OPS.items() if row.nin == 1]
activations = pytest.mark.parametrize("name", UNARY)
SHAPES = [  # of X without its last axis, k, n
    ((), 3, 4),
    ((), 1, 1),
    ((1,), 5, 2),
    ((7,), 3, 4),
    ((33,), 17, 40),
    ((65,), 64, 9),
    ((5, 6), 3, 2),
    ((2, 1, 9), 8, 16),
    ((4, 0, 2), 3, 4),
    ((0,), 3, 4),
    ((6,), 0, 4),
    ((6,), 3, 0),
    ((), 0, 3),
]
shapes = pytest.mark.parametrize(("lead", "k", "n"), SHAPES, ids=str)


def layer(
    lead: tuple[int, ...], k: int, n: int, dtype: Any, make: Any = integers, seed: int = 0
) -> tuple[Any, Any, Any, Any]:
    """Return X, W, b and a cotangent; of integers, so that all of X W + b is exact."""
    rng = np.random.default_rng(seed)
    X, W, b, G = (make(rng, s, dtype) for s in ((*lead, k), (k, n), (n,), (*lead, n)))
    return X, W, b, G


def check_cotangents(results: Any, X: Any, W: Any, b: Any, H: Any) -> None:
    """Fail unless `results` are the cotangents of X, W, b for a cotangent H of X W + b."""
    dX, dW, db = results
    count = int(np.prod(H.shape[:-1], dtype=int))
    rows, H2 = X.reshape(count, len(W)), H.reshape(count, W.shape[1])
    assert dX.shape == X.shape
    assert_product(dX.reshape(rows.shape), H2, W.T)
    assert_product(dW, rows.T, H2)
    if b is None:
        assert db is None
        return
    (terms,) = wide(H2)
    # A sum in float64, then one rounding.
    off = np.abs(db.astype(np.longdouble) - terms.sum(0))
    summed = (count + 1) * 2.0**-53 * np.abs(terms).sum(0)
    rounded = np.finfo(db.dtype).eps / 2 * (np.abs(terms.sum(0)) + summed)
    assert (off <= summed + rounded).all()


# --- values and derivatives -----------------------------------------------------------------------


@dtypes
@shapes
def test_without_activation(lead: Any, k: int, n: int, dtype: np.dtype) -> None:
    for make in (integers, normal):
        X, W, b, G = layer(lead, k, n, dtype, make)
        X_, W_, b_ = wide(X, W, b)
        magnitude = np.abs(X_) @ np.abs(W_)
        value = linear(X, W, b)
        assert value.dtype == dtype
        assert_within(value, X_ @ W_ + b_, magnitude + np.abs(b_), k + 1)
        assert_within(linear(X, W), X_ @ W_, magnitude, k)
        assert_same_bits(linear(X, W, None), linear(X, W))
        for bias in (b, None):
            check_cotangents(linear.vjp(X, W, bias, G), X, W, bias, G)
    X, W, b, _ = layer(lead, k, n, dtype)
    tX, tW, tb, _ = layer(lead, k, n, dtype, seed=1)
    np.testing.assert_array_equal(linear.jvp(X, W, b, tX, tW, tb), tX @ W + X @ tW + tb)


@dtypes
@activations
def test_every_activation(name: str, dtype: np.dtype) -> None:
    f, twin = pb.primitives[name], getattr(pb.reference, name)
    for lead, k, n in ((), 3, 4), ((6,), 5, 7), ((2, 3), 4, 33), ((0,), 2, 2):
        X, W, b, _ = layer(lead, k, n, dtype)
        W = W / 16  # still exact, and around where activations bend
        _, _, _, G = layer(lead, k, n, dtype, normal)
        for bias in (b, None):
            Z = (X @ W + (0 if bias is None else bias)).astype(dtype)
            assert_same_bits(linear(X, W, bias, activation=f), f(Z))
            assert_same_bits(linear(X, W, bias, activation=twin), f(Z))
            H = f.vjp(Z, G)
            results = linear.vjp(X, W, bias, G, activation=f)
            by_twin = linear.vjp(X, W, bias, G, activation=twin)
            if np.isfinite(H).all():
                check_cotangents(results, X, W, bias, H)
            else:  # a pole, or outside the domain
                with np.errstate(all="ignore"):
                    exact = np.matmul(*wide(H, W.T))
                odd = ~np.isfinite(exact)
                np.testing.assert_array_equal(results[0][odd], exact[odd].astype(dtype))
                np.testing.assert_array_equal(np.isfinite(results[0]), ~odd)
            for mine, other in zip(by_twin[: 3 - (bias is None)], results, strict=False):
                assert_same_bits(mine, other)
            tX, tW, tb, _ = layer(lead, k, n, dtype, seed=1)
            tZ = (tX @ W + X @ tW + (0 if bias is None else tb)).astype(dtype)
            tangent = linear.jvp(X, W, bias, tX, tW, None if bias is None else tb, activation=f)
            assert_same_bits(abs(tangent), abs(f.jvp(Z, tZ)))


@dtypes
def test_the_bias_is_summed_in_float64(dtype: np.dtype) -> None:
    """Large terms that cancel: in float32 the small ones would be gone."""
    count = 3000
    column = np.tile([1e8, 1.0, -1e8], count // 3).astype(dtype)
    G = np.stack([column, column[::-1], np.full(count, 0.1, dtype)], axis=1)
    X, W, b = np.ones((count, 2), dtype), np.ones((2, 3), dtype), np.zeros(3, dtype)
    exact = wide(G)[0].sum(0)
    for f in (linear, pb.reference.linear):
        db = f.vjp(X, W, b, G, wrt=2)
        assert db.tolist()[:2] == exact.tolist()[:2] == [count / 3] * 2
        # A sum of so many terms in float64, then one rounding.
        assert abs(db[2] - exact[2]) <= (count * 2.0**-53 + np.finfo(dtype).eps) * exact[2]
    if dtype == np.float32:
        assert np.cumsum(column, dtype=dtype)[-1] != count / 3  # the trap is one


@dtypes
@backends
@pytest.mark.parametrize("lead", [(), (1,), (3,), (700,), (2, 3)])
def test_negative_zeros_sum_to_zero(lead: tuple[int, ...], dtype: Any, primitives: Any) -> None:
    """As those of np.sum, which begins at +0."""
    X, W, b, _ = layer(lead, 3, 4, dtype)
    G = np.full((*lead, 4), -0.0, dtype)
    for f in (None, primitives.identity):
        for wrt in ("all", ("b",)):
            assert_same_bits(
                primitives.linear.vjp(X, W, b, G, activation=f, wrt=wrt)[-1], 0 * np.abs(b)
            )


def test_masked_activations_hide_what_is_inactive() -> None:
    X, W = np.ones((2, 1)), np.array([[-1.0, 1.0]])
    G = np.full((2, 2), np.inf)
    _, dW, db = linear.vjp(X, W, np.zeros(2), G, activation=pb.relu)
    assert dW.tolist() == [[0, np.inf]]
    assert db.tolist() == [0, np.inf]


@dtypes
@activations
def test_adjoint_identity(name: str, dtype: np.dtype) -> None:
    """<G, J t> = <J^T G, t>, where both multiply by one and the same slope.

    On each way a term passes a product of at most N + k + n terms and four more roundings; the
    scalar products here are long doubles.
    """
    f = pb.primitives[name]
    lead, k, n = (9,), 6, 11
    X, W, b, _ = layer(lead, k, n, dtype)
    X, W, b = abs(X) / 64, abs(W) / 16, abs(b) / 16 + dtype.type(0.25)  # inside most domains
    tX, tW, tb, G = layer(lead, k, n, dtype, normal, seed=2)
    dX, dW, db = linear.vjp(X, W, b, G, activation=f)
    tangent = linear.jvp(X, W, b, tX, tW, tb, activation=f)
    slope = f.derivative(X @ W + b)
    if not np.isfinite(slope).all():
        assert not np.isfinite(tangent).all()
        return
    pairs = ((dX, tX), (dW, tW), (db, tb))
    left = np.sum(np.multiply(*wide(G, tangent)))
    right = sum(np.sum(np.multiply(*wide(*pair))) for pair in pairs)
    G_, X_, W_, tX_, tW_, tb_, s_ = map(np.abs, wide(G, X, W, tX, tW, tb, slope))
    magnitude = np.sum(G_ * s_ * (tX_ @ W_ + X_ @ tW_ + tb_))
    u = np.finfo(dtype).eps / 2
    assert abs(left - right) <= 2 * (lead[0] + k + n + 4) * u * magnitude


def test_nan_comes_through_and_nothing_warns() -> None:
    X, W, b = np.ones((3, 2)), np.ones((2, 2)), np.array([0.0, np.inf])
    X[1, 0], X[2, 1] = np.nan, -np.inf
    with np.errstate(all="raise"):
        value = linear(X, W, b, activation=pb.identity)
        dX, _, _ = linear.vjp(X, W, b, np.ones((3, 2)), activation=pb.tanh)
        linear.jvp(X, W, b, X, W, b, activation=pb.exp)
    np.testing.assert_array_equal(value, [[2, np.inf], [np.nan] * 2, [-np.inf, np.nan]])
    assert np.isfinite(dX[0]).all()
    assert np.isnan(dX[1:]).all()


# --- shapes, layouts, outputs ---------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: np.dtype) -> None:
    for lead, k, n in (((33,), 17, 9), ((3, 5), 8, 4), ((), 4, 6)):
        X, W, b, G = layer(lead, k, n, dtype)
        X, W, G = (LAYOUTS[layout](x) for x in (X, W, G))
        b = LAYOUTS["repeated columns" if "repeated" in layout else layout](b)
        before = [x.tobytes() for x in (X, W, b, G)]
        np.testing.assert_array_equal(linear(X, W, b), X @ W + b)
        Z = np.asarray(X @ W + b, dtype)
        H = pb.relu.vjp(Z, G)
        check_cotangents(linear.vjp(X, W, b, G, activation=pb.relu), X, W, b, H)
        assert [x.tobytes() for x in (X, W, b, G)] == before


@dtypes
@pytest.mark.parametrize("layout", OUT_LAYOUTS)
def test_out(layout: str, dtype: np.dtype) -> None:
    for (lead, k, n), f in itertools.product(SHAPES, (None, pb.relu)):
        X, W, b, G = layer(lead, k, n, dtype)
        value = linear(X, W, b, activation=f)
        out = GuardedOut(value.shape, dtype, layout)
        assert linear(X, W, b, activation=f, out=out.array) is out.array
        out.check(value)
        out = GuardedOut(value.shape, dtype, layout)
        tangent = linear.jvp(X, W, b, X, None, b, activation=f)
        assert linear.jvp(X, W, b, X, None, b, activation=f, out=out.array) is out.array
        out.check(tangent)
        exact = linear.vjp(X, W, b, G, activation=f)
        for wrt in ((0, 1, 2), (2, 0), (1,)):
            outs = [GuardedOut((X, W, b)[i].shape, dtype, layout) for i in wrt]
            given = tuple(o.array for o in outs)
            results = linear.vjp(X, W, b, G, activation=f, wrt=wrt, out=given)
            for i, o, result in zip(wrt, outs, results, strict=True):
                assert result is o.array
                o.check(exact[i])


@dtypes
def test_outputs_over_inputs(dtype: np.dtype) -> None:
    X, W, b, G = layer((8,), 8, 8, dtype)
    for f in (None, pb.tanh):
        exact = linear.vjp(X, W, b, G, activation=f)
        value = linear(X, W, b, activation=f)
        for i in range(4):
            fresh = [x.copy() for x in (X, W, b, G)]
            target = fresh[i] if fresh[i].ndim == 2 else fresh[0].T
            np.testing.assert_array_equal(linear(*fresh[:3], activation=f, out=target), value)
        for order in itertools.permutations((0, 1, 3), 2):
            fresh = [x.copy() for x in (X, W, b, G)]
            outs = (fresh[order[0]], fresh[order[1]], fresh[2])
            linear.vjp(*fresh, activation=f, out=outs)
            for out, wanted in zip(outs, exact, strict=True):
                np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("wrt", [0, 1, 2, (0,), (2,), (1, 0), (2, 0, 1), (0, 1, 2)], ids=repr)
def test_wrt(wrt: Any) -> None:
    X, W, b, G = layer((5,), 3, 4, np.float64)
    exact = linear.vjp(X, W, b, G, activation=pb.tanh)
    result = linear.vjp(X, W, b, G, activation=pb.tanh, wrt=wrt)
    assert isinstance(result, tuple) == isinstance(wrt, tuple)
    order = wrt if isinstance(wrt, tuple) else (wrt,)
    for i, actual in zip(order, result if isinstance(wrt, tuple) else (result,), strict=True):
        assert_same_bits(actual, exact[i])


def test_without_a_bias() -> None:
    X, W, _, G = layer((5,), 3, 4, np.float64)
    assert linear.vjp(X, W, None, G)[2] is None
    assert linear.vjp(X, W, None, G, wrt=(2, 0))[0] is None
    out = np.zeros((3, 4))
    assert linear.vjp(X, W, None, G, out=(None, out, None))[1] is out
    for wrt in (2, (2,)):
        with pytest.raises(ValueError, match=r"linear\.vjp: wrt is .*2.*, but b is None"):
            linear.vjp(X, W, None, G, wrt=wrt)
    with pytest.raises(ValueError, match=r"out\[2\] is given for a result that does not exist"):
        linear.vjp(X, W, None, G, out=(None, None, np.zeros(4)))
    with pytest.raises(ValueError, match=r"linear\.jvp: tb is given, but b is None"):
        linear.jvp(X, W, None, None, W, np.ones(4))


@pytest.mark.parametrize("f", [None, "tanh", "exp"])
def test_tangents_that_are_none(f: Any) -> None:
    f = f and pb.primitives[f]
    X, W, b, _ = layer((5,), 3, 4, np.float64)
    tX, tW, tb, _ = layer((5,), 3, 4, np.float64, seed=1)
    zeros = [np.zeros_like(t) for t in (tX, tW, tb)]
    for mask in itertools.product((True, False), repeat=3):
        given = [t if use else None for t, use in zip((tX, tW, tb), mask, strict=True)]
        filled = [t if use else z for t, use, z in zip((tX, tW, tb), mask, zeros, strict=True)]
        np.testing.assert_array_equal(
            linear.jvp(X, W, b, *given, activation=f), linear.jvp(X, W, b, *filled, activation=f)
        )


# --- errors, bits, identity -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    ["rellu", "add", np.tanh, pb.add, pb.tanh.vjp, pb.matmul, len, 0, pb.relu_mse, pb.relu.jvp],
)
def test_what_is_no_activation(bad: Any) -> None:
    X, W, b, G = layer((2,), 3, 4, np.float64)
    for call, name in (
        (lambda: linear(X, W, b, activation=bad), "linear"),
        (lambda: linear.vjp(X, W, b, G, activation=bad), r"linear\.vjp"),
        (lambda: linear.jvp(X, W, b, X, W, b, activation=bad), r"linear\.jvp"),
    ):
        with pytest.raises(TypeError, match=rf"^{name}: activation must be None or a unary"):
            call()


@pytest.mark.parametrize(
    ("x", "w", "b", "why"),
    [
        ((), (3, 4), None, r"X needs \(\.\.\., k\)"),
        ((5, 2), (3, 4), None, "k is 2 in X, and 3 in W"),
        ((3,), (3,), None, r"W needs \(k, n\)"),
        ((3,), (2, 3, 4), None, r"W needs \(k, n\)"),
        ((3,), (3, 4), (3,), "n is 4 in W, and 3 in b"),
        ((3,), (3, 4), (1,), "n is 4 in W, and 1 in b"),
        ((3,), (3, 4), (1, 4), r"b needs \(n\)"),
        ((3,), (3, 4), (), r"b needs \(n\)"),
    ],
)
def test_shape_errors(x: Any, w: Any, b: Any, why: str) -> None:
    X, W, bias = np.ones(x), np.ones(w), None if b is None else np.ones(b)
    for call in (
        lambda: linear(X, W, bias),
        lambda: linear.vjp(X, W, bias, np.ones(4)),
        lambda: linear.jvp(X, W, bias, X, W, bias),
    ):
        with pytest.raises(ValueError, match=why) as caught:
            call()
        assert f"X has shape {x}, W has shape {w}" in str(caught.value)
        assert b is None or f"b has shape {b}" in str(caught.value)


def test_cotangents_tangents_and_outputs_of_another_shape() -> None:
    X, W, b, G = layer((5,), 3, 4, np.float64)
    with pytest.raises(ValueError, match=r"G has shape \(4,\), the result \(5, 4\)"):
        linear.vjp(X, W, b, G[0])
    with pytest.raises(ValueError, match=r"tb has shape \(1,\), b has \(4,\)"):
        linear.jvp(X, W, b, None, None, np.ones(1))
    with pytest.raises(ValueError, match=r"^linear: out has shape \(4, 5\), the result \(5, 4\)"):
        linear(X, W, b, out=np.zeros((4, 5)))
    with pytest.raises(TypeError, match=r"^linear\.vjp: out\[2\] has dtype int"):
        linear.vjp(X, W, b, G, out=(None, None, np.zeros(4, int)))
    with pytest.raises(ValueError, match=r"^linear\.vjp: wrt must be"):
        linear.vjp(X, W, b, G, wrt=3)
    with pytest.raises(TypeError, match=r"^linear: argument b has dtype complex128"):
        linear(X, W, b * 1j)


def test_dtypes() -> None:
    X, W, b, G = layer((5,), 3, 4, np.float32)
    assert linear(X, W, b).dtype == np.float32
    assert linear(X, W, [1, 2, 3, 4]).dtype == np.float64
    assert linear(X.astype(np.int8), W.astype(np.float16)).dtype == np.float32
    assert {d.dtype for d in linear.vjp(X, W, b, G, activation=pb.gelu)} == {np.dtype(np.float32)}
    assert {d.dtype for d in linear.vjp(X, W, b.astype(float), G)} == {np.dtype(np.float64)}


@dtypes
def test_same_bits_for_any_number_of_threads(dtype: np.dtype) -> None:
    X, W, b, G = layer((1500,), 64, 48, dtype, normal)
    with pb.threads(1):
        value = linear(X, W, b, activation=pb.tanh)
        expected = [value, *linear.vjp(X, W, b, G, activation=pb.tanh)]
    for threads in (2, 3, 8):
        with pb.threads(threads):
            results = [linear(X, W, b, activation=pb.tanh)]
            results += linear.vjp(X, W, b, G, activation=pb.tanh)
        for actual, bits in zip(results, expected, strict=True):
            assert actual.tobytes() == bits.tobytes()


def test_identity_of_the_object() -> None:
    assert linear is pb.primitives["linear"]
    assert pickle.loads(pickle.dumps(linear)) is linear
    assert copy.deepcopy(linear) is linear
    assert repr(linear).startswith("<product linear")

"""Chains of several inputs and of second order: against mpmath, NumPy by hand, and each other."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pullback as pb
import pytest
from mpmath import mp
from oracles import assert_same_bits
from protocol import TWINS, each
from pullback.chains import Chain
from pullback.tables.elementwise import OPS

primitives = each("P", TWINS, label=lambda P: P.__name__)
T = np.linspace(0.1, 2, 3)
V = np.array([0.5, -1.25, 2.0])


SAMPLES = np.array([[0.5, -1.0], [0.25, 2.0], [-1.5, 0.75]])
LABELS = np.array([1, 0, 1])


class Exact:
    """NumPy's functions on arrays of mpmath's numbers."""

    exp, sin, cos, tanh, log, sqrt = (
        np.frompyfunc(getattr(mp, name), 1, 1)
        for name in ("exp", "sin", "cos", "tanh", "log", "sqrt")
    )
    sum = staticmethod(np.sum)


class Program(NamedTuple):
    """A chain, the same by hand, and its inputs."""

    make: Callable[[Any], Chain]
    by_hand: Callable[..., Any]  # of Exact and the inputs
    inputs: tuple[Any, ...]


def model(P: Any) -> Chain:
    decay = pb.chain((P.multiply, pb.arg[1], T), P.negative, P.exp, (P.multiply, pb.arg[0], pb.arg))
    swing = pb.chain((P.multiply, pb.arg[3], T), P.sin, (P.multiply, pb.arg[2], pb.arg))
    return decay + swing


def diamond(P: Any) -> Chain:
    """Return a function that uses a step's result three times."""
    u = pb.chain((P.multiply, pb.arg, V), P.sin)
    return pb.chain((P.multiply, pb.chain(u, P.exp), u), (P.add, pb.arg, u))


def squared(f: Chain) -> Chain:
    return f * f


def applied(P: Any) -> Chain:
    """Return a function of two inputs, applied to functions and to numbers."""
    f = pb.chain((P.multiply, pb.arg[0], pb.arg[1]), P.tanh, (P.subtract, pb.arg, pb.arg[1]))
    return pb.chain(P.exp, (f, pb.chain(P.sin), pb.arg), (f, pb.arg, 0.5), (f, V, pb.arg))


def f_by_hand(m: Any, a: Any, b: Any) -> Any:
    return m.tanh(a * b) - b


def mean_logistic(m: Any, z: Any) -> Any:
    return m.sum(m.log(1 + m.exp(z)) - LABELS * z) / 3


PROGRAMS = {
    "line": Program(
        lambda P: pb.chain(P.sin, (P.multiply, pb.arg, V), P.exp, (P.divide, 2.0, pb.arg)),
        lambda m, x: 2 / m.exp(m.sin(x) * V),
        (T,),
    ),
    "twice": Program(
        lambda P: pb.chain(P.tanh, (P.multiply, pb.arg, pb.arg), (P.power, 2.5, pb.arg)),
        lambda m, x: m.exp(m.log(mp.mpf(2.5)) * m.tanh(x) ** 2),
        (T,),
    ),
    "model": Program(
        model,
        lambda m, a, b, c, d: a * m.exp(-b * T) + c * m.sin(d * T),
        (1.3, 0.7, 0.4, 3.0),
    ),
    "residual": Program(
        lambda P: pb.chain(model(P), (P.squared_difference, pb.arg, V)),
        lambda m, a, b, c, d: (a * m.exp(-b * T) + c * m.sin(d * T) - V) ** 2,
        (1.3, 0.7, 0.4, 3.0),
    ),
    "diamond": Program(
        diamond,
        lambda m, x: m.exp(m.sin(x * V)) * m.sin(x * V) + m.sin(x * V),
        (T,),
    ),
    "square of a sum": Program(
        lambda P: squared(pb.chain(P.exp) + pb.arg),
        lambda m, x: (m.exp(x) + x) ** 2,
        (V,),
    ),
    "input at the end": Program(
        lambda P: pb.chain(P.sin, P.exp, (P.multiply, pb.arg, pb.arg[0])),
        lambda m, x: m.exp(m.sin(x)) * x,
        (V,),
    ),
    "product": Program(
        lambda P: pb.chain((P.multiply, pb.chain(P.sin), pb.chain((P.exp, pb.arg[1])))),
        lambda m, x, y: m.sin(x) * m.exp(y),
        (V, T),
    ),
    "outer": Program(
        lambda P: pb.chain((P.multiply, pb.arg[0], pb.arg[1]), P.sin) / pb.arg[1],
        lambda m, x, y: m.sin(x * y) / y,
        (V[:2, None], T),
    ),
    "quotient": Program(
        lambda P: (1 - pb.chain(P.square)) / (2.0 + pb.chain((P.exp, pb.arg[1]))) * V,
        lambda m, x, y: (1 - x * x) / (2 + m.exp(y)) * V,
        (V, 0.3),
    ),
    "applied": Program(
        applied,
        lambda m, x: f_by_hand(m, V, f_by_hand(m, f_by_hand(m, m.sin(x), m.exp(x)), 0.5)),
        (np.array([0.1, -0.4, 0.2]),),
    ),
    "unused": Program(
        lambda P: -pb.chain((P.square, pb.arg[2])),
        lambda m, x, y, z: -z * z + 0 * m.sum(x) + 0 * y,
        (V, 1.0, T),
    ),
    "hypot": Program(
        lambda P: pb.chain((P.hypot, pb.arg[0], pb.arg[1]), P.log),
        lambda m, x, y: m.log(m.sqrt(x * x + y * y)),
        (V, T),
    ),
    "sum": Program(
        lambda P: pb.chain(model(P), (P.squared_difference, pb.arg, V), P.sum),
        lambda m, a, b, c, d: m.sum((a * m.exp(-b * T) + c * m.sin(d * T) - V) ** 2),
        (1.3, 0.7, 0.4, 3.0),
    ),
    "mean": Program(
        lambda P: pb.chain(P.sin, P.exp, P.mean),
        lambda m, x: m.sum(m.exp(m.sin(x))) / 3,
        (V,),
    ),
    "softmax": Program(
        lambda P: pb.chain(P.sin, P.softmax, (P.multiply, pb.arg, V)),
        lambda m, x: V * m.exp(m.sin(x)) / m.sum(m.exp(m.sin(x))),
        (T,),
    ),
    "two products": Program(
        lambda P: pb.chain((P.matmul, pb.arg[1], pb.arg[0]), P.tanh, (P.matmul, pb.arg[1], pb.arg)),
        lambda m, x, A: A.dot(m.tanh(A.dot(x))),
        (V[:2], np.array([[0.5, -1.0], [0.25, 2.0]])),
    ),
    "network": Program(
        lambda P: pb.chain(
            (P.linear, SAMPLES, pb.arg[0], {"activation": P.tanh}),
            (P.matmul, pb.arg, pb.arg[1]),
            (P.logistic.pointwise, pb.arg, LABELS),
            P.mean,
        ),
        lambda m, W, v: mean_logistic(m, m.tanh(SAMPLES.dot(W)).dot(v)),
        (np.array([[0.5, -1.0], [0.25, 2.0]]), np.array([1.5, -0.5])),
    ),
}
programs = each("name", PROGRAMS)


def by_differences(by_hand: Any, inputs: Any, g: Any) -> tuple[Any, Any, Any]:
    """Return value, Jacobian and Hessian of <g, value>, in all elements of the inputs."""
    with mp.workdps(60):
        shapes = [np.shape(x) for x in inputs]
        sizes = [int(np.prod(shape)) for shape in shapes]
        exact = np.frompyfunc(lambda v: mp.mpf(float(v)), 1, 1)
        flat = np.concatenate([np.ravel(exact(x)).astype(object) for x in inputs])
        n, step = flat.size, mp.mpf(10) ** -18
        eye = np.array([[step * (i == j) for j in range(n)] for i in range(n)], object)
        weights = np.asarray(exact(g), object)

        def at(moved: Any) -> Any:
            parts = np.split(moved, np.cumsum(sizes)[:-1])
            pairs = zip(parts, shapes, strict=True)
            return np.asarray(by_hand(Exact, *(p.reshape(s) for p, s in pairs)), object)

        def total(moved: Any) -> Any:
            return np.sum(weights * at(moved))

        J = [np.ravel(at(flat + e) - at(flat - e)) / (2 * step) for e in eye]
        H = [[0.0] * n for _ in range(n)]
        for i in range(n):
            for j in range(i + 1):
                e, d = eye[i], eye[j]
                second = total(flat + e + d) - total(flat + e - d)
                second += total(flat - e - d) - total(flat - e + d)
                H[i][j] = H[j][i] = float(second / (4 * step * step))
        return at(flat).astype(float), np.array(J, float).T, np.array(H)


def near(actual: Any, desired: Any) -> None:
    assert np.shape(actual) == np.shape(desired)
    scale = max(1.0, np.abs(desired).max())
    np.testing.assert_allclose(actual, desired, rtol=2e-14, atol=2e-14 * scale)


def has_second_order(f: Chain) -> bool:
    return all(hasattr(node.op.vjp, "jvp") for node in f._nodes)


def flattened(parts: Any) -> Any:
    return np.concatenate([np.ravel(part) for part in parts])


def of_inputs(wanted: Any, inputs: Any) -> list[Any]:
    """Return a vector of all inputs' elements in their shapes."""
    ends = np.cumsum([np.size(x) for x in inputs])[:-1]
    return [p.reshape(np.shape(x)) for p, x in zip(np.split(wanted, ends), inputs, strict=True)]


@programs
@primitives
def test_programs(name: str, P: Any) -> None:
    f, by_hand, inputs = PROGRAMS[name].make(P), PROGRAMS[name].by_hand, PROGRAMS[name].inputs
    rng, n = np.random.default_rng(0), len(inputs)
    value = f(*inputs)
    g = rng.normal(size=np.shape(value))
    exact, J, H = by_differences(by_hand, inputs, g)
    near(value, exact)
    ts = [rng.normal(size=np.shape(x)) for x in inputs]
    t = flattened(ts)
    near(f.jvp(*inputs, *ts), (J @ t).reshape(np.shape(value)))
    wrt = tuple(range(n))
    gradient = of_inputs(np.ravel(g) @ J, inputs)
    again, pulled = f.value_and_vjp(*inputs, g, wrt=wrt)
    assert_same_bits(again, value)
    for k, (one, desired) in enumerate(zip(pulled, gradient, strict=True)):
        near(one, desired)
        assert_same_bits(f.vjp(*inputs, g, wrt=k), one)
        alone = [t if k == i else None for i, t in enumerate(ts)]
        own = np.split(J, np.cumsum([np.size(x) for x in inputs])[:-1], axis=1)[k]
        near(f.jvp(*inputs, *alone), (own @ np.ravel(ts[k])).reshape(np.shape(value)))
        near(f.jacobian(*inputs, wrt=k).todense(), own)
    total = [np.ravel(J.todense()) for J in f.jacobian(*inputs, wrt=wrt)]
    near(
        np.concatenate(total),
        flattened(p for p in np.split(J, np.cumsum([np.size(x) for x in inputs])[:-1], axis=1)),
    )
    if np.size(value) == 1:
        for one, desired in zip(f.grad(*inputs, wrt=wrt), of_inputs(J[0], inputs), strict=True):
            near(one, desired)
    if not has_second_order(f):
        with pytest.raises(TypeError, match=r"step \d+, .*, has no derivative of second order"):
            f.hvp(*inputs, *ts, g)
        return
    along = of_inputs(H @ t, inputs)
    for one, desired in zip(f.hvp(*inputs, *ts, g, wrt=wrt), along, strict=True):
        near(one, desired)
    near(f.hvp(*inputs, *ts, g=g), along[0])
    blocks = f.hessian(*inputs, g, wrt="all")
    ends = np.cumsum([np.size(x) for x in inputs])[:-1]
    for i, rows in enumerate(np.split(H, ends)):
        for j, block in enumerate(np.split(rows, ends, axis=1)):
            near(blocks[i][j], block.reshape(np.shape(inputs[i]) + np.shape(inputs[j])))
    near(
        f.hessian(*inputs, g),
        np.split(np.split(H, ends)[0], ends, axis=1)[0].reshape(np.shape(inputs[0]) * 2),
    )
    # The vjp is a primitive: its own jvp and vjp, each the other's adjoint.
    tg = rng.normal(size=np.shape(value))
    moved = f.vjp.jvp(*inputs, g, *ts, tg, wrt=wrt)
    desired = H @ t + np.ravel(tg) @ J
    near(flattened(moved), desired)
    hs = [rng.normal(size=np.shape(x)) for x in inputs]
    *of_primals, of_g = f.vjp.vjp(*inputs, g, *hs)
    near(flattened(of_primals), H @ flattened(hs))
    near(of_g, (J @ flattened(hs)).reshape(np.shape(value)))
    first, again = f.vjp.vjp(*inputs, g, *hs, wrt=(n - 1, "g"))
    assert_same_bits(first, of_primals[-1])
    assert_same_bits(again, of_g)
    assert_same_bits(f.vjp.vjp(*inputs, g, *hs, wrt="g"), of_g)


def test_programs_have_second_order() -> None:
    assert sum(has_second_order(program.make(pb)) for program in PROGRAMS.values()) >= 13


# --- the graph ------------------------------------------------------------------------------------


class Counted:
    """The square, which counts its calls."""

    def __init__(self) -> None:
        self.calls = {"value": 0, "vjp": 0, "jvp": 0}

    def __call__(self, x: Any) -> Any:
        self.calls["value"] += 1
        return x * x

    def vjp(self, x: Any, g: Any) -> Any:
        self.calls["vjp"] += 1
        return 2 * x * g

    def jvp(self, x: Any, t: Any) -> Any:
        self.calls["jvp"] += 1
        return 2 * x * t


def test_what_stands_in_several_places_is_computed_once() -> None:
    op = Counted()
    u = pb.chain(pb.exp, op)
    f = pb.chain(u, pb.sin) * pb.chain(u, pb.cos) + u
    e = np.exp(2 * V)
    np.testing.assert_allclose(f(V), np.sin(e) * np.cos(e) + e, rtol=1e-14)
    assert op.calls == {"value": 1, "vjp": 0, "jvp": 0}
    np.testing.assert_allclose(f.vjp(V, 1.0), (np.cos(2 * e) + 1) * 2 * e, rtol=1e-13)
    assert op.calls == {"value": 2, "vjp": 1, "jvp": 0}
    np.testing.assert_allclose(f.jvp(V, V), (np.cos(2 * e) + 1) * 2 * e * V, rtol=1e-13)
    assert op.calls == {"value": 3, "vjp": 1, "jvp": 1}
    with pytest.raises(TypeError, match=r"chain: step 2, Counted, has no derivative of second ord"):
        f.hvp(V, V)
    # Unless nothing of second order passes through it.
    g = pb.chain((pb.multiply, pb.chain((op, pb.arg[1])), pb.arg[0]))
    np.testing.assert_allclose(g.hvp(V, T, T, None), 0)


@pytest.mark.native  # the twins have no runs
@pytest.mark.parametrize("n", [5, 5000])
def test_runs_inside_a_graph_have_the_bits_of_single_calls(n: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, n))
    row = np.linspace(-1, 1, n)
    inner = pb.chain(pb.sin, (pb.multiply, pb.arg, row), pb.tanh, (pb.add, 0.5, pb.arg))
    f = (inner * pb.arg[1]) + pb.chain(inner, pb.square, pb.negative, pb.exp)
    plain = copy.deepcopy(f)
    plain._graph._new_run = None
    g = np.cos(row)
    for wrt in (0, 1, "all", (2, 0)):
        both = zip(f.vjp(*x, g, wrt=wrt), plain.vjp(*x, g, wrt=wrt), strict=True)
        for one, other in both:
            assert_same_bits(one, other)
    assert_same_bits(f(*x), plain(*x))
    assert_same_bits(f.jvp(*x, *x), plain.jvp(*x, *x))
    assert any("_" in name for name in f._graph._scope if name[:1] == "w")
    assert not any("_" in name for name in plain._graph._scope if name[:1] == "w")


@primitives
def test_dtypes(P: Any) -> None:
    """Python numbers adapt; float32 stays."""
    f = model(P) * 2
    x = [np.float32(v) for v in (1.3, 0.7, 0.4, 3.0)]
    t = pb.chain((P.multiply, pb.arg[0], pb.arg[1]), P.exp)
    narrow = V.astype("f4")
    assert t(narrow, 0.5).dtype == np.float32
    assert t.vjp(narrow, 0.5, np.ones(3, "f4")).dtype == np.float32
    assert t.hvp(narrow, 0.5, narrow, None).dtype == np.float32
    assert t.hessian(narrow, 0.5).dtype == np.float32
    assert f(*x).dtype == np.float64  # T is
    assert pb.chain((P.multiply, pb.arg, V)).hessian(narrow).dtype == np.float64
    wide = pb.chain((P.multiply, pb.arg[0], V), P.exp, (P.multiply, pb.arg, pb.arg[1]))
    assert [b.dtype for b in wide.hessian(narrow, np.float32(2), wrt="all")[0]] == [np.float64] * 2
    with np.errstate(all="ignore"):
        assert_same_bits(t(V, 2), t(V, 2.0))
        assert_same_bits(t.hvp(V, 2.0, 1, None), t.hvp(V, 2.0, np.ones(3), None))
    for name in ("float16", "int32", "bool"):
        given = np.array([0, 1, 1]).astype(name)
        h = t.vjp.vjp(given, 0.5, 1.0, None, 1.0)
        assert [one.shape for one in h] == [(3,), (), (3,)]


@primitives
def test_stacks(P: Any) -> None:
    """Leading axes of a cotangent are a stack: one after the other."""
    f = model(P)
    x = PROGRAMS["model"].inputs
    for chain, at in ((f, x), (pb.chain(P.sin, P.exp), (V,))):
        value, wrt = chain(*at), tuple(range(len(at)))
        rng = np.random.default_rng(0)
        ts = [rng.normal(size=np.shape(v)) for v in at]
        for stack in ((2,), (2, 2), (0,)):
            g, tg = rng.normal(size=(2, *stack, *np.shape(value)))
            hs = [rng.normal(size=stack + np.shape(v)) for v in at]
            moved = chain.vjp.jvp(*at, g, *ts, tg, wrt=wrt)
            without = chain.vjp.jvp(*at, g, *ts, None, wrt=wrt)
            *sums, of_g = chain.vjp.vjp(*at, g, *hs)
            assert of_g.shape == g.shape
            expected = [np.zeros(np.shape(v)) for v in at]
            for i in np.ndindex(stack):
                one = chain.vjp.jvp(*at, g[i], *ts, tg[i], wrt=wrt)
                bare = chain.vjp.jvp(*at, g[i], *ts, None, wrt=wrt)
                for k in wrt:
                    assert_same_bits(np.asarray(moved[k][i])[()], np.asarray(one[k])[()])
                    assert_same_bits(np.asarray(without[k][i])[()], np.asarray(bare[k])[()])
                *own, own_g = chain.vjp.vjp(*at, g[i], *(h[i] for h in hs))
                expected = [a + b for a, b in zip(expected, own, strict=True)]
                assert_same_bits(of_g[i], own_g)
            for total, one, v in zip(sums, expected, at, strict=True):
                assert np.shape(total) == np.shape(v)
                np.testing.assert_allclose(total, one, rtol=1e-13)
            assert [a.shape for a in moved] == [stack + np.shape(v) for v in at]


@primitives
def test_zero_tangents(P: Any) -> None:
    f, x = model(P), PROGRAMS["model"].inputs
    nothing = [None] * 4
    assert_same_bits(f.jvp(*x, *nothing), np.zeros(3))
    assert [*f.hvp(*x, *nothing, wrt=(0, 3))] == [0, 0]
    assert f.vjp.jvp(*x, np.ones(3), *nothing, None) == 0
    assert f.vjp.jvp(*x, np.ones(3), *nothing, V) == f.vjp(*x, V)
    *of_x, of_g = f.vjp.vjp(*x, V, *nothing)
    assert of_x == [0] * 4
    assert_same_bits(of_g, np.zeros(3))
    assert_same_bits(
        f.vjp.vjp(*x, V, None, 1.0, None, None, wrt="g"), f.jvp(*x, None, 1, None, None)
    )


@primitives
def test_bound_operands(P: Any) -> None:
    """They come after the inputs, in the order of the steps, and count once for each step."""
    f = pb.chain(model(P), (P.multiply, pb.arg, V))
    x, g = PROGRAMS["model"].inputs, np.ones(3)
    a, b, c, d = x
    by_first, by_second, by_last = f.vjp(*x, g, wrt=(4, 5, 6))
    np.testing.assert_allclose(by_first, -a * b * np.exp(-b * T) * V, rtol=1e-13)
    np.testing.assert_allclose(by_second, c * d * np.cos(d * T) * V, rtol=1e-13)
    np.testing.assert_allclose(by_last, model(P)(*x), rtol=1e-13)
    assert len(f.vjp(*x, g, wrt="all")) == 7
    assert f.jacobian(*x, wrt=5).shape == (3, 3)
    # Rows of the Hessian by a bound operand; it has no direction itself.
    step, nothing = 1e-6, [None] * 3
    ahead, back = f.vjp(a + step, b, c, d, g, wrt=4), f.vjp(a - step, b, c, d, g, wrt=4)
    along = f.hvp(*x, 1.0, *nothing, wrt=4)
    np.testing.assert_allclose(along, (ahead - back) / (2 * step), rtol=1e-7)
    # Of a chain that is applied twice: each has its own. In two functions: one.
    inner = pb.chain((P.multiply, pb.arg, V))
    assert len(pb.chain(inner, inner).vjp(T, T, wrt="all")) == 3
    assert len((pb.chain(inner, P.sin) + pb.chain(inner, P.exp)).vjp(T, T, wrt="all")) == 2
    whole = pb.chain((f, pb.arg, 0.7, 0.4, 3.0))
    np.testing.assert_allclose(whole.vjp(1.3, g), f.vjp(*x, g), rtol=1e-15)
    assert len(whole.vjp(1.3, g, wrt="all")) == 7
    line = pb.chain((P.multiply, pb.arg, pb.arg[1]), (P.add, pb.arg, pb.arg[1]))
    of_x, of_y = pb.chain((line, pb.arg, V)).vjp(T, g, wrt="all")  # y is one operand of both
    np.testing.assert_allclose(of_x, V, rtol=1e-15)
    np.testing.assert_allclose(of_y, T + 1, rtol=1e-15)


def test_hessian_of_separate_elements_is_one_product() -> None:
    calls = []
    f = pb.chain(pb.sin, (pb.multiply, pb.arg, pb.arg[1]), pb.exp)
    made = f._graph.pulling

    def counted(*given: Any) -> Any:
        value, back = made(*given)

        def noted(g: Any) -> Any:
            results, along = back(g)
            return results, lambda *ts: (calls.append(1), along(*ts))[1]

        return value, noted

    f._graph.pulling = counted  # type: ignore[method-assign]
    H = f.hessian(V, T)
    assert len(calls) == 1
    assert H.shape == (3, 3)
    assert np.count_nonzero(H) == 3
    f.hessian(V, np.float64(0.5))
    assert len(calls) == 2
    f.hessian(V, 0.5, wrt="all")  # of two shapes
    assert len(calls) == 2 + 3 + 1
    assert f.hessian(V[:0], 0.5).shape == (0, 0)
    assert [block.shape for block in f.hessian(V[:0], 0.5, wrt="all")[1]] == [(0,), ()]


def test_hessian_that_does_not_fit() -> None:
    f, x = pb.chain(pb.exp), np.ones(6000)
    with pytest.raises(MemoryError, match=r"chain.hessian: .* 6000 elements takes 0.288 GB; chain"):
        f.hessian(x)
    assert f.hvp(x, x).shape == (6000,)


@pytest.mark.parametrize("op", ["sum", "mean"])
def test_hessian_before_a_sum(op: str) -> None:
    f = pb.chain(pb.sin, getattr(pb, op))
    if has_second_order(f):
        H = f.hessian(V, 2.0)
        expected = -2 * np.sin(V) / (3 if op == "mean" else 1)
        np.testing.assert_allclose(H, np.diag(expected), rtol=1e-14)


# --- the object -----------------------------------------------------------------------------------


@primitives
def test_operators(P: Any) -> None:
    f, g = pb.chain(P.sin), pb.chain((P.exp, pb.arg[1]))
    x, y = V, T
    a, b = np.sin(x), np.exp(y)
    for made, expected in (
        (f + g, a + b),
        (f - g, a - b),
        (f * g, a * b),
        (f / g, a / b),
        (-(f + g), -(a + b)),
        ((f + 2) ** g, (a + 2) ** b),
        (2.0 ** (f * g), 2 ** (a * b)),
        (2 + f + g, 2 + a + b),
        (f * 2 - g, a * 2 - b),
        (1 / (f + g), 1 / (a + b)),
        (V - f * g, V - a * b),
        (V * (f + g), V * (a + b)),
        (V + f - g, V + a - b),
        (V / (f * g), V / (a * b)),
        (np.float64(3) * f * g, 3 * a * b),
        (np.float32(3) - f * g, 3 - a * b),
        (pb.arg[1] * f, y * a),
        (f / pb.arg[1] - pb.arg, a / y - x),
    ):
        assert type(made).__name__ == "Chain"
        np.testing.assert_allclose(made(x, y), expected, rtol=1e-14)
        assert all(
            getattr(node.op, "_engine", None) == getattr(P.exp, "_engine", None)
            for node in made._nodes
        )
    for other in ("a", None, object()):
        with pytest.raises(TypeError):
            (f + g + other)(x, y)


@programs
def test_pickle_copy_and_repr(name: str) -> None:
    f, inputs = PROGRAMS[name].make(pb), PROGRAMS[name].inputs
    value, wrt = f(*inputs), "all"
    g = np.cos(value)
    for again in (pickle.loads(pickle.dumps(f)), copy.copy(f), copy.deepcopy(f)):
        assert repr(again) == repr(f)
        assert type(again) is type(f)
        assert_same_bits(again(*inputs), value)
        for one, other in zip(
            again.vjp(*inputs, g, wrt=wrt), f.vjp(*inputs, g, wrt=wrt), strict=True
        ):
            assert_same_bits(one, other)
    method = pickle.loads(pickle.dumps(f.vjp))
    assert_same_bits(method(*inputs, g), f.vjp(*inputs, g))
    if has_second_order(f):
        second = pickle.loads(pickle.dumps(f.vjp.jvp))
        ts = [1.0] * len(inputs)
        assert_same_bits(second(*inputs, g, *ts, None), f.vjp.jvp(*inputs, g, *ts, None))


def test_repr_is_what_makes_it() -> None:
    multiply, exp, sin, square, add = pb.multiply, pb.exp, pb.sin, pb.square, pb.add
    arg, chain = pb.arg, pb.chain
    names = {"multiply": multiply, "exp": exp, "sin": sin, "square": square, "add": add}
    for f in (
        chain((multiply, arg[1], 2.0), exp, (multiply, arg, arg[0])),
        chain((multiply, arg[0], arg[0]), exp, (add, arg, arg[0])),
        chain(exp, square) * chain(sin) + chain((sin, arg[1])),
        chain((add, chain((add, arg[1], 1.0), exp), chain(square, sin)), (multiply, arg, arg)),
    ):
        text = repr(f)
        scope = {name: _Writer(op) for name, op in names.items()}
        scope |= {"arg": arg, "chain": lambda *steps: chain(*map(_step, steps))}
        again = eval(text, {}, scope)
        assert repr(again) == text
        at = (V, T)[: f._graph.n_inputs]
        assert_same_bits(again(*at), f(*at))
    u = chain(exp)
    for _ in range(60):  # the text does not double with each
        u = chain(u, sin) + chain(u, square)
    assert len(repr(u)) < 5000
    assert u(V).shape == (3,)


class _Writer:
    """A primitive that makes a step when it is called."""

    def __init__(self, op: Any) -> None:
        self.op = op

    def __call__(self, *operands: Any) -> Any:
        return (self.op, *operands)


def _step(step: Any) -> Any:
    return step.op if isinstance(step, _Writer) else step


def test_inputs() -> None:
    assert repr(pb.arg[3]) == "arg[3]"
    assert pb.arg[1] == pb.arg[np.int64(1)] != pb.arg[0]
    assert pickle.loads(pickle.dumps(pb.arg[2])) == pb.arg[2]
    for wrong in (1.0, "x", None, True, slice(2)):
        with pytest.raises(TypeError, match="arg: the position of an input must be an integer"):
            pb.arg[wrong]
    for wrong in (-1, 256, 10**30):
        with pytest.raises(
            ValueError, match="arg: the position of an input must be at least 0 and"
        ):
            pb.arg[wrong]
    with pytest.raises(TypeError):
        iter(pb.arg)


def test_a_subclass_of_several_inputs() -> None:
    class Doubled(Chain):
        def grad(self, x: Any, y: Any, /, *, wrt: Any = 0) -> Any:  # type: ignore[override]
            return 2 * np.asarray(super()._value_and_grad("grad", (x, y), wrt)[1])

    f = Doubled((pb.multiply, pb.arg[0], pb.arg[1]))
    assert isinstance(f, Doubled)
    assert f.grad(2.0, 3.0) == 6
    assert f.vjp(2.0, 3.0, 1.0) == 3


ERRORS: tuple[tuple[Any, Any, str], ...] = (
    (
        lambda: pb.chain(pb.exp, (pb.add, pb.arg[0], V)),
        ValueError,
        "step 2, add, has no pb.arg among",
    ),
    (
        lambda: pb.chain(pb.exp, model(pb)),
        ValueError,
        r"step 2: the chain takes 4 operands, not 1; "
        r"give them, as \(f, pb.arg, pb.arg\[1\], pb.arg\[2\], pb.arg\[3\]\)",
    ),
    (
        lambda: pb.chain((model(pb), pb.arg)),
        ValueError,
        "step 1: the chain takes 4 operands, not 1$",
    ),
    (lambda: pb.chain((pb.chain(pb.exp), pb.arg, {"axis": 0})), TypeError, "a chain takes no axis"),
    (lambda: pb.chain((pb.chain(pb.exp), V)), ValueError, "step 1, Chain, has no pb.arg among"),
    (
        lambda: pb.chain((model(pb), pb.arg, pb.sin, 1, 1)),
        TypeError,
        "operand 2 of the chain is sin",
    ),
    (lambda: pb.chain((pb.norm, V, pb.arg[1])), ValueError, "norm has no derivative by operand 2"),
    (lambda: model(pb)(1.0), TypeError, r"chain\(\) missing 3 required positional arguments"),
    (lambda: model(pb).hvp(1, 1, 1, 1), TypeError, r"chain\.hvp\(\) missing 4 required .*'v0'"),
    (lambda: model(pb).vjp.jvp(1, 1, 1, 1), TypeError, r"chain\.vjp\.jvp\(\) missing 6 required"),
    (
        lambda: model(pb).vjp(1, 1, 1, 1, 1, wrt="x"),
        ValueError,
        r"wrt must be 'x0', 'x1', .*, 4, 5",
    ),
    (
        lambda: model(pb).hessian(1, 1, 1, 1, wrt=4),
        ValueError,
        "chain.hessian: wrt must be 'x0', .*",
    ),
    (
        lambda: model(pb).jvp(V, 1, 1, 1, T[:2], 1, 1, 1),
        ValueError,
        r"t0 has shape \(2,\), x0 \(3,\)",
    ),
    (
        lambda: model(pb).hvp(V, 1, 1, 1, T[:2], 1, 1, 1),
        ValueError,
        r"hvp: v0 has shape \(2,\), x0",
    ),
    (
        lambda: model(pb).hvp(1, 1, 1, 1, 1, 1, 1, 1, V[:2]),
        ValueError,
        r"g has shape \(2,\), the val",
    ),
    (
        lambda: model(pb).vjp(1, 1, 1, 1, V[:2]),
        ValueError,
        r"chain.vjp: g has shape \(2,\), the value",
    ),
    (
        lambda: pb.chain(pb.exp).hvp(V, V[:2]),
        ValueError,
        r"chain.hvp: v has shape \(2,\), x \(3,\)",
    ),
    (
        lambda: pb.chain(pb.exp).vjp.vjp(V, V, V[:2]),
        ValueError,
        r"chain.vjp.vjp: h has shape \(2,\), the cotangent of x \(3,\)",
    ),
    (
        lambda: pb.chain(pb.exp).vjp.jvp(V, V, V, V[:2]),
        ValueError,
        r"tg has shape \(2,\), g \(3,\)",
    ),
    (
        lambda: pb.chain(pb.exp).vjp.jvp(V, V[:2], V, V),
        ValueError,
        r"g has shape \(2,\), the value",
    ),
    (
        lambda: pb.chain(pb.exp).vjp.vjp(V, V, V, wrt="y"),
        ValueError,
        "wrt must be 'x', 'g', the pos",
    ),
    (lambda: pb.chain(pb.exp).hessian(V, V[:2]), ValueError, r"hessian: g has shape \(2,\)"),
    (
        lambda: model(pb).value_and_grad(1, 1, 1, 1),
        ValueError,
        r"the value has shape \(3,\), a grad",
    ),
)


@each("case", ERRORS, label=lambda case: case[2][:30])
def test_errors(case: Any) -> None:
    call, error, message = case
    with pytest.raises(error, match=message):
        call()


@programs
def test_inputs_are_not_written(name: str) -> None:
    f = PROGRAMS[name].make(pb)
    inputs = [np.array(x) for x in PROGRAMS[name].inputs]
    for x in inputs:
        x.flags.writeable = False
    g = np.array(np.cos(f(*inputs)))
    g.flags.writeable = False
    f.vjp(*inputs, g, wrt="all")
    f.jvp(*inputs, *inputs)
    if has_second_order(f):
        results = f.vjp.vjp(*inputs, g, *inputs)
        for one in results:
            assert not any(np.shares_memory(one, x) for x in (*inputs, g))


# --- every primitive as a step --------------------------------------------------------------------

ROWS = np.array([[0.5, -1.25, 2.0], [0.75, 0.25, -0.5]])
SQUARE = np.array([[0.5, -1.0, 0.25], [1.5, 2.0, -0.75], [0.1, 0.3, 1.0]])


def steps_of(P: Any) -> dict[str, tuple[Any, Any]]:
    """Return steps by name, with an input for each."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, row in OPS.items():
        op, rng = getattr(P, name), np.random.default_rng(3)
        x, *beside = (rng.uniform(*domain.ordinary, 5) for domain in row.domain)
        found[name] = ((op, pb.arg, *beside), x)
        if beside:
            found[f"{name}, second"] = ((op, x, pb.arg), beside[0])
    for name in ("sum", "mean", "prod", "norm1", "norm2", "squared_norm2", "max", "min"):
        op = getattr(P, name)
        found[name] = ((op, pb.arg), V)
        found[f"{name}, axis"] = ((op, pb.arg, {"axis": 0, "keepdims": True}), ROWS)
    for name in ("logsumexp", "variance", "softmax", "log_softmax", "layer_norm"):
        found[name] = ((getattr(P, name), pb.arg, {"axis": -1}), ROWS)
    found |= {
        "norm": ((P.norm, pb.arg, 3.0), V),
        "dot": ((P.dot, pb.arg, T), V),
        "dot, twice": ((P.dot, pb.arg, pb.arg), V),
        "matmul": ((P.matmul, pb.arg, SQUARE), ROWS),
        "matmul, second": ((P.matmul, ROWS, pb.arg), V),
        "linear": ((P.linear, pb.arg, SQUARE), ROWS),
        "linear, weights": ((P.linear, ROWS, pb.arg, V, {"activation": P.tanh}), SQUARE),
        "linear, intercept": ((P.linear, ROWS, SQUARE, pb.arg, {"activation": P.softplus}), V),
        "quadratic_form": ((P.quadratic_form, pb.arg, SQUARE), V),
        "bilinear_form, twice": ((P.bilinear_form, pb.arg, SQUARE, pb.arg), V),
        "huber.pointwise": ((P.huber.pointwise, pb.arg, T), V),
        "logistic.pointwise": ((P.logistic.pointwise, pb.arg, np.array([1, 0, 1])), V),
    }
    return found


@primitives
def test_every_primitive_with_second_order_is_a_step(P: Any) -> None:
    """Between others, its products with the Hessian are differences of gradients, and symmetric."""
    rng, judged = np.random.default_rng(5), 0
    for name, (step, x) in steps_of(P).items():
        if not hasattr(step[0].vjp, "jvp"):
            continue
        judged += 1
        f = pb.chain((P.multiply, pb.arg, 1.0), step, P.square)
        g = rng.normal(size=np.shape(f(x)))
        v, w = rng.normal(size=(2, *x.shape))
        along, h = f.hvp(x, v, g), 1e-6
        assert along.shape == x.shape
        difference = (f.vjp(x + h * v, g) - f.vjp(x - h * v, g)) / (2 * h)
        scale = np.abs(difference).max() + np.abs(f.vjp(x, g)).max()
        np.testing.assert_allclose(along, difference, atol=1e-7 * scale, err_msg=name)
        one, other = np.vdot(w, along), np.vdot(v, f.hvp(x, w, g))
        assert abs(one - other) <= 1e-13 * np.abs(along).sum() * np.abs(w).max() + 1e-13, name
    assert judged >= len(OPS)

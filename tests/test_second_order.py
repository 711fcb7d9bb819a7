"""Second derivatives, and tangents and cotangents of vjp, against mathematics and each other."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracles
import pullback as pb
import pytest
from mpmath import mp, mpf
from oracles import assert_same_bits
from protocol import TWINS, dtypes, each, leaves, native, on_every_target, rows
from pullback.tables.elementwise import OPS, REFERENCE_MAX_ULP, OpRow

primitives = each("P", TWINS, label=lambda P: P.__name__)
CURVED = [row for row in OPS.values() if set("".join(row.second_derivative_formula)) - set("0")]
curved = each("row", CURVED, label=lambda row: row.name)


# --- against mathematics --------------------------------------------------------------------------


def few_samples(row: OpRow) -> list[Any]:
    return [operand[::10] for operand in oracles.samples(row, np.dtype(float))]


def exact_seconds(row: OpRow, points: list[Any]) -> Iterator[tuple[int, oracles.Exact]]:
    with mp.workprec(oracles.PRECISION):
        listed = [tuple(map(mpf, p)) for p in zip(*(x.tolist() for x in points), strict=True)]
        for k, exact in enumerate(oracles.formulas(row)[1 + row.nin :]):
            yield k, oracles.Exact(exact(*point) for point in listed)


@curved
def test_accuracy(row: OpRow) -> None:
    """In float64: float32's are these, rounded. Of the twin, and of each target."""
    points = few_samples(row)
    for k, exact in exact_seconds(row, points):
        scales = oracles.scales_of(row, 1 + row.nin + k, points)
        judged: set[bytes] = set()

        def judge(P: Any, bound: float, k=k, exact=exact, scales=scales, judged=judged) -> None:
            result = tuple(leaves(getattr(P, row.name).second_derivative(*points)))[k]
            if result.tobytes() not in judged:
                worst = oracles.worst_error(result, exact, np.dtype(float), scales)
                assert worst.error <= bound, [x[worst.index] for x in points]
                judged.add(result.tobytes())

        judge(pb.reference, REFERENCE_MAX_ULP)
        if native is not None:
            on_every_target(lambda: judge(pb, row.max_ulp[2]))()


@rows
@primitives
@dtypes
def test_golden_points(row: OpRow, P: Any, dtype: np.dtype) -> None:
    f = getattr(P, row.name)
    for shape in ((), (37,)):
        for point in row.special:
            at = [np.full(shape, x, dtype) for x in point.at]
            results = tuple(leaves(f.second_derivative(*at)))
            for actual, expected in zip(results, point.second, strict=True):
                assert_same_bits(actual, np.full(shape, expected, dtype))


@rows
@primitives
def test_float32_is_float64_rounded(row: OpRow, P: Any) -> None:
    f = getattr(P, row.name)
    points = [x[:500] for x in oracles.samples(row, np.dtype(np.float32))]
    narrow = leaves(f.second_derivative(*points))
    wide = leaves(f.second_derivative(*(x.astype(float) for x in points)))
    for one, other in zip(narrow, wide, strict=True):
        with np.errstate(all="ignore"):
            assert_same_bits(one, other.astype(np.float32))


# --- vjp is a primitive too -----------------------------------------------------------------------


def shapes_of(nin: int) -> list[tuple[list[tuple[int, ...]], tuple[int, ...], tuple[int, ...]]]:
    """Return shapes of operands and of g, and of the stack in front."""
    if nin == 1:
        return [([(7,)], (7,), ()), ([(3, 300)], (2, 3, 300), (2,)), ([()], (), ())]
    return [
        ([(300,), (300,)], (300,), ()),
        ([(3, 1), (5,)], (3, 5), ()),
        ([(5,), (3, 5)], (2, 3, 5), (2,)),
        ([(), (4,)], (3, 2, 4), (3, 2)),
    ]


def given(row: OpRow, own: Any, g: Any, seed: int = 5) -> tuple[list[Any], Any, Any]:
    rng = np.random.default_rng(seed)
    ranges = [domain.ordinary for domain in row.domain]
    operands = [
        np.asarray(rng.uniform(*ends, shape)) for ends, shape in zip(ranges, own, strict=True)
    ]
    return operands, np.asarray(rng.normal(size=g)), rng


def summed(terms: Any, stack: int, shape: tuple[int, ...]) -> Any:
    """Sum what was repeated of an operand behind a stack."""
    front = terms.shape[:stack]
    behind = terms.ndim - stack - len(shape)
    terms = terms.sum(axis=tuple(range(stack, stack + behind))) if behind else terms
    repeated = tuple(stack + i for i, n in enumerate(shape) if terms.shape[stack + i] != n)
    return terms.sum(axis=repeated).reshape(front + shape) if repeated else terms


@rows
@primitives
def test_products_of_second_order(row: OpRow, P: Any) -> None:
    """They are made of both derivatives; None is zero; each is the other's adjoint."""
    f, n = getattr(P, row.name), row.nin
    for own, whole, stack in shapes_of(n):
        operands, g, rng = given(row, own, whole)
        tangents = [np.asarray(rng.normal(size=shape)) for shape in own]
        tg = np.asarray(rng.normal(size=whole))
        hs = [np.asarray(rng.normal(size=stack + shape)) for shape in own]
        slopes = tuple(leaves(f.derivative(*operands)))
        ww, *more = leaves(f.second_derivative(*operands))
        curves = [[ww]] if n == 1 else [[ww, more[0]], [more[0], more[1]]]
        spread = [
            h.reshape(stack + (1,) * (len(whole) - len(stack) - len(s)) + s)
            for h, s in zip(hs, own, strict=True)
        ]
        for left_out in range(1 << (n + 1)):
            ts = [None if left_out >> k & 1 else t for k, t in enumerate(tangents)]
            own_tg = None if left_out >> n & 1 else tg
            results = f.vjp.jvp(*operands, g, *ts, own_tg)
            for k, result in enumerate(leaves(results)):
                terms = np.zeros(whole) if own_tg is None else own_tg * slopes[k]
                for j, t in enumerate(ts):
                    terms = terms + (0 if t is None else g * t * curves[k][j])
                expected = summed(terms, len(stack), own[k])
                np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)
        for left_out in range(1 << n):
            given_hs = [None if left_out >> k & 1 else h for k, h in enumerate(hs)]
            *primals, of_g = f.vjp.vjp(*operands, g, *given_hs)
            there = [(j, h) for j, h in enumerate(spread) if given_hs[j] is not None]
            expected = np.zeros(whole) + sum(h * slopes[j] for j, h in there)
            np.testing.assert_allclose(of_g, expected, rtol=1e-12, atol=1e-12)
            for k, result in enumerate(primals):
                terms = np.zeros(whole) + sum(g * h * curves[k][j] for j, h in there)
                np.testing.assert_allclose(result, summed(terms, 0, own[k]), rtol=1e-12, atol=1e-12)
        moved = tuple(leaves(f.vjp.jvp(*operands, g, *tangents, tg)))
        pulled = f.vjp.vjp(*operands, g, *hs)
        along = sum(np.vdot(h, m) for h, m in zip(hs, moved, strict=True))
        against = sum(np.vdot(t, p) for t, p in zip([*tangents, tg], pulled, strict=True))
        assert np.isclose(along, against, rtol=1e-10, atol=1e-10)


@rows
@primitives
def test_symmetric_to_the_bit(row: OpRow, P: Any) -> None:
    f = getattr(P, row.name)
    own, whole, _ = shapes_of(row.nin)[0]
    operands, g, rng = given(row, own, whole)
    hs = [np.asarray(rng.normal(size=shape)) for shape in own]
    moved = leaves(f.vjp.jvp(*operands, g, *hs, None))
    for one, other in zip(moved, f.vjp.vjp(*operands, g, *hs)[:-1], strict=True):
        assert_same_bits(one, other)


@pytest.mark.native
@rows
@dtypes
def test_python_side_gives_the_same_bits(row: OpRow, dtype: np.dtype) -> None:
    f = getattr(pb, row.name)
    for own, whole, stack in shapes_of(row.nin):
        operands, g, rng = given(row, own, whole)
        tangents = [np.asarray(rng.normal(size=shape)) for shape in [*own, whole]]
        hs = [np.asarray(rng.normal(size=stack + shape)) for shape in own]
        for method, more in ((f.vjp.jvp, tangents), (f.vjp.vjp, hs)):
            args = [a.astype(dtype) for a in (*operands, g, *more)]
            for call in (args, [*args[:-1], 0.5], [*(a[..., ::-1] if a.ndim else a for a in args)]):
                pairs = zip(leaves(method(*call)), leaves(method.__wrapped__(*call)), strict=True)
                for one, other in pairs:
                    assert_same_bits(one, other)


@primitives
def test_options(P: Any) -> None:
    w, x, g = np.array([[1.0], [2.0]]), np.array([3.0, 4.0, 5.0]), np.ones((2, 3))
    jvp, vjp = P.divide.vjp.jvp, P.divide.vjp.vjp
    whole = jvp(w, x, g, None, x, g)
    assert [a.shape for a in whole] == [(2, 1), (3,)]
    assert_same_bits(jvp(w, x, g, None, x, g, wrt="x"), whole[1])
    assert_same_bits(jvp(w, x, g, None, x, g, wrt=(0,))[0], whole[0])
    out = np.empty((2, 1))
    assert jvp(w, x, g, None, x, g, out=(out, None))[0] is out
    assert_same_bits(out, whole[0])
    of_w, of_x, of_g = vjp(w, x, g, w, None)
    assert (of_w.shape, of_x.shape, of_g.shape) == ((2, 1), (3,), (2, 3))
    assert_same_bits(vjp(w, x, g, w, None, wrt="g"), of_g)
    assert_same_bits(vjp(w, x, g, w, None, wrt=("g", "w"))[1], of_w)
    nothing = vjp(w, x, g, None, None)
    assert [a.shape for a in nothing] == [(2, 1), (3,), (2, 3)]
    assert not any(a.any() for a in nothing)
    assert_same_bits(P.tanh.vjp.jvp([0.5, 1.0], 1.0, 1.0, None), P.tanh.second_derivative([0.5, 1]))
    assert_same_bits(P.relu.vjp.jvp([-1.0, 1.0], np.inf, np.inf, None), np.zeros(2))
    with np.errstate(all="ignore"):
        assert_same_bits(
            P.multiply.vjp.jvp(2.0, 3.0, np.inf, 1.0, 1.0, None)[0], np.float64(np.inf)
        )


@primitives
def test_errors(P: Any) -> None:
    x, g = np.ones((2, 3)), np.ones((4, 2, 3))
    for call, message in (
        (
            lambda: P.tanh.vjp.jvp(x, g, np.ones(3), None),
            r"tanh.vjp.jvp: t has shape \(3,\), x has",
        ),
        (lambda: P.tanh.vjp.jvp(x, g, None, x), r"tg has shape \(2, 3\), g has \(4, 2, 3\)"),
        (lambda: P.tanh.vjp.jvp(x, np.ones(3), x, None), r"g has shape \(3,\), which must end in"),
        (
            lambda: P.tanh.vjp.vjp(x, g, x),
            r"tanh.vjp.vjp: h has shape \(2, 3\), the cotangent of x",
        ),
        (
            lambda: P.power.vjp.vjp(x, 2.0, x, x, x),
            r"hx has shape \(2, 3\), the cotangent of x has",
        ),
        (lambda: P.power.vjp.vjp(x, 2.0, x, x, None, wrt="y"), "wrt must be 'w', 'x', 'g'"),
        (lambda: P.power.vjp.jvp(x, np.ones(2), x, x, None, None), "they do not broadcast"),
        (lambda: P.tanh.vjp.vjp(x, g, g, out=(None,)), "there are 2 results"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="g is None"):
        P.tanh.vjp.jvp(x, None, x, None)
    with pytest.raises(TypeError, match=r"tanh\.vjp\.jvp\(\) missing 1 required"):
        P.tanh.vjp.jvp(x, x, x)


@rows
@primitives
def test_how_they_are_found(row: OpRow, P: Any) -> None:
    f = getattr(P, row.name)
    assert {"jvp", "vjp"} <= set(dir(f.vjp))
    assert isinstance(f.second_derivative, np.ufunc) == (
        P is pb and native is not None and row.nin == 1
    )
    assert pickle.loads(pickle.dumps(f.second_derivative)) == f.second_derivative
    for name in ("jvp", "vjp"):
        method = getattr(f.vjp, name)
        again = pickle.loads(pickle.dumps(method))
        assert again == method
        doc = inspect.getdoc(method) or ""
        assert doc.startswith(f"{row.name}.vjp.{name}({', '.join(row.operands)}, g, ")
        assert all(len(line) <= 100 for line in doc.splitlines())
    assert pickle.loads(pickle.dumps(f.vjp)).jvp == f.vjp.jvp

"""Reductions of some elements: `where`, masked arrays, and the weights of logsumexp."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
from oracles import assert_same_bits
from protocol import TWINS, backends, dtypes
from pullback.tables.reductions import REDUCTIONS
from reduction_oracles import leading

INF, NAN = np.inf, np.nan
names = pytest.mark.parametrize("name", REDUCTIONS)
SHAPES = (((40,), 0), ((7, 12), 1), ((9, 5, 3), 1), ((50, 4), 0), ((4, 3, 5), (0, 2)))


def sliced(array: Any, axis: Any) -> Any:
    """Return an array as rows of what is reduced together."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    moved = np.moveaxis(array, axes, range(-len(axes), 0))
    return moved.reshape(-1, math.prod(array.shape[a] for a in axes))


def results(op: Any, x: Any, y: Any, axis: Any, **options: Any) -> list[Any]:
    """Return what all methods give, those of the operand's shape behind the others."""
    given = leading(op.__name__, x, y)
    values = [op(*given, axis=axis, **options)]
    if op.row.is_map:
        return [*values, *(f(x, y, axis=axis, **options) for f in (op.vjp, op.jvp))]
    g = np.linspace(1, 2, values[0].size).astype(x.dtype).reshape(values[0].shape)
    tangents = (y, x)[: len(op.row.operands)]
    values += [op.jvp(*given, *tangents, axis=axis, **options)]
    value, gradient = op.value_and_grad(*given, axis=axis, **options)
    assert_same_bits(value, values[0])
    slopes = [op.grad(*given, axis=axis, **options), op.vjp(*given, g, axis=axis, **options)]
    assert_same_bits(np.asarray(gradient), np.asarray(slopes[0]))
    J = op.jacobian(*given, axis=axis, **options)
    sums = [
        each.todense().sum(axis=0).reshape(x.shape) for each in (J if len(tangents) > 1 else [J])
    ]
    assert_same_bits(np.asarray(sums), np.asarray(slopes[0]).reshape(len(sums), *x.shape))
    return [*values, *(leaf for s in slopes for leaf in (s if isinstance(s, tuple) else (s,)))]


@dtypes
@names
def test_results_are_those_of_the_elements_that_are_kept(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    for primitives in TWINS:
        op = getattr(primitives, name)
        for shape, axis in SHAPES:
            x, y = rng.uniform(0.5, 1.5, (2, *shape)).astype(dtype)
            where = rng.random(shape) < 0.7
            where |= ~where.any(axis=axis, keepdims=True)  # none is left out as a whole
            hidden = np.where(where, x, dtype.type(NAN)), np.where(where, y, dtype.type(INF))
            masked = np.ma.array(hidden[0], mask=~where)
            found = results(op, *hidden, axis, where=where)
            rows, keep = sliced(np.arange(x.size).reshape(shape), axis), sliced(where, axis)
            other = np.ma.array(hidden[1], mask=~where) if name == "dot" else hidden[1]
            assert_same_bits(op(*leading(name, masked, other), axis=axis), found[0])
            count = found[0].size if not op.row.is_map else len(rows)
            for result in found:
                if np.shape(result) == shape:
                    hidden_as = op.row.hidden if result is found[0] else 0
                    np.testing.assert_array_equal(result[~where], hidden_as)
            g = np.linspace(1, 2, count).astype(dtype)
            for i in {0, len(rows) // 2, len(rows) - 1}:
                own = rows[i][keep[i]]
                vector = g[i] if not op.row.is_map else y.reshape(-1)[own]
                given = leading(name, x.reshape(-1)[own], y.reshape(-1)[own])
                pulled = op.vjp(*given, vector)
                near(found[0], i, own, op(*given), op.row.is_map)
                for ours, wanted in zip(
                    found[-len(op.row.operands) :] if not op.row.is_map else found[1:2],
                    pulled if isinstance(pulled, tuple) else (pulled,),
                    strict=True,
                ):
                    near(ours, i, own, wanted, True)
                if op.row.is_map:
                    near(found[2], i, own, op.jvp(*given, y.reshape(-1)[own]), True)
                else:
                    tangents = (given[0], y.reshape(-1)[own])[::-1][: len(op.row.operands)]
                    near(found[1], i, own, op.jvp(*given, *tangents), False)


def near(ours: Any, i: int, own: Any, wanted: Any, elements: bool) -> None:
    """Fail unless a slice's results are those of what it keeps."""
    actual = np.asarray(ours).reshape(-1)[own if elements else i]
    eps = np.finfo(np.asarray(ours).dtype).eps
    scale = np.abs(wanted).max(initial=0)
    np.testing.assert_allclose(actual, wanted, rtol=64 * eps, atol=64 * eps * scale)


@backends
@names
def test_slices_that_keep_nothing(name: str, primitives: Any) -> None:
    op, row = getattr(primitives, name), REDUCTIONS[name]
    x = np.array([[NAN, INF], [1.0, 2.0]])
    where = np.array([[False], [True]])
    given = leading(name, x, x)
    if row.is_map:
        assert op(x, where=where)[0].tolist() == [row.hidden] * 2
        assert op.vjp(x, x, where=where)[0].tolist() == [0, 0]
        assert op.jvp(x, x, where=where)[0].tolist() == [0, 0]
        assert op(x, where=where)[1].tolist() == op(x[1]).tolist()
        return
    if row.empty is None:
        with pytest.raises(ValueError, match=f"{name}.*where leaves no elements along axis 1"):
            op(*given, axis=1, where=where)
        return
    value = op(*given, axis=1, where=where)
    np.testing.assert_array_equal(value, [row.empty, op(*leading(name, x[1], x[1]))])
    gradients = op.grad(*given, axis=1, where=where)
    for gradient in gradients if isinstance(gradients, tuple) else (gradients,):
        assert gradient[0].tolist() == [0, 0]
    tangents = (x,) * len(row.operands)
    assert op.jvp(*given, *tangents, axis=1, where=where)[0] == 0
    np.testing.assert_array_equal(op(*given, where=False), row.empty)


@backends
def test_what_where_may_be(primitives: Any) -> None:
    x = np.arange(6.0).reshape(2, 3)
    op = primitives.sum
    assert op(x, where=True) == op(x, where=np.True_) == op(x, where=np.ones((2, 3), bool)) == 15
    assert op(x, where=[True, False, True]) == 10
    assert op(x, axis=1, where=[[True], [False]]).tolist() == [3, 0]
    out = np.full(2, NAN)
    assert op(x, axis=1, where=x > 1, out=out) is out
    assert out.tolist() == [2, 12]
    stack = op.vjp(x, np.ones((4, 2)), axis=1, where=x > 1)
    np.testing.assert_array_equal(stack, np.broadcast_to(x > 1, (4, 2, 3)))
    for method, given in (
        ("value", ()),
        ("grad", ()),
        ("vjp", (1.0,)),
        ("jvp", (x,)),
        ("jacobian", ()),
    ):
        f = getattr(op, method)
        with pytest.raises(TypeError, match=r"sum.*where has dtype int64, which is not bool"):
            f(x, *given, where=[1, 0, 1])
        with pytest.raises(ValueError, match=r"sum.*where has shape \(2,\), x has \(2, 3\)"):
            f(x, *given, where=[True, False])
        with pytest.raises(ValueError, match=r"sum.*where has shape \(1, 2, 3\), x has"):
            f(x, *given, where=np.ones((1, 2, 3), bool))
        with pytest.raises(TypeError, match=r"sum.*where is a masked array"):
            f(x, *given, where=np.ma.array(x > 1))
    with pytest.raises(TypeError, match="unexpected keyword argument 'b'"):
        op(x, b=1)


# --- weights --------------------------------------------------------------------------------------

WEIGHTED = [
    ([0, -50], [1, 2]),
    ([0, -50], [1, -2]),
    ([0, 0], [1, -1]),
    ([1, 2, 3], [1, -1, 2]),
    ([1, 2, 3], [0.5, 0, 1e-3]),
    ([80, -80], [1e-30, 1e30]),
    ([1e4, 1e4 + 1], [3, 5]),
    ([-3, 4], [-1, -1]),
    ([INF, 2], [0, 3]),
    ([INF, 2], [2, 3]),
    ([-INF, 2], [7, 3]),
    ([-INF, -INF], [7, 3]),
    ([NAN, 2], [0, 3]),
    ([1, 2], [0, 0]),
    ([5], [2]),
]


@backends
@dtypes
def test_weights_against_mathematics(dtype: Any, primitives: Any) -> None:
    op = primitives.logsumexp
    for given, weights in WEIGHTED:
        x, b = np.array(given, dtype), np.array(weights, dtype)
        with mpmath.workprec(200):
            # 0 * inf is none of the weights' business.
            kept = [
                (mpmath.mpf(float(v)), mpmath.mpf(float(w))) for v, w in zip(x, b, strict=True) if w
            ]
            terms = [w * (mpmath.exp(v) if v > -INF else 0) for v, w in kept]
            total = mpmath.fsum(terms)
            log = (
                mpmath.log(total) if total > 0 else mpmath.mpf("-inf") if total == 0 else mpmath.nan
            )
            value, top = float(log), max((float(v) for v, _ in kept if v > -INF), default=0.0)
            slopes = [float(t / total) if total and abs(total) < INF else NAN for t in terms]
        eps = np.finfo(dtype).eps
        off = 4 * eps * (abs(top) if abs(top) < INF else 0)
        np.testing.assert_allclose(op(x, b=b), value, rtol=4 * eps, atol=off)
        if total > 0 and abs(total) < INF:
            gradient = op.grad(x, b=b)
            wanted = np.zeros(x.size)
            wanted[b != 0] = slopes
            np.testing.assert_allclose(gradient, wanted, rtol=8 * eps)
            np.testing.assert_allclose(
                op.jvp(x, np.ones_like(x), b=b), 1, rtol=16 * eps * np.abs(wanted).sum()
            )
            assert op.vjp(x, dtype.type(2), b=b).tolist() == (2 * gradient).tolist()


@backends
def test_weights_broadcast_and_count(primitives: Any) -> None:
    op, x = primitives.logsumexp, np.random.default_rng(2).normal(size=(30, 4))
    b = np.arange(1.0, 5)
    whole = np.broadcast_to(b, x.shape)
    for axis in (0, 1, None):
        wanted = np.log(np.sum(whole * np.exp(x), axis=axis))
        np.testing.assert_allclose(op(x, axis=axis, b=b), wanted, rtol=1e-14)
        np.testing.assert_allclose(op(x, axis=axis, b=3), op(x, axis=axis) + np.log(3), rtol=1e-14)
        same = op(x, axis=axis, b=np.ones_like(x), keepdims=True)
        np.testing.assert_allclose(same, op(x, axis=axis, keepdims=True), rtol=1e-15)
        where = x > -1
        np.testing.assert_allclose(
            op(x, axis=axis, b=b, where=where), op(x, axis=axis, b=whole * where), rtol=1e-15
        )
        J = op.jacobian(x, axis=axis, b=b)
        np.testing.assert_allclose(J @ x, op.jvp(x, x, axis=axis, b=b), rtol=1e-13)
    assert op(x.astype(np.float32), b=np.float32(2)).dtype == np.float32
    assert op(x.astype(np.float32), b=2.0).dtype == np.float32
    assert op(x.astype(np.float32), b=b).dtype == np.float64
    for bad in (np.ones(3), np.ones((2, 30, 4))):
        with pytest.raises(ValueError, match="logsumexp.*b has shape"):
            op(x, b=bad)
    for unfit in ("a", np.ones(4, complex), np.ma.array(b)):
        with pytest.raises(TypeError, match="logsumexp.* b "):
            op(x, b=unfit)

"""A tangent of None is zero, whatever the operands are: Python numbers, lists, arrays, float32."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pullback as pb
import pytest
from protocol import rows
from pullback.tables.elementwise import OpRow

OPERANDS = {
    "float": lambda v: v,
    "int": lambda v: 1,
    "bool": lambda v: True,
    "float64": np.float64,
    "float32": np.float32,
    "0-d": np.array,
    "list": lambda v: [v, v],
    "array": lambda v: np.array([v, v]),
}
backends = pytest.mark.parametrize("ns", [pb, pb.reference], ids=["default", "reference"])


@backends
def test_of_python_numbers(ns: Any) -> None:
    assert ns.power.jvp(-2.0, 2.0, 1.0, None) == -4
    assert np.isnan(ns.power.jvp(-2.0, 2.0, None, 1.0))
    assert ns.power.jvp(-2, 2, None, None) == 0
    assert ns.tanh.jvp(0.5, None) == 0
    assert pb.chain((ns.power, pb.arg, 2.0)).jvp(-2.0, 1.0) == -4
    assert pb.chain((ns.power, pb.arg, 2.0), ns.exp).jvp(-2.0, None) == 0
    with pytest.raises(TypeError, match=r"multiply\.vjp: g is None, which is no cotangent"):
        ns.multiply.vjp(3.0, 2.0, None)


@backends
@rows
def test_elementwise(row: OpRow, ns: Any) -> None:
    """The other terms alone: products with what the derivative has for the other operand."""
    op = getattr(ns, row.name)
    low, high = row.domain[0].ordinary
    value = low + 0.4 * (high - low)
    for kinds in product(OPERANDS, repeat=row.nin):
        operands = [OPERANDS[kind](value + 0.1 * k) for k, kind in enumerate(kinds)]
        slopes = op.derivative(*operands)
        slopes = slopes if row.nin > 1 else (slopes,)
        for given in product((True, False), repeat=row.nin):
            if all(given):
                continue
            moves = list(zip(operands, given, strict=True))
            tangents = [np.full(np.shape(p), 0.5) if is_given else None for p, is_given in moves]
            terms = [0.5 * s for s, is_given in zip(slopes, given, strict=True) if is_given]
            right = np.broadcast_to(sum(terms), np.shape(slopes[0]))
            for numbers in (False, True):
                t = [0.5 if numbers and a is not None else a for a in tangents]
                tangent = op.jvp(*operands, *t)
                assert np.shape(tangent) == np.shape(slopes[0])
                np.testing.assert_allclose(tangent, right, rtol=1e-5)


@backends
def test_reductions_products_and_losses(ns: Any) -> None:
    a, b, A = [1.0, 2.0], [3.0, 4.0], np.array([[1.0, 2.0], [3.0, 4.0]])
    assert ns.sum.jvp(2.0, None) == ns.logsumexp.jvp(a, None) == ns.norm.jvp(a, 3.0, None) == 0
    assert ns.softmax.jvp(a, None).tolist() == ns.layer_norm.jvp(a, None).tolist() == [0, 0]
    assert ns.dot.jvp(a, b, None, 1.0) == 3
    assert ns.dot.jvp(a, b, None, None) == ns.matmul.jvp(a, b, None, None) == 0
    assert ns.matmul.jvp(a, b, 1.0, None) == 7
    assert ns.quadratic_form.jvp(a, A, None, 1.0) == 9
    assert ns.bilinear_form.jvp(a, A, b, None, None, 1.0) == 17
    assert ns.linear.jvp(A, A, [1.0, 1.0], None, None, None).tolist() == [[0, 0], [0, 0]]
    hvp = ns.squared_error.hvp
    assert [part.tolist() for part in map(np.array, hvp(A, b, a, 0.5, (None, None)))] == [[0, 0], 0]
    both, w, x = (hvp(A, b, a, 0.5, v)[0] for v in ((a, 1.0), (a, None), (None, 1.0)))
    np.testing.assert_allclose(both, w + x)

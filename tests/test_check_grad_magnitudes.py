"""check_grad on elementwise operations, at many magnitudes: what is right is never wrong.

What is wrong is never ok. A derivative of 0 is no such case: beside a value that drowns the
element, a function that no step changes is flat as far as anyone can see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pullback as pb
import pytest
from pullback.tables.elementwise import OPS, OpRow

DTYPES = (np.float64, np.float32)
EXPONENTS = (-12, -7, -3, 0, 3, 7, 12)
KINKS = (1.0, -1.0, 3.0, -3.0, 6.0)


def points(row: OpRow, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield operands of a third of the magnitudes, pairs of them, and points beside kinks."""
    for exponent in EXPONENTS[list(OPS).index(row.name) % 3 :: 3]:
        near, far = (rng.uniform(1, 9, 2) * 10.0**k for k in (exponent, rng.integers(-12, 13)))
        for sign in (1, -1):
            if row.nin == 1:
                yield sign * near[:1]
                yield np.array([sign * rng.uniform(0.2, 0.9), near[0]])
            else:
                yield np.array([[near[0]], [sign * near[1]]])
                yield np.array([[far[0]], [sign * near[1]]])
            if exponent <= 0:
                kink = rng.choice(KINKS)
                beside = kink + sign * near[:1]
                yield beside if row.nin == 1 else np.array([[kink], beside])
        if row.nin == 1:
            yield np.array([near[0], -near[0]])


@pytest.mark.parametrize("row", OPS.values(), ids=OPS.keys())
def test_right_is_never_wrong_and_wrong_is_never_ok(row: OpRow) -> None:
    op = getattr(pb, row.name)
    rng = np.random.default_rng(7)
    resolved = 0

    def f(x: Any) -> Any:
        return np.sum(op(*x) if row.nin > 1 else op(x))

    for turn, point in enumerate(points(row, rng)):
        dtype = DTYPES[turn % 2]
        x = point.astype(dtype)
        with np.errstate(all="ignore"):
            right = np.array(op.derivative(*x) if row.nin > 1 else op.derivative(x))
            finite = np.isfinite(right).all() and np.isfinite(f(x))
        # Poles and waves of length 1 lie closer than the steps.
        hidden = row.domain[0].but_whole and x.min() < -8
        hidden |= row.name == "sinc" and np.abs(x).max() > 2**20
        if not finite or hidden:
            continue
        report = pb.check_grad(f, right, x, directions=2)
        assert not report.failures, (x, right, report)
        assert report.is_linear, (x, right, report)
        told = np.isin(report.verdicts, ["ok", "kink"])
        assert report.ok == told.any()
        resolved += np.count_nonzero(told)
        others = (
            ("sign", -right),
            ("zero", 0 * right),
            ("swapped", np.ravel(right)[::-1].reshape(x.shape)),
        )
        for name, wrong in (("1.01", right * dtype(1.01)), others[turn % 3]):
            differs = np.abs(wrong - right) > 5e-3 * np.abs(right)
            if not differs.any():
                continue
            verdicts = pb.check_grad(f, wrong, x, directions=0).verdicts
            if name == "zero" or not wrong.all():
                differs &= report.verdicts != "unresolved"
            assert not (verdicts[differs] == "ok").any(), (x, right, name, verdicts)
    assert resolved > 1


# f, its gradient, and whether anything of it shows at x.
TINY = {
    "linear": (lambda x: 2 * x, lambda x: np.full_like(x, 2), True),
    "sinh": (pb.sinh, pb.sinh.derivative, True),
    "square": (lambda x: x * x, lambda x: 2 * x, False),
}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("x", [5e-324, -3e-320, 1e-310, -1e-300, 1e-200, 1e-45, -1e-38])
def test_tiny_numbers(name: str, x: float) -> None:
    """Subnormal, or with squares below them: steps have digits, and zeros may have underflowed."""
    f, slope, shows = TINY[name]
    point = np.array([x], np.float32 if abs(x) > 1e-100 and abs(x) < 1e-30 else np.float64)
    right = slope(point)
    report = pb.check_grad(lambda x: f(x).sum(), right, point)
    assert report.verdicts.tolist() == ["ok" if shows else "unresolved"]
    verdicts = pb.check_grad(lambda x: f(x).sum(), right + np.float32(0.01), point).verdicts
    assert verdicts.tolist() == ["wrong"]
    both = np.array([x, 1.0], point.dtype)
    assert pb.check_grad(lambda x: f(x).sum(), slope(both), both)

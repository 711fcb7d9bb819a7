"""Scans: their order and direction, zeros and infinities, ranges, digits, and large slices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pullback as pb
import pytest
from mpmath import mp, mpf
from pullback.tables.reductions import REDUCTIONS

Array = np.ndarray[Any, Any]
NAMES = [name for name, row in REDUCTIONS.items() if row.ordered]
BACKENDS = [pb, pb.reference]
PLAIN: dict[str, Callable[[Array], Array]] = {
    "cumsum": lambda x: np.cumsum(x, -1),
    "cumprod": lambda x: np.cumprod(x, -1),
    "logcumsumexp": lambda x: np.log(np.cumsum(np.exp(x), -1)),
}
INF, NAN = np.inf, np.nan

scans = pytest.mark.parametrize("name", NAMES)
backends = pytest.mark.parametrize("backend", BACKENDS, ids=["backend", "reference"])


def test_every_scan_is_here() -> None:
    assert sorted(PLAIN) == sorted(NAMES)


@backends
@scans
def test_several_axes_are_in_c_order(backend: Any, name: str) -> None:
    rng = np.random.default_rng(0)
    f = getattr(backend, name)
    x, g = rng.normal(size=(2, 3, 4, 5))
    orders = [(0, 1, 2), (2, 1, 0), (1, 0, 2)]
    for axis in (None, 0, 1, -1, (0, 1), (0, 2), (2, 0), (1, 2), (0, 1, 2), ()):
        axes = tuple(range(3)) if axis is None else np.atleast_1d(np.array(axis, int)) % 3
        axes = sorted(axes)
        front = [*(a for a in range(3) if a not in axes), *axes]
        for order in orders:
            stored = x.transpose(order).copy().transpose(np.argsort(order))
            for reverse in (False, True):
                rows = x.transpose(front).reshape(-1, int(np.prod([x.shape[a] for a in axes])))
                wanted = PLAIN[name](rows[:, ::-1])[:, ::-1] if reverse else PLAIN[name](rows)
                back = wanted.reshape([x.shape[a] for a in front]).transpose(np.argsort(front))
                given = f(stored, axis=axis, reverse=reverse)
                np.testing.assert_allclose(given, back, rtol=1e-13, atol=1e-13)
                t = f.jvp(stored, g, axis=axis, reverse=reverse)
                pulled = f.vjp(stored, g, axis=axis, reverse=reverse)
                np.testing.assert_allclose((g * t).sum(), (g * pulled).sum(), rtol=1e-12)


@backends
@scans
def test_jacobian_is_triangular(backend: Any, name: str) -> None:
    x = np.random.default_rng(1).normal(size=(2, 5))
    f, eye = getattr(backend, name), np.eye(5)
    for reverse in (False, True):
        J = f.jacobian(x, reverse=reverse).todense()
        outside = np.triu(np.ones((5, 5)), 1) if not reverse else np.tril(np.ones((5, 5)), -1)
        for k in range(2):
            own = J[5 * k : 5 * k + 5, 5 * k : 5 * k + 5]
            assert not (own * outside).any()
            columns = np.stack([f.jvp(x[k], e, reverse=reverse) for e in eye], axis=1)
            np.testing.assert_allclose(own, columns, rtol=1e-15)
        assert not J[:5, 5:].any()


@backends
def test_factors_of_zero(backend: Any) -> None:
    f = backend.cumprod
    assert f.vjp([2.0, 0, 3, 5], np.ones(4)).tolist() == [1, 2 + 6 + 30, 0, 0]
    assert f.vjp([0.0, 0, 3], np.ones(3)).tolist() == [1, 0, 0]
    assert f.vjp([2.0, 0, 3, 0, 7], np.ones(5)).tolist() == [1, 2 + 6, 0, 0, 0]
    assert f.jvp([2.0, 0, 3, 0, 7], np.ones(5)).tolist() == [1, 2, 6, 0, 0]
    # A term of the other side of a zero is in no unit of this side's.
    assert f.vjp([1.0, 0, 1e200, 1e200], [1e-300, 0, 0, 1e300]).tolist()[0] == 1e-300
    assert f.jvp([1.0, 0, 1], [0, 1e-300, 1e300]).tolist() == [0, 1e-300, 1e-300]


@backends
def test_products_leave_the_range_and_come_back(backend: Any) -> None:
    f, x = backend.cumprod, np.array([1e200, 1e200, 1e-200, 1e-200, 1e-200, 1e-200, 1e200, 1e200])
    assert f(x)[3] == pytest.approx(1)
    assert f(x)[-1] == pytest.approx(1)
    g = np.zeros(8)
    g[-1] = 1
    np.testing.assert_allclose(f.vjp(x, g), 1 / x, rtol=1e-14)
    np.testing.assert_allclose(f.jvp(x, x)[[3, 7]], [4, 8], rtol=1e-14)
    long = np.tile([1e300, 1e-300], 1000)
    np.testing.assert_allclose(f(long)[1::2], 1, rtol=1e-12)
    g = np.zeros(2000)
    g[-1] = 1
    np.testing.assert_allclose(f.vjp(long, g), 1 / long, rtol=1e-12)


@backends
def test_infinities(backend: Any) -> None:
    f = backend.logcumsumexp
    x = np.array([-INF, -INF, 0.0, INF, 1.0, INF])
    assert f(x).tolist() == [-INF, -INF, 0, INF, INF, INF]
    assert f.vjp(x, [0.0, 0, 1, 1, 0, 1]).tolist() == [0, 0, 1, 1.5, 0, 0.5]
    np.testing.assert_array_equal(f.vjp(x, [0.0, 1, 1, 0, 0, 0]), [NAN, NAN, 1, 0, 0, 0])
    np.testing.assert_array_equal(f.jvp(x, np.ones(6)), [NAN, NAN, 1, 1, 1, 1])
    np.testing.assert_array_equal(f([0.0, NAN, 1000]), [0, NAN, NAN])
    assert backend.cumsum([-0.0, -0.0]).tobytes() == np.array([-0.0, -0.0]).tobytes()
    np.testing.assert_array_equal(backend.cumsum([1, INF, 1, -INF, 0]), [1, INF, INF, NAN, NAN])
    np.testing.assert_array_equal(backend.cumprod([2, INF, -1, 0, 1]), [2, INF, -INF, NAN, NAN])
    assert backend.cumprod.vjp([INF, 2.0], [1, 0]).tolist() == [1, 0]
    assert backend.cumprod.jvp([INF], [-1.0]).tolist() == [-1]


@backends
def test_any_magnitude(backend: Any) -> None:
    f, g = backend.logcumsumexp, np.array([1.0, -2.0, 0.5])
    for x in ([-1e300, 0.0, 1e300], [1e300, 0.0, -1e300], [-1e4, -1e4, 1e4], [800.0, 0, 800]):
        row = np.array(x)
        assert np.isfinite(f(row)).all()
        shares = f.jacobian(row).todense()
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-15)
        np.testing.assert_allclose(f.vjp(row, g), g @ shares, rtol=1e-15)


@backends
def test_long_sums_keep_their_digits(backend: Any) -> None:
    n = 20_000
    rng = np.random.default_rng(2)
    x = rng.normal(size=n) * 10.0 ** rng.integers(-8, 8, n)
    sums = backend.cumsum(x)
    for i in range(99, n, 400):  # rounded once, or nearly
        assert abs(sums[i] - math.fsum(x[: i + 1])) <= np.spacing(abs(sums[i]))


@backends
def test_a_ramp_errs_with_its_length(backend: Any) -> None:
    ramp = np.linspace(0, 3, 1000)  # each element is the largest so far
    with mp.workprec(100):
        total = mp.log(mp.fsum(mp.exp(mpf(v)) for v in ramp.tolist()))
        assert abs(total - mpf(float(backend.logcumsumexp(ramp)[-1]))) < 2 * ramp.size * 2.0**-53


@backends
@scans
def test_reverse_has_to_be_a_bool(backend: Any, name: str) -> None:
    f = getattr(backend, name)
    assert f([1.0, 2.0], reverse=np.True_).tolist() == f([1.0, 2.0], reverse=True).tolist()
    for wrong in (2, 0.5, NAN):
        with pytest.raises(ValueError, match=f"{name}: reverse is .*, needs True or False"):
            f([1.0], reverse=wrong)
    with pytest.raises(TypeError, match=f"{name}.vjp: reverse must be a number"):
        f.vjp([1.0], [1.0], reverse=None)

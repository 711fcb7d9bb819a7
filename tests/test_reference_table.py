"""The table itself: complete rows, formulas that agree with derivatives, the dtype rule."""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import oracles
import pytest
from mpmath import mp, mpf
from protocol import dtypes, rows
from pullback.protocol import as_arrays, result_dtype
from pullback.tables.elementwise import OPS, OpRow


@rows
def test_row_is_complete(row: OpRow) -> None:
    assert OPS[row.name] is row
    assert row.nin in (1, 2)
    assert len(row.derivative_formula) == row.nin
    assert row.special
    assert row.summary
    assert row.source
    for point in row.special:
        assert len(point.at) == len(point.derivative) == row.nin
        assert len(point.second) == len(row.second_derivative_formula)
    assert any(all(map(math.isnan, point.at)) for point in row.special) or row.nin == 2
    assert all(0 <= bound <= 3 for bound in row.max_ulp[:2])
    assert 0 <= row.max_ulp[2] <= 4
    assert len(row.largest_term) in (0, 1 + row.nin + len(row.second_derivative_formula))


@rows
def test_derivative_formula_is_the_derivative_of_the_formula(row: OpRow) -> None:
    value, *derivatives = oracles.formulas(row)
    orders = [(1,), (2,)] if row.nin == 1 else [(1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
    points = [p for p in (-7.25, -1.5, -0.3, 0.02, 0.7, 1.9, 12.5) if _inside(row, p)]
    pairs = [(p,) if row.nin == 1 else (p, q) for p in points for q in (points[::-1])]
    checked = 0
    with mp.workdps(50):
        for pair in map(tuple, pairs):
            if row.nin == 2 and pair[0] == pair[1] and row.kinks:
                continue
            point = tuple(map(mpf, pair))
            for order, derivative in zip(orders, derivatives, strict=True):
                numeric = mp.diff(value, point, order)
                assert mp.almosteq(numeric, derivative(*point), rel_eps=1e-18, abs_eps=1e-20)
                checked += 1
    assert checked >= 4


def _inside(row: OpRow, p: float) -> bool:
    return all(any(lo < p < hi for lo, hi, _ in domain.intervals) for domain in row.domain)


@rows
@dtypes
def test_samples_reach_everywhere(row: OpRow, dtype: np.dtype) -> None:
    info = np.finfo(dtype)
    for operand, domain in zip(oracles.samples(row, dtype), row.domain, strict=True):
        assert operand.dtype == dtype
        magnitude = np.abs(operand)
        for sign in (-1, 1):
            if any(lo < sign < hi for lo, hi, _ in domain.intervals):
                side = magnitude[np.sign(operand) == sign]
                assert np.count_nonzero(side < info.tiny) > 5
                assert np.count_nonzero((side > info.tiny) & (side < 1e-3)) > 50
                assert np.count_nonzero((side > 1e-3) & (side < 100)) > 300
                assert np.count_nonzero(side > 1e6) > 30
                assert np.count_nonzero(side > info.max / 2) > 0


# --- the checker checked --------------------------------------------------------------------------


@dtypes
def test_ulp_error(dtype: np.dtype) -> None:
    info = np.finfo(dtype)
    one, tiny, least = mpf(1), mpf(float(info.tiny)), mpf(float(info.smallest_subnormal))
    huge = mpf(float(info.max))
    assert oracles.ulp_error(1.0, one, dtype) == 0
    assert oracles.ulp_error(1.0 + float(info.eps), one, dtype) == 1
    assert oracles.ulp_error(1.0 - float(info.eps) / 2, one, dtype) == 0.5
    assert oracles.ulp_error(0.0, least, dtype) == 1
    assert oracles.ulp_error(0.0, tiny, dtype) == 2 ** (-info.machep)
    assert oracles.ulp_error(float(info.smallest_subnormal), mpf(0), dtype) == 1
    assert oracles.ulp_error(math.inf, huge, dtype) == 1
    assert oracles.ulp_error(math.inf, huge * 4, dtype) == 0
    assert oracles.ulp_error(-math.inf, huge * 4, dtype) == math.inf
    assert oracles.ulp_error(math.inf, one, dtype) > 1e37
    assert oracles.ulp_error(math.nan, one, dtype) == math.inf


def test_no_samples_are_no_proof() -> None:
    with pytest.raises(AssertionError, match="nothing was judged"):
        oracles.worst_error(np.array([]), [], np.dtype(float))
    with pytest.raises(AssertionError, match="dtype"):
        oracles.worst_error(np.ones(1), [mpf(1)], np.dtype(np.float32))


def test_same_bits_tells_zeros_apart() -> None:
    oracles.assert_same_bits([0.0, math.nan], [0.0, -math.nan])
    for other in ([-0.0, math.nan], [0.0, 1.0], [0.0], np.float32([0.0, math.nan])):
        with pytest.raises(AssertionError):
            oracles.assert_same_bits([0.0, math.nan], other)


# --- dtypes ---------------------------------------------------------------------------------------

NARROW = (np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.float16, np.float32)
WIDE = (np.int32, np.uint32, np.int64, np.uint64, np.longlong, np.float64)


@pytest.mark.parametrize("left", NARROW + WIDE)
def test_result_dtype_of_arrays(left: type) -> None:
    own = np.float64 if left in WIDE else np.float32
    a = np.ones(2, left)
    for operand in (a, a[0], a[0:1].reshape(()), a.view(a.dtype.newbyteorder())):
        assert result_dtype("f", operand) == own
        assert result_dtype("f", operand, 1.5) == own
        assert result_dtype("f", 3, operand) == own
        assert result_dtype("f", operand, 3).isnative
    for right in NARROW + WIDE:
        both = np.float64 if left in WIDE or right in WIDE else np.float32
        assert result_dtype("f", a, np.ones((), right)) == both


def test_result_dtype_of_python_values() -> None:
    class Level(IntEnum):
        LOW = 1

    assert result_dtype("f", 1.5) == np.float64
    assert result_dtype("f", 1, 2) == np.float64
    assert result_dtype("f", True) == np.float32
    assert result_dtype("f", True, 2.0) == np.float32
    assert result_dtype("f", [1.5]) == np.float64
    assert result_dtype("f", [1], np.ones(1, np.float32)) == np.float64
    assert result_dtype("f", np.float64(1), np.ones(1, np.float32)) == np.float64
    assert result_dtype("f", Level.LOW, np.ones(1, np.float32)) == np.float32


@pytest.mark.parametrize(
    "bad",
    [
        1j,
        np.ones(2, np.complex64),
        np.ones(2, np.longdouble),
        np.array([None]),
        np.array(["a"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(1, [("a", float)]),
        None,
        "text",
    ],
    ids=str,
)
def test_other_dtypes_name_operation_argument_and_dtype(bad: object) -> None:
    said = f"not {bad!r}" if bad is None or isinstance(bad, str) else str(np.asarray(bad).dtype)
    with pytest.raises(TypeError) as caught:
        result_dtype("multiply", 1.0, bad)
    for part in ("multiply", "argument x", said):
        assert part in str(caught.value)
    with pytest.raises(TypeError, match="argument g"):
        result_dtype("tanh.vjp", 1.0, bad, names=("x", "g"))


def test_as_arrays() -> None:
    x = np.arange(3.0, dtype=np.float32)
    same, weak = as_arrays("f", x, 2)
    assert same is x
    assert weak.dtype == np.float32
    assert weak.shape == ()
    (swapped,) = as_arrays("f", x.astype(">f4"))
    assert swapped.dtype.isnative
    assert (swapped == x).all()
    with np.errstate(all="raise"):
        assert as_arrays("f", x, 1e300)[1] == np.inf


@pytest.mark.parametrize("row", [row for row in OPS.values() if row.nin == 1], ids=lambda r: r.name)
def test_where_the_value_or_its_slope_jumps_is_a_kink(row: OpRow) -> None:
    step = 1e-9
    for x in {0.0, *(point.at[0] for point in row.special)} - {math.inf, -math.inf}:
        with np.errstate(all="ignore"):
            before, after = (
                np.array([row.value(at), row.derivative(at)]).ravel()
                for at in (np.array([x - step]), np.array([x + step]))
            )
        if np.isfinite([before, after]).all() and np.abs([before, after]).max() < 1e3:
            jumps = bool(np.abs(after - before).max() > 1e-3)
            assert not jumps or any(eval(kink, {"x": x}) == 0 for kink in row.kinks), x

"""What tests judge against: mpmath values, ULP distances, samples and special values.

A row's formulas are evaluated to `PRECISION` bits, so an oracle shares no arithmetic with what it
judges. Errors follow one definition of the unit in the last place, subnormals included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import mpmath
import numpy as np
from mpmath import mp, mpf
from pullback.tables.elementwise import OPS, Domain, OpRow

PRECISION = 200
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Format(NamedTuple):
    """A binary floating-point format: significand bits and range of exponents."""

    precision: int
    emin: int
    emax: int


FORMATS = {
    np.dtype(np.float32): Format(24, -126, 127),
    np.dtype(np.float64): Format(53, -1022, 1023),
}


# --- distances ------------------------------------------------------------------------------------


def ulp(exact: Any, dtype: np.dtype[Any]) -> Any:
    """Return 2**(max(floor(log2 |exact|), emin) - p + 1) as an mpf."""
    precision, emin, _ = FORMATS[np.dtype(dtype)]
    exponent = emin if exact == 0 else max(mpmath.frexp(exact)[1] - 1, emin)
    return mp.ldexp(1, exponent - precision + 1)


def ulp_error(actual: float, exact: Any, dtype: np.dtype[Any], scale: Any = None) -> float:
    """Return |actual - exact| in units in the last place of the finite real number `exact`.

    Units are those of `scale` where that is given. An infinity counts as the first power of two
    that overflows, so it is as wrong as `exact` is far below that, and right beyond it. NaN is
    infinitely wrong.
    """
    actual = float(actual)
    if math.isnan(actual):
        return math.inf
    with mp.workprec(PRECISION):
        if math.isinf(actual):
            if (actual > 0) != (exact > 0):
                return math.inf
            overflow = mp.ldexp(1, FORMATS[np.dtype(dtype)].emax + 1)
            distance = max(overflow - abs(exact), 0)
        else:
            distance = abs(mpf(actual) - exact)
        return float(distance / ulp(exact if scale is None else scale, dtype))


def assert_same_bits(actual: Any, desired: Any) -> None:
    """Fail unless shape, dtype and bits agree; a zero's sign counts, a NaN's payload not."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    if actual.dtype != desired.dtype or actual.shape != desired.shape:
        raise AssertionError(
            f"{actual.dtype} of shape {actual.shape} is not {desired.dtype} of {desired.shape}"
        )
    if actual.dtype.kind in "biufc" and actual.tobytes() == desired.tobytes():
        return
    same = (actual == desired) & (np.signbit(actual) == np.signbit(desired))
    same |= np.isnan(actual) & np.isnan(desired)
    if not same.all():
        where = tuple(int(i[0]) for i in np.nonzero(~same)) if same.ndim else ()
        raise AssertionError(
            f"{np.count_nonzero(~same)} of {same.size} elements differ, first at {where}: "
            f"{actual[where]!r} is not {desired[where]!r}"
        )


# --- exact values ---------------------------------------------------------------------------------


def _erfc(x: Any) -> Any:
    """Return erfc(x), also where mpmath's overflows: there it underflows in every format."""
    far = mpf(1 << 20)
    return mpmath.erfc(x) if abs(x) < far else mpmath.exp(-x * x) / x if x > 0 else mpf(2)


def _psi(order: int, x: Any) -> Any:
    """Return psi(order, x) by reflection left of 0, where mpmath takes as many steps as x is."""
    if x > 0:
        return mpmath.psi(order, x)
    with mp.extraprec(30):
        cot, right = mp.pi * mpmath.cospi(x) / mpmath.sinpi(x), mpmath.psi(order, 1 - x)
        square = mp.pi**2 + cot**2
        return (right - cot, square - right, right - 2 * cot * square)[order]


_VOCABULARY = {name: getattr(mpmath, name) for name in dir(mpmath) if not name.startswith("_")}
_VOCABULARY |= {"erfc": _erfc, "psi": _psi}


def _erfinv(x: Any) -> Any:
    """Return erf's inverse by Halley's steps; mpmath's own takes many times as long."""
    if abs(x) > 0.5:
        return mpmath.sign(x) * _erfcinv(1 - abs(x))
    t = x * mpmath.sqrt(mp.pi) / 2
    for _ in range(3 + mp.prec.bit_length()):
        step = (mpmath.erf(t) - x) / (2 / mpmath.sqrt(mp.pi) * mpmath.exp(-t * t))
        t -= step / (1 + t * step)
        if abs(step) ** 3 <= mp.ldexp(abs(t) ** 3, -mp.prec):
            break
    return t


def _erfcinv(q: Any) -> Any:
    """Return erfc's inverse, of small numbers by Halley's steps on its logarithm."""
    if q > 1:
        return -_erfcinv(2 - q)
    if q > 0.5:
        return _erfinv(1 - q)
    log = mpmath.log(q)
    t = mpmath.sqrt(-log - mpmath.log(mpmath.sqrt(mp.pi * -log)) / 2)
    for _ in range(3 + mp.prec.bit_length()):
        tail = mpmath.erfc(t)
        hazard = 2 / mpmath.sqrt(mp.pi) * mpmath.exp(-t * t) / tail
        step = (mpmath.log(tail) - log) / hazard
        t += step * (1 - (hazard / 2 - t) * step)
        if abs(step) ** 3 <= mp.ldexp(t**3, -mp.prec):
            break
    return t


class Exact(list[Any]):
    """Exact numbers, and as much of each as vectors of doubles can hold.

    ``high + low`` is the number times ``2**shift``, where `plain` says so; `binade` is the largest
    power of two in it.
    """

    def __init__(self, numbers: Iterable[Any]) -> None:
        super().__init__(numbers)
        far = 1 << 20  # beyond all formats
        parts = [_bits(number) for number in self]
        sign, high, low, end = (np.array(part) for part in zip(*parts, strict=True))
        end = np.clip(end, -far, far).astype(int)
        self.binade = end - 1
        self.shift = np.where(end < -830, 700, 0)
        self.plain = end < 997
        with np.errstate(all="ignore"):
            self.high = sign * np.ldexp(high.astype(float), end - 53 + self.shift)
            self.low = sign * np.ldexp(low.astype(float), end - 106 + self.shift)
        self.low[~self.plain] = 0
        for i in np.flatnonzero(high == 0):  # zero, infinite or NaN
            self.high[i] = float(self[i])
            self.plain[i] = self.high[i] == 0


_HALF = (1 << 53) - 1


def _bits(number: Any) -> tuple[int, int, int, int]:
    """Return a number's sign, its first 53 bits and the next, and the exponent of all of them."""
    sign, bits, exponent, count = number._mpf_
    bits = int(bits << 106 - count if count <= 106 else bits >> count - 106)
    end = exponent + count if bits else -(1 << 20)
    return -1 if sign else 1, bits >> 53, bits & _HALF, max(-(1 << 30), min(end, 1 << 30))


def kept(f: Callable[..., Any]) -> Callable[..., Any]:
    """Remember the last numbers: value, derivatives and terms at a point ask for the same ones."""

    @lru_cache(64)
    def at(precision: int, *x: Any) -> Any:
        return f(*x)

    return lambda *x: at(mp.prec, *x)


_VOCABULARY |= {"erfinv": _erfinv, "erfcinv": _erfcinv}
_VOCABULARY |= {
    name: kept(_VOCABULARY[name])
    for name in (
        "erf",
        "erfc",
        "erfcinv",
        "erfinv",
        "exp",
        "log1p",
        "loggamma",
        "power",
        "psi",
        "tanh",
    )
}


def formula(expression: str, operands: Sequence[str]) -> Callable[..., Any]:
    """Return a function of mpf numbers from an expression in mpmath's vocabulary."""
    expression = expression.replace("w**x", "power(w, x)")
    function = eval(f"lambda {', '.join(operands)}: {expression}", dict(_VOCABULARY))

    def exact(*point: Any) -> Any:
        result = function(*point)
        return result if isinstance(result, mpf) else mpf(result)

    return exact


def formulas(row: OpRow) -> tuple[Callable[..., Any], ...]:
    """Return the exact value, derivatives and second derivatives of an operation."""
    texts = (row.formula, *row.derivative_formula, *row.second_derivative_formula)
    return tuple(formula(text, row.operands) for text in texts)


def bound_of(row: OpRow, which: int) -> float:
    """Return the bound of the value (`which` 0), a derivative, or behind them a second one."""
    return row.max_ulp[0 if which == 0 else 1 if which <= row.nin else 2]


def scales_of(row: OpRow, which: int, points: Sequence[Any]) -> Any:
    """Return what a result's errors are also measured by, or None."""
    if which == 0 and row.ulp_of_operands:
        return np.max(np.abs(points), axis=0)
    text = row.largest_term[which] if row.largest_term else ""
    if not text:
        return None
    term = formula(text, row.operands)
    with mp.workprec(60):
        return np.array(
            [float(term(*map(mpf, p))) for p in zip(*map(np.ndarray.tolist, points), strict=True)]
        )


@lru_cache(maxsize=2)
def exact_samples(name: str, dtype: np.dtype[Any]) -> list[Exact]:
    """Return a row's exact value, derivatives and second derivatives at `samples`.

    Cached for one test, since several backends are judged at the same points.
    """
    row = OPS[name]
    outputs = formulas(row)
    with mp.workprec(PRECISION):
        numbers = []
        for point in zip(*(s.tolist() for s in samples(row, dtype)), strict=True):
            at = [*map(mpf, point)]
            numbers.append([exact(*at) for exact in outputs])
    return [*map(Exact, zip(*numbers, strict=True))]


# --- where to look --------------------------------------------------------------------------------


def special_values(dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return zeros, infinities, NaN and the numbers at the edges of a format."""
    info = np.finfo(dtype)
    positive = [0.0, info.smallest_subnormal, info.tiny, info.eps, 0.5, 1.0, 2.0, 1e3, info.max]
    return np.array([*positive, math.inf, math.nan, *(-x for x in positive), -math.inf], dtype)


def _candidates(dtype: np.dtype[Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return floats from every binade of either sign, more of them where functions vary."""
    precision, emin, emax = FORMATS[dtype]
    exponents = np.arange(emin - precision + 1, emax + 1)
    exponents = np.repeat(exponents, 2) if dtype == np.float32 else exponents[::-2]
    binades = np.concatenate(
        [s * np.ldexp(rng.uniform(1, 2, exponents.size), exponents) for s in (-1.0, 1.0)]
    )
    overflow = 1.1 * math.log(2) * emax  # exp's range, and its underflow's
    underflow = 1.1 * math.log(2) * (emin - precision)
    # Where sine and cosine nearly vanish; at the last one more nearly than at any other float32.
    quadrants = np.append(np.arange(-80, 80) * (math.pi / 2), 16367173 * 2.0**72)
    edges = special_values(dtype)
    edges = np.concatenate([np.nextafter(edges, s * dtype.type(np.inf)) for s in (-1, 0, 1)])
    with np.errstate(over="ignore"):
        return np.concatenate(
            [
                binades.astype(dtype),
                rng.uniform(-20, 20, 900).astype(dtype),
                rng.uniform(underflow, overflow, 500).astype(dtype),
                quadrants.astype(dtype),
                edges,
            ]
        )


def _pairs(
    left: np.ndarray[Any, Any], right: np.ndarray[Any, Any], rng: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return pairs: near each other, of like magnitude, not far from 1, independent, edges."""
    n, n_edges = 1000, 60
    w, x = rng.choice(left, n), rng.choice(right, n)
    near = rng.choice(left, n)
    neighbour = near + rng.integers(-3, 4, n).astype(near.dtype) * np.spacing(near)
    like = rng.choice(left, n)
    ratio = rng.uniform(0.5, 2.0, n).astype(like.dtype) * rng.choice([-1, 1], n).astype(like.dtype)
    a, b = (rng.choice(side[(abs(side) > 0.01) & (abs(side) < 20)], n) for side in (left, right))
    first, second = left[-n_edges:], right[-n_edges:]  # where the candidates' edges are
    return (
        np.concatenate([near, like, a, w, first, rng.choice(left, second.size)]),
        np.concatenate([neighbour, like * ratio, b, x, rng.choice(right, first.size), second]),
    )


def _inside(operand: np.ndarray[Any, Any], domain: Domain) -> np.ndarray[Any, Any]:
    """Tell which elements lie inside; ends and kinks belong to the golden points."""
    inside = np.zeros(operand.shape, bool)
    for lower, upper, _ in domain.intervals:
        inside |= (operand > lower) & (operand < upper)
    if domain.but_whole:
        inside &= (operand > 0) | (operand != np.rint(operand))
    return inside


@cache
def _samples(name: str, dtype: np.dtype[Any]) -> tuple[np.ndarray[Any, Any], ...]:
    row = OPS[name]
    rng = np.random.default_rng(20)
    with np.errstate(all="ignore"):
        points: tuple[np.ndarray[Any, Any], ...] = tuple(
            c[_inside(c, domain)] for domain in row.domain for c in [_candidates(dtype, rng)]
        )
        if row.nin == 2:
            points = _pairs(points[0], points[1], rng)
        keep = np.ones(points[0].shape, bool)
        for operand, domain in zip(points, row.domain, strict=True):
            keep &= _inside(operand, domain)
        if row.name == "power":  # a few far beyond over- and underflow do: they take mpmath longest
            far = np.abs(points[1] * np.log2(points[0])) > 1e4
            keep &= ~far | (np.arange(keep.size) % 8 == 0) | (np.arange(keep.size) > 4000)
        if row.domain[0].but_whole:  # a reflection takes mpmath twice as long
            keep &= (points[0] > 0) | (np.arange(keep.size) % 4 == 0)
        for kink in row.kinks:
            keep &= eval(kink, dict(zip(row.operands, points, strict=True))) != 0
    points = tuple(operand[keep] for operand in points)
    for operand in points:
        operand.flags.writeable = False
    return points


def samples(row: OpRow, dtype: np.dtype[Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """Return one array of sample points per operand: all binades of the domain, kinks left out."""
    return _samples(row.name, np.dtype(dtype))


# --- verdicts -------------------------------------------------------------------------------------


class Worst(NamedTuple):
    """The largest error found, and where."""

    error: float
    index: int


def worst_error(
    actual: Any,
    exact: Sequence[Any],
    dtype: np.dtype[Any],
    scales: Any = None,
) -> Worst:
    """Return the largest ULP error; no samples are an error of their own.

    Units are those of the larger of `exact` and `scales` where these are given.
    """
    actual = np.asarray(actual)
    if len(exact) == 0 or actual.shape != (len(exact),):
        raise AssertionError(f"{actual.shape} results for {len(exact)} samples: nothing was judged")
    if actual.dtype != dtype:
        raise AssertionError(f"result has dtype {actual.dtype}, not {dtype}")
    exact = exact if isinstance(exact, Exact) else Exact(exact)

    # As doubles where these hold all that matters, with all bits elsewhere.
    precision, emin, emax = FORMATS[np.dtype(dtype)]
    with np.errstate(all="ignore"):
        distance = np.abs((np.ldexp(actual.astype(float), exact.shift) - exact.high) - exact.low)
        exponent = np.maximum(exact.binade, emin)
        if scales is not None:
            exponent = np.maximum(exponent, np.frexp(scales)[1] - 1)
        errors = np.ldexp(distance, precision - 1 - exponent - exact.shift)
    plain = exact.plain & (np.abs(actual) < np.ldexp(1.0, np.minimum(emax, 1000 - exact.shift)))
    overflows = np.isinf(actual) & (exact.binade > emax) & (np.sign(actual) == np.sign(exact.high))
    errors[overflows] = 0
    for i in np.flatnonzero(~(plain | overflows)):
        scale = None if scales is None else max(abs(exact[i]), mpf(float(scales[i])))
        errors[i] = ulp_error(actual[i], exact[i], dtype, scale)
    index = int(np.argmax(errors))
    return Worst(float(errors[index]), index)


def assert_accurate(
    row: OpRow,
    dtype: np.dtype[Any],
    which: int,
    function: Callable[..., Any],
    max_ulp: float,
) -> float:
    """Fail if `function` errs by more than `max_ulp` at any sample; return its largest error.

    Parameters
    ----------
    row : OpRow
        The operation.
    dtype : dtype
        float32 or float64.
    which : int
        0 to judge against the value, 1 or 2 against the derivative by that operand, what is behind
        against a second derivative.
    function : callable
        Takes one array per operand, returns an array.
    max_ulp : float
        The bound.
    """
    points = samples(row, dtype)
    actual = np.asarray(function(*points))
    exact_results = exact_samples(row.name, np.dtype(dtype))[which]
    worst = worst_error(actual, exact_results, dtype, scales_of(row, which, points))
    if not worst.error <= max_ulp:
        at = ", ".join(repr(operand[worst.index]) for operand in points)
        exact = mpmath.nstr(exact_results[worst.index], 20)
        raise AssertionError(
            f"{row.name} {dtype}: {worst.error:.4g} ULP > {max_ulp:g} at {at}: "
            f"{actual[worst.index]!r} instead of {exact}"
        )
    return worst.error

"""Scans, whose i-th result is of elements up to the i-th: formulas over rows, as in `reductions`.

A scan is a linear recurrence, y[i] = a[i] y[i - 1] + b[i], with elementwise functions before and
after. Its vjp is one from the last element to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["CUMPROD", "CUMSUM", "LOGCUMSUMEXP", "cumprod_second"]

Array: TypeAlias = npt.NDArray[Any]
Formula: TypeAlias = Callable[..., Array]

_RUN: Final = 128  # mantissas of which the product does not underflow
_NONE: Final = -(2**40)  # the exponent of no term


def _directed(formula: Formula) -> Formula:
    """Return a formula of rows that may be reversed, from one of rows that are not."""

    def either(*rows_and_reverse: Any) -> Array:
        *rows, reverse = rows_and_reverse
        if not reverse:
            return formula(*rows)
        return formula(*(row[:, ::-1] for row in rows))[:, ::-1]

    return either


def _rules(value: Formula, vjp: Formula, jvp: Formula) -> tuple[Formula, Formula, Formula]:
    """Return what a row of the table has, from functions of (x), (x, g) and (x, t)."""
    return _directed(value), _directed(vjp), _directed(jvp)


def _before(x: Array, first: float) -> Array:
    """Return for each element the one before it."""
    shifted = np.full_like(x, first)
    shifted[:, 1:] = x[:, :-1]
    return shifted


def _backward(formula: Formula) -> Formula:
    """Return a formula from the last element to the first."""
    return lambda *rows: formula(*(r[:, ::-1] if np.ndim(r) else r for r in rows))[:, ::-1]


def _recurrence(a: Array, b: Array, times: Any = np.multiply, plus: Any = np.add) -> Array:
    """Return y[i] = a[i] y[i - 1] + b[i] with y[0] = b[0], in log2(n) steps.

    Element by element where an infinity could meet a 0 that is not there.
    """
    a, b, k = a.copy(), b.copy(), 1
    if np.isinf(a).any():
        for i in range(1, b.shape[1]):
            b[:, i] = plus(b[:, i], times(a[:, i], b[:, i - 1]))
        return b
    while k < b.shape[1]:
        b[:, k:] = plus(b[:, k:], times(a[:, k:], b[:, :-k]))
        a[:, k:] = times(a[:, k:], a[:, :-k])
        k *= 2
    return b


# --- sums -----------------------------------------------------------------------------------------


def _cumsum(x: Array) -> Array:
    """Return the sums, in order; what each addition rounds off is summed, too."""
    total = np.cumsum(x, axis=1)
    before = _before(total, 0.0)
    part = total - before
    rest = np.cumsum((before - (total - part)) + (x - part), axis=1)
    return np.where(np.isfinite(rest) & (rest != 0), total + rest, total)


CUMSUM: Final = _rules(_cumsum, lambda _, g: _backward(_cumsum)(g), lambda _, t: _cumsum(t))


# --- exponentials ---------------------------------------------------------------------------------


def _exponentials(x: Array) -> tuple[Array, Array, Array, Array]:
    """Return the largest element m so far, where there is a new one, e, and the sum less 1.

    e is exp(-|x - m|) with m from before x, and the sum is of exp(x[j] - m[i]) over j <= i. A NaN
    is in them, but not in m.
    """
    largest = np.maximum.accumulate(np.where(np.isnan(x), -np.inf, x), axis=1)
    before = _before(largest, -np.inf)
    new = x > before
    high, low = np.where(new, x, before), np.where(new, before, x)
    distance = low - high
    taken = distance - low
    lost = (low - (distance - taken)) - (high + taken)
    e = np.exp(distance)
    e += np.where(np.isfinite(lost), e * lost, 0.0)
    e = np.where(low == high, 1.0, e)
    return largest, new, e, _recurrence(np.where(new, e, 1.0), e)


def _logcumsumexp(x: Array) -> Array:
    largest, _, _, rest = _exponentials(x)
    return np.asarray(largest + np.log1p(rest))


def _logcumsumexp_vjp(x: Array, g: Array) -> Array:
    largest, new, e, rest = _exponentials(x)
    share = np.where(largest == -np.inf, np.nan, 1 / (1 + rest))
    weight = np.where(g == 0, 0.0, g * share)
    decay = np.zeros_like(x)
    decay[:, :-1] = np.where(new, e, 1.0)[:, 1:]
    total = _backward(_recurrence)(decay, weight)
    return total * np.where(new, 1.0, e)


def _logcumsumexp_jvp(x: Array, t: Array) -> Array:
    largest, new, e, rest = _exponentials(x)
    moved = _recurrence(np.where(new, e, 1.0), np.where(new, t, e * t))
    undefined = (largest == -np.inf) & (moved != 0)
    return np.where(undefined, np.nan, moved / (1 + rest))


LOGCUMSUMEXP: Final = _rules(_logcumsumexp, _logcumsumexp_vjp, _logcumsumexp_jvp)


# --- products -------------------------------------------------------------------------------------


def _parts(x: Array, of_zero: int) -> tuple[Array, Array]:
    """Return m and k with x = m 2**k; of what has no mantissa, x and 0, or `of_zero`."""
    plain = np.isfinite(x) & (x != 0)
    mantissas, exponents = np.frexp(np.where(plain, x, 1.0))
    exponents = np.where(plain, exponents, 0).astype(np.int64)
    return np.where(plain, mantissas, x), np.where(x == 0, of_zero, exponents)


def _scaled(x: Array, k: Array, least: int = -4000) -> Array:
    """Return x 2**k, where exponents beyond 4000 and below `least` make no difference."""
    return np.asarray(np.ldexp(x, np.clip(k, least, 4000).astype(int)))


def _prefixes(x: Array) -> tuple[Array, Array, Array, Array]:
    """Return m and k with x = m 2**k, and products M 2**K up to each element; M fits."""
    factors, steps = _parts(x, 0)
    products = np.empty_like(factors)
    last = np.ones(len(x))
    for begin in range(0, x.shape[1], _RUN):
        run = slice(begin, begin + _RUN)
        shift = _parts(last, 0)[1]  # by which the product so far comes back into range
        factors[:, begin] = np.ldexp(factors[:, begin], -shift)
        steps[:, begin] += shift
        products[:, run] = factors[:, run]
        products[:, begin] *= last
        products[:, run] = np.cumprod(products[:, run], axis=1)
        last = products[:, run][:, -1]
    return factors, steps, products, np.cumsum(steps, axis=1)


def _cumprod(x: Array) -> Array:
    _, _, products, exponents = _prefixes(x)
    return _scaled(products, exponents)


def _in_units(factors: Array, terms: Array, exponents: Array) -> tuple[Array, Array, Array]:
    """Return y with y[i] = factors[i] y[i - 1] + terms[i] 2**exponents[i], and its exponents.

    Its unit is the largest term since the last factor 0. Also whether there are no terms.
    """
    largest = _recurrence(np.where(factors == 0, _NONE, 0), exponents, np.add, np.maximum)
    before = _before(largest, _NONE)
    decay = np.where(before <= _NONE // 2, 0.0, _scaled(factors, before - largest, -1000))
    sums = _recurrence(decay, _scaled(terms, exponents - largest, -1000))
    return sums, largest, largest <= _NONE // 2


def _cumprod_vjp(x: Array, g: Array) -> Array:
    # With h[i] = g[i] 2^K[i] it is M[j - 1] 2^-k[j] sum(h[i] m[j + 1] ... m[i] over i >= j).
    factors, steps, products, exponents = _prefixes(x)
    terms, powers = _parts(g, _NONE)
    sums, units, none = _returning(factors, terms, powers + exponents)
    return np.where(none, 0.0, _scaled(_before(products, 1.0) * sums, units - steps))


def _returning(factors: Array, terms: Array, exponents: Array) -> tuple[Array, Array, Array]:
    """Return `_in_units` of y[j] = factors[j + 1] y[j + 1] + terms[j] 2**exponents[j]."""
    of_next = np.zeros_like(factors)
    of_next[:, :-1] = factors[:, 1:]
    backward = (array[:, ::-1] for array in (of_next, terms, exponents))
    sums, units, none = (array[:, ::-1] for array in _in_units(*backward))
    return sums, units, none


def _moved(x: Array, t: Array, prefixes: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """Return the tangents of products in units of M 2^K, as `_in_units` returns them."""
    # y[i] = x[i] y[i - 1] + t[i] P[i - 1]
    factors, steps, products, _ = prefixes
    before = _before(products, 1.0)
    terms, powers = _parts(np.where(before == 0, 0.0, t), _NONE)
    terms = np.where(terms == 0, 0.0, terms * before)
    return _in_units(factors, terms, powers - steps)


def _cumprod_jvp(x: Array, t: Array) -> Array:
    prefixes = _prefixes(x)
    sums, units, none = _moved(x, t, prefixes)
    return np.where(none, 0.0, _scaled(sums, units + prefixes[-1]))


def cumprod_second(x: Array, g: Array, t: Array) -> tuple[Array, Array]:
    """Return the derivative of cumprod's vjp along t, apart from powers of two, and these."""
    # The vjp is P[j - 1] S[j], S[j] = g[j] + x[j + 1] S[j + 1]; so is the derivative of S, with
    # t[j + 1] S[j + 1] in place of g[j].
    factors, steps, products, exponents = prefixes = _prefixes(x)
    terms, powers = _parts(g, _NONE)
    sums, units, _ = _returning(factors, terms, powers + exponents)
    moved, of_moved, _ = _moved(x, t, prefixes)
    terms, powers = _parts(_backward(_before)(np.where(t == 0, 0.0, t * sums), 0.0), _NONE)
    powers += _backward(_before)(units - steps, 0)
    bent, of_bent, _ = _returning(factors, terms, powers)
    one, of_one = _parts(_before(moved, 0.0) * sums, _NONE)
    two, of_two = _parts(_before(products, 1.0) * bent, _NONE)
    of_one += _before(of_moved, 0) + units
    of_two += of_bent
    most = np.maximum(of_one, of_two)
    return _scaled(one, of_one - most) + _scaled(two, of_two - most), most - steps


CUMPROD: Final = _rules(_cumprod, _cumprod_vjp, _cumprod_jvp)

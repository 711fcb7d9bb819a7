"""Reductions and maps of rows: formulas over the rows (S, n) of a float64 array, n > 0.

``values`` returns a number for each row, ``slopes`` its derivative with respect to each element.
`x` holds the operands, all of one shape. The callers silence warnings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.oracle.elementwise import power
from pullback.second_order import column, mantissa_product, to_scale, without_infinities

if TYPE_CHECKING:
    from pullback.tables.reductions import ReductionRow

Array: TypeAlias = npt.NDArray[Any]
Values: TypeAlias = Callable[[tuple[Array, ...], float], Array]
Slopes: TypeAlias = Callable[[tuple[Array, ...], float], tuple[Array, ...]]


def constant(value: float, x: Array) -> Array:
    """Return an array of a constant, in the shape of `x`."""
    return np.full_like(x, value)


# --- norms ----------------------------------------------------------------------------------------


def norm2(x: Array) -> Array:
    """Return the Euclidean norm, whatever the magnitude."""
    scaled, k = to_scale(x)
    return np.asarray(np.ldexp(np.sqrt(np.sum(np.square(scaled), axis=1)), k))


def squared_norm2(x: Array) -> Array:
    """Return the sum of squares; no square underflows that counts."""
    scaled, k = to_scale(x)
    return np.asarray(np.ldexp(np.sum(np.square(scaled), axis=1), 2 * k))


def norm2_slopes(x: Array) -> Array:
    """Return x / norm2(x), 0 where that is 0."""
    scaled, _ = to_scale(x)
    size = np.sqrt(np.sum(np.square(scaled), axis=1))
    return scaled / column(np.where(size == 0, 1, size))


def _to_the(p: float, x: Array) -> Array:
    """Return x**p."""
    return np.asarray(power(x, np.asarray(p)))


def _shares(x: Array, p: float) -> tuple[Array, Array, Array]:
    """Return |x| by its largest element m of each row, the norm by m, and m."""
    size = np.abs(x)
    largest = np.max(size, axis=1)
    share = size / column(np.where(largest == 0, 1, largest))
    share = np.where((largest == np.inf)[:, np.newaxis] & (size < np.inf), 0, share)
    ones = np.where(size == column(largest), 1.0, share)  # inf / inf
    return share, _to_the(1 / p, np.sum(_to_the(p, ones), axis=1)), largest


def norm_p(x: Array, p: float) -> Array:
    """Return the p-norm."""
    if p == 1:
        return np.asarray(np.sum(np.abs(x), axis=1))
    if p == 2:
        return norm2(x)
    if p == np.inf:
        return np.asarray(np.max(np.abs(x), axis=1))
    _, size, largest = _shares(x, p)
    return size * largest


def norm_p_slopes(x: Array, p: float) -> Array:
    """Return sign(x) (|x| / norm)**(p - 1); for p = inf sign(x) / k at each of k ties, else 0."""
    if p == 1:
        return np.sign(x)
    if p == 2:
        return norm2_slopes(x)
    if p == np.inf:
        return np.sign(x) * tie_shares(np.abs(x))
    share, size, largest = _shares(x, p)
    slopes = _to_the(p - 1, share / column(np.where(size == 0, 1, size)))
    # A share of less than 2**-900 may be none, and its small power may be much.
    far = (share < 2.0**-900) & (x != 0)
    if p < 2.5 and far.any():
        norm = np.broadcast_to(column(size * largest), x.shape)[far]
        raised = (np.abs(x[far]) * 2.0**800) / (norm * 2.0**-800)
        half = 2.0 ** (-800 * (p - 1))
        slopes[far] = _to_the(p - 1, raised) * half * half
    return np.sign(x) * slopes


def tie_shares(x: Array) -> Array:
    """Return 1/k at each of the k largest elements of a row, else 0; NaN if one is NaN."""
    largest = np.max(x, axis=1)
    ties = x == column(largest)
    share = 1 / column(np.count_nonzero(ties, axis=1))
    return np.where(np.isnan(column(largest)), np.nan, np.where(ties, share, 0.0))


# --- products -------------------------------------------------------------------------------------


def _factors(x: Array) -> tuple[Array, Array, Array]:
    """Return the sign and mantissa, and the exponent, of each finite factor; else sign and 0."""
    plain = np.isfinite(x) & (x != 0)
    mantissa, exponent = np.frexp(np.where(plain, x, np.copysign(0.5, x)))
    return np.where(plain, mantissa, 2 * mantissa), np.where(plain, exponent, 0), plain


def _composed(mantissa: Array, exponent: Array, zeros: Array, infs: Array, nans: Array) -> Array:
    """Return a product from what is known of it."""
    # In two steps, both exact but the last: half the exponent fits, whatever it is.
    k = np.clip(exponent, -4000, 4000)
    product = np.ldexp(np.ldexp(mantissa, k // 2), k - k // 2)
    product = np.where(infs > 0, np.copysign(np.inf, mantissa), product)
    product = np.where(zeros > 0, np.copysign(0.0, mantissa), product)
    return np.where((nans > 0) | ((zeros > 0) & (infs > 0)), np.nan, product)


def _counts(x: Array) -> tuple[Array, Array, Array]:
    """Return which factors are 0, infinite and NaN."""
    return x == 0, np.isinf(x), np.isnan(x)


def prod(x: Array) -> Array:
    """Return the product; neither over- nor underflows on the way."""
    mantissas, exponents, _ = _factors(x)
    product, exponent = mantissa_product(mantissas)
    kinds = (np.count_nonzero(kind, axis=1) for kind in _counts(x))
    return _composed(product, exponent + np.sum(exponents, axis=1), *kinds)


def prod_slopes(x: Array) -> Array:
    """Return the product of the others for each factor."""
    mantissas, exponents, _ = _factors(x)
    product, exponent = mantissa_product(mantissas)
    others = column(product) / mantissas
    exponent = column(exponent + np.sum(exponents, axis=1)) - exponents
    kinds = (np.count_nonzero(kind, axis=1)[:, np.newaxis] - kind for kind in _counts(x))
    return _composed(others, exponent, *kinds)


# --- exponentials ---------------------------------------------------------------------------------


def _exponentials(x: Array) -> tuple[Array, Array, Array]:
    """Return exp(x - m) with m the largest of each row, their sum, and m; equals to inf share."""
    largest = np.max(x, axis=1)
    infinite = column(largest == np.inf)
    distance = x - column(largest)
    # What the difference has lost.
    taken = distance - x
    lost = (x - (distance - taken)) - (column(largest) + taken)
    e = np.exp(distance)
    e += np.where(np.isfinite(lost), e * lost, 0.0)
    e = np.where(infinite & ~np.isnan(x), np.where(x == np.inf, 1.0, 0.0), e)
    return e, np.sum(e, axis=1), largest


def _log_of_sum(e: Array) -> Array:
    """Return the logarithm of the sum of exponentials, of which the largest is 1."""
    others = e.copy()
    others[np.arange(len(e)), np.argmax(e, axis=1)] -= 1
    return np.asarray(np.log1p(np.sum(others, axis=1)))


def logsumexp(x: Array) -> Array:
    """Return log(sum(exp(x))), without over- or underflow."""
    e, _, largest = _exponentials(x)
    return np.where(np.isinf(largest), largest, largest + _log_of_sum(e))


def softmax(x: Array) -> Array:
    """Return exp(x) / sum(exp(x))."""
    e, total, _ = _exponentials(x)
    return e / column(total)


def softmax_product(x: Array, v: Array) -> Array:
    """Return p (v - <p, v>), the product of softmax's symmetric Jacobian with `v`."""
    p = softmax(x)
    return np.asarray(p * (v - column(np.sum(p * v, axis=1))))


def log_softmax(x: Array) -> Array:
    """Return x - log(sum(exp(x)))."""
    e, _, largest = _exponentials(x)
    distance = np.where(x == column(largest), 0.0, x - column(largest))
    undefined = column(largest == -np.inf)
    return np.where(undefined, np.nan, distance - column(_log_of_sum(e)))


def log_softmax_vjp(x: Array, g: Array) -> Array:
    """Return g - p sum(g)."""
    return np.asarray(g - softmax(x) * column(np.sum(g, axis=1)))


def log_softmax_jvp(x: Array, t: Array) -> Array:
    """Return t - <p, t>."""
    return t - column(np.sum(softmax(x) * t, axis=1))


# --- moments --------------------------------------------------------------------------------------


def _centred(x: Array) -> Array:
    """Return x minus its mean, corrected for the mean's rounding error."""
    centred = x - column(np.mean(x, axis=1))
    return centred - column(np.mean(centred, axis=1))


def variance(x: Array, ddof: float) -> Array:
    """Return sum((x - mean(x))**2) / (n - ddof)."""
    scaled, k = to_scale(x)
    total = np.sum(np.square(_centred(scaled)), axis=1)
    return np.asarray(np.ldexp(total / np.maximum(x.shape[1] - ddof, 0), 2 * k))


def variance_slopes(x: Array, ddof: float) -> Array:
    """Return 2 (x - mean(x)) / (n - ddof)."""
    scaled, k = to_scale(x)
    slopes = 2 * _centred(scaled) / np.maximum(x.shape[1] - ddof, 0)
    return np.asarray(np.ldexp(slopes, column(k)))


def _normalised(x: Array, eps: float) -> tuple[Array, Array, Array]:
    """Return the result, and the rate 1 / sqrt(var(x) + eps) as a number times 2**-k."""
    least = np.frexp(eps)[1] // 2 if eps > 0 else -np.inf  # below which eps is all
    varies = np.ptp(x, axis=1) != 0
    scaled, k = to_scale(np.where(column(varies), x, 0), least)
    centred = _centred(scaled)
    rate = 1 / np.sqrt(np.mean(np.square(centred), axis=1) + np.ldexp(eps, -2 * k))
    return centred * column(rate), rate, k


def layer_norm(x: Array, eps: float) -> Array:
    """Return (x - mean(x)) / sqrt(var(x) + eps)."""
    return _normalised(x, eps)[0]


def layer_norm_product(x: Array, v: Array, eps: float) -> Array:
    """Return r (v - mean(v) - y mean(y v)), the symmetric Jacobian's product with `v`."""
    y, rate, k = _normalised(x, eps)
    v, more = to_scale(v)
    product = column(rate) * (_centred(v) - y * column(np.mean(y * v, axis=1)))
    return np.asarray(np.ldexp(product, column(more - k)))


def _by_size(x: Array, eps: float) -> tuple[Array, Array, Array]:
    """Return the result, and the rate 1 / sqrt(mean(x**2) + eps) as a number times 2**-k."""
    least = np.frexp(eps)[1] // 2 if eps > 0 else -np.inf  # below which eps is all
    scaled, k = to_scale(x, least)
    rate = 1 / np.sqrt(np.mean(np.square(scaled), axis=1) + np.ldexp(eps, -2 * k))
    return scaled * column(rate), rate, k


def rms_norm(x: Array, eps: float) -> Array:
    """Return x / sqrt(mean(x**2) + eps)."""
    return _by_size(x, eps)[0]


def rms_norm_product(x: Array, v: Array, eps: float) -> Array:
    """Return r (v - y mean(y v)), the symmetric Jacobian's product with `v`."""
    y, rate, k = _by_size(x, eps)
    v, more = to_scale(v)
    product = column(rate) * (v - y * column(np.mean(y * v, axis=1)))
    return np.asarray(np.ldexp(product, column(more - k)))


# --- slices ---------------------------------------------------------------------------------------


def _rows(x: Array) -> Array:
    """Return blocks (outer, n, inner) as rows (outer * inner, n) of float64."""
    return np.ascontiguousarray(x.swapaxes(1, 2), np.float64).reshape(-1, x.shape[1])


def _blocks(rows: Array, out: Array) -> None:
    """Write rows to blocks."""
    outer, n, inner = out.shape
    out[...] = rows.reshape(outer, inner, n).swapaxes(1, 2)


def reduce_slices(
    row: ReductionRow,
    parameter: float,
    x: tuple[Array, ...],
    g: Array | None,
    values: Array | None,
    slopes: tuple[Array, ...] | None,
) -> None:
    """Reduce blocks to their values and to derivatives times cotangents.

    Parameters
    ----------
    row : ReductionRow
        The reduction.
    parameter : float
        Its parameter, or 0.
    x : tuple of ndarray, shape (outer, n, inner), n > 0
        The operands, C-contiguous and of one dtype, as all arrays.
    g : ndarray, shape (outer, inner), or None
        Cotangents; None for ones.
    values : ndarray, shape (outer, inner), or None
        Where the values go.
    slopes : tuple of ndarray, shape (outer, n, inner), or None
        Where the gradients go, one per operand.
    """
    assert row.values is not None
    assert row.slopes is not None
    rows = tuple(map(_rows, x))
    with np.errstate(all="ignore"):
        if values is not None:
            values[...] = row.values(rows, parameter).reshape(values.shape)
        if slopes is not None:
            for out, slope in zip(slopes, row.slopes(rows, parameter), strict=True):
                if g is None:
                    _blocks(slope, out)
                else:
                    by = g.reshape(-1, 1).astype(np.float64)
                    _blocks(without_infinities(slope * by, by == 0, rows), out)


def reduce_tangents(
    row: ReductionRow,
    parameter: float,
    x: tuple[Array, ...],
    t: tuple[Array | None, ...],
    out: Array,
) -> None:
    """Write the sums of derivatives times tangents, (outer, inner); None is a tangent of zeros."""
    assert row.slopes is not None
    rows = tuple(map(_rows, x))
    with np.errstate(all="ignore"):
        pairs = [
            (slope, _rows(tangent))
            for slope, tangent in zip(row.slopes(rows, parameter), t, strict=True)
            if tangent is not None
        ]
        total = np.asarray(np.sum(sum(slope * tangent for slope, tangent in pairs), axis=1))
        if (met := np.isnan(total)).any():  # infinities have met, if only on the way
            known = tuple(operand[met] for operand in rows)
            again = [
                (without_infinities(slope[met], tangent[met] == 0, known), tangent[met])
                for slope, tangent in pairs
            ]
            total[met] = _sums(again)
        out[...] = total.reshape(out.shape)


def _sums(pairs: list[tuple[Array, Array]]) -> Array:
    """Return sums of products, in which no product overflows."""
    total = np.zeros(len(pairs[0][0]))
    for slope, tangent in pairs:
        (one, j), (other, k) = to_scale(slope), to_scale(tangent)
        total += np.ldexp(np.sum(one * other, axis=1), j + k)
    return total


def transform_slices(
    row: ReductionRow, parameter: float, method: str, x: Array, v: Array | None, out: Array
) -> None:
    """Write a map's value, or its vjp or jvp with `v`; blocks all."""
    rows = _rows(x)
    with np.errstate(all="ignore"):
        if v is None:
            assert row.value is not None
            result = row.value(rows, parameter)
        else:
            product = row.vjp if method == "vjp" else row.jvp
            assert product is not None
            given = _rows(v)
            result = product(rows, given, parameter)
            nothing = np.all(given == 0, axis=1, keepdims=True)
            result = without_infinities(result, nothing, (rows,))
        _blocks(result, out)

"""Second order of reductions, maps of rows and products, made of their methods of first order.

Of a primitive f with the vjp F(x, g), the formulas are H(t), the derivative of F by x along t. It
is the Hessian of <g, f> times t, which is symmetric. Everything else follows from it:
``f.vjp.jvp(x, g, t, tg)`` is H(t) + F(x, tg), and ``f.vjp.vjp(x, g, h)`` is H(h) and f.jvp(x, h).

A formula calls the engine that its primitive is on. Formulas of rows take `R`, a `RowMethods`, and
float64 arrays of rows (S, n). That of a reduction leaves out the cotangent, which is a factor. It
returns rows and the power of two that they are to be multiplied by, one for each row. None stands
for a tangent, or a result, of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.oracle.scans import cumprod_second

__all__ = [
    "RowMethods",
    "SecondOrder",
    "column",
    "mantissa_product",
    "to_scale",
    "without_infinities",
]

Array: TypeAlias = npt.NDArray[Any]
Blocks: TypeAlias = tuple[Array, ...]
Scaled: TypeAlias = tuple[Array, Any]  # rows, and the exponents of what multiplies them
Tangents: TypeAlias = tuple[Array | None, ...]

_AT_ONCE: Final = 8192  # elements of rows, where there are many
_RUN: Final = 512  # mantissas of which the product does not underflow


# --- rows -----------------------------------------------------------------------------------------


def column(values: Array) -> Array:
    """Return one number for each row as a column, which broadcasts along the rows."""
    return values[:, np.newaxis]


def _shifted(x: Array, k: Any) -> Array:
    """Return x * 2**k."""
    return np.asarray(np.ldexp(x, np.clip(k, -8000, 8000).astype(np.int32)))


def to_scale(x: Array, least: float = -np.inf) -> tuple[Array, Array]:
    """Return x * 2**-k with its largest element of each row in [1/2, 1), and k >= `least`."""
    largest = np.max(np.abs(x), axis=1)
    k = np.where(np.isfinite(largest), np.frexp(largest)[1], 0)
    k = np.maximum(k, least).astype(int)
    return np.ldexp(x, -column(k)), k


def _tamed(x: Array) -> tuple[Array, Array]:
    """Return x * 2**-k, k not 0 where sums of products of rows could over- or underflow."""
    exponent = np.frexp(np.max(np.abs(x), axis=1))[1]
    k = exponent - np.clip(exponent, -400, 400)
    return np.ldexp(x, -column(k)), k


def _times(factor: Array, t: Array) -> Array:
    """Return the product, 0 where `t` is."""
    return np.where(t == 0, 0.0, factor * t)


def mantissa_product(mantissas: Array) -> tuple[Array, Array]:
    """Return the product of each row, apart from a power of two, and that."""
    product, exponent = np.ones(len(mantissas)), np.zeros(len(mantissas), np.int64)
    for begin in range(0, mantissas.shape[1], _RUN):
        run = product * np.prod(mantissas[:, begin : begin + _RUN], axis=1)
        product, shift = np.frexp(run)
        exponent += shift
    return product, exponent


class RowMethods:
    """The methods of an engine's reductions and maps, of float64 rows (S, n).

    Parameters
    ----------
    kernels : module or namespace
        The engine's functions.
    power : callable
        The engine's elementwise power.
    """

    def __init__(self, kernels: Any, power: Callable[[Array, float], Array]) -> None:
        self._kernels, self.power = kernels, power

    def value(self, name: str, p: float, *x: Array) -> Array:
        """Return a reduction's values, a column."""
        values = np.empty((len(x[0]), 1))
        self._kernels.reduce_slices(name, p, tuple(map(_block, x)), None, values, None)
        return values

    def slopes(self, name: str, p: float, x: Array) -> Array:
        """Return a reduction's derivatives."""
        slopes: Array = np.empty((*x.shape, 1))
        self._kernels.reduce_slices(name, p, (_block(x),), None, None, (slopes,))
        return slopes.reshape(x.shape)

    def mapped(self, name: str, p: float, method: str, x: Array, v: Array | None = None) -> Array:
        """Return a map's value, vjp or jvp."""
        out: Array = np.empty((*x.shape, 1))
        given = None if v is None else _block(v)
        self._kernels.transform_slices(name, p, method, _block(x), given, out)
        return out.reshape(x.shape)

    def mean(self, x: Array, y: Array) -> Array:
        """Return the mean of products, a column."""
        return np.asarray(self.value("dot", 0.0, x, y) / x.shape[1])

    def centred(self, x: Array) -> Array:
        """Return x minus its mean: half the derivatives of the variance, with a divisor of 1."""
        return self.slopes("variance", x.shape[1] - 2.0, x)


def _block(rows: Array) -> Array:
    return np.ascontiguousarray(rows)[..., np.newaxis]


# --- reductions: x and t tuples of rows, of each operand ------------------------------------------


def none(_R: RowMethods, x: Blocks, _t: Tangents, _p: float) -> tuple[Any, ...]:
    """Return zeros: of a linear reduction."""
    return (None,) * len(x)


def flat(name: str) -> Callable[..., Any]:
    """Return the H of a reduction that is linear between its kinks: 0, NaN where its slope is."""

    def second(R: RowMethods, x: Blocks, _t: Tangents, p: float) -> tuple[Scaled]:
        slopes = R.slopes(name, p, x[0])
        return ((np.where(np.isnan(slopes), np.nan, 0.0), 0),)

    return second


def dot(_R: RowMethods, _x: Blocks, t: Tangents, _p: float) -> tuple[Any, ...]:
    """Return the other operand's tangent."""
    tx, ty = t
    return None if ty is None else (ty, 0), None if tx is None else (tx, 0)


def squared_norm2(_R: RowMethods, _x: Blocks, t: Any, _p: float) -> tuple[Scaled]:
    """Return 2 t."""
    return ((t[0], 1),)


def norm2(R: RowMethods, x: Blocks, t: Any, _p: float) -> tuple[Scaled]:
    """Return (t - u <u, t>) / norm2(x), where u = x / norm2(x)."""
    (given,), (v,) = x, t
    small, k = to_scale(given)
    v, more = _tamed(v)
    u, size = R.slopes("norm2", 0.0, given), R.value("norm2", 0.0, small)
    second = (v - u * R.value("dot", 0.0, u, v)) / np.where(size == 0, np.inf, size)
    return ((_at_infinities(given, second), column(more - k)),)


def _at_infinities(x: Array, second: Array) -> Array:
    """Return the second derivatives of a norm, in rows with infinite elements by convention."""
    far = np.isinf(x)
    by_convention = np.where(far | np.isnan(x), np.nan, 0.0)
    return np.where(far.any(axis=1, keepdims=True), by_convention, second)


def norm(R: RowMethods, x: Blocks, t: Any, p: float) -> tuple[Scaled]:
    """Return (p - 1) (v**(p - 2) t - f <f, t>) / norm, with v = abs(x) / norm and f the slopes."""
    if p in (1, np.inf):
        return flat("norm")(R, x, t, p)  # type: ignore[no-any-return]
    if p == 2:
        return norm2(R, x, t, p)
    (given,), (v,) = x, t
    small, k = to_scale(given)
    v, more = _tamed(v)
    f, size = R.slopes("norm", p, given), R.value("norm", p, small)
    divisor = np.where(size == 0, 1, size)
    share = np.abs(small) / divisor
    own, apart = _times(R.power(share, p - 2), v), np.zeros(given.shape, int)
    # A share of less than 2**-900 may be none, and its small power may be much.
    far = (share < 2.0**-900) & (given != 0) & (size > 0)
    if p < 3 and far.any():
        whole = np.broadcast_to(_shifted(size, column(k) - 800), given.shape)[far]
        exponent = -1600 * (p - 2)
        apart[far] = math.floor(exponent)
        raised = R.power(np.abs(given[far]) * 2.0**800 / whole, p - 2)
        own[far] = raised * 2.0 ** (exponent - math.floor(exponent)) * v[far]
    along = _shifted(f * R.value("dot", 0.0, f, v), -apart)
    second = np.where(size == 0, 0.0, (p - 1) / divisor * (own - along))
    return ((_at_infinities(given, second), column(more - k) + apart),)


def logsumexp(R: RowMethods, x: Blocks, t: Any, _p: float) -> tuple[Scaled]:
    """Return p (t - <p, t>), where p is softmax(x)."""
    return ((R.mapped("softmax", 0.0, "jvp", x[0], t[0]), 0),)


def variance(R: RowMethods, _x: Blocks, t: Any, ddof: float) -> tuple[Scaled]:
    """Return 2 (t - mean(t)) / (n - ddof)."""
    return ((R.slopes("variance", ddof, t[0]), 0),)


def prod(_R: RowMethods, x: Blocks, t: Any, _p: float) -> tuple[Scaled]:
    """Return the sum over j != i of t[j] times the product of all but x[i] and x[j].

    Without zeros, that is prod(x) / x[i] times the sum of the others' t[j] / x[j]. Where the
    product of the others is 0, the sum has one term at most.
    """
    (given,), (v,) = x, t
    zero = given == 0
    zeros = column(np.count_nonzero(zero, axis=1))
    defined = np.isfinite(given).all(axis=1, keepdims=True)
    m, e = np.frexp(np.where(zero | ~np.isfinite(given), 1.0, given))
    product, exponent = mantissa_product(m)
    tm, te = np.frexp(v)
    quotient, by = np.where(zero, 0.0, tm / m), te.astype(np.int64) - e
    by = np.where(quotient == 0, -8000, by)
    sums, of_sums = _others(quotient, by)
    # With zeros, the term of the one among the others.
    alone = np.where(zero, tm, 0.0)
    first = np.argmax(zero, axis=1)
    last = zero.shape[1] - 1 - np.argmax(zero[:, ::-1], axis=1)
    other = np.where(
        zero & (np.arange(zero.shape[1]) == column(first)), column(last), column(first)
    )
    single = np.take_along_axis(alone, other, 1), np.take_along_axis(te, other, 1)
    has_one = ((zeros == 1) & ~zero) | ((zeros == 2) & zero)
    has_sum = (zeros == 0) | ((zeros == 1) & zero)
    sums = np.where(has_sum, sums, np.where(has_one, single[0], 0.0))
    of_sums = np.where(has_sum, of_sums, np.where(has_one, single[1], 0))
    power = column(exponent + np.sum(e, axis=1, dtype=np.int64)) - e + of_sums
    return ((np.where(defined, column(product) / m * sums, np.nan), power),)


def _others(mantissas: Array, exponents: Array) -> tuple[Array, Array]:
    """Return sums over the others in each row, as numbers and exponents.

    Numbers are relative to the largest, and for that one to the largest of the others.
    """
    at = np.argmax(exponents, axis=1)[:, np.newaxis]
    most = np.take_along_axis(exponents, at, 1)
    terms = _shifted(mantissas, exponents - most)
    zeros = np.zeros((len(terms), 1))
    before = np.cumsum(np.concatenate([zeros, terms[:, :-1]], axis=1), axis=1)
    behind = np.cumsum(np.concatenate([zeros, terms[:, :0:-1]], axis=1), axis=1)[:, ::-1]
    sums, powers = before + behind, np.broadcast_to(most, exponents.shape).copy()
    less = exponents.copy()
    np.put_along_axis(less, at, -8000, 1)
    next_most = np.max(less, axis=1, keepdims=True)
    without = mantissas.copy()
    np.put_along_axis(without, at, 0.0, 1)
    others = np.sum(_shifted(without, exponents - next_most), axis=1, keepdims=True)
    np.put_along_axis(sums, at, others, 1)
    np.put_along_axis(powers, at, next_most, 1)
    return sums, powers


# --- maps of rows: x, g and t ---------------------------------------------------------------------


def softmax(R: RowMethods, x: Array, g: Array, t: Array, _p: float) -> Scaled:
    """Return p (T G - <p T, G>), where T and G are t and g minus their means, weighted by p."""
    p = R.mapped("softmax", 0.0, "", x)

    def centred(v: Array) -> Array:
        less = v - R.value("dot", 0.0, p, v)
        return less - R.value("dot", 0.0, p, less)  # of the mean's rounding error

    moved, G = p * centred(t), centred(g)
    return moved * G - p * R.value("dot", 0.0, moved, G), 0


def log_softmax(R: RowMethods, x: Array, g: Array, t: Array, _p: float) -> Scaled:
    """Return -sum(g) p (t - <p, t>)."""
    return -R.value("sum", 0.0, g) * R.mapped("softmax", 0.0, "jvp", x, t), 0


def layer_norm(R: RowMethods, x: Array, g: Array, t: Array, eps: float) -> Scaled:
    """Return -r**2 (b G + a T + y (mean(T G) + a b eps r**2)).

    Here a and b are the means of y g and y t, and G and T what remains of g and t without their
    means and their parts along y.
    """
    varies = np.ptp(x, axis=1) != 0
    small, share, k = _beside(eps, np.where(column(varies), x, 0.0))
    rate = 1 / (R.value("variance", 0.0, small) + share)
    g, of_g = _tamed(g)
    t, of_t = _tamed(t)
    y = R.mapped("layer_norm", eps, "", x)
    return _normed(R, y, rate, share, R.centred(g), R.centred(t)), column(of_g + of_t - 2 * k)


def rms_norm(R: RowMethods, x: Array, g: Array, t: Array, eps: float) -> Scaled:
    """Return the same, where g and t keep their means."""
    small, share, k = _beside(eps, x)
    rate = 1 / (R.mean(small, small) + share)
    g, of_g = _tamed(g)
    t, of_t = _tamed(t)
    y = R.mapped("rms_norm", eps, "", x)
    return _normed(R, y, rate, share, g, t), column(of_g + of_t - 2 * k)


def _beside(eps: float, x: Array) -> tuple[Array, Array, Array]:
    """Return x 2**-k and eps 2**-2k, which can be added to the squares of x 2**-k, and k."""
    least = np.frexp(eps)[1] // 2 if eps > 0 else -np.inf  # below which eps is all
    small, k = to_scale(x, least)
    return small, column(np.ldexp(eps, -2 * k)), k


def _normed(R: RowMethods, y: Array, rate: Array, share: Array, G: Array, T: Array) -> Array:
    a, b = R.mean(y, G), R.mean(y, T)
    G, T = G - a * y, T - b * y
    return np.asarray(-rate * (b * G + a * T + y * (R.mean(T, G) + a * b * (share * rate))))


def no_curve(_R: RowMethods, x: Array, _g: Array, _t: Array, _p: float) -> Scaled:
    """Return zeros: of a linear map."""
    return np.zeros(x.shape), 0


def logcumsumexp(R: RowMethods, x: Array, g: Array, t: Array, reverse: float) -> Scaled:
    """Return t F(g) - F(g y), where y is the tangent of the value."""
    g, of_g = _tamed(g)
    t, of_t = _tamed(t)

    def pulled(v: Array) -> Array:
        return R.mapped("logcumsumexp", reverse, "vjp", x, v)

    along = R.mapped("logcumsumexp", reverse, "jvp", x, t)
    return _times(pulled(g), t) - pulled(_times(along, g)), column(of_g + of_t)


def cumprod(_R: RowMethods, x: Array, g: Array, t: Array, reverse: float) -> Scaled:
    """Return the derivative of S, of which the vjp is a multiple, and of the multiple."""
    if not reverse:
        return cumprod_second(x, g, t)
    product, k = cumprod_second(x[:, ::-1], g[:, ::-1], t[:, ::-1])
    return product[:, ::-1], k[:, ::-1]


# --- slices ---------------------------------------------------------------------------------------


class SecondOrder:
    """An engine's kernels of rows, with second order.

    Parameters
    ----------
    kernels : module or namespace
        The engine's.
    power : callable
        The engine's elementwise power.
    rows : mapping
        The table of reductions.
    """

    def __init__(self, kernels: Any, power: Any, rows: Mapping[str, Any]) -> None:
        self._rows = rows
        self._methods = RowMethods(kernels, power)
        self._second_rows = kernels.second_rows
        self.reduce_slices = kernels.reduce_slices
        self.reduce_tangents = kernels.reduce_tangents
        self.transform_slices = kernels.transform_slices

    def second_slices(
        self, name: str, p: float, x: Blocks, g: Array, t: Tangents, out: Blocks
    ) -> None:
        """Write H(t) of a reduction or a map; all float64 blocks.

        Parameters
        ----------
        name : str
            Its name.
        p : float
            Its parameter, or 0.
        x : tuple of ndarray, shape (outer, n, inner), n > 0
            The operands.
        g : ndarray
            Cotangents of a reduction, (outer, inner), or of a map, like `x`.
        t : tuple of ndarray or None
            Tangents, like `x`.
        out : tuple of ndarray
            Where the results go, like `x`.
        """
        row = self._rows[name]
        rows = tuple(map(_rows_of, x))
        moved = tuple(None if a is None else _rows_of(a) for a in t)
        of_g = _rows_of(g) if row.is_map else g.reshape(-1, 1)
        results: Any = [
            target.reshape(rows[0].shape)
            if target.shape[2] == 1 and target.flags.c_contiguous
            else np.empty(rows[0].shape)
            for target in out
        ]
        suspects = self._second_rows(name, p, rows[0], of_g, moved[0], results[0])
        groups: list[Any] = []
        if suspects is None:  # a few rows at once, which stay in the cache
            count, n = rows[0].shape
            step = max(_AT_ONCE // n, 1)
            groups = [slice(i, i + step) for i in range(0, count, step)]
        elif suspects:
            groups = [np.flatnonzero(np.frombuffer(suspects, bool))]
        for k in groups:
            some = [None if a is None else a[k] for a in moved]
            found = self._by_formula(row, p, tuple(a[k] for a in rows), of_g[k], some)
            for result, part in zip(results, found, strict=True):
                result[k] = 0.0 if part is None else part
        for result, target in zip(results, out, strict=True):
            if not np.may_share_memory(result, target):
                outer, n, inner = target.shape
                target[...] = result.reshape(outer, inner, n).swapaxes(1, 2)

    def _by_formula(
        self, row: Any, p: float, x: Blocks, g: Array, t: Sequence[Array | None]
    ) -> list[Array | None]:
        """Return H(t) of rows."""
        found: list[Array | None]
        with np.errstate(all="ignore"):
            if row.is_map:
                found = [_times_cotangent(row.second(self._methods, x[0], g, t[0], p), None)]
            else:
                seconds = row.second(self._methods, x, t, p)
                found = [None if a is None else _times_cotangent(a, g) for a in seconds]
        if all(a is None for a in found):
            return found
        nothing = (g == 0).all(axis=1, keepdims=True)
        given = [a for a in t if a is not None]
        nothing |= np.all([(a == 0).all(axis=1, keepdims=True) for a in given], axis=0)
        return [None if a is None else without_infinities(a, nothing, x) for a in found]


def _times_cotangent(second: Scaled, g: Array | None) -> Array:
    """Return a formula's result times the cotangents of a reduction."""
    rows, k = second
    if isinstance(k, int):
        whole = rows if g is None else rows * g
        return whole if k == 0 else whole * 2.0**k
    factor, more = (1.0, 0) if g is None else np.frexp(g)
    return _shifted(rows * factor, k + more)


def _rows_of(blocks: Array) -> Array:
    return np.ascontiguousarray(blocks.swapaxes(1, 2)).reshape(-1, blocks.shape[1])


def without_infinities(result: Array, nothing: Array, operands: Blocks) -> Array:
    """Return 0 for a NaN where nothing can come of anything, unless an operand has one."""
    lost = nothing & ~np.isfinite(result)
    if not lost.any():
        return result
    for operand in operands:
        lost = lost & ~np.isnan(operand).any(axis=1, keepdims=True)
    return np.where(lost, 0.0, result)


# --- products: of operands, tangents and a cotangent, a function for each operand -----------------


Pulls: TypeAlias = tuple[Callable[[], Any], ...]


def _total(terms: list[Any]) -> Any:
    return sum(terms[1:], terms[0]) if terms else None


def multilinear(f: Any, operands: Any, t: Any, g: Any, moving: int | None = None) -> Pulls:
    """Return H of what is linear in each operand, or in the first `moving`: sums of vjps.

    The vjp by an operand is linear in the others, each of which gives way to its tangent.
    """
    few = range(len(operands) if moving is None else moving)

    def by(k: int) -> Any:
        return _total(
            [
                f.vjp(*operands[:j], t[j], *operands[j + 1 :], g, wrt=k)
                for j in few
                if k in few and j != k and t[j] is not None
            ]
        )

    return tuple(lambda k=k: by(k) for k in range(len(operands)))


def matmul(P: Mapping[str, Any], operands: Any, t: Any, g: Any) -> Pulls:
    """Return G tB^T and tA^T G."""
    return multilinear(P["matmul"], operands, t, g)


def linear(P: Mapping[str, Any], operands: Any, t: Any, g: Any) -> Pulls:
    """Return G tW^T, tX^T G and nothing for b, without an activation."""
    return multilinear(P["linear"], operands, t, g, 2)


def bilinear_form(P: Mapping[str, Any], operands: Any, t: Any, g: Any) -> Pulls:
    """Return g (tX v + X tv), the sum of g (tu v^T + u tv^T), and g (tX^T u + X^T tu)."""
    return multilinear(P["bilinear_form"], operands, t, g)


def quadratic_form(P: Mapping[str, Any], operands: Any, t: Any, g: Any) -> Pulls:
    """Return g ((A + A^T) tx + (tA + tA^T) x), and the sum of g (tx x^T + x tx^T)."""
    (x, A), (tx, tA) = operands, t
    form, bilinear = P["quadratic_form"], P["bilinear_form"]

    def by_x() -> Any:
        terms = [] if tx is None else [form.vjp(tx, A, g, wrt=0)]
        return _total(terms + ([] if tA is None else [form.vjp(x, tA, g, wrt=0)]))

    def by_A() -> Any:
        pairs = [] if tx is None else [(tx, x), (x, tx)]
        return _total([bilinear.vjp(u, A, v, g, wrt=1) for u, v in pairs])

    return by_x, by_A

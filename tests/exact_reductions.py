"""What tests of reductions judge by: exact values and gradients of rows, and how far off is fair.

`exact` is the table's formula for mpmath, from which differences to 300 bits give the derivative.
`value` and `gradient` are the table's in long double, 11 bits wider than float64 and with 15 bits
of exponent, for many rows at once; a test holds them to `exact`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pullback as pb
from formulas import written
from mpmath import mp, mpf
from oracles import assert_same_bits
from pullback.tables.reductions import REDUCTIONS as TABLE
from reduction_oracles import Vector
from reduction_oracles import exact as exact_of

Array = np.ndarray[Any, Any]
BITS = 300
UNIT = np.finfo(np.float64).eps / 2  # of the accumulation, in float64 whatever goes in


class Near(NamedTuple):
    """An exact result with the magnitudes that its errors may be proportional to.

    A result errs by `count` roundings of `scale` in its own dtype, and by `terms` times as many
    roundings in float64 as there are terms, whatever their order.
    """

    exact: Array
    count: float
    scale: Array
    terms: Array

    def tolerance(self, n: int, dtype: Any) -> Array:
        """Return the largest error that is fair."""
        info = np.finfo(dtype)
        own = self.count * (np.longdouble(info.eps) * self.scale + info.smallest_subnormal)
        return own + (n + 4) * np.longdouble(UNIT) * self.terms


class Reduction(NamedTuple):
    """A reduction of the last axis: formulas, and the roundings of value and gradient."""

    name: str
    exact: Callable[[list[Any]], Any]
    value: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    counts: tuple[float, float]
    options: dict[str, Any] = {}
    arguments: tuple[Any, ...] = ()
    # Where these are not the results themselves: magnitudes of what is rounded in the result's
    # dtype, and of what is summed in float64, for the value and for the gradient.
    value_scale: Callable[[Array], Array] | None = None
    gradient_scale: Callable[[Array], Array] | None = None
    value_terms: Callable[[Array], Array] | None = None
    gradient_terms: Callable[[Array], Array] | None = None

    @property
    def label(self) -> str:
        """The id of a parametrised test."""
        return "-".join([self.name, *map(str, (*self.arguments, *self.options.values()))])

    def near_value(self, X: Array) -> Near:
        """Return the value of each row of the long double matrix X."""
        value = self.value(X)
        scale, terms = self.value_scale, self.value_terms
        size = np.abs(value)
        return Near(
            value,
            self.counts[0],
            scale(X) if scale else size,
            terms(X) if terms else size,
        )

    def near_gradient(self, X: Array) -> Near:
        """Return the gradient of each row of X."""
        gradient = self.gradient(X)
        scale, terms = self.gradient_scale, self.gradient_terms
        size = np.abs(gradient)
        return Near(
            gradient,
            self.counts[1],
            scale(X) if scale else size,
            terms(X) if terms else size,
        )


def _total(X: Array) -> Array:
    return X.sum(axis=-1)


def _others(X: Array) -> Array:
    """Return the products of all others, from the left and from the right."""
    ones = np.ones((len(X), 1), X.dtype)
    left = np.concatenate([ones, np.cumprod(X, axis=-1)[:, :-1]], axis=-1)
    right = np.concatenate([ones, np.cumprod(X[:, ::-1], axis=-1)[:, :-1]], axis=-1)
    return left * right[:, ::-1]


def _lse(X: Array) -> Array:
    peak = X.max(axis=-1, keepdims=True)
    return peak + np.log(np.exp(X - peak).sum(axis=-1, keepdims=True))


def _largest(X: Array) -> Array:
    return np.abs(X).max(axis=-1)


def _norm(X: Array, p: Any = 2) -> Array:
    return (np.abs(X) ** p).sum(axis=-1, keepdims=True) ** (1 / np.longdouble(p))


# What the table's formulas are written in, of rows.
ROWS = SimpleNamespace(
    **{name: getattr(np, name) for name in ("exp", "log", "sqrt", "sign")},
    **{
        name: partial(getattr(np, name), axis=-1, keepdims=True)
        for name in ("sum", "prod", "mean", "max", "min")
    },
    pick=np.where,
    others=_others,
    norm=_norm,
    norm2=_norm,
    logsumexp=_lse,
)


def _of(
    name: str, counts: tuple[float, float], p: float | None = None, **sizes: Callable[..., Any]
) -> Reduction:
    """Return a reduction as its row states it."""
    row, about = TABLE[name], TABLE[name].parameter
    named = "p" if about is None else about.name
    bound = len(row.leading) > len(row.operands)
    formula = row.formula
    (slope,) = row.derivative_formula
    if p == np.inf:
        formula, slope = "max(abs(x))", "sign(x[i])/k if abs(x[i]) = max(abs(x)) else 0"
    of_rows = written(formula, "x", "n", named)
    slopes = written(slope.replace("prod(x[j] for j != i)", "others(x)"), "x", "n", named, "k", "z")
    parameter = np.longdouble(p or 0)

    def value(X: Array) -> Array:
        return of_rows(ROWS, X, X.shape[-1], parameter)[:, 0]

    def gradient(X: Array) -> Array:
        extremum = value(X)[:, np.newaxis]
        ties = (extremum == X) | ((p == np.inf) & (abs(X) == extremum))
        k = ties.sum(axis=-1, keepdims=True).astype(X.dtype)
        with np.errstate(all="ignore"):
            return np.broadcast_to(slopes(ROWS, X, X.shape[-1], parameter, k, X), X.shape)

    def exact(x: list[Any]) -> Any:
        names = {"x": Vector(x), "n": len(x), named: mpf(p or 0)}
        return max(map(abs, x)) if p == np.inf else exact_of(row.formula, names)

    return Reduction(
        name,
        exact,
        value,
        gradient,
        counts,
        {} if p is None or bound else {named: p},
        (p,) if bound else (),
        **sizes,
    )


def _none(X: Array) -> Array:
    return np.zeros(len(X))


def _deviation(ddof: int) -> dict[str, Callable[..., Any]]:
    """Return the sizes of differences from a mean that is off by a rounding in float64."""

    def value(X: Array) -> Array:
        return X.var(axis=-1, ddof=ddof)

    return {
        "value_terms": lambda X: value(X) + 2 * np.sqrt(value(X)) * _largest(X),
        "gradient_terms": lambda X: (2 * _largest(X) / (X.shape[-1] - ddof))[:, np.newaxis],
    }


def _powers(p: float) -> dict[str, Callable[..., Any]]:
    return {"gradient_terms": lambda X: p * (np.abs(X) / _norm(X, p)) ** np.longdouble(p - 1)}


REDUCTIONS = [
    _of("sum", (0.5, 0), value_terms=lambda X: _total(abs(X))),
    _of(
        "mean",
        (1, 0.5),
        value_terms=lambda X: _total(abs(X)) / X.shape[-1],
        gradient_terms=np.zeros_like,
    ),
    _of("prod", (0.5, 1)),
    _of("norm1", (0.5, 0), gradient_terms=np.zeros_like),
    _of("norm2", (1, 1.5)),
    _of("squared_norm2", (0.5, 0), gradient_terms=np.zeros_like),
    _of("norm", (2, 4), 1.5, **_powers(1.5)),
    _of("norm", (2, 6), 3.0, **_powers(3.0)),
    # Half an ULP of a share; ones and zeros have no rounding to make.
    _of("norm", (0, 0.5), np.inf, value_terms=_none, gradient_terms=np.zeros_like),
    _of("max", (0, 0.5), value_terms=_none, gradient_terms=np.zeros_like),
    _of("min", (0, 0.5), value_terms=_none, gradient_terms=np.zeros_like),
    _of(
        "logsumexp",
        (2, 2.5),
        value_scale=lambda X: np.maximum(abs(_lse(X)[:, 0]), _largest(X)),
        value_terms=lambda X: 1 + abs(_lse(X)[:, 0]),
        # The exponent is rounded before it is raised.
        gradient_scale=lambda X: np.exp(X - _lse(X)) * (1 + abs(X - _lse(X))),
    ),
    _of("variance", (1, 2), 0, **_deviation(0)),
    _of("variance", (1, 2), 1, **_deviation(1)),
]
REDUCTIONS += [
    _of(name, row.max_ulp, 3.0 if len(row.leading) > 1 else None)
    for name, row in TABLE.items()
    if not row.is_map and name not in {known.name for known in REDUCTIONS} | {"dot"}
]

NAMES = [*dict.fromkeys(row.name for row in REDUCTIONS), "dot"]
ROW_WISE = tuple(name for name, row in TABLE.items() if row.is_map)


def differences(exact: Callable[[list[Any]], Any], x: list[float]) -> Iterator[Any]:
    """Yield the partial derivatives of `exact`, by central differences far below its digits."""
    with mp.workprec(BITS):
        step = mp.ldexp(1, -BITS // 3)
        point = [mpf(t) for t in x]
        for i, t in enumerate(point):
            ends = [exact([*point[:i], t + s, *point[i + 1 :]]) for s in (step, -step)]
            yield (ends[0] - ends[1]) / (2 * step)


def data(row: Reduction, shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Array:
    """Return numbers without ties, of magnitudes that the reduction can tell apart."""
    rng = np.random.default_rng([seed, *shape])
    x = rng.normal(size=shape)
    if row.name == "prod":  # neither over nor under after thousands
        return (rng.choice([-1, 1], shape) * np.exp(x / 16)).astype(dtype)
    return (2 * x + np.where(rng.random(shape) < 0.3, 40 * x, 0.25)).astype(dtype)


# --- axes -----------------------------------------------------------------------------------------


def axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """Return the axes that `axis` names, in order."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(sorted(a % ndim for a in (axis if isinstance(axis, tuple) else (axis,))))


def to_rows(x: Array, axis: Any) -> Array:
    """Return x in long double as a matrix, of which each row is reduced."""
    axes = axes_of(axis, x.ndim)
    kept = [a for a in range(x.ndim) if a not in axes]
    n = int(np.prod([x.shape[a] for a in axes], dtype=int))
    count = int(np.prod([x.shape[a] for a in kept], dtype=int))
    return x.astype(np.longdouble).transpose(*kept, *axes).reshape(count, n)


def from_rows(rows: Array, shape: tuple[int, ...], axis: Any) -> Array:
    """Undo `to_rows`."""
    axes = axes_of(axis, len(shape))
    order = [a for a in range(len(shape)) if a not in axes] + [*axes]
    return rows.reshape([shape[a] for a in order]).transpose(np.argsort(order))


def reduced(shape: tuple[int, ...], axis: Any, keepdims: bool) -> tuple[int, ...]:
    """Return the shape of the result."""
    axes = axes_of(axis, len(shape))
    return tuple(1 if a in axes else n for a, n in enumerate(shape) if keepdims or a not in axes)


def assert_near(actual: Any, near: Near, n: int, shape: tuple[int, ...], dtype: Any) -> None:
    """Fail unless `actual` has this shape and dtype and errs by no more than is fair."""
    actual = np.asarray(actual)
    assert actual.shape == shape
    assert actual.dtype == dtype
    exact = near.exact.reshape(shape)
    tolerance = near.tolerance(n, dtype).reshape(shape)
    wrong = ~(np.abs(actual.astype(np.longdouble) - exact) <= tolerance)
    if wrong.any():
        at = tuple(int(i[0]) for i in np.nonzero(wrong)) if wrong.ndim else ()
        raise AssertionError(
            f"{np.count_nonzero(wrong)} of {wrong.size} are off, first at {at}: {actual[at]!r} is "
            f"not {exact[at]!r} within {float(tolerance[at]):.3g}"
        )


# --- judging -------------------------------------------------------------------------------------


def near_vjp(near: Near, g: Any) -> Near:
    """Return what a cotangent makes of a gradient: one more rounding."""
    g = g.astype(np.longdouble).reshape(-1, 1)
    return Near(g * near.exact, near.count + 0.5, abs(g) * near.scale, abs(g) * near.terms)


def near_jvp(near: Near, t: Any) -> Near:
    """Return the sum of a gradient's products with a tangent; products may be rounded."""
    size = (abs(near.exact * t)).sum(axis=-1)
    scale, terms = ((abs(t) * s).sum(axis=-1) for s in (near.scale, near.terms))
    return Near(
        (near.exact * t).sum(axis=-1), near.count + 1, np.maximum(scale, size), terms + size
    )


def like(near: Near, shape: tuple[int, ...], axis: Any) -> Near:
    """Return a gradient of rows in the operand's shape."""
    exact, scale, terms = (
        from_rows(np.broadcast_to(part, near.exact.shape), shape, axis)
        for part in (near.exact, near.scale, near.terms)
    )
    return Near(exact, near.count, scale, terms)


def check(
    row: Reduction, x: Any, axis: Any, keepdims: bool, dtype: Any, methods: str = "all"
) -> None:
    """Fail unless all methods at x are near enough to the exact results."""
    op, arguments = getattr(pb, row.name), (x, *row.arguments)
    options = {"axis": axis, "keepdims": keepdims, **row.options}
    X = to_rows(x, axis)
    n, shape = X.shape[1], reduced(x.shape, axis, keepdims)
    value, rows = row.near_value(X), row.near_gradient(X)
    gradient = like(rows, x.shape, axis)

    one, slope = op.value_and_grad(*arguments, **options)
    assert_near(one, value, n, shape, dtype)
    assert_near(slope, gradient, n, x.shape, dtype)
    if methods != "all":
        return
    for result in (op(*arguments, **options), op.value(*arguments, **options)):
        assert_same_bits(result, one)
    assert_same_bits(op.grad(*arguments, **options), slope)

    rng = np.random.default_rng(x.size)
    g, t = rng.normal(size=shape).astype(dtype), rng.normal(size=x.shape).astype(dtype)
    pulled = op.vjp(*arguments, g, **options)
    assert_near(pulled, like(near_vjp(rows, g), x.shape, axis), n, x.shape, dtype)
    pushed = near_jvp(rows, to_rows(t, axis))
    assert_near(op.jvp(*arguments, t, **options), pushed, n, shape, dtype)

    J = op.jacobian(*arguments, **options)
    assert J.input_shape == x.shape
    assert J.output_shape == shape
    assert J.dtype == dtype
    assert J.nbytes <= 2 * x.size * dtype.itemsize + 64
    where = to_rows(np.arange(x.size).reshape(x.shape), axis).astype(int)
    dense = np.zeros((len(X), x.size), np.longdouble)
    np.put_along_axis(dense, where, rows.exact, axis=1)
    scale, terms = np.zeros_like(dense), np.zeros_like(dense)
    np.put_along_axis(scale, where, np.broadcast_to(rows.scale, where.shape), axis=1)
    np.put_along_axis(terms, where, np.broadcast_to(rows.terms, where.shape), axis=1)
    assert_near(J.todense(), Near(dense, rows.count, scale, terms), n, dense.shape, dtype)
    back = like(near_vjp(rows, g), x.shape, axis)
    assert_near(g @ J, back._replace(count=back.count + 1), n, x.shape, dtype)
    assert_near(J @ t, pushed, n, shape, dtype)

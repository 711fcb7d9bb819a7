"""Checks every primitive, as installed and on this machine, against its NumPy twin.

The twin's formulas are evaluated in the next wider format (float64 for float32, long double for
float64), so their error is a small fraction of the ULP that they judge. On any backend, the table's
derivatives are compared with difference quotients of its values. The check takes a second or two
and samples; the test suite is thorough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback import losses, reference
from pullback.config import backend
from pullback.console import table
from pullback.elementwise import primitives as elementwise
from pullback.products import products
from pullback.reductions import reductions
from pullback.selections import selections
from pullback.tables.elementwise import OPS, REFERENCE_MAX_ULP, OpRow
from pullback.tables.losses import LOSSES
from pullback.tables.products import PRODUCTS
from pullback.tables.reductions import REDUCTIONS
from pullback.tables.selections import SELECTIONS

__all__ = ["DTYPES", "Finding", "Measured", "checks"]

Array: TypeAlias = npt.NDArray[Any]

DTYPES: Final = (np.dtype(np.float32), np.dtype(np.float64))
_WIDER: Final[Mapping[np.dtype[Any], Any]] = {DTYPES[0]: np.float64, DTYPES[1]: np.longdouble}
_SAMPLES: Final = 20_000

# Central differences of step eps**(1/3) have errors of about 1e-10 at the points used here.
_DIFFERENCE_BOUND: Final = 1e-6


class Measured(NamedTuple):
    """The largest error found, and its bound, in the unit of its column."""

    error: float
    bound: float

    @property
    def share(self) -> float:
        """The error in units of its bound, where that is not 0; infinity where it is exceeded."""
        if not self.error <= self.bound:
            return float("inf")
        return self.error / self.bound if self.bound else 0.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of checking one primitive in one dtype.

    The errors `value` and `derivative` (a loss's gradient, a matrix product's cotangents) are in
    ULP for elementwise operations, and for sums of products in rounding units of the sum of
    magnitudes. `difference` is relative to difference quotients.
    """

    name: str
    dtype: str
    samples: int
    value: Measured
    derivative: Measured
    difference: Measured | None = None
    failures: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every error is within its bound."""
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each bound that is exceeded."""
        exceeded = [
            f"{what}: error {measured.error:.4g}, bound {measured.bound:g}"
            for what in _MEASURED
            if (measured := getattr(self, what)) is not None and measured.share > 1
        ]
        return (*exceeded, *self.failures)


def checks(dtypes: Sequence[np.dtype[Any]] = DTYPES) -> list[Callable[[], Finding]]:
    """Return the checks of all primitives, to be called one by one."""

    def bind(
        check: Callable[..., Finding], *arguments: Any, dtype: np.dtype[Any]
    ) -> Callable[[], Finding]:
        return lambda: check(*arguments, dtype)

    return [
        *(
            bind(check_elementwise, row, elementwise[row.name], dtype=d)
            for row in OPS.values()
            for d in dtypes
        ),
        *(bind(check_product, f, dtype=d) for f in products.values() for d in dtypes),
        *(bind(check_reduction, f, dtype=d) for f in reductions.values() for d in dtypes),
        *(bind(check_selection, f, dtype=d) for f in selections.values() for d in dtypes),
        *(bind(check_loss, loss, dtype=d) for loss in losses.losses.values() for d in dtypes),
    ]


# --- elementwise ----------------------------------------------------------------------------------


def check_elementwise(row: OpRow, primitive: Any, dtype: np.dtype[Any]) -> Finding:
    """Check values, derivatives, methods and special points of an elementwise primitive."""
    rng = np.random.default_rng(len(row.name))
    points = tuple(_everywhere(rng, dtype) for _ in row.operands)
    wide = tuple(point.astype(_WIDER[dtype]) for point in points)
    with np.errstate(all="ignore"):
        exact_value = row.value(*wide)
        exact_slopes = _tuple(row.derivative(*wide))

    value = primitive(*points)
    slopes = _tuple(primitive.derivative(*points))
    bounds = row.max_ulp[:2] if backend() == "native" else (REFERENCE_MAX_ULP, REFERENCE_MAX_ULP)
    value_bound, slope_bound = (
        bound + _slack(dtype, *exact) if bound else 0.0
        for bound, exact in zip(bounds, ((exact_value,), exact_slopes), strict=True)
    )
    scales = [np.max(np.abs(wide), axis=0) if row.ulp_of_operands else None, None]
    for k, term in enumerate(row.largest_term[:2]):
        if term:  # near its roots a result may be as wrong as it is for a neighbouring float
            scales[k] = _change(row, wide[0], k)
    return Finding(
        name=row.name,
        dtype=dtype.name,
        samples=points[0].size,
        value=Measured(_worst(value, exact_value, scales[0]), value_bound),
        derivative=Measured(
            max(_worst(s, e, scales[1]) for s, e in zip(slopes, exact_slopes, strict=True)),
            slope_bound,
        ),
        difference=_difference(row, rng) if dtype == np.float64 else None,
        failures=(
            *_broken_methods(row, primitive, points, (value, *slopes), rng),
            *_broken_special_points(row, primitive, dtype),
        ),
    )


def _change(row: OpRow, x: Array, k: int) -> Array:
    """Return how much a relative change of x changes the value, or the derivative for k of 1."""
    with np.errstate(all="ignore"):
        second: Array = np.abs(x * row.second_derivative(x))
        first: Array = np.abs(x) * np.fmax(np.abs(row.derivative(x)), second)
    return second if k else first


def _everywhere(rng: np.random.Generator, dtype: np.dtype[Any]) -> Array:
    """Return floats from every binade, more of them where functions vary, and the special ones."""
    info = np.finfo(dtype)
    edges = [0.0, info.smallest_subnormal, info.tiny, 0.5, 1.0, float(info.max), np.inf]
    third = _SAMPLES // 3
    exponents = rng.uniform(info.minexp - info.nmant, info.maxexp, third)
    with np.errstate(over="ignore"):
        binades = np.exp2(exponents) * rng.choice([-1.0, 1.0], third)
    parts = [rng.normal(0, 2, third), rng.uniform(-120, 120, third), binades]
    points = np.concatenate([*parts, edges, np.negative(edges), [np.nan]]).astype(dtype)
    rng.shuffle(points)  # so that binary operands meet in every combination
    return points


def _tuple(slopes: Any) -> tuple[Array, ...]:
    return slopes if isinstance(slopes, tuple) else (slopes,)


def _slack(dtype: np.dtype[Any], *exact: Array) -> float:
    """Return the error of a formula's result in a wider format, in ULP of `dtype`.

    Some formulas compute in no format wider than float64.
    """
    with np.errstate(over="ignore"):
        wider = any(not np.array_equal(e, e.astype(np.float64), equal_nan=True) for e in exact)
    eps = np.finfo(_WIDER[dtype] if wider else np.float64).eps
    return REFERENCE_MAX_ULP * float(eps / np.finfo(dtype).eps)


def _worst(actual: Array, exact: Array, scale: Array | None = None) -> float:
    """Return the largest error of `actual` in ULP of `exact`, an array of a wider dtype.

    Where `scale` is larger, ULP of that. An infinity counts as the first power of two that
    overflows.
    """
    info = np.finfo(actual.dtype)
    wide = exact.dtype.type
    overflow = np.ldexp(wide(1), info.maxexp)
    with np.errstate(all="ignore"):
        exact = np.clip(exact, -overflow, overflow)
        shown = np.clip(actual.astype(wide), -overflow, overflow)
        size = np.abs(exact) if scale is None else np.maximum(np.abs(exact), scale)
        size = np.minimum(size, overflow)
        _, exponent = np.frexp(size)
        exponent = np.where(size == 0, info.minexp, np.maximum(exponent - 1, info.minexp))
        error = np.abs(shown - exact) / np.ldexp(wide(1), exponent - info.nmant)
    error = np.where(np.isnan(actual) & np.isnan(exact), 0, error)
    return float(np.max(np.where(np.isnan(error), np.inf, error)))


def _broken_methods(
    row: OpRow,
    primitive: Any,
    points: tuple[Array, ...],
    separate: tuple[Array, ...],
    rng: np.random.Generator,
) -> list[str]:
    """Return the methods whose bits differ from their definition in terms of other methods."""
    value, *slopes = separate
    dtype = value.dtype
    cotangent = rng.normal(0, 1, value.shape).astype(dtype)
    tangents = [rng.normal(0, 1, value.shape).astype(dtype) for _ in slopes]

    def product(factor: Array, slope: Array) -> Array:
        scaled: Array = factor * slope
        return np.where(slope == 0, dtype.type(0), scaled) if row.masked else scaled

    with np.errstate(all="ignore"):
        terms = [product(cotangent, slope) for slope in slopes]
        tangent = sum(map(product, tangents[1:], slopes[1:]), product(tangents[0], slopes[0]))
    both_value, both_slopes = primitive.value_and_derivative(*points)
    found = {
        "value_and_derivative": ([both_value, *_tuple(both_slopes)], [value, *slopes]),
        "vjp": (_tuple(primitive.vjp(*points, cotangent)), terms),
        "jvp": ([primitive.jvp(*points, *tangents)], [tangent]),
    }
    return [
        f"{method} differs from its definition in {different} of {value.size} elements"
        for method, (actual, desired) in found.items()
        if (
            different := sum(
                int(np.count_nonzero(~_same(a, d))) for a, d in zip(actual, desired, strict=True)
            )
        )
    ]


def _same(actual: Array, desired: Array) -> Array:
    """Tell where two arrays have the same bits; a NaN's payload does not count."""
    equal = (actual == desired) & (np.signbit(actual) == np.signbit(desired))
    same: Array = equal | (np.isnan(actual) & np.isnan(desired))
    return same


def _broken_special_points(row: OpRow, primitive: Any, dtype: np.dtype[Any]) -> list[str]:
    at = [
        np.array(column, dtype) for column in zip(*(point.at for point in row.special), strict=True)
    ]
    value, slopes = primitive.value_and_derivative(*at)
    actual = np.stack([value, *_tuple(slopes)], axis=1)
    desired = np.array([(point.value, *point.derivative) for point in row.special], dtype)
    return [
        f"special point {point.at}: {got.tolist()} instead of {want.tolist()}"
        for point, got, want in zip(row.special, actual, desired, strict=True)
        if not _same(got, want).all()
    ]


def _difference(row: OpRow, rng: np.random.Generator) -> Measured:
    """Compare the table's derivatives to central differences, inside the domain, off the kinks."""
    points = [rng.choice([-1.0, 1.0], 500) * rng.uniform(0.05, 8, 500) for _ in row.operands]
    keep = np.ones(500, bool)
    for operand, domain in zip(points, row.domain, strict=True):
        within = [(a + 0.01 < operand) & (operand < b - 0.01) for a, b, _ in domain.intervals]
        keep &= np.any(within, axis=0)
    if len(points) == 2:  # binary operations of the table have their kinks on the diagonal
        keep &= np.abs(points[0] - points[1]) > 0.01
    points = [operand[keep] for operand in points]
    slopes = _tuple(row.derivative(*points))
    worst = 0.0
    for i, slope in enumerate(slopes):
        step = float(np.cbrt(np.finfo(np.float64).eps)) * np.abs(points[i])
        whole, half = (_quotient(row, points, i, h) for h in (step, step / 2))
        quotient = (4 * half - whole) / 3  # Richardson's, for the neighbourhood of poles
        # Absolute below 1e-3: there the difference itself has few digits.
        error = np.abs(quotient - slope) / np.maximum(np.abs(slope), 1e-3)
        worst = max(worst, float(np.max(error)) if error.size else float("inf"))
    return Measured(worst, _DIFFERENCE_BOUND)


def _quotient(row: OpRow, points: list[Array], i: int, step: Array) -> Array:
    """Return the central difference quotient by operand `i`."""
    above = [p + step if j == i else p for j, p in enumerate(points)]
    below = [p - step if j == i else p for j, p in enumerate(points)]
    quotient: Array = (row.value(*above) - row.value(*below)) / (above[i] - below[i])
    return quotient


# --- sums of products -----------------------------------------------------------------------------


def _worst_sum(actual: Any, exact: Any, magnitude: Any) -> float:
    """Return the largest error in units of rounding of the sum of the terms' magnitudes."""
    actual = np.asarray(actual)
    unit = np.maximum(magnitude * (np.finfo(actual.dtype).eps / 2), np.finfo(actual.dtype).tiny)
    error = np.abs(actual.astype(np.longdouble) - exact) / unit
    return float(np.max(np.where(np.isnan(error), np.inf, error)))


class _Sums(NamedTuple):
    """The definition of a product.

    Parameters
    ----------
    shapes : tuple of tuple of int
        The operands'.
    value : callable
        Of the operands.
    cotangents : callable
        Of the operands and a cotangent.
    bounds : (int, int)
        The lengths of the sums in both, plus a rounding or two for each nested sum.
    """

    shapes: tuple[tuple[int, ...], ...]
    value: Callable[..., Array]
    cotangents: Callable[..., tuple[Array, ...]]
    bounds: tuple[int, int]


# A batch shares B, whose cotangent is one product of the stacked rows.
_PRODUCTS: Final[Mapping[str, _Sums]] = {
    "matmul": _Sums(
        ((3, 24, 40), (40, 32)),
        lambda A, B: A @ B,
        lambda A, B, G: (G @ B.T, np.einsum("imk,imn->kn", A, G)),
        (40 + 2, 72 + 2),
    ),
    "linear": _Sums(
        ((90, 40), (40, 32), (32,)),
        lambda X, W, b: X @ W + b,
        lambda X, W, b, G: (G @ W.T, X.T @ G, G.sum(0)),
        (40 + 1 + 2, 90 + 2),
    ),
    "quadratic_form": _Sums(
        ((30, 40), (40, 40)),
        lambda x, A: np.sum(x @ A * x, -1),
        lambda x, A, g: (g[:, None] * (x @ (A + A.T)), (g[:, None] * x).T @ x),
        (2 * (40 + 2), 40 + 4),
    ),
    "bilinear_form": _Sums(
        ((30, 40), (40, 25), (30, 25)),
        lambda u, X, v: np.sum(u @ X * v, -1),
        lambda u, X, v, g: (
            g[:, None] * v @ X.T,
            u.T @ (g[:, None] * v),
            g[:, None] * (u @ X),
        ),
        (40 + 25 + 4, 40 + 3),
    ),
}


def check_product(primitive: Any, dtype: np.dtype[Any]) -> Finding:
    """Check a product and its cotangents; of a layer also that an activation comes after it."""
    name = primitive.__name__
    shapes, of_operands, of_cotangent, bounds = _PRODUCTS[name]
    rng = np.random.default_rng(7)
    operands = tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)
    value = primitive(*operands)
    g = rng.standard_normal(value.shape).astype(dtype)
    cotangents = primitive.vjp(*operands, g)
    failures: tuple[str, ...] = ()
    if PRODUCTS[name].options:
        f = elementwise["tanh"]
        cotangents, g = primitive.vjp(*operands, g, activation=f), f.vjp(value, g)
        if not _same(primitive(*operands, activation=f), f(value)).all():
            failures = ("the value differs from the activation of the value without one",)
    wide = [a.astype(np.longdouble) for a in (*operands, g)]
    sizes = list(map(np.abs, wide))
    exact, magnitude = of_operands(*wide[:-1]), of_operands(*sizes[:-1])
    errors = map(_worst_sum, cotangents, of_cotangent(*wide), of_cotangent(*sizes))
    return Finding(
        name=name,
        dtype=dtype.name,
        samples=sum(a.size for a in wide),
        value=Measured(_worst_sum(value, exact, magnitude), bounds[0]),
        derivative=Measured(max(errors), bounds[1]),
        failures=failures,
    )


def check_reduction(primitive: Any, dtype: np.dtype[Any]) -> Finding:
    """Check a reduction of rows, or a map of them, and its pullback."""
    rng = np.random.default_rng(11)
    shape, n = (60, 40), 40
    row = REDUCTIONS[primitive.__name__]
    # Of one sign, so that sums do not cancel.
    x = tuple(rng.uniform(0.5, 1.5, shape).astype(dtype) for _ in row.operands)
    g = rng.uniform(0.5, 1.5, shape if row.is_map else shape[:1]).astype(dtype)
    p = 3.0 if row.parameter is not None and row.parameter.default is None else None
    x_, g_ = tuple(a.astype(np.longdouble) for a in x), g.astype(np.longdouble)
    parameter = p or (row.parameter.default if row.parameter is not None else 0.0) or 0.0

    def values(*at: Array) -> Array:
        return row.value(at[0], parameter) if row.value else row.values(at, parameter)  # type: ignore[misc]

    def cotangents() -> tuple[Array, ...]:
        if row.vjp is not None:
            return (row.vjp(x_[0], g_, parameter),)
        return tuple(g_[:, None] * slope for slope in row.slopes(x_, parameter))  # type: ignore[misc]

    with np.errstate(all="ignore"):
        exact, slopes = values(*x_), cotangents()
        along = [rng.standard_normal(shape) for _ in x]
        above, below = (
            values(*(a + step * t for a, t in zip(x_, along, strict=True)))
            for step in (1e-6, -1e-6)
        )
        rate = np.sum(g_ * (above - below)) / 2e-6
        slope = sum(np.vdot(cotangent, t) for cotangent, t in zip(slopes, along, strict=True))
    bound = () if p is None else (p,)
    value = primitive(*x, *bound, axis=1)
    pulled = _tuple(primitive.vjp(*x, *bound, g, axis=1))
    scales = [np.maximum(np.abs(c), np.max(np.abs(c), axis=1, keepdims=True)) for c in slopes]
    errors = map(_worst_sum, pulled, slopes, scales)
    return Finding(
        name=primitive.__name__,
        dtype=dtype.name,
        samples=x[0].size * len(x),
        value=Measured(_worst_sum(value, exact, np.max(np.abs(exact))), n + 8.0),
        derivative=Measured(max(errors), n + 8.0),
        difference=Measured(float(abs(rate - slope) / abs(slope)), _DIFFERENCE_BOUND),
    )


def check_selection(primitive: Any, dtype: np.dtype[Any]) -> Finding:
    """Check a selection and its pullback, which are exact, on all kinds of numbers."""
    rng = np.random.default_rng(13)
    row, twin = SELECTIONS[primitive.__name__], getattr(reference, primitive.__name__)
    given = {name: _everywhere(rng, dtype) for name in row.operands}
    n = len(given[next(iter(row.operands))])
    given |= {"c": rng.random(n) < 0.5, "indices": rng.permutation(n)}
    operands = tuple(given[name] for name in row.operands)
    moved = [_everywhere(rng, dtype) for _ in row.moved]
    value, pulled = primitive(*operands), _tuple(primitive.vjp(*operands, moved[0]))
    exact, *slopes = (
        result.astype(_WIDER[dtype])
        for result in (twin(*operands), *_tuple(twin.vjp(*operands, moved[0])))
    )
    same = _same(primitive.jvp(*operands, *moved), twin.jvp(*operands, *moved)).all()
    return Finding(
        name=primitive.__name__,
        dtype=dtype.name,
        samples=n,
        value=Measured(_worst(value, exact), 0.0),
        derivative=Measured(max(map(_worst, pulled, slopes)), 0.0),
        failures=() if same else ("jvp differs from the twin's",),
    )


def check_loss(loss: Any, dtype: np.dtype[Any]) -> Finding:
    """Check a loss and its gradient against the twin, and the twin against differences."""
    n, d = 1000, 23
    row = LOSSES[loss.__name__]
    X, y, w, b = row.example(11, n, d, dtype)
    X_, w_, b_ = (np.asarray(a, np.float64) for a in (X, w, b))
    y_ = y if row.of_classes else y.astype(np.float64)
    twin = getattr(reference, loss.__name__)
    exact, (exact_gw, exact_gb) = twin.value_and_grad(X_, y_, w_, b_)
    value, (gw, gb) = loss.value_and_grad(X, y, w, b)

    scale = max(np.max(np.abs(exact_gw)), np.max(np.abs(exact_gb)))
    bound = n + d + 2.0
    errors = [_worst_sum(gw, exact_gw, scale), _worst_sum(np.asarray(gb), exact_gb, scale)]
    failures = [] if loss.value(X, y, w, b) == value else ["value differs from value_and_grad's"]
    direction = np.random.default_rng(12).standard_normal(w.shape)
    step = 1e-6
    above, below = (twin.value(X_, y_, w_ + s * direction, b_ + s) for s in (step, -step))
    slope = np.vdot(exact_gw, direction) + np.sum(exact_gb)
    return Finding(
        name=loss.__name__,
        dtype=dtype.name,
        samples=n * d,
        value=Measured(_worst_sum(np.float64(value), exact, abs(exact)), bound),
        derivative=Measured(max(errors), bound),
        difference=Measured(abs((above - below) / (2 * step) - slope) / abs(slope), 1e-5),
        failures=tuple(failures),
    )


# --- for people -----------------------------------------------------------------------------------

TITLE: Final = (
    "Largest error / bound, against the NumPy twins in the next wider format: in ULP, or in units\n"
    "of rounding for sums of products. difference: derivatives against difference quotients."
)

_MEASURED: Final = ("value", "derivative", "difference")
_COLUMNS: Final[Mapping[str, Mapping[str, Any]]] = {
    "elementwise": OPS,
    "products": PRODUCTS,
    "reductions": REDUCTIONS,
    "selections": SELECTIONS,
    "losses": LOSSES,
}


def as_text(findings: Sequence[Finding], *, brief: bool) -> str:
    """Return a table of findings; in brief, of those that come closest to their bounds."""
    if brief:
        header = ("closest to its bound", "primitives", *_MEASURED)
        return table(header, [_closest(name, findings) for name in _COLUMNS])
    return table(
        ("primitive", "dtype", "samples", *_MEASURED, "result"), map(_row, findings), left=2
    )


def _row(finding: Finding) -> tuple[str, ...]:
    return (
        finding.name,
        finding.dtype,
        str(finding.samples),
        *(_cell(getattr(finding, what)) for what in _MEASURED),
        "ok" if finding.ok else "FAILED",
    )


def _closest(column: str, findings: Sequence[Finding]) -> tuple[str, ...]:
    own = [finding for finding in findings if finding.name in _COLUMNS[column]]
    cells = []
    for what in _MEASURED:
        measured = [(getattr(finding, what), finding.name) for finding in own]
        some = [(m, name) for m, name in measured if m is not None]
        worst, name = max(some, key=lambda one: one[0].share, default=(None, ""))
        cells.append(f"{name} {_cell(worst)}")
    return (column, str(len({finding.name for finding in own})), *cells)


def _cell(measured: Measured | None) -> str:
    return "" if measured is None else f"{measured.error:.3g} / {measured.bound:.4g}"


def as_json(finding: Finding) -> Mapping[str, Any]:
    """Return a finding for JSON."""
    measured = {what: getattr(finding, what) for what in _MEASURED}
    return {
        "primitive": finding.name,
        "dtype": finding.dtype,
        "samples": finding.samples,
        **{what: None if m is None else m._asdict() for what, m in measured.items()},
        "problems": list(finding.problems),
    }

"""A checker of gradients that knows kinks: differences along lines against what is given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.ops import kernel_dtype

__all__ = ["Discrepancy", "GradCheck", "Kink", "check_grad"]

Array: TypeAlias = npt.NDArray[Any]
Index: TypeAlias = tuple[int, ...]

# Steps relative to max(1, |x|), from the first downwards by the ratio, as long as rounding errors
# leave half of the digits. No simple fraction: periods should not match it.
_FIRST_STEP: Final = 0.1873
_COLUMNS: Final = 6  # of an extrapolation
_NOISE: Final = 4.0  # units in the last place that values are taken to be wrong by
_SAFETY: Final = 4.0  # times the estimated error of what was measured
_UNRESOLVED: Final = 0.01  # of the largest partial derivative: an error that says nothing
_NEARBY: Final = 32  # points around a kink
_COTANGENTS: Final = 3


# --- the report -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """One comparison of a given derivative with a measured one.

    Parameters
    ----------
    what : str
        What was given: ``"grad"``, ``"vjp"`` or ``"jvp"``.
    index : tuple of int or None
        The coordinate; None along a direction.
    direction : ndarray or None
        The direction, in the shape of x; None at a coordinate.
    given, measured : float
        The derivative along it; of an interval the point nearest to what was given.
    error : float
        Their distance.
    tolerance : float
        What it may be: relative, plus the estimated error of the measurement.
    """

    what: str
    index: Index | None
    direction: Array | None
    given: float
    measured: float
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance

    @property
    def _excess(self) -> float:
        if self.error <= 0:
            return 0.0
        return self.error / self.tolerance if self.tolerance > 0 else math.inf

    def __str__(self) -> str:
        if self.index is not None:
            where = f"x[{', '.join(map(str, self.index))}]" if self.index else "x"
        else:
            where = f"direction {np.array2string(np.asarray(self.direction), threshold=6)}"
        return (
            f"{self.what} at {where}: given {self.given:.10g}, measured {self.measured:.10g}, "
            f"error {self.error:.2g}, tolerance {self.tolerance:.2g}"
        )


@dataclass(frozen=True)
class Kink:
    """A coordinate whose one-sided derivatives differ.

    Parameters
    ----------
    index : tuple of int
        The coordinate.
    interval : tuple of float
        The one-sided derivatives, the smaller first.
    given : float
        What was given; accepted if it lies in the interval.
    """

    index: Index
    interval: tuple[float, float]
    given: float

    def __str__(self) -> str:
        where = ", ".join(map(str, self.index))
        low, high = self.interval
        return f"x[{where}] from {low:.6g} to {high:.6g}, given {self.given:.6g}"


@dataclass(frozen=True, eq=False)
class GradCheck:
    """What `check_grad` found; true if it is `ok`.

    Parameters
    ----------
    ok : bool
        Whether everything that was compared agrees.
    worst : Discrepancy
        The largest error in terms of its tolerance; a coordinate, if one disagrees.
    kinks : tuple of Kink
        The coordinates on a kink.
    is_linear : bool
        Whether the function's directional derivatives are linear in the direction where partial
        derivatives exist; if not, it has no gradient, whatever these are.
    unresolved : tuple of tuple of int
        Coordinates where no difference says anything: noise, a pole, a step. They do not pass.
    failures : tuple of Discrepancy
        All that disagree.
    coordinates, directions : int
        How many were looked at.
    method : str
        ``"complex step"`` or ``"differences"``.
    dtype : dtype
        What the function was evaluated in.
    """

    ok: bool
    worst: Discrepancy
    kinks: tuple[Kink, ...]
    is_linear: bool
    unresolved: tuple[Index, ...]
    failures: tuple[Discrepancy, ...]
    coordinates: int
    directions: int
    method: str
    dtype: np.dtype[Any]

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [
            f"check_grad: {'ok' if self.ok else 'FAILED'}; {self.coordinates} coordinates, "
            f"{self.directions} directions, {self.dtype}, {self.method}",
            f"  worst: {self.worst}",
        ]
        if not self.is_linear:
            lines.append("  directional derivatives are not linear: there is no gradient at x")
        if self.unresolved:
            lines.append(f"  not resolved by any step: x at {_listed(self.unresolved)}")
        if len(self.failures) > 1:
            lines.append(f"  {len(self.failures)} comparisons fail")
        if self.kinks:
            lines.append(f"  kinks, one-sided derivatives: {_listed(self.kinks, '; ')}")
        return "\n".join(lines)


def _listed(items: tuple[Any, ...], separator: str = ", ", most: int = 8) -> str:
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(map(str, items[:most])) + more


# --- along a line ---------------------------------------------------------------------------------


class _Estimate(NamedTuple):
    value: float
    error: float


_NONE: Final = _Estimate(math.nan, math.inf)


class _Richardson:
    """Difference quotients for falling steps, extrapolated to 0; keeps what looks best.

    Parameters
    ----------
    ratio : float
        Of one step to the next.
    power : int
        The quotient's error is a series in the step to this power.
    """

    def __init__(self, ratio: float, power: int) -> None:
        self._ratio = ratio**power
        self._row: list[float] = []
        self.best = _NONE

    def add(self, quotient: float, noise: float) -> None:
        """Take the quotient of the next step, and what it may be wrong by in rounding."""
        if not math.isfinite(quotient):
            self._row = []
            return
        row = [quotient]
        for column, before in enumerate(self._row[:_COLUMNS]):
            weight = self._ratio ** (column + 1) - 1
            step = (row[-1] - before) / weight
            row.append(row[-1] + step)
            error = max(abs(step), abs(row[-1] - before)) + 2 * noise
            if column == 0:  # of the quotient itself, which may be exact
                plain = abs(quotient - before) + noise
                if plain < self.best.error:
                    self.best = _Estimate(quotient, plain)
            if error < self.best.error:
                self.best = _Estimate(row[-1], error)
        self._row = row


class _Slope(NamedTuple):
    """The derivative along a line: from the right, from the left, and of both together."""

    right: _Estimate
    left: _Estimate
    both: _Estimate
    is_kink: bool

    @property
    def interval(self) -> tuple[float, float]:
        """What a derivative may be."""
        if not self.is_kink:
            return self.both.value, self.both.value
        return min(self.right.value, self.left.value), max(self.right.value, self.left.value)

    @property
    def error(self) -> float:
        """The estimated error of the interval's ends."""
        return max(self.right.error, self.left.error) if self.is_kink else self.both.error

    def scaled(self, by: float) -> _Slope:
        """Return the derivative by a positive multiple of the line's parameter."""
        ends = (_Estimate(v * by, e * by) for v, e in self[:3])
        return _Slope(*ends, self.is_kink)


class _Function:
    """A real function near x, along lines.

    Parameters
    ----------
    f : callable
        Of an array in the shape of `x`; returns a real number, or a complex one.
    x : ndarray, float32 or float64
    eps : float
        The relative spacing of what it computes in.
    rtol : float
        What is aimed at.
    """

    def __init__(self, f: Callable[[Any], Any], x: Array, eps: float, rtol: float) -> None:
        self._f = f
        self.x = x
        self.eps = eps
        self.rtol = rtol
        self.at_x = float(f(x))
        self.is_complex = True  # until it turns out not to be
        self.used_complex = False
        self.scale = np.maximum(1.0, np.abs(x.astype(np.float64)))
        self._ratio = 4.0 if eps < 1e-10 else 2.0

    def __call__(self, step: float, v: Array, base: Array | None = None) -> float:
        """Return f at x + step v, or at `base` + step v; NaN where it cannot be had."""
        with np.errstate(all="ignore"):
            at = (self.x if base is None else base) + step * v
            try:
                return float(self._f(at.astype(self.x.dtype)))
            except (ArithmeticError, ValueError):  # beyond the domain
                return math.nan

    def slope(self, v: Array) -> _Slope:
        """Return the derivative along v."""
        steps, values = [], []
        tables = tuple(_Richardson(self._ratio, power) for power in (1, 1, 2))
        h = _FIRST_STEP
        while h > math.sqrt(self.eps):
            right, left = self(h, v), self(-h, v)
            steps.append(h)
            values.append((right, left))
            self._add(tables, h, right, left, self.at_x, self.at_x)
            best = [table.best for table in tables]
            size = max(abs(e.value) for e in best) if len(steps) > 3 else 0.0
            if len(steps) > 3 and all(e.error <= 0.05 * self.rtol * size for e in best):
                break
            h /= self._ratio
        limits = [self._limit([value[side] for value in values]) for side in (0, 1)]
        if limits != [self.at_x] * 2:  # a jump: what counts is the slope on either side
            tables = tables[2], *(_Richardson(self._ratio, 1) for _ in range(2))
            for h, (right, left) in zip(steps, values, strict=True):
                self._add(tables[1:], h, right, left, *limits)
            return _Slope(tables[1].best, tables[2].best, tables[0].best, True)
        return self._judge(v, *(table.best for table in tables))

    def _add(
        self, tables: Any, h: float, right: float, left: float, from_right: float, from_left: float
    ) -> None:
        known = [abs(a) for a in (right, left, from_right, from_left) if math.isfinite(a)]
        noise = _NOISE * self.eps * max(known) / h
        quotients = (right - from_right) / h, (from_left - left) / h, (right - left) / (2 * h)
        for table, quotient in zip(tables, quotients, strict=False):
            table.add(quotient, noise + self.eps * abs(quotient) / h)  # x + h is rounded, too

    def _limit(self, values: list[float]) -> float:
        """Return f(x), or the limit beside it where f jumps there."""
        finite = [value for value in values if math.isfinite(value)]
        if len(finite) < 4:
            return self.at_x
        last, before = finite[-1], finite[-4]
        gap = abs(last - self.at_x)
        size = max(abs(last), abs(self.at_x))
        jumps = gap > math.sqrt(math.sqrt(self.eps)) * size and gap > abs(before - self.at_x) / 2
        return last if jumps else self.at_x

    def _judge(self, v: Array, right: _Estimate, left: _Estimate, both: _Estimate) -> _Slope:
        if not math.isfinite(right.error) or not math.isfinite(left.error):
            one = right if right.error <= left.error else left  # at the end of the domain
            return _Slope(one, one, one, False)
        gap = abs(right.value - left.value)
        size = max(abs(right.value), abs(left.value))
        if gap > _SAFETY * (right.error + left.error) + self.rtol * size:
            return _Slope(right, left, both, True)
        exact = self._complex_step(v)
        if exact is not None:
            if abs(exact - both.value) <= _SAFETY * both.error + self.rtol * abs(exact):
                both = _Estimate(exact, min(both.error, 8 * self.eps * abs(exact)))
                self.used_complex = True
            else:  # it takes complex numbers, but is not analytic there
                self.is_complex = False
        return _Slope(right, left, both, False)

    def _complex_step(self, v: Array) -> float | None:
        """Return the imaginary part's derivative, or None where f does not propagate it."""
        if not self.is_complex:
            return None
        h = 1e-20
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("error")  # of NumPy, that it discards the imaginary part
                complex_dtype = np.result_type(self.x.dtype, np.complex64)
                value = self._f((self.x + 1j * h * v).astype(complex_dtype))
            if isinstance(value, complex) and math.isfinite(value.imag):
                return value.imag / h
        except Exception:  # whatever f does with what it was not made for
            pass
        self.is_complex = False
        return None

    def nearby(self, v: Array, rng: np.random.Generator) -> tuple[float, float]:
        """Return the smallest and largest slope along v at points around x."""
        radius = self.eps ** (1 / 3)
        h = radius / 16
        slopes = []
        for _ in range(_NEARBY):
            base = self.x + radius * self.scale * rng.uniform(-1, 1, self.x.shape)
            slopes.append((self(h, v, base) - self(-h, v, base)) / (2 * h))
        finite = [slope for slope in slopes if math.isfinite(slope)] or [math.nan]
        return min(finite), max(finite)


# --- everywhere -----------------------------------------------------------------------------------


class _Checker:
    """Compares given derivatives of one function with measured ones.

    Parameters
    ----------
    what : str
        What was given.
    function : _Function
    given : callable
        The given derivative along a direction.
    rtol : float
    rng : numpy.random.Generator
    """

    def __init__(
        self,
        what: str,
        function: _Function,
        given: Callable[[Array], float],
        rtol: float,
        rng: np.random.Generator,
    ) -> None:
        self._what = what
        self._f = function
        self._given = given
        self._rtol = rtol
        self._rng = rng
        self.found: list[Discrepancy] = []
        self.kinks: list[Kink] = []
        self.unresolved: list[Index] = []
        self.is_linear = True
        self._slopes: dict[int, _Slope] = {}  # by coordinate, flat
        self._partials: dict[int, float] = {}  # the given ones
        self.is_complete = False  # every coordinate was measured

    def coordinates(self, most: int) -> int:
        """Compare partial derivatives, of some coordinates where there are too many."""
        n = self._f.x.size
        chosen = np.arange(n) if n <= most else np.sort(self._rng.choice(n, most, replace=False))
        self.is_complete = n <= most
        for i in map(int, chosen):
            v = np.zeros(self._f.x.shape)
            scale = float(self._f.scale.flat[i])
            v.flat[i] = scale
            slope = self._f.slope(v).scaled(1 / scale)
            v.flat[i] = 1
            given = self._given(v)
            self._slopes[i], self._partials[i] = slope, given
            index = tuple(map(int, np.unravel_index(i, self._f.x.shape)))
            self._compare(slope.interval, slope.error, given, abs(given), index=index)
            if slope.is_kink:
                self.kinks.append(Kink(index, slope.interval, given))
        largest = max(map(abs, (*self._partials.values(), *self._measured())), default=0.0)
        floor = self._f.eps ** (1 / 3) * abs(self._f.at_x)
        for i, slope in self._slopes.items():
            if not _SAFETY * slope.error <= max(_UNRESOLVED * largest, floor):
                index = tuple(map(int, np.unravel_index(i, self._f.x.shape)))
                self.unresolved.append(index)
        return len(chosen)

    def _measured(self) -> Iterator[float]:
        return (s.both.value for s in self._slopes.values() if math.isfinite(s.both.value))

    def directions(self, count: int) -> int:
        """Compare derivatives along random directions."""
        if self.unresolved or not np.isfinite(list(self._partials.values())).all():
            return 0  # the coordinates tell
        smooth = [i for i, slope in self._slopes.items() if not slope.is_kink]
        kinked = [i for i, slope in self._slopes.items() if slope.is_kink]
        done = 0
        if len(smooth) > 1:
            for _ in range(count):
                self._smooth_direction(self._direction(smooth))
            done += count
        if kinked or not self.is_complete:
            everything = range(self._f.x.size)
            directions = [self._direction(everything) for _ in range(count)]
            if len(kinked) > 1:  # where ties show
                directions.append(self._direction(kinked, alike=True))
            for v in directions:
                self._any_direction(v, kinked)
            done += len(directions)
        return done

    def _direction(self, coordinates: Any, *, alike: bool = False) -> Array:
        """Return a direction that moves these coordinates by comparable parts of their size."""
        at = list(coordinates)
        v = np.zeros(self._f.x.size)
        signs = 1.0 if alike else self._rng.choice([-1.0, 1.0], len(at))
        v[at] = signs * self._rng.uniform(0.5, 1, len(at)) / math.sqrt(len(at))
        if alike:
            v[at] = 1 / math.sqrt(len(at))
        return v.reshape(self._f.x.shape) * self._f.scale

    def _smooth_direction(self, v: Array) -> None:
        """Compare along coordinates that have partial derivatives: they must add up."""
        slope = self._f.slope(v)
        terms = [(self._slopes[int(i)], float(v.flat[i])) for i in np.flatnonzero(v)]
        sum_of_partials = math.fsum(s.both.value * t for s, t in terms)
        size = math.hypot(*(s.both.value * t for s, t in terms))
        error = slope.error + math.fsum(s.error * abs(t) for s, t in terms)
        low, high = slope.interval
        tolerance = _SAFETY * error + self._rtol * size
        if not slope.is_kink and abs(low - sum_of_partials) > tolerance:
            self.is_linear = False
        self._compare((low, high), slope.error, self._given(v), size, direction=v)

    def _any_direction(self, v: Array, kinked: list[int]) -> None:
        """Compare along a direction that may cross kinks.

        Between the one-sided derivatives lies what a convex or concave kink may have. A sum of
        both kinds may have more: coordinate by coordinate, or what points nearby have.
        """
        slope, given = self._f.slope(v), self._given(v)
        size = math.hypot(*(p * float(v.flat[i]) for i, p in self._partials.items()))
        if not self.is_complete:
            size *= math.sqrt(v.size / len(self._partials))
        low, high = slope.interval
        tolerance = self._tolerance(slope.error, size, given, low, high)
        if kinked and self._distance(low, high, given) > tolerance:
            if self._is_additive(slope, v, tolerance):
                return
            nearby = self._f.nearby(v, self._rng)
            low, high = min(low, nearby[0]), max(high, nearby[1])
            size = max(size, abs(low), abs(high)) / math.sqrt(self._rtol)  # no extrapolation there
        self._compare((low, high), slope.error, given, size, direction=v)

    def _is_additive(self, slope: _Slope, v: Array, tolerance: float) -> bool:
        """Tell whether the one-sided derivatives along v are the coordinates' own, added up."""
        if not self.is_complete:
            return False
        for end, sign in ((slope.right, 1), (slope.left, -1)):
            total = error = 0.0
            for i in map(int, np.flatnonzero(v)):
                t = float(v.flat[i])
                one = self._slopes[i].right if t * sign > 0 else self._slopes[i].left
                if not self._slopes[i].is_kink:
                    one = self._slopes[i].both
                total += one.value * t
                error += one.error * abs(t)
            if abs(end.value - total) > tolerance + _SAFETY * (error + end.error):
                return False
        return True

    def _tolerance(self, error: float, size: float, *values: float) -> float:
        return _SAFETY * error + self._rtol * max(size, *map(abs, values))

    @staticmethod
    def _distance(low: float, high: float, given: float) -> float:
        return max(low - given, given - high, 0.0) if math.isfinite(given) else math.inf

    def _compare(
        self,
        interval: tuple[float, float],
        error: float,
        given: float,
        size: float,
        index: Index | None = None,
        direction: Array | None = None,
    ) -> None:
        low, high = interval
        measured = min(max(given, low), high) if math.isfinite(given) else low
        distance = self._distance(low, high, given)
        tolerance = self._tolerance(error, size if math.isfinite(size) else 0.0, low, high)
        self.found.append(
            Discrepancy(self._what, index, direction, given, measured, distance, tolerance)
        )


def check_grad(
    f: Callable[[Any], Any],
    grad: Any,
    x: npt.ArrayLike,
    *,
    vjp: Callable[[Any, Any], Any] | None = None,
    jvp: Callable[[Any, Any], Any] | None = None,
    rtol: float | None = None,
    max_coordinates: int = 100,
    directions: int = 6,
) -> GradCheck:
    """Compare derivatives with differences of the function, kinks included.

    Parameters
    ----------
    f : callable
        The function of an array in the shape of `x`; its value has one element, or any shape where
        `grad` is None.
    grad : callable, array_like or None
        The gradient at `x`, or a function that returns it, in the shape of `x`.
    x : array_like
        Where. Integers become float64, float16 float32.
    vjp : callable, optional
        ``vjp(x, g)``, to be checked for random cotangents g.
    jvp : callable, optional
        ``jvp(x, t)``, to be checked along all the directions; against `vjp` where both are given.
    rtol : float, optional
        Relative tolerance beside the estimated error of the differences; 1e-6 in float64, 5e-4 in
        float32.
    max_coordinates : int, default 100
        Of an `x` with more elements, so many are looked at one by one.
    directions : int, default 6
        How many random directions to look along; twice as many where there are kinks.

    Returns
    -------
    GradCheck
        True if everything agrees. Printing it says what was found.

    Raises
    ------
    TypeError
        If `x` or what `f` and the derivatives return has no real floating-point dtype.
    ValueError
        If f(x) is not finite, shapes do not fit, or there is nothing to check.

    Notes
    -----
    Differences with steps from 0.19 max(1, |x|) down to the root of the dtype's precision are
    extrapolated to 0 by Richardson's scheme, from the right, from the left and centrally; the
    entry with the smallest estimated error counts. Where `f` takes complex numbers and agrees with
    the differences, Squire and Trapp's complex step takes their place.

    A coordinate is on a kink where the one-sided derivatives differ; any value between them is
    accepted, as along a direction. Where f jumps, the slopes beside the jump count. Partial
    derivatives that are not kinks must add up to the directional derivatives: a function for which
    they do not has no gradient. Along directions in which kinks of both signs meet, what the
    coordinates allow, or the slopes at points nearby, is accepted too.

    Results are the same at every call.

    Examples
    --------
    >>> import numpy as np
    >>> import pullback as pb
    >>> x = np.array([-1.0, 0.0, 2.0])
    >>> report = pb.check_grad(lambda x: pb.relu(x).sum(), lambda x: (x > 0) * 1.0, x)
    >>> report.ok
    True
    >>> print(report.kinks[0])
    x[1] from 0 to 1, given 0
    """
    x = _point(x)
    at = x.copy()[()]
    value = _real("f(x)", f(at))
    if not np.isfinite(value).all():
        raise ValueError(f"check_grad: f(x) is not finite: {np.array2string(value, threshold=6)}")
    if grad is None and vjp is None and jvp is None:
        raise ValueError("check_grad: grad, vjp and jvp are all None: there is nothing to check")
    eps = float(max(np.finfo(x.dtype).eps, np.finfo(value.dtype).eps))
    rtol = (1e-6 if eps < 1e-10 else 5e-4) if rtol is None else float(rtol)
    rng = np.random.default_rng(x.size)
    checkers: list[_Checker] = []
    functions: list[_Function] = []
    extra: list[Discrepancy] = []

    def weighted(w: Array) -> _Function:
        def along(x: Array) -> Any:
            total = np.sum(w * np.asarray(f(x[()])))
            return complex(total) if np.iscomplexobj(total) else float(total)

        functions.append(_Function(along, x, eps, rtol))
        return functions[-1]

    def check(what: str, function: _Function, given: Callable[[Array], float]) -> None:
        checkers.append(_Checker(what, function, given, rtol, rng))

    if grad is not None:
        if value.size != 1:
            raise ValueError(
                f"check_grad: f(x) has shape {value.shape}, a gradient needs one element; "
                "give vjp or jvp instead"
            )
        gradient = _shaped("grad", grad(at) if callable(grad) else grad, x)
        check("grad", weighted(np.ones(value.shape)), _inner(gradient))
    if vjp is not None or jvp is not None:
        for _ in range(_COTANGENTS if value.size > 1 else 1):
            w = rng.uniform(0.5, 1.5, value.shape) * rng.choice([-1.0, 1.0], value.shape)
            w = w.astype(value.dtype)
            function = weighted(w.astype(np.float64))
            if vjp is not None:
                pulled = _shaped("vjp(x, g)", vjp(at, w[()]), x)
                check("vjp", function, _inner(pulled))
            if jvp is None:
                continue

            def pushed(v: Array, w: Array = w) -> float:
                tangent = _real("jvp(x, t)", jvp(at, v.astype(x.dtype)[()]))
                if tangent.shape != value.shape:
                    raise ValueError(
                        f"check_grad: jvp(x, t) has shape {tangent.shape}, f(x) {value.shape}"
                    )
                return float(np.sum(w.astype(np.float64) * tangent))

            check("jvp", function, pushed)
            if vjp is not None:
                v = rng.uniform(-1, 1, x.shape).astype(x.dtype).astype(np.float64)
                extra.append(_adjoint(pushed(v), pulled, v, eps))

    looked = [(checker.coordinates(max_coordinates), checker) for checker in checkers]
    along = sum(checker.directions(directions) for checker in checkers)
    found = [*extra, *(d for checker in checkers for d in checker.found)]
    failures = tuple(d for d in found if not d.ok)
    unresolved = tuple(dict.fromkeys(i for checker in checkers for i in checker.unresolved))
    is_linear = all(checker.is_linear for checker in checkers)
    at_coordinates = [d for d in failures if d.index is not None]
    nothing = Discrepancy("grad", None, None, 0.0, 0.0, 0.0, 0.0)  # x is empty
    return GradCheck(
        ok=not failures and is_linear and not unresolved,
        worst=max(at_coordinates or failures or found, key=lambda d: d._excess, default=nothing),
        kinks=tuple({k.index: k for checker in checkers for k in checker.kinks}.values()),
        is_linear=is_linear,
        unresolved=unresolved,
        failures=failures,
        coordinates=sum(count for count, _ in looked),
        directions=along + len(extra),
        method="complex step" if all(f.used_complex for f in functions) else "differences",
        dtype=x.dtype,
    )


def _point(x: npt.ArrayLike) -> Array:
    array = np.asarray(x)
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    return array.astype(kernel_dtype("check_grad", "x", array.dtype))


def _real(name: str, value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    if array.dtype.kind != "f":
        raise TypeError(f"check_grad: {name} has dtype {array.dtype}, needs a real one")
    return array


def _shaped(name: str, given: Any, x: Array) -> Array:
    array = _real(name, given)
    if array.shape != x.shape:
        raise ValueError(f"check_grad: {name} has shape {array.shape}, x has {x.shape}")
    return array.astype(np.float64)


def _inner(gradient: Array) -> Callable[[Array], float]:
    def inner(v: Array) -> float:
        at = np.flatnonzero(v)  # what is not finite elsewhere does not matter
        return float(np.sum(gradient.flat[at] * v.flat[at]))

    return inner


def _adjoint(pushed: float, pulled: Array, v: Array, eps: float) -> Discrepancy:
    """Compare <w, J v> with <J^T w, v>."""
    terms = (pulled * v).reshape(-1)
    total = float(np.sum(terms))
    size = float(np.sum(np.abs(terms)))
    error = abs(pushed - total) if math.isfinite(pushed - total) else math.inf
    tolerance = 64 * eps * max(1.0, math.sqrt(v.size)) * max(size, abs(pushed))
    return Discrepancy("jvp against vjp", None, v, pushed, total, error, tolerance)

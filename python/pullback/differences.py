"""Derivatives of a real function along lines, measured by differences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["SAFETY", "Estimate", "Function", "Slope"]

Array: TypeAlias = npt.NDArray[Any]

# Steps relative to max(1, |x|), from the first downwards by the ratio, as long as rounding errors
# leave half of the digits. No simple fraction: periods should not match it.
_FIRST_STEP: Final = 0.1873
_COLUMNS: Final = 6  # of an extrapolation
_NOISE: Final = 4.0  # units in the last place that values are taken to be wrong by
_NEARBY: Final = 32  # points around a kink
_JUMPING: Final = 3  # steps
_STAYS: Final = 0.9  # of the distance to f(x), from step to step
_GROWING: Final = 6  # steps
_VERTICAL: Final = 0.1  # power of a step's inverse with which an infinite slope shows at least
SAFETY: Final = 4.0  # times the estimated error of what was measured


class Estimate(NamedTuple):
    """A measured number, and what it may be wrong by."""

    value: float
    error: float


_NONE: Final = Estimate(math.nan, math.inf)


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
                    self.best = Estimate(quotient, plain)
            if error < self.best.error:
                self.best = Estimate(row[-1], error)
        self._row = row


class Slope(NamedTuple):
    """The derivative along a line: from the right, from the left, and of both together."""

    right: Estimate
    left: Estimate
    both: Estimate
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

    def scaled(self, by: float) -> Slope:
        """Return the derivative by a positive multiple of the line's parameter."""
        right, left, both = (Estimate(v * by, e * by) for v, e in self[:3])
        return Slope(right, left, both, self.is_kink)


class Function:
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
    size : float
        Of the terms that cancel in its value.
    """

    def __init__(
        self, f: Callable[[Any], Any], x: Array, eps: float, rtol: float, size: float
    ) -> None:
        self._f = f
        self.x = x
        self.eps = eps
        self.rtol = rtol
        self.at_x = float(f(x))
        self._size = size
        self._partials: dict[int, Slope] = {}
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

    def partial(self, i: int) -> Slope:
        """Return the derivative by the flat coordinate i; measured once."""
        if i not in self._partials:
            v = np.zeros(self.x.shape)
            scale = np.ravel(self.scale)[i]
            v.reshape(-1)[i] = scale
            self._partials[i] = self.slope(v).scaled(1 / float(scale))
        return self._partials[i]

    def slope(self, v: Array) -> Slope:
        """Return the derivative along v."""
        points: list[tuple[float, float, float]] = []  # step, and f on either side
        tables = tuple(_Richardson(self._ratio, power) for power in (1, 1, 2))
        h = _FIRST_STEP
        while h > math.sqrt(self.eps):
            points.append((h, self(h, v), self(-h, v)))
            self._add(tables, *points[-1], self.at_x, self.at_x)
            right, left, both = (table.best for table in tables)
            size = max(abs(e.value) for e in (right, left, both))
            error = max(e.error for e in (right, left, both))
            if len(points) > 3 and error <= 0.05 * self.rtol * size:
                return self._judge(v, right, left, both)
            h /= self._ratio
        limits = [self._limit([point[side] for point in points]) for side in (1, 2)]
        if limits != [self.at_x] * 2:  # a jump: what counts is the slope on either side
            beside = _Richardson(self._ratio, 1), _Richardson(self._ratio, 1)
            for point in points:
                self._add(beside, *point, *limits)
            return Slope(beside[0].best, beside[1].best, both, True)
        right = self._vertical([(after - self.at_x) / h for h, after, _ in points]) or right
        left = self._vertical([(self.at_x - before) / h for h, _, before in points]) or left
        return self._judge(v, right, left, both)

    def _add(
        self,
        tables: tuple[_Richardson, ...],
        h: float,
        right: float,
        left: float,
        from_right: float,
        from_left: float,
    ) -> None:
        known = [abs(a) for a in (right, left, from_right, from_left) if math.isfinite(a)]
        noise = _NOISE * self.eps * max(self._size, *known) / h
        quotients = (right - from_right) / h, (from_left - left) / h, (right - left) / (2 * h)
        for table, quotient in zip(tables, quotients, strict=False):
            table.add(quotient, noise + self.eps * abs(quotient) / h)  # x + h is rounded, too

    def _limit(self, values: list[float]) -> float:
        """Return f(x), or the limit beside it where f jumps there."""
        gaps = [value - self.at_x for value in values if math.isfinite(value)][-_JUMPING:]
        noise = math.sqrt(self.eps) * max(self._size, abs(self.at_x))
        if len(gaps) < _JUMPING or abs(gaps[-1]) <= noise:
            return self.at_x
        stays = all(a / b > _STAYS for b, a in pairwise(gaps) if b) and all(gaps)
        return self.at_x + gaps[-1] if stays else self.at_x

    def _vertical(self, quotients: list[float]) -> Estimate | None:
        """Return an infinite slope where quotients grow without an end, like a root's at 0."""
        last = [q for q in quotients if math.isfinite(q)][-_GROWING:]
        growth = self._ratio**_VERTICAL
        grows = all(abs(q) > growth * abs(p) and p * q > 0 for p, q in pairwise(last))
        if len(last) == _GROWING and grows:
            return Estimate(math.copysign(math.inf, last[-1]), 0.0)
        return None

    def _judge(self, v: Array, right: Estimate, left: Estimate, both: Estimate) -> Slope:
        if not math.isfinite(right.error) or not math.isfinite(left.error):
            one = right if right.error <= left.error else left  # at the end of the domain
            return Slope(one, one, one, False)
        if math.isinf(right.value) or math.isinf(left.value):
            is_kink = right.value != left.value
            return Slope(right, left, _NONE if is_kink else right, is_kink)
        gap = abs(right.value - left.value)
        size = max(abs(right.value), abs(left.value))
        if gap > SAFETY * (right.error + left.error) + self.rtol * size:
            return Slope(right, left, both, True)
        exact = self._complex_step(v)
        if exact is not None:
            if abs(exact - both.value) <= SAFETY * both.error + self.rtol * abs(exact):
                both = Estimate(exact, min(both.error, 8 * self.eps * abs(exact)))
                self.used_complex = True
            else:  # it takes complex numbers, but is not analytic there
                self.is_complex = False
        return Slope(right, left, both, False)

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

"""Derivatives of a real function along lines, measured by differences, with error estimates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["RESOLVED", "SAFETY", "Estimate", "Function", "Slope"]

Array: TypeAlias = npt.NDArray[Any]

# Steps are multiples of an element's scale. The factor is no simple fraction, so that the steps do
# not match a period of the function.
_FIRST_STEP: Final = 0.1873
_TINY_STEP: Final = 1e-30  # from 0, where x + step is exact
_FAR_STEP: Final = 3.1
_FEWEST: Final = 4  # steps, before an answer
_COLUMNS: Final = 6  # of an extrapolation
_NOISE: Final = 4.0  # the least error assumed for values, in units in the last place
# Steps at which noise is looked for, by the scale, in float32 and float64; 0: the smallest.
_FINE_STEPS: Final = ((2.0**-12, 2.0**-16, 0.0), (2.0**-12, 2.0**-20, 2.0**-32, 0.0))
# Multiples of them: irregular, so that no period looks smooth; and cubic polynomials there.
_POINTS: Final = (1, 2, 4, 5, 9, 10, 14, 17, 19, 22, 23, 26)
_CUBIC: Final = np.linalg.qr(np.vander(np.array(_POINTS) / 13 - 1, 4))[0]
_NEARBY: Final = 32  # points around a kink
_JUMPING: Final = 3  # steps
_STAYS: Final = 0.9  # of the distance to f(x), from step to step
_GROWING: Final = 6  # steps
_VERTICAL: Final = 0.1  # power of a step's inverse with which an infinite slope shows at least
_FAR: Final = 2.0**40
SAFETY: Final = 4.0  # times the estimated error of what was measured
RESOLVED: Final = 0.005  # of a derivative: the largest error of one that is resolved


class Estimate(NamedTuple):
    """A measured number and its estimated error."""

    value: float
    error: float


_NONE: Final = Estimate(math.nan, math.inf)


class Slope(NamedTuple):
    """The derivative along a line: from the right, from the left, and of both together."""

    right: Estimate
    left: Estimate
    both: Estimate
    is_kink: bool = False
    variation: float = 0.0  # of f over a step, by the step: a slope that is seen
    is_constant: bool = False  # not one bit of f changes at any small step

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of accepted derivatives."""
        if not self.is_kink:
            return self.both.value, self.both.value
        return min(self.right.value, self.left.value), max(self.right.value, self.left.value)

    @property
    def error(self) -> float:
        """The estimated error of the interval's ends."""
        return max(self.right.error, self.left.error) if self.is_kink else self.both.error

    def is_resolved(self, *sizes: float) -> bool:
        """Tell whether the error is small beside the derivative, or beside other sizes."""
        size = max((abs(a) for a in (*self.interval, *sizes) if not math.isnan(a)), default=0.0)
        return SAFETY * self.error <= RESOLVED * size

    def scaled(self, by: float) -> Slope:
        """Return the derivative by a positive multiple of the line's parameter."""
        right, left, both = (Estimate(v * by, e * by) for v, e in self[:3])
        return Slope(right, left, both, self.is_kink, self.variation * by, self.is_constant)


# What an extrapolation says: its largest and its smallest step, value and error. No class of its
# own, of which making one took a third of all the time.
_Entry: TypeAlias = tuple[float, float, float, float]


def _extrapolated(
    steps: Sequence[float], values: Sequence[float], noises: Sequence[float], power: int
) -> Iterator[_Entry]:
    """Yield the limits at 0 of polynomials in step**power, through neighbouring points.

    Neville's scheme. The error of each is its distance from both limits of one point less, and
    the noise of the values that went in. The first column is there too: it may be exact.
    """
    before: list[tuple[float, float]] = []
    for k, (value, noise) in enumerate(zip(values, noises, strict=True)):
        row = [(value, noise)]
        for column, (older, older_noise) in enumerate(before[:_COLUMNS]):
            first = k - column - 1
            ratio = (steps[first] / steps[k]) ** power
            newer, newer_noise = row[-1]
            limit = newer + (newer - older) / (ratio - 1)
            limit_noise = (ratio * newer_noise + older_noise) / (ratio - 1)
            row.append((limit, limit_noise))
            if column == 0:
                yield steps[first], steps[k], value, abs(value - older) + noise
            error = max(abs(limit - newer), abs(limit - older)) + limit_noise
            yield steps[first], steps[k], limit, error
        before = row


def _settled(entries: Iterable[_Entry]) -> Estimate:
    """Return the best estimate, from small steps to large ones.

    A larger step counts if its result lies within the error interval of the smaller ones. Otherwise
    it reached another piece of the function.
    """
    best, low, high = _NONE, -math.inf, math.inf
    for _, _, value, error in sorted(entries):
        if error < best.error and low <= value + error and value - error <= high:
            best = Estimate(value, error)
            low, high = max(low, value - error), min(high, value + error)
    return best


class _Sample(NamedTuple):
    """The function at a step to the right and to the left."""

    step: float
    right: float
    left: float


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
        The relative accuracy to aim at.
    size : float
        The size of the terms that cancel in its value.
    scale : ndarray
        By how much each element has to change for f to change; positive.
    steps : int, optional
        Take exactly this many steps, from `scale` downwards.
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        x: Array,
        eps: float,
        rtol: float,
        size: float,
        scale: Array,
        steps: int | None = None,
    ) -> None:
        self._f = f
        self.x = x
        self.eps = eps
        self.rtol = rtol
        self.scale = scale
        kind = np.finfo(np.float64 if eps < 1e-10 else np.float32)
        self.tiny, self.least = float(kind.tiny), float(kind.smallest_subnormal)
        self.at_x = float(f(x))
        self._size = max(size, abs(self.at_x))
        self._steps = steps
        self._partials: dict[int, Slope] = {}
        self._lines: dict[int, _Line] = {}
        self.is_complex = True  # until it turns out not to be
        self.used_complex = False
        self._ratio = 4.0 if eps < 1e-10 else 2.0
        # Multiples of this leave x without a rounding.
        self._grid = np.spacing(np.maximum(np.abs(x), (eps * scale).astype(x.dtype))) * 2.0
        self._grid = self._grid.astype(np.float64)
        self.is_rough = False  # at the smallest steps f moves as far as at larger ones
        self._noise = SAFETY * self._measured_noise()

    def __call__(self, step: float, v: Array, base: Array | None = None) -> float:
        """Return f at x + step v, or at `base` + step v; NaN where it cannot be had."""
        with np.errstate(all="ignore"):
            at = (self.x if base is None else base) + step * v
            try:
                return float(self._f(at.astype(self.x.dtype)))
            except (ArithmeticError, ValueError):  # beyond the domain
                return math.nan

    def _measured_noise(self) -> float:
        """Return the standard deviation of f's errors.

        Over small enough steps a smooth function is a cubic polynomial, and noise is not. If the
        noise is 0 by chance, the smallest change of f takes its place. Steps are multiples of x's
        rounding unit, so that x + step is exact. All of x moves towards 0, or away from 0 if f is
        not defined there.
        """
        found: list[float] = []
        moves: list[tuple[float, float]] = []
        rest = 0.0
        grid, scale = np.ravel(self._grid), np.ravel(self.scale)
        scale = scale * np.random.default_rng(1).uniform(0.5, 1, scale.shape)  # nothing cancels
        least = 1 + np.arange(scale.size) % 5
        for fine in _FINE_STEPS[self.eps < 1e-10]:
            unit = np.maximum(least, np.rint(fine * scale / grid)) * grid
            for sign in (-1, 1):
                v = (unit * np.where(np.ravel(self.x) < 0, -sign, sign)).reshape(self.x.shape)
                values = np.array([self(i, v) for i in _POINTS])
                if np.isfinite(values).all():
                    break
            else:
                continue
            rest = 0.0
            moves.append((float(np.max(unit / grid, initial=0.0)), float(np.ptp(values))))
            levels = np.unique(values)
            if len(levels) <= len(_POINTS) // 2:  # steps of f show
                found.extend(np.diff(levels)[:1] / 2)
                continue
            moved = values - values[0]
            rest = math.hypot(*(moved - _CUBIC @ (_CUBIC.T @ moved)))
            rest /= math.sqrt(len(_POINTS) - 4)
            if fine > self.eps ** (1 / 3):
                continue  # too coarse
            found.append(max(rest, float(np.diff(levels).min()) / math.sqrt(12)))
        if moves and moves[0][0] > 64:
            move = moves[-1][1]
            is_seen = move > 4 * _NOISE * self.eps * self._size
            self.is_rough = is_seen and (move > moves[0][1] / 16 or move < 10 * rest)
            if self.is_rough:
                return move / 3
        return min(found, default=0.0)

    def partial(self, i: int) -> Slope:
        """Return the derivative by the flat coordinate i; measured once."""
        if i not in self._partials:
            line = self._lines[i] = self._line(i)
            self._partials[i] = line.slope().scaled(1 / line.unit)
        return self._partials[i]

    def slope(self, v: Array) -> Slope:
        """Return the derivative along v."""
        return _Line(self, v, 0.25, 1 / self._finest(v), _FAR_STEP).slope()

    def snapped(self, v: Array) -> Array:
        """Return nearly v, such that all steps along it leave x without a rounding."""
        grid = self._grid * self._finest(v)
        snapped: Array = np.rint(v / grid) * grid
        return snapped

    def _finest(self, v: Array) -> float:
        moved = v != 0
        parts = np.abs(v[moved]) / self._grid[moved]
        return float(np.exp2(np.floor(np.log2(np.min(parts, initial=1 / self.eps)) - 3)))

    def _line(self, i: int) -> _Line:
        v = np.zeros(self.x.shape)
        unit = float(np.ravel(self.scale)[i])
        v.reshape(-1)[i] = unit
        grid = float(np.ravel(self._grid)[i]) / unit if np.ravel(self.x)[i] else 0.0
        last, far = 2 * grid or _TINY_STEP, _FAR_STEP * max(1, 1 / unit)
        return _Line(self, v, _FIRST_STEP, last, far, unit, grid)

    def departs(self, i: int) -> bool:
        """Tell whether f, which small steps do not change at all, is constant up to a kink or jump.

        A smooth function that only seems constant departs from its value gradually, over many
        steps.
        """
        line = self._lines[i]
        noise = line.noise(self._size)
        for side in (1.0, -1.0):
            t = _FIRST_STEP
            while t < _FAR:
                moved = abs(line.at(side * t) - self.at_x)
                if not moved <= SAFETY * noise:
                    break
                t *= 2
            else:
                continue
            if not math.isfinite(moved):
                return False
            inside = t / 2
            for _ in range(12):
                middle = (inside + t) / 2
                if abs(line.at(side * middle) - self.at_x) > SAFETY * noise:
                    t = middle
                else:
                    inside = middle
            # A step stays, a kink goes on as a low power; what grows faster does so all along.
            near, far = (abs(line.at(side * by * t) - self.at_x) for by in (1.01, 1.02))
            if not (near > 1e4 * noise and 0.9 * near <= far <= 9 * near):
                return False
        return True

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

    def complex_step(self, v: Array, both: Estimate) -> Estimate:
        """Return the imaginary part's derivative where it confirms the differences, or `both`."""
        if not self.is_complex:
            return both
        h = 1e-20 / max(1.0, float(np.abs(v).max()))
        self.is_complex = False
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("error")  # of NumPy, that it discards the imaginary part
                complex_dtype = np.result_type(self.x.dtype, np.complex64)
                value = self._f((self.x + 1j * h * v).astype(complex_dtype))
        except Exception:  # whatever f does with what it was not made for
            return both
        if not isinstance(value, complex) or not math.isfinite(value.imag):
            return both
        if abs(value.imag) * self.eps < self.tiny and float(np.abs(v).max()) < self.eps:
            return both  # it may have underflowed
        exact = value.imag / h
        if abs(exact - both.value) > SAFETY * both.error + self.rtol * abs(exact):
            return both  # it takes complex numbers, but is not analytic there
        self.is_complex = self.used_complex = True
        return Estimate(exact, min(both.error, 8 * self.eps * abs(exact)))


class _Line:
    """A function along one line.

    Parameters
    ----------
    f : Function
    v : ndarray
        The line's unit, in the shape of x.
    first, last, far : float
        The first step, the smallest and the largest one.
    unit : float, optional
        Of a line along one coordinate.
    grid : float, optional
        Of steps without a rounding, in units.
    """

    def __init__(
        self,
        f: Function,
        v: Array,
        first: float,
        last: float,
        far: float,
        unit: float = 1.0,
        grid: float = 0.0,
    ) -> None:
        self._f, self._v, self.unit = f, v, unit
        self._first, self._last, self._far, self._grid = first, last, far, grid
        self._samples: list[_Sample] = []  # from large steps to small ones
        self._largest = 0.0  # of the values that were seen

    def at(self, t: float) -> float:
        """Return f at a step."""
        value = self._f(t, self._v)
        if math.isfinite(value) and abs(t) <= _FAR_STEP:
            self._largest = max(self._largest, abs(value))
        return value

    def noise(self, size: float) -> float:
        """Return what a value of this size may be wrong by."""
        if self._is_constant():  # what cancels in f(x) shows elsewhere
            size = max(size, self._largest)
        f = self._f
        return max(f._noise, _NOISE * f.eps * max(f._size, size), _NOISE * f.least)

    def slope(self) -> Slope:
        """Return the derivative at 0."""
        f = self._f
        if f._steps is not None:
            for k in range(f._steps):
                self._sample(f._ratio**-k)
            return self._judged()
        t = self._first
        while t >= self._last or len(self._samples) < _FEWEST:
            self._sample(t)
            count = len(self._samples)
            if count >= _FEWEST and count % 2 == 0:
                if self._is_constant():
                    break
                both = self._both(self._noises())
                right, left = self._samples[-1][1:]
                last = (right - left) / (2 * self._samples[-1].step)
                # Values that agree by chance do not continue.
                is_near = abs(last - both.value) <= 0.1 * abs(both.value)
                if is_near and both.error <= 0.05 * f.rtol * abs(both.value):
                    return self._judged()
            t /= f._ratio
            if t < math.sqrt(f.eps) and self._last == _TINY_STEP and self._judged().is_resolved():
                break
        slope = self._judged()
        if slope.is_constant or not slope.is_resolved():
            t = self._first * 4
            while t <= self._far:
                self._sample(t)
                t *= 4
            slope = self._judged()
        return slope

    def _sample(self, t: float) -> None:
        if t < self._grid * 2.0**53:  # else it is a multiple
            t = round(t / self._grid) * self._grid
        new = _Sample(t, self.at(t), self.at(-t))
        if self._samples and t > self._samples[0].step:
            self._samples.insert(0, new)
        else:
            self._samples.append(new)

    def _is_constant(self) -> bool:
        at_x = self._f.at_x
        return all(s.right == at_x == s.left for s in self._samples if s.step < self._first)

    def _noises(self) -> list[float]:
        noises = []
        for _, right, left in self._samples:
            known = [abs(a) for a in (right, left) if math.isfinite(a)]
            noises.append(self.noise(max(known, default=0.0)))
        return noises

    def _one(self, side: int, noises: list[float], from_x: float) -> Estimate:
        """Return the derivative of one side."""
        sign = 1 if side == 1 else -1
        at = [(s.step, 0.0 + sign * (s[side] - from_x) / s.step, n / s.step)
              for s, n in zip(self._samples, noises, strict=True)]  # fmt: skip
        finite = [math.isfinite(value) for _, value, _ in at]
        return _settled(e for run in _finite(at, finite) for e in _extrapolated(*run, 1))

    def _both(self, noises: list[float]) -> Estimate:
        """Return the derivative of both sides together.

        The odd part of f over the step has to extrapolate, and the even part over its square, too:
        kinks at the same distance on both sides leave the odd part linear.
        """
        odd, even = [], []
        for (step, right, left), noise in zip(self._samples, noises, strict=True):
            odd.append((step, (right - left) / (2 * step), noise / step))
            curve = ((right - self._f.at_x) + (left - self._f.at_x)) / step
            even.append((step, curve / step, 2 * noise / step / step))
        both = [math.isfinite(o[1]) and math.isfinite(e[1]) for o, e in zip(odd, even, strict=True)]
        entries = [
            (largest, smallest, value, max(error, smallest * error_of_even))
            for one, other in zip(_finite(odd, both), _finite(even, both), strict=True)
            for (largest, smallest, value, error), (*_, error_of_even) in zip(
                _extrapolated(*one, 2), _extrapolated(*other, 2), strict=True
            )
        ]
        # Beyond the size of x, what does not converge is another piece of f.
        first = self._samples[0].step if self._f._steps else self._first
        return _settled(e for e in entries if e[0] <= first or e[3] < 0.5 * abs(e[2]))

    def _judged(self) -> Slope:
        f, noises = self._f, self._noises()
        both = self._both(noises)
        seen_from = 64 if f.is_rough else 2 * SAFETY
        seen = [(max(abs(s.right - f.at_x), abs(s.left - f.at_x)) - seen_from * noise) / s.step
                for s, noise in zip(self._samples, noises, strict=True)
                if s.step <= self._first or f._steps is not None]  # fmt: skip
        variation = max((a for a in seen if math.isfinite(a) and a > 0), default=0.0)
        if f.is_rough and not variation:
            return Slope(_NONE, _NONE, _NONE)
        smooth = Slope(both, both, both, False, variation, self._is_constant())
        if smooth.is_resolved():
            both = f.complex_step(self._v, both)
            return smooth._replace(right=both, left=both, both=both)
        return smooth if smooth.is_constant else self._one_sided(smooth, noises)

    def _one_sided(self, smooth: Slope, noises: list[float]) -> Slope:
        """Return the derivative where there may be a kink, a jump or an end of the domain."""
        f, both, variation = self._f, smooth.both, smooth.variation
        limits = [self._limit(side, SAFETY * noises[-1]) for side in (1, 2)]
        if limits != [f.at_x] * 2:  # a jump: what counts is the slope on either side
            right, left = (self._one(side, noises, limits[side - 1]) for side in (1, 2))
            return Slope(right, left, both, True, variation)
        right, left = (
            self._vertical(side, noises) or self._one(side, noises, f.at_x) for side in (1, 2)
        )
        if not math.isfinite(right.error) or not math.isfinite(left.error):
            one = right if right.error <= left.error else left  # at the end of the domain
            return Slope(one, one, one, False, variation)
        if math.isinf(right.value) or math.isinf(left.value):
            is_kink = right.value != left.value
            return Slope(right, left, _NONE if is_kink else right, is_kink, variation)
        gap = abs(right.value - left.value)
        size = max(abs(right.value), abs(left.value))
        is_kink = gap > SAFETY * (right.error + left.error) + f.rtol * size
        is_kink = is_kink and gap < SAFETY**2 * both.error  # not what both together exclude
        return Slope(right, left, both, is_kink, variation)

    def _limit(self, side: int, noise: float) -> float:
        """Return f(x), or the limit beside it where f jumps there."""
        f = self._f
        values = [s[side] for s in self._samples]
        gaps = [value - f.at_x for value in values if math.isfinite(value)][-_JUMPING:]
        if len(gaps) < _JUMPING or abs(gaps[-1]) <= max(noise, math.sqrt(f.eps) * f._size):
            return f.at_x
        stays = all(a / b > _STAYS for b, a in pairwise(gaps) if b) and all(gaps)
        return f.at_x + gaps[-1] if stays else f.at_x

    def _vertical(self, side: int, noises: list[float]) -> Estimate | None:
        """Return an infinite slope if quotients grow without bound, like those of sqrt at 0."""
        sign = 1 if side == 1 else -1
        quotients = [
            (sign * (s[side] - self._f.at_x) / s.step, noise / s.step)
            for s, noise in zip(self._samples, noises, strict=True)
            if math.isfinite(s[side])
        ]
        last = quotients[-_GROWING:]
        growth = self._f._ratio**_VERTICAL
        grows = all(abs(q) > growth * abs(p) and p * q > 0 for (p, _), (q, _) in pairwise(last))
        if len(last) == _GROWING and grows and all(abs(q) > SAFETY * n for q, n in last):
            return Estimate(math.copysign(math.inf, last[-1][0]), 0.0)
        return None


def _finite(
    points: list[tuple[float, float, float]], is_finite: list[bool]
) -> Iterator[tuple[list[float], list[float], list[float]]]:
    """Yield steps, values and noises of runs of neighbours that are finite."""
    marked = zip(points, is_finite, strict=True)
    for keep, run in groupby(marked, key=lambda pair: pair[1]):
        if keep:
            steps, values, noises = map(list, zip(*(point for point, _ in run), strict=True))
            yield steps, values, noises

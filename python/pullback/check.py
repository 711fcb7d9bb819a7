"""A checker of derivatives that understands kinks, by differences along lines."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.check_report import Discrepancy, GradCheck, Index, Kink
from pullback.config import guarded
from pullback.differences import SAFETY, Estimate, Function, Slope
from pullback.protocol import as_array, as_index, as_number, kernel_dtype, shown

__all__ = ["Discrepancy", "GradCheck", "Kink", "check_grad"]

Array: TypeAlias = npt.NDArray[Any]

_COTANGENTS: Final = 3
_STEPS: Final = 4  # if the first is given
_VERDICTS: Final = ("skipped", "unresolved", "ok", "kink", "wrong")  # of several, the last counts


class _Checker:
    """Compares given derivatives of one function with measured ones.

    Parameters
    ----------
    what : str
        What was given.
    function : Function
    given : callable
        The given derivative along a direction.
    rtol : float
    rng : numpy.random.Generator
    """

    def __init__(
        self,
        what: str,
        function: Function,
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
        self.is_linear = True
        self._slopes: dict[int, Slope] = {}  # by coordinate, flat
        self._partials: dict[int, float] = {}  # the given ones
        self._bad: set[int] = set()  # coordinates that are no part of a direction
        self.is_complete = False  # every coordinate was measured

    def coordinates(self, most: int) -> int:
        """Compare partial derivatives, of some coordinates where there are too many."""
        n = self._f.x.size
        chosen = np.arange(n) if n <= most else np.sort(self._rng.choice(n, most, replace=False))
        self.is_complete = n <= most
        for i in map(int, chosen):
            v = np.zeros(self._f.x.shape)
            v.reshape(-1)[i] = 1
            self._slopes[i], self._partials[i] = self._f.partial(i), self._given(v)
        for i, slope in self._slopes.items():
            given = self._partials[i]
            # A derivative is compared with itself, 0 with what is seen of f.
            is_resolved = slope.is_resolved(given or slope.variation)
            if given == 0 and slope.is_constant:
                is_resolved = self._f.departs(i)
            error = slope.error
            if math.isinf(slope.interval[0]) and slope.variation < abs(given) < math.inf:
                error, is_resolved = math.inf, False  # as steep as that
            index = tuple(map(int, np.unravel_index(i, self._f.x.shape)))
            self._compare(slope, error, given, abs(given), is_resolved, index=index)
            if slope.is_kink:
                self.kinks.append(Kink(index, slope.interval, given))
            if not is_resolved or not np.isfinite([given, *slope.interval]).all():
                self._bad.add(i)
        return len(chosen)

    def directions(self, count: int) -> int:
        """Compare derivatives along random directions."""
        good = {i: slope for i, slope in self._slopes.items() if i not in self._bad}
        smooth = [i for i, slope in good.items() if not slope.is_kink]
        kinked = [i for i, slope in good.items() if slope.is_kink]
        done = 0
        if len(smooth) > 1:
            for _ in range(count):
                self._smooth_direction(self._direction(smooth))
            done += count
        if kinked or not self.is_complete:
            everything = [i for i in range(self._f.x.size) if i not in self._bad]
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
        return self._f.snapped(v.reshape(self._f.x.shape) * self._f.scale)

    def _smooth_direction(self, v: Array) -> None:
        """Compare along coordinates that have partial derivatives: they must add up."""
        terms = [(self._slopes[i], t) for i, t in _moves(v)]
        slope = self._f.slope(v)
        sum_of_partials = math.fsum(s.both.value * t for s, t in terms)
        size = math.hypot(*(s.both.value * t for s, t in terms))
        error = slope.error + math.fsum(s.error * abs(t) for s, t in terms)
        tolerance = SAFETY * error + self._rtol * size
        if not slope.is_kink and abs(slope.both.value - sum_of_partials) > tolerance:
            self.is_linear = False
        self._compare(slope, slope.error, self._given(v), size, direction=v)

    def _any_direction(self, v: Array, kinked: list[int]) -> None:
        """Compare along a direction that may cross kinks.

        At a convex or concave kink, values between the one-sided derivatives are accepted. At a sum
        of both kinds, so are sums over the coordinates' intervals, and slopes at points nearby.
        """
        slope, given = self._f.slope(v), self._given(v)
        size = math.hypot(*(self._partials.get(i, 0.0) * t for i, t in _moves(v)))
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
            error = slope.error
            slope = Slope(Estimate(high, error), Estimate(low, error), slope.both, True)
        self._compare(slope, slope.error, given, size, direction=v)

    def _is_additive(self, slope: Slope, v: Array, tolerance: float) -> bool:
        """Tell whether the one-sided derivatives along v are the coordinates' own, added up."""
        if not self.is_complete:
            return False
        for end, sign in ((slope.right, 1), (slope.left, -1)):
            total = error = 0.0
            for i, t in _moves(v):
                one = self._slopes[i].right if t * sign > 0 else self._slopes[i].left
                if not self._slopes[i].is_kink:
                    one = self._slopes[i].both
                total += one.value * t
                error += one.error * abs(t)
            if abs(end.value - total) > tolerance + SAFETY * (error + end.error):
                return False
        return True

    def _tolerance(self, error: float, size: float, *values: float) -> float:
        sizes = (abs(a) for a in (size, *values))
        return SAFETY * error + self._rtol * max(
            (a for a in sizes if math.isfinite(a)), default=0.0
        )

    @staticmethod
    def _distance(low: float, high: float, given: float) -> float:
        if low <= given <= high:
            return 0.0
        return max(low - given, given - high) if math.isfinite(given) else math.inf

    def _compare(
        self,
        slope: Slope,
        error: float,
        given: float,
        size: float,
        is_resolved: bool | None = None,
        index: Index | None = None,
        direction: Array | None = None,
    ) -> None:
        low, high = slope.interval
        measured = low if math.isnan(given) else min(max(given, low), high)
        distance = self._distance(low, high, given)
        tolerance = self._tolerance(error, size, low, high)
        if is_resolved is None:
            is_resolved = slope.is_resolved(size)
        self.found.append(
            Discrepancy(
                *(self._what, index, direction, given, measured, distance, tolerance),
                is_resolved=is_resolved,
                is_kink=slope.is_kink,
            )
        )


@guarded
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
    step: npt.ArrayLike | None = None,
    scale: npt.ArrayLike | None = None,
) -> GradCheck:
    """Compare derivatives with differences of the function, also at kinks.

    Parameters
    ----------
    f : callable
        The function of an array in the shape of `x`. Its value has one element, or any shape if
        `grad` is None.
    grad : callable, array_like or None
        The gradient at `x`, or a function that returns it, in the shape of `x`.
    x : array_like
        The point. Integers become float64, and float16 becomes float32.
    vjp : callable, optional
        ``vjp(x, g)``, checked for random cotangents g.
    jvp : callable, optional
        ``jvp(x, t)``, checked along all directions, and against `vjp` if both are given.
    rtol : float, optional
        The relative tolerance, to which the estimated error of the differences is added. The
        default is 1e-6 in float64 and 5e-4 in float32.
    max_coordinates : int, default 100
        The largest number of elements of `x` that are checked one by one.
    directions : int, default 6
        The number of random directions to check, twice as many if there are kinks.
    step : array_like, optional
        The largest step, one for all elements of `x` or one for each. Exactly three more steps
        follow, each 1/4 of the one before (1/2 in float32).
    scale : array_like, optional
        By how much the elements have to change for `f` to change noticeably; the first step is 0.19
        times that. The default is ``abs(x)``, or 1 where `x` is 0, and at least about the smallest
        normal number.

    Returns
    -------
    GradCheck
        It is true if nothing is wrong and something is confirmed. Print it to see the findings;
        `GradCheck.verdicts` holds the verdict on each element.

    Raises
    ------
    TypeError
        If `x`, or a result of `f` or a derivative, has no real floating-point dtype, or an argument
        has the wrong type.
    ValueError
        If f(x) is not finite, shapes do not fit, there is nothing to check, or a number is out of
        range.
    RuntimeError
        If `f` or a derivative changes its argument, which is a copy of `x`.

    Notes
    -----
    The steps start at 0.19 times `scale` and decrease, or increase if these do not suffice. The
    difference quotients are extrapolated to step 0 by Richardson's scheme: from the right, from the
    left, and from both sides. The error of an extrapolated value is estimated from its distance to
    its neighbours and from the rounding errors of f, which differences of high order measure. The
    value with the smallest error counts, unless smaller steps exclude it. From both sides, the even
    part of f has to extrapolate as well as the odd part, because two kinks on either side of x do
    not make a smooth function. If `f` takes complex numbers and agrees with the differences, Squire
    and Trapp's complex step replaces them.

    A derivative is resolved if four times its error is at most 1/200 of it. A derivative of 0 is
    resolved if its error is that small relative to other derivatives, or to visible changes of f.
    An unresolved derivative can be wrong, but it is never ok: 1e15 + x**2 has no digits left for
    x**2.

    A coordinate is on a kink if the one-sided derivatives differ. Any value between them is
    accepted, and the same holds along a direction. Where f jumps, the slopes on either side of the
    jump count. Away from kinks, the partial derivatives must add up to the directional derivatives;
    if they do not, the function has no gradient. Along a direction that crosses kinks of both
    signs, a sum over the coordinates' intervals, or a slope at a point nearby, is accepted, too.

    Results are the same in every call.

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
    if grad is None and vjp is None and jvp is None:
        raise ValueError("check_grad: grad, vjp and jvp are all None: there is nothing to check")
    for name, function in (("f", f), ("vjp", vjp), ("jvp", jvp)):
        if not callable(function) and (function is not None or name == "f"):
            raise TypeError(f"check_grad: {name} must be a function, not {shown(function)}")
    if rtol is not None:
        rtol = as_number("check_grad", "rtol", rtol)
        if not 0 <= rtol < math.inf:
            raise ValueError(f"check_grad: rtol is {rtol}, needs to be finite and not negative")
    max_coordinates = _count("max_coordinates", max_coordinates, 1)
    directions = _count("directions", directions, 0)
    if step is not None and scale is not None:
        raise ValueError("check_grad: step and scale exclude each other")
    comparison = _Comparison(f, _point(x), rtol, step, scale)
    if grad is not None:
        comparison.add_gradient(grad)
    if vjp is not None or jvp is not None:
        comparison.add_products(vjp, jvp)
    return comparison.report(max_coordinates, directions)


class _Comparison:
    """A function's given derivatives, and the comparisons with measured ones."""

    def __init__(
        self, f: Callable[[Any], Any], x: Array, rtol: float | None, step: Any, scale: Any
    ) -> None:
        self._f = _with_copies("f", f, "x")
        self._x = x
        self._value = value = _real("f(x)", self._f(x)).copy()
        if not np.isfinite(value).all():
            shown = np.array2string(value, threshold=6)
            raise ValueError(f"check_grad: f(x) is not finite: {shown}")
        self._eps = float(max(np.finfo(x.dtype).eps, np.finfo(value.dtype).eps))
        self._rtol = (1e-6 if self._eps < 1e-10 else 5e-4) if rtol is None else rtol
        self._steps = None if step is None else _STEPS
        if step is None and scale is None:
            kind = np.finfo(x.dtype)
            # Closer to 0, steps that are small relative to x would be subnormal.
            sizes = np.maximum(np.abs(x.astype(np.float64)), float(kind.tiny) / float(kind.eps))
            self._scale = np.where(x == 0, 1.0, sizes)
        elif step is None:
            self._scale = _sizes("scale", scale, x)
        else:
            self._scale = _sizes("step", step, x)
        self._rng = np.random.default_rng(0)
        self._functions: list[Function] = []
        self._checkers: list[_Checker] = []
        self._adjoints: list[Discrepancy] = []

    def add_gradient(self, grad: Any) -> None:
        """Add a gradient, or a function that returns it."""
        if self._value.size != 1:
            raise ValueError(
                f"check_grad: f(x) has shape {self._value.shape}, a gradient needs one element; "
                "give vjp or jvp instead"
            )
        gradient = grad if not callable(grad) else _with_copies("grad", grad, "x")(self._x)
        gradient = _shaped("grad", gradient, self._x)
        self._check("grad", self._weighted(np.ones(self._value.shape)), _inner(gradient))

    def add_products(
        self, vjp: Callable[[Any, Any], Any] | None, jvp: Callable[[Any, Any], Any] | None
    ) -> None:
        """Add products with the Jacobian, for random cotangents."""
        shape, dtype = self._value.shape, self._value.dtype
        vjp = vjp and _with_copies("vjp", vjp, "x", "g")
        jvp = jvp and _with_copies("jvp", jvp, "x", "t")
        for _ in range(_COTANGENTS if self._value.size > 1 else 1):
            g = self._rng.uniform(0.5, 1.5, shape) * self._rng.choice([-1.0, 1.0], shape)
            g = g.astype(dtype)
            function = self._weighted(g.astype(np.float64))
            pulled = pushed = None
            if vjp is not None:
                pulled = _shaped("vjp(x, g)", vjp(self._x, g), self._x)
                self._check("vjp", function, _inner(pulled))
            if jvp is not None:
                pushed = self._pushed(jvp, g)
                self._check("jvp", function, pushed)
            if pulled is not None and pushed is not None:
                t = self._rng.uniform(-1, 1, self._x.shape).astype(self._x.dtype)
                self._adjoints.append(_adjoint(pushed, pulled, t.astype(np.float64), self._eps))

    def report(self, max_coordinates: int, directions: int) -> GradCheck:
        """Compare, and return the findings."""
        checkers = self._checkers
        coordinates = sum(checker.coordinates(max_coordinates) for checker in checkers)
        along = sum(checker.directions(directions) for checker in checkers)
        found = [*self._adjoints, *(d for checker in checkers for d in checker.found)]
        failures = tuple(d for d in found if d.verdict == "wrong")
        verdicts = np.zeros(self._x.shape, int)
        for d in found:
            if d.index is not None:
                verdicts[d.index] = max(verdicts[d.index], _VERDICTS.index(d.verdict))
        unresolved = np.argwhere(verdicts == _VERDICTS.index("unresolved")).tolist()
        is_confirmed = not verdicts.size or any(d.ok for c in checkers for d in c.found)
        is_linear = all(checker.is_linear for checker in checkers)
        telling = [d for d in failures if d.index is not None] or failures or found
        nothing = Discrepancy("grad", None, None, 0.0, 0.0, 0.0, 0.0)  # of an empty x
        return GradCheck(
            ok=not failures and is_linear and is_confirmed,
            verdicts=np.array(_VERDICTS)[verdicts],
            worst=max(telling, key=lambda d: d.excess, default=nothing),
            kinks=tuple({k.index: k for checker in checkers for k in checker.kinks}.values()),
            is_linear=is_linear,
            unresolved=tuple(map(tuple, unresolved)),
            failures=failures,
            coordinates=coordinates,
            directions=along + len(self._adjoints),
            method=(
                "complex step" if all(f.used_complex for f in self._functions) else "differences"
            ),
            dtype=self._x.dtype,
        )

    def _weighted(self, g: Array) -> Function:
        """Return the real function <g, f>."""

        def along(x: Array) -> Any:
            total = np.sum(g * np.asarray(self._f(x)))
            return complex(total) if np.iscomplexobj(total) else float(total)

        size = float(np.sum(np.abs(g * self._value)))
        self._functions.append(
            Function(along, self._x, self._eps, self._rtol, size, self._scale, self._steps)
        )
        return self._functions[-1]

    def _pushed(self, jvp: Callable[[Any, Any], Any], g: Array) -> Callable[[Array], float]:
        def pushed(v: Array) -> float:
            tangent = _real("jvp(x, t)", jvp(self._x, v.astype(self._x.dtype)))
            if tangent.shape != self._value.shape:
                raise ValueError(
                    f"check_grad: jvp(x, t) has shape {tangent.shape}, f(x) {self._value.shape}"
                )
            return float(np.sum(g.astype(np.float64) * tangent))

        return pushed

    def _check(self, what: str, function: Function, given: Callable[[Array], float]) -> None:
        self._checkers.append(_Checker(what, function, given, self._rtol, self._rng))


def _count(name: str, given: Any, least: int) -> int:
    n = as_index("check_grad", name, given)
    if not least <= n <= sys.maxsize:
        raise ValueError(f"check_grad: {name} is {shown(n)}, needs {least} to {sys.maxsize}")
    return n


def _with_copies(name: str, function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Return a function that calls another with copies, and raises if it changes one."""

    def call(*arrays: Array) -> Any:
        copies = [array.copy() for array in arrays]
        result = function(*(copy[()] for copy in copies))
        for argument, array, copy in zip(names, arrays, copies, strict=True):
            is_same = array.tobytes() == copy.tobytes()
            if not is_same and not np.array_equal(array, copy, equal_nan=True):
                raise RuntimeError(
                    f"check_grad: {name} changes its argument {argument}; it has to work on a copy"
                )
        return result

    return call


def _sizes(name: str, given: Any, x: Array) -> Array:
    """Return steps or scales in the shape of x."""
    array = _real(name, given).astype(np.float64)
    if array.shape not in ((), x.shape):
        raise ValueError(f"check_grad: {name} has shape {array.shape}, x has {x.shape}")
    sizes = np.broadcast_to(array, x.shape)
    fits = np.isfinite(sizes) & (sizes > 0) & ((x + sizes / 512).astype(x.dtype) != x)
    if not fits.all():
        at = tuple(map(int, np.argwhere(~fits)[0]))
        raise ValueError(
            f"check_grad: {name} is {sizes[at]:g} for x of {x[at]:g}, needs to be positive, finite "
            "and more than x's rounding"
        )
    return sizes


def _point(x: npt.ArrayLike) -> Array:
    array = as_array("check_grad", "x", x)
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    return array.astype(kernel_dtype("check_grad", "x", array.dtype))


def _real(name: str, value: Any) -> Array:
    array = as_array("check_grad", name, value)
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
        at = np.flatnonzero(v)  # infinities and NaN elsewhere do not matter
        return float(np.sum(np.ravel(gradient)[at] * np.ravel(v)[at]))

    return inner


def _moves(v: Array) -> Iterator[tuple[int, float]]:
    """Yield the flat coordinates along which a direction moves, and how far."""
    flat = np.ravel(v)
    for i in map(int, np.flatnonzero(flat)):
        yield i, float(flat[i])


def _adjoint(pushed: Callable[[Array], float], pulled: Array, t: Array, eps: float) -> Discrepancy:
    """Compare <g, J t> with <J^T g, t>."""
    terms = (pulled * t).reshape(-1)
    left, right = pushed(t), float(np.sum(terms))
    size = max(float(np.sum(np.abs(terms))), abs(left))
    error = abs(left - right) if math.isfinite(left - right) else math.inf
    tolerance = 64 * eps * math.sqrt(max(1, t.size)) * size
    return Discrepancy("jvp against vjp", None, t, left, right, error, tolerance)

"""What the reductions' tests judge against: the definitions in mpmath, and the table's bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import mpmath
import numpy as np
from mpmath import mp, mpf
from oracles import PRECISION, ulp
from pullback.tables.reductions import REDUCTIONS, ReductionRow, sum_error

_VOCABULARY = {name: getattr(mpmath, name) for name in dir(mpmath) if not name.startswith("_")}


# --- definitions ----------------------------------------------------------------------------------


def _mean(x: list[Any]) -> Any:
    return mpmath.fsum(x) / len(x)


def _squares(x: list[Any]) -> Any:
    mean = _mean(x)
    return mpmath.fsum((v - mean) ** 2 for v in x)


def _softmax(x: list[Any]) -> list[Any]:
    e = [mpmath.exp(v - max(x)) for v in x]
    total = mpmath.fsum(e)
    return [v / total for v in e]


def _p_norm(x: list[Any], p: float) -> Any:
    largest = max(map(abs, x))
    if largest == 0 or math.isinf(p):
        return largest
    return largest * mpmath.fsum((abs(v) / largest) ** mpf(p) for v in x) ** (1 / mpf(p))


def _ties(x: list[Any], extremum: Any) -> list[Any]:
    k = x.count(extremum)
    return [mpf(1) / k if v == extremum else mpf(0) for v in x]


def value(name: str, x: list[Any], y: list[Any], p: float) -> Any:  # noqa: PLR0911
    """Return the exact value of a reduction."""
    match name:
        case "sum":
            return mpmath.fsum(x)
        case "mean":
            return _mean(x)
        case "prod":
            return mpmath.fprod(x)
        case "dot":
            return mpmath.fdot(x, y)
        case "norm1":
            return _p_norm(x, 1)
        case "norm2":
            return _p_norm(x, 2)
        case "squared_norm2":
            return mpmath.fsum(v * v for v in x)
        case "norm":
            return _p_norm(x, p)
        case "max":
            return max(x)
        case "min":
            return min(x)
        case "logsumexp":
            return max(x) + mpmath.log(mpmath.fsum(mpmath.exp(v - max(x)) for v in x))
        case "variance":
            return _squares(x) / (len(x) - mpf(p))
    raise KeyError(name)


def slopes(  # noqa: PLR0911
    name: str, x: list[Any], y: list[Any], p: float
) -> tuple[list[Any], ...]:
    """Return the exact derivatives of a reduction by each element of each operand."""
    n = len(x)
    match name:
        case "sum":
            return ([mpf(1)] * n,)
        case "mean":
            return ([mpf(1) / n] * n,)
        case "prod":
            return ([mpmath.fprod(x[:i] + x[i + 1 :]) for i in range(n)],)
        case "dot":
            return y, x
        case "squared_norm2":
            return ([2 * v for v in x],)
        case "norm" | "norm1" | "norm2":
            p = {"norm1": 1.0, "norm2": 2.0}.get(name, p)
            norm = _p_norm(x, p)
            if math.isinf(p):
                ties = _ties([abs(v) for v in x], norm)
                return ([mpmath.sign(v) * share for v, share in zip(x, ties, strict=True)],)
            if norm == 0:
                return (x,)
            return ([mpmath.sign(v) * (abs(v) / norm) ** (mpf(p) - 1) for v in x],)
        case "max":
            return (_ties(x, max(x)),)
        case "min":
            return (_ties(x, min(x)),)
        case "logsumexp":
            return (_softmax(x),)
        case "variance":
            mean = _mean(x)
            return ([2 * (v - mean) / (n - mpf(p)) for v in x],)
    raise KeyError(name)


def mapped(name: str, method: str, x: list[Any], g: list[Any], eps: float) -> list[Any]:
    """Return the exact value of a map of rows, or its vjp or jvp with g."""
    n, p = len(x), _softmax(x)
    pg = mpmath.fdot(p, g)
    if name == "layer_norm":
        r = _rate(x, eps)
        mean = _mean(x)
        y = [(v - mean) * r for v in x]
        if method == "value":
            return y
        yg, g_mean = mpmath.fdot(y, g) / n, _mean(g)
        return [r * (gi - g_mean - yi * yg) for gi, yi in zip(g, y, strict=True)]
    if method == "value":
        total = value("logsumexp", x, [], 0)
        return p if name == "softmax" else [v - total for v in x]
    if name == "softmax":
        return [pi * (gi - pg) for pi, gi in zip(p, g, strict=True)]
    if method == "vjp":
        total = mpmath.fsum(g)
        return [gi - pi * total for pi, gi in zip(p, g, strict=True)]
    return [gi - pg for gi in g]


def _rate(x: list[Any], eps: float) -> Any:
    return 1 / mpmath.sqrt(_squares(x) / len(x) + mpf(eps))


# --- samples --------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """A row of elements, another one of the same length, and a parameter."""

    row: ReductionRow
    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    parameter: float

    @property
    def operands(self) -> tuple[Any, ...]:
        """What stands before a cotangent."""
        about = self.row.parameter
        bound = (self.parameter,) if about is not None and about.default is None else ()
        return (*((self.x, self.y) if len(self.row.operands) == 2 else (self.x,)), *bound)

    @property
    def options(self) -> dict[str, float]:
        """The parameter as a keyword."""
        about = self.row.parameter
        return {} if about is None or about.default is None else {about.name: self.parameter}


def samples(name: str, dtype: Any) -> Iterator[Sample]:
    """Yield rows of a few elements: ordinary, of all magnitudes, offset, with ties and zeros."""
    row = REDUCTIONS[name]
    rng = np.random.default_rng(5)
    far = 300 if np.dtype(dtype) == np.float64 else 36
    parameters = {"norm": (1.0, 1.25, 2.0, 3.0, 17.5, math.inf), "variance": (0.0, 1.0)}
    for parameter in parameters.get(name, (1e-5 if name == "layer_norm" else 0.0,)):
        for n in (1, 2, 17):
            if name == "variance" and n <= parameter:
                continue
            y = rng.normal(size=n).astype(dtype)
            x = rng.normal(size=n)
            kinds = [x, np.round(2 * x), 30 * x, 1000 + x]
            if name in ("norm", "norm1", "norm2", "prod", "max", "min"):
                kinds += [x * 10.0**far, x / 10.0**far, x * 10.0 ** rng.uniform(-far, far, n)]
            if name in ("variance", "layer_norm"):
                kinds += [1e6 + x]
            if name in ("logsumexp", "softmax", "log_softmax"):
                kinds += [200 * x, x - 80, x / 1e9]
            for kind in kinds:
                yield Sample(row, kind.astype(dtype), y, parameter)


# --- verdicts -------------------------------------------------------------------------------------


def _exact(array: Any) -> list[Any]:
    return [mpf(v) for v in np.asarray(array, float).tolist()]


class _Terms:
    """What a row's `terms` and `slope_terms` speak of."""

    def __init__(self, sample: Sample) -> None:
        x, about = _exact(sample.x), sample.row.parameter
        self._names = {**_VOCABULARY, "x": x, "y": _exact(sample.y), "n": len(x), "mean": _mean(x)}
        if sample.row.is_map:
            self._names |= {"p": _softmax(x), "r": _rate(x, 1e-5), "g": _exact(sample.y)}
        if about is not None:
            self._names[about.name] = mpf(sample.parameter)

    def __call__(self, text: str, **names: Any) -> Any:
        return mpf(eval(text, self._names | names))


def _judge(what: str, actual: Any, exact: Any, bound: Any, dtype: Any) -> None:
    """Fail unless a number lies within the bound; beyond the range it is infinite."""
    actual = float(actual)
    largest = float(np.finfo(dtype).max)
    if abs(exact) + bound > largest and math.isinf(actual):
        assert (actual > 0) == (exact > 0), what
        return
    assert math.isfinite(actual), f"{what}: {actual}, not {mpmath.nstr(exact, 20)}"
    error = abs(mpf(actual) - exact)
    assert error <= bound, (
        f"{what}: {actual!r}, not {mpmath.nstr(exact, 20)}: {float(error / bound):.3g} of the bound"
    )


def check_reduction(reduction: Any, sample: Sample, least_ulp: float = 0.0) -> None:
    """Fail unless value, gradient and jvp are right to the table's bounds."""
    row, dtype = sample.row, sample.x.dtype
    sums = sum_error(sample.x.size)
    given, gradient = reduction.value_and_grad(*sample.operands, **sample.options)
    gradients = gradient if isinstance(gradient, tuple) else (gradient,)
    tangents = (sample.y, sample.x)[: len(gradients)]
    pushed = reduction.jvp(*sample.operands, *tangents, **sample.options)
    max_ulp = [max(least_ulp, bound) for bound in row.max_ulp]
    where = f"{row.name} of {sample.x!r}, {sample.y!r}, {sample.parameter}"
    with mp.workprec(PRECISION):
        x, y, terms = _exact(sample.x), _exact(sample.y), _Terms(sample)
        exact = value(row.name, x, y, sample.parameter)
        scale = max(map(abs, [exact, *x])) if row.name == "logsumexp" else exact
        bound = max_ulp[0] * ulp(scale, dtype) + sums * terms(row.terms, value=exact)
        _judge(where, given, exact, bound, dtype)
        total = error = magnitude = mpf(0)
        exact_slopes = slopes(row.name, x, y, sample.parameter)
        for array, exact_slope, tangent in zip(gradients, exact_slopes, tangents, strict=True):
            for i, slope in enumerate(exact_slope):
                by = terms(row.slope_terms, value=exact, slope=slope, i=i)
                bound = max_ulp[1] * ulp(slope, dtype) + sums * by
                _judge(f"slope {i} of {where}", array[i], slope, bound, dtype)
                t = mpf(float(tangent[i]))
                total += slope * t
                error += bound * abs(t)
                magnitude += abs(slope * t)
        bound = error + sums * magnitude + ulp(total, dtype)
        if magnitude <= float(np.finfo(dtype).max):  # else infinities may have met
            _judge(f"jvp of {where}", pushed, total, bound, dtype)


def check_map(row_map: Any, sample: Sample, least_ulp: float = 0.0) -> None:
    """Fail unless value, vjp and jvp are right to the table's bounds."""
    row, dtype = sample.row, sample.x.dtype
    sums = sum_error(sample.x.size)
    max_ulp = [max(least_ulp, bound) for bound in row.max_ulp]
    for method in ("value", "vjp", "jvp"):
        operands = (sample.x,) if method == "value" else (sample.x, sample.y)
        given = getattr(row_map, method)(*operands, **sample.options)
        with mp.workprec(PRECISION):
            x, g, terms = _exact(sample.x), _exact(sample.y), _Terms(sample)
            exact = mapped(row.name, method, x, g, sample.parameter)
            for i, number in enumerate(exact):
                text = row.terms if method == "value" else row.slope_terms
                if row.name == "log_softmax" and method == "jvp":
                    text = "abs(g[i]) + fdot(p, map(abs, g))"
                by = terms(text, value=number, i=i)
                scale = abs(number)
                if method != "value" or row.name == "log_softmax":
                    scale = max(scale, by)
                bound = max_ulp[method != "value"] * ulp(scale, dtype) + sums * by
                where = f"{row.name}.{method}, {i} of {sample.x!r}, {sample.y!r}"
                _judge(where, given[i], number, bound, dtype)

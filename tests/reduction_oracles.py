"""What the reductions' tests judge against: the definitions in mpmath, and the table's bounds."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import mpmath
import numpy as np
from formulas import python
from mpmath import mp, mpf
from oracles import PRECISION, ulp
from pullback.tables.reductions import REDUCTIONS, ReductionRow, sum_error

# --- definitions ----------------------------------------------------------------------------------


class Vector(list[Any]):
    """A row of mpmath's numbers, of which the table's formulas speak as of one."""

    def _each(self, other: Any, function: Any) -> Vector:
        others = other if isinstance(other, Vector) else [other] * len(self)
        return Vector(map(function, self, others))

    def __add__(self, other: Any) -> Vector:  # type: ignore[override]
        return self._each(other, operator.add)

    def __sub__(self, other: Any) -> Vector:
        return self._each(other, operator.sub)

    def __mul__(self, other: Any) -> Vector:  # type: ignore[override]
        return self._each(other, operator.mul)

    def __truediv__(self, other: Any) -> Vector:
        return self._each(other, operator.truediv)

    def __pow__(self, other: Any) -> Vector:
        return self._each(other, operator.pow)

    def __abs__(self) -> Vector:
        return Vector(map(abs, self))


def _exp(x: Any) -> Any:
    return Vector(map(mpmath.exp, x)) if isinstance(x, list) else mpmath.exp(x)


def _norm(x: Vector, p: Any = 2) -> Any:
    largest = max(abs(x))
    if largest == 0 or mpmath.isinf(p):
        return largest
    return mpmath.fsum((abs(x) / largest) ** p) ** (1 / mpf(p)) * largest


def _mean(x: Vector) -> Any:
    return mpmath.fsum(x) / len(x)


def _var(x: Vector) -> Any:
    return _mean((x - _mean(x)) ** 2)


_VOCABULARY = {name: getattr(mpmath, name) for name in dir(mpmath) if not name.startswith("_")} | {
    "exp": _exp,
    "sum": mpmath.fsum,
    "prod": mpmath.fprod,
    "mean": _mean,
    "var": _var,
    "norm": _norm,
    "norm2": _norm,
    "logsumexp": lambda x: mpmath.log(mpmath.fsum(_exp(x))),
}


def exact(text: str, names: dict[str, Any]) -> Any:
    """Return what a formula of the table gives; of x[i] there is one for each i."""
    code, vocabulary = _compiled(text)
    return eval(code, vocabulary | names)


@cache
def _compiled(text: str) -> tuple[Any, dict[str, Any]]:
    """Return a formula, compiled, and the functions in it."""
    source = python(text).replace("for j !=", "for j in range(n) if j !=")
    used = re.findall(r"[A-Za-z_]\w*", source)
    return compile(source, text, "eval"), {k: _VOCABULARY[k] for k in used if k in _VOCABULARY}


def names_of(sample: Sample) -> dict[str, Any]:
    """Return what formulas speak of: the elements, their number, the parameter."""
    x, about = Vector(_exact(sample.x)), sample.row.parameter
    names = {"x": x, "y": Vector(_exact(sample.y)), "n": len(x)}
    if about is not None:
        names[about.name] = mpf(sample.parameter)
    if sample.row.is_map:  # which has a cotangent, or a tangent, not a second operand
        names |= {"g": names["y"], "p": _exp(x - max(x)) / mpmath.fsum(_exp(x - max(x)))}
        names |= {"y": results(sample, names)}
    return names


def results(sample: Sample, names: dict[str, Any]) -> Vector:
    """Return the exact value of a map of rows; a scan's formula is of its i-th element."""
    if not sample.row.ordered:
        return exact(sample.row.formula, names)  # type: ignore[no-any-return]
    return Vector(exact(sample.row.formula, names | {"i": i}) for i in range(names["n"]))


def value(sample: Sample, names: dict[str, Any]) -> Any:
    """Return the exact value of a reduction, or of a map."""
    if sample.row.name == "norm":  # of infinite exponents, too
        return _norm(names["x"], sample.parameter)
    return exact(sample.row.formula, names)


def slopes(sample: Sample, names: dict[str, Any]) -> Iterator[list[Any]]:
    """Yield the exact derivatives of a reduction by each element of each operand."""
    x = names["x"]
    ties = [abs(v) == max(abs(x)) for v in x]
    for text in sample.row.derivative_formula:
        if sample.row.name.startswith("norm") and not any(x):
            yield [mpf(0)] * len(x)  # by convention
        elif math.isinf(sample.parameter):
            signs = map(mpmath.sign, x)
            yield [s * tie / mpf(sum(ties)) for s, tie in zip(signs, ties, strict=True)]
        else:
            yield [
                mpf(exact(text, names | {"i": i, "k": mpf(x.count(v))})) for i, v in enumerate(x)
            ]


def mapped(sample: Sample, method: str, names: dict[str, Any]) -> list[Any]:
    """Return the exact value of a map of rows, or its vjp or jvp with g."""
    if method == "value":
        return list(names["y"])
    return [mpmath.fdot(row, names["g"]) for row in jacobian(sample, method, names)]


def jacobian(sample: Sample, method: str, names: dict[str, Any]) -> list[list[Any]]:
    """Return the exact Jacobian of a map of rows, transposed for its vjp."""
    (text,), every = sample.row.derivative_formula, range(names["n"])
    rows = [[exact(text, names | {"i": i, "j": j}) for j in every] for i in every]
    return rows if method == "jvp" else [list(column) for column in zip(*rows, strict=True)]


# --- samples --------------------------------------------------------------------------------------


def leading(name: str, *operands: Any, p: float = 3.0) -> tuple[Any, ...]:
    """Return as many operands as a reduction has, and the parameter that stands behind them."""
    row = REDUCTIONS[name]
    return (*operands[: len(row.operands)], *(p,) * (len(row.leading) - len(row.operands)))


class Sample(NamedTuple):
    """A row of elements, another one of the same length, and a parameter."""

    row: ReductionRow
    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    parameter: float

    @property
    def operands(self) -> tuple[Any, ...]:
        """What stands before a cotangent."""
        return leading(self.row.name, self.x, self.y, p=self.parameter)

    @property
    def options(self) -> dict[str, float]:
        """The parameter as a keyword."""
        about = self.row.parameter
        return {} if about is None or about.default is None else {about.name: self.parameter}


PARAMETERS = {"variance": (0.0, 1.0), "layer_norm": (1e-5, 0.0), "rms_norm": (1e-5, 0.0)}
PARAMETERS |= {name: (0.0, 1.0) for name, row in REDUCTIONS.items() if row.ordered}
OTHERS = (1.0, 1.25, 2.0, 3.0, 17.5, math.inf)  # of these what a row allows


def samples(name: str, dtype: Any) -> Iterator[Sample]:
    """Yield rows of a few elements: ordinary, of all magnitudes, offset, with ties and zeros."""
    row = REDUCTIONS[name]
    rng = np.random.default_rng(5)
    far = 300 if np.dtype(dtype) == np.float64 else 36
    about = row.parameter
    for parameter in (
        (0.0,) if about is None else PARAMETERS.get(name) or tuple(filter(about.test, OTHERS))
    ):
        for n in (1, 2, 17):
            if name == "variance" and n <= parameter:
                continue
            y = rng.normal(size=n).astype(dtype)
            x = rng.normal(size=n)
            kinds = [x, np.round(2 * x), 30 * x, 1000 + x]
            if name in ("norm", "norm1", "norm2", "prod", "max", "min", "cumprod"):
                kinds += [x * 10.0**far, x / 10.0**far, x * 10.0 ** rng.uniform(-far, far, n)]
            if name in ("variance", "layer_norm", "rms_norm", "squared_norm2"):
                kinds += [1e6 + x, x * 10.0**far, x / 10.0**far, x / 10.0 ** (far / 2)]
            if name in ("logsumexp", "softmax", "log_softmax", "logcumsumexp"):
                kinds += [200 * x, x - 80, x / 1e9, 30 * (x - x.max()), 8 * (np.round(x) - 1)]
                kinds += [np.where(x == x.max(), 0, x - 50)]
            for kind in kinds:
                if name == "layer_norm" and not parameter and not np.ptp(kind):
                    continue
                if name == "rms_norm" and not parameter and not kind.any():
                    continue
                yield Sample(row, kind.astype(dtype), y, parameter)


# --- verdicts -------------------------------------------------------------------------------------


def _exact(array: Any) -> list[Any]:
    return [mpf(v) for v in np.asarray(array, float).tolist()]


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


def _noise(names: dict[str, Any]) -> Any:
    """Return what the exact logarithm of a sum of exponentials may be off by."""
    return mp.ldexp(1 + max(abs(names["x"])), 4 - PRECISION)


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
        names = names_of(sample)
        desired = value(sample, names)
        known = names | {"value": desired, "mean": _mean(names["x"])}
        scale = max(abs(desired), abs(max(names["x"]))) if row.name == "logsumexp" else desired
        bound = max_ulp[0] * ulp(scale, dtype) + sums * exact(row.terms, known)
        bound += _noise(names) if row.name == "logsumexp" else 0
        _judge(where, given, desired, bound, dtype)
        total = error = magnitude = mpf(0)
        every = slopes(sample, names)
        for array, exact_slopes, tangent in zip(gradients, every, tangents, strict=True):
            for i, slope in enumerate(exact_slopes):
                by = exact(row.slope_terms, known | {"slope": slope, "i": i})
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
        forward = sample
        if row.ordered and sample.parameter:  # from the last element to the first
            given, forward = given[::-1], sample._replace(x=sample.x[::-1], y=sample.y[::-1])
        with mp.workprec(PRECISION):
            names = names_of(forward)
            x = names["x"]
            known = names | {"mean": _mean(x)}
            if "eps" in names:
                square = _mean(x**2) if row.name == "rms_norm" else _var(x)
                known |= {"r": 1 / mpmath.sqrt(square + names["eps"])}
            products = row.ordered and method != "value"
            rows = jacobian(forward, method, names) if products else [[]] * len(x)
            for i, number in enumerate(mapped(forward, method, names)):
                text = row.terms if method == "value" else row.slope_terms
                if row.name == "log_softmax" and method == "jvp":
                    text = "abs(g[i]) + fdot(p, map(abs, g))"
                by = exact(text, known | {"value": number, "i": i, "J": rows[i]})
                scale = abs(number)
                if row.name == "logcumsumexp" and method == "value":
                    scale = max(scale, abs(max(x[: i + 1])))
                if method != "value":
                    scale = max(scale, by)
                bound = max_ulp[method != "value"] * ulp(scale, dtype) + sums * by
                bound += _noise(names) if row.name in ("log_softmax", "logcumsumexp") else 0
                where = f"{row.name}.{method}, {i} of {sample.x!r}, {sample.y!r}"
                _judge(where, given[i], number, bound, dtype)

"""The table of elementwise operations.

One row says everything the Python side knows about an operation. The NumPy twins, the native
ufuncs' docstrings, the adapters, the tests and the accuracy ledger all iterate over `OPS`, so a
new operation is one row here and one row in ``cpp/ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.oracle import elementwise as nf
from pullback.oracle import gamma
from pullback.oracle.elementwise import in_float64
from pullback.protocol import OPERANDS

__all__ = [
    "OPS",
    "REFERENCE_MAX_ULP",
    "Domain",
    "Interval",
    "OpRow",
    "SpecialPoint",
]

Array: TypeAlias = npt.NDArray[Any]

# The NumPy twins inherit NumPy's own errors, so they get one loose bound for all rows.
REFERENCE_MAX_ULP: Final = 8.0


# --- what a row is made of ------------------------------------------------------------------------


class Interval(NamedTuple):
    """An interval of the real line; `closed` says whether its finite ends belong to it."""

    lower: float
    upper: float
    closed: bool = False


class Domain(NamedTuple):
    """Where an operation is defined in one operand; outside, value and derivative are NaN."""

    text: str
    intervals: tuple[Interval, ...]
    but_whole: bool = False  # numbers below 0, which are poles

    @property
    def ordinary(self) -> tuple[float, float]:
        """A range of positive numbers well inside the domain, for timings and examples."""
        lower, upper, _ = self.intervals[-1]
        return max(lower, 0.0) + 0.1, min(upper, 3.1) - 0.1


class SpecialPoint(NamedTuple):
    """A point whose value and derivatives are fixed by convention or by an IEEE limit."""

    at: tuple[float, ...]
    value: float
    derivative: tuple[float, ...]
    second: tuple[float, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class OpRow:
    """Everything there is to say about one elementwise operation.

    Formulas are expressions in mpmath's vocabulary; they document the operation and, evaluated
    to many digits, are the oracle its kernels are tested against.
    """

    name: str
    summary: str
    formula: str  # of x, or of w and x
    derivative_formula: tuple[str, ...]  # one per operand
    second_derivative_formula: tuple[str, ...]  # by x, or by (w, w), (w, x) and (x, x)
    domain: tuple[Domain, ...]  # one per operand
    # Value, each derivative, each second derivative; native kernels, both dtypes.
    max_ulp: tuple[float, float, float]
    source: str
    value: Callable[..., Array]  # value(x) or value(w, x)
    derivative: Callable[..., Any]  # derivative(x) -> dx, derivative(w, x) -> (dw, dx)
    second_derivative: Callable[..., Any]  # of the same operands, as the formulas
    # The largest term of the value, each derivative and each second derivative, where its errors
    # count in ULP of the larger of it and that: it has roots. "" where they are relative
    # everywhere, and () where all are.
    largest_term: tuple[str, ...]
    special: tuple[SpecialPoint, ...]  # results are exact there, including the sign of zero
    kinks: tuple[str, ...]  # expressions that vanish where there is no derivative
    ulp_of_operands: bool  # the value's error is in ULP of the largest among value and operands
    masked: bool  # vjp and jvp give +0 where the derivative is 0, even for infinities and NaN
    default: float | None = None  # of the last operand, when it is omitted

    @cached_property
    def nin(self) -> int:
        """Number of operands."""
        return len(self.domain)

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        return OPERANDS[self.nin]

    @property
    def terms(self) -> tuple[tuple[str, str], ...]:
        """Which results have roots near which errors count by the largest term, and these terms."""
        results = ("value", *["derivative"] * self.nin, *["second derivative"] * 3)
        return tuple(
            (result, term) for result, term in zip(results, self.largest_term, strict=False) if term
        )

    @property
    def domain_text(self) -> str:
        """The domain for people, such as ``w real, x != 0``."""
        return ", ".join(
            f"{operand} {domain.text}"
            for operand, domain in zip(self.operands, self.domain, strict=True)
        )


def _special(text: str) -> tuple[SpecialPoint, ...]:
    """Parse ``point -> value, derivatives, second derivatives; ...``, each separated by blanks."""
    points = []
    for entry in filter(str.strip, text.split(";")):
        at, images = entry.split("->")
        value, derivative, second = images.split(",")
        points.append(
            SpecialPoint(
                tuple(map(float, at.split())),
                float(value),
                tuple(map(float, derivative.split())),
                tuple(map(float, second.split())),
            )
        )
    return tuple(points)


def _largest_terms(nin: int, terms: tuple[str, ...]) -> tuple[str, ...]:
    """Return the terms of value and derivatives, too, where only the second ones are given."""
    count = 1 + nin + nin * (nin + 1) // 2
    return (*[""] * (count - len(terms)), *terms) if any(terms) else ()


_INF = float("inf")
_REAL = Domain("real", (Interval(-_INF, _INF),))
_POSITIVE = Domain("> 0", (Interval(0.0, _INF),))
_NONNEGATIVE = Domain(">= 0", (Interval(0.0, _INF, closed=True),))
_AT_LEAST_ONE = Domain(">= 1", (Interval(1.0, _INF, closed=True),))
_ABOVE_MINUS_ONE = Domain("> -1", (Interval(-1.0, _INF),))
_UNIT = Domain("in [-1, 1]", (Interval(-1.0, 1.0, closed=True),))
_OPEN_UNIT = Domain("in (-1, 1)", (Interval(-1.0, 1.0),))
_PROBABILITY = Domain("in (0, 1)", (Interval(0.0, 1.0),))
_BASE = Domain("> 0 (any if the exponent is whole)", (Interval(0.0, _INF),))
_NONZERO = Domain("!= 0", (Interval(-_INF, 0.0), Interval(0.0, _INF)))
# Between poles, where the formulas are infinite, too, or NaN.
_NO_POLE = Domain(
    "not 0, -1, -2, ...",
    (
        Interval(-_INF, -32.0, closed=True),
        *(Interval(k - 1.0, float(k), closed=True) for k in range(-31, 1)),
        Interval(0.0, _INF),
    ),
    but_whole=True,
)


def _unary(
    name: str,
    summary: str,
    *,
    f: str,
    df: str,
    d2f: str,
    value: Callable[[Array], Array],
    derivative: Callable[[Array], Array],
    second: Callable[[Array], Array],
    max_ulp: tuple[float, float, float],
    source: str,
    domain: Domain = _REAL,
    special: str = "",
    kinks: tuple[str, ...] = (),
    masked: bool = False,
    largest_term: str | tuple[str, str, str] = "",  # of the second derivative, or of all
) -> OpRow:
    return OpRow(
        name=name,
        summary=summary,
        formula=f,
        derivative_formula=(df,),
        second_derivative_formula=(d2f,),
        domain=(domain,),
        max_ulp=max_ulp,
        source=source,
        value=value,
        derivative=derivative,
        second_derivative=second,
        largest_term=_largest_terms(
            1, (largest_term,) if isinstance(largest_term, str) else largest_term
        ),
        special=_special(special + "; nan -> nan, nan, nan"),  # of every unary operation
        kinks=kinks,
        ulp_of_operands=False,
        masked=masked,
    )


def _binary(
    name: str,
    summary: str,
    *,
    f: str,
    df: tuple[str, str],
    d2f: tuple[str, str, str],
    value: Callable[[Array, Array], Array],
    derivative: Callable[[Array, Array], tuple[Array, Array]],
    second: Callable[[Array, Array], tuple[Array, Array, Array]],
    max_ulp: tuple[float, float, float],
    source: str,
    domain: tuple[Domain, Domain] = (_REAL, _REAL),
    special: str = "",
    kinks: tuple[str, ...] = (),
    ulp_of_operands: bool = False,
    masked: bool = False,
    default: float | None = None,
    largest_term: tuple[str, ...] = (),
) -> OpRow:
    return OpRow(
        name=name,
        summary=summary,
        formula=f,
        derivative_formula=df,
        second_derivative_formula=d2f,
        domain=domain,
        max_ulp=max_ulp,
        source=source,
        value=value,
        derivative=derivative,
        second_derivative=second,
        largest_term=_largest_terms(2, largest_term),
        special=_special(special),
        kinks=kinks,
        ulp_of_operands=ulp_of_operands,
        masked=masked,
        default=default,
    )


# --- the table ------------------------------------------------------------------------------------
# special: point -> value, derivative, second derivative; binary points and derivatives are pairs,
# second derivatives those by (w, w), (w, x) and (x, x).

_ARTICLE = "Finding the Gradient of a Vector Function, element-wise operators"
_SELU_SCALE = "mpf('1.0507009873554804934193349852946')"
_SELU_ALPHA = "mpf('1.6732632423543772848170429916717')"
# Of the reflection formulas, left of 0.
_LOG_GAMMA_TERM = "0 if x > 0 else max(abs(log(abs(sinpi(x))/pi)), abs(re(loggamma(1 - x))))"
_DIGAMMA_TERM = "0 if x > 0 else max(abs(psi(0, 1 - x)), abs(pi*cospi(x)/sinpi(x)))"
_TETRAGAMMA_TERM = "0 if x > 0 else max(abs(psi(2, 1 - x)), abs(2*pi**3*cospi(x)/sinpi(x)**3))"

# fmt: off
_ROWS: Final = (
    _unary("identity", "The operand itself",
        f="x",                                df="1",
        value=lambda x: +x,                   derivative=lambda x: nf.constant(1, x),
        d2f="0",                              second=lambda x: nf.constant(0, x),
        special="-0 -> -0, 1, 0;  inf -> inf, 1, 0;  -inf -> -inf, 1, 0",
        max_ulp=(0.0, 0.0, 0.0),              source=_ARTICLE),

    _unary("negative", "Negation",
        f="-x",                               df="-1",
        value=lambda x: -x,                   derivative=lambda x: nf.constant(-1, x),
        d2f="0",                              second=lambda x: nf.constant(0, x),
        special="0 -> -0, -1, 0;  -0 -> 0, -1, 0;  inf -> -inf, -1, 0;  -inf -> inf, -1, 0",
        max_ulp=(0.0, 0.0, 0.0),              source="definition"),

    _unary("abs", "Absolute value",
        f="abs(x)",                           df="sign(x)",
        value=np.abs,                         derivative=np.sign,
        d2f="0",                              second=lambda x: nf.constant(0, x),
        special="0 -> 0, 0, 0;  -0 -> 0, 0, 0;  inf -> inf, 1, 0;  -inf -> inf, -1, 0",
        kinks=("x",),
        max_ulp=(0.0, 0.0, 0.0),              source="definition; sign(0) = 0 at the kink"),

    _unary("sign", "Sign",
        f="sign(x)",                          df="0",
        value=np.sign,                        derivative=lambda x: nf.constant(0, x),
        d2f="0",                              second=lambda x: nf.constant(0, x),
        special="0 -> 0, 0, 0;  -0 -> 0, 0, 0;  inf -> 1, 0, 0;  -inf -> -1, 0, 0",
        kinks=("x",),                         masked=True,
        max_ulp=(0.0, 0.0, 0.0),              source="definition; 0 at the jump"),

    _unary("step", "One where x > 0, zero elsewhere",
        f="1 if x > 0 else 0",                df="0",
        value=lambda x: np.where(np.isnan(x), x, x > 0),
        derivative=lambda x: nf.constant(0, x),
        d2f="0",                              second=lambda x: nf.constant(0, x),
        special="0 -> 0, 0, 0;  -0 -> 0, 0, 0;  inf -> 1, 0, 0;  -inf -> 0, 0, 0",
        kinks=("x",),                         masked=True,
        max_ulp=(0.0, 0.0, 0.0),              source="definition; 0 at the jump"),

    _unary("reciprocal", "Reciprocal",
        f="1/x",                              df="-1/x**2",
        value=lambda x: 1 / x,                derivative=lambda x: -np.square(1 / x),
        d2f="2/x**3",                         second=lambda x: nf.over_cube(np.ones_like(x), x),
        domain=_NONZERO,
        special="0 -> inf, -inf, inf;  -0 -> -inf, -inf, -inf;  4 -> 0.25, -0.0625, 0.03125;"
                "inf -> 0, -0, 0;  -inf -> -0, -0, -0",
        max_ulp=(0.5, 1.0, 2.0),              source="power rule"),

    _unary("square", "Square",
        f="x*x",                              df="2*x",
        value=np.square,                      derivative=lambda x: x + x,
        d2f="2",                              second=lambda x: nf.constant(2, x),
        special="0 -> 0, 0, 2;  -0 -> 0, -0, 2;  inf -> inf, inf, 2;  -inf -> inf, -inf, 2",
        max_ulp=(0.5, 0.0, 0.0),              source="power rule"),

    _unary("sqrt", "Square root",
        f="sqrt(x)",                          df="1/(2*sqrt(x))",
        value=np.sqrt,                        derivative=lambda x: 0.5 / np.abs(np.sqrt(x)),
        d2f="-1/(4*x*sqrt(x))",               second=nf.sqrt_curve,
        domain=_NONNEGATIVE,
        special="0 -> 0, inf, -inf;  -0 -> -0, inf, -inf;  4 -> 2, 0.25, -0.03125;"
                "-1 -> nan, nan, nan;  inf -> inf, 0, -0;  -inf -> nan, nan, nan",
        max_ulp=(0.5, 1.0, 2.0),              source="power rule"),

    _unary("cbrt", "Cube root",
        f="sign(x)*abs(x)**(mpf(1)/3)",       df="abs(x)**(-mpf(2)/3)/3",
        value=in_float64(np.cbrt),            derivative=nf.cbrt_slope,
        d2f="-2*sign(x)*abs(x)**(-mpf(5)/3)/9",
        second=nf.cbrt_curve,
        special="0 -> 0, inf, -inf;  -0 -> -0, inf, inf;  inf -> inf, 0, -0;  -inf -> -inf, 0, 0",
        kinks=("x",),
        max_ulp=(2.0, 3.0, 3.5),              source="power rule"),

    _unary("exp", "Exponential",
        f="exp(x)",                           df="exp(x)",
        value=np.exp,                         derivative=np.exp,
        d2f="exp(x)",                         second=in_float64(np.exp),
        special="0 -> 1, 1, 1;  -0 -> 1, 1, 1;  inf -> inf, inf, inf;  -inf -> 0, 0, 0",
        max_ulp=(1.0, 1.0, 1.0),              source="DLMF 4.7"),

    _unary("exp2", "Power of two",
        f="2**x",                             df="2**x*log(2)",
        value=in_float64(np.exp2),            derivative=nf.exp2_slope,
        d2f="2**x*log(2)**2",                 second=nf.exp2_curve,
        special="0 -> 1, 0.6931471805599453, 0.48045301391820144;"
                "-0 -> 1, 0.6931471805599453, 0.48045301391820144;  inf -> inf, inf, inf;"
                "-inf -> 0, 0, 0",
        max_ulp=(2.0, 3.0, 1.5),              source="DLMF 4.7"),

    _unary("expm1", "Exponential minus one",
        f="expm1(x)",                         df="exp(x)",
        value=np.expm1,                       derivative=np.exp,
        d2f="exp(x)",                         second=in_float64(np.exp),
        special="0 -> 0, 1, 1;  -0 -> -0, 1, 1;  inf -> inf, inf, inf;  -inf -> -1, 0, 0",
        max_ulp=(1.0, 1.5, 1.5),              source="DLMF 4.7"),

    _unary("log", "Natural logarithm",
        f="log(x)",                           df="1/x",
        value=np.log,                         derivative=lambda x: nf.over_positive(1, x),
        d2f="-1/x**2",                        second=nf.log_curve(1),
        domain=_POSITIVE,
        special="0 -> -inf, inf, -inf;  -0 -> -inf, inf, -inf;  1 -> 0, 1, -1;"
                "-1 -> nan, nan, nan;  inf -> inf, 0, -0;  -inf -> nan, nan, nan",
        max_ulp=(1.0, 1.0, 1.5),              source="DLMF 4.7"),

    _unary("log2", "Logarithm to base 2",
        f="log(x)/log(2)",                    df="1/(x*log(2))",
        value=in_float64(np.log2),            derivative=nf.log2_slope,
        d2f="-1/(x**2*log(2))",               second=nf.log_curve(1.4426950408889634),
        domain=_POSITIVE,
        special="0 -> -inf, inf, -inf;  -0 -> -inf, inf, -inf;"
                "1 -> 0, 1.4426950408889634, -1.4426950408889634;  -1 -> nan, nan, nan;"
                "inf -> inf, 0, -0;  -inf -> nan, nan, nan",
        max_ulp=(2.0, 3.0, 2.5),              source="DLMF 4.7"),

    _unary("log10", "Logarithm to base 10",
        f="log(x)/log(10)",                   df="1/(x*log(10))",
        value=in_float64(np.log10),           derivative=nf.log10_slope,
        d2f="-1/(x**2*log(10))",              second=nf.log_curve(0.4342944819032518),
        domain=_POSITIVE,
        special="0 -> -inf, inf, -inf;  -0 -> -inf, inf, -inf;"
                "1 -> 0, 0.4342944819032518, -0.4342944819032518;  -1 -> nan, nan, nan;"
                "inf -> inf, 0, -0;  -inf -> nan, nan, nan",
        max_ulp=(2.0, 3.0, 2.5),              source="DLMF 4.7"),

    _unary("log1p", "Logarithm of one plus x",
        f="log1p(x)",                         df="1/(1 + x)",
        value=in_float64(np.log1p),           derivative=nf.log1p_slope,
        d2f="-1/(1 + x)**2",                  second=nf.log1p_curve,
        domain=_ABOVE_MINUS_ONE,
        special="0 -> 0, 1, -1;  -0 -> -0, 1, -1;  -1 -> -inf, inf, -inf;  -2 -> nan, nan, nan;"
                "inf -> inf, 0, -0;  -inf -> nan, nan, nan",
        max_ulp=(1.0, 1.5, 3.5),              source="DLMF 4.7"),

    _unary("sin", "Sine of an angle in radians",
        f="sin(x)",                           df="cos(x)",
        value=np.sin,                         derivative=np.cos,
        d2f="-sin(x)",                        second=in_float64(lambda x: -np.sin(x)),
        special="0 -> 0, 1, -0;  -0 -> -0, 1, 0;  inf -> nan, nan, nan;  -inf -> nan, nan, nan",
        max_ulp=(1.0, 1.0, 1.0),              source="DLMF 4.20"),

    _unary("cos", "Cosine of an angle in radians",
        f="cos(x)",                           df="-sin(x)",
        value=np.cos,                         derivative=lambda x: -np.sin(x),
        d2f="-cos(x)",                        second=in_float64(lambda x: -np.cos(x)),
        special="0 -> 1, -0, -1;  -0 -> 1, 0, -1;  inf -> nan, nan, nan;  -inf -> nan, nan, nan",
        max_ulp=(1.0, 1.0, 1.0),              source="DLMF 4.20"),

    _unary("tan", "Tangent of an angle in radians",
        f="tan(x)",                           df="1/cos(x)**2",
        value=in_float64(np.tan),             derivative=nf.tan_slope,
        d2f="2*tan(x)/cos(x)**2",             second=nf.tan_curve,
        special="0 -> 0, 1, 0;  -0 -> -0, 1, -0;  inf -> nan, nan, nan;  -inf -> nan, nan, nan",
        max_ulp=(2.0, 3.0, 4.0),              source="DLMF 4.20"),

    _unary("arcsin", "Inverse sine, in radians",
        f="asin(x)",                          df="1/sqrt((1 - x)*(1 + x))",
        value=in_float64(np.arcsin),          derivative=nf.arcsin_slope,
        d2f="x/sqrt((1 - x)*(1 + x))**3",     second=nf.arcsin_curve,
        domain=_UNIT,
        special="0 -> 0, 1, 0;  -0 -> -0, 1, -0;  1 -> 1.5707963267948966, inf, inf;"
                "-1 -> -1.5707963267948966, inf, -inf;  2 -> nan, nan, nan;"
                "inf -> nan, nan, nan;  -inf -> nan, nan, nan",
        max_ulp=(2.0, 3.0, 4.0),              source="DLMF 4.24"),

    _unary("arccos", "Inverse cosine, in radians",
        f="acos(x)",                          df="-1/sqrt((1 - x)*(1 + x))",
        value=in_float64(np.arccos),          derivative=lambda x: -nf.arcsin_slope(x),
        d2f="-x/sqrt((1 - x)*(1 + x))**3",    second=lambda x: -nf.arcsin_curve(x),
        domain=_UNIT,
        special="0 -> 1.5707963267948966, -1, -0;  -0 -> 1.5707963267948966, -1, 0;"
                "1 -> 0, -inf, -inf;  -1 -> 3.141592653589793, -inf, inf;  2 -> nan, nan, nan;"
                "inf -> nan, nan, nan;  -inf -> nan, nan, nan",
        max_ulp=(2.0, 3.0, 4.0),              source="DLMF 4.24"),

    _unary("arctan", "Inverse tangent, in radians",
        f="atan(x)",                          df="1/(1 + x**2)",
        value=in_float64(np.arctan),          derivative=nf.arctan_slope,
        d2f="-2*x/(1 + x**2)**2",             second=nf.arctan_curve,
        special="0 -> 0, 1, -0;  -0 -> -0, 1, 0;  inf -> 1.5707963267948966, 0, -0;"
                "-inf -> -1.5707963267948966, 0, 0",
        max_ulp=(2.0, 3.0, 3.5),              source="DLMF 4.24"),

    _unary("sinh", "Hyperbolic sine",
        f="sinh(x)",                          df="cosh(x)",
        value=in_float64(np.sinh),            derivative=in_float64(np.cosh),
        d2f="sinh(x)",                        second=in_float64(np.sinh),
        special="0 -> 0, 1, 0;  -0 -> -0, 1, -0;  inf -> inf, inf, inf;  -inf -> -inf, inf, -inf",
        max_ulp=(2.0, 3.0, 2.0),              source="DLMF 4.34"),

    _unary("cosh", "Hyperbolic cosine",
        f="cosh(x)",                          df="sinh(x)",
        value=in_float64(np.cosh),            derivative=in_float64(np.sinh),
        d2f="cosh(x)",                        second=in_float64(np.cosh),
        special="0 -> 1, 0, 1;  -0 -> 1, -0, 1;  inf -> inf, inf, inf;  -inf -> inf, -inf, inf",
        max_ulp=(2.0, 3.0, 2.0),              source="DLMF 4.34"),

    _unary("tanh", "Hyperbolic tangent",
        f="tanh(x)",                          df="1/cosh(x)**2",
        value=np.tanh,                        derivative=nf.sech_squared,
        d2f="-2*tanh(x)/cosh(x)**2",          second=nf.tanh_curve,
        special="0 -> 0, 1, -0;  -0 -> -0, 1, 0;  inf -> 1, 0, -0;  -inf -> -1, 0, 0",
        max_ulp=(1.5, 2.5, 3.0),              source="DLMF 4.34"),

    _unary("arcsinh", "Inverse hyperbolic sine",
        f="asinh(x)",                         df="1/sqrt(1 + x**2)",
        value=in_float64(np.arcsinh),         derivative=nf.arcsinh_slope,
        d2f="-x/sqrt(1 + x**2)**3",           second=nf.arcsinh_curve,
        special="0 -> 0, 1, -0;  -0 -> -0, 1, 0;  inf -> inf, 0, -0;  -inf -> -inf, 0, 0",
        max_ulp=(2.0, 3.0, 4.0),              source="DLMF 4.38"),

    _unary("arccosh", "Inverse hyperbolic cosine",
        f="acosh(x)",                         df="1/sqrt((x - 1)*(x + 1))",
        value=in_float64(np.arccosh),         derivative=nf.arccosh_slope,
        d2f="-x/sqrt((x - 1)*(x + 1))**3",    second=nf.arccosh_curve,
        domain=_AT_LEAST_ONE,
        special="1 -> 0, inf, -inf;  0.5 -> nan, nan, nan;  0 -> nan, nan, nan;"
                "-1 -> nan, nan, nan;  -2 -> nan, nan, nan;  inf -> inf, 0, -0;"
                "-inf -> nan, nan, nan",
        max_ulp=(2.0, 3.0, 4.0),              source="DLMF 4.38"),

    _unary("arctanh", "Inverse hyperbolic tangent",
        f="atanh(x)",                         df="1/((1 - x)*(1 + x))",
        value=in_float64(np.arctanh),         derivative=nf.arctanh_slope,
        d2f="2*x/((1 - x)*(1 + x))**2",       second=nf.arctanh_curve,
        domain=_OPEN_UNIT,
        special="0 -> 0, 1, 0;  -0 -> -0, 1, -0;  1 -> inf, inf, inf;  -1 -> -inf, inf, -inf;"
                "2 -> nan, nan, nan;  inf -> nan, nan, nan;  -inf -> nan, nan, nan",
        max_ulp=(2.0, 3.0, 4.0),              source="DLMF 4.38"),

    _unary("erf", "Error function",
        f="erf(x)",                           df="2*exp(-x**2)/sqrt(pi)",
        value=nf.erf,                         derivative=nf.erf_slope,
        d2f="-4*x*exp(-x**2)/sqrt(pi)",       second=nf.erf_curve,
        special="0 -> 0, 1.1283791670955126, -0;  -0 -> -0, 1.1283791670955126, 0;"
                "inf -> 1, 0, -0;  -inf -> -1, 0, 0",
        max_ulp=(1.5, 2.5, 2.5),              source="DLMF 7.2"),

    _unary("erfc", "Complementary error function",
        f="erfc(x)",                          df="-2*exp(-x**2)/sqrt(pi)",
        value=nf.erfc,                        derivative=lambda x: -nf.erf_slope(x),
        d2f="4*x*exp(-x**2)/sqrt(pi)",        second=lambda x: -nf.erf_curve(x),
        special="0 -> 1, -1.1283791670955126, 0;  -0 -> 1, -1.1283791670955126, -0;"
                "inf -> 0, -0, 0;  -inf -> 2, -0, -0",
        max_ulp=(2.0, 3.0, 2.5),              source="DLMF 7.2"),

    _unary("relu", "Rectified linear unit",
        f="x if x > 0 else 0",                df="1 if x > 0 else 0",
        value=lambda x: np.where(x <= 0, x.dtype.type(0), x),
        derivative=lambda x: np.where(np.isnan(x), x, x > 0),
        d2f="0",                              second=lambda x: nf.constant(0, x),
        special="0 -> 0, 0, 0;  -0 -> 0, 0, 0;  inf -> inf, 1, 0;  -inf -> 0, 0, 0",
        kinks=("x",),                         masked=True,
        max_ulp=(0.0, 0.0, 0.0),              source=_ARTICLE + "; 0 at the kink"),

    _unary("relu6", "Rectified linear unit capped at 6",
        f="(x if x < 6 else 6) if x > 0 else 0",
        df="(1 if x < 6 else 0) if x > 0 else 0",
        value=lambda x: np.clip(x, 0, 6) + x.dtype.type(0),  # -0 + 0 is 0
        derivative=lambda x: nf.inside(x, 0, 6, 1),
        d2f="0",                              second=lambda x: nf.constant(0, x),
        special="0 -> 0, 0, 0;  -0 -> 0, 0, 0;  6 -> 6, 0, 0;  inf -> 6, 0, 0;  -inf -> 0, 0, 0",
        kinks=("x", "x - 6"),                 masked=True,
        max_ulp=(0.0, 0.0, 0.0),              source="definition; 0 at the kinks"),

    _unary("hard_sigmoid", "Piecewise linear sigmoid",
        f="((x + 3)/6 if x < 3 else 1) if x > -3 else 0",
        df="(mpf(1)/6 if x < 3 else 0) if x > -3 else 0",
        value=lambda x: np.clip((x + 3) / 6, 0, 1),
        derivative=lambda x: nf.inside(x, -3, 3, 1 / 6),
        d2f="0",                              second=lambda x: nf.constant(0, x),
        special="-3 -> 0, 0, 0;  3 -> 1, 0, 0;  0 -> 0.5, 0.16666666666666666, 0;"
                "-0 -> 0.5, 0.16666666666666666, 0;  inf -> 1, 0, 0;  -inf -> 0, 0, 0",
        kinks=("x + 3", "x - 3"),             masked=True,
        max_ulp=(1.0, 0.5, 0.0),              source="definition; 0 at the kinks"),

    _unary("hard_tanh", "The operand clipped to [-1, 1]",
        f="(x if x < 1 else 1) if x > -1 else -1",
        df="(1 if x < 1 else 0) if x > -1 else 0",
        value=lambda x: np.clip(x, -1, 1),    derivative=lambda x: nf.inside(x, -1, 1, 1),
        d2f="0",                              second=lambda x: nf.constant(0, x),
        special="0 -> 0, 1, 0;  -0 -> -0, 1, 0;  -1 -> -1, 0, 0;  1 -> 1, 0, 0;  inf -> 1, 0, 0;"
                "-inf -> -1, 0, 0",
        kinks=("x + 1", "x - 1"),             masked=True,
        max_ulp=(0.0, 0.0, 0.0),              source="definition; 0 at the kinks"),

    _unary("selu", "Scaled exponential linear unit",
        f=f"{_SELU_SCALE}*(x if x > 0 else {_SELU_ALPHA}*expm1(x))",
        df=f"{_SELU_SCALE}*(1 if x > 0 else {_SELU_ALPHA}*exp(x))",
        value=nf.selu,                        derivative=nf.selu_slope,
        d2f=f"0 if x > 0 else {_SELU_SCALE}*{_SELU_ALPHA}*exp(x)",
        second=nf.selu_curve,
        special="0 -> 0, 1.7580993408473768, 1.7580993408473768;"
                "-0 -> -0, 1.7580993408473768, 1.7580993408473768;"
                "inf -> inf, 1.0507009873554805, 0;  -inf -> -1.7580993408473768, 0, 0",
        kinks=("x",),
        max_ulp=(2.0, 3.0, 3.0),              source="Klambauer et al. 2017, eq. 2; "
                                                     "the left derivative at the kink"),

    _unary("sigmoid", "Logistic sigmoid",
        f="1/(1 + exp(-x))",                  df="exp(-x)/(1 + exp(-x))**2",
        value=nf.sigmoid,                     derivative=nf.sigmoid_slope,
        d2f="-tanh(x/2)/(2 + 2*cosh(x))",     second=nf.sigmoid_curve,
        special="0 -> 0.5, 0.25, -0;  -0 -> 0.5, 0.25, 0;  inf -> 1, 0, -0;  -inf -> 0, 0, 0",
        max_ulp=(1.5, 2.5, 3.0),              source="chain rule on the quotient"),

    _unary("log_sigmoid", "Logarithm of the logistic sigmoid",
        f="(x if x < 0 else 0) - log1p(exp(-abs(x)))",
        df="1/(1 + exp(x))",
        value=nf.log_sigmoid,                 derivative=in_float64(lambda x: nf.sigmoid(-x)),
        d2f="-1/(2 + 2*cosh(x))",             second=lambda x: -nf.softplus_curve(x),
        special="0 -> -0.6931471805599453, 0.5, -0.25;  -0 -> -0.6931471805599453, 0.5, -0.25;"
                "inf -> -0, 0, -0;  -inf -> -inf, 1, -0",
        max_ulp=(2.0, 3.0, 2.5),              source="log_sigmoid(x) = -softplus(-x)"),

    _unary("softplus", "Smooth rectifier, log(1 + exp(x))",
        f="(x if x > 0 else 0) + log1p(exp(-abs(x)))",
        df="1/(1 + exp(-x))",
        value=in_float64(lambda x: -nf.log_sigmoid(-x)),
        derivative=in_float64(nf.sigmoid),
        d2f="1/(2 + 2*cosh(x))",              second=nf.softplus_curve,
        special="0 -> 0.6931471805599453, 0.5, 0.25;  -0 -> 0.6931471805599453, 0.5, 0.25;"
                "inf -> inf, 1, 0;  -inf -> 0, 0, 0",
        max_ulp=(1.5, 2.5, 2.5),              source="its derivative is the logistic sigmoid"),

    _unary("softsign", "x divided by one plus its absolute value",
        f="x/(1 + abs(x))",                   df="1/(1 + abs(x))**2",
        value=nf.softsign,                    derivative=lambda x: np.square(1 / (1 + np.abs(x))),
        d2f="-2*sign(x)/(1 + abs(x))**3",     second=nf.softsign_curve,
        special="0 -> 0, 1, 0;  -0 -> -0, 1, 0;  1 -> 0.5, 0.25, -0.25;  inf -> 1, 0, -0;"
                "-inf -> -1, 0, 0",
        max_ulp=(1.5, 1.5, 3.5),              source="quotient rule"),

    _unary("silu", "Sigmoid linear unit, x*sigmoid(x)",
        f="x/(1 + exp(-x))",                  df="1/(1 + exp(-x)) + x/(2 + 2*cosh(x))",
        value=nf.silu,                        derivative=nf.silu_slope,
        d2f="(2 - x*tanh(x/2))/(2 + 2*cosh(x))",
        second=nf.silu_curve,
        largest_term="max(2, x*tanh(x/2))/(2 + 2*cosh(x))",
        special="0 -> 0, 0.5, 0.5;  -0 -> -0, 0.5, 0.5;  inf -> inf, 1, -0;  -inf -> -0, -0, -0",
        max_ulp=(2.0, 3.0, 3.5),              source="product rule"),

    _unary("gelu", "Gaussian error linear unit, x*Phi(x) with the normal distribution's Phi",
        f="x*erfc(-x/sqrt(2))/2",
        df="erfc(-x/sqrt(2))/2 + x*exp(-x**2/2)/sqrt(2*pi)",
        value=nf.gelu,                        derivative=nf.gelu_slope,
        d2f="(2 - x**2)*exp(-x**2/2)/sqrt(2*pi)",
        second=nf.gelu_curve,
        special="0 -> 0, 0.5, 0.7978845608028654;  -0 -> -0, 0.5, 0.7978845608028654;"
                "inf -> inf, 1, -0;  -inf -> -0, -0, -0",
        max_ulp=(2.0, 3.0, 4.0),              source="Hendrycks and Gimpel 2016"),

    _unary("gelu_tanh", "Gaussian error linear unit with tanh in place of erf",
        f="x/(1 + exp(-sqrt(8/pi)*(x + mpf('0.044715')*x**3)))",
        df="1/(1 + exp(-sqrt(8/pi)*(x + mpf('0.044715')*x**3))) + "
           "sqrt(8/pi)*(x + mpf('0.134145')*x**3)"
           "/(2 + 2*cosh(sqrt(8/pi)*(x + mpf('0.044715')*x**3)))",
        value=nf.gelu_tanh,                   derivative=nf.gelu_tanh_slope,
        d2f="(sqrt(8/pi)*(2 + 12*mpf('0.044715')*x**2) - 8/pi*(1 + mpf('0.134145')*x**2)**2"
            "*x*tanh(sqrt(8/pi)*(x + mpf('0.044715')*x**3)/2))"
            "/(2 + 2*cosh(sqrt(8/pi)*(x + mpf('0.044715')*x**3)))",
        second=nf.gelu_tanh_curve,
        largest_term="max(sqrt(8/pi)*(2 + 12*mpf('0.044715')*x**2), "
                     "8/pi*(1 + mpf('0.134145')*x**2)**2"
                     "*x*tanh(sqrt(8/pi)*(x + mpf('0.044715')*x**3)/2))"
                     "/(2 + 2*cosh(sqrt(8/pi)*(x + mpf('0.044715')*x**3)))",
        special="0 -> 0, 0.5, 0.7978845608028654;  -0 -> -0, 0.5, 0.7978845608028654;"
                "inf -> inf, 1, -0;  -inf -> -0, -0, -0",
        max_ulp=(2.0, 3.0, 4.0),              source="Hendrycks and Gimpel 2016"),

    _unary("mish", "x*tanh(softplus(x))",
        f="x*tanh(log1p(exp(x)))",
        df="tanh(log1p(exp(x))) + x/((1 + exp(-x))*cosh(log1p(exp(x)))**2)",
        value=nf.mish,                        derivative=nf.mish_slope,
        d2f="(2 + x*(1/(1 + exp(x)) - 2*tanh(log1p(exp(x)))/(1 + exp(-x))))"
            "/((1 + exp(-x))*cosh(log1p(exp(x)))**2)",
        second=nf.mish_curve,
        largest_term="max(2, abs(x*(1/(1 + exp(x)) - 2*tanh(log1p(exp(x)))/(1 + exp(-x)))))"
                     "/((1 + exp(-x))*cosh(log1p(exp(x)))**2)",
        special="0 -> 0, 0.6, 0.64;  -0 -> -0, 0.6, 0.64;  inf -> inf, 1, -0;  -inf -> -0, -0, -0",
        max_ulp=(2.0, 3.0, 4.0),              source="Misra 2019"),

    _unary("gammaln", "Logarithm of the absolute value of the Gamma function",
        f="re(loggamma(x))",                  df="psi(0, x)",
        value=gamma.gammaln,                  derivative=gamma.digamma,
        d2f="psi(1, x)",                      second=gamma.trigamma,
        domain=_NO_POLE,
        largest_term=(_LOG_GAMMA_TERM, _DIGAMMA_TERM, ""),
        special="0 -> inf, -inf, inf;  -0 -> inf, inf, inf;  1 -> 0, -0.5772156649015329,"
                "1.6449340668482264;  2 -> 0, 0.42278433509846713, 0.6449340668482264;"
                "-1 -> inf, nan, inf;  -2 -> inf, nan, inf;  inf -> inf, inf, 0;"
                "-inf -> inf, nan, inf",
        max_ulp=(2.0, 2.5, 3.0),              source="DLMF 5.2, 5.5, 5.11; as C's lgamma at poles "
                                                     "and at -inf"),

    _unary("digamma", "Logarithmic derivative of the Gamma function, psi",
        f="psi(0, x)",                        df="psi(1, x)",
        value=gamma.digamma,                  derivative=gamma.trigamma,
        d2f="psi(2, x)",                      second=gamma.tetragamma,
        domain=_NO_POLE,
        largest_term=(_DIGAMMA_TERM, "", _TETRAGAMMA_TERM),
        special="0 -> -inf, inf, -inf;  -0 -> inf, inf, inf;  -1 -> nan, inf, nan;"
                "-2 -> nan, inf, nan;  inf -> inf, 0, -0;  -inf -> nan, inf, nan",
        max_ulp=(2.5, 3.0, 4.0),              source="DLMF 5.5, 5.11, 5.15; infinite where both "
                                                     "sides of a pole are, else NaN"),

    _unary("logit", "Logarithm of the odds x/(1 - x), the inverse of sigmoid",
        f="log(x/(1 - x))",                   df="1/(x*(1 - x))",
        value=nf.logit,                       derivative=nf.logit_slope,
        d2f="(2*x - 1)/(x*(1 - x))**2",       second=nf.logit_curve,
        domain=_PROBABILITY,
        special="0 -> -inf, inf, -inf;  -0 -> -inf, inf, -inf;  0.5 -> 0, 4, 0;"
                "1 -> inf, inf, inf;  -1 -> nan, nan, nan;  2 -> nan, nan, nan;"
                "inf -> nan, nan, nan;  -inf -> nan, nan, nan",
        max_ulp=(1.5, 2.5, 3.0),              source="quotient rule"),

    _unary("log1mexp", "log(1 - exp(-x))",
        f="log(-expm1(-x)) if x < 1 else log1p(-exp(-x))",
        df="1/expm1(x)",
        value=nf.log1mexp,                    derivative=nf.log1mexp_slope,
        d2f="-1/(4*sinh(x/2)**2)",           second=nf.log1mexp_curve,
        domain=_POSITIVE,
        special="0 -> -inf, inf, -inf;  -0 -> -inf, inf, -inf;  -1 -> nan, nan, nan;"
                "inf -> -0, 0, -0;  -inf -> nan, nan, nan",
        max_ulp=(1.5, 1.5, 3.0),              source="Maechler 2012, for x > 0"),

    _unary("sinc", "sin(pi*x)/(pi*x), and one at 0",
        f="sinpi(x)/(pi*x) if x != 0 else 1",
        df="(cospi(x) - sinpi(x)/(pi*x))/x if abs(x) > mpf('1e-15') else -pi**2*x/3",
        value=nf.sinc,                        derivative=nf.sinc_slope,
        d2f="-pi*sinpi(x)/x - 2*(cospi(x) - sinpi(x)/(pi*x))/x**2 "
            "if abs(x) > mpf('1e-15') else -pi**2/3",
        second=nf.sinc_curve,
        largest_term=("", "max(abs(cospi(x)), abs(sinpi(x)/(pi*x)))/abs(x) if abs(x) > 0.5 else 0",
                      "max(abs(pi*sinpi(x)/x), 2*abs(cospi(x)/x**2), "
                      "2*abs(sinpi(x)/(pi*x**3))) if abs(x) > 0.25 else 0"),
        special="0 -> 1, -0, -3.289868133696453;  -0 -> 1, 0, -3.289868133696453;"
                "1 -> 0, -1, 2;  -1 -> 0, 1, 2;  2 -> 0, 0.5, -0.5;  inf -> 0, 0, -0;"
                "-inf -> 0, -0, -0",
        max_ulp=(2.0, 2.5, 4.0),              source="quotient rule; as numpy.sinc"),

    _unary("ndtr", "Distribution function of the standard normal distribution, Phi",
        f="erfc(-x/sqrt(2))/2",               df="exp(-x**2/2)/sqrt(2*pi)",
        value=nf.ndtr,                        derivative=nf.ndtr_slope,
        d2f="-x*exp(-x**2/2)/sqrt(2*pi)",     second=nf.ndtr_curve,
        special="0 -> 0.5, 0.3989422804014327, -0;  -0 -> 0.5, 0.3989422804014327, 0;"
                "inf -> 1, 0, -0;  -inf -> 0, 0, 0",
        max_ulp=(2.0, 2.0, 2.5),              source="DLMF 7.18"),

    _unary("log_ndtr", "Logarithm of the standard normal distribution function",
        f="log1p(-erfc(x/sqrt(2))/2) if x > 0 else log(erfc(-x/sqrt(2))/2) if x > -100000 "
          "else -x**2/2 - log(-x*sqrt(2*pi)) - 1/x**2",
        df="exp(-x**2/2)*sqrt(2/pi)/erfc(-x/sqrt(2)) if x > -100000 else 2/x**3 - 1/x - x",
        value=nf.log_ndtr,                    derivative=nf.log_ndtr_slope,
        d2f="-exp(-x**2/2)*sqrt(2/pi)/erfc(-x/sqrt(2))*(x + exp(-x**2/2)*sqrt(2/pi)"
            "/erfc(-x/sqrt(2))) if x > -100000 else 1/x**2 - 6/x**4 - 1",
        second=nf.log_ndtr_curve,
        special="0 -> -0.6931471805599453, 0.7978845608028654, -0.6366197723675814;"
                "-0 -> -0.6931471805599453, 0.7978845608028654, -0.6366197723675814;"
                "inf -> -0, 0, -0;  -inf -> -inf, inf, -1",
        max_ulp=(2.0, 2.5, 3.5),              source="chain rule; DLMF 7.8, Mills' ratio"),

    _unary("ndtri", "Quantile of the standard normal distribution, the inverse of ndtr",
        f="-sqrt(2)*erfcinv(2*x)",            df="sqrt(2*pi)*exp(erfcinv(2*x)**2)",
        value=nf.ndtri,                       derivative=nf.ndtri_slope,
        d2f="-sqrt(8)*pi*erfcinv(2*x)*exp(2*erfcinv(2*x)**2)",
        second=nf.ndtri_curve,
        domain=_PROBABILITY,
        special="0 -> -inf, inf, -inf;  -0 -> -inf, inf, -inf;  0.5 -> 0, 2.5066282746310007, 0;"
                "1 -> inf, inf, inf;  -1 -> nan, nan, nan;  2 -> nan, nan, nan;"
                "inf -> nan, nan, nan;  -inf -> nan, nan, nan",
        max_ulp=(2.5, 2.0, 4.0),              source="derivative of an inverse"),

    _unary("erfinv", "Inverse error function",
        f="erfinv(x)",                        df="sqrt(pi)/2*exp(erfinv(x)**2)",
        value=nf.erfinv,                      derivative=nf.erfinv_slope,
        d2f="pi/2*erfinv(x)*exp(2*erfinv(x)**2)",
        second=nf.erfinv_curve,
        domain=_OPEN_UNIT,
        special="0 -> 0, 0.886226925452758, 0;  -0 -> -0, 0.886226925452758, -0;"
                "1 -> inf, inf, inf;  -1 -> -inf, inf, -inf;  2 -> nan, nan, nan;"
                "inf -> nan, nan, nan;  -inf -> nan, nan, nan",
        max_ulp=(3.0, 2.0, 4.0),              source="derivative of an inverse; DLMF 7.17"),

    _binary("add", "Sum",
        f="w + x",                            df=("1", "1"),
        value=np.add,                         derivative=lambda w, x: (np.ones_like(w),
                                                                       np.ones_like(x)),
        d2f=("0", "0", "0"),                  second=lambda w, x: nf.constants(w, 0, 0, 0),
        special="-0 -0 -> -0, 1 1, 0 0 0;  0 -0 -> 0, 1 1, 0 0 0;  inf -inf -> nan, 1 1, 0 0 0;"
                "nan 1 -> nan, 1 1, 0 0 0",
        max_ulp=(0.5, 0.0, 0.0),              source=_ARTICLE),

    _binary("subtract", "Difference",
        f="w - x",                            df=("1", "-1"),
        value=np.subtract,                    derivative=lambda w, x: (np.ones_like(w),
                                                                       -np.ones_like(x)),
        d2f=("0", "0", "0"),                  second=lambda w, x: nf.constants(w, 0, 0, 0),
        special="0 0 -> 0, 1 -1, 0 0 0;  -0 0 -> -0, 1 -1, 0 0 0;  inf inf -> nan, 1 -1, 0 0 0;"
                "nan 1 -> nan, 1 -1, 0 0 0",
        max_ulp=(0.5, 0.0, 0.0),              source=_ARTICLE),

    _binary("multiply", "Product",
        f="w*x",                              df=("x", "w"),
        value=np.multiply,                    derivative=lambda w, x: (+x, +w),
        d2f=("0", "1", "0"),                  second=lambda w, x: nf.constants(w, 0, 1, 0),
        special="0 -2 -> -0, -2 0, 0 1 0;  0 inf -> nan, inf 0, 0 1 0;"
                "inf -1 -> -inf, -1 inf, 0 1 0;  nan 1 -> nan, 1 nan, 0 1 0",
        max_ulp=(0.5, 0.0, 0.0),              source=_ARTICLE),

    _binary("divide", "Quotient",
        f="w/x",                              df=("1/x", "-w/x**2"),
        value=np.divide,                      derivative=nf.divide_slopes,
        d2f=("0", "-1/x**2", "2*w/x**3"),     second=nf.divide_curves,
        domain=(_REAL, _NONZERO),
        special="1 0 -> inf, inf -inf, 0 -inf inf;  1 -0 -> -inf, -inf -inf, 0 -inf -inf;"
                "-1 0 -> -inf, inf inf, 0 -inf -inf;  0 0 -> nan, inf nan, 0 -inf nan;"
                "0 2 -> 0, 0.5 -0, 0 -0.25 0;  1 inf -> 0, 0 -0, 0 -0 0;"
                "1 -inf -> -0, -0 -0, 0 -0 -0;  inf inf -> nan, 0 nan, 0 -0 nan;"
                "inf 2 -> inf, 0.5 -inf, 0 -0.25 inf;  nan 1 -> nan, 1 nan, 0 -1 nan;"
                "1 nan -> nan, nan nan, 0 nan nan",
        max_ulp=(0.5, 1.0, 2.0),              source=_ARTICLE),

    _binary("power", "w to the power x",
        f="w**x",                             df=("x*w**(x - 1)", "w**x*log(w)"),
        value=nf.power,                       derivative=nf.power_slopes,
        d2f=("x*(x - 1)*w**(x - 2)", "w**(x - 1)*(1 + x*log(w))", "w**x*log(w)**2"),
        second=nf.power_curves,
        largest_term=("", "w**(x - 1)*max(1, abs(x*log(w)))", ""),
        domain=(_BASE, _REAL),
        special="0 0 -> 1, 0 0, 0 0 0;  -0 0 -> 1, 0 0, 0 0 0;  0 -0 -> 1, 0 0, 0 0 0;"
                "0 0.5 -> 0, inf 0, -inf -inf 0;  -0 0.5 -> 0, inf 0, -inf -inf 0;"
                "0 1 -> 0, 1 0, 0 -inf 0;  0 2 -> 0, 0 0, 2 -0 0;  -0 2 -> 0, -0 0, 2 -0 0;"
                "-0 3 -> -0, 0 0, -0 -0 0;  0 -1 -> inf, -inf -inf, inf inf inf;"
                "-0 -1 -> -inf, -inf -inf, -inf inf inf;  -0 -0.5 -> inf, -inf -inf, inf inf inf;"
                "1 0 -> 1, 0 0, 0 1 0;  1 2 -> 1, 2 0, 2 1 0;"
                "-2 0.5 -> nan, nan nan, nan nan nan;  -2 2 -> 4, -4 nan, 2 nan nan;"
                "-2 3 -> -8, 12 nan, -12 nan nan;  -2 -1 -> -0.5, -0.25 nan, -0.25 nan nan;"
                "-2 0 -> 1, -0 nan, 0 nan nan;  0.5 inf -> 0, 0 -0, 0 -0 0;"
                "1 inf -> 1, inf 0, inf nan 0;"
                "2 inf -> inf, inf inf, inf inf inf;  0.5 -inf -> inf, -inf -inf, inf inf inf;"
                "1 -inf -> 1, -inf 0, inf nan 0;  2 -inf -> 0, -0 0, 0 -0 0;"
                "0 inf -> 0, 0 0, 0 -0 0;  0 -inf -> inf, -inf -inf, inf inf inf;"
                "-2 inf -> inf, nan nan, nan nan nan;  -0.5 inf -> 0, nan nan, nan nan nan;"
                "-1 inf -> 1, nan nan, nan nan nan;  -2 -inf -> 0, nan nan, nan nan nan;"
                "inf 0 -> 1, 0 inf, 0 0 inf;  inf 0.5 -> inf, 0 inf, -0 0 inf;"
                "inf 1 -> inf, 1 inf, 0 inf inf;  inf 2 -> inf, inf inf, 2 inf inf;"
                "inf -1 -> 0, -0 0, 0 -0 0;  inf inf -> inf, inf inf, inf inf inf;"
                "inf -inf -> 0, -0 0, 0 -0 0;  -inf 2 -> inf, -inf nan, 2 nan nan;"
                "-inf 3 -> -inf, inf nan, -inf nan nan;  -inf 1 -> -inf, 1 nan, 0 nan nan;"
                "-inf -1 -> -0, -0 nan, -0 nan nan;  -inf 0.5 -> inf, nan nan, nan nan nan;"
                "nan 0 -> 1, nan nan, nan nan nan;  1 nan -> 1, nan nan, nan nan nan;"
                "nan 1 -> nan, nan nan, nan nan nan;  2 nan -> nan, nan nan, nan nan nan;"
                "nan nan -> nan, nan nan, nan nan nan",
        max_ulp=(1.0, 2.5, 3.0),              source="DLMF 4.2; w**x = exp(x log w)"),

    _binary("maximum", "The larger operand",
        f="w if w > x else x",                df=("1 if w > x else 0", "0 if w > x else 1"),
        value=nf.maximum,                     derivative=nf.maximum_slopes,
        d2f=("0", "0", "0"),
        second=lambda w, x: nf.no_curves(nf.maximum_slopes(w, x)[0]),
        special="0 0 -> 0, 0.5 0.5, 0 0 0;  0 -0 -> 0, 0.5 0.5, 0 0 0;"
                "-0 0 -> 0, 0.5 0.5, 0 0 0;  -0 -0 -> -0, 0.5 0.5, 0 0 0;"
                "3 3 -> 3, 0.5 0.5, 0 0 0;  inf inf -> inf, 0.5 0.5, 0 0 0;"
                "inf -inf -> inf, 1 0, 0 0 0;  -inf 1 -> 1, 0 1, 0 0 0;"
                "nan 1 -> nan, nan nan, nan nan nan;  1 nan -> nan, nan nan, nan nan nan;"
                "nan nan -> nan, nan nan, nan nan nan",
        kinks=("w - x",),
        max_ulp=(0.0, 0.0, 0.0),              source="definition; a tie is shared"),

    _binary("minimum", "The smaller operand",
        f="w if w < x else x",                df=("1 if w < x else 0", "0 if w < x else 1"),
        value=lambda w, x: -nf.maximum(-w, -x),
        derivative=lambda w, x: nf.maximum_slopes(-w, -x),
        d2f=("0", "0", "0"),
        second=lambda w, x: nf.no_curves(nf.maximum_slopes(w, x)[0]),
        special="0 0 -> 0, 0.5 0.5, 0 0 0;  0 -0 -> -0, 0.5 0.5, 0 0 0;"
                "-0 0 -> -0, 0.5 0.5, 0 0 0;  -0 -0 -> -0, 0.5 0.5, 0 0 0;"
                "3 3 -> 3, 0.5 0.5, 0 0 0;  -inf -inf -> -inf, 0.5 0.5, 0 0 0;"
                "inf -inf -> -inf, 0 1, 0 0 0;  -inf 1 -> -inf, 1 0, 0 0 0;"
                "nan 1 -> nan, nan nan, nan nan nan;  1 nan -> nan, nan nan, nan nan nan;"
                "nan nan -> nan, nan nan, nan nan nan",
        kinks=("w - x",),
        max_ulp=(0.0, 0.0, 0.0),              source="definition; a tie is shared"),

    _binary("hypot", "Length of the vector (w, x)",
        f="hypot(w, x)",                      df=("w/hypot(w, x)", "x/hypot(w, x)"),
        value=in_float64(np.hypot),           derivative=nf.hypot_slopes,
        d2f=("(x/hypot(w, x))**2/hypot(w, x)",
             "-(w/hypot(w, x))*(x/hypot(w, x))/hypot(w, x)",
             "(w/hypot(w, x))**2/hypot(w, x)"),
        second=nf.hypot_curves,
        special="0 0 -> 0, 0 0, 0 0 0;  -0 -0 -> 0, 0 0, 0 0 0;  0 -0 -> 0, 0 0, 0 0 0;"
                "0 2 -> 2, 0 1, 0.5 -0 0;  -0 2 -> 2, -0 1, 0.5 0 0;  inf -1 -> inf, 1 -0, 0 0 0;"
                "1 -inf -> inf, 0 -1, 0 0 0;  inf inf -> inf, nan nan, 0 -0 0;"
                "inf nan -> inf, nan nan, nan nan nan;  nan -inf -> inf, nan nan, nan nan nan;"
                "nan 1 -> nan, nan nan, nan nan nan;  1 nan -> nan, nan nan, nan nan nan",
        kinks=("abs(w) + abs(x)",),
        max_ulp=(2.0, 3.0, 4.0),              source="chain rule; 0 at the origin"),

    _binary("arctan2", "Angle of the point with ordinate w and abscissa x, in radians",
        f="atan2(w, x)",                      df=("x/(w**2 + x**2)", "-w/(w**2 + x**2)"),
        value=in_float64(np.arctan2),         derivative=nf.arctan2_slopes,
        d2f=("-2*w*x/(w**2 + x**2)**2",
             "(w**2 - x**2)/(w**2 + x**2)**2",
             "2*w*x/(w**2 + x**2)**2"),
        second=nf.arctan2_curves,
        special="0 0 -> 0, nan nan, nan nan nan;  -0 0 -> -0, nan nan, nan nan nan;"
                "0 -0 -> 3.141592653589793, nan nan, nan nan nan;"
                "-0 -0 -> -3.141592653589793, nan nan, nan nan nan;"
                "0 2 -> 0, 0.5 -0, -0 -0.25 0;  -0 2 -> -0, 0.5 0, 0 -0.25 -0;"
                "0 -2 -> 3.141592653589793, -0.5 -0, 0 -0.25 -0;"
                "-0 -2 -> -3.141592653589793, -0.5 0, -0 -0.25 0;"
                "2 0 -> 1.5707963267948966, 0 -0.5, -0 0.25 0;"
                "2 -0 -> 1.5707963267948966, -0 -0.5, 0 0.25 -0;"
                "-2 0 -> -1.5707963267948966, 0 0.5, 0 0.25 -0;  1 inf -> 0, 0 -0, -0 -0 0;"
                "1 -inf -> 3.141592653589793, -0 -0, 0 -0 -0;  -1 inf -> -0, 0 0, 0 -0 -0;"
                "-1 -inf -> -3.141592653589793, -0 0, -0 -0 0;"
                "inf 1 -> 1.5707963267948966, 0 -0, -0 0 0;"
                "inf -1 -> 1.5707963267948966, -0 -0, 0 0 -0;"
                "-inf 1 -> -1.5707963267948966, 0 0, 0 0 -0;"
                "inf inf -> 0.7853981633974483, 0 -0, -0 0 0;"
                "inf -inf -> 2.356194490192345, -0 -0, 0 0 -0;"
                "-inf inf -> -0.7853981633974483, 0 0, 0 0 -0;"
                "-inf -inf -> -2.356194490192345, -0 0, -0 0 0;"
                "nan 1 -> nan, nan nan, nan nan nan;  1 nan -> nan, nan nan, nan nan nan",
        kinks=("abs(w) + (abs(x) + x)",),  # the origin, and the cut along negative x
        max_ulp=(2.0, 3.0, 4.0),              source="DLMF 4.23(iv)"),

    _binary("logaddexp", "Logarithm of exp(w) + exp(x)",
        f="(w if w > x else x) + log1p(exp(-abs(w - x)))",
        df=("1/(1 + exp(x - w))", "1/(1 + exp(w - x))"),
        value=nf.logaddexp,                   derivative=nf.logaddexp_slopes,
        d2f=("1/(2 + 2*cosh(w - x))", "-1/(2 + 2*cosh(w - x))", "1/(2 + 2*cosh(w - x))"),
        second=nf.logaddexp_curves,
        special="0 0 -> 0.6931471805599453, 0.5 0.5, 0.25 -0.25 0.25;"
                "inf inf -> inf, 0.5 0.5, 0.25 -0.25 0.25;  inf 1 -> inf, 1 0, 0 -0 0;"
                "1 inf -> inf, 0 1, 0 -0 0;  inf -inf -> inf, 1 0, 0 -0 0;"
                "-inf 1 -> 1, 0 1, 0 -0 0;  1 -inf -> 1, 1 0, 0 -0 0;"
                "-inf -inf -> -inf, nan nan, nan nan nan;  nan inf -> nan, nan nan, nan nan nan;"
                "nan 1 -> nan, nan nan, nan nan nan;  1 nan -> nan, nan nan, nan nan nan",
        ulp_of_operands=True,
        max_ulp=(2.0, 3.0, 3.0),              source="softplus of the difference; halves at a tie"),

    _binary("xlogy", "w*log(x), and zero where w is zero",
        f="w*log(x)",                         df=("log(x)", "w/x"),
        value=nf.xlogy,                       derivative=nf.xlogy_slopes,
        d2f=("0", "1/x", "-w/x**2"),          second=nf.xlogy_curves,
        domain=(_REAL, _POSITIVE),
        special="0 0 -> 0, 0 0, 0 0 0;  -0 0 -> 0, 0 0, 0 0 0;  0 -0 -> 0, 0 0, 0 0 0;"
                "1 0 -> -inf, -inf inf, 0 inf -inf;  -1 0 -> inf, -inf -inf, 0 inf inf;"
                "1 -0 -> -inf, -inf inf, 0 inf -inf;  0 1 -> 0, 0 0, 0 1 -0;"
                "2 1 -> 0, 0 2, 0 1 -2;  -2 1 -> -0, 0 -2, 0 1 2;  -0 1 -> 0, 0 -0, 0 1 0;"
                "0 0.25 -> 0, -1.3862943611198906 0, 0 4 -0;"
                "-0 4 -> 0, 1.3862943611198906 -0, 0 0.25 0;  0 -1 -> 0, nan nan, nan nan nan;"
                "1 -1 -> nan, nan nan, nan nan nan;  0 inf -> 0, inf 0, 0 0 -0;"
                "1 inf -> inf, inf 0, 0 0 -0;  -1 inf -> -inf, inf -0, 0 0 0;"
                "0 -inf -> 0, nan nan, nan nan nan;  inf 1 -> nan, 0 inf, 0 1 -inf;"
                "inf 2 -> inf, 0.6931471805599453 inf, 0 0.5 -inf;"
                "inf 0 -> -inf, -inf inf, 0 inf -inf;  inf inf -> inf, inf nan, 0 0 nan;"
                "0 nan -> nan, nan nan, nan nan nan;  1 nan -> nan, nan nan, nan nan nan;"
                "nan 1 -> nan, 0 nan, 0 1 nan",
        max_ulp=(2.0, 3.0, 1.0),              source="product rule; (0, 0) at the origin"),

    _binary("squared_difference", "Square of the difference",
        f="(w - x)**2",                       df=("2*(w - x)", "2*(x - w)"),
        value=lambda w, x: np.square(w - x),  derivative=nf.squared_difference_slopes,
        d2f=("2", "-2", "2"),                 second=lambda w, x: nf.constants(w, 2, -2, 2),
        special="0 0 -> 0, 0 0, 2 -2 2;  1 1 -> 0, 0 0, 2 -2 2;  -0 0 -> 0, -0 0, 2 -2 2;"
                "3 1 -> 4, 4 -4, 2 -2 2;  inf 1 -> inf, inf -inf, 2 -2 2;"
                "1 inf -> inf, -inf inf, 2 -2 2;  inf inf -> nan, nan nan, 2 -2 2;"
                "inf -inf -> inf, inf -inf, 2 -2 2;  nan 1 -> nan, nan nan, 2 -2 2;"
                "1 nan -> nan, nan nan, 2 -2 2",
        max_ulp=(2.0, 0.5, 0.0),              source="chain rule"),

    _binary("leaky_relu", "Rectified linear unit of w, with slope x where w is negative",
        f="w if w > 0 else x*w",              df=("1 if w > 0 else x", "0 if w > 0 else w"),
        value=lambda w, x: np.where(w > 0, w, x * w),
        derivative=nf.leaky_relu_slopes,
        d2f=("0", "0 if w > 0 else 1", "0"),  second=nf.leaky_relu_curves,
        special="0 0.25 -> 0, 0.25 0, 0 1 0;  -0 0.25 -> -0, 0.25 -0, 0 1 0;"
                "1 0.25 -> 1, 1 0, 0 0 0;  -1 0.25 -> -0.25, 0.25 -1, 0 1 0;"
                "0 inf -> nan, inf 0, 0 1 0;  inf 0.25 -> inf, 1 0, 0 0 0;"
                "-inf 0.25 -> -inf, 0.25 -inf, 0 1 0;  -inf 0 -> nan, 0 -inf, 0 1 0;"
                "1 nan -> 1, 1 0, 0 0 0;  -1 nan -> nan, nan -1, 0 1 0;"
                "nan 0.25 -> nan, nan nan, nan nan nan",
        kinks=("w",),                         masked=True,           default=0.01,
        max_ulp=(0.5, 0.0, 0.0),              source="definition; the left derivative at the kink"),

    _binary("elu", "Exponential linear unit of w with scale x",
        f="w if w > 0 else x*expm1(w)",
        df=("1 if w > 0 else x*exp(w)", "0 if w > 0 else expm1(w)"),
        value=nf.elu,                         derivative=nf.elu_slopes,
        d2f=("0 if w > 0 else x*exp(w)", "0 if w > 0 else exp(w)", "0"),
        second=nf.elu_curves,
        special="0 0.25 -> 0, 0.25 0, 0.25 1 0;  -0 0.25 -> -0, 0.25 -0, 0.25 1 0;"
                "1 0.25 -> 1, 1 0, 0 0 0;  0 inf -> nan, inf 0, inf 1 0;"
                "inf 0.25 -> inf, 1 0, 0 0 0;  -inf 0.25 -> -0.25, 0 -1, 0 0 0;"
                "-inf 0 -> -0, 0 -1, 0 0 0;  -inf inf -> -inf, nan -1, nan 0 0;"
                "1 nan -> 1, 1 0, 0 0 0;  -inf nan -> nan, nan -1, nan 0 0;"
                "nan 0.25 -> nan, nan nan, nan nan nan",
        kinks=("w",),                         masked=True,           default=1.0,
        max_ulp=(2.0, 3.0, 3.0),              source="Clevert et al. 2015, eq. 15; "
                                                     "the left derivative at the kink"),

    *(
        _binary(name, f"One where w {symbol} x, zero elsewhere",
            f=f"1 if w {symbol} x else 0",    df=("0", "0"),
            value=nf.comparison(compare),
            derivative=lambda w, x: (np.zeros_like(w), np.zeros_like(x)),
            d2f=("0", "0", "0"),              second=lambda w, x: nf.constants(w, 0, 0, 0),
            special="; ".join(
                f"{at} -> {int(value)}, 0 0, 0 0 0"
                for at, value in zip(("0 0", "0 -0", "inf inf", "inf -inf", "-inf inf",
                                      "nan 1", "1 nan", "nan nan"), values, strict=True)
            ),
            kinks=("w - x",),                 masked=True,
            max_ulp=(0.0, 0.0, 0.0),          source=_ARTICLE)
        for name, symbol, compare, values in (
            ("greater", ">", np.greater, "00010000"),
            ("greater_equal", ">=", np.greater_equal, "11110000"),
            ("less", "<", np.less, "00001000"),
            ("less_equal", "<=", np.less_equal, "11101000"),
            ("equal", "==", np.equal, "11100000"),
            ("not_equal", "!=", np.not_equal, "00011111"),
        )
    ),
)
# fmt: on

OPS: Final[Mapping[str, OpRow]] = MappingProxyType({row.name: row for row in _ROWS})

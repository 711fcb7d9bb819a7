"""The table of reductions, and of the maps of rows that are made of them.

One row says everything the Python side knows: formulas, conventions, error bounds. The NumPy
engine, the public objects and their docstrings, the tests, the benches and the catalogue iterate
over `REDUCTIONS`, so a new reduction is one row here and one in ``cpp/ops``.

A sum adds runs of at most `RUN` elements in order and merges the runs as a tree. Its error is at
most `sum_error(n)` times the sum of its terms' magnitudes. A row's error bound is `sum_error(n)`
times `terms`, plus `max_ulp` units in the last place of the result. In a map's vjp and jvp, where
terms can cancel, the unit is that of the larger of the result and `slope_terms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

import pullback.second_order as so
from pullback.oracle import reductions as rf
from pullback.oracle import scans

__all__ = ["REDUCTIONS", "RUN", "Parameter", "ReductionRow", "sum_error"]

Array: TypeAlias = npt.NDArray[Any]

RUN: Final = 512


def sum_error(n: int) -> float:
    """Return the error bound of a float64 sum of n terms, relative to the sum of magnitudes."""
    levels = math.ceil(math.log2(n / RUN)) if n > RUN else 0
    return (min(n, RUN) + levels + 8) * 2.0**-53


# --- what a row is made of ------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """A number that a reduction depends on. There is no derivative with respect to it."""

    name: str
    role: str  # what it does
    default: float | None  # None: it is required, and follows the operands
    text: str  # what it needs
    test: Callable[[float], bool]
    keyword_only: bool = False  # otherwise it follows the axis


@dataclass(frozen=True, eq=False, kw_only=True)
class ReductionRow:
    """Everything there is to say about one reduction, or one map of rows.

    The functions take the rows (S, n) of float64 arrays and the parameter, or 0 where there is
    none. A reduction has `values` and `slopes`, a map `value`, `vjp` and `jvp`.
    """

    name: str
    summary: str
    formula: str  # of a row x of n elements, or of x and y
    derivative_formula: tuple[str, ...]  # one per operand, by its i-th element
    operands: tuple[str, ...]
    parameter: Parameter | None
    conventions: str
    empty: float | None  # the value for no elements; None: an error
    weighs: bool = False  # whether it takes weights b of the terms
    hidden: float = 0.0  # a map's result at masked elements
    ordered: bool = False  # whether the order of the elements counts, as in a scan
    max_ulp: tuple[float, float]  # value, derivative or vjp; native kernels, both dtypes
    # What `sum_error(n)` is multiplied by, for the value and for the i-th derivative. Expressions
    # in mpmath's words of lists x and y, n, value, slope, mean, the parameter, a map's p, g and r,
    # and J, the row or column of the Jacobian that g is multiplied with.
    terms: str
    slope_terms: str
    # Of the i-th element of H(t), the derivative of vjp along t: the formula, and its error bound
    # in the same way, where the unit is that of the larger of the result and `second_terms`. A
    # reduction's cotangent is a factor of both. Functions: see `pullback.second_order`.
    second_formula: tuple[str, ...]  # one per operand
    second_ulp: float
    second_terms: str
    second: Callable[..., Any]
    source: str
    values: rf.Values | None = None
    slopes: rf.Slopes | None = None
    value: Callable[[Array, float], Array] | None = None
    vjp: Callable[[Array, Array, float], Array] | None = None
    jvp: Callable[[Array, Array, float], Array] | None = None

    @property
    def leading(self) -> tuple[str, ...]:
        """The first arguments of every method: the operands, then a parameter without default."""
        about = self.parameter
        return (
            self.operands
            if about is None or about.default is not None
            else (*self.operands, about.name)
        )

    @property
    def is_map(self) -> bool:
        """Whether the result has the operand's shape."""
        return self.value is not None


def _reduction(
    name: str,
    summary: str,
    *,
    f: str,
    df: tuple[str, ...],
    values: Callable[..., Array],
    slopes: Callable[..., Any],
    empty: float | None,
    max_ulp: tuple[float, float],
    terms: str,
    slope_terms: str,
    d2f: tuple[str, ...],
    second: Callable[..., Any],
    second_ulp: float,
    second_terms: str,
    conventions: str,
    source: str,
    parameter: Parameter | None = None,
    weighs: bool = False,
) -> ReductionRow:
    operands = ("x", "y")[: len(df)]
    # A row's functions take their operands, and the parameter where there is one.
    extra = parameter is not None

    def all_values(x: tuple[Array, ...], p: float) -> Array:
        return values(*x, p) if extra else values(*x)

    def all_slopes(x: tuple[Array, ...], p: float) -> tuple[Array, ...]:
        result = slopes(*x, p) if extra else slopes(*x)
        return result if isinstance(result, tuple) else (result,)

    return ReductionRow(
        name=name,
        summary=summary,
        formula=f,
        derivative_formula=df,
        operands=operands,
        parameter=parameter,
        conventions=conventions,
        empty=empty,
        max_ulp=max_ulp,
        terms=terms,
        slope_terms=slope_terms,
        second_formula=d2f,
        second_ulp=second_ulp,
        second_terms=second_terms,
        second=second,
        source=source,
        weighs=weighs,
        values=all_values,
        slopes=all_slopes,
    )


def _scan(name: str, summary: str, *, rules: tuple[Any, ...], **facts: Any) -> ReductionRow:
    """Return a map of rows whose i-th result is of the elements up to the i-th."""
    value, vjp, jvp = rules
    return _map(
        name, summary, value=value, vjp=vjp, jvp=jvp, parameter=_REVERSE, ordered=True, **facts
    )


def _map(
    name: str,
    summary: str,
    *,
    f: str,
    df: str,
    value: Callable[[Array, float], Array],
    vjp: Callable[[Array, Array, float], Array],
    jvp: Callable[[Array, Array, float], Array],
    max_ulp: tuple[float, float],
    terms: str,
    slope_terms: str,
    d2f: str,
    second: Callable[..., Any],
    second_ulp: float,
    second_terms: str,
    conventions: str,
    source: str,
    parameter: Parameter | None = None,
    hidden: float = 0.0,
    ordered: bool = False,
) -> ReductionRow:
    return ReductionRow(
        name=name,
        summary=summary,
        formula=f,
        derivative_formula=(df,),
        operands=("x",),
        parameter=parameter,
        conventions=conventions,
        empty=None,
        max_ulp=max_ulp,
        terms=terms,
        slope_terms=slope_terms,
        second_formula=(d2f,),
        second_ulp=second_ulp,
        second_terms=second_terms,
        second=second,
        source=source,
        hidden=hidden,
        ordered=ordered,
        value=value,
        vjp=vjp,
        jvp=jvp,
    )


_ARTICLE: Final = "Finding the Gradient of a Vector Function, sum reduction"
_SHEET: Final = "matrix-calculus discussion sheet, gradients of norms"
_EXPONENT: Final = Parameter("p", "The exponent", None, "a number >= 1, or inf", lambda p: p >= 1)
_DDOF: Final = Parameter(
    "ddof",
    "The divisor is n - ddof for n elements",
    0.0,
    "a finite number",
    math.isfinite,
    keyword_only=True,
)
_EPS: Final = Parameter(
    "eps",
    "Added to the variance, to avoid a zero divisor",
    1e-5,
    "finite and not negative",
    lambda eps: 0 <= eps < math.inf,
)
_EPS_OF_SQUARES: Final = Parameter(
    "eps",
    "Added to the mean of squares, to avoid a zero divisor",
    _EPS.default,
    _EPS.text,
    _EPS.test,
)
_REVERSE: Final = Parameter(
    "reverse",
    "Whether to go from the last element to the first",
    False,
    "True or False",
    lambda reverse: reverse in (0, 1),
    keyword_only=True,
)

# --- the table ------------------------------------------------------------------------------------

# fmt: off
_ROWS: Final = (
    _reduction("sum", "Sum",
        f="sum(x)",                           df=("1",),
        values=lambda x: np.sum(x, axis=1),   slopes=lambda x: rf.constant(1.0, x),
        empty=0.0,                            max_ulp=(0.5, 0.0),
        terms="fsum(abs(v) for v in x)",      slope_terms="0",
        d2f=("0",),
        second=so.none, second_ulp=0,
        second_terms="0",
        conventions="the derivative is 1 whatever x is",
        source=_ARTICLE),

    _reduction("mean", "Arithmetic mean",
        f="sum(x)/n",                         df=("1/n",),
        values=lambda x: np.sum(x, axis=1) / x.shape[1],
        slopes=lambda x: rf.constant(1 / x.shape[1], x),
        empty=math.nan,                       max_ulp=(1.5, 1.0),
        terms="fsum(abs(v) for v in x)/n",    slope_terms="0",
        d2f=("0",),
        second=so.none, second_ulp=0,
        second_terms="0",
        conventions="the derivative is 1/n whatever x is",
        source=_ARTICLE),

    _reduction("prod", "Product",
        f="prod(x)",                          df=("prod(x[j] for j != i)",),
        values=rf.prod,                       slopes=rf.prod_slopes,
        empty=1.0,                            max_ulp=(1.0, 1.5),
        terms="n*abs(value)",                 slope_terms="n*abs(slope)",
        d2f=("sum(t[j]*prod(x[k] for k != i, j) for j != i)",),
        second=so.prod, second_ulp=2,
        second_terms="n*fsum(abs(t[j])*abs(fprod(x[k] for k in range(n) if k != i and k != j)) "
                     "for j in range(n) if j != i)",
        conventions="the derivative is the product of the other elements, whatever x[i] is; with "
                    "infinite elements the second derivative is NaN",
        source="product rule"),

    _reduction("dot", "Inner product",
        f="sum(x*y)",                         df=("y[i]", "x[i]"),
        values=lambda x, y: np.sum(x * y, axis=1),
        slopes=lambda x, y: (y, x),
        empty=0.0,                            max_ulp=(0.5, 0.0),
        terms="fsum(abs(v*w) for v, w in zip(x, y))", slope_terms="0",
        d2f=("ty[i]", "tx[i]"),
        second=so.dot, second_ulp=1,
        second_terms="0",
        conventions="the derivative with respect to one operand is the other operand",
        source=_ARTICLE),

    _reduction("norm1", "Sum of magnitudes",
        f="sum(abs(x))",                      df=("sign(x[i])",),
        values=lambda x: np.sum(np.abs(x), axis=1),
        slopes=np.sign,
        empty=0.0,                            max_ulp=(0.5, 0.0),
        terms="value",                        slope_terms="0",
        d2f=("0",),
        second=so.flat("norm1"), second_ulp=0,
        second_terms="0",
        conventions="0 at x[i] = 0",
        source=_SHEET),

    _reduction("norm2", "Euclidean norm",
        f="sqrt(sum(x**2))",                  df=("x[i]/norm2(x)",),
        values=rf.norm2,                      slopes=rf.norm2_slopes,
        empty=0.0,                            max_ulp=(2.0, 2.0),
        terms="value",                        slope_terms="abs(slope)",
        d2f=("(t[i] - u[i]*sum(u*t))/norm2(x)",),
        second=so.norm2, second_ulp=2,
        second_terms="(abs(t[i]) + abs(x[i])/value*fsum(abs(v*w) for v, w in zip(x, t))/value)"
                     "/value",
        conventions="0 at x = 0, the second derivative too; with infinite elements, NaN at these "
                    "and 0 at the others",
        source=_SHEET),

    _reduction("squared_norm2", "Sum of squares",
        f="sum(x**2)",                        df=("2*x[i]",),
        values=rf.squared_norm2,
        slopes=lambda x: 2 * x,
        empty=0.0,                            max_ulp=(1.0, 0.0),
        terms="value",                        slope_terms="0",
        d2f=("2*t[i]",),
        second=so.squared_norm2, second_ulp=1,
        second_terms="0",
        conventions="the formula holds everywhere",
        source=_SHEET),

    _reduction("norm", "p-norm",
        f="sum(abs(x)**p)**(1/p)",            df=("sign(x[i])*(abs(x[i])/norm(x, p))**(p - 1)",),
        values=rf.norm_p,                     slopes=rf.norm_p_slopes,
        empty=0.0,                            max_ulp=(4.0, 4.0),
        terms="(1 + abs(log(n)))*value",      slope_terms="p*abs(slope) if p < inf else 0",
        d2f=("(p - 1)*(v[i]**(p - 2)*t[i] - f[i]*sum(f*t))/norm(x, p)",),
        second=so.norm, second_ulp=4,
        second_terms="(p - 1)*p*(abs(x[i]/value)**(p - 2)*abs(t[i]) + abs(x[i]/value)**(p - 1)"
                     "*fsum(abs(v/value)**(p - 1)*abs(w) for v, w in zip(x, t)))/value "
                     "if 1 < p < inf else 0",
        conventions="0 at x[i] = 0; norm(x, 1) is norm1(x) and norm(x, 2) is norm2(x); "
                    "norm(x, inf) is the largest magnitude, and k ties get 1/k each; with infinite "
                    "elements and 1 < p < inf, NaN at these and 0 at the others; the second "
                    "derivative is 0 at x = 0, and for p < 2 infinite at another x[i] = 0",
        parameter=_EXPONENT,
        source=_SHEET),

    _reduction("max", "Largest element",
        f="max(x)",                           df=("1/k if x[i] = max(x) else 0",),
        values=lambda x: np.max(x, axis=1),   slopes=rf.tie_shares,
        empty=None,                           max_ulp=(0.0, 0.5),
        terms="0",                            slope_terms="0",
        d2f=("0",),
        second=so.flat("max"), second_ulp=0,
        second_terms="0",
        conventions="k equal maxima get 1/k each; a NaN makes the value and all derivatives NaN",
        source="definition; shared equally at a tie, as in maximum"),

    _reduction("min", "Smallest element",
        f="min(x)",                           df=("1/k if x[i] = min(x) else 0",),
        values=lambda x: np.min(x, axis=1),   slopes=lambda x: rf.tie_shares(-x),
        empty=None,                           max_ulp=(0.0, 0.5),
        terms="0",                            slope_terms="0",
        d2f=("0",),
        second=so.flat("min"), second_ulp=0,
        second_terms="0",
        conventions="k equal minima get 1/k each; a NaN makes the value and all derivatives NaN",
        source="definition; shared equally at a tie, as in minimum"),

    _reduction("logsumexp", "Logarithm of the sum of exponentials",
        f="log(sum(exp(x)))",                 df=("exp(x[i] - logsumexp(x))",),
        values=rf.logsumexp,                  slopes=rf.softmax,
        empty=-math.inf,                      max_ulp=(3.0, 4.0),
        terms="-expm1(max(x) - value) if abs(max(x)) < 1/2 and value - max(x) < log1p(1/16) else 1",
        slope_terms="abs(slope)",
        d2f=("p[i]*(t[i] - sum(p*t))",),
        second=so.logsumexp, second_ulp=4,
        second_terms="p[i]*(abs(t[i]) + fdot(p, map(abs, t)))",
        conventions="k elements of +inf get the derivative 1/k each; it is NaN if all elements are "
                    "-inf; the value's error is in ULP of the larger of it and the largest operand",
        weighs=True,
        source="softmax; as logaddexp"),

    _reduction("variance", "Variance",
        f="sum((x - mean(x))**2)/(n - ddof)", df=("2*(x[i] - mean(x))/(n - ddof)",),
        values=rf.variance,                   slopes=rf.variance_slopes,
        empty=math.nan,                       max_ulp=(2.0, 2.0),
        terms="4*value",
        slope_terms="fsum(abs(v - mean) for v in x)/n*2/(n - ddof)",
        d2f=("2*(t[i] - mean(t))/(n - ddof)",),
        second=so.variance, second_ulp=2,
        second_terms="(abs(t[i]) + fsum(map(abs, t))/n)*2/(n - ddof)",
        conventions="NaN if an element is infinite, because no mean exists; squares overflow or "
                    "underflow only where the result does",
        parameter=_DDOF,
        source="Chan, Golub and LeVeque 1983"),

    _map("softmax", "Exponentials divided by their sum, along an axis",
        f="exp(x)/sum(exp(x))",               df="p[i]*((i = j) - p[j])",
        value=lambda x, _: rf.softmax(x),
        vjp=lambda x, g, _: rf.softmax_product(x, g),
        jvp=lambda x, t, _: rf.softmax_product(x, t),
        max_ulp=(4.0, 6.0),
        terms="value",                        slope_terms="p[i]*(abs(g[i]) + fdot(p, map(abs, g)))",
        d2f="p[i]*(T[i]*G[i] - sum(p*T*G))",
        second=so.softmax, second_ulp=4,
        second_terms="p[i]*((abs(t[i]) + fdot(p, map(abs, t)))*(abs(g[i]) + fdot(p, map(abs, g))) "
                     "+ fsum(q*(abs(v) + fdot(p, map(abs, t)))*(abs(w) + fdot(p, map(abs, g))) "
                     "for q, v, w in zip(p, t, g)))",
        conventions="k elements of +inf have p = 1/k each; NaN if all elements are -inf",
        source="quotient rule"),

    _map("log_softmax", "Logarithm of softmax, along an axis",
        f="x - log(sum(exp(x)))",             df="(i = j) - p[j]",
        value=lambda x, _: rf.log_softmax(x),
        vjp=lambda x, g, _: rf.log_softmax_vjp(x, g),
        jvp=lambda x, t, _: rf.log_softmax_jvp(x, t),
        max_ulp=(3.0, 6.0),
        terms="-expm1(max(y)) if -max(y) < log1p(1/16) else 1",
        slope_terms="abs(g[i]) + p[i]*fsum(map(abs, g))",
        d2f="-sum(g)*p[i]*(t[i] - sum(p*t))",
        second=so.log_softmax, second_ulp=4,
        second_terms="fsum(map(abs, g))*p[i]*(abs(t[i]) + fdot(p, map(abs, t)))",
        conventions="k elements of +inf have p = 1/k each; NaN if all elements are -inf",
        hidden=-math.inf,
        source="softmax"),

    _map("layer_norm", "Elements minus their mean, divided by their deviation, along an axis",
        f="(x - mean(x))/sqrt(var(x) + eps)", df="((i = j) - 1/n - y[i]*y[j]/n)/sqrt(var(x) + eps)",
        value=rf.layer_norm,
        vjp=rf.layer_norm_product,            jvp=rf.layer_norm_product,
        max_ulp=(3.0, 6.0),
        terms="abs(value) + fsum(abs(v - mean) for v in x)/n*r",
        slope_terms="r*(abs(g[i]) + 2*fsum(map(abs, g)))",
        d2f="-r**2*(b*G[i] + a*T[i] + y[i]*(mean(T*G) + a*b*eps*r**2))",
        second=so.layer_norm, second_ulp=4,
        second_terms="2*r**2*(fsum(map(abs, t))*(abs(g[i]) + fsum(map(abs, g))) "
                     "+ fsum(map(abs, g))*(abs(t[i]) + fsum(map(abs, t))))",
        conventions="var(x) is the variance with ddof = 0, whose squares never overflow or "
                    "underflow, and r is 1/sqrt(var(x) + eps)",
        parameter=_EPS,
        source="Ba, Kiros and Hinton 2016"),

    _map("rms_norm", "Elements divided by the root of their mean square, along an axis",
        f="x/sqrt(mean(x**2) + eps)",         df="((i = j) - y[i]*y[j]/n)/sqrt(mean(x**2) + eps)",
        value=rf.rms_norm,
        vjp=rf.rms_norm_product,              jvp=rf.rms_norm_product,
        max_ulp=(3.0, 6.0),
        terms="abs(value)",
        slope_terms="r*(abs(g[i]) + 2*abs(y[i])*fsum(abs(v*w) for v, w in zip(y, g))/n)",
        d2f="-r**2*(b*G[i] + a*T[i] + y[i]*(mean(T*G) + a*b*eps*r**2))",
        second=so.rms_norm, second_ulp=4,
        second_terms="2*(fsum(map(abs, t))*(abs(g[i]) + fsum(map(abs, g))) + fsum(map(abs, g))"
                     "*(abs(t[i]) + fsum(map(abs, t))))/(fsum(v*v for v in x)/n + eps)",
        conventions="squares never overflow or underflow; with infinite elements, NaN at these and "
                    "0 at the others; NaN at x = 0 if eps = 0; r is 1/sqrt(mean(x**2) + eps)",
        parameter=_EPS_OF_SQUARES,
        source="Zhang and Sennrich 2019"),

    _scan("cumsum", "Sums of the elements up to each one, along an axis",
        f="sum(x[:i + 1])",                   df="1 if j <= i else 0",
        rules=scans.CUMSUM,
        max_ulp=(1.0, 1.0),
        terms="fsum(map(abs, x))",            slope_terms="fdot(map(abs, J), map(abs, g))",
        conventions="a running sum in order, and with it the sum of what its additions round off",
        d2f="0",
        second=so.no_curve, second_ulp=0,
        second_terms="0",
        source="definition; the vjp is the sum from the last element to the first"),

    _scan("cumprod", "Products of the elements up to each one, along an axis",
        f="prod(x[:i + 1])",                  df="prod(x[:j] + x[j + 1:i + 1]) if j <= i else 0",
        rules=scans.CUMPROD,
        max_ulp=(1.0, 1.0),
        terms="n*abs(value)",                 slope_terms="n*fdot(map(abs, J), map(abs, g))",
        conventions="neither over- nor underflows on the way; a derivative is the product of the "
                    "other elements, whatever x[j] is: nothing is divided by it",
        d2f="sum(g[k]*sum(t[j]*prod(x[l] for l <= k, l != i, j) for j <= k, j != i) for k >= i)",
        second=so.cumprod, second_ulp=2,
        second_terms="n*fsum(abs(g[k]*t[j]*fprod(x[l] for l in range(k + 1) if l != i and l != j)) "
                     "for k in range(i, n) for j in range(k + 1) if j != i)",
        source="product rule"),

    _scan("logcumsumexp", "Logarithms of sums of exponentials up to each element, along an axis",
        f="log(sum(exp(x[:i + 1])))",         df="exp(x[j] - y[i]) if j <= i else 0",
        rules=scans.LOGCUMSUMEXP,
        max_ulp=(3.0, 1.0),
        terms="max(3, n/128)",
        slope_terms="max(3, n/128)*fdot(map(abs, J), map(abs, g))",
        conventions="as logsumexp of the elements so far: k of +inf get the derivative 1/k each, "
                    "and it is NaN if all are -inf, where g or t is not 0; a running sum in order, "
                    "relative to the largest element so far; the value's error is in ULP of the "
                    "larger of it and the largest operand",
        hidden=-math.inf,
        d2f="sum(g[k]*exp(x[i] - y[k])*(t[i] - sum(exp(x[j] - y[k])*t[j] for j <= k)) for k >= i)",
        second=so.logcumsumexp, second_ulp=4,
        second_terms="fsum(abs(g[k])*exp(x[i] - y[k])*(abs(t[i]) + fsum(exp(x[j] - y[k])*abs(t[j]) "
                     "for j in range(k + 1))) for k in range(i, n))*max(3, n/128)",
        source="softmax; as logaddexp"),
)
# fmt: on

REDUCTIONS: Final[Mapping[str, ReductionRow]] = MappingProxyType({row.name: row for row in _ROWS})

"""The table of elementwise operations, and the dtype rule they share.

One row says everything the Python side knows about an operation. The NumPy twins, the native
ufuncs' docstrings, the adapters, the tests and the accuracy ledger all iterate over `OPS`, so a
new operation is one row here and one row in ``cpp/ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "OPERANDS",
    "OPS",
    "REFERENCE_MAX_ULP",
    "Domain",
    "Interval",
    "OpRow",
    "SpecialPoint",
    "as_arrays",
    "kernel_dtype",
    "result_dtype",
]

Array: TypeAlias = npt.NDArray[Any]

# What an operation's operands are called, by their number.
OPERANDS: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType({1: ("x",), 2: ("w", "x")})

# The NumPy twins inherit NumPy's own errors, so they get one loose bound for all rows.
REFERENCE_MAX_ULP: Final = 8.0


# --- dtypes ---------------------------------------------------------------------------------------

_FLOAT32: Final[np.dtype[Any]] = np.dtype(np.float32)
_FLOAT64: Final[np.dtype[Any]] = np.dtype(np.float64)

# By type character, which ignores byte order and tells a long double from a double even where both
# are 8 bytes wide.
_KERNEL_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    **dict.fromkeys("?bBhHef", _FLOAT32),
    **dict.fromkeys("iIlLqQd", _FLOAT64),
}


def kernel_dtype(op: str, name: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the dtype, float32 or float64, in which an argument of `dtype` is computed.

    Parameters
    ----------
    op, name : str
        Operation and argument, for the error message.
    dtype : dtype_like
        The argument's dtype.

    Returns
    -------
    dtype
        float32 for bool, 8- and 16-bit integers, float16 and float32; float64 for wider integers
        and float64.

    Raises
    ------
    TypeError
        For any other dtype (complex, long double, object, strings, dates).
    """
    dtype = np.dtype(dtype)
    try:
        return _KERNEL_DTYPES[dtype.char]
    except KeyError:
        raise TypeError(
            f"{op}: argument {name} has dtype {dtype}, for which there is no kernel; "
            "it takes bool, integers, float16, float32 and float64"
        ) from None


def _is_weak(operand: object) -> bool:
    """Tell whether `operand` is a Python number that adapts to the others' dtype (NEP 50)."""
    return isinstance(operand, int | float) and not isinstance(operand, bool | np.generic)


def result_dtype(op: str, *operands: object, names: Sequence[str] = ()) -> np.dtype[Any]:
    """Return the dtype, float32 or float64, in which an operation on `operands` is computed.

    Parameters
    ----------
    op : str
        The operation, for the error message.
    *operands : array_like
        Python integers and floats are weak (NEP 50); alone they give float64.
    names : sequence of str, optional
        The operands' names, for the error message; ``x``, or ``w`` and ``x``, when omitted.

    Returns
    -------
    dtype
        float64 if any operand computes in float64 (see `kernel_dtype`), else float32.

    Raises
    ------
    TypeError
        If an operand's dtype has no kernel.
    """
    kernels = {
        kernel_dtype(op, name, np.asarray(operand).dtype)
        for name, operand in zip(names or OPERANDS[len(operands)], operands, strict=True)
        if not _is_weak(operand)
    }
    return _FLOAT32 if kernels == {_FLOAT32} else _FLOAT64


def as_arrays(op: str, *operands: object, names: Sequence[str] = ()) -> tuple[Array, ...]:
    """Convert `operands` to arrays of their common `result_dtype`, copying only where needed."""
    strong = [o if _is_weak(o) else np.asarray(o) for o in operands]
    dtype = result_dtype(op, *strong, names=names)
    with np.errstate(all="ignore"):  # a weak 1e300 overflows to inf in float32
        return tuple(np.asarray(o, dtype=dtype) for o in strong)


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


class SpecialPoint(NamedTuple):
    """A point whose value and derivatives are fixed by convention or by an IEEE limit."""

    at: tuple[float, ...]
    value: float
    derivative: tuple[float, ...]


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
    domain: tuple[Domain, ...]  # one per operand
    max_ulp: tuple[float, float]  # value, each derivative; native kernels, both dtypes
    source: str
    value: Callable[..., Array]  # value(x) or value(w, x)
    derivative: Callable[..., Any]  # derivative(x) -> dx, derivative(w, x) -> (dw, dx)
    special: tuple[SpecialPoint, ...]  # golden, to the sign of zero
    kinks: tuple[str, ...]  # expressions that vanish where there is no derivative
    masked: bool  # vjp and jvp select +0 where the derivative is 0, whatever they multiply

    @property
    def nin(self) -> int:
        """Number of operands."""
        return len(self.domain)

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        return OPERANDS[self.nin]

    @property
    def domain_text(self) -> str:
        """The domain for people, such as ``w real, x != 0``."""
        return ", ".join(
            f"{operand} {domain.text}"
            for operand, domain in zip(self.operands, self.domain, strict=True)
        )


def _special(text: str) -> tuple[SpecialPoint, ...]:
    """Parse ``point -> value, derivatives; ...``; several operands are separated by blanks."""
    points = []
    for entry in filter(str.strip, text.split(";")):
        at, images = entry.split("->")
        value, derivative = images.split(",")
        points.append(
            SpecialPoint(
                tuple(map(float, at.split())),
                float(value),
                tuple(map(float, derivative.split())),
            )
        )
    return tuple(points)


_INF = float("inf")
_REAL = Domain("real", (Interval(-_INF, _INF),))
_POSITIVE = Domain("> 0", (Interval(0.0, _INF),))
_NONNEGATIVE = Domain(">= 0", (Interval(0.0, _INF, closed=True),))
_NONZERO = Domain("!= 0", (Interval(-_INF, 0.0), Interval(0.0, _INF)))


def _unary(
    name: str,
    summary: str,
    *,
    f: str,
    df: str,
    value: Callable[[Array], Array],
    derivative: Callable[[Array], Array],
    max_ulp: tuple[float, float],
    source: str,
    domain: Domain = _REAL,
    special: str = "",
    kinks: tuple[str, ...] = (),
    masked: bool = False,
) -> OpRow:
    return OpRow(
        name=name,
        summary=summary,
        formula=f,
        derivative_formula=(df,),
        domain=(domain,),
        max_ulp=max_ulp,
        source=source,
        value=value,
        derivative=derivative,
        special=_special(special + "; nan -> nan, nan"),  # no unary operation forgets a NaN
        kinks=kinks,
        masked=masked,
    )


def _binary(
    name: str,
    summary: str,
    *,
    f: str,
    df: tuple[str, str],
    value: Callable[[Array, Array], Array],
    derivative: Callable[[Array, Array], tuple[Array, Array]],
    max_ulp: tuple[float, float],
    source: str,
    domain: tuple[Domain, Domain] = (_REAL, _REAL),
    special: str = "",
    kinks: tuple[str, ...] = (),
    masked: bool = False,
) -> OpRow:
    return OpRow(
        name=name,
        summary=summary,
        formula=f,
        derivative_formula=df,
        domain=domain,
        max_ulp=max_ulp,
        source=source,
        value=value,
        derivative=derivative,
        special=_special(special),
        kinks=kinks,
        masked=masked,
    )


# --- NumPy formulas too long for a lambda ---------------------------------------------------------
# Float32 or float64 in, the same dtype out, always a new array; the caller silences warnings and
# broadcasts binary operands against each other.


def _constant(c: float, x: Array) -> Array:
    """Return `c` wherever `x` is a number."""
    return np.where(np.isnan(x), x, x.dtype.type(c))


def _reciprocal_of_positive(x: Array) -> Array:
    """Return 1/x with +inf at both zeros: only the right-hand limit lies in the domain."""
    return np.where(x < 0, x.dtype.type(np.nan), 1 / np.abs(x))


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    value: Array = np.where(x < 0, e, np.ones_like(e)) / (1 + e)
    return value


def _sigmoid_slope(x: Array) -> Array:
    # s (1 - s) loses all digits in the right tail.
    e = np.exp(-np.abs(x))
    slope: Array = e / np.square(1 + e)
    return slope


def _sech_squared(x: Array) -> Array:
    # 1 - tanh(x)**2 loses all digits in both tails.
    e = np.exp(-2 * np.abs(x))
    slope: Array = 4 * e / np.square(1 + e)
    return slope


def _divide_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    # On significands: w / x may underflow, and x * x overflow, where w / x^2 does neither.
    w_part, w_exponent = np.frexp(w)
    x_part, x_exponent = np.frexp(x)
    quotient = w_part / x_part / x_part
    return 1 / x, -np.ldexp(quotient, w_exponent - 2 * x_exponent)


def _maximum(w: Array, x: Array) -> Array:
    # IEEE 754 maximum: NaN wins, +0 beats -0 (w + x is +0 there, and twice w at other ties).
    return np.where(w == x, np.where(w == 0, w + x, w), np.maximum(w, x))


def _maximum_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    unordered = np.isnan(w) | np.isnan(x)
    half = w.dtype.type(0.5)
    left = np.where(unordered, w + x, (w > x) + half * (w == x))
    return left, 1 - left


# --- the table ------------------------------------------------------------------------------------
# special: point -> value, derivative; binary points and derivatives are pairs.

_ARTICLE = "Finding the Gradient of a Vector Function, element-wise operators"

# fmt: off
_ROWS: Final = (
    _unary("identity", "The operand itself",
        f="x",                                df="1",
        value=lambda x: +x,                   derivative=lambda x: _constant(1, x),
        special="-0 -> -0, 1;  inf -> inf, 1;  -inf -> -inf, 1",
        max_ulp=(0.0, 0.0),                   source=_ARTICLE),

    _unary("negative", "Negation",
        f="-x",                               df="-1",
        value=lambda x: -x,                   derivative=lambda x: _constant(-1, x),
        special="0 -> -0, -1;  -0 -> 0, -1;  inf -> -inf, -1;  -inf -> inf, -1",
        max_ulp=(0.0, 0.0),                   source="definition"),

    _unary("abs", "Absolute value",
        f="abs(x)",                           df="sign(x)",
        value=np.abs,                         derivative=np.sign,
        special="0 -> 0, 0;  -0 -> 0, 0;  inf -> inf, 1;  -inf -> inf, -1",
        kinks=("x",),
        max_ulp=(0.0, 0.0),                   source="definition; 0 at the kink is sign's value"),

    _unary("relu", "Rectified linear unit",
        f="x if x > 0 else 0",                df="1 if x > 0 else 0",
        value=lambda x: np.where(x <= 0, x.dtype.type(0), x),
        derivative=lambda x: np.where(np.isnan(x), x, x > 0),
        special="0 -> 0, 0;  -0 -> 0, 0;  inf -> inf, 1;  -inf -> 0, 0",
        kinks=("x",),                         masked=True,
        max_ulp=(0.0, 0.0),                   source=_ARTICLE + "; 0 at the kink"),

    _unary("exp", "Exponential",
        f="exp(x)",                           df="exp(x)",
        value=np.exp,                         derivative=np.exp,
        special="0 -> 1, 1;  -0 -> 1, 1;  inf -> inf, inf;  -inf -> 0, 0",
        max_ulp=(1.0, 1.0),                   source="DLMF 4.7"),

    _unary("expm1", "Exponential minus one",
        f="expm1(x)",                         df="exp(x)",
        value=np.expm1,                       derivative=np.exp,
        special="0 -> 0, 1;  -0 -> -0, 1;  inf -> inf, inf;  -inf -> -1, 0",
        max_ulp=(1.0, 1.5),                   source="DLMF 4.7"),

    _unary("log", "Natural logarithm",
        f="log(x)",                           df="1/x",
        value=np.log,                         derivative=_reciprocal_of_positive,
        domain=_POSITIVE,
        special="0 -> -inf, inf;  -0 -> -inf, inf;  1 -> 0, 1;  -1 -> nan, nan;"
                "inf -> inf, 0;  -inf -> nan, nan",
        max_ulp=(1.0, 1.0),                   source="DLMF 4.7"),

    _unary("sigmoid", "Logistic sigmoid",
        f="1/(1 + exp(-x))",                  df="exp(-x)/(1 + exp(-x))**2",
        value=_sigmoid,                       derivative=_sigmoid_slope,
        special="0 -> 0.5, 0.25;  -0 -> 0.5, 0.25;  inf -> 1, 0;  -inf -> 0, 0",
        max_ulp=(1.5, 2.5),                   source="chain rule on the quotient"),

    _unary("tanh", "Hyperbolic tangent",
        f="tanh(x)",                          df="sech(x)**2",
        value=np.tanh,                        derivative=_sech_squared,
        special="0 -> 0, 1;  -0 -> -0, 1;  inf -> 1, 0;  -inf -> -1, 0",
        max_ulp=(1.5, 2.5),                   source="DLMF 4.34"),

    _unary("sin", "Sine of an angle in radians",
        f="sin(x)",                           df="cos(x)",
        value=np.sin,                         derivative=np.cos,
        special="0 -> 0, 1;  -0 -> -0, 1;  inf -> nan, nan;  -inf -> nan, nan",
        max_ulp=(1.0, 1.0),                   source="DLMF 4.20"),

    _unary("cos", "Cosine of an angle in radians",
        f="cos(x)",                           df="-sin(x)",
        value=np.cos,                         derivative=lambda x: -np.sin(x),
        special="0 -> 1, -0;  -0 -> 1, 0;  inf -> nan, nan;  -inf -> nan, nan",
        max_ulp=(1.0, 1.0),                   source="DLMF 4.20"),

    _unary("square", "Square",
        f="x*x",                              df="2*x",
        value=np.square,                      derivative=lambda x: x + x,
        special="0 -> 0, 0;  -0 -> 0, -0;  inf -> inf, inf;  -inf -> inf, -inf",
        max_ulp=(0.5, 0.0),                   source="power rule"),

    _unary("sqrt", "Square root",
        f="sqrt(x)",                          df="1/(2*sqrt(x))",
        value=np.sqrt,                        derivative=lambda x: 0.5 / np.abs(np.sqrt(x)),
        domain=_NONNEGATIVE,
        special="0 -> 0, inf;  -0 -> -0, inf;  4 -> 2, 0.25;  -1 -> nan, nan;"
                "inf -> inf, 0;  -inf -> nan, nan",
        max_ulp=(0.5, 1.0),                   source="power rule"),

    _binary("add", "Sum",
        f="w + x",                            df=("1", "1"),
        value=np.add,                         derivative=lambda w, x: (np.ones_like(w),
                                                                       np.ones_like(x)),
        special="-0 -0 -> -0, 1 1;  0 -0 -> 0, 1 1;  inf -inf -> nan, 1 1;  nan 1 -> nan, 1 1",
        max_ulp=(0.5, 0.0),                   source=_ARTICLE),

    _binary("subtract", "Difference",
        f="w - x",                            df=("1", "-1"),
        value=np.subtract,                    derivative=lambda w, x: (np.ones_like(w),
                                                                       -np.ones_like(x)),
        special="0 0 -> 0, 1 -1;  -0 0 -> -0, 1 -1;  inf inf -> nan, 1 -1;  nan 1 -> nan, 1 -1",
        max_ulp=(0.5, 0.0),                   source=_ARTICLE),

    _binary("multiply", "Product",
        f="w*x",                              df=("x", "w"),
        value=np.multiply,                    derivative=lambda w, x: (+x, +w),
        special="0 -2 -> -0, -2 0;  0 inf -> nan, inf 0;  inf -1 -> -inf, -1 inf;"
                "nan 1 -> nan, 1 nan",
        max_ulp=(0.5, 0.0),                   source=_ARTICLE),

    _binary("divide", "Quotient",
        f="w/x",                              df=("1/x", "-w/x**2"),
        value=np.divide,                      derivative=_divide_slopes,
        domain=(_REAL, _NONZERO),
        special="1 0 -> inf, inf -inf;  1 -0 -> -inf, -inf -inf;  -1 0 -> -inf, inf inf;"
                "0 0 -> nan, inf nan;  0 2 -> 0, 0.5 -0;  1 inf -> 0, 0 -0;  1 -inf -> -0, -0 -0;"
                "inf inf -> nan, 0 nan;  inf 2 -> inf, 0.5 -inf;  nan 1 -> nan, 1 nan;"
                "1 nan -> nan, nan nan",
        max_ulp=(0.5, 1.0),                   source=_ARTICLE),

    _binary("greater", "One where w > x, zero elsewhere",
        f="1 if w > x else 0",                df=("0", "0"),
        value=lambda w, x: (w > x).astype(w.dtype),
        derivative=lambda w, x: (np.zeros_like(w), np.zeros_like(x)),
        special="0 0 -> 0, 0 0;  0 -0 -> 0, 0 0;  inf -inf -> 1, 0 0;  inf inf -> 0, 0 0;"
                "nan 1 -> 0, 0 0;  1 nan -> 0, 0 0;  nan nan -> 0, 0 0",
        kinks=("w - x",),                     masked=True,
        max_ulp=(0.0, 0.0),                   source=_ARTICLE),

    _binary("maximum", "The larger operand",
        f="w if w > x else x",                df=("1 if w > x else 0", "0 if w > x else 1"),
        value=_maximum,                       derivative=_maximum_slopes,
        special="0 0 -> 0, 0.5 0.5;  0 -0 -> 0, 0.5 0.5;  -0 0 -> 0, 0.5 0.5;"
                "-0 -0 -> -0, 0.5 0.5;  3 3 -> 3, 0.5 0.5;  inf inf -> inf, 0.5 0.5;"
                "inf -inf -> inf, 1 0;  -inf 1 -> 1, 0 1;  nan 1 -> nan, nan nan;"
                "1 nan -> nan, nan nan;  nan nan -> nan, nan nan",
        kinks=("w - x",),
        max_ulp=(0.0, 0.0),                   source="definition; a tie is shared"),
)
# fmt: on

OPS: Final[Mapping[str, OpRow]] = MappingProxyType({row.name: row for row in _ROWS})

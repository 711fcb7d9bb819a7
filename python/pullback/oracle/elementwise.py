"""Values and derivatives of elementwise operations that are too long for a lambda in the table.

They take arrays of float32 or float64 and return new arrays of the same dtype. Binary operands have
one shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` computed in float64 and rounded to the operands' dtype."""

    def rounded(*operands: Array) -> Any:
        dtype = operands[0].dtype
        results = function(*(operand.astype(np.float64, copy=False) for operand in operands))
        if isinstance(results, tuple):
            return tuple(result.astype(dtype, copy=False) for result in results)
        return results.astype(dtype, copy=False)

    return rounded


# --- pieces ---------------------------------------------------------------------------------------


def constant(c: float, x: Array) -> Array:
    """Return `c` wherever `x` is a number."""
    return np.where(np.isnan(x), x, x.dtype.type(c))


def inside(x: Array, lower: float, upper: float, c: float) -> Array:
    """Return `c` between the ends, 0 at and beyond them."""
    within = (x > lower) & (x < upper)
    return np.where(np.isnan(x), x, np.where(within, x.dtype.type(c), x.dtype.type(0)))


def comparison(compare: np.ufunc) -> Callable[[Array, Array], Array]:
    """Return a comparison whose results are numbers."""
    return lambda w, x: compare(w, x).astype(w.dtype)


# --- logarithms, roots, inverse functions ---------------------------------------------------------


def over_positive(c: float, x: Array) -> Any:
    """Return c/x with +inf at both zeros: only the right-hand limit lies in the domain."""
    return np.where(x < 0, x.dtype.type(np.nan), x.dtype.type(c) / np.abs(x))


@in_float64
def log2_slope(x: Array) -> Any:
    return over_positive(1.4426950408889634, x)


@in_float64
def log10_slope(x: Array) -> Any:
    return over_positive(0.4342944819032518, x)


@in_float64
def log1p_slope(x: Array) -> Any:
    return over_positive(1, 1 + x)


@in_float64
def exp2_slope(x: Array) -> Array:
    # 2**x may overflow where log(2) times it does not; a negative x - 1 would round.
    positive = x > 0
    return np.exp2(np.where(positive, x - 1, x)) * np.where(positive, 2 * LOG_2, LOG_2)


@in_float64
def cbrt_slope(x: Array) -> Array:
    root = np.cbrt(x)  # dividing it by x keeps its error from doubling
    return np.where((x == 0) | np.isinf(x), 1 / np.square(root), root / x / 3)


@in_float64
def tan_slope(x: Array) -> Array:
    return 1 / np.square(np.cos(x))


@in_float64
def arcsin_slope(x: Array) -> Any:
    return 1 / np.sqrt((1 - x) * (1 + x))


@in_float64
def arctan_slope(x: Array) -> Array:
    # The square overflows before its reciprocal underflows.
    return np.where(np.abs(x) > 1e100, np.square(1 / x), 1 / (1 + np.square(x)))


@in_float64
def arcsinh_slope(x: Array) -> Array:
    return 1 / np.hypot(1, x)


@in_float64
def arccosh_slope(x: Array) -> Any:
    return 1 / (np.sqrt(x - 1) * np.sqrt(x + 1))


@in_float64
def arctanh_slope(x: Array) -> Array:
    return np.where(np.abs(x) > 1, np.nan, 1 / ((1 - x) * (1 + x)))


@in_float64
def logit(x: Array) -> Any:
    far = np.log(x / (1 - x))
    near = np.clip(x, 0.25, 0.75)
    return np.where(np.abs(x - 0.5) < 0.25, np.log1p((2 * near - 1) / (1 - near)), far)


@in_float64
def logit_slope(x: Array) -> Any:
    return np.where((x < 0) | (x > 1), np.nan, 1 / (np.abs(x) * (1 - x)))


@in_float64
def logit_curve(x: Array) -> Any:
    product = np.abs(x) * (1 - x)
    return np.where((x < 0) | (x > 1), np.nan, (2 * x - 1) / product / product)


@in_float64
def log1mexp(x: Array) -> Any:
    return np.where(x < 0.7, np.log(-np.expm1(-x)), np.log1p(-np.exp(-x)))


@in_float64
def log1mexp_slope(x: Array) -> Any:
    return np.where(x < 0, np.nan, np.exp(-x) / -np.expm1(-np.abs(x)))


@in_float64
def log1mexp_curve(x: Array) -> Any:
    slope = log1mexp_slope(x)
    return -(slope * (1 + slope))


# --- sinc -----------------------------------------------------------------------------------------


def _of_half_turns(x: Array) -> tuple[Array, Array]:
    """Return sin(pi*x) and cos(pi*x)."""
    turn = np.where(np.abs(x) < 2.0**53, np.mod(x, 2), 0)
    quadrant = np.rint(2 * turn)
    rest = np.pi * (turn - 0.5 * quadrant)
    sine, cosine, odd = np.sin(rest), np.cos(rest), np.mod(quadrant, 2) == 1
    sine, cosine = np.where(odd, cosine, sine), np.where(odd, -sine, cosine)
    back = np.mod(quadrant, 4) >= 2
    return np.where(back, -sine, sine), np.where(back, -cosine, cosine)


@in_float64
def sinc(x: Array) -> Any:
    size = np.abs(x)
    return np.where(size < 1e-9, 1, _of_half_turns(size)[0] / (np.pi * size)) + 0.0  # no -0


@in_float64
def sinc_slope(x: Array) -> Any:
    size = np.abs(x)
    far = (_of_half_turns(size)[1] - sinc(x)) / size
    near = size * horner(_SINC_SLOPE, np.square(np.minimum(size, 0.5)))
    return np.copysign(1, x) * np.where(size <= 0.5, near, far)


@in_float64
def sinc_curve(x: Array) -> Any:
    far = -(np.pi**2 * sinc(x) + 2 * sinc_slope(x) / x)
    near = horner(_SINC_CURVE, np.square(np.clip(x, -0.5, 0.5)))
    return np.where(np.abs(x) <= 0.5, near, far)


# --- the logistic and its kin ---------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    value: Array = np.where(x < 0, e, np.ones_like(e)) / (1 + e)
    return value


def sigmoid_slope(x: Array) -> Array:
    # s (1 - s) loses all digits in the right tail.
    e = np.exp(-np.abs(x))
    slope: Array = e / np.square(1 + e)
    return slope


def sech_squared(x: Array) -> Array:
    # 1 - tanh(x)**2 loses all digits in both tails.
    e = np.exp(-2 * np.abs(x))
    slope: Array = 4 * e / np.square(1 + e)
    return slope


@in_float64
def log_sigmoid(x: Array) -> Array:
    return -(np.maximum(-x, 0) + np.log1p(np.exp(-np.abs(x))))


@in_float64
def softplus(x: Array) -> Any:
    return -log_sigmoid(-x)


def softsign(x: Array) -> Array:
    return np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x)))


# --- the error function and its kin ---------------------------------------------------------------
# Coefficients: Chebyshev interpolants, from 60-digit arithmetic, of what each comment says.


def horner(coefficients: tuple[float, ...], x: Array) -> Array:
    result: Any = coefficients[-1]
    for c in coefficients[-2::-1]:
        result = result * x + c
    return np.asarray(result)


def _halves(x: Any) -> tuple[Any, Any]:
    """Split numbers below 1e300 into two of half the precision (Veltkamp)."""
    scaled = 134217729.0 * x
    high = scaled - (scaled - x)
    return high, x - high


def _times(x: Any, y: Any) -> tuple[Any, Any]:
    """Return x*y as an unevaluated sum of two numbers (Dekker), away from the ends of the range."""
    product = x * y
    (x_high, x_low), (y_high, y_low) = _halves(x), _halves(y)
    rest = ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low
    return product, rest


def sum_error(x: Any, y: Any, total: Any) -> Any:
    """Return x + y - total for total = fl(x + y) (Knuth)."""
    y_part = total - x
    return (x - (total - y_part)) + (y - y_part)


def _gaussian(x: Array, scale: float) -> Any:
    """Return exp(-scale*x*x), with x*x to twice the precision; scale is a power of two."""
    x = np.clip(x, -40, 40)
    square, rest = _times(x, x)
    return np.exp(-scale * square) * (1 - scale * rest)


def _small_erf(x: Array) -> Array:
    """Return erf(x) for |x| <= 1."""
    return x * horner(_ERF, np.square(x))


def _erfcx(x: Array) -> Any:
    """Return exp(x*x)*erfc(x) for x >= 0.5."""
    return horner(_ERFCX, 1 - 6 / (x + 3)) / (1 + 2 * x)


@in_float64
def erf(x: Array) -> Array:
    size = np.abs(x)
    large = np.maximum(size, 0.5)
    return np.where(
        size < 0.8, _small_erf(x), np.sign(x) * (1 - _gaussian(large, 1) * _erfcx(large))
    )


@in_float64
def erfc(x: Array) -> Array:
    size = np.maximum(np.abs(x), 0.5)
    tail = _gaussian(size, 1) * _erfcx(size)
    return np.where(x > 0.5, tail, np.where(x < -0.8, 2 - tail, 1 - _small_erf(x)))


@in_float64
def erf_slope(x: Array) -> Any:
    return _ERF[0] * _gaussian(x, 1)


@in_float64
def gelu(x: Array) -> Array:
    size = np.maximum(np.abs(x), 0.7)
    tail = _gaussian(size, 0.5) * (0.5 * size * _erfcx(_ROOT_HALF * size))
    tail = np.where(np.isinf(x), 0, tail)
    middle = x * (0.5 + 0.5 * _small_erf(_ROOT_HALF * x))
    return np.where(x < -0.7, -tail, np.where(x > 1, np.maximum(x, 0) - tail, middle))


@in_float64
def gelu_slope(x: Array) -> Array:
    # In the tails on either side of the middle, phi(x) times x + (Phi/phi)(x), or one less that.
    size = np.maximum(np.abs(x), 0.7)
    root = _gaussian(size, 0.25)  # its square may be subnormal before x times it is
    finite = np.minimum(size, 1e3)
    factor = _ROOT_HALF_PI_RECIPROCAL * finite - 0.5 * _erfcx(_ROOT_HALF * finite)
    tail = root * factor * root
    middle = (
        0.5 + 0.5 * _small_erf(_ROOT_HALF * x) + _ROOT_HALF_PI_RECIPROCAL * x * _gaussian(x, 0.5)
    )
    slope = np.where(x < -0.7, -tail, np.where(x > 1, 1 + tail, middle))
    return _by_root(_GELU_ROOT, _GELU_QUOTIENT, x, slope)


def _times_gaussian(factor: Any, x: Array) -> Any:
    """Return factor*exp(-x*x/2), whose exponential may be subnormal before the product is."""
    root = _gaussian(x, 0.25)
    return np.where(np.abs(x) > 37, root * factor * root, factor * _gaussian(x, 0.5))


@in_float64
def ndtr(x: Array) -> Any:
    size = np.maximum(np.abs(x), 0.7)
    tail = _times_gaussian(0.5 * _erfcx(_ROOT_HALF * size), size)
    middle = 0.5 + 0.5 * _small_erf(_ROOT_HALF * np.clip(x, -0.7, 0.7))
    return np.where(x < -0.7, tail, np.where(x > 0.7, 1 - tail, middle))


@in_float64
def ndtr_slope(x: Array) -> Any:
    return _ROOT_HALF_PI_RECIPROCAL * _gaussian(x, 0.5)


@in_float64
def ndtr_curve(x: Array) -> Any:
    return _times_gaussian(-_ROOT_HALF_PI_RECIPROCAL * np.clip(x, -40, 40), x)


@in_float64
def log_ndtr(x: Array) -> Any:
    size = np.maximum(-x, 0.7)
    left = np.log(0.5 * _erfcx(_ROOT_HALF * size)) - 0.5 * size * size
    right = np.where(x < 0.7, np.log(ndtr(np.maximum(x, -0.7))), np.log1p(-ndtr(-x)))
    return np.where(x < -0.7, left, right)


@in_float64
def log_ndtr_slope(x: Array) -> Any:
    left = 2 * _ROOT_HALF_PI_RECIPROCAL / _erfcx(_ROOT_HALF * np.maximum(-x, 0.7))
    return np.where(x < -0.7, left, ndtr_slope(x) / ndtr(np.maximum(x, -0.7)))


@in_float64
def log_ndtr_curve(x: Array) -> Any:
    # h (h - t), with the hazard rate h at t = -x, cancels.
    left = -horner(_HAZARD_CURVE, 1 - 6 / (np.maximum(-x, 0) + 3))
    slope = log_ndtr_slope(np.maximum(x, 0))
    right = np.where(x > 10, ndtr_curve(x), -slope * (np.clip(x, 0, 10) + slope))
    return np.where(x < 0, left, right)


def _erfcinv(q: Array) -> Array:
    """Return t with erfc(t) = q in (0, 0.45]: a rational guess and Halley's steps on log(erfc)."""
    log = np.log(q)
    s = np.sqrt(2 * (LOG_2 - log))
    t = s - (2.515517 + s * (0.802853 + s * 0.010328)) / (
        1 + s * (1.432788 + s * (0.189269 + s * 0.001308))
    )
    t = _ROOT_HALF * t
    for _ in range(2):
        scaled = _erfcx(t)
        hazard = _ERF[0] / scaled
        step = (np.log(scaled) - log - t * t) / hazard
        t = t + step * (1 - (0.5 * hazard - t) * step)
    return np.asarray(t)


def _small_erfinv(x: Array) -> Array:
    """Return erf's inverse for |x| <= 0.55, by Halley's steps."""
    t = x * (0.886226925452758 + 0.232 * x * x)
    for _ in range(3):
        step = (_small_erf(t) - x) / (_ERF[0] * np.exp(-t * t))
        t = t - step / (1 + t * step)
    return np.asarray(t)


def _inverse(x: Array, tail: Array) -> tuple[Any, Any]:
    """Return erf's inverse and exp of its square, by the size of `x`, or by tail = 1 - |x|."""
    central = np.abs(x) <= 0.55
    middle = _small_erfinv(np.where(central, x, 0))
    outer = _erfcinv(np.where(central, 0.25, tail))
    value = np.where(central, middle, np.copysign(outer, x))
    # Where erfc(t) is known, it tells more of exp(-t*t) than t.
    scale = np.where(central, np.exp(middle * middle), _erfcx(outer) / tail)
    outside = ~(tail >= 0)
    value = np.where(tail == 0, np.copysign(np.inf, x), np.where(outside, np.nan, value))
    return value, np.where(tail == 0, np.inf, np.where(outside, np.nan, scale))


@in_float64
def erfinv(x: Array) -> Any:
    value, _ = _inverse(x, 1 - np.abs(x))
    return value


@in_float64
def erfinv_slope(x: Array) -> Any:
    _, scale = _inverse(x, 1 - np.abs(x))
    return _HALF_ROOT_PI * scale


@in_float64
def erfinv_curve(x: Array) -> Any:
    value, scale = _inverse(x, 1 - np.abs(x))
    slope = _HALF_ROOT_PI * scale
    return 2 * value * slope * slope


@in_float64
def ndtri(x: Array) -> Any:
    value, _ = _inverse(2 * x - 1, 2 * np.minimum(x, 1 - x))
    return _ROOT_2 * value


@in_float64
def ndtri_slope(x: Array) -> Any:
    _, scale = _inverse(2 * x - 1, 2 * np.minimum(x, 1 - x))
    return _ROOT_2 * _ROOT_PI * scale


@in_float64
def ndtri_curve(x: Array) -> Any:
    slope = ndtri_slope(x)
    return ndtri(x) * slope * slope


def _by_root(
    root: tuple[float, float], quotient: tuple[float, ...], x: Array, slope: Array
) -> Array:
    """Replace `slope` around its root by (x - root) times a polynomial, for relative accuracy."""
    offset = np.clip(x - root[0], -0.25, 0.25)
    factored = (offset - root[1]) * horner(quotient, offset)
    return np.where(np.abs(offset) < 0.25, factored, slope)


@in_float64
def silu(x: Array) -> Any:
    # In the tail exp(x) is subnormal before x times it is.
    root = np.exp(-0.5 * np.abs(x))
    finite = np.maximum(x, -1e4)
    weight = np.where(x < 0, root, 1)
    return finite * weight * weight / (1 + root * root)


@in_float64
def silu_slope(x: Array) -> Array:
    finite = np.clip(x, -1e4, 1e4)
    root = np.exp(-0.5 * np.abs(x))
    e = root * root
    left = root * (1 + finite + e) * root
    right = 1 + e * (1 + finite)
    slope = np.where(x < 0, left, right) / np.square(1 + e)
    return _by_root(_SILU_ROOT, _SILU_QUOTIENT, x, slope)


@in_float64
def mish(x: Array) -> Any:
    root = np.exp(-0.5 * np.abs(x))
    e = root * root
    left = np.maximum(x, -1e4) * root * (e + 2) * root / (e * (e + 2) + 2)
    right = x * (1 + 2 * e) / (1 + 2 * e * (1 + e))
    return np.where(x < 0, left, right)


@in_float64
def mish_slope(x: Array) -> Array:
    finite = np.clip(x, -1e4, 1e4)
    root = np.exp(-0.5 * np.abs(x))
    e = root * root
    left = root * (4 + 4 * finite + e * (6 + 4 * finite + e * (4 + e))) * root
    left = left / np.square(2 + e * (2 + e))
    right = 1 + e * (4 + e * (6 + 4 * finite + e * (4 + 4 * finite)))
    right = right / np.square(1 + 2 * e * (1 + e))
    slope = np.where(x < 0, left, right)
    return _by_root(_MISH_ROOT, _MISH_QUOTIENT, x, slope)


@in_float64
def gelu_tanh(x: Array) -> Any:
    root, _ = _gelu_tanh_exponential(x)
    finite = np.maximum(x, -40)
    weight = np.where(x < 0, root, 1)
    return finite * weight * weight / (1 + root * root)


@in_float64
def gelu_tanh_slope(x: Array) -> Array:
    root, scaled = _gelu_tanh_exponential(x)
    e = root * root
    left = root * (1 + scaled + e) * root
    right = 1 + e * (1 + scaled)
    slope = np.where(x < 0, left, right) / np.square(1 + e)
    return _by_root(_GELU_TANH_ROOT, _GELU_TANH_QUOTIENT, x, slope)


def _gelu_tanh_exponential(x: Array) -> tuple[Array, Array]:
    """Return exp(-|z|/2) and x dz/dx for z = sqrt(8/pi) (x + 0.044715 x**3)."""
    x = np.clip(x, -40, 40)
    square, rest = _times(x, x)
    # z = x (c + c a x^2), in twofold precision where rounding the exponent would show
    cubic, cubic_rest = _times(_CUBIC, square)
    cubic_rest = cubic_rest + _CUBIC_REST * square + _CUBIC * rest
    factor = _LINEAR + cubic
    factor_rest = cubic_rest + _LINEAR_REST + sum_error(_LINEAR, cubic, factor)
    z, z_rest = _times(factor, x)
    z_rest = z_rest + factor_rest * x
    root = np.exp(-0.5 * np.abs(z)) * (1 - 0.5 * np.copysign(1, x) * z_rest)
    return root, x * (_LINEAR + 3 * cubic)


@in_float64
def selu(x: Array) -> Array:
    return np.where(x > 0, _SELU_SCALE * x, _SELU_SCALE_ALPHA * np.expm1(x))


@in_float64
def selu_slope(x: Array) -> Array:
    return np.where(x > 0, _SELU_SCALE, _SELU_SCALE_ALPHA * np.exp(x))


LOG_2: Final = 0.6931471805599453
_LOG_2_SQUARE: Final = 0.48045301391820144
_LOG_2_HIGH: Final = 0.6931471803691238  # its first 32 bits
_LOG_2_LOW: Final = 1.9082149292705877e-10  # the others
_THIRD: Final = 0.3333333333333333
_THIRD_REST: Final = 1.850371707708594e-17
_ATANH: Final = tuple(1 / k for k in range(5, 29, 2))
_SELU_SCALE: Final = 1.0507009873554805
_SELU_SCALE_ALPHA: Final = 1.7580993408473768
_LINEAR: Final = 1.5957691216057308
_LINEAR_REST: Final = -9.96930880911092e-17
_CUBIC: Final = 0.07135481627260025
_CUBIC_REST: Final = -6.175149918155315e-19
_ROOT_HALF: Final = 0.7071067811865476
_ROOT_HALF_PI_RECIPROCAL: Final = 0.3989422804014327
_ROOT_2: Final = 1.4142135623730951
_ROOT_PI: Final = 1.7724538509055159
_HALF_ROOT_PI: Final = 0.886226925452758
_SINC_SLOPE: Final = tuple(
    2 * k * (-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k + 1) for k in range(1, 15)
)
_SINC_CURVE: Final = tuple((2 * k + 1) * c for k, c in enumerate(_SINC_SLOPE))


_ERF: Final = (
    1.1283791670955126,
    -0.37612638903183754,
    0.1128379167095512,
    -0.02686617064512984,
    0.0052239776254232985,
    -0.000854832702193483,
    0.00012055332902888734,
    -1.4925647567519298e-05,
    1.6462045441467787e-06,
    -1.636464215815949e-07,
    1.4792401209333676e-08,
    -1.2164560056878832e-09,
    8.70904512770522e-11,
    -4.230945822299619e-12,
)
_ERFCX: Final = (
    1.2530080582697296,
    -0.1356211061245812,
    -0.04756229435345113,
    0.12964515870276463,
    -0.11927366341527468,
    0.06830802734382649,
    -0.02377051491972935,
    0.0025293918188247794,
    0.001888690375555504,
    -0.0007798323014462081,
    -0.00010515993650972467,
    0.00012509955426271097,
    4.950173560521791e-06,
    -2.0101508706745127e-05,
    -7.336864260667093e-07,
    3.4754123465320586e-06,
    3.611132650609675e-07,
    -6.230702404672985e-07,
    -1.464210883040546e-07,
    1.106799642667226e-07,
    4.4047978754748137e-08,
    -2.030202389552977e-08,
    -7.76388791916087e-09,
    3.4067993475212194e-09,
)
_HAZARD_CURVE: Final = (
    0.9294408132147319,
    0.18882403698505523,
    -0.15192581085233764,
    -0.003843112171575036,
    0.05690735187182141,
    -0.00495745999009106,
    -0.022748873794556,
    0.0019110234646713634,
    0.009340224645011492,
    2.7327799589407866e-06,
    -0.003726552993951065,
    -0.0005196414114869669,
    0.0013555724203508958,
    0.0004417959411860899,
    -0.00041453775323213176,
    -0.00024687047756602443,
    9.054870418489895e-05,
    0.00010478713357224308,
    -4.928187353158265e-06,
    -3.4177884538839975e-05,
    -6.61994380793023e-06,
    8.181983039759678e-06,
    3.5377537283937307e-06,
    -1.2768736196956173e-06,
    -9.844326991684033e-07,
    9.292969202449288e-08,
    1.5672620404275105e-07,
    1.4079113175458031e-09,
    -1.1194305245044493e-08,
)
_SILU_ROOT: Final = (-1.2784645427610737, -1.0946994183093437e-16)
_SILU_QUOTIENT: Final = (
    0.2178117057198001,
    0.1466487969969469,
    0.018874814223782326,
    -0.015222655223190938,
    -0.006606589138364392,
    0.00012662741045158115,
    0.0007985218828295762,
    0.00018570722340600018,
    -4.090539682565581e-05,
    -2.9733009084814537e-05,
    -2.9411762823736305e-06,
    2.3393588685811513e-06,
    8.412796896218297e-07,
)
_GELU_ROOT: Final = (-0.7517915246935645, 1.4956759177009883e-17)
_GELU_QUOTIENT: Final = (
    0.4314939923140469,
    0.388284982990552,
    -0.018199676398671084,
    -0.1140082332972217,
    -0.014771522148244268,
    0.019421679838188394,
    0.004539228379113078,
    -0.002239538068022579,
    -0.0007448268377342126,
    0.0001863397442558643,
    8.615944180615003e-05,
    -1.1214339397850129e-05,
    -7.747689602244171e-06,
    4.3242413842163313e-07,
    5.620261880076277e-07,
)
_GELU_TANH_ROOT: Final = (-0.7524614220710163, 3.635560509207687e-17)
_GELU_TANH_QUOTIENT: Final = (
    0.4304000910248585,
    0.38751844613578895,
    -0.015782853521848023,
    -0.11394448308095899,
    -0.016619328343050542,
    0.019682309459832365,
    0.005261059254662742,
    -0.0024227318457823734,
    -0.0009274420067137209,
    0.0002639276348265153,
    0.00012425172035395327,
    -3.495598006719708e-05,
    -1.5940312688192487e-05,
    5.915026198907248e-06,
    2.3284917216990827e-06,
    -9.547514315021769e-07,
)
_MISH_ROOT: Final = (-1.1924312145154952, -4.8484829848031044e-17)
_MISH_QUOTIENT: Final = (
    0.2669479140495345,
    0.20473126408010586,
    0.04190782104360913,
    -0.02027182271668422,
    -0.015821126561542945,
    -0.0033606849270262124,
    0.001092405522653675,
    0.0009898181022128243,
    0.00025413020099215666,
    -4.196149385491648e-05,
    -5.584860797882737e-05,
    -1.7299438228259265e-05,
    1.1731382756509614e-06,
    2.912201167355088e-06,
)


# --- binary operations ----------------------------------------------------------------------------


def divide_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    # On significands: w / x may underflow, and x * x overflow, where w / x^2 does neither.
    w_part, w_exponent = np.frexp(w)
    x_part, x_exponent = np.frexp(x)
    quotient = w_part / x_part / x_part
    return 1 / x, -np.ldexp(quotient, w_exponent - 2 * x_exponent)


def maximum(w: Array, x: Array) -> Array:
    # IEEE 754 maximum: NaN wins, +0 beats -0 (w + x is +0 there, and twice w at other ties).
    return np.where(w == x, np.where(w == 0, w + x, w), np.maximum(w, x))


def maximum_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    unordered = np.isnan(w) | np.isnan(x)
    half = w.dtype.type(0.5)
    left = np.where(unordered, w + x, (w > x) + half * (w == x))
    return left, 1 - left


# Powers are made of logarithms to twice the precision: NumPy's own are 4 ULP off with AVX-512, and
# what an error of the logarithm does to them grows with the exponent.


def _log(x: Array) -> tuple[Any, Any]:
    """Return log(x) for x >= 0 as an unevaluated sum, with an error below 2**-64 of itself."""
    part, exponent = np.frexp(x)
    low = part < _ROOT_HALF
    part, exponent = np.where(low, 2 * part, part), exponent - low
    # part = (1 + s)/(1 - s), and log(part) = 2s (1 + square/3 + square**2/5 + ...).
    below, above = part - 1, part + 1
    s = below / above
    product, rest = _times(s, above)
    s_rest = ((below - product) - rest - s * sum_error(part, 1.0, above)) / above
    square, square_rest = _times(s, s)
    square_rest = square_rest + 2 * s * s_rest
    tail = square * horner(_ATANH, square)
    factor = _THIRD + tail
    factor_rest = sum_error(_THIRD, tail, factor) + _THIRD_REST
    more, more_rest = _times(square, factor)
    more_rest = more_rest + square * factor_rest + square_rest * factor
    curved, curved_rest = _times(2 * s, more)
    curved_rest = curved_rest + 2 * (s * more_rest + s_rest * more)
    binades = exponent * _LOG_2_HIGH  # exact
    first = binades + 2 * s
    total = first + curved
    rest = sum_error(binades, 2 * s, first) + sum_error(first, curved, total)
    rest = rest + (exponent * _LOG_2_LOW + 2 * s_rest + curved_rest)
    log = total + rest
    finite = (x > 0) & np.isfinite(x)
    return np.where(finite, log, np.log(x)), np.where(finite, rest - (log - total), 0)


def _raised(x: Array, x_rest: Any, log: Any, log_rest: Any) -> tuple[Any, Any]:
    """Return exp((x + x_rest)(log + log_rest)) for finite x as (s, n), which stand for s * 2**n."""
    product, rest = _times(x, log)
    product = np.where(x == 0, 0, np.clip(product, -1e5, 1e5))
    binades = np.where(np.isnan(product), 0, np.rint(product / LOG_2))
    remainder = (product - binades * _LOG_2_HIGH) - binades * _LOG_2_LOW
    rest = np.where(np.abs(product) < 1e5, rest + (x * log_rest + x_rest * log), 0)
    return np.exp(remainder + np.where(x == 0, 0, rest)), binades.astype(np.int64)


def _times_power(x: Array, power: tuple[Any, Any]) -> Any:
    """Return x * s * 2**n, rounded into the subnormals once; beyond 2**10000 it beats infinity."""
    significand, exponent = power
    infinite = np.isinf(x)
    part, x_exponent = np.frexp(np.where(infinite, np.sign(x), x))
    return np.ldexp(significand * part, exponent + np.where(infinite, 10_000, x_exponent))


def _bounded(x: Array) -> Any:
    """Return an exponent, infinite ones as one that has the same powers of all but infinities."""
    return np.clip(x, -1e25, 1e25)


@in_float64
def power(w: Array, x: Array) -> Array:
    base = np.abs(w)
    size = np.ldexp(*_raised(_bounded(x), 0, *_log(base)))
    value = np.where(np.signbit(w) & (np.mod(x, 2) == 1), -size, size)
    fractional = np.isfinite(x) & (np.floor(x) != x)
    value = np.where((w < 0) & np.isfinite(w) & fractional, np.nan, value)
    return np.where(w == 1, 1, value)


@in_float64
def power_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    base, exponent = np.abs(w), _bounded(x)
    log = _log(base)
    less = exponent - 1
    by_base = _times_power(x, _raised(less, sum_error(exponent, -1.0, less), *log))
    by_base = np.where(x == 0, np.where(base == 0, 0, x), by_base)
    by_exponent = _times_power(log[0], _raised(exponent, 0, *log))
    by_exponent = np.where((base == 0) & (x >= 0), 0, by_exponent)
    even = np.isfinite(x) & (np.mod(x, 2) == 0)
    flip = np.signbit(w) & even & ~((x == 0) & (base == 0))
    by_base = np.where(flip, -by_base, by_base)
    undefined = np.isnan(w) | np.isnan(x) | (w < 0) & (np.isinf(x) | (np.floor(x) != x))
    nan = np.nan
    return np.where(undefined, nan, by_base), np.where(undefined | (w < 0), nan, by_exponent)


@in_float64
def hypot_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    larger = np.maximum(np.abs(w), np.abs(x))
    scale = np.where(larger > 1e300, 0.25, np.where(larger < 1e-200, 2.0**600, 1.0))
    length = np.hypot(scale * w, scale * x)

    def slope(u: Array, v: Array) -> Array:
        alone = np.isinf(u) & np.isfinite(v)
        quotient = np.where(length == 0, 0, scale * u / length)
        return np.where(alone, np.sign(u), quotient)

    return slope(w, x), slope(x, w)


@in_float64
def arctan2_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    # On significands, as a quotient by the square of the larger operand's binade.
    (w_part, w_exponent), (x_part, x_exponent) = np.frexp(w), np.frexp(x)
    exponent = np.where(np.abs(w) > np.abs(x), w_exponent, x_exponent)
    square = np.square(np.ldexp(w, -exponent)) + np.square(np.ldexp(x, -exponent))
    far = np.isinf(w) | np.isinf(x)

    def slope(u: Array, part: Array, part_exponent: Array) -> Array:
        finite = np.ldexp(part / square, part_exponent - 2 * exponent)
        return np.where(far, np.copysign(0, u), finite)

    by_w, by_x = slope(x, x_part, x_exponent), slope(-w, -w_part, w_exponent)
    unordered = np.isnan(w) | np.isnan(x)
    return np.where(unordered, np.nan, by_w), np.where(unordered, np.nan, by_x)


@in_float64
def logaddexp(w: Array, x: Array) -> Array:
    difference = np.where(w == x, 0, w - x)  # of infinities too
    return np.maximum(w, x) + np.log1p(np.exp(-np.abs(difference)))


@in_float64
def logaddexp_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    difference = w - x
    back = difference - w
    rest = (w - (difference - back)) - (x + back)
    rest = np.where(np.abs(rest) < 0.5, rest, 0)  # larger only where e vanishes
    e = np.exp(-np.abs(difference)) * (1 - np.copysign(1, difference) * rest)
    larger, smaller = 1 / (1 + e), e / (1 + e)
    tie = np.where(w == -np.inf, np.nan, 0.5)

    def slope(mine: Array, other: Array) -> Array:
        return np.where(mine == other, tie, np.where(mine > other, larger, smaller))

    return slope(w, x), slope(x, w)


@in_float64
def xlogy(w: Array, x: Array) -> Array:
    return np.where((w == 0) & ~np.isnan(x), 0, w * np.log(x))


@in_float64
def xlogy_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    origin = (w == 0) & (x == 0)
    by_w = np.where(origin, 0, np.log(x))
    by_x = np.where(origin, 0, np.where(x < 0, np.nan, w / np.abs(x)))
    return by_w, by_x


def squared_difference_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    return 2 * (w - x), 2 * (x - w)


def leaky_relu_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    by_w = np.where(np.isnan(w), w, np.where(w > 0, w.dtype.type(1), x))
    return by_w, np.where(w > 0, w.dtype.type(0), w)


@in_float64
def elu(w: Array, x: Array) -> Array:
    return np.where(w > 0, w, x * np.expm1(w))


@in_float64
def elu_slopes(w: Array, x: Array) -> tuple[Array, Array]:
    # exp(w) may be subnormal where x times it is not, and vanishes at -inf alone.
    root = np.exp(np.where(np.isinf(w), w, np.maximum(0.5 * w, -745.0)))
    by_w = np.where(np.isnan(w), w, np.where(w > 0, 1, x * root * root))
    return by_w, np.where(w > 0, 0, np.expm1(w))


# --- second derivatives ---------------------------------------------------------------------------
# All in float64: of a binary operation those by (w, w), (w, x) and (x, x).


@in_float64
def over_cube(w: Array, x: Array) -> Any:
    """Return 2*w/x**3, on significands, as `divide_slopes`."""
    w_part, w_exponent = np.frexp(w)
    x_part, x_exponent = np.frexp(x)
    return np.ldexp(2 * (w_part / x_part / x_part / x_part), w_exponent - 3 * x_exponent)


@in_float64
def divide_curves(w: Array, x: Array) -> tuple[Array, Array, Array]:
    mixed: Array = -np.square(1 / x)
    return np.zeros_like(w), mixed, over_cube(w, x)


@in_float64
def sqrt_curve(x: Array) -> Any:
    root = np.abs(np.sqrt(x))
    return -0.25 / root / np.abs(x)


@in_float64
def cbrt_curve(x: Array) -> Any:
    return -2 / 3 * cbrt_slope(x) / x


@in_float64
def exp2_curve(x: Array) -> Any:
    positive = x > 0  # as in `exp2_slope`
    return np.exp2(np.where(positive, x - 1, x)) * np.where(
        positive, 2 * _LOG_2_SQUARE, _LOG_2_SQUARE
    )


def log_curve(c: float) -> Callable[[Array], Any]:
    """Return the function -c/x**2, as `over_positive`."""
    return in_float64(lambda x: -(over_positive(c, x) / np.abs(x)))


@in_float64
def log1p_curve(x: Array) -> Any:
    return -np.square(log1p_slope(x))


@in_float64
def tan_curve(x: Array) -> Any:
    return 2 * np.sin(x) / np.cos(x) ** 3


@in_float64
def arcsin_curve(x: Array) -> Any:
    return x * arcsin_slope(x) / ((1 - x) * (1 + x))


@in_float64
def arctan_curve(x: Array) -> Any:
    finite = np.clip(x, -1e200, 1e200)
    slope = arctan_slope(finite)
    return -2 * finite * slope * slope


@in_float64
def arcsinh_curve(x: Array) -> Any:
    return _times_over_cube(x, arcsinh_slope(x), 1 + np.square(x))


@in_float64
def arccosh_curve(x: Array) -> Any:
    return _times_over_cube(x, arccosh_slope(x), (x - 1) * (x + 1))


def _times_over_cube(x: Array, slope: Array, square: Array) -> Any:
    """Return -x*slope**3 for slope = 1/sqrt(square), which may be infinite."""
    unit = np.where(np.isinf(x), np.sign(x), x * slope)
    return np.where(np.abs(x) > 1e100, -unit * slope * slope, -unit / square)


@in_float64
def arctanh_curve(x: Array) -> Any:
    slope = arctanh_slope(x)
    return 2 * x * slope * slope


def _half_exponential(x: Array) -> tuple[Any, Any]:
    """Return exp(-|x|/2) and its square: it multiplies twice what would be subnormal too early."""
    root = np.exp(-0.5 * np.abs(x))
    return root, root * root


@in_float64
def sigmoid_curve(x: Array) -> Any:
    root, e = _half_exponential(x)
    return np.copysign(1, -x) * (root * (-np.expm1(-np.abs(x)) / (1 + e) ** 3) * root)


@in_float64
def tanh_curve(x: Array) -> Any:
    root, e = _half_exponential(2 * x)
    return np.copysign(1, -x) * (root * (-8 * np.expm1(-2 * np.abs(x)) / (1 + e) ** 3) * root)


@in_float64
def softplus_curve(x: Array) -> Any:
    root, e = _half_exponential(x)
    return root / np.square(1 + e) * root


@in_float64
def softsign_curve(x: Array) -> Any:
    # Its second derivative jumps at 0.
    return np.where(x == 0, 0, -2 * np.sign(x) / (1 + np.abs(x)) / np.square(1 + np.abs(x)))


@in_float64
def erf_curve(x: Array) -> Any:
    finite = np.clip(x, -40, 40)
    root = _gaussian(finite, 0.5)
    return root * (-2 * _ERF[0] * finite) * root


@in_float64
def gelu_curve(x: Array) -> Any:
    size = np.minimum(np.abs(x), 60)
    root = _gaussian(size, 0.25)
    square, rest = _times(size, size)
    return root * (_ROOT_HALF_PI_RECIPROCAL * ((2 - square) - rest)) * root


@in_float64
def silu_curve(x: Array) -> Any:
    size = np.minimum(np.abs(x), 1e4)
    root, e = _half_exponential(size)
    return root * ((2 * (1 + e) + size * np.expm1(-size)) / (1 + e) ** 3) * root


@in_float64
def gelu_tanh_curve(x: Array) -> Any:
    root, _ = _gelu_tanh_exponential(x)
    e = root * root
    size = np.minimum(np.abs(x), 40)
    square = size * size
    slope = _LINEAR + 3 * _CUBIC * square
    n = (2 * _LINEAR + 12 * _CUBIC * square) * (1 + e) - size * slope * slope * (1 - e)
    return root * (n / (1 + e) ** 3) * root


@in_float64
def mish_curve(x: Array) -> Any:
    # With E = exp(x): 4 E (4 + 8 E + 6 E^2 + 2 E^3 + x (2 + 2 E - 3 E^2 - 2 E^3)) over
    # (2 + 2 E + E^2)^3, and the same in e = 1 / E.
    finite = np.clip(x, -1e4, 1e4)
    root, e = _half_exponential(finite)
    left = 4 + e * (8 + e * (6 + 2 * e)) + finite * (2 + e * (2 - e * (3 + 2 * e)))
    right = 2 + e * (6 + e * (8 + 4 * e)) - finite * (2 + e * (3 - e * (2 + 2 * e)))
    left = root * (4 * left / (2 + e * (2 + e)) ** 3) * root
    right = e * (4 * right / (1 + 2 * e * (1 + e)) ** 3) * e
    return np.where(x < 0, left, right)


@in_float64
def selu_curve(x: Array) -> Any:
    return np.where(x > 0, 0, selu_slope(x))


@in_float64
def power_curves(w: Array, x: Array) -> tuple[Array, Array, Array]:
    base, exponent = np.abs(w), _bounded(x)
    log = _log(base)
    less, twice_less = exponent - 1, exponent - 2
    twice_rest = sum_error(exponent, -2.0, twice_less)
    by_base = _times_power(exponent * less, _raised(twice_less, twice_rest, *log))
    by_base = np.where(base == 1, x * (x - 1), by_base)
    by_base = np.where((x == 0) | (x == 1), 0, by_base)
    # 1 + x log(w), which vanishes, as a sum
    product, rest = _times(exponent, log[0])
    total = 1 + product
    total = total + (sum_error(1.0, product, total) + rest + exponent * log[1])
    product = np.where(np.isfinite(total), total, 1 + exponent * log[0])
    mixed = _times_power(product, _raised(less, sum_error(exponent, -1.0, less), *log))
    by_exponent = _times_power(np.square(log[0]), _raised(exponent, 0, *log))
    zero, far = base == 0, np.isinf(base)
    mixed = np.where(zero & (x > 1), -0.0, np.where(zero & (x == 0), 0, mixed))
    mixed = np.where(far & (x < 1), np.copysign(0, x), mixed)
    mixed = np.where(far & (x == 0), 0, mixed)
    mixed = np.where((base == 1) & np.isinf(x), np.nan, mixed)
    by_exponent = np.where(zero & (x >= 0), 0, np.where(far & (x < 0), 0, by_exponent))
    by_exponent = np.where(base == 1, 0, by_exponent)
    odd = np.isfinite(x) & (np.mod(x, 2) == 1)
    by_base = np.where(np.signbit(w) & odd & (x != 1), -by_base, by_base)
    undefined = np.isnan(w) | np.isnan(x) | (w < 0) & (np.isinf(x) | (np.floor(x) != x))
    negative = undefined | (w < 0)
    nan = np.nan
    return (
        np.where(undefined, nan, by_base),
        np.where(negative, nan, mixed),
        np.where(negative, nan, by_exponent),
    )


def _to_unit(w: Array, x: Array) -> tuple[Any, Any, Any, Any]:
    """Return (w, x) times 2**-k, their larger one in [1/2, 1), the square of its length, and k."""
    _, exponent = np.frexp(np.maximum(np.abs(w), np.abs(x)))
    a, b = np.ldexp(w, -exponent), np.ldexp(x, -exponent)
    return a, b, a * a + b * b, exponent


@in_float64
def hypot_curves(w: Array, x: Array) -> tuple[Array, Array, Array]:
    a, b, square, exponent = _to_unit(w, x)
    cube = square * np.sqrt(square)
    origin, far = square == 0, np.isinf(w) | np.isinf(x)
    known = ~(np.isnan(w) | np.isnan(x))

    def curve(u: Any, v: Any, sign: Any) -> Any:
        # In halves, so that nothing vanishes too early.
        half = -(exponent // 2)
        product = np.ldexp(u, half) / cube * np.ldexp(v, -exponent - half)
        return np.where(far & known, np.copysign(0, sign), np.where(origin, 0, product))

    mixed = np.copysign(1, w) * np.copysign(1, -x)
    first = np.abs(a) > np.abs(b)  # the smaller one may be subnormal: it comes last
    larger, smaller = np.where(first, a, b), np.where(first, b, a)
    return curve(b, b, 1), curve(-larger, smaller, mixed), curve(a, a, 1)


@in_float64
def arctan2_curves(w: Array, x: Array) -> tuple[Array, Array, Array]:
    a, b, square, exponent = _to_unit(w, x)
    far = (np.isinf(w) | np.isinf(x)) & ~(np.isnan(w) | np.isnan(x))

    def curve(finite: Any, sign: Any) -> Any:
        return np.where(far, np.copysign(0, sign), finite)

    first = np.abs(a) > np.abs(b)
    larger, smaller = np.where(first, a, b), np.where(first, b, a)
    # What may be subnormal is raised before it rounds, anything else after, lest it overflow.
    tiny = np.abs(smaller) < 1e-150
    product = (
        2 * larger / square / square * np.where(tiny, np.ldexp(smaller, -2 * exponent), smaller)
    )
    mixed = np.where(tiny, product, np.ldexp(product, -2 * exponent))
    difference = (a - b) * (a + b) + 0.0  # no -0
    by_both = np.ldexp(difference / square / square, -2 * exponent)
    sign = np.copysign(1, w) * np.copysign(1, x)
    return (
        curve(-mixed, -sign),
        curve(by_both, np.where(np.isinf(w), 1, -1)),
        curve(mixed, sign),
    )


@in_float64
def logaddexp_curves(w: Array, x: Array) -> tuple[Array, Array, Array]:
    left, right = logaddexp_slopes(w, x)
    product = left * right
    return product, -product, product


@in_float64
def xlogy_curves(w: Array, x: Array) -> tuple[Array, Array, Array]:
    origin = (w == 0) & (x == 0)
    size = np.where(x < 0, np.nan, np.abs(x))
    mixed = np.where(origin, 0, 1 / size)
    by_x = np.where(origin, 0, divide_slopes(w, size)[1])
    return constant(0, size), mixed, by_x


def constants(w: Array, *values: float) -> tuple[Array, Array, Array]:
    """Return second derivatives that are numbers, also of NaN."""
    ww, wx, xx = (np.full_like(w, value) for value in values)
    return ww, wx, xx


def no_curves(slope: Array) -> tuple[Array, Array, Array]:
    """Return zeros, NaN where the `slope` of a linear piece is."""
    zero = constant(0, slope)
    return zero, zero, zero


def leaky_relu_curves(w: Array, x: Array) -> tuple[Array, Array, Array]:
    zero = constant(0, w)
    return zero, np.where(w > 0, zero, constant(1, w)), zero


@in_float64
def elu_curves(w: Array, x: Array) -> tuple[Array, Array, Array]:
    by_w, _ = elu_slopes(w, x)
    zero = constant(0, w)
    return np.where(w > 0, 0, by_w), np.where(w > 0, 0, np.exp(w)), zero

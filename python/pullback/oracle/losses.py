"""Losses of linear models: the formulas of the table, and their sums over the samples.

Everything computes in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.design_matrix import KernelData, Rows, blocks_of_rows, pieces
from pullback.oracle.elementwise import LOG_2, horner, sum_error
from pullback.partial import tree_sum
from pullback.samples import Job, change_of_slopes, check_rows

if TYPE_CHECKING:
    from pullback.tables.losses import LossRow

Array: TypeAlias = npt.NDArray[Any]

# --- pointwise losses: functions of a prediction z, a target y and the loss's parameter ----------


def where_number(z: Array, values: Any) -> Array:
    """Return `values` wherever `z` is a number, so that a NaN is never lost to a comparison."""
    return np.where(np.isnan(z), z, values)


def relu_mse_slope(z: Array, y: Array, _: float) -> Array:
    return np.where(z <= 0, 0, 2 * (z - y))


def logistic(z: Array, y: Array, _: float) -> Any:
    # log(1 + exp(z)) - y z, in terms of one sign.
    share, size = np.where(z > 0, 1 - y, y), np.abs(z)
    return np.where(share == 0, 0, share * size) + np.log1p(np.exp(-size))


def logistic_slope(z: Array, y: Array, _: float) -> Any:
    # sigmoid(z) - y, where 1 and y would lose the sigmoid's digits in both tails.
    e = np.exp(-np.abs(z))
    return np.where(z < 0, (1 - y) * e - y, -(y * e - (1 - y))) / (1 + e)


def poisson(z: Array, y: Array, _: float) -> Any:
    # Where the exponential overflows it decides, and a product with y = 0 is none.
    mean = np.exp(z)
    linear = np.where((y == 0) | (mean == np.inf), 0, y * z)
    return mean - where_number(z, linear)


def gamma_decay(z: Array, y: Array) -> Any:
    """Return y exp(-z), which may be in range where exp(-z) or its root is not."""
    scale = np.where(y < 1, 2.0**512, 2.0**-512)
    root = np.exp(-0.5 * np.maximum(z, -1400))
    return root * (y * scale) * (root / scale) * np.exp(-np.minimum(z + 1400, 0))


def gamma(z: Array, y: Array, _: float) -> Any:
    return np.where(z == -np.inf, np.inf, z + gamma_decay(z, y))


def huber(z: Array, y: Array, delta: float) -> Any:
    size = np.abs(z - y)
    return np.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta))


def quantile(z: Array, y: Array, q: float) -> Array:
    e = y - z
    return np.where(e > 0, q * e, (q - 1) * e + 0.0)


def quantile_slope(z: Array, y: Array, q: float) -> Array:
    e = y - z
    return where_number(z, np.where(e > 0, -q, np.where(e < 0, 1 - q, 0)))


def margin(z: Array, y: Array) -> Any:
    """Return max(0, 1 - y z)."""
    return np.maximum(0, 1 - y * z)


def _difference(z: Array, y: Array) -> tuple[Any, Any]:
    """Return z - y as an unevaluated sum of two numbers, the second 0 where it is large."""
    difference = z - y
    rest = sum_error(z, -y, difference)
    return difference, np.where(np.abs(rest) < 0.5, rest, 0)


def log_cosh(z: Array, y: Array, _: float) -> Any:
    # log1p(expm1(-e)**2 / (2 exp(-e))) for small errors: up to 4 ULP, for the square doubles
    # expm1's error.
    difference, rest = _difference(z, y)
    size = np.abs(difference)
    square = np.square(np.minimum(size, 0.7))
    small = 0.5 * square + square * square * horner(_LOG_COSH, square)
    large = (size - LOG_2) + np.log1p(np.exp(-2 * size))
    value = np.where(size < 0.7, small, large)
    return value + np.tanh(difference) * rest


def log_cosh_curvature(z: Array, y: Array, _: float) -> Any:
    # sech_squared with what rounding z - y and 1 + e takes away.
    difference, rest = _difference(z, y)
    e = np.exp(-2 * np.abs(difference))
    total = 1 + e
    lost = 2 * ((e - (total - 1)) / total + np.tanh(difference) * rest)
    return 4 * e / (total * total) * (1 - lost)


_LOG_COSH: Final = (  # (log cosh(x) - x**2/2) / x**4, of x**2 up to 1/2
    -0.08333333333333333,
    0.02222222222222088,
    -0.006746031745903565,
    0.0021869488488006905,
    -0.0007386028670856812,
    0.00025657949282476906,
    -9.098169875521842e-05,
    3.274049831096879e-05,
    -1.182844262902127e-05,
    4.119847961377826e-06,
    -1.2144843646583356e-06,
    2.1344344343217702e-07,
)


# In long double, where that is wider than double: then nothing here over- or underflows, and what a
# product rounds off is no error of its exponential.


def _in_long_double(function: Callable[..., Any]) -> Callable[[Array, Array, float], Array]:
    """Return a function of (z, y, parameter) computed in long double and rounded to float64."""

    def rounded(z: Array, y: Array, parameter: float) -> Array:
        wide = (np.asarray(a).astype(np.longdouble) for a in (z, y))
        return np.asarray(function(*wide, np.longdouble(parameter))).astype(np.float64)

    return rounded


def _exp_of(rate: Any, z: Array) -> Any:
    return np.exp(rate * z) if rate else where_number(z, 1)


def _expm1_over(rate: Any, z: Array) -> Any:
    return np.expm1(rate * z) / rate if rate else z


def _times(y: Array, values: Any) -> Any:
    """Return their product, 0 where `y` is, whatever the values."""
    return np.where(y == 0, 0, y * values)


def _sum_of_powers(first: Any, second: Any, z: Array, y: Array, u: Any, v: Any) -> Any:
    """Return their sum, which is exp((2 - power) z) (u + v y exp(-z)) where both overflow."""
    both = np.isinf(first) & np.isinf(second)
    larger = np.where(u + v * y * np.exp(-z) < 0, -np.inf, np.inf)
    return np.where(both, larger, first + second)


@_in_long_double
def tweedie(z: Array, y: Array, power: Any) -> Any:
    first, second = _expm1_over(2 - power, z), -_times(y, _expm1_over(1 - power, z))
    # Times power - 2 <= 0, which may be 0.
    return _sum_of_powers(first, second, z, y, -1, (power - 2) / (power - 1))


@_in_long_double
def tweedie_slope(z: Array, y: Array, power: Any) -> Any:
    first, second = _exp_of(2 - power, z), -_times(y, _exp_of(1 - power, z))
    return _sum_of_powers(first, second, z, y, 1, -1)


@_in_long_double
def tweedie_curvature(z: Array, y: Array, power: Any) -> Any:
    a, b = 2 - power, 1 - power
    first, second = a * _exp_of(a, z), -b * _times(y, _exp_of(b, z))
    return _sum_of_powers(first, second, z, y, a, -b)


@_in_long_double
def inverse_gaussian(z: Array, y: Array, _: Any) -> Any:
    e = np.exp(-z)
    return e * (y * e / 2 - 1)


@_in_long_double
def inverse_gaussian_slope(z: Array, y: Array, _: Any) -> Any:
    e = np.exp(-z)
    return e * (1 - y * e)


@_in_long_double
def inverse_gaussian_curvature(z: Array, y: Array, _: Any) -> Any:
    e = np.exp(-z)
    return e * (2 * y * e - 1)


@_in_long_double
def negative_binomial(z: Array, y: Array, alpha: Any) -> Any:
    # log(1 + m)/alpha + y (log(1 + m) - z) for m = alpha exp(z), without m where it is large.
    log_m = z + np.log(alpha)
    rest = np.log1p(np.exp(-np.abs(log_m)))
    first = np.where(log_m > 0, log_m, 0) + rest
    second = np.where(log_m > 0, np.log(alpha), -z) + rest
    return where_number(z, first / alpha + _times(y, second))


@_in_long_double
def negative_binomial_slope(z: Array, y: Array, alpha: Any) -> Any:
    log_m = z + np.log(alpha)
    e = np.exp(-np.abs(log_m))
    return np.where(log_m > 0, 1 / alpha - y * e, e / alpha - y) / (1 + e)


@_in_long_double
def negative_binomial_curvature(z: Array, y: Array, alpha: Any) -> Any:
    e = np.exp(-np.abs(z + np.log(alpha)))
    return (1 / alpha + y) * e / np.square(1 + e)


class _Normal(NamedTuple):
    """The normal distribution at -|z| and |z|: -log(Phi) and what its derivatives are made of."""

    share: Any  # of the tail: of the target that is less likely
    minus_logs: tuple[Any, Any]  # of the tail, and of 1 less that
    hazards: tuple[Any, Any]  # the density over each
    curvatures: tuple[Any, Any]


def _normal(z: Array, y: Array) -> _Normal:
    size = np.abs(z)
    near = np.minimum(size, 39)  # of the fit
    density_at_0 = 1 / np.sqrt(8 * np.arctan(np.longdouble(1)))
    ratio = (horner(_MILLS, 1 - 8 / (near + 4)) + horner(_MILLS_REST, 1 - 8 / (near + 4))) / (
        near + 4
    )
    gaussian = np.exp(-near * near / 2)
    tail = gaussian * ratio
    far = np.maximum(size, 39)
    hazard = np.where(
        size > 39, far + horner(_FAR_HAZARD, 1 / np.square(far)) / far, density_at_0 / ratio
    )
    rest = density_at_0 * gaussian / (1 - tail)
    return _Normal(
        np.where(z < 0, y, 1 - y),
        (size * size / 2 + np.log(hazard / density_at_0), -np.log1p(-tail)),
        (hazard, rest),
        (horner(_MILLS_CURVATURE, 1 - 8 / (size + 4)), rest * (near + rest)),
    )


def _shared(of: _Normal, both: tuple[Any, Any], sign: int) -> Any:
    return _times(of.share, both[0]) + sign * (1 - of.share) * both[1]


@_in_long_double
def probit(z: Array, y: Array, _: Any) -> Any:
    of = _normal(z, y)
    return _shared(of, of.minus_logs, 1)


@_in_long_double
def probit_slope(z: Array, y: Array, _: Any) -> Any:
    of = _normal(z, y)
    return np.where(z < 0, -1, 1) * _shared(of, of.hazards, -1)


@_in_long_double
def probit_curvature(z: Array, y: Array, _: Any) -> Any:
    of = _normal(z, y)
    return _shared(of, of.curvatures, 1)


def _bernoulli(m: Array) -> tuple[Any, Any]:
    """Return k = m/expm1(m) and m + k - 1."""
    small, large = np.minimum(m, 1), np.clip(m, 1, 1e4)
    even = np.square(small) * horner(_COTH, np.square(small))
    quotient = large / np.expm1(large)
    return (
        np.where(m <= 1, 1 - small / 2 + even, where_number(m, quotient)),
        np.where(m <= 1, small / 2 + even, where_number(m, large - 1 + quotient)),
    )


@_in_long_double
def cloglog(z: Array, y: Array, _: Any) -> Any:
    m = np.exp(z)
    with_log = np.where(
        m > 1,
        -np.log1p(-np.exp(-m)),
        np.where(z < -40, m / 2 - z, -np.log(-np.expm1(-np.minimum(m, 1)))),
    )
    return _times(1 - y, m) + _times(y, with_log)


@_in_long_double
def cloglog_slope(z: Array, y: Array, _: Any) -> Any:
    m = np.exp(z)
    return _times(1 - y, m) - y * _bernoulli(m)[0]


@_in_long_double
def cloglog_curvature(z: Array, y: Array, _: Any) -> Any:
    m = np.exp(z)
    ratio, rest = _bernoulli(m)
    return _times(1 - y, m) + y * ratio * rest


def share_of_loss(value_at_0: Array) -> Any:
    """Return a mean response p, whose negative log-likelihood at a target of 0 is -log(1 - p)."""
    return -np.expm1(-value_at_0)


def probit_link(mean: Array) -> Array:
    """Return the predictions whose mean responses these are, one by one of those that differ."""
    from statistics import NormalDist  # noqa: PLC0415  slow to import, and seldom needed

    inverse = NormalDist().inv_cdf
    values, where = np.unique(mean, return_inverse=True)
    z = [inverse(p) if 0 < p < 1 else (2 * p - 1) * np.inf for p in values.tolist()]
    return np.array(z)[where].reshape(mean.shape)


# npdf(0) times Mills' ratio R(t), times t + 4, in (t - 4)/(t + 4) for t up to 39.
_MILLS: Final = (
    0.7552851304157515,
    -0.6078966419718921,
    0.38713740074221487,
    -0.1865218579596586,
    0.060396574890918535,
    -0.007540188966684266,
    -0.0034796923669987625,
    0.0016308184569926467,
    0.0001333443079345876,
    -0.00023109493079748265,
    -1.9082286443068275e-06,
    3.5144668293779664e-05,
    7.165413379823758e-07,
    -5.920135663192463e-06,
    -6.293578299144168e-07,
    1.0215316823746677e-06,
    2.712108774438988e-07,
    -1.5503992291906076e-07,
    -8.475856578216766e-08,
    1.3466178787341257e-08,
    1.9215556426597376e-08,
    1.749662508855634e-09,
    -2.4131457067001766e-09,
    -6.687846895163777e-10,
)
_MILLS_REST: Final = (-2.3258673795554806e-17, -1.338640948949232e-17)
_FAR_HAZARD: Final = (
    1.0,
    -2.0,
    10.0,
    -74.0,
    706.0,
    -8162.0,
)  # (1/R - t) t in 1/t**2, from there on
# (1/R) (1/R - t), in the same variable for all t >= 0; (m/2 coth(m/2) - 1)/m**2 in m**2 up to 1.
_MILLS_CURVATURE: Final = (
    0.9533271616025774,
    0.1428507144612674,
    -0.16135973134979462,
    0.06799977169288997,
    0.023472872237170955,
    -0.03991459546749493,
    0.008078243850863805,
    0.013322028422463718,
    -0.008064667429582827,
    -0.002764922830617445,
    0.003992435524437485,
    1.3469009703723782e-06,
    -0.0015039467996264839,
    0.0003400785379588074,
    0.00046470216676407526,
    -0.00021025074943856393,
    -0.00011627418241378901,
    8.996960784808979e-05,
    2.0475426677353096e-05,
    -3.139493642494022e-05,
    -4.481467988610067e-07,
    9.266289447321286e-06,
    -1.4673132004095058e-06,
    -2.290456298141665e-06,
    6.723177942082747e-07,
    4.503554859785669e-07,
    -1.587908873924172e-07,
    -6.256492503820003e-08,
    1.706980982910641e-08,
    4.55307672909683e-09,
)
_COTH: Final = (
    0.08333333333333333,
    -0.0013888888888888586,
    3.3068783068145235e-05,
    -8.267195716069155e-07,
    2.087673683638037e-08,
    -5.283757898636377e-10,
    1.3330961991201414e-11,
    -3.0659722541194154e-13,
)


# --- the softmax: classes on the last axis; targets are labels or probabilities ------------------


class _Classes(NamedTuple):
    """Exponentials of the predictions less the largest of them, which lose no digit in a sum."""

    lead: Array  # which prediction is the largest, (..., 1)
    below: Array  # predictions less that one: 0 there, below 0 elsewhere
    e: Array  # their exponentials: 1 there

    @property
    def log_total(self) -> Any:
        """Logarithm of the exponentials' sum, shape (..., 1)."""
        rest = self.e.copy()
        np.put_along_axis(rest, self.lead, 0, -1)
        return np.log1p(_exact_sum(rest))

    @property
    def total(self) -> Array:
        """The exponentials' sum, shape (..., 1)."""
        return _exact_sum(self.e)


def _classes(z: Array) -> _Classes:
    lead = np.argmax(z, axis=-1, keepdims=True)  # of a NaN, where there is one
    below, rest = _difference(z, np.take_along_axis(z, lead, -1))
    np.put_along_axis(below, lead, 0, -1)  # of an infinite one too
    return _Classes(lead, below, np.exp(below) * (1 + rest))


def softmax(z: Array) -> Any:
    classes = _classes(z)
    return classes.e / classes.total


def softmax_cross_entropy(z: Array, y: Array, _: float) -> Any:
    classes = _classes(z)
    if y.ndim < z.ndim:
        below = np.take_along_axis(classes.below, y[..., None], -1)
        return (classes.log_total - below)[..., 0]
    terms = np.where(y == 0, 0, y * (classes.log_total - classes.below))
    lost = np.isnan(classes.log_total[..., 0])
    return np.where(lost, np.nan, terms.sum(axis=-1))


def softmax_cross_entropy_slope(z: Array, y: Array, _: float) -> Any:
    # p - 1 and s p - y lose all digits where p tends to y.
    if y.ndim < z.ndim:
        y = (y[..., None] == np.arange(z.shape[-1])).astype(float)
    p = softmax(z)
    return p * sum_of_others(y) - y * sum_of_others(p)


def softmax_hessians(p: Array, sums: Array) -> Array:
    """Return s (diag p - p p^T), shape (N, K, K), for probabilities p (N, K), sums s of targets."""
    p64 = p.astype(np.float64, copy=False)
    hessians = -sums[:, None, None] * p64[:, :, None] * p64[:, None, :]
    diagonal = np.arange(p.shape[-1])
    hessians[:, diagonal, diagonal] = sums[:, None] * p64 * sum_of_others(p64)
    return hessians.astype(p.dtype, copy=False)


def sum_of_others(x: Array) -> Array:
    """Return, for each element of the last axis, the sum of the others, without a difference."""
    total = np.zeros(x.shape, np.longdouble)
    np.cumsum(x[..., :-1], axis=-1, out=total[..., 1:])
    total[..., :-1] += np.cumsum(x[..., :0:-1], axis=-1, dtype=np.longdouble)[..., ::-1]
    return total.astype(np.float64)


def _exact_sum(x: Array) -> Array:
    """Return the sum over the last axis, kept, rounded once where long double is wider."""
    total = x.sum(axis=-1, dtype=np.longdouble, keepdims=True)
    return np.asarray(total, np.float64)


# --- sums over the samples ------------------------------------------------------------------------


def loss_sums(
    row: LossRow,
    parameter: float,
    X: KernelData,
    y: Array,
    w: Array,
    b: Array,
    sample_weight: Array | None,
    offset: Array | None,
    job: Job,
    v: tuple[Array, Array] | None,
    kept: Array | None,
    gX: Array | None,
    scale: float,
    *,
    blocks: Iterable[tuple[slice, Rows]] | None = None,
) -> tuple[float, Array | None, Array | None]:
    """Return the weighted sums of a loss, of its gradient or of a Hessian-vector product.

    Parameters
    ----------
    row : LossRow
        The loss.
    parameter : float
        The loss's, or 0.
    X : ndarray or tuple
        Data, N rows, D columns.
    y : ndarray, shape (N,) or (N, K)
        Targets; int64 labels or probabilities for a loss of classes. None for predictions.
    w : ndarray, shape (D, K), float64
        Coefficients.
    b : ndarray, shape (K,), float64
        Intercepts.
    sample_weight : ndarray, shape (N,), float64, or None
        Weights.
    offset : ndarray, shape (N,) or (N, K), float64, or None
        Added to the predictions.
    job : {"value", "gradient", "hvp", "curvature", "predict"}
        What to compute: a forward pass for the loss or for `kept` alone, or with a backward pass
        for the gradient or the Hessian's product with `v`.
    v : (ndarray, ndarray) or None
        Direction, shaped as `w` and `b`, or m of them, shapes (D, K m) and (K m,): those of an
        output together.
    kept : ndarray, shape (N, K), float64, or None
        Written: of a curvature the second derivatives, of classes their probabilities; of
        predictions these themselves.
    gX : ndarray, shape (N, D), or None
        Written in a gradient: `scale` times each sample's weighted gradient by its row.
    scale : float
        For `gX` alone.
    blocks : iterable, optional
        All rows in order, with the objects that multiply by them; the default is NumPy's.

    Returns
    -------
    loss : float
        Sum of the weighted losses; 0 where they are not computed.
    gb, gw : ndarray or None
        Shapes (K,) and (D, K), or those of `v`; None where there is no backward pass.

    Raises
    ------
    ValueError
        With the arguments "y" or "sample_weight" and the first bad row, or "X" and a row near an
        index out of range.
    """
    row, (n_features, n_outputs) = row.at(parameter), w.shape

    def predicted(rows: slice, block: Rows) -> Array:
        z: Array = block.forward(w) + b
        return z if offset is None else z + offset[rows].reshape(len(z), -1)

    def part(rows: slice, block: Rows) -> Array:
        """Return loss, gb and gw of a block in one vector, or the loss alone."""
        if kept is not None and job == "predict":
            kept[rows] = predicted(rows, block)
            return np.zeros(1)
        weight = None if sample_weight is None else sample_weight[rows]
        targets = _targets(row, y[rows], weight)
        check_rows(row, targets, weight, n_outputs, rows.start)
        z = predicted(rows, block)
        total, slopes = _scores(row, parameter, job, z, targets, weight)
        if kept is not None:
            kept[rows] = row.second_derivative(z, targets, parameter)
        if v is not None:
            second = row.second_derivative(z, targets, parameter)
            z = block.forward(v[0]) + v[1]
            along = z.reshape(len(z), n_outputs, -1)  # by direction
            curved = [
                change_of_slopes(row, second, targets, along[..., i]) for i in range(along.shape[2])
            ]
            slopes = np.stack(curved, axis=2).reshape(z.shape)
        if slopes is None:
            return np.array([total])
        slopes = _weighted(slopes, weight)
        if gX is not None:
            gX[rows] = _gradient_in_X(slopes, w, weight, scale)
        finite = np.isfinite(slopes).all() and np.isfinite(z).all()
        counts = np.ones(len(slopes), bool) if weight is None else weight != 0
        gb, gw = block.backward(slopes, None if finite else counts)
        return np.concatenate([[total], gb, gw.ravel()])

    with np.errstate(all="ignore"):
        sums = tree_sum(part(rows, block) for rows, block in blocks or blocks_of_rows(X))
    if sums.size == 1:
        return float(sums[0]), None, None
    width = n_outputs if v is None else v[1].size
    gb, gw = sums[1 : 1 + width], sums[1 + width :]
    return float(sums[0]), gb, gw.reshape(n_features, width)


def loss_line(
    row: LossRow,
    parameter: float,
    line: Array,
    y: Array,
    sample_weight: Array | None,
    step: float,
    order: int,
) -> tuple[float, float]:
    """Return the weighted sums of a loss and of its derivative by the step along a line.

    Parameters
    ----------
    row, parameter, y, sample_weight : LossRow, float, ndarray, ndarray or None
        As for `loss_sums`.
    line : ndarray, shape (N, 2 K), float64
        Predictions at step 0, and how they change.
    step : float
    order : {1, 2}
        Of the derivative; the sum of the losses is not computed for the second.

    Raises
    ------
    ValueError
        With the argument "y" or "sample_weight" and the first bad row.
    """
    row, n_outputs = row.at(parameter), line.shape[1] // 2

    def part(rows: slice) -> Array:
        start, change = line[rows, :n_outputs], line[rows, n_outputs:]
        weight = np.ones(len(start)) if sample_weight is None else sample_weight[rows]
        targets = _targets(row, y[rows], weight)
        check_rows(row, targets, weight, n_outputs, rows.start)
        z = start + step * change
        job: Job = "gradient" if order == 1 else "hvp"
        total, slopes = _scores(row, parameter, job, z, targets, weight)
        if slopes is None:
            second = row.second_derivative(z, targets, parameter)
            slopes = change_of_slopes(row, second, targets, change)
        slopes = _weighted(slopes, weight)
        return np.array([total, np.sum(np.where(slopes == 0, 0, slopes * change))])

    with np.errstate(all="ignore"):
        total, derivative = tree_sum(part(rows) for rows in pieces(0, len(line)))
    return float(total), float(derivative)


def loss_pointwise(row: LossRow, parameter: float, z: Array, y: Array, order: int) -> Array:
    """Return a loss's value, first or second derivative by z, computed in float64, rounded once.

    Parameters
    ----------
    row, parameter : LossRow, float
        As for `loss_sums`.
    z : ndarray, shape (M,), or (M, K) for a loss of classes
        Predictions.
    y : ndarray, the shape and dtype of z, or int64 labels of shape (M,)
        Targets; a bad one gives NaN.
    order : {0, 1, 2}
        Of the derivative; the second of classes is their probabilities.
    """
    row = row.at(parameter)
    function = (row.value, row.derivative, row.second_derivative)[order]
    z64, y64 = z.astype(np.float64), y if y.dtype.kind == "i" else y.astype(np.float64)
    valid = row.targets.valid(y64, z.shape[-1])
    if row.of_classes and y.ndim == 1:
        y64 = np.where(valid, y64, 0)
    with np.errstate(all="ignore"):
        result = function(z64, y64, parameter)
        valid = valid.reshape(valid.shape + (1,) * (result.ndim - valid.ndim))
        return np.where(valid, result, np.nan).astype(z.dtype)


def _targets(row: LossRow, y: Array, weight: Array | None) -> Array:
    """Return targets as formulas take them; of labels without weight any."""
    if row.of_classes and y.ndim == 1:
        return y if weight is None else np.where(weight == 0, 0, y)
    y = y.astype(np.float64, copy=False)
    return y if row.of_classes else y.reshape(len(y), -1)


def _scores(
    row: LossRow, parameter: float, job: Job, z: Array, y: Array, weight: Array | None
) -> tuple[float, Array | None]:
    """Return the sum of the weighted losses, and the slopes, as far as the job needs them."""
    if job not in ("value", "gradient"):
        return 0.0, None
    losses = row.value(z, y, parameter).reshape(len(z), -1)
    slopes = row.derivative(z, y, parameter) if job == "gradient" else None
    return float(np.sum(_weighted(losses, weight))), slopes


def _weighted(values: Array, weight: Array | None) -> Array:
    if weight is None:
        return values
    return np.where(weight[:, None] == 0, 0, values * weight[:, None])


def _gradient_in_X(slopes: Array, w: Array, weight: Array | None, scale: float) -> Array:
    gX = (scale * slopes) @ w.T
    if not np.isfinite(slopes).all():
        gX = scale * np.where(w == 0, 0, slopes[:, None, :] * w).sum(axis=-1)
    return gX if weight is None else np.where(weight[:, None] == 0, 0, gX)

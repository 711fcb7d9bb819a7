"""Losses of linear models: the formulas of the table, and their sums over the samples.

Everything computes in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.design_matrix import KernelData, Rows, blocks_of_rows, pieces
from pullback.oracle.elementwise import LOG_2, horner, sum_error
from pullback.partial import tree_sum
from pullback.samples import Job, check_rows, sums_of_targets

if TYPE_CHECKING:
    from pullback.tables.losses import LossRow

Array: TypeAlias = npt.NDArray[Any]

# --- pointwise losses: of a prediction z, a target y and the loss's parameter --------------------


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
    """Return y exp(-z), which may be in range where exp(-z) is not."""
    root = np.exp(-0.5 * z)
    return root * y * root


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


def softmax_hessian_product(p: Array, s: Array, u: Array) -> Any:
    """Return s (diag p - p p^T) u, shape (..., K)."""
    # Less the likeliest class's u, so that the difference from the mean keeps its digits.
    u = u - np.take_along_axis(u, np.argmax(p, axis=-1, keepdims=True), -1)
    return s[..., None] * p * (u - np.sum(p * u, axis=-1, keepdims=True))


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
        All rows in order, by what multiplies by them; NumPy's when omitted.

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
    n_features, n_outputs = w.shape

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
            curved = [_curved(row, second, targets, along[..., i]) for i in range(along.shape[2])]
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
    n_outputs = line.shape[1] // 2

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
            slopes = _curved(row, second, targets, change)
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
    """Return the sum of the weighted losses, and the slopes; what the job does not need, not."""
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


def _curved(row: LossRow, second: Array, y: Array, u: Array) -> Any:
    """Return the slopes' change along a direction that changes the predictions by `u`."""
    if row.of_classes:
        return softmax_hessian_product(second, sums_of_targets(y), u)
    # Where the curvature overflowed, a prediction that does not change adds nothing.
    return np.where((u == 0) & (second == np.inf), 0, second * u)

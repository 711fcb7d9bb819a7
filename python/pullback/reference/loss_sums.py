"""The losses' kernels in plain NumPy: one walk over blocks of rows, of any layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback import formulas as nf
from pullback.layouts import KernelData, spans
from pullback.partial import tree_sum
from pullback.reference.loss_arguments import sums_of_targets
from pullback.tables.losses import LOSSES, ROWS, LossRow

__all__ = ["Job", "check_rows", "loss_pointwise", "loss_sums", "predict"]

Array: TypeAlias = npt.NDArray[Any]
Job: TypeAlias = Literal["value", "gradient", "hvp", "curvature", "curved"]

_BLOCK: Final = 1 << 17  # entries, converted to float64 where they are not


def loss_sums(
    name: str,
    parameter: float,
    X: KernelData,
    y: Array,
    w: Array,
    b: Array,
    sample_weight: Array | None,
    job: Job,
    v: tuple[Array, Array] | None,
    kept: Array | None,
    gX: Array | None,
    scale: float,
) -> tuple[float, Array | None, Array | None]:
    """Return the weighted sums of a loss, of its gradient or of a Hessian-vector product.

    Parameters
    ----------
    name : str
        A row of the table.
    parameter : float
        The loss's, or 0.
    X : ndarray or tuple
        Data, N rows, D columns.
    y : ndarray, shape (N,) or (N, K)
        Targets; int64 labels or probabilities for a loss of classes.
    w : ndarray, shape (D, K), float64
        Coefficients.
    b : ndarray, shape (K,), float64
        Intercepts.
    sample_weight : ndarray, shape (N,), float64, or None
        Weights.
    job : {"value", "gradient", "hvp", "curvature", "curved"}
        What to compute: a forward pass for the loss or for `kept` alone, or with a backward pass
        for the gradient or the Hessian's product with `v`, whose second derivatives are computed,
        or taken from `kept`.
    v : (ndarray, ndarray) or None
        Direction, shaped as `w` and `b`.
    kept : ndarray, shape (N, K), float64, or None
        Second derivatives, of classes their probabilities: written in a curvature and a gradient.
    gX : ndarray, shape (N, D), or None
        Written in a gradient: `scale` times each sample's weighted gradient by its row.
    scale : float
        For `gX` alone.

    Returns
    -------
    loss : float
        Sum of the weighted losses; 0 where they are not computed.
    gb, gw : ndarray or None
        Shapes (K,) and (D, K); None in a value and a curvature.

    Raises
    ------
    ValueError
        With the arguments "y" or "sample_weight" and the first bad row, or "X" and a row near an
        index out of range.
    """
    row = LOSSES[name]
    n_features, n_outputs = w.shape

    def part(rows: slice, block: _Block) -> Array:
        """Return loss, gb and gw of a block in one vector, or the loss alone."""
        n = rows.stop - rows.start
        targets = y[rows] if y.dtype.kind == "i" else y[rows].astype(np.float64, copy=False)
        of_rows = None if sample_weight is None else sample_weight[rows]
        check_rows(row, targets, of_rows, n_outputs, rows.start)
        if not row.of_classes:
            targets = targets.reshape(n, -1)
        second = np.empty((n, n_outputs)) if job == "hvp" else None if kept is None else kept[rows]
        total, slopes = 0.0, None
        if job != "curved":
            z = block.forward(w) + b
            total, slopes = _scores(row, parameter, job, z, targets, of_rows)
            if second is not None:
                second[...] = row.second_derivative(z, targets, parameter)
        if v is not None and second is not None:
            slopes = _curved(row, second, targets, block.forward(v[0]) + v[1])
        if slopes is None:
            return np.array([total])
        slopes = _weighted(slopes, of_rows)
        if gX is not None:
            gX[rows] = (scale * slopes) @ w.T
        return np.concatenate([[total], _sum_rows(slopes), block.backward(slopes).ravel()])

    with np.errstate(all="ignore"):
        sums = tree_sum(part(rows, block) for rows, block in _blocks(X))
    if sums.size == 1:
        return float(sums[0]), None, None
    gb, gw = sums[1 : 1 + n_outputs], sums[1 + n_outputs :]
    return float(sums[0]), gb, gw.reshape(n_features, n_outputs)


def loss_pointwise(name: str, parameter: float, z: Array, y: Array, order: int) -> Array:
    """Return a loss's value, first or second derivative by z, computed in float64, rounded once.

    Parameters
    ----------
    name, parameter : str, float
        As for `loss_sums`.
    z : ndarray, shape (M,), or (M, K) for a loss of classes
        Predictions.
    y : ndarray, the shape and dtype of z, or int64 labels of shape (M,)
        Targets; a bad one gives NaN.
    order : {0, 1, 2}
        Of the derivative; the second of classes is their probabilities.
    """
    row = LOSSES[name]
    function = (row.value, row.derivative, row.second_derivative)[order]
    z64, y64 = z.astype(np.float64), y if y.dtype.kind == "i" else y.astype(np.float64)
    valid = row.targets.valid(y64, z.shape[-1])
    if row.of_classes and y.ndim == 1:
        y64 = np.where(valid, y64, 0)
    with np.errstate(all="ignore"):
        result = function(z64, y64, parameter)
        valid = valid.reshape(valid.shape + (1,) * (result.ndim - valid.ndim))
        return np.where(valid, result, np.nan).astype(z.dtype)


def predict(X: KernelData, w: Array, b: Array, out: Array) -> None:
    """Write X w + b to `out`, shape (N, K), float64; arguments as for `loss_sums`."""
    with np.errstate(all="ignore"):
        for rows, block in _blocks(X):
            np.add(block.forward(w), b, out=out[rows])


def check_rows(
    row: LossRow, y: Array, sample_weight: Array | None, n_outputs: int, first: int = 0
) -> None:
    """Raise the ValueError of `loss_sums` for the first row with a bad target or weight.

    Its number counts from `first`.
    """
    valid = row.targets.valid(y, n_outputs).reshape(len(y), -1).all(axis=1)
    bad = {"y": ~valid}
    if sample_weight is not None:
        bad["sample_weight"] = ~((sample_weight >= 0) & (sample_weight < np.inf))
    found = [(int(np.argmax(rows)), name) for name, rows in bad.items() if rows.any()]
    if found:
        i, name = min(found, key=lambda pair: pair[0])
        raise ValueError(name, first + i)


def _scores(
    row: LossRow, parameter: float, job: Job, z: Array, y: Array, sample_weight: Array | None
) -> tuple[float, Array | None]:
    """Return the sum of the weighted losses, and the slopes; what the job does not need, not."""
    if job not in ("value", "gradient"):
        return 0.0, None
    losses = row.value(z, y, parameter).reshape(len(z), -1)
    slopes = row.derivative(z, y, parameter) if job == "gradient" else None
    return float(np.sum(_weighted(losses, sample_weight))), slopes


def _weighted(values: Array, sample_weight: Array | None) -> Array:
    return values if sample_weight is None else values * sample_weight[:, None]


def _curved(row: LossRow, second: Array, y: Array, u: Array) -> Any:
    """Return the slopes' change along a direction that changes the predictions by `u`."""
    if row.of_classes:
        return nf.softmax_hessian_product(second, sums_of_targets(y), u)
    return second * u


def _sum_rows(values: Array) -> Array:
    return tree_sum(values[rows].sum(axis=0) for rows in _pieces(0, len(values)))


# --- blocks of rows -------------------------------------------------------------------------------


class _Rows:
    """Rows of a dense matrix."""

    def __init__(self, X: Array) -> None:
        self._X = X.astype(np.float64, copy=False)

    def forward(self, w: Array) -> Array:
        """Return X w."""
        return self._X @ w

    def backward(self, slopes: Array) -> Array:
        """Return X^T slopes."""
        return tree_sum(self._X[rows].T @ slopes[rows] for rows in _pieces(0, len(slopes)))


class _Entries:
    """Entries of a sparse matrix, as many at once as fit a block; duplicates add up."""

    def __init__(
        self,
        shape: tuple[int, int],
        entries: Callable[[], Iterator[tuple[Array, Array, Array]]],
        *,
        by_columns: bool,
    ) -> None:
        self._shape = shape
        self._entries = entries  # rows, columns, data; of few rows, or of whole columns
        self._by_columns = by_columns

    def forward(self, w: Array) -> Array:
        """Return X w."""
        z = np.zeros((self._shape[0], w.shape[1]))
        for rows, columns, data in self._entries():
            for k in range(w.shape[1]):
                z[:, k] += np.bincount(rows, data * w[columns, k], self._shape[0])
        return z

    def backward(self, slopes: Array) -> Array:
        """Return X^T slopes."""

        def part(rows: Array, columns: Array, data: Array) -> Array:
            gw = np.zeros((self._shape[1], slopes.shape[1]))
            for k in range(slopes.shape[1]):
                terms = data * slopes[rows, k]
                if not self._by_columns:
                    gw[:, k] = np.bincount(columns, terms, self._shape[1])
                elif len(columns):
                    starts = np.flatnonzero(np.diff(columns, prepend=-1))
                    gw[columns[starts], k] = np.add.reduceat(terms, starts)  # pairwise
            return gw

        return tree_sum(part(*entries) for entries in self._entries())


_Block: TypeAlias = _Rows | _Entries


def _pieces(begin: int, end: int) -> Iterator[slice]:
    return (slice(i, min(i + ROWS, end)) for i in range(begin, end, ROWS))


def _blocks(X: KernelData) -> Iterator[tuple[slice, _Block]]:
    """Yield all rows in order; the rows of compressed columns at once, since they lie apart."""
    if isinstance(X, np.ndarray):
        n_rows, n_features = X.shape
        step = max(1, _BLOCK // max(1, n_features))
        for begin in range(0, n_rows, step):
            rows = slice(begin, min(begin + step, n_rows))
            yield rows, _Rows(X[rows])
        return
    layout, data, indices, indptr, shape = X
    for begin, end in spans(indptr, _BLOCK) if layout == "csr" else [(0, shape[0])]:
        if layout == "csr":
            extent, first = (end - begin, shape[1]), begin
            pointers = [(rows.start, rows.stop) for rows in _pieces(begin, end)]
        else:
            extent, first, pointers = shape, 0, list(spans(indptr, _BLOCK)) or [(0, 0)]

        def entries(
            pointers: list[tuple[int, int]] = pointers, first: int = first
        ) -> Iterator[tuple[Array, Array, Array]]:
            for begin, end in pointers:
                inside = slice(int(indptr[begin]), int(indptr[end]))
                minor = indices[inside].copy()  # which nobody changes once it is checked
                out = (minor < 0) | (minor >= shape[1 if layout == "csr" else 0])
                if out.any():
                    raise ValueError("X", begin - first)
                counts = np.diff(indptr[begin : end + 1])
                major = np.repeat(np.arange(begin - first, end - first), counts)
                rows, columns = (major, minor) if layout == "csr" else (minor, major)
                yield rows, columns, data[inside].astype(np.float64, copy=False)

        yield slice(begin, end), _Entries(extent, entries, by_columns=layout == "csc")

"""The reductions in plain NumPy: float64 rows through the table's formulas."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.tables.reductions import REDUCTIONS

__all__ = ["reduce_slices", "reduce_tangents", "transform_slices"]

Array: TypeAlias = npt.NDArray[Any]


def _rows(x: Array) -> Array:
    """Return blocks (outer, n, inner) as rows (outer * inner, n) of float64."""
    return np.ascontiguousarray(x.swapaxes(1, 2), np.float64).reshape(-1, x.shape[1])


def _blocks(rows: Array, out: Array) -> None:
    """Write rows to blocks."""
    outer, n, inner = out.shape
    out[...] = rows.reshape(outer, inner, n).swapaxes(1, 2)


def reduce_slices(
    name: str,
    parameter: float,
    x: tuple[Array, ...],
    g: Array | None,
    values: Array | None,
    slopes: tuple[Array, ...] | None,
) -> None:
    """Reduce blocks to their values and to derivatives times cotangents.

    Parameters
    ----------
    name : str
        The reduction.
    parameter : float
        Its parameter, or 0.
    x : tuple of ndarray, shape (outer, n, inner), n > 0
        The operands, C-contiguous and of one dtype, as all arrays.
    g : ndarray, shape (outer, inner), or None
        Cotangents; None for ones.
    values : ndarray, shape (outer, inner), or None
        Where the values go.
    slopes : tuple of ndarray, shape (outer, n, inner), or None
        Where the gradients go, one per operand.
    """
    row = REDUCTIONS[name]
    assert row.values is not None
    assert row.slopes is not None
    rows = tuple(map(_rows, x))
    with np.errstate(all="ignore"):
        if values is not None:
            values[...] = row.values(rows, parameter).reshape(values.shape)
        if slopes is not None:
            for out, slope in zip(slopes, row.slopes(rows, parameter), strict=True):
                _blocks(slope if g is None else slope * g.reshape(-1, 1).astype(np.float64), out)


def reduce_tangents(
    name: str,
    parameter: float,
    x: tuple[Array, ...],
    t: tuple[Array | None, ...],
    out: Array,
) -> None:
    """Write the sums of derivatives times tangents, (outer, inner); None is a tangent of zeros."""
    row = REDUCTIONS[name]
    assert row.slopes is not None
    rows = tuple(map(_rows, x))
    with np.errstate(all="ignore"):
        terms = [
            slope * _rows(tangent)
            for slope, tangent in zip(row.slopes(rows, parameter), t, strict=True)
            if tangent is not None
        ]
        out[...] = np.sum(sum(terms), axis=1).reshape(out.shape)


def transform_slices(
    name: str, parameter: float, method: str, x: Array, v: Array | None, out: Array
) -> None:
    """Write a map's value, or its vjp or jvp with `v`; blocks all."""
    row = REDUCTIONS[name]
    rows = _rows(x)
    with np.errstate(all="ignore"):
        if v is None:
            assert row.value is not None
            result = row.value(rows, parameter)
        else:
            product = row.vjp if method == "vjp" else row.jvp
            assert product is not None
            result = product(rows, _rows(v), parameter)
        _blocks(result, out)

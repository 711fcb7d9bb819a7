"""Weighted Gram matrices in float64: sums over blocks of rows, which are made dense one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.design_matrix import KernelData, pieces
from pullback.partial import tree_sum

Array: TypeAlias = npt.NDArray[Any]


def gram_sums(X: KernelData, c: Array | None, intercept: bool) -> Array:
    """Return X^T diag(c) X for each column of c, with a last column of ones in X if asked for.

    Raises
    ------
    ValueError
        ``("X", row)``, if an index is out of range.
    """

    def part(rows: slice, block: Array) -> Array:
        if intercept:
            block = np.column_stack([block, np.ones(len(block))])
        factors = np.ones((len(block), 1)) if c is None else c[rows]
        with np.errstate(all="ignore"):
            return np.stack([_weighted(block, factor) for factor in factors.T])

    shape = X.shape if isinstance(X, np.ndarray) else X[4]
    several, size = 1 if c is None else c.shape[1], shape[1] + intercept
    if shape[0] == 0 or several == 0:
        return np.zeros((several, size, size))
    with np.errstate(all="ignore"):
        upper = np.triu(tree_sum(part(*block) for block in _blocks(X)))
        lower = np.triu(upper, 1)
    return upper + lower.swapaxes(1, 2)


def _weighted(X: Array, c: Array) -> Array:
    gram: Array = X.T @ (c[:, None] * X)
    if np.isfinite(gram).all():
        return gram
    # 0 adds nothing, whatever it meets.
    adds = (X != 0) & (c != 0)[:, None]
    for i, column in enumerate(X.T):
        both = adds & adds[:, i, None]
        gram[i] = np.where(both, (c * column)[:, None] * X, 0).sum(axis=0)
    return gram


def _blocks(X: KernelData) -> Iterator[tuple[slice, Array]]:
    if isinstance(X, np.ndarray):
        yield from ((rows, X[rows].astype(np.float64)) for rows in pieces(0, len(X)))
        return
    layout, data, minor, indptr, shape = X
    n = int(indptr[-1])
    minor = minor[:n].copy()  # which nobody changes once it is checked
    major = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    rows, columns = (major, minor) if layout == "csr" else (minor, major)
    if n and not (minor.min() >= 0 and minor.max() < shape[layout == "csr"]):
        raise ValueError("X", 0)
    if layout == "csc":
        order = np.argsort(rows, kind="stable")
        rows, columns, data = rows[order], columns[order], data[:n][order]
    for piece in pieces(0, shape[0]):
        inside = slice(*np.searchsorted(rows, (piece.start, piece.stop)))
        block = np.zeros((piece.stop - piece.start, shape[1]))
        np.add.at(block, (rows[inside] - piece.start, columns[inside]), data[inside])
        yield piece, block

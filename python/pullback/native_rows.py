"""Blocks of a data matrix that stay in cache, with the products that losses need, by kernels."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.config import native
from pullback.design_matrix import KernelData, spans

__all__ = ["native_blocks", "sizes_kept"]

Array: TypeAlias = npt.NDArray[Any]

# The bytes of X in a block. With fewer, calls cost more than the work (26 % at 512 KB of 50
# columns); with more, X has left the cache when it is read again.
_BLOCK_BYTES: Final = 1 << 22


class _NativeRows:
    """Rows of X as kernels read them."""

    def __init__(self, X: KernelData, n_rows: int) -> None:
        self._X, self._n_rows = X, n_rows

    def forward(self, w: Array) -> Array:
        """Return X w."""
        z = np.empty((self._n_rows, w.shape[1]))
        _sums(self._X, None, w, None, "predict", z)
        return z

    def backward(self, slopes: Array, counts: Array | None) -> tuple[Array, Array]:
        """Return sums of the slopes, and X^T slopes: see `Rows`."""
        weight = None if counts is None else counts.astype(np.float64)
        n_features = self._X.shape[1] if isinstance(self._X, np.ndarray) else self._X[4][1]
        at = np.zeros((n_features, slopes.shape[1]))
        _, gb, gw = _sums(self._X, np.ascontiguousarray(slopes), at, weight, "backward", None)
        return gb, gw


def _sums(X: KernelData, y: Any, w: Array, weight: Any, job: str, kept: Any) -> Any:
    assert native is not None
    b = np.zeros(w.shape[1])
    rest = (X, y, w, b, weight, None, job, None, kept, None, 1.0)
    return native.loss_sums("squared_error", 0.0, *rest)


def native_blocks(X: KernelData, n_outputs: int) -> Iterator[tuple[slice, _NativeRows]]:
    """Yield all rows in order; the rows of compressed columns at once, since they lie apart."""
    if isinstance(X, np.ndarray):
        n_rows, n_features = X.shape
        row_bytes = n_features * X.itemsize + 8 * n_outputs
        step = max(1, _BLOCK_BYTES // row_bytes // 64) * 64
        for begin in range(0, n_rows, step):
            rows = slice(begin, min(begin + step, n_rows))
            yield rows, _NativeRows(X[rows], rows.stop - begin)
        return
    layout, data, indices, indptr, (n_rows, n_features) = X
    if layout == "csc":
        yield slice(0, n_rows), _NativeRows(X, n_rows)
        return
    entry_bytes = data.itemsize + indices.itemsize + 8 * n_outputs
    # Each block has a gradient of its own, which should not cost more than the block.
    for begin, end in spans(indptr, max(_BLOCK_BYTES // entry_bytes, 4 * n_features)):
        inside = slice(int(indptr[begin]), int(indptr[end]))
        pointers = indptr[begin : end + 1] - indptr[begin]
        extent = (end - begin, n_features)
        block = (layout, data[inside], indices[inside], pointers, extent)
        yield slice(begin, end), _NativeRows(block, end - begin)


@contextmanager
def sizes_kept(*given: Any) -> Iterator[None]:
    """Keep functions from resizing arrays: NumPy does not resize one that has weak references."""
    held = []
    for array in given:
        while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
            array = array.base
        held += [weakref.ref(array)] if isinstance(array, np.ndarray) else []
    try:
        yield
    finally:
        held.clear()

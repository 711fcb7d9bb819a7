"""SciPy sparse arrays from the structure of Jacobians."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# The module itself, to avoid a cycle of imports.
from pullback import jacobians
from pullback.shapes import broadcast_shapes

__all__ = ["Builder"]


class Builder:
    """Makes and combines sparse arrays, with a limit on the number of elements.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    dtype : dtype
        The result's dtype.
    force : bool
        Whether the elements may take more than `DENSE_LIMIT_BYTES`.

    Raises
    ------
    ImportError
        If SciPy is not installed.
    """

    def __init__(self, op: str, dtype: np.dtype[Any], force: bool) -> None:
        try:
            from scipy import sparse  # noqa: PLC0415  an optional dependency
        except ImportError as error:
            raise ImportError(f"{op} needs SciPy, which cannot be imported: {error}") from error
        self._array = sparse.csr_array
        self._op, self._dtype, self._force = op, dtype, force

    def matrix(self, shape: tuple[int, int], values: Any, rows: Any, columns: Any) -> Any:
        """Return elements in their rows and columns, which broadcast; duplicates add up."""
        whole = broadcast_shapes(np.shape(values), rows.shape, columns.shape)
        self._check(math.prod(whole))
        flat = (np.broadcast_to(each, whole).reshape(-1) for each in (values, rows, columns))
        return self._array((next(flat), tuple(flat)), shape, self._dtype)

    def total(self, terms: list[Any]) -> Any:
        """Return a sum."""
        parts = [term.tocoo() for term in terms]
        self._check(sum(part.nnz for part in parts))
        data, rows, columns = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("data", "row", "col")
        )
        return self.matrix(terms[0].shape, data, rows, columns)

    def product(self, A: Any, B: Any) -> Any:
        """Return A @ B."""
        # Each element of A is multiplied by a row of B.
        terms = int(np.bincount(A.indices, minlength=A.shape[1]) @ np.diff(B.indptr))
        self._check(min(terms, A.shape[0] * B.shape[1]))
        return A @ B

    def finished(self, matrix: Any) -> Any:
        """Return a sparse array without stored zeros, converted if it is dense."""
        found = self._array(matrix)
        found.eliminate_zeros()
        found.sort_indices()
        return found

    def _check(self, elements: int) -> None:
        nbytes = elements * self._dtype.itemsize
        if nbytes > jacobians.DENSE_LIMIT_BYTES and not self._force:
            raise MemoryError(
                f"{self._op}: {elements} elements take {nbytes / 1e9:.3g} GB, and their indices as "
                "much; force=True stores them all the same"
            )

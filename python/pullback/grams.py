"""Weighted Gram matrices of data, in one pass over them."""

from __future__ import annotations

from collections.abc import Callable
from functools import WRAPPER_ASSIGNMENTS
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.config import guarded
from pullback.design_matrix import Data, as_data, as_matrix, explaining
from pullback.engine import BACKEND, Engine
from pullback.foreign import check_computed
from pullback.partial import tree_sum
from pullback.protocol import as_array, check_labels, kernel_dtype

__all__ = ["gram", "gram_matrices", "make_gram"]

Array: TypeAlias = npt.NDArray[Any]

# The fewest rows of a converted block: adding its matrix should not cost more than computing it.
LEAST_ROWS: Final = 1024


def gram_matrices(
    engine: Engine, op: str, data: Data, c: Array | None, *, intercept: bool = False
) -> Array:
    """Return X^T diag(c) X for each column of `c`, a float64 array (N, M), as (M, D, D).

    With `intercept`, X has one more column, of ones: the last row and column are X^T c, and the sum
    of c in the corner.
    """

    def part(rows: slice, X: Any) -> Array:
        factors = None if c is None else np.ascontiguousarray(c[rows])
        return engine.kernels.gram_sums(X, factors, intercept)  # type: ignore[no-any-return]

    if data.shape[0] == 0:
        size = data.shape[1] + intercept
        return np.zeros((1 if c is None else c.shape[1], size, size))
    with np.errstate(all="ignore"), explaining(op, data):
        return tree_sum(part(rows, X) for rows, X in data.blocks(strided=True, least=LEAST_ROWS))


def make_gram(engine: Engine) -> Callable[..., Array]:
    """Return `gram` on an engine."""

    def gram(X: npt.ArrayLike, c: npt.ArrayLike | None = None) -> Array:
        """Return the weighted Gram matrix ``X^T diag(c) X``, in one pass over `X`.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (N, D)
            Data, one sample per row: an array_like, or a CSR or CSC matrix. float32, float64,
            float16 and ml_dtypes' bfloat16 of any strides are read in place; anything else is
            converted in blocks of rows.
        c : array_like, shape (N,) or (N, M), optional
            Factors of the rows, of any sign; M columns give M matrices. The default is ones.

        Returns
        -------
        ndarray, shape (D, D), or (M, D, D), float64
            Symmetric. Sums are float64 and run over fixed blocks of rows, so their bits do not
            depend on the number of threads.

        Raises
        ------
        TypeError
            If a dtype or a sparse format has no kernel (complex, object, COO, ...).
        ValueError
            If a shape does not fit, or a sparse matrix's arrays contradict each other.

        Notes
        -----
        A row whose factor is 0 adds nothing, even if it holds NaN or inf. An element of `X` that is
        0 adds nothing, even if its product partner is NaN or inf. The memory needed is that of a
        few results, for any N.

        Examples
        --------
        >>> import numpy as np
        >>> import pullback as pb
        >>> X = np.array([[1.0, 2.0], [3.0, 4.0]])
        >>> pb.gram(X)
        array([[10., 14.],
               [14., 20.]])
        >>> pb.gram(X, [1.0, -1.0])
        array([[ -8., -10.],
               [-10., -12.]])
        """
        check_labels("gram", ("X", "c"), (X, c))
        given = as_matrix("gram", X)
        check_computed("gram", "c", c)
        factors = None if c is None else as_array("gram", "c", c)
        data = as_data("gram", given)
        if factors is None:
            return gram_matrices(engine, "gram", data, None)[0]  # type: ignore[no-any-return]
        kernel_dtype("gram", "c", factors.dtype)
        n = data.shape[0]
        if factors.ndim not in (1, 2) or len(factors) != n:
            raise ValueError(
                f"gram: c has shape {factors.shape}, X of shape {data.shape} needs ({n},) or "
                f"({n}, M)"
            )
        columns = np.require(factors, np.float64, ["A", "E"])
        columns = columns[:, None] if columns.ndim == 1 else columns
        grams = gram_matrices(engine, "gram", data, columns)
        return grams[0] if factors.ndim == 1 else grams

    gram.__module__, gram.__qualname__ = engine.module("gram"), "gram"
    if not engine.is_native:
        return guarded(gram)
    call: Any = engine.kernels.gram_method(gram)
    for name in WRAPPER_ASSIGNMENTS:
        setattr(call, name, getattr(gram, name))
    return call  # type: ignore[no-any-return]


gram: Final = make_gram(BACKEND)

"""The quadratic penalty of a linear model's coefficients, 1/2 w^T P w."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.engine import Engine
from pullback.products import make_products
from pullback.protocol import as_array, as_number, is_weak, kernel_dtype

__all__ = ["Penalty"]

Array: TypeAlias = npt.NDArray[Any]

# An asymmetry, or a negative eigenvalue, counts as a rounding error up to this multiple of the
# matrix's largest element times its number of rows times its dtype's rounding unit.
_SLACK: Final = 8


class Penalty:
    """1/2 w^T P w, where P is a multiple of the identity, a diagonal or a full matrix.

    It keeps a copy of `l2`. The methods' vectors hold coefficients in the order of ``w.ravel()``,
    on the first axes of any shape.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    l2 : array_like
        A number, one for each coefficient, or P itself: see `LinearObjective`.
    w_shape : tuple of int
        The coefficients' shape, (D,) or (D, K).
    engine : Engine
        The engine that multiplies by a matrix.

    Raises
    ------
    TypeError
        If `l2` is not an array of real numbers.
    ValueError
        If a shape does not fit, a number is negative or not finite, or a matrix is not symmetric or
        not positive semidefinite.
    """

    def __init__(self, op: str, l2: Any, w_shape: tuple[int, ...], engine: Engine) -> None:
        self._n = int(np.prod(w_shape))
        self._product = make_products(engine)["matmul"]
        self._matrix: Array | None = None  # (D, D) of each output, or (D K, D K)
        self.diagonal: float | Array = 0.0  # without a matrix: one number, or (D K,)
        number = is_weak(l2) or l2 is None or isinstance(l2, str)
        if number or (array := as_array(op, "l2", l2)).ndim == 0:
            self.given: float | Array = as_number(op, "l2", l2)
            self.diagonal = self.given
            _check_numbers(op, np.asarray(self.given))
            return
        kernel_dtype(op, "l2", array.dtype)
        self.given = np.array(array, order="C")
        self.given.flags.writeable = False
        given = self.given.astype(np.float64)
        d, n = w_shape[0], self._n
        of_coefficients, of_matrices = {(d,), w_shape}, {(d, d), (n, n)}
        if len(w_shape) == 2 and given.shape == (d, d) == w_shape and d > 1:
            raise ValueError(
                f"{op}: l2 has shape {given.shape}, which is ambiguous: it is the shape of w, and "
                f"that of a matrix for each output; give a matrix of shape {(n, n)}"
            )
        if given.shape in of_coefficients:
            _check_numbers(op, given)
            self.diagonal = np.repeat(given, n // max(given.size, 1))
        elif given.shape in of_matrices:
            unit = np.finfo(array.dtype if array.dtype.kind == "f" else np.float64).eps
            self._matrix = _checked_matrix(op, given, _SLACK * len(given) * float(unit))
        else:
            shapes = sorted(of_coefficients | of_matrices, key=lambda shape: (len(shape), shape))
            *needed, last = map(str, shapes)
            raise ValueError(
                f"{op}: l2 has shape {given.shape}, needs (), {', '.join(needed)} or {last}"
            )

    def __repr__(self) -> str:
        given = self.given
        return f"l2={given:g}" if isinstance(given, float) else f"l2 of shape {given.shape}"

    @property
    def has_matrix(self) -> bool:
        """Whether P is neither a multiple of the identity nor diagonal."""
        return self._matrix is not None

    @property
    def is_zero(self) -> bool:
        """Whether P is 0."""
        return isinstance(self.given, float) and self.given == 0

    def value(self, w: Array) -> float:
        """Return 1/2 w^T P w."""
        if isinstance(self.given, float):  # 0 times an infinite coefficient would be NaN
            return 0.5 * self.given * float(np.vdot(w, w)) if self.given > 0 else 0.0
        w = self.penalised(w)
        return 0.5 * float(np.vdot(w, self.times(w)))

    def penalised(self, w: Array) -> Array:
        """Return coefficients as a vector, with 0 for those that have no penalty."""
        w = w.ravel()
        return w if self._matrix is not None else np.where(np.greater(self.diagonal, 0), w, 0)

    def times(self, v: Array) -> Array:
        """Return P v for a vector, or for each column of (D K, m)."""
        n = self._n if self._matrix is None else len(self._matrix)
        columns = v.reshape(n, v.size // max(n, 1))
        product: Array
        if self._matrix is not None:
            product = self._product(self._matrix, columns)
        else:
            product = np.where(np.equal(self.diagonal, 0), 0, self.diagonal * columns.T).T
        return product.reshape(v.shape)

    def add_to(self, hessian: Array) -> None:
        """Add P to a Hessian whose first rows and columns belong to the coefficients."""
        if self._matrix is None:
            np.einsum("ii->i", hessian)[: self._n] += self.diagonal
            return
        outputs = self._n // max(len(self._matrix), 1)
        for k in range(outputs):
            own = slice(k, self._n, outputs)
            hessian[own, own] += self._matrix


def _check_numbers(op: str, numbers: Array) -> None:
    bad = ~((numbers >= 0) & (numbers < np.inf))
    if bad.any():
        at = np.argwhere(bad)[0].tolist()
        raise ValueError(
            f"{op}: {_element(at)} is {numbers[*at]}, needs to be finite and not negative"
        )


def _element(at: list[int]) -> str:
    return f"l2{at}" if at else "l2"


def _checked_matrix(op: str, matrix: Array, slack: float) -> Array:
    """Return a symmetric matrix, which differs from the given one by rounding errors only."""
    if not np.isfinite(matrix).all():
        at = np.argwhere(~np.isfinite(matrix))[0].tolist()
        raise ValueError(f"{op}: {_element(at)} is {matrix[*at]}, needs to be finite")
    largest = np.abs(matrix).max(initial=0)
    apart = np.abs(matrix / 2 - matrix.T / 2) > slack * largest
    if apart.any():
        i, j = np.argwhere(apart)[0].tolist()
        raise ValueError(
            f"{op}: l2[{i}, {j}] is {matrix[i, j]} and l2[{j}, {i}] is {matrix[j, i]}; a matrix "
            "needs to be symmetric"
        )
    symmetric: Array = matrix / 2 + matrix.T / 2
    if largest > 0:
        shifted = symmetric / largest
        np.fill_diagonal(shifted, shifted.diagonal() + slack)
        try:
            np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            least = largest * np.linalg.eigvalsh(symmetric / largest)[0]
            raise ValueError(
                f"{op}: l2 has the eigenvalue {least:.6g}; a matrix needs to be positive "
                "semidefinite"
            ) from None
    return symmetric

"""Jacobians whose structure is a type: what is diagonal is stored and multiplied as a diagonal."""

from __future__ import annotations

import math
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.ops import as_arrays, kernel_dtype

__all__ = ["DENSE_LIMIT_BYTES", "Diagonal"]

Array: TypeAlias = npt.NDArray[Any]

# Above this a dense Jacobian is more likely a mistake than a wish.
DENSE_LIMIT_BYTES: Final = 2**28


class Diagonal:
    """The Jacobian of a map that acts on each element by itself.

    It stands for the n x n matrix, in numerator layout, of the flattened map, and stores its n
    diagonal elements in the operand's own shape. It is immutable, and speaks the protocol of
    SciPy's ``LinearOperator`` (``scipy.sparse.linalg.aslinearoperator(J)``).

    Parameters
    ----------
    diagonal : array_like, any shape
        The derivative at each element. Computed in float32 or float64 as everywhere.
    copy : bool, default True
        False takes over an array that nobody else writes to.

    Examples
    --------
    >>> import numpy as np
    >>> J = Diagonal([[1.0, 2.0], [3.0, 4.0]])
    >>> J
    <Diagonal 4x4 float64, operand shape (2, 2)>
    >>> J @ np.ones((2, 2))
    array([[1., 2.],
           [3., 4.]])
    >>> (J @ J).diagonal()
    array([ 1.,  4.,  9., 16.])
    """

    __slots__ = ("_diagonal",)

    # NumPy must leave `g @ J` to us, and must never expand J behind the caller's back.
    __array_ufunc__ = None

    def __init__(self, diagonal: npt.ArrayLike, *, copy: bool = True) -> None:
        array = np.asarray(diagonal)
        dtype = kernel_dtype("Diagonal", "diagonal", array.dtype)
        own = np.array(array, dtype=dtype) if copy else np.asarray(array, dtype=dtype).view()
        own.flags.writeable = False
        self._diagonal = own

    # --- description ---

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n, n) of the flattened map's Jacobian."""
        return self._diagonal.size, self._diagonal.size

    @property
    def ndim(self) -> int:
        """Number of axes of the matrix, 2."""
        return 2

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the operand, and so of a tangent."""
        return self._diagonal.shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result, and so of a cotangent."""
        return self._diagonal.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements, float32 or float64."""
        return self._diagonal.dtype

    @property
    def nbytes(self) -> int:
        """Bytes stored: n elements."""
        return self._diagonal.nbytes

    @property
    def T(self) -> Diagonal:
        """The transposed Jacobian, which is the same one."""
        return self

    def __repr__(self) -> str:
        n = self._diagonal.size
        return f"<Diagonal {n}x{n} {self.dtype}, operand shape {self.input_shape}>"

    def __reduce__(self) -> tuple[type[Diagonal], tuple[Array]]:
        # Through the constructor, since a pickled array forgets that it is read-only.
        return Diagonal, (self._diagonal,)

    # --- products ---

    def __matmul__(self, other: Any) -> Any:
        """Return J @ other.

        Parameters
        ----------
        other : array_like or Diagonal
            A tangent in the operand's shape, or a flat one (n,), or columns (n, k).

        Returns
        -------
        ndarray or Diagonal
            Shaped like `other`; the product of two `Diagonal` is one.

        Raises
        ------
        ValueError
            If the shape is none of these.
        """
        if isinstance(other, Diagonal):
            if other.output_shape != self.input_shape:
                raise ValueError(
                    f"Diagonal @ Diagonal: operand shapes {self.input_shape} and "
                    f"{other.output_shape} differ"
                )
            with np.errstate(all="ignore"):
                return Diagonal(self._diagonal * other._diagonal, copy=False)
        if _is_foreign(other):
            return NotImplemented
        diagonal, tangent = as_arrays("J @ t", self._diagonal, other, names=("J", "t"))
        if tangent.shape != self.input_shape:
            n = diagonal.size
            if tangent.ndim not in (1, 2) or tangent.shape[0] != n:
                raise ValueError(
                    f"J @ t: t has shape {tangent.shape}, J needs {self.input_shape}, "
                    f"({n},) or ({n}, k)"
                )
            diagonal = diagonal.reshape((n, 1)[: tangent.ndim])
        with np.errstate(all="ignore"):
            return diagonal * tangent

    def __rmatmul__(self, other: Any) -> Any:
        """Return other @ J.

        Parameters
        ----------
        other : array_like
            A cotangent in the result's shape, or a flat one (n,), or rows (k, n).

        Returns
        -------
        ndarray
            Shaped like `other`.

        Raises
        ------
        ValueError
            If the shape is none of these.
        """
        if _is_foreign(other):
            return NotImplemented
        cotangent, diagonal = as_arrays("g @ J", other, self._diagonal, names=("g", "J"))
        if cotangent.shape != self.output_shape:
            n = diagonal.size
            if cotangent.ndim not in (1, 2) or cotangent.shape[-1] != n:
                raise ValueError(
                    f"g @ J: g has shape {cotangent.shape}, J needs {self.output_shape}, "
                    f"({n},) or (k, {n})"
                )
            diagonal = diagonal.reshape(n)
        with np.errstate(all="ignore"):
            return cotangent * diagonal

    def matvec(self, v: npt.ArrayLike) -> Array:
        """Return J @ v for a flat vector of shape (n,) or (n, 1)."""
        return self._flat_product("matvec", v, (1, 2), columns=1)

    def matmat(self, V: npt.ArrayLike) -> Array:
        """Return J @ V for columns of shape (n, k)."""
        return self._flat_product("matmat", V, (2,))

    def rmatvec(self, v: npt.ArrayLike) -> Array:
        """Return J.T @ v, which is J @ v."""
        return self._flat_product("rmatvec", v, (1, 2), columns=1)

    def rmatmat(self, V: npt.ArrayLike) -> Array:
        """Return J.T @ V, which is J @ V."""
        return self._flat_product("rmatmat", V, (2,))

    def _flat_product(
        self, method: str, v: npt.ArrayLike, ndims: tuple[int, ...], columns: int | None = None
    ) -> Array:
        diagonal, vector = as_arrays(f"Diagonal.{method}", self._diagonal, v, names=("J", "v"))
        n = diagonal.size
        fits = vector.ndim in ndims and vector.shape[0] == n
        if not fits or (columns is not None and vector.shape[1:] not in ((), (columns,))):
            wanted = f"({n},) or ({n}, 1)" if columns else f"({n}, k)"
            raise ValueError(f"Diagonal.{method}: argument has shape {vector.shape}, not {wanted}")
        with np.errstate(all="ignore"):
            product: Array = diagonal.reshape((n, 1)[: vector.ndim]) * vector
        return product

    # --- elements ---

    def diagonal(self) -> Array:
        """Return the n diagonal elements, flat and read-only, as ``todense().diagonal()`` would."""
        return self._diagonal.reshape(-1)

    def todense(self, force: bool = False) -> Array:
        """Return the n x n array.

        Parameters
        ----------
        force : bool, default False
            Build it even above `DENSE_LIMIT_BYTES`.

        Returns
        -------
        ndarray, shape (n, n)

        Raises
        ------
        MemoryError
            If the array would exceed `DENSE_LIMIT_BYTES` and `force` is false.
        """
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        if nbytes > DENSE_LIMIT_BYTES and not force:
            n = self._diagonal.size
            raise MemoryError(
                f"a dense {n} x {n} {self.dtype} Jacobian takes {nbytes / 1e9:.3g} GB, the "
                f"diagonal {self.nbytes / 1e9:.3g} GB; todense(force=True) builds it all the same"
            )
        return np.diag(self.diagonal())


def _is_foreign(other: object) -> bool:
    """Tell whether `other` is another library's operator, and no array: let it multiply us."""
    return hasattr(other, "__rmatmul__") and not hasattr(other, "__array__")

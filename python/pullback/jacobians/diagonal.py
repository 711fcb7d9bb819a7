"""Jacobians of elementwise maps, of the identity and of constants."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pullback.jacobians.arguments import Array, Scaling, multiply, own
from pullback.jacobians.base import Shaped, Unstored

__all__ = ["Diagonal", "Identity", "Zero"]


_ndarray: Final = np.ndarray
_new: Final = object.__new__


class Identity(Unstored):
    """The Jacobian of the identity.

    Parameters
    ----------
    shape : tuple of int
        Of the operand and of the result.
    dtype : dtype, default float64
        float32 or float64.
    """

    __slots__ = ()

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float64) -> None:
        super().__init__(shape, shape, dtype)

    @property
    def T(self) -> Identity:
        """The transposed Jacobian, which is the same one."""
        return self

    def _arguments(self) -> tuple[Any, ...]:
        return (self._input_shape,)

    def _times(self, tangents: Array) -> Array:
        return tangents

    _pull = _times

    def _diagonal_elements(self) -> Array:
        return np.ones(self.shape[0], self._dtype)

    def _coordinates(self) -> tuple[Any, Any, Any]:
        places = np.arange(self.shape[0])
        return 1, places, places


class Zero(Unstored):
    """The Jacobian of a constant.

    Its zeros are structure: a product with it is 0, even with an infinity or NaN.

    Parameters
    ----------
    output_shape, input_shape : tuple of int
        Shapes of the result and of the operand.
    dtype : dtype, default float64
        float32 or float64.
    """

    __slots__ = ()

    def __init__(
        self,
        output_shape: tuple[int, ...],
        input_shape: tuple[int, ...],
        dtype: npt.DTypeLike = np.float64,
    ) -> None:
        super().__init__(input_shape, output_shape, dtype)

    @property
    def T(self) -> Zero:
        """The transposed Jacobian."""
        return Zero(self._input_shape, self._output_shape, self._dtype)

    def _arguments(self) -> tuple[Any, ...]:
        return self._output_shape, self._input_shape

    def _times(self, tangents: Array) -> Array:
        return np.zeros((len(tangents), self.shape[0]), tangents.dtype)

    def _scaled(self, c: Any, by: Scaling) -> Zero:
        del by
        return Zero(self._output_shape, self._input_shape, c.dtype)

    def _diagonal_elements(self) -> Array:
        return np.zeros(min(self.shape), self._dtype)

    def _coordinates(self) -> tuple[Any, Any, Any]:
        none = np.arange(0)
        return none, none, none

    def _dense(self) -> Array:
        return np.zeros(self.shape, self._dtype)


class Diagonal(Shaped):
    """The Jacobian of an elementwise map.

    It represents the n x n matrix, in numerator layout, of the flattened map. It stores the n
    diagonal elements in the operand's shape. It is immutable and supports SciPy's
    ``LinearOperator`` protocol (``scipy.sparse.linalg.aslinearoperator(J)``).

    Parameters
    ----------
    diagonal : array_like, any shape
        The derivative at each element. It computes in float32 or float64, as primitives do.
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

    def __init__(self, diagonal: npt.ArrayLike, *, copy: bool = True) -> None:
        self._diagonal = elements = own("Diagonal", "diagonal", diagonal, copy=copy)
        self._input_shape = self._output_shape = elements.shape
        self._dtype = elements.dtype

    @staticmethod
    def _of(elements: Any) -> Diagonal:
        """Return the Jacobian of slopes that a primitive has computed, and that nobody else has."""
        if type(elements) is not _ndarray:
            if not isinstance(elements, np.floating):  # what another library has made
                return Diagonal(elements, copy=False)
            elements = np.asarray(elements)
        J: Diagonal = _new(Diagonal)
        J._diagonal = elements
        J._input_shape = J._output_shape = elements.shape
        J._dtype = elements.dtype
        return J

    @property
    def nbytes(self) -> int:
        """Bytes stored: n elements."""
        return self._diagonal.nbytes

    @property
    def T(self) -> Diagonal:
        """The transposed Jacobian, which is the same one."""
        return self

    def flops(self, k: int = 1) -> int:
        """Return k n: one multiplication an element."""
        return k * self._diagonal.size

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, since a pickled array forgets that it is read-only.
        return Diagonal, (self._diagonal,)

    def _times(self, tangents: Array) -> Array:
        # As two axes, because one row then takes a third of the time.
        products: Array = multiply(self._diagonal.reshape(1, -1), tangents)
        return products

    _pull = _times

    def _scaled(self, c: Any, by: Scaling) -> Diagonal:
        return Diagonal._of(by(self._diagonal, c))

    def diagonal(self) -> Array:
        """Return the n diagonal elements, flat and read-only, as ``todense().diagonal()`` would."""
        elements = self._diagonal.reshape(-1)
        elements.setflags(write=False)
        return elements

    def _diagonal_elements(self) -> Array:
        return self.diagonal()

    def _coordinates(self) -> tuple[Any, Any, Any]:
        places = np.arange(self._diagonal.size)
        return self.diagonal(), places, places

    def _dense(self) -> Array:
        n = self._diagonal.size
        dense = np.zeros((n, n), self._dtype)
        dense.reshape(-1)[:: n + 1] = self._diagonal.reshape(-1)
        return dense

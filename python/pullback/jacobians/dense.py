"""Dense Jacobians, and Jacobians of rank one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pullback.jacobians.arguments import Array, Scaling, multiply, own, product
from pullback.jacobians.base import Shaped
from pullback.jacobians.blocks import Blocks

__all__ = ["Dense", "Outer"]


class Dense(Blocks):
    """A Jacobian that is stored as a dense matrix.

    Parameters
    ----------
    matrix : array_like, shape (m, n)
        Row i is the gradient of the result's element i.
    input_shape : tuple of int, default (n,)
        Shape of the operand.
    output_shape : tuple of int, default (m,)
        Shape of the result.
    copy : bool, default True
        False takes over an array that nobody else writes to.

    Raises
    ------
    TypeError
        For a dtype that has no kernel.
    ValueError
        If `matrix` is not a matrix, or the shapes do not fit.
    """

    __slots__ = ()

    def __init__(
        self,
        matrix: npt.ArrayLike,
        input_shape: tuple[int, ...] | None = None,
        output_shape: tuple[int, ...] | None = None,
        *,
        copy: bool = True,
    ) -> None:
        owned = own("Dense", "matrix", matrix, copy=copy)
        if owned.ndim != 2:
            raise ValueError(f"Dense: matrix has shape {owned.shape}, needs two axes")
        super().__init__(owned, input_shape, output_shape)

    @property
    def matrix(self) -> Array:
        """The matrix, read-only."""
        return self._blocks

    def _times(self, tangents: Array) -> Array:
        return product(tangents, self._blocks.T)

    def _pull(self, cotangents: Array) -> Array:
        return product(cotangents, self._blocks)

    def _diagonal_elements(self) -> Array:
        return self._blocks.diagonal().copy()

    def _dense(self) -> Array:
        return self._blocks


class Outer(Shaped):
    """A Jacobian of rank one: its element (i, j) is u_i v_j.

    Parameters
    ----------
    u : array_like
        In the shape of the result.
    v : array_like
        In the shape of the operand.
    copy : bool, default True
        False takes over arrays that nobody else writes to.

    Raises
    ------
    TypeError
        For a dtype that has no kernel.
    """

    __slots__ = ("_u", "_v")

    def __init__(self, u: npt.ArrayLike, v: npt.ArrayLike, *, copy: bool = True) -> None:
        self._u = own("Outer", "u", u, copy=copy)
        self._v = own("Outer", "v", v, copy=copy)
        self._input_shape, self._output_shape = self._v.shape, self._u.shape
        self._dtype = np.result_type(self._u, self._v)

    @property
    def u(self) -> Array:
        """The factor in the shape of the result, read-only."""
        return self._u

    @property
    def v(self) -> Array:
        """The factor in the shape of the operand, read-only."""
        return self._v

    @property
    def nbytes(self) -> int:
        """Bytes stored: m + n elements."""
        return self._u.nbytes + self._v.nbytes

    @property
    def T(self) -> Outer:
        """The transposed Jacobian, a view of this one."""
        return Outer(self._v, self._u, copy=False)

    def flops(self, k: int = 1) -> int:
        """Return k (2 n + m): a scalar product and a multiple."""
        return k * (2 * self._v.size + self._u.size)

    def __reduce__(self) -> tuple[Any, ...]:
        return Outer, (self._u, self._v)

    def _times(self, tangents: Array) -> Array:
        products: Array = multiply(product(tangents, self._v.reshape(-1, 1)), self._u.reshape(-1))
        return products

    def _scaled(self, c: Any, by: Scaling) -> Outer:
        if self._u.size <= self._v.size:
            return Outer(by(self._u, c), self._v, copy=False)
        return Outer(self._u, by(self._v, c), copy=False)

    def _diagonal_elements(self) -> Array:
        n = min(self.shape)
        elements: Array = multiply(self._u.reshape(-1)[:n], self._v.reshape(-1)[:n])
        return elements

    def _dense(self) -> Array:
        dense: Array = multiply(self._u.reshape(-1, 1), self._v.reshape(-1))
        return dense

"""Jacobians that store matrices: of each item of a batch, or of the whole map."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pullback.jacobians.arguments import Array, Scaling, own, presented, product
from pullback.jacobians.base import Shaped

__all__ = ["BlockDiagonal", "Blocks"]


class Blocks(Shaped):
    """The base of Jacobians that store matrices.

    Parameters
    ----------
    blocks : ndarray, shape ``(*batch, p, q)``
        A matrix for each item of a batch.
    input_shape, output_shape : tuple of int or None
        Shapes of the operand and of the result; None for ``(*batch, q)`` and ``(*batch, p)``.
    """

    __slots__ = ("_blocks",)

    def __init__(
        self,
        blocks: Array,
        input_shape: tuple[int, ...] | None,
        output_shape: tuple[int, ...] | None,
    ) -> None:
        self._blocks, self._dtype = blocks, blocks.dtype
        *batch, p, q = blocks.shape
        op = type(self).__name__
        self._input_shape = presented(op, "input", input_shape, (*batch, q))
        self._output_shape = presented(op, "output", output_shape, (*batch, p))

    @classmethod
    def _of(
        cls, blocks: Array, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> Self:
        """Return the Jacobian of blocks that nobody else writes to, of shapes that fit."""
        blocks.setflags(write=False)
        J = cls._between(input_shape, output_shape, blocks.dtype)
        J._blocks = blocks
        return J

    @property
    def nbytes(self) -> int:
        """Bytes stored: those of the elements."""
        return self._blocks.nbytes

    @property
    def T(self) -> Self:
        """The transposed Jacobian, a view of this one."""
        return self._of(self._blocks.mT, self._output_shape, self._input_shape)

    def flops(self, k: int = 1) -> int:
        """Return a multiplication and an addition for each element that is stored, k times."""
        return 2 * k * self._blocks.size

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._blocks, self._input_shape, self._output_shape)

    def _scaled(self, c: Any, by: Scaling) -> Self:
        return self._of(by(self._blocks, c), self._input_shape, self._output_shape)

    def _presented(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Self:
        return self._of(self._blocks, input_shape, output_shape)


class BlockDiagonal(Blocks):
    """The Jacobian of a map that acts on each item of a batch by itself.

    Parameters
    ----------
    blocks : array_like, shape ``(*batch, p, q)``
        The Jacobian of each item.
    input_shape : tuple of int, default ``(*batch, q)``
        Shape of the operand.
    output_shape : tuple of int, default ``(*batch, p)``
        Shape of the result.
    copy : bool, default True
        False takes over an array that nobody else writes to.

    Raises
    ------
    TypeError
        For a dtype that has no kernel.
    ValueError
        If `blocks` are no matrices, or the shapes do not fit.
    """

    __slots__ = ()

    def __init__(
        self,
        blocks: npt.ArrayLike,
        input_shape: tuple[int, ...] | None = None,
        output_shape: tuple[int, ...] | None = None,
        *,
        copy: bool = True,
    ) -> None:
        owned = own("BlockDiagonal", "blocks", blocks, copy=copy)
        if owned.ndim < 2:
            raise ValueError(
                f"BlockDiagonal: blocks have shape {owned.shape}, need two axes or more"
            )
        super().__init__(owned, input_shape, output_shape)

    @property
    def blocks(self) -> Array:
        """The blocks, read-only."""
        return self._blocks

    def _structure(self) -> str:
        *batch, p, q = self._blocks.shape
        return f", {math.prod(batch)} blocks {p}x{q}"

    def _flat(self) -> Array:
        """Return the blocks with one batch axis."""
        *batch, p, q = self._blocks.shape
        return self._blocks.reshape(math.prod(batch), p, q)

    def _times(self, tangents: Array) -> Array:
        blocks = self._flat()
        n, _, q = blocks.shape
        stack = tangents.reshape(len(tangents), n, q).transpose(1, 0, 2)
        products = product(stack, blocks.mT)
        return products.transpose(1, 0, 2).reshape(len(tangents), self.shape[0])

    def _dense(self) -> Array:
        blocks = self._flat()
        n, p, q = blocks.shape
        dense = np.zeros((n, p, n, q), self.dtype)
        items = np.arange(n)
        dense[items, :, items] = blocks
        return dense.reshape(self.shape)

    def _coordinates(self) -> tuple[Any, Any, Any] | None:
        blocks = self._flat()
        n, p, q = blocks.shape
        if n == 1:
            return None
        return blocks, np.arange(n * p).reshape(n, p, 1), np.arange(n * q).reshape(n, 1, q)

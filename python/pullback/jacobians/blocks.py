"""Jacobians of maps that act on each item of a batch by itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pullback.jacobians.arguments import Array, multiply, own, presented, product
from pullback.jacobians.base import Shaped

__all__ = ["BlockDiagonal"]


class BlockDiagonal(Shaped):
    """The Jacobian of a map that acts on each item of a batch by itself.

    Parameters
    ----------
    blocks : array_like, shape (*batch, p, q)
        The Jacobian of each item.
    input_shape : tuple of int, default (*batch, q)
        Shape of the operand.
    output_shape : tuple of int, default (*batch, p)
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

    __slots__ = ("_blocks",)
    __module__ = "pullback.jacobians"

    def __init__(
        self,
        blocks: npt.ArrayLike,
        input_shape: tuple[int, ...] | None = None,
        output_shape: tuple[int, ...] | None = None,
        *,
        copy: bool = True,
    ) -> None:
        self._blocks = own("BlockDiagonal", "blocks", blocks, copy=copy)
        if self._blocks.ndim < 2:
            raise ValueError(
                f"BlockDiagonal: blocks have shape {self._blocks.shape}, need two axes or more"
            )
        *batch, p, q = self._blocks.shape
        self._input_shape = presented("BlockDiagonal", "input", input_shape, (*batch, q))
        self._output_shape = presented("BlockDiagonal", "output", output_shape, (*batch, p))
        self._dtype = self._blocks.dtype

    @property
    def blocks(self) -> Array:
        """The blocks, read-only."""
        return self._blocks

    @property
    def nbytes(self) -> int:
        """Bytes stored: those of the blocks."""
        return self._blocks.nbytes

    @property
    def T(self) -> BlockDiagonal:
        """The transposed Jacobian, a view of this one."""
        return BlockDiagonal._of(self._blocks.mT, self._output_shape, self._input_shape)

    def flops(self, k: int = 1) -> int:
        """Return a multiplication and an addition for each element of the blocks, k times."""
        return 2 * k * self._blocks.size

    def _structure(self) -> str:
        *batch, p, q = self._blocks.shape
        return f", {math.prod(batch)} blocks {p}x{q}"

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockDiagonal, (self._blocks, self._input_shape, self._output_shape)

    @staticmethod
    def _of(
        blocks: Array, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> BlockDiagonal:
        """Return the Jacobian of blocks that nobody else writes to, of shapes that fit."""
        blocks.setflags(write=False)
        J = BlockDiagonal._between(input_shape, output_shape, blocks.dtype)
        J._blocks = blocks
        return J

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

    def _scaled(self, c: Any) -> BlockDiagonal:
        return BlockDiagonal._of(multiply(c, self._blocks), self._input_shape, self._output_shape)

    def _presented(
        self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> BlockDiagonal:
        return BlockDiagonal._of(self._blocks, input_shape, output_shape)

    def _dense(self) -> Array:
        blocks = self._flat()
        n, p, q = blocks.shape
        dense = np.zeros((n, p, n, q), self.dtype)
        items = np.arange(n)
        dense[items, :, items] = blocks
        return dense.reshape(self.shape)

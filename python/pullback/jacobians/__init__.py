"""Jacobians whose structure is a type: what is structured is stored and multiplied that way."""

from __future__ import annotations

from typing import Final

__all__ = [
    "DENSE_LIMIT_BYTES",
    "BlockDiagonal",
    "Broadcast",
    "Dense",
    "Diagonal",
    "Identity",
    "Jacobian",
    "Kronecker",
    "Outer",
    "Permutation",
    "Product",
    "Reshape",
    "Sum",
    "SumTo",
    "Zero",
]

# Above this a dense Jacobian is more likely a mistake than a wish.
DENSE_LIMIT_BYTES: Final = 2**28

from pullback.jacobians import algebra  # noqa: E402  `base` reads the limit here
from pullback.jacobians.base import Jacobian  # noqa: E402
from pullback.jacobians.blocks import BlockDiagonal  # noqa: E402
from pullback.jacobians.dense import Dense, Outer  # noqa: E402
from pullback.jacobians.diagonal import Diagonal, Identity, Zero  # noqa: E402
from pullback.jacobians.kronecker import Kronecker  # noqa: E402
from pullback.jacobians.lazy import Product, Sum  # noqa: E402
from pullback.jacobians.moves import Broadcast, Permutation, Reshape, SumTo  # noqa: E402

"""Structured Jacobians: each type stores and multiplies its own structure."""

from __future__ import annotations

from typing import Final

from pullback.config import native
from pullback.jacobians import algebra as algebra
from pullback.jacobians.base import Jacobian
from pullback.jacobians.blocks import BlockDiagonal
from pullback.jacobians.dense import Dense, Outer
from pullback.jacobians.diagonal import Diagonal, Identity, Zero
from pullback.jacobians.kronecker import Kronecker
from pullback.jacobians.lazy import Product, Sum
from pullback.jacobians.reindexing import Broadcast, Permutation, Reshape, SumTo
from pullback.jacobians.rows import RowWise

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
    "RowWise",
    "Sum",
    "SumTo",
    "Zero",
]

# A larger dense Jacobian is more likely a mistake than intended.
DENSE_LIMIT_BYTES: Final = 2**28

if native is not None:  # which makes those of primitives
    native.jacobian_classes(globals(), algebra.PRODUCTS.found)

"""Reductions and maps of rows: value, gradient and products with the Jacobian in few passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pullback.config import native
from pullback.reference.reduction import Engine
from pullback.reference.reductions import make_reductions
from pullback.reference.reductions import reductions as _twins

__all__ = ["reductions"]

reductions: Final[Mapping[str, Any]] = (
    _twins
    if native is None
    else make_reductions(
        Engine(
            "pullback",
            "reductions.",
            "",
            native.reduce_slices,
            native.reduce_tangents,
            native.transform_slices,
            native.reduction_method,
        )
    )
)
globals().update(reductions)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

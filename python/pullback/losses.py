"""Losses of linear models: value, gradient and Hessian products in one pass over the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pullback.config import native
from pullback.reference.losses import Engine, Loss, make_losses
from pullback.reference.losses import losses as _twins

__all__ = ["losses"]

losses: Final[Mapping[str, Loss]] = (
    _twins
    if native is None
    else make_losses(
        Engine(
            "pullback",
            "losses.",
            "",
            native.loss_sums,
            native.loss_pointwise,
            native.loss_method,
            native.objective,
            native.objective_method,
        )
    )
)
globals().update(losses)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

"""The primitives in plain NumPy: fallback where there is no native code, and its test oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pullback.reference.elementwise import elementwise
from pullback.reference.forms import bilinear_form, quadratic_form
from pullback.reference.linear import linear
from pullback.reference.losses import losses as _losses
from pullback.reference.matmul import matmul
from pullback.reference.reductions import reductions as _reductions

__all__ = [
    *elementwise,
    *_losses,
    *_reductions,
    "bilinear_form",
    "linear",
    "matmul",
    "quadratic_form",
]

globals().update(elementwise)
globals().update(_losses)
globals().update(_reductions)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

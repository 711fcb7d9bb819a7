"""The primitives in plain NumPy: fallback where there is no native code, and its test oracle."""

from __future__ import annotations

from pullback.elementwise import make_elementwise
from pullback.engine import ORACLE
from pullback.losses import make_losses
from pullback.products import make_products
from pullback.reductions import make_reductions

_primitives = {
    name: primitive
    for make in (make_elementwise, make_products, make_reductions, make_losses)
    for name, primitive in make(ORACLE).items()
}
globals().update(_primitives)

__all__ = [*_primitives]

"""All primitives by name, from every column."""

from __future__ import annotations

from typing import Final

from pullback.elementwise import primitives as elementwise
from pullback.losses import losses
from pullback.products import products
from pullback.reductions import reductions
from pullback.registry import Registry
from pullback.selections import selections
from pullback.tables.losses import IN_LOSSES_ALONE

__all__ = ["own", "primitives"]

primitives: Final = Registry.joined(elementwise, products, reductions, selections, losses)
# Those at the top of the package.
own: Final = Registry(
    [name for name in primitives if name not in IN_LOSSES_ALONE], primitives.__getitem__
)

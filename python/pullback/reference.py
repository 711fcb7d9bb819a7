"""The primitives in plain NumPy: fallback where there is no native code, and its test oracle.

Each is made when it is first asked for. The losses that the package has only in `losses` are here,
too, but a star import leaves them out.
"""

from __future__ import annotations

from typing import Final

from pullback.elementwise import make_elementwise
from pullback.grams import make_gram
from pullback.losses import make_losses
from pullback.oracle.engine import ORACLE
from pullback.products import make_products
from pullback.reductions import make_reductions
from pullback.registry import Registry, attributes
from pullback.selections import make_selections
from pullback.tables.losses import IN_LOSSES_ALONE

_primitives: Final = Registry.joined(
    make_elementwise(ORACLE),
    make_products(ORACLE),
    make_reductions(ORACLE),
    make_selections(ORACLE),
    make_losses(ORACLE),
)
gram: Final = make_gram(ORACLE)
__getattr__ = attributes(globals(), _primitives)

__all__ = [*(name for name in _primitives if name not in IN_LOSSES_ALONE), "gram"]


def __dir__() -> list[str]:
    return __all__

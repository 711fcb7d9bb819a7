"""The primitives in plain NumPy: fallback where there is no native code, and its test oracle.

Each is made when it is first asked for.
"""

from __future__ import annotations

from typing import Any, Final

from pullback.elementwise import make_elementwise
from pullback.engine import ORACLE
from pullback.losses import make_losses
from pullback.products import make_products
from pullback.reductions import make_reductions
from pullback.tables.elementwise import OPS
from pullback.tables.losses import LOSSES
from pullback.tables.products import PRODUCTS
from pullback.tables.reductions import REDUCTIONS

_COLUMNS: Final = (
    (OPS, make_elementwise),
    (PRODUCTS, make_products),
    (REDUCTIONS, make_reductions),
    (LOSSES, make_losses),
)

__all__ = [name for table, _ in _COLUMNS for name in table]  # type: ignore[attr-defined]


def __getattr__(name: str) -> Any:
    for table, make in _COLUMNS:
        if name in table:  # type: ignore[operator]
            return globals().setdefault(name, make(ORACLE)[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

"""The oracle as an engine: the primitives' twins in plain NumPy run on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final

from pullback.engine import Engine
from pullback.oracle import gram, losses, products, reductions
from pullback.tables.losses import LOSSES
from pullback.tables.products import PRODUCTS
from pullback.tables.reductions import REDUCTIONS

__all__ = ["ORACLE"]


def _by_name(table: Mapping[str, Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a row as one of the row's name."""
    return lambda name, *arguments: function(table[name], *arguments)


ORACLE: Final = Engine(
    False,
    SimpleNamespace(
        reduce_slices=_by_name(REDUCTIONS, reductions.reduce_slices),
        reduce_tangents=_by_name(REDUCTIONS, reductions.reduce_tangents),
        transform_slices=_by_name(REDUCTIONS, reductions.transform_slices),
        second_rows=lambda *_: None,
        plain_arrays=lambda *_: None,
        product_results=_by_name(PRODUCTS, products.product_results),
        loss_sums=_by_name(LOSSES, losses.loss_sums),
        loss_pointwise=_by_name(LOSSES, losses.loss_pointwise),
        loss_line=_by_name(LOSSES, losses.loss_line),
        softmax_hessians=losses.softmax_hessians,
        gram_sums=gram.gram_sums,
    ),
)

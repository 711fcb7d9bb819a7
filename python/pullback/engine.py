"""Engines: the functions that the primitives run on, native or the oracle's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pullback.config import native

__all__ = ["BACKEND", "Engine", "attribute_of", "enter"]


@dataclass(frozen=True, eq=False)
class Engine:
    """What computes.

    Parameters
    ----------
    is_native : bool
        Whether methods may enter the kernels at once.
    kernels : module or namespace
        ``reduce_slices``, ``reduce_tangents`` and ``transform_slices``, as in
        `pullback.oracle.reductions`, ``product_results``, as in `pullback.oracle.products`,
        ``loss_sums``, ``loss_line`` and ``loss_pointwise``, as in `pullback.oracle.losses`, all of
        which take a row's name for the row, and its ``softmax_hessians``; ``gram_sums``, as in
        `pullback.oracle.gram`; and ``plain_arrays(*operands)``, as
        arrays of the dtype that they compute in, where None stays, or None for what Python
        converts.
    """

    is_native: bool
    kernels: Any

    def module(self, column: str) -> str:
        """Return the module whose attributes a column's primitives are, for pickle."""
        return f"pullback.{column}" if self.is_native else "pullback.reference"

    @property
    def remark(self) -> str:
        """What sets primitives apart in their repr."""
        return "" if self.is_native else ", NumPy twin"


def enter(make: Callable[[Any], Any], owner: Any, name: str, label: str, module: str) -> Any:
    """Return a native method, made of the owner's own, to which it falls back and which it equals.

    Parameters
    ----------
    make : callable
        ``make(fallback)``, the native method.
    owner, name : object, str
        Whose method of what name it is, which is how it pickles.
    label, module : str
        What the owner is called, and where.
    """
    fallback = getattr(owner, name)
    call = make(fallback)
    call.__name__, call.__qualname__ = name, f"{label}.{name}"
    call.__module__, call.__doc__ = module, fallback.__doc__
    call.__reduce__ = partial(attribute_of, owner, name)
    return call


def attribute_of(owner: object, name: str) -> Any:
    """Return what pickles as an attribute of another object."""
    return getattr, (owner, name)


# --- the one in use -------------------------------------------------------------------------------


def _backend() -> Engine:
    if native is not None:
        return Engine(True, native)
    from pullback.oracle.engine import ORACLE  # noqa: PLC0415  which native kernels do without

    return ORACLE


BACKEND: Final = _backend()

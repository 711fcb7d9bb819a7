"""Engines: the functions that primitives call, native ones or those in `pullback.oracle`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pullback.config import guarded, native
from pullback.protocol import WithMethods

__all__ = ["BACKEND", "OF_VJP", "Engine", "attribute_of", "enter", "private", "with_methods"]


@dataclass(frozen=True, eq=False)
class Engine:
    """The functions that primitives compute with.

    Parameters
    ----------
    is_native : bool
        Whether methods may call the kernels directly.
    kernels : module or namespace
        ``reduce_slices``, ``reduce_tangents`` and ``transform_slices`` as in
        `pullback.oracle.reductions`; ``product_results`` as in `pullback.oracle.products`;
        ``loss_sums``, ``loss_line`` and ``loss_pointwise`` as in `pullback.oracle.losses`. All of
        these take a row's name instead of the row. Further ``second_rows``, which `SecondOrder` of
        `pullback.second_order` calls before it takes the formula, ``softmax_hessians`` as in
        `pullback.oracle.losses`, ``gram_sums`` as in `pullback.oracle.gram`, and
        ``plain_arrays(*operands)``: it returns arrays of the dtype that the operands compute in,
        where None stays None, or it returns None if Python has to convert an operand.
    """

    is_native: bool
    kernels: Any

    def module(self, column: str) -> str:
        """Return the module whose attributes a column's primitives are, for pickle."""
        return f"pullback.{column}" if self.is_native else "pullback.reference"

    @property
    def remark(self) -> str:
        """The remark in the primitives' repr."""
        return "" if self.is_native else ", NumPy twin"


def enter(make: Callable[[Any], Any], owner: Any, name: str, label: str, module: str) -> Any:
    """Return a native method, which falls back to the owner's Python method and gives its results.

    Parameters
    ----------
    make : callable
        ``make(fallback)``, the native method.
    owner, name : object, str
        The method's owner and name; it pickles by these.
    label, module : str
        The owner's name, and its module.
    """
    fallback = getattr(owner, name)
    call = make(fallback)
    call.__name__, call.__qualname__ = name, f"{label}.{name}"
    call.__module__, call.__doc__ = module, fallback.__doc__
    call.__reduce__ = partial(attribute_of, owner, name)
    return call


OF_VJP: Final = ("vjp.jvp", "vjp.vjp")  # the methods of vjp, which is a primitive too


def private(name: str) -> str:
    """Return where a primitive keeps a method: one of vjp's under a name of its own."""
    return f"_{name.replace('.', '_')}" if name in OF_VJP else name


def with_methods(
    vjp: Any, owner: object, engine: Engine, make: Callable[[str, Any], Any] | None = None
) -> Any:
    """Return a primitive's vjp with the methods that its owner keeps for it.

    Natively, they are what ``make(name, fallback)`` returns, or else guarded.
    """
    own = {name: getattr(owner, private(name)) for name in OF_VJP}
    if not engine.is_native:
        return WithMethods(vjp, **{name.removeprefix("vjp."): f for name, f in own.items()})
    for name, function in own.items():
        call = guarded(function) if make is None else make(name, function)
        for attribute in ("__module__", "__qualname__", "__doc__"):
            setattr(call, attribute, getattr(function, attribute))
        call.__name__ = name.removeprefix("vjp.")
        call.__reduce__ = partial(attribute_of, vjp, call.__name__)
        setattr(vjp, call.__name__, call)
    return vjp


def attribute_of(owner: object, name: str) -> Any:
    """Return an attribute of an object, for pickle."""
    return getattr, (owner, name)


# --- the one in use -------------------------------------------------------------------------------


def _backend() -> Engine:
    if native is not None:
        return Engine(True, native)
    from pullback.oracle.engine import ORACLE  # noqa: PLC0415  which native kernels do without

    return ORACLE


BACKEND: Final = _backend()

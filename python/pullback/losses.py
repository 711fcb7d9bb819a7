"""Losses of linear models: value and gradient in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pullback import reference
from pullback.config import native
from pullback.reference.losses import LinearLoss, check_arguments, like_bias

__all__ = ["losses"]

_METHODS: Final = ("value", "value_and_grad")


class NativeLoss:
    """A loss whose methods are native callables; documented by its NumPy twin."""

    value: Callable[..., float]
    value_and_grad: Callable[..., Any]

    def __init__(self, kernels: ModuleType, twin: LinearLoss) -> None:
        self.__name__ = twin.__name__
        self.__qualname__ = f"losses.{twin.__name__}"
        self.__doc__ = twin.__doc__
        self.__module__ = "pullback"
        for method in _METHODS:
            call = kernels.loss_method(twin.__name__, 0.0, method, self._convert(kernels, method))
            call.__name__ = method
            call.__qualname__ = f"{self.__qualname__}.{method}"
            call.__module__ = self.__module__
            call.__doc__ = getattr(twin, method).__doc__
            setattr(self, method, call)

    def __repr__(self) -> str:
        return f"<loss '{self.__name__}'>"

    def __reduce__(self) -> str:
        return self.__qualname__

    def _convert(self, kernels: ModuleType, method: str) -> Callable[..., Any]:
        """Return what takes every call that the kernel leaves: it checks, converts, calls again."""
        op = f"{self.__name__}.{method}"

        def refuse(*arguments: Any) -> Any:
            raise AssertionError(f"{op}: no kernel for converted arguments {arguments}")

        kernel = kernels.loss_method(self.__name__, 0.0, method, refuse)

        def convert(X: Any, y: Any, w: Any, b: Any = None) -> Any:
            arrays = check_arguments(op, X, y, w, b)
            bias = None if arrays.b is None else float(arrays.b.reshape(()))
            result = kernel(*map(_plain, arrays[:3]), bias)
            if method == "value":
                return result
            loss, (gw, gb) = result
            return loss, (gw, like_bias(gb, b))

        convert.__qualname__ = op  # what Python calls it when arguments are missing
        return convert


def _plain(array: Any) -> Any:
    """Return `array` as an exact, aligned, native ndarray with contiguous rows."""
    array = np.require(array, array.dtype.newbyteorder("="), ["ALIGNED", "ENSUREARRAY"])
    item = array.itemsize
    if array.strides[-1] == item and all(stride % item == 0 for stride in array.strides):
        return array
    return np.ascontiguousarray(array)


losses: Final[Mapping[str, Any]] = MappingProxyType(
    {
        twin.__name__: twin if native is None else NativeLoss(native, twin)
        for twin in vars(reference).values()
        if isinstance(twin, LinearLoss)
    }
)
globals().update(losses)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

"""The number of threads of NumPy's BLAS, if it is OpenBLAS."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, Final

__all__ = ["threads"]

# The functions' names as built, and as NumPy's wheels and some systems rename them.
_NAMES: Final = ("openblas_{}", "openblas_{}64_", "scipy_openblas_{}", "scipy_openblas_{}64_")


@cache
def _function(name: str) -> Callable[..., Any] | None:
    """Return a function of the copy of OpenBLAS that NumPy has loaded, None if there is none."""
    # No path to the library is needed: symbols are looked up in a module's dependencies, too.
    numpy_ = ctypes.CDLL(import_module("numpy._core._multiarray_umath").__file__)
    found = (getattr(numpy_, form.format(name), None) for form in _NAMES)
    return next((function for function in found if function is not None), None)


@contextmanager
def threads(n: int | None) -> Iterator[bool]:
    """Set the number of threads for a block (None changes nothing); yield whether it can be set."""
    get, set_ = _function("get_num_threads"), _function("set_num_threads")
    if n is None or get is None or set_ is None:
        yield n is None
        return
    before = get()
    set_(n)
    try:
        yield True
    finally:
        set_(before)

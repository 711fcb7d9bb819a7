"""What the constructors share: shapes, dtypes, and arrays of their own."""

from __future__ import annotations

import math
import sys
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.protocol import as_array, as_ints, kernel_dtype, shown

__all__ = ["Array", "as_shape", "own", "presented"]

Array: TypeAlias = npt.NDArray[Any]


def as_shape(op: str, name: str, shape: Any) -> tuple[int, ...]:
    """Return a shape as a tuple of ints."""
    sizes = as_ints(op, name, shape)
    if any(n < 0 for n in sizes):
        raise ValueError(f"{op}: {name} {shown(sizes)} has a negative extent")
    if any(n > sys.maxsize for n in sizes):
        raise ValueError(f"{op}: {name} {shown(sizes)} is larger than any array")
    return sizes


def own(op: str, name: str, values: npt.ArrayLike, *, copy: bool) -> Array:
    """Return a read-only array in the dtype of its kernels."""
    array = as_array(op, name, values)
    dtype = kernel_dtype(op, name, array.dtype)
    owned = np.array(array, dtype=dtype) if copy else np.asarray(array, dtype=dtype).view()
    owned.flags.writeable = False
    return owned


def presented(
    op: str, which: str, shape: tuple[int, ...] | None, canonical: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the shape in which an operand or a result of `canonical` shape is presented."""
    if shape is None:
        return canonical
    shape = as_shape(op, f"{which}_shape", shape)
    if math.prod(shape) != math.prod(canonical):
        raise ValueError(f"{op}: {which}_shape {shape} has not as many elements as {canonical}")
    return shape

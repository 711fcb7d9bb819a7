"""What all kinds share: shapes, dtypes, private arrays, and arithmetic without warnings."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from pullback.config import native
from pullback.protocol import as_array, as_ints, kernel_dtype, shown

__all__ = [
    "Array",
    "Scaling",
    "add",
    "as_shape",
    "divide",
    "multiply",
    "own",
    "presented",
    "product",
    "silent",
    "subtract",
    "sum_along",
]

Array: TypeAlias = npt.NDArray[Any]
Scaling: TypeAlias = Callable[[Any, Any], Any]  # `multiply` or `divide`, of elements and a number
_FEW: Final = 2**12  # multiplications, for which NumPy's BLAS is not worth the call
F = TypeVar("F", bound=Callable[..., Any])


def silent(function: F) -> F:
    """Return a function that computes without NumPy's warnings.

    Silencing takes as long as a small matrix product, so only functions that may warn need it.
    """
    silenced: F = np.errstate(all="ignore")(function)
    return silenced


def product(A: Array, B: Array) -> Array:
    """Return A @ B."""
    few = A.size * B.shape[-1] <= _FEW
    return _small_product(A, B) if few else _large_product(A, B)


def _large_product(A: Array, B: Array) -> Array:
    with np.errstate(all="ignore"):
        product: Array = np.matmul(A, B)
        return product


def _summed(x: Array, axis: tuple[int, ...]) -> Array:
    with np.errstate(all="ignore"):
        total: Array = np.add.reduce(x, axis, np.float64)
        return total.astype(x.dtype, copy=False)


# Native ufuncs do not warn, and so save the time for silencing.
add: Callable[..., Any]
divide: Callable[..., Any]
multiply: Callable[..., Any]
subtract: Callable[..., Any]
sum_along: Callable[[Array, tuple[int, ...]], Array]  # in float64
_small_product: Callable[[Array, Array], Array]
if native is None:
    add, divide = silent(np.add), silent(np.divide)
    multiply, subtract = silent(np.multiply), silent(np.subtract)
    sum_along, _small_product = _summed, _large_product
else:
    _small_product = native.product_method("matmul", "value", _large_product)
    sum_along = native.reduction_method("sum", "value", "", 0.0, None, _summed)
    add, divide, multiply, subtract = (
        native.elementwise_ufunc(name, "value", f"jacobians.{name}", "Of elements.")
        for name in ("add", "divide", "multiply", "subtract")
    )


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

"""What the matrix products' methods share: `wrt`, `out`, tangents, and being found by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.contraction import Product
from pullback.protocol import as_arrays, as_index, named_after, shown

__all__ = [
    "Outputs",
    "Primitive",
    "Wrt",
    "aligned",
    "as_matrix",
    "check_outs",
    "check_tangents",
    "check_wrt",
    "tangents_of",
]

Array: TypeAlias = npt.NDArray[Any]


class Primitive:
    """A primitive made of matrix products, found by its name.

    Arguments compute in `pullback.protocol.result_dtype` and are never written.
    Kernels get plain, aligned arrays of one dtype.

    Parameters
    ----------
    product : callable
        The kernel of every product, here and in the derivatives: `pullback.contraction.Product`.
    module : str
        The module that holds the object under its name, for pickle.
    """

    _name: str

    def __new__(cls, *arguments: Any) -> Self:
        """Return an instance of a class named after the operation."""
        del arguments
        return super().__new__(named_after(cls, cls._name))

    def __init__(self, product: Product, module: str) -> None:
        self._product = product
        self.__name__ = self.__qualname__ = self._name
        self.__doc__ = type(self).__call__.__doc__
        self.__module__ = module

    def __repr__(self) -> str:
        return f"<{self.__name__} of {self.__module__}>"

    def __reduce__(self) -> str:
        return self.__name__


def aligned(op: str, *operands: Any, names: Sequence[str]) -> tuple[Array, ...]:
    """Return `operands` as aligned arrays of their common dtype, copied only where needed."""
    return tuple(
        array if array.flags.aligned else array.copy()
        for array in as_arrays(op, *operands, names=names)
    )


def as_matrix(array: Array) -> Array:
    """Return an array of rows (..., n) as a matrix, a view where its strides allow that."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


# --- tangents -------------------------------------------------------------------------------------


def tangents_of(
    op: str, primals: Sequence[Any], tangents: Sequence[Any], names: Sequence[str]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Convert primals and tangents to one dtype; a None among them stays None.

    Raises
    ------
    ValueError
        If all tangents are None, or one is given for a primal that is None.
    """
    t_names = [f"t{name}" for name in names]
    if all(tangent is None for tangent in tangents):
        raise ValueError(f"{op}: {', '.join(t_names)} are all None: there is no tangent")
    for primal, tangent, name in zip(primals, tangents, names, strict=True):
        if primal is None and tangent is not None:
            raise ValueError(f"{op}: t{name} is given, but {name} is None")
    everything = [*primals, *tangents]
    given = [(a, name) for a, name in zip(everything, [*names, *t_names], strict=True)]
    given = [(a, name) for a, name in given if a is not None]
    arrays = iter(aligned(op, *(a for a, _ in given), names=[name for _, name in given]))
    converted = tuple(None if a is None else next(arrays) for a in everything)
    return converted[: len(primals)], converted[len(primals) :]


def check_tangents(
    op: str, primals: Sequence[Any], tangents: Sequence[Any], names: Sequence[str]
) -> None:
    """Raise ValueError unless every tangent that is given has its primal's shape."""
    for primal, tangent, name in zip(primals, tangents, names, strict=True):
        if tangent is not None and tangent.shape != primal.shape:
            raise ValueError(f"{op}: t{name} has shape {tangent.shape}, {name} has {primal.shape}")


# --- wrt ------------------------------------------------------------------------------------------


class Wrt(NamedTuple):
    """The operands whose cotangents are asked for."""

    operands: tuple[int, ...]
    single: bool  # one cotangent, not a tuple of them

    def result(self, cotangents: Sequence[Any]) -> Any:
        """Return cotangents as they were asked for."""
        return cotangents[0] if self.single else tuple(cotangents)


def check_wrt(op: str, wrt: Any, count: int) -> Wrt:
    """Return what `wrt` asks for: an int or a tuple of distinct ones, all below `count`."""
    entries = wrt if isinstance(wrt, tuple) else (wrt,)
    valid = f"an int below {count} or a tuple of distinct ones"
    operands = tuple(as_index(op, "wrt", entry, valid, wrt) for entry in entries)
    if not operands or len(set(operands)) < len(operands) or not {*operands} <= {*range(count)}:
        raise ValueError(f"{op}: wrt must be {valid}, not {shown(wrt)}")
    return Wrt(operands, not isinstance(wrt, tuple))


# --- out ------------------------------------------------------------------------------------------


class Outputs:
    """Where results go: checked before anything is computed, written as if after everything.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    out : None, ndarray, or tuple of ndarray or None
        What the caller gave: an array for a single result, a tuple for several.
    shapes : sequence of tuple of int, or None
        The results' shapes; None for one that does not exist.
    dtype : dtype
        The results' dtype.
    inputs : sequence of ndarray or None
        What the results are computed from.
    single : bool
        Whether there is one result, not a tuple.

    Raises
    ------
    TypeError
        If `out` is not of this form, or an array's dtype is not the result's.
    ValueError
        If an array has another shape, is read-only, or overlaps another one.
    """

    def __init__(
        self,
        op: str,
        out: Any,
        shapes: Sequence[tuple[int, ...] | None],
        dtype: np.dtype[Any],
        inputs: Sequence[Any],
        *,
        single: bool,
    ) -> None:
        self._shapes = shapes
        self._outs = check_outs(op, out, shapes, [dtype] * len(shapes), single=single)
        self._targets: list[Array | None] = [None] * len(shapes)
        self._free = tuple(
            target is not None
            and target.flags.aligned
            and _lies_apart(target)
            and not any(
                array is not None and np.may_share_memory(target, array) for array in inputs
            )
            for target in self._outs
        )

    def targets(
        self, *views: tuple[int, ...] | None, contiguous: bool = False
    ) -> tuple[Array | None, ...]:
        """Return what kernels may write to at once, each as an array of the given shape.

        None where there is no output, or one that overlaps an input or itself, lies misaligned or
        cannot be seen in that shape, or in C order where it has to be `contiguous`.
        """
        for i, shape in enumerate(views):
            if self._free[i] and shape is not None:
                view = _view(self._outs[i], shape)
                if view is None or view.flags.c_contiguous or not contiguous:
                    self._targets[i] = view
        return tuple(self._targets)

    def deliver(self, results: Sequence[Array | None]) -> tuple[Any, ...]:
        """Return results in their shapes, in the outputs where these are given."""
        delivered: list[Any] = []
        for result, out, target, shape in zip(
            results, self._outs, self._targets, self._shapes, strict=True
        ):
            if result is None or shape is None:
                delivered.append(None)
                continue
            if out is None:
                delivered.append(result.reshape(shape))
                continue
            if target is None:
                np.copyto(out, result.reshape(shape))
            delivered.append(out)
        return tuple(delivered)


def check_outs(
    op: str,
    out: Any,
    shapes: Sequence[tuple[int, ...] | None],
    dtypes: Sequence[np.dtype[Any]],
    *,
    single: bool,
) -> tuple[Any, ...]:
    """Return `out`, an array or a tuple of arrays and None, as a tuple, checked as by `Outputs`."""
    outs: tuple[Any, ...] = _as_tuple(op, out, len(shapes), single)
    for i, target in enumerate(outs):
        if target is not None:
            _check_out(op, "out" if single else f"out[{i}]", target, shapes[i], dtypes[i])
    for (i, one), (j, other) in combinations(enumerate(outs), 2):
        if one is not None and other is not None and _overlap(one, other):
            raise ValueError(f"{op}: out[{i}] and out[{j}] overlap")
    return outs


def _as_tuple(op: str, out: Any, count: int, single: bool) -> tuple[Any, ...]:
    if single:
        return (out,)
    if out is None:
        return (None,) * count
    if not isinstance(out, tuple):
        raise TypeError(f"{op}: out must be a tuple of {count} arrays, not {type(out).__name__}")
    if len(out) != count:
        raise ValueError(f"{op}: out holds {len(out)} arrays, there are {count} results")
    return out


def _check_out(
    op: str, name: str, out: Any, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{op}: {name} must be an array, not {type(out).__name__}")
    if shape is None:
        raise ValueError(f"{op}: {name} is given for a result that does not exist")
    if out.shape != shape:
        raise ValueError(f"{op}: {name} has shape {out.shape}, the result {shape}")
    if out.dtype != dtype:
        raise TypeError(f"{op}: {name} has dtype {out.dtype}, the result {dtype}")
    if not out.flags.writeable:
        raise ValueError(f"{op}: {name} is read-only")


def _overlap(one: Array, other: Array) -> bool:
    try:
        # NumPy's stub knows of no bounds but -1 and 0.
        return np.shares_memory(one, other, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:  # strides so odd that it takes long to tell
        return True


def _lies_apart(out: Array) -> bool:
    """Tell whether no two elements of `out` share memory; of interleaved axes say no."""
    span = out.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(out.strides, out.shape, strict=True)):
        if n > 1:
            if stride < span:
                return False
            span += stride * (n - 1)
    return True


def _view(out: Array, shape: tuple[int, ...]) -> Array | None:
    """Return `out` in another shape, or None if its strides do not allow that."""
    try:
        return out.view(np.ndarray).reshape(shape, copy=False)
    except ValueError:
        return None

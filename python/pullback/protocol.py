"""What all calls share: converting and checking arguments, `wrt`, `out`, masks, methods.

Errors name the operation and the argument.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, update_wrapper
from itertools import combinations, repeat
from operator import index
from types import FunctionType, MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from pullback.foreign import (
    FLOAT32,
    FLOAT64,
    KERNEL_DTYPES,
    array_of,
    check_labels,
    check_unmasked,
    converted,
    is_of_python,
    is_weak,
    kernel_dtype,
    shown,
)
from pullback.shapes import broadcast_shapes

__all__ = [
    "OPERANDS",
    "WRT",
    "Outputs",
    "WithMethods",
    "Wrt",
    "aligned",
    "arrays_of_vjp",
    "as_array",
    "as_arrays",
    "as_flag",
    "as_index",
    "as_ints",
    "as_matrix",
    "as_number",
    "broadcast_shape",
    "check_cotangent",
    "check_given",
    "check_labels",
    "check_outs",
    "check_shape",
    "check_unmasked",
    "check_where",
    "check_wrt",
    "converted",
    "deliver",
    "flat_outs",
    "is_weak",
    "kernel_dtype",
    "method",
    "methods_and_example",
    "named_after",
    "result_dtype",
    "shape_of",
    "shown",
    "sum_repeated",
    "tangents_of",
]

Array: TypeAlias = npt.NDArray[Any]
T = TypeVar("T")

# What an elementwise operation's operands are called, by their number.
OPERANDS: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType({1: ("x",), 2: ("w", "x")})


def as_array(op: str, name: str, given: Any) -> Array:
    """Return an argument as an array, copied only where needed.

    Raises
    ------
    TypeError, ValueError
        If it does not convert to an array of numbers: see `pullback.foreign.array_of`.
    """
    return given if type(given) is np.ndarray else array_of(op, name, given)


def shape_of(op: str, name: str, given: Any) -> tuple[int, ...]:
    """Return the shape of an argument, converted only if it has no shape; errors as above."""
    shape = getattr(given, "shape", None)
    return tuple(shape) if isinstance(shape, tuple) else as_array(op, name, given).shape


def as_index(
    op: str, name: str, given: Any, wanted: str = "an integer", whole: object = None
) -> int:
    """Return an argument, or an item of the `whole` argument, as an int; a bool is refused."""
    try:
        if not isinstance(given, bool | np.bool_):
            return index(given)
    except TypeError as error:
        if is_of_python(error):
            raise
    raise TypeError(
        f"{op}: {name} must be {wanted}, not {shown(given if whole is None else whole)}"
    )


def as_ints(
    op: str, name: str, given: Any, wanted: str = "an integer or a tuple of them"
) -> tuple[int, ...]:
    """Return an int, or several of them, as a tuple."""
    if type(given) is tuple and all(type(entry) is int for entry in given):
        return given
    entries = given.tolist() if isinstance(given, np.ndarray) else given
    return tuple(
        as_index(op, name, entry, wanted, given)
        for entry in (entries if isinstance(entries, tuple | list) else (entries,))
    )


def as_flag(op: str, name: str, given: Any) -> bool:
    """Return an argument as a bool; TypeError unless it is one or, as in NumPy, an integer."""
    if isinstance(given, bool | np.bool_ | int | np.integer):
        return bool(given)
    raise TypeError(f"{op}: {name} must be a bool, not {shown(given)}")


# --- dtypes ---------------------------------------------------------------------------------------


def result_dtype(op: str, *operands: object, names: Sequence[str] = ()) -> np.dtype[Any]:
    """Return the dtype, float32 or float64, in which an operation on `operands` is computed.

    Parameters
    ----------
    op : str
        The operation, for the error message.
    *operands : array_like
        Python integers and floats are weak (NEP 50); alone they give float64.
    names : sequence of str, optional
        The operands' names, for the error message; ``x``, or ``w`` and ``x``, when omitted.

    Returns
    -------
    dtype
        float64 if any operand computes in float64 (see `kernel_dtype`), else float32.

    Raises
    ------
    TypeError
        If an operand's dtype has no kernel.
    """
    kernels = set()
    for name, o in zip(names or OPERANDS[len(operands)], operands, strict=True):
        if type(o) is np.ndarray or not is_weak(o):
            dtype = (o if type(o) is np.ndarray else as_array(op, name, o)).dtype
            kernels.add(KERNEL_DTYPES.get(dtype.char) or kernel_dtype(op, name, dtype))
    return FLOAT32 if kernels == {FLOAT32} else FLOAT64


def as_arrays(op: str, *operands: object, names: Sequence[str] = ()) -> tuple[Array, ...]:
    """Convert `operands` to arrays of their common `result_dtype`, copying only where needed."""
    names = names or OPERANDS[len(operands)]
    strong: list[Any] = [
        o if type(o) is np.ndarray or is_weak(o) else as_array(op, names[i], o)
        for i, o in enumerate(operands)
    ]
    dtype = result_dtype(op, *strong, names=names)
    if all(type(o) is np.ndarray and o.dtype is dtype for o in strong):
        return tuple(strong)
    with np.errstate(all="ignore"):  # a weak 1e300 overflows to inf in float32
        try:
            return tuple(np.asarray(o, dtype) for o in strong)
        except OverflowError:  # of one of them, which is told
            return tuple(map(converted, repeat(op), names, strong, repeat(dtype)))


def as_number(op: str, name: str, given: Any) -> float:
    """Return a parameter as a float.

    Raises
    ------
    TypeError
        If it is no real number, or an integer that float64 does not hold.
    """
    if is_weak(given):
        return float(converted(op, name, given, FLOAT64))
    if given is None or isinstance(given, str) or (array := as_array(op, name, given)).ndim != 0:
        raise TypeError(f"{op}: {name} must be a number, not {shown(given)}")
    kernel_dtype(op, name, array.dtype)
    return float(array)


# --- plain arrays ---------------------------------------------------------------------------------


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
    op: str,
    primals: Sequence[Any],
    tangents: Sequence[Any],
    names: Sequence[str],
    t_names: Sequence[str] = (),
    optional: str | None = None,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Convert primals and tangents to one dtype; a tangent that is None, which is zero, stays None.

    A tangent that is a Python number fills its primal's shape.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    primals, tangents : sequence of array_like or None
        As many of both.
    names, t_names : sequence of str
        Their names; the default for the tangent of ``x`` is ``tx``.
    optional : str, optional
        The primal that may be None.

    Raises
    ------
    ValueError
        If a tangent is given for a primal that is None, or its shape is not its primal's.
    """
    t_names = t_names or [f"t{name}" for name in names]
    lacks = [
        primal is None and name == optional for primal, name in zip(primals, names, strict=True)
    ]
    for lacking, tangent, name, t_name in zip(lacks, tangents, names, t_names, strict=True):
        if lacking and tangent is not None:
            raise ValueError(f"{op}: {t_name} is given, but {name} is None")
    absent = [*lacks, *(tangent is None for tangent in tangents)]
    named = zip([*primals, *tangents], [*names, *t_names], absent, strict=True)
    given = [(a, name) for a, name, is_absent in named if not is_absent]
    arrays = iter(aligned(op, *(a for a, _ in given), names=[name for _, name in given]))
    there: tuple[Any, ...] = tuple(None if is_absent else next(arrays) for is_absent in absent)
    numbers = [is_weak(tangent) for tangent in tangents]
    primals, tangents = there[: len(primals)], there[len(primals) :]
    tangents = tuple(
        np.full(primal.shape, tangent) if is_number else tangent
        for primal, tangent, is_number in zip(primals, tangents, numbers, strict=True)
    )
    for primal, tangent, name, t_name in zip(primals, tangents, names, t_names, strict=True):
        if tangent is not None and tangent.shape != primal.shape:
            raise ValueError(f"{op}: {t_name} has shape {tangent.shape}, {name} has {primal.shape}")
    return primals, tangents


# --- wrt ------------------------------------------------------------------------------------------


class Wrt(NamedTuple):
    """The operands whose cotangents are asked for."""

    operands: tuple[int, ...]
    single: bool  # one cotangent, not a tuple of them

    def result(self, cotangents: Sequence[Any]) -> Any:
        """Return cotangents as they were asked for."""
        return cotangents[0] if self.single else tuple(cotangents)


# What docstrings say of it.
WRT: Final = (
    "wrt : str, int, a tuple of them, or 'all'",
    "    The operands whose results to return, by name or position. A single operand gives its",
    "    result, a tuple gives a tuple.",
)


def check_wrt(op: str, wrt: Any, names: Sequence[str], without: Sequence[str] = ()) -> Wrt:
    """Return what `wrt` asks for: operands by name or position, one, a tuple of them, or "all".

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    wrt : object
        What the caller gave.
    names : sequence of str
        The operands, in order.
    without : sequence of str
        Those operands that have no derivative.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If an operand is unknown, has no derivative, or is named twice.
    """
    if isinstance(wrt, str) and wrt == "all":
        return Wrt(tuple(k for k, name in enumerate(names) if name not in without), False)
    operands = []
    for entry in wrt if isinstance(wrt, tuple) else (wrt,):
        if type(entry) is int:
            operands.append(entry)
        elif isinstance(entry, str):
            operands.append(names.index(entry) if entry in names else -1)
        else:
            operands.append(as_index(op, "wrt", entry, _asked(names, without), wrt))
    right = all(0 <= k < len(names) and names[k] not in without for k in operands)
    if not operands or not right or len(set(operands)) < len(operands):
        raise ValueError(f"{op}: wrt must be {_asked(names, without)}, not {shown(wrt)}")
    return Wrt(tuple(operands), not isinstance(wrt, tuple))


def _asked(names: Sequence[str], without: Sequence[str]) -> str:
    listed = ", ".join(repr(name) for name in names if name not in without)
    return f"{listed}, the position of one, a tuple of distinct ones, or 'all'"


# --- out ------------------------------------------------------------------------------------------


class Outputs:
    """Outputs, checked before the call computes and written as if after all its reads.

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
        If `out` is not of this form, or NumPy does not cast the result to its dtype as one of the
        same kind.
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
            and target.dtype == dtype
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
        """Return the outputs that kernels may write to directly, each in the given shape.

        An entry is None if there is no output, if it overlaps an input or itself, if it is not
        aligned, or if there is no view of it in that shape, in C order where `contiguous` asks.
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
                with np.errstate(all="ignore"):  # a float64 that overflows in float32
                    np.copyto(out, result.reshape(shape), casting="same_kind")
            delivered.append(out)
        return tuple(delivered)


def check_outs(
    op: str,
    out: Any,
    shapes: Sequence[tuple[int, ...] | None],
    dtypes: Sequence[np.dtype[Any]],
    *,
    single: bool,
    apart: bool = True,
) -> tuple[Any, ...]:
    """Return `out`, an array or a tuple of arrays and None, as a tuple, checked as by `Outputs`.

    For a single result a tuple of one is allowed, too, as in NumPy. Outputs must not overlap each
    other if `apart`; elementwise operations do not check that, as in NumPy.
    """
    outs: tuple[Any, ...] = _as_tuple(op, out, len(shapes), single)
    for i, target in enumerate(outs):
        if target is not None:
            _check_out(op, "out" if single else f"out[{i}]", target, shapes[i], dtypes[i])
    for (i, one), (j, other) in combinations(enumerate(outs if apart else ()), 2):
        if one is not None and other is not None and _overlap(one, other):
            raise ValueError(f"{op}: out[{i}] and out[{j}] overlap")
    return outs


def _as_tuple(op: str, out: Any, count: int, single: bool) -> tuple[Any, ...]:
    if single:
        return out if isinstance(out, tuple) and len(out) == 1 else (out,)
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
    check_unmasked(op, name, out)
    if shape is None:
        raise ValueError(f"{op}: {name} is given for a result that does not exist")
    if out.shape != shape:
        raise ValueError(f"{op}: {name} has shape {out.shape}, the result {shape}")
    if not np.can_cast(dtype, out.dtype, "same_kind"):
        raise TypeError(f"{op}: {name} has dtype {out.dtype}, the result {dtype}")
    if not out.flags.writeable:
        raise ValueError(f"{op}: {name} is read-only")


def _overlap(one: Array, other: Array) -> bool:
    try:
        # NumPy's stub knows of no bounds but -1 and 0.
        return np.shares_memory(one, other, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:  # odd strides, for which the exact test takes long
        return True


def _lies_apart(out: Array) -> bool:
    """Tell whether no two elements of `out` share memory; False for interleaved axes."""
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


# --- broadcasting ---------------------------------------------------------------------------------


def broadcast_shape(op: str, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return what the named shapes broadcast to, or raise a ValueError that names them."""
    try:
        return broadcast_shapes(*shapes.values())
    except ValueError:
        listed = ", ".join(f"{name} has shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"{op}: {listed}: they do not broadcast") from None


def check_cotangent(
    op: str, g: tuple[int, ...], shape: tuple[int, ...], **operands: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the batch axes that a cotangent of shape `g` has in front of the value's `shape`."""
    n_batch = len(g) - len(shape)
    if n_batch < 0 or g[n_batch:] != shape:
        listed = " and ".join(f"{name} {operand}" for name, operand in operands.items())
        raise ValueError(
            f"{op}: g has shape {g}, which must end in {shape}, the value's shape for {listed}"
        )
    return g[:n_batch]


def check_given(
    op: str,
    given: Sequence[Any],
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...] | None],
    whose: Sequence[str],
) -> None:
    """Refuse a tangent or a cotangent, unless it is None or a number, of another shape.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    given : sequence of array_like or None
        Those that a method of vjp's takes.
    names, shapes : sequence of str, sequence of tuple of int or None
        Their names, and the shapes that they have to have; None for what must not be given.
    whose : sequence of str
        What has that shape.
    """
    for factor, name, shape, owner in zip(given, names, shapes, whose, strict=True):
        if factor is None or is_weak(factor):
            continue
        if shape is not None and (own := shape_of(op, name, factor)) != shape:
            raise ValueError(f"{op}: {name} has shape {own}, {owner} has {shape}")


def arrays_of_vjp(
    op: str,
    names: Sequence[str],
    primals: Sequence[Any],
    given: Sequence[Any],
    called: Sequence[str],
    shapes: Callable[..., tuple[Any, tuple[int, ...]]],
    *,
    of_tangents: bool,
    optional: str | None = None,
) -> tuple[list[Any], list[Any], Any, tuple[int, ...]]:
    """Return the arguments of a method of vjp's as arrays of one dtype, where None stays None.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    names, primals : sequence of str, sequence of array_like
        The operands; the `optional` one may be None.
    given, called : sequence of array_like or None, sequence of str
        The cotangent, and what follows it: tangents of the operands and of the cotangent
        (`of_tangents`), or cotangents of what vjp returns. Numbers fill their shapes.
    shapes : callable
        ``shapes(*primals)`` returns whatever it finds about these arrays, and the value's shape.

    Returns
    -------
    primals, given : list of ndarray or None
        Of the common dtype. The first of `given` is the cotangent.
    found : object
        What `shapes` found.
    stack : tuple of int
        The axes in front of the value's shape that the cotangent has.
    """
    g_name = called[0]
    if given[0] is None:
        raise TypeError(f"{op}: {g_name} is None, which is no cotangent")
    everything, everyone = (*primals, *given), (*names, *called)
    optionals = [None, *(n for n in (optional,) if n), *called[1:]]
    there = [
        (a, n)
        for a, n in zip(everything, everyone, strict=True)
        if a is not None or n not in optionals
    ]
    arrays = iter(aligned(op, *(a for a, _ in there), names=[n for _, n in there]))
    found = {n for _, n in there}
    plain: list[Any] = [next(arrays) if n in found else None for n in everyone]
    fit, value = shapes(*plain[: len(names)])
    primals = plain[: len(names)]
    named = {n: a.shape for n, a in zip(names, primals, strict=True) if a is not None}
    weak = list(map(is_weak, given))
    g = plain[len(names)]
    n_stack = 0 if weak[0] else g.ndim - len(value)
    if not weak[0] and (n_stack < 0 or g.shape[n_stack:] != value):
        listed = " and ".join(f"{n} {shape}" for n, shape in named.items())
        raise ValueError(
            f"{op}: {g_name} has shape {g.shape}, which must end in {value}, the value's shape for "
            f"{listed}"
        )
    stack = () if weak[0] else g.shape[:n_stack]
    own = [named.get(n) for n in names]
    front = () if of_tangents else stack
    wanted = [None if shape is None else front + shape for shape in own]
    whose = [*names] if of_tangents else [f"the cotangent of {n}" for n in names]
    if of_tangents:
        wanted.append(stack + value)
        whose.append(g_name)
    for factor, n, name, shape in zip(given[1:], called[1:], names, own, strict=False):
        if factor is not None and shape is None:
            raise ValueError(f"{op}: {n} is given, but {name} is None")
    check_given(op, given[1:], called[1:], wanted, whose)
    shaped = [
        np.full(shape, a) if is_number and shape is not None else a
        for a, is_number, shape in zip(
            plain[len(names) :], weak, [stack + value, *wanted], strict=True
        )
    ]
    return primals, shaped, fit, stack


def sum_repeated(terms: Any, batch: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Sum `terms`, shaped ``batch + broadcast``, over the axes along which `shape` was repeated.

    The sum accumulates in float64; where nothing was repeated, `terms` keep their bits.
    """
    if terms.shape == batch + shape:
        return terms
    if not hasattr(type(terms), "__array_function__"):  # such as a Series, whose labels are summed
        terms = np.asarray(terms)
    if terms.size == math.prod(batch + shape):
        return terms.reshape(batch + shape)[()]
    new_axes = terms.ndim - len(shape)
    axes = (
        *range(len(batch), new_axes),
        *(new_axes + i for i, n in enumerate(shape) if terms.shape[new_axes + i] != n),
    )
    with np.errstate(all="ignore"):
        total = np.sum(terms, axis=axes, dtype=np.float64)
        return total.astype(terms.dtype).reshape(batch + shape)[()]


def _leaves(tree: Any) -> Iterator[Any]:
    """Yield what a nested tuple holds, from left to right."""
    if isinstance(tree, tuple):
        for branch in tree:
            yield from _leaves(branch)
    else:
        yield tree


def _rebuild(tree: Any, leaves: Iterator[Any]) -> Any:
    """Return a nested tuple shaped like `tree` that holds `leaves`."""
    if isinstance(tree, tuple):
        return tuple(_rebuild(branch, leaves) for branch in tree)
    return next(leaves)


def flat_outs(op: str, out: Any, like: Any) -> Any:
    """Return `out` flat, as `check_outs` takes it.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    out : object
        What the caller gave: nested like the results, with None for some of them, or flat.
    like : object or tuple
        A bare result, or a tuple nested as the results are.
    """
    if out is None or not isinstance(like, tuple):
        return out
    count = len(tuple(_leaves(like)))
    return _as_tuple(op, tuple(_flat(out, like)) if isinstance(out, tuple) else out, count, False)


def _flat(out: Any, like: Any) -> Iterator[Any]:
    """Yield the outputs for the leaves of `like`."""
    if not isinstance(like, tuple):
        yield out
    elif out is None:
        yield from (None for _ in _leaves(like))
    elif isinstance(out, tuple) and len(out) == len(like):
        for branch, other in zip(out, like, strict=True):
            yield from _flat(branch, other)
    else:
        yield from out if isinstance(out, tuple) else (out,)


def deliver(op: str, results: Any, out: Any, where: Any = True) -> Any:
    """Return `results`, an array or nested tuple, in `out` where that is given.

    `out` is nested like the results, or flat. All outputs are checked before any is written. They
    are written where `where` is true: one mask for all results, or a tuple with a mask for each.
    """
    arrays = [as_array(op, "result", result) for result in _leaves(results)]
    count = len(arrays)
    given = flat_outs(op, out, results)
    shapes, dtypes = [a.shape for a in arrays], [a.dtype for a in arrays]
    single = not isinstance(results, tuple)
    outs = check_outs(op, given, shapes, dtypes, single=single, apart=False)
    masks = where if isinstance(where, tuple) else (where,) * count
    for array, target, mask in zip(arrays, outs, masks, strict=True):
        if target is not None:
            np.copyto(target, array, casting="same_kind", where=mask)
    delivered = (
        array[()] if target is None else target for array, target in zip(arrays, outs, strict=True)
    )
    return _rebuild(results, delivered)


def check_shape(op: str, out: Any, shape: tuple[int, ...]) -> None:
    """Refuse an output of another shape, to which NumPy would repeat the result."""
    target = out[0] if isinstance(out, tuple) and len(out) == 1 else out
    if isinstance(target, tuple):
        raise TypeError(f"{op}: out must be an array, not tuple")
    if isinstance(target, np.ndarray) and target.shape != shape:
        raise ValueError(f"{op}: out has shape {target.shape}, the result {shape}")


def check_where(op: str, where: Any, shape: tuple[int, ...], whose: str = "the result") -> Any:
    """Return a mask that broadcasts to a result's shape, or an operand's, or True.

    Raises
    ------
    TypeError
        If it is not of bools.
    ValueError
        If it does not broadcast to that shape.
    """
    if where is True:
        return True
    own = shape_of(op, "where", where)
    try:
        fits = broadcast_shapes(own, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        has = "" if whose == "the result" else " has"
        raise ValueError(f"{op}: where has shape {own}, {whose}{has} {shape}")
    if hasattr(type(where), "__array_ufunc__") and not isinstance(where, np.ndarray | np.generic):
        return where
    mask = as_array(op, "where", where)
    if mask.dtype != bool:
        raise TypeError(f"{op}: where has dtype {mask.dtype}, which is not bool")
    return mask


# --- methods --------------------------------------------------------------------------------------


class _LeftOut:
    """The default of an argument that may be omitted."""

    def __repr__(self) -> str:
        return "..."


def method(op: str, name: str, parameters: str, call: str, doc: str, result: str = "Any") -> Any:
    """Return a method with these parameters, whose body is a call.

    Python binds the arguments, so signature and messages are those of a method written by hand. The
    messages name the operation.
    """
    function = _renamed(
        _template(name, parameters, call, result), op if name == "__call__" else f"{op}.{name}"
    )
    function.__doc__ = doc
    return function


class WithMethods:
    """A method of a primitive that has methods of its own, as vjp, which is a primitive too.

    Parameters
    ----------
    bound : method
        What a call is.
    **own : callable
        Its methods, by name.
    """

    def __init__(self, bound: Any, **own: Any) -> None:
        update_wrapper(self, bound)
        self.__self__ = bound.__self__
        self.__dict__.update(own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        return self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return repr(self.__wrapped__)  # type: ignore[attr-defined]

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self.__wrapped__.__name__)  # type: ignore[attr-defined]


def methods_and_example(op: str, methods: Iterable[FunctionType]) -> str:
    """Return the end of an operation's docstring: its methods, and an example of a call."""
    import textwrap  # noqa: PLC0415  an import makes no primitives

    from pullback.tables.examples import EXAMPLES  # noqa: PLC0415

    lines = ["Methods", "-------"]
    for function in methods:
        given = inspect.signature(function)
        parameters = [
            parameter.replace(annotation=parameter.empty)
            for name, parameter in given.parameters.items()
            if name != "self"
        ]
        bare = given.replace(parameters=parameters, return_annotation=given.empty)
        signature = f"{function.__qualname__.removeprefix(f'{op}.')}{bare}"
        lines += textwrap.wrap(signature, 96, subsequent_indent=" " * 8)
        lines += [textwrap.indent(textwrap.fill(_summary(function), 96), "    ")]
    return "\n".join([*lines, "", "Examples", "--------", EXAMPLES.get(op, ""), ""])


def _summary(function: FunctionType) -> str:
    """Return the first sentence of a docstring, after the signature if there is one."""
    paragraphs = (" ".join(text.split()) for text in (function.__doc__ or "").split("\n\n"))
    return next(text for text in paragraphs if text.endswith("."))


@cache
def _template(name: str, parameters: str, call: str, result: str) -> FunctionType:
    """Return a function, which many operations share."""
    scope: dict[str, Any] = {}
    text = f"def {name}({parameters}) -> {result}:\n    return {call}"
    exec(text, {"__name__": __name__, "LEFT_OUT": _LeftOut()}, scope)
    return scope[name]  # type: ignore[no-any-return]


def named_after(kind: type[T], op: str) -> type[T]:
    """Return a subclass for one operation, so that Python's own messages name the operation.

    Otherwise Python would say "Reduction.vjp() missing ..." about a wrong number of arguments.
    """
    members: dict[str, Any] = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    for name in dir(kind):
        function = inspect.getattr_static(kind, name)
        if inspect.isfunction(function) and (name == "__call__" or not name.startswith("_")):
            members[name] = _renamed(function, op if name == "__call__" else f"{op}.{name}")
    return type(kind.__name__, (kind,), members)


def _renamed(function: FunctionType, name: str) -> FunctionType:
    """Return a copy of a function under another name."""
    copy: Any = FunctionType(
        function.__code__,
        function.__globals__,
        argdefs=function.__defaults__,
        closure=function.__closure__,
    )
    update_wrapper(copy, function)
    del copy.__wrapped__
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__ = name
    return copy  # type: ignore[no-any-return]

"""What every call has in common; errors name the operation and the argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from itertools import repeat
from operator import index
from types import FunctionType, MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "OPERANDS",
    "as_array",
    "as_arrays",
    "as_flag",
    "as_index",
    "as_number",
    "by_row",
    "converted",
    "kernel_dtype",
    "named_after",
    "result_dtype",
    "shape_of",
    "shown",
]

Array: TypeAlias = npt.NDArray[Any]
T = TypeVar("T")

# What an elementwise operation's operands are called, by their number.
OPERANDS: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType({1: ("x",), 2: ("w", "x")})

_LONGEST: Final = 60  # of what is shown of an argument


def shown(given: object) -> str:
    """Return the repr of an argument for a message: on one line, and a short one."""
    try:
        text = " ".join(repr(given).split())
    except ValueError:  # Python refuses to write the digits of a long integer
        text = f"<{type(given).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _is_of_python(error: Exception) -> bool:
    """Tell whether an error that a caller has caught came from Python code, such as a method."""
    here = error.__traceback__
    return here is not None and here.tb_next is not None  # C code leaves no frame below here


def as_array(op: str, name: str, given: Any) -> Array:
    """Return an argument as an array, copied only where needed.

    Raises
    ------
    TypeError, ValueError
        If NumPy makes no array of it, such as of a ragged list. What an argument's own code
        raises passes as it is.
    """
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError) or _is_of_python(error):
            raise
        raise type(error)(f"{op}: argument {name} makes no array: {error}") from None


def shape_of(op: str, name: str, given: Any) -> tuple[int, ...]:
    """Return the shape of an argument, which is not converted if it has one; errors as above."""
    shape = getattr(given, "shape", None)
    return shape if isinstance(shape, tuple) else as_array(op, name, given).shape


def as_index(
    op: str, name: str, given: Any, wanted: str = "an integer", whole: object = None
) -> int:
    """Return an argument, or a part of a `whole` one, as an int; no bool is one."""
    try:
        if not isinstance(given, bool | np.bool_):
            return index(given)
    except TypeError as error:
        if _is_of_python(error):
            raise
    raise TypeError(
        f"{op}: {name} must be {wanted}, not {shown(given if whole is None else whole)}"
    )


def as_flag(op: str, name: str, given: Any) -> bool:
    """Return an argument as a bool; TypeError unless it is one or, as in NumPy, an integer."""
    if isinstance(given, bool | np.bool_ | int | np.integer):
        return bool(given)
    raise TypeError(f"{op}: {name} must be a bool, not {shown(given)}")


# --- dtypes ---------------------------------------------------------------------------------------

_FLOAT32: Final[np.dtype[Any]] = np.dtype(np.float32)
_FLOAT64: Final[np.dtype[Any]] = np.dtype(np.float64)

# By type character, which ignores byte order and tells a long double from a double even where both
# are 8 bytes wide.
_KERNEL_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    **dict.fromkeys("?bBhHef", _FLOAT32),
    **dict.fromkeys("iIlLqQd", _FLOAT64),
}


def kernel_dtype(op: str, name: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the dtype, float32 or float64, in which an argument of `dtype` is computed.

    Parameters
    ----------
    op, name : str
        Operation and argument, for the error message.
    dtype : dtype_like
        The argument's dtype.

    Returns
    -------
    dtype
        float32 for bool, 8- and 16-bit integers, float16 and float32; float64 for wider integers
        and float64.

    Raises
    ------
    TypeError
        For any other dtype (complex, long double, object, strings, dates).
    """
    dtype = np.dtype(dtype)
    try:
        return _KERNEL_DTYPES[dtype.char]
    except KeyError:
        raise TypeError(
            f"{op}: argument {name} has dtype {dtype}, for which there is no kernel; "
            "it takes bool, integers, float16, float32 and float64"
        ) from None


def _is_weak(operand: object) -> bool:
    """Tell whether `operand` is a Python number that adapts to the others' dtype (NEP 50)."""
    return isinstance(operand, int | float) and not isinstance(operand, bool | np.generic)


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
    kernels = {
        kernel_dtype(op, name, (o if type(o) is np.ndarray else as_array(op, name, o)).dtype)
        for name, o in zip(names or OPERANDS[len(operands)], operands, strict=True)
        if not _is_weak(o)
    }
    return _FLOAT32 if kernels == {_FLOAT32} else _FLOAT64


def as_arrays(op: str, *operands: object, names: Sequence[str] = ()) -> tuple[Array, ...]:
    """Convert `operands` to arrays of their common `result_dtype`, copying only where needed."""
    names = names or OPERANDS[len(operands)]
    strong = [
        o if type(o) is np.ndarray or _is_weak(o) else as_array(op, names[i], o)
        for i, o in enumerate(operands)
    ]
    dtype = result_dtype(op, *strong, names=names)
    with np.errstate(all="ignore"):  # a weak 1e300 overflows to inf in float32
        try:
            return tuple(np.asarray(o, dtype) for o in strong)
        except OverflowError:  # of one of them, which is told
            return tuple(map(converted, repeat(op), names, strong, repeat(dtype)))


def converted(op: str, name: str, operand: Any, dtype: np.dtype[Any]) -> Array:
    """Return an array or a Python number in the dtype that it computes in.

    Raises
    ------
    TypeError
        If it is an integer that float64 does not hold.
    """
    try:
        return np.asarray(operand, dtype)
    except OverflowError:
        raise TypeError(f"{op}: argument {name} is an integer too large for float64") from None


def as_number(op: str, name: str, given: Any) -> float:
    """Return a parameter as a float.

    Raises
    ------
    TypeError
        If it is no real number, or an integer that float64 does not hold.
    """
    array = converted(op, name, given, _FLOAT64) if _is_weak(given) else as_array(op, name, given)
    kernel_dtype(op, name, array.dtype)
    if array.ndim != 0:
        raise TypeError(f"{op}: {name} must be a number, not {shown(given)}")
    return float(array)


# --- methods --------------------------------------------------------------------------------------


def by_row(table: Mapping[str, Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a row as one of the row's name."""
    return lambda name, *arguments: function(table[name], *arguments)


def named_after(kind: type[T], op: str) -> type[T]:
    """Return a class of an operation's own, whose methods Python's messages call by its name.

    Of a wrong number of arguments Python says "Reduction.vjp() missing ...", which is no operation.
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

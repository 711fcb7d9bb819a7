"""What a caller gave as arrays, integers and flags: errors name the operation and the argument."""

from __future__ import annotations

import inspect
from functools import update_wrapper
from operator import index
from types import FunctionType
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["as_array", "as_flag", "as_index", "named_after", "shape_of", "shown"]

Array: TypeAlias = npt.NDArray[Any]
T = TypeVar("T")

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

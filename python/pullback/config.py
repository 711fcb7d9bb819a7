"""The configuration: backend, instruction set, threads, memory, and how it was built."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import WRAPPER_ASSIGNMENTS
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any, Final, Literal, TypeVar, overload

import numpy as np

from pullback.protocol import as_index, shown

__all__ = [
    "backend",
    "get_num_threads",
    "guarded",
    "guarded_class",
    "native",
    "set_kept_memory",
    "set_num_threads",
    "show_config",
    "threads",
    "version",
]

_BACKENDS: Final = ("native", "numpy")
_MOST_DIGITS: Final = 18  # in a number of bytes


def _check_variables() -> None:
    """Warn of environment variables called PULLBACK_... that pullback does not read."""
    if any(name.startswith("PULLBACK_") for name in os.environ):
        from pullback.hints import KNOWN_VARIABLES, about_variable  # noqa: PLC0415  seldom any

        for name in sorted(os.environ):
            if name.startswith("PULLBACK_") and name not in KNOWN_VARIABLES:
                warnings.warn(about_variable(name), RuntimeWarning, stacklevel=2)


def _missing_features() -> str:
    """Return which features of x86-64-v2 this CPU lacks; on x86-64 the extension needs them.

    NumPy asked the CPU for its features at import. A feature that NumPy's table does not name is
    taken as present: from 2.4 on NumPy itself needs x86-64-v2, and its import fails without.
    """
    if platform.machine() not in ("x86_64", "AMD64", "amd64"):
        return ""
    try:
        features = import_module("numpy._core._multiarray_umath").__cpu_features__
    except (ImportError, AttributeError):
        return ""
    needed = ("SSE3", "SSSE3", "SSE41", "SSE42", "POPCNT")
    return ", ".join(name for name in needed if not features.get(name, True))


def _load_native() -> ModuleType | None:
    """Return the extension module, or None for the NumPy backend; set it up from the environment.

    Raises
    ------
    ValueError
        For a value of PULLBACK_BACKEND, PULLBACK_TARGET, PULLBACK_NUM_THREADS or
        PULLBACK_KEPT_MEMORY that is not valid.
    ImportError
        If PULLBACK_BACKEND asks for native kernels, and they are not installed or not built for
        this CPU.
    """
    wanted = os.environ.get("PULLBACK_BACKEND", "")
    if wanted not in ("", *_BACKENDS):
        raise ValueError(f"PULLBACK_BACKEND={wanted!r} is not one of {', '.join(_BACKENDS)}")
    if wanted == "numpy":
        return None
    missing = _missing_features()
    if missing:
        reason = (
            f"pullback's native kernels need a CPU with x86-64-v2, and this one lacks {missing}"
        )
        if wanted == "native":
            raise ImportError(f"PULLBACK_BACKEND=native, but {reason}")
        warnings.warn(
            f"{reason}. It computes in plain NumPy; set PULLBACK_BACKEND=numpy to keep it so "
            "without this warning.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    try:
        module = import_module("pullback._native")
    except ImportError as error:
        if wanted == "native":
            raise ImportError(
                "PULLBACK_BACKEND=native, but this installation of pullback has no native kernels; "
                "reinstall it with PULLBACK_REQUIRE_NATIVE=1 to see why they do not build"
            ) from error
        warnings.warn(
            "pullback was installed without its native kernels and computes in plain NumPy. "
            "Reinstall it from source (pip install --no-binary pullback) with a C++20 compiler at "
            "hand, where PULLBACK_REQUIRE_NATIVE=1 shows what is missing, or set "
            "PULLBACK_BACKEND=numpy to keep it so without this warning.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    target = os.environ.get("PULLBACK_TARGET", "")
    try:
        module.set_target(target)
    except ValueError as error:
        raise ValueError(f"PULLBACK_TARGET={target!r}: {error}") from None
    module.threads_from_env()  # raises for a malformed variable; a valid one is already in force
    kept = os.environ.get("PULLBACK_KEPT_MEMORY", "")
    if kept:
        if not (kept.isascii() and kept.isdigit() and len(kept) <= _MOST_DIGITS):
            raise ValueError(f"PULLBACK_KEPT_MEMORY={kept!r} is not a number of bytes")
        module.set_kept_limit(int(kept))
    return module


def version() -> str:
    """Return the version of the installed package."""
    from importlib import metadata  # noqa: PLC0415  30 ms that an import need not wait for

    try:
        return metadata.version("pullback")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


_check_variables()
native: Final = _load_native()
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def guarded(function: F) -> F:
    """Return a function that runs in the default floating-point environment.

    Kernels, and native methods, set the environment themselves. This is for functions that NumPy
    finishes: they would flush subnormals on a thread that another library has set to do so. Only
    the extension can change the environment, so the NumPy backend returns the function itself.
    """
    if native is None:
        return function
    call = native.guarded(function)
    for name in (*WRAPPER_ASSIGNMENTS, "__isabstractmethod__"):
        if hasattr(function, name):
            setattr(call, name, getattr(function, name))
    return call  # type: ignore[no-any-return]


def guarded_class(kind: type[T], but: tuple[str, ...] = ()) -> type[T]:
    """Guard a class's own public methods and operators, except those in `but`."""
    for name, member in tuple(vars(kind).items()):
        public = name not in but and (name[0] != "_" or name[-2:] == "__")
        if public and isinstance(member, FunctionType):
            setattr(kind, name, guarded(member))
    return kind


_serial_threads = 1  # the number set on the NumPy backend, which has no use for it


def backend() -> Literal["native", "numpy"]:
    """Return which kernels the primitives of `pullback` run on.

    Returns
    -------
    str
        ``"native"`` for the SIMD kernels, ``"numpy"`` for the twins in `pullback.reference`.

    Notes
    -----
    Native calls round to nearest and keep subnormals, even if another library has set the thread to
    do otherwise. The NumPy backend uses the thread's setting.
    """
    return "numpy" if native is None else "native"


def get_num_threads() -> int:
    """Return the number of threads that a call may use, the calling one included."""
    return _serial_threads if native is None else int(native.get_num_threads())


def set_num_threads(n: int) -> None:
    """Set the number of threads that a call may use. Results have the same bits for any number.

    Parameters
    ----------
    n : int
        At least 1. More threads than CPUs are allowed, but slower.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is out of range.
    """
    global _serial_threads  # noqa: PLW0603  what the native backend keeps in C++
    n = as_index("set_num_threads", "n", n)
    most = 1024 if native is None else native.max_threads
    if not 1 <= n <= most:
        raise ValueError(f"set_num_threads: n must be from 1 to {most}, not {shown(n)}")
    if native is None:
        _serial_threads = n
    else:
        native.set_num_threads(n)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Set the number of threads for a ``with`` block, for the whole process.

    Parameters
    ----------
    n : int
        As for `set_num_threads`.

    Examples
    --------
    >>> import pullback as pb
    >>> with pb.threads(1):
    ...     pb.get_num_threads()
    1
    """
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


def _kept(kernels: ModuleType) -> str:
    used, most = kernels.kept_bytes() / 2**20, kernels.kept_limit() / 2**20
    return f"{used:.1f} of {most:.1f} MiB"


def set_kept_memory(n_bytes: int) -> None:
    """Set how much memory of freed results the process keeps for new results.

    New results of 256 KiB and more reuse the memory of freed ones, because the system takes longer
    to clear a new page than most kernels take to fill it. When memory is short, the system may take
    back the pages of kept blocks of 32 MiB and more.

    Parameters
    ----------
    n_bytes : int
        The largest number of bytes to keep. Memory above it goes back to the system at once, and 0
        keeps nothing. The initial value is ``PULLBACK_KEPT_MEMORY``; without that variable it is
        1/64 of the memory of the machine or its cgroup, and at most 256 MiB. The NumPy backend
        keeps nothing and ignores the value.

    Raises
    ------
    TypeError
        If `n_bytes` is not an integer.
    ValueError
        If `n_bytes` is negative, or has more than 18 digits.
    """
    n_bytes = as_index("set_kept_memory", "n_bytes", n_bytes)
    if not 0 <= n_bytes < 10**_MOST_DIGITS:
        raise ValueError(
            f"set_kept_memory: n_bytes must be a number of bytes, not {shown(n_bytes)}"
        )
    if native is not None:
        native.set_kept_limit(n_bytes)


@overload
def show_config(mode: Literal["print"] = "print") -> None: ...
@overload
def show_config(mode: Literal["dict"]) -> dict[str, Any]: ...
def show_config(mode: Literal["print", "dict"] = "print") -> dict[str, Any] | None:
    """Print or return the configuration of pullback.

    Parameters
    ----------
    mode : {"print", "dict"}
        Whether to print the configuration or to return it.

    Returns
    -------
    dict or None
        Version, backend, instruction set in use and those available, threads, memory kept and its
        limit, compiler and library versions. An entry that does not apply to the NumPy backend is
        None.
    """
    if not isinstance(mode, str) or mode not in ("print", "dict"):
        raise ValueError(f"show_config: mode must be 'print' or 'dict', not {shown(mode)}")
    build: dict[str, str] = {} if native is None else native.build
    config = {
        "version": version(),
        "backend": backend(),
        "target": None if native is None else native.active_target(),
        "targets": None if native is None else native.supported_targets(),
        "threads": get_num_threads(),
        "kept memory": None if native is None else _kept(native),
        "cpus": os.cpu_count() if native is None else native.available_cpus(),
        "compiler": build.get("compiler"),
        "build type": build.get("build_type"),
        "Highway": build.get("highway"),
        "pybind11": build.get("pybind11"),
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
    }
    if mode == "dict":
        return config
    width = max(map(len, config))
    for key, value in config.items():
        if value is not None:
            text = ", ".join(value) if isinstance(value, list) else value
            print(f"{key:{width}}  {text}")
    return None

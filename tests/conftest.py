"""Fixtures for both backends; what needs native kernels is not collected where there are none.

A test that a backend cannot run would count as skipped, and a long list of skips hides the one
that matters. So native tests are deselected under ``PULLBACK_BACKEND=numpy``: files named
``test_native_*`` as a whole, others by the marker ``native`` or by their fixture `target`.
"""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import pytest
from fp_env import FloatEnvironment
from protocol import TARGETS, closed_doors, native

Array: TypeAlias = np.ndarray[Any, Any]
collect_ignore_glob = ["test_native_*.py"] if native is None else []
collect_ignore_glob += [f"test_interop_{door}.py" for door in closed_doors()]

_numpys = np.testing.assert_allclose, np.testing.assert_array_equal


def _plain(actual: Any, desired: Any) -> tuple[Array, Array] | None:
    """Return both as arrays if these have one shape and hold numbers, with no ideas of their own.

    Else NumPy's assertions decide: a subclass may mask elements, and the bytes of objects and of
    long strings are addresses.
    """
    a, d = np.asanyarray(actual), np.asanyarray(desired)
    plain = type(a) is type(d) is np.ndarray and a.shape == d.shape
    return (a, d) if plain and a.dtype.kind in "biufc" and d.dtype.kind in "biufc" else None


@functools.wraps(_numpys[0])
def _assert_allclose(
    actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0, *rest: Any, **options: Any
) -> None:
    """Do what NumPy's does, several times faster where all numbers are finite and close."""
    __tracebackhide__ = True
    pair = None if "strict" in options else _plain(actual, desired)
    if pair is not None and pair[0].dtype.kind == "f" == pair[1].dtype.kind:
        with np.errstate(all="ignore"):
            distance = np.abs(pair[0] - pair[1])
            if ((distance <= atol + rtol * np.abs(pair[1])) & (distance < np.inf)).all():
                return
    _numpys[0](actual, desired, rtol, atol, *rest, **options)


@functools.wraps(_numpys[1])
def _assert_array_equal(actual: Any, desired: Any, *rest: Any, **options: Any) -> None:
    """Do what NumPy's does, several times faster where all bits are the same."""
    __tracebackhide__ = True
    pair = _plain(actual, desired)
    if pair is None or pair[0].dtype != pair[1].dtype or pair[0].tobytes() != pair[1].tobytes():
        _numpys[1](actual, desired, *rest, **options)


np.testing.assert_allclose, np.testing.assert_array_equal = _assert_allclose, _assert_array_equal


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    config.addinivalue_line("markers", "native: needs native kernels")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs native kernels where there are none."""
    if native is not None:
        return

    def needs_native(item: pytest.Item) -> bool:
        return "native" in item.keywords or "target" in getattr(item, "fixturenames", ())

    removed = [item for item in items if needs_native(item)]
    config.hook.pytest_deselected(items=removed)
    items[:] = [item for item in items if not needs_native(item)]


@pytest.fixture(scope="module", autouse=True)
def young_heap() -> None:
    """Leave what is there already out of collections of garbage: they would take half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=TARGETS or ["numpy"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Force each instruction set in turn; deselected for the NumPy backend."""
    before = native.active_target()
    native.set_target(request.param)
    assert native.active_target() == request.param
    yield request.param
    native.set_target(before)


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a script in a fresh interpreter, with a time limit."""

    def run(
        script: str, *argv: str, check: bool = True, timeout: float = 60, **environment: Any
    ) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PULLBACK_", "OMP_"))}
        if native is None:
            env["PULLBACK_BACKEND"] = "numpy"
        env |= {name: str(value) for name, value in environment.items()}
        command = [sys.executable, "-X", "faulthandler", "-c", script, *argv]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


# --- the floating-point environment ---------------------------------------------------------------


@pytest.fixture
def fenv() -> Iterator[FloatEnvironment]:
    """Give hold of the floating-point environment; restore it afterwards."""
    environment = FloatEnvironment()
    before = environment.mode()
    gc.disable()  # its callbacks compute, and so raise flags
    yield environment
    gc.enable()
    environment.set_mode(before)
    environment.set_flags(0)

"""The environment that benchmarks run in, to be set before NumPy is imported.

OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are unset: they hold OpenBLAS to the code of another machine,
such as that for AVX2 where there is AVX-512, and NumPy is to run at its best. Thread counts are
equal for every library.

As a script, ``environment.py THREADS ARGUMENTS...``, it is the command of the package in it.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence

HELD = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
LIBRARIES = ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR", "PULLBACK")


def release() -> None:
    """Unset what holds OpenBLAS back; it looks when it is loaded."""
    for variable in HELD:
        os.environ.pop(variable, None)


def limit_threads(threads: int) -> None:
    """Bind the process, and tell the libraries that read the environment when imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for library in LIBRARIES:
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ.setdefault("NUMEXPR_MAX_THREADS", str(threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def is_set(threads: int) -> bool:
    """Tell whether this process was started in it."""
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > threads:
        return False
    counts = {os.environ.get(f"{library}_NUM_THREADS") for library in LIBRARIES}
    return counts == {str(threads)} and not any(variable in os.environ for variable in HELD)


def run(threads: int, arguments: Sequence[str]) -> int:
    """Run the package's command in it, as another process; return the exit code."""
    # -P: the modules beside this file are not on the path.
    command = [sys.executable, "-P", __file__, str(threads), *arguments]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    release()
    limit_threads(int(sys.argv.pop(1)))
    runpy.run_module("pullback", run_name="__main__", alter_sys=True)

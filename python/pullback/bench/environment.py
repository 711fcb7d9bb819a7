"""The environment that benchmarks run in, to be set before NumPy is imported.

OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are unset: they hold OpenBLAS to the code of another machine,
such as that for AVX2 where there is AVX-512, and NumPy is to run at its best. Thread counts are
equal for every library.
"""

from __future__ import annotations

import os

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


def prepare(threads: int) -> bool:
    """Do both; tell whether the environment was like that before, as it has to be for NumPy."""
    before = dict(os.environ)
    release()
    limit_threads(threads)
    return before == dict(os.environ)

"""Fit a Poisson regression to a table on disk that does not fit into memory.

The table is generated: features, and counts from a Poisson distribution whose logarithmic mean is
linear in the features, with known coefficients. The script limits its own memory by
resource.setrlimit to ``--memory`` beyond what it starts with, so NumPy cannot read the whole table
(the script tries it). `pullback.LinearObjective` takes chunks of the table instead. Each chunk is
mapped only while it is read. SciPy's L-BFGS-B uses the objective like any other function. The
standard errors come from the curvature, in one more pass.

The output shows the true and the fitted coefficients, which differ by at most five standard errors,
and the speed of reading. The exit code is 1 if the table can be read at once, the fit does not
converge, or a coefficient is wrong. The file is removed at the end.

Run it, on Linux, with ``pip install pullback[examples]`` and ``python examples/out_of_core.py
--megabytes 4000 --memory 100``.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pullback as pb
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]
Chunks = Callable[[], Iterator[tuple[Array, Array]]]

MEGABYTE = 2**20
CHUNK = 4 * MEGABYTE


def cap_memory(nbytes: int) -> None:
    """Forbid this process more than `nbytes` of memory, mapped files included, beyond its own."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + nbytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def split(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the number of rows of each chunk."""
    size = max(1, CHUNK // (8 * columns))
    for begin in range(0, rows, size):
        yield begin, min(size, rows - begin)


def write(path: Path, rows: int, theta: Array) -> None:
    """Write the table, chunk by chunk: in each row the features, then the count."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _, count in split(rows, len(theta)):
            table = rng.uniform(-1, 1, (count, len(theta)))
            table[:, -1] = rng.poisson(np.exp(table[:, :-1] @ theta[:-1] + theta[-1]))
            table.tofile(file)


def mapped(path: Path, rows: int, columns: int) -> Chunks:
    """Return a function that iterates over the chunks of the table, each time anew."""

    def chunks() -> Iterator[tuple[Array, Array]]:
        for begin, count in split(rows, columns):
            table = np.memmap(path, np.float64, "r", 8 * begin * columns, (count, columns))
            yield table[:, :-1], table[:, -1]

    return chunks


def fit(chunks: Chunks) -> tuple[Any, Array]:
    """Return where L-BFGS-B ends, and the standard errors there."""
    objective = pb.LinearObjective(chunks, loss=pb.poisson, progress=sys.stderr.isatty())
    result = minimize(
        objective.value_and_grad,
        objective.initial(),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-7, "ftol": 0},
    )
    return result, standard_errors(chunks, *objective.unpack(result.x))


def standard_errors(chunks: Chunks, w: Array, b: float) -> Array:
    """Return the roots of the diagonal of the inverse Fisher information, X^T diag(c) X."""
    information = np.zeros((len(w) + 1,) * 2)
    for X, y in chunks():
        design = np.column_stack((X, np.ones(len(y))))
        c = pb.poisson.curvature(X, y, w, b, reduction="sum")
        information += design.T @ (c[:, None] * design)
    return np.sqrt(np.diagonal(np.linalg.inv(information)))


def rehearse() -> None:
    """Fit a small table, so that threads and BLAS have their memory before it is counted."""
    X = np.random.default_rng(0).uniform(-1, 1, (100_000, 2))
    fit(lambda: iter([(X, np.exp(X[:, 0]))]))


def report(path: Path, rows: int, truth: Array) -> None:
    """Fit, print the result, and exit if it is wrong."""
    try:
        np.fromfile(path)
    except MemoryError:
        print("NumPy cannot read it: MemoryError")
    else:
        sys.exit("The table fits into the memory allowed.")

    begin = time.perf_counter()
    result, errors = fit(mapped(path, rows, len(truth)))
    seconds = time.perf_counter() - begin
    if not np.abs(result.jac).max() <= 1e-5:
        sys.exit(f"The fit does not converge: {result.message}")

    print(f"\n{'coefficient':12}{'true':>12}{'fitted':>12}{'std. error':>12}")
    for i, (a, b, error) in enumerate(zip(truth, result.x, errors, strict=True)):
        name = f"w[{i}]" if i + 1 < len(truth) else "b"
        print(f"{name:12}{a:12.6f}{b:12.6f}{error:12.6f}")
    passes, nbytes = result.nfev + 1, path.stat().st_size
    print(
        f"\n{passes} passes of {nbytes / 1e6:.0f} MB in {seconds:.2f} s: "
        f"{passes * nbytes / seconds / 1e9:.2f} GB/s, {pb.backend()} backend"
    )
    wrong = np.abs(result.x - truth) > 5 * errors
    if wrong.any():
        sys.exit(f"Coefficients {np.flatnonzero(wrong)} are off by more than five standard errors.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the table, fit it, remove it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=96, help="of the table (default: 96)")
    parser.add_argument("--memory", type=int, default=48, help="megabytes allowed (default: 48)")
    parser.add_argument("--features", type=int, default=20, help="(default: 20)")
    parser.add_argument("--directory", type=Path, help="for the table (default: the system's)")
    options = parser.parse_args(arguments)
    if options.memory >= options.megabytes:
        parser.error("the table is to be larger than the memory allowed")

    truth = np.append(np.linspace(-0.5, 0.5, options.features), 0.3)
    rows = options.megabytes * MEGABYTE // (8 * len(truth))
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "table"
        rehearse()
        cap_memory(options.memory * MEGABYTE)
        write(path, rows, truth)
        print(
            f"{rows} rows of {options.features} features and a count: "
            f"{path.stat().st_size / 1e6:.0f} MB, {options.memory} MiB of memory allowed"
        )
        report(path, rows, truth)


if __name__ == "__main__":
    main()

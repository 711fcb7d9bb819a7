"""Compare pullback with other libraries: all contenders in one run, checked, then interleaved.

    python bench/compare.py [losses|elementwise|matmul|all] [--quick] [--only REGEX] [--json FILE]
                            [--threads N]

Every contender's result is checked before it is timed. Rounds go through all contenders in turn,
so that what disturbs the machine disturbs them alike; the median over the rounds counts. A library
that appears in several ways counts with its best.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

LOSS_SHAPES = (
    (100, 10),
    (1000, 20),
    (10_000, 100),
    (1_000_000, 10),
    (1_000_000, 100),
    (100_000, 1000),
    (20_000, 5000),
)
ELEMENTWISE_SIZES = (16, 1000, 100_000, 5_000_000)
MATMUL_SHAPES = (  # stack, m, k, n
    ((), 4, 4, 4),
    ((), 16, 16, 16),
    ((), 64, 64, 64),
    ((), 256, 256, 256),
    ((), 1024, 1024, 1024),
    ((), 2048, 2048, 2048),
    ((), 100_000, 64, 64),
    ((), 50_000, 256, 16),
    ((10_000,), 4, 4, 4),
    ((10_000,), 8, 8, 8),
    ((2000,), 32, 32, 32),
    ((500,), 64, 64, 64),
    ((), 64, 2048, 2048),
)
NUMBA_FROM = 1000  # below, a loop that is given its output is a different task
OUT_GIVEN = 5_000_000  # from here on, results go into an array that is there already
LARGE_BYTES = 1 << 26  # from here on, a plain read of X is timed as well, the limit

QUICK_LOSS_SHAPES = LOSS_SHAPES[:2]
QUICK_SIZES = ELEMENTWISE_SIZES[:2]
QUICK_MATMUL_SHAPES = MATMUL_SHAPES[:3]


class Effort(NamedTuple):
    """How long to look."""

    rounds: int
    round_seconds: float  # per contender and round, for short calls
    case_seconds: float  # no more rounds are begun after this


PAUSE = 0.03

Wanted = Callable[[str], bool]  # tells by its label whether a case is to be run

NORMAL = Effort(rounds=15, round_seconds=5e-3, case_seconds=8)
QUICK = Effort(rounds=3, round_seconds=1e-3, case_seconds=2)


def limit_threads(threads: int) -> None:
    """Bind the process, and tell the libraries that read the environment when imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for variable in ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR", "PULLBACK"):
        os.environ[f"{variable}_NUM_THREADS"] = str(threads)
    os.environ.setdefault("NUMEXPR_MAX_THREADS", str(threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def calls_per_round(call: Callable[[], Any], effort: Effort) -> int:
    """Return how often to call so that the clock's own cost vanishes."""
    number = 1
    while True:
        seconds = _seconds(call, number)
        if seconds > effort.round_seconds / 4:
            return max(1, round(effort.round_seconds * number / seconds))
        number *= 4


def _seconds(call: Callable[[], Any], number: int) -> float:
    begin = time.perf_counter()
    for _ in range(number):
        call()
    return time.perf_counter() - begin


def interleave(calls: dict[str, Callable[[], Any]], effort: Effort) -> dict[str, float]:
    """Return the median seconds of each call, timed in turns."""
    numbers = {name: calls_per_round(call, effort) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for done in range(effort.rounds):
        for name, call in calls.items():
            # Other contenders' idle threads stop spinning, then this one's wake up.
            time.sleep(PAUSE)
            _seconds(call, max(1, numbers[name] // 10))
            times[name].append(_seconds(call, numbers[name]) / numbers[name])
        if done >= 2 and time.perf_counter() - begin > effort.case_seconds:
            break
    return {name: statistics.median(values) for name, values in times.items()}


def check(name: str, actual: Any, expected: Any, rtol: float) -> None:
    """Stop unless a contender computes what it should, to `rtol` of the largest element."""
    import numpy as np

    for one, other in zip(actual, expected, strict=True):
        scale = float(np.abs(other).max(initial=0.0))
        error = float(np.abs(one.astype(float) - other).max(initial=0.0))
        if one.shape != other.shape or not error <= rtol * scale:
            sys.exit(f"{name} computes wrong: error {error:.3g} of {scale:.3g}, {one.shape}")


def compare(
    label: str,
    contenders: list[Any],
    expected: Any,
    rtol: float,
    effort: Effort,
    floor: Any = None,
    least: float | None = None,
) -> dict[str, Any]:
    """Check and time the contenders of one case; return its record.

    The limit is what `floor` takes, which is timed among them, or `least` seconds.
    """
    for contender in contenders:
        check(f"{label}: {contender.name}", contender.arrays(contender.call()), expected, rtol)
    calls = {contender.name: contender.call for contender in contenders}
    if floor is not None:
        calls["limit"] = floor
    seconds = interleave(calls, effort)
    limit = seconds.pop("limit", least)
    best: dict[str, float] = {}
    for contender in contenders:
        mine = seconds[contender.name]
        best[contender.library] = min(mine, best.get(contender.library, mine))
    ours = best.pop("pullback")
    rival = min(best, key=lambda library: best[library])
    return {
        "case": label,
        "seconds": seconds,
        "pullback": ours,
        "peers": best,
        "best_peer": rival,
        "ratio": best[rival] / ours,
        "share_of_limit": None if limit is None else limit / ours,
    }


# --- cases ----------------------------------------------------------------------------------------


def losses(*, quick: bool, effort: Effort, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield records of relu_mse.value_and_grad."""
    import numpy as np
    import peers
    import pullback as pb
    from pullback.config import native

    for rows, cols in QUICK_LOSS_SHAPES if quick else LOSS_SHAPES:
        for dtype in (np.float64, np.float32):
            label = f"relu_mse {rows}x{cols} {np.dtype(dtype).name}"
            if not wanted(label):
                continue
            rng = np.random.default_rng(0)
            X = rng.random((rows, cols), dtype)
            X -= dtype(0.4)
            w = rng.normal(size=cols).astype(dtype)
            y = (rng.normal(size=rows) + 3).astype(dtype)
            _, expected = pb.reference.relu_mse.value_and_grad(X, y, w, 0.1)
            expected = (pb.reference.relu_mse.value(X, y, w, 0.1), *expected)
            expected = tuple(np.asarray(part, float) for part in expected)
            large = native is not None and X.nbytes >= LARGE_BYTES
            yield compare(
                label,
                list(peers.relu_mse(X, y, w, 0.1)),
                expected,
                2e-3 if dtype is np.float32 else 1e-9,
                effort,
                (lambda X=X: native.read_seconds(X)) if large else None,
            )


def elementwise(*, quick: bool, effort: Effort, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield records of vjps of elementwise operations."""
    import numpy as np
    import peers
    import pullback as pb
    from pullback.config import native

    for op in (*peers.UNARY, "power"):
        for n in QUICK_SIZES if quick else ELEMENTWISE_SIZES:
            for dtype in (np.float64, np.float32):
                given = n >= OUT_GIVEN
                label = f"{op}.vjp {n} {np.dtype(dtype).name}" + " out=" * given
                if not wanted(label):
                    continue
                rng = np.random.default_rng(0)
                x, g = rng.normal(0, 2, n).astype(dtype), rng.normal(size=n).astype(dtype)
                if op in ("log", "power"):
                    x = np.exp(x / 2)
                if op == "power":
                    y = rng.normal(0, 2, n).astype(dtype)
                    out = (np.empty_like(x), np.empty_like(x)) if given else None
                    contenders = list(peers.power_vjp(x, y, g, out))
                    expected = pb.reference.power.vjp(*(a.astype(float) for a in (x, y, g)))
                else:
                    out = np.empty_like(x) if given else None
                    contenders = list(peers.unary_vjp(op, x, g, out))
                    expected = (getattr(pb.reference, op).vjp(x.astype(float), g.astype(float)),)
                if n < NUMBA_FROM:
                    contenders = [c for c in contenders if c.library != "Numba"]
                copy = None
                if op == "relu" and given and native is not None:
                    moved = np.ones((2, 3 * x.nbytes // 16))  # as much in as out, like x, g and out
                    copy = lambda moved=moved: native.copy_seconds(moved[0], moved[1])  # noqa: E731
                yield compare(
                    label,
                    contenders,
                    expected,
                    2e-5 if dtype is np.float32 else 1e-11,
                    effort,
                    copy,
                )
    for dtype in () if quick else (np.float64, np.float32):
        for given in (False, True):
            label = f"multiply.vjp (100000,100)x(100,) {np.dtype(dtype).name}" + " out=" * given
            if not wanted(label):
                continue
            rng = np.random.default_rng(0)
            w, g = rng.normal(size=(2, 100_000, 100)).astype(dtype)
            x = rng.normal(size=100).astype(dtype)
            out = (np.empty_like(w), np.empty_like(x)) if given else None
            yield compare(
                label,
                list(peers.scaled_columns_vjp(w, x, g, out)),
                pb.reference.multiply.vjp(*(a.astype(float) for a in (w, x, g))),
                1e-4 if dtype is np.float32 else 1e-11,
                effort,
            )


def matmul(*, quick: bool, effort: Effort, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield records of both cotangents of matrix products, beside the peak of multiply-adds."""
    import numpy as np
    import peers
    from pullback.config import native

    for stack, m, k, n in QUICK_MATMUL_SHAPES if quick else MATMUL_SHAPES:
        for dtype in (np.float64, np.float32):
            count = f"{stack[0]} x " if stack else ""
            label = f"matmul.vjp {count}{m}x{k}x{n} {np.dtype(dtype).name}"
            if not wanted(label):
                continue
            rng = np.random.default_rng(0)
            A, B, G = (
                rng.normal(size=(*stack, *shape)).astype(dtype)
                for shape in ((m, k), (k, n), (m, n))
            )
            exact = [a.astype(float) for a in (A, B, G)]
            expected = np.matmul(exact[2], exact[1].mT), np.matmul(exact[0].mT, exact[2])
            least = None
            if native is not None:
                double = dtype is np.float64
                peak = statistics.median(native.measure_fma_peak(double) for _ in range(3))
                least = 4 * m * k * n * (stack[0] if stack else 1) / peak / 1e9
            yield compare(
                label,
                list(peers.matmul_vjp(A, B, G)),
                expected,
                2e-4 if dtype is np.float32 else 1e-12,
                effort,
                least=least,
            )


SUITES = {"losses": losses, "elementwise": elementwise, "matmul": matmul}


# --- report ---------------------------------------------------------------------------------------


def human(seconds: float | None) -> str:
    """Return a time in three digits."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def header(libraries: list[str]) -> str:
    """Return the table's head."""
    columns = ["pullback", *libraries, "best peer/ours", "of limit"]
    return f"{'case':34}" + "".join(f"{column:>15}" for column in columns)


def line(record: dict[str, Any], libraries: list[str]) -> str:
    """Return one row of the table."""
    share = record["share_of_limit"]
    cells = [
        human(record["pullback"]),
        *(human(record["peers"].get(library)) for library in libraries),
        f"{record['ratio']:.2f} {record['best_peer']}",
        "-" if share is None else f"{share:.0%}",
    ]
    return f"{record['case']:34}" + "".join(f"{cell:>15}" for cell in cells)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suite", nargs="?", choices=[*SUITES, "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="small sizes only, to see it work")
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose label matches")
    parser.add_argument("--json", metavar="FILE", help="write the records there")
    parser.add_argument("--threads", type=int, default=2, help="for every library (default 2)")
    options = parser.parse_args(arguments)
    limit_threads(options.threads)

    import peers
    import pullback as pb

    peers.set_threads(options.threads)
    config = pb.show_config("dict")
    versions = peers.versions()
    print(f"{config['backend']} {config['target']}, {options.threads} threads, {versions}")
    libraries = ["NumPy", "PyTorch", "JAX", "Numba", "numexpr"]
    print(header(libraries), flush=True)
    records = []

    def wanted(label: str) -> bool:
        return re.search(options.only, label) is not None

    for suite in SUITES if options.suite == "all" else [options.suite]:
        effort = QUICK if options.quick else NORMAL
        for record in SUITES[suite](quick=options.quick, effort=effort, wanted=wanted):
            records.append(record)
            print(line(record, libraries), flush=True)
    if options.json:
        report = {
            "versions": versions,
            "config": config,
            "threads": options.threads,
            "machine": platform.processor() or platform.machine(),
            "records": records,
        }
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

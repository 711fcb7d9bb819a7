"""Compare pullback with other libraries: all contenders in one run, checked, then interleaved.

    python bench/compare.py [SUITE] [--quick] [--only REGEX] [--json FILE] [--threads N]

The cases, the contenders and the clock are those of `pullback.bench`. Every contender's result is
checked before it is timed; the exit code is 1 if one is wrong. What a case is wanted to reach
stands in `WANTS`, and is shown beside what it reached.

Contenders run at their best: OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are unset before NumPy is
imported, since they hold OpenBLAS to the code of another machine, and every library has the same
number of threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import environment


class Want(NamedTuple):
    """What a case is to reach."""

    libraries: float | None = None  # times the speed of the best library
    loop: float | None = None  # times the speed of the loop written by hand, Numba's
    seconds: float | None = None  # at most
    limit: float | None = None  # at most so many times the limit
    glum: float | None = None  # times the speed of glum

    def taken(self, record: dict[str, Any]) -> dict[str, float]:
        """Return each goal with the share that the case took of the time it allows."""
        peers = dict(record["peers"])
        loop, limit = peers.pop("Numba", None), record["limit"]
        glum = peers.pop("glum", None)
        allowed = {}
        if self.libraries and peers:
            allowed[f"{self.libraries:g}x"] = min(peers.values()) / self.libraries
        if self.loop and loop:
            allowed[f"{self.loop:g}x Numba"] = loop / self.loop
        if self.glum and glum:
            allowed[f"{self.glum:g}x glum"] = glum / self.glum
        if self.seconds:
            allowed[human(self.seconds)] = self.seconds
        if self.limit and limit:
            allowed[f"limit/{self.limit:g}"] = limit * self.limit
        return {goal: record["pullback"] / seconds for goal, seconds in allowed.items()}


# The first pattern found in a label counts. Where nothing is wanted, figures are for information.
WANTS = (
    (r"^fit \w+ (dense|ill)", Want(libraries=3, glum=5)),
    (r"^fit \w+ one-hot", Want(libraries=3, glum=4)),
    (r"^\w+ 100x10 float\d\d$", Want(libraries=8, loop=2, seconds=0.8e-6)),
    (r"^\w+ 1000x20 float\d\d$", Want(libraries=2, loop=1.3)),
    (r"^\w+ 10000x100 float\d\d$", Want(libraries=1.5, loop=1.3)),
    (r"^\w+ 1000000x10 float\d\d$", Want(libraries=1.5, loop=2)),
    (r"^\w+ \d+x\d+ float\d\d$", Want(libraries=1.5, loop=1, limit=1.15)),
    (r"x5000 \w+ F$", Want(limit=1.5)),
    (r" F$", Want(limit=1.15)),
    (r" csr$", Want(libraries=1.5)),
    (r" hvp \d+x\d{3}", Want(limit=1.15)),
    (r" K=", Want(libraries=1.5)),
    (r"^(squared_norm2|logsumexp|softmax)\.", Want(libraries=1.5)),
    (r"^chain 1000000 ", Want(libraries=1.5)),
)

# The libraries that compete.
LIBRARIES = {
    "losses": ("NumPy", "SciPy", "PyTorch", "JAX", "scikit-learn", "Numba"),
    "fits": ("scikit-learn", "glum"),
    "elementwise": ("NumPy", "PyTorch", "JAX", "Numba", "numexpr", "autograd"),
    "sizes": ("NumPy", "PyTorch", "JAX", "Numba", "numexpr", "autograd"),
    "matmul": ("NumPy", "PyTorch", "JAX"),
    "layers": ("NumPy", "PyTorch", "JAX"),
    "reductions": ("NumPy", "PyTorch", "JAX"),
    "chain": ("NumPy", "PyTorch", "JAX", "autograd"),
}


def wants(record: dict[str, Any]) -> dict[str, float]:
    """Return what a case is to reach, with the share that it took of the time that allows."""
    want = next((want for pattern, want in WANTS if re.search(pattern, record["case"])), Want())
    return want.taken(record)


# --- report ---------------------------------------------------------------------------------------


def human(seconds: float | None) -> str:
    """Return a time in three digits."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def header(libraries: tuple[str, ...]) -> str:
    """Return the table's head."""
    columns = ["pullback", *libraries, "peer/ours", "GB/s", "of limit"]
    return f"{'case':42}" + "".join(f"  {column:>12}" for column in columns) + "  wanted"


def line(record: dict[str, Any], libraries: tuple[str, ...]) -> str:
    """Return one row of the table."""
    share, rate = record["share_of_limit"], record["gigabytes_per_second"]
    cells = [
        human(record["pullback"]),
        *(human(record["peers"].get(library)) for library in libraries),
        "-" if record["ratio"] is None else f"{record['ratio']:.2f}",
        "-" if rate is None else f"{rate:.3g}",
        "-" if share is None else f"{share:.0%}",
    ]
    goals = (
        goal if taken <= 1 else f"{goal} MISSED (takes {taken:.3g} x as long)"
        for goal, taken in wants(record).items()
    )
    row = f"{record['case']:42}" + "".join(f"  {cell:>12}" for cell in cells)
    row = f"{row}  {', '.join(goals)}".rstrip()
    for name, about in record.get("beside", {}).items():
        taken, peak = human(record["seconds"].get(name)), about["peak_bytes"]
        memory = "-" if peak is None else f"{peak / 1e6:.0f} MB"
        row += (
            f"\n  {name:40}  {taken:>12}  {memory:>12} beside X's {record['data_bytes'] / 1e6:.0f}"
        )
        gradient = about["gradient"]
        if gradient is None:
            row += " MB, given up as too slow"
        else:
            row += f" MB, gradient {gradient:.2g} of the goal"
        row += ", one round" * (record["rounds"].get(name) == 1)
    for name, how in record["wrong"].items():
        row += f"\n  {name} WRONG: {how}"
    return row


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suite", nargs="?", choices=[*LIBRARIES, "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="small sizes only, to see it work")
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose label matches")
    parser.add_argument("--json", metavar="FILE", help="write the records there")
    parser.add_argument("--threads", type=int, default=2, help="for every library (default 2)")
    options = parser.parse_args(arguments)
    environment.release()
    environment.limit_threads(options.threads)

    import pullback as pb
    from pullback.bench import peers, race, suites

    peers.set_threads(options.threads)
    config = pb.show_config("dict")
    versions = peers.versions()
    print(f"{config['backend']} {config['target']}, {options.threads} threads, {versions}")
    records = []
    effort = race.QUICK if options.quick else race.NORMAL
    for suite in suites.SUITES if options.suite == "all" else [options.suite]:
        print(header(LIBRARIES[suite]), flush=True)
        for case in suites.cases(suite, quick=options.quick):
            if not re.search(options.only, case.label):
                continue
            if missing := case.missing():
                print(f"{case.label}: {missing}", flush=True)
                continue
            records.append(case.run(effort))
            print(line(records[-1], LIBRARIES[suite]), flush=True)
    if options.json:
        report = {
            "versions": versions,
            "config": config,
            "threads": options.threads,
            "machine": platform.processor() or platform.machine(),
            "records": [record | {"wanted": wants(record)} for record in records],
        }
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 1 if any(record["wrong"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())

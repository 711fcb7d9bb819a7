"""Hash the results of every primitive, to compare two builds or two commits bit by bit.

    python bench/bits.py [--only REGEX] [--reference] > before.txt
    python bench/bits.py [--only REGEX] [--reference] --against before.txt

Inputs are fixed. There is one line for each instruction set of this machine, primitive, method and
group of cases. It has the hash of all results' bytes, the hash of their types, dtypes and shapes,
the number of calls, the number of calls that raise, and the name, such as ``AVX2 tanh.vjp float32
sizes``. The sign and payload of a NaN count. Of an exception only its type's name counts. On the
NumPy backend the instruction set is called ``numpy``. PULLBACK_TARGET, if set, is the only one.

``--against`` prints the differences from an earlier run instead, and exits with 1 if there are any.
Lines of that run that this one was told to leave out do not count.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import environment

DIGITS = 16  # of a hash of bytes
KIND_DIGITS = 6  # of one of types, dtypes and shapes


class Digest:
    """Hashes of several results.

    What a primitive returns is a tree of tuples; leaves are arrays, numbers, None and names.
    """

    def __init__(self) -> None:
        self._bits = hashlib.sha256()
        self._kinds = hashlib.sha256()
        self.calls = 0
        self.raised = 0

    def add(self, tree: Any) -> None:
        """Take a result in."""
        import numpy as np

        if isinstance(tree, tuple):
            self._kinds.update(b"(")
            for branch in tree:
                self.add(branch)
            self._kinds.update(b")")
        elif tree is None or isinstance(tree, str):
            self._kinds.update(repr(tree).encode())
        else:
            leaf = np.asarray(tree)
            kind = f"{type(tree).__name__} {leaf.dtype.str} {leaf.shape};"
            self._kinds.update(kind.encode())
            self._bits.update(leaf.tobytes())

    def record(self, call: Any) -> None:
        """Call, and take the result in, or the name of the exception."""
        self.calls += 1
        try:
            result = call()
        except Exception as error:  # whatever it is, it is a result
            self.raised += 1
            self._kinds.update(f"!{type(error).__name__};".encode())
        else:
            self.add(result)

    def line(self, name: str) -> str:
        """Return a line of the report."""
        bits, kinds = self._bits.hexdigest()[:DIGITS], self._kinds.hexdigest()[:KIND_DIGITS]
        return f"{bits} {kinds} {self.calls:5} {self.raised:5} {name}"


# --- one instruction set --------------------------------------------------------------------------


def lines(target: str, source: str, only: str) -> Iterator[str]:
    """Yield the lines of a target, for the backend's primitives or the twins."""
    import bit_cases

    pattern = re.compile(only)
    warnings.simplefilter("ignore")
    for primitive, cases in bit_cases.all_cases(bit_cases.library(source)):
        digests: dict[str, Digest] = {}
        for case in cases:
            name = f"{target} {primitive}.{case.method} {case.group}"
            if pattern.search(name):
                digests.setdefault(name, Digest()).record(case.call)
        for name, digest in digests.items():
            yield digest.line(name)
    if changed := bit_cases.written():
        sys.exit(f"{target}: calls have written to their inputs: {', '.join(changed)}")


def run(target: str, source: str, only: str) -> str:
    """Return the lines of a target, from a process of its own."""
    variables = dict(os.environ, OPENBLAS_NUM_THREADS="1")
    if target not in ("numpy", "reference"):
        variables["PULLBACK_TARGET"] = target
    command = [sys.executable, __file__, "--run", target, source, "--only", only]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{target}: exit code {done.returncode}")
    return done.stdout


def configuration() -> tuple[list[str], str]:
    """Return the targets there are, and a line about this build."""
    import pullback as pb

    config = pb.show_config("dict")
    targets = config["targets"] or ["numpy"]
    if config["targets"] and os.environ.get("PULLBACK_TARGET"):
        targets = [config["target"]]
    about = ("version", "backend", "compiler", "Highway", "NumPy", "Python")
    return targets, "# " + ", ".join(f"{key} {config[key]}" for key in about)


# --- comparison -----------------------------------------------------------------------------------


class Line(NamedTuple):
    """What a report says of one name."""

    bits: str
    kinds: str
    calls: str
    raised: str


def parsed(text: str) -> dict[str, Line]:
    """Return the lines of a report by name."""
    rows = (line.split(maxsplit=4) for line in text.splitlines() if not line.startswith("#"))
    return {row[4]: Line(*row[:4]) for row in rows if row}


def differences(before: dict[str, Line], after: dict[str, Line]) -> Iterator[tuple[str, str]]:
    """Yield what differs, and where."""
    for name, new in after.items():
        old = before.get(name)
        if old is None:
            yield "added", name
        elif old.calls != new.calls:
            yield f"calls {old.calls}, now {new.calls}", name
        elif old.raised != new.raised:
            yield f"raising {old.raised}, now {new.raised}", name
        elif old.bits != new.bits:
            yield "bits", name
        elif old.kinds != new.kinds:
            yield "types, dtypes or shapes", name
    for name in before:
        if name not in after:
            yield "removed", name


def compare(before: dict[str, Line], after: dict[str, Line]) -> int:
    """Print what differs; return 1 if anything does."""
    counts: Counter[str] = Counter()
    for what, name in differences(before, after):
        counts[what.split()[0].rstrip(",")] += 1
        print(f"{what}: {name}")
    total = ", ".join(f"{count} {what}" for what, count in counts.items())
    print(f"{len(after)} lines, {len(before)} before: {total or 'no difference'}")
    return 1 if counts else 0


def main(arguments: list[str] | None = None) -> int:
    """Print hashes, or what differs from an earlier report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="REGEX", default="", help="lines whose name matches")
    parser.add_argument("--against", metavar="FILE", type=Path, help="an earlier report")
    parser.add_argument("--reference", action="store_true", help="the NumPy twins as well")
    parser.add_argument("--run", nargs=2, metavar=("TARGET", "SOURCE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    environment.release()
    if options.run:
        target, source = options.run
        for line in lines(target, source, options.only):
            print(line)
        return 0
    targets, about = configuration()
    jobs = [(target, "backend", options.only) for target in targets]
    jobs += [("reference", "reference", options.only)] * options.reference
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(lambda job: run(*job), jobs))
    if options.against is None:
        print(about)
        print("".join(reports), end="")
        return 0
    ran = {source if source == "reference" else target for target, source, _ in jobs}
    chosen = bool(os.environ.get("PULLBACK_TARGET"))
    before = {
        name: line
        for name, line in parsed(options.against.read_text(encoding="utf-8")).items()
        if re.search(options.only, name)
        if name.split()[0] in ran or not (chosen or name.startswith("reference "))
    }
    return compare(before, parsed("".join(reports)))


if __name__ == "__main__":
    sys.exit(main())

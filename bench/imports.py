"""Time what an import takes beyond NumPy's, in fresh processes.

    python bench/imports.py [--rounds N] [--limit MS]

Processes take turns, so that what disturbs the machine disturbs all; what counts is the median over
the rounds of the CPU time in user mode, and its difference from ``import numpy``. Bytecode is
written before, to a directory of its own. It exits with 1 if ``import pullback`` takes more than
the limit, 15 ms; a use takes the import along.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict

NUMPY, PULLBACK = "import numpy", "import pullback as pb"
USES = ("pb.tanh", "pb.softmax", "pb.matmul", "pb.logistic", "pb.LinearObjective", "pb.reference")
SCRIPTS = (NUMPY, PULLBACK, *(f"{PULLBACK}; {use}" for use in USES))


def milliseconds(script: str, environment: dict[str, str]) -> float:
    """Return the CPU time in user mode of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    return 1e3 * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)


def main() -> int:
    """Print a table, and tell whether the import holds its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21, metavar="N")
    parser.add_argument("--limit", type=float, default=15.0, metavar="MS")
    given = parser.parse_args()
    taken = defaultdict(list)
    with tempfile.TemporaryDirectory() as cache:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        for number in range(1 + given.rounds):  # the first writes bytecode
            for script in SCRIPTS:
                time = milliseconds(script, environment)
                if number:
                    taken[script].append(time)
    least = statistics.median(taken[NUMPY])
    for script in SCRIPTS:
        low, median, high = statistics.quantiles(taken[script], n=4)
        print(f"{script:40} {median:7.1f} ms ({low:.1f} to {high:.1f}), {median - least:+6.1f}")
    return int(statistics.median(taken[PULLBACK]) - least > given.limit)


if __name__ == "__main__":
    sys.exit(main())

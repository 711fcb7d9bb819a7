"""Time two builds of pullback against each other, call by call.

    python bench/versus.py OTHER_PYTHON [--only REGEX] [--rounds N] [--slower RATIO] [--threads N]

OTHER_PYTHON is an interpreter that imports the build to compare with, such as an older one. Each
call of `pullback.cases` and of `LARGE` is timed in both, in turns, so that a disturbance of the
machine affects both. The medians over the rounds count. A call that is slower by more than RATIO is
timed again, for longer, and the better time counts. The output has the median ratio of each
primitive's methods, then the slower calls. The exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import pickle
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from timeit import Timer
from typing import Any

import environment

SECONDS = 5e-4  # for each side of a round
AGAIN = 4  # times as many rounds for what seems slower
PARALLEL = 2e-5  # from here on, threads may wait for more work
ASLEEP = 1e-3  # until they have given up

# Sizes above those of `pullback.cases`.
LARGE: dict[str, tuple[Any, ...]] = {
    "tanh": ((5_000_000,),),
    "multiply": ((5_000_000,),),
    "sum": ((1000, 1000), (5_000_000,)),
    "logsumexp": ((1000, 1000),),
    "softmax": ((1000, 1000),),
    "matmul": (((1024, 1024), (1024, 1024)),),
    "linear": (((10_000, 64), (64, 64)),),
    "relu_mse": ((1_000_000, 10), (100_000, 100)),
    "logistic": ((1_000_000, 10),),
    "softmax_cross_entropy": ((100_000, 20),),
}


class Build:
    """An interpreter that times calls when it is told to."""

    def __init__(self, python: str) -> None:
        command = [python, str(Path(__file__).resolve()), "--serve"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.about = self._ask("about")

    def take(self, *call: Any) -> str:
        """Get ready to time a call; return what went wrong, or nothing."""
        answer = self._ask("call", *call)
        if isinstance(answer, str):
            return answer
        self._number = answer
        return ""

    def time(self) -> float:
        """Return the seconds that the call takes."""
        seconds: float = self._ask("time", self._number)
        if seconds > PARALLEL:
            time.sleep(ASLEEP)
        return seconds

    def close(self) -> None:
        """Let it go."""
        self._process.communicate()

    def _ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(question, self._process.stdin)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)


def serve() -> None:
    """Answer questions about this build, until there are no more."""
    import pullback as pb

    answers = sys.stdout.buffer
    sys.stdout = sys.stderr
    timer = Timer()
    while True:
        try:
            kind, *given = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if kind == "about":
                answer: Any = dict(pb.show_config("dict"))
            elif kind == "call":
                timer = timer_of(pb, *given)
                answer = often(timer)
            else:
                (number,) = given
                answer = timer.timeit(number) / number
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()


def timer_of(pb: Any, name: str, method: str, arguments: tuple[Any, ...], keywords: Any) -> Timer:
    """Return a timer of a call as it is written, since unpacking takes a tenth of a short one."""
    primitive = pb.primitives[name]
    bare = method == "value" and not hasattr(primitive, "value")
    scope = {f"a{i}": argument for i, argument in enumerate(arguments)}
    listed = [*scope, *(f"{key}=k_{key}" for key in keywords)]
    scope |= {f"k_{key}": value for key, value in keywords.items()}
    scope["f"] = primitive if bare else attrgetter(method)(primitive)
    return Timer(f"f({', '.join(listed)})", globals=scope)


def often(timer: Timer) -> int:
    """Return how often to call so that a round takes long enough."""
    number = 1
    while (seconds := timer.timeit(number)) < SECONDS / 4:
        number *= 4
    return max(1, round(number * SECONDS / seconds))


def race(builds: list[Build], rounds: int) -> list[float]:
    """Return the median seconds of the call in each build."""
    times = [[build.time() for build in builds] for _ in range(rounds)]
    return [statistics.median(own) for own in zip(*times, strict=True)]


def wanted(only: str) -> Iterator[Any]:
    """Yield the cases to time."""
    from pullback.cases import DTYPES, Case, cases, family

    pattern = re.compile(only)
    larger = (
        Case(name, method, dtype, size)
        for name, sizes in LARGE.items()
        for method in family(name).by_hand
        for size in sizes
        for dtype in DTYPES
    )
    yield from (case for every in (cases(), larger) for case in every if pattern.search(case.group))


def main(arguments: list[str] | None = None) -> int:
    """Print what is slower; return 1 if anything is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", help="an interpreter that imports the other build")
    parser.add_argument("--only", metavar="REGEX", default="", help="such as '^loss'")
    parser.add_argument("--rounds", type=int, default=7, help="of each call (default 7)")
    parser.add_argument("--slower", type=float, default=1.03, help="than this counts (1.03)")
    parser.add_argument("--threads", type=int, default=2, help="of each build (default 2)")
    options = parser.parse_args(arguments)
    environment.release()
    environment.limit_threads(options.threads)

    from pullback.cases import family

    builds = [Build(sys.executable), Build(options.python)]
    print(*(f"{b.about['backend']} {b.about['target']}" for b in builds))
    ratios: dict[str, list[float]] = defaultdict(list)
    slower, refused = [], []
    for case in wanted(options.only):
        call = case.primitive, case.method, case.arguments(), dict(family(case.primitive).keywords)
        if trouble := [text for build in builds if (text := build.take(*call))]:
            refused.append(f"{case.group}: {trouble[0]}")
            continue
        ours, theirs = race(builds, options.rounds)
        if ours > options.slower * theirs:
            again = race(builds, AGAIN * options.rounds)
            ours, theirs = min(
                (ours, theirs), (again[0], again[1]), key=lambda pair: pair[0] / pair[1]
            )
        ratio = theirs / ours
        ratios[f"{case.primitive}.{case.method}"].append(ratio)
        if ratio < 1 / options.slower:
            slower.append((ratio, f"{case.group}: {ours * 1e6:.2f} us, was {theirs * 1e6:.2f}"))
    for name, own in ratios.items():
        print(f"{statistics.median(own):7.2f} x  {name}  ({min(own):.2f} to {max(own):.2f})")
    for line in refused:
        print("not timed:", line)
    for ratio, line in sorted(slower):
        print(f"slower: {ratio:.2f} x  {line}")
    print(
        f"{sum(map(len, ratios.values()))} calls, {len(slower)} slower by more than "
        f"{options.slower:g}"
    )
    for build in builds:
        build.close()
    return 1 if slower else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.exit(main())

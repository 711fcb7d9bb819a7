"""Time every public method of every primitive on small arrays, and check it against a limit.

    python bench/calls.py [--only REGEX] [--write] [--threads N]

Arrays are plain: 16 elements, matrices 4x4, losses 100x10. The unit is ``np.multiply(a, b)`` of 16
float64 elements, timed in turns with each call, so that a disturbance of the machine affects both.
The median over the rounds counts. A call above its limit in `LIMITS` is timed again, for longer,
and the better time counts. There is one row for each family, method and options, with the median
over the primitives and the worst of them. The calls that raise, such as those with an option that
the method does not take, are listed below the table.

It exits with 1 if a row is above its limit. ``--write`` writes the table to docs/calls.md.
OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are unset before NumPy is imported, and every library has the
same number of threads.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from timeit import Timer
from typing import Any, NamedTuple

import environment

# The most that a call may take, in units.
LIMITS = {
    "plain": 3.0,  # arrays of one dtype, no options
    "option": 8.0,  # wrt, out, axis, weights, a tangent that is None, a stack of cotangents
    "converted": 8.0,  # a number beside arrays, float32 with float64, integers, lists
    "jacobian": 8.0,  # Diagonal @ v and its like
    "objective": 5.0,  # LinearObjective
    "chain": 8.0,  # of a few steps
}

ROUNDS = 9
AGAIN = 25  # rounds for what is above its limit
SECONDS = 2e-4  # for each side of a round
UNIT = "np.multiply(a, b)"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "calls.md"


class Row(NamedTuple):
    """What the calls of one family, method and options took."""

    family: str
    method: str
    options: str
    median: float  # units, over the primitives
    worst: float  # units
    seconds: float  # of the worst
    primitive: str  # the worst
    limit: float

    @property
    def over(self) -> bool:
        """Whether a call is above the limit."""
        return self.worst > self.limit


# --- the clock ------------------------------------------------------------------------------------


def timer(function: Callable[..., Any], arguments: Iterable[Any], keywords: Any) -> Timer:
    """Return a timer of a call as it is written, since unpacking takes a tenth of a short one."""
    scope = {f"a{i}": argument for i, argument in enumerate(arguments)}
    listed = [*scope, *(f"{key}=k_{key}" for key in keywords)]
    scope |= {f"k_{key}": value for key, value in keywords.items()}
    return Timer(f"f({', '.join(listed)})", globals={"f": function, **scope})


def often(clock: Timer) -> int:
    """Return how often to call so that a round takes long enough."""
    number = 1
    while (seconds := clock.timeit(number)) < SECONDS / 4:
        number *= 4
    return max(1, round(number * SECONDS / seconds))


def measure(clock: Timer, unit: Timer, rounds: int) -> tuple[float, float]:
    """Return units and seconds of a call: medians over rounds of both in turns."""
    number, unit_number = often(clock), often(unit)
    ratios, times = [], []
    for _ in range(rounds):
        one = unit.timeit(unit_number) / unit_number
        times.append(clock.timeit(number) / number)
        ratios.append(times[-1] / one)
    return statistics.median(ratios), statistics.median(times)


# --- rows -----------------------------------------------------------------------------------------


def rows(only: str) -> tuple[list[Row], dict[str, list[str]]]:
    """Return the rows, and which calls raise: what they are by primitives."""
    import call_cases
    import numpy as np

    pattern = re.compile(only)
    a = np.linspace(0.5, 1.5, 16)
    unit = timer(np.multiply, (a, a.copy()), {})
    taken: dict[tuple[str, ...], list[tuple[float, float, str]]] = defaultdict(list)
    refused: dict[str, list[str]] = defaultdict(list)
    for call in call_cases.all_calls():
        if not pattern.search(f"{call.family}.{call.method} {call.options} {call.primitive}"):
            continue
        try:
            call.function(*call.arguments, **call.keywords)
        except (TypeError, ValueError) as error:
            label = f"{call.family}.{call.method} {call.options}: {type(error).__name__}"
            refused[label].append(call.primitive)
            continue
        clock = timer(call.function, call.arguments, call.keywords)
        figures = measure(clock, unit, ROUNDS)
        if figures[0] > LIMITS[call.limit]:
            figures = min(figures, measure(clock, unit, AGAIN))
        taken[call.row].append((*figures, call.primitive))
    return [row_of(key, figures) for key, figures in taken.items()], refused


def row_of(key: tuple[str, ...], figures: list[tuple[float, float, str]]) -> Row:
    """Return the row of calls alike."""
    family, method, options, limit = key
    worst, seconds, primitive = max(figures)
    median = statistics.median(units for units, *_ in figures)
    return Row(family, method, options, median, worst, seconds, primitive, LIMITS[limit])


# --- report ---------------------------------------------------------------------------------------

HEAD = ("family", "method", "options", "median", "worst", "of", "us", "limit", "")


def table(lines: list[Row]) -> Iterator[str]:
    """Yield the lines of a table in Markdown, of equal widths."""
    cells = [HEAD]
    for row in lines:
        figures = (f"{row.median:.1f}", f"{row.worst:.1f}", row.primitive)
        limit = (f"{row.seconds * 1e6:.2f}", f"{row.limit:g}", "over" * row.over)
        cells.append((row.family, f"`{row.method}`", row.options, *figures, *limit))
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEAD))]
    rule = tuple("-" * max(3, width) for width in widths)
    for line in (cells[0], rule, *cells[1:]):
        yield "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"


def summary(lines: list[Row]) -> str:
    """Return a line that counts."""
    over = sum(row.over for row in lines)
    return f"{len(lines)} rows, {over or 'none'} above the limit"


def raising(refused: dict[str, list[str]]) -> Iterator[str]:
    """Yield lines that tell which calls raise."""
    for label, names in refused.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"{label} ({', '.join(names[:3])}{more})"


def page(lines: list[Row], refused: dict[str, list[str]], about: str) -> str:
    """Return the page of the documentation."""
    text = [
        "# Calls",
        "",
        "<!-- Generated by bench/calls.py --write; do not edit. -->",
        "",
        "This table has the cost of calls on small arrays: 16 elements, matrices 4x4, losses",
        f"100x10. The unit is `{UNIT}` of 16 float64 elements, timed in turns with each call.",
        "`us` is the time of the slowest primitive in microseconds. Made by",
        f"`python bench/calls.py --write`, with {about}.",
        "",
        f"{summary(lines)}.",
        "",
        *table(lines),
    ]
    if refused:
        text += ["", "Calls that raise:", "", *(f"- {line}" for line in raising(refused))]
    return "\n".join(line.rstrip() for line in text) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 if a call is above its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="REGEX", default="", help="such as 'loss.hvp'")
    parser.add_argument("--write", action="store_true", help="write docs/calls.md")
    parser.add_argument("--threads", type=int, default=2, help="for every library (default 2)")
    options = parser.parse_args(arguments)
    if options.write and options.only:
        parser.error("the page holds all calls: --write goes without --only")
    environment.release()
    environment.limit_threads(options.threads)

    import pullback as pb

    config = pb.show_config("dict")
    about = f"{config['backend']} {config['target'] or ''}".rstrip()
    about += f", {options.threads} threads, NumPy {config['NumPy']}, Python {config['Python']}"
    print(about, flush=True)
    lines, refused = rows(options.only)
    print("\n".join(table(lines)))
    for line in raising(refused):
        print(f"raises: {line}")
    print(summary(lines))
    if options.write:
        PAGE.write_text(page(lines, refused, about), encoding="utf-8")
    return 1 if any(row.over for row in lines) else 0


if __name__ == "__main__":
    sys.exit(main())

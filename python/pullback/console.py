"""Output of the command: aligned tables, and a progress indicator on terminals."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import TypeVar

__all__ = ["in_two", "table", "track"]

T = TypeVar("T")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return an aligned text table.

    Parameters
    ----------
    header : sequence of str
    rows : iterable of sequences of str
        As many cells as the header has.
    left : int, default 1
        The number of leading columns that hold words and are flush left; numbers are flush right.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def in_two(text: str) -> str:
    """Return a table's halves side by side."""
    header, rule, *rows = text.splitlines()
    middle = (len(rows) + 1) // 2
    halves = ([header, rule, *half] for half in (rows[:middle], rows[middle:]))
    return "\n".join(
        f"{one:<{len(rule)}}    {other}".rstrip()
        for one, other in zip_longest(*halves, fillvalue="")
    )


def track(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield `items`, showing on a terminal how many are done: by tqdm where it is installed."""
    if not sys.stderr.isatty():
        yield from items
    elif find_spec("tqdm") is not None:
        from tqdm import tqdm  # noqa: PLC0415  only where it is installed, and only on a terminal

        yield from tqdm(items, desc=label, leave=False, file=sys.stderr)
    else:
        for i, item in enumerate(items):
            print(f"\r{label} {i}/{len(items)}", end="", file=sys.stderr, flush=True)
            yield item
        print("\r" + " " * (len(label) + 16) + "\r", end="", file=sys.stderr, flush=True)

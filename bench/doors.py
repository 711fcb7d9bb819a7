"""What the benches of doors to other libraries share: a race of two, and its line."""

from __future__ import annotations

from typing import Any


def is_right(title: str, contenders: Any, expected: Any, rtol: float, *, quick: bool) -> bool:
    """Race another library and pullback, print their times, and tell whether both are right."""
    from pullback.bench import race

    record = race.race(title, contenders, expected, rtol, race.QUICK if quick else race.NORMAL)
    theirs, ours = (record["seconds"][contender.name] for contender in contenders)
    print(f"{title:42}{theirs * 1e6:10.1f}us{ours * 1e6:10.1f}us{theirs / ours:18.2f}")
    for name, how in record["wrong"].items():
        print(f"  {name} WRONG: {how}")
    return not record["wrong"]

"""The clock: contenders are checked, then timed in turns; the medians over the rounds count.

Rounds go through all contenders, so that what disturbs the machine disturbs them alike. A contender
that is slow or far behind gets one round. A library that appears in several ways counts with its
best.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from pullback.bench.peers import Contender

__all__ = ["NORMAL", "QUICK", "Effort", "First", "Record", "interleave", "medians", "race", "wrong"]

Record: TypeAlias = dict[str, Any]

LONG = 0.2  # seconds; before a longer call nothing has to be warmed up
SLOW, BEHIND = 2.0, 10  # seconds, and multiples of the best time, above which one round is enough

_PART = 1 << 20  # elements that are compared at a time


class Effort(NamedTuple):
    """How long to look."""

    rounds: int
    round_seconds: float  # per contender and round, for short calls
    case_seconds: float  # no more rounds are begun after this
    pause: float = 0.03  # before each turn


class First(NamedTuple):
    """A call that was made before the race."""

    seconds: float
    result: Any


NORMAL = Effort(rounds=15, round_seconds=5e-3, case_seconds=8)
QUICK = Effort(rounds=3, round_seconds=1e-3, case_seconds=2)


def seconds_of_a_call(call: Callable[[], Any], effort: Effort) -> float:
    """Return a first estimate of a call's time."""
    number = 1
    while True:
        seconds = _seconds(call, number)
        if seconds > effort.round_seconds / 4:
            return seconds / number
        number *= 4


def _seconds(call: Callable[[], Any], number: int) -> float:
    begin = time.perf_counter()
    for _ in range(number):
        call()
    return time.perf_counter() - begin


def interleave(
    calls: dict[str, Callable[[], Any]], effort: Effort, first: dict[str, float] | None = None
) -> dict[str, list[float]]:
    """Return the seconds of each call in every round, timed in turns.

    `first` has the times of calls that were made before. A call that was slow or far behind is not
    repeated: its first time is its only round.
    """
    took = dict(first or {})
    took |= {name: seconds_of_a_call(calls[name], effort) for name in calls if name not in took}
    best = min(took.values())
    times: dict[str, list[float]] = {name: [] for name in calls}
    numbers = {}
    for name, seconds in took.items():
        if seconds > SLOW or seconds > max(LONG, BEHIND * best):
            times[name] = [seconds]
        else:
            # So many calls in a round that the clock's own cost vanishes.
            numbers[name] = max(1, round(effort.round_seconds / seconds))
    begin = time.perf_counter()
    for done in range(effort.rounds):
        for name, number in numbers.items():
            # Other contenders' idle threads stop spinning, then this one's wake up.
            time.sleep(effort.pause)
            if took[name] < LONG:
                _seconds(calls[name], max(1, number // 10))
            times[name].append(_seconds(calls[name], number) / number)
        if done >= 2 and time.perf_counter() - begin > effort.case_seconds:
            break
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the median seconds of each call."""
    return {name: statistics.median(values) for name, values in times.items()}


def spread(values: list[float]) -> float:
    """Return the third quartile by the first; 1 for a single value."""
    if len(values) == 1:
        return 1.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third / first


def wrong(actual: Sequence[Any], expected: Sequence[Any], rtol: float) -> str:
    """Return how a result differs from what is expected by more than `rtol` of its scale, or ""."""
    for one, other in zip(actual, expected, strict=True):
        if one.shape != other.shape:
            return f"a result of shape {one.shape}, not {other.shape}"
        parts = zip(_parts(one), _parts(other), strict=True)
        largest = [(np.abs(a.astype(float) - b).max(), np.abs(b).max()) for a, b in parts]
        error, scale = np.max(largest, axis=0, initial=0)  # NaN if any is
        if not error <= rtol * scale:
            return f"an error of {error:.3g} where the largest element is {scale:.3g}"
    return ""


def _parts(array: Any) -> list[Any]:
    flat = np.ravel(array)
    return [flat[i : i + _PART] for i in range(0, flat.size, _PART)]


def race(
    label: str,
    contenders: Sequence[Contender],
    expected: Sequence[Any],
    rtol: float,
    effort: Effort,
    *,
    floor: Callable[[], Any] | None = None,
    least: float | None = None,
    nbytes: int | None = None,
    flops: int | None = None,
    first: Mapping[str, First] | None = None,
) -> Record:
    """Check and time the contenders of one case; return its record.

    The limit is what `floor` takes, which is timed among them, or `least` seconds; `nbytes` is
    what has to be moved, `flops` what has to be computed. Another library's way that computes
    something else is not timed, and said to be wrong. `first` has the calls that were made
    before.
    """
    first = first or {}
    refused: dict[str, str] = {}
    for contender in contenders:
        made = first.get(contender.name)
        result = contender.call() if made is None else made.result
        if how := wrong(contender.arrays(result), expected, rtol):
            refused[contender.name] = how
    if "pullback" in refused:
        raise RuntimeError(f"{label}: pullback computes {refused['pullback']}")
    racing = [contender for contender in contenders if contender.name not in refused]
    calls = {contender.name: contender.call for contender in racing}
    if floor is not None:
        calls["limit"] = floor
    took = {name: made.seconds for name, made in first.items() if name in calls}
    times = interleave(calls, effort, took)
    seconds = medians(times)
    limit = seconds.pop("limit", least)
    best: dict[str, str] = {}
    for contender in racing:
        way = best.setdefault(contender.library, contender.name)
        if seconds[contender.name] < seconds[way]:
            best[contender.library] = contender.name
    spreads = {library: spread(times[way]) for library, way in best.items()}
    peers = {library: seconds[way] for library, way in best.items()}
    ours = peers.pop("pullback")
    rival = min(peers, key=lambda library: peers[library], default=None)
    return {
        "case": label,
        "seconds": seconds,
        "rounds": {name: len(values) for name, values in times.items()},
        "pullback": ours,
        "peers": peers,
        "best_peer": rival,
        "ratio": None if rival is None else peers[rival] / ours,
        "spread": max(spreads["pullback"], spreads[rival or "pullback"]),
        "wrong": refused,
        "limit": limit,
        "share_of_limit": None if limit is None else limit / ours,
        "gigabytes_per_second": None if nbytes is None else nbytes / ours / 1e9,
        "gigaflops_per_second": None if flops is None else flops / ours / 1e9,
    }

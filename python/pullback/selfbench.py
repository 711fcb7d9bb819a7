"""Times every primitive against plain NumPy by hand, and what this machine can do at best."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from timeit import Timer
from typing import Any, Final

import numpy as np

from pullback.cases import Case, check
from pullback.config import native
from pullback.tables.elementwise import OPS, OpRow
from pullback.tables.losses import LOSSES
from pullback.tables.reductions import REDUCTIONS

__all__ = ["Limits", "Timing", "benchmarks", "measure_limits"]

_SMALL: Final = 16
# Arrays of 32 MiB and more come fresh from the system with every call, which measures its pages.
_MIN_ARRAY_BYTES: Final = 2**24
_MAX_ARRAY_BYTES: Final = 3 * 2**23
_PROBE_BYTES: Final = 2**27
_MIN_PROBED_BYTES: Final = 2**20  # reading less takes no longer than looking at the clock
_PROBE: Final = 4096
_SECONDS: Final = 0.01  # for each side of a comparison, if two rounds take no longer


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this machine can do at best, in 1e9 bytes or flops per second; None if not measured."""

    read: float | None
    copy: float | None
    flops: Mapping[str, float | None]  # by dtype


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One primitive's call timed beside plain NumPy."""

    name: str
    call: str
    size: str
    seconds: float
    numpy_seconds: float
    rate: float  # of what moves or of what is computed, in 1e9 per second
    unit: str  # GB/s or Gflop/s
    share: float | None  # of the limit


def measure_limits() -> Limits:
    """Measure the machine; the NumPy backend has no probes to do it with."""
    if native is None:
        return Limits(read=None, copy=None, flops={"float32": None, "float64": None})
    size = max(_PROBE_BYTES, 4 * native.last_level_cache_bytes())
    return Limits(
        read=native.measure_read_bandwidth(size),
        copy=native.measure_copy_bandwidth(size),
        flops={name: native.measure_fma_peak(name == "float64") for name in ("float32", "float64")},
    )


# --- the clock ------------------------------------------------------------------------------------


def _timer(function: Callable[..., Any], arguments: Sequence[Any]) -> Timer:
    """Return a timer of a call as it is written, since unpacking takes a tenth of a short one."""
    names = [f"a{i}" for i in range(len(arguments))]
    scope = {"f": function, **dict(zip(names, arguments, strict=True))}
    return Timer(f"f({', '.join(names)})", globals=scope)


def _race(*timers: Timer) -> list[float]:
    """Return the best time of each call, timed in turns so that all meet the same machine."""
    best = []
    for timer in timers:
        timer.timeit(1)  # whatever happens only once
        best.append(timer.timeit(1))
    repeats = [max(1, int(2e-4 / seconds)) for seconds in best]  # short calls by the hundred
    one_round = sum(map(float.__mul__, best, map(float, repeats)))
    for _ in range(max(2, min(30, int(_SECONDS * len(timers) / one_round)))):
        for i, timer in enumerate(timers):
            best[i] = min(best[i], timer.timeit(repeats[i]) / repeats[i])
    return best


def _compare(case: Case, arguments: Sequence[Any]) -> tuple[Timer, Timer]:
    """Return timers of ours and by hand, once they agree: what is something else is not timed."""
    by_hand = case.by_hand
    assert by_hand is not None
    eps = 1e3 * float(np.finfo(case.dtype).eps)
    check(case.group, case.native(*arguments), by_hand(*arguments), eps)
    return _timer(case.native, arguments), _timer(by_hand, arguments)


# --- the benchmarks -------------------------------------------------------------------------------


def benchmarks(limits: Limits, dtype: np.dtype[Any], name: str = "") -> list[Callable[[], Timing]]:
    """Return benchmarks, to be called one by one: of all primitives, or of those whose name fits.

    `name` is a regular expression for the whole name; an empty one fits all.
    """
    return [
        partial(_timed, make, limits)
        for make in _chosen(dtype.name)
        if not name or re.fullmatch(name, make.args[0])
    ]


def _chosen(dtype: str) -> Iterator[partial[Case]]:
    """Yield what makes the cases: of each primitive those that tell most, small and large."""
    for name in OPS:
        for method in ("value", "vjp"):
            yield partial(Case, name, method, dtype, (_SMALL,))
            yield partial(_large, name, method, dtype)
    methods = {name: "vjp" if row.is_map else "value_and_grad" for name, row in REDUCTIONS.items()}
    rest: tuple[tuple[str, str, list[Any]], ...] = (
        *((name, method, [(_SMALL,), (100_000,)]) for name, method in methods.items()),
        ("matmul", "vjp", [((n, n), (n, n)) for n in (4, 512)]),
        ("linear", "vjp", [((n, k), (k, k)) for n, k in ((100, 10), (2000, 256))]),
        ("quadratic_form", "value_and_grad", [(n, n) for n in (16, 1500)]),
        ("bilinear_form", "value_and_grad", [(n, n) for n in (16, 1500)]),
        *((name, "value_and_grad", [(100, 10), (10_000, 100)]) for name in LOSSES),
        ("relu_mse", "value_and_grad", [(200_000, 100)]),  # more than any cache holds
    )
    for name, method, sizes in rest:
        for size in sizes:
            yield partial(Case, name, method, dtype, size)


def _large(name: str, method: str, dtype: str) -> Case:
    """Return a case that no cache holds; of long formulas a smaller one, not bound by memory."""
    llc = 0 if native is None else native.last_level_cache_bytes()
    large = min(max(llc, _MIN_ARRAY_BYTES), _MAX_ARRAY_BYTES) // np.dtype(dtype).itemsize
    probe = Case(name, "vjp", dtype, (_PROBE,))
    assert probe.by_hand is not None
    per_element = min(_timer(probe.by_hand, probe.arguments()).repeat(3, 1)) / _PROBE
    return Case(name, method, dtype, (min(large, max(2**16, int(_SECONDS / per_element))),))


def _timed(make: Callable[[], Case], limits: Limits) -> Timing:
    case = make()
    arguments = case.arguments()
    timers = _compare(case, arguments)
    X = arguments[0]
    is_loss = case.primitive in LOSSES
    if is_loss and native is not None and X.nbytes >= _MIN_PROBED_BYTES:
        # The limit is a plain read of this very X, in the same race.
        seconds, numpy_seconds, read_seconds = _race(*timers, _timer(native.read_seconds, (X,)))
        rate, unit, limit = X.nbytes / seconds / 1e9, "GB/s", X.nbytes / read_seconds / 1e9
    else:
        seconds, numpy_seconds = _race(*timers)
        work, unit, limit = _work(case, arguments, limits)
        rate = work / seconds / 1e9
    return Timing(
        name=case.primitive,
        call=case.method,
        size=case.label,
        seconds=seconds,
        numpy_seconds=numpy_seconds,
        rate=rate,
        unit=unit,
        share=None if limit is None else rate / limit,
    )


def _work(case: Case, arguments: Sequence[Any], limits: Limits) -> tuple[int, str, float | None]:
    """Return what has to move or to be computed, its unit, and the limit per second."""
    name, size = case.primitive, case.size
    if name in OPS:
        moved = _arrays_moved(OPS[name])[case.method] * arguments[0].nbytes
        return moved, "GB/s", None if size == (_SMALL,) else limits.copy
    if name in ("matmul", "linear"):
        (m, k), (_, n) = size
        products = 2 if name == "matmul" else 3
        return 2 * products * m * k * n, "Gflop/s", limits.flops[case.dtype]
    if name in REDUCTIONS:  # operands, a map's cotangent, and results
        moved = 3 if REDUCTIONS[name].is_map else 2 * len(REDUCTIONS[name].operands)
        return moved * arguments[0].nbytes, "GB/s", None
    return max(a.nbytes for a in arguments if isinstance(a, np.ndarray)), "GB/s", None


def _arrays_moved(row: OpRow) -> dict[str, int]:
    """Return how many arrays a value and a vjp have to read and write."""
    slopes = " ".join(row.derivative_formula)
    if row.nin == 1:  # even where the derivative is constant, NaN comes through
        return {"value": 2, "vjp": 3}
    needed = sum(re.search(rf"\b{operand}\b", slopes) is not None for operand in row.operands)
    reads_cotangent = set(row.derivative_formula) != {"0"}
    return {"value": row.nin + 1, "vjp": needed + reads_cotangent + row.nin}


# --- for people -----------------------------------------------------------------------------------


def title(dtype: np.dtype[Any], limits: Limits) -> str:
    """Return what the tables are about, and the limits."""

    def rate(value: float | None, unit: str) -> str:
        return "n/a" if value is None else f"{value:.3g} {unit}"

    return (
        f"Against plain NumPy written by hand, {dtype.name}. Limits of this machine: read "
        f"{rate(limits.read, 'GB/s')},\n"
        f"copy {rate(limits.copy, 'GB/s')}, {rate(limits.flops[dtype.name], 'Gflop/s')}. "
        "Of limit: what has to move against a copy, a matrix product\n"
        "against multiply-adds, a loss against a plain read of the same X."
    )


def as_tables(
    timings: Sequence[Timing],
) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Return two tables, each a header and rows: elementwise operations, and the rest."""
    by_call: dict[tuple[str, str], list[Timing]] = {}
    for timing in timings:
        if timing.name in OPS:
            by_call.setdefault((timing.name, timing.call), []).append(timing)
    rest = [timing for timing in timings if timing.name not in OPS]
    return [
        (
            (
                *("elementwise", "call", f"n = {_SMALL}", "NumPy", "speed-up"),
                *("large n", "time", "NumPy", "speed-up", "rate", "of limit"),
            ),
            [
                (*key, *_times(small), large.size, *_times(large), *_rate(large))
                for key, (small, large) in by_call.items()
            ],
        ),
        (
            ("primitive", "call", "size", "time", "NumPy", "speed-up", "rate", "of limit"),
            [(t.name, t.call, t.size, *_times(t), *_rate(t)) for t in rest],
        ),
    ]


def _times(timing: Timing) -> tuple[str, str, str]:
    return (
        _seconds(timing.seconds),
        _seconds(timing.numpy_seconds),
        f"{timing.numpy_seconds / timing.seconds:.1f} x",
    )


def _rate(timing: Timing) -> tuple[str, str]:
    share = "n/a" if timing.share is None else f"{timing.share:.0%}"
    return f"{timing.rate:#.3g} {timing.unit}", share


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"

"""Times every primitive against hand-written NumPy, and measures the limits of this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from timeit import Timer
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import numpy as np

from pullback import blas
from pullback.cases import Case, check
from pullback.config import get_num_threads, native
from pullback.console import in_two, table
from pullback.tables.elementwise import OPS, OpRow
from pullback.tables.losses import LOSSES
from pullback.tables.reductions import REDUCTIONS
from pullback.tables.selections import SELECTIONS

__all__ = ["Benchmark", "Limits", "Timing", "benchmarks", "measure_limits", "settled"]

Size: TypeAlias = tuple[Any, ...]

_SMALL: Final = 16
# Arrays of 32 MiB and more come fresh from the system with every call, which measures its pages.
_MIN_ARRAY_BYTES: Final = 2**24
_MAX_ARRAY_BYTES: Final = 3 * 2**23
_PROBE_BYTES: Final = 2**27
_MIN_PROBED_BYTES: Final = 2**20  # reading less takes no longer than looking at the clock
_PROBE: Final = 4096
_SECONDS: Final = 0.004  # for each side of a comparison, if two rounds take no longer
_AGREEMENT: Final = 1.25  # of speed-ups: when two differ by more, they are measured again
_MORE: Final = 3
_ALL_SECONDS: Final = 12.0  # after which nothing is measured again
_LARGE_SECONDS: Final = 0.01  # by hand, at most

T = TypeVar("T")


class Track(Protocol):
    """Yields what it is given, and shows on a terminal how many are done."""

    def __call__(self, items: Sequence[T], label: str) -> Iterable[T]: ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The machine's limits, in 1e9 bytes or flops per second; None if not measured."""

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

    @property
    def speed_up(self) -> float:
        """How many times the time of plain NumPy is ours."""
        return self.numpy_seconds / self.seconds


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


class _Contender:
    """A call to be timed, and the threads that NumPy's BLAS may have for it."""

    def __init__(
        self, function: Callable[..., Any], arguments: Sequence[Any], threads: int | None = None
    ) -> None:
        # The call as it is written, since unpacking takes a tenth of a short one.
        names = [f"a{i}" for i in range(len(arguments))]
        scope = {"f": function, **dict(zip(names, arguments, strict=True))}
        self._timer = Timer(f"f({', '.join(names)})", globals=scope)
        self._threads = threads

    def seconds(self, calls: int = 1) -> float:
        with blas.threads(self._threads):
            return self._timer.timeit(calls) / calls


def _race(*contenders: _Contender) -> list[float]:
    """Return the best time of each call, timed in turns under the same conditions."""
    best = [contender.seconds() for contender in contenders]
    calls = [max(1, int(2e-4 / seconds)) for seconds in best]  # short calls by the hundred
    one_round = sum(map(float.__mul__, best, map(float, calls)))
    for _ in range(max(2, min(30, int(_SECONDS * len(contenders) / one_round)))):
        for i, contender in enumerate(contenders):
            best[i] = min(best[i], contender.seconds(calls[i]))
    return best


def settled(benchmarks: Sequence[Callable[[], Timing]], track: Track) -> list[Timing]:
    """Run each benchmark twice, far apart, and three times more if its speed-ups disagree.

    Otherwise a short disturbance, such as another process on the CPU of a BLAS thread, would look
    like a speed-up. The result is the timing with the median speed-up, or of two timings the one
    with the smaller speed-up. Nothing is repeated after the time limit.
    """
    end = time.perf_counter() + _ALL_SECONDS
    runs: list[list[Timing]] = [[benchmark()] for benchmark in track(benchmarks, "timing")]
    again = list(range(len(benchmarks)))
    for _ in range(1 + _MORE):
        for i in track(again, "timing again"):
            if time.perf_counter() < end:
                runs[i].append(benchmarks[i]())
        again = [i for i in again if len(runs[i]) > 1 and not _agree(*runs[i][:2])]
    return [sorted(own, key=lambda one: one.speed_up)[(len(own) - 1) // 2] for own in runs]


def _agree(one: Timing, other: Timing) -> bool:
    return 1 / _AGREEMENT <= one.speed_up / other.speed_up <= _AGREEMENT


# --- the benchmarks -------------------------------------------------------------------------------


def benchmarks(limits: Limits, dtype: np.dtype[Any], name: str | None) -> list[Benchmark]:
    """Return benchmarks; of primitives alone whose whole name fits a regular expression."""
    return [
        Benchmark(limits, dtype.name, primitive, method, size)
        for primitive, method, *sizes in _chosen()
        if name is None or re.fullmatch(name, primitive)
        for size in sizes
    ]


def _chosen() -> Iterator[tuple[str, str, Size, Size | None]]:
    """Yield calls, each with a small and a large size: of each primitive those that tell most."""
    for name in OPS:
        for method in ("value", "vjp"):
            yield name, method, (_SMALL,), None
    for name, row in REDUCTIONS.items():
        yield name, "vjp" if row.is_map else "value_and_grad", (_SMALL,), (100_000,)
    for name in SELECTIONS:
        yield name, "vjp", (_SMALL,), (100_000,)
    yield "matmul", "vjp", ((4, 4), (4, 4)), ((512, 512), (512, 512))
    yield "linear", "vjp", ((100, 10), (10, 10)), ((2000, 256), (256, 256))
    yield "quadratic_form", "value_and_grad", (16, 16), (1500, 1500)
    yield "bilinear_form", "value_and_grad", (16, 16), (1500, 1500)
    for name in LOSSES:
        yield name, "value_and_grad", (100, 10), (10_000, 100)
    yield "relu_mse", "value_and_grad", (1000, 20), (100_000, 100)  # more than most caches hold


@dataclass(frozen=True)
class Benchmark:
    """A call beside plain NumPy, timed whenever it is called; its size is chosen once."""

    limits: Limits
    dtype: str
    name: str
    method: str
    size: Size | None  # None: as large as tells most

    @cached_property
    def case(self) -> Case:
        """The call and its size; both sides agree on it, since what is else is not timed."""
        case = Case(self.name, self.method, self.dtype, self.size or self._large())
        arguments = case.arguments()
        eps = 1e3 * float(np.finfo(case.dtype).eps)
        check(case.group, case.native(*arguments), _by_hand(case)(*arguments), eps)
        return case

    def _large(self) -> Size:
        """Return a size that no cache holds; of long formulas a smaller one, not memory's."""
        llc = 0 if native is None else native.last_level_cache_bytes()
        large = min(max(llc, _MIN_ARRAY_BYTES), _MAX_ARRAY_BYTES) // np.dtype(self.dtype).itemsize
        probe = Case(self.name, "vjp", self.dtype, (_PROBE,))
        by_hand = _Contender(_by_hand(probe), probe.arguments())
        per_element = min(by_hand.seconds() for _ in range(3)) / _PROBE
        return (min(large, max(2**16, int(_LARGE_SECONDS / per_element))),)

    def __call__(self) -> Timing:
        """Time it, once."""
        case = self.case
        arguments = case.arguments()
        X = arguments[0]
        by_hand = _by_hand(case)
        # With one thread of BLAS and with as many as ours has: either may be faster.
        threads = (None,) if self.name in OPS else (1, get_num_threads())
        read = []
        if self.name in LOSSES and native is not None and X.nbytes >= _MIN_PROBED_BYTES:
            read = [_Contender(native.read_seconds, (X,))]
        seconds, *others = _race(
            _Contender(case.native, arguments),
            *(_Contender(by_hand, arguments, n) for n in threads),
            *read,
        )
        work, unit, limit = _work(case, arguments, self.limits)
        if read:  # the limit is a plain read of this very X, in the same race
            limit = work / others.pop() / 1e9
        rate = work / seconds / 1e9
        return Timing(
            name=self.name,
            call=self.method,
            size=case.label,
            seconds=seconds,
            numpy_seconds=min(others),
            rate=rate,
            unit=unit,
            share=None if limit is None else rate / limit,
        )


def _by_hand(case: Case) -> Callable[..., Any]:
    assert case.by_hand is not None
    return case.by_hand


def _work(case: Case, arguments: Sequence[Any], limits: Limits) -> tuple[int, str, float | None]:
    """Return the bytes or operations of a call, their unit, and the limit per second."""
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
    """Return the heading of the tables, with the machine's limits."""

    def rate(value: float | None, unit: str) -> str:
        return "n/a" if value is None else f"{value:.3g} {unit}"

    ours = get_num_threads()
    with blas.threads(ours) as can_be_set:
        threads = f"the better of 1 and {ours}" if can_be_set else "its own number of"
    return (
        f"Against plain NumPy written by hand, {dtype.name}, with {threads} BLAS threads. Limits\n"
        f"of this machine: read {rate(limits.read, 'GB/s')}, copy {rate(limits.copy, 'GB/s')}, "
        f"{rate(limits.flops[dtype.name], 'Gflop/s')}. 'of limit' compares\nthe bytes moved with a "
        "copy, a matrix product with multiply-adds, and a loss with a plain read of its X."
    )


def as_text(timings: Sequence[Timing], *, brief: bool) -> str:
    """Return two tables: elementwise operations, and the rest; in brief mostly speed-ups."""
    pairs = list(zip(timings[::2], timings[1::2], strict=True))  # of a small and a large size
    elementwise = [pair for pair in pairs if pair[0].name in OPS]
    rest = [pair for pair in pairs if pair[0].name not in OPS]
    tables = []
    if elementwise and brief:
        header = ("speed-up", f"n = {_SMALL}", "large", f"vjp, {_SMALL}", "vjp, large")
        by_name = groupby(chain(*elementwise), key=lambda timing: timing.name)
        rows = [(name, *map(_speed_up, own)) for name, own in by_name]
        tables.append(in_two(table(header, rows)))
    elif elementwise:
        header = ("elementwise", "call", f"n = {_SMALL}", "NumPy", "speed-up")
        rows = [(*_call(a), *_times(a), b.size, *_times(b), *_rate(b)) for a, b in elementwise]
        tables.append(table((*header, "large n", *_TIMED), rows, left=2))
    if rest and brief:
        header = ("primitive", "call", "size", "speed-up", "size")
        rows = [(*_call(a), a.size, _speed_up(a), b.size, *_times(b), *_rate(b)) for a, b in rest]
        tables.append(table((*header, *_TIMED), rows, left=2))
    elif rest:
        rows = [(*_call(t), t.size, *_times(t), *_rate(t)) for t in chain(*rest)]
        tables.append(table(("primitive", "call", "size", *_TIMED), rows, left=2))
    return "\n\n".join(tables)


_TIMED: Final = ("time", "NumPy", "speed-up", "rate", "of limit")


def _call(timing: Timing) -> tuple[str, str]:
    return timing.name, timing.call


def _times(timing: Timing) -> tuple[str, str, str]:
    return _seconds(timing.seconds), _seconds(timing.numpy_seconds), _speed_up(timing)


def _speed_up(timing: Timing) -> str:
    return f"{timing.speed_up:.1f} x"


def _rate(timing: Timing) -> tuple[str, str]:
    share = "n/a" if timing.share is None else f"{timing.share:.0%}"
    return f"{timing.rate:#.3g} {timing.unit}", share


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"

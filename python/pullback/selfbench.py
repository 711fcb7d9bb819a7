"""Times every primitive against plain NumPy, and against what this machine can do at best.

What it is timed against is what one writes by hand, on arrays that have the right dtype already;
that is often faster than the NumPy twin, which also keeps the digits and the conventions at kinks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from timeit import Timer
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.config import native
from pullback.elementwise import primitives as elementwise
from pullback.losses import losses
from pullback.products import products
from pullback.tables.elementwise import OPS, OpRow
from pullback.tables.losses import LOSSES, LossRow

__all__ = ["Limits", "Timing", "benchmarks", "measure_limits"]

Array: TypeAlias = npt.NDArray[Any]

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
    shape: tuple[int, ...]
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


# --- plain NumPy, as one writes it ----------------------------------------------------------------


def _sigmoid_vjp(x: Array, g: Array) -> Array:
    s = 1 / (1 + np.exp(-x))
    return g * s * (1 - s)


# Value and vjp, where the row's own formulas are slower for the care that they take. An operation
# that is not here is timed against its row.
_BY_HAND: Final[Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]] = {
    "identity": (np.copy, lambda x, g: g.copy()),
    "negative": (np.negative, lambda x, g: -g),
    "relu": (lambda x: np.maximum(x, 0), lambda x, g: g * (x > 0)),
    "log": (np.log, lambda x, g: g / x),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), _sigmoid_vjp),
    "tanh": (np.tanh, lambda x, g: g * (1 - np.tanh(x) ** 2)),
    "square": (np.square, lambda x, g: 2 * x * g),
    "sqrt": (np.sqrt, lambda x, g: 0.5 * g / np.sqrt(x)),
    "add": (np.add, lambda w, x, g: (g.copy(), g.copy())),
    "subtract": (np.subtract, lambda w, x, g: (g.copy(), -g)),
    "multiply": (np.multiply, lambda w, x, g: (g * x, g * w)),
    "divide": (np.divide, lambda w, x, g: (g / x, -g * w / (x * x))),
    "greater": (
        lambda w, x: (w > x).astype(x.dtype),
        lambda w, x, g: (np.zeros_like(g), np.zeros_like(g)),
    ),
    "maximum": (np.maximum, lambda w, x, g: (g * (w > x), g * (w <= x))),
}


def _from_row(row: OpRow) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def vjp(*arguments: Array) -> Any:
        *points, g = arguments
        slopes = row.derivative(*points)
        return tuple(g * slope for slope in slopes) if row.nin > 1 else g * slopes

    return row.value, vjp


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


def _flat(tree: Any) -> list[Any]:
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in _flat(branch)]
    return [tree]


def _compare(
    name: str, ours: Callable[..., Any], theirs: Callable[..., Any], arguments: Sequence[Any]
) -> tuple[Timer, Timer]:
    """Return timers of two calls, once they agree: what computes something else is not timed."""
    # A loss is a float whatever its arguments are, and no more exact than these in plain NumPy.
    eps = max(np.finfo(a.dtype).eps for a in map(np.asarray, arguments) if a.dtype.kind == "f")
    for actual, desired in zip(_flat(ours(*arguments)), _flat(theirs(*arguments)), strict=True):
        tolerance = 1e3 * eps * np.max(np.abs(desired), initial=1.0)
        if not np.max(np.abs(actual - desired), initial=0.0) <= tolerance:
            raise RuntimeError(f"{name} and plain NumPy disagree; run `pullback check`")
    return _timer(ours, arguments), _timer(theirs, arguments)


# --- the benchmarks -------------------------------------------------------------------------------


def benchmarks(limits: Limits, dtype: np.dtype[Any]) -> list[Callable[[], list[Timing]]]:
    """Return the benchmarks of all primitives, to be called one by one."""

    def bind(benchmark: Callable[..., list[Timing]], *arguments: Any) -> Callable[[], list[Timing]]:
        return lambda: benchmark(*arguments, limits, dtype)

    return [
        *(bind(_elementwise, row) for row in OPS.values()),
        *(bind(_matmul, n) for n in (4, 512)),
        *(bind(_linear, shape) for shape in ((100, 10), (2000, 256))),
        *(bind(_form, name, n) for name in ("quadratic_form", "bilinear_form") for n in (16, 1500)),
        *(
            bind(_loss, loss, shape)
            for loss in losses.values()
            for shape in ((100, 10), (10_000, 100))
        ),
        bind(_loss, losses["relu_mse"], (200_000, 100)),  # more than any cache holds
    ]


def _share(rate: float, limit: float | None) -> float | None:
    return None if limit is None else rate / limit


def _arrays_moved(row: OpRow) -> dict[str, int]:
    """Return how many arrays a value and a vjp have to read and write."""
    slopes = " ".join(row.derivative_formula)
    if row.nin == 1:  # even where the derivative is constant, NaN comes through
        return {"value": 2, "vjp": 3}
    needed = sum(re.search(rf"\b{operand}\b", slopes) is not None for operand in row.operands)
    reads_cotangent = set(row.derivative_formula) != {"0"}
    return {"value": row.nin + 1, "vjp": needed + reads_cotangent + row.nin}


def _elementwise(row: OpRow, limits: Limits, dtype: np.dtype[Any]) -> list[Timing]:
    rng = np.random.default_rng(0)
    llc = 0 if native is None else native.last_level_cache_bytes()
    large = min(max(llc, _MIN_ARRAY_BYTES), _MAX_ARRAY_BYTES) // dtype.itemsize
    primitive = elementwise[row.name]
    value, vjp = _BY_HAND.get(row.name) or _from_row(row)
    moved = _arrays_moved(row)
    timings = []
    probe = [np.full(_PROBE, sum(domain.ordinary) / 2, dtype) for domain in row.domain]
    per_element = min(_timer(vjp, [*probe, probe[0]]).repeat(3, 1)) / _PROBE
    # Long formulas in NumPy take their time, and are not bound by memory anyway.
    large = min(large, max(2**16, int(_SECONDS / per_element)))
    for n in (_SMALL, large):
        points = [rng.uniform(*domain.ordinary, n).astype(dtype) for domain in row.domain]
        g = rng.standard_normal(n).astype(dtype)
        for call, ours, theirs, arguments in (
            ("value", primitive, value, points),
            ("vjp", primitive.vjp, vjp, [*points, g]),
        ):
            seconds, numpy_seconds = _race(*_compare(f"{row.name} {call}", ours, theirs, arguments))
            rate = moved[call] * n * dtype.itemsize / seconds / 1e9
            timings.append(
                Timing(
                    name=row.name,
                    call=call,
                    shape=(n,),
                    seconds=seconds,
                    numpy_seconds=numpy_seconds,
                    rate=rate,
                    unit="GB/s",
                    share=None if n == _SMALL else _share(rate, limits.copy),
                )
            )
    return timings


def _matmul_vjp(A: Array, B: Array, G: Array) -> tuple[Array, Array]:
    return G @ B.T, A.T @ G


def _matmul(n: int, limits: Limits, dtype: np.dtype[Any]) -> list[Timing]:
    rng = np.random.default_rng(0)
    arguments = [rng.standard_normal((n, n)).astype(dtype) for _ in range(3)]
    seconds, numpy_seconds = _race(
        *_compare("matmul vjp", products["matmul"].vjp, _matmul_vjp, arguments)
    )
    rate = 4 * n**3 / seconds / 1e9
    return [
        Timing(
            name="matmul",
            call="vjp",
            shape=(n, n),
            seconds=seconds,
            numpy_seconds=numpy_seconds,
            rate=rate,
            unit="Gflop/s",
            share=_share(rate, limits.flops[dtype.name]),
        )
    ]


def _linear_vjp(X: Array, W: Array, b: Array, G: Array) -> tuple[Array, Array, Array]:
    H = G * (X @ W + b > 0)
    return H @ W.T, X.T @ H, H.sum(0)


def _linear(shape: tuple[int, int], limits: Limits, dtype: np.dtype[Any]) -> list[Timing]:
    """Time the cotangents of a square layer with a rectifier."""
    rng = np.random.default_rng(0)
    n, k = shape
    X, W, b, G = (rng.standard_normal(s).astype(dtype) for s in ((n, k), (k, k), k, (n, k)))

    def ours(X: Array, W: Array, b: Array, G: Array) -> Any:
        return products["linear"].vjp(X, W, b, G, activation=elementwise["relu"])

    seconds, numpy_seconds = _race(*_compare("linear vjp", ours, _linear_vjp, (X, W, b, G)))
    rate = 6 * n * k * k / seconds / 1e9
    return [
        Timing(
            name="linear",
            call="vjp",
            shape=(n, k, k),
            seconds=seconds,
            numpy_seconds=numpy_seconds,
            rate=rate,
            unit="Gflop/s",
            share=_share(rate, limits.flops[dtype.name]),
        )
    ]


_FORM_BY_HAND: Final[Mapping[str, Callable[..., Any]]] = {
    "quadratic_form": lambda x, A: (x @ A @ x, A @ x + x @ A),
    "bilinear_form": lambda u, X, v: (u @ X @ v, (X @ v, np.outer(u, v), u @ X)),
}


def _form(name: str, n: int, limits: Limits, dtype: np.dtype[Any]) -> list[Timing]:
    rng = np.random.default_rng(0)
    u, X, v = (rng.standard_normal(s).astype(dtype) for s in (n, (n, n), n))
    arguments = (u, X) if name == "quadratic_form" else (u, X, v)
    timers = _compare(
        f"{name} gradient", products[name].value_and_grad, _FORM_BY_HAND[name], arguments
    )
    seconds, numpy_seconds = _race(*timers)
    return [
        Timing(
            name=name,
            call="value_and_grad",
            shape=(n, n),
            seconds=seconds,
            numpy_seconds=numpy_seconds,
            rate=X.nbytes / seconds / 1e9,
            unit="GB/s",
            share=None,
        )
    ]


def _relu_mse(X: Array, y: Array, w: Array, b: float) -> tuple[float, tuple[Array, float]]:
    z = X @ w + b
    error = np.maximum(z, 0) - y
    slopes = np.where(z > 0, (2 / len(y)) * error, 0)
    return float(np.mean(error * error)), (slopes @ X, float(np.sum(slopes)))


def _loss_from_row(row: LossRow) -> Callable[..., Any]:
    parameter = 0.0 if row.parameter is None else row.parameter.default

    def value_and_grad(X: Array, y: Array, w: Array, b: Any) -> tuple[float, tuple[Array, Any]]:
        z = X @ w + b
        slopes = row.derivative(z, y, parameter) / len(y)
        return float(np.mean(row.value(z, y, parameter))), (X.T @ slopes, slopes.sum(axis=0))

    return value_and_grad


def _loss(loss: Any, shape: tuple[int, int], limits: Limits, dtype: np.dtype[Any]) -> list[Timing]:
    row = LOSSES[loss.__name__]
    X, y, w, b = row.example(0, *shape, dtype)
    by_hand = _relu_mse if row.name == "relu_mse" else _loss_from_row(row)
    timers = _compare(f"{loss.__name__} gradient", loss.value_and_grad, by_hand, (X, y, w, b))
    if native is None or X.nbytes < _MIN_PROBED_BYTES:
        (seconds, numpy_seconds), read_seconds = _race(*timers), None
    else:  # the limit is a plain read of this very X, in the same race
        probe = _timer(native.read_seconds, (X,))
        seconds, numpy_seconds, read_seconds = _race(*timers, probe)
    return [
        Timing(
            name=loss.__name__,
            call="value_and_grad",
            shape=shape,
            seconds=seconds,
            numpy_seconds=numpy_seconds,
            rate=X.nbytes / seconds / 1e9,
            unit="GB/s",
            share=None if read_seconds is None else read_seconds / seconds,
        )
    ]


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
    sizes = [_size(timing.shape) for timing in next(iter(by_call.values()))]
    header = ("elementwise", "call", f"n = {sizes[0]}", "NumPy", "speed-up")
    return [
        (
            (*header, f"n = {sizes[1]}", "NumPy", "speed-up", "rate", "of limit"),
            [
                (*key, *_times(small), *_times(large), *_rate(large))
                for key, (small, large) in by_call.items()
            ],
        ),
        (
            ("primitive", "call", "size", "time", "NumPy", "speed-up", "rate", "of limit"),
            [(t.name, t.call, _size(t.shape), *_times(t), *_rate(t)) for t in rest],
        ),
    ]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


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

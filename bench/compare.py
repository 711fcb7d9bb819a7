"""Compare pullback with other libraries: all contenders in one run, checked, then interleaved.

    python bench/compare.py [losses|fits|elementwise|matmul|reductions|chain|all] [--quick]
                            [--only REGEX] [--json FILE] [--threads N]

Every contender's result is checked before it is timed. Rounds go through all contenders in turn,
so that what disturbs the machine disturbs them alike; the median over the rounds counts. Who is far
behind, or slow, gets one round, and a fit that takes too long is given up: both are marked. A
library that appears in several ways counts with its best. What a case is wanted to reach stands in
`WANTS`, and is shown beside what it reached.

Contenders run at their best: OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are unset before NumPy is
imported, since they hold OpenBLAS to the code of another machine, and every library has the same
number of threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import environment

LOSS_SHAPES = (
    (100, 10),
    (1000, 20),
    (10_000, 100),
    (1_000_000, 10),
    (1_000_000, 100),
    (100_000, 1000),
    (20_000, 5000),
)
COLUMN_SHAPES = LOSS_SHAPES[4:]  # in F order
SPARSE_SHAPES = ((10_000, 1000), (100_000, 1000), (1_000_000, 1000))
HVP_SHAPES = LOSS_SHAPES[2:]
OUTPUT_SHAPES = ((100, 10), (10_000, 100), (1_000_000, 10), (1_000_000, 100), (100_000, 1000))
OUTPUTS = 10
FITS = (  # loss, kind of table, rows
    ("poisson", "dense", 500_000),
    ("logistic", "dense", 500_000),
    ("poisson", "one-hot", 600_000),
    ("logistic", "one-hot", 600_000),
    ("poisson", "ill-conditioned", 500_000),
    ("logistic", "ill-conditioned", 500_000),
    ("softmax_cross_entropy", "dense", 100_000),
)
FAR = 10  # times the goal that a gradient may end at, for a fit to be timed
ELEMENTWISE_SIZES = (16, 1000, 100_000, 5_000_000)
CHAIN_SIZES = (16, 1000, 100_000, 1_000_000)
MATMUL_SHAPES = (  # stack, m, k, n
    ((), 4, 4, 4),
    ((), 16, 16, 16),
    ((), 64, 64, 64),
    ((), 256, 256, 256),
    ((), 1024, 1024, 1024),
    ((), 2048, 2048, 2048),
    ((), 100_000, 64, 64),
    ((), 50_000, 256, 16),
    ((10_000,), 4, 4, 4),
    ((10_000,), 8, 8, 8),
    ((2000,), 32, 32, 32),
    ((500,), 64, 64, 64),
    ((), 64, 2048, 2048),
)
REDUCTION_SHAPES = ((1000, 1000), (10_000_000,))
NUMBA_FROM = 1000  # below, a loop that is given its output is a different task
OUT_GIVEN = 5_000_000  # from here on, results go into an array that is there already
LARGE_BYTES = 1 << 26  # from here on, a plain read of X is timed as well, the limit

QUICK_LOSS_SHAPES = LOSS_SHAPES[:2]
QUICK_FITS = tuple((loss, kind, 5000) for loss, kind, _ in FITS)
QUICK_SIZES = ELEMENTWISE_SIZES[:2]
QUICK_MATMUL_SHAPES = MATMUL_SHAPES[:3]
QUICK_REDUCTION_SHAPES = ((100, 10), (1000,))


class Effort(NamedTuple):
    """How long to look."""

    rounds: int
    round_seconds: float  # per contender and round, for short calls
    case_seconds: float  # no more rounds are begun after this


class Want(NamedTuple):
    """What a case is to reach."""

    libraries: float | None = None  # times the speed of the best library
    loop: float | None = None  # times the speed of the loop written by hand, Numba's
    seconds: float | None = None  # at most
    limit: float | None = None  # at most so many times the limit
    glum: float | None = None  # times the speed of glum

    def taken(self, record: dict[str, Any]) -> dict[str, float]:
        """Return each goal with the share that the case took of the time it allows."""
        peers = dict(record["peers"])
        loop, limit = peers.pop("Numba", None), record["limit"]
        glum = peers.pop("glum", None)
        allowed = {}
        if self.libraries and peers:
            allowed[f"{self.libraries:g}x"] = min(peers.values()) / self.libraries
        if self.loop and loop:
            allowed[f"{self.loop:g}x Numba"] = loop / self.loop
        if self.glum and glum:
            allowed[f"{self.glum:g}x glum"] = glum / self.glum
        if self.seconds:
            allowed[human(self.seconds)] = self.seconds
        if self.limit and limit:
            allowed[f"limit/{self.limit:g}"] = limit * self.limit
        return {goal: record["pullback"] / seconds for goal, seconds in allowed.items()}


# The first pattern found in a label counts. Where nothing is wanted, figures are for information.
WANTS = (
    (r"^fit \w+ (dense|ill)", Want(libraries=3, glum=5)),
    (r"^fit \w+ one-hot", Want(libraries=3, glum=4)),
    (r"^\w+ 100x10 float\d\d$", Want(libraries=8, loop=2, seconds=0.8e-6)),
    (r"^\w+ 1000x20 float\d\d$", Want(libraries=2, loop=1.3)),
    (r"^\w+ 10000x100 float\d\d$", Want(libraries=1.5, loop=1.3)),
    (r"^\w+ 1000000x10 float\d\d$", Want(libraries=1.5, loop=2)),
    (r"^\w+ \d+x\d+ float\d\d$", Want(libraries=1.5, loop=1, limit=1.15)),
    (r"x5000 \w+ F$", Want(limit=1.5)),
    (r" F$", Want(limit=1.15)),
    (r" csr$", Want(libraries=1.5)),
    (r" hvp \d+x\d{3}", Want(limit=1.15)),
    (r" K=", Want(libraries=1.5)),
    (r"^(squared_norm2|logsumexp|softmax)\.", Want(libraries=1.5)),
    (r"^chain 1000000 ", Want(libraries=1.5)),
)

PAUSE = 0.03
LONG = 0.2  # seconds, beside which it does not count how a call begins
SLOW, BEHIND = 2.0, 10  # seconds, and times the best, from which on one round is enough
GIVEN_UP = 10  # seconds, after which a fit is not waited for

Wanted = Callable[[str], bool]  # tells by its label whether a case is to be run

NORMAL = Effort(rounds=15, round_seconds=5e-3, case_seconds=8)
QUICK = Effort(rounds=3, round_seconds=1e-3, case_seconds=2)


def seconds_of_a_call(call: Callable[[], Any], effort: Effort) -> float:
    """Return about what a call takes."""
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
    """Return the seconds of each call in each round, timed in turns.

    `first` is what calls took that were timed before. One that is far behind then, or slow, is not
    called again: what it took is its only round.
    """
    took = dict(first or {})
    took |= {name: seconds_of_a_call(calls[name], effort) for name in calls.keys() - took.keys()}
    best = min(took.values())
    times: dict[str, list[float]] = {name: [] for name in calls}
    numbers = {}
    for name, seconds in took.items():
        if seconds > SLOW or seconds > max(LONG, BEHIND * best):
            times[name] = [seconds]
        else:
            # Each that often in a round, so that the clock's own cost vanishes.
            numbers[name] = max(1, round(effort.round_seconds / seconds))
    begin = time.perf_counter()
    for done in range(effort.rounds):
        for name, number in numbers.items():
            # Other contenders' idle threads stop spinning, then this one's wake up.
            time.sleep(PAUSE)
            if took[name] < LONG:
                _seconds(calls[name], max(1, number // 10))
            times[name].append(_seconds(calls[name], number) / number)
        if done >= 2 and time.perf_counter() - begin > effort.case_seconds:
            break
    return times


def check(name: str, actual: Any, expected: Any, rtol: float) -> None:
    """Stop unless a contender computes what it should, to `rtol` of the largest element."""
    import numpy as np

    for one, other in zip(actual, expected, strict=True):
        scale = float(np.abs(other).max(initial=0.0))
        error = float(np.abs(one.astype(float) - other).max(initial=0.0))
        if one.shape != other.shape or not error <= rtol * scale:
            sys.exit(f"{name} computes wrong: error {error:.3g} of {scale:.3g}, {one.shape}")


def compare(
    label: str,
    contenders: list[Any],
    expected: Any,
    rtol: float,
    effort: Effort,
    floor: Any = None,
    least: float | None = None,
    nbytes: int | None = None,
    first: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Check and time the contenders of one case; return its record.

    The limit is what `floor` takes, which is timed among them, or `least` seconds; `nbytes` is
    what has to be read; `first` is what calls took whose results were checked before.
    """
    for contender in contenders:
        if first is None:
            check(f"{label}: {contender.name}", contender.arrays(contender.call()), expected, rtol)
    calls = {contender.name: contender.call for contender in contenders}
    if floor is not None:
        calls["limit"] = floor
    times = interleave(calls, effort, first)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    limit = seconds.pop("limit", least)
    best: dict[str, float] = {}
    for contender in contenders:
        mine = seconds[contender.name]
        best[contender.library] = min(mine, best.get(contender.library, mine))
    ours = best.pop("pullback")
    rival = min(best, key=lambda library: best[library], default=None)
    record = {
        "case": label,
        "seconds": seconds,
        "rounds": {name: len(values) for name, values in times.items()},
        "pullback": ours,
        "peers": best,
        "best_peer": rival,
        "ratio": None if rival is None else best[rival] / ours,
        "limit": limit,
        "share_of_limit": None if limit is None else limit / ours,
        "gigabytes_per_second": None if nbytes is None else nbytes / ours / 1e9,
    }
    want = next((want for pattern, want in WANTS if re.search(pattern, label)), Want())
    return record | {"wanted": want.taken(record)}


# --- cases ----------------------------------------------------------------------------------------


def losses(*, quick: bool, effort: Effort, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield records of losses of linear models: layouts, methods and outputs."""
    options = {"effort": effort, "wanted": wanted}
    single = ("relu_mse", "logistic")
    shapes = QUICK_LOSS_SHAPES if quick else LOSS_SHAPES
    yield from _gradients(single, shapes, "C", **options)
    for layout, shapes in (
        ("F", COLUMN_SHAPES),
        ("csr", SPARSE_SHAPES),
        ("csc", SPARSE_SHAPES),
    ):
        yield from _gradients(single, QUICK_LOSS_SHAPES if quick else shapes, layout, **options)
    yield from _hvps(QUICK_LOSS_SHAPES if quick else HVP_SHAPES, **options)
    several = ("squared_error", "softmax_cross_entropy")
    shapes = QUICK_LOSS_SHAPES if quick else OUTPUT_SHAPES
    yield from _gradients(several, shapes, "C", outputs=OUTPUTS, **options)


def _dtypes(pattern: str, wanted: Wanted) -> Iterator[tuple[str, Any]]:
    """Yield labels, and what computes in: both, if wanted."""
    import numpy as np

    for dtype in (np.float64, np.float32):
        label = pattern.format(np.dtype(dtype).name)
        if wanted(label):
            yield label, dtype


def _rtol(dtype: Any) -> float:
    return 2e-3 if dtype().itemsize == 4 else 1e-9


def _read(model: Any) -> Callable[[], Any] | None:
    """Return a plain read of X where X is large and there is a probe."""
    from pullback.config import native

    if native is None or model.nbytes < LARGE_BYTES:
        return None
    return lambda: [native.read_seconds(array) for array in model.stored]


def _gradients(
    names: tuple[str, ...],
    shapes: Any,
    layout: str,
    *,
    effort: Effort,
    wanted: Wanted,
    outputs: int = 1,
) -> Iterator[dict[str, Any]]:
    import loss_peers
    import numpy as np
    import pullback as pb

    suffix = f" K={outputs}" * (outputs > 1) + f" {layout}" * (layout != "C")
    sparse = layout in ("csr", "csc")
    contenders = loss_peers.sparse_value_and_grad if sparse else loss_peers.value_and_grad
    for loss in names:
        for rows, cols in shapes:
            for label, dtype in _dtypes(f"{loss} {rows}x{cols} {{}}{suffix}", wanted):
                model = loss_peers.make(loss, rows, cols, dtype, layout, outputs)
                value, gradients = getattr(pb.reference, loss).value_and_grad(*model[1:])
                yield compare(
                    label,
                    list(contenders(model)),
                    tuple(np.asarray(part, float) for part in (value, *gradients)),
                    _rtol(dtype),
                    effort,
                    _read(model),
                    nbytes=model.nbytes,
                )


def _hvps(shapes: Any, *, effort: Effort, wanted: Wanted) -> Iterator[dict[str, Any]]:
    import loss_peers
    import numpy as np
    import pullback as pb

    for rows, cols in shapes:
        for label, dtype in _dtypes(f"logistic hvp {rows}x{cols} {{}}", wanted):
            model = loss_peers.make("logistic", rows, cols, dtype)
            v = np.random.default_rng(1).normal(size=cols).astype(dtype), 0.5
            expected = pb.reference.logistic.hvp(*model[1:], v)
            yield compare(
                label,
                list(loss_peers.hvp(model, v)),
                tuple(np.asarray(part, float) for part in expected),
                _rtol(dtype),
                effort,
                _read(model),
                nbytes=model.nbytes,
            )


def fits(*, quick: bool, effort: Effort, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield records of whole fits, from the estimator's to one gradient norm."""
    import fit_peers

    for loss, kind, rows in QUICK_FITS if quick else FITS:
        label = f"fit {loss} {kind} {rows}"
        if not wanted(label):
            continue
        table = fit_peers.make(loss, kind, rows)
        contenders: list[Any] = []
        beside: dict[str, dict[str, Any]] = {}
        first: dict[str, float] = {}
        expected: Any = None
        for contender in fit_peers.fits(table):
            begin = time.perf_counter()
            try:
                with fit_peers.deadline(GIVEN_UP):
                    peak, model = fit_peers.peak_memory(contender.call)
            except TimeoutError:
                beside[contender.name] = {"peak_bytes": None, "gradient": None}
                continue
            seconds = time.perf_counter() - begin
            gradient = fit_peers.gradient(table, model)
            beside[contender.name] = {"peak_bytes": peak, "gradient": gradient}
            if gradient <= FAR:
                value = contender.arrays(model)
                expected = expected or value
                check(f"{label}: {contender.name}", value, expected, 1e-6)
                contenders.append(contender)
                first[contender.name] = seconds
        record = compare(label, contenders, expected, 1e-6, effort, first=first)
        yield record | {"beside": beside, "data_bytes": table.nbytes}


def elementwise(*, quick: bool, effort: Effort, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield records of vjps of elementwise operations."""
    import numpy as np
    import peers
    import pullback as pb
    from pullback.config import native

    for op in (*peers.UNARY, "power"):
        for n in QUICK_SIZES if quick else ELEMENTWISE_SIZES:
            for dtype in (np.float64, np.float32):
                given = n >= OUT_GIVEN
                label = f"{op}.vjp {n} {np.dtype(dtype).name}" + " out=" * given
                if not wanted(label):
                    continue
                rng = np.random.default_rng(0)
                x, g = rng.normal(0, 2, n).astype(dtype), rng.normal(size=n).astype(dtype)
                if op in ("log", "power"):
                    x = np.exp(x / 2)
                if op == "power":
                    y = rng.normal(0, 2, n).astype(dtype)
                    out = (np.empty_like(x), np.empty_like(x)) if given else None
                    contenders = list(peers.power_vjp(x, y, g, out))
                    expected = pb.reference.power.vjp(*(a.astype(float) for a in (x, y, g)))
                else:
                    out = np.empty_like(x) if given else None
                    contenders = list(peers.unary_vjp(op, x, g, out))
                    expected = (getattr(pb.reference, op).vjp(x.astype(float), g.astype(float)),)
                if n < NUMBA_FROM:
                    contenders = [c for c in contenders if c.library != "Numba"]
                copy = None
                if op == "relu" and given and native is not None:
                    moved = np.ones((2, 3 * x.nbytes // 16))  # as much in as out, like x, g and out
                    copy = lambda moved=moved: native.copy_seconds(moved[0], moved[1])  # noqa: E731
                yield compare(
                    label,
                    contenders,
                    expected,
                    2e-5 if dtype is np.float32 else 1e-11,
                    effort,
                    copy,
                )
    for dtype in () if quick else (np.float64, np.float32):
        for given in (False, True):
            label = f"multiply.vjp (100000,100)x(100,) {np.dtype(dtype).name}" + " out=" * given
            if not wanted(label):
                continue
            rng = np.random.default_rng(0)
            w, g = rng.normal(size=(2, 100_000, 100)).astype(dtype)
            x = rng.normal(size=100).astype(dtype)
            out = (np.empty_like(w), np.empty_like(x)) if given else None
            yield compare(
                label,
                list(peers.scaled_columns_vjp(w, x, g, out)),
                pb.reference.multiply.vjp(*(a.astype(float) for a in (w, x, g))),
                1e-4 if dtype is np.float32 else 1e-11,
                effort,
            )


def matmul(*, quick: bool, effort: Effort, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield records of both cotangents of matrix products, beside the peak of multiply-adds."""
    import numpy as np
    import peers
    from pullback.config import native

    for stack, m, k, n in QUICK_MATMUL_SHAPES if quick else MATMUL_SHAPES:
        for dtype in (np.float64, np.float32):
            count = f"{stack[0]} x " if stack else ""
            label = f"matmul.vjp {count}{m}x{k}x{n} {np.dtype(dtype).name}"
            if not wanted(label):
                continue
            rng = np.random.default_rng(0)
            A, B, G = (
                rng.normal(size=(*stack, *shape)).astype(dtype)
                for shape in ((m, k), (k, n), (m, n))
            )
            exact = [a.astype(float) for a in (A, B, G)]
            expected = np.matmul(exact[2], exact[1].mT), np.matmul(exact[0].mT, exact[2])
            least = None
            if native is not None:
                double = dtype is np.float64
                peak = statistics.median(native.measure_fma_peak(double) for _ in range(3))
                least = 4 * m * k * n * (stack[0] if stack else 1) / peak / 1e9
            yield compare(
                label,
                list(peers.matmul_vjp(A, B, G)),
                expected,
                2e-4 if dtype is np.float32 else 1e-12,
                effort,
                least=least,
            )


def reductions(*, quick: bool, effort: Effort, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield records of reductions with their gradients, and of softmax's vjp."""
    import numpy as np
    import pullback as pb
    import reduction_peers

    for name in ("squared_norm2.value_and_grad", "logsumexp.value_and_grad", "softmax.vjp"):
        for shape in QUICK_REDUCTION_SHAPES if quick else REDUCTION_SHAPES:
            for label, dtype in _dtypes(f"{name} {'x'.join(map(str, shape))} {{}}", wanted):
                rng = np.random.default_rng(0)
                x, g = rng.normal(size=(2, *shape)).astype(dtype)
                op, _, method = name.partition(".")
                twin = getattr(getattr(pb.reference, op), method)
                axis = {} if op == "squared_norm2" else {"axis": -1}
                expected = twin(x, g, **axis) if method == "vjp" else twin(x, **axis)
                yield compare(
                    label,
                    list(reduction_peers.contenders(name, x, g)),
                    tuple(np.asarray(part, float) for part in _several(expected)),
                    _rtol(dtype),
                    effort,
                    nbytes=(2 + (method == "vjp")) * x.nbytes,
                )


def _several(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def chain(*, quick: bool, effort: Effort, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield records of the value and the vjp of tanh(exp(-x*x))."""
    import numpy as np
    import peers

    for n in CHAIN_SIZES[:2] if quick else CHAIN_SIZES:
        for label, dtype in _dtypes(f"chain {n} {{}}", wanted):
            x, g = np.random.default_rng(0).normal(size=(2, n)).astype(dtype)
            e = np.exp(-np.square(x.astype(float)))
            yield compare(
                label,
                list(peers.gaussian_in_tanh(x, g)),
                (np.tanh(e), -2 * x * e / np.cosh(e) ** 2 * g),
                2e-5 if dtype is np.float32 else 1e-11,
                effort,
            )


# What yields the records, and the libraries that compete.
SUITES: dict[str, tuple[Callable[..., Iterator[dict[str, Any]]], tuple[str, ...]]] = {
    "losses": (losses, ("NumPy", "SciPy", "PyTorch", "JAX", "scikit-learn", "Numba")),
    "fits": (fits, ("scikit-learn", "glum")),
    "elementwise": (elementwise, ("NumPy", "PyTorch", "JAX", "Numba", "numexpr")),
    "matmul": (matmul, ("NumPy", "PyTorch", "JAX")),
    "reductions": (reductions, ("NumPy", "PyTorch", "JAX")),
    "chain": (chain, ("NumPy", "PyTorch", "autograd")),
}


# --- report ---------------------------------------------------------------------------------------


def human(seconds: float | None) -> str:
    """Return a time in three digits."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def header(libraries: tuple[str, ...]) -> str:
    """Return the table's head."""
    columns = ["pullback", *libraries, "peer/ours", "GB/s", "of limit"]
    return f"{'case':42}" + "".join(f"  {column:>12}" for column in columns) + "  wanted"


def line(record: dict[str, Any], libraries: tuple[str, ...]) -> str:
    """Return one row of the table."""
    share, rate = record["share_of_limit"], record["gigabytes_per_second"]
    ratio = record["ratio"]
    cells = [
        human(record["pullback"]),
        *(human(record["peers"].get(library)) for library in libraries),
        "-" if ratio is None else f"{ratio:.2f}",
        "-" if rate is None else f"{rate:.3g}",
        "-" if share is None else f"{share:.0%}",
    ]
    goals = (
        goal if taken <= 1 else f"{goal} MISSED (takes {taken:.3g} x as long)"
        for goal, taken in record["wanted"].items()
    )
    row = f"{record['case']:42}" + "".join(f"  {cell:>12}" for cell in cells)
    row = f"{row}  {', '.join(goals)}".rstrip()
    for name, about in record.get("beside", {}).items():
        time, peak = human(record["seconds"].get(name)), about["peak_bytes"]
        memory = "-" if peak is None else f"{peak / 1e6:.0f} MB"
        row += (
            f"\n  {name:40}  {time:>12}  {memory:>12} beside X's {record['data_bytes'] / 1e6:.0f}"
        )
        gradient = about["gradient"]
        if gradient is None:
            row += f" MB, given up after {GIVEN_UP} s"
        else:
            row += f" MB, gradient {gradient:.2g} of the goal"
        row += ", one round" * (record["rounds"].get(name) == 1)
    return row


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suite", nargs="?", choices=[*SUITES, "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="small sizes only, to see it work")
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose label matches")
    parser.add_argument("--json", metavar="FILE", help="write the records there")
    parser.add_argument("--threads", type=int, default=2, help="for every library (default 2)")
    options = parser.parse_args(arguments)
    environment.release()
    environment.limit_threads(options.threads)

    import peers
    import pullback as pb

    peers.set_threads(options.threads)
    config = pb.show_config("dict")
    versions = peers.versions()
    print(f"{config['backend']} {config['target']}, {options.threads} threads, {versions}")
    records = []

    def wanted(label: str) -> bool:
        return re.search(options.only, label) is not None

    for suite in SUITES if options.suite == "all" else [options.suite]:
        effort = QUICK if options.quick else NORMAL
        records_of, libraries = SUITES[suite]
        print(header(libraries), flush=True)
        for record in records_of(quick=options.quick, effort=effort, wanted=wanted):
            records.append(record)
            print(line(record, libraries), flush=True)
    if options.json:
        report = {
            "versions": versions,
            "config": config,
            "threads": options.threads,
            "machine": platform.processor() or platform.machine(),
            "records": records,
        }
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

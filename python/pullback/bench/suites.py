"""What is compared: suites of cases, each a label and what checks and times its contenders."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

import pullback as pb
from pullback.bench import fit_peers, loss_peers, peers, reduction_peers
from pullback.bench.race import Effort, First, Record, race
from pullback.config import native

__all__ = ["SUITES", "Case", "cases"]

LOSS_SHAPES: Final = (
    (100, 10),
    (1000, 20),
    (10_000, 100),
    (1_000_000, 10),
    (1_000_000, 100),
    (100_000, 1000),
    (20_000, 5000),
)
COLUMN_SHAPES: Final = LOSS_SHAPES[4:]  # in F order
SPARSE_SHAPES: Final = ((10_000, 1000), (100_000, 1000), (1_000_000, 1000))
HVP_SHAPES: Final = LOSS_SHAPES[2:]
OUTPUT_SHAPES: Final = (
    (100, 10),
    (10_000, 100),
    (1_000_000, 10),
    (1_000_000, 100),
    (100_000, 1000),
)
OUTPUTS: Final = 10
FITS: Final = (  # loss, kind of table, rows
    ("poisson", "dense", 500_000),
    ("logistic", "dense", 500_000),
    ("poisson", "one-hot", 600_000),
    ("logistic", "one-hot", 600_000),
    ("poisson", "ill-conditioned", 500_000),
    ("logistic", "ill-conditioned", 500_000),
    ("softmax_cross_entropy", "dense", 100_000),
)
FAR: Final = 10  # times the goal that a gradient may end at, for a fit to be timed
GIVEN_UP: Final = 10  # seconds, the longest that a fit is waited for
ELEMENTWISE_SIZES: Final = (16, 1000, 100_000, 5_000_000)
SIZES: Final = tuple(10**k for k in range(9))
CHAIN_SIZES: Final = (16, 1000, 100_000, 1_000_000)
MATMUL_SHAPES: Final[tuple[tuple[tuple[int, ...], int, int, int], ...]] = (  # stack, m, k, n
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
LAYER_SHAPES: Final = ((100, 10, 10), (1000, 256, 256), (10_000, 256, 256))  # m, k, n
REDUCTION_SHAPES: Final = ((1000, 1000), (10_000_000,))
NUMBA_FROM: Final = 1000  # below, a loop that is given its output is a different task
OUT_GIVEN: Final = 5_000_000  # from here on, results go into an array that is there already
LARGE_BYTES: Final = 1 << 26  # from here on, a plain read of X is timed as well, the limit
ARRAYS: Final = 16  # as large as the operand, that all contenders of one case may hold at most

QUICK_LOSS_SHAPES: Final = LOSS_SHAPES[:2]
QUICK_FITS: Final = tuple((loss, kind, 1000) for loss, kind, _ in FITS)


class Case(NamedTuple):
    """What is compared."""

    label: str
    run: Callable[[Effort], Record]
    needs: tuple[str, ...] = ()  # modules, without which there is nobody to compare with
    nbytes: int = 0  # of memory that it may take

    def missing(self) -> str:
        """Return what keeps the case from being run here, or ""."""
        absent = [name for name in self.needs if not peers.optional(name)]
        if absent:
            return f"{', '.join(absent)} not installed"
        free = _free_bytes()
        return f"needs {self.nbytes / 1e9:.1f} GB of memory" if free and self.nbytes > free else ""


Suite: TypeAlias = Callable[[bool], Iterator[Case]]  # of small sizes only, or all


def cases(suite: str, *, quick: bool = False) -> Iterator[Case]:
    """Yield the cases of a suite."""
    return SUITES[suite](quick)


def _free_bytes() -> int:
    """Return the bytes of memory that can be had, 0 if that is not known."""
    about = Path("/proc/meminfo")
    lines = about.read_text(encoding="ascii").splitlines() if about.exists() else []
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")), 0)


DTYPES: Final[tuple[Any, ...]] = (np.float64, np.float32)


def _name(dtype: Any) -> str:
    return str(np.dtype(dtype).name)


def _rtol(dtype: Any) -> float:
    return 2e-3 if dtype().itemsize == 4 else 1e-9


# --- losses ---------------------------------------------------------------------------------------


def losses(quick: bool) -> Iterator[Case]:
    """Yield losses of linear models: layouts, methods and outputs."""

    def chosen(shapes: Any) -> Any:
        return QUICK_LOSS_SHAPES if quick else shapes

    single = ("relu_mse", "logistic")
    yield from _gradients(single, chosen(LOSS_SHAPES), "C")
    yield from _gradients(("poisson",), chosen(LOSS_SHAPES[:5]), "C")
    yield from _gradients(single, chosen(COLUMN_SHAPES), "F")
    yield from _gradients((*single, "poisson"), chosen(SPARSE_SHAPES), "csr")
    yield from _gradients(single, chosen(SPARSE_SHAPES), "csc")
    for rows, cols in chosen(HVP_SHAPES):
        for dtype in DTYPES:
            label = f"logistic hvp {rows}x{cols} {_name(dtype)}"
            yield Case(label, partial(_hvp, label, rows, cols, dtype))
    several = ("squared_error", "softmax_cross_entropy")
    yield from _gradients(several, chosen(OUTPUT_SHAPES), "C", OUTPUTS)


def _gradients(
    names: tuple[str, ...], shapes: Any, layout: str, outputs: int = 1
) -> Iterator[Case]:
    suffix = f" K={outputs}" * (outputs > 1) + f" {layout}" * (layout != "C")
    sparse = layout in ("csr", "csc")
    for loss in names:
        for rows, cols in shapes:
            for dtype in DTYPES:
                label = f"{loss} {rows}x{cols} {_name(dtype)}{suffix}"
                run = partial(_gradient, label, loss, rows, cols, dtype, layout, outputs)
                yield Case(label, run, ("scipy",) if sparse else ())


def _gradient(
    label: str,
    loss: str,
    rows: int,
    cols: int,
    dtype: Any,
    layout: str,
    outputs: int,
    effort: Effort,
) -> Record:
    model = loss_peers.make(loss, rows, cols, dtype, layout, outputs)
    sparse = layout in ("csr", "csc")
    contenders = loss_peers.sparse_value_and_grad if sparse else loss_peers.value_and_grad
    value, gradients = getattr(pb.reference, loss).value_and_grad(*model[1:])
    expected = [np.asarray(part, float) for part in (value, *gradients)]
    return race(
        label,
        list(contenders(model)),
        expected,
        _rtol(dtype),
        effort,
        floor=_read(model),
        nbytes=model.nbytes,
    )


def _hvp(label: str, rows: int, cols: int, dtype: Any, effort: Effort) -> Record:
    model = loss_peers.make("logistic", rows, cols, dtype)
    v = np.random.default_rng(1).normal(size=cols).astype(dtype), 0.5
    expected = [np.asarray(part, float) for part in pb.reference.logistic.hvp(*model[1:], v)]
    return race(
        label,
        list(loss_peers.hvp(model, v)),
        expected,
        _rtol(dtype),
        effort,
        floor=_read(model),
        nbytes=model.nbytes,
    )


def _read(model: loss_peers.Model) -> Callable[[], Any] | None:
    """Return a plain read of X where X is large and there is a probe."""
    if native is None or model.nbytes < LARGE_BYTES:
        return None
    return lambda: [native.read_seconds(array) for array in model.stored]


# --- fits -----------------------------------------------------------------------------------------


def fits(quick: bool) -> Iterator[Case]:
    """Yield whole fits, from the estimator's to one gradient norm."""
    for loss, kind, rows in QUICK_FITS if quick else FITS:
        label = f"fit {loss} {kind} {rows}"
        yield Case(label, partial(_fit, label, loss, kind, rows), ("sklearn",))


def _fit(label: str, loss: str, kind: str, rows: int, effort: Effort) -> Record:
    table = fit_peers.make(loss, kind, rows)
    contenders, first = [], {}
    beside: dict[str, Record] = {}
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
            contenders.append(contender)
            first[contender.name] = First(seconds, model)
    expected = contenders[0].arrays(first[contenders[0].name].result)
    record = race(label, contenders, expected, 1e-6, effort, first=first)
    return record | {"beside": beside, "data_bytes": table.nbytes}


# --- elementwise ----------------------------------------------------------------------------------


def elementwise(quick: bool) -> Iterator[Case]:
    """Yield vjps of elementwise operations."""
    for op in (*peers.UNARY, "power"):
        for n in ELEMENTWISE_SIZES[:2] if quick else ELEMENTWISE_SIZES:
            for dtype in DTYPES:
                given = n >= OUT_GIVEN
                label = f"{op}.vjp {n} {_name(dtype)}" + " out=" * given
                yield Case(label, partial(_elementwise, label, op, n, dtype, given))
    for dtype in () if quick else DTYPES:
        for given in (False, True):
            label = f"multiply.vjp (100000,100)x(100,) {_name(dtype)}" + " out=" * given
            yield Case(label, partial(_scaled_columns, label, dtype, given))


def sizes(quick: bool) -> Iterator[Case]:
    """Yield one vjp, into an array that is there already, from one element on."""
    for n in SIZES[:4] if quick else SIZES:
        label = f"from n = 1: tanh.vjp {n} float32 out="
        yield Case(
            label, partial(_elementwise, label, "tanh", n, np.float32, True), nbytes=4 * ARRAYS * n
        )


def _elementwise(label: str, op: str, n: int, dtype: Any, given: bool, effort: Effort) -> Record:
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal(n, dtype) for _ in range(2))
    x *= 2
    if op in ("log", "power"):
        x = np.exp(x / 2)
    operands = [x, g]
    if op == "power":
        y = 2 * rng.standard_normal(n, dtype)
        operands = [x, y, g]
        out: Any = (np.empty_like(x), np.empty_like(x)) if given else None
        contenders = list(peers.power_vjp(x, y, g, out))
    else:
        out = np.empty_like(x) if given else None
        contenders = list(peers.unary_vjp(op, x, g, out))
    if not given and n < NUMBA_FROM:
        contenders = [c for c in contenders if c.library != "Numba"]
    moved = len(operands) + (2 if op == "power" else 1)
    return race(
        label,
        contenders,
        _several(getattr(pb.reference, op).vjp(*(a.astype(float) for a in operands))),
        2e-5 if dtype is np.float32 else 1e-11,
        effort,
        floor=_copy(moved * x.nbytes) if given and n >= OUT_GIVEN else None,
        nbytes=moved * x.nbytes,
    )


def _copy(nbytes: int) -> Callable[[], Any] | None:
    """Return a plain copy that moves so many bytes, half of them in and half of them out."""
    if native is None:
        return None
    moved = np.ones((2, nbytes // 16))
    return lambda: native.copy_seconds(moved[0], moved[1])


def _scaled_columns(label: str, dtype: Any, given: bool, effort: Effort) -> Record:
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 100_000, 100)).astype(dtype)
    x = rng.normal(size=100).astype(dtype)
    out = (np.empty_like(w), np.empty_like(x)) if given else None
    return race(
        label,
        list(peers.scaled_columns_vjp(w, x, g, out)),
        pb.reference.multiply.vjp(*(a.astype(float) for a in (w, x, g))),
        1e-4 if dtype is np.float32 else 1e-11,
        effort,
        floor=_copy(3 * w.nbytes) if given else None,
        nbytes=3 * w.nbytes,
    )


def _several(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


# --- products -------------------------------------------------------------------------------------


def matmul(quick: bool) -> Iterator[Case]:
    """Yield both cotangents of matrix products, beside the peak of multiply-adds."""
    for stack, m, k, n in MATMUL_SHAPES[:3] if quick else MATMUL_SHAPES:
        for dtype in DTYPES:
            count = f"{stack[0]} x " if stack else ""
            label = f"matmul.vjp {count}{m}x{k}x{n} {_name(dtype)}"
            yield Case(label, partial(_matmul, label, stack, (m, k, n), dtype))


def _matmul(label: str, stack: Any, shape: Any, dtype: Any, effort: Effort) -> Record:
    rng = np.random.default_rng(0)
    m, k, n = shape
    A, B, G = (rng.normal(size=(*stack, *s)).astype(dtype) for s in ((m, k), (k, n), (m, n)))
    exact = [a.astype(float) for a in (A, B, G)]
    expected = np.matmul(exact[2], exact[1].mT), np.matmul(exact[0].mT, exact[2])
    return race(
        label,
        list(peers.matmul_vjp(A, B, G)),
        expected,
        2e-4 if dtype is np.float32 else 1e-12,
        effort,
        **_computed(4 * m * k * n * (stack[0] if stack else 1), dtype),
    )


def _computed(flops: int, dtype: Any) -> dict[str, Any]:
    """Return what is computed, and the seconds that it takes at the peak."""
    if native is None:
        return {"flops": flops}
    double = dtype is np.float64
    peak = statistics.median(native.measure_fma_peak(double) for _ in range(3))
    return {"flops": flops, "least": flops / peak / 1e9}


def layers(quick: bool) -> Iterator[Case]:
    """Yield cotangents of a linear layer with a bias and a relu."""
    for m, k, n in LAYER_SHAPES[:1] if quick else LAYER_SHAPES:
        for dtype in DTYPES:
            label = f"linear.vjp {m}x{k}x{n} {_name(dtype)}"
            yield Case(label, partial(_layer, label, (m, k, n), dtype))


def _layer(label: str, shape: Any, dtype: Any, effort: Effort) -> Record:
    rng = np.random.default_rng(0)
    m, k, n = shape
    # All preactivations are exact and none is 0, so that everybody is on the same side of the kink.
    X, W = (rng.integers(-8, 9, shape) / 8 for shape in ((m, k), (k, n)))
    b = rng.integers(-8, 8, n) / 64 + 1 / 128
    G = rng.normal(size=(m, n))
    active = G.astype(dtype) * (X @ W + b > 0)
    return race(
        label,
        list(peers.linear_vjp(*(a.astype(dtype) for a in (X, W, b, G)))),
        (active @ W.T, X.T @ active, active.sum(0)),
        2e-4 if dtype is np.float32 else 1e-12,
        effort,
        **_computed(6 * m * k * n, dtype),
    )


# --- reductions and chains ------------------------------------------------------------------------


def reductions(quick: bool) -> Iterator[Case]:
    """Yield reductions with their gradients, and vjps of softmax and layer_norm."""
    for name in reduction_peers.WAYS:
        for shape in ((100, 10), (1000,)) if quick else REDUCTION_SHAPES:
            for dtype in DTYPES:
                label = f"{name} {'x'.join(map(str, shape))} {_name(dtype)}"
                yield Case(label, partial(_reduction, label, name, shape, dtype))


def _reduction(label: str, name: str, shape: Any, dtype: Any, effort: Effort) -> Record:
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, *shape)).astype(dtype)
    op, _, method = name.partition(".")
    twin = getattr(getattr(pb.reference, op), method)
    axis = {} if op == "squared_norm2" else {"axis": -1}
    expected = twin(x, g, **axis) if method == "vjp" else twin(x, **axis)
    return race(
        label,
        list(reduction_peers.contenders(name, x, g)),
        [np.asarray(part, float) for part in _several(expected)],
        _rtol(dtype),
        effort,
        nbytes=(2 + (method == "vjp")) * x.nbytes,
    )


def chain(quick: bool) -> Iterator[Case]:
    """Yield the value and the vjp of tanh(exp(-x*x)), and of a model of four parameters."""
    for n in CHAIN_SIZES[:2] if quick else CHAIN_SIZES:
        for dtype in DTYPES:
            label = f"chain {n} {_name(dtype)}"
            yield Case(label, partial(_chain, label, n, dtype))
    for n in CHAIN_SIZES[1:2] if quick else CHAIN_SIZES[1:3]:
        label = f"chain of four inputs {n} float64"
        yield Case(label, partial(_model, label, n))


def _chain(label: str, n: int, dtype: Any, effort: Effort) -> Record:
    x, g = np.random.default_rng(0).normal(size=(2, n)).astype(dtype)
    e = np.exp(-np.square(x.astype(float)))
    return race(
        label,
        list(peers.gaussian_in_tanh(x, g)),
        (np.tanh(e), -2 * x * e / np.cosh(e) ** 2 * g),
        2e-5 if dtype is np.float32 else 1e-11,
        effort,
        nbytes=4 * x.nbytes,
    )


def _model(label: str, n: int, effort: Effort) -> Record:
    t, g = np.linspace(0, 5, n), np.random.default_rng(0).normal(size=n)
    theta = a, b, c, d = tuple(map(np.float64, (1.3, 0.7, 0.4, 3.0)))
    e, s = np.exp(-b * t), np.sin(d * t)
    slopes = (e, -a * t * e, s, c * t * np.cos(d * t))
    return race(
        label,
        list(peers.decay_and_swing(t, theta, g)),
        (a * e + c * s, *(np.dot(g, slope) for slope in slopes)),
        1e-9,
        effort,
        nbytes=3 * t.nbytes,
    )


SUITES: Final[Mapping[str, Suite]] = {
    "losses": losses,
    "fits": fits,
    "elementwise": elementwise,
    "sizes": sizes,
    "matmul": matmul,
    "layers": layers,
    "reductions": reductions,
    "chain": chain,
}

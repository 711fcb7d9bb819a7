"""The timed calls: every primitive's methods, natively, on the twin and written by hand.

"By hand" means plain NumPy as a user writes it, on arrays of the right dtype. It is often faster
than the twin, which also keeps accuracy and the conventions at kinks. The cases follow from the
tables: a method without a function here uses the formulas of its row. `pullback bench` and bench/
time them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from operator import attrgetter
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

import pullback as pb
from pullback.jacobians import Dense, Diagonal, Jacobian
from pullback.sample_grads import SampleGradients
from pullback.tables.elementwise import OPS, OpRow
from pullback.tables.losses import IN_LOSSES_ALONE, LOSSES, LossRow
from pullback.tables.products import PRODUCTS
from pullback.tables.reductions import REDUCTIONS, ReductionRow
from pullback.tables.selections import SELECTIONS

__all__ = ["DTYPES", "Case", "Family", "arrays", "cases", "check", "family"]

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
Size: TypeAlias = tuple[Any, ...]  # a shape, or the shapes of a product's first two operands
Function: TypeAlias = Callable[..., Any]
ByHand: TypeAlias = Mapping[str, Function | None]  # by method; None where nobody writes that

DTYPES: Final = ("float32", "float64")


@dataclass(frozen=True, eq=False)
class Family:
    """The sizes, arguments and hand-written methods for timing a primitive.

    Parameters
    ----------
    sizes : tuple
        The sizes, the smallest first.
    arguments : callable
        ``arguments(method, size, dtype)``, what a method is called with.
    by_hand : mapping
        Every method of the primitive, and the same in plain NumPy.
    keywords : mapping
        What the primitive is called with besides; functions by hand know it.
    """

    sizes: tuple[Size, ...]
    arguments: Callable[[str, Any, str], tuple[Any, ...]]
    by_hand: ByHand
    keywords: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One call to time."""

    primitive: str
    method: str
    dtype: str
    size: Size

    @property
    def group(self) -> str:
        """The name of the call, common to all backends: ``primitive.method-dtype-size``."""
        return f"{self.primitive}.{self.method}-{self.dtype}-{self.label}"

    @property
    def label(self) -> str:
        """The size, such as 100x10 or 4x4@4x4."""
        shapes = self.size if isinstance(self.size[0], tuple) else (self.size,)
        return "@".join("x".join(map(str, shape)) for shape in shapes)

    @property
    def native(self) -> Function:
        """The call in the backend in use."""
        return self._of(pb)

    @property
    def twin(self) -> Function:
        """The same on the twin."""
        return self._of(pb.reference)

    @property
    def by_hand(self) -> Function | None:
        """The same in plain NumPy, or None where nobody writes that."""
        return family(self.primitive).by_hand[self.method]

    def arguments(self) -> tuple[Any, ...]:
        """Return what all of them are called with, the same every time."""
        return family(self.primitive).arguments(self.method, self.size, self.dtype)

    def _of(self, primitives: Any) -> Function:
        alone = primitives is pb and self.primitive in IN_LOSSES_ALONE
        primitive = getattr(pb.losses if alone else primitives, self.primitive)
        bare = self.method == "value" and not hasattr(primitive, "value")
        method: Function = primitive if bare else attrgetter(self.method)(primitive)
        keywords = family(self.primitive).keywords
        return partial(method, **keywords) if keywords else method


def cases() -> Iterator[Case]:
    """Yield every primitive x method x size x dtype."""
    for name in pb.primitives:
        of_name = family(name)
        for method in of_name.by_hand:
            for size in of_name.sizes:
                for dtype in DTYPES:
                    yield Case(name, method, dtype, size)


@cache
def family(name: str) -> Family:
    """Return what a primitive is timed with."""
    if name in OPS:
        return _elementwise(OPS[name])
    if name in REDUCTIONS:
        return (_map if REDUCTIONS[name].is_map else _reduction)(REDUCTIONS[name])
    if name in SELECTIONS:
        return _selection(name)
    return _loss(LOSSES[name]) if name in LOSSES else _product(name)


# --- results --------------------------------------------------------------------------------------


def arrays(result: Any) -> Iterator[Array]:
    """Yield the arrays of a result from left to right, a structured Jacobian times a vector."""
    if isinstance(result, tuple):
        for part in result:
            yield from arrays(part)
    elif isinstance(result, pb.PartialSums):
        yield from arrays(result.finish())
    elif isinstance(result, SampleGradients):
        yield result.slopes
    elif isinstance(result, Diagonal):
        yield result.diagonal()
    elif isinstance(result, Dense):
        yield result.todense()
    elif isinstance(result, Jacobian):
        yield result @ (1 + np.arange(result.shape[1]) % 5).astype(result.dtype)
    else:
        yield np.asarray(result)


def check(name: str, actual: Any, expected: Any, eps: float) -> None:
    """Raise a RuntimeError unless results agree, to `eps` times the largest element or 1."""
    for one, other in zip(arrays(actual), arrays(expected), strict=True):
        tolerance = eps * np.max(np.abs(other), initial=1.0)
        if one.shape != other.shape or not np.max(np.abs(one - other), initial=0.0) <= tolerance:
            raise RuntimeError(f"{name}: results disagree; run `pullback check`")


# --- elementwise ----------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Any:
    return 1 / (1 + np.exp(-x))


def _sigmoid_slope(x: Array) -> Any:
    s = _sigmoid(x)
    return s * (1 - s)


# Methods by hand where the row's formulas are slower for the care that they take, or where the
# derivative is never formed.
_ELEMENTWISE: Final[Mapping[str, Mapping[str, Function]]] = {
    "identity": {"value": np.copy, "vjp": lambda x, g: g.copy()},
    "negative": {"vjp": lambda x, g: -g},
    "relu": {
        "value": lambda x: np.maximum(x, 0),
        "derivative": lambda x: (x > 0).astype(x.dtype),
        "vjp": lambda x, g: g * (x > 0),
    },
    "log": {"vjp": lambda x, g: g / x},
    "sigmoid": {"value": _sigmoid, "derivative": _sigmoid_slope},
    "tanh": {"derivative": lambda x: 1 - np.tanh(x) ** 2},
    "square": {"vjp": lambda x, g: 2 * x * g},
    "sqrt": {"derivative": lambda x: 0.5 / np.sqrt(x), "vjp": lambda x, g: 0.5 * g / np.sqrt(x)},
    "add": {"vjp": lambda w, x, g: (g.copy(), g.copy()), "jvp": lambda w, x, tw, tx: tw + tx},
    "subtract": {"vjp": lambda w, x, g: (g.copy(), -g), "jvp": lambda w, x, tw, tx: tw - tx},
    "divide": {"vjp": lambda w, x, g: (g / x, -g * w / (x * x))},
    "greater": {
        "value": lambda w, x: (w > x).astype(x.dtype),
        "vjp": lambda w, x, g: (np.zeros_like(g), np.zeros_like(g)),
        "jvp": lambda w, x, tw, tx: np.zeros_like(tw),
    },
    "maximum": {
        "derivative": lambda w, x: ((w > x).astype(x.dtype), (w <= x).astype(x.dtype)),
        "vjp": lambda w, x, g: (g * (w > x), g * (w <= x)),
        "jvp": lambda w, x, tw, tx: np.where(w > x, tw, tx),
    },
}


def _elementwise(row: OpRow) -> Family:
    own = {"value": row.value, "derivative": row.derivative} | {**_ELEMENTWISE.get(row.name, {})}
    nin, value, derivative = row.nin, own["value"], own["derivative"]

    def vjp(*given: Array) -> Any:
        return _scaled(derivative(*given[:nin]), given[nin])

    def jvp(*given: Array) -> Any:
        products = map(np.multiply, _several(derivative(*given[:nin])), given[nin:])
        return sum(products, next(products))

    def arguments(method: str, size: Shape, dtype: str) -> tuple[Array, ...]:
        count = nin + {"vjp": 1, "jvp": nin}.get(method, 0)
        rng = np.random.default_rng(count)
        ranges = [domain.ordinary for domain in row.domain] + [(0.1, 3.0)] * (count - nin)
        few = min(math.prod(size), 2**16)  # long arrays repeat themselves, since drawing takes time
        return tuple(np.resize(rng.uniform(*ends, few).astype(dtype), size) for ends in ranges)

    return Family(
        ((16,), (1000,), (100_000,)),
        arguments,
        {
            "value_and_derivative": lambda *x: (value(*x), derivative(*x)),
            "second_derivative": row.second_derivative,
            "vjp": vjp,
            "jvp": own.get("vjp", jvp) if nin == 1 else jvp,
            "jacobian": derivative,
            **own,
        },
    )


def _several(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _scaled(slopes: Any, g: Any) -> Any:
    return tuple(slope * g for slope in slopes) if isinstance(slopes, tuple) else slopes * g


# --- reductions and maps of rows ------------------------------------------------------------------


def _dot(x: Array, y: Array) -> Any:
    return np.vdot(x, y)


def _logsumexp(x: Array) -> Any:
    largest = np.max(x)
    return largest + np.log(np.sum(np.exp(x - largest)))


def _extremum_slopes(r: Any, x: Array) -> Any:
    ties = x == r
    return ties.astype(x.dtype) / x.dtype.type(np.count_nonzero(ties))


# The value, and the derivatives given the value r, of all elements.
_REDUCTIONS: Final[Mapping[str, tuple[Function, Function]]] = {
    "sum": (np.sum, lambda r, x: np.ones_like(x)),
    "mean": (np.mean, lambda r, x: np.full_like(x, 1 / x.size)),
    "prod": (np.prod, lambda r, x: r / x),
    "dot": (_dot, lambda r, x, y: (y.copy(), x.copy())),
    "norm1": (lambda x: np.sum(np.abs(x)), lambda r, x: np.sign(x)),
    "norm2": (lambda x: np.sqrt(_dot(x, x)), lambda r, x: x / r),
    "squared_norm2": (lambda x: _dot(x, x), lambda r, x: 2 * x),
    "norm": (
        lambda x, p: np.sum(np.abs(x) ** p) ** (1 / p),
        lambda r, x, p: np.sign(x) * (np.abs(x) / r) ** (p - 1),
    ),
    "max": (np.max, _extremum_slopes),
    "min": (np.min, _extremum_slopes),
    "logsumexp": (_logsumexp, lambda r, x: np.exp(x - r)),
    "variance": (np.var, lambda r, x: 2 / x.size * (x - np.mean(x))),
}


def _of_slices(row: ReductionRow) -> tuple[Function, Function]:
    """Return a reduction's value and derivatives by the formulas of its row."""
    values, slopes, default = row.values, row.slopes, _default(row)
    assert values is not None
    assert slopes is not None
    k = len(row.operands)

    def taken(given: tuple[Any, ...]) -> tuple[Any, float]:
        p = given[k] if k < len(given) else default
        return tuple(x.reshape(1, -1) for x in given[:k]), p

    def of_row(r: Any, *given: Any) -> Any:
        del r
        shape = given[0].shape
        results = tuple(slope.reshape(shape) for slope in slopes(*taken(given)))
        return results if k > 1 else results[0]

    return lambda *given: values(*taken(given))[0], of_row


def _default(row: ReductionRow) -> float:
    """Return the parameter that calls leave away."""
    return 0.0 if row.parameter is None else row.parameter.default or 0.0


def _reduction_arguments(row: ReductionRow) -> Callable[[str, Any, str], tuple[Any, ...]]:
    def arguments(method: str, size: Shape, dtype: str) -> tuple[Any, ...]:
        rng = np.random.default_rng(0)
        operands, others = (
            tuple(rng.uniform(0.5, 1.5, size).astype(dtype) for _ in row.operands) for _ in range(2)
        )
        given = operands + (3.0,) * (len(row.leading) - len(operands))
        if method == "jvp":
            return given + others
        if method == "vjp":
            return given + (others if row.is_map else (np.ones((), dtype),))
        return given

    return arguments


def _reduction(row: ReductionRow) -> Family:
    value, slopes = _REDUCTIONS.get(row.name) or _of_slices(row)
    k = len(row.leading)

    def value_and_grad(*given: Any) -> Any:
        r = value(*given)
        return r, slopes(r, *given)

    def grad(*given: Any) -> Any:
        return value_and_grad(*given)[1]

    def jvp(*given: Any) -> Any:
        return sum(map(_dot, _several(grad(*given[:k])), given[k:]))

    def jacobian(*given: Any) -> Any:
        return tuple(np.reshape(slope, (1, -1)) for slope in _several(grad(*given)))

    return Family(
        ((16,), (200, 300), (100_000,)),
        _reduction_arguments(row),
        {
            "value": value,
            "vjp": lambda *given: _scaled(grad(*given[:k]), given[k]),
            "jvp": jvp,
            "jacobian": jacobian,
            "grad": grad,
            "value_and_grad": value_and_grad,
        },
    )


def _sums(x: Array) -> Any:
    return np.sum(x, axis=-1, keepdims=True)


def _softmax(x: Array) -> Any:
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / _sums(e)


def _softmax_product(x: Array, v: Array) -> Any:
    p = _softmax(x)
    return p * (v - _sums(p * v))


def _log_softmax(x: Array) -> Any:
    z = x - np.max(x, axis=-1, keepdims=True)
    return z - np.log(_sums(np.exp(z)))


def _standardized(x: Array) -> tuple[Any, Any]:
    e = x - np.mean(x, axis=-1, keepdims=True)
    rate = 1 / np.sqrt(np.mean(e * e, axis=-1, keepdims=True) + 1e-5)
    return rate, e * rate


def _layer_norm_product(x: Array, v: Array) -> Any:
    rate, y = _standardized(x)
    return rate * (v - np.mean(v, -1, keepdims=True) - y * np.mean(y * v, -1, keepdims=True))


def _by_size(x: Array) -> tuple[Any, Any]:
    rate = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5)
    return rate, x * rate


def _rms_norm_product(x: Array, v: Array) -> Any:
    rate, y = _by_size(x)
    return rate * (v - y * np.mean(y * v, -1, keepdims=True))


def _reversed_sums(g: Array) -> Any:
    return np.cumsum(g[..., ::-1], -1)[..., ::-1]


def _running(x: Array) -> Any:
    return np.logaddexp.accumulate(x, axis=-1)


# Value, vjp and jvp along the last axis.
_MAPS: Final[Mapping[str, tuple[Function, Function, Function]]] = {
    "softmax": (_softmax, _softmax_product, _softmax_product),
    "log_softmax": (
        _log_softmax,
        lambda x, g: g - _softmax(x) * _sums(g),
        lambda x, t: t - _sums(_softmax(x) * t),
    ),
    "layer_norm": (lambda x: _standardized(x)[1], _layer_norm_product, _layer_norm_product),
    "rms_norm": (lambda x: _by_size(x)[1], _rms_norm_product, _rms_norm_product),
    "cumsum": (
        lambda x: np.cumsum(x, -1),
        lambda _, g: _reversed_sums(g),
        lambda _, t: np.cumsum(t, -1),
    ),
    "cumprod": (
        lambda x: np.cumprod(x, -1),
        lambda x, g: _reversed_sums(g * np.cumprod(x, -1)) / x,
        lambda x, t: np.cumprod(x, -1) * np.cumsum(t / x, -1),
    ),
    "logcumsumexp": (
        _running,
        lambda x, g: np.exp(x) * _reversed_sums(g * np.exp(-_running(x))),
        lambda x, t: np.exp(-_running(x)) * np.cumsum(t * np.exp(x), -1),
    ),
}


def _of_rows(row: ReductionRow) -> tuple[Function, ...]:
    """Return a map's value, vjp and jvp by the formulas of its row."""
    default = _default(row)

    def by_row(function: Function) -> Function:
        def call(*given: Array) -> Any:
            rows = (x.reshape(-1, x.shape[-1]) for x in given)
            return function(*rows, default).reshape(given[0].shape)

        return call

    return tuple(by_row(f) for f in (row.value, row.vjp, row.jvp) if f is not None)


def _map(row: ReductionRow) -> Family:
    value, vjp, jvp = _MAPS.get(row.name) or _of_rows(row)
    return Family(
        ((16,), (200, 300), (100_000,)),
        _reduction_arguments(row),
        {"value": value, "vjp": vjp, "jvp": jvp, "jacobian": None},
    )


# --- selections -----------------------------------------------------------------------------------


def _where_slopes(c: Array, w: Array, x: Array) -> Any:
    return c.astype(w.dtype), (~c).astype(x.dtype)


def _clip_slopes(x: Array, lo: Any, hi: Any) -> Any:
    slopes = (x > lo) & (x < hi), x <= lo, x >= hi
    return tuple(slope.astype(x.dtype) for slope in slopes)


def _taken_vjp(x: Array, indices: Array, g: Array) -> Any:
    return np.bincount(indices, g, len(x)).astype(g.dtype)


def _taken_jacobian(x: Array, indices: Array) -> Any:
    # Times the vector that the Jacobian is compared by.
    return (1 + np.arange(len(x)) % 5).astype(x.dtype)[indices]


_SELECTIONS: Final[Mapping[str, ByHand]] = {
    "where": {
        "value": np.where,
        "derivative": _where_slopes,
        "value_and_derivative": lambda c, w, x: (np.where(c, w, x), _where_slopes(c, w, x)),
        "second_derivative": lambda c, w, x: tuple(np.zeros((3, *c.shape), w.dtype)),
        "vjp": lambda c, w, x, g: (np.where(c, g, 0), np.where(c, 0, g)),
        "jvp": lambda c, w, x, tw, tx: np.where(c, tw, tx),
        "jacobian": _where_slopes,
    },
    "clip": {
        "value": np.clip,
        "derivative": _clip_slopes,
        "value_and_derivative": lambda x, lo, hi: (np.clip(x, lo, hi), _clip_slopes(x, lo, hi)),
        "second_derivative": lambda x, lo, hi: tuple(np.zeros((6, *x.shape), x.dtype)),
        "vjp": lambda x, lo, hi, g: tuple(slope * g for slope in _clip_slopes(x, lo, hi)),
        "jvp": lambda x, lo, hi, tx, tlo, thi: np.where(x < lo, tlo, np.where(x > hi, thi, tx)),
        "jacobian": _clip_slopes,
    },
    "take": {
        "value": np.take,
        "vjp": _taken_vjp,
        "jvp": lambda x, indices, t: np.take(t, indices),
        "jacobian": _taken_jacobian,
    },
}


def _selection(name: str) -> Family:
    row, by_hand = SELECTIONS[name], _SELECTIONS[name]
    along = not row.is_elementwise

    def arguments(method: str, size: Shape, dtype: str) -> tuple[Array, ...]:
        rng = np.random.default_rng(3)
        given: dict[str, Array] = {n: rng.normal(0, 2, size).astype(dtype) for n in row.operands}
        given |= {"c": rng.random(size) < 0.5, "indices": rng.integers(-size[0], size[0], size)}
        given |= {n: np.full(size, bound, dtype) for n, bound in (("lo", -1), ("hi", 1))}
        count = {"vjp": 1, "jvp": len(row.moved)}.get(method, 0)
        if along:
            given["indices"] %= size[0]  # np.bincount takes no negative ones
        operands = tuple(given[operand] for operand in row.operands)
        return operands + tuple(rng.normal(0, 1, size).astype(dtype) for _ in range(count))

    sizes = ((16,), (100,), (1000,)) if along else ((16,), (1000,), (100_000,))
    return Family(sizes, arguments, by_hand)


# --- products -------------------------------------------------------------------------------------


def _matmul_vjp(A: Array, B: Array, G: Array) -> Any:
    if B.ndim == 1:
        return np.outer(G, B), A.T @ G
    return G @ B.mT, A.mT @ G


def _layer_vjp(X: Array, W: Array, b: Array, G: Array) -> Any:
    H = G * (X @ W + b > 0)
    return H @ W.T, X.T @ H, H.sum(0)


def _layer_jvp(X: Array, W: Array, b: Array, tX: Array, tW: Array, tb: Array) -> Any:
    return (tX @ W + X @ tW + tb) * (X @ W + b > 0)


# Nobody writes a Jacobian of a product, which is dense without a structure for it.
_PRODUCTS: Final[Mapping[str, ByHand]] = {
    "matmul": {
        "value": np.matmul,
        "vjp": _matmul_vjp,
        "jvp": lambda A, B, tA, tB: tA @ B + A @ tB,
        "jacobian": None,
    },
    "linear": {
        "value": lambda X, W, b: np.maximum(X @ W + b, 0),
        "vjp": _layer_vjp,
        "jvp": _layer_jvp,
        "jacobian": None,
    },
    "quadratic_form": {
        "value": lambda x, A: x @ A @ x,
        "vjp": lambda x, A, g: (g * (A @ x + x @ A), g * np.outer(x, x)),
        "jvp": lambda x, A, tx, tA: tx @ (A @ x + x @ A) + x @ tA @ x,
        "value_and_grad": lambda x, A: (x @ A @ x, A @ x + x @ A),
        "jacobian": None,
    },
    "bilinear_form": {
        "value": lambda u, X, v: u @ X @ v,
        "vjp": lambda u, X, v, g: (g * (X @ v), g * np.outer(u, v), g * (u @ X)),
        "jvp": lambda u, X, v, tu, tX, tv: tu @ X @ v + u @ tX @ v + u @ X @ tv,
        "value_and_grad": lambda u, X, v: (u @ X @ v, (X @ v, np.outer(u, v), u @ X)),
        "jacobian": None,
    },
}
_SHAPES: Final[tuple[Size, ...]] = (
    ((4, 4), (4, 4)),
    ((64, 64), (64, 64)),
    ((256, 256), (256, 256)),
    ((10_000, 10), (10, 8)),
)


def _product_shapes(name: str, size: Size) -> tuple[Shape, ...]:
    """Return the shapes of a product's operands: of both matrices, or of a form's matrix."""
    match name:
        case "linear":
            return *size, size[1][-1:]
        case "quadratic_form":
            return size[:1], size[:1] * 2
        case "bilinear_form":
            return size[:1], size, size[1:]
    return size


def _product(name: str) -> Family:
    by_hand = _PRODUCTS[name]
    is_form = PRODUCTS[name].cotangent == "g"
    # A layer with a rectifier, fused.
    keywords = {"activation": pb.relu} if PRODUCTS[name].options else {}

    def arguments(method: str, size: Size, dtype: str) -> tuple[Array, ...]:
        rng = np.random.default_rng(0)
        operands, tangents = (
            [rng.standard_normal(shape).astype(dtype) for shape in _product_shapes(name, size)]
            for _ in range(2)
        )
        if method == "jvp":
            return *operands, *tangents
        if method == "vjp":
            return *operands, np.ones_like(by_hand["value"](*operands))  # type: ignore[misc]
        return tuple(operands)

    sizes = ((16, 16), (500, 400)) if is_form else _SHAPES
    if name == "matmul":
        sizes = (*sizes, ((32, 8, 8), (32, 8, 8)), ((1000, 100), (100,)))
    return Family(sizes, arguments, by_hand, keywords)


# --- losses ---------------------------------------------------------------------------------------


def _relu_mse(z: Array, y: Array) -> Any:
    return np.square(np.maximum(z, 0) - y)


def _relu_mse_slopes(z: Array, y: Array) -> Any:
    return np.where(z > 0, 2 * (z - y), 0)


# Pointwise loss and derivative by hand, where the row's formulas are slower.
_LOSSES: Final[Mapping[str, tuple[Function, Function]]] = {
    "relu_mse": (_relu_mse, _relu_mse_slopes),
    "squared_error": (lambda z, y: np.square(z - y), lambda z, y: 2 * (z - y)),
}


def _of_samples(products: Array, of_classes: bool) -> Any:
    return products.sum(axis=-1) if of_classes else products


def _hessian(X: Array, c: Array) -> Any:
    """Return the Hessian in coefficients and intercepts, by the curvature, divided."""
    X = np.column_stack([X, np.ones(len(X), X.dtype)])
    if c.ndim == 1:
        return X.T @ (c[:, None] * X)
    blocks = np.einsum("nkl,ni,nj->ikjl", c, X, X, optimize=True)
    return blocks.reshape((X.shape[1] * c.shape[1],) * 2)


def _loss(row: LossRow) -> Family:
    parameter = 0.0 if row.parameter is None else row.parameter.default
    value, slopes = _LOSSES.get(row.name) or (
        lambda z, y: row.value(z, y, parameter),
        lambda z, y: row.derivative(z, y, parameter),
    )

    def second(z: Array, y: Array) -> Any:
        if not row.of_classes:
            return row.second_derivative(z, y, parameter)
        p = _softmax(z)
        return p[:, :, None] * (np.eye(p.shape[1], dtype=p.dtype) - p[:, None])

    def value_and_grad(X: Array, y: Array, w: Array, b: Any) -> Any:
        z = X @ w + b
        r = slopes(z, y) / len(y)
        return float(np.mean(value(z, y))), (X.T @ r, r.sum(axis=0))

    def grad(X: Array, y: Array, w: Array, b: Any) -> Any:
        r = slopes(X @ w + b, y) / len(y)
        return X.T @ r, r.sum(axis=0)

    def hvp(X: Array, y: Array, w: Array, b: Any, v: tuple[Array, Any]) -> Any:
        z, t = X @ w + b, X @ v[0] + v[1]
        r = (_softmax_product(z, t) if row.of_classes else second(z, y) * t) / len(y)
        return X.T @ r, r.sum(axis=0)

    def vjp(z: Array, y: Array, g: Array) -> Any:
        return (g[:, None] if row.of_classes else g) * slopes(z, y)

    def arguments(method: str, size: Shape, dtype: str) -> tuple[Any, ...]:
        n, d = size
        X, y, w, b = row.example(n, n, d, dtype)
        if not method.startswith("pointwise"):
            more: dict[str, Any] = {"hvp": (2 * w, 3 * b), "vjp": 1.0}
            return X, y, w, b, *([more[method]] if method in more else [])
        z = X @ w + np.asarray(b, dtype)
        moved = {"pointwise.vjp": (np.ones(len(z), dtype),), "pointwise.jvp": (z,)}
        return z, y, *moved.get(method, ())

    return Family(
        ((100, 10), (1000, 20), (10_000, 100)),
        arguments,
        {
            "value": lambda X, y, w, b: float(np.mean(value(X @ w + b, y))),
            "grad": grad,
            "value_and_grad": value_and_grad,
            "vjp": lambda X, y, w, b, g: grad(X, y, w, b),
            "hvp": hvp,
            "curvature": lambda X, y, w, b: second(X @ w + b, y) / len(y),
            "hessian": lambda X, y, w, b: _hessian(X, second(X @ w + b, y) / len(y)),
            "partial": value_and_grad,
            "sample_grads": lambda X, y, w, b: slopes(X @ w + b, y).reshape(len(y), -1),
            "pointwise": value,
            "pointwise.derivative": slopes,
            "pointwise.value_and_derivative": lambda z, y: (value(z, y), slopes(z, y)),
            "pointwise.second_derivative": second,
            "pointwise.vjp": vjp,
            "pointwise.jvp": lambda z, y, t: _of_samples(slopes(z, y) * t, row.of_classes),
            "pointwise.jacobian": None if row.of_classes else slopes,
        },
    )

"""What tests of losses judge by: formulas, data inside each domain, and error bounds.

A loss's formulas are those that its row states, over a vocabulary that is mpmath for single numbers
and NumPy's long double for arrays; none of the library's functions is used. Every bound follows
from three rules: a prediction errs by at most (D + 2) u (|X||w| + |b| + |offset|), a pointwise
function by the ULP promised, and a sum of float64 terms over blocks of `BLOCK` rows merged as a
tree by (rows in a block + levels + 8) u times the sum of the terms' magnitudes.
"""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Callable
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pullback as pb
from formulas import terms, written
from mpmath import mp, mpf
from oracles import PRECISION, kept
from pullback.tables.losses import LOSSES, LossRow

BLOCK = 512
U = 2.0**-53
ULP = (2.0, 3.0, 3.0)  # of value, derivative, second derivative


# --- formulas -------------------------------------------------------------------------------------

_FAR = mpf(1 << 40)


def _mp_exp(x: Any) -> Any:
    """Return e^x; beyond every format's range any number that over- or underflows does."""
    return mpmath.exp(max(min(x, _FAR), -_FAR))


def _mp_expm1(x: Any) -> Any:
    return mpmath.expm1(x) if abs(x) < 1 else _mp_exp(x) - 1


_MILLS_SERIES = [(-1) ** k * math.prod(range(1, 2 * k, 2)) for k in range(30)]


@cache
def _mp_mills_at(t: Any, precision: int) -> Any:
    with mp.workprec(precision):
        if t < 60:
            return mpmath.sqrt(mp.pi / 2) * mpmath.exp(t * t / 2) * mpmath.erfc(t / mpmath.sqrt(2))
        return mp.fsum(c / t ** (2 * k) for k, c in enumerate(_MILLS_SERIES)) / t


def _mp_mills(t: Any) -> Any:
    """Return Phi(-t)/phi(t) for t >= 0."""
    return _mp_mills_at(t, mp.prec)


@lru_cache(16)
def _array_mills_of(high: bytes, low: bytes) -> Any:
    t = np.frombuffer(high) + np.frombuffer(low).astype(np.longdouble)
    near, far = np.minimum(t, 1.5), np.maximum(t, 1.5)
    total = term = near
    for k in range(3, 99, 2):
        term = term * near * near / k
        total = total + term
    fraction = far
    for k in range(200, 0, -1):
        fraction = far + k / fraction
    half = np.sqrt(2 * np.arctan(np.longdouble(1))) * np.exp(near * near / 2)
    return np.where(t < 1.5, half - total, 1 / fraction)


def _array_mills(t: Any) -> Any:
    """Return the same of long doubles, by a series near 0 and a continued fraction elsewhere."""
    t = np.asarray(t, np.longdouble)
    high = t.astype(np.float64)  # what fills up a long double in memory may be anything
    low = np.where(np.isfinite(high), t - high, 0).astype(np.float64)
    return _array_mills_of(high.tobytes(), low.tobytes()).reshape(t.shape)


def _normal(mills: Callable[[Any], Any], m: SimpleNamespace) -> dict[str, Callable[[Any], Any]]:
    """Return the normal distribution over a vocabulary, its logarithm and what that leads to."""

    def density(x: Any) -> Any:
        return m.exp(-x * x / 2) / m.sqrt(8 * m.arctan(1 + 0 * x))

    def tail(x: Any) -> Any:
        return density(x) * mills(abs(x))

    def hazard(x: Any) -> Any:
        return m.pick(x < 0, 1 / mills(abs(x)), density(x) / (1 - tail(x)))

    def log_ncdf(x: Any) -> Any:
        far = m.log(mills(abs(x)) / m.sqrt(8 * m.arctan(1 + 0 * x))) - x * x / 2
        return m.pick(x < 0, far, m.log1p(-tail(x)))

    def bend(x: Any) -> Any:
        # The derivative of the hazard, with the other sign.
        size = m.max(abs(x), 1000 + 0 * x)
        far = 1 - 1 / size**2 + 6 / size**4 - 50 / size**6
        return m.pick(x < -1000, far, hazard(x) * (hazard(x) + x))

    return {
        "ncdf": lambda x: m.pick(x < 0, tail(x), 1 - tail(x)),
        "hazard": hazard,
        "log_ncdf": log_ncdf,
        "bend": bend,
    }


_OF_ONE = ("log", "log1p", "sqrt", "exp", "expm1", "arctan")
SINGLE = SimpleNamespace(
    **{name: getattr(mpmath, name) for name in ("log", "log1p", "sqrt", "cosh", "sign")},
    exp=_mp_exp,
    expm1=_mp_expm1,
    arctan=mpmath.atan,
    tanh=lambda x: mpmath.tanh(max(min(x, mpf(1000)), -mpf(1000))),
    sinh2=lambda x: mpmath.sinh(max(min(x, mpf(1000)), -mpf(1000))) ** 2,
    max=max,
    pick=lambda condition, yes, no: yes if condition else no,
)
ARRAY = SimpleNamespace(
    **{name: getattr(np, name) for name in ("log", "log1p", "sqrt", "cosh", "sign", "exp", "tanh")},
    **{name: getattr(np, name) for name in ("expm1", "arctan")},
    sinh2=lambda x: np.sinh(x) ** 2,
    max=np.maximum,
    pick=np.where,
)
vars(SINGLE).update(_normal(_mp_mills, SINGLE))
vars(SINGLE).update((name, kept(getattr(SINGLE, name))) for name in (*_OF_ONE, "bend", "hazard"))
vars(ARRAY).update(_normal(_array_mills, ARRAY))


class Formula(NamedTuple):
    """A pointwise loss over a vocabulary `m`: functions of (m, z, y, parameter)."""

    value: Callable[..., Any]
    derivative: Callable[..., Any]
    second: Callable[..., Any]
    domain: Callable[[Any], Any]  # which finite targets are allowed
    targets: Callable[[np.random.Generator, Any], Any]  # ordinary targets of a shape
    mean: Callable[..., Any]  # the mean response, of (m, z)
    edges: Callable[..., Any]  # 0 where a derivative jumps; inf where none does
    # Sizes of the terms that cancel, of each order.
    terms: tuple[Callable[..., Any] | None, ...] = (None, None, None)
    exact: bool = False  # with integers, no operation of it rounds

    @property
    def orders(self) -> tuple[Callable[..., Any], ...]:
        """The value and its derivatives."""
        return self.value, self.derivative, self.second

    @lru_cache(256)  # noqa: B019
    def limits(self, y: float, p: float) -> list[list[float]]:
        """Return the limits of value and derivatives at z = -inf, and those at +inf."""
        far, beyond = mpf(10) ** 30000, mpf(10) ** 4000
        with mp.workprec(PRECISION):
            numbers = [
                [mpf(f(SINGLE, side * far, mpf(float(y)), mpf(p))) for f in self.orders]
                for side in (-1, 1)
            ]
        return [
            [float(mpmath.sign(x) * INF if abs(x) > beyond else x) for x in row] for row in numbers
        ]


INF = math.inf

# By what the table says of targets: which finite ones are allowed, and ordinary ones.
TARGETS: dict[str, tuple[Callable[[Any], Any], Callable[[np.random.Generator, Any], Any]]] = {
    "finite": (lambda y: abs(y) < INF, lambda rng, shape: rng.normal(1, 1, shape)),
    "in [0, 1]": (
        lambda y: (y >= 0) & (y <= 1),
        lambda rng, shape: (
            np.clip(rng.uniform(-0.5, 1.5, shape), 0, 1)
            * np.exp2(-rng.choice([0, 0, 0, 30, 140], shape))
        ),
    ),
    "finite and not negative": (
        lambda y: (y >= 0) & (y < INF),
        lambda rng, shape: rng.poisson(2, shape).astype(float),
    ),
    "finite and positive": (
        lambda y: (y > 0) & (y < INF),
        lambda rng, shape: rng.gamma(2, 1, shape) + 0.125,
    ),
    "-1 or 1": (lambda y: abs(y) == 1, lambda rng, shape: rng.integers(0, 2, shape) * 2.0 - 1),
}


def _sigmoid(m: Any, s: Any) -> Any:
    # Either way no digit is lost; the other branch, evaluated too, may overflow.
    return m.pick(s > 0, 1 / (1 + m.exp(-s)), m.exp(s) / (1 + m.exp(s)))


def _logistic_terms(m: Any, z: Any, y: Any) -> Any:
    """Return those whose difference is the derivative: (1 - y) sigmoid(z) and y sigmoid(-z)."""
    e = m.exp(-abs(z))
    larger, smaller = 1 / (1 + e), e / (1 + e)
    return (1 - y) * m.pick(z > 0, larger, smaller), y * m.pick(z > 0, smaller, larger)


def _log_cosh(m: Any, e: Any) -> Any:
    near = m.log1p(2 * m.sinh2(m.pick(abs(e) < 1, e, 0 * e) / 2))
    far = abs(e) + m.log1p(m.exp(-2 * abs(e))) - m.log1p(1 + 0 * e)
    return m.pick(abs(e) < 1, near, far)


def _negative_binomial_terms(m: Any, z: Any, y: Any, p: Any) -> tuple[Any, ...]:
    """Return those whose sum is the value."""
    log_m = z + m.log(p + 0 * z)
    rest = m.log1p(m.exp(-abs(log_m)))
    first = m.pick(log_m > 0, log_m, 0 * z) + rest
    return first / p, y * m.pick(log_m > 0, m.log(p + 0 * z), -z), y * rest


def _cloglog(m: Any, z: Any, y: Any, order: int) -> tuple[Any, Any]:
    """Return the terms of the value and of its derivatives: of targets 0 and 1."""
    e = m.exp(z)
    some, large = m.pick(e < 1, e, 1 + 0 * e), m.pick(e < 1, 1 + 0 * e, m.pick(e > 9999, 9999, e))
    if order == 0:
        near = m.pick(z > -50, -m.log(-m.expm1(-some)), e / 2 - z)
        return (1 - y) * e, y * m.pick(e < 1, near, -m.log1p(-m.exp(-large)))
    ratio = m.pick(e < 1, some / m.expm1(some), large * m.exp(-large) / (1 - m.exp(-large)))
    if order == 1:
        return (1 - y) * e, -y * ratio
    series = some / 2 + some**2 / 12 - some**4 / 720
    rest = m.pick(some < 1e-4, series, some - 1 + some / m.expm1(some))
    return (1 - y) * e, y * ratio * m.pick(e < 1, rest, large - 1 + ratio)


# What loses digits as the table writes it.
CAREFUL: dict[str, dict[str, Any]] = {
    "logistic": {
        "value": lambda m, z, y, p: m.pick(z > 0, (1 - y) * z, -y * z) + m.log1p(m.exp(-abs(z))),
        "derivative": lambda m, z, y, p: operator.sub(*_logistic_terms(m, z, y)),
        "second": lambda m, z, y, p: m.exp(-abs(z)) / (1 + m.exp(-abs(z))) ** 2,
        "mean": _sigmoid,
        "terms": (None, lambda m, z, y, p: m.max(*_logistic_terms(m, z, y)), None),
    },
    "tweedie": {
        "value": lambda m, z, y, p: (
            (z if p == 2 else m.expm1((2 - p) * z) / (2 - p)) - y * m.expm1((1 - p) * z) / (1 - p)
        ),
        "terms": (
            lambda m, z, y, p: (
                abs(z if p == 2 else m.expm1((2 - p) * z) / (2 - p))
                + abs(y * m.expm1((1 - p) * z) / (1 - p))
            ),
            lambda m, z, y, p: m.exp((2 - p) * z) + y * m.exp((1 - p) * z),
            lambda m, z, y, p: abs(2 - p) * m.exp((2 - p) * z) + (p - 1) * y * m.exp((1 - p) * z),
        ),
    },
    "inverse_gaussian": {
        "value": lambda m, z, y, p: m.exp(-z) * (y * m.exp(-z) / 2 - 1),
        "derivative": lambda m, z, y, p: m.exp(-z) * (1 - y * m.exp(-z)),
        "second": lambda m, z, y, p: m.exp(-z) * (2 * y * m.exp(-z) - 1),
    },
    "negative_binomial": {
        "value": lambda m, z, y, p: sum(_negative_binomial_terms(m, z, y, p)),
        "terms": (
            lambda m, z, y, p: sum(map(abs, _negative_binomial_terms(m, z, y, p))),
            lambda m, z, y, p: m.max(m.exp(z), y) / (1 + p * m.exp(z)),
            None,
        ),
    },
    "probit": {
        "value": lambda m, z, y, p: -y * m.log_ncdf(z) - (1 - y) * m.log_ncdf(-z),
        "derivative": lambda m, z, y, p: (1 - y) * m.hazard(-z) - y * m.hazard(z),
        "second": lambda m, z, y, p: (1 - y) * m.bend(-z) + y * m.bend(z),
        "terms": (
            None,
            lambda m, z, y, p: m.max((1 - y) * m.hazard(-z), y * m.hazard(z)),
            None,
        ),
    },
    "cloglog": {
        "value": lambda m, z, y, p: sum(_cloglog(m, z, y, 0)),
        "derivative": lambda m, z, y, p: sum(_cloglog(m, z, y, 1)),
        "second": lambda m, z, y, p: sum(_cloglog(m, z, y, 2)),
        "mean": lambda m, z: -m.expm1(-m.exp(z)),
        "terms": (None, lambda m, z, y, p: m.max(*map(abs, _cloglog(m, z, y, 1))), None),
    },
    "log_cosh": {
        "value": lambda m, z, y, p: _log_cosh(m, z - y),
        "second": lambda m, z, y, p: 4 * m.exp(-2 * abs(z - y)) / (1 + m.exp(-2 * abs(z - y))) ** 2,
    },
}


def _formula(row: LossRow) -> Formula:
    parameter = "p" if row.parameter is None else row.parameter.name
    texts = (row.formula, row.derivative_formula, row.second_derivative_formula)
    value, derivative, second = (written(text, "z", "y", parameter) for text in texts)
    domain, targets = TARGETS[row.targets.domain]
    mean = written(row.response_formula, "z")
    edges = [written(kink, "z", "y", parameter) for kink in row.kinks]
    formula = Formula(
        value,
        derivative,
        second,
        domain,
        targets,
        mean=mean,
        edges=lambda z, y, p: (
            math.prod((f(ARRAY, z, y, p) for f in edges), start=1) if edges else z * 0 + INF
        ),
        terms=tuple(t and written(t, "z", "y", parameter) for t in map(terms, texts)),
        exact=not re.search(r"exp|log|tanh|cosh", row.formula),
    )
    return formula._replace(**CAREFUL.get(row.name, {}))


FORMULAS = {name: _formula(row) for name, row in LOSSES.items() if not row.of_classes}
COUPLED = "softmax_cross_entropy"  # the one whose classes do not stand alone
DEFAULTS = {name: row.parameter.default for name, row in LOSSES.items() if row.parameter}
OTHERS = {
    name: next(filter(row.parameter.test, (1.35, 0.9)))
    for name, row in LOSSES.items()
    if row.parameter
}


def loss_of(primitives: Any, name: str) -> Any:
    """Return the loss of a name of the module pullback or pullback.reference."""
    return getattr(pb.losses if primitives is pb else primitives, name)


class Case(NamedTuple):
    """A loss with its parameter, and for softmax the kind of its targets."""

    name: str
    parameter: float | None = None
    labels: bool = False

    @property
    def id(self) -> str:
        """The name in a test's id."""
        if self.name == COUPLED:
            return f"{self.name}-{'labels' if self.labels else 'probabilities'}"
        return self.name if self.parameter is None else f"{self.name}({self.parameter})"

    @property
    def coupled(self) -> bool:
        """Whether the outputs of a row belong together."""
        return self.name == COUPLED

    @property
    def formula(self) -> Formula:
        """The pointwise formulas."""
        return FORMULAS[self.name]

    @property
    def p(self) -> float:
        """The parameter in force."""
        return DEFAULTS.get(self.name, 0.0) if self.parameter is None else self.parameter

    def of(self, primitives: Any = pb) -> Any:
        """Return the loss among `primitives`: the module pullback or pullback.reference."""
        loss = loss_of(primitives, self.name)
        return loss if self.parameter is None else loss(self.parameter)


def _cases() -> list[Case]:
    cases = []
    for name in pb.losses.losses:
        cases += [Case(name)] if name != COUPLED else [Case(name, None, True), Case(name)]
        cases += [Case(name, OTHERS[name])] if name in OTHERS else []
    return cases


CASES = _cases()
POINTWISE = [case for case in CASES if not case.coupled]
SOFTMAX = [case for case in CASES if case.coupled]


def by_id(case: Case) -> str:
    """Return the id of a parametrised test."""
    return case.id


# --- data -----------------------------------------------------------------------------------------


class Model(NamedTuple):
    """A linear model and its data; (D,) weights unless there are several outputs."""

    X: Any
    y: Any
    w: Any
    b: Any
    sample_weight: Any
    v: tuple[Any, Any]

    @property
    def operands(self) -> tuple[Any, Any, Any, Any]:
        """X, y, w and b."""
        return self[:4]


@cache
def model(
    case: Case, n: int, d: int, dtype: Any = np.float64, k: int | None = None, seed: int = 0
) -> Model:
    """Return a model whose predictions are of order 1; all arrays read-only.

    Some weights are 0. Softmax has three outputs unless told otherwise.
    """
    rng = np.random.default_rng([n, d, k or 0, seed])
    k = 3 if case.coupled and k is None else k
    tail = () if k is None else (k,)
    X = rng.uniform(-1, 1, (n, d)).astype(dtype)
    w = (rng.normal(0, 2, (d, *tail)) / math.sqrt(1 + d)).astype(dtype)
    b: Any = 0.1875 + 1 / (1 + d) if k is None else rng.normal(0.1, 0.5, k).astype(dtype)
    if not case.coupled:
        y = case.formula.targets(rng, (n, *tail)).astype(dtype)
    elif case.labels:
        y = rng.integers(0, k, n)
    else:
        y = rng.dirichlet(np.ones(k or 1), n).astype(dtype)
    weights = rng.integers(0, 9, n) * rng.uniform(0.1, 1, n)
    weights[rng.integers(n)] = 1.25
    v = (rng.normal(size=w.shape), 0.75 if k is None else rng.normal(size=k))
    for array in (X, y, w, weights, v[0], *((b, v[1]) if k else ())):
        array.flags.writeable = False
    return Model(X, y, w, b, weights, v)


# --- exact sums -----------------------------------------------------------------------------------


class Bounded(NamedTuple):
    """An exact number or array, and how far from it a result may be."""

    exact: Any
    error: Any

    def __truediv__(self, divisor: Any) -> Bounded:
        return Bounded(self.exact / divisor, self.error / divisor)


class Exact(NamedTuple):
    """What the methods return, all in the shape of (D, K), (K,), (N, K)."""

    value: Bounded
    gw: Bounded
    gb: Bounded
    gX: Bounded  # noqa: N815
    curvature: Bounded
    hw: Bounded
    hb: Bounded


class _Scores(NamedTuple):
    """Per row: loss (N,), derivative (N, K), second derivative times tangent (N, K), curvature."""

    loss: Bounded
    slope: Bounded
    bent: Bounded
    curvature: Bounded


def _wide(a: Any) -> Any:
    return np.asarray(a).astype(np.longdouble)


def _pointwise_scores(case: Case, z: Any, dz: Any, y: Any, u: Any, du: Any) -> _Scores:
    formula = case.formula
    p = np.longdouble(case.p)
    here = []
    for order, f in enumerate(formula.orders):
        exact = f(ARRAY, z, y, p)
        moved = [np.abs(f(ARRAY, z + step, y, p) - exact) for step in (dz, -dz)]
        terms = formula.terms[order]
        size = np.abs(exact) if terms is None else terms(ARRAY, z, y, p)
        here.append(Bounded(exact, np.maximum(*moved) + 2 * ULP[order] * U * size))
    loss, slope, second = here
    bent = Bounded(
        second.exact * u, second.error * (np.abs(u) + du) + np.abs(second.exact) * (du + U * abs(u))
    )
    return _Scores(Bounded(loss.exact.sum(axis=1), loss.error.sum(axis=1)), slope, bent, second)


def _softmax_scores(z: Any, dz: Any, y: Any, u: Any, du: Any) -> _Scores:
    k = z.shape[1]
    labels = y.ndim == 1
    given = np.eye(k, dtype=np.longdouble)[np.asarray(y, int)] if labels else y
    total = given.sum(axis=1, keepdims=True)
    shifted = z - z.max(axis=1, keepdims=True)
    e = np.exp(shifted)
    p = e / e.sum(axis=1, keepdims=True)
    others = (e @ (1 - np.eye(k, dtype=np.longdouble))) / e.sum(axis=1, keepdims=True)
    top = z.argmax(axis=1)
    rest = np.where(np.arange(k) == top[:, None], 0, e).sum(axis=1, keepdims=True)
    each = np.log1p(rest) - shifted
    most = dz.max(axis=1, keepdims=True)
    loss = (given * each).sum(axis=1)
    # Moving every z by at most `most` moves lse - z_k by 2 most (1 - p_k), and p_k by 2 most p_k.
    loss_error = (given * (2 * most * (others + most) + (k + 4) * U * each)).sum(axis=1)
    slope = np.where(given == 1, -others, total * p - given)
    relative = 2 * most + (k + 6) * U
    size = np.where(given == 1, others, total * p) if labels else total * p + given
    slope_error = size * relative
    mean = (p * u).sum(axis=1, keepdims=True)
    magnitude = total * p * (np.abs(u) + (p * np.abs(u)).sum(axis=1, keepdims=True))
    bent = total * p * (u - mean)
    bent_error = magnitude * 2 * relative + total * p * (du + (p * du).sum(axis=1, keepdims=True))
    outer = -p[:, :, None] * p[:, None, :]
    diagonal = np.arange(k)
    outer[:, diagonal, diagonal] = p * others
    curvature = total[:, :, None] * outer
    return _Scores(
        Bounded(loss, loss_error),
        Bounded(slope, slope_error),
        Bounded(bent, bent_error),
        Bounded(curvature, np.abs(curvature) * 3 * relative[:, :, None]),
    )


def exact(
    case: Case,
    X: Any,
    y: Any,
    w: Any,
    b: Any,
    sample_weight: Any = None,
    v: tuple[Any, Any] | None = None,
    *,
    offset: Any = None,
    terms: int | None = None,
) -> Exact:
    """Return every sum in long double, undivided, with its error bound.

    `terms` is the number of products in a prediction, D unless an entry counts twice. The same
    numbers, asked for again in another layout or for another target, are computed once.
    """
    V, VB = (None, None) if v is None else v
    given = (X, y, w, b, sample_weight, V, VB, offset)
    key = (case, terms, *map(_digest, given))
    if key not in _KEPT:
        if len(_KEPT) == 256:
            _KEPT.clear()
        _KEPT[key] = _exact(case, terms, *given)
    return _KEPT[key]


_KEPT: dict[Any, Exact] = {}


def _digest(argument: Any) -> Any:
    """Return what is equal for the same numbers, dtype and shape, however they lie in memory."""
    if argument is None:
        return None
    array = np.asarray(argument)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.dtype, array.shape, hashlib.blake2b(array.tobytes()).digest()


def _exact(
    case: Case,
    terms: int | None,
    X: Any,
    y: Any,
    w: Any,
    b: Any,
    sample_weight: Any,
    V: Any,
    VB: Any,
    offset: Any,
) -> Exact:
    X, w = _wide(X), _wide(w)
    n, d = X.shape
    k = 1 if w.ndim == 1 else w.shape[1]
    W = w.reshape(d, k)
    B = np.broadcast_to(_wide(0 if b is None else b), (k,))
    V = np.zeros_like(W) if V is None else _wide(V).reshape(d, k)
    VB = np.broadcast_to(_wide(0 if VB is None else VB), (k,))
    added = np.zeros((n, 1)) if offset is None else _wide(offset).reshape(n, -1)
    size = np.abs(X)
    spread = ((d if terms is None else terms) + 2) * U
    z, dz = X @ W + B + added, spread * (size @ np.abs(W) + np.abs(B) + np.abs(added))
    u, du = X @ V + VB, spread * (size @ np.abs(V) + np.abs(VB))
    y = np.asarray(y) if case.coupled and case.labels else _wide(y)
    y = y if case.coupled else y.reshape(n, k)
    with np.errstate(all="ignore"):
        if case.coupled:
            scores = _softmax_scores(z, dz, y, u, du)
        else:
            scores = _pointwise_scores(case, z, dz, y, u, du)
    weights = np.ones(n, np.longdouble) if sample_weight is None else _wide(sample_weight)
    factor = (min(n, BLOCK) + math.ceil(math.log2(max(1, n / BLOCK))) + 8) * U

    def weighted(bounded: Bounded) -> Bounded:
        by = weights.reshape(n, *(1,) * (bounded.exact.ndim - 1))
        return Bounded(by * bounded.exact, by * bounded.error)

    def summed(bounded: Bounded, left: Any) -> Bounded:
        product, own = left @ bounded.exact, np.abs(left) @ bounded.error
        return Bounded(product, own + factor * (np.abs(left) @ np.abs(bounded.exact)))

    loss, slope, bent, curvature = map(weighted, scores)
    ones = np.ones(n, np.longdouble)
    gX = Bounded(
        slope.exact @ W.T,
        slope.error @ np.abs(W).T + (k + 4) * U * (np.abs(slope.exact) @ np.abs(W).T),
    )
    curved = Bounded(curvature.exact, curvature.error + 2 * U * np.abs(curvature.exact))
    return Exact(
        summed(loss, ones),
        summed(slope, X.T),
        summed(slope, ones),
        gX,
        curved,
        summed(bent, X.T),
        summed(bent, ones),
    )


def divided(sums: Exact, n: int, sample_weight: Any, reduction: str) -> Exact:
    """Return what a mean or a sum of the weighted terms is."""
    if reduction == "sum":
        return sums
    by = np.longdouble(n) if sample_weight is None else _wide(sample_weight).sum()
    rounding = (4 + (0 if sample_weight is None else min(n, BLOCK) + 16)) * U

    def mean(bounded: Bounded) -> Bounded:
        quotient = bounded / by
        return Bounded(quotient.exact, quotient.error + rounding * np.abs(quotient.exact))

    return Exact(*map(mean, sums))


# --- verdicts -------------------------------------------------------------------------------------


def assert_within(actual: Any, bounded: Bounded, what: str = "") -> None:
    """Fail if a float64 result is beyond its bound, or a float32 one beyond that and a rounding."""
    actual = np.asarray(actual)
    exact, error = bounded
    assert actual.size == np.size(exact), (what, actual.shape, np.shape(exact))
    exact, error = np.reshape(exact, actual.shape), np.reshape(error, actual.shape)
    assert np.isfinite(exact).all(), what
    if actual.dtype == np.float32:
        error = error + 2.0**-24 * (np.abs(exact) + error) + 2.0**-150
    wrong = ~(np.abs(actual.astype(np.longdouble) - exact) <= error)
    if wrong.any():
        i = np.unravel_index(np.argmax(wrong), wrong.shape)
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} beyond their bound, first at {i}: "
            f"{actual[i]!r} instead of {exact[i]!r}, bound {error[i]!r}"
        )


def parameter_dtype(parameter: Any) -> Any:
    """Return the dtype of a parameter's gradient."""
    return np.dtype(np.float32 if np.asarray(parameter).dtype.itemsize <= 4 else np.float64)


def judge_gradient(gw: Any, gb: Any, w: Any, b: Any, dw: Bounded, db: Bounded) -> None:
    """Check gradients (or Hessian products) in shape, dtype, kind and every number."""
    assert type(gw) is np.ndarray
    assert gw.shape == np.shape(w)
    assert gw.dtype == parameter_dtype(w)
    assert_within(gw, dw, "w")
    if b is None:
        assert gb is None
        return
    assert np.shape(gb) == np.shape(b)
    if np.size(b) < db.exact.size:  # one intercept for all outputs
        db = Bounded(db.exact.sum(), db.error.sum() + 4 * U * np.abs(db.exact).sum())
    assert_within(gb, db, "b")


def judge(
    case: Case,
    X: Any,
    y: Any,
    w: Any,
    b: Any,
    sample_weight: Any = None,
    v: tuple[Any, Any] | None = None,
    *,
    offset: Any = None,
    dense: Any = None,
    terms: int | None = None,
    reduction: str = "mean",
    primitives: Any = pb,
    sums: Exact | None = None,
    hessian: bool = True,
) -> Any:
    """Call every method and check every number; return value_and_grad's result.

    `dense` is X as an array, where X is something else.
    """
    loss = case.of(primitives)
    dense = X if dense is None else dense
    v = v or (np.ones(np.shape(w)), None if b is None else np.ones(np.shape(b)))
    v = (v[0], None if b is None else v[1])
    n = len(dense)
    sums = sums or exact(case, dense, y, w, b, sample_weight, v, offset=offset, terms=terms)
    of_others = sums._replace(gX=sums.gb)  # which is large, and not asked for here
    right = divided(of_others, n, sample_weight, reduction)
    options = {"sample_weight": sample_weight, "offset": offset, "reduction": reduction}

    result = loss.value_and_grad(X, y, w, b, **options)
    value, (gw, gb) = result
    assert type(value) is float
    assert_within(value, right.value, "value")
    judge_gradient(gw, gb, w, b, right.gw, right.gb)
    only = loss.value(X, y, w, b, **options)
    assert type(only) is float
    assert_within(only, right.value, "value alone")
    gradient = loss.grad(X, y, w, b, **options)
    judge_gradient(*gradient, w, b, right.gw, right.gb)
    if hessian:
        hw, hb = loss.hvp(X, y, w, b, v, **options)
        judge_gradient(hw, hb, w, b, right.hw, right.hb)
        c = loss.curvature(X, y, w, b, **options)
        k = right.gb.exact.size
        assert c.shape == ((n, k, k) if case.coupled else (n,) if np.ndim(w) == 1 else (n, k))
        assert_within(c, right.curvature, "curvature")
    return result


# --- single numbers -------------------------------------------------------------------------------


@lru_cache(1024)
def number(case: Case, order: int, z: float, y: float) -> Any:
    """Return the exact value, derivative or second derivative at a point, as an mpf."""
    with mp.workprec(PRECISION):
        return mpf(case.formula.orders[order](SINGLE, mpf(z), mpf(y), mpf(case.p)))

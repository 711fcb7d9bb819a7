"""The table of losses of linear models.

One row says everything the Python side knows about a loss: formulas, targets, parameter, inverse
link. The NumPy engine, the public objects and their docstrings, the tests, the benches and the
catalogue iterate over `LOSSES`, so a new pointwise loss is one row here and one in ``cpp/ops``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.oracle import elementwise as nf
from pullback.oracle import losses as lf

__all__ = ["IN_LOSSES_ALONE", "LOSSES", "ClassTargets", "LossRow", "Parameter", "Targets"]

Array: TypeAlias = npt.NDArray[Any]


# --- what a row is made of ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets that a loss is defined for.

    Parameters
    ----------
    text : str
        What the targets need, as in "y[3] is 2.0, needs ...".
    test : callable
        ``test(y)``, elementwise, of a float64 array.
    encoding : str, optional
        For a loss that classifies: how to make its targets from other labels.
    """

    text: str
    test: Callable[[Array], Array]
    encoding: str = ""

    @property
    def domain(self) -> str:
        """The domain, such as "finite and positive"."""
        return self.text.removeprefix("to be ")

    @property
    def advice(self) -> str:
        """The end of a message: how to encode labels, such as strings."""
        if not self.encoding:
            return ""
        return f"; encode other labels, such as strings, first: {self.encoding} of them"

    def valid(self, y: Array, n_outputs: int) -> Array:
        """Return which targets are in the domain: a bool for each target, or row of classes."""
        del n_outputs
        return self.test(y)

    def complaint(self, y: Array, row: int, n_outputs: int) -> str:
        """Return what is wrong with the targets of a row that has a bad one."""
        if y.ndim == 1:
            return f"y[{row}] is {y[row].item()}, needs {self.text}{self.advice}"
        k = int(np.argmin(self.valid(y[row].astype(np.float64), n_outputs)))
        return f"y[{row}, {k}] is {y[row, k].item()}, needs {self.text}{self.advice}"


class ClassTargets(Targets):
    """The targets of classes: labels, or a row of probabilities for each sample."""

    TOLERANCE: Final = 1e-5  # of a row's sum, which others may have computed in float32

    def __init__(self) -> None:
        super().__init__(
            "labels from 0 to K - 1, or finite probabilities, not negative, with rows summing to 1",
            lambda y: (y >= 0) & (y < np.inf),
            "np.unique(y, return_inverse=True)[1] makes 0 to K - 1",
        )

    def valid(self, y: Array, n_outputs: int) -> Array:  # noqa: D102
        if y.dtype.kind in "iu":
            return (y >= 0) & (y < n_outputs)
        off = np.abs(y.sum(axis=-1, dtype=np.float64) - 1)
        return np.asarray(np.all(self.test(y), axis=-1) & (off <= self.TOLERANCE))

    def complaint(self, y: Array, row: int, n_outputs: int) -> str:  # noqa: D102
        if y.ndim == 1:
            label = f"a label from 0 to {n_outputs - 1}"
            return f"y[{row}] is {y[row].item()}, needs {label}{self.advice}"
        bad = ~self.test(y[row].astype(np.float64))
        if bad.any():
            k = int(np.argmax(bad))
            return f"y[{row}, {k}] is {y[row, k].item()}, needs to be finite and not negative"
        total = y[row].sum(dtype=np.float64)
        return f"y[{row}] sums to {total:.9g}, needs 1 within {self.TOLERANCE:g}"


@dataclass(frozen=True)
class Parameter:
    """The parameter of a loss."""

    name: str
    default: float
    text: str  # what it needs
    test: Callable[[float], bool]


@dataclass(frozen=True, eq=False, kw_only=True)
class LossRow:
    """Everything there is to say about one loss.

    Formulas of z and y (of their rows, for classes) document the loss; the functions take float64
    arrays and the parameter, or 0 where there is none.
    """

    name: str
    summary: str
    formula: str
    derivative_formula: str  # by z
    second_derivative_formula: str
    targets: Targets  # for the default parameter, where they depend on it
    targets_at: Callable[[float], Targets]
    value: Callable[[Array, Array, float], Array]
    derivative: Callable[[Array, Array, float], Array]
    second_derivative: Callable[[Array, Array, float], Array]  # of classes: their probabilities
    flat_at_zero: bool  # whether its derivative at z = 0 is 0 whatever the target is
    # The inverse link: a primitive's name, or a function of the loss at a target of 0.
    response: str | Callable[[Array], Array] | None
    response_formula: str
    link: Callable[[Array], Array]  # the prediction of a mean response; 0 where there is none
    draw: Callable[[np.random.Generator, Array], Array]  # targets for predictions
    kinks: tuple[str, ...]  # expressions that vanish where a derivative jumps
    source: str
    parameter: Parameter | None
    note: str  # more text for the docstring, or ""
    in_losses_alone: bool  # in `losses` only: in the package its name would look like a function

    @property
    def path(self) -> str:
        """Its name in the package, such as "logistic" or "losses.probit"."""
        return f"losses.{self.name}" if self.in_losses_alone else self.name

    def at(self, parameter: float) -> LossRow:
        """Return the row of the loss with a parameter, on which the targets may depend."""
        targets = self.targets_at(parameter)
        return self if targets is self.targets else _with_targets(self.name, targets)

    @property
    def of_classes(self) -> bool:
        """Whether a row's outputs are classes of one loss, instead of a loss each."""
        return isinstance(self.targets, ClassTargets)

    def example(
        self, seed: int, n_samples: int, n_features: int, dtype: npt.DTypeLike
    ) -> tuple[Array, Array, Array, Any]:
        """Return X, y, w and b of a model that could have seen these targets, for checks."""
        rng = np.random.default_rng(seed)
        outputs = (3,) if self.of_classes else ()
        X = rng.standard_normal((n_samples, n_features), np.float32).astype(dtype)
        w = rng.standard_normal((n_features, *outputs)) / math.sqrt(max(1, n_features))
        b = rng.standard_normal(outputs).astype(dtype) if outputs else 0.25
        y = self.draw(rng, X @ w + b)
        return X, y if self.of_classes else y.astype(dtype), w.astype(dtype), b


@cache
def _with_targets(name: str, targets: Targets) -> LossRow:
    return replace(LOSSES[name], targets=targets)


_FINITE: Final = Targets("to be finite", np.isfinite)
_COUNT: Final = Targets("to be finite and not negative", lambda y: (y >= 0) & (y < np.inf))
_POSITIVE: Final = Targets("to be finite and positive", lambda y: (y > 0) & (y < np.inf))
_SHARE: Final = Targets(
    "to be in [0, 1]", lambda y: (y >= 0) & (y <= 1), "y == positive makes 0 and 1"
)
_SIGN: Final = Targets(
    "-1 or 1", lambda y: np.abs(y) == 1, "np.where(y == positive, 1, -1) makes -1 and 1"
)


def _loss(
    name: str,
    summary: str,
    *,
    f: str,
    df: str,
    d2f: str,
    y: Targets,
    value: Callable[[Array, Array, float], Array],
    derivative: Callable[[Array, Array, float], Array],
    second_derivative: Callable[[Array, Array, float], Array],
    draw: Callable[[np.random.Generator, Array], Array],
    source: str,
    mean: str = "z",
    link: Callable[[Array], Array] = np.positive,
    flat_at_zero: bool = False,
    targets_at: Callable[[float], Targets] | None = None,
    response: str | Callable[[Array], Array] | None = None,
    kinks: tuple[str, ...] = (),
    parameter: Parameter | None = None,
    note: str = "",
    in_losses_alone: bool = False,
) -> LossRow:
    return LossRow(
        name=name,
        summary=summary,
        formula=f,
        derivative_formula=df,
        second_derivative_formula=d2f,
        targets=y,
        targets_at=targets_at or (lambda _: y),
        value=value,
        derivative=derivative,
        second_derivative=second_derivative,
        flat_at_zero=flat_at_zero,
        response=response,
        response_formula=mean,
        link=link,
        draw=draw,
        kinks=kinks,
        source=source,
        parameter=parameter,
        note=note,
        in_losses_alone=in_losses_alone,
    )


# Targets that a model with predictions z could have seen.
def _noisy(rng: np.random.Generator, z: Array) -> Array:
    return z + rng.standard_normal(z.shape)


def _bits(rng: np.random.Generator, z: Array) -> Array:
    return np.asarray(rng.random(z.shape) < nf.sigmoid(z), dtype=np.float64)


def _gammas(rng: np.random.Generator, z: Array) -> Array:
    return np.exp(z) * (0.01 + rng.standard_gamma(2.0, z.shape))


def _mixtures(rng: np.random.Generator, z: Array) -> Array:
    mean = np.exp(np.minimum(z, 9.0))
    return np.asarray(rng.poisson(rng.gamma(1.0, mean)), dtype=np.float64)


def _signs(rng: np.random.Generator, z: Array) -> Array:
    return 2 * _bits(rng, z) - 1


# --- the table ------------------------------------------------------------------------------------

# fmt: off
_ROWS: Final = (
    _loss("squared_error", "Squared error of a linear model",
        f="(z - y)**2",                       df="2*(z - y)",
        d2f="2",                              y=_FINITE,
        value=lambda z, y, _: np.square(z - y),
        derivative=lambda z, y, _: 2 * (z - y),
        second_derivative=lambda z, y, _: nf.constant(2, z),
        draw=_noisy,
        source="least squares"),

    _loss("relu_mse", "Squared error of a rectified linear model",
        f="(y - (z if z > 0 else 0))**2",     df="-2*(y - z) if z > 0 else 0",
        d2f="2 if z > 0 else 0",              y=_FINITE,
        value=lambda z, y, _: np.square(y - np.where(z <= 0, 0, z)),
        derivative=lf.relu_mse_slope,
        second_derivative=lambda z, y, _: lf.where_number(z, 2.0 * (z > 0)),
        mean="max(0, z)",                     response="relu",            flat_at_zero=True,
        draw=lambda rng, z: np.maximum(z, 0) + rng.standard_normal(z.shape),
        kinks=("z",),
        source="Finding the Gradient of a Vector Function; 0 at the kink"),

    _loss("logistic", "Logistic loss",
        f="log(1 + exp(z)) - y*z",            df="1/(1 + exp(-z)) - y",
        d2f="exp(-z)/(1 + exp(-z))**2",       y=_SHARE,
        value=lf.logistic,
        derivative=lf.logistic_slope,
        second_derivative=lambda z, y, _: nf.sigmoid_slope(z),
        mean="1/(1 + exp(-z))",               response="sigmoid",
        link=lambda mean: np.log(mean) - np.log1p(-mean),
        draw=_bits,
        source="McCullagh and Nelder 1989, the binomial's canonical link",
        note="A target between 0 and 1 is a soft label. The value's error is at most 2 ULP, the "
             "second derivative's 3 ULP. The derivative is (1 - y)*s(z) - y*s(-z), where "
             "s(z) = 1/(1 + exp(-z)). It vanishes at z = log(y/(1 - y)), so its error is at most 3 "
             "ULP of the larger term."),

    _loss("poisson", "Half the Poisson deviance under a log link, up to a constant",
        f="exp(z) - y*z",                     df="exp(z) - y",
        d2f="exp(z)",                         y=_COUNT,
        value=lf.poisson,
        derivative=lambda z, y, _: np.exp(z) - y,
        second_derivative=lambda z, y, _: np.exp(z),
        mean="exp(z)",                        response="exp",             link=np.log,
        draw=lambda rng, z: rng.poisson(np.exp(np.minimum(z, 9.0))).astype(np.float64),
        source="McCullagh and Nelder 1989, the Poisson's canonical link"),

    _loss("gamma", "Half the gamma deviance under a log link, up to a constant",
        f="z + y*exp(-z)",                    df="1 - y*exp(-z)",
        d2f="y*exp(-z)",                      y=_POSITIVE,
        value=lf.gamma,
        derivative=lambda z, y, _: 1 - lf.gamma_decay(z, y),
        second_derivative=lambda z, y, _: lf.gamma_decay(z, y),
        mean="exp(z)",                        response="exp",             link=np.log,
        draw=_gammas,
        source="McCullagh and Nelder 1989, the gamma under a log link"),

    _loss("huber", "Huber's loss, quadratic within delta, linear beyond",
        f="(z - y)**2/2 if abs(z - y) <= delta else delta*(abs(z - y) - delta/2)",
        df="z - y if abs(z - y) <= delta else delta*sign(z - y)",
        d2f="1 if abs(z - y) <= delta else 0", y=_FINITE,
        value=lf.huber,
        derivative=lambda z, y, delta: np.clip(z - y, -delta, delta),
        second_derivative=lambda z, y, delta: lf.where_number(z, 1.0 * (np.abs(z - y) <= delta)),
        draw=_noisy,
        kinks=("abs(z - y) - delta",),
        parameter=Parameter("delta", 1.0, "to be finite and positive",
                            lambda delta: 0 < delta < math.inf),
        source="Huber 1964"),

    _loss("quantile", "Quantile (pinball) loss",
        f="q*(y - z) if y > z else (q - 1)*(y - z)",
        df="(-q if y > z else 1 - q) if y != z else 0",
        d2f="0",                              y=_FINITE,
        value=lf.quantile,
        derivative=lf.quantile_slope,
        second_derivative=lambda z, y, q: nf.constant(0, z),
        draw=_noisy,
        kinks=("y - z",),
        parameter=Parameter("q", 0.5, "to lie between 0 and 1", lambda q: 0 < q < 1),
        source="Koenker and Bassett 1978; 0 at the tie"),

    _loss("hinge", "Hinge loss",
        f="1 - y*z if y*z < 1 else 0",        df="-y if y*z < 1 else 0",
        d2f="0",                              y=_SIGN,
        value=lambda z, y, _: lf.margin(z, y),
        derivative=lambda z, y, _: lf.where_number(z, np.where(y * z < 1, -y, 0)),
        second_derivative=lambda z, y, _: nf.constant(0, z),
        draw=_signs,                          link=np.zeros_like,
        kinks=("1 - y*z",),
        source="Cortes and Vapnik 1995; 0 at margin 1"),

    _loss("squared_hinge", "Squared hinge loss",
        f="(1 - y*z)**2 if y*z < 1 else 0",   df="-2*y*(1 - y*z) if y*z < 1 else 0",
        d2f="2 if y*z < 1 else 0",            y=_SIGN,
        value=lambda z, y, _: np.square(lf.margin(z, y)),
        derivative=lambda z, y, _: -2 * y * lf.margin(z, y) + 0.0,
        second_derivative=lambda z, y, _: lf.where_number(z, 2.0 * (y * z < 1)),
        draw=_signs,                          link=np.zeros_like,
        kinks=("1 - y*z",),
        source="Cortes and Vapnik 1995; 0 at margin 1"),

    _loss("exponential", "Exponential loss",
        f="exp(-y*z)",                        df="-y*exp(-y*z)",
        d2f="exp(-y*z)",                      y=_SIGN,
        value=lambda z, y, _: np.exp(-y * z),
        derivative=lambda z, y, _: -y * np.exp(-y * z),
        second_derivative=lambda z, y, _: np.exp(-y * z),
        draw=_signs,                          link=np.zeros_like,
        source="Freund and Schapire 1997"),

    _loss("log_cosh", "Logarithm of the hyperbolic cosine of the error",
        f="log(cosh(z - y))",                 df="tanh(z - y)",
        d2f="1/cosh(z - y)**2",               y=_FINITE,
        value=lf.log_cosh,
        derivative=lambda z, y, _: np.tanh(z - y),
        second_derivative=lf.log_cosh_curvature,
        draw=_noisy,
        source="chain rule"),

    _loss("tweedie", "Half the Tweedie deviance of a power under a log link, up to a constant",
        f="(expm1((2 - power)*z)/(2 - power) if power != 2 else z)"
          " - y*expm1((1 - power)*z)/(1 - power)",
        df="exp((2 - power)*z) - y*exp((1 - power)*z)",
        d2f="(2 - power)*exp((2 - power)*z) - (1 - power)*y*exp((1 - power)*z)",
        y=_COUNT,                             targets_at=lambda p: _COUNT if p < 2 else _POSITIVE,
        value=lf.tweedie,
        derivative=lf.tweedie_slope,
        second_derivative=lf.tweedie_curvature,
        mean="exp(z)",                        response="exp",             link=np.log,
        draw=lambda rng, z: np.exp(z) * rng.poisson(2, z.shape) / 2,
        parameter=Parameter("power", 1.5, "to be finite and greater than 1",
                            lambda power: 1 < power < math.inf),
        source="Jorgensen 1987, under a log link",
        note="The variance is this power of the mean: 1 for Poisson, 2 for gamma, 3 for the "
             "inverse Gaussian. Targets of 0 need a power below 2. The constant makes the loss 0 "
             "at z = 0, so it is accurate for powers near 1 and 2, too. The value's error is at "
             "most 2 ULP of its larger term, and both derivatives' errors are at most 3 ULP of "
             "theirs. The loss is convex up to a power of 2. Beyond, its second derivative is "
             "negative where y is less than (power - 2)/(power - 1)*exp(z).",
        in_losses_alone=True),

    _loss("inverse_gaussian", "Half the inverse Gaussian deviance, log link, up to a constant",
        f="y*exp(-2*z)/2 - exp(-z)",          df="exp(-z) - y*exp(-2*z)",
        d2f="2*y*exp(-2*z) - exp(-z)",        y=_POSITIVE,
        value=lf.inverse_gaussian,
        derivative=lf.inverse_gaussian_slope,
        second_derivative=lf.inverse_gaussian_curvature,
        mean="exp(z)",                        response="exp",             link=np.log,
        draw=_gammas,
        source="McCullagh and Nelder 1989, the inverse Gaussian under a log link",
        note="Not convex: the second derivative is negative where y is less than exp(z)/2.",
        in_losses_alone=True),

    _loss("negative_binomial", "Negative binomial loss under a log link, up to a constant",
        f="(y + 1/alpha)*log(1 + alpha*exp(z)) - y*z",
        df="(exp(z) - y)/(1 + alpha*exp(z))",
        d2f="exp(z)*(1 + alpha*y)/(1 + alpha*exp(z))**2",
        y=_COUNT,
        value=lf.negative_binomial,
        derivative=lf.negative_binomial_slope,
        second_derivative=lf.negative_binomial_curvature,
        mean="exp(z)",                        response="exp",             link=np.log,
        draw=_mixtures,
        parameter=Parameter("alpha", 1.0, "to lie between 1e-100 and 1e100",
                            lambda alpha: 1e-100 <= alpha <= 1e100),
        source="Lawless 1987; the variance is the mean times 1 + alpha*mean",
        note="It tends to the Poisson loss as alpha tends to 0. The value's error is at most 2 ULP "
             "of the largest of log(1 + m)/alpha, y*log(1 + e) and y times z or log(alpha), where "
             "m = alpha*exp(z) and e is the smaller of m and 1/m.",
        in_losses_alone=True),

    _loss("probit", "Probit loss",
        f="-y*log(ncdf(z)) - (1 - y)*log(ncdf(-z))",
        df="npdf(z)*(ncdf(z) - y)/(ncdf(z)*ncdf(-z))",
        d2f="y*npdf(z)/ncdf(z)*(npdf(z)/ncdf(z) + z)"
            " + (1 - y)*npdf(z)/ncdf(-z)*(npdf(z)/ncdf(-z) - z)",
        y=_SHARE,
        value=lf.probit,
        derivative=lf.probit_slope,
        second_derivative=lf.probit_curvature,
        mean="ncdf(z)",                       response=lf.share_of_loss,
        link=lf.probit_link,
        draw=lambda rng, z: np.asarray(rng.standard_normal(z.shape) < z, dtype=np.float64),
        source="McCullagh and Nelder 1989, the binomial under a probit link",
        note="ncdf and npdf are the normal distribution function and density. A target between 0 "
             "and 1 is a soft label. The value's error is at most 2 ULP, the second derivative's 3 "
             "ULP. The derivative is (1 - y)*npdf(z)/ncdf(-z) - y*npdf(z)/ncdf(z), and its error "
             "is at most 3 ULP of the larger term.",
        in_losses_alone=True),

    _loss("cloglog", "Complementary log-log loss",
        f="-y*log(1 - exp(-exp(z))) + (1 - y)*exp(z)",
        df="(1 - y)*exp(z) - y*exp(z)/expm1(exp(z))",
        d2f="(1 - y)*exp(z) + y*exp(z)/expm1(exp(z))*(exp(z) + exp(z)/expm1(exp(z)) - 1)",
        y=_SHARE,
        value=lf.cloglog,
        derivative=lf.cloglog_slope,
        second_derivative=lf.cloglog_curvature,
        mean="1 - exp(-exp(z))",              response=lf.share_of_loss,
        link=lambda mean: np.log(-np.log1p(-mean)),
        draw=lambda rng, z: np.asarray(rng.exponential(size=z.shape) < np.exp(z), np.float64),
        source="McCullagh and Nelder 1989, the binomial under a complementary log-log link",
        note="A target between 0 and 1 is a soft label. The value's error is at most 2 ULP, the "
             "second derivative's 3 ULP, and the derivative's 3 ULP of its larger term.",
        in_losses_alone=True),

    _loss("softmax_cross_entropy", "Cross entropy of the softmax of K outputs",
        f="log(sum_k exp(z_k))*sum_k y_k - sum_k y_k*z_k",
        df="s*p_k - y_k, where p = softmax(z), s = sum_k y_k",
        d2f="s*(diag(p) - p*p^T)",            y=ClassTargets(),
        value=lf.softmax_cross_entropy,
        derivative=lf.softmax_cross_entropy_slope,
        second_derivative=lambda z, y, _: lf.softmax(z),
        mean="softmax(z)",                    response="softmax",         link=np.log,
        draw=lambda rng, z: np.argmax(z + rng.gumbel(size=z.shape), axis=-1),
        source="McCullagh and Nelder 1989, the multinomial's canonical link"),
)
# fmt: on

LOSSES: Final[Mapping[str, LossRow]] = MappingProxyType({row.name: row for row in _ROWS})
IN_LOSSES_ALONE: Final = frozenset(row.name for row in _ROWS if row.in_losses_alone)

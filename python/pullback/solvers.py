"""Solvers for objectives of linear models: Newton, Newton-CG and L-BFGS.

Each minimises an object with the methods of `pullback.LinearObjective`. It converges when the
largest entry of the gradient is at most ``tol`` times the largest at the start (or
``tol * reference``), or when the gradient consists of rounding errors. It never reports convergence
for less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Solution", "lbfgs", "newton", "newton_cg"]

Array: TypeAlias = npt.NDArray[Any]
# Called after each iteration with its number, the value and the gradient's largest entry.
Callback: TypeAlias = Callable[[int, float, float], object]

EPS: Final = float(np.finfo(np.float64).eps)
ENOUGH: Final = 1e-4  # the least share of the decrease that the slope predicts (Armijo)
FLAT: Final = 0.5  # the largest share of the slope that may be left after a step (Wolfe)
LEAST_SHIFT: Final = 1e-10  # for a Hessian whose diagonal is 1
MOST_SHIFT: Final = 1e4
AT_ROUNDING: Final = 64  # multiple of the gradient's error from rounding the parameters
CANCELS: Final = 64  # rounding errors of the largest value, by which another may seem to rise
EXACT: Final = 1e-8  # share of the gradient that an exact step of conjugate gradients leaves


@dataclass(frozen=True, eq=False)
class Solution:
    """The result of a solver.

    Parameters
    ----------
    theta : ndarray, shape (n_parameters,)
        The parameters.
    value : float
        The objective there.
    gradient_norm : float
        The largest entry of its gradient there, in magnitude.
    n_iter : int
        Number of iterations.
    converged : bool
        Whether the gradient is as small as asked for, or as small as rounding errors allow.
    message : str
        Why the solver ended, and what it changed on the way, such as a regularised Hessian.
    """

    theta: Array
    value: float
    gradient_norm: float
    n_iter: int
    converged: bool
    message: str


def newton(
    objective: Any,
    theta: npt.ArrayLike | None = None,
    *,
    tol: float = 1e-6,
    reference: float | None = None,
    max_iter: int = 100,
    callback: Callback | None = None,
) -> Solution:
    """Minimise by Newton's method, with a Cholesky factor of the Hessian.

    It is best for many more samples than features: an iteration costs O(N D^2 + D^3). A full step
    is tried first. If it does not decrease the objective enough, a line search follows, whose steps
    cost O(N) each. A singular or ill-conditioned Hessian is regularised, and the message says so.

    Parameters
    ----------
    objective : LinearObjective
        The function to minimise.
    theta : array_like, shape (n_parameters,), optional
        The start; the default is ``objective.initial()``.
    tol : float
        The largest entry of the gradient at which to end, relative to `reference`.
    reference : float, optional
        The default is the largest entry of the gradient at the start.
    max_iter : int
        The largest number of iterations.
    callback : callable, optional
        ``callback(n_iter, value, gradient_norm)``, called after each iteration.

    Returns
    -------
    Solution

    Examples
    --------
    >>> import numpy as np
    >>> import pullback as pb
    >>> from pullback.solvers import newton
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> solution = newton(pb.LinearObjective(X, [1, 1, 2, 4], pb.poisson), tol=1e-10)
    >>> solution.converged, solution.theta.round(4).tolist()
    (True, [0.4915, -0.1541])
    """
    run = _Run(objective, theta, tol, reference, max_iter, callback)
    hessian, shift, most = None, 0.0, 0.0
    while run.goes_on() and shift < MOST_SHIFT:
        if hessian is None:
            hessian = _fixed(objective, objective.hessian(run.theta))
            if not np.isfinite(hessian).all():
                return run.end("the Hessian is not finite")
        scale, factor, used = _factor(hessian, shift)
        most = max(most, used)
        half = _solve(factor, scale * run.gradient, "N")
        length = run.move(-scale * _solve(factor, half, "T"))
        if not length and not used and run.is_at_rounding():
            break
        if length:
            hessian = None
        # Where the parabola that the Hessian makes does not hold, shorter steps along the gradient.
        shift = max(1e-4, 10 * used) if length < 0.1 else used / 10 if used > LEAST_SHIFT else 0.0
    about = f"; the Hessian is singular or ill-conditioned: regularised by up to {most:.1g} of its "
    return run.end(about=about + "diagonal" if most else "")


def newton_cg(
    objective: Any,
    theta: npt.ArrayLike | None = None,
    *,
    tol: float = 1e-6,
    reference: float | None = None,
    max_iter: int = 100,
    callback: Callback | None = None,
    hessian: npt.ArrayLike | None = None,
    moments: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> Solution:
    """Minimise by Newton's method, with steps from conjugate gradients on Hessian products.

    It is best if a Hessian would be too large. Each product is one pass over the data. Conjugate
    gradients end early while the minimum is far (Nocedal and Wright 2006, algorithm 7.1).

    Parameters
    ----------
    objective, theta, tol, reference, max_iter, callback
        As for `newton`.
    hessian : array_like, shape (n_parameters, n_parameters), optional
        An approximation of the Hessian, such as the Hessian of some of the samples. With it, the
        number of passes hardly depends on scales and correlations of the features. For K outputs
        it may be that of each output, shape (n_parameters / K, n_parameters / K).
    moments : tuple of array_like, shapes (n_features,), optional
        Means and standard deviations of the features, if there is no `hessian`. The solver then
        iterates on the coefficients of scaled features, centred if the objective has intercepts.
        This costs no pass, and scales of the features hardly change the number of passes.

    Returns
    -------
    Solution
    """
    run = _Run(objective, theta, tol, reference, max_iter, callback)
    _newton_cg(run, _coordinates(objective, hessian, moments))
    return run.end()


def lbfgs(
    objective: Any,
    theta: npt.ArrayLike | None = None,
    *,
    tol: float = 1e-6,
    reference: float | None = None,
    max_iter: int = 100,
    callback: Callback | None = None,
    hessian: npt.ArrayLike | None = None,
    moments: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> Solution:
    """Minimise by SciPy's L-BFGS-B, which needs gradients only.

    Parameters
    ----------
    objective, theta, tol, reference, max_iter, callback, hessian, moments
        As for `newton_cg`.

    Returns
    -------
    Solution

    Raises
    ------
    ImportError
        If SciPy is not installed.
    """
    try:
        from scipy.optimize import minimize  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        raise ImportError("lbfgs needs SciPy: pip install scipy") from error
    run = _Run(objective, theta, tol, reference, max_iter, callback)
    by, origin = _coordinates(objective, hessian, moments), run.theta
    evaluated = (np.zeros_like(origin), run.value, run.gradient)  # the last
    # SciPy's first step has length 1; for a unit Hessian it should have the gradient's length.
    # Values are divided by its square, which must not overflow or vanish.
    with np.errstate(all="ignore"):
        length = np.linalg.norm(by.of_gradient(run.gradient)) if by.is_given else 1.0
    size = float(np.clip(length, 1e-150, 1e150))

    def value_and_grad(u: Array) -> tuple[float, Array]:
        nonlocal evaluated
        if not np.array_equal(u, evaluated[0]):
            evaluated = (u.copy(), *objective.value_and_grad(origin + by.to_theta(size * u)))
        return evaluated[1] / size**2, by.of_gradient(evaluated[2]) / size

    def after(intermediate_result: Any) -> None:
        u = intermediate_result.x
        value_and_grad(u)
        run.arrive(origin + by.to_theta(size * u), *evaluated[1:])
        if not run.goes_on():
            raise StopIteration

    if run.goes_on():
        options = {"maxiter": max_iter, "maxfun": 100 * max_iter, "gtol": 0, "ftol": 0}
        options |= {"maxls": 50, "maxcor": 30}  # more pairs save passes and cost little
        start = np.zeros_like(origin)
        about = {"jac": True, "method": "L-BFGS-B", "callback": after, "options": options}
        minimize(value_and_grad, start, **about)
    if not run.goes_on() or not objective._loss.has_second_derivative:
        run.stalled = run.goes_on()
        return run.end()

    # SciPy's line search compares values, which near the minimum differ by rounding errors only.
    before = run.n_iter
    _newton_cg(run, by)
    return run.end(about=f"; Newton-CG took the last {run.n_iter - before} iterations")


def _newton_cg(run: _Run, by: _Coordinates) -> None:
    """Go on by Newton-CG to the end of a run."""
    is_exact = False
    while run.goes_on():
        forcing = EXACT if is_exact else min(0.25, np.sqrt(run.norm / run.first_norm))
        product = partial(by.product, partial(run.objective.hvp, run.theta))
        step = _conjugate_gradients(product, by.of_gradient(run.gradient), forcing)
        moves = run.move(by.to_theta(step)) > 0
        # A step that is not exact may reduce the gradient but not its largest entry.
        run.stalled = is_exact and not moves
        is_exact = not moves


class _Run:
    """The state that solvers share: position, end of the iteration, line search and report."""

    def __init__(
        self,
        objective: Any,
        theta: npt.ArrayLike | None,
        tol: float,
        reference: float | None,
        max_iter: int,
        callback: Callback | None,
    ) -> None:
        self.objective = objective
        self.theta = objective.initial() if theta is None else np.array(theta, np.float64)
        self.value, self.gradient = objective.value_and_grad(self.theta)
        self.n_iter, self.max_iter, self.callback = 0, max_iter, callback
        self.stalled = False
        self.first_norm, self.largest = self.norm, abs(self.value)
        self.gtol = tol * (self.norm if reference is None else reference)

    @property
    def norm(self) -> float:
        """The gradient's largest entry."""
        return float(np.abs(self.gradient).max(initial=0.0))

    @property
    def is_finite(self) -> bool:
        """Whether value and gradient are finite."""
        return bool(np.isfinite(self.value) and np.isfinite(self.gradient).all())

    def goes_on(self) -> bool:
        """Tell whether another iteration is needed and allowed."""
        more = self.norm > self.gtol and self.n_iter < self.max_iter and not self.stalled
        return more and self.is_finite

    def arrive(self, theta: Array, value: float, gradient: Array) -> None:
        """Move to the end of a step."""
        self.theta, self.value, self.gradient = theta, value, gradient
        self.largest = max(self.largest, abs(value))
        self.n_iter += 1
        if self.callback is not None:
            self.callback(self.n_iter, value, self.norm)

    def move(self, step: Array) -> float:
        """Move along a step as far as the objective decreases well; return the share taken."""
        slope = _slope(self.gradient, step)
        if not slope < 0:
            return 0.0
        t = 1.0
        theta = self.theta + step
        value, gradient = self.objective.value_and_grad(theta)
        allowance = 4 * EPS * abs(self.value)
        ending = _slope(gradient, step)
        verdict = _verdict(value, ending, t, self.value, slope, allowance)
        # A value of terms that cancel has larger errors than its own size tells: gradients decide.
        vanishes = abs(ending) < -0.1 * slope and np.abs(gradient).max() < 0.1 * self.norm
        if verdict and not (vanishes and value - self.value <= CANCELS * EPS * self.largest):
            t = _search(self.objective.line(self.theta, step), self.value, slope)
            if not t:
                return 0.0
            theta = self.theta + t * step
            value, gradient = self.objective.value_and_grad(theta)
            if not np.isfinite(value):
                return 0.0
        # If values differ by rounding errors only, the gradient has to decrease.
        before = self.norm
        if -slope <= allowance and not np.abs(gradient).max() < FLAT * before:
            self.stalled = True
            if not np.abs(gradient).max() < before:
                return 0.0
        self.arrive(theta, value, gradient)
        return t

    def is_at_rounding(self) -> bool:
        """Tell whether the gradient is no larger than its error from rounding the parameters."""
        moved = self.objective.hvp(self.theta, self.theta)
        return self.norm <= AT_ROUNDING * EPS * float(np.abs(moved).max(initial=0.0))

    def end(self, why: str = "", about: str = "") -> Solution:
        """Return where the run ended, and why."""
        converged = self.norm <= self.gtol
        if not self.is_finite:
            why = "the objective or its gradient is not finite"
        elif converged:
            why = f"the gradient's largest entry is at most {self.gtol:.3g}"
        elif not why and self.n_iter >= self.max_iter:
            why = f"max_iter={self.max_iter} iterations were not enough"
        elif not why:
            converged = self.objective._loss.has_second_derivative and self.is_at_rounding()
            why = "floating point ended the progress"
            why += ", at a gradient of rounding errors" if converged else ""
        return Solution(
            self.theta, float(self.value), self.norm, self.n_iter, converged, why + about
        )


class _Coordinates:
    """The variables u of a solver, with theta = T u; here the parameters themselves."""

    is_given = False  # whether the Hessian in u is nearly the unit matrix

    def to_theta(self, u: Array) -> Array:
        """Return the parameters T u."""
        return u

    def of_gradient(self, gradient: Array) -> Array:
        """Return the gradient with respect to u."""
        return gradient

    def product(self, hvp: Callable[[Array], Array], v: Array) -> Array:
        """Return the product of the Hessian in u with a direction in u."""
        return self.of_gradient(hvp(self.to_theta(v)))


class _Whitened(_Coordinates):
    """Coordinates in which an approximate Hessian is the unit matrix.

    For several outputs, which theta holds side by side, T may be the same matrix for each.
    """

    is_given = True

    def __init__(self, objective: Any, hessian: npt.ArrayLike) -> None:
        given = np.array(hessian, np.float64)
        n, n_outputs = objective.n_parameters, objective._n_outputs
        shapes = [(n, n), (n // n_outputs, n // n_outputs)]
        if given.shape not in shapes or not np.isfinite(given).all():
            raise ValueError(
                f"hessian must be finite and have one of the shapes {shapes}, not {given.shape}"
            )
        if given.shape == (n, n):
            given = _fixed(objective, given)
        scale, self._factor, _ = _factor(given)
        self._scale = scale[:, None]

    @np.errstate(all="ignore")
    def to_theta(self, u: Array) -> Array:
        solved = _solve(self._factor, u.reshape(len(self._factor), -1), "T")
        return (self._scale * solved).ravel()

    @np.errstate(all="ignore")
    def of_gradient(self, gradient: Array) -> Array:
        scaled = self._scale * gradient.reshape(len(self._factor), -1)
        return _solve(self._factor, scaled, "N").ravel()


class _Standardized(_Coordinates):
    """The parameters of features that are centred, where there are intercepts, and scaled."""

    is_given = True

    def __init__(self, objective: Any, moments: tuple[npt.ArrayLike, npt.ArrayLike]) -> None:
        n_outputs, self._n_coefficients = objective._n_outputs, objective._n_coefficients
        shape = (self._n_coefficients // n_outputs, 1)
        mean, scale = (np.array(moment, np.float64) for moment in moments)
        for moment in (mean, scale):
            if moment.shape != shape[:1] or not np.isfinite(moment).all():
                raise ValueError(
                    f"moments must be finite and have shape {shape[:1]}, not {moment.shape}"
                )
        if not (scale > 0).all():
            raise ValueError("moments: standard deviations must be positive")
        self._mean, self._scale = mean.reshape(shape), scale.reshape(shape)

    @np.errstate(all="ignore")
    def to_theta(self, u: Array) -> Array:
        v, b = np.split(u, [self._n_coefficients])
        w = v.reshape(len(self._scale), -1) / self._scale
        return np.concatenate([w.ravel(), b - (self._mean * w).sum(axis=0)[: len(b)]])

    @np.errstate(all="ignore")
    def of_gradient(self, gradient: Array) -> Array:
        gw, gb = np.split(gradient, [self._n_coefficients])
        gw = gw.reshape(len(self._scale), -1)
        gv = (gw - self._mean * gb if len(gb) else gw) / self._scale
        return np.concatenate([gv.ravel(), gb])


def _coordinates(
    objective: Any,
    hessian: npt.ArrayLike | None,
    moments: tuple[npt.ArrayLike, npt.ArrayLike] | None,
) -> _Coordinates:
    if hessian is not None:
        return _Whitened(objective, hessian)
    return _Coordinates() if moments is None else _Standardized(objective, moments)


@np.errstate(all="ignore")
def _slope(gradient: Array, step: Array) -> float:
    return float(gradient @ step)


def _verdict(
    value: float, slope: float, t: float, value0: float, slope0: float, allowance: float
) -> int:
    """Return 0 if a step of length t is accepted, 1 if it is too long, -1 if it is too short."""
    if not value <= value0 + ENOUGH * t * slope0 + allowance or not slope <= -FLAT * slope0:
        return 1
    return -1 if slope < FLAT * slope0 else 0


def _search(phi: Callable[[float], tuple[float, float]], value0: float, slope0: float) -> float:
    """Return an accepted step length, or the longest one seen that decreases the value, or 0.

    Lengths grow by factors of 4 until one is too long. The next ones come from the secant of the
    slopes, kept within the interval, or from bisection.
    """
    low, low_slope, high, high_slope, t = 0.0, slope0, np.inf, np.nan, 1.0
    allowance = 4 * EPS * abs(value0)
    with np.errstate(all="ignore"):
        for _ in range(60):
            value, slope = phi(t)
            verdict = _verdict(value, slope, t, value0, slope0, allowance)
            if verdict == 0:
                return t
            if verdict > 0:
                high, high_slope = t, slope
            else:
                low, low_slope = t, slope
            if high == np.inf:
                t *= 4
                continue
            secant = low - low_slope * (high - low) / (high_slope - low_slope)
            margin = 0.1 * (high - low)
            inside = low + margin <= secant <= high - margin
            t = secant if inside else low + 0.5 * (high - low) if low else 0.2 * high
    return low


def _fixed(objective: Any, hessian: Array) -> Array:
    """Add curvature along the direction that a loss of classes leaves open.

    Adding one number to all outputs changes no probability, so the gradient has no component in
    that direction, and the added curvature changes no step.
    """
    if objective._loss.row.of_classes:
        n_outputs = objective._n_outputs
        open_from = 0 if objective._penalty.is_zero else objective._n_coefficients
        for k in range(open_from, len(hessian), n_outputs):
            block = hessian[k : k + n_outputs, k : k + n_outputs]
            block += np.trace(block)
    return hessian


def _factor(hessian: Array, shift: float = 0.0) -> tuple[Array, Array, float]:
    """Return scale s, Cholesky factor L and shift d: diag(s) H diag(s) + d I = L L^T.

    The scale makes the diagonal 1. The shift grows until the factor is accurate enough.
    """
    diagonal = np.diagonal(hessian)
    scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    scaled = hessian * scale * scale[:, None]
    n = len(scaled)
    while True:
        try:
            factor = np.linalg.cholesky(scaled + shift * np.eye(n) if shift else scaled)
            if np.diagonal(factor).min(initial=1.0) ** 2 > 4 * n * EPS:
                return scale, factor, shift
        except np.linalg.LinAlgError:
            pass
        shift = max(LEAST_SHIFT, 100 * shift)


def _solve(factor: Array, right: Array, trans: str) -> Array:
    """Solve L x = right ("N"), or L^T x = right ("T")."""
    try:
        from scipy.linalg import solve_triangular  # noqa: PLC0415  an optional dependency
    except ImportError:
        return np.linalg.solve(factor.T if trans == "T" else factor, right)
    solved: Array = solve_triangular(factor, right, trans, lower=True, check_finite=False)
    return solved


@np.errstate(all="ignore")
def _conjugate_gradients(
    product: Callable[[Array], Array], gradient: Array, forcing: float
) -> Array:
    """Return a descent direction, from one Hessian product per iteration."""
    size = float(np.abs(gradient).max())  # scaling by it keeps squares from overflowing
    step, residual = np.zeros_like(gradient), gradient / size
    direction = -residual
    square = float(residual @ residual)
    goal = forcing**2 * square
    for _ in range(2 * len(gradient) + 10):
        moved = product(direction)
        curvature = float(direction @ moved)
        if not curvature > 1e-4 * EPS * float(direction @ direction):
            break
        alpha = square / curvature
        step += alpha * direction
        residual += alpha * moved
        last, square = square, float(residual @ residual)
        if square <= goal:
            break
        direction = (square / last) * direction - residual
    return size * step if step.any() else -gradient

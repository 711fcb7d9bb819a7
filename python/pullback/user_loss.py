"""Users' own losses of linear models, from functions of predictions and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.config import guarded_class, native
from pullback.design_matrix import KernelData, Rows
from pullback.engine import BACKEND, Engine
from pullback.losses import Loss, losses
from pullback.native_rows import native_blocks, sizes_kept
from pullback.oracle import losses as oracle
from pullback.protocol import is_weak, named_after, shown
from pullback.tables.losses import LossRow, Targets

__all__ = ["pointwise_loss"]

Array: TypeAlias = npt.NDArray[Any]
Function: TypeAlias = Callable[[Array, Array], Any]


def pointwise_loss(
    value: Function,
    derivative: Function,
    second_derivative: Function | None = None,
    *,
    name: str | None = None,
    response: Callable[[Array], Any] | None = None,
    targets: Callable[[Array], Any] | None = None,
) -> Loss:
    """Return a loss of linear models from NumPy functions of predictions z and targets y.

    It has the same methods as the built-in losses, and `LinearObjective` takes it. X is read in
    blocks of rows. For each block, kernels compute the predictions, the functions are called with
    predictions and targets in the calling thread, and kernels multiply the derivatives by the
    block's transpose while the block is in cache.

    Parameters
    ----------
    value, derivative : callable
        ``value(z, y)``, the loss of each prediction, and ``derivative(z, y)``, its derivative in z.
        The arguments are two read-only float64 arrays of one shape: (rows,), or (rows, K) for
        several outputs. The functions return an array of that shape, or one number for all.
    second_derivative : callable, optional
        The same for the second derivative in z, which `hvp` and `curvature` need.
    name : str, optional
        The name in messages; the default is the name of `value`.
    response : callable, optional
        ``response(z)``, the mean response at predictions as above; the default is z itself.
    targets : callable, optional
        ``targets(y)`` returns an array of bool in y's shape, which tells the targets that the loss
        is defined for. By default all finite targets are.

    Returns
    -------
    Loss
        Two losses with the same functions are equal. It pickles if the functions do.

    Raises
    ------
    TypeError
        If `value` or `derivative` is missing, or an argument is not a function. From a method: if a
        function does not return real numbers, or the second derivative is missing.
    ValueError
        From a method: if a function returns an array of another shape.

    Notes
    -----
    Errors in the functions pass through, with a note that names the function. NumPy's warnings are
    off in the functions. The blocks depend on the shape of X alone, so results always have the same
    bits.

    Examples
    --------
    >>> import numpy as np
    >>> import pullback as pb
    >>> cauchy = pb.pointwise_loss(
    ...     lambda z, y: np.log1p((z - y) ** 2),
    ...     lambda z, y: 2 * (z - y) / (1 + (z - y) ** 2),
    ...     name="cauchy",
    ... )
    >>> X, y, w = np.eye(3), np.array([1.0, 2.0, 3.0]), np.ones(3)
    >>> loss, (gw, _) = cauchy.value_and_grad(X, y, w)
    >>> round(loss, 4), gw.round(4).tolist()
    (0.7675, [0.0, -0.3333, -0.2667])

    `check_grad` tells whether the derivative is right:

    >>> z = np.array([0.5, -1.5, 4.0])
    >>> f, slopes = cauchy.pointwise, cauchy.pointwise.derivative(z, y)
    >>> pb.check_grad(lambda z: f(z, y).sum(), slopes, z).ok
    True
    """
    given = {
        "value": value,
        "derivative": derivative,
        "second_derivative": second_derivative,
        "response": response,
        "targets": targets,
    }
    for argument, function in given.items():
        is_needed = argument in ("value", "derivative")
        if not callable(function) and (is_needed or function is not None):
            raise TypeError(f"pointwise_loss: {argument} must be a function, not {shown(function)}")
    if name is None:
        name = getattr(value, "__name__", "")
        name = name if name.isidentifier() else "pointwise_loss"
    if not isinstance(name, str) or not name:
        raise TypeError(f"pointwise_loss: name must be a string, not {shown(name)}")
    return _kind_of(name)(name, given)


class UserLoss(Loss):
    """A loss that `pointwise_loss` makes.

    Parameters
    ----------
    name : str
        Its name.
    given : dict
        The functions, by argument of `pointwise_loss`.
    """

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        self._given = given
        super().__init__(_row(name, given), _ENGINE)

    def __reduce__(self) -> Any:
        return partial(pointwise_loss, **self._given, name=self.__name__), ()

    @property
    def has_second_derivative(self) -> bool:
        """Whether a second derivative was given."""
        return self._given["second_derivative"] is not None

    def _sibling(self, name: str) -> Loss:
        return losses[name]  # type: ignore[no-any-return]

    @property
    def _by_rows(self) -> bool:
        return True

    def _blocks(self, X: KernelData, n_outputs: int) -> Iterable[tuple[slice, Rows]]:
        return super()._blocks(X, n_outputs) if native is None else native_blocks(X, n_outputs)

    @property
    def _row_and_parameter(self) -> tuple[Any, float]:
        return self.row, 0.0

    @property
    def _identity(self) -> tuple[Any, ...]:
        return self.__name__, *self._given.values()

    def _about(self) -> str:
        return f"{self.row.summary}.\n\nSee `pullback.pointwise_loss`."

    @property
    def _response(self) -> Callable[..., Any] | None:
        response = self._given["response"]
        return response and _checked(self.__name__, "response", response)


@cache
def _kind_of(name: str) -> type[UserLoss]:
    return guarded_class(named_after(UserLoss, name))


def _row(name: str, given: dict[str, Any]) -> LossRow:
    """Return the row that a table would have for a loss."""

    def of_order(what: str) -> Callable[[Array, Array, float], Array]:
        function = given[what]
        if function is None:
            return lambda *_: _lacking(name, what)
        checked = _checked(name, what, function)
        return lambda z, y, _: checked(z, y)

    test, response = given["targets"], given["response"]
    targets = Targets("to be finite", np.isfinite) if test is None else _targets(name, test)

    def link(mean: Array) -> Array:
        if response is not None:
            return _inverse(_checked(name, "response", response), mean)
        return mean if targets.test(np.array(2.0)) else np.zeros_like(mean)

    return LossRow(
        name=name,
        summary=f"The loss {name!r} of functions of z and y",
        formula="value(z, y)",
        derivative_formula="derivative(z, y)",
        second_derivative_formula="second_derivative(z, y)",
        targets=targets,
        targets_at=lambda _: targets,
        value=of_order("value"),
        derivative=of_order("derivative"),
        second_derivative=of_order("second_derivative"),
        flat_at_zero=False,
        response=None,
        response_formula="response(z)",
        link=link,
        draw=lambda rng, z: z,
        kinks=(),
        source="the caller",
        parameter=None,
        note="",
        in_losses_alone=False,
    )


def _inverse(response: Callable[..., Array], mean: Array) -> Array:
    """Return predictions between -40 and 40 of mean responses, which rise: by bisection."""
    low, high = np.full(mean.shape, -40.0), np.full(mean.shape, 40.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = response(middle.ravel()).reshape(mean.shape) < mean
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high


def _lacking(name: str, what: str) -> Array:
    raise TypeError(f"{name}: needs a {what}, which pointwise_loss was not given")


def _targets(name: str, test: Callable[[Array], Any]) -> Targets:
    checked = _checked(name, "targets", test)
    return Targets("targets(y) to be true", lambda y: checked(y) != 0)


def _checked(name: str, what: str, function: Callable[..., Any]) -> Callable[..., Array]:
    """Return a function of arrays (rows, K) that calls the user's and checks its result."""

    def call(*arrays: Array) -> Array:
        whole = arrays[0].shape
        shape = whole[:1] if whole[1:] == (1,) else whole
        views = [array.reshape(shape) for array in arrays]
        for view in views:
            view.flags.writeable = False
        try:
            result = function(*views)
        except Exception as error:
            error.add_note(f"in {what} of the loss {name!r}, of predictions of shape {shape}")
            raise
        if not isinstance(result, np.ndarray | np.generic | int | float) or np.ma.isMA(result):
            raise TypeError(f"{name}: {what} returned {shown(result)}, needs an array")
        array = np.asarray(result)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name}: {what} returned dtype {array.dtype}, needs real numbers")
        if array.shape != shape and not is_weak(result):
            raise ValueError(f"{name}: {what} returned shape {array.shape}, takes {shape}")
        if is_weak(result):
            return np.full(whole, result, np.float64)
        return array.astype(np.float64, copy=False).reshape(whole)

    return call


# --- the engine -----------------------------------------------------------------------------------


def _loss_sums(row: LossRow, parameter: float, X: Any, y: Any, w: Any, *rest: Any) -> Any:
    blocks = None if native is None else native_blocks(X, w.shape[1])
    with sizes_kept(*(X if isinstance(X, tuple) else (X,)), y, *rest):
        return oracle.loss_sums(row, parameter, X, y, w, *rest, blocks=blocks)


def _loss_pointwise(row: LossRow, parameter: float, z: Array, y: Array, order: int) -> Array:
    with sizes_kept(z, y):
        return oracle.loss_pointwise(row, parameter, z, y, order)


@dataclass(frozen=True, eq=False)
class _Engine(Engine):
    """An engine that takes a row in the place of its name, without native methods."""

    def module(self, column: str) -> str:
        return BACKEND.module(column)

    @property
    def remark(self) -> str:
        return BACKEND.remark


_OF_ROWS: Final = {
    "loss_sums": _loss_sums,
    "loss_pointwise": _loss_pointwise,
    "loss_line": oracle.loss_line,
}
_ENGINE: Final = _Engine(
    is_native=False, kernels=SimpleNamespace(**vars(BACKEND.kernels) | _OF_ROWS)
)

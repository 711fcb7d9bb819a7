"""Losses of linear models in plain NumPy, and the argument checks the native ones share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.ops import kernel_dtype

__all__ = ["Arguments", "LinearLoss", "check_arguments", "like_bias", "relu_mse"]

Array: TypeAlias = npt.NDArray[Any]


class Arguments(NamedTuple):
    """A loss's arguments, checked; each array is float32 or float64 on its own."""

    X: Array  # (N, D)
    y: Array  # (N,)
    w: Array  # (D,)
    b: Array | None  # () or (1,)


def check_arguments(
    op: str, X: npt.ArrayLike, y: npt.ArrayLike, w: npt.ArrayLike, b: npt.ArrayLike | None
) -> Arguments:
    """Convert and check the arguments of a linear model's loss.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    X : array_like, shape (N, D), N > 0
        Data, one sample a row.
    y : array_like, shape (N,)
        Targets.
    w : array_like, shape (D,)
        Weights; integers become float64.
    b : array_like, shape () or (1,), or None
        Intercept; integers become float64.

    Returns
    -------
    Arguments
        Arrays of float32 or float64, copied only where the dtype had to change.

    Raises
    ------
    TypeError
        If a dtype has no kernel.
    ValueError
        If a shape does not fit.
    """
    X = _as_array(op, "X", X)
    y = _as_array(op, "y", y)
    w = _as_array(op, "w", w, parameter=True)
    b = None if b is None else _as_array(op, "b", b, parameter=True)
    if X.ndim != 2:
        raise ValueError(f"{op}: X has shape {X.shape}, needs two axes (samples, features)")
    n_samples, n_features = X.shape
    if n_samples == 0:
        raise ValueError(f"{op}: X has shape {X.shape}: a mean over no samples")
    if y.shape != (n_samples,):
        raise ValueError(f"{op}: y has shape {y.shape}, X of shape {X.shape} needs ({n_samples},)")
    if w.shape != (n_features,):
        raise ValueError(f"{op}: w has shape {w.shape}, X of shape {X.shape} needs ({n_features},)")
    if b is not None and b.shape not in ((), (1,)):
        raise ValueError(f"{op}: b has shape {b.shape}, needs () or (1,)")
    return Arguments(X, y, w, b)


def _as_array(op: str, name: str, argument: npt.ArrayLike, *, parameter: bool = False) -> Array:
    array = np.asarray(argument)
    dtype = kernel_dtype(op, name, array.dtype)
    if parameter and array.dtype.kind in "biu":  # an integer parameter is a number, not storage
        dtype = np.dtype(np.float64)
    return array.astype(dtype, copy=False)


def like_bias(gradient: float, b: npt.ArrayLike | None) -> Any:
    """Return the gradient of the intercept in the shape, dtype and kind of the intercept `b`.

    None for None, a float for a Python number, a NumPy scalar for one, else an array.
    """
    if b is None:
        return None
    if isinstance(b, int | float) and not isinstance(b, np.generic):
        return float(gradient)
    array = _as_array("like_bias", "b", b, parameter=True)
    with np.errstate(all="ignore"):
        like = np.full(array.shape, gradient, array.dtype)
    return like[()] if isinstance(b, np.generic) else like


class LinearLoss:
    """The mean over the samples of a pointwise loss of a linear model.

    With z = X w + b, the loss is ``1/N sum(loss(z_i, y_i))`` and its gradients are
    ``1/N X^T r`` and ``1/N sum(r_i)``, where r_i is the pointwise derivative by z_i. Everything
    accumulates in float64, whatever the dtypes; nothing is written to the arguments.

    Parameters
    ----------
    name : str
        The loss's name.
    summary : str
        What it computes.
    pointwise : callable
        ``pointwise(z, y) -> (loss, derivative by z)``, float64 arrays of shape (N,).
    """

    def __init__(
        self, name: str, summary: str, pointwise: Callable[[Array, Array], tuple[Array, Array]]
    ) -> None:
        self._pointwise = pointwise
        self.__name__ = self.__qualname__ = name
        self.__doc__ = summary
        self.__module__ = "pullback.reference"  # where pickle finds it, by name

    def __repr__(self) -> str:
        return f"<loss '{self.__name__}', NumPy twin>"

    def __reduce__(self) -> str:
        return self.__name__

    def value(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
    ) -> float:
        """Return the loss; arguments as for `value_and_grad`."""
        arguments = check_arguments(f"{self.__name__}.value", X, y, w, b)
        with np.errstate(all="ignore"):
            _, losses, _ = self._evaluate(arguments)
            return float(np.mean(losses))

    def value_and_grad(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
    ) -> tuple[float, tuple[Array, Any]]:
        """Return the loss and its gradients with respect to `w` and `b`.

        Parameters
        ----------
        X : array_like, shape (N, D), N > 0
            Data, one sample a row.
        y : array_like, shape (N,)
            Targets.
        w : array_like, shape (D,)
            Weights.
        b : array_like, shape () or (1,), or None
            Intercept; None for a model without.

        Returns
        -------
        loss : float
        (gw, gb) : tuple
            `gw` is an array with the shape and dtype of `w`; `gb` has the shape, dtype and kind of
            `b`: float, NumPy scalar, array or None. Integer parameters have float64 gradients.

        Raises
        ------
        TypeError
            If a dtype has no kernel (complex, object, ...).
        ValueError
            If a shape does not fit, or N = 0.
        """
        arguments = check_arguments(f"{self.__name__}.value_and_grad", X, y, w, b)
        with np.errstate(all="ignore"):
            X64, losses, slopes = self._evaluate(arguments)
            slopes = slopes / len(slopes)
            gw = (slopes @ X64).astype(arguments.w.dtype)
            return float(np.mean(losses)), (gw, like_bias(float(np.sum(slopes)), b))

    def _evaluate(self, arguments: Arguments) -> tuple[Array, Array, Array]:
        X, y, w = (a.astype(np.float64, copy=False) for a in arguments[:3])
        z = X @ w
        if arguments.b is not None:
            z = z + arguments.b.astype(np.float64)
        return X, *self._pointwise(z, y)


def _relu_squared_error(z: Array, y: Array) -> tuple[Array, Array]:
    inactive = z <= 0  # so that a NaN counts as active, and propagates
    error = y - np.where(inactive, 0.0, z)
    return error * error, np.where(inactive, 0.0, -2.0 * error)


relu_mse = LinearLoss(
    "relu_mse",
    """Mean squared error of a rectified linear model, ``1/N sum((y - max(0, X w + b))**2)``.

    Gradients: ``-2/N sum(e_i X_i)`` and ``-2/N sum(e_i)`` over the active samples, those with
    X_i w + b > 0, where ``e = y - max(0, X w + b)``. At 0 the rectifier's derivative is 0. The
    others enter with weight 0, so that an infinite X_ij of theirs gives NaN, as in the product.
    Source: Finding the Gradient of a Vector Function.
    """,
    _relu_squared_error,
)

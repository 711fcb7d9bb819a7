"""An objective along a line, from stored predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.config import guarded_class
from pullback.partial import tree_sum
from pullback.protocol import as_number
from pullback.registry import Hinted
from pullback.samples import Samples

if TYPE_CHECKING:
    from pullback.losses import Loss

__all__ = ["Line", "LinePart"]

Array: TypeAlias = npt.NDArray[Any]


class LinePart(NamedTuple):
    """Some samples, and their predictions along a line."""

    where: str  # their name in messages
    samples: Samples  # without X
    line: Array  # (N, 2 K): predictions at the start, and how they change


@guarded_class
class Line(Hinted):
    """An objective along a line: ``phi(t)`` is its value and slope at ``theta + t * direction``.

    `LinearObjective.line` returns it. It keeps the predictions at `theta` and their change along
    the direction, 2 N K numbers, and a copy of the targets and weights. Each step therefore takes
    O(N K) operations for any number of features, and later changes of the data have no effect.

    Parameters
    ----------
    loss : Loss
        The objective's.
    parts : sequence of LinePart
        All samples.
    divisor : float
        Sum of their weights.
    penalty : sequence of ndarray
        The coefficients w at the start and their change, then P w and its change; empty without a
        penalty.

    Examples
    --------
    >>> import numpy as np
    >>> import pullback as pb
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> objective = pb.LinearObjective(X, [0, 0, 1, 1], pb.logistic, l2=0.1)
    >>> theta = objective.initial()
    >>> phi = objective.line(theta, -objective.grad(theta))
    >>> value, slope = phi(0.5)
    >>> round(value, 4), round(slope, 4)
    (0.5981, -0.1319)
    >>> bool(np.isclose(value, objective.value(theta - 0.5 * objective.grad(theta))))
    True
    """

    def __init__(
        self,
        loss: Loss,
        parts: Sequence[LinePart],
        divisor: float,
        penalty: Sequence[Array],
    ) -> None:
        self._loss, self._parts, self._divisor, self._penalty = loss, parts, divisor, penalty

    def __repr__(self) -> str:
        n = sum(part.samples.n_samples for part in self._parts)
        return f"<Line of {self._loss!r}, N={n}>"

    def __call__(self, t: float) -> tuple[float, float]:
        """Return the objective at ``theta + t * direction``, and its derivative in t.

        Parameters
        ----------
        t : float
            The step.

        Returns
        -------
        value, slope : float

        Raises
        ------
        TypeError
            If `t` is no real number.
        ValueError
            If a target or weight is outside its domain; the message names the first such row.
        """
        t = as_number("Line", "t", t)
        value, slope = self._means(t, 1)
        if self._penalty:
            w, dw, pull, dpull = self._penalty
            with np.errstate(all="ignore"):
                pull = pull + t * dpull
                value += 0.5 * np.vdot(w + t * dw, pull)
                slope += np.vdot(dw, pull)
        return float(value), float(slope)

    def second(self, t: float) -> float:
        """Return the objective's second derivative in t, ``direction @ H @ direction``.

        Parameters
        ----------
        t : float
            The step.

        Raises
        ------
        TypeError, ValueError
            As a call does.
        """
        _, second = self._means(as_number("Line.second", "t", t), 2)
        if self._penalty:
            _, dw, _, dpull = self._penalty
            with np.errstate(all="ignore"):
                second += np.vdot(dw, dpull)
        return float(second)

    def _means(self, t: float, order: int) -> Array:
        with np.errstate(all="ignore"):
            sums = tree_sum(np.array(self._loss._along(*part, t, order)) for part in self._parts)
            means: Array = sums / self._divisor
        return means

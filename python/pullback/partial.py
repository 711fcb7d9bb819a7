"""Sums over some of the samples, which add up to the sums over all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from pullback.config import guarded_class
from pullback.protocol import is_weak, shown

__all__ = ["Kinds", "PartialSums", "Reduction", "divisor", "tree_sum"]

Array: TypeAlias = npt.NDArray[Any]
Reduction: TypeAlias = Literal["mean", "sum"]
T = TypeVar("T")


def divisor(op: str, reduction: str, weight: float, n_samples: int | None = None) -> float:
    """Return the divisor of the sums: 1, or the samples' weight.

    Raises
    ------
    ValueError
        If the reduction is unknown, or it is a mean and the weights sum to 0.
    """
    if not isinstance(reduction, str) or reduction not in ("mean", "sum"):
        raise ValueError(f"{op}: reduction must be 'mean' or 'sum', not {shown(reduction)}")
    if reduction == "sum":
        return 1.0
    if n_samples == 0:
        raise ValueError(f"{op}: a mean over no samples")
    if weight == 0:
        raise ValueError(f"{op}: sample_weight sums to 0: a mean over samples without weight")
    return weight


class Kinds(NamedTuple):
    """The form of the gradients of a model's parameters: shape of w, dtypes, and kind of b."""

    w_shape: tuple[int, ...]  # (D,) or (D, K)
    w_dtype: np.dtype[Any]
    b: Any  # None, a float, a NumPy scalar, or an array; its value does not matter

    @property
    def intercepts(self) -> str:
        """A description of b, for messages."""
        return "None" if self.b is None else f"of shape {np.shape(self.b)}"

    def deliver(self, gw: Array, gb: Array) -> tuple[Array, Any]:
        """Return float64 gradients (D, K) and (K,) in the form of the parameters."""
        with np.errstate(all="ignore"):
            by_w = gw.reshape(self.w_shape).astype(self.w_dtype)
            if self.b is None:
                return by_w, None
            shared = np.sum(gb) if np.size(self.b) < gb.size else gb
            by_b = np.asarray(shared, np.asarray(self.b).dtype).reshape(np.shape(self.b))
        if is_weak(self.b):
            return by_w, float(by_b)
        return by_w, by_b[()] if isinstance(self.b, np.generic) else by_b


@guarded_class
@dataclass(frozen=True, eq=False, slots=True, repr=False)
class PartialSums:
    """Sums of a loss and its gradient over some samples, in float64.

    A loss's `partial` returns them for a chunk of the data. ``first + second`` and ``sum(parts)``
    are the sums over all samples of the parts, and `finish` divides them. A data set that is too
    large for one array, or spread over processes, thus needs one small object from each part.

    Parameters
    ----------
    loss : float
        Sum of the losses, each times its sample's weight.
    gw : ndarray, shape (D, K), float64
        Sum of the gradients for the coefficients; K is 1 for a model with one output.
    gb : ndarray, shape (K,), float64
        Sum of the gradients for the intercepts.
    weight : float
        Sum of the samples' weights, or their number.
    n_samples : int
        Number of the samples.
    source : str
        The loss that was summed.
    kinds : tuple
        The form of the gradients: shape and dtype of the one for w, and an example of that for b.

    Examples
    --------
    >>> import numpy as np
    >>> import pullback as pb
    >>> X, y, w = np.eye(4), np.arange(4.0), np.ones(4)
    >>> parts = [pb.squared_error.partial(X[i : i + 2], y[i : i + 2], w) for i in (0, 2)]
    >>> loss, (gw, gb) = sum(parts).finish()
    >>> loss == pb.squared_error.value(X, y, w)
    True
    """

    loss: float
    gw: Array
    gb: Array
    weight: float
    n_samples: int
    source: str
    kinds: tuple[tuple[int, ...], np.dtype[Any], Any]

    def __repr__(self) -> str:
        loss, weight, n = f"{self.loss:.6g}", f"{self.weight:g}", self.n_samples
        return f"<PartialSums of {self.source}: N={n}, weight={weight}, sum of losses {loss}>"

    def __add__(self, other: Any) -> PartialSums:
        """Return the sums over both parts' samples; ValueError if their shapes differ."""
        if not isinstance(other, PartialSums):
            return NotImplemented
        mine, theirs = Kinds(*self.kinds), Kinds(*other.kinds)
        for what, one, two in (
            ("of", self.source, other.source),
            ("for w of shape", mine.w_shape, theirs.w_shape),
            ("for b", mine.intercepts, theirs.intercepts),
        ):
            if one != two:
                raise ValueError(f"PartialSums: cannot add sums {what} {one} and {two}")
        with np.errstate(all="ignore"):
            return PartialSums(
                self.loss + other.loss,
                self.gw + other.gw,
                self.gb + other.gb,
                self.weight + other.weight,
                self.n_samples + other.n_samples,
                self.source,
                self.kinds,
            )

    def __radd__(self, other: Any) -> PartialSums:
        """Return the sums unchanged if `other` is 0, with which `sum` starts."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def finish(self, reduction: Reduction = "mean") -> tuple[float, tuple[Array, Any]]:
        """Return the loss and its gradients, as `value_and_grad` over all the samples does.

        Parameters
        ----------
        reduction : {"mean", "sum"}
            Whether to divide by the samples' weight.

        Returns
        -------
        loss : float
        (gw, gb) : tuple
            In the shapes, dtypes and kinds of the first part's `w` and `b`.

        Raises
        ------
        ValueError
            If the reduction is unknown, or it is a mean and the weights sum to 0.
        """
        by = divisor("PartialSums.finish", reduction, self.weight, self.n_samples)
        with np.errstate(all="ignore"):
            gradients = Kinds(*self.kinds).deliver(self.gw / by, self.gb / by)
            return float(np.float64(self.loss) / by), gradients


def tree_sum(terms: Iterable[T]) -> T:
    """Return the sum of one or more `terms`, added in a binary tree from left to right.

    Rounding errors, and the number of sums kept, grow with the logarithm of the number of terms.
    """
    waiting: list[tuple[int, Any]] = []  # sums of 2**level terms, levels falling
    total: Any
    for total in terms:
        level = 0
        while waiting and waiting[-1][0] == level:
            total = waiting.pop()[1] + total
            level += 1
        waiting.append((level, total))
    total = waiting.pop()[1]
    while waiting:
        total = waiting.pop()[1] + total
    return total  # type: ignore[no-any-return]

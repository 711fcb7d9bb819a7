"""The findings of a check of derivatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Discrepancy", "GradCheck", "Index", "Kink"]

Array: TypeAlias = npt.NDArray[Any]
Index: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """One comparison of a given derivative with a measured one.

    Parameters
    ----------
    what : str
        What was given: ``"grad"``, ``"vjp"`` or ``"jvp"``.
    index : tuple of int or None
        The coordinate; None along a direction.
    direction : ndarray or None
        The direction, in the shape of x; None at a coordinate.
    given, measured : float
        The derivative along it. The measured value of an interval is its point nearest to `given`.
    error : float
        Their distance.
    tolerance : float
        The largest allowed error: the relative tolerance plus the measurement's estimated error.
    is_resolved : bool
        Whether the measurement's error is small enough to decide.
    is_kink : bool
        Whether one-sided derivatives differ.
    """

    what: str
    index: Index | None
    direction: Array | None
    given: float
    measured: float
    error: float
    tolerance: float
    is_resolved: bool = True
    is_kink: bool = False

    @property
    def verdict(self) -> str:
        """``"ok"``, ``"wrong"``, ``"kink"`` (allowed at this kink), or ``"unresolved"``."""
        if self.error > self.tolerance:
            return "wrong"
        if not self.is_resolved:
            return "unresolved"
        return "kink" if self.is_kink else "ok"

    @property
    def ok(self) -> bool:
        """Whether differences confirm the given derivative."""
        return self.verdict in ("ok", "kink")

    @property
    def excess(self) -> float:
        """The error relative to the tolerance."""
        if self.error <= 0 or math.isinf(self.tolerance):
            return 0.0
        return self.error / self.tolerance if self.tolerance > 0 else math.inf

    def __str__(self) -> str:
        if self.index is not None:
            where = f"x[{', '.join(map(str, self.index))}]" if self.index else "x"
        else:
            where = f"direction {np.array2string(np.asarray(self.direction), threshold=6)}"
        return (
            f"{self.what} at {where}: given {self.given:.10g}, measured {self.measured:.10g}, "
            f"error {self.error:.2g}, tolerance {self.tolerance:.2g}: {self.verdict}"
        )


@dataclass(frozen=True)
class Kink:
    """A coordinate whose one-sided derivatives differ.

    Parameters
    ----------
    index : tuple of int
        The coordinate.
    interval : tuple of float
        The one-sided derivatives, the smaller first.
    given : float
        The given derivative, accepted if it lies in the interval.
    """

    index: Index
    interval: tuple[float, float]
    given: float

    def __str__(self) -> str:
        where = ", ".join(map(str, self.index))
        low, high = self.interval
        return f"x[{where}] from {low:.6g} to {high:.6g}, given {self.given:.6g}"


@dataclass(frozen=True, eq=False, repr=False)
class GradCheck:
    """The findings of `check_grad`; true if it is `ok`.

    Parameters
    ----------
    ok : bool
        Whether no comparison is wrong, and at least one confirms its derivative.
    verdicts : ndarray of str
        In the shape of x: ``"ok"``, ``"wrong"``, ``"kink"`` (one-sided derivatives differ, and the
        given one lies between them), ``"unresolved"`` (the differences' error is too large,
        relative to the derivative, to decide), or ``"skipped"``, beyond `max_coordinates`.
    worst : Discrepancy
        The comparison with the largest error relative to its tolerance; a coordinate, if one is
        wrong.
    kinks : tuple of Kink
        The coordinates on a kink.
    is_linear : bool
        Whether the function's directional derivatives are linear in the direction, as far as
        partial derivatives exist. If not, it has no gradient, even if all partial derivatives do.
    unresolved : tuple of tuple of int
        Coordinates where differences cannot decide, because of rounding errors of a large value,
        noise, or a pole.
    failures : tuple of Discrepancy
        All that are wrong.
    coordinates, directions : int
        How many were compared.
    method : str
        ``"complex step"`` or ``"differences"``.
    dtype : dtype
        The dtype in which the function was evaluated.
    """

    ok: bool
    verdicts: Array
    worst: Discrepancy
    kinks: tuple[Kink, ...]
    is_linear: bool
    unresolved: tuple[Index, ...]
    failures: tuple[Discrepancy, ...]
    coordinates: int
    directions: int
    method: str
    dtype: np.dtype[Any]

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        lines = [
            f"check_grad: {'ok' if self.ok else 'FAILED'}; {self.coordinates} coordinates, "
            f"{self.directions} directions, {self.dtype}, {self.method}",
            f"  worst: {self.worst}",
        ]
        if not self.is_linear:
            lines.append("  directional derivatives are not linear: there is no gradient at x")
        if self.unresolved:
            lines.append(f"  not resolved by any step: x at {_listed(self.unresolved)}")
        if not self.ok and not self.failures and self.is_linear:
            lines.append("  nothing is resolved: step= or scale= may help, or f less f(x)")
        if len(self.failures) > 1:
            lines.append(f"  {len(self.failures)} comparisons fail")
        if self.kinks:
            lines.append(f"  kinks, one-sided derivatives: {_listed(self.kinks, '; ')}")
        return "\n".join(lines)


def _listed(items: tuple[Any, ...], separator: str = ", ", most: int = 8) -> str:
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(map(str, items[:most])) + more

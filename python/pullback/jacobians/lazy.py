"""Sums and products of Jacobians that stay what they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from pullback.jacobians.arguments import Array
from pullback.jacobians.association import evaluate, plan
from pullback.jacobians.base import Jacobian
from pullback.jacobians.diagonal import Diagonal

__all__ = ["Product", "Sum"]


class _Lazy(Jacobian):
    """What lazy Jacobians share: their parts."""

    __slots__ = ("_parts",)
    __module__ = "pullback.jacobians"

    _parts: tuple[Jacobian, ...]

    def __init__(self, *parts: Jacobian) -> None:
        name = type(self).__name__
        if not parts:
            raise ValueError(f"{name}: there is nothing to make it of")
        for part in parts:
            if not isinstance(part, Jacobian):
                raise TypeError(f"{name}: takes Jacobians, not {type(part).__name__}")
        # Associative: a Sum of Sums is one, and so is a Product of Products.
        self._parts = tuple(
            leaf
            for part in parts
            for leaf in (part._parts if isinstance(part, type(self)) else (part,))
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the operand, and so of a tangent."""
        return self._parts[-1].input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result, and so of a cotangent."""
        return self._parts[0].output_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements, float32 or float64."""
        return np.result_type(*(part.dtype for part in self._parts))

    @property
    def nbytes(self) -> int:
        """Bytes stored: those of the parts."""
        return sum(part.nbytes for part in self._parts)

    def __repr__(self) -> str:
        lines = [line for part in self._parts for line in repr(part).splitlines()]
        return "\n  ".join([super().__repr__()[:-1] + ":", *lines]) + ">"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._parts


class Sum(_Lazy):
    """A sum of Jacobians of one shape, each applied by itself.

    Parameters
    ----------
    *terms : Jacobian
        Of one operand's shape and one result's shape.

    Raises
    ------
    TypeError
        If a term is no Jacobian.
    ValueError
        If there is none, or the shapes differ.
    """

    __slots__ = ()
    __module__ = "pullback.jacobians"

    def __init__(self, *terms: Jacobian) -> None:
        super().__init__(*terms)
        for term in self._parts:
            check_sum(self._parts[0], term)

    @property
    def terms(self) -> tuple[Jacobian, ...]:
        """The terms."""
        return self._parts

    @property
    def T(self) -> Sum:
        """The transposed Jacobian, the sum of the transposed terms."""
        return Sum(*(term.T for term in self._parts))

    def flops(self, k: int = 1) -> int:
        """Return what the terms take, and the additions."""
        additions = (len(self._parts) - 1) * self.shape[0] * k
        return sum(term.flops(k) for term in self._parts) + additions

    def _times(self, tangents: Array) -> Array:
        total = self._parts[0]._times(tangents)
        for term in self._parts[1:]:
            total = total + term._times(tangents)
        return total

    def _scaled(self, c: Any) -> Sum:
        return Sum(*(c * term for term in self._parts))

    def _diagonal_elements(self) -> Array:
        elements: Array = sum(term._diagonal_elements() for term in self._parts)  # type: ignore[assignment]
        return elements

    def _dense(self) -> Array:
        first, *rest = self._parts
        dense = first._dense().astype(self.dtype)
        for term in rest:
            dense += term._dense()
        return dense


class Product(_Lazy):
    """A product of Jacobians, the Jacobian of maps that are applied one after the other.

    One vector meets the factors one by one, from its side. Several columns are multiplied in the
    order that takes the fewest operations, in which factors may be multiplied with each other
    first; see `pullback.jacobians.association`.

    Parameters
    ----------
    *factors : Jacobian
        Each one's operand has the shape of the next one's result.

    Raises
    ------
    TypeError
        If a factor is no Jacobian.
    ValueError
        If there is none, or the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from pullback.jacobians import Broadcast
    >>> J = Diagonal([[1.0, 2.0], [3.0, 4.0]]) @ Broadcast((2,), (2, 2))
    >>> J
    <Product 4x2 float64, operand shape (2,), result shape (2, 2):
      <Diagonal 4x4 float64, operand shape (2, 2)>
      <Broadcast 4x2 float32, operand shape (2,), result shape (2, 2)>>
    >>> np.ones((2, 2)) @ J
    array([4., 6.])
    """

    __slots__ = ()
    __module__ = "pullback.jacobians"

    def __init__(self, *factors: Jacobian) -> None:
        super().__init__(*factors)
        for left, right in zip(self._parts, self._parts[1:], strict=False):
            check_product(left, right)

    @property
    def factors(self) -> tuple[Jacobian, ...]:
        """The factors."""
        return self._parts

    @property
    def T(self) -> Product:
        """The transposed Jacobian, the product of the transposed factors in reverse order."""
        return Product(*(factor.T for factor in reversed(self._parts)))

    def flops(self, k: int = 1) -> int:
        """Return what the order takes that is chosen for k columns."""
        if k <= 1:
            return sum(factor.flops(k) for factor in self._parts)
        return plan(self._parts, k).flops

    def _times(self, tangents: Array) -> Array:
        if len(tangents) > 1:
            order = plan(self._parts, len(tangents))
            return evaluate(order, self._parts, tangents.T).T
        for factor in reversed(self._parts):
            tangents = factor._times(tangents)
        return tangents

    def _scaled(self, c: Any) -> Product | None:
        stored = [i for i, factor in enumerate(self._parts) if factor.nbytes]
        i = min(stored, key=lambda i: self._parts[i].nbytes, default=0)
        scaled = self._parts[i]._scaled(c)
        if scaled is None:
            return None
        return Product(*self._parts[:i], scaled, *self._parts[i + 1 :])

    def _diagonal_elements(self) -> Array:
        first, *rest = self._parts
        if not rest:
            return first._diagonal_elements()
        if isinstance(first, Diagonal):
            elements = Product(*rest)._diagonal_elements()
            return first.diagonal()[: elements.size] * elements
        if isinstance(self._parts[-1], Diagonal):
            return self.T._diagonal_elements()
        return super()._diagonal_elements()

    def _dense(self) -> Array:
        return evaluate(plan(self._parts), self._parts)


def check_product(left: Jacobian, right: Jacobian) -> None:
    """Raise ValueError unless the operand of `left` has the shape of the result of `right`."""
    if left.input_shape != right.output_shape:
        raise ValueError(
            f"{type(left).__name__} @ {type(right).__name__}: operand shape {left.input_shape} "
            f"and result shape {right.output_shape} differ"
        )


def check_sum(left: Jacobian, right: Jacobian) -> None:
    """Raise ValueError unless both have the same operand's and result's shapes."""
    for which in ("input", "output"):
        one, other = (getattr(J, f"{which}_shape") for J in (left, right))
        if one != other:
            raise ValueError(
                f"{type(left).__name__} + {type(right).__name__}: "
                f"{'operand' if which == 'input' else 'result'} shapes {one} and {other} differ"
            )

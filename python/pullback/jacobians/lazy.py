"""Lazy sums and products of Jacobians, which store their parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import numpy as np

from pullback import jacobians
from pullback.jacobians.arguments import Array, Scaling, add, multiply
from pullback.jacobians.association import Plan, evaluate, plan
from pullback.jacobians.base import Jacobian, Shaped
from pullback.jacobians.diagonal import Diagonal, Identity
from pullback.jacobians.recursion import Steps, run
from pullback.jacobians.reindexing import Reshape
from pullback.jacobians.sparse import Builder
from pullback.jacobians.terms import Terms

__all__ = ["Product", "Sum", "check_product", "check_sum"]

_LONGEST_REPR: Final = 1000  # lines
_FEW: Final = 8
_PLANNED: Final = 2**16  # operations that take as long as it takes to find an order for them
# Compared by type: isinstance takes several times as long for what has an abstract base.
_IDENTITIES: Final = frozenset((Identity, Reshape))
_FLOAT64: Final[np.dtype[Any]] = np.dtype(np.float64)


class _Lazy(Shaped):
    """The base of lazy Jacobians, which store their parts.

    A sum in a sum, or a product in a product, is stored unchanged, and flattened when its parts are
    needed. An operation therefore takes constant time and memory, for any number of parts. A
    transpose refers to its original and reads it in the other direction.
    """

    __slots__ = ("_entries", "_is_flat", "_nbytes", "_source")

    _is_leaf = False

    _entries: Any  # the parts, among which there may be some of the same kind
    _is_flat: bool  # whether these are few, none of them lazy: there is nothing to recurse into
    _nbytes: int | None  # None of what is flat
    _source: Any  # what this is the transposed one of, or None

    def __init__(self, *parts: Jacobian) -> None:
        name = type(self).__name__
        if not parts:
            raise ValueError(f"{name}: needs at least one Jacobian")
        for part in parts:
            if not isinstance(part, Jacobian):
                raise TypeError(f"{name}: takes Jacobians, not {type(part).__name__}")
        self._set(parts)

    def _set(self, parts: tuple[Jacobian, ...]) -> None:
        flat, dtype = len(parts) <= _FEW, parts[0]._dtype
        for part in parts:
            if part._dtype is not dtype and part._dtype != dtype:
                dtype = _FLOAT64
            if not part._is_leaf:
                if flat and any(map(self._holds, parts)):
                    opened = (p._entries if self._holds(p) else (p,) for p in parts)  # type: ignore[attr-defined]
                    self._set(tuple(entry for entries in opened for entry in entries))
                    return
                flat = False
        self._entries, self._source, self._dtype = parts, None, dtype
        self._input_shape, self._output_shape = parts[-1]._input_shape, parts[0]._output_shape
        self._is_flat = flat
        self._nbytes = None if flat else sum(part.nbytes for part in parts)

    def _holds(self, part: Jacobian) -> bool:
        """Tell whether a part is of the same kind and flat: its own parts can replace it."""
        return isinstance(part, self._kind()) and part._is_flat

    @staticmethod
    @abstractmethod
    def _kind() -> type[_Lazy]:
        """Return the type whose parts are flattened."""

    @property
    def _parts(self) -> tuple[Jacobian, ...]:
        """The parts, flattened: none of them is of the same kind."""
        if self._is_flat:
            return tuple(self._entries)
        kind = self._kind()
        parts: list[Jacobian] = []
        waiting: list[tuple[Jacobian, bool]] = [(self, False)]
        while waiting:
            J, transposed = waiting.pop()
            if not isinstance(J, kind):
                J, transposed = J.T if transposed else J, False
            if not isinstance(J, kind):
                parts.append(J)
            elif J._source is not None:
                waiting.append((J._source, not transposed))
            else:
                entries = [*J._entries]
                if not (transposed and kind is Product):
                    entries.reverse()  # for the first one to be popped
                waiting.extend((entry, transposed) for entry in entries)
        return tuple(parts)

    @property
    def nbytes(self) -> int:
        """Bytes stored: those of the parts."""
        own = self._nbytes
        return sum(part.nbytes for part in self._entries) if own is None else own

    def _transposed(self) -> Any:
        if self._source is not None:
            return self._source
        J = self._kind()._between(self._output_shape, self._input_shape, self._dtype)
        J._is_flat, J._nbytes = self._is_flat, self._nbytes
        if self._is_flat:
            J._entries, J._source = self._entries_transposed(), None
        else:
            J._entries, J._source = (), self
        return J

    @abstractmethod
    def _entries_transposed(self) -> tuple[Jacobian, ...]: ...

    @property
    def _identity(self) -> tuple[Jacobian, bool]:
        """The identity of a lazy Jacobian: an object, and whether this is its transpose."""
        return (self, False) if self._source is None else (self._source, True)

    def __repr__(self) -> str:
        lines: list[str] = []
        waiting: list[tuple[Jacobian, int, str]] = [(self, 0, "")]
        while waiting and len(lines) < _LONGEST_REPR:
            J, depth, end = waiting.pop()
            if isinstance(J, _Lazy):
                own = [super(_Lazy, J).__repr__()[:-1] + ":"]
                *others, last = J._parts
                waiting.append((last, depth + 1, end + ">"))
                waiting.extend((part, depth + 1, "") for part in reversed(others))
            else:
                own = (repr(J) + end).splitlines()
            lines += ["  " * depth + line for line in own]
        if waiting:
            lines.append("  ...>")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        records: list[Any] = []
        run(_record(self, records, {}))
        return _restore, tuple(records)

    def flops(self, k: int = 1) -> int:
        """Return the additions and multiplications that ``J @ V`` takes for k columns V."""
        return run(self._flops_steps(k, {}))

    def _times(self, tangents: Array) -> Array:
        return run(self._times_steps(tangents, {}))

    def _scaled(self, c: Any, by: Scaling) -> Jacobian | None:
        scaled: Jacobian | None = run(self._scaled_steps(c, by))
        return scaled

    def _diagonal_elements(self) -> Array:
        return run(self._diagonal_steps())

    def _dense(self) -> Array:
        return run(self._dense_steps({}))

    def _sparse(self, build: Builder) -> Any:
        return run(self._sparse_steps(build))

    def _flops_steps(self, k: int, known: dict[Any, int]) -> Steps[int]:
        key = *self._identity, k
        if key not in known:
            known[key] = yield self._counted(k, known)
        return known[key]

    @abstractmethod
    def _counted(self, k: int, known: dict[Any, int]) -> Steps[int]:
        """Return what `flops` does."""


class Sum(_Lazy):
    """A sum of Jacobians of one shape, which are applied one by one.

    Parameters
    ----------
    *terms : Jacobian
        Jacobians with the same operand shape and the same result shape.

    Raises
    ------
    TypeError
        If a term is not a Jacobian.
    ValueError
        If there are no terms, or the shapes differ.
    """

    __slots__ = ()

    def __init__(self, *terms: Jacobian) -> None:
        super().__init__(*terms)
        for term in terms:
            check_sum(terms[0], term)

    @staticmethod
    def _merged(terms: Terms, like: Jacobian) -> Sum:
        """Return the sum of two terms or more, of the shapes of another Jacobian."""
        J = Sum._between(like.input_shape, like.output_shape, terms.dtype)
        J._entries, J._source = terms, None
        J._is_flat, J._nbytes = False, terms.nbytes
        return J

    def _entries_transposed(self) -> tuple[Jacobian, ...]:
        return tuple(term.T for term in self._entries)

    @property
    def _merged_terms(self) -> Terms | None:
        """The terms if like ones are merged, not to be added to; else None."""
        return self._entries if isinstance(self._entries, Terms) else None

    @staticmethod
    def _kind() -> type[Sum]:
        return Sum

    @property
    def terms(self) -> tuple[Jacobian, ...]:
        """The terms."""
        return self._parts

    @property
    def T(self) -> Sum:
        """The transposed Jacobian, the sum of the transposed terms."""
        transposed: Sum = self._transposed()
        return transposed

    def _counted(self, k: int, known: dict[Any, int]) -> Steps[int]:
        terms = self._parts
        count = (len(terms) - 1) * self.shape[0] * k  # the additions
        for term in terms:
            count += yield term._flops_steps(k, known)
        return count

    def _times_steps(self, tangents: Array, known: dict[Any, int]) -> Steps[Array]:
        return self._added(lambda term: term._times_steps(tangents, known))

    def _diagonal_steps(self) -> Steps[Array]:
        return self._added(lambda term: term._diagonal_steps())

    def _added(self, needed: Callable[[Jacobian], Any]) -> Steps[Array]:
        first, *rest = self._parts
        total: Array = yield needed(first)
        for term in rest:
            more = yield needed(term)
            total = add(total, more)
        return total

    def _sparse_steps(self, build: Builder) -> Steps[Any]:
        terms = []
        for term in self._parts:
            matrix = yield term._sparse_steps(build)
            if matrix is None:
                return None
            terms.append(matrix)
        return build.total(terms)

    def _scaled_steps(self, c: Any, by: Scaling) -> Steps[Sum]:
        terms = []
        for term in self._parts:
            scaled = yield jacobians.algebra.scaling(c, term, by)
            terms.append(scaled)
        return Sum(*terms)

    def _dense_steps(self, known: dict[Any, int]) -> Steps[Array]:
        first, *rest = self._parts
        dense: Array = (yield first._dense_steps(known)).astype(self.dtype)
        for term in rest:
            more = yield term._dense_steps(known)
            add(dense, more, out=dense)
        return dense


class Product(_Lazy):
    """A product of Jacobians: the Jacobian of maps that are applied one after the other.

    A single vector is multiplied by one factor after the other, from its side. Several columns are
    multiplied in an order with few operations, where factors may be multiplied with each other
    first; see `pullback.jacobians.association`.

    Parameters
    ----------
    *factors : Jacobian
        Jacobians, where each one's operand has the shape of the next one's result.

    Raises
    ------
    TypeError
        If a factor is not a Jacobian.
    ValueError
        If there are no factors, or the shapes do not fit.

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

    __slots__ = ("_is_merged",)

    _is_merged: bool  # whether no two neighbours have a rule

    def __init__(self, *factors: Jacobian) -> None:
        super().__init__(*factors)
        self._is_merged = False
        for left, right in pairwise(factors):
            check_product(left, right)

    @staticmethod
    def _merged(*factors: Jacobian) -> Product:
        """Return the product of factors where no two neighbours have a rule."""
        J = Product.__new__(Product)
        J._set(factors)
        J._is_merged = True
        return J

    @staticmethod
    def _of(*factors: Jacobian) -> Product:
        """Return the product of a few of one dtype, none of them lazy, no two with a rule."""
        J: Product = object.__new__(Product)
        J._entries, J._source, J._nbytes = factors, None, None
        J._is_flat = J._is_merged = True
        first, last = factors[0], factors[-1]
        J._dtype = first._dtype
        J._input_shape, J._output_shape = last._input_shape, first._output_shape
        return J

    def _entries_transposed(self) -> tuple[Jacobian, ...]:
        return tuple(factor.T for factor in reversed(self._entries))

    def _opened(self) -> tuple[Jacobian, ...]:
        """Return two factors or more; some may be products."""
        if self._source is None:
            return tuple(self._entries)
        return tuple(entry.T for entry in reversed(self._source._opened()))

    @staticmethod
    def _kind() -> type[Product]:
        return Product

    @property
    def factors(self) -> tuple[Jacobian, ...]:
        """The factors."""
        return self._parts

    @property
    def T(self) -> Product:
        """The transposed Jacobian, the product of the transposed factors in reverse order."""
        transposed: Product = self._transposed()
        transposed._is_merged = self._is_merged  # what has a rule has one when it is transposed
        return transposed

    def _counted(self, k: int, known: dict[Any, int]) -> Steps[int]:
        factors = self._parts
        if k > 1:
            order: Plan = yield plan(factors, k, known)
            return order.flops
        count = 0
        for factor in factors:
            count += yield factor._flops_steps(k, known)
        return count

    def _is_cheap(self, k: int) -> bool:
        """Tell whether k columns times few factors, one by one, take less time than a plan."""
        if not self._is_flat:
            return False
        flops = 0
        for factor in self._entries:
            flops += factor.flops(k)
        return flops <= _PLANNED

    def _pull(self, cotangents: Array) -> Array:
        k = len(cotangents)
        if not (self._is_flat if k == 1 else self._is_cheap(k)):
            return super()._pull(cotangents)
        for factor in self._entries:
            cotangents = factor._pull(cotangents)
        return cotangents

    def _times_steps(self, tangents: Array, known: dict[Any, int]) -> Steps[Array]:
        factors, k = self._parts, len(tangents)
        if k > 1 and not self._is_cheap(k):
            order = yield plan(factors, k, known)
            product: Array = yield evaluate(order, factors, tangents.T, known)
            return product.T
        for factor in reversed(factors):
            tangents = yield factor._times_steps(tangents, known)
        return tangents

    def _sparse_steps(self, build: Builder) -> Steps[Any]:
        few_rows = self.shape[0] <= self.shape[1]
        product = None
        for factor in self._parts[:: 1 if few_rows else -1]:
            matrix = yield factor._sparse_steps(build)
            if matrix is None:
                return None
            if product is None:
                product = matrix
            elif few_rows:
                product = build.product(product, matrix)
            else:
                product = build.product(matrix, product)
        return product

    def _scaled_steps(self, c: Any, by: Scaling) -> Steps[Product | None]:
        factors = self._parts
        stored = [i for i, factor in enumerate(factors) if factor.nbytes]
        i = min(stored, key=lambda i: factors[i].nbytes, default=0)
        scaled = yield factors[i]._scaled_steps(c, by)
        if scaled is None:
            return None
        J = Product(*factors[:i], scaled, *factors[i + 1 :])
        J._is_merged = self._is_merged and type(scaled) is type(factors[i])
        return J

    def _core(self) -> tuple[Jacobian, list[Jacobian]]:
        """Return the factor between diagonal ones, and those that scale its diagonal."""
        # Diagonal factors on either side scale the elements of what stands between them. To
        # present an array in another shape is the identity.
        parts = self._parts
        factors = [part for part in parts if type(part) not in _IDENTITIES] or [*parts[:1]]
        begin, end = 0, len(factors)
        while begin < end - 1 and type(factors[begin]) is Diagonal:
            begin += 1
        while begin < end - 1 and type(factors[end - 1]) is Diagonal:
            end -= 1
        single = begin == end - 1
        inner: Jacobian = factors[begin] if single else Product._merged(*factors[begin:end])
        return inner.T if end < len(factors) else inner, factors[end:] + factors[:begin][::-1]

    def _diagonal_elements(self) -> Array:
        inner, scales = self._core()
        if not inner._is_leaf:
            return super()._diagonal_elements()
        return self._scaled_elements(inner._diagonal_elements(), scales)

    def _diagonal_steps(self) -> Steps[Array]:
        inner, scales = self._core()
        if isinstance(inner, Product):
            elements: Array = Jacobian._diagonal_elements(inner)
        else:
            elements = yield inner._diagonal_steps()
        return self._scaled_elements(elements, scales)

    def _scaled_elements(self, elements: Array, scales: list[Jacobian]) -> Array:
        for scale in scales:
            elements = multiply(scale.diagonal()[: elements.size], elements)
        return elements if elements.dtype is self._dtype else elements.astype(self._dtype)

    def _dense_steps(self, known: dict[Any, int]) -> Steps[Array]:
        factors = self._parts
        if not self._is_cheap(self.shape[1]):
            order = yield plan(factors, None, known)
            dense: Array = yield evaluate(order, factors, None, known)
            return dense
        dense = yield factors[-1]._dense_steps(known)
        for factor in factors[-2::-1]:
            rows = yield factor._times_steps(dense.T, known)
            dense = rows.T
        return dense


# --- pickles --------------------------------------------------------------------------------------


def _record(
    J: Jacobian, records: list[Any], numbers: dict[tuple[Jacobian, bool], int]
) -> Steps[int]:
    """Append the records from which `_restore` makes a Jacobian, parts first; return its number.

    The list is flat, because pickles and copies of nested parts would recurse too deeply.
    """
    record: Any = J
    if isinstance(J, _Lazy):
        if J._identity in numbers:
            return numbers[J._identity]
        own = []
        for part in J._parts:
            number = yield _record(part, records, numbers)
            own.append(number)
        record = type(J), tuple(own)
        numbers[J._identity] = len(records)
    records.append(record)
    return len(records) - 1


def _restore(*records: Any) -> Jacobian:
    made: list[Jacobian] = []
    for record in records:
        if isinstance(record, Jacobian):
            made.append(record)
        else:
            kind, own = record
            made.append(kind(*(made[number] for number in own)))
    return made[-1]


# --- shapes ---------------------------------------------------------------------------------------


def check_product(left: Jacobian, right: Jacobian) -> None:
    """Raise ValueError unless the operand of `left` has the shape of the result of `right`."""
    if left._input_shape != right._output_shape:
        one, other = _parts_of(left, Product)[-1], _parts_of(right, Product)[0]
        raise ValueError(
            f"{type(one).__name__} @ {type(other).__name__}: operand shape {left.input_shape} "
            f"and result shape {right.output_shape} differ"
        )


def check_sum(left: Jacobian, right: Jacobian) -> None:
    """Raise ValueError unless both have the same operand's and result's shapes."""
    for which in ("input", "output"):
        one, other = (getattr(J, f"{which}_shape") for J in (left, right))
        if one != other:
            left, right = (_parts_of(J, Sum)[0] for J in (left, right))
            raise ValueError(
                f"{type(left).__name__} + {type(right).__name__}: "
                f"{'operand' if which == 'input' else 'result'} shapes {one} and {other} differ"
            )


def _parts_of(J: Jacobian, kind: type[_Lazy]) -> tuple[Jacobian, ...]:
    return J._parts if isinstance(J, kind) else (J,)

"""The terms of a sum, with like terms merged; a term is added in constant time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from pullback.jacobians.base import Jacobian

__all__ = ["Terms"]

# Terms behind the first one of a kind: the rest of them, alike or None, and one with its place.
_Others: TypeAlias = tuple[Any, int, Jacobian]


class _Group(NamedTuple):
    """Terms of one kind: the first one, its place, and the others."""

    place: int
    term: Jacobian
    others: _Others | None = None
    is_sorted: bool = True  # whether the others come in the order of their places

    def joined_by(self, place: int, term: Jacobian) -> _Group:
        if place < self.place:
            return _Group(place, term, (self.others, self.place, self.term), self.is_sorted)
        return _Group(self.place, self.term, (self.others, place, term), self.others is None)

    def rest(self) -> _Group | None:
        """Return the group without its first term."""
        others = self.others
        if not self.is_sorted:
            falling = sorted(_listed(others), key=lambda other: other[0], reverse=True)
            others = None
            for place, term in falling:
                others = others, place, term
        if others is None:
            return None
        rest, place, term = others
        return _Group(place, term, rest)


def _listed(others: _Others | None) -> Iterator[tuple[int, Jacobian]]:
    while others is not None:
        others, place, term = others
        yield place, term


class Terms:
    """Terms of which no two can be merged. A copy shares them and takes constant time.

    Parameters
    ----------
    merge : callable
        Takes two Jacobians and returns their sum, or None if they cannot be merged.
    kind : callable
        Returns a term's key. Terms with equal keys can be merged with the same terms.
    """

    __slots__ = ("_groups", "_high", "_kind", "_low", "_merge", "count", "dtype", "nbytes")

    def __init__(
        self,
        merge: Callable[[Jacobian, Jacobian], Jacobian | None],
        kind: Callable[[Jacobian], Hashable],
    ) -> None:
        self._merge, self._kind = merge, kind
        self._groups: dict[Hashable, _Group] = {}
        self._low = self._high = 0  # places taken: from low to high - 1
        self.count = self.nbytes = 0
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def copy(self) -> Terms:
        """Return terms to which others can be added independently."""
        other = Terms(self._merge, self._kind)
        other._groups = self._groups.copy()
        other._low, other._high = self._low, self._high
        other.count, other.nbytes, other.dtype = self.count, self.nbytes, self.dtype
        return other

    def append(self, term: Jacobian) -> None:
        """Add a term at the end, merged with every term that it can be merged with in turn."""
        self._insert(term, self._high)
        self._high += 1

    def prepend(self, terms: Terms) -> None:
        """Add terms in front; a merged term takes the place of the last one merged into it."""
        self._low -= terms.count
        for place, term in enumerate(terms, self._low):
            self._insert(term, place, takes_place=True)

    def _insert(self, term: Jacobian, place: int, takes_place: bool = False) -> None:
        if term.dtype != self.dtype:
            self.dtype = np.result_type(self.dtype, term.dtype)
        while (found := self._mergeable(term)) is not None:
            other, term = found
            if takes_place:
                place = other
        kind = self._kind(term)
        group = self._groups.get(kind)
        own = _Group(place, term) if group is None else group.joined_by(place, term)
        self._groups[kind] = own
        self.count += 1
        self.nbytes += term.nbytes

    def _mergeable(self, term: Jacobian) -> tuple[int, Jacobian] | None:
        """Take out the first term with which `term` can be merged; return its place and the sum."""
        for kind, group in sorted(self._groups.items(), key=lambda item: item[1].place):
            merged = self._merge(group.term, term)
            if merged is None:
                continue
            rest = group.rest()
            if rest is None:
                del self._groups[kind]
            else:
                self._groups[kind] = rest
            self.count -= 1
            self.nbytes -= group.term.nbytes
            return group.place, merged
        return None

    def __iter__(self) -> Iterator[Jacobian]:
        every = [
            other
            for group in self._groups.values()
            for other in ((group.place, group.term), *_listed(group.others))
        ]
        every.sort(key=lambda other: other[0])
        for _, term in every:
            yield term

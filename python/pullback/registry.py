"""Primitives by name, each made when it is first asked for, so that an import makes none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

__all__ = ["Hinted", "Registry", "attributes"]


class Registry(Mapping[str, Any]):
    """A mapping whose values are made when they are first asked for.

    Parameters
    ----------
    names : iterable of str
        The keys, in order.
    make : callable
        ``make(name)``, a value.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], Any]) -> None:
        self._names, self._make = dict.fromkeys(names), make
        self._made: dict[str, Any] = {}

    @classmethod
    def joined(cls, *parts: Mapping[str, Any]) -> Registry:
        """Return one registry of the values of several mappings."""
        place = {name: part for part in parts for name in part}
        return cls(place, lambda name: place[name][name])

    def __getitem__(self, name: str) -> Any:
        made = self._made.get(name)
        if made is None:
            if name not in self._names:
                raise KeyError(name)
            made = self._made.setdefault(name, self._make(name))  # the first of two threads'
        return made

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __reduce__(self) -> Any:
        """Pickle the values, each of which pickles by its name."""
        return Registry.joined, (dict(self),)

    def __repr__(self) -> str:
        return f"<{len(self)} primitives: {', '.join(self)}>"


class Hinted:
    """A class whose error about a missing attribute suggests an existing one."""

    __slots__ = ()

    if not TYPE_CHECKING:  # to which it would have every attribute

        def __getattr__(self, name: str) -> NoReturn:
            hint = ""
            if not name.startswith("_"):
                from pullback.hints import about_attribute  # noqa: PLC0415  as below

                hint = about_attribute(name, [own for own in dir(self) if own[0] != "_"])
            message = f"{type(self).__name__!r} object has no attribute {name!r}{hint}"
            raise AttributeError(message, name=name)


def attributes(scope: dict[str, Any], registry: Registry) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for the module with the globals `scope` that reads a registry."""

    def getattr_(name: str) -> Any:
        if name not in registry:
            hint = ""
            if not name.startswith("_"):
                from pullback.hints import about_name  # noqa: PLC0415  only of what is not there

                hint = about_name(name, (*registry, *scope["__all__"]))
            # With a name and no object, Python adds no guess of its own.
            message = f"module {scope['__name__']!r} has no attribute {name!r}{hint}"
            raise AttributeError(message, name=name)
        return scope.setdefault(name, registry[name])

    return getattr_

"""Recursion that is deeper than Python's own."""

from __future__ import annotations

from collections.abc import Generator
from types import GeneratorType
from typing import Any, TypeAlias, TypeVar

__all__ = ["Steps", "run"]

T = TypeVar("T")

# A recursive function as a generator: it yields the steps to a result that it needs, or the result
# itself, is sent that result, and returns its own.
Steps: TypeAlias = Generator[Any, Any, T]


def run(steps: Steps[T]) -> T:
    """Return the result of steps, in which others may be nested to any depth."""
    stack: list[Steps[Any]] = [steps]
    result: Any = None
    while stack:
        try:
            needed = stack[-1].send(result)
        except StopIteration as done:
            stack.pop()
            result = done.value
        else:
            if isinstance(needed, GeneratorType):
                stack.append(needed)
                result = None
            else:
                result = needed
    return result  # type: ignore[no-any-return]

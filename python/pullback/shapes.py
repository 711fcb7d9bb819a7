"""Broadcasting of shapes with up to 64 axes; NumPy's own functions stop at 32."""

from __future__ import annotations

from itertools import zip_longest
from typing import Final, TypeAlias

__all__ = ["MOST_AXES", "broadcast_shapes", "check_axes", "with_room"]

Shape: TypeAlias = tuple[int, ...]

MOST_AXES: Final = 64  # of an array in NumPy 2


def broadcast_shapes(*shapes: Shape) -> Shape:
    """Return the shape that shapes broadcast to; ValueError if they do not broadcast."""
    if len(set(shapes)) == 1:
        return shapes[0]
    extents = []
    for column in zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1):
        extent = 1
        for n in column:
            if n != 1:
                if extent not in (1, n):
                    raise ValueError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
                extent = n
        extents.append(extent)
    return tuple(extents[::-1])


def with_room(more: int, *shapes: Shape) -> tuple[Shape, ...]:
    """Return shapes that broadcast alike, with room for `more` axes below the limit of an array.

    Shapes with enough room are returned unchanged. In others, axes of extent 1 are dropped, and two
    neighbouring axes are merged if each shape either has both or repeats along both.
    """
    if max(map(len, shapes)) + more <= MOST_AXES:
        return shapes
    whole = broadcast_shapes(*shapes)
    padded = [(1,) * (len(whole) - len(shape)) + shape for shape in shapes]
    axes: list[list[int]] = []  # the extents in each of the shapes
    before: list[bool] = []
    for n, *own in zip(whole, *padded, strict=True):
        if n == 1:
            continue
        repeats = [m != n for m in own]
        if repeats == before:
            axes[-1] = [m * k for m, k in zip(axes[-1], own, strict=True)]
        else:
            axes.append(own)
        before = repeats
    return tuple(tuple(axis[k] for axis in axes) for k in range(len(shapes)))


def check_axes(op: str, shape: Shape) -> None:
    """Raise ValueError if a result has more axes than an array may have."""
    if len(shape) > MOST_AXES:
        raise ValueError(
            f"{op}: the result has {len(shape)} axes, and an array no more than {MOST_AXES}"
        )

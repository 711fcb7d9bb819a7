"""What is timed: every primitive x method x dtype x size, built from the registry.

A primitive without a case here fails the test suite, so a new row is timed the day it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pullback as pb
from pullback.tables.elementwise import OPS, OpRow
from pullback.tables.losses import LOSSES, LossRow
from pullback.tables.reductions import REDUCTIONS, ReductionRow

SIZES = (16, 1000, 100_000)
DTYPES = ("float32", "float64")

# What each method takes after the operands, per number of operands.
ELEMENTWISE_METHODS = {
    "value": lambda nin: 0,
    "derivative": lambda nin: 0,
    "value_and_derivative": lambda nin: 0,
    "vjp": lambda nin: 1,
    "jvp": lambda nin: nin,
    "jacobian": lambda nin: 0,
}
MATMUL_SHAPES = (
    ((4, 4), (4, 4)),
    ((64, 64), (64, 64)),
    ((256, 256), (256, 256)),
    ((10_000, 10), (10, 8)),
    ((32, 8, 8), (32, 8, 8)),
    ((1000, 100), (100,)),
)
FORM_SIZES = ((16, 16), (500, 400))
LOSS_METHODS = (
    "value",
    "grad",
    "value_and_grad",
    "hvp",
    "curvature",
    "partial",
    "pointwise",
    "pointwise.derivative",
    "pointwise.value_and_derivative",
    "pointwise.second_derivative",
    "pointwise.vjp",
)
REDUCTION_SHAPES = ((16,), (200, 300), (100_000,))
LOSS_SHAPES = ((100, 10), (1000, 20), (10_000, 100))


class Case(NamedTuple):
    """One call to time, and its twin to check it against."""

    primitive: str
    method: str
    variant: str  # dtype and size
    build: Callable[[], tuple[Any, ...]]  # the arguments

    @property
    def name(self) -> str:
        """The test id."""
        return f"{self.primitive}.{self.method}-{self.variant}"

    def _of(self, primitives: Any) -> Callable[..., Any]:
        primitive = getattr(primitives, self.primitive)
        bare = self.method == "value" and not hasattr(primitive, "value")
        return primitive if bare else attrgetter(self.method)(primitive)

    @property
    def function(self) -> Callable[..., Any]:
        """What is timed."""
        return self._of(pb)

    @property
    def twin(self) -> Callable[..., Any]:
        """What computes the same in NumPy."""
        return self._of(pb.reference)


def elementwise_arguments(row: OpRow, count: int, dtype: str, n: int) -> tuple[Any, ...]:
    """Return operands inside the operation's domain, and (co)tangents, `count` arrays in all."""
    rng = np.random.default_rng(count)
    ranges = [domain.ordinary for domain in row.domain] + [(0.1, 3.0)] * (count - row.nin)
    return tuple(rng.uniform(*ends, n).astype(dtype) for ends in ranges)


def matmul_arguments(method: str, shapes: Any, dtype: str) -> tuple[Any, ...]:
    """Return A, B and the cotangent or the tangents."""
    rng = np.random.default_rng(0)
    A, B = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    if method == "vjp":
        return A, B, np.matmul(A, B)
    return (A, B, 2 * A, 3 * B) if method == "jvp" else (A, B)


def linear_arguments(method: str, shapes: Any, dtype: str) -> tuple[Any, ...]:
    """Return X, W, b and the cotangent or the tangents, where X is a matrix."""
    X, W, *more = matmul_arguments(method, shapes, dtype)
    b = np.linspace(-1, 1, W.shape[-1]).astype(dtype)
    return (X, W, b, *more, b) if method == "jvp" else (X, W, b, *more)


def form_arguments(name: str, method: str, m: int, n: int, dtype: str) -> tuple[Any, ...]:
    """Return the operands of a form of one vector or two, and the cotangent or the tangents."""
    rng = np.random.default_rng(m)
    shapes = ((m,), (m, m)) if name == "quadratic_form" else ((m,), (m, n), (n,))
    operands = tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)
    if method == "vjp":
        return (*operands, np.ones((), dtype))
    return (*operands, *(2 * a for a in operands)) if method == "jvp" else operands


def loss_arguments(row: LossRow, method: str, n: int, d: int, dtype: str) -> tuple[Any, ...]:
    """Return X, y, w, b, and a direction; or predictions and targets, and a cotangent."""
    X, y, w, b = row.example(n, n, d, dtype)
    if not method.startswith("pointwise"):
        return (X, y, w, b, (2 * w, 3 * b)) if method == "hvp" else (X, y, w, b)
    z = X @ w + np.asarray(b, dtype)
    return (z, y, np.ones(n, dtype)) if method == "pointwise.vjp" else (z, y)


def reduction_arguments(
    row: ReductionRow, method: str, shape: tuple[int, ...], dtype: str
) -> tuple[Any, ...]:
    """Return operands, the exponent of a norm, and the cotangent or the tangents."""
    rng = np.random.default_rng(0)
    operands = tuple(rng.uniform(0.5, 1.5, shape).astype(dtype) for _ in row.operands)
    bound = (3.0,) if row.parameter is not None and row.parameter.default is None else ()
    other = tuple(rng.uniform(0.5, 1.5, shape).astype(dtype) for _ in row.operands)
    if method == "vjp":
        return (*operands, *bound, *(other if row.is_map else (np.ones((), dtype),)))
    return (*operands, *bound, *other) if method == "jvp" else (*operands, *bound)


def _reduction_cases() -> Iterator[Case]:
    for name, row in REDUCTIONS.items():
        methods = ("value", "vjp", "jvp", "jacobian")
        for method in methods if row.is_map else (*methods, "grad", "value_and_grad"):
            for shape in REDUCTION_SHAPES:
                for dtype in DTYPES:
                    yield Case(
                        name,
                        method,
                        f"{dtype}-{'x'.join(map(str, shape))}",
                        lambda r=row, m=method, s=shape, d=dtype: reduction_arguments(r, m, s, d),
                    )


def _cases() -> Iterator[Case]:
    for op, row in OPS.items():
        for method, extra in ELEMENTWISE_METHODS.items():
            count = row.nin + extra(row.nin)
            for dtype in DTYPES:
                for n in SIZES:
                    yield Case(
                        op,
                        method,
                        f"{dtype}-{n}",
                        lambda r=row, c=count, d=dtype, n=n: elementwise_arguments(r, c, d, n),
                    )
    yield from _product_cases()
    yield from _reduction_cases()
    for loss, row in LOSSES.items():
        for method in LOSS_METHODS:
            for n, d in LOSS_SHAPES:
                for dtype in DTYPES:
                    yield Case(
                        loss,
                        method,
                        f"{dtype}-{n}x{d}",
                        lambda r=row, m=method, n=n, d=d, t=dtype: loss_arguments(r, m, n, d, t),
                    )


def _product_cases() -> Iterator[Case]:
    for name, arguments, methods in (
        ("matmul", matmul_arguments, ("value", "vjp", "jvp", "jacobian")),
        ("linear", linear_arguments, ("value", "vjp", "jvp", "jacobian")),
    ):
        for method in methods:
            for shapes in MATMUL_SHAPES:
                if name == "linear" and len(shapes[1]) != 2:  # weights are a matrix
                    continue
                label = "@".join("x".join(map(str, shape)) for shape in shapes)
                for dtype in DTYPES:
                    yield Case(
                        name,
                        method,
                        f"{dtype}-{label}",
                        lambda f=arguments, m=method, s=shapes, d=dtype: f(m, s, d),
                    )
    for name in ("quadratic_form", "bilinear_form"):
        for method in ("value", "vjp", "jvp", "value_and_grad", "jacobian"):
            for m, n in FORM_SIZES:
                for dtype in DTYPES:
                    yield Case(
                        name,
                        method,
                        f"{dtype}-{m}x{n}",
                        lambda f=name, k=method, m=m, n=n, d=dtype: form_arguments(f, k, m, n, d),
                    )


CASES = tuple(_cases())

"""The arguments of the methods of each family of primitives, for commands that call all of them.

A primitive's family follows from its methods. The tables have operands, parameters and targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import numpy as np
from pullback.elementwise import METHODS as ELEMENTWISE
from pullback.tables.losses import LOSSES
from pullback.tables.products import PRODUCTS as TABLE
from pullback.tables.reductions import REDUCTIONS
from pullback.tables.selections import SELECTIONS

# Products have signatures of their own.
PRODUCTS = {name: tuple(row.operands) for name, row in TABLE.items()}
# Of reductions: how many operands, if not one; what stands behind them; keywords of their own.
REDUCTION_OPERANDS = {
    name: len(row.operands) for name, row in REDUCTIONS.items() if len(row.operands) > 1
}
BOUND = {name: (3.0,) for name, row in REDUCTIONS.items() if len(row.leading) > len(row.operands)}
PARAMETERS: dict[str, tuple[dict[str, float], ...]] = {
    "variance": ({"ddof": 1}, {"ddof": 0.5}, {"ddof": 2}),
    "layer_norm": ({"eps": 0.0}, {"eps": 0.5}),
    "rms_norm": ({"eps": 0.0}, {"eps": 0.5}),
    **{name: ({"reverse": True},) for name, row in REDUCTIONS.items() if row.ordered},
}
EXPONENTS = (1, 2, 0.5, 1.5, 2.5, 3, 4.0, 100.0, np.inf, 0)  # of the norm; the last is refused
# Of losses: what targets they take, if not any number, and what they are called with.
_KINDS = {
    "in [0, 1]": "bits",
    "finite and not negative": "counts",
    "finite and positive": "positive",
    "-1 or 1": "signs",
}
TARGETS = {
    name: "labels" if row.of_classes else _KINDS.get(row.targets.domain, "normal")
    for name, row in LOSSES.items()
}
LOSS_PARAMETERS = {"huber": 1.35, "quantile": 0.9}

METHODS: dict[str, tuple[str, ...]] = {
    "elementwise": ("value", *ELEMENTWISE),
    "reduction": ("value", "grad", "value_and_grad", "vjp", "jvp", "jacobian"),
    "map": ("value", "vjp", "jvp", "jacobian"),
    **{name: ("value", *row.methods) for name, row in TABLE.items()},
    "choice": ("value", "derivative", "value_and_derivative", "vjp", "jvp"),
    "take": ("value", "vjp", "jvp"),
    "loss": ("value", "grad", "value_and_grad", "hvp", "curvature", "partial"),
    "pointwise": ("value", *ELEMENTWISE),
    "LinearObjective": ("value", "grad", "value_and_grad", "hvp", "predict", "initial", "unpack"),
    "Chain": ("value", "jvp", "vjp", "value_and_vjp", "grad", "value_and_grad", "jacobian"),
}
# What Python puts together of these: hashed, but no call of one kernel, whose cost has a limit.
COMPOSED: dict[str, tuple[str, ...]] = {
    "choice": ("second_derivative", "jacobian"),
    "take": ("jacobian",),
    "loss": ("hessian", "sample_grads", "vjp"),
    "LinearObjective": ("hessian", "hessian_operator", "covariance", "line"),
    "Chain": ("hvp", "hessian"),
}

ALL = "all"  # what a chain's wrt says for the bound operands as well


def wrt(primitive: str, operands: str | tuple[str, ...]) -> Any:
    """Return the value of the keyword `wrt` that asks for one operand, or for several."""
    order = PRODUCTS.get(primitive)
    if order is None:  # losses take names
        return operands
    if isinstance(operands, str):
        return order.index(operands)
    return tuple(map(order.index, operands))


def choices(operands: tuple[str, ...]) -> Iterator[str | tuple[str, ...]]:
    """Yield what may be asked for: each alone, as a tuple of one, all in the other order."""
    yield from operands
    yield operands[:1]
    yield operands[::-1]
    if len(operands) > 2:
        yield operands[1:]


def family(name: str, primitive: Any) -> str:
    """Return the family of a primitive, a key of `METHODS`."""
    if name in PRODUCTS:
        return name
    if name in SELECTIONS:
        return "choice" if SELECTIONS[name].is_elementwise else "take"
    if hasattr(primitive, "pointwise"):
        return "loss"
    if hasattr(primitive, "derivative"):
        return "elementwise"
    if hasattr(primitive, "grad"):
        return "reduction"
    if hasattr(primitive, "vjp") and hasattr(primitive, "value"):
        return "map"
    raise ValueError(f"nothing is known of what {name} takes: see bench/signatures.py")


def bound(primitive: Any, method: str) -> Any:
    """Return a method, which for a value may be the primitive itself."""
    if method == "value" and not hasattr(primitive, "value"):
        return primitive
    return attrgetter(method)(primitive)


def methods(subject: Any) -> set[str]:
    """Return the names of what a primitive can be asked to do, a ufunc's own methods excepted."""
    return {
        name
        for name in set(dir(subject)) - set(dir(np.add))
        if not name.startswith("_") and callable(getattr(subject, name))
    }


def unknown_methods(pb: Any) -> list[str]:
    """Return the public methods of primitives that neither `METHODS` nor `COMPOSED` lists."""
    objective = pb.LinearObjective(np.eye(2), np.zeros(2), loss=pb.squared_error)
    subjects = [("LinearObjective", objective, "LinearObjective")]
    subjects.append(("chain", pb.chain(pb.tanh), "Chain"))
    for name, primitive in pb.primitives.items():
        kind = family(name, primitive)
        subjects.append((name, primitive, kind))
        if kind == "loss":
            subjects.append((f"{name}.pointwise", primitive.pointwise, "pointwise"))
    return sorted(
        f"{name}.{method}"
        for name, subject, kind in subjects
        for method in methods(subject) - {*METHODS[kind], *COMPOSED.get(kind, ()), "pointwise"}
    )


def linear_shape(name: str, shapes: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the shape of a product of operands of these shapes; None where one is absent."""
    if name == "linear":
        return (*shapes[0][:-1], shapes[1][-1])
    if name == "quadratic_form":
        return tuple(shapes[0][:-1])
    if name == "bilinear_form":
        return np.broadcast_shapes(shapes[0][:-1], shapes[2][:-1])
    a, b = shapes
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    return (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def reduced_shape(shape: tuple[int, ...], axis: Any, keepdims: bool) -> tuple[int, ...]:
    """Return the shape of what a reduction along `axis` gives."""
    n = len(shape)
    given = range(n) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    gone = {k % n for k in given} if n else set()
    if keepdims:
        return tuple(1 if k in gone else length for k, length in enumerate(shape))
    return tuple(length for k, length in enumerate(shape) if k not in gone)

"""Errors of derivatives in float32 over x, in units in the last place of the exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

import pullback as pb
from pullback.bench import peers

__all__ = ["FUNCTIONS", "NONE_LEFT", "Function", "digits"]

NONE_LEFT: Final = 2.0**24  # ULP: as large as the exact value itself


class Function(NamedTuple):
    """A function, where its derivative is looked at, and that derivative in float64."""

    low: float
    high: float
    exact: Callable[[Any], Any]


def _tanh(x: Any) -> Any:
    return np.cosh(x) ** -2


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return e / (1 + e) ** 2


def _gelu(x: Any) -> Any:
    below = np.array([math.erfc(t) for t in (-(0.5**0.5) * x).ravel()]) / 2
    return below + x * np.exp(-x * x / 2) * (2 * np.pi) ** -0.5


FUNCTIONS: Final[Mapping[str, Function]] = {
    "tanh": Function(-24, 24, _tanh),
    "sigmoid": Function(-40, 40, _sigmoid),
    "gelu": Function(-13, 6, _gelu),
}


def digits(*, bins: int = 160, per_bin: int = 400) -> dict[str, Any]:
    """Return by function the largest error in each bin of x, by library.

    A derivative of 0 or below the normal numbers is left out.
    """
    found = {}
    for name, function in FUNCTIONS.items():
        edges = np.linspace(function.low, function.high, bins + 1)
        x = np.linspace(edges[:-1], edges[1:], per_bin, endpoint=False, axis=1).astype(np.float32)
        exact = function.exact(x.ravel().astype(float)).reshape(x.shape)
        ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(float)
        normal = np.abs(exact) >= np.finfo(np.float32).tiny
        errors = {}
        for library, derivative in _derivatives(name).items():
            off = np.abs(derivative(x.ravel()).reshape(x.shape).astype(float) - exact) / ulp
            errors[library] = [float(f"{e:.3g}") for e in np.max(off, 1, where=normal, initial=0)]
        found[name] = {"x": [round(float(c), 4) for c in (edges[:-1] + edges[1:]) / 2]} | errors
    return found


def _derivatives(name: str) -> dict[str, Callable[[Any], Any]]:
    ways = peers.UNARY[name]
    found: dict[str, Callable[[Any], Any]] = {"pullback": getattr(pb, name).derivative}
    if torch := peers.optional("torch"):
        forward = getattr(torch, ways.torch, None) or getattr(torch.nn.functional, ways.torch)

        def by_torch(x: Any) -> Any:
            leaf = torch.from_numpy(x).requires_grad_()
            return torch.autograd.grad(forward(leaf).sum(), leaf)[0].numpy()

        found["PyTorch"] = by_torch
    if jax := peers.optional("jax"):
        of_jax = peers.jax_forward(jax, name)

        def by_jax(x: Any) -> Any:
            return np.asarray(jax.jit(jax.grad(lambda x: of_jax(x).sum()))(x))

        found["JAX"] = by_jax
    return found

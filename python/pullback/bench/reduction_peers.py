"""Gradients of reductions in other libraries, by hand and by their own differentiation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import pullback as pb
from pullback.bench.peers import Contender, optional


class Ways(NamedTuple):
    """How the libraries write one case."""

    ours: Callable[[Any, Any], Any]  # (x, g)
    numpy: Callable[[Any, Any], Any]
    by_hand: Callable[[Any, Any, Any], Any]  # (torch or jax.numpy, x, g)
    forward: Callable[[Any, Any], Any]  # (torch or jax's functions, x)
    is_vjp: bool = False  # the result is the cotangent alone


def _exponentials(x: Any) -> tuple[Any, Any, Any]:
    largest = np.max(x, axis=-1, keepdims=True)
    e = np.subtract(x, largest)
    np.exp(e, out=e)
    return e, np.sum(e, axis=-1, keepdims=True), largest


def _logsumexp_numpy(x: Any, g: Any) -> Any:
    del g
    e, total, largest = _exponentials(x)
    e /= total
    return (largest + np.log(total))[..., 0], e


def _softmax_numpy(x: Any, g: Any) -> Any:
    p, total, _ = _exponentials(x)
    p /= total
    return p * (g - np.sum(p * g, axis=-1, keepdims=True))


def _squares_numpy(x: Any, g: Any) -> Any:
    del g
    return np.vdot(x, x), 2 * x


def _logsumexp_by_hand(module: Any, x: Any, g: Any) -> Any:
    del g
    largest = module.amax(x, -1, keepdims=True)
    e = module.exp(x - largest)
    total = module.sum(e, -1, keepdims=True)
    return (largest + module.log(total))[..., 0], e / total


def _softmax_by_hand(module: Any, x: Any, g: Any) -> Any:
    e = module.exp(x - module.amax(x, -1, keepdims=True))
    p = e / module.sum(e, -1, keepdims=True)
    return p * (g - module.sum(p * g, -1, keepdims=True))


def _layer_norm_numpy(x: Any, g: Any) -> Any:
    y = x - x.mean(-1, keepdims=True)
    rate = 1 / np.sqrt(np.mean(y * y, -1, keepdims=True) + x.dtype.type(1e-5))
    y *= rate
    slope = g - g.mean(-1, keepdims=True)
    slope -= y * np.mean(y * g, -1, keepdims=True)
    slope *= rate
    return slope


def _layer_norm_by_hand(module: Any, x: Any, g: Any) -> Any:
    y = x - module.mean(x, -1, keepdims=True)
    rate = 1 / module.sqrt(module.mean(y * y, -1, keepdims=True) + 1e-5)
    y = y * rate
    return rate * (
        g - module.mean(g, -1, keepdims=True) - y * module.mean(y * g, -1, keepdims=True)
    )


WAYS: Mapping[str, Ways] = {
    "squared_norm2.value_and_grad": Ways(
        lambda x, g: pb.squared_norm2.value_and_grad(x),
        _squares_numpy,
        lambda module, x, g: (module.sum(x * x), 2 * x),
        lambda functions, x: functions.sum(x * x),
    ),
    "logsumexp.value_and_grad": Ways(
        lambda x, g: pb.logsumexp.value_and_grad(x, axis=-1),
        _logsumexp_numpy,
        _logsumexp_by_hand,
        lambda functions, x: functions.logsumexp(x, -1),
    ),
    "softmax.vjp": Ways(
        lambda x, g: pb.softmax.vjp(x, g),
        _softmax_numpy,
        _softmax_by_hand,
        lambda functions, x: functions.softmax(x, -1),
        is_vjp=True,
    ),
    "layer_norm.vjp": Ways(
        lambda x, g: pb.layer_norm.vjp(x, g),
        _layer_norm_numpy,
        _layer_norm_by_hand,
        lambda functions, x: functions.layer_norm(x, x.shape[-1:]),
        is_vjp=True,
    ),
}


def _arrays(result: Any) -> tuple[Any, ...]:
    results = result if isinstance(result, tuple) else (result,)
    return tuple(np.asarray(r.detach() if hasattr(r, "detach") else r) for r in results)


def contenders(name: str, x: Any, g: Any) -> Iterator[Contender]:
    """Yield every way to compute a case; `g` is the cotangent of its vjp."""
    ways = WAYS[name]
    yield Contender("pullback", "", lambda: ways.ours(x, g), _arrays)
    yield Contender("NumPy", "", lambda: ways.numpy(x, g), _arrays)
    if torch := optional("torch"):
        tx, tg = torch.from_numpy(x), torch.from_numpy(g)
        yield Contender("PyTorch", "by hand", lambda: ways.by_hand(torch, tx, tg), _arrays)
        yield Contender("PyTorch", "autograd", _autograd(torch, ways, tx, tg), _arrays)
    if optional("jax"):
        by_hand, derived = _jax(name)
        jax, jx, jg = optional("jax"), *map(optional("jax.numpy").asarray, (x, g))
        ready = jax.block_until_ready
        yield Contender("JAX", "by hand", lambda: ready(by_hand(jx, jg)), _arrays)
        yield Contender("JAX", "derived", lambda: ready(derived(jx, jg)), _arrays)


def _autograd(torch: Any, ways: Ways, x: Any, g: Any) -> Callable[[], Any]:
    leaf = x.clone().requires_grad_()

    def call() -> Any:
        value = ways.forward(torch, leaf)
        cotangent = g if ways.is_vjp else torch.ones_like(value)
        (gradient,) = torch.autograd.grad(value, leaf, cotangent)
        return gradient if ways.is_vjp else (value, gradient)

    return call


@cache
def _jax(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the compiled ways, by hand and through its own differentiation."""
    jax = optional("jax")
    jax.config.update("jax_enable_x64", True)
    ways = WAYS[name]

    functions = SimpleNamespace(
        sum=jax.numpy.sum,
        logsumexp=jax.nn.logsumexp,
        softmax=jax.nn.softmax,
        layer_norm=lambda x, shape: jax.nn.standardize(x, axis=-1, epsilon=1e-5),
    )

    def derived(x: Any, g: Any) -> Any:
        value, pull = jax.vjp(lambda x: ways.forward(functions, x), x)
        (gradient,) = pull(g if ways.is_vjp else jax.numpy.ones_like(value))
        return gradient if ways.is_vjp else (value, gradient)

    return jax.jit(lambda x, g: ways.by_hand(jax.numpy, x, g)), jax.jit(derived)

"""The same computations in other libraries, each the way its experts write them.

A library that cannot be imported is left out, NumPy never is. Every contender is a function of no
arguments, compiled and warm, that returns its result as a flat tuple of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pullback as pb


class Contender(NamedTuple):
    """One way to compute something."""

    library: str  # several ways of one library compete as its best
    way: str
    call: Callable[[], Any]
    arrays: Callable[[Any], tuple[Any, ...]]  # the result as NumPy arrays

    @property
    def name(self) -> str:
        """The library and the way."""
        return f"{self.library} {self.way}".strip()


def optional(name: str) -> Any:
    """Import a module, or return None."""
    with suppress(ImportError):
        return import_module(name)
    return None


def set_threads(threads: int) -> None:
    """Give every library the same number of threads; those read from the environment are set."""
    pb.set_num_threads(threads)
    if torch := optional("torch"):
        torch.set_num_threads(threads)
    if numexpr := optional("numexpr"):
        numexpr.set_num_threads(threads)
    if numba := optional("numba"):
        numba.set_num_threads(threads)
    if threadpoolctl := optional("threadpoolctl"):
        threadpoolctl.threadpool_limits(threads, user_api="blas")


def versions() -> dict[str, str]:
    """Return the versions of what competes."""
    names = ("numpy", "torch", "jax", "numba", "numexpr", "autograd")
    found = {name: optional(name) for name in names}
    return {"pullback": pb.__version__} | {
        name: str(getattr(module, "__version__", "?")) for name, module in found.items() if module
    }


# --- relu_mse.value_and_grad ----------------------------------------------------------------------


def _flat(result: Any) -> tuple[Any, ...]:
    value, (gw, gb) = result
    return tuple(np.asarray(part) for part in (value, gw, gb))


def relu_mse(X: Any, y: Any, w: Any, b: float) -> Iterator[Contender]:
    """Yield every way to compute the loss and its gradients."""
    yield Contender("pullback", "", lambda: pb.relu_mse.value_and_grad(X, y, w, b), _flat)
    yield Contender("NumPy", "", lambda: _relu_mse_numpy(X, y, w, b), _flat)
    if torch := optional("torch"):
        yield from _relu_mse_torch(torch, X, y, w, b)
    if jax := optional("jax"):
        yield _relu_mse_jax(jax, X, y, w, b)
    if numba := optional("numba"):
        yield from _relu_mse_numba(numba, X, y, w, b)


def _relu_mse_numpy(X: Any, y: Any, w: Any, b: float) -> Any:
    scale = X.dtype.type(-2 / len(y))
    z = X @ w
    z += X.dtype.type(b)
    active = z > 0
    np.maximum(z, 0, out=z)
    e = np.subtract(y, z, out=z)
    loss = np.dot(e, e) / len(y)
    e *= active
    gw = e @ X
    gw *= scale
    return loss, (gw, scale * e.sum())


def _relu_mse_torch(torch: Any, X: Any, y: Any, w: Any, b: float) -> Iterator[Contender]:
    X, y, w = (torch.from_numpy(a) for a in (X, y, w))
    n = len(y)

    @torch.no_grad()
    def by_hand() -> Any:
        z = torch.mv(X, w).add_(b)
        active = z > 0
        e = torch.sub(y, z.relu_(), out=z)
        loss = torch.dot(e, e) / n
        r = e.mul_(active).mul_(-2 / n)
        return loss, (torch.mv(X.T, r), r.sum())

    yield Contender("PyTorch", "by hand", by_hand, _flat)

    leaf = w.clone().requires_grad_()
    bias = torch.tensor(b, dtype=X.dtype, requires_grad=True)

    def by_autograd() -> Any:
        loss = torch.nn.functional.mse_loss(torch.relu(torch.addmv(bias, X, leaf)), y)
        return loss, torch.autograd.grad(loss, (leaf, bias))

    yield Contender(
        "PyTorch", "autograd", by_autograd, lambda result: _flat((result[0].detach(), result[1]))
    )


def _relu_mse_jax(jax: Any, X: Any, y: Any, w: Any, b: float) -> Contender:
    jax.config.update("jax_enable_x64", True)
    jnp = jax.numpy
    X, y, w, b = (jnp.asarray(a, X.dtype) for a in (X, y, w, b))

    def loss(parameters: Any, X: Any, y: Any) -> Any:
        w, b = parameters
        return jnp.mean((y - jnp.maximum(X @ w + b, 0)) ** 2)

    compiled = jax.jit(jax.value_and_grad(loss))

    def call() -> Any:
        return jax.block_until_ready(compiled((w, b), X, y))

    return Contender("JAX", "jit", call, _flat)


def _relu_mse_numba(numba: Any, X: Any, y: Any, w: Any, b: float) -> Iterator[Contender]:
    bias = X.dtype.type(b)
    for way, function in zip(("serial", "parallel"), _numba_loops(numba), strict=True):
        yield Contender("Numba", way, lambda f=function: f(X, y, w, bias), _flat)


@cache
def _numba_loops(numba: Any) -> tuple[Any, Any]:
    """Read X once: each row's dot product, then its share of the gradient while it is cached."""

    @numba.njit(fastmath=True)
    def rows(X: Any, y: Any, w: Any, b: Any, begin: int, end: int, gw: Any) -> Any:
        loss = X.dtype.type(0)
        gb = X.dtype.type(0)
        d = X.shape[1]
        for i in range(begin, end):
            z = b
            for j in range(d):
                z += X[i, j] * w[j]
            if z > 0:
                e = y[i] - z
                for j in range(d):
                    gw[j] += e * X[i, j]
                gb += e
            else:
                e = y[i]
            loss += e * e
        return loss, gb

    @numba.njit(fastmath=True)
    def serial(X: Any, y: Any, w: Any, b: Any) -> Any:
        n, d = X.shape
        gw = np.zeros(d, X.dtype)
        loss, gb = rows(X, y, w, b, 0, n, gw)
        scale = X.dtype.type(-2 / n)
        for j in range(d):
            gw[j] *= scale
        return loss / n, (gw, gb * scale)

    @numba.njit(fastmath=True, parallel=True)
    def parallel(X: Any, y: Any, w: Any, b: Any) -> Any:
        n, d = X.shape
        parts = numba.get_num_threads()
        padded = (d + 31) // 16 * 16  # no cache line of two threads
        gws = np.zeros((parts, padded), X.dtype)
        losses = np.zeros((parts, 16), X.dtype)
        gbs = np.zeros((parts, 16), X.dtype)
        for part in numba.prange(parts):
            begin, end = n * part // parts, n * (part + 1) // parts
            losses[part, 0], gbs[part, 0] = rows(X, y, w, b, begin, end, gws[part])
        gw = np.zeros(d, X.dtype)
        scale = X.dtype.type(-2 / n)
        for part in range(parts):
            for j in range(d):
                gw[j] += gws[part, j]
        for j in range(d):
            gw[j] *= scale
        return losses[:, 0].sum() / n, (gw, gbs[:, 0].sum() * scale)

    return serial, parallel


# --- vjp of an elementwise operation --------------------------------------------------------------


def _single(result: Any) -> tuple[Any, ...]:
    return (np.asarray(result),)


def elementwise_vjp(op: str, x: Any, g: Any, out: Any = None) -> Iterator[Contender]:
    """Yield every way to compute ``g * op'(x)``; into `out` for all that can, where it is given."""
    ours = getattr(pb, op).vjp
    call = (lambda: ours(x, g)) if out is None else (lambda: ours(x, g, out=out))
    yield Contender("pullback", "", call, _single)
    hand = {"tanh": _tanh_numpy, "relu": _relu_numpy}[op]
    yield Contender("NumPy", "", hand(x, g, out), _single)
    if torch := optional("torch"):
        yield from _vjp_torch(torch, op, x, g, out)
    if jax := optional("jax"):
        yield _vjp_jax(jax, op, x, g)
    if numexpr := optional("numexpr"):
        yield _vjp_numexpr(numexpr, op, x, g, out)
    if numba := optional("numba"):
        yield from _vjp_numba(numba, op, x, g, out)


def _tanh_numpy(x: Any, g: Any, out: Any) -> Callable[[], Any]:
    one = x.dtype.type(1)

    def call() -> Any:
        t = np.tanh(x, out=out)
        np.multiply(t, t, out=t)
        np.subtract(one, t, out=t)
        return np.multiply(g, t, out=t)

    return call


def _relu_numpy(x: Any, g: Any, out: Any) -> Callable[[], Any]:
    mask = np.empty(x.shape, bool)
    if out is None:
        return lambda: g * (x > 0)
    return lambda: np.multiply(g, np.greater(x, 0, out=mask), out=out)


def _vjp_torch(torch: Any, op: str, x: Any, g: Any, out: Any) -> Iterator[Contender]:
    x, g = torch.from_numpy(x), torch.from_numpy(g)
    target = None if out is None else torch.from_numpy(out)
    aten = torch.ops.aten

    @torch.no_grad()
    def functional() -> Any:
        if op == "relu":
            if target is None:
                return aten.threshold_backward(g, x, 0)
            return aten.threshold_backward.grad_input(g, x, 0, grad_input=target)
        if target is None:
            return aten.tanh_backward(g, torch.tanh(x))
        return aten.tanh_backward.grad_input(g, torch.tanh(x, out=target), grad_input=target)

    yield Contender("PyTorch", "functional", functional, _single)
    leaf = x.clone().requires_grad_()
    forward = getattr(torch, op)
    yield Contender(
        "PyTorch", "autograd", lambda: torch.autograd.grad(forward(leaf), leaf, g)[0], _single
    )


def _vjp_jax(jax: Any, op: str, x: Any, g: Any) -> Contender:
    jax.config.update("jax_enable_x64", True)
    forward = {"tanh": jax.numpy.tanh, "relu": jax.nn.relu}[op]
    x, g = jax.numpy.asarray(x), jax.numpy.asarray(g)
    compiled = jax.jit(lambda x, g: jax.vjp(forward, x)[1](g)[0])
    return Contender("JAX", "jit", lambda: jax.block_until_ready(compiled(x, g)), _single)


def _vjp_numexpr(numexpr: Any, op: str, x: Any, g: Any, out: Any) -> Contender:
    text = {"tanh": "g * (one - tanh(x) * tanh(x))", "relu": "where(x > zero, g, zero)"}[op]
    names = {"x": x, "g": g, "one": x.dtype.type(1), "zero": x.dtype.type(0)}
    names = {name: value for name, value in names.items() if name in text.replace("where", "")}
    kind = float if x.dtype == np.float32 else np.double  # what numexpr calls its two
    compiled = numexpr.NumExpr(text, [(name, kind) for name in sorted(names)])
    arguments = [names[name] for name in sorted(names)]
    options = {"ex_uses_vml": False} if out is None else {"ex_uses_vml": False, "out": out}
    return Contender("numexpr", "", lambda: compiled(*arguments, **options), _single)


def _vjp_numba(numba: Any, op: str, x: Any, g: Any, out: Any) -> Iterator[Contender]:
    one = x.dtype.type(1)
    zero = x.dtype.type(0)

    @numba.njit(fastmath=True, inline="always")
    def tanh_lane(x: Any, g: Any) -> Any:
        t = np.tanh(x)
        return g * (one - t * t)

    @numba.njit(fastmath=True, inline="always")
    def relu_lane(x: Any, g: Any) -> Any:
        return g if x > zero else zero

    lane = {"tanh": tanh_lane, "relu": relu_lane}[op]

    def into(x: Any, g: Any, out: Any) -> Any:
        for i in numba.prange(x.size):
            out[i] = lane(x[i], g[i])
        return out

    def fresh(x: Any, g: Any) -> Any:
        out = np.empty_like(x)
        for i in numba.prange(x.size):
            out[i] = lane(x[i], g[i])
        return out

    for way in ("serial", "parallel"):
        compiled = numba.njit(fastmath=True, parallel=way == "parallel")(
            fresh if out is None else into
        )
        arguments = (x, g) if out is None else (x, g, out)
        yield Contender("Numba", way, lambda f=compiled, a=arguments: f(*a), _single)

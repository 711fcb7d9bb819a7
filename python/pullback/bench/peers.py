"""The same computations in other libraries, each the way its experts write them.

A library that cannot be imported is left out, NumPy never is. Every contender is a function of no
arguments, compiled and warm, that returns its result as a flat tuple of arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module, metadata
from typing import Any, NamedTuple

import numpy as np

import pullback as pb

# What the libraries that may be missing are called, by the modules that they are.
LIBRARIES: Mapping[str, str] = {
    "torch": "PyTorch",
    "jax": "JAX",
    "numba": "Numba",
    "numexpr": "numexpr",
    "autograd": "autograd",
    "sklearn": "scikit-learn",
    "glum": "glum",
}


_DISTRIBUTIONS: Mapping[str, str] = {"sklearn": "scikit-learn"}


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
    names = ("numpy", "scipy", *LIBRARIES)
    return {"pullback": pb.__version__} | {
        name: metadata.version(_DISTRIBUTIONS.get(name, name)) for name in names if optional(name)
    }


# --- vjp of an elementwise operation --------------------------------------------------------------


class Ways(NamedTuple):
    """How other libraries write the vjp of one unary operation."""

    numpy: Callable[[Any, Any, Any], Any]  # (x, g, out or None)
    torch: str  # the forward function in torch or torch.nn.functional
    backward: Callable[[Any, Any, Any, Any], Any]  # autograd's kernel: aten, x, g, out=
    jax: str  # the forward function in jax.numpy or jax.nn
    numexpr: str  # of x, g, and the constants that it names
    numba: Callable[[Any], Callable[..., Any]]  # (numba) -> one lane of x, g and 1
    autograd: Callable[[Any, Any], Any]  # autograd.numpy, x -> the forward function


def _tanh_numpy(x: Any, g: Any, out: Any) -> Any:
    t = np.tanh(x, out=out)
    np.multiply(t, t, out=t)
    np.subtract(1, t, out=t)
    return np.multiply(g, t, out=t)


def _sigmoid_numpy(x: Any, g: Any, out: Any) -> Any:
    s = np.negative(x, out=out)
    np.exp(s, out=s)
    np.add(s, 1, out=s)
    np.reciprocal(s, out=s)
    slope = 1 - s
    np.multiply(slope, s, out=s)
    return np.multiply(g, s, out=s)


def _softplus_numpy(x: Any, g: Any, out: Any) -> Any:
    s = np.negative(x, out=out)
    np.exp(s, out=s)
    np.add(s, 1, out=s)
    return np.divide(g, s, out=s)


def _gelu_numpy(x: Any, g: Any, out: Any) -> Any:
    erf = import_module("scipy.special").erf
    scale = x.dtype.type
    slope = np.multiply(x, scale(0.5**0.5), out=out)
    erf(slope, out=slope)
    slope += 1
    slope *= scale(0.5)
    density = np.multiply(x, x)
    density *= scale(-0.5)
    np.exp(density, out=density)
    density *= scale((2 * np.pi) ** -0.5)
    density *= x
    slope += density
    slope *= g
    return slope


def _lane(text: str) -> Callable[[Any], Callable[..., Any]]:
    """Return a compiler of one lane; floating-point literals take the type of x."""

    def compiled(numba: Any) -> Any:
        names = {"np": np, "erf": import_module("math").erf}
        return numba.njit(fastmath=True, inline="always")(eval(f"lambda x, g, one: {text}", names))

    return compiled


def _into(function: Callable[..., Any]) -> Callable[[Any, Any, Any], Any]:
    """Return g times a ufunc of x."""
    return lambda x, g, out: np.multiply(g, t := function(x, out=out), out=t)


UNARY: Mapping[str, Ways] = {
    "relu": Ways(
        lambda x, g, out: np.multiply(g, np.greater(x, 0), out=out),
        "relu",
        lambda aten, x, g, into: (
            aten.threshold_backward.grad_input(g, x, 0, **into)
            if into
            else aten.threshold_backward(g, x, 0)
        ),
        "relu",
        "where(x > zero, g, zero)",
        _lane("g if x > 0 else x - x"),
        lambda anp, x: anp.maximum(x, 0),
    ),
    "tanh": Ways(
        _tanh_numpy,
        "tanh",
        lambda aten, x, g, into: (
            aten.tanh_backward.grad_input(g, aten.tanh.out(x, out=into["grad_input"]), **into)
            if into
            else aten.tanh_backward(g, aten.tanh(x))
        ),
        "tanh",
        "g * (one - tanh(x) * tanh(x))",
        _lane("g * (one - np.tanh(x) ** 2)"),
        lambda anp, x: anp.tanh(x),
    ),
    "sigmoid": Ways(
        _sigmoid_numpy,
        "sigmoid",
        lambda aten, x, g, into: (
            aten.sigmoid_backward.grad_input(g, aten.sigmoid.out(x, out=into["grad_input"]), **into)
            if into
            else aten.sigmoid_backward(g, aten.sigmoid(x))
        ),
        "sigmoid",
        "g * exp(-x) / ((one + exp(-x)) * (one + exp(-x)))",
        _lane("g * np.exp(-x) / (one + np.exp(-x)) ** 2"),
        lambda anp, x: 1 / (1 + anp.exp(-x)),
    ),
    "gelu": Ways(
        _gelu_numpy,
        "gelu",
        lambda aten, x, g, into: (
            aten.gelu_backward.grad_input(g, x, **into) if into else aten.gelu_backward(g, x)
        ),
        "gelu",
        "",  # numexpr has no erf
        _lane(
            "g * (one / 2 * (one + erf(x * (one / 2) ** (one / 2)))"
            " + x * np.exp(x * x * (-one / 2)) * (one / 2 / np.pi) ** (one / 2))"
        ),
        lambda anp, x: x * (1 + import_module("autograd.scipy.special").erf(x / 2**0.5)) / 2,
    ),
    "softplus": Ways(
        _softplus_numpy,
        "softplus",
        lambda aten, x, g, into: (
            aten.softplus_backward.grad_input(g, x, 1, 20, **into)
            if into
            else aten.softplus_backward(g, x, 1, 20)
        ),
        "softplus",
        "g / (one + exp(-x))",
        _lane("g / (one + np.exp(-x))"),
        lambda anp, x: anp.logaddexp(x, 0),
    ),
    "exp": Ways(
        _into(np.exp),
        "exp",
        lambda aten, x, g, into: (
            aten.mul.out(g, aten.exp.out(x, out=into["grad_input"]), out=into["grad_input"])
            if into
            else g * aten.exp(x)
        ),
        "exp",
        "g * exp(x)",
        _lane("g * np.exp(x)"),
        lambda anp, x: anp.exp(x),
    ),
    "log": Ways(
        lambda x, g, out: np.divide(g, x, out=out),
        "log",
        lambda aten, x, g, into: (
            aten.div.out(g, x, out=into["grad_input"]) if into else aten.div(g, x)
        ),
        "log",
        "g / x",
        _lane("g / x"),
        lambda anp, x: anp.log(x),
    ),
    "sin": Ways(
        _into(np.cos),
        "sin",
        lambda aten, x, g, into: (
            aten.mul.out(g, aten.cos.out(x, out=into["grad_input"]), out=into["grad_input"])
            if into
            else g * aten.cos(x)
        ),
        "sin",
        "g * cos(x)",
        _lane("g * np.cos(x)"),
        lambda anp, x: anp.sin(x),
    ),
}


def _single(result: Any) -> tuple[Any, ...]:
    return (np.asarray(result),)


def unary_vjp(op: str, x: Any, g: Any, out: Any = None) -> Iterator[Contender]:
    """Yield every way to compute ``g * op'(x)``; into `out` for all that can, where it is given."""
    ours = getattr(pb, op).vjp
    ways = UNARY[op]
    call = (lambda: ours(x, g)) if out is None else (lambda: ours(x, g, out=out))
    yield Contender("pullback", "", call, _single)
    if op != "gelu" or optional("scipy"):
        yield Contender("NumPy", "", lambda: ways.numpy(x, g, out), _single)
    if torch := optional("torch"):
        yield from _unary_torch(torch, ways, x, g, out)
    if jax := optional("jax"):
        yield _jax_vjp(jax, jax_forward(jax, op), (x,), g)
    if ways.numexpr and (numexpr := optional("numexpr")):
        yield _unary_numexpr(numexpr, ways.numexpr, x, g, out)
    if numba := optional("numba"):
        yield from _unary_numba(numba, ways, x, g, out)
    if (autograd := optional("autograd")) and (op != "gelu" or optional("scipy")):
        anp = optional("autograd.numpy")
        forward = partial(ways.autograd, anp)
        yield Contender("autograd", "", lambda: autograd.make_vjp(forward)(x)[0](g), _single)


def _unary_torch(torch: Any, ways: Ways, x: Any, g: Any, out: Any) -> Iterator[Contender]:
    x, g = torch.from_numpy(x), torch.from_numpy(g)
    into = {} if out is None else {"grad_input": torch.from_numpy(out)}
    aten = torch.ops.aten

    @torch.no_grad()
    def functional() -> Any:
        return ways.backward(aten, x, g, into)

    yield Contender("PyTorch", "functional", functional, _single)
    leaf = x.clone().requires_grad_()
    forward = getattr(torch, ways.torch, None) or getattr(torch.nn.functional, ways.torch)
    yield Contender(
        "PyTorch", "autograd", lambda: torch.autograd.grad(forward(leaf), leaf, g)[0], _single
    )


def jax_forward(jax: Any, op: str) -> Any:
    """Return JAX's function of the operation."""
    jax.config.update("jax_enable_x64", True)
    name = UNARY[op].jax
    forward = getattr(jax.numpy, name, None) or getattr(jax.nn, name)
    return partial(forward, approximate=False) if op == "gelu" else forward


def _jax_vjp(jax: Any, forward: Any, primals: Any, g: Any) -> Contender:
    primals, g = tuple(map(jax.numpy.asarray, primals)), jax.numpy.asarray(g)
    compiled = jax.jit(lambda primals, g: jax.vjp(forward, *primals)[1](g))
    return Contender("JAX", "jit", lambda: jax.block_until_ready(compiled(primals, g)), _several)


def _several(result: Any) -> tuple[Any, ...]:
    return tuple(np.asarray(part) for part in result)


def _unary_numexpr(numexpr: Any, text: str, x: Any, g: Any, out: Any) -> Contender:
    names = {"x": x, "g": g, "one": x.dtype.type(1), "zero": x.dtype.type(0)}
    used = sorted(name for name in names if re.search(rf"\b{name}\b", text))
    kind = float if x.dtype == np.float32 else np.double  # what numexpr calls its two
    compiled = numexpr.NumExpr(text, [(name, kind) for name in used])
    arguments = [names[name] for name in used]
    options = {"ex_uses_vml": False} if out is None else {"ex_uses_vml": False, "out": out}
    return Contender("numexpr", "", lambda: compiled(*arguments, **options), _single)


def _unary_numba(numba: Any, ways: Ways, x: Any, g: Any, out: Any) -> Iterator[Contender]:
    """Write into an array that is there already: an expert's loop allocates nothing."""
    lane = ways.numba(numba)
    target = np.empty_like(x) if out is None else out

    def loop(x: Any, g: Any, out: Any, one: Any) -> Any:
        for i in numba.prange(x.size):
            out[i] = lane(x[i], g[i], one)
        return out

    one = x.dtype.type(1)
    for way in ("serial", "parallel"):
        compiled = numba.njit(fastmath=True, parallel=way == "parallel")(loop)
        yield Contender("Numba", way, partial(compiled, x, g, target, one), _single)


# --- vjp of power, and of a product with a repeated factor ----------------------------------------


def power_vjp(x: Any, y: Any, g: Any, out: Any = None) -> Iterator[Contender]:
    """Yield every way to compute both cotangents of ``x ** y``; `out` is a pair of arrays."""
    ours = pb.power.vjp
    call = (lambda: ours(x, y, g)) if out is None else (lambda: ours(x, y, g, out=out))
    yield Contender("pullback", "", call, _several)

    def by_numpy() -> Any:
        base = np.power(x, y - 1)
        exponent = np.log(x)
        exponent *= base
        exponent *= x
        exponent *= g
        base *= y
        base *= g
        return base, exponent

    yield Contender("NumPy", "", by_numpy, _several)
    if torch := optional("torch"):
        leaves = [torch.from_numpy(a).clone().requires_grad_() for a in (x, y)]
        cotangent = torch.from_numpy(g)
        yield Contender(
            "PyTorch",
            "autograd",
            lambda: torch.autograd.grad(torch.pow(*leaves), leaves, cotangent),
            _several,
        )
    if jax := optional("jax"):
        jax.config.update("jax_enable_x64", True)
        yield _jax_vjp(jax, jax.numpy.power, (x, y), g)
    if numexpr := optional("numexpr"):
        kind = float if x.dtype == np.float32 else np.double
        texts = ("g * y * x ** (y - one)", "g * x ** y * log(x)")
        names = (("g", "one", "x", "y"), ("g", "x", "y"))
        values = {"g": g, "one": x.dtype.type(1), "x": x, "y": y}
        parts = [
            (numexpr.NumExpr(text, [(name, kind) for name in used]), [values[n] for n in used])
            for text, used in zip(texts, names, strict=True)
        ]
        yield Contender("numexpr", "", lambda: tuple(f(*a) for f, a in parts), _several)
    if numba := optional("numba"):
        targets = (np.empty_like(x), np.empty_like(x)) if out is None else out

        def loop(x: Any, y: Any, g: Any, base: Any, exponent: Any) -> None:
            for i in numba.prange(x.size):
                log = np.log(x[i])
                value = g[i] * np.exp(y[i] * log)
                base[i] = value * y[i] / x[i]
                exponent[i] = value * log

        for way in ("serial", "parallel"):
            compiled = numba.njit(fastmath=True, parallel=way == "parallel")(loop)
            into = partial(compiled, x, y, g, *targets)
            yield Contender("Numba", way, into, lambda _: _several(targets))


def scaled_columns_vjp(w: Any, x: Any, g: Any, out: Any = None) -> Iterator[Contender]:
    """Yield every way to compute both cotangents of ``w * x`` for w (N, D) and x (D,)."""
    ours = pb.multiply.vjp
    call = (lambda: ours(w, x, g)) if out is None else (lambda: ours(w, x, g, out=out))
    yield Contender("pullback", "", call, _several)
    gw, gx = (None, None) if out is None else out

    def by_einsum() -> Any:
        return np.multiply(g, x, out=gw), np.einsum("ij,ij->j", g, w, out=gx)

    yield Contender("NumPy", "einsum", by_einsum, _several)
    yield Contender(
        "NumPy", "sum", lambda: ((g * w).sum(0, out=gx), np.multiply(g, x, out=gw))[::-1], _several
    )
    if torch := optional("torch"):
        tw, tx, tg = map(torch.from_numpy, (w, x, g))
        into = None if out is None else torch.from_numpy(gw)
        yield Contender(
            "PyTorch",
            "einsum",
            lambda: (torch.mul(tg, tx, out=into), torch.einsum("ij,ij->j", tg, tw)),
            _several,
        )
        yield Contender(
            "PyTorch",
            "by hand",
            lambda: ((tg * tw).sum(0), torch.mul(tg, tx, out=into))[::-1],
            _several,
        )
        leaves = [tw.clone().requires_grad_(), tx.clone().requires_grad_()]
        yield Contender(
            "PyTorch",
            "autograd",
            lambda: torch.autograd.grad(torch.mul(*leaves), leaves, tg),
            _several,
        )
    if jax := optional("jax"):
        jax.config.update("jax_enable_x64", True)
        yield _jax_vjp(jax, jax.numpy.multiply, (w, x), g)


def matmul_vjp(A: Any, B: Any, G: Any) -> Iterator[Contender]:
    """Yield every way to compute ``(G @ B^T, A^T @ G)``, for matrices or stacks of them."""
    yield Contender("pullback", "", lambda: pb.matmul.vjp(A, B, G), _several)
    yield Contender("NumPy", "", lambda: (np.matmul(G, B.mT), np.matmul(A.mT, G)), _several)
    if A.ndim == 2:
        yield Contender("NumPy", "dot", lambda: (G.dot(B.T), A.T.dot(G)), _several)
    if torch := optional("torch"):
        tA, tB, tG = map(torch.from_numpy, (A, B, G))
        yield Contender(
            "PyTorch",
            "by hand",
            lambda: (torch.matmul(tG, tB.mT), torch.matmul(tA.mT, tG)),
            _several,
        )
        leaves = [tA.clone().requires_grad_(), tB.clone().requires_grad_()]
        yield Contender(
            "PyTorch",
            "autograd",
            lambda: torch.autograd.grad(torch.matmul(*leaves), leaves, tG),
            _several,
        )
    if jax := optional("jax"):
        jax.config.update("jax_enable_x64", True)

        @jax.jit
        def by_hand(A: Any, B: Any, G: Any) -> Any:
            swap = jax.numpy.swapaxes
            return G @ swap(B, -1, -2), swap(A, -1, -2) @ G

        arrays = tuple(map(jax.numpy.asarray, (A, B, G)))
        ready = jax.block_until_ready
        yield Contender("JAX", "by hand", lambda: ready(by_hand(*arrays)), _several)


def linear_vjp(X: Any, W: Any, b: Any, G: Any) -> Iterator[Contender]:
    """Yield every way to compute the cotangents of X, W and b in ``relu(X @ W + b)``."""
    ours = pb.linear.vjp
    yield Contender("pullback", "", lambda: ours(X, W, b, G, activation="relu"), _several)

    def by_numpy() -> Any:
        z = X @ W
        z += b
        active = np.multiply(G, z > 0, out=z)
        return active @ W.T, X.T @ active, active.sum(0)

    yield Contender("NumPy", "", by_numpy, _several)
    if torch := optional("torch"):
        tX, tW, tb, tG = map(torch.from_numpy, (X, W, b, G))

        @torch.no_grad()
        def by_hand() -> Any:
            active = torch.ops.aten.threshold_backward(tG, torch.addmm(tb, tX, tW), 0)
            return active @ tW.T, tX.T @ active, active.sum(0)

        yield Contender("PyTorch", "by hand", by_hand, _several)
        leaves = [a.clone().requires_grad_() for a in (tX, tW, tb)]

        def by_autograd() -> Any:
            y = torch.relu(torch.addmm(leaves[2], leaves[0], leaves[1]))
            return torch.autograd.grad(y, leaves, tG)

        yield Contender("PyTorch", "autograd", by_autograd, _several)
    if jax := optional("jax"):
        jax.config.update("jax_enable_x64", True)
        yield _jax_vjp(jax, lambda X, W, b: jax.nn.relu(X @ W + b), (X, W, b), G)


# --- a chain of elementwise operations ------------------------------------------------------------


def gaussian_in_tanh(x: Any, g: Any) -> Iterator[Contender]:
    """Yield every way to compute ``tanh(exp(-x*x))`` and its cotangent for `g`."""
    chain = pb.chain(pb.square, pb.negative, pb.exp, pb.tanh)
    yield Contender("pullback", "", lambda: chain.value_and_vjp(x, g), _several)

    def by_numpy() -> Any:
        e = np.square(x)
        np.negative(e, out=e)
        np.exp(e, out=e)
        y = np.tanh(e)
        slope = np.square(y)
        np.subtract(1, slope, out=slope)
        slope *= e
        slope *= x
        slope *= -2
        slope *= g
        return y, slope

    yield Contender("NumPy", "", by_numpy, _several)
    if torch := optional("torch"):
        leaf = torch.from_numpy(x).clone().requires_grad_()
        cotangent = torch.from_numpy(g)

        def by_torch() -> Any:
            y = torch.tanh(torch.exp(-leaf * leaf))
            return y.detach(), torch.autograd.grad(y, leaf, cotangent)[0]

        yield Contender("PyTorch", "eager", by_torch, _several)
    if (autograd := optional("autograd")) and (anp := optional("autograd.numpy")):

        def by_autograd() -> Any:
            pull, y = autograd.make_vjp(lambda x: anp.tanh(anp.exp(-x * x)))(x)
            return y, pull(g)

        yield Contender("autograd", "", by_autograd, _several)
    if jax := optional("jax"):
        jax.config.update("jax_enable_x64", True)
        arrays = tuple(map(jax.numpy.asarray, (x, g)))

        @jax.jit
        def by_jax(x: Any, g: Any) -> Any:
            y, pull = jax.vjp(lambda x: jax.numpy.tanh(jax.numpy.exp(-x * x)), x)
            return y, pull(g)[0]

        yield Contender("JAX", "jit", lambda: jax.block_until_ready(by_jax(*arrays)), _several)


# --- a model of several parameters ----------------------------------------------------------------


def decay_and_swing(t: Any, theta: tuple[Any, ...], g: Any) -> Iterator[Contender]:
    """Yield every way to compute ``a*exp(-b*t) + c*sin(d*t)`` and the parameters' cotangents."""
    arg, multiply = pb.arg, pb.primitives["multiply"]
    decay = pb.chain((multiply, arg[1], t), pb.negative, pb.exp, (multiply, arg[0], arg))
    model = decay + pb.chain((multiply, arg[3], t), pb.sin, (multiply, arg[2], arg))
    every = (0, 1, 2, 3)

    def by_chain() -> Any:
        y, cotangents = model.value_and_vjp(*theta, g, wrt=every)
        return y, *cotangents

    yield Contender("pullback", "", by_chain, _several)

    def by_numpy() -> Any:
        a, b, c, d = theta
        e, angle = np.exp(-b * t), d * t
        s = np.sin(angle)
        ge = g * e
        by_d = c * np.dot(g * np.cos(angle), t)
        return a * e + c * s, ge.sum(), -a * np.dot(ge, t), np.dot(g, s), by_d

    yield Contender("NumPy", "", by_numpy, _several)
    if torch := optional("torch"):
        time, cotangent = torch.from_numpy(t), torch.from_numpy(g)
        leaves = [torch.tensor(float(p), dtype=time.dtype, requires_grad=True) for p in theta]

        def by_torch() -> Any:
            a, b, c, d = leaves
            y = a * torch.exp(-b * time) + c * torch.sin(d * time)
            return y.detach(), *torch.autograd.grad(y, leaves, cotangent)

        yield Contender("PyTorch", "eager", by_torch, _several)
    if (autograd := optional("autograd")) and (anp := optional("autograd.numpy")):

        def by_autograd() -> Any:
            def f(theta: Any) -> Any:
                a, b, c, d = theta
                return a * anp.exp(-b * t) + c * anp.sin(d * t)

            pull, y = autograd.make_vjp(f)(theta)
            return y, *pull(g)

        yield Contender("autograd", "", by_autograd, _several)
    if jax := optional("jax"):
        jax.config.update("jax_enable_x64", True)
        arrays = tuple(map(jax.numpy.asarray, (*theta, g)))

        @jax.jit
        def by_jax(*arrays: Any) -> Any:
            def f(a: Any, b: Any, c: Any, d: Any) -> Any:
                return a * jax.numpy.exp(-b * t) + c * jax.numpy.sin(d * t)

            y, pull = jax.vjp(f, *arrays[:-1])
            return y, *pull(arrays[-1])

        yield Contender("JAX", "jit", lambda: jax.block_until_ready(by_jax(*arrays)), _several)

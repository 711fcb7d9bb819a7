"""Losses of linear models in other libraries, each the way its experts write them.

A loss is one row of `LOSSES`; what surrounds it, the products with X, is written once for each
library. Every way computes in the dtype of X.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

import pullback as pb
from pullback.bench.peers import Contender, optional

# --- what is computed -----------------------------------------------------------------------------


class Model(NamedTuple):
    """Data and parameters of a linear model."""

    loss: str
    X: Any  # (N, D), an array or a SciPy sparse array
    y: Any  # (N,), or (N, K) for several outputs
    w: Any  # (D,), or (D, K)
    b: Any  # a float, or (K,)

    @property
    def stored(self) -> tuple[Any, ...]:
        """The arrays that hold X."""
        return (self.X,) if isinstance(self.X, np.ndarray) else (self.X.data, self.X.indices)

    @property
    def nbytes(self) -> int:
        """How many bytes there are to read."""
        return sum(array.nbytes for array in self.stored)


def make(loss: str, rows: int, cols: int, dtype: Any, layout: str = "C", outputs: int = 1) -> Model:
    """Return a model whose predictions are of order 1 and of both signs.

    The layout is C, F, csr or csc; of sparse ones 1 % is stored.
    """
    rng = np.random.default_rng(0)
    if layout in ("csr", "csc"):
        X = _sparse(rng, rows, cols, dtype, layout)
        spread = (0.01 * cols) ** -0.5
    else:
        X = rng.random((rows, cols) if layout == "C" else (cols, rows), dtype)
        X -= dtype(0.4)
        X = X if layout == "C" else X.T
        spread = cols**-0.5
    shape = (cols,) if outputs == 1 else (cols, outputs)
    w = (2 * spread * rng.normal(size=shape)).astype(dtype)
    b = 0.1 if outputs == 1 else np.linspace(-0.1, 0.1, outputs).astype(dtype)
    if loss == "softmax_cross_entropy":
        y = rng.integers(0, outputs, rows)
    elif loss == "poisson":
        y = rng.poisson(1, rows).astype(dtype)
    elif loss == "logistic":
        y = rng.integers(0, 2, rows).astype(dtype)
    else:
        y = (rng.normal(size=(rows, *shape[1:])) + 1).astype(dtype)
    return Model(loss, X, y, w, b)


def _sparse(rng: Any, rows: int, cols: int, dtype: Any, layout: str) -> Any:
    sparse = optional("scipy.sparse")
    places = np.unique(rng.integers(0, rows * cols, rows * cols // 100))
    row, column = np.divmod(places, cols)
    starts = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=rows))))
    values = rng.random(len(places), dtype) - dtype(0.4)
    X = sparse.csr_array((values, column.astype(np.int32), starts.astype(np.int32)), (rows, cols))
    return X.asformat(layout)


# --- the losses -----------------------------------------------------------------------------------


class Ways(NamedTuple):
    """How other libraries write one loss of predictions z; all may write to z."""

    numpy: Callable[[Any, Any], Any]  # (z, y) -> (sum of losses, derivatives by z)
    torch: Callable[[Any, Any, Any], Any]  # (torch, z, y) -> the same
    autograd: Callable[[Any, Any, Any], Any]  # (torch, z, y) -> mean loss
    jax: Callable[[Any, Any, Any], Any]  # (jax, z, y) -> the samples' losses
    numba: Callable[[Any], Any] | None = None  # (one) -> lane of z and y -> (loss, derivative)
    sklearn: str | None = None  # the class in sklearn._loss


def _relu_mse_numpy(z: Any, y: Any) -> Any:
    active = z > 0
    np.maximum(z, 0, out=z)
    e = np.subtract(z, y, out=z)
    loss = np.dot(e, e)
    e *= active
    e *= 2
    return loss, e


def _relu_mse_torch(torch: Any, z: Any, y: Any) -> Any:
    active = z > 0
    e = z.relu_().sub_(y)
    loss = torch.dot(e, e)
    return loss, e.mul_(active).mul_(2)


def _relu_mse_numba(one: Any) -> Any:
    zero = one - one

    def lane(z: Any, y: Any) -> Any:
        e = max(z, zero) - y
        return e * e, e + e if z > zero else zero

    return lane


def _logistic_numpy(z: Any, y: Any) -> Any:
    sign = 1 - 2 * y
    s = np.multiply(z, sign, out=z)
    e = np.abs(s)
    np.negative(e, out=e)
    np.exp(e, out=e)
    positive = s > 0
    loss = np.log1p(e).sum() + s.sum(where=positive)
    p = np.where(positive, z.dtype.type(1), e)
    e += 1
    p /= e
    p *= sign
    return loss, p


def _logistic_torch(torch: Any, z: Any, y: Any) -> Any:
    loss = torch.nn.functional.softplus(z).sum() - torch.dot(y, z)
    return loss, z.sigmoid_().sub_(y)


def _logistic_numba(one: Any) -> Any:
    zero = one - one

    def lane(z: Any, y: Any) -> Any:
        s = -z if y > zero else z
        e = np.exp(-abs(s))
        p = (one if s > zero else e) / (one + e)
        return max(s, zero) + np.log1p(e), -p if y > zero else p

    return lane


def _poisson_numpy(z: Any, y: Any) -> Any:
    loss = -np.dot(y, z)
    np.exp(z, out=z)
    loss += z.sum()
    z -= y
    return loss, z


def _poisson_torch(torch: Any, z: Any, y: Any) -> Any:
    loss = -torch.dot(y, z)
    mean = z.exp_()
    loss = loss + mean.sum()
    return loss, mean.sub_(y)


def _poisson_numba(one: Any) -> Any:
    del one

    def lane(z: Any, y: Any) -> Any:
        mean = np.exp(z)
        return mean - y * z, mean - y

    return lane


def _squared_error_numpy(z: Any, y: Any) -> Any:
    z -= y
    loss = np.vdot(z, z)
    z *= 2
    return loss, z


def _squared_error_torch(torch: Any, z: Any, y: Any) -> Any:
    e = z.sub_(y)
    flat = e.view(-1)
    return torch.dot(flat, flat), e.mul_(2)


def _softmax_numpy(z: Any, y: Any) -> Any:
    samples = np.arange(len(y))
    z -= z.max(axis=1, keepdims=True)
    chosen = z[samples, y].sum()
    np.exp(z, out=z)
    total = z.sum(axis=1, keepdims=True)
    loss = np.log(total).sum() - chosen
    z /= total
    z[samples, y] -= 1
    return loss, z


def _softmax_torch(torch: Any, z: Any, y: Any) -> Any:
    log_p = torch.log_softmax(z, 1)
    loss = torch.nn.functional.nll_loss(log_p, y, reduction="sum")
    p = log_p.exp_()
    p[torch.arange(len(y)), y] -= 1
    return loss, p


def _softmax_jax(jax: Any, z: Any, y: Any) -> Any:
    log_p = jax.nn.log_softmax(z, axis=1)
    return -jax.numpy.take_along_axis(log_p, y[:, None], 1)


LOSSES: Mapping[str, Ways] = {
    "relu_mse": Ways(
        numpy=_relu_mse_numpy,
        torch=_relu_mse_torch,
        autograd=lambda torch, z, y: torch.nn.functional.mse_loss(torch.relu(z), y),
        jax=lambda jax, z, y: (y - jax.numpy.maximum(z, 0)) ** 2,
        numba=_relu_mse_numba,
    ),
    "logistic": Ways(
        numpy=_logistic_numpy,
        torch=_logistic_torch,
        autograd=lambda torch, z, y: torch.nn.functional.binary_cross_entropy_with_logits(z, y),
        jax=lambda jax, z, y: jax.nn.softplus(z) - y * z,
        numba=_logistic_numba,
        sklearn="HalfBinomialLoss",
    ),
    "poisson": Ways(
        numpy=_poisson_numpy,
        torch=_poisson_torch,
        autograd=lambda torch, z, y: torch.nn.functional.poisson_nll_loss(z, y),
        jax=lambda jax, z, y: jax.numpy.exp(z) - y * z,
        numba=_poisson_numba,
        sklearn="HalfPoissonLoss",
    ),
    "squared_error": Ways(
        numpy=_squared_error_numpy,
        torch=_squared_error_torch,
        autograd=lambda torch, z, y: (
            torch.nn.functional.mse_loss(z, y, reduction="sum") / z.shape[0]
        ),
        jax=lambda jax, z, y: (z - y) ** 2,
    ),
    "softmax_cross_entropy": Ways(
        numpy=_softmax_numpy,
        torch=_softmax_torch,
        autograd=lambda torch, z, y: torch.nn.functional.cross_entropy(z, y),
        jax=_softmax_jax,
        sklearn="HalfMultinomialLoss",
    ),
}


# --- value and gradient ---------------------------------------------------------------------------


def _flat(result: Any) -> tuple[Any, ...]:
    value, (gw, gb) = result
    return tuple(np.asarray(part) for part in (value, gw, gb))


def value_and_grad(model: Model) -> Iterator[Contender]:
    """Yield every way to compute the loss of a dense X and its gradients by w and b."""
    loss, X, y, w, b = model
    ways = LOSSES[loss]
    ours = getattr(pb, loss).value_and_grad
    yield Contender("pullback", "", lambda: ours(X, y, w, b), _flat)
    yield Contender("NumPy", "", lambda: _by_products(ways, X, y, w, b), _flat)
    if torch := optional("torch"):
        yield from _torch(torch, ways, model)
    if jax := optional("jax"):
        yield _jax(jax, ways, model)
    if ways.sklearn and optional("sklearn"):
        yield from _sklearn(ways.sklearn, model)
    if ways.numba and w.ndim == 1 and (numba := optional("numba")):
        bias = X.dtype.type(b)
        loops = _numba_loops(numba, loss, X.dtype, X.flags.c_contiguous)
        for way, function in zip(("serial", "parallel"), loops, strict=True):
            yield Contender("Numba", way, partial(function, X, y, w, bias), _flat)


def sparse_value_and_grad(model: Model) -> Iterator[Contender]:
    """Yield the ways for a sparse X; SciPy's products also alone, all else being given."""
    loss, X, y, w, b = model
    ours = getattr(pb, loss).value_and_grad
    ways = LOSSES[loss]
    yield Contender("pullback", "", lambda: ours(X, y, w, b), _flat)
    yield Contender("SciPy", "", lambda: _by_products(ways, X, y, w, b), _flat)
    value, slopes = ways.numpy(X @ w + X.dtype.type(b), y)
    slopes /= len(y)
    total = slopes.sum()

    def products() -> Any:
        _ = X @ w
        return value / len(y), (X.T @ slopes, total)

    yield Contender("SciPy", "products", products, _flat)
    if ways.sklearn and optional("sklearn"):
        yield from _sklearn(ways.sklearn, model)


def _by_products(ways: Ways, X: Any, y: Any, w: Any, b: Any) -> Any:
    scale = X.dtype.type(1 / len(y))
    z = X @ w
    z += X.dtype.type(b) if w.ndim == 1 else b
    loss, slopes = ways.numpy(z, y)
    gw = X.T @ slopes
    gw *= scale
    return loss * scale, (gw, scale * slopes.sum(0))


def _torch(torch: Any, ways: Ways, model: Model) -> Iterator[Contender]:
    X, y, w = (torch.from_numpy(a) for a in model[1:4])
    b = torch.tensor(model.b, dtype=X.dtype)
    n = len(y)
    multiply, fused = (torch.mv, torch.addmv) if w.ndim == 1 else (torch.mm, torch.addmm)

    @torch.no_grad()
    def by_hand() -> Any:
        loss, slopes = ways.torch(torch, multiply(X, w).add_(b), y)
        return loss / n, (multiply(X.T, slopes).div_(n), slopes.sum(0).div_(n))

    yield Contender("PyTorch", "by hand", by_hand, _flat)

    leaf, bias = w.clone().requires_grad_(), b.clone().requires_grad_()

    def by_autograd() -> Any:
        loss = ways.autograd(torch, fused(bias, X, leaf), y)
        return loss, torch.autograd.grad(loss, (leaf, bias))

    yield Contender(
        "PyTorch", "autograd", by_autograd, lambda result: _flat((result[0].detach(), result[1]))
    )


def _jax(jax: Any, ways: Ways, model: Model) -> Contender:
    """Differentiate by JAX, whose arrays are in C order whatever they are made from."""
    jax.config.update("jax_enable_x64", True)
    X, y, w = map(jax.numpy.asarray, model[1:4])
    b = jax.numpy.asarray(model.b, X.dtype)

    def loss(parameters: Any, X: Any, y: Any) -> Any:
        w, b = parameters
        return ways.jax(jax, X @ w + b, y).sum() / len(y)

    compiled = jax.jit(jax.value_and_grad(loss))
    return Contender("JAX", "jit", lambda: jax.block_until_ready(compiled((w, b), X, y)), _flat)


def _linear_model_loss(name: str, model: Model) -> tuple[Any, Any, Any]:
    """Return scikit-learn's loss, its coefficients and its targets."""
    from sklearn import _loss
    from sklearn.linear_model._linear_loss import LinearModelLoss

    _, X, y, w, b = model
    options = {"n_classes": w.shape[1]} if w.ndim == 2 else {}
    loss = LinearModelLoss(getattr(_loss, name)(**options), fit_intercept=True)
    bias = np.full((1, *w.shape[1:]), b, w.dtype)
    return loss, np.concatenate((w, bias)), y.astype(X.dtype)


def _sklearn(name: str, model: Model) -> Iterator[Contender]:
    loss, coefficients, y = _linear_model_loss(name, model)
    X = model.X

    def arrays(result: Any) -> tuple[Any, ...]:
        value, gradient = result
        return np.asarray(value), gradient.T[:-1], np.asarray(gradient.T[-1])

    for way, threads in (("serial", 1), ("parallel", pb.get_num_threads())):
        yield Contender(
            "scikit-learn",
            way,
            partial(loss.loss_gradient, coefficients.T, X, y, n_threads=threads),
            arrays,
        )


# Rows of a block of columns: with 100 of them, its 400 KB stay in L2 from one pass to the next.
_BLOCK = 512


@cache
def _numba_loops(numba: Any, loss: str, dtype: Any, rows_are_contiguous: bool) -> tuple[Any, Any]:
    """Read X once: a row or a block's predictions, then its gradient while it is cached."""
    one = dtype.type(1)
    lane = LOSSES[loss].numba
    assert lane is not None
    score = numba.njit(fastmath=True, inline="always")(lane(one))
    zero = one - one

    def rows(X: Any, y: Any, w: Any, b: Any, begin: int, end: int, gw: Any) -> Any:
        total = gb = zero
        d = X.shape[1]
        for i in range(begin, end):
            z = b
            for j in range(d):
                z += X[i, j] * w[j]
            value, slope = score(z, y[i])
            if slope != zero:
                for j in range(d):
                    gw[j] += slope * X[i, j]
                gb += slope
            total += value
        return total, gb

    def columns(X: Any, y: Any, w: Any, b: Any, begin: int, end: int, gw: Any) -> Any:
        total = gb = zero
        d = X.shape[1]
        z = np.empty(_BLOCK, X.dtype)
        for start in range(begin, end, _BLOCK):
            count = min(_BLOCK, end - start)
            z[:] = b
            for j in range(d):
                for i in range(count):
                    z[i] += X[start + i, j] * w[j]
            for i in range(count):
                value, z[i] = score(z[i], y[start + i])
                total += value
                gb += z[i]
            for j in range(d):
                part = zero
                for i in range(count):
                    part += X[start + i, j] * z[i]
                gw[j] += part
        return total, gb

    walk = numba.njit(fastmath=True)(rows if rows_are_contiguous else columns)

    @numba.njit(fastmath=True)
    def serial(X: Any, y: Any, w: Any, b: Any) -> Any:
        n, d = X.shape
        gw = np.zeros(d, X.dtype)
        total, gb = walk(X, y, w, b, 0, n, gw)
        scale = X.dtype.type(1 / n)
        for j in range(d):
            gw[j] *= scale
        return total * scale, (gw, gb * scale)

    @numba.njit(fastmath=True, parallel=True)
    def parallel(X: Any, y: Any, w: Any, b: Any) -> Any:
        n, d = X.shape
        parts = numba.get_num_threads()
        padded = (d + 31) // 16 * 16  # no cache line of two threads
        gws = np.zeros((parts, padded), X.dtype)
        totals = np.zeros((parts, 16), X.dtype)
        gbs = np.zeros((parts, 16), X.dtype)
        for part in numba.prange(parts):
            begin, end = n * part // parts, n * (part + 1) // parts
            totals[part, 0], gbs[part, 0] = walk(X, y, w, b, begin, end, gws[part])
        gw = np.zeros(d, X.dtype)
        scale = X.dtype.type(1 / n)
        for part in range(parts):
            for j in range(d):
                gw[j] += gws[part, j]
        for j in range(d):
            gw[j] *= scale
        return totals[:, 0].sum() * scale, (gw, gbs[:, 0].sum() * scale)

    return serial, parallel


# --- Hessian-vector product with kept curvature ---------------------------------------------------


def hvp(model: Model, v: tuple[Any, float]) -> Iterator[Contender]:
    """Yield every way to multiply by the Hessian at one point again and again."""
    loss, X, y, w, b = model
    vw, vb = v
    objective = pb.LinearObjective(X, y, loss=getattr(pb, loss))
    theta, direction = np.append(w, b).astype(float), np.append(vw, vb).astype(float)

    def split(result: Any) -> tuple[Any, ...]:
        return result[:-1], np.asarray(result[-1])

    def pair(result: Any) -> tuple[Any, ...]:
        return tuple(map(np.asarray, result))

    yield Contender("pullback", "", lambda: objective.hvp(theta, direction), split)
    c = getattr(pb.reference, loss).curvature(X, y, w, b).astype(X.dtype)

    def by_numpy() -> Any:
        z = X @ vw
        z += X.dtype.type(vb)
        z *= c
        return X.T @ z, z.sum()

    yield Contender("NumPy", "", by_numpy, pair)
    if torch := optional("torch"):
        tX, tc, tv = map(torch.from_numpy, (X, c, vw))

        def by_torch() -> Any:
            z = torch.mv(tX, tv).add_(vb).mul_(tc)
            return torch.mv(tX.T, z), z.sum()

        yield Contender("PyTorch", "by hand", by_torch, pair)
    if jax := optional("jax"):
        jax.config.update("jax_enable_x64", True)

        @jax.jit
        def by_hand(X: Any, c: Any, vw: Any, vb: Any) -> Any:
            z = c * (X @ vw + vb)
            return X.T @ z, z.sum()

        given = tuple(jax.numpy.asarray(a, X.dtype) for a in (X, c, vw, vb))
        ready = jax.block_until_ready
        yield Contender("JAX", "by hand", lambda: ready(by_hand(*given)), pair)
    if LOSSES[loss].sklearn and optional("sklearn"):
        theirs, coefficients, targets = _linear_model_loss(LOSSES[loss].sklearn or "", model)
        threads = pb.get_num_threads()
        _, product = theirs.gradient_hessian_product(coefficients, X, targets, n_threads=threads)
        theta_v = direction.astype(X.dtype)
        yield Contender("scikit-learn", "", lambda: product(theta_v), split)

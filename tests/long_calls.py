"""Calls that take long, of every kind of engine and of ways in.

Each has Python code that defines ``make(n)``, which gives a call without arguments, good for once
where it writes in place; and the n to begin with. Rows repeat by a stride of zero, so that they
take no memory. Fresh pages take longer than a call that does little for each number, so that
calls do much. ``spread(low, high, n)`` is an array of numbers between two; sines of numbers up to
1e300 take long, and so little memory.
"""

from __future__ import annotations

from typing import Final

LONG_CALLS: Final = {
    "relu_mse": (
        2000,
        """
def make(n, d=10_000):
    X, y, w = np.broadcast_to(np.ones(d), (n, d)), np.ones(n), np.ones(d)
    return lambda: pb.relu_mse.value_and_grad(X, y, w, 0.0)
""",
    ),
    "few wide rows": (
        16,
        """
def make(n, d=5_000_000):
    X, y, w = np.broadcast_to(np.ones(d), (n, d)), np.ones(n), np.ones(d)
    return lambda: pb.relu_mse.value_and_grad(X, y, w, 0.0)
""",
    ),
    "Fortran order": (
        100_000,
        """
def make(n, d=1000):
    X, y, w = np.broadcast_to(np.ones((n, 1)), (n, d)), np.ones(n), np.ones(d)
    return lambda: pb.logistic.value_and_grad(X, y, w, 0.0)
""",
    ),
    "few long columns": (
        1_000_000,
        """
def make(n, d=3):
    X, y, w = np.broadcast_to(np.ones((n, 1)), (n, d)), np.ones(n), np.ones(d)
    return lambda: pb.logistic.value_and_grad(X, y, w, 0.0)
""",
    ),
    "hvp": (
        2000,
        """
def make(n, d=10_000):
    X, y, w = np.broadcast_to(np.ones(d), (n, d)), np.ones(n), np.ones(d)
    return lambda: pb.logistic.hvp(X, y, w, 0.0, (w, 1.0))
""",
    ),
    "several outputs of a model": (
        500,
        """
def make(n, d=2000, k=10):
    X, y = np.broadcast_to(np.ones(d), (n, d)), np.zeros(n, int)
    w = np.ones((d, k))
    return lambda: pb.softmax_cross_entropy.value_and_grad(X, y, w, np.zeros(k))
""",
    ),
    "a small X of many outputs": (
        2000,
        """
def make(n):
    X, y, w = np.ones((100, 100)), np.ones((100, n)), np.ones((100, n))
    return lambda: pb.squared_error.value_and_grad(X, y, w, np.zeros(n))
""",
    ),
    "gram": (
        100,
        """
def make(n, d=2000):
    X = np.broadcast_to(np.ones(d), (n, d))
    return lambda: pb.gram(X)
""",
    ),
    "gram of sparse rows": (
        100,
        """
from collections import namedtuple
def make(n, d=300):
    X = namedtuple("Sparse", "format data indices indptr shape")(
        "csr", np.ones(n * d), np.tile(np.arange(d), n), np.arange(n + 1) * d, (n, d))
    return lambda: pb.gram(X)
""",
    ),
    "sparse rows": (
        100,
        """
from collections import namedtuple
def make(n, d=1000, k=64):
    X = namedtuple("Sparse", "format data indices indptr shape")(
        "csr", np.ones(n * d), np.tile(np.arange(d), n), np.arange(n + 1) * d, (n, d))
    y, w = np.ones((n, k)), np.ones((d, k))
    return lambda: pb.logistic.value_and_grad(X, y, w)
""",
    ),
    "sparse columns": (
        100,
        """
from collections import namedtuple
def make(n, d=1000, k=32):
    X = namedtuple("Sparse", "format data indices indptr shape")(
        "csc", np.ones(n * d), np.tile(np.arange(n), d), np.arange(d + 1) * n, (n, d))
    y, w = np.ones((n, k)), np.ones((d, k))
    return lambda: pb.logistic.value_and_grad(X, y, w)
""",
    ),
    "converted data": (
        1000,
        """
def make(n, d=10_000):
    X, y, w = np.broadcast_to(np.ones(d, np.int8), (n, d)), np.ones(n), np.ones(d)
    return lambda: pb.logistic.value_and_grad(X, y, w, 0.0)
""",
    ),
    "an objective over chunks": (
        20,
        """
def make(n, d=10_000):
    chunk = np.broadcast_to(np.ones(d), (100, d)), np.ones(100)
    objective = pb.LinearObjective([chunk] * n, loss=pb.logistic)
    return lambda: objective.value_and_grad(np.ones(d + 1))
""",
    ),
    "elementwise": (
        1_000_000,
        """
def make(n):
    x = spread(-1e300, 1e300, n)
    return lambda: pb.sin.vjp(x, x, out=x)
""",
    ),
    "chain": (
        1_000_000,
        """
def make(n):
    x, f = spread(-1e150, 1e150, n), pb.chain(pb.square, pb.sin, pb.negative, pb.tanh)
    return lambda: f.vjp(x, x)
""",
    ),
    "several outputs": (
        1_000_000,
        """
def make(n):
    x = spread(-30, 30, n)
    return lambda: pb.tanh.value_and_derivative(x)
""",
    ),
    "strided": (
        1_000_000,
        """
def make(n):
    x = spread(-1e300, 1e300, 2 * n)[::2]
    return lambda: pb.sin.vjp(x, x, out=x)
""",
    ),
    "rows of a wider array": (
        1000,
        """
def make(n):
    x = spread(-1e300, 1e300, n * 1000).reshape(-1, 1000)[:, :990]
    return lambda: pb.sin.vjp(x, x, out=x)
""",
    ),
    "integers": (
        1_000_000,
        """
def make(n):
    x, out = np.arange(n) << 40, np.empty(n)
    return lambda: pb.sin.vjp(x, x, out=out)
""",
    ),
    "summed cotangents": (
        500,
        """
def make(n, d=2000):
    w, x, g = np.ones((n, 1)), np.ones(d), np.broadcast_to(1.0, (n, d))
    return lambda: pb.divide.vjp(w, x, g)
""",
    ),
    "over what lies behind": (
        16_000_000,
        """
def make(n):
    x = spread(-1e300, 1e300, n)
    return lambda: pb.sin(x[1:], out=x[:-1])
""",
    ),
    "matmul": (
        100,
        """
def make(n, k=3000):
    A, B = np.ones((n, k)), np.ones((k, k))
    return lambda: pb.matmul(A, B)
""",
    ),
    "matmul.vjp": (
        50,
        """
def make(n, k=2000):
    A, B = np.ones((n, k), np.float32), np.ones((k, k), np.float32)
    return lambda: pb.matmul.vjp(A, B, A)
""",
    ),
    "a batch of products": (
        2,
        """
def make(n, k=600):
    A, B = np.broadcast_to(np.ones((k, k)), (n, k, k)), np.ones((k, k))
    return lambda: pb.matmul(A, B)
""",
    ),
    "linear": (
        100,
        """
def make(n, k=1500):
    X, W, b = np.ones((n, k)), np.ones((k, k)), np.ones(k)
    return lambda: pb.linear.vjp(X, W, b, X, activation=pb.relu)
""",
    ),
    "byte-swapped": (
        1_000_000,
        """
def make(n):
    x, out = spread(-1e300, 1e300, n).astype(">f8"), np.empty(n)
    return lambda: pb.sin.vjp(x, x, out=out)
""",
    ),
    "with a where": (
        1_000_000,
        """
def make(n):
    x, where = spread(-1e300, 1e300, n), np.arange(n) % 1000 != 0
    return lambda: pb.sin(x, out=x, where=where)
""",
    ),
    "outer": (
        500,
        """
def make(n):
    x, y = spread(-30, 30, n), spread(-3, 3, 2000)
    return lambda: pb.logaddexp.outer(x, y)
""",
    ),
    "broadcast": (
        500,
        """
def make(n):
    x, y = spread(0, 30, n), spread(-3, 3, 2000)
    return lambda: pb.power(x[:, None], y)
""",
    ),
    "reduce": (
        100_000,
        """
def make(n):
    x = spread(-30, 30, n)
    return lambda: pb.logaddexp.reduce(x)
""",
    ),
    "reduce along rows": (
        100,
        """
def make(n):
    x = spread(-30, 30, n * 1000).reshape(-1, 1000)
    return lambda: pb.logaddexp.reduce(x, axis=1)
""",
    ),
    "reduce across rows": (
        500,
        """
def make(n):
    x = spread(-30, 30, n * 2000).reshape(-1, 2000)
    return lambda: pb.logaddexp.reduce(x, axis=0)
""",
    ),
    "accumulate": (
        100_000,
        """
def make(n):
    x = spread(-30, 30, n)
    return lambda: pb.logaddexp.accumulate(x, out=x)
""",
    ),
    "accumulate integers": (
        100_000,
        """
def make(n):
    x = np.arange(n)
    return lambda: pb.logaddexp.accumulate(x)
""",
    ),
    "reduceat": (
        100_000,
        """
def make(n):
    x = spread(-30, 30, n)
    return lambda: pb.logaddexp.reduceat(x, [0, n // 2])
""",
    ),
    "at": (
        100_000,
        """
def make(n):
    x, at = np.zeros(1000), np.arange(n) % 1000
    def call():
        pb.logaddexp.at(x, at, at)
        return x
    return call
""",
    ),
    "a reduction": (
        1_000_000,
        """
def make(n):
    x = spread(-30, 30, n)
    return lambda: pb.norm.value_and_grad(x, 2.5)
""",
    ),
    "a reduction of columns": (
        500,
        """
def make(n):
    x = spread(-30, 30, n * 2000).reshape(-1, 2000)
    return lambda: pb.norm2.vjp(x, np.ones(2000), axis=0)
""",
    ),
    "softmax": (
        1000,
        """
def make(n):
    x = spread(-30, 30, n * 1000).reshape(-1, 1000)
    return lambda: pb.softmax.vjp(x, x)
""",
    ),
    "a bilinear form": (
        1000,
        """
def make(n, d=10_000):
    X, u, v = np.broadcast_to(spread(-1, 1, d), (n, d)), spread(-3, 3, n), np.ones(d)
    return lambda: pb.bilinear_form.value_and_grad(u, X, v, wrt=(0, 2))
""",
    ),
    "pointwise": (
        100_000,
        """
def make(n):
    z, y = spread(-30, 30, n), spread(-1, 1, n)
    return lambda: pb.log_cosh.pointwise(z, y)
""",
    ),
}

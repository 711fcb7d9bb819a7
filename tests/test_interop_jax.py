"""The door to JAX: every primitive and loss by JAX's own checks, and bit by bit."""

from __future__ import annotations

import inspect
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pullback as pb
import pullback.interop.jax as pj
import pytest
from jax.test_util import check_grads
from pullback.catalogue import primitives as registry
from pullback.tables.elementwise import OpRow
from pullback.tables.losses import LossRow
from pullback.tables.products import ProductRow
from pullback.tables.reductions import ReductionRow
from pullback.tables.selections import SelectionRow

SIZES = {"m": 2, "k": 3, "n": 2}  # of the letters in a product's signature


@pytest.fixture(autouse=True)
def _of_64_bits() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


class Case:
    """A function with arrays for it, and the same of the NumPy door."""

    def __init__(self, name: str) -> None:
        path, _, pointwise = name.partition(".")
        self.name, self.f = name, pj.primitives[path]
        of_numpy = registry[path]
        row, rng = self.f.row, np.random.default_rng(len(name))
        self.options: dict[str, Any] = {}
        if isinstance(row, OpRow):
            shapes = [(2, 3), (3,), (2, 3)][-row.nin :]
            ranges = [domain.ordinary for domain in row.domain]
            arrays = [rng.uniform(*r, s) for r, s in zip(ranges, shapes, strict=True)]
        elif isinstance(row, ReductionRow):
            arrays = [rng.standard_normal((2, 3)) for _ in row.operands]
            self.options = {"axis": 1, **({"p": 3.0} if "p" in self.f.required else {})}
        elif isinstance(row, SelectionRow):
            arrays = [rng.standard_normal((2, 3)) for _ in row.operands]
            if name == "where":
                arrays[0] = arrays[0] > 0
            elif name == "take":
                arrays[1], self.options = np.array([[2, 0], [2, -1]]), {"axis": 1}
        elif isinstance(row, ProductRow):
            groups = re.findall(r"\(.*?\)", row.signature)[: len(row.operands)]
            batches = [(2,) * ("..." in g) for g in groups]
            cores = [tuple(SIZES[c] for c in re.findall("[a-z]", g)) for g in groups]
            pairs = zip(batches, cores, strict=True)
            arrays = [rng.standard_normal(batch + core) for batch, core in pairs]
            self.options = {"activation": "tanh"} if row.options else {}
        else:
            assert isinstance(row, LossRow)
            X, b = rng.standard_normal((4, 2)), np.array(0.25)
            w = rng.standard_normal((2, 3) if row.of_classes else (2,))
            y = row.draw(rng, X @ w + b)
            y = y if y.dtype.kind == "i" else y.astype(float)
            arrays = [X, y, w, b, rng.random(4), rng.standard_normal(4)]
            if pointwise:
                arrays, self.f = [X @ w + b, y], self.f.pointwise
                of_numpy = of_numpy.pointwise
            else:
                of_numpy = of_numpy.value
        self.of_numpy, self.arrays = of_numpy, arrays
        self.of_model = isinstance(row, LossRow) and not pointwise
        self.moved = [arrays[k] for k in self.f.moved]

    def call(self, f: Any, arrays: Any) -> Any:
        if self.of_model:
            *given, offset = arrays
            return f(*given, offset=offset)
        return f(*arrays, **self.options)

    def of_moved(self, *moved: Any) -> Any:
        arrays = [*self.arrays]
        for k, a in zip(self.f.moved, moved, strict=True):
            arrays[k] = a
        return self.call(self.f, arrays)


def names() -> list[str]:
    losses = [name for name in pj.primitives if isinstance(pj.primitives[name].row, LossRow)]
    return [*pj.primitives, *(f"{name}.pointwise" for name in losses)]


@pytest.fixture(params=names(), scope="module")
def case(request: Any) -> Case:
    return Case(request.param)


def test_every_primitive_is_there() -> None:
    assert list(pj.primitives) == list(registry)
    assert len(names()) > 90


def test_gradients_of_first_and_second_order(case: Case) -> None:
    check_grads(case.of_moved, case.moved, order=2, modes=["fwd", "rev"], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_are_those_of_the_numpy_door(case: Case, dtype: Any) -> None:
    arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in case.arrays]
    expected = case.call(case.of_numpy, arrays)
    for f in (case.f, jax.jit(lambda *a: case.call(case.f, a))):
        found = f(*arrays) if f is not case.f else case.call(f, arrays)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.asarray(expected, dtype))
    if case.of_model:
        names = [case.f.arrays[k] for k in case.f.moved if case.f.arrays[k] != "offset"]
        *given, offset = arrays
        gradients = registry[case.name].grad(*given, offset=offset, wrt=tuple(names))
        argnums = tuple(case.f.arrays.index(name) for name in names)
        found = jax.grad(lambda *a: case.call(case.f, (*a[:5], offset)), argnums)(*given)
    else:
        value = np.asarray(expected)
        g = np.linspace(-1, 1, value.size, dtype=dtype).reshape(value.shape)
        arguments, options = [*arrays], dict(case.options)
        arguments += [options.pop("p")] if "p" in options else []
        gradients = case.of_numpy.vjp(*arguments, g, **options)
        if len(case.f.moved) == 1:
            gradients = [gradients]
        moved = [arrays[k] for k in case.f.moved]

        def f(*moved: Any) -> Any:
            own = [*arrays]
            for k, a in zip(case.f.moved, moved, strict=True):
                own[k] = a
            return case.call(case.f, own)

        found = jax.vjp(f, *moved)[1](jnp.asarray(g))
    for ours, theirs in zip(found, gradients, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_batches(case: Case) -> None:
    """A batch has the results of its elements, and so have gradients."""
    pairs = [np.stack([a, a * 1.01]) for a in case.moved]

    def both(*moved: Any) -> Any:
        f = lambda *moved: jnp.sum(case.of_moved(*moved))  # noqa: E731
        return case.of_moved(*moved), jax.grad(f, tuple(range(len(moved))))(*moved)

    one = jax.jit(both)(*(a[1] for a in pairs))
    # A batch of all, and of the first alone.
    for axes in {(0,) * len(pairs), (0, *[None] * (len(pairs) - 1))}:
        given = [a if axis == 0 else a[1] for a, axis in zip(pairs, axes, strict=True)]
        batch = jax.jit(jax.vmap(both, axes))(*given)
        for whole, part in zip(jax.tree.leaves(batch), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(whole[1], part, rtol=1e-10, atol=1e-14)


A = np.random.default_rng(1).standard_normal((5, 4, 6))
B = np.random.default_rng(2).standard_normal((5, 6, 3))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (2, 1)])
def test_batches_of_matrices(axes: Any) -> None:
    operands = [M if k == 0 else M[0] if k is None else np.moveaxis(M, 0, k)
                for M, k in zip((A, B), axes, strict=True)]  # fmt: skip
    expected = jax.vmap(jnp.matmul, axes)(*operands)
    np.testing.assert_allclose(jax.vmap(pj.matmul, axes)(*operands), expected, atol=1e-12)
    both = [jax.vmap(jax.grad(lambda A, B, f=f: jnp.sum(jnp.sin(f(A, B))), (0, 1)), axes)
            for f in (pj.matmul, jnp.matmul)]  # fmt: skip
    ours, theirs = (f(*operands) for f in both)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_jacobians_and_batches_in_batches() -> None:
    W = B[0]
    for transform in (jax.jacrev, jax.jacfwd):
        ours = transform(lambda X: pj.linear(X, W))(A[0])
        np.testing.assert_allclose(ours, transform(lambda X: X @ W)(A[0]), atol=1e-12)
    nested = jax.vmap(jax.vmap(pj.matmul, (None, 0)), (0, None))(A, B)
    np.testing.assert_allclose(nested, A[:, None] @ B, atol=1e-12)


def test_second_derivatives_by_rows_are_those_by_formulas() -> None:
    """A new map, whose Jacobian nobody declared symmetric, has forward over forward, too."""
    x, t, u = A[0, :3]
    for f in (pj.softmax, pj.log_softmax, pj.layer_norm):
        options = (("axis", (0,)), *((("eps", 1e-5),) if "eps" in f.options else ()))
        call = pj.Call(f, "jvp", (0,), (0,), options=options)
        by_rows = pj.Function.second(f, call, [x], {0: t}, {0: u})
        np.testing.assert_allclose(by_rows, f.second(call, [x], {0: t}, {0: u}), atol=1e-12)


# --- options --------------------------------------------------------------------------------------


def test_masks_and_weights() -> None:
    x, where = A[0], A[1] > 0
    for options in ({"where": where}, {"where": where, "b": B[0][0, 0] ** 2}, {"b": A[2] ** 2}):
        np.testing.assert_array_equal(pj.logsumexp(x, 1, **options), pb.logsumexp(x, 1, **options))
        f = lambda x, o=options: pj.logsumexp(x, 1, **o)  # noqa: E731
        check_grads(f, (x,), order=1 + (len(options) > 1), modes=["fwd", "rev"])
        np.testing.assert_allclose(jax.vmap(lambda x, f=f: f(x))(A[:2])[0], f(x), atol=1e-12)
    masked = lambda x: pj.log_softmax(x, where=where)[where]  # noqa: E731
    check_grads(masked, (x,), order=2, modes=["fwd", "rev"])


def test_options_are_those_of_the_numpy_door() -> None:
    x = A[0]
    assert pj.max(x, axis=(0, -1), keepdims=True).shape == (1, 1)
    np.testing.assert_array_equal(pj.variance(x, [0], ddof=1), pb.variance(x, 0, ddof=1))
    np.testing.assert_array_equal(pj.norm(x, np.inf, 0), pb.norm(x, np.inf, 0))
    np.testing.assert_array_equal(pj.leaky_relu(x), pb.leaky_relu(x))
    for activation in ("gelu", pb.gelu, pj.gelu):
        found = pj.linear(x, B[0], activation=activation)
        np.testing.assert_array_equal(found, pb.linear(x, B[0], activation="gelu"))
    z, y = x[0], np.abs(x[1])
    np.testing.assert_array_equal(
        pj.huber.pointwise(z, y, delta=0.5), pb.huber(0.5).pointwise(z, y)
    )
    np.testing.assert_array_equal(pj.huber.pointwise(z, 0.25), pb.huber.pointwise(z, 0.25))
    total = pj.squared_error(x, x[:, 0], x[0], reduction="sum")
    assert total == pb.squared_error.value(x, x[:, 0], x[0], reduction="sum")
    assert str(inspect.signature(pj.norm)) == "(x, p, axis=None, keepdims=False, *, where=None)"


def test_dtypes() -> None:
    assert pj.tanh(1).dtype == pj.tanh(np.float64(1)).dtype == np.float64
    assert pj.tanh(np.ones(2, np.float32)).dtype == np.float32
    assert pj.hypot(np.ones(2, np.float32), 1.0).dtype == np.float32
    jax.config.update("jax_enable_x64", False)
    assert pj.tanh(np.ones(2)).dtype == pj.tanh(1).dtype == np.float32
    assert pj.tanh(np.zeros((0, 3))).shape == (0, 3)


def test_subnormal_numbers_are_kept() -> None:
    """XLA's threads may flush them."""
    tiny = jnp.full((50_000, 2), 1e-310)
    many = jax.jit(lambda x: [pj.sum(x + k, axis=1) for k in (0, 0.0)] + [pj.identity(x)])(tiny)
    assert np.all(np.asarray(many[0]) == 2e-310)
    assert np.all(np.asarray(many[2]) == 1e-310)


X, Y = A[:, :, 0], (B[:, 0, 0] > 0) * 1.0
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: pj.tanh(jnp.ones(2, jnp.bfloat16)), TypeError, "tanh: x: .*not bfloat16"),
    (lambda: pj.tanh(1j), TypeError, "tanh: x: .*not complex128"),
    (lambda: pj.tanh("a"), TypeError, "tanh: x: "),
    (lambda: pj.tanh(None), TypeError, "tanh: x is None"),
    (lambda: pj.tanh(), TypeError, "tanh: missing a required argument: 'x'"),
    (lambda: pj.tanh(1.0, out=2), TypeError, "tanh: got an unexpected keyword argument 'out'"),
    (lambda: pj.hypot(np.ones(3), np.ones(4)), ValueError, r"hypot: w has shape \(3,\), x has"),
    (lambda: pj.matmul(A[0], A[0]), ValueError, "matmul: A has shape .* k is 6 in A, and 4 in B"),
    (lambda: pj.dot(A, A[0]), ValueError, r"dot: x has shape \(5, 4, 6\), y has \(4, 6\)"),
    (lambda: pj.softmax(A, axis=3), np.exceptions.AxisError, "softmax: axis 3 is out of bounds"),
    (lambda: pj.norm(A, 0.5), ValueError, "norm: p is 0.5, needs"),
    (lambda: jax.jit(lambda p: pj.norm(A, p))(2.0), TypeError, "norm: p must be known"),
    (lambda: pj.linear(A, B[0], activation="f"), TypeError, "linear: activation must be"),
    (lambda: pj.huber(X, Y, X[0], delta=-1), ValueError, "delta is -1.0, needs"),
    (lambda: pj.huber(X, Y, X[0, :2]), ValueError, r"huber: X has shape \(5, 4\), w has \(2,\)"),
    (lambda: pj.huber(X, Y, X[0], reduction="all"), ValueError, "huber: reduction is 'all'"),
    (lambda: pj.huber.pointwise(X, Y), ValueError, "huber.pointwise: y has shape"),
    (lambda: jax.grad(pj.logistic, 1)(X, Y, X[0]), TypeError, "no derivative by y; .*stop_gr"),
    (lambda: pj.logistic(X, Y + 2, X[0]), Exception, r"pullback: ValueError: logistic.value: y\["),
    (lambda: pj.max(np.ones((0, 2))), Exception, "pullback: ValueError: max: x has shape"),
    (lambda: jax.hessian(jax.grad(pj.tanh))(0.5), NotImplementedError, "tanh: .*third order"),
    (lambda: pj.function_of(3), TypeError, "function_of: f must be"),
    (lambda: pj.gello, AttributeError, "has no attribute 'gello'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=[e[2][:24] for e in ERRORS])
def test_errors(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "At:" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "advice"),
    [("jax", r"pip install 'pullback[jax]'"), ("pullback._jax", "PULLBACK_JAX=1 pip")],
)
def test_what_is_missing_is_said(missing: str, advice: str, run_python: Callable[..., Any]) -> None:
    finished = run_python(f"""
import sys
sys.modules[{missing!r}] = None
try:
    import pullback.interop.jax
except ImportError as error:
    print(error)
""")
    assert advice in finished.stdout


# --- objectives, and losses of one's own ----------------------------------------------------------


def test_an_objective() -> None:
    objective = pb.LinearObjective(X, Y, pb.logistic, l2=0.1)
    f = pj.function_of(objective)
    assert pj.function_of(objective) is f
    theta = np.linspace(-1, 1, objective.n_parameters)
    value, gradient = jax.jit(jax.value_and_grad(f))(theta)
    assert value == objective.value(theta)
    np.testing.assert_array_equal(gradient, objective.grad(theta))
    for hessian in (jax.hessian(f), jax.jacfwd(jax.jacfwd(f)), jax.jacrev(jax.jacrev(f))):
        np.testing.assert_allclose(hessian(theta), objective.hessian(theta), rtol=1e-12)
    with pytest.raises(ValueError, match=r"LinearObjective: theta has shape \(2,\), needs \(5,\)"):
        f(theta[:2])


def test_a_loss_of_ones_own() -> None:
    loss = pb.huber(0.5)
    f = pj.function_of(loss)
    value, gradient = jax.value_and_grad(f, argnums=2)(X, Y, X[0])
    assert (value, gradient.tolist()) == (
        loss.value(X, Y, X[0]), loss.grad(X, Y, X[0], wrt="w").tolist(),
    )  # fmt: skip
    np.testing.assert_array_equal(f.pointwise(Y, X[:, 0]), loss.pointwise(Y, X[:, 0]))


def test_a_loss_reads_the_data_once_for_value_and_gradients() -> None:
    text = str(jax.make_jaxpr(jax.value_and_grad(pj.logistic, argnums=(2, 3)))(X, Y, X[0], 0.5))
    assert text.count("pullback[") == 1
    labels = np.arange(5) % 3
    g = jax.grad(pj.softmax_cross_entropy, argnums=2)(X, labels, np.ones((4, 3)))
    assert g.shape == (4, 3)


# --- JAX ------------------------------------------------------------------------------------------


def test_programs() -> None:
    """Loops, rematerialisation, and pickles."""
    power = lambda w: jax.lax.scan(lambda c, _: (pj.tanh(c * w), None), 1.0, None, length=3)[0]  # noqa: E731
    theirs = lambda w: jnp.tanh(jnp.tanh(jnp.tanh(w) * w) * w)  # noqa: E731
    np.testing.assert_allclose(jax.grad(power)(0.5), jax.grad(theirs)(0.5), rtol=1e-13)
    f = lambda x: jnp.sum(pj.gelu(pj.softmax(x)))  # noqa: E731
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(f))(A[0]), jax.grad(f)(A[0]))
    for function in (pj.gelu, pj.logistic.pointwise):
        assert pickle.loads(pickle.dumps(function)) is function


def test_many_handlers_at_once() -> None:
    """Handlers wait neither for each other's threads nor for the GIL of one that waits."""
    x = np.random.default_rng(3).standard_normal((200, 300))

    @jax.jit
    def many(x: Any) -> Any:
        shifted = [x + k for k in range(8)]
        return [pj.gelu(s) for s in shifted] + [pj.softmax(s, axis=0) for s in shifted]

    expected = [pb.gelu(x + k) for k in range(8)] + [pb.softmax(x + k, axis=0) for k in range(8)]
    failed: list[Any] = []

    def work() -> None:
        try:
            for _ in range(3):
                pairs = zip(many(x), expected, strict=True)
                failed.extend(1 for a, b in pairs if not np.array_equal(a, b))
                pb.gelu(x)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_python_ends_amid_a_computation(run_python: Callable[..., Any]) -> None:
    finished = run_python("""
import jax, numpy as np, pullback.interop.jax as pj
jax.jit(lambda x: [pj.softmax(x + k) for k in range(50)])(np.ones((300, 300)))
print("ends")
""")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "ends\n"


CACHED = """
import sys, jax, numpy as np, pullback as pb, pullback.interop.jax as pj
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
if sys.argv[2] == "another":
    pj.norm1(np.ones((3, 3)), axis=0)
x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
f = jax.jit(lambda x: pj.softmax(x, axis=0) * pj.hypot(x, x[:, :1]))
assert np.array_equal(f(x), pb.softmax(x, axis=0) * pb.hypot(x, x[:, :1]))
"""


def test_what_jax_caches_means_the_same_in_another_process(
    run_python: Callable[..., Any], tmp_path: Any
) -> None:
    for process in ("one", "another"):
        script = CACHED.replace("sys.argv[1]", repr(str(tmp_path)))
        finished = run_python(script.replace("sys.argv[2]", repr(process)))
        assert finished.returncode == 0, finished.stderr
        assert list(tmp_path.iterdir())


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np, pullback as pb, pullback.interop.jax as pj
from jax.sharding import AxisType, PartitionSpec as P
mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
x, W = np.linspace(-1, 1, 24).reshape(4, 6), np.linspace(-1, 1, 18).reshape(6, 3)
x, W = np.float32(x), np.float32(W)

def sharded(f, *specs):
    return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("i"))

assert np.array_equal(sharded(pj.softmax, P("i"))(x), pb.softmax(x))
layer = lambda x, W: pj.linear(x, W, activation="tanh")
for transform in (lambda f: f, jax.jit):
    whole = transform(jax.grad(lambda W: jnp.sum(layer(x, W) ** 2)))(W)
    parts = transform(jax.grad(lambda W: jnp.sum(sharded(layer, P("i"), P())(x, W) ** 2)))(W)
    assert np.allclose(whole, parts, atol=1e-5)
spread = jax.device_put(x, jax.NamedSharding(mesh, P("i")))
assert np.array_equal(jax.jit(pj.gelu)(spread), pb.gelu(x))
"""


def test_on_several_devices(run_python: Callable[..., Any]) -> None:
    finished = run_python(SHARDED)
    assert finished.returncode == 0, finished.stderr

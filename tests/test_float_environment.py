"""Rounding modes and flushing that another library has set change no bit of any public call."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pullback as pb
import pytest
import structured
from fp_env import FloatEnvironment
from linear_models import CASES, Case, by_id, model
from protocol import CALLS, METHODS, Call, leaves
from pullback.jacobians import Jacobian
from scipy import sparse

pytestmark = pytest.mark.native

Made = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
TINY = np.float64(2.0**-1060)
rng = np.random.default_rng(5)


class Array(np.ndarray[Any, Any]):
    """What goes to NumPy."""


def numbers(result: Any) -> Iterator[Any]:
    """Yield all that a result holds, as arrays, and what else it is."""
    for leaf in leaves(result):
        if isinstance(leaf, Jacobian):
            yield np.asarray(leaf.todense())
        elif isinstance(leaf, pb.PartialSums):
            yield from map(np.asarray, (leaf.loss, leaf.gw, leaf.gb, leaf.weight))
        elif isinstance(leaf, pb.GradCheck):
            yield from map(np.asarray, (str(leaf), leaf.worst.measured))
        elif leaf is not None:
            yield np.asarray(leaf)


def bits(result: Any) -> list[Any]:
    return [(array.dtype, array.shape, array.tobytes()) for array in numbers(result)]


def subnormals(result: Any) -> int:
    return sum(
        int(np.sum((array != 0) & (np.abs(array) < np.finfo(array.dtype).tiny)))
        for array in numbers(result)
        if array.dtype.kind == "f"
    )


@np.errstate(all="ignore")  # NumPy warns of what it narrows
def judge(fenv: FloatEnvironment, calls: Iterable[Made]) -> None:
    """Fail unless calls give the same bits in every mode, and leave the mode alone."""
    found = 0
    for call, given, options in calls:
        wanted = call(*given, **options)
        found += subnormals(wanted)
        for name in ("upward", "flush to zero"):
            mode = fenv.MODES[name]
            fenv.set_mode(mode)
            try:
                result = call(*given, **options)
            finally:
                after = fenv.mode()
                fenv.set_mode(0)
            assert after == mode
            assert bits(result) == bits(wanted), (call, given, options, name)
    assert found > 0


def tiny(dtype: Any, shape: tuple[int, ...]) -> Any:
    return (rng.integers(1, 99, shape) * np.finfo(dtype).smallest_subnormal).astype(dtype)


def of_each_kind(at: list[Any]) -> Iterator[list[Any]]:
    """Yield arguments in forms that take every way through."""
    yield at
    yield [x.tolist() for x in at]
    yield [x.view(Array) for x in at]
    yield [x.astype(x.dtype.newbyteorder())[::-1] for x in at]


def elementwise_calls(call: Call) -> Iterator[Made]:
    f, row = call.native(), call.row
    for dtype in (np.float64, np.float32):
        # All arguments are near 0, or none but cotangents and tangents.
        near = [tiny(dtype, (2, 3)) for _ in range(call.nin)]
        inside = [rng.uniform(*domain.ordinary, (2, 3)).astype(dtype) for domain in row.domain]
        inside += near[row.nin :]
        yield from ((f, tuple(at), {}) for x in (near, inside) for at in of_each_kind(x))
        if call.method == "vjp":
            short = [x[:1] if k > 0 else x for k, x in enumerate(inside[: row.nin])]
            for (g,) in of_each_kind([tiny(dtype, (4, 2, 3))]):
                yield f, (*short, g), {}
                yield f, (*short, g), {"where": np.array([[True], [False]])}
    # What is narrowed on the way in, or on the way out.
    small = tiny(np.float32, (2, 3)).astype(float)
    for at in (inside[: row.nin] + [small] * (call.nin - row.nin), [small] * call.nin):
        mixed = (*(x.astype(float) for x in at[:-1]), at[-1])
        yield f, mixed, {"dtype": np.float32}
        outs = tuple(np.zeros((2, 3), np.float32) for _ in range(call.nout))
        for where in (True, np.array([True, False, True])):
            yield f, mixed, {"out": outs[0] if call.nout == 1 else outs, "where": where}
    if call.method == "value" and row.nin == 2:
        x = small[0]
        yield from ((g, (x,), {"dtype": np.float32}) for g in (f.reduce, f.accumulate))
        yield f.reduceat, (x, [0, 2]), {"dtype": np.float32}
        yield f.outer, (x, x), {"dtype": np.float32}
        yield f.outer, (x, x.view(Array)), {"dtype": np.float32}


@pytest.mark.parametrize("method", METHODS[1])
def test_elementwise(method: str, fenv: FloatEnvironment) -> None:
    calls = [call for call in CALLS if call.method == method]
    judge(fenv, itertools.chain.from_iterable(map(elementwise_calls, calls)))


@pytest.mark.parametrize("name", pb.reductions.reductions)
def test_reductions(name: str, fenv: FloatEnvironment) -> None:
    f = pb.primitives[name]
    n = len(f.row.operands)
    rest = [2.5] * (len(f.row.leading) - n)

    def calls() -> Iterator[Made]:
        for dtype, near in itertools.product((np.float64, np.float32), (True, False)):
            draw = tiny if near else lambda dtype, shape: rng.uniform(0.5, 2, shape).astype(dtype)
            operands = [draw(dtype, (2, 3)) for _ in range(n)]
            for at, axis in itertools.product(of_each_kind(operands), (0, 1)):
                value = f.value(*at, *rest, axis=axis)
                gs = (tiny(dtype, np.shape(value)), tiny(dtype, (2, *np.shape(value))))
                given = (*at, *rest)
                yield f, given, {"axis": axis}
                yield f.jacobian, given, {"axis": axis}
                yield f.jvp, (*given, *(tiny(dtype, (2, 3)) for _ in at)), {"axis": axis}
                yield from ((f.vjp, (*given, g), {"axis": axis}) for g in gs)
                if not f.row.is_map:
                    yield f.value_and_grad, given, {"axis": axis}
                    yield f.grad, given, {"axis": axis, "out": given_outs(f, given, axis)}

    judge(fenv, calls())


def given_outs(f: Any, given: tuple[Any, ...], axis: int) -> Any:
    outs = tuple(np.zeros(np.shape(x), np.float32) for x in leaves(f.grad(*given, axis=axis)))
    return outs if len(f.row.operands) > 1 else outs[0]


PRODUCTS = {
    "matmul": [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((3,), (3, 2))],
    "linear": [((2, 3), (3, 4), (4,)), ((5, 2, 3), (3, 4), (4,))],
    "quadratic_form": [((3,), (3, 3)), ((5, 3), (3, 3))],
    "bilinear_form": [((2,), (2, 3), (3,)), ((5, 2), (2, 3), (5, 3))],
}


@pytest.mark.parametrize("name", pb.products.products)
def test_products(name: str, fenv: FloatEnvironment) -> None:
    f = pb.primitives[name]

    def calls() -> Iterator[Made]:
        for dtype, shapes in itertools.product((np.float64, np.float32), PRODUCTS[name]):
            operands = [rng.uniform(1, 2, shape).astype(dtype) for shape in shapes]
            operands[0] = tiny(dtype, shapes[0])
            for at in of_each_kind(operands):
                value = np.asarray(f(*at))
                g = tiny(dtype, (2, *value.shape))
                yield f, tuple(at), {}
                yield f, tuple(at), {"out": np.zeros(value.shape, np.float32)}
                yield f.vjp, (*at, g[0]), {}
                yield f.vjp, (*at, g.view(Array)), {"wrt": (1, 0)}
                yield f.jvp, (*at, *(tiny(dtype, shape) for shape in shapes)), {}
                yield f.jacobian, tuple(at), {}
                if name == "linear":
                    yield f, tuple(at), {"activation": pb.reference.gelu}
                    yield f.vjp, (*at, g[0]), {"activation": pb.tanh}
                elif value.ndim == 0 and name != "matmul":
                    yield f.value_and_grad, tuple(at), {}

    judge(fenv, calls())


losses = pytest.mark.parametrize("case", CASES, ids=by_id)


@losses
def test_losses(case: Case, fenv: FloatEnvironment) -> None:
    loss, m = case.of(), model(case, 40, 5)
    light = TINY * rng.integers(1, 99, 40)
    forms = [m.X, m.X.astype("f4"), m.X.astype("f2"), sparse.csr_array(m.X), m.X.tolist()]
    methods = ["value", "grad", "value_and_grad", "hvp", "curvature", "partial"]

    def calls() -> Iterator[Made]:
        for X, dtype in itertools.product(forms, (np.float64, np.float32)):
            w, b = m.w.astype(dtype), None if case.coupled else np.array([m.b], dtype)
            given = (X, m.y, w, b)
            # Of sums, which are narrowed to w's dtype.
            weights = light if dtype == np.float64 else tiny(dtype, (40,))
            for method, sums in itertools.product(methods, ("sum", "mean")):
                options = {} if method == "partial" else {"reduction": sums}
                options |= {"wrt": "all"} if "grad" in method else {}
                more = ((m.v[0], None),) if method == "hvp" else ()
                yield getattr(loss, method), (*given, *more), {**options, "sample_weight": weights}
        z = tiny(np.float64, m.y.shape) if case.coupled is False else m.X[:, :3] * TINY
        for at in of_each_kind([z]):
            yield loss.pointwise, (at[0], m.y), {}
            for name in ("derivative", "value_and_derivative", "second_derivative", "vjp"):
                g = (tiny(np.float64, (40,)),) if name == "vjp" else ()
                yield getattr(loss.pointwise, name), (at[0], m.y, *g), {}

    judge(fenv, calls())
    parts = [loss.partial(m.X, m.y, m.w, sample_weight=light) for _ in range(2)]
    total = parts[0] + parts[1]
    judge(fenv, [(type(total).__add__, tuple(parts), {}), (total.finish, ("sum",), {})])


@losses
def test_objectives(case: Case, fenv: FloatEnvironment) -> None:
    m = model(case, 40, 5)
    small = m.X * TINY
    light = TINY * rng.integers(1, 99, 40)

    def calls() -> Iterator[Made]:
        for X in (small, small.tolist(), sparse.csr_array(small)):
            for data in ((X, m.y), ([(small[:20], m.y[:20], light[:20]), (X, m.y, light)],)):
                options = {"n_outputs": 3} if case.labels else {}
                f = pb.LinearObjective(*data, loss=case.of(), l2=1e-310, **options)
                theta = np.ones(f.n_parameters)
                for method in ("value", "grad", "value_and_grad", "unpack"):
                    yield getattr(f, method), (theta,), {}
                yield f.hvp, (theta, theta), {}
                yield f.predict, (X, theta * TINY), {}
                yield f.unpack, (theta * TINY,), {}

    judge(fenv, calls())


@pytest.mark.parametrize("kind", [kind for kind in structured.KINDS if kind != "Zero"])
def test_jacobians(kind: str, fenv: FloatEnvironment) -> None:
    unary = (*(np.float64(x) for x in (0.375, TINY)), np.float32(0.375))

    def calls() -> Iterator[Made]:
        for dtype in (np.float64, np.float32):
            for J, _ in structured.everything(kind, dtype):
                scale = np.finfo(dtype).smallest_subnormal
                small = J * scale
                t, g = tiny(dtype, J.input_shape), tiny(dtype, J.output_shape)
                for j in (J, small, J.T):
                    for c in unary:
                        yield type(j).__mul__, (j, c), {}
                    yield j.diagonal, (), {}
                    yield j.__neg__, (), {}
                    yield j.todense, (), {}
                    yield j.tensor, ("denominator",), {}
                for v in (t, t.astype(float), t.view(Array), t.tolist()):
                    yield type(J).__matmul__, (J, v), {}
                    yield J.jvp, (v,), {}
                for v in (g, g.astype(float), g.view(Array), g.tolist()):
                    yield type(J).__rmatmul__, (J, v), {}
                    yield J.vjp, (v,), {}
                yield J.matvec, (t.reshape(-1),), {}
                yield J.rmatvec, (g.reshape(-1),), {}
                yield J.matmat, (t.reshape(-1, 1),), {}
                yield J.rmatmat, (g.reshape(-1, 1),), {}
                yield type(J).__add__, (J * (2 * scale), small), {}
                yield type(J).__sub__, (J * (3 * scale), small), {}
                yield type(J).__matmul__, (small, J.T), {}

    judge(fenv, calls())


CHAINS = {
    "elementwise": (pb.tanh, (pb.multiply, pb.arg, 0.625), pb.expm1),
    "twice": ((pb.multiply, pb.arg, np.ones(3)), (pb.add, pb.arg, pb.arg)),
    "twin": (pb.reference.tanh, (pb.reference.multiply, pb.arg, 0.625)),
    "form": ((pb.dot, pb.arg, np.full(3, 0.375)), pb.sin),
    "layer": ((pb.linear, pb.arg, np.eye(3) + 0.375, np.zeros(3)), pb.tanh, pb.norm2),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str, fenv: FloatEnvironment) -> None:
    f = pb.chain(*CHAINS[name])

    def calls() -> Iterator[Made]:
        for dtype in (np.float64, np.float32):
            for x in (tiny(dtype, (3,)), np.array([0.25, 0.5, -0.75], dtype)):
                value = np.asarray(f(x))
                for at in (x, x.view(Array), x.tolist()):
                    g, t = tiny(dtype, value.shape), tiny(dtype, (3,))
                    yield f, (at,), {}
                    yield f.jvp, (at, t), {}
                    yield f.jacobian, (at,), {}
                    for cotangent in (g, np.stack([g, g])):
                        yield f.vjp, (at, cotangent), {"wrt": "all"}
                        yield f.value_and_vjp, (at, cotangent), {}
                    if value.ndim == 0:
                        yield f.value_and_grad, (at,), {"wrt": "all"}

    judge(fenv, calls())


def test_other_calls(fenv: FloatEnvironment) -> None:
    x, c = np.array([0.25, 1.5]), 2.0**-1030

    def f(x: Any) -> Any:
        return np.sum(c * x * x)

    calls: list[Made] = [
        (pb.check_grad, (f, lambda x: 2 * c * x, x), {}),
        (lambda delta: pb.huber(delta)._parameter, (np.float32(1e-40),), {}),
    ]
    judge(fenv, calls)


RAISING = [
    lambda: pb.tanh(np.ones(3, complex)),
    lambda: pb.tanh.vjp(np.ones(3), np.ones(2)),
    lambda: pb.Diagonal(np.ones(3)) @ np.ones(2),
    lambda: pb.add.reduce(np.ones(3), axis=2),
    lambda: pb.check_grad(lambda _: 1 / 0, lambda x: x, np.ones(2)),
    lambda: pb.LinearObjective(np.ones((3, 2)), np.ones(2), pb.logistic),
]


@pytest.mark.parametrize("k", range(len(RAISING)))
def test_mode_is_back_after_errors(k: int, fenv: FloatEnvironment) -> None:
    mode = fenv.MODES["flush to zero"]
    fenv.set_mode(mode)
    try:
        with pytest.raises((TypeError, ValueError, ArithmeticError)):
            RAISING[k]()
        assert fenv.mode() == mode
    finally:
        fenv.set_mode(0)


def test_each_thread_has_its_mode(fenv: FloatEnvironment) -> None:
    """While one flushes and waits in a callback, another does not; neither sees a difference."""
    mode = fenv.MODES["flush to zero"]
    inside, go_on = threading.Event(), threading.Event()
    seen: list[Any] = []

    def f(x: Any) -> float:
        inside.set()
        assert go_on.wait(10)
        return float(np.sum(x))

    def flushing() -> None:
        own = FloatEnvironment()
        own.set_mode(mode)
        seen.append(pb.check_grad(f, lambda x: 0 * x + 1, np.ones(2)).ok)
        seen.extend((own.mode(), pb.tanh.vjp(TINY, 1)))

    thread = threading.Thread(target=flushing)
    thread.start()
    assert inside.wait(10)
    assert fenv.mode() == 0
    assert pb.tanh.vjp(TINY, 1) == 1
    assert np.multiply(TINY, 0.5) == TINY / 2
    go_on.set()
    thread.join()
    assert seen == [True, mode, 1.0]
    assert fenv.mode() == 0

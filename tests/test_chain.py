"""Chains of primitives: the bits of one call after the other, structure, errors."""

from __future__ import annotations

import contextlib
import gc
import pickle
import signal
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pullback as pb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_models import loss_of
from oracles import assert_same_bits, special_values, ulp_error
from protocol import dtypes, each, on_any_target
from pullback.chains import Chain
from pullback.tables.elementwise import OPS

UNARY = [name for name, row in OPS.items() if row.nin == 1]
BINARY = [name for name, row in OPS.items() if row.nin == 2]
DTYPES = (np.float32, np.float64)
METHODS = ("value", "jvp", "vjp", "value_and_vjp")


# --- one operation after the other ----------------------------------------------------------------


class Link(NamedTuple):
    """An elementwise operation and its operands, `pb.arg` among them."""

    name: str
    operands: tuple[Any, ...] = (pb.arg,)

    def step(self, primitives: Any = pb) -> Any:
        op = getattr(primitives, self.name)
        return (op, *self.operands)

    def at(self, x: Any) -> tuple[Any, ...]:
        return tuple(x if operand is pb.arg else operand for operand in self.operands)

    @property
    def places(self) -> list[int]:
        return [k for k, operand in enumerate(self.operands) if operand is pb.arg]


def alone(link: Link, x: Any, g: Any, primitives: Any) -> tuple[Any, ...]:
    """Return value, tangent and cotangents of one link."""
    op = getattr(primitives, link.name)
    value = op(*link.at(x))
    if len(link.operands) == 1:
        return value, op.jvp(x, g), (op.vjp(x, g),)
    cotangents = op.vjp(*link.at(x), g)
    if len(link.places) == 2:
        return value, op.jvp(x, x, g, g), cotangents
    return value, cotangents[link.places[0]], cotangents  # diagonal: its own transpose


def after_each_other(links: Sequence[Link], x: Any, t: Any, primitives: Any = pb) -> dict[str, Any]:
    """Return what a chain has to give, `t` being tangent and cotangent."""
    values, tangent = [x], t
    for link in links:
        value, tangent, _ = alone(link, values[-1], tangent, primitives)
        values.append(value)
    g, bound = t, []
    for link, at in zip(links[::-1], values[-2::-1], strict=True):
        cotangents = alone(link, at, g, primitives)[2]
        bound[:0] = [c for k, c in enumerate(cotangents) if k not in link.places]
        first, *more = (cotangents[k] for k in link.places)
        g = primitives.add(first, *more) if more else first
    return {
        "value": values[-1],
        "jvp": tangent,
        "vjp": g,
        "value_and_vjp": (values[-1], g),
        "all": (g, *bound),
    }


def assert_same(links: Sequence[Link], x: Any, t: Any, primitives: Any = pb) -> None:
    """Fail unless every method of the chain gives the bits of one call after the other."""
    chain = pb.chain(*(link.step(primitives) for link in links))
    expected = after_each_other(links, x, t, primitives)
    for method in METHODS:
        result = getattr(chain, method)(*(x, t)[: 1 if method == "value" else 2])
        for one, other in zip(leaves(result), leaves(expected[method]), strict=True):
            assert_same_bits(one, other)
    for one, other in zip(chain.vjp(x, t, wrt="all"), expected["all"], strict=True):
        assert_same_bits(one, other)
    value, cotangents = chain.value_and_vjp(x, t, wrt="all")
    for one, other in zip((value, *cotangents), (expected["value"], *expected["all"]), strict=True):
        assert_same_bits(one, other)


def leaves(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


# --- random chains --------------------------------------------------------------------------------


def numbers(dtype: Any) -> np.ndarray:
    """Return ordinary numbers of either sign, and special ones."""
    rng = np.random.default_rng(7)
    ordinary = rng.normal(0, 2, 400).astype(dtype)
    return np.concatenate([ordinary, special_values(np.dtype(dtype))])


def pick(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(numbers(dtype), shape)


@st.composite
def chains(draw: Any) -> tuple[list[Link], np.ndarray, np.ndarray]:
    """Draw links, a primal and a tangent: operands of every kind that enlarges nothing."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(1,), (5,), (700,), (3, 4), (41, 33), (7, 1, 300), (2, 3, 4)]))
    links = []
    for _ in range(draw(st.integers(1, 7))):
        if draw(st.booleans()):
            links.append(Link(draw(st.sampled_from(UNARY))))
            continue
        name = draw(st.sampled_from(BINARY))
        kind = draw(st.sampled_from(["twice", "number", "scalar", "array"]))
        if kind == "twice":
            links.append(Link(name, (pb.arg, pb.arg)))
            continue
        if kind == "number":
            bound: Any = draw(st.sampled_from([2, -0.5, 0, 1e300, 3.0]))
        elif kind == "scalar":
            bound = dtype(draw(st.sampled_from([0.5, -2, 0])))
        else:
            kept = draw(st.tuples(*(st.booleans() for _ in shape)))
            own = tuple(n if keep else 1 for n, keep in zip(shape, kept, strict=True))
            while own and own[0] == 1 and draw(st.booleans()):
                own = own[1:]
            bound = pick(own, dtype, draw(st.integers(0, 99)))
        links.append(Link(name, (pb.arg, bound) if draw(st.booleans()) else (bound, pb.arg)))
    x, t = (pick(shape, dtype, draw(st.integers(0, 99))) for _ in range(2))
    return links, x, t


@settings(max_examples=100, deadline=None)
@given(chains())
def test_bits_of_random_chains(case: Any) -> None:
    with np.errstate(over="ignore"):  # NumPy's own, of 1e300 in float32
        assert_same(*case)


@settings(max_examples=40, deadline=None)
@given(chains())
def test_bits_of_the_twins(case: Any) -> None:
    with np.errstate(over="ignore"):
        assert_same(*case, pb.reference)


@dtypes
@each("name", UNARY)
@on_any_target
def test_every_unary_operation_inside(name: str, dtype: Any) -> None:
    """Between two others, at special points as well, on every instruction set."""
    x = numbers(dtype)
    assert_same([Link("negative"), Link(name), Link("tanh")], x, np.roll(x, 1))


@dtypes
@each("name", BINARY)
@on_any_target
def test_every_binary_operation_inside(name: str, dtype: Any) -> None:
    x = numbers(dtype)
    for operands in (
        (pb.arg, np.roll(x, 3)),
        (np.roll(x, 5), pb.arg),
        (pb.arg, pb.arg),
        (pb.arg, 2.0),
    ):
        assert_same([Link(name, operands), Link("tanh")], x, np.roll(x, 1))


# --- blocks, threads, memory ----------------------------------------------------------------------

MIXED = (
    Link("square"),
    Link("multiply", (pb.arg, -0.25)),
    Link("exp"),
    Link("maximum", (0.5, pb.arg)),
    Link("relu"),
    Link("multiply", (pb.arg, pb.arg)),
    Link("tanh"),
)


@dtypes
@pytest.mark.parametrize("around", [64, 512, 1024, 2048, 4096, 30_000])
def test_bits_at_the_ends_of_blocks(around: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for n in (around - 1, around, around + 1, 2 * around + 5):
        x, t, w = rng.normal(size=(3, n)).astype(dtype)
        assert_same([*MIXED, Link("subtract", (w, pb.arg))], x, t)


@dtypes
@pytest.mark.parametrize("shape", [(3000, 7), (11, 1999), (5, 2048), (3, 4, 1500), (2, 20_000)])
def test_bits_beside_rows_and_columns(shape: tuple[int, ...], dtype: Any) -> None:
    """An operand's period runs over the ends of blocks, and its repetitions do."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2, *shape)).astype(dtype)
    row = rng.normal(size=shape[1:]).astype(dtype)
    column = rng.normal(size=(*shape[:-1], 1)).astype(dtype)
    middle = rng.normal(size=(1, *shape[1:-1], 1)).astype(dtype)
    ends = rng.normal(size=(shape[0], *[1] * (len(shape) - 2), shape[-1])).astype(dtype)
    assert_same(
        [
            Link("subtract", (pb.arg, ends)),
            Link("multiply", (pb.arg, row)),
            Link("tanh"),
            Link("leaky_relu", (pb.arg, column)),
            Link("add", (middle, pb.arg)),
        ],
        x,
        t,
    )


@dtypes
def test_bits_of_more_steps_than_a_run_takes(dtype: Any) -> None:
    x, t = np.random.default_rng(0).normal(size=(2, 3000)).astype(dtype)
    assert_same([Link(name) for name in ("sin", "tanh", "relu", "cosh", "log1p")] * 9, x, t)


@dtypes
@pytest.mark.parametrize("offset", [0, 1])
def test_bits_of_what_is_streamed(dtype: Any, offset: int) -> None:
    """Results beyond 8 MiB; operands anywhere."""
    n = (1 << 23) // np.dtype(dtype).itemsize + 1001
    x, t = np.random.default_rng(0).normal(size=(2, n + offset)).astype(dtype)[:, offset:]
    f = pb.chain(pb.square, pb.negative, pb.exp, pb.relu)
    expected = after_each_other([Link(s) for s in ("square", "negative", "exp", "relu")], x, t)
    for method in METHODS:
        result = getattr(f, method)(*(x, t)[: 1 if method == "value" else 2])
        for one, other in zip(leaves(result), leaves(expected[method]), strict=True):
            assert one.tobytes() == other.tobytes()


@dtypes
@pytest.mark.native  # the twins have no threads
def test_bits_do_not_depend_on_threads(dtype: Any) -> None:
    x, t = np.random.default_rng(0).normal(size=(2, 1000, 301)).astype(dtype)
    row = np.linspace(-1, 1, 301).astype(dtype)
    f = pb.chain(*(link.step() for link in MIXED), (pb.multiply, row, pb.arg))
    with pb.threads(1):
        expected = f(x), f.jvp(x, t), f.vjp(x, t), *f.value_and_vjp(x, t)
    for threads in range(2, 9):
        with pb.threads(threads):
            for one, other in zip(
                (f(x), f.jvp(x, t), f.vjp(x, t), *f.value_and_vjp(x, t)), expected, strict=True
            ):
                assert one.tobytes() == other.tobytes()


@pytest.mark.native  # the twins compute step by step
@pytest.mark.parametrize("method", METHODS)
def test_no_temporaries(method: str) -> None:
    """Whatever the number of steps: the results, and a few blocks."""
    x, t = np.random.default_rng(0).normal(size=(2, 1000, 500))
    row = np.linspace(0, 1, 500)
    f = pb.chain(*(link.step() for link in MIXED), (pb.multiply, row, pb.arg))
    arguments = (x, t)[: 1 if method == "value" else 2]
    getattr(f, method)(*arguments)
    tracemalloc.start()
    result = getattr(f, method)(*arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    written = sum(one.nbytes for one in leaves(result))
    assert written <= peak < written + x.nbytes / 4


# --- what is not plain ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.astype(np.int8),
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(">f8"),
        lambda x: x[::2],
        lambda x: x[::-1],
        lambda x: x.reshape(40, -1).T,
        lambda x: np.broadcast_to(x[0], (3, 4)),
        lambda x: x[0],
        lambda x: x[:0],
        lambda x: float(x[0]),
        lambda x: x[3:4].reshape(()),
    ],
    ids=[
        "int8",
        "int64",
        "half",
        "swapped",
        "strided",
        "reversed",
        "fortran",
        "repeated",
        "scalar",
        "empty",
        "number",
        "0-d",
    ],
)
def test_bits_of_other_layouts(make: Any) -> None:
    x = make(np.random.default_rng(0).normal(0, 2, 4000))
    t = np.ones_like(x)
    links = [
        Link("tanh"),
        Link("multiply", (pb.arg, 3)),
        Link("exp"),
        Link("subtract", (1, pb.arg)),
    ]
    assert_same(links, x, t)


@dtypes
def test_operands_of_another_dtype(dtype: Any) -> None:
    """A wider operand widens what comes after it, as it does outside."""
    x, t = np.random.default_rng(0).normal(size=(2, 50)).astype(dtype)
    for other in (np.float32, np.float64, np.int8, np.int64):
        bound = np.arange(50).astype(other)
        links = [Link("exp"), Link("multiply", (pb.arg, bound)), Link("tanh")]
        assert_same(links, x, t.astype(pb.multiply(x, bound).dtype))
        links = [Link("exp"), Link("multiply", (pb.arg, other(2))), Link("tanh")]
        assert_same(links, x, t.astype(pb.multiply(x, other(2)).dtype))
    assert_same([Link("exp"), Link("add", (pb.arg, 10**400))][:1], x, t)
    assert_same([Link("exp"), Link("add", (pb.arg, [1.0])), Link("tanh")], x, t.astype(float))


def test_a_cotangent_of_the_shape_before_an_operand_enlarged_it() -> None:
    f = pb.chain((pb.add, pb.arg, np.ones((3, 2))), pb.tanh)
    x = np.ones((1, 2))
    with pytest.raises(ValueError, match=r"^chain\.vjp: g has shape \(1, 2\)"):
        f.vjp(x, x)


def test_operands_that_enlarge() -> None:
    """Then the cotangent is summed back to x's shape, the tangent is repeated."""
    x, W = np.linspace(-1, 1, 4), np.random.default_rng(0).normal(size=(3, 4))
    for bound in (W, W[:, :1]):
        f = pb.chain(pb.tanh, (pb.multiply, bound, pb.arg), pb.exp)
        y = f(x)
        assert y.shape == (3, 4)
        g = np.cos(y)
        inner = pb.multiply(bound, pb.tanh(x))
        gy = pb.exp.vjp(inner, g)
        g_bound, gx = pb.multiply.vjp(bound, pb.tanh(x), gy)
        assert_same_bits(f.vjp(x, g), pb.tanh.vjp(x, gx))
        assert_same_bits(f.vjp(x, g, wrt="all")[1], g_bound)
        tangent = f.jvp(x, x)
        expected = np.exp(inner) * (bound * (x / np.cosh(x) ** 2))
        np.testing.assert_allclose(tangent, expected, rtol=1e-14)


@pytest.mark.parametrize("of", [pb, pb.reference], ids=["pullback", "reference"])
def test_shapes_of_tangents_and_cotangents(of: Any) -> None:
    """A Python number fills them, axes in front of a cotangent are a stack, all else is refused."""
    x = np.linspace(-1, 1, 6).reshape(2, 3).astype(np.float32)
    W = np.linspace(0, 1, 12).reshape(3, 4).astype(np.float32)
    for steps in (
        (of.exp, of.tanh),
        (of.tanh,),
        ((of.add, of.exp(x), pb.arg),),
        ((of.add, of.exp(x), pb.arg), of.exp),
        (of.tanh, (of.matmul, pb.arg, W)),
        ((of.linear, pb.arg, W), of.relu, of.log_softmax),
        (of.exp, (of.logsumexp, pb.arg, {"axis": 1})),
        (of.exp, (of.sum, pb.arg, {"axis": 0, "keepdims": True})),
        (of.tanh, of.sum),
        ((of.multiply, x, pb.arg), of.sum, of.exp),
        (of.square, (Total(), pb.arg)),
    ):
        f = pb.chain(*steps)
        value = f(x)
        whole = f.vjp(x, np.full_like(value, 2), wrt="all")
        for g in (2.0, 2, np.full_like(value, 2)):
            assert_same_bits(f.vjp(x, g), whole[0])
            assert_same_bits(f.value_and_vjp(x, g)[1], whole[0])
            for one, other in zip(f.vjp(x, g, wrt="all"), whole, strict=True):
                assert_same_bits(one, other)
        for count in ((2,), (3, 1), (0,)):
            stack = np.random.default_rng(0).normal(size=count + np.shape(value)).astype("f4")
            pulled, stacked = f.vjp(x, stack), f.value_and_vjp(x, stack, wrt="all")[1]
            assert_same_bits(pulled, stacked[0])
            for cotangent, one in zip(stacked, whole, strict=True):
                assert cotangent.shape == count + np.shape(one)
                assert cotangent.dtype == one.dtype
            for at in np.ndindex(count):
                for cotangent, one in zip(stacked, f.vjp(x, stack[at], wrt="all"), strict=True):
                    assert_same_bits(cotangent[at], one)
        wrong: list[Any] = [np.ones((7, 5), np.float32), np.full(9, 2.0).tolist()]
        if np.ndim(value):
            wrong += [np.float32(2), np.ones((), np.float32)]
        for g in wrong if np.ndim(value) else ():
            with pytest.raises(ValueError, match=r"[gG] has shape \(.*\).* \("):
                f.vjp(x, g)
        assert_same_bits(f.jvp(x, 2.0), f.jvp(x, np.full_like(x, 2)))
        for t in (np.float32(2), np.ones((1, 3), np.float32), np.ones((2, 2, 3)), [1.0]):
            with pytest.raises(ValueError, match=r"chain.jvp: t has shape \(.*\), x \(2, 3\)"):
                f.jvp(x, t)


def test_subclasses_keep_their_class() -> None:
    class Own(np.ndarray):
        pass

    x = np.linspace(0, 1, 5).view(Own)
    f = pb.chain(pb.exp, pb.tanh)
    if pb.backend() == "native":
        assert type(f(x)) is Own
    assert_same_bits(np.asarray(f(x)), f(np.asarray(x)))


# --- mathematics ----------------------------------------------------------------------------------


@dtypes
def test_gaussian_in_tanh(dtype: Any) -> None:
    """tanh(exp(-x*x)) and its derivative, against mpmath."""
    f = pb.chain(pb.square, pb.negative, pb.exp, pb.tanh)
    x = np.linspace(-2, 2, 41).astype(dtype)
    value, slope = f.value_and_vjp(x, np.ones_like(x))
    for at, y, dy in zip(x.tolist(), value, slope, strict=True):
        e = mpmath.exp(-(mpmath.mpf(at) ** 2))
        assert ulp_error(y, mpmath.tanh(e), dtype) < 16
        if at:
            exact = -2 * at * e / mpmath.cosh(e) ** 2
            assert ulp_error(dy, exact, dtype) < 32


def test_inactive_operations_stop_infinities() -> None:
    x, g = np.array([-1.0, 2.0]), np.array([np.inf, np.inf])
    assert_same_bits(pb.chain(pb.relu, pb.square).vjp(x, g), np.array([0.0, np.inf]))
    # A bound operand has no tangent: the exponent's derivative at a negative base is NaN.
    f = pb.chain(pb.identity, (pb.power, pb.arg, 2))
    assert_same_bits(f.jvp(x, np.ones(2)), np.array([-2.0, 4.0]))


class Total:
    """What counts as a primitive: a value, vjp and jvp."""

    def __call__(self, x: Any, *, factor: float = 1.0) -> Any:
        return factor * np.sum(x)

    def vjp(self, x: Any, g: Any, *, factor: float = 1.0) -> Any:
        return np.full(np.shape(x), factor * g, np.asarray(x).dtype)

    def jvp(self, x: Any, t: Any, *, factor: float = 1.0) -> Any:
        return factor * np.sum(t)


def layers() -> tuple[Chain, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    W, V, b = rng.normal(size=(4, 6)), rng.normal(size=(6, 3)), rng.normal(size=6)
    f = pb.chain(
        (pb.matmul, pb.arg, W),
        (pb.add, pb.arg, b),
        pb.tanh,
        (pb.linear, pb.arg, V, {"activation": pb.sigmoid}),
        (pb.multiply, 0.5, pb.arg),
    )
    return f, [W, b, V]


def test_layers_against_differences() -> None:
    f, bound = layers()
    x = np.random.default_rng(1).normal(size=(2, 4))
    report = pb.check_grad(f, None, x, vjp=f.vjp, jvp=f.jvp)
    assert report.ok, report
    g = np.random.default_rng(2).normal(size=(2, 3))
    gx, *cotangents, g_half = f.vjp(x, g, wrt="all")
    assert_same_bits(gx, f.vjp(x, g))
    for operand, cotangent in zip(bound, cotangents, strict=True):
        kept = operand.copy()

        def of_operand(w: Any, operand: Any = operand) -> Any:
            operand[...] = w  # bound operands are held, not copied
            return np.sum(g * f(x))

        assert pb.check_grad(of_operand, cotangent, kept).ok
        operand[...] = kept
    assert g_half == pytest.approx(np.sum(g * f(x)) / 0.5)


def test_value_and_grad() -> None:
    f = pb.chain(pb.tanh, pb.square, (Total(), pb.arg, {"factor": 3.0}))
    x = np.linspace(-1, 1, 12).reshape(3, 4)
    value, gradient = f.value_and_grad(x)
    assert value == f(x)
    assert_same_bits(gradient, f.vjp(x, 1.0))
    assert pb.check_grad(f, gradient, x).ok
    assert f.value_and_grad(x, wrt="all")[1][0].tobytes() == gradient.tobytes()
    assert f.grad(x).tobytes() == f.grad(x, wrt=("x",))[0].tobytes() == gradient.tobytes()
    one = pb.chain(pb.exp, pb.tanh).value_and_grad(np.array([0.5]))
    assert one[1] == pb.chain(pb.exp, pb.tanh).vjp(np.array([0.5]), np.ones(1))
    A = np.random.default_rng(0).normal(size=(4, 4))
    form = pb.chain(pb.sin, (pb.quadratic_form, pb.arg, A))
    value, (gx, gA) = form.value_and_grad(x[0], wrt="all")
    np.testing.assert_allclose(gA, np.outer(np.sin(x[0]), np.sin(x[0])), rtol=1e-14)
    assert pb.check_grad(form, gx, x[0]).ok


def test_reductions_at_the_end() -> None:
    x = np.random.default_rng(4).normal(size=(3, 5))
    y = np.random.default_rng(5).normal(size=(3, 5))
    for steps in (
        (pb.tanh, pb.square, pb.sum),
        (pb.tanh, (pb.dot, pb.arg, y)),
        (pb.tanh, (pb.dot, pb.arg, pb.arg)),
        (pb.softmax, (pb.multiply, pb.arg, y), (pb.logsumexp, pb.arg, {"axis": 0}), pb.norm2),
        (pb.layer_norm, pb.exp, (pb.max, pb.arg, {"axis": 1, "keepdims": True}), pb.mean),
    ):
        f = pb.chain(*steps)
        value, gradient = f.value_and_grad(x)
        assert value == f(x)
        assert_same_bits(gradient, f.vjp(x, 1.0))
        assert pb.check_grad(f, gradient, x).ok, f
        np.testing.assert_allclose((np.ones(()) @ f.jacobian(x)), gradient, rtol=1e-12, atol=1e-15)
    f = pb.chain(pb.exp, (pb.sum, pb.arg, {"axis": 0}), pb.log)
    assert pb.check_grad(f, None, x, vjp=f.vjp, jvp=f.jvp).ok
    assert f.jacobian(x).shape == (5, 15)


def test_pairing() -> None:
    """<J t, g> = <t, J^T g>."""
    f, _ = layers()
    rng = np.random.default_rng(3)
    x, t, g = rng.normal(size=(7, 4)), rng.normal(size=(7, 4)), rng.normal(size=(7, 3))
    assert np.sum(f.jvp(x, t) * g) == pytest.approx(np.sum(t * f.vjp(x, g)), rel=1e-13)


def test_jacobian_of_elementwise_chains_is_diagonal() -> None:
    """Row 7: (ln x^2)' = 2/x."""
    x = np.linspace(0.5, 3, 10).reshape(2, 5)
    J = pb.chain(pb.square, pb.log).jacobian(x)
    assert isinstance(J, pb.Diagonal)
    np.testing.assert_allclose(J.diagonal(), (2 / x).reshape(-1), rtol=1e-15)
    J = pb.chain(pb.square, (pb.multiply, pb.arg, pb.arg), (pb.add, x[0], pb.arg)).jacobian(x)
    np.testing.assert_allclose(J.diagonal(), (4 * x**3).reshape(-1), rtol=1e-15)
    large = np.ones(10**6)
    assert pb.chain(pb.exp, pb.tanh, pb.sin).jacobian(large).nbytes == large.nbytes
    J = pb.chain(pb.exp, pb.tanh).jacobian([0.5, 1.0])
    np.testing.assert_allclose(J.diagonal(), pb.chain(pb.exp, pb.tanh).vjp([0.5, 1.0], np.ones(2)))


@pytest.mark.parametrize("name", pb.losses.losses)
@pytest.mark.parametrize("of", [pb, pb.reference], ids=["pullback", "reference"])
def test_pointwise_losses_are_steps(name: str, of: Any) -> None:
    """With the bits of one call after the other; their mean is the loss."""
    rng, loss = np.random.default_rng(0), loss_of(of, name)
    of_classes = name == "softmax_cross_entropy"
    X, w = rng.normal(size=(6, 4)), rng.normal(size=(4, 3) if of_classes else 4)
    y = np.array([1, 0, 1, 1, 0, 1])
    y = (
        2 * y - 1
        if name in ("hinge", "squared_hinge", "exponential")
        else y + (name in ("gamma", "inverse_gaussian"))
    )
    mean = pb.chain((of.matmul, X, pb.arg), (loss.pointwise, pb.arg, y), of.mean)
    assert f"matmul(<float64 (6, 4)>, arg), {name}.pointwise(arg, <int64 (6,)>), mean" in repr(mean)
    for f in (mean, pickle.loads(pickle.dumps(mean))):
        np.testing.assert_allclose(f(w), loss.value(X, y, w), rtol=1e-14)
        np.testing.assert_allclose(f.grad(w), loss.grad(X, y, w)[0], rtol=1e-12, atol=1e-16)
        gw, gX = f.grad(w, wrt="all")  # none of the targets
        assert_same_bits(gw, f.grad(w))
        assert gX.shape == X.shape
    z = X @ w
    f = pb.chain((loss.pointwise, pb.arg, y))
    g, t = rng.normal(size=6), np.cos(z)
    value, pulled = f.value_and_vjp(z, g)
    assert_same_bits(value, loss.pointwise(z, y))
    for found in (pulled, f.vjp(z, g), f.vjp(z, g, wrt="all")[0]):
        assert_same_bits(found, loss.pointwise.vjp(z, y, g))
    assert_same_bits(f.jvp(z, t), loss.pointwise.jvp(z, y, t))
    assert_same_bits(f.jacobian(z).todense(), loss.pointwise.jacobian(z, y).todense())
    assert_same_bits(f.vjp(z, np.stack([g, 2 * g]))[0], pulled)
    with pytest.raises(ValueError, match=r"vjp: g has shape \(5,\)"):
        f.vjp(z, g[1:])
    with pytest.raises(ValueError, match=r"jvp: t has shape"):
        f.jvp(z, t[1:])


def test_jacobian_of_layers() -> None:
    f, _ = layers()
    x = np.random.default_rng(1).normal(size=(2, 4))
    J = f.jacobian(x)
    assert (J.output_shape, J.input_shape) == ((2, 3), (2, 4))
    columns = [f.jvp(x, e.reshape(2, 4)).reshape(-1) for e in np.eye(8)]
    np.testing.assert_allclose(J.todense(), np.stack(columns, 1), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(J @ x, f.jvp(x, x), rtol=1e-12)
    g = f(x)
    np.testing.assert_allclose(g @ J, f.vjp(x, g), rtol=1e-12)


# --- primitives that run anything -----------------------------------------------------------------


class Meddling:
    """The identity, which runs something at each of its calls."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def __call__(self, x: Any) -> Any:
        self._run()
        return x

    def vjp(self, x: Any, g: Any) -> Any:
        self._run()
        return g

    jvp = vjp


def calls_of(f: Chain, x: Any, g: Any) -> Iterator[Any]:
    yield lambda: f.value(x)
    yield lambda: f.jvp(x, x)
    for wrt in (0, "all", 1):
        yield lambda wrt=wrt: f.vjp(x, g, wrt=wrt)
        yield lambda wrt=wrt: f.value_and_vjp(x, g, wrt=wrt)
        yield lambda wrt=wrt: f.value_and_grad(x, wrt=wrt)
        yield lambda wrt=wrt: f.grad(x, wrt=wrt)


def test_a_primitive_that_lets_the_chain_go() -> None:
    x, g = np.linspace(0, 1, 5), np.float64(1)
    for k in range(11):
        held: list[Any] = []
        f = pb.chain(pb.exp, Meddling(held.clear), (pb.multiply, pb.arg, np.ones(5)), pb.sum)
        held += [*calls_of(f, x, g)][k : k + 1]
        expected = [*calls_of(pb.chain(pb.exp, (pb.multiply, pb.arg, np.ones(5)), pb.sum), x, g)]
        del f
        for one, other in zip(leaves(held[0]()), leaves(expected[k]()), strict=True):
            for a, b in zip(leaves(one), leaves(other), strict=True):
                assert_same_bits(a, b)
        assert not held


def test_a_primitive_that_resizes_what_is_bound() -> None:
    """Steps behind it see what there is then: it fits, or it is refused, and no call reads past."""
    for shape, error in (((1,), None), ((4000,), ValueError), ((0,), ValueError)):
        for k in range(11):
            x, w = np.linspace(0, 1, 2000), np.ones(2000)
            meddling = Meddling(lambda w=w, shape=shape: w.resize(shape, refcheck=False))
            f = pb.chain(pb.exp, meddling, (pb.multiply, pb.arg, w), pb.tanh, pb.sum)
            call = [*calls_of(f, x, np.float64(1))][k]
            if error is None:
                call()
            else:
                with pytest.raises(error):
                    call()
            assert x.tobytes() == np.linspace(0, 1, 2000).tobytes()


def test_what_primitives_raise_passes() -> None:
    calls = 0

    def refuse() -> None:
        nonlocal calls
        calls += 1
        raise ZeroDivisionError

    f = pb.chain(pb.exp, Meddling(refuse), (pb.multiply, pb.arg, 2.0), pb.sum)
    for k, call in enumerate(calls_of(f, np.ones(3), np.float64(1)), 1):
        with pytest.raises(ZeroDivisionError):
            call()
        assert calls == k  # once each


def test_a_primitive_that_returns_too_few_cotangents() -> None:
    class Few(Total):
        def vjp(self, x: Any, w: Any, g: Any) -> Any:  # type: ignore[override]
            return (g * w,)

    f = pb.chain((Few(), pb.arg, 2.0))
    with pytest.raises((IndexError, TypeError)):
        f.value_and_grad(np.ones(()), wrt="all")


@pytest.mark.native  # between Python's own lines it is Python that looks
def test_interrupted_between_short_steps() -> None:
    """Long chains of steps that are too short to look for signals."""
    f = pb.chain(*(pb.tanh, pb.layer_norm) * 20_000)  # a quarter of a second
    x = np.linspace(-1, 1, 4000)
    raised = 0.0

    def handler(*_: Any) -> None:
        nonlocal raised
        raised = time.perf_counter()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for call in (
            lambda: f(x),
            lambda: f.jvp(x, x),
            lambda: f.vjp(x, x),
            lambda: f.value_and_vjp(x, x, wrt="all"),
            lambda: f.jacobian(x),
        ):
            delays = []
            for _ in range(3):  # others may have the machine meanwhile
                gc.disable()  # what a callback of its raises is lost
                signal.setitimer(signal.ITIMER_REAL, 0.03)
                with contextlib.suppress(KeyboardInterrupt):
                    call()
                signal.setitimer(signal.ITIMER_REAL, 0)
                gc.enable()
                delays.append(time.perf_counter() - raised)
            assert min(delays) < 0.1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- the object -----------------------------------------------------------------------------------


def test_chains_in_chains() -> None:
    inner = pb.chain(pb.square, (pb.multiply, pb.arg, 2.0))
    f = pb.chain(pb.sin, inner, (inner, pb.arg), pb.tanh)
    assert repr(f) == ("chain(sin, square, multiply(arg, 2.0), square, multiply(arg, 2.0), tanh)")
    x = np.linspace(0, 1, 9)
    assert_same_bits(f(x), pb.tanh(inner(inner(pb.sin(x)))))
    assert len(f.vjp(x, x, wrt="all")) == 3


def test_methods_of_a_subclass() -> None:
    class Doubled(Chain):
        def vjp(self, x: Any, g: Any, /, *, wrt: Any = 0) -> Any:
            return 2 * super().vjp(x, g, wrt=wrt)

    x, f = np.linspace(0, 1, 5), Doubled(pb.exp, pb.tanh)
    assert_same_bits(f.vjp(x, x), 2 * pb.chain(pb.exp, pb.tanh).vjp(x, x))
    assert_same_bits(f.jvp(x, x), pb.chain(pb.exp, pb.tanh).jvp(x, x))


def test_pickle_and_repr() -> None:
    f = pb.chain(
        (pb.linear, pb.arg, np.ones((2, 3)), {"activation": pb.relu}),
        (pb.multiply, np.float32(3), pb.arg),
        pb.reference.exp,
    )
    assert repr(f) == (
        "chain(linear(arg, <float64 (2, 3)>, None, activation=relu), "
        "multiply(np.float32(3.0), arg), exp)"
    )
    x = np.linspace(-1, 1, 8).reshape(4, 2)
    copy = pickle.loads(pickle.dumps(f))
    assert_same_bits(copy(x), f(x))
    assert repr(copy) == repr(f)
    assert pickle.loads(pickle.dumps(pb.arg)) is pb.arg


def test_errors() -> None:
    x, inner, loss = np.ones(3), pb.chain(pb.tanh), pb.hinge.pointwise
    for steps, error, message in (
        ((), ValueError, "no steps"),
        ((pb.exp, np.tanh), TypeError, "step 2 is tanh, which has no vjp and no jvp"),
        ((3.0,), TypeError, "step 1 is 3.0"),
        (((pb.multiply, x, x),), ValueError, "step 1, multiply, has no pb.arg"),
        ((pb.exp, pb.multiply), ValueError, "step 2: multiply takes 2 operands, not 1"),
        (((pb.exp, pb.arg, x),), ValueError, "step 1: exp takes 1 operands, not 2"),
        (((pb.exp, pb.arg, {"out": x}),), TypeError, "exp takes no out in a chain"),
        (((),), TypeError, r"step 1 is \(\)"),
        (((pb.norm, x, pb.arg),), ValueError, "step 1: norm has no derivative by operand 2"),
        (((inner, pb.arg, inner),), ValueError, "step 1: the chain takes 1 operands, not 2"),
        (((pb.dot, pb.arg, pb.tanh),), TypeError, "operand 2 of dot is tanh, a function; operands"),
        ((pb.exp, (pb.matmul, pb.sin, pb.arg)), TypeError, "step 2: operand 1 of matmul is sin"),
        (((Total(), pb.arg, pb.sin),), TypeError, "operand 2 of Total is sin, a function"),
        (((pb.add, pb.arg, np.sin),), TypeError, "operand 2 of add is sin, a function"),
        (((pb.hinge, x, x, pb.arg),), TypeError, r"no jvp; its form for .*\(pb\.hinge\.pointw"),
        (((loss, x, pb.arg),), ValueError, r"step 1: hinge\.pointwise has no derivative by op"),
        ((loss,), ValueError, r"step 1: hinge\.pointwise takes 2 operands, not 1"),
        (((pb.sum, pb.arg, 0),), ValueError, "step 1: sum takes 1 operands, not 2"),
        (((pb.softmax, pb.arg, 0),), ValueError, "step 1: softmax takes 1 operands, not 2"),
        ((pb.dot,), ValueError, "step 1: dot takes 2 operands, not 1"),
        ((pb.exp, pb.matmul), ValueError, "step 2: matmul takes 2 operands, not 1"),
        (((pb.matmul, pb.arg, x, x),), ValueError, "step 1: matmul takes 2 operands, not 3"),
        ((pb.linear,), ValueError, "step 1: linear takes 2 or 3 operands, not 1"),
        ((pb.quadratic_form,), ValueError, "step 1: quadratic_form takes 2 operands, not 1"),
        (((pb.bilinear_form, pb.arg, x),), ValueError, "bilinear_form takes 3 operands, not 2"),
        ((pb.reference.matmul,), ValueError, "step 1: matmul takes 2 operands, not 1"),
    ):
        with pytest.raises(error, match=message):
            pb.chain(*steps)
    f = pb.chain(pb.exp, (pb.multiply, pb.arg, 2.0), pb.tanh)
    for g in (np.ones(4), np.ones((3, 2)), np.ones((3, 1)), np.ones(())):
        for method in (f.vjp, f.value_and_vjp):
            message = rf"chain.{method.__name__}: g has shape \(.*\), the value \(3,\)"
            with pytest.raises(ValueError, match=message):
                method(x, g)
    for wrt in ("y", 2, -1, (0, "x"), ()):
        with pytest.raises(ValueError, match="chain.vjp: wrt must be 'x', 1, the position of one"):
            f.vjp(x, x, wrt=wrt)
    with pytest.raises(TypeError, match="chain.vjp: wrt must be"):
        f.vjp(x, x, wrt=None)
    for method in (f.value_and_grad, f.grad):
        vjp = method.__name__.replace("grad", "vjp")
        message = rf"chain\.{method.__name__}: the value has shape \(3,\), .* give {vjp} a cotang"
        with pytest.raises(ValueError, match=message):
            method(x)
    with pytest.raises(TypeError, match="complex128"):
        f(x + 1j)
    with pytest.raises(ValueError, match="broadcast"):
        pb.chain(pb.exp, (pb.multiply, pb.arg, np.ones(4)))(x)


def test_wrt_names_operands_by_position() -> None:
    x, w, W = np.linspace(0, 1, 3), np.linspace(1, 2, 3), np.ones((3, 2)) / 3
    f = pb.chain((pb.multiply, pb.arg, w), pb.exp, (pb.linear, pb.arg, W, None))
    g = np.ones(2)
    gx, gw, gW = everything = f.vjp(x, g, wrt="all")
    for wrt, wanted in (
        ("x", gx),
        (0, gx),
        (1, gw),
        (2, gW),
        ((2,), (gW,)),
        ((1, "x"), (gw, gx)),
        ((0, 1, 2), everything),
    ):
        for found in (f.vjp(x, g, wrt=wrt), f.value_and_vjp(x, g, wrt=wrt)[1]):
            assert type(found) is type(wanted)
            np.testing.assert_array_equal(
                np.hstack([np.ravel(a) for a in leaves(found)]),
                np.hstack([np.ravel(a) for a in leaves(wanted)]),
            )
    total = pb.chain(f, pb.sum)
    assert total.value_and_grad(x, wrt=1)[1].tobytes() == gw.tobytes()
    assert f.jvp(x, None).tobytes() == np.zeros(2).tobytes()

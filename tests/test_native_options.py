"""Calls that enter the kernels directly give what their Python side gives, to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pullback as pb
import pytest
from linear_models import CASES, Case, by_id, model
from protocol import native
from scipy import sparse

pytestmark = pytest.mark.native

Call = tuple[tuple[Any, ...], dict[str, Any]]


def leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, tuple):
        for branch in tree:
            yield from leaves(branch)
    else:
        yield tree


def bits(tree: Any) -> list[Any]:
    """Everything that can differ between two results."""
    return [
        (type(leaf), getattr(leaf, "dtype", None), np.shape(leaf), np.asarray(leaf).tobytes())
        if leaf is not None
        else None
        for leaf in leaves(tree)
    ]


def nested(tree: Any, new: Callable[[Any], Any]) -> Any:
    if isinstance(tree, tuple):
        return tuple(nested(branch, new) for branch in tree)
    return None if tree is None else new(tree)


def judge(method: Any, calls: Iterator[Call], *, outs: bool = True) -> None:
    """Compare a method with its Python side on calls, and again with out= where it takes that."""
    judged = 0
    for args, options in calls:
        before = bits(args)
        want = method.__wrapped__(*args, **options)
        got = method(*args, **options)
        assert bits(got) == bits(want), (method, args, options)
        assert all(leaf.flags.writeable for leaf in leaves(got) if isinstance(leaf, np.ndarray))
        judged += 1
        if outs:
            given = nested(want, lambda leaf: np.full_like(np.asarray(leaf), 7))
            result = method(*args, **options, out=given)
            assert all(a is b for a, b in zip(leaves(result), leaves(given), strict=True))
            # Arrays where there would be scalars.
            pairs = zip(bits(given), bits(want), strict=True)
            assert all(a == b or a[1:] == b[1:] for a, b in pairs), (method, args, options)
        assert bits(args) == before
    assert judged > 0


rng = np.random.default_rng(11)


def kinds(shape: tuple[int, ...]) -> list[Any]:
    """One operand in every form that a caller may bring."""
    x = rng.uniform(0.2, 0.9, shape)
    wide = np.arange(1, 1 + x.size).reshape(shape)
    return [
        x,
        x.astype(np.float32),
        x.astype(np.float16),
        x.astype(">f8"),
        wide,
        wide.astype(np.int8),
        wide > 3,
        x.tolist(),
        x[..., ::-1],
        np.asfortranarray(x),
    ]


AXES = [None, 0, -1, 1, (0,), (0, 1), (1, 2), (2, 1), (0, 2), (0, 1, 2), ()]
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "variance": [{}, {"ddof": 1}, {"ddof": np.float64(0.5)}],
    "layer_norm": [{}, {"eps": 1e-3}, {"eps": 0}],
}
reductions = sorted(pb.reductions.reductions)


@pytest.mark.parametrize("name", reductions)
@pytest.mark.parametrize("method", ["value", "grad", "value_and_grad", "vjp", "jvp"])
def test_reductions(name: str, method: str) -> None:
    f = pb.primitives[name]
    bound = getattr(f, method, None)
    if bound is None:
        assert f.row.is_map
        return
    n_operands = len(f.row.operands)

    def calls() -> Iterator[Call]:
        together = itertools.product(range(len(kinds((2, 3, 4)))), AXES)
        for k, axis in itertools.islice(together, len(name) % 3, None, 3):
            operands = [kinds((2, 3, 4))[k] for _ in range(n_operands)]
            for options in PARAMETERS.get(name, [{}]):
                keepdims = [{}] if f.row.is_map else [{}, {"keepdims": True}, {"keepdims": False}]
                for more in keepdims:
                    given = {**options, **more, "axis": axis}
                    exponents = [1, 2, 2.5, np.inf] if len(f.row.leading) > n_operands else [None]
                    for p in filter(lambda p: p is None or f.row.parameter.test(p), exponents):
                        rest = [] if p is None else [p]
                        if method == "vjp":
                            shape = np.shape(f.value(*operands, *rest, **given))
                            tails: list[list[Any]] = [[rng.standard_normal(shape)]]
                        elif method == "jvp":
                            t = kinds((2, 3, 4))[k]
                            tails = [[t] * n_operands]
                            if n_operands == 2:
                                tails += [[None, t], [t, None]]
                        else:
                            tails = [[]]
                        for tail in tails:
                            yield (*operands, *rest, *tail), given

    judge(bound, calls())


def test_products() -> None:
    A, B, G = (rng.standard_normal((4, 4)) for _ in range(3))
    stacks = rng.standard_normal((3, 1, 4, 4)), rng.standard_normal((5, 4, 2))
    places: list[Any] = [0, 1, (1, 0), (0,), "all"]
    wrts: list[dict[str, Any]] = [{}, *({"wrt": wrt} for wrt in places)]

    def pairs() -> Iterator[tuple[Any, Any]]:
        yield from ((A, B), (A.T, B[::-1]), (A[0], B), (A, B[:, 0]), (A[0], B[0]), stacks)
        yield from ((A.astype("f4"), B), (A.astype("f4"), B.astype("f4")), (A.tolist(), B))
        yield from ((A.astype(int), B), (A, B.astype(">f8")))

    judge(pb.matmul.__call__, iter([((a, b), {}) for a, b in pairs()]))
    for options in [*wrts, {"wrt": "B"}, {"wrt": ("B", "A")}]:
        judge(
            pb.matmul.vjp,
            iter([((a, b, np.ones(np.shape(pb.matmul(a, b)))), options) for a, b in pairs()]),
        )
    judge(
        pb.matmul.jvp,
        iter(
            [
                ((a, b, *tangents), {})
                for a, b in pairs()
                for tangents in ((a, b), (a, None), (None, b))
            ]
        ),
    )
    bias = rng.standard_normal(4)
    layers = [
        (X, W, b)
        for X in (A, A.astype("f4"), A.T, A[0], np.stack([A, B]))
        for W in (B, B.astype("f4"), B.T)
        for b in (None, bias, bias.astype("f4"), bias[::-1])
    ]
    activations = [None, pb.relu, pb.tanh, pb.reference.gelu]
    judge(
        pb.linear.__call__,
        iter([(layer, {"activation": f}) for layer in layers for f in activations]),
    )
    for options in [*wrts, {"wrt": (0, 2)}, {"wrt": (2, 1, 0)}, {"wrt": "W"}, {"wrt": ("W", 0)}]:
        judge(
            pb.linear.vjp,
            iter(
                [
                    ((*layer, np.ones(pb.linear(*layer).shape)), {"activation": f, **options})
                    for layer in layers
                    for f in activations
                    if layer[2] is not None or options.get("wrt") != 2
                ]
            ),
        )
    del G


# Weights whose sum is exact, in whatever order.
EIGHTHS = np.random.default_rng(3).integers(0, 9, 50) / 8
losses = pytest.mark.parametrize("case", CASES, ids=by_id)


@losses
@pytest.mark.parametrize("k", [None, 3])
def test_losses(case: Case, k: int | None) -> None:
    loss = case.of()
    k = 3 if case.coupled else k
    m = model(case, 40, 5, np.float64, k)
    shape = () if k is None else (k,)
    biases: list[Any] = [None, rng.standard_normal(shape or (1,)), np.zeros(1)]
    if k is None:
        biases += [0.5, 1, np.float32(0.5), np.float64(0.5)]
    targets = [m.y, m.y.astype("f4")] if m.y.dtype.kind == "f" else [m.y, m.y.astype(np.int8)]
    forms = [m.X, m.X.astype("f4"), np.asfortranarray(m.X), m.X.tolist(), sparse.csr_array(m.X)]
    weights = [None, EIGHTHS[:40], np.ones(40, int)]
    # Every fifth of all that can meet, which are 60 to 210: each with each over the losses.
    together = list(itertools.product(forms, targets, biases, weights))
    for X, y, b, weight in together[len(case.id) % 5 :: 5]:
        args = (X, y, m.w, b)
        both = [{"sample_weight": weight, "reduction": r} for r in ("mean", "sum")]
        judge(loss.value, iter([(args, g) for g in both]), outs=False)
        outs = isinstance(b, np.ndarray)
        for method in (loss.grad, loss.value_and_grad):
            for wrt in ("w", "X", ("w", "b"), ("b", "X", "w"), ("X",)):
                gradients = [(args, {**g, "wrt": wrt}) for g in both]
                judge(method, iter(gradients), outs=False)
                if outs or "b" not in wrt:
                    for call in gradients:
                        judge_gradient_outs(method, *call)
        for wrt in (0, 2, (2, 3), "all", (3, "X")):
            judge(loss.grad, iter([(args, {**g, "wrt": wrt}) for g in both]), outs=False)
        vb = None if b is None else np.ones(np.shape(b)) if outs else 0.25
        judge(loss.hvp, iter([((*args, (m.v[0], vb)), g) for g in both]), outs=False)


def judge_gradient_outs(method: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    want = method(*args, **options)
    gradients = want[1] if method.__name__ == "value_and_grad" else want
    given = nested(gradients, lambda leaf: np.full_like(leaf, 7))
    got = method(*args, **options, out=given)
    got = got[1] if method.__name__ == "value_and_grad" else got
    assert all(a is b for a, b in zip(leaves(got), leaves(given), strict=True))
    assert bits(given) == bits(gradients)


@losses
def test_pointwise(case: Case) -> None:
    loss = case.of()
    f = loss.pointwise
    if case.coupled:
        assert f.derivative(np.zeros((4, 3)), np.zeros(4, int)).shape == (4, 3)
        return
    z = rng.standard_normal((3, 4))
    y = model(case, 12, 1).y.reshape(3, 4)
    forms: list[tuple[Any, Any]] = [
        (z, y),
        (z.astype("f4"), y.astype("f4")),
        (z.astype("f4"), y),
        (z.astype("f4"), np.round(y).astype(int)),
        (z, np.round(y).astype(np.int8)),
        (z.tolist(), y),
        (z[0], y),
        (z[:, ::-1], y),
        (z[0, 0], y[0, 0]),
        (0.5, 1.0),
        (np.array(0.5), 1),
        (z[:0], y[:0]),
    ]
    calls = [(form, {}) for form in forms]
    for method in (f.derivative, f.value_and_derivative, f.second_derivative):
        judge(method, iter(calls), outs=False)
    judge(f._call, iter(calls), outs=False)
    pulled = [
        ((a, b, g), {})
        for a, b in forms
        for g in (rng.standard_normal(np.shape(f(a, b))), np.ones((2, *np.shape(f(a, b)))))
    ]
    judge(f.vjp, iter(pulled), outs=False)


@pytest.mark.parametrize("name", ["multiply", "power", "maximum", "logaddexp"])
def test_binary(name: str) -> None:
    f = pb.primitives[name]

    def pairs() -> Iterator[tuple[Any, Any]]:
        yield from itertools.product(kinds((3, 4)), repeat=2)
        x = rng.uniform(0.2, 0.9, (3, 4))
        yield from ((x, 2.0), (3, x), (x.astype("f4"), 2), (x.astype("f4"), np.float64(2)))
        yield from ((x[0], x), (x[:, :1], x[0]), (x, True), (2.0, 3.0), (x[:0], 1.0))

    judge(f.derivative, iter([(pair, {}) for pair in pairs()]))
    judge(f.value_and_derivative, iter([(pair, {}) for pair in pairs()]))
    judge(
        f.vjp,
        iter(
            [
                ((a, b, g), {})
                for a, b in pairs()
                for g in (np.ones(np.shape(f(a, b))), np.ones((2, *np.shape(f(a, b))), np.int8))
            ]
        ),
    )


@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
def test_unary(name: str) -> None:
    f = pb.primitives[name]
    operands = [*kinds((3, 4)), 0.5, 2, True, np.float32(0.5), rng.uniform(size=(3, 0))]
    judge(f.value_and_derivative, iter([((x,), {}) for x in operands]))


@losses
def test_objectives(case: Case) -> None:
    loss = case.of()
    m = model(case, 50, 3)
    X, y = m.X, m.y
    for weights, l2, intercept in itertools.product((None, EIGHTHS), (0, 0.3), (0, 1)):
        options: dict[str, Any] = {
            "sample_weight": weights,
            "l2": l2,
            "fit_intercept": bool(intercept),
        }
        ours = pb.LinearObjective(X, y, loss, **options)
        by_chunks = pb.LinearObjective(
            [(X, y)] if weights is None else [(X, y, weights)],
            None,
            loss,
            l2=l2,
            fit_intercept=bool(intercept),
        )
        theta, v = rng.standard_normal((2, ours.n_parameters))
        for _ in range(2):
            for at in (theta, theta[::-1].copy()):
                for method in ("value", "grad", "value_and_grad"):
                    got = getattr(ours, method)(at)
                    assert bits(got) == bits(getattr(by_chunks, method)(at))
                    assert bits(got) == bits(getattr(ours, method)(at.tolist()))
                assert bits(ours.hvp(at, v)) == bits(by_chunks.hvp(at, v))
                assert bits(ours.hvp(at[::-1], v)) == bits(by_chunks.hvp(at[::-1], v))


def test_all_methods_are_here() -> None:
    """Whatever has a Python side behind it is judged above."""
    assert native is not None
    method = type(pb.matmul.vjp)
    found = {
        name
        for name, f in pb.primitives.items()
        for attribute in dir(f)
        if not attribute.startswith("__") and type(getattr(f, attribute, None)) is method
    }
    binary = {name for name, f in pb.elementwise.primitives.items() if f.nin == 2}
    unary = set(pb.elementwise.primitives) - binary
    assert found == {*reductions, *pb.losses.losses, *binary, *unary, "matmul", "linear"}


def test_an_interrupt_passes() -> None:
    """What an element of a list raises and is no Exception is neither lost nor raised twice."""
    raised: list[Any] = []

    class Interrupting:
        def __array__(self, *_: Any, **__: Any) -> Any:
            raised.append(self)
            raise KeyboardInterrupt

    for call in (
        lambda x: pb.sum(x),
        lambda x: pb.matmul(x, x),
        lambda x: pb.multiply.vjp(x, 1.0, 1.0),
        lambda x: pb.squared_error.pointwise.derivative(x, x),
    ):
        raised.clear()
        with pytest.raises(KeyboardInterrupt):
            call([1.0, Interrupting()])
        assert len(raised) == 1

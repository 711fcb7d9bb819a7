"""Calls that enter the kernels directly give what their Python side gives, to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pullback as pb
import pytest
from linear_models import CASES, Case, by_id, model
from protocol import native
from pullback.jacobians import Jacobian
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


def held(J: Any) -> Iterator[tuple[str, Any]]:
    """Yield everything that a Jacobian holds, by name: types, shapes and arrays."""
    if isinstance(J, tuple) and any(isinstance(part, Jacobian) for part in J):
        for k, part in enumerate(J):
            yield from ((f"{k}.{name}", value) for name, value in held(part))
    elif isinstance(J, Jacobian):
        yield "", type(J)
        for name in {n for kind in type(J).__mro__ for n in getattr(kind, "__slots__", ())}:
            yield from ((f"{name}.{inner}", value) for inner, value in held(getattr(J, name)))
    else:
        yield "", J


def judge_jacobians(method: Any, calls: Iterator[Call]) -> None:
    """Compare the Jacobians that a method makes with those of its Python side."""
    judged = arrays = 0
    for args, options in calls:
        before = bits(args)
        got = dict(held(method(*args, **options)))
        want = dict(held(method.__wrapped__(*args, **options)))
        assert got.keys() == want.keys()
        for name, value in got.items():
            if isinstance(value, np.ndarray):
                assert bits(value) == bits(want[name]), (method, args, options, name)
                assert value.flags.writeable == want[name].flags.writeable
                given = [x for x in args if isinstance(x, np.ndarray)]
                assert not any(np.may_share_memory(value, x) for x in given), name
                arrays += 1
            else:
                assert type(value) is type(want[name]), name
                assert value == want[name], (method, args, options, name)
        assert bits(args) == before
        judged += 1
    assert min(judged, arrays) > 0


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


def fits(f: Any, arguments: tuple[Any, ...]) -> bool:
    """Tell whether a function takes arguments."""
    try:
        f(*arguments)
    except ValueError:
        return False
    return True


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
    "rms_norm": [{}, {"eps": 1e-3}, {"eps": 0}],
    **{name: [{}, {"reverse": True}] for name in ("cumsum", "cumprod", "logcumsumexp")},
}
WRTS: list[dict[str, Any]] = [{}, {"wrt": "y"}, {"wrt": (1, 0)}, {"wrt": ("x",)}]
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
                kept = [{"keepdims": True}, {"keepdims": False, "where": True}]
                keepdims = [{}, {"where": True}] if f.row.is_map else [{}, *kept]
                for more in keepdims:
                    given = {**options, **more, "axis": axis}
                    exponents = [1, 2, 2.5, np.inf] if len(f.row.leading) > n_operands else [None]
                    for p in filter(lambda p: p is None or f.row.parameter.test(p), exponents):
                        rest = [] if p is None else [p]
                        if method == "vjp":
                            shape = np.shape(f.value(*operands, *rest, **given))
                            tails: list[list[Any]] = [[rng.standard_normal(shape)], [2]]
                            stacks = (2, 1), (0,)
                            tails += [[rng.standard_normal((*n, *shape))] for n in stacks]
                        elif method == "jvp":
                            t = kinds((2, 3, 4))[k]
                            tails = [[t] * n_operands, [0.5] * n_operands]
                            if n_operands == 2:
                                tails += [[None, t], [t, None], [None, 2]]
                        else:
                            tails = [[]]
                        asked = [{}] if n_operands == 1 or method in ("value", "jvp") else WRTS
                        for tail, wrt in itertools.product(tails, asked):
                            yield (*operands, *rest, *tail), {**given, **wrt}

    judge(bound, calls())


SECOND = [name for name in reductions if name not in ("prod", "dot", "norm")]  # have kernels


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("method", ["jvp", "vjp"])
def test_second_order_of_reductions(name: str, method: str) -> None:
    f = pb.primitives[name]

    def calls() -> Iterator[Call]:
        together = itertools.product(kinds((2, 3, 4))[:3], AXES, PARAMETERS.get(name, [{}]))
        for k, (x, axis, options) in enumerate(together):
            given = {**options, "axis": axis}
            given |= {"keepdims": k % 2 == 1, "where": True} if not f.row.is_map else {}
            shape = np.shape(f.value(x, **given))
            g = rng.standard_normal(shape)[()]
            stacked = rng.standard_normal((2, *shape))
            t, h = rng.standard_normal(x.shape), rng.standard_normal((2, *x.shape))
            some = [g, 0.5, stacked][k % 3]
            if method == "jvp":
                yield (x, g, t, None), given
                yield (x, some, t, np.ones_like(some) if np.ndim(some) else 1), given
                yield (x, g, None, g), given
            else:
                yield (x, g, t), given
                yield (x, some, h if some is stacked else t), given
        x, t = rng.standard_normal((2, 2, 3))
        last: dict[str, Any] = {"axis": -1}
        g = x if f.row.is_map else x[:, 0].copy()
        tails = [(None,), (g,)] if method == "jvp" else [()]
        for bad in (np.inf, -np.inf, np.nan, 1e300, 1e-300, 0.0):  # what the kernels leave
            for at in range(3):
                arrays = [a.copy() for a in (x, g, t)]
                arrays[at].reshape(-1)[0] = bad
                for tail in tails:
                    yield (*arrays, *tail), last

    judge(getattr(f.vjp, method), calls())


@pytest.mark.parametrize("name", reductions)
def test_jacobians_of_reductions(name: str) -> None:
    f = pb.primitives[name]
    exponents = [[1], [2], [2.5]] if len(f.row.leading) > len(f.row.operands) else [[]]
    keepdims = [{}] if f.row.is_map else [{}, {"keepdims": True}]
    wrts = itertools.cycle(WRTS if len(f.row.operands) > 1 else [{}])

    def calls() -> Iterator[Call]:
        for x, axis in itertools.product(kinds((2, 3, 4)), AXES):
            if f.row.is_map and axis in (None, ()):
                continue  # of no axis, or of one that is not told
            for p, kept, more in itertools.product(exponents, keepdims, PARAMETERS.get(name, [{}])):
                options = {"axis": axis, **kept, **more, **next(wrts)}
                yield (*[x] * len(f.row.operands), *p), options

    judge_jacobians(f.jacobian, calls())


@pytest.mark.parametrize("given", [[True, False, True], [1, True], (1.0, 2), [[1, 2], (3.0, 4)]])
def test_lists_of_numbers(given: Any) -> None:
    judge(pb.squared_norm2.grad, iter([((given,), {})]))


@pytest.mark.parametrize(
    "given", [[[1.0, 2.0], [3.0]], [[1.0], [2.0, 3.0]], [1.0, [2.0]], [[1], 2]]
)
def test_lists_that_are_ragged(given: Any) -> None:
    with pytest.raises(ValueError, match=r"squared_norm2\.grad: argument x does not convert"):
        pb.squared_norm2.grad(given)


# --- products -------------------------------------------------------------------------------------

A, B = rng.standard_normal((2, 4, 4))
STACK, SHORT, BIAS = (rng.standard_normal(shape) for shape in ((3, 1, 4, 4), (5, 4, 2), 4))
ODD = STACK.swapaxes(0, 2)  # no single axis of vectors
OPERANDS: dict[str, list[tuple[Any, ...]]] = {
    "matmul": [
        *((A, B), (A.T, B[::-1]), (A[0], B), (A, B[:, 0]), (A[0], B[0]), (STACK, SHORT)),
        *((A.astype("f4"), B), (A.astype("f4"), B.astype("f4")), (A.tolist(), B)),
        *((A.astype(int), B), (A, B.astype(">f8")), (A[:0], B), (A[:, :0], B[:0])),
    ],
    "linear": [
        (X, W, b)
        for X in (A, A.astype("f4"), A.T, A[0], STACK, ODD, A.tolist())
        for W in (B, B.astype("f4"), B.T)
        for b in (None, BIAS, BIAS.astype("f4"), BIAS[::-1])
    ],
    "quadratic_form": [
        *((x, B) for x in (A[0], A[0].astype("f4"), A, A.T, A[:, 1], STACK, ODD, A[:0])),
        *((A[0], B.T), (A, B[::2, ::2].repeat(2, 0).repeat(2, 1)), (A[0].tolist(), B.tolist())),
        *((A[0].astype(int), B), (A[0, :0], B[:0, :0]), (A.astype("f4"), B.astype("f4"))),
    ],
    "bilinear_form": [
        *((u, SHORT[0], v) for u in (A[0], A, A.T, STACK) for v in (SHORT[0, 0], SHORT[:, 1])),
        *((A[:, None], SHORT[0], SHORT[0]), (A, SHORT[0].astype("f4"), SHORT[0])),
        *((A.astype("f4"), B.astype("f4"), B.astype("f4")), (A[:, 1], B.T, B[1].tolist())),
        *((A[:0], B, B[1]), (A[0].astype(int), B, 2 * B[1]), (A[0, :0], B[:0], B[0])),
    ],
}
OPERANDS["bilinear_form"] = [
    arguments
    for arguments in OPERANDS["bilinear_form"]
    if fits(pb.bilinear_form, arguments)  # whose batches broadcast
]
ACTIVATIONS = [None, pb.relu, pb.tanh, "tanh", pb.reference.gelu]
products = pytest.mark.parametrize("name", OPERANDS)


def options_of(name: str) -> list[dict[str, Any]]:
    return [{"activation": f} for f in ACTIVATIONS] if name == "linear" else [{}]


@products
def test_products(name: str) -> None:
    calls = itertools.product(OPERANDS[name], options_of(name))
    judge(getattr(pb, name).__call__, iter(calls))


@products
def test_cotangents_of_products(name: str) -> None:
    f, names = getattr(pb, name), [*getattr(pb, name).row.operands]
    places: list[Any] = [0, len(names) - 1, (1, 0), (1,), "all", names[-1], (names[1], 0)]

    def calls() -> Iterator[Call]:
        for operands, options in itertools.product(OPERANDS[name], options_of(name)):
            shape = np.shape(f(*operands))
            g = rng.standard_normal(shape)
            cotangents: list[Any] = [g, g.astype("f4"), 2, 0.5, np.ones((2, *shape))]
            cotangents += [
                rng.standard_normal((*shape, 3, 2)).transpose(-1, -2, *range(len(shape)))
            ]
            cotangents += [np.asarray(g).tolist()] * (np.size(g) > 0)
            for k, cotangent in enumerate(cotangents):
                wrt = {"wrt": places[(k + len(operands)) % len(places)]} if k else {}
                if operands[-1] is not None or wrt.get("wrt", 0) not in (2, "b"):
                    yield (*operands, cotangent), {**options, **wrt}

    judge(f.vjp, calls())


@products
def test_tangents_of_products(name: str) -> None:
    f = getattr(pb, name)

    def calls() -> Iterator[Call]:
        for operands, options in itertools.product(OPERANDS[name], options_of(name)):
            filled = [None if x is None else rng.standard_normal(np.shape(x)) for x in operands]
            numbers = [None if x is None else 1.5 for x in operands]
            yield (*operands, *filled), options
            yield (*operands, *numbers), options
            for k in range(len(operands)):
                some = [t if i == k else None for i, t in enumerate(filled)]
                yield (*operands, *some), options
                yield (*operands, *[None if i == k else t for i, t in enumerate(filled)]), options

    judge(f.jvp, calls())


@products
def test_jacobians_of_products(name: str) -> None:
    f, names = getattr(pb, name), [*getattr(pb, name).row.operands]
    places = itertools.cycle([0, "all", len(names) - 1, (1, 0), (1,), names[0]])

    def calls() -> Iterator[Call]:
        for operands, options in itertools.product(OPERANDS[name], options_of(name)):
            yield operands, options
            if (wrt := next(places)) != 2 or operands[-1] is not None:
                yield operands, {**options, "wrt": wrt}

    judge_jacobians(f.jacobian, calls())


@pytest.mark.parametrize("name", ["quadratic_form", "bilinear_form"])
def test_forms_and_gradients(name: str) -> None:
    f = getattr(pb, name)
    single = [x for x in OPERANDS[name] if np.ndim(f(*x)) == 0]
    wrts: list[dict[str, Any]] = [{}, *({"wrt": w} for w in (0, 1, (1, 0), "all", (0,)))]
    judge(f.value_and_grad, itertools.product(single, wrts), outs=False)


# --- chains ---------------------------------------------------------------------------------------

LAYER = (pb.linear, pb.arg, B, BIAS, {"activation": pb.tanh})
CHAINS: dict[str, tuple[Any, ...]] = {
    "one": (pb.square,),
    "run": (pb.square, (pb.multiply, pb.arg, -0.5), pb.exp),
    "row": (pb.exp, (pb.multiply, BIAS, pb.arg), (pb.add, pb.arg, BIAS.astype("f4"))),
    "numbers": ((pb.multiply, pb.arg, 2), pb.tanh, (pb.add, np.float32(3), pb.arg), pb.sum),
    "twice": ((pb.multiply, pb.arg, pb.arg), pb.tanh, (pb.dot, pb.arg, pb.arg)),
    "form": ((pb.bilinear_form, pb.arg, B, pb.arg), pb.square),
    "enlarged": ((pb.add, pb.arg, np.ones((3, 1, 1))), pb.tanh),
    "sum": (pb.tanh, (pb.subtract, 1.5, pb.arg), pb.sum, pb.exp),
    "norm": (pb.tanh, (pb.norm, pb.arg, 3.0)),
    "axis": (pb.tanh, (pb.logsumexp, pb.arg, {"axis": 1}), pb.sin),
    "kept": (pb.tanh, (pb.sum, pb.arg, {"axis": 0, "keepdims": True}), (pb.mean, pb.arg)),
    "map": (pb.exp, pb.softmax, pb.sqrt, pb.layer_norm),
    "matmul": ((pb.matmul, pb.arg, B), pb.tanh, (pb.matmul, B, pb.arg)),
    "merged": (pb.tanh, (pb.logsumexp, pb.arg, {"axis": 1}), pb.sin, pb.norm2),
    "linear": (LAYER, pb.sum),
    "layers": (LAYER, (pb.multiply, pb.arg, 0.5), LAYER, (pb.linear, pb.arg, B), pb.norm2),
    "loss": (pb.tanh, (pb.huber.pointwise, pb.arg, 0.5), pb.mean),
    "classes": (pb.tanh, (pb.softmax_cross_entropy.pointwise, pb.arg, np.array([1, 0, 3, 2]))),
    "twin": (pb.exp, pb.reference.tanh, (pb.reference.multiply, pb.arg, 2.0), pb.sum),
    "long": (pb.sin, pb.cos) * 20,
}


class Walked:
    """A method of a chain, and the same made of steps that Python walks."""

    def __init__(self, steps: tuple[Any, ...], name: str) -> None:
        chain, plain = pb.chain(*steps), pb.chain(*steps)
        plain._line = None
        self._method, self.__wrapped__ = getattr(chain, name), getattr(plain, name).__wrapped__

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._method(*arguments, **options)


def points() -> list[Any]:
    return [*kinds((4, 4)), A.T, A[:0], B[::2].repeat(2, 0)]


chains = pytest.mark.parametrize("name", CHAINS)


@chains
def test_chains(name: str) -> None:
    f = pb.chain(*CHAINS[name])
    there = [(x,) for x in points() if fits(f, (x,))]
    assert len(there) > 5
    judge(Walked(CHAINS[name], "value"), ((x, {}) for x in there), outs=False)
    given = []
    for (x,) in there:
        t = rng.standard_normal(np.shape(x))
        given += [((x, t), {}), ((x, t.astype("f4")), {}), ((x, 2), {}), ((x, None), {})]
    judge(Walked(CHAINS[name], "jvp"), iter(given), outs=False)


@chains
@pytest.mark.parametrize("method", ["vjp", "value_and_vjp"])
def test_cotangents_of_chains(name: str, method: str) -> None:
    f = pb.chain(*CHAINS[name])
    n = len(f._names)
    wrts: list[dict[str, Any]] = [{}, {"wrt": "all"}, {"wrt": 0}, {"wrt": "x"}, {"wrt": ("x",)}]
    wrts += [{"wrt": n - 1}, {"wrt": tuple(range(n))[::-1]}]

    def calls() -> Iterator[Call]:
        for x in points():
            if not fits(f, (x,)):
                continue
            value = np.asarray(f(x))
            g = rng.standard_normal(value.shape)
            cotangents: list[Any] = [g, value.dtype.type(2), g.astype("f4"), 2, 0.5]
            cotangents += [g.tolist()] * (value.size > 0)
            cotangents = cotangents if value.ndim == 0 else [*cotangents[:1], *cotangents[2:]]
            cotangents += [rng.standard_normal((2, *value.shape)), np.asfortranarray(g)]
            for k, cotangent in enumerate(cotangents):
                yield (x, cotangent), wrts[k % len(wrts)]
            yield from (((x, g), wrt) for wrt in wrts)

    judge(Walked(CHAINS[name], method), calls(), outs=False)


SCALAR = ["numbers", "twice", "sum", "norm", "linear", "layers", "loss", "twin"]


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("method", ["grad", "value_and_grad"])
def test_gradients_of_chains(method: str, name: str) -> None:
    f = pb.chain(*CHAINS[name])
    wrts: list[dict[str, Any]] = [{}, {"wrt": "all"}, {"wrt": (len(f._names) - 1, 0)}]
    wrts = wrts if len(f._names) > 1 else wrts[:2]
    given = [((x,), wrt) for x in points() if fits(f, (x,)) for wrt in wrts]
    judge(Walked(CHAINS[name], method), iter(given), outs=False)
    one = (pb.exp, pb.tanh)
    for x in (np.array([0.5]), np.full((1, 1), 2, "f4"), np.float64(2), 0.5, [0.5]):
        judge(Walked(one, method), iter([((x,), {})]), outs=False)


@pytest.mark.parametrize("name", [name for name in CHAINS if name not in ("form", "long", "twin")])
def test_jacobians_of_chains(name: str) -> None:
    """But of long runs, whose derivatives are multiplied from the last to the first."""
    f = pb.chain(*CHAINS[name])
    given = [((x,), {}) for x in points() if fits(f, (x,)) and np.size(x)]
    judge_jacobians(Walked(CHAINS[name], "jacobian"), iter(given))


# Weights whose sum rounds, so that its order shows.
SEVENTHS = np.random.default_rng(3).integers(0, 9, 50) / 7
losses = pytest.mark.parametrize("case", CASES, ids=by_id)


@losses
@pytest.mark.parametrize("k", [None, 3])
def test_losses(case: Case, k: int | None) -> None:
    loss = case.of()
    k = 3 if case.coupled else k
    m = model(case, 40, 5, np.float64, k)
    shape = () if k is None else (k,)
    biases: list[Any] = [
        None,
        rng.standard_normal(shape or (1,)),
        np.zeros(1),
        np.ones(k or 1, int),
    ]
    if k is None:
        biases += [0.5, 1, np.float32(0.5), np.float64(0.5), np.int64(2), np.float16(0.5)]
    targets = [m.y, m.y.astype("f4")] if m.y.dtype.kind == "f" else [m.y, m.y.astype(np.int8)]
    targets += [np.repeat(m.y, 2, axis=0)[::2]]
    whole = np.rint(2 * m.X)
    forms = [m.X, m.X.astype("f4"), np.asfortranarray(m.X), m.X.tolist(), sparse.csr_array(m.X)]
    forms += [whole.astype(int), whole.astype(np.int8), m.X.astype("f2"), m.X.astype(">f8")]
    forms += [m.X.astype(ml_dtypes.bfloat16), m.X.astype(ml_dtypes.bfloat16)[:, ::-1]]
    forms += [whole.astype(int)[::-1], np.repeat(np.repeat(m.X, 2, 0), 2, 1)[::2, ::2], whole > 0]
    weights = [None, SEVENTHS[:40], np.ones(40, int), SEVENTHS[:40].astype("f4")]
    parameters = [m.w, m.w.astype("f4"), np.rint(m.w).astype(int), m.w.astype("f2"), m.w[::-1]]
    each_output = rng.standard_normal(m.y.shape if not case.labels else (40, 3))
    given_offsets = [None, m.X[:, 0], each_output, each_output.astype("f4"), SEVENTHS[:40].tolist()]
    given_offsets += [m.X[:, 1].astype("f2"), np.rint(each_output).astype(int)]
    offsets = itertools.cycle([*given_offsets, None, None, each_output[::-1]])
    # Some of all that can meet; each with each over the losses.
    together = list(itertools.product(forms, targets, biases, weights, parameters))
    for X, y, b, weight, w in together[17 * CASES.index(case) % 311 :: 311]:
        args = (X, y, w, b)
        row = {"sample_weight": weight, "offset": next(offsets)}
        both = [{**row, "reduction": r} for r in ("mean", "sum")]
        given = [(args, g) for g in both]
        judge(loss.value, iter(given), outs=False)
        judge(loss.curvature, iter(given), outs=False)
        parts = [method(*args, **row) for method in both_ways(loss.partial)]
        fields = type(parts[0]).__slots__
        assert bits(tuple(getattr(parts[0], f) for f in fields)) == bits(
            tuple(getattr(parts[1], f) for f in fields)
        )
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
        directions = [(m.v[0], vb), (None, None), (m.v[0].astype("f4"), None), (2, vb)]
        if b is not None:
            directions += [(None, vb), (m.v[0].astype(int), 0.5), (0.5, 3)]
        calls = [((*args, v), g) for v in directions for g in both]
        judge(loss.hvp, iter(calls), outs=False)


def both_ways(method: Any) -> tuple[Any, Any]:
    return method, method.__wrapped__


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
    f = case.of().pointwise
    z, y = rng.standard_normal((3, 4)), model(case, 12, 1).y
    labels = case.coupled and y.ndim == 1
    if case.coupled:
        z = rng.standard_normal((3, 4, 3))
    y = y.reshape(3, 4) if labels or not case.coupled else y.reshape(3, 4, 3)
    forms: list[tuple[Any, Any]] = [
        (z, y),
        (z.astype("f4"), y),
        (z, np.round(y).astype(np.int8)) if not case.coupled or labels else (z, y.astype("f4")),
        (z.tolist(), y),
        (z.tolist(), y.tolist()),
        (np.rint(z).astype(int), y),
        (z[:, ::-1], y),
        (z[:0], y[:0]),
        (z[0, 0], y[0, 0]),
    ]
    if not labels:
        forms += [(z.astype("f4"), y.astype("f4")), (z.tolist(), y.astype("f4"))]
    if labels:
        forms += [(z, 1), (z.astype("f4"), 2), (z.tolist(), 0), (z[0, 0], 1)]
    elif not case.coupled:
        forms += [(z.astype("f4"), np.round(y).astype(int)), (z, y[0, 0].item())]
        forms += [(z, 1), (0.5, y), (1, y.tolist()), (0.5, 1.0), (np.array(0.5), 1), (0.5, True)]
        forms += [(0.5, np.float64(1)), (np.float32(0.5), 1), (z, 2**70), (2**70, y), (2, 2**64)]
    calls = [(form, {}) for form in forms]
    for method in (f.derivative, f.value_and_derivative, f.second_derivative):
        judge(method, iter(calls), outs=False)
    judge(f._call, iter(calls), outs=False)
    pulled = [
        ((a, b, g), {})
        for a, b in forms
        for shape in [np.shape(f(a, b))]
        for g in (rng.standard_normal(shape), np.ones((2, *shape)), np.ones(shape, int), 2, 0.5)
    ]
    judge(f.vjp, iter(pulled), outs=False)
    pushed = [
        ((a, b, t), {})
        for a, b in forms
        for shape in [np.shape(f.derivative(a, b))]
        for t in (rng.standard_normal(shape), np.ones(shape, "f4"), np.ones(shape, int), 2, 0.5)
    ]
    judge(f.jvp, iter([*pushed, ((z, y, None), {})]), outs=False)
    for form in forms:
        J, plain = f.jacobian(*form), f.jacobian.__wrapped__(*form)
        assert repr(J) == repr(plain)
        assert bits(J.todense()) == bits(plain.todense())


def with_masks(calls: list[Call], shape: tuple[int, ...]) -> Iterator[Call]:
    """Yield calls, and some of them with masks."""
    mask = np.arange(np.prod(shape)).reshape(shape) % 3 == 0
    for k, (args, options) in enumerate(calls):
        yield args, options
        if k % 4 == 0:
            for where in (True, False, mask, mask[..., :1], mask.tolist()):
                yield args, {**options, "where": where}


def judge_masked(method: Any, calls: Iterator[Call]) -> None:
    """Compare what is written where a mask is true."""
    for args, options in calls:
        want = method.__wrapped__(*args, **{**options, "where": True})
        outs = [nested(want, lambda leaf: np.full_like(np.asarray(leaf), 7)) for _ in range(2)]
        method(*args, **options, out=outs[0])
        method.__wrapped__(*args, **options, out=outs[1])
        assert bits(outs[0]) == bits(outs[1]), (method, args, options)


@pytest.mark.parametrize("name", ["multiply", "power", "maximum", "logaddexp"])
def test_binary(name: str) -> None:
    f = pb.primitives[name]
    x = rng.uniform(0.2, 0.9, (3, 4))
    cube = rng.uniform(0.2, 0.9, (2, 3, 2)).astype("f4")

    def pairs() -> Iterator[tuple[Any, Any]]:
        yield from itertools.product(kinds((3, 4)), repeat=2)
        yield from ((x, 2.0), (3, x), (x.astype("f4"), 2), (x.astype("f4"), np.float64(2)))
        yield from ((x[0], x), (x[:, :1], x[0]), (x, True), (2.0, 3.0), (x[:0], 1.0))
        yield from ((x[0, :2], cube), (x[0, :2].tolist(), cube[..., ::-1]), (cube, 2**70))

    wrts = itertools.cycle([{}, {"wrt": 0}, {"wrt": ("x", "w")}, {"wrt": ("x",)}, {"wrt": "all"}])
    judge_jacobians(f.jacobian, ((pair, next(wrts)) for pair in pairs()))
    for method in (f.derivative, f.value_and_derivative):
        judge(method, iter([(pair, {}) for pair in pairs()]))
        judge_masked(method, with_masks([((x, x), {}), ((x, x.astype("f4")), {})], (3, 4)))
    pulled = [
        (a, b, g)
        for a, b in pairs()
        for shape in [np.shape(f(a, b))]
        for g in (np.ones(shape), np.ones((2, *shape), np.int8), 2, 0.5)
    ]
    judge(f.vjp, iter([(args, {}) for args in pulled]))
    for k, wrt in enumerate([0, "x", (1, 0), ("w",), "all"]):
        judge(f.vjp, iter([(args, {"wrt": wrt}) for args in pulled[k % 3 :: 3]]))
    g = rng.normal(size=(3, 4))
    for wrt in (0, (1,), "all"):
        options = {"wrt": wrt}
        masked = [((x, x, g), options), ((x, x[0], g), options), ((x, 2.0, g[:, ::-1]), options)]
        judge_masked(f.vjp, with_masks(masked, (3, 4)))
    pushed = [
        (a, b, *tangents)
        for a, b in pairs()
        for ta, tb in [(np.ones_like(a), np.ones(np.shape(b)))]
        for tangents in ((ta, tb), (ta, None), (None, tb), (1, tb), (None, 2), (None, None))
    ]
    judge(f.jvp, iter([(args, {}) for args in pushed]))
    judge_masked(f.jvp, with_masks([((x, x[0], x, t), {}) for t in (x[0], None, 1)], (3, 4)))


def test_sums_do_not_depend_on_outputs() -> None:
    """Nor on how these lie in memory."""
    for _ in range(20):
        w, x = rng.uniform(0.2, 0.9, 4), rng.uniform(0.2, 0.9, (2, 3, 4))
        for where in (x, x[:, ::-1], np.asfortranarray(x)):
            wanted = bits(pb.arctan2.vjp(w, where, 0.5))
            for out in (x.copy(), np.asfortranarray(x), x.repeat(2, -1)[..., ::2]):
                assert bits(pb.arctan2.vjp(w, where, 0.5, out=(None, out))) == wanted


@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
def test_unary(name: str) -> None:
    f = pb.primitives[name]
    operands = [*kinds((3, 4)), 0.5, 2, True, np.float32(0.5), rng.uniform(size=(3, 0))]
    judge(f.value_and_derivative, iter([((x,), {}) for x in operands]))
    judge_jacobians(f.jacobian, iter([((x,), {}) for x in operands]))
    x = rng.normal(size=(3, 4))
    judge_masked(f.value_and_derivative, with_masks([((x,), {}), ((x[:, ::-1],), {})], (3, 4)))
    for method in (f.vjp, f.jvp):
        factors = [np.ones, lambda shape: np.ones(shape, np.float32), lambda _: 2, lambda _: 0.5]
        if method is f.vjp:
            factors += [lambda shape: np.ones((2, *shape), np.int8)]
        else:
            factors += [lambda _: None]
        judge(method, iter([((x, t(np.shape(x))), {}) for x in operands for t in factors]))
        judge_masked(method, with_masks([((x, x), {}), ((x, x.astype("f4")), {})], (3, 4)))


@losses
def test_objectives(case: Case) -> None:
    loss = case.of()
    m = model(case, 50, 3)
    X, y = m.X, m.y
    penalties = (0, 0.3, [0.3, 0, 1e-3], np.eye(m.w.size) + 1)
    for weights, l2, intercept in itertools.product((None, SEVENTHS), penalties, (0, 1)):
        offset = -SEVENTHS if l2 is penalties[0] else None
        options: dict[str, Any] = {
            "sample_weight": weights,
            "l2": l2,
            "fit_intercept": bool(intercept),
            "offset": offset,
        }
        ours = pb.LinearObjective(X, y, loss, **options)
        by_chunks = pb.LinearObjective(
            [(X, y, weights, offset)],
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
        forms = (X, np.asfortranarray(X), X.astype("f4"), sparse.csr_array(X), sparse.csc_array(X))
        whole = np.rint(X).astype(int)
        forms += (whole, whole.tolist(), X[::2], X[:0], np.rint(X).astype(np.int8))
        for new in forms if l2 is penalties[-1] else forms[:1]:  # penalties do not predict
            judge(ours.predict, iter([((new, theta), {}), ((new, theta.tolist()), {})]), outs=False)
            assert bits(ours.predict(new, theta)) == bits(by_chunks.predict(new, theta))
            added = SEVENTHS[: len(ours.predict(new, theta))]
            for given in (added, added.astype("f4"), added[::-1], added.tolist()):
                judge(
                    ours.predict,
                    iter([((new, theta, given), {}), ((new, theta), {"offset": given})]),
                    outs=False,
                )
        judge(ours.unpack, iter([((theta,), {}), ((theta.astype("f4").tolist(),), {})]), outs=False)


@losses
def test_objectives_of_any_data(case: Case) -> None:
    """Whether they are read where they lie, converted or left to Python."""
    m = model(case, 50, 3)
    X, y, weights = m.X, m.y, rng.uniform(0, 2, 50)
    whole = np.rint(2 * X)
    datas = [
        *((A, y, weights) for A in (*kinds_of(X), *kinds_of(whole, np.int8, np.int64, "f2"))),
        *(
            (make(A), y, weights)
            for make in (sparse.csr_array, sparse.csc_array)
            for A in (X, whole)
        ),
        (sparse.csc_array(whole.astype(np.int16)), y, None),
        (np.tile(whole.astype(int), 200), y, weights),
        *((X, targets, None) for targets in kinds_of(y)),
        *((X, y, given) for given in kinds_of(weights, "f4", "f2")),
        *((X, y, given) for given in kinds_of(np.rint(2 * weights), np.int8, np.int64)),
    ]
    if np.array_equal(y, np.rint(y)) and not (case.coupled and y.ndim > 1):
        datas += [(X, targets, None) for targets in kinds_of(y, np.int64, np.int8)]
    for data in datas:
        objective = pb.LinearObjective(*data[:2], case.of(), 0.3, data[2])
        theta, v = rng.standard_normal((2, objective.n_parameters)) / 8
        for method in ("value", "grad", "value_and_grad"):
            judge(getattr(objective, method), iter([((theta,), {})]), outs=False)
        judge(objective.hvp, iter([((theta, v), {})]), outs=False)
        if case.name == "relu_mse":
            judge(objective.initial, iter([((), {})]), outs=False)


def kinds_of(array: Any, *dtypes: Any) -> list[Any]:
    """Return an array of several layouts, or of several dtypes."""
    if dtypes:
        return [array.astype(dtype) for dtype in dtypes]
    strided = np.repeat(array, 2, axis=-1)[..., ::2]
    swapped = array.astype(array.dtype.newbyteorder())
    return [array, np.asfortranarray(array), array[::-1].copy()[::-1], strided, swapped]


def test_all_methods_are_here() -> None:
    """Whatever has a Python side behind it is judged above, selections in their own tests."""
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
    own = {*reductions, *pb.losses.losses, *binary, *unary, *OPERANDS}
    assert found == own | {*pb.selections.selections}


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

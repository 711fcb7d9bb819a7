"""The extension's own functions, which nobody calls but this package, given anything at all.

They may refuse it with any error that says what is wrong. A SystemError says that the extension
broke Python's rules, and a crash ends the tests.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pullback as pb
import pytest
from protocol import native
from pullback.chain_steps import Step, make_step, other

RNG = random.Random(0)
DRAWN = 400  # calls with arguments drawn at random, of each function

REFUSALS = (TypeError, ValueError, KeyError, OverflowError, BufferError, MemoryError)


class Angry:
    """An object whose every method raises."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name != "__call__":
            return super().__getattribute__(name)
        raise KeyError(name)

    def _fail(self, *arguments: Any) -> Any:
        raise KeyError("angry")

    __index__ = __float__ = __array__ = __len__ = __iter__ = __call__ = __bool__ = _fail


def refuse(*arguments: Any, **options: Any) -> Any:
    raise TypeError("refused")


def refusing(parameters: str) -> Any:
    """Return a function of that signature that refuses everything."""
    return eval(f"lambda {parameters}: refuse()", {"refuse": refuse})


F8 = np.ones((2, 3))
OWN = np.arange(6.0).reshape(2, 3)  # which no call is given to write to


def step(*given: Any, **options: Any) -> Step:
    """Return a step of a chain."""
    op, *operands = given
    return make_step("step", op, tuple(operands) or (pb.arg,), options)


TANH, SCALED = step(pb.tanh), step(pb.multiply, pb.arg, 2.0)


def wrong_step(i: int, part: Any) -> tuple[Any, ...]:
    """Return steps of which one is wrong in one part."""
    return (TANH, (*SCALED[:i], part, *SCALED[i + 1 :]), TANH)


# By their places in a step.
WRONG_PARTS: list[tuple[int, Any]] = [
    *((i, part) for i in range(6) for part in (1, (), (print,), (print, [], {}), (print, (), ()))),
    *((i, (Angry(), (pb.arg, pb.arg, 1), {"out": 1, "where": F8})) for i in range(6)),
    *((i, (print, (), {1: 2})) for i in range(6)),
    *((0, None), (2, None), (3, None), (5, None), (6, ()), (6, (-1,)), (6, (Angry(),)), (6, [0])),
    *((6, (10**30,)), (6, (7,)), (7, -1), (7, 5), (7, 2**62), (7, 10**30), (7, "1"), (7, 0)),
    *((8, Angry()), (9, 1), (9, "tanh"), (9, ("tanh",)), (9, ("tanh", 0, None)), (10, 1)),
    *((9, ("a\0b", (0,), None)), (9, ("multiply", (0, 7), None)), (9, ("tanh", (), None))),
    *((9, ("multiply", (Angry(),), 1)), (9, ("multiply", (10**30,), 1)), (9, ("tanh", (1,), None))),
    *((9, ("multiply", (0,), Angry())), (9, ("multiply", (0,), F8.T)), (10, None)),
]
ROWS, VALUES = np.ones((2, 3, 4)), np.ones((2, 4))
VECTOR, SQUARE = np.ones(3), np.ones((2, 2))
X, W, B, Y = np.ones((4, 3)), np.ones((3, 1)), np.ones(1), np.ones(4)
I4 = np.array([0, 1, 2], np.int32)
OBJECTIVE = ("logistic", 0.0, X, Y, Y, Y, 4, 3, 0.5, 1, True, False, None)
THETA = np.ones(4)
OBJECTIVE_METHODS: list[tuple[str, str, tuple[Any, ...]]] = [
    *((method, "theta", (THETA,)) for method in ("value", "grad", "value_and_grad", "unpack")),
    *(
        ("hvp", "theta, v", (THETA, THETA)),
        ("predict", "X, theta, offset=None", (X, THETA, Y)),
        ("initial", "", ()),
    ),
]
ANYTHING: list[Any] = [
    *(None, True, 0, 1, -1, 2, 2**31, 2**63, 10**400, -(10**400), 1.5, np.nan, np.inf, 1j, ...),
    *("", "tanh", "sum", "norm", "softmax", "huber", "relu_mse", "value", "gradient", "curved"),
    *("hvp", "vjp", "AVX2", "\ud800", "a\0b", b"", b"tanh", bytearray(8), memoryview(b"abcd")),
    *((), (1,), (1, 2), [], [1], {}, {1}, (F8,), (F8, F8), (VECTOR, VECTOR), (W, B), (ROWS,) * 2),
    *(F8, F8.astype("f4"), F8.T, F8[:, ::2], F8[0], F8[0, 0], np.array(1.0), np.zeros((0, 3))),
    *(np.zeros((3, 0)), ROWS, VECTOR, np.ones((3, 2)), np.ones(6, int), F8.astype(object)),
    *(F8.astype("f2"), F8.astype(ml_dtypes.bfloat16), F8.T.astype(ml_dtypes.float8_e5m2)),
    *(F8.astype(">f8"), F8 * 1j, np.ma.array(F8), np.ones((1,) * 64), np.float64(2), np.int64(3)),
    *(Angry(), print, type, object(), slice(None), range(3), refuse),
    ("csr", VECTOR, I4, np.array([0, 3], np.int32), (1, 3)),
    ("csr", VECTOR, I4, np.array([0, 9], np.int32), (1, 3)),
    ("csc", VECTOR, I4 + 77, np.array([0, 1, 2, 3], np.int32), (4, 3)),
    ("csr", VECTOR, VECTOR, None, (1, 2, 3)),
    *(wrong_step(i, part) for i, part in WRONG_PARTS),
]

Function = Callable[..., Any]


def jacobians() -> Iterator[Any]:
    """Yield Jacobians of each class whose slots the extension reads, by an operand like F8."""
    J, flat = pb.jacobians, (F8.size,)
    sides = np.ones((2, 2)), np.ones((3, 3))
    yield J.Product(J.Reshape(F8.shape, flat), J.Diagonal(F8), J.Kronecker(*sides))
    yield pb.softmax.jacobian(F8.reshape(-1))
    yield from (J.SumTo(F8.shape, (3,), F8.dtype), J.Broadcast(flat, (2, *flat), F8.dtype))
    yield from (J.Diagonal(F8), J.Dense(np.ones((2, 6))), J.Kronecker(2, sides[1]))
    yield from (J.Identity(flat), J.Reshape(F8.shape, flat, F8.dtype))


def functions() -> Iterator[tuple[str, Function, tuple[Any, ...]]]:
    """Yield functions, and arguments that each of them takes."""
    N, target = native, native.active_target()
    sums = ("relu_mse", 0.0, X, Y, W, B, Y, Y, "gradient", (W, B), np.ones((4, 1)), X.copy(), 1.0)
    yield "loss_sums", N.loss_sums, sums
    slopes = (*sums[:8], "backward", *[None] * 3, 1.0)
    yield "loss_sums backward", N.loss_sums, slopes
    yield "loss_pointwise", N.loss_pointwise, ("huber", 1.0, Y, Y, 1)
    yield "loss_line", N.loss_line, ("huber", 1.0, np.ones((4, 2)), Y, Y, 0.5, 1)
    yield "softmax_hessians", N.softmax_hessians, (F8, np.ones(2))
    yield "reduce_slices", N.reduce_slices, ("sum", 0.0, (ROWS,), VALUES, np.ones((2, 4)), None)
    tangents = ("dot", 0.0, (ROWS, ROWS), (ROWS, None), np.ones((2, 4)))
    yield "reduce_tangents", N.reduce_tangents, tangents
    transformed = ("softmax", 0.0, "vjp", ROWS, ROWS, ROWS.copy())
    yield "transform_slices", N.transform_slices, transformed
    yield "second_rows", N.second_rows, ("softmax", 0.0, F8, F8, F8, F8.copy())
    yield "second_rows of norm2", N.second_rows, ("norm2", 0.0, F8, F8[:, :1].copy(), F8, F8.copy())
    yield "read_seconds", N.read_seconds, (VECTOR,)
    yield "copy_seconds", N.copy_seconds, (VECTOR, VECTOR.copy())
    yield "set_target", N.set_target, (target,)
    yield "set_num_threads", N.set_num_threads, (1,)
    yield "set_kept_limit", N.set_kept_limit, (2**20,)
    yield "ChainWalk", N.ChainWalk, ((TANH, SCALED, step(pb.sum)), pb.arg, other)
    yield "elementwise_ufunc", N.elementwise_ufunc, ("tanh", "value", "name", "doc")
    yield (
        "elementwise_method",
        N.elementwise_method,
        (
            *("tanh", "value_and_derivative"),
            refusing("x, /, out=None"),
        ),
    )
    yield "loss_method", N.loss_method, (*("huber", 1.0, "value"), None, refusing("X, y, w"))
    grad = (*OBJECTIVE, "grad", refusing("theta"))
    yield "objective_method", N.objective_method, grad
    yield "reduction_method", N.reduction_method, (*("sum", "value", "", 0.0), None, refusing("x"))
    pulled = refusing("A, B, G, wrt='all', out=None")
    yield "product_method", N.product_method, ("matmul", "vjp", pulled)
    results = ("matmul", "vjp", (F8, F8.T, SQUARE), None, (0, 1), (None, F8.copy().T))
    yield "product_results", N.product_results, results
    yield "plain_arrays", N.plain_arrays, (F8, F8.astype(np.float32))
    told = vars(pb.jacobians), pb.jacobians.algebra.PRODUCTS.found
    yield "jacobian_classes", N.jacobian_classes, told
    N.jacobian_classes(*told)
    for J in jacobians():
        vectors = F8.reshape(J.input_shape)
        yield "jacobian_product", N.jacobian_product, (J, vectors, False, False)
        yield "jacobian_elements", N.jacobian_elements, (J, True)
    yield "selection_method", N.selection_method, ("where", "value", refusing("c, w, x, /"))
    for name in ("elementwise_ops", "loss_ops", "reduction_ops", "product_ops", "get_num_threads"):
        yield name, getattr(N, name), ()
    yield "selection_ops", N.selection_ops, ()
    for name in (
        "kept_bytes",
        "available_cpus",
        "threads_from_env",
        "kept_limit",
        "supported_targets",
    ):
        yield name, getattr(N, name), ()
    yield from made()


def selections() -> Iterator[tuple[str, Function, tuple[Any, ...]]]:
    """Yield the methods of selections."""
    places = np.array([[0, -1], [1, 0]])
    for name, method, taken, given in (
        ("where", "value", "c, w, x, /, out=None", (F8 > 0, F8, F8, F8.copy())),
        ("where", "vjp", "c, w, x, g, /, out=None, wrt='all'", (F8 > 0, F8, 1.0, F8)),
        ("where", "jvp", "c, w, x, tw, tx, /, out=None", (F8 > 0, F8, F8, None, F8)),
        ("clip", "derivative", "x, lo, hi, /, out=None", (F8, None, F8, (F8.copy(), None, None))),
        ("clip", "value_and_derivative", "x, lo, hi, /, out=None", (F8, 0, F8)),
        ("clip", "vjp", "x, lo, hi, g, /, out=None, wrt='all'", (F8, 0.0, 1, F8, None, "x")),
        ("clip", "jvp", "x, lo, hi, tx, tlo, thi, /, out=None", (F8, F8, F8, F8, None, 1.0)),
        (
            "clip",
            "vjp.jvp",
            "x, lo, hi, g, t, u, v, tg, /, out=None",
            (F8,) * 4 + (None, 1.0, F8, F8),
        ),
        ("take", "value", "x, indices, /, axis=None, out=None", (F8, places, 1)),
        ("take", "vjp", "x, indices, g, /, axis=None, out=None", (F8, places, np.ones((2, 2)))),
        ("take", "jvp", "x, indices, t, /, axis=None, out=None", (F8, places, F8, 0)),
    ):
        yield f"{name}.{method}", native.selection_method(name, method, refusing(taken)), given


def made() -> Iterator[tuple[str, Function, tuple[Any, ...]]]:
    """Yield what the extension's factories make."""
    N = native
    for op, method, nin in (
        ("tanh", "value", 1),
        ("tanh", "vjp", 2),
        ("multiply", "jvp", 4),
        ("multiply", "vjp0", 3),
        ("multiply", "derivative1", 2),
        ("multiply", "value_and_derivative", 2),
    ):
        ufunc = N.elementwise_ufunc(op, method, f"hostile.{op}.{method}", "doc")
        yield f"ufunc {op}.{method}", ufunc, (F8,) * nin
    door = N.elementwise_ufunc("tanh", "value", "hostile.door", "doc", lambda given, *_: given)
    yield "ufunc with a door", door, (F8,)
    mask = F8 > 0
    for op, method, taken, more in (
        ("tanh", "value_and_derivative", "x", ()),
        ("tanh", "vjp", "x, g", (F8.copy(), mask)),
        ("tanh", "jvp", "x, t", (None, mask)),
        ("multiply", "derivative", "w, x", (None, mask)),
        ("multiply", "vjp", "w, x, g", ((F8.copy(), None), mask, (1, 0))),
        ("multiply", "jvp", "w, x, tw, tx", ()),
        ("multiply", "jacobian", "w, x", (None, True, (1, 0))),
    ):
        fallback = refusing(f"{taken}, /, out=None, where=True, wrt='all'")
        given = (F8,) * len(taken.split(", "))
        yield f"{op}.{method}", N.elementwise_method(op, method, fallback), given + more
    jacobian = N.elementwise_method("tanh", "jacobian", lambda x: x)
    yield "tanh.jacobian", jacobian, (F8,)
    sums = (pb.PartialSums, "'title'")
    for loss, y, w in (("relu_mse", Y, VECTOR), ("softmax_cross_entropy", Y.astype(int), X[:3])):
        fallback = refusing("X, y, w, b=None, v=None, sample_weight=None, out=None, offset=None")
        for method in ("value", "grad", "value_and_grad", "curvature", "partial"):
            made_of = N.loss_method(loss, 0.0, method, sums, fallback)
            yield f"{loss}.{method}", made_of, (X, y, w, None, None, Y, None, Y)
        fallback = refusing("X, y, w, b, v, reduction='mean', wrt=None")
        direction = (w, None)
        product = N.loss_method(loss, 0.0, "hvp", None, fallback)
        yield f"{loss}.hvp", product, (X, y, w, None, direction)
    plain = ("", ".derivative", ".value_and_derivative", ".second_derivative", ".jacobian")
    for method in (*plain, ".vjp", ".jvp"):
        name = f"pointwise{method}"
        taken = "z, y" if method in plain else "z, y, g"
        for loss, z, y in (("huber", Y, Y), ("softmax_cross_entropy", X, Y.astype(int))):
            given = (z, y, *{".vjp": (Y,), ".jvp": (z,)}.get(method, ()))
            yield f"{loss}.{name}", N.loss_method(loss, 1.0, name, None, refusing(taken)), given
    for method, taken, given in OBJECTIVE_METHODS:
        yield method, N.objective_method(*OBJECTIVE, method, refusing(taken)), given
    for name, method, taken, given in (
        ("sum", "grad", "x, axis=None, keepdims=False, where=True", (F8, 0, True, True)),
        ("dot", "vjp", "x, y, g, axis=None, out=None, wrt='all'", (F8, F8, np.ones(3), 0)),
        ("dot", "grad", "x, y, axis=None, wrt='all', out=None", (F8, F8, 0, 1, F8.copy())),
        ("dot", "jvp", "x, y, tx, ty, axis=None, out=None", (F8, F8, F8, None)),
        ("dot", "jacobian", "x, y, axis=None, wrt='all'", (F8, F8, 0, "y")),
        ("norm", "value_and_grad", "x, p, axis=None, out=None", (F8, 3.0)),
        ("softmax", "vjp", "x, g, axis=-1, out=None, where=True", (F8, F8)),
        ("logsumexp", "value", "x, b=None, where=True", (F8,)),
        ("layer_norm", "value", "x, axis=-1, eps=1e-5, out=None", (F8, -1)),
        ("cumprod", "vjp", "x, g, axis=-1, reverse=False, out=None", (F8, F8, -1, 1)),
        ("logcumsumexp", "jvp", "x, t, axis=-1, out=None, reverse=False", (F8, F8)),
        ("softmax", "vjp.jvp", "x, g, t, tg, axis=-1, out=None, where=True", (OWN, OWN, OWN, OWN)),
        ("norm2", "vjp.jvp", "x, g, t, tg, axis=None, keepdims=False", (OWN, 1.5, OWN, None)),
        ("logsumexp", "vjp.vjp", "x, g, h, axis=None, b=None, wrt='all'", (OWN, Y[:2], OWN, 1)),
        ("layer_norm", "vjp.vjp", "x, g, h, axis=-1, eps=1e-5", (OWN, OWN, OWN, -1)),
    ):
        parameters = {"norm": "p", "layer_norm": "eps", "cumprod": "reverse"}
        called = parameters.get(name, "reverse" if "reverse" in taken else "")
        made_of = N.reduction_method(name, method, called, 1.0, lambda p: p >= 0, refusing(taken))
        yield f"{name}.{method}", made_of, given
    yield from selections()
    for product, (taken, given) in PRODUCTS.items():
        operands = taken.count(",") + 1
        tangents = ", ".join(f"t{name}" for name in taken.split(", "))
        value = product_result(product, *given)
        ways: dict[str, tuple[str, tuple[Any, ...], int]] = {
            "value": (f"{taken}, /, *, activation=None, out=None", (), 1),
            "vjp": (f"{taken}, g, /, *, activation=None, wrt='all', out=None", (value,), operands),
            "jvp": (f"{taken}, {tangents}, activation=None, out=None", given, 1),
            "value_and_grad": (f"{taken}, *, wrt=0", (), 1 + operands),
            "jacobian": (f"{taken}, /, wrt='all', *, activation=None", (1,), 0),
        }
        for method, (parameters, more, count) in ways.items():
            if method == "value_and_grad" and "form" not in product:
                continue
            made_of = N.product_method(product, method, refusing(parameters))
            yield f"{product}.{method}", made_of, (*given, *more)
            if method == "jacobian":  # which is no method of the engine
                continue
            both = len(given) + len(more)

            def engine(
                *a: Any, at: Any = (product, method, both, tuple(range(operands)), count)
            ) -> Any:
                """Give each array and each output its own place."""
                if len(a) != at[2] + at[4]:
                    raise TypeError
                return native.product_results(*at[:2], a[: at[2]], None, at[3], a[at[2] :])

            yield f"engine {product}.{method}", engine, (*given, *more, *[None] * count)
    yield from of_chains()


def of_chains() -> Iterator[tuple[str, Function, tuple[Any, ...]]]:
    """Yield what chains are made of."""
    N = native
    twice = step(pb.multiply, pb.arg, pb.arg)
    for name, steps in (
        ("run", (step(pb.multiply, pb.arg, F8), twice)),
        ("mixed", (twice, step(pb.matmul, pb.arg, F8.T), SCALED, step(pb.softmax))),
        ("sum", (TANH, step(pb.sum, pb.arg, axis=0), step(pb.linear, pb.arg, F8.T), step(pb.sum))),
    ):
        walk = N.ChainWalk(steps, pb.arg, other)
        value = np.asarray(walk.value(F8))
        yield f"{name}.value", walk.value, (F8,)
        yield f"{name}.jvp", walk.jvp, (F8, F8)
        yield f"{name}.vjp", walk.vjp, (F8, value, True)
        yield f"{name}.jacobian", walk.jacobian, (F8,)
        yield "chain_method", N.chain_method, (walk, "vjp", refusing("x, g, wrt=0"))
        for method, taken, given in (
            ("value", "x", (F8,)),
            ("jvp", "x, t", (F8, F8)),
            ("vjp", "x, g, wrt=0", (F8, value, "all")),
            ("value_and_vjp", "x, g, wrt=0", (F8, value, (0,))),
            ("value_and_grad", "x, wrt=0", (F8, 0)),
            ("grad", "x, wrt=0", (F8, 0)),
            ("jacobian", "x", (F8,)),
        ):
            if "grad" in method and value.ndim:
                continue
            yield f"{name}.{method}", N.chain_method(walk, method, refusing(taken)), given


PRODUCTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "matmul": ("A, B", (F8, F8.T)),
    "linear": ("X, W, b", (F8, F8.T, np.ones(2))),
    "quadratic_form": ("x, A", (np.ones(2), SQUARE)),
    "bilinear_form": ("u, X, v", (np.ones(2), F8, np.ones(3))),
}


def product_result(product: str, *given: Any) -> Any:
    (value,) = native.product_results(
        product, "value", given, None, tuple(range(len(given))), (None,)
    )
    return np.asarray(value)


def hostile(given: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield wrong arguments: one of them, several, too few, too many, by an unknown name."""
    for k in range(len(given)):
        for value in ANYTHING:
            yield (*given[:k], value, *given[k + 1 :]), {}
    for _ in range(DRAWN if given else 0):
        changed = list(given)
        for k in RNG.sample(range(len(given)), min(len(given), RNG.randint(2, 3))):
            changed[k] = RNG.choice(ANYTHING)
        yield tuple(changed), {}
    for count in range(len(given)):
        yield given[:count], {}
    for value in ANYTHING:
        yield (*given, value), {}
        yield (*given, value, None), {}
        for name in ("nonsense", "axis", "out", "x", "where", "wrt"):
            yield given, {name: value}


def test_everything_is_refused_or_computed() -> None:
    before = native.active_target(), native.get_num_threads(), native.kept_limit()
    wrong, calls = [], 0
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # NumPy's, of a mask without outputs
        for name, function, given in functions():
            function(*given)
            for arguments, options in hostile(given):
                calls += 1
                try:
                    function(*arguments, **options)
                except REFUSALS:
                    pass
                except BaseException as error:
                    wrong.append(f"{name}: {type(error).__name__}: {error}")
    native.set_target(before[0])
    native.set_num_threads(before[1])
    native.set_kept_limit(before[2])
    assert not wrong, "\n".join(sorted(set(wrong)))
    assert calls > 20_000


def test_data_of_objectives_hold_anything() -> None:
    """They are looked at in each call, whatever they have become since."""
    computed = left = 0
    for k, (method, taken, given) in itertools.product((2, 3, 4), OBJECTIVE_METHODS):
        for value in ANYTHING:
            data = (*OBJECTIVE[:k], value, *OBJECTIVE[k + 1 :])
            try:
                native.objective_method(*data, method, refusing(taken))(*given)
                computed += 1
            except REFUSALS:
                left += 1
    assert left > 1000
    assert computed > 200


def test_slots_of_jacobians_hold_anything() -> None:
    """Whatever stands in them is read as what it is, or left to Python."""
    calls = left = 0
    for J in jacobians():
        names = [n for kind in type(J).__mro__ for n in getattr(kind, "__slots__", ())]
        vectors, rows = F8.reshape(J.input_shape), np.ones(J.output_shape)
        for name in names:
            kept = getattr(J, name)
            for value in (*ANYTHING, (3, 2), (6,), (2**62, 4), (J,), (J, J)):
                delattr(J, name)
                if value is not ...:  # else there is none
                    setattr(J, name, value)
                for ask in (
                    lambda J=J: native.jacobian_elements(J, False),
                    lambda J=J: native.jacobian_elements(J, True),
                    lambda J=J, v=vectors: native.jacobian_product(J, v, False, False),
                    lambda J=J, v=rows: native.jacobian_product(J, v, True, True),
                ):
                    calls += 1
                    try:
                        left += ask() is None
                    except (*REFUSALS, AttributeError):
                        pass
                setattr(J, name, kept)
    assert calls > left > 5_000


def test_steps_of_a_walk() -> None:
    def walk(*steps: Any) -> Any:
        return native.ChainWalk(steps, pb.arg, other)

    for given in (1, None, [0]):
        with pytest.raises(TypeError, match=r"ChainWalk: a step must be a tuple"):
            walk(given)
    with pytest.raises(ValueError, match="ChainWalk: there are no steps"):
        walk()
    with pytest.raises(TypeError, match="ChainWalk"):
        native.ChainWalk([TANH], pb.arg, other)
    refused = 0
    for i, part in WRONG_PARTS:
        try:
            made = native.ChainWalk(wrong_step(i, part), pb.arg, other)
        except (TypeError, ValueError, OverflowError, KeyError):
            refused += 1
            continue
        for call in (made.value, made.jacobian, lambda x, f=made: f.vjp(x, x, True)):
            with contextlib.suppress(*REFUSALS, AttributeError):
                call(F8)
    assert refused > 40
    with pytest.raises(
        TypeError, match=r"(?s)chain: multiply\(arg, 2.0\) has returned .* 2 cotangents"
    ):
        walk(SCALED._replace(pull=TANH.vjp)).vjp(F8, F8, True)
    for method, count in (("value", 1), ("vjp", 3), ("jvp", 2), ("jacobian", 1)):
        for wrong in {0, 1, 2, 3, 4} - {count}:
            with pytest.raises(TypeError, match=f"ChainWalk: takes {count} arguments, not {wrong}"):
                getattr(walk(TANH), method)(*[F8] * wrong)
    with pytest.raises(TypeError, match="is no walk"):
        native.chain_method(1, "vjp", refuse)
    with pytest.raises(KeyError, match="no native method"):
        native.chain_method(walk(TANH), "hessian", refuse)


def test_what_partial_sums_are_made_of() -> None:
    for sums in (
        None,
        (),
        (pb.PartialSums,),
        (pb.PartialSums, 1),
        (int, "x"),
        ("x", pb.PartialSums),
    ):
        with pytest.raises(
            (TypeError, AttributeError), match=r"loss_method: sums|has no attribute"
        ):
            native.loss_method("huber", 1.0, "partial", sums, refusing("X, y, w"))


def test_parameters_under_another_name() -> None:
    """They would be taken for their defaults in silence."""
    for name, method in (("norm", "value"), ("variance", "vjp"), ("layer_norm", "value")):
        taken = refusing("x, g, q" if method == "vjp" else "x, q")
        with pytest.raises(TypeError, match="does not take the parameter 'p'"):
            native.reduction_method(name, method, "p", 0.0, None, taken)


def test_too_few_arguments_to_rely_on() -> None:
    """A fast path looks at arguments that its Python side requires, so these have to be there."""
    N = native
    for make in (
        lambda f: N.elementwise_method("multiply", "vjp", f),
        lambda f: N.selection_method("where", "vjp", f),
        lambda f: N.selection_method("take", "jvp", f),
        lambda f: N.loss_method("huber", 1.0, "grad", None, f),
        lambda f: N.loss_method("huber", 1.0, "pointwise.vjp", None, f),
        lambda f: N.reduction_method("dot", "jvp", "", 0.0, None, f),
        lambda f: N.reduction_method("sum", "value", "", 0.0, None, f),
        lambda f: N.reduction_method("softmax", "vjp.jvp", "", 0.0, None, f),
        lambda f: N.product_method("matmul", "vjp", f),
        lambda f: N.product_method("linear", "jvp", f),
        lambda f: N.product_method("bilinear_form", "value", f),
        lambda f: N.objective_method(*OBJECTIVE, "hvp", f),
        lambda f: N.objective_method(*OBJECTIVE, "predict", f),
        lambda f: N.chain_method(N.ChainWalk((TANH,), pb.arg, other), "vjp", f),
    ):
        for function in (refuse, refusing("x=None, y=None")):
            with pytest.raises(TypeError):
                make(function)


@pytest.mark.native
def test_doors_of_ufuncs_are_not_trusted() -> None:
    for answer in (None, F8, [F8], (), (F8, F8), "a"):
        f = native.elementwise_ufunc("tanh", "value", "hostile.answer", "doc", lambda *_: answer)  # noqa: B023
        with pytest.raises(TypeError, match="^tanh: the door returned"):
            f("not plain")
    f = native.elementwise_ufunc("tanh", "value", "hostile.answer", "doc", lambda *_: (F8,))
    np.testing.assert_array_equal(f("not plain"), pb.tanh(F8))
    np.testing.assert_array_equal(f(F8.astype(object), out=None), pb.tanh(F8))
    for not_callable in (3, "door", object()):
        f = native.elementwise_ufunc("tanh", "value", "hostile.answer", "doc", not_callable)
        with pytest.raises(TypeError, match="not callable"):
            f("not plain")

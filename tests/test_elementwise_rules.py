"""What methods of elementwise operations take besides arrays: wrt, where, stacks, numbers, None."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pullback as pb
import pytest
from oracles import assert_same_bits
from protocol import backends, leaves, rows
from pullback.tables.elementwise import OPS, OpRow

SHAPES = {
    1: [((),), ((3,),), ((3, 1),), ((2, 0),), ((2, 3, 4),)],
    2: [
        *(((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (4,)), ((), (4,)), ((), ())),
        *(((1, 4), (3, 4)), ((3, 0), (3, 1)), ((2, 3, 4), (3, 1)), ((1, 1), (4,))),
    ],
}


def operands(row: OpRow, shapes: Any, dtype: Any = float) -> list[Any]:
    rng = np.random.default_rng(len(row.name))
    ranges = [domain.ordinary for domain in row.domain]
    return [rng.uniform(*ends, s).astype(dtype) for ends, s in zip(ranges, shapes, strict=True)]


def every(row: OpRow, dtype: Any = float) -> Iterator[tuple[list[Any], tuple[int, ...]]]:
    """Yield operands, and the shape of their value."""
    for shapes in SHAPES[row.nin]:
        yield operands(row, shapes, dtype), np.broadcast_shapes(*shapes)


def same(actual: Any, desired: Any) -> None:
    """Fail unless results are the same: to the bit, but for NumPy's own loops and sums."""
    assert isinstance(actual, tuple) == isinstance(desired, tuple)
    for one, other in zip(leaves(actual), leaves(desired), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if pb.backend() == "native":
            assert_same_bits(one, other)
        np.testing.assert_allclose(one, other, rtol=1e-6 if one.dtype == np.float32 else 1e-13)


@backends
@rows
def test_stacks_of_cotangents(row: OpRow, primitives: Any) -> None:
    f = getattr(primitives, row.name)
    for at, shape in every(row):
        for stack in ((3,), (2, 1), (0,)):
            g = np.random.default_rng(0).normal(size=stack + shape)
            together = list(leaves(f.vjp(*at, g)))
            for k, (whole, operand) in enumerate(zip(together, at, strict=True)):
                assert np.shape(whole) == stack + operand.shape
                for i in np.ndindex(*stack):
                    one = list(leaves(f.vjp(*at, g[i])))[k]
                    np.testing.assert_allclose(whole[i], one, rtol=1e-13, atol=1e-15)
            outs = tuple(np.full(w.shape, np.nan) for w in together)
            f.vjp(*at, g, out=outs if row.nin > 1 else outs[0])
            for out, whole in zip(outs, together, strict=True):
                assert_same_bits(out, whole)


@backends
@rows
def test_numbers_fill(row: OpRow, primitives: Any) -> None:
    f = getattr(primitives, row.name)
    for dtype in (np.float32, np.float64):
        for at, shape in every(row, dtype):
            for number in (2, 0.5):
                same(f.vjp(*at, number), f.vjp(*at, np.full(shape, number, dtype)))
                tangents = [np.full(x.shape, number, dtype) for x in at]
                same(f.jvp(*at, *[number] * row.nin), f.jvp(*at, *tangents))


@backends
@rows
def test_tangents_that_are_none(row: OpRow, primitives: Any) -> None:
    f = getattr(primitives, row.name)
    for at, shape in every(row):
        tangents = operands(row, [x.shape for x in at])
        for kept in itertools.product((True, False), repeat=row.nin):
            given = [t if keep else None for t, keep in zip(tangents, kept, strict=True)]
            zeros = [t * keep for t, keep in zip(tangents, kept, strict=True)]
            wanted, got = f.jvp(*at, *zeros), f.jvp(*at, *given)
            np.testing.assert_allclose(got, wanted, rtol=1e-14, atol=0)
            assert type(got) is type(wanted)
            out = np.full(shape, np.nan)
            assert f.jvp(*at, *given, out=out) is out
            assert_same_bits(out, np.asarray(got))


@backends
def test_no_tangent_is_no_zero_times_infinity(primitives: Any) -> None:
    assert primitives.power.jvp(0.0, 0.5, None, 1.0) == 0
    assert np.isnan(primitives.power.jvp(0.0, 0.5, 0.0, 1.0))
    assert primitives.log.jvp(0.0, None) == 0


@backends
@pytest.mark.parametrize("row", [r for r in OPS.values() if r.nin > 1], ids=lambda row: row.name)
def test_wrt(row: OpRow, primitives: Any) -> None:
    f = getattr(primitives, row.name)
    for dtype in (np.float32, np.float64):
        for at, shape in every(row, dtype):
            for stack in ((), (2,)):
                g = np.random.default_rng(1).normal(size=stack + shape).astype(dtype)
                gw, gx = both = f.vjp(*at, g)
                for wrt, wanted in (
                    ("all", both),
                    *((("w", gw), (0, gw), ("x", gx), (1, gx))),
                    *(((("w",), (gw,))), ((1,), (gx,)), (("x", 0), (gx, gw))),
                ):
                    got = f.vjp(*at, g, wrt=wrt)
                    assert isinstance(got, tuple) == isinstance(wanted, tuple)
                    outs = tuple(np.full(np.shape(v), np.nan, dtype) for v in leaves(wanted))
                    out = outs if isinstance(wanted, tuple) else outs[0]
                    f.vjp(*at, g, wrt=wrt, out=out)
                    for one, written, other in zip(leaves(got), outs, leaves(wanted), strict=True):
                        assert type(one) is type(other)
                        assert_same_bits(np.asarray(one), np.asarray(other))
                        assert_same_bits(written, np.asarray(other))


@backends
@rows
def test_where(row: OpRow, primitives: Any) -> None:
    """Results keep what they hold where the mask is false; sums leave it out."""
    f = getattr(primitives, row.name)
    rng = np.random.default_rng(2)
    for at, shape in every(row):
        for whole in (shape, (2, *shape)):
            g = rng.normal(size=whole)
            for mask in (rng.random(whole) < 0.5, rng.random(shape) < 0.5, np.False_, np.True_):
                full = np.broadcast_to(mask, whole)
                outs = tuple(np.full(whole[: len(whole) - len(shape)] + x.shape, 7.0) for x in at)
                terms = leaves(f.vjp(*(np.broadcast_to(x, shape) for x in at), g))
                f.vjp(*at, g, out=outs if row.nin > 1 else outs[0], where=mask)
                for out, term, operand in zip(outs, terms, at, strict=True):
                    if operand.shape == shape:
                        wanted = np.where(full, term, 7)
                    else:
                        masked = np.where(full, term, 0)
                        lead = masked.ndim - operand.ndim
                        axes = tuple(range(masked.ndim - len(shape), lead))
                        axes += tuple(
                            lead + i
                            for i, n in enumerate(operand.shape)
                            if masked.shape[lead + i] != n
                        )
                        wanted = masked.sum(axis=axes).reshape(out.shape)
                    np.testing.assert_allclose(out, wanted, rtol=1e-12, atol=1e-13)
        mask = rng.random(shape) < 0.5
        for method, more in (
            ("derivative", ()),
            ("value_and_derivative", ()),
            ("jvp", [np.ones(x.shape) for x in at]),
        ):
            if method == "derivative" and isinstance(f.derivative, np.ufunc):
                continue  # NumPy's
            wanted = list(leaves(getattr(f, method)(*at, *more)))
            outs = tuple(np.full(shape, 7.0) for _ in wanted)
            getattr(f, method)(*at, *more, out=outs if len(outs) > 1 else outs[0], where=mask)
            for out, exact in zip(outs, wanted, strict=True):
                assert_same_bits(out, np.where(mask, exact, 7.0))
            same(getattr(f, method)(*at, *more, where=True), getattr(f, method)(*at, *more))
            if len(outs) > 1:  # what goes to no output is not masked
                got = leaves(getattr(f, method)(*at, out=(None, *outs[1:]), where=mask))
                same(next(got), wanted[0])
            else:
                same(getattr(f, method)(*at, *more, out=(None,), where=mask), wanted[0])


@backends
def test_a_mask_without_outputs_hides_nothing(primitives: Any) -> None:
    x, mask = np.linspace(-1, 1, 40), np.arange(40) % 2 == 0
    wanted = primitives.tanh.vjp(x, x)
    is_native = primitives is pb and pb.backend() == "native"
    options = {"casting": "same_kind"} if is_native else {}  # NumPy's own call
    for _ in range(9):
        np.full(40, 7.0)  # what new memory holds
        assert_same_bits(primitives.tanh.vjp(x, x, where=mask, **options), wanted)


@backends
def test_overflow_is_quiet(primitives: Any) -> None:
    """NumPy warns where it casts."""
    P, x, half = primitives, np.ones((2, 3), np.float32), np.ones((2, 3), np.float16)
    for result in (
        P.tanh.vjp(x, 1e300),
        P.add.vjp(x[:, ::-1], x, 1e300, wrt=0, out=half, where=half > 0),
        P.add.jvp(x, 1.0, None, 1e300),
        P.add.jvp(x, 1.0, 1e300, 1.0),
        P.multiply.derivative(x, 1e300, out=(half, half.copy()))[0],
        P.multiply.value_and_derivative(x.astype(">f4"), 1e300)[0],
    ):
        assert np.isinf(result).all()


@backends
def test_integers_of_any_length(primitives: Any) -> None:
    P, x = primitives, np.ones(3)
    for n in (2**63, 2**64, 2**70):
        same(P.multiply.vjp(x, n, n), P.multiply.vjp(x, float(n), float(n)))
        same(P.sqrt.vjp(n, n), P.sqrt.vjp(float(n), float(n)))
        assert P.sqrt.jvp(n, None) == 0
        same(P.sqrt.jacobian(n).todense(), P.sqrt.jacobian(float(n)).todense())


# --- a last operand that is left out --------------------------------------------------------------

DEFAULTS = {"leaky_relu": 0.01, "elu": 1.0}
DEFAULTED = [row for row in OPS.values() if row.default is not None]


@backends
def test_defaults_are_those_of_pytorch(primitives: Any) -> None:
    assert {row.name: row.default for row in DEFAULTED} == DEFAULTS
    x = np.array([-2.0, 3.0])
    assert primitives.leaky_relu(x).tolist() == [-0.02, 3.0]
    assert primitives.leaky_relu.vjp(x, x).tolist() == [-0.02, 3.0]
    np.testing.assert_allclose(primitives.elu(x), [math.expm1(-2), 3.0], rtol=1e-15)
    np.testing.assert_allclose(primitives.elu.vjp(x, x), [-2 * math.exp(-2), 3.0], rtol=1e-15)


@backends
@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_the_default(name: str, primitives: Any) -> None:
    f, default = getattr(primitives, name), DEFAULTS[name]
    rng = np.random.default_rng(0)
    for shape, dtype in itertools.product([(), (5,), (2, 3)], (float, "f4", "f2", int)):
        x = (rng.normal(size=shape) * 3).astype(dtype)
        t = rng.normal(size=shape).astype("f4")
        mask, stack = np.resize([True, False], shape), np.stack([t, -t])
        y, (dw, _) = f.value_and_derivative(x, default)
        same(f(x), y)
        same(f.derivative(x), dw)
        same(f.value_and_derivative(x), (y, dw))
        same(f.jvp(x, t), f.jvp(x, default, t, None))
        same(f.jvp(x, 2), f.jvp(x, default, 2, None))
        same(f.jvp(x, None), np.zeros_like(y))
        same(f.jvp(x, default, t), f.jvp(x, default, t, None))
        for g in (t, stack, 2, 0.5):
            gw = f.vjp(x, default, g, wrt="w")
            same(f.vjp(x, g), gw)
            same(f.vjp(x, g, wrt=0), gw)
            same(f.vjp(x, g, wrt=("w",)), (gw,))
            same(f.vjp(x, g, where=mask), f.vjp(x, default, g, wrt=0, where=mask))
        J = f.jacobian(x)
        same(J.todense(), f.jacobian(x, default)[0].todense())
        assert type(J) is pb.Diagonal
        for call, given, whole in (
            (f, (x,), y),
            (f.derivative, (x,), dw),
            (f.vjp, (x, t), f.vjp(x, default, t, wrt=0)),
            (f.jvp, (x, t), f.jvp(x, default, t, None)),
        ):
            out = np.full_like(np.asarray(whole), 7)
            assert call(*given, out=out, where=mask) is out
            same(out, np.where(mask, whole, out))
        outs = np.empty_like(y), np.empty_like(y)
        assert f.value_and_derivative(x, out=outs)[1] is outs[1]
        same(outs, (y, dw))
        for chain, bound in ((pb.chain(f), None), (pb.chain(f, pb.exp), pb.exp)):
            explicit = pb.chain((f, pb.arg, default), *(() if bound is None else (bound,)))
            assert str(chain) == str(explicit)
            same(chain(x), explicit(x))
            same(chain.jvp(x, t), explicit.jvp(x, t))
            same(chain.vjp(x, t), explicit.vjp(x, t))
            same(chain.jacobian(x).todense(), explicit.jacobian(x).todense())


X, COLUMN = np.ones((2, 3)), np.ones((3, 1))
WHOLE = np.ones((2, 3), int)
# Operation, call, exception, message.
ERRORS: list[tuple[Any, type[Exception], str]] = [
    (lambda P: P.tanh.vjp(COLUMN, np.ones(3)), ValueError, r"g has shape \(3,\).*\(3, 1\)"),
    (lambda P: P.tanh.vjp(X, np.ones((2, 1))), ValueError, r"g has shape \(2, 1\).*\(2, 3\)"),
    (lambda P: P.tanh.vjp(X, np.float64(1)), ValueError, r"g has shape \(\).*\(2, 3\)"),
    (lambda P: P.tanh.vjp(X, None), TypeError, "tanh.vjp: g is None"),
    (lambda P: P.tanh.jvp(COLUMN, np.ones(3)), ValueError, r"t has shape \(3,\), x has \(3, 1\)"),
    (lambda P: P.tanh.jvp(X, np.ones((4, 2, 3))), ValueError, r"t has shape \(4, 2, 3\)"),
    (lambda P: P.tanh.vjp(X, X, out=np.ones((4, 2, 3))), ValueError, r"out has shape \(4, 2, 3\)"),
    (lambda P: P.tanh.vjp(X, X, where=np.ones((4, 2, 3), bool)), ValueError, "where has shape"),
    (lambda P: P.tanh.vjp(X, X, where=X), TypeError, "where has dtype float64"),
    (lambda P: P.tanh.vjp(X, X, where=WHOLE), TypeError, "where has dtype int64"),
    (lambda P: P.tanh.vjp(X, X, wrt=0), TypeError, r"tanh.vjp\(\) got an unexpected .*'wrt'"),
    (lambda P: P.add.vjp(X, X[0], X[0]), ValueError, r"add.vjp: g has shape \(3,\).*\(2, 3\)"),
    (lambda P: P.add.vjp(X, X, X, wrt="y"), ValueError, "add.vjp: wrt must be 'w', 'x'"),
    (lambda P: P.add.vjp(X, X, X, wrt=("w", 0)), ValueError, "add.vjp: wrt must be 'w', 'x'"),
    (lambda P: P.add.vjp(X, X, X, wrt=1.5), TypeError, "add.vjp: wrt must be 'w', 'x'"),
    (lambda P: P.add.vjp(X, X, X, wrt=0, out=(X, X)), TypeError, "add.vjp"),
    (
        lambda P: P.add.jvp(X, X[0], X, X),
        ValueError,
        r"add.jvp: tx has shape \(2, 3\), x has \(3,\)",
    ),
    (lambda P: P.add.jvp(X, 2.0, X, X), ValueError, r"add.jvp: tx has shape \(2, 3\), x has \(\)"),
    (lambda P: P.add.jvp(X, X, None, X * 1j), TypeError, "add.jvp: argument tx has dtype complex"),
    (lambda P: P.add.jvp(X, np.ones(4), None, None), ValueError, "add.jvp: w has shape"),
    (lambda P: P.add.jvp(X, X, None, 10**400), TypeError, "add.jvp: argument tx is an integer too"),
    (lambda P: P.add.vjp(X, X, X, wrt=(0,), out=X.copy()), TypeError, "out must be a tuple of 1"),
    (lambda P: P.add.vjp(X, X, X, wrt=0, out=WHOLE), TypeError, "add.vjp: out has dtype int64"),
    (lambda P: P.add.jvp(X, X, X, None, out=[1]), TypeError, "add.jvp: out must be an array, not"),
    (lambda P: P.tanh.vjp(X, X, out=(None, None)), TypeError, "tanh.vjp: out must be an array, no"),
    (
        lambda P: P.add.derivative(X, X, out=(None, WHOLE)),
        TypeError,
        r"add.derivative: out\[1\] has",
    ),
    (
        lambda P: P.tanh.value_and_derivative(X, out=(None, np.ones((4, 2, 3)))),
        ValueError,
        r"tanh.value_and_derivative: out\[1\] has shape \(4, 2, 3\), the result \(2, 3\)",
    ),
    (lambda P: P.elu.vjp(X), TypeError, r"elu.vjp\(\) missing 1 required positional argument: 'x'"),
    (lambda P: P.elu.vjp(X, np.ones(2)), ValueError, r"elu.vjp: g has shape \(2,\)"),
    (lambda P: P.elu.derivative(X, out=(X, X)), TypeError, r"elu.derivative: out\[0\] must be an"),
    (lambda P: P.elu(), TypeError, r"elu\(\)"),
    (lambda P: P.maximum(X), TypeError, r"maximum\(\)"),
    (
        lambda P: P.dot.vjp(X, X, 1.0, wrt=("y",), out=X.copy()),
        TypeError,
        "dot.vjp: out must be a tuple of 1",
    ),
]


@backends
@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call: Any, error: type[Exception], message: str, primitives: Any) -> None:
    before = X.copy()
    with pytest.raises(error, match=message):
        call(primitives)
    assert_same_bits(X, before)

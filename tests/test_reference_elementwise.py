"""The NumPy twins of the elementwise operations against mathematics and against their protocol."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import DTYPES, assert_same_bits
from pullback import reference
from pullback.elementwise import Elementwise, make_elementwise, method_docstring
from pullback.engine import ORACLE
from pullback.jacobians import Diagonal
from pullback.tables.elementwise import OPS, REFERENCE_MAX_ULP, OpRow

rows = pytest.mark.parametrize("row", OPS.values(), ids=OPS.keys())
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
elementwise = make_elementwise(ORACLE)
UNARY = [name for name, row in OPS.items() if row.nin == 1]
BINARY = [name for name, row in OPS.items() if row.nin == 2]
unary = pytest.mark.parametrize("f", [elementwise[name] for name in UNARY], ids=UNARY)
binary = pytest.mark.parametrize("f", [elementwise[name] for name in BINARY], ids=BINARY)


def outputs(row: OpRow) -> list[Any]:
    """Return functions for the value and for each derivative of a row's twin."""
    f: Any = Elementwise(row, ORACLE)
    if row.nin == 1:
        return [f, f.derivative]
    return [f, lambda w, x: f.derivative(w, x)[0], lambda w, x: f.derivative(w, x)[1]]


# --- against mathematics --------------------------------------------------------------------------


@rows
@dtypes
def test_accuracy(row: OpRow, dtype: np.dtype) -> None:
    for which, function in enumerate(outputs(row)):
        oracles.assert_accurate(row, dtype, which, function, REFERENCE_MAX_ULP)


@rows
@dtypes
def test_a_rule_wrong_by_a_thousandth_is_rejected(row: OpRow, dtype: np.dtype) -> None:
    def wrong(result: Any) -> Any:
        scaled = tuple(
            np.where(r == 0, 1e-3, r * r.dtype.type(1.001)).astype(r.dtype)
            for r in (result if isinstance(result, tuple) else (result,))
        )
        return scaled if isinstance(result, tuple) else scaled[0]

    broken = dataclasses.replace(
        row,
        value=lambda *x: wrong(row.value(*x)),
        derivative=lambda *x: wrong(row.derivative(*x)),
    )
    for which, function in enumerate(outputs(broken)):
        with pytest.raises(AssertionError, match="ULP >"):
            oracles.assert_accurate(row, dtype, which, function, REFERENCE_MAX_ULP)


@rows
@dtypes
@pytest.mark.parametrize("length", [None, 1, 37])
def test_golden_points(row: OpRow, dtype: np.dtype, length: int | None) -> None:
    f = elementwise[row.name]
    shape = () if length is None else (length,)
    for point in row.special:
        at = [np.full(shape, x, dtype) for x in point.at]
        assert_same_bits(f(*at), np.full(shape, point.value, dtype))
        derivatives = f.derivative(*at)
        derivatives = (derivatives,) if row.nin == 1 else derivatives
        for actual, expected in zip(derivatives, point.derivative, strict=True):
            assert_same_bits(actual, np.full(shape, expected, dtype))


@unary
@dtypes
def test_nan_stays_nan(f: Any, dtype: np.dtype) -> None:
    nan = np.full(5, np.nan, dtype)
    for result in (f(nan), f.derivative(nan), f.vjp(nan, np.ones(5, dtype))):
        assert np.isnan(result).all()


@dtypes
def test_outside_the_domain(dtype: np.dtype) -> None:
    x = oracles.samples(OPS["exp"], dtype)[0]
    for row in OPS.values():
        ends = [end for lower, upper, _ in row.domain[0].intervals for end in (lower, upper)]
        outside = x[(x < min(ends)) | (x > max(ends))]
        if row.nin == 1 and outside.size:
            f = elementwise[row.name]
            assert np.isnan(f(outside)).all(), row.name
            assert np.isnan(f.derivative(outside)).all(), row.name


@dtypes
def test_power_of_a_negative_base(dtype: np.dtype) -> None:
    """A whole exponent gives the positive base's results with the sign of its parity."""
    w, x = (a.ravel().astype(dtype) for a in np.meshgrid([0.3, 1, 2.5, 1e20], np.arange(-9, 10)))
    positive, (dw, _) = reference.power.value_and_derivative(w, x)
    negative, (dw_negative, dx_negative) = reference.power.value_and_derivative(-w, x)
    sign = np.where(x % 2 == 0, 1, -1).astype(dtype)
    assert_same_bits(negative, sign * positive)
    assert_same_bits(dw_negative, -sign * dw)
    assert np.isnan(dx_negative).all()
    for fractional in (x + dtype.type(0.5), np.full_like(x, np.inf)):
        assert all(np.isnan(slope).all() for slope in reference.power.derivative(-w, fractional))


@pytest.fixture
def powers_off_by_4_ulp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make NumPy's own powers as wrong as with AVX-512, one element otherwise than the next."""
    exact = np.power

    def off(*args: Any, **kwargs: Any) -> Any:
        result = np.asarray(exact(*args, **kwargs))
        steps = np.resize([4, -4, 3, 0, -4], result.shape)
        with np.errstate(all="ignore"):
            return np.where(np.isfinite(result), result + steps * np.spacing(result), result)

    monkeypatch.setattr(np, "power", off)


@dtypes
@pytest.mark.usefixtures("powers_off_by_4_ulp")
def test_power_does_not_lean_on_numpys(dtype: np.dtype) -> None:
    test_accuracy(OPS["power"], dtype)
    test_power_of_a_negative_base(dtype)
    test_golden_points(OPS["power"], dtype, 37)


# Arguments around which a derivative vanishes or a formula hands over to another.
SEAMS = {
    "erf": (0.5, 0.8),
    "erfc": (0.5, 0.8, 26.5),
    "gelu": (-0.7, -0.7517915246935645, 1.0, -38.0),
    "gelu_tanh": (-0.7524614220710163, -21.0),
    "silu": (-1.2784645427610737, -740.0),
    "mish": (-1.1924312145154952, -740.0),
    "exp2": (1024.0, -1070.0),
    "power": (1.0,),
}


@pytest.mark.parametrize("name", SEAMS)
def test_accuracy_at_the_seams(name: str) -> None:
    """In float64, where nothing comes for free."""
    rng = np.random.default_rng(7)
    row = OPS[name]
    points = []
    for seam in SEAMS[name]:
        ulps = seam + np.arange(-8, 9) * np.spacing(abs(seam))
        decades = seam + rng.choice([-1, 1], 40) * np.exp(rng.uniform(np.log(1e-14), -1.3, 40))
        points.append(np.concatenate([ulps, decades]))
    x = np.concatenate(points)
    at = (x, rng.uniform(-700, 700, x.size))[: row.nin]
    with oracles.mp.workprec(oracles.PRECISION):
        for function, exact in zip(outputs(row), oracles.formulas(row), strict=True):
            numbers = [
                exact(*map(oracles.mpf, map(float, point))) for point in zip(*at, strict=True)
            ]
            worst = oracles.worst_error(function(*at), numbers, np.dtype(float))
            assert worst.error <= REFERENCE_MAX_ULP, x[worst.index]


# --- products with the Jacobian -------------------------------------------------------------------


@unary
@dtypes
def test_unary_products_scale_by_the_derivative(f: Any, dtype: np.dtype) -> None:
    x, g = (a.ravel() for a in np.meshgrid(*[oracles.special_values(dtype)] * 2))
    slope = f.derivative(x)
    with np.errstate(all="ignore"):
        expected = g * slope
    if f.row.masked:
        expected[slope == 0] = 0
    assert_same_bits(f.vjp(x, g), expected)
    assert_same_bits(f.jvp(x, g), expected)
    value, derivative = f.value_and_derivative(x)
    assert_same_bits(value, f(x))
    assert_same_bits(derivative, slope)
    assert_same_bits(f.jacobian(x).diagonal(), slope)
    assert f.jacobian(x.reshape(1, -1)).input_shape == (1, x.size)


@binary
@dtypes
def test_binary_products_scale_by_the_derivatives(f: Any, dtype: np.dtype) -> None:
    special = oracles.special_values(dtype)
    w, x, g = (a.ravel() for a in np.meshgrid(special, special, special))
    dw, dx = f.derivative(w, x)
    with np.errstate(all="ignore"):
        terms = [np.where((d == 0) & f.row.masked, dtype.type(0), g * d) for d in (dw, dx)]
        tangent = terms[0] + terms[1]
    for actual, expected in zip(f.vjp(w, x, g), terms, strict=True):
        assert_same_bits(actual, expected)
    assert_same_bits(f.jvp(w, x, g, g), tangent)
    value, derivatives = f.value_and_derivative(w, x)
    assert_same_bits(value, f(w, x))
    for jacobian, derivative, expected in zip(f.jacobian(w, x), derivatives, (dw, dx), strict=True):
        assert_same_bits(derivative, expected)
        assert_same_bits(jacobian.diagonal(), expected)


def test_masked_operations_ignore_the_cotangent() -> None:
    bad = np.array([np.nan, np.inf, -np.inf, -1.0])
    zero = np.zeros(4)
    assert_same_bits(reference.relu.vjp(-1.0, bad), zero)
    assert_same_bits(reference.relu.jvp(zero, bad), zero)
    for gradient in reference.greater.vjp(np.ones(4), np.zeros(4), bad):
        assert_same_bits(gradient, zero)
    assert_same_bits(reference.greater.jvp(np.ones(4), np.zeros(4), bad, bad), zero)
    assert np.isnan(reference.maximum.vjp(1.0, 0.0, np.inf)[1])  # not masked: inf * 0


@unary
def test_adjoint_identity_unary(f: Any) -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(*f.row.domain[0].ordinary, (4, 5))
    t, g = rng.uniform(0.2, 3, (2, 4, 5))
    np.testing.assert_allclose(np.vdot(f.jvp(x, t), g), np.vdot(t, f.vjp(x, g)), rtol=1e-13)


broadcasting = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3, min_side=0)


@given(
    shapes=broadcasting,
    batch=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=2),
    name=st.sampled_from(BINARY),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
)
@settings(deadline=None, max_examples=150)
def test_binary_vjp_sums_what_was_broadcast(
    shapes: Any, batch: tuple[int, ...], name: str, seed: int, dtype: np.dtype
) -> None:
    f: Any = elementwise[name]
    rng = np.random.default_rng(seed)
    # Small powers of two keep most operations' products and sums exact.
    w, x = (np.exp2(rng.integers(0, 3, shape)).astype(dtype) for shape in shapes.input_shapes)
    g = rng.integers(-8, 8, batch + shapes.result_shape).astype(dtype)
    dw, dx = f.derivative(w, x)
    for actual, slope, operand in zip(f.vjp(w, x, g), (dw, dx), (w, x), strict=True):
        assert actual.shape == batch + operand.shape
        assert actual.dtype == dtype
        expected = np.zeros(batch + operand.shape)
        terms = (g * slope).astype(float)
        for index in np.ndindex(terms.shape):
            lead, core = index[: len(batch)], index[len(batch) :]
            core = core[len(core) - operand.ndim :]
            own = tuple(0 if n == 1 else i for i, n in zip(core, operand.shape, strict=True))
            expected[lead + own] += terms[index]
        atol = np.finfo(dtype).eps * np.sum(np.abs(terms))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@given(shapes=broadcasting, name=st.sampled_from(BINARY), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_adjoint_identity_binary(shapes: Any, name: str, seed: int) -> None:
    f: Any = elementwise[name]
    rng = np.random.default_rng(seed)
    w, x = (rng.uniform(0.5, 2, shape) for shape in shapes.input_shapes)
    tw, tx = (rng.uniform(-1, 1, shape) for shape in shapes.input_shapes)
    g = rng.uniform(-1, 1, shapes.result_shape)
    gw, gx = f.vjp(w, x, g)
    assert np.sum(g * f.jvp(w, x, tw, tx)) == pytest.approx(
        np.sum(tw * gw) + np.sum(tx * gx), rel=1e-12, abs=1e-12
    )


def test_sums_accumulate_in_float64() -> None:
    n = 100_001
    g = np.full(n, 0.1, np.float32)
    gw, gx = reference.multiply.vjp(np.float32(1), np.ones(n, np.float32), g)
    assert gw.dtype == np.float32
    assert gw == np.float32(math.fsum(g.tolist()))
    assert gx.shape == (n,)


# --- protocol -------------------------------------------------------------------------------------


def calls(f: Any, x: Any, w: Any, g: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return every method of a twin with arguments."""
    operands = (x,) if f.nin == 1 else (w, x)
    return [
        (f, operands),
        (f.derivative, operands),
        (f.value_and_derivative, operands),
        (f.vjp, (*operands, g)),
        (f.jvp, (*operands, *[g] * f.nin)),
    ]


def leaves(tree: Any) -> list[Any]:
    return (
        [leaf for branch in tree for leaf in leaves(branch)] if isinstance(tree, tuple) else [tree]
    )


@rows
@dtypes
def test_never_warns_and_never_writes(row: OpRow, dtype: np.dtype) -> None:
    f = elementwise[row.name]
    w, x, g = (a.ravel() for a in np.meshgrid(*[oracles.special_values(dtype)] * 3))
    for array in (w, x, g):
        array.flags.writeable = False
    before = [a.copy() for a in (w, x, g)]
    with np.errstate(all="raise"):
        for method, arguments in calls(f, x, w, g):
            for result in leaves(method(*arguments)):
                assert result.dtype == dtype
                assert result.flags.writeable
                assert not any(np.shares_memory(result, a) for a in (w, x, g))
        f.jacobian(*((x,) if f.nin == 1 else (w, x)))
    for array, copied in zip((w, x, g), before, strict=True):
        assert_same_bits(array, copied)


@rows
def test_scalars_give_scalars(row: OpRow) -> None:
    f = elementwise[row.name]
    for number, kind in ((0.5, np.float64), (np.float32(0.5), np.float32), (True, np.float32)):
        for x in (number, np.asarray(number)) if kind is np.float64 else (number,):
            for method, arguments in calls(f, x, x, x):
                assert all(type(leaf) is kind for leaf in leaves(method(*arguments)))


@rows
@dtypes
def test_out(row: OpRow, dtype: np.dtype) -> None:
    f = elementwise[row.name]
    rng = np.random.default_rng(3)
    arguments = rng.uniform(0.5, 2, (3, 4, 6)).astype(dtype)
    for method, operands in calls(f, *arguments):
        expected = method(*operands)
        fresh = tuple(np.empty_like(leaf) for leaf in leaves(expected))
        result = method(*operands, out=fresh if len(fresh) > 1 else fresh[0])
        for actual, target, desired in zip(leaves(result), fresh, leaves(expected), strict=True):
            assert actual is target
            assert_same_bits(actual, desired)
        # Aliased with an operand, strided, wider.
        aliased = tuple(a.copy() for a in operands)
        outs = (aliased + (np.empty_like(aliased[0]),) * 3)[: len(fresh)]
        for actual, desired in zip(
            leaves(method(*aliased, out=tuple(outs))), leaves(expected), strict=True
        ):
            if sum(actual is o for o in outs) == 1:
                assert_same_bits(actual, desired)
        wide = tuple(np.zeros((4, 12))[:, ::-2] for _ in fresh)
        for actual, desired in zip(
            leaves(method(*operands, out=wide)), leaves(expected), strict=True
        ):
            assert_same_bits(actual, desired.astype(float))


def test_nested_out_of_a_binary_operation() -> None:
    y, dw, dx = np.empty((3, 2))
    result = reference.multiply.value_and_derivative([2.0, 3.0], [4.0, 5.0], out=(y, (dw, dx)))
    assert result[0] is y
    assert result[1][0] is dw
    assert result[1][1] is dx
    assert y.tolist() == [8, 15]
    assert dw.tolist() == [4, 5]
    partly = reference.multiply.derivative([2.0, 3.0], [4.0, 5.0], out=(None, dx))
    assert partly[1] is dx
    assert partly[0].tolist() == [4, 5]


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (np.zeros(3), ValueError, r"out\[1\] has shape \(3,\), the result \(2,\)"),
        (np.zeros(2, int), TypeError, "out.* has dtype int64"),
        ([0.0, 0.0], TypeError, "not list"),
        (np.broadcast_to(0.0, 2), ValueError, "read-only"),
    ],
)
def test_bad_out_writes_nothing(second: Any, error: type[Exception], message: str) -> None:
    first = np.full(2, 7.0)
    with pytest.raises(error, match=message):
        reference.tanh.value_and_derivative([0.0, 1.0], out=(first, second))
    assert first.tolist() == [7, 7]
    with pytest.raises(TypeError, match="out must be a tuple of 2 arrays, not ndarray"):
        reference.tanh.value_and_derivative([0.0, 1.0], out=first)


def test_shape_errors_name_the_shapes() -> None:
    a, b = np.ones((2, 3)), np.ones(4)
    for call in (
        lambda: reference.add(a, b),
        lambda: reference.add.derivative(a, b),
        lambda: reference.add.vjp(a, b, b),
        lambda: reference.add.jvp(a, b, a, b),
        lambda: reference.add.jacobian(a, b),
        lambda: reference.exp.vjp(b, a),
        lambda: reference.exp.jvp(b, a),
    ):
        with pytest.raises(ValueError, match=r"\(2, 3\).*\(4,\)"):
            call()
    with pytest.raises(ValueError, match=r"g has shape \(3, 2\), which must end in \(2, 3\)"):
        reference.add.vjp(a, np.ones(3), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"g has shape \(\)"):
        reference.add.vjp(a, a, np.float64(1))


def test_type_errors_name_the_method_and_argument() -> None:
    with pytest.raises(TypeError, match=r"tanh: argument x has dtype complex128"):
        reference.tanh(1j)
    with pytest.raises(TypeError, match=r"multiply.vjp: argument g has dtype object"):
        reference.multiply.vjp(1.0, 2.0, [None])


@rows
def test_layouts(row: OpRow) -> None:
    f = elementwise[row.name]
    x = np.linspace(0.5, 2, 48).reshape(6, 8)
    expected = [leaf for m, a in calls(f, x, x + 1, x) for leaf in leaves(m(*a))]
    fortran = np.asfortranarray(x)
    shifted = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(float).reshape(6, 8)
    for layout in (fortran, x[::-1, ::-1].copy()[::-1, ::-1], x.astype(">f8"), shifted):
        actual = [leaf for m, a in calls(f, layout, x + 1, layout) for leaf in leaves(m(*a))]
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-15)  # NumPy's own bits may differ
    empty = np.empty((0, 3), np.float32)
    for method, arguments in calls(f, empty, empty, empty):
        for leaf in leaves(method(*arguments)):
            assert leaf.shape == (0, 3)
            assert leaf.dtype == np.float32


@rows
def test_identity_of_the_object(row: OpRow) -> None:
    f = getattr(reference, row.name)
    assert f is elementwise[row.name]
    assert row.name in reference.__all__
    assert f.__name__ == row.name
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(f, protocol)) is f
    assert copy.deepcopy(f) is f
    assert copy.copy(f) is f
    assert repr(f) == f"<elementwise '{row.name}', NumPy twin>"


@rows
def test_docstring_tells_what_the_row_knows(row: OpRow) -> None:
    text = inspect.getdoc(elementwise[row.name])
    assert text
    assert all(len(line) <= 100 for line in text.splitlines())
    text = " ".join(text.split())
    for fact in (
        row.formula,
        *row.derivative_formula,
        row.domain_text,
        row.source,
        row.summary,
        f"value {row.max_ulp[0]:g} ULP, derivative {row.max_ulp[1]:g} ULP",
        *row.kinks,
    ):
        assert fact in text
    assert ("Masked" in text) == row.masked


@rows
@pytest.mark.parametrize("method", ["derivative", "value_and_derivative", "vjp", "jvp", "jacobian"])
def test_docstring_of_a_method(row: OpRow, method: str) -> None:
    text = method_docstring(row, method)
    signature, *_ = text.splitlines()
    assert signature.startswith(f"{row.name}.{method}({', '.join(row.operands)}")
    assert ("out=None" in signature) == (method != "jacobian")
    assert getattr(elementwise[row.name], method).__doc__.splitlines()[0] in text
    assert text.count("Notes\n-----") == 1


def test_jacobians_compose() -> None:
    x = np.array([0.5, 1.0, 2.0])
    chain = reference.log.jacobian(reference.square(x)) @ reference.square.jacobian(x)
    assert isinstance(chain, Diagonal)
    np.testing.assert_allclose(chain.diagonal(), 2 / x, rtol=1e-15)

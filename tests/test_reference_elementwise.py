"""The NumPy twins of the elementwise operations against mathematics and against their protocol."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import oracles
import pullback as pb
import pytest
from oracles import assert_same_bits
from protocol import dtypes, each, leaves, native, on_every_target, rows
from pullback import reference
from pullback.elementwise import Elementwise, make_elementwise, method_docstring
from pullback.jacobians import Diagonal
from pullback.oracle.engine import ORACLE
from pullback.tables.elementwise import OPS, REFERENCE_MAX_ULP, OpRow

by_row = pytest.mark.parametrize("row", OPS.values(), ids=OPS.keys())
elementwise = make_elementwise(ORACLE)
UNARY = [name for name, row in OPS.items() if row.nin == 1]
BINARY = [name for name, row in OPS.items() if row.nin == 2]
unary = each("f", [elementwise[name] for name in UNARY])
binary = each("f", [elementwise[name] for name in BINARY])


def outputs(row: OpRow) -> list[Any]:
    """Return functions for the value and for each derivative of a row's twin."""
    f: Any = Elementwise(row, ORACLE)
    if row.nin == 1:
        return [f, f.derivative]
    return [f, lambda w, x: f.derivative(w, x)[0], lambda w, x: f.derivative(w, x)[1]]


# --- against mathematics --------------------------------------------------------------------------


# In one test, since exact numbers take longer than all that they judge.
@by_row
@dtypes
def test_accuracy(row: OpRow, dtype: np.dtype) -> None:
    """Value and derivatives are as accurate as promised: of the twin, and of each target."""
    for which, function in enumerate(outputs(row)):
        oracles.assert_accurate(row, dtype, which, function, REFERENCE_MAX_ULP)
    for which, function in enumerate(outputs(wrong_by_a_thousandth(row))):
        with pytest.raises(AssertionError, match="ULP >"):
            oracles.assert_accurate(row, dtype, which, function, REFERENCE_MAX_ULP)
    if native is not None:
        assert_native_accurate(row=row, dtype=dtype, judged=set())


@on_every_target
def assert_native_accurate(row: OpRow, dtype: np.dtype, judged: set[tuple[int, bytes]]) -> None:
    f = getattr(pb, row.name)
    for which, result in enumerate(leaves(f.value_and_derivative(*oracles.samples(row, dtype)))):
        key = which, result.tobytes()
        if key not in judged:  # by which another target's equal bits are judged as well
            bound = row.max_ulp[min(which, 1)]
            oracles.assert_accurate(row, dtype, which, lambda *_, r=result: r, bound)
            judged.add(key)


def wrong_by_a_thousandth(row: OpRow) -> OpRow:
    def wrong(result: Any) -> Any:
        scaled = tuple(
            np.where(r == 0, 1e-3, r * r.dtype.type(1.001)).astype(r.dtype)
            for r in (result if isinstance(result, tuple) else (result,))
        )
        return scaled if isinstance(result, tuple) else scaled[0]

    return dataclasses.replace(
        row,
        value=lambda *x: wrong(row.value(*x)),
        derivative=lambda *x: wrong(row.derivative(*x)),
    )


@by_row
@dtypes
@each("length", [None, 1, 37])
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


@pytest.mark.usefixtures("powers_off_by_4_ulp")
def test_power_does_not_lean_on_numpys() -> None:
    test_accuracy(row=OPS["power"])
    test_power_of_a_negative_base()
    test_golden_points(row=OPS["power"])


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
    "logit": (0.5,),
    "log1mexp": (0.7, 36.0, 745.0),
    "ndtr": (-0.7, 0.7, -37.0),
    "log_ndtr": (-0.7, 0.7, 10.0),
    "ndtri": (0.5,),
    "erfinv": (-0.55,),
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
        for function, exact in zip(outputs(row), oracles.formulas(row), strict=False):
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
@each("method", ["derivative", "value_and_derivative", "vjp", "jvp", "jacobian"])
def test_docstring_of_a_method(row: OpRow, method: str) -> None:
    text = method_docstring(row, method)
    signature, *_ = text.splitlines()
    assert signature.startswith(f"{row.name}.{method}({', '.join(row.operands)}")
    assert ("out=None" in signature) == (method != "jacobian")
    assert getattr(elementwise[row.name], method).__doc__.splitlines()[0] in text
    assert text.count("Notes\n-----") == 1


def test_jacobians_are_their_own() -> None:
    w, x = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    by_w, by_x = reference.multiply.jacobian(w, x)
    w[:], x[:] = 0, 0
    assert by_w.diagonal().tolist() == [3, 4]
    assert by_x.diagonal().tolist() == [1, 2]


def test_jacobians_compose() -> None:
    x = np.array([0.5, 1.0, 2.0])
    chain = reference.log.jacobian(reference.square(x)) @ reference.square.jacobian(x)
    assert isinstance(chain, Diagonal)
    np.testing.assert_allclose(chain.diagonal(), 2 / x, rtol=1e-15)

"""The checker of gradients: it rejects what is wrong by 0.1 %, and knows kinks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pullback as pb
import pytest
from oracles import formula
from protocol import rows
from pullback.tables.elementwise import OpRow
from pullback.tables.losses import LOSSES

RNG = np.random.default_rng(0)
WEIGHTS = np.array([0.7, -1.3, 0.4, 2.1])


def ordinary(row: OpRow) -> np.ndarray:
    """Return operands (nin, 4) inside the domain, away from kinks."""
    point = []
    for k, domain in enumerate(row.domain):
        low, high = domain.ordinary
        point.append(low + (high - low) * (np.array([0.2, 0.45, 0.6, 0.83]) + 0.07 * k))
    return np.array(point)


def function(row: OpRow) -> Any:
    """Return the weighted sum of an operation's values as a function of all operands."""
    op = getattr(pb, row.name)
    return lambda x: np.sum(WEIGHTS[: x.shape[-1]] * op(*x))


def gradient(row: OpRow, x: np.ndarray) -> np.ndarray:
    op = getattr(pb, row.name)
    slopes = op.derivative(*x)
    return WEIGHTS[: x.shape[-1]] * np.array([slopes] if row.nin == 1 else slopes)


@rows
def test_accepts_every_derivative(row: OpRow) -> None:
    x = ordinary(row)
    report = pb.check_grad(function(row), gradient(row, x), x, directions=3)
    assert report.ok, report
    assert report.is_linear
    assert not report.kinks


def test_the_tolerance_is_a_millionth() -> None:
    x = np.linspace(0.5, 2, 5)
    for error, accepted in ((1e-5, False), (1e-7, True)):
        report = pb.check_grad(lambda x: np.exp(x).sum(), np.exp(x) * (1 + error), x)
        assert bool(report) == accepted


@rows
def test_rejects_a_derivative_wrong_by_a_thousandth(row: OpRow) -> None:
    """One coordinate of eight, unless all derivatives are 0."""
    x = ordinary(row)
    right = gradient(row, x)
    if not right.any():
        wrong = right + 1e-3
    else:
        at = np.unravel_index(np.argmax(np.abs(right)), right.shape)
        wrong = right.copy()
        wrong[at] *= 1.001
    report = pb.check_grad(function(row), wrong, x, directions=0)
    assert not report
    assert report.worst.index is not None
    if right.any():
        assert report.worst.index == at
        assert report.worst.given == wrong[at]
        assert report.worst.measured == pytest.approx(right[at], rel=1e-7)
        assert report.worst.error > report.worst.tolerance


@rows
def test_float32(row: OpRow) -> None:
    x = ordinary(row)[:, :2].astype(np.float32)
    right = gradient(row, x)
    assert pb.check_grad(function(row), right, x), row.name
    wrong = right * np.float32(1.02) + (np.float32(0.05) if not right.any() else 0)
    assert not pb.check_grad(function(row), wrong, x, directions=0)


def kinks_of(row: OpRow) -> np.ndarray | None:
    """Return operands (nin, 4), some of them where the row's kink expressions vanish."""
    if row.nin == 1 and row.kinks:
        expressions = [formula(text, row.operands) for text in row.kinks]
        kinks = [x for x in np.arange(-8, 8, 0.5) if any(e(x) == 0 for e in expressions)]
        assert kinks, f"of {row.kinks} none is at a multiple of 1/2"
        return np.array([[*kinks, 0.5, -0.0, 1.5][:4]])
    special = {  # not at 0
        "hypot": ((0.0, 0.5, 1.0, 0.0), (0.0, 0.25, 0.0, 0.0)),
        "arctan2": ((0.0, 0.5, 0.0, 1.0), (-1.0, 0.25, 2.0, 0.0)),  # on the cut
    }
    if row.name in special:
        return np.array(special[row.name])
    if not row.kinks:
        return None
    x = np.array((0.0, -2.0, 0.5, 0.0))
    return (
        np.array([x, x + np.array([0, 0, 1, 0])])
        if row.kinks == ("w - x",)
        else np.array([x, (0.25, 0.5, 0.75, 1.0)])
    )


@rows
def test_kinks_and_jumps(row: OpRow) -> None:
    """What a primitive says at a kink lies between the one-sided derivatives, with its sign."""
    x = kinks_of(row)
    if x is None:
        x = ordinary(row)
    given = gradient(row, x)
    report = pb.check_grad(function(row), given, x)
    assert report.ok, report
    for kink in report.kinks:
        low, high = kink.interval
        assert low - 1e-6 <= kink.given <= high + 1e-6
    for kink in report.kinks[:1]:
        low, high = kink.interval
        outside = given.copy()
        outside[kink.index] = high + 0.01 * max(1, high - low)
        assert not pb.check_grad(function(row), outside, x, directions=0)
    expressions = [formula(text, row.operands) for text in row.kinks]
    if np.isfinite(given).all():  # not a vertical tangent
        assert bool(report.kinks) == any(e(*p) == 0 for e in expressions for p in x.T)


@pytest.mark.parametrize("loss", ["relu_mse", "hinge", "huber", "quantile", "squared_error"])
def test_losses(loss: str) -> None:
    X, y, _, _ = LOSSES[loss].example(0, 12, 3, "float64")
    op = getattr(pb, loss)
    w = np.array([0.3, -0.2, 0.5])
    f = lambda w: op.value(X, y, w, 0.0)  # noqa: E731
    grad = op.grad(X, y, w, 0.0)[0]
    report = pb.check_grad(f, grad, w)
    assert report.ok, report
    assert not pb.check_grad(f, grad * 1.001, w)


def test_samples_on_a_kink() -> None:
    """relu_mse takes 0 for the rectifier's slope at 0: right for one such sample..."""
    X, w = np.array([[1.0, -1.0], [2.0, 1.0], [0.5, 0.25]]), np.array([0.5, 0.5])
    y = np.array([1.0, 2.0, 3.0])
    f = lambda w: pb.relu_mse.value(X, y, w, 0.0)  # noqa: E731
    report = pb.check_grad(f, pb.relu_mse.grad(X, y, w, 0.0)[0], w)
    assert report.ok, report
    assert len(report.kinks) == 2
    # ... and wrong for two that make a smooth function together: relu(x) - relu(-x) = x.
    X, y, w = np.array([[1.0], [-1.0]]), np.array([1.0, -1.0]), np.zeros(1)
    report = pb.check_grad(f, pb.relu_mse.grad(X, y, w, 0.0)[0], w)
    assert not report.ok
    assert (report.worst.given, report.worst.measured) == (0, pytest.approx(-1))


# --- what kinks allow -----------------------------------------------------------------------------


def test_any_value_between_one_sided_derivatives() -> None:
    for slope in (0.0, 0.3, 1.0):
        report = pb.check_grad(lambda x: pb.relu(x)[0], [slope], [0.0])
        assert report.ok
        assert report.kinks[0].index == (0,)
        assert report.kinks[0].interval == pytest.approx((0, 1), abs=1e-9)
        assert report.kinks[0].given == slope
    for slope in (-0.001, 1.001, math.nan, math.inf):
        assert not pb.check_grad(lambda x: pb.relu(x)[0], [slope], [0.0])


def test_kinks_of_both_signs() -> None:
    """A convex and a concave kink: along (1, 1) the derivative is 0 from both sides."""
    c = np.array([1.0, -1.0, 2.0, -3.0])
    f = lambda x: c @ pb.relu(x)  # noqa: E731
    for slopes in (0.0, 0.5, 1.0, np.array([0, 1, 0.25, 0.75])):
        assert pb.check_grad(f, c * slopes, np.zeros(4)).ok
    g = lambda x: pb.relu(x[0] + x[1]) - pb.relu(x[2] + x[3])  # noqa: E731
    assert pb.check_grad(g, np.zeros(4), np.zeros(4)).ok
    assert pb.check_grad(lambda x: np.abs(x).min(), np.zeros(3), np.zeros(3)).ok


def test_a_tie_leaves_less_than_its_coordinates() -> None:
    """max(x, y) at x = y: each slope from 0 to 1, but their sum is 1."""
    at = np.array([0.5, 0.5])
    for share in (0.0, 0.5, 1.0):
        assert pb.check_grad(np.max, [share, 1 - share], at).ok
    for wrong in ([0.0, 0.0], [1.0, 1.0], [0.5, 0.4]):
        report = pb.check_grad(np.max, wrong, at)
        assert not report
        assert report.worst.direction is not None
        assert len(report.kinks) == 2


def test_a_kink_beside_x_is_none_at_x() -> None:
    for distance in (1e-2, 1e-4, 1e-6):
        for x, slope in ((distance, 1.0), (-distance, 0.0)):
            report = pb.check_grad(lambda x: float(pb.relu(x)), slope, x)
            assert report.ok, report
            assert not report.kinks
            assert not pb.check_grad(lambda x: float(pb.relu(x)), 0.5, x)


# --- what has no gradient -------------------------------------------------------------------------


def row_19(x: Any) -> float:
    return float(x[1] ** 3 / (x[0] ** 2 + x[1] ** 2)) if np.any(x) else 0.0


def test_row_19_directional_derivatives_that_are_not_linear() -> None:
    """y^3/(x^2 + y^2) has partial derivatives 0 and 1 at the origin, and no gradient."""
    report = pb.check_grad(row_19, [0.0, 1.0], [0.0, 0.0])
    assert not report.ok
    assert not report.is_linear
    assert not report.kinks
    v = report.worst.direction
    assert v is not None
    assert report.worst.given == pytest.approx(v[1])
    assert report.worst.measured == pytest.approx(v[1] ** 3 / (v @ v))
    assert "not linear" in str(report)
    assert "direction [" in str(report)
    # Away from the origin there is one; a kink in a third variable does not hide it.
    x = np.array([0.6, -0.4])
    r = x @ x
    exact = [-2 * x[0] * x[1] ** 3 / r**2, (3 * x[1] ** 2 * r - 2 * x[1] ** 4) / r**2]
    assert pb.check_grad(row_19, exact, x).ok
    report = pb.check_grad(lambda x: row_19(x[:2]) + abs(x[2]), [0.0, 1.0, 0.0], np.zeros(3))
    assert not report.is_linear
    assert [kink.index for kink in report.kinks] == [(2,)]


def test_row_19_with_its_own_directional_derivatives_as_jvp() -> None:
    """Each of them is right, and all together they are no derivative."""
    report = pb.check_grad(row_19, None, [0.0, 0.0], jvp=lambda _, v: row_19(v))
    assert not report.failures
    assert not report.is_linear
    assert not report.ok
    assert "not linear" in str(report)


def test_noise_and_poles_do_not_pass() -> None:
    rng = np.random.default_rng(0)
    report = pb.check_grad(lambda x: float(rng.normal()), np.zeros(2), np.ones(2))
    assert not report
    assert report.unresolved == ((0,), (1,))
    assert "not resolved" in str(report)


def test_infinite_slopes() -> None:
    for root in (np.sqrt, np.cbrt, lambda x: float(pb.sqrt(x))):
        assert pb.check_grad(root, math.inf, 0.0).ok
        for wrong in (1e9, -math.inf, math.nan):
            assert not pb.check_grad(root, wrong, 0.0)


# --- accuracy -------------------------------------------------------------------------------------


def test_complex_step_where_it_is_right() -> None:
    x = np.linspace(0.3, 2, 7)
    report = pb.check_grad(lambda x: np.sum(np.exp(x) * np.sin(x)), np.exp(x) * np.sin(x), x)
    assert not report
    exact = np.exp(x) * (np.sin(x) + np.cos(x))
    report = pb.check_grad(lambda x: np.sum(np.exp(x) * np.sin(x)), exact, x, rtol=1e-13)
    assert report.ok
    assert report.method == "complex step"
    wrong = exact * (1 + 1e-11 * (np.arange(7) == 3))
    assert pb.check_grad(
        lambda x: np.sum(np.exp(x) * np.sin(x)), wrong, x, rtol=1e-13
    ).worst.index == (3,)


def test_complex_step_where_it_is_wrong() -> None:
    """The function takes complex numbers, but is not analytic, or loses the imaginary part."""
    x = np.array([1.5, -0.5, 2.0])
    for f, grad in (
        (lambda x: np.sum(np.abs(x) ** 3), 3 * x * np.abs(x)),
        (lambda x: np.sum(np.maximum(x, 0) + np.conj(x) ** 2), (x > 0) + 2 * x),
        (lambda x: np.sum(np.real(x) ** 2), 2 * x),
        (lambda x: np.sum(np.asarray(x).astype(float) ** 2), 2 * x),
    ):
        report = pb.check_grad(f, grad, x)
        assert report.ok, report
        assert report.method == "differences"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_badly_scaled_functions(scale: float) -> None:
    x = np.array([0.3, -1.7, 4.0, -30.0])
    cases = (
        (lambda x: np.sum(pb.sin(x * scale)), scale * np.cos(x * scale)),
        (lambda x: scale * np.sum(pb.tanh(x) ** 2), scale * 2 * np.tanh(x) / np.cosh(x) ** 2),
        (lambda x: 1e6 + scale * np.sum(pb.square(x)), 2 * scale * x),
    )
    for f, grad in cases:
        assert pb.check_grad(f, grad, x).ok
        assert not pb.check_grad(f, grad * 1.01 + scale * 0.01, x)


def test_minimum_of_a_large_value() -> None:
    x = np.zeros(3)
    assert pb.check_grad(lambda x: 1e8 + np.sum(pb.square(x)), x, x).ok
    assert pb.check_grad(lambda x: 5.0, x, x).ok
    assert not pb.check_grad(lambda x: 5.0, x + 1e-3, x)


# --- vjp and jvp ----------------------------------------------------------------------------------


def test_products_with_the_jacobian() -> None:
    x = RNG.normal(size=(2, 3))
    A = RNG.normal(size=(3, 4))
    f = lambda x: pb.tanh(x) @ A  # noqa: E731
    vjp = lambda x, g: pb.tanh.vjp(x, g @ A.T)  # noqa: E731
    jvp = lambda x, t: pb.tanh.jvp(x, t) @ A  # noqa: E731
    report = pb.check_grad(f, None, x, vjp=vjp, jvp=jvp)
    assert report.ok, report
    wrong = lambda x, g: vjp(x, g) * 1.001  # noqa: E731
    report = pb.check_grad(f, None, x, vjp=wrong, jvp=jvp)
    assert {d.what for d in report.failures} == {"vjp", "jvp against vjp"}
    report = pb.check_grad(f, None, x, jvp=lambda x, t: jvp(x, t) * 0.999)
    assert {d.what for d in report.failures} == {"jvp"}
    # A tangent that is no linear function of the direction.
    report = pb.check_grad(f, None, x, jvp=lambda x, t: jvp(x, t) + 1e-3 * np.abs(t).sum())
    assert not report
    assert pb.check_grad(np.sum, np.ones((2, 3)), x, vjp=lambda x, g: np.full(x.shape, g)).ok


def test_products_at_kinks() -> None:
    x = np.array([0.0, 1.0, -1.0, 0.0])
    report = pb.check_grad(pb.relu, None, x, vjp=pb.relu.vjp, jvp=pb.relu.jvp)
    assert report.ok, report
    assert [kink.index for kink in report.kinks] == [(0,), (3,)]
    assert not pb.check_grad(pb.relu, None, x, vjp=lambda x, g: g * (x >= 0) * 1.5)


# --- arguments ------------------------------------------------------------------------------------


def test_many_coordinates() -> None:
    """Some are looked at, and directions see the others."""
    x = np.linspace(-2, 2, 5001)
    f = lambda x: np.sum(pb.cos(x))  # noqa: E731
    report = pb.check_grad(f, -np.sin(x), x)
    assert report.ok
    assert report.coordinates == 100
    assert not pb.check_grad(f, -np.sin(x) * 1.001, x)
    one_wrong = -np.sin(x)
    one_wrong[1234] += 1
    assert not pb.check_grad(f, one_wrong, x)


def test_arguments() -> None:
    f = lambda x: np.sum(pb.square(x))  # noqa: E731
    for x in ([1, 2], np.array([1, 2], np.int8), np.array([1.0, 2.0], np.float16)):
        assert pb.check_grad(f, [2.0, 4.0], x).ok
        assert pb.check_grad(f, lambda x: 2 * x, x).ok
    assert pb.check_grad(math.sin, math.cos(0.5), 0.5).ok
    assert pb.check_grad(f, np.zeros((0, 3)), np.zeros((0, 3))).ok
    x = np.array([1.0, 2.0])
    for change, error, message in (
        ({"x": x + 0j}, TypeError, "argument x has dtype complex128"),
        ({"grad": [1.0]}, ValueError, r"grad has shape \(1,\), x has \(2,\)"),
        ({"grad": lambda x: x[0]}, ValueError, r"grad has shape \(\), x has \(2,\)"),
        ({"grad": x + 0j}, TypeError, "grad has dtype complex128"),
        ({"grad": None}, ValueError, "nothing to check"),
        ({"f": lambda x: x}, ValueError, r"f\(x\) has shape \(2,\)"),
        ({"f": lambda x: x[0] * math.inf}, ValueError, r"f\(x\) is not finite: inf"),
        ({"f": lambda x: "x"}, TypeError, r"argument f\(x\) must be numbers"),
        ({"vjp": lambda x, g: x[:1]}, ValueError, r"vjp\(x, g\) has shape \(1,\)"),
        ({"jvp": lambda x, t: x}, ValueError, r"jvp\(x, t\) has shape \(2,\), f\(x\) \(\)"),
    ):
        arguments = {"f": f, "grad": 2 * x, "x": x} | change
        f_given, grad, at = (arguments.pop(name) for name in ("f", "grad", "x"))
        with pytest.raises(error, match=message):
            pb.check_grad(f_given, grad, at, **arguments)


def test_report() -> None:
    x = np.array([[0.0, 1.0], [2.0, -1.0]])
    f = lambda x: np.sum(pb.relu(x) * [[1, 2], [3, 4]])  # noqa: E731
    grad = np.array([[0.5, 2.0], [3.3, 0.0]])
    first, second = (pb.check_grad(f, grad, x) for _ in range(2))
    assert str(first) == str(second)
    assert first.worst.index == (1, 0)
    assert (first.worst.given, first.worst.measured) == (3.3, pytest.approx(3))
    assert first.worst.error == pytest.approx(0.3)
    lines = str(first).splitlines()
    assert lines[0].startswith("check_grad: FAILED; 4 coordinates, ")
    assert lines[0].endswith("directions, float64, differences")
    assert lines[1].startswith("  worst: grad at x[1, 0]: given 3.3, measured 3, error 0.3, tol")
    assert lines[-1] == "  kinks, one-sided derivatives: x[0, 0] from 0 to 1, given 0.5"
    grad[1, 0] = 3
    assert str(pb.check_grad(f, grad, x)).startswith("check_grad: ok; 4 coordinates")


# --- what differences resolve ---------------------------------------------------------------------


def test_kinks_at_one_distance_on_both_sides() -> None:
    """They make central differences linear: relu at [-d, d] has slope 1 along (1, 1)."""
    for d in (0.3, 1e-2, 1e-3, 1e-5, 1e-8, 1e-12):
        x = np.array([-d, d])
        report = pb.check_grad(lambda x: np.sum(pb.relu(x)), [0.0, 1.0], x)
        assert report.ok, report
        assert report.verdicts.tolist() == ["ok", "ok"]
        for wrong in ([0.5, 0.5], [0.0, 1.01], [1.0, 0.0], [0.0, 0.0]):
            assert not pb.check_grad(lambda x: np.sum(pb.relu(x)), wrong, x)


MAGNITUDES = [
    ("log", np.array([1e-3], np.float32)),
    ("log", np.array([1e-8])),
    ("log", np.array([1e-30, 3e20])),
    ("reciprocal", np.array([1e-6])),
    ("sqrt", np.array([1e-20])),
    ("exp", np.array([-50.0])),
    ("sin", np.array([1e9])),
]


@pytest.mark.parametrize(("name", "x"), MAGNITUDES, ids=lambda a: str(a))
def test_steps_follow_the_size_of_x(name: str, x: np.ndarray) -> None:
    op = getattr(pb, name)
    right = op.derivative(x)
    report = pb.check_grad(lambda x: np.sum(op(x)), right, x)
    assert report.ok, report
    assert set(report.verdicts) == {"ok"}
    for factor in (1.01, -1, 0):
        wrong = right * right.dtype.type(factor)
        assert set(pb.check_grad(lambda x: np.sum(op(x)), wrong, x).verdicts) == {"wrong"}


def test_rounding_leaves_nothing_to_resolve() -> None:
    """A large constant: what it drowns is no error, and not confirmed."""
    x = np.array([1.0, 2.0, -3.0])
    for constant in (1e15, 1e16, 1e18, 1e30):
        f = lambda x: constant + np.sum(pb.square(x))  # noqa: B023, E731
        report = pb.check_grad(f, 2 * x, x)
        assert set(report.verdicts) == {"unresolved"}
        assert not report.ok
        assert not report.failures
        assert "nothing is resolved" in str(report)
        for factor in (-2, 0, 6):
            report = pb.check_grad(f, factor * x, x)
            assert set(report.verdicts) <= {"unresolved", "wrong"}
            assert not report.ok
    f = lambda x: 1e12 + np.sum(pb.square(x))  # noqa: E731
    assert set(pb.check_grad(f, 2 * x, x).verdicts) == {"ok"}
    for factor in (-2, 0, 6, 2.02):
        assert set(pb.check_grad(f, factor * x, x).verdicts) == {"wrong"}


def test_rounding_that_cancels_in_the_value() -> None:
    """The value tanh(20) + tanh(-20) is 0, and its rounding 1e-16."""
    x = np.array([20.0, -20.0])
    right = pb.tanh.derivative(x)
    for factor in (1, 1.01, -1, 0):
        report = pb.check_grad(lambda x: np.sum(pb.tanh(x)), right * factor, x)
        assert report.verdicts.tolist() == ["unresolved"] * 2
        assert not report.ok


def test_noise_is_measured() -> None:
    """Rounding that neither the dtype nor the value tells of."""
    x = np.array([1.0, 2.0, 0.3])
    rng = np.random.default_rng(0)
    single = lambda x: float(np.sum(np.square(x.astype(np.float32))))  # noqa: E731
    cancelling = lambda x: float(np.sum((x**2 + 1e8) - 1e8))  # noqa: E731
    noisy = lambda x: float(np.sum(x**2) + 1e-7 * rng.normal())  # noqa: E731
    for f in (single, cancelling, noisy):
        report = pb.check_grad(f, 2 * x, x)
        assert report.ok, report
        assert set(report.verdicts) == {"ok"}
        for factor in (2.02, -2, 0):
            assert set(pb.check_grad(f, factor * x, x).verdicts) == {"wrong"}


def test_zeros() -> None:
    """A derivative of 0 is confirmed where f is seen to be flat, or never to change."""
    x = np.array([0.3, -0.4])
    for f in (np.sign, np.floor, lambda x: np.full(2, 5.0), lambda x: 0 * x, pb.step):
        total = lambda x: float(np.sum(f(x)))  # noqa: B023, E731
        assert pb.check_grad(total, np.zeros(2), x).verdicts.tolist() == ["ok", "ok"]
        assert not pb.check_grad(total, np.array([0.0, 1e-3]), x)
    # exp underflows beside 1, and is no step.
    hidden = lambda x: 1 + float(np.sum(np.exp(x)))  # noqa: E731
    assert pb.check_grad(hidden, np.zeros(1), np.array([-50.0])).verdicts == ["unresolved"]


def test_verdicts_of_elements() -> None:
    x = np.array([[1.0, 0.0], [-2.0, 1e-18]])
    f = lambda x: 1 + np.sum(pb.relu(x))  # noqa: E731
    report = pb.check_grad(f, np.array([[1.5, 0.5], [0.0, 1.0]]), x)
    assert report.verdicts.tolist() == [["wrong", "kink"], ["ok", "unresolved"]]
    assert report.unresolved == ((1, 1),)
    assert not report.ok
    report = pb.check_grad(f, np.array([[1.0, 0.5], [0.0, 1.0]]), x)
    assert report.ok  # something is confirmed, and nothing wrong
    report = pb.check_grad(f, np.array([[1.0, 0.5], [0.0, 1.0]]), x, max_coordinates=1)
    assert np.count_nonzero(report.verdicts == "skipped") == 3


def test_what_changes_its_argument_is_named() -> None:
    x = np.array([1.0, 2.0])
    kept = x.copy()

    def f(x: Any) -> Any:
        return np.sum(x**2)

    def f_writes(x: Any) -> Any:
        x *= 2
        return np.sum(x)

    def f_clips(x: Any) -> Any:
        return np.sum(np.clip(x, 0.5, 2, out=x))  # which changes nothing at x itself

    def grad_writes(x: Any) -> Any:
        x *= 2
        return x

    def vjp_writes_x(x: Any, g: Any) -> Any:
        x *= 2
        return x * g

    def product_writes_second(x: Any, g: Any) -> Any:
        product = 2 * x * g
        g *= 3
        return product

    for function, grad, products, names in (
        (f_writes, [2.0, 2.0], {}, "f changes its argument x"),
        (f_clips, [1.0, 1.0], {}, "f changes its argument x"),
        (f, grad_writes, {}, "grad changes its argument x"),
        (f, None, {"vjp": vjp_writes_x}, "vjp changes its argument x"),
        (np.square, None, {"vjp": product_writes_second}, "vjp changes its argument g"),
        (np.square, None, {"jvp": product_writes_second}, "jvp changes its argument t"),
    ):
        with pytest.raises(RuntimeError, match=f"check_grad: {names}; it has to work on a copy"):
            pb.check_grad(function, grad, x, **products)
        assert (x == kept).all()

    buffer = np.zeros(2)  # results may be one array, overwritten
    assert pb.check_grad(lambda x: np.square(x, out=buffer), None, x, vjp=lambda x, g: 2 * x * g)


def test_step_and_scale() -> None:
    x = np.array([0.3, 0.4])
    f = lambda x: np.sum(pb.sin(1e9 * x))  # noqa: E731
    right = 1e9 * np.cos(1e9 * x)
    for options in ({"scale": 1e-9}, {"scale": [1e-9, 2e-9]}, {"step": 1e-10}):
        assert pb.check_grad(f, right, x, **options).ok
        assert not pb.check_grad(f, 1.01 * right, x, **options).ok
    seen = []

    def smooth(x: Any) -> Any:
        seen.append(x.copy())
        return np.sum(x**2)

    before = pb.check_grad(smooth, 2 * x, x, directions=0)
    assert before.ok
    seen.clear()
    assert pb.check_grad(smooth, 2 * x, x, step=[1e-3, 1e-2], directions=0).ok
    moved = np.abs(np.array(seen) - x)
    for step, column in ((1e-3, moved[:, 0]), (1e-2, moved[:, 1])):
        taken = {step, step / 4, step / 16, step / 64}
        assert all(any(abs(m - s) < 1e-9 for s in taken) for m in column if m > 1e-4)
    for options, message in (
        ({"step": 0.0}, "step is 0 for x of 0.3"),
        ({"step": [1e-3, -1.0]}, "step is -1 for x of 0.4"),
        ({"scale": math.inf}, "scale is inf"),
        ({"step": 1e-17}, "more than x's rounding"),
        ({"scale": [1.0] * 3}, r"scale has shape \(3,\), x has \(2,\)"),
        ({"step": 1.0, "scale": 1.0}, "step and scale exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            pb.check_grad(f, right, x, **options)

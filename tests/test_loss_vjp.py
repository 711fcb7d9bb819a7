"""vjp of losses, its tangents and cotangents: in X, w, b and offset, and of single predictions."""

from __future__ import annotations

import inspect
import itertools
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pullback as pb
import pytest
import scipy.sparse
from linear_models import CASES, POINTWISE, SINGLE, Case, by_id, model
from mpmath import mp, mpf
from oracles import assert_same_bits
from protocol import TWINS, backends, each, leaves
from pullback import native_rows

LOGISTIC = Case("logistic")
LABELS = Case("softmax_cross_entropy", None, labels=True)
PROBABILITIES = Case("softmax_cross_entropy")
OPERANDS = ("X", "w", "b", "offset")
STEP = mpf(10) ** -18


# --- against mathematics --------------------------------------------------------------------------


def exact_loss(case: Case, X: Any, y: Any, w: Any, b: Any, offset: Any, weights: Any) -> Any:
    """Return the weighted sum of losses of mpmath's numbers."""
    z = X @ w + b + offset
    if not case.coupled:
        formula = case.formula.value
        losses = [
            formula(SINGLE, zi, mpf(float(yi)), mpf(case.p)) for zi, yi in zip(z, y, strict=True)
        ]
    else:
        rows = np.eye(z.shape[1])[y] if case.labels else y
        pairs = zip(z, rows, strict=True)
        losses = [
            sum(map(mpf, t.tolist())) * mp.log(sum(map(mp.exp, zi)))
            - sum(ti * zk for ti, zk in zip(map(mpf, t.tolist()), zi, strict=True))
            for zi, t in pairs
        ]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))


class Drawn(NamedTuple):
    """A model with an offset, and three directions in its operands."""

    y: Any
    weights: Any
    at: dict[str, Any]
    tangents: list[dict[str, Any]]

    @property
    def primals(self) -> tuple[Any, ...]:
        return self.at["X"], self.y, self.at["w"], self.at["b"]

    def options(self, **more: Any) -> dict[str, Any]:
        return {"sample_weight": self.weights, "offset": self.at["offset"], **more}


def drawn(case: Case, n: int, d: int, k: int | None = None, dtype: Any = float) -> Drawn:
    m = model(case, n, d, dtype, k)
    rng = np.random.default_rng(n)
    z_shape = (n, *m.w.shape[1:])
    at = {"X": m.X, "w": m.w, "b": m.b, "offset": rng.normal(0, 0.3, z_shape).astype(dtype)}
    tangents = [
        {name: rng.normal(size=np.shape(a)).astype(dtype) for name, a in at.items()}
        for _ in range(3)
    ]
    for t in tangents:
        t["b"] = float(t["b"]) if t["b"].ndim == 0 else t["b"]
    return Drawn(m.y, m.sample_weight, at, tangents)


def inner(one: Any, other: Any) -> float:
    return sum(float(np.vdot(a, c)) for a, c in zip(one, other, strict=True))


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_against_differences_of_the_loss(case: Case) -> None:
    """Differences of the formula of its value, with many digits; no derivative of the table."""
    m = drawn(case, 5, 2)
    with mp.workdps(90):
        point = {name: np.vectorize(mpf, otypes=[object])(a) for name, a in m.at.items()}
        weights = list(map(mpf, m.weights.tolist()))

        def at(*moves: tuple[Any, dict[str, Any]]) -> Any:
            moved = {
                name: a
                + sum(step * np.vectorize(mpf, otypes=[object])(t[name]) for step, t in moves)
                for name, a in point.items()
            }
            return exact_loss(
                case, moved["X"], m.y, moved["w"], moved["b"], moved["offset"], weights
            )

        t = m.tangents[0]
        g, tg, total = 0.75, 1.5, sum(weights)
        for name in OPERANDS:
            # A probe in one operand at a time.
            h = {other: m.tangents[1][other] * (other == name) for other in OPERANDS}
            second = sum(
                one * other * at((one * STEP, t), (other * STEP, h))
                for one, other in itertools.product((-1, 1), repeat=2)
            ) / (4 * STEP**2 * total)
            first = (at((STEP, h)) - at((-STEP, h))) / (2 * STEP * total)
            expected = float(g * second + tg * first)
            size = 1 + abs(expected) + abs(float(second))
            for P in TWINS:
                loss = case.of(P)
                options = m.options(toffset=t["offset"], wrt=name)
                moved = loss.vjp.jvp(*m.primals, g, t["X"], t["w"], t["b"], tg, **options)
                assert abs(np.vdot(moved, h[name]) - expected) <= 2e-13 * size
                by_h = [h[other] if other == name else None for other in OPERANDS]
                pulled = loss.vjp.vjp(
                    *m.primals, g, *by_h[:3], **m.options(hoffset=by_h[3], wrt="all")
                )
                along = inner([t[other] for other in OPERANDS], pulled[:4])
                assert abs(along - float(g * second)) <= 2e-13 * size
                assert abs(pulled[4] - float(first)) <= 2e-13 * size


# --- against formulas in NumPy, in all forms ------------------------------------------------------


def dense(a: Any) -> Any:
    return np.asarray(a.todense() if scipy.sparse.issparse(a) else a, float)


def expected(case: Case, m: Drawn, g: float, t: dict[str, Any], tg: float, by: float) -> Any:
    """Return the tangents of vjp's results, by matrices of all samples and outputs."""
    k = m.at["w"].shape[1:] or (1,)
    X, w = dense(m.at["X"]), dense(m.at["w"]).reshape(-1, *k)
    tX, tw = dense(t["X"]), dense(t["w"]).reshape(-1, *k)
    columns = {name: dense(a).reshape(len(X), -1) for name, a in {"o": m.at["offset"]}.items()}
    z = X @ w + dense(m.at["b"]) + columns["o"]
    dz = tX @ w + X @ tw + dense(t["b"]) + dense(t["offset"]).reshape(len(X), -1)
    f = case.of(pb).pointwise
    if case.coupled:
        r, dr = f.derivative(z, m.y), np.einsum("nkl,nl->nk", f.second_derivative(z, m.y), dz)
    else:
        y = np.asarray(m.y, float).reshape(z.shape)
        r, dr = f.derivative(z, y), f.second_derivative(z, y) * dz
    s = (np.ones(len(X)) if m.weights is None else m.weights)[:, None] / by
    R, G = s * (g * dr + tg * r), s * g * r
    R_b = R.sum(axis=0)
    return {
        "X": R @ w.T + G @ tw.T,
        "w": (X.T @ R + tX.T @ G).reshape(m.at["w"].shape),
        "b": R_b if np.size(m.at["b"]) == R_b.size else R_b.sum(),
        "offset": R if m.at["offset"].ndim == 2 else R.sum(axis=1),
        "g": float(np.sum(s * r * dz)),
    }


FORMS: dict[str, Callable[[Any], Any]] = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "strided": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "list": lambda X: X.tolist(),
    "CSR": scipy.sparse.csr_array,
    "CSC": scipy.sparse.csc_array,
}
SHAPES = ((LOGISTIC, None), (Case("poisson"), 2), (LABELS, 3), (PROBABILITIES, 4))


@backends
@each("form", FORMS)
def test_forms(form: str, primitives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 150
    monkeypatch.setattr(native_rows, "_BLOCK_BYTES", 1 << 12)  # several blocks
    for (case, k), weighted in itertools.product(SHAPES, (True, False)):
        m = drawn(case, rows, 3, k)
        zeros = np.random.default_rng(rows).random(m.at["X"].shape) < 0.4
        m.at["X"] = np.where(zeros, 0, m.at["X"])
        m = m if weighted else m._replace(weights=None)
        by = rows if m.weights is None else m.weights.sum()
        t = m.tangents[0]
        other = FORMS["CSR" if form == "rows" else "rows"]
        for of_X, of_t in ((FORMS[form], other), (FORMS["rows"], FORMS[form])):
            X, y, w, b = m.primals
            jvp, vjp = (getattr(case.of(primitives).vjp, name) for name in ("jvp", "vjp"))
            given, tX = (of_X(X), y, w, b, 0.5), of_t(t["X"])
            options = m.options(wrt="all")
            moved = jvp(*given, tX, t["w"], t["b"], 2.0, **options, toffset=t["offset"])
            wanted = expected(case, m, 0.5, t, 2.0, by)
            for name, result in zip(OPERANDS, moved, strict=True):
                np.testing.assert_allclose(result, wanted[name], 1e-11, 1e-14, err_msg=name)
            pulled = vjp(*given, tX, t["w"], t["b"], **options, hoffset=t["offset"])
            wanted = expected(case, m, 0.5, t, 0.0, by)
            for name, result in zip((*OPERANDS, "g"), pulled, strict=True):
                np.testing.assert_allclose(result, wanted[name], 1e-11, 1e-14, err_msg=name)


@backends
def test_dtypes_and_kinds(primitives: Any) -> None:
    """Of results: as the gradients'."""
    for (case, k), dtype in itertools.product(SHAPES, ("f4", "f2", "f8")):
        if case == PROBABILITIES and dtype == "f2":
            continue  # whose rows do not sum to 1
        m = drawn(case, 30, 3, k, np.dtype(dtype))
        X, y, w, b = m.primals
        t = m.tangents[0]
        computed = np.float32 if dtype != "f8" else np.float64
        moved = case.of(primitives).vjp.jvp(
            *m.primals, 1, t["X"], t["w"], t["b"], None, **m.options(wrt="all", toffset=0.5)
        )
        wanted = expected(
            case, m, 1, {**t, "offset": np.full_like(m.at["offset"], 0.5)}, 0, m.weights.sum()
        )
        for name, result in zip(OPERANDS, moved, strict=True):
            assert np.shape(result) == np.shape(m.at[name])
            assert isinstance(result, float if isinstance(m.at[name], float) else np.ndarray)
            if isinstance(result, np.ndarray):
                assert result.dtype == computed
            np.testing.assert_allclose(
                result, wanted[name], 1e-5 if computed == np.float32 else 1e-11, 1e-6
            )
        gradients = case.of(primitives).grad(X, y, w, b, m.weights, wrt=("X", "w", "b"))
        for vjp, gradient in zip(
            case.of(primitives).vjp(X, y, w, b, 2, m.weights, wrt=("X", "w", "b")),
            gradients,
            strict=True,
        ):
            assert type(vjp) is type(gradient)
            np.testing.assert_allclose(vjp, 2 * np.asarray(gradient), 1e-6, 1e-7)
    none = primitives.logistic.vjp.jvp(
        np.ones((3, 0)), np.ones(3), np.ones(0), 0.5, 1, 1, 1, 1, 1, wrt=("X", "w", "b")
    )
    assert [np.shape(a) for a in none] == [(3, 0), (0,), ()]
    ints = np.arange(12).reshape(4, 3) % 5 - 2
    results = primitives.squared_error.vjp.jvp(
        ints, [1, 2, 3, 4], [1, 2, 3], np.float32(1), 1, 1, 1, 1, 1, wrt=("X", "w", "b")
    )
    assert [r.dtype for r in results] == [float, float, np.float32]
    assert isinstance(results[2], np.generic)


@backends
def test_offsets_and_shared_intercepts(primitives: Any) -> None:
    for case, k in SHAPES[1:]:
        m = drawn(case, 20, 2, k)
        m.at["b"], m.at["offset"] = 0.25, m.at["offset"][:, 0].copy()
        t = {**m.tangents[0], "b": 0.5, "offset": m.tangents[0]["offset"][:, 0].copy()}
        moved = case.of(primitives).vjp.jvp(
            *m.primals, 1.0, t["X"], t["w"], t["b"], 0.5, **m.options(wrt="all"),
            toffset=t["offset"],
        )  # fmt: skip
        wanted = expected(case, m, 1.0, t, 0.5, m.weights.sum())
        for name, result in zip(OPERANDS, moved, strict=True):
            np.testing.assert_allclose(result, wanted[name], 1e-11, 1e-14, err_msg=name)
    X, y, w = np.ones((4, 2)), np.zeros(4), np.ones(2)
    vjp = primitives.logistic.vjp
    assert vjp(X, y, w, None, 1.0, wrt=("b", "offset")) == (None, None)
    assert vjp.jvp(X, y, w, None, 1.0, None, w, None, None, wrt="offset") is None


@backends
@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_symmetric_and_adjoint(case: Case, primitives: Any) -> None:
    """The Hessian is symmetric; jvp and vjp are adjoint; hvp is a part of it."""
    m, vjp = drawn(case, 60, 4), case.of(primitives).vjp
    t, h, _ = m.tangents
    sides = []
    for one, other in ((t, h), (h, t)):
        moved = vjp.jvp(
            *m.primals, 1.5, one["X"], one["w"], one["b"], None,
            **m.options(wrt="all", toffset=one["offset"]),
        )  # fmt: skip
        sides.append(inner(moved, [other[name] for name in OPERANDS]))
    assert np.isclose(*sides, rtol=1e-12, atol=1e-13)
    tg = 0.75
    moved = vjp.jvp(
        *m.primals, 1.5, t["X"], t["w"], t["b"], tg, **m.options(wrt="all", toffset=t["offset"])
    )
    pulled = vjp.vjp(
        *m.primals, 1.5, h["X"], h["w"], h["b"], **m.options(wrt="all", hoffset=h["offset"])
    )
    along = inner(moved, [h[name] for name in OPERANDS])
    against = inner([*(t[name] for name in OPERANDS), tg], pulled)
    assert np.isclose(along, against, rtol=1e-12, atol=1e-13)
    hvp = case.of(primitives).hvp(*m.primals, (t["w"], t["b"]), **m.options())
    for one, other in zip(
        vjp.jvp(*m.primals, 1.5, None, t["w"], t["b"], None, **m.options()), hvp, strict=True
    ):
        np.testing.assert_allclose(one, 1.5 * np.asarray(other), 1e-11, 1e-14)


# --- options and errors ---------------------------------------------------------------------------


@backends
def test_none_is_zero_and_numbers_fill(primitives: Any) -> None:
    m, vjp = drawn(LABELS, 30, 3), primitives.softmax_cross_entropy.vjp
    t = m.tangents[0]
    for present in itertools.product((False, True), repeat=5):
        named = dict(zip((*OPERANDS, "g"), present, strict=True))
        given = {name: t.get(name, 0.5) if named[name] else None for name in named}
        zeros = {
            name: given[name] if named[name] else 0.0 * np.asarray(t.get(name, 0.5))
            for name in named
        }
        zeros["g"] = float(zeros["g"])
        one, other = (
            vjp.jvp(
                *m.primals, 0.5, g["X"], g["w"], g["b"], g["g"],
                **m.options(wrt="all", toffset=g["offset"]),
            )
            for g in (given, zeros)
        )  # fmt: skip
        for a, c in zip(one, other, strict=True):
            np.testing.assert_allclose(a, c, 1e-14, 1e-16)
    filled, whole = (
        vjp.jvp(*m.primals, 0.5, *of, 1.0, **m.options(wrt="all", toffset=o))
        for of, o in (
            ((0.5, 2, -1.0), 0.25),
            (
                [
                    np.full(np.shape(m.at[n]), v)
                    for n, v in zip("Xwb", (0.5, 2.0, -1.0), strict=True)
                ],
                np.full(m.at["offset"].shape, 0.25),
            ),
        )
    )
    for a, c in zip(filled, whole, strict=True):
        assert_same_bits(a, c)


@backends
def test_wrt_and_out(primitives: Any) -> None:
    m, vjp = drawn(LOGISTIC, 30, 3), primitives.logistic.vjp
    t = m.tangents[0]
    calls: list[tuple[Any, tuple[Any, ...], tuple[str, ...]]] = [
        (vjp, (), OPERANDS),
        (vjp.jvp, (t["X"], t["w"], t["b"], 0.5), OPERANDS),
        (vjp.vjp, (t["X"], t["w"], t["b"]), (*OPERANDS, "g")),
    ]
    for method, tangents, names in calls:
        every = method(*m.primals, 1.5, *tangents, **m.options(wrt="all"))
        by_name = dict(zip(names, every, strict=True))
        places = ("X", "y", "w", "b", "offset", "g")
        for name in names:
            for wrt in (name, places.index(name)):
                alone = method(*m.primals, 1.5, *tangents, **m.options(wrt=wrt))
                np.testing.assert_allclose(alone, by_name[name], 1e-13, 1e-15)
        for wrt in itertools.permutations(names, 2):
            for one, name in zip(
                method(*m.primals, 1.5, *tangents, **m.options(wrt=wrt)), wrt, strict=True
            ):
                np.testing.assert_allclose(one, by_name[name], 1e-13, 1e-15)
        default = method(*m.primals, 1.5, *tangents, **m.options())
        assert len(default) == (3 if "g" in names else 2)
        # Each output may be an operand.
        primals = [np.array(a) for a in m.primals]
        outs = tuple(
            {"X": primals[0], "w": primals[2], "b": primals[3]}.get(name) for name in names
        )
        results = method(*primals, 1.5, *tangents, **m.options(wrt="all", out=outs))
        for one, out, name in zip(results, outs, names, strict=True):
            assert out is None or one is out
            np.testing.assert_allclose(one, by_name[name], 1e-13, 1e-15)
        out = np.empty(3)
        assert method(*m.primals, 1.5, *tangents, **m.options(wrt="w", out=out)) is out
        assert_same_bits(out, method(*m.primals, 1.5, *tangents, **m.options(wrt="w")))


@backends
def test_errors(primitives: Any) -> None:
    loss = primitives.logistic
    X, y, w, o = np.ones((4, 2)), np.zeros(4), np.ones(2), np.zeros(4)
    at, jvp, vjp = (X, y, w, 0.5, 1.0), loss.vjp.jvp, loss.vjp.vjp
    for call, error, message in (
        (
            lambda: jvp(*at, X[1:], None, None, None),
            ValueError,
            r"tX has shape \(3, 2\), X has \(4",
        ),
        (
            lambda: jvp(*at, None, y, None, None),
            ValueError,
            r"vjp\.jvp: tw has shape \(4,\), w has",
        ),
        (lambda: jvp(*at, None, w, w, None), ValueError, r"tb has shape \(2,\), b has"),
        (lambda: jvp(*at, None, w, None, w), TypeError, "tg must be a number"),
        (lambda: jvp(*at, None, w, None, None, toffset=o), ValueError, "toffset is given, but off"),
        (
            lambda: jvp(*at, None, w, None, None, offset=o, toffset=w),
            ValueError,
            r"toffset has shape \(2,\), offset has \(4,\)",
        ),
        (
            lambda: jvp(X, y, w, None, 1.0, None, w, 1.0, None),
            ValueError,
            "tb is given, but b is None",
        ),
        (lambda: vjp(*at, X.T, None, None), ValueError, r"vjp\.vjp: hX has shape \(2, 4\), X has"),
        (lambda: vjp(*at, None, 1j * w, None), TypeError, r"hw.*complex128"),
        (lambda: vjp(*at, 1j * X, None, None), TypeError, r"hX.*complex128"),
        (lambda: vjp(*at, None, w, None, hoffset=o), ValueError, "hoffset is given, but offset"),
        (
            lambda: vjp(*at, scipy.sparse.coo_array(X), None, None),
            TypeError,
            r"vjp\.vjp, hX: .* format 'coo'",
        ),
        (lambda: loss.vjp(X, y, w, 0.5, X), TypeError, r"logistic\.vjp: g must be a number"),
        (lambda: loss.vjp(X, y, w, 0.5, None), TypeError, "g is None, which is no cotangent"),
        (lambda: loss.vjp(X, y, w, 0.5), TypeError, r"logistic\.vjp\(\) missing 1 required"),
        (lambda: jvp(X, y, w), TypeError, r"logistic\.vjp\.jvp\(\) missing 6 required"),
        (lambda: jvp(*at, None, w, None, None, ty=y), TypeError, "argument 'ty'"),
        (lambda: loss.vjp(X, y + 2, w, 0.5, 1.0), ValueError, r"vjp: y\[0\] is 2.0, needs"),
        (lambda: jvp(X, y + 2, w, 0.5, 1.0, *[None] * 4), ValueError, r"jvp: y\[0\] is 2.0"),
        (
            lambda: vjp(*at, None, w, None, sample_weight=y),
            ValueError,
            "sample_weight sums to 0",
        ),
        (lambda: vjp(*at, None, w, None, reduction="max"), ValueError, "reduction must be"),
        (lambda: vjp(*at, None, w, None, out=(None,)), ValueError, "there are 3 results"),
        (
            lambda: loss.vjp(*at, wrt="w", out=np.empty(3)),
            ValueError,
            r"out has shape \(3,\), the result \(2,\)",
        ),
        (
            lambda: loss.vjp(*at, wrt=("offset",), out=(np.empty(4),)),
            ValueError,
            "does not exist",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    for wrt in ("y", "sample_weight", 1, 5, ("w", "w"), ()):
        for method, tangents in ((loss.vjp, ()), (jvp, (None, w, None, None))):
            with pytest.raises(
                ValueError, match=rf"{method.__qualname__ if tangents else 'vjp'}: wrt"
            ):
                method(*at, *tangents, wrt=wrt)
    with pytest.raises(ValueError, match="wrt must be 'X', 'w', 'b', 'offset', 'g'"):
        vjp(*at, None, w, None, wrt="y")


@backends
def test_weight_0_and_what_is_not_finite(primitives: Any) -> None:
    """A sample of weight 0 adds nothing, whatever it holds; X of 0 meets no overflow."""
    for case, k in SHAPES:
        m, vjp = drawn(case, 12, 3, k), case.of(primitives).vjp
        weights = np.where(np.arange(12) % 3 == 0, 0, m.weights + 0.5)
        m, t = m._replace(weights=weights), m.tangents[0]
        bad = {name: np.array(m.at[name]) for name in OPERANDS}
        moved = {name: np.array(t[name]) for name in OPERANDS}
        y = np.array(m.y)
        for j, value in enumerate((np.nan, np.inf, 1e300, -np.inf)):
            for a in (bad["X"], moved["X"], bad["offset"], moved["offset"]):
                a[3 * j] = value
            y[3 * j] = -7
        results = []
        for at, along, targets in ((m.at, t, m.y), (bad, moved, y)):
            results.append(
                vjp.jvp(
                    at["X"], targets, m.at["w"], m.at["b"], 1.5, along["X"], t["w"], t["b"], 0.5,
                    **m.options(wrt="all") | {"offset": at["offset"]}, toffset=along["offset"],
                )
            )  # fmt: skip
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, 1e-13, 1e-15)
    X = np.array([[1.0, 0.0], [1.0, 1.0]])
    gw, gb = primitives.exponential.vjp.jvp(
        X, [1, 1], [-800.0, 800.0], None, 1.0, None, [1.0, 0.0], None, None, reduction="sum"
    )
    assert gb is None
    assert gw.tolist() == [np.inf, 1.0]
    gX = primitives.exponential.vjp(X, [1, 1], [-800.0, 0.0], None, 1.0, wrt="X")
    assert gX.tolist() == [[np.inf, 0.0]] * 2
    gX = primitives.squared_error.vjp(
        X, [1, 1], [np.inf, 1.0], None, 1.0, sample_weight=[0.0, 1.0], wrt="X"
    )
    assert not gX[0].any()


@pytest.mark.native
def test_bits_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_rows, "_BLOCK_BYTES", 1 << 20)
    m = drawn(LOGISTIC, 9000, 40)
    t = m.tangents[0]
    results = []
    for n in (1, 2, 4):
        with pb.threads(n):
            results.append(
                pb.logistic.vjp.jvp(
                    *m.primals, 1.5, t["X"], t["w"], t["b"], 0.5,
                    **m.options(wrt="all", toffset=t["offset"]),
                )
            )  # fmt: skip
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_same_bits(one, two)


# --- users' own -----------------------------------------------------------------------------------


def test_of_a_users_loss() -> None:
    value, slope = (lambda z, y: np.cosh(z - y)), (lambda z, y: np.sinh(z - y))
    loss = pb.pointwise_loss(value, slope, value, name="own")
    for n, k in ((30, None), (700, 2)):
        m = drawn(Case("squared_error"), n, 3, k)
        t = m.tangents[0]
        moved = loss.vjp.jvp(
            *m.primals, 0.5, t["X"], t["w"], t["b"], 2.0,
            **m.options(wrt="all", toffset=t["offset"]),
        )  # fmt: skip

        class Own(Case):
            def of(self, primitives: Any = pb) -> Any:
                return loss

        wanted = expected(Own("squared_error"), m, 0.5, t, 2.0, m.weights.sum())
        for name, result in zip(OPERANDS, moved, strict=True):
            np.testing.assert_allclose(result, wanted[name], 1e-11, 1e-14, err_msg=name)
    lacking = pb.pointwise_loss(value, slope, name="own")
    X, y, w = np.ones((4, 2)), np.zeros(4), np.ones(2)
    assert lacking.vjp(X, y, w, None, 1.0)[0].shape == (2,)
    assert lacking.vjp.jvp(X, y, w, None, 1.0, None, None, None, 1.0)[0].shape == (2,)
    along = lacking.vjp.vjp(X, y, w, None, 1.0, None, w, None, wrt="g")
    assert np.isclose(along, 2 * np.sinh(2))
    for call in (
        lambda: lacking.vjp.jvp(X, y, w, None, 1.0, None, w, None, None),
        lambda: lacking.pointwise.vjp.jvp(y, y, 1.0, y, None),
    ):
        with pytest.raises(TypeError, match="own: needs a second_derivative"):
            call()


def test_of_a_users_loss_that_meddles() -> None:
    """Nothing that is read can be resized meanwhile."""
    for attacked in range(5):
        X, y, tX, weights, offset = np.ones((40, 3)), np.ones(40), *np.ones((1, 40, 3)), None, None
        weights, offset = np.ones(40), np.ones(40)
        targets = [X, y, tX.copy(), weights, offset]

        def slope(z: Any, y: Any, a: Any = targets[attacked]) -> Any:
            a.resize((1,) * a.ndim, refcheck=False)
            return z - y

        loss = pb.pointwise_loss(lambda z, y: (z - y) ** 2 / 2, slope, lambda z, y: 1.0)
        with pytest.raises(ValueError, match="resize"):
            loss.vjp.jvp(
                *targets[:2], np.ones(3), None, 1.0, targets[2], np.ones(3), None, 1.0, weights,
                offset=offset, wrt="all",
            )  # fmt: skip


# --- of single predictions ------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_pointwise(case: Case, primitives: Any) -> None:
    f = case.of(primitives).pointwise
    rng = np.random.default_rng(3)
    m = model(case, 24, 3)
    for dtype, stack in itertools.product((float, np.float32), ((), (2,), (3, 2))):
        z = np.asarray(m.X @ m.w + m.b, dtype)
        y = m.y if case.labels else m.y.astype(dtype)
        tol = {"rtol": 1e-12, "atol": 1e-13} if dtype is float else {"rtol": 2e-5, "atol": 2e-6}
        g, tg = rng.normal(size=(2, *stack, 24)).astype(dtype)
        t, h = rng.normal(size=z.shape).astype(dtype), rng.normal(size=(*stack, *z.shape))
        h = h.astype(dtype)
        slope, second = f.derivative(z, y), f.second_derivative(z, y)
        if case.coupled:
            curved = np.einsum("nkl,nl->nk", second, t)
            by_g, by_tg = g[..., None] * curved, tg[..., None] * slope
            of_z = np.einsum("nkl,...nl->...nk", second, g[..., None] * h)
            of_g = (h * slope).sum(axis=-1)
        else:
            by_g, by_tg, of_z, of_g = g * second * t, tg * slope, g * second * h, h * slope
        of_z = of_z.sum(axis=tuple(range(len(stack))))
        for with_t, with_tg in itertools.product((False, True), repeat=2):
            moved = f.vjp.jvp(z, y, g, t if with_t else None, tg if with_tg else None)
            assert moved.dtype == dtype
            np.testing.assert_allclose(moved, with_t * by_g + with_tg * by_tg, **tol)
        pulled = f.vjp.vjp(z, y, g, h)
        assert [a.dtype for a in pulled] == [dtype] * 2
        np.testing.assert_allclose(pulled[0], of_z, **tol)
        np.testing.assert_allclose(pulled[1], of_g, **tol)
        assert_same_bits(f.vjp.vjp(z, y, g, h, wrt="g"), pulled[1])
        assert_same_bits(f.vjp.vjp(z, y, g, h, wrt=("z",))[0], pulled[0])
        nothing = f.vjp.vjp(z, y, g, None)
        assert [a.shape for a in nothing] == [z.shape, g.shape]
        assert not any(a.any() for a in nothing)
        out = np.empty(moved.shape, dtype)
        assert f.vjp.jvp(z, y, g, t, tg, out=out) is out
        assert_same_bits(out, f.vjp.jvp(z, y, g, t, tg))


@backends
@pytest.mark.parametrize("case", POINTWISE, ids=by_id)
def test_pointwise_numbers(case: Case, primitives: Any) -> None:
    f = case.of(primitives).pointwise
    y = float(case.formula.targets(np.random.default_rng(1), (1,))[0])
    for z in (-0.75, 0.375):
        assert f.vjp.jvp(z, y, 1.0, 1.0, None) == f.second_derivative(z, y)
        assert f.vjp.jvp(z, y, 1.0, None, 1.0) == f.derivative(z, y)
        of_z, of_g = f.vjp.vjp(z, y, 2, 1)
        assert of_z == 2 * f.second_derivative(z, y)
        assert of_g == f.derivative(z, y)
        filled = f.vjp.jvp(np.full(3, z), y, 1.0, 1.0, 1.0)
        np.testing.assert_array_equal(filled, f.vjp.jvp(*np.full((3, 3), [[z], [y], [1.0]]), 1, 1))


@backends
def test_pointwise_errors(primitives: Any) -> None:
    f, z = primitives.logistic.pointwise.vjp, np.zeros((2, 3))
    of_classes, labels = primitives.softmax_cross_entropy.pointwise.vjp, np.zeros(2, int)
    for call, error, message in (
        (lambda: f.jvp(z, z, z, z[0], None), ValueError, r"t has shape \(3,\), z has \(2, 3\)"),
        (lambda: f.jvp(z, z, z, None, z[0]), ValueError, r"tg has shape \(3,\), g has \(2, 3\)"),
        (lambda: f.jvp(z, z, z[0], z, None), ValueError, "g has shape .* which must end in"),
        (lambda: f.jvp(z, z, None, z, None), TypeError, r"pointwise\.vjp\.jvp: g is None"),
        (lambda: f.jvp(z, z, z), TypeError, r"logistic\.pointwise\.vjp\.jvp\(\) missing 2"),
        (lambda: f.vjp(z, z, z, z[0]), ValueError, r"h has shape \(3,\), the cotangent of z has"),
        (lambda: f.vjp(z, z, z, 1j * z), TypeError, r"pointwise\.vjp\.vjp: .*h has dtype complex"),
        (lambda: f.vjp(z, z, z, z, wrt="y"), ValueError, "wrt must be 'z', 'g'"),
        (lambda: f.vjp(z, z, z, z, out=(None,)), ValueError, "there are 2 results"),
        (lambda: f.jvp(z, z, z, z, z, out=z[0]), ValueError, r"out has shape \(3,\)"),
        (lambda: of_classes.vjp(z, labels, 1.0, labels), ValueError, r"h has shape \(2,\), the"),
        (lambda: of_classes.jvp(z, labels, z, z, None), ValueError, "g has shape"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert np.isnan(f.jvp(0.5, 2.0, 1.0, 1.0, 1.0))  # a target outside


# --- how they are found ---------------------------------------------------------------------------


@backends
def test_how_they_are_found(primitives: Any) -> None:
    for loss in (primitives.logistic, primitives.huber(1.35)):
        for owner, name in ((loss, loss.row.name), (loss.pointwise, f"{loss.row.name}.pointwise")):
            assert {"jvp", "vjp"} <= set(dir(owner.vjp))
            for method in ("jvp", "vjp"):
                doc = inspect.getdoc(getattr(owner.vjp, method)) or ""
                assert {"Parameters", "Returns", "Raises"} <= set(doc.split())
                assert getattr(owner.vjp, method).__qualname__ == f"{name}.vjp.{method}"
    for owner in (primitives.logistic, primitives.logistic.pointwise):
        for thing in (owner.vjp, owner.vjp.jvp, owner.vjp.vjp):
            assert pickle.loads(pickle.dumps(thing)) == thing
    assert "vjp.jvp(X, y, w, b, g, tX" in primitives.logistic.__doc__
    assert "pointwise.vjp.vjp(z, y, g, h" in primitives.logistic.__doc__
    assert len(list(leaves(primitives.logistic.pointwise.vjp.vjp(0.5, 1.0, 1.0, 1.0)))) == 2

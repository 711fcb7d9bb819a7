"""What is small and plain is multiplied natively, with the bits that Python's side gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pullback as pb
import pytest
from oracles import DTYPES, assert_same_bits
from pullback.config import native
from pullback.jacobians import (
    Broadcast,
    Diagonal,
    Jacobian,
    Kronecker,
    Product,
    Reshape,
    RowWise,
    SumTo,
    base,
)
from structured import KINDS, OPERANDS, everything

pytestmark = pytest.mark.native

OURS = ("Broadcast", "Dense", "Diagonal", "Identity", "Kronecker", "Reshape", "RowWise", "SumTo")
ODD = (np.inf, -np.inf, np.nan, -0.0, 0.0)


def numbers(seed: Any, dtype: Any, odd: bool) -> Callable[[Any], Any]:
    """Return what makes arrays of a shape: normal numbers, and, if asked for, odd ones."""
    rng = np.random.default_rng(seed)

    def fill(shape: Any) -> Any:
        x = np.asarray(rng.normal(size=tuple(shape)))
        if odd and x.size:
            x.flat[rng.integers(x.size)] = rng.choice(ODD)
        return x.astype(dtype)

    return fill


@np.errstate(all="ignore")
def make(kind: str, out: Any, into: Any, fill: Any) -> Any:
    """Return a Jacobian of a kind between two shapes; None where the kind has none."""
    made = KINDS[kind](out, into, fill)
    return None if made is None else made.J


def singles(dtype: Any, odd: bool) -> Iterator[Jacobian]:
    """Yield a Jacobian of each kind of ours between any two shapes."""
    for i, (kind, out, into) in enumerate(product(OURS, OPERANDS, OPERANDS)):
        J = make(kind, out, into, numbers([i, odd], dtype, odd))
        if J is not None:
            yield J
            yield J.T
    fill = numbers(99, dtype, odd)
    sides = {n: (n, fill((n, n)), fill((n + 1, n)), fill((n, n + 1)).T) for n in (1, 3)}
    for left, right in product(sides[1] + sides[3], sides[3]):
        yield Kronecker(left, right)
        yield Kronecker(left, right).T
    x = np.asfortranarray(fill((3, 4)))
    yield pb.tanh.jacobian(x)
    yield Product(Diagonal(fill((3, 70))), Broadcast((70,), (3, 70), dtype))
    yield pb.softmax.jacobian(fill((300,)))
    yield Product(Diagonal(x), Broadcast((4,), (3, 4), dtype))
    for many, few in (((3, 1, 4), (4,)), ((2, 3, 4), (2, 1, 4)), ((2, 3, 4), (1, 3, 1))):
        yield SumTo(many, few, dtype)
        yield SumTo(many, few, dtype).T
        yield Product(SumTo(many, few, dtype), Diagonal(fill(many)))
    for name, axis in product(("softmax", "log_softmax", "layer_norm"), (-1, 0, 1)):
        yield getattr(pb, name).jacobian(fill((3, 2)), axis=axis)
        yield getattr(pb, name).jacobian(fill((5,))).T


def pairs(dtype: Any, odd: bool) -> Iterator[Jacobian]:
    """Yield products of two, and of three, of which an end is a diagonal or a reshape.

    Each pair of kinds at half of the shapes, at the other half for the other dtype or oddness.
    """
    for i, (one, other) in enumerate(product(OURS, repeat=2)):
        for j, (out, between, into) in enumerate(product(((2, 3), (2, 1), (6,)), repeat=3)):
            if (i + j + odd + (dtype == np.float32)) % 2:
                continue
            fill = numbers([i, j, odd], dtype, odd)
            left, right = make(one, out, between, fill), make(other, between, into, fill)
            if left is None or right is None:
                continue
            yield Product(left, right)
            scale, flat = Diagonal(fill(out)), Reshape(out, (int(np.prod(out)),), dtype)
            yield Product(flat, scale, left, right, Diagonal(fill(into)))
            yield Product(scale, right.T, left.T).T if out == into else Product(scale, left)


def uses(J: Jacobian, fill: Callable[[Any], Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what can be asked of a Jacobian."""
    rows, columns = J.shape
    given = {"t": fill(J.input_shape), "flat t": fill((columns,)), "T": fill((columns, 3))}
    given |= {"T of one": fill((columns, 1)), "T in F order": np.asfortranarray(fill((columns, 2)))}
    given["strided t"] = fill((2 * columns,))[::2]
    for name, t in given.items():
        yield name, lambda t=t: J @ t
    given = {"g": fill(J.output_shape), "flat g": fill((rows,)), "G": fill((3, rows))}
    given["G in F order"] = np.asfortranarray(fill((2, rows)))
    for name, g in given.items():
        yield name, lambda g=g: g @ J
    for stack in ((), (1,), (2, 3), (0,)):
        ts, gs = fill((*stack, *J.input_shape)), fill((*stack, *J.output_shape))
        yield f"jvp {stack}", lambda ts=ts: J.jvp(ts)
        yield f"vjp {stack}", lambda gs=gs: J.vjp(gs)
    yield "diagonal", J.diagonal
    yield "todense", J.todense


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("odd", [False, True], ids=["numbers", "odd numbers"])
@pytest.mark.parametrize("made", [singles, pairs])
def test_bits_are_those_of_python(
    made: Any, odd: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: Counter[tuple[Any, bool]] = Counter()
    is_native = True

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(J: Any, *rest: Any) -> Any:
            if not is_native:
                return None
            result = function(J, *rest)
            taken[(type(J).__name__, result is not None)] += 1
            return result

        return call

    assert native is not None
    monkeypatch.setattr(base, "moved", counting(native.jacobian_product))
    monkeypatch.setattr(base, "elements", counting(native.jacobian_elements))
    for i, J in enumerate(made(dtype, odd)):
        warns = "ignore" if " of spread " in repr(J) else "raise"  # NumPy's own
        for name, use in uses(J, numbers([7, i], J.dtype, odd)):
            with np.errstate(all=warns):  # type: ignore[call-overload]
                is_native = True
                got = use()
                is_native = False
                want = use()
            assert type(got) is type(want), (J, name)
            assert_same_bits(got, want)
            if isinstance(got, np.ndarray) and got.ndim:
                assert got.flags.writeable == want.flags.writeable, (J, name)
    for kind in OURS if made is singles else ("Product",):
        assert taken[(kind, True)] > taken[(kind, False)], kind


def test_what_native_leaves_to_python() -> None:
    """Other classes, dtypes and sizes, what has lost its slots, and what is no array of ours."""
    assert native is not None
    x = np.ones(4)
    J, bare = Diagonal(x), object.__new__(Diagonal)
    short, mixed = Diagonal(x), Diagonal(x)
    short._diagonal = np.ones(3)
    mixed._diagonal = np.ones(4, np.float32)
    lost = Product(J, J)
    lost._entries = [J, J]
    unlike = Product(J, J)
    unlike._entries = (J, Diagonal(np.ones(5)))
    cases: list[tuple[Any, Any]] = [(odd, x) for odd in (bare, short, mixed, lost, unlike, x, None)]
    cases += [(made.J, np.ones(made.J.shape[1])) for made in everything("Outer", float)]
    cases += [(J, y) for y in (np.ones(4, np.float32), np.ma.array(x), [1.0] * 4, np.ones(5), 2.0)]
    large = Diagonal(np.ones(2**16))
    cases += [(large, np.ones(2**16)), (RowWise(None, np.ones((2, 2)), None), np.ones((2, 2)))]
    for given, vectors in cases:
        for transposed, stacked in product((False, True), repeat=2):
            assert native.jacobian_product(given, vectors, transposed, stacked) is None, given
    for given in (bare, short, lost, unlike, large, x, None):
        assert native.jacobian_elements(given, True) is None
        assert native.jacobian_elements(given, False) is None


class Bent:
    """A map of rows whose method does what it likes to the Jacobian that calls it."""

    __name__ = "bent"

    def __init__(self, result: Callable[[Any], Any]) -> None:
        self.result, self.held = result, [None]

    def jvp(self, x: Any, t: Any, axis: Any) -> Any:
        J: Any = self.held[0]
        J._x, J._options, J._primitive = None, None, None
        x.resize((1,), refcheck=False)
        try:
            return self.result(t)
        finally:
            J._x, J._options, J._primitive = np.ones(t.shape[-1]), {}, self


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (lambda t: 2 * t, None),
        (lambda t: [2 * t], AttributeError),
        (lambda t: 1 / 0, ZeroDivisionError),
    ],
)
def test_methods_of_maps_of_rows_do_as_they_like(result: Any, error: Any) -> None:
    for shape in ((3,), (3, 2)):
        primitive = Bent(result)
        J = RowWise(primitive, np.ones(3))
        primitive.held[0] = J  # type: ignore[call-overload]
        if error is None:
            np.testing.assert_array_equal(J @ np.ones(shape), 2 * np.ones(shape))
        else:
            with pytest.raises(error):
                J @ np.ones(shape)

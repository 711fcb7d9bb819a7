"""The assertions that conftest.py and oracles.py make fast: none passes where NumPy's fails."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from oracles import assert_same_bits

NAN, INF = np.nan, np.inf
ROWS = [[], [0.0], [-0.0], [NAN], [INF], [1.0, 2.0], [1.0, NAN], [1 + 1e-6, 2.0]]
KINDS = ["f2", "f8", ">f8", "i8", "c16", "O"]
STRICT, NOTHING = {"strict": True}, {"rtol": NAN}
NEVER = (STRICT, NOTHING)  # of these NumPy decides all but arrays without elements
MASKS = [True, False, [True, False], [False, True], [True, True]]


class Never(np.ndarray):
    """Is equal to nothing."""

    def __eq__(self, other: object) -> Any:
        return np.zeros(self.shape, bool)

    __hash__ = None


def made() -> list[Any]:
    """Return much that may be compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = [
            np.array(row, kind)
            for row, kind in itertools.product(ROWS, KINDS)
            if kind != "i8" or np.isfinite(row).all()
        ]
    arrays = arrays[::3] + [a for a in arrays if a.dtype == "f8"]
    arrays += [a.reshape(()) for a in arrays if a.size == 1]
    arrays += [np.ma.array([1.0, x], mask=mask) for x in (2, 3) for mask in MASKS]
    arrays += [np.array([1.0, 2.0]).view(Never), np.array([(1.0, NAN)], "f8,f8")]
    arrays += [np.array([letter * 40], np.dtypes.StringDType()) for letter in "ab"]
    return [*arrays, np.zeros((0, 3)), np.zeros((3, 0)), 1.0, 1, NAN, None, [1.0, 2.0], "a"]


def passes(check: Any, *arguments: Any, **options: Any) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(*arguments, **options)
        except Exception:
            return False
    return True


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("assert_array_equal", {}),
        ("assert_array_equal", {"strict": True, "err_msg": "of bits"}),
        ("assert_allclose", {}),
        ("assert_allclose", STRICT),
        ("assert_allclose", {"equal_nan": False}),
        ("assert_allclose", {"rtol": 1e-3}),
        ("assert_allclose", {"rtol": 0, "atol": 1e-5}),
        ("assert_allclose", {"rtol": 0, "atol": INF}),
        ("assert_allclose", {"rtol": INF}),
        ("assert_allclose", NOTHING),
    ],
)
def test_passes_only_where_numpys_does(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("not passed without NumPy")

    check = getattr(np.testing, name)
    monkeypatch.setitem(check.__globals__, "_numpys", (refuse, refuse))
    found = 0
    for one, other in itertools.product(made(), repeat=2):
        if passes(check, one, other, **options):
            assert passes(check.__wrapped__, one, other, **options), (one, other)
            found += 1
    assert (found > 20) == (options not in NEVER)


def test_bits_differ_where_they_do() -> None:
    numbers = [a for a in made() if type(a) is np.ndarray and a.dtype.kind == "f"]
    for one, other in itertools.product(numbers, repeat=2):
        same = one.dtype == other.dtype and one.shape == other.shape and repr(one) == repr(other)
        assert passes(assert_same_bits, one, other) == same, (one, other)

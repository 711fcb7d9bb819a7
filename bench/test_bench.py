"""Every primitive x method, checked against its twin and then timed.

``pytest bench --benchmark-enable`` times; without it the smallest of each runs once, as a test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import bit_cases
import bits
import call_cases
import calls
import compare
import numpy as np
import pullback as pb
import pytest
import signatures
from cases import CASES, Case
from pullback import Diagonal, PartialSums
from pullback.jacobians import Jacobian


def leaves(tree: Any) -> Iterator[np.ndarray]:
    """Yield the arrays of a result, from left to right."""
    if isinstance(tree, tuple):
        for branch in tree:
            yield from leaves(branch)
    elif isinstance(tree, PartialSums):
        yield from leaves(tree.finish())
    elif isinstance(tree, Diagonal):
        yield tree.diagonal()
    elif isinstance(tree, Jacobian):
        yield tree @ np.arange(1, 1 + tree.shape[1], dtype=tree.dtype)
    else:
        yield np.asarray(tree)


def check(actual: Any, expected: Any) -> None:
    """Fail unless a result is that of the twin, to rounding."""
    for one, other in zip(leaves(actual), leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        eps = np.finfo(one.dtype).eps
        scale = float(np.abs(other).max(initial=0.0))
        np.testing.assert_allclose(one, other, rtol=50 * eps, atol=50 * eps * scale)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Without the clock, the first size of each method in each dtype tells whether it runs."""
    if "case" not in metafunc.fixturenames:
        return
    cases = list(CASES)
    if not metafunc.config.getoption("benchmark_enable"):
        first: dict[Any, Case] = {}
        for case in cases:
            first.setdefault((case.primitive, case.method, case.variant.split("-")[0]), case)
        cases = list(first.values())
    metafunc.parametrize("case", cases, ids=lambda case: case.name)


def test_bench(benchmark: Any, case: Case) -> None:
    arguments = case.build()
    expected = case.twin(*arguments)
    check(case.function(*arguments), expected)
    benchmark.group = f"{case.primitive}.{case.method}"
    check(benchmark(case.function, *arguments), expected)


def test_what_is_wanted_is_compared() -> None:
    labels: list[str] = []
    for records, _ in compare.SUITES.values():
        assert not list(records(quick=False, effort=compare.QUICK, wanted=labels.append))
    assert len(labels) == len(set(labels))
    found = [next((p for p, _ in compare.WANTS if re.search(p, label)), None) for label in labels]
    assert {pattern for pattern, _ in compare.WANTS} == set(found) - {None}


def test_a_goal_that_is_missed() -> None:
    record = {"pullback": 2.0, "peers": {"NumPy": 6.0, "Numba": 3.0}, "limit": 1.0}
    taken = compare.Want(libraries=2, loop=2, seconds=4, limit=1.25).taken(record)
    assert taken == {"2x": 2 / 3, "2x Numba": 4 / 3, "4 s": 0.5, "limit/1.25": 1.6}
    assert compare.Want(limit=1.25).taken({**record, "limit": None}) == {}


def test_every_method_is_timed_and_hashed() -> None:
    assert signatures.unknown_methods(pb) == []
    timed = {(call.primitive, call.method) for call in call_cases.all_calls()}
    assert timed >= {
        (name, method)
        for name, f in pb.primitives.items()
        for method in signatures.METHODS[signatures.family(name, f)]
    }


def test_calls_have_limits_and_run() -> None:
    every = list(call_cases.all_calls())
    assert {call.limit for call in every} == set(calls.LIMITS)
    for call in every:
        if call.limit == "plain":
            call.function(*call.arguments, **call.keywords)


def test_a_call_above_its_limit() -> None:
    key = ("unary", "vjp", "", "plain")
    row = calls.row_of(key, [(1.0, 2e-7, "exp"), (3.5, 7e-7, "tanh"), (1.5, 3e-7, "sin")])
    assert row == ("unary", "vjp", "", 1.5, 3.5, 7e-7, "tanh", 3.0)
    assert row.over
    assert "over" in list(calls.table([row]))[-1]


def test_bits_are_those_of_the_inputs() -> None:
    def lines() -> list[str]:
        digests: dict[str, bits.Digest] = {}
        for case in bit_cases.elementwise("tanh", pb.tanh):
            if case.group.endswith(("sizes", "special", "refused")):
                digests.setdefault(f"{case.method} {case.group}", bits.Digest()).record(case.call)
        return [digest.line(name) for name, digest in digests.items()]

    first = lines()
    assert len(first) == 6 * 5
    assert first == lines()
    assert bit_cases.written() == []


def test_bits_that_differ() -> None:
    before = bits.parsed("# about\naa bb 3 0 AVX2 f.vjp x\naa bb 3 0 AVX2 f.jvp x\n")
    after = bits.parsed("ab bb 3 0 AVX2 f.vjp x\naa bb 3 0 AVX2 f.jvp y\n")
    assert list(bits.differences(before, after)) == [
        ("bits", "AVX2 f.vjp x"),
        ("added", "AVX2 f.jvp y"),
        ("removed", "AVX2 f.jvp x"),
    ]
    assert list(bits.differences(before, before)) == []

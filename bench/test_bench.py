"""Every primitive x method, checked and then timed: native, its twin, and plain NumPy by hand.

``pytest bench --benchmark-enable`` times; without it the smallest of each runs once, as a test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import bit_cases
import bits
import call_cases
import calls
import compare
import numpy as np
import pullback as pb
import pullback.cases
import pytest
import signatures
from pullback.bench import loss_peers, peers, race, reduction_peers, suites
from pullback.cases import Case, arrays, cases, check

CONTENDERS = ("native", "twin", "numpy")


def check_twin(actual: Any, expected: Any) -> None:
    """Fail unless a result is that of the twin, dtype and shape, to rounding."""
    for one, other in zip(arrays(actual), arrays(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        eps = np.finfo(one.dtype).eps
        scale = float(np.abs(other).max(initial=0.0))
        np.testing.assert_allclose(one, other, rtol=50 * eps, atol=50 * eps * scale)


def check_by_hand(case: Case, actual: Any, expected: Any) -> None:
    """Fail unless what was written by hand gives what the twin does, to its lesser care."""
    check(case.group, actual, expected, 1e3 * float(np.finfo(case.dtype).eps))


# --- peers ----------------------------------------------------------------------------------------


def contenders(case: Case) -> Callable[..., Iterator[peers.Contender]] | None:
    """Return what yields every library's way of a case from its arguments, if it is written."""
    name, call = case.primitive, f"{case.primitive}.{case.method}"
    if case.method == "vjp" and name in peers.UNARY:
        return partial(peers.unary_vjp, name)
    if call == "power.vjp":
        return peers.power_vjp
    if call == "matmul.vjp" and all(len(shape) > 1 for shape in case.size):
        return peers.matmul_vjp
    if call in reduction_peers.WAYS and (case.method == "vjp" or len(case.size) == 1):
        return lambda x, g=None: reduction_peers.contenders(call, x, x if g is None else g)
    if case.method == "value_and_grad" and name in loss_peers.LOSSES:
        return lambda *model: loss_peers.value_and_grad(loss_peers.Model(name, *model))
    return None


def best_of(library: str, case: Case, arguments: Any, expected: Any) -> peers.Contender:
    """Return a library's fastest way, once all of them compute what the twin does."""
    find = contenders(case)
    assert find is not None
    ways = [way for way in find(*arguments) if way.library == peers.LIBRARIES[library]]
    if not ways:
        pytest.skip(f"{library} has no way to write it")
    for way in ways:
        check(way.name, way.arrays(way.call()), expected, 2e-3 if case.dtype == "float32" else 1e-9)
    seconds = race.medians(race.interleave({way.name: way.call for way in ways}, race.QUICK))
    return min(ways, key=lambda way: seconds[way.name])


# --- every primitive ------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Without the clock there is one test for each primitive, of the first size of all it has."""
    if "some" not in metafunc.fixturenames:
        return
    every = list(cases())
    libraries = [name for name in metafunc.config.getoption("peers").split(",") if name]
    for name in libraries:
        if name not in peers.LIBRARIES or not peers.optional(name):
            raise pytest.UsageError(
                f"--peers: {name} is not installed, or nothing is written in it"
            )
    if libraries:
        peers.set_threads(pb.get_num_threads())
    timed = metafunc.config.getoption("benchmark_enable")
    if not timed:
        first: dict[Any, Case] = {}
        for case in every:
            first.setdefault((case.primitive, case.method, case.dtype), case)
        every = list(first.values())
    tests: dict[str, tuple[list[Case], str]] = {}
    for case in every:
        for contender in (*CONTENDERS[: None if timed else 1], *libraries):
            if contender == "numpy" and case.by_hand is None:
                continue
            if contender in libraries and contenders(case) is None:
                continue
            name = f"{case.group if timed else case.primitive}[{contender}]"
            tests.setdefault(name, ([], contender))[0].append(case)
    metafunc.parametrize(("some", "contender"), tests.values(), ids=tests.keys())


def test_bench(benchmark: Any, some: list[Case], contender: str) -> None:
    if benchmark.enabled:
        (case,) = some
        benchmark.group = case.group
        benchmark.extra_info |= run(case, contender, benchmark)
        return

    @benchmark
    def once() -> None:
        for case in some:
            try:
                run(case, contender, lambda function, *arguments: function(*arguments))
            except BaseException as error:
                error.add_note(case.group)
                raise


def run(case: Case, contender: str, timed: Any) -> dict[str, str]:
    """Check a call and have it `timed`; return what there is to say about it."""
    arguments = case.arguments()
    expected = case.twin(*arguments)
    if contender == "numpy":
        check_by_hand(case, timed(case.by_hand, *arguments), expected)
    elif contender in CONTENDERS:
        function = getattr(case, contender)
        check_twin(function(*arguments), expected)
        check_twin(timed(function, *arguments), expected)
        if contender == "native" and case.by_hand is not None:
            check_by_hand(case, case.by_hand(*arguments), expected)
    else:
        way = best_of(contender, case, arguments, expected)
        timed(way.call)
        return {"way": way.name}
    return {}


@pytest.mark.parametrize("table", ["_ELEMENTWISE", "_REDUCTIONS", "_MAPS", "_LOSSES"])
def test_what_is_not_written_by_hand_follows_from_its_row(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(getattr(pullback.cases, table))
    assert names
    monkeypatch.setattr(pullback.cases, table, {})
    for name in names:
        family = pullback.cases.family.__wrapped__(name)
        for method, by_hand in family.by_hand.items():
            case = Case(name, method, "float64", family.sizes[0])
            arguments = case.arguments()
            if by_hand is not None:
                check_by_hand(case, by_hand(*arguments), case.twin(*arguments))


def test_what_is_far_behind_gets_one_round() -> None:
    called: list[str] = []
    calls = {
        name: lambda name=name: called.append(name) for name in ("ours", "slow", "behind", "near")
    }
    first = {"ours": 0.06, "slow": 3.0, "behind": 0.7, "near": 0.5}
    times = race.interleave(calls, race.QUICK, first)
    assert set(called) == {"ours", "near"}
    assert len(times.pop("ours")) == len(times.pop("near")) > 1
    assert times == {"slow": [3.0], "behind": [0.7]}


def test_what_computes_something_else_is_refused() -> None:
    case = Case("tanh", "value", "float64", (16,))
    with pytest.raises(RuntimeError, match="tanh"):
        check_by_hand(case, np.sin(1.0), np.tanh(1.0))


def test_what_is_wanted_is_compared() -> None:
    labels = [case.label for suite in suites.SUITES for case in suites.cases(suite)]
    assert suites.SUITES.keys() == compare.LIBRARIES.keys()
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
    assert len(first) == 7 * 5
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

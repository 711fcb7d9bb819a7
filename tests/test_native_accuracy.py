"""The accuracy ledger: complete, within the table's bounds, and true at the worst points known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import oracles
import pullback as pb
import pytest
from mpmath import mp, mpf
from oracles import DTYPES
from protocol import dtypes, leaves, on_every_target
from pullback.tables.elementwise import OPS, OpRow

ROOT = Path(__file__).parents[1]
LEDGER = ROOT / "tests" / "accuracy" / "ledger.json"
REMEDY = "build/dev/tests/accuracy/accuracy_sweep full --op {} --ledger tests/accuracy/ledger.json"


class Key(NamedTuple):
    """What the ledger has an entry for."""

    op: str
    dtype: str
    output: str
    target: str


class Entry(NamedTuple):
    """What was measured."""

    ulp: float
    at: list[float]
    samples: int
    exhaustive: bool


def read() -> dict[Key, Entry]:
    entries = {}
    for line in json.loads(LEDGER.read_text(encoding="utf-8")):
        key, entry = (kind(**{f: line.pop(f) for f in kind._fields}) for kind in (Key, Entry))
        assert not line
        assert key not in entries
        entries[key] = entry
    return entries


ENTRIES = read()
MEASURED_TARGETS = sorted({key.target for key in ENTRIES})

rows = pytest.mark.parametrize("row", OPS.values(), ids=OPS.keys())


def outputs(row: OpRow) -> Iterator[tuple[str, float]]:
    """Yield the name of each output, and its bound."""
    yield "value", row.max_ulp[0]
    for i in range(row.nin):
        yield "derivative" if row.nin == 1 else f"derivative{i}", row.max_ulp[1]
    for i in range(len(row.second_derivative_formula)):
        yield "second_derivative" + ("" if row.nin == 1 else str(i)), row.max_ulp[2]


@rows
@dtypes
def test_every_error_is_on_record_and_within_its_bound(row: OpRow, dtype: np.dtype) -> None:
    assert MEASURED_TARGETS
    for target in MEASURED_TARGETS:
        for output, bound in outputs(row):
            entry = ENTRIES.get(Key(row.name, dtype.name, output, target))
            assert entry is not None, f"{output} on {target} unmeasured; " + REMEDY.format(row.name)
            assert entry.ulp <= bound
            assert entry.samples >= (5e5 if "second" in output else 1e6)
            assert entry.exhaustive == (entry.samples == 2**32)
            assert len(entry.at) == (row.nin if entry.ulp > 0 else 0)


def test_nothing_is_on_record_that_is_not_in_the_table() -> None:
    known = {
        Key(row.name, dtype.name, output, target)
        for row in OPS.values()
        for dtype in DTYPES
        for output, _ in outputs(row)
        for target in MEASURED_TARGETS
    }
    assert set(ENTRIES) <= known


@rows
@on_every_target
@dtypes
def test_the_worst_points_known_have_not_become_worse(
    row: OpRow, dtype: np.dtype, target: str
) -> None:
    """At its own worst point no target errs by more than it did; at others' it keeps the bound."""
    for which, (output, bound) in enumerate(outputs(row)):
        exact = oracles.formulas(row)[which]
        for name in MEASURED_TARGETS:
            entry = ENTRIES[Key(row.name, dtype.name, output, name)]
            if entry.ulp == 0:
                continue
            at = [dtype.type(x) for x in entry.at]  # decimals of a float32 are no double
            f = getattr(pb, row.name)
            result = [*leaves(f.value_and_derivative(*at)), *leaves(f.second_derivative(*at))][
                which
            ]
            with mp.workprec(2 * oracles.PRECISION):
                point = [mpf(float(x)) for x in at]
                error = error_at(row, which, result, exact(*point), point)
            limit = entry.ulp if name == target else bound
            assert error <= limit + 1e-9, f"{output} at {at}: {error} ULP, {limit} on record"


def error_at(row: OpRow, which: int, actual: Any, exact: Any, at: list[Any]) -> float:
    """Return the error of an output in ULP."""
    scales = oracles.scales_of(row, which, [np.array([float(x)]) for x in at])
    if scales is not None:
        scale = max(abs(exact), mpf(float(scales[0])))
        return float(abs(mpf(float(actual)) - exact) / oracles.ulp(scale, actual.dtype))
    return oracles.ulp_error(actual, exact, actual.dtype)


def test_the_sweep_understands_every_formula(tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    script = ROOT / "tests" / "accuracy" / "table.py"
    finished = subprocess.run([sys.executable, script, table], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    lines = table.read_text(encoding="utf-8").splitlines()
    for kind in ("op ", "second "):
        assert [line.split()[1] for line in lines if line.startswith(kind)] == list(OPS)
    formulas = sum(len(list(outputs(row))) for row in OPS.values())
    assert sum(line.startswith("formula ") for line in lines) == formulas

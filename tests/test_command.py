"""The command: its tables, its JSON, its exit codes, and that its checks can fail."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pullback as pb
import pytest
from oracles import DTYPES
from pullback import console, selfbench, selfcheck
from pullback.__main__ import main
from pullback.cases import Case
from pullback.tables.elementwise import OPS
from pullback.tables.products import PRODUCTS


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pullback", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_everything_in_one_run() -> None:
    finished = run()
    assert finished.returncode == 0, finished.stdout
    assert finished.stderr == ""  # no progress bar where nobody watches
    for text in (*pb.primitives, pb.backend(), "checks passed", "All is well"):
        assert text in finished.stdout


def test_info_is_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    pb.show_config()
    assert shown == capsys.readouterr().out


def test_console_script() -> None:
    (script,) = entry_points(group="console_scripts", name="pullback")
    assert script.load() is main


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    every = selfbench.benchmarks
    monkeypatch.setattr(selfbench, "benchmarks", lambda *given: every(*given)[:4])
    assert main(["--json", "--dtype", "float32"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["version"] == pb.__version__
    assert {check["primitive"] for check in report["checks"]} == set(pb.primitives)
    assert {timing["call"] for timing in report["timings"]} == {"value", "vjp"}
    assert {timing["dtype"] for timing in report["timings"]} == {"float32"}


def test_bench_of_one_primitive(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "tanh|matmul"]) == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert {timing["name"] for timing in timings} == {"tanh", "matmul"}


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["check", "--dtype", "float32"], ["bench", "tahn"], ["bench", "tanh("]],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: pullback" in capsys.readouterr().err


def test_numpy_backend_checks_itself() -> None:
    finished = run("check", PULLBACK_BACKEND="numpy")
    assert finished.returncode == 0, finished.stdout
    assert "FAILED" not in finished.stdout


# --- the checks checked ---------------------------------------------------------------------------


class Wrong:
    """A primitive, one method of which is off."""

    def __init__(self, primitive: Any, method: str, spoil: Any) -> None:
        self._primitive, self._method, self._spoil = primitive, method, spoil

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        value = self._primitive(*arguments, **options)
        return self._spoil(value) if self._method == "value" else value

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._primitive, name)
        if name != self._method:
            return method
        return lambda *arguments, **options: self._spoil(method(*arguments, **options))


def slightly(result: Any) -> Any:
    return tuple(map(slightly, result)) if isinstance(result, tuple) else result * 1.001


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["value", "derivative", "value_and_derivative", "vjp", "jvp"])
def test_a_method_off_by_a_thousandth_fails(method: str, dtype: np.dtype[Any]) -> None:
    for name in ("tanh", "divide"):
        wrong = Wrong(pb.primitives[name], method, slightly)
        finding = selfcheck.check_elementwise(OPS[name], wrong, dtype)
        assert not finding.ok
        assert any(method in problem for problem in finding.problems)


def test_a_wrong_rule_fails_against_differences() -> None:
    row = OPS["tanh"]
    wrong = dataclasses.replace(row, derivative=lambda x: 1.001 * row.derivative(x))
    finding = selfcheck.check_elementwise(wrong, pb.tanh, np.dtype(np.float64))
    assert any("difference" in problem for problem in finding.problems)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        *((name, "check_product") for name in PRODUCTS),
        *((name, "check_reduction") for name in ("logsumexp", "softmax")),
        ("relu_mse", "check_loss"),
    ],
)
def test_a_wrong_gradient_fails(name: str, check: str) -> None:
    method = "value_and_grad" if name == "relu_mse" else "vjp"
    wrong = Wrong(pb.primitives[name], method, slightly)
    wrong.__dict__["__name__"] = name
    for dtype in DTYPES:
        assert not getattr(selfcheck, check)(wrong, dtype).ok


def test_a_failed_check_gives_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = selfcheck.Measured(3.0, 1.0)
    finding = selfcheck.Finding(name="tanh", dtype="float32", samples=1, value=bad, derivative=bad)
    monkeypatch.setattr(selfcheck, "checks", lambda: [lambda: finding])
    assert main(["check"]) == 1
    assert "FAILED: tanh, float32: value: error 3, bound 1" in capsys.readouterr().out


def test_a_benchmark_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Case, "native", np.sin)
    with pytest.raises(RuntimeError, match="tanh"):
        selfbench._compare(Case("tanh", "value", "float64", (3,)), (np.ones(3),))


def test_worst_error_knows_the_edges() -> None:
    for dtype, wide in zip(DTYPES, (np.float64, np.longdouble), strict=True):
        top, least = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
        actual = np.array([np.inf, 0.0, np.nan, least, top], dtype)
        exact = np.array([np.inf, 0.0, np.nan, least, top], wide)
        assert selfcheck._worst(actual, exact) == 0
        assert selfcheck._worst(-actual, exact) > 1e4
        assert selfcheck._worst(np.array([np.nan], dtype), np.array([1.0], wide)) == np.inf
        assert selfcheck._worst(np.array([1.0], dtype), np.array([np.nan], wide)) == np.inf
        assert selfcheck._worst(np.array([0.0], dtype), np.array([least], wide)) == 1
        assert selfcheck._worst(np.array([np.inf], dtype), np.array([top], wide)) == 1


# --- the console ----------------------------------------------------------------------------------


def test_table_aligns() -> None:
    assert console.table(("op", "ULP"), [("tanh", "0.5"), ("exp", "10.25")]).splitlines() == [
        "op      ULP",
        "----  -----",
        "tanh    0.5",
        "exp   10.25",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("tqdm", [True, False])
def test_progress_on_a_terminal(tqdm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setattr(console, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(console.track([1, 2, 3], "checking")) == [1, 2, 3]
    assert "checking" in terminal.getvalue()
    assert terminal.getvalue().rsplit("\r", 1)[-1].strip() == ""  # leaves nothing behind


def test_no_progress_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    assert list(console.track([1, 2, 3], "checking")) == [1, 2, 3]
    assert stream.getvalue() == ""

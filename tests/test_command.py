"""The command: its tables, its JSON, its exit codes, and that its checks can fail."""

from __future__ import annotations

import dataclasses
import functools
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
from pullback import blas, console, selfbench, selfcheck
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check once, and time little."""
    monkeypatch.setattr(selfcheck, "checks", lambda: CHECKS)
    for name in ("_MIN_ARRAY_BYTES", "_MAX_ARRAY_BYTES"):
        monkeypatch.setattr(selfbench, name, 2**16)
    for name in ("_SECONDS", "_LARGE_SECONDS", "_ALL_SECONDS"):
        monkeypatch.setattr(selfbench, name, 0.0)


CHECKS = [functools.cache(check) for check in selfcheck.checks()]


@pytest.mark.usefixtures("quick")
def test_everything_in_one_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([]) == 0
    shown, errors = capsys.readouterr()
    assert errors == ""  # no progress bar where nobody watches
    for text in (*pb.primitives, pb.backend(), "checks passed", "All is well"):
        assert text in shown
    assert len(shown.splitlines()) < 120
    assert max(map(len, shown.splitlines())) < 150

    benchmarks = selfbench.benchmarks
    monkeypatch.setattr(selfbench, "benchmarks", lambda *given: benchmarks(*given)[:4])
    assert main(["bench"]) == 0  # from the first on, since none is named
    assert "identity" in capsys.readouterr().out
    assert main(["--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("ok") for line in lines) == len(CHECKS)
    assert len(pb.primitives) * 2 == len(CHECKS)


def test_info_is_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    pb.show_config()
    assert shown == capsys.readouterr().out


def test_console_script() -> None:
    (script,) = entry_points(group="console_scripts", name="pullback")
    assert script.load() is main


@pytest.mark.usefixtures("quick")
def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    every = selfbench.benchmarks
    monkeypatch.setattr(selfbench, "benchmarks", lambda *given: every(*given)[:4])
    assert main(["--json", "--dtype", "float32"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["version"] == pb.__version__
    assert {check["primitive"] for check in report["checks"]} == set(pb.primitives)
    assert {timing["call"] for timing in report["timings"]} == {"value", "vjp"}
    assert {timing["dtype"] for timing in report["timings"]} == {"float32"}


@pytest.mark.usefixtures("quick")
def test_bench_of_some_primitives(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "tanh|matmul"]) == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert [timing["name"] for timing in timings] == ["tanh"] * 4 + ["matmul"] * 2
    assert main(["bench", "tanh|matmul"]) == 0  # a few are shown in full
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(("tanh", "matmul"))] == [
        ["tanh", "value"],
        ["tanh", "vjp"],
        ["matmul", "vjp"],
        ["matmul", "vjp"],
    ]


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
        selfbench.Benchmark(selfbench.measure_limits(), "float64", "tanh", "value", (3,))()


def settled(*speed_ups: float) -> tuple[float, int]:
    """Return what is shown of a call that was measured so, and how often it was measured."""
    measured = iter(speed_ups)

    def benchmark() -> selfbench.Timing:
        return selfbench.Timing(
            name="tanh",
            call="vjp",
            size="16",
            rate=1.0,
            unit="GB/s",
            seconds=1.0,
            numpy_seconds=next(measured),
            share=None,
        )

    (shown,) = selfbench.settled([benchmark], console.track)
    return shown.speed_up, len(speed_ups) - len(list(measured))


def test_outliers_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(2.1, 2.0, 9.0) == (2.0, 2)
    assert settled(122.0, 2.0, 2.1, 1.9, 2.2, 9.0) == (2.1, 5)
    assert settled(2.0, 0.1, 2.1, 1.9, 2.2, 9.0) == (2.0, 5)
    monkeypatch.setattr(selfbench, "_ALL_SECONDS", 0.0)
    assert settled(122.0, 2.0) == (122.0, 1)


def blas_threads() -> list[int]:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    return [
        library["num_threads"]
        for library in threadpoolctl.threadpool_info()
        if library["internal_api"] == "openblas" and "numpy" in library["filepath"]
    ]


def test_numpy_has_the_better_number_of_blas_threads() -> None:
    before = blas_threads()
    seen = []
    contender = selfbench._Contender(lambda n: seen.append((n, blas_threads())), (7,), 3)
    assert contender.seconds() > 0
    assert seen == [(7, [3] * len(before))]
    assert blas_threads() == before
    with pytest.raises(RuntimeError), blas.threads(3) as can_be_set:  # noqa: PT012
        assert can_be_set == bool(before)
        raise RuntimeError
    assert blas_threads() == before
    with blas.threads(None):
        assert blas_threads() == before


def test_a_blas_without_threads_to_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = blas_threads()
    monkeypatch.setattr(blas, "_function", lambda name: None)
    with blas.threads(3) as can_be_set:
        assert not can_be_set
        assert blas_threads() == before


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
    assert console.in_two("op\n--\nexp\nlog\nsin").splitlines() == [
        "op    op",
        "--    --",
        "exp    sin",
        "log",
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

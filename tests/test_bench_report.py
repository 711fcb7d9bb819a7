"""The report beside other libraries: what it writes, that it goes on, and what it refuses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from pullback.__main__ import main
from pullback.bench import environment, figures, page, peers, race, report, suites
from pullback.config import native

LIMITED = ["limits"] * (native is not None)
SHOWN = ["speed", "sizes", "fits", "digits", *LIMITED]
FILES = {"report.json", "report.md"} | {
    f"{name}.{ending}" for name in (*SHOWN, "headlines") for ending in ("svg", "png")
}


def kept(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def run(folder: Path, **options: Any) -> int:
    return report.run(folder, **{"quick": True, "threads": 1, "say": lambda text: None} | options)


@pytest.fixture(scope="module", autouse=True)
def harmless() -> Iterator[None]:
    """Leave this process's threads as they are, and do not measure the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "set_threads", lambda n: None)
        patch.setattr(report.selfbench, "measure_limits", lambda: LIMITS)
        yield


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick report, of all that is installed."""
    folder = tmp_path_factory.mktemp("report") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "HEADLINES", {label: label for _, label in labels(QUICK)})
        patch.setattr(figures, "close", DRAWN.append)
        assert run(folder) == 0
    return folder


DRAWN: list[Any] = []
QUICK = report.QUICK_CASES
LIMITS = report.selfbench.Limits(read=9.0, copy=8.0, flops={"float32": 7.0, "float64": 6.0})


def labels(chosen: report.Chosen) -> list[tuple[str, str]]:
    return [(suite, case.label) for suite, case in report._chosen(chosen, quick=chosen is QUICK)]


def contender(library: str, value: float, calls: list[str] | None = None) -> peers.Contender:
    def call() -> Any:
        if calls is not None:
            calls.append(library)
        return value

    return peers.Contender(library, "", call, lambda result: (np.asarray(result),))


def fake(label: str, *contenders: peers.Contender) -> tuple[str, suites.Case]:
    def measure(effort: race.Effort) -> race.Record:
        return race.race(label, contenders, (np.asarray(1.0),), 1e-9, effort)

    return "chain", suites.Case(label, measure)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three cases in place of all; return who was called."""
    calls: list[str] = []
    cases = [
        fake(f"case {i}", contender("pullback", 1.0, calls), contender("NumPy", 1.0, calls))
        for i in range(3)
    ]
    monkeypatch.setattr(report, "_chosen", lambda *given, **options: iter(cases))
    monkeypatch.setattr(figures, "save", lambda *given: None)
    return calls


def test_all_is_written(quick: Path) -> None:
    assert {path.name for path in quick.iterdir()} == FILES
    assert max(path.stat().st_size for path in quick.iterdir()) < 100_000
    found = kept(quick)
    assert found["complete"]
    assert found["left_out"] == {}
    assert [(r["suite"], r["case"]) for r in found["records"]] == labels(QUICK)
    text = (quick / "report.md").read_text(encoding="utf-8")
    assert text == page.markdown(found)  # it follows from what is kept
    assert "its figures mean nothing" in text
    for record in found["records"]:
        assert record["case"].rpartition(": ")[2] in text
    for name in SHOWN:
        assert f"({name}.svg)" in text
        assert "<text" in (quick / f"{name}.svg").read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick")
def test_nothing_is_cut() -> None:
    assert len(DRAWN) == len(SHOWN) + 1
    while DRAWN:
        figure = DRAWN.pop()
        inside, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert 0 < inside.x0 < inside.x1 < width
        assert 0 < inside.y0 < inside.y1 < height
        plt.close(figure)


def test_a_second_run_measures_nothing(three: list[str], tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    assert set(three) == {"pullback", "NumPy"}
    three.clear()
    before = kept(tmp_path)
    assert run(tmp_path) == 0
    assert three == []
    assert kept(tmp_path) == before


def test_a_run_that_is_cut_off_goes_on(
    three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    save = report._Kept._save

    def cut(self: Any) -> None:
        save(self)
        written.append(len(self.report["records"]))
        if written[-1] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report._Kept, "_save", cut)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    first = kept(tmp_path)
    assert [record["case"] for record in first["records"]] == ["case 0", "case 1"]
    assert not first["complete"]
    (tmp_path / "report.new").write_text("{ cut off in the midd", encoding="utf-8")
    three.clear()
    assert run(tmp_path) == 0
    assert three
    then = kept(tmp_path)
    assert then["records"][:2] == first["records"]
    assert [record["case"] for record in then["records"]] == ["case 0", "case 1", "case 2"]
    assert then["complete"]


def test_outliers_are_measured_again(
    three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spreads = iter([1.1, 3.0, 1.2, 1.3, 1.05])  # the second's three runs: 3, 1.3, 1.05
    monkeypatch.setattr(report, "_about", lambda **given: ABOUT | {"quick": False})
    monkeypatch.setattr(report, "EFFORT", report.QUICK)
    monkeypatch.setattr(report.digits, "digits", dict)
    measure = report._Kept._run

    def spread(self: Any, *given: Any) -> Any:
        return {**(measure(self, *given) or {}), "spread": next(spreads)}

    monkeypatch.setattr(report._Kept, "_run", spread)
    assert run(tmp_path, quick=False) == 0
    assert [(r["spread"], r["runs"]) for r in kept(tmp_path)["records"]] == [
        (1.1, 1),
        (1.05, 3),
        (1.2, 1),
    ]


ABOUT = report._about(quick=True, threads=1)


@pytest.mark.usefixtures("three")
def test_changes_are_shown(tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    old = kept(tmp_path)
    old["records"][0]["pullback"] *= 3
    old["records"][1]["case"] = "case of old"
    (tmp_path / "old.json").write_text(json.dumps(old), encoding="utf-8")
    said: list[str] = []
    assert run(tmp_path, against=tmp_path / "old.json", say=said.append) == 0
    for text in ("\n".join(said), (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "3.00 x" in text
        assert "case of old" in text
        assert "Since pullback" in text or text == "\n".join(said)
    changed = [row[0] for row in report.changes(old, kept(tmp_path))]
    assert changed == ["case 0", "case 1", "case of old"]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_ = peers.optional
    absent = ("torch", "jax", "numba", "numexpr", "sklearn", "scipy", "matplotlib", "glum")
    monkeypatch.setattr(peers, "optional", lambda name: None if name in absent else import_(name))
    chosen = ["chain 16 float64", "poisson 1000x20 float64 csr", "fit logistic dense 1000"]
    every = [one for one in report._chosen(QUICK, quick=True) if one[1].label in chosen]
    monkeypatch.setattr(report, "_chosen", lambda *given, **options: iter(every))
    said: list[str] = []
    assert run(tmp_path, say=said.append) == 0
    found = kept(tmp_path)
    assert [record["case"] for record in found["records"]] == chosen[:1]
    assert found["left_out"] == {
        chosen[1]: "scipy not installed",
        chosen[2]: "sklearn not installed",
    }
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for name in ("PyTorch", "JAX", "Numba", "numexpr", "scikit-learn", "glum"):
        assert name in text.split("left out: ")[1].splitlines()[0]
    assert "Matplotlib is not installed" in said[-2]


def test_who_computes_something_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "save", lambda *given: None)
    right, off = contender("pullback", 1.0), contender("NumPy", 1.01)
    for ours, theirs in ((right, off), (off._replace(library="pullback"), right)):
        cases = [fake("a case", ours, theirs._replace(library="NumPy"))]
        monkeypatch.setattr(report, "_chosen", lambda *given, c=cases, **options: iter(c))
        folder = tmp_path / str(ours is right)
        assert run(folder) == 1
        found = kept(folder)
        if ours is right:
            assert "0.01" in found["records"][0]["wrong"]["NumPy"]
        else:
            assert "pullback computes" in found["left_out"]["a case"]


@pytest.mark.parametrize(
    ("actual", "text"),
    [([1.0, 2.0], ""), ([1.0, np.nan], "nan"), ([1.0, 2.1], "0.1"), ([1.0], "shape")],
)
def test_results_are_judged(actual: list[float], text: str) -> None:
    how = race.wrong((np.array(actual),), (np.array([1.0, 2.0]),), 1e-9)
    assert text in how
    assert bool(how) == bool(text)


@pytest.mark.usefixtures("three")
def test_another_machine_s_report_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path) == 0
    found = kept(tmp_path)
    found["about"]["cpus"] = 96
    (tmp_path / "report.json").write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.setattr(environment, "is_set", lambda threads: True)
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "--quick", "--threads", "1", "--report", str(tmp_path)])
    assert exit_.value.code == 2
    assert "cpus 96" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "tanh", "--report", str(tmp_path)])
    assert "not allowed with argument NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"about": ', "is damaged"), ("[]", "is not a report"), ('{"about": {}}', "is not a report")],
)
def test_a_file_that_is_no_report_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    for given in ({}, {"against": path}):
        with pytest.raises(ValueError, match=f"report.json {message}"):
            run(tmp_path if not given else tmp_path / "new", **given)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("threads", ["0", "-1", "1025", "many", ""])
def test_wrong_numbers_of_threads(threads: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", f"--threads={threads}", "--report", "somewhere"])
    assert exit_.value.code == 2
    assert f"--threads: {threads!r} is not a whole number" in capsys.readouterr().err


def test_the_environment_is_set_before_numpy_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert not environment.is_set(1)
    commands: list[Any] = []

    def start(command: list[str], *, check: bool) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(environment.subprocess, "run", start)
    assert main(["bench", "--threads", "1", "--report", "somewhere"]) == 7
    monkeypatch.undo()
    ((python, path, script, *given),) = commands
    assert given == ["1", "bench", "--threads", "1", "--report", "somewhere"]
    shown = subprocess.run(
        [python, path, script, "1", "info", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(shown.stdout)["config"]["threads"] == 1


def test_every_case_and_library_is_known() -> None:
    every = labels(report.CASES)
    assert len(set(every)) == len(every) > 40
    assert set(figures.HEADLINES) <= {label for _, label in every}
    assert {"pullback", *page.PEERS} == figures.STYLES.keys()
    assert {suite for suite, _ in every} == page.SUITES.keys()

"""A report: its cases, the file that keeps them, and the differences between two reports.

The results are in ``report.json``, which is written after each case. The page and the figures
follow from it. A run that was stopped continues from there.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

from pullback import selfbench
from pullback.bench import digits, page, peers, suites
from pullback.bench.race import Effort, Record
from pullback.config import show_config
from pullback.console import table, track

__all__ = ["CASES", "QUICK_CASES", "changes", "run"]

EFFORT: Final = Effort(rounds=9, round_seconds=3e-3, case_seconds=3)
QUICK: Final = Effort(rounds=2, round_seconds=1e-4, case_seconds=0.1, pause=1e-4)
SPREAD: Final = 1.25  # third quartile by first, of rounds: a case above it is measured again
MORE: Final = 2  # times at most
AGAIN_SECONDS: Final = 60.0  # after which nothing is measured again
CHANGED: Final = 1.1  # from here on, a difference between two reports is shown

_KEYS: Final = {"about", "load", "records", "left_out", "complete"}

Chosen: TypeAlias = Mapping[str, tuple[str, ...] | None]  # by suite, labels; None for all of them

CASES: Final[Chosen] = {
    "elementwise": (
        *(
            f"{op}.vjp {rest}"
            for op in ("gelu", "tanh", "softplus")
            for rest in (
                "1000 float64",
                "100000 float64",
                "5000000 float64 out=",
                "5000000 float32 out=",
            )
        ),
        "multiply.vjp (100000,100)x(100,) float64",
        "multiply.vjp (100000,100)x(100,) float32 out=",
    ),
    "reductions": (
        *(
            f"{call} 1000x1000 {dtype}"
            for call in ("logsumexp.value_and_grad", "softmax.vjp", "layer_norm.vjp")
            for dtype in ("float64", "float32")
        ),
    ),
    "matmul": (
        "matmul.vjp 16x16x16 float64",
        "matmul.vjp 256x256x256 float64",
        "matmul.vjp 1024x1024x1024 float64",
        "matmul.vjp 1024x1024x1024 float32",
        "matmul.vjp 10000 x 8x8x8 float64",
    ),
    "layers": (
        "linear.vjp 100x10x10 float64",
        "linear.vjp 1000x256x256 float64",
        "linear.vjp 10000x256x256 float64",
        "linear.vjp 10000x256x256 float32",
    ),
    "chain": ("chain 1000 float64", "chain 1000000 float64", "chain 1000000 float32"),
    "losses": (
        "logistic 100x10 float64",
        "logistic 10000x100 float64",
        "logistic 1000000x100 float32",
        "poisson 10000x100 float64",
        "poisson 1000000x10 float64",
        "logistic 1000000x1000 float64 csr",
        "poisson 1000000x1000 float64 csr",
        "softmax_cross_entropy 10000x100 float64 K=10",
    ),
    "sizes": None,
    "fits": ("fit logistic dense 500000", "fit poisson one-hot 600000"),
}
QUICK_CASES: Final[Chosen] = {
    "elementwise": ("tanh.vjp 16 float64",),
    "reductions": ("softmax.vjp 100x10 float64",),
    "matmul": ("matmul.vjp 16x16x16 float64",),
    "layers": ("linear.vjp 100x10x10 float64",),
    "chain": ("chain 16 float64",),
    "losses": ("logistic 100x10 float64", "poisson 1000x20 float64 csr"),
    "sizes": None,
    "fits": ("fit logistic dense 1000",),
}


def run(
    folder: Path,
    *,
    quick: bool,
    threads: int,
    against: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure what is not in the folder yet, then write the page and the figures there.

    Parameters
    ----------
    folder : Path
        Made if need be.
    quick : bool
        Few and small cases, to see that it works.
    threads : int
        Of every library.
    against : Path, optional
        The ``report.json`` to compare with.
    say : callable, default print

    Returns
    -------
    int
        The exit code: 1 if a case failed or a library computed something else, else 0.
    """
    old = None if against is None else _read(against)
    folder.mkdir(parents=True, exist_ok=True)
    peers.set_threads(threads)
    kept = _Kept(folder / "report.json", _about(quick=quick, threads=threads))
    kept.measure(QUICK_CASES if quick else CASES, QUICK if quick else EFFORT, say)
    report = kept.report
    text = page.markdown(report)
    if old is not None:
        found = changes(old, report)
        text += "\n" + page.against(old, found)
        say(table(page.CHANGE, page.change_rows(found)) if found else page.UNCHANGED)
    (folder / "report.md").write_text(text, encoding="utf-8")
    if peers.optional("matplotlib"):
        from pullback.bench import figures

        figures.save(report, folder)
    else:
        say("Without figures: Matplotlib is not installed.")
    say(f"{folder / 'report.md'}: {len(report['records'])} cases.")
    failed = {label for label, why in report["left_out"].items() if "Error" in why}
    return 1 if failed or any(record["wrong"] for record in report["records"]) else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(report, dict) or not report.keys() >= _KEYS:
        raise ValueError(f"{path} is not a report; it lacks some of {', '.join(sorted(_KEYS))}")
    return report


def _about(*, quick: bool, threads: int) -> dict[str, Any]:
    """Return what has to be the same for two runs to be one report."""
    config: Mapping[str, Any] = show_config("dict")
    return {
        "quick": quick,
        "threads": threads,
        "machine": platform.machine(),
        "cpus": config["cpus"],
        "backend": config["backend"],
        "target": config["target"],
        "python": config["Python"],
        "versions": peers.versions(),
    }


def _load() -> float:
    """Return how many processes wait for each CPU of the machine."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return round(load / (os.cpu_count() or 1), 2)


class _Kept:
    """A report as it grows, kept in a file that is whole at any time."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self.report: dict[str, Any] = {
            "about": about,
            "load": _load(),
            "records": [],
            "left_out": {},
            "complete": False,
        }
        if not path.exists():
            return
        report = _read(path)
        differing = [key for key, value in about.items() if report["about"].get(key) != value]
        if differing:
            was = ", ".join(f"{key} {report['about'].get(key)}" for key in differing)
            now = ", ".join(f"{key} {about[key]}" for key in differing)
            raise ValueError(
                f"{path} cannot be continued: it was measured with {was}; here it is {now}. Name "
                "another directory, or delete the file"
            )
        if not report["complete"]:
            report["load"] = max(report["load"], self.report["load"])
        self.report = report

    def _save(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self.report, indent=1), encoding="utf-8")
        new.replace(self._path)

    def measure(self, chosen: Chosen, effort: Effort, say: Callable[[str], None]) -> None:
        """Measure what there is not yet; then again, later, where rounds were far apart."""
        report, quick = self.report, self.report["about"]["quick"]
        if report["complete"]:
            return
        if "limits" not in report:
            report["limits"] = asdict(selfbench.measure_limits())
            self._save()
        if "digits" not in report:
            report["digits"] = digits.digits(**({"bins": 8, "per_bin": 50} if quick else {}))
            self._save()
        every = list(_chosen(chosen, quick=quick))
        done = {record["case"] for record in report["records"]}
        for suite, case in track([one for one in every if one[1].label not in done], "racing"):
            record = self._run(case, effort)
            if record is not None:
                report["records"].append({"suite": suite, "runs": 1, **record})
                if not sys.stderr.isatty():  # where a bar is shown instead
                    say(page.line(record))
            self._save()
        self._repeat({case.label: case for _, case in every}, effort)
        report["complete"] = True
        self._save()

    def _run(self, case: suites.Case, effort: Effort) -> Record | None:
        """Race, or say what kept it from being run."""
        left_out = self.report["left_out"]
        left_out.pop(case.label, None)
        if missing := case.missing():
            left_out[case.label] = missing
            return None
        try:
            return case.run(effort)
        except Exception as error:
            left_out[case.label] = f"{type(error).__name__}: {error}"
            return None

    def _repeat(self, cases: Mapping[str, suites.Case], effort: Effort) -> None:
        """Measure outliers again; of its runs, each counts with the one of the least spread."""
        end = time.perf_counter() + (0 if self.report["about"]["quick"] else AGAIN_SECONDS)
        records = self.report["records"]
        for more in range(MORE):
            again = [
                i
                for i, record in enumerate(records)
                if record["spread"] > SPREAD and record["runs"] == 1 + more
            ]
            for i in track(again, "again"):
                if time.perf_counter() > end:
                    return
                record = self._run(cases[records[i]["case"]], effort)
                if record is not None and record["spread"] < records[i]["spread"]:
                    records[i] |= record
                records[i]["runs"] += 1
                self._save()


def _chosen(chosen: Chosen, *, quick: bool) -> Iterator[tuple[str, suites.Case]]:
    for suite, labels in chosen.items():
        by_label = {case.label: case for case in suites.cases(suite, quick=quick)}
        for label in labels or by_label:
            yield suite, by_label[label]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return case, seconds before and seconds now, where they differ; NaN where there are none."""
    before, after = (
        {record["case"]: record["pullback"] for record in report["records"]}
        for report in (old, new)
    )
    labels: Iterable[str] = dict.fromkeys([*after, *before])
    rows = [
        (label, before.get(label, float("nan")), after.get(label, float("nan"))) for label in labels
    ]
    return [row for row in rows if not 1 / CHANGED < row[2] / row[1] < CHANGED]

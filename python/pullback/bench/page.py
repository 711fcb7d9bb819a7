"""A report as a page: Markdown, from what is kept of it alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pullback.bench.peers import LIBRARIES
from pullback.bench.race import Record

__all__ = [
    "CHANGE",
    "PEERS",
    "against",
    "change_rows",
    "human",
    "line",
    "markdown",
    "shown",
    "times",
]

Report = Mapping[str, Any]

PEERS: Final = ("NumPy", "SciPy", *LIBRARIES.values())
SUITES: Final[Mapping[str, tuple[str, str]]] = {  # title, and what is to be known
    "elementwise": (
        "Elementwise operations",
        "`op.vjp n`: the cotangent `g * op'(x)` of n elements. With `out=`, all who can write into "
        "an array that is there already. GB/s counts x, g and the result; the limit is a copy.",
    ),
    "reductions": (
        "Reductions",
        "Along the last axis of a matrix: value and gradient of logsumexp, cotangents of softmax "
        "and layer_norm.",
    ),
    "matmul": (
        "Matrix products",
        "Both cotangents of `A @ B`, m x k x n, or of a stack of products. The limit is the peak "
        "of fused multiply-adds.",
    ),
    "layers": ("Linear layers", "The three cotangents of `relu(X @ W + b)`, m x k x n."),
    "chain": ("A chain", "The value and the cotangent of `tanh(exp(-x*x))`."),
    "losses": (
        "Losses of linear models",
        "The mean loss and its gradients by the weights and the bias. `csr` is sparse, with 1 % "
        "of the elements stored. GB/s counts one reading of X; the limit is a plain read of X.",
    ),
    "sizes": (
        "From one element to a hundred million",
        "Seconds of one call of `tanh.vjp` in float32, into an array that is there already.",
    ),
    "fits": (
        "Time to fit",
        "From the data to a gradient of 1e-8 of the first one, with the same penalty. A library "
        "counts with its fastest solver that gets there.",
    ),
}


def markdown(report: Report, folder: str = "") -> str:
    """Return the page; `folder` is where the figures are, with its slash."""
    return "\n".join([line for part in _parts(report, folder) for line in (*part, "")])


def shown(report: Report) -> dict[str, Any]:
    """Return what each figure shows; there is none of nothing."""
    records = report["records"]
    return {
        "speed": [r for r in records if r["suite"] not in ("sizes", "fits") and r["peers"]],
        "limits": [r for r in records if r["limit"] is not None],
        "sizes": [r for r in records if r["suite"] == "sizes"],
        "fits": [r for r in records if r["suite"] == "fits" and r["peers"]],
        "digits": report.get("digits"),
    }


def _parts(report: Report, folder: str) -> Iterator[list[str]]:
    figures = shown(report)
    yield ["# Benchmarks"]
    yield from _about(report)
    if figures["speed"]:
        yield ["## Speed"]
        yield [
            "A mark is the time of a library as a multiple of that of pullback: to the right of "
            "the line it is slower. The bar ends at the fastest of them."
        ]
        yield [_figure(folder, "speed", "times of other libraries beside those of pullback")]
    if figures["limits"]:
        yield ["What is reached of the limits of the machine:"]
        yield [_figure(folder, "limits", "GB/s and GFLOP/s beside the limits")]
    for suite, (title, about) in SUITES.items():
        own = [record for record in report["records"] if record["suite"] == suite]
        if not own:
            continue
        yield [f"## {title}" if suite in figures else f"### {title}"]
        yield [about]
        if figures.get(suite):
            yield [_figure(folder, suite, title.lower())]
        yield _table(own)
    if figures["digits"]:
        yield from _digits(figures["digits"], folder)
    if report["left_out"]:
        yield ["## Left out"]
        yield [f"- {label}: {why}" for label, why in report["left_out"].items()]
    if wrong := [(r, name) for r in report["records"] for name in r["wrong"]]:
        yield ["## Wrong, and so not timed"]
        yield [f"- {r['case']}, {name}: {r['wrong'][name]}" for r, name in wrong]


def _about(report: Report) -> Iterator[list[str]]:
    about = report["about"]
    if about["quick"]:
        yield ["**A quick run, to see that it works: its figures mean nothing.**"]
    if (load := report["load"] / about["cpus"]) > 0.5:
        yield [f"**The machine was busy: a load of {load:.1f} for each CPU before the run.**"]
    names = {"numpy": "NumPy", "scipy": "SciPy", **LIBRARIES}
    versions = about["versions"]
    yield [
        f"pullback {versions['pullback']} ({about['backend']}"
        + (f", {about['target']}" if about["target"] else "")
        + f") on {about['machine']} with {about['cpus']} CPUs, {about['threads']} threads for "
        f"every library, Python {about['python']}. Beside it: "
        + ", ".join(f"{names.get(n, n)} {v}" for n, v in versions.items() if n != "pullback")
        + "."
    ]
    if absent := [names[name] for name in names if name not in versions]:
        yield [f"Not installed, and so left out: {', '.join(absent)}."]
    limits = report.get("limits")
    if limits and limits["copy"]:
        flops = limits["flops"]
        yield [
            f"Limits of the machine, as measured: read {limits['read']:.3g} GB/s, copy "
            f"{limits['copy']:.3g} GB/s, multiply-adds {flops['float64']:.3g} GFLOP/s in float64 "
            f"and {flops['float32']:.3g} in float32."
        ]
    yield [
        "Each library computes the same the way its experts write it, compiled and warm, in "
        "several ways where there are several; its fastest counts. Results are checked before "
        "anything is timed. Rounds go through all of them in turn, after a pause in which idle "
        "threads fall asleep; times are medians over the rounds. Cases whose rounds were far "
        "apart were measured again. `python -m pullback bench --report DIR` makes this page."
    ]


def _figure(folder: str, name: str, about: str) -> str:
    return f"![{about}]({folder}{name}.svg)"


def _table(records: Sequence[Record]) -> list[str]:
    libraries = [name for name in PEERS if any(name in record["peers"] for record in records)]
    rates = any(_rate(record) for record in records)
    shares = any(record["share_of_limit"] for record in records)
    header = ["case", "pullback", *libraries, "fastest peer"]
    header += ["rate"] * rates + ["of limit"] * shares
    rows = []
    for record in records:
        cells = [record["case"].rpartition(": ")[2], human(record["pullback"])]
        cells += [human(record["peers"].get(name)) for name in libraries]
        cells.append(ratio(record))
        cells += [_rate(record) or "-"] * rates
        share = record["share_of_limit"]
        cells += ["-" if share is None else f"{share:.0%}"] * shares
        rows.append(cells)
    return _lines(header, rows)


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def _rate(record: Record) -> str:
    for key, unit in (("gigaflops_per_second", "GFLOP/s"), ("gigabytes_per_second", "GB/s")):
        if record[key] is not None:
            return f"{record[key]:.3g} {unit}"
    return ""


def _digits(found: Mapping[str, Any], folder: str) -> Iterator[list[str]]:
    yield ["## Digits"]
    yield [
        "The largest error of derivatives in float32, in ULP: units in the last place of the exact "
        "derivative, which float64 gives from formulas that keep their digits. At 2^24 (1.7e7) no "
        "digit is right. Derivatives below the normal numbers are left out."
    ]
    yield [_figure(folder, "digits", "errors of derivatives over x")]
    libraries = [name for name in next(iter(found.values())) if name != "x"]
    rows = [
        [f"{name}'", *(f"{max(errors[library]):.3g}" for library in libraries)]
        for name, errors in found.items()
    ]
    yield _lines(["largest error in ULP", *libraries], rows)


def ratio(record: Record) -> str:
    """Return the fastest peer, and how many times pullback's time it takes."""
    if record["ratio"] is None:
        return "-"
    return f"{record['best_peer']}, {times(record['ratio'])}"


def times(factor: float) -> str:
    """Return a factor in some three digits."""
    return f"{factor:.2f} x" if factor < 10 else f"{factor:.0f} x"


def human(seconds: float | None) -> str:
    """Return a time in three digits."""
    if seconds is None or math.isnan(seconds):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def line(record: Record) -> str:
    """Return a case in one line, for who waits."""
    return f"{record['case']:46} {human(record['pullback']):>8}   {ratio(record)}"


CHANGE: Final = ("case", "before", "now", "speed-up")


def change_rows(changes: Sequence[tuple[str, float, float]]) -> list[list[str]]:
    """Return cells of what `report.changes` finds."""
    return [
        [
            label,
            human(before),
            human(now),
            "-" if math.isnan(before / now) else times(before / now),
        ]
        for label, before, now in changes
    ]


def against(old: Report, changes: Sequence[tuple[str, float, float]]) -> str:
    """Return the section of what has changed since another report."""
    lines = [f"## Since pullback {old['about']['versions']['pullback']}", ""]
    lines += _lines(CHANGE, change_rows(changes)) if changes else ["Nothing has changed by more."]
    return "\n".join([*lines, ""])

"""A report's figures. Marks, hatches and lightness tell libraries apart in grey, too."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from pullback.bench.digits import FUNCTIONS, NONE_LEFT
from pullback.bench.page import PEERS, shown, times
from pullback.bench.race import Record

__all__ = ["HEADLINES", "SETTINGS", "close", "draw", "fits", "save", "save_svg"]

Report = Mapping[str, Any]


class Style(NamedTuple):
    """How a library is drawn."""

    colour: str
    marker: str
    line: Any
    hatch: str = ""


STYLES: Final[Mapping[str, Style]] = {
    "pullback": Style("#12355b", "D", "-"),
    "NumPy": Style("#f2c14e", "o", (0, (1, 1)), "--"),
    "SciPy": Style("#f7e0a3", "<", (0, (1, 2)), "--"),
    "PyTorch": Style("#d1495b", "^", (0, (4, 1.5)), "//"),
    "JAX": Style("#66b3d9", "s", (0, (4, 1, 1, 1)), "\\\\"),
    "Numba": Style("#3a7d44", "v", (0, (6, 2)), "|"),
    "numexpr": Style("#c9a0dc", "P", (0, (2, 1)), "+"),
    "autograd": Style("#8d8d8d", "X", (0, (3, 1, 1, 1, 1, 1)), "x"),
    "scikit-learn": Style("#f08a4b", "h", (0, (5, 1)), "//"),
    "glum": Style("#d8cbe8", "*", (0, (1, 3)), "\\\\"),
}
SETTINGS: Final = {
    "svg.hashsalt": "pullback",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.15,  # text is not as wide in all formats
}
FASTER: Final = "#c8d6e5"  # pullback, than all others
SLOWER: Final = "#f3cfc6"
LIMIT: Final = "#e8871e"

# The rows of the figure for the README.
HEADLINES: Final[Mapping[str, str]] = {
    "tanh.vjp 1000 float64": "tanh backward, 1000",
    "gelu.vjp 100000 float64": "gelu backward, 100 000",
    "softplus.vjp 5000000 float32 out=": "softplus backward, 5 million float32",
    "multiply.vjp (100000,100)x(100,) float64": "broadcast product backward",
    "layer_norm.vjp 1000x1000 float32": "layer_norm backward, 1000 x 1000 float32",
    "matmul.vjp 10000 x 8x8x8 float64": "10 000 products 8 x 8 backward",
    "matmul.vjp 1024x1024x1024 float64": "product 1024 x 1024 backward",
    "chain 1000000 float64": "tanh(exp(-x*x)) and backward",
    "logistic 100x10 float64": "logistic gradient, 100 x 10",
    "logistic 1000000x100 float32": "logistic gradient, 1 million x 100 float32",
    "poisson 1000000x1000 float64 csr": "Poisson gradient, sparse",
    "fit poisson one-hot 600000": "Poisson regression, fit",
}


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    return plt


def draw(report: Report) -> dict[str, Any]:
    """Return figures by name, of what the report has."""
    plt = _pyplot()
    data = shown(report)
    headlines = {label: r for label in HEADLINES for r in report["records"] if r["case"] == label}
    drawn: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "speed": (speed, {record["case"]: record for record in data["speed"]}),
        "headlines": (speed, {HEADLINES[label]: r for label, r in headlines.items() if r["peers"]}),
        "limits": (limits, data["limits"]),
        "sizes": (sizes, data["sizes"]),
        "fits": (fits, data["fits"]),
        "digits": (digits, data["digits"]),
    }
    with plt.rc_context(SETTINGS):
        return {name: of(given) for name, (of, given) in drawn.items() if given}


def save(report: Report, folder: Path, *, png: bool = True) -> None:
    """Write all figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in draw(report).items():
        with _pyplot().rc_context(SETTINGS):
            save_svg(figure, folder / f"{name}.svg")
            if png:
                _save_png(figure, folder / f"{name}.png")
        close(figure)


def close(figure: Any) -> None:
    """Let a figure go."""
    _pyplot().close(figure)


def save_svg(figure: Any, path: Path) -> None:
    """Write a figure with two decimals of a point."""
    stream = StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = re.sub("<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), stream.getvalue())
    path.write_text(text, encoding="utf-8")


def _save_png(figure: Any, path: Path) -> None:
    """Write it with a palette; what draws figures depends on Pillow."""
    from PIL import Image

    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    with Image.open(stream) as image:
        image.convert("RGB").quantize(256).save(path, optimize=True)


def _legend(figure: Any, libraries: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    figure.legend(
        [Line2D([], [], ls="", ms=7.5, **_mark(name)) for name in libraries],
        libraries,
        loc="outside upper center",
        ncols=min(5, len(libraries)),
        columnspacing=1.2,
        handletextpad=0.2,
    )


def _mark(library: str) -> dict[str, Any]:
    style = STYLES[library]
    return {"color": style.colour, "marker": style.marker, "mec": "black", "mew": 0.5}


def _line(library: str) -> dict[str, Any]:
    style = STYLES[library]
    width = 2.2 if library == "pullback" else 1.4
    return {"color": style.colour, "ls": style.line, "lw": width, "label": library}


def _present(records: Sequence[Record]) -> list[str]:
    return [name for name in PEERS if any(name in record["peers"] for record in records)]


def _rows(axes: Any, names: Sequence[str]) -> None:
    """Name rows, from the top."""
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.88", lw=0.6)
    axes.set_axisbelow(True)


def _beside(axes: Any, at: float, text: str) -> None:
    """Write to the right of the axes, in row `at`."""
    axes.annotate(
        text,
        (1, at),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )


def _handles(axes: Any) -> dict[str, Any]:
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def _logarithmic(axis: Any) -> None:
    """Label powers of ten as numbers, and 2 and 5 where there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 500 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def speed(rows: Mapping[str, Record]) -> Any:
    """Draw times as multiples of pullback's: a bar to the fastest, a mark for each library."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 0.27 * len(rows) + 1.3))
    axes.set_xscale("log")
    records = list(rows.values())
    for at, record in enumerate(records):
        ratio = record["ratio"]
        axes.barh(at, ratio - 1, 0.62, left=1, color=FASTER if ratio > 1 else SLOWER, zorder=1)
        _beside(axes, at, times(ratio))
        if record["suite"] != records[max(0, at - 1)]["suite"]:
            axes.axhline(at - 0.5, color="0.7", lw=0.6)
    for library in _present(records):
        marks = [
            (record["peers"][library] / record["pullback"], at)
            for at, record in enumerate(records)
            if library in record["peers"]
        ]
        axes.plot(*zip(*marks, strict=True), ls="", ms=7.5, zorder=3, **_mark(library))
    axes.axvline(1, color=STYLES["pullback"].colour, lw=2, zorder=2)
    _rows(axes, list(rows))
    _logarithmic(axes.xaxis)
    axes.set_xlabel("time relative to pullback (bar and number: the fastest of the others)")
    _legend(figure, _present(records))
    return figure


def limits(records: Sequence[Record]) -> Any:
    """Draw rates beside what the machine allows: GB/s above, GFLOP/s below."""
    plt = _pyplot()
    panels = [
        (unit, own)
        for key, unit in (("gigabytes_per_second", "GB/s"), ("gigaflops_per_second", "GFLOP/s"))
        if (own := [(r, r[key]) for r in records if r[key] is not None])
    ]
    count = sum(len(own) for _, own in panels)
    figure, several = plt.subplots(
        len(panels),
        figsize=(8, 0.27 * count + 1 + 0.5 * len(panels)),
        height_ratios=[len(own) for _, own in panels],
        squeeze=False,
    )
    for axes, (unit, own) in zip(several[:, 0], panels, strict=True):
        for at, (record, rate) in enumerate(own):
            limit = rate / record["share_of_limit"]
            axes.barh(at, rate, 0.62, color=STYLES["pullback"].colour, label="pullback")
            if record["ratio"] is not None:
                other = rate / record["ratio"]
                axes.plot(other, at, "o", color="white", mec="black", ms=6, label="fastest peer")
            axes.plot([limit] * 2, [at - 0.42, at + 0.42], color=LIMIT, lw=3.5, label="limit")
            _beside(axes, at, f"{record['share_of_limit']:.0%}")
        _rows(axes, [record["case"] for record, _ in own])
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{unit} (number: share of the limit)")
    handles = _handles(several[0, 0])
    names = [name for name in ("pullback", "fastest peer", "limit") if name in handles]
    figure.legend([handles[n] for n in names], names, loc="outside upper center", ncols=3)
    return figure


def sizes(records: Sequence[Record]) -> Any:
    """Draw the seconds of a call over n, both logarithmic."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 4.6))
    for library in ("pullback", *_present(records)):
        points = [
            (int(record["case"].split()[-3]), seconds)
            for record in records
            if (seconds := record["peers"].get(library, record.get(library)))
        ]
        marks = {"marker": STYLES[library].marker, "mec": "black", "mew": 0.5, "ms": 6}
        axes.loglog(*zip(*points, strict=True), **_line(library), **marks)
    axes.set_xlabel("n, elements")
    axes.set_ylabel("seconds of a call")
    axes.grid(color="0.9", lw=0.6)
    axes.legend(ncols=2, fontsize=9)
    return figure


def digits(found: Mapping[str, Any]) -> Any:
    """Draw errors in ULP over x, one panel for each function."""
    plt = _pyplot()
    figure, several = plt.subplots(
        1, len(found), figsize=(9, 3.6), sharey=True, layout="constrained"
    )
    for axes, (name, errors) in zip(several, found.items(), strict=True):
        for library, values in reversed(errors.items()):
            if library != "x":
                axes.semilogy(errors["x"], np.maximum(values, 0.1), **_line(library))
        axes.axhline(NONE_LEFT, color="0.4", lw=0.8, ls=":")
        axes.set_title(f"{name}\u2032, float32", fontsize=10)
        axes.set_xlim(FUNCTIONS[name].low, FUNCTIONS[name].high)
        axes.set_xlabel("x")
        axes.grid(color="0.9", lw=0.6)
    axes = several[0]
    axes.set_ylim(0.3, NONE_LEFT * 30)
    axes.set_yticks([10.0**k for k in range(0, 9, 2)])
    axes.minorticks_off()
    axes.set_ylabel("largest error in ULP")
    axes.text(
        0.5,
        NONE_LEFT * 1.6,
        "no digit left",
        transform=axes.get_yaxis_transform(),
        ha="center",
        fontsize=9,
    )
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside upper center", ncols=len(labels), handlelength=3
    )
    return figure


def fits(records: Sequence[Record]) -> Any:
    """Draw bars of the seconds of each fit."""
    plt = _pyplot()
    libraries = ["pullback", *_present(records)]
    figure, axes = plt.subplots(
        figsize=(8, 0.24 * len(records) * len(libraries) + 1.3), layout="constrained"
    )
    height = 0.8 / len(libraries)
    for row, record in enumerate(records):
        for k, library in enumerate(libraries):
            seconds = record["peers"].get(library, record.get(library))
            if seconds is None:
                continue
            at, style = row + (k - (len(libraries) - 1) / 2) * height, STYLES[library]
            axes.barh(
                at,
                seconds,
                height,
                color=style.colour,
                hatch=style.hatch,
                ec="black",
                lw=0.5,
                label=library,
            )
            axes.annotate(
                f"{seconds:.3g} s",
                (seconds, at),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    _rows(axes, [record["case"].removeprefix("fit ").replace("_", " ") for record in records])
    axes.set_xlim(right=1.08 * axes.get_xlim()[1])
    axes.set_xlabel("seconds to a gradient of 1e-8 of the first")
    handles = _handles(axes)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=len(libraries)
    )
    return figure

"""The command: the configuration, a check of all primitives, and their speed on this machine."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pullback import primitives, selfbench, selfcheck
from pullback.config import get_num_threads, show_config
from pullback.console import track
from pullback.hints import about_name

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The arguments, instead of those of the process.

    Returns
    -------
    int
        The exit code: 1 if a check fails, else 0. Wrong usage exits with 2.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    command = options.command or "all"
    if command == "bench" and options.report:
        return _report(parser, options, sys.argv[1:] if arguments is None else arguments)
    start = time.perf_counter()
    report: dict[str, Any] = {}
    say: Callable[[str], None] = _say_nothing if options.json else print

    if command in ("all", "info"):
        report["config"] = show_config("dict")
        if not options.json:
            show_config()
    ok = True
    if command in ("all", "check"):
        ok = _check(say, report, brief=not options.all)
    if command in ("all", "bench"):
        brief = not (options.all or options.name)
        _bench(np.dtype(options.dtype), options.name, say, report, brief=brief)
    if command == "all":
        say(f"\n{'All is well' if ok else 'A CHECK FAILED'}; {time.perf_counter() - start:.1f} s.")
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    return 0 if ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pullback",
        description="Show the configuration, check every primitive against its NumPy twin, and "
        "time it against plain NumPy and the machine's limits. Without a command, do all three.",
    )
    defaults = {"json": False, "all": False, "dtype": "float64"}
    _add_options(parser, "json", "all", "dtype", default=defaults)
    parser.set_defaults(name=None)
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, text, taken in (
        ("info", "print the configuration", ["json"]),
        ("check", "check every primitive; exit code 1 if one is wrong", ["json", "all"]),
        ("bench", "time every primitive against plain NumPy", ["json", "all", "dtype"]),
    ):
        about = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(name, help=text, description=about)
        _add_options(command, *taken, default={})
        if name == "bench":
            command.add_argument(
                "name",
                nargs="?",
                type=_pattern,
                metavar="NAME",
                help="time only primitives whose whole name matches this regular expression",
            )
            _add_report_options(command)
    return parser


def _add_report_options(command: argparse.ArgumentParser) -> None:
    report = command.add_argument_group("a report beside other libraries")
    report.add_argument(
        "--report",
        metavar="DIR",
        type=Path,
        help="write report.md, report.json and figures to DIR, in about ten minutes; a run that "
        "was stopped continues",
    )
    report.add_argument("--quick", action="store_true", help="a few small cases, as a test")
    report.add_argument(
        "--compare", metavar="OLD.json", type=Path, help="show the changes since an older report"
    )
    report.add_argument(
        "--threads",
        type=_count,
        default=get_num_threads(),
        help="threads of every library (default: %(default)s)",
    )


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1024")
    return int(text)


def _report(
    parser: argparse.ArgumentParser, options: argparse.Namespace, arguments: Sequence[str]
) -> int:
    """Race the other libraries, in a process whose environment lets all of them run alike."""
    if options.name:
        parser.error("argument --report: not allowed with argument NAME")
    from pullback.bench import environment  # noqa: PLC0415  for those who want a report

    if not environment.is_set(options.threads):
        return environment.run(options.threads, arguments)
    from pullback.bench import report  # noqa: PLC0415

    try:
        return report.run(
            options.report, quick=options.quick, threads=options.threads, against=options.compare
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("Stopped. The same command continues it.", file=sys.stderr)
        return 130


def _pattern(text: str) -> str:
    """Return a regular expression that some primitive's name matches, as argparse wants it."""
    try:
        if any(map(re.compile(text).fullmatch, primitives)):
            return text
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    raise argparse.ArgumentTypeError(
        f"no primitive is called {text!r}{about_name(text, tuple(primitives))}"
    )


def _add_options(parser: argparse.ArgumentParser, *taken: str, default: Mapping[str, Any]) -> None:
    ways: dict[str, dict[str, Any]] = {
        "json": {"action": "store_true", "help": "print one JSON document instead of tables"},
        "all": {"action": "store_true", "help": "print a line for each check and each call"},
        "dtype": {
            "choices": [dtype.name for dtype in selfcheck.DTYPES],
            "help": "what to time (default: float64)",
        },
    }
    for name in taken:
        # A subcommand's default would overwrite an option that was given before the subcommand.
        parser.add_argument(f"--{name}", default=default.get(name, argparse.SUPPRESS), **ways[name])


def _say_nothing(text: str) -> None:
    pass


def _check(say: Callable[[str], None], report: dict[str, Any], *, brief: bool) -> bool:
    findings = [check() for check in track(selfcheck.checks(), "checking")]
    report["checks"] = [selfcheck.as_json(finding) for finding in findings]
    say(f"\n{selfcheck.TITLE}\n")
    say(selfcheck.as_text(findings, brief=brief))
    wrong = [finding for finding in findings if not finding.ok]
    for finding in wrong:
        for problem in finding.problems:
            say(f"FAILED: {finding.name}, {finding.dtype}: {problem}")
    say(f"\n{len(findings) - len(wrong)} of {len(findings)} checks passed.")
    return not wrong


def _bench(
    dtype: np.dtype[Any],
    name: str | None,
    say: Callable[[str], None],
    report: dict[str, Any],
    *,
    brief: bool,
) -> None:
    limits = selfbench.measure_limits()
    timings = selfbench.settled(selfbench.benchmarks(limits, dtype, name), track)
    report["limits"] = asdict(limits)
    report["timings"] = [{**asdict(timing), "dtype": dtype.name} for timing in timings]
    say(f"\n{selfbench.title(dtype, limits)}\n")
    say(selfbench.as_text(timings, brief=brief))


if __name__ == "__main__":
    sys.exit(main())

"""Measure how well the tests detect faults: run quick tests on small mutations of the sources.

``tests/mutants.txt`` is the table of mutations. Those in C++ are compiled together, once, for one
instruction set, and the environment variable ``MUTANT`` chooses one at run time. Those in Python
are made in a copy of the package. A mutant is killed if one of its tests fails, crashes or takes
far longer than without it. Results are kept, so the next run repeats only mutants that are new, or
whose tests or source file have changed.

    python tests/mutate.py [--only REGEX] [--list] [-n WORKERS] [--keep DIR] [--fresh]

It needs what ``pip install -e '.[test]'`` and a build without isolation need, and ends with status
1 where fewer than 95 % of the mutants are killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "mutants.txt"
WANTED = 0.95
FLAGS = "-march=haswell -maes -mpclmul -DHWY_COMPILE_ONLY_STATIC -O1"

# Included in front of every C++ source. A name's hash tells it from others.
HEADER = """\
#pragma once
#include <cstdint>
#include <cstdlib>
constexpr std::uint64_t HashOfMutant(const char* name) {
  std::uint64_t hash = 14695981039346656037u;
  for (; *name != 0; ++name) hash = (hash ^ static_cast<unsigned char>(*name)) * 1099511628211u;
  return hash;
}
inline const std::uint64_t chosen_mutant = [] {
  const char* const name = std::getenv("MUTANT");
  return HashOfMutant(name == nullptr ? "" : name);
}();
template <std::uint64_t kHash>
inline bool IsMutant() {
  return __builtin_expect(chosen_mutant == kHash, 0);
}
#define MUTANT(name) IsMutant<HashOfMutant(name)>()
"""

# An editable installation finds the package before PYTHONPATH does.
SITE = """\
import sys
is_ours = lambda finder: "pullback" in getattr(finder, "known_source_files", ())
sys.meta_path[:] = [finder for finder in sys.meta_path if not is_ours(finder)]
"""


class Mutant(NamedTuple):
    """A row of the table: in a file, the text between the guillemets becomes another one."""

    name: str
    path: str
    text: str
    replacement: str
    tests: str  # variables of the environment, then pytest's arguments

    @property
    def part(self) -> str:
        """The part of the house that it is in."""
        return str(Path(self.path).parent)

    @property
    def is_native(self) -> bool:
        """Whether it is in C++."""
        return self.path.startswith("cpp/")

    @property
    def _pieces(self) -> tuple[str, str, str]:
        before, _, rest = self.text.partition("«")
        inside, _, after = rest.partition("»")
        return (before, inside, after) if rest else ("", self.text, "")

    def place(self, source: str) -> tuple[int, int]:
        """Return where in a source the text begins and ends that is replaced.

        Raises
        ------
        ValueError
            Unless it occurs once.
        """
        before, inside, after = self._pieces
        count = source.count(before + inside + after)
        if count != 1:
            raise ValueError(f"mutant {self.name}: its text occurs {count} times in {self.path}")
        begin = source.index(before + inside + after) + len(before)
        return begin, begin + len(inside)

    def both(self) -> str:
        """Return C++ for the replacement and for what is replaced, between which MUTANT chooses."""
        old, new, chosen = self._pieces[1], self.replacement, f'MUTANT("{self.name}")'
        if old.endswith(";"):
            return f"if ({chosen}) {{ {new} }} else {{ {old} }}"
        return f"({chosen} ? ({new}) : ({old}))"


def with_mutant(source: str, mutant: Mutant) -> str:
    """Return a source with a mutation."""
    begin, end = mutant.place(source)
    return source[:begin] + mutant.replacement + source[end:]


def with_choice(source: str, mutants: list[Mutant]) -> str:
    """Return a source in C++ with all of its mutations.

    Raises
    ------
    ValueError
        If one does not apply, or two overlap.
    """
    last = len(source)
    for (begin, end), mutant in sorted(((m.place(source), m) for m in mutants), reverse=True):
        if end > last:
            raise ValueError(f"mutant {mutant.name}: overlaps the next one in {mutant.path}")
        source, last = source[:begin] + mutant.both() + source[end:], begin
    return source


def table() -> list[Mutant]:
    """Return the rows of the table.

    Raises
    ------
    ValueError
        If one is not of the form that its head describes.
    """
    return [_row(block) for block in TABLE.read_text().split("\n=== ")[1:]]


def _row(block: str) -> Mutant:
    head, *lines = block.strip().splitlines()
    parts: dict[str, list[str]] = {"-": [], "+": [], ">": []}
    for line in lines:
        if line[:2] not in ("- ", "+ ", "> ", "+"):
            raise ValueError(f"mutant {head}: no line of the table: {line!r}")
        parts[line[0]].append(line[2:])
    name, path = head.split()
    text, replacement = "\n".join(parts["-"]), "\n".join(parts["+"])
    if not (text and parts[">"]) or (text.count("«"), text.count("»")) not in ((0, 0), (1, 1)):
        raise ValueError(
            f"mutant {head}: needs lines -, + and >, with one pair of guillemets or none"
        )
    return Mutant(name, path, text, replacement, " ".join(parts[">"]))


# --- the scratch tree -----------------------------------------------------------------------------


def make_tree(tree: Path, mutants: list[Mutant]) -> None:
    """Bring a copy of the sources, with all mutations in C++, up to date, and build it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    files = {path: (ROOT / path).read_bytes() for path in listed if (ROOT / path).is_file()}
    for path in {m.path for m in mutants if m.is_native}:
        own = [m for m in mutants if m.path == path]
        files[path] = with_choice(files[path].decode(), own).encode()
    files["mutant.h"], files["python/sitecustomize.py"] = HEADER.encode(), SITE.encode()
    for path, content in files.items():
        to = tree / path
        if not to.is_file() or to.read_bytes() != content:  # what is as it was is not built anew
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content)
    for top in ("cpp", "python/pullback", "tests"):
        for path in (tree / top).rglob("*.*"):
            if path.suffix in (".py", ".h", ".cc") and str(path.relative_to(tree)) not in files:
                path.unlink()
    build = tree / "build"
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
    ).stdout.strip()
    version = re.search(r'^version = "(.*)"', files["pyproject.toml"].decode(), re.MULTILINE)
    assert version is not None
    options = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_CXX_FLAGS": f"{FLAGS} -w -include {tree / 'mutant.h'}",
        "pybind11_DIR": pybind11,
        "Python_EXECUTABLE": sys.executable,
        "SKBUILD_PROJECT_VERSION": version[1],
    }
    defined = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(
        ["cmake", "-S", tree, "-B", build, "-G", "Ninja", *defined],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    subprocess.run(["cmake", "--build", build], check=True)
    (extension,) = build.glob("_native*.so")
    shutil.copy2(extension, tree / "python" / "pullback")


def run_tests(
    tree: Path, tests: str, mutant: Mutant | None = None, timeout: float | None = None
) -> tuple[str, float]:
    """Run tests; return what became of them and how long that took."""
    words = shlex.split(tests)
    variables = list(takewhile(lambda word: "=" in word, words))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PULLBACK_")}
    environment |= dict(variable.split("=", 1) for variable in variables)
    environment |= {"MUTANT": mutant.name if mutant else "", "PYTHONDONTWRITEBYTECODE": "1"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as overlay:
        python = tree / "python"
        if mutant is not None and not mutant.is_native:
            python = Path(overlay) / "python"
            shutil.copytree(tree / "python", python)
            source = python / Path(mutant.path).relative_to("python")
            source.write_text(with_mutant(source.read_text(), mutant))
        environment["PYTHONPATH"] = str(python)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
        ]
        process = subprocess.Popen(
            [*command, *words[len(variables) :]],
            cwd=tree, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return "killed: too long", time.monotonic() - began
    took = time.monotonic() - began
    if process.returncode == 0:
        return "survived", took
    if process.returncode == 5 or (mutant is None and process.returncode != 0):
        raise RuntimeError(f"{tests}: no tests, or they fail without a mutant\n{output[-3000:]}")
    return "killed: crash" if process.returncode < 0 else "killed", took


# --- the command ----------------------------------------------------------------------------------


class Results:
    """What was found before, by a key of everything that it depends on, in a file."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if path.is_file() and not fresh:
            self._known = json.loads(path.read_text())

    def get(self, key: str) -> Any:
        return self._known.get(key)

    def put(self, key: str, found: Any) -> None:
        self._known[key] = found
        self._path.write_text(json.dumps(self._known, indent=1))


def key_of(tests: str, mutant: Mutant | None = None) -> str:
    """Return a key of tests, and of a mutant and the source that it is in."""
    paths = [word.partition("::")[0] for word in shlex.split(tests) if ".py" in word]
    paths += [mutant.path] if mutant else []
    paths += [path for path in sorted(TABLE.parent.glob("*.py")) if path.name[:5] != "test_"]
    parts = [repr(mutant), tests, *((ROOT / path).read_text() for path in paths)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def main() -> int:
    """Run the command."""
    about, *_ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--only", default="", metavar="REGEX", help="of the names and files")
    parser.add_argument("--list", action="store_true", help="print the table and end")
    parser.add_argument("-n", type=int, default=1, metavar="WORKERS", help="tests at once")
    parser.add_argument(
        "--keep", type=Path, default=ROOT / "build" / "mutants", metavar="DIR",
        help="where the scratch tree, its build and the results are",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    given = parser.parse_args()

    every = table()
    chosen = [m for m in every if re.search(given.only, f"{m.name} {m.path}")]
    if given.list:
        for mutant in chosen:
            print(f"{mutant.name:28} {mutant.path:38} {mutant.tests}")
        return 0
    tree: Path = given.keep.resolve() / "tree"
    make_tree(tree, every)
    results = Results(given.keep / "results.json", fresh=given.fresh)

    keys = {m: key_of(m.tests, m) for m in chosen}
    baselines = {m.tests: key_of(m.tests) for m in chosen}  # before anyone edits them meanwhile

    def baseline(tests: str) -> tuple[str, float]:
        return run_tests(tree, tests)

    def trial(mutant: Mutant) -> tuple[str, float]:
        return run_tests(
            tree, mutant.tests, mutant, 60 + 10 * results.get(baselines[mutant.tests])[1]
        )

    with ThreadPoolExecutor(given.n) as pool:

        def all_of(what: str, keys: dict[Any, str], do: Any) -> None:
            """Do what is not known yet, and show how it goes."""
            new = [each for each in keys if results.get(keys[each]) is None]
            for i, (each, found) in enumerate(zip(new, pool.map(do, new), strict=True)):
                results.put(keys[each], found)
                shown = each.name if isinstance(each, Mutant) else each
                print(
                    f"{what} {i + 1}/{len(new)}: {shown}: {found[0]}, {found[1]:.1f} s", flush=True
                )

        all_of("baseline", baselines, baseline)
        all_of("mutant", keys, trial)
    return report([(m, results.get(keys[m])[0]) for m in chosen])


def report(found: list[tuple[Mutant, str]]) -> int:
    """Print what was found; return the exit status."""
    print("".join(_lines(found)))
    killed = sum(result != "survived" for _, result in found)
    return 0 if killed >= WANTED * len(found) else 1


def _lines(found: list[tuple[Mutant, str]]) -> Iterator[str]:
    yield f"\n{'part':32} {'killed':>7} {'survived':>9}\n"
    for part in [*sorted({m.part for m, _ in found}), ""]:
        own = [result for m, result in found if part in ("", m.part)]
        survived = own.count("survived")
        yield f"{part or 'all':32} {len(own) - survived:7} {survived:9}\n"
    yield f"{1 - survived / max(1, len(own)):.1%} killed"
    for kind in ("crash", "too long"):
        yield f", {own.count(f'killed: {kind}')} by {kind}"
    for mutant, result in found:
        if result == "survived":
            yield f"\n\n{mutant.name} survived {mutant.tests}\n{mutant.path}\n"
            yield f"- {mutant.text}\n+ {mutant.replacement}"


if __name__ == "__main__":
    sys.exit(main())

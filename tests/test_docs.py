"""What is generated is up to date, and what the documents tell people to do works."""

from __future__ import annotations

import doctest
import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pullback as pb
import pytest
from protocol import closed_doors
from pullback import chains, check, config, jacobians, objective, partial, user_loss
from pullback.tables.losses import IN_LOSSES_ALONE

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
DOCUMENTS = [path for path in DOCUMENTS if path.stem not in closed_doors()]
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
# Blocks of the others only show a call: test_scipy.py judges those of one, two go by steps.
ASSERTING = [
    path for path in DOCUMENTS if path.name not in ("README.md", "scipy.md", "linear-models.md")
]


def test_generated_files_are_up_to_date() -> None:
    finished = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def blocks(path: Path, language: str) -> Iterator[str]:
    """Yield the fenced code blocks of a language."""
    text = path.read_text(encoding="utf-8")
    yield from re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_every_block_asserts_something() -> None:
    found = [block for path in ASSERTING for block in blocks(path, "python")]
    assert len(found) >= 70
    for block in found:
        assert re.search(r"^ *assert ", block, re.MULTILINE), block


@pytest.mark.filterwarnings("ignore:invalid value.* multiply:RuntimeWarning")  # see test_scipy.py
@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_examples_in_documents_run(path: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), names)


def test_the_readme_has_an_example_of_each_family_and_two_commands() -> None:
    examples = "".join(blocks(ROOT / "README.md", "python"))
    for family in ("tanh", "logsumexp", "softmax", "linear", "logistic", "chain", "jacobian"):
        assert family in examples, family
    commands = list(blocks(ROOT / "README.md", "sh"))
    assert len(commands) == 2
    for command in commands:
        for part in (
            "apt-get install -y",
            "libhwy-dev",
            "g++",
            "-m venv",
            "PULLBACK_REQUIRE_NATIVE=1",
        ):
            assert part in command
        assert "sudo" not in command
    assert "-m pullback" in commands[0]
    assert "-m pytest" in commands[1]


def test_the_readme_names_every_primitive_and_variable() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    variables = ("BACKEND", "TARGET", "NUM_THREADS", "REQUIRE_NATIVE")
    primitives = (f"losses.{name}" if name in IN_LOSSES_ALONE else name for name in pb.primitives)
    for name in (*primitives, *(f"PULLBACK_{variable}" for variable in variables)):
        assert f"`{name}" in text, name


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_lead_somewhere(path: Path) -> None:
    fenced = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    text = fenced.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_files_that_the_pages_name_are_there() -> None:
    folders = ("bench", "cpp", "docs", "examples", "python", "tests")
    files = [str(path) for folder in folders for path in (ROOT / folder).rglob("*.*")]
    named = {
        name
        for path in ROOT.glob("docs/inside/*.md")
        for name in re.findall(r"`([\w*/.-]+\.(?:py|h|cc|txt))`", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 40
    for name in named:
        assert fnmatch.filter(files, f"*/{name}"), name


@pytest.mark.parametrize(
    "module",
    [
        chains,
        *map(import_module, ("pullback.line", "pullback.losses", "pullback.sample_grads")),
        check,
        config,
        jacobians,
        objective,
        partial,
        user_loss,
    ],
    ids=lambda module: module.__name__,
)
def test_docstring_examples(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0

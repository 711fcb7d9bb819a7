"""What is installed: metadata, types, licence, and nothing that is not ours."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pullback as pb
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOLS = CONFIGURATION["project"], CONFIGURATION["tool"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_version_is_stated_once() -> None:
    assert metadata.version("pullback") == PROJECT["version"] == pb.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{PROJECT['version']}]" in changelog


def test_pythons_are_named_alike() -> None:
    """The README has the classifiers' versions; tools and build ask for the oldest."""
    prefix = "Programming Language :: Python :: "
    named = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix + "3.")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"^Python (3\.\d+.*), NumPy", readme, re.MULTILINE)
    assert re.findall(r"3\.\d+", sentence) == named
    oldest = named[0]
    assert PROJECT["requires-python"] == f">={oldest}"
    assert TOOLS["mypy"]["python_version"] == oldest
    assert TOOLS["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert f"find_package(Python {oldest} " in (ROOT / "CMakeLists.txt").read_text()


@pytest.mark.native
def test_extension_has_the_package_version() -> None:
    from pullback import _native

    assert _native.build["version"] == pb.__version__


def test_numpy_is_the_only_requirement() -> None:
    requirements = map(Requirement, metadata.requires("pullback") or [])
    assert [r.name for r in requirements if r.marker is None] == ["numpy"]


def test_types_and_stubs_are_installed() -> None:
    package = Path(pb.__file__).parent
    for name in ("py.typed", "_native.pyi", "reference.pyi"):
        assert (package / name).exists(), name


def test_licence_is_in_the_metadata() -> None:
    about = metadata.metadata("pullback")
    assert about["License-Expression"] == "BSD-3-Clause"
    assert about["License-File"] == "LICENSE"


def test_presets_agree_with_the_build() -> None:
    options = set(re.findall(r"PULLBACK_\w+", (ROOT / "CMakePresets.json").read_text()))
    build = (ROOT / "CMakeLists.txt").read_text()
    for option in options:
        assert re.search(rf"(option|set)\({option}\b", build), option


def test_importing_is_quiet_and_light(run_python: Run) -> None:
    script = """
import sys
import pullback
heavy = {"scipy", "matplotlib", "sklearn", "tqdm", "pandas", "mpmath", "importlib.metadata"}
print(sorted(heavy & set(sys.modules)))
"""
    finished: Any = run_python(script)
    assert finished.stdout == "[]\n"
    assert finished.stderr == ""

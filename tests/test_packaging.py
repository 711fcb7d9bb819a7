"""What is installed: metadata, types, licence, and nothing that is not ours."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pullback as pb
import pytest
from packaging.requirements import Requirement
from pullback.__main__ import main

ROOT = Path(__file__).parents[1]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOLS = CONFIGURATION["project"], CONFIGURATION["tool"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_version_is_stated_once() -> None:
    version = PROJECT["version"]
    assert metadata.version("pullback") == version == pb.__version__
    for path in ("CMakeLists.txt", "CITATION.cff", "README.md", "python/pullback/config.py"):
        assert version not in (ROOT / path).read_text(encoding="utf-8"), path


def test_the_changelog_is_one() -> None:
    """Keep a Changelog: what is not released yet, then releases with dates, newest first."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *released = re.findall(r"^## (.*)$", text, re.MULTILINE)
    dates = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", title) for title in released]
    if first != "[Unreleased]":
        assert first.startswith(f"[{PROJECT['version']}] - ")
    assert all(dates)
    assert released == sorted(released, key=lambda title: title[-10:], reverse=True)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert {*re.findall(r"^### (.*)$", text, re.MULTILINE)} <= kinds


def test_the_citation_says_what_the_metadata_says() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"license: {PROJECT['license']}\n" in text
    assert f"  - name: {PROJECT['authors'][0]['name']}\n" in text
    assert re.findall(r"^  - (?!name)(.*)$", text, re.MULTILINE) == PROJECT["keywords"]


def test_reports_of_bugs_come_with_the_configuration() -> None:
    form = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")
    commands = re.findall(r"`python -m pullback (\w+)`", form)
    assert "info" in commands
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0


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
    for name in ("py.typed", "_native.pyi", "_jax.pyi", "reference.pyi"):
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


# What the package loads of its own: to read the environment, and to find the rest.
AT_IMPORT = {"config", "foreign", "interop", "interop.threadpoolctl", "protocol"}
AT_IMPORT |= {"registry", "shapes"}
# What others load that is there in any case, by top-level name.
CHEAP = {"contextlib", "ctypes", "importlib", "inspect", "numpy", "platform", "typing", "warnings"}

# What a first use does without, on any backend.
WITHOUT = {
    "pb.tanh": {"catalogue", "jacobians", "losses", "objective", "reductions", "reference"},
    "pb.softmax": {"catalogue", "check", "losses", "objective", "reference"},
    "pb.matmul": {"catalogue", "check", "losses", "objective", "reductions", "reference"},
    "pb.logistic": {"check", "objective", "reference", "solvers", "user_loss"},
    "pb.gram": {"catalogue", "elementwise", "jacobians", "losses", "reference"},
    "pb.Diagonal": {"catalogue", "elementwise", "losses", "reductions", "reference"},
    "pb.LinearObjective": {"check", "reference", "solvers", "user_loss", "interop.sklearn"},
}


def loaded(run_python: Run, script: str) -> set[str]:
    """Return the modules that a script adds to NumPy's and threadpoolctl's."""
    finished = run_python(f"""
import sys, numpy
try:
    import threadpoolctl
except ImportError:
    pass
before = {{*sys.modules}}
{script}
print(*(set(sys.modules) - before))
""")
    assert finished.stderr == ""
    return {*finished.stdout.split()}


def own(modules: set[str]) -> set[str]:
    return {m.removeprefix("pullback.") for m in modules if m.startswith("pullback.")}


def test_importing_is_quiet_and_light(run_python: Run) -> None:
    modules = loaded(run_python, "import pullback")
    # `hints` knows the environment variables, and is asked where one of ours is set.
    assert own(modules) - {"_native", "hints"} == AT_IMPORT
    assert {m.partition(".")[0] for m in modules} <= {"pullback", *CHEAP}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_first_use_loads_what_it_needs(name: str, run_python: Run) -> None:
    modules = loaded(run_python, f"import pullback as pb; {name}")
    assert len(own(modules)) > len(AT_IMPORT)
    assert not own(modules) & WITHOUT[name]


def test_names_that_there_are_none_of() -> None:
    for name in ("", "_", "__path", "tanhh", "é", "nonsense"):
        for module in (pb, pb.reference):
            assert not hasattr(module, name)


def test_the_first_jacobian_is_like_the_second(run_python: Run) -> None:
    """Jacobians wait for the first that is asked for, which Python makes for native methods."""
    done = run_python("""
import sys, numpy as np, pullback as pb
w, x = np.array([[1.0], [2.0]]), np.arange(3.0)
calls = [lambda: (pb.tanh.jacobian(x),), lambda: pb.multiply.jacobian(w, x)]
pb.tanh, pb.multiply
assert "pullback.jacobians" not in sys.modules
first, second = ([call() for call in calls] for _ in range(2))
assert "pullback.jacobians" in sys.modules
for one, other in zip(sum(first, ()), sum(second, ()), strict=True):
    assert type(one) is type(other) and one.shape == other.shape
    assert np.array_equal(one.todense(), other.todense())
    print(type(one).__name__)
""")
    assert done.stdout.split() == ["Diagonal", "Product", "Product"]


def test_no_module_hides_a_name_of_the_package() -> None:
    """Importing a submodule sets the package's attribute of that name."""
    package = Path(pb.__file__).parent
    names = [name for name in dir(pb) if not isinstance(getattr(pb, name), ModuleType)]
    assert len(names) > 100
    hidden = [n for n in names if (package / n).is_dir() or [*package.glob(f"{n}.py*")]]
    assert hidden == []


def test_first_uses_at_once(run_python: Run) -> None:
    """Of eight threads that meet the package for the first time, all see the same objects."""
    done = run_python("""
import sys, threading
import pullback as pb
sys.setswitchinterval(1e-6)
names = ["tanh", "primitives", "chain", "gram", "matmul", "sum", "logistic", "__all__"]
names += ["Chain", "Diagonal", "LinearObjective", "check_grad"]
start, seen = threading.Barrier(8), [{} for _ in range(8)]
def look(k):
    start.wait()
    for name in names[k:] + names[:k]:
        seen[k][name] = getattr(pb, name), getattr(pb.reference, "tanh")
threads = [threading.Thread(target=look, args=(k,)) for k in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
print(all(one[n] == (getattr(pb, n), pb.reference.tanh) and one[n][0] is getattr(pb, n)
          for one in seen for n in names), pb.primitives["tanh"] is pb.tanh, len(seen[0]))
""")
    assert done.stdout.split() == ["True", "True", "12"]

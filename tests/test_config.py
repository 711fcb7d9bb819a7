"""What pullback says it runs on, and what the environment can make it run on."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np
import pullback as pb
import pytest
from protocol import TARGETS, native

PRINT_CONFIG = "import pullback as pb; c = pb.show_config('dict'); print(*map(c.get, {keys!r}))"


def asked(run_python: Callable[..., Any], *keys: str, **environment: Any) -> list[str]:
    """Return entries of show_config() in a process with these environment variables."""
    return run_python(PRINT_CONFIG.format(keys=keys), **environment).stdout.split()


# --- in this process ------------------------------------------------------------------------------


def test_show_config_prints_what_it_returns(capsys: pytest.CaptureFixture[str]) -> None:
    config = pb.show_config("dict")
    assert pb.show_config() is None
    printed = capsys.readouterr().out
    for key, value in config.items():
        if value is not None:
            assert key in printed
            assert str(value if not isinstance(value, list) else value[0]) in printed
    assert config["version"] == pb.__version__ == importlib.metadata.version("pullback")
    assert config["NumPy"] == np.__version__
    assert config["backend"] == pb.backend() == ("native" if TARGETS else "numpy")
    assert config["threads"] == pb.get_num_threads()
    with pytest.raises(ValueError, match="print.*dict.*'json'"):
        pb.show_config("json")  # type: ignore[call-overload]


@pytest.mark.native
def test_targets() -> None:
    config = pb.show_config("dict")
    assert config["targets"] == TARGETS
    assert len(set(TARGETS)) == len(TARGETS) >= 1
    assert config["target"] in TARGETS
    assert config["compiler"]
    assert config["Highway"]


def test_set_target(target: str) -> None:
    assert native.active_target() == target
    for wrong in ("MMX", target.lower(), f" {target}"):
        with pytest.raises(ValueError, match=target):
            native.set_target(wrong)
        assert native.active_target() == target


# --- the environment ------------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.parametrize("name", TARGETS)
def test_target_from_the_environment(run_python: Callable[..., Any], name: str) -> None:
    assert asked(run_python, "target", PULLBACK_TARGET=name) == [name]


@pytest.mark.native
def test_default_target_is_the_best(run_python: Callable[..., Any]) -> None:
    assert asked(run_python, "target") == TARGETS[:1]
    assert asked(run_python, "target", PULLBACK_TARGET="") == TARGETS[:1]


@pytest.mark.native
@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("PULLBACK_TARGET", "MMX", TARGETS),
        ("PULLBACK_NUM_THREADS", "0", ["1"]),
        ("PULLBACK_NUM_THREADS", "-2", []),
        ("PULLBACK_NUM_THREADS", "two", []),
        ("PULLBACK_NUM_THREADS", "2.5", []),
        ("PULLBACK_NUM_THREADS", "4 cores", []),
        ("PULLBACK_NUM_THREADS", "99999999999999999999", []),
        ("PULLBACK_KEPT_MEMORY", "²", []),
        ("PULLBACK_BACKEND", "cuda", ["native", "numpy"]),
        ("PULLBACK_BACKEND", "NumPy", ["native", "numpy"]),
    ],
)
def test_unknown_values_are_clear_errors(
    run_python: Callable[..., Any], variable: str, value: str, named: list[str]
) -> None:
    done = run_python("import pullback", check=False, **{variable: value})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: ")
    for part in (variable, value, *named):
        assert part in last


@pytest.mark.parametrize("backend", ["native", "numpy"] if TARGETS else ["numpy"])
def test_backend_from_the_environment(run_python: Callable[..., Any], backend: str) -> None:
    assert asked(run_python, "backend", PULLBACK_BACKEND=backend) == [backend]
    script = "import sys, pullback; print('pullback._native' in sys.modules)"
    loaded = run_python(script, PULLBACK_BACKEND=backend).stdout.split()
    assert loaded == [str(backend == "native")]


@pytest.mark.native
def test_threads_from_the_environment(run_python: Callable[..., Any]) -> None:
    assert asked(run_python, "threads", PULLBACK_NUM_THREADS=3) == ["3"]
    assert asked(run_python, "threads", OMP_NUM_THREADS=5) == ["5"]
    assert asked(run_python, "threads", OMP_NUM_THREADS=5, PULLBACK_NUM_THREADS=3) == ["3"]
    # OpenMP's variable is not ours to judge; nested levels are a comma-separated list there.
    assert asked(run_python, "threads", OMP_NUM_THREADS="4,2") == ["4"]
    assert asked(run_python, "threads", OMP_NUM_THREADS="nonsense") == [str(_cpus())]
    assert asked(run_python, "threads", OMP_NUM_THREADS="", PULLBACK_NUM_THREADS="") == [
        str(_cpus())
    ]


def _cpus() -> int:
    return int(pb.show_config("dict")["cpus"])


@pytest.mark.native
def test_default_threads_follow_the_affinity(run_python: Callable[..., Any]) -> None:
    script = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        "import pullback as pb; print(pb.get_num_threads())"
    )
    assert run_python(script).stdout.split() == ["1"]


def test_import_is_light(run_python: Callable[..., Any]) -> None:
    """NumPy is the only dependency: optional libraries are not imported on the way."""
    script = (
        "import sys, pullback;"
        "print(*({'scipy', 'pandas', 'dask', 'torch', 'jax', 'autograd', 'matplotlib', 'tqdm'}"
        " & set(sys.modules)))"
    )
    assert run_python(script).stdout.split() == []


@pytest.mark.native
def test_missing_kernels_are_told_once(run_python: Callable[..., Any]) -> None:
    """Without the extension NumPy takes over: with one warning, or an error on demand."""
    hide = "import sys; sys.modules['pullback._native'] = None;"
    done = run_python(hide + "import pullback as pb; print(pb.backend(), pb.tanh(0.0))")
    assert done.stdout.split() == ["numpy", "0.0"]
    assert done.stderr.count("RuntimeWarning") == 1
    done = run_python(hide + "import pullback as pb; print(pb.backend())", PULLBACK_BACKEND="numpy")
    assert done.stdout.split() == ["numpy"]
    assert not done.stderr
    done = run_python(hide + "import pullback", check=False, PULLBACK_BACKEND="native")
    assert "ImportError: PULLBACK_BACKEND=native" in done.stderr


OLD_CPU = """
import platform
import sys
platform.machine = lambda: "x86_64"  # others have no levels
from numpy._core._multiarray_umath import __cpu_features__ as features
{change}
import pullback as pb
print(pb.backend(), "pullback._native" in sys.modules, pb.tanh(0.0))
"""


@pytest.mark.native
@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ("features.update(SSE42=False, POPCNT=False)", "SSE42, POPCNT"),
        ("features.update(SSE3=False, SSSE3=False, SSE41=False)", "SSE3, SSSE3, SSE41"),
        ("features.update(AVX=False, AVX2=False)", ""),
        ("features.clear()", ""),  # a release that does not look below its own baseline
    ],
)
def test_cpu_is_asked_before_the_extension_is_loaded(
    run_python: Callable[..., Any], change: str, lacks: str
) -> None:
    """What an old CPU would crash on stays out of its process, and it is told why."""
    script = OLD_CPU.format(change=change)
    done = run_python(script)
    assert done.stdout.split() == (["numpy", "False"] if lacks else ["native", "True"]) + ["0.0"]
    assert done.stderr.count("RuntimeWarning") == bool(lacks)
    assert not lacks or f"x86-64-v2, and this one lacks {lacks}." in done.stderr
    done = run_python(script, check=False, PULLBACK_BACKEND="native")
    assert ("ImportError: PULLBACK_BACKEND=native" in done.stderr) == bool(lacks)
    assert not lacks or done.stderr.endswith(f"this one lacks {lacks}\n")
    done = run_python(script, PULLBACK_BACKEND="numpy")
    assert done.stdout.split() == ["numpy", "False", "0.0"]
    assert not done.stderr

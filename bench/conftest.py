"""Options of the benches, and the environment that they run in."""

from __future__ import annotations

from typing import Any

import environment
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let other libraries compete."""
    parser.addoption(
        "--peers",
        default="",
        help="time these libraries, too, such as torch,jax: "
        "numexpr, numba, torch, jax, sklearn, where bench/ has the case written for them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let NumPy run at its best; it has not been imported yet."""
    if config.getoption("benchmark_enable"):
        environment.release()


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Keep what a time depends on, and not what the host is called."""
    import pullback

    del machine_info["node"]
    config = pullback.show_config("dict")
    del config["kept memory"]  # changes from run to run
    machine_info["pullback"] = config

"""Options of the benches, and the environment that they run in."""

from __future__ import annotations

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

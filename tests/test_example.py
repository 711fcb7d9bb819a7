"""The examples run as they stand, and end where they should."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pullback as pb
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_fit_relu_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    example = load("fit_relu_regression")
    picture = tmp_path / "curve.png"
    fits = example.main(["--output", str(picture), "--repeats", "2"])
    ours, theirs = fits["pullback"], fits["NumPy"]

    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-10)
    np.testing.assert_allclose(ours.theta, theirs.theta, rtol=1e-3, atol=1e-2)
    assert ours.path == sorted(ours.path, reverse=True)
    assert ours.path[-1] < 0.6 * ours.path[0]

    X, y, names = example.load()
    gradient = pb.reference.relu_mse.value_and_grad(X, y, ours.theta[:-1], ours.theta[-1])[1]
    assert max(map(abs, [*gradient[0], gradient[1]])) < 1e-3  # a minimum, and of the right function

    shown = capsys.readouterr().out
    for text in (*names, "(bias)", "NumPy", "pullback", str(picture)):
        assert text in shown
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000

"""The examples run as they stand, and end where they should."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.util import find_spec
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


def test_tour() -> None:
    """The notebook runs from top to bottom, and is stored without results."""
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("sklearn")
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    plt.close("all")
    X, theta = names["X"], names["theta"]
    assert np.abs(pb.reference.logistic.grad(X, names["y"], theta[:3], theta[3])[0]).max() < 1e-9
    X1 = np.column_stack([X, np.ones(len(X))])
    p = 1 / (1 + np.exp(-X1 @ theta))
    covariance = np.linalg.inv(X1.T @ (X1 * (p * (1 - p))[:, None]))
    np.testing.assert_allclose(names["errors"], np.sqrt(covariance.diagonal()), rtol=1e-6)
    assert names["trained"].fun < names["fit"].fun < names["value"]


def assert_picture(path: Path) -> None:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


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

    X, y, names = example.load()
    assert ours.path[-1] < ours.path[0] < np.mean(y**2)  # it begins better than with zeros
    assert ours.path[-1] < 0.6 * np.mean(y**2)
    gradient = pb.reference.relu_mse.value_and_grad(X, y, ours.theta[:-1], ours.theta[-1])[1]
    assert max(map(abs, [*gradient[0], gradient[1]])) < 1e-3  # a minimum, and of the right function

    shown = capsys.readouterr().out
    for text in (*names, "(bias)", "NumPy", "pullback", str(picture)):
        assert text in shown
    assert_picture(picture)


def test_logistic_breast_cancer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    example = load("logistic_breast_cancer")
    for C in ("1", "0.1"):
        assert example.main(["--C", C]) <= 1e-6
    shown = capsys.readouterr().out
    for text in ("mean radius", "(intercept)", "scikit-learn", "classified correctly"):
        assert text in shown

    right = example.fit
    monkeypatch.setattr(example, "fit", lambda objective: off(right(objective), 1e-5))
    with pytest.raises(SystemExit, match="coefficients differ"):
        example.main([])


def off(result: Any, by: float) -> Any:
    result.x += by
    return result


def test_likelihoods(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("likelihoods")
    assert example.main()
    printed = capsys.readouterr().out
    assert printed.count("gradient True, HVP True") == 3
    # Cox's likelihood beside the definition, person by person.
    X, events = np.random.default_rng(1).standard_normal((6, 2)), np.array([1.0, 0, 1, 1, 0, 1])
    beta = np.array([0.3, -0.7])
    score = X @ beta
    terms = [e * (np.log(np.exp(score[i:]).sum()) - score[i]) for i, e in enumerate(events)]
    np.testing.assert_allclose(example.cox(X, events)(beta), sum(terms), rtol=1e-14)
    # The ordinal logit beside differences of probabilities.
    y, cuts = np.array([0, 1, 2, 2, 1, 0]), np.array([-0.5, 0.8])
    below = 1 / (1 + np.exp(score[:, None] - [-np.inf, *cuts, np.inf]))
    p = np.diff(below)[np.arange(6), y]
    f = example.ordinal_logit(X, y, 3)
    np.testing.assert_allclose(f(beta, cuts), -np.log(p).sum(), rtol=1e-13)
    newton = example.newton
    example.newton = lambda *problem: (newton(*problem)[0] + 0.5, 0)  # too far
    assert not example.main()


def out_of_core(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example by itself, as it restricts its process."""
    command = [sys.executable, EXAMPLES / "out_of_core.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_out_of_core(tmp_path: Path) -> None:
    finished = out_of_core("--directory", str(tmp_path), "--megabytes", "64", "--memory", "32")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for text in ("MemoryError", "w[19]", "std. error", "GB/s"):
        assert text in finished.stdout
    assert not list(tmp_path.iterdir())


def test_out_of_core_wants_a_large_table() -> None:
    finished = out_of_core("--megabytes", "10", "--memory", "20")
    assert finished.returncode == 2
    assert "larger than the memory" in finished.stderr


@pytest.mark.parametrize("with_torch", [False, True] if find_spec("torch") else [False])
def test_train_mlp(
    with_torch: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    example = load("train_mlp")
    if not with_torch:
        monkeypatch.setattr(example, "find_spec", lambda name: None)
    picture = tmp_path / "curves.png"
    trainings = example.main(["--output", str(picture)])
    shown = capsys.readouterr().out

    ours = trainings["pullback"]
    assert len(ours.losses) == 100
    assert ours.losses[0] > 2
    assert ours.losses[-1] < 0.2
    assert ours.accuracy > 0.95
    if with_torch:
        np.testing.assert_allclose(ours.losses, trainings["PyTorch"].losses, rtol=0, atol=1e-5)
    else:
        assert "PyTorch is not installed" in shown
    assert str(picture) in shown
    assert_picture(picture)

"""Train a two-layer ReLU network on handwritten digits, step for step as PyTorch does.

The data are scikit-learn's bundled digits: 1797 pictures of 8 x 8 pixels. The hidden layer is
`pullback.linear` with a rectifier. The second layer has ten classes. One call of
`pullback.softmax_cross_entropy` returns the loss, the gradients of the second layer and, by
``wrt``, the cotangent of the hidden layer. `pullback.linear.vjp` pulls that cotangent back through
the first layer. The network is trained by stochastic gradient descent with momentum. If PyTorch is
installed, the same network is trained in PyTorch, from the same start on the same batches.

The output shows that the losses agree to 1e-5 at every step (otherwise the exit code is 1), the
time of a step, and the share of test digits that are classified correctly. A PNG file shows the
loss curves.

Run it with ``pip install pullback[examples]`` and ``python examples/train_mlp.py``; for the
comparison ``pip install torch`` as well.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # draws files, needs no screen

import matplotlib.pyplot as plt
import numpy as np
import pullback as pb
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Array = NDArray[Any]

RATE, MOMENTUM = 0.1, 0.9
TOLERANCE = 1e-5


@dataclass
class Training:
    """The losses on the way, the seconds of each step, and the share of test digits read right."""

    losses: list[float]
    seconds: list[float]
    accuracy: float


@dataclass
class Task:
    """Training data, test data and start; `batches` holds the rows of X for each step."""

    X: Array
    y: Array
    X_test: Array
    y_test: Array
    start: tuple[Array, ...]  # W1, b1, W2, b2
    batches: list[Array]


def load(hidden: int, steps: int, batch: int, seed: int) -> Task:
    """Return the digits, a random start, and the rows of each step's batch."""
    digits = load_digits()
    X = (digits.data / 16).astype(np.float32)
    X, X_test, y, y_test = train_test_split(X, digits.target, test_size=0.25, random_state=0)
    rng = np.random.default_rng(seed)

    def layer(inputs: int, outputs: int) -> tuple[Array, Array]:
        W = rng.normal(scale=(2 / inputs) ** 0.5, size=(inputs, outputs))
        return W.astype(np.float32), np.zeros(outputs, np.float32)

    start = (*layer(X.shape[1], hidden), *layer(hidden, 10))
    batches = [rng.choice(len(y), batch, replace=False) for _ in range(steps)]
    return Task(X, y, X_test, y_test, start, batches)


def timed(steps: Iterator[float], accuracy: Callable[[], float]) -> Training:
    """Take all steps, looking at the clock between them."""
    losses, seconds = [], []
    begin = time.perf_counter()
    for loss in steps:
        losses.append(loss)
        end = time.perf_counter()
        seconds.append(end - begin)
        begin = end
    return Training(losses, seconds, accuracy())


def by_pullback(task: Task) -> Training:
    """Train with pullback and NumPy."""
    parameters = [array.copy() for array in task.start]
    velocities = [np.zeros_like(array) for array in parameters]

    def steps() -> Iterator[float]:
        W1, b1, W2, b2 = parameters
        for rows in task.batches:
            X, y = task.X[rows], task.y[rows]
            H = pb.linear(X, W1, b1, activation=pb.relu)
            loss, (gH, gW2, gb2) = pb.softmax_cross_entropy.value_and_grad(
                H, y, W2, b2, wrt=("X", "w", "b")
            )
            _, gW1, gb1 = pb.linear.vjp(X, W1, b1, gH, activation=pb.relu)
            for array, velocity, gradient in zip(
                parameters, velocities, (gW1, gb1, gW2, gb2), strict=True
            ):
                velocity *= MOMENTUM
                velocity += gradient
                array -= RATE * velocity
            yield loss

    def accuracy() -> float:
        W1, b1, W2, b2 = parameters
        scores = pb.linear(pb.linear(task.X_test, W1, b1, activation=pb.relu), W2, b2)
        return float(np.mean(scores.argmax(axis=1) == task.y_test))

    return timed(steps(), accuracy)


def by_torch(task: Task) -> Training:
    """Train with PyTorch's autograd and optimizer."""
    torch: Any = import_module("torch")
    parameters = [torch.from_numpy(array.copy()).requires_grad_() for array in task.start]
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM)
    functional = torch.nn.functional
    data, labels = torch.from_numpy(task.X), torch.from_numpy(task.y)

    def scores(X: Any) -> Any:
        W1, b1, W2, b2 = parameters
        return torch.addmm(b2, torch.relu(torch.addmm(b1, X, W1)), W2)

    def steps() -> Iterator[float]:
        for rows in map(torch.from_numpy, task.batches):
            loss = functional.cross_entropy(scores(data[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()

    def accuracy() -> float:
        with torch.no_grad():
            read = scores(torch.from_numpy(task.X_test)).argmax(1).numpy()
        return float(np.mean(read == task.y_test))

    return timed(steps(), accuracy)


def draw(trainings: dict[str, Training], path: Path) -> None:
    """Write the loss curves."""
    styles: Sequence[dict[str, Any]] = (
        {"color": "#c8501e", "linewidth": 1.6},
        {"color": "#1f5fa8", "linewidth": 5, "alpha": 0.35},
    )
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (name, training), style in zip(trainings.items(), styles, strict=False):
        label = f"{name}: {median(training.seconds) * 1e6:.0f} us a step"
        axes.semilogy(training.losses, label=label, **style)
    axes.set(
        title="A two-layer ReLU network on handwritten digits",
        xlabel="step",
        ylabel="cross entropy of the batch",
    )
    axes.grid(visible=True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, Training]:
    """Train, compare, print and draw; return the trainings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=64, help="hidden units (default: 64)")
    parser.add_argument("--steps", type=int, default=100, help="(default: 100)")
    parser.add_argument("--batch", type=int, default=256, help="samples a step (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the start and the batches")
    parser.add_argument(
        "--output", type=Path, default=Path("mlp.png"), help="the loss curves, a PNG file"
    )
    options = parser.parse_args(arguments)

    task = load(options.hidden, options.steps, options.batch, options.seed)
    trainings = {"pullback": by_pullback(task)}
    if find_spec("torch") is None:
        print("PyTorch is not installed, so there is nothing to compare with.")
    else:
        trainings["PyTorch"] = by_torch(task)

    print(
        f"{len(task.y)} digits, {options.hidden} hidden units, {options.steps} steps of "
        f"{options.batch}, {pb.backend()} backend\n\n"
        f"{'':10}{'first loss':>14}{'last loss':>14}{'read right':>12}{'a step':>12}"
    )
    for name, training in trainings.items():
        print(
            f"{name:10}{training.losses[0]:14.8f}{training.losses[-1]:14.8f}"
            f"{training.accuracy:12.1%}{median(training.seconds) * 1e6:9.0f} us"
        )
    draw(trainings, options.output)
    print(f"\nLoss curves: {options.output}")
    if "PyTorch" in trainings:
        curves = [np.array(training.losses) for training in trainings.values()]
        difference = float(np.abs(curves[0] - curves[1]).max())
        print(f"Largest difference of the losses: {difference:.1e}")
        if not difference <= TOLERANCE:
            sys.exit(f"The losses differ by {difference:.1e}, more than {TOLERANCE:g}.")
    return trainings


if __name__ == "__main__":
    main()

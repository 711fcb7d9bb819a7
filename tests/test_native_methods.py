"""The extension's callables own what they know: it dies with them, and no call sees it change."""

from __future__ import annotations

import gc
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pullback as pb
import pytest
import scipy.sparse as sp
from protocol import TARGETS, native
from pullback.chain_steps import make_step, other
from test_hostile_arguments import CASES


def nothing(X: Any, y: Any, w: Any, x: Any, p: Any, g: Any) -> None:
    """Take what a fast path leaves."""


X, Y = np.ones((4, 3)), np.ones(4)


KINDS: dict[str, Callable[[], Any]] = {
    "a method of several outputs": lambda: native.elementwise_method("multiply", "vjp", nothing),
    "a ufunc": lambda: native.elementwise_ufunc("tanh", "vjp", "name", "doc"),
    "a reduction": lambda: native.reduction_method(
        "norm", "grad", "p", 3.0, None, lambda x, p: None
    ),
    "a map of rows": lambda: native.reduction_method(
        "softmax", "vjp", "", 0.0, None, lambda x, g: x
    ),
    "a loss": lambda: native.loss_method("huber", 1.5, "value", None, nothing),
    "a selection": lambda: native.selection_method("clip", "vjp", nothing),
    "a product": lambda: native.product_method("matmul", "value", nothing),
    "a walk of a chain": lambda: native.ChainWalk(STEPS, pb.arg, other),
    "a chain that leads back to itself": lambda: Model(),
    "partial sums": lambda: native.loss_method(
        "huber", 1.5, "partial", (pb.PartialSums, "title"), nothing
    ),
    "an objective": lambda: native.objective_method(
        *("logistic", 0.0, X, Y, None, None, 4, 3, 0.5, 1, True, False, pb.sigmoid, "hvp"), nothing
    ),
    "pb.LinearObjective": lambda: pb.LinearObjective(X, Y, pb.relu_mse),
    "an objective that its data lead back to": lambda: leading_back(),
    "pb.huber(1.5)": lambda: pb.huber(1.5),
    "pb.pointwise_loss": lambda: pb.pointwise_loss(nothing, nothing),
    "pb.chain": lambda: pb.chain(pb.square, pb.exp),
}


STEPS = (make_step("step", pb.tanh, (pb.arg,), {}),)


class Model:
    """A primitive that holds a chain of which it is a step."""

    def __init__(self) -> None:
        self.f = pb.chain(pb.tanh, (self, pb.arg))

    def __call__(self, x: Any) -> Any:
        return x

    def vjp(self, x: Any, g: Any) -> Any:
        return g

    jvp = vjp


def leading_back() -> Any:
    """Return an objective that a sparse matrix of its data holds."""
    matrix = sp.csr_array(X)
    matrix.objective = pb.LinearObjective(matrix, Y, pb.relu_mse)
    return matrix.objective


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_behind(kind: str) -> None:
    make = KINDS[kind]
    count = 2000
    for _ in range(count):  # until what waits for the collector has its memory
        make()
    before = resident()
    for _ in range(count):
        make()
    assert resident() - before < 50 * count


def test_targets_change_while_calls_run() -> None:
    """Each call is one target's, whichever it meets."""
    rng = np.random.default_rng(0)
    x, g = rng.normal(0, 2, 1000), rng.normal(size=1000)
    X, y, w = rng.normal(size=(50, 20)), rng.normal(size=50), rng.normal(size=20)
    calls: list[Callable[[], Any]] = [
        lambda: pb.tanh(x).tobytes(),
        lambda: pb.multiply.vjp(x, x, g)[0].tobytes(),
        lambda: pb.logsumexp.grad(x).tobytes(),
        lambda: pb.huber.value(X, y, w),
    ]
    before = native.active_target()
    wanted: list[set[Any]] = [set() for _ in calls]
    over = threading.Event()
    wrong = []

    def work() -> None:
        while not over.is_set():
            for call, results in zip(calls, wanted, strict=True):
                if call() not in results:
                    wrong.append(call)

    threads = [threading.Thread(target=work) for _ in range(3)]
    try:
        for name in TARGETS:
            native.set_target(name)
            for call, results in zip(calls, wanted, strict=True):
                results.add(call())
        for thread in threads:
            thread.start()
        for _ in range(15):
            for name in TARGETS:
                native.set_target(name)
                assert native.active_target() == name
                assert pb.tanh(x).tobytes() in wanted[0]
    finally:
        over.set()
        for thread in threads:
            thread.join()
        native.set_target(before)
    assert not wrong


# --- the oracle -----------------------------------------------------------------------------------


def called(call: Callable[[], Any]) -> set[str]:
    """Return which functions of the oracle a call runs through."""
    found = set()

    def note(frame: Any, event: str, _: Any) -> None:
        where = Path(frame.f_code.co_filename)
        if event == "call" and where.parent.name == "oracle":
            found.add(f"{where.stem}.{frame.f_code.co_name}")

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def test_native_results_do_not_come_from_the_oracle() -> None:
    assert called(lambda: pb.reference.tanh.derivative(1.0)) == {"elementwise.sech_squared"}
    for case, primitives in CASES:
        if primitives is pb:
            assert not called(case), case.name
    X, y = np.ones((4, 3)), np.ones(4)
    for loss in ("relu_mse", "logistic", "poisson", "softmax_cross_entropy"):
        labels = y.astype(int) if loss == "softmax_cross_entropy" else y
        objective = pb.LinearObjective(X, labels, getattr(pb, loss), l2=0.5)
        theta = objective.initial()
        parameters = objective.unpack(theta)
        for call in (
            lambda o=objective, t=theta: o.value_and_grad(t),
            lambda o=objective, t=theta: o.hvp(t, t),
            lambda o=objective, t=theta: o.predict(X, t),
            lambda o=objective, t=theta: o.predict(X.tolist(), t),
            lambda f=pb.losses.losses[loss], t=labels, p=parameters: f.curvature.__wrapped__(
                X, t, *p
            ),
        ):
            assert not called(call), loss

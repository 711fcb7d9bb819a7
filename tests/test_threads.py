"""Threads: their number, equal bits for any number, forks, and a clean exit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pullback as pb
import pytest
from oracles import assert_same_bits
from protocol import (
    Call,
    arguments,
    assert_same_leaves,
    calls,
    dtypes,
    leaves,
    native,
)

# --- the number -----------------------------------------------------------------------------------


def test_set_and_get() -> None:
    before = pb.get_num_threads()
    assert before >= 1
    try:
        for n in (1, 2, 7, np.int64(3)):
            pb.set_num_threads(n)
            assert pb.get_num_threads() == n
            assert type(pb.get_num_threads()) is int
    finally:
        pb.set_num_threads(before)


def test_a_block_with_its_own_number() -> None:
    before = pb.get_num_threads()
    with pb.threads(3):
        assert pb.get_num_threads() == 3
        with pb.threads(1):
            assert pb.get_num_threads() == 1
        assert pb.get_num_threads() == 3
    assert pb.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), pb.threads(5):
        raise ZeroDivisionError
    assert pb.get_num_threads() == before


@pytest.mark.parametrize("bad", [0, -1, 1025, 2**31, 2**40, 2**100])
def test_numbers_out_of_range(bad: int) -> None:
    before = pb.get_num_threads()
    with pytest.raises(ValueError, match=f"from 1 to 1024, not {bad}"):
        pb.set_num_threads(bad)
    with pytest.raises(ValueError, match="1024"), pb.threads(bad):
        pass
    assert pb.get_num_threads() == before


@pytest.mark.parametrize("bad", [1.0, "2", None, True, [1], np.float64(2)], ids=repr)
def test_what_is_no_number(bad: Any) -> None:
    before = pb.get_num_threads()
    with pytest.raises(TypeError, match="must be an integer"):
        pb.set_num_threads(bad)
    assert pb.get_num_threads() == before


@pytest.mark.native
def test_the_default_is_not_that_of_the_first_caller(run_python: Callable[..., Any]) -> None:
    """A thread with fewer CPUs calls first."""
    script = """
import os, threading
import numpy as np, pullback as pb
def first():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pb.tanh(np.ones(100_000))
thread = threading.Thread(target=first)
thread.start()
thread.join()
print(pb.get_num_threads(), pb._native.available_cpus())
"""
    threads, cpus = run_python(script).stdout.split()
    assert threads == cpus


@pytest.mark.native
def test_threadpoolctl_sees_and_limits_it() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def ours() -> dict[str, Any]:
        (found,) = [m for m in threadpoolctl.threadpool_info() if m["user_api"] == "pullback"]
        return dict(found)

    with pb.threads(5):
        assert ours()["num_threads"] == 5
        assert ours()["version"] == pb.__version__
        assert ours()["internal_api"] == "pullback"
        for limit in (2, {"pullback": 2}):
            with threadpoolctl.threadpool_limits(limit):
                assert pb.get_num_threads() == ours()["num_threads"] == 2
            assert pb.get_num_threads() == 5
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            assert pb.get_num_threads() == 5


@pytest.mark.native
def test_threadpoolctl_is_not_misled_by_a_name(
    run_python: Callable[..., Any], tmp_path: Path
) -> None:
    """Other packages call their extension ``_native`` too."""
    pytest.importorskip("threadpoolctl")
    namesake = tmp_path / f"_native{Path(native.__file__).suffix}"
    script = (
        "import _ctypes, ctypes, shutil, sys; shutil.copy(_ctypes.__file__, sys.argv[1])\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "import pullback, threadpoolctl\n"
        "print([m['user_api'] for m in threadpoolctl.threadpool_info()].count('pullback'))"
    )
    assert run_python(script, str(namesake)).stdout.split() == ["1"]


# --- the same bits --------------------------------------------------------------------------------

SIZES = (32_768, 32_769, 100_001, 1_000_003)  # 2^15 float32 of one operand are one chunk


@pytest.mark.native
@calls
@dtypes
def test_same_bits_for_any_number_of_threads(call: Call, dtype: np.dtype) -> None:
    pool = arguments(call, dtype, 3001)
    f = call.native()
    expected = list(leaves(f(*pool)))
    for n in SIZES if call.op in ("tanh", "multiply") else SIZES[:-1]:
        given = [np.resize(x, n) for x in pool]
        wanted = [np.resize(leaf, n) for leaf in expected]
        for threads in (1, 3, 8) if n < SIZES[-1] else range(1, 9):
            with pb.threads(threads):
                for leaf, exact in zip(leaves(f(*given)), wanted, strict=True):
                    assert_same_bits(leaf, exact)
    strided = [np.resize(x, (40_001, 2)).T[0] for x in pool]
    outs = f(*strided)
    with pb.threads(3):
        assert_same_leaves(f(*strided), outs)


@pytest.mark.native
def test_concurrent_calls_from_eight_threads() -> None:
    """Kernels are re-entrant, and nobody gets somebody else's result."""
    sizes = (10, 1000, 33_000, 200_000)
    data = {n: np.random.default_rng(n).normal(size=n) for n in sizes}
    wanted = {n: [pb.tanh.vjp(x, x), *pb.multiply.vjp(x, x, x)] for n, x in data.items()}
    barrier = threading.Barrier(8)

    def work(first: int) -> None:
        barrier.wait()
        for i in range(30):
            n = sizes[(first + i) % len(sizes)]
            x = data[n]
            assert_same_bits(pb.tanh.vjp(x, x), wanted[n][0])
            for leaf, exact in zip(pb.multiply.vjp(x, x, x), wanted[n][1:], strict=True):
                assert_same_bits(leaf, exact)

    for threads in (1, 2, 5):
        with pb.threads(threads), ThreadPoolExecutor(8) as executor:
            list(executor.map(work, range(8)))


@pytest.mark.native
def test_number_changes_while_calls_run() -> None:
    x = np.random.default_rng(0).normal(size=300_000)
    wanted = pb.tanh(x)
    done = threading.Event()
    failures = []

    def work() -> None:
        while not done.is_set():
            if pb.tanh(x).tobytes() != wanted.tobytes():
                failures.append("differs")

    before = pb.get_num_threads()
    workers = [threading.Thread(target=work) for _ in range(3)]
    try:
        for worker in workers:
            worker.start()
        for i in range(60):
            pb.set_num_threads(1 + i % 8)
            time.sleep(0.005)
    finally:
        done.set()
        for worker in workers:
            worker.join()
        pb.set_num_threads(before)
    assert not failures


@pytest.mark.native
def test_the_gil_is_released() -> None:
    """Another Python thread runs while a kernel does."""
    n, d = 20_000, 5000
    X = np.broadcast_to(np.ones(d), (n, d))
    y, w = np.ones(n), np.ones(d)
    ticks = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    other = threading.Thread(target=tick)
    other.start()
    with pb.threads(1):
        begin = time.perf_counter()
        pb.relu_mse.value_and_grad(X, y, w, 0.0)
        end = time.perf_counter()
    done.set()
    other.join()
    during = [t for t in ticks if begin < t < end]
    assert len(during) > min(10, (end - begin) / 0.02), (len(during), end - begin)


# --- forks ----------------------------------------------------------------------------------------

FORK_WHILE_THREADS_COMPUTE = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads is a bad idea
import numpy as np, pullback as pb
pb.set_num_threads(4)
x = np.linspace(-5, 5, 400_000)
X, y, w = np.ones((3000, 100)), np.ones(3000), np.full(100, 0.5)
wanted, wanted_loss = pb.tanh(x), pb.relu_mse.value_and_grad(X, y, w, 0.0)
done = threading.Event()
def work():
    while not done.is_set():
        pb.tanh(x)
        pb.relu_mse.value_and_grad(X, y, w, 0.0)
for _ in range(3):
    threading.Thread(target=work).start()
def right():
    loss, (gw, gb) = pb.relu_mse.value_and_grad(X, y, w, 0.0)
    return ((pb.tanh(x) == wanted).all() and loss == wanted_loss[0]
            and (gw == wanted_loss[1][0]).all() and gb == wanted_loss[1][1])
def stop(message):
    print(message, flush=True)
    os._exit(0 if message == "fine" else 1)
for i in range(25):
    time.sleep(0.002 * (i % 5))
    child = os.fork()
    if child == 0:
        ok = all(right() for _ in range(3))
        pb.set_num_threads(3)
        ok = ok and right() and pb.get_num_threads() == 3
        os._exit(0 if ok else 1)
    deadline = time.monotonic() + 20
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, 9)
            stop(f"child {i} hangs")
        time.sleep(0.001)
    if status:
        stop(f"child {i} failed: {status}")
done.set()
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join()
stop("fine" if right() else "the parent computes wrong")
"""

MULTIPROCESSING_FORK = """
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np, pullback as pb
pb.set_num_threads(3)
x = np.linspace(-5, 5, 400_000)
wanted = pb.tanh(x)
def work(seed):
    return bool((pb.tanh(x) == wanted).all())
if __name__ == "__main__":
    for method in ("fork",):
        with multiprocessing.get_context(method).Pool(4) as pool:
            assert all(pool.map(work, range(16)))
    assert work(0)
    print("fine")
"""


@pytest.mark.native
@pytest.mark.parametrize(
    "script", [FORK_WHILE_THREADS_COMPUTE, MULTIPROCESSING_FORK], ids=["os.fork", "multiprocessing"]
)
def test_fork(run_python: Callable[..., Any], script: str) -> None:
    assert run_python(script, timeout=90).stdout.split() == ["fine"]


@pytest.mark.native
def test_idle_workers_have_left_before_a_fork(run_python: Callable[..., Any]) -> None:
    """So the process has no thread but Python's own, and the next call starts them anew."""
    script = """
import os, sys, time
import numpy as np, pullback as pb
pb.set_num_threads(4)
x = np.linspace(-5, 5, 400_000)
def threads():
    return len(os.listdir("/proc/self/task"))
assert threads() == 1
wanted = pb.tanh(x)
assert threads() == 4
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(not (pb.tanh(x) == wanted).all())
    assert os.waitpid(child, 0)[1] == 0
    deadline = time.monotonic() + 20  # the system may be slow to forget a thread that ended
    while threads() > 1:
        assert time.monotonic() < deadline
    assert (pb.tanh(x) == wanted).all()
    assert threads() == 4
"""
    run_python(script, OPENBLAS_NUM_THREADS=1)


# --- exit -----------------------------------------------------------------------------------------

EXITS = {
    "after a call": "pb.tanh(x)",
    "with daemon threads computing": """
def work():
    while True:
        pb.tanh(x)
        pb.relu_mse.value_and_grad(X, y, w, 0.0)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
""",
    "with daemon threads in Python below a call": """
class Sparse:
    def __getattr__(self, name):  # new objects, so that theirs are the last references
        if name == "shape":
            while True:
                time.sleep(0.001)
        return "".join(["c", "sr"]) if name == "format" else np.ones(100_000)
for _ in range(4):
    threading.Thread(
        target=lambda: pb.logistic.value(Sparse(), np.ones(5), np.ones(5)), daemon=True
    ).start()
time.sleep(0.05)
""",
    "with daemon threads measuring": """
def work():
    while True:
        native.measure_read_bandwidth(1 << 24)
from pullback import _native as native
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
""",
    "with a thread that ends last": """
def work():
    time.sleep(0.2)
    for _ in range(20):
        pb.tanh(x)
threading.Thread(target=work).start()
""",
    "from an exit handler": """
import atexit
atexit.register(lambda: print("late", float(pb.tanh(x)[0])))
pb.tanh(x)
""",
    "by sys.exit in mid-air": "pb.tanh(x); sys.exit(0)",
}


@pytest.mark.native
@pytest.mark.parametrize("body", EXITS.values(), ids=EXITS.keys())
def test_exit_is_clean(run_python: Callable[..., Any], body: str) -> None:
    script = (
        "import sys, threading, time\nimport numpy as np, pullback as pb\npb.set_num_threads(4)\n"
        "x = np.linspace(-5, 5, 400_000)\n"
        "X, y, w = np.ones((3000, 100)), np.ones(3000), np.ones(100)\n"
    )
    for _ in range(2):
        done = run_python(script + body, timeout=30)
        assert not done.stderr

"""What signal handlers may do in mid-call: fork, and change the floating-point environment."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from fp_env import FloatEnvironment
from long_calls import LONG_CALLS
from protocol import TARGETS

pytestmark = pytest.mark.native

# One call without a handler, then the same amid which `handle` is called once or more often.
SCRIPT = """
import os, signal, sys, time
import numpy as np, pullback as pb
pb.set_num_threads({threads})
{make}
def bits(result):
    if isinstance(result, tuple):
        return b"".join(map(bits, result))
    return np.asarray(result).tobytes()
def timed(n):
    call = make(n)
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, bits(result)
n = {few}
timed(n)
while (seconds := min(timed(n)[0] for _ in range(2))) < 0.03:
    n *= 2
n = int(n * max(1, 0.3 / seconds))
seconds, wanted = timed(n)
while seconds < 0.25:  # it was slow when it was first timed
    n *= 2
    seconds, wanted = timed(n)
handled = []
over = False
def soon():
    signal.setitimer(signal.ITIMER_REAL, 0.02)
def handler(*_):
    if over:
        return
    handle()
    handled.append(time.perf_counter())
    soon()  # not before: a fork may take longer
{body}
signal.signal(signal.SIGALRM, handler)
call = make(n)
before()
soon()
result = call()
end = time.perf_counter()
over = True
signal.setitimer(signal.ITIMER_REAL, 0)
assert handled[0] < end - 0.001, (handled, end)  # else it was not amid the call
assert bits(result) == wanted
after()
"""

FORK = """
children, parent = [], os.getpid()
def handle():
    if os.getpid() != parent or len(children) == 2:
        return
    pid = os.fork()
    if pid:
        children.append(pid)
    else:
        signal.alarm(60)
def before():
    pass
def after():
    if os.getpid() != parent:
        # The child has what it needs to go on, too.
        x = np.linspace(-5, 5, 400_000)
        assert np.allclose(pb.tanh(x), np.tanh(x))
        os._exit(0)
    assert children
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
sys.excepthook = lambda *what: (sys.__excepthook__(*what), sys.stderr.flush(), os._exit(1))
"""

FLOATS = f"""
import ctypes, functools, operator, platform
{inspect.getsource(FloatEnvironment)}
fenv = FloatEnvironment()
modes = list(fenv.MODES.values())
now = modes[-1]
def handle():
    global now
    assert fenv.mode() == now
    now = modes[len(handled) % len(modes)]
    fenv.set_mode(now)
def before():
    fenv.set_mode(now)
def after():
    assert fenv.mode() == now
    fenv.set_mode(0)
"""


def run(run_python: Callable[..., Any], name: str, threads: int, body: str) -> None:
    few, make = LONG_CALLS[name]
    script = SCRIPT.format(threads=threads, few=max(1, few // 8), make=make, body=body)
    # The slowest target makes the calls long without making the arrays large.
    run_python(script, timeout=120, PULLBACK_TARGET=TARGETS[-1])


# Each has a loop of its own on one thread.
SERIAL = ("relu_mse", "elementwise", "over what lies behind", "reduce", "matmul")
# One long call of every engine.
ENGINES = (
    *SERIAL,
    "few wide rows",
    "sparse rows",
    "chain",
    "accumulate",
    "integers",
    "summed cotangents",
    "linear",
    "a reduction",
    "softmax",
    "pointwise",
)


@pytest.mark.parametrize(
    ("name", "threads"), [*((name, 2) for name in ENGINES), *((name, 1) for name in SERIAL)]
)
def test_both_processes_go_on(run_python: Callable[..., Any], name: str, threads: int) -> None:
    """A handler that forks: parent and children get the same bits."""
    run(run_python, name, threads, FORK)


@pytest.mark.parametrize(
    ("name", "threads"), [*((name, 2) for name in ENGINES), *((name, 1) for name in SERIAL[::2])]
)
def test_floating_point_environment(
    run_python: Callable[..., Any], name: str, threads: int
) -> None:
    """A handler finds its caller's, may change it, and leaves the kernel's alone."""
    run(run_python, name, threads, FLOATS)


SLOW = """
import signal, time
import numpy as np, pullback as pb
pb.set_num_threads({threads})
x = np.ones(1_000_000)
seconds = float("inf")
for _ in range(3):
    begin = time.perf_counter()
    pb.tanh(x)
    seconds = min(seconds, time.perf_counter() - begin)
x = np.ones(int(1_000_000 * 0.5 / seconds))
handled = 0
def handler(*_):
    global handled
    time.sleep(0.1)
    handled += 1
    signal.setitimer(signal.ITIMER_REAL, 0.001)
signal.signal(signal.SIGALRM, handler)
begin = time.perf_counter()
signal.setitimer(signal.ITIMER_REAL, 0.001)
pb.tanh(x)
elapsed = time.perf_counter() - begin
signal.setitimer(signal.ITIMER_REAL, 0)
assert 1 <= handled <= 3 + elapsed, (handled, elapsed)  # one before, one after, one a second
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_slow_handlers_leave_time_to_compute(run_python: Callable[..., Any], threads: int) -> None:
    """A timer that is always due: its handler of 100 ms runs once a second, not 20 times."""
    run_python(SLOW.format(threads=threads), PULLBACK_TARGET=TARGETS[-1])

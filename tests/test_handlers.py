"""What handlers of signals may do in mid-call: raise, fork, change how floats are rounded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from fp_env import FloatEnvironment
from long_calls import LONG_CALLS
from protocol import TARGETS

pytestmark = pytest.mark.native

# A call that is `long` enough. All is measured by CPU time: busy machines do not matter.
MEASURE = """
pb.set_num_threads(threads)
def spread(low, high, n):
    return np.resize(np.linspace(low, high, 9973), n)
def timed(n):
    call = make(n)
    begin = time.process_time()
    result = call()
    return time.process_time() - begin, result
def bits(result):
    if isinstance(result, tuple):
        return tuple(map(bits, result))
    return zlib.crc32(np.ascontiguousarray(result))
n = few
timed(n)
while (seconds := timed(n)[0]) < 0.01:
    n *= 2
measured = timed(n := int(n * max(1, long / seconds)))
while measured[0] < 0.8 * long:  # it was slow when it was first timed
    measured = timed(n := n * 2)
seconds, wanted = measured[0], handles and bits(measured[1])
del measured
"""

# As Ctrl-C, but from a clock: a thread would wait for the GIL, which NumPy keeps in accumulate.
# Calls that do not ask end with KeyboardInterrupt, too, but at their very end.
INTERRUPT = """
signal.signal(signal.SIGPROF, signal.default_int_handler)
call = make(n)
def interrupted():
    begin = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 0.02)
    try:
        call()
    except KeyboardInterrupt:
        return time.process_time() - begin
    raise AssertionError("was not interrupted")
for _ in range(9):  # others may have the CPU of the thread that asks
    if (taken := interrupted()) < 0.75 * seconds:
        break
assert taken < 0.75 * seconds, (taken, seconds)
x = np.linspace(-5, 5, 400_000)
for threads in (1, 2, 4):
    pb.set_num_threads(threads)
    assert np.allclose(pb.tanh(x), np.tanh(x))
assert pb.relu_mse.value(np.ones((3000, 100)), np.ones(3000), np.zeros(100), 1.0) == 0
"""

# Amid a call a handler forks, and changes the floating-point environment whenever it is called.
HANDLERS = """
fenv = FloatEnvironment()
modes = list(fenv.MODES.values())
now = modes[-1]
handled, over, child, parent = [], False, None, os.getpid()
def soon():
    signal.setitimer(signal.ITIMER_REAL, 0.02)
def handler(*_):
    global now, child
    if over:
        return
    begun = time.process_time()
    assert fenv.mode() == now
    now = modes[len(handled) % len(modes)]
    fenv.set_mode(now)
    if child is None:
        child = os.fork()
    handled.append(begun)
    soon()  # not before: a fork may take longer
signal.signal(signal.SIGALRM, handler)
call = make(n)
fenv.set_mode(now)
begin = time.process_time()
soon()
result = call()
end = time.process_time()
over = True
signal.setitimer(signal.ITIMER_REAL, 0)
status = 1
try:
    assert fenv.mode() == now
    fenv.set_mode(0)
    assert bits(result) == wanted
    x = np.linspace(-5, 5, 400_000)
    assert np.allclose(pb.tanh(x), np.tanh(x))
    status = 0
finally:
    if os.getpid() != parent:
        os._exit(status)
# Its own time is all that a call has from its begin to its end, so this handler was called amid it.
assert handled and handled[0] - begin < 0.9 * (end - begin), (begin, handled, end)
deadline = time.monotonic() + 60
while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
    if time.monotonic() > deadline:
        os.kill(child, signal.SIGKILL)
    time.sleep(0.005)
assert ended[1] == 0, ended
"""


# Memory stays with the process, or pages that are new with every call would take most of the time.
KEEP = {
    "MALLOC_MMAP_MAX_": 0,
    "MALLOC_TRIM_THRESHOLD_": 2**33,
    "PULLBACK_KEPT_MEMORY": 2**33,
}

# Each has a loop of its own on one thread.
SERIAL = ("relu_mse", "elementwise", "over what lies behind", "reduce", "matmul")
# One long call of every engine that methods enter at once: others guard their caller's environment.
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


# Many to a process, which takes longer to start than a call to run.
INTERRUPTED = [name for name in LONG_CALLS if name not in SERIAL]

RUN = """
for name, (few, make) in calls.items():
    own = {**globals(), "few": max(1, few // 8)}
    try:
        exec(make + body, own)
    except BaseException as error:
        error.add_note(name)
        raise
    del own
"""


@pytest.mark.parametrize(
    ("names", "threads"),
    [
        *((INTERRUPTED[i::2], 1) for i in range(2)),
        (SERIAL, 1),
        *((ENGINES[i::2], 2) for i in range(2)),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else " ".join(value),
)
def test_long_calls(run_python: Callable[..., Any], names: Sequence[str], threads: int) -> None:
    """A long call answers Ctrl-C, and the pool stays usable.

    Where a handler forks, parent and child get the same bits. A handler finds its caller's
    floating-point environment, may change it, and leaves the kernel's alone.
    """
    serial = names[0] in SERIAL
    body = MEASURE + (INTERRUPT if threads == 1 or serial else "")
    handles = threads == 2 or serial
    body += HANDLERS if handles else ""
    long = 0.15 * threads  # there are polls every 50 ms
    script = (
        "import ctypes, functools, operator, os, platform, signal, time, zlib\n"
        "import numpy as np, pullback as pb\n"
        f"{inspect.getsource(FloatEnvironment)}\n"
        f"threads, long, handles, body = {threads}, {long}, {handles}, {body!r}\n"
        f"calls = { {name: LONG_CALLS[name] for name in names}!r}\n{RUN}"
    )
    # The slowest target makes the calls long without making the arrays large.
    run_python(script, timeout=300, PULLBACK_TARGET=TARGETS[-1], **KEEP)


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

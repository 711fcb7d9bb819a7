"""Memory of freed results that stays for the next ones."""

from __future__ import annotations

import ctypes
import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pullback as pb
import pytest
from numpy._core.multiarray import _ARRAY_API, get_handler_name
from protocol import native

pytestmark = pytest.mark.native

LEAST = 1 << 18  # bytes of a result that is kept
N = 1 << 17  # float64 of a mebibyte


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Begin with nothing kept and a limit of 64 MiB."""
    limit = native.kept_limit()
    gc.collect()
    pb.set_kept_memory(0)
    assert native.kept_bytes() == 0
    pb.set_kept_memory(64 << 20)
    yield
    pb.set_kept_memory(limit)


def ones(n: int = N, value: float = 1.0) -> Any:
    """Return a result: `value` >= 0, n times."""
    x = np.full(n, value)
    return pb.relu.vjp(x, x)


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


CALLS: dict[str, Callable[[Any], Any]] = {
    "ufunc": lambda x: pb.tanh(x),
    "derivative": lambda x: pb.tanh.derivative(x),
    "transposed": lambda x: pb.tanh.vjp(x.T, x.T),
    "cotangents": lambda x: pb.multiply.vjp(x, x, x),
    "value_and_grad": lambda x: pb.logsumexp.value_and_grad(x)[1],
    "rows": lambda x: pb.softmax.vjp(x, x),
    "product": lambda x: pb.matmul(x, x),
    "product's cotangents": lambda x: pb.matmul.vjp(x, x, x),
    "layer": lambda x: pb.linear(x, x, activation=pb.relu),
    "layer's cotangents": lambda x: pb.linear.vjp(x, x, None, x, activation=pb.relu)[:2],
    "chain": lambda x: pb.chain(pb.exp, pb.tanh).value_and_vjp(x, x),
    "loss": lambda x: pb.squared_error.pointwise(x, x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_results_take_the_place_of_the_last(call: Callable[[Any], Any]) -> None:
    x = np.linspace(-1, 1, 256 * 256).reshape(256, 256)

    def results() -> list[Any]:
        result = call(x)
        arrays = result if isinstance(result, tuple) else (result,)
        return [array if array.base is None else array.base for array in arrays]

    arrays = results()
    for array in arrays:
        assert get_handler_name(array) == "pullback_kept"
        assert array.flags.owndata
    expected, places = [array.copy() for array in arrays], {address(array) for array in arrays}
    del array, arrays
    assert native.kept_bytes() >= sum(array.nbytes for array in expected)
    arrays = results()
    assert {address(array) for array in arrays} == places
    for array, copy in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_small_results_are_the_c_librarys() -> None:
    assert get_handler_name(ones(LEAST // 8 - 1)) == "default_allocator"
    assert get_handler_name(ones(LEAST // 8)) == "pullback_kept"
    # What NumPy makes itself, before and after, is NumPy's.
    assert get_handler_name(np.ones(N)) == "default_allocator"


def test_what_is_alive_is_not_given_away() -> None:
    alive = [ones(value=float(i)) for i in range(8)]
    view = ones(value=8.0)[3::7]  # the array itself is gone, its memory is not
    for i in range(20):
        ones(value=100.0 + i)
    for i, array in enumerate(alive):
        assert (array == i).all()
    assert (view == 8).all()
    spans = sorted((address(x), address(x) + x.nbytes) for x in alive)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_sizes_that_do_not_fit_are_not_reused() -> None:
    large = ones(2 * N)
    place = address(large)
    del large
    assert address(ones(N)) != place  # half of it would lie idle
    assert address(ones(2 * N - 100)) == place


def test_the_limit_is_held_and_the_newest_stay() -> None:
    pb.set_kept_memory(3 << 20)
    arrays = [ones() for _ in range(6)]
    places = [address(x) for x in arrays]
    while arrays:
        del arrays[0]
        assert native.kept_bytes() <= 3 << 20
    assert native.kept_bytes() == 3 << 20
    assert {address(x) for x in (ones(), ones(), ones())} <= set(places[3:])
    pb.set_kept_memory(1 << 20)
    assert native.kept_bytes() == 1 << 20
    pb.set_kept_memory(4 << 20)
    small, large = [ones() for _ in range(4)], ones(4 * N)
    del small[:], large  # takes the place of all others
    assert native.kept_bytes() == 4 << 20
    pb.set_kept_memory(0)
    assert native.kept_bytes() == 0
    assert (ones() == 1).all()
    assert native.kept_bytes() == 0
    assert "0.0 of 0.0 MiB" in pb.show_config("dict")["kept memory"]


@pytest.mark.parametrize("n", [N // 2, N - 1, N + 1, 40 * N])
def test_resize_keeps_the_elements(n: int) -> None:
    array = pb.tanh(np.arange(N, dtype=float))
    expected = array.copy()
    array.resize(n, refcheck=False)
    assert array.shape == (n,)
    common = min(n, N)
    np.testing.assert_array_equal(array[:common], expected[:common])
    assert not array[common:].any()
    del array
    assert (ones() == 1).all()


def test_tracemalloc_sees_results() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        array = ones()
        grown = tracemalloc.get_traced_memory()[0] - before
        assert array.nbytes <= grown < array.nbytes + 100_000
        del array
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()


def test_threads_share_what_is_kept() -> None:
    start = threading.Barrier(8)

    def work(seed: int) -> bool:
        start.wait()
        held: list[Any] = []
        for i in range(60):
            value = float(1000 * seed + i)
            held.append((value, ones(N // 4 + 64 * (i % 5), value)))
            if len(held) > 3:
                value, array = held.pop(i % 3)
                if not (array == value).all():
                    return False
        return all((array == value).all() for value, array in held)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [True] * 8


class _Allocator(ctypes.Structure):
    _fields_ = [("ctx", ctypes.c_void_p)] + [
        (name, ctypes.c_void_p) for name in ("malloc", "calloc", "realloc", "free")
    ]


class _Handler(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("at", _Allocator)]


def test_an_allocator_of_the_users_own_comes_first() -> None:
    libc, api = ctypes.CDLL(None), ctypes.pythonapi
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
        lambda _, n_bytes: libc.malloc(n_bytes)
    )
    free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
        lambda _, memory, __: libc.free(memory)
    )
    functions = [ctypes.cast(f, ctypes.c_void_p).value for f in (malloc, free)]
    handler = _Handler(b"theirs", 1, _Allocator(None, functions[0], None, None, functions[1]))
    table = ctypes.cast(api.PyCapsule_GetPointer(_ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    # The place of PyDataMem_SetHandler, which is part of NumPy's ABI.
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[304])
    x = np.ones(N)
    before = set_handler(api.PyCapsule_New(ctypes.addressof(handler), b"mem_handler", None))
    try:
        result = pb.relu.vjp(x, x)
        assert get_handler_name(result) == "theirs"
        assert (result == 1).all()
        assert get_handler_name(np.ones(N)) == "theirs"
        del result
        gc.collect()
    finally:
        set_handler(before)
    assert get_handler_name(pb.tanh(x)) == "pullback_kept"


def test_results_that_outlive_the_interpreter(run_python: Callable[..., Any]) -> None:
    script = """
import os
import numpy as np
import pullback as pb
x = np.ones(1 << 17)
kept = [pb.tanh(x) for _ in range(4)]
del kept[1]
child = os.fork()
if child == 0:
    assert (pb.exp(x) == np.e).all()
    del kept[0]
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
pb.kept = kept
print("done")
"""
    # Python warns of a fork while there are other threads.
    done = run_python(script, PULLBACK_NUM_THREADS=1, OPENBLAS_NUM_THREADS=1)
    assert done.stdout == "done\n"
    assert not done.stderr


def test_what_is_kept_goes_where_memory_ends(run_python: Callable[..., Any]) -> None:
    script = """
import re, resource
import numpy as np
import pullback as pb
pb.set_kept_memory(96 << 20)
x = np.ones(3 << 20)
held = [pb.tanh(x) for _ in range(4)]
y = np.ones(8 << 20)
del held
assert pb.show_config("dict")["kept memory"] == "96.0 of 96.0 MiB"
size = 1024 * int(re.search("VmSize:\\s*(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), size + (16 << 20)))
print((pb.exp(y) == np.e).all(), pb.show_config("dict")["kept memory"])
try:
    pb.exp.vjp(np.ones((20, 1 << 20)), np.ones(1))
except MemoryError:
    print("MemoryError")
"""
    done = run_python(script)
    assert done.stdout.splitlines() == ["True 64.0 of 96.0 MiB", "MemoryError"]


@pytest.mark.parametrize("wrong", [-1, 10**18])
def test_limits_that_are_none(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"n_bytes.*{wrong}"):
        pb.set_kept_memory(wrong)
    assert native.kept_limit() == 64 << 20


@pytest.mark.parametrize("wrong", [1.5, "64", None, True])
def test_limits_that_are_no_integers(wrong: Any) -> None:
    with pytest.raises(TypeError, match="n_bytes must be an integer"):
        pb.set_kept_memory(wrong)
    assert native.kept_limit() == 64 << 20


def test_the_environment_sets_the_limit(run_python: Callable[..., Any]) -> None:
    script = "import pullback as pb; print(pb.show_config('dict')['kept memory'])"
    assert run_python(script, PULLBACK_KEPT_MEMORY=3 << 20).stdout == "0.0 of 3.0 MiB\n"
    assert run_python(script, PULLBACK_KEPT_MEMORY=0).stdout == "0.0 of 0.0 MiB\n"
    for wrong in ("64M", "1" * 19):
        done = run_python(script, check=False, PULLBACK_KEPT_MEMORY=wrong)
        assert done.returncode == 1
        assert "ValueError: PULLBACK_KEPT_MEMORY=" in done.stderr

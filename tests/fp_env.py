"""The floating-point environment: rounding mode, flushing, status flags."""

from __future__ import annotations

import ctypes
import functools
import operator
import platform


class FloatEnvironment:
    """The calling thread's floating-point environment, through the C library (x86-64 and Arm)."""

    # `fenv_t` is FPCR, FPSR on Arm, and x87's seven words, then MXCSR on x86.
    if platform.machine() == "aarch64":
        INVALID, DIVIDE_BY_ZERO, OVERFLOW, UNDERFLOW, INEXACT = 0x01, 0x02, 0x04, 0x08, 0x10
        MODES = {
            "nearest": 0,
            "downward": 0x800000,
            "upward": 0x400000,
            "toward zero": 0xC00000,
            "flush to zero": 0x1000000,
        }
        _MODE_WORD, _FLAG_WORDS = 0, (1,)
    else:
        INVALID, DIVIDE_BY_ZERO, OVERFLOW, UNDERFLOW, INEXACT = 0x01, 0x04, 0x08, 0x10, 0x20
        MODES = {
            "nearest": 0,
            "downward": 0x2000,
            "upward": 0x4000,
            "toward zero": 0x6000,
            "flush to zero": 0x8040,
        }
        _MODE_WORD, _FLAG_WORDS = 7, (1, 7)
    FLAGS = INVALID | DIVIDE_BY_ZERO | OVERFLOW | UNDERFLOW | INEXACT
    _MODE_BITS = functools.reduce(operator.or_, MODES.values())

    def __init__(self) -> None:
        self._libm = ctypes.CDLL("libm.so.6")
        self._state = (ctypes.c_uint32 * 8)()

    def _get(self) -> None:
        assert self._libm.fegetenv(self._state) == 0

    def mode(self) -> int:
        """Return the rounding mode and whether subnormals are flushed."""
        self._get()
        return self._state[self._MODE_WORD] & self._MODE_BITS

    def set_mode(self, mode: int) -> None:
        """Set the rounding mode and whether subnormals are flushed."""
        self._get()
        self._state[self._MODE_WORD] = (self._state[self._MODE_WORD] & ~self._MODE_BITS) | mode
        assert self._libm.fesetenv(self._state) == 0

    def flags(self) -> int:
        """Return the status flags that are up."""
        return int(self._libm.fetestexcept(self.FLAGS))

    def set_flags(self, flags: int) -> None:
        """Put exactly `flags` up."""
        self._get()
        for word in self._FLAG_WORDS:
            self._state[word] = (self._state[word] & ~self.FLAGS) | flags
        assert self._libm.fesetenv(self._state) == 0

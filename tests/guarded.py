"""Arrays that end, or begin, exactly at a page that the process may not touch."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PROT_NONE, _PROT_READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE


class Guarded:
    """A block of memory between two forbidden pages; a touch of either kills the process."""

    def __init__(self, nbytes: int = 16 * mmap.PAGESIZE) -> None:
        self._length = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, self._length + 2 * mmap.PAGESIZE)
        whole = np.frombuffer(self._map, np.uint8)
        self._address = whole.ctypes.data
        self._inside = whole[mmap.PAGESIZE : mmap.PAGESIZE + self._length]
        self._protect(_PROT_NONE)

    def _protect(self, protection: int) -> None:
        for page in (self._address, self._address + mmap.PAGESIZE + self._length):
            if _libc.mprotect(page, mmap.PAGESIZE, protection) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def array(
        self, n: int, dtype: Any, *, at_end: bool = True, stride: int = 1
    ) -> np.ndarray[Any, Any]:
        """Return n elements whose last (or first) byte borders on a forbidden page."""
        span = ((n - 1) * abs(stride) + 1) * np.dtype(dtype).itemsize if n else 0
        if span > self._length:
            raise ValueError(f"{span} bytes do not fit into {self._length}")
        start = self._length - span if at_end else 0
        return self._inside[start : start + span].view(dtype)[::stride]

    def close(self) -> None:
        """Lift the protection; the memory goes with the last array."""
        self._protect(_PROT_READ_WRITE)

"""Lets `threadpoolctl` see and limit the threads of pullback."""

from __future__ import annotations

import ctypes

__all__ = ["register"]


def register() -> None:
    """Make pullback known to threadpoolctl, if that is installed."""
    try:  # 3.2 is the first that takes controllers
        from threadpoolctl import LibController
        from threadpoolctl import register as register_controller
    except ImportError:
        return

    class PullbackController(LibController):  # type: ignore[misc]
        """Reads and sets the number of threads of the native kernels."""

        user_api = "pullback"
        internal_api = "pullback"
        filename_prefixes = ("_native",)
        check_symbols = ("pullback_get_num_threads", "pullback_set_num_threads")

        def get_version(self) -> str | None:
            # Asked of every library of that name, before the symbols are looked for.
            version = getattr(self.dynlib, "pullback_get_version", None)
            if version is None:
                return None
            version.restype = ctypes.c_char_p
            return bytes(version()).decode()

        def get_num_threads(self) -> int:
            return int(self.dynlib.pullback_get_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.pullback_set_num_threads(num_threads)

    register_controller(PullbackController)

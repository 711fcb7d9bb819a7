"""Programs of JAX: calls and gradients inside jit, by XLA's own functions and by pullback's.

    python bench/door_jax.py [--threads N] [--quick] [--only REGEX]

Both are compiled before they are timed, checked against JAX in float64, and take turns.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import doors
import environment

SIZES = (16, 1000, 1_000_000)
ROW = 32  # calls after each other in one program


def _row(f: Any, x: Any) -> Any:
    for _ in range(ROW):
        x = f(x)
    return x


def _gradient(f: Any, x: Any, g: Any) -> Any:
    import jax

    return jax.vjp(f, x)[1](g)[0]


def _compiled(program: Any, f: Any, arrays: Any) -> Callable[[], Any]:
    import jax

    jitted = jax.jit(partial(program, f))
    jitted(*arrays)
    return lambda: jitted(*arrays).block_until_ready()


def cases() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, Any], int]]:
    """Yield a label, a function of f and arrays, both fs, and a number of elements."""
    import jax
    import jax.numpy as jnp
    import pullback.interop.jax as pj

    exact_gelu = partial(jax.nn.gelu, approximate=False)
    pairs = {
        "tanh": (jnp.tanh, pj.tanh),
        "gelu": (exact_gelu, pj.gelu),
        "softplus": (jax.nn.softplus, pj.softplus),
        "softmax": (jax.nn.softmax, pj.softmax),
    }
    for name in ("tanh", "softmax"):
        yield f"{name} value", lambda f, x, _: f(x), pairs[name], SIZES[0]
        yield f"{name} value, {ROW} in a row", lambda f, x, _: _row(f, x), pairs[name], SIZES[0]
    for name, both in pairs.items():
        for n in SIZES:
            yield f"{name} gradient", _gradient, both, n


def main() -> int:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="of pullback (default 2)")
    parser.add_argument("--quick", action="store_true", help="short, to see it work")
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose label matches")
    options = parser.parse_args()
    environment.release()
    environment.limit_threads(options.threads)

    import jax
    import numpy as np
    from pullback.bench import peers

    jax.config.update("jax_enable_x64", True)
    peers.set_threads(options.threads)
    print(f"{options.threads} threads, JAX {jax.__version__}, {peers.versions()}")
    print(f"{'case':42}{'XLA':>12}{'pullback':>12}{'XLA/pullback':>18}")
    wrong = False
    for label, program, (theirs, ours), n in cases():
        for dtype in (np.float32, np.float64):
            title = f"{label} {n} {np.dtype(dtype)}"
            if not re.search(options.only, title):
                continue
            rng = np.random.default_rng(0)
            exact = [rng.standard_normal(n) for _ in range(2)]
            expected = [np.asarray(program(theirs, *exact))]
            arrays = [jax.device_put(a.astype(dtype)) for a in exact]
            contenders = [
                peers.Contender(name, "", _compiled(program, f, arrays), lambda r: (np.asarray(r),))
                for name, f in (("XLA", theirs), ("pullback", ours))
            ]
            rtol = 2e-3 if dtype == np.float32 else 1e-9
            right = doors.is_right(title, contenders, expected, rtol, quick=options.quick)
            wrong = wrong or not right
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

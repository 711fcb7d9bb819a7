"""Programs of PyTorch: forward and backward by PyTorch's own functions, and by pullback's.

    python bench/door_torch.py [--threads N] [--quick] [--only REGEX]

Both are eager, checked against PyTorch in float64, and take turns.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import doors
import environment

SHAPES = {"gelu": ((16,), (1000,), (1_000_000,)), "layer_norm": ((4, 16), (64, 64), (1000, 1000))}
SHAPES["cross entropy"] = ((4, 10), (64, 10), (10_000, 100))
MLPS = ((16, 8, 16), (64, 32, 64), (1000, 100, 256))  # samples, features, hidden units


def _gelu(torch: Any, pt: Any, leaves: Any) -> Iterator[Callable[[], Any]]:
    (x,) = leaves
    g = torch.ones_like(x)
    for f in (torch.nn.functional.gelu, pt.gelu):
        yield lambda f=f: torch.autograd.grad(f(x), x, g)


def _layer_norm(torch: Any, pt: Any, leaves: Any) -> Iterator[Callable[[], Any]]:
    (x,) = leaves
    n = x.shape[-1:]
    g = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
    for f in (lambda x: torch.nn.functional.layer_norm(x, n), pt.layer_norm):
        yield lambda f=f: torch.autograd.grad(f(x), x, g)


def _cross_entropy(torch: Any, pt: Any, leaves: Any) -> Iterator[Callable[[], Any]]:
    (z,) = leaves
    labels = torch.arange(len(z)) % z.shape[1]
    ours = pt.Loss("softmax_cross_entropy")
    for f in (torch.nn.functional.cross_entropy, ours):
        yield lambda f=f: torch.autograd.grad(f(z, labels), z)


def _mlp(torch: Any, pt: Any, leaves: Any) -> Iterator[Callable[[], Any]]:
    """One step of gradient descent's forward and backward pass: two layers, and a loss."""
    X, W, b, V, c = leaves
    labels = torch.arange(len(X)) % V.shape[1]
    F = torch.nn.functional

    def theirs() -> Any:
        h = F.gelu(torch.addmm(b, X, W))
        return torch.autograd.grad(F.cross_entropy(torch.addmm(c, h, V), labels), leaves[1:])

    loss = pt.Loss("softmax_cross_entropy")

    def ours() -> Any:
        z = pt.linear(pt.linear(X, W, b, activation="gelu"), V, c)
        return torch.autograd.grad(loss(z, labels), leaves[1:])

    yield theirs
    yield ours


def cases() -> Iterator[tuple[str, Any, list[tuple[int, ...]]]]:
    """Yield a label, a program, and the shapes of its tensors."""
    programs = {"gelu": _gelu, "layer_norm": _layer_norm, "cross entropy": _cross_entropy}
    for name, shapes in SHAPES.items():
        for shape in shapes:
            yield f"{name} {'x'.join(map(str, shape))}", programs[name], [shape]
    for n, d, h in MLPS:
        yield f"mlp step {n}x{d}x{h}", _mlp, [(n, d), (d, h), (h,), (h, 10), (10,)]


def main() -> int:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="for both (default 2)")
    parser.add_argument("--quick", action="store_true", help="short, to see it work")
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose label matches")
    options = parser.parse_args()
    environment.release()
    environment.limit_threads(options.threads)

    import pullback.interop.torch as pt
    import torch
    from pullback.bench import peers

    peers.set_threads(options.threads)
    print(f"{options.threads} threads, {peers.versions()}")
    print(f"{'case':42}{'PyTorch':>12}{'pullback':>12}{'PyTorch/pullback':>18}")
    wrong = False
    for label, program, shapes in cases():
        for dtype in (torch.float32, torch.float64):
            title = f"{label} {str(dtype).removeprefix('torch.')}"
            if not re.search(options.only, title):
                continue
            torch.manual_seed(0)
            exact = [torch.randn(s, dtype=torch.float64) / s[0] ** 0.5 for s in shapes]
            exact = [x.requires_grad_() for x in exact]
            leaves = [x.detach().to(dtype).requires_grad_() for x in exact]
            expected = [x.numpy() for x in next(program(torch, pt, exact))()]
            contenders = [
                peers.Contender(name, "", call, lambda r: tuple(x.numpy() for x in r))
                for name, call in zip(
                    ("PyTorch", "pullback"), program(torch, pt, leaves), strict=True
                )
            ]
            rtol = 2e-3 if dtype == torch.float32 else 1e-9
            right = doors.is_right(title, contenders, expected, rtol, quick=options.quick)
            wrong = wrong or not right
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

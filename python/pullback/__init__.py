"""Fast, accurate derivatives of array operations, with NumPy as the only dependency.

pullback computes values, Jacobians, vector-Jacobian products (pullbacks) and Jacobian-vector
products of elementwise operations, reductions and matrix products. It also computes losses of
linear models and their gradients in one pass over the data. All primitives follow one protocol::

    import pullback as pb

    pb.tanh(x)                  # the value; a genuine NumPy ufunc
    pb.tanh.derivative(x)       # tanh'(x), the diagonal of the Jacobian
    pb.tanh.vjp(x, g)           # g * tanh'(x), one pass
    pb.multiply.vjp(w, x, g)    # a cotangent for each operand, in the operand's shape
    pb.logsumexp.value_and_grad(x, axis=-1)
    pb.softmax.vjp(x, g)
    pb.matmul.vjp(A, B, G)
    loss, (gw, gb) = pb.relu_mse.value_and_grad(X, y, w, b)
    pb.gram(X, c)               # X^T diag(c) X, one pass

`LinearObjective` turns a loss and its data into a function of one vector, for optimisers.
`primitives` is the registry of all primitives, and `reference` holds the same primitives in plain
NumPy. `show_config` prints which backend, instruction set and threads are in use.
"""

from __future__ import annotations

import typing as _typing
from importlib import import_module as _import_module

from pullback import elementwise, jacobians, losses, products, reductions, reference
from pullback.chain import Chain, arg, chain
from pullback.config import (
    backend,
    get_num_threads,
    set_kept_memory,
    set_num_threads,
    show_config,
    threads,
)
from pullback.config import (
    version as _version,
)
from pullback.gram import gram
from pullback.interop import threadpoolctl as _threadpoolctl
from pullback.jacobians import Diagonal, Kronecker
from pullback.partial import PartialSums
from pullback.registry import Registry as _Registry
from pullback.registry import attributes as _attributes
from pullback.tables.losses import IN_LOSSES_ALONE as _IN_LOSSES_ALONE

primitives: _typing.Final = _Registry.joined(
    elementwise.primitives, products.products, reductions.reductions, losses.losses
)
_own = _Registry([name for name in primitives if name not in _IN_LOSSES_ALONE], primitives.get)
_threadpoolctl.register()

if _typing.TYPE_CHECKING:
    from pullback.check import GradCheck, check_grad
    from pullback.objective import LinearObjective
    from pullback.reference import *  # noqa: F403
    from pullback.user_loss import pointwise_loss

    __version__: str
else:
    _primitive = _attributes(globals(), _own)
    _modules = {
        "GradCheck": "check",
        "check_grad": "check",
        "LinearObjective": "objective",
        "pointwise_loss": "user_loss",
    }

    def __getattr__(name: str) -> _typing.Any:
        if name == "__version__":
            return _version()
        if name in _modules:  # an import need not wait for them
            module = _import_module(f"pullback.{_modules[name]}")
            return globals().setdefault(name, getattr(module, name))
        return _primitive(name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Chain",
    "Diagonal",
    "GradCheck",
    "Kronecker",
    "LinearObjective",
    "PartialSums",
    "__version__",
    "arg",
    "backend",
    "chain",
    "check_grad",
    "elementwise",
    "get_num_threads",
    "gram",
    "jacobians",
    "losses",
    "pointwise_loss",
    "primitives",
    "products",
    "reductions",
    "reference",
    "set_kept_memory",
    "set_num_threads",
    "show_config",
    "threads",
]
__all__ += [*_own]

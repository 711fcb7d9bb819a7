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

import sys as _sys
import typing as _typing
from importlib import import_module as _import_module

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
from pullback.interop import threadpoolctl as _threadpoolctl
from pullback.registry import attributes as _attributes

_threadpoolctl.register()

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
    "selections",
    "set_kept_memory",
    "set_num_threads",
    "show_config",
    "threads",
]

if _typing.TYPE_CHECKING:
    from pullback import (
        elementwise,
        jacobians,
        losses,
        products,
        reductions,
        reference,
        selections,
    )
    from pullback.catalogue import primitives
    from pullback.chains import Chain, arg, chain
    from pullback.check import GradCheck, check_grad
    from pullback.grams import gram
    from pullback.jacobians import Diagonal, Kronecker
    from pullback.objective import LinearObjective
    from pullback.partial import PartialSums
    from pullback.reference import *  # noqa: F403
    from pullback.user_loss import pointwise_loss

    __version__: str
else:
    # These are imported at their first use, from the given module; some are that module itself.
    _PLACES = {
        **dict.fromkeys(("Chain", "arg", "chain"), "chains"),
        **dict.fromkeys(("Diagonal", "Kronecker"), "jacobians"),
        **dict.fromkeys(("GradCheck", "check_grad"), "check"),
        "LinearObjective": "objective",
        "PartialSums": "partial",
        "gram": "grams",
        "pointwise_loss": "user_loss",
        "primitives": "catalogue",
        **{name: name for name in ("elementwise", "jacobians", "losses")},
        **{name: name for name in ("products", "reductions", "reference", "selections")},
    }
    _COLUMNS = {"elementwise": "primitives"} | {
        name: name for name in ("products", "reductions", "selections")
    }
    _names = __all__
    del __all__  # it is looked up, because the tables add the primitives' names

    def __getattr__(name: str) -> _typing.Any:
        if name == "__version__":
            return _version()
        if name in _PLACES:
            module = _import_module(f"pullback.{_PLACES[name]}")
            found = module if _PLACES[name] == name else getattr(module, name)
            return globals().setdefault(name, found)
        if name[:1] == "_" and name != "__all__":
            return _attributes(globals(), {})(name)
        for column, held in _COLUMNS.items():  # each may do without those behind it
            registry = getattr(_import_module(f"pullback.{column}"), held)
            if name in registry:
                return globals().setdefault(name, registry[name])
        own = _import_module("pullback.catalogue").own
        names = globals().setdefault("__all__", [*_names, *own])
        return names if name == "__all__" else _attributes(globals(), own)(name)


def __dir__() -> list[str]:
    return sorted(_sys.modules[__name__].__all__)

"""Masked arrays are honoured or refused: what is hidden never shows in a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pullback as pb
import pytest
from protocol import backends, each
from pullback.cases import Case, cases, family
from pullback.tables.elementwise import OPS
from pullback.tables.reductions import REDUCTIONS

CASES = {
    f"{case.primitive}.{case.method}": case
    for case in cases()
    if case.dtype == "float64" and case.size == family(case.primitive).sizes[0]
}


def hiding(array: Any, factor: float) -> Any:
    """Return an array whose first element is hidden, and is a multiple of what it was."""
    masked = np.ma.masked_array(array.copy(), np.arange(array.size).reshape(array.shape) == 0)
    masked.data.reshape(-1)[0] *= factor
    return masked


def shown(result: Any) -> list[Any]:
    """Return what a result shows, from left to right."""
    if isinstance(result, tuple):
        return [leaf for part in result for leaf in shown(part)]
    result = result.todense() if hasattr(result, "todense") else result
    return [np.ma.filled(result, 7.0).tolist(), np.ma.getmaskarray(result).tolist()]


def accepted(call: Callable[..., Any], given: tuple[Any, ...], *, hides: bool = True) -> int:
    """Call with each argument masked; return how many were taken, of which results hide as well."""
    count = 0
    for k, argument in enumerate(given):
        if not isinstance(argument, np.ndarray) or not argument.size or argument.ndim == 0:
            continue
        try:
            one, other = (
                shown(call(*given[:k], hiding(argument, factor), *given[k + 1 :]))
                for factor in (1, 1.25)
            )
        except TypeError as error:
            if "is a masked array, whose mask would be lost" not in str(error):
                raise
        else:
            assert one == other
            assert any(mask for mask in one[1::2] if mask is not False) or not hides
            count += 1
    return count


@backends
@each("name", CASES)
def test_every_argument_of_every_method(name: str, primitives: Any) -> None:
    case: Case = CASES[name]
    given = case.arguments()
    assert any(isinstance(argument, np.ndarray) for argument in given)
    reduction = REDUCTIONS.get(case.primitive)
    taken = accepted(case._of(primitives), given, hides=reduction is None)
    honours = case.primitive in OPS and case.method != "jacobian"  # as ufuncs do
    operands = 0 if reduction is None else len(reduction.operands)
    assert taken == (len(given) if honours else operands)


X = np.arange(1.0, 7).reshape(2, 3)
J = pb.matmul.jacobian(X, X.T)[0]
OTHERS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "where": (lambda m: pb.tanh.vjp(X, X, where=m), (X > 2,)),
    "a sum where": (lambda w, x: pb.multiply.vjp(w, x, X, where=X > 2), (X[0], X)),
    "a sum into out": (lambda x: pb.multiply.vjp(2.0, x, X, out=(None, np.empty((2, 3)))), (X,)),
    "out of a reduction": (lambda out: pb.sum(X, axis=0, out=out), (np.empty(3),)),
    "out of a product": (lambda out: pb.matmul(X, X.T, out=out), (np.empty((2, 2)),)),
    "out of a loss": (
        lambda out: pb.hinge.grad(X, np.ones(2), X[0], wrt="w", out=out),
        (np.empty(3),),
    ),
    "J @ t": (lambda t: J @ t, (X,)),
    "g @ J": (lambda g: g @ J, (np.ones((2, 2)),)),
    "J.jvp": (J.jvp, (X,)),
    "J.vjp": (J.vjp, (np.ones((2, 2)),)),
    "J.matvec": (J.matvec, (X.reshape(-1),)),
    "Dense": (pb.jacobians.Dense, (X,)),
    "Diagonal": (pb.Diagonal, (X,)),
    "Kronecker": (pb.Kronecker, (X, X)),
    "a stack through a chain": (pb.chain(pb.tanh, pb.exp).vjp, (X[0], X)),
    "a number through a chain": (lambda x: pb.chain(pb.tanh, pb.exp).vjp(x, 1.0), (X,)),
    "where of a value": (lambda m: pb.tanh(X, where=m), (X > 2,)),
    "out of a value": (lambda out: pb.tanh(X, out=out), (np.empty((2, 3)),)),
    "out by position": (lambda out: pb.tanh(X, out), (np.empty((2, 3)),)),
    "a value into out": (lambda x: pb.tanh(x, out=np.empty((2, 3))), (X,)),
    "a derivative into out": (lambda x: pb.tanh.derivative(x, out=np.empty((2, 3))), (X,)),
    "a cotangent into out": (lambda g: pb.tanh.vjp(X, g, out=np.empty((2, 3))), (X,)),
    "out of a cotangent": (lambda out: pb.tanh.vjp(X, X, out=out), (np.empty((2, 3)),)),
    "in a list": (lambda x: pb.tanh([x, x]), (X,)),
    "in a list of a reduction": (lambda x: pb.sum([x, x]), (X,)),
    "in a list of rows": (lambda x: pb.hinge.value([[1.0, 2, 3], x], [1, 1], [1.0, 2, 3]), (X[0],)),
    "in a list of targets": (lambda y: pb.hinge.pointwise([[1.0, 2.0]], [y]), (np.ones(2),)),
    "in a list of parameters": (
        lambda w: pb.LinearObjective(X, np.ones(2), pb.hinge).value([w[0], w[1], 0.0, 0.0]),
        (X[0],),
    ),
    "weights": (lambda w: pb.hinge.value(X, np.ones(2), X[0], None, w), (np.ones(2),)),
    "a chain's Jacobian": (pb.chain(pb.tanh, pb.exp).jacobian, (X,)),
    "LinearObjective": (lambda X, y: pb.LinearObjective(X, y, pb.hinge), (X, np.ones(2))),
    "theta": (pb.LinearObjective(X, np.ones(2), pb.hinge).value_and_grad, (np.ones(4),)),
    "check_grad": (lambda x: pb.check_grad(lambda x: x.sum(), np.ones_like, x), (X,)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_refuses(name: str) -> None:
    call, given = OTHERS[name]
    assert accepted(call, given) == 0


def test_classes_of_masked_arrays_are_masked_arrays() -> None:
    class Own(np.ma.MaskedArray):
        pass

    for given, shown_sum in ((np.ma.array(X, mask=X > 2).view(Own), 3.0), (np.ma.masked, 0.0)):
        for P in (pb, pb.reference):
            assert P.sum(given) == shown_sum
            with pytest.raises(TypeError, match="x is a masked array"):
                P.sum([given])


def test_chains_do_as_their_steps() -> None:
    for P in (pb, pb.reference):
        f = pb.chain(P.tanh, (P.multiply, pb.arg, 2.0))
        for call, given in ((f, (X,)), (f.jvp, (X, X)), (f.vjp, (X, X))):
            assert accepted(call, given) == len(given)

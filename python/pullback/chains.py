"""The chain rule: primitives composed into one function with its derivatives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from pullback.chain_steps import arg, make_step, new_walk
from pullback.config import guarded_class
from pullback.engine import BACKEND, enter
from pullback.protocol import as_array, check_wrt, converted, is_weak, result_dtype, shape_of
from pullback.registry import Hinted

__all__ = ["Chain", "arg", "chain"]


# Operands by name or position, one of them or several.
Wanted: TypeAlias = str | int | tuple[str | int, ...]


@guarded_class
class Chain(Hinted):
    """Primitives applied one after the other; see `chain`.

    Parameters
    ----------
    *steps : primitive, tuple or Chain
        As for `chain`.
    """

    def __init__(self, *steps: Any) -> None:
        if not steps:
            raise ValueError("chain: there are no steps")
        self._given = tuple(_flattened(steps))
        self._steps = tuple(
            make_step(f"chain: step {number}", op, operands, options)
            for number, (op, operands, options) in enumerate(self._given, 1)
        )
        self._walk = new_walk(self._steps)
        n_bound = sum(step.n_bound for step in self._steps)
        self._names: tuple[Any, ...] = ("x", *range(1, n_bound + 1))
        # A subclass may have methods of its own.
        for name in _METHODS if BACKEND.is_native and type(self) is Chain else ():
            make = partial(BACKEND.kernels.chain_method, self._walk, name)
            setattr(self, name, enter(make, self, name, "chain", __name__))

    def __repr__(self) -> str:
        return f"chain({', '.join(step.text for step in self._steps)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, tuple((op, *operands, options) for op, operands, options in self._given)

    def __call__(self, x: Any, /) -> Any:
        """Return the value at `x`.

        Parameters
        ----------
        x : array_like
            The first step's operand.

        Returns
        -------
        ndarray or scalar
            The last step's result.

        Raises
        ------
        TypeError, ValueError
            As the steps do.
        """
        return self._walk.value(x)

    value = __call__

    def jvp(self, x: Any, t: Any, /) -> Any:
        """Return the tangent of the value; bound operands are constant.

        Parameters
        ----------
        x : array_like
            Primal.
        t : array_like, shape of `x`, a Python number, which fills it, or None
            Its tangent; None is zero.

        Returns
        -------
        ndarray or scalar, shape of the value

        Raises
        ------
        TypeError
            As the steps do.
        ValueError
            As the steps do, and if `t` does not have the shape of `x`.
        """
        if t is None:
            return np.zeros_like(self._walk.value(x))[()]
        return self._walk.jvp(x, self._filling("jvp", "t", t, "x", x))

    def vjp(self, x: Any, g: Any, /, *, wrt: Wanted = 0) -> Any:
        """Return the cotangent of `x`, or of everything.

        Parameters
        ----------
        x : array_like
            Primal.
        g : array_like, shape ``(*stack, *value.shape)``, or a Python number
            Cotangent of the value, or a stack of them; a number fills the value's shape.
        wrt : "x", int, a tuple of them, or "all"
            The operands whose cotangents to return: 0 is `x`, 1 is the first bound operand, and so
            on in the order of the steps. An operand that is None does not count.

        Returns
        -------
        ndarray or scalar, or a tuple of them
            In the operands' shapes, after the axes of the stack. A tuple for a tuple or "all".

        Raises
        ------
        TypeError
            As the steps do.
        ValueError
            As the steps do, and if the shape of `g` does not end in the value's, or `wrt` names no
            operand.
        """
        return self._value_and_vjp("vjp", x, g, wrt)[1]

    def value_and_vjp(self, x: Any, g: Any, /, *, wrt: Wanted = 0) -> tuple[Any, Any]:
        """Return the value and the cotangents; arguments and errors are those of `vjp`."""
        return self._value_and_vjp("value_and_vjp", x, g, wrt)

    def grad(self, x: Any, /, *, wrt: Wanted = 0) -> Any:
        """Return the gradient of the value, which has one element, as `value_and_grad` does."""
        return self._value_and_grad("grad", x, wrt)[1]

    def value_and_grad(self, x: Any, /, *, wrt: Wanted = 0) -> tuple[Any, Any]:
        """Return the value, which has one element, and its gradient.

        Parameters
        ----------
        x : array_like
            Primal.
        wrt : "x", int, a tuple of them, or "all"
            As for `vjp`.

        Returns
        -------
        value : ndarray or scalar
        gradient : ndarray or scalar, or a tuple of them
            What `vjp` returns for a cotangent of one.

        Raises
        ------
        TypeError, ValueError
            As the steps do, and ValueError if the value has more than one element.
        """
        return self._value_and_grad("value_and_grad", x, wrt)

    def _value_and_grad(self, method: str, x: Any, wrt: Any) -> tuple[Any, Any]:
        op = f"chain.{method}"
        asked = check_wrt(op, wrt, self._names)
        value = self._walk.value(x)
        if np.size(value) != 1:
            raise ValueError(
                f"{op}: the value has shape {np.shape(value)}, a gradient needs one element; "
                f"give {method.replace('grad', 'vjp')} a cotangent"
            )
        return value, asked.result(self._pulled(x, np.ones_like(value)[()], asked.operands))

    def _value_and_vjp(self, method: str, x: Any, g: Any, wrt: Any) -> tuple[Any, Any]:
        op = f"chain.{method}"
        asked = check_wrt(op, wrt, self._names)
        value = self._walk.value(x)
        g = self._filling(method, "g", g, "the value", value, stacked=True)
        shape, stack = np.shape(value), np.shape(g)[: np.ndim(g) - np.ndim(value)]
        if not stack:
            return value, asked.result(self._pulled(x, g, asked.operands))
        # One cotangent after the other; for an empty stack, their shapes.
        count, g = math.prod(stack), as_array(op, "g", g)
        items = g.reshape(count, *shape) if count else np.zeros((1, *shape), g.dtype)
        pulled = [self._pulled(x, item, asked.operands) for item in items]
        cotangents = [
            np.stack([as_array(op, "cotangent", one) for one in each])[:count].reshape(
                stack + np.shape(each[0])
            )
            for each in zip(*pulled, strict=True)
        ]
        return value, asked.result(cotangents)

    def _pulled(self, x: Any, g: Any, operands: tuple[int, ...]) -> list[Any]:
        """Return the cotangents of operands."""
        if operands == (0,):
            return [self._walk.vjp(x, g, False)]
        cotangents = self._walk.vjp(x, g, True)
        return [cotangents[k] for k in operands]

    def _filling(
        self, method: str, name: str, given: Any, of: str, like: Any, *, stacked: bool = False
    ) -> Any:
        """Return a tangent or cotangent of the shape of `like`, with a stack in front if allowed.

        A Python number fills it.
        """
        op, shape = f"chain.{method}", shape_of(f"chain.{method}", of, like)
        if is_weak(given):
            if not shape:
                return given
            dtype = result_dtype(op, like, names=(of,))
            with np.errstate(all="ignore"):  # a weak 1e300 overflows to inf in float32
                return np.full(shape, converted(op, name, given, dtype))
        own = shape_of(op, name, given)
        if own[len(own) - len(shape) if stacked else 0 :] != shape or len(own) < len(shape):
            raise ValueError(f"{op}: {name} has shape {own}, {of} {shape}")
        return given

    def jacobian(self, x: Any, /) -> Any:
        """Return the Jacobian at `x`, the product of the steps' Jacobians.

        Parameters
        ----------
        x : array_like
            Primal.

        Returns
        -------
        pullback.jacobians.Jacobian
            A `Diagonal` if every step is elementwise and does not broadcast `x`.

        Raises
        ------
        TypeError, ValueError
            As the steps do.
        """
        return self._walk.jacobian(x)


_METHODS = ("value", "jvp", "vjp", "value_and_vjp", "grad", "value_and_grad", "jacobian")


def chain(*steps: Any) -> Chain:
    """Compose primitives into one function with its derivatives.

    On the native backend, consecutive elementwise steps share one pass over the data, in blocks
    that stay in cache. The results have the same bits as separate calls.

    Parameters
    ----------
    *steps : primitive, tuple or Chain
        The steps in the order of application. A step is one of these: a primitive with one operand;
        a tuple of a primitive and its operands, where `arg` (once or several times) stands for the
        running value, and the other operands are bound (referenced, not copied); such a tuple with
        a dict of keywords as its last entry, such as ``(pb.sum, pb.arg, {"axis": 0})``; or another
        chain, whose steps are inserted. A loss's pointwise form is a step together with its
        targets, which have no cotangent: ``(pb.logistic.pointwise, pb.arg, y)``.
        Any object that can be called for its value and has ``vjp(*operands, g)`` and
        ``jvp(*operands, *tangents)`` counts as a primitive. With several operands, its vjp returns
        a tuple of cotangents, and its jvp accepts None as the tangent of a bound operand.

    Returns
    -------
    Chain
        With ``value`` (or a call), ``jvp``, ``vjp``, ``value_and_vjp``, ``grad``,
        ``value_and_grad`` and ``jacobian``.

    Raises
    ------
    TypeError
        If a step is none of these, or a bound operand is a function, such as a chain.
    ValueError
        If there are no steps, a tuple has no `arg`, or the number of operands is not the
        primitive's.

    Examples
    --------
    >>> import numpy as np
    >>> import pullback as pb
    >>> f = pb.chain(pb.square, (pb.multiply, pb.arg, -0.5), pb.exp)
    >>> f
    chain(square, multiply(arg, -0.5), exp)
    >>> x = np.array([0.0, 2.0])
    >>> f(x)
    array([1.        , 0.13533528])
    >>> f.vjp(x, np.ones(2))
    array([-0.        , -0.27067057])
    """
    return Chain(*steps)


def _flattened(steps: Iterable[Any]) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Yield primitive, operands and options of each step, with chains replaced by their steps."""
    for step in steps:
        op, *operands = step if isinstance(step, tuple) and step else (step, arg)
        options = operands.pop() if operands and isinstance(operands[-1], dict) else {}
        if isinstance(op, Chain) and [o is arg for o in operands] == [True] and not options:
            yield from op._given
        else:
            yield op, tuple(operands), options

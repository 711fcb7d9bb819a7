"""The chain rule: primitives composed into one function that knows its derivatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np

from pullback.protocol import Wrt, check_wrt
from pullback.steps import arg, in_sequence, make_step

__all__ = ["Chain", "arg", "chain"]


# Operands by name or position, one of them or several.
Wanted: TypeAlias = str | int | tuple[str | int, ...]

_X: Final = Wrt((0,), single=True)

# --- the chain ------------------------------------------------------------------------------------


class Chain:
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
        self._steps = [
            make_step(f"chain: step {number}", op, operands, options)
            for number, (op, operands, options) in enumerate(self._given, 1)
        ]
        self._whole = in_sequence(self._steps)
        n_bound = sum(len(step.bound) for step in self._steps)
        self._names: tuple[Any, ...] = ("x", *range(1, n_bound + 1))

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self._steps))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, tuple((op, *operands, options) for op, operands, options in self._given)

    def __call__(self, x: Any, /) -> Any:
        """Return the value at `x`.

        Parameters
        ----------
        x : array_like
            What the first step takes.

        Returns
        -------
        ndarray or scalar
            What the last step returns.

        Raises
        ------
        TypeError, ValueError
            As the steps do.
        """
        return self._whole.value(x)

    value = __call__

    def jvp(self, x: Any, t: Any, /) -> Any:
        """Return the tangent of the value; bound operands have none.

        Parameters
        ----------
        x : array_like
            Primal.
        t : array_like, shape of `x`, or None
            Its tangent; None is zero.

        Returns
        -------
        ndarray or scalar, shape of the value

        Raises
        ------
        TypeError, ValueError
            As the steps do.
        """
        return np.zeros_like(self._whole.value(x))[()] if t is None else self._whole.jvp(x, t)

    def vjp(self, x: Any, g: Any, /, *, wrt: Wanted = 0) -> Any:
        """Return the cotangent of `x`, or of everything.

        Parameters
        ----------
        x : array_like
            Primal.
        g : array_like, shape of the value
            Cotangent of the value.
        wrt : "x", int, a tuple of them, or "all"
            Whose cotangents to return: 0 is `x`, 1 the first bound operand, and so on, in the order
            in which they stand in the steps; an operand that is None does not count.

        Returns
        -------
        ndarray or scalar, or a tuple of them
            In the operands' shapes; bare for a bare `wrt`.

        Raises
        ------
        TypeError
            As the steps do.
        ValueError
            As the steps do; if `g` has not the value's shape, or `wrt` names no operand.
        """
        if type(wrt) is int and wrt == 0:
            return self._whole.pull(x, g, False)[0]
        asked = self._asked("vjp", wrt)
        gx, bound = self._whole.pull(x, g, asked is not _X)
        return _chosen(asked, gx, bound)

    def value_and_vjp(self, x: Any, g: Any, /, *, wrt: Wanted = 0) -> tuple[Any, Any]:
        """Return the value and what `vjp` returns; arguments and errors are those of `vjp`."""
        asked = self._asked("value_and_vjp", wrt)
        value, (gx, bound) = self._whole.value_and_pull(x, g, asked is not _X)
        return value, _chosen(asked, gx, bound)

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
            As the steps do; ValueError if the value has several elements.
        """
        asked = self._asked("value_and_grad", wrt)
        value, (gx, bound) = self._whole.value_and_grad(x, asked is not _X)
        return value, _chosen(asked, gx, bound)

    def _asked(self, method: str, wrt: Any) -> Wrt:
        if type(wrt) is int and wrt == 0:
            return _X
        return check_wrt(f"chain.{method}", wrt, self._names)

    def jacobian(self, x: Any, /) -> Any:
        """Return the Jacobian at `x`, the product of the steps' Jacobians.

        Parameters
        ----------
        x : array_like
            Primal.

        Returns
        -------
        pullback.jacobians.Jacobian
            A `Diagonal` where every step is elementwise and enlarges nothing.

        Raises
        ------
        TypeError, ValueError
            As the steps do.
        """
        return self._whole.jacobian(x)


def chain(*steps: Any) -> Chain:
    """Compose primitives into one function that knows its derivatives.

    Natively, consecutive elementwise steps go over the data together, in blocks that stay in cache,
    with the bits that one call after the other would give.

    Parameters
    ----------
    *steps : primitive, tuple or Chain
        The first is applied first. A step is a primitive of one operand; a tuple of a primitive
        and its operands, `arg` standing for the running value (several times, if it must), the
        others bound: held, not copied; a tuple whose last entry is a dict of keywords, such as
        ``(pb.sum, pb.arg, {"axis": 0})``; or another chain, whose steps are taken over.
        Anything with a value (by call), ``vjp(*operands, g)`` and ``jvp(*operands, *tangents)``
        counts as a primitive: of several operands it returns a tuple of cotangents, and takes None
        for the tangent of a bound one.

    Returns
    -------
    Chain
        With ``value`` (or a call), ``jvp``, ``vjp``, ``value_and_vjp``, ``value_and_grad`` and
        ``jacobian``.

    Raises
    ------
    TypeError
        If a step is none of these.
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
    """Yield primitive, operands and options of each step; those of chains among them in place."""
    for step in steps:
        op, *operands = step if isinstance(step, tuple) and step else (step, arg)
        options = operands.pop() if operands and isinstance(operands[-1], dict) else {}
        if isinstance(op, Chain) and [o is arg for o in operands] == [True] and not options:
            yield from op._given
        else:
            yield op, tuple(operands), options


def _chosen(asked: Wrt, gx: Any, bound: list[Any]) -> Any:
    cotangents = (gx, *bound)
    return asked.result([cotangents[k] for k in asked.operands])

"""The chain rule: primitives composed into one function with its derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np

from pullback.chain_graph import (
    Bound,
    Graph,
    Input,
    Moving,
    Node,
    Operand,
    in_order,
    name_of,
    put_together,
    shown,
    zeros,
)
from pullback.chain_steps import Line, arg, make_node, new_walk
from pullback.config import guarded, guarded_class
from pullback.engine import BACKEND, enter
from pullback.protocol import (
    WithMethods,
    as_array,
    check_wrt,
    converted,
    is_weak,
    method,
    result_dtype,
    shape_of,
)
from pullback.registry import Hinted

__all__ = ["Chain", "arg", "chain"]

T = TypeVar("T")
# Operands by name or position, one of them or several.
Wanted: TypeAlias = str | int | tuple[str | int, ...]


def _variadic(method: Callable[..., T]) -> Callable[..., T]:
    """Tell type checkers that a method may take several inputs; see `_of_inputs`."""
    return method


LONGEST_INSIDE: Final = 200  # characters, of what is shown of a function inside another


@guarded_class
class Chain(Hinted):
    """A function composed of primitives; see `chain`.

    Of several inputs, each method takes all: ``jvp(x0, x1, t0, t1)``, ``vjp(x0, x1, g)``. Their
    names for ``wrt`` are ``"x0"``, ``"x1"`` and so on.

    Parameters
    ----------
    *steps : primitive, tuple or Chain
        As for `chain`.
    """

    __array_priority__ = 1000  # an array beside a chain leaves operators to it

    def __init__(self, *steps: Any) -> None:
        if not steps:
            raise ValueError("chain: there are no steps")
        self._be(_composed(steps))

    def _be(self, root: Node) -> None:
        nodes = in_order(root)
        used = [o.index for node in nodes for o in node.operands if isinstance(o, Input)]
        n_inputs = 1 + max(used)
        self._root: Node = root
        self._nodes = nodes
        self._graph = Graph(n_inputs, nodes, new_walk if BACKEND.is_native else None)
        self._line = Line(nodes) if BACKEND.is_native and self._graph.is_line() else None
        inputs = ("x",) if n_inputs == 1 else tuple(f"x{k}" for k in range(n_inputs))
        self._names: tuple[Any, ...] = (*inputs, *range(n_inputs, self._graph.n_leaves))
        # A subclass may have methods of its own.
        if self._line is not None and type(self) is Chain:
            for name in _METHODS:
                make = partial(BACKEND.kernels.chain_method, self._line.walk, name)
                setattr(self, name, enter(make, self, name, "chain", __name__))
            own: Any = self.vjp
            own.jvp, own.vjp = self._vjp_jvp, self._vjp_vjp
            return
        if n_inputs > 1:
            kind: Any = type(self)
            self.__class__ = _of_inputs(kind, n_inputs)
        methods = WithMethods(self.vjp, jvp=self._vjp_jvp, vjp=self._vjp_vjp)
        self.vjp = methods  # type: ignore[method-assign]

    @classmethod
    def _of(cls, root: Node) -> Chain:
        made = cls.__new__(cls)
        made._be(root)
        return made

    def __repr__(self) -> str:
        return _written(self._nodes, self._graph.n_inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        place = {id(node): _Result(k) for k, node in enumerate(self._nodes)}
        return _read, tuple(
            (node.op, tuple(place.get(id(o), o) for o in node.operands), node.options)
            for node in self._nodes
        )

    # --- operators --------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Chain:
        return self._with("add", self, other)

    def __radd__(self, other: Any) -> Chain:
        return self._with("add", other, self)

    def __sub__(self, other: Any) -> Chain:
        return self._with("subtract", self, other)

    def __rsub__(self, other: Any) -> Chain:
        return self._with("subtract", other, self)

    def __mul__(self, other: Any) -> Chain:
        return self._with("multiply", self, other)

    def __rmul__(self, other: Any) -> Chain:
        return self._with("multiply", other, self)

    def __truediv__(self, other: Any) -> Chain:
        return self._with("divide", self, other)

    def __rtruediv__(self, other: Any) -> Chain:
        return self._with("divide", other, self)

    def __pow__(self, other: Any) -> Chain:
        return self._with("power", self, other)

    def __rpow__(self, other: Any) -> Chain:
        return self._with("power", other, self)

    def __neg__(self) -> Chain:
        return self._with("negative", self)

    def _with(self, name: str, *operands: Any) -> Chain:
        return Chain((self._root.primitive(name), *operands))

    # --- methods ----------------------------------------------------------------------------------

    @_variadic
    def __call__(self, x: Any, /) -> Any:
        """Return the value at `x`.

        Parameters
        ----------
        x : array_like
            The input.

        Returns
        -------
        ndarray or scalar
            The last step's result.

        Raises
        ------
        TypeError, ValueError
            As the steps do.
        """
        return self._value(x)

    value = __call__

    @_variadic
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
        return self._jvp((x,), (t,))

    @_variadic
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
        return self._value_and_vjp("vjp", (x,), g, wrt)[1]

    @_variadic
    def value_and_vjp(self, x: Any, g: Any, /, *, wrt: Wanted = 0) -> tuple[Any, Any]:
        """Return the value and the cotangents; arguments and errors are those of `vjp`."""
        return self._value_and_vjp("value_and_vjp", (x,), g, wrt)

    @_variadic
    def grad(self, x: Any, /, *, wrt: Wanted = 0) -> Any:
        """Return the gradient of the value, which has one element, as `value_and_grad` does."""
        return self._value_and_grad("grad", (x,), wrt)[1]

    @_variadic
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
        return self._value_and_grad("value_and_grad", (x,), wrt)

    @_variadic
    def jacobian(self, x: Any, /, *, wrt: Wanted = 0) -> Any:
        """Return the Jacobian at `x`, the product of the steps' Jacobians.

        Parameters
        ----------
        x : array_like
            Primal.
        wrt : "x", int, a tuple of them, or "all"
            As for `vjp`.

        Returns
        -------
        pullback.jacobians.Jacobian
            A `Diagonal` if every step is elementwise and does not broadcast `x`.

        Raises
        ------
        TypeError, ValueError
            As the steps do.
        """
        return self._jacobian((x,), wrt)

    @_variadic
    def hvp(self, x: Any, v: Any, /, g: Any = 1, *, wrt: Wanted = 0) -> Any:
        """Return a product with the Hessian: the derivative of ``vjp(x, g)`` along `v`.

        Parameters
        ----------
        x : array_like
            Primal.
        v : array_like, shape of `x`, a Python number, which fills it, or None
            The direction; None is zero.
        g : array_like, shape of the value, or a Python number, which fills it
            Cotangent of the value: the Hessian is that of the sum of ``g * value``.
        wrt : "x", int, a tuple of them, or "all"
            As for `vjp`: the rows of the Hessian. Bound operands have no direction.

        Returns
        -------
        ndarray or scalar, or a tuple of them
            In the operands' shapes.

        Raises
        ------
        TypeError
            As the steps do, and if the vjp of a step has no jvp.
        ValueError
            As the steps do, and for arguments that do not fit each other.
        """
        return self._hvp((x,), (v,), g, wrt)

    @_variadic
    def hessian(self, x: Any, /, g: Any = 1, *, wrt: Wanted = 0) -> Any:
        """Return the Hessian of the sum of ``g * value`` as an array.

        It takes one product for each element of `x`. If all steps are elementwise, or `sum` or
        `mean` at the end, it takes one.

        Parameters
        ----------
        x : array_like
            Primal.
        g : array_like, shape of the value, or a Python number, which fills it
            Cotangent of the value.
        wrt : "x", int, a tuple of them, or "all"
            Inputs, as for `vjp`.

        Returns
        -------
        ndarray or scalar, shape ``x.shape + x.shape``, or a tuple of tuples of them
            Of several inputs, the blocks: ``H[i][j]`` has the shape of the i-th one asked for, and
            behind it that of the j-th.

        Raises
        ------
        MemoryError
            If it would exceed `pullback.jacobians.DENSE_LIMIT_BYTES`. Use `hvp`.
        TypeError, ValueError
            As for `hvp`.
        """
        return self._hessian((x,), g, wrt)

    @_variadic
    def _vjp_jvp(self, x: Any, g: Any, t: Any, tg: Any, /, *, wrt: Wanted = 0) -> Any:
        """Return the tangent of what vjp returns, along tangents of `x` and `g`.

        Parameters
        ----------
        x, g : array_like
            As for `vjp`.
        t, tg : array_like, shapes of `x` and `g`, Python numbers, which fill them, or None
            Their tangents; None is zero.
        wrt : "x", int, a tuple of them, or "all"
            As for `vjp`.

        Returns
        -------
        ndarray or scalar, or a tuple of them
            In the shapes of what `vjp` returns.

        Raises
        ------
        TypeError, ValueError
            As for `hvp`.
        """
        return self._of_vjp_jvp((x,), g, (t,), tg, wrt)

    @_variadic
    def _vjp_vjp(self, x: Any, g: Any, h: Any, /, *, wrt: Wanted = "all") -> Any:
        """Return the cotangents of `x` and `g`, from that of what vjp returns.

        Parameters
        ----------
        x, g : array_like
            As for `vjp`.
        h : array_like, shape ``(*stack, *x.shape)``, a Python number, which fills it, or None
            Cotangent of what `vjp` returns; None is zero.
        wrt : "x", "g", int, a tuple of them, or "all"
            The arguments whose cotangents to return.

        Returns
        -------
        ndarray or scalar, or a tuple of them
            In the shapes of `x` and `g`.

        Raises
        ------
        TypeError, ValueError
            As for `hvp`.
        """
        return self._of_vjp_vjp((x,), g, (h,), wrt)

    # --- of any number of inputs ------------------------------------------------------------------

    def _value(self, *xs: Any) -> Any:
        return (self._line or self._graph).value(*xs)

    def _inputs(self) -> tuple[str, ...]:
        return self._names[: self._graph.n_inputs]

    def _besides(self, letter: str) -> list[str]:
        """Return the names of tangents or such, one for each input."""
        return [name.replace("x", letter) for name in self._inputs()]

    def _jvp(self, xs: Any, ts: Any) -> Any:
        if all(t is None for t in ts):
            return np.zeros_like(self._value(*xs))[()]
        return (self._line or self._graph).jvp(xs, self._moving("jvp", "t", xs, ts))

    def _moving(self, method: str, letter: str, xs: Any, ts: Any) -> list[Any]:
        """Return tangents of the inputs, checked."""
        named = zip(ts, self._besides(letter), xs, self._inputs(), strict=True)
        return [
            t if t is None else self._filling(method, t_name, t, name, x)
            for t, t_name, x, name in named
        ]

    def _value_and_grad(self, method: str, xs: Any, wrt: Any) -> tuple[Any, Any]:
        op = f"chain.{method}"
        asked = check_wrt(op, wrt, self._names)
        value, back = (self._line or self._graph).pulling(asked.operands, xs)
        if np.size(value) != 1:
            raise ValueError(
                f"{op}: the value has shape {np.shape(value)}, a gradient needs one element; "
                f"give {method.replace('grad', 'vjp')} a cotangent"
            )
        return value, asked.result(back(np.ones_like(value)[()]))

    def _value_and_vjp(self, method: str, xs: Any, g: Any, wrt: Any) -> tuple[Any, Any]:
        asked = check_wrt(f"chain.{method}", wrt, self._names)
        value, back = (self._line or self._graph).pulling(asked.operands, xs)
        g = self._filling(method, "g", g, "the value", value, stacked=True)
        stack = _stack(g, value)
        if not stack:
            return value, asked.result(back(g))
        pulled = [back(item) for item in _items(g, stack)]
        return value, asked.result([_stacked(one, stack) for one in zip(*pulled, strict=True)])

    def _jacobian(self, xs: Any, wrt: Any) -> Any:
        asked = check_wrt("chain.jacobian", wrt, self._names)
        if self._line is not None and asked.operands == (0,):
            return asked.result([self._line.walk.jacobian(*xs)])
        return asked.result(self._graph.jacobians(asked.operands, xs))

    def _hvp(self, xs: Any, vs: Any, g: Any, wrt: Any) -> Any:
        asked = check_wrt("chain.hvp", wrt, self._names)
        vs = self._moving("hvp", "v", xs, vs)
        moved = tuple(k for k, v in enumerate(vs) if v is not None)
        value, back = self._graph.pulling(asked.operands, xs, (moved, False))
        along = back(self._cotangent("hvp", g, value))[1]
        return asked.result(along(*(vs[k] for k in moved))[0])

    def _cotangent(self, method: str, g: Any, value: Any) -> Any:
        """Return a cotangent of the value, without a stack."""
        g = self._filling(method, "g", g, "the value", value)
        return np.asarray(value).dtype.type(g) if is_weak(g) else g

    def _hessian(self, xs: Any, g: Any, wrt: Any) -> Any:
        from pullback import jacobians  # noqa: PLC0415  whose limit this is

        op = "chain.hessian"
        asked = check_wrt(op, wrt, self._inputs())
        inputs = [np.asarray(zeros(xs[k])) for k in asked.operands]
        total = sum(one.size for one in inputs)
        nbytes = total**2 * max(one.itemsize for one in inputs)
        if nbytes > jacobians.DENSE_LIMIT_BYTES:
            raise MemoryError(
                f"{op}: the Hessian of {total} elements takes {nbytes / 1e9:.3g} GB; "
                "chain.hvp multiplies it by a vector"
            )
        separate = self._graph.is_separate(asked.operands, xs)
        columns = []
        for k, like in zip(asked.operands, inputs, strict=True):
            value, back = self._graph.pulling(asked.operands, xs, ((k,), False))
            along = back(self._cotangent("hessian", g, value))[1]
            if separate:
                found = along(np.ones_like(like)[()])[0]
                columns.append([np.diag(np.ravel(d)).reshape(like.shape * 2)[()] for d in found])
                continue
            own = [np.zeros((one.size, like.size), one.dtype) for one in inputs]
            for i in range(like.size):
                unit = np.zeros_like(like)
                unit.flat[i] = 1
                found = along(unit[()])[0]
                if i == 0:  # steps may compute in another dtype
                    own = [b.astype(d.dtype) for b, d in zip(own, found, strict=True)]
                for block, column in zip(own, found, strict=True):
                    block[:, i] = np.ravel(column)
            pairs = zip(own, inputs, strict=True)
            columns.append([block.reshape(one.shape + like.shape)[()] for block, one in pairs])
        blocks = tuple(zip(*columns, strict=True))
        return blocks[0][0] if asked.single else blocks

    def _of_vjp_jvp(self, xs: Any, g: Any, ts: Any, tg: Any, wrt: Any) -> Any:
        method = "vjp.jvp"
        asked = check_wrt(f"chain.{method}", wrt, self._names)
        ts = self._moving(method, "t", xs, ts)
        moved = tuple(k for k, t in enumerate(ts) if t is not None)
        present = (moved, tg is not None)
        value, back = self._graph.pulling(asked.operands, xs, present)
        g = self._filling(method, "g", g, "the value", value, stacked=True)
        tg = tg if tg is None else self._filling(method, "tg", tg, "g", g)
        tangents, stack = [ts[k] for k in moved], _stack(g, value)
        if not stack:
            return asked.result(back(g)[1](*tangents, *[tg] * present[1])[0])
        tgs = [()] * _count(stack) if tg is None else [(one,) for one in _items(tg, stack)]
        pairs = zip(_items(g, stack), tgs, strict=True)
        pulled = [back(item)[1](*tangents, *one)[0] for item, one in pairs]
        return asked.result([_stacked(one, stack) for one in zip(*pulled, strict=True)])

    def _of_vjp_vjp(self, xs: Any, g: Any, hs: Any, wrt: Any) -> Any:
        method, n = "vjp.vjp", len(xs)
        asked = check_wrt(f"chain.{method}", wrt, (*self._inputs(), "g"))
        wanted = tuple(k for k in asked.operands if k < n)
        moved = tuple(k for k, h in enumerate(hs) if h is not None)
        value, back = self._graph.pulling(wanted, xs, (moved, False))
        g = self._filling(method, "g", g, "the value", value, stacked=True)
        stack, given = _stack(g, value), []
        for k in moved:
            name, of = self._besides("h")[k], f"the cotangent of {self._names[k]}"
            like = np.broadcast_to(zeros(xs[k]), stack + np.shape(xs[k]))
            given.append(_items(self._filling(method, name, hs[k], of, like), stack))
        # A Hessian is symmetric: these are tangents, and what a stack adds up is a cotangent.
        add = self._root.primitive("add")
        sums: list[Any] = []
        of_g: list[Any] = []
        for i, item in enumerate(_items(g, stack)):
            found, tangent = back(item)[1](*(h[i] for h in given))
            sums = [add(*pair) for pair in zip(sums, found, strict=True)] if i else [*found]
            of_g.append(np.zeros_like(value)[()] if tangent is None else tangent)
        if 0 in stack:
            sums = [np.zeros_like(one)[()] for one in sums]
        results = dict(zip(wanted, sums, strict=True))
        results[n] = _stacked(of_g, stack) if stack else of_g[0]
        return asked.result([results[k] for k in asked.operands])

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


_METHODS = ("value", "jvp", "vjp", "value_and_vjp", "grad", "value_and_grad", "jacobian")


# --- stacks of cotangents -------------------------------------------------------------------------


def _stack(g: Any, value: Any) -> tuple[int, ...]:
    """Return the axes of a cotangent in front of the value's."""
    return np.shape(g)[: np.ndim(g) - np.ndim(value)] if np.ndim(g) else ()


def _count(stack: tuple[int, ...]) -> int:
    """Return the number of items to compute: at least one, for the shapes of their results."""
    return max(math.prod(stack), 1)


def _items(given: Any, stack: tuple[int, ...]) -> Any:
    """Return what is in a stack, one after the other."""
    if not stack:
        return [given]
    array = as_array("chain", "g", given)
    shape = array.shape[len(stack) :]
    return (
        array.reshape(-1, *shape) if array.size else np.zeros((_count(stack), *shape), array.dtype)
    )


def _stacked(results: Sequence[Any], stack: tuple[int, ...]) -> Any:
    """Return results in the shape of a stack."""
    arrays = [as_array("chain", "cotangent", one) for one in results]
    return np.stack(arrays)[: math.prod(stack)].reshape(stack + np.shape(results[0]))


# --- of several inputs ----------------------------------------------------------------------------


@cache
def _of_inputs(kind: type[Chain], n: int) -> type[Chain]:
    """Return a subclass whose methods take several inputs."""
    several = {letter: ", ".join(f"{letter}{k}" for k in range(n)) for letter in "xtvh"}
    x, t, v, h = several.values()
    methods = {
        "__call__": (x, f"_value({x})"),
        "value": (x, f"_value({x})"),
        "jvp": (f"{x}, {t}", f"_jvp(({x}), ({t}))"),
        "vjp": (f"{x}, g", f"_value_and_vjp('vjp', ({x}), g, wrt)[1]"),
        "value_and_vjp": (f"{x}, g", f"_value_and_vjp('value_and_vjp', ({x}), g, wrt)"),
        "grad": (x, f"_value_and_grad('grad', ({x}), wrt)[1]"),
        "value_and_grad": (x, f"_value_and_grad('value_and_grad', ({x}), wrt)"),
        "jacobian": (x, f"_jacobian(({x}), wrt)"),
        "hvp": (f"{x}, {v}", f"_hvp(({x}), ({v}), g, wrt)"),
        "hessian": (x, f"_hessian(({x}), g, wrt)"),
        "_vjp_jvp": (f"{x}, g, {t}, tg", f"_of_vjp_jvp(({x}), g, ({t}), tg, wrt)"),
        "_vjp_vjp": (f"{x}, g, {h}", f"_of_vjp_vjp(({x}), g, ({h}), wrt)"),
    }
    own: dict[str, Any] = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    for name, (arrays, call) in methods.items():
        there = getattr(kind, name)
        if there is not getattr(Chain, name):
            continue  # a subclass's own
        g = ", g=1" if name in ("hvp", "hessian") else ""
        wrt = f", *, wrt={'all' if name == '_vjp_vjp' else 0!r}"
        wrt = "" if name in ("__call__", "value", "jvp") else wrt
        label = name.replace("_vjp_", "vjp.")
        owner, _, last = f"chain.{label}".rpartition(".")
        made = method(
            owner if name != "__call__" else "chain",
            last,
            f"self, {arrays}, /{g}{wrt}",
            f"self.{call}",
            there.__doc__,
        )
        made.__name__ = name
        own[name] = guarded(made)
    return type(kind.__name__, (kind,), own)


def chain(*steps: Any) -> Chain:
    """Compose primitives into one function with its derivatives.

    On the native backend, consecutive elementwise steps share one pass over the data, in blocks
    that stay in cache. The results have the same bits as separate calls.

    Parameters
    ----------
    *steps : primitive, tuple or Chain
        The steps in the order of application. A step is one of these: a primitive with one operand;
        a tuple of a primitive and its operands; such a tuple with a dict of keywords as its last
        entry, such as ``(pb.sum, pb.arg, {"axis": 0})``; another chain, whose steps are inserted;
        or a tuple of a chain and an operand for each of its inputs.

        Among operands, `arg` (once or several times) stands for the running value, ``arg[k]`` for
        the k-th input of the chain, and another chain for its value at these inputs. In the first
        step `arg` is ``arg[0]``. All others are bound (referenced, not copied).
        A loss's pointwise form is a step together with its targets, which have no cotangent:
        ``(pb.logistic.pointwise, pb.arg, y)``.

        Any object that can be called for its value and has ``vjp(*operands, g)`` and
        ``jvp(*operands, *tangents)`` counts as a primitive. With several operands, its vjp returns
        a tuple of cotangents, and its jvp accepts None as the tangent of a bound operand. For
        second order its ``vjp`` has a method ``jvp(*operands, g, *tangents, tg)``.

    Returns
    -------
    Chain
        With ``value`` (or a call), ``jvp``, ``vjp``, ``value_and_vjp``, ``grad``,
        ``value_and_grad``, ``jacobian``, ``hvp`` and ``hessian``; and its vjp, a primitive too, has
        ``vjp.jvp`` and ``vjp.vjp``. Chains can be added, subtracted, multiplied and divided.

    Raises
    ------
    TypeError
        If a step is none of these, or an operand is a primitive.
    ValueError
        If there are no steps, a tuple after the first has no `arg`, or the number of operands is
        not the primitive's.

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

    A function of two inputs:

    >>> h = f * pb.arg[1] + 1.0
    >>> h
    chain(square(arg[0]), multiply(arg, -0.5), exp, multiply(arg, arg[1]), add(arg, 1.0))
    >>> h.vjp(x, 3.0, 1.0, wrt=("x0", "x1"))
    (array([-0.       , -0.8120117]), np.float64(1.1353352832366128))
    """
    return Chain(*steps)


# --- from what was given --------------------------------------------------------------------------


def _composed(steps: Iterable[Any]) -> Node:
    """Return the last node of steps."""
    running: Input | Node = Input(0)
    for number, step in enumerate(steps, 1):
        op, *operands = step if isinstance(step, tuple) and step else (step, arg)
        options = operands.pop() if operands and isinstance(operands[-1], dict) else {}
        where = f"chain: step {number}"
        applied = any(o is arg for o in operands)
        placed = [running if o is arg else o._root if isinstance(o, Chain) else o for o in operands]
        if isinstance(op, Chain):
            running = _applied(where, op, step, placed, options)
        else:
            running = make_node(where, op, tuple(placed), options)
        if number > 1 and not applied:
            raise ValueError(f"{where}, {name_of(op)}, has no pb.arg among its operands")
    assert isinstance(running, Node)
    return running


def _applied(where: str, f: Chain, step: Any, operands: list[Any], options: Any) -> Node:
    """Return a chain's node, applied to operands."""
    n = f._graph.n_inputs
    if f is step and operands == [Input(0)]:
        root: Node = f._root  # the first step takes the inputs as they are
        return root
    if options:
        raise TypeError(f"{where}: a chain takes no {', '.join(options)}")
    if len(operands) != n:
        inputs = ", ".join(["pb.arg", *(f"pb.arg[{k}]" for k in range(1, n))])
        hint = f"; give them, as (f, {inputs})" if f is step else ""
        raise ValueError(f"{where}: the chain takes {n} operands, not {len(operands)}{hint}")
    if not any(isinstance(o, Moving) for o in operands):
        raise ValueError(f"{where}, Chain, has no pb.arg among its operands")
    for k, operand in enumerate(operands, 1):
        if callable(operand):
            raise TypeError(f"{where}: operand {k} of the chain is {shown(operand)}, a function")
    return put_together(f._root, [o if isinstance(o, Operand) else Bound(o) for o in operands])


class _Result(NamedTuple):
    """The place of a node among others."""

    node: int


def _read(*written: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> Chain:
    """Return a chain, for pickle."""
    nodes: list[Node] = []
    for op, operands, options in written:
        given = (nodes[o.node] if isinstance(o, _Result) else o for o in operands)
        nodes.append(make_node("chain", op, tuple(given), options))
    return Chain._of(nodes[-1])


def _written(nodes: Sequence[Node], n_inputs: int) -> str:
    """Return a function as its steps are written; long ones inside of it are not shown."""
    steps: dict[int, str] = {}
    before: dict[int, Node | None] = {}
    inside: dict[int, str] = {}  # the steps that lead to a node, if these are short
    for node in nodes:
        running = next((o for o in node.operands if isinstance(o, Node)), None)

        def write(operand: Any, running: Node | None = running) -> str:
            if operand is running or (running is None and n_inputs == 1):
                return "arg"
            if isinstance(operand, Input):
                return repr(operand)
            return f"chain({inside[id(operand)]})"

        before[id(node)], steps[id(node)] = running, node.text(write)
        leading = "" if running is None else f"{inside[id(running)]}, "
        whole = "..." if leading == "..., " else leading + steps[id(node)]
        inside[id(node)] = whole if len(whole) <= LONGEST_INSIDE else "..."
    spine: list[str] = []
    at: Node | None = nodes[-1]
    while at is not None:
        spine.append(steps[id(at)])
        at = before[id(at)]
    return f"chain({', '.join(spine[::-1])})"

"""HIPS autograd on pullback's kernels.

`accelerate` gives autograd the values and derivatives of pullback's primitives, for its functions
of the same names in ``autograd.numpy`` and ``autograd.scipy``, so an existing program runs on them
unchanged. `restore` takes that back. Arguments that a primitive does not take, such as complex
numbers, stay with autograd.

And primitives take what autograd traces: ``pb.softmax(x)`` is a node of its graph, with the
derivatives of `pullback.softmax`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from numpy import ndarray

try:
    import autograd.numpy as anp
    import autograd.scipy.special as asp
    from autograd import core, tracer
    from autograd.core import add_outgrads, make_jvp, make_vjp, primitive_jvps, primitive_vjps
    from autograd.extend import defjvp, defjvp_argnums, defvjp, defvjp_argnums, primitive
    from autograd.numpy.numpy_boxes import ArrayBox
    from autograd.numpy.numpy_vspaces import ArrayVSpace
    from autograd.tracer import box_types, trace_primitives_map
except ImportError as error:
    raise ImportError(
        'pullback.interop.autograd needs HIPS autograd 1.8: pip install "pullback[autograd]"'
    ) from error

from pullback.elementwise import primitives as elementwise
from pullback.foreign import overriding
from pullback.products import products
from pullback.reductions import reductions
from pullback.registry import Registry
from pullback.tables.elementwise import OpRow
from pullback.tables.reductions import ReductionRow

__all__ = ["accelerate", "restore", "traced"]

# What autograd calls a primitive that has another name there.
_OTHER_NAMES: Final = {
    "abs": ("absolute", "fabs"),
    "digamma": ("psi",),
    "divide": ("true_divide",),
    "matmul": ("dot",),
    "max": ("amax",),
    "mean": ("_primitive_mean",),
    "min": ("amin",),
    "sigmoid": ("expit",),
    "variance": ("_primitive_var",),
}
_NUMBERS: Final = frozenset((float, int, np.float64, np.float32))
_UNTRACED: Final = _NUMBERS | {ndarray}
# Powers by a number, which NumPy computes in this way, too.
_POWERS: Final = {2: "square", 0.5: "sqrt", -1: "reciprocal"}


# --- values and rules -----------------------------------------------------------------------------


class _Rules:
    """A primitive for a function of autograd: its values, and its rules in both directions.

    What the primitive refuses, and derivatives of third order, are left to autograd's own rules.

    Parameters
    ----------
    f : primitive
        A primitive of pullback.
    function : callable
        The function that autograd traces.
    """

    def __init__(self, f: Any, function: Any) -> None:
        self._f, self._vjp, self._function = f, f.vjp, function
        self._vjps_before = primitive_vjps.get(function)
        self._jvps_before = primitive_jvps.get(function)
        self._pulls: dict[int, Any] = {}
        row = f.row
        self._row = row
        self._n = row.nin if isinstance(row, OpRow) else len(row.operands)
        self._default = row.default if isinstance(row, OpRow) else None
        self._options: tuple[str, ...] = tuple(getattr(row, "options", ()))
        self._required: tuple[str, ...] = ()
        if isinstance(row, ReductionRow):
            self._required = row.leading[self._n :]
            own = () if row.parameter is None else (row.parameter.name,)
            weights = ("b",) if row.weighs else ()
            self._options = ("axis", *own, "where", *weights)
            self._options += () if row.is_map else ("keepdims",)

    def _split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return operands, and options by name; or None for a call that the primitive lacks."""
        n = self._n
        if len(args) == n - 1 and self._default is not None:
            args = (*args, self._default)
        options = dict(zip(("axis",) if self._options else (), args[n:], strict=False))
        if len(args) < n or len(args) > n + len(options):
            return None
        for name, given in kwargs.items():
            if name in self._options:
                options[name] = given
            elif given is not None:
                return None
        if self._function is anp.dot and not (np.ndim(args[0]) and 0 < np.ndim(args[1]) < 3):
            return None  # NumPy's dot is another product then
        return args[:n], options

    def value(self, before: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that leaves what the primitive does not take to `before`."""
        f, n = self._f, self._n
        is_dot, is_power = self._function is anp.dot, self._row.name == "power"

        def value(*args: Any, **kwargs: Any) -> Any:
            operands, options = args, kwargs
            if kwargs or len(args) != n or is_dot:
                operands, options = self._split(args, kwargs) or ((None,), {})
            for operand in operands:
                kind = type(operand)
                if kind not in _NUMBERS and (kind is not ndarray or operand.dtype.char not in "fd"):
                    return before(*args, **kwargs)
            if is_power and self._by_number(args) is not None:
                return before(*args, **kwargs)
            try:
                return f(*operands, **options)
            except (TypeError, ValueError):
                return before(*args, **kwargs)

        return value

    def _by_number(self, args: tuple[Any, ...]) -> Any:
        """Return the primitive that is a power by this number, or None."""
        if self._row.name != "power" or type(args[1]) not in _NUMBERS:
            return None
        return elementwise.get(_POWERS.get(args[1], ""))

    def vjps(self, argnums: Any, ans: Any, args: Any, kwargs: Any) -> Callable[[Any], Any]:
        """Return g -> cotangents, as `autograd.extend.defvjp_argnums` takes it."""
        operands, options = args, kwargs
        if kwargs or len(args) != self._n or self._function is anp.dot:
            call = self._split(args, kwargs)
            if call is None or argnums[-1] >= self._n:
                return self._theirs(argnums, ans, args, kwargs)
            operands, options = call
        if _any_box(*operands):
            return self._traced(argnums, operands, options)
        vjp, taken, keywords = self._first(argnums, operands, options)
        dtypes = [getattr(args[k], "dtype", None) for k in argnums]
        alone = len(argnums) == 1

        def pull(g: Any) -> Any:
            if type(g) in box_types:
                return self._traced(argnums, operands, options)(g)
            try:
                result = vjp(*taken, g, **keywords)
            except (TypeError, ValueError):
                if self._vjps_before is None:
                    raise
                return self._theirs(argnums, ans, args, kwargs)(g)
            results = (result,) if alone else result
            for dtype, cotangent in zip(dtypes, results, strict=True):
                if dtype is not cotangent.dtype and dtype is not None:
                    return _fitted(results, [args[k] for k in argnums])
            return results

        return pull

    def _first(self, argnums: Any, operands: Any, options: Any) -> tuple[Any, Any, Any]:
        """Return a method for cotangents, what comes before g, and keywords."""
        if self._n == 1:
            if not self._required:
                return self._vjp, operands, options
            options = {**options}
            return self._vjp, (*operands, *map(options.pop, self._required)), options
        if argnums == (0,) and self._row.name == "power":
            simpler = self._by_number(operands)
            if simpler is not None:
                return simpler.vjp, operands[:1], options
        return self._vjp, operands, {**options, "wrt": argnums if len(argnums) > 1 else argnums[0]}

    def _traced(self, argnums: Any, operands: Any, options: Any) -> Callable[[Any], Any]:
        return lambda g: tuple(self._pull(k)(*operands, g, **options) for k in argnums)

    def _theirs(self, argnums: Any, ans: Any, args: Any, kwargs: Any) -> Callable[[Any], Any]:
        if self._vjps_before is None:
            raise NotImplementedError(f"{self._row.name}: no derivative of this order")
        rule: Callable[[Any], Any] = self._vjps_before(argnums, ans, args, kwargs)
        return rule

    def jvps(self, argnums: Any, gs: Any, ans: Any, args: Any, kwargs: Any) -> Any:
        """Return the tangent of the value, as `autograd.extend.defjvp_argnums` takes it."""
        call = self._split(args, kwargs)
        if call is not None and argnums[-1] < self._n and not _any_box(*call[0], *gs):
            operands, options = call
            tangents = _placed(argnums, gs, self._n)
            try:
                return self._called(self._f.jvp, operands, tangents, options)
            except (TypeError, ValueError):
                if self._jvps_before is None:
                    raise
        if self._jvps_before is None:
            raise NotImplementedError(f"{self._row.name}: no derivative of its jvp")
        return self._jvps_before(argnums, gs, ans, args, kwargs)

    def _called(self, function: Any, operands: Any, others: Any, options: Any, **more: Any) -> Any:
        """Call a method with what belongs between its operands and other arguments."""
        keywords = {**options, **more}
        required = map(keywords.pop, self._required)
        return function(*operands, *required, *others, **keywords)

    # --- of the cotangents ---

    def _pull(self, k: int) -> Any:
        """Return (*operands, g) -> the cotangent of operand k, as a function that is traced."""
        if k not in self._pulls:
            wrt = {"wrt": k} if self._n > 1 else {}

            def pulled(*given: Any, **options: Any) -> Any:
                *operands, g = given
                try:
                    result = self._called(self._vjp, operands, (g,), options, **wrt)
                except (TypeError, ValueError):
                    return self._by_theirs(k, options)(*given)
                return _fitted((result,), (given[k],))[0]

            made = primitive(pulled)
            defvjp_argnums(made, lambda *args: self._vjps_of_pull(k, *args))
            defjvp_argnums(made, lambda *args: self._jvps_of_pull(k, *args))
            self._pulls[k] = made
        return self._pulls[k]

    def _by_theirs(self, k: int, options: Any) -> Callable[..., Any]:
        """Return (*operands, g) -> the cotangent of operand k, by autograd's own rule."""

        def cotangent(*given: Any) -> Any:
            *operands, g = given
            ans = self._function(*operands, **options)
            (result,) = self._theirs((k,), ans, tuple(operands), options)(g)
            return result

        return cotangent

    def _vjps_of_pull(self, k: int, argnums: Any, ans: Any, given: Any, options: Any) -> Any:
        del ans
        *operands, g = given

        def pull(h: Any) -> Any:
            second = getattr(self._vjp, "vjp", None)
            if second is not None and not _any_box(*given, h):
                others = (g, *_placed((k,), (h,), self._n))
                try:
                    results = self._called(second, operands, others, options, wrt=argnums)
                    return _fitted(results, [given[j] for j in argnums])
                except (TypeError, ValueError):
                    pass
            theirs = self._by_theirs(k, options)
            return [make_vjp(_alone(theirs, given, j), given[j])[0](h) for j in argnums]

        return pull

    def _jvps_of_pull(
        self, k: int, argnums: Any, gs: Any, ans: Any, given: Any, options: Any
    ) -> Any:
        del ans
        *operands, g = given
        second = getattr(self._vjp, "jvp", None)
        if second is not None and not _any_box(*given, *gs):
            others = (g, *_placed(argnums, gs, self._n + 1))
            wrt = {"wrt": k} if self._n > 1 else {}
            try:
                return self._called(second, operands, others, options, **wrt)
            except (TypeError, ValueError):
                pass
        theirs = self._by_theirs(k, options)
        first, *more = (
            make_jvp(_alone(theirs, given, j), given[j])(t)[1]
            for j, t in zip(argnums, gs, strict=True)
        )
        return sum(more, first)


def _any_box(*given: Any) -> bool:
    for a in given:  # noqa: SIM110  sooner than any()
        if type(a) in box_types:
            return True
    return False


def _placed(places: Sequence[int], given: Sequence[Any], n: int) -> tuple[Any, ...]:
    """Return a tuple of n with these entries, and None elsewhere."""
    entries = dict(zip(places, given, strict=True))
    return tuple(map(entries.get, range(n)))


def _alone(function: Callable[..., Any], given: Any, j: int) -> Callable[[Any], Any]:
    """Return a function of one argument of several."""
    return lambda a: function(*given[:j], a, *given[j + 1 :])


def _fitted(cotangents: Any, primals: Any) -> tuple[Any, ...]:
    """Return cotangents in the dtypes of their primals."""
    fitted = []
    for cotangent, primal in zip(cotangents, primals, strict=True):
        dtype = getattr(primal, "dtype", cotangent.dtype)
        same = dtype == cotangent.dtype or dtype.kind != "f"
        fitted.append(cotangent if same else cotangent.astype(dtype))
    return tuple(fitted)


# --- autograd's own time --------------------------------------------------------------------------


def _code() -> Any:
    """Return shorter code for the wrappers that `autograd.tracer.primitive` makes."""
    f_raw: Any = None
    is_ufunc = False

    def f_wrapped(*args: Any, called_by_autograd_dispatcher: bool = False, **kwargs: Any) -> Any:
        for arg in args:
            if type(arg) in box_types:
                return pullback_traces(  # type: ignore[name-defined]  # noqa: F821  of its module
                    f_wrapped, f_raw, is_ufunc, args, kwargs, called_by_autograd_dispatcher
                )
        return f_raw(*args, **kwargs)

    return f_wrapped.__code__


def _traces(
    wrapper: Any, raw: Any, is_ufunc: bool, args: Any, kwargs: Any, dispatched: bool
) -> Any:
    """Trace a call with boxes, as autograd's wrapper does."""
    boxed = [k for k, arg in enumerate(args) if type(arg) in box_types]
    if len(boxed) < len(args) and is_ufunc and not dispatched:
        others = [arg for arg in args if type(arg) not in _UNTRACED and type(arg) not in box_types]
        if others and overriding(*others) and ArrayBox in map(type, args):
            return raw(*args, **kwargs)  # NumPy asks the other types, too
    top = args[boxed[0]]._trace
    if len(boxed) > 1:
        top = max(args[k]._trace for k in boxed)
        boxed = [k for k in boxed if args[k]._trace == top]
    values, parents = [*args], []
    for k in boxed:
        values[k] = args[k]._value
        parents.append(args[k]._node)
    if top == 0:  # the outermost, so there are no boxes in boxes
        ans = raw(*values, **kwargs)
    elif dispatched:
        ans = wrapper(*values, called_by_autograd_dispatcher=True, **kwargs)
    else:
        ans = wrapper(*values, **kwargs)
    make = type(parents[0])
    if wrapper in tracer.notrace_primitives[make]:
        return ans
    node = make(ans, wrapper, tuple(values), kwargs, tuple(boxed), parents)
    try:
        return tracer.new_box(ans, top, node)
    except Exception as error:
        if dispatched:
            raise NotImplementedError from error
        raise


def _backward_pass(g: Any, end_node: Any) -> Any:
    """Return the cotangent of the first node, as autograd's function does."""
    uses: dict[Any, int] = {}
    stack = [end_node]
    while stack:
        node = stack.pop()
        uses[node] = uses.get(node, 0) + 1
        if uses[node] == 1:
            stack += node.parents
    # Each node's cotangent, and whether it is an array of ours, to which more can be added.
    outgrads: dict[Any, tuple[Any, bool]] = {end_node: (g, False)}
    ready = [end_node]
    while ready:
        node = ready.pop()
        outgrad, _ = outgrads.pop(node)
        for parent, ingrad in zip(node.parents, node.vjp(outgrad), strict=False):
            kind, known = type(ingrad), outgrads.get(parent)
            if known is None:
                plain = kind in _UNTRACED
                outgrads[parent] = (ingrad, False) if plain else add_outgrads(None, ingrad)
            elif kind is ndarray is type(known[0]) and ingrad.dtype is known[0].dtype:
                total, is_ours = known
                if is_ours:
                    total += ingrad
                else:
                    outgrads[parent] = total + ingrad, True
            else:
                outgrads[parent] = add_outgrads(known, ingrad)
            uses[parent] -= 1
            if not uses[parent]:
                ready.append(parent)
    return outgrad


# --- the swap -------------------------------------------------------------------------------------

_THEIR_CODE: Final = anp.tanh.__code__
_OUR_CODE: Final = _code()
_THEIR_PASS: Final = core.backward_pass
_THEIR_SIZE: Final = ArrayVSpace.size


class _Acceleration:
    """What `accelerate` changes in autograd; its context manager."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, Any, Any, Any]] = []

    def __repr__(self) -> str:
        return f"<autograd on pullback: {'on' if self._before else 'off'}>"

    def __enter__(self) -> None:
        self.on()

    def __exit__(self, *_: object) -> None:
        self.off()

    def on(self) -> None:
        """Put in values and rules, unless they are there."""
        if self._before:
            return
        tracer.pullback_traces = _traces
        ArrayVSpace.size = property(lambda space: math.prod(space.shape))
        core.backward_pass = _backward_pass
        _recode(_THEIR_CODE, _OUR_CODE)
        for function, f in _covered():
            cell, rules = _cell(function), _Rules(f, function)
            before = cell.cell_contents, primitive_vjps[function], primitive_jvps.get(function)
            self._before.append((function, *before))
            if not (isinstance(f.row, OpRow) and f.row.max_ulp[0] <= 0.5):  # NumPy's bits
                cell.cell_contents = rules.value(before[0])
            primitive_vjps[function] = rules.vjps
            if function in primitive_jvps:
                primitive_jvps[function] = rules.jvps

    def off(self) -> None:
        """Put back what was there."""
        core.backward_pass, ArrayVSpace.size = _THEIR_PASS, _THEIR_SIZE
        _recode(_OUR_CODE, _THEIR_CODE)
        while self._before:
            function, value, vjps, jvps = self._before.pop()
            _cell(function).cell_contents = value
            primitive_vjps[function] = vjps
            if jvps is not None:
                primitive_jvps[function] = jvps


def _recode(old: Any, new: Any) -> None:
    """Change the code of the functions that `autograd.tracer.primitive` has made."""
    for wrapper in trace_primitives_map.values():
        if wrapper.__code__ is old:
            wrapper.__code__ = new


def _cell(function: Any) -> Any:
    """Return the cell of a wrapper's closure that holds the function for the values."""
    return function.__closure__[function.__code__.co_freevars.index("f_raw")]


def _covered() -> Iterator[tuple[Any, Any]]:
    """Yield functions of autograd with the primitives that stand for them."""
    seen = set()
    for name, f in Registry.joined(elementwise, products, reductions).items():
        for theirs in (name, *_OTHER_NAMES.get(name, ())):
            for module in (anp.numpy_wrapper, asp):
                function = vars(module).get(theirs)
                if function in primitive_vjps and function not in seen:
                    seen.add(function)
                    yield function, f


_acceleration: Final = _Acceleration()


def accelerate() -> Any:
    """Give autograd the values and derivatives of pullback's primitives.

    They are used for real arrays and numbers of float32 and float64 in ``autograd.numpy`` and
    ``autograd.scipy.special``, and for calls whose options the primitives have. All else, and
    derivatives of third order, stay with autograd. Tracing and the backward pass take a shorter
    way, too. A second call changes nothing.

    Returns
    -------
    context manager
        Which calls `restore` on leaving a ``with`` statement.

    Examples
    --------
    >>> import autograd.numpy as np
    >>> from autograd import grad
    >>> import pullback.interop.autograd as pa
    >>> with pa.accelerate():
    ...     print(grad(lambda x: np.sum(np.tanh(x) ** 2))(np.array([0.0, 0.5])))
    [0.         0.72680155]
    """
    _acceleration.on()
    return _acceleration


def restore() -> None:
    """Give autograd its own values and rules back."""
    _acceleration.off()


# --- primitives of pullback in traced functions ---------------------------------------------------


@cache
def traced(f: Any) -> Any:
    """Return a primitive of pullback as a function that autograd traces.

    There is no need to call it: primitives do so when they meet autograd's boxes.
    """
    is_twin = isinstance(f.row, OpRow) and not isinstance(f, np.ufunc)
    function = primitive(f._ufunc("value") if is_twin else f)  # as NumPy's protocol passes it on
    rules = _Rules(f, function)
    defvjp_argnums(function, rules.vjps)
    defjvp_argnums(function, rules.jvps)
    return function


def register(op: str) -> None:
    """Make NumPy's protocol find an elementwise operation, by its name, on both engines."""
    from pullback import reference

    if op in elementwise:
        traced(elementwise[op])
        traced(getattr(reference, op))


# --- losses of linear models, and objectives ------------------------------------------------------

_as_primitive: Callable[[Callable[..., Any]], Any] = primitive
_OF_LOSS: Final = {3: "w", 4: "b", 1: "X"}  # by the position of the argument


@_as_primitive
def loss_value(loss: Any, X: Any, y: Any, w: Any, b: Any, options: Any) -> Any:
    """Return a loss; it is traced by X, w and b."""
    return loss.value(X, y, w, b, **options)


@_as_primitive
def _loss_slope(loss: Any, X: Any, y: Any, w: Any, b: Any, options: Any, name: str, g: Any) -> Any:
    """Return g times the gradient for one of the variables."""
    return loss.vjp(X, y, w, b, g, wrt=name, **options)


def _vjps_of_loss(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Callable[[Any], Any]:
    del ans, kwargs
    names = tuple(_OF_LOSS[k] for k in argnums)

    def pull(g: Any) -> Any:
        if _any_box(*args, g):
            return tuple(_loss_slope(*args, name, g) for name in names)
        loss, *operands, options = args
        return loss.vjp(*operands, g, wrt=names, **options)

    return pull


def _jvps_of_loss(argnums: Any, gs: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    del ans, kwargs
    terms = [
        anp.sum(_loss_slope(*args, _OF_LOSS[k], 1.0) * t) for k, t in zip(argnums, gs, strict=True)
    ]
    return sum(terms[1:], terms[0])


def _second_of_loss(
    method: str, args: Any, given: dict[str, Any], **options: Any
) -> tuple[Any, ...]:
    """Return what a method of the loss's vjp returns, of these tangents or cotangents."""
    loss, X, y, w, b, keywords, _, g = args
    if _any_box(*args, *given.values()):
        raise NotImplementedError(f"{loss.__name__}: no derivative of third order")
    others = [given.get(name) for name in ("X", "w", "b", "g")[: 3 + (method == "jvp")]]
    call = getattr(loss.vjp, method)
    return call(X, y, w, b, g, *others, **keywords, **options)  # type: ignore[no-any-return]


_OF_SLOPE: Final = {**_OF_LOSS, 7: "g"}


def _vjps_of_slope(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Callable[[Any], Any]:
    del ans, kwargs
    names = tuple(_OF_SLOPE[k] for k in argnums)
    return lambda h: _second_of_loss("vjp", args, {args[6]: h}, wrt=names)


def _jvps_of_slope(argnums: Any, gs: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    del ans, kwargs
    tangents = {_OF_SLOPE[k]: t for k, t in zip(argnums, gs, strict=True)}
    return _second_of_loss("jvp", args, tangents, wrt=args[6])


defvjp_argnums(loss_value, _vjps_of_loss)
defjvp_argnums(loss_value, _jvps_of_loss)
defvjp_argnums(_loss_slope, _vjps_of_slope)
defjvp_argnums(_loss_slope, _jvps_of_slope)


@_as_primitive
def objective_value(objective: Any, theta: Any) -> Any:
    """Return an objective; it is traced by its vector of parameters."""
    return objective.value(theta)


@_as_primitive
def _objective_slope(objective: Any, theta: Any, g: Any) -> Any:
    return g * objective.grad(theta)


@_as_primitive
def _objective_curve(objective: Any, theta: Any, g: Any, v: Any) -> Any:
    return g * objective.hvp(theta, v)


defvjp(objective_value, None, lambda ans, *args: lambda g: _objective_slope(*args, g))
defjvp(objective_value, None, lambda t, ans, *args: anp.dot(_objective_slope(*args, 1.0), t))
defvjp(
    _objective_slope,
    None,
    lambda ans, *args: lambda h: _objective_curve(*args, h),
    lambda ans, f, theta, g: lambda h: anp.dot(h, _objective_slope(f, theta, 1.0)),
)
defjvp(
    _objective_slope,
    None,
    lambda t, ans, *args: _objective_curve(*args, t),
    lambda t, ans, f, theta, g: t * _objective_slope(f, theta, 1.0),
)

"""The calls that calls.py times: every public method of every primitive, with each option.

Arrays are small and plain: 16 elements, matrices 4x4, losses 100x10. Options that a method does not
take are included: the call then raises, and calls.py reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pullback as pb
import signatures
from pullback.tables.selections import SELECTIONS
from signatures import bound, linear_shape, reduced_shape, wrt

Array: TypeAlias = npt.NDArray[Any]

N, SIDE = 16, 4
SAMPLES, FEATURES = 100, 10
RANGES = {"arccosh": (1.1, 3.0)}  # of operands, if not within (0.2, 0.9)
ARITIES = {1: "unary", 2: "binary"}


class Call(NamedTuple):
    """One call to time."""

    family: str
    primitive: str
    method: str
    options: str
    limit: str  # a key of the table of limits
    function: Callable[..., Any]
    arguments: list[Any]
    keywords: dict[str, Any]

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The row of the table that it belongs to: family, method, options, limit."""
        return self.family, self.method, self.options, self.limit


Variant: TypeAlias = tuple[str, str, list[Any], dict[str, Any]]  # options, limit, arguments


def _uniform(name: str, shape: Any, which: int) -> Array:
    low, high = RANGES.get(name, (0.2, 0.9))
    return np.asarray(np.random.default_rng(which).uniform(low, high, shape))


def _as(dtype: str, args: list[Any]) -> list[Any]:
    """Return arguments with all arrays cast."""
    return [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in args]


def conversions(args: list[Any], *, broadcast: bool = False) -> Iterator[Variant]:
    """Yield arguments of other kinds than arrays of one dtype.

    With `broadcast`, a number may stand where there is an array of any shape: the second argument.
    """
    arrays = [i for i, a in enumerate(args) if isinstance(a, np.ndarray)]
    yield "float32", "plain", _as("float32", args), {}
    if len(arrays) > 1:
        first, last = arrays[0], arrays[-1]
        mixed = [a.astype("float32") if i == first else a for i, a in enumerate(args)]
        yield "float32 with float64", "converted", mixed, {}
        place = 1 if broadcast else last if args[last].ndim == 0 else None
        if place is not None:
            number = [0.5 if i == place else a for i, a in enumerate(args)]
            yield "a number beside arrays", "converted", number, {}
    whole = [np.ceil(a) if i in arrays else a for i, a in enumerate(args)]
    yield "integers", "converted", _as("int64", whole), {}
    lists = [a.tolist() if i in arrays else a for i, a in enumerate(args)]
    yield "lists", "converted", lists, {}


def _empty(shapes: Any) -> Any:
    """Return outputs of these shapes, nested as they are."""
    if isinstance(shapes, list):
        return tuple(map(_empty, shapes))
    return np.empty(shapes)


# --- families -------------------------------------------------------------------------------------


def elementwise(name: str, f: Any) -> Iterator[Call]:
    """Yield calls of an operation."""
    nin = f.nin
    kind = ARITIES.get(nin, f"{nin} operands")
    for method in signatures.METHODS["elementwise"]:
        k = nin + {"vjp": 1, "jvp": nin}.get(method, 0)
        args = [_uniform(name, N, i) for i in range(k)]
        for options, limit, given, keywords in _elementwise_variants(method, nin, args):
            yield Call(kind, name, method, options, limit, bound(f, method), given, keywords)


def _elementwise_variants(method: str, nin: int, args: list[Any]) -> Iterator[Variant]:
    yield "", "plain", args, {}
    for options, limit, given, keywords in conversions(args, broadcast=True):
        if method == "jvp" and nin > 1 and options == "a number beside arrays":
            given[nin + 1] = 0.5  # the tangent of a number is one
        yield options, limit, given, keywords
    yield "numbers", "converted", [float(a[0]) for a in args], {}
    if method == "vjp":
        stack = np.stack([args[-1]] * 3)
        yield "a stack of cotangents", "option", [*args[:-1], stack], {}
        if nin > 1:
            yield "wrt=", "option", args, {"wrt": 0}
    if method == "jvp" and nin > 1:
        yield "a tangent is None", "option", [*args[:-1], None], {}
    if method == "jacobian":
        return
    shapes: Any = N
    if method == "derivative" and nin > 1:
        shapes = [N] * nin
    elif method == "value_and_derivative":
        shapes = [N, N] if nin == 1 else [N, [N] * nin]
    elif method == "second_derivative" and nin > 1:
        shapes = [N] * 3
    elif method == "vjp" and nin > 1:
        shapes = [N] * nin
    yield "out=", "option", args, {"out": _empty(shapes)}
    mask = np.arange(N) % 2 == 0
    yield "where=, out=", "option", args, {"out": _empty(shapes), "where": mask}


def reduction(name: str, f: Any) -> Iterator[Call]:
    """Yield calls of a reduction, or a map of rows."""
    is_map = not hasattr(f, "grad")
    kind = "map" if is_map else "reduction"
    operands = signatures.REDUCTION_OPERANDS.get(name, 1)
    parameter = signatures.BOUND.get(name, ())
    for method in signatures.METHODS[kind]:

        def arguments(shape: Any, method: str = method, **options: Any) -> list[Any]:
            axis = options.get("axis", -1 if is_map else None)
            args = [*(_uniform(name, shape, i) for i in range(operands)), *parameter]
            if method == "jvp":
                args += [_uniform(name, shape, 5 + i) for i in range(operands)]
            if method == "vjp":
                reduced = reduced_shape(shape, axis, bool(options.get("keepdims")))
                args.append(_uniform(name, shape if is_map else reduced, 5))
            return args

        def results(shape: Any, axis: Any = -1 if is_map else None, method: str = method) -> Any:
            gradients = shape if operands == 1 else [shape] * operands
            if is_map or method in ("grad", "vjp"):
                return gradients
            result = reduced_shape(shape, axis, False)
            return [result, gradients] if method == "value_and_grad" else result

        for options, limit, given, keywords in _reduction_variants(
            name, method, is_map, arguments, results
        ):
            yield Call(kind, name, method, options, limit, bound(f, method), given, keywords)


def _reduction_variants(
    name: str,
    method: str,
    is_map: bool,
    arguments: Callable[..., list[Any]],
    results: Callable[..., Any],
) -> Iterator[Variant]:
    args = arguments((N,))
    matrix = (SIDE, SIDE)
    yield "", "plain", args, {}
    yield from conversions(args)
    for axis in (0, -1):
        yield f"axis={axis}", "option", arguments(matrix, axis=axis), {"axis": axis}
    if not is_map:
        keywords: dict[str, Any] = {"axis": 0, "keepdims": True}
        yield "axis=0, keepdims=", "option", arguments(matrix, **keywords), keywords
    for keywords in signatures.PARAMETERS.get(name, ())[:1]:
        yield ", ".join(f"{key}=" for key in keywords), "option", args, keywords
    if method == "jacobian":
        return
    yield "out=", "option", args, {"out": _empty(results((N,)))}
    keywords = {"axis": 0, "out": _empty(results(matrix, 0))}
    yield "axis=0, out=", "option", arguments(matrix, axis=0), keywords
    if name in signatures.REDUCTION_OPERANDS:
        if method == "jvp":
            yield "a tangent is None", "option", [*args[:-1], None], {}
        if method in ("vjp", "grad"):
            yield "wrt=", "option", args, {"wrt": 0}
    if method == "vjp" and not is_map:
        yield "a stack of cotangents", "option", [*args[:-1], np.ones(3)], {}


def selection(name: str, f: Any) -> Iterator[Call]:
    """Yield calls of a selection."""
    row = SELECTIONS[name]
    kind = signatures.family(name, f)
    operands: dict[str, Any] = {n: _uniform(name, N, i) for i, n in enumerate(row.operands)}
    operands |= {"c": np.arange(N) % 3 == 0, "indices": np.arange(N)[::-1] // 2}
    for method in signatures.METHODS[kind]:
        k = {"vjp": 1, "jvp": len(row.moved)}.get(method, 0)
        args = [*(operands[n] for n in row.operands), *(_uniform(name, N, 5 + i) for i in range(k))]
        function = bound(f, method)
        shapes: Any = N
        if kind == "choice" and method in ("derivative", "vjp"):
            shapes = [N] * len(row.moved)
        elif method == "value_and_derivative":
            shapes = [N, [N] * len(row.moved)]
        variants: list[Variant] = [("", "plain", args, {}), ("float32", "plain", _as32(args), {})]
        variants.append(("out=", "option", args, {"out": _empty(shapes)}))
        if kind == "choice" and k < 2:
            number = [0.5 if i == 2 else a for i, a in enumerate(args)]
            variants.append(("a number beside arrays", "converted", number, {}))
        if kind == "choice" and method == "vjp":
            variants.append(("wrt=", "option", args, {"wrt": 1}))
            variants.append(
                ("a stack of cotangents", "option", [*args[:-1], np.stack([args[-1]] * 3)], {})
            )
        if kind == "choice" and method == "jvp":
            variants.append(("a tangent is None", "option", [*args[:-1], None], {}))
        if kind == "take":
            square = [a.reshape(SIDE, SIDE) for a in args]
            square[1] = np.arange(SIDE)
            variants.append(("axis=1", "option", square, {"axis": 1}))
        for options, limit, given, keywords in variants:
            yield Call(kind, name, method, options, limit, function, given, keywords)


def _as32(args: list[Any]) -> list[Any]:
    """Return arguments with the arrays of floats cast."""
    return [a.astype("float32") if a.dtype == np.float64 else a for a in args]


PRODUCT_SHAPES: dict[str, tuple[Any, ...]] = {
    "matmul": ((SIDE, SIDE), (SIDE, SIDE)),
    "linear": ((SIDE, SIDE), (SIDE, SIDE), (SIDE,)),
    "quadratic_form": ((SIDE,), (SIDE, SIDE)),
    "bilinear_form": ((SIDE,), (SIDE, SIDE), (SIDE,)),
}


def product(name: str, f: Any) -> Iterator[Call]:
    """Yield calls of a product of matrices, or a form."""
    for method in signatures.METHODS[name]:
        for options, limit, given, keywords in _product_variants(name, method):
            yield Call(name, name, method, options, limit, bound(f, method), given, keywords)


def _product_variants(name: str, method: str) -> Iterator[Variant]:
    shapes, names = PRODUCT_SHAPES[name], signatures.PRODUCTS[name]
    args = [_uniform(name, shape, i) for i, shape in enumerate(shapes)]
    result = linear_shape(name, shapes)
    if method == "vjp":
        args.append(_uniform(name, result, 5))
    elif method == "jvp":
        args += [_uniform(name, shape, 5 + i) for i, shape in enumerate(shapes)]
    yield "", "plain", args, {}
    yield from conversions(args)
    if method == "vjp":
        yield "a stack of cotangents", "option", [*args[:-1], np.ones((3, *result))], {}
        yield "out=", "option", args, {"out": _empty(list(shapes))}
    if method in ("vjp", "value_and_grad"):
        for i, operand in enumerate(names):
            asked = {"wrt": wrt(name, operand)}
            yield f"wrt= {operand}", "option", args, asked
            if method == "vjp":
                keywords = {**asked, "out": _empty(shapes[i])}
                yield f"wrt= {operand}, out=", "option", args, keywords
        yield "wrt= all, reversed", "option", args, {"wrt": wrt(name, names[::-1])}
    if method == "jvp":
        k = len(shapes)
        for gone in range(k):
            some = [None if i == k + gone else a for i, a in enumerate(args)]
            yield f"the tangent of {names[gone]} is None", "option", some, {}
    if method in ("value", "jvp"):
        yield "out=", "option", args, {"out": _empty(result)}
    if name == "linear":
        yield "activation=", "option", args, {"activation": pb.primitives["relu"]}
        yield "activation= by name", "option", args, {"activation": "relu"}
        absent = (2, 5) if method == "jvp" else (2,)
        without = [None if i in absent else a for i, a in enumerate(args)]
        yield "no bias", "option", without, {}


def loss(name: str, f: Any) -> Iterator[Call]:
    """Yield calls of a loss, and of its pointwise part."""
    kind = signatures.TARGETS.get(name, "normal")
    for method in signatures.METHODS["loss"]:
        for options, limit, given, keywords in _loss_variants(kind, method):
            yield Call("loss", name, method, options, limit, getattr(f, method), given, keywords)
    for method in signatures.METHODS["pointwise"]:
        _, y, _, _ = _model(kind, N, FEATURES)
        z = _uniform(name, (N, 3) if kind == "labels" else N, 0)
        moved = {"vjp": [_uniform(name, N, 1)], "jvp": [2 * z]}
        args = [z, y, *moved.get(method, [])]
        function = bound(f.pointwise, method)
        yield Call("pointwise", name, method, "", "plain", function, args, {})
        for options, limit, given, keywords in conversions(args, broadcast=True):
            if kind != "labels" or options not in ("float32", "a number beside arrays"):
                yield Call("pointwise", name, method, options, limit, function, given, keywords)


def _model(kind: str, n: int, d: int) -> tuple[Array, Array, Array, Any]:
    """Return X, y, w and b."""
    rng = np.random.default_rng(n)
    X = rng.normal(size=(n, d))
    if kind == "labels":
        return X, rng.integers(0, 3, n), rng.normal(size=(d, 3)) / d, rng.normal(size=3)
    y = rng.integers(0, 2, n).astype(float)
    if kind == "signs":
        y = 2 * y - 1
    elif kind == "positive":
        y += 1
    return X, y, rng.normal(size=d) / d, 0.5


def _loss_variants(kind: str, method: str) -> Iterator[Variant]:
    X, y, w, b = _model(kind, SAMPLES, FEATURES)

    def arguments(X: Any, y: Any, w: Any, b: Any) -> list[Any]:
        return [X, y, w, b, (2 * w, b)] if method == "hvp" else [X, y, w, b]

    args = arguments(X, y, w, b)
    yield "", "plain", args, {}
    y32 = y if kind == "labels" else y.astype("float32")
    b32 = b.astype("float32") if isinstance(b, np.ndarray) else b
    w32 = w.astype("float32")
    yield "float32", "plain", arguments(X.astype("float32"), y32, w32, b32), {}
    yield "float32 with float64", "converted", arguments(X.astype("float32"), y, w, b), {}
    yield "integers", "converted", arguments(np.ceil(X).astype("int64"), y, w, b), {}
    yield "b is an array", "option", arguments(X, y, w, np.asarray(b)), {}
    yield "no b", "option", arguments(X, y, w, None), {}
    yield "X in F order", "option", arguments(np.asfortranarray(X), y, w, b), {}
    weights = {"sample_weight": np.linspace(0.5, 1.5, SAMPLES)}
    yield "sample_weight=", "option", args, weights
    yield "offset=", "option", args, {"offset": np.linspace(-0.5, 0.5, SAMPLES)}
    if method != "partial":
        yield "reduction=", "option", args, {"reduction": "sum"}
        yield "sample_weight=, reduction=", "option", args, {**weights, "reduction": "sum"}
    if method not in ("grad", "value_and_grad"):
        return
    like = {"X": X, "w": w, "b": np.asarray(b)}
    given = arguments(X, y, w, like["b"])
    outs = {name: np.empty_like(array) for name, array in like.items()}
    for name in like:
        asked = {"wrt": wrt("", name)}
        yield f"wrt= {name}", "option", args, asked
        yield f"wrt= {name}, out=", "option", given, {**asked, "out": outs[name]}
    yield "wrt= all", "option", args, {"wrt": wrt("", ("X", "w", "b"))}
    yield "out=", "option", given, {"out": (outs["w"], outs["b"])}


# --- what is built on primitives ------------------------------------------------------------------


def objectives() -> Iterator[Call]:
    """Yield calls of the objective of each loss, at one point and at others."""
    for name, f in pb.primitives.items():
        if signatures.family(name, f) != "loss":
            continue
        X, y, _, _ = _model(signatures.TARGETS.get(name, "normal"), SAMPLES, FEATURES)
        ways: dict[str, dict[str, Any]] = {
            "": {},
            "l2=": {"l2": 0.1},
            "sample_weight=": {"sample_weight": np.linspace(0.5, 1.5, SAMPLES)},
            "offset=": {"offset": np.linspace(-0.5, 0.5, SAMPLES)},
            "fit_intercept=": {"fit_intercept": False},
        }
        for way, options in ways.items():
            for method in signatures.METHODS["LinearObjective"]:
                objective = pb.LinearObjective(X, y, **(options | {"loss": f}))
                theta = _uniform(name, objective.n_parameters, 0)
                given: list[Any] = [theta]
                if method == "hvp":
                    given = [theta, 2 * theta]
                elif method == "predict":
                    given = [
                        X,
                        theta,
                        *(value for key, value in options.items() if key == "offset"),
                    ]
                elif method == "initial":
                    given = []
                function = getattr(objective, method)
                kind = "LinearObjective"
                yield Call(kind, name, method, way, "objective", function, given, {})


def chains() -> Iterator[Call]:
    """Yield calls of chains of several kinds."""
    p, arg = pb.primitives, pb.arg
    x, M = _uniform("", N, 0), _uniform("", (SIDE, SIDE), 0)
    steps = (p["square"], (p["multiply"], arg, -0.5), p["exp"])
    linear = (p["linear"], arg, M, M[0], {"activation": p["tanh"]})
    many: dict[str, tuple[tuple[Any, ...], Array]] = {
        "one step": (steps[:1], x),
        "three elementwise steps": (steps, x),
        "an array bound": ((p["exp"], (p["multiply"], arg, 2 * x)), x),
        "the value twice": (((p["multiply"], arg, arg), p["tanh"]), x),
        "a sum at the end": ((*steps, p["sum"]), x),
        "a norm": ((p["tanh"], (p["norm"], arg, 3.0)), x),
        "an axis": ((p["tanh"], (p["logsumexp"], arg, {"axis": 1})), M),
        "softmax": ((p["tanh"], p["softmax"]), x),
        "matmul": (((p["matmul"], arg, M), p["tanh"]), M),
        "a vector": (((p["matmul"], M, arg), p["tanh"]), M[0]),
        "linear": ((linear, p["sum"]), M),
        "a loss": ((p["tanh"], (p["squared_error"].pointwise, arg, 2 * x)), x),
    }
    for name, (given, operand) in many.items():
        f = pb.chain(*given)
        value = f(operand)
        g = np.ones_like(value)[()]
        for method in signatures.METHODS["Chain"]:
            function = getattr(f, method)
            args: list[Any] = [operand]
            if method == "jvp":
                args = [operand, 2 * operand]
            elif "vjp" in method:
                args = [operand, g]
            if "grad" in method and np.size(value) > 1:
                continue
            yield Call("chain", name, method, "", "chain", function, args, {})
            if "vjp" in method or "grad" in method:
                asked = {"wrt": signatures.ALL}
                yield Call("chain", name, method, "wrt= all", "chain", function, args, asked)


def jacobians() -> Iterator[Call]:
    """Yield products of Jacobians of all structures and vectors."""
    p = pb.primitives
    x, M = _uniform("", N, 0), _uniform("", (SIDE, SIDE), 0)
    made = {
        "tanh": p["tanh"].jacobian(x),
        "multiply": p["multiply"].jacobian(x, x)[0],
        "multiply, broadcast": p["multiply"].jacobian(M, M[0])[1],
        "matmul by A": p["matmul"].jacobian(M, M)[0],
        "matmul by B": p["matmul"].jacobian(M, M)[1],
        "norm2": p["norm2"].jacobian(x),
        "sum, axis=1": p["sum"].jacobian(M, axis=1),
        "softmax": p["softmax"].jacobian(x),
        "linear by W": p["linear"].jacobian(M, M, M[0], activation=p["tanh"])[1],
    }
    for name, J in made.items():
        kind = type(J).__name__
        rows, columns = J.shape
        g, v, V = np.ones(rows), np.ones(columns), np.ones((columns, 3))
        for method, function, args in (
            ("J @ v", J.__matmul__, [v]),
            ("J @ V", J.__matmul__, [V]),
            ("g @ J", J.__rmatmul__, [g]),
            ("jvp", J.jvp, [v.reshape(J.input_shape)]),
            ("vjp", J.vjp, [g.reshape(J.output_shape)]),
            ("diagonal", J.diagonal, []),
            ("todense", J.todense, []),
        ):
            yield Call(kind, name, method, "", "jacobian", function, args, {})


def all_calls() -> Iterator[Call]:
    """Yield every call."""
    for name, f in pb.primitives.items():
        kind = signatures.family(name, f)
        if kind == "elementwise":
            yield from elementwise(name, f)
        elif kind in ("reduction", "map"):
            yield from reduction(name, f)
        elif kind in ("choice", "take"):
            yield from selection(name, f)
        elif kind == "loss":
            yield from loss(name, f)
        else:
            yield from product(name, f)
    yield from objectives()
    yield from chains()
    yield from jacobians()

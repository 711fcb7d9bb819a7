"""The cases of bits.py: every method of every primitive, on inputs that are the same everywhere.

Inputs come from NumPy alone, with seeds made from their descriptions, so they depend neither on the
order of cases nor on omitted ones. A `Case` is one call; cases of one method and one group are
hashed together.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import add, matmul, sub
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pullback as pb
import signatures
from pullback.tables.selections import SELECTIONS
from signatures import bound, linear_shape, reduced_shape, wrt

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

DTYPES = ("float32", "float64")
SMALL = (*range(1, 34), 64, 100, 255, 1000)  # 33 is two vectors of the widest kind, and one
LARGE = 150_001  # more than one thread takes, and no multiple of anything
SEVERAL_AXES: tuple[Shape, ...] = (
    *((3, 4, 5), (1, 5, 1), (2, 513), (513, 2), (2, 3, 1, 2), (70, 40)),
)
LAID_OUT: tuple[Shape, ...] = ((37,), (5, 7), (3, 4, 5))
EDGES: tuple[Shape, ...] = ((), (0,), (0, 3), (3, 0), (1,), (1, 1))
STRIDES = ("strided", "reversed", "fortran", "padded")
PLACES = ("misaligned", "swapped", "readonly")
DENSE = 64  # Jacobians of no more rows and columns are written out
MOST_TUPLES = 50_000  # of special values


class Case(NamedTuple):
    """One call."""

    method: str
    group: str
    call: Callable[[], Any]


class Library(NamedTuple):
    """Whose primitives are asked: those of the backend, or the twins."""

    name: str
    primitives: dict[str, Any]


def library(name: str) -> Library:
    """Return the primitives of the backend, or those of ``reference``."""
    twins = name == "reference"
    primitives = {
        key: getattr(pb.reference, key) if twins else f for key, f in pb.primitives.items()
    }
    return Library(name, primitives)


# --- inputs ---------------------------------------------------------------------------------------

_drawn: dict[tuple[Any, ...], Array] = {}
_sums: dict[tuple[Any, ...], bytes] = {}


def _generator(*key: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def special_values(dtype: Any) -> Array:
    """Return zeros, subnormals, infinities, NaNs of two kinds, corners, and the ends of ranges."""
    info = np.finfo(dtype)
    positive = [
        *(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 6.0, 20.0, 700.0),
        *(info.smallest_subnormal, info.smallest_normal, info.eps, info.max, 1e-30, 1e20),
        *(np.nextafter(dtype(1), dtype(2)), np.nextafter(dtype(1), dtype(0)), np.inf, np.nan),
    ]
    values = np.array(positive, dtype)
    return np.concatenate([values, -values])


def draw(kind: str, dtype: Any, shape: int | Shape, which: int = 0) -> Array:
    """Return an array of random numbers, the same one for the same arguments.

    Parameters
    ----------
    kind : str
        ``normal``, ``positive``, ``mixed`` (with special values and tails), ``small`` (integers
        from -2 to 2), ``signs``, ``bits``, ``counts``, ``labels`` (below 3), ``mask``, or
        ``probabilities`` (of rows).
    dtype : dtype
    shape : int or tuple of int
    which : int
        Tells several of them apart.
    """
    key = (kind, np.dtype(dtype).name, shape, which)
    if key not in _drawn:
        rng = _generator(*key)
        _drawn[key] = np.asarray(_random(kind, rng, np.dtype(dtype).type, shape), dtype)
        _sums[key] = hashlib.sha256(_drawn[key].tobytes()).digest()
    return _drawn[key]


def _random(kind: str, rng: np.random.Generator, dtype: Any, shape: int | Shape) -> Any:
    if kind == "normal":
        return rng.normal(0, 1.5, shape)
    if kind == "positive":
        return rng.uniform(0.25, 3, shape)
    if kind == "mixed":
        which = rng.integers(0, 5, shape)
        special = rng.choice(special_values(dtype), shape)
        wide = rng.uniform(-120, 120, shape)
        near = rng.normal(0, 2, shape)
        # A cast of the largest numbers is none where they have the dtype already.
        return np.where(which == 0, special, np.where(which == 1, wide, near).astype(dtype))
    if kind == "probabilities":
        return rng.dirichlet(np.ones(np.shape(np.empty(shape))[-1]), np.shape(np.empty(shape))[:-1])
    low, high = {"small": (-2, 3), "signs": (0, 2), "bits": (0, 2), "mask": (0, 2)}.get(
        kind, (0, 3 if kind == "labels" else 6)
    )
    whole = rng.integers(low, high, shape)
    return 2 * whole - 1 if kind == "signs" else whole


def written() -> list[str]:
    """Return the inputs that a call has written to; there must be none."""
    return [
        " ".join(map(str, key))
        for key, array in _drawn.items()
        if hashlib.sha256(array.tobytes()).digest() != _sums[key]
    ]


def laid_out(array: Array, layout: str) -> Array:
    """Return a copy of an array, of at least one axis, in another layout."""
    if layout == "strided":
        copy = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
    elif layout == "padded":
        copy = np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)[..., :-3]
    elif layout == "reversed":
        backwards = (slice(None, None, -1),) * array.ndim
        copy = np.zeros(array.shape, array.dtype)[backwards]
    elif layout == "fortran":
        copy = np.zeros(array.shape, array.dtype, order="F")
    elif layout == "misaligned":
        copy = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    elif layout == "swapped":
        return array.astype(array.dtype.newbyteorder())
    elif layout == "repeated":
        return np.broadcast_to(array[..., :1], array.shape)
    else:
        copy = np.empty_like(array)
    copy[...] = array
    copy.flags.writeable = layout != "readonly"
    return copy


def tuples_of_specials(dtype: Any, k: int) -> tuple[Array, ...]:
    """Return k vectors that hold all tuples of special values, or many of them."""
    values = special_values(np.dtype(dtype).type)
    if len(values) ** k <= MOST_TUPLES * 2:
        return tuple(a.ravel() for a in np.meshgrid(*[values] * k, indexing="ij"))
    rng = _generator("specials", np.dtype(dtype).name, k)
    return tuple(rng.choice(values, MOST_TUPLES) for _ in range(k))


# --- what many families share ---------------------------------------------------------------------


def applied(function: Callable[[], Any]) -> tuple[Any, ...]:
    """Return what Jacobians do to vectors, and small ones in full."""
    jacobians = function()
    results: list[Any] = []
    for J in jacobians if isinstance(jacobians, tuple) else (jacobians,):
        if J is None:
            results.append(None)
            continue
        rows, columns = J.shape
        results += [J @ draw("normal", J.dtype, columns), draw("normal", J.dtype, rows) @ J]
        results += [type(J).__name__, J.input_shape, J.output_shape]
        if max(rows, columns) <= DENSE:
            V = draw("normal", J.dtype, (columns, 3))
            results += [J @ V, V.T @ J.T, J.diagonal(), J.todense(), (2 * J).todense()]
            results += [J.jvp(draw("normal", J.dtype, J.input_shape)), (J.T @ J).todense()]
            results += [J.vjp(draw("normal", J.dtype, J.output_shape)), (J + J).todense()]
    return tuple(results)


def outputs(shapes: Iterable[Any], dtype: Any, layout: str = "") -> Any:
    """Return arrays to write to: nested as `shapes` are, None where there is to be none."""

    def output(shape: Any) -> Any:
        if shape is None:
            return None
        if isinstance(shape, list):
            return tuple(map(output, shape))
        empty = np.zeros(shape, dtype)
        return laid_out(empty, layout) if layout and shape else empty

    return tuple(map(output, shapes))


def with_outputs(function: Callable[..., Any], *args: Any, out: Any, **options: Any) -> Any:
    """Return what a call returns, and what it has written."""
    return function(*args, out=out, **options), out


# --- elementwise ----------------------------------------------------------------------------------


def _extra(method: str, nin: int) -> int:
    return {"vjp": 1, "jvp": nin}.get(method, 0)


def _elementwise_outputs(method: str, nin: int, shape: Shape) -> list[Any]:
    """Return the shapes of the outputs, one entry for a bare one."""
    if method == "derivative" or (method == "vjp" and nin > 1):
        return [shape] * nin
    if method == "value_and_derivative":
        return [shape, shape] if nin == 1 else [shape, [shape] * nin]
    if method == "second_derivative" and nin > 1:
        return [shape] * 3
    return [shape]


def elementwise(name: str, f: Any) -> Iterator[Case]:
    """Yield cases of an operation."""
    del name
    nin = f.nin
    for method in signatures.METHODS["elementwise"]:
        for dtype in DTYPES:
            for group, call in _elementwise_calls(f, method, nin, dtype):
                yield Case(method, f"{dtype} {group}", call)
        for group, call in _elementwise_mixtures(f, method, nin):
            yield Case(method, group, call)


def _elementwise_calls(
    f: Any, method: str, nin: int, dtype: str
) -> Iterator[tuple[str, Callable[[], Any]]]:
    k = nin + _extra(method, nin)

    def call(*args: Any, **options: Any) -> Callable[[], Any]:
        if method == "jacobian":
            return lambda: applied(lambda: f.jacobian(*args))
        return lambda: bound(f, method)(*args, **options)

    def arrays(kind: str, shape: int | Shape) -> list[Array]:
        return [draw(kind, dtype, shape, i) for i in range(k)]

    for n in SMALL:
        yield "sizes", call(*arrays("mixed", n))
        if nin > 1:  # ties
            yield "sizes", call(*[draw("small", dtype, n, i) for i in range(k)])
    yield "special", call(*tuples_of_specials(dtype, k))
    for layout in (*STRIDES, *PLACES, "repeated"):
        group = "places" if layout in PLACES else "strides"
        for shape in LAID_OUT:
            yield group, call(*(laid_out(a, layout) for a in arrays("mixed", shape)))
            first, *others = arrays("mixed", shape)  # one of them alone
            yield group, call(laid_out(first, layout), *others)
    yield from _broadcasts(method, nin, dtype, call)
    for shape in EDGES:
        yield "edges", call(*arrays("normal", shape))
    yield "edges", call(*(a[()] for a in arrays("positive", ())))
    for sizes, layout in ((LARGE, ""), ((400, 300), ""), ((300, 401), "fortran")):
        yield "large", call(*(laid_out(a, layout) for a in arrays("mixed", sizes)))
    for layout in ("strided", "swapped", "misaligned"):
        yield "large", call(*(laid_out(a, layout) for a in arrays("normal", 110_003)))
    if method == "jacobian":
        return
    yield from _elementwise_outs(f, method, nin, dtype, arrays)


def _broadcasts(
    method: str, nin: int, dtype: str, call: Callable[..., Any]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield calls whose operands, cotangents and tangents are of several shapes."""
    patterns: tuple[tuple[Shape, ...], ...] = (
        ((5, 1), (1, 7)),
        ((), (35,)),
        ((7,), (5, 7)),
        ((5, 7), ()),
        ((3, 1, 4), (2, 4)),
        ((0, 3), (1, 3)),
        ((130, 1), (130, 70)),
        ((400, 300), (300,)),
        ((400, 1), (400, 300)),
        ((400, 300), ()),
    )
    for pattern in patterns:
        shapes = [pattern[i % 2] for i in range(nin)]
        group = "large" if (400, 300) in shapes else "broadcast"
        whole = np.broadcast_shapes(*shapes)
        operands = [draw("normal", dtype, s, i) for i, s in enumerate(shapes)]
        if method == "vjp":
            for g_shape in (whole, (3, *whole), (2, 1, *whole)):
                if not (group == "large" and len(g_shape) > 3):
                    yield group, call(*operands, draw("normal", dtype, g_shape, nin))
            if whole:  # which is refused, or broadcasts
                yield group, call(*operands, draw("normal", dtype, (1,) * len(whole), nin))
        elif method == "jvp":
            yield group, call(*operands, *(draw("normal", dtype, s, 7) for s in shapes))
        else:
            yield group, call(*operands)


def _elementwise_outs(
    f: Any, method: str, nin: int, dtype: str, arrays: Callable[..., list[Array]]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    def into(args: Any, out: Any, **options: Any) -> Callable[[], Any]:
        return lambda: with_outputs(bound(f, method), *args, out=out(), **options)

    def outs(shapes: list[Any], like: str = dtype, layout: str = "") -> Callable[[], Any]:
        def made() -> Any:
            arrays = outputs(shapes, like, layout)
            return arrays[0] if len(arrays) == 1 else arrays

        return made

    for shape in ((19,), (5, 7), ()):
        shapes = _elementwise_outputs(method, nin, shape)
        args = arrays("mixed", shape)
        for layout in ("", "strided", "fortran", "swapped", "misaligned"):
            yield "out", into(args, outs(shapes, dtype, layout))
        yield "out", into(args, outs(shapes, "float64"))
        yield "out", into(args, outs(shapes, "float32"))
        if len(shapes) > 1:
            for i in range(len(shapes)):
                some = [s if i == j else None for j, s in enumerate(shapes)]
                yield "out", into(args, outs(some))
    shape = (23,)
    shapes = _elementwise_outputs(method, nin, shape)
    args = arrays("normal", shape)
    yield "out", into(args, outs([(24,)] * len(shapes)))  # which is refused
    yield "out", partial(_in_place, bound(f, method), args, len(shapes))
    mask = draw("mask", "bool", shape)
    yield "options", into(args, outs(shapes), where=mask)
    for options in (
        {"dtype": "float64"},
        {"dtype": "float32"},
        {"dtype": "float32", "casting": "unsafe"},
        {"order": "F"},
    ):
        for a in (args, arrays("normal", (5, 7))):
            yield "options", partial(_with_options, f, method, a, options)


def _with_options(f: Any, method: str, args: list[Any], options: dict[str, Any]) -> Any:
    return bound(f, method)(*args, **options)


def _in_place(function: Callable[..., Any], args: list[Array], n_outputs: int) -> Any:
    """Return what a call gives that writes over its first argument."""
    first, *others = (a.copy() for a in args)
    out = first if n_outputs == 1 else (first, *[None] * (n_outputs - 1))
    return function(first, *others, out=out), first


def _elementwise_mixtures(f: Any, method: str, nin: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield calls of several dtypes, of numbers and lists, and ufuncs' own methods."""
    k = nin + _extra(method, nin)

    def call(args: Any) -> Callable[[], Any]:
        if method == "jacobian":
            return lambda: applied(lambda: f.jacobian(*args))
        return lambda: bound(f, method)(*args)

    for n in (5, 20_011):  # more than the pieces that NumPy casts
        f32, f64 = (
            [draw("positive", dtype, n, i) for i in range(k)] for dtype in ("float32", "float64")
        )
        for which in range(k):
            yield "mixed", call([*f32[:which], f64[which], *f32[which + 1 :]])
            yield "mixed", call([*f64[:which], f32[which], *f64[which + 1 :]])
            for number in (2, 0.5, True, np.float64(0.5), np.float32(0.5), np.int64(2)):
                yield "numbers", call([*f32[:which], number, *f32[which + 1 :]])
                yield "numbers", call([*f64[:which], number, *f64[which + 1 :]])
        for dtype in ("int8", "uint8", "int16", "int32", "int64", "uint64", "bool", "float16"):
            yield "integers", call([draw("counts", dtype, n, i) for i in range(k)])
    small = [draw("positive", "float64", 3, i) for i in range(k)]
    yield "numbers", call([a.tolist() for a in small])
    yield "numbers", call([0.5 + i for i in range(k)])
    yield "numbers", call([1 + i for i in range(k)])
    for refused in (np.zeros(3, complex), np.zeros(3, object), np.zeros(3, np.longdouble), "text"):
        yield "refused", call([refused] * k)
    yield "refused", call(small[:-1])
    yield "refused", call([*small[:-1], None])
    yield "refused", call([np.zeros(3), *[np.zeros(4)] * (k - 1)])
    if method != "value" or nin != 2:
        return
    A = draw("normal", "float64", (5, 7))
    for axis in (0, 1):
        for own in ("reduce", "accumulate"):
            yield "ufunc", partial(_with_options, f, own, [A], {"axis": axis})
    yield "ufunc", partial(_with_options, f, "outer", [A[0], A[:, 0]], {})
    yield "ufunc", partial(_with_options, f, "reduceat", [A, [0, 2, 3]], {})


# --- reductions and maps of rows ------------------------------------------------------------------


def reduction(name: str, f: Any) -> Iterator[Case]:
    """Yield cases of a reduction, or a map of rows."""
    is_map = not hasattr(f, "grad")
    kind = "map" if is_map else "reduction"
    for method in signatures.METHODS[kind]:
        yield from _reduction_cases(name, f, method, is_map)


def _reduction_cases(  # noqa: PLR0912
    name: str, f: Any, method: str, is_map: bool
) -> Iterator[Case]:
    operands = signatures.REDUCTION_OPERANDS.get(name, 1)
    parameter = signatures.BOUND.get(name, ())
    default_axis = -1 if is_map else None

    def arguments(arrays: Callable[[Any, int], Any], shape: Shape, options: Any) -> list[Any]:
        """Return operands, parameter, and the cotangent or the tangents, from shape and number."""
        axis = options.get("axis", default_axis)
        args = [*(arrays(shape, i) for i in range(operands)), *parameter]
        if method == "jvp":
            args += [arrays(shape, operands + i) for i in range(operands)]
        if method == "vjp":
            keepdims = options.get("keepdims", False)
            result = shape if is_map else reduced_shape(shape, axis, keepdims)
            args.append(arrays(result, operands))
        return args

    def call(args: list[Any], **options: Any) -> Callable[[], Any]:
        if method == "jacobian":
            return lambda: applied(lambda: f.jacobian(*args, **options))
        return lambda: bound(f, method)(*args, **options)

    def laid(kind: str, dtype: str, layout: str) -> Callable[[Any, int], Any]:
        def array(shape: Shape, which: int) -> Any:
            drawn = draw(kind, dtype, shape, which)
            return laid_out(drawn, layout) if shape and layout else drawn

        return array

    for dtype in DTYPES:
        normal = laid("normal", dtype, "")
        for n in (*SMALL, 511, 512, 513, 1025, 5000):
            yield Case(method, f"{dtype} sizes", call(arguments(normal, (n,), {})))
        for shape in SEVERAL_AXES:
            for options in _axes(shape, is_map):
                small = laid("small", dtype, "")  # ties, zeros, integers
                for arrays in (normal, small, laid("positive", dtype, "")):
                    yield Case(
                        method, f"{dtype} axes", call(arguments(arrays, shape, options), **options)
                    )
        for layout in (*STRIDES, *PLACES, "repeated"):
            group = "places" if layout in PLACES else "strides"
            for shape in ((37,), (6, 7), (3, 4, 5), (700, 3)):
                for axis in (0, -1, None):
                    args = arguments(laid("normal", dtype, layout), shape, {"axis": axis})
                    yield Case(method, f"{dtype} {group}", call(args, axis=axis))
        for axis in (0, 1):
            rows = laid("mixed", dtype, "")
            for shape in ((600, 3), (3, 600), (600, 1), (40, 40)):
                args = arguments(rows, shape, {"axis": axis})
                yield Case(method, f"{dtype} special", call(args, axis=axis))
        for shape in EDGES:
            for axis in (None, 0, -1):
                if shape or axis is None:
                    args = arguments(normal, shape, {"axis": axis})
                    yield Case(method, f"{dtype} edges", call(args, axis=axis))
        large: list[tuple[Shape, Any]] = [((LARGE,), None), ((400, 300), 0), ((400, 300), 1)]
        large += [((400, 300), None), ((2, 60_000), 1), ((60_000, 2), 0), ((30, 100, 40), (0, 2))]
        for shape, axis in large:
            for layout in ("", "fortran", "swapped"):
                args = arguments(laid("normal", dtype, layout), shape, {"axis": axis})
                yield Case(method, f"{dtype} large", call(args, axis=axis))
        yield from _reduction_parameters(name, f, method, arguments(normal, (40,), {}), dtype, call)
        if method != "jacobian":
            yield from _reduction_outs(f, method, is_map, operands, arguments, normal, dtype)
    yield from _reduction_mixtures(method, arguments, call)


def _axes(shape: Shape, is_map: bool) -> Iterator[dict[str, Any]]:
    """Yield the keywords of all axes, and pairs of them."""
    axes: list[Any] = [*range(-1, len(shape)), None, *itertools.combinations(range(len(shape)), 2)]
    for axis in axes:
        yield {"axis": axis}
        if not is_map:
            yield {"axis": axis, "keepdims": True}
    yield {}


def _reduction_parameters(
    name: str, f: Any, method: str, args: list[Any], dtype: str, call: Callable[..., Any]
) -> Iterator[Case]:
    for options in signatures.PARAMETERS.get(name, ()):
        yield Case(method, f"{dtype} parameter", call(args, **options))
    if name not in signatures.BOUND:
        return
    for p in signatures.EXPONENTS:
        for kind in ("normal", "small", "mixed"):
            x, _, *others = args
            given = [draw(kind, dtype, x.shape), p, *others]
            yield Case(method, f"{dtype} parameter", call(given))
            yield Case(method, f"{dtype} parameter", call([given[0], 1e300 * p, *others]))
    del f


def _reduction_outs(
    f: Any,
    method: str,
    is_map: bool,
    operands: int,
    arguments: Callable[..., list[Any]],
    arrays: Callable[[Any, int], Any],
    dtype: str,
) -> Iterator[Case]:
    function = bound(f, method)
    for shape, options in (
        ((19,), {}),
        ((5, 7), {"axis": 0}),
        ((5, 7), {"axis": 1}),
        *(() if is_map else (((3, 4, 5), {"axis": (0, 2), "keepdims": True}),)),
    ):
        axis = options.get("axis", -1 if is_map else None)
        result = shape if is_map else reduced_shape(shape, axis, bool(options.get("keepdims")))
        gradients: list[Any] = [shape] * operands
        shapes: list[Any] = gradients if method in ("grad", "vjp") else [result]
        if method == "value_and_grad":
            shapes = [result, shape if operands == 1 else gradients]
        args = arguments(arrays, shape, options)
        for layout in ("", "strided", "fortran", "swapped", "misaligned"):
            for like in (dtype, "float64"):

                def into(
                    args: Any = args,
                    s: Any = shapes,
                    d: Any = like,
                    y: Any = layout,
                    o: Any = options,
                ) -> Any:
                    out = outputs(s, d, y)
                    return with_outputs(function, *args, out=out[0] if len(s) == 1 else out, **o)

                yield Case(method, f"{dtype} out", into)
        for i in range(len(shapes) if len(shapes) > 1 else 0):

            def some(args: Any = args, s: Any = shapes, i: int = i, o: Any = options) -> Any:
                out = outputs([t if i == j else None for j, t in enumerate(s)], dtype)
                return with_outputs(function, *args, out=out, **o)

            yield Case(method, f"{dtype} out", some)


def _reduction_mixtures(
    method: str, arguments: Callable[..., list[Any]], call: Callable[..., Any]
) -> Iterator[Case]:
    for n in (5, 20_011):
        for dtypes in (("float32", "float64"), ("float64", "float32")):
            args = arguments(lambda s, i, d=dtypes: draw("normal", d[i % 2], s, i), (n,), {})
            yield Case(method, "mixed", call(args))
        for dtype in ("int8", "uint8", "int32", "int64", "uint64", "bool", "float16"):
            args = arguments(lambda s, i, d=dtype: draw("counts", d, s, i), (n,), {})
            yield Case(method, "integers", call(args))
    args = arguments(lambda s, i: draw("normal", "float64", s, i), (2, 3), {})
    lists = [a.tolist() if isinstance(a, np.ndarray) else a for a in args]
    yield Case(method, "numbers", call(lists))
    for axis in (2, -3, (0, 0), "text", 0.5):
        yield Case(method, "refused", call(args, axis=axis))
    yield Case(method, "refused", call(args[:-1]))
    yield Case(method, "refused", call([*args[:-1], np.zeros((3, 2, 2))]))
    for refused in (np.zeros(3, complex), np.zeros(3, object), "text", None):
        yield Case(method, "refused", call([refused, *args[1:]]))
    if method == "jvp" and len(args) > 3:  # of several operands, a tangent may be missing
        yield Case(method, "no tangent", call([*args[:-1], None]))
        yield Case(method, "no tangent", call([*args[:-2], None, args[-1]]))
        yield Case(method, "no tangent", call([*args[:-2], None, None]))


# --- products -------------------------------------------------------------------------------------

PRODUCT_SHAPES: dict[str, dict[str, tuple[tuple[Any, ...], ...]]] = {
    "matmul": {
        "sizes": (
            *(((n, n), (n, n)) for n in (*range(1, 18), 24, 31, 33, 64, 65)),
            *(((1, 33), (33, 1)), ((3, 5), (5, 7)), ((17, 9), (9, 33)), ((65, 129), (129, 33))),
            *(((2, 600), (600, 3)), ((600, 2), (2, 3)), ((6, 40), (40, 100))),
        ),
        "vectors": (((5,), (5,)), ((3, 5), (5,)), ((5,), (5, 3)), ((70, 90), (90,))),
        "stacks": (
            *(((4, 3, 5), (4, 5, 2)), ((4, 3, 5), (5, 2)), ((3, 5), (4, 5, 2))),
            *(((2, 1, 3, 5), (3, 5, 2)), ((4, 3, 5), (5,)), ((5,), (4, 5, 2))),
            *(((300, 4, 4), (300, 4, 4)), ((9, 33, 17), (1, 17, 9))),
        ),
        "empty": (((0, 3), (3, 2)), ((3, 0), (0, 2)), ((0, 3, 4), (4, 2)), ((3, 4), (4, 0))),
        "large": (
            *(((300, 200), (200, 250)), ((5000, 10), (10, 8)), ((2000, 8, 8), (2000, 8, 8))),
            *(((7, 4000), (4000, 6)), ((3, 70, 80), (80, 90)), ((1000, 300), (300,))),
        ),
    },
    "linear": {
        "sizes": (
            *(((n, n), (n, n), (n,)) for n in (1, 2, 3, 4, 5, 8, 15, 16, 17, 33)),
            *(((6, 4), (4, 5), None), ((70, 33), (33, 65), (65,))),
        ),
        "vectors": (((4,), (4, 5), (5,)), ((4,), (4, 5), None)),
        "stacks": (((2, 3, 4), (4, 5), (5,)), ((2, 3, 4), (4, 5), None)),
        "empty": (((0, 4), (4, 5), (5,)), ((3, 0), (0, 5), (5,)), ((3, 4), (4, 0), (0,))),
        "large": (((3000, 40), (40, 50), (50,)), ((400, 300), (300, 200), None)),
    },
    "quadratic_form": {
        "sizes": tuple(((n,), (n, n)) for n in (*range(1, 18), 33, 65)),
        "stacks": (((3, 5), (5, 5)), ((2, 3, 5), (5, 5)), ((600, 9), (9, 9))),
        "empty": (((0,), (0, 0)), ((0, 4), (4, 4))),
        "large": (((500,), (500, 500)), ((3000, 40), (40, 40))),
    },
    "bilinear_form": {
        "sizes": (
            *(((n,), (n, n), (n,)) for n in (*range(1, 18), 33, 65)),
            *(((5,), (5, 7), (7,)), ((40,), (40, 3), (3,))),
        ),
        "stacks": (
            *(((3, 5), (5, 7), (3, 7)), ((3, 5), (5, 7), (7,)), ((5,), (5, 7), (3, 7))),
            *(((2, 1, 5), (5, 7), (3, 7)), ((600, 9), (9, 4), (600, 4))),
        ),
        "empty": (((0,), (0, 3), (3,)), ((0, 4), (4, 3), (0, 3))),
        "large": (((500,), (500, 400), (400,)), ((3000, 40), (40, 30), (3000, 30))),
    },
}
ACTIVATIONS = ("relu", "tanh", "gelu", "sigmoid", "exp", "softplus")


def selection(name: str, f: Any) -> Iterator[Case]:
    """Yield cases of a selection."""
    row, kind = SELECTIONS[name], signatures.family(name, f)
    for method in (*signatures.METHODS[kind], *signatures.COMPOSED[kind]):
        for dtype, shape in itertools.product(DTYPES, (*((n,) for n in SMALL), *SEVERAL_AXES)):
            for which in ("mixed", "small"):
                given = {n: draw(which, dtype, shape, i) for i, n in enumerate(row.operands)}
                given["c"] = draw("mask", bool, shape)
                given["indices"] = draw("small", np.int64, shape[:1]) % shape[0]
                args = [given[n] for n in row.operands]
                taken = shape if kind == "choice" else np.shape(np.take(args[0], args[1], 0))
                if method == "vjp":
                    args.append(draw(which, dtype, taken, 5))
                if method == "jvp":
                    args += [draw(which, dtype, shape, 5 + i) for i in range(len(row.moved))]
                options = {} if kind == "choice" else {"axis": 0}
                call: Callable[[], Any] = partial(bound(f, method), *args, **options)
                if method == "jacobian":
                    call = partial(applied, call)
                yield Case(method, f"{dtype} {which}", call)
        if kind == "choice" and method == "vjp":
            for dtype in DTYPES:
                args = [draw("mixed", dtype, (7, 300), i) for i in range(len(row.operands))]
                args[:2] = (draw("mask", bool, (7, 1)), args[1]) if name == "where" else args[:2]
                args[-1] = draw("mixed", dtype, (300,), 3)
                g = draw("normal", dtype, (7, 300), 5)
                yield Case(method, f"{dtype} broadcast", partial(f.vjp, *args, g))


def product(name: str, f: Any, primitives: dict[str, Any]) -> Iterator[Case]:
    """Yield cases of a product of matrices, or a form."""
    for method in signatures.METHODS[name]:
        for group, args, options in _product_arguments(name, method, primitives):
            call: Callable[[], Any]
            if method == "jacobian":
                call = partial(applied, partial(f.jacobian, *args, **options))
            elif "out" in options:
                call = partial(_product_into, bound(f, method), args, options)
            else:
                call = partial(_with_options, f, method, args, options)
            yield Case(method, group, call)


def _product_into(function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
    options = dict(options)
    return with_outputs(function, *args, out=options.pop("out")(), **options)


def _product_arguments(  # noqa: PLR0912
    name: str, method: str, primitives: dict[str, Any]
) -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    """Yield groups, arguments and keywords."""

    def arguments(shapes: Any, array: Callable[[Any, int], Any]) -> list[Any]:
        k = len(shapes)
        args = [None if s is None else array(s, i) for i, s in enumerate(shapes)]
        if method == "vjp":
            args.append(array(linear_shape(name, shapes), k))
        elif method == "jvp":
            args += [None if s is None else array(s, k + i) for i, s in enumerate(shapes)]
        return args

    def laid(kind: str, dtype: str, layout: str = "") -> Callable[[Any, int], Any]:
        def array(shape: Shape, which: int) -> Any:
            drawn = draw(kind, dtype, shape, which)
            return laid_out(drawn, layout) if layout and shape else drawn

        return array

    def variants(shapes: Any, args: list[Any]) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        yield args, {}
        names = signatures.PRODUCTS[name]
        if method in ("vjp", "value_and_grad"):
            for operands in signatures.choices(names):
                yield args, {"wrt": wrt(name, operands)}
        if method == "jvp":
            k = len(shapes)
            for gone in range(2**k):
                tangents = [None if gone >> i & 1 else t for i, t in enumerate(args[k:])]
                yield [*args[:k], *tangents], {}

    table = PRODUCT_SHAPES[name]
    for dtype in DTYPES:
        for group, many in table.items():
            for shapes in many:
                for kind in ("normal",) if group == "large" else ("normal", "small"):
                    args = arguments(shapes, laid(kind, dtype))
                    for given, options in variants(shapes, args):
                        yield f"{dtype} {group}", given, options
        middle = (*table["stacks"][:4], *table["sizes"][4:-1:5], table["large"][0])
        for shapes in middle:
            for layout in (*STRIDES, *PLACES, "repeated"):
                group = "places" if layout in PLACES else "strides"
                args = arguments(shapes, laid("normal", dtype, layout))
                for given, options in variants(shapes, args):
                    yield f"{dtype} {group}", given, options
        for shapes in (*table["sizes"][:5], *table["stacks"]):
            args = arguments(shapes, laid("mixed", dtype))
            yield f"{dtype} special", args, {}
        if method not in ("jacobian", "value_and_grad"):
            yield from _product_outs(name, method, dtype, arguments, laid("normal", dtype), table)
        if name == "linear":
            for activation in ACTIVATIONS:
                options = {"activation": primitives[activation]}
                for shapes in (*table["sizes"][3:], *table["stacks"], *table["large"]):
                    args = arguments(shapes, laid("normal", dtype))
                    yield f"{dtype} activation", args, options
    yield from _product_mixtures(name, method, arguments)


def _product_outs(
    name: str,
    method: str,
    dtype: str,
    arguments: Callable[..., list[Any]],
    array: Callable[[Any, int], Any],
    table: dict[str, Any],
) -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    """Yield calls with outputs: all of them, and of several each alone."""
    for shapes in (*table["sizes"][3:6], *table["stacks"][:2]):
        args = arguments(shapes, array)
        for layout in ("", "strided", "fortran", "swapped"):
            for like in (dtype, "float64"):
                if method != "vjp":
                    result = [linear_shape(name, shapes)]
                    out = lambda s=result, d=like, y=layout: outputs(s, d, y)[0]  # noqa: E731
                    yield f"{dtype} out", args, {"out": out}
                    continue
                whole = lambda s=shapes, d=like, y=layout: outputs(s, d, y)  # noqa: E731
                yield f"{dtype} out", args, {"out": whole}
                for i, operand in enumerate(signatures.PRODUCTS[name]):
                    bare = lambda s=shapes[i], d=like, y=layout: outputs([s], d, y)[0]  # noqa: E731
                    yield f"{dtype} out", args, {"wrt": wrt(name, operand), "out": bare}
                    some = [s if i == j else None for j, s in enumerate(shapes)]
                    one = lambda s=some, d=like, y=layout: outputs(s, d, y)  # noqa: E731
                    yield f"{dtype} out", args, {"out": one}


def _product_mixtures(
    name: str, method: str, arguments: Callable[..., list[Any]]
) -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    table = PRODUCT_SHAPES[name]
    for shapes in (table["sizes"][3], table["stacks"][1]):
        for dtypes in (("float32", "float64"), ("float64", "float32")):
            pick = lambda s, i, d=dtypes: draw("normal", d[i % 2], s, i)  # noqa: E731
            yield "mixed", arguments(shapes, pick), {}
        for dtype in ("int8", "int32", "int64", "bool", "float16"):
            whole = lambda s, i, d=dtype: draw("counts", d, s, i)  # noqa: E731
            yield "integers", arguments(shapes, whole), {}
        lists = lambda s, i: draw("normal", "float64", s, i).tolist()  # noqa: E731
        yield "numbers", arguments(shapes, lists), {}
        args = arguments(shapes, lambda s, i: draw("normal", "float64", s, i))
        for refused in (np.zeros((3, 3), complex), "text", None, np.zeros((2, 2, 7))):
            yield "refused", [refused, *args[1:]], {}
        yield "refused", args[:-1], {}
        yield "refused", [*args[:-1], np.zeros((3, 2, 2, 2))], {}
        if method == "vjp":
            for keyword in (3, -1, (), (0, 0), "q", 0.5):
                yield "refused", args, {"wrt": keyword}


# --- losses of linear models ----------------------------------------------------------------------


class Compressed(NamedTuple):
    """A sparse matrix as CSR and CSC hold it."""

    format: str
    data: Array
    indices: Array
    indptr: Array
    shape: tuple[int, int]


def compressed(X: Array, form: str, index: str = "int32") -> Compressed:
    """Return the entries of `X` that are not 0, in compressed rows or columns."""
    lines = X if form == "csr" else X.T
    major, minor = np.nonzero(lines)
    counts = np.bincount(major, minlength=len(lines))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    data = np.ascontiguousarray(lines[major, minor])
    return Compressed(form, data, minor.astype(index), indptr.astype(index), X.shape)


class Model(NamedTuple):
    """Arguments of a loss."""

    X: Any
    y: Any
    w: Any
    b: Any

    @property
    def direction(self) -> tuple[Any, Any]:
        """A direction of the shapes of w and b."""
        vw = draw("normal", "float64", self.w.shape, 11)
        if self.b is None:
            return vw, None
        vb = draw("normal", "float64", np.shape(self.b), 12)
        return vw, float(vb) if isinstance(self.b, float) else vb


def model(
    kind: str, n: int, d: int, dtypes: tuple[str, str] = ("float64",) * 2, k: int | None = None
) -> Model:
    """Return a model; `dtypes` are those of X and y, and of the parameters."""
    classes = kind in ("labels", "probabilities")
    tail: Shape = (k or 3,) if classes else () if k is None else (k,)
    X = draw("normal", dtypes[0], (n, d))
    w = draw("normal", dtypes[1], (d, *tail), 1) / np.float32(1 + d)
    b: Any = draw("normal", dtypes[1], tail, 2) if tail else 0.3125
    y_dtype = "int64" if kind == "labels" else dtypes[0]
    shape = (n,) if kind == "labels" else (n, *tail)
    return Model(X, draw(kind, y_dtype, shape, 3), w, b)


LOSS_DTYPES = (
    ("float64", "float64"),
    ("float32", "float32"),
    ("float32", "float64"),
    ("float64", "float32"),
)
LOSS_SIZES = ((1, 1), (2, 3), (7, 1), (5, 16), (9, 17), (33, 33), (100, 10), (513, 5), (1300, 40))


def loss(name: str, f: Any) -> Iterator[Case]:
    """Yield cases of a loss, with its default parameter and another."""
    targets = signatures.TARGETS.get(name, "normal")
    kinds = ("labels", "probabilities") if targets == "labels" else (targets,)
    for method in (*signatures.METHODS["loss"], *signatures.COMPOSED["loss"]):
        for kind in kinds:
            suffix = f" {kind}" if len(kinds) > 1 else ""
            for group, args, options in _loss_arguments(kind):
                yield Case(method, group + suffix, _loss_call(f, method, args, options))
        for group, args, options in _targets_of_all_kinds():
            yield Case(method, group, _loss_call(f, method, args, options))
        if name in signatures.LOSS_PARAMETERS:
            other = f(signatures.LOSS_PARAMETERS[name])
            for _, args, options in _loss_arguments(targets):
                yield Case(method, "parameter", _loss_call(other, method, args, options))
    for method in signatures.METHODS["pointwise"]:
        for kind in kinds:
            suffix = f" {kind}" if len(kinds) > 1 else ""
            for group, call in _pointwise_calls(f.pointwise, method, kind):
                yield Case(f"pointwise.{method}", group + suffix, call)


def _loss_call(f: Any, method: str, args: Model, options: dict[str, Any]) -> Callable[[], Any]:
    """Return a call that takes of the keywords those that the method has."""
    with_gradients = method in ("grad", "value_and_grad", "vjp")
    taken = dict(options)
    out = taken.pop("out", None)
    if not with_gradients:
        taken.pop("wrt", None)
    if method in ("partial", "sample_grads"):
        taken.pop("reduction", None)

    def call() -> Any:
        function = getattr(f, method)
        if method == "hvp":
            return function(*args, args.direction, **taken)
        if method == "vjp":
            return _of_vjp(function, args, taken, out)
        if method == "partial":
            part = function(*args, **taken)
            return (part + part).finish(), sum([part, part, part]).finish("sum"), part.gw, part.loss
        if method == "sample_grads":
            grads = function(*args, **taken)
            return grads.norms(), grads.sum(), grads.clip(0.5).todense()
        if out is not None and with_gradients:
            return with_outputs(function, *args, out=out(), **taken)
        return function(*args, **taken)

    return call


def _of_vjp(vjp: Any, args: Model, options: dict[str, Any], out: Any) -> Any:
    """Return a loss's cotangents, and their tangents and cotangents."""
    if out is not None:
        return with_outputs(vjp, *args, 1.5, out=out(), **options)
    along = (None, *args.direction)
    both = vjp.jvp(*args, 1.5, *along, 0.5, **options), vjp.vjp(*args, 1.5, *along, **options)
    return vjp(*args, 1.5, **options), *both


def _loss_arguments(kind: str) -> Iterator[tuple[str, Model, dict[str, Any]]]:
    for dtypes in LOSS_DTYPES:
        label = dtypes[0] if dtypes[0] == dtypes[1] else f"{dtypes[0]} and {dtypes[1]}"
        for n, d in LOSS_SIZES:
            for k in (None, 2, 3, 10) if kind != "labels" else (None,):
                m = model(kind, n, d, dtypes, k)
                weights = draw("positive", "float64", n)
                group = f"{label} sizes" if k is None else f"{label} outputs"
                yield group, m, {}
                yield f"{label} weights", m, {"sample_weight": weights}
                yield f"{label} weights", m, {"sample_weight": weights, "reduction": "sum"}
                yield f"{label} sum", m, {"reduction": "sum"}
                yield group, m._replace(b=None), {}
                if k is None:
                    yield from _layouts(f"{label} layouts", m)
    for dtype in DTYPES:
        m = model(kind, 211, 12, (dtype, dtype))
        yield from _intercepts(f"{dtype} intercepts", m)
        yield from _gradient_options(dtype, m)
        for n, d in ((60_000, 8), (3000, 130)):
            m = model(kind, n, d, (dtype, dtype))
            weights = draw("positive", "float64", n)
            yield f"{dtype} large", m, {}
            yield f"{dtype} large", m, {"sample_weight": weights}
            yield f"{dtype} large", m._replace(X=np.asfortranarray(m.X)), {}
            sparse = np.where(draw("counts", "int64", m.X.shape) == 0, m.X, 0)
            for form in ("csr", "csc"):
                yield f"{dtype} large", m._replace(X=compressed(sparse, form)), {}
        for scale in (1e30, 1e-30, 300.0, np.inf, np.nan):
            m = model(kind, 37, 5, (dtype, dtype))
            with np.errstate(all="ignore"):
                yield f"{dtype} special", m._replace(w=m.w * m.w.dtype.type(scale)), {}
        special = draw("mixed", dtype, (37, 5))
        yield f"{dtype} special", m._replace(X=special), {}
    for n_samples in (0, 3):
        yield "edges", model(kind, n_samples, 0), {}
        yield "edges", model(kind, 0, n_samples), {}
    m = model(kind, 100, 10)
    for dtype in ("int8", "int64", "bool", "float16"):
        yield "integers", m._replace(X=draw("counts", dtype, (100, 10))), {}
    yield "numbers", m._replace(X=m.X.tolist(), y=m.y.tolist(), w=m.w), {}
    for X in (m.X.astype(complex), m.X[:-1], m.X[:, :-1], "text", m.X.ravel()):
        yield "refused", m._replace(X=X), {}
    for weights in (-np.ones(100), np.zeros(100), np.ones(99), np.full(100, np.nan)):
        yield "refused", m, {"sample_weight": weights}
    yield "refused", m, {"reduction": "none"}
    yield "refused", m, {"wrt": "q"}


def _layouts(group: str, m: Model) -> Iterator[tuple[str, Model, dict[str, Any]]]:
    """Yield a model with X, then y and w, in all layouts."""
    for layout in (*STRIDES, *PLACES):
        yield group, m._replace(X=laid_out(m.X, layout)), {}
        yield group, m._replace(y=laid_out(m.y, layout), w=laid_out(m.w, layout)), {}
    sparse = np.where(draw("counts", "int64", m.X.shape) < 2, m.X, 0)
    for form in ("csr", "csc"):
        for index in ("int32", "int64"):
            yield group.replace("layouts", form), m._replace(X=compressed(sparse, form, index)), {}


def _intercepts(group: str, m: Model) -> Iterator[tuple[str, Model, dict[str, Any]]]:
    for b in (None, 0.5, 2, np.float32(0.5), np.float64(0.5), np.array(0.5), np.array([0.5])):
        yield group, m._replace(b=b), {}
    yield group, m._replace(b=np.zeros(7)), {}


def _gradient_options(dtype: str, m: Model) -> Iterator[tuple[str, Model, dict[str, Any]]]:
    weights = {"sample_weight": draw("positive", "float64", len(m.X))}
    m = m._replace(b=np.asarray(m.b))
    shapes = {"X": m.X.shape, "w": m.w.shape, "b": m.b.shape}
    for names in ("X", "w", "b", ("w",), ("X", "w", "b"), ("b", "w"), ("w", "X")):
        asked = {"wrt": wrt("", names)}
        yield f"{dtype} wrt", m, asked
        yield f"{dtype} wrt", m, asked | weights
        yield f"{dtype} wrt", m._replace(X=np.asfortranarray(m.X)), asked
        for layout in ("", "strided", "fortran"):
            if isinstance(names, str):
                out = lambda s=shapes[names], y=layout: outputs([s], dtype, y)[0]  # noqa: E731
            else:
                many = [shapes[name] for name in names]
                out = lambda s=many, y=layout: outputs(s, dtype, y)  # noqa: E731
            yield f"{dtype} out", m, {**asked, "out": out}
    one = lambda: outputs([shapes["w"], None], dtype)  # noqa: E731
    yield f"{dtype} out", m, {"out": one}


def _targets_of_all_kinds() -> Iterator[tuple[str, Model, dict[str, Any]]]:
    """Yield targets that some losses take and others refuse."""
    for kind in ("normal", "bits", "signs", "counts", "positive", "small", "labels", "mixed"):
        for n in (3, 700):
            yield "targets", model(kind, n, 4), {}


def _pointwise_calls(f: Any, method: str, kind: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    classes = kind in ("labels", "probabilities")
    tail: Shape = (3,) if classes else ()

    def call(*args: Any) -> Callable[[], Any]:
        if method == "jacobian":
            return lambda: applied(lambda: bound(f, method)(*args))
        return lambda: bound(f, method)(*args)

    def arguments(z_kind: str, dtype: str, shape: Shape, layout: str = "") -> list[Any]:
        y_shape = shape if kind == "labels" else (*shape, *tail)
        y = draw(kind, "int64" if kind == "labels" else dtype, y_shape, 1)
        args = [draw(z_kind, dtype, (*shape, *tail)), y]
        if method in ("vjp", "jvp"):
            args.append(draw("normal", dtype, (*shape, *tail) if method == "jvp" else shape, 2))
        return [laid_out(a, layout) if layout and a.shape else a for a in args]

    for dtype in DTYPES:
        for n in (*SMALL, 5000):
            yield f"{dtype} sizes", call(*arguments("normal", dtype, (n,)))
        shapes: tuple[Shape, ...] = ((4000,), (7, 5))
        for shape in shapes:
            yield f"{dtype} special", call(*arguments("mixed", dtype, shape))
        for layout in (*STRIDES, *PLACES):
            for shape in ((37,), (5, 7)):
                yield f"{dtype} layouts", call(*arguments("normal", dtype, shape, layout))
        shapes = ((), (0,), (3, 0))
        for shape in shapes:
            yield f"{dtype} edges", call(*arguments("normal", dtype, shape))
        yield f"{dtype} large", call(*arguments("normal", dtype, (LARGE,)))
        z, y, *g = arguments("normal", dtype, (5, 7))
        yield f"{dtype} broadcast", call(z[:1], y, *g)
        yield f"{dtype} broadcast", call(z, y[:1], *g)
        yield f"{dtype} broadcast", call(z, y, *(np.stack([a, 2 * a]) for a in g))
        other = "float32" if dtype == "float64" else "float64"
        yield "mixed", call(z.astype(other), y, *g)
        yield "numbers", call(z.tolist(), y.tolist(), *(a.tolist() for a in g))
        yield "refused", call(z[:3], y, *g)
        yield "refused", call(z.astype(complex), y, *g)
    pair = [draw("normal", "float64", 900), draw("mixed", "float64", 900)]
    yield "targets", call(*pair, *[np.ones(900)] * (method in ("vjp", "jvp")))


# --- what is built on primitives ------------------------------------------------------------------


def objectives(primitives: dict[str, Any]) -> Iterator[Case]:
    """Yield cases of the objective of each loss."""
    for name, f in primitives.items():
        if signatures.family(name, f) != "loss":
            continue
        kind = signatures.TARGETS.get(name, "normal")
        for n, d in ((40, 3), (700, 20), (20_000, 9)):
            for dtype in DTYPES:
                m = model(kind, n, d, (dtype, "float64"))
                weights = draw("positive", "float64", n)
                sparse = np.where(draw("counts", "int64", m.X.shape) < 2, m.X, 0)
                chunks = [(m.X[i : i + n // 3], m.y[i : i + n // 3]) for i in range(0, n, n // 3)]
                ways: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
                    ("plain", (m.X, m.y), {}),
                    ("l2", (m.X, m.y), {"l2": 0.25}),
                    ("no intercept", (m.X, m.y), {"fit_intercept": False}),
                    ("weights", (m.X, m.y), {"sample_weight": weights, "l2": 1e-3}),
                    ("fortran", (np.asfortranarray(m.X), m.y), {}),
                    ("csr", (compressed(sparse, "csr"), m.y), {}),
                    ("csc", (compressed(sparse, "csc"), m.y), {}),
                    ("chunks", (chunks,), {"l2": 0.25}),
                )
                for way, args, options in ways:
                    composed = signatures.COMPOSED["LinearObjective"]
                    for method in (*signatures.METHODS["LinearObjective"], *composed):
                        call = partial(_asked, f, args, options, method, m.X)
                        yield Case(f"{name}.{method}", f"{dtype} {way}", call)


def _asked(f: Any, args: tuple[Any, ...], options: Any, method: str, X: Array) -> Any:
    objective = pb.LinearObjective(*args, **(options | {"loss": f}))
    theta, v, other = (draw("normal", "float64", objective.n_parameters, i) / 4 for i in range(3))
    function = getattr(objective, method)
    if method == "initial":
        return function()
    if method == "predict":
        return function(X, theta)
    if method == "line":
        phi = function(theta, v)
        return phi(0.0), phi(0.5), phi.second(0.5)
    if method == "hessian_operator":
        return function(theta) @ v, function(theta) @ np.stack([v, other], axis=1)
    if method == "hvp":  # twice at one point, at another one, after a gradient there
        results = [function(theta, v), function(theta, other), function(v, other)]
        return (*results, objective.value_and_grad(other), function(other, v))
    return function(theta), function(other)


def chains(primitives: dict[str, Any]) -> Iterator[Case]:
    """Yield cases of chains of all kinds of steps."""
    p = primitives
    for dtype in DTYPES:
        for group, steps, shape, is_scalar in _chains(p, dtype):
            f = partial(pb.chain, *steps)
            x, t = (draw("normal", dtype, shape, i) for i in range(2))
            for layout in ("", "fortran", "strided"):
                args = [laid_out(a, layout) for a in (x, t)]
                for method, call in _chain_calls(f, is_scalar, *args):
                    yield Case(method, f"{dtype} {group}", call)


def _chain_calls(
    f: Callable[[], Any], is_scalar: bool, x: Array, t: Array
) -> Iterator[tuple[str, Callable[[], Any]]]:
    def pull(method: str, **options: Any) -> Callable[[], Any]:
        def call() -> Any:
            g = draw("normal", x.dtype, np.shape(f()(x)), 5)
            return getattr(f(), method)(x, g, **options)

        return call

    yield "value", lambda: (f()(x), f().value(x))
    yield "jvp", lambda: f().jvp(x, t)
    for method in ("vjp", "value_and_vjp"):
        yield method, pull(method)
        yield f"{method} wrt", pull(method, wrt=signatures.ALL)
    if is_scalar:
        yield "grad", lambda: (f().grad(x), f().grad(x, wrt=signatures.ALL))
        yield "value_and_grad", lambda: f().value_and_grad(x)
        yield "value_and_grad wrt", lambda: f().value_and_grad(x, wrt=signatures.ALL)
    yield "jacobian", lambda: applied(lambda: f().jacobian(x))


def _chains(p: dict[str, Any], dtype: str) -> Iterator[tuple[str, tuple[Any, ...], Shape, bool]]:
    """Yield names, steps, shapes of the operand, and whether the value is one number."""
    arg = pb.arg
    for n in (1, 5, 17, 40, 1000, LARGE):
        group = "large" if n == LARGE else f"{n}"
        bound_operand = draw("positive", dtype, n, 3)
        steps = (p["square"], (p["multiply"], arg, -0.5), p["exp"])
        yield f"elementwise {group}", steps, (n,), False
        yield f"sum {group}", (*steps, p["sum"]), (n,), True
        held = ((p["multiply"], arg, bound_operand), p["tanh"], (p["add"], bound_operand, arg))
        yield f"bound {group}", held, (n,), False
        twice = ((p["multiply"], arg, arg), (p["add"], arg, 1.0), p["log"], p["norm2"])
        yield f"twice {group}", twice, (n,), True
    W, c = draw("normal", dtype, (4, 6), 3), draw("normal", dtype, 6, 4)
    for rows in (3, 70):
        shape = (rows, 4)
        yield f"matmul {rows}", ((p["matmul"], arg, W), p["relu"]), shape, False
        yield f"linear {rows}", ((p["linear"], arg, W, c), p["softmax"]), shape, False
        activated = (p["linear"], arg, W, c, {"activation": p["tanh"]})
        yield f"activation {rows}", (activated, p["squared_norm2"]), shape, True
        along = (p["logsumexp"], arg, {"axis": 1})
        yield f"axis {rows}", (p["exp"], along, p["mean"]), shape, True
        yield f"broadcast {rows}", ((p["multiply"], arg, draw("normal", dtype, 4)),), shape, False
        yield f"norm {rows}", ((p["norm"], arg, 3.0),), shape, True
        yield f"map {rows}", (p["layer_norm"], (p["log_softmax"], arg, {"axis": 0})), shape, False
    form = (p["quadratic_form"], arg, draw("normal", dtype, (9, 9), 3))
    yield "form", (p["sin"], form), (9,), True
    y = draw("normal", dtype, 9, 4)
    yield "loss", (p["sin"], (p["huber"].pointwise, arg, y), p["mean"]), (9,), True


OPERATIONS: dict[str, Callable[..., Any]] = {
    "product": matmul,
    "product with the transposed": lambda one, other: one @ other.T,
    "product of the transposed": lambda one, other: one.T @ other,
    "sum": add,
    "difference": sub,
}


def jacobians(primitives: dict[str, Any]) -> Iterator[Case]:
    """Yield cases of products and sums of Jacobians of several structures."""
    p = primitives
    for dtype in DTYPES:
        x, y = (draw("normal", dtype, (3, 4), i) for i in range(2))
        W = draw("normal", dtype, (4, 4), 2)
        made: dict[str, Callable[[], Any]] = {
            "diagonal": partial(p["tanh"].jacobian, x),
            "other diagonal": partial(_second, p["multiply"], x, y),
            "broadcast": partial(_first, p["multiply"], x[0], y),
            "kronecker": partial(_first, p["matmul"], x, W),
            "other kronecker": partial(_second, p["matmul"], x, W),
            "softmax": partial(p["softmax"].jacobian, x),
            "row sums": partial(p["sum"].jacobian, x, axis=1),
            "gradient": partial(p["norm2"].jacobian, x),
        }
        for (left, one), other in itertools.product(made.items(), made.values()):
            for name, operation in OPERATIONS.items():
                pair = partial(_joined, operation, one, other)
                yield Case(name, f"{dtype} {left}", partial(applied, pair))
        for left, one in made.items():
            yield Case("tensor", f"{dtype} {left}", partial(_written_out, one))


def _joined(operation: Callable[..., Any], one: Callable[[], Any], other: Callable[[], Any]) -> Any:
    return operation(one(), other())


def _first(f: Any, *operands: Array) -> Any:
    return f.jacobian(*operands)[0]


def _second(f: Any, *operands: Array) -> Any:
    return f.jacobian(*operands)[1]


def _written_out(made: Callable[[], Any]) -> Any:
    J = made()
    layouts = (J.tensor(), J.tensor("denominator"), J.T.todense(), J.T.T.todense())
    return (*layouts, (-J).todense(), (J * 0.5).todense(), J.flops())


# --- all of them ----------------------------------------------------------------------------------


def all_cases(source: Library) -> Iterator[tuple[str, Iterator[Case]]]:
    """Yield the names of primitives, and of what is built on them, with their cases."""
    for name, f in source.primitives.items():
        kind = signatures.family(name, f)
        if kind == "elementwise":
            yield name, elementwise(name, f)
        elif kind in ("reduction", "map"):
            yield name, reduction(name, f)
        elif kind in ("choice", "take"):
            yield name, selection(name, f)
        elif kind == "loss":
            yield name, loss(name, f)
        else:
            yield name, product(name, f, source.primitives)
    yield "LinearObjective", objectives(source.primitives)
    yield "chain", chains(source.primitives)
    yield "jacobians", jacobians(source.primitives)

"""Arguments that no operation takes: a TypeError or ValueError names operation and argument.

What is refused is a table by kind of argument. The calls are those of the registry, and their
arguments those of the twins' signatures, so that a new operation is tested without a new line here.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pullback as pb
import pytest
import scipy.sparse
from protocol import TWINS, backends, each
from pullback import jacobians as pj
from pullback.tables.elementwise import OPS
from pullback.tables.losses import LOSSES
from pullback.tables.reductions import REDUCTIONS
from pullback.tables.selections import SELECTIONS
from test_registry import EVERYTHING

# --- what is valid, by family ---------------------------------------------------------------------

X23 = np.array([[0.25, 0.5, 0.75], [0.3, 0.6, 0.4]])
PAIR, TRIPLE, SQUARE = np.ones(2), np.ones(3), np.ones((2, 2))
ELEMENTS = dict.fromkeys(("w", "x", "g", "t", "tw", "tx"), X23)
REDUCED = {"x": X23, "y": X23, "g": 1.0, "t": X23, "tx": X23, "ty": X23, "p": 3.0, "ddof": 0.0}
REDUCED |= {"tg": 1.0, **dict.fromkeys(("h", "hx", "hy"), X23)}
MAPPED = {"axis": -1, "eps": 1e-5, **dict.fromkeys(("x", "g", "t", "tg", "h"), X23)}
CHOSEN = dict.fromkeys(("w", "x", "lo", "hi", "g", "tw", "tx", "tlo", "thi"), X23) | {"c": X23 > 0}
TAKEN = {"x": X23, "indices": [1, 0], "g": PAIR, "t": X23, "axis": None}
PRODUCTS = {
    "matmul": {"A": X23, "B": X23.T, "G": SQUARE, "tA": X23, "tB": X23.T},
    "linear": {"X": X23, "W": X23.T, "b": PAIR, "G": SQUARE, "tX": X23, "tW": X23.T, "tb": PAIR},
    "quadratic_form": {"x": TRIPLE, "A": np.eye(3), "g": 1.0, "tx": TRIPLE, "tA": np.eye(3)},
    "bilinear_form": {"u": PAIR, "X": X23, "v": TRIPLE, "g": 1.0, "tu": PAIR, "tX": X23}
    | {"tv": TRIPLE},
}
for given in PRODUCTS.values():
    given |= {f"h{name}": given[name] for name in given if f"t{name}" in given}
    given |= {f"t{name}": given[name] for name in ("G", "g") if name in given}
SAMPLES = {"X": np.ones((4, 3)), "y": np.ones(4), "w": TRIPLE, "b": 0.5} | {
    "sample_weight": np.ones(4),
    "offset": np.ones(4),
    "v": (TRIPLE, 1.0),
}
SAMPLES |= {"g": 1.0, "tg": 1.0, "tX": np.ones((4, 3)), "hX": np.ones((4, 3))}
SAMPLES |= {f"{t}{name}": SAMPLES[name] for t in "th" for name in ("w", "b", "offset")}
CLASSES = (
    SAMPLES
    | dict.fromkeys(("tw", "hw"), np.ones((3, 2)))
    | {"y": np.ones(4, int), "w": np.ones((3, 2)), "v": (np.ones((3, 2)), 1.0)}
)
SCORES = dict.fromkeys(("z", "y", "g", "t", "tg", "h"), np.ones(4))
CLASS_SCORES = SCORES | dict.fromkeys(("z", "t", "h"), np.ones((4, 2))) | {"y": np.ones(4, int)}


def valid(name: str) -> dict[str, Any]:
    """Return values for the arguments of an operation's methods."""
    op, _, method = name.partition(".")
    if op in OPS:
        return ELEMENTS
    if op in REDUCTIONS:
        return MAPPED if REDUCTIONS[op].is_map else REDUCED
    if op in SELECTIONS:
        return CHOSEN if SELECTIONS[op].is_elementwise else TAKEN
    if op in PRODUCTS:
        return PRODUCTS[op]
    if method.startswith("pointwise"):
        return CLASS_SCORES if LOSSES[op].of_classes else SCORES
    return CLASSES if LOSSES[op].of_classes else SAMPLES


class Case(NamedTuple):
    """A method of an operation, with arguments that it takes."""

    name: str
    call: Any
    signature: inspect.Signature
    arguments: dict[str, Any]

    @property
    def op(self) -> str:
        return self.name.partition(".")[0]

    def __call__(self, **changed: Any) -> Any:
        """Call with some arguments changed."""
        given = self.arguments | changed
        in_order = {name: given[name] for name in self.signature.parameters if name in given}
        bound = inspect.BoundArguments(self.signature, in_order)  # type: ignore[arg-type]
        return self.call(*bound.args, **bound.kwargs)


def of_vjp() -> Iterator[tuple[str, Any, Any]]:
    """Yield what vjp can do: of losses and their pointwise forms, of reductions and products."""
    owners = [
        f"{loss}.{vjp}"
        for loss in ("logistic", "softmax_cross_entropy")
        for vjp in ("vjp", "pointwise.vjp")
    ]
    some = ("prod", "dot", "norm", "logsumexp", "variance", "softmax", "layer_norm")
    owners += [f"{name}.vjp" for name in (*some, *PRODUCTS)]
    for owner, method in itertools.product(owners, ("jvp", "vjp")):
        path = f"{owner}.{method}"
        yield path, *(attrgetter(path)(P) for P in (pb, pb.reference))


def cases(primitives: Any) -> Iterator[Case]:
    for name, ours, twin in (*EVERYTHING, *of_vjp()):
        op, _, method = name.partition(".")
        if op in LOSSES and not method:
            continue  # the object itself takes its parameter, if it has one
        signature = inspect.signature(twin.value if op in REDUCTIONS and not method else twin)
        named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        signature = signature.replace(parameters=named)
        arguments = {k: v for k, v in valid(name).items() if k in signature.parameters}
        yield Case(name, ours if primitives is pb else twin, signature, arguments)


CASES = [(case, primitives) for primitives in TWINS for case in cases(primitives)]
every_case = each(
    "case, primitives",
    CASES,
    label=lambda pair: f"{pair[0].name} of {pair[1].__name__}",
    by=lambda pair: pair[1].__name__,
)

# --- what is refused, by kind of argument ---------------------------------------------------------


class Nothing:
    """An object of which nothing is known."""

    def __repr__(self) -> str:
        return "Nothing()"


def nested(depth: int) -> Any:
    """Return a number in so many lists."""
    return [nested(depth - 1)] if depth else 1.0


HUGE = 10**400
HUGER = 10**5000  # whose digits Python refuses to write
RAGGED, DEEP = [[1.0, 2.0], [3.0]], nested(65)
ARRAY = [
    *(HUGE, -HUGE, HUGER, [HUGE, 1], "text", b"bytes", "", 1j, PAIR * 1j, PAIR.astype(object)),
    *(np.float64, len, Nothing(), {"a": 1}, {1, 2}, RAGGED, DEEP, ...),
    *(np.datetime64("2020-01-01"), np.longdouble(1), np.array("text"), np.zeros(2, "f4,f4")),
]
NUMBER = [HUGE, -HUGE, HUGER, "1", b"1", None, 1j, [1.0], PAIR, Nothing(), np.nan, -np.inf, {}, len]
INDEX = [1.5, True, "0", b"0", HUGE, -HUGE, HUGER, 99, -99, np.array(1.0), Nothing(), {}, len]
INDICES = [*INDEX, (0, 1.5), (0, True), (0, 0), (99,), (HUGE,), ("0",), (None,), "01", "", PAIR]
SHAPE = [1.5, True, "12", b"", -1, (2, -3), HUGE, -HUGE, HUGER, (HUGE,), (2, 3.0), ("2",), (None,)]
REFUSED: dict[str, list[Any]] = {
    "axis": [*INDICES, (0, -2), [None], np.array([0.0]), np.array([[0]])],
    "keepdims": [PAIR, np.array(True), "yes", b"", 1.5, None, [True], (), Nothing(), {}],
    "wrt": [*INDICES, None, (), -1],
    "reduction": ["median", "", b"mean", None, 0, True, PAIR, ["mean"], HUGER, Nothing(), len],
    "activation": ["rellu", np.tanh, pb.multiply, pb.sum, HUGER, PAIR, Nothing()],
    "out": ["text", b"", 1.0, HUGER, [0.0], {}, Nothing(), len, np.ones(7), np.ones((7, 7))],
    "where": [*ARRAY, None, 1, 1.0, "yes", np.ones((5, 2, 3), bool), np.ones(7, bool), X23],
    "v": [*ARRAY, 1.0, PAIR, (), (PAIR,), (PAIR, 1.0), (TRIPLE, HUGE), (TRIPLE, "text")],
    **dict.fromkeys(("p", "ddof", "eps", "delta", "q"), NUMBER),
}
# What may be left out, by None.
OPTIONAL = {
    "b",
    "sample_weight",
    "offset",
    "tA",
    "tB",
    "tX",
    "tW",
    "tb",
    "tu",
    "tv",
    "t",
    "tw",
    "tx",
    "ty",
    "tg",
    "toffset",
    "h",
    "hX",
    "hw",
    "hb",
    "hoffset",
    *("tG", "hx", "hy", "hA", "hB", "hW", "hu", "hv"),
    "lo",
    "hi",
    "tlo",
    "thi",
}


def refused(case: Case, argument: str) -> list[Any]:
    if argument in REFUSED and not (argument == "v" and case.op in PRODUCTS):
        return REFUSED[argument]
    may_be_none = argument in OPTIONAL
    return ARRAY if may_be_none else [*ARRAY, None]


def complaint(call: Callable[[], Any], op: str, argument: str | None = None) -> str | None:
    """Return what is wrong with how a call is refused, or nothing."""
    try:
        call()
    except (TypeError, ValueError) as error:
        message = str(error)
        for name in filter(None, (op, argument)):
            name = "v[wb]?" if name == "v" else re.escape(name)
            if not re.search(rf"(?<!\w){name}(?!\w)", message):
                return f"{type(error).__name__} does not name {name}: {message[:300]}"
        return f"a message of {len(message)} characters" if len(message) > 400 else None
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "is not refused"


def label(given: Any) -> str:
    return "HUGER" if given is HUGER else " ".join(repr(given)[:40].split())


@every_case
def test_arguments(case: Case, primitives: Any) -> None:
    case()
    wrong = []
    for argument in case.signature.parameters:
        if argument == "where" and isinstance(case.call, np.ufunc):
            continue  # NumPy's
        for given in refused(case, argument):
            # NumPy converts a ufunc's arguments, and its messages do not tell which of them it was.
            of_numpy = argument == "out" or given is RAGGED or given is DEEP
            untold = of_numpy and case.op in OPS and primitives is not pb.reference
            found = complaint(
                lambda argument=argument, given=given: case(**{argument: given}),
                case.op,
                None if untold else argument,
            )
            wrong += [f"{argument}={label(given)}: {found}"] if found else []
    assert not wrong, "\n".join(wrong)


@every_case
def test_counts_of_arguments(case: Case, primitives: Any) -> None:
    del primitives
    parameters = case.signature.parameters.values()
    needed = [case.arguments[p.name] for p in parameters if p.default is p.empty]
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    optional = [None] * (len(positional) - len(needed))
    wrong: list[Callable[[], Any]] = [
        lambda: case.call(),
        lambda: case.call(*needed[:-1]),
        lambda: case.call(*needed, *optional, None),
        lambda: case.call(*needed, nonsense=1),
        lambda: case.call(*needed, **{"": 1}),
        lambda: case.call(*needed, **{positional[0]: needed[0]}),
    ]
    for call in wrong:
        assert complaint(call, case.op) is None


@backends
@pytest.mark.parametrize(("op", "name"), [("huber", "delta"), ("quantile", "q")])
def test_parameters_of_losses(op: str, name: str, primitives: Any) -> None:
    loss = getattr(primitives, op)
    for given in [*NUMBER, 0, -1.0, np.inf]:
        for call in (lambda given=given: loss(given), lambda given=given: loss(**{name: given})):
            found = complaint(call, op, name)
            assert not found, f"{label(given)}: {found}"
    for call in (
        lambda: loss(),
        lambda: loss(0.5, 2),
        lambda: loss(nonsense=2),
        lambda: loss(0.5, **{name: 0.5}),
        lambda: loss(**{name: 0.5, "nonsense": 1}),
    ):
        assert complaint(call, op, name) is None


@backends
def test_integers_beyond_64_bits_are_numbers(primitives: Any) -> None:
    """What float64 holds is taken, though NumPy has no integer for it."""
    P, n = primitives, 10**30
    assert P.multiply(2.0, n) == 2e30
    assert P.multiply(TRIPLE.astype(np.float32), n).dtype == np.float32
    assert P.sum.vjp(TRIPLE, n).tolist() == [1e30] * 3
    assert P.huber(n).pointwise(0.0, 2.0) == 2
    assert P.norm(TRIPLE, n) == 1
    assert P.variance(TRIPLE, ddof=-n) == 0
    assert P.squared_error.value(SAMPLES["X"], np.ones(4), TRIPLE, n) == pytest.approx(1e60)
    assert pb.LinearObjective(SAMPLES["X"], np.ones(4), P.squared_error, l2=n).value(
        np.array([1.0, 0, 0, 0])
    ) == pytest.approx(5e29)
    f = pb.chain(P.square, (P.multiply, pb.arg, n))
    for x in (TRIPLE, TRIPLE.astype(np.float32)):
        assert f(x).tolist() == [x.dtype.type(n)] * 3
        assert f.vjp(x, 1).tolist() == [2 * x.dtype.type(n)] * 3


# --- what is not a primitive's method -------------------------------------------------------------

D = pb.Diagonal(X23)
OBJECTIVE = pb.LinearObjective(SAMPLES["X"], SAMPLES["y"], pb.squared_error)
THETA = np.ones(4)
PARTIAL = pb.squared_error.partial(SAMPLES["X"], SAMPLES["y"], TRIPLE)
DTYPE = ["f8,f8", complex, "text", "", HUGER, 1.5, PAIR, Nothing(), {"a": 1}, [HUGE], np.longdouble]
COUNT = [value for value in INDEX if value != 99] + [None, -1, PAIR, (1,)]


def check(**changed: Any) -> Any:
    arguments = {"f": pb.sum, "grad": TRIPLE, "x": TRIPLE} | changed
    return pb.check_grad(**arguments)


# Operation, argument, call with it, what it refuses.
OTHERS: list[tuple[str, str, Callable[[Any], Any], list[Any]]] = [
    ("Diagonal", "diagonal", pb.Diagonal, [*ARRAY, None]),
    ("Dense", "matrix", pj.Dense, [*ARRAY, None, 1.0, PAIR]),
    ("Dense", "input_shape", lambda v: pj.Dense(X23, v), [*SHAPE, (2,), ()]),
    ("Dense", "output_shape", lambda v: pj.Dense(X23, None, v), [*SHAPE, (3,), ()]),
    ("BlockDiagonal", "blocks", pj.BlockDiagonal, [*ARRAY, None, 1.0, PAIR]),
    ("BlockDiagonal", "input_shape", lambda v: pj.BlockDiagonal(X23, v), [*SHAPE, (2,)]),
    ("Outer", "u", lambda v: pj.Outer(v, PAIR), [*ARRAY, None]),
    ("Outer", "v", lambda v: pj.Outer(PAIR, v), [*ARRAY, None]),
    ("Kronecker", "left", lambda v: pb.Kronecker(v, 2), [*ARRAY, None, True, -1, 1.0, PAIR]),
    ("Kronecker", "right", lambda v: pb.Kronecker(2, v), [*ARRAY, None, True, -1, 1.0, PAIR]),
    ("Kronecker", "input_batch", lambda v: pb.Kronecker(2, X23, input_batch=v), SHAPE),
    ("Kronecker", "output_batch", lambda v: pb.Kronecker(2, X23, output_batch=v), SHAPE),
    ("Kronecker", "input_shape", lambda v: pb.Kronecker(2, X23, input_shape=v), [*SHAPE, 5]),
    ("Identity", "input_shape", pj.Identity, [*SHAPE, None]),
    ("Identity", "dtype", lambda v: pj.Identity((2,), v), DTYPE),
    ("Zero", "output_shape", lambda v: pj.Zero(v, 2), [*SHAPE, None]),
    ("Zero", "input_shape", lambda v: pj.Zero(2, v), [*SHAPE, None]),
    ("Permutation", "input_shape", lambda v: pj.Permutation(v, (1, 0)), [*SHAPE, None]),
    ("Permutation", "axes", lambda v: pj.Permutation((2, 3), v), [*INDICES, None, (0, 2), (1,)]),
    ("Reshape", "output_shape", lambda v: pj.Reshape((2, 3), v), [*SHAPE, None, 5]),
    ("Broadcast", "output_shape", lambda v: pj.Broadcast((2, 3), v), [*SHAPE, None, (3, 2)]),
    ("SumTo", "output_shape", lambda v: pj.SumTo((2, 3), v), [*SHAPE, None, (3, 2)]),
    ("Diagonal.jvp", "t", D.jvp, [*ARRAY, None, 1.0, PAIR]),
    ("Diagonal.vjp", "g", D.vjp, [*ARRAY, None, 1.0, PAIR]),
    ("Diagonal.matvec", "v", D.matvec, [*ARRAY, None, 1.0, PAIR]),
    ("Diagonal.rmatmat", "V", D.rmatmat, [*ARRAY, None, 1.0, PAIR, np.ones(6)]),
    ("J @ t", "t", lambda v: D @ v, [*ARRAY, None, 1.0, PAIR]),
    ("g @ J", "g", lambda v: v @ D, [HUGE, HUGER, "text", 1j, RAGGED, DEEP, None, 1.0]),
    ("c * J", "c", lambda v: D * v, [HUGE, HUGER, "text", 1j, RAGGED, DEEP, None, {}, len]),
    ("J / c", "c", lambda v: D / v, [HUGE, HUGER, "text", 1j, RAGGED, DEEP, None, {}, len]),
    ("J + A", "A", lambda v: D + v, [HUGE, HUGER, "text", 1j, RAGGED, DEEP, None, {}, len]),
    ("A - J", "A", lambda v: v - D, [HUGE, HUGER, "text", 1j, RAGGED, DEEP, None, {}, len]),
    ("tensor", "layout", D.tensor, ["", "rows", None, 0, PAIR, HUGER, ["numerator"]]),
    ("Sum", "Sum", pj.Sum, [*ARRAY, None]),
    ("Product", "Product", pj.Product, [*ARRAY, None]),
    ("chain", "step 1", pb.chain, [*ARRAY, None, (), (None,), (pb.tanh, pb.arg, pb.arg)]),
    ("chain", "step 1", lambda v: pb.chain((pb.multiply, v, 2.0)), ARRAY),
    (
        "chain.vjp",
        "wrt",
        lambda v: pb.chain(pb.exp).vjp(X23, X23, wrt=v),
        ["y", 1, None, PAIR, HUGER],
    ),
    (
        "LinearObjective",
        "X",
        lambda v: pb.LinearObjective(v, TRIPLE, pb.squared_error),
        [*ARRAY, None],
    ),
    (
        "LinearObjective",
        "X",
        lambda v: pb.LinearObjective(v, None, pb.squared_error),
        [HUGER, 1.0, X23, np.array(1), iter(()), None],
    ),
    (
        "LinearObjective",
        "y",
        lambda v: pb.LinearObjective(SAMPLES["X"], v, pb.squared_error),
        ARRAY,
    ),
    (
        "LinearObjective",
        "loss",
        lambda v: pb.LinearObjective(SAMPLES["X"], THETA, v),
        ["hubert", pb.tanh, None, HUGER, PAIR],
    ),
    (
        "LinearObjective",
        "l2",
        lambda v: pb.LinearObjective(SAMPLES["X"], THETA, pb.squared_error, l2=v),
        NUMBER,
    ),
    (
        "LinearObjective",
        "n_outputs",
        lambda v: pb.LinearObjective(SAMPLES["X"], THETA, pb.squared_error, n_outputs=v),
        [v for v in COUNT if v is not None] + [0, 2],
    ),
    ("LinearObjective.value", "theta", OBJECTIVE.value, [*ARRAY, None, 1.0, PAIR]),
    ("LinearObjective.hvp", "v", lambda v: OBJECTIVE.hvp(THETA, v), [*ARRAY, None, 1.0, PAIR]),
    ("LinearObjective.predict", "X", lambda v: OBJECTIVE.predict(v, THETA), [*ARRAY, None]),
    ("PartialSums.finish", "reduction", PARTIAL.finish, REFUSED["reduction"]),
    ("check_grad", "x", lambda v: check(x=v), [*ARRAY, None]),
    ("check_grad", "f", lambda v: check(f=v), [None, 1.0, PAIR, HUGER, "sum", Nothing()]),
    ("check_grad", "vjp", lambda v: check(vjp=v), [1.0, PAIR, HUGER, "sum", Nothing()]),
    ("check_grad", "grad", lambda v: check(grad=v), [HUGE, [HUGE] * 3, "text", 1j, PAIR, RAGGED]),
    ("check_grad", "rtol", lambda v: check(rtol=v), [v for v in NUMBER if v is not None]),
    ("check_grad", "max_coordinates", lambda v: check(max_coordinates=v), [*COUNT, 0]),
    ("check_grad", "directions", lambda v: check(directions=v), COUNT),
    ("set_num_threads", "n", pb.set_num_threads, [*COUNT, 0]),
    ("set_num_threads", "n", lambda v: pb.threads(v).__enter__(), [*COUNT, 0]),
    ("set_kept_memory", "n_bytes", pb.set_kept_memory, COUNT),
    ("show_config", "mode", pb.show_config, ["", "text", None, 0, PAIR, HUGER]),
]


@pytest.mark.parametrize(
    ("op", "argument", "call", "given"), OTHERS, ids=[f"{op} {name}" for op, name, _, _ in OTHERS]
)
def test_other_callables(op: str, argument: str, call: Any, given: list[Any]) -> None:
    wrong = []
    for value in given:
        found = complaint(lambda value=value: call(value), op, argument)
        wrong += [f"{label(value)}: {found}"] if found else []
    assert not wrong, "\n".join(wrong)


@backends
def test_bound_operands_of_chains(primitives: Any) -> None:
    """The step names its operation, whichever method it is in."""
    x = TRIPLE
    for given in (HUGE, -HUGE, HUGER):
        for steps in (
            ((primitives.multiply, pb.arg, given),),
            (primitives.square, (primitives.multiply, pb.arg, given)),
        ):
            f = pb.chain(*steps)
            for call in (
                lambda f=f: f(x),
                lambda f=f: f.vjp(x, x),
                lambda f=f: f.vjp(x, 1.0, wrt="all"),
                lambda f=f: f.value_and_vjp(x, x),
                lambda f=f: f.jvp(x, x),
                lambda f=f: f.jacobian(x),
                lambda f=f: f(x.astype(np.float32)),
            ):
                assert complaint(call, "multiply", "x") is None
        f = pb.chain(primitives.square, primitives.exp)
        for name in ("vjp", "value_and_vjp"):
            method = getattr(f, name)
            call = lambda given=given, method=method: method(x, given)  # noqa: E731
            assert complaint(call, f"chain.{name}", "g") is None
    assert complaint(lambda: pb.chain((primitives.norm, pb.arg, HUGE))(x), "norm", "p") is None


# --- sparse matrices that are none ----------------------------------------------------------------


class Parts:
    """What calls itself a matrix in compressed rows or columns."""

    def __init__(self, form: str = "csr", **changed: Any) -> None:
        good = scipy.sparse.csr_array(SAMPLES["X"]).asformat(form)
        parts = {name: getattr(good, name) for name in ("data", "indices", "indptr", "shape")}
        self.__dict__.update({"format": form} | parts | changed)

    def __repr__(self) -> str:
        return f"Parts({ {k: v for k, v in vars(self).items() if k != 'data'} })"


def without(name: str, form: str) -> Parts:
    parts = Parts(form)
    delattr(parts, name)
    return parts


def hostile_matrices(form: str) -> Iterator[Any]:
    yield scipy.sparse.csr_array(TRIPLE)
    yield scipy.sparse.coo_array(TRIPLE)
    yield from (without(name, form) for name in ("data", "indices", "indptr", "shape"))
    for shape in (
        *((), (4,), (4, 3, 1), (-1, 3), (4, -3), (4.0, 3), ("4", "3"), (4, None), (True, 3)),
        *(None, 12, 4.5, "43", b"", np.array([4.0, 3]), {4: 3}, Nothing(), (HUGE, 3), (4, HUGER)),
    ):
        yield Parts(form, shape=shape)
    for data in (1.0, np.ones((3, 4)), None, "text", ["a"] * 12, RAGGED, DEEP, [HUGE] * 12, 1j):
        yield Parts(form, data=data)
    good = Parts(form)
    for name in ("data", "indices", "indptr"):
        yield Parts(form, **{name: getattr(good, name).reshape(-1, 1)})
    for index in (0, None, "text", [0.5], [[0, 1]], RAGGED, [HUGE], Nothing()):
        yield Parts(form, indices=index)
        yield Parts(form, indptr=index)


@backends
@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("method", ["value", "grad", "value_and_grad", "hvp", "curvature"])
def test_sparse_matrices_that_are_none(method: str, form: str, primitives: Any) -> None:
    options = {"v": SAMPLES["v"]} if method == "hvp" else {}

    def of(X: Any) -> Any:
        f = getattr(primitives.squared_error, method)
        return f(X, np.ones(4), TRIPLE, 0.5, **options)

    wrong = []
    for X in hostile_matrices(form):
        found = complaint(lambda X=X: of(X), f"squared_error.{method}", "X")
        wrong += [f"{label(X)}: {found}"] if found else []
    assert not wrong, "\n".join(wrong)
    of(Parts(form, shape=[4, 3]))


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_sparse_matrices_that_are_none_in_an_objective(form: str) -> None:
    for X in hostile_matrices(form):
        assert (
            complaint(
                lambda X=X: pb.LinearObjective(X, np.ones(4), pb.squared_error),
                "LinearObjective",
                "X",
            )
            is None
        )
        found = complaint(lambda X=X: OBJECTIVE.predict(X, THETA), "LinearObjective.predict", "X")
        assert found is None, label(X)


# --- what arguments raise themselves --------------------------------------------------------------


class OwnError(Exception):
    pass


ERRORS = [OwnError("mine"), ValueError("mine"), TypeError("mine"), OverflowError("mine")]


def raising(error: Exception, *names: str) -> Any:
    """Return an object whose methods, or properties, of these names raise an error."""

    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        raise error

    members = {name: fail if name.startswith("__") else property(fail) for name in names}
    return type("Angry", (), members)()


@every_case
def test_exceptions_of_arguments_pass(case: Case, primitives: Any) -> None:
    """They are the arguments' own, and nothing of this package knows better."""
    del primitives
    for argument, parameter in case.signature.parameters.items():
        converted = argument not in REFUSED or (argument == "v" and case.op in PRODUCTS)
        needed = parameter.default is parameter.empty or argument in case.arguments
        if not (converted and needed):
            continue
        for error in ERRORS:
            with pytest.raises(type(error)) as caught:
                case(**{argument: raising(error, "__array__")})
            assert caught.value is error
    if "axis" in case.signature.parameters:
        for error in ERRORS:
            for axis in (raising(error, "__index__"), (0, raising(error, "__index__"))):
                with pytest.raises(type(error)) as caught:
                    case(axis=axis)
                assert caught.value is error


@backends
@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("method", ["value", "value_and_grad", "grad", "partial"])
def test_exceptions_of_sparse_matrices_pass(method: str, form: str, primitives: Any) -> None:
    names = ["format", "data", "indices", "indptr", "shape"]
    for name in [*names, "has_sorted_indices"] if form == "csc" else names:
        for error in ERRORS:

            class Angry(type(raising(error, name))):  # type: ignore[misc]
                pass

            X = Angry()
            X.__dict__.update({k: v for k, v in vars(Parts(form)).items() if k != name})
            with pytest.raises(type(error)) as caught:
                getattr(primitives.squared_error, method)(X, np.ones(4), TRIPLE, 0.5)
            assert caught.value is error, name


@pytest.mark.native
def test_exceptions_of_overriding_arguments_pass() -> None:
    for error in ERRORS:
        angry = raising(error, "__array_ufunc__")
        for call in (
            lambda angry=angry: pb.tanh(angry),
            lambda angry=angry: pb.multiply(X23, angry),
            lambda angry=angry: pb.multiply(HUGE, angry),
            lambda angry=angry: pb.tanh.vjp(X23, angry),
        ):
            with pytest.raises(type(error)) as caught:
                call()
            assert caught.value is error

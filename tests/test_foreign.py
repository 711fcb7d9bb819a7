"""What others made (tensors, frames, tables, strings) through one door, alike on both backends."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pullback as pb
import pytest
import scipy.sparse as sp
from oracles import assert_same_bits
from protocol import TWINS, assert_same_leaves, backends, each
from pullback.cases import Case, cases, family
from pullback.tables.elementwise import OPS

CASES = {
    f"{case.primitive}.{case.method}": case
    for case in cases()
    if case.dtype == "float64" and case.size == family(case.primitive).sizes[0]
}
X = np.arange(1.0, 7).reshape(3, 2)
Y, W = np.array([1.0, 0, 1]), np.array([0.5, -0.25])


def leaves(result: Any) -> list[Any]:
    return (
        [leaf for part in result for leaf in leaves(part)]
        if isinstance(result, tuple)
        else [result]
    )


# --- tensors --------------------------------------------------------------------------------------


class Tensor:
    """What a tensor of another library has that NumPy looks for."""

    __array_priority__ = 1000

    def __init__(self, array: Any, error: Exception | None = None) -> None:
        self.array, self.error = array, error
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, array.dtype

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if self.error is not None:
            raise self.error
        return self.array if dtype is None else self.array.astype(dtype)

    def __array_wrap__(self, array: Any, *_: Any) -> Any:
        return Tensor(array)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class OnlyDLPack:
    """An array that NumPy can have by DLPack alone."""

    def __init__(self, array: Any) -> None:
        self.array = array

    __dlpack__, __dlpack_device__ = Tensor.__dlpack__, Tensor.__dlpack_device__


def tensors(given: tuple[Any, ...], kind: Any) -> list[Any]:
    return [kind(a) if isinstance(a, np.ndarray) else a for a in given]


@backends
@each("name", CASES)
def test_tensors_in_arrays_out(name: str, primitives: Any) -> None:
    case: Case = CASES[name]
    call, given = case._of(primitives), case.arguments()
    wanted = call(*given)
    for kind in (Tensor, OnlyDLPack):
        result = call(*tensors(given, kind))
        if isinstance(wanted, pb.PartialSums):
            assert_same_leaves(result.finish(), wanted.finish())
            continue
        if case.method == "sample_grads":
            assert_same_leaves(result.todense(), wanted.todense())
            continue
        if case.method == "jacobian":
            assert [type(J) for J in leaves(result)] == [type(J) for J in leaves(wanted)]
            continue
        for leaf, exact in zip(leaves(result), leaves(wanted), strict=True):
            assert type(leaf) is type(exact)
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(exact))


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "tanh": lambda P, x: P.tanh(x),
    "tanh.derivative": lambda P, x: P.tanh.derivative(x),
    "tanh.vjp": lambda P, x: P.tanh.vjp(x, 1.0),
    "tanh.jvp": lambda P, x: P.tanh.jvp(x, None),
    "tanh.jacobian": lambda P, x: P.tanh.jacobian(x),
    "multiply": lambda P, x: P.multiply(2.0, x),
    "multiply.vjp": lambda P, x: P.multiply.vjp(2.0, x, 1.0),
    "sum": lambda P, x: P.sum(x),
    "dot.grad": lambda P, x: P.dot.grad(x, Y),
    "softmax": lambda P, x: P.softmax(x),
    "softmax.jacobian": lambda P, x: P.softmax.jacobian(x),
    "matmul": lambda P, A: P.matmul(A, X),
    "quadratic_form": lambda P, A: P.quadratic_form(Y, A),
    "squared_error.value": lambda P, y: P.squared_error.value(X, y, W),
    "squared_error.grad": lambda P, w: P.squared_error.grad(X, Y, w),
    "squared_error.hvp": lambda P, sample_weight: P.squared_error.hvp(
        X, Y, W, None, (W, None), sample_weight=sample_weight
    ),
    "squared_error.pointwise": lambda P, z: P.squared_error.pointwise(z, Y),
    "squared_error.pointwise.vjp": lambda P, g: P.squared_error.pointwise.vjp(Y, Y, g),
    "LinearObjective": lambda P, y: pb.LinearObjective(X, y, P.squared_error),
    "chain": lambda P, x: pb.chain(P.tanh, P.sum)(x),
}


def refusals(given: Any) -> list[str]:
    """Return what every entry says of an argument, which is the same on both backends."""
    said = []
    for name, call in REFUSED.items():
        if name == "LinearObjective" and given is None:
            continue  # chunks
        if name == "squared_error.hvp" and given is None:
            continue  # no weights
        texts = []
        for P in TWINS:
            with pytest.raises((TypeError, ValueError)) as caught:
                call(P, given)
            texts.append(str(caught.value))
        assert len(set(texts)) == 1, texts
        assert texts[0].startswith("tanh: " if name == "chain" else f"{name}: ")
        said.append(texts[0])
    return said


class OfColumns:
    """A table as Arrow and others have it: columns by name, some with missing values."""

    def __init__(self, **columns: Any) -> None:
        self._columns = columns
        self.column_names = list(columns)
        self.shape = (3, len(columns))

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.stack([np.asarray(c).astype(object) for c in self._columns.values()], axis=1)


class Column:
    def __init__(self, kind: str, values: Any) -> None:
        self.type, self.values = kind, values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.values)


class Refusal(NamedTuple):
    given: Callable[[], Any]
    says: str


REFUSALS = {
    "a string": Refusal(lambda: "a", "must be numbers, not 'a'"),
    "bytes": Refusal(lambda: b"a", "must be numbers, not b'a'"),
    "a long integer": Refusal(lambda: 10**400, "is an integer too large for float64"),
    "None": Refusal(lambda: None, "(must be numbers, not|g is) None"),
    "strings": Refusal(lambda: ["a", "b", "c"], "dtype <U1, .* by astype"),
    "objects": Refusal(
        lambda: np.array([1.0, 2, 3], object), "dtype object, .*; of numbers, astype"
    ),
    "complex": Refusal(lambda: Y + 1j, "dtype complex128, .* real and imaginary parts separately"),
    "dates": Refusal(
        lambda: np.array(["2020"] * 3, "M8[D]"), r"dtype datetime64\[D\], .* subtracted"
    ),
    "a ragged list": Refusal(lambda: [[1.0], [1.0, 2.0]], "to an array: .* inhomogeneous"),
    "a dict": Refusal(lambda: {"a": 1}, "must be numbers, or convert .* of them, not {'a': 1}"),
    "a set": Refusal(lambda: {1.0}, "must be numbers, or convert to an array of them, not {1.0}"),
    "a sparse matrix": Refusal(lambda: sp.csr_array(X), r"is sparse, .*; give \w+\.toarray\(\)"),
    "a sparse vector": Refusal(lambda: sp.coo_array(Y), r"is sparse, .*; give \w+\.toarray\(\)"),
    "a tensor that requires grad": Refusal(
        lambda: Tensor(Y, RuntimeError("Can't call numpy(). Use detach().")),
        r"does not convert to an array: Can't call numpy\(\)\. Use detach\(\)\.",
    ),
    "a tensor on a device": Refusal(
        lambda: Tensor(Y, TypeError("can't convert cuda")), "to an array: can't convert cuda"
    ),
    "a categorical": Refusal(
        lambda: pd.Series(["a", "b", "a"], dtype="category"),
        r"dtype category, which is no number; give \w+\.cat\.codes",
    ),
    "a Series of strings": Refusal(
        lambda: pd.Series(["a", "b", "c"]), "dtype (str|object), which is"
    ),
    "a Series of objects": Refusal(
        lambda: pd.Series([1.0, 2, 3], dtype=object), "dtype object, .*astype"
    ),
    "a frame of all kinds": Refusal(
        lambda: pd.DataFrame(
            {"a": Y, "c": pd.Categorical(list("xyx")), "o": np.array([1, 2, 3], object)}
        ),
        r"columns that are not numbers: 'c' \(category\), 'o' \(object\); .*get_dummies",
    ),
    "a table with strings": Refusal(
        lambda: OfColumns(a=Column("double", Y), b=Column("string", ["u", "v", "w"])),
        r"columns that are not numbers: 'b' \(string\)",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_makes_no_numbers_is_refused_by_name(name: str) -> None:
    refusal = REFUSALS[name]
    said = refusals(refusal.given())
    assert len(said) > 15
    for text in said:
        assert re.search(refusal.says, text), text


@backends
def test_parameters_and_sparse_data_are_refused_by_what_is_wrong(primitives: Any) -> None:
    P = primitives
    for call, says in (
        (lambda: pb.LinearObjective(X, Y, P.hinge, l2="1"), "l2 must be a number, not '1'"),
        (lambda: pb.LinearObjective(X, Y, P.hinge, l2=None), "l2 must be a number, not None"),
        (
            lambda: pb.LinearObjective(X, Y, P.hinge, l2=[1.0, 2, 3]),
            r"l2 has shape \(3,\), needs \(\), \(2,\) or \(2, 2\)$",
        ),
        (lambda: P.huber("1"), "delta must be a number, not '1'"),
        (lambda: P.hinge.value(sp.csr_array(Y), Y, W), r"X has shape \(3,\), needs two axes"),
        (lambda: P.hinge.value(sp.coo_array(Y), Y, W), r"X has shape \(3,\), needs two axes"),
        (lambda: P.hinge.value(sp.coo_array(X), Y, W), r"format 'coo'; give it as CSR or CSC"),
        (lambda: P.tanh(Y, out=Tensor(Y)), "tanh: out must be an array, not Tensor"),
        (lambda: P.tanh.vjp(Y, Y, out=Tensor(Y)), "tanh.vjp: out must be an array, not Tensor"),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            call()


class Tagged(np.ndarray):
    """A subclass that says so."""


@backends
def test_subclasses_are_kept_by_elementwise_operations(primitives: Any) -> None:
    P, x = primitives, X.view(Tagged)
    for found, wanted in (
        (P.tanh(x), P.tanh(X)),
        (P.tanh.derivative(x), P.tanh.derivative(X)),
        (P.tanh.value_and_derivative(x), P.tanh.value_and_derivative(X)),
        (P.tanh.vjp(X, x), P.tanh.vjp(X, X)),
        (P.multiply(2.0, x), P.multiply(2.0, X)),
        (P.multiply.jvp(x, X, None, x), P.multiply.jvp(X, X, None, X)),
        (P.multiply.vjp(x, X, X), P.multiply.vjp(X, X, X)),
    ):
        for leaf, exact in zip(leaves(found), leaves(wanted), strict=True):
            assert type(leaf) is Tagged
            assert_same_bits(np.asarray(leaf), exact)
    assert type(P.sum(x)) is np.float64
    assert type(P.matmul(x, x.T)) is np.ndarray
    assert type(P.softmax(x)) is np.ndarray


# --- Series and frames ----------------------------------------------------------------------------

LABELS = ["u", "v", "w"]


@backends
def test_sums_over_series_are_numbers(primitives: Any) -> None:
    w, g = pd.Series(Y, LABELS), np.array([1.0, 2, 4])
    gw, gx = primitives.multiply.vjp(w, 2.0, g)
    assert gw.to_dict() == {"u": 2.0, "v": 4.0, "w": 8.0}
    assert type(gx) is np.float64
    assert gx == 5.0  # 1 * 1 + 0 * 2 + 1 * 4
    assert primitives.multiply.vjp(w, 2.0, g, wrt="x") == 5.0


@backends
def test_series_in_series_out(primitives: Any) -> None:
    P = primitives
    s = pd.Series(Y, LABELS)
    for result, exact in (
        (P.tanh(s), P.tanh(Y)),
        (P.tanh.derivative(s), P.tanh.derivative(Y)),
        (P.tanh.value_and_derivative(s), P.tanh.value_and_derivative(Y)),
        (P.tanh.vjp(s, Y), P.tanh.vjp(Y, Y)),
        (P.tanh.vjp(Y, s), P.tanh.vjp(Y, Y)),
        (P.tanh.jvp(s, 2.0), P.tanh.jvp(Y, 2.0)),
        (P.multiply(s, s), P.multiply(Y, Y)),
        (P.multiply.derivative(s, s), P.multiply.derivative(Y, Y)),
        (P.power.jvp(s, 2.0, s, None), P.power.jvp(Y, 2.0, Y, None)),
        (pb.chain(P.tanh, P.exp)(s), pb.chain(P.tanh, P.exp)(Y)),
    ):
        for leaf, bits in zip(leaves(result), leaves(exact), strict=True):
            assert isinstance(leaf, pd.Series)
            assert list(leaf.index) == LABELS
            assert_same_bits(np.asarray(leaf), bits)


SHUFFLED = pd.Series(Y, LABELS[::-1])
STRAIGHT = pd.Series(Y, LABELS)
MEET = {
    "multiply.vjp": lambda P: P.multiply.vjp(STRAIGHT, SHUFFLED, 1.0),
    "multiply.derivative": lambda P: P.multiply.derivative(STRAIGHT, SHUFFLED),
    "tanh.vjp": lambda P: P.tanh.vjp(STRAIGHT, SHUFFLED),
    "tanh.jvp": lambda P: P.tanh.jvp(STRAIGHT, SHUFFLED),
    "dot": lambda P: P.dot(STRAIGHT, SHUFFLED),
    "dot.grad": lambda P: P.dot.grad(STRAIGHT, SHUFFLED),
    "dot.jvp": lambda P: P.dot.jvp(STRAIGHT, STRAIGHT, SHUFFLED, None),
    "softmax.vjp": lambda P: P.softmax.vjp(STRAIGHT, SHUFFLED),
    "hinge.value": lambda P: P.hinge.value(pd.DataFrame(X, LABELS), SHUFFLED, W),
    "hinge.grad": lambda P: P.hinge.grad(X, STRAIGHT, W, None, SHUFFLED),
    "hinge.curvature": lambda P: P.hinge.curvature(X, STRAIGHT, W, offset=SHUFFLED),
    "hinge.pointwise": lambda P: P.hinge.pointwise(STRAIGHT, SHUFFLED),
    "LinearObjective": lambda P: pb.LinearObjective(pd.DataFrame(X, LABELS), SHUFFLED, P.hinge),
    "LinearObjective.predict": lambda P: pb.LinearObjective(X, 2 * Y - 1, P.hinge).predict(
        pd.DataFrame(X, LABELS), np.zeros(3), SHUFFLED
    ),
}


@backends
@pytest.mark.parametrize("name", MEET)
def test_other_labels_are_refused(name: str, primitives: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: \w+ and \w+ have different labels: align"):
        MEET[name](primitives)


@backends
def test_values_align_as_pandas_does(primitives: Any) -> None:
    found = primitives.multiply(STRAIGHT, pd.Series([1.0, 2, 4], LABELS[::-1]))
    assert found.to_dict() == {"u": 4.0, "v": 0.0, "w": 1.0}


def frames() -> dict[str, tuple[Any, Any]]:
    """Return frames and the matrices that they are."""
    mixed = np.array([[1.5, 1, 1], [2.5, 0, 2], [0.5, 1, 3]])
    a, b, c = mixed.T
    missing = mixed.copy()
    missing[1, 2] = np.nan
    nullable = {
        "a": pd.array(a, dtype="Float64"),
        "b": pd.array(b == 1, dtype="boolean"),
        "c": pd.array([1, 2, 3], dtype="Int64"),
    }
    table = {"a": Column("double", a), "b": Column("bool", b == 1), "c": Column("int64", [1, 2, 3])}
    return {
        "floats": (pd.DataFrame(mixed), mixed),
        "bools": (pd.DataFrame({"a": a, "b": b == 1, "c": c.astype(int)}), mixed),
        "small": (pd.DataFrame(mixed).astype({0: "f4", 1: bool, 2: "i2"}), np.float32(mixed)),
        "nullable": (pd.DataFrame(nullable), mixed),
        "missing": (
            pd.DataFrame(nullable | {"c": pd.array([1, None, 3], dtype="Int64")}),
            missing,
        ),
        "one nullable dtype": (pd.DataFrame(mixed).astype("Float64"), mixed),
        "dummies": (
            pd.get_dummies(pd.DataFrame({"a": a, "k": list("xyx")}), columns=["k"]),
            np.array([[1.5, 1, 0], [2.5, 0, 1], [0.5, 1, 0]]),
        ),
        "labels that repeat": (
            pd.DataFrame({"a": a, "b": b == 1, "c": c}).set_axis([0, 0, 0], axis=1),
            mixed,
        ),
        "sparse": (pd.DataFrame.sparse.from_spmatrix(sp.csr_array(mixed)), mixed),
        "sparse in part": (
            pd.DataFrame({"a": a, "b": pd.arrays.SparseArray(b), "c": c}),
            mixed,
        ),
        "a table": (OfColumns(**table), mixed),
        "a table that misses a bool": (
            OfColumns(**(table | {"b": Column("bool", np.array([True, None, True], object))})),
            np.where([[False, False, False], [False, True, False], [False] * 3], np.nan, mixed),
        ),
    }


@backends
@pytest.mark.parametrize("name", frames())
def test_frames_are_their_matrices(name: str, primitives: Any) -> None:
    P = primitives
    frame, matrix = frames()[name]
    w = np.array([0.5, -1.0, 0.25])
    for call in (
        lambda X: P.squared_error.value_and_grad(X, Y, w),
        lambda X: P.squared_error.partial(X, Y, w).finish(),
        lambda X: P.squared_error.pointwise(X, 1.0),
        lambda X: pb.LinearObjective(X, Y, P.squared_error).value_and_grad(np.ones(4)),
        lambda X: P.matmul(X, w),
        lambda X: P.matmul.vjp(X, w, Y),
        lambda X: P.sum(X, axis=0),
        lambda X: P.softmax(X),
        lambda X: P.tanh.jacobian(X).diagonal(),
        lambda X: P.multiply.vjp(2.0, X, np.ones((3, 3))),
    ):
        for found, wanted in zip(leaves(call(frame)), leaves(call(matrix)), strict=True):
            if wanted is None:
                assert found is None
                continue
            np.testing.assert_allclose(
                np.asarray(found, float), np.asarray(wanted, float), rtol=1e-6, atol=1e-7
            )


def test_sparse_frames_are_read_as_sparse() -> None:
    frame, _ = frames()["sparse"]
    assert "CSR" in repr(pb.LinearObjective(frame, Y, pb.squared_error))


@backends
def test_nullable_targets_are_numbers(primitives: Any) -> None:
    P = primitives
    labels = pd.Series([0, 2, 1], dtype="Int64")
    theta = np.zeros((2, 3))
    assert P.softmax_cross_entropy.value(X, labels, theta) == P.softmax_cross_entropy.value(
        X, [0, 2, 1], theta
    )
    truth = pd.Series([True, False, True], dtype="boolean")
    assert P.logistic.value(X, truth, W) == P.logistic.value(X, Y, W)
    with pytest.raises(ValueError, match=r"y\[1\] is nan"):
        P.logistic.value(X, pd.Series([1, None, 0], dtype="Int64"), W)


class Graph:
    """What other libraries hand Dask, such as an xarray, of which some are in memory."""

    def __init__(self, graph: object) -> None:
        self.graph = graph

    def __dask_graph__(self) -> object:
        return self.graph

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return Y.astype(dtype)


def lazy(array: Any) -> Any:
    return da.from_array(array, chunks=(2, *array.shape[1:]))


# What takes X, y and weights, from a backend's losses.
TAKES_DATA: dict[str, Callable[..., Any]] = {
    "LinearObjective": lambda P, X, y, s, o: pb.LinearObjective(X, y, P.logistic, 0.0, s, offset=o),
    "LinearObjective: chunk 0": lambda P, *data: pb.LinearObjective([data], loss=P.logistic),
    "logistic.hvp": lambda P, X, y, s, o: P.logistic.hvp(
        X, y, W, None, (W, None), sample_weight=s, offset=o
    ),
    **{
        f"logistic.{method}": lambda P, X, y, s, o, method=method: getattr(P.logistic, method)(
            X, y, W, sample_weight=s, offset=o
        )
        for method in ("value", "grad", "value_and_grad", "curvature", "partial")
    },
}


@backends
@pytest.mark.parametrize("op", TAKES_DATA)
def test_data_that_dask_would_compute(op: str, primitives: Any) -> None:
    call, names = TAKES_DATA[op], ("X", "y", "sample_weight", "offset")
    for k, name in enumerate(names):
        data = [X, Y, Y, Y]
        for found in (lazy(data[k]), dask.delayed(data[k]), Graph({})):
            given = data.copy()
            given[k] = found
            message = rf"^{op}: {name} is a Dask collection.*\(X\.blocks\[i\]\.compute\(\), "
            with pytest.raises(TypeError, match=message):
                call(primitives, *given)
    call(primitives, X, Graph(None), Y, Y)


@backends
def test_chunks_that_dask_computes(primitives: Any) -> None:
    """What the error advises."""
    dX, dy = lazy(X), lazy(Y)

    def chunks() -> Any:
        with dask.config.set(scheduler="synchronous"):
            for i in range(dX.numblocks[0]):
                yield dX.blocks[i].compute(), dy.blocks[i].compute()

    parts, whole = (
        pb.LinearObjective(*data, primitives.logistic) for data in ((chunks, None), (X, Y))
    )
    theta = np.array([0.5, -1.0, 0.25])
    assert parts.value(theta) == pytest.approx(whole.value(theta), rel=1e-15)
    with pytest.raises(TypeError, match=r"^LinearObjective\.predict: X is a Dask collection"):
        whole.predict(dX, theta)
    pointwise = primitives.logistic.pointwise
    for call in (lambda: pointwise(dy, Y), lambda: pointwise.vjp(Y, Y, dy)):
        with pytest.raises(TypeError, match=r"is a Dask collection.*dask\.array\.map_blocks"):
            call()
    mapped = da.map_blocks(pointwise, dy, dy)
    assert_same_bits(mapped.compute(scheduler="synchronous"), pointwise(Y, Y))


@pytest.mark.parametrize("method", ["value", "vjp", "value_and_derivative"])
@pytest.mark.parametrize("op", ["tanh", "exp", "relu"])
def test_dask_arrays_stay_lazy_on_the_twin(op: str, method: str) -> None:
    assert op in OPS
    f = getattr(pb.reference, op)
    call = f if method == "value" else getattr(f, method)
    given = (X, X) if method == "vjp" else (X,)
    lazy = call(*(da.from_array(a, chunks=2) for a in given))
    for leaf, exact in zip(leaves(lazy), leaves(call(*given)), strict=True):
        assert isinstance(leaf, da.Array)
        assert_same_bits(leaf.compute(scheduler="synchronous"), exact)


# --- chunks without rows --------------------------------------------------------------------------

EMPTY: dict[str, Callable[[], tuple[Any, Any]]] = {
    "dense": lambda: (X[:0], Y[:0]),
    "lists": lambda: (np.empty((0, 2)), []),
    "float32": lambda: (np.empty((0, 2), np.float32), Y[:0]),
    "integers": lambda: (np.empty((0, 2), int), Y[:0].astype(int)),
    "CSR": lambda: (sp.csr_array((0, 2)), Y[:0]),
    "CSC": lambda: (sp.csc_array((0, 2)), Y[:0]),
    "a frame": lambda: (pd.DataFrame(X).iloc[:0], pd.Series(Y).iloc[:0]),
}


@backends
@pytest.mark.parametrize("name", EMPTY)
def test_chunks_without_rows_add_nothing(name: str, primitives: Any) -> None:
    P, nothing, rest = primitives, EMPTY[name](), (X, Y)
    wanted = P.logistic.partial(*rest, W, 0.5)
    none = P.logistic.partial(*nothing, W, 0.5)
    for parts in ([none, wanted], [wanted, none], [none, wanted, none]):
        assert_same_leaves(sum(parts).finish(), wanted.finish())
    assert none.n_samples == none.weight == none.loss == 0
    assert_same_leaves(none.finish("sum"), (0.0, (np.zeros(2), 0.0)))
    with pytest.raises(ValueError, match=r"^PartialSums\.finish: a mean over no samples"):
        none.finish()
    theta, v = np.array([0.1, 0.2, 0.3]), np.ones(3)
    whole = pb.LinearObjective([rest], loss=P.logistic)
    for chunks in ([nothing, rest], [rest, nothing], [nothing, rest, nothing]):
        objective = pb.LinearObjective(chunks, loss=P.logistic)
        assert_same_leaves(objective.value_and_grad(theta), whole.value_and_grad(theta))
        assert_same_bits(objective.hvp(theta, v), whole.hvp(theta, v))
    with pytest.raises(ValueError, match="^LinearObjective: X has no chunks with samples"):
        pb.LinearObjective([nothing, nothing], loss=P.logistic)


@backends
def test_chunks_without_rows_of_classes_and_weights(primitives: Any) -> None:
    loss = primitives.softmax_cross_entropy
    chunks = [(X[:0], [], []), (X, [0, 2, 1], [1.0, 2.0, 0.0]), (X[:0], np.empty((0,)), [])]
    objective = pb.LinearObjective(chunks, loss=loss)
    whole = pb.LinearObjective(chunks[1:2], loss=loss)
    theta = np.linspace(-1, 1, whole.n_parameters)
    assert_same_leaves(objective.value_and_grad(theta), whole.value_and_grad(theta))
    with pytest.raises(ValueError, match=r"chunk 1: X has shape \(0, 5\), needs \(N, 2\)"):
        pb.LinearObjective([(X, Y), (np.empty((0, 5)), [])], loss=primitives.squared_error).value(
            np.ones(3)
        )


# --- pickles and copies ---------------------------------------------------------------------------


def again() -> dict[str, Callable[[Any], Any]]:
    return {
        "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
    }


class Subclassed(pb.LinearObjective):
    """At the module's level, where pickle finds it."""


@backends
@pytest.mark.parametrize("how", again())
def test_objectives_travel(how: str, primitives: Any) -> None:
    P, theta, v = primitives, np.array([0.1, -0.2, 0.3]), np.ones(3)
    for objective in (
        pb.LinearObjective(X, Y, P.logistic, 0.5, [1.0, 2, 3]),
        pb.LinearObjective(sp.csr_array(X), Y, P.huber(2.0), l2=0.25),
        pb.LinearObjective(np.int16(X), Y.tolist(), P.squared_error),
        pb.LinearObjective([(X, Y), (X, Y, [1.0, 1, 2])], loss=P.squared_error),
        pb.LinearObjective(X, Y, P.logistic, offset=[0.25, 0.5, 1.0]),
        pb.LinearObjective([(X, Y), (X, Y, None, [1.0, 1, 2])], loss=P.squared_error),
    ):
        objective.hvp(theta, v)
        wanted = objective.value_and_grad(theta), objective.hvp(theta, v)
        other = again()[how](objective)
        objective.value(theta), other.value(theta)
        assert repr(other) == repr(objective)
        other.hvp(3 * theta, v)  # keeps a curvature of its own
        assert_same_bits(objective.hvp(theta, v), wanted[1])
        assert_same_leaves((other.value_and_grad(theta), other.hvp(theta, v)), wanted)
        method = again()[how](objective.value_and_grad)
        assert_same_leaves(method(theta), wanted[0])
    single = again()[how](Subclassed(X, Y, P.logistic, fit_intercept=False))
    assert type(single) is Subclassed
    assert single.n_parameters == 2


@pytest.mark.parametrize("how", again())
def test_registries_travel(how: str) -> None:
    for registry in (pb.primitives, pb.losses.losses, pb.elementwise.primitives):
        other = again()[how](registry)
        assert list(other) == list(registry)
        assert all(other[name] == registry[name] for name in registry)


def test_what_cannot_travel_says_so() -> None:
    objective = pb.LinearObjective(lambda: iter([(X, Y)]), loss=pb.squared_error)
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(objective)

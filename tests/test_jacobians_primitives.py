"""What every primitive's `jacobian` gives: its structure, and the matrix that its vjp has."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pullback as pb
import pytest
from matrices import integers
from protocol import dtypes, each
from pullback.jacobians import Broadcast, Diagonal, Identity, Kronecker, Product, RowWise
from pullback.tables.elementwise import OPS

primitives = pytest.mark.parametrize("of", [pb, pb.reference], ids=["pullback", "reference"])

BROADCAST = [
    ((2, 3), (3,)),
    ((2, 1), (1, 3)),
    ((), (2, 3)),
    ((2, 1, 3), (4, 1)),
    ((1,), (0,)),
    ((2, 3), (2, 3)),
    ((3,), (1, 3)),
]


def by_unit_cotangents(vjp: Any, shape: tuple[int, ...], dtype: Any) -> list[Any]:
    """Return, for each operand, all partial derivatives: the result's axes, then the operand's."""
    units = np.eye(math.prod(shape), dtype=dtype).reshape(-1, *shape)
    rows = [vjp(unit) for unit in units]
    return [np.stack(column) for column in zip(*rows, strict=True)]


@primitives
@dtypes
@each("a, b", BROADCAST)
@pytest.mark.parametrize("op", ["multiply", "subtract", "maximum", "squared_difference", "less"])
def test_broadcast_operands(op: str, a: Any, b: Any, dtype: np.dtype, of: Any) -> None:
    f, rng = getattr(of, op), np.random.default_rng(0)
    w, x = integers(rng, a, dtype), integers(rng, b, dtype)
    shape = np.broadcast_shapes(a, b)
    for J, operand in zip(f.jacobian(w, x), (w, x), strict=True):
        if operand.shape == shape:
            assert type(J) is Diagonal
        else:
            assert isinstance(J, Product)
            assert [type(factor) for factor in J.factors] == [Diagonal, Broadcast]
        assert (J.input_shape, J.output_shape) == (operand.shape, shape)
        assert J.dtype == dtype
        assert J.nbytes == math.prod(shape) * dtype.itemsize
    g, tw, tx = (integers(rng, s, dtype) for s in (shape, a, b))
    by_w, by_x = f.jacobian(w, x)
    for J, cotangent in zip((by_w, by_x), f.vjp(w, x, g), strict=True):
        np.testing.assert_array_equal(g @ J, cotangent)
        stack = np.stack([g, 2 * g])
        np.testing.assert_array_equal(J.vjp(stack)[1], 2 * cotangent)
    moved = f.jvp(w, x, tw, tx)
    np.testing.assert_array_equal(by_w @ tw + by_x @ tx, moved)
    if math.prod(shape):
        partials = by_unit_cotangents(lambda unit: f.vjp(w, x, unit), shape, dtype)
        for J, rows in zip((by_w, by_x), partials, strict=True):
            np.testing.assert_array_equal(J.tensor(), rows.reshape(J.output_shape + J.input_shape))


@primitives
@pytest.mark.parametrize("op", [row.name for row in OPS.values() if row.nin == 2])
def test_every_binary_operation_broadcasts(op: str, of: Any) -> None:
    f = getattr(of, op)
    w, x = np.array([[0.5], [1.25]]), np.array([0.75, 1.25, 2.0])
    slopes = f.derivative(w, x)
    for J, slope, repeated in zip(f.jacobian(w, x), slopes, ("i", "j"), strict=True):
        tensor = np.einsum(f"ij,{repeated}k->ijk", slope, np.eye(2 if repeated == "i" else 3))
        np.testing.assert_array_equal(J.tensor().reshape(tensor.shape), tensor)
    by_w, by_2 = f.jacobian(w, 2.0)
    assert type(by_w) is Diagonal
    assert by_2.input_shape == ()


@primitives
@dtypes
@each("samples", [(3,), (4, 3), (2, 1, 3), (0, 3)])
@each("activation", [None, "square", "relu"])
@each("has_bias", [True, False])
def test_layers(samples: Any, activation: Any, has_bias: bool, dtype: np.dtype, of: Any) -> None:
    rng = np.random.default_rng(1)
    X, W, b = (integers(rng, shape, dtype, 3) for shape in (samples, (3, 2), (2,)))
    b = b if has_bias else None
    f = None if activation is None else getattr(pb, activation)
    operands = [a for a in (X, W, b) if a is not None]
    shape = (*samples[:-1], 2)
    jacobians = of.linear.jacobian(X, W, b, activation=f)
    assert len(jacobians) == 3
    if b is None:
        assert jacobians[2] is None
        assert of.linear.jacobian(X, W, activation=f)[2] is None
    core = [Kronecker, Kronecker, Broadcast][: len(operands)]
    for J, operand, kind in zip(jacobians, operands, core, strict=False):
        assert (J.input_shape, J.output_shape) == (operand.shape, shape)
        assert J.dtype == dtype
        if len(samples) == 1 and kind is Broadcast:
            assert type(J) is (Identity if f is None else Diagonal)
        elif f is None:
            assert type(J) is kind
        else:
            assert [type(factor) for factor in J.factors] == [Diagonal, kind]
        sizes = (math.prod(s) for s in (shape, samples, (3, 2)))
        assert J.nbytes <= sum(sizes) * dtype.itemsize

    def vjp(G: Any) -> Any:
        cotangents = of.linear.vjp(X, W, b, G, activation=f)
        return cotangents if has_bias else cotangents[:2]

    G = integers(rng, shape, dtype, 3)
    for J, cotangent in zip(jacobians, vjp(G), strict=False):
        np.testing.assert_array_equal(G @ J, cotangent)
    if math.prod(shape):
        partials = by_unit_cotangents(vjp, shape, dtype)
        for J, rows in zip(jacobians, partials, strict=False):
            np.testing.assert_array_equal(J.tensor(), rows.reshape(J.output_shape + J.input_shape))
    kept = [J.todense() for J in jacobians[: len(operands)]]
    for operand in operands:
        operand[...] = 9
    for J, before in zip(jacobians, kept, strict=False):
        np.testing.assert_array_equal(J.todense(), before)


X, V = np.arange(1.0, 7.0).reshape(2, 3), np.array([0.5, -1.0, 2.0])
SQUARE = np.arange(9.0).reshape(3, 3)
SEVERAL: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("multiply", (X, V), {}),
    ("arctan2", (X, 2 * X), {}),
    ("power", (X, 2), {}),
    ("leaky_relu", (V, 0.1), {}),
    ("dot", (X, 2 * X), {}),
    ("dot", (X, 2 * X), {"axis": 1, "keepdims": True}),
    ("matmul", (X, X.T), {}),
    ("matmul", (np.stack([X, X]), V), {}),
    ("linear", (X, X.T, np.ones(2)), {}),
    ("linear", (X, X.T, np.ones(2)), {"activation": "tanh"}),
    ("quadratic_form", (V, SQUARE), {}),
    ("quadratic_form", (X, SQUARE), {}),
    ("bilinear_form", (V, SQUARE, X[0]), {}),
    ("bilinear_form", (X, SQUARE, V), {}),
]


@primitives
@pytest.mark.parametrize(("op", "operands", "options"), SEVERAL)
def test_with_respect_to_some_operands(op: str, operands: Any, options: Any, of: Any) -> None:
    f = getattr(of, op)
    every, names = f.jacobian(*operands, **options), (*f.row.operands,)
    n = len(names)

    def same(J: Any, k: int) -> None:
        assert (type(J), J.input_shape, J.output_shape) == (
            type(every[k]),
            np.shape(operands[k]),
            every[k].output_shape,
        )
        np.testing.assert_array_equal(J.todense(), every[k].todense(), strict=True)

    for k, name in enumerate(names):
        same(f.jacobian(*operands, **options, wrt=k), k)
        same(f.jacobian(*operands, **options, wrt=name), k)
        (alone,) = f.jacobian(*operands, **options, wrt=(name,))
        same(alone, k)
    for wrt, places in (("all", range(n)), (tuple(reversed(names)), range(n)[::-1])):
        several = f.jacobian(*operands, **options, wrt=wrt)
        assert type(several) is tuple
        for J, k in zip(several, places, strict=True):
            same(J, k)
    for wrt in ("q", n, -1, (), (0, 0)):
        with pytest.raises(ValueError, match=rf"^{op}\.jacobian: wrt must be '{names[0]}', "):
            f.jacobian(*operands, **options, wrt=wrt)
    with pytest.raises(TypeError, match=rf"^{op}\.jacobian: wrt must be "):
        f.jacobian(*operands, **options, wrt=None)


@primitives
def test_an_operand_without_a_jacobian(of: Any) -> None:
    assert of.linear.jacobian(X, X.T, wrt=("b", "W"))[0] is None
    with pytest.raises(ValueError, match=r"^linear\.jacobian: wrt is 'b', but b is None$"):
        of.linear.jacobian(X, X.T, wrt="b")
    J = of.leaky_relu.jacobian(V)
    np.testing.assert_array_equal(of.leaky_relu.jacobian(V, wrt="w").todense(), J.todense())
    with pytest.raises(TypeError, match="wrt"):
        of.tanh.jacobian(V, wrt=0)


def peak_of(call: Any) -> int:
    """Return the most bytes that a second call has at a time."""
    call()
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@primitives
@pytest.mark.parametrize(
    ("op", "shapes", "wrt"),
    [
        ("matmul", ((400, 250), (250,)), "A"),
        ("linear", ((2, 400), (400, 250)), "W"),
        ("bilinear_form", ((400,), (400, 250), (250,)), "X"),
    ],
)
def test_what_is_not_asked_for_is_not_copied(op: str, shapes: Any, wrt: Any, of: Any) -> None:
    f, operands = getattr(of, op), [*map(np.ones, shapes)]
    largest = max(operand.nbytes for operand in operands)
    assert peak_of(lambda: f.jacobian(*operands, wrt=wrt)) < 0.1 * largest


@pytest.mark.native
def test_what_is_not_asked_for_is_not_computed() -> None:
    x = np.ones(10**5)
    assert peak_of(lambda: pb.multiply.jacobian(x, x, wrt=1)) < 1.1 * x.nbytes
    assert peak_of(lambda: pb.multiply.jacobian(x, x)) > 1.9 * x.nbytes


@primitives
@dtypes
@pytest.mark.parametrize("axis", [-1, 0, 1, (0, -1), (0, 1, 2), None, ()], ids=str)
@pytest.mark.parametrize("op", ["softmax", "log_softmax", "layer_norm", "rms_norm", "cumprod"])
def test_maps_of_rows(op: str, axis: Any, dtype: np.dtype, of: Any) -> None:
    """The primitive's own products; what slices do not have to do with each other is zero."""
    f, x = getattr(of, op), np.random.default_rng(0).normal(size=(2, 3, 2)).astype(dtype)
    t = np.random.default_rng(1).normal(size=(5, *x.shape)).astype(dtype)
    J, kept = f.jacobian(x, axis=axis), x.copy()
    assert type(J) is RowWise
    assert J.nbytes == x.nbytes
    x[...] = 9  # it has a copy
    units = np.eye(x.size, dtype=dtype).reshape(-1, *x.shape)
    dense = np.stack([f.jvp(kept, unit, axis=axis).reshape(-1) for unit in units], axis=1)

    def near(actual: Any, expected: Any) -> None:  # sums of several slices have an order of theirs
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=16 * np.finfo(dtype).eps)

    near(J.todense(), dense)
    near(J.diagonal(), dense.diagonal())
    for product, method, transposed in ((J.jvp, f.jvp, J), (J.vjp, f.vjp, J.T)):
        moved = np.stack([method(kept, one, axis=axis) for one in t])
        near(product(t), moved)
        np.testing.assert_array_equal(product(t[0]), moved[0])
        np.testing.assert_array_equal(transposed @ t[0], moved[0])
        near(transposed.matmat(t.reshape(5, -1).T).T, moved.reshape(5, -1))
    near((J.T @ J).todense(), dense.T @ dense)
    assert (0.5 * J).dtype == dtype
    assert (J + Identity(x.shape, np.float64)).dtype == np.float64


@primitives
def test_rows_do_not_meet_what_is_no_number_in_others(of: Any) -> None:
    x = np.array([[1.0, 2.0], [np.nan, 1.0]])
    for axis, unknown in ((1, [2, 3]), (0, [0, 2])):
        J = of.softmax.jacobian(x, axis=axis)
        numbers = ~np.isnan(J.todense())
        numbers[np.ix_(unknown, unknown)] ^= True
        assert numbers.all()
        assert np.isnan(J.diagonal()).tolist() == [i in unknown for i in range(4)]
    with pytest.raises(np.exceptions.AxisError):
        of.softmax.jacobian(x, axis=2)
    with pytest.raises(TypeError, match=r"^softmax.jacobian: argument x has dtype complex128"):
        of.softmax.jacobian(x + 1j)
    with pytest.raises(ValueError, match=r"^layer_norm.jacobian: eps is -1"):
        of.layer_norm.jacobian(x, eps=-1.0)


@primitives
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda of, x: of.multiply.jacobian(x, x[:, 0]),
            ValueError,
            "^multiply.jacobian: w has",
        ),
        (lambda of, x: of.sum.jacobian(x, axis=2), np.exceptions.AxisError, "sum.jacobian"),
        (
            lambda of, x: of.sum.jacobian(x, keepdims="no"),
            TypeError,
            "^sum.jacobian: keepdims must",
        ),
        (lambda of, x: of.norm.jacobian(x, -1.0), ValueError, "^norm.jacobian: p is -1"),
        (
            lambda of, x: of.dot.jacobian(x, x[0]),
            ValueError,
            r"^dot.jacobian: x has shape \(2, 3\)",
        ),
        (lambda of, x: of.matmul.jacobian(x, x), ValueError, "^matmul.jacobian: A has shape"),
        (lambda of, x: of.sum.jacobian(x + 1j), TypeError, "^sum.jacobian: argument x has dtype"),
    ],
)
def test_errors_name_the_method(call: Any, error: Any, message: str, of: Any) -> None:
    with pytest.raises(error, match=message):
        call(of, np.ones((2, 3)))


@primitives
def test_layers_refuse_what_the_call_refuses(of: Any) -> None:
    X, W = np.ones((4, 3)), np.ones((2, 3))
    with pytest.raises(ValueError, match=r"^linear.jacobian: X has shape \(4, 3\), W .* \(2, 3\)"):
        of.linear.jacobian(X, W)
    with pytest.raises(TypeError, match=r"^linear.jacobian: activation must be None or a unary"):
        of.linear.jacobian(X, W.T, activation=np.tanh)
    with pytest.raises(TypeError, match=r"^linear.jacobian: argument b has dtype complex128"):
        of.linear.jacobian(X, W.T, [1j, 0])


def test_the_chain_rule_of_a_network() -> None:
    """One hidden layer: B^T diag(sigma') A^T by x, and the rank-three tensor by the weights."""
    rng = np.random.default_rng(0)
    x, A, B = (integers(rng, shape, float, 3) for shape in ((4,), (4, 5), (5, 2)))
    z = x @ A
    by_x, by_A, _ = pb.linear.jacobian(x, A, activation=pb.square)
    top = pb.linear.jacobian(z * z, B)[0]
    np.testing.assert_array_equal((top @ by_x).todense(), B.T @ np.diag(2 * z) @ A.T)
    tensor = (top @ by_A).tensor()
    np.testing.assert_array_equal(tensor, np.einsum("jk,j,i->kij", B, 2 * z, x))
    other = (top @ by_A).tensor("denominator")
    np.testing.assert_array_equal(other, tensor.transpose(1, 2, 0))
    residual = np.array([2.0, -1.0])
    np.testing.assert_array_equal(residual @ top @ by_A, np.outer(x, 2 * z * (B @ residual)))


@primitives
@pytest.mark.parametrize(
    "axes", [[0], [0, 2], np.array(1), np.array([1, 0]), (np.int64(2),)], ids=str
)
def test_axes_of_any_form(axes: Any, of: Any) -> None:
    """Jacobians of reductions are found by their axes; values take lists and arrays of them."""
    x = np.random.default_rng(0).normal(size=(2, 3, 2))
    plain = tuple(np.ravel(axes).tolist())
    for name in ("norm2", "softmax"):
        f = getattr(of, name)
        wanted = f.jacobian(x, axis=plain).todense()
        np.testing.assert_array_equal(f.jacobian(x, axis=axes).todense(), wanted)
        with pytest.raises(TypeError, match=f"^{name}.jacobian: axis must be"):
            f.jacobian(x, axis=[0.5])

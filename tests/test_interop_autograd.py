"""HIPS autograd with pullback's rules: the same programs, and primitives on what it traces."""

import subprocess
import sys

import autograd.numpy as anp
import autograd.scipy.special as asp
import numpy as np
import pullback as pb
import pullback.interop.autograd as door
import pytest
from autograd import elementwise_grad, grad, hessian, jacobian, make_jvp
from autograd.core import backward_pass, primitive_jvps, primitive_vjps
from autograd.test_util import check_grads
from autograd.tracer import trace_primitives_map

pytestmark = pytest.mark.filterwarnings("ignore:Output seems independent of input:UserWarning")

X = np.random.default_rng(7).uniform(0.2, 0.8, (3, 4))
ABOVE_ONE = X + 1.2
COVERED = list(door._covered())


@pytest.fixture
def accelerated():
    with door.accelerate():
        yield


def _operands(row, place=X):
    place = ABOVE_ONE if row.name == "arccosh" else place
    return (place,) if row.nin == 1 else (place, place[0] + 0.05)


# --- the swap -------------------------------------------------------------------------------------


def test_it_covers_what_both_have() -> None:
    names = {f.__name__.removeprefix("elementwise.") for _, f in COVERED}
    assert {"tanh", "power", "logaddexp", "sum", "variance", "logsumexp", "matmul", "erf"} <= names
    assert "gamma" not in names  # which is a function there, and a loss here
    assert len(COVERED) >= 45


@pytest.mark.parametrize(
    ("function", "f"), COVERED, ids=[f"{function.__name__}-{f.__name__}" for function, f in COVERED]
)
def test_gradients_in_both_modes(function, f, accelerated) -> None:
    if f in pb.elementwise.primitives.values():
        operands = _operands(f.row)
    elif f in pb.products.products.values():
        operands = X, X.T
    else:
        operands = (X,)
    modes = ["rev", "fwd"] if function in primitive_jvps else ["rev"]
    check_grads(function, modes=modes, order=1)(*operands)
    check_grads(function, modes=["rev"], order=2)(*operands)
    if f in pb.reductions.reductions.values():
        check_grads(lambda x: function(x, axis=1), modes=modes, order=1)(X)


def test_restore_leaves_no_trace() -> None:
    def state():
        cells = [door._cell(function).cell_contents for function, _ in COVERED]
        codes = [wrapper.__code__ for wrapper in trace_primitives_map.values()]
        rules = [primitive_vjps[function] for function, _ in COVERED]
        tangents = [primitive_jvps.get(function) for function, _ in COVERED]
        return cells, codes[: len(before_map)], rules, tangents, door.core.backward_pass

    before_map = list(trace_primitives_map)
    before = state()
    for leave in (door.restore, door.accelerate().off):
        door.accelerate()
        door.accelerate()
        assert "on" in repr(door.accelerate())
        inside = state()
        assert all(a is not b for a, b in zip(inside[2], before[2], strict=True))
        leave()
        assert state() == before
        assert before[4] is backward_pass
    with pytest.raises(ZeroDivisionError), door.accelerate():
        raise ZeroDivisionError
    assert state() == before


PROGRAMS = {
    "mlp": (
        lambda p: anp.mean((anp.dot(anp.tanh(anp.dot(X, p[0]) + p[1]), p[2]) - X[:, :1]) ** 2),
        (np.ones((4, 5)) / np.arange(1, 21).reshape(4, 5), np.linspace(-1, 1, 5), np.ones((5, 1))),
    ),
    "mixture": (
        lambda p: anp.sum(
            asp.logsumexp(
                -0.5 * anp.sum(((X[:, None] - p[0]) / anp.exp(p[1])) ** 2, axis=2)
                - anp.sum(p[1], axis=1),
                axis=1,
            )
        ),
        (X[:2] + 0.1, X[1:] - 0.5),
    ),
    "survival": (
        lambda p: anp.mean(anp.exp(anp.exp(p[1]) * (anp.log(X[:, 1]) - anp.dot(X, p[0]))) - p[1]),
        (np.array([0.3, -0.2, 0.1, 0.5]), 0.3),
    ),
    "powers": (
        lambda p: anp.sum(p[0] ** 2 + p[0] ** 0.5 + p[0] ** -1 + p[0] ** 2.5 + 2.0 ** p[0]),
        (X,),
    ),
    "kinks": (
        lambda p: anp.sum(anp.maximum(p[0], 0.5) * anp.abs(p[0] - 0.5) + anp.max(p[0], axis=0)),
        (X,),
    ),
}


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in tree])


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_keep_their_gradients(name) -> None:
    program, p = PROGRAMS[name]
    expected = _flat(grad(program)(p))
    with door.accelerate():
        got = grad(program)(p)
    assert [np.shape(a) for a in got] == [np.shape(a) for a in p]
    np.testing.assert_allclose(_flat(got), expected, rtol=1e-12, atol=1e-14)


def test_higher_orders(accelerated) -> None:
    x = X[0]

    def f(x):
        return anp.sum(anp.tanh(x) * anp.exp(x) / (1 + x**2)) + asp.logsumexp(x)

    with_theirs = hessian(f)
    ours = with_theirs(x)
    door.restore()
    np.testing.assert_allclose(ours, with_theirs(x), rtol=1e-10)
    third = elementwise_grad(elementwise_grad(elementwise_grad(anp.tanh)))
    expected = third(x)
    door.accelerate()
    np.testing.assert_allclose(third(x), expected, rtol=1e-9)
    tangents = make_jvp(grad(f))(x)(np.ones(4))[1]  # forward over reverse
    np.testing.assert_allclose(tangents, ours @ np.ones(4), rtol=1e-10)
    assert jacobian(lambda x: anp.cos(x) * x)(x).shape == (4, 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, complex])
def test_dtypes_are_kept(dtype, accelerated) -> None:
    x = X.astype(dtype)
    result = grad(lambda x: anp.real(anp.sum(anp.tanh(x) * X.astype(dtype))))(x)
    assert result.dtype == x.dtype
    scalar = grad(lambda x: anp.real(anp.exp(x)))(dtype(0.5))
    assert np.asarray(scalar).dtype == np.dtype(dtype)


def test_digits_in_the_tail(accelerated) -> None:
    expected = np.array([4 * np.exp(-40.0), 4 * np.exp(-60.0)])
    got = elementwise_grad(anp.tanh)(np.array([20.0, -30.0]))
    np.testing.assert_allclose(got, expected, rtol=1e-15)


def test_what_it_does_not_take_stays_with_autograd(accelerated) -> None:
    with pytest.raises(ValueError, match="core dimension"):
        anp.matmul(X, X)
    assert anp.exp(np.arange(3)).dtype == np.float64
    assert anp.sum(X, axis=0, dtype=np.float32).dtype == np.float32
    out = np.empty_like(X)
    assert anp.tanh(X, out=out) is out
    check_grads(anp.dot, modes=["rev"], order=1)(2.0, X)
    check_grads(anp.dot, modes=["rev"], order=1)(X, np.ones((2, 4, 3)))


# --- primitives on boxes --------------------------------------------------------------------------

ENGINES = [pb, pb.reference]


@pytest.mark.parametrize("engine", ENGINES, ids=["pb", "reference"])
@pytest.mark.parametrize("name", pb.elementwise.primitives)
def test_elementwise_operations_take_boxes(name, engine) -> None:
    f = getattr(engine, name)
    check_grads(f, modes=["rev"], order=2)(*_operands(f.row))
    check_grads(f, modes=["fwd"], order=1)(*_operands(f.row))


@pytest.mark.parametrize("engine", ENGINES, ids=["pb", "reference"])
@pytest.mark.parametrize("name", pb.reductions.reductions)
def test_reductions_take_boxes(name, engine) -> None:
    f = getattr(engine, name)
    about = f.row.parameter
    required = (3.0,) if about is not None and about.default is None else ()
    operands = (X, X + 1)[: len(f.row.operands)]
    options = {} if f.row.is_map else {"keepdims": True}
    order = 2 if hasattr(f.vjp, "vjp") else 1

    def call(*operands):
        return f(*operands, *required, axis=1, **options)

    check_grads(call, modes=["rev"], order=order)(*operands)
    check_grads(call, modes=["fwd"], order=1)(*operands)


@pytest.mark.parametrize("engine", ENGINES, ids=["pb", "reference"])
@pytest.mark.parametrize(
    ("name", "operands", "options"),
    [
        ("matmul", (X, X.T), {}),
        ("linear", (X, X.T, X[0, :3]), {"activation": "tanh"}),
        ("quadratic_form", (X, X.T @ X), {}),
        ("bilinear_form", (X[:, :3], X, X + 1), {}),
    ],
)
def test_products_take_boxes(name, operands, options, engine) -> None:
    f = getattr(engine, name)

    def call(*operands):
        return f(*operands, **options)

    order = 2 if hasattr(f.vjp, "vjp") else 1
    check_grads(call, modes=["rev"], order=order)(*operands)
    check_grads(call, modes=["fwd"], order=1)(*operands)


def test_chains_take_boxes() -> None:
    f = pb.chain(pb.tanh, (pb.multiply, pb.arg, 2.0), (pb.sum, pb.arg, {"axis": 0}))
    check_grads(lambda x: anp.sum(f(x) ** 2), modes=["rev"], order=1)(X)


# --- beside what is not there ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocked", "says"),
    [("autograd", "pullback[autograd]"), (None, "fine")],
    ids=["without autograd", "pullback alone"],
)
def test_the_import_is_lazy(blocked, says) -> None:
    code = (
        f"import sys; sys.modules[{blocked!r}] = None\n"
        "try:\n    import pullback.interop.autograd\n"
        "except ImportError as error: print(error)"
        if blocked
        else "import pullback as pb, sys; pb.tanh([1.0]); pb.sum([1.0])\n"
        "assert 'autograd' not in sys.modules; print('fine')"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert says in finished.stdout, finished.stderr


# --- losses and objectives ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES, ids=["pb", "reference"])
@pytest.mark.parametrize("name", ["squared_error", "poisson", "softmax_cross_entropy"])
def test_losses_take_boxes(name, engine) -> None:
    loss = getattr(engine, name)
    classes = name.startswith("softmax")
    y = np.array([0, 1, 2]) if classes else np.array([1.0, 0.0, 2.0])
    w, b = (np.linspace(-1, 1, 12).reshape(4, 3), X[:, 0]) if classes else (X[0] - 0.5, 0.3)
    options = {"sample_weight": np.array([1.0, 2.0, 0.5]), "offset": None}

    def value(X, w, b):
        return loss.value(X, y, w, b, **options) * 2.0

    for argument in range(3):
        at = [X, w, b]

        def one(a, at=at, argument=argument):
            return value(*at[:argument], a, *at[argument + 1 :])

        check_grads(one, modes=["rev"], order=2)(at[argument])
        check_grads(one, modes=["fwd"], order=1)(at[argument])
    check_grads(lambda w: value(X * anp.sum(w), w, b), modes=["rev"], order=2)(w)


def test_objectives_take_boxes() -> None:
    f = pb.LinearObjective(X, np.array([1.0, 0.0, 2.0]), "poisson", l2=0.1)
    theta = np.linspace(-0.5, 0.5, 5)
    check_grads(lambda t: anp.exp(f.value(t * t)), modes=["rev"], order=2)(theta)
    check_grads(f.value, modes=["rev", "fwd"], order=1)(theta)
    np.testing.assert_allclose(hessian(f.value)(theta), f.hessian(theta), rtol=1e-12)

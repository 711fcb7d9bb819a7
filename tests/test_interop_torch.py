"""The door to PyTorch: every primitive against PyTorch's own checks, eager and traced."""

from __future__ import annotations

import ast
import builtins
import inspect
import pickle
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pullback as pb
import pullback.interop.torch as pt
import pytest
import torch
from protocol import each
from pullback.catalogue import primitives as registry
from pullback.tables.elementwise import OpRow
from pullback.tables.losses import LossRow
from pullback.tables.products import ProductRow
from pullback.tables.reductions import ReductionRow
from torch.autograd import gradcheck, gradgradcheck

# Operands of primitives that draw them from no domain.
GIVEN = {
    "where": [np.array([[True], [False]]), np.ones((2, 3)), np.arange(3.0)],
    "clip": [np.linspace(-1, 1.1, 6).reshape(2, 3), np.full(3, -0.5), np.array(0.5)],
    "take": [np.arange(6.0).reshape(2, 3), np.array([2, 0, 2])],
}
SIZES = {"m": 2, "k": 3, "n": 2}  # of the letters in a product's signature


class Case:
    """A primitive with operands for it."""

    def __init__(self, of: Any, name: str, **options: Any) -> None:
        self.of, self.name, self.options = of, name, options
        row, rng = of.row, np.random.default_rng(len(name))
        self.needs = tuple(of.moved)
        if name in GIVEN:
            self.arrays = GIVEN[name]
        elif isinstance(row, OpRow):
            shapes = [(2, 3), (3,), (2, 3)][-row.nin :]
            ranges = [domain.ordinary for domain in row.domain]
            self.arrays = [rng.uniform(*r, s) for r, s in zip(ranges, shapes, strict=True)]
        elif isinstance(row, ReductionRow):
            self.arrays = [rng.standard_normal((2, 3)) for _ in row.operands]
        elif isinstance(row, ProductRow):
            groups = re.findall(r"\(.*?\)", row.signature)[: len(row.operands)]
            batches = [(2,) * ("..." in g) for g in groups]
            cores = [tuple(SIZES[c] for c in re.findall("[a-z]", g)) for g in groups]
            pairs = zip(batches, cores, strict=True)
            self.arrays = [rng.standard_normal(batch + core) for batch, core in pairs]
        elif name.endswith(".pointwise"):
            z = rng.standard_normal((4, 3) if row.of_classes else (4,))
            self.arrays = [z, self.targets(row, rng, z)]
        else:
            X, b = rng.standard_normal((4, 2)), np.array(0.25)
            w = rng.standard_normal((2, 3) if row.of_classes else (2,))
            y = self.targets(row, rng, X @ w + b)
            self.arrays = [X, y, w, b, rng.random(4), rng.standard_normal(4)]

    @staticmethod
    def targets(row: LossRow, rng: Any, z: Any) -> Any:
        y = row.draw(rng, z)
        return y if y.dtype.kind == "i" else y.astype(float)

    def tensors(self, dtype: Any = torch.float64, *, grad: bool = True) -> list[Any]:
        made = [torch.tensor(a, dtype=dtype if a.dtype.kind == "f" else None) for a in self.arrays]
        return [x.requires_grad_(grad and k in self.needs) for k, x in enumerate(made)]

    def __call__(self, *tensors: Any) -> Any:
        return self.of(*tensors, **self.options)

    def operator(self, *tensors: Any) -> Any:
        options = {k: [v] if k == "axis" else v for k, v in self.options.items()}
        return self.of.operator("")(*tensors, *[None] * len(self.of.masks), **options)


def _cases() -> Iterator[Case]:
    for name in registry:
        of = pt.primitives[name]
        chosen = dict.fromkeys(of.leading, 3.0) | {"axis": 1}
        yield Case(of, name, **{o: chosen.get(o, default) for o, default in of.defaults.items()})
        if isinstance(of.row, LossRow):
            yield Case(of.pointwise, f"{name}.pointwise", **of.pointwise.defaults)
        if "activation" in of.defaults:
            yield Case(of, name, activation="tanh")


CASES = list(_cases())
cases = each("case", CASES, label=lambda case: case.name)


def test_every_primitive_has_a_case() -> None:
    assert {case.name for case in CASES} >= {*registry}
    assert len(CASES) > 100


# --- derivatives ----------------------------------------------------------------------------------


@cases
def test_gradients(case: Case) -> None:
    tensors = case.tensors()
    assert gradcheck(case, tensors, check_forward_ad=True, check_batched_grad=True)


@cases
def test_second_order(case: Case) -> None:
    tensors = case.tensors()
    if case.of.method("vjp.vjp", dict(case.options)) is None:
        value = case(*tensors)
        (gradient, *_) = torch.autograd.grad(value.sum(), tensors[0], create_graph=True)
        with pytest.raises(RuntimeError, match="trying to differentiate twice a function"):
            gradient.sum().backward()
        return
    assert gradgradcheck(case, tensors, check_fwd_over_rev=True, check_rev_over_rev=True)


@cases
def test_same_bits_as_numpy(case: Case) -> None:
    for dtype in (torch.float32, torch.float64):
        tensors = case.tensors(dtype)
        options = dict(case.options)
        f = case.of.method("", options)
        arrays = [x.numpy(force=True) for x in tensors]
        wanted = f(*arrays, *(options.pop(o) for o in case.of.leading), **options)
        result = case(*tensors)
        assert result.dtype == dtype
        assert np.array_equal(result.detach().numpy(), wanted)


def test_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    x, seen = torch.arange(4.0), []
    call = pt.tanh.call("", ())
    monkeypatch.setattr(call, "function", lambda x: seen.append(x) or x)
    result = pt.tanh(x)
    assert result.data_ptr() == x.data_ptr() == seen[0].ctypes.data
    monkeypatch.undo()
    assert pt.tanh(x).add_(1).equal(1 + torch.from_numpy(pb.tanh(x.numpy())))


# --- in a graph -----------------------------------------------------------------------------------


def test_a_graph_is_freed_and_kept_as_pytorchs_own() -> None:
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    y = pt.tanh(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, 2 / torch.cosh(x) ** 2)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@pytest.mark.parametrize("f", [pt.tanh, lambda x: pt.logistic(x[:, None], x.detach() > 0, x[:1])])
def test_what_is_saved_must_not_change(f: Any) -> None:
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    moved = x * 1
    y = f(moved)
    moved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_only_what_is_needed_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = torch.ones(3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    asked = []
    monkeypatch.setattr(pt._Call, "run", _noting(asked, pt._Call.run))
    pt.multiply(w, x)
    assert asked.pop() == ("multiply", ())
    pt.multiply(w.requires_grad_(), x).sum().backward()
    assert asked[1:] == [("multiply.vjp", (0,))]
    asked.clear()
    X, y = torch.ones(4, 3, dtype=torch.float64), torch.ones(4)
    pt.logistic(X, y, w).backward()  # one pass over the data
    assert asked == [("logistic.value_and_vjp", (2,))]


def _noting(asked: list[Any], run: Any) -> Any:
    def noting(call: Any, *tensors: Any) -> Any:
        asked.append((call.op, call.wrt))
        return run(call, *tensors)

    return noting


def test_mixed_dtypes_and_numbers() -> None:
    w = torch.ones(3, dtype=torch.float32, requires_grad=True)
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    pt.multiply(w, x).sum().backward()
    assert w.grad.dtype == torch.float32
    assert x.grad.dtype == torch.float64
    assert pt.multiply(2, w).dtype == torch.float32
    assert pt.leaky_relu(-w).equal(pt.leaky_relu(-w, 0.01))
    X = torch.ones(4, 3)
    assert pt.logistic(X, torch.ones(4), x).dtype == torch.float64
    assert pt.logistic(X, torch.ones(4, dtype=torch.float64), w).dtype == torch.float32


def test_layouts() -> None:
    x = torch.randn(6, 4, dtype=torch.float64)[::2].T
    assert pt.tanh(x).equal(pt.tanh(x.contiguous()))
    assert pt.softmax(x, 0).equal(pt.softmax(x.contiguous(), 0))
    assert pt.matmul(x, x.T).allclose(x @ x.T)
    assert pt.tanh(torch.tensor(1.0)).shape == ()
    assert pt.sum(torch.ones(0)).item() == 0
    assert pt.softmax(x, where=x > 0).equal(torch.from_numpy(pb.softmax(x, where=(x > 0).numpy())))
    assert pt.negative(torch.tensor([1 + 2j]).conj().imag).item() == 2  # a negated view


# --- transforms -----------------------------------------------------------------------------------


@cases
def test_batches(case: Case) -> None:
    """Against a loop: of values and gradients, with batches of all operands, of one, of g."""
    torch.manual_seed(0)
    operands = case.tensors(grad=False)

    def gradient(*tensors: Any) -> Any:
        return torch.func.grad(lambda *t: case(*t).sum(), argnums=case.needs)(*tensors)

    few = [
        (0, *[None] * (len(operands) - 1)),
        (0,) * len(operands),
        (*[None] * (len(operands) - 1), 1),
    ]
    for dims in few:
        batched = [
            x if d is None else torch.stack([x, x.flip(-1) if x.ndim else x, x], d if x.ndim else 0)
            for x, d in zip(operands, dims, strict=True)
        ]
        dims = tuple(d if x.ndim or d is None else 0 for x, d in zip(operands, dims, strict=True))
        for f in (lambda *t: (case(*t),), gradient):
            results = torch.func.vmap(f, dims)(*batched)
            for i in range(3):
                one = [
                    x if d is None else x.select(d, i) for x, d in zip(batched, dims, strict=True)
                ]
                for result, wanted in zip(results, f(*one), strict=True):
                    assert torch.allclose(result[i], wanted, rtol=1e-12, equal_nan=True)


@cases
def test_jacobians_by_both_modes(case: Case) -> None:
    operands = case.tensors(grad=False)
    backward = torch.func.jacrev(case, case.needs)(*operands)
    forward = torch.func.jacfwd(case, case.needs)(*operands)
    for one, other in zip(backward, forward, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_batches_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(pt._Call, "run", _noting(asked, pt._Call.run))
    x = torch.randn(5, 3, 4)
    for f in (pt.tanh, pt.softmax, pt.sum, lambda x: pt.multiply(x, x[0]), pt.relu.call("", ())):
        torch.func.vmap(f)(x)
        torch.func.vmap(torch.func.grad(lambda x, f=f: f(x).sum()))(x)
    torch.func.vmap(lambda x: pt.matmul(x, x.mT))(x)
    torch.func.vmap(pt.matmul, (0, None))(x, x[0].T)
    torch.func.vmap(lambda x: pt.logsumexp(x, axis=-1, where=x > 0))(x)
    assert len(asked) == 5 * 3 + 3
    with pytest.raises(np.exceptions.AxisError):
        torch.func.vmap(lambda x: pt.softmax(x, 2))(x)


def test_hessians_by_all_mixtures() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, dtype=torch.float64)
    rev, fwd = torch.func.jacrev, torch.func.jacfwd
    exact = torch.diag(torch.from_numpy(pb.tanh.second_derivative(x.numpy())))
    for outer, inner in ((rev, rev), (fwd, rev), (rev, fwd)):
        found = outer(inner(lambda x: pt.tanh(x).sum()))(x)
        assert torch.allclose(found, exact, rtol=1e-13)
    with pytest.raises(RuntimeError, match="tanh.jvp: .* none forward over forward"):
        fwd(fwd(pt.tanh))(x)
    with pytest.raises(RuntimeError, match="tanh.vjp.vjp: there are no derivatives of third order"):
        rev(rev(rev(pt.tanh)))(x)


def test_hessians_of_losses() -> None:
    rng = np.random.default_rng(0)
    X, w = rng.standard_normal((6, 3)), rng.standard_normal(3)
    y = (X @ w > 0) * 1.0
    exact = torch.from_numpy(pb.logistic.hessian(X, y, w))
    data, scales = [torch.from_numpy(a) for a in (X, y)], torch.tensor([1.0, 3.0])
    rev, fwd = torch.func.jacrev, torch.func.jacfwd
    for outer, inner in ((rev, rev), (fwd, rev), (rev, fwd)):  # with cotangents in a stack
        found = outer(inner(lambda w: pt.logistic(*data, w) * scales))(torch.from_numpy(w))
        for part, scale in zip(found, scales, strict=True):
            assert torch.allclose(part, scale * exact, rtol=1e-12)


# --- traces ---------------------------------------------------------------------------------------


@cases
def test_operators(case: Case) -> None:
    """PyTorch's checks of schema, registration, fake tensors, and gradients in a trace."""
    tensors = case.tensors()
    of = case.of
    masks = [None] * len(of.masks)
    options = of.named(tuple(case.options.values()))
    value = case(*tensors).detach()
    torch.library.opcheck(of.operator(""), (*tensors, *masks), options)
    plain = [x.detach() for x in tensors]
    moved = [plain[k] for k in of.moved]
    tests = ("test_schema", "test_faketensor")
    given = {
        "jvp": moved,
        "vjp": [value],
        "vjp.vjp": [value, *moved],
        "vjp.jvp": [value, *moved, None],
    }
    for method, more in given.items():
        if of.method(method, dict(case.options)) is not None:
            wrt = [[*of.moved[-1:]]] if "vjp" in method else []
            arguments = (*plain, *more, *masks, *wrt)
            torch.library.opcheck(of.operator(method), arguments, options, test_utils=tests)


def test_compiled() -> None:
    """All in one graph."""
    torch._dynamo.reset()
    given = [case.tensors() for case in CASES]

    def f(given: Any) -> Any:
        return [case(*tensors) for case, tensors in zip(CASES, given, strict=True)]

    values, wanted = torch.compile(f, backend="aot_eager", fullgraph=True)(given), f(given)
    assert all(one.equal(other) for one, other in zip(values, wanted, strict=True))
    needed = [tensors[k] for case, tensors in zip(CASES, given, strict=True) for k in case.needs]
    pairs = zip(
        *(torch.autograd.grad([y.sum() for y in ys], needed) for ys in (values, wanted)),
        strict=True,
    )
    assert all(torch.allclose(one, other, rtol=1e-14) for one, other in pairs)


def test_compiled_with_symbolic_sizes() -> None:
    """One of each family, compiled once for two sizes."""
    torch._dynamo.reset()

    def f(x: Any, w: Any, W: Any, y: Any) -> Any:
        h = pt.linear(pt.multiply(w, x), W, activation=pb.gelu)
        h = pt.layer_norm(pt.softmax(h, axis=1), axis=1) + pt.matmul(x, W)
        z = pt.logsumexp(h, axis=1) + pt.bilinear_form(h, pt.matmul(W.T, W), h)
        return pt.logistic.pointwise(z, y).sum() + pt.poisson(x, y, w)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (5, 7):
        shapes = [(n, 3), (3,), (3, 4)]
        leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
        with torch._dynamo.config.patch(error_on_recompile=True):
            value = compiled(*leaves, torch.ones(n))
        gradients = [torch.autograd.grad(v, leaves) for v in (value, f(*leaves, torch.ones(n)))]
        for one, other in zip(*gradients, strict=True):
            assert torch.allclose(one, other, rtol=1e-10)


def test_compiled_by_inductor() -> None:
    """One of each family, without work for its own code generator, which takes long."""
    torch._dynamo.reset()
    names = ("gelu", "hypot", "softmax", "logsumexp", "matmul", "logistic", "probit.pointwise")
    few = [case for case in CASES if case.name in names]
    given = [case.tensors() for case in few]

    def f(given: Any) -> Any:
        return [case(*tensors) for case, tensors in zip(few, given, strict=True)]

    values, wanted = torch.compile(f, fullgraph=True)(given), f(given)
    assert len(values) == len(names)
    assert all(one.equal(other) for one, other in zip(values, wanted, strict=True))
    needed = [tensors[k] for case, tensors in zip(few, given, strict=True) for k in case.needs]
    ones = [torch.ones_like(value) for value in wanted]
    pairs = zip(*(torch.autograd.grad(ys, needed, ones) for ys in (values, wanted)), strict=True)
    assert all(torch.allclose(one, other, rtol=1e-14) for one, other in pairs)


def test_transforms_of_operators_and_in_traces() -> None:
    torch._dynamo.reset()
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    wanted = 1 / torch.cosh(x) ** 2

    def gradient(f: Any) -> Any:
        return torch.func.vmap(torch.func.grad(lambda x: f(x).sum()))

    assert torch.allclose(gradient(torch.ops.pullback.tanh)(x), wanted)
    compiled = torch.compile(gradient(pt.tanh), backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), wanted)
    traced = torch.fx.experimental.proxy_tensor.make_fx(gradient(pt.tanh))(x)
    assert "pullback.tanh_vjp" in traced.code
    assert torch.allclose(traced(x), wanted)


def test_export() -> None:
    net = torch.nn.Sequential(pt.Linear(3, 4, activation="gelu"), pt.LayerNorm(4))
    x = torch.randn(2, 3)
    exported = torch.export.export(net, (x,))
    targets = {str(node.target) for node in exported.graph.nodes}
    assert {"pullback.linear.default", "pullback.layer_norm.default"} <= targets
    assert torch.allclose(exported.module()(x), net(x))


# --- modules and errors ---------------------------------------------------------------------------


def test_modules_have_the_parameters_of_pytorchs_own() -> None:
    torch.manual_seed(0)
    ours = torch.nn.Sequential(
        pt.Linear(3, 5, activation="relu"), pt.LayerNorm(5), pt.Linear(5, 2, bias=False)
    )
    theirs = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU()),
        torch.nn.LayerNorm(5),
        torch.nn.Linear(5, 2, bias=False),
    )
    states = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(states))
    x, labels = torch.randn(7, 3), torch.randint(0, 2, (7,))
    losses = pt.Loss("softmax_cross_entropy"), torch.nn.CrossEntropyLoss()
    for net, loss in zip((ours, theirs), losses, strict=True):
        loss(net(x), labels).backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)
    assert "activation='relu'" in repr(ours)


def test_losses_as_modules() -> None:
    z, y = torch.randn(4), torch.randn(4)
    wanted = torch.nn.functional.huber_loss(z, y, delta=0.5, reduction="none")
    for reduction in ("mean", "sum"):
        result = pt.Loss("huber", reduction, delta=0.5)(z, y)
        assert torch.allclose(result, getattr(wanted, reduction)())
    assert torch.allclose(pt.Loss("huber", "none", delta=0.5)(z, y), wanted)
    with pytest.raises(ValueError, match="reduction is 'median'"):
        pt.Loss("huber", "median")
    with pytest.raises(ValueError, match="loss is 'hubber'; there are"):
        pt.Loss("hubber")


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: pt.tanh(X.half()), TypeError, "tanh: x has dtype torch.float16; it needs float32"),
        (lambda: pt.tanh(X.bfloat16()), TypeError, "tanh: x has dtype torch.bfloat16"),
        (lambda: pt.tanh(X.long()), TypeError, "tanh: x has dtype torch.int64"),
        (lambda: pt.tanh(X.to("meta")), TypeError, "tanh: x is on meta"),
        (lambda: pt.tanh(X.to_sparse()), TypeError, "tanh: x is on torch.sparse_coo.*to_dense"),
        (lambda: pt.tanh(X.numpy()), TypeError, "tanh: x must be a tensor.*torch.from_numpy"),
        (lambda: pt.multiply(2, 3), TypeError, "multiply: w must be a tensor, not 2"),
        (lambda: pt.tanh(), TypeError, r"tanh\(\) missing 1 required positional argument: 'x'"),
        (lambda: pt.softmax(X, axes=1), TypeError, r"softmax\(\) got an unexpected keyword"),
        (lambda: pt.matmul(X, X), ValueError, "matmul: A has shape"),
        (lambda: pt.linear(X, None), TypeError, "linear: W must be a tensor, not None"),
        (lambda: pt.linear(X, X.T, activation="tan h"), TypeError, "linear: activation must be"),
        (lambda: pt.logistic(X, X[0, :2] * 3, X[0]), ValueError, "logistic.value: y.0. is 3"),
        (lambda: pt.huber.pointwise(X, X, delta=-1.0), ValueError, "huber: delta is -1"),
        (lambda: pt.sofmax(X), AttributeError, "has no attribute 'sofmax'.*softmax"),
    ],
)
def test_errors(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


inf, nan = float("inf"), float("nan")
HALF = 0.5, 0.5


@pytest.mark.parametrize(
    ("name", "theirs", "at", "slopes", "ours"),
    [
        ("maximum", torch.maximum, (1.0, 1.0), HALF, HALF),
        ("maximum", torch.maximum, (nan, 1.0), (1, 1), (nan, nan)),
        ("relu", torch.relu, (0.0,), (0,), (0,)),
        ("relu", torch.relu, (nan,), (1,), (nan,)),
        ("abs", torch.abs, (0.0,), (0,), (0,)),
        ("abs", torch.abs, (nan,), (0,), (nan,)),
        ("hypot", torch.hypot, (0.0, 0.0), (nan, nan), (0, 0)),
        ("arctan2", torch.atan2, (0.0, 0.0), (0, 0), (nan, nan)),
        ("log", torch.log, (-2.0,), (-0.5,), (nan,)),
        ("gelu", torch.nn.functional.gelu, (inf,), (nan,), (1,)),
        ("gelu", torch.nn.functional.gelu, (-inf,), (nan,), (0,)),
        ("logaddexp", torch.logaddexp, (inf, inf), (nan, nan), HALF),
        ("xlogy", torch.xlogy, (0.0, 0.0), (0, nan), (0, 0)),
        ("max", torch.amax, ([1.0, 1.0],), (HALF,), (HALF,)),
        ("max", lambda x: x.max(0).values, ([1.0, 1.0],), ([1, 0],), (HALF,)),
        ("norm2", torch.linalg.norm, ([0.0, 0.0],), ([0, 0],), ([0, 0],)),
    ],
)
def test_conventions(name: str, theirs: Any, at: Any, slopes: Any, ours: Any) -> None:
    """The table of docs/torch.md."""
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in at]
    for f, wanted in ((theirs, slopes), (pt.primitives[name], ours)):
        found = torch.autograd.grad(f(*tensors), tensors)
        for one, other in zip(found, wanted, strict=True):
            assert np.array_equal(one, other, equal_nan=True)


def test_names_pickles_and_signatures() -> None:
    for name in registry:
        f = pt.primitives[name]
        assert f.__name__ == name
        assert pickle.loads(pickle.dumps(f)) is f
    assert pickle.loads(pickle.dumps(pt.huber.pointwise)) is pt.huber.pointwise
    assert str(inspect.signature(pt.norm)).startswith("(x, p, axis=None, keepdims=False, *, where")
    assert repr(pt.tanh) == "<tanh of pullback, on tensors>"


def test_imports_are_lazy_and_a_missing_package_is_named(run_python: Any) -> None:
    run_python("import sys, pullback.catalogue; assert 'torch' not in sys.modules")
    finished = run_python(
        "import sys; sys.modules['torch'] = None; import pullback.interop.torch", check=False
    )
    assert "pip install 'pullback[torch]'" in finished.stderr


def test_no_primitive_hides_a_builtin() -> None:
    tree = ast.parse(inspect.getsource(pt))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not used & {*registry} & {*dir(builtins)}

"""One row in each table is all there is to an operation: the registry, the names, the docs."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pullback as pb
import pytest
from protocol import (
    CALLS,
    METHODS,
    TARGETS,
    UFUNC_CALLS,
    Call,
    calls,
    dtypes,
    each,
    native,
    of_every,
    rows,
)
from pullback.cases import cases
from pullback.protocol import OPERANDS
from pullback.tables.elementwise import OPS, OpRow
from pullback.tables.losses import IN_LOSSES_ALONE, LOSSES
from pullback.tables.products import PRODUCTS
from pullback.tables.reductions import REDUCTIONS
from pullback.tables.selections import SELECTIONS

LOSS_METHODS = (
    "value",
    "grad",
    "value_and_grad",
    "hvp",
    "curvature",
    "hessian",
    "sample_grads",
    "partial",
    "vjp",
    "pointwise",
)
POINTWISE_METHODS = (
    "derivative",
    "value_and_derivative",
    "second_derivative",
    "vjp",
    "jvp",
    "jacobian",
)
PRODUCT_METHODS = {name: tuple(row.methods) for name, row in PRODUCTS.items()}
MAP_METHODS = ("value", "vjp", "jvp", "jacobian")
REDUCTION_METHODS = {
    name: MAP_METHODS if row.is_map else (*MAP_METHODS, "grad", "value_and_grad")
    for name, row in REDUCTIONS.items()
}
SELECTION_METHODS = {
    name: POINTWISE_METHODS if row.is_elementwise else ("vjp", "jvp", "jacobian")
    for name, row in SELECTIONS.items()
}
PRIMITIVES = (*OPS, *PRODUCT_METHODS, *REDUCTIONS, *SELECTIONS, *LOSSES)


def callables() -> Iterator[tuple[str, Any, Any]]:
    """Yield every primitive and every method: its dotted name, ours and the twin's."""
    for call in CALLS:
        yield call.name, call.of(pb), call.of(pb.reference)
    for op in OPS:
        yield f"{op}.jacobian", getattr(pb, op).jacobian, getattr(pb.reference, op).jacobian
    for name, methods in (PRODUCT_METHODS | REDUCTION_METHODS | SELECTION_METHODS).items():
        ours, twin = getattr(pb, name), getattr(pb.reference, name)
        yield name, ours, twin
        for method in methods:
            yield f"{name}.{method}", getattr(ours, method), getattr(twin, method)
    for loss in pb.losses.losses:
        ours, twin = pb.primitives[loss], getattr(pb.reference, loss)
        yield loss, ours, twin
        for method in (*LOSS_METHODS, *(f"pointwise.{method}" for method in POINTWISE_METHODS)):
            yield f"{loss}.{method}", attrgetter(method)(ours), attrgetter(method)(twin)


EVERYTHING = list(callables())
everything = each(
    "name, ours, twin",
    EVERYTHING,
    label=lambda method: method[0],
)


# --- the tables -----------------------------------------------------------------------------------


@pytest.mark.native
def test_both_tables_hold_the_same_operations() -> None:
    assert native.elementwise_ops() == {name: row.nin for name, row in OPS.items()}
    assert sorted(native.loss_ops()) == sorted(pb.losses.losses)
    assert set(native.selection_ops()) == set(SELECTIONS)
    # Softmax is logsumexp's gradient; norm(x, inf) has kernels of its own.
    own = {name for name, _ in native.reduction_ops()} - {"norm_inf"}
    assert own == set(REDUCTIONS)
    assert len(native.reduction_ops()) == len(set(native.reduction_ops()))


@pytest.mark.native
def test_no_operation_stands_twice() -> None:
    losses = native.loss_ops()
    assert len(losses) == len(set(losses))
    assert not set(losses) & set(OPS)


@pytest.mark.native
@of_every(UFUNC_CALLS)
@dtypes
def test_every_ufunc_has_a_loop_for_every_dtype(call: Call, dtype: Any) -> None:
    ufunc = call.native()
    assert ufunc.nin == call.nin
    assert ufunc.nout == call.nout
    wanted = (np.dtype(dtype),) * (call.nin + call.nout)
    assert ufunc.resolve_dtypes((*wanted[: call.nin], *[None] * call.nout)) == wanted


@pytest.mark.native
def test_unknown_operations_and_methods() -> None:
    for op, method in (("nonsense", "value"), ("tanh", "nonsense"), ("tanh", "vjp1")):
        with pytest.raises(KeyError):
            native.elementwise_ufunc(op, method, "name", "doc")
        with pytest.raises(KeyError):
            native.elementwise_method(op, method, print)
    for loss, method in (("nonsense", "value"), ("relu_mse", "nonsense")):
        with pytest.raises(KeyError):
            native.loss_method(loss, 0.0, method, None, print)
    for name, method in (("nonsense", "value"), ("where", "nonsense"), ("take", "derivative")):
        with pytest.raises(KeyError):
            native.selection_method(name, method, print)
    for name, method in (("nonsense", "value"), ("sum", "nonsense"), ("softmax", "grad")):
        with pytest.raises(KeyError):
            native.reduction_method(name, method, "", 0.0, None, print)


# --- the registry ---------------------------------------------------------------------------------


def test_registry_holds_every_primitive() -> None:
    assert set(pb.primitives) == set(PRIMITIVES)
    for name, primitive in pb.primitives.items():
        if name not in IN_LOSSES_ALONE:
            assert getattr(pb, name) is primitive
        assert (name in pb.reference.__all__) == (name not in IN_LOSSES_ALONE)
    for name in OPS:
        assert pb.elementwise.primitives[name] is pb.primitives[name]
        assert getattr(pb.elementwise, name) is pb.primitives[name]
    for name in REDUCTIONS:
        assert getattr(pb.reductions, name) is pb.primitives[name]
    for name in SELECTIONS:
        assert getattr(pb.selections, name) is pb.primitives[name]
    for name in pb.losses.losses:
        assert getattr(pb.losses, name) is pb.primitives[name]
    with pytest.raises(TypeError):
        pb.primitives["tanh"] = None  # type: ignore[index]


@each("name", sorted(IN_LOSSES_ALONE))
def test_losses_that_would_read_as_functions_are_in_losses_alone(name: str) -> None:
    assert getattr(pb.losses, name) is pb.primitives[name]
    assert name not in {*dir(pb), *pb.__all__}
    with pytest.raises(AttributeError, match=rf"'pullback' has no .*; it is pb\.losses\.{name}$"):
        getattr(pb, name)


def test_reference_holds_nothing_else() -> None:
    assert set(pb.reference.__all__) == {*pb.primitives, "gram"} - IN_LOSSES_ALONE


def public_methods(primitive: Any) -> set[str]:
    """Return what can be called on a primitive, less what every ufunc has."""
    names = {n for n in dir(primitive) if not n.startswith("_")} - set(dir(np.add))
    return {name for name in names if callable(getattr(primitive, name))}


@each("name", PRIMITIVES)
def test_reference_mirrors_every_method(name: str) -> None:
    ours, twin = pb.primitives[name], getattr(pb.reference, name)
    assert public_methods(ours) == public_methods(twin)
    if name in OPS:
        protocol = {*METHODS[OPS[name].nin], "jacobian"} - {"value"}
        assert public_methods(ours) == protocol
    if name in PRODUCT_METHODS:
        assert public_methods(ours) == set(PRODUCT_METHODS[name])
    if name in REDUCTIONS:
        assert public_methods(ours) == set(REDUCTION_METHODS[name])
    if name in SELECTIONS:
        assert public_methods(ours) == set(SELECTION_METHODS[name])
    if name in LOSSES:
        assert public_methods(ours) == set(LOSS_METHODS)
        assert public_methods(ours.pointwise) == set(POINTWISE_METHODS)


def test_all_is_what_there_is() -> None:
    assert len(set(pb.__all__)) == len(pb.__all__)
    assert set(PRIMITIVES) - IN_LOSSES_ALONE < set(pb.__all__)
    for name in pb.__all__:
        getattr(pb, name)
    namespace: dict[str, Any] = {}
    exec("from pullback import *", namespace)
    assert set(pb.__all__) <= set(namespace)
    public = {n for n, v in vars(pb).items() if not n.startswith("_") and not _is_import(n, v)}
    assert public <= set(pb.__all__)
    with pytest.raises(AttributeError, match=r"pullback.*nonsense"):
        pb.nonsense  # noqa: B018


def _is_import(name: str, value: Any) -> bool:
    """Tell whether a public name is there only because a module needs or holds it."""
    submodule = inspect.ismodule(value) and value.__name__ == f"pullback.{name}"
    module = getattr(value, "__module__", "pullback")
    return (
        submodule or name in ("annotations", "TYPE_CHECKING") or not module.startswith("pullback")
    )


@pytest.mark.parametrize(
    "module", ["elementwise", "reductions", "selections", "losses", "reference", "jacobians"]
)
def test_all_of_submodules(module: str) -> None:
    submodule = getattr(pb, module)
    for name in submodule.__all__:
        assert getattr(submodule, name) is not None


# --- identity -------------------------------------------------------------------------------------


def is_restored(thing: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> bool:
    """Tell whether a pickle gives the very same object back, or an equal bound method."""
    restored = pickle.loads(pickle.dumps(thing, protocol))
    return restored is thing or (inspect.ismethod(thing) and restored == thing)


@everything
def test_survives_pickle_and_copy(name: str, ours: Any, twin: Any) -> None:
    for protocol in range(4 if "." in name else 0, pickle.HIGHEST_PROTOCOL + 1):
        assert is_restored(twin, protocol)  # the older ones cannot name an attribute's attribute
    for thing in (ours, twin):
        assert is_restored(thing), name
        assert is_restored(thing, pickle.HIGHEST_PROTOCOL)
        assert copy.copy(thing) == thing
        if not inspect.ismethod(thing):
            assert copy.copy(thing) is thing
            assert copy.deepcopy(thing) is thing


@pytest.mark.parametrize("protocol", range(4, pickle.HIGHEST_PROTOCOL + 1))
def test_survives_pickle_protocols_with_qualified_names(protocol: int) -> None:
    """The older protocols cannot name an attribute of a module's attribute."""
    for _, ours, twin in EVERYTHING:
        assert is_restored(ours, protocol)
        assert is_restored(twin, protocol)


@pytest.mark.native
@everything
def test_pickles_by_name_alone(name: str, ours: Any, twin: Any) -> None:
    del twin
    assert len(pickle.dumps(ours)) < 150, name


def test_unpickles_in_a_fresh_process(run_python: Callable[..., Any], tmp_path: Path) -> None:
    """A pickle brings all it needs: unpickling alone imports pullback and sets it up."""
    file = tmp_path / "everything.pickle"
    things = [ours for _, ours, _ in EVERYTHING] + [pb.reference.tanh, pb.reference.relu_mse]
    file.write_bytes(pickle.dumps(things))
    done = run_python(
        "import pickle, sys; things = pickle.load(open(sys.argv[1], 'rb'));"
        "print(*map(repr, things), sep='\\n')",
        str(file),
    )
    assert [_plain(line) for line in done.stdout.splitlines()] == [_plain(repr(t)) for t in things]


def _plain(text: str) -> str:
    return re.sub(r" at 0x\w+", "", text)


@pytest.mark.native
@calls
def test_values_are_ufuncs(call: Call) -> None:
    f = call.native()
    assert isinstance(f, np.ufunc) == call.is_ufunc
    assert call.op in repr(f)
    # pandas maps a ufunc called `greater` to an operator that returns bool.
    assert f.__name__ != call.op


@everything
def test_signatures_are_the_same_on_both_backends(name: str, ours: Any, twin: Any) -> None:
    if "." in name and not isinstance(ours, np.ufunc):  # what else is an object, or NumPy's
        assert inspect.signature(ours) == inspect.signature(twin)


@each("name", PRIMITIVES)
def test_repr_names_it(name: str) -> None:
    assert name in repr(pb.primitives[name])
    twin = repr(getattr(pb.reference, name))
    assert name in twin
    assert twin.endswith(", NumPy twin>")


# --- documentation --------------------------------------------------------------------------------


def sections(doc: str) -> set[str]:
    """Return the section titles of a numpydoc docstring."""
    lines = doc.splitlines()
    return {
        title.strip()
        for title, rule in zip(lines, lines[1:], strict=False)
        if title.strip() and set(rule.strip()) == {"-"} and len(rule.strip()) == len(title.strip())
    }


@everything
def test_docstring(name: str, ours: Any, twin: Any) -> None:
    for function in (ours,) if native is None else (ours, twin):
        doc = inspect.getdoc(function)
        assert doc, name
        assert all(len(line) <= 100 for line in doc.splitlines() if not line.startswith("elementw"))
    doc = inspect.getdoc(ours) or ""
    op, _, method = name.partition(".")
    if op in OPS:
        row = OPS[op]
        assert f"value {row.max_ulp[0]:g} ULP, derivative {row.max_ulp[1]:g} ULP" in doc
        for formula in row.derivative_formula:
            assert formula in " ".join(doc.split())
    if op in OPS and method in ("", "vjp", "jvp"):
        assert {"Parameters", "Returns", "Notes"} <= sections(doc) or method == "jvp"
        assert "shape" in doc or row.nin == 1
    if op in LOSSES and not method:
        for formula in (LOSSES[op].formula, LOSSES[op].derivative_formula, LOSSES[op].source):
            assert " ".join(formula.split()) in " ".join(doc.split())
    if op in REDUCTIONS and not method:
        row = REDUCTIONS[op]
        for text in (row.formula, *row.derivative_formula, row.source):
            assert text in doc
    if (
        op in {**PRODUCT_METHODS, **SELECTION_METHODS}
        or (op in REDUCTIONS and method)
        or (op in LOSSES and method not in ("", "pointwise"))
    ):
        assert {"Parameters", "Returns", "Raises"} <= sections(doc)
        assert "shape" in doc


@each("name", [n for n in pb.__all__ if not n.startswith("_")])
def test_every_public_name_is_documented(name: str) -> None:
    thing = getattr(pb, name)
    if name == "primitives":  # a mapping; the module's docstring tells what it holds
        assert "`primitives`" in (pb.__doc__ or "")
        return
    doc = inspect.getdoc(thing)
    assert doc
    summary = doc.splitlines()[0]
    assert summary
    if inspect.isfunction(thing) and inspect.signature(thing).parameters:
        assert "Parameters" in sections(doc)
    if inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isfunction(thing):
        assert summary.endswith(".")


@rows
def test_special_points_are_documented(row: OpRow) -> None:
    doc = inspect.getdoc(getattr(pb, row.name)) or ""
    for point in row.special:
        assert f"at {', '.join(f'{x:g}' for x in point.at)}" in doc.replace("(", "").replace(
            ")", ""
        )
    for operand in OPERANDS[row.nin]:
        assert operand in doc


# --- benches --------------------------------------------------------------------------------------


def test_every_primitive_has_a_bench() -> None:
    timed = {(case.primitive, case.method) for case in cases()}
    for name, _, _ in EVERYTHING:
        op, _, method = name.partition(".")
        if op in pb.losses.losses and not method:
            continue  # the object cannot be called
        assert (op, method or "value") in timed


@pytest.mark.native
def test_targets_include_the_baseline() -> None:
    """At least two instruction sets are built, so that dispatch itself is tested."""
    assert len(TARGETS) >= 2

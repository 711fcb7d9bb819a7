"""What somebody meets first: names and hints, docstrings and reprs."""

from __future__ import annotations

import doctest
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pullback as pb
import pytest
from protocol import each
from pullback import hints

X = np.ones((2, 2))


def test_dir_is_what_is_public() -> None:
    assert dir(pb) == sorted(pb.__all__)
    assert len(set(pb.__all__)) == len(pb.__all__)
    for name in dir(pb):
        assert getattr(pb, name) is not None
    strays = {name for name in vars(pb) if not name.startswith("_")} - set(pb.__all__)
    modules = {name for name in strays if f"pullback.{name}" in sys.modules}
    assert strays - modules == {"annotations"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("grad", "pb.tanh.vjp"),
        ("jacobian", "pb.tanh.vjp"),
        ("np", "import numpy itself"),
        ("expit", "use pb.sigmoid"),
        ("mean_squared_error", "use pb.squared_error"),
        ("einsum", "use pb.matmul"),
        ("sigmiod", "did you mean pb.sigmoid"),
        ("LinearObjektive", "did you mean pb.LinearObjective"),
        ("fit", "pullback.solvers.newton(objective)"),
    ],
)
def test_a_name_that_is_elsewhere_gives_a_hint(name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=f"'pullback' has no attribute '{name}'; ") as error:
        getattr(pb, name)
    assert hint in str(error.value)
    assert not hasattr(pb, name)


def test_hints_name_what_there_is() -> None:
    assert len(hints._ELSEWHERE) > 40
    for name, hint in hints._ELSEWHERE.items():
        assert name not in pb.__all__
        for word in hint.split():
            path = word.strip(",;").partition("(")[0].split(".")
            if path[0] == "pb":
                assert getattr(pb, path[1]) is not None, hint


def test_no_hint_where_nothing_is_near() -> None:
    for name in ("zzzzz", "__wrapped__"):
        with pytest.raises(AttributeError, match=rf"has no attribute '{name}'$"):
            getattr(pb, name)


def objective(primitives: Any) -> pb.LinearObjective:
    return pb.LinearObjective(X, X[0], primitives.hinge)


@pytest.mark.parametrize(
    ("of", "name", "hint"),
    [
        (lambda P: pb.chain(P.tanh), "gradient", "; it has grad, value_and_grad, vjp, value_and_v"),
        (lambda P: pb.chain(P.tanh), "jacrev", "; it has .*, jvp, jacobian, hvp$"),
        (lambda P: pb.chain(P.tanh), "backward", "; it has grad, "),
        (lambda P: pb.chain(P.tanh), "jacobain", r"; did you mean jacobian\?$"),
        (lambda P: P.sum, "derivative", "; it has grad, value_and_grad, vjp, jvp, jacobian$"),
        (lambda P: P.softmax, "grad", "; it has vjp, jvp, jacobian$"),
        (lambda P: P.matmul, "jac", "; it has vjp, jvp, jacobian$"),
        (lambda P: P.hinge, "gradient", r"; it has grad, .*hvp, curvature, pointwise\.derivative"),
        (lambda P: P.huber, "jacobian", r"; it has .*, pointwise\.vjp, pointwise\.jvp$"),
        (lambda P: P.hinge.pointwise, "grad", "; it has derivative, "),
        (objective, "gradient", "; it has grad, value_and_grad"),
        (lambda _: pb.reference.tanh, "grad", "; it has derivative, value_and_derivative, second"),
        (lambda P: P.huber, "predict", "; pb.LinearObjective and the estimators .* have predict$"),
        (lambda P: P.hinge, "fit", r"; pullback\.solvers\.newton\(objective\) minimises a pb"),
        (lambda P: P.huber, "evaluate", "; a primitive is called as f.x.; chains, losses"),
        (lambda P: P.sum, "value_and_vjp", "; it has grad, value_and_grad, vjp, jvp, jacobian$"),
        (lambda P: P.matmul, "linearize", "; it has vjp, jvp, jacobian$"),
        (lambda P: P.softmax, "vmap", "; primitives are compiled and take batches directly$"),
        (lambda P: pb.chain(P.sum), "value_and_jvp", "; it has grad, .*value_and_vjp, jvp"),
        (lambda P: pb.chain(P.tanh), "elementwise_grad", "; it has grad, "),
        (lambda P: pb.chain(P.tanh), "apply", "; a primitive is called .* have value$"),
        (lambda P: pb.chain(P.tanh), "jit", "; primitives are compiled"),
        (lambda P: pb.chain(P.tanh), "compose", r"; use pb\.chain$"),
        (objective, "fit", r"; pullback\.solvers\.newton\(objective\) minimises"),
        (objective, "minimize", r"; pullback\.solvers\.newton\(objective\) minimises"),
        (objective, "coef_", "; the parameters are one vector"),
        (objective, "predict_proba", "; pb.LinearObjective and .* have predict$"),
        (lambda _: pb.reference.tanh, "value_and_vjp", "; it has derivative, value_and_deriv"),
        (lambda P: P.sum, "zzzzz", "$"),
        (lambda P: P.sum, "_gradient", "$"),
    ],
)
def test_an_attribute_that_is_elsewhere_gives_a_hint(of: Any, name: str, hint: str) -> None:
    for primitives in (pb, pb.reference):
        with pytest.raises(AttributeError, match=rf"' object has no attribute '{name}'{hint}"):
            getattr(of(primitives), name)
        assert not hasattr(of(primitives), name)


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda P: pb.chain(np.exp), r"step 1 is exp, .*; did you mean pb\.exp\?$"),
        (lambda P: pb.chain("exp"), r"step 1 is 'exp', .*; did you mean pb\.exp\?$"),
        (lambda P: P.linear(X, X, activation="rellu"), r"not 'rellu'; did you mean pb\.relu"),
        (lambda P: P.linear(X, X, activation="swish"), r"not 'swish'; use pb\.silu$"),
        (lambda P: P.linear(X, X, activation="add"), "not 'add'$"),
        (lambda P: P.linear(X, X, activation=np.tanh), r"; did you mean pb\.tanh\?$"),
    ],
)
def test_no_primitive_gives_a_hint(call: Callable[[Any], Any], hint: str) -> None:
    for primitives in (pb, pb.reference):
        with pytest.raises(TypeError, match=hint):
            call(primitives)


@pytest.mark.parametrize("name", ["relu", "tanh", "abs"])
def test_an_activation_by_name(name: str) -> None:
    A = np.linspace(-1, 1, 6).reshape(3, 2)
    for P in (pb, pb.reference):
        f = getattr(P, name)
        for one, other in (
            (P.linear(A, X, activation=name), P.linear(A, X, activation=f)),
            (
                P.linear.vjp(A, X, None, 1.0, activation=name)[0],
                P.linear.vjp(A, X, None, 1.0, activation=f)[0],
            ),
            (
                P.linear.jvp(A, X, None, A, None, None, activation=name),
                P.linear.jvp(A, X, None, A, None, None, activation=f),
            ),
        ):
            np.testing.assert_array_equal(one, other, strict=True)


def warned(**variables: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", "import pullback"],
        env={k: v for k, v in os.environ.items() if not k.startswith("PULLBACK_")} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stderr


def test_an_unknown_variable_warns_once() -> None:
    known = dict.fromkeys(hints.KNOWN_VARIABLES, "1") | {
        "PULLBACK_BACKEND": "numpy",
    }
    assert warned(**known) == ""
    text = warned(PULLBACK_BACKEND="numpy", PULLBACK_NUM_THREDS="2")
    assert text.count("RuntimeWarning") == 1
    assert "PULLBACK_NUM_THREDS means nothing to pullback" in text
    assert "did you mean PULLBACK_NUM_THREADS?" in text


# --- docstrings -----------------------------------------------------------------------------------


def public_methods(primitive: Any) -> set[str]:
    """Return the names of what can be called on a primitive, but not on every ufunc."""
    names = {name for name in dir(primitive) if name[0] != "_" and name not in dir(np.ufunc)}
    found = {name for name in names if callable(getattr(primitive, name))} - {"pointwise"}
    found |= {
        f"vjp.{own}" for own in ("jvp", "vjp") if hasattr(getattr(primitive, "vjp", None), own)
    }
    if "pointwise" in names:
        found |= {f"pointwise.{name}" for name in public_methods(primitive.pointwise)}
    return found


@each("name", pb.primitives)
def test_a_docstring_names_every_method_and_its_example_runs(name: str) -> None:
    for P in (pb, pb.reference):
        primitive = pb.primitives[name] if P is pb else getattr(P, name)
        doc = inspect.getdoc(primitive)
        assert doc is not None
        section = doc.partition("Methods\n-------\n")[2].partition("\n\n")[0]
        listed = set(re.findall(r"^([a-z_.]+)\((?:.|\n {8})*\)$", section, re.MULTILINE))
        assert listed == public_methods(primitive)
        assert len(re.findall(r"^    \S.*", section, re.MULTILINE)) == len(listed)
        doc = doc if P is pb else doc.replace("pb.losses.", "pb.")  # the twins have one module
        test = doctest.DocTestParser().get_doctest(doc, {"pb": P}, name, None, None)
        assert len(test.examples) == 1
        output = io.StringIO()
        assert doctest.DocTestRunner(verbose=False).run(test, out=output.write).failed == 0, (
            output.getvalue()
        )

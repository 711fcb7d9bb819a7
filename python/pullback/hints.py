"""Hints for error messages: what to use instead of a name that does not exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

__all__ = [
    "KNOWN_VARIABLES",
    "about_attribute",
    "about_function",
    "about_name",
    "about_variable",
    "nearest",
]

_GRADIENT: Final = (
    "every primitive has its own derivatives: vjp, jvp and jacobian, such as pb.tanh.vjp(x, g)"
)
_FIT: Final = (
    "pullback.solvers.newton(objective) minimises a pb.LinearObjective; "
    "pullback.interop.sklearn has estimators"
)
_PREDICT: Final = "pb.LinearObjective and the estimators of pullback.interop.sklearn have predict"
_THETA: Final = "the parameters are one vector, which unpack of a pb.LinearObjective takes apart"
_CALL: Final = "a primitive is called as f(x); chains, losses and objectives have value"
_PLAIN: Final = "import numpy itself; pb.tanh is the primitive of np.tanh"

# Names of NumPy, SciPy, torch, JAX, autograd and scikit-learn for what has another name here: in
# the package, or as an attribute.
_ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("grad", "gradient", "value_and_grad", "vjp", "jvp"), _GRADIENT),
        **dict.fromkeys(("jacobian", "jacfwd", "jacrev", "hessian", "derivative"), _GRADIENT),
        **dict.fromkeys(("np", "numpy", "jnp"), _PLAIN),
        **dict.fromkeys(("jit", "vmap"), "primitives are compiled and take batches directly"),
        **dict.fromkeys(("compose", "Sequential"), "use pb.chain"),
        **dict.fromkeys(("gradcheck", "check_grads", "approx_fprime"), "use pb.check_grad"),
        **dict.fromkeys(("einsum", "tensordot"), "use pb.matmul, whose leading axes are a batch"),
        **dict.fromkeys(("mse", "mse_loss", "mean_squared_error"), "use pb.squared_error"),
        **dict.fromkeys(("cross_entropy", "nll_loss"), "use pb.softmax_cross_entropy"),
        **dict.fromkeys(("bce", "binary_cross_entropy", "log_loss"), "use pb.logistic"),
        **dict.fromkeys(("huber_loss", "smooth_l1_loss"), "use pb.huber"),
        **dict.fromkeys(("hinge_loss", "hinge_embedding_loss"), "use pb.hinge"),
        **dict.fromkeys(("pinball", "quantile_loss"), "use pb.quantile"),
        **dict.fromkeys(("fit", "minimize", "optimize", "train"), _FIT),
        **dict.fromkeys(("predict", "predict_proba", "decision_function", "score"), _PREDICT),
        **dict.fromkeys(("coef_", "intercept_", "parameters", "params"), _THETA),
        **dict.fromkeys(("apply", "evaluate", "fun", "eval"), _CALL),
        "absolute": "use pb.abs",
        "acos": "use pb.arccos",
        "acosh": "use pb.arccosh",
        "amax": "use pb.max",
        "amin": "use pb.min",
        "asin": "use pb.arcsin",
        "asinh": "use pb.arcsinh",
        "atan": "use pb.arctan",
        "atan2": "use pb.arctan2",
        "atanh": "use pb.arctanh",
        "clamp": "use pb.clip",
        "div": "use pb.divide",
        "expit": "use pb.sigmoid",
        "fabs": "use pb.abs",
        "gather": "use pb.take",
        "heaviside": "use pb.step",
        "layernorm": "use pb.layer_norm",
        "mul": "use pb.multiply",
        "neg": "use pb.negative",
        "pow": "use pb.power",
        "rmsnorm": "use pb.rms_norm",
        "sub": "use pb.subtract",
        "swish": "use pb.silu",
        "true_divide": "use pb.divide",
        "var": "use pb.variance",
    }
)

# Attributes that stand for derivatives: those that there are, and others.
_OWN: Final = (
    *("derivative", "value_and_derivative", "second_derivative", "grad", "value_and_grad"),
    *("vjp", "value_and_vjp", "jvp", "jacobian", "hvp", "curvature"),
)
_DERIVATIVES: Final = (
    *(*_OWN, "gradient", "gradients", "backward", "forward", "deriv", "derivatives", "diff"),
    *("jac", "jacfwd", "jacrev", "hess", "hessian", "hessp", "prime", "fprime", "pullback"),
    *("pushforward", "value_and_gradient", "value_and_jacobian", "value_and_jvp"),
    *("elementwise_grad", "linearize"),
)
_PREFIX: Final = "PULLBACK_"

# Those that the package reads, and those of its build.
KNOWN_VARIABLES: Final = (
    "PULLBACK_BACKEND",
    "PULLBACK_TARGET",
    "PULLBACK_NUM_THREADS",
    "PULLBACK_KEPT_MEMORY",
    "PULLBACK_REQUIRE_NATIVE",
    "PULLBACK_BELOW_SSE4",
    "PULLBACK_BUILD_PYTHON",
    "PULLBACK_BUILD_TESTS",
    "PULLBACK_SANITIZE",
    "PULLBACK_WERROR",
)


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Return up to three names that look most like `name`, or only `name` if it is known."""
    from difflib import get_close_matches  # noqa: PLC0415  an import need not wait for it

    return [name] if name in known else get_close_matches(name, dict.fromkeys(known))


def about_name(name: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown name, or "" without a hint."""
    if name in _in_losses_alone():
        return f"; it is pb.losses.{name}"
    if name in _ELSEWHERE:
        return f"; {_ELSEWHERE[name]}"
    near = [f"pb.{_path(one)}" for one in nearest(name, known)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _path(name: str) -> str:
    return f"losses.{name}" if name in _in_losses_alone() else name


def _in_losses_alone() -> frozenset[str]:
    from pullback.tables.losses import IN_LOSSES_ALONE  # noqa: PLC0415  as below

    return IN_LOSSES_ALONE


def about_attribute(name: str, own: Sequence[str]) -> str:
    """Return the end of a message about an attribute that is not among an object's `own`."""
    if name in _DERIVATIVES:
        found = [one for one in _OWN if one in own]
        found += [f"pointwise.{one}" for one in ("derivative", "vjp", "jvp") if "pointwise" in own]
        return f"; it has {', '.join(found)}" if found else ""
    if name in _ELSEWHERE:
        return f"; {_ELSEWHERE[name]}"
    near = nearest(name, own)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def about_function(given: object, *, unary: bool = False) -> str:
    """Return the end of a message about a non-primitive, such as NumPy's ufunc or a name."""
    name = given if isinstance(given, str) else getattr(given, "__name__", None)
    if hasattr(given, "pointwise"):
        return f"; its form for a step is (pb.{_path(str(name))}.pointwise, pb.arg, y)"
    if not isinstance(name, str):
        return ""
    from pullback.tables.elementwise import OPS  # noqa: PLC0415  variables need no tables
    from pullback.tables.products import PRODUCTS  # noqa: PLC0415
    from pullback.tables.reductions import REDUCTIONS  # noqa: PLC0415
    from pullback.tables.selections import SELECTIONS  # noqa: PLC0415

    table = {**OPS, **({} if unary else {**PRODUCTS, **REDUCTIONS, **SELECTIONS})}
    return about_name(name, [one for one in table if not unary or OPS[one].nin == 1])


def about_variable(name: str) -> str:
    """Return a warning about an environment variable that nothing reads."""
    by_ending = {known.removeprefix(_PREFIX): known for known in KNOWN_VARIABLES}
    near = nearest(name.removeprefix(_PREFIX), tuple(by_ending))
    hint = f"; did you mean {by_ending[near[0]]}?" if near else ""
    return f"the environment variable {name} means nothing to pullback{hint}"

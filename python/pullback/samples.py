"""Samples and parameters of the losses' methods: checked, and converted for the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from textwrap import indent
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from pullback.design_matrix import Data, as_data, as_matrix
from pullback.foreign import check_computed
from pullback.partial import Kinds, divisor
from pullback.protocol import (
    as_array,
    as_number,
    check_labels,
    converted,
    is_weak,
    kernel_dtype,
)

if TYPE_CHECKING:
    from pullback.tables.losses import LossRow

__all__ = [
    "OPERANDS",
    "Job",
    "Model",
    "Samples",
    "as_given",
    "as_offset",
    "as_targets",
    "change_of_slopes",
    "check_direction",
    "check_model",
    "check_offset",
    "check_outputs",
    "check_rows",
    "check_samples",
    "parameter_dtype",
    "raising_as",
    "softmax_hessian_product",
    "sums_of_targets",
    "weighing",
    "weight_complaint",
]

Array: TypeAlias = npt.NDArray[Any]

Job: TypeAlias = Literal["value", "gradient", "hvp", "curvature", "predict", "backward"]

OPERANDS: Final = ("X", "y", "w", "b")

F = TypeVar("F", bound=Callable[..., Any])


def raising_as(what: str) -> Callable[[F], F]:
    """Return a decorator that adds "Raises: as ... does" to a method's docstring."""

    def documented(method: F) -> F:
        text = f"Raises\n------\nTypeError, ValueError\n    As {what} does.\n"
        about = (method.__doc__ or "").rstrip()
        method.__doc__ = f"{about}\n\n{indent(text, 8 * ' ')}        "
        return method

    return documented


@dataclass(frozen=True, eq=False)
class Samples:
    """Data, targets and weights, as kernels read them and as given."""

    data: Data
    y: Any  # (N,) or (N, K), labels int64; None for predictions
    given_y: Any  # for the error messages
    sample_weight: Array | None  # (N,) float64
    weight: float  # their sum, or N
    offset: Array | None = None  # (N,) or (N, K) float64
    exponent: int = 0  # the weights were divided by this power of 2

    @property
    def n_samples(self) -> int:
        """Number of rows, N."""
        return self.data.shape[0]

    @property
    def n_features(self) -> int:
        """Number of columns, D."""
        return self.data.shape[1]


class Model(NamedTuple):
    """Parameters of a linear model, in float64."""

    w: Array  # (D, K)
    b: Array  # (K,)
    kinds: Kinds


def as_given(
    op: str, row: LossRow, X: Any, y: Any, sample_weight: Any, offset: Any
) -> tuple[Any, Array, Array | None, Array | None]:
    """Return data, targets, weights and offset as views of what was given, or as copies.

    Raises
    ------
    TypeError, ValueError
        If one of them does not convert to an array, or their labels differ.
    """
    of_rows = {"sample_weight": sample_weight, "offset": offset}
    check_labels(op, ("X", "y", *of_rows), (X, y, *of_rows.values()))
    X = as_matrix(op, X)
    for name, given in {"y": y, **of_rows}.items():
        check_computed(op, name, given)
    weights, offset = (None if a is None else as_array(op, name, a) for name, a in of_rows.items())
    return X, as_targets(op, row, y), weights, offset


def check_samples(
    op: str,
    row: LossRow,
    X: Any,
    y: Any,
    sample_weight: Any,
    offset: Any,
    *,
    may_lack: bool = False,
) -> Samples:
    """Convert data, targets, weights and offset for the kernels, which check the targets' values.

    Only parts, whose sums are added to others, may have no samples.

    Raises
    ------
    TypeError
        If a dtype or a sparse format has no kernel.
    ValueError
        If a shape does not fit, or there are no samples.
    """
    given = as_given(op, row, X, y, sample_weight, offset)
    return converted_samples(op, row, *given, may_lack=may_lack)


def converted_samples(
    op: str,
    row: LossRow,
    X: Any,
    given_y: Array,
    weights: Array | None,
    offset: Array | None,
    *,
    may_lack: bool = False,
) -> Samples:
    """Convert the results of `as_given` as `check_samples` converts its arguments."""
    data = as_data(op, X)
    targets = _for_kernels(op, row, given_y)
    n_samples = data.shape[0]
    if n_samples == 0 and not may_lack:
        raise ValueError(f"{op}: X has shape {data.shape}: there are no samples")
    if targets.ndim not in (1, 2) or len(targets) != n_samples:
        raise ValueError(
            f"{op}: y has shape {targets.shape}, X of shape {data.shape} needs ({n_samples},) or, "
            f"for several outputs, ({n_samples}, K)"
        )
    weight = float(n_samples)
    if weights is not None:
        kernel_dtype(op, "sample_weight", weights.dtype)
        weights = np.require(weights, np.float64, ["C", "A", "E"])
        if weights.shape != (n_samples,):
            raise ValueError(
                f"{op}: sample_weight has shape {weights.shape}, X of shape {data.shape} needs "
                f"({n_samples},)"
            )
        with np.errstate(all="ignore"):
            weight = float(np.sum(weights))
        if not weight > 0 and (bad := ~((weights >= 0) & (weights < np.inf))).any():
            raise ValueError(f"{op}: {weight_complaint(weights, int(np.argmax(bad)))}")
    return Samples(data, targets, given_y, weights, weight, as_offset(op, offset, data.shape))


def as_offset(op: str, offset: Array | None, shape: tuple[int, int]) -> Array | None:
    """Convert an offset of the predictions from X of a shape for the kernels.

    Raises
    ------
    TypeError
        If its dtype has no kernel.
    ValueError
        If its shape does not fit.
    """
    if offset is None:
        return None
    kernel_dtype(op, "offset", offset.dtype)
    if offset.ndim not in (1, 2) or len(offset) != shape[0]:
        raise ValueError(
            f"{op}: offset has shape {offset.shape}, X of shape {shape} needs ({shape[0]},) or, "
            f"for several outputs, ({shape[0]}, K)"
        )
    return np.require(offset, np.float64, ["C", "A", "E"])


def weighing(op: str, reduction: str, samples: Samples) -> tuple[Samples, float]:
    """Return samples and the divisor of their sums.

    A common factor of the weights does not change a mean. If their sum is so far from 1 that
    products with it could overflow or underflow, a power of 2 brings the largest weight near 1.
    """
    by = divisor(op, reduction, samples.weight)
    if reduction == "sum" or not (exponent := far_exponent(samples)):
        return samples, by
    samples = over_power(samples, exponent)
    return samples, samples.weight


def far_exponent(samples: Samples) -> int:
    """Return k such that the weights divided by 2^k are near 1; 0 if they are near enough."""
    weights = samples.sample_weight
    if weights is None or 2.0**-500 < samples.weight < 2.0**500:
        return 0
    if not (weights >= 0).all() or not np.isfinite(weights).all():
        return 0  # the pass raises the error
    return int(np.frexp(weights.max())[1])


def over_power(samples: Samples, exponent: int) -> Samples:
    """Return the samples with their weights divided by 2^exponent."""
    if samples.sample_weight is None or not exponent:
        return samples
    weights = np.ldexp(samples.sample_weight, -exponent)
    weight = float(np.sum(weights))
    return replace(samples, sample_weight=weights, weight=weight, exponent=exponent)


def weight_complaint(sample_weight: Array, row: int) -> str:
    """Return what is wrong with a weight."""
    return f"sample_weight[{row}] is {sample_weight[row]}, needs to be finite and not negative"


def as_targets(op: str, row: LossRow, y: Any) -> Array:
    """Return targets as an array of numbers.

    Raises
    ------
    TypeError
        If a dtype has no kernel. For labels, the message says how to encode them.
    """
    try:
        array = as_array(op, "y", y)
        kernel_dtype(op, "y", array.dtype)
    except TypeError:
        dtype = np.asarray(y).dtype if isinstance(y, list | tuple) else getattr(y, "dtype", None)
        # pandas has its own dtypes; those that are not numbers have the kind "O".
        if not row.targets.encoding or getattr(dtype, "kind", None) not in tuple("OSTU"):
            raise
    else:
        return array
    needed = f"needs {row.targets.text}{row.targets.advice}"
    raise TypeError(f"{op}: argument y has dtype {dtype}, {needed}")


def _for_kernels(op: str, row: LossRow, y: Array) -> Array:
    dtype = kernel_dtype(op, "y", y.dtype)
    if row.of_classes and y.ndim == 1:
        if y.dtype.kind not in "biu" and y.size > 0:
            raise TypeError(
                f"{op}: y has shape {y.shape} and dtype {y.dtype}; labels need integers, "
                "probabilities a column for each class"
            )
        dtype = np.dtype(np.int64)
    return np.require(y, dtype, ["C", "A", "E"])


def check_model(op: str, row: LossRow, samples: Samples, w: Any, b: Any) -> Model:
    """Convert coefficients and intercepts for the kernels.

    Raises
    ------
    TypeError
        If a dtype has no kernel.
    ValueError
        If a shape does not fit the samples.
    """
    w = as_array(op, "w", w)
    w_dtype = parameter_dtype(op, "w", w.dtype)
    like = _intercept_kind(op, b)
    shape = samples.data.shape
    single = w.ndim == 1
    if w.ndim not in (1, 2) or len(w) != shape[1]:
        raise ValueError(
            f"{op}: w has shape {w.shape}, X of shape {shape} needs ({shape[1]},) or, "
            f"for several outputs, ({shape[1]}, K)"
        )
    n_outputs = 1 if single else w.shape[1]
    if n_outputs < 1 + row.of_classes:
        least = "(D, K) with K > 1" if row.of_classes else "one output or more"
        raise ValueError(f"{op}: w has shape {w.shape}, needs {least}")
    check_outputs(op, row, samples, w.shape)
    wanted = {(), (1,)} if single else {(), (1,), (n_outputs,)}
    if like is not None and np.shape(like) not in wanted:
        raise ValueError(
            f"{op}: b has shape {np.shape(like)}, w of shape {w.shape} needs () or ({n_outputs},)"
        )
    with np.errstate(all="ignore"):
        coefficients = np.require(w, np.float64, ["C", "A", "E"]).reshape(shape[1], n_outputs)
        intercepts = np.zeros(n_outputs)
        if b is not None:
            b = b if is_weak(b) else as_array(op, "b", b)
            intercepts[...] = converted(op, "b", b, intercepts.dtype)
    return Model(coefficients, intercepts, Kinds(w.shape, w_dtype, like))


def check_outputs(op: str, row: LossRow, samples: Samples, w: tuple[int, ...]) -> None:
    """Raise ValueError unless targets and offset fit the outputs."""
    check_offset(op, samples, w)
    wanted = (samples.n_samples, *w[1:])
    if samples.y.shape == wanted or (row.of_classes and len(w) == 2 and samples.y.ndim == 1):
        return
    raise ValueError(
        f"{op}: y has shape {samples.y.shape}, X of shape {samples.data.shape} needs {wanted} "
        f"for w of shape {w}"
    )


def check_offset(op: str, samples: Samples, w: tuple[int, ...]) -> None:
    """Raise ValueError unless there is an offset for each sample, or each of its outputs."""
    shape = (samples.n_samples, *w[1:])
    if samples.offset is None or samples.offset.shape in (shape, shape[:1]):
        return
    wanted = " or ".join(str(s) for s in dict.fromkeys((shape[:1], shape)))
    raise ValueError(
        f"{op}: offset has shape {samples.offset.shape}, X of shape {samples.data.shape} needs "
        f"{wanted} for w of shape {w}"
    )


def parameter_dtype(op: str, name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the gradient for a variable of `dtype`: float64 for integers."""
    computed = kernel_dtype(op, name, dtype)
    return np.dtype(np.float64) if dtype.kind in "biu" else computed


def _intercept_kind(op: str, b: Any) -> Any:
    """Return an example of the gradient for `b`: None, a float, a NumPy scalar or an array."""
    if b is None:
        return None
    if isinstance(b, int | float) and not isinstance(b, np.generic):
        return 0.0
    array = as_array(op, "b", b)
    like = np.zeros(array.shape, parameter_dtype(op, "b", array.dtype))
    return like[()] if isinstance(b, np.generic) else like


def sums_of_targets(y: Array) -> Array:
    """Return the sum of each sample's probabilities, shape (N,); 1 for a label."""
    return np.ones(len(y)) if y.ndim == 1 else y.sum(axis=-1, dtype=np.float64)


def change_of_slopes(row: LossRow, second: Array, y: Array, u: Array) -> Any:
    """Return the slopes' change along a direction that changes the predictions by `u`."""
    if row.of_classes:
        return softmax_hessian_product(second, sums_of_targets(y), u)
    # Where the curvature overflowed, a prediction that does not change adds nothing.
    return np.where((u == 0) & (second == np.inf), 0, second * u)


def softmax_hessian_product(p: Array, s: Array, u: Array) -> Any:
    """Return s (diag p - p p^T) u, shape (..., K)."""
    # Less the likeliest class's u, so that the difference from the mean keeps its digits.
    u = u - np.take_along_axis(u, np.argmax(p, axis=-1, keepdims=True), -1)
    return s[..., None] * p * (u - np.sum(p * u, axis=-1, keepdims=True))


def check_rows(
    row: LossRow, y: Array, sample_weight: Array | None, n_outputs: int, first: int = 0
) -> None:
    """Raise a ValueError, as kernels do, for the first row with a bad target or weight.

    Row numbers start at `first`. The target of a row of weight 0 is not checked.
    """
    valid = row.targets.valid(y, n_outputs).reshape(len(y), -1).all(axis=1)
    bad = {"y": ~valid}
    if sample_weight is not None:
        bad["y"] &= sample_weight != 0
        bad["sample_weight"] = ~((sample_weight >= 0) & (sample_weight < np.inf))
    found = [(int(np.argmax(rows)), name) for name, rows in bad.items() if rows.any()]
    if found:
        i, name = min(found, key=lambda pair: pair[0])
        raise ValueError(name, first + i)


def check_direction(op: str, v: Any, model: Model, prefix: str = "v") -> tuple[Array, Array]:
    """Return a direction of a Hessian-vector product, shaped as the kernels' w and b.

    A part that is None is zero, a number fills its shape. The prefix is that of the parts' names.

    Raises
    ------
    TypeError
        If it is not a pair, or a dtype has no kernel.
    ValueError
        If its parts do not have the shapes of w and b.
    """
    if not isinstance(v, Sequence) or len(v) != 2:
        raise TypeError(f"{op}: v must be a pair (vw, vb), not {type(v).__name__}")
    direction = np.zeros_like(model.w), np.zeros_like(model.b)
    w_shape, like = model.kinds.w_shape, model.kinds.b
    for name, given, to, shape in zip("wb", v, direction, (w_shape, np.shape(like)), strict=True):
        if given is None:
            continue
        if name == "b" and like is None:
            raise ValueError(f"{op}: {prefix}b is given, but b is None")
        if is_weak(given):
            to[...] = as_number(op, f"{prefix}{name}", given)
            continue
        array = as_array(op, f"{prefix}{name}", given)
        kernel_dtype(op, f"{prefix}{name}", array.dtype)
        if array.shape != shape:
            raise ValueError(f"{op}: {prefix}{name} has shape {array.shape}, {name} has {shape}")
        to[...] = array.reshape(to.shape) if array.size == to.size else array
    return direction

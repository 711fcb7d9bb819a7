"""What every method of every elementwise primitive takes and gives, for tests that loop over all.

A `Call` is one method of one operation; `CALLS` lists them all from the table, so that a new row
is tested without a new line here.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import oracles
import pullback as pb
import pytest
from oracles import assert_same_bits
from pullback import config
from pullback.elementwise import make_elementwise
from pullback.oracle.engine import ORACLE
from pullback.products import Product
from pullback.tables.elementwise import OPS, OpRow
from pullback.tables.products import PRODUCTS

DTYPES = oracles.DTYPES

native: Any = config.native  # None for the NumPy backend
TARGETS: list[str] = [] if native is None else native.supported_targets()
# What has every primitive: the backend's own, and where that is not it, the twins.
TWINS: list[Any] = [pb] if native is None else [pb, pb.reference]


# What each door to another library needs; CI makes sure that all of it is there.
_DOORS = {"autograd": ["autograd"], "torch": ["torch"], "jax": ["jax", "pullback._jax"]}


def closed_doors() -> list[str]:
    """Return the doors whose libraries are not installed, which cannot be tested."""
    there = importlib.util.find_spec
    return [door for door, needs in _DOORS.items() if not all(map(there, needs))]


def twin_on(name: str, compute: Callable[..., Any]) -> Any:
    """Return the twin of a product that computes otherwise; see `oracle.products`."""
    row = PRODUCTS[name]
    kernels = SimpleNamespace(**vars(ORACLE.kernels))
    kernels.product_results = lambda _, *arguments: compute(row, *arguments)
    return Product(row, replace(ORACLE, kernels=kernels), make_elementwise(ORACLE))


# Per number of operands: arrays in, arrays out.
METHODS = {
    1: {
        "value": (1, 1),
        "derivative": (1, 1),
        "value_and_derivative": (1, 2),
        "second_derivative": (1, 1),
        "vjp": (2, 1),
        "jvp": (2, 1),
    },
    2: {
        "value": (2, 1),
        "derivative": (2, 2),
        "value_and_derivative": (2, 3),
        "second_derivative": (2, 3),
        "vjp": (3, 2),
        "jvp": (4, 1),
    },
}


class Call(NamedTuple):
    """One method of one elementwise operation."""

    op: str
    method: str
    nin: int
    nout: int

    @property
    def name(self) -> str:
        """The name in messages: ``tanh``, or ``tanh.vjp``."""
        return self.op if self.method == "value" else f"{self.op}.{self.method}"

    @property
    def row(self) -> OpRow:
        """The operation's row of the table."""
        return OPS[self.op]

    @property
    def is_ufunc(self) -> bool:
        """Whether the native method is a ufunc: values are, and derivatives of one operand."""
        single = ("derivative", "second_derivative")
        return self.method == "value" or (self.method in single and self.row.nin == 1)

    @property
    def is_single(self) -> bool:
        """Whether there is one result, of a ufunc or of a method that passes on to one."""
        return self.nout == 1

    def fitting(self, at: list[Any]) -> list[Any]:
        """Return arguments with cotangents and tangents in the shapes that they have to have."""
        primals, rest = at[: self.row.nin], at[self.row.nin :]
        shapes = [np.shape(primal) for primal in primals]
        if self.method == "vjp":
            shapes = [np.broadcast_shapes(*shapes)]
        return primals + [
            t if isinstance(t, int | float) else fitted(t, shape)
            for t, shape in zip(rest, shapes, strict=False)
        ]

    def of(self, primitives: Any) -> Any:
        """Return the callable among `primitives`: the module pullback or pullback.reference."""
        primitive = getattr(primitives, self.op)
        return primitive if self.method == "value" else getattr(primitive, self.method)

    def native(self) -> Any:
        """Return what pullback calls."""
        return self.of(pb)

    def twin(self) -> Any:
        """Return the NumPy twin."""
        return self.of(pb.reference)


CALLS = [
    Call(op, method, nin, nout)
    for op, row in OPS.items()
    for method, (nin, nout) in METHODS[row.nin].items()
]
UFUNC_CALLS = [call for call in CALLS if call.is_ufunc]
SINGLE_CALLS = [call for call in CALLS if call.is_single]
MULTIPLE_CALLS = [call for call in CALLS if not call.is_single]


def by_name(call: Call) -> str:
    """Return the id of a parametrised test."""
    return call.name


# --- tests of many --------------------------------------------------------------------------------


def each(
    names: str, values: Iterable[Any], label: Callable[[Any], Any] = str, by: Any = None
) -> Callable[[Any], Any]:
    """Run a test for each of many values: as `parametrize` does, without a report for every one.

    Parameters
    ----------
    names : str
        The test's parameter, or several with commas between, for which a value is a tuple.
    values : iterable
        The values; none at all is an error.
    label : callable
        What a value is called in the note on a failure.
    by : callable, optional
        One test for each of what this gives for the values; by default one for all of them.
    """
    split = [name.strip() for name in names.split(",")]
    groups: dict[str, list[Any]] = {}
    for value in values:
        groups.setdefault("" if by is None else str(by(value)), []).append(value)
    if not groups:
        raise AssertionError(f"no values for {names}: nothing would be tested")

    def decorate(test: Any) -> Any:
        signature = inspect.signature(test)
        others = [p for name, p in signature.parameters.items() if name not in split]
        own = [] if by is None else [inspect.Parameter("group", inspect.Parameter.KEYWORD_ONLY)]

        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            for value in groups["" if by is None else fixtures.pop("group")]:
                given = dict(zip(split, value if len(split) > 1 else [value], strict=True))
                try:
                    test(**given, **fixtures)
                except BaseException as error:
                    error.add_note(f"{names} = {label(value)}")
                    raise

        run.__signature__ = signature.replace(parameters=[*others, *own])  # type: ignore[attr-defined]
        return run if by is None else pytest.mark.parametrize("group", groups)(run)

    return decorate


def on_any_target(test: Any) -> Any:
    """Run a test on each instruction set, as one test that is told its name if it wants that.

    The NumPy backend counts as one, and so do the twins.
    """
    signature = inspect.signature(test)
    told = "target" in signature.parameters

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        if native is None or fixtures.get("primitives") is pb.reference:
            test(**fixtures, **({"target": "numpy"} if told else {}))
            return
        before = native.active_target()
        try:
            for name in TARGETS:
                native.set_target(name)
                assert native.active_target() == name
                test(**fixtures, **({"target": name} if told else {}))
        except BaseException as error:
            error.add_note(f"on {native.active_target()}")
            raise
        finally:
            native.set_target(before)

    others = [p for name, p in signature.parameters.items() if name != "target"]
    run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
    return run


def on_every_target(test: Any) -> Any:
    """Run a test on each instruction set that there is, as `on_any_target`; not without any."""
    return pytest.mark.native(on_any_target(test))


def of_every(listed: list[Call], by: str = "method") -> Callable[[Any], Any]:
    """Run a test for each of some calls, as one test for each method, or each ``op``."""
    return each("call", listed, by_name, by=attrgetter(by))


calls = of_every(CALLS)
single_calls = of_every(SINGLE_CALLS)
rows = each("row", OPS.values(), label=attrgetter("name"))
dtypes = each("dtype", DTYPES)
backends = each("primitives", TWINS, label=lambda module: module.__name__)


def fitted(array: Any, shape: tuple[int, ...]) -> Any:
    """Return an array in a shape: repeated, or where that cannot be, its first element."""
    array = np.asarray(array)
    if array.shape == shape:
        return array
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        return np.broadcast_to(array[(0,) * array.ndim], shape)


def leaves(tree: Any) -> Iterator[Any]:
    """Yield what a nested tuple holds, from left to right."""
    if isinstance(tree, tuple):
        for branch in tree:
            yield from leaves(branch)
    else:
        yield tree


def out_argument(outs: list[Any]) -> Any:
    """Return `outs` as a method takes it: the array itself, or a tuple of several."""
    return outs[0] if len(outs) == 1 else tuple(outs)


# --- comparisons ----------------------------------------------------------------------------------


def assert_same_leaves(actual: Any, desired: Any) -> None:
    """Fail unless two results, arrays or nested tuples, agree in structure and bits."""
    assert _structure(actual) == _structure(desired)
    for one, other in zip(leaves(actual), leaves(desired), strict=True):
        if one is not None:
            assert_same_bits(one, other)


def _structure(tree: Any) -> Any:
    """Return what is a tuple, what is None and what is a result in a tree."""
    return tuple(map(_structure, tree)) if isinstance(tree, tuple) else tree is None


def ulp_distance(actual: Any, desired: Any, scale: Any = 0) -> np.ndarray[Any, Any]:
    """Return |actual - desired| in ULP of the larger of `desired` and `scale`, for each element.

    An infinity counts as the first power of two that overflows. Where just one is NaN, or zeros
    or infinities differ in sign, or a zero's sign differs from its opposite's, it is infinite.
    """
    precision, emin, emax = oracles.FORMATS[np.dtype(desired.dtype)]
    with np.errstate(all="ignore"):
        overflow = np.ldexp(np.longdouble(1), emax + 1)
        a, d = (
            np.where(np.isinf(v), np.copysign(overflow, v), v.astype(np.longdouble))
            for v in (actual, desired)
        )
        size = np.minimum(np.fmax(np.abs(d), scale), overflow)
        exponent = np.maximum(np.frexp(size)[1] - 1, emin)
        exponent = np.where(size == 0, emin, exponent)
        distance = np.abs(a - d) / np.ldexp(np.longdouble(1), exponent - precision + 1)
    wrong = np.isnan(actual) != np.isnan(desired)
    wrong |= (np.signbit(actual) != np.signbit(desired)) & ~np.isnan(desired)
    distance[np.isnan(distance)] = 0  # both NaN, or it is `wrong`
    distance[wrong] = np.inf
    return distance


def assert_close_in_ulp(
    actual: np.ndarray[Any, Any],
    desired: np.ndarray[Any, Any],
    bound: float,
    at: tuple[np.ndarray[Any, Any], ...],
    scale: Any = 0,
) -> None:
    """Fail where `actual` is further than `bound` ULP from `desired`; `at` are the arguments.

    Units are those of the larger of `desired` and `scale`.
    """
    assert actual.dtype == desired.dtype
    assert actual.shape == desired.shape
    distance = ulp_distance(actual, desired, scale)
    i = int(np.argmax(distance))
    if not distance[i] <= bound:
        raise AssertionError(
            f"{float(distance[i]):.4g} ULP > {bound:g} at {[x[i] for x in at]}: "
            f"{actual[i]!r} is not {desired[i]!r}"
        )


# --- arguments ------------------------------------------------------------------------------------


def arguments(
    call: Call, dtype: np.dtype[Any], n: int, seed: int = 0
) -> tuple[np.ndarray[Any, Any], ...]:
    """Return `n` elements for each argument: special values, tails and ordinary numbers mixed."""
    rng = np.random.default_rng([seed, n, call.nin])
    special = oracles.special_values(dtype)
    arrays = []
    for _ in range(call.nin):
        kind = rng.integers(0, 4, n)
        array = np.where(kind == 0, rng.choice(special, n), rng.normal(0, 3, n).astype(dtype))
        array = np.where(kind == 1, rng.uniform(-120, 120, n).astype(dtype), array)
        arrays.append(array.astype(dtype))
    if call.nin > 1 and n:  # ties
        arrays[1][:: 1 + n // 8] = arrays[0][:: 1 + n // 8]
    return tuple(arrays)


def ordinary(
    call: Call, dtype: Any, shape: int | tuple[int, ...], seed: int = 0
) -> tuple[np.ndarray[Any, Any], ...]:
    """Return arguments well inside the domain, of any shape."""
    rng = np.random.default_rng([seed, call.nin])
    ranges = [domain.ordinary for domain in call.row.domain] + [(0.5, 2.0)] * 4
    return tuple(rng.uniform(*ends, shape).astype(dtype) for ends in ranges[: call.nin])

"""Engines: the functions that the primitives run on, native or the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback import calculus
from pullback.config import native
from pullback.contraction import Product, numpy_product
from pullback.oracle import losses, reductions
from pullback.tables.losses import LOSSES
from pullback.tables.reductions import REDUCTIONS

__all__ = ["BACKEND", "ORACLE", "Engine"]

Array: TypeAlias = npt.NDArray[Any]


# The methods of products that the bindings know.
_PRODUCT_ENTRIES: Final = {
    ("matmul", "__call__"): "product",
    ("matmul", "vjp"): "cotangents",
    ("matmul", "jvp"): "tangent",
    ("linear", "__call__"): "layer",
    ("linear", "vjp"): "layer_cotangents",
}


@dataclass(frozen=True, eq=False)
class Engine:
    """What computes.

    Parameters
    ----------
    is_native : bool
        Whether methods may enter the kernels at once.
    kernels : module or namespace
        ``reduce_slices``, ``reduce_tangents`` and ``transform_slices``, as in
        `pullback.oracle.reductions`, ``loss_sums`` and ``loss_pointwise``, as in
        `pullback.oracle.losses`, all of which take a row's name for the row, and its
        ``softmax_hessians``.
    products : mapping
        A `pullback.calculus.Kernels` for each matrix product.
    """

    is_native: bool
    kernels: Any
    products: Mapping[str, calculus.Kernels]

    def direct_product(self, name: str, method: str, fallback: Any) -> Any:
        """Return a product's method that enters the kernels at once where it can."""
        entry = _PRODUCT_ENTRIES.get((name, method)) if self.is_native else None
        return fallback if entry is None else self.kernels.matmul_method(entry, fallback)

    def module(self, column: str) -> str:
        """Return the module whose attributes a column's primitives are, for pickle."""
        return f"pullback.{column}" if self.is_native else "pullback.reference"

    @property
    def remark(self) -> str:
        """What sets primitives apart in their repr."""
        return "" if self.is_native else ", NumPy twin"


# --- the oracle's ---------------------------------------------------------------------------------


def calculus_of(product: Product) -> dict[str, calculus.Kernels]:
    """Return what every matrix product is made of, for one that multiplies matrices."""
    return {
        "matmul": calculus.Matmul(product),
        "linear": calculus.Linear(product),
        "quadratic_form": calculus.QuadraticForm(product),
        "bilinear_form": calculus.BilinearForm(product),
    }


def _by_name(table: Mapping[str, Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a row as one of the row's name."""
    return lambda name, *arguments: function(table[name], *arguments)


ORACLE: Final = Engine(
    False,
    SimpleNamespace(
        reduce_slices=_by_name(REDUCTIONS, reductions.reduce_slices),
        reduce_tangents=_by_name(REDUCTIONS, reductions.reduce_tangents),
        transform_slices=_by_name(REDUCTIONS, reductions.transform_slices),
        loss_sums=_by_name(LOSSES, losses.loss_sums),
        loss_pointwise=_by_name(LOSSES, losses.loss_pointwise),
        softmax_hessians=losses.softmax_hessians,
    ),
    calculus_of(numpy_product),
)

# --- the native one's -----------------------------------------------------------------------------


class NativeMatmul(calculus.Matmul):
    """Products whose cotangents, and tangents, are one job."""

    def __init__(self, kernels: ModuleType, product: Product) -> None:
        super().__init__(product)
        self._cotangents_into = _strict(kernels, "cotangents_into")
        self._new = _strict(kernels, "new_array")
        self._tangent_into = _strict(kernels, "tangent_into")

    def cotangents(
        self,
        A: Array,
        B: Array,
        G: Array,
        wrt: tuple[int, ...],
        out: tuple[Array | None, ...],
    ) -> tuple[Array, ...]:
        A, B, G = map(_whole_strides, (A, B, G))
        targets = [self._new(x, x.shape) if i in wrt else None for i, x in enumerate((A, B))]
        for i, target in zip(wrt, out, strict=True):
            if target is not None:
                targets[i] = target
        cotangents = self._cotangents_into(A, B, G, *targets)
        return tuple(cotangents[i] for i in wrt)

    def tangent(
        self, A: Array, B: Array, tA: Array | None, tB: Array | None, out: Array | None
    ) -> Array:
        if tA is None or tB is None:
            return super().tangent(A, B, tA, tB, out)
        tangent: Array = self._tangent_into(*map(_whole_strides, (A, B, tA, tB)), out)
        return tangent


class NativeLinear(calculus.Linear):
    """Linear layers whose bias and activation are part of the products' jobs."""

    def __init__(self, kernels: ModuleType, product: Product) -> None:
        super().__init__(product)
        self._into = _strict(kernels, "linear")
        self._new = _strict(kernels, "new_array")
        self._cotangents_into = _strict(kernels, "linear_cotangents")

    def value(self, X: Array, W: Array, b: Array | None, activation: Any, out: Any) -> Array:
        X, W = _whole_strides(X), _whole_strides(W)
        if out is None or not _has_plain_rows(out):
            result: Array = self._new(X, (len(X), W.shape[1]))
        else:
            result = out
        bias = None if b is None else np.ascontiguousarray(b)
        self._into(X, W, bias, _name_of(activation), result)
        if out is None or out is result:
            return result
        out[...] = result
        return out  # type: ignore[no-any-return]

    def cotangents(
        self,
        X: Array,
        W: Array,
        b: Array | None,
        G: Array,
        activation: Any,
        wrt: tuple[int, ...],
        out: tuple[Array | None, ...],
    ) -> tuple[Array | None, ...]:
        X, W = _whole_strides(X), _whole_strides(W)
        results: list[Any] = [None, None, None]
        for i, target in zip(wrt, out, strict=True):
            shape = (X.shape, W.shape, None if b is None else b.shape)[i]
            if shape is None:
                continue
            usable = target is not None and (
                target.flags.c_contiguous if i == 2 else _whole_strides(target) is target
            )
            results[i] = target if usable else self._new(X, shape)
        bias = None if b is None else np.ascontiguousarray(b)
        G = G if _has_plain_rows(G) else np.ascontiguousarray(G)
        name = _name_of(activation)
        self._cotangents_into(X, W, bias, G, name, *results)
        for i, target in zip(wrt, out, strict=True):
            if target is not None and target is not results[i]:
                target[...] = results[i]
                results[i] = target
        return tuple(results[i] for i in wrt)


class _OnePass:
    """u^T X v, X v and u^T X in one pass over X, with float64 sums."""

    def __init__(self, kernels: ModuleType) -> None:
        self._kernel = _strict(kernels, "bilinear_form")

    def __call__(self, u: Array, X: Array, v: Array) -> tuple[Array, Array, Array]:
        """Return the form and its gradients by u and by v, in X's dtype."""
        if not _has_plain_rows(X):
            if _has_plain_rows(X.T):
                value, uX, Xv = self(v, X.T, u)
                return value, Xv, uX
            X = np.ascontiguousarray(X)
        u, v = (np.ascontiguousarray(x, np.float64) for x in (u, v))
        Xv, uX = np.empty(len(X)), np.empty(X.shape[1])
        value = np.asarray(self._kernel(u, X, v, Xv, uX))
        return value.astype(X.dtype), Xv.astype(X.dtype), uX.astype(X.dtype)


class NativeQuadraticForm(calculus.QuadraticForm):
    """A quadratic form whose value and gradient read the matrix once."""

    def __init__(self, kernels: ModuleType, product: Product) -> None:
        super().__init__(product)
        self._one_pass = _OnePass(kernels)

    def value_and_grad(
        self, x: Array, A: Array, wrt: tuple[int, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        value, Ax, xA = self._one_pass(x, A, x)
        gradients = tuple(np.multiply.outer(x, x) if i == 1 else Ax + xA for i in wrt)
        return value, gradients


class NativeBilinearForm(calculus.BilinearForm):
    """A bilinear form whose value and gradients read the matrix once."""

    def __init__(self, kernels: ModuleType, product: Product) -> None:
        super().__init__(product)
        self._one_pass = _OnePass(kernels)

    def value_and_grad(
        self, u: Array, X: Array, v: Array, wrt: tuple[int, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        value, Xv, uX = self._one_pass(u, X, v)

        def gradient(i: int) -> Array:
            if i == 1:
                return np.multiply.outer(u, v)
            return Xv if i == 0 else uX

        return value, tuple(map(gradient, wrt))


def _name_of(activation: Any) -> str | None:
    return None if activation is None else activation.__name__.rpartition(".")[2]


def _has_plain_rows(array: Array) -> bool:
    """Tell whether rows are contiguous and whole elements apart."""
    item = array.itemsize
    return type(array) is np.ndarray and (
        array.size == 0
        or ((array.shape[1] == 1 or array.strides[1] == item) and array.strides[0] % item == 0)
    )


def _strict(kernels: ModuleType, name: str) -> Callable[..., Any]:
    """Return a kernel for arguments that have been checked and converted."""

    def refuse(*arguments: Any) -> Any:
        shapes = [getattr(x, "shape", x) for x in arguments]
        raise AssertionError(f"matmul: no kernel {name} for converted arguments {shapes}")

    return kernels.matmul_method(name, refuse)  # type: ignore[no-any-return]


def _whole_strides(array: Array) -> Array:
    """Return `array` as an exact ndarray whose strides are whole elements."""
    array = np.asarray(array)
    if all(stride % array.itemsize == 0 for stride in array.strides):
        return array
    return array.copy()


def _native_product(kernels: ModuleType) -> Product:
    into = _strict(kernels, "product_into")

    def product(A: Array, B: Array, out: Array | None) -> Array:
        if out is None or _whole_strides(out) is out:
            result: Array = into(_whole_strides(A), _whole_strides(B), out)
            return result
        out[...] = into(_whole_strides(A), _whole_strides(B), None)
        return out

    return product


def _native(kernels: ModuleType) -> Engine:
    product = _native_product(kernels)
    return Engine(
        True,
        kernels,
        {
            "matmul": NativeMatmul(kernels, product),
            "linear": NativeLinear(kernels, product),
            "quadratic_form": NativeQuadraticForm(kernels, product),
            "bilinear_form": NativeBilinearForm(kernels, product),
        },
    )


# --- the one in use -------------------------------------------------------------------------------

BACKEND: Final = ORACLE if native is None else _native(native)

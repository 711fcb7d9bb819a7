"""A linear layer and its derivatives: a matrix product, a bias, an activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.contraction import Product, numpy_product
from pullback.jacobians import Diagonal, Identity, Jacobian, Kronecker
from pullback.jacobians.moves import broadcasting
from pullback.protocol import shown
from pullback.reference.arguments import (
    Outputs,
    Primitive,
    aligned,
    as_matrix,
    check_tangents,
    check_wrt,
    tangents_of,
)
from pullback.reference.elementwise import elementwise
from pullback.tables.elementwise import OPS

__all__ = ["Linear", "linear"]

Array: TypeAlias = npt.NDArray[Any]

_NAMES = ("X", "W", "b")


class Linear(Primitive):
    """A linear layer; see `__call__`, `vjp`, `jvp` and `jacobian`.

    Parameters
    ----------
    product : callable
        As for `pullback.reference.arguments.Primitive`.
    module : str
        As there.
    activations : mapping
        The elementwise primitives, by name, that compute the activations.
    """

    _name = "linear"

    def __init__(self, product: Product, module: str, activations: Mapping[str, Any]) -> None:
        super().__init__(product, module)
        self._activations = activations

    def __call__(
        self,
        X: npt.ArrayLike,
        W: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
        /,
        *,
        activation: Any = None,
        out: Array | None = None,
    ) -> Any:
        """Return activation(X @ W + b).

        Parameters
        ----------
        X : array_like, shape (k,) or (..., k)
            Samples; axes in front of the last are their batch.
        W : array_like, shape (k, n)
            Weights.
        b : array_like, shape (n,), optional
            Bias.
        activation : primitive, optional
            A unary elementwise primitive, such as `pullback.relu`.
        out : ndarray, optional
            Overwritten with the result, of exactly its shape and dtype; may overlap the arguments.

        Returns
        -------
        ndarray, shape (n,) or (..., n)
            `out` where that is given.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64, or an activation
            that is no unary elementwise primitive.
        ValueError
            If the shapes do not fit.
        """
        f = self._activation("linear", activation)
        arrays = samples, weights, bias = _arrays("linear", X, W, b)
        shape = _result_shape("linear", *arrays)
        outputs = Outputs("linear", out, [shape], samples.dtype, arrays, single=True)
        rows = as_matrix(samples)
        (target,) = outputs.targets((len(rows), shape[-1]))
        with np.errstate(all="ignore"):
            return outputs.deliver([self._value(rows, weights, bias, f, target)])[0]

    def vjp(
        self,
        X: npt.ArrayLike,
        W: npt.ArrayLike,
        b: npt.ArrayLike | None,
        G: npt.ArrayLike,
        /,
        *,
        activation: Any = None,
        wrt: int | tuple[int, ...] = (0, 1, 2),
        out: Any = None,
    ) -> Any:
        """Return the cotangents (dX, dW, db).

        Parameters
        ----------
        X : array_like, shape (k,) or (..., k)
            Samples.
        W : array_like, shape (k, n)
            Weights.
        b : array_like, shape (n,), or None
            Bias.
        G : array_like, shape (n,) or (..., n)
            Cotangent of the result.
        activation : primitive, optional
            As in the call. With one, X @ W + b is computed anew.
        wrt : int or tuple of int, default (0, 1, 2)
            The arguments whose cotangents to compute; an int for one array, not a tuple.
        out : ndarray, or tuple of ndarray or None, optional
            Overwritten with the results, of exactly their shapes and dtype: one array where `wrt`
            is an int, else one entry for each. They may overlap the arguments, not each other.

        Returns
        -------
        dX, dW, db : ndarray, shapes of `X`, `W` and `b`
            With H = activation.vjp(X @ W + b, G): H @ W^T, and X^T @ H and the sum of H over all
            samples. The sum of H accumulates in float64. Without a bias, None stands for its
            cotangent in a tuple of several.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64, or an activation
            that is no unary elementwise primitive.
        ValueError
            If the shapes do not fit, or nothing but the cotangent of an absent bias is asked for.
        """
        op = "linear.vjp"
        asked = check_wrt(op, wrt, 3)
        f = self._activation(op, activation)
        if b is None and asked.operands == (2,):
            raise ValueError(f"{op}: wrt is {shown(wrt)}, but b is None")
        arrays = _arrays(op, X, W, b, G)
        samples, weights, bias, cotangent = arrays
        shape = _result_shape(op, *arrays[:3])
        if cotangent.shape != shape:
            raise ValueError(
                f"{op}: G has shape {cotangent.shape}, {_listed(*arrays[:3])} give {shape}"
            )
        shapes = [None if a is None else a.shape for a in arrays]
        asked_shapes = [shapes[i] for i in asked.operands]
        outputs = Outputs(op, out, asked_shapes, samples.dtype, arrays, single=asked.single)
        rows, G2 = as_matrix(samples), as_matrix(cotangent)
        views = (rows.shape, *shapes[1:])
        targets = outputs.targets(*(views[i] for i in asked.operands))
        with np.errstate(all="ignore"):
            cotangents = self._cotangents(rows, weights, bias, G2, f, asked.operands, targets)
            return asked.result(outputs.deliver(cotangents))

    def jvp(
        self,
        X: npt.ArrayLike,
        W: npt.ArrayLike,
        b: npt.ArrayLike | None,
        tX: npt.ArrayLike | None,
        tW: npt.ArrayLike | None,
        tb: npt.ArrayLike | None,
        /,
        *,
        activation: Any = None,
        out: Array | None = None,
    ) -> Any:
        """Return the tangent of the result.

        Parameters
        ----------
        X : array_like, shape (k,) or (..., k)
            Samples.
        W : array_like, shape (k, n)
            Weights.
        b : array_like, shape (n,), or None
            Bias.
        tX, tW, tb : array_like, shapes of `X`, `W` and `b`, or None
            Tangents; None is zero, and saves its product.
        activation : primitive, optional
            As in the call. With one, X @ W + b is computed anew.
        out : ndarray, optional
            Overwritten with the result, of exactly its shape and dtype; may overlap the arguments.

        Returns
        -------
        ndarray, shape (n,) or (..., n)
            activation.jvp(X @ W + b, tX @ W + X @ tW + tb).

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64, or an activation
            that is no unary elementwise primitive.
        ValueError
            If the shapes do not fit, all tangents are None, or `tb` is given without `b`.
        """
        op = "linear.jvp"
        f = self._activation(op, activation)
        primals, tangents = tangents_of(op, (X, W, b), (tX, tW, tb), _NAMES)
        shape = _result_shape(op, *primals)
        check_tangents(op, primals, tangents, _NAMES)
        inputs = (*primals, *tangents)
        outputs = Outputs(op, out, [shape], primals[0].dtype, inputs, single=True)
        samples, weights, bias = primals
        t_samples, t_weights, t_bias = tangents
        rows = as_matrix(samples)
        t_rows = None if t_samples is None else as_matrix(t_samples)
        (target,) = outputs.targets((len(rows), shape[-1]))
        with np.errstate(all="ignore"):
            tangent = self._tangent(rows, weights, bias, t_rows, t_weights, t_bias, f, target)
            return outputs.deliver([tangent])[0]

    def jacobian(
        self,
        X: npt.ArrayLike,
        W: npt.ArrayLike,
        b: npt.ArrayLike | None = None,
        /,
        *,
        activation: Any = None,
    ) -> tuple[Jacobian, Jacobian, Jacobian | None]:
        """Return the Jacobians with respect to `X`, `W` and `b`.

        Parameters
        ----------
        X : array_like, shape (k,) or (..., k)
            Samples.
        W : array_like, shape (k, n)
            Weights.
        b : array_like, shape (n,), optional
            Bias.
        activation : primitive, optional
            As in the call.

        Returns
        -------
        tuple of three Jacobian
            I (x) W^T and X (x) I, each a `Kronecker` that holds a copy, and a `Broadcast`; with an
            activation, a `Diagonal` of its derivative at X @ W + b in front of each. None stands
            for that of an absent bias.

        Raises
        ------
        TypeError
            For a dtype other than bool, integers, float16, float32 and float64, or an activation
            that is no unary elementwise primitive.
        ValueError
            If the shapes do not fit.
        """
        op = "linear.jacobian"
        f = self._activation(op, activation)
        samples, weights, bias = _arrays(op, X, W, b)
        shape = _result_shape(op, samples, weights, bias)
        rows = as_matrix(samples)
        slopes: Diagonal | Identity = Identity(shape, samples.dtype)
        if f is not None:
            with np.errstate(all="ignore"):
                Z = self._value(rows, weights, bias, None, None)
                slopes = Diagonal(f.derivative(Z).reshape(shape), copy=False)
        by_X = Kronecker(len(rows), weights.T, input_shape=samples.shape, output_shape=shape)
        by_W = Kronecker(rows, shape[-1], output_shape=shape)
        if bias is None:
            return slopes @ by_X, slopes @ by_W, None
        by_b = broadcasting(bias.shape, shape, samples.dtype)
        return slopes @ by_X, slopes @ by_W, slopes @ by_b

    # --- what kernels may replace ---

    def _value(self, X: Array, W: Array, b: Array | None, activation: Any, out: Any) -> Array:
        """Return activation(X @ W + b), in `out` where that is given, with X (N, k)."""
        Z = self._product(X, W, out)
        if b is not None:
            Z += b
        if activation is not None:
            activation(Z, out=Z)
        return Z

    def _cotangents(
        self,
        X: Array,
        W: Array,
        b: Array | None,
        G: Array,
        activation: Any,
        wrt: tuple[int, ...],
        out: tuple[Array | None, ...],
    ) -> tuple[Array | None, ...]:
        """Return the cotangents of the arguments in `wrt`, in their order.

        Parameters
        ----------
        X : ndarray, shape (N, k)
        W : ndarray, shape (k, n)
        b : ndarray, shape (n,), or None
        G : ndarray, shape (N, n)
        activation : elementwise primitive of this backend, or None
        wrt : tuple of distinct int, 0 to 2
        out : tuple of ndarray or None
            For each of `wrt`, where to write: in the argument's shape, of any strides, aligned,
            overlapping no input. What is not None has to be used.

        Returns
        -------
        tuple of ndarray, in the arguments' shapes; None for an absent bias
        """
        if activation is not None:
            Z = self._value(X, W, b, None, None)
            G = activation.vjp(Z, G, out=Z)

        def cotangent(i: int, target: Array | None) -> Array | None:
            if i == 0:
                return self._product(G, W.mT, target)
            if i == 1:
                return self._product(X.mT, G, target)
            if b is None:
                return None
            db = np.sum(G, axis=0, dtype=np.float64)
            if target is None:
                return db.astype(G.dtype)
            np.copyto(target, db, casting="same_kind")
            return target

        return tuple(cotangent(i, target) for i, target in zip(wrt, out, strict=True))

    def _tangent(
        self,
        X: Array,
        W: Array,
        b: Array | None,
        tX: Array | None,
        tW: Array | None,
        tb: Array | None,
        activation: Any,
        out: Array | None,
    ) -> Array:
        """Return the tangent of the result, in `out` where that is given, with X and tX (N, k)."""
        if tX is not None:
            tangent = self._product(tX, W, out)
            if tW is not None:
                tangent += self._product(X, tW, None)
        elif tW is not None:
            tangent = self._product(X, tW, out)
        else:
            tangent = np.empty((len(X), W.shape[1]), X.dtype) if out is None else out
            tangent[...] = 0
        if tb is not None:
            tangent += tb
        if activation is not None:
            activation.jvp(self._value(X, W, b, None, None), tangent, out=tangent)
        return tangent

    def _activation(self, op: str, activation: Any) -> Any:
        """Return this backend's primitive for an activation, or None for None."""
        if activation is None:
            return None
        name = str(getattr(activation, "__name__", "")).rpartition(".")[2]
        known = name in OPS and OPS[name].nin == 1
        if known and (
            activation is self._activations[name]
            or activation is elementwise[name]
            or _is_ufunc_of_ours(activation, name)
        ):
            return self._activations[name]
        raise TypeError(
            f"{op}: activation must be None or a unary elementwise primitive of pullback, "
            f"not {shown(activation)}"
        )


def _is_ufunc_of_ours(activation: Any, name: str) -> bool:
    return (
        isinstance(activation, np.ufunc)
        and activation.__name__ == f"elementwise.{name}"
        and activation.__module__ == "pullback"
    )


def _arrays(op: str, X: Any, W: Any, b: Any, *more: Any) -> tuple[Any, ...]:
    """Convert the arguments, of which a bias may be None, and a cotangent."""
    names = (*_NAMES, "G")[: 3 + len(more)]
    given = [(a, name) for a, name in zip((X, W, b, *more), names, strict=True)]
    given = [(a, name) for a, name in given if a is not None or name != "b"]
    arrays: list[Any] = [*aligned(op, *(a for a, _ in given), names=[name for _, name in given])]
    if b is None:
        arrays.insert(2, None)
    return tuple(arrays)


def _listed(X: Array, W: Array, b: Array | None) -> str:
    bias = "" if b is None else f", b has shape {b.shape}"
    return f"X has shape {X.shape}, W has shape {W.shape}{bias}"


def _result_shape(op: str, X: Array, W: Array, b: Array | None) -> tuple[int, ...]:
    """Return the shape of X @ W + b, or raise a ValueError that names the shapes."""
    shapes = f"{op}: {_listed(X, W, b)}"
    if X.ndim == 0:
        raise ValueError(f"{shapes}: X needs at least one axis")
    if W.ndim != 2:
        raise ValueError(f"{shapes}: W needs two axes")
    k, n = W.shape
    if X.shape[-1] != k:
        raise ValueError(f"{shapes}: the contracted axes have lengths {X.shape[-1]} and {k}")
    if b is not None and b.shape != (n,):
        raise ValueError(f"{shapes}: b needs ({n},)")
    return (*X.shape[:-1], n)


linear = Linear(numpy_product, "pullback.reference", elementwise)

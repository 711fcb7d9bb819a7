"""Jacobians of products of matrices."""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pullback.contraction import summed_product
from pullback.jacobians.arguments import (
    Array,
    Scaling,
    as_shape,
    multiply,
    own,
    presented,
    product,
    silent,
)
from pullback.jacobians.base import Shaped, identity_matrix
from pullback.protocol import as_index, shown
from pullback.shapes import broadcast_shapes, with_room

__all__ = ["Kronecker", "extents"]


class Kronecker(Shaped):
    """The Jacobian of ``T -> L T R^T``, the Kronecker product of L and R.

    It represents the matrix, in numerator layout, of the map between row-major flattened arrays,
    and stores the factors. With batches of factors, operands or results, the map applies to each
    item of the broadcast batch. It is summed over the axes that the results' batch lacks, or that
    have extent 1 there. It is immutable and supports SciPy's ``LinearOperator`` protocol.

    Parameters
    ----------
    left : array_like, shape (..., p, q), or int
        L; an integer stands for the identity of that size.
    right : array_like, shape (..., r, s), or int
        R, or likewise the size of an identity.
    input_batch, output_batch : tuple of int, optional
        Batches of the operand and of the result; the default is the factors' batch.
    input_shape : tuple of int, optional
        Shape of the operand, with as many elements as the default ``(*input_batch, q, s)``.
    output_shape : tuple of int, optional
        Shape of the result, with as many elements as the default ``(*output_batch, p, r)``.
    copy : bool, default True
        False takes over factors that nobody else writes to.

    Raises
    ------
    TypeError
        For a dtype that has no kernel.
    ValueError
        If a factor is not a matrix, or the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> J = Kronecker(2, [[1.0, 10.0, 100.0]])  # of A @ B with respect to A, for a column B
    >>> J
    <Kronecker 2x6 float64, identity 2 by 1x3, operand shape (2, 3), result shape (2, 1)>
    >>> J @ np.ones((2, 3))
    array([[111.],
           [111.]])
    >>> np.array([[1.0], [2.0]]) @ J
    array([[  1.,  10., 100.],
           [  2.,  20., 200.]])
    """

    __slots__ = ("_batches", "_left", "_right")

    _left: Array | int
    _right: Array | int
    _batches: tuple[tuple[int, ...], tuple[int, ...]]  # of the operand and of the result

    def __init__(
        self,
        left: npt.ArrayLike | int,
        right: npt.ArrayLike | int,
        *,
        input_batch: tuple[int, ...] | None = None,
        output_batch: tuple[int, ...] | None = None,
        input_shape: tuple[int, ...] | None = None,
        output_shape: tuple[int, ...] | None = None,
        copy: bool = True,
    ) -> None:
        self._left = _factor("left", left, copy=copy)
        self._right = _factor("right", right, copy=copy)
        batches = _batch(self._left), _batch(self._right)
        if input_batch is not None:
            input_batch = as_shape("Kronecker", "input_batch", input_batch)
        if output_batch is not None:
            output_batch = as_shape("Kronecker", "output_batch", output_batch)
        given = [batch for batch in (input_batch, output_batch) if batch is not None]
        try:
            own = broadcast_shapes(*batches)
            broadcast_shapes(*batches, *given)
        except ValueError:
            raise ValueError(
                f"Kronecker: batches {', '.join(map(str, (*batches, *given)))} of factors, operand "
                "and result do not broadcast"
            ) from None
        input_batch = own if input_batch is None else input_batch
        output_batch = own if output_batch is None else output_batch
        self._batches = input_batch, output_batch
        (p, q), (r, s) = extents(self._left), extents(self._right)
        self._input_shape = presented("Kronecker", "input", input_shape, (*input_batch, q, s))
        self._output_shape = presented("Kronecker", "output", output_shape, (*output_batch, p, r))
        dense = [factor.dtype for factor in self._factors() if not isinstance(factor, int)]
        self._dtype = np.result_type(*dense) if dense else np.dtype(np.float64)
        self._make_room()

    @staticmethod
    def _of(
        left: Array | int,
        right: Array | int,
        batches: tuple[tuple[int, ...], tuple[int, ...]],
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> Kronecker:
        """Return the Jacobian of factors that nobody else writes to, of shapes that fit.

        `batches` are those of the operand and of the result.
        """
        J: Kronecker = object.__new__(Kronecker)
        J._left, J._right = left, right
        if type(left) is not int:
            left.setflags(write=False)  # type: ignore[union-attr]
        if type(right) is not int:
            right.setflags(write=False)  # type: ignore[union-attr]
        J._batches = batches
        J._input_shape, J._output_shape, J._dtype = input_shape, output_shape, dtype
        return J

    def _make_room(self) -> None:
        """Merge axes of batches that have too many for the arrays of products and elements."""
        batches = *map(_batch, self._factors()), *self._batches
        few = with_room(4, *batches)
        if few is not batches:
            self._left, self._right = (
                factor if isinstance(factor, int) else _with_batch(factor, batch)
                for factor, batch in zip(self._factors(), few[:2], strict=True)
            )
            self._batches = few[2], few[3]

    @property
    def nbytes(self) -> int:
        """Bytes stored: those of the factors; identities store none."""
        return sum(0 if isinstance(factor, int) else factor.nbytes for factor in self._factors())

    @property
    def T(self) -> Kronecker:
        """The transposed Jacobian, a view of this one."""
        left, right = self._left, self._right
        return Kronecker._of(
            _transposed(left),
            _transposed(right),
            self._batches[::-1],
            self._output_shape,
            self._input_shape,
            self._dtype,
        )

    def _structure(self) -> str:
        def shown(factor: Array | int) -> str:
            if isinstance(factor, int):
                return f"identity {factor}"
            *batch, rows, columns = factor.shape
            return f"{rows}x{columns}" + (f" (batch {tuple(batch)})" if batch else "")

        left, right = map(shown, self._factors())
        return f", {left} by {right}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, since a pickled array forgets that it is read-only.
        return partial(Kronecker, **self._shapes()), self._factors()

    def _shapes(self) -> dict[str, Any]:
        """Return the constructor's arguments other than the factors."""
        return {
            "input_batch": self._batches[0],
            "output_batch": self._batches[1],
            "input_shape": self._input_shape,
            "output_shape": self._output_shape,
        }

    @property
    def left(self) -> Array | int:
        """L, read-only, or the size of an identity."""
        return self._left

    @property
    def right(self) -> Array | int:
        """R, read-only, or the size of an identity."""
        return self._right

    def _factors(self) -> tuple[Array | int, Array | int]:
        return self._left, self._right

    def _times(self, tangents: Array) -> Array:
        return _moved(self._left, self._right, self._batches, tangents)

    def _pull(self, cotangents: Array) -> Array:
        left, right = _transposed(self._left), _transposed(self._right)
        return _moved(left, right, self._batches[::-1], cotangents)

    @property
    def _is_plain(self) -> bool:
        """Whether there are no batches."""
        return not (
            any(self._batches)
            or (type(self._left) is not int and self._left.ndim > 2)  # type: ignore[union-attr]
            or (type(self._right) is not int and self._right.ndim > 2)  # type: ignore[union-attr]
        )

    def flops(self, k: int = 1) -> int:
        """Return the operations of the cheaper order of products with the factors, k times."""
        (p, q), (r, s) = extents(self._left), extents(self._right)
        left, right = type(self._left) is not int, type(self._right) is not int
        if self._is_plain:
            if left and right:
                return 2 * k * min(p * s * (q + r), q * r * (s + p))
            return 2 * k * p * s * (q * left + r * right)
        batches = [self._batches[0], *map(_batch, self._factors())]
        one = [math.prod(broadcast_shapes(batches[0], batch)) for batch in batches[1:]]
        both = math.prod(broadcast_shapes(*batches))
        if left and right:
            left_first = one[0] * p * q * s + both * p * r * s
            return 2 * k * min(left_first, one[1] * q * r * s + both * p * q * r)
        return 2 * k * both * p * s * (q * left + r * right)

    def _scaled(self, c: Any, by: Scaling) -> Kronecker | None:
        left, right = self._left, self._right
        if isinstance(left, int) and isinstance(right, int):
            return None
        if isinstance(right, int) or (not isinstance(left, int) and left.size <= right.size):
            return self._with(by(left, c), right)
        return self._with(left, by(right, c))

    def _presented(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Kronecker:
        return self._with(*self._factors(), input_shape=input_shape, output_shape=output_shape)

    def _with(self, left: Array | int, right: Array | int, **changed: Any) -> Kronecker:
        """Return the Jacobian with other factors of the same shapes, and other changes."""
        return Kronecker(left, right, **(self._shapes() | changed), copy=False)

    def batches(self) -> set[tuple[int, ...]]:
        """Return the batches of the operand and of the result, and those that factors have."""
        dense = (factor.shape[:-2] for factor in self._factors() if not isinstance(factor, int))
        return {*self._batches, *filter(None, dense)}

    def _diagonal_elements(self) -> Array:
        left, right = self._left, self._right
        (p, q), (r, s) = extents(left), extents(right)
        if p != q or r != s or not self._is_plain:
            return super()._diagonal_elements()
        elements = np.empty((p, r), self._dtype)
        elements[...] = 1 if type(left) is int else left.diagonal()[:, np.newaxis]  # type: ignore[union-attr]
        if type(right) is not int:
            multiply(elements, right.diagonal(), out=elements)  # type: ignore[union-attr]
        return elements.reshape(-1)

    def _dense(self) -> Array:
        if not self._is_plain:
            return self._dense_of_batches()
        left: Any = self._left
        right: Any = self._right
        (p, q), (r, s) = extents(left), extents(right)
        if type(left) is type(right) is int:
            return identity_matrix(p * r, self._dtype)
        dense = np.zeros((p * r, q * s), self._dtype)
        row, step = dense.strides
        # Zeros of an identity are structure: they hide even an infinity, as in the products.
        if not dense.size:
            pass
        elif type(left) is int:
            strides = r * row + s * step, row, step
            np.ndarray((p, r, s), self._dtype, dense, 0, strides)[...] = right
        elif type(right) is int:
            strides = row + step, r * row, s * step
            np.ndarray((r, p, q), self._dtype, dense, 0, strides)[...] = left
        else:
            places = dense.reshape(p, r, q, s)
            multiply(left[:, np.newaxis, :, np.newaxis], right[:, np.newaxis], out=places)
        return dense

    @silent
    def _dense_of_batches(self) -> Array:
        dense = np.zeros(self.shape, self._dtype)
        elements, rows, columns = self._placed()
        whole = broadcast_shapes(np.shape(elements), rows.shape, columns.shape)
        at = rows * self.shape[1] + columns
        flat = (np.broadcast_to(each, whole).reshape(-1) for each in (at, elements))
        # Of more than 32 axes, add.at makes a segmentation fault.
        np.add.at(dense.reshape(-1), *flat)
        return dense

    def _coordinates(self) -> tuple[Any, Any, Any] | None:
        if self._is_plain and type(self._left) is not int and type(self._right) is not int:
            return None
        return self._placed()

    def _placed(self) -> tuple[Any, Any, Any]:
        """Return elements, their rows and their columns, which broadcast; two in a place add up."""
        left: Any = self._left
        right: Any = self._right
        (p, q), (r, s) = extents(left), extents(right)
        rows, columns = (
            np.arange(n).reshape(*batch, *own)
            for n, batch, own in zip(self.shape, self._batches[::-1], ((p, r), (q, s)), strict=True)
        )
        # Zeros of an identity are structure: they hide even an infinity, as in the products.
        if type(left) is type(right) is int:
            return 1, rows, columns
        if type(left) is int:  # axes p, r, s
            return right[..., None, :, :], rows[..., None], columns[..., None, :]
        if type(right) is int:  # axes p, r, q
            return left[..., None, :], rows[..., None], columns.mT[..., None, :, :]
        elements = multiply(left[..., :, None, :, None], right[..., None, :, None, :])
        return elements, rows[..., None, None], columns[..., None, None, :, :]


def _moved(left: Any, right: Any, batches: tuple[Any, Any], rows: Array) -> Array:
    """Return ``L T R^T`` of each row T, as rows; `batches` are those of T and of the result."""
    dense_left, dense_right = type(left) is not int, type(right) is not int
    if batches != ((), ()) or (dense_left and left.ndim > 2) or (dense_right and right.ndim > 2):
        return _moved_in_batches(left, right, batches, rows)
    if not dense_left:
        return _on_right(right, rows, left) if dense_right else rows.copy()
    if not dense_right:
        return _on_left(left, rows, right)
    (p, q), (r, s) = left.shape, right.shape
    if p * s * (q + r) <= q * r * (s + p):  # the cheaper product first
        return _on_right(right, _on_left(left, rows, s), p)
    return _on_left(left, _on_right(right, rows, q), r)


def _on_left(left: Array, rows: Array, n: int) -> Array:
    """Return ``L T`` of each row T, an array of n columns, as rows."""
    k, (p, q) = len(rows), left.shape
    if k == 1:
        return product(left, rows.reshape(q, n)).reshape(1, p * n)
    # One product, of the arrays next to each other.
    beside = rows.reshape(k, q, n).transpose(1, 0, 2).reshape(q, k * n)
    return product(left, beside).reshape(p, k, n).transpose(1, 0, 2).reshape(k, p * n)


def _on_right(right: Array, rows: Array, n: int) -> Array:
    """Return ``T R^T`` of each row T, an array of n rows, as rows."""
    k, (r, s) = len(rows), right.shape
    return product(rows.reshape(k * n, s), right.T).reshape(k, n * r)


def _moved_in_batches(left: Any, right: Any, batches: tuple[Any, Any], rows: Array) -> Array:
    input_batch, output_batch = batches
    (p, q), (r, s) = extents(left), extents(right)
    k = len(rows)
    # The tangents' axis stands in front of all batches.
    ndim = max(map(len, (input_batch, output_batch, _batch(left), _batch(right))))
    stack = _with_ndim(rows.reshape(k, *input_batch, q, s), ndim)
    shape = (k, *(1,) * (ndim - len(output_batch)), *output_batch, p, r)
    if not isinstance(left, int) and not isinstance(right, int):
        # The cheaper product first.
        if p * s * (q + r) <= q * r * (s + p):
            stack, left = product(left, stack), p
        else:
            stack, right = product(stack, right.mT), r
    if not isinstance(left, int):
        result = _summed(left, stack, shape)
    elif not isinstance(right, int):
        result = _summed(stack, right.mT, shape)
    else:
        result = _sum_to(stack, shape)
    return result.reshape(k, math.prod(output_batch) * p * r)


def _transposed(factor: Any) -> Any:
    return factor if type(factor) is int else factor.mT


# --- factors of a Kronecker product ---------------------------------------------------------------


def _factor(name: str, factor: Any, *, copy: bool) -> Array | int:
    if hasattr(factor, "__index__") and not isinstance(factor, bool | np.bool_ | np.ndarray):
        size = as_index("Kronecker", name, factor)
        if not 0 <= size <= sys.maxsize:
            raise ValueError(f"Kronecker: {name} is an identity of size {shown(size)}")
        return size
    array = own("Kronecker", name, factor, copy=copy)
    if array.ndim < 2:
        raise ValueError(f"Kronecker: {name} has shape {array.shape}, needs two axes, or an int")
    return array


def _batch(factor: Array | int) -> tuple[int, ...]:
    return () if isinstance(factor, int) else factor.shape[:-2]


def _with_batch(factor: Array, batch: tuple[int, ...]) -> Array:
    """Return a factor with another batch of as many items, read-only."""
    array = factor.reshape(*batch, *factor.shape[-2:])
    array.flags.writeable = False
    return array


def extents(factor: Array | int) -> tuple[int, int]:
    """Return the rows and columns of a factor."""
    return (factor, factor) if isinstance(factor, int) else factor.shape[-2:]


def _with_ndim(stack: Array, ndim: int) -> Array:
    """Insert axes of extent 1 behind the first, so that there are `ndim` batch axes after it."""
    k, *shape = stack.shape
    return stack.reshape(k, *(1,) * (ndim - (stack.ndim - 3)), *shape)


@silent
def _summed(left: Array, right: Array, shape: tuple[int, ...]) -> Array:
    """Return left @ right, summed over batch axes to `shape`, and repeated to it."""
    batch = broadcast_shapes(left.shape[:-2], right.shape[:-2])
    batch = (1,) * (len(shape) - 2 - len(batch)) + batch
    own = tuple(n if n == m else 1 for n, m in zip(shape[:-2], batch, strict=True))
    return _repeat_to(summed_product(left, right, own + shape[-2:]), shape)


@silent
def _sum_to(stack: Array, shape: tuple[int, ...]) -> Array:
    """Return `stack`, summed over batch axes to `shape`, and repeated to it; always a new array."""
    both = enumerate(zip(stack.shape, shape, strict=True))
    axes = tuple(i for i, (n, own) in both if own == 1 != n)
    total: Array = np.sum(stack, axis=axes, keepdims=True) if axes else stack.copy()
    return _repeat_to(total, shape)


def _repeat_to(total: Array, shape: tuple[int, ...]) -> Array:
    return total if total.shape == shape else np.broadcast_to(total, shape).copy()

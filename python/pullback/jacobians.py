"""Jacobians whose structure is a type: what is structured is stored and multiplied that way."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.contraction import numpy_product, summed_product
from pullback.ops import as_arrays, kernel_dtype

__all__ = ["DENSE_LIMIT_BYTES", "Diagonal", "Jacobian", "Kronecker"]

Array: TypeAlias = npt.NDArray[Any]

# Above this a dense Jacobian is more likely a mistake than a wish.
DENSE_LIMIT_BYTES: Final = 2**28


class Jacobian(ABC):
    """What every structured Jacobian can do; see `Diagonal` and `Kronecker`.

    It stands for a matrix, in numerator layout, of the map between flattened arrays. It is
    immutable, and speaks the protocol of SciPy's ``LinearOperator``
    (``scipy.sparse.linalg.aslinearoperator(J)``).
    """

    __slots__ = ()

    # NumPy must leave `g @ J` to us, and must never expand J behind the caller's back.
    __array_ufunc__ = None

    # --- description ---

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the operand, and so of a tangent."""

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result, and so of a cotangent."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements, float32 or float64."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes stored."""

    @property
    @abstractmethod
    def T(self) -> Jacobian:
        """The transposed Jacobian."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix: elements of the result, elements of the operand."""
        return math.prod(self.output_shape), math.prod(self.input_shape)

    @property
    def ndim(self) -> int:
        """Number of axes of the matrix, 2."""
        return 2

    # --- products ---

    @abstractmethod
    def _times(self, tangents: Array) -> Array:
        """Return J @ t for each row t of ``tangents`` (k, columns), as rows (k, rows)."""

    @abstractmethod
    def _compose(self, other: Any) -> Any:
        """Return self @ other for another structured Jacobian, or NotImplemented."""

    def __matmul__(self, other: Any) -> Any:
        """Return J @ other.

        Parameters
        ----------
        other : array_like or Jacobian
            A tangent in the operand's shape, or a flat one, or columns (columns of J, k).

        Returns
        -------
        ndarray or Jacobian
            In the result's shape, or flat, or columns; the product of two Jacobians of one
            structure has it too.

        Raises
        ------
        TypeError
            If the product of two structures has none.
        ValueError
            If the shape is none of these.
        """
        if isinstance(other, Jacobian):
            return self._compose(other)
        if _is_foreign(other):
            return NotImplemented
        _, tangent = as_arrays("J @ t", np.empty(0, self.dtype), other, names=("J", "t"))
        rows, n = self.shape
        with np.errstate(all="ignore"):
            if tangent.shape == self.input_shape:
                return self._times(tangent.reshape(1, n)).reshape(self.output_shape)[()]
            if tangent.ndim not in (1, 2) or tangent.shape[0] != n:
                raise ValueError(
                    f"J @ t: t has shape {tangent.shape}, J needs {self.input_shape}, "
                    f"({n},) or ({n}, k)"
                )
            if tangent.ndim == 1:
                return self._times(tangent[np.newaxis]).reshape(rows)
            return self._times(tangent.T).T

    def __rmatmul__(self, other: Any) -> Any:
        """Return other @ J.

        Parameters
        ----------
        other : array_like
            A cotangent in the result's shape, or a flat one, or rows (k, rows of J).

        Returns
        -------
        ndarray
            In the operand's shape, or flat, or rows.

        Raises
        ------
        ValueError
            If the shape is none of these.
        """
        if _is_foreign(other):
            return NotImplemented
        cotangent, _ = as_arrays("g @ J", other, np.empty(0, self.dtype), names=("g", "J"))
        n, columns = self.shape
        with np.errstate(all="ignore"):
            if cotangent.shape == self.output_shape:
                return self.T._times(cotangent.reshape(1, n)).reshape(self.input_shape)[()]
            if cotangent.ndim not in (1, 2) or cotangent.shape[-1] != n:
                raise ValueError(
                    f"g @ J: g has shape {cotangent.shape}, J needs {self.output_shape}, "
                    f"({n},) or (k, {n})"
                )
            if cotangent.ndim == 1:
                return self.T._times(cotangent[np.newaxis]).reshape(columns)
            return self.T._times(cotangent)

    def matvec(self, v: npt.ArrayLike) -> Array:
        """Return J @ v for a flat vector of shape (n,) or (n, 1)."""
        return self._flat_product("matvec", v, (1, 2), columns=1)

    def matmat(self, V: npt.ArrayLike) -> Array:
        """Return J @ V for columns of shape (n, k)."""
        return self._flat_product("matmat", V, (2,))

    def rmatvec(self, v: npt.ArrayLike) -> Array:
        """Return J.T @ v for a flat vector of shape (m,) or (m, 1)."""
        return self._flat_product("rmatvec", v, (1, 2), columns=1)

    def rmatmat(self, V: npt.ArrayLike) -> Array:
        """Return J.T @ V for columns of shape (m, k)."""
        return self._flat_product("rmatmat", V, (2,))

    def _flat_product(
        self, method: str, v: npt.ArrayLike, ndims: tuple[int, ...], columns: int | None = None
    ) -> Array:
        op = f"{type(self).__name__}.{method}"
        _, vector = as_arrays(op, np.empty(0, self.dtype), v, names=("J", "v"))
        J = self.T if method.startswith("r") else self
        rows, n = J.shape
        fits = vector.ndim in ndims and vector.shape[0] == n
        if not fits or (columns is not None and vector.shape[1:] not in ((), (columns,))):
            wanted = f"({n},) or ({n}, 1)" if columns else f"({n}, k)"
            raise ValueError(f"{op}: argument has shape {vector.shape}, not {wanted}")
        with np.errstate(all="ignore"):
            product = J._times(np.atleast_2d(vector.T)).T
        return product.reshape(rows, *vector.shape[1:])

    # --- elements ---

    @abstractmethod
    def diagonal(self) -> Array:
        """Return the diagonal elements, as ``todense().diagonal()`` would."""

    @abstractmethod
    def _dense(self) -> Array:
        """Return the matrix, of any size."""

    def todense(self, force: bool = False) -> Array:
        """Return the matrix as an array.

        Parameters
        ----------
        force : bool, default False
            Build it even above `DENSE_LIMIT_BYTES`.

        Returns
        -------
        ndarray, shape ``J.shape``

        Raises
        ------
        MemoryError
            If the array would exceed `DENSE_LIMIT_BYTES` and `force` is false.
        """
        rows, columns = self.shape
        nbytes = rows * columns * self.dtype.itemsize
        if nbytes > DENSE_LIMIT_BYTES and not force:
            raise MemoryError(
                f"a dense {rows} x {columns} {self.dtype} Jacobian takes {nbytes / 1e9:.3g} GB, "
                f"the {type(self).__name__} {self.nbytes / 1e9:.3g} GB; force=True builds it all "
                "the same"
            )
        return self._dense()

    def tensor(self, force: bool = False) -> Array:
        """Return the array of all partial derivatives.

        Parameters
        ----------
        force : bool, default False
            As for `todense`.

        Returns
        -------
        ndarray, shape ``J.output_shape + J.input_shape``

        Raises
        ------
        MemoryError
            As for `todense`.
        """
        return self.todense(force).reshape(self.output_shape + self.input_shape)


class Diagonal(Jacobian):
    """The Jacobian of a map that acts on each element by itself.

    It stands for the n x n matrix, in numerator layout, of the flattened map, and stores its n
    diagonal elements in the operand's own shape. It is immutable, and speaks the protocol of
    SciPy's ``LinearOperator`` (``scipy.sparse.linalg.aslinearoperator(J)``).

    Parameters
    ----------
    diagonal : array_like, any shape
        The derivative at each element. Computed in float32 or float64 as everywhere.
    copy : bool, default True
        False takes over an array that nobody else writes to.

    Examples
    --------
    >>> import numpy as np
    >>> J = Diagonal([[1.0, 2.0], [3.0, 4.0]])
    >>> J
    <Diagonal 4x4 float64, operand shape (2, 2)>
    >>> J @ np.ones((2, 2))
    array([[1., 2.],
           [3., 4.]])
    >>> (J @ J).diagonal()
    array([ 1.,  4.,  9., 16.])
    """

    __slots__ = ("_diagonal",)

    def __init__(self, diagonal: npt.ArrayLike, *, copy: bool = True) -> None:
        self._diagonal = _own("Diagonal", "diagonal", diagonal, copy=copy)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the operand, and so of a tangent."""
        return self._diagonal.shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result, and so of a cotangent."""
        return self._diagonal.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements, float32 or float64."""
        return self._diagonal.dtype

    @property
    def nbytes(self) -> int:
        """Bytes stored: n elements."""
        return self._diagonal.nbytes

    @property
    def T(self) -> Diagonal:
        """The transposed Jacobian, which is the same one."""
        return self

    def __repr__(self) -> str:
        n = self._diagonal.size
        return f"<Diagonal {n}x{n} {self.dtype}, operand shape {self.input_shape}>"

    def __reduce__(self) -> tuple[type[Diagonal], tuple[Array]]:
        # Through the constructor, since a pickled array forgets that it is read-only.
        return Diagonal, (self._diagonal,)

    def _times(self, tangents: Array) -> Array:
        products: Array = self._diagonal.reshape(-1) * tangents
        return products

    def _compose(self, other: Any) -> Any:
        if not isinstance(other, Diagonal):
            return NotImplemented
        if other.output_shape != self.input_shape:
            raise ValueError(
                f"Diagonal @ Diagonal: operand shapes {self.input_shape} and "
                f"{other.output_shape} differ"
            )
        with np.errstate(all="ignore"):
            return Diagonal(self._diagonal * other._diagonal, copy=False)

    def diagonal(self) -> Array:
        """Return the n diagonal elements, flat and read-only, as ``todense().diagonal()`` would."""
        return self._diagonal.reshape(-1)

    def _dense(self) -> Array:
        return np.diag(self.diagonal())


class Kronecker(Jacobian):
    """The Jacobian of ``T -> L T R^T``, the Kronecker product of L and R.

    It stands for the matrix, in numerator layout, of the map between row-major flattened arrays,
    and stores the factors. With batches of factors, operands or results, the map is applied to
    each item of what they broadcast to, and summed over the axes that the results' batch lacks or
    has as 1. It is immutable, and speaks the protocol of SciPy's ``LinearOperator``.

    Parameters
    ----------
    left : array_like, shape (..., p, q), or int
        L; an integer stands for the identity of that size.
    right : array_like, shape (..., r, s), or int
        R, alike.
    input_batch, output_batch : tuple of int, optional
        Batches of the operand and of the result; by default that of the factors.
    input_shape : tuple of int, optional
        Shape of the operand where it is not ``(*input_batch, q, s)`` but as many elements.
    output_shape : tuple of int, optional
        Shape of the result where it is not ``(*output_batch, p, r)`` but as many elements.
    copy : bool, default True
        False takes over factors that nobody else writes to.

    Raises
    ------
    TypeError
        For a dtype that has no kernel.
    ValueError
        If a factor is no matrix, or the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> J = Kronecker(2, [[1.0, 10.0, 100.0]])  # of A @ B by A, B being a column
    >>> J
    <Kronecker 2x6 float64, identity 2 by 1x3, operand shape (2, 3), result shape (2, 1)>
    >>> J @ np.ones((2, 3))
    array([[111.],
           [111.]])
    >>> np.array([[1.0], [2.0]]) @ J
    array([[  1.,  10., 100.],
           [  2.,  20., 200.]])
    """

    __slots__ = (
        "_input_batch",
        "_input_shape",
        "_left",
        "_output_batch",
        "_output_shape",
        "_right",
    )

    _left: Array | int
    _right: Array | int

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
        given = [batch for batch in (input_batch, output_batch) if batch is not None]
        try:
            own = np.broadcast_shapes(*batches)
            np.broadcast_shapes(*batches, *given)
        except ValueError:
            raise ValueError(
                f"Kronecker: batches {', '.join(map(str, (*batches, *given)))} of factors, operand "
                "and result do not broadcast"
            ) from None
        self._input_batch = own if input_batch is None else tuple(input_batch)
        self._output_batch = own if output_batch is None else tuple(output_batch)
        (p, q), (r, s) = _extents(self._left), _extents(self._right)
        self._input_shape = _presented("input", input_shape, (*self._input_batch, q, s))
        self._output_shape = _presented("output", output_shape, (*self._output_batch, p, r))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the operand, and so of a tangent."""
        return self._input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result, and so of a cotangent."""
        return self._output_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements, float32 or float64; float64 of two identities."""
        dense = [factor.dtype for factor in self._factors() if not isinstance(factor, int)]
        return np.result_type(*dense) if dense else np.dtype(np.float64)

    @property
    def nbytes(self) -> int:
        """Bytes stored: those of the factors, of which identities have none."""
        return sum(0 if isinstance(factor, int) else factor.nbytes for factor in self._factors())

    @property
    def T(self) -> Kronecker:
        """The transposed Jacobian, a view of this one."""
        left, right = (f if isinstance(f, int) else f.mT for f in self._factors())
        return Kronecker(
            left,
            right,
            input_batch=self._output_batch,
            output_batch=self._input_batch,
            input_shape=self._output_shape,
            output_shape=self._input_shape,
            copy=False,
        )

    def __repr__(self) -> str:
        def shown(factor: Array | int) -> str:
            if isinstance(factor, int):
                return f"identity {factor}"
            *batch, rows, columns = factor.shape
            return f"{rows}x{columns}" + (f" (batch {tuple(batch)})" if batch else "")

        rows, columns = self.shape
        left, right = map(shown, self._factors())
        return (
            f"<Kronecker {rows}x{columns} {self.dtype}, {left} by {right}, "
            f"operand shape {self.input_shape}, result shape {self.output_shape}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (
            *self._factors(),
            self._input_batch,
            self._output_batch,
            self._input_shape,
            self._output_shape,
        )

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
        (p, q), (r, s) = _extents(self._left), _extents(self._right)
        k = len(tangents)
        stack = tangents.reshape(k, *self._input_batch, q, s)
        # The tangents' axis stands in front of all batches.
        ndim = max(map(len, (self._input_batch, self._output_batch, *map(_batch, self._factors()))))
        stack = _with_ndim(stack, ndim)
        shape = (k, *(1,) * (ndim - len(self._output_batch)), *self._output_batch, p, r)
        left, right = self._left, self._right
        if not isinstance(left, int) and not isinstance(right, int):
            # The cheaper product first.
            if p * s * (q + r) <= q * r * (s + p):
                stack, left = numpy_product(left, stack, None), p
            else:
                stack, right = numpy_product(stack, right.mT, None), r
        if not isinstance(left, int):
            result = _summed(left, stack, shape)
        elif not isinstance(right, int):
            result = _summed(stack, right.mT, shape)
        else:
            result = _sum_to(stack, shape)
        return result.reshape(k, self.shape[0])

    def _compose(self, other: Any) -> Any:
        if not isinstance(other, Kronecker):
            return NotImplemented
        if other.output_shape != self.input_shape:
            raise ValueError(
                f"Kronecker @ Kronecker: operand shape {self.input_shape} and result shape "
                f"{other.output_shape} differ"
            )
        pairs = list(zip(self._factors(), other._factors(), strict=True))
        fit = all(_extents(f)[1] == _extents(g)[0] for f, g in pairs)
        if self._is_batched() or other._is_batched() or not fit:
            raise TypeError(
                f"the product of {self} and {other} is no Kronecker product; "
                "apply one after the other, or use todense()"
            )
        with np.errstate(all="ignore"):
            left, right = (_factor_product(f, g) for f, g in pairs)
        return Kronecker(
            left,
            right,
            input_shape=other.input_shape,
            output_shape=self.output_shape,
            copy=False,
        )

    def _is_batched(self) -> bool:
        return any((*map(_batch, self._factors()), self._input_batch, self._output_batch))

    def diagonal(self) -> Array:
        """Return the diagonal elements, as ``todense().diagonal()`` would.

        Raises
        ------
        ValueError
            If the factors are not square, or there are batches.
        """
        if self._is_batched() or any(n != m for n, m in map(_extents, self._factors())):
            raise ValueError(f"{self} has a diagonal only if its factors are square, unbatched")
        ones = (
            np.ones(f, self.dtype) if isinstance(f, int) else np.diagonal(f)
            for f in self._factors()
        )
        with np.errstate(all="ignore"):
            return np.outer(*ones).reshape(-1)

    def _dense(self) -> Array:
        (p, q), (r, s) = _extents(self._left), _extents(self._right)
        batches = (*map(_batch, self._factors()), self._input_batch, self._output_batch)
        batch = np.broadcast_shapes(*batches)
        left, right = self._left, self._right
        blocks = np.zeros((*batch, p, r, q, s), self.dtype)
        # Zeros of an identity are structure: they hide even an infinity, as in the products.
        with np.errstate(all="ignore"):
            if isinstance(left, int):
                for i in range(left):
                    blocks[..., i, :, i, :] = np.eye(right) if isinstance(right, int) else right
            elif isinstance(right, int):
                for j in range(right):
                    blocks[..., j, :, j] = left
            else:
                blocks[...] = left[..., :, None, :, None] * right[..., None, :, None, :]
            n_out, n_in = math.prod(self._output_batch), math.prod(self._input_batch)
            dense = np.zeros((n_out, n_in, p, r, q, s), self.dtype)
            rows, columns = (
                np.broadcast_to(np.arange(n).reshape(shape), batch)
                for n, shape in ((n_out, self._output_batch), (n_in, self._input_batch))
            )
            np.add.at(dense, (rows, columns), blocks)
        return dense.transpose(0, 2, 3, 1, 4, 5).reshape(self.shape)


def _is_foreign(other: object) -> bool:
    """Tell whether `other` is another library's operator, and no array: let it multiply us."""
    return hasattr(other, "__rmatmul__") and not hasattr(other, "__array__")


def _own(op: str, name: str, values: npt.ArrayLike, *, copy: bool) -> Array:
    """Return a read-only array in the dtype of its kernels."""
    array = np.asarray(values)
    dtype = kernel_dtype(op, name, array.dtype)
    own = np.array(array, dtype=dtype) if copy else np.asarray(array, dtype=dtype).view()
    own.flags.writeable = False
    return own


# --- factors of a Kronecker product ---------------------------------------------------------------


def _factor(name: str, factor: Any, *, copy: bool) -> Array | int:
    if hasattr(factor, "__index__") and not isinstance(factor, bool | np.bool_ | np.ndarray):
        size = int(factor.__index__())
        if size < 0:
            raise ValueError(f"Kronecker: {name} is an identity of size {size}")
        return size
    array = _own("Kronecker", name, factor, copy=copy)
    if array.ndim < 2:
        raise ValueError(f"Kronecker: {name} has shape {array.shape}, needs two axes, or an int")
    return array


def _batch(factor: Array | int) -> tuple[int, ...]:
    return () if isinstance(factor, int) else factor.shape[:-2]


def _extents(factor: Array | int) -> tuple[int, int]:
    return (factor, factor) if isinstance(factor, int) else factor.shape[-2:]


def _presented(
    which: str, shape: tuple[int, ...] | None, canonical: tuple[int, ...]
) -> tuple[int, ...]:
    if shape is None:
        return canonical
    if math.prod(shape) != math.prod(canonical):
        raise ValueError(
            f"Kronecker: {which}_shape {shape} has not as many elements as {canonical}"
        )
    return tuple(shape)


def _factor_product(left: Array | int, right: Array | int) -> Array | int:
    if isinstance(left, int):
        return right
    if isinstance(right, int):
        return left
    return numpy_product(left, right, None)


def _restore(
    left: Any,
    right: Any,
    input_batch: tuple[int, ...],
    output_batch: tuple[int, ...],
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
) -> Kronecker:
    """Return the Jacobian of a pickle, through the constructor, which makes factors read-only."""
    return Kronecker(
        left,
        right,
        input_batch=input_batch,
        output_batch=output_batch,
        input_shape=input_shape,
        output_shape=output_shape,
    )


def _with_ndim(stack: Array, ndim: int) -> Array:
    """Insert axes of extent 1 behind the first, so that there are `ndim` batch axes after it."""
    k, *shape = stack.shape
    return stack.reshape(k, *(1,) * (ndim - (stack.ndim - 3)), *shape)


def _summed(left: Array, right: Array, shape: tuple[int, ...]) -> Array:
    """Return left @ right, summed over batch axes to `shape`, and repeated to it."""
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    batch = (1,) * (len(shape) - 2 - len(batch)) + batch
    own = tuple(n if n == m else 1 for n, m in zip(shape[:-2], batch, strict=True))
    return _repeat_to(summed_product(numpy_product, left, right, own + shape[-2:]), shape)


def _sum_to(stack: Array, shape: tuple[int, ...]) -> Array:
    """Return `stack`, summed over batch axes to `shape`, and repeated to it; always a new array."""
    both = enumerate(zip(stack.shape, shape, strict=True))
    axes = tuple(i for i, (n, own) in both if own == 1 != n)
    total: Array = np.sum(stack, axis=axes, keepdims=True) if axes else stack.copy()
    return _repeat_to(total, shape)


def _repeat_to(total: Array, shape: tuple[int, ...]) -> Array:
    return total if total.shape == shape else np.broadcast_to(total, shape).copy()

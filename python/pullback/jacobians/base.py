"""The base class of structured Jacobians."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

# The module, of which only functions need more than its name: `algebra` builds on this one.
from pullback import jacobians
from pullback.config import guarded, guarded_class, native
from pullback.jacobians.arguments import (
    Array,
    Scaling,
    add,
    as_shape,
    divide,
    multiply,
    silent,
    subtract,
)
from pullback.jacobians.sparse import Builder
from pullback.protocol import as_arrays, is_weak, kernel_dtype, shape_of, shown
from pullback.shapes import check_axes

__all__ = ["UNITS", "Jacobian", "Shaped", "Unstored", "identity_matrix"]

_ndarray: Final = np.ndarray

# Of J, of vectors, whether of the transpose, and whether these are a stack; or of J, and whether of
# the whole matrix or its diagonal. None leaves it to what follows, which gives the same bits.
moved: Callable[[Any, Any, bool, bool], Any]
elements: Callable[[Any, bool], Any]
if native is None:
    moved, elements = (lambda *_: None,) * 2
else:  # what is small and plain
    moved, elements = native.jacobian_product, native.jacobian_elements

UNITS: Final = 2**20  # elements of unit vectors at a time


class Jacobian(ABC):
    """The base class of structured Jacobians.

    A Jacobian represents the matrix, in numerator layout, of a linear map between arrays that are
    flattened in row-major order. It is immutable and supports SciPy's ``LinearOperator`` protocol
    (``scipy.sparse.linalg.aslinearoperator(J)``). ``@``, ``+``, ``-`` and multiplication by a
    number keep the structure if a rule of `pullback.jacobians.algebra` applies; otherwise they give
    a lazy `Product` or `Sum`.

    NumPy's functions convert it to its matrix. ``+`` and ``-`` also take an array of the matrix's
    shape, and return an array. Both raise MemoryError above `DENSE_LIMIT_BYTES`. Other operators
    raise TypeError. Two Jacobians are equal only if they are the same object.
    """

    __slots__ = ()
    __module__ = "pullback.jacobians"

    _is_leaf = True  # not made of other Jacobians

    def __init_subclass__(cls) -> None:
        guarded_class(cls)
        if cls.__module__.startswith(Jacobian.__module__):
            cls.__module__ = Jacobian.__module__
            return  # they take care themselves that they do not warn, and only where they might
        for name in ("_times", "_scaled", "_diagonal_elements", "_dense"):
            if name in cls.__dict__:
                setattr(cls, name, silent(cls.__dict__[name]))
        if (own := cls.__dict__.get("_scaled")) is not None:  # of a factor
            cls._scaled = lambda self, c, by: own(self, by(c.dtype.type(1), c))  # type: ignore[method-assign]

    # NumPy must leave `g @ J` to this class; its functions and ufuncs get the matrix.
    __array_priority__ = 1e3
    __hash__ = object.__hash__

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

    # What `Shaped` has in slots, at less cost.
    _input_shape: tuple[int, ...] = property(lambda self: self.input_shape)  # type: ignore[assignment]
    _output_shape: tuple[int, ...] = property(lambda self: self.output_shape)  # type: ignore[assignment]
    _dtype: np.dtype[Any] = property(lambda self: self.dtype)  # type: ignore[assignment]

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
        return math.prod(self._output_shape), math.prod(self._input_shape)

    @property
    def ndim(self) -> int:
        """Number of axes of the matrix, 2."""
        return 2

    @abstractmethod
    def flops(self, k: int = 1) -> int:
        """Return the additions and multiplications that ``J @ V`` takes for k columns V."""

    def _structure(self) -> str:
        """Return the repr's details beyond shapes and dtype."""
        return ""

    def __repr__(self) -> str:
        rows, columns = self.shape
        result = self.output_shape
        return (
            f"<{type(self).__name__} {rows}x{columns} {self.dtype}{self._structure()}, "
            f"operand shape {self.input_shape}"
            + (f", result shape {result}" if result != self.input_shape else "")
            + ">"
        )

    # --- products ---

    @abstractmethod
    def _times(self, tangents: Array) -> Array:
        """Return J @ t for each row t of ``tangents`` (k, columns), as rows (k, rows).

        Their dtype is that of J or wider. There are no warnings of overflows or invalid values.
        """

    def _pull(self, cotangents: Array, /) -> Array:
        """Return g @ J for each row g of ``cotangents`` (k, rows), as rows (k, columns)."""
        return self.T._times(cotangents)

    # The methods that sums and products call on their parts. They return a result, or steps for
    # `recursion.run`, because parts may be sums and products that nest deeper than Python recurses.
    # The cost of such parts is computed once per run, and kept in `known`.

    def _times_steps(self, tangents: Array, known: dict[Any, int]) -> Any:
        del known
        return self._times(tangents)

    def _flops_steps(self, k: int, known: dict[Any, int]) -> Any:
        del known
        return self.flops(k)

    def _dense_steps(self, known: dict[Any, int]) -> Any:
        del known
        return self._dense()

    def _diagonal_steps(self) -> Any:
        return self._diagonal_elements()

    def _scaled_steps(self, c: Any, by: Scaling) -> Any:
        return self._scaled(c, by)

    def _sparse_steps(self, build: Builder) -> Any:
        return self._sparse(build)

    def _applied(self, tangents: Array) -> Array:
        """Return `_times` as an array that belongs to the caller."""
        return self._owned(self._times(tangents), tangents)

    def _pulled(self, cotangents: Array) -> Array:
        """Return `_pull` as an array that belongs to the caller."""
        return self._owned(self._pull(cotangents), cotangents)

    def _owned(self, products: Array, vectors: Array) -> Array:
        own = products.flags.writeable and not np.may_share_memory(products, vectors)
        return products if own else products.copy()

    def __matmul__(self, other: Any) -> Any:
        """Return J @ other.

        Parameters
        ----------
        other : array_like or Jacobian
            A tangent in the operand's shape, a flat tangent, or columns of tangents, shape
            (columns of J, k); or the Jacobian of a map whose result is J's operand.

        Returns
        -------
        ndarray or Jacobian
            In the result's shape, flat, or as columns, like `other`. For a Jacobian, the Jacobian
            of the composed map.

        Raises
        ------
        ValueError
            If the shape is none of these.
        """
        result = moved(self, other, False, False)
        return self._matmul(other) if result is None else result

    @guarded
    def _matmul(self, other: Any) -> Any:
        tangent = other
        if type(other) is not _ndarray or other.dtype is not self._dtype:
            if isinstance(other, Jacobian):
                return jacobians.algebra.product(self, other)
            if _is_foreign(other):
                return NotImplemented
            _, tangent = as_arrays("J @ t", np.empty(0, self._dtype), other, names=("J", "t"))
        shape = tangent.shape
        if shape == self._input_shape:
            return self._applied(tangent.reshape(1, -1)).reshape(self._output_shape)[()]
        n = math.prod(self._input_shape)
        if len(shape) not in (1, 2) or shape[0] != n:
            raise ValueError(
                f"J @ t: t has shape {shape}, J needs {self._input_shape}, ({n},) or ({n}, k)"
            )
        if len(shape) == 1:
            return self._applied(tangent.reshape(1, n)).reshape(-1)
        return self._applied(tangent.T).T

    def __rmatmul__(self, other: Any) -> Any:
        """Return other @ J.

        Parameters
        ----------
        other : array_like
            A cotangent in the result's shape, a flat cotangent, or rows of cotangents, shape
            (k, rows of J).

        Returns
        -------
        ndarray
            In the operand's shape, flat, or as rows, like `other`.

        Raises
        ------
        ValueError
            If the shape is none of these.
        """
        result = moved(self, other, True, False)
        return self._rmatmul(other) if result is None else result

    @guarded
    def _rmatmul(self, other: Any) -> Any:
        cotangent = other
        if type(other) is not _ndarray or other.dtype is not self._dtype:
            if _is_foreign(other):
                return NotImplemented
            cotangent, _ = as_arrays("g @ J", other, np.empty(0, self._dtype), names=("g", "J"))
        shape = cotangent.shape
        if shape == self._output_shape:
            return self._pulled(cotangent.reshape(1, -1)).reshape(self._input_shape)[()]
        n = math.prod(self._output_shape)
        if len(shape) not in (1, 2) or shape[-1] != n:
            raise ValueError(
                f"g @ J: g has shape {shape}, J needs {self._output_shape}, ({n},) or (k, {n})"
            )
        if len(shape) == 1:
            return self._pulled(cotangent.reshape(1, n)).reshape(-1)
        return self._pulled(cotangent)

    def jvp(self, t: npt.ArrayLike) -> Any:
        """Return the tangents of the result, for a whole stack of tangents at once.

        Parameters
        ----------
        t : array_like, shape ``(*stack, *J.input_shape)``
            Tangents of the operand.

        Returns
        -------
        ndarray or scalar, shape ``(*stack, *J.output_shape)``

        Raises
        ------
        ValueError
            If the shape of `t` does not end in the operand's.
        """
        result = moved(self, t, False, True)
        if result is not None:
            return result
        return self._stacked("jvp", "t", t, self._input_shape, self._output_shape)

    def vjp(self, g: npt.ArrayLike) -> Any:
        """Return the cotangents of the operand, for a whole stack of cotangents at once.

        Parameters
        ----------
        g : array_like, shape ``(*stack, *J.output_shape)``
            Cotangents of the result.

        Returns
        -------
        ndarray or scalar, shape ``(*stack, *J.input_shape)``

        Raises
        ------
        ValueError
            If the shape of `g` does not end in the result's.
        """
        result = moved(self, g, True, True)
        if result is not None:
            return result
        return self._stacked("vjp", "g", g, self._output_shape, self._input_shape)

    @guarded
    def _stacked(
        self,
        method: Literal["jvp", "vjp"],
        name: str,
        vectors: Any,
        given: tuple[int, ...],
        wanted: tuple[int, ...],
    ) -> Any:
        move = self._applied if method == "jvp" else self._pulled
        if type(vectors) is not _ndarray or vectors.dtype is not self._dtype:
            op = f"{type(self).__name__}.{method}"
            _, vectors = as_arrays(op, np.empty(0, self._dtype), vectors, names=("J", name))
        shape = vectors.shape
        if shape == given:
            return move(vectors.reshape(1, -1)).reshape(wanted)[()]
        op = f"{type(self).__name__}.{method}"
        n_stack = len(shape) - len(given)
        if n_stack < 0 or shape[n_stack:] != given:
            raise ValueError(f"{op}: {name} has shape {shape}, which must end in {given}")
        stack = shape[:n_stack]
        check_axes(op, stack + wanted)
        rows = vectors.reshape(math.prod(stack), math.prod(given))
        return move(rows).reshape(stack + wanted)[()]

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
        op, name = f"{type(self).__name__}.{method}", "v" if columns else "V"
        _, vector = as_arrays(op, np.empty(0, self.dtype), v, names=("J", name))
        J = self.T if method.startswith("r") else self
        rows, n = J.shape
        fits = vector.ndim in ndims and vector.shape[0] == n
        if not fits or (columns is not None and vector.shape[1:] not in ((), (columns,))):
            wanted = f"({n},) or ({n}, 1)" if columns else f"({n}, k)"
            raise ValueError(f"{op}: {name} has shape {vector.shape}, not {wanted}")
        return J._applied(np.atleast_2d(vector.T)).T.reshape(rows, *vector.shape[1:])

    # --- algebra ---

    @abstractmethod
    def _scaled(self, c: Any, by: Scaling) -> Jacobian | None:
        """Return c J or J / c for a NumPy scalar c of J's dtype or a wider one, which both get.

        It returns None if the structure cannot hold a factor other than 1. In a user's own kind, it
        takes c alone.
        """

    def __add__(self, other: Any) -> Any:
        """Return the sum with a Jacobian of the same shapes, or the array J + A for an array A."""
        if isinstance(other, Jacobian):
            return jacobians.algebra.total(self, other)
        return add(*self._beside("J + A", other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        """Return the difference as `__add__` does the sum."""
        if isinstance(other, Jacobian):
            return jacobians.algebra.total(self, -other)
        return subtract(*self._beside("J - A", other))

    def __rsub__(self, other: Any) -> Any:
        """Return the difference of an array and J."""
        return subtract(*self._beside("A - J", other)[::-1])

    def _beside(self, op: str, other: Any) -> tuple[Array, ...]:
        """Return the matrix and an array of its shape, of one dtype."""
        if (shape := shape_of(op, "A", other)) != self.shape:
            raise ValueError(
                f"{op}: A has shape {shape}, J {self.shape}; J.todense() is an array, which "
                "broadcasts"
            )
        return as_arrays(op, self.todense(), other, names=("J", "A"))

    def __pos__(self) -> Self:
        """Return J."""
        return self

    def __neg__(self) -> Jacobian:
        """Return -J."""
        return jacobians.algebra.scaled(self.dtype.type(-1), self)

    def __mul__(self, c: Any) -> Jacobian:
        """Return the product with a number."""
        return self._with_number("c * J", multiply, c)

    __rmul__ = __mul__

    def __truediv__(self, c: Any) -> Jacobian:
        """Return the quotient by a number."""
        return self._with_number("J / c", divide, c)

    def _with_number(self, op: str, by: Scaling, c: Any) -> Jacobian:
        if isinstance(c, Jacobian) or shape_of(op, "c", c):
            raise TypeError(
                f"{op}: c is {shown(c)}, not a number; J @ A is the product of matrices, "
                "J.todense() has those of elements"
            )
        _, number = as_arrays(op, np.empty(0, self.dtype), c, names=("J", "c"))
        return jacobians.algebra.scaled(number[()], self, by)

    def __eq__(self, other: object) -> bool:
        """Tell whether both are the same object; for an array, raise TypeError."""
        if isinstance(other, Jacobian):
            return self is other
        if is_weak(other) or isinstance(other, list) or hasattr(other, "shape"):
            raise _refusal(self, "==", other)
        return NotImplemented

    # --- elements ---

    def diagonal(self) -> Array:
        """Return the diagonal elements, as ``todense().diagonal()`` would."""
        result = elements(self, False)
        return self._diagonal_elements() if result is None else result

    def _diagonal_elements(self) -> Array:
        # By products with unit vectors, a block of them at a time.
        rows, columns = self.shape
        n = min(rows, columns)
        elements = np.empty(n, self.dtype)
        step = max(1, UNITS // max(rows, columns, 1))
        for start in range(0, n, step):
            i = np.arange(min(step, n - start))
            units = np.zeros((i.size, columns), self.dtype)
            units[i, start + i] = 1
            elements[start + i] = self._times(units)[i, start + i]
        return elements

    def _dense(self) -> Array:
        """Return the matrix, of any size."""
        rows, columns = self.shape
        if rows < columns:
            return self._pull(identity_matrix(rows, self._dtype))
        return self._times(identity_matrix(columns, self._dtype)).T

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
        dense: Array = elements(self, True)
        if dense is not None and dense.nbytes <= jacobians.DENSE_LIMIT_BYTES:
            return dense
        rows, columns = self.shape
        nbytes = rows * columns * self._dtype.itemsize
        if nbytes > jacobians.DENSE_LIMIT_BYTES and not force:
            raise MemoryError(
                f"a dense {rows} x {columns} {self.dtype} Jacobian takes {nbytes / 1e9:.3g} GB, "
                f"the {type(self).__name__} {self.nbytes / 1e9:.3g} GB; todense(force=True) "
                "builds it all the same, tosparse() what is not zero by structure"
            )
        dense = self._dense()
        return dense if dense.flags.writeable else dense.copy()

    toarray = todense  # SciPy's name for it

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Return `todense` for NumPy, never a view."""
        if copy is False:
            raise ValueError(f"a {type(self).__name__} cannot become an array without a copy")
        return self.todense().astype(self.dtype if dtype is None else dtype, copy=False)

    def _coordinates(self) -> tuple[Any, Any, Any] | None:
        """Return elements, their rows and their columns, which broadcast; duplicates add up.

        All other elements are zero by structure. It returns None if no element is.
        """
        return None

    def _sparse(self, build: Builder) -> Any:
        """Return the matrix as a sparse array, or None where no element is zero by structure."""
        found = self._coordinates()
        return None if found is None else build.matrix(self.shape, *found)

    def tosparse(self, force: bool = False) -> Any:
        """Return the matrix as a SciPy sparse array.

        No dense array is made on the way, unless a factor or a term of J has no structure. Zeros
        are not stored.

        Parameters
        ----------
        force : bool, default False
            Build it even if its elements, or those of an intermediate result, take more than
            `DENSE_LIMIT_BYTES`.

        Returns
        -------
        scipy.sparse.csr_array, shape ``J.shape``
            In J's dtype.

        Raises
        ------
        ImportError
            If SciPy is not installed.
        MemoryError
            If the elements would exceed `DENSE_LIMIT_BYTES` and `force` is false.
        """
        build = Builder(f"{type(self).__name__}.tosparse", self._dtype, force)
        matrix = self._sparse(build)
        return build.finished(self.todense(force) if matrix is None else matrix)

    def tensor(
        self, layout: Literal["numerator", "denominator"] = "numerator", *, force: bool = False
    ) -> Array:
        """Return the array of all partial derivatives.

        Parameters
        ----------
        layout : {"numerator", "denominator"}
            Whether the axes of the result or those of the operand come first.
        force : bool, default False
            As for `todense`.

        Returns
        -------
        ndarray, shape ``J.output_shape + J.input_shape``, or ``J.input_shape + J.output_shape``

        Raises
        ------
        MemoryError
            As for `todense`.
        ValueError
            For any other layout.
        """
        if not isinstance(layout, str) or layout not in ("numerator", "denominator"):
            raise ValueError(
                f"tensor: layout is {shown(layout)}, neither 'numerator' nor 'denominator'"
            )
        J = self if layout == "numerator" else self.T
        check_axes("tensor", J.output_shape + J.input_shape)
        return J.todense(force).reshape(J.output_shape + J.input_shape)


# The excluded methods call kernels, or guard themselves.
guarded_class(
    Jacobian,  # type: ignore[type-abstract]
    but=("__matmul__", "__rmatmul__", "jvp", "vjp"),
)


class Shaped(Jacobian):
    """A Jacobian that stores the shapes of its operand and of its result, and its dtype."""

    __slots__ = ("_dtype", "_input_shape", "_output_shape")

    @classmethod
    def _between(
        cls, input_shape: tuple[int, ...], output_shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Self:
        """Return a Jacobian without anything but shapes and dtype, which are not checked."""
        J: Self = object.__new__(cls)
        J._input_shape, J._output_shape, J._dtype = input_shape, output_shape, dtype
        return J

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
        """Dtype of the elements, float32 or float64."""
        return self._dtype


class Unstored(Shaped):
    """A Jacobian of zeros and ones that follow from its shapes."""

    __slots__ = ()

    def __init__(
        self, input_shape: tuple[int, ...], output_shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> None:
        op = type(self).__name__
        self._input_shape = as_shape(op, "input_shape", input_shape)
        self._output_shape = as_shape(op, "output_shape", output_shape)
        try:
            given = np.dtype(dtype)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{op}: argument dtype is {shown(dtype)}, not a dtype") from error
        self._dtype = kernel_dtype(op, "dtype", given)

    @property
    def nbytes(self) -> int:
        """Bytes stored: none."""
        return 0

    def flops(self, k: int = 1) -> int:
        """Return 0: elements are only moved."""
        del k
        return 0

    @abstractmethod
    def _arguments(self) -> tuple[Any, ...]:
        """Return the constructor's arguments in front of the dtype."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self._arguments(), self._dtype)

    def _scaled(self, c: Any, by: Scaling) -> Jacobian | None:
        del by
        if c != 1:
            return None
        kind: Any = type(self)
        promoted: Jacobian = kind(*self._arguments(), c.dtype)
        return promoted


def _refusal(self: Jacobian, operator: str, other: object) -> TypeError:
    """Return the error of an operator that Jacobians do not have."""
    names = (type(one).__name__ for one in (self, other))
    return TypeError(
        f"{operator} of {' and '.join(names)}: Jacobians have no such operator; J.todense() is an "
        "array, which has it"
    )


def _refusing(operator: str) -> Callable[..., Any]:
    def refuse(self: Jacobian, other: object, *_: Any) -> Any:
        raise _refusal(self, operator, other)

    return refuse


# Without these, NumPy would compute them with the matrix, but only for an array on the right.
_COMPARISONS: Final = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BINARY: Final = {"truediv": "/", "floordiv": "//", "mod": "%", "divmod": "divmod", "pow": "**"}
for _names in (_COMPARISONS, _BINARY, {f"r{_name}": _BINARY[_name] for _name in _BINARY}):
    for _name, _operator in _names.items():
        if (_method := f"__{_name}__") not in vars(Jacobian):
            setattr(Jacobian, _method, _refusing(_operator))


def identity_matrix(n: int, dtype: np.dtype[Any]) -> Array:
    """Return the identity matrix, for few elements in a fifth of the time of ``numpy.eye``."""
    matrix = np.zeros((n, n), dtype)
    matrix.reshape(-1)[:: n + 1] = 1
    return matrix


def _is_foreign(other: object) -> bool:
    """Tell whether `other` is another library's operator, not an array: it does the product."""
    return hasattr(other, "__rmatmul__") and not hasattr(other, "__array__")

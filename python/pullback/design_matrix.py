"""Layouts of data matrices: kernels read some in place, and others in converted blocks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.foreign import as_sparse, check_computed
from pullback.partial import tree_sum
from pullback.protocol import as_array, as_index, kernel_dtype, shown

__all__ = [
    "BLOCK_BYTES",
    "ROWS",
    "Data",
    "Dense",
    "KernelData",
    "Rows",
    "Sparse",
    "as_data",
    "as_matrix",
    "blocks_of_rows",
    "explaining",
    "pieces",
    "spans",
]

Array: TypeAlias = npt.NDArray[Any]

# An array with C rows or F columns, of float32, float64, float16 or bfloat16, or
# (format, data, indices, indptr, shape).
KernelData: TypeAlias = Array | tuple[str, Array, Array, Array, tuple[int, int]]

# Kernels hold the index of an entry in 32 bits.
MOST_SPARSE_COLUMNS: Final = 1 << 32

# The bytes of a converted block: it stays in cache, and outweighs the cost of the call.
BLOCK_BYTES: Final = 1 << 18
BLOCK_ENTRIES: Final = 1 << 17  # in a block of sparse data that is converted to float64

# The most rows that are summed in order; the sums of such runs are merged as a tree.
ROWS: Final = 512


class Dense:
    """A matrix of any strides, dtype and byte order, with one sample per row.

    float16 and ml_dtypes' bfloat16 are computed as float32.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    array : ndarray
    """

    def __init__(self, op: str, array: Array) -> None:
        narrow = array.dtype.char == "e" or _is_bfloat16(array.dtype)
        self.dtype = np.dtype(np.float32) if narrow else kernel_dtype(op, "X", array.dtype)
        self.given_dtype = array.dtype
        if array.ndim != 2:
            raise ValueError(f"{op}: X has shape {array.shape}, needs two axes (samples, features)")
        self.shape: tuple[int, int] = array.shape
        self._array = array
        item = array.itemsize
        # An axis of length 1 may have any stride.
        strides = [s if n > 1 else item for s, n in zip(array.strides, array.shape, strict=True)]
        # Kernels know the dtype, and strides are multiples of the element size.
        self._is_strided = (
            (array.dtype.isnative if narrow else array.dtype == self.dtype)
            and array.flags.aligned
            and not any(stride % item for stride in strides)
        )
        self.in_place = self._is_strided and item in strides

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays that it reads."""
        return (self._array,)

    @property
    def layout(self) -> str:
        """What kernels read, for people."""
        order = "rows" if self._array.strides[1] == self._array.itemsize else "columns"
        return f"{self.given_dtype} {order if self.in_place else 'converted by blocks'}"

    def blocks(
        self, *, strided: bool = False, least: int = 0
    ) -> Iterator[tuple[slice, KernelData]]:
        """Yield all rows in order, in place or in converted blocks.

        Parameters
        ----------
        strided : bool
            Whether the kernel reads arrays of any strides.
        least : int
            The fewest rows of a converted block.
        """
        rows, columns = self.shape
        if self._is_strided if strided else self.in_place:
            yield slice(0, rows), self._array
            return
        # The rows are a multiple of the kernels' own blocks, unless they are very long.
        fitting = max(least, BLOCK_BYTES // max(1, columns * self.dtype.itemsize))
        step = fitting // 512 * 512 or max(1, fitting)
        for begin in range(0, rows, step):
            block = slice(begin, min(begin + step, rows))
            yield block, np.array(self._array[block], self.dtype, order="C")


class Sparse:
    """A matrix in compressed rows or columns, such as SciPy's.

    Parameters
    ----------
    op : str
        The operation, for the error messages.
    matrix : object
        An object with attributes ``format``, ``data``, ``indices``, ``indptr`` and ``shape``.
    """

    def __init__(self, op: str, matrix: Any) -> None:
        if matrix.format not in ("csr", "csc"):
            _extents(op, _attribute(op, matrix, "shape"))
            raise TypeError(
                f"{op}: X is in the sparse format {shown(matrix.format)}; "
                "give it as CSR or CSC, such as X.tocsr()"
            )
        # An attribute may be a property that changes arrays which others have returned, so all are
        # read before the first array is examined.
        self.format: str = matrix.format
        self.shape = _extents(op, _attribute(op, matrix, "shape"))
        is_sorted = getattr(matrix, "has_sorted_indices", False) is True
        data, indices, indptr = (
            as_array(op, f"X.{name}", _attribute(op, matrix, name))
            for name in ("data", "indices", "indptr")
        )
        for name, array in (("data", data), ("indices", indices), ("indptr", indptr)):
            if array.ndim != 1:
                raise ValueError(f"{op}: X.{name} has shape {array.shape}, needs to be a vector")
        self.dtype = kernel_dtype(op, "X", data.dtype)
        self.given_dtype = data.dtype
        index_dtype = _index_dtype(op, indices, indptr)
        self._indices = self._given_indices = np.require(indices, index_dtype, ["C", "A"])
        self._indptr = np.require(indptr, index_dtype, ["C", "A"])
        self._check(op, len(data))
        # SciPy checks once whether indices are sorted; kernels detect it if that is out of date.
        if self.format == "csc" and not (is_sorted or self._first_fall() is None):
            data = self._sort_columns(data)
        # Rows of CSC are not contiguous, so its data are converted all at once.
        self.in_place = data.dtype == self.dtype and data.flags.aligned and data.flags.c_contiguous
        if not self.in_place and self.format == "csc":
            data = np.require(data, self.dtype, ["C", "A"])
            self.in_place = True
        self._data = data

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays that it reads."""
        return self._data, self._indices, self._indptr

    @property
    def layout(self) -> str:
        """What kernels read, for people."""
        return f"{self.given_dtype} {self.format.upper()}"

    def blocks(
        self,
        *,
        strided: bool = False,
        least: int = 0,
    ) -> Iterator[tuple[slice, KernelData]]:
        """Yield all rows in order, in place or in converted blocks."""
        rows, columns = self.shape
        if self.in_place:
            yield (
                slice(0, rows),
                (self.format, self._data, self._indices, self._indptr, self.shape),
            )
            return
        indptr = self._indptr
        entries = max(BLOCK_BYTES // self.dtype.itemsize, least * (len(self._data) // max(1, rows)))
        for begin, end in spans(indptr, entries):
            inside = slice(int(indptr[begin]), int(indptr[end]))
            data = np.array(self._data[inside], self.dtype)
            pointers = indptr[begin : end + 1] - indptr[begin]
            block = (self.format, data, self._indices[inside], pointers, (end - begin, columns))
            yield slice(begin, end), block

    def _check(self, op: str, n_data: int) -> None:
        """Raise ValueError unless the arrays fit each other; kernels check the indices only."""
        if self.shape[1] > MOST_SPARSE_COLUMNS:
            raise ValueError(f"{op}: X has shape {self.shape}, needs at most 2**32 columns")
        major = self.shape[0 if self.format == "csr" else 1]
        indptr = self._indptr
        if indptr.shape != (major + 1,):
            raise ValueError(f"{op}: X.indptr has shape {indptr.shape}, needs ({major + 1},)")
        if indptr[0] != 0 or np.any(indptr[1:] < indptr[:-1]):
            raise ValueError(f"{op}: X.indptr must start at 0 and never decrease")
        if indptr[-1] > min(n_data, len(self._indices)):
            raise ValueError(
                f"{op}: X.indptr ends at {indptr[-1]}, X.data and X.indices hold {n_data} and "
                f"{len(self._indices)} entries"
            )

    def complaint(self) -> str:
        """Return what is wrong with the indices, after a kernel has refused them."""
        minor = self.shape[1 if self.format == "csr" else 0]
        indices = self._given_indices[: max(0, int(self._indptr[-1]))]
        outside = np.flatnonzero((indices < 0) | (indices >= minor))
        if len(outside) > 0:
            return (
                f"X.indices[{outside[0]}] is {indices[outside[0]]}, X of shape {self.shape} needs "
                f"indices from 0 to {minor - 1}"
            )
        fall = self._first_fall() if self.format == "csc" else None
        if fall is not None:
            return (
                f"X.indices[{fall + 1}] is less than the index before it in its column, but "
                "X.has_sorted_indices is True; set it to False, then X.sort_indices() sorts them"
            )
        return "X.indices or X.indptr have changed during the call"

    def _sort_columns(self, data: Array) -> Array:
        """Sort the entries of each column by row; return the data in that order."""
        entries = slice(0, int(self._indptr[-1]))
        columns = np.repeat(np.arange(self.shape[1]), np.diff(self._indptr))
        order = np.lexsort((self._indices[entries], columns))
        self._indices = self._indices[entries][order]
        return np.asarray(data[entries][order])

    def _first_fall(self) -> int | None:
        """Return the first entry whose successor in its column has a lower row."""
        indices = self._indices[: max(0, int(self._indptr[-1]))]
        falls = indices[1:] < indices[:-1]
        starts = self._indptr[1:-1]
        falls[starts[(starts > 0) & (starts < len(indices))] - 1] = False
        return int(np.argmax(falls)) if falls.any() else None


def spans(indptr: Array, entries: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges of rows (columns) with at most so many entries, or a single one."""
    begin, n = 0, len(indptr) - 1
    number, most = indptr.dtype.type, np.iinfo(indptr.dtype).max
    while begin < n:
        # Of another dtype, what is looked for would have all of the array converted.
        last = number(min(int(indptr[begin]) + entries, most))
        end = int(np.searchsorted(indptr, last, "right")) - 1
        end = min(max(end, begin + 1), begin + entries, n)
        yield begin, end
        begin = end


Data: TypeAlias = Dense | Sparse


def as_matrix(op: str, X: Any) -> Any:
    """Return a data matrix, sparse or as an array: a view of the caller's memory if possible.

    Raises
    ------
    TypeError, ValueError
        If it is neither.
    """
    check_computed(op, "X", X)
    X = as_sparse(X)
    sparse = isinstance(getattr(X, "format", None), str) and not isinstance(X, np.ndarray)
    if sparse and (hasattr(X, "indptr") or hasattr(X, "tocsr")):
        return X
    return as_array(op, "X", X)


def as_data(op: str, X: Any) -> Data:
    """Return a data matrix, dense or sparse, for kernels; nothing large is copied.

    Raises
    ------
    TypeError
        If its dtype or sparse format has no kernel.
    ValueError
        If it is not a matrix, or a sparse one's arrays contradict each other.
    """
    X = as_matrix(op, X)
    return Dense(op, X) if isinstance(X, np.ndarray) else Sparse(op, X)


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype is ml_dtypes' bfloat16."""
    return dtype.type.__module__ == "ml_dtypes" and dtype.name == "bfloat16"


def _attribute(op: str, matrix: Any, name: str) -> Any:
    try:
        return getattr(matrix, name)
    except AttributeError as error:
        raise TypeError(
            f"{op}: X is in the sparse format {shown(matrix.format)}, but has no {name}"
        ) from error


def _extents(op: str, shape: Any) -> tuple[int, int]:
    """Return the shape of a sparse matrix, checked to be two extents."""
    if not isinstance(shape, tuple | list):
        raise TypeError(f"{op}: X.shape must be a tuple, not {shown(shape)}")
    extents = tuple(as_index(op, "X.shape", n, "a tuple of integers", shape) for n in shape)
    if len(extents) != 2 or not all(0 <= n <= sys.maxsize for n in extents):
        raise ValueError(f"{op}: X has shape {shown(extents)}, needs two axes (samples, features)")
    return extents


def _index_dtype(op: str, indices: Array, indptr: Array) -> np.dtype[Any]:
    for name, array in (("indices", indices), ("indptr", indptr)):
        if array.dtype.kind not in "iu":
            raise TypeError(f"{op}: X.{name} has dtype {array.dtype}, needs integers")
    small = indices.dtype.itemsize <= 4 and indices.dtype != np.uint32
    fits = small and (len(indptr) == 0 or indptr[-1] <= np.iinfo(np.int32).max)
    return np.dtype(np.int32 if fits else np.int64)


# --- sums over rows -------------------------------------------------------------------------------


class _DenseRows:
    """Rows of a dense matrix."""

    def __init__(self, X: Array) -> None:
        self._X = X.astype(np.float64, copy=False)

    def forward(self, w: Array) -> Array:
        """Return X w."""
        return self._X @ w

    def backward(self, slopes: Array, counts: Array | None) -> tuple[Array, Array]:
        """Return sums of the slopes, and X^T slopes: see `Rows`."""

        def part(rows: slice) -> Array:
            X = self._X[rows]
            if counts is None:
                return X.T @ slopes[rows]
            adds = (X != 0) & counts[rows, None]
            terms = (np.where(adds, X * slope[:, None], 0) for slope in slopes[rows].T)
            return np.stack([by_output.sum(axis=0) for by_output in terms], axis=1)

        return _sum_rows(slopes), tree_sum(part(rows) for rows in pieces(0, len(slopes)))

    def todense(self) -> Array:
        """Return X as an array of float64, not to be written to."""
        return self._X

    def norms(self, norm: Callable[..., Array]) -> Array:
        """Return the norm of each row, by ``norm(X)``."""
        return norm(self._X)


class _Entries:
    """Entries of a sparse matrix, at most a block of them; duplicates add up."""

    def __init__(
        self,
        shape: tuple[int, int],
        entries: Callable[[], Iterator[tuple[Array, Array, Array]]],
        *,
        by_columns: bool,
    ) -> None:
        self._shape = shape
        self._entries = entries  # rows, columns, data; of few rows, or of whole columns
        self._by_columns = by_columns

    def forward(self, w: Array) -> Array:
        """Return X w."""
        z = np.zeros((self._shape[0], w.shape[1]))
        for rows, columns, data in self._entries():
            for k in range(w.shape[1]):
                z[:, k] += np.bincount(rows, data * w[columns, k], self._shape[0])
        return z

    def backward(self, slopes: Array, counts: Array | None) -> tuple[Array, Array]:
        """Return sums of the slopes, and X^T slopes: see `Rows`."""

        def part(rows: Array, columns: Array, data: Array) -> Array:
            gw = np.zeros((self._shape[1], slopes.shape[1]))
            for k in range(slopes.shape[1]):
                terms = data * slopes[rows, k]
                if counts is not None:
                    terms = np.where((data != 0) & counts[rows], terms, 0)
                if not self._by_columns:
                    gw[:, k] = np.bincount(columns, terms, self._shape[1])
                elif len(columns):
                    starts = np.flatnonzero(np.diff(columns, prepend=-1))
                    gw[columns[starts], k] = np.add.reduceat(terms, starts)  # pairwise
            return gw

        return _sum_rows(slopes), tree_sum(part(*entries) for entries in self._entries())

    def todense(self) -> Array:
        """Return X as an array of float64."""
        X = np.zeros(self._shape)
        for rows, columns, data in self._entries():
            np.add.at(X, (rows, columns), data)
        return X

    def norms(self, _: Callable[..., Array]) -> Array:
        """Return the norm of each row; entries of one element add up."""
        largest = max((np.abs(data).max(initial=0) for *_, data in self._entries()), default=0)
        exponent = 0 if 2.0**-400 < largest < 2.0**400 else int(np.frexp(largest)[1])
        squares = np.zeros(self._shape[0])
        for rows, columns, data in self._entries():
            minor, major = (rows, columns) if self._by_columns else (columns, rows)
            if ((major[1:] == major[:-1]) & (minor[1:] <= minor[:-1])).any():
                order = np.lexsort((minor, major))
                rows, columns = rows[order], columns[order]
                moves = (np.diff(rows, prepend=-1) != 0) | (np.diff(columns, prepend=-1) != 0)
                starts = np.flatnonzero(moves)
                rows, data = rows[starts], np.add.reduceat(data[order], starts)
            squares += np.bincount(rows, np.square(np.ldexp(data, -exponent)), len(squares))
        norms: Array = np.ldexp(np.sqrt(squares), exponent)
        return norms


@contextmanager
def explaining(op: str, data: Data) -> Iterator[None]:
    """Replace an engine's terse error about sparse data by a full message."""
    try:
        yield
    except ValueError as error:
        if error.args[:1] != ("X",) or not isinstance(data, Sparse):
            raise
        raise ValueError(f"{op}: {data.complaint()}") from None


class Rows(Protocol):
    """Rows of a matrix, with the products that losses need."""

    def forward(self, w: Array) -> Array:
        """Return X w."""

    def backward(self, slopes: Array, counts: Array | None) -> tuple[Array, Array]:
        """Return the sums of the slopes (N, K), shape (K,), and X^T slopes, shape (D, K).

        If counts are given, only rows that count and elements that are not 0 contribute to
        X^T slopes.
        """


def _sum_rows(values: Array) -> Array:
    return tree_sum(values[rows].sum(axis=0) for rows in pieces(0, len(values)))


def pieces(begin: int, end: int) -> Iterator[slice]:
    """Yield slices of at most `ROWS` rows."""
    return (slice(i, min(i + ROWS, end)) for i in range(begin, end, ROWS))


def blocks_of_rows(X: KernelData) -> Iterator[tuple[slice, _DenseRows | _Entries]]:
    """Yield all rows in order; the rows of compressed columns at once, since they lie apart."""
    if isinstance(X, np.ndarray):
        n_rows, n_features = X.shape
        step = max(1, BLOCK_ENTRIES // max(1, n_features))
        for begin in range(0, n_rows, step):
            rows = slice(begin, min(begin + step, n_rows))
            yield rows, _DenseRows(X[rows])
        return
    layout, data, indices, indptr, shape = X
    for begin, end in spans(indptr, BLOCK_ENTRIES) if layout == "csr" else [(0, shape[0])]:
        if layout == "csr":
            extent, first = (end - begin, shape[1]), begin
            pointers = [(rows.start, rows.stop) for rows in pieces(begin, end)]
        else:
            extent, first, pointers = shape, 0, list(spans(indptr, BLOCK_ENTRIES)) or [(0, 0)]

        def entries(
            pointers: list[tuple[int, int]] = pointers, first: int = first
        ) -> Iterator[tuple[Array, Array, Array]]:
            for begin, end in pointers:
                inside = slice(int(indptr[begin]), int(indptr[end]))
                minor = indices[inside].copy()  # no other thread can change it after the check
                out = (minor < 0) | (minor >= shape[1 if layout == "csr" else 0])
                if out.any():
                    raise ValueError("X", begin - first)
                counts = np.diff(indptr[begin : end + 1])
                major = np.repeat(np.arange(begin - first, end - first), counts)
                rows, columns = (major, minor) if layout == "csr" else (minor, major)
                yield rows, columns, data[inside].astype(np.float64, copy=False)

        yield slice(begin, end), _Entries(extent, entries, by_columns=layout == "csc")

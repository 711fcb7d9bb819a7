"""Conversion of other libraries' data: lists, frames, tensors and masked arrays to NumPy arrays.

Any object that converts to an array is accepted: through ``__array__``, DLPack, or the columns of a
frame. Labels are ignored; elements go by position. Primitives return NumPy arrays for any input.
The one exception is NumPy's own: elementwise operations are ufuncs, so an operand with
``__array_ufunc__`` (pandas, Dask, polars) or a subclass of ndarray, such as a masked array,
overrides them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.shapes import MOST_AXES

__all__ = [
    "FLOAT32",
    "FLOAT64",
    "KERNEL_DTYPES",
    "admitted",
    "array_of",
    "as_sparse",
    "check_computed",
    "check_labels",
    "check_unmasked",
    "converted",
    "door_of",
    "is_of_python",
    "is_plain",
    "is_tabular",
    "is_weak",
    "kernel_dtype",
    "overriding",
    "shown",
]

Array: TypeAlias = npt.NDArray[Any]

_LONGEST: Final = 60  # characters of an argument that a message shows


def shown(given: object) -> str:
    """Return the repr of an argument for a message, on one line and shortened."""
    try:
        text = " ".join(repr(given).split())
    except ValueError:  # Python refuses to write the digits of a long integer
        text = f"<{type(given).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


# --- dtypes ---------------------------------------------------------------------------------------

FLOAT32: Final[np.dtype[Any]] = np.dtype(np.float32)
FLOAT64: Final[np.dtype[Any]] = np.dtype(np.float64)

# By type character, which ignores byte order and tells a long double from a double even where both
# are 8 bytes wide.
KERNEL_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    **dict.fromkeys("?bBhHef", FLOAT32),
    **dict.fromkeys("iIlLqQd", FLOAT64),
}


_ADVICE: Final = {
    "O": "; of numbers, astype(float) makes an array of floats",
    "U": "; strings that spell numbers are converted by astype(float)",
    "c": "; pass real and imaginary parts separately",
    "g": "; astype(float) gives float64",
    "M": "; a date becomes a number when another one is subtracted and a unit divides",
    "m": "; divided by a unit, such as numpy.timedelta64(1, 's'), it is a number",
}


def kernel_dtype(op: str, name: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the dtype, float32 or float64, in which an argument of `dtype` is computed.

    Parameters
    ----------
    op, name : str
        Operation and argument, for the error message.
    dtype : dtype_like
        The argument's dtype.

    Returns
    -------
    dtype
        float32 for bool, 8- and 16-bit integers, float16 and float32; float64 for wider integers
        and float64.

    Raises
    ------
    TypeError
        For any other dtype (complex, long double, object, strings, dates).
    """
    dtype = np.dtype(dtype)
    try:
        return KERNEL_DTYPES[dtype.char]
    except KeyError:
        kind = {"S": "U", "T": "U", "f": "g"}.get(dtype.kind, dtype.kind)
        raise TypeError(
            f"{op}: argument {name} has dtype {dtype}, for which there is no kernel; it takes "
            f"bool, integers, float16, float32 and float64{_ADVICE.get(kind, '')}"
        ) from None


def is_weak(operand: object) -> bool:
    """Tell whether `operand` is a Python number that adapts to the others' dtype (NEP 50)."""
    return isinstance(operand, int | float) and not isinstance(operand, bool | np.generic)


def converted(op: str, name: str, operand: Any, dtype: np.dtype[Any]) -> Array:
    """Return an array or a Python number in the dtype that it computes in.

    Raises
    ------
    TypeError
        If it is an integer that float64, or an integer dtype, does not hold.
    """
    try:
        return np.asarray(operand, dtype)
    except OverflowError:
        holds = dtype if dtype.kind == "i" else FLOAT64
        raise TypeError(f"{op}: argument {name} is an integer too large for {holds}") from None


# --- masked arrays, and types that override ufuncs ------------------------------------------------


def _hides(given: object, depth: int = MOST_AXES) -> bool:
    """Tell whether something is a masked array, or a list that holds one."""
    masked = sys.modules.get("numpy.ma")  # before its import there are no masked arrays
    if masked is None or not depth:
        return False
    if isinstance(given, list | tuple):
        return any(_hides(entry, depth - 1) for entry in given)
    return isinstance(given, masked.MaskedArray)


def check_unmasked(op: str, name: str, given: object) -> None:
    """Raise TypeError for a masked array, because NumPy would convert the hidden elements, too."""
    if _hides(given):
        raise TypeError(
            f"{op}: {name} is a masked array, whose mask would be lost; take its filled(value) or "
            "compressed()"
        )


BY_CHUNKS: Final = (
    "give LinearObjective chunks of rows: a function that yields (X.blocks[i].compute(), "
    "y.blocks[i].compute()) for each i"
)


def check_computed(op: str, name: str, given: object, advice: str = BY_CHUNKS) -> None:
    """Raise TypeError for a Dask collection, which would be computed into memory as a whole."""
    graph = getattr(given, "__dask_graph__", None)
    if isinstance(given, type) or not callable(graph):
        return
    # Dask's own always have a graph, which a frame takes long to make; an xarray's may be None.
    if type(given).__module__.startswith("dask") or graph() is not None:
        raise TypeError(
            f"{op}: {name} is a Dask collection, which would be computed into memory as a whole; "
            f"{advice}"
        )


def overriding(*given: object) -> bool:
    """Tell whether an argument overrides ufunc calls (Dask, pandas, ...)."""
    numpys = np.ndarray.__array_ufunc__
    return any(getattr(type(g), "__array_ufunc__", numpys) is not numpys for g in given)


def door_of(*given: object) -> Any:
    """Return `pullback.interop.autograd` if HIPS autograd traces an argument, else None."""
    boxes = getattr(sys.modules.get("autograd.tracer"), "box_types", ())
    if not any(type(g) in boxes for g in given):
        return None
    from pullback.interop import autograd  # noqa: PLC0415  which is there, as its boxes are

    return autograd


def is_plain(given: object) -> bool:
    """Tell whether ufuncs compute with it: not a subclass of ndarray, and not overriding."""
    kind = type(given)
    if kind is np.ndarray or kind is np.memmap:
        return True
    return not isinstance(given, np.ndarray) and not overriding(given)


def admitted(
    op: str, names: Sequence[str], given: Sequence[Any], out: Any, where: Any
) -> tuple[Any, ...]:
    """Return a ufunc's operands: arrays, numbers, and overriding operands unchanged.

    Raises
    ------
    TypeError
        If one does not convert to an array of numbers, or a mask would be lost in the output.
    """
    outs = [o for o in (out if isinstance(out, tuple) else (out,)) if o is not None]
    for target in outs:
        check_unmasked(op, "out", target)
        if not isinstance(target, np.ndarray) and not overriding(target):
            raise TypeError(f"{op}: out must be an array, not {type(target).__name__}")
    check_unmasked(op, "where", where)
    operands = []
    for name, operand in zip(names, given, strict=False):
        if outs:
            check_unmasked(op, name, operand)
        if is_weak(operand):
            if not overriding(*given):  # an overriding type may take any integer
                converted(op, name, operand, FLOAT64)
            operands.append(operand)
        elif _is_pandas(operand):
            operands.append(_homogeneous(op, name, operand, alone=len(given) == 1))
        elif overriding(operand):
            if (door := door_of(operand)) is not None:
                door.register(op)
            operands.append(operand)
        else:
            array = operand if isinstance(operand, np.ndarray) else array_of(op, name, operand)
            kernel_dtype(op, name, array.dtype)
            operands.append(array)
    return tuple(operands)


# --- arrays ---------------------------------------------------------------------------------------


def array_of(op: str, name: str, given: Any) -> Array:
    """Return an argument as an array.

    Raises
    ------
    TypeError, ValueError
        If NumPy cannot convert it, as for a ragged list, or it is masked, sparse, a string, or has
        columns that are not numbers. An error from the argument's own code passes unchanged, unless
        the argument is another library's array.
    """
    check_unmasked(op, name, given)
    if given is None or isinstance(given, str | bytes):
        raise TypeError(f"{op}: argument {name} must be numbers, not {shown(given)}")
    if hasattr(given, "tocsr") or hasattr(given, "indptr"):
        raise TypeError(
            f"{op}: argument {name} is sparse, and is not made dense implicitly; "
            f"give {name}.toarray()"
        )
    if _is_pandas(given):
        return _of_pandas(op, name, given)
    array = _asked(op, name, given)
    if array.dtype.char in KERNEL_DTYPES or isinstance(given, list | tuple):
        return array
    labels = getattr(given, "column_names", getattr(given, "columns", None))
    if labels is not None and array.ndim == 2:
        return _of_columns(op, name, {label: given[label] for label in labels})
    if array.dtype == object and array.ndim == 0:
        hint = f"; give {name}.collect()" if hasattr(given, "collect") else ""
        if getattr(type(given), "__array_ufunc__", ...) is None:
            hint = "; its __array_ufunc__ is None, which refuses ufuncs"
        raise TypeError(
            f"{op}: argument {name} must be numbers, or convert to an array of them, not "
            f"{shown(given)}{hint}"
        )
    return _of_column(given, array)


def _asked(op: str, name: str, given: Any) -> Array:
    """Return NumPy's conversion of an argument."""
    is_foreign = hasattr(type(given), "__dlpack__") and not isinstance(given, np.ndarray)
    by_dlpack = is_foreign and not hasattr(type(given), "__array__")
    try:
        array: Array = np.from_dlpack(given) if by_dlpack else np.asarray(given)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        ours = type(error) in (TypeError, ValueError) and not is_of_python(error)
        if not (ours or is_foreign):
            raise
        kind = ValueError if isinstance(error, ValueError) else TypeError
        text = f"{op}: argument {name} does not convert to an array: {error}"
        raise kind(text) from (error if is_foreign else None)
    # NumPy makes arrays of objects of long integers.
    is_long = array.dtype == object and is_weak(given)
    return converted(op, name, given, FLOAT64) if is_long else array


def is_of_python(error: Exception) -> bool:
    """Tell whether an error that a caller has caught came from Python code, such as a method."""
    here = error.__traceback__
    return here is not None and here.tb_next is not None  # C code leaves no frame below here


# --- frames ---------------------------------------------------------------------------------------


def _no_numbers(op: str, name: str, unfit: Iterable[tuple[Any, Any]]) -> TypeError:
    listed = ", ".join(f"{label!r} ({dtype})" for label, dtype in unfit)
    return TypeError(
        f"{op}: argument {name} has columns that are not numbers: {listed}; encode categories, "
        "such as by pandas.get_dummies, convert numbers that are objects by astype(float), or "
        "leave the columns out"
    )


def _of_columns(op: str, name: str, columns: dict[Any, Any]) -> Array:
    """Return columns side by side, a missing value as NaN."""
    arrays = {label: _of_column(column, np.asarray(column)) for label, column in columns.items()}
    unfit = [
        (label, _dtype(columns[label]))
        for label, array in arrays.items()
        if array.dtype.char not in KERNEL_DTYPES
    ]
    if unfit:
        raise _no_numbers(op, name, unfit)
    return np.stack(list(arrays.values()), axis=1)


def _dtype(column: Any) -> Any:
    return getattr(column, "dtype", getattr(column, "type", None))


def _of_column(column: Any, array: Array) -> Array:
    """Return a column's array; NumPy has no dtype for bools with missing values."""
    is_bools = array.dtype == object and str(_dtype(column)).lower().startswith("bool")
    return array.astype(np.float64) if is_bools else array


def _is_pandas(given: Any) -> bool:
    """Tell whether something is a pandas frame, column or index."""
    return hasattr(type(given), "isna") and hasattr(type(given), "to_numpy")


def is_tabular(given: Any) -> bool:
    """Tell whether something is a frame, a table, or a column of pandas."""
    return _is_pandas(given) or hasattr(given, "columns") or hasattr(given, "column_names")


def _pandas_dtypes(op: str, name: str, given: Any) -> list[Any]:
    """Return the dtypes of a frame's columns, or of a column; TypeError if one is no number."""
    if given.ndim > 1:
        dtypes = list(given.dtypes)
        unfit = [(c, d) for c, d in zip(given.columns, dtypes, strict=True) if not _is_number(d)]
        if unfit:
            raise _no_numbers(op, name, unfit)
        return dtypes
    if not _is_number(given.dtype):
        hint = _ADVICE.get(given.dtype.kind, "")
        hint = f"; give {name}.cat.codes" if str(given.dtype) == "category" else hint
        raise TypeError(f"{op}: argument {name} has dtype {given.dtype}, which is no number{hint}")
    return [given.dtype]


def _is_number(dtype: Any) -> bool:
    if isinstance(dtype, np.dtype):
        return dtype.char in KERNEL_DTYPES
    types = sys.modules["pandas"].api.types
    return bool(types.is_numeric_dtype(dtype) or types.is_bool_dtype(dtype))


def _of_pandas(op: str, name: str, given: Any) -> Array:
    """Return a frame or a column as an array, with NaN for missing values."""
    dtypes = _pandas_dtypes(op, name, given)
    kinds = list(dict.fromkeys(dtypes))
    if len(kinds) < 2:
        return _of_block(given, kinds[0]) if kinds else np.empty(given.shape)
    places = [[k for k, dtype in enumerate(dtypes) if dtype == kind] for kind in kinds]
    blocks = [_of_block(given.iloc[:, at], kind) for at, kind in zip(places, kinds, strict=True)]
    whole = np.empty(given.shape, np.result_type(*(b.dtype for b in blocks)), order="F")
    for at, block in zip(places, blocks, strict=True):
        whole[:, at] = block
    return whole


def _of_block(block: Any, dtype: Any) -> Array:
    if isinstance(dtype, np.dtype):
        return np.asarray(block)
    if hasattr(dtype, "subtype"):  # sparse
        return np.asarray(block, dtype.subtype)
    plain = getattr(dtype, "numpy_dtype", FLOAT64)
    if plain.char not in KERNEL_DTYPES:  # of decimals
        plain = FLOAT64
    elif plain.kind != "f" and np.asarray(block.isna()).any():
        plain = KERNEL_DTYPES[plain.char]
    return np.asarray(block.to_numpy(plain, na_value=np.nan))


def _homogeneous(op: str, name: str, given: Any, *, alone: bool) -> Any:
    """Return an operand for pandas' own ufuncs: a frame, unless alone, converted to one dtype."""
    dtypes = set(_pandas_dtypes(op, name, given))
    if alone or given.ndim == 1 or (len(dtypes) < 2 and all(hasattr(d, "char") for d in dtypes)):
        return given
    return type(given)(_of_pandas(op, name, given), index=given.index, columns=given.columns)


def as_sparse(given: Any) -> Any:
    """Return a frame whose columns are all sparse as CSR, and anything else unchanged."""
    if not (_is_pandas(given) and given.ndim > 1 and given.shape[1]):
        return given
    sparse = all(str(dtype).startswith("Sparse[") for dtype in given.dtypes)
    return given.sparse.to_coo().tocsr() if sparse else given


def check_labels(op: str, names: Sequence[str], given: Sequence[Any]) -> None:
    """Raise ValueError if pandas objects that go element by element have different labels."""
    labelled = [
        (name, g.index)
        for name, g in zip(names, given, strict=False)
        if _is_pandas(g) and hasattr(g, "index")
    ]
    for name, index in labelled[1:]:
        first, other = labelled[0]
        if len(index) == len(other) and not index.equals(other):
            raise ValueError(
                f"{op}: {first} and {name} have different labels: align them, such as by "
                f"{name}.loc[{first}.index], or give {name}.to_numpy() to go by position"
            )

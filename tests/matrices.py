"""What tests of matrix products judge by: layouts, exact products, error bounds, guarded outputs.

The bound is the textbook's for a sum of k products in any order, fused or not: each element errs
by at most ``(k + 2) u`` times the same product of magnitudes. Long double has 11 bits more than
float64, so that up to k = 4096 its own error stays below the 2 in that bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
MAX_TERMS = 4096


# --- data -----------------------------------------------------------------------------------------


def integers(rng: np.random.Generator, shape: Any, dtype: Any, most: int = 9) -> Any:
    """Return small integers, of which every sum of products is exact."""
    return rng.integers(-most, most + 1, shape).astype(dtype)


def normal(rng: np.random.Generator, shape: Any, dtype: Any) -> Any:
    """Return numbers of all magnitudes between 1e-3 and 1e3, so that errors cannot hide."""
    return (rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 3, shape)).astype(dtype)


# --- layouts --------------------------------------------------------------------------------------


def _fortran(x: Any) -> Any:
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(x, -1, -2)), -1, -2) if x.ndim > 1 else x


def _reversed(x: Any) -> Any:
    flip = (..., *(slice(None, None, -1),) * min(x.ndim, 2))
    return np.ascontiguousarray(x[flip])[flip]


def _every_second(x: Any) -> Any:
    wide = np.full(tuple(2 * n for n in x.shape), np.nan, x.dtype)
    view = wide[(slice(None, None, 2),) * x.ndim]
    view[...] = x
    return view


def _columns_of_wider(x: Any) -> Any:
    wide = np.full((*x.shape[:-1], x.shape[-1] + 3), np.nan, x.dtype)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def _offset(x: Any) -> Any:
    flat = np.full(x.size + 2, np.nan, x.dtype)[1:-1]
    flat[...] = x.reshape(-1)
    return flat.reshape(x.shape)


def _misaligned(x: Any) -> Any:
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    view = raw.view(x.dtype).reshape(x.shape)
    view[...] = x
    assert view.size == 0 or not view.flags.aligned
    return view


def _read_only(x: Any) -> Any:
    x = x.copy()
    x.flags.writeable = False
    return x


def _repeated_rows(x: Any) -> Any:
    return np.broadcast_to(x[..., :1, :], x.shape) if x.ndim > 1 else _read_only(x)


def _repeated_columns(x: Any) -> Any:
    return np.broadcast_to(x[..., :1], x.shape)


# Operands in every layout that NumPy has; the last two repeat elements by a stride of 0.
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "C": np.copy,
    "Fortran": _fortran,
    "reversed": _reversed,
    "every second": _every_second,
    "columns of a wider one": _columns_of_wider,
    "offset by an element": _offset,
    "misaligned": _misaligned,
    "read-only": _read_only,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "repeated rows": _repeated_rows,
    "repeated columns": _repeated_columns,
}
OUT_LAYOUTS = [*LAYOUTS][:7]


class GuardedOut:
    """An output full of NaN in some layout, amid bytes that nobody may touch."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, layout: str) -> None:
        self.array = LAYOUTS[layout](np.zeros(shape, dtype))
        base = self.array
        while isinstance(base.base, np.ndarray):
            base = base.base
        self._whole = base.reshape(-1).view(np.uint8)
        self._whole[...] = 0
        self.array.view(f"u{self.array.itemsize}")[...] = np.iinfo(f"u{self.array.itemsize}").max
        self._outside = self._whole == 0
        self._whole[self._outside] = 0x5A
        self.array[...] = np.nan

    def check(self, expected: Any) -> None:
        """Fail unless the output holds `expected` and all around it is as it was."""
        np.testing.assert_array_equal(self.array, expected)
        assert (self._whole[self._outside] == 0x5A).all()


# --- verdicts -------------------------------------------------------------------------------------


def wide(*arrays: Any) -> list[Any]:
    """Return arrays as long doubles."""
    return [np.asarray(a).astype(np.longdouble) for a in arrays]


def assert_within(actual: Any, exact: Any, magnitude: Any, terms: float) -> None:
    """Fail where `actual` is off by more than (terms + 2) u times `magnitude`."""
    actual = np.asarray(actual)
    assert actual.shape == exact.shape, (actual.shape, exact.shape)
    assert terms <= MAX_TERMS or actual.dtype == np.float32, "the oracle is not good enough"
    u = np.finfo(actual.dtype).eps / 2
    error = np.abs(actual.astype(np.longdouble) - exact)
    wrong = ~(error <= (terms + 2) * u * magnitude)
    if wrong.any():
        where = tuple(int(i[0]) for i in np.nonzero(wrong)) if wrong.ndim else ()
        raise AssertionError(
            f"{np.count_nonzero(wrong)} of {wrong.size} elements are off by more than "
            f"({terms} + 2) u, first at {where}: {actual[where]!r} is not {exact[where]!r}"
        )


def assert_product(actual: Any, left: Any, right: Any) -> None:
    """Fail unless `actual` is left @ right up to rounding, each element by itself."""
    left, right = wide(left, right)
    terms = left.shape[-1]
    assert_within(actual, left @ right, np.abs(left) @ np.abs(right), terms)


def naive_cotangents(A: Any, B: Any, G: Any) -> list[tuple[Any, int]]:
    """Return (dA, dB), expanded and then summed, and the number of terms in each of their sums.

    One-dimensional operands are a row and a column, as in `numpy.matmul`.
    """
    rows = A[None, :] if A.ndim == 1 else A
    columns = B[:, None] if B.ndim == 1 else B
    batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    G = G.reshape(*batch, rows.shape[-2], columns.shape[-1])
    results = []
    for full, operand, own, terms in (
        (np.einsum("...ij,...kj->...ik", G, columns), A, rows, G.shape[-1]),
        (np.einsum("...ji,...jk->...ik", rows, G), B, columns, G.shape[-2]),
    ):
        lacking = full.ndim - own.ndim
        axes = (
            *range(lacking),
            *(i for i in range(lacking, full.ndim) if own.shape[i - lacking] != full.shape[i]),
        )
        summed = full.sum(axis=axes)
        repeats = int(np.prod([full.shape[i] for i in axes], dtype=int))
        results.append((summed.reshape(operand.shape), terms * repeats))
    return results


def assert_cotangents(actual: Any, A: Any, B: Any, G: Any) -> None:
    """Fail unless `actual` are the cotangents (dA, dB) up to rounding."""
    exact = naive_cotangents(*wide(A, B, G))
    magnitudes = naive_cotangents(*map(np.abs, wide(A, B, G)))
    for one, (value, terms), (magnitude, _) in zip(actual, exact, magnitudes, strict=True):
        assert_within(one, value, magnitude, terms)

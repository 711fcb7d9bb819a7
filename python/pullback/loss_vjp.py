"""vjp of a linear model's loss, and its own derivatives, in X, w, b and offset.

With predictions z = X w + b + offset, and r the derivatives of the weighted losses at z times g,
the cotangents are r w^T of X, X^T r of w, the sum of r of b, and r of offset. Their tangents have
two parts. One has in the place of r its tangent, which is that of z times the second derivatives;
the other has in the place of X and w theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.design_matrix import BLOCK_ENTRIES, Data, as_data, explaining
from pullback.native_rows import sizes_kept
from pullback.partial import Reduction, tree_sum
from pullback.protocol import (
    as_array,
    as_number,
    check_outs,
    check_wrt,
    is_weak,
    kernel_dtype,
    shape_of,
)
from pullback.registry import Hinted
from pullback.samples import (
    OPERANDS,
    Model,
    Samples,
    change_of_slopes,
    check_direction,
    parameter_dtype,
    raising_as,
    weighing,
)

if TYPE_CHECKING:
    from pullback.losses import Loss

__all__ = ["LossVjp", "Wanted", "likes_of"]

Array: TypeAlias = npt.NDArray[Any]

# Operands by name or position, one of them or several.
Wanted: TypeAlias = str | int | tuple[str | int, ...]

_MOVED: tuple[str, ...] = (*OPERANDS, "offset")  # all but y have a cotangent


class _Direction(NamedTuple):
    """A tangent of a model and its data, for kernels; None is zero."""

    X: Data | None = None
    w: Array | None = None  # (D, K)
    b: Array | None = None  # (K,)
    offset: Array | None = None  # (N, K) or (N, 1)

    @property
    def is_zero(self) -> bool:
        return all(part is None for part in self)


class LossVjp(Hinted):
    """The gradients of a loss times a cotangent of its value. It is a primitive itself.

    Its methods `jvp` and `vjp` are those of a function of X, w, b, offset and g.

    Parameters
    ----------
    loss : Loss
        The loss whose attribute ``vjp`` it is.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self.__name__ = f"{loss.__name__}.vjp"
        self.__doc__ = type(self).__call__.__doc__

    def __repr__(self) -> str:
        return f"<vjp of {self._loss!r}>"

    def __reduce__(self) -> Any:
        return getattr, (self._loss, "vjp")

    @raising_as("`value_and_grad`")
    def __call__(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None,
        g: float,
        sample_weight: npt.ArrayLike | None = None,
        out: Any = None,
        *,
        offset: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
        wrt: Wanted = ("w", "b"),
    ) -> Any:
        """Return g times the gradients, those for `w` and `b` unless `wrt` asks for others.

        Parameters
        ----------
        X, y, w, b, sample_weight, out, offset, reduction
            As for `value_and_grad`.
        g : float
            Cotangent of the value.
        wrt : str, int, a tuple of them, or "all"
            The variables, "X", "w", "b" and "offset", by name or position: 4 is the offset.

        Returns
        -------
        tuple or ndarray
            As the gradients of `value_and_grad`. That for an offset has its shape and dtype; it is
            None where there is no offset.
        """
        op = self.__name__
        given = X, y, w, b, sample_weight, offset
        return self._results(op, "", given, g, None, (), reduction, wrt, out)

    @raising_as("`value_and_grad`")
    def jvp(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None,
        g: float,
        tX: npt.ArrayLike | None,
        tw: npt.ArrayLike | None,
        tb: npt.ArrayLike | None,
        tg: float | None,
        sample_weight: npt.ArrayLike | None = None,
        out: Any = None,
        *,
        offset: npt.ArrayLike | None = None,
        toffset: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
        wrt: Wanted = ("w", "b"),
    ) -> Any:
        """Return the tangents of vjp's results, in one pass over `X`.

        Parameters
        ----------
        X, y, w, b, g, sample_weight, out, offset, reduction, wrt
            As for `vjp`.
        tX, tw, tb, tg, toffset : array_like, shapes of the operands, or None
            Tangents. None is zero, and a number fills a shape. `tX` may be sparse, whether `X` is
            or not. Targets and weights have none.

        Returns
        -------
        tuple or ndarray
            In the shapes, dtypes and kinds of vjp's results.

        Notes
        -----
        It is g times the Hessian times the tangents of X, w, b and offset, plus tg times the
        gradients. `tX` takes two passes over itself. At a kink the second derivative is that of the
        piece from which the first derivative comes.
        """
        op = f"{self.__name__}.jvp"
        given, tangents = (X, y, w, b, sample_weight, offset), (tX, tw, tb, toffset)
        tg = None if tg is None else as_number(op, "tg", tg)
        return self._results(op, "t", given, g, tg, tangents, reduction, wrt, out)

    @raising_as("`value_and_grad`")
    def vjp(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        w: npt.ArrayLike,
        b: npt.ArrayLike | None,
        g: float,
        hX: npt.ArrayLike | None,
        hw: npt.ArrayLike | None,
        hb: npt.ArrayLike | None,
        sample_weight: npt.ArrayLike | None = None,
        out: Any = None,
        *,
        offset: npt.ArrayLike | None = None,
        hoffset: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
        wrt: Wanted = ("w", "b", "g"),
    ) -> Any:
        """Return cotangents of vjp's operands, in one pass over `X`.

        Parameters
        ----------
        X, y, w, b, g, sample_weight, out, offset, reduction
            As for `vjp`.
        hX, hw, hb, hoffset : array_like, shapes of the operands, or None
            Cotangents of vjp's results for X, w, b and offset. None is zero, and a number fills a
            shape. `hX` may be sparse, whether `X` is or not.
        wrt : str, int, a tuple of them, or "all"
            The operands, "X", "w", "b", "offset" and "g", by name or position: 4 is the offset, and
            5 is g.

        Returns
        -------
        tuple or ndarray
            In the shapes, dtypes and kinds of vjp's results; for g a float.

        Notes
        -----
        It is g times the Hessian times the cotangents, which is what `jvp` computes: the Hessian is
        symmetric. For g it is the derivative of the loss along them.
        """
        op = f"{self.__name__}.vjp"
        given, cotangents = (X, y, w, b, sample_weight, offset), (hX, hw, hb, hoffset)
        return self._results(op, "h", given, g, None, cotangents, reduction, wrt, out)

    # --- what they share ---

    def _results(
        self,
        op: str,
        prefix: str,
        given: tuple[Any, ...],
        g: Any,
        tg: float | None,
        moved: tuple[Any, ...],
        reduction: str,
        wrt: Any,
        out: Any,
    ) -> Any:
        """Return, as they are asked for, g times the Hessian times a direction, plus tg gradients.

        The names of the direction's parts have a prefix. Without one there is none, and g is tg.
        """
        names = (*_MOVED, "g") if prefix == "h" else _MOVED
        asked = check_wrt(op, wrt, names, without=("y",))
        wanted = [names[k] for k in asked.operands]
        if g is None:
            raise TypeError(f"{op}: g is None, which is no cotangent")
        g = as_number(op, "g", g)
        samples, model = self._loss._arguments(op, *given)
        samples, by = weighing(op, reduction, samples)
        along = _direction(op, prefix, moved, samples, model) if prefix else _Direction()
        tg = tg if prefix else g
        likes = likes_of(samples, model) | {"offset": (None, None), "g": ((), np.dtype(float))}
        if samples.offset is not None:
            dtype = parameter_dtype(op, "offset", as_array(op, "offset", given[-1]).dtype)
            likes["offset"] = samples.offset.shape, dtype
        shapes, dtypes = zip(*(likes[name] for name in wanted), strict=True)
        outs = check_outs(op, out, shapes, dtypes, single=asked.single)
        labels = op, f"{op}, {prefix}X"
        sums = _Pass(labels, self._loss, samples, model, by, along, (g, tg), wanted)
        sums.run()
        results = [_cotangent(n, likes[n], samples, model, along, sums) for n in wanted]
        for k, target in enumerate(outs):  # each may be an operand
            if target is not None:
                with np.errstate(all="ignore"):
                    np.copyto(target, results[k], casting="same_kind")
                results[k] = target
        return asked.result(results)


def likes_of(samples: Samples, model: Model) -> dict[str, tuple[Any, Any]]:
    """Return the shapes, or None, and the dtypes of the gradients for X, w and b."""
    kinds, data = model.kinds, samples.data
    X_dtype = np.dtype(np.float64) if data.given_dtype.kind in "biu" else data.dtype
    b = np.asarray(0.0 if kinds.b is None else kinds.b)
    return {
        "X": (data.shape, X_dtype),
        "w": (kinds.w_shape, kinds.w_dtype),
        "b": (None if kinds.b is None else b.shape, b.dtype),
    }


def _direction(
    op: str, prefix: str, given: tuple[Any, ...], samples: Samples, model: Model
) -> _Direction:
    """Return tangents of X, w, b and offset in the shapes of these.

    Raises
    ------
    TypeError
        If a dtype has no kernel.
    ValueError
        If a shape is another, or there is a tangent of an operand that is None.
    """
    of_X, of_w, of_b, of_offset = given
    X = None
    if of_X is not None:
        X = as_data(f"{op}, {prefix}X", _filled(op, f"{prefix}X", of_X, "X", samples.data.shape))
    w, b = check_direction(op, (of_w, of_b), model, prefix)
    offset = None
    if of_offset is not None:
        name = f"{prefix}offset"
        if samples.offset is None:
            raise ValueError(f"{op}: {name} is given, but offset is None")
        whole = _filled(op, name, of_offset, "offset", samples.offset.shape)
        offset = np.asarray(whole, np.float64).reshape(samples.n_samples, -1)
    return _Direction(X, None if of_w is None else w, None if of_b is None else b, offset)


def _filled(op: str, name: str, given: Any, of: str, shape: tuple[int, ...]) -> Any:
    """Return a tangent of an operand's shape, dense or sparse; a number fills the shape."""
    if is_weak(given):
        return np.broadcast_to(as_number(op, name, given), shape)
    has = shape_of(op, name, given)
    if has != shape:
        raise ValueError(f"{op}: {name} has shape {has}, {of} has {shape}")
    if not hasattr(given, "format"):
        given = as_array(op, name, given)
        kernel_dtype(op, name, given.dtype)
    return given


class _Pass:
    """One pass over X: g times the Hessian times a direction, plus tg times the gradients.

    Parameters
    ----------
    labels : (str, str)
        What messages call the operation, and the direction's part by X.
    loss : Loss
        The loss.
    samples, model : Samples, Model
        Its arguments.
    by : float
        The divisor of the sums.
    along : _Direction
        The direction.
    factors : (float, float or None)
        g and tg.
    wanted : sequence of str
        The operands whose results are wanted.
    """

    def __init__(
        self,
        labels: tuple[str, str],
        loss: Loss,
        samples: Samples,
        model: Model,
        by: float,
        along: _Direction,
        factors: tuple[float, float | None],
        wanted: Sequence[str],
    ) -> None:
        self._labels, self._loss, self._samples, self._model = labels, loss, samples, model
        self._along, (self._g, self._tg) = along, factors
        weight = samples.sample_weight
        self._wanted, self._by = frozenset(wanted), by
        self._weights = None if weight is None else (weight / by)[:, None]
        self._scale = 1 / by
        self._backward, self._by_g = "w" in wanted, "g" in wanted
        # With the tangents of X and w go the slopes themselves.
        crossed = (along.X, self._backward), (along.w, "X" in wanted)
        self._crossed = any(is_wanted and part is not None for part, is_wanted in crossed)
        shape = samples.n_samples, model.w.shape[1]
        self.slopes = np.zeros(shape)  # of the predictions; the operands' results follow from them
        self.cross = np.zeros(shape) if self._crossed else None
        self.gb, self.gw = np.zeros(shape[1]), np.zeros(model.w.shape)
        self.derivative = 0.0  # of the loss, along the direction

    def run(self) -> None:
        """Compute the slopes and the sums."""
        samples, along, K = self._samples, self._along, self.slopes.shape[1]
        parts = (self._tg is not None) + (not along.is_zero)
        by_parameters = self._wanted <= {"w", "b"} and along.X is None and along.offset is None
        if parts == 1 and by_parameters:
            self._run_job()
            return
        self._loss._check_rows(self._labels[0], samples, K)
        if parts == 0:
            return
        # A user's functions must not resize what is read.
        read = [*samples.data.arrays, samples.y, samples.sample_weight, samples.offset]
        read += [] if along.X is None else along.X.arrays
        with np.errstate(all="ignore"), sizes_kept(*read):
            self._by_X = None if along.X is None else self._forward(along.X)
            w = self._model.w if along.w is None else np.hstack([self._model.w, along.w])
            blocks = self._blocks(samples.data)
            sums = tree_sum(self._sums(rows, block, w) for rows, block in blocks)
            self.derivative, self.gb = float(sums[0]), sums[1 : 1 + K]
            if self._backward:
                self.gw = sums[1 + K :].reshape(self.gw.shape)
                if along.X is not None:
                    self.gw = self.gw + self._along_X(along.X)

    def _run_job(self) -> None:
        """Compute the sums in the kernels' own pass for gradients, or for products with them."""
        along, about = self._along, (self._labels[0], self._samples, self._model)
        if self._tg is not None:
            factor, sums = self._tg, self._loss._sums(*about, "gradient")
        else:
            vw, vb = (
                self.gw if along.w is None else along.w,
                self.gb if along.b is None else along.b,
            )
            factor, sums = self._g, self._loss._sums(*about, "hvp", v=(vw, vb))
        with np.errstate(all="ignore"):
            self.gw, self.gb = factor * sums.gw / self._by, factor * sums.gb / self._by

    def _blocks(self, data: Data) -> Iterator[tuple[slice, Any]]:
        """Yield all rows in order, with what multiplies by them."""
        for whole, X in data.blocks():
            for part, block in self._loss._blocks(X, self.slopes.shape[1]):
                yield slice(whole.start + part.start, whole.start + part.stop), block

    def _sums(self, rows: slice, block: Any, w: Array) -> Array:
        """Return the derivative along the direction, gb and gw of a block, in one vector."""
        try:
            both = block.forward(w)
            derivative = self._score(rows, both)
            slopes = self.slopes[rows]
            if not self._backward:
                return np.concatenate([[derivative], slopes.sum(axis=0)])
            gb, gw = block.backward(slopes, self._counts(rows, slopes, both))
        except ValueError as error:
            about = rows.start, self._samples, self.slopes.shape[1]
            self._loss._explain(self._labels[0], error, *about)
        return np.concatenate([[derivative], gb, gw.ravel()])

    def _score(self, rows: slice, both: Array) -> float:
        """Write slopes of a block, from X w and the product with the tangent of w beside it.

        Return the derivative of its losses along the direction.
        """
        along, y, K = self._along, self._samples.y[rows], self.slopes.shape[1]
        z = both[:, :K] + self._model.b
        if self._samples.offset is not None:
            z += self._samples.offset[rows].reshape(len(z), -1)
        first = np.zeros(z.shape)
        if self._tg is not None or self._crossed or self._by_g:
            first = self._weighted(rows, self._loss._pointwise_of(z, y, 1))
        if self._tg is not None:
            self.slopes[rows] = self._tg * first
        if self.cross is not None:
            self.cross[rows] = self._g * first
        if along.is_zero:
            return 0.0
        dz = both[:, K:] if along.w is not None else np.zeros(z.shape)
        for part in (self._by_X, along.offset):
            dz = dz if part is None else dz + part[rows]
        dz = dz if along.b is None else dz + along.b
        if self._wanted != {"g"}:
            second = self._loss._pointwise_of(z, y, 2)
            curved = change_of_slopes(self._loss.row, second, y, dz)
            self.slopes[rows] += self._weighted(rows, self._g * curved)
        return float(np.sum(np.where(first == 0, 0, first * dz)))

    def _weighted(self, rows: slice, values: Array) -> Array:
        """Return values of a block times weights over the divisor; of weight 0 they are 0."""
        if self._weights is None:
            return values * self._scale
        weights = self._weights[rows]
        return np.where(weights == 0, 0, values * weights)

    def _counts(self, rows: slice, slopes: Array, z: Array) -> Array | None:
        """Return which rows count, or None where all of X is finite, since products are."""
        if np.isfinite(slopes).all() and np.isfinite(z).all():
            return None
        weight = self._samples.sample_weight
        return np.ones(len(slopes), bool) if weight is None else weight[rows] != 0

    def _forward(self, data: Data) -> Array:
        """Return the change of predictions with X."""
        z = np.empty(self.slopes.shape)
        with explaining(self._labels[1], data):
            for rows, block in self._blocks(data):
                z[rows] = block.forward(self._model.w)
        return z

    def _along_X(self, data: Data) -> Array:
        """Return the change of gw with X."""
        assert self.cross is not None
        assert self._by_X is not None
        cross, z = self.cross, self._by_X

        def part(rows: slice, block: Any) -> Array:
            gw: Array = block.backward(cross[rows], self._counts(rows, cross[rows], z[rows]))[1]
            return gw

        with explaining(self._labels[1], data):
            return tree_sum(part(rows, block) for rows, block in self._blocks(data))


def _cotangent(
    name: str, like: Any, samples: Samples, model: Model, along: _Direction, sums: _Pass
) -> Any:
    """Return the result for an operand, in its form."""
    shape, dtype = like
    if name == "g":
        return sums.derivative
    if name in ("w", "b"):
        return model.kinds.deliver(sums.gw, sums.gb)[name == "b"]
    if shape is None:
        return None
    if name == "X":
        terms = [(sums.slopes, model.w)]
        if along.w is not None and sums.cross is not None:
            terms.append((sums.cross, along.w))
        return _outer(shape, dtype, terms, samples.sample_weight)
    with np.errstate(all="ignore"):
        slopes = sums.slopes if len(shape) == 2 else sums.slopes.sum(axis=1)
        return slopes.reshape(shape).astype(dtype)


def _outer(
    shape: tuple[int, int], dtype: Any, terms: list[tuple[Array, Array]], weight: Array | None
) -> Array:
    """Return the sum of products of slopes (N, K) and coefficients (D, K), shape (N, D).

    A row of weight 0 is 0, and slopes that are not finite do not meet a coefficient of 0.
    """
    pairs = [(s[:, k, None], w[:, k]) for s, w in terms for k in range(s.shape[1])]
    finite = all(np.isfinite(a).all() for pair in pairs for a in pair)
    result = np.empty(shape, dtype)
    step = max(1, BLOCK_ENTRIES // 4 // max(1, shape[1]))  # which stay in cache
    product, total = np.empty((2, min(step, shape[0]), shape[1]))
    with np.errstate(all="ignore"):
        for begin in range(0, shape[0], step):
            n = min(step, shape[0] - begin)
            rows, whole = slice(begin, begin + n), total[:n]
            whole[...] = 0
            for slopes, w in pairs:
                np.multiply(slopes[rows], w, out=product[:n])
                if not finite:
                    product[:n, w == 0] = 0
                whole += product[:n]
            if weight is not None and not finite:
                whole[weight[rows] == 0] = 0
            result[rows] = whole
    return result

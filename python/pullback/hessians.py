"""Hessians of linear models' losses, assembled from weighted Gram matrices of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.grams import gram_matrices
from pullback.samples import Model, Samples, sums_of_targets

if TYPE_CHECKING:
    from pullback.losses import Loss

__all__ = ["assembled", "hessian_sums"]

Array: TypeAlias = npt.NDArray[Any]


def hessian_sums(loss: Loss, op: str, samples: Samples, model: Model, scale: float = 1.0) -> Array:
    """Return the sum of the samples' Hessians in ``[w.ravel(), b]``, times their weights.

    The first pass computes predictions, and the second sums products of columns of X. A loss of
    classes takes one such pass for each class, which computes its blocks with the later classes.
    The memory is that of the predictions and of two results.
    """
    K, intercept = model.w.shape[1], model.kinds.b is not None
    kept = np.empty((samples.n_samples, K))
    loss._sums(op, samples, model, "curvature", kept=kept)
    weight = samples.sample_weight
    factors: Any = scale if weight is None else (weight * scale)[:, None]
    if loss.row.of_classes and samples.y.ndim > 1:
        factors = factors * sums_of_targets(samples.y)[:, None]

    def blocks() -> Iterator[tuple[int, int, Array]]:
        for k in range(K if loss.row.of_classes else 1):
            with np.errstate(all="ignore"):
                columns = _class_factors(kept, k) if loss.row.of_classes else kept
                columns *= factors
            if weight is not None:
                columns[weight == 0] = 0
            grams = gram_matrices(loss._engine, op, samples.data, columns, intercept=intercept)
            for i, gram in enumerate(grams):
                yield (k, k + i, gram) if loss.row.of_classes else (i, i, gram)

    return assembled(model.w.shape, model.kinds.b, blocks())


def assembled(shape: tuple[int, ...], like: Any, blocks: Iterable[tuple[int, int, Array]]) -> Array:
    """Return a symmetric matrix in ``[w.ravel(), b]`` from (k, l, block) of outputs k <= l.

    In a block, the intercept's column follows those of X.
    """
    (D, K), intercept = shape, like is not None
    if K == 1:
        ((_, _, block),) = blocks
        return block + 0.0
    # Where column j of X and output k are.
    place = np.arange((D + intercept) * K).reshape(D + intercept, K)
    if intercept and np.size(like) < K:
        place[D] = D * K  # one is shared
    whole = np.zeros((place[-1, -1] + 1 if place.size else 0,) * 2)
    for one, other, block in blocks:
        rows, columns = place[:, one, None], place[:, other, None]
        with np.errstate(all="ignore"):
            whole[rows, columns.T] += block
            if one != other:  # an intercept that is shared may be in both
                whole[columns, rows.T] += block.T
    return whole


def _class_factors(p: Array, k: int) -> Array:
    """Return p_k (1 - p_k), then -p_k p_l for the classes l > k, with 1 - p_k to full accuracy."""
    factors = -p[:, k:]
    factors[:, 0] = np.delete(p, k, axis=1).sum(axis=1)
    factors *= p[:, k, None]
    return factors

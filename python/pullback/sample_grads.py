"""Gradients of a linear model's loss for each sample, as slopes times rows of the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.config import guarded_class
from pullback.design_matrix import Data, blocks_of_rows, explaining
from pullback.grams import gram_matrices
from pullback.hessians import assembled
from pullback.partial import Kinds
from pullback.protocol import as_number
from pullback.reductions import make_reductions
from pullback.registry import Hinted
from pullback.samples import Model, Samples

if TYPE_CHECKING:
    from pullback.losses import Loss

__all__ = ["SampleGradients"]

Array: TypeAlias = npt.NDArray[Any]


@guarded_class
class SampleGradients(Hinted):
    """The gradient of each sample's loss in a linear model's parameters, in factored form.

    A loss's `sample_grads` returns it. The gradient of sample i is the outer product of its row
    ``x_i``, with a 1 appended if there are intercepts, and its slopes ``s_i``. The slopes are the
    derivatives of its weighted loss in its K predictions. As a vector of n parameters the gradient
    is in the order of ``[w.ravel(), b]``. The object keeps the slopes, N K numbers, and a reference
    to the data, which each method reads anew.

    Parameters
    ----------
    loss : Loss
        The loss.
    data : Data
        The samples.
    slopes : ndarray, shape (N, K), float64
        Derivatives in the predictions.
    kinds : Kinds
        The form of the parameters' gradients.

    Examples
    --------
    Differentially private training adds noise to a sum of clipped gradients.

    >>> import numpy as np
    >>> import pullback as pb
    >>> X, y = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]), np.array([1.0, 0.0, 1.0])
    >>> gradients = pb.squared_error.sample_grads(X, y, np.ones(2))
    >>> gradients.norms()
    array([ 8.94427191, 70.        ,  0.        ])
    >>> gradients.clip(1.0).norms().round(8)
    array([1., 1., 0.])
    >>> gradients.sum()
    (array([46., 64.]), None)
    >>> gradients.todense()
    array([[ 4.,  8.],
           [42., 56.],
           [ 0.,  0.]])
    """

    def __init__(self, loss: Loss, data: Data, slopes: Array, kinds: Kinds) -> None:
        self._loss, self._data, self._kinds = loss, data, kinds
        self.slopes = slopes

    def __len__(self) -> int:
        """Return the number of samples, N."""
        return len(self.slopes)

    def __repr__(self) -> str:
        n, size = self.shape
        return f"<SampleGradients of {self._loss!r}: N={n}, {size} parameters>"

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples and of parameters, (N, n)."""
        n_samples, n_outputs = self.slopes.shape
        return n_samples, self._data.shape[1] * n_outputs + self._by_intercepts.shape[1]

    def norms(self) -> Array:
        """Return the Euclidean norm of each sample's gradient, shape (N,), in one pass over X."""
        norm2 = make_reductions(self._loss._engine)["norm2"]

        def norm(rows: Array) -> Array:
            norms: Array = np.abs(rows[:, 0]) if rows.shape[1] == 1 else norm2(rows, axis=1)
            return norms

        with np.errstate(all="ignore"), explaining("SampleGradients.norms", self._data):
            of_rows = [np.empty(0)]
            for _, X in self._data.blocks():
                if isinstance(X, np.ndarray) and X.dtype == np.float64:
                    of_rows.append(norm(X))
                else:
                    of_rows += [block.norms(norm) for _, block in blocks_of_rows(X)]
            by_w = norm(self.slopes) * np.concatenate(of_rows)
            return np.where(self._counts, np.hypot(by_w, norm(self._by_intercepts)), 0)

    def clip(self, c: float) -> SampleGradients:
        """Return the gradients, with those whose norm exceeds `c` scaled down to the norm `c`.

        Parameters
        ----------
        c : float
            The largest norm, not negative.

        Returns
        -------
        SampleGradients
            The clipped gradients of the same data. Rounding never makes a norm exceed `c`.

        Raises
        ------
        TypeError, ValueError
            If `c` is not a number, or is negative.
        """
        op = "SampleGradients.clip"
        c = as_number(op, "c", c)
        if not c >= 0:
            raise ValueError(f"{op}: c is {c}, needs to be a number that is not negative")
        norms = self.norms()
        with np.errstate(all="ignore"):
            factors = np.where(norms > c, c / norms * (1 - 2.0**-48), 1)
            slopes = self.slopes * factors[:, None]
        return SampleGradients(self._loss, self._data, slopes, self._kinds)

    def sum(self) -> tuple[Array, Any]:
        """Return the sums of all gradients for w and for b, in one pass over X.

        Returns
        -------
        (gw, gb) : tuple
            In the shapes, dtypes and kinds of the gradients of the loss.
        """
        n, n_outputs = self.slopes.shape
        kinds, counts = self._kinds, self._counts
        model = Model(np.zeros((self._data.shape[1], n_outputs)), np.zeros(n_outputs), kinds)
        weights = None if counts.all() else counts.astype(np.float64)
        # The slopes of (z - 0)**2 are 2 z, and z is the offset where the coefficients are 0.
        targets = np.zeros((n, n_outputs))
        samples = Samples(self._data, targets, targets, weights, float(n), 0.5 * self.slopes)
        linear = self._loss._sibling("squared_error")
        sums = linear._sums("SampleGradients.sum", samples, model, "gradient")
        return kinds.deliver(sums.gw, sums.gb)

    def gram(self) -> Array:
        """Return the sum of the gradients' outer products, shape (n, n), in K passes over X.

        It is the middle factor of a robust (sandwich) covariance, and the empirical Fisher
        information.
        """
        engine, outputs, like = self._loss._engine, self.slopes.shape[1], self._kinds.b

        def blocks() -> Iterator[tuple[int, int, Array]]:
            for k in range(outputs):
                with np.errstate(all="ignore"):
                    factors = self.slopes[:, k:] * self.slopes[:, k, None]
                about = engine, "SampleGradients.gram", self._data, factors
                for i, gram in enumerate(gram_matrices(*about, intercept=like is not None), k):
                    yield k, i, gram

        return assembled((self._data.shape[1], outputs), like, blocks())

    def todense(self) -> Array:
        """Return all gradients as an array, shape (N, n), float64."""
        dense, counts, by_b = np.empty(self.shape), self._counts, self._by_intercepts
        size = dense.shape[1] - by_b.shape[1]
        dense[:, size:] = by_b
        with np.errstate(all="ignore"), explaining("SampleGradients.todense", self._data):
            for rows, X in self._blocks():
                elements = X.todense()[:, :, None]
                products = np.where(elements == 0, 0, elements * self.slopes[rows, None, :])
                products[~counts[rows]] = 0
                dense[rows, :size] = products.reshape(len(products), size)
        return dense

    @property
    def _counts(self) -> Array:
        """Whether a sample has a nonzero slope; the other samples' rows of X do not matter."""
        counts: Array = (self.slopes != 0).any(axis=1)
        return counts

    @property
    def _by_intercepts(self) -> Array:
        """Gradients for the intercepts: none, one, or one for each output."""
        n_intercepts = 0 if self._kinds.b is None else np.size(self._kinds.b)
        if n_intercepts in (0, self.slopes.shape[1]):
            return self.slopes[:, :n_intercepts]
        with np.errstate(all="ignore"):
            shared: Array = self.slopes.sum(axis=1, keepdims=True)
        return shared

    def _blocks(self) -> Iterator[tuple[slice, Any]]:
        for whole, X in self._data.blocks():
            for part, block in blocks_of_rows(X):
                yield slice(whole.start + part.start, whole.start + part.stop), block

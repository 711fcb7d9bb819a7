"""Matrix products and what is made of them: layers, quadratic and bilinear forms."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pullback import elementwise
from pullback.contraction import numpy_product
from pullback.reference.forms import BilinearForm, QuadraticForm
from pullback.reference.linear import Linear
from pullback.reference.matmul import Matmul

__all__ = ["bilinear_form", "linear", "matmul", "products", "quadratic_form"]

# NumPy's product is its BLAS; a kernel of our own goes in here and nowhere else.
matmul = Matmul(numpy_product, __name__)
linear = Linear(numpy_product, __name__, elementwise.primitives)
quadratic_form = QuadraticForm(numpy_product, __name__)
bilinear_form = BilinearForm(numpy_product, __name__)

products: Final[Mapping[str, Any]] = MappingProxyType(
    {f.__name__: f for f in (matmul, linear, quadratic_form, bilinear_form)}
)

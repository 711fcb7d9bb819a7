"""Matrix product and its derivatives."""

from __future__ import annotations

import numpy as np

from pullback.reference.matmul import Matmul

__all__ = ["matmul"]

# NumPy's product is its BLAS; a kernel of our own goes in here and nowhere else.
matmul = Matmul(np.matmul, __name__)

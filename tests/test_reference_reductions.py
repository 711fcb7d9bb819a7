"""The NumPy twins of the reductions against mpmath."""

from __future__ import annotations

import math
from typing import Any

import pullback as pb
import pytest
from protocol import dtypes
from pullback.tables.elementwise import REFERENCE_MAX_ULP
from pullback.tables.reductions import REDUCTIONS
from reduction_oracles import check_map, check_reduction, samples


@dtypes
@pytest.mark.parametrize("name", REDUCTIONS)
def test_against_mathematics(name: str, dtype: Any) -> None:
    twin = getattr(pb.reference, name)
    for sample in samples(name, dtype):
        (check_map if sample.row.is_map else check_reduction)(twin, sample, REFERENCE_MAX_ULP)


@dtypes
@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_judge_rejects_what_is_wrong_by_a_thousandth(name: str, dtype: Any) -> None:
    twin = getattr(pb.reference, name)

    class Wrong:
        @staticmethod
        def value_and_grad(*args: Any, **kwargs: Any) -> Any:
            value, gradient = twin.value_and_grad(*args, **kwargs)
            if isinstance(gradient, tuple):
                return value, tuple(g * dtype.type(1.001) for g in gradient)
            return value, gradient * dtype.type(1.001)

        @staticmethod
        def vjp(*args: Any, **kwargs: Any) -> Any:
            return twin.vjp(*args, **kwargs) * dtype.type(1.001)

        value, jvp = twin.value, twin.jvp

    sample = next(s for s in samples(name, dtype) if s.x.size == 17 and s.parameter != math.inf)
    check = check_map if sample.row.is_map else check_reduction
    check(twin, sample, REFERENCE_MAX_ULP)
    with pytest.raises(AssertionError, match="of the bound"):
        check(Wrong, sample, REFERENCE_MAX_ULP)

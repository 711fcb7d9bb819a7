"""The table of matrix products, layers and forms.

One row says which operands a product has, which shapes fit, what its methods return and how, and
which options they take. The primitives, the tests, the stubs and the catalogue read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import pullback.second_order as so
from pullback.oracle import products

__all__ = ["PRODUCTS", "ProductRow"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ProductRow:
    """Everything there is to say about one product."""

    name: str
    summary: str
    formula: str
    signature: str  # as of NumPy's generalised ufuncs; "..." where there may be a batch
    operands: Mapping[str, str]  # name -> what it has to be
    optional: str | None = None  # the operand that may be None, and that calls may omit
    cotangent: str  # what a cotangent of the result is called
    result: str
    options: Mapping[str, str] = field(default_factory=dict)  # of every method, by keyword
    wrt: Any = "all"  # the default of value_and_grad
    methods: Mapping[str, str]  # what each of them returns
    second_formula: str  # H(t), the derivative of vjp along tangents, without an activation
    value: Callable[..., Any]  # this and the next two: see `pullback.oracle.products`
    vjp: Callable[..., Any]
    jvp: Callable[..., Any]
    second: Callable[..., Any]  # see `pullback.second_order`
    source: str
    example: str  # a call, behind the product's name

    def arguments(self, method: str) -> tuple[str, ...]:
        """Return the names of a method's positional arguments."""
        match method:
            case "vjp":
                return (*self.operands, self.cotangent)
            case "jvp":
                return (*self.operands, *(f"t{name}" for name in self.operands))
            case "vjp.jvp":
                tangents = [f"t{name}" for name in (*self.operands, self.cotangent)]
                return (*self.operands, self.cotangent, *tangents)
            case "vjp.vjp":
                return (*self.operands, self.cotangent, *(f"h{name}" for name in self.operands))
        return tuple(self.operands)


# fmt: off
_ROWS: Final = (
    ProductRow(name="matmul", summary="Matrix product, for every shape that `numpy.matmul` takes",
        formula="A @ B",
        signature="(..., m?, k), (..., k, n?) -> (..., m?, n?)",
        operands={
            "A": "array_like, shape (k,) or (..., m, k)",
            "B": "array_like, shape (k,) or (..., k, n)",
        },
        cotangent="G",
        result="shape (..., m, n) without the axes that one-dimensional operands lack",
        methods={
            "vjp": "`(G @ B.T, A.T @ G)`, summed where a batch broadcasts",
            "jvp": "`tA @ B + A @ tB`",
            "jacobian": "two `Kronecker`: `I (x) B.T` and `A (x) I`",
        },
        second_formula="`(G @ tB.T, tA.T @ G)`",
        value=products.matmul,
        vjp=products.matmul_vjp,
        jvp=products.matmul_jvp,
        second=so.matmul,
        source="<G, dA B + A dB> = <G B^T, dA> + <A^T G, dB>",
        example=".vjp([[1.0, 2.0]], [[3.0], [4.0]], [[1.0]])"),

    ProductRow(name="linear", summary="Linear layer: a matrix product, a bias and an activation",
        formula="activation(X @ W + b)",
        signature="(..., k), (k, n), (n) -> (..., n)",
        operands={
            "X": "array_like, shape (k,) or (..., k): samples",
            "W": "array_like, shape (k, n): weights",
            "b": "array_like, shape (n,), or None: a bias",
        },
        optional="b",
        cotangent="G",
        result="shape (n,) or (..., n)",
        options={
            "activation": "None, or a unary elementwise primitive or its name, such as 'relu'",
        },
        methods={
            "vjp": "`(H @ W.T, X.T @ H, sum of H)`, where `H = f.vjp(Z, G)`",
            "jvp": "`f.jvp(Z, tX @ W + X @ tW + tb)`",
            "jacobian": "`f'(Z)` times `I (x) W.T`, `X (x) I`, a `Broadcast`",
        },
        second_formula="`(G @ tW.T, tX.T @ G, 0)`",
        value=products.linear,
        vjp=products.linear_vjp,
        jvp=products.linear_jvp,
        second=so.linear,
        source="chain rule, with Z = X @ W + b and f the activation",
        example="([[1.0, 2.0]], [[3.0], [4.0]], [0.5], activation='relu')"),

    ProductRow(name="quadratic_form", summary="Quadratic form, of each vector of a batch",
        formula="x^T A x",
        signature="(..., n), (n, n) -> (...)",
        operands={
            "x": "array_like, shape (..., n)",
            "A": "array_like, shape (n, n), which need not be symmetric",
        },
        cotangent="g",
        result="shape (...)",
        wrt=0,
        methods={
            "vjp": "`(g (A + A^T) x, sum of g x x^T)`",
            "jvp": "`tx^T (A + A^T) x + x^T tA x`",
            "value_and_grad": "`(x^T A x, (A + A^T) x)`, for one `x`",
            "jacobian": "two `Kronecker`, one row for each `x`",
        },
        second_formula="`(g (A + A^T) tx + g (tA + tA^T) x, sum of g (tx x^T + x tx^T))`",
        value=products.quadratic_form,
        vjp=products.quadratic_form_vjp,
        jvp=products.quadratic_form_jvp,
        second=so.quadratic_form,
        source="product rule",
        example=".value_and_grad([1.0, 2.0], [[2.0, 1.0], [1.0, 3.0]])"),

    ProductRow(name="bilinear_form", summary="Bilinear form, of each pair of vectors of a batch",
        formula="u^T X v",
        signature="(..., m), (m, n), (..., n) -> (...)",
        operands={
            "u": "array_like, shape (..., m)",
            "X": "array_like, shape (m, n)",
            "v": "array_like, shape (..., n), whose batch broadcasts with that of `u`",
        },
        cotangent="g",
        result="the broadcast shape of the batches",
        methods={
            "vjp": "`(g X v, sum of g u v^T, g X^T u)`, summed where a batch broadcasts",
            "jvp": "`tu^T X v + u^T tX v + u^T X tv`",
            "value_and_grad": "`(u^T X v, (X v, u v^T, X^T u))`, for one `u` and `v`",
            "jacobian": "three `Kronecker`, one row for each `u` and `v`",
        },
        second_formula="`(g (tX v + X tv), sum of g (tu v^T + u tv^T), g (tX^T u + X^T tu))`",
        value=products.bilinear_form,
        vjp=products.bilinear_form_vjp,
        jvp=products.bilinear_form_jvp,
        second=so.bilinear_form,
        source="product rule",
        example=".value_and_grad([1.0, 2.0], [[2.0, 1.0], [1.0, 3.0]], [1.0, 0.0])"),
)
# fmt: on

PRODUCTS: Final[Mapping[str, ProductRow]] = MappingProxyType({row.name: row for row in _ROWS})

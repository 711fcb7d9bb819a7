"""Print the coefficients of gamma-inl.h and of the NumPy twin, each with its largest error.

Rational functions interpolate at Chebyshev's nodes, in 110-digit arithmetic. They are close to
minimax, because what they stand for is smooth. All their coefficients have one sign where the
argument does: nothing cancels. It needs mpmath, and half a minute::

    python cpp/math/gamma_coefficients.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpmath import mp, mpf

mp.dps = 110
TINY = mpf(10) ** -30
ROOT = mp.findroot(lambda x: mp.psi(0, x), mpf("1.4616321449683623"))

Function = Callable[[Any], Any]


def rational(f: Function, low: Any, high: Any, n: int, m: int) -> tuple[list[Any], list[Any]]:
    """Return p of degree n and q of degree m, q(0) = 1, such that p/q is f at as many nodes."""
    count = n + m + 1
    a, b = mp.matrix(count, count), mp.matrix(count, 1)
    for i in range(count):
        x = (low + high) / 2 + (high - low) / 2 * mp.cos((2 * i + 1) * mp.pi / (2 * count))
        b[i] = f(x)
        for j in range(n + 1):
            a[i, j] = x**j
        for j in range(1, m + 1):
            a[i, n + j] = -b[i] * x**j
    s = list(mp.lu_solve(a, b))
    return s[: n + 1], [mpf(1), *s[n + 1 :]]


def polynomial(c: list[Any], x: Any) -> Any:
    """Return c[0] + c[1]*x + ..."""
    return sum((c[j] * x**j for j in range(len(c))), mpf(0))


# --- what is fitted -------------------------------------------------------------------------------


def near_one_and_two(v: Any) -> Any:
    """Return f of log Gamma(1 + v) = v*(v - 1)*(1 - euler + (v - 1)*f(v)) for 0 <= v <= 2."""
    t = v - 1 + TINY
    return (mp.loggamma(2 + t) / (t * (1 + t)) - (1 - mp.euler)) / t


def near_root(v: Any) -> Any:
    """Return f of psi(1 + v) = t*(psi'(root) + t*f(v)), t = 1 + v - root, for 0 <= v <= 1."""
    t = 1 + v - ROOT + TINY
    return (mp.psi(0, ROOT + t) / t - mp.psi(1, ROOT)) / t


def binet(w: Any) -> Any:
    """Return f of log Gamma(x) = (x - 1/2)*log(x) - x + log(2*pi)/2 + f(1/x**2)/x, for x >= 3."""
    x = 1 / mp.sqrt(w)
    return (mp.loggamma(x) - (x - mpf(1) / 2) * mp.log(x) + x - mp.log(2 * mp.pi) / 2) * x


def far_digamma(w: Any) -> Any:
    """Return f of psi(x) = log(x) - 1/(2*x) - w*f(w), for x >= 2."""
    x = 1 / mp.sqrt(w)
    return (mp.log(x) - 1 / (2 * x) - mp.psi(0, x)) / w


def trigamma(w: Any) -> Any:
    """Return f of psi'(x) = 1/x + w/2 + w*f(w)/x, for x >= 1."""
    x = 1 / mp.sqrt(w)
    return (mp.psi(1, x) - 1 / x - w / 2) * x / w


def tetragamma(w: Any) -> Any:
    """Return f of -psi''(x) = w + w/x + w*w*f(w), for x >= 1."""
    x = 1 / mp.sqrt(w)
    return (-mp.psi(2, x) - w - w / x) / w**2


def sine(u: Any) -> Any:
    """Return f of sin(pi*r) = pi*r*(1 + u*f(u)), u = r**2, for r <= 1/2."""
    r = mp.sqrt(u + TINY)
    return (mp.sin(mp.pi * r) / (mp.pi * r) - 1) / (u + TINY)


def cotangent(u: Any) -> Any:
    """Return f of pi*cot(pi*r) = (1 - u*f(u))/r, u = r**2, for r <= 1/4."""
    r = mp.sqrt(u + TINY)
    return (1 - mp.pi * r * mp.cos(mp.pi * r) / mp.sin(mp.pi * r)) / (u + TINY)


Row = tuple[str, Function, Any, tuple[tuple[int, int], ...], Function]

# Name, function, end of the range (it begins at 0), degrees (last: for float32), and how much of
# the result it makes, by its argument.
ROWS: tuple[Row, ...] = (
    ("Near", near_one_and_two, mpf(2), ((8, 8), (5, 5)),
     lambda v: (v - 1) / (mp.loggamma(1 + v) / (v * (v - 1)))),
    ("ByRoot", near_root, mpf(1), ((5, 5), (3, 3)),
     lambda v: (1 + v - ROOT) / (mp.psi(0, 1 + v) / (1 + v - ROOT))),
    ("Binet", binet, mpf(1) / 9, ((4, 4), (2, 2)),
     lambda w: mp.sqrt(w) / mp.loggamma(1 / mp.sqrt(w))),
    ("Far", far_digamma, mpf(1) / 4, ((6, 6), (3, 3)), lambda w: w / mp.psi(0, 1 / mp.sqrt(w))),
    ("Trigamma", trigamma, mpf(1), ((10, 10), (5, 5)),
     lambda w: w * mp.sqrt(w) / mp.psi(1, 1 / mp.sqrt(w))),
    ("Tetragamma", tetragamma, mpf(1), ((11, 11),),
     lambda w: w * w / mp.psi(2, 1 / mp.sqrt(w))),
    ("Sine", sine, mpf(1) / 4, ((8, 0), (5, 0)),
     lambda u: u * mp.pi * mp.sqrt(u) / mp.sin(mp.pi * mp.sqrt(u))),
    ("Cotangent", cotangent, mpf(1) / 16, ((8, 0), (5, 0)), lambda u: u),
)  # fmt: skip


def show(name: str, coefficients: list[Any]) -> None:
    """Print an array in C++ and in Python."""
    numbers = [float(c) for c in coefficients]
    print(f"  static constexpr double k{name}[] = {{{', '.join(n.hex() for n in numbers)}}};")
    print(f"_{name.upper()}: Final = ({', '.join(map(repr, numbers))},)")


def pieces(name: str, x: Any) -> None:
    """Print a number as the sum of two."""
    high = float(x)
    low = float(x - high)
    print(f"{name}: {high.hex()} + {low.hex()}, {high!r} + {low!r}")


def main() -> None:
    """Print everything."""
    for name, f, high, all_degrees, share in ROWS:
        low = mpf(10) ** -20
        for degrees, kind in zip(all_degrees, ("", "ForFloat32"), strict=False):
            p, q = rational(f, low, high, *degrees)
            p, q = ([mpf(float(c)) for c in r] for r in (p, q))
            points = (low + (high - low) * (i + mpf(1) / 2) / 300 for i in range(300))
            error = max(
                abs((polynomial(p, x) / polynomial(q, x) - f(x)) * share(x)) for x in points
            )
            print(f"// {name}{kind}: error 2^{float(mp.log(error, 2)):.1f} of the result")
            show(f"{name}{kind}", p)
            if len(q) > 1:
                show(f"{name}Over{kind}", q)
    pieces("1 - euler", 1 - mp.euler)
    pieces("root", ROOT)
    pieces("psi'(root)", mp.psi(1, ROOT))
    pieces("log(2*mp.pi)/2 - 1/2", mp.log(2 * mp.pi) / 2 - mpf(1) / 2)
    pieces("pi^2", mp.pi**2)
    pieces("pi", mp.pi)


if __name__ == "__main__":
    main()

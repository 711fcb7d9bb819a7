"""log |Gamma| and its derivatives, in float64: rational functions, reflected to the left of 0.

Coefficients: ``cpp/math/gamma_coefficients.py``, which says what each of them makes.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pullback.oracle.elementwise import horner, in_float64

Array: TypeAlias = npt.NDArray[Any]


def _quotient(numerator: tuple[float, ...], denominator: tuple[float, ...], x: Any) -> Any:
    return horner(numerator, x) / horner(denominator, x)


def _to_whole(a: Array) -> Any:
    """Return the distance of `a` to the nearest whole number, with the sign of `a` less that."""
    finite = np.minimum(a, 2.0**53)
    return finite - np.rint(finite)


def _log_gamma(a: Array) -> Any:
    """Return log Gamma(a) for a >= 1, log Gamma(1 + a) below."""
    v = np.where(a < 1, a, a - 1)
    near = np.minimum(v, 2)
    near = near * (near - 1) * (_NEAR_TWO + (near - 1) * _quotient(_NEAR, _NEAR_OVER, near))
    x = np.maximum(a, 3)
    tail = _quotient(_BINET, _BINET_OVER, 1 / x / x) / x
    return np.where(a < 3, near + 0.0, (x - 0.5) * (np.log(x) - 1) + (tail + _HALF_LOG_2_PI))


@in_float64
def gammaln(x: Array) -> Any:
    a = np.abs(x)
    up = _log_gamma(a)
    r = np.abs(_to_whole(a))
    sine = r * (1 + r * r * horner(_SINE, r * r))
    left = -(np.log(np.where(a < 1, 1, np.minimum(a, 2.0**53)) * sine) + up)
    left = np.where(r == 0, np.inf, left)
    return np.where(x < 0, left, np.where(a < 1, up - np.log(a), up))


def _pi_cotangent(a: Array) -> Any:
    """Return pi*cot(pi*a), infinite at poles."""
    whole = _to_whole(a)
    r = np.abs(whole)
    far = r > 0.25
    m = np.where(far, 0.5 - r, r)
    g = 1 - m * m * horner(_COTANGENT, m * m)
    return np.copysign(np.where(far, _PI_SQUARE * m, g) / np.where(far, g, m), whole)


@in_float64
def digamma(x: Array) -> Any:
    a = np.abs(x)
    v = np.where(a < 1, a, np.minimum(a, 2) - 1)
    t = (v - (_ROOT - 1)) - _ROOT_REST
    near = t * (_SLOPE + t * _quotient(_BY_ROOT, _BY_ROOT_OVER, v))
    # psi(a) from psi(1 + a) on the right, psi(1 + a) from psi(a) on the left.
    near = near + np.where((a < 1) != (x < 0), -np.copysign(1 / a, x), 0)
    far = np.maximum(a, 2)
    w = 1 / far / far
    tail = np.copysign(0.5 / far, x) + w * _quotient(_FAR, _FAR_OVER, w)
    value = np.where(a < 2, near, np.log(far) - tail)
    cot = _pi_cotangent(a)
    left = np.where(np.isinf(cot) & (a >= 1), np.nan, value + cot)
    return np.where(x == 0, -np.copysign(np.inf, x), np.where(x < 0, left, value))


@in_float64
def trigamma(x: Array) -> Any:
    a = np.abs(x)
    z = 1 / np.where(x < 1, 1 + a, a)
    w = z * z
    value = z + w * (0.5 + z * _quotient(_TRIGAMMA, _TRIGAMMA_OVER, w))
    cot = _pi_cotangent(a)
    left = cot * cot + (_PI_SQUARE - value)
    return np.where(x < 0, left, np.where(a < 1, np.square(1 / a) + value, value))


@in_float64
def tetragamma(x: Array) -> Any:
    a = np.abs(x)
    z = 1 / np.where(x < 1, 1 + a, a)
    w = z * z
    value = w + w * (z + w * _quotient(_TETRAGAMMA, _TETRAGAMMA_OVER, w))
    cot = _pi_cotangent(a)
    left = 2 * cot * (cot * cot + _PI_SQUARE) - value
    left = np.where(np.isinf(cot) & (a >= 1), np.nan, left)
    right = -np.where(a < 1, 2 / a / a / a + value, value)
    return np.where(x == 0, -np.copysign(np.inf, x), np.where(x < 0, left, right))


_NEAR_TWO: Final = 0.42278433509846713  # 1 - Euler's constant
_HALF_LOG_2_PI: Final = 0.4189385332046727  # less 1/2
_PI_SQUARE: Final = 9.869604401089358
_ROOT: Final = 1.4616321449683622
_ROOT_REST: Final = 9.549995429965697e-17
_SLOPE: Final = 0.9676722454476212
_NEAR: Final = (
    -0.15443132980306573,
    -0.48232225036009163,
    -0.5911336415231595,
    -0.3615410449002225,
    -0.11616505771429868,
    -0.018932290334696764,
    -0.0013782048421522239,
    -3.2052754373165474e-05,
    -4.9573800135883305e-09,
)
_NEAR_OVER: Final = (
    1.0,
    3.7113083841892056,
    5.592003815754938,
    4.404132511934473,
    1.946883779726212,
    0.48293768322738845,
    0.06355041195840916,
    0.003873184283397303,
    7.798466272204055e-05,
)
_BINET: Final = (
    0.08333333333333326,
    0.6998240164053198,
    1.4475495319750598,
    0.7401533079759969,
    0.047949044061082816,
)
_BINET_OVER: Final = (
    1.0,
    8.431221530195907,
    17.642111292169787,
    9.39675554873276,
    0.7707173798157785,
)
_BY_ROOT: Final = (
    -0.6124094587805609,
    -0.7458154720104606,
    -0.2965082909441263,
    -0.0443625346842368,
    -0.0019942175755986347,
    -5.269091381090607e-07,
)
_BY_ROOT_OVER: Final = (
    1.0,
    2.0748493918955035,
    1.4571719613321832,
    0.433976056889698,
    0.05376468732870874,
    0.0021111588319927795,
)
_FAR: Final = (
    0.08333333333333326,
    1.5265158318013932,
    8.969259726573686,
    20.64281735189045,
    18.136513112569652,
    4.9017207658015405,
    0.18481485600197364,
)
_FAR_OVER: Final = (
    1.0,
    18.418189981615505,
    109.42531666972745,
    257.82928319218325,
    239.04035861185372,
    74.49702297826968,
    4.8924342052212015,
)
_TRIGAMMA: Final = (
    0.16666666666666513,
    4.911459234106098,
    53.72590277451864,
    283.6539459581578,
    787.2942905379506,
    1173.536528232211,
    921.1387803256451,
    357.79787872337755,
    60.509008475255825,
    3.382503297466484,
    0.026391521315308922,
)
_TRIGAMMA_OVER: Final = (
    1.0,
    29.668755404628143,
    328.1463105867063,
    1763.5145441102084,
    5035.069819784395,
    7849.964392151895,
    6619.139691702458,
    2887.6549328305723,
    594.1976693126338,
    47.93046243323644,
    0.9689588847274284,
)
_TETRAGAMMA: Final = (
    0.49999999999999667,
    18.833713058799052,
    269.63931826633166,
    1916.5475654703976,
    7415.270958471917,
    16115.695729902034,
    19608.494998881943,
    12919.23961573345,
    4294.634615728876,
    630.0217880126315,
    30.830971656662978,
    0.2116951328101018,
)
_TETRAGAMMA_OVER: Final = (
    1.0,
    38.00075945092407,
    551.6122230179146,
    4004.8989519672878,
    16002.771292364332,
    36504.89547615979,
    47749.714241315814,
    35054.33806217702,
    13726.495030037237,
    2604.5145978235482,
    198.74156799846767,
    3.901483759271273,
)
_SINE: Final = (
    -1.6449340668482264,
    0.8117424252833536,
    -0.19075182412208389,
    0.026147847817640922,
    -0.002346081035170168,
    0.00014842878972770888,
    -6.975851212142348e-06,
    2.5303274566671434e-07,
    -7.114052818770147e-09,
)
_COTANGENT: Final = (
    3.2898681336964533,
    2.164646467421509,
    2.0346861242956797,
    2.008154658917316,
    2.0019935241890625,
    2.0002919022176484,
    2.005478642425247,
    1.9174609891003684,
    2.6677375727101458,
)

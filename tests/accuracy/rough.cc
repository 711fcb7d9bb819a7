#include "rough.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "exact.h"

namespace pullback::accuracy {
namespace {

using Real = long double;

constexpr double kLost = std::numeric_limits<double>::infinity();
constexpr double kUnit = 0x1p-64;          // of a correctly rounded operation
constexpr double kLibrary = 10 * 0x1p-64;  // of a function of the C library: more than it claims
constexpr Real kRootHalf = 0.707106781186547524400844362104849039L;
constexpr Real kPi = 3.141592653589793238462643383279502884L;
constexpr Real kHalfRootPi = 0.886226925452758013649083741670572591L;
constexpr Real kRootTwoPi = 2.506628274631000502415765284811045253L;

double Narrow(Real x) { return static_cast<double>(x); }

// psi^(order)(x) for order 0, 1 or 2 and finite x, and the size of the largest sum on the way.
Real Psi(int order, Real x, Real& size) {
  if (x <= 0) {
    if (x == std::rint(x)) {
      size = std::numeric_limits<Real>::infinity();
      return std::numeric_limits<Real>::quiet_NaN();
    }
    const Real right = Psi(order, 1 - x, size);
    const Real rest = x - std::rint(x);
    // Where it vanishes, by the distance to there.
    const Real turned = std::copysign(0.5L - std::fabs(rest), rest);
    const Real cot =
        kPi * (std::fabs(rest) > 0.25L ? std::tan(kPi * turned) : 1 / std::tan(kPi * rest));
    const Real square = kPi * kPi + cot * cot;
    const Real left = order == 0 ? -cot : order == 1 ? square : -2 * cot * square;
    size += std::fabs(left);
    return order == 1 ? left - right : left + right;
  }
  static constexpr Real kBernoulli[] = {1.0L / 6,       -1.0L / 30,      1.0L / 42, -1.0L / 30,
                                        5.0L / 66,      -691.0L / 2730,  7.0L / 6,  -3617.0L / 510,
                                        43867.0L / 798, -174611.0L / 330};
  Real sum = 0;
  for (; x < 24; x += 1) {
    const Real z = 1 / x;
    sum += order == 0 ? -z : order == 1 ? z * z : -2 * z * z * z;
  }
  const Real z = 1 / x;
  const Real w = z * z;
  Real tail = 0;
  for (int k = 10; k > 0; --k) {
    const Real weight = order == 0 ? -1.0L / (2 * k) : order == 1 ? 1 : -1 - 2 * k;
    tail = (tail + kBernoulli[k - 1] * weight) * w;
  }
  const Real lead = order == 0 ? std::log(x) - z / 2 : order == 1 ? z + w / 2 : -w - w * z;
  const Real far = order == 0 ? lead + tail : order == 1 ? lead + tail * z : lead + tail * w;
  size = std::fabs(sum) + std::fabs(far);
  return sum + far;
}

// A function of one argument: its value, the factor by which it magnifies relative errors, and its
// own error beyond kLibrary. `kAtInfinity`: the image of infinity is that of all huge arguments.
struct Curve {
  Real (*f)(Real);
  double (*condition)(Real x, Real y);
  bool at_infinity = false;
  double (*own)(Real x) = nullptr;
};

double One(Real, Real) { return 1; }
double OnePlusSquare(Real x, Real) { return 1 + 2 * Narrow(x * x); }
double Magnitude(Real x, Real) { return Narrow(std::fabs(x)); }
double OnePlusMagnitude(Real x, Real) { return 1 + Narrow(std::fabs(x)); }
double OverImage(Real x, Real y) { return Narrow(std::fabs(x / y)); }
double SquareUnits(Real x) { return 4 * kUnit * Narrow(x * x); }

// sin(pi (x + quarter/2)) for x >= 0
Real OfHalfTurns(Real x, long quarter) {
  const Real turn = std::fmod(x, 2.0L);
  const Real nearest = std::nearbyint(2 * turn);
  const Real rest = kPi * (turn - nearest / 2);
  const long quadrant = static_cast<long>(nearest) + quarter;
  const Real size = quadrant % 2 == 0 ? std::sin(rest) : std::cos(rest);
  return quadrant % 4 < 2 ? size : -size;
}

// By Halley's steps; see exact.cc.
Real Erfcinv(Real q);
Real Erfinv(Real x) {
  const Real y = std::fabs(x);
  if (y > 0.5L) return std::copysign(Erfcinv(1 - y), x);
  Real t = y * (0.886226925452758L + 0.232L * y * y);
  for (int i = 0; i < 4; ++i) {
    const Real e = (std::erf(t) - y) * kHalfRootPi * std::exp(t * t);
    t -= e / (1 + t * e);
  }
  return std::copysign(t, x);
}

Real Erfcinv(Real q) {
  if (q > 0.5L) return Erfinv(1 - q);
  const Real log = std::log(q);
  Real t = std::sqrt(-log - std::log(-log * kPi) / 4);
  for (int i = 0; i < 5; ++i) {
    const Real tail = std::erfc(t);
    const Real rate = std::exp(-t * t) / (kHalfRootPi * tail);
    // Near the solution the ratio shows what the logarithms have rounded off.
    const Real e = (i < 3 ? std::log(tail) - log : std::log1p((tail - q) / q)) / rate;
    t += e * (1 - (rate / 2 - t) * e);
  }
  return t;
}

Curve CurveOf(Fn fn) {
  switch (fn) {
    case Fn::kExp:
      return {std::exp, Magnitude, true};
    case Fn::kExpm1:
      return {std::expm1, OnePlusMagnitude, true};
    case Fn::kLog:
      return {std::log, [](Real, Real y) { return Narrow(1 / std::fabs(y)); }};
    case Fn::kLog10:
      return {std::log10, [](Real, Real y) { return Narrow(1 / std::fabs(y)); }};
    case Fn::kLog1p:
      return {std::log1p, [](Real x, Real y) { return Narrow(std::fabs(x / ((1 + x) * y))); }};
    case Fn::kSqrt:
      return {std::sqrt, One};
    case Fn::kCbrt:
      return {std::cbrt, One};
    case Fn::kSin:
      return {std::sin, OverImage};
    case Fn::kCos:
      return {std::cos, OverImage};
    case Fn::kTan:
      return {std::tan, [](Real x, Real y) {
                return Narrow(std::fabs(x) * (std::fabs(y) + 1 / std::fabs(y)));
              }};
    case Fn::kSec:
      return {[](Real x) { return 1 / std::cos(x); },
              [](Real x, Real y) { return Narrow(std::fabs(x * y)); }};
    case Fn::kSinpi:
      return {[](Real x) { return std::copysign(1.0L, x) * OfHalfTurns(std::fabs(x), 0); },
              [](Real x, Real y) { return Narrow(std::fabs(kPi * x / y)); }};
    case Fn::kCospi:
      return {[](Real x) { return OfHalfTurns(std::fabs(x), 1); },
              [](Real x, Real y) { return Narrow(std::fabs(kPi * x / y)); }};
    case Fn::kAsin:
      return {std::asin,
              [](Real x, Real y) { return Narrow(std::fabs(x / (std::sqrt(1 - x * x) * y))); }};
    case Fn::kAcos:
      return {std::acos,
              [](Real x, Real y) { return Narrow(std::fabs(x / (std::sqrt(1 - x * x) * y))); }};
    case Fn::kAtan:
      return {std::atan, One, true};
    case Fn::kSinh:
      return {std::sinh, OnePlusMagnitude, true};
    case Fn::kCosh:
      return {std::cosh, Magnitude, true};
    case Fn::kTanh:
      return {std::tanh, One, true};
    case Fn::kSech:
      return {[](Real x) { return 1 / std::cosh(x); }, Magnitude, true};
    case Fn::kAsinh:
      return {std::asinh, One};
    case Fn::kAcosh:
      return {std::acosh,
              [](Real x, Real y) { return Narrow(x / (std::sqrt((x - 1) * (x + 1)) * y)); }};
    case Fn::kAtanh:
      return {std::atanh,
              [](Real x, Real y) { return Narrow(std::fabs(x / ((1 - x) * (1 + x) * y))); }};
    case Fn::kErf:
      return {std::erf, One, true};
    case Fn::kErfc:
      return {std::erfc, OnePlusSquare, true};
    // Beyond what exact operands need, conditions are lost: MPFR decides.
    case Fn::kErfinv:
      return {Erfinv, [](Real, Real y) { return Narrow(1 + std::exp(2 * y * y)); }, false,
              [](Real) { return 50 * kUnit; }};
    case Fn::kErfcinv:
      return {Erfcinv, [](Real, Real y) { return Narrow(1 / std::fabs(y)); }, false,
              [](Real) { return 50 * kUnit; }};
    case Fn::kNcdf:
      return {[](Real x) { return std::erfc(-x * kRootHalf) / 2; }, OnePlusSquare, true,
              SquareUnits};
    case Fn::kNpdf:
      return {[](Real x) { return std::exp(-x * x / 2) / kRootTwoPi; }, OnePlusSquare, true,
              SquareUnits};
    case Fn::kLgamma:
      // More than it claims near roots.
      return {[](Real x) { return x <= 0 && x == std::rint(x) ? HUGE_VALL : std::lgamma(x); },
              [](Real x, Real y) {
                const Real slope = std::log(std::fabs(x) + 1) + 1 + 1 / std::fabs(x);
                return Narrow(std::fabs(x * slope / y));
              },
              false, nullptr};
    default:
      return {};
  }
}

// Digits lost to gradual underflow; what vanishes altogether is as good as its sign.
double Checked(Real r, double doubt) {
  if (r != r || std::isnan(doubt)) return kLost;
  if (r != 0 && std::fabs(r) < 0x1p-16300L) return kLost;
  return doubt;
}

bool PowerOfTwo(const Node& node, Real value) {
  int exponent = 0;
  return node.constant && std::fabs(std::frexp(value, &exponent)) == 0.5L;
}

}  // namespace

Rough::Rough(const Op& op)
    : op_(op), value_(op.nodes.size() * kBlock), doubt_(op.nodes.size() * kBlock) {
  for (size_t i = 0; i < op.nodes.size(); ++i) {
    if (!op.nodes[i].constant) continue;
    Big exact;
    const bool known = accuracy::Evaluate(op, static_cast<int>(i), 0, 0, exact);
    const Real value = mpfr_get_ld(exact.v, MPFR_RNDN);
    const double doubt = !known ? kLost : mpfr_cmp_ld(exact.v, value) == 0 ? 0 : kUnit;
    std::fill_n(&value_[i * kBlock], kBlock, value);
    std::fill_n(&doubt_[i * kBlock], kBlock, doubt);
  }
}

void Rough::Evaluate(const double* a, const double* b, size_t n) {
  for (size_t i = 0; i < op_.nodes.size(); ++i) {
    const Node& node = op_.nodes[i];
    if (node.constant) continue;
    Real* const r = &value_[i * kBlock];
    double* const doubt = &doubt_[i * kBlock];
    if (node.fn == Fn::kOperand0 || node.fn == Fn::kOperand1) {
      std::copy_n(node.fn == Fn::kOperand0 ? a : b, n, r);
      std::fill_n(doubt, n, 0);
    } else {
      Apply(node, r, doubt, n);
    }
  }
}

void Rough::Apply(const Node& node, Real* r, double* doubt, size_t n) {
  const auto value = [&](int k) { return node.arg[k] < 0 ? nullptr : Value(node.arg[k]); };
  const auto error = [&](int k) { return node.arg[k] < 0 ? nullptr : Doubt(node.arg[k]); };
  const Real *const x = value(0), *const y = value(1), *const z = value(2);
  const double *const dx = error(0), *const dy = error(1), *const dz = error(2);
  const auto each = [&](auto&& f) {
    for (size_t i = 0; i < n; ++i) f(i);
  };
  // A truth, doubtful where the operands may be equal, or in the other order.
  const auto compare = [&](auto&& holds) {
    each([&](size_t i) {
      r[i] = holds(x[i], y[i]) ? 1 : 0;
      const bool inexact = dx[i] != 0 || dy[i] != 0;
      const Real slack = std::fabs(x[i]) * dx[i] + std::fabs(y[i]) * dy[i];
      doubt[i] = inexact && !(std::fabs(x[i] - y[i]) > slack) ? kLost : 0;
    });
  };
  switch (node.fn) {
    case Fn::kAdd:
    case Fn::kSub:
      each([&](size_t i) {
        r[i] = node.fn == Fn::kAdd ? x[i] + y[i] : x[i] - y[i];
        if (std::isinf(r[i])) {
          doubt[i] = 0;
        } else if (dx[i] == 0 && dy[i] == 0) {
          // Of +0 and -0 one may have underflowed, and the sum have its sign.
          const bool zeros = x[i] == 0 && y[i] == 0 && std::signbit(x[i]) != std::signbit(y[i]);
          doubt[i] = zeros ? kLost : r[i] == 0 ? 0 : Checked(r[i], kUnit);
        } else {
          doubt[i] =
              Checked(r[i], kUnit + Narrow((std::fabs(x[i]) * dx[i] + std::fabs(y[i]) * dy[i]) /
                                           std::fabs(r[i])));
        }
      });
      return;
    case Fn::kMul: {
      const bool exact = PowerOfTwo(op_.nodes[static_cast<size_t>(node.arg[0])], x[0]) ||
                         PowerOfTwo(op_.nodes[static_cast<size_t>(node.arg[1])], y[0]);
      each([&](size_t i) {
        r[i] = x[i] * y[i];
        doubt[i] = Checked(r[i], dx[i] + dy[i] + (exact ? 0 : kUnit));
      });
      return;
    }
    case Fn::kDiv: {
      const bool exact = PowerOfTwo(op_.nodes[static_cast<size_t>(node.arg[1])], y[0]);
      each([&](size_t i) {
        r[i] = x[i] / y[i];
        doubt[i] = y[i] == 0 ? kLost : Checked(r[i], dx[i] + dy[i] + (exact ? 0 : kUnit));
      });
      return;
    }
    case Fn::kPow: {
      const bool square = op_.nodes[static_cast<size_t>(node.arg[1])].constant && y[0] == 2;
      each([&](size_t i) {
        r[i] = square ? x[i] * x[i] : std::pow(x[i], y[i]);
        double own = square ? kUnit : kLibrary;
        if (dx[i] != 0) own += Narrow(std::fabs(y[i])) * dx[i];
        if (dy[i] != 0) own += Narrow(std::fabs(y[i] * std::log(std::fabs(x[i])))) * dy[i];
        doubt[i] = x[i] == 0 || std::isinf(x[i]) || std::isinf(y[i]) ? kLost : Checked(r[i], own);
      });
      return;
    }
    case Fn::kNeg:
      each([&](size_t i) {
        r[i] = -x[i];
        doubt[i] = dx[i];
      });
      return;
    case Fn::kAbs:
      each([&](size_t i) {
        r[i] = std::fabs(x[i]);
        doubt[i] = dx[i];
      });
      return;
    case Fn::kSign:
      each([&](size_t i) {
        r[i] = x[i] > 0 ? 1 : x[i] < 0 ? -1 : x[i];
        doubt[i] = dx[i] < 1 ? 0 : kLost;
      });
      return;
    case Fn::kMin:
    case Fn::kMax:
      each([&](size_t i) {
        r[i] = (x[i] < y[i]) == (node.fn == Fn::kMin) ? x[i] : y[i];
        doubt[i] = std::max(dx[i], dy[i]);
      });
      return;
    case Fn::kNot:
      each([&](size_t i) {
        r[i] = x[i] == 0 ? 1 : 0;
        doubt[i] = dx[i];
      });
      return;
    case Fn::kAnd:
      each([&](size_t i) {
        r[i] = x[i] != 0 && y[i] != 0 ? 1 : 0;
        doubt[i] = std::max(dx[i], dy[i]);
      });
      return;
    case Fn::kOr:
      each([&](size_t i) {
        r[i] = x[i] != 0 || y[i] != 0 ? 1 : 0;
        doubt[i] = std::max(dx[i], dy[i]);
      });
      return;
    case Fn::kLt:
      return compare([](Real p, Real q) { return p < q; });
    case Fn::kLe:
      return compare([](Real p, Real q) { return p <= q; });
    case Fn::kGt:
      return compare([](Real p, Real q) { return p > q; });
    case Fn::kGe:
      return compare([](Real p, Real q) { return p >= q; });
    case Fn::kEq:
      return compare([](Real p, Real q) { return p == q; });
    case Fn::kNe:
      return compare([](Real p, Real q) { return p != q; });
    case Fn::kSelect:
      each([&](size_t i) {
        r[i] = x[i] != 0 ? y[i] : z[i];
        doubt[i] = dx[i] != 0 ? kLost : x[i] != 0 ? dy[i] : dz[i];
      });
      return;
    case Fn::kAtan2:
    case Fn::kHypot:
      each([&](size_t i) {
        r[i] = node.fn == Fn::kHypot ? std::hypot(x[i], y[i]) : std::atan2(x[i], y[i]);
        doubt[i] =
            std::isinf(x[i]) || std::isinf(y[i]) ? kLost : Checked(r[i], dx[i] + dy[i] + kLibrary);
      });
      return;
    case Fn::kPsi:
      each([&](size_t i) {
        Real size = 0;
        r[i] = Psi(static_cast<int>(x[i]), y[i], size);
        const double own = 32 * kUnit * Narrow(size / std::fabs(r[i]));
        doubt[i] = dy[i] != 0 || !std::isfinite(y[i]) ? kLost : Checked(r[i], own);
      });
      return;
    default:
      break;
  }
  const Curve curve = CurveOf(node.fn);
  each([&](size_t i) {
    if (dx[i] == kLost) {
      r[i] = x[i];
      doubt[i] = kLost;
      return;
    }
    r[i] = curve.f(x[i]);
    double own = kLibrary;
    if (curve.own != nullptr) own += curve.own(x[i]);
    if (dx[i] != 0) own += curve.condition(x[i], r[i]) * dx[i];
    if (std::isinf(x[i])) own = curve.at_infinity ? 0 : kLost;
    // Beyond long double's range, and so beyond double's by far.
    if (curve.at_infinity && (r[i] == 0 || std::isinf(r[i]))) own = 0;
    if (!curve.at_infinity && std::isinf(r[i])) own = kLost;
    doubt[i] = Checked(r[i], own);
  });
}

}  // namespace pullback::accuracy

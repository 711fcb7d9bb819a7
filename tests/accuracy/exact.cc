#include "exact.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

namespace pullback::accuracy {
namespace {

constexpr mpfr_prec_t kFirst = 128, kLast = 8192;
constexpr mpfr_exp_t kAgreed = 80;

bool OutOfRange() { return mpfr_overflow_p() || mpfr_underflow_p(); }

// One evaluation at one precision. Branches that are not taken are not evaluated.
class Evaluation {
 public:
  Evaluation(const Op& op, double a, double b, mpfr_prec_t precision)
      : op_(op), a_(a), b_(b), precision_(precision) {
    const size_t n = op.nodes.size();
    while (Slots().size() < n) Slots().push_back(std::make_unique<Big>());
    done_.assign(n, false);
  }

  mpfr_srcptr operator()(int index) {
    const size_t i = static_cast<size_t>(index);
    mpfr_ptr r = Slots()[i]->v;
    if (!done_[i]) {
      mpfr_set_prec(r, precision_);
      Compute(op_.nodes[i], r);
      done_[i] = true;
    }
    return r;
  }

  // Overflow or underflow, of numbers beyond 2^(2^62), may have led astray.
  bool doubtful() const { return doubtful_; }

  // More digits may change everything, though the first ones stand.
  bool settled() const { return settled_; }

 private:
  static std::vector<std::unique_ptr<Big>>& Slots() {
    thread_local std::vector<std::unique_ptr<Big>> slots;
    return slots;
  }

  void Compute(const Node& node, mpfr_ptr r);

  const Op& op_;
  double a_, b_;
  mpfr_prec_t precision_;
  std::vector<bool> done_;
  bool doubtful_ = false, settled_ = true;
};

// erfc of a number from 3 on by its continued fraction (DLMF 7.9.1), where MPFR's own takes up to a
// millisecond.
void ErfcOfLarge(mpfr_ptr r, mpfr_srcptr x) {
  const mpfr_prec_t precision = mpfr_get_prec(r) + 32;
  Big square(2 * mpfr_get_prec(x)), step(precision), fraction(precision), root(precision);
  mpfr_sqr(square.v, x, MPFR_RNDN);  // exact
  mpfr_mul_2ui(step.v, square.v, 1, MPFR_RNDN);
  mpfr_ui_div(step.v, 1, step.v, MPFR_RNDN);
  // The k-th term of 1 + t/(1 + 2t/(1 + 3t/... takes this factor off the error.
  unsigned long terms = 1;
  for (double bits = 0; bits < static_cast<double>(precision); ++terms) {
    const double root =
        std::sqrt(1 + 4 * static_cast<double>(terms) * mpfr_get_d(step.v, MPFR_RNDN));
    bits += std::min(std::log2((root + 1) / (root - 1)), 1e6);
  }
  mpfr_set_ui(fraction.v, 1, MPFR_RNDN);
  for (unsigned long k = terms; k > 0; --k) {
    mpfr_div(fraction.v, step.v, fraction.v, MPFR_RNDN);
    mpfr_mul_ui(fraction.v, fraction.v, k, MPFR_RNDN);
    mpfr_add_ui(fraction.v, fraction.v, 1, MPFR_RNDN);
  }
  mpfr_const_pi(root.v, MPFR_RNDN);
  mpfr_sqrt(root.v, root.v, MPFR_RNDN);
  mpfr_mul(root.v, root.v, x, MPFR_RNDN);
  mpfr_mul(fraction.v, fraction.v, root.v, MPFR_RNDN);
  mpfr_neg(square.v, square.v, MPFR_RNDN);
  mpfr_exp(step.v, square.v, MPFR_RNDN);
  mpfr_div(r, step.v, fraction.v, MPFR_RNDN);
}

void Erfc(mpfr_ptr r, mpfr_srcptr x) {
  if (!mpfr_number_p(x) || mpfr_cmpabs_ui(x, 3) < 0) {
    mpfr_erfc(r, x, MPFR_RNDN);
  } else if (mpfr_signbit(x)) {
    Big size(mpfr_get_prec(x));
    mpfr_abs(size.v, x, MPFR_RNDN);
    ErfcOfLarge(r, size.v);
    mpfr_ui_sub(r, 2, r, MPFR_RNDN);
  } else {
    ErfcOfLarge(r, x);
  }
}

void Erf(mpfr_ptr r, mpfr_srcptr x) {
  if (!mpfr_number_p(x) || mpfr_cmpabs_ui(x, 3) < 0) {
    mpfr_erf(r, x, MPFR_RNDN);
    return;
  }
  Big size(mpfr_get_prec(x));
  mpfr_abs(size.v, x, MPFR_RNDN);
  ErfcOfLarge(r, size.v);
  mpfr_ui_sub(r, 1, r, MPFR_RNDN);
  if (mpfr_signbit(x)) mpfr_neg(r, r, MPFR_RNDN);
}

// The Bernoulli number B[2k], by zeta(2k), for the precision asked for last.
mpfr_srcptr Bernoulli(unsigned long k, mpfr_prec_t precision) {
  thread_local std::vector<std::unique_ptr<Big>> numbers;
  thread_local mpfr_prec_t known = 0;
  if (known != precision) numbers.clear();
  known = precision;
  while (numbers.size() < k) {
    const unsigned long n = 2 * (numbers.size() + 1);
    Big factor(precision);
    numbers.push_back(std::make_unique<Big>(precision));
    mpfr_ptr b = numbers.back()->v;
    mpfr_zeta_ui(b, n, MPFR_RNDN);
    mpfr_fac_ui(factor.v, n, MPFR_RNDN);
    mpfr_mul(b, b, factor.v, MPFR_RNDN);
    mpfr_mul_si(b, b, n % 4 == 2 ? 2 : -2, MPFR_RNDN);
    mpfr_const_pi(factor.v, MPFR_RNDN);
    mpfr_mul_2ui(factor.v, factor.v, 1, MPFR_RNDN);
    mpfr_pow_ui(factor.v, factor.v, n, MPFR_RNDN);
    mpfr_div(b, b, factor.v, MPFR_RNDN);
  }
  return numbers[k - 1]->v;
}

// (-1)^(order + 1) psi^(order)(x) for order 1 or 2 and finite x > 0: steps to the right, and there
// the asymptotic series (DLMF 5.15.8).
void PolygammaOfPositive(mpfr_ptr r, unsigned long order, mpfr_srcptr x) {
  const mpfr_prec_t precision = mpfr_get_prec(r) + 32;
  Big at(precision), sum(precision), term(precision), square(precision), power(precision);
  mpfr_set(at.v, x, MPFR_RNDN);
  mpfr_set_zero(sum.v, 1);
  for (const double first = static_cast<double>(precision) / 6 + 8; mpfr_cmp_d(at.v, first) < 0;) {
    mpfr_pow_si(term.v, at.v, -static_cast<long>(order) - 1, MPFR_RNDN);
    if (order == 2) mpfr_mul_2ui(term.v, term.v, 1, MPFR_RNDN);
    mpfr_add(sum.v, sum.v, term.v, MPFR_RNDN);
    mpfr_add_ui(at.v, at.v, 1, MPFR_RNDN);
  }
  mpfr_pow_si(power.v, at.v, -static_cast<long>(order), MPFR_RNDN);
  mpfr_add(sum.v, sum.v, power.v, MPFR_RNDN);  // x^-order
  mpfr_div(power.v, power.v, at.v, MPFR_RNDN);
  mpfr_div_2ui(term.v, power.v, order == 1 ? 1 : 0, MPFR_RNDN);
  mpfr_add(sum.v, sum.v, term.v, MPFR_RNDN);
  mpfr_sqr(square.v, at.v, MPFR_RNDN);
  for (unsigned long k = 1;; ++k) {
    mpfr_div(power.v, power.v, k == 1 ? at.v : square.v, MPFR_RNDN);
    mpfr_mul(term.v, power.v, Bernoulli(k, precision), MPFR_RNDN);
    if (order == 2) mpfr_mul_ui(term.v, term.v, 2 * k + 1, MPFR_RNDN);
    mpfr_add(sum.v, sum.v, term.v, MPFR_RNDN);
    if (mpfr_zero_p(term.v) || mpfr_get_exp(term.v) < mpfr_get_exp(sum.v) - precision) break;
  }
  mpfr_set(r, sum.v, MPFR_RNDN);
}

// psi^(order)(x), order 0, 1 or 2; left of 0 by reflection (DLMF 5.15.6).
void Psi(mpfr_ptr r, unsigned long order, mpfr_srcptr x) {
  if (order == 0) {
    mpfr_digamma(r, x, MPFR_RNDN);
  } else if (!mpfr_number_p(x)) {
    mpfr_set_nan(r);
  } else if (mpfr_sgn(x) > 0) {
    PolygammaOfPositive(r, order, x);
    if (order == 2) mpfr_neg(r, r, MPFR_RNDN);
  } else if (mpfr_integer_p(x)) {
    if (order == 1) {
      mpfr_set_inf(r, 1);
    } else {
      mpfr_set_nan(r);
    }
  } else {
    const mpfr_prec_t precision = mpfr_get_prec(r) + 32;
    Big right(precision), cot(precision), square(precision), pi(precision);
    mpfr_ui_sub(right.v, 1, x, MPFR_RNDN);
    PolygammaOfPositive(right.v, order, right.v);
    mpfr_cospi(cot.v, x, MPFR_RNDN);
    mpfr_sinpi(square.v, x, MPFR_RNDN);
    mpfr_div(cot.v, cot.v, square.v, MPFR_RNDN);
    mpfr_const_pi(pi.v, MPFR_RNDN);
    mpfr_mul(cot.v, cot.v, pi.v, MPFR_RNDN);
    mpfr_sqr(square.v, cot.v, MPFR_RNDN);
    mpfr_sqr(pi.v, pi.v, MPFR_RNDN);
    mpfr_add(square.v, square.v, pi.v, MPFR_RNDN);
    if (order == 2) {
      mpfr_mul(square.v, square.v, cot.v, MPFR_RNDN);
      mpfr_mul_si(square.v, square.v, -2, MPFR_RNDN);
    }
    mpfr_sub(r, square.v, right.v, MPFR_RNDN);
  }
}

void Erfcinv(mpfr_ptr r, mpfr_srcptr q);

// The inverse of erf, up to 1/2 by Halley's steps, each of which triples the digits.
void Erfinv(mpfr_ptr r, mpfr_srcptr x) {
  Big size(mpfr_get_prec(x));
  mpfr_abs(size.v, x, MPFR_RNDN);
  if (!mpfr_number_p(x) || mpfr_zero_p(x)) {
    mpfr_set(r, x, MPFR_RNDN);
  } else if (mpfr_cmp_d(size.v, 0.5) > 0) {
    mpfr_ui_sub(size.v, 1, size.v, MPFR_RNDN);
    Erfcinv(r, size.v);
  } else {
    const mpfr_prec_t precision = mpfr_get_prec(r) + 32;
    Big t(precision), step(precision), slope(precision);
    const double y = mpfr_get_d(size.v, MPFR_RNDN);
    double start = y * (0.886226925452758 + 0.232 * y * y);
    for (int i = 0; i < 3; ++i) {
      const double e = (std::erf(start) - y) / (1.1283791670955126 * std::exp(-start * start));
      start -= e / (1 + start * e);
    }
    mpfr_set_d(t.v, start, MPFR_RNDN);
    if (start < 1e-290) {  // where y and `start` may have lost digits, two terms have them all
      mpfr_const_pi(t.v, MPFR_RNDN);
      mpfr_sqrt(t.v, t.v, MPFR_RNDN);
      mpfr_div_2ui(t.v, t.v, 1, MPFR_RNDN);
      mpfr_mul(t.v, t.v, size.v, MPFR_RNDN);
    }
    for (mpfr_prec_t good = 45; good < precision; good *= 3) {
      mpfr_erf(step.v, t.v, MPFR_RNDN);
      mpfr_sub(step.v, step.v, size.v, MPFR_RNDN);
      mpfr_sqr(slope.v, t.v, MPFR_RNDN);
      mpfr_exp(slope.v, slope.v, MPFR_RNDN);
      mpfr_mul(step.v, step.v, slope.v, MPFR_RNDN);
      mpfr_const_pi(slope.v, MPFR_RNDN);
      mpfr_sqrt(slope.v, slope.v, MPFR_RNDN);
      mpfr_mul(step.v, step.v, slope.v, MPFR_RNDN);
      mpfr_div_2ui(step.v, step.v, 1, MPFR_RNDN);
      mpfr_mul(slope.v, t.v, step.v, MPFR_RNDN);
      mpfr_add_ui(slope.v, slope.v, 1, MPFR_RNDN);
      mpfr_div(step.v, step.v, slope.v, MPFR_RNDN);
      mpfr_sub(t.v, t.v, step.v, MPFR_RNDN);
    }
    mpfr_set(r, t.v, MPFR_RNDN);
  }
  if (mpfr_signbit(x)) mpfr_neg(r, r, MPFR_RNDN);
}

// The inverse of erfc, up to 1/2 by Halley's steps on its logarithm.
void Erfcinv(mpfr_ptr r, mpfr_srcptr q) {
  if (mpfr_zero_p(q)) {
    mpfr_set_inf(r, 1);
    return;
  }
  if (!(mpfr_sgn(q) > 0 && mpfr_cmp_ui(q, 2) < 0)) {
    mpfr_set_nan(r);
    return;
  }
  if (mpfr_cmp_d(q, 0.5) > 0) {
    Big x(mpfr_get_prec(q));
    mpfr_ui_sub(x.v, 1, q, MPFR_RNDN);
    Erfinv(r, x.v);
    return;
  }
  const mpfr_prec_t precision = mpfr_get_prec(r) + 32;
  Big t(precision), log(precision), step(precision), hazard(precision), bend(precision);
  mpfr_log(log.v, q, MPFR_RNDN);
  const long double known = mpfr_get_ld(log.v, MPFR_RNDN);
  long double start = std::sqrt(-known - std::log(-known * 3.14159L) / 4);
  for (int i = 0; i < 5; ++i) {
    const long double tail = std::erfc(start);
    const long double rate = 1.12837916709551257L * std::exp(-start * start) / tail;
    const long double e = (std::log(tail) - known) / rate;
    start += e * (1 - (rate / 2 - start) * e);
  }
  mpfr_set_ld(t.v, start, MPFR_RNDN);
  for (mpfr_prec_t good = 45; good < precision; good *= 3) {
    Erfc(step.v, t.v);
    mpfr_sqr(hazard.v, t.v, MPFR_RNDN);
    mpfr_neg(hazard.v, hazard.v, MPFR_RNDN);
    mpfr_exp(hazard.v, hazard.v, MPFR_RNDN);
    mpfr_div(hazard.v, hazard.v, step.v, MPFR_RNDN);
    mpfr_const_pi(bend.v, MPFR_RNDN);
    mpfr_sqrt(bend.v, bend.v, MPFR_RNDN);
    mpfr_div(hazard.v, hazard.v, bend.v, MPFR_RNDN);  // half of the rate
    mpfr_log(step.v, step.v, MPFR_RNDN);
    mpfr_sub(step.v, step.v, log.v, MPFR_RNDN);
    mpfr_div(step.v, step.v, hazard.v, MPFR_RNDN);
    mpfr_div_2ui(step.v, step.v, 1, MPFR_RNDN);
    mpfr_sub(bend.v, hazard.v, t.v, MPFR_RNDN);
    mpfr_mul(bend.v, bend.v, step.v, MPFR_RNDN);
    mpfr_ui_sub(bend.v, 1, bend.v, MPFR_RNDN);
    mpfr_mul(step.v, step.v, bend.v, MPFR_RNDN);
    mpfr_add(t.v, t.v, step.v, MPFR_RNDN);
  }
  mpfr_set(r, t.v, MPFR_RNDN);
}

// Where an infinite argument, so one beyond MPFR's range, gives the limit of the true one's image.
bool SaturatesAtInfinity(Fn fn) {
  switch (fn) {
    case Fn::kAdd:
    case Fn::kSub:
    case Fn::kMul:
    case Fn::kDiv:
    case Fn::kNeg:
    case Fn::kAbs:
    case Fn::kSign:
    case Fn::kMin:
    case Fn::kMax:
    case Fn::kLt:
    case Fn::kLe:
    case Fn::kGt:
    case Fn::kGe:
    case Fn::kSelect:
    case Fn::kExp:
    case Fn::kExpm1:
    case Fn::kAtan:
    case Fn::kSinh:
    case Fn::kCosh:
    case Fn::kTanh:
    case Fn::kSech:
    case Fn::kErf:
    case Fn::kErfc:
    case Fn::kNcdf:
    case Fn::kNpdf:
      return true;
    default:
      return false;
  }
}

void Evaluation::Compute(const Node& node, mpfr_ptr r) {
  constexpr mpfr_rnd_t kRound = MPFR_RNDN;
  if (node.fn == Fn::kSelect) {
    mpfr_set(r, (*this)(node.arg[mpfr_zero_p((*this)(node.arg[0])) ? 2 : 1]), kRound);
    return;
  }
  mpfr_srcptr x = node.arity > 0 ? (*this)(node.arg[0]) : nullptr;
  mpfr_srcptr y = node.arity > 1 ? (*this)(node.arg[1]) : nullptr;
  const bool infinite = (x != nullptr && mpfr_inf_p(x)) || (y != nullptr && mpfr_inf_p(y));
  if (infinite && !SaturatesAtInfinity(node.fn)) doubtful_ = true;
  const bool has_pole =
      node.fn == Fn::kDiv || node.fn == Fn::kLog || node.fn == Fn::kLog10 || node.fn == Fn::kPow;
  if (has_pole && mpfr_zero_p(y != nullptr && node.fn == Fn::kDiv ? y : x) && OutOfRange()) {
    doubtful_ = true;
  }
  switch (node.fn) {
    case Fn::kOperand0:
      mpfr_set_d(r, a_, kRound);
      break;
    case Fn::kOperand1:
      mpfr_set_d(r, b_, kRound);
      break;
    case Fn::kRational:
      mpfr_set_q(r, node.rational->q, kRound);
      break;
    case Fn::kPi:
      mpfr_const_pi(r, kRound);
      break;
    case Fn::kE:
      mpfr_set_ui(r, 1, kRound);
      mpfr_exp(r, r, kRound);
      break;
    case Fn::kInf:
      mpfr_set_inf(r, 1);
      break;
    case Fn::kNaN:
      mpfr_set_nan(r);
      break;
    case Fn::kAdd:
      mpfr_add(r, x, y, kRound);
      break;
    case Fn::kSub:
      mpfr_sub(r, x, y, kRound);
      break;
    case Fn::kMul:
      mpfr_mul(r, x, y, kRound);
      break;
    case Fn::kDiv:
      mpfr_div(r, x, y, kRound);
      break;
    case Fn::kPow:
      // Whether a whole exponent is odd shows in the sign: it has to be exact.
      if (mpfr_signbit(x) && !op_.nodes[static_cast<size_t>(node.arg[1])].constant &&
          mpfr_inexflag_p()) {
        settled_ = false;
      }
      mpfr_pow(r, x, y, kRound);
      break;
    case Fn::kNeg:
      mpfr_neg(r, x, kRound);
      break;
    case Fn::kAbs:
      mpfr_abs(r, x, kRound);
      break;
    case Fn::kSign:
      if (mpfr_nan_p(x) || mpfr_zero_p(x)) {
        mpfr_set(r, x, kRound);
      } else {
        mpfr_set_si(r, mpfr_signbit(x) ? -1 : 1, kRound);
      }
      break;
    case Fn::kMin:
      mpfr_min(r, x, y, kRound);
      break;
    case Fn::kMax:
      mpfr_max(r, x, y, kRound);
      break;
    case Fn::kNot:
      mpfr_set_ui(r, mpfr_zero_p(x) ? 1 : 0, kRound);
      break;
    case Fn::kAnd:
      mpfr_set_ui(r, mpfr_zero_p(x) || mpfr_zero_p(y) ? 0 : 1, kRound);
      break;
    case Fn::kOr:
      mpfr_set_ui(r, mpfr_zero_p(x) && mpfr_zero_p(y) ? 0 : 1, kRound);
      break;
    case Fn::kLt:
      mpfr_set_ui(r, mpfr_less_p(x, y) ? 1 : 0, kRound);
      break;
    case Fn::kLe:
      mpfr_set_ui(r, mpfr_lessequal_p(x, y) ? 1 : 0, kRound);
      break;
    case Fn::kGt:
      mpfr_set_ui(r, mpfr_greater_p(x, y) ? 1 : 0, kRound);
      break;
    case Fn::kGe:
      mpfr_set_ui(r, mpfr_greaterequal_p(x, y) ? 1 : 0, kRound);
      break;
    case Fn::kEq:
      mpfr_set_ui(r, mpfr_equal_p(x, y) ? 1 : 0, kRound);
      break;
    case Fn::kNe:
      mpfr_set_ui(r, mpfr_equal_p(x, y) ? 0 : 1, kRound);
      break;
    case Fn::kSelect:
      break;
    case Fn::kExp:
      mpfr_exp(r, x, kRound);
      break;
    case Fn::kExpm1:
      mpfr_expm1(r, x, kRound);
      break;
    case Fn::kLog:
      mpfr_log(r, x, kRound);
      break;
    case Fn::kLog10:
      mpfr_log10(r, x, kRound);
      break;
    case Fn::kLog1p:
      mpfr_log1p(r, x, kRound);
      break;
    case Fn::kSqrt:
      mpfr_sqrt(r, x, kRound);
      break;
    case Fn::kCbrt:
      mpfr_cbrt(r, x, kRound);
      break;
    case Fn::kSin:
      mpfr_sin(r, x, kRound);
      break;
    case Fn::kCos:
      mpfr_cos(r, x, kRound);
      break;
    case Fn::kTan:
      mpfr_tan(r, x, kRound);
      break;
    case Fn::kSec:
      mpfr_sec(r, x, kRound);
      break;
    case Fn::kSinpi:
      mpfr_sinpi(r, x, kRound);
      break;
    case Fn::kCospi:
      mpfr_cospi(r, x, kRound);
      break;
    case Fn::kAsin:
      mpfr_asin(r, x, kRound);
      break;
    case Fn::kAcos:
      mpfr_acos(r, x, kRound);
      break;
    case Fn::kAtan:
      mpfr_atan(r, x, kRound);
      break;
    case Fn::kAtan2:
      mpfr_atan2(r, x, y, kRound);
      break;
    case Fn::kSinh:
      mpfr_sinh(r, x, kRound);
      break;
    case Fn::kCosh:
      mpfr_cosh(r, x, kRound);
      break;
    case Fn::kTanh:
      mpfr_tanh(r, x, kRound);
      break;
    case Fn::kSech:
      mpfr_sech(r, x, kRound);
      break;
    case Fn::kAsinh:
      mpfr_asinh(r, x, kRound);
      break;
    case Fn::kAcosh:
      mpfr_acosh(r, x, kRound);
      break;
    case Fn::kAtanh:
      mpfr_atanh(r, x, kRound);
      break;
    case Fn::kErf:
      Erf(r, x);
      break;
    case Fn::kErfc:
      Erfc(r, x);
      break;
    case Fn::kErfinv:
      Erfinv(r, x);
      break;
    case Fn::kErfcinv:
      Erfcinv(r, x);
      break;
    case Fn::kNcdf:  // erfc(-x / sqrt 2) / 2
      mpfr_sqrt_ui(r, 2, kRound);
      mpfr_div(r, x, r, kRound);
      mpfr_neg(r, r, kRound);
      Erfc(r, r);
      mpfr_div_2ui(r, r, 1, kRound);
      break;
    case Fn::kNpdf: {  // exp(-x^2 / 2) / sqrt(2 pi)
      mpfr_sqr(r, x, kRound);
      mpfr_div_2ui(r, r, 1, kRound);
      mpfr_neg(r, r, kRound);
      mpfr_exp(r, r, kRound);
      Big root(precision_);
      mpfr_const_pi(root.v, kRound);
      mpfr_mul_2ui(root.v, root.v, 1, kRound);
      mpfr_sqrt(root.v, root.v, kRound);
      mpfr_div(r, r, root.v, kRound);
      break;
    }
    case Fn::kHypot:
      mpfr_hypot(r, x, y, kRound);
      break;
    case Fn::kLgamma: {
      int sign = 0;
      mpfr_lgamma(r, &sign, x, kRound);
      break;
    }
    case Fn::kPsi:
      Psi(r, mpfr_get_ui(x, kRound), y);
      break;
  }
  const bool sum = node.fn == Fn::kAdd || node.fn == Fn::kSub;
  if ((mpfr_nan_p(r) || (sum && mpfr_zero_p(x) && mpfr_zero_p(y))) && OutOfRange()) {
    doubtful_ = true;
  }
}

// The widest range of exponents, for this thread.
void Widen() {
  thread_local bool done = false;
  if (done) return;
  mpfr_set_emin(mpfr_get_emin_min());
  mpfr_set_emax(mpfr_get_emax_max());
  done = true;
}

bool Agree(mpfr_srcptr x, mpfr_srcptr y) {
  if (mpfr_nan_p(x) || mpfr_nan_p(y)) return mpfr_nan_p(x) && mpfr_nan_p(y);
  if (mpfr_equal_p(x, y)) return true;
  if (!mpfr_number_p(x) || !mpfr_number_p(y) || mpfr_zero_p(y)) return false;
  Big difference(64);
  mpfr_sub(difference.v, x, y, MPFR_RNDN);
  return mpfr_get_exp(difference.v) < mpfr_get_exp(y) - kAgreed;
}

}  // namespace

bool Evaluate(const Op& op, int node, double a, double b, Big& r) {
  Widen();
  thread_local Big previous;
  for (mpfr_prec_t precision = kFirst; precision <= kLast;) {
    mpfr_clear_flags();
    Evaluation evaluation(op, a, b, precision);
    mpfr_srcptr result = evaluation(node);
    if (evaluation.doubtful()) return false;
    mpfr_set_prec(r.v, precision);
    mpfr_set(r.v, result, MPFR_RNDN);
    if (!mpfr_inexflag_p()) return true;
    // A zero may be all that cancellation left.
    const bool settled = evaluation.settled() && (!mpfr_zero_p(r.v) || OutOfRange());
    if (precision > kFirst && settled && Agree(previous.v, r.v)) return true;
    mpfr_set_prec(previous.v, precision);
    mpfr_set(previous.v, r.v, MPFR_RNDN);
    precision = precision == kFirst ? 192 : 2 * precision;
  }
  return mpfr_zero_p(r.v);
}

void FreeCaches() { mpfr_free_cache(); }

}  // namespace pullback::accuracy

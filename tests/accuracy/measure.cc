#include "measure.h"

#include <cstdio>

namespace pullback::accuracy {
namespace {

std::mutex output_mutex;

bool Inside(const std::vector<Interval>& domain, double x) {
  return std::any_of(domain.begin(), domain.end(), [x](const Interval& interval) {
    return interval.closed ? x >= interval.lower && x <= interval.upper
                           : x > interval.lower && x < interval.upper;
  });
}

}  // namespace

void Complain(const Op& op, const std::string& target, size_t output, double a, double b,
              double got, double error, Column& column) {
  ++column.wrong;
  const std::lock_guard<std::mutex> lock(output_mutex);
  static std::string shown_op;
  static int shown = 0;
  if (shown_op != op.name) shown = 0;
  shown_op = op.name;
  if (++shown > 9) return;
  std::fprintf(stderr, "%s %s, output %zu of (%a, %a): got %a (%.9g), ", op.name.c_str(),
               target.c_str(), output, a, b, got, got);
  if (std::isinf(error)) {
    std::fprintf(stderr, "which is no such number\n");
  } else {
    std::fprintf(stderr, "%.4f ULP\n", error);
  }
}

template <typename T>
Verdict Classify(const Op& op, T a, T b) {
  const double at[2] = {static_cast<double>(a), static_cast<double>(b)};
  Verdict verdict;
  for (const SpecialPoint& point : op.special) {
    bool here = true;
    for (int k = 0; k < op.arity; ++k) here = here && SameBits(at[k], point.at[k]);
    if (!here) continue;
    verdict.rule = Rule::kSpecial;
    verdict.special = &point;
    return verdict;
  }
  for (int k = 0; k < op.arity; ++k) {
    verdict.any_zero = verdict.any_zero || at[k] == 0;
    if (std::isfinite(at[k]) && Inside(op.domain[k], at[k])) continue;
    if (!std::isfinite(at[k])) {
      verdict.rule = Rule::kSkip;
    } else if (op.arity == 1) {
      verdict.rule = Rule::kNaN;
    } else {
      verdict.outside = true;
    }
  }
  // There the formula of the value says what is right, which second derivatives do without.
  if (verdict.outside && (verdict.any_zero || op.second)) verdict.rule = Rule::kSkip;
  return verdict;
}

template Verdict Classify(const Op& op, float a, float b);
template Verdict Classify(const Op& op, double a, double b);

int ScaleOf(const Op& op, size_t output, double a, double b, double largest) {
  if (op.ulp_of_operands && output == 0) largest = std::max(std::fabs(a), std::fabs(b));
  return largest == 0 || !std::isfinite(largest) ? kNoScale : std::ilogb(largest);
}

int ScaleOf(const Op& op, size_t output, double a, double b) {
  double largest = 0;
  if (op.scale[output] >= 0) {
    thread_local Big scale;
    if (Evaluate(op, op.scale[output], a, b, scale)) largest = mpfr_get_d(scale.v, MPFR_RNDN);
  }
  return ScaleOf(op, output, a, b, largest);
}

}  // namespace pullback::accuracy

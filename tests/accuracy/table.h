// The Python table of operations, as table.py writes it: bounds, domains, special points, formulas.
#ifndef PULLBACK_TESTS_ACCURACY_TABLE_H_
#define PULLBACK_TESTS_ACCURACY_TABLE_H_

#include <gmp.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace pullback::accuracy {

inline constexpr int kMaxOutputs = 3;  // value and derivatives, or second derivatives

enum class Fn : uint8_t {
  kOperand0,
  kOperand1,
  kRational,
  kPi,
  kE,
  kInf,
  kNaN,
  kAdd,
  kSub,
  kMul,
  kDiv,
  kPow,
  kNeg,
  kAbs,
  kSign,
  kMin,
  kMax,
  kNot,
  kAnd,
  kOr,
  kLt,
  kLe,
  kGt,
  kGe,
  kEq,
  kNe,
  kSelect,  // condition, then, else
  kExp,
  kExpm1,
  kLog,
  kLog10,
  kLog1p,
  kSqrt,
  kCbrt,
  kSin,
  kCos,
  kTan,
  kSec,
  kSinpi,
  kCospi,
  kAsin,
  kAcos,
  kAtan,
  kAtan2,
  kSinh,
  kCosh,
  kTanh,
  kSech,
  kAsinh,
  kAcosh,
  kAtanh,
  kErf,
  kErfc,
  kErfinv,
  kErfcinv,
  kNcdf,
  kNpdf,
  kHypot,
  kLgamma,  // of the absolute value
  kPsi,     // order, x
};

struct Rational {
  mpq_t q;
  explicit Rational(const std::string& text);
  ~Rational();
  Rational(const Rational&) = delete;
  Rational& operator=(const Rational&) = delete;
};

// A node of a formula; arguments precede it in Op::nodes, equal subexpressions are one node.
struct Node {
  Fn fn = Fn::kRational;
  int arity = 0;
  int arg[3] = {-1, -1, -1};
  bool constant = false;
  std::shared_ptr<Rational> rational;
};

struct Interval {
  double lower, upper;
  bool closed;
};

struct SpecialPoint {
  double at[2];
  double image[kMaxOutputs];
};

struct Op {
  std::string name;
  int arity = 0;
  int outputs = 0;
  bool second = false;  // derivatives, in place of value and derivatives
  double bound[kMaxOutputs] = {0, 0, 0};
  // The value's errors count in ULP of the largest of it and the operands.
  bool ulp_of_operands = false;
  std::vector<Interval> domain[2];
  std::vector<SpecialPoint> special;
  std::vector<Node> nodes;
  int root[kMaxOutputs] = {-1, -1, -1};
  int scale[kMaxOutputs] = {-1, -1, -1};  // of what errors count in ULP, too
  std::vector<int> kinks;

  int Outputs() const { return outputs; }
  // Whether an output has no value at a kink.
  bool IsDerivative(size_t output) const { return second || output > 0; }
};

// Throws std::runtime_error.
std::vector<Op> ReadTable(const std::string& path);

}  // namespace pullback::accuracy

#endif  // PULLBACK_TESTS_ACCURACY_TABLE_H_

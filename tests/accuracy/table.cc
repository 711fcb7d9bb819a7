#include "table.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

namespace pullback::accuracy {
namespace {

struct Word {
  const char* text;
  Fn fn;
  int arity;
};

constexpr Word kWords[] = {
    {"x0", Fn::kOperand0, 0},   {"x1", Fn::kOperand1, 0},     {"pi", Fn::kPi, 0},
    {"e", Fn::kE, 0},           {"inf", Fn::kInf, 0},         {"nan", Fn::kNaN, 0},
    {"add", Fn::kAdd, 2},       {"sub", Fn::kSub, 2},         {"mul", Fn::kMul, 2},
    {"div", Fn::kDiv, 2},       {"pow", Fn::kPow, 2},         {"neg", Fn::kNeg, 1},
    {"abs", Fn::kAbs, 1},       {"sign", Fn::kSign, 1},       {"min", Fn::kMin, 2},
    {"max", Fn::kMax, 2},       {"not", Fn::kNot, 1},         {"and", Fn::kAnd, 2},
    {"or", Fn::kOr, 2},         {"lt", Fn::kLt, 2},           {"le", Fn::kLe, 2},
    {"gt", Fn::kGt, 2},         {"ge", Fn::kGe, 2},           {"eq", Fn::kEq, 2},
    {"ne", Fn::kNe, 2},         {"select", Fn::kSelect, 3},   {"exp", Fn::kExp, 1},
    {"expm1", Fn::kExpm1, 1},   {"log", Fn::kLog, 1},         {"log10", Fn::kLog10, 1},
    {"log1p", Fn::kLog1p, 1},   {"sqrt", Fn::kSqrt, 1},       {"cbrt", Fn::kCbrt, 1},
    {"sin", Fn::kSin, 1},       {"cos", Fn::kCos, 1},         {"tan", Fn::kTan, 1},
    {"sec", Fn::kSec, 1},       {"asin", Fn::kAsin, 1},       {"acos", Fn::kAcos, 1},
    {"atan", Fn::kAtan, 1},     {"atan2", Fn::kAtan2, 2},     {"sinh", Fn::kSinh, 1},
    {"cosh", Fn::kCosh, 1},     {"tanh", Fn::kTanh, 1},       {"sech", Fn::kSech, 1},
    {"asinh", Fn::kAsinh, 1},   {"acosh", Fn::kAcosh, 1},     {"atanh", Fn::kAtanh, 1},
    {"erf", Fn::kErf, 1},       {"erfc", Fn::kErfc, 1},       {"ncdf", Fn::kNcdf, 1},
    {"npdf", Fn::kNpdf, 1},     {"hypot", Fn::kHypot, 2},     {"lgamma", Fn::kLgamma, 1},
    {"psi", Fn::kPsi, 2},       {"sinpi", Fn::kSinpi, 1},     {"cospi", Fn::kCospi, 1},
    {"erfinv", Fn::kErfinv, 1}, {"erfcinv", Fn::kErfcinv, 1},
};

// Adds what the rest of `line`, a postfix formula, is made of; returns its root.
int Compile(std::istringstream& line, Op& op, std::map<std::string, int>& known) {
  std::vector<int> stack;
  std::string token;
  while (line >> token) {
    Node node;
    if (token[0] == '#') {
      node.rational = std::make_shared<Rational>(token.substr(1));
    } else {
      const auto word = std::find_if(std::begin(kWords), std::end(kWords),
                                     [&](const Word& w) { return token == w.text; });
      if (word == std::end(kWords)) throw std::runtime_error("unknown word " + token);
      node.fn = word->fn;
      node.arity = word->arity;
    }
    node.constant = node.fn != Fn::kOperand0 && node.fn != Fn::kOperand1;
    if (stack.size() < static_cast<size_t>(node.arity)) throw std::runtime_error("empty stack");
    for (int k = node.arity; k-- > 0; stack.pop_back()) {
      node.arg[k] = stack.back();
      node.constant = node.constant && op.nodes[static_cast<size_t>(stack.back())].constant;
    }
    for (const int argument : node.arg) token += ' ' + std::to_string(argument);
    const auto [entry, fresh] = known.emplace(token, static_cast<int>(op.nodes.size()));
    if (fresh) op.nodes.push_back(node);
    stack.push_back(entry->second);
  }
  if (stack.size() != 1) throw std::runtime_error("a formula with several roots, or none");
  return stack[0];
}

// Reads hexadecimal floats, inf and nan, which streams do not.
double Number(std::istringstream& line) {
  std::string text;
  line >> text;
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0') throw std::runtime_error("no number: '" + text + "'");
  return number;
}

}  // namespace

Rational::Rational(const std::string& text) {
  mpq_init(q);
  if (mpq_set_str(q, text.c_str(), 10) != 0) throw std::runtime_error("no rational: " + text);
  mpq_canonicalize(q);
}

Rational::~Rational() { mpq_clear(q); }

std::vector<Op> ReadTable(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<Op> ops;
  std::map<std::string, int> known;  // nodes of the row being read
  std::string text;
  while (std::getline(file, text)) {
    std::istringstream line(text);
    std::string what, word;
    line >> what;
    try {
      if (what == "op" || what == "second") {
        ops.emplace_back();
        known.clear();
        line >> ops.back().name >> ops.back().arity >> ops.back().outputs;
        ops.back().second = what == "second";
        continue;
      }
      if (ops.empty()) throw std::runtime_error("no op yet");
      Op& op = ops.back();
      if (what == "bound") {
        for (int o = 0; o < op.Outputs(); ++o) op.bound[o] = Number(line);
      } else if (what == "ulp_of_operands") {
        op.ulp_of_operands = true;
      } else if (what == "domain") {
        size_t operand = 0;
        line >> operand;
        Interval interval{};
        interval.lower = Number(line);
        interval.upper = Number(line);
        line >> word;
        interval.closed = word == "closed";
        op.domain[operand].push_back(interval);
      } else if (what == "special") {
        SpecialPoint point{};
        for (int k = 0; k < op.arity; ++k) point.at[k] = Number(line);
        for (int o = 0; o < op.Outputs(); ++o) point.image[o] = Number(line);
        op.special.push_back(point);
      } else if (what == "formula") {
        size_t output = 0;
        line >> output;
        op.root[output] = Compile(line, op, known);
      } else if (what == "scale") {
        size_t output = 0;
        line >> output;
        op.scale[output] = Compile(line, op, known);
      } else if (what == "kink") {
        op.kinks.push_back(Compile(line, op, known));
      } else {
        throw std::runtime_error("unknown line");
      }
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path + ": '" + text + "': " + error.what());
    }
  }
  for (const Op& op : ops) {
    for (int o = 0; o < op.Outputs(); ++o) {
      if (op.root[o] < 0) throw std::runtime_error(path + ": formulas missing: " + op.name);
    }
  }
  return ops;
}

}  // namespace pullback::accuracy

#include "points.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "ulp.h"

namespace pullback::accuracy {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kLn2 = 0.69314718055994530942;

// Multiples of these are where range reductions turn: of trigonometric functions, of exp and its
// relatives, of exp2 and of the logarithms.
constexpr double kSteps[] = {kPi / 4, kLn2 / 2, kLn2 / 4, 0.5, 0.15051499783199060};

// Floats in the order of the numbers they stand for.
template <typename T>
int64_t Rank(T x) {
  const auto magnitude = static_cast<int64_t>(ToBits(std::fabs(x)));
  return std::signbit(x) ? -1 - magnitude : magnitude;
}

template <typename T>
T Ranked(int64_t rank) {
  using Bits = typename Format<T>::Bits;
  return rank < 0 ? -FromBits<T>(static_cast<Bits>(-1 - rank))
                  : FromBits<T>(static_cast<Bits>(rank));
}

template <typename T>
void Unique(std::vector<T>& places) {
  std::sort(places.begin(), places.end(), [](T x, T y) { return Rank(x) < Rank(y); });
  places.erase(
      std::unique(places.begin(), places.end(), [](T x, T y) { return ToBits(x) == ToBits(y); }),
      places.end());
}

template <typename T>
std::vector<T> Specials() {
  using L = std::numeric_limits<T>;
  std::vector<T> all = {T{0},
                        L::denorm_min(),
                        Step(L::min(), -1),
                        L::min(),
                        Step(L::min(), 1),
                        L::epsilon(),
                        T{0.5},
                        Step(T{1}, -1),
                        T{1},
                        Step(T{1}, 1),
                        T{2},
                        T{3},
                        T{1e3},
                        T{1e10},
                        L::max(),
                        L::infinity(),
                        L::quiet_NaN(),
                        Step(L::infinity(), 1),
                        FromBits<T>(ToBits(L::quiet_NaN()) + 12345)};
  const size_t n = all.size();
  for (size_t i = 0; i < n; ++i) all.push_back(std::copysign(all[i], T{-1}));
  return all;
}

// What kind of number an output is, in few bits.
template <typename T>
uint32_t Nature(T y, T x) {
  const uint32_t kind = y != y ? 0 : std::isinf(y) ? 1 : y == 0 ? 2 : std::isnormal(y) ? 3 : 4;
  const uint32_t size = std::fabs(y) > 1 ? 2 : std::fabs(y) == 1 ? 1 : 0;
  const uint32_t like = y == x ? 1 : y == -x ? 2 : 0;
  return kind | (y == y && std::signbit(y) ? 8u : 0u) | size << 4 | like << 6;
}

// The kernel along one operand, the other one fixed.
template <typename T>
class Section {
 public:
  Section(ElementwiseKernel kernel, const Op& op, int operand, T partner)
      : kernel_(kernel), op_(op), operand_(operand), partner_(partner) {}

  std::array<std::vector<T>, kMaxOutputs> At(const std::vector<T>& x) const {
    std::array<std::vector<T>, kMaxOutputs> y;
    for (auto& output : y) output.resize(x.size());
    const std::vector<T> partner(op_.arity == 2 ? x.size() : 0, partner_);
    const void* in[2] = {x.data(), partner.data()};
    if (operand_ == 1) std::swap(in[0], in[1]);
    void* out[kMaxOutputs] = {y[0].data(), y[1].data(), y[2].data()};
    kernel_(in, out, x.size(), 0);
    return y;
  }

  std::array<T, kMaxOutputs> At(T x) const {
    std::array<T, kMaxOutputs> y{};
    const void* in[2] = {&x, &partner_};
    if (operand_ == 1) std::swap(in[0], in[1]);
    void* out[kMaxOutputs] = {&y[0], &y[1], &y[2]};
    kernel_(in, out, 1, 0);
    return y;
  }

  uint32_t NatureAt(T x) const {
    const std::array<T, kMaxOutputs> y = At(x);
    uint32_t nature = 0;
    for (int o = 0; o < op_.Outputs(); ++o) {
      nature = nature << 10 | Nature(y[static_cast<size_t>(o)], x);
    }
    return nature;
  }

 private:
  ElementwiseKernel kernel_;
  const Op& op_;
  int operand_;
  T partner_;
};

// The last rank from `low` on, before `high`, that is as `low` is.
template <typename F>
int64_t Bisect(int64_t low, int64_t high, F&& same_as_low) {
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (same_as_low(middle) ? low : high) = middle;
  }
  return low;
}

template <typename T>
std::vector<T> Grid() {
  std::vector<T> grid;
  for (int e = Format<T>::kMin - Format<T>::kDigits + 1; e <= Format<T>::kMax; ++e) {
    // From the subnormals' end on, fewer bits.
    for (const double significand : {1.0, 1.2, 1.45, 1.7}) {
      grid.push_back(static_cast<T>(std::ldexp(significand, e)));
      grid.push_back(-grid.back());
    }
  }
  for (int k = 1; k <= 400; ++k) {
    grid.push_back(static_cast<T>(k) / 10);
    grid.push_back(-grid.back());
  }
  grid.push_back(T{0});
  grid.push_back(-T{0});
  Unique(grid);
  return grid;
}

}  // namespace

template <typename T>
Sampler<T>::Sampler(const Op& op, ElementwiseKernel kernel, const std::vector<Point<double>>& known)
    : op_(op) {
  for (int k = 0; k < op.arity; ++k) {
    std::vector<T>& places = places_[k];
    places = {T{0}, T{1}, T{-1}};
    for (const SpecialPoint& point : op.special) {
      if (std::isfinite(point.at[k])) places.push_back(static_cast<T>(point.at[k]));
    }
    for (const Interval& interval : op.domain[k]) {
      for (const double end : {interval.lower, interval.upper}) {
        if (std::isfinite(end)) places.push_back(static_cast<T>(end));
      }
    }
  }
  if (op.arity == 1) {
    FindPlaces(kernel, 0, T{0});
  } else {
    Random random(3);
    std::vector<T> partners;
    for (const double x : {1.0, -1.0, 0.5, 2.0, -2.0, 3.0, -3.0, 0.01, 10.0, -10.0, 100.0, 1e6,
                           1e-6, 0.3, -0.3, 0.999, 1.001}) {
      partners.push_back(static_cast<T>(x));
    }
    for (int i = 0; i < 24; ++i) {
      partners.push_back(static_cast<T>(std::ldexp(random.Sign() * (1 + random.Uniform()),
                                                   static_cast<int>(random.Below(60)) - 30)));
    }
    for (const T partner : partners) {
      for (const int operand : {0, 1}) FindPlaces(kernel, operand, partner);
    }
  }
  for (std::vector<T>& places : places_) Unique(places);
  AddEdges(known);
}

template <typename T>
void Sampler<T>::FindPlaces(ElementwiseKernel kernel, int operand, T partner) {
  static const std::vector<T> grid = Grid<T>();
  const Section<T> section(kernel, op_, operand, partner);
  const auto y = section.At(grid);
  std::vector<T> found;
  const auto natures = [&](size_t i) {
    uint32_t nature = 0;
    for (int o = 0; o < op_.Outputs(); ++o) {
      nature = nature << 10 | Nature(y[static_cast<size_t>(o)][i], grid[i]);
    }
    return nature;
  };
  for (size_t i = 0; i + 1 < grid.size(); ++i) {
    int64_t low = Rank(grid[i]);
    const int64_t high = Rank(grid[i + 1]);
    const uint32_t last = natures(i + 1);
    uint32_t nature = natures(i);
    for (int turns = 0; turns < 6 && nature != last; ++turns) {
      low = Bisect(low, high, [&](int64_t r) { return section.NatureAt(Ranked<T>(r)) == nature; });
      found.push_back(Ranked<T>(low));
      nature = section.NatureAt(Ranked<T>(++low));
    }
    // Where an output sticks to what it is from here on.
    for (size_t o = 0; o < static_cast<size_t>(op_.Outputs()); ++o) {
      const auto at = [&](size_t j) { return ToBits(y[o][j]); };
      const auto sticks = [&](size_t from, size_t to) {
        found.push_back(Ranked<T>(Bisect(Rank(grid[from]), Rank(grid[to]), [&](int64_t r) {
          return (ToBits(section.At(Ranked<T>(r))[o]) == at(from)) == (at(from) == at(from - 1));
        })));
      };
      if (i == 0 || i + 2 >= grid.size() || at(i) == at(i + 1)) continue;
      if (at(i - 1) == at(i)) {
        sticks(i, i + 1);
      } else if (at(i + 1) == at(i + 2)) {
        found.push_back(Ranked<T>(Bisect(Rank(grid[i]), Rank(grid[i + 1]), [&](int64_t r) {
          return ToBits(section.At(Ranked<T>(r))[o]) != at(i + 1);
        })));
      }
    }
  }
  Unique(found);
  // An output that keeps changing its nature is noise: a period, or too many partners.
  const size_t most = op_.arity == 1 ? 600 : 60;
  for (size_t i = 0; i < found.size(); i += 1 + found.size() / most) {
    if (op_.arity == 1) {
      places_[0].push_back(found[i]);
    } else {
      pairs_.push_back(operand == 0 ? Point<T>{found[i], partner} : Point<T>{partner, found[i]});
    }
  }
}

template <typename T>
void Sampler<T>::AddEdges(const std::vector<Point<double>>& known) {
  std::vector<T> all = Specials<T>();
  const auto around = [&all](double x, int64_t steps) {
    for (int64_t i = -steps; i <= steps; ++i) {
      all.push_back(Step(static_cast<T>(x), i));
      all.push_back(-all.back());
    }
  };
  if (op_.arity == 1) {
    for (const T place : places_[0]) around(static_cast<double>(place), 32);
    for (int e = Format<T>::kMin - Format<T>::kDigits + 1; e <= Format<T>::kMax; ++e) {
      around(std::ldexp(1.0, e), 1);
    }
    for (const double step : kSteps) {
      for (int k = 1; k <= 1500; ++k) around(k * step, 1);
    }
    // Among the closest that float64 and float32 ever get to a multiple of pi/2.
    for (const double x : {6381956970095103.0 * 0x1p797, 16367173.0 * 0x1p72, 0x1.6ac5b262ca1ffp849,
                           0x1.921fb54442d18p0}) {
      around(x, 2);
    }
    for (const T x : all) edges_.push_back({x, x});
  } else {
    for (const std::vector<T>& places : places_) {
      for (const T place : places) around(static_cast<double>(place), 0);
    }
    Unique(all);
    for (const T a : all) {
      for (const T b : all) edges_.push_back({a, b});
    }
    for (const Point<T>& pair : pairs_) {
      for (int64_t i = -3; i <= 3; ++i) {
        edges_.push_back({Step(pair.a, i), pair.b});
        edges_.push_back({pair.a, Step(pair.b, i)});
      }
    }
  }
  for (const SpecialPoint& point : op_.special) {
    edges_.push_back({static_cast<T>(point.at[0]), static_cast<T>(point.at[op_.arity - 1])});
  }
  for (const Point<double>& point : known) {
    for (int64_t i = -2; i <= 2; ++i) {
      const T a = Step(static_cast<T>(point.a), i);
      edges_.push_back({a, op_.arity == 1 ? a : static_cast<T>(point.b)});
    }
  }
}

template <typename T>
T Sampler<T>::DrawOne(Random& random, const std::vector<T>& places) const {
  const size_t stratum = random.Below(16);
  if (stratum < 4) return FromBits<T>(static_cast<typename Format<T>::Bits>(random()));
  if (stratum < 6) {  // log-uniform around 1
    const int exponent = static_cast<int>(random.Below(64)) - 44;
    return static_cast<T>(random.Sign() * std::ldexp(1 + random.Uniform(), exponent));
  }
  if (stratum < 10) {  // near a place, the nearer the more
    const T place = places[random.Below(places.size())];
    const auto steps = static_cast<int64_t>((random() >> 1) >> (31 + random.Below(32)));
    return Step(place, random.Sign() * steps);
  }
  if (stratum == 10) {
    const double step = kSteps[random.Below(std::size(kSteps))];
    const auto k = static_cast<double>(random() >> (44 + random.Below(20)));
    return Step(static_cast<T>(random.Sign() * k * step),
                static_cast<int64_t>(random.Below(9)) - 4);
  }
  if (stratum < 14) {  // between two places
    const size_t i = random.Below(places.size());
    const size_t j = std::min(places.size() - 1, i + 1 + random.Below(3));
    const double low = std::max(static_cast<double>(places[i]), -2000.0);
    const double high = std::min(static_cast<double>(places[j]), 2000.0);
    if (low < high) return static_cast<T>(low + (high - low) * random.Uniform());
  }
  const double range = stratum == 15 ? 2 : std::ldexp(1.0, 3 * static_cast<int>(random.Below(5)));
  return static_cast<T>(random.Sign() * range * random.Uniform());
}

template <typename T>
Point<T> Sampler<T>::Draw(Random& random) const {
  if (op_.arity == 1) {
    const T x = DrawOne(random, places_[0]);
    return {x, x};
  }
  const T a = DrawOne(random, places_[0]);
  switch (random.Below(10)) {
    case 0:  // ties and near ties
      return {a, Step(a, static_cast<int64_t>(random.Below(5)) - 2)};
    case 1:  // of like magnitude
      return {a, static_cast<T>(random.Sign() * static_cast<double>(a) *
                                std::exp2(2 * random.Uniform() - 1))};
    case 2: {
      if (pairs_.empty()) break;
      const Point<T> pair = pairs_[random.Below(pairs_.size())];
      const auto steps = static_cast<int64_t>((random() >> 1) >> (31 + random.Below(32)));
      return random() % 2 == 0 ? Point<T>{Step(pair.a, random.Sign() * steps), pair.b}
                               : Point<T>{pair.a, Step(pair.b, random.Sign() * steps)};
    }
    case 3:  // the middle of the range
    case 4:
      return {static_cast<T>(4 * random.Uniform()),
              static_cast<T>(random.Sign() * std::exp2(8 * random.Uniform() - 2))};
    case 5:
      return {static_cast<T>(random.Sign() * std::exp2(16 * random.Uniform() - 8)),
              static_cast<T>(random.Sign() * std::exp2(16 * random.Uniform() - 8))};
    default:
      break;
  }
  return {a, DrawOne(random, places_[1])};
}

template class Sampler<float>;
template class Sampler<double>;

}  // namespace pullback::accuracy

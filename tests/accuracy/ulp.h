// Errors in units in the last place of the real-valued result r: 2^(max(floor(log2 |r|), emin) - p
// + 1). An infinity counts as 2^(emax + 1). NaN, infinities and the signs of zeros match exactly.
#ifndef PULLBACK_TESTS_ACCURACY_ULP_H_
#define PULLBACK_TESTS_ACCURACY_ULP_H_

#include <mpfr.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace pullback::accuracy {

template <typename T>
struct Format {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static constexpr int kDigits = std::numeric_limits<T>::digits;
  static constexpr int kMin = std::numeric_limits<T>::min_exponent - 1;
  static constexpr int kMax = std::numeric_limits<T>::max_exponent - 1;
};

template <typename T>
T FromBits(typename Format<T>::Bits bits) {
  T x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

template <typename T>
typename Format<T>::Bits ToBits(T x) {
  typename Format<T>::Bits bits;
  std::memcpy(&bits, &x, sizeof(x));
  return bits;
}

template <typename T>
bool SameBits(T x, T y) {
  return ToBits(x) == ToBits(y) || (x != x && y != y);
}

// x moved by `steps` bit patterns.
template <typename T>
T Step(T x, int64_t steps) {
  using Bits = typename Format<T>::Bits;
  return FromBits<T>(static_cast<Bits>(ToBits(x) + static_cast<Bits>(steps)));
}

constexpr double kWrong = std::numeric_limits<double>::infinity();  // NaN, infinity or sign
constexpr double kUnknown = -1;                                     // let MPFR look

// `scale`: an exponent the ULP is at least of; kNoScale: that of r alone.
constexpr int kNoScale = -(1 << 20);

// Of `got` against r. Whether a result that is exactly zero is +0 or -0 is the special points'
// matter where an operand is zero: `any_zero`.
template <typename T>
double ExactError(mpfr_srcptr r, T got, bool any_zero, int scale = kNoScale) {
  if (mpfr_nan_p(r) || got != got) return mpfr_nan_p(r) && got != got ? 0 : kWrong;
  const bool same_sign = (mpfr_signbit(r) != 0) == std::signbit(got);
  if (mpfr_zero_p(r) && got == 0) return same_sign || any_zero ? 0 : kWrong;
  if (scale == kNoScale && (!same_sign || mpfr_zero_p(r))) return kWrong;
  if (mpfr_inf_p(r)) return std::isinf(got) && same_sign ? 0 : kWrong;
  const int exponent =
      mpfr_zero_p(r) ? Format<T>::kMin
                     : static_cast<int>(std::clamp<mpfr_exp_t>(mpfr_get_exp(r) - 1, -99999, 99999));
  if (std::isinf(got) && same_sign && exponent > Format<T>::kMax) return 0;
  mpfr_t y;
  mpfr_init2(y, 4200);
  if (std::isinf(got)) {
    mpfr_set_si_2exp(y, got < 0 ? -1 : 1, Format<T>::kMax + 1, MPFR_RNDN);
  } else {
    mpfr_set_d(y, static_cast<double>(got), MPFR_RNDN);
  }
  mpfr_sub(y, y, r, MPFR_RNDN);
  const int ulp = std::clamp(std::max(exponent, scale), Format<T>::kMin, Format<T>::kMax) -
                  Format<T>::kDigits + 1;
  mpfr_mul_2si(y, y, -ulp, MPFR_RNDN);
  const double error = std::fabs(mpfr_get_d(y, MPFR_RNDN));
  mpfr_clear(y);
  return error;
}

// The same against a long double.
template <typename T>
double RoughError(long double r, T got, int scale = kNoScale) {
  const long double y = static_cast<long double>(got);
  if (r != r || got != got) return r != r && got != got ? 0 : kUnknown;
  if (std::signbit(r) != std::signbit(y)) return kUnknown;
  if (std::isinf(y))
    return r >= std::ldexp(1.0L, Format<T>::kMax + 1) || -r >= std::ldexp(1.0L, Format<T>::kMax + 1)
               ? 0
               : kUnknown;
  if (r == 0 && y == 0) return 0;
  if (r == 0 || std::isinf(r)) return kUnknown;
  const int exponent = std::clamp(std::max(std::ilogb(r), scale), Format<T>::kMin, Format<T>::kMax);
  return static_cast<double>(std::fabs(std::scalbn(y - r, Format<T>::kDigits - 1 - exponent)));
}

}  // namespace pullback::accuracy

#endif  // PULLBACK_TESTS_ACCURACY_ULP_H_

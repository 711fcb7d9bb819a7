#include "kernels/convert.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

namespace pullback {
namespace {

struct Bool {
  uint8_t bits;
};

struct Half {
  uint16_t bits;
};

uint8_t Widen(Bool b) { return b.bits != 0; }

// Shifted into place a half's exponent is 112 too small, which one exact product mends, for its
// subnormals as well.
float Widen(Half h) {
  const auto magnitude = static_cast<uint32_t>(h.bits & 0x7FFF) << 13;
  const auto sign = static_cast<uint32_t>(h.bits & 0x8000) << 16;
  constexpr uint32_t kExponent = 0x1Fu << 23;
  constexpr uint32_t kFloatExponent = 0xFFu << 23;
  const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t bits = magnitude < kExponent ? scaled : magnitude | kFloatExponent;
  return std::bit_cast<float>(bits | sign);
}

template <typename S>
S Widen(S x) {
  return x;
}

template <typename S, bool kSwapped>
S Read(const char* p) {
  using Bits = std::conditional_t<
      sizeof(S) == 1, uint8_t,
      std::conditional_t<sizeof(S) == 2, uint16_t,
                         std::conditional_t<sizeof(S) == 4, uint32_t, uint64_t>>>;
  Bits bits;
  std::memcpy(&bits, p, sizeof(S));
  if constexpr (kSwapped && sizeof(S) == 2) bits = __builtin_bswap16(bits);
  if constexpr (kSwapped && sizeof(S) == 4) bits = __builtin_bswap32(bits);
  if constexpr (kSwapped && sizeof(S) == 8) bits = __builtin_bswap64(bits);
  return std::bit_cast<S>(bits);
}

template <typename S, bool kSwapped, typename T>
void LoadAll(const char* from, ptrdiff_t stride, void* to, size_t n) {
  auto* const y = static_cast<T*>(to);
  if (stride == static_cast<ptrdiff_t>(sizeof(S))) {
    if constexpr (!kSwapped && std::is_same_v<S, T>) {
      std::memcpy(y, from, n * sizeof(T));
    } else {
      for (size_t i = 0; i < n; ++i) {
        y[i] = static_cast<T>(Widen(Read<S, kSwapped>(from + i * sizeof(S))));
      }
    }
  } else if (stride == 0) {
    const T x = static_cast<T>(Widen(Read<S, kSwapped>(from)));
    Fill(y, n, x);
  } else {
#pragma GCC unroll 4
    for (size_t i = 0; i < n; ++i, from += stride) {
      y[i] = static_cast<T>(Widen(Read<S, kSwapped>(from)));
    }
  }
}

template <typename S>
Load LoadFrom(bool swapped, DType dtype) {
  if (dtype == DType::kFloat64)
    return swapped ? LoadAll<S, true, double> : LoadAll<S, false, double>;
  if constexpr (!std::is_same_v<S, double>) {
    return swapped ? LoadAll<S, true, float> : LoadAll<S, false, float>;
  }
  return nullptr;
}

}  // namespace

Load LoadOf(Storage storage, DType dtype) {
  const bool swapped = storage.swapped;
  switch (storage.element) {
    case Element::kBool:
      return LoadFrom<Bool>(swapped, dtype);
    case Element::kInt8:
      return LoadFrom<int8_t>(swapped, dtype);
    case Element::kUint8:
      return LoadFrom<uint8_t>(swapped, dtype);
    case Element::kInt16:
      return LoadFrom<int16_t>(swapped, dtype);
    case Element::kUint16:
      return LoadFrom<uint16_t>(swapped, dtype);
    case Element::kInt32:
      return LoadFrom<int32_t>(swapped, dtype);
    case Element::kUint32:
      return LoadFrom<uint32_t>(swapped, dtype);
    case Element::kInt64:
      return LoadFrom<int64_t>(swapped, dtype);
    case Element::kUint64:
      return LoadFrom<uint64_t>(swapped, dtype);
    case Element::kFloat16:
      return LoadFrom<Half>(swapped, dtype);
    case Element::kFloat32:
      return LoadFrom<float>(swapped, dtype);
    case Element::kFloat64:
      return LoadFrom<double>(swapped, dtype);
  }
  return nullptr;
}

void RepeatRun(void* to, size_t run, size_t bytes) {
  // What is there doubles: element by element, each would wait for one that was just written.
  auto* const begin = static_cast<char*>(to);
  for (size_t filled = run; filled < bytes; filled *= 2) {
    std::memcpy(begin + filled, begin, std::min(filled, bytes - filled));
  }
}

}  // namespace pullback

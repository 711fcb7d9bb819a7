// How elements lie in memory, and how any of them become the floats that kernels read.
#ifndef PULLBACK_CPP_KERNELS_CONVERT_H_
#define PULLBACK_CPP_KERNELS_CONVERT_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/elementwise.h"

namespace pullback {

enum class Element : uint8_t {
  kBool,
  kInt8,
  kUint8,
  kInt16,
  kUint16,
  kInt32,
  kUint32,
  kInt64,
  kUint64,
  kFloat16,
  kFloat32,
  kFloat64,
};

struct Storage {
  Element element;
  bool swapped;  // not in the machine's byte order

  bool operator==(const Storage&) const = default;
};

constexpr Storage StorageOf(DType dtype) {
  return {dtype == DType::kFloat32 ? Element::kFloat32 : Element::kFloat64, false};
}

// The dtype in which elements are computed: float32 if that holds all their values (or they are
// float32), else float64.
constexpr DType ComputeType(Element element) {
  switch (element) {
    case Element::kBool:
    case Element::kInt8:
    case Element::kUint8:
    case Element::kInt16:
    case Element::kUint16:
    case Element::kFloat16:
    case Element::kFloat32:
      return DType::kFloat32;
    default:
      return DType::kFloat64;
  }
}

// to[i] = the element at from + i * stride, rounded to nearest; no alignment needed.
using Load = void (*)(const char* from, ptrdiff_t stride, void* to, size_t n);

// To float from what ComputeType says float32 of, to double from anything.
Load LoadOf(Storage storage, DType dtype);

// std::fill_n by the line: a loop of single stores varies by a third with where its code lies.
template <typename T>
void Fill(T* to, size_t n, T x) {
  constexpr size_t kLine = 64 / sizeof(T);
  T* const end = to + n;
  if (n >= kLine) {
    std::array<T, kLine> line;
    line.fill(x);
    for (; n >= kLine; n -= kLine, to += kLine) std::memcpy(to, line.data(), sizeof(line));
  }
  std::fill(to, end, x);
}

// Fills `bytes` bytes with what the first `run` of them hold, over and over.
void RepeatRun(void* to, size_t run, size_t bytes);

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_CONVERT_H_

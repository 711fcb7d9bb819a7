// Sums of blocks of results, and how they are added up: rounding errors grow with the logarithm of
// their number, and the bits depend on shapes alone.
#ifndef PULLBACK_CPP_KERNELS_SUMS_H_
#define PULLBACK_CPP_KERNELS_SUMS_H_

#include <bit>
#include <cstddef>

#include "kernels/elementwise.h"

namespace pullback {

// For `n` elements of float (float64 sums) or double. Bits depend on values, n and the target, not
// on where in memory a block lies.
struct SumKernels {
  void (*add[kDTypes])(const void* from, double* to, size_t n);  // to[i] += from[i]
  double (*sum[kDTypes])(const void* from, size_t n);            // over i
};

const SumKernels& Sums();

inline void AddTo(double* to, const double* from, size_t n) {
  Sums().add[static_cast<size_t>(DType::kFloat64)](from, to, n);
}

// What is read in whole vectors of doubles is padded by at least one: as many as in the longest.
inline constexpr size_t kDoublePadding = 8;
constexpr size_t PadDoubles(size_t n) { return (n / kDoublePadding + 1) * kDoublePadding; }

// to[i] = value, rounded to `dtype`.
inline void Write(double value, DType dtype, void* to, size_t i) {
  if (dtype == DType::kFloat64) {
    static_cast<double*>(to)[i] = value;
  } else {
    static_cast<float*>(to)[i] = static_cast<float>(value);
  }
}

// Adds up partial results that are all there; the total ends in the first. `add(to, from)` takes
// two of their indices.
template <class Add>
void MergeTree(size_t parts, const Add& add) {
  for (size_t step = 1; step < parts; step *= 2) {
    for (size_t part = 0; part + step < parts; part += 2 * step) add(part, part + step);
  }
}

// Adds up blocks of sums as they come, like the carries of a binary counter, in memory that grows
// with the logarithm of their number.
class RunningTree {
 public:
  static size_t Levels(size_t blocks) { return static_cast<size_t>(std::bit_width(blocks)); }

  // `storage`: levels * width doubles. The total of all blocks ends in its first `width`.
  RunningTree(double* storage, size_t width) : storage_(storage), width_(width) {}

  // `write` fills a slot of `width` doubles with the next block.
  template <class Write>
  void Add(const Write& write) {
    double* top = storage_ + Occupied() * width_;
    write(top);
    for (size_t carries = count_; carries & 1; carries >>= 1) {
      AddTo(top - width_, top, width_);
      top -= width_;
    }
    ++count_;
  }

  void Finish() {
    for (size_t level = Occupied(); level > 1; --level) {
      AddTo(storage_ + (level - 2) * width_, storage_ + (level - 1) * width_, width_);
    }
  }

  const double* total() const { return storage_; }

 private:
  // Complete subtrees stand side by side, the largest first: one per set bit of the count.
  size_t Occupied() const { return static_cast<size_t>(std::popcount(count_)); }

  double* storage_;
  size_t width_;
  size_t count_ = 0;
};

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_SUMS_H_

// The fixed partition of a problem into tasks. It depends on the problem's shape alone, never on
// the number of threads: that is what makes sums equal bit for bit for any thread count.
#ifndef PULLBACK_CPP_RUNTIME_PARTITION_H_
#define PULLBACK_CPP_RUNTIME_PARTITION_H_

#include <algorithm>
#include <cstddef>

namespace pullback {

struct Range {
  size_t begin, end;
  constexpr size_t size() const { return end - begin; }
};

// Tasks 0 ... tasks-1 take [0, n) in order, `block` items each, the last one what is left.
struct Partition {
  size_t n, block, tasks;

  constexpr Range operator()(size_t task) const {
    const size_t begin = task * block;
    return {begin, begin + std::min(block, n - begin)};
  }
};

constexpr size_t CeilDiv(size_t a, size_t b) { return a / b + (a % b != 0); }
constexpr size_t RoundUp(size_t n, size_t multiple) { return CeilDiv(n, multiple) * multiple; }

constexpr Partition PartitionBy(size_t n, size_t block) { return {n, block, CeilDiv(n, block)}; }

// Elementwise: chunks of about this much memory traffic, and a multiple of kElementBlock elements,
// so that only the last chunk of an aligned array has a vector tail. 64 KiB loses a fifth of the
// bandwidth (prefetchers start anew), 128 KiB a tenth; above 256 KiB there is little to gain.
inline constexpr size_t kElementChunkBytes = size_t{256} << 10;
inline constexpr size_t kElementBlock = 64;

// `bytes_per_element` counts everything read and written for one element.
constexpr Partition ElementPartition(size_t n, size_t bytes_per_element) {
  const size_t elements = kElementChunkBytes / std::max<size_t>(bytes_per_element, 1);
  return PartitionBy(n, std::max(elements / kElementBlock, size_t{1}) * kElementBlock);
}

// Row slabs, one partial result each: few enough that merging them costs nothing, many enough to
// balance the threads, and none so small that handing it out shows.
inline constexpr size_t kMaxSlabs = 64;
inline constexpr size_t kMinSlabBytes = size_t{64} << 10;
inline constexpr size_t kRowBlock = 64;
// A partial result is as wide as a row: of fewer rows a slab would cost more than it computes.
inline constexpr size_t kMinSlabRows = 16;

// Slabs hold a multiple of kRowBlock rows, or, when that many rows would leave too few slabs, a
// power of two below it; never less than `fewest`.
constexpr Partition RowPartition(size_t rows, size_t row_bytes, size_t fewest = kMinSlabRows) {
  const size_t least =
      std::max({CeilDiv(rows, kMaxSlabs), CeilDiv(kMinSlabBytes, std::max<size_t>(row_bytes, 1)),
                kMinSlabRows, fewest});
  size_t block = 1;
  while (block < least && block < kRowBlock) block *= 2;
  if (least > kRowBlock) block = CeilDiv(least, kRowBlock) * kRowBlock;
  return PartitionBy(rows, block);
}

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_PARTITION_H_

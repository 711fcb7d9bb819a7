#include "runtime/partition.h"

#include <cstdint>
#include <initializer_list>

#include "check.h"

namespace pullback {
namespace {

// Nothing at run time is needed to know a partition.
static_assert(ElementPartition(0, 8).tasks == 0);
static_assert(RowPartition(0, 8).tasks == 0);
static_assert(ElementPartition(1, 8)(0).size() == 1);
static_assert(RowPartition(1, SIZE_MAX).tasks == 1);

void CheckCovers(const Partition& p, size_t n) {
  size_t next = 0;
  for (size_t task = 0; task < p.tasks; ++task) {
    const Range range = p(task);
    CHECK(range.begin == next);
    CHECK(range.end > range.begin);
    CHECK(task + 1 == p.tasks || range.size() == p.block);
    next = range.end;
  }
  CHECK(next == n);
}

void TestElements() {
  for (const size_t bytes :
       std::initializer_list<size_t>{0, 1, 2, 4, 8, 12, 24, 40, 4096, 1 << 20}) {
    for (size_t n = 0; n < 700; ++n) CheckCovers(ElementPartition(n, bytes), n);
    const size_t block = ElementPartition(1, bytes).block;
    CHECK(block % kElementBlock == 0);
    for (const size_t n : {block - 1, block, block + 1, 10 * block - 1, 10 * block + 1}) {
      CheckCovers(ElementPartition(n, bytes), n);
      CHECK(ElementPartition(n, bytes).block == block);  // never a function of n
    }
  }
  CheckCovers(ElementPartition((size_t{1} << 32) + 5, 8), (size_t{1} << 32) + 5);
  const Partition most = ElementPartition(SIZE_MAX, 1);
  CHECK(most(most.tasks - 1).end == SIZE_MAX);
}

void TestRows() {
  for (const size_t row_bytes :
       std::initializer_list<size_t>{0, 1, 8, 80, 800, 8000, 80000, 1 << 26}) {
    for (size_t rows = 0; rows < 5000; rows = rows < 300 ? rows + 1 : rows + 97) {
      const Partition p = RowPartition(rows, row_bytes);
      CheckCovers(p, rows);
      CHECK(p.tasks <= kMaxSlabs);
      CHECK(p.block % kRowBlock == 0 || kRowBlock % p.block == 0);
      CHECK(p.tasks <= 1 || p.block * row_bytes >= kMinSlabBytes);
    }
  }
  for (const size_t rows : {size_t{100'000'000}, size_t{1} << 32, (size_t{1} << 40) + 1}) {
    const Partition p = RowPartition(rows, 80);
    CheckCovers(p, rows);
    CHECK(p.tasks <= kMaxSlabs && p.tasks > kMaxSlabs / 2);
    CHECK(p.block % kRowBlock == 0);
  }
  const Partition most = RowPartition(SIZE_MAX - kMaxSlabs * kRowBlock, 8);
  CHECK(most.tasks <= kMaxSlabs && most(most.tasks - 1).end == most.n);
}

}  // namespace
}  // namespace pullback

int main() {
  pullback::TestElements();
  pullback::TestRows();
  return check::Report("partition_test");
}

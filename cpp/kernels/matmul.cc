// Batches of matrix products, cut into what is computed at once.
#include "kernels/matmul.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <utility>

#include "kernels/gemm.h"
#include "runtime/hwy_config.h"  // before any Highway header

#include <hwy/base.h>

#include "runtime/poll.h"

namespace pullback {
namespace {

// A single item with less is left to one thread when there are many items.
constexpr double kSerialItemFlops = 4e6;
// Elements of a right operand from which on packing it, transposed, for few rows is not worth it.
constexpr size_t kLeastInPlace = size_t{1} << 16;
// Tasks of a batch: some 50 us.
constexpr double kBatchTaskFlops = 2e6;
// Small items in a row: few enough that what two products share stays in the cache.
constexpr size_t kSmallRun = 16;

// Walks a batch in order.
class Odometer {
 public:
  Odometer(const Product& product, size_t index) : product_(product) {
    for (size_t axis = product.batch_axes; axis-- > 0;) {
      const BatchAxis& x = product.batch[axis];
      index_[axis] = index % x.n;
      index /= x.n;
      Move(x, static_cast<ptrdiff_t>(index_[axis]));
    }
  }

  void Next() {
    for (size_t axis = product_.batch_axes; axis-- > 0;) {
      const BatchAxis& x = product_.batch[axis];
      Move(x, 1);
      if (++index_[axis] < x.n) return;
      Move(x, -static_cast<ptrdiff_t>(x.n));
      index_[axis] = 0;
    }
  }

  // Items from here to the end of the innermost axis.
  size_t Run() const {
    const size_t axis = product_.batch_axes - 1;
    return product_.batch[axis].n - index_[axis];
  }

  void Skip(size_t count) {
    const size_t axis = product_.batch_axes - 1;
    Move(product_.batch[axis], static_cast<ptrdiff_t>(count) - 1);
    index_[axis] += count - 1;
    Next();
  }

  ptrdiff_t a = 0, b = 0, c = 0;

 private:
  void Move(const BatchAxis& axis, ptrdiff_t steps) {
    a += steps * axis.a;
    b += steps * axis.b;
    c += steps * axis.c;
  }

  const Product& product_;
  std::array<size_t, kMaxBatchAxes> index_{};
};

// The number of matrices to compute, 0 where they have no elements.
size_t BatchSize(const Product& product) {
  size_t count = product.m > 0 && product.n > 0 ? 1 : 0;
  for (size_t axis = 0; axis < product.batch_axes; ++axis) count *= product.batch[axis].n;
  return count;
}

Item ItemOf(const Product& product, bool& swapped) {
  const auto data = [](const Matrix& matrix) { return static_cast<char*>(matrix.data); };
  const std::span folds(product.folds.data(), product.fold_axes);
  size_t k = product.k;
  for (const BatchAxis& axis : folds) k *= axis.n;
  Item item{product.m,
            product.n,
            k,
            {data(product.a), product.a.row, product.a.col, product.k, folds, &BatchAxis::a},
            {data(product.b), product.b.col, product.b.row, product.k, folds, &BatchAxis::b},
            data(product.c),
            product.c.row,
            product.c.col,
            product.add};
  // Rows of C are stored as vectors: where its columns are the contiguous ones, C^T = B^T A^T. Of a
  // product with a vector, the vector is what is packed; and with few rows, which are read where
  // they lie as the other operand's could be, those are.
  const bool transposed_in_place = item.m <= kUnpackedColumns && item.n > 4 * item.m &&
                                   item.n * item.k >= kLeastInPlace && item.b.along == 1 &&
                                   item.b.across != 1 && folds.empty();
  swapped =
      item.n != 1 && (item.m == 1 || (item.c_col != 1 && item.c_row == 1) || transposed_in_place);
  if (swapped) {
    std::swap(item.m, item.n);
    std::swap(item.a, item.b);
    std::swap(item.c_row, item.c_col);
  }
  if (item.n == 1) item.c_col = 1;
  return item;
}

// The index-th item, if C is not transposed: then a and b have changed places.
Item At(const Contraction& run, const Item& first, bool swapped, const Odometer& at) {
  Item item = first;
  item.a.data += run.Bytes(swapped ? at.b : at.a);
  item.b.data += run.Bytes(swapped ? at.a : at.b);
  item.c += run.Bytes(at.c);
  return item;
}

Outcome Batch(Contraction& run, std::span<const Product> products, size_t count) {
  std::array<Item, kMaxTogether> first;
  std::array<bool, kMaxTogether> swapped;
  double flops = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    first[i] = ItemOf(products[i], swapped[i]);
    flops += Flops(first[i]);
  }
  if (count == 1) {
    return run.Together({first.data(), products.size()});
  }
  // An item of more than a task is a job of its own.
  if (flops >= kTaskFlops || (flops >= kSerialItemFlops && count < 4 * Contraction::Threads())) {
    for (size_t index = 0; index < count; ++index) {
      std::array<Item, kMaxTogether> items;
      for (size_t i = 0; i < products.size(); ++i) {
        items[i] = At(run, first[i], swapped[i], Odometer(products[i], index));
      }
      const Outcome outcome = run.Together({items.data(), products.size()});
      if (outcome != Outcome::kDone) return outcome;
    }
    return Outcome::kDone;
  }
  const double total = flops * static_cast<double>(count);
  const auto blocks = static_cast<size_t>(total / kBatchTaskFlops) + 1;
  const Partition chunks = PartitionBy(count, CeilDiv(count, std::min(blocks, count)));
  bool small = true;
  for (size_t i = 0; i < products.size(); ++i) small = small && run.IsSmall(first[i]);
  std::atomic<bool> failed = false;
  const bool done = run.For(chunks.tasks, total >= kParallelFlops, [&](size_t chunk) {
    const auto [begin, end] = chunks(chunk);
    std::array<std::optional<Odometer>, kMaxTogether> at;
    for (size_t i = 0; i < products.size(); ++i) at[i].emplace(products[i], begin);
    // Small items go in rows along the innermost axis.
    for (size_t index = begin; index < end;) {
      size_t row = small ? std::min(end - index, kSmallRun) : 1;
      for (size_t i = 0; small && i < products.size(); ++i) row = std::min(row, at[i]->Run());
      for (size_t i = 0; i < products.size(); ++i) {
        const Item item = At(run, first[i], swapped[i], *at[i]);
        if (small) {
          const BatchAxis& axis = products[i].batch[products[i].batch_axes - 1];
          run.Small(item, row, swapped[i] ? axis.b : axis.a, swapped[i] ? axis.a : axis.b, axis.c);
        } else if (run.Serial(item) != Outcome::kDone) {
          failed = true;
        }
        at[i]->Skip(row);
      }
      index += row;
    }
  });
  if (!done) return Outcome::kInterrupted;
  return failed ? Outcome::kOutOfMemory : Outcome::kDone;
}

// Not inlined: the caller guards the floating-point environment.
HWY_NOINLINE Outcome All(Contraction& run, std::span<const Product> products) {
  const auto same_batch = [](const Product& x, const Product& y) {
    return x.batch_axes == y.batch_axes &&
           std::equal(x.batch.begin(), x.batch.begin() + static_cast<ptrdiff_t>(x.batch_axes),
                      y.batch.begin(),
                      [](const BatchAxis& p, const BatchAxis& q) { return p.n == q.n; });
  };
  while (!products.empty()) {
    const size_t count = BatchSize(products[0]);
    size_t together = 1;
    while (together < std::min(products.size(), kMaxTogether) &&
           same_batch(products[0], products[together]) && !products[together].add && count > 0 &&
           BatchSize(products[together]) > 0) {
      ++together;
    }
    if (count > 0) {
      const Outcome outcome = Batch(run, products.first(together), count);
      if (outcome != Outcome::kDone) return outcome;
    }
    products = products.subspan(together);
  }
  return Outcome::kDone;
}

}  // namespace

Outcome Matmul(DType dtype, std::span<const Product> products, Poll* poll) {
  const KernelFpEnv fp_env(poll);
  Contraction run(dtype, poll);
  return All(run, products);
}

}  // namespace pullback

// One matrix product at a time, or a few that share what they read: blocking, packing, threads.
#ifndef PULLBACK_CPP_KERNELS_GEMM_H_
#define PULLBACK_CPP_KERNELS_GEMM_H_

#include <cstddef>
#include <span>

#include "kernels/matmul.h"
#include "runtime/partition.h"
#include "runtime/threads.h"

namespace pullback {

// Less arithmetic than this is done before a parked worker would have woken.
inline constexpr double kParallelFlops = 4e5;
// A task of this much takes some 20 ms: the caller's Ctrl-C is looked at between two of them.
inline constexpr double kTaskFlops = 5e8;
// A right operand of at most so much stays in L2, and is walked anew for each block of rows.
inline constexpr size_t kWalkedElements = 65536;
// Up to here, operands that are read a few times are not worth packing.
inline constexpr size_t kUnpackedColumns = 64;
// As many products as are computed as one.
inline constexpr size_t kMaxTogether = 2;

// An operand as the packing sees it: element i across a panel, p along the contracted axis.
struct Operand {
  const char* data;
  ptrdiff_t across, along;  // in elements
  size_t inner;             // p = fold * inner + rest
  std::span<const BatchAxis> folds{};
  ptrdiff_t BatchAxis::*fold = nullptr;  // their strides

  ptrdiff_t FoldOffset(size_t index) const {
    ptrdiff_t offset = 0;
    for (const BatchAxis& axis : folds) {
      offset += static_cast<ptrdiff_t>(index % axis.n) * axis.*fold;
      index /= axis.n;
    }
    return offset;
  }
};

// C = A B or C += A B, without a batch. Rows of C are stored as vectors where c_col is 1, else
// element by element.
struct Item {
  size_t m, n, k;  // folds included
  Operand a, b;
  char* c;
  ptrdiff_t c_row, c_col;
  bool add;
};

inline double Flops(const Item& item) {
  return 2.0 * static_cast<double>(item.m) * static_cast<double>(item.n) *
         static_cast<double>(item.k);
}

// An operand that was packed for all tasks: a whole, or the given columns of b.
struct Shared {
  const char* a = nullptr;
  const char* b = nullptr;
  Range columns{};
};

// Makes rows [begin, end) of what both products read there; on any thread, for each of the fixed
// blocks of rows once.
using MakeRows = FunctionRef<void(Range)>;

struct Piece;

class Contraction {
 public:
  Contraction(DType dtype, Poll* poll);

  const MatmulKernels& kernels() const { return kernels_; }

  // Products that do not depend on each other, on all threads. `make_rows`, for two that are
  // walked, makes what both read before they do.
  Outcome Together(std::span<const Item> items, const MakeRows* make_rows = nullptr);

  // Whether the rows of the one product, which the other one sums over, are walked once for both.
  bool Walks(const Item& rows, const Item& sum) const;

  // One product on this thread; never interrupted.
  Outcome Serial(const Item& item);

  // Products that need neither packing of the left operand nor memory.
  bool IsSmall(const Item& item) const {
    return item.n <= kUnpackedColumns && item.k > 0 && item.k <= kernels_.depth &&
           item.k <= item.a.inner && (item.n + kernels_.columns) * item.k <= kSmallRight;
  }
  void Small(const Item& item, size_t count, ptrdiff_t a_next, ptrdiff_t b_next,
             ptrdiff_t c_next) const;

  // Packs all of b, for Tile; SharedBytes of memory.
  size_t SharedBytes(const Item& item) const;
  Shared Share(const Item& item, char* to) const;

  // The part of C in `rows` and `columns`, the sum over `depth`; false when there is no memory.
  // Shared operands are packed for the whole of `depth`; rows and columns begin at whole panels.
  bool Tile(const Item& item, Range rows, Range columns, Range depth, const Shared& shared) const;
  void Move(const Item& from, const Item& to, size_t m, size_t n) const;

  // On this thread, without a look at the poll, or on all of them; false when interrupted.
  bool For(size_t tasks, bool parallel, FunctionRef<void(size_t)> body);

  ptrdiff_t Bytes(ptrdiff_t elements) const { return elements * static_cast<ptrdiff_t>(size_); }
  ptrdiff_t Bytes(size_t elements) const { return Bytes(static_cast<ptrdiff_t>(elements)); }
  static size_t Threads() { return static_cast<size_t>(GetNumThreads()); }

 private:
  size_t LeftRows() const;
  size_t RightColumns() const;
  void PackRange(const Operand& operand, size_t width, Range across, Range along, char* to) const;
  Partition Slabs(const Item& item) const;
  void Clear(const Item& item) const;
  template <typename T>
  void MergeAs(const Item& item, size_t slabs, T* sums) const;
  Outcome SumSlabs(const Item& item, const Item* along_with, const MakeRows* make_rows,
                   bool parallel);
  Piece PieceOf(const Item& item, Range columns, Range depth) const;
  Outcome Run(std::span<Piece> pieces);

  const MatmulKernels& kernels_;
  size_t size_;
  Poll* poll_;
};

}  // namespace pullback

#endif  // PULLBACK_CPP_KERNELS_GEMM_H_

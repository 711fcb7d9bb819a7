// Matrix products: blocks per instruction set, and the job above them.
#include "kernels/matmul.h"

#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/matmul.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/matmul-inl.h"
#include "runtime/fp_env.h"
#include "runtime/limits.h"
#include "runtime/partition.h"
#include "runtime/threads.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {

const MatmulKernels* MatmulTable() {
  static constexpr MatmulKernels kTable[kDTypes] = {KernelsOf<float>(), KernelsOf<double>()};
  return kTable;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
HWY_EXPORT(MatmulTable);

namespace {

constexpr size_t kAlignment = 64;

// Less arithmetic than this is done before a parked worker would have woken.
constexpr double kParallelFlops = 4e5;
// A task of this much takes some 20 ms: the caller's Ctrl-C is looked at between two of them.
constexpr double kTaskFlops = 5e8;
// A single item with less is left to one thread when there are many items.
constexpr double kSerialItemFlops = 4e6;
// What is packed at once and shared by all threads.
constexpr size_t kSharedBytes = size_t{16} << 20;
constexpr size_t kStackBytes = size_t{32} << 10;
// Less than this is packed on one thread.
constexpr size_t kSerialPackBytes = size_t{64} << 10;
// This many depth blocks are packed at once.
constexpr size_t kSharedDepth = 32;
// Tasks of a batch: some 50 us.
constexpr double kBatchTaskFlops = 2e6;
// The right operand of a product that is computed along with a sum over its rows.
constexpr size_t kWalkedElements = 65536;
constexpr size_t kMaxTogether = 2;
constexpr size_t kSmallRun = 16;
// Up to here, operands that are read a few times are not worth packing.
constexpr size_t kUnpackedColumns = 64;

constexpr size_t RoundUp(size_t n, size_t to) { return CeilDiv(n, to) * to; }

// An operand as the packing sees it: element i across a panel, p along the contracted axis.
struct Operand {
  const char* data;
  ptrdiff_t across, along;  // in elements
  size_t inner;             // p = fold * inner + rest
  ptrdiff_t fold;
};

// One product of the job, without its batch.
struct Item {
  size_t m, n, k;  // folds included
  Operand a, b;
  char* c;
  ptrdiff_t c_row, c_col;
  bool add;
};

double Flops(const Item& item) {
  return 2.0 * static_cast<double>(item.m) * static_cast<double>(item.n) *
         static_cast<double>(item.k);
}

// Memory that a thread keeps between its tasks.
class ThreadScratch {
 public:
  // Null when there is none.
  static char* Get(size_t bytes) {
    thread_local ThreadScratch scratch;
    if (bytes > scratch.bytes_) {
      scratch.memory_.reset(
          static_cast<char*>(std::aligned_alloc(kAlignment, RoundUp(bytes, 4096))));
      scratch.bytes_ = scratch.memory_ ? bytes : 0;
    }
    return scratch.memory_.get();
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t bytes_ = 0;
};

// Uninitialised memory of one call.
class Memory {
 public:
  explicit Memory(size_t bytes)
      : memory_(
            static_cast<char*>(std::aligned_alloc(kAlignment, RoundUp(bytes + 1, kAlignment)))) {}
  ~Memory() { std::free(memory_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  explicit operator bool() const { return memory_ != nullptr; }
  char* get() const { return memory_; }

 private:
  char* memory_;
};

// An operand that was packed for all tasks: a whole, or the given columns of b.
struct Shared {
  const char* a = nullptr;
  const char* b = nullptr;
  Range columns{};
};

// A piece of a product: one of its operands is packed once for all tasks, the other one by each
// task for itself. The smaller one is shared.
struct Piece {
  Item item;
  bool shares_b;
  Range columns, depth;
  Partition row_blocks, column_blocks;  // the tasks: every pair
  Partition pack_blocks;                // of the shared operand's panels, for each depth block
  char* packed = nullptr;

  size_t Tasks() const { return row_blocks.tasks * column_blocks.tasks; }
};

// Cuts `n` into blocks of whole panels, about `blocks` of them.
Partition PanelPartition(size_t n, size_t panel, size_t blocks) {
  return PartitionBy(n,
                     std::max(CeilDiv(n, std::max(blocks, size_t{1}) * panel), size_t{1}) * panel);
}

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

size_t BatchSize(const Product& product) {
  size_t count = 1;
  for (size_t axis = 0; axis < product.batch_axes; ++axis) count *= product.batch[axis].n;
  return count;
}

class Job {
 public:
  Job(DType dtype, Poll* poll)
      : kernels_(HWY_DYNAMIC_DISPATCH(MatmulTable)()[static_cast<size_t>(dtype)]),
        size_(ItemSize(dtype)),
        poll_(poll),
        threads_(static_cast<size_t>(GetNumThreads())) {
    const size_t cache = L2CacheBytes() / 2;
    left_rows_ =
        std::max(cache / (kernels_.depth * size_) / kernels_.rows, size_t{1}) * kernels_.rows;
    right_columns_ = std::max(2 * cache / (kernels_.depth * size_) / kernels_.columns, size_t{1}) *
                     kernels_.columns;
  }

  Outcome Run(std::span<const Product> products);

 private:
  ptrdiff_t Bytes(ptrdiff_t elements) const { return elements * static_cast<ptrdiff_t>(size_); }
  ptrdiff_t Bytes(size_t elements) const { return Bytes(static_cast<ptrdiff_t>(elements)); }

  Item ItemOf(const Product& product, bool& swapped) const;
  Item At(const Item& first, bool swapped, const Odometer& at) const;
  void PackRange(const Operand& operand, size_t width, Range across, Range along, char* to) const;
  bool Tile(const Item& item, Range rows, Range columns, Range depth, const Shared& shared) const;
  Partition Slabs(const Item& item) const;
  void Clear(const Item& item) const;
  template <typename T>
  void MergeAs(const Item& item, size_t slabs, T* sums) const;
  bool For(size_t tasks, bool parallel, FunctionRef<void(size_t)> body);
  Outcome SumSlabs(const Item& item, const Item* along_with, bool parallel);
  bool IsSmall(const Item& item) const;
  void Small(const Item& item, size_t count, ptrdiff_t a_next, ptrdiff_t b_next,
             ptrdiff_t c_next) const;
  Outcome Serial(const Item& item);
  Piece PieceOf(const Item& item, Range columns, Range depth) const;
  Outcome Run(std::span<Piece> pieces, double flops);
  Outcome Together(std::span<const Item> items);
  Outcome Batch(std::span<const Product> products, size_t count);

  const MatmulKernels& kernels_;
  size_t size_;
  Poll* poll_;
  size_t threads_;
  size_t left_rows_, right_columns_;
};

Item Job::ItemOf(const Product& product, bool& swapped) const {
  const auto data = [](const Matrix& matrix) { return static_cast<char*>(matrix.data); };
  Item item{product.m,
            product.n,
            product.k * product.folds,
            {data(product.a), product.a.row, product.a.col, product.k, product.a_fold},
            {data(product.b), product.b.col, product.b.row, product.k, product.b_fold},
            data(product.c),
            product.c.row,
            product.c.col,
            product.add};
  const auto merges = [&](const Operand& operand) {
    return operand.fold == static_cast<ptrdiff_t>(product.k) * operand.along;
  };
  if (product.folds == 1 || (merges(item.a) && merges(item.b))) {
    item.a.inner = item.b.inner = item.k;
  } else if (product.k == 1) {
    item.a.along = item.a.fold;
    item.b.along = item.b.fold;
    item.a.inner = item.b.inner = item.k;
  }
  // Rows of C are stored as vectors: where its columns are the contiguous ones, C^T = B^T A^T. Of a
  // product with a vector, the vector is what is packed.
  swapped = item.n != 1 && (item.m == 1 || (item.c_col != 1 && item.c_row == 1));
  if (swapped) {
    std::swap(item.m, item.n);
    std::swap(item.a, item.b);
    std::swap(item.c_row, item.c_col);
  }
  if (item.n == 1) item.c_col = 1;
  return item;
}

void Job::PackRange(const Operand& operand, size_t width, Range across, Range along,
                    char* to) const {
  const char* const from =
      operand.data + Bytes(static_cast<ptrdiff_t>(across.begin) * operand.across);
  if (along.end <= operand.inner) {
    kernels_.pack(width, from + Bytes(static_cast<ptrdiff_t>(along.begin) * operand.along),
                  operand.across, operand.along, across.size(), along.size(), to);
    return;
  }
  for (size_t i = 0; i < across.size(); i += width) {
    const char* const panel = from + Bytes(static_cast<ptrdiff_t>(i) * operand.across);
    for (size_t p = along.begin; p < along.end;) {
      const size_t fold = p / operand.inner, rest = p % operand.inner;
      const size_t depth = std::min(operand.inner - rest, along.end - p);
      kernels_.pack(width,
                    panel + Bytes(static_cast<ptrdiff_t>(fold) * operand.fold +
                                  static_cast<ptrdiff_t>(rest) * operand.along),
                    operand.across, operand.along, std::min(width, across.size() - i), depth, to);
      to += Bytes(width * depth);
      p += depth;
    }
  }
}

// The part of C in `rows` and `columns`, the sum over `depth`; false when there is no memory.
// Shared operands are packed for the whole of `depth`; rows and columns begin at whole panels.
bool Job::Tile(const Item& item, Range rows, Range columns, Range depth,
               const Shared& shared) const {
  const size_t deepest = std::min(depth.size(), kernels_.depth);
  const bool pack_a =
      shared.a == nullptr && (columns.size() > kUnpackedColumns || depth.end > item.a.inner);
  const size_t a_rows = std::min(RoundUp(rows.size(), kernels_.rows), left_rows_);
  const size_t b_columns =
      shared.b != nullptr ? columns.size()
                          : std::min(RoundUp(columns.size(), kernels_.columns), right_columns_);
  const size_t b_bytes = shared.b != nullptr ? 0 : RoundUp(b_columns * deepest * size_, kAlignment);
  const size_t a_bytes = pack_a ? a_rows * deepest * size_ : 0;
  alignas(kAlignment) char stack[kStackBytes];
  char* scratch = stack;
  if (a_bytes + b_bytes > kStackBytes) {
    scratch = ThreadScratch::Get(a_bytes + b_bytes);
    if (scratch == nullptr) return false;
  }
  char* const packed_a = scratch + b_bytes;

  BlockProduct block;
  block.a_row = item.a.across;
  block.a_col = item.a.along;
  block.a_packed = pack_a || shared.a != nullptr;
  block.c_row = item.c_row;
  block.c_col = item.c_col;
  for (size_t j = columns.begin; j < columns.end; j += b_columns) {
    const Range right{j, std::min(j + b_columns, columns.end)};
    for (size_t p = depth.begin; p < depth.end; p += kernels_.depth) {
      const Range along{p, std::min(p + kernels_.depth, depth.end)};
      const size_t done = p - depth.begin;
      if (shared.b != nullptr) {
        block.b = shared.b + Bytes(done * RoundUp(shared.columns.size(), kernels_.columns) +
                                   (j - shared.columns.begin) * along.size());
      } else {
        PackRange(item.b, kernels_.columns, right, along, scratch);
        block.b = scratch;
      }
      block.add = item.add || p > depth.begin;
      for (size_t i = rows.begin; i < rows.end; i += a_rows) {
        const Range left{i, std::min(i + a_rows, rows.end)};
        if (shared.a != nullptr) {
          block.a = shared.a + Bytes(done * RoundUp(item.m, kernels_.rows) + i * along.size());
        } else if (pack_a) {
          PackRange(item.a, kernels_.rows, left, along, packed_a);
          block.a = packed_a;
        } else {
          block.a = item.a.data + Bytes(static_cast<ptrdiff_t>(i) * item.a.across +
                                        static_cast<ptrdiff_t>(p) * item.a.along);
        }
        block.size = {left.size(), right.size(), along.size()};
        block.c = item.c + Bytes(static_cast<ptrdiff_t>(i) * item.c_row +
                                 static_cast<ptrdiff_t>(j) * item.c_col);
        kernels_.multiply(block);
      }
    }
  }
  return true;
}

// How the contracted axis of a small product is cut for the threads. It decides over the bits.
Partition Job::Slabs(const Item& item) const {
  constexpr size_t kMaxSums = 16384;
  const size_t blocks = item.k / kernels_.depth;
  if (blocks < 16 || item.m * item.n > kMaxSums) return PartitionBy(item.k, item.k);
  return PartitionBy(item.k, CeilDiv(blocks, std::min(blocks / 4, kMaxSlabs)) * kernels_.depth);
}

void Job::Clear(const Item& item) const {
  for (size_t i = 0; i < item.m; ++i) {
    for (size_t j = 0; j < item.n; ++j) {
      std::memset(item.c + Bytes(static_cast<ptrdiff_t>(i) * item.c_row +
                                 static_cast<ptrdiff_t>(j) * item.c_col),
                  0, size_);
    }
  }
}

// The slabs' sums lie one after the other, each m x n.
template <typename T>
void Job::MergeAs(const Item& item, size_t slabs, T* sums) const {
  const size_t size = item.m * item.n;
  for (size_t step = 1; step < slabs; step *= 2) {
    for (size_t slab = 0; slab + step < slabs; slab += 2 * step) {
      T* const to = sums + slab * size;
      const T* const from = sums + (slab + step) * size;
      for (size_t i = 0; i < size; ++i) to[i] += from[i];
    }
  }
  T* const c = reinterpret_cast<T*>(item.c);
  for (size_t i = 0; i < item.m; ++i) {
    for (size_t j = 0; j < item.n; ++j) {
      T& element =
          c[static_cast<ptrdiff_t>(i) * item.c_row + static_cast<ptrdiff_t>(j) * item.c_col];
      const T sum = sums[i * item.n + j];
      element = item.add ? element + sum : sum;
    }
  }
}

// False when interrupted.
bool Job::For(size_t tasks, bool parallel, FunctionRef<void(size_t)> body) {
  if (parallel) return ParallelFor(tasks, body, poll_);
  for (size_t task = 0; task < tasks; ++task) {
    if (Interrupted(poll_)) return false;
    body(task);
  }
  return true;
}

// A product with a long contracted axis, slab by slab. `along_with`, if any, has that axis as its
// rows and is computed on the way, while what both read is in the cache.
Outcome Job::SumSlabs(const Item& item, const Item* along_with, bool parallel) {
  const Partition slabs = Slabs(item);
  const size_t bytes = RoundUp(item.m * item.n * size_, kAlignment);
  size_t shared_bytes = 0;
  if (along_with != nullptr) {
    shared_bytes = along_with->k * RoundUp(along_with->n, kernels_.columns) * size_;
  }
  const Memory memory(shared_bytes + slabs.tasks * bytes);
  if (!memory) return Outcome::kOutOfMemory;
  Shared shared;
  if (along_with != nullptr) {
    char* to = memory.get();
    shared.b = to;
    shared.columns = {0, along_with->n};
    for (size_t p = 0; p < along_with->k; p += kernels_.depth) {
      const Range along{p, std::min(p + kernels_.depth, along_with->k)};
      PackRange(along_with->b, kernels_.columns, {0, along_with->n}, along, to);
      to += Bytes(along.size() * RoundUp(along_with->n, kernels_.columns));
    }
  }
  char* const sums = memory.get() + shared_bytes;
  std::atomic<bool> failed = false;
  const bool done = For(slabs.tasks, parallel, [&](size_t slab) {
    Item part = item;
    part.c = sums + slab * item.m * item.n * size_;
    part.c_row = static_cast<ptrdiff_t>(item.n);
    part.c_col = 1;
    part.add = false;
    const auto [begin, end] = slabs(slab);
    for (size_t p = begin; p < end; p += kernels_.depth) {
      const Range range{p, std::min(p + kernels_.depth, end)};
      if (along_with != nullptr &&
          !Tile(*along_with, range, {0, along_with->n}, {0, along_with->k}, shared)) {
        failed = true;
      }
      if (!Tile(part, {0, item.m}, {0, item.n}, range, {})) failed = true;
      part.add = true;
    }
  });
  if (!done) return Outcome::kInterrupted;
  if (failed) return Outcome::kOutOfMemory;
  if (size_ == sizeof(float)) {
    MergeAs(item, slabs.tasks, reinterpret_cast<float*>(sums));
  } else {
    MergeAs(item, slabs.tasks, reinterpret_cast<double*>(sums));
  }
  return Outcome::kDone;
}

// Whether the left operand need not be packed, and the right one fits on the stack.
bool Job::IsSmall(const Item& item) const {
  return item.n <= kUnpackedColumns && item.k > 0 && item.k <= kernels_.depth &&
         item.k <= item.a.inner && RoundUp(item.n, kernels_.columns) * item.k <= kSmallRight;
}

void Job::Small(const Item& item, size_t count, ptrdiff_t a_next, ptrdiff_t b_next,
                ptrdiff_t c_next) const {
  kernels_.multiply_small({{item.m, item.n, item.k},
                           item.a.data,
                           item.a.across,
                           item.a.along,
                           item.b.data,
                           item.b.along,
                           item.b.across,
                           item.c,
                           item.c_row,
                           item.c_col,
                           item.add,
                           count,
                           a_next,
                           b_next,
                           c_next});
}

Outcome Job::Serial(const Item& item) {
  if (item.k == 0) {
    if (!item.add) Clear(item);
    return Outcome::kDone;
  }
  if (IsSmall(item)) {
    Small(item, 1, 0, 0, 0);
    return Outcome::kDone;
  }
  if (Slabs(item).tasks > 1) return SumSlabs(item, nullptr, false);
  const bool done = Tile(item, {0, item.m}, {0, item.n}, {0, item.k}, {});
  return done ? Outcome::kDone : Outcome::kOutOfMemory;
}

Piece Job::PieceOf(const Item& item, Range columns, Range depth) const {
  Piece piece{item, item.n <= item.m, columns, depth, {}, {}, {}};
  const size_t m = item.m, n = columns.size();
  const size_t wanted = std::max(
      4 * threads_, static_cast<size_t>(2.0 * static_cast<double>(m) * static_cast<double>(n) *
                                        static_cast<double>(depth.size()) / kTaskFlops));
  const size_t rows = kernels_.rows, cols = kernels_.columns;
  if (piece.shares_b) {
    piece.row_blocks = PanelPartition(m, rows, wanted);
    piece.column_blocks = PanelPartition(n, cols, CeilDiv(wanted, piece.row_blocks.tasks));
    piece.pack_blocks = PanelPartition(n, cols, threads_);
  } else {
    piece.column_blocks = PanelPartition(n, cols, wanted);
    piece.row_blocks = PanelPartition(m, rows, CeilDiv(wanted, piece.column_blocks.tasks));
    piece.pack_blocks = PanelPartition(m, rows, threads_);
  }
  return piece;
}

// The pieces must not depend on each other.
Outcome Job::Run(std::span<Piece> pieces, double flops) {
  const size_t kDepth = kernels_.depth;
  size_t bytes = 0, packs = 0, tasks = 0;
  const auto shared_width = [&](const Piece& piece) {
    return piece.shares_b ? RoundUp(piece.columns.size(), kernels_.columns)
                          : RoundUp(piece.item.m, kernels_.rows);
  };
  for (const Piece& piece : pieces) {
    bytes += RoundUp(shared_width(piece) * piece.depth.size() * size_, kAlignment);
    packs += piece.pack_blocks.tasks * CeilDiv(piece.depth.size(), kDepth);
    tasks += piece.Tasks();
  }
  const Memory memory(bytes);
  if (!memory) return Outcome::kOutOfMemory;
  char* to = memory.get();
  for (Piece& piece : pieces) {
    piece.packed = to;
    to += RoundUp(shared_width(piece) * piece.depth.size() * size_, kAlignment);
  }
  const bool parallel = flops >= kParallelFlops;
  const bool packed = For(packs, parallel && bytes > kSerialPackBytes, [&](size_t task) {
    const Piece* piece = pieces.data();
    for (;; ++piece) {
      const size_t own = piece->pack_blocks.tasks * CeilDiv(piece->depth.size(), kDepth);
      if (task < own) break;
      task -= own;
    }
    const size_t done = task / piece->pack_blocks.tasks * kDepth;
    const auto [begin, end] = piece->pack_blocks(task % piece->pack_blocks.tasks);
    const Range along{piece->depth.begin + done,
                      std::min(piece->depth.begin + done + kDepth, piece->depth.end)};
    char* const target = piece->packed + Bytes(done * shared_width(*piece) + begin * along.size());
    if (piece->shares_b) {
      const size_t first = piece->columns.begin;
      PackRange(piece->item.b, kernels_.columns, {first + begin, first + end}, along, target);
    } else {
      PackRange(piece->item.a, kernels_.rows, {begin, end}, along, target);
    }
  });
  if (!packed) return Outcome::kInterrupted;
  std::atomic<bool> failed = false;
  const bool done = For(tasks, parallel, [&](size_t task) {
    const Piece* piece = pieces.data();
    for (; task >= piece->Tasks(); ++piece) task -= piece->Tasks();
    const Range rows = piece->row_blocks(task % piece->row_blocks.tasks);
    Range columns = piece->column_blocks(task / piece->row_blocks.tasks);
    columns.begin += piece->columns.begin;
    columns.end += piece->columns.begin;
    Shared shared;
    if (piece->shares_b) {
      shared = {nullptr, piece->packed, piece->columns};
    } else {
      shared = {piece->packed, nullptr, piece->columns};
    }
    if (!Tile(piece->item, rows, columns, piece->depth, shared)) failed = true;
  });
  if (!done) return Outcome::kInterrupted;
  return failed ? Outcome::kOutOfMemory : Outcome::kDone;
}

// Products that do not depend on each other.
Outcome Job::Together(std::span<const Item> items) {
  double flops = 0;
  for (const Item& item : items) flops += Flops(item);
  if (flops < kParallelFlops) {
    for (const Item& item : items) {
      if (const Outcome outcome = Serial(item); outcome != Outcome::kDone) return outcome;
    }
    return Outcome::kDone;
  }
  // A long axis that one product sums over and the other has as its rows is walked once.
  if (items.size() == 2 && Slabs(items[1]).tasks > 1 && items[0].m == items[1].k &&
      items[0].n * items[0].k <= kWalkedElements && items[0].k > 0 && !items[0].add) {
    return SumSlabs(items[1], &items[0], true);
  }
  std::array<Piece, kMaxTogether> pieces;
  size_t count = 0;
  const auto flush = [&] {
    const Outcome outcome = count == 0 ? Outcome::kDone : Run({pieces.data(), count}, flops);
    count = 0;
    return outcome;
  };
  for (const Item& item : items) {
    if (item.k == 0 || Slabs(item).tasks > 1) {
      const Outcome outcome = item.k == 0 ? Serial(item) : SumSlabs(item, nullptr, true);
      if (outcome != Outcome::kDone) return outcome;
      continue;
    }
    const size_t deepest = std::min(item.k, kSharedDepth * kernels_.depth);
    const size_t width = std::min(item.m, item.n);
    if (width * deepest * size_ <= kSharedBytes && deepest == item.k) {
      pieces[count++] = PieceOf(item, {0, item.n}, {0, item.k});
      if (count == kMaxTogether) {
        if (const Outcome outcome = flush(); outcome != Outcome::kDone) return outcome;
      }
      continue;
    }
    // Too much to pack at once.
    const Partition columns =
        PanelPartition(item.n, kernels_.columns, CeilDiv(width * deepest * size_, kSharedBytes));
    for (size_t j = 0; j < columns.tasks; ++j) {
      Item part = item;
      for (size_t p = 0; p < item.k; p += deepest) {
        Piece piece = PieceOf(part, columns(j), {p, std::min(p + deepest, item.k)});
        if (const Outcome outcome = Run({&piece, 1}, flops); outcome != Outcome::kDone) {
          return outcome;
        }
        part.add = true;
      }
    }
  }
  return flush();
}

// The index-th item, if C is not transposed: then a and b have changed places.
Item Job::At(const Item& first, bool swapped, const Odometer& at) const {
  Item item = first;
  item.a.data += Bytes(swapped ? at.b : at.a);
  item.b.data += Bytes(swapped ? at.a : at.b);
  item.c += Bytes(at.c);
  return item;
}

Outcome Job::Batch(std::span<const Product> products, size_t count) {
  std::array<Item, kMaxTogether> first;
  std::array<bool, kMaxTogether> swapped;
  double flops = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    first[i] = ItemOf(products[i], swapped[i]);
    flops += Flops(first[i]);
  }
  if (count == 1) {
    return Together({first.data(), products.size()});
  }
  if (flops >= kSerialItemFlops && count < 4 * threads_) {
    for (size_t index = 0; index < count; ++index) {
      std::array<Item, kMaxTogether> items;
      for (size_t i = 0; i < products.size(); ++i) {
        items[i] = At(first[i], swapped[i], Odometer(products[i], index));
      }
      const Outcome outcome = Together({items.data(), products.size()});
      if (outcome != Outcome::kDone) return outcome;
    }
    return Outcome::kDone;
  }
  const double total = flops * static_cast<double>(count);
  const auto blocks = static_cast<size_t>(total / kBatchTaskFlops) + 1;
  const Partition chunks = PartitionBy(count, CeilDiv(count, std::min(blocks, count)));
  bool small = true;
  for (size_t i = 0; i < products.size(); ++i) small = small && IsSmall(first[i]);
  std::atomic<bool> failed = false;
  const bool done = For(chunks.tasks, total >= kParallelFlops, [&](size_t chunk) {
    const auto [begin, end] = chunks(chunk);
    std::array<std::optional<Odometer>, kMaxTogether> at;
    for (size_t i = 0; i < products.size(); ++i) at[i].emplace(products[i], begin);
    // Small items go in runs along the innermost axis, short enough that what the products share
    // stays in the cache.
    for (size_t index = begin; index < end;) {
      size_t run = small ? std::min(end - index, kSmallRun) : 1;
      for (size_t i = 0; small && i < products.size(); ++i) run = std::min(run, at[i]->Run());
      for (size_t i = 0; i < products.size(); ++i) {
        const Item item = At(first[i], swapped[i], *at[i]);
        if (small) {
          const BatchAxis& axis = products[i].batch[products[i].batch_axes - 1];
          Small(item, run, swapped[i] ? axis.b : axis.a, swapped[i] ? axis.a : axis.b, axis.c);
        } else if (Serial(item) != Outcome::kDone) {
          failed = true;
        }
        at[i]->Skip(run);
      }
      index += run;
    }
  });
  if (!done) return Outcome::kInterrupted;
  return failed ? Outcome::kOutOfMemory : Outcome::kDone;
}

// Not inlined: the caller guards the floating-point environment.
HWY_NOINLINE Outcome Job::Run(std::span<const Product> products) {
  const auto same_batch = [](const Product& x, const Product& y) {
    return x.batch_axes == y.batch_axes &&
           std::equal(x.batch.begin(), x.batch.begin() + static_cast<ptrdiff_t>(x.batch_axes),
                      y.batch.begin(),
                      [](const BatchAxis& p, const BatchAxis& q) { return p.n == q.n; });
  };
  while (!products.empty()) {
    size_t together = 1;
    while (together < std::min(products.size(), kMaxTogether) &&
           same_batch(products[0], products[together]) && !products[together].add) {
      ++together;
    }
    const size_t count = BatchSize(products[0]);
    if (count > 0) {
      const Outcome outcome = Batch(products.first(together), count);
      if (outcome != Outcome::kDone) return outcome;
    }
    products = products.subspan(together);
  }
  return Outcome::kDone;
}

}  // namespace

Outcome Matmul(DType dtype, std::span<const Product> products, Poll* poll) {
  const ScopedDefaultFpEnv fp_env;
  return Job(dtype, poll).Run(products);
}

}  // namespace pullback
#endif  // HWY_ONCE

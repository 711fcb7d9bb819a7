// Blocks of matrix products per instruction set, and what is above them.
#include "kernels/gemm.h"

#include "runtime/hwy_config.h"  // before any Highway header

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include "kernels/matmul-inl.h"
#include "kernels/sums.h"
#include "runtime/partition.h"
#include "runtime/probe.h"
#include "runtime/scratch.h"
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

// What is packed at once and shared by all threads. Each task reads it whole: at 2048, 16 MiB took
// 1.1 x the time on a machine that shares its 32 MiB of L3.
constexpr size_t kSharedBytes = size_t{8} << 20;
constexpr size_t kStackBytes = size_t{32} << 10;
// Less than this is packed on one thread.
constexpr size_t kSerialPackBytes = size_t{64} << 10;
// So many tasks balance the threads; blocks of fewer rows would wait for the shared operand, which
// each of them reads whole.
constexpr size_t kTasksPerThread = 6;
constexpr size_t kLeastRows = 48;
// This many depth blocks are packed at once.
constexpr size_t kSharedDepth = 32;

// A range cut into blocks of whole panels that differ by one panel at most: a narrow block at the
// end would read the other operand for little.
struct PanelPartition {
  Range range;
  size_t panel, tasks;

  size_t Panels() const { return CeilDiv(range.size(), panel); }
  size_t Longest() const { return CeilDiv(Panels(), tasks) * panel; }
  Range operator()(size_t task) const {
    const auto bound = [&](size_t t) {
      return std::min(range.begin + Panels() * t / tasks * panel, range.end);
    };
    return {bound(task), bound(task + 1)};
  }
};

// Blocks of at most `most` columns or rows, if a panel is not wider.
PanelPartition PanelsOf(Range range, size_t panel, size_t most) {
  const size_t panels = CeilDiv(range.size(), panel);
  return {range, panel, std::max(CeilDiv(panels, std::max(most / panel, size_t{1})), size_t{1})};
}

}  // namespace

Contraction::Contraction(DType dtype, Poll* poll)
    : kernels_(HWY_DYNAMIC_DISPATCH(MatmulTable)()[static_cast<size_t>(dtype)]),
      size_(ItemSize(dtype)),
      poll_(poll) {}

// Of a packed left operand: a quarter of L2, whose sets are shared unevenly.
size_t Contraction::LeftRows() const {
  const size_t panels = L2CacheBytes() / 4 / (kernels_.depth * size_) / kernels_.rows;
  return std::max(panels, size_t{1}) * kernels_.rows;
}

// Of a right operand that a task packs for itself.
size_t Contraction::RightColumns() const {
  const size_t panels = L2CacheBytes() / (kernels_.depth * size_) / kernels_.columns;
  return std::max(panels, size_t{1}) * kernels_.columns;
}

void Contraction::PackRange(const Operand& operand, size_t width, Range across, Range along,
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
      kernels_.pack(
          width,
          panel + Bytes(operand.FoldOffset(fold) + static_cast<ptrdiff_t>(rest) * operand.along),
          operand.across, operand.along, std::min(width, across.size() - i), depth, to);
      to += Bytes(width * depth);
      p += depth;
    }
  }
}

// Copies the first m rows and n columns of one C to the other.
void Contraction::Move(const Item& from, const Item& to, size_t m, size_t n) const {
  const auto move = [&](auto* source, auto* target) {
    for (size_t j = 0; j < n; ++j) {
      for (size_t i = 0; i < m; ++i) {
        const auto row = static_cast<ptrdiff_t>(i), col = static_cast<ptrdiff_t>(j);
        target[row * to.c_row + col * to.c_col] = source[row * from.c_row + col * from.c_col];
      }
    }
  };
  if (size_ == sizeof(float)) {
    move(reinterpret_cast<const float*>(from.c), reinterpret_cast<float*>(to.c));
  } else {
    move(reinterpret_cast<const double*>(from.c), reinterpret_cast<double*>(to.c));
  }
}

bool Contraction::Tile(const Item& item, Range rows, Range columns, Range depth,
                       const Shared& shared) const {
  const size_t deepest = std::min(depth.size(), kernels_.depth);
  const bool pack_a =
      shared.a == nullptr && (columns.size() > kUnpackedColumns || depth.end > item.a.inner);
  const PanelPartition row_blocks = PanelsOf(rows, kernels_.rows, LeftRows());
  const PanelPartition column_blocks =
      PanelsOf(columns, kernels_.columns, shared.b != nullptr ? columns.size() : RightColumns());
  const size_t b_bytes = shared.b != nullptr ? 0 : column_blocks.Longest() * deepest * size_;
  const size_t a_bytes = pack_a ? row_blocks.Longest() * deepest * size_ : 0;
  // Sums that cannot be stored as rows are moved when they are complete.
  const bool aside = item.c_col != 1 && depth.size() > kernels_.depth;
  const size_t c_bytes = aside ? rows.size() * columns.size() * size_ : 0;
  using TileScratch = Scratch<kStackBytes, Heap::kOfThread>;
  TileScratch scratch(TileScratch::Bytes(b_bytes) + TileScratch::Bytes(a_bytes) +
                      TileScratch::Bytes(c_bytes));
  if (!scratch) return false;
  char* const packed_b = scratch.Take(b_bytes);
  char* const packed_a = scratch.Take(a_bytes);
  Item target = item;
  target.c += Bytes(static_cast<ptrdiff_t>(rows.begin) * item.c_row +
                    static_cast<ptrdiff_t>(columns.begin) * item.c_col);
  const Item there = target;
  if (aside) {
    target.c = scratch.Take(c_bytes);
    target.c_row = static_cast<ptrdiff_t>(columns.size());
    target.c_col = 1;
    if (item.add) Move(there, target, rows.size(), columns.size());
  }

  BlockProduct block;
  block.a_row = item.a.across;
  block.a_col = item.a.along;
  block.a_packed = pack_a || shared.a != nullptr;
  block.c_row = target.c_row;
  block.c_col = target.c_col;
  for (size_t right_block = 0; right_block < column_blocks.tasks; ++right_block) {
    const Range right = column_blocks(right_block);
    const size_t j = right.begin;
    for (size_t p = depth.begin; p < depth.end; p += kernels_.depth) {
      const Range along{p, std::min(p + kernels_.depth, depth.end)};
      const size_t done = p - depth.begin;
      if (shared.b != nullptr) {
        block.b = shared.b + Bytes(done * RoundUp(shared.columns.size(), kernels_.columns) +
                                   (j - shared.columns.begin) * along.size());
      } else {
        PackRange(item.b, kernels_.columns, right, along, packed_b);
        block.b = packed_b;
      }
      block.add = item.add || p > depth.begin;
      for (size_t left_block = 0; left_block < row_blocks.tasks; ++left_block) {
        const Range left = row_blocks(left_block);
        const size_t i = left.begin;
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
        block.c = target.c + Bytes(static_cast<ptrdiff_t>(i - rows.begin) * target.c_row +
                                   static_cast<ptrdiff_t>(j - columns.begin) * target.c_col);
        kernels_.multiply(block);
      }
    }
  }
  if (aside) Move(target, there, rows.size(), columns.size());
  return true;
}

// How the contracted axis of a small product is cut for the threads. It decides over the bits.
Partition Contraction::Slabs(const Item& item) const {
  constexpr size_t kMaxSums = 16384;
  const size_t blocks = item.k / kernels_.depth;
  if (blocks < 16 || item.m * item.n > kMaxSums) return PartitionBy(item.k, item.k);
  return PartitionBy(item.k, CeilDiv(blocks, std::min(blocks / 4, kMaxSlabs)) * kernels_.depth);
}

void Contraction::Clear(const Item& item) const {
  const size_t step = item.c_col == 1 ? item.n : 1;
  for (size_t i = 0; i < item.m; ++i) {
    for (size_t j = 0; j < item.n; j += step) {
      std::memset(item.c + Bytes(static_cast<ptrdiff_t>(i) * item.c_row +
                                 static_cast<ptrdiff_t>(j) * item.c_col),
                  0, step * size_);
    }
  }
}

// The slabs' sums lie one after the other, each m x n.
template <typename T>
void Contraction::MergeAs(const Item& item, size_t slabs, T* sums) const {
  const size_t size = item.m * item.n;
  MergeTree(slabs, [&](size_t into, size_t from) {
    for (size_t i = 0; i < size; ++i) sums[into * size + i] += sums[from * size + i];
  });
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

// What is done on this thread may itself be a task of one that is polled, on any thread: it runs to
// its end.
bool Contraction::For(size_t tasks, bool parallel, FunctionRef<void(size_t)> body) {
  if (parallel) return ParallelFor(tasks, body, poll_);
  for (size_t task = 0; task < tasks; ++task) body(task);
  return true;
}

size_t Contraction::SharedBytes(const Item& item) const {
  return item.k * RoundUp(item.n, kernels_.columns) * size_;
}

Shared Contraction::Share(const Item& item, char* to) const {
  const Shared shared{nullptr, to, {0, item.n}};
  for (size_t p = 0; p < item.k; p += kernels_.depth) {
    const Range along{p, std::min(p + kernels_.depth, item.k)};
    PackRange(item.b, kernels_.columns, {0, item.n}, along, to);
    to += Bytes(along.size() * RoundUp(item.n, kernels_.columns));
  }
  return shared;
}

// A product with a long contracted axis, slab by slab. `along_with`, if any, has that axis as its
// rows and is computed on the way, while what both read is in the cache.
Outcome Contraction::SumSlabs(const Item& item, const Item* along_with, const MakeRows* make_rows,
                              bool parallel) {
  const Partition slabs = Slabs(item);
  const size_t bytes = slabs.tasks * item.m * item.n * size_;
  const size_t shared_bytes = along_with != nullptr ? SharedBytes(*along_with) : 0;
  Scratch<> scratch(Scratch<>::Bytes(shared_bytes) + Scratch<>::Bytes(bytes));
  if (!scratch) return Outcome::kOutOfMemory;
  char* const to = scratch.Take(shared_bytes);
  const Shared shared = along_with != nullptr ? Share(*along_with, to) : Shared{};
  char* const sums = scratch.Take(bytes);
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
      if (make_rows != nullptr) (*make_rows)(range);
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

void Contraction::Small(const Item& item, size_t count, ptrdiff_t a_next, ptrdiff_t b_next,
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

Outcome Contraction::Serial(const Item& item) {
  if (item.k == 0) {
    if (!item.add) Clear(item);
    return Outcome::kDone;
  }
  if (IsSmall(item)) {
    Small(item, 1, 0, 0, 0);
    return Outcome::kDone;
  }
  if (Slabs(item).tasks > 1) return SumSlabs(item, nullptr, nullptr, false);
  const bool done = Tile(item, {0, item.m}, {0, item.n}, {0, item.k}, {});
  return done ? Outcome::kDone : Outcome::kOutOfMemory;
}

// A piece of a product: one of its operands is packed once for all tasks, the other one by each
// task for itself. The smaller one is shared.
struct Piece {
  Item item;
  bool shares_b;
  Range columns, depth;
  PanelPartition row_blocks, column_blocks;  // the tasks: every pair
  PanelPartition pack_blocks;                // of the shared operand, for each depth block
  char* packed = nullptr;

  size_t Tasks() const { return row_blocks.tasks * column_blocks.tasks; }
};

Piece Contraction::PieceOf(const Item& item, Range columns, Range depth) const {
  const Range all{0, item.m};
  const size_t m = item.m, n = columns.size();
  const size_t rows = kernels_.rows, cols = kernels_.columns;
  const size_t wanted =
      std::max(kTasksPerThread * Threads(),
               static_cast<size_t>(2.0 * static_cast<double>(m) * static_cast<double>(n) *
                                   static_cast<double>(depth.size()) / kTaskFlops));
  Piece piece{item, item.n <= item.m, columns, depth, {}, {}, {}};
  if (piece.shares_b) {
    piece.row_blocks =
        PanelsOf(all, rows, std::min(std::max(CeilDiv(m, wanted), kLeastRows), LeftRows()));
    piece.column_blocks =
        PanelsOf(columns, cols, CeilDiv(n, CeilDiv(wanted, piece.row_blocks.tasks)));
    piece.pack_blocks = PanelsOf(columns, cols, CeilDiv(n, Threads()));
  } else {
    piece.column_blocks =
        PanelsOf(columns, cols, std::min(std::max(CeilDiv(n, wanted), kLeastRows), RightColumns()));
    piece.row_blocks = PanelsOf(all, rows, CeilDiv(m, CeilDiv(wanted, piece.column_blocks.tasks)));
    piece.pack_blocks = PanelsOf(all, rows, CeilDiv(m, Threads()));
  }
  return piece;
}

// The pieces must not depend on each other. On all threads.
Outcome Contraction::Run(std::span<Piece> pieces) {
  const size_t kDepth = kernels_.depth;
  size_t bytes = 0, packs = 0, tasks = 0;
  const auto shared_width = [&](const Piece& piece) {
    return piece.shares_b ? RoundUp(piece.columns.size(), kernels_.columns)
                          : RoundUp(piece.item.m, kernels_.rows);
  };
  const auto packed_bytes = [&](const Piece& piece) {
    return shared_width(piece) * piece.depth.size() * size_;
  };
  for (const Piece& piece : pieces) {
    bytes += Scratch<>::Bytes(packed_bytes(piece));
    packs += piece.pack_blocks.tasks * CeilDiv(piece.depth.size(), kDepth);
    tasks += piece.Tasks();
  }
  Scratch<> scratch(bytes);
  if (!scratch) return Outcome::kOutOfMemory;
  for (Piece& piece : pieces) piece.packed = scratch.Take(packed_bytes(piece));
  const bool packed = For(packs, bytes > kSerialPackBytes, [&](size_t task) {
    const Piece* piece = pieces.data();
    for (;; ++piece) {
      const size_t own = piece->pack_blocks.tasks * CeilDiv(piece->depth.size(), kDepth);
      if (task < own) break;
      task -= own;
    }
    const size_t done = task / piece->pack_blocks.tasks * kDepth;
    const Range across = piece->pack_blocks(task % piece->pack_blocks.tasks);
    const Range along{piece->depth.begin + done,
                      std::min(piece->depth.begin + done + kDepth, piece->depth.end)};
    const size_t first = piece->shares_b ? piece->columns.begin : 0;
    char* const target =
        piece->packed + Bytes(done * shared_width(*piece) + (across.begin - first) * along.size());
    if (piece->shares_b) {
      PackRange(piece->item.b, kernels_.columns, across, along, target);
    } else {
      PackRange(piece->item.a, kernels_.rows, across, along, target);
    }
  });
  if (!packed) return Outcome::kInterrupted;
  std::atomic<bool> failed = false;
  const auto tile = [&](size_t task) {
    const Piece* piece = pieces.data();
    for (; task >= piece->Tasks(); ++piece) task -= piece->Tasks();
    const Range rows = piece->row_blocks(task % piece->row_blocks.tasks);
    const Range columns = piece->column_blocks(task / piece->row_blocks.tasks);
    Shared shared;
    if (piece->shares_b) {
      shared = {nullptr, piece->packed, piece->columns};
    } else {
      shared = {piece->packed, nullptr, piece->columns};
    }
    if (!Tile(piece->item, rows, columns, piece->depth, shared)) failed = true;
  };
  if (!ParallelFor(tasks, tile, poll_)) return Outcome::kInterrupted;
  return failed ? Outcome::kOutOfMemory : Outcome::kDone;
}

bool Contraction::Walks(const Item& rows, const Item& sum) const {
  // What is cut into slabs itself has other bits when it is not.
  return Flops(rows) + Flops(sum) >= kParallelFlops && rows.k > 0 && Slabs(sum).tasks > 1 &&
         Slabs(rows).tasks == 1 && rows.m == sum.k && rows.n * rows.k <= kWalkedElements;
}

Outcome Contraction::Together(std::span<const Item> items, const MakeRows* make_rows) {
  double flops = 0;
  for (const Item& item : items) flops += Flops(item);
  if (flops < kParallelFlops) {
    for (const Item& item : items) {
      if (const Outcome outcome = Serial(item); outcome != Outcome::kDone) return outcome;
    }
    return Outcome::kDone;
  }
  if (items.size() == 2 && Walks(items[0], items[1])) {
    return SumSlabs(items[1], &items[0], make_rows, true);
  }
  std::array<Piece, kMaxTogether> pieces;
  size_t count = 0;
  const auto flush = [&] {
    const Outcome outcome = count == 0 ? Outcome::kDone : Run({pieces.data(), count});
    count = 0;
    return outcome;
  };
  for (const Item& item : items) {
    if (item.k == 0 || Slabs(item).tasks > 1) {
      const Outcome outcome = item.k == 0 ? Serial(item) : SumSlabs(item, nullptr, nullptr, true);
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
    const PanelPartition columns =
        PanelsOf({0, item.n}, kernels_.columns,
                 CeilDiv(item.n, CeilDiv(width * deepest * size_, kSharedBytes)));
    for (size_t j = 0; j < columns.tasks; ++j) {
      Item part = item;
      for (size_t p = 0; p < item.k; p += deepest) {
        Piece piece = PieceOf(part, columns(j), {p, std::min(p + deepest, item.k)});
        if (const Outcome outcome = Run({&piece, 1}); outcome != Outcome::kDone) {
          return outcome;
        }
        part.add = true;
      }
    }
  }
  return flush();
}

}  // namespace pullback
#endif  // HWY_ONCE

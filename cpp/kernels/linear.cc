// A linear layer: rows of X W + b are made block by block, in front of what uses them.
#include "kernels/linear.h"

#include "runtime/hwy_config.h"  // before any Highway header

#include <hwy/base.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "kernels/gemm.h"
#include "kernels/sums.h"
#include "runtime/poll.h"
#include "runtime/scratch.h"

namespace pullback {
namespace {

constexpr size_t kStackBytes = size_t{4} << 10;

class Layer {
 public:
  Layer(const LinearLayer& layer, Poll* poll)
      : layer_(layer),
        size_(ItemSize(layer.dtype)),
        run_(layer.dtype, poll),
        blocks_(PartitionBy(layer.rows, run_.kernels().depth)),
        parallel_(2 * Multiplications(layer) >= kParallelFlops) {}

  Outcome Value(const Matrix& out);
  Outcome Vjp(const LinearCotangents& cotangents);
  Outcome Tangent(const void* tbias, const Matrix& out);

 private:
  char* Row(const Matrix& matrix, size_t row) const {
    return static_cast<char*>(matrix.data) +
           static_cast<ptrdiff_t>(row) * matrix.row * static_cast<ptrdiff_t>(size_);
  }

  // X W, added to the bias if there is one.
  Item Affine(const Matrix& to) const {
    const LinearLayer& x = layer_;
    return {x.rows,
            x.n,
            x.k,
            {static_cast<const char*>(x.x.data), x.x.row, x.x.col, x.k},
            {static_cast<const char*>(x.w.data), x.w.col, x.w.row, x.k},
            static_cast<char*>(to.data),
            to.row,
            1,
            layer_.bias != nullptr};
  }

  // Rows of the bias, to which X W is added.
  void Preset(const Matrix& to, Range rows) const {
    if (layer_.bias == nullptr) return;
    for (size_t row = rows.begin; row < rows.end; ++row) {
      std::memcpy(Row(to, row), layer_.bias, layer_.n * size_);
    }
  }

  // Rows of X W + b, with W packed in `shared`; false when there is no memory.
  bool AffineRows(const Item& item, Range rows, const Shared& shared) const {
    Preset({item.c, item.c_row, 1}, rows);
    return run_.Tile(item, rows, {0, item.n}, {0, item.k}, shared);
  }

  // kernel(z), or kernel(z, t), into `to`, row by row where rows do not follow each other.
  void Map(ElementwiseKernel kernel, const Matrix& z, const Matrix* t, const Matrix& to,
           Range rows) const {
    const auto n = static_cast<ptrdiff_t>(layer_.n);
    const bool whole = z.row == n && to.row == n && (t == nullptr || t->row == n);
    const size_t step = whole ? std::max(rows.size(), size_t{1}) : 1;
    for (size_t row = rows.begin; row < rows.end; row += step) {
      void* const target = Row(to, row);
      const void* const in[] = {Row(z, row), t != nullptr ? Row(*t, row) : nullptr};
      kernel(in, &target, step * layer_.n, 0);
    }
  }

  // Adds the bias' tangent to rows of `to`.
  template <typename T>
  void AddRow(const void* tbias, const Matrix& to, Range rows) const {
    for (size_t row = rows.begin; row < rows.end; ++row) {
      T* const sum = reinterpret_cast<T*>(Row(to, row));
      for (size_t j = 0; j < layer_.n; ++j) sum[j] += static_cast<const T*>(tbias)[j];
    }
  }

  ElementwiseKernel Kernel(Method method) const {
    return layer_.activation
        ->kernel[static_cast<size_t>(method)][static_cast<size_t>(layer_.dtype)];
  }

  // X W + b in `to`, block by block where the weights are small; `finish` sees each block once its
  // rows are there.
  Outcome MakeAffine(const Matrix& to, FunctionRef<void(Range)> finish);

  // Adds up the blocks' sums of rows.
  void MergeBias(double* sums, void* to) const;

  const LinearLayer& layer_;
  size_t size_;
  Contraction run_;
  Partition blocks_;
  bool parallel_;
};

Outcome Layer::MakeAffine(const Matrix& to, FunctionRef<void(Range)> finish) {
  const Item item = Affine(to);
  const auto each = [&](auto&& body) {
    return run_.For(blocks_.tasks, parallel_, [&](size_t block) { body(blocks_(block)); });
  };
  if (item.k == 0 || item.k * item.n > kWalkedElements) {
    if (!each([&](Range rows) { Preset(to, rows); })) return Outcome::kInterrupted;
    if (const Outcome outcome = run_.Together({&item, 1}); outcome != Outcome::kDone) {
      return outcome;
    }
    return each(finish) ? Outcome::kDone : Outcome::kInterrupted;
  }
  Scratch<kStackBytes> packed(run_.SharedBytes(item));
  if (!packed) return Outcome::kOutOfMemory;
  const Shared shared = run_.Share(item, packed.Take(run_.SharedBytes(item)));
  std::atomic<bool> failed = false;
  const bool done = each([&](Range rows) {
    if (!AffineRows(item, rows, shared)) failed = true;
    finish(rows);
  });
  if (!done) return Outcome::kInterrupted;
  return failed ? Outcome::kOutOfMemory : Outcome::kDone;
}

Outcome Layer::Value(const Matrix& out) {
  return MakeAffine(out, [&](Range rows) {
    if (layer_.activation != nullptr) Map(Kernel(Method::kValue), out, nullptr, out, rows);
  });
}

void Layer::MergeBias(double* sums, void* to) const {
  const size_t n = layer_.n, blocks = blocks_.tasks;
  MergeTree(blocks, [&](size_t to, size_t from) { AddTo(sums + to * n, sums + from * n, n); });
  for (size_t j = 0; j < n; ++j) Write(blocks > 0 ? sums[j] : 0.0, layer_.dtype, to, j);
}

Outcome Layer::Vjp(const LinearCotangents& cotangents) {
  // No structured binding, which no lambda may capture up to clang 15.
  const size_t rows = layer_.rows, k = layer_.k, n = layer_.n;
  const size_t h_bytes = layer_.activation != nullptr ? rows * n * size_ : 0;
  const size_t n_sums = cotangents.dbias != nullptr ? blocks_.tasks * n : 0;
  using VjpScratch = Scratch<kStackBytes>;
  VjpScratch scratch(VjpScratch::Bytes(h_bytes) + VjpScratch::Bytes<double>(n_sums));
  if (!scratch) return Outcome::kOutOfMemory;
  char* const h_memory = scratch.Take(h_bytes);
  double* const sums = scratch.Take<double>(n_sums);
  const Matrix h =
      layer_.activation == nullptr ? cotangents.g : Matrix{h_memory, static_cast<ptrdiff_t>(n), 1};

  // What a block of rows needs once X W + b is there.
  const auto finish = [&](Range range) {
    if (layer_.activation != nullptr) Map(Kernel(Method::kVjp), h, &cotangents.g, h, range);
    if (cotangents.dbias != nullptr) {
      double* const sum = sums + range.begin / blocks_.block * n;
      std::fill(sum, sum + n, 0.0);  // as np.sum does: of -0 alone it is +0
      for (size_t row = range.begin; row < range.end; ++row) {
        Sums().add[static_cast<size_t>(layer_.dtype)](Row(h, row), sum, n);
      }
    }
  };

  std::array<Item, kMaxTogether> items;
  size_t count = 0;
  const auto operand = [&](const Matrix& matrix, bool transposed, size_t along) {
    return Operand{static_cast<const char*>(matrix.data), transposed ? matrix.col : matrix.row,
                   transposed ? matrix.row : matrix.col, along};
  };
  if (cotangents.dx.data != nullptr) {
    const Matrix& c = cotangents.dx;
    items[count++] = {rows,
                      k,
                      n,
                      operand(h, false, n),
                      operand(layer_.w, false, n),
                      static_cast<char*>(c.data),
                      c.row,
                      c.col,
                      false};
  }
  if (cotangents.dw.data != nullptr) {
    const Matrix& c = cotangents.dw;
    items[count++] = {k,
                      n,
                      rows,
                      operand(layer_.x, true, rows),
                      operand(h, true, rows),
                      static_cast<char*>(c.data),
                      c.row,
                      c.col,
                      false};
  }

  Outcome outcome = Outcome::kDone;
  if (count == 2 && run_.Walks(items[0], items[1])) {
    // X W + b, its activation, both products and the bias' sum: X, G and H are in the cache.
    const Item affine = Affine(h);
    const size_t bytes = layer_.activation != nullptr ? run_.SharedBytes(affine) : 0;
    Scratch<kStackBytes> packed(bytes);
    if (!packed) return Outcome::kOutOfMemory;
    Shared shared;
    if (bytes > 0) shared = run_.Share(affine, packed.Take(bytes));
    std::atomic<bool> failed = false;
    const auto make = [&](Range range) {
      if (layer_.activation != nullptr && !AffineRows(affine, range, shared)) failed = true;
      finish(range);
    };
    const MakeRows make_rows(make);
    outcome = run_.Together({items.data(), count}, &make_rows);
    if (outcome == Outcome::kDone && failed) outcome = Outcome::kOutOfMemory;
  } else {
    if (layer_.activation != nullptr) {
      outcome = MakeAffine(h, finish);
    } else if (cotangents.dbias != nullptr) {
      const bool done =
          run_.For(blocks_.tasks, parallel_, [&](size_t block) { finish(blocks_(block)); });
      outcome = done ? Outcome::kDone : Outcome::kInterrupted;
    }
    if (outcome == Outcome::kDone && count > 0) outcome = run_.Together({items.data(), count});
  }
  if (outcome == Outcome::kDone && cotangents.dbias != nullptr) MergeBias(sums, cotangents.dbias);
  return outcome;
}

Outcome Layer::Tangent(const void* tbias, const Matrix& out) {
  const auto add = [&](Range rows) {
    if (tbias == nullptr) return;
    if (layer_.dtype == DType::kFloat32) {
      AddRow<float>(tbias, out, rows);
    } else {
      AddRow<double>(tbias, out, rows);
    }
  };
  if (layer_.activation == nullptr) {
    const bool done =
        run_.For(blocks_.tasks, parallel_, [&](size_t block) { add(blocks_(block)); });
    return done ? Outcome::kDone : Outcome::kInterrupted;
  }
  const size_t bytes = layer_.rows * layer_.n * size_;
  Scratch<kStackBytes> scratch(bytes);
  if (!scratch) return Outcome::kOutOfMemory;
  const Matrix z{scratch.Take(bytes), static_cast<ptrdiff_t>(layer_.n), 1};
  return MakeAffine(z, [&](Range rows) {
    add(rows);
    Map(Kernel(Method::kJvp), z, &out, out, rows);
  });
}

// Not inlined: the caller guards the floating-point environment.
HWY_NOINLINE Outcome RunValue(const LinearLayer& layer, const Matrix& out, Poll* poll) {
  return Layer(layer, poll).Value(out);
}

HWY_NOINLINE Outcome RunVjp(const LinearLayer& layer, const LinearCotangents& cotangents,
                            Poll* poll) {
  return Layer(layer, poll).Vjp(cotangents);
}

HWY_NOINLINE Outcome RunTangent(const LinearLayer& layer, const void* tbias, const Matrix& out,
                                Poll* poll) {
  return Layer(layer, poll).Tangent(tbias, out);
}

}  // namespace

Outcome LinearValue(const LinearLayer& layer, const Matrix& out, Poll* poll) {
  const KernelFpEnv fp_env(poll);
  return RunValue(layer, out, poll);
}

Outcome LinearVjp(const LinearLayer& layer, const LinearCotangents& cotangents, Poll* poll) {
  const KernelFpEnv fp_env(poll);
  return RunVjp(layer, cotangents, poll);
}

Outcome LinearTangent(const LinearLayer& layer, const void* tbias, const Matrix& out, Poll* poll) {
  const KernelFpEnv fp_env(poll);
  return RunTangent(layer, tbias, out, poll);
}

}  // namespace pullback

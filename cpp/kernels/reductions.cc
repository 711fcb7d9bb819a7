// The driver of the reductions: fixed tiles and segments, trees of states, two passes or one.
#include "kernels/reductions.h"

#include "runtime/hwy_config.h"  // before any Highway header

#include <hwy/base.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/sums.h"
#include "kernels/tasks.h"
#include "runtime/partition.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

namespace pullback {
namespace {

// Rows of up to so many elements are turned into columns: a vector along them would be mostly
// empty, and what is done once for each row would cost more than its elements.
constexpr size_t kShortRow = 16;
constexpr size_t kTurnedElements = 2048;

// Of a tile of columns; with few rows it is wide.
constexpr size_t kTileElements = 16384;
constexpr size_t kTileColumns = 128;
constexpr size_t kTileRows = 256;

// Along slices, where slopes are written at once: a segment and its results fit in L1.
constexpr size_t kPlainSegment = 2048;

// Slices up to here are finished by one task, their second pass reads them from a cache.
constexpr size_t kLocalElements = 65536;

// A task's elements.
constexpr size_t kTaskElements = 32768;

constexpr size_t kTaskStackBytes = size_t{24} << 10;

// How the slices are cut.
struct Layout {
  explicit Layout(const ReductionCall& call)
      : turned(call.inner == 1 && call.n <= kShortRow && call.outer > 1),
        along(call.inner == 1 && !turned),
        groups(turned ? 1 : call.outer),
        columns(turned ? call.outer : call.inner),
        stride(along ? 1 : static_cast<ptrdiff_t>(call.inner)) {
    if (along) {
      tile = 1;
      segment = call.op->stateless ? kPlainSegment : kMaxSegment;
    } else if (turned) {
      tile = std::min({columns, kTurnedElements / call.n, kMaxColumns});
      segment = call.n;
    } else {
      tile = std::min(columns, std::clamp(kTileElements / call.n, kTileColumns, kMaxColumns));
      segment = std::clamp<size_t>(kTileElements / tile, 1, kTileRows);
    }
    segment = std::min(segment, call.n);
    segments = CeilDiv(call.n, segment);
    tiles = CeilDiv(columns, tile);
    width = along ? 1 : RoundUp(tile, kColumnPadding);
  }

  size_t Units() const { return groups * tiles; }

  bool turned, along;
  size_t groups, columns;
  ptrdiff_t stride;
  size_t tile, segment, segments, tiles;
  size_t width;  // of a tile's fields
};

class Reducer {
 public:
  Reducer(const ReductionCall& call, const Layout& layout)
      : call_(call),
        layout_(layout),
        op_(*call.op),
        loops_((layout.along ? op_.along : op_.across)[static_cast<size_t>(call.dtype)]),
        item_(ItemSize(call.dtype)),
        slopes_(call.out[0] != nullptr),
        // A stateless row's slopes and tangents need no state, its values do.
        sums_(call.values != nullptr && !call.tangents),
        states_(sums_ || !op_.stateless),
        fields_(op_.state * layout.width),
        local_(layout.segments == 1 || call.n * layout.tile <= kLocalElements),
        keeps_(op_.keeps && slopes_ && layout.segments == 1),
        streamed_(Streams()) {}

  HWY_NOINLINE Outcome Run(Poll* poll) {
    const size_t units = layout_.Units(), segments = layout_.segments;
    const size_t unit = call_.n * layout_.tile;
    if (local_) {
      return For(PartitionBy(units, std::max<size_t>(kTaskElements / unit, 1)), unit, poll,
                 [&](Range range) { return Local(range); });
    }
    const size_t all = units * segments;
    const size_t doubles = (states_ ? all * fields_ : 0) +
                           (call_.tangents ? all * layout_.width : 0) +
                           units * op_.coefs * layout_.width;
    Scratch<> scratch(doubles * sizeof(double));
    if (!scratch) return Outcome::kOutOfMemory;
    double* const states = scratch.Take<double>(doubles);
    double* const tangents = states + (states_ ? all * fields_ : 0);
    double* const coefs = tangents + (call_.tangents ? all * layout_.width : 0);
    const size_t piece = layout_.segment * layout_.tile;
    const Partition pieces = PartitionBy(all, std::max<size_t>(kTaskElements / piece, 1));
    const size_t per_unit = op_.coefs * layout_.width;
    if (op_.stateless) {
      for (size_t u = 0; u < units; ++u) Coefficients(u, nullptr, coefs + u * per_unit);
    }
    const bool at_once = op_.stateless && slopes_;
    Outcome outcome = Outcome::kDone;
    if (states_ || at_once) {
      outcome = For(pieces, piece, poll, [&](Range range) {
        for (size_t i = range.begin; i < range.end; ++i) {
          const size_t u = i / segments;
          const Segment segment = SegmentOf(u, i % segments);
          if (states_) Accumulate(segment, states + i * fields_, nullptr);
          if (at_once) Slopes(u, i % segments, segment, coefs + u * per_unit, nullptr);
        }
        return true;
      });
      if (outcome != Outcome::kDone) return outcome;
    }
    if (states_) {
      outcome = For(PartitionBy(units, 1), segments * layout_.tile, poll, [&](Range range) {
        for (size_t u = range.begin; u < range.end; ++u) {
          double* const state = states + u * segments * fields_;
          Merge(u, state);
          if (sums_) Finish(u, state);
          if (!op_.stateless) Coefficients(u, state, coefs + u * per_unit);
        }
        return true;
      });
    }
    if (outcome != Outcome::kDone) return outcome;
    if (!call_.tangents && (!slopes_ || at_once)) return MendAll(states, poll);
    outcome = For(pieces, piece, poll, [&](Range range) {
      for (size_t i = range.begin; i < range.end; ++i) {
        const size_t u = i / segments;
        const Segment segment = SegmentOf(u, i % segments);
        const double* const c = coefs + u * per_unit;
        if (call_.tangents) {
          Tangents(u, i % segments, segment, c, tangents + i * layout_.width);
        } else {
          Slopes(u, i % segments, segment, c, nullptr);
        }
      }
      return true;
    });
    if (outcome == Outcome::kDone && call_.tangents) {
      for (size_t u = 0; u < units; ++u) {
        WriteTangents(u, tangents + u * segments * layout_.width);
      }
    }
    return outcome == Outcome::kDone ? MendAll(states, poll) : outcome;
  }

 private:
  // --- where things are ---

  size_t Group(size_t unit) const { return unit / layout_.tiles; }
  size_t FirstColumn(size_t unit) const { return unit % layout_.tiles * layout_.tile; }
  size_t Columns(size_t unit) const {
    return std::min(layout_.tile, layout_.columns - FirstColumn(unit));
  }
  // The index of a unit's first slice among all.
  size_t FirstSlice(size_t unit) const { return Group(unit) * layout_.columns + FirstColumn(unit); }
  // The index of the first element of a segment.
  size_t FirstElement(size_t unit, size_t segment) const {
    if (layout_.turned) return FirstColumn(unit) * call_.n;
    return (Group(unit) * call_.n + segment * layout_.segment) * call_.inner + FirstColumn(unit);
  }

  Segment SegmentOf(size_t unit, size_t segment) const {
    const size_t first = FirstElement(unit, segment) * item_;
    const size_t begin = segment * layout_.segment;
    return {static_cast<const char*>(call_.x) + first,
            call_.v == nullptr ? nullptr : static_cast<const char*>(call_.v) + first,
            std::min(layout_.segment, call_.n - begin),
            Columns(unit),
            layout_.stride,
            layout_.width,
            !slopes_ || streamed_ ? nullptr : static_cast<const char*>(call_.out[0]) + first};
  }

  bool Streams() const {
    if (!slopes_ || !layout_.along || keeps_) return false;
    const size_t bytes = call_.outer * call_.n * item_;
    if (bytes * op_.outs < kStreamBytes) return false;
    for (size_t o = 0; o < op_.outs; ++o) {
      if ((reinterpret_cast<uintptr_t>(call_.out[o]) - reinterpret_cast<uintptr_t>(call_.out[0])) %
              kStreamAlignment !=
          0) {
        return false;
      }
    }
    return true;
  }

  // --- what is done ---

  // `body(range)`: false if out of memory.
  Outcome For(const Partition& tasks, size_t elements, Poll* poll, FunctionRef<bool(Range)> body) {
    return RunTasks(tasks.tasks, tasks.n * elements >= kParallelElements, poll, [&](size_t task) {
      const bool done = body(tasks(task));
      if (streamed_) FlushStreams();
      return done;
    });
  }

  bool Accumulate(const Segment& segment, double* state, void* kept) const {
    return loops_.accumulate(segment, call_.parameter, !slopes_ && !call_.tangents, state, kept);
  }

  void Slopes(size_t unit, size_t index, const Segment& segment, const double* coefs,
              const void* kept) const {
    void* out[kMaxOuts];
    for (size_t o = 0; o < op_.outs; ++o) {
      out[o] = static_cast<char*>(call_.out[o]) + FirstElement(unit, index) * item_;
    }
    loops_.slopes(segment, coefs, kept, out, streamed_);
  }

  void Tangents(size_t unit, size_t index, const Segment& segment, const double* coefs,
                double* sums) const {
    const void* t[kMaxOuts] = {};
    for (size_t o = 0; o < op_.outs; ++o) {
      if (call_.t[o] == nullptr) continue;
      t[o] = static_cast<const char*>(call_.t[o]) + FirstElement(unit, index) * item_;
    }
    loops_.tangents(segment, coefs, t, sums);
  }

  // Field by field of one column.
  void Take(const double* fields, size_t column, double* one) const {
    for (size_t k = 0; k < op_.state; ++k) one[k] = fields[k * layout_.width + column];
  }

  // The state of all of a unit's segments ends in the first.
  void Merge(size_t unit, double* states) const {
    if (layout_.segments == 1) return;
    for (size_t c = 0; c < Columns(unit); ++c) {
      MergeTree(layout_.segments, [&](size_t to, size_t from) {
        double* const into = states + to * fields_;
        double a[kMaxState], b[kMaxState];
        Take(into, c, a);
        Take(states + from * fields_, c, b);
        op_.merge(a, b, call_.parameter);
        for (size_t k = 0; k < op_.state; ++k) into[k * layout_.width + c] = a[k];
      });
    }
  }

  void Finish(size_t unit, const double* state) const {
    for (size_t c = 0; c < Columns(unit); ++c) {
      double one[kMaxState];
      Take(state, c, one);
      Write(op_.finish(one, call_.parameter), call_.dtype, call_.values, FirstSlice(unit) + c);
    }
  }

  // Whether a cotangent is 0.
  bool Coefficients(size_t unit, const double* state, double* coefs) const {
    bool any = false;
    for (size_t c = 0; c < Columns(unit); ++c) {
      double one[kMaxState] = {}, own[kMaxState];
      if (state != nullptr) Take(state, c, one);
      const double g = Cotangent(FirstSlice(unit) + c);
      any |= g == 0;
      op_.coefficients(one, static_cast<double>(call_.n), call_.parameter, g, own);
      for (size_t k = 0; k < op_.coefs; ++k) coefs[k * layout_.width + c] = own[k];
    }
    return any;
  }

  // Whether a test, of many elements at once, holds of some of a unit's: `test(p, n)`.
  template <class Test>
  bool Any(size_t unit, const void* array, const Test& test) const {
    const size_t runs = call_.inner == 1 ? 1 : call_.n;
    const size_t length = call_.inner == 1 ? Columns(unit) * call_.n : Columns(unit);
    bool any = false;
    for (size_t run = 0; run < runs && !any; ++run) {
      const size_t first = FirstElement(unit, 0) + run * call_.inner;
      any = call_.dtype == DType::kFloat64 ? test(static_cast<const double*>(array) + first, length)
                                           : test(static_cast<const float*>(array) + first, length);
    }
    return any;
  }

  // Whether there is a NaN or an infinity among the slopes of a unit.
  bool AnyNaN(size_t unit) const {
    bool any = false;
    for (size_t o = 0; slopes_ && o < op_.outs; ++o) {
      any = any || Any(unit, call_.out[o], [](const auto* p, size_t n) {
              return IsNotZero(p, n, [](auto x) { return x - x; });
            });
    }
    return any;
  }

  // Whether a sum over elements is not 0.
  template <typename T, class F>
  static bool IsNotZero(const T* p, size_t n, const F& f) {
    std::array<T, 16> sums = {};
    size_t i = 0;
    for (; i + sums.size() <= n; i += sums.size()) {
      for (size_t k = 0; k < sums.size(); ++k) sums[k] += f(p[i + k]);
    }
    for (; i < n; ++i) sums[0] += f(p[i]);
    bool any = false;
    for (const T sum : sums) any |= sum != 0;
    return any;
  }

  // Whether there is nothing to mend in a unit with a suspect: where only its cotangent may be to
  // blame there is no NaN, or of zeros comes nothing.
  bool IsAsItShouldBe(size_t unit) const {
    if (call_.tangents) return false;
    const bool is_map = *op_.method != 0;
    const void* const array = is_map ? call_.v : call_.g == nullptr ? call_.x : nullptr;
    if (op_.is_suspect != nullptr) {
      if (array == nullptr) return false;
      const bool other = Any(unit, array, [](const auto* p, size_t n) {
        return IsNotZero(p, n, [](auto x) { return std::abs(x); });
      });
      if (other) return false;
    }
    return !AnyNaN(unit);
  }

  // Whether a slice has to be looked at: its state is suspect, what tangents give is NaN, or its
  // cotangent is 0, of which nothing comes.
  bool IsSuspect(size_t slice, size_t column, const double* states) const {
    if (call_.g != nullptr && Cotangent(slice) == 0) return true;
    if (call_.tangents && std::isnan(At(call_.values, slice))) return true;
    if (!states_ || op_.is_suspect == nullptr) return false;
    return op_.is_suspect(states + column, layout_.width, call_.parameter);
  }

  // Of a unit whose results are written, the slices again that need it.
  HWY_NOINLINE Outcome Mend(size_t unit, const double* states, Poll* poll) const {
    if (call_.again) return Outcome::kDone;
    bool looked = false;
    for (size_t c = 0; c < Columns(unit); ++c) {
      const size_t slice = FirstSlice(unit) + c;
      if (!IsSuspect(slice, c, states)) continue;
      if (!looked && IsAsItShouldBe(unit)) return Outcome::kDone;
      looked = true;
      const Outcome outcome = ReduceAgain(call_, slice, poll);
      if (outcome != Outcome::kDone) return outcome;
    }
    return Outcome::kDone;
  }

  Outcome MendAll(const double* states, Poll* poll) const {
    if (!call_.tangents && call_.g == nullptr && op_.is_suspect == nullptr) return Outcome::kDone;
    Outcome outcome = Outcome::kDone;
    for (size_t u = 0; u < layout_.Units() && outcome == Outcome::kDone; ++u) {
      outcome = Mend(u, states + u * layout_.segments * fields_, poll);
    }
    return outcome;
  }

  double Cotangent(size_t slice) const { return call_.g == nullptr ? 1 : At(call_.g, slice); }

  double At(const void* array, size_t i) const {
    return call_.dtype == DType::kFloat64
               ? static_cast<const double*>(array)[i]
               : static_cast<double>(static_cast<const float*>(array)[i]);
  }

  // Whether one is NaN.
  bool WriteTangents(size_t unit, double* sums) const {
    bool any = false;
    const size_t width = layout_.width;
    MergeTree(layout_.segments, [&](size_t to, size_t from) {
      for (size_t c = 0; c < Columns(unit); ++c) sums[to * width + c] += sums[from * width + c];
    });
    for (size_t c = 0; c < Columns(unit); ++c) {
      Write(sums[c], call_.dtype, call_.values, FirstSlice(unit) + c);
      any |= std::isnan(sums[c]);
    }
    return any;
  }

  // --- whole slices at once ---

  bool Local(Range units) const {
    const size_t segments = layout_.segments, width = layout_.width;
    const size_t block = layout_.segment * layout_.tile * item_;
    const size_t blocks = layout_.turned ? 2 + op_.outs : 0;  // x, v, and t or out
    using TaskScratch = Scratch<kTaskStackBytes>;
    TaskScratch scratch(TaskScratch::Bytes<double>(segments * fields_) +
                        TaskScratch::Bytes<double>(segments * width) +
                        TaskScratch::Bytes<double>(op_.coefs * width) +
                        (blocks + keeps_) * TaskScratch::Bytes(block));
    if (!scratch) return false;
    double* const states = scratch.Take<double>(segments * fields_);
    double* const sums = scratch.Take<double>(segments * width);
    double* const coefs = scratch.Take<double>(op_.coefs * width);
    void* const kept = keeps_ ? scratch.Take(block) : nullptr;
    Turned turned = {};
    if (layout_.turned) {
      for (size_t i = 0; i < blocks; ++i) turned.parts[i] = scratch.Take(block);
    }
    for (size_t unit = units.begin; unit < units.end; ++unit) {
      const bool suspect = layout_.turned ? LocalTurned(unit, turned, states, sums, coefs, kept)
                                          : LocalUnit(unit, states, sums, coefs, kept);
      if (HWY_UNLIKELY(suspect) && Mend(unit, states, nullptr) != Outcome::kDone) return false;
    }
    return true;
  }

  // Whether a slice has to be looked at.
  bool LocalUnit(size_t unit, double* states, double* sums, double* coefs, void* kept) const {
    const size_t segments = layout_.segments;
    bool suspect = segments > 1 && op_.is_suspect != nullptr;  // what merges may as well
    if (states_) {
      for (size_t i = 0; i < segments; ++i) {
        suspect |= Accumulate(SegmentOf(unit, i), states + i * fields_, kept);
      }
      Merge(unit, states);
      if (sums_) Finish(unit, states);
    }
    if (!slopes_ && !call_.tangents) return suspect;
    const bool any_zero = Coefficients(unit, states_ ? states : nullptr, coefs);
    for (size_t i = 0; i < segments; ++i) {
      const Segment segment = SegmentOf(unit, i);
      if (call_.tangents) {
        Tangents(unit, i, segment, coefs, sums + i * layout_.width);
      } else {
        Slopes(unit, i, segment, coefs, kept);
      }
    }
    if (call_.tangents) suspect |= WriteTangents(unit, sums);
    return suspect || (any_zero && AnyNaN(unit));
  }

  // --- short rows ---

  struct Turned {
    std::array<char*, 2 + kMaxOuts> parts;
  };

  template <typename T>
  static void Turn(const void* from, size_t rows, size_t columns, void* to) {
    // Eight rows at once, whose elements then lie in a row, or eight columns.
    constexpr size_t kSide = 8;
    const auto* const in = static_cast<const T*>(from);
    auto* const out = static_cast<T*>(to);
    for (size_t r = 0; r < rows; r += kSide) {
      const size_t count = std::min(kSide, rows - r);
      for (size_t c = 0; c < columns; ++c) {
        for (size_t i = 0; i < count; ++i) out[c * rows + r + i] = in[(r + i) * columns + c];
      }
    }
  }

  // (rows, columns) -> (columns, rows)
  HWY_NOINLINE void Turn(const void* from, size_t rows, size_t columns, void* to) const {
    if (call_.dtype == DType::kFloat64) {
      Turn<double>(from, rows, columns, to);
    } else {
      Turn<float>(from, rows, columns, to);
    }
  }

  bool LocalTurned(size_t unit, const Turned& turned, double* states, double* sums, double* coefs,
                   void* kept) const {
    const size_t columns = Columns(unit);
    const size_t first = FirstElement(unit, 0) * item_;
    const auto in = [&](const void* array, char* part) -> const void* {
      if (array == nullptr) return nullptr;
      Turn(static_cast<const char*>(array) + first, columns, call_.n, part);
      return part;
    };
    const Segment segment{in(call_.x, turned.parts[0]),
                          in(call_.v, turned.parts[1]),
                          call_.n,
                          columns,
                          static_cast<ptrdiff_t>(columns),
                          layout_.width};
    bool suspect = false;
    if (states_) {
      suspect = Accumulate(segment, states, kept);
      if (sums_) Finish(unit, states);
    }
    if (!slopes_ && !call_.tangents) return suspect;
    const bool any_zero = Coefficients(unit, states_ ? states : nullptr, coefs);
    if (call_.tangents) {
      const void* t[kMaxOuts] = {};
      for (size_t o = 0; o < op_.outs; ++o) t[o] = in(call_.t[o], turned.parts[2 + o]);
      loops_.tangents(segment, coefs, t, sums);
      return WriteTangents(unit, sums) || suspect;
    }
    void* out[kMaxOuts];
    for (size_t o = 0; o < op_.outs; ++o) out[o] = turned.parts[2 + o];
    loops_.slopes(segment, coefs, kept, out, false);
    for (size_t o = 0; o < op_.outs; ++o) {
      Turn(out[o], call_.n, columns, static_cast<char*>(call_.out[o]) + first);
    }
    return suspect || (any_zero && AnyNaN(unit));
  }

  const ReductionCall& call_;
  const Layout& layout_;
  const ReductionKernels& op_;
  const ReductionLoops& loops_;
  const size_t item_;
  const bool slopes_, sums_, states_;
  const size_t fields_;
  const bool local_, keeps_, streamed_;
};

}  // namespace

Outcome Reduce(const ReductionCall& call, Poll* poll) {
  if (call.outer == 0 || call.inner == 0) return Outcome::kDone;
  if (call.op->scan[0] != nullptr) return Scan(call, poll);
  const Layout layout(call);
  Reducer reducer(call, layout);
  const KernelFpEnv fp_env(poll);
  return reducer.Run(poll);
}

}  // namespace pullback

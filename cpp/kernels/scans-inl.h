// The loops of scans, written once: a row of the table in, its kernel out.
//
// A tile of slices goes through the caches in chunks of kScanRows elements each, which are copied
// to buffers of doubles, element i of slice c at [i * width + c]. There, what is done to each
// element runs along the buffer, in whole vectors whatever the width, and what is carried from
// element to element runs beside it for as many slices as a vector has lanes.
#if defined(PULLBACK_CPP_KERNELS_SCANS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PULLBACK_CPP_KERNELS_SCANS_INL_H_
#undef PULLBACK_CPP_KERNELS_SCANS_INL_H_
#else
#define PULLBACK_CPP_KERNELS_SCANS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstddef>

#include "kernels/reductions.h"
#include "ops/scans-inl.h"
#include "runtime/partition.h"
#include "runtime/poll.h"
#include "runtime/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Row, typename T>
class Scanner {
 public:
  Scanner(const ScanTile& tile, double* buffers, double* carried, size_t width)
      : tile_(tile), width_(width), carried_(carried) {
    for (size_t k = 0; k < Row::kBuffers; ++k) {
      buffers_[k] = buffers + (k * Rows(tile) + 1) * width;
    }
  }

  // Of a buffer: the one before the first, a chunk, and what fills its last vector.
  static size_t Rows(const ScanTile& tile) {
    return 1 + RoundUp(std::min(tile.n, kScanRows), kScanLanes);
  }

  Outcome Run(Poll* poll) {
    const size_t chunks = CeilDiv(tile_.n, kScanRows);
    const size_t carry = Row::kCarried * width_;
    for (size_t k = 0; k < Row::kCarried; ++k) {
      std::fill_n(carried_ + k * width_, width_, Row::kStart[k]);
    }
    for (size_t i = 0; i < chunks; ++i) {
      if (i % kPollChunks == 0 && Interrupted(poll)) return Outcome::kInterrupted;
      if (Row::kReturns && i + 1 < chunks) {
        std::copy_n(carried_ + i * carry, carry, carried_ + (i + 1) * carry);
      }
      Forward(i, carried_ + (Row::kReturns ? (i + 1 < chunks ? i + 1 : i) * carry : 0));
      if constexpr (!Row::kReturns) Store(i);
    }
    if constexpr (Row::kReturns) {
      // What is carried into a chunk has been kept, so that its elements can be had again.
      std::array<double, Row::kReturned * kScanColumns> returned;
      for (size_t k = 0; k < Row::kReturned; ++k) {
        std::fill_n(returned.data() + k * width_, width_, Row::kEnd[k]);
      }
      for (size_t i = chunks; i-- > 0;) {
        if (i % kPollChunks == 0 && Interrupted(poll)) return Outcome::kInterrupted;
        if (i + 1 < chunks) Forward(i, carried_ + i * carry);
        Load(tile_.v, i, buffers_[kV]);
        Row::Backward(ChunkOf(i), returned.data());
        Store(i);
      }
    }
    return Outcome::kDone;
  }

 private:
  static constexpr size_t kPollChunks = 1024;

  size_t Count(size_t chunk) const { return std::min(kScanRows, tile_.n - chunk * kScanRows); }
  ScanChunk ChunkOf(size_t chunk) const { return {Count(chunk), width_, buffers_.data()}; }

  void Forward(size_t chunk, double* carried) {
    if (Row::kReadsX) Load(tile_.x, chunk, buffers_[kX]);
    if (Row::kReadsV && !Row::kReturns) Load(tile_.v, chunk, buffers_[kV]);
    Row::Forward(ChunkOf(chunk), carried);
  }

  // The place of a chunk's element among a slice's.
  ptrdiff_t At(size_t chunk, size_t row) const {
    const size_t i = chunk * kScanRows + row;
    const bool backward = tile_.reversed != Row::kFlips;
    return static_cast<ptrdiff_t>(backward ? tile_.n - 1 - i : i) * tile_.step;
  }

  void Load(const void* from, size_t chunk, double* to) const {
    const auto* const elements = static_cast<const T*>(from);
    const size_t columns = tile_.columns, width = width_;
    const ptrdiff_t across = tile_.across;
    for (size_t row = 0; row < Count(chunk); ++row) {
      const T* const own = elements + At(chunk, row);
      double* const place = to + row * width;
      if (across == 1) {
        for (size_t c = 0; c < columns; ++c) place[c] = static_cast<double>(own[c]);
      } else {
        for (size_t c = 0; c < columns; ++c) {
          place[c] = static_cast<double>(own[static_cast<ptrdiff_t>(c) * across]);
        }
      }
    }
  }

  void Store(size_t chunk) const {
    auto* const elements = static_cast<T*>(tile_.out);
    const size_t columns = tile_.columns, width = width_;
    const ptrdiff_t across = tile_.across;
    for (size_t row = 0; row < Count(chunk); ++row) {
      T* const own = elements + At(chunk, row);
      const double* const place = buffers_[kOut] + row * width;
      if (across == 1) {
        for (size_t c = 0; c < columns; ++c) own[c] = static_cast<T>(place[c]);
      } else {
        for (size_t c = 0; c < columns; ++c) {
          own[static_cast<ptrdiff_t>(c) * across] = static_cast<T>(place[c]);
        }
      }
    }
  }

  const ScanTile& tile_;
  const size_t width_;
  double* const carried_;
  std::array<double*, Row::kBuffers> buffers_;
};

template <class Row, typename T>
Outcome ScanOf(const ScanTile& tile, Poll* poll) {
  const size_t width = tile.columns == 1 ? 1 : RoundUp(tile.columns, kScanLanes);
  const size_t doubles = Row::kBuffers * Scanner<Row, T>::Rows(tile) * width;
  const size_t kept = Row::kReturns ? CeilDiv(tile.n, kScanRows) : 1;
  const size_t carried = Row::kCarried * kept * width;
  using TileScratch = Scratch<size_t{16} << 10>;
  TileScratch scratch(TileScratch::Bytes<double>(doubles) + TileScratch::Bytes<double>(carried));
  if (!scratch) return Outcome::kOutOfMemory;
  double* const buffers = scratch.template Take<double>(doubles);
  std::fill_n(buffers, doubles, 0.0);  // lanes beyond the last slice are computed, too
  Scanner<Row, T> scanner(tile, buffers, scratch.template Take<double>(carried), width);
  return scanner.Run(poll);
}

template <class Row>
inline constexpr ReductionKernels kScan = {Row::kName,
                                           Row::kMethod,
                                           Row::kReadsV ? 2 : 1,
                                           1,
                                           0,
                                           0,
                                           true,
                                           false,
                                           0,
                                           0,
                                           false,
                                           nullptr,
                                           nullptr,
                                           nullptr,
                                           nullptr,
                                           {},
                                           {},
                                           {ScanOf<Row, float>, ScanOf<Row, double>}};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#endif  // include guard

#include "runtime/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <memory>
#include <new>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "runtime/hwy_config.h"
#include "runtime/partition.h"
#include "runtime/prefetch.h"
#include "runtime/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/probe.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // must precede highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace pullback {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline uint64_t LoadWord(const uint8_t* p, size_t bytes) {
  uint64_t word = 0;
  std::memcpy(&word, p, bytes);
  return word;
}

// Two threads of a Zen 4, 800 MB on huge pages: 61 GB/s so, 59 without prefetch or with 0.5 to 2
// KiB ahead. What did not pay: 4 or 16 registers instead of 8 (equal), 2 to 6 streams at a time
// (equal to slower), and threads that interleave chunks of 4 to 256 KiB (23 to 52 GB/s).
constexpr size_t kPrefetchAhead = 4096;

// Integers rather than floats: their sum does not depend on the order, and no value is slow.
uint64_t SumWords(const uint8_t* p, size_t bytes) {
  const hn::ScalableTag<uint64_t> d;
  const size_t step = 8 * hn::Lanes(d) * sizeof(uint64_t);
  uint64_t sum = 0;
  size_t i = 0;
  // Vectors that straddle cache lines cost a second access each.
  for (; i + 8 <= bytes && reinterpret_cast<uintptr_t>(p + i) % 64 != 0; i += 8) {
    sum += LoadWord(p + i, 8);
  }
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  const auto load = [&](size_t at, size_t k) HWY_ATTR {
    return hn::LoadU(d, reinterpret_cast<const uint64_t*>(p + at) + k * hn::Lanes(d));
  };
  const auto add_block = [&](size_t at) HWY_ATTR {
    s0 = hn::Add(s0, hn::Add(load(at, 0), load(at, 4)));
    s1 = hn::Add(s1, hn::Add(load(at, 1), load(at, 5)));
    s2 = hn::Add(s2, hn::Add(load(at, 2), load(at, 6)));
    s3 = hn::Add(s3, hn::Add(load(at, 3), load(at, 7)));
  };
  for (; i + step + kPrefetchAhead <= bytes; i += step) {
    for (size_t k = 0; k < step; k += 64) PrefetchIntoL2(p + i + k + kPrefetchAhead);
    add_block(i);
  }
  for (; i + step <= bytes; i += step) add_block(i);
  // Not SumOfLanes: g++'s 64-bit reduction adds signed numbers, whose overflow is undefined.
  HWY_ALIGN uint64_t lanes[HWY_MAX_BYTES / sizeof(uint64_t)];
  hn::Store(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), d, lanes);
  for (size_t k = 0; k < hn::Lanes(d); ++k) sum += lanes[k];
  for (; i + 8 <= bytes; i += 8) sum += LoadWord(p + i, 8);
  if (i < bytes) sum += LoadWord(p + i, bytes - i);
  return sum;
}

void CopyPastCache(const double* from, double* to, size_t n) {
  const hn::ScalableTag<double> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  // Streamed stores must be aligned.
  for (; i < n && reinterpret_cast<uintptr_t>(to + i) % (lanes * sizeof(double)) != 0; ++i) {
    to[i] = from[i];
  }
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto v0 = hn::LoadU(d, from + i);
    const auto v1 = hn::LoadU(d, from + i + lanes);
    const auto v2 = hn::LoadU(d, from + i + 2 * lanes);
    const auto v3 = hn::LoadU(d, from + i + 3 * lanes);
    hn::Stream(v0, d, to + i);
    hn::Stream(v1, d, to + i + lanes);
    hn::Stream(v2, d, to + i + 2 * lanes);
    hn::Stream(v3, d, to + i + 3 * lanes);
  }
  for (; i < n; ++i) to[i] = from[i];
  hwy::FlushStream();
}

constexpr size_t kChains = 12;  // covers latency 4 at two a cycle, and fits in 16 registers

// Each chain tends to 2, from a start of its own: chains that began alike would be merged. The
// arguments keep the compiler from knowing any of it.
template <class T>
double FmaChains(size_t repeats, T half, T one, size_t* flops) {
  const hn::ScalableTag<T> d;
  const auto m = hn::Set(d, half);
  const auto a = hn::Set(d, one);
  auto c0 = hn::Iota(d, one), c1 = hn::Add(c0, a), c2 = hn::Add(c1, a), c3 = hn::Add(c2, a);
  auto c4 = hn::Add(c3, a), c5 = hn::Add(c4, a), c6 = hn::Add(c5, a), c7 = hn::Add(c6, a);
  auto c8 = hn::Add(c7, a), c9 = hn::Add(c8, a), c10 = hn::Add(c9, a), c11 = hn::Add(c10, a);
  for (size_t i = 0; i < repeats; ++i) {
    c0 = hn::MulAdd(c0, m, a);
    c1 = hn::MulAdd(c1, m, a);
    c2 = hn::MulAdd(c2, m, a);
    c3 = hn::MulAdd(c3, m, a);
    c4 = hn::MulAdd(c4, m, a);
    c5 = hn::MulAdd(c5, m, a);
    c6 = hn::MulAdd(c6, m, a);
    c7 = hn::MulAdd(c7, m, a);
    c8 = hn::MulAdd(c8, m, a);
    c9 = hn::MulAdd(c9, m, a);
    c10 = hn::MulAdd(c10, m, a);
    c11 = hn::MulAdd(c11, m, a);
  }
  *flops = repeats * 2 * kChains * hn::Lanes(d);
  const auto s =
      hn::Add(hn::Add(hn::Add(c0, c1), hn::Add(c2, c3)), hn::Add(hn::Add(c4, c5), hn::Add(c6, c7)));
  return static_cast<double>(
      hn::GetLane(hn::SumOfLanes(d, hn::Add(s, hn::Add(hn::Add(c8, c9), hn::Add(c10, c11))))));
}

double FmaChainsF32(size_t repeats, double half, size_t* flops) {
  return FmaChains(repeats, static_cast<float>(half), 1.0f, flops);
}
double FmaChainsF64(size_t repeats, double half, size_t* flops) {
  return FmaChains(repeats, half, 1.0, flops);
}

}  // namespace HWY_NAMESPACE
}  // namespace pullback
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pullback {
namespace {

HWY_EXPORT(SumWords);
HWY_EXPORT(CopyPastCache);
HWY_EXPORT(FmaChainsF32);
HWY_EXPORT(FmaChainsF64);

constexpr int kPasses = 7;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Pass>
double BestSeconds(Pass pass) {
  double best = 1e300;
  for (int i = 0; i < kPasses; ++i) {
    const double start = Seconds();
    pass();
    best = std::min(best, Seconds() - start);
  }
  return best;
}

constexpr size_t kPage = size_t{2} << 20;

struct PageDelete {
  void operator()(double* p) const { ::operator delete[](p, std::align_val_t{kPage}); }
};
using Buffer = std::unique_ptr<double[], PageDelete>;

// On huge pages where the system grants them, as NumPy's large arrays are, and written once, so
// that every page is real.
Buffer NewBuffer(size_t n) {
  const size_t bytes = n * sizeof(double);
  Buffer buffer(static_cast<double*>(::operator new[](bytes, std::align_val_t{kPage})));
#ifdef MADV_HUGEPAGE
  madvise(buffer.get(), bytes, MADV_HUGEPAGE);
#endif
  const Partition slabs = RowPartition(n, sizeof(double));
  ParallelFor(slabs.tasks, [&](size_t task) {
    const Range range = slabs(task);
    std::fill_n(&buffer[range.begin], range.size(), 1.0);
  });
  return buffer;
}

size_t CacheBytes(int level, size_t fallback) {
#ifdef __linux__
  for (int index = 0; index < 8; ++index) {
    const std::string dir = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index);
    int found = 0;
    size_t amount = 0;
    char unit = 'K';
    std::string type;
    std::ifstream(dir + "/level") >> found;
    std::ifstream(dir + "/type") >> type;
    std::ifstream(dir + "/size") >> amount >> unit;
    if (found == level && type != "Instruction" && amount > 0) {
      return amount << (unit == 'G' ? 30 : unit == 'M' ? 20 : 10);
    }
  }
  // Second choice: inside a virtual machine it was seen to report the last level of the whole host
  // (320 MiB where a core reaches 32).
  long size = -1;
#ifdef _SC_LEVEL2_CACHE_SIZE
  if (level == 2) size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (level == 3) size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  if (size > 0) return static_cast<size_t>(size);
#else
  (void)level;
#endif
  return fallback;
}

}  // namespace

double ReadSeconds(const void* p, size_t bytes, uint64_t* sum) {
  const auto* const data = static_cast<const uint8_t*>(p);
  auto* const sum_words = HWY_DYNAMIC_DISPATCH(SumWords);
  const Partition slabs = RowPartition(bytes / 64, 64);
  uint64_t partial[kMaxSlabs] = {};
  const double start = Seconds();
  ParallelFor(slabs.tasks, [&](size_t task) {
    const Range range = slabs(task);
    partial[task] = sum_words(data + range.begin * 64, range.size() * 64);
  });
  uint64_t total = sum_words(data + slabs.n * 64, bytes % 64);
  for (const uint64_t part : partial) total += part;
  const double seconds = Seconds() - start;
  *sum = total;
  return seconds;
}

double MeasureReadBandwidth(size_t bytes) {
  const size_t n = std::max<size_t>(bytes / sizeof(double), 1);
  const Buffer buffer = NewBuffer(n);
  double best = 1e300;
  for (int i = 0; i < kPasses; ++i) {
    uint64_t sum;
    best = std::min(best, ReadSeconds(buffer.get(), n * sizeof(double), &sum));
  }
  return static_cast<double>(n * sizeof(double)) / best * 1e-9;
}

double CopySeconds(const double* from, double* to, size_t n) {
  auto* const copy = HWY_DYNAMIC_DISPATCH(CopyPastCache);
  const Partition slabs = ElementPartition(n, 2 * sizeof(double));
  const double start = Seconds();
  ParallelFor(slabs.tasks, [&](size_t task) {
    const Range range = slabs(task);
    copy(from + range.begin, to + range.begin, range.size());
  });
  return Seconds() - start;
}

double MeasureCopyBandwidth(size_t bytes) {
  const size_t n = std::max<size_t>(bytes / sizeof(double), 1);
  const Buffer from = NewBuffer(n);
  const Buffer to = NewBuffer(n);
  double best = 1e300;
  for (int i = 0; i < kPasses; ++i) best = std::min(best, CopySeconds(from.get(), to.get(), n));
  return 2.0 * static_cast<double>(n * sizeof(double)) / best * 1e-9;
}

double MeasureFmaPeak(FloatType type) {
  // Many short tasks, so that a worker that wakes late or loses its CPU costs little.
  constexpr size_t kRepeats = 20'000;
  const size_t tasks = static_cast<size_t>(GetNumThreads()) * 32;
  auto* const chains = type == FloatType::kFloat32 ? HWY_DYNAMIC_DISPATCH(FmaChainsF32)
                                                   : HWY_DYNAMIC_DISPATCH(FmaChainsF64);
  std::atomic<uint64_t> flops{0};
  const double seconds = BestSeconds([&] {
    flops = 0;
    ParallelFor(tasks, [&](size_t task) {
      size_t count = 0;
      const double value = chains(kRepeats, 0.5, &count);
      // Always true, which the compiler cannot know: the chains must be computed.
      if (value + static_cast<double>(task) > 0) flops += count;
    });
  });
  return static_cast<double>(flops.load()) / seconds * 1e-9;
}

size_t LastLevelCacheBytes() {
  static const size_t bytes = CacheBytes(3, size_t{32} << 20);
  return bytes;
}

size_t L2CacheBytes() {
  static const size_t bytes = CacheBytes(2, size_t{1} << 20);
  return bytes;
}

}  // namespace pullback
#endif  // HWY_ONCE

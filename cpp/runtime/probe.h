// What this machine can do at best: the floors that kernels are measured against.
#ifndef PULLBACK_CPP_RUNTIME_PROBE_H_
#define PULLBACK_CPP_RUNTIME_PROBE_H_

#include <cstddef>
#include <cstdint>

namespace pullback {

// Reads `bytes` at `p` once, on all threads of the pool, in the row slabs that losses use, and
// returns the seconds it took. *sum receives the wrapping sum of the 8-byte words (a short last one
// padded with zeros): equal for any thread count and target. Pass the very array a kernel reads, so
// that both are measured on the same pages.
double ReadSeconds(const void* p, size_t bytes, uint64_t* sum);

// Copies n doubles on all threads, past the caches, in the chunks that elementwise kernels use.
double CopySeconds(const double* from, double* to, size_t n);

// Best of a few passes over an own buffer, in 1e9 bytes per second; `bytes` should be many times
// LastLevelCacheBytes(). Copy writes past the cache and counts both bytes read and written.
double MeasureReadBandwidth(size_t bytes);
double MeasureCopyBandwidth(size_t bytes);

enum class FloatType { kFloat32, kFloat64 };

// Multiply-adds on all threads of the pool with the active target, in 1e9 flops per second (two a
// multiply-add, also where a target has to round in between).
double MeasureFmaPeak(FloatType type);

// Of the CPU the process runs on, from the system; 32 MiB and 1 MiB where it does not tell.
size_t LastLevelCacheBytes();
size_t L2CacheBytes();

}  // namespace pullback

#endif  // PULLBACK_CPP_RUNTIME_PROBE_H_

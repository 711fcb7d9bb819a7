// Which ISA targets Highway compiles. Every per-target file includes this BEFORE any hwy header;
// all files must agree, because the dispatch tables of one process share one chosen-target mask.
#ifndef PULLBACK_CPP_RUNTIME_HWY_CONFIG_H_
#define PULLBACK_CPP_RUNTIME_HWY_CONFIG_H_

#ifdef HWY_TARGETS
#error "runtime/hwy_config.h must come before every hwy header"
#endif

// Where Highway has nothing better, the target is SCALAR with every compiler. EMU128, which clang
// would get, turns infinity into the largest float where it narrows doubles.
#ifndef HWY_BROKEN_EMU128
#define HWY_BROKEN_EMU128 1
#endif

// Each target is a copy of every kernel, so those that add no instruction which a kernel uses are
// left out. Where a name is not in every release, its bit stands for it; the same bits mean other
// ISAs elsewhere. Other architectures keep Highway's defaults. A value given by the build wins.
#ifndef HWY_DISABLED_TARGETS
#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
// AVX3, AVX2 and SSE4, which is the baseline; see CMakeLists.txt for what is below.
#define PULLBACK_HWY_AVX10_2 (1LL << 3)
#define PULLBACK_HWY_AVX3_SPR (1LL << 4)
#define PULLBACK_HWY_AVX3_ZEN4 (1LL << 6)
#define PULLBACK_HWY_AVX3_DL (1LL << 7)
#define PULLBACK_HWY_SSSE3 (1LL << 12)
#define HWY_DISABLED_TARGETS                                                                      \
  (PULLBACK_HWY_AVX10_2 | PULLBACK_HWY_AVX3_SPR | PULLBACK_HWY_AVX3_ZEN4 | PULLBACK_HWY_AVX3_DL | \
   PULLBACK_HWY_SSSE3)
#elif defined(__aarch64__) || defined(_M_ARM64)
// NEON. The vectors of SVE have no size that the compiler knows, and kernels keep vectors in
// arrays. By Highway's names, which are read where the targets are chosen: SVE's bits moved in 1.2.
// Bit 26 is NEON_BF16 since then and SVE2 before.
#define PULLBACK_HWY_NEON_BF16 (1LL << 26)
#define HWY_DISABLED_TARGETS \
  (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | PULLBACK_HWY_NEON_BF16)
#endif
#endif  // HWY_DISABLED_TARGETS

#endif  // PULLBACK_CPP_RUNTIME_HWY_CONFIG_H_

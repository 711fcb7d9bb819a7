// Which ISA targets Highway compiles. Every per-target file includes this BEFORE any hwy header;
// all files must agree, because the dispatch tables of one process share one chosen-target mask.
#ifndef PULLBACK_CPP_RUNTIME_HWY_CONFIG_H_
#define PULLBACK_CPP_RUNTIME_HWY_CONFIG_H_

#ifdef HWY_TARGETS
#error "runtime/hwy_config.h must come before every hwy header"
#endif

// x86: AVX3, AVX2, SSE4 and the baseline (SSE2, or SCALAR where Highway has no SSE2 target). The
// others add instructions no kernel here uses and would each add a copy of every kernel. Numeric
// bits, because old releases lack some of the names; the same bits mean other ISAs elsewhere, so
// other architectures keep Highway's defaults. A value given by the build wins.
#if !defined(HWY_DISABLED_TARGETS) && \
    (defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86))
#define PULLBACK_HWY_AVX10_2 (1LL << 3)
#define PULLBACK_HWY_AVX3_SPR (1LL << 4)
#define PULLBACK_HWY_AVX3_ZEN4 (1LL << 6)
#define PULLBACK_HWY_AVX3_DL (1LL << 7)
#define PULLBACK_HWY_SSSE3 (1LL << 12)
#define HWY_DISABLED_TARGETS                                                                      \
  (PULLBACK_HWY_AVX10_2 | PULLBACK_HWY_AVX3_SPR | PULLBACK_HWY_AVX3_ZEN4 | PULLBACK_HWY_AVX3_DL | \
   PULLBACK_HWY_SSSE3)
#endif

#endif  // PULLBACK_CPP_RUNTIME_HWY_CONFIG_H_

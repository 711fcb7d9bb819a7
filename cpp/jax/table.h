// What the extension module `_native` gives to `_jax`: its elementwise kernels and their pool, so that
// nothing is compiled, or started, twice.
#ifndef PULLBACK_CPP_JAX_TABLE_H_
#define PULLBACK_CPP_JAX_TABLE_H_

#include <cstddef>
#include <cstdint>

namespace pullback {

struct KernelTable {
  // Runs a method of an elementwise operation over n elements, without the GIL: inputs, then outputs,
  // each with its stride in bytes. An input that is left out is null, and so is an output that nobody
  // wants. False if there is no such kernel, or no memory.
  bool (*run)(int64_t kernel, bool is_float64, void* const* data, const ptrdiff_t* strides,
              size_t n);
  // Its numbers of inputs and outputs; false if there is no such kernel.
  bool (*shape)(int64_t kernel, int* nin, int* nout);
};
inline constexpr char kKernelTable[] = "pullback._native.kernel_table";

}  // namespace pullback

#endif  // PULLBACK_CPP_JAX_TABLE_H_

// What the extension module `_native` gives to `_jax`: its elementwise kernels and their pool, so
// that nothing is compiled, or started, twice.
#ifndef PULLBACK_CPP_JAX_TABLE_H_
#define PULLBACK_CPP_JAX_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace pullback {

inline constexpr size_t kMostArguments = 12;  // of a kernel: inputs and outputs

struct KernelTable {
  // Returns a method of an elementwise operation for `run`, with its numbers of inputs and outputs,
  // or null if there is none. Methods are numbered as in the tables of kernels.
  const void* (*find)(std::string_view op, int64_t method, int* nin, int* nout);
  // Runs what `find` returned over n elements, without the GIL: inputs, then outputs, each with its
  // stride in bytes. An input that is left out is null, and so is an output that nobody wants.
  // False if there is no memory.
  bool (*run)(const void* found, int64_t method, bool is_float64, void* const* data,
              const ptrdiff_t* strides, size_t n);
};
inline constexpr char kKernelTable[] = "pullback._native.kernel_table";

}  // namespace pullback

#endif  // PULLBACK_CPP_JAX_TABLE_H_

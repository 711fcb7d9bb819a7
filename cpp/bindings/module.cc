// The extension module pullback._native.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#define PULLBACK_IMPORT_NUMPY
#include "runtime/hwy_config.h"  // before any Highway header

#include <hwy/highway.h>  // HWY_MAJOR

#include "bindings/chain.h"
#include "bindings/elementwise.h"
#include "bindings/gram.h"
#include "bindings/interrupt.h"
#include "bindings/jacobians.h"
#include "bindings/losses.h"
#include "bindings/method.h"
#include "bindings/objective.h"
#include "bindings/outputs.h"
#include "bindings/products.h"
#include "bindings/reductions.h"
#include "bindings/selections.h"
#include "jax/table.h"
#include "kernels/elementwise.h"
#include "kernels/losses.h"
#include "kernels/reductions.h"
#include "runtime/kept_memory.h"
#include "runtime/probe.h"
#include "runtime/targets.h"
#include "runtime/threads.h"

namespace py = pybind11;

namespace pullback {
namespace {

py::object Steal(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

void RegisterPrimitives(py::module_& m) {
  m.def("elementwise_ops", [] {
    py::dict ops;
    for (size_t shard = 0; shard < kOpShards; ++shard) {
      for (const OpKernels& op : Ops(shard)) ops[op.name] = op.arity;
    }
    return ops;
  });
  m.def("loss_ops", [] {
    py::list names;
    for (const LossKernels& loss : LossOps()) names.append(loss.name);
    return names;
  });
  m.def("reduction_ops", [] {
    py::list names;
    for (const ReductionKernels& op : ReductionOps())
      names.append(py::make_tuple(op.name, op.method));
    return names;
  });
  m.def(
      "elementwise_ufunc",
      [](const std::string& op, const std::string& method, const std::string& name,
         const std::string& doc, const py::object& door, const py::object& last) {
        return Steal(NewUfunc(op.c_str(), method.c_str(), name.c_str(), doc.c_str(), door.ptr(),
                              last.ptr()));
      },
      py::arg("op"), py::arg("method"), py::arg("name"), py::arg("doc"),
      py::arg("door") = py::none(), py::arg("last") = py::none());
  m.def(
      "elementwise_method",
      [](const std::string& op, const std::string& method, const py::function& fallback) {
        return Steal(NewElementwiseMethod(op.c_str(), method.c_str(), fallback.ptr()));
      },
      py::arg("op"), py::arg("method"), py::arg("fallback"));
  m.def(
      "loss_method",
      [](const std::string& name, double parameter, const std::string& method,
         const py::object& sums, const py::function& fallback) {
        return Steal(
            NewLossMethod(name.c_str(), parameter, method.c_str(), sums.ptr(), fallback.ptr()));
      },
      py::arg("name"), py::arg("parameter"), py::arg("method"), py::arg("sums"),
      py::arg("fallback"));
  m.def(
      "reduction_method",
      [](const std::string& name, const std::string& method, const std::string& called,
         double parameter, const py::object& valid, const py::function& fallback) {
        return Steal(NewReductionMethod(name.c_str(), method.c_str(), called.c_str(), parameter,
                                        valid.ptr(), fallback.ptr()));
      },
      py::arg("name"), py::arg("method"), py::arg("called"), py::arg("parameter"), py::arg("valid"),
      py::arg("fallback"));
  m.def("objective_method", [](const py::args& args) {
    if (args.size() != kObjectiveArguments) {
      throw py::type_error("objective_method: fifteen arguments");
    }
    return Steal(NewObjectiveMethod(&PyTuple_GET_ITEM(args.ptr(), 0)));
  });
  m.def(
      "chain_method",
      [](const py::object& walk, const std::string& method, const py::function& fallback) {
        return Steal(NewChainMethod(walk.ptr(), method.c_str(), fallback.ptr()));
      },
      py::arg("walk"), py::arg("method"), py::arg("fallback"));
  m.def(
      "guarded", [](const py::function& function) { return Steal(NewGuarded(function.ptr())); },
      py::arg("function"));
  m.def(
      "gram_method",
      [](const py::function& fallback) { return Steal(NewGramMethod(fallback.ptr())); },
      py::arg("fallback"));
  m.def("selection_ops", [] { return Steal(SelectionOps()); });
  m.def(
      "selection_method",
      [](const std::string& selection, const std::string& method, const py::function& fallback) {
        return Steal(NewSelectionMethod(selection.c_str(), method.c_str(), fallback.ptr()));
      },
      py::arg("selection"), py::arg("method"), py::arg("fallback"));
  m.def("product_ops", [] { return Steal(ProductOps()); });
  m.def(
      "product_method",
      [](const std::string& product, const std::string& method, const py::function& fallback) {
        return Steal(NewProductMethod(product.c_str(), method.c_str(), fallback.ptr()));
      },
      py::arg("product"), py::arg("method"), py::arg("fallback"));
}

// --- for `_jax` ---

const void* FindKernel(std::string_view name, int64_t method, int* nin, int* nout) {
  static const auto* const places = [] {
    auto* const made = new std::unordered_map<std::string_view, OpPlace>();
    for (size_t shard = 0; shard < kOpShards; ++shard) {
      for (size_t row = 0; row < Ops(shard).size(); ++row) {
        made->emplace(Ops(shard)[row].name, OpPlace{shard, row});
      }
    }
    return made;
  }();
  const auto place = places->find(name);
  if (place == places->end() || method < 0 || method >= static_cast<int64_t>(kMethods)) {
    return nullptr;
  }
  const OpKernels& op = Ops(place->second.shard)[place->second.row];
  const MethodShape shape = ShapeOf(static_cast<Method>(method), op.arity);
  *nin = shape.nin;
  *nout = shape.nout;
  return &op;
}

bool RunKernel(const void* found, int64_t method, bool is_float64, void* const* data,
               const ptrdiff_t* strides, size_t n) {
  const auto& op = *static_cast<const OpKernels*>(found);
  const MethodShape shape = ShapeOf(static_cast<Method>(method), op.arity);
  Operands operands{};
  const auto count = static_cast<size_t>(shape.nin + shape.nout);
  std::copy_n(data, count, operands.data);
  std::copy_n(strides, count, operands.stride);
  const ElementwiseKernel kernel =
      op.kernel[static_cast<size_t>(method)][static_cast<size_t>(is_float64)];
  const DType dtype = is_float64 ? DType::kFloat64 : DType::kFloat32;
  return RunElementwise(kernel, shape, dtype, operands, n, nullptr) == Outcome::kDone;
}

void RegisterTable(py::module_& m) {
  static_assert(kMaxOperands <= kMostArguments);
  static constexpr KernelTable kTable{&FindKernel, &RunKernel};
  m.def("kernel_table", [] { return py::capsule(&kTable, kKernelTable); });
}

void RegisterRuntime(py::module_& m) {
  m.def("get_num_threads", &GetNumThreads);
  m.def("set_num_threads", &SetNumThreads, py::arg("n"));
  m.def("available_cpus", [] { return AvailableCpus(); });
  m.def("threads_from_env", [] {
    std::string error;
    const std::optional<int> threads = ThreadsFromEnv(&error);
    if (!error.empty()) throw py::value_error(error);
    return threads;
  });
  m.attr("max_threads") = kMaxThreads;
  m.def("kept_bytes", &KeptBytes);
  m.def("kept_limit", &KeptLimit);
  m.def("set_kept_limit", &SetKeptLimit, py::arg("n_bytes"));

  m.def("supported_targets", &SupportedTargetNames);
  m.def("active_target", &ActiveTarget);
  m.def(
      "set_target",
      [](const std::string& name) {
        std::string error;
        if (!SetTarget(name, &error)) throw py::value_error(error);
      },
      py::arg("name"));

  m.def(
      "read_seconds",
      [](const py::buffer& buffer) {
        const py::buffer_info info = buffer.request();
        Py_buffer* const view = info.view();
        if (!PyBuffer_IsContiguous(view, 'A')) {
          throw py::value_error("read_seconds: buffer is not contiguous");
        }
        const auto bytes = static_cast<size_t>(view->len);
        uint64_t sum = 0;
        const ScopedGilRelease unlocked;
        return ReadSeconds(view->buf, bytes, &sum);
      },
      py::arg("buffer"));
  m.def(
      "copy_seconds",
      [](const py::buffer& from, const py::buffer& to) {
        const py::buffer_info source = from.request();
        const py::buffer_info target = to.request(true);
        const auto plain = [](const py::buffer_info& info) {
          return info.format == py::format_descriptor<double>::format() &&
                 PyBuffer_IsContiguous(info.view(), 'A');
        };
        if (!plain(source) || !plain(target) || source.size != target.size) {
          throw py::value_error("copy_seconds: wants contiguous float64 buffers of one size");
        }
        const ScopedGilRelease unlocked;
        return CopySeconds(static_cast<const double*>(source.ptr), static_cast<double*>(target.ptr),
                           static_cast<size_t>(source.size));
      },
      py::arg("source"), py::arg("target"));
  m.def("measure_read_bandwidth", &MeasureReadBandwidth, py::arg("bytes"),
        py::call_guard<ScopedGilRelease>());
  m.def("measure_copy_bandwidth", &MeasureCopyBandwidth, py::arg("bytes"),
        py::call_guard<ScopedGilRelease>());
  m.def(
      "measure_fma_peak",
      [](bool float64) {
        return MeasureFmaPeak(float64 ? FloatType::kFloat64 : FloatType::kFloat32);
      },
      py::arg("float64"), py::call_guard<ScopedGilRelease>());
  m.def("last_level_cache_bytes", &LastLevelCacheBytes);

  py::dict build;
  build["version"] = PULLBACK_VERSION;
  build["compiler"] = PULLBACK_COMPILER;
  build["build_type"] = PULLBACK_BUILD_TYPE;
  build["highway"] =
      std::to_string(HWY_MAJOR) + "." + std::to_string(HWY_MINOR) + "." + std::to_string(HWY_PATCH);
  build["pybind11"] =
      std::to_string(PYBIND11_VERSION_MAJOR) + "." + std::to_string(PYBIND11_VERSION_MINOR);
  m.attr("build") = build;
}

}  // namespace
}  // namespace pullback

// For threadpoolctl, which looks for these in the loaded library.
extern "C" {
PYBIND11_EXPORT int pullback_get_num_threads() { return pullback::GetNumThreads(); }
PYBIND11_EXPORT void pullback_set_num_threads(int n) { pullback::SetNumThreads(n); }
PYBIND11_EXPORT const char* pullback_get_version() { return PULLBACK_VERSION; }
}

// Not mod_gil_not_used: it was never run without the GIL.
PYBIND11_MODULE(_native, m) {
  if (PyArray_ImportNumPyAPI() < 0 || PyUFunc_ImportUFuncAPI() < 0 ||
      !pullback::RegisterMethodType(m.ptr()) || !pullback::RegisterChains(m.ptr()) ||
      !pullback::RegisterLossEngine(m.ptr()) || !pullback::RegisterReductionEngine(m.ptr()) ||
      !pullback::RegisterProductEngine(m.ptr()) || !pullback::RegisterGramEngine(m.ptr()) ||
      !pullback::RegisterJacobians(m.ptr()) || !pullback::RegisterOutputs()) {
    throw py::error_already_set();
  }
  pullback::GetNumThreads();  // by the CPUs of who imports it, not of the thread that calls first
  pullback::RegisterPrimitives(m);
  pullback::RegisterRuntime(m);
  pullback::RegisterTable(m);
}

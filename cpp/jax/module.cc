// The extension module pullback._jax: XLA's handlers for calls of pullback's primitives.
//
// There are two, one for each kind of call: "elementwise" runs a kernel of `_native` without the
// GIL, and "python" calls a method of any other primitive on views of XLA's buffers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <xla/ffi/api/ffi.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "jax/table.h"
#include "runtime/fp_env.h"

namespace ffi = xla::ffi;
namespace py = pybind11;

namespace pullback {
namespace {

const KernelTable* table = nullptr;

std::optional<bool> IsFloat64(ffi::DataType type) {
  if (type == ffi::DataType::F64) return true;
  if (type == ffi::DataType::F32) return false;
  return std::nullopt;
}

ffi::Error Invalid(std::string message) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "pullback: " + std::move(message));
}

// --- elementwise
// -----------------------------------------------------------------------------------

// The bits of `given` and `wanted` say which inputs of the kernel are arguments, and which of its
// outputs are results. An argument has as many elements as the results, or one.
ffi::Error Elementwise(ffi::RemainingArgs arguments, ffi::RemainingRets results,
                       std::string_view op, int64_t method, int64_t given, int64_t wanted) {
  int nin = 0, nout = 0;
  const void* const kernel = table->find(op, method, &nin, &nout);
  if (kernel == nullptr) return Invalid("there is no kernel for " + std::string(op));
  std::array<void*, kMostArguments> data{};
  std::array<ptrdiff_t, kMostArguments> strides{};
  std::optional<bool> is_float64;
  std::optional<size_t> n;
  size_t next = 0;
  for (int o = 0; o < nout; ++o) {
    if ((wanted >> o & 1) == 0) continue;
    auto result = results.get<ffi::AnyBuffer>(next++);
    if (!result.has_value()) return Invalid("a result is missing");
    const std::optional<bool> type = IsFloat64((*result)->element_type());
    const size_t count = (*result)->element_count();
    if (!type || (is_float64 && *is_float64 != *type)) return Invalid("results differ in dtype");
    if (n && *n != count) return Invalid("results differ in size");
    is_float64 = type;
    n = count;
    const auto at = static_cast<size_t>(nin + o);
    data[at] = (*result)->untyped_data();
    strides[at] = *type ? 8 : 4;
  }
  if (next != results.size() || !n) return Invalid("there are other results than wanted");
  next = 0;
  for (int i = 0; i < nin; ++i) {
    if ((given >> i & 1) == 0) continue;
    const auto argument = arguments.get<ffi::AnyBuffer>(next++);
    if (!argument.has_value()) return Invalid("an argument is missing");
    const size_t count = argument->element_count();
    if (IsFloat64(argument->element_type()) != is_float64) return Invalid("dtypes differ");
    if (count != *n && count != 1) return Invalid("sizes differ");
    data[static_cast<size_t>(i)] = argument->untyped_data();
    strides[static_cast<size_t>(i)] = count == *n ? (*is_float64 ? 8 : 4) : 0;
  }
  if (next != arguments.size()) return Invalid("there are other arguments than given");
  if (*n > 0 && !table->run(kernel, method, *is_float64, data.data(), strides.data(), *n)) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "pullback: out of memory");
  }
  return ffi::Error::Success();
}

// --- any other call
// --------------------------------------------------------------------------------

// Functions of the inputs and the outputs by the texts of calls. Never freed: XLA's threads may
// outlive the interpreter.
py::object* calls = nullptr;

std::optional<py::dtype> DTypeOf(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F64:
      return py::dtype::of<double>();
    case ffi::DataType::F32:
      return py::dtype::of<float>();
    case ffi::DataType::S64:
      return py::dtype::of<int64_t>();
    case ffi::DataType::S32:
      return py::dtype::of<int32_t>();
    case ffi::DataType::S16:
      return py::dtype::of<int16_t>();
    case ffi::DataType::S8:
      return py::dtype::of<int8_t>();
    case ffi::DataType::U64:
      return py::dtype::of<uint64_t>();
    case ffi::DataType::U32:
      return py::dtype::of<uint32_t>();
    case ffi::DataType::U16:
      return py::dtype::of<uint16_t>();
    case ffi::DataType::U8:
      return py::dtype::of<uint8_t>();
    case ffi::DataType::PRED:
      return py::dtype::of<bool>();
    default:
      return std::nullopt;
  }
}

py::array View(const ffi::AnyBuffer& buffer, bool writeable) {
  const std::optional<py::dtype> dtype = DTypeOf(buffer.element_type());
  if (!dtype) throw py::type_error("an array has a dtype without a kernel");
  const auto dims = buffer.dimensions();
  // A base keeps pybind11 from copying; the memory is XLA's for as long as the call takes.
  py::array view(*dtype, std::vector<py::ssize_t>(dims.begin(), dims.end()), buffer.untyped_data(),
                 py::none());
  if (!writeable) {
    py::detail::array_proxy(view.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  }
  return view;
}

void Run(ffi::RemainingArgs arguments, ffi::RemainingRets results, std::string_view call) {
  py::tuple in(arguments.size()), out(results.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    in[i] = View(arguments.get<ffi::AnyBuffer>(i).value(), false);
  }
  for (size_t i = 0; i < results.size(); ++i) {
    out[i] = View(**results.get<ffi::AnyBuffer>(i), true);
  }
  (*calls)[py::str(call)](in, out);
}

// Once the interpreter is going to end, XLA may wait for computations that nobody else waits for,
// and holds the GIL. So calls that then run are awaited first, and those that come later fail.
std::atomic<bool> is_closing{false};
std::atomic<int> running{0};

void Close() {
  is_closing = true;
  const py::gil_scoped_release release;
  while (running > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

class Running {
 public:
  Running() { ++running; }
  ~Running() { --running; }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
};

ffi::Error Python(ffi::RemainingArgs arguments, ffi::RemainingRets results, std::string_view call) {
  const Running counted;
  if (is_closing) return ffi::Error(ffi::ErrorCode::kCancelled, "pullback: Python is ending");
  const ScopedDefaultFpEnv fp_env;  // XLA's threads may flush subnormals
  const py::gil_scoped_acquire gil;
  try {
    Run(arguments, results, call);
  } catch (const std::exception& error) {
    const std::string message = error.what();
    return Invalid(message.substr(0, message.find("\n\nAt:")));  // where there is a traceback
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER(kElementwise, Elementwise,
                       ffi::Ffi::Bind()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<std::string_view>("op")
                           .Attr<int64_t>("method")
                           .Attr<int64_t>("given")
                           .Attr<int64_t>("wanted"));
XLA_FFI_DEFINE_HANDLER(
    kPython, Python,
    ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<std::string_view>("call"));

}  // namespace

PYBIND11_MODULE(_jax, m) {
  const py::capsule capsule = py::module_::import("pullback._native").attr("kernel_table")();
  table = capsule.get_pointer<const KernelTable>();
  m.attr("elementwise") = py::capsule(reinterpret_cast<void*>(kElementwise));
  m.attr("python") = py::capsule(reinterpret_cast<void*>(kPython));
  py::module_::import("atexit").attr("register")(py::cpp_function(&Close));
  m.def("calls", [](py::object given) {
    if (calls == nullptr) calls = new py::object();
    *calls = std::move(given);
  });
}

}  // namespace pullback

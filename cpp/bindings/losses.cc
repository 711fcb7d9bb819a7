// Losses as fast callables: loss.value_and_grad(X, y, w, b).
#include "bindings/losses.h"

#include <array>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>

#include "bindings/interrupt.h"
#include "bindings/method.h"
#include "kernels/losses.h"

namespace pullback {
namespace {

// Larger X than this is read without the GIL.
constexpr npy_intp kReleaseGil = 16384;

struct LossEntry {
  std::string loss;
  bool with_gradient;
  LossKernel kernel[kDTypes];
};

std::deque<LossEntry>& Entries() {
  static auto* const entries = new std::deque<LossEntry>;
  return *entries;
}

const LossKernels* FindLoss(std::string_view name) {
  for (const LossKernels& loss : LossOps()) {
    if (loss.name == name) return &loss;
  }
  return nullptr;
}

void FetchKernels(LossEntry& entry) {
  const LossKernels* const loss = FindLoss(entry.loss);
  for (size_t t = 0; t < kDTypes; ++t) entry.kernel[t] = loss->kernel[t];
}

enum Argument { kX, kY, kW, kB, kArguments };

// Positional and keyword arguments in the order above; false for any call that is not exactly the
// four of them.
bool Bind(PyObject* const* args, size_t nargs, PyObject* kwnames,
          std::array<PyObject*, kArguments>& bound) {
  static const std::array<PyObject*, kArguments> kNames = {
      PyUnicode_InternFromString("X"), PyUnicode_InternFromString("y"),
      PyUnicode_InternFromString("w"), PyUnicode_InternFromString("b")};
  const auto nkw = kwnames == nullptr ? size_t{0} : static_cast<size_t>(PyTuple_GET_SIZE(kwnames));
  if (nargs + nkw != kArguments) return false;
  bound.fill(nullptr);
  for (size_t i = 0; i < nargs; ++i) bound[i] = args[i];
  for (size_t i = 0; i < nkw; ++i) {
    PyObject* const name = PyTuple_GET_ITEM(kwnames, static_cast<Py_ssize_t>(i));
    size_t k = nargs;
    while (k < kArguments && kNames[k] != name) ++k;
    if (k == kArguments || bound[k] != nullptr) return false;
    bound[k] = args[nargs + i];
  }
  return true;
}

bool IsVector(PyObject* object, npy_intp n) {
  auto* const array = reinterpret_cast<PyArrayObject*>(object);
  return PyArray_NDIM(array) == 1 && PyArray_DIM(array, 0) == n && PyArray_IS_C_CONTIGUOUS(array);
}

// The intercept's value, and its gradient in its own kind: None, a Python float, a NumPy scalar or
// an array of one element.
class Intercept {
 public:
  static std::optional<Intercept> From(PyObject* b) {
    if (b == Py_None) return Intercept(b, DType::kFloat64, 0.0);
    if (PyFloat_CheckExact(b) || PyArray_IsScalar(b, Double)) {
      return Intercept(b, DType::kFloat64, PyFloat_AS_DOUBLE(b));
    }
    if (PyArray_IsScalar(b, Float)) {
      return Intercept(b, DType::kFloat32, double{PyArrayScalar_VAL(b, Float)});
    }
    const std::optional<DType> dtype = KernelArray(b);
    if (!dtype) return std::nullopt;
    auto* const array = reinterpret_cast<PyArrayObject*>(b);
    if (PyArray_SIZE(array) != 1 || PyArray_NDIM(array) > 1) return std::nullopt;
    const void* const value = PyArray_DATA(array);
    return Intercept(b, *dtype,
                     *dtype == DType::kFloat32 ? double{*static_cast<const float*>(value)}
                                               : *static_cast<const double*>(value));
  }

  double value() const { return value_; }
  DType dtype() const { return dtype_; }

  // `gradient`: one element of dtype().
  PyObject* Gradient(const void* gradient) const {
    if (b_ == Py_None) return Py_NewRef(Py_None);
    if (PyFloat_CheckExact(b_)) {
      return PyFloat_FromDouble(*static_cast<const double*>(gradient));
    }
    const bool is_array = PyArray_CheckExact(b_);
    npy_intp one = 1;
    PyObject* const result =
        PyArray_SimpleNew(is_array ? PyArray_NDIM(reinterpret_cast<PyArrayObject*>(b_)) : 0, &one,
                          TypeNumber(dtype_));
    if (result == nullptr) return nullptr;
    auto* const array = reinterpret_cast<PyArrayObject*>(result);
    std::memcpy(PyArray_DATA(array), gradient, ItemSize(dtype_));
    return is_array ? result : PyArray_Return(array);
  }

 private:
  Intercept(PyObject* b, DType dtype, double value) : b_(b), dtype_(dtype), value_(value) {}

  PyObject* b_;
  DType dtype_;
  double value_;
};

PyObject* LossCall(const void* context, PyObject* const* args, size_t nargs, PyObject* kwnames) {
  const auto& entry = *static_cast<const LossEntry*>(context);
  std::array<PyObject*, kArguments> bound;
  if (!Bind(args, nargs, kwnames, bound)) return nullptr;
  std::array<DType, 3> dtype;
  for (size_t k = kX; k <= kW; ++k) {
    const std::optional<DType> found = KernelArray(bound[k]);
    if (!found) return nullptr;
    dtype[k] = *found;
  }
  auto* const X = reinterpret_cast<PyArrayObject*>(bound[kX]);
  if (PyArray_NDIM(X) != 2) return nullptr;
  const npy_intp rows = PyArray_DIM(X, 0), cols = PyArray_DIM(X, 1);
  const auto item = static_cast<npy_intp>(ItemSize(dtype[kX]));
  // The stride of an axis of length 1 means nothing, and may be anything.
  const npy_intp row_stride = rows > 1 ? PyArray_STRIDE(X, 0) : 0;
  if (rows == 0 || (cols > 1 && PyArray_STRIDE(X, 1) != item) || row_stride % item != 0 ||
      !IsVector(bound[kY], rows) || !IsVector(bound[kW], cols)) {
    return nullptr;
  }
  const std::optional<Intercept> b = Intercept::From(bound[kB]);
  if (!b) return nullptr;

  npy_intp gw_shape[] = {cols};
  Ref gw(entry.with_gradient ? PyArray_SimpleNew(1, gw_shape, TypeNumber(dtype[kW])) : nullptr);
  if (entry.with_gradient && !gw) return nullptr;
  const auto data = [](PyObject* array) {
    return PyArray_DATA(reinterpret_cast<PyArrayObject*>(array));
  };
  const LinearModel model{data(bound[kX]),
                          dtype[kX],
                          static_cast<size_t>(rows),
                          static_cast<size_t>(cols),
                          row_stride / item,
                          data(bound[kY]),
                          dtype[kY],
                          data(bound[kW]),
                          dtype[kW],
                          b->value()};
  alignas(double) char gb[sizeof(double)];
  MeanLossResult result{0.0, gw ? data(gw.get()) : nullptr, gb, b->dtype()};
  Outcome outcome;
  {
    const ScopedGilRelease unlocked(rows * cols > kReleaseGil);
    Poll poll = SignalPoll();
    outcome = MeanLoss(entry.kernel[static_cast<size_t>(dtype[kX])], model, result, &poll);
  }
  if (outcome == Outcome::kOutOfMemory) return PyErr_NoMemory();
  if (outcome == Outcome::kInterrupted) return nullptr;
  Ref loss(PyFloat_FromDouble(result.loss));
  if (!entry.with_gradient || !loss) return loss.release();
  const Ref intercept(b->Gradient(gb));
  if (!intercept) return nullptr;
  const Ref gradients(PyTuple_Pack(2, gw.get(), intercept.get()));
  return gradients ? PyTuple_Pack(2, loss.get(), gradients.get()) : nullptr;
}

}  // namespace

PyObject* NewLossMethod(const char* loss, const char* method, PyObject* fallback) {
  const bool with_gradient = std::string_view(method) == "value_and_grad";
  if (FindLoss(loss) == nullptr || (!with_gradient && std::string_view(method) != "value")) {
    PyErr_Format(PyExc_KeyError, "no native method '%s' of a loss '%s'", method, loss);
    return nullptr;
  }
  LossEntry& entry = Entries().emplace_back(LossEntry{loss, with_gradient, {}});
  FetchKernels(entry);
  return NewMethod(LossCall, &entry, fallback);
}

void RefreshLossKernels() {
  for (LossEntry& entry : Entries()) FetchKernels(entry);
}

}  // namespace pullback

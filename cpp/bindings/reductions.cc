// Reductions as fast callables, logsumexp.value_and_grad(x, axis), and the engine of all else.
#include "bindings/reductions.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <string_view>

#include "bindings/call.h"
#include "bindings/method.h"
#include "bindings/results.h"
#include "kernels/reductions.h"

namespace pullback {
namespace {

// Larger arrays are reduced without the GIL.
constexpr size_t kReleaseGil = 16384;

// Exponents with a row of their own.
std::string_view RowOfNorm(double p) {
  return p == 1 ? "norm1" : p == 2 ? "norm2" : std::isinf(p) ? "norm_inf" : "norm";
}

// The row that computes a map's method. Softmax is logsumexp's gradient; the Jacobians of softmax
// and layer_norm are symmetric.
std::optional<size_t> FindMap(std::string_view name, std::string_view method) {
  if (method.empty()) method = "value";
  if (name == "softmax" && method == "value") return FindReduction("logsumexp");
  const std::optional<size_t> row = FindReduction(name, method);
  return !row && method == "jvp" ? FindReduction(name, "vjp") : row;
}

// None on success.
PyObject* Deliver(const ReductionCall& call) {
  const bool done = RunKernel(call.outer * call.n * call.inner > kReleaseGil,
                              [&](Poll* poll) { return Reduce(call, poll); });
  return done ? Py_NewRef(Py_None) : nullptr;
}

// --- the fast way in -----------------------------------------------------------------------------

enum class Kind : uint8_t { kValue, kGrad, kValueAndGrad, kVjp, kJvp };

struct Entry : MethodEntry {
  Kind kind;
  bool is_map;
  size_t operands;
  double parameter;
  PerTarget<const ReductionKernels*> ops;
};

// (outer, n, inner) of a C-contiguous array along an axis, or all of them.
struct Blocks {
  size_t outer = 1, n = 1, inner = 1;
  int axis = -1;  // that which is reduced; -1 for all

  static std::optional<Blocks> Of(PyArrayObject* x, PyObject* axis) {
    Blocks blocks;
    const int ndim = PyArray_NDIM(x);
    const npy_intp* const shape = PyArray_DIMS(x);
    if (axis == Py_None) {
      blocks.n = static_cast<size_t>(PyArray_SIZE(x));
      return blocks;
    }
    if (!PyLong_CheckExact(axis)) return std::nullopt;
    int overflow;
    long which = PyLong_AsLongAndOverflow(axis, &overflow);
    if (which < 0) which += ndim;
    if (overflow != 0 || which < 0 || which >= ndim) return std::nullopt;
    blocks.axis = static_cast<int>(which);
    for (int a = 0; a < ndim; ++a) {
      size_t& part = a < which ? blocks.outer : a == which ? blocks.n : blocks.inner;
      part *= static_cast<size_t>(shape[a]);
    }
    return blocks;
  }
};

// The shape of the results.
struct Shape {
  Shape(PyArrayObject* x, const Blocks& blocks) {
    if (blocks.axis < 0) return;
    for (int a = 0; a < PyArray_NDIM(x); ++a) {
      if (a != blocks.axis) dims[ndim++] = PyArray_DIM(x, a);
    }
  }
  bool Is(PyArrayObject* g) const {
    return PyArray_NDIM(g) == ndim && std::equal(dims, dims + ndim, PyArray_DIMS(g));
  }
  int ndim = 0;
  npy_intp dims[NPY_MAXDIMS];
};

bool SameShape(PyArrayObject* a, PyArrayObject* b) {
  return PyArray_NDIM(a) == PyArray_NDIM(b) &&
         std::equal(PyArray_DIMS(a), PyArray_DIMS(a) + PyArray_NDIM(a), PyArray_DIMS(b));
}

bool IsPlain(PyObject* object, DType dtype) {
  return KernelArray(object) == dtype && PyArray_IS_C_CONTIGUOUS(AsArray(object));
}

PyObject* ReductionCallMethod(const MethodEntry& own, PyObject* const* args, size_t nargs,
                              PyObject* kwnames) {
  static PyObject* const kAxis = PyUnicode_InternFromString("axis");
  const auto& entry = static_cast<const Entry&>(own);
  const ReductionKernels& op = *entry.ops.Active();
  // x, then the second operand, the cotangent or the tangents, then the axis.
  const size_t tangents = entry.kind == Kind::kJvp ? entry.operands : 0;
  const size_t given = entry.operands + (entry.kind == Kind::kVjp) + tangents;
  if (nargs < given || nargs > given + 1) return nullptr;
  static PyObject* const kLast = PyLong_FromLong(-1);
  PyObject* axis = entry.is_map ? kLast : Py_None;
  if (nargs > given) axis = args[given];
  if (kwnames != nullptr && PyTuple_GET_SIZE(kwnames) > 0) {
    if (PyTuple_GET_SIZE(kwnames) > 1 || PyTuple_GET_ITEM(kwnames, 0) != kAxis || nargs > given) {
      return nullptr;
    }
    axis = args[nargs];
  }

  const std::optional<DType> dtype = KernelArray(args[0]);
  if (!dtype || !PyArray_IS_C_CONTIGUOUS(AsArray(args[0]))) return nullptr;
  PyArrayObject* const x = AsArray(args[0]);
  for (size_t i = 1; i < given; ++i) {
    if (!IsPlain(args[i], *dtype)) return nullptr;
  }
  if (entry.operands == 2 && !SameShape(x, AsArray(args[1]))) return nullptr;
  const std::optional<Blocks> blocks = Blocks::Of(x, axis);
  if (!blocks || blocks->n == 0 || PyArray_SIZE(x) == 0) return nullptr;
  const Shape shape(x, *blocks);

  ReductionCall call = {};
  call.op = &op;
  call.dtype = *dtype;
  call.parameter = entry.parameter;
  call.outer = blocks->outer;
  call.n = blocks->n;
  call.inner = blocks->inner;
  call.x = PyArray_DATA(x);
  if (entry.operands == 2) call.v = DataOf(args[1]);
  if (entry.kind == Kind::kVjp || entry.kind == Kind::kJvp) {
    PyArrayObject* const other = AsArray(args[entry.operands]);
    if (entry.is_map) {
      if (!SameShape(x, other)) return nullptr;
      call.v = PyArray_DATA(other);
    } else if (entry.kind == Kind::kVjp) {
      if (!shape.Is(other)) return nullptr;
      call.g = PyArray_DATA(other);
    } else {
      call.tangents = true;
      for (size_t i = 0; i < tangents; ++i) {
        PyArrayObject* const t = AsArray(args[entry.operands + i]);
        if (!SameShape(x, t)) return nullptr;
        call.t[i] = PyArray_DATA(t);
      }
    }
  }

  Ref values, slopes[kMaxOuts];
  if (!entry.is_map && entry.kind != Kind::kGrad && entry.kind != Kind::kVjp) {
    values = Ref(NewArray(shape.ndim, shape.dims, *dtype));
    if (!values) return nullptr;
    call.values = DataOf(values.get());
  }
  if (entry.is_map || entry.kind == Kind::kGrad || entry.kind == Kind::kVjp ||
      entry.kind == Kind::kValueAndGrad) {
    for (size_t o = 0; o < op.outs; ++o) {
      slopes[o] = Ref(NewArray(PyArray_NDIM(x), PyArray_DIMS(x), *dtype));
      if (!slopes[o]) return nullptr;
      call.out[o] = DataOf(slopes[o].get());
    }
  }
  const Ref done(Deliver(call));
  if (!done) return nullptr;
  Ref value(values ? PyArray_Return(AsArray(values.release())) : nullptr);
  if (call.out[0] == nullptr) return value.release();
  Ref gradient(op.outs == 1 ? slopes[0].release()
                            : PyTuple_Pack(2, slopes[0].get(), slopes[1].get()));
  if (!value || !gradient) return gradient.release();
  return PyTuple_Pack(2, value.get(), gradient.get());
}

// --- the engine ----------------------------------------------------------------------------------

// All checks guard memory: the Python layer has told the caller what is wrong before.
PyObject* Refuse(const char* function, const char* argument) {
  return PyErr_Format(PyExc_TypeError, "%s: %s is not what the engine takes", function, argument);
}

// Reads the arguments of one engine call.
class Reader {
 public:
  explicit Reader(const char* function) : function_(function) {}

  // Sets the shape and dtype that all other arrays follow.
  bool First(PyObject* object, ReductionCall& call) {
    const std::optional<DType> dtype = KernelArray(object);
    if (!dtype || !PyArray_IS_C_CONTIGUOUS(AsArray(object)) || PyArray_NDIM(AsArray(object)) != 3) {
      Refuse(function_, "x");
      return false;
    }
    first_ = AsArray(object);
    dtype_ = *dtype;
    call.dtype = *dtype;
    call.outer = static_cast<size_t>(PyArray_DIM(first_, 0));
    call.n = static_cast<size_t>(PyArray_DIM(first_, 1));
    call.inner = static_cast<size_t>(PyArray_DIM(first_, 2));
    if (call.n == 0) Refuse(function_, "x");
    return call.n > 0;
  }

  // The data of an array like x; null for None. `good` tells failure.
  void* Block(PyObject* object, const char* name, bool writable, bool& good) const {
    if (!good || object == Py_None) return nullptr;
    good = IsPlain(object, dtype_) && SameShape(first_, AsArray(object)) &&
           (!writable || PyArray_ISWRITEABLE(AsArray(object)));
    if (good) return DataOf(object);
    Refuse(function_, name);
    return nullptr;
  }

  // The same of an array of one element for each slice.
  void* Results(PyObject* object, const char* name, bool writable, bool& good) const {
    if (!good || object == Py_None) return nullptr;
    good = IsPlain(object, dtype_) && PyArray_NDIM(AsArray(object)) == 2 &&
           PyArray_DIM(AsArray(object), 0) == PyArray_DIM(first_, 0) &&
           PyArray_DIM(AsArray(object), 1) == PyArray_DIM(first_, 2) &&
           (!writable || PyArray_ISWRITEABLE(AsArray(object)));
    if (good) return DataOf(object);
    Refuse(function_, name);
    return nullptr;
  }

  // Sets op, x and v.
  bool Operands(PyObject* name, PyObject* parameter, PyObject* x, ReductionCall& call) {
    if (!ReadDouble(parameter, &call.parameter)) return false;
    const char* const row = PyUnicode_AsUTF8(name);
    if (row == nullptr) return false;
    const bool is_norm = std::string_view(row) == "norm";
    const std::optional<size_t> found =
        FindReduction(is_norm ? RowOfNorm(call.parameter) : std::string_view(row));
    if (!found) {
      PyErr_Format(PyExc_KeyError, "no reduction '%s'", row);
      return false;
    }
    call.op = &ReductionOps()[*found];
    if (!PyTuple_CheckExact(x) || static_cast<size_t>(PyTuple_GET_SIZE(x)) != call.op->arrays) {
      Refuse(function_, "x");
      return false;
    }
    bool good = First(PyTuple_GET_ITEM(x, 0), call);
    if (!good) return false;
    call.x = PyArray_DATA(first_);
    if (call.op->arrays == 2) {
      call.v = Block(PyTuple_GET_ITEM(x, 1), "x", false, good);
      if (good && call.v == nullptr) {
        Refuse(function_, "x");
        good = false;
      }
    }
    return good;
  }

  // A tuple of `count` arrays like x, or None.
  bool BlocksOf(PyObject* object, const char* name, size_t count, bool writable,
                void** data) const {
    if (!PyTuple_CheckExact(object) || static_cast<size_t>(PyTuple_GET_SIZE(object)) != count) {
      Refuse(function_, name);
      return false;
    }
    bool good = true;
    for (size_t i = 0; i < count; ++i) {
      PyObject* const item = PyTuple_GET_ITEM(object, static_cast<Py_ssize_t>(i));
      data[i] = Block(item, name, writable, good);
      if (writable && good && data[i] == nullptr) {
        Refuse(function_, name);
        good = false;
      }
    }
    return good;
  }

 private:
  const char* function_;
  PyArrayObject* first_ = nullptr;
  DType dtype_ = DType::kFloat64;
};

PyObject* WrongCount(const char* function) {
  return PyErr_Format(PyExc_TypeError, "%s: wrong number of arguments", function);
}

// reduce_slices(name, parameter, x, g, values, slopes)
PyObject* ReduceSlices(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 6) return WrongCount("reduce_slices");
  Reader reader("reduce_slices");
  ReductionCall call = {};
  if (!reader.Operands(args[0], args[1], args[2], call)) return nullptr;
  bool good = true;
  call.g = reader.Results(args[3], "g", false, good);
  call.values = reader.Results(args[4], "values", true, good);
  if (!good) return nullptr;
  if (args[5] != Py_None && !reader.BlocksOf(args[5], "slopes", call.op->outs, true, call.out)) {
    return nullptr;
  }
  return Deliver(call);
}

// reduce_tangents(name, parameter, x, t, out)
PyObject* ReduceTangents(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 5) return WrongCount("reduce_tangents");
  Reader reader("reduce_tangents");
  ReductionCall call = {};
  if (!reader.Operands(args[0], args[1], args[2], call)) return nullptr;
  void* t[kMaxOuts];
  if (!reader.BlocksOf(args[3], "t", call.op->outs, false, t)) return nullptr;
  std::copy_n(t, call.op->outs, call.t);
  call.tangents = true;
  bool good = true;
  call.values = reader.Results(args[4], "out", true, good);
  if (good && call.values == nullptr) return Refuse("reduce_tangents", "out");
  return good ? Deliver(call) : nullptr;
}

// transform_slices(name, parameter, method, x, v, out)
PyObject* TransformSlices(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 6) return WrongCount("transform_slices");
  Reader reader("transform_slices");
  ReductionCall call = {};
  if (!ReadDouble(args[1], &call.parameter)) return nullptr;
  const char* const name = PyUnicode_AsUTF8(args[0]);
  const char* const method = name == nullptr ? nullptr : PyUnicode_AsUTF8(args[2]);
  if (method == nullptr) return nullptr;
  const std::optional<size_t> row = FindMap(name, method);
  if (!row) {
    return PyErr_Format(PyExc_KeyError, "no map of rows '%s' with a method '%s'", name, method);
  }
  call.op = &ReductionOps()[*row];
  if (!reader.First(args[3], call)) return nullptr;
  call.x = DataOf(args[3]);
  bool good = true;
  call.v = reader.Block(args[4], "v", false, good);
  if (good && (call.v != nullptr) != (call.op->arrays == 2)) {
    return Refuse("transform_slices", "v");
  }
  call.out[0] = reader.Block(args[5], "out", true, good);
  if (good && call.out[0] == nullptr) return Refuse("transform_slices", "out");
  return good ? Deliver(call) : nullptr;
}

PyCFunction AsFunction(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef kEngine[] = {
    {"reduce_slices", AsFunction(ReduceSlices), METH_FASTCALL,
     "reduce_slices(name, parameter, x, g, values, slopes, /)\n--\n\n"},
    {"reduce_tangents", AsFunction(ReduceTangents), METH_FASTCALL,
     "reduce_tangents(name, parameter, x, t, out, /)\n--\n\n"},
    {"transform_slices", AsFunction(TransformSlices), METH_FASTCALL,
     "transform_slices(name, parameter, method, x, v, out, /)\n--\n\n"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyObject* NewReductionMethod(const char* reduction, const char* method, double parameter,
                             PyObject* fallback) {
  constexpr std::string_view kKinds[] = {"value", "grad", "value_and_grad", "vjp", "jvp"};
  const auto* const found = std::find(std::begin(kKinds), std::end(kKinds), method);
  const auto kind = static_cast<Kind>(found - kKinds);
  const bool is_map = FindMap(reduction, "vjp").has_value();
  std::optional<size_t> row;
  if (!is_map && found != std::end(kKinds)) row = FindReduction(reduction);
  if (is_map && kind != Kind::kGrad && kind != Kind::kValueAndGrad)
    row = FindMap(reduction, method);
  if (!row) {
    PyErr_Format(PyExc_KeyError, "no native method '%s' of a reduction '%s'", method, reduction);
    return nullptr;
  }
  auto entry = std::make_unique<Entry>();
  entry->kind = kind;
  entry->is_map = is_map;
  entry->parameter = parameter;
  entry->ops = RowOf(ReductionTables(), *row);
  entry->operands = is_map ? 1 : entry->ops.Active()->arrays;
  return NewMethod(ReductionCallMethod, std::move(entry), fallback);
}

bool RegisterReductionEngine(PyObject* module) {
  return PyModule_AddFunctions(module, kEngine) == 0;
}

}  // namespace pullback

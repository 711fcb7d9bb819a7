// Reductions as fast callables, logsumexp.value_and_grad(x, axis), and the engine of all else.
#include "bindings/reductions.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <string_view>
#include <type_traits>

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

// A call for each cotangent of a stack: g, or v of a map. False with an exception set.
bool Run(ReductionCall& call, size_t stack = 1, bool of_map = false) {
  const size_t results = call.outer * call.inner * ItemSize(call.dtype);
  const size_t elements = results * call.n;
  const auto move = [](auto& data, size_t bytes) {
    using Byte = std::conditional_t<
        std::is_const_v<std::remove_pointer_t<std::remove_reference_t<decltype(data)>>>, const char,
        char>;
    if (data != nullptr) data = static_cast<Byte*>(data) + bytes;
  };
  return RunKernel(stack * call.outer * call.n * call.inner > kReleaseGil, [&](Poll* poll) {
    Outcome outcome = Outcome::kDone;
    for (size_t i = 0; i < stack && outcome == Outcome::kDone; ++i) {
      outcome = Reduce(call, poll);
      move(call.g, results);
      if (of_map) move(call.v, elements);
      for (void*& out : call.out) move(out, elements);
    }
    return outcome;
  });
}

// --- the fast way in -----------------------------------------------------------------------------

enum class Kind : uint8_t { kValue, kGrad, kValueAndGrad, kVjp, kJvp };

struct Entry : MethodEntry {
  using Kernels = PerTarget<const ReductionKernels*>;

  Kind kind;
  bool is_map;
  size_t operands;  // of the row
  size_t arrays;    // among the arguments: the operands, then a cotangent or their tangents
  // Where arguments stand in the signature.
  std::array<size_t, 4> array_at;
  std::optional<size_t> parameter_at, axis_at, keepdims_at, out_at, wrt_at;
  double parameter;  // where none is given
  Ref valid;         // tells of a given one whether it is
  Kernels kernels;
  std::optional<std::array<Kernels, 3>> norms;  // of exponents with a row of their own

  // Whether a result holds one element for each slice.
  bool HasValue() const {
    return !is_map && (kind == Kind::kValue || kind == Kind::kValueAndGrad || kind == Kind::kJvp);
  }

  // Whether results are like the operands.
  bool HasGradients() const { return is_map || (kind != Kind::kValue && kind != Kind::kJvp); }

  const ReductionKernels& Row(double p) const {
    const Kernels& own = !norms || RowOfNorm(p) == "norm" ? kernels
                         : p == 1                         ? (*norms)[0]
                         : p == 2                         ? (*norms)[1]
                                                          : (*norms)[2];
    return *own.Active();
  }
};

// Which axes are reduced, in bits; nothing where Python has to look at the argument.
std::optional<uint64_t> AxesOf(PyObject* axis, int ndim) {
  static_assert(NPY_MAXDIMS <= 64);
  const auto one = [&](PyObject* entry) -> std::optional<uint64_t> {
    if (!PyLong_CheckExact(entry)) return std::nullopt;
    int overflow;
    long which = PyLong_AsLongAndOverflow(entry, &overflow);
    if (which < 0) which += ndim;
    if (overflow != 0 || which < 0 || which >= ndim) return std::nullopt;
    return uint64_t{1} << which;
  };
  if (!PyTuple_CheckExact(axis)) return one(axis);
  uint64_t axes = 0;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(axis); ++i) {
    const std::optional<uint64_t> bit = one(PyTuple_GET_ITEM(axis, i));
    if (!bit || (axes & *bit) != 0) return std::nullopt;
    axes |= *bit;
  }
  return axes;
}

// A C-contiguous array as (outer, n, inner), and the shape of its reduction.
struct Slices {
  size_t outer = 1, n = 1, inner = 1;
  int ndim = 0;
  npy_intp shape[NPY_MAXDIMS];

  // False where the reduced axes do not lie together.
  bool Cut(PyArrayObject* x, uint64_t axes, bool keepdims) {
    enum { kOuter, kReduced, kInner } at = kOuter;
    for (int a = 0; a < PyArray_NDIM(x); ++a) {
      const npy_intp extent = PyArray_DIM(x, a);
      const bool reduced = (axes >> a & 1) != 0;
      if (!reduced) shape[ndim++] = extent;
      if (reduced && keepdims) shape[ndim++] = 1;
      if (extent == 1) continue;
      if (reduced && at == kInner) return false;
      if (reduced) at = kReduced;
      if (!reduced && at == kReduced) at = kInner;
      size_t& part = at == kOuter ? outer : at == kReduced ? n : inner;
      part *= static_cast<size_t>(extent);
    }
    return true;
  }
};

bool IsPlain(PyObject* object, DType dtype) {
  return KernelArray(object) == dtype && PyArray_IS_C_CONTIGUOUS(AsArray(object));
}

// The parameter, or nothing where it has to be refused or needs a look.
std::optional<double> ParameterOf(const Entry& entry, const Arguments& args) {
  PyObject* const given = entry.parameter_at ? args[*entry.parameter_at] : nullptr;
  if (given == nullptr) return entry.parameter;
  const std::optional<double> parameter = AsNumber(given);
  if (!parameter) return std::nullopt;
  const Ref number(PyFloat_FromDouble(*parameter));
  const Ref answer(number ? PyObject_CallOneArg(entry.valid.get(), number.get()) : nullptr);
  if (!answer) LeaveToPython();
  return answer && PyObject_IsTrue(answer.get()) == 1 ? parameter : std::nullopt;
}

PyObject* ReductionCallMethod(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const Entry&>(own);
  const std::optional<double> parameter = ParameterOf(entry, args);
  if (!parameter) return nullptr;
  const ReductionKernels& op = entry.Row(*parameter);
  PyObject* const keep = entry.keepdims_at ? args[*entry.keepdims_at] : nullptr;
  if (keep != nullptr && keep != Py_True && keep != Py_False) return nullptr;

  // Tangents may be None, but not all of them; nothing else may.
  std::array<PyObject*, 4> given;
  bool moves = entry.kind != Kind::kJvp;
  for (size_t i = 0; i < entry.arrays; ++i) {
    given[i] = args[entry.array_at[i]];
    const bool optional = entry.kind == Kind::kJvp && entry.operands == 2 && i >= entry.operands;
    if (given[i] == Py_None && !optional) return nullptr;
    if (i >= entry.operands && given[i] != Py_None) moves = true;
  }
  PlainOperands x;
  if (!moves || !x.Take(given.data(), entry.arrays)) return nullptr;
  PyObject* const axis = entry.axis_at ? args[*entry.axis_at] : nullptr;
  const int ndim = PyArray_NDIM(x[0]);
  const uint64_t all = ndim == 64 ? ~uint64_t{0} : (uint64_t{1} << ndim) - 1;
  std::optional<uint64_t> axes = all;
  if (axis == nullptr && entry.is_map) {
    if (ndim == 0) return nullptr;
    axes = uint64_t{1} << (ndim - 1);
  } else if (axis != nullptr && axis != Py_None) {
    axes = AxesOf(axis, ndim);
  }
  Slices slices;
  if (!axes || !slices.Cut(x[0], *axes, keep == Py_True) || PyArray_SIZE(x[0]) == 0) return nullptr;
  // A cotangent's shape ends in the result's, behind a stack; all else is like x. Numbers fill
  // that.
  size_t stack = 1;
  npy_intp room[NPY_MAXDIMS];
  const npy_intp* gradient = PyArray_DIMS(x[0]);
  int gradient_ndim = ndim;
  for (size_t i = 1; i < entry.arrays; ++i) {
    if (x[i] == nullptr) continue;
    const bool is_cotangent = entry.kind == Kind::kVjp && i == entry.operands;
    const bool of_results = is_cotangent && !entry.is_map;
    const int own = of_results ? slices.ndim : ndim;
    const npy_intp* const wanted = of_results ? slices.shape : PyArray_DIMS(x[0]);
    if (i >= entry.operands && IsWeak(given[i])) {
      if (!x.Fill(i, own, wanted)) return nullptr;
      continue;
    }
    const int more = PyArray_NDIM(x[i]) - own;
    if (more < 0 || (more > 0 && !is_cotangent) || more + ndim > NPY_MAXDIMS ||
        !std::equal(wanted, wanted + own, PyArray_DIMS(x[i]) + more)) {
      return nullptr;
    }
    if (more == 0) continue;
    std::copy_n(PyArray_DIMS(x[i]), more, room);
    std::copy_n(gradient, ndim, room + more);
    stack = static_cast<size_t>(PyArray_MultiplyList(room, more));
    gradient = room;
    gradient_ndim = more + ndim;
  }

  ReductionCall call = {};
  call.op = &op;
  call.dtype = x.dtype();
  call.parameter = *parameter;
  call.outer = slices.outer;
  call.n = slices.n;
  call.inner = slices.inner;
  call.x = x.data(0);
  if (entry.operands == 2 || (entry.is_map && entry.arrays == 2)) call.v = x.data(1);
  if (entry.kind == Kind::kVjp && !entry.is_map) call.g = x.data(entry.operands);
  if (entry.kind == Kind::kJvp && !entry.is_map) {
    call.tangents = true;
    for (size_t i = 0; i < entry.operands; ++i) call.t[i] = x.data(entry.operands + i);
  }

  // The value, the gradients that are asked for, and room for the others, which come with them.
  const size_t values = entry.HasValue() ? 1 : 0;
  const size_t gradients = entry.HasGradients() ? op.outs : 0;
  PyObject* const given_wrt = entry.wrt_at ? args[*entry.wrt_at] : nullptr;
  std::optional<Wrt> wrt;  // nothing for all of them
  if (given_wrt != nullptr) {
    wrt = entry.signature.ReadWrt(given_wrt, gradients);
    if (!wrt) return nullptr;
  }
  const size_t asked = wrt ? wrt->count : gradients;
  std::array<PyObject*, 1 + kMaxOuts> outs = {};
  PyObject* const out = Given(args, entry.out_at);
  const bool bare = values + asked == 1 && (!wrt || wrt->single);
  if (out != nullptr && !FlatOuts(out, values + asked, bare, outs.data())) return nullptr;
  Outputs outputs;
  const DType dtype = x.dtype();
  if (values > 0 && !outputs.Add(outs[0], slices.ndim, slices.shape, dtype, x)) return nullptr;
  std::array<size_t, kMaxOuts> place = {};
  const auto add = [&](size_t operand, PyObject* to) {
    place[operand] = outputs.count();
    return outputs.Add(to, gradient_ndim, gradient, dtype, x);
  };
  for (size_t i = 0; i < asked; ++i) {
    if (!add(wrt ? wrt->operands[i] : i, outs[values + i])) return nullptr;
  }
  for (size_t o = 0; wrt && o < gradients; ++o) {
    if (!wrt->Has(o) && !add(o, nullptr)) return nullptr;
  }
  if (!outputs.Make()) return nullptr;
  if (values > 0) call.values = outputs.data(0);
  for (size_t o = 0; o < gradients; ++o) call.out[o] = outputs.data(place[o]);
  if (!Run(call, stack, entry.is_map)) return nullptr;
  Ref value(values > 0 ? outputs.Release(0, true) : nullptr);
  if (gradients == 0) return value.release();
  std::array<Ref, kMaxOuts> slopes;
  std::array<PyObject*, kMaxOuts> of_operands;
  for (size_t o = 0; o < gradients; ++o) {
    slopes[o] = Ref(outputs.Release(place[o], false));
    of_operands[o] = slopes[o].get();
  }
  Ref packed(gradients == 1 ? slopes[0].release()
             : wrt          ? wrt->Pack(of_operands.data())
                            : PyTuple_Pack(2, of_operands[0], of_operands[1]));
  if (!value || !packed) return packed.release();
  return PyTuple_Pack(2, value.get(), packed.get());
}

// --- the engine ----------------------------------------------------------------------------------

// Reads the arguments of one engine call. All checks guard memory: the Python layer has told the
// caller what is wrong before. False with an exception set.
class Reader {
 public:
  enum Need : uint8_t { kOptional, kRequired, kOptionalOutput, kOutput };

  explicit Reader(const char* function) : function_(function) {}

  bool Refuse(const char* name) const {
    PyErr_Format(PyExc_TypeError, "%s: %s is not what the engine takes", function_, name);
    return false;
  }

  bool Counts(Py_ssize_t nargs, Py_ssize_t wanted) const {
    if (nargs == wanted) return true;
    PyErr_Format(PyExc_TypeError, "%s: wrong number of arguments", function_);
    return false;
  }

  // The array whose shape and dtype all others follow.
  bool First(PyObject* object) {
    const std::optional<DType> dtype = KernelArray(object);
    if (!dtype || !PyArray_IS_C_CONTIGUOUS(AsArray(object)) || PyArray_NDIM(AsArray(object)) != 3 ||
        PyArray_DIM(AsArray(object), 1) == 0) {
      return Refuse("x");
    }
    first_ = AsArray(object);
    call.dtype = *dtype;
    call.outer = static_cast<size_t>(PyArray_DIM(first_, 0));
    call.n = static_cast<size_t>(PyArray_DIM(first_, 1));
    call.inner = static_cast<size_t>(PyArray_DIM(first_, 2));
    call.x = PyArray_DATA(first_);
    return true;
  }

  // An array like x, or of one element for each slice; null for None.
  template <class T>
  bool Read(PyObject* object, const char* name, Need need, T** data, bool of_slices = false) const {
    *data = nullptr;
    if (object == Py_None) return need == kRequired || need == kOutput ? Refuse(name) : true;
    if (!IsPlain(object, call.dtype)) return Refuse(name);
    PyArrayObject* const array = AsArray(object);
    const npy_intp slices[] = {PyArray_DIM(first_, 0), PyArray_DIM(first_, 2)};
    const npy_intp* const shape = of_slices ? slices : PyArray_DIMS(first_);
    const int ndim = of_slices ? 2 : 3;
    if (PyArray_NDIM(array) != ndim || !std::equal(shape, shape + ndim, PyArray_DIMS(array)) ||
        (need >= kOptionalOutput && !PyArray_ISWRITEABLE(array))) {
      return Refuse(name);
    }
    *data = PyArray_DATA(array);
    return true;
  }

  // A tuple of `count` of them.
  template <class T>
  bool ReadAll(PyObject* object, const char* name, Need need, size_t count, T** data) const {
    if (!PyTuple_CheckExact(object) || static_cast<size_t>(PyTuple_GET_SIZE(object)) != count) {
      return Refuse(name);
    }
    for (size_t i = 0; i < count; ++i) {
      PyObject* const item = PyTuple_GET_ITEM(object, static_cast<Py_ssize_t>(i));
      if (!Read(item, name, need, data + i)) return false;
    }
    return true;
  }

  // A reduction's name, parameter and operands.
  bool Operands(PyObject* const* args) {
    if (!ReadDouble(args[1], &call.parameter)) return false;
    const char* const name = PyUnicode_AsUTF8(args[0]);
    if (name == nullptr) return false;
    const bool is_norm = std::string_view(name) == "norm";
    const std::optional<size_t> row =
        FindReduction(is_norm ? RowOfNorm(call.parameter) : std::string_view(name));
    if (!row) {
      PyErr_Format(PyExc_KeyError, "no reduction '%s'", name);
      return false;
    }
    call.op = &ReductionOps()[*row];
    PyObject* const x = args[2];
    const void* data[2];
    if (!PyTuple_CheckExact(x) || PyTuple_GET_SIZE(x) == 0) return Refuse("x");
    if (!First(PyTuple_GET_ITEM(x, 0)) || !ReadAll(x, "x", kRequired, call.op->arrays, data)) {
      return false;
    }
    if (call.op->arrays == 2) call.v = data[1];
    return true;
  }

  ReductionCall call = {};

 private:
  const char* function_;
  PyArrayObject* first_ = nullptr;
};

// None on success.
PyObject* Deliver(Reader& reader) { return Run(reader.call) ? Py_NewRef(Py_None) : nullptr; }

// reduce_slices(name, parameter, x, g, values, slopes)
PyObject* ReduceSlices(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  Reader reader("reduce_slices");
  ReductionCall& call = reader.call;
  if (!reader.Counts(nargs, 6) || !reader.Operands(args) ||
      !reader.Read(args[3], "g", Reader::kOptional, &call.g, true) ||
      !reader.Read(args[4], "values", Reader::kOptionalOutput, &call.values, true) ||
      (args[5] != Py_None &&
       !reader.ReadAll(args[5], "slopes", Reader::kOutput, call.op->outs, call.out))) {
    return nullptr;
  }
  return Deliver(reader);
}

// reduce_tangents(name, parameter, x, t, out)
PyObject* ReduceTangents(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  Reader reader("reduce_tangents");
  ReductionCall& call = reader.call;
  call.tangents = true;
  if (!reader.Counts(nargs, 5) || !reader.Operands(args) ||
      !reader.ReadAll(args[3], "t", Reader::kOptional, call.op->outs, call.t) ||
      !reader.Read(args[4], "out", Reader::kOutput, &call.values, true)) {
    return nullptr;
  }
  return Deliver(reader);
}

// transform_slices(name, parameter, method, x, v, out)
PyObject* TransformSlices(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  Reader reader("transform_slices");
  ReductionCall& call = reader.call;
  if (!reader.Counts(nargs, 6) || !ReadDouble(args[1], &call.parameter)) return nullptr;
  const char* const name = PyUnicode_AsUTF8(args[0]);
  const char* const method = name == nullptr ? nullptr : PyUnicode_AsUTF8(args[2]);
  if (method == nullptr) return nullptr;
  const std::optional<size_t> row = FindMap(name, method);
  if (!row) {
    return PyErr_Format(PyExc_KeyError, "no map of rows '%s' with a method '%s'", name, method);
  }
  call.op = &ReductionOps()[*row];
  if (!reader.First(args[3]) || !reader.Read(args[4], "v", Reader::kOptional, &call.v) ||
      ((call.v != nullptr) != (call.op->arrays == 2) && !reader.Refuse("v")) ||
      !reader.Read(args[5], "out", Reader::kOutput, &call.out[0])) {
    return nullptr;
  }
  return Deliver(reader);
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
                             PyObject* valid, PyObject* fallback) {
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
  entry->valid = Ref(Py_NewRef(valid));
  entry->kernels = RowOf(ReductionTables(), *row);
  entry->operands = is_map ? 1 : entry->kernels.Active()->arrays;
  if (std::string_view(reduction) == "norm") {
    std::array<Entry::Kernels, 3>& norms = entry->norms.emplace();
    constexpr std::string_view kNorms[] = {"norm1", "norm2", "norm_inf"};
    for (size_t i = 0; i < norms.size(); ++i) {
      norms[i] = RowOf(ReductionTables(), FindReduction(kNorms[i]).value());
    }
  }
  const size_t others = kind == Kind::kVjp ? 1 : kind == Kind::kJvp ? entry->operands : 0;
  if (!entry->signature.Read(fallback, entry->operands + others)) return nullptr;
  // Behind the operands stand a cotangent or tangents; of what else there is, the rest has names.
  const Signature& signature = entry->signature;
  entry->axis_at = signature.Find("axis");
  entry->keepdims_at = signature.Find("keepdims");
  entry->out_at = signature.Find("out");
  if (entry->operands > 1) entry->wrt_at = signature.Find("wrt");
  for (const std::string_view name : {"p", "ddof", "eps"}) {
    if (!entry->parameter_at) entry->parameter_at = signature.Find(name);
  }
  entry->arrays = 0;
  for (const std::string_view name : {"x", "y", "g", "t", "tx", "ty"}) {
    if (const std::optional<size_t> place = signature.Find(name)) {
      if (entry->arrays == entry->array_at.size()) break;
      entry->array_at[entry->arrays++] = *place;
    }
  }
  const auto end = entry->array_at.begin() + static_cast<ptrdiff_t>(entry->arrays);
  if (entry->arrays != entry->operands + others ||
      std::any_of(entry->array_at.begin(), end,
                  [&](size_t place) { return place >= signature.required(); })) {
    return PyErr_Format(PyExc_TypeError, "%R does not take the arrays of '%s'", fallback, method);
  }
  return NewMethod(ReductionCallMethod, std::move(entry), fallback);
}

bool RegisterReductionEngine(PyObject* module) {
  return PyModule_AddFunctions(module, kEngine) == 0;
}

}  // namespace pullback

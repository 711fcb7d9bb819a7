// Reductions as fast callables, logsumexp.value_and_grad(x, axis), and the engine of all else.
#include "bindings/reductions.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "bindings/call.h"
#include "bindings/jacobians.h"
#include "bindings/method.h"
#include "bindings/outputs.h"
#include "kernels/reductions.h"
#include "kernels/second_order.h"
#include "runtime/scratch.h"

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
    Outcome outcome = stack == 0 ? Outcome::kDone : Reduce(call, poll);
    for (size_t i = 1; i < stack && outcome == Outcome::kDone; ++i) {
      move(call.g, results);
      if (of_map) move(call.v, elements);
      for (void*& out : call.out) move(out, elements);
      outcome = Reduce(call, poll);
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
  bool is_jacobian;  // gradients as Jacobians
  size_t operands;   // of the row
  size_t arrays;     // among the arguments: the operands, then a cotangent or their tangents
  // Where arguments stand in the signature.
  std::array<size_t, 4> array_at;
  std::optional<size_t> parameter_at, axis_at, keepdims_at, out_at, wrt_at, where_at, weights_at;
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

// The axes of a call on an array; nothing where Python has to look at them.
std::optional<uint64_t> AxesOf(PyObject* axis, int ndim, bool of_map) {
  if (axis == nullptr && of_map) {
    if (ndim == 0) return std::nullopt;
    return uint64_t{1} << (ndim - 1);
  }
  if (axis != nullptr && axis != Py_None) return AxesOf(axis, ndim);
  return ndim == 64 ? ~uint64_t{0} : (uint64_t{1} << ndim) - 1;
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

  bool IsEmpty() const { return outer == 0 || n == 0 || inner == 0; }
};

bool IsPlain(PyObject* object, DType dtype) {
  return KernelArray(object) == dtype && PyArray_IS_C_CONTIGUOUS(AsArray(object));
}

// False where a parameter has to be refused or needs a look.
bool ReadParameter(double otherwise, const Ref& valid, PyObject* given, double& parameter) {
  parameter = otherwise;
  if (given == nullptr) return true;
  std::optional<double> own;
  if (PyBool_Check(given)) {  // reverse=True of a scan
    own = given == Py_True ? 1.0 : 0.0;
  } else {
    own = AsNumber(given);
  }
  if (!own) return false;
  parameter = *own;
  const Ref number(PyFloat_FromDouble(parameter));
  const Ref answer(number ? PyObject_CallOneArg(valid.get(), number.get()) : nullptr);
  if (!answer) LeaveToPython();
  return answer && PyObject_IsTrue(answer.get()) == 1;
}

// Whether no elements are left out.
bool AllCount(const Arguments& args, std::optional<size_t> where_at) {
  PyObject* const where = ArgumentAt(args, where_at);
  return where == nullptr || where == Py_True;
}

[[gnu::hot]] PyObject* ReductionCallMethod(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const Entry&>(own);
  double parameter;
  if (!ReadParameter(entry.parameter, entry.valid, ArgumentAt(args, entry.parameter_at),
                     parameter)) {
    return nullptr;
  }
  if (!AllCount(args, entry.where_at) || Given(args, entry.weights_at) != nullptr) return nullptr;
  const ReductionKernels& op = entry.Row(parameter);
  PyObject* const keep = ArgumentAt(args, entry.keepdims_at);
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
  const int ndim = PyArray_NDIM(x[0]);
  const std::optional<uint64_t> axes = AxesOf(ArgumentAt(args, entry.axis_at), ndim, entry.is_map);
  Slices slices;
  if (!axes || !slices.Cut(x[0], *axes, keep == Py_True) || slices.IsEmpty()) return nullptr;
  const npy_intp row[] = {1, entry.is_jacobian ? PyArray_SIZE(x[0]) : 0};
  // A cotangent's shape ends in the result's, behind a stack; all else is like x. Numbers fill
  // that.
  size_t stack = 1;
  npy_intp room[NPY_MAXDIMS];
  const bool is_row = entry.is_jacobian && (ndim == 0 || *axes == ~uint64_t{0} >> (64 - ndim));
  const npy_intp* gradient = is_row ? row : PyArray_DIMS(x[0]);
  int gradient_ndim = is_row ? 2 : ndim;
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
        !EndsIn(x[i], own, wanted)) {
      return nullptr;
    }
    if (more == 0) continue;
    std::copy_n(PyArray_DIMS(x[i]), more, room);
    std::copy_n(gradient, ndim, room + more);
    stack = static_cast<size_t>(PyArray_MultiplyList(room, more));
    gradient = room;
    gradient_ndim = more + ndim;
  }

  ReductionCall call;  // field by field: g++ clears what is larger by an instruction that is slow
  call.op = &op;
  call.dtype = x.dtype();
  call.parameter = parameter;
  call.outer = slices.outer;
  call.n = slices.n;
  call.inner = slices.inner;
  call.x = x.data(0);
  call.v = call.g = nullptr;
  call.values = nullptr;
  call.tangents = false;
  std::fill_n(call.out, kMaxOuts, nullptr);
  std::fill_n(call.t, kMaxOuts, nullptr);
  if (entry.operands == 2 || (entry.is_map && entry.arrays == 2)) call.v = x.data(1);
  if (entry.kind == Kind::kVjp && !entry.is_map) call.g = x.data(entry.operands);
  if (entry.kind == Kind::kJvp && !entry.is_map) {
    call.tangents = true;
    for (size_t i = 0; i < entry.operands; ++i) call.t[i] = x.data(entry.operands + i);
  }

  // The value, the gradients that are asked for, and room for the others, which come with them.
  const size_t values = entry.HasValue() ? 1 : 0;
  const size_t gradients = entry.HasGradients() ? op.outs : 0;
  Wrt wrt;
  wrt.operands[0] = 0;
  wrt.count = gradients;
  wrt.single = true;
  if (gradients > 1) {
    const std::optional<Wrt> asked =
        entry.signature.ReadWrt(ArgumentAt(args, entry.wrt_at), gradients);
    if (!asked) return nullptr;
    wrt = *asked;
  }
  std::array<PyObject*, 1 + kMaxOuts> outs = {};
  PyObject* const out = Given(args, entry.out_at);
  const bool bare = values + wrt.count == 1 && wrt.single;
  if (out != nullptr && !FlatOuts(out, values + wrt.count, bare, outs.data())) return nullptr;
  Outputs outputs;
  const DType dtype = x.dtype();
  const bool scalar = values > 0 && slices.ndim == 0 && outs[0] == nullptr;
  double number;  // or a float32: room for a scalar
  if (values > 0 && !scalar && !outputs.Add(outs[0], slices.ndim, slices.shape, dtype, x)) {
    return nullptr;
  }
  std::array<size_t, kMaxOuts> place;
  const auto add = [&](size_t operand, PyObject* to) {
    place[operand] = outputs.count();
    return outputs.Add(to, gradient_ndim, gradient, dtype, x);
  };
  for (size_t i = 0; i < wrt.count; ++i) {
    if (!add(wrt.operands[i], outs[values + i])) return nullptr;
  }
  for (size_t o = 0; wrt.count < gradients && o < gradients; ++o) {
    if (!wrt.Has(o) && !add(o, nullptr)) return nullptr;
  }
  if (values > 0) call.values = scalar ? &number : outputs.data(0);
  for (size_t o = 0; o < gradients; ++o) call.out[o] = outputs.data(place[o]);
  if (!Run(call, stack, entry.is_map)) return nullptr;
  Ref value(scalar ? NewScalar(&number, dtype) : values > 0 ? outputs.Release(0) : nullptr);
  if (gradients == 0) return value.release();
  if (entry.is_jacobian) {
    std::array<Ref, kMaxOuts> jacobians;
    for (size_t o = 0; o < gradients; ++o) {
      if (!wrt.Has(o)) continue;
      Ref slopes(outputs.ReleaseArray(place[o]));
      jacobians[o] = is_row ? JacobianOfValue(std::move(slopes), Extents(x[0]),
                                              Extents(slices.ndim, slices.shape))
                            : JacobianOfSums(std::move(slopes), *axes, keep == Py_True);
      if (!jacobians[o]) return nullptr;
    }
    return wrt.Pack(jacobians.data());
  }
  std::array<Ref, kMaxOuts> of_operands;
  for (size_t o = 0; o < gradients; ++o) of_operands[o] = Ref(outputs.ReleaseArray(place[o]));
  Ref packed(wrt.Pack(of_operands.data()));
  return values > 0 ? Pair(std::move(value), std::move(packed)) : packed.release();
}

// A method of vjp's, of a row with a kernel of its own: float64 arrays along the last axes.
struct SecondEntry : MethodEntry {
  std::optional<SecondRow> row;
  bool of_tangents;
  size_t x_at, g_at, t_at, tg_at;
  std::optional<size_t> parameter_at, axis_at, keepdims_at, out_at, wrt_at, where_at, weights_at;
  double parameter;
  Ref valid;
  Entry::Kernels vjp, jvp;
};

bool HasShape(PyObject* object, int ndim, const npy_intp* shape) {
  return IsPlain(object, DType::kFloat64) && PyArray_NDIM(AsArray(object)) == ndim &&
         std::equal(shape, shape + ndim, PyArray_DIMS(AsArray(object)));
}

PyObject* SecondCallMethod(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const SecondEntry&>(own);
  double parameter;
  if (!entry.row || ArgumentAt(args, entry.wrt_at) != nullptr ||
      Given(args, entry.out_at) != nullptr || Given(args, entry.weights_at) != nullptr ||
      !AllCount(args, entry.where_at) ||
      !ReadParameter(entry.parameter, entry.valid, ArgumentAt(args, entry.parameter_at),
                     parameter)) {
    return nullptr;
  }
  const bool is_map = IsMap(*entry.row);
  PyObject* const keep = ArgumentAt(args, entry.keepdims_at);
  PyObject *const x = args[entry.x_at], *const g = args[entry.g_at], *const t = args[entry.t_at];
  if ((keep != nullptr && keep != Py_True && keep != Py_False) || !IsPlain(x, DType::kFloat64)) {
    return nullptr;
  }
  const int ndim = PyArray_NDIM(AsArray(x));
  const npy_intp* const shape = PyArray_DIMS(AsArray(x));
  const auto axes = AxesOf(ArgumentAt(args, entry.axis_at), ndim, is_map);
  Slices slices;
  if (ndim == 0 || !axes || !slices.Cut(AsArray(x), *axes, keep == Py_True) || slices.IsEmpty() ||
      slices.inner != 1 || !HasShape(t, ndim, shape)) {
    return nullptr;
  }
  const int g_ndim = is_map ? ndim : slices.ndim;
  const npy_intp* const g_shape = is_map ? shape : slices.shape;
  const bool is_number = !is_map && slices.outer == 1 && PyFloat_CheckExact(g);
  const double number = is_number ? PyFloat_AS_DOUBLE(g) : 0;
  if (!is_number && !HasShape(g, g_ndim, g_shape)) return nullptr;
  PyObject* const tg = entry.of_tangents ? args[entry.tg_at] : Py_None;
  if (tg != Py_None && !HasShape(tg, g_ndim, g_shape)) return nullptr;

  Ref result(NewArray(ndim, shape, DType::kFloat64));
  if (!result) return nullptr;
  constexpr size_t kOnStack = size_t{4} << 10;
  using CallScratch = Scratch<kOnStack>;
  const size_t elements = slices.outer * slices.n, room = tg == Py_None ? 0 : elements;
  CallScratch scratch(CallScratch::Bytes(slices.outer) + CallScratch::Bytes<double>(room));
  if (!scratch) return PyErr_NoMemory();
  const auto data = [](PyObject* array) {
    return static_cast<double*>(PyArray_DATA(AsArray(array)));
  };
  double* const out = data(result.get());
  const SecondCall call{*entry.row, parameter, slices.outer,
                        slices.n,   data(x),   is_number ? &number : data(g),
                        data(t),    out,       scratch.Take<uint8_t>(slices.outer)};
  if (!RunKernel(elements > kReleaseGil, [&](Poll* poll) { return SecondOrder(call, poll); })) {
    return nullptr;
  }
  if (std::find(call.suspects, call.suspects + call.rows, 1) != call.suspects + call.rows) {
    return nullptr;
  }

  ReductionCall first = {};
  first.dtype = DType::kFloat64;
  first.parameter = parameter;
  first.outer = slices.outer;
  first.n = slices.n;
  first.inner = 1;
  first.x = call.x;
  if (entry.of_tangents) {
    if (tg == Py_None) return result.release();
    double* const terms = scratch.Take<double>(room);
    first.op = entry.vjp.Active();
    (is_map ? first.v : first.g) = data(tg);
    first.out[0] = terms;
    if (!Run(first)) return nullptr;
    for (size_t i = 0; i < elements; ++i) out[i] += terms[i];
    return result.release();
  }
  first.op = entry.jvp.Active();
  if (is_map) {
    Ref of_g(NewArray(ndim, shape, DType::kFloat64));
    if (!of_g) return nullptr;
    first.v = call.t;
    first.out[0] = data(of_g.get());
    if (!Run(first)) return nullptr;
    return Pair(std::move(result), std::move(of_g));
  }
  const bool scalar = slices.ndim == 0;
  double value;
  Ref of_g(scalar ? nullptr : NewArray(slices.ndim, slices.shape, DType::kFloat64));
  if (!scalar && !of_g) return nullptr;
  first.tangents = true;
  first.t[0] = call.t;
  first.values = scalar ? &value : data(of_g.get());
  if (!Run(first)) return nullptr;
  if (scalar) of_g = Ref(NewScalar(&value, DType::kFloat64));
  return Pair(std::move(result), std::move(of_g));
}

// The Jacobian of a map, which keeps the operand.
struct MapJacobianEntry : MethodEntry {
  std::optional<size_t> parameter_at, axis_at, where_at;
  std::string parameter_name;  // empty for none
  double parameter;
  Ref valid, primitive;
};

PyObject* MapJacobianCall(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const MapJacobianEntry&>(own);
  double parameter;
  PlainOperands x;
  if (!ReadParameter(entry.parameter, entry.valid, ArgumentAt(args, entry.parameter_at),
                     parameter) ||
      !AllCount(args, entry.where_at) || args[0] == Py_None ||
      !x.Take(args.data(), 1, Strides::kAny)) {
    return nullptr;
  }
  PyObject* const given = ArgumentAt(args, entry.axis_at);
  Ref axis(given == nullptr ? PyLong_FromLong(-1) : Py_NewRef(given));
  if (!axis || !PyLong_CheckExact(axis.get()) || !AxesOf(axis.get(), PyArray_NDIM(x[0]))) {
    return nullptr;
  }
  Ref options(PyDict_New());
  if (!entry.parameter_name.empty() && options) {
    const Ref number(PyFloat_FromDouble(parameter));
    if (!number ||
        PyDict_SetItemString(options.get(), entry.parameter_name.c_str(), number.get()) != 0) {
      return nullptr;
    }
  }
  Ref kept(PyArray_NewCopy(x[0], NPY_KEEPORDER));
  return JacobianOfRows(entry.primitive.get(), std::move(kept), std::move(axis), std::move(options))
      .release();
}

// --- the engine ----------------------------------------------------------------------------------

// How many arguments a function of the engine takes, the first ones a name and a parameter, and
// where the others stand: 0 for those that it does not take.
struct EngineFunction {
  size_t count;
  size_t method = 0, x = 0, v = 0, g = 0, t = 0, values = 0, out = 0;
};

constexpr EngineFunction kSlices = {.count = 6, .x = 2, .g = 3, .values = 4, .out = 5};
constexpr EngineFunction kTangents = {.count = 5, .x = 2, .t = 3, .values = 4};
constexpr EngineFunction kTransforms = {.count = 6, .method = 2, .x = 3, .v = 4, .out = 5};

// All checks guard memory: the Python layer has told the caller what is wrong before. Returns None.
template <const EngineFunction& at>
PyObject* CallEngine(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (static_cast<size_t>(nargs) != at.count) {
    return PyErr_Format(PyExc_TypeError, "%zd arguments, not %zu", nargs, at.count);
  }
  const auto refuse = [&](const char* argument) {
    return PyErr_Format(PyExc_TypeError, "%s is not what the engine takes", argument);
  };
  const bool is_map = at.method != 0, pushes = at.t != 0;
  ReductionCall call = {};
  if (!ReadDouble(args[1], &call.parameter)) return nullptr;
  const char* const name = PyUnicode_AsUTF8(args[0]);
  const char* const method = name != nullptr && is_map ? PyUnicode_AsUTF8(args[at.method]) : "";
  if (name == nullptr || method == nullptr) return nullptr;
  const std::string_view row_name = name;
  const std::optional<size_t> row =
      is_map ? FindMap(row_name, method)
             : FindReduction(row_name == "norm" ? RowOfNorm(call.parameter) : row_name);
  if (!row) return PyErr_Format(PyExc_KeyError, "no row '%s' with a method '%s'", name, method);
  call.op = &ReductionOps()[*row];

  // All arrays follow the first one.
  const bool several = PyTuple_CheckExact(args[at.x]) && PyTuple_GET_SIZE(args[at.x]) > 0;
  PyObject* const first = several && !is_map ? PyTuple_GET_ITEM(args[at.x], 0) : args[at.x];
  const std::optional<DType> dtype = KernelArray(first);
  if (!dtype || PyArray_NDIM(AsArray(first)) != 3 || PyArray_DIM(AsArray(first), 1) == 0) {
    return refuse("x");
  }
  const npy_intp* const shape = PyArray_DIMS(AsArray(first));
  const npy_intp of_slices[] = {shape[0], shape[2]};
  call.dtype = *dtype;
  call.outer = static_cast<size_t>(shape[0]);
  call.n = static_cast<size_t>(shape[1]);
  call.inner = static_cast<size_t>(shape[2]);

  enum Need : uint8_t { kOptional, kRequired, kOptionalOutput, kOutput };
  const auto read = [&](PyObject* object, Need need, auto** data, bool like_x = true) {
    if (object == Py_None) return need != kRequired && need != kOutput;
    const int ndim = like_x ? 3 : 2;
    PyArrayObject* const array = AsArray(object);
    if (!IsPlain(object, *dtype) || PyArray_NDIM(array) != ndim ||
        !std::equal(PyArray_DIMS(array), PyArray_DIMS(array) + ndim, like_x ? shape : of_slices) ||
        (need >= kOptionalOutput && !PyArray_ISWRITEABLE(array))) {
      return false;
    }
    *data = PyArray_DATA(array);
    return true;
  };
  // A tuple of `count` arrays like x; of a map a single one.
  const auto read_all = [&](PyObject* object, Need need, size_t count, auto** data) {
    if (is_map) return read(object, need, data);
    if (!PyTuple_CheckExact(object) || static_cast<size_t>(PyTuple_GET_SIZE(object)) != count) {
      return false;
    }
    for (size_t i = 0; i < count; ++i) {
      if (!read(PyTuple_GET_ITEM(object, static_cast<Py_ssize_t>(i)), need, data + i)) return false;
    }
    return true;
  };

  const size_t arrays = call.op->arrays, outs = call.op->outs;
  const void* operands[2] = {};
  if (!read_all(args[at.x], kRequired, arrays, operands)) return refuse("x");
  if (is_map &&
      (!read(args[at.v], kOptional, operands + 1) || (operands[1] == nullptr) != (arrays == 1))) {
    return refuse("v");
  }
  call.x = operands[0];
  call.v = operands[1];
  call.tangents = pushes;
  if (at.g != 0 && !read(args[at.g], kOptional, &call.g, false)) return refuse("g");
  if (pushes && !read_all(args[at.t], kOptional, outs, call.t)) return refuse("t");
  if (at.values != 0 &&
      !read(args[at.values], pushes ? kOutput : kOptionalOutput, &call.values, false)) {
    return refuse("values");
  }
  const bool has_out = at.out != 0 && (is_map || args[at.out] != Py_None);
  if (has_out && !read_all(args[at.out], kOutput, outs, call.out)) return refuse("out");
  return Run(call) ? Py_NewRef(Py_None) : nullptr;
}

// second_rows(name, parameter, x, g, t, out): H(t) of rows of float64. Returns None if there is no
// kernel; else a byte for each row, 1 for a suspect, or none if there is no suspect.
PyObject* SecondRows(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 6) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 6", nargs);
  SecondCall call;
  const char* const name = PyUnicode_AsUTF8(args[0]);
  if (name == nullptr || !ReadDouble(args[1], &call.parameter)) return nullptr;
  const std::string_view called = name;
  const std::optional<SecondRow> row =
      FindSecond(called == "norm" ? RowOfNorm(call.parameter) : called);
  if (!row) Py_RETURN_NONE;
  call.row = *row;
  const npy_intp* shape = nullptr;
  const auto read = [&](PyObject* object, bool is_output, bool of_rows, auto** data) {
    if (!IsPlain(object, DType::kFloat64)) return false;
    PyArrayObject* const array = AsArray(object);
    if (PyArray_NDIM(array) != 2 || (is_output && !PyArray_ISWRITEABLE(array))) return false;
    if (shape == nullptr) shape = PyArray_DIMS(array);
    const npy_intp* const own = PyArray_DIMS(array);
    *data = static_cast<double*>(PyArray_DATA(array));
    return own[0] == shape[0] && own[1] == (of_rows ? 1 : shape[1]);
  };
  if (!read(args[2], false, false, &call.x) || shape[1] == 0 ||
      !read(args[3], false, !IsMap(*row), &call.g) || !read(args[4], false, false, &call.t) ||
      !read(args[5], true, false, &call.out)) {
    return PyErr_Format(PyExc_TypeError, "arrays are not what the engine takes");
  }
  call.rows = static_cast<size_t>(shape[0]);
  call.n = static_cast<size_t>(shape[1]);
  Ref suspects(PyBytes_FromStringAndSize(nullptr, shape[0]));
  if (!suspects) return nullptr;
  call.suspects = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(suspects.get()));
  if (!RunKernel(call.rows * call.n > kReleaseGil,
                 [&](Poll* poll) { return SecondOrder(call, poll); })) {
    return nullptr;
  }
  const uint8_t* const end = call.suspects + call.rows;
  if (std::find(call.suspects, const_cast<uint8_t*>(end), 1) != end) return suspects.release();
  return PyBytes_FromStringAndSize(nullptr, 0);
}

template <const EngineFunction& at>
PyMethodDef Engine(const char* name, const char* signature) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(CallEngine<at>)),
          METH_FASTCALL, signature};
}

PyMethodDef kEngine[] = {
    Engine<kSlices>("reduce_slices",
                    "reduce_slices(name, parameter, x, g, values, slopes, /)\n--\n\n"),
    Engine<kTangents>("reduce_tangents", "reduce_tangents(name, parameter, x, t, out, /)\n--\n\n"),
    Engine<kTransforms>("transform_slices",
                        "transform_slices(name, parameter, method, x, v, out, /)\n--\n\n"),
    {"second_rows", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(SecondRows)),
     METH_FASTCALL, "second_rows(name, parameter, x, g, t, out, /)\n--\n\n"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

namespace {

// A parameter that is not read would be taken for its default.
PyObject* HasNoParameter(PyObject* fallback, const char* called) {
  return PyErr_Format(PyExc_TypeError, "%R does not take the parameter '%s'", fallback, called);
}

PyObject* NewMapJacobian(const char* called, double parameter, PyObject* valid,
                         PyObject* fallback) {
  auto entry = std::make_unique<MapJacobianEntry>();
  if (!entry->signature.Read(fallback, 1)) return nullptr;
  if (!PyMethod_Check(fallback)) {
    return PyErr_Format(PyExc_TypeError, "%R is no method of a primitive", fallback);
  }
  entry->primitive = Ref(Py_NewRef(PyMethod_GET_SELF(fallback)));
  entry->parameter = parameter;
  entry->valid = Ref(Py_NewRef(valid));
  entry->axis_at = entry->signature.Find("axis");
  entry->where_at = entry->signature.Find("where");
  entry->parameter_name = called;
  entry->parameter_at = entry->signature.Find(called);
  if (*called != 0 && !entry->parameter_at) return HasNoParameter(fallback, called);
  return NewMethod(MapJacobianCall, std::move(entry), fallback);
}

PyObject* NewSecondMethod(const char* reduction, bool of_tangents, const char* called,
                          double parameter, PyObject* valid, PyObject* fallback) {
  auto entry = std::make_unique<SecondEntry>();
  entry->row = FindSecond(reduction);
  entry->of_tangents = of_tangents;
  entry->parameter = parameter;
  entry->valid = Ref(Py_NewRef(valid));
  const Signature& signature = entry->signature;
  if (!entry->signature.Read(fallback, 3)) return nullptr;
  entry->parameter_at = signature.Find(called);
  if (*called != 0 && !entry->parameter_at) return HasNoParameter(fallback, called);
  entry->axis_at = signature.Find("axis");
  entry->keepdims_at = signature.Find("keepdims");
  entry->out_at = signature.Find("out");
  entry->wrt_at = signature.Find("wrt");
  entry->where_at = signature.Find("where");
  entry->weights_at = signature.Find("b");
  if (entry->row) {
    const auto place = [&](const char* name, size_t& at) {
      const std::optional<size_t> found = signature.Find(name);
      at = found.value_or(0);
      return found && at < signature.required();
    };
    if (!place("x", entry->x_at) || !place("g", entry->g_at) ||
        !place(of_tangents ? "t" : "h", entry->t_at) ||
        (of_tangents && !place("tg", entry->tg_at))) {
      return PyErr_Format(PyExc_TypeError, "%R does not take the arrays of vjp's", fallback);
    }
    const bool is_map = IsMap(*entry->row);
    const auto kernels = [&](const char* method) {
      const auto row = is_map ? FindMap(reduction, method) : FindReduction(reduction);
      return RowOf(ReductionTables(), row.value());
    };
    entry->vjp = kernels("vjp");
    entry->jvp = kernels("jvp");
  }
  return NewMethod(SecondCallMethod, std::move(entry), fallback);
}

}  // namespace

PyObject* NewReductionMethod(const char* reduction, const char* method, const char* called,
                             double parameter, PyObject* valid, PyObject* fallback) {
  constexpr std::string_view kKinds[] = {"value", "grad", "value_and_grad", "vjp", "jvp"};
  const bool is_map = FindMap(reduction, "vjp").has_value();
  const bool of_tangents = std::string_view(method) == "vjp.jvp";
  if ((of_tangents || std::string_view(method) == "vjp.vjp") &&
      (is_map || FindReduction(reduction))) {
    return NewSecondMethod(reduction, of_tangents, called, parameter, valid, fallback);
  }
  const bool is_jacobian = std::string_view(method) == "jacobian";
  if (is_map && is_jacobian) return NewMapJacobian(called, parameter, valid, fallback);
  const auto* const found =
      std::find(std::begin(kKinds), std::end(kKinds), is_jacobian ? "grad" : method);
  const auto kind = static_cast<Kind>(found - kKinds);
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
  entry->is_jacobian = is_jacobian;
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
  entry->where_at = signature.Find("where");
  entry->weights_at = signature.Find("b");
  if (entry->operands > 1) entry->wrt_at = signature.Find("wrt");
  entry->parameter_at = signature.Find(called);
  if (*called != 0 && !entry->parameter_at) return HasNoParameter(fallback, called);
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

// Rows of the op table as NumPy ufuncs, and what is not one of them as fast callables.
#include "bindings/elementwise.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/call.h"
#include "bindings/jacobians.h"
#include "bindings/method.h"
#include "bindings/operands.h"
#include "bindings/outputs.h"
#include "bindings/shapes.h"
#include "kernels/broadcast.h"
#include "kernels/convert.h"
#include "kernels/elementwise.h"

namespace pullback {
namespace {

// More elements than this are computed without the GIL.
constexpr npy_intp kReleaseGil = 4096;

struct Entry : MethodEntry {
  std::string label, name, doc;  // label: for messages, such as "multiply.vjp"
  Method method;
  int arity;          // of the op
  MethodShape shape;  // of the kernel
  int part;           // the one output that is wanted, or -1 for all of them
  PerTarget<const OpKernels*> op;
  void* self[1];  // what the ufunc carries as its user data
  Ref last;       // the last operand where a value's call leaves it out; null for none
  Ref door;       // door(operands, out, where): the operands as NumPy is to see them; null for none

  std::optional<size_t> out_at, where_at, wrt_at;  // of a Method

  ElementwiseKernel Kernel(Method which, DType dtype) const {
    return op.Active()->kernel[static_cast<size_t>(which)][static_cast<size_t>(dtype)];
  }

  // Primals x, or w and x; then the cotangent g, the tangent t, or the tangents tw and tx.
  std::string ArgumentName(int i) const {
    const std::string primal = arity == 2 && i % 2 == 0 ? "w" : "x";
    if (i < arity) return primal;
    if (method != Method::kJvp) return "g";
    return arity == 2 ? "t" + primal : "t";
  }

  int Outputs() const { return part < 0 ? shape.nout : 1; }
};

// In the order of Method.
constexpr std::string_view kMethodNames[] = {"value",   "derivative", "value_and_derivative",
                                             "vjp",     "jvp",        "second_derivative",
                                             "vjp.jvp", "vjp.vjp"};
static_assert(std::size(kMethodNames) == kMethods);

// What a ufunc carries as its user data.
const Entry& EntryOf(PyObject* ufunc) {
  return *static_cast<const Entry*>(reinterpret_cast<PyUFuncObject*>(ufunc)->data[0]);
}

// A digit behind the method's name asks for that output alone: "vjp0", with respect to the first
// operand. Null with an exception set when there is no such op or method.
std::unique_ptr<Entry> NewEntry(const char* op_name, const char* method_name, const char* name,
                                const char* doc) {
  const std::optional<OpPlace> place = PlaceOfOp(op_name);
  if (!place) {
    PyErr_Format(PyExc_KeyError, "no native kernel for op '%s'", op_name);
    return nullptr;
  }
  const PerTarget<const OpKernels*> op = RowOf(OpTables(place->shard), place->row);
  std::string_view wanted = method_name;
  int part = -1;
  if (!wanted.empty() && wanted.back() >= '0' && wanted.back() <= '2') {
    part = wanted.back() - '0';
    wanted.remove_suffix(1);
  }
  const auto* const found = std::find(std::begin(kMethodNames), std::end(kMethodNames), wanted);
  const auto method = static_cast<Method>(found - kMethodNames);
  const int arity = op.Active()->arity;
  if (found == std::end(kMethodNames) || part >= ShapeOf(method, arity).nout) {
    PyErr_Format(PyExc_KeyError, "op '%s' has no method '%s'", op_name, method_name);
    return nullptr;
  }
  auto entry = std::make_unique<Entry>();
  entry->label = op_name;
  if (method != Method::kValue) entry->label.append(".").append(wanted);
  entry->name = name;
  entry->doc = doc;
  entry->method = method;
  entry->arity = arity;
  entry->shape = ShapeOf(method, arity);
  entry->part = part;
  entry->op = op;
  entry->self[0] = entry.get();
  return entry;
}

// --- ufuncs --------------------------------------------------------------------------------------

// Elements between two looks at the clock when NumPy hands a long call over in small pieces.
constexpr size_t kPollElements = size_t{1} << 16;

template <DType kDType>
int StridedLoop(PyArrayMethod_Context* context, char* const* data, const npy_intp* dimensions,
                const npy_intp* strides, NpyAuxData*) {
  const Entry* const entry = &EntryOf(context->caller);
  const auto n = static_cast<size_t>(dimensions[0]);
  Operands operands;
  const int nin = entry->shape.nin;
  for (int k = 0; k < nin; ++k) {
    operands.data[k] = data[k];
    operands.stride[k] = strides[k];
  }
  for (int o = 0; o < entry->shape.nout; ++o) {
    const bool wanted = entry->part < 0 || entry->part == o;
    const int k = nin + (entry->part < 0 ? o : 0);
    operands.data[nin + o] = wanted ? data[k] : nullptr;
    operands.stride[nin + o] = wanted ? strides[k] : 0;
  }
  // A call of many pieces is to answer Ctrl-C as one long piece does, so both outlive the piece.
  // The count is everybody's: it only has to grow.
  static std::atomic<size_t> unpolled{0};
  const size_t done = unpolled.load(std::memory_order_relaxed) + n;
  const bool poll_now = done >= kPollElements;
  unpolled.store(poll_now ? 0 : done, std::memory_order_relaxed);
  const ElementwiseKernel kernel = entry->Kernel(entry->method, kDType);
  Outcome outcome;
  if (poll_now) {
    thread_local int64_t last_ns = 0;
    Poll poll = SignalPoll();
    poll.last_ns = last_ns;
    outcome = RunElementwise(kernel, entry->shape, kDType, operands, n, &poll);
    if (outcome == Outcome::kDone && Interrupted(&poll)) outcome = Outcome::kInterrupted;
    last_ns = poll.last_ns;
  } else {
    outcome = RunElementwise(kernel, entry->shape, kDType, operands, n, nullptr);
  }
  return outcome == Outcome::kDone ? 0 : -1;
}

// The dtype rule: bool, 8- and 16-bit integers and float16 compute in float32, wider integers in
// float64, Python's int and float take the others' dtype; anything else has no kernel.
int Promote(PyObject* caller, PyArray_DTypeMeta* const op_dtypes[],
            PyArray_DTypeMeta* const signature[], PyArray_DTypeMeta* new_op_dtypes[]) {
  const auto* const ufunc = reinterpret_cast<PyUFuncObject*>(caller);
  const Entry& entry = EntryOf(caller);
  bool any = false, wide = false;
  const auto refuse = [&](const std::string& what, PyArray_DTypeMeta* dtype) {
    // A class of dtypes has an instance to show, unless it is abstract.
    auto* const shown = dtype->singleton == nullptr ? reinterpret_cast<PyObject*>(dtype)
                                                    : reinterpret_cast<PyObject*>(dtype->singleton);
    PyErr_Format(PyExc_TypeError,
                 "%s: %s %S, for which there is no kernel; it takes bool, integers, float16, "
                 "float32 and float64",
                 entry.label.c_str(), what.c_str(), shown);
    return -1;
  };
  for (int i = 0; i < ufunc->nin; ++i) {
    PyArray_DTypeMeta* const dtype = op_dtypes[i];
    if (dtype == &PyArray_PyLongDType || dtype == &PyArray_PyFloatDType) continue;
    const std::optional<Element> element = ElementOf(dtype->type_num);
    if (!element) return refuse("argument " + entry.ArgumentName(i) + " has dtype", dtype);
    any = true;
    wide = wide || ComputeType(*element) == DType::kFloat64;
  }
  PyArray_DTypeMeta* chosen = any && !wide ? &PyArray_FloatDType : &PyArray_DoubleDType;
  // dtype= and signature= decide, as long as they name a dtype that has a kernel.
  for (int i = 0; i < ufunc->nargs; ++i) {
    if (signature[i] == nullptr) continue;
    if (signature[i] != &PyArray_FloatDType && signature[i] != &PyArray_DoubleDType) {
      return refuse("the call asks for dtype", signature[i]);
    }
    chosen = signature[i];
  }
  for (int i = 0; i < ufunc->nargs; ++i) {
    new_op_dtypes[i] =
        reinterpret_cast<PyArray_DTypeMeta*>(Py_NewRef(reinterpret_cast<PyObject*>(chosen)));
  }
  return 0;
}

bool AddLoop(PyObject* ufunc, const Entry& entry, DType dtype) {
  std::array<PyArray_DTypeMeta*, kMaxOperands> dtypes;
  dtypes.fill(dtype == DType::kFloat32 ? &PyArray_FloatDType : &PyArray_DoubleDType);
  PyType_Slot slots[] = {
      {NPY_METH_strided_loop,
       reinterpret_cast<void*>(dtype == DType::kFloat32 ? StridedLoop<DType::kFloat32>
                                                        : StridedLoop<DType::kFloat64>)},
      {0, nullptr},
  };
  PyArrayMethod_Spec spec{};
  spec.name = entry.name.c_str();
  spec.nin = entry.shape.nin;
  spec.nout = entry.Outputs();
  spec.casting = NPY_NO_CASTING;
  // The kernels restore the status flags, so NumPy need not look at them.
  spec.flags = NPY_METH_NO_FLOATINGPOINT_ERRORS;
  spec.dtypes = dtypes.data();
  spec.slots = slots;
  return PyUFunc_AddLoopFromSpec(ufunc, &spec) == 0;
}

bool AddPromoter(PyObject* ufunc, const Entry& entry) {
  const int operands = entry.shape.nin + entry.Outputs();
  const Ref any(PyTuple_New(operands));
  if (!any) return false;
  for (int i = 0; i < operands; ++i) {
    PyObject* const item =
        i < entry.shape.nin ? reinterpret_cast<PyObject*>(&PyArrayDescr_Type) : Py_None;
    PyTuple_SET_ITEM(any.get(), i, Py_NewRef(item));
  }
  const Ref promoter(
      PyCapsule_New(reinterpret_cast<void*>(Promote), "numpy._ufunc_promoter", nullptr));
  return promoter && PyUFunc_AddPromoter(ufunc, any.get(), promoter.get()) == 0;
}

// --- straight to the kernels -------------------------------------------------------------------

// A bare result, or a tuple; (y, (dw, dx)) of value_and_derivative.
PyObject* Nest(std::array<Ref, 3>& results, size_t count, bool bare, Method method) {
  if (bare) return results[0].release();
  if (count == 1) return PyTuple_Pack(1, results[0].get());
  if (count == 3 && method != Method::kValueAndDerivative) {
    return PyTuple_Pack(3, results[0].get(), results[1].get(), results[2].get());
  }
  if (count == 3) results[1] = Ref(Pair(std::move(results[1]), std::move(results[2])));
  return Pair(std::move(results[0]), std::move(results[1]));
}

// Arrays of one dtype and one shape, all C-contiguous: that is, no conversion and no broadcasting.
[[gnu::hot]] PyObject* RunPlain(const Entry& entry, PyObject* const* args) {
  const auto nin = static_cast<size_t>(entry.shape.nin);
  const auto nout = static_cast<size_t>(entry.shape.nout);
  const std::optional<DType> dtype = KernelArray(args[0]);
  if (!dtype) return nullptr;
  PyArrayObject* const first = AsArray(args[0]);
  const int ndim = PyArray_NDIM(first);
  if (ndim == 0 || !PyArray_IS_C_CONTIGUOUS(first)) return nullptr;
  Operands operands;
  operands.data[0] = PyArray_BYTES(first);
  for (size_t k = 1; k < nin; ++k) {
    PyArrayObject* const array = AsArray(args[k]);
    if (KernelArray(args[k]) != dtype || !SameShape(first, array) ||
        !PyArray_IS_C_CONTIGUOUS(array)) {
      return nullptr;
    }
    operands.data[k] = PyArray_BYTES(array);
  }
  std::array<Ref, 3> outputs;
  for (size_t k = 0; k < nout; ++k) {
    outputs[k] = Ref(NewArray(ndim, PyArray_DIMS(first), *dtype));
    if (!outputs[k]) return nullptr;
    operands.data[nin + k] = PyArray_BYTES(AsArray(outputs[k].get()));
  }
  for (ptrdiff_t& stride : operands.stride) stride = static_cast<ptrdiff_t>(ItemSize(*dtype));
  const npy_intp n = SizeOf(first);
  const bool done = RunKernel(n > kReleaseGil, [&](Poll* poll) {
    return RunElementwise(entry.Kernel(entry.method, *dtype), entry.shape, *dtype, operands,
                          static_cast<size_t>(n), poll);
  });
  return done ? Nest(outputs, nout, nout == 1, entry.method) : nullptr;
}

// Arrays of any number type and layout that broadcast, as they lie in memory, and what is computed
// of them.
struct Job {
  const Entry& entry;
  Method method;
  const PlainOperands& x;
  std::array<size_t, kMaxOperands> inputs = {0, 1, 2, 3, 4, 5, 6, 7};  // among x
  MethodShape kernel;
  Shape shape;          // of all inputs together
  int batch = 0;        // axes of it in front of the value's
  Wrt wanted = {};      // outputs
  size_t count = 0;     // of those that are computed, of which the wanted ones come first
  bool summed = false;  // some of them
  Outputs outputs = {};
  std::array<Shape, 3> results;

  Job(const Entry& of, const PlainOperands& operands)
      : entry(of), method(of.method), x(operands), kernel(of.shape) {
    for (size_t o = 0; o < static_cast<size_t>(kernel.nout); ++o) Want(o);
    wanted.single = kernel.nout == 1;
  }

  void Want(size_t output) { wanted.operands[wanted.count++] = output; }

  PyArrayObject* Input(size_t k) const { return x[inputs[k]]; }

  // The inputs that lie as the results of vjp do: behind the stack, each as its operand.
  bool IsCotangentOfVjp(size_t k) const {
    return method == Method::kVjpVjp && k > static_cast<size_t>(entry.arity);
  }

  bool MayBeLeftOut(size_t k) const {
    return method >= Method::kVjpJvp && k > static_cast<size_t>(entry.arity);
  }

  // False where they do not broadcast.
  bool Broadcast() {
    for (size_t k = 0; k < static_cast<size_t>(kernel.nin); ++k) {
      if (Input(k) == nullptr && MayBeLeftOut(k)) continue;
      if (Input(k) == nullptr) return false;
      if (!IsCotangentOfVjp(k) && !shape.Broadcast(Input(k))) return false;
    }
    return true;
  }

  // The axes of the stack that an output has in front.
  int BatchOf(size_t output) const {
    return method == Method::kVjpVjp && output < static_cast<size_t>(entry.arity) ? 0 : batch;
  }

  // False where Python has to look at what was given. A sum comes with all other outputs, for its
  // order depends on them.
  bool AskFor(const std::array<PyObject*, 3>& given) {
    for (count = 0; count < wanted.count; ++count) {
      if (!Add(wanted.operands[count], given[count])) return false;
    }
    for (size_t o = 0; summed && o < static_cast<size_t>(kernel.nout); ++o) {
      if (wanted.Has(o)) continue;
      wanted.operands[count] = o;
      if (!Add(o, nullptr)) return false;
      ++count;
    }
    return !summed || LieAsNew(given.data());
  }

  // Whether outputs that are given have the strides that new ones would have, on which the order of
  // a sum depends.
  bool LieAsNew(PyObject* const* given) const {
    const bool in_c_order = InCOrder();
    return std::all_of(given, given + wanted.count, [&](PyObject* out) {
      return out == nullptr || (in_c_order && PyArray_IS_C_CONTIGUOUS(AsArray(out)));
    });
  }

  bool InCOrder() const {
    return std::all_of(inputs.begin(), inputs.begin() + kernel.nin, [&](size_t k) {
      return x[k] == nullptr || PyArray_IS_C_CONTIGUOUS(x[k]) != 0;
    });
  }

  bool Add(size_t output, PyObject* given) {
    Shape& result = results[count];
    result = shape;
    const bool of_operand =
        entry.method == Method::kVjp ||
        (entry.method >= Method::kVjpJvp && output < static_cast<size_t>(entry.arity));
    if (of_operand) {
      PyArrayObject* const operand = Input(output);
      const int stack = BatchOf(output);
      result.ndim = stack + PyArray_NDIM(operand);
      if (result.ndim > kMaxAxes) return false;
      std::copy_n(PyArray_DIMS(operand), PyArray_NDIM(operand), result.extent.begin() + stack);
    }
    summed = summed || result.Size() != shape.Size();
    if (given == nullptr && result.ndim == 0 && shape.ndim > 0) {
      outputs.AddNumber(x.dtype());
      return true;
    }
    // Cotangents of vjp's results do not broadcast with the operands.
    const bool in_their_order = result == shape && method != Method::kVjpVjp;
    return outputs.Add(given, result.ndim, result.extent.data(), x.dtype(), x,
                       in_their_order ? Order::kOfOperands : Order::kC);
  }

  // False with an exception set.
  bool Compute() {
    ArrayCall call;
    call.kernel = entry.Kernel(method, x.dtype());
    call.shape = kernel;
    call.dtype = x.dtype();
    call.axes = shape.ndim;
    for (int a = 0; a < call.axes; ++a) {
      call.extent[a] = static_cast<size_t>(shape.extent[static_cast<size_t>(a)]);
    }
    const auto nin = static_cast<size_t>(kernel.nin);
    for (size_t k = 0; k < nin; ++k) {
      PyArrayObject* const input = Input(k);
      if (input == nullptr) {
        call.operand[k].data = nullptr;
        call.operand[k].storage = StorageOf(x.dtype());
        std::fill_n(call.operand[k].stride, call.axes, 0);
        continue;
      }
      const bool is_stacked = IsCotangentOfVjp(k) && PyArray_NDIM(input) >= batch;
      SetOperand(call, k, input, StorageOfArray(input).value(), is_stacked ? batch : 0);
    }
    for (int o = 0; o < kernel.nout; ++o) call.operand[kernel.nin + o].data = nullptr;
    for (size_t i = 0; i < count; ++i) {
      const size_t k = nin + wanted.operands[i];
      if (outputs[i] != nullptr) {
        SetOperand(call, k, outputs[i], StorageOf(x.dtype()), BatchOf(wanted.operands[i]));
      } else {
        call.operand[k].data = static_cast<char*>(outputs.data(i));
        call.operand[k].storage = StorageOf(x.dtype());
        std::fill_n(call.operand[k].stride, call.axes, 0);
      }
    }
    const size_t size = shape.Size();
    if (size > 0) {
      return RunKernel(size > static_cast<size_t>(kReleaseGil),
                       [&](Poll* poll) { return RunArrays(call, poll); });
    }
    for (size_t i = 0; i < count; ++i) {  // sums of nothing
      const npy_intp bytes = outputs[i] == nullptr ? sizeof(double) : PyArray_NBYTES(outputs[i]);
      std::memset(outputs.data(i), 0, static_cast<size_t>(bytes));
    }
    return true;
  }

  // With a mask, only what it lets through is written to what was given as out=. Computing all of
  // it takes a third of the time of NumPy's loop over runs of the mask.
  PyObject* Run(PyObject* out, PyObject* where = nullptr) {
    std::array<PyObject*, 3> given;
    const bool nested = entry.method == Method::kValueAndDerivative;
    if (!FlatOuts(out, wanted.count, wanted.single, given.data(), nested)) return nullptr;
    if (!AskFor(where == nullptr ? given : std::array<PyObject*, 3>{})) return nullptr;
    if (where != nullptr &&
        (summed || !PyArray_CheckExact(where) || PyArray_TYPE(AsArray(where)) != NPY_BOOL ||
         !shape.Is(AsArray(where)))) {
      return nullptr;
    }
    for (size_t i = 0; where != nullptr && i < wanted.count; ++i) {
      if (given[i] != nullptr &&
          (KernelArray(given[i]) != x.dtype() || !PyArray_ISWRITEABLE(AsArray(given[i])) ||
           !results[i].Is(AsArray(given[i])))) {
        return nullptr;
      }
    }
    if (!Compute()) return nullptr;
    std::array<Ref, 3> released;
    for (size_t i = 0; i < wanted.count; ++i) {
      released[i] = Ref(outputs.Release(i));
      if (where == nullptr || given[i] == nullptr) continue;
      const Ref done(PyArray_PutMask(AsArray(given[i]), released[i].get(), where));
      if (!done) return nullptr;
      released[i] = Ref(Py_NewRef(given[i]));
    }
    return Nest(released, wanted.count, wanted.single, entry.method);
  }
};

// Whether tangents of vjp's arguments, or cotangents of its results, have their shapes; false also
// where all of them are left out.
bool FollowsRulesOfVjp(const Job& job, const Arguments& args, const Shape& value) {
  const auto arity = static_cast<size_t>(job.entry.arity);
  PyArrayObject* const g = job.x[arity];
  bool any = false;
  for (size_t k = arity + 1; k < static_cast<size_t>(job.kernel.nin); ++k) {
    PyArrayObject* const given = job.x[k];
    if (given == nullptr) continue;
    any = true;
    if (IsWeak(args[k])) continue;
    const size_t operand = k - arity - 1;
    if (operand == arity) {  // the tangent of g
      if (IsWeak(args[arity]) ? !value.Is(given) : !SameShape(given, g)) return false;
      continue;
    }
    PyArrayObject* const own = job.x[operand];
    const int stack = job.method == Method::kVjpVjp ? job.batch : 0;
    if (PyArray_NDIM(given) != stack + PyArray_NDIM(own) ||
        !std::equal(PyArray_DIMS(given), PyArray_DIMS(given) + stack, PyArray_DIMS(g)) ||
        !std::equal(PyArray_DIMS(own), PyArray_DIMS(own) + PyArray_NDIM(own),
                    PyArray_DIMS(given) + stack)) {
      return false;
    }
  }
  return any;
}

// Takes what a cotangent and tangents have to be; false for what Python has to look at. A number
// fills the shape that it should have.
bool FollowsRules(Job& job, const Arguments& args) {
  const auto arity = static_cast<size_t>(job.entry.arity);
  Shape value;
  for (size_t k = 0; k < arity; ++k) {
    if (job.x[k] == nullptr || !value.Broadcast(job.x[k])) return false;
  }
  if (job.method == Method::kVjp || job.method >= Method::kVjpJvp) {
    PyArrayObject* const g = job.x[arity];
    if (g == nullptr) return false;
    if (!IsWeak(args[arity])) {
      job.batch = PyArray_NDIM(g) - value.ndim;
      if (job.batch < 0 || !std::equal(value.extent.begin(), value.extent.begin() + value.ndim,
                                       PyArray_DIMS(g) + job.batch)) {
        return false;
      }
    }
    return job.method == Method::kVjp || FollowsRulesOfVjp(job, args, value);
  }
  if (job.method != Method::kJvp) return true;
  size_t moved = 0, last = 0;
  for (size_t k = 0; k < arity; ++k) {
    PyArrayObject* const t = job.x[arity + k];
    if (t == nullptr) continue;
    if (!IsWeak(args[arity + k]) && !SameShape(t, job.x[k])) return false;
    ++moved;
    last = k;
  }
  if (moved == arity) return true;
  if (moved == 0) return false;
  // Of a binary op: one term, as a cotangent has it.
  job.method = Method::kVjp;
  job.kernel = ShapeOf(job.method, 2);
  job.inputs[2] = arity + last;
  job.wanted.operands[0] = last;
  return true;
}

[[gnu::hot]] PyObject* MethodCall(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const Entry&>(own);
  if (args[static_cast<size_t>(entry.shape.nin) - 1] == nullptr) return nullptr;  // left out
  PyObject* const out = Given(args, entry.out_at);
  PyObject* where = ArgumentAt(args, entry.where_at);
  if (where == Py_True) where = nullptr;
  PyObject* asked = ArgumentAt(args, entry.wrt_at);
  if (asked != nullptr && PyUnicode_CheckExact(asked) &&
      PyUnicode_CompareWithASCIIString(asked, "all") == 0) {
    asked = nullptr;
  }
  if (out == nullptr && where == nullptr && asked == nullptr) {
    PyObject* const result = RunPlain(entry, args.data());
    if (result != nullptr || PyErr_Occurred() != nullptr) return result;
  }
  PlainOperands x;
  if (!x.Take(args.data(), static_cast<size_t>(entry.shape.nin), Strides::kAsStored)) {
    return nullptr;
  }
  Job job(entry, x);
  if (asked != nullptr) {
    const std::optional<Wrt> wrt =
        entry.signature.ReadWrt(asked, static_cast<size_t>(entry.shape.nout));
    if (!wrt) return nullptr;
    job.wanted = *wrt;
  }
  if (!FollowsRules(job, args) || !job.Broadcast()) return nullptr;
  return job.Run(out, where);
}

// The Jacobians by the operands that wrt= asks for, of their derivatives.
PyObject* JacobianCall(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const Entry&>(own);
  const auto arity = static_cast<size_t>(entry.arity);
  PlainOperands x;
  if (args[arity - 1] == nullptr || !x.Take(args.data(), arity, Strides::kAsStored)) return nullptr;
  PyObject* const asked = ArgumentAt(args, entry.wrt_at);
  std::optional<Wrt> wrt;
  if (asked != nullptr) {
    wrt = entry.signature.ReadWrt(asked, arity);
    if (!wrt) return nullptr;
  }
  std::array<Ref, 2> slopes;
  if (const Ref plain(wrt ? nullptr : RunPlain(entry, args.data())); plain) {
    for (size_t k = 0; k < arity; ++k) {
      PyObject* const one = arity == 1 ? plain.get() : PyTuple_GET_ITEM(plain.get(), k);
      slopes[k] = Ref(Py_NewRef(one));
    }
  } else {
    if (PyErr_Occurred() != nullptr) return nullptr;
    Job job(entry, x);
    if (wrt) job.wanted = *wrt;
    if (!job.Broadcast() || !job.AskFor({}) || !job.Compute()) return nullptr;
    for (size_t i = 0; i < job.count; ++i) {
      slopes[job.wanted.operands[i]] = Ref(job.outputs.ReleaseArray(i));
    }
  }
  std::array<Ref, 2> jacobians;
  for (size_t k = 0; k < arity; ++k) {
    if (!slopes[k]) continue;
    jacobians[k] = JacobianOfElements(std::move(slopes[k]), Extents(x[k]));
    if (!jacobians[k]) return nullptr;
  }
  if (wrt) return wrt->Pack(jacobians.data());
  return arity == 1 ? jacobians[0].release()
                    : Pair(std::move(jacobians[0]), std::move(jacobians[1]));
}

// What NumPy hands over in buffered or short pieces is ours: with a given output, which NumPy may
// see in fewer steps, from this many elements on.
constexpr size_t kOwnElements = kParallelElements;

// Conversions, broadcasting, odd layouts.
PyObject* RunAny(const Entry& entry, PyObject* const* args, PyObject* out) {
  const auto nin = static_cast<size_t>(entry.shape.nin);
  PlainOperands x;
  const auto is_ours = [](PyObject* arg) { return PyArray_CheckExact(arg) || IsWeak(arg); };
  if (!std::all_of(args, args + nin, is_ours) || !x.Take(args, nin, Strides::kAsStored)) {
    return nullptr;
  }
  Job job(entry, x);
  return job.Broadcast() && (out == nullptr || job.shape.Size() >= kOwnElements) ? job.Run(out)
                                                                                 : nullptr;
}

// What NumPy would have done with a ufunc's call.
vectorcallfunc numpy_call = nullptr;

// NumPy's messages about shapes and outputs do not name the operation. An exception that has a
// traceback is not NumPy's: it comes from Python code, such as an operand's __array__.
void NameOperation(const Entry& entry, PyObject* const* args, size_t nargs) {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  const bool overflow = type == PyExc_OverflowError;
  if (traceback != nullptr || (!overflow && type != PyExc_TypeError && type != PyExc_ValueError)) {
    PyErr_Restore(type, value, traceback);
    return;
  }
  for (size_t i = 0; overflow && i < std::min(nargs, static_cast<size_t>(entry.shape.nin)); ++i) {
    if (!PyLong_Check(args[i])) continue;
    PyLong_AsDouble(args[i]);
    if (PyErr_Occurred() == nullptr) continue;
    PyErr_Format(PyExc_TypeError, "%s: argument %s is an integer too large for float64",
                 entry.label.c_str(), entry.ArgumentName(static_cast<int>(i)).c_str());
    Py_DECREF(type);
    Py_XDECREF(value);
    return;
  }
  const Ref text(value == nullptr || overflow ? nullptr : PyObject_Str(value));
  PyErr_Clear();
  const char* const said = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  std::string message = said == nullptr ? "" : said;
  if (message.empty() || message.starts_with(entry.label)) {
    PyErr_Restore(type, value, traceback);
    return;
  }
  const size_t at = message.find(entry.name);  // which may be a private one
  if (at == std::string::npos) {
    message.insert(0, entry.label + ": ");
  } else {
    message.replace(at, entry.name.size(), entry.label);
  }
  PyErr_SetString(type, message.c_str());
  Py_DECREF(type);
  Py_XDECREF(value);
}

// Whether NumPy and the promoter do with an argument what has to be done: no code of the caller's
// runs, and nothing is hidden or lost.
bool IsKnown(PyObject* object) {
  if (PyArray_CheckExact(object)) return ElementOf(PyArray_TYPE(AsArray(object))).has_value();
  if (PyLong_CheckExact(object)) {
    int overflow;
    PyLong_AsLongAndOverflow(object, &overflow);
    return overflow == 0;
  }
  return PyFloat_CheckExact(object) || PyBool_Check(object) || PyArray_IsScalar(object, Integer) ||
         PyArray_IsScalar(object, Double) || PyArray_IsScalar(object, Float) ||
         PyArray_IsScalar(object, Half) || PyArray_IsScalar(object, Bool);
}

bool IsKnownOption(PyObject* object) { return object == Py_None || IsKnown(object); }

// A call's operands as NumPy is to see them, a tuple; null, perhaps with an exception set, where
// they are that as they were given.
Ref Admitted(const Entry& entry, PyObject* const* args, size_t nargs, PyObject* kwnames) {
  const auto nin = static_cast<size_t>(entry.shape.nin);
  const size_t keywords = kwnames == nullptr ? 0 : static_cast<size_t>(PyTuple_GET_SIZE(kwnames));
  if (!entry.door || nargs < nin) return Ref();
  const bool known_options = std::all_of(args + nin, args + nargs + keywords, IsKnownOption);
  if (known_options && std::all_of(args, args + nin, IsKnown)) return Ref();
  Ref operands(PyTuple_New(static_cast<Py_ssize_t>(nin)));
  Ref out(nargs > nin ? PyTuple_New(static_cast<Py_ssize_t>(nargs - nin)) : Py_NewRef(Py_None));
  if (!operands || !out) return Ref();
  bool known = known_options;
  for (size_t k = 0; k < nargs; ++k) {
    const bool is_list = k < nin && (PyList_CheckExact(args[k]) || PyTuple_CheckExact(args[k]));
    Ref operand(is_list ? AsPlainArray(args[k]) : Ref());
    if (PyErr_Occurred() != nullptr) return Ref();
    known = known && (operand || k >= nin || IsKnown(args[k]));
    PyTuple_SET_ITEM((k < nin ? operands : out).get(),
                     static_cast<Py_ssize_t>(k < nin ? k : k - nin),
                     operand ? operand.release() : Py_NewRef(args[k]));
  }
  if (known) return operands;
  PyObject* where = Py_True;
  for (size_t k = 0; k < keywords; ++k) {
    PyObject* const name = PyTuple_GET_ITEM(kwnames, static_cast<Py_ssize_t>(k));
    if (PyUnicode_CompareWithASCIIString(name, "out") == 0) out = Ref(Py_NewRef(args[nargs + k]));
    if (PyUnicode_CompareWithASCIIString(name, "where") == 0) where = args[nargs + k];
  }
  Ref admitted(
      PyObject_CallFunctionObjArgs(entry.door.get(), operands.get(), out.get(), where, nullptr));
  if (admitted && (!PyTuple_CheckExact(admitted.get()) ||
                   PyTuple_GET_SIZE(admitted.get()) != static_cast<Py_ssize_t>(nin))) {
    PyErr_Format(PyExc_TypeError, "%s: the door returned %R", entry.label.c_str(), admitted.get());
    return Ref();
  }
  return admitted;
}

PyObject* NumpyCall(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  const Entry& entry = EntryOf(self);
  const auto nargs = static_cast<size_t>(PyVectorcall_NARGS(nargsf));
  std::vector<PyObject*> all;
  const Ref admitted = Admitted(entry, args, nargs, kwnames);
  if (admitted) {
    const auto keywords = kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames);
    all.assign(args, args + nargs + static_cast<size_t>(keywords));
    std::copy_n(&PyTuple_GET_ITEM(admitted.get(), 0), entry.shape.nin, all.begin());
    args = all.data();
    nargsf = nargs;  // nothing is to be written in front of them
  } else if (PyErr_Occurred() != nullptr) {
    return nullptr;
  }
  PyObject* const result = numpy_call(self, args, nargsf, kwnames);
  if (result == nullptr) NameOperation(entry, args, nargs);
  return result;
}

// out=array: what was given, else nothing; false for any other keyword.
bool OnlyOut(PyObject* kwnames, PyObject* const* keywords, PyObject** out) {
  *out = nullptr;
  if (kwnames == nullptr || PyTuple_GET_SIZE(kwnames) == 0) return true;
  if (PyTuple_GET_SIZE(kwnames) != 1 ||
      PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "out") != 0) {
    return false;
  }
  if (keywords[0] != Py_None) *out = keywords[0];
  return true;
}

PyObject* UfuncCall(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  const Entry& entry = EntryOf(self);
  PyObject* result = nullptr;
  PyObject* out;
  const auto nargs = static_cast<size_t>(PyVectorcall_NARGS(nargsf));
  if (nargs == static_cast<size_t>(entry.shape.nin) && OnlyOut(kwnames, args + nargs, &out)) {
    if (out == nullptr) result = RunPlain(entry, args);
    if (result == nullptr && PyErr_Occurred() == nullptr) result = RunAny(entry, args, out);
  }
  if (result != nullptr || PyErr_Occurred() != nullptr) return result;
  if (!entry.last || nargs + 1 != static_cast<size_t>(entry.shape.nin)) {
    return NumpyCall(self, args, nargsf, kwnames);
  }
  std::vector<PyObject*> all(args, args + nargs);
  all.push_back(entry.last.get());
  if (kwnames != nullptr) {
    all.insert(all.end(), args + nargs, args + nargs + PyTuple_GET_SIZE(kwnames));
  }
  return UfuncCall(self, all.data(), nargs + 1, kwnames);
}

}  // namespace

PyObject* NewUfunc(const char* op, const char* method, const char* name, const char* doc,
                   PyObject* door, PyObject* last) {
  std::unique_ptr<Entry> entry = NewEntry(op, method, name, doc);
  if (!entry) return nullptr;
  if (last != Py_None) entry->last = Ref(Py_NewRef(last));
  if (door != Py_None) entry->door = Ref(Py_NewRef(door));
  Ref ufunc(PyUFunc_FromFuncAndData(nullptr, entry->self, nullptr, 0, entry->shape.nin,
                                    entry->Outputs(), PyUFunc_None, entry->name.c_str(),
                                    entry->doc.c_str(), 0));
  if (!ufunc || !AddLoop(ufunc.get(), *entry, DType::kFloat32) ||
      !AddLoop(ufunc.get(), *entry, DType::kFloat64) || !AddPromoter(ufunc.get(), *entry)) {
    return nullptr;
  }
  auto* const object = reinterpret_cast<PyUFuncObject*>(ufunc.get());
  // Parts serve operands that no kernel knows; results of several outputs nest in a Method only.
  numpy_call = object->vectorcall;
  object->vectorcall =
      entry->part < 0 && entry->shape.nout == 1 ? Guarded<UfuncCall> : Guarded<NumpyCall>;
  object->obj = OwnerOf(std::move(entry)).release();  // let go of when the ufunc is
  return object->obj == nullptr ? nullptr : ufunc.release();
}

const OpKernels* UnaryOpOf(PyObject* object) {
  if (PyUnicode_CheckExact(object)) {
    Py_ssize_t length = 0;
    const char* const name = PyUnicode_AsUTF8AndSize(object, &length);
    if (name == nullptr) PyErr_Clear();  // half a surrogate: a name of nothing
    const OpKernels* const op =
        name == nullptr ? nullptr : FindOp({name, static_cast<size_t>(length)});
    return op != nullptr && op->arity == 1 ? op : nullptr;
  }
  if (!PyObject_TypeCheck(object, &PyUFunc_Type)) return nullptr;
  if (reinterpret_cast<PyUFuncObject*>(object)->vectorcall != Guarded<UfuncCall>) return nullptr;
  const Entry& entry = EntryOf(object);
  return entry.method == Method::kValue && entry.shape.nin == 1 ? entry.op.Active() : nullptr;
}

PyObject* NewElementwiseMethod(const char* op, const char* method, PyObject* fallback) {
  const bool is_jacobian = std::string_view(method) == "jacobian";
  std::unique_ptr<Entry> entry = NewEntry(op, is_jacobian ? "derivative" : method, method, "");
  if (!entry) return nullptr;
  if (!entry->signature.Read(fallback, static_cast<size_t>(entry->arity) - 1)) return nullptr;
  entry->out_at = entry->signature.Find("out");
  entry->where_at = entry->signature.Find("where");
  if (entry->arity > 1 || entry->shape.nout > 1) entry->wrt_at = entry->signature.Find("wrt");
  return NewMethod(is_jacobian ? JacobianCall : MethodCall, std::move(entry), fallback);
}

}  // namespace pullback

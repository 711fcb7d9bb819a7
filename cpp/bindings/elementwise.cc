// Rows of the op table as NumPy ufuncs, and their multi-output methods as fast callables.
#include "bindings/elementwise.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "bindings/call.h"
#include "bindings/method.h"
#include "bindings/operands.h"
#include "bindings/results.h"
#include "kernels/broadcast.h"
#include "kernels/elementwise.h"
#include "kernels/storage.h"

namespace pullback {
namespace {

// More elements than this are computed without the GIL.
constexpr npy_intp kReleaseGil = 4096;

using Kernels = std::array<ElementwiseKernel, kDTypes>;

struct Entry : MethodEntry {
  std::string label, name, doc;  // label: for messages, such as "multiply.vjp"
  Method method;
  MethodShape shape;  // of the kernel
  int part;           // the one output that is wanted, or -1 for all of them
  PerTarget<Kernels> kernels;
  void* self[1];  // what the ufunc carries as its user data

  ElementwiseKernel Kernel(DType dtype) const {
    return kernels.Active()[static_cast<size_t>(dtype)];
  }

  // Primals x, or w and x; then the cotangent g, the tangent t, or the tangents tw and tx.
  std::string ArgumentName(int i) const {
    const int arity =
        method == Method::kJvp ? shape.nin / 2 : shape.nin - (method == Method::kVjp ? 1 : 0);
    const std::string primal = arity == 2 && i % 2 == 0 ? "w" : "x";
    if (i < arity) return primal;
    if (method != Method::kJvp) return "g";
    return arity == 2 ? "t" + primal : "t";
  }

  int Outputs() const { return part < 0 ? shape.nout : 1; }
};

constexpr std::pair<std::string_view, Method> kMethodNames[] = {
    {"value", Method::kValue},
    {"derivative", Method::kDerivative},
    {"value_and_derivative", Method::kValueAndDerivative},
    {"vjp", Method::kVjp},
    {"jvp", Method::kJvp},
};

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
  if (!wanted.empty() && (wanted.back() == '0' || wanted.back() == '1')) {
    part = wanted.back() - '0';
    wanted.remove_suffix(1);
  }
  for (const auto& [candidate, method] : kMethodNames) {
    if (candidate != wanted) continue;
    const MethodShape shape = ShapeOf(method, op.Active()->arity);
    if (part >= shape.nout) break;
    auto entry = std::make_unique<Entry>();
    entry->label = op_name;
    if (method != Method::kValue) entry->label.append(".").append(wanted);
    entry->name = name;
    entry->doc = doc;
    entry->method = method;
    entry->shape = shape;
    entry->part = part;
    entry->kernels = op.Map([which = static_cast<size_t>(method)](const OpKernels* row) {
      Kernels kernels{};
      if (row != nullptr) std::copy_n(row->kernel[which], kDTypes, kernels.begin());
      return kernels;
    });
    entry->self[0] = entry.get();
    return entry;
  }
  PyErr_Format(PyExc_KeyError, "op '%s' has no method '%s'", op_name, method_name);
  return nullptr;
}

// --- ufuncs --------------------------------------------------------------------------------------

// Elements between two looks at the clock when NumPy hands a long call over in small pieces.
constexpr size_t kPollElements = size_t{1} << 16;

template <DType kDType>
int StridedLoop(PyArrayMethod_Context* context, char* const* data, const npy_intp* dimensions,
                const npy_intp* strides, NpyAuxData*) {
  const auto* const ufunc = reinterpret_cast<PyUFuncObject*>(context->caller);
  const auto* const entry = static_cast<const Entry*>(ufunc->data[0]);
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
  Outcome outcome;
  if (poll_now) {
    thread_local Poll poll = SignalPoll();
    outcome = RunElementwise(entry->Kernel(kDType), entry->shape, kDType, operands, n, &poll);
    if (outcome == Outcome::kDone && Interrupted(&poll)) outcome = Outcome::kInterrupted;
  } else {
    outcome = RunElementwise(entry->Kernel(kDType), entry->shape, kDType, operands, n, nullptr);
  }
  return outcome == Outcome::kDone ? 0 : -1;
}

// The dtype rule: bool, 8- and 16-bit integers and float16 compute in float32, wider integers in
// float64, Python's int and float take the others' dtype; anything else has no kernel.
int Promote(PyObject* caller, PyArray_DTypeMeta* const op_dtypes[],
            PyArray_DTypeMeta* const signature[], PyArray_DTypeMeta* new_op_dtypes[]) {
  const auto* const ufunc = reinterpret_cast<PyUFuncObject*>(caller);
  const auto* const entry = static_cast<const Entry*>(ufunc->data[0]);
  enum { kWeak, kSingle, kDouble } level = kWeak;
  const auto refuse = [&](const std::string& what, PyArray_DTypeMeta* dtype) {
    // A class of dtypes has an instance to show, unless it is abstract.
    auto* const shown = dtype->singleton == nullptr ? reinterpret_cast<PyObject*>(dtype)
                                                    : reinterpret_cast<PyObject*>(dtype->singleton);
    PyErr_Format(PyExc_TypeError,
                 "%s: %s %S, for which there is no kernel; it takes bool, integers, float16, "
                 "float32 and float64",
                 entry->label.c_str(), what.c_str(), shown);
    return -1;
  };
  for (int i = 0; i < ufunc->nin; ++i) {
    PyArray_DTypeMeta* const dtype = op_dtypes[i];
    if (dtype == &PyArray_PyLongDType || dtype == &PyArray_PyFloatDType) continue;
    switch (dtype->type_num) {
      case NPY_BOOL:
      case NPY_BYTE:
      case NPY_UBYTE:
      case NPY_SHORT:
      case NPY_USHORT:
      case NPY_HALF:
      case NPY_FLOAT:
        if (level == kWeak) level = kSingle;
        break;
      case NPY_INT:
      case NPY_UINT:
      case NPY_LONG:
      case NPY_ULONG:
      case NPY_LONGLONG:
      case NPY_ULONGLONG:
      case NPY_DOUBLE:
        level = kDouble;
        break;
      default:
        return refuse("argument " + entry->ArgumentName(i) + " has dtype", dtype);
    }
  }
  PyArray_DTypeMeta* chosen = level == kSingle ? &PyArray_FloatDType : &PyArray_DoubleDType;
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

// What NumPy hands over in buffered or short pieces is ours from this many elements on.
constexpr size_t kOwnElements = kParallelElements;

// y; (y, dy) of a unary op, (y, (dw, dx)) of a binary one; (dw, dx) without the value. 0-d arrays
// become scalars, as ufuncs have it, unless they were given.
PyObject* Pack(std::array<Ref, 3>& outputs, const std::array<bool, 3>& given, size_t count) {
  std::array<PyObject*, 3> result{};
  for (size_t k = 0; k < count; ++k) {
    PyObject* const output = outputs[k].release();
    result[k] = given[k] ? output : PyArray_Return(reinterpret_cast<PyArrayObject*>(output));
  }
  if (count == 1) return result[0];
  if (count == 2) return Py_BuildValue("(NN)", result[0], result[1]);
  return Py_BuildValue("(N(NN))", result[0], result[1], result[2]);
}

// Arrays of one dtype and one shape, all C-contiguous: that is, no conversion and no broadcasting.
PyObject* RunPlain(const Entry& entry, PyObject* const* args) {
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
    if (KernelArray(args[k]) != dtype || !PyArray_SAMESHAPE(first, array) ||
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
  const npy_intp n = PyArray_SIZE(first);
  const bool done = RunKernel(n > kReleaseGil, [&](Poll* poll) {
    return RunElementwise(entry.Kernel(*dtype), entry.shape, *dtype, operands,
                          static_cast<size_t>(n), poll);
  });
  return done ? Pack(outputs, {}, nout) : nullptr;
}

struct Shape {
  int ndim = 0;
  std::array<npy_intp, kMaxAxes> extent;

  // False where the two do not broadcast.
  bool Broadcast(PyArrayObject* array) {
    const int more = PyArray_NDIM(array) - ndim;
    if (more > 0) {
      std::copy_backward(extent.begin(), extent.begin() + ndim, extent.begin() + ndim + more);
      std::fill_n(extent.begin(), more, npy_intp{1});
      ndim += more;
    }
    npy_intp* const last = extent.data() + (ndim - PyArray_NDIM(array));
    for (int a = 0; a < PyArray_NDIM(array); ++a) {
      const npy_intp dim = PyArray_DIM(array, a);
      if (last[a] == 1) last[a] = dim;
      if (dim != 1 && dim != last[a]) return false;
    }
    return true;
  }

  size_t Size() const {
    size_t size = 1;
    for (int a = 0; a < ndim; ++a) size *= static_cast<size_t>(extent[static_cast<size_t>(a)]);
    return size;
  }

  bool operator==(const Shape& other) const {
    return ndim == other.ndim &&
           std::equal(extent.begin(), extent.begin() + ndim, other.extent.begin());
  }
};

// An array against the axes of a call, its first `batch` axes to the left, the others to the right;
// 0 steps where it is repeated. An output also has 0 where it is summed.
void SetOperand(ArrayCall& call, size_t k, PyArrayObject* array, Storage storage, int batch = 0) {
  ArrayOperand& operand = call.operand[k];
  operand.data = PyArray_BYTES(array);
  operand.storage = storage;
  const int missing = call.axes - PyArray_NDIM(array);
  for (int a = 0; a < call.axes; ++a) {
    const int axis = a < batch ? a : a - missing;
    operand.stride[a] = axis < 0 || (a >= batch && axis < batch) || PyArray_DIM(array, axis) == 1
                            ? 0
                            : PyArray_STRIDE(array, axis);
  }
}

// Whether writing `out` may change what is yet to be read of `in`.
bool Disturbs(PyArrayObject* out, PyArrayObject* in) {
  if (!Overlap(out, in)) return false;
  return PyArray_BYTES(out) != PyArray_BYTES(in) || PyArray_TYPE(out) != PyArray_TYPE(in) ||
         !PyArray_ISNOTSWAPPED(in) || !PyArray_SAMESHAPE(out, in) ||
         !std::equal(PyArray_STRIDES(out), PyArray_STRIDES(out) + PyArray_NDIM(out),
                     PyArray_STRIDES(in));
}

// A given output that can take the results where it lies.
bool TakesResults(PyObject* object, DType dtype, const Shape& shape) {
  if (KernelArray(object) != dtype) return false;
  PyArrayObject* const array = AsArray(object);
  return PyArray_ISWRITEABLE(array) && ElementsApart(array) && PyArray_NDIM(array) == shape.ndim &&
         std::equal(PyArray_DIMS(array), PyArray_DIMS(array) + shape.ndim, shape.extent.begin());
}

// In the memory order that NumPy would choose for these inputs.
Ref NewLikeInputs(PyObject* const* args, size_t nin, size_t size, DType dtype) {
  const KeptMemoryScope scope(static_cast<npy_intp>(size), dtype);
  std::array<PyArrayObject*, kMaxOperands> arrays{};
  std::array<npy_uint32, kMaxOperands> flags{};
  std::array<PyArray_Descr*, kMaxOperands> descrs{};
  for (size_t k = 0; k < nin; ++k) {
    arrays[k] = AsArray(args[k]);
    flags[k] = NPY_ITER_READONLY;
  }
  const Ref descr(reinterpret_cast<PyObject*>(PyArray_DescrFromType(TypeNumber(dtype))));
  flags[nin] = NPY_ITER_WRITEONLY | NPY_ITER_ALLOCATE;
  descrs[nin] = reinterpret_cast<PyArray_Descr*>(descr.get());
  NpyIter* const iterator =
      NpyIter_MultiNew(static_cast<int>(nin + 1), arrays.data(), 0, NPY_KEEPORDER, NPY_NO_CASTING,
                       flags.data(), descrs.data());
  if (iterator == nullptr) return Ref();
  Ref array(Py_NewRef(reinterpret_cast<PyObject*>(NpyIter_GetOperandArray(iterator)[nin])));
  NpyIter_Deallocate(iterator);
  return array;
}

// Arrays of any number type and layout that broadcast, as they lie in memory.
struct Inputs {
  size_t nin;
  std::array<Storage, kMaxOperands> storage;
  DType dtype = DType::kFloat32;
  Shape shape;  // of all inputs together

  // False: not all of them are plain arrays that broadcast.
  bool Read(PyObject* const* args, size_t count) {
    nin = count;
    for (size_t k = 0; k < nin; ++k) {
      if (!PyArray_CheckExact(args[k])) return false;
      const std::optional<Storage> known = StorageOfArray(AsArray(args[k]));
      if (!known) return false;
      storage[k] = *known;
      if (ComputeType(known->element) == DType::kFloat64) dtype = DType::kFloat64;
    }
    for (size_t k = 0; k < nin; ++k) {
      if (!shape.Broadcast(AsArray(args[k]))) return false;
    }
    return true;
  }
};

bool Run(const Entry& entry, const Inputs& in, PyObject* const* args,
         const std::array<Ref, 3>& outputs, int batch = 0) {
  ArrayCall call;
  call.kernel = entry.Kernel(in.dtype);
  call.shape = entry.shape;
  call.dtype = in.dtype;
  call.axes = in.shape.ndim;
  const size_t size = in.shape.Size();
  for (int a = 0; a < call.axes; ++a) {
    call.extent[a] = static_cast<size_t>(in.shape.extent[static_cast<size_t>(a)]);
  }
  for (size_t k = 0; k < in.nin; ++k) SetOperand(call, k, AsArray(args[k]), in.storage[k]);
  for (size_t k = 0; k < static_cast<size_t>(entry.shape.nout); ++k) {
    SetOperand(call, in.nin + k, AsArray(outputs[k].get()), StorageOf(in.dtype), batch);
  }
  return RunKernel(size > static_cast<size_t>(kReleaseGil),
                   [&](Poll* poll) { return RunArrays(call, poll); });
}

// The arrays that out= holds, nested as the results are or flat; none for null. False for anything
// else.
bool FlatOuts(PyObject* out, size_t nout, std::array<PyObject*, 3>& flat) {
  flat.fill(nullptr);
  if (out == nullptr) return true;
  if (nout == 1) {
    flat[0] = out;
    return true;
  }
  size_t count = 0;
  const auto add = [&](const auto& self, PyObject* tree) -> bool {
    if (PyTuple_CheckExact(tree)) {
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tree); ++i) {
        if (!self(self, PyTuple_GET_ITEM(tree, i))) return false;
      }
      return true;
    }
    if (count == nout) return false;
    flat[count++] = tree == Py_None ? nullptr : tree;
    return true;
  };
  return PyTuple_CheckExact(out) && add(add, out) && count == nout;
}

// Conversions, broadcasting, odd layouts: what NumPy would hand over in pieces.
PyObject* RunLong(const Entry& entry, PyObject* const* args, PyObject* out) {
  const auto nin = static_cast<size_t>(entry.shape.nin);
  const auto nout = static_cast<size_t>(entry.shape.nout);
  std::array<PyObject*, 3> given;
  Inputs in;
  if (!FlatOuts(out, nout, given) || !in.Read(args, nin) || in.shape.Size() == 0) return nullptr;
  std::array<Ref, 3> outputs;
  for (size_t o = 0; o < nout; ++o) {
    if (given[o] == nullptr) continue;
    if (!TakesResults(given[o], in.dtype, in.shape)) return nullptr;
    for (size_t k = 0; k < nin; ++k) {
      if (Disturbs(AsArray(given[o]), AsArray(args[k]))) return nullptr;
    }
    for (size_t k = 0; k < o; ++k) {
      if (given[k] != nullptr && Overlap(AsArray(given[o]), AsArray(given[k]))) return nullptr;
    }
    outputs[o] = Ref(Py_NewRef(given[o]));
  }
  for (size_t o = 0; o < nout; ++o) {
    if (outputs[o]) continue;
    outputs[o] = NewLikeInputs(args, nin, in.shape.Size(), in.dtype);
    if (!outputs[o]) return nullptr;
  }
  if (!Run(entry, in, args, outputs)) return nullptr;
  return Pack(outputs, {given[0] != nullptr, given[1] != nullptr, given[2] != nullptr}, nout);
}

// What was given as out=, which stands behind the operands.
PyObject* OutOf(const Entry& entry, const Arguments& args) {
  PyObject* const out = args[static_cast<size_t>(entry.shape.nin)];
  return out == Py_None ? nullptr : out;
}

// call(arrays) with numbers and lists made arrays.
template <class Call>
PyObject* WithArrays(PyObject* const* args, size_t count, const Call& call) {
  if (std::all_of(args, args + count, [](PyObject* arg) { return PyArray_CheckExact(arg); })) {
    return call(args);
  }
  PlainOperands x;
  if (!x.Take(args, count, Strides::kAny)) return nullptr;
  std::array<PyObject*, kMaxOperands> arrays;
  for (size_t k = 0; k < count; ++k) {
    if (x[k] == nullptr) return nullptr;
    arrays[k] = reinterpret_cast<PyObject*>(x[k]);
  }
  return call(arrays.data());
}

PyObject* MultiOutput(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const Entry&>(own);
  PyObject* const out = OutOf(entry, args);
  if (out == nullptr) {
    PyObject* const result = RunPlain(entry, args.data());
    if (result != nullptr || PyErr_Occurred() != nullptr) return result;
  }
  return WithArrays(args.data(), static_cast<size_t>(entry.shape.nin),
                    [&](PyObject* const* arrays) { return RunLong(entry, arrays, out); });
}

// A binary op's cotangents, each summed back to its operand's shape behind the batch axes of g.
PyObject* PullBack(const Entry& entry, PyObject* const* args, PyObject* out) {
  Inputs in;
  if (!in.Read(args, 3)) return nullptr;
  Shape value;
  if (!value.Broadcast(AsArray(args[0])) || !value.Broadcast(AsArray(args[1]))) return nullptr;
  PyArrayObject* const g = AsArray(args[2]);
  const int batch = PyArray_NDIM(g) - value.ndim;
  if (batch < 0 || !std::equal(value.extent.begin(), value.extent.begin() + value.ndim,
                               PyArray_DIMS(g) + batch)) {
    return nullptr;
  }
  std::array<Ref, 3> outputs;
  for (size_t k = 0; k < 2; ++k) {
    Shape shape;  // of the cotangent
    PyArrayObject* const operand = AsArray(args[k]);
    shape.ndim = batch + PyArray_NDIM(operand);
    if (shape.ndim > kMaxAxes) return nullptr;
    std::copy_n(PyArray_DIMS(g), batch, shape.extent.begin());
    std::copy_n(PyArray_DIMS(operand), PyArray_NDIM(operand), shape.extent.begin() + batch);
    const bool summed = shape.Size() != in.shape.Size();
    if (out != nullptr) {
      PyObject* const given = PyTuple_GET_ITEM(out, static_cast<Py_ssize_t>(k));
      if (given == Py_None || !TakesResults(given, in.dtype, shape)) return nullptr;
      if (summed && !PyArray_IS_C_CONTIGUOUS(AsArray(given))) return nullptr;
      for (size_t i = 0; i < 3; ++i) {
        if (summed ? Overlap(AsArray(given), AsArray(args[i]))
                   : Disturbs(AsArray(given), AsArray(args[i]))) {
          return nullptr;
        }
      }
      outputs[k] = Ref(Py_NewRef(given));
    } else if (shape == in.shape && in.shape.Size() != 0) {
      outputs[k] = NewLikeInputs(args, 3, in.shape.Size(), in.dtype);
    } else {
      outputs[k] = Ref(in.shape.Size() == 0
                           ? PyArray_ZEROS(shape.ndim, shape.extent.data(), TypeNumber(in.dtype), 0)
                           : NewArray(shape.ndim, shape.extent.data(), in.dtype));
    }
    if (!outputs[k]) return nullptr;
  }
  if (in.shape.Size() == 0) return out == nullptr ? Pack(outputs, {}, 2) : nullptr;
  if (out != nullptr && Overlap(AsArray(outputs[0].get()), AsArray(outputs[1].get()))) {
    return nullptr;
  }
  const bool given = out != nullptr;
  return Run(entry, in, args, outputs, batch) ? Pack(outputs, {given, given, given}, 2) : nullptr;
}

PyObject* BinaryVjp(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const Entry&>(own);
  PyObject* const out = OutOf(entry, args);
  if (out == nullptr) {
    PyObject* const result = RunPlain(entry, args.data());
    if (result != nullptr || PyErr_Occurred() != nullptr) return result;
  } else if (!PyTuple_CheckExact(out) || PyTuple_GET_SIZE(out) != 2) {
    return nullptr;
  }
  return WithArrays(args.data(), 3,
                    [&](PyObject* const* arrays) { return PullBack(entry, arrays, out); });
}

// Whether NumPy would hand a call's elements over in pieces that cost more than our own walk.
bool IsLong(const Entry& entry, PyObject* const* args) {
  Inputs in;
  return in.Read(args, static_cast<size_t>(entry.shape.nin)) && in.shape.Size() >= kOwnElements;
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
  if (said == nullptr || std::string_view(said).starts_with(entry.label) ||
      std::string_view(said).find(entry.name) != std::string_view::npos) {
    PyErr_Restore(type, value, traceback);
    return;
  }
  PyErr_Format(type, "%s: %s", entry.label.c_str(), said);
  Py_DECREF(type);
  Py_XDECREF(value);
}

PyObject* NumpyCall(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  PyObject* const result = numpy_call(self, args, nargsf, kwnames);
  if (result == nullptr) {
    const auto* const ufunc = reinterpret_cast<PyUFuncObject*>(self);
    NameOperation(*static_cast<const Entry*>(ufunc->data[0]), args,
                  static_cast<size_t>(PyVectorcall_NARGS(nargsf)));
  }
  return result;
}

PyObject* UfuncCall(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  const auto* const ufunc = reinterpret_cast<PyUFuncObject*>(self);
  const auto& entry = *static_cast<const Entry*>(ufunc->data[0]);
  PyObject* result = nullptr;
  PyObject* out;
  const auto nargs = static_cast<size_t>(PyVectorcall_NARGS(nargsf));
  if (nargs == static_cast<size_t>(entry.shape.nin) && OnlyOut(kwnames, args + nargs, &out)) {
    if (out == nullptr) result = RunPlain(entry, args);
    const bool next = result == nullptr && PyErr_Occurred() == nullptr;
    if (next && IsLong(entry, args)) result = RunLong(entry, args, out);
  }
  if (result != nullptr || PyErr_Occurred() != nullptr) return result;
  return NumpyCall(self, args, nargsf, kwnames);
}

}  // namespace

PyObject* NewUfunc(const char* op, const char* method, const char* name, const char* doc) {
  std::unique_ptr<Entry> entry = NewEntry(op, method, name, doc);
  if (!entry) return nullptr;
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
  object->vectorcall = entry->part < 0 && entry->shape.nout == 1 ? UfuncCall : NumpyCall;
  object->obj = OwnerOf(std::move(entry)).release();  // let go of when the ufunc is
  return object->obj == nullptr ? nullptr : ufunc.release();
}

const OpKernels* UnaryOpOf(PyObject* object) {
  if (!PyObject_TypeCheck(object, &PyUFunc_Type)) return nullptr;
  const auto* const ufunc = reinterpret_cast<PyUFuncObject*>(object);
  if (ufunc->vectorcall != UfuncCall) return nullptr;
  const auto& entry = *static_cast<const Entry*>(ufunc->data[0]);
  return entry.method == Method::kValue && entry.shape.nin == 1 ? FindOp(entry.label) : nullptr;
}

PyObject* NewMultiOutputMethod(const char* op, const char* method, PyObject* fallback) {
  std::unique_ptr<Entry> entry = NewEntry(op, method, method, "");
  if (!entry) return nullptr;
  if (!entry->signature.Read(fallback, static_cast<size_t>(entry->shape.nin))) return nullptr;
  const FastPath path = entry->method == Method::kVjp ? BinaryVjp : MultiOutput;
  return NewMethod(path, std::move(entry), fallback);
}

}  // namespace pullback

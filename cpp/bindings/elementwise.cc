// Rows of the op table as NumPy ufuncs, and their multi-output methods as fast callables.
#include "bindings/elementwise.h"

#include <array>
#include <atomic>
#include <deque>
#include <string>
#include <string_view>

#include "bindings/interrupt.h"
#include "bindings/method.h"
#include "kernels/elementwise.h"

namespace pullback {
namespace {

// More elements than this are computed without the GIL.
constexpr npy_intp kReleaseGil = 4096;

struct Entry {
  std::string op, label, name, doc;  // label: for messages, such as "multiply.vjp"
  Method method;
  MethodShape shape;  // of the kernel
  int part;           // the one output that is wanted, or -1 for all of them
  ElementwiseKernel kernel[kDTypes];
  void* self[1];  // what the ufunc carries as its user data

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

// Never shrinks: ufuncs and Methods point into it.
std::deque<Entry>& Entries() {
  static auto* const entries = new std::deque<Entry>;
  return *entries;
}

constexpr std::pair<std::string_view, Method> kMethodNames[] = {
    {"value", Method::kValue},
    {"derivative", Method::kDerivative},
    {"value_and_derivative", Method::kValueAndDerivative},
    {"vjp", Method::kVjp},
    {"jvp", Method::kJvp},
};

const OpKernels* FindOp(std::string_view name) {
  for (size_t shard = 0; shard < kOpShards; ++shard) {
    for (const OpKernels& op : Ops(shard)) {
      if (op.name == name) return &op;
    }
  }
  return nullptr;
}

void FetchKernels(Entry& entry) {
  const OpKernels* const op = FindOp(entry.op);
  for (size_t t = 0; t < kDTypes; ++t) {
    entry.kernel[t] = op->kernel[static_cast<size_t>(entry.method)][t];
  }
}

// A digit behind the method's name asks for that output alone: "vjp0", with respect to the first
// operand. Null with an exception set when there is no such op or method.
Entry* NewEntry(const char* op_name, const char* method_name, const char* name, const char* doc) {
  const OpKernels* const op = FindOp(op_name);
  if (op == nullptr) {
    PyErr_Format(PyExc_KeyError, "no native kernel for op '%s'", op_name);
    return nullptr;
  }
  std::string_view wanted = method_name;
  int part = -1;
  if (!wanted.empty() && (wanted.back() == '0' || wanted.back() == '1')) {
    part = wanted.back() - '0';
    wanted.remove_suffix(1);
  }
  for (const auto& [candidate, method] : kMethodNames) {
    if (candidate != wanted) continue;
    const MethodShape shape = ShapeOf(method, op->arity);
    if (part >= shape.nout) break;
    std::string label = op_name;
    if (method != Method::kValue) label.append(".").append(wanted);
    Entry& entry =
        Entries().emplace_back(Entry{op_name, label, name, doc, method, shape, part, {}, {}});
    FetchKernels(entry);
    entry.self[0] = &entry;
    return &entry;
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
  bool finished;
  if (poll_now) {
    thread_local Poll poll = SignalPoll();
    finished = RunElementwise(entry->kernel[static_cast<size_t>(kDType)], entry->shape, kDType,
                              operands, n, &poll) &&
               !Interrupted(&poll);
  } else {
    finished = RunElementwise(entry->kernel[static_cast<size_t>(kDType)], entry->shape, kDType,
                              operands, n, nullptr);
  }
  if (finished) return 0;
  const PyGILState_STATE state = PyGILState_Ensure();
  // A signal handler that forked leaves a child without the threads that were to finish.
  if (PyErr_Occurred() == nullptr) {
    PyErr_Format(PyExc_RuntimeError, "%s: stopped in a forked child", entry->label.c_str());
  }
  PyGILState_Release(state);
  return -1;
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

// --- multi-output methods ------------------------------------------------------------------------

// (y, dy) of a unary op, (y, (dw, dx)) of a binary one, (dw, dx) without the value.
PyObject* Pack(const Entry& entry, std::array<Ref, 3>& outputs) {
  if (entry.shape.nout == 2) {
    return Py_BuildValue("(NN)", outputs[0].release(), outputs[1].release());
  }
  return Py_BuildValue("(N(NN))", outputs[0].release(), outputs[1].release(), outputs[2].release());
}

// Arrays of one dtype and one shape, all C-contiguous: that is, no conversion and no broadcasting.
PyObject* MultiOutput(const void* context, PyObject* const* args, size_t nargs, PyObject* kwnames) {
  const auto& entry = *static_cast<const Entry*>(context);
  const auto nin = static_cast<size_t>(entry.shape.nin);
  if (kwnames != nullptr || nargs != nin) return nullptr;
  const std::optional<DType> dtype = KernelArray(args[0]);
  if (!dtype) return nullptr;
  auto* const first = reinterpret_cast<PyArrayObject*>(args[0]);
  const int ndim = PyArray_NDIM(first);
  if (ndim == 0) return nullptr;  // a ufunc gives scalars here
  Operands operands;
  for (size_t k = 0; k < nin; ++k) {
    auto* const array = reinterpret_cast<PyArrayObject*>(args[k]);
    if (k > 0 && (KernelArray(args[k]) != dtype || !PyArray_SAMESHAPE(first, array))) {
      return nullptr;
    }
    if (!PyArray_IS_C_CONTIGUOUS(array)) return nullptr;
    operands.data[k] = PyArray_BYTES(array);
  }
  std::array<Ref, 3> outputs;
  for (size_t k = 0; k < static_cast<size_t>(entry.shape.nout); ++k) {
    outputs[k] = Ref(PyArray_SimpleNew(ndim, PyArray_DIMS(first), TypeNumber(*dtype)));
    if (!outputs[k]) return nullptr;
    operands.data[nin + k] = PyArray_BYTES(reinterpret_cast<PyArrayObject*>(outputs[k].get()));
  }
  for (ptrdiff_t& stride : operands.stride) stride = static_cast<ptrdiff_t>(ItemSize(*dtype));
  const npy_intp n = PyArray_SIZE(first);
  bool finished;
  {
    const ScopedGilRelease unlocked(n > kReleaseGil);
    Poll poll = SignalPoll();
    finished = RunElementwise(entry.kernel[static_cast<size_t>(*dtype)], entry.shape, *dtype,
                              operands, static_cast<size_t>(n), &poll);
  }
  return finished ? Pack(entry, outputs) : nullptr;
}

}  // namespace

PyObject* NewUfunc(const char* op, const char* method, const char* name, const char* doc) {
  Entry* const entry = NewEntry(op, method, name, doc);
  if (entry == nullptr) return nullptr;
  Ref ufunc(PyUFunc_FromFuncAndData(nullptr, entry->self, nullptr, 0, entry->shape.nin,
                                    entry->Outputs(), PyUFunc_None, entry->name.c_str(),
                                    entry->doc.c_str(), 0));
  if (!ufunc || !AddLoop(ufunc.get(), *entry, DType::kFloat32) ||
      !AddLoop(ufunc.get(), *entry, DType::kFloat64) || !AddPromoter(ufunc.get(), *entry)) {
    return nullptr;
  }
  return ufunc.release();
}

PyObject* NewMultiOutputMethod(const char* op, const char* method, PyObject* fallback) {
  const Entry* const entry = NewEntry(op, method, method, "");
  return entry == nullptr ? nullptr : NewMethod(MultiOutput, entry, fallback);
}

void RefreshElementwiseKernels() {
  for (Entry& entry : Entries()) FetchKernels(entry);
}

}  // namespace pullback

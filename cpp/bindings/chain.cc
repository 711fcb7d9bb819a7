#include "bindings/chain.h"

#include <array>
#include <string_view>

#include "bindings/call.h"
#include "bindings/operands.h"
#include "bindings/outputs.h"
#include "kernels/chain.h"

namespace pullback {
namespace {

// As for single ops: more elements than this are computed without the GIL.
constexpr npy_intp kReleaseGil = 4096;

struct Link {
  OpPlace op;
  Place place;
  PyObject* bound;  // null where there is none
};

struct RunObject {
  PyObject_HEAD
  size_t count;
  Link links[kMaxChainSteps];
};

// A bound number in the call's dtype, where it has to stay until the call ends.
union Number {
  float single;
  double wide;
};

// A Python number adapts; a NumPy scalar has to be of the dtype.
bool ReadNumber(PyObject* object, DType dtype, Number* number) {
  const bool single = dtype == DType::kFloat32;
  if (!IsWeak(object) &&
      !(single ? PyArray_IsScalar(object, Float) : PyArray_IsScalar(object, Double))) {
    return false;
  }
  const std::optional<double> value = AsNumber(object);
  if (value && single) number->single = static_cast<float>(*value);
  if (value && !single) number->wide = *value;
  return value.has_value();
}

// An array whose axes, but for those of length 1, are neighbouring ones of x.
bool ReadArray(PyObject* object, DType dtype, PyArrayObject* x, BoundOperand* bound) {
  if (KernelArray(object) != dtype || !PyArray_IS_C_CONTIGUOUS(AsArray(object))) return false;
  PyArrayObject* const array = AsArray(object);
  const int ndim = PyArray_NDIM(x);
  const int missing = ndim - PyArray_NDIM(array);
  if (missing < 0) return false;
  enum { kBehind, kInside, kAhead } at = kBehind;
  bound->data = PyArray_BYTES(array);
  bound->period = bound->repeat = 1;
  for (int a = ndim - 1; a >= 0; --a) {
    const npy_intp extent = PyArray_DIM(x, a);
    const npy_intp own = a < missing ? 1 : PyArray_DIM(array, a - missing);
    if (own != 1 && own != extent) return false;
    if (extent == 1) continue;
    if (own == 1) {
      if (at == kBehind) bound->repeat *= static_cast<size_t>(extent);
      if (at == kInside) at = kAhead;
    } else {
      if (at == kAhead) return false;
      at = kInside;
      bound->period *= static_cast<size_t>(extent);
    }
  }
  if (bound->period == 1) bound->repeat = 1;
  return true;
}

// What the caller wants besides the value.
enum class Other : uint8_t { kNone, kCotangent, kTangent };

PyObject* RunPlain(const RunObject& run, PyObject* const* args, Other other, bool want_value) {
  const std::optional<DType> dtype = KernelArray(args[0]);
  if (!dtype) Py_RETURN_NOTIMPLEMENTED;
  PyArrayObject* const x = AsArray(args[0]);
  const int ndim = PyArray_NDIM(x);
  if (ndim == 0 || !PyArray_IS_C_CONTIGUOUS(x)) Py_RETURN_NOTIMPLEMENTED;
  if (other != Other::kNone) {
    PyArrayObject* const second = AsArray(args[1]);
    if (KernelArray(args[1]) != dtype || !PyArray_SAMESHAPE(x, second) ||
        !PyArray_IS_C_CONTIGUOUS(second)) {
      Py_RETURN_NOTIMPLEMENTED;
    }
  }
  std::array<ChainStep, kMaxChainSteps> steps;
  std::array<Number, kMaxChainSteps> numbers;
  for (size_t i = 0; i < run.count; ++i) {
    const Link& link = run.links[i];
    steps[i].op = link.op;
    steps[i].place = link.place;
    if (link.bound == nullptr) continue;
    if (ReadNumber(link.bound, *dtype, &numbers[i])) {
      steps[i].bound = {&numbers[i], 1, 1};
    } else if (!ReadArray(link.bound, *dtype, x, &steps[i].bound)) {
      Py_RETURN_NOTIMPLEMENTED;
    }
  }

  Ref value, image;
  const auto new_array = [&] { return Ref(NewArray(ndim, PyArray_DIMS(x), *dtype)); };
  if (want_value && !(value = new_array())) return nullptr;
  if (other != Other::kNone && !(image = new_array())) return nullptr;
  ChainCall call{.steps = {steps.data(), run.count},
                 .dtype = *dtype,
                 .n = static_cast<size_t>(PyArray_SIZE(x)),
                 .x = PyArray_BYTES(x)};
  if (other == Other::kCotangent) call.cotangent = PyArray_BYTES(AsArray(args[1]));
  if (other == Other::kTangent) call.tangent = PyArray_BYTES(AsArray(args[1]));
  if (value) call.value = PyArray_BYTES(AsArray(value.get()));
  if (image) call.image = PyArray_BYTES(AsArray(image.get()));
  const bool done =
      RunKernel(PyArray_SIZE(x) > kReleaseGil, [&](Poll* poll) { return RunChain(call, poll); });
  if (!done) return nullptr;
  if (!value) return image.release();
  if (!image) return value.release();
  return Py_BuildValue("(NN)", value.release(), image.release());
}

// --- the type ------------------------------------------------------------------------------------

template <Other kOther, bool kValue>
PyObject* Method(PyObject* self, PyObject* const* args, Py_ssize_t nargs) {
  constexpr Py_ssize_t kWanted = kOther == Other::kNone ? 1 : 2;
  if (nargs != kWanted) {
    PyErr_Format(PyExc_TypeError, "ElementwiseRun: takes %zd arguments, not %zd", kWanted, nargs);
    return nullptr;
  }
  return RunPlain(*reinterpret_cast<RunObject*>(self), args, kOther, kValue);
}

bool ReadLink(PyObject* object, Link* link) {
  const char* name;
  PyObject *places, *bound;
  if (!PyTuple_Check(object)) {
    PyErr_Format(PyExc_TypeError, "ElementwiseRun: a link must be a tuple, not %R", object);
    return false;
  }
  if (!PyArg_ParseTuple(object, "sO!O:ElementwiseRun", &name, &PyTuple_Type, &places, &bound))
    return false;
  const std::optional<OpPlace> op = PlaceOfOp(name);
  const Py_ssize_t count = PyTuple_GET_SIZE(places);
  const int arity = op ? Ops(op->shard)[op->row].arity : 0;
  const long first = count > 0 ? PyLong_AsLong(PyTuple_GET_ITEM(places, 0)) : -1;
  if (PyErr_Occurred() != nullptr) return false;
  const bool has_bound = bound != Py_None;
  if (!op || first < 0 || first >= arity || count + has_bound != arity) {
    PyErr_Format(PyExc_ValueError, "ElementwiseRun: no link %R", object);
    return false;
  }
  const Place place = count == 2 ? Place::kBoth : first == 0 ? Place::kFirst : Place::kSecond;
  *link = {*op, place, has_bound ? Py_NewRef(bound) : nullptr};
  return true;
}

PyObject* New(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* const kNames[] = {"links", nullptr};
  PyObject* links;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:ElementwiseRun", const_cast<char**>(kNames),
                                   &links)) {
    return nullptr;
  }
  const Ref given(PySequence_Fast(links, "ElementwiseRun: links must be a sequence"));
  // A copy: a place may be an object whose code changes a list of links meanwhile.
  const Ref list(given ? PySequence_Tuple(given.get()) : nullptr);
  if (!list) return nullptr;
  const auto count = static_cast<size_t>(PyTuple_GET_SIZE(list.get()));
  if (count == 0 || count > kMaxChainSteps) {
    PyErr_Format(PyExc_ValueError, "ElementwiseRun: takes 1 to %zu links, not %zu", kMaxChainSteps,
                 count);
    return nullptr;
  }
  Ref self(type->tp_alloc(type, 0));  // zeroed
  if (!self) return nullptr;
  auto* const run = reinterpret_cast<RunObject*>(self.get());
  for (; run->count < count; ++run->count) {
    const auto at = static_cast<Py_ssize_t>(run->count);
    if (!ReadLink(PyTuple_GET_ITEM(list.get(), at), &run->links[run->count])) {
      return nullptr;
    }
  }
  return self.release();
}

int Traverse(PyObject* self, visitproc visit, void* arg) {
  const auto* const run = reinterpret_cast<RunObject*>(self);
  Py_VISIT(Py_TYPE(self));
  for (size_t i = 0; i < run->count; ++i) Py_VISIT(run->links[i].bound);
  return 0;
}

void Dealloc(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  auto* const run = reinterpret_cast<RunObject*>(self);
  for (size_t i = 0; i < run->count; ++i) Py_CLEAR(run->links[i].bound);
  type->tp_free(self);
  Py_DECREF(type);
}

template <PyObject* (*kMethod)(PyObject*, PyObject* const*, Py_ssize_t)>
PyCFunction AsMethod() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(kMethod));
}

PyMethodDef kMethodDefs[] = {
    {"value", AsMethod<Method<Other::kNone, true>>(), METH_FASTCALL, nullptr},
    {"vjp", AsMethod<Method<Other::kCotangent, false>>(), METH_FASTCALL, nullptr},
    {"value_and_vjp", AsMethod<Method<Other::kCotangent, true>>(), METH_FASTCALL, nullptr},
    {"jvp", AsMethod<Method<Other::kTangent, false>>(), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot kSlots[] = {
    {Py_tp_new, reinterpret_cast<void*>(New)},
    {Py_tp_traverse, reinterpret_cast<void*>(Traverse)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Dealloc)},
    {Py_tp_methods, kMethodDefs},
    {0, nullptr},
};

PyType_Spec kSpec = {"pullback._native.ElementwiseRun", sizeof(RunObject), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, kSlots};

}  // namespace

bool RegisterRunType(PyObject* module) {
  auto* const type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&kSpec));
  return type != nullptr && PyModule_AddType(module, type) == 0;
}

}  // namespace pullback

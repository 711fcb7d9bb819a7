#include "bindings/method.h"

#include <structmember.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <utility>

#include "bindings/interrupt.h"

namespace pullback {
namespace {

// A Method, or a function under guard, which binds to objects as a function does and has no entry.
struct MethodObject {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  FastPath fast_path;
  const MethodEntry* entry;  // its own
  PyObject* fallback;
  PyObject* dict;
};

// What this thread's innermost guarded call has set.
thread_local DefaultFpEnv* t_guard = nullptr;

PyTypeObject* method_type = nullptr;
PyTypeObject* guarded_type = nullptr;

PyObject* Unguarded(PyObject* function) {
  return Py_IS_TYPE(function, guarded_type) ? reinterpret_cast<MethodObject*>(function)->fallback
                                            : function;
}

}  // namespace

bool Signature::Add(PyObject* name, Place place, bool required) {
  if (count_ == kMaxArguments) {
    PyErr_Format(PyExc_TypeError, "more than %zu arguments", kMaxArguments);
    return false;
  }
  PyObject* interned = Py_NewRef(name);
  PyUnicode_InternInPlace(&interned);
  names_[count_++] = Ref(interned);
  if (place != Place::kKeywordOnly) ++positional_;
  if (place == Place::kPositionalOnly) ++positional_only_;
  if (required) required_ = count_;
  return true;
}

bool Signature::Read(PyObject* callable, size_t relied_on) {
  PyObject* const method = PyMethod_Check(callable) ? PyMethod_GET_FUNCTION(callable) : callable;
  PyObject* const function = Unguarded(method);
  if (!PyFunction_Check(function)) {
    PyErr_Format(PyExc_TypeError, "%R is no function, whose arguments can be read", callable);
    return false;
  }
  if (!ReadCode(function, method == callable ? 0 : 1)) return false;
  if (required_ >= relied_on) return true;
  PyErr_Format(PyExc_TypeError, "%R requires %zu arguments, not %zu", callable, required_,
               relied_on);
  return false;
}

// Forty times as fast as inspect.signature: losses with a parameter and objectives are made often.
bool Signature::ReadCode(PyObject* function, int self) {
  auto* const code = reinterpret_cast<PyCodeObject*>(PyFunction_GET_CODE(function));
  const Ref names(PyCode_GetVarnames(code));
  if (!names) return false;
  PyObject* const defaults = PyFunction_GET_DEFAULTS(function);
  PyObject* const keyword_defaults = PyFunction_GET_KW_DEFAULTS(function);
  const int optional = defaults == nullptr ? 0 : static_cast<int>(PyTuple_GET_SIZE(defaults));
  const int positional = code->co_argcount;
  for (int i = self; i < positional + code->co_kwonlyargcount; ++i) {
    PyObject* const name = PyTuple_GET_ITEM(names.get(), i);
    const Place place = i >= positional                ? Place::kKeywordOnly
                        : i < code->co_posonlyargcount ? Place::kPositionalOnly
                                                       : Place::kAny;
    const bool required = place == Place::kKeywordOnly
                              ? keyword_defaults == nullptr ||
                                    PyDict_GetItemWithError(keyword_defaults, name) == nullptr
                              : i < positional - optional;
    // What stands behind *args has no place of its own.
    if (place == Place::kKeywordOnly && (code->co_flags & CO_VARARGS) != 0) break;
    if (!Add(name, place, required)) return false;
  }
  return true;
}

bool Signature::Bind(PyObject* const* args, size_t nargs, PyObject* kwnames,
                     Arguments& bound) const {
  if (nargs > positional_) return false;
  // In halves: g++ clears more than 80 bytes by an instruction that takes 10 ns.
  constexpr size_t kHalf = kMaxArguments / 2;
  std::fill_n(bound.begin(), kHalf, nullptr);
  std::fill_n(bound.begin() + kHalf, kHalf, nullptr);
  for (size_t k = 0; k < nargs; ++k) bound[k] = args[k];
  const Py_ssize_t keywords = kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames);
  for (Py_ssize_t i = 0; i < keywords; ++i) {
    PyObject* const name = PyTuple_GET_ITEM(kwnames, i);
    size_t k = std::max(nargs, positional_only_);
    while (k < count_ && names_[k].get() != name) ++k;
    if (k == count_) return false;
    bound[k] = args[nargs + static_cast<size_t>(i)];
  }
  for (size_t k = nargs; k < required_; ++k) {
    if (bound[k] == nullptr) return false;
  }
  return true;
}

std::optional<size_t> Signature::Find(std::string_view name) const {
  for (size_t k = 0; k < count_; ++k) {
    const char* const text = names_[k] ? PyUnicode_AsUTF8(names_[k].get()) : nullptr;
    if (text != nullptr && text == name) return k;
  }
  return std::nullopt;
}

std::optional<Wrt> Signature::ReadWrt(PyObject* given, size_t operands) const {
  Wrt wrt;
  const auto add = [&](PyObject* entry) {
    size_t k = operands;
    if (PyLong_CheckExact(entry)) {
      int overflow;
      const long place = PyLong_AsLongAndOverflow(entry, &overflow);
      if (overflow == 0 && place >= 0) k = static_cast<size_t>(place);
    } else if (PyUnicode_CheckExact(entry)) {
      for (k = 0; k < operands; ++k) {
        if (names_[k] && PyUnicode_Compare(names_[k].get(), entry) == 0) break;
      }
    }
    if (k >= std::min(operands, wrt.operands.size()) || wrt.Has(k)) return false;
    wrt.operands[wrt.count++] = k;
    return true;
  };
  const bool all = given == nullptr || (PyUnicode_CheckExact(given) &&
                                        PyUnicode_CompareWithASCIIString(given, "all") == 0);
  if (all) {
    for (size_t k = 0; k < operands; ++k) wrt.operands[wrt.count++] = k;
    return wrt;
  }
  if (!PyTuple_CheckExact(given)) {
    wrt.single = true;
    return add(given) ? std::optional(wrt) : std::nullopt;
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given); ++i) {
    if (!add(PyTuple_GET_ITEM(given, i))) return std::nullopt;
  }
  return wrt.count > 0 ? std::optional(wrt) : std::nullopt;
}

bool Wrt::Has(size_t operand) const {
  const auto* const end = operands.begin() + count;
  return std::find(operands.begin(), end, operand) != end;
}

PyObject* Wrt::Pack(Ref* of_operands) const {
  const auto take = [&](size_t i) {
    PyObject* const result = of_operands[operands[i]].release();
    return result == nullptr ? Py_NewRef(Py_None) : result;
  };
  if (single) return take(0);
  PyObject* const tuple = PyTuple_New(static_cast<Py_ssize_t>(count));
  if (tuple == nullptr) return nullptr;
  for (size_t i = 0; i < count; ++i) {
    PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(i), take(i));
  }
  return tuple;
}

namespace {

[[gnu::hot]] PyObject* Call(PyObject* self, PyObject* const* args, size_t nargsf,
                            PyObject* kwnames) {
  const auto* const method = reinterpret_cast<MethodObject*>(self);
  Arguments bound;
  if (method->entry->signature.Bind(args, static_cast<size_t>(PyVectorcall_NARGS(nargsf)), kwnames,
                                    bound)) {
    PyObject* result;
    try {
      result = method->fast_path(*method->entry, bound);
    } catch (const std::bad_alloc&) {
      return PyErr_NoMemory();
    }
    if (result != nullptr || PyErr_Occurred() != nullptr) return result;
  }
  return PyObject_Vectorcall(method->fallback, args, nargsf, kwnames);
}

PyObject* CallFunction(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  return PyObject_Vectorcall(reinterpret_cast<MethodObject*>(self)->fallback, args, nargsf,
                             kwnames);
}

PyObject* Bind(PyObject* self, PyObject* object, PyObject*) {
  return object == nullptr ? Py_NewRef(self) : PyMethod_New(self, object);
}

PyObject* Repr(PyObject* self) {
  const Ref name(PyObject_GetAttrString(self, "__qualname__"));
  if (!name) return nullptr;
  return PyUnicode_FromFormat("<pullback method '%S'>", name.get());
}

// A string tells pickle and copy to look the object up by its module and qualified name.
PyObject* Reduce(PyObject* self, PyObject*) { return PyObject_GetAttrString(self, "__qualname__"); }

int Traverse(PyObject* self, visitproc visit, void* arg) {
  auto* const method = reinterpret_cast<MethodObject*>(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(method->fallback);
  Py_VISIT(method->dict);
  return method->entry == nullptr ? 0 : method->entry->Traverse(visit, arg);
}

int Clear(PyObject* self) {
  auto* const method = reinterpret_cast<MethodObject*>(self);
  Py_CLEAR(method->fallback);
  Py_CLEAR(method->dict);
  return 0;
}

void Dealloc(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  Clear(self);
  delete reinterpret_cast<MethodObject*>(self)->entry;
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef kMethodDefs[] = {
    {"__reduce__", Reduce, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef kGetSet[] = {
    {"__dict__", PyObject_GenericGetDict, nullptr, nullptr, nullptr},  // for dir()
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyMemberDef kMembers[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(MethodObject, vectorcall), READONLY, nullptr},
    {"__dictoffset__", T_PYSSIZET, offsetof(MethodObject, dict), READONLY, nullptr},
    {"__wrapped__", T_OBJECT_EX, offsetof(MethodObject, fallback), READONLY,
     "the Python callable that takes every call the fast path leaves"},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot kSlots[] = {
    {Py_tp_descr_get, reinterpret_cast<void*>(Bind)},  // of guarded functions alone
    {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
    {Py_tp_repr, reinterpret_cast<void*>(Repr)},
    {Py_tp_traverse, reinterpret_cast<void*>(Traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(Clear)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Dealloc)},
    {Py_tp_methods, kMethodDefs},
    {Py_tp_members, kMembers},
    {Py_tp_getset, kGetSet},
    {Py_tp_getattro, reinterpret_cast<void*>(PyObject_GenericGetAttr)},
    {Py_tp_setattro, reinterpret_cast<void*>(PyObject_GenericSetAttr)},
    {0, nullptr},
};

constexpr unsigned kFlags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                            Py_TPFLAGS_DISALLOW_INSTANTIATION;
PyType_Spec kMethodSpec = {"pullback._native.Method", sizeof(MethodObject), 0, kFlags, kSlots + 1};
PyType_Spec kGuardedSpec = {"pullback._native.Guarded", sizeof(MethodObject), 0,
                            kFlags | Py_TPFLAGS_METHOD_DESCRIPTOR, kSlots};

bool RegisterType(PyObject* module, PyType_Spec& spec, PyTypeObject*& type) {
  type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type != nullptr && PyModule_AddType(module, type) == 0;
}

PyObject* New(PyTypeObject* type, vectorcallfunc call, FastPath fast_path,
              std::unique_ptr<const MethodEntry> entry, PyObject* fallback) {
  auto* const method = PyObject_GC_New(MethodObject, type);
  if (method == nullptr) return nullptr;
  method->vectorcall = call;
  method->fast_path = fast_path;
  method->entry = entry.release();
  method->fallback = Py_NewRef(fallback);
  method->dict = nullptr;
  PyObject_GC_Track(method);
  return reinterpret_cast<PyObject*>(method);
}

}  // namespace

bool RegisterMethodType(PyObject* module) {
  return RegisterType(module, kMethodSpec, method_type) &&
         RegisterType(module, kGuardedSpec, guarded_type);
}

PyObject* NewMethod(FastPath fast_path, std::unique_ptr<const MethodEntry> entry,
                    PyObject* fallback) {
  return New(method_type, Guarded<Call>, fast_path, std::move(entry), fallback);
}

PyObject* CallUnderGuard(vectorcallfunc call, PyObject* self, PyObject* const* args, size_t nargsf,
                         PyObject* kwnames) {
  DefaultFpEnv env;
  env.Enter();
  DefaultFpEnv* const outer = std::exchange(t_guard, &env);
  PyObject* const result = call(self, args, nargsf, kwnames);
  t_guard = outer;
  env.Leave();
  return result;
}

Poll SignalPoll() {
  return {[](void*) {
            // A thread that sleeps for ever amid a job keeps the workers from all others.
            if (IsFinalizing()) return false;
            const ScopedGil locked;
            return PyErr_CheckSignals() != 0;
          },
          nullptr, 0, t_guard};
}

PyObject* NewGuarded(PyObject* function) {
  return New(guarded_type, Guarded<CallFunction>, nullptr, nullptr, function);
}

Ref OwnerOf(std::unique_ptr<const MethodEntry> entry) {
  // A capsule's pointer is not const.
  Ref owner(PyCapsule_New(const_cast<MethodEntry*>(entry.get()), nullptr, [](PyObject* capsule) {
    delete static_cast<const MethodEntry*>(PyCapsule_GetPointer(capsule, nullptr));
  }));
  if (owner) entry.release();
  return owner;
}

}  // namespace pullback

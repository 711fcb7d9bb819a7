#include "bindings/method.h"

#include <structmember.h>

#include <cstddef>

namespace pullback {
namespace {

struct MethodObject {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  FastPath fast_path;
  const MethodEntry* entry;  // its own
  PyObject* fallback;
  PyObject* dict;
};

PyObject* Call(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  const auto* const method = reinterpret_cast<MethodObject*>(self);
  PyObject* const result = method->fast_path(
      *method->entry, args, static_cast<size_t>(PyVectorcall_NARGS(nargsf)), kwnames);
  if (result != nullptr || PyErr_Occurred() != nullptr) return result;
  return PyObject_Vectorcall(method->fallback, args, nargsf, kwnames);
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
  return 0;
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

PyMemberDef kMembers[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(MethodObject, vectorcall), READONLY, nullptr},
    {"__dictoffset__", T_PYSSIZET, offsetof(MethodObject, dict), READONLY, nullptr},
    {"__wrapped__", T_OBJECT_EX, offsetof(MethodObject, fallback), READONLY,
     "the Python callable that takes every call the fast path leaves"},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot kSlots[] = {
    {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
    {Py_tp_repr, reinterpret_cast<void*>(Repr)},
    {Py_tp_traverse, reinterpret_cast<void*>(Traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(Clear)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Dealloc)},
    {Py_tp_methods, kMethodDefs},
    {Py_tp_members, kMembers},
    {Py_tp_getattro, reinterpret_cast<void*>(PyObject_GenericGetAttr)},
    {Py_tp_setattro, reinterpret_cast<void*>(PyObject_GenericSetAttr)},
    {0, nullptr},
};

PyType_Spec kSpec = {"pullback._native.Method", sizeof(MethodObject), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                         Py_TPFLAGS_DISALLOW_INSTANTIATION,
                     kSlots};

PyTypeObject* method_type = nullptr;

}  // namespace

bool RegisterMethodType(PyObject* module) {
  method_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&kSpec));
  return method_type != nullptr && PyModule_AddType(module, method_type) == 0;
}

PyObject* NewMethod(FastPath fast_path, std::unique_ptr<const MethodEntry> entry,
                    PyObject* fallback) {
  auto* const method = PyObject_GC_New(MethodObject, method_type);
  if (method == nullptr) return nullptr;
  method->vectorcall = Call;
  method->fast_path = fast_path;
  method->entry = entry.release();
  method->fallback = Py_NewRef(fallback);
  method->dict = nullptr;
  PyObject_GC_Track(method);
  return reinterpret_cast<PyObject*>(method);
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

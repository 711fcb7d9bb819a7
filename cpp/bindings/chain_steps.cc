#include "bindings/chain_steps.h"

#include <algorithm>

#include "bindings/outputs.h"

namespace pullback {

bool BoundCall::Read(PyObject* given, PyObject* x, PyObject* other, bool numbers) {
  if (given == Py_None) return true;
  PyObject *function, *arguments, *options;
  if (!PyTuple_Check(given)) {
    PyErr_Format(PyExc_TypeError, "ChainWalk: a call must be a tuple, not %R", given);
    return false;
  }
  if (!PyArg_ParseTuple(given, "OO!O!:ChainWalk", &function, &PyTuple_Type, &arguments,
                        &PyDict_Type, &options)) {
    return false;
  }
  positional_ = static_cast<size_t>(PyTuple_GET_SIZE(arguments));
  const Py_ssize_t keywords = PyDict_GET_SIZE(options);
  const auto hold = [&](PyObject* argument) {
    const Kind kind = argument == x ? kX : argument == other ? kOther : kBound;
    Argument& held = arguments_.emplace_back();
    held.kind = kind;
    held.bound = Ref(Py_NewRef(argument));
  };
  for (size_t i = 0; i < positional_; ++i) {
    hold(PyTuple_GET_ITEM(arguments, static_cast<Py_ssize_t>(i)));
    Argument& last = arguments_.back();
    if (!numbers || !PyFloat_CheckExact(last.bound.get())) continue;
    last.kind = kNumber;
    for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
      Ref& array = last.as[static_cast<size_t>(dtype)];
      array = Ref(NewArray(0, nullptr, dtype));
      if (!array) return false;
      OfType(dtype, [&](auto type) {
        using T = decltype(type);
        *static_cast<T*>(DataOf(array.get())) = static_cast<T>(PyFloat_AS_DOUBLE(last.bound.get()));
      });
      PyArray_CLEARFLAGS(AsArray(array.get()), NPY_ARRAY_WRITEABLE);
    }
  }
  if (keywords > 0) names_ = Ref(PyTuple_New(keywords));
  if (keywords > 0 && !names_) return false;
  PyObject *key, *value;
  for (Py_ssize_t at = 0, i = 0; PyDict_Next(options, &at, &key, &value); ++i) {
    if (!PyUnicode_CheckExact(key)) {
      PyErr_Format(PyExc_TypeError, "ChainWalk: %R is no keyword", key);
      return false;
    }
    PyObject* name = Py_NewRef(key);
    PyUnicode_InternInPlace(&name);  // by which methods know it
    PyTuple_SET_ITEM(names_.get(), i, name);
    hold(value);
  }
  function_ = Ref(Py_NewRef(function));
  return true;
}

namespace {

// Operands of one step: more than any function takes.
constexpr Py_ssize_t kMostBound = 1 << 16;

bool ReadLink(PyObject* object, std::optional<Link>& link) {
  if (object == Py_None) return true;
  const char* name;
  PyObject *places, *bound;
  if (!PyTuple_Check(object)) {
    PyErr_Format(PyExc_TypeError, "ChainWalk: a link must be a tuple, not %R", object);
    return false;
  }
  if (!PyArg_ParseTuple(object, "sO!O:ChainWalk", &name, &PyTuple_Type, &places, &bound)) {
    return false;
  }
  const std::optional<OpPlace> op = PlaceOfOp(name);
  const Py_ssize_t count = PyTuple_GET_SIZE(places);
  const int arity = op ? Ops(op->shard)[op->row].arity : 0;
  const long first = count > 0 ? PyLong_AsLong(PyTuple_GET_ITEM(places, 0)) : -1;
  if (PyErr_Occurred() != nullptr) return false;
  const bool has_bound = bound != Py_None;
  if (!op || first < 0 || first >= arity || count + has_bound != arity) {
    PyErr_Format(PyExc_ValueError, "ChainWalk: no link %R", object);
    return false;
  }
  const Place place = count == 2 ? Place::kBoth : first == 0 ? Place::kFirst : Place::kSecond;
  link = Link{*op, place, Ref(has_bound ? Py_NewRef(bound) : nullptr)};
  return true;
}

}  // namespace

bool ReadStep(PyObject* given, PyObject* x, PyObject* other, Step& step) {
  PyObject *value, *jvp, *vjp, *pull, *both, *jacobian, *places, *link, *text;
  Py_ssize_t bound;
  int checks;
  if (!PyTuple_Check(given)) {
    PyErr_Format(PyExc_TypeError, "ChainWalk: a step must be a tuple, not %R", given);
    return false;
  }
  if (!PyArg_ParseTuple(given, "OOOOOOO!npOU:ChainWalk", &value, &jvp, &vjp, &pull, &both,
                        &jacobian, &PyTuple_Type, &places, &bound, &checks, &link, &text)) {
    return false;
  }
  if (!step.value.Read(value, x, other) || !step.jvp.Read(jvp, x, other) ||
      !step.vjp.Read(vjp, x, other) || !step.pull.Read(pull, x, other, link != Py_None) ||
      !step.both.Read(both, x, other) || !step.jacobian.Read(jacobian, x, other) ||
      !ReadLink(link, step.link)) {
    return false;
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(places); ++i) {
    step.places.push_back(PyLong_AsSsize_t(PyTuple_GET_ITEM(places, i)));
    if (PyErr_Occurred() != nullptr) return false;
  }
  const bool is_whole = step.value && step.jvp && step.vjp && step.jacobian && !step.places.empty();
  if (!is_whole || *std::min_element(step.places.begin(), step.places.end()) < 0 || bound < 0 ||
      bound > kMostBound || (bound > 0 && !step.pull)) {
    PyErr_Format(PyExc_ValueError, "ChainWalk: no step %R", given);
    return false;
  }
  step.bound = static_cast<size_t>(bound);
  step.checks = checks != 0;
  step.text = Ref(Py_NewRef(text));
  return true;
}

}  // namespace pullback

// Products as fast callables, and as the engine that Python calls.
#include "bindings/products.h"

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <optional>
#include <string_view>
#include <utility>

#include "bindings/method.h"
#include "bindings/product_call.h"

namespace pullback {
namespace {

// A method of a row; nothing, with a KeyError set, where there is none.
std::optional<std::pair<const ProductRow*, Way>> Find(const char* product, const char* method) {
  const auto* const way = std::find(std::begin(kWays), std::end(kWays), std::string_view(method));
  const auto found = static_cast<size_t>(way - std::begin(kWays));
  for (const ProductRow& row : ProductRows()) {
    if (row.name != product || way == std::end(kWays) || row.compute[found] == nullptr) continue;
    return std::pair(&row, static_cast<Way>(found));
  }
  PyErr_Format(PyExc_KeyError, "no native method '%s' of a product '%s'", method, product);
  return std::nullopt;
}

// --- calls as a user makes them ------------------------------------------------------------------

struct ProductEntry : MethodEntry {
  ProductEntry(const ProductRow* row, Way way) : row(row), rule(row->signature), way(way) {}

  const ProductRow* row;
  ShapeRule rule;
  Way way;
  std::optional<size_t> out_at, wrt_at, activation_at;
  Wrt wrt;  // where none is given

  // What is asked for, maybe in `given`; null where Python has to read it.
  const Wrt* Asked(const Arguments& args, std::optional<Wrt>& given) const {
    if (!wrt_at || args[*wrt_at] == nullptr) return &wrt;
    given = signature.ReadWrt(args[*wrt_at], rule.operands);
    return given ? &*given : nullptr;
  }
};

[[gnu::hot]] PyObject* ProductCall(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const ProductEntry&>(own);
  std::optional<Wrt> given;
  const Wrt* const wrt = entry.Asked(args, given);
  if (wrt == nullptr) return nullptr;
  Call call(*entry.row, entry.rule, entry.way, *wrt, false);
  if (!call.Take(args.data(), Given(args, entry.activation_at))) return nullptr;
  PyObject* const out = Given(args, entry.out_at);
  std::array<PyObject*, kMostOperands + 1> outs{out};
  if (out != nullptr && entry.way == Way::kVjp && !wrt->single) {
    if (!PyTuple_CheckExact(out) || static_cast<size_t>(PyTuple_GET_SIZE(out)) != wrt->count) {
      return nullptr;
    }
    std::copy_n(&PyTuple_GET_ITEM(out, 0), wrt->count, outs.begin());
  }
  if (!call.Place(outs.data())) return nullptr;
  try {
    call.Compute();
  } catch (const Raised&) {
    return nullptr;
  }
  switch (entry.way) {
    case Way::kVjp:
      return call.Cotangents();
    case Way::kValueAndGrad:
      return Pair(Ref(call.Result()), Ref(call.Cotangents()));
    default:
      return call.Result();
  }
}

PyObject* ProductJacobians(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const ProductEntry&>(own);
  std::optional<Wrt> given;
  const Wrt* const wrt = entry.Asked(args, given);
  if (wrt == nullptr) return nullptr;
  Call call(*entry.row, entry.rule, entry.way, *wrt, false);
  PyObject* const activation = Given(args, entry.activation_at);
  const bool is_ufunc = activation != nullptr && !PyUnicode_Check(activation);
  if (activation != nullptr && !(is_ufunc && UnaryOpOf(activation) != nullptr)) return nullptr;
  if (!call.Take(args.data(), nullptr)) return nullptr;
  std::array<Ref, kMostOperands> jacobians;
  try {
    if (!entry.row->jacobians(call, activation, jacobians.data())) return nullptr;
  } catch (const Raised&) {
    return nullptr;
  }
  bool any = false;
  for (size_t i = 0; i < wrt->count; ++i) {
    const size_t k = wrt->operands[i];
    if (!jacobians[k] && call.operand(k)) return nullptr;
    any = any || jacobians[k];
  }
  return any ? wrt->Pack(jacobians.data()) : nullptr;
}

// --- the engine ----------------------------------------------------------------------------------

// product_results(product, method, arrays, activation, wrt, outs)
PyObject* ProductResults(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  const auto refuse = [](const char* argument) -> PyObject* {
    if (PyErr_Occurred() != nullptr) return nullptr;
    return PyErr_Format(PyExc_TypeError, "product_results: %s is not what the engine takes",
                        argument);
  };
  if (nargs != 6) return refuse("the number of arguments");
  const char* const product = PyUnicode_AsUTF8(args[0]);
  const char* const method = product == nullptr ? nullptr : PyUnicode_AsUTF8(args[1]);
  if (method == nullptr) return nullptr;
  const auto found = Find(product, method);
  if (!found) return nullptr;
  const auto& [row, way] = *found;
  const ShapeRule rule(row->signature);
  const auto holds = [](PyObject* tuple, size_t count) {
    return PyTuple_CheckExact(tuple) && static_cast<size_t>(PyTuple_GET_SIZE(tuple)) == count;
  };
  if (!holds(args[2], Call::Arrays(rule.operands, way))) return refuse("arrays");
  if (!PyTuple_CheckExact(args[4])) return refuse("wrt");
  const std::optional<Wrt> wrt = Signature().ReadWrt(args[4], rule.operands);
  if (!wrt) return refuse("wrt");
  const bool has_value = way != Way::kVjp, has_cotangents = way != Way::kValue && way != Way::kJvp;
  if (!holds(args[5], (has_value ? 1 : 0) + (has_cotangents ? wrt->count : 0))) {
    return refuse("outs");
  }
  Call call(*row, rule, way, *wrt, true);
  if (!call.Take(&PyTuple_GET_ITEM(args[2], 0), args[3] == Py_None ? nullptr : args[3])) {
    return refuse("arrays");
  }
  if (!call.Place(&PyTuple_GET_ITEM(args[5], 0))) return refuse("outs");
  try {
    call.Compute();
  } catch (const Raised&) {
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  if (!has_value) return call.Cotangents();
  const Ref value(call.Result());
  if (!value) return nullptr;
  if (!has_cotangents) return PyTuple_Pack(1, value.get());
  const Ref first(PyTuple_Pack(1, value.get())), rest(call.Cotangents());
  return first && rest ? PySequence_Concat(first.get(), rest.get()) : nullptr;
}

// Operands as arrays that kernels can read, where None stays; or None where Python has to convert
// them.
PyObject* PlainArrays(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  const auto count = static_cast<size_t>(nargs);
  PlainOperands plain;
  try {
    if (count > kMaxArguments || !plain.Take(args, count, Strides::kAny)) {
      if (PyErr_Occurred() != nullptr) LeaveToPython();
      return PyErr_Occurred() == nullptr ? Py_NewRef(Py_None) : nullptr;
    }
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  PyObject* const tuple = PyTuple_New(nargs);
  for (size_t i = 0; tuple != nullptr && i < count; ++i) {
    PyObject* const array = reinterpret_cast<PyObject*>(plain[i]);
    PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(i),
                     Py_NewRef(array == nullptr ? Py_None : array));
  }
  return tuple;
}

PyMethodDef kEngine[] = {
    {"plain_arrays", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(PlainArrays)),
     METH_FASTCALL, "plain_arrays(*operands)\n--\n\n"},
    {"product_results", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(ProductResults)),
     METH_FASTCALL, "product_results(product, method, arrays, activation, wrt, outs, /)\n--\n\n"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyObject* NewProductMethod(const char* product, const char* method, PyObject* fallback) {
  const bool is_jacobian = std::string_view(method) == "jacobian";
  const auto found = Find(product, is_jacobian ? "value" : method);
  if (!found) return nullptr;
  auto entry = std::make_unique<ProductEntry>(found->first, found->second);
  const size_t arrays = Call::Arrays(entry->rule.operands, entry->way);
  const bool may_lack = entry->way == Way::kValue && entry->row->may_lack < kMostOperands;
  if (!entry->signature.Read(fallback, arrays - (may_lack ? 1 : 0))) return nullptr;
  entry->out_at = entry->signature.Find("out");
  entry->wrt_at = entry->signature.Find("wrt");
  entry->activation_at = entry->signature.Find("activation");
  // What is there if no wrt= is given: the fallback's default, or else all.
  const Ref defaults(entry->wrt_at ? PyObject_GetAttrString(fallback, "__kwdefaults__") : nullptr);
  if (!defaults) PyErr_Clear();
  PyObject* const initial = defaults && PyDict_Check(defaults.get())
                                ? PyDict_GetItemString(defaults.get(), "wrt")
                                : nullptr;
  const std::optional<Wrt> wrt = entry->signature.ReadWrt(initial, entry->rule.operands);
  if (!wrt) return PyErr_Format(PyExc_TypeError, "%R has a wrt that is none", fallback);
  entry->wrt = *wrt;
  return NewMethod(is_jacobian ? ProductJacobians : ProductCall, std::move(entry), fallback);
}

PyObject* ProductOps() {
  Ref ops(PyDict_New());
  for (const ProductRow& row : ProductRows()) {
    const Ref signature(ops ? PyUnicode_FromString(row.signature.data()) : nullptr);
    if (!signature || PyDict_SetItemString(ops.get(), row.name.data(), signature.get()) != 0) {
      return nullptr;
    }
  }
  return ops.release();
}

bool RegisterProductEngine(PyObject* module) { return PyModule_AddFunctions(module, kEngine) == 0; }

}  // namespace pullback

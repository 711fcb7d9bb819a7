// where, clip and take as fast callables.
#include "bindings/selections.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>

#include "bindings/call.h"
#include "bindings/method.h"
#include "bindings/operands.h"
#include "bindings/outputs.h"
#include "bindings/shapes.h"
#include "kernels/broadcast.h"
#include "kernels/selections.h"

namespace pullback {
namespace {

// More elements than this are computed without the GIL.
constexpr size_t kReleaseGil = 4096;

constexpr std::string_view kTake = "take";

// In the order of Method.
constexpr std::string_view kMethodNames[] = {"value", "derivative", "value_and_derivative", "vjp",
                                             "jvp"};
static_assert(std::size(kMethodNames) == kChoiceMethods);

// --- element by element --------------------------------------------------------------------------

struct ChoiceEntry : MethodEntry {
  PerTarget<const ChoiceKernels*> op;
  Method method;
  MethodShape shape;
  size_t constant, moved;  // operands without derivatives, which come first, and with some
  bool of_vjp;             // vjp.jvp, which is vjp of the cotangent's tangent
  std::optional<size_t> out_at, wrt_at;
};

// A condition as an array of bool; null, perhaps with an exception set, where Python has to convert
// it.
Ref ConditionOf(PyObject* given) {
  if (PyArray_CheckExact(given)) {
    PyArrayObject* const array = AsArray(given);
    if (PyArray_TYPE(array) == NPY_BOOL) return Ref(Py_NewRef(given));
    return Ref(ElementOf(PyArray_TYPE(array)) ? PyArray_Cast(array, NPY_BOOL) : nullptr);
  }
  return PyBool_Check(given) || PyArray_IsScalar(given, Bool) ? AsPlainArray(given) : Ref();
}

// A call whose arrays broadcast, of any number type and layout.
struct ChoiceJob {
  const ChoiceEntry& entry;
  const Arguments& args;
  PyArrayObject* condition = nullptr;
  PlainOperands x = {};  // the operands with derivatives, and what comes behind
  Shape value = {}, whole = {};
  int batch = 0;
  Wrt wrt = {};            // among all operands
  bool with_sums = false;  // of broadcast operands

  size_t operands() const { return entry.constant + entry.moved; }
  PyArrayObject* Operand(size_t k) const {
    return k < entry.constant ? condition : x[k - entry.constant];
  }
  PyArrayObject* Input(size_t k) const {
    return entry.of_vjp && k == operands() ? Tangent() : Operand(k);
  }
  // That of the cotangent, behind those of the operands.
  PyArrayObject* Tangent() const { return x[2 * entry.moved + 1]; }
  bool GivesSlopes() const {
    return entry.method == Method::kDerivative || entry.method == Method::kValueAndDerivative;
  }

  // False where Python has to look at what was given.
  bool Take() {
    size_t nin = static_cast<size_t>(entry.shape.nin);
    if (entry.of_vjp) nin += entry.moved + 1;
    if (!x.Take(args.data() + entry.constant, nin - entry.constant, Strides::kAsStored)) {
      return false;
    }
    for (size_t k = 0; k < operands(); ++k) {
      // A bound may be left out.
      if (Operand(k) == nullptr && (entry.constant > 0 || k == 0)) return false;
      if (Operand(k) != nullptr && !value.Broadcast(Operand(k))) return false;
    }
    whole = value;
    if (entry.method == Method::kVjp) return TakeCotangent();
    return entry.method != Method::kJvp || TakeTangents();
  }

  bool TakeCotangent() {
    PyArrayObject* const g = x[entry.moved];
    if (g == nullptr) return false;
    if (entry.of_vjp && !FollowRules(g)) return false;
    if (IsWeak(args[operands()])) return true;
    batch = PyArray_NDIM(g) - value.ndim;
    if (batch < 0 || !EndsIn(g, value.ndim, value.extent.data())) return false;
    return whole.Broadcast(g);
  }

  // Tangents, of which some may be left out, but not that of the cotangent.
  bool FollowRules(PyArrayObject* g) const {
    const size_t last = operands() + entry.moved + 1;
    if (Tangent() == nullptr || IsWeak(args[operands()]) || IsWeak(args[last])) return false;
    for (size_t k = 0; k < entry.moved; ++k) {
      PyArrayObject* const t = x[entry.moved + 1 + k];
      if (t == nullptr) continue;
      if (x[k] == nullptr) return false;
      if (!IsWeak(args[operands() + 1 + k]) && !SameShape(t, x[k])) return false;
    }
    return SameShape(Tangent(), g);
  }

  bool TakeTangents() {
    bool any = false;
    for (size_t k = 0; k < entry.moved; ++k) {
      PyArrayObject* const t = x[entry.moved + k];
      if (t == nullptr) continue;
      if (x[k] == nullptr || (!IsWeak(args[operands() + k]) && !SameShape(t, x[k]))) return false;
      any = true;
    }
    return any;
  }

  // What wrt= asks for, where that is not a value or its tangent.
  bool Ask() {
    PyObject* const asked = ArgumentAt(args, entry.wrt_at);
    const std::optional<Wrt> given = entry.signature.ReadWrt(asked, operands());
    if (!given) return false;
    const bool all = asked == nullptr || (PyUnicode_CheckExact(asked) &&
                                          PyUnicode_CompareWithASCIIString(asked, "all") == 0);
    bool any = false;
    for (size_t i = 0; i < given->count; ++i) {
      const size_t k = given->operands[i];
      if (k < entry.constant && all) continue;
      if (k < entry.constant) return false;
      wrt.operands[wrt.count++] = k;
      any = any || Operand(k) != nullptr;
    }
    wrt.single = given->single;
    return any;
  }

  // The shape of a kernel's output.
  Shape ShapeOf(size_t output) const {
    if (entry.method != Method::kVjp) return whole;
    PyArrayObject* const operand = x[output];
    Shape shape = whole;
    shape.ndim = batch + PyArray_NDIM(operand);
    std::copy_n(PyArray_DIMS(operand), PyArray_NDIM(operand), shape.extent.begin() + batch);
    return shape;
  }

  // The operand of a kernel's output; none of a value.
  std::optional<size_t> OperandOf(size_t output) const {
    const size_t values = entry.method == Method::kValueAndDerivative ? 1 : 0;
    const bool of_value = entry.method == Method::kValue || entry.method == Method::kJvp;
    if (of_value || output < values) return std::nullopt;
    return entry.constant + output - values;
  }

  PyObject* Run(PyObject* out) {
    const auto nin = static_cast<size_t>(entry.shape.nin);
    const auto nout = static_cast<size_t>(entry.shape.nout);
    std::array<bool, kMost> wanted{}, there{};
    for (size_t o = 0; o < nout; ++o) {
      const std::optional<size_t> k = OperandOf(o);
      there[o] = !k || Operand(*k) != nullptr;
      wanted[o] = there[o] && (entry.method != Method::kVjp || wrt.Has(*k));
      if (wanted[o] && entry.method == Method::kVjp) {
        if (batch + PyArray_NDIM(Operand(*k)) > kMaxAxes) return nullptr;
        with_sums = with_sums || ShapeOf(o).Size() != whole.Size();
      }
    }
    // The order of sums depends on all outputs.
    if (with_sums) wanted = there;
    std::array<PyObject*, kMost> given{};
    if (out != nullptr && !Given(out, given)) return nullptr;
    Outputs outputs;
    std::array<size_t, kMost> place{};
    for (size_t o = 0; o < nout; ++o) {
      if (!wanted[o]) continue;
      const Shape shape = ShapeOf(o);
      place[o] = outputs.count();
      if (given[o] == nullptr && shape.ndim == 0 && whole.ndim > 0) {
        outputs.AddNumber(x.dtype());
        continue;
      }
      const Order order = shape == whole ? Order::kOfOperands : Order::kC;
      if (!outputs.Add(given[o], shape.ndim, shape.extent.data(), x.dtype(), x, order)) {
        return nullptr;
      }
      if (condition != nullptr && given[o] != nullptr && Overlap(AsArray(given[o]), condition)) {
        return nullptr;
      }
    }
    ArrayCall call;
    call.kernel = entry.op.Active()
                      ->kernel[static_cast<size_t>(entry.method)][static_cast<size_t>(x.dtype())];
    call.shape = entry.shape;
    call.dtype = x.dtype();
    call.axes = whole.ndim;
    for (int a = 0; a < call.axes; ++a) {
      call.extent[a] = static_cast<size_t>(whole.extent[static_cast<size_t>(a)]);
    }
    const auto leave_out = [&](size_t k, void* data) {
      call.operand[k].data = static_cast<char*>(data);
      call.operand[k].storage = StorageOf(x.dtype());
      std::fill_n(call.operand[k].stride, call.axes, 0);
    };
    for (size_t k = 0; k < nin; ++k) {
      PyArrayObject* const input = Input(k);
      if (input == nullptr) {
        leave_out(k, nullptr);
      } else {
        SetOperand(call, k, input, StorageOfArray(input).value());
      }
    }
    for (size_t o = 0; o < nout; ++o) {
      PyArrayObject* const array = wanted[o] ? outputs[place[o]] : nullptr;
      if (array != nullptr) {
        SetOperand(call, nin + o, array, StorageOf(x.dtype()),
                   entry.method == Method::kVjp ? batch : 0);
      } else {
        leave_out(nin + o, wanted[o] ? outputs.data(place[o]) : nullptr);
      }
    }
    const size_t size = whole.Size();
    if (size > 0) {
      const bool done =
          RunKernel(size > kReleaseGil, [&](Poll* poll) { return RunArrays(call, poll); });
      if (!done) return nullptr;
    }
    for (size_t i = 0; size == 0 && i < outputs.count(); ++i) {  // sums of nothing
      const npy_intp bytes = outputs[i] == nullptr ? sizeof(double) : PyArray_NBYTES(outputs[i]);
      std::memset(outputs.data(i), 0, static_cast<size_t>(bytes));
    }
    std::array<Ref, kMost> results;
    for (size_t o = 0; o < nout; ++o) {
      if (wanted[o]) results[o] = Ref(outputs.Release(place[o]));
      if (wanted[o] && !results[o]) return nullptr;
    }
    return Pack(results.data());
  }

 private:
  static constexpr size_t kMost = 4;

  // Outputs by what the kernel gives; false where Python has to look at them.
  bool Given(PyObject* out, std::array<PyObject*, kMost>& given) const {
    if (with_sums) return false;
    if (entry.method == Method::kValueAndDerivative) return GivenNested(out, given);
    const bool single = entry.method == Method::kVjp ? wrt.single : !GivesSlopes();
    const size_t count = entry.method == Method::kVjp ? wrt.count : entry.moved;
    std::array<PyObject*, kMost> flat{};
    if (!FlatOuts(out, single ? 1 : count, single, flat.data(), false)) return false;
    if (entry.method != Method::kVjp) {
      given = flat;
      for (size_t k = 0; GivesSlopes() && k < count; ++k) {
        if (given[k] != nullptr && x[k] == nullptr) return false;
      }
      return true;
    }
    for (size_t i = 0; i < wrt.count; ++i) {
      const size_t o = wrt.operands[i] - entry.constant;
      if (flat[i] != nullptr && x[o] == nullptr) return false;
      given[o] = flat[i];
    }
    return true;
  }

  // (value, (slopes)), with None for some or all of the slopes.
  bool GivenNested(PyObject* out, std::array<PyObject*, kMost>& given) const {
    std::array<PyObject*, 2> pair;
    if (!FlatOuts(out, 2, false, pair.data())) return false;
    given[0] = pair[0];
    if (!FlatOuts(pair[1], entry.moved, false, given.data() + 1, false)) return false;
    for (size_t k = 0; k < entry.moved; ++k) {
      if (given[1 + k] != nullptr && x[k] == nullptr) return false;
    }
    return true;
  }

  PyObject* Pack(Ref* results) const {
    if (entry.method == Method::kVjp) {
      std::array<Ref, kMost> of_operands;
      for (size_t k = 0; k < entry.moved; ++k)
        of_operands[entry.constant + k] = std::move(results[k]);
      return wrt.Pack(of_operands.data());
    }
    if (!GivesSlopes()) return results[0].release();
    const size_t values = entry.method == Method::kValueAndDerivative ? 1 : 0;
    Ref slopes(PyTuple_New(static_cast<Py_ssize_t>(entry.moved)));
    if (!slopes) return nullptr;
    for (size_t k = 0; k < entry.moved; ++k) {
      PyObject* const slope =
          results[values + k] ? results[values + k].release() : Py_NewRef(Py_None);
      PyTuple_SET_ITEM(slopes.get(), static_cast<Py_ssize_t>(k), slope);
    }
    return values == 0 ? slopes.release() : Pair(std::move(results[0]), std::move(slopes));
  }
};

[[gnu::hot]] PyObject* ChoiceCall(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const ChoiceEntry&>(own);
  Ref condition(entry.constant > 0 ? ConditionOf(args[0]) : Ref());
  if (entry.constant > 0 && !condition) return nullptr;  // perhaps with an exception set
  ChoiceJob job{entry, args};
  if (condition) job.condition = AsArray(condition.get());
  if (!job.Take()) return nullptr;
  if (entry.method == Method::kVjp && !job.Ask()) return nullptr;
  return job.Run(Given(args, entry.out_at));
}

// --- along an axis -------------------------------------------------------------------------------

struct TakeEntry : MethodEntry {
  Method method;
  std::optional<size_t> axis_at, out_at;
};

[[gnu::hot]] PyObject* TakeMethod(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const TakeEntry&>(own);
  const bool is_pull = entry.method == Method::kVjp;
  const std::optional<DType> dtype = KernelArray(args[0]);
  // What is taken from; of a vjp, what goes back.
  PyObject* const source = entry.method == Method::kValue ? args[0] : args[2];
  if (!dtype || KernelArray(source) != dtype || !PyArray_CheckExact(args[1])) return nullptr;
  PyArrayObject* const x = AsArray(args[0]);
  PyArrayObject* const from = AsArray(source);
  PyArrayObject* const places = AsArray(args[1]);
  if (!PyArray_IS_C_CONTIGUOUS(from) || !PyArray_IS_C_CONTIGUOUS(places) ||
      !PyArray_ISALIGNED(places) || !PyArray_ISNOTSWAPPED(places)) {
    return nullptr;
  }
  const std::optional<Element> element = ElementOf(PyArray_TYPE(places));
  if (element != Element::kInt32 && element != Element::kInt64) return nullptr;
  if (entry.method == Method::kJvp && !SameShape(from, x)) return nullptr;

  const int ndim = PyArray_NDIM(x), more = PyArray_NDIM(places);
  PyObject* const asked = Given(args, entry.axis_at);
  Shape operand;  // the axis among its own, or all in a row
  int axis = 0;
  if (asked == nullptr) {
    operand.ndim = 1;
    operand.extent[0] = SizeOf(x);
  } else {
    if (!PyLong_CheckExact(asked)) return nullptr;
    int overflow;
    const long wanted = PyLong_AsLongAndOverflow(asked, &overflow);
    if (overflow != 0 || wanted < -ndim || wanted >= ndim) return nullptr;
    axis = static_cast<int>(wanted < 0 ? wanted + ndim : wanted);
    operand.ndim = ndim;
    std::copy_n(PyArray_DIMS(x), ndim, operand.extent.begin());
  }
  const auto at = static_cast<size_t>(axis);
  const size_t behind = static_cast<size_t>(operand.ndim - axis - 1);
  Shape taken;
  taken.ndim = operand.ndim - 1 + more;
  if (taken.ndim == 0 || taken.ndim > kMaxAxes) return nullptr;
  const auto* const first = operand.extent.begin();
  std::copy_n(first, at, taken.extent.begin());
  std::copy_n(PyArray_DIMS(places), more, taken.extent.begin() + axis);
  std::copy_n(first + at + 1, behind, taken.extent.begin() + axis + more);

  int stack = 0;
  Shape result = taken;
  if (is_pull) {
    stack = PyArray_NDIM(from) - taken.ndim;
    if (stack < 0 || stack + ndim > kMaxAxes || stack + ndim == 0 ||
        !EndsIn(from, taken.ndim, taken.extent.data())) {
      return nullptr;
    }
    result.ndim = stack + ndim;
    std::copy_n(PyArray_DIMS(from), stack, result.extent.begin());
    std::copy_n(PyArray_DIMS(x), ndim, result.extent.begin() + stack);
  }
  const auto product = [](const npy_intp* extents, size_t count) {
    size_t size = 1;
    for (size_t a = 0; a < count; ++a) size *= static_cast<size_t>(extents[a]);
    return size;
  };
  TakeCall call;
  call.dtype = *dtype;
  call.places = PyArray_DATA(places);
  call.wide_places = element == Element::kInt64;
  call.count = static_cast<size_t>(SizeOf(places));
  call.outer = product(first, at);
  if (is_pull) call.outer *= product(PyArray_DIMS(from), static_cast<size_t>(stack));
  call.n = static_cast<size_t>(first[at]);
  call.inner = product(first + at + 1, behind);
  if (call.outer * call.n * call.inner * call.count == 0) return nullptr;

  PyObject* const out = Given(args, entry.out_at);
  if (out != nullptr) {
    PyArrayObject* const target = AsArray(out);
    const bool fits = KernelArray(out) == dtype && PyArray_ISWRITEABLE(target) &&
                      PyArray_IS_C_CONTIGUOUS(target) && result.Is(target) &&
                      !Overlap(target, from) && !Overlap(target, places);
    // Nothing is written where an index is wrong.
    if (!fits || !PlacesAreInRange(call)) return nullptr;
  }
  Ref made(out != nullptr ? Py_NewRef(out) : NewArray(result.ndim, result.extent.data(), *dtype));
  if (!made) return nullptr;
  bool wrong = false;
  const size_t elements = call.outer * call.inner * std::max(call.count, is_pull ? call.n : 0);
  const bool done = RunKernel(elements > kReleaseGil, [&](Poll* poll) {
    return is_pull ? PutElements(call, PyArray_DATA(from), DataOf(made.get()), &wrong, poll)
                   : TakeElements(call, PyArray_DATA(from), DataOf(made.get()), &wrong, poll);
  });
  return done && !wrong ? made.release() : nullptr;
}

}  // namespace

PyObject* NewSelectionMethod(const char* selection, const char* method, PyObject* fallback) {
  const bool of_vjp = std::string_view(method) == "vjp.jvp" && selection != kTake;
  const auto* const found = std::find(std::begin(kMethodNames), std::end(kMethodNames),
                                      of_vjp ? "vjp" : std::string_view(method));
  const auto which = static_cast<Method>(found - kMethodNames);
  const auto refuse = [&]() -> PyObject* {
    return PyErr_Format(PyExc_KeyError, "no native method '%s' of a selection '%s'", method,
                        selection);
  };
  if (found == std::end(kMethodNames)) return refuse();
  if (selection == kTake) {
    if (which == Method::kDerivative || which == Method::kValueAndDerivative) return refuse();
    auto entry = std::make_unique<TakeEntry>();
    entry->method = which;
    if (!entry->signature.Read(fallback, which == Method::kValue ? 2 : 3)) return nullptr;
    entry->axis_at = entry->signature.Find("axis");
    entry->out_at = entry->signature.Find("out");
    return NewMethod(TakeMethod, std::move(entry), fallback);
  }
  const ChoiceTable table = ChoiceTables().Active();
  for (size_t row = 0; row < table.size(); ++row) {
    if (table[row].name != std::string_view(selection)) continue;
    auto entry = std::make_unique<ChoiceEntry>();
    entry->op = RowOf(ChoiceTables(), row);
    entry->method = which;
    entry->shape = table[row].ShapeOf(which);
    entry->constant = static_cast<size_t>(table[row].constant);
    entry->moved = static_cast<size_t>(table[row].moved());
    entry->of_vjp = of_vjp;
    const size_t required = static_cast<size_t>(entry->shape.nin) + (of_vjp ? entry->moved + 1 : 0);
    if (!entry->signature.Read(fallback, required)) return nullptr;
    entry->out_at = entry->signature.Find("out");
    entry->wrt_at = entry->signature.Find("wrt");
    return NewMethod(ChoiceCall, std::move(entry), fallback);
  }
  return refuse();
}

PyObject* SelectionOps() {
  Ref names(PyList_New(0));
  const auto add = [&](const char* name) {
    const Ref text(names ? PyUnicode_FromString(name) : nullptr);
    return text && PyList_Append(names.get(), text.get()) == 0;
  };
  for (const ChoiceKernels& op : ChoiceTables().Active()) {
    if (!add(op.name)) return nullptr;
  }
  return add(kTake.data()) ? names.release() : nullptr;
}

}  // namespace pullback

#include "bindings/chain.h"

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/call.h"
#include "bindings/chain_steps.h"
#include "bindings/jacobian_products.h"
#include "bindings/jacobians.h"
#include "bindings/method.h"
#include "bindings/operands.h"
#include "bindings/outputs.h"
#include "kernels/chain.h"

namespace pullback {
namespace {

// As for single ops: more elements than this are computed without the GIL.
constexpr npy_intp kReleaseGil = 4096;

// --- runs ----------------------------------------------------------------------------------------

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

// What is wanted besides the value.
enum class Other : uint8_t { kNone, kCotangent, kTangent };

struct Results {
  Ref value = Ref(), image = Ref();

  explicit operator bool() const { return value || image; }
};

// Steps in one pass. No results, perhaps with an exception set, for what is not plain.
Results RunPlain(std::span<const Step> run, PyObject* given, PyObject* second, Other other,
                 bool want_value) {
  const std::optional<DType> dtype = KernelArray(given);
  if (!dtype) return {};
  PyArrayObject* const x = AsArray(given);
  const int ndim = PyArray_NDIM(x);
  if (ndim == 0 || !PyArray_IS_C_CONTIGUOUS(x)) return {};
  if (other != Other::kNone && (KernelArray(second) != dtype || !SameShape(x, AsArray(second)) ||
                                !PyArray_IS_C_CONTIGUOUS(AsArray(second)))) {
    return {};
  }
  std::array<ChainStep, kMaxChainSteps> steps;
  std::array<Number, kMaxChainSteps> numbers;
  for (size_t i = 0; i < run.size(); ++i) {
    const Link& link = *run[i].link;
    steps[i].op = link.op;
    steps[i].place = link.place;
    if (!link.bound) continue;
    if (ReadNumber(link.bound.get(), *dtype, &numbers[i])) {
      steps[i].bound = {&numbers[i], 1, 1};
    } else if (!ReadArray(link.bound.get(), *dtype, x, &steps[i].bound)) {
      return {};
    }
  }

  Results results;
  const auto new_array = [&] { return Ref(NewArray(ndim, PyArray_DIMS(x), *dtype)); };
  if (want_value && !(results.value = new_array())) return {};
  if (other != Other::kNone && !(results.image = new_array())) return {};
  ChainCall call{.steps = {steps.data(), run.size()},
                 .dtype = *dtype,
                 .n = static_cast<size_t>(SizeOf(x)),
                 .x = PyArray_BYTES(x)};
  if (other == Other::kCotangent) call.cotangent = DataOf(second);
  if (other == Other::kTangent) call.tangent = DataOf(second);
  if (results.value) call.value = DataOf(results.value.get());
  if (results.image) call.image = DataOf(results.image.get());
  const bool done =
      RunKernel(SizeOf(x) > kReleaseGil, [&](Poll* poll) { return RunChain(call, poll); });
  return done ? std::move(results) : Results();
}

// --- the walk ------------------------------------------------------------------------------------

// The shape of an array or a scalar of NumPy's.
std::optional<Extents> ShapeOf(PyObject* object) {
  if (PyArray_Check(object)) return Extents(AsArray(object));
  if (PyArray_IsScalar(object, Generic)) return Extents(0, nullptr);
  return std::nullopt;
}

// Whether an operand beside an array leaves it in its shape, as far as that is easily told.
bool Fits(PyObject* operand, const Extents& shape) {
  if (PyLong_Check(operand) || PyFloat_Check(operand)) return true;
  const std::optional<Extents> own = ShapeOf(operand);
  if (!own || own->ndim > shape.ndim) return false;
  const npy_intp* const beside = shape.extent + (shape.ndim - own->ndim);
  return std::equal(own->extent, own->extent + own->ndim, beside,
                    [](npy_intp n, npy_intp m) { return n == 1 || n == m; });
}

// A cotangent of one for a value of one element; null, perhaps with an exception set, for another
// value.
Ref OneLike(PyObject* value) {
  constexpr float kSingle = 1;
  constexpr double kDouble = 1;
  if (PyArray_IsScalar(value, Float)) return Ref(NewScalar(&kSingle, DType::kFloat32));
  if (PyArray_IsScalar(value, Double)) return Ref(NewScalar(&kDouble, DType::kFloat64));
  const std::optional<DType> dtype = KernelArray(value);
  if (!dtype || PyArray_NDIM(AsArray(value)) == 0 || SizeOf(AsArray(value)) != 1) return Ref();
  Ref one(NewArray(PyArray_NDIM(AsArray(value)), PyArray_DIMS(AsArray(value)), *dtype));
  if (one) {
    OfType(*dtype, [&](auto type) { *static_cast<decltype(type)*>(DataOf(one.get())) = 1; });
  }
  return one;
}

using Refs = std::vector<Ref>;

PyObject* AsTuple(std::span<Ref> items) {
  PyObject* const tuple = PyTuple_New(static_cast<Py_ssize_t>(items.size()));
  for (size_t i = 0; tuple != nullptr && i < items.size(); ++i) {
    PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(i), items[i].release());
  }
  return tuple;
}

// Steps one after the other. All methods are null with an exception set.
class Walk {
 public:
  // A step, or several that run together.
  struct Part {
    size_t begin, end;
    bool runs;
  };
  using Parts = std::span<const Part>;

  bool Read(PyObject* given, PyObject* x, PyObject* other);

  // Those of which only the running value, or all operands, have cotangents.
  Parts alone() const { return alone_; }
  Parts whole() const { return whole_; }
  size_t bound() const { return bound_; }
  const Step& LastStep() const { return steps_.back(); }

  Ref Value(Parts parts, PyObject* x) const {
    Ref at(Py_NewRef(x));
    for (size_t i = 0; at && i < parts.size(); ++i) {
      if (HasRaised(i)) return Ref();
      at = ValueOf(parts[i], at.get());
    }
    return at;
  }

  // What each part is applied to.
  bool Inputs(Parts parts, PyObject* x, Refs& inputs) const {
    inputs.reserve(parts.size());
    inputs.emplace_back(Py_NewRef(x));
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      if (HasRaised(i)) return false;
      Ref value = ValueOf(parts[i], inputs.back().get());
      if (!value) return false;
      inputs.push_back(std::move(value));
    }
    return true;
  }

  Ref Jvp(Parts parts, PyObject* x, PyObject* t) const {
    Ref at(Py_NewRef(x)), moved(Py_NewRef(t));
    for (size_t i = 0; i < parts.size(); ++i) {
      if (HasRaised(i)) return Ref();
      moved = JvpOf(parts[i], at.get(), moved.get());
      if (!moved) return moved;
      if (i + 1 < parts.size()) at = ValueOf(parts[i], at.get());
      if (!at) return at;
    }
    return moved;
  }

  // The cotangent of x, from that of what the inputs lead to: they belong to the first parts, and
  // are used up. Where there is room for them, with the bound operands' behind the first place.
  Ref Pull(Parts parts, Refs& inputs, Ref g, Refs* cotangents = nullptr) const {
    while (g && !inputs.empty()) {
      if (HasRaised(inputs.size())) return Ref();
      const Part& part = parts[inputs.size() - 1];
      const Step& step = steps_[part.begin];
      if (cotangents == nullptr || step.bound == 0) {
        g = VjpOf(part, inputs.back().get(), g.get());
      } else {
        g = PullOf(part.begin, inputs.back().get(), g.get(), *cotangents);
      }
      inputs.pop_back();
    }
    return g;
  }

  // The last part's; it is as if the value were asked for, then the cotangent.
  Results LastValueAndVjp(Parts parts, PyObject* x, PyObject* g) const {
    const Part& last = parts.back();
    if (last.runs) {
      Results both = RunPlain(Run(last), x, g, Other::kCotangent, true);
      if (both || PyErr_Occurred() != nullptr) return both;
    }
    Results results{ValueOf(last, x), Ref()};
    if (results.value) results.image = VjpOf(last, x, g);
    return results.image ? std::move(results) : Results();
  }

  Ref Jacobian(Parts parts, PyObject* x) const {
    Ref at(Py_NewRef(x)), product;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (HasRaised(i)) return Ref();
      Ref own = JacobianOf(parts[i], at.get());
      if (own && product) own = JacobianProduct(own.get(), product.get());
      if (!own) return own;
      product = std::move(own);
      if (i + 1 < parts.size()) at = ValueOf(parts[i], at.get());
      if (!at) return at;
    }
    return product;
  }

  // Whether a cotangent has the shape of the value, as far as that is easily told, or the last step
  // tells it. May compute the value.
  bool LastFits(const Part& last, PyObject* at, PyObject* g, Ref& value) const {
    const Step& step = LastStep();
    const std::optional<Extents> given = ShapeOf(g), own = ShapeOf(at);
    if (!given) return false;
    if (step.link) {
      return own && *own == *given &&
             std::all_of(steps_.begin() + static_cast<ptrdiff_t>(last.begin), steps_.end(),
                         [&](const Step& one) {
                           return !one.link->bound || Fits(one.link->bound.get(), *own);
                         });
    }
    if (step.checks && own && ndim_[static_cast<size_t>(own->ndim)]) {
      return *ndim_[static_cast<size_t>(own->ndim)] == given->ndim;
    }
    value = step.value(at);
    const std::optional<Extents> shape = value ? ShapeOf(value.get()) : std::nullopt;
    if (!shape) return false;
    if (step.checks && own) ndim_[static_cast<size_t>(own->ndim)] = shape->ndim;
    return step.checks ? shape->ndim == given->ndim : *shape == *given;
  }

  int Traverse(visitproc visit, void* arg) const {
    for (const Step& step : steps_) {
      for (const BoundCall* call :
           {&step.value, &step.jvp, &step.vjp, &step.pull, &step.both, &step.jacobian}) {
        if (const int result = call->Traverse(visit, arg); result != 0) return result;
      }
      if (step.link) Py_VISIT(step.link->bound.get());
    }
    return 0;
  }

 private:
  // Whether a handler of signals has. Steps may be too short to look themselves.
  static bool HasRaised(size_t step) { return step % 16 == 0 && PyErr_CheckSignals() != 0; }

  std::vector<Part> Parted(bool apart) const;

  std::span<const Step> Run(const Part& part) const {
    return std::span(steps_).subspan(part.begin, part.end - part.begin);
  }

  // The steps of a run, each by itself.
  Parts Singles(const Part& run) const {
    return Parts(singles_).subspan(run.begin, run.end - run.begin);
  }

  Ref ValueOf(const Part& part, PyObject* x) const {
    if (!part.runs) return steps_[part.begin].value(x);
    Results found = RunPlain(Run(part), x, nullptr, Other::kNone, true);
    if (found || PyErr_Occurred() != nullptr) return std::move(found.value);
    return Value(Singles(part), x);
  }

  Ref JvpOf(const Part& part, PyObject* x, PyObject* t) const {
    if (!part.runs) return steps_[part.begin].jvp(x, t);
    Results found = RunPlain(Run(part), x, t, Other::kTangent, false);
    if (found || PyErr_Occurred() != nullptr) return std::move(found.image);
    return Jvp(Singles(part), x, t);
  }

  Ref VjpOf(const Part& part, PyObject* x, PyObject* g) const {
    if (!part.runs) return steps_[part.begin].vjp(x, g);
    Results found = RunPlain(Run(part), x, g, Other::kCotangent, false);
    if (found || PyErr_Occurred() != nullptr) return std::move(found.image);
    Refs inputs;
    if (!Inputs(Singles(part), x, inputs)) return Ref();
    return Pull(Singles(part), inputs, Ref(Py_NewRef(g)));
  }

  // That of the running value; those of bound operands go to their places.
  Ref PullOf(size_t at, PyObject* x, PyObject* g, Refs& cotangents) const {
    const Step& step = steps_[at];
    const Ref pulled = step.pull(x, g);
    if (!pulled) return Ref();
    if (!PyTuple_CheckExact(pulled.get()) ||
        static_cast<size_t>(PyTuple_GET_SIZE(pulled.get())) != 1 + step.bound) {
      PyErr_Format(PyExc_TypeError, "chain: %U has returned %R for %zu cotangents", step.text.get(),
                   pulled.get(), 1 + step.bound);
      return Ref();
    }
    const auto item = [&](size_t i) {
      return Ref(Py_NewRef(PyTuple_GET_ITEM(pulled.get(), static_cast<Py_ssize_t>(i))));
    };
    for (size_t i = 1; i <= step.bound; ++i) cotangents[first_bound_[at] + i - 1] = item(i);
    return item(0);
  }

  Ref JacobianOf(const Part& part, PyObject* x) const {
    if (part.runs) {
      Ref slopes = SlopesOf(part, x);
      if (slopes) {
        const Extents shape(AsArray(slopes.get()));
        return JacobianOfElements(std::move(slopes), shape);
      }
      return PyErr_Occurred() == nullptr ? Jacobian(Singles(part), x) : Ref();
    }
    const Step& step = steps_[part.begin];
    Ref found = step.jacobian(x);
    if (!found || !PyTuple_Check(found.get())) return found;
    Ref sum;
    for (const Py_ssize_t place : step.places) {
      if (place >= PyTuple_GET_SIZE(found.get())) {
        PyErr_Format(PyExc_TypeError, "chain: %U has no Jacobian by operand %zd", step.text.get(),
                     place + 1);
        return Ref();
      }
      PyObject* const own = PyTuple_GET_ITEM(found.get(), place);
      sum = Ref(sum ? PyNumber_Add(sum.get(), own) : Py_NewRef(own));
      if (!sum) return sum;
    }
    return sum;
  }

  // The derivatives of a run; null, perhaps with an exception set, for what is not plain.
  Ref SlopesOf(const Part& run, PyObject* x) const {
    const std::optional<DType> dtype = KernelArray(x);
    if (!dtype) return Ref();
    PyArrayObject* const array = AsArray(x);
    const Ref ones(NewArray(PyArray_NDIM(array), PyArray_DIMS(array), *dtype));
    if (!ones) return Ref();
    OfType(*dtype, [&](auto type) {
      std::fill_n(static_cast<decltype(type)*>(DataOf(ones.get())), SizeOf(array),
                  decltype(type){1});
    });
    return std::move(RunPlain(Run(run), x, ones.get(), Other::kCotangent, false).image);
  }

  std::vector<Step> steps_;
  std::vector<size_t> first_bound_;  // of each step, among all cotangents
  size_t bound_ = 0;
  std::vector<Part> alone_, whole_, singles_;
  // Axes of the value, by those of what the last step is applied to.
  mutable std::array<std::optional<int>, NPY_MAXDIMS + 1> ndim_;
};

bool Walk::Read(PyObject* given, PyObject* x, PyObject* other) {
  const auto count = static_cast<size_t>(PyTuple_GET_SIZE(given));
  if (count == 0) {
    PyErr_SetString(PyExc_ValueError, "ChainWalk: there are no steps");
    return false;
  }
  steps_.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    Step& step = steps_.emplace_back();
    if (!ReadStep(PyTuple_GET_ITEM(given, static_cast<Py_ssize_t>(i)), x, other, step))
      return false;
    first_bound_.push_back(1 + bound_);
    bound_ += step.bound;
    singles_.push_back({i, i + 1, false});
  }
  alone_ = Parted(false);
  whole_ = Parted(true);
  return true;
}

std::vector<Walk::Part> Walk::Parted(bool apart) const {
  std::vector<Part> parts;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    const bool alone = apart && step.bound > 0;
    if (!parts.empty() && step.link && !alone) {
      Part& last = parts.back();
      const Step& before = steps_[i - 1];
      if (before.link && !(apart && before.bound > 0) && last.end - last.begin < kMaxChainSteps) {
        last = {last.begin, i + 1, true};
        continue;
      }
    }
    // A single one has a straight way of its own, but not beside a number.
    parts.push_back({i, i + 1, step.link && step.bound > 0});
  }
  return parts;
}

// --- the type ------------------------------------------------------------------------------------

struct WalkObject {
  PyObject_HEAD
  Walk* walk;
};

PyTypeObject* walk_type = nullptr;

const Walk& WalkOf(PyObject* object) { return *reinterpret_cast<WalkObject*>(object)->walk; }

template <Ref (*kMethod)(const Walk&, PyObject* const*), Py_ssize_t kArguments>
PyObject* Method(PyObject* self, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != kArguments) {
    return PyErr_Format(PyExc_TypeError, "ChainWalk: takes %zd arguments, not %zd", kArguments,
                        nargs);
  }
  try {
    return kMethod(WalkOf(self), args).release();
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

Ref ValueMethod(const Walk& walk, PyObject* const* args) {
  return walk.Value(walk.alone(), args[0]);
}

Ref JvpMethod(const Walk& walk, PyObject* const* args) {
  return walk.Jvp(walk.alone(), args[0], args[1]);
}

// vjp(x, g, every): all cotangents in a tuple, or that of x.
Ref VjpMethod(const Walk& walk, PyObject* const* args) {
  const bool every = args[2] == Py_True;
  const Walk::Parts parts = every ? walk.whole() : walk.alone();
  Refs inputs, cotangents(every ? 1 + walk.bound() : 0);
  if (!walk.Inputs(parts, args[0], inputs)) return Ref();
  Ref g = walk.Pull(parts, inputs, Ref(Py_NewRef(args[1])), every ? &cotangents : nullptr);
  if (!g || !every) return g;
  cotangents[0] = std::move(g);
  return Ref(AsTuple(cotangents));
}

Ref JacobianMethod(const Walk& walk, PyObject* const* args) {
  return walk.Jacobian(walk.alone(), args[0]);
}

PyObject* New(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* const kNames[] = {"steps", "x", "other", nullptr};
  PyObject *steps, *x, *other;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OO:ChainWalk", const_cast<char**>(kNames),
                                   &PyTuple_Type, &steps, &x, &other)) {
    return nullptr;
  }
  try {
    auto walk = std::make_unique<Walk>();
    if (!walk->Read(steps, x, other)) return nullptr;
    PyObject* const self = type->tp_alloc(type, 0);
    if (self != nullptr) reinterpret_cast<WalkObject*>(self)->walk = walk.release();
    return self;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

int Traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Walk* const walk = reinterpret_cast<WalkObject*>(self)->walk;
  return walk == nullptr ? 0 : walk->Traverse(visit, arg);
}

// What leads back to a walk can be cleared: it holds nothing that it could not let go as a whole.
void Dealloc(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  delete reinterpret_cast<WalkObject*>(self)->walk;
  type->tp_free(self);
  Py_DECREF(type);
}

template <Ref (*kMethod)(const Walk&, PyObject* const*), Py_ssize_t kArguments>
PyCFunction AsMethod() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(Method<kMethod, kArguments>));
}

PyMethodDef kMethodDefs[] = {
    {"value", AsMethod<ValueMethod, 1>(), METH_FASTCALL, nullptr},
    {"jvp", AsMethod<JvpMethod, 2>(), METH_FASTCALL, nullptr},
    {"vjp", AsMethod<VjpMethod, 3>(), METH_FASTCALL, nullptr},
    {"jacobian", AsMethod<JacobianMethod, 1>(), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot kSlots[] = {
    {Py_tp_new, reinterpret_cast<void*>(New)},
    {Py_tp_traverse, reinterpret_cast<void*>(Traverse)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Dealloc)},
    {Py_tp_methods, kMethodDefs},
    {0, nullptr},
};

PyType_Spec kSpec = {"pullback._native.ChainWalk", sizeof(WalkObject), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, kSlots};

// --- calls as a user makes them ------------------------------------------------------------------

enum class Way : uint8_t { kValue, kJvp, kVjp, kValueAndVjp, kGrad, kValueAndGrad, kJacobian };

// In the order of Way, with how many arguments each looks at.
constexpr std::pair<std::string_view, size_t> kWays[] = {
    {"value", 1},          {"jvp", 2},     {"vjp", 2}, {"value_and_vjp", 2}, {"grad", 1},
    {"value_and_grad", 1}, {"jacobian", 1}};

struct ChainEntry : MethodEntry {
  Way way;
  std::optional<size_t> wrt_at;
  Ref walk;

  int Traverse(visitproc visit, void* arg) const override {
    Py_VISIT(walk.get());
    return 0;
  }
};

// Whose cotangents are asked for.
struct Asked {
  bool alone = false;  // x, and no other
  bool all = false;
  bool single = false;           // bare, not in a tuple
  std::vector<size_t> operands;  // unless it is alone

  // False for what Python has to look at.
  bool Read(PyObject* wrt, size_t bound) {
    const auto place = [&](PyObject* entry) -> std::optional<size_t> {
      if (PyUnicode_CheckExact(entry) && PyUnicode_CompareWithASCIIString(entry, "x") == 0)
        return 0;
      int overflow;
      const long k = PyLong_CheckExact(entry) ? PyLong_AsLongAndOverflow(entry, &overflow) : -1;
      if (k < 0 || static_cast<size_t>(k) > bound) return std::nullopt;
      return static_cast<size_t>(k);
    };
    single = !PyTuple_CheckExact(wrt);
    if (single && PyUnicode_CheckExact(wrt) && PyUnicode_CompareWithASCIIString(wrt, "all") == 0) {
      single = false;
      return all = true;
    }
    for (Py_ssize_t i = 0; i < (single ? 1 : PyTuple_GET_SIZE(wrt)); ++i) {
      const std::optional<size_t> k = place(single ? wrt : PyTuple_GET_ITEM(wrt, i));
      if (!k || std::find(operands.begin(), operands.end(), *k) != operands.end()) return false;
      operands.push_back(*k);
    }
    alone = operands.size() == 1 && operands[0] == 0;
    return !operands.empty();
  }

  // Used up.
  Ref Pack(Refs& cotangents) const {
    if (all) return Ref(AsTuple(cotangents));
    if (single) return std::move(cotangents[operands.empty() ? 0 : operands[0]]);
    Refs some;
    for (const size_t k : operands) some.push_back(std::move(cotangents[k]));
    return Ref(AsTuple(some));
  }
};

// Of a null g, a gradient.
PyObject* Cotangents(const Walk& walk, Way way, PyObject* x, PyObject* g, const Asked& asked) {
  const Walk::Parts parts = asked.alone ? walk.alone() : walk.whole();
  Refs inputs, cotangents(asked.alone ? 1 : 1 + walk.bound());
  if (!walk.Inputs(parts, x, inputs)) return nullptr;
  const Walk::Part& last = parts.back();
  Ref value, pulled;
  PyObject* const at = inputs.back().get();
  const bool apart = !asked.alone && walk.LastStep().bound > 0;
  if (g == nullptr) {
    if (!apart && walk.LastStep().both) {
      const Ref both = walk.LastStep().both(at);
      if (!both || !PyTuple_CheckExact(both.get()) || PyTuple_GET_SIZE(both.get()) != 2) {
        return nullptr;
      }
      value = Ref(Py_NewRef(PyTuple_GET_ITEM(both.get(), 0)));
      pulled = Ref(Py_NewRef(PyTuple_GET_ITEM(both.get(), 1)));
      if (!OneLike(value.get())) return nullptr;
      inputs.pop_back();
    } else {
      value = walk.Value({&last, 1}, at);
      if (value) pulled = OneLike(value.get());
    }
  } else {
    if (!walk.LastFits(last, at, g, value)) return nullptr;
    pulled = Ref(Py_NewRef(g));
    if (way == Way::kValueAndVjp && !value && !apart) {
      Results both = walk.LastValueAndVjp(parts, at, g);
      if (!both) return nullptr;
      value = std::move(both.value);
      pulled = std::move(both.image);
      inputs.pop_back();
    } else if (way == Way::kValueAndVjp && !value) {
      value = walk.Value({&last, 1}, at);
    }
  }
  if (way != Way::kVjp && !value) return nullptr;
  pulled = walk.Pull(parts, inputs, std::move(pulled), asked.alone ? nullptr : &cotangents);
  if (!pulled) return nullptr;
  cotangents[0] = std::move(pulled);
  Ref packed = asked.Pack(cotangents);
  const bool alone = way == Way::kVjp || way == Way::kGrad;
  return alone ? packed.release() : Pair(std::move(value), std::move(packed));
}

[[gnu::hot]] PyObject* CallChain(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const ChainEntry&>(own);
  const Walk& walk = WalkOf(entry.walk.get());
  PyObject* const x = args[0];
  if (entry.way == Way::kValue) return walk.Value(walk.alone(), x).release();
  if (entry.way == Way::kJacobian) {
    const bool alone = ArgumentAt(args, entry.wrt_at) == nullptr;
    return alone ? walk.Jacobian(walk.alone(), x).release() : nullptr;
  }
  const bool seeded = entry.way == Way::kGrad || entry.way == Way::kValueAndGrad;
  PyObject* const other = seeded ? nullptr : args[1];
  const std::optional<Extents> shape = other == nullptr ? std::nullopt : ShapeOf(other);
  if (other != nullptr && !shape) return nullptr;
  if (entry.way == Way::kJvp) {
    const std::optional<Extents> own_shape = ShapeOf(x);
    if (!own_shape || !(*own_shape == *shape)) return nullptr;
    return walk.Jvp(walk.alone(), x, other).release();
  }
  Asked asked;
  PyObject* const wrt = ArgumentAt(args, entry.wrt_at);
  if (wrt == nullptr) {
    asked.alone = asked.single = true;
  } else if (!asked.Read(wrt, walk.bound())) {
    return nullptr;
  }
  return Cotangents(walk, entry.way, x, other, asked);
}

}  // namespace

PyObject* NewChainMethod(PyObject* walk, const char* method, PyObject* fallback) {
  if (!PyObject_TypeCheck(walk, walk_type)) {
    return PyErr_Format(PyExc_TypeError, "chain_method: %R is no walk", walk);
  }
  const auto* const found = std::find_if(std::begin(kWays), std::end(kWays), [&](const auto& way) {
    return way.first == std::string_view(method);
  });
  if (found == std::end(kWays)) {
    return PyErr_Format(PyExc_KeyError, "no native method '%s' of a chain", method);
  }
  auto entry = std::make_unique<ChainEntry>();
  if (!entry->signature.Read(fallback, found->second)) return nullptr;
  entry->way = static_cast<Way>(found - std::begin(kWays));
  entry->wrt_at = entry->signature.Find("wrt");
  entry->walk = Ref(Py_NewRef(walk));
  return NewMethod(CallChain, std::move(entry), fallback);
}

bool RegisterChains(PyObject* module) {
  walk_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&kSpec));
  return walk_type != nullptr && PyModule_AddType(module, walk_type) == 0;
}

}  // namespace pullback

// Callables that enter a kernel straight from the vectorcall protocol.
//
// A Method has the signature of its Python fallback; arguments are bound by it once, here. Then it
// tries its fast path. Calls that the fast path does not recognise go to the fallback unchanged.
// That keeps conversion, broadcasting and error messages in Python, while a fast call costs a few
// pointer comparisons.
#ifndef PULLBACK_CPP_BINDINGS_METHOD_H_
#define PULLBACK_CPP_BINDINGS_METHOD_H_

#include <array>
#include <memory>
#include <optional>
#include <string_view>

#include "bindings/numpy_api.h"
#include "runtime/fp_env.h"

namespace pullback {

inline constexpr size_t kMaxArguments = 12;

// The arguments of a call in the order of the signature: borrowed, null where not given.
using Arguments = std::array<PyObject*, kMaxArguments>;

// An optional argument; null where the signature has none, or it is not given.
inline PyObject* ArgumentAt(const Arguments& args, std::optional<size_t> place) {
  return place ? args[*place] : nullptr;
}

// The same, where None counts as not given.
inline PyObject* Given(const Arguments& args, std::optional<size_t> place) {
  PyObject* const given = ArgumentAt(args, place);
  return given == Py_None ? nullptr : given;
}

struct Wrt;

// The signature of a callable.
class Signature {
 public:
  // Reads the arguments of a Python function, up to its *args or **kwargs. False with an exception
  // set, also if their number is not the one that a fast path relies on.
  bool Read(PyObject* callable, size_t relied_on);

  // False if the call does not fit, or passes a name that is not interned.
  bool Bind(PyObject* const* args, size_t nargs, PyObject* kwnames, Arguments& bound) const;

  // The place of an argument; nothing if there is none of that name.
  std::optional<size_t> Find(std::string_view name) const;

  // How many arguments, from the first, every call has that Bind accepts.
  size_t required() const { return required_; }

  // The arguments that wrt= asks for among the first `operands`: a name or place, a tuple of them,
  // or "all", which null means. Nothing if Python has to read it.
  std::optional<Wrt> ReadWrt(PyObject* given, size_t operands) const;

 private:
  enum class Place : uint8_t { kPositionalOnly, kAny, kKeywordOnly };

  bool Add(PyObject* name, Place place, bool required);
  bool ReadCode(PyObject* function, int self);

  std::array<Ref, kMaxArguments> names_;
  size_t count_ = 0;
  size_t positional_only_ = 0;
  size_t positional_ = 0;
  size_t required_ = 0;  // which come first
};

// The operands whose cotangents are asked for.
struct Wrt {
  std::array<size_t, 4> operands;
  size_t count = 0;
  bool single = false;  // the bare cotangent, not a tuple

  bool Has(size_t operand) const;

  // The results that were asked for, from those of all operands; None for one that does not exist.
  PyObject* Pack(Ref* of_operands) const;
};

// The data of a method, owned by its Method or ufunc. It never changes, so calls read it without a
// lock; it has the kernels for every target.
struct MethodEntry {
  MethodEntry() = default;
  MethodEntry(const MethodEntry&) = delete;
  MethodEntry& operator=(const MethodEntry&) = delete;
  virtual ~MethodEntry() = default;

  // Visits its references, which may lead back to the method.
  virtual int Traverse(visitproc, void*) const { return 0; }

  Signature signature;
};

// Null without an exception set: not a call for the fast path.
using FastPath = PyObject* (*)(const MethodEntry& entry, const Arguments& args);

// `fallback` gets the calls that the fast path leaves. New reference; null with an exception set.
// __name__, __qualname__, __module__, __doc__ and the like are set on the result from Python; it
// pickles as module and qualified name, like a function.
PyObject* NewMethod(FastPath fast_path, std::unique_ptr<const MethodEntry> entry,
                    PyObject* fallback);

PyObject* CallUnderGuard(vectorcallfunc call, PyObject* self, PyObject* const* args, size_t nargsf,
                         PyObject* kwnames);

// A call in the default floating-point environment, even if the thread has another one (a library
// compiled with -ffast-math makes its thread flush subnormals from its loading on). Kernels set the
// environment themselves, NumPy does not. Signal handlers run in the thread's own environment.
template <vectorcallfunc kCall>
PyObject* Guarded(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  return DefaultFpEnv::IsSet() ? kCall(self, args, nargsf, kwnames)
                               : CallUnderGuard(kCall, self, args, nargsf, kwnames);
}

// A Python function that runs under this guard, and is otherwise called and bound like the
// original. Its name and documentation are set from Python as well.
PyObject* NewGuarded(PyObject* function);

// A capsule that owns the entry, for callables that are no Method.
Ref OwnerOf(std::unique_ptr<const MethodEntry> entry);

bool RegisterMethodType(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_METHOD_H_

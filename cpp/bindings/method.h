// Callables that enter a kernel straight from the vectorcall protocol.
//
// A Method takes what its Python fallback takes: arguments are bound by that signature, once, here.
// Then it tries its fast path; whatever the fast path does not recognise goes, as it was given, to
// the fallback. That keeps all leniency (conversion, broadcasting, error messages) in Python, and a
// hot call at the cost of a few pointer comparisons.
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

// The same, of which None is as good as none.
inline PyObject* Given(const Arguments& args, std::optional<size_t> place) {
  PyObject* const given = ArgumentAt(args, place);
  return given == Py_None ? nullptr : given;
}

struct Wrt;

// The arguments that a callable takes.
class Signature {
 public:
  // What a Python function takes, up to its *args or **kwargs. False with an exception set, also
  // where that is not as many arguments as a fast path relies on.
  bool Read(PyObject* callable, size_t relied_on);

  // False where the call does not fit, or passes a name that is not interned.
  bool Bind(PyObject* const* args, size_t nargs, PyObject* kwnames, Arguments& bound) const;

  // The place of an argument; nothing where there is none of that name.
  std::optional<size_t> Find(std::string_view name) const;

  // How many arguments, from the first, are there in each call that Bind lets through.
  size_t required() const { return required_; }

  // What wrt= asks for among the first `operands` arguments: names or places, one or a tuple, or
  // "all", which is what null means. Nothing for what Python has to look at.
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

// The operands by which cotangents are asked for.
struct Wrt {
  std::array<size_t, 4> operands;
  size_t count = 0;
  bool single = false;  // the bare cotangent, not a tuple

  bool Has(size_t operand) const;

  // The results as they were asked for, taken from those of all operands; None where there is none.
  PyObject* Pack(Ref* of_operands) const;
};

// What a method knows of itself. Its Method or ufunc owns it, and it dies with that. Nothing in it
// changes, so calls read it without a lock: kernels are in it for every target.
struct MethodEntry {
  MethodEntry() = default;
  MethodEntry(const MethodEntry&) = delete;
  MethodEntry& operator=(const MethodEntry&) = delete;
  virtual ~MethodEntry() = default;

  // What it holds that may lead back to the method.
  virtual int Traverse(visitproc, void*) const { return 0; }

  Signature signature;
};

// Null without an exception set: not a call for the fast path.
using FastPath = PyObject* (*)(const MethodEntry& entry, const Arguments& args);

// `fallback` is called with what the fast path leaves. New reference; null with an exception set.
// __name__, __qualname__, __module__, __doc__ and the like are set on the result from Python; it
// pickles as module and qualified name, like a function.
PyObject* NewMethod(FastPath fast_path, std::unique_ptr<const MethodEntry> entry,
                    PyObject* fallback);

PyObject* CallUnderGuard(vectorcallfunc call, PyObject* self, PyObject* const* args, size_t nargsf,
                         PyObject* kwnames);

// A call in the default floating-point environment, whatever the thread has (a library that was
// compiled with -ffast-math flushes subnormals from its loading on): kernels see to that
// themselves, NumPy does not. Handlers run in the thread's own.
template <vectorcallfunc kCall>
PyObject* Guarded(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  return DefaultFpEnv::IsSet() ? kCall(self, args, nargsf, kwnames)
                               : CallUnderGuard(kCall, self, args, nargsf, kwnames);
}

// A Python function as one that runs under guard, and else is called and bound as it is. What tells
// of it is set from Python as well.
PyObject* NewGuarded(PyObject* function);

// A capsule that owns the entry, for what is called otherwise.
Ref OwnerOf(std::unique_ptr<const MethodEntry> entry);

bool RegisterMethodType(PyObject* module);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_METHOD_H_

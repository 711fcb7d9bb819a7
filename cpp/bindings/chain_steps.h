// The steps of chains: calls of primitives' methods, as pullback.chain_steps describes them.
#ifndef PULLBACK_CPP_BINDINGS_CHAIN_STEPS_H_
#define PULLBACK_CPP_BINDINGS_CHAIN_STEPS_H_

#include <array>
#include <optional>
#include <vector>

#include "bindings/numpy_api.h"
#include "kernels/chain.h"

namespace pullback {

// A call whose arguments are bound, except for the running value and its tangent or cotangent.
class BoundCall {
 public:
  // From (function, arguments, options), where two objects are placeholders for arguments that are
  // not bound, or from None. `numbers`: Python numbers take the dtype of both. False with an
  // exception set.
  bool Read(PyObject* given, PyObject* x, PyObject* other, bool numbers = false);

  explicit operator bool() const { return static_cast<bool>(function_); }

  // Null with an exception set.
  Ref operator()(PyObject* x, PyObject* other = nullptr) const {
    std::array<PyObject*, 1 + kAtHand> at_hand;
    std::vector<PyObject*> many;
    PyObject** args = at_hand.data();
    if (arguments_.size() > kAtHand) {
      many.resize(1 + arguments_.size());
      args = many.data();
    }
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const Argument& argument = arguments_[i];
      PyObject* given = argument.bound.get();
      if (argument.kind == kX) given = x;
      if (argument.kind == kOther) given = other == nullptr ? Py_None : other;
      if (argument.kind == kNumber) {
        const std::optional<DType> dtype = KernelArray(x);
        if (dtype && other != nullptr && KernelArray(other) == dtype)
          given = argument.as[static_cast<size_t>(*dtype)].get();
      }
      args[1 + i] = given;
    }
    return Ref(PyObject_Vectorcall(function_.get(), args + 1,
                                   positional_ | PY_VECTORCALL_ARGUMENTS_OFFSET, names_.get()));
  }

  int Traverse(visitproc visit, void* arg) const {
    Py_VISIT(function_.get());
    for (const Argument& argument : arguments_) Py_VISIT(argument.bound.get());
    return 0;
  }

 private:
  static constexpr size_t kAtHand = 12;
  enum Kind : uint8_t { kBound, kX, kOther, kNumber };
  struct Argument {
    Kind kind;
    Ref bound;
    std::array<Ref, kDTypes> as;  // a number beside arrays, converted to each dtype
  };

  Ref function_, names_;
  std::vector<Argument> arguments_;  // positional ones, then keywords
  size_t positional_ = 0;
};

// An op of a run.
struct Link {
  OpPlace op;
  Place place;
  Ref bound;  // null if there is none
};

// An operation and its operands.
struct Step {
  BoundCall value, jvp, vjp;
  BoundCall pull;  // returns the cotangents of the running value and of bound operands
  BoundCall both;  // returns value and gradient, if one call does
  BoundCall jacobian;
  size_t bound = 0;                // number of bound operands with cotangents
  bool checks = false;             // whether it checks cotangents with as many axes as the value
  std::optional<Link> link;        // if it can run together with its neighbours
  std::vector<Py_ssize_t> places;  // of the running value
  Ref text;                        // for messages
};

// Reads a step; `x` and `other` are the marks in its calls. False with an exception set.
bool ReadStep(PyObject* given, PyObject* x, PyObject* other, Step& step);

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_CHAIN_STEPS_H_

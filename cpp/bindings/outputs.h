// Arrays for results: given ones, and new ones. Large new ones reuse memory of freed results.
#ifndef PULLBACK_CPP_BINDINGS_OUTPUTS_H_
#define PULLBACK_CPP_BINDINGS_OUTPUTS_H_

#include <array>

#include "bindings/numpy_api.h"
#include "bindings/operands.h"
#include "runtime/kept_memory.h"

namespace pullback {

// In its scope, NumPy takes the memory of new arrays from kept memory (runtime/kept_memory.h), if
// that many elements are large enough. A user's own allocator is left in place.
class KeptMemoryScope {
 public:
  KeptMemoryScope(npy_intp elements, DType dtype) {
    if (elements >= static_cast<npy_intp>(kLeastKept / ItemSize(dtype))) Enter();
  }
  ~KeptMemoryScope() {
    if (before_ != nullptr) Leave();
  }
  KeptMemoryScope(const KeptMemoryScope&) = delete;
  KeptMemoryScope& operator=(const KeptMemoryScope&) = delete;

 private:
  void Enter();
  void Leave();

  PyObject* before_ = nullptr;
};

// An uninitialised array in C order; nullptr with an exception set.
[[gnu::hot]] PyObject* NewArray(int ndim, const npy_intp* shape, DType dtype);

// A NumPy scalar; nullptr with an exception set. An array without axes takes three times as long.
PyObject* NewScalar(const void* number, DType dtype);

// Whether results are in C order and must not overlap operands, or are in the operands' order and
// may share memory with one of them, element for element.
enum class Order : bool { kC, kOfOperands };

// The arrays of a call's results, each given by the caller or new.
class Outputs {
 public:
  // Adds an array for a result of that shape, which is the operands' if it is in their order.
  // False, perhaps with an exception set, for a given array that Python has to handle: one of
  // another shape, dtype or order, or one that overlaps an operand or an earlier output.
  bool Add(PyObject* given, int ndim, const npy_intp* shape, DType dtype,
           const PlainOperands& operands, Order order = Order::kC) {
    const bool is_new = given == nullptr || given == Py_None;
    if (!is_new || order != Order::kC) {
      return AddOther(is_new ? nullptr : given, ndim, shape, dtype, operands, order);
    }
    given_[count_] = false;
    return static_cast<bool>(arrays_[count_++] = Ref(NewArray(ndim, shape, dtype)));
  }

  // Adds a new result without axes, which is a scalar from the start.
  void AddNumber(DType dtype) {
    dtype_ = dtype;
    given_[count_++] = false;
  }

  size_t count() const { return count_; }
  // Null for a number.
  PyArrayObject* operator[](size_t i) const { return AsArray(arrays_[i].get()); }
  void* data(size_t i) { return arrays_[i] ? DataOf(arrays_[i].get()) : &numbers_[i]; }

  PyObject* ReleaseArray(size_t i) { return arrays_[i].release(); }

  // The result; a scalar if it was not given and has no axes. Call it once for each result.
  PyObject* Release(size_t i);

 private:
  bool AddOther(PyObject* given, int ndim, const npy_intp* shape, DType dtype,
                const PlainOperands& operands, Order order);

  static constexpr size_t kMost = 4;
  size_t count_ = 0;
  std::array<bool, kMost> given_;
  std::array<Ref, kMost> arrays_;
  std::array<double, kMost> numbers_;
  DType dtype_;  // of these
};

// The entries of out=, where null and None mean new arrays: an array for a single result, else a
// tuple with an entry for each. Three nested results may also be given as (a, (b, c)). False for
// anything else.
bool FlatOuts(PyObject* out, size_t count, bool bare, PyObject** flat, bool nested = true);

// Whether the ranges of memory from the first to the last element of both overlap.
bool Overlap(PyArrayObject* a, PyArrayObject* b);

// Whether no two elements share memory. False also for axes that are only interleaved.
bool ElementsApart(PyArrayObject* array);

bool RegisterOutputs();

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_OUTPUTS_H_

// Arrays for results: new ones, of which large ones lie in memory kept from earlier ones, and given
// ones.
#ifndef PULLBACK_CPP_BINDINGS_OUTPUTS_H_
#define PULLBACK_CPP_BINDINGS_OUTPUTS_H_

#include <array>

#include "bindings/numpy_api.h"
#include "bindings/operands.h"
#include "runtime/kept_memory.h"

namespace pullback {

// For its scope, NumPy takes the memory of new arrays from what is kept (runtime/kept_memory.h), if
// that many elements are large enough. An allocator of the user's own is left in place.
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

// Whether results come in C order, and lie apart from the operands, or come in the operands' order,
// and may lie where one of them does, element for element.
enum class Order : bool { kC, kOfOperands };

// The arrays of a call's results, each given by the caller or new.
class Outputs {
 public:
  // Finds room for a result of that shape, which is the operands' if it comes in their order.
  // False, perhaps with an exception set, for a given array that Python has to look at: of another
  // shape, dtype or order, or one that meets an operand or an earlier output.
  bool Add(PyObject* given, int ndim, const npy_intp* shape, DType dtype,
           const PlainOperands& operands, Order order = Order::kC) {
    const bool is_new = given == nullptr || given == Py_None;
    if (!is_new || order != Order::kC) {
      return AddOther(is_new ? nullptr : given, ndim, shape, dtype, operands, order);
    }
    given_[count_] = false;
    return static_cast<bool>(arrays_[count_++] = Ref(NewArray(ndim, shape, dtype)));
  }

  // Room for a new result without axes, which is a scalar from the first on.
  void AddNumber(DType dtype) {
    dtype_ = dtype;
    given_[count_++] = false;
  }

  size_t count() const { return count_; }
  // Null for a number.
  PyArrayObject* operator[](size_t i) const { return AsArray(arrays_[i].get()); }
  void* data(size_t i) { return arrays_[i] ? DataOf(arrays_[i].get()) : &numbers_[i]; }

  PyObject* ReleaseArray(size_t i) { return arrays_[i].release(); }

  // The result, where not given and without axes a scalar. Once each.
  PyObject* Release(size_t i);

 private:
  bool AddOther(PyObject* given, int ndim, const npy_intp* shape, DType dtype,
                const PlainOperands& operands, Order order);

  static constexpr size_t kMost = 3;
  size_t count_ = 0;
  std::array<bool, kMost> given_;
  std::array<Ref, kMost> arrays_;
  std::array<double, kMost> numbers_;
  DType dtype_;  // of these
};

// The entries of out=, of which null and None mean new arrays: an array for a bare result, else a
// tuple of as many as there are, three of them as (a, (b, c)) as well where that is how they come.
// False for anything else.
bool FlatOuts(PyObject* out, size_t count, bool bare, PyObject** flat, bool nested = true);

// Whether the memory from the first to the last element of one meets the other's.
bool Overlap(PyArrayObject* a, PyArrayObject* b);

// Whether no two elements lie in the same memory. False also where axes merely interlock.
bool ElementsApart(PyArrayObject* array);

bool RegisterOutputs();

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_OUTPUTS_H_
